"""Operations over whole axes: means, softmax, normalisation, pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from node.params.derivation.calls import Call, Result, axes_of, axis_of, operation, tensor
from node.params.derivation.terms import Still, Term, prod
from node.params.derivation.values import Tracker, Value


def _reduced(t: Tracker, dims: Sequence[int], value: Value, *, keep: bool) -> Value:
    """Take `dims` away: what they run over is numbered for itself, under no scale."""
    kept = set(range(len(value.axes))) - set(dims)
    t.require_independent(value.axes, kept)
    axes: list[Term] = []
    for at, axis in enumerate(value.axes):
        if at in kept:
            axes.append(t.store.normal(axis))
        else:
            t.mapped(axis, t.scales.kill)
            if keep:
                axes.append(Still(1))
    return t.settled(Value(tuple(axes), value.varies))


def _dims(call: Call, value: Value) -> list[int]:
    return axes_of(call, call.get("dim"), len(value.axes))


@operation("aten.mean", "aten.sum")
def mean(t: Tracker, call: Call) -> Value:
    """Linear in what is left."""
    value = tensor(call, "self")
    keep = bool(call.get("keepdim", default=False))
    return _reduced(t, _dims(call, value), value, keep=keep)


@operation("aten.amax", "aten.amin")
def extreme(t: Tracker, call: Call) -> Value:
    """Positive scales of what is left pass."""
    value = t.rescaled(
        tensor(call, "self"), lambda s: t.scales.restrict(s, sign=False, linear=False)
    )
    keep = bool(call.get("keepdim", default=False))
    return _reduced(t, _dims(call, value), value, keep=keep)


@operation(
    "aten.var",
    "aten.std",
    "aten.logsumexp",
    "aten.linalg_vector_norm",
    "aten.norm",
    "aten.prod",
    "aten.any",
    "aten.all",
)
def moment(t: Tracker, call: Call) -> Value:
    """Any other symmetric function of whole axes."""
    value = t.unscaled(tensor(call, "self"))
    keep = bool(call.get("keepdim", default=False))
    return _reduced(t, _dims(call, value), value, keep=keep)


@operation(
    "aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax", "aten._safe_softmax"
)
def softmax(t: Tracker, call: Call) -> Value:
    """One axis is normalised for each place of the others."""
    value = tensor(call, "self")
    at = axis_of(call, call.get("dim"), len(value.axes))
    t.require_independent(value.axes, set(range(len(value.axes))) - {at})
    return t.settled(t.unscaled(value))


def _affine(t: Tracker, value: Value, weight: Any, bias: Any, *, axis: int) -> Value:
    """Scale and shift by vectors (or tensors) whose axes begin at `axis`."""
    for parameter, combine in ((weight, t.products), (bias, t.sums)):
        if isinstance(parameter, Value):
            after = len(value.axes) - axis - len(parameter.axes)
            shaped = Value((*parameter.axes, *(Still(1),) * after), parameter.varies)
            value = t.elementwise(value, shaped, combine)
    return value


@operation("aten.layer_norm", "aten.rms_norm")
def layer_norm(t: Tracker, call: Call) -> Value:
    """The last axes together have one mean and one variance."""
    value = tensor(call, "input")
    first = len(value.axes) - len(call.get("normalized_shape"))
    t.require_independent(value.axes, set(range(first)))
    value = t.settled(t.unscaled(value))
    return _affine(t, value, call.get("weight"), call.get("bias"), axis=first)


@operation("aten.group_norm")
def group_norm(t: Tracker, call: Call) -> Value:
    """Channels of a group have one mean and variance over all of space; groups may trade places."""
    value = tensor(call, "input")
    group, inside = t.store.factor(value.axes[1], call.get("num_groups"))
    t.require_independent((value.axes[0], group, inside, *value.axes[2:]), {0, 1})
    value = Value((value.axes[0], prod([group, inside]), *value.axes[2:]), value.varies)
    value = t.settled(t.unscaled(value))
    return _affine(t, value, call.get("weight"), call.get("bias"), axis=1)


@operation("aten.instance_norm")
def instance_norm(t: Tracker, call: Call) -> Value:
    """Every channel has its own mean and variance."""
    value = tensor(call, "input")
    if isinstance(call.get("running_mean"), Value):
        raise call.refuse("instance normalisation with running statistics: use none")
    t.require_independent(value.axes, {0, 1})
    value = t.settled(t.unscaled(value))
    return _affine(t, value, call.get("weight"), call.get("bias"), axis=1)


@operation(
    "aten._native_batch_norm_legit_no_training",
    "aten._native_batch_norm_legit",
    "aten.native_batch_norm",
    "aten.batch_norm",
)
def batch_norm(t: Tracker, call: Call) -> Result:
    """With running statistics: an affine map of each channel (axis 1)."""
    if call.get("training", default=False):
        raise call.refuse("batch normalisation in training mode: call `eval()` first")
    value = tensor(call, "input")
    for name in ("running_mean", "running_var"):
        statistic = call.get(name)
        if isinstance(statistic, Value):
            after = (Still(1),) * (len(value.axes) - 2)
            shaped = Value((*statistic.axes, *after), statistic.varies)
            value = t.elementwise(value, shaped, t.unscalable)
    value = t.settled(t.unscaled(value))
    result = _affine(t, value, call.get("weight"), call.get("bias"), axis=1)
    return result if call.operation == "aten.batch_norm" else (result, None, None)


POOLS = {
    "aten.avg_pool1d": 1, "aten.avg_pool2d": 2, "aten.avg_pool3d": 3,
    "aten.adaptive_avg_pool1d": 1, "aten.adaptive_avg_pool2d": 2, "aten.adaptive_avg_pool3d": 3,
    "aten._adaptive_avg_pool2d": 2, "aten._adaptive_avg_pool3d": 3,
    "aten.max_pool1d": 1, "aten.max_pool2d": 2, "aten.max_pool3d": 3,
    "aten.max_pool2d_with_indices": 2, "aten.max_pool3d_with_indices": 3,
    "aten.upsample_nearest1d": 1, "aten.upsample_nearest2d": 2, "aten.upsample_bilinear2d": 2,
}  # fmt: skip
"""Operations over space alone → the number of axes in space."""


@operation(*POOLS)
def pool(t: Tracker, call: Call) -> Result:
    """Places in space keep their order; every channel is pooled for itself."""
    value = tensor(call, "input" if "input" in call.names else "self")
    first = len(value.axes) - POOLS[call.operation]
    for axis in value.axes[first:]:
        t.store.pin(axis)
    linear = "max" not in call.operation
    value = t.rescaled(value, lambda s: t.scales.restrict(s, sign=linear, linear=linear))
    places = [Still(size) for size in call.shape[first:]]
    result = t.settled(Value((*value.axes[:first], *places), value.varies))
    return (result, None) if call.operation.endswith("_with_indices") else result
