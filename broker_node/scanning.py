"""The look at the merge of a trial: a few rows, once a pair, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from broker_node.appraisal import Trial
from broker_node.verify.anomalies import Scan, scan
from broker_node.verify.computing import computing
from broker_node.verify.stages import Verified
from node.params.merges import merge_bought
from node.params.recipe import Recipe

ROWS: Final = 512
"""Of the broker's, at most: enough that a class of ten drifts by a tenth beyond chance."""
MAX_SHOWN: Final = 16
MAX_REASON: Final = 200
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
    """Make the merge again and look at it; of sold layers the buyer's model stands for the rest.

    Adapters are looked at as the models that they make. What cannot be looked at is not scanned,
    whatever the reason: no trial fails by it.
    """
    if probes_RF is None:
        return _unseen("no rows")
    try:
        seen = _seen(trial, base, sold, probes_RF[:ROWS])
    except Exception as error:  # noqa: BLE001 (a look at a trial, which is not to fail by it)
        return _unseen(f"{type(error).__name__}: {error}"[:MAX_REASON])
    said = tuple(
        f"{one.check} {one.where}: {one.value:.3g} over {one.limit:.3g}"
        for one in seen.anomalies[:MAX_SHOWN]
    )
    return Scanned(verdict=seen.verdict, found=said, rows=seen.rows)


def _seen(trial: Trial, base: Verified, sold: Verified, rows_RF: torch.Tensor) -> Scan:
    made, tensors = merge_bought(
        (base.architecture, base.tensors),
        (sold.architecture, sold.tensors),
        Recipe.decode(trial.recipe),
    )
    root = trial.evaluation.merged_root
    merge = Verified(weights_root=root, architecture=made, tensors=tensors, base=base.base)
    architecture, merged = computing(merge)
    parents = [side[1] for side in (computing(base), computing(sold))]
    return scan(architecture, merged, [parents[0], {**parents[0], **parents[1]}], rows_RF)


def _unseen(reason: str) -> Scanned:
    return Scanned(verdict=NOT_SCANNED, found=(reason,), rows=0)
