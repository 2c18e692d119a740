"""The check that every alignment passes before anything is merged: nothing changed."""

from __future__ import annotations

from typing import Final

import torch

from broker_node.align.stages import AlignmentError, ArchitectureMismatchError
from broker_node.verify.checks import probes
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, apply
from node.params.families.shapes import Shapes
from node.params.permutation import Tensors
from node.protocol.kinship import kin

RELATIVE_TOLERANCE: Final = 1e-4
"""Of the largest logit: float32 rounding of the scales leaves about 1e-6."""


def require_same_architecture(buyer: Verified, seller: Verified) -> None:
    """Raise `ArchitectureMismatchError` unless both are of one architecture, the buyer's whole.

    Adapters of one base are, at any ranks.
    """
    if buyer.layers:
        raise ArchitectureMismatchError(f"layers {list(buyer.layers)} are no model to merge into")
    if kin(buyer.architecture.text) != kin(seller.architecture.text):
        raise ArchitectureMismatchError(
            f"{buyer.architecture.text[:100]} and {seller.architecture.text[:100]}"
        )


@torch.inference_mode()
def require_same_function(
    architecture: Architecture, original: Tensors, transformed: Tensors
) -> None:
    """Raise `AlignmentError` unless both tensors give equal outputs on the probes.

    Outputs are computed in float64, so that what is compared is the tensors, not the
    rounding of the forward pass. Tensors that compute nothing must be equal.
    """
    if isinstance(architecture.model, Shapes):
        if any(not torch.equal(original[name], transformed[name]) for name in original):
            raise AlignmentError("tensors without a function were changed")
        return
    inputs_RF = probes(architecture)
    before_RC, after_RC = (
        apply(
            architecture, {name: tensor.cpu().double() for name, tensor in side.items()}, inputs_RF
        )
        for side in (original, transformed)
    )
    worst = float((before_RC - after_RC).abs().max())
    allowed = RELATIVE_TOLERANCE * float(before_RC.abs().max())
    if not worst <= allowed:
        raise AlignmentError(f"outputs differ by {worst:g}, allowed {allowed:g}")
