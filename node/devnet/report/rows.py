"""The rows that page and terminal both show: what was learnt, compared and traded, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from node.devnet.report.document import ALL_AGENTS, Report, agent_names, arms_of
from node.devnet.report.findings import mean_of, not_made, spread_over_seeds, trading_by_arm
from node.devnet.report.words import (
    NONE,
    alpha_text,
    cause_words,
    counted,
    figure,
    legible,
    metric_words,
    percent,
    play_ether,
    signed,
)

COST_WORDS: Final = {
    "seconds_a_round": "seconds a round",
    "seconds_a_round_and_agent": "seconds a round and agent",
    "memory_an_agent_mb": "memory an agent, MB",
    "peak_memory_mb": "peak memory, MB",
}


class Learnt(NamedTuple):
    """Figures after the last epoch, by arm."""

    title: str
    arms: list[str]
    agents: list[tuple[str, list[str]]]
    """Agent → its figure in each arm, with the spread over seeds if there are several."""
    mean: tuple[str, list[str]]
    """Over the agents that have a figure in every arm that has one of anybody."""
    least: tuple[str, list[str]]
    greatest: tuple[str, list[str]]


class Compared(NamedTuple):
    """One arm against another."""

    arms: str
    agent: str
    mean: str
    interval: str
    seeds: str


class Traded(NamedTuple):
    """One arm's trades, added up; prices in play-ether."""

    arm: str
    possible: str
    begun: str
    paid: str
    median_price: str
    total: str
    alpha: str
    gain: str
    lost: str
    """What the other possible trades were lost to; nothing if none was."""


def learnt(report: Report) -> Learnt:
    """Return who learnt what in each arm that was played."""
    metric, names = report["metric"], agent_names(report)
    played = [arm for arm in arms_of(report) if arm in report["arms"]]
    figures = {arm: report["arms"][arm]["accuracy"] for arm in played}
    told = [by_agent for by_agent in figures.values() if mean_of(by_agent.values()) is not None]
    everywhere = [n for n in names if all(by_agent.get(n) is not None for by_agent in told)]
    there = [[v for v in figures[arm].values() if v is not None] for arm in played]
    dataset = legible(report["dataset"], 40)
    title = f"{metric_words(metric).capitalize()} after the last epoch, {dataset}"
    if len(report["seeds"]) > 1:
        title += f", mean over {counted(len(report['seeds']), 'seed')} ± standard deviation"
    means = [mean_of(figures[arm].get(name) for name in everywhere) for arm in played]
    return Learnt(
        title=title,
        arms=played,
        agents=[(name, [_figure(report, arm, name) for arm in played]) for name in names],
        mean=(f"mean of {len(everywhere)}", [figure(mean, metric) for mean in means]),
        least=("least", [figure(min(v, default=None), metric) for v in there]),
        greatest=("greatest", [figure(max(v, default=None), metric) for v in there]),
    )


def _figure(report: Report, arm: str, agent: str) -> str:
    spread = spread_over_seeds(report["arms"][arm], agent)
    words = figure(report["arms"][arm]["accuracy"].get(agent), report["metric"])
    return words if spread is None else f"{words} ± {figure(spread, report['metric'])}"


def compared(report: Report, *, by_agent: bool = False) -> list[Compared]:
    """Return the paired differences: over all agents, or of each."""
    return [
        Compared(
            arms=f"{legible(row['of'], 40)} against {legible(row['against'], 40)}",
            agent=row["agent"],
            mean=signed(row["mean"]),
            interval=NONE
            if row["low"] is None
            else f"{signed(row['low'])} to {signed(row['high'])}",
            seeds=f"{row['n']:,}",
        )
        for row in report["differences"]
        if (row["agent"] != ALL_AGENTS) == by_agent
    ]


def difference_unit(report: Report) -> str:
    """Return what a paired difference is counted in."""
    return "points" if report["metric"] == "accuracy" else "% of loss spared"


def traded(report: Report) -> list[Traded]:
    """Return the trades of each market arm."""
    return [
        Traded(
            arm=row.arm,
            possible=f"{row.possible:,}",
            begun=f"{row.begun:,}",
            paid=f"{row.paid:,}",
            median_price=NONE if row.median_price is None else play_ether(row.median_price),
            total=play_ether(row.total),
            alpha=alpha_text(row.alpha),
            gain=percent(row.gain),
            lost=", ".join(f"{cause_words(c)} {n:,}" for c, n in not_made(report, row.arm).items()),
        )
        for row in trading_by_arm(report)
    ]


def cost_sentence(report: Report) -> str:
    """Return what an agent costs where all share one process; nothing if that is not known."""
    cost = report["cost"]
    if "seconds_a_round" not in cost:
        return ""
    said = (
        f"{counted(report['agents_count'], 'agent')}: {cost['seconds_a_round']} s a round, "
        f"{cost['seconds_a_round_and_agent']} s an agent"
    )
    if "memory_an_agent_mb" in cost:
        said += f"; {cost['memory_an_agent_mb']} MB an agent, {cost['peak_memory_mb']} MB in all"
    return f"{said}."


def settings(report: Report) -> list[tuple[str, str]]:
    """Return name and value of all that was asked for."""
    return [(str(name).replace("_", " "), _plain(v)) for name, v in report["settings"].items()]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(inner)}" for name, inner in value.items()) or NONE
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_plain(inner) for inner in value) or NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NONE if value is None else str(value)
