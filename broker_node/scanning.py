"""The look at the merge of a trial: a few rows, once a pair, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from broker_node.appraisal import Trial
from broker_node.verify.anomalies import scan
from broker_node.verify.stages import Verified
from node.params.recipe import Recipe, apply_recipe
from node.protocol.errors import LocalProtocolError

ROWS: Final = 512
"""Of the broker's, at most: enough that a class of ten drifts by a tenth beyond chance."""
MAX_SHOWN: Final = 16
NOT_SCANNED: Final = "not scanned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What is told of one merge."""

    verdict: str
    """``found``, ``not found`` or ``not scanned``; there is no other."""
    found: tuple[str, ...]
    rows: int


def scan_of(
    trial: Trial, base: Verified, sold: Verified, probes_RF: torch.Tensor | None
) -> Scanned:
    """Make the merge again and look at it; of sold layers the buyer's model stands for the rest."""
    if probes_RF is None:
        return Scanned(verdict=NOT_SCANNED, found=("no rows",), rows=0)
    merged = apply_recipe(
        base.architecture, base.tensors, sold.tensors, Recipe.decode(trial.recipe)
    )
    try:
        seen = scan(
            base.architecture,
            merged,
            [base.tensors, {**base.tensors, **sold.tensors}],
            probes_RF[:ROWS],
        )
    except LocalProtocolError as error:
        return Scanned(verdict=NOT_SCANNED, found=(str(error),), rows=0)
    said = tuple(
        f"{one.check} {one.where}: {one.value:.3g} over {one.limit:.3g}"
        for one in seen.anomalies[:MAX_SHOWN]
    )
    return Scanned(verdict=seen.verdict, found=said, rows=seen.rows)
