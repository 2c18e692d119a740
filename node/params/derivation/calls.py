"""One operation of the graph, and the registry of those that are understood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from node.params.derivation.errors import UnderivableError
from node.params.derivation.values import Tracked, Tracker, Value


@dataclass(frozen=True, slots=True)
class Call:
    """An operation with its arguments; tensors among them are tracked values."""

    node: str
    operation: str
    names: tuple[str, ...]
    """Names of the positional parameters, as the operator's schema has them."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    """Of the result; of the first one where there are several."""
    picked: frozenset[int] = field(default=frozenset())
    """Axes of the result that are later taken apart, place by place."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the schema."""
        if name in self.kwargs:
            return self.kwargs[name]
        at = self.names.index(name) if name in self.names else len(self.args)
        return self.args[at] if at < len(self.args) else default

    def refuse(self, detail: str, *, reason: str = "unknown-operation") -> UnderivableError:
        """Return the error that names this operation."""
        return UnderivableError(reason, detail, node=self.node, operation=self.operation)


Result: TypeAlias = Tracked | tuple[Tracked | None, ...] | None
Handler: TypeAlias = Callable[[Tracker, Call], Result]
OPERATIONS: Final[dict[str, Handler]] = {}
"""Handlers by the operator's name without its overload."""
STACKABLE: Final[set[str]] = set()
"""Operations whose handlers take a `Stack` as it is; others get what its parts share."""


class PickError(Exception):
    """A view's axis is taken apart: it is to be read as parts with layouts of their own."""

    def __init__(self, node: str, axis: int) -> None:
        super().__init__(f"axis {axis} of {node}")
        self.node = node
        self.axis = axis


def operation(*names: str, stackable: bool = False) -> Callable[[Handler], Handler]:
    """Register a handler."""

    def register(handler: Handler) -> Handler:
        for name in names:
            if name in OPERATIONS:
                raise AssertionError(f"{name} is registered twice")
            OPERATIONS[name] = handler
            if stackable:
                STACKABLE.add(name)
        return handler

    return register


def axis_of(call: Call, axis: int, rank: int) -> int:
    """Return `axis` counted from the front."""
    if not -rank <= axis < max(rank, 1):
        raise call.refuse(f"there is no axis {axis} of {rank}")
    return axis % rank if rank else 0


def axes_of(call: Call, axes: Any, rank: int) -> list[int]:
    """Return axes counted from the front; all of them for none."""
    if axes is None or axes == []:
        return list(range(rank))
    return [axis_of(call, axis, rank) for axis in ([axes] if isinstance(axes, int) else axes)]


def tensor(call: Call, name: str) -> Value:
    """Return an argument that must be a tensor."""
    value = call.get(name)
    if not isinstance(value, Value):
        raise call.refuse(f"`{name}` is no tensor")
    return value
