"""The order of affine layers in a stack, read off names and shapes alone.

A state dictionary names its layers in as many ways as there are authors (``fc1``, ``0``,
``layers.0``, ``net.encoder``), and a safetensors file has them by the alphabet. Two things tell
the order: each layer takes as many features as the one before it gives, and where two names
differ in their numbers alone the lower number comes first. Where that leaves exactly one order it
is taken; where it leaves several, the user is asked.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker_node.trying.errors import TryError
from node.params.families.mlp import MAX_LAYERS

MAX_STEPS: Final = 20_000
"""Of the search for orders: shapes that are all alike allow a great many."""
WEIGHT: Final = "weight"
BIAS: Final = "bias"
_NUMBER: Final = re.compile(r"\d{1,9}")
_SHOWN: Final = 6

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Layer:
    """One affine layer: its name without ``.weight``, and its widths."""

    name: str
    inputs: int
    outputs: int

    @property
    def weight(self) -> str:
        """The name of its weight (outputs x inputs)."""
        return f"{self.name}.{WEIGHT}" if self.name else WEIGHT

    @property
    def bias(self) -> str:
        """The name of its bias."""
        return f"{self.name}.{BIAS}" if self.name else BIAS

    @property
    def kin(self) -> tuple[str, tuple[int, ...]]:
        """The name without its numbers, and the numbers."""
        return _NUMBER.sub("#", self.name), tuple(map(int, _NUMBER.findall(self.name)))


def layers_of(shapes: Shapes) -> list[Layer]:
    """Return the affine layers that the tensors are, in no order.

    Raises `TryError` that names the first tensor which belongs to none, and what it looks like.
    """
    named: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        if kind not in {WEIGHT, BIAS}:
            raise TryError(f"{name} ({_by(shape)}) is neither a layer's weight nor its bias")
        named.setdefault(layer, {})[kind] = shape
    layers = []
    for layer, parts in named.items():
        shown = f"{layer}." if layer else ""
        weight, bias = parts.get(WEIGHT), parts.get(BIAS)
        if weight is None:
            raise TryError(f"{shown}bias stands without a {shown}weight")
        if len(weight) != 2:
            raise TryError(f"{shown}weight ({_by(weight)}) is {_kind(weight)}, no affine layer's")
        if bias is None:
            raise TryError(f"{shown}weight has no {shown}bias: every layer needs one; add zeros")
        if bias != weight[:1]:
            raise TryError(f"{shown}bias ({_by(bias)}) does not fit {shown}weight ({_by(weight)})")
        layers.append(Layer(layer, inputs=weight[1], outputs=weight[0]))
    if len(layers) > MAX_LAYERS:
        raise TryError(f"{len(layers)} layers, of at most {MAX_LAYERS}")
    return layers


def ordered(
    layers: Sequence[Layer], *, given: Sequence[str] = (), widths: Sequence[int] = ()
) -> list[Layer]:
    """Return the layers as data flows through them.

    `given`: their names in order, where the user has said so. `widths`: those of the stack, if
    they are known. Raises `TryError` if no order chains, or several do.
    """
    if given:
        chosen = _given(layers, given)
        if not _chains(chosen) or (widths and _widths(chosen) != tuple(widths)):
            raise TryError(f"in the order {','.join(given)} {_broken(chosen, widths)}")
        return chosen
    found = _orders(layers, tuple(widths))
    if not found:
        shown = ", ".join(f"{each.name or WEIGHT} {each.inputs}→{each.outputs}" for each in layers)
        wanted = f" of {'-'.join(map(str, widths))}" if widths else ""
        raise TryError(f"the layers make no chain{wanted}: {shown[:300]}")
    if len(found) > 1:
        names = ",".join(layer.name for layer in found[0])
        raise TryError(
            f"names and shapes allow several orders of the layers; say which with --order, "
            f"such as --order {names[:200]}"
        )
    return found[0]


def _given(layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    by_name = {layer.name: layer for layer in layers}
    if sorted(names) != sorted(by_name):
        raise TryError(f"--order must name each of {','.join(sorted(by_name))[:200]} once")
    return [by_name[name] for name in names]


def _orders(layers: Sequence[Layer], widths: tuple[int, ...]) -> list[list[Layer]]:
    """Return at most two orders that chain and keep to the numbers; depth first."""
    found: list[list[Layer]] = []
    stack: list[list[Layer]] = [[]]
    steps = 0
    while stack and len(found) < 2:
        steps += 1
        if steps > MAX_STEPS:
            raise TryError("the order of the layers is not clear; say it with --order NAME,NAME,…")
        path = stack.pop()
        if len(path) == len(layers):
            if not widths or _widths(path) == widths:
                found.append(path)
            continue
        for layer in reversed(_next(layers, path)):
            at = len(path)
            if widths and (at + 1 >= len(widths) or layer.inputs != widths[at]):
                continue
            stack.append([*path, layer])
    return found


def _next(layers: Sequence[Layer], path: list[Layer]) -> list[Layer]:
    """Return the layers that may follow: they chain, and no lower number of their kin is left."""
    left = [layer for layer in layers if layer not in path]
    lowest: dict[str, tuple[int, ...]] = {}
    for layer in left:
        stem, numbers = layer.kin
        lowest[stem] = min(lowest.get(stem, numbers), numbers)
    return [
        layer
        for layer in left
        if layer.kin[1] == lowest[layer.kin[0]] and (not path or path[-1].outputs == layer.inputs)
    ]


def _chains(layers: Sequence[Layer]) -> bool:
    return all(before.outputs == after.inputs for before, after in itertools.pairwise(layers))


def _broken(layers: Sequence[Layer], widths: Sequence[int]) -> str:
    for before, after in itertools.pairwise(layers):
        if before.outputs != after.inputs:
            return f"{before.name} gives {before.outputs} and {after.name} takes {after.inputs}"
    return f"the widths are {'-'.join(map(str, _widths(layers)))}, not {'-'.join(map(str, widths))}"


def _widths(layers: Sequence[Layer]) -> tuple[int, ...]:
    return (layers[0].inputs, *(layer.outputs for layer in layers))


def widths_of(layers: Sequence[Layer]) -> list[int]:
    """Return the widths of layers that chain, from the features to the outputs."""
    return list(_widths(layers))


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:_SHOWN])) or "one number"


def _kind(shape: tuple[int, ...]) -> str:
    return {1: "a normalisation's", 4: "a convolution's"}.get(len(shape), "of another kind")
