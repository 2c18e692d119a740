"""What a derivation has found, written down as a specification."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from node.params.derivation.scales import Scales
from node.params.derivation.terms import Atom, Leaf, Prod, Store, Sum, Term, leaves
from node.params.derivation.trace import Traced
from node.params.derivation.values import Value
from node.params.symmetry import (
    Concat,
    Fixed,
    Gauge,
    GaugeKind,
    Layout,
    Place,
    Product,
    SymmetrySpec,
    UnitGroup,
    Units,
)


def specification(
    traced: Traced,
    store: Store,
    scales: Scales,
    parameters: Mapping[str, Value],
    reads: Collection[int],
) -> SymmetrySpec:
    """Return the groups, layouts and gauges of the tensors that the graph reads.

    A tensor that it does not read, or that holds integers, stays as it is. Groups are named by
    the first place at which the data meets them: tensor, axis, and which of the axis' leaves.
    `reads` are the scale variables of those that read their units.
    """
    atoms = _order(store, parameters)
    moved = [atom for atom in atoms.values() if not atom.pinned]
    around = {id(outer) for atom in moved for outer in store.depends(atom)}
    names: dict[int, str] = {}
    for name, value in parameters.items():
        for axis, term in enumerate(value.axes):
            found = [leaf.atom for leaf in leaves(store.normal(term)) if isinstance(leaf, Leaf)]
            for at, atom in enumerate(found):
                if not atom.pinned or id(atom) in around:
                    label = f"{name}/{axis}" if len(found) == 1 else f"{name}/{axis}/{at}"
                    names.setdefault(id(atom), label)
    groups = {
        label: UnitGroup(
            size=atoms[key].size,
            within=tuple(
                names[id(outer)]
                for outer in sorted(store.depends(atoms[key]), key=lambda a: len(store.depends(a)))
                if id(outer) in names
            ),
            movable=not atoms[key].pinned,
        )
        for key, label in names.items()
    }
    axes: dict[str, tuple[Layout, ...]] = {}
    for name, shape in sorted(traced.shapes.items()):
        if name in parameters:
            axes[name] = tuple(_layout(store.normal(term), names) for term in parameters[name].axes)
        else:
            axes[name] = tuple(Fixed(size) for size in shape)
    gauges = _gauges(store, scales, parameters, names, around)
    reading = frozenset(
        Place(name, axis, at)
        for name, value in parameters.items()
        for axis, term in enumerate(value.axes)
        for at, leaf in enumerate(_named(store, term, names))
        if leaf.scale in reads
    )
    return SymmetrySpec(
        groups=groups, axes=axes, gauges=gauges, ties=dict(traced.ties), reads=reading
    )


def _order(store: Store, parameters: Mapping[str, Value]) -> dict[int, Atom]:
    return {
        id(atom): atom
        for value in parameters.values()
        for term in value.axes
        for atom in store.atoms(term)
    }


def _layout(term: Term, names: Mapping[int, str]) -> Layout:
    """Return the layout of a term in normal form; atoms without a name stay still."""
    match term:
        case Leaf(atom) | (Atom() as atom):
            return Units(names[id(atom)]) if id(atom) in names else Fixed(atom.size)
        case Prod(parts):
            return _merged([_layout(part, names) for part in parts], product=True)
        case Sum(parts):
            return _merged([_layout(part, names) for part in parts], product=False)
        case _:
            return Fixed(term.size)


def _merged(parts: list[Layout], *, product: bool) -> Layout:
    """Return parts as one layout, fixed neighbours merged."""
    flat: list[Layout] = []
    for part in parts:
        last = flat[-1] if flat else None
        if isinstance(part, Fixed) and isinstance(last, Fixed):
            flat[-1] = Fixed(last.size * part.size if product else last.size + part.size)
        else:
            flat.append(part)
    if len(flat) == 1:
        return flat[0]
    return Product(tuple(flat)) if product else Concat(tuple(flat))


def _named(store: Store, term: Term, names: Mapping[int, str]) -> list[Leaf]:
    """Return the units of an axis, in order."""
    return [
        leaf
        for leaf in leaves(store.normal(term))
        if isinstance(leaf, Leaf) and id(leaf.atom) in names
    ]


def _gauges(
    store: Store,
    scales: Scales,
    parameters: Mapping[str, Value],
    names: Mapping[int, str],
    around: set[int],
) -> tuple[Gauge, ...]:
    """Return the classes of scales that some tensor writes and another reads.

    A group with others within has none of its own: theirs go further.
    """
    classes: dict[int, tuple[str, list[Place], list[Place]]] = {}
    for name, value in parameters.items():
        for axis, term in enumerate(value.axes):
            for at, leaf in enumerate(_named(store, term, names)):
                root = scales.root(leaf.scale)
                if not root or id(leaf.atom) in around:
                    continue
                label, writes, reads = classes.setdefault(abs(root), (names[id(leaf.atom)], [], []))
                (writes if root > 0 else reads).append(Place(name, axis, at))
    found = []
    for root, (label, writes, reads) in classes.items():
        passes = scales.passes(root)
        if passes.linear:
            kind = GaugeKind.LINEAR
        elif passes.positive and passes.sign:
            kind = GaugeKind.SCALE
        else:
            kind = GaugeKind.POSITIVE if passes.positive else GaugeKind.SIGN
        if writes and reads:
            found.append(Gauge(group=label, kind=kind, writes=tuple(writes), reads=tuple(reads)))
    return tuple(found)
