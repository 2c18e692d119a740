"""What a merge is worth: its answers, and its gain on rows that had no part in making it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import losses_of, row_losses, wanted_of
from broker_node.evaluate.gain import Gain, paired_gain
from broker_node.merge.pairs import completed, require_pairs
from broker_node.merge.stages import Merged, Rows
from node.params.architecture import apply


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A gain over the buyer's own model, with its paired bound, and what measuring it cost."""

    gain: Gain
    row_evaluations: int


@torch.inference_mode()
def answers(
    merged: Merged, aligned: Sequence[Aligned], inputs_RF: torch.Tensor, *, classes: bool
) -> torch.Tensor:
    """Return log-probabilities of classes, or values, as answers_RO in float64.

    Of an ensemble they are those of the mean probability, or the mean value, of the buyer's and
    all sold models, each weighing the same.
    """
    buyer = aligned[0].buyer
    if merged.tensors is not None:
        members = [merged.tensors]
    else:
        members = [buyer.tensors, *(completed(pair) for pair in aligned)]
    answers_MRO = torch.stack(
        [apply(buyer.architecture, member, inputs_RF).double() for member in members]
    )
    if not classes:
        return answers_MRO.mean(0)
    return functional.log_softmax(answers_MRO, dim=-1).logsumexp(0) - math.log(len(members))


def score(merged: Merged, aligned: Sequence[Aligned], rows: Rows) -> Scored:
    """Return the gain of going from the buyer's model to the merged one, on the scored half.

    Raises `MergeError` as every method does for pairs and rows that do not fit, and
    `RemoteProtocolError("overflows")` for losses that are no sane numbers.
    """
    buyer = require_pairs(aligned, rows)
    before_R = row_losses(buyer.architecture, buyer.tensors, rows.inputs_RF, rows.targets_R)
    answers_RO = answers(merged, aligned, rows.inputs_RF, classes=rows.classes)
    wanted = wanted_of(buyer.architecture, rows.inputs_RF, rows.targets_R)
    if wanted.ndim > 1:
        after_R = losses_of(answers_RO, wanted)
    elif rows.classes:
        after_R = functional.nll_loss(answers_RO, rows.targets_R, reduction="none")
    else:
        after_R = (answers_RO.squeeze(1) - rows.targets_R.double()).square()
    members = 1 if merged.tensors is not None else 1 + len(aligned)
    return Scored(
        gain=paired_gain(before_R, after_R.cpu()),
        row_evaluations=(1 + members) * len(rows),
    )
