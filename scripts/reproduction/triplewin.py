"""Ten data sellers and five models under four ways to price: `reproduce.py triplewin`.

TripleWin's benchmark (experiment 6 of its authors' code: 10 sellers, 5 models, 30 markets) and
its success rates (experiment 2), on Shapley values of models that are trained here on the
sellers' data. The paper itself is known here by its abstract, so its figures are those that its
authors' repository keeps as outputs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import matplotlib as mpl
import numpy as np

from broker_node.mechanisms.base import Status
from broker_node.mechanisms.triplewin import jacobi, read
from node.devnet.report.style import INK, SETTINGS, SOFT, as_png, figure
from node.devnet.report.words import NONE
from scripts.reproduction import prices as priced
from scripts.reproduction.engine import Json
from scripts.reproduction.prices import (
    METHODS,
    RHO,
    Drawn,
    accepted,
    draw_market,
    fixed_point,
    rank_correlation,
)
from scripts.reproduction.seeds import Compared, Experiment, Given, Grid, main_of
from scripts.reproduction.sellers import (
    EPOCHS,
    EQUAL,
    MODELS,
    ORDERS,
    PERCEPTRON,
    SAMPLED,
    SELLERS,
    UNEQUAL,
    trained,
)

Figures = tuple[float, ...]
QUANTITIES: Final[dict[str, tuple[str, int]]] = {
    "welfare": ("social welfare", 1),
    "buyers": ("buyer surplus", 1),
    "sellers": ("seller surplus", 1),
    "platform": ("platform profit", 1),
    "e2e": ("end-to-end success, %", 2),
    "buyer_price": ("mean buyer price", 2),
    "seller_price": ("mean seller price", 2),
    "spearman": ("Spearman, pay and Shapley", 2),
    "resilience": ("resilience, %", 2),
}
"""Name in the table, and places."""
THEIRS: Final[dict[str, Figures]] = {
    "SupplyFirst": (317.1, 71.4, 107.4, 138.3, 47.27, 33.03, 2.77, -0.02, 49.62),
    "DemandFirst": (519.7, 532.1, 8.3, -20.7, 80.86, 3.06, 0.42, 0.45, 70.69),
    "BrokerCentric": (345.6, 71.4, 125.1, 149.1, 54.05, 32.32, 2.77, 0.00, 47.57),
    "TripleWin": (516.9, 327.7, 39.4, 149.9, 98.26, 14.46, 1.04, 0.90, 92.06),
}
"""In the order of `QUANTITIES`: means of the authors' 30 markets (experiment 6)."""
NOT_PLAYED: Final[dict[str, Figures]] = {
    "VAP": (521.2, 457.6, 8.0, 55.5, 35.54, 7.22, 0.43, -0.46, 48.62),
    "CMAB-HS": (525.9, 521.7, 1.1, 3.1, 9.54, 3.63, 0.28, -0.03, 50.47),
    "Dealer": (483.7, 111.2, 420.6, -48.1, 88.53, 27.42, 9.62, 0.65, 61.38),
}
COLOURS: Final = {
    "SupplyFirst": "#005ea8",
    "DemandFirst": "#8a6d00",
    "BrokerCentric": "#1b865b",
    "TripleWin": "#c24e00",
}
RESERVE_SCALES: Final = tuple(np.linspace(1.0, 10.0, 37).tolist())
MARGIN_SCALES: Final = tuple(np.linspace(0.0, 15.0, 31).tolist())
STRESSED: Final = ("SupplyFirst", "BrokerCentric", "TripleWin")
HARD: Final = (8.0, 16.0)
"""Reserves that the one test scales; the other has seven times these."""
EASY_TIMES: Final = 7
HALF_READ_OFF: Final = {
    "reserves": {"SupplyFirst": "4.2", "BrokerCentric": "5.7", "TripleWin": "1.9"},
    "margins": {"SupplyFirst": "8.8", "BrokerCentric": "4.5"},
}
"""Where half of the markets succeed, read off the plot of experiment 2, of 10 models."""
RHOS: Final = (0.4, 0.6, 0.8, 1.0)


# ── playing ──


def shapley_of(once: Json) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return SV (sellers, models) as it was found."""
    return np.array([once["models"][model]["shapley"] for model in MODELS]).T


def _trained(given: Given) -> Json:
    return trained(given.variant, given.data_folder, given.folder)


def play(seed: int, given: Given) -> Json:
    """Price one market each way, and stress it."""
    shapley_DJ = shapley_of(given.once)
    market = draw_market(seed, shapley_DJ)
    methods = {}
    for name, price in METHODS.items():
        prices = price(market)
        found = priced.judged(market, prices)
        found["resilience"] = priced.resilience(market, prices, found, seed)
        methods[name] = found
    hard = draw_market(seed, shapley_DJ, reserves=HARD)
    easy = draw_market(seed, shapley_DJ, reserves=(HARD[0] * EASY_TIMES, HARD[1] * EASY_TIMES))
    scaled = {
        "reserves": [
            replace(hard, reserve=tuple(scale * one for one in hard.reserve))
            for scale in RESERVE_SCALES
        ],
        "margins": [replace(easy, delta=scale * easy.delta) for scale in MARGIN_SCALES],
    }
    iteration = jacobi(read(priced.inputs_of(market)), tolerance=1e-10)
    return {
        "methods": methods,
        "success": {
            kind: {n: [accepted(m, METHODS[n](m)) for m in markets] for n in STRESSED}
            for kind, markets in scaled.items()
        },
        "fair": {str(rho): _fairness(replace(market, rho=rho)) for rho in RHOS},
        "jacobi": {
            "steps": iteration.steps,
            "rate": iteration.rate,
            "converged": iteration.converged,
        },
    }


def _fairness(market: Drawn) -> float | None:
    """Return TripleWin's Spearman at this ρ; None where there is no fixed point."""
    outcome = fixed_point(market)
    if outcome.status is Status.INFEASIBLE:
        return None
    data_DJ = np.array(outcome.values["p_data_to_model"])
    return statistics.fmean(
        rank_correlation(market.shapley_DJ[:, j], data_DJ[:, j]) for j in range(data_DJ.shape[1])
    )


# ── beside the paper ──


def _figure(found: Json, method: str, quantity: str) -> float:
    value = found["methods"][method][quantity]
    return float("nan") if value is None else float(value)


def _rates(played: Sequence[Json], kind: str, method: str) -> list[float]:
    by_market = [p["success"][kind][method] for p in played]
    return [statistics.fmean(at_scale) for at_scale in zip(*by_market, strict=True)]


def half_at(scales: Sequence[float], rates: Sequence[float]) -> float:
    """Return the first scale at which the rate has crossed one half, linearly; NaN if none."""
    for (x0, y0), (x1, y1) in zip(
        zip(scales, rates, strict=True), zip(scales[1:], rates[1:], strict=True), strict=False
    ):
        if (y0 - 0.5) * (y1 - 0.5) <= 0 and y0 != y1:
            return x0 + (0.5 - y0) / (y1 - y0) * (x1 - x0)
    return float("nan")


def compare(once: Json, played: Sequence[Json]) -> list[Compared]:
    """Return the benchmark and the stress tests beside the authors' outputs."""
    rows = [
        Compared(
            where="6",
            what=f"{words}, {method}",
            paper=f"{THEIRS[method][place]:.{places}f}",
            values=[_figure(p, method, quantity) for p in played],
            places=places,
        )
        for place, (quantity, (words, places)) in enumerate(QUANTITIES.items())
        for method in METHODS
    ]
    for kind, scales in (("reserves", RESERVE_SCALES), ("margins", MARGIN_SCALES)):
        for method in HALF_READ_OFF[kind]:
            at = half_at(scales, _rates(played, kind, method))
            what = f"{kind} times what lets half of the markets succeed, {method}"
            paper = f"{HALF_READ_OFF[kind][method]} (read off)"
            rows.append(Compared(where="2", what=what, paper=paper, values=[at], places=1))
    kept = [100.0 * p["success"]["margins"]["TripleWin"][-1] for p in played]
    rows.append(Compared(where="2", what="% that succeed at 15 times the margin, TripleWin",
                         paper="100 (read off)", values=kept, places=0))  # fmt: skip
    for rho in RHOS:
        values = [p["fair"][str(rho)] for p in played]
        rows.append(
            Compared(
                where="1",
                what=f"Spearman of TripleWin, ρ = {rho:g}",
                paper="0.93" if rho == RHO else "",
                values=[float("nan") if value is None else value for value in values],
            )
        )
    rows += [
        Compared(where="1", what="% of markets without a fixed point, ρ = 1", paper="",
                 values=[100.0 * (p["fair"]["1.0"] is None) for p in played], places=0),
        Compared(where="5", what="Jacobi: steps to 1e-10", paper="",
                 values=[p["jacobi"]["steps"] for p in played], places=0),
        Compared(where="5", what=f"Jacobi: rate (√(ρ·Σ SV) = {RHO**0.5:.4f})", paper="",
                 values=[p["jacobi"]["rate"] for p in played], places=4),
    ]  # fmt: skip
    negative = float(sum(one["negative"] for one in once["models"].values()))
    rows.append(Compared(where="SV", what="negative Shapley values, of 50", paper="",
                         values=[negative], places=0))  # fmt: skip
    return rows


def grids(once: Json, _played: Sequence[Json]) -> list[Grid]:
    """Return the Shapley values, and the rows of the authors' table that are not played."""
    sellers = [f"{n + 1}" for n in range(SELLERS)]
    models = once["models"]
    rows = [
        [name, f"{one['accuracy']:.3f}", *(f"{value:.3f}" for value in one["shapley"])]
        for name, one in models.items()
    ]
    if any(one["exact"] != one["shapley"] for one in models.values()):
        rows += [
            [f"{name}, exact", NONE, *(f"{value:.3f}" for value in one["exact"])]
            for name, one in models.items()
        ]
    rows.append(["rows held", NONE, *map(str, once["rows"])])
    theirs = [
        [name, *(f"{value:.2f}".replace("-", "−") for value in figures)]
        for name, figures in NOT_PLAYED.items()
    ]
    return [
        Grid("Shapley values of the sellers' data", ["model", "accuracy", *sellers], rows),
        Grid(
            "The authors' other baselines, not played here: their figures",
            ["method", *(words for words, _ in QUANTITIES.values())],
            theirs,
        ),
    ]


def draw(found: Json) -> bytes:
    """Return the benchmark and the two stress tests as PNG."""
    played = list(found["by_seed"].values())
    with mpl.rc_context(SETTINGS):
        drawn = figure(6.6, 12.0)
        drawn.suptitle(found["title"], x=0.01, ha="left", fontsize=12, fontweight="bold")
        panels = drawn.subplots(2, 3)
        shown = ("welfare", "e2e", "spearman", "platform")
        for axes, quantity in zip(panels.flat, shown, strict=False):
            place = list(QUANTITIES).index(quantity)
            for x, method in enumerate(METHODS):
                values = np.array([_figure(p, method, quantity) for p in played])
                axes.bar(x, np.nanmean(values), 0.7, color=COLOURS[method],
                         yerr=np.nanstd(values), error_kw={"elinewidth": 0.8})  # fmt: skip
                axes.plot([x], [THEIRS[method][place]], marker="D", ms=6, mfc="none", mec=INK)
            axes.set_xticks(range(len(METHODS)), [n.replace("F", "\nF").replace("C", "\nC")
                                                  for n in METHODS], fontsize=8)  # fmt: skip
            axes.set_title(QUANTITIES[quantity][0])
        for axes, kind, scales in (
            (panels[1, 1], "reserves", RESERVE_SCALES),
            (panels[1, 2], "margins", MARGIN_SCALES),
        ):
            for method in STRESSED:
                axes.plot(scales, _rates(played, kind, method), color=COLOURS[method],
                          linewidth=1.6, label=method)  # fmt: skip
            axes.set_title("share of markets that succeed")
            axes.set_xlabel(f"{kind}, times")
        panels[1, 1].legend(fontsize=8)
        caption = (
            f"variant {found['variant']}; mean of {len(played)} markets; bar: standard "
            "deviation; ◇: the authors' figure"
        )
        drawn.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color=SOFT)
        return as_png(drawn)


# ── the experiment ──


def settings(variant: str) -> Json:
    return {
        "division": variant,
        "dataset": "digits",
        "models": list(MODELS),
        "sellers": SELLERS,
        "perceptron": {
            "hidden": list(PERCEPTRON.hidden),
            "learning_rate": PERCEPTRON.learning_rate,
            "batch_rows": PERCEPTRON.batch_rows,
            "epochs": EPOCHS,
        },
        "rho": RHO,
        "delta": priced.DELTA,
        "reserves": list(priced.RESERVES),
        "hard": list(HARD),
        "easy_times": EASY_TIMES,
        "reserve_scales": list(RESERVE_SCALES),
        "margin_scales": list(MARGIN_SCALES),
    }


_VALUES: Final = (
    f"the authors draw 5 of 49 columns of Shapley values (seven data sets, seven models, {ORDERS} "
    "sampled orders), here are five models on digits with exact values; of equal random parts "
    "these hardly differ, and pay follows κ_D: `--variant sampled` has what sampling adds"
)
_STRESS: Final = "their success rates are of 10 models and 80 markets, these of 5 and 30"
_OURS: Final = (
    "the division of the digits among the sellers; equal: the same number of rows, at random, as "
    "theirs; unequal: class by class by Dirichlet(1); what the perceptron is trained with"
)
_UNPLAYED: Final = "VAP, CMAB-HS and Dealer are other papers' mechanisms, and are not played"

EXPERIMENT: Final = Experiment(
    name="triplewin",
    title="Data and models priced together: 10 sellers, 5 models",
    source="TripleWin, arXiv 2511.03368; its authors' code, experiments 1, 2, 5 and 6",
    variants=(EQUAL, SAMPLED, UNEQUAL),
    seeds=30,
    settings=settings,
    play=play,
    once=_trained,
    compare=compare,
    grids=grids,
    draw=draw,
    differences=(_VALUES, _STRESS, _UNPLAYED),
    ours=(_OURS,),
    played_by=(
        "broker_node/mechanisms",
        "node/data",
        "node/training",
        "scripts/reproduction/sellers.py",
        "scripts/reproduction/prices.py",
    ),
)


def main(_name: str, arguments: Sequence[str]) -> int:
    return main_of(EXPERIMENT, arguments)
