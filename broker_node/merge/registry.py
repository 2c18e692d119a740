"""Merge methods by name."""

from __future__ import annotations

from typing import Final

from broker_node.merge import (
    ensemble,
    fisher,
    fusion,
    layer_alpha,
    lerp,
    outright,
    regmean,
    repair,
    reset,
    task_arithmetic,
    ties,
    unit_alpha,
)
from broker_node.merge.stages import Fit, Merger

MERGERS: Final[dict[str, Merger]] = {
    lerp.NAME: lerp.lerp,
    layer_alpha.NAME: layer_alpha.layer_alpha,
    unit_alpha.NAME: unit_alpha.unit_alpha,
    regmean.NAME: regmean.regmean,
    repair.NAME: repair.repair,
    reset.NAME: reset.reset_merge,
    fisher.NAME: fisher.fisher,
    fusion.NAME: fusion.fusion,
    task_arithmetic.NAME: task_arithmetic.task_arithmetic,
    ties.NAME: ties.ties,
    ensemble.NAME: ensemble.ensemble,
    outright.NAME: outright.outright,
}

ONE_SELLER: Final = frozenset(
    {lerp.NAME, layer_alpha.NAME, unit_alpha.NAME, outright.NAME, repair.NAME, reset.NAME}
)
"""Methods that take a single pair; all others take any number."""

TRADED: Final[dict[str, Fit]] = {
    lerp.NAME: lerp.no_shares,
    layer_alpha.NAME: layer_alpha.layer_shares,
    unit_alpha.NAME: unit_alpha.unit_shares,
}
"""Merges that a trade can be of: α by the trade's own search, and shares by this from there."""

NEEDS_BASE: Final = frozenset({task_arithmetic.NAME, ties.NAME})
"""Methods that refuse to do without a common base."""
