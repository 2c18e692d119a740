"""Symmetries of a module, read off its graph.

The graph is interpreted over layouts instead of numbers (`values`), again and again until
nothing more is learned. No operation is taken for harmless: it has a handler that says what it
does to the order of units, or it is an error that names it. Values on which the parameters have
no say keep the order of all their places, whatever made them.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import fx

from node.params.derivation import (  # registered on import
    contractions,
    elementwise,
    normalisations,
    shapes,
)
from node.params.derivation.calls import OPERATIONS, STACKABLE, Call, PickError, Result
from node.params.derivation.emission import specification
from node.params.derivation.errors import UnderivableError
from node.params.derivation.scales import Scales
from node.params.derivation.terms import Store, Term
from node.params.derivation.trace import Traced, trace
from node.params.derivation.values import Stack, Tracker, Value
from node.params.symmetry import SymmetrySpec

HANDLERS: Final = (contractions, elementwise, normalisations, shapes)
MAX_PASSES: Final = 100
KEEP_FREE: Final = frozenset(
    f"aten.{name}"
    for name in [
        "expand",
        "unsqueeze",
        "squeeze",
        "transpose",
        "permute",
        "view",
        "reshape",
        "to",
        "_to_copy",
        "clone",
        "alias",
        "zeros_like",
        "ones_like",
        "full_like",
        "new_ones",
        "new_zeros",
        "new_full",
        "zeros",
        "ones",
        "full",
    ]
)
"""Operations through which a constant still holds the same along an axis."""
IGNORED: Final = frozenset(
    {"aten._assert_tensor_metadata", "aten._assert_async", "aten._assert_scalar"}
)


def derive(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> SymmetrySpec:
    """Return the symmetries of `module`, called with inputs of the shapes of these examples.

    Raises `UnderivableError`, which names the operation that is not understood.
    """
    return derive_traced(trace(module, args, kwargs))


def derive_traced(traced: Traced) -> SymmetrySpec:
    """Return the symmetries of a graph."""
    picks: dict[str, frozenset[int]] = {}
    while True:
        try:
            return _Derivation(traced, picks).run()
        except PickError as pick:
            picks[pick.node] = picks.get(pick.node, frozenset()) | {pick.axis}


class _Derivation:
    """One reading of a graph, with what is known of its atoms from earlier nodes and passes."""

    def __init__(self, traced: Traced, picks: Mapping[str, frozenset[int]]) -> None:
        self.traced = traced
        self.picks = picks
        self.store = Store()
        self.read = self._read_order()
        self.atoms: dict[str, tuple[Term, ...]] = {
            name: tuple(self.store.atom(size) for size in traced.shapes[name]) for name in self.read
        }

    def _read_order(self) -> list[str]:
        """Return the floating-point tensors that the graph reads, the first one first."""
        names: dict[str, None] = {}
        for node in self.traced.graph.nodes:
            read = [n for n in node.all_input_nodes if n.name in self.traced.tensors]
            # weights before biases: groups are named after the first that has them
            for source in sorted(filter(_is_float, read), key=lambda n: -n.meta["val"].ndim):
                names.setdefault(self.traced.tensors[source.name])
        return list(names)

    def run(self) -> SymmetrySpec:
        """Interpret the graph until nothing more is learned, and write down what is."""
        for _ in range(MAX_PASSES):
            before = self.store.version
            scales = Scales()
            tracker = Tracker(self.store, scales)
            parameters = self._pass(tracker)
            if self.store.version == before and not self._straighten():
                reads = tracker.contracted - tracker.kept
                return specification(self.traced, self.store, scales, parameters, reads)
        raise UnderivableError("unknown-operation", f"no end after {MAX_PASSES} passes")

    def _straighten(self) -> bool:
        """Make what atoms depend on a chain, each link within those before; whether it was not."""
        before = self.store.version
        for name in self.read:
            for axis in self.atoms[name]:
                for atom in self.store.atoms(axis):
                    chain = sorted(
                        self.store.depends(atom), key=lambda a: len(self.store.depends(a))
                    )
                    for at, outer in enumerate(chain):
                        if set(map(id, self.store.depends(outer))) != set(map(id, chain[:at])):
                            self.store.forget(atom, outer)
                            break
        return self.store.version != before

    def _pass(self, t: Tracker) -> dict[str, Value]:
        """Interpret every node once; returns the tensors with their scales."""
        parameters = {
            name: t.settled(
                Value(
                    tuple(t.mapped(axis, lambda _: t.scales.fresh()) for axis in axes),
                    varies=True,
                    learned=True,
                )
            )
            for name, axes in self.atoms.items()
        }
        values: dict[fx.Node, Result] = {}
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                name = self.traced.tensors.get(node.name)
                if name in parameters:
                    values[node] = parameters[name]
                elif isinstance(node.meta.get("val"), torch.Tensor):
                    values[node] = t.still(node.meta["val"].shape)
            elif node.op == "call_function":
                values[node] = self._call(t, node, values)
            elif node.op == "output":
                self._seen(t, node, values)
            elif node.users:
                user = next(iter(node.users))
                raise _refused(user, "a graph within the graph: control flow is not read")
        return parameters

    def _seen(self, t: Tracker, node: fx.Node, values: Mapping[fx.Node, Result]) -> None:
        """Outputs keep the order of all their places, and their scale."""
        for source in node.all_input_nodes:
            value = values[source]
            if isinstance(value, Value | Stack):
                for axis in t.plain(value).axes:
                    t.store.pin(axis)
                    t.mapped(axis, t.scales.kill)

    def _call(self, t: Tracker, node: fx.Node, values: Mapping[fx.Node, Result]) -> Result:
        if node.target is operator.getitem:
            return self._item(node, values)
        name = str(node.target).rpartition(".")[0]
        if name in IGNORED or not node.users:
            return None

        def tracked(source: fx.Node) -> Any:
            return self._argument(t, node, name, values[source])

        args: Any = fx.map_arg(node.args, tracked)
        kwargs: Any = fx.map_arg(node.kwargs, tracked)
        tensors = list(_tensors((*args, *kwargs.values())))
        varies = any(value.varies for value in tensors)
        handler = OPERATIONS.get(name)
        shape = _shape(node)
        if not varies and (handler is None or name not in KEEP_FREE):
            if isinstance(shape, list):
                return tuple(None if s is None else t.still(s) for s in shape)
            return None if shape is None else t.still(shape)
        if handler is None:
            raise _refused(node, "no rule says how it treats the order of units")
        if isinstance(shape, list):
            shape = shape[0]
        # the type of every target but `getitem`
        assert isinstance(node.target, torch._ops.OpOverload)  # noqa: SLF001
        call = Call(
            node=node.name,
            operation=name,
            names=tuple(argument.name for argument in node.target._schema.arguments),  # noqa: SLF001
            args=tuple(args),
            kwargs=dict(kwargs),
            shape=tuple(shape or ()),
            picked=self.picks.get(node.name, frozenset()),
        )
        result = handler(t, call)
        if isinstance(result, Value):
            if result.shape != call.shape:
                raise _refused(node, f"{result.shape} where {call.shape} was traced")
            if not _is_float(node) and not isinstance(node.meta.get("val"), tuple | list):
                return t.unscaled(result)  # rounded, or a truth value
            learned = [value for value in tensors if isinstance(value, Value) and value.learned]
            if len(learned) == len(tensors):
                return dataclasses.replace(result, learned=True)
            variables = t.variables(*(axis for value in learned for axis in value.axes))
            t.kept |= variables & t.variables(*result.axes)
        return result

    def _argument(self, t: Tracker, node: fx.Node, name: str, value: Result) -> Any:
        if value is None or isinstance(value, tuple):
            raise _refused(node, "an argument that no rule gives")
        return value if name in STACKABLE else t.plain(value)

    def _item(self, node: fx.Node, values: Mapping[fx.Node, Result]) -> Result:
        source, at = node.args
        assert isinstance(source, fx.Node)
        several = values[source]
        if not isinstance(several, tuple) or not isinstance(at, int):
            raise _refused(node, "an item of what is no tuple")
        if several[at] is None and node.users:
            raise _refused(node, "a result of its operation that no rule gives")
        return several[at]


def _refused(node: fx.Node, detail: str) -> UnderivableError:
    return UnderivableError("unknown-operation", detail, node=node.name, operation=str(node.target))


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _shape(node: fx.Node) -> tuple[int, ...] | list[tuple[int, ...] | None] | None:
    """Return the traced shape of a result, or of several; None for what is no tensor."""

    def one(value: object) -> tuple[int, ...] | None:
        if not isinstance(value, torch.Tensor):
            if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
                raise _refused(node, "a number that depends on data")
            return None
        if any(not isinstance(size, int) for size in value.shape):
            raise _refused(node, "a shape that depends on data")
        return tuple(value.shape)

    value = node.meta.get("val")
    return [one(part) for part in value] if isinstance(value, tuple | list) else one(value)


def _tensors(values: Iterable[Any]) -> Iterable[Value | Stack]:
    for value in values:
        if isinstance(value, Value | Stack):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
