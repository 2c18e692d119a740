"""Arms compared seed by seed: paired differences with 95% Student-t intervals.

Seeds differ far more than arms do (initial weights, batches), and every arm of a seed shares
those; so the difference is taken within each seed first.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

from scipy.special import stdtrit

from node.devnet.arms import ARMS
from node.devnet.report.document import ALL_AGENTS, Arm, Difference, Metric, in_order

CONFIDENCE: Final = 0.95


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean of `values` and the ends of its 95% t interval, in their own unit.

    The ends are None with fewer than two values. Raises `ValueError` without any.
    """
    if not values:
        raise ValueError("there is no mean of no values")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    t = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def better_by(of: float, against: float, metric: Metric) -> float:
    """Return by how much `of` is better than `against`.

    Accuracies in percent give points. Losses give the percent of the loss `against` that `of`
    is spared, ``100 (1 - of / against)``: the paper's figure of its linear study (§6.1.3).
    """
    if metric == "accuracy":
        return of - against
    return 100 * (1 - of / against) if against else math.nan


def differences(arms: Mapping[str, Arm], metric: Metric) -> list[Difference]:
    """Return every later arm against every earlier one: over all agents, then for each.

    Only a seed in which both reached the same epoch counts: a run that was cut short is no
    equal of one that was not. A pair without such a seed is left out.
    """
    found: list[Difference] = []
    for against, of in combinations(in_order(arms, ARMS), 2):
        by_agent = _paired(arms[of], arms[against], metric)
        everyone = {*arms[against]["accuracy"], *arms[of]["accuracy"]}
        for agent, by_seed in {
            ALL_AGENTS: _over_agents(by_agent, everyone),
            **by_agent,
        }.items():
            if by_seed:
                mean, low, high = interval(list(by_seed.values()))
                found.append(
                    Difference(
                        of=of,
                        against=against,
                        agent=agent,
                        mean=mean,
                        low=low,
                        high=high,
                        n=len(by_seed),
                        unit="points" if metric == "accuracy" else "percent",
                    )
                )
    return found


def _paired(of: Arm, against: Arm, metric: Metric) -> dict[str, dict[str, float]]:
    """Return agent → seed → difference, where both arms have a finite figure."""
    paired: dict[str, dict[str, float]] = {}
    for seed, agents in of["by_seed"].items():
        others = against["by_seed"].get(seed, {})
        for agent, figure in agents.items():
            other = others.get(agent)
            if figure is None or other is None:
                continue
            if _last_epoch(of, seed, agent) != _last_epoch(against, seed, agent):
                continue
            difference = better_by(figure, other, metric)
            if math.isfinite(difference):
                paired.setdefault(agent, {})[seed] = difference
    return paired


def _last_epoch(arm: Arm, seed: str, agent: str) -> int | None:
    curve = arm["curves"].get(seed, {}).get(agent)
    return curve[-1][0] if curve else None


def _over_agents(
    by_agent: Mapping[str, Mapping[str, float]], everyone: set[str]
) -> dict[str, float]:
    """Return seed → mean over agents, for the seeds in which nobody is missing."""
    seeds = dict.fromkeys(seed for by_seed in by_agent.values() for seed in by_seed)
    return {
        seed: statistics.fmean(by_seed[seed] for by_seed in by_agent.values())
        for seed in seeds
        if all(seed in by_agent.get(agent, {}) for agent in everyone)
    }
