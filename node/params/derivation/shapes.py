"""Operations that move places about: views, transpositions, cuts, look-ups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from node.params.derivation.calls import (
    Call,
    PickError,
    Result,
    axes_of,
    axis_of,
    operation,
    tensor,
)
from node.params.derivation.terms import Atom, Free, Still, Term, concat, prod
from node.params.derivation.values import Stack, Tracked, Tracker, Value


@operation("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten")
def view(t: Tracker, call: Call) -> Tracked:
    """Row-major order stays, the shape changes."""
    value = call.args[0]
    if 0 in call.shape:
        raise call.refuse("a tensor without elements")
    before = {id(atom) for axis in value.axes for atom in t.store.atoms(axis)}
    result = t.viewed(value, call.shape, call.picked)
    if isinstance(result, Value):
        for at, axis in enumerate(result.axes):
            atom = t.store.bare(axis)
            if isinstance(atom, Atom) and id(atom) not in before and at not in call.picked:
                t.store.made.setdefault(id(atom), (call.node, at))
    return result


def _moved(value: Tracked, order: Sequence[int]) -> Tracked:
    """Return `value` with axis ``order[i]`` as its i-th; Still(1) is put in for None."""
    if isinstance(value, Value):
        return Value(tuple(value.axes[at] for at in order), value.varies)
    axis = list(order).index(value.axis)
    inner = [at - (at > value.axis) for at in order if at != value.axis]
    return Stack(
        axis,
        tuple(Value(tuple(p.axes[at] for at in inner), p.varies) for p in value.parts),
    )


def _rank(value: Tracked) -> int:
    return len(value.axes) if isinstance(value, Value) else len(value.parts[0].axes) + 1


@operation("aten.transpose", "aten.swapaxes", stackable=True)
def transpose(_: Tracker, call: Call) -> Tracked:
    """Two axes trade places."""
    value, rank = call.args[0], _rank(call.args[0])
    order = list(range(rank))
    one, other = (axis_of(call, axis, rank) for axis in call.args[1:3])
    order[one], order[other] = order[other], order[one]
    return _moved(value, order)


@operation("aten.t", stackable=True)
def transposed(_: Tracker, call: Call) -> Tracked:
    """A matrix the other way round."""
    return _moved(call.args[0], list(range(_rank(call.args[0])))[::-1])


@operation("aten.permute", stackable=True)
def permute(_: Tracker, call: Call) -> Tracked:
    """Axes in another order."""
    value = call.args[0]
    return _moved(value, [axis_of(call, axis, _rank(value)) for axis in call.args[1]])


@operation("aten.unsqueeze", stackable=True)
def unsqueeze(_: Tracker, call: Call) -> Tracked:
    """An axis of one place more."""
    value = call.args[0]
    at = axis_of(call, call.args[1], _rank(value) + 1)
    if isinstance(value, Value):
        return Value((*value.axes[:at], Still(1), *value.axes[at:]), value.varies)
    inner = at - (at > value.axis)
    parts = tuple(
        Value((*p.axes[:inner], Still(1), *p.axes[inner:]), p.varies) for p in value.parts
    )
    return Stack(value.axis + (at <= value.axis), parts)


@operation("aten.squeeze", stackable=True)
def squeeze(_: Tracker, call: Call) -> Tracked:
    """Axes of one place away."""
    value, rank = call.args[0], _rank(call.args[0])
    gone = set(axes_of(call, call.args[1] if len(call.args) > 1 else None, rank))
    if isinstance(value, Stack):
        gone.discard(value.axis)
        parts = []
        for part in value.parts:
            kept = [
                axis
                for at, axis in enumerate(part.axes)
                if axis.size != 1 or at + (at >= value.axis) not in gone
            ]
            parts.append(Value(tuple(kept), part.varies))
        shape = [
            1 if at == value.axis else value.parts[0].axes[at - (at > value.axis)].size
            for at in range(value.axis)
        ]
        before = sum(1 for at, size in enumerate(shape) if size == 1 and at in gone)
        return Stack(value.axis - before, tuple(parts))
    axes = (axis for at, axis in enumerate(value.axes) if axis.size != 1 or at not in gone)
    return Value(tuple(axes), value.varies)


@operation("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(t: Tracker, call: Call) -> Value:
    """Axes of one place repeated."""
    value = call.args[0]
    before = len(call.shape) - len(value.axes)
    axes: list[Term] = [Free(size) for size in call.shape[:before]]
    for axis, size in zip(value.axes, call.shape[before:], strict=True):
        axes.append(Free(size) if axis.size == 1 and size != 1 else t.store.normal(axis))
    return Value(tuple(axes), value.varies)


@operation("aten.repeat")
def repeat(t: Tracker, call: Call) -> Value:
    """Whole axes repeated one behind the other."""
    value, times = call.args[0], call.args[1]
    axes = [Still(1)] * (len(times) - len(value.axes)) + list(value.axes)
    made = [
        prod([Free(n), t.store.normal(axis)]) if axis.size * n > 1 else Still(1)
        for n, axis in zip(times, axes, strict=True)
    ]
    return t.settled(Value(tuple(made), value.varies))


@operation("aten.repeat_interleave")
def repeat_interleave(t: Tracker, call: Call) -> Value:
    """Every place of an axis repeated."""
    value, times = call.args[0], call.args[1]
    at = call.get("dim")
    if not isinstance(times, int) or not isinstance(at, int):
        raise call.refuse("repeats must be one number, along one axis")
    at = axis_of(call, at, len(value.axes))
    repeated = prod([t.store.normal(value.axes[at]), Free(times)])
    return t.settled(Value((*value.axes[:at], repeated, *value.axes[at + 1 :]), value.varies))


def _replaced(t: Tracker, value: Value, at: int, *terms: Term) -> Value:
    return t.settled(Value((*value.axes[:at], *terms, *value.axes[at + 1 :]), value.varies))


@operation("aten.select", stackable=True)
def select(t: Tracker, call: Call) -> Tracked:
    """One place of an axis."""
    value: Tracked = call.args[0]
    at = axis_of(call, call.args[1], _rank(value))
    if isinstance(value, Stack):
        if at == value.axis:
            return value.parts[int(call.args[2])]
        value = t.plain(value)
    return _picked(t, value, at)


def _picked(t: Tracker, value: Value, at: int) -> Value:
    """Pin an axis and take it away: whatever was numbered within it is numbered alike.

    Unless a view made the axis: then the view is to be read again, as parts side by side.
    """
    atom = t.store.bare(value.axes[at])
    if isinstance(atom, Atom) and id(atom) in t.store.made:
        raise PickError(*t.store.made[id(atom)])
    t.store.pin(value.axes[at])
    t.mapped(value.axes[at], t.scales.kill)
    t.require_independent(value.axes, set(range(len(value.axes))) - {at})
    return _replaced(t, value, at)


@operation("aten.unbind", stackable=True)
def unbind(t: Tracker, call: Call) -> Result:
    """Every place of an axis by itself."""
    value: Tracked = call.args[0]
    at = axis_of(call, call.get("dim", 0), _rank(value))
    if isinstance(value, Stack):
        if at == value.axis:
            return value.parts
        value = t.plain(value)
    return (_picked(t, value, at),) * value.axes[at].size


def _cut(t: Tracker, value: Value, at: int, sizes: Sequence[int]) -> tuple[Value, ...]:
    rest, made = value.axes[at], []
    for size in sizes:
        left, rest = t.store.cut(rest, size)
        made.append(left)
    return tuple(_replaced(t, value, at, left) for left in made)


@operation("aten.slice", "aten.narrow")
def cut(t: Tracker, call: Call) -> Value:
    """A range of an axis."""
    value = call.args[0]
    at = axis_of(call, call.get("dim", 0), len(value.axes))
    size = value.axes[at].size
    if call.operation == "aten.narrow":
        start, length = call.args[2], call.args[3]
        start, end, step = start % size if size else 0, start % size + length, 1
    else:
        start, end, step = slice(call.get("start"), call.get("end"), call.get("step", 1)).indices(
            size
        )
    if not (isinstance(start, int) and isinstance(end, int)):
        raise call.refuse("a range that depends on data", reason="data-dependent-index")
    if step != 1:
        t.store.pin(value.axes[at])
        t.mapped(value.axes[at], t.scales.kill)
        return _replaced(t, value, at, Still(call.shape[at]))
    if end <= start:
        return _replaced(t, value, at, Still(0))
    return _cut(t, value, at, (start, end - start, size - end))[1]


@operation("aten.split", "aten.split_with_sizes", "aten.chunk")
def split(t: Tracker, call: Call) -> Result:
    """An axis in ranges one behind the other."""
    value, by = call.args[0], call.args[1]
    at = axis_of(call, call.get("dim", 0), len(value.axes))
    size = value.axes[at].size
    if isinstance(by, int):
        each = -(-size // by) if call.operation == "aten.chunk" else by
        by = [min(each, size - done) for done in range(0, size, each)]
    return _cut(t, value, at, by)


@operation("aten.cat", "aten.concat", "aten.concatenate")
def cat(t: Tracker, call: Call) -> Value:
    """Tensors one behind the other along an axis; all others are the same."""
    values = [v for v in call.args[0] if v.shape != (0,)]
    at = axis_of(call, call.get("dim", 0), len(values[0].axes))
    blanks = [Value((*v.axes[:at], Still(1), *v.axes[at + 1 :]), v.varies) for v in values]
    shared = blanks[0]
    for blank in blanks[1:]:
        shared = t.elementwise(shared, blank, t.sums)
    for value in values:
        t.require_same_anchors(value.axes, shared.axes)
        others = set(range(len(value.axes))) - {at}
        t.require_independent(value.axes, others)
    joined = concat([t.store.normal(value.axes[at]) for value in values])
    return _replaced(t, shared, at, joined)


@operation("aten.stack")
def stack(t: Tracker, call: Call) -> Value:
    """Tensors side by side along a new axis."""
    values = call.args[0]
    at = axis_of(call, call.get("dim", 0), len(values[0].axes) + 1)
    return t.plain(Stack(at, tuple(values))) if len(values) > 1 else _widened(values[0], at)


def _widened(value: Value, at: int) -> Value:
    return Value((*value.axes[:at], Still(1), *value.axes[at:]), value.varies)


@operation("aten.constant_pad_nd", "aten.pad")
def pad(t: Tracker, call: Call) -> Value:
    """A number before and behind axes, the last axis first."""
    value, widths = call.args[0], call.args[1]
    if call.get("mode", "constant") != "constant" or min(widths) < 0:
        raise call.refuse("padding other than by a constant")
    axes = list(value.axes)
    for pair, before in enumerate(widths[::2]):
        at = len(axes) - 1 - pair
        after = widths[2 * pair + 1]
        if before or after:
            axes[at] = concat([Free(before), t.store.normal(axes[at]), Free(after)])
    return t.settled(Value(tuple(axes), value.varies))


@operation(
    "aten.flip", "aten.roll", "aten.cumsum", "aten.cumprod", "aten.tril", "aten.triu", "aten.diff"
)
def ordered(t: Tracker, call: Call) -> Value:
    """The order of some axes is part of the function."""
    value = call.args[0]
    names = {"aten.flip": "dims", "aten.roll": "dims"}
    dims: Any = call.get(names.get(call.operation, "dim"))
    if call.operation in {"aten.tril", "aten.triu"}:
        dims = [-2, -1]
    elif call.operation == "aten.diff":
        dims = call.get("dim", -1)
    axes = [t.store.normal(axis) for axis in value.axes]
    for at in axes_of(call, dims, len(axes)):
        t.store.pin(axes[at])
        t.mapped(axes[at], t.scales.kill)
        axes[at] = Still(call.shape[at])
    return t.settled(Value(tuple(axes), value.varies))


def _index(call: Call, index: Any) -> Value:
    if isinstance(index, Value) and index.varies:
        raise call.refuse(
            "places chosen by what the model computes; take the choice out of the module",
            reason="data-dependent-index",
        )
    if not isinstance(index, Value):
        raise call.refuse("`index` is no tensor")
    return index


@operation("aten.embedding")
def embedding(t: Tracker, call: Call) -> Value:
    """Rows of a table; its rows keep their order."""
    table, rows = tensor(call, "weight"), _index(call, call.get("indices"))
    t.store.pin(table.axes[0])
    t.mapped(table.axes[0], t.scales.kill)
    t.require_independent(table.axes, {1})
    return t.settled(Value((*rows.axes, t.store.normal(table.axes[1])), table.varies))


@operation("aten.index_select")
def index_select(t: Tracker, call: Call) -> Value:
    """Places of one axis by number."""
    value = call.args[0]
    at = axis_of(call, call.args[1], len(value.axes))
    _index(call, call.args[2])
    return _looked_up(t, value, at, Still(call.shape[at]))


def _looked_up(t: Tracker, value: Value, at: int, *terms: Term) -> Value:
    t.store.pin(value.axes[at])
    t.mapped(value.axes[at], t.scales.kill)
    return _replaced(t, value, at, *terms)


@operation("aten.index")
def index(t: Tracker, call: Call) -> Value:
    """Places of some axes by number, each axis by a tensor of its own."""
    value, given = call.args[0], list(call.args[1])
    indices = {at: _index(call, one) for at, one in enumerate(given) if one is not None}
    places = sorted(indices)
    if places != list(range(places[0], places[0] + len(places))):
        raise call.refuse("indices of axes that do not stand side by side")
    shape = indices[places[0]]
    for at in places:
        shape = t.elementwise(shape, indices[at], t.sums)
        t.store.pin(value.axes[at])
        t.mapped(value.axes[at], t.scales.kill)
    before, after = value.axes[: places[0]], value.axes[places[-1] + 1 :]
    if len(before) + len(shape.axes) + len(after) != len(call.shape):
        raise call.refuse("an index of truth values", reason="data-dependent-index")
    kept = set(range(len(value.axes))) - set(places)
    t.require_independent(value.axes, kept)
    return t.settled(Value((*before, *shape.axes, *after), value.varies))


@operation("aten.gather")
def gather(t: Tracker, call: Call) -> Value:
    """For every place, one of an axis by number."""
    value = call.args[0]
    _index(call, call.args[2])
    for axis in value.axes:
        t.store.pin(axis)
    return t.still(call.shape, varies=True)
