"""Operations that sum products: linear maps, convolutions, attention."""

from __future__ import annotations

from typing import Any

from node.params.derivation.calls import Call, operation, tensor
from node.params.derivation.terms import Free, Still, Term, prod
from node.params.derivation.values import Tracker, Value


def _with_bias(t: Tracker, result: Value, bias: Any, *, axis: int = -1) -> Value:
    """Add a vector along `axis`."""
    if not isinstance(bias, Value):
        return result
    after = (Still(1),) * ((len(result.axes) - 1) - axis % len(result.axes))
    return t.elementwise(result, Value((*bias.axes, *after), bias.varies), t.sums)


def _applied(t: Tracker, value: Value, weight: Value, reads: int) -> Value:
    """Contract the last axis of `value` with axis `reads` of a matrix."""
    last = len(value.axes) - 1
    _, mine, theirs = t.contract(value, weight, summed=[(last, reads)])
    return t.settled(Value((*mine, *theirs), value.varies or weight.varies))


@operation("aten.linear")
def linear(t: Tracker, call: Call) -> Value:
    """X Wᵀ + b."""
    result = _applied(t, tensor(call, "input"), tensor(call, "weight"), 1)
    return _with_bias(t, result, call.get("bias"))


@operation("aten.addmm")
def addmm(t: Tracker, call: Call) -> Value:
    """B + x W."""
    result = _applied(t, tensor(call, "mat1"), tensor(call, "mat2"), 0)
    scales = {call.get("beta", 1), call.get("alpha", 1)}
    added = t.elementwise(result, tensor(call, "self"), t.sums)
    return added if scales == {1} else t.unscaled(added)


@operation("aten.mm", "aten.bmm", "aten.matmul", "aten.mv", "aten.dot")
def matmul(t: Tracker, call: Call) -> Value:
    """Matrix products over the last two axes, the others shared."""
    one, other = call.args[0], call.args[1]
    if len(other.axes) == 1:
        _, mine, _ = t.contract(one, other, summed=[(len(one.axes) - 1, 0)])
        return t.settled(Value(tuple(mine), one.varies or other.varies))
    if len(one.axes) == 1:
        _, _, theirs = t.contract(one, other, summed=[(0, len(other.axes) - 2)])
        return t.settled(Value(tuple(theirs), one.varies or other.varies))
    return _batched(t, one, other, len(other.axes) - 2)


def _batched(t: Tracker, one: Value, other: Value, reads: int) -> Value:
    """Contract the last axis of `one` with `reads` (one of the last two) of `other`."""
    rank = max(len(one.axes), len(other.axes))
    kept = 2 * len(other.axes) - 3 - reads
    a, b = ([Still(1)] * (rank - len(v.axes)) + list(v.axes) for v in (one, other))
    reads, kept = (at + rank - len(other.axes) for at in (reads, kept))
    for at in range(rank - 2):
        # an axis of one place is shared by all of the other's
        if a[at].size != b[at].size:
            short, long = (a, b) if a[at].size == 1 else (b, a)
            short[at] = Free(long[at].size)
    value_a = Value(tuple(a), one.varies, one.learned)
    value_b = Value(tuple(b), other.varies, other.learned)
    batch = [(at, at) for at in range(rank - 2)]
    shared, mine, theirs = t.contract(value_a, value_b, batch=batch, summed=[(rank - 1, reads)])
    return t.settled(Value((*shared, *mine, *theirs), one.varies or other.varies))


@operation("aten.baddbmm")
def baddbmm(t: Tracker, call: Call) -> Value:
    """Added to a batch of matrix products."""
    one, other = tensor(call, "batch1"), tensor(call, "batch2")
    result = _batched(t, one, other, len(other.axes) - 2)
    return t.unscaled(t.elementwise(result, tensor(call, "self"), t.unscalable))


@operation("aten.einsum")
def einsum(t: Tracker, call: Call) -> Value:
    """Of two tensors, each letter at most once in either."""
    text, operands = call.args[0].replace(" ", ""), call.args[1]
    if "->" not in text or "." in text or len(operands) != 2:
        raise call.refuse(f"einsum {text!r}: write it with two operands, letters and `->`")
    inputs, output = text.split("->")
    one, other = inputs.split(",")
    both = set(one) & set(other)
    if (
        len(set(one)) < len(one)
        or len(set(other)) < len(other)
        or ((set(one) ^ set(other)) - set(output))
    ):
        raise call.refuse(f"einsum {text!r}: a diagonal, or a sum over one operand alone")
    batch = [letter for letter in one if letter in both and letter in output]
    summed = [letter for letter in one if letter in both and letter not in output]
    shared, mine, theirs = t.contract(
        operands[0],
        operands[1],
        batch=[(one.index(letter), other.index(letter)) for letter in batch],
        summed=[(one.index(letter), other.index(letter)) for letter in summed],
    )
    names = [
        *batch,
        *(letter for letter in one if letter not in both),
        *(letter for letter in other if letter not in both),
    ]
    terms = dict(zip(names, [*shared, *mine, *theirs], strict=True))
    varies = any(operand.varies for operand in operands)
    return t.settled(Value(tuple(terms[letter] for letter in output), varies))


@operation(
    "aten.conv1d",
    "aten.conv2d",
    "aten.conv3d",
    "aten.convolution",
    "aten.conv_transpose1d",
    "aten.conv_transpose2d",
    "aten.conv_transpose3d",
)
def convolution(t: Tracker, call: Call) -> Value:
    """Channels are mixed group by group; places in space keep their order."""
    value, weight, bias = tensor(call, "input"), tensor(call, "weight"), call.get("bias")
    transposed = "transpose" in call.operation or bool(call.get("transposed", default=False))
    groups = call.get("groups", 1)
    space = len(weight.axes) - 2
    front = len(value.axes) - space - 1
    for axis in (*value.axes[front + 1 :], *weight.axes[2:]):
        t.store.pin(axis)
    outer = list(value.axes[:front])
    # weight: (groups, out of each, in of each), whichever way round it is stored
    first_g, first = t.store.factor(weight.axes[0], groups)
    wide_g, wide = t.store.factor(value.axes[front], groups)
    filters = Value((first_g, first, weight.axes[1]), weight.varies, weight.learned)
    signal = Value((*outer, wide_g, wide), value.varies)
    shared, mine, theirs = t.contract(
        signal,
        filters,
        batch=[(front, 0)],
        summed=[(front + 1, 1 if transposed else 2)],
    )
    channels = prod([*shared, *theirs])
    places = [Still(size) for size in call.shape[front + 1 :]]
    result = t.settled(Value((*mine, channels, *places), value.varies or weight.varies))
    return _with_bias(t, result, bias, axis=front)


@operation("aten.scaled_dot_product_attention")
def attention(t: Tracker, call: Call) -> Value:
    """Softmax(q kᵀ) v, heads and batches shared; fewer heads of k and v serve several of q."""
    if call.get("dropout_p", 0.0):
        raise call.refuse("random in evaluation mode, too: no outputs to compare")
    q, k, v = (tensor(call, name) for name in ("query", "key", "value"))
    if call.get("enable_gqa", default=False):
        k, v = (_shared_heads(t, side, q) for side in (k, v))
    scores = _batched(t, q, k, len(k.axes) - 1)
    mask = call.get("attn_mask")
    if isinstance(mask, Value):
        scores = t.elementwise(scores, mask, t.unscalable)
    t.require_independent(scores.axes, set(range(len(scores.axes) - 1)))
    return _batched(t, t.unscaled(scores), v, len(v.axes) - 2)


def _shared_heads(t: Tracker, side: Value, q: Value) -> Value:
    heads: Term = side.axes[-3]
    times = q.axes[-3].size // heads.size
    shared = prod([t.store.normal(heads), Free(times)])
    return Value((*side.axes[:-3], shared, *side.axes[-2:]), side.varies)
