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
    task_arithmetic,
    ties,
)
from broker_node.merge.stages import Merger

MERGERS: Final[dict[str, Merger]] = {
    lerp.NAME: lerp.lerp,
    layer_alpha.NAME: layer_alpha.layer_alpha,
    regmean.NAME: regmean.regmean,
    repair.NAME: repair.repair,
    fisher.NAME: fisher.fisher,
    fusion.NAME: fusion.fusion,
    task_arithmetic.NAME: task_arithmetic.task_arithmetic,
    ties.NAME: ties.ties,
    ensemble.NAME: ensemble.ensemble,
    outright.NAME: outright.outright,
}

ONE_SELLER: Final = frozenset({lerp.NAME, layer_alpha.NAME, outright.NAME, repair.NAME})
"""Methods that take a single pair; all others take any number."""

NEEDS_BASE: Final = frozenset({task_arithmetic.NAME, ties.NAME})
"""Methods that refuse to do without a common base."""
