"""What every merge method checks and shares: the pairs it is given, and the model it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from broker_node.align import partial
from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import LossCurve, row_losses
from broker_node.merge.stages import Json, Merged, MergeError, Rows
from broker_node.verify.stages import Verified
from node.params.architecture import apply
from node.params.families.shapes import Shapes
from node.params.permutation import Tensors
from node.params.recipe import Recipe
from node.protocol.types import Millionths


@torch.inference_mode()
def require_pairs(aligned: Sequence[Aligned], rows: Rows) -> Verified:
    """Return the buyer's model, which is one and the same in all pairs.

    Raises `MergeError` ``no-sellers``, ``mismatch`` (buyers, architectures, tensors),
    ``duplicate-seller``, ``not-finite``, ``computes-nothing``, ``wrong-rows``.
    """
    if not aligned:
        raise MergeError("no-sellers", "there is nothing to merge")
    buyer = aligned[0].buyer
    for pair in aligned:
        if pair.buyer.weights_root != buyer.weights_root:
            raise MergeError("mismatch", "the pairs have different buyers")
        # a sold model may have had other widths: what counts is what was made of it
        sides = (pair.buyer,) if pair.method in partial.ALL else (pair.buyer, pair.seller)
        if buyer.layers or any(side.architecture != buyer.architecture for side in sides):
            raise MergeError("mismatch", f"not all are whole {buyer.architecture.text[:100]}")
        _require_tensors(buyer.tensors, pair.transformed)
    roots = [pair.seller.weights_root for pair in aligned]
    if len(set(roots)) < len(roots):
        raise MergeError("duplicate-seller", "one model is sold twice")
    _require_rows(buyer, rows)
    return buyer


def require_one(aligned: Sequence[Aligned], rows: Rows) -> Aligned:
    """Return the only pair; raises as `require_pairs`, and ``several-sellers``."""
    require_pairs(aligned, rows)
    if len(aligned) > 1:
        raise MergeError("several-sellers", f"{len(aligned)}, and the method takes one")
    return aligned[0]


def require_base(buyer: Verified, base: Verified | None) -> Verified:
    """Return the common base; raises `MergeError` ``no-base`` or ``mismatch``."""
    if base is None:
        raise MergeError("no-base", "the method works on differences from a common base")
    if base.architecture != buyer.architecture or base.layers:
        raise MergeError("mismatch", f"the base is no whole {buyer.architecture.text[:100]}")
    return base


def _require_tensors(ours: Tensors, theirs: Tensors) -> None:
    if not theirs:
        raise MergeError("mismatch", "no tensor is sold")
    for name, tensor in theirs.items():
        if name not in ours or ours[name].shape != tensor.shape:
            raise MergeError("mismatch", f"{name!r:.80} of {list(tensor.shape)} is not the buyer's")
        if tensor.dtype != torch.float32:
            raise MergeError("mismatch", f"{name!r:.80} is {tensor.dtype}, not float32")
        if not bool(torch.isfinite(tensor).all()):
            raise MergeError("not-finite", f"{name!r:.80} of a sold model")


def _require_rows(buyer: Verified, rows: Rows) -> None:
    """Raise ``wrong-rows`` unless the model answers such rows; one is run for that, uncounted."""
    if isinstance(buyer.architecture.model, Shapes):
        raise MergeError("computes-nothing", "tensors of the family `random`")
    width = buyer.architecture.model.input_width()
    if rows.inputs_RF.shape[1] != width:
        raise MergeError("wrong-rows", f"{rows.inputs_RF.shape[1]} features, not {width}")
    outputs = int(apply(buyer.architecture, buyer.tensors, rows.inputs_RF[:1]).shape[-1])
    if rows.classes and int(rows.targets_R.max()) >= outputs:
        raise MergeError("wrong-rows", f"class {int(rows.targets_R.max())} of {outputs}")
    if not rows.classes and outputs != 1:
        raise MergeError("wrong-rows", f"{outputs} outputs for one value")


def curve_between(buyer: Verified, start: Tensors, end: Tensors, rows: Rows) -> LossCurve:
    """Return the loss along a straight line; what `end` lacks stays as in `start`."""
    return LossCurve(buyer.architecture, start, end, rows.inputs_RF, rows.targets_R)


def mean_loss(buyer: Verified, tensors: Tensors, rows: Rows) -> float:
    """Return the mean loss over all rows, in float64; costs a forward pass a row."""
    losses_R = row_losses(buyer.architecture, tensors, rows.inputs_RF, rows.targets_R)
    return float(losses_R.mean())


def supplied(aligned: Sequence[Aligned]) -> dict[str, list[torch.Tensor]]:
    """Return every tensor that is sold, by name, as its sellers have it, in their order."""
    found: dict[str, list[torch.Tensor]] = {}
    for pair in aligned:
        for name, tensor in pair.transformed.items():
            found.setdefault(name, []).append(tensor)
    return found


def completed(pair: Aligned) -> dict[str, torch.Tensor]:
    """Return the sold model as a whole one: the buyer's own tensors where it has none."""
    return {**pair.buyer.tensors, **pair.transformed}


def recipe_at(recipe: Recipe | None, alpha: Millionths) -> Recipe | None:
    """Return the recipe with α in it, where the alignment has one."""
    return None if recipe is None else recipe.with_alpha(alpha)


def sellers_of(aligned: Sequence[Aligned]) -> list[Json]:
    """Return the roots of the sold models in hexadecimal, for a report."""
    return [pair.seller.weights_root.hex() for pair in aligned]


def merged_model(
    method: str,
    buyer: Verified,
    changed: Tensors,
    *,
    detail: Mapping[str, Json],
    row_evaluations: int,
    recipe: Recipe | None = None,
) -> Merged:
    """Return the buyer's model with `changed` in it, in float32.

    Raises `MergeError("not-finite")` if the method overflowed.
    """
    tensors = {}
    for name, own in buyer.tensors.items():
        tensor = changed.get(name, own).detach().to(torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise MergeError("not-finite", f"{name!r:.80} of the merged model")
        tensors[name] = tensor.clone()
    return Merged(
        method=method,
        tensors=tensors,
        recipe=recipe,
        detail=dict(detail),
        row_evaluations=row_evaluations,
    )
