"""What the cases of a study come to: means, paired differences, epochs to a target.

Seeds differ far more than cases do, so every difference is taken within a seed, and its mean
has a 95% Student-t interval over the seeds in which both cases were played.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from node.devnet.report.differences import better_by
from node.devnet.report.document import ALL_AGENTS, Metric
from scripts.reproduction.studies import AGENTS, PAPER, Curve, Figures, Pair, Played, Study
from scripts.reproduction.telling import mean_interval

if TYPE_CHECKING:
    from scripts.reproduction.figure import FigureStudy

CENSORING: Final = (
    "a seed that never reaches the target counts as one epoch more than were played, in both "
    "cases alike, and is counted as censored beside it: leaving it out would drop the slowest. "
    "A mean so taken is that of the epochs below the target among those played; where only the "
    "slower case is censored, the epochs spared are at least what is shown"
)

BySeed = Mapping[int, Played]


def findings(study: Study, names: Sequence[str], played: Sequence[Played]) -> dict[str, Any]:
    """Return what `played` comes to, as JSON; `names` are the study's cases in their order."""
    by = {
        name: by_seed
        for name in names
        if (by_seed := {p.seed: p for p in played if p.name == name})
    }
    pairs = [
        (of, against)
        for of, against in study.pairs(names)
        if by.get(of, {}).keys() & by.get(against, {}).keys()
    ]
    document: dict[str, Any] = {
        "metric": study.metric,
        "cases": {name: _case(study, name, by_seed) for name, by_seed in by.items()},
        "differences": [
            difference
            for of, against in pairs
            for difference in _differences(study, (of, against), by[of], by[against])
        ],
    }
    if study.targets:
        document["loss_differences"] = [
            difference
            for of, against in pairs
            for difference in _paired(
                (of, against), by[of], by[against], lambda p, agent: p.losses[agent][-1][1], "loss"
            )
        ]
        document["epochs_to"] = _epochs_to(study, pairs, by)
    return document


def _case(study: Study, name: str, by_seed: BySeed) -> dict[str, Any]:
    paper = study.paper.get(name)
    possible = sum(p.possible for p in by_seed.values())
    causes = sorted({cause for p in by_seed.values() for cause in p.lost})
    return {
        **{
            agent: mean_interval([p.last[number] for p in by_seed.values()])
            for number, agent in enumerate(AGENTS)
        },
        "paper": dict(zip(AGENTS, paper, strict=True)) if paper else None,
        "possible": possible,
        "traded": sum(p.traded for p in by_seed.values()),
        "lost": {cause: sum(p.lost.get(cause, 0) for p in by_seed.values()) for cause in causes},
        "by_seed": {str(seed): by_seed[seed].document() for seed in sorted(by_seed)},
    }


# ── differences ──


def _differences(study: Study, pair: Pair, of: BySeed, against: BySeed) -> list[dict[str, Any]]:
    found = _paired(pair, of, against, lambda p, agent: p.last[agent], study.metric)
    paper = _paper_difference(study, pair)
    for difference in found:
        difference["paper"] = paper.get(difference["agent"])
    return found


def _paired(
    pair: Pair, of: BySeed, against: BySeed, figure: Callable[[Played, int], float], metric: Metric
) -> list[dict[str, Any]]:
    """Return by how much better the one is than the other: each agent, then their mean."""
    seeds = sorted(of.keys() & against.keys())
    by_agent = {
        agent: {s: better_by(figure(of[s], n), figure(against[s], n), metric) for s in seeds}
        for n, agent in enumerate(AGENTS)
    }
    by_agent[ALL_AGENTS] = {
        s: statistics.fmean(by_agent[agent][s] for agent in AGENTS) for s in seeds
    }
    return [
        {
            "of": pair[0],
            "against": pair[1],
            "agent": agent,
            **mean_interval(list(by_seed.values())),
            "unit": "points" if metric == "accuracy" else "percent spared",
            "by_seed": {str(s): v if math.isfinite(v) else None for s, v in by_seed.items()},
        }
        for agent, by_seed in by_agent.items()
    ]


def _paper_difference(study: Study, pair: Pair) -> dict[str, float]:
    of, against = (study.paper.get(name) for name in pair)
    figures: Figures | None = study.paper_spared.get(pair)
    if of and against:
        figures = (of[0] - against[0], of[1] - against[1])
    if figures is None:
        return {}
    both = dict(zip(AGENTS, figures, strict=True))
    both[ALL_AGENTS] = statistics.fmean(figures)
    return {agent: round(value, 4) for agent, value in both.items()}


# ── epochs to a target ──


def _epochs_to(study: Study, pairs: Sequence[Pair], by: Mapping[str, BySeed]) -> dict[str, Any]:
    """Return how many epochs each case needs until a target, and what one spares the other."""
    rows: list[dict[str, Any]] = []
    spared: list[dict[str, Any]] = []
    for target in study.targets:
        for agent in (*AGENTS, ALL_AGENTS):
            needed = {
                name: {s: first_at(_of_agent(p, agent), target) for s, p in seeds.items()}
                for name, seeds in by.items()
            }
            counted = {
                name: {s: _counted(by[name][s], epochs) for s, epochs in seeds.items()}
                for name, seeds in needed.items()
            }
            rows += [
                {
                    "target": target,
                    "agent": agent,
                    "case": name,
                    **mean_interval(list(counted[name].values())),
                    "censored": _censored(needed[name], sorted(needed[name])),
                    "by_seed": {str(s): needed[name][s] for s in sorted(needed[name])},
                }
                for name in by
            ]
            for of, against in pairs:
                seeds = sorted(needed[of].keys() & needed[against].keys())
                saved = {s: counted[against][s] - counted[of][s] for s in seeds}
                censored = {n: _censored(needed[n], seeds) for n in (of, against)}
                spared.append(
                    {
                        "target": target,
                        "agent": agent,
                        "of": of,
                        "against": against,
                        **mean_interval(list(saved.values())),
                        "unit": "epochs spared",
                        "censored": censored,
                        "reads": _reads(censored[of], censored[against]),
                        "by_seed": {str(s): value for s, value in saved.items()},
                    }
                )
    return {"censoring": CENSORING, "cases": rows, "differences": spared}


def first_at(curve: Curve, target: float) -> int | None:
    """Return after how many epochs `curve` is first at `target` or over; None if never."""
    return next((epoch + 1 for epoch, value in curve if value >= target), None)


def _of_agent(played: Played, agent: str) -> Curve:
    if agent != ALL_AGENTS:
        return played.curves[AGENTS.index(agent)]
    return [
        (points[0][0], statistics.fmean(value for _, value in points))
        for points in zip(*played.curves, strict=True)
    ]


def _counted(played: Played, epochs: int | None) -> int:
    return len(played.curves[0]) + 1 if epochs is None else epochs


def _censored(needed: Mapping[int, int | None], seeds: Sequence[int]) -> int:
    return sum(needed[seed] is None for seed in seeds)


def _reads(of: int, against: int) -> str:
    """Return how the epochs spared read, given how many seeds were censored on either side."""
    if of and against:
        return "of the epochs played"
    return "at most" if of else "at least" if against else "exactly"


def sources(study: Study | FigureStudy) -> dict[str, Any]:
    """Return where the paper's figures are from, and what to know when reading beside them."""
    notes = [*study.notes, CENSORING] if study.targets else [*study.notes]
    return {"source": f"{PAPER}: {study.source}", "notes": notes}
