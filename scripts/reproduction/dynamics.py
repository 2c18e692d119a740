"""Market dynamics with 100 agents: volume, price stability and efficiency over the rounds.

The paper leaves markets of many agents open and plots none, so that all here is ours. The market
itself is `crowd`. Efficiency of a round is

    Σ_trades V·g[b, s]  ÷  Σ_b max(0, max_{s ≠ b} V·g[b, s]),

with g the round's matrix of trial gains (relative drop of the buyer's loss on the rows that score)
and V what the whole loss is worth. Parameters are copied, not used up: a seller serves any number
of buyers at no cost, so the denominator is the most that one purchase each can realise. Both sums
are of the same estimates, the greatest of which flatters itself: that lowers the ratio.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any, Final

from rich.table import Table

from node.devnet.report.style import ARM_COLOURS, FATE_COLOURS, OTHER_COLOURS, as_png, whole_numbers
from node.devnet.report.words import ETHER
from scripts.reproduction.crowd import (
    ALPHAS,
    DATASET,
    FEE,
    FRESH_ROUNDS,
    LEAST_OWN,
    LEAST_PUBLIC,
    QUICK,
    USUAL,
    Crowd,
)
from scripts.reproduction.engine import Json
from scripts.reproduction.figure import (
    BySeed,
    FigureStudy,
    caption_of,
    line,
    over_seeds,
    picture,
    series_over_seeds,
    spread_text,
)
from scripts.reproduction.studies import Setting
from scripts.reproduction.telling import table_of

CAUSES: Final = ("gain", "bound", "ask")
PLAIN: Final = (
    *("trades", "sellers", "price_dispersion", "efficiency", "sure_share"),
    *("accuracy", "accuracy_alone", "gini", "gini_alone"),
)
MONEY: Final = ("volume", "price_mean", "ask_mean")


def settings(setting: Setting) -> Json:
    size = QUICK if setting.quick else USUAL
    return {
        "protocol": setting.protocol,
        "ours": {
            **dataclasses.asdict(size),
            "fee_basis_points": FEE,
            "alphas": [0, *ALPHAS],
            "history": {"rounds": FRESH_ROUNDS, "own": LEAST_OWN, "public": LEAST_PUBLIC},
        },
    }


def play(setting: Setting, seed: int) -> Json:
    return {"rounds": Crowd(QUICK if setting.quick else USUAL, setting, seed).play()}


# ── what is found ──


def moves(one: Json) -> list[float | None]:
    """Return by how many percent the mean price moved from the round before; None if unknown."""
    means = [round_["price_mean"] for round_ in one["rounds"]]
    moved = [
        100 * abs(now / before - 1) if now is not None and before else None
        for before, now in pairwise(means)
    ]
    return [None, *moved]


def efficiency(one: Json) -> float:
    """Return the efficiency of all rounds together: what was realised of the best."""
    realised = sum(round_["realised"] for round_ in one["rounds"])
    best = sum(round_["best"] for round_ in one["rounds"])
    return realised / best if best else 0.0


def _rounds(one: Json, name: str, scale: int) -> list[float | None]:
    values = [round_[name] for round_ in one["rounds"]]
    return [None if value is None else value / scale for value in values]


def _lost(one: Json, cause: str) -> list[int]:
    return [round_["lost"].get(cause, 0) for round_ in one["rounds"]]


def findings(by_seed: BySeed) -> Json:
    return {
        "rounds": {
            **{name: series_over_seeds(by_seed, _rounds, name, 1) for name in PLAIN},
            **{name: series_over_seeds(by_seed, _rounds, name, ETHER) for name in MONEY},
            "price_move": series_over_seeds(by_seed, moves),
            **{f"lost_{cause}": series_over_seeds(by_seed, _lost, cause) for cause in CAUSES},
        },
        "in_all": {
            "trades": over_seeds(by_seed, lambda one: _sum(one, "trades")),
            "volume": over_seeds(by_seed, lambda one: _sum(one, "volume") / ETHER),
            "efficiency": over_seeds(by_seed, efficiency),
            "above_alone": over_seeds(by_seed, above_alone),
        },
    }


def above_alone(one: Json) -> float:
    """Return by how many points agents end above what they reach alone, on average."""
    last = one["rounds"][-1]
    return float(last["accuracy"] - last["accuracy_alone"])


def _sum(one: Json, name: str) -> Any:
    return sum(round_[name] for round_ in one["rounds"])


# ── how it is shown ──


def tables(found: Json) -> list[Table]:
    rounds = found["rounds"]
    count = len(rounds["trades"])

    def cells(place: int, *columns: tuple[str, int]) -> list[str]:
        return [spread_text(rounds[name][place], places) for name, places in columns]

    market = [
        [
            str(place + 1),
            *cells(
                place,
                *(("trades", 1), ("sellers", 1), ("volume", 1), ("price_mean", 3)),
                *(("price_dispersion", 2), ("price_move", 1), ("ask_mean", 3)),
            ),
        ]
        for place in range(count)
    ]
    worth = [
        [
            str(place + 1),
            *cells(place, ("efficiency", 2), ("sure_share", 2)),
            "/".join(f"{rounds[f'lost_{cause}'][place]['mean']:.1f}" for cause in CAUSES),
            *cells(place, ("accuracy", 1), ("accuracy_alone", 1), ("gini", 3), ("gini_alone", 3)),
        ]
        for place in range(count)
    ]
    whole = found["in_all"]
    return [
        table_of(
            "Trade by round: mean over seeds ± half of its 95% interval, money in play-ether",
            (
                *("round", "trades", "sellers", "volume", "price"),
                *("sd ÷ mean", "moved, %", "ask"),
            ),
            market,
        ),
        table_of(
            "What it was worth: efficiency, that of all sure gains, why buyers bought nothing",
            (
                *("round", "efficiency", "sure gains", "gain/bound/ask"),
                *("accuracy, %", "alone, %", "Gini", "Gini alone"),
            ),
            worth,
        ),
        table_of(
            "In all",
            ("trades", "volume", "efficiency", "accuracy over alone, points"),
            [
                [
                    spread_text(whole["trades"], 1),
                    spread_text(whole["volume"], 3),
                    spread_text(whole["efficiency"], 3),
                    spread_text(whole["above_alone"], 2),
                ]
            ],
        ),
    ]


def draw(found: Json) -> bytes:
    rounds = found["rounds"]
    at = range(1, len(rounds["trades"]) + 1)
    blue, orange, green = (ARM_COLOURS[arm] for arm in ("aligned", "unaligned", "fedavg"))
    with picture(found["title"], caption_of(found), 9.0) as drawn:
        (trades, volume), (price, moved), (worth, accuracy) = drawn.subplots(3, 2)
        line(trades, at, rounds["trades"], blue, "trades")
        for cause in CAUSES:
            line(trades, at, rounds[f"lost_{cause}"], FATE_COLOURS[cause], f"none: {cause}", "--")
        trades.set_ylim(0, None)
        trades.set_title("buyers")
        line(volume, at, rounds["volume"], blue, "volume")
        volume.set_ylim(0, None)
        volume.set_title("volume, play-ether")
        line(price, at, rounds["price_mean"], blue, "mean price")
        line(price, at, rounds["ask_mean"], orange, "mean ask", "--")
        price.set_ylim(0, None)
        price.set_title("prices and asks, play-ether")
        line(moved, at, [_percent(row) for row in rounds["price_dispersion"]], green, "sd ÷ mean")
        line(moved, at, rounds["price_move"], OTHER_COLOURS[0], "moved since the round before")
        moved.set_ylim(0, None)
        moved.set_title("price dispersion and movement, percent")
        line(worth, at, rounds["efficiency"], blue, "realised ÷ best")
        line(worth, at, rounds["sure_share"], orange, "sure gains ÷ best", "--")
        worth.set_ylim(0, 1.02)
        worth.set_title("efficiency")
        line(accuracy, at, rounds["accuracy"], blue, "in the market")
        line(accuracy, at, rounds["accuracy_alone"], ARM_COLOURS["out-of-market"], "alone", "--")
        accuracy.set_ylim(0, 100)
        accuracy.set_title("mean test accuracy, percent")
        for axes in (trades, volume, price, moved, worth, accuracy):
            whole_numbers(axes)
            axes.legend()
        for axes in (worth, accuracy):
            axes.set_xlabel("round")
    return as_png(drawn)


def _percent(row: Json) -> Json:
    ends = ("mean", "low", "high")
    return {**row, **{end: None if row[end] is None else 100 * row[end] for end in ends}}


def differs(found: Json) -> str:
    whole = found["in_all"]
    return (
        "it has no market of more than two agents and no figure of one, so there is none to differ "
        f"from; here {100 * whole['efficiency']['mean']:.0f}% of the best surplus is realised, and "
        f"agents end {whole['above_alone']['mean']:.1f} points of accuracy above training alone"
    )


FIGURE: Final = FigureStudy(
    name="dynamics",
    title="A market of 100 agents: volume, prices and efficiency over the rounds",
    source="no figure; many agents are left open there",
    dataset=DATASET,
    settings=settings,
    play=play,
    findings=findings,
    tables=tables,
    panels=draw,
    last=lambda one: [efficiency(one), one["rounds"][-1]["accuracy"]],
    differs=differs,
    seeds=3,
    unpriced="it always has prices and fees",
    slow=True,
    modules=("scripts/reproduction/crowd.py",),
    notes=(
        (
            "efficiency: the sum over trades of what the trial's gain is worth to its buyer, over "
            "the sum over buyers of their best trial's, by the same round's trials; `sure gains` "
            "is that of every buyer's best trial with a lower bound over 0"
        ),
        (
            "asks are learned from the valuations behind the sales of the last two rounds: a "
            "seller's own from four, else everybody's from ten, else its own gain as on the floor"
        ),
    ),
)
