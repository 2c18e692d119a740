"""The symmetries of any architecture, as data: which units may trade places, and what with them.

`PermutationSpec` says of every axis that it runs over one group of units, or over none. Here
an axis may be laid out in blocks: a product of groups (heads, and the units inside each of
them), or several of those one behind the other (queries, keys and values in one matrix). A group
that stands `within` others has a permutation of its own for every unit of those: the units inside
a head are renumbered head by head, and travel with it.

A joint permutation P acts on a tensor by T'[i, …] = T[P(i), …]; a group within another takes
the permutation that belongs to the *new* place of the unit around it. Joint permutations are
applied, composed and hashed in `node.params.blocks`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from node.params.permutation import (
    Axis,
    Group,
    PermutationSpec,
    Rescaling,
    Role,
    Tensors,
    named,
)
from node.protocol.errors import LocalProtocolError


@dataclass(frozen=True, slots=True)
class Fixed:
    """Places that stay where they are: inputs, outputs, kernel taps, tokens."""

    size: int


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a group."""

    group: str


@dataclass(frozen=True, slots=True)
class Product:
    """Places numbered by several layouts at once, the first one slowest (row-major)."""

    parts: tuple[Layout, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Layouts one behind the other."""

    parts: tuple[Layout, ...]


Layout: TypeAlias = Fixed | Units | Product | Concat


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Units that are interchangeable with one another."""

    size: int
    within: tuple[str, ...] = ()
    """Groups, the outermost first, for each of whose units there is a permutation of its own."""
    movable: bool = True
    """False where the units only number the permutations of the groups within."""


class GaugeKind(Enum):
    """Which changes of a group's basis leave the function as it is, beside permutations."""

    POSITIVE = "positive"
    """Any positive scale of a unit: between them stand ReLU and its like."""
    SIGN = "sign"
    """±1 for each unit: only odd functions stand between."""
    SCALE = "scale"
    """Any scale but 0."""
    LINEAR = "linear"
    """Any invertible matrix: nothing but linear maps, as inside of a head."""


@dataclass(frozen=True, slots=True)
class Place:
    """A group's appearance in an axis: the `leaf`-th `Units` of its layout, counted from 0."""

    tensor: str
    axis: int
    leaf: int


@dataclass(frozen=True, slots=True)
class Gauge:
    """A change of basis M, one for each unit of the groups around: `writes` M, `reads` M⁻ᵀ."""

    group: str
    kind: GaugeKind
    writes: tuple[Place, ...]
    reads: tuple[Place, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SymmetrySpec:
    """The symmetries of an architecture; groups stand in the order data flows through them."""

    groups: Mapping[str, UnitGroup]
    axes: Mapping[str, tuple[Layout, ...]]
    """For every tensor, the layout of each axis."""
    gauges: tuple[Gauge, ...] = ()
    ties: Mapping[str, str] = field(default_factory=dict)
    """Other names of a tensor (the same storage) → the name that `axes` has."""
    reads: frozenset[Place] = field(default=frozenset(), compare=False)
    """Appearances that read their units, for they are summed over; all others write them."""

    def __post_init__(self) -> None:
        for name, group in self.groups.items():
            for outer in group.within:
                if outer not in self.groups:
                    raise LocalProtocolError(f"{name!r} stands within {outer!r}, which is no group")
        for name, layouts in self.axes.items():
            for layout in layouts:
                for leaf in leaves(layout):
                    if leaf.group not in self.groups:
                        raise LocalProtocolError(f"{name!r} runs over {leaf.group!r}: no group")

    def size(self, layout: Layout) -> int:
        """Return the number of places of `layout`."""
        match layout:
            case Fixed(size):
                return size
            case Units(group):
                return self.groups[group].size
            case Product(parts):
                return math.prod(self.size(part) for part in parts)
            case Concat(parts):
                return sum(self.size(part) for part in parts)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape that a tensor of this name must have."""
        return tuple(self.size(layout) for layout in self.axes[tensor])


def within(spec: SymmetrySpec, around: Mapping[str, str]) -> SymmetrySpec:
    """Return `spec` with some groups, each within another: for each unit of it an order, a basis.

    Of a group with others within it these have all the gauges that there are.
    """
    return replace(
        spec,
        groups={
            name: replace(group, within=(around[name],)) if name in around else group
            for name, group in spec.groups.items()
        },
        gauges=tuple(gauge for gauge in spec.gauges if gauge.group not in around.values()),
    )


def leaves(layout: Layout) -> Iterator[Units]:
    """Yield every appearance of a group, in order."""
    match layout:
        case Units():
            yield layout
        case Product(parts) | Concat(parts):
            for part in parts:
                yield from leaves(part)
        case Fixed():
            return


def renamed(spec: SymmetrySpec) -> SymmetrySpec:
    """Return `spec` with groups named by the order of their first appearance in the tensors.

    Tensors are read by name; so two specifications say the same of an architecture exactly if
    their renamed forms are equal, whatever either calls its groups.
    """
    names: dict[str, str] = {}
    for tensor in sorted(spec.axes):
        for layout in spec.axes[tensor]:
            for leaf in leaves(layout):
                names.setdefault(leaf.group, f"g{len(names)}")
    groups = {
        new: UnitGroup(
            size=spec.groups[old].size,
            within=tuple(names[outer] for outer in spec.groups[old].within),
            movable=spec.groups[old].movable,
        )
        for old, new in names.items()
    }

    def rename(layout: Layout) -> Layout:
        match layout:
            case Units(group):
                return Units(names[group])
            case Product(parts):
                return Product(tuple(rename(part) for part in parts))
            case Concat(parts):
                return Concat(tuple(rename(part) for part in parts))
            case Fixed():
                return layout

    gauges = sorted(
        (_oriented(gauge, names) for gauge in spec.gauges),
        key=lambda gauge: _order(gauge.writes),
    )
    axes = {
        tensor: tuple(rename(layout) for layout in spec.axes[tensor])
        for tensor in sorted(spec.axes)
    }
    return SymmetrySpec(groups=groups, axes=axes, gauges=tuple(gauges), ties=dict(spec.ties))


def _order(places: tuple[Place, ...]) -> list[tuple[str, int, int]]:
    return [(place.tensor, place.axis, place.leaf) for place in places]


def _oriented(gauge: Gauge, names: Mapping[str, str]) -> Gauge:
    """The gauge with sorted places, the side of the first place called `writes`."""
    writes, reads = (
        tuple(sorted(side, key=lambda place: (place.tensor, place.axis, place.leaf)))
        for side in (gauge.writes, gauge.reads)
    )
    if _order(reads) < _order(writes):
        writes, reads = reads, writes
    return Gauge(group=names[gauge.group], kind=gauge.kind, writes=writes, reads=reads)


def of_permutation_spec(spec: PermutationSpec, tensors: Tensors) -> SymmetrySpec:
    """Return a specification of plain groups as one of layouts; `tensors` give the shapes."""
    sizes = {name: group.size for name, group in spec.groups.items()}
    return SymmetrySpec(
        groups={name: UnitGroup(size) for name, size in sizes.items()},
        axes={
            name: tuple(
                Fixed(size) if axis is None else Units(axis.group)
                for axis, size in zip(axes, tensors[name].shape, strict=True)
            )
            for name, axes in spec.axes.items()
        },
        gauges=tuple(
            Gauge(
                group=rescaling.group,
                kind=GaugeKind.POSITIVE,
                writes=_places(spec, rescaling.writes),
                reads=_places(spec, rescaling.reads),
            )
            for rescaling in spec.rescalings.values()
        ),
    )


def _places(spec: PermutationSpec, axes: Collection[tuple[str, int]]) -> tuple[Place, ...]:
    """Return axes of tensors in the order in which the specification has them."""
    return tuple(
        Place(name, dimension, 0)
        for name, of_tensor in spec.axes.items()
        for dimension in range(len(of_tensor))
        if (name, dimension) in axes
    )


def to_permutation_spec(spec: SymmetrySpec) -> PermutationSpec:
    """Return the plain form, for architectures whose every axis runs over one group or none.

    A unit's role is the one that its positive scales give it; without those, reading is taken
    for the second axis of a tensor and writing for every other. Raises `LocalProtocolError`
    where an axis is laid out in blocks.
    """
    reads = {place for gauge in spec.gauges for place in gauge.reads}
    scaled = {place for gauge in spec.gauges for place in (*gauge.writes, *gauge.reads)}
    axes: dict[str, tuple[Axis | None, ...]] = {}
    for name, layouts in spec.axes.items():
        found: list[Axis | None] = []
        for dimension, layout in enumerate(layouts):
            place = Place(name, dimension, 0)
            match layout:
                case Fixed():
                    found.append(None)
                case Units(group) if not spec.groups[group].within:
                    read = place in reads if place in scaled else dimension == 1
                    found.append(Axis(group, Role.READS if read else Role.WRITES))
                case _:
                    raise LocalProtocolError(f"axis {dimension} of {name!r} is laid out in blocks")
        axes[name] = tuple(found)
    groups = {name: Group(size=group.size) for name, group in spec.groups.items()}
    return PermutationSpec(groups=groups, axes=axes, rescalings=_rescalings(spec, groups))


def plain_part(
    spec: SymmetrySpec, groups: Collection[str], *, reads: Collection[Place]
) -> PermutationSpec:
    """Return the plain form of some groups, while units of all others keep their order.

    `reads` are the places that read a unit, all others write it. Raises `LocalProtocolError`
    for a group that stands within others, and where an axis is laid out in blocks.
    """
    axes: dict[str, tuple[Axis | None, ...]] = {}
    for name, layouts in spec.axes.items():
        found: list[Axis | None] = []
        for dimension, layout in enumerate(layouts):
            place = Place(name, dimension, 0)
            match layout:
                case Units(group) if group in groups and not spec.groups[group].within:
                    found.append(Axis(group, Role.READS if place in reads else Role.WRITES))
                case Product() | Concat() | Units(_) if any(
                    leaf.group in groups for leaf in leaves(layout)
                ):
                    raise LocalProtocolError(f"axis {dimension} of {name!r} is laid out in blocks")
                case _:
                    found.append(None)
        axes[name] = tuple(found)
    kept = {name: Group(size=group.size) for name, group in spec.groups.items() if name in groups}
    return PermutationSpec(groups=kept, axes=axes, rescalings=_rescalings(spec, kept))


def plain_groups(spec: SymmetrySpec) -> PermutationSpec:
    """Return the plain form of every group that has one, while units of all others keep order.

    Such a group stands within no other, and no axis lays it out in blocks. A unit is read by
    what the graph sums over it with (`SymmetrySpec.reads`), unless a gauge of all its
    appearances says it otherwise.
    """
    in_blocks = {
        leaf.group
        for layouts in spec.axes.values()
        for layout in layouts
        if isinstance(layout, Product | Concat)
        for leaf in leaves(layout)
    }
    groups = {
        name
        for name, group in spec.groups.items()
        if group.movable and not group.within and name not in in_blocks
    }
    reads = set(spec.reads)
    for gauge in spec.gauges:
        if gauge.group in groups and _whole(spec, gauge):
            reads = (reads - set(gauge.writes)) | set(gauge.reads)
    return plain_part(spec, groups, reads=reads)


def _rescalings(spec: SymmetrySpec, groups: Collection[str]) -> dict[str, Rescaling]:
    """Return what of the gauges is a positive scale of each unit of these groups.

    Units inside of heads have a basis for each head; where heads are plain, and the units inside
    are not among `groups`, a scale for each head is what is left of it.
    """
    whole, partial = {}, []
    for gauge in spec.gauges:
        group, within = gauge.group, spec.groups[gauge.group].within
        if group not in groups and gauge.kind is GaugeKind.LINEAR and len(within) == 1:
            group = within[0]
        if group not in groups or gauge.kind is GaugeKind.SIGN:
            continue
        sides = [_axes_of(spec, places, group) for places in (gauge.writes, gauge.reads)]
        if not all(sides):
            continue
        rescaling = Rescaling(group=group, writes=sides[0], reads=sides[1])
        if group == gauge.group and _whole(spec, gauge):
            whole[group] = rescaling
        else:
            partial.append(rescaling)
    return whole | named(partial)


def _axes_of(spec: SymmetrySpec, places: Iterable[Place], group: str) -> frozenset[tuple[str, int]]:
    """Return the axes over `group` of the tensors of all these places; none if one lacks it."""
    found = set()
    for place in places:
        layouts = spec.axes[place.tensor]
        own = [axis for axis, layout in enumerate(layouts) if layout == Units(group)]
        if layouts[place.axis] == Units(group):
            own = [place.axis]
        if len(own) != 1:
            return frozenset()
        found.add((place.tensor, own[0]))
    return frozenset(found)


def _whole(spec: SymmetrySpec, gauge: Gauge) -> bool:
    """Whether a gauge takes in every plain appearance of its group."""
    places = {
        Place(name, dimension, 0)
        for name, layouts in spec.axes.items()
        for dimension, layout in enumerate(layouts)
        if layout == Units(gauge.group)
    }
    return {*gauge.writes, *gauge.reads} == places
