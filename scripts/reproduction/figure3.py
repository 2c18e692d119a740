"""Figure 3 of Train 'n Trade: who buys, who leads, and what the market spares (§6.1.3).

Four panels there and here: the log of purchases, the ratio of squared distances from θ*
(A's ÷ B's, over 1 where B leads), and each agent's learning curve in and out of the market.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.table import Table

from node.devnet.report.differences import better_by
from node.devnet.report.style import ARM_COLOURS, FATE_COLOURS, as_png, log_scale
from node.devnet.report.words import NONE
from scripts.reproduction.engine import Json
from scripts.reproduction.figure import (
    READ_OFF,
    BySeed,
    FigureStudy,
    caption_of,
    every,
    line,
    over_seeds,
    picture,
    series_over_seeds,
    spread_text,
    whole,
)
from scripts.reproduction.linear import MODULES, play_linear, settings
from scripts.reproduction.studies import AGENTS, SPARED
from scripts.reproduction.telling import table_of

HALVES: Final = ("first half", "second half")


# ── what is found ──


def lead(one: Json) -> list[float]:
    """Return ‖θ̂_a − θ*‖² ÷ ‖θ̂_b − θ*‖² after each round's training and before its trades.

    After a mutual purchase both hold one model, and the ratio says nothing.
    """
    pairs = zip(*(one[agent]["before"] for agent in AGENTS), strict=True)
    return [a / b for a, b in pairs]


def spared(one: Json, agent: str) -> float:
    """Return the percent of the last test loss that the market spares an agent."""
    return better_by(one[agent]["market"][-1], one[agent]["alone"][-1], "loss")


def takes_the_lead(ratios: Sequence[float]) -> int | None:
    """Return the first round (from 1) from which on B leads to the end; None if it does not."""
    behind = [place for place, ratio in enumerate(ratios) if ratio <= 1]
    first = behind[-1] + 2 if behind else 1
    return first if first <= len(ratios) else None


def catches_up(one: Json, agent: str) -> int | None:
    """Return the round (from 1) after which the market has what training alone has at the end."""
    goal = one[agent]["alone"][-1]
    losses = one[agent]["market"]
    return next((place + 1 for place, loss in enumerate(losses) if loss <= goal), None)


def halves(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    middle = len(values) // 2
    return values[:middle], values[middle:]


def b_leads(one: Json, half: int) -> float:
    """Return in how many percent of a half's rounds B leads."""
    ratios = halves(lead(one))[half]
    return float(100 * sum(ratio > 1 for ratio in ratios) / len(ratios))


def purchases(one: Json, agent: str, half: int) -> float:
    return float(sum(halves(one[agent]["bought"])[half]))


def findings(by_seed: BySeed) -> Json:
    takes = {str(seed): takes_the_lead(lead(one)) for seed, one in by_seed.items()}
    return {
        "leads": series_over_seeds(by_seed, lead),
        "b_leads": {half: over_seeds(by_seed, b_leads, at) for at, half in enumerate(HALVES)},
        "b_leads_from": {
            **over_seeds(by_seed, lambda one: takes_the_lead(lead(one))),
            "by_seed": takes,
        },
        "agents": {
            agent: {
                "spared": over_seeds(by_seed, spared, agent),
                "paper_spared": paper,
                "catches_up": over_seeds(by_seed, catches_up, agent),
                "purchases": {
                    half: over_seeds(by_seed, purchases, agent, at)
                    for at, half in enumerate(HALVES)
                },
                **{
                    name: series_over_seeds(by_seed, _log, agent, name)
                    for name in ("alone", "market", "bought")
                },
            }
            for agent, paper in zip(AGENTS, SPARED, strict=True)
        },
    }


def _log(one: Json, agent: str, name: str) -> Sequence[Any]:
    series: Sequence[Any] = one[agent][name]
    return series


# ── how it is shown ──


def tables(found: Json) -> list[Table]:
    both = found["agents"]
    a, b = (both[agent] for agent in AGENTS)
    rows = [
        [
            "test loss spared, percent",
            *(spread_text(one["spared"]) for one in (a, b)),
            *(f"{one['paper_spared']:.2f}" for one in (a, b)),
        ],
        [
            "round with the loss of 100 rounds alone",
            *(spread_text(one["catches_up"], 1) for one in (a, b)),
            "sooner",
            "sooner",
        ],
        *(
            [
                f"purchases, {half}",
                *(spread_text(one["purchases"][half], 1) for one in (a, b)),
                NONE,
                "goes on buying" if half == HALVES[0] else NONE,
            ]
            for half in HALVES
        ),
    ]
    first, second = (spread_text(found["b_leads"][half], 1) for half in HALVES)
    never = sum(value is None for value in found["b_leads_from"]["by_seed"].values())
    leads = [
        ["first half, percent of rounds", first, "A leads"],
        ["second half, percent of rounds", second, NONE],
        ["from which round to the end", spread_text(found["b_leads_from"], 1), "at the end"],
        ["seeds in which it never does", str(never), NONE],
    ]
    places = every(len(found["leads"]), 11)
    log = [
        [
            str(place + 1),
            *(f"{100 * one['bought'][place]['mean']:.0f}" for one in (a, b)),
            spread_text(found["leads"][place], 3),
            *(spread_text(one[which][place], 1) for one in (a, b) for which in ("alone", "market")),
        ]
        for place in places
    ]
    return [
        table_of(
            f"Of each agent; paper: spared as printed in §6.1.3, the rest {READ_OFF}",
            ("mean ± half its 95% interval", "A", "B", "paper A", "paper B"),
            rows,
        ),
        table_of(f"Where B leads; paper: {READ_OFF}", ("", "B leads", "paper"), leads),
        table_of(
            "By round: buyers in percent of seeds, A's error ÷ B's, mean squared test losses",
            ("round", "A buys", "B buys", "A ÷ B", "A alone", "A market", "B alone", "B market"),
            log,
        ),
    ]


def draw(found: Json) -> bytes:
    rounds = range(1, len(found["leads"]) + 1)
    with picture(found["title"], caption_of(found), 6.4) as drawn:
        (log, ratio), *curves = drawn.subplots(2, 2)
        one_seed = next(iter(found["cases"][found["study"]]["by_seed"].values()))["figures"]
        for height, agent in enumerate(AGENTS):
            for bought, colour in ((True, FATE_COLOURS["traded"]), (False, FATE_COLOURS["gain"])):
                at = [
                    round_
                    for round_, did in zip(rounds, one_seed[agent]["bought"], strict=True)
                    if did is bought
                ]
                name = "buys" if bought else "does not"
                log.scatter(at, [height] * len(at), s=9, color=colour, label=name)
        log.set_yticks(range(len(AGENTS)), AGENTS)
        log.set_ylim(-0.6, 2.2)
        log.set_title("purchases with the first seed")
        handles, labels = log.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        log.legend(list(named.values()), list(named), loc="upper right", ncols=2)
        line(ratio, rounds, found["leads"], ARM_COLOURS["aligned"], "A ÷ B")
        ratio.axhline(1.0, color="#b3261e", linestyle="--", linewidth=1)
        ratio.set_title("squared error, A ÷ B (over 1: B leads)")
        for axes, agent in zip(curves[0], AGENTS, strict=True):
            its = found["agents"][agent]
            line(axes, rounds, its["alone"], ARM_COLOURS["out-of-market"], "alone", "--")
            line(axes, rounds, its["market"], ARM_COLOURS["aligned"], "in the market")
            log_scale(axes)
            axes.set_title(f"{agent}: mean squared test loss")
            axes.set_xlabel("round")
            axes.legend()
        picture_bytes = drawn
    return as_png(picture_bytes)


def differs(found: Json) -> str:
    a, b = (found["agents"][agent]["spared"] for agent in AGENTS)
    first, second = (found["b_leads"][half]["mean"] for half in HALVES)
    apart = 100 * max(abs(point["mean"] - 1) for point in found["leads"])
    return (
        f"the market spares A {a['mean']:.1f}% and B {b['mean']:.1f}% of the test loss (paper: "
        f"{SPARED[0]} and {SPARED[1]}, of one run); there A leads the first half and B the last "
        f"rounds, here B leads {whole(first)}% of the rounds of the first half and "
        f"{whole(second)}% of those of the second, on average, by less than {apart:.2f}% of the "
        "squared error, as both buy and stay close to one model"
    )


FIGURE: Final = FigureStudy(
    name="figure3",
    title="Two linear agents: who buys, who leads, what the market spares",
    source="Figure 3, §6.1.3",
    dataset="linear",
    settings=settings,
    play=play_linear,
    findings=findings,
    tables=tables,
    panels=draw,
    last=lambda one: [spared(one, agent) for agent in AGENTS],
    differs=differs,
    unpriced="§6.1.3 trades without payment",
    modules=MODULES,
    notes=(
        (
            "ours: a step of .01, from zero, α exact on [0, 1], chosen on a quarter of the 10,000 "
            "rows (protocol clean); a purchase is made where the merge is nearer to θ* (Eq. 3)"
        ),
        "the ratio is taken after training and before the round's trades",
    ),
)
