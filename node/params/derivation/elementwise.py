"""Operations that treat every place alike: activations, sums, products, comparisons."""

from __future__ import annotations

from functools import partial
from typing import Final

from node.params.derivation.calls import Call, operation, tensor
from node.params.derivation.terms import Free
from node.params.derivation.values import Combine, Stack, Tracked, Tracker, Value

SAME: Final = (
    "alias clone contiguous detach detach_ dropout feature_dropout lift_fresh_copy to _to_copy"
    " type_as float double half neg positive rad2deg deg2rad identity"
)
"""Linear in each place."""
HOMOGENEOUS: Final = "abs leaky_relu relu"
"""f(s·x) = s·f(x) for s > 0."""
ODD: Final = (
    "arctan asin asinh atan erf hardshrink sin sinh softshrink softsign tan tanh tanhshrink"
)
"""f(−x) = −f(x)."""
UNSCALED: Final = (
    "acos acosh bitwise_not ceil celu clamp clamp_max clamp_min cos cosh elu exp exp2 expm1"
    " floor gelu hardsigmoid hardswish hardtanh isfinite isinf isnan log log10 log1p log2"
    " log_sigmoid logical_not mish reciprocal relu6 round rsqrt selu sgn sigmoid sign silu"
    " softplus sqrt square threshold trunc"
)
"""Nothing but the order of the units passes."""
COMPARISONS: Final = (
    "__and__ __or__ __xor__ atan2 bitwise_and bitwise_or bitwise_xor eq fmod ge gt logical_and"
    " logical_or logical_xor le lt maximum minimum ne pow remainder"
)
"""Of two tensors place by place, or of one and a number: no scale passes."""


def _unary(t: Tracker, call: Call, *, positive: bool, sign: bool, linear: bool) -> Tracked:
    def one(value: Value) -> Value:
        return t.rescaled(
            value,
            lambda scale: t.scales.restrict(scale, positive=positive, sign=sign, linear=linear),
        )

    value = call.args[0]
    if isinstance(value, Stack):
        return Stack(value.axis, tuple(one(part) for part in value.parts))
    if call.get("train", default=False):
        raise call.refuse("random in evaluation mode, too: no outputs to compare")
    if any(isinstance(other, Value) for other in (*call.args[1:], *call.kwargs.values())):
        raise call.refuse("a tensor where a number is expected")
    return one(value)


_linear = partial(_unary, positive=True, sign=True, linear=True)
_homogeneous = partial(_unary, positive=True, sign=False, linear=False)
_odd = partial(_unary, positive=False, sign=True, linear=False)
_unscaled = partial(_unary, positive=False, sign=False, linear=False)
for _names, _handler in (
    (SAME, _linear),
    (HOMOGENEOUS, _homogeneous),
    (ODD, _odd),
    (UNSCALED, _unscaled),
):
    operation(*(f"aten.{name}" for name in _names.split()), stackable=True)(_handler)


def _two(t: Tracker, call: Call, combine: Combine) -> Value:
    """Combine the first two arguments; a number holds the same everywhere."""
    one, other = call.args[0], call.args[1]
    if isinstance(one, Value) and isinstance(other, Value):
        return t.elementwise(one, other, combine)
    value = one if isinstance(one, Value) else other
    if not isinstance(value, Value):
        raise call.refuse("no tensor among its arguments")
    return t.rescaled(value, combine.broadcast)


@operation("aten.add", "aten.sub", "aten.rsub")
def add(t: Tracker, call: Call) -> Value:
    """Sums and differences, residual ones too."""
    return _two(t, call, t.sums)


@operation("aten.mul")
def mul(t: Tracker, call: Call) -> Value:
    """Products: gates, scales of a normalisation."""
    return _two(t, call, t.products)


@operation("aten.div")
def div(t: Tracker, call: Call) -> Value:
    """Quotients; the divisor is under no scale."""
    over = call.args[1]
    if isinstance(over, Value):
        call = Call(
            call.node,
            call.operation,
            call.names,
            (call.args[0], t.unscaled(over)),
            {},
            call.shape,
        )
    elif "rounding_mode" in call.kwargs:
        return _two(t, call, t.unscalable)
    return _two(t, call, t.products) if isinstance(call.args[0], Value) else over


@operation(*(f"aten.{name}" for name in COMPARISONS.split()))
def compare(t: Tracker, call: Call) -> Value:
    """Whatever has no scale."""
    result = _two(t, call, t.unscalable)
    return t.unscaled(result)


@operation("aten.where", "aten.masked_fill", "aten.addcmul", "aten.addcdiv", "aten.lerp")
def select_by(t: Tracker, call: Call) -> Value:
    """Three tensors, or two and a number, place by place."""
    values = [value for value in call.args if isinstance(value, Value)]
    result = values[0]
    for value in values[1:]:
        result = t.elementwise(result, value, t.unscalable)
    return t.unscaled(result)


@operation("aten.prelu", "aten._prelu_kernel")
def prelu(t: Tracker, call: Call) -> Value:
    """ReLU with a slope for each channel (axis 1), or one for all."""
    value, slope = call.args
    if len(slope.axes) == 1 and slope.axes[0].size > 1 and len(value.axes) > 2:
        extra = (Free(1),) * (len(value.axes) - 2)
        slope = Value((*slope.axes, *extra), slope.varies)
    scaled = t.rescaled(value, lambda scale: t.scales.restrict(scale, sign=False, linear=False))
    slope = t.unscaled(slope)
    return t.elementwise(scaled, slope, t.products)


@operation(
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.new_ones",
    "aten.new_zeros",
    "aten.new_full",
    "aten.zeros",
    "aten.ones",
    "aten.full",
    "aten.scalar_tensor",
)
def filled(t: Tracker, call: Call) -> Value:
    """The same number everywhere."""
    if isinstance(call.get("fill_value"), Value):
        return t.still(call.shape)
    return Value(tuple(Free(size) for size in call.shape), varies=False)


@operation("aten.glu")
def glu(t: Tracker, call: Call) -> Value:
    """The first half of an axis gated by the other one."""
    value = tensor(call, "self")
    at = call.get("dim", -1) % len(value.axes)
    left, right = t.store.cut(value.axes[at], value.axes[at].size // 2)
    halves = [
        t.settled(Value((*value.axes[:at], half, *value.axes[at + 1 :]), value.varies))
        for half in (left, right)
    ]
    return t.elementwise(halves[0], t.unscaled(halves[1]), t.products)
