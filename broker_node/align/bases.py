"""What scales leave open: signs of units, and bases inside of heads, in one choice for every model.

A gain and what reads it may both change sign, and a head's queries and keys (its values and
outputs) stand in any basis: M for the one and M⁻ᵀ for the other is the same function. Recipes carry
neither; but a copy that was disguised so is to be known, and units are to be matched whatever they
stand in. So models are compared in one choice of each (`settled`), and where that is not steady
under noise, by what no choice changes:

- a sign is that by which the sum of the cubes of what writes a unit is positive: odd in the sign,
  and blind to the order of units;
- a basis is that of the singular vectors of what both sides come to, W = Aᵀ B, each side with the
  roots of the singular values, largest first, signs as above;
- and the likeness of both sides is that of their W, ⟨AᵀB, CᵀD⟩ = Σ (A Cᵀ)∘(B Dᵀ).

A tensor may have a scale of its own that no unit's scale says (whatever enters a norm over all
units has one), so that likeness is Σ ⟨a, b⟩ / Σ ‖a‖ ‖b‖ over tensors, and not the cosine of
all of them in one line.

What is merged by products, without a recipe, is brought into the buyer's own bases (`turned`): from
the choice above by the rotation that brings both sides nearest to the buyer's (Schönemann 1966).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

from broker_node.align.gauge import balanced_scales
from node.params import blocks
from node.params.permutation import PermutationSpec, Tensors, rescale
from node.params.symmetry import Gauge, GaugeKind, Place, SymmetrySpec, Units

MAX_UNITS: Final = 256
"""In a head: singular vectors take of the order of the cube of it, in a thread that nothing can
stop. Wider ones stay in the basis in which they came."""
ROUNDS: Final = 4
"""Of scales and bases in turn: what one of them undoes, the next makes good."""
FLAT: Final = 1e-7
"""Of the largest singular value: below it a basis is not told from rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """A block of a tensor that a basis acts on."""

    block: torch.Tensor
    """A view of it, the units around first, then those of the basis, all else behind."""
    around: int
    """How many dimensions number the bases."""

    def lines_OUF(self) -> torch.Tensor:
        """Return bases x units x all else."""
        sizes = self.block.shape[: self.around]
        return self.block.reshape(math.prod(sizes), self.block.shape[self.around], -1)


def _sides(spec: SymmetrySpec, places: Iterable[Place], tensors: Tensors) -> Iterator[_Side]:
    for place in places:
        for dims, block in blocks.blocks(spec, place.tensor, tensors[place.tensor]):
            for at, dim in enumerate(dims):
                if (dim.axis, dim.leaf) == (place.axis, place.leaf):
                    first = [*blocks.around(spec, dims, at), at]
                    rest = [other for other in range(len(dims)) if other not in first]
                    yield _Side(block.permute(*first, *rest), len(first) - 1)


def _lines(spec: SymmetrySpec, places: Iterable[Place], tensors: Tensors) -> torch.Tensor:
    return torch.cat([side.lines_OUF() for side in _sides(spec, places, tensors)], dim=2)


def with_bases(spec: SymmetrySpec) -> list[Gauge]:
    """Return the gauges that any matrix is of, and that are small enough to be settled."""
    return [
        gauge
        for gauge in spec.gauges
        if gauge.kind is GaugeKind.LINEAR and spec.groups[gauge.group].size <= MAX_UNITS
    ]


def _signs(cubed_U: torch.Tensor) -> torch.Tensor:
    return torch.where(cubed_U < 0, -1.0, 1.0).to(cubed_U)


def balanced(
    plain: PermutationSpec, spec: SymmetrySpec, tensors: Tensors, *, signs: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the same function in canonical scales and bases, and the scales by rescaling of it.

    What is balanced depends on the bases of heads, and their singular vectors on what is balanced:
    both are had in turn. `signs`: whether these are settled, too.
    """
    scales = {
        name: torch.ones(plain.groups[own.group].size, dtype=torch.float64)
        for name, own in plain.rescalings.items()
    }
    found = dict(tensors)
    for _ in range(ROUNDS if with_bases(spec) else 1):
        found = settled(spec, found, signs=signs)
        step = balanced_scales(plain, found)
        found = rescale(plain, found, step)
        scales = {name: scales[name] * step[name] for name in scales}
    return settled(spec, found, signs=signs), scales


def settled(spec: SymmetrySpec, tensors: Tensors, *, signs: bool = True) -> dict[str, torch.Tensor]:
    """Return the same function with signs and bases as above; `tensors` are left as they are."""
    found = {name: tensor.clone(memory_format=torch.contiguous_format)
             for name, tensor in tensors.items()}  # fmt: skip
    for gauge in spec.gauges:
        if signs and gauge.kind in {GaugeKind.SCALE, GaugeKind.SIGN}:
            _settle_signs(spec, gauge, found)
    for gauge in with_bases(spec):
        _settle_basis(spec, gauge, found)
    return found


def _settle_signs(spec: SymmetrySpec, gauge: Gauge, tensors: dict[str, torch.Tensor]) -> None:
    plain = Units(gauge.group)
    places = (*gauge.writes, *gauge.reads)
    if any(spec.axes[place.tensor][place.axis] != plain for place in places):
        return
    size = spec.groups[gauge.group].size
    written = [tensors[place.tensor].movedim(place.axis, 0) for place in gauge.writes]
    signs_U = _signs(torch.cat([each.reshape(size, -1) for each in written], 1).pow(3).sum(1))
    for place in places:
        tensor = tensors[place.tensor]
        tensor *= signs_U.reshape([-1 if at == place.axis else 1 for at in range(tensor.ndim)])


@dataclass(frozen=True, slots=True, eq=False)
class _Basis:
    """Both sides of a gauge in the basis of their singular vectors, and the way there."""

    lines: tuple[torch.Tensor, torch.Tensor]
    """lines_OUF of what writes, and of what reads; fewer units than the group's at lower rank."""
    values_OU: torch.Tensor
    """Singular values, largest first."""
    back_OUU: torch.Tensor
    """From this basis to that in which what writes came, but for the roots of the values."""
    there_OUU: torch.Tensor
    """To this basis, likewise, from that in which what reads came; its inverse transposed."""


def _basis(spec: SymmetrySpec, gauge: Gauge, tensors: Tensors) -> _Basis | None:
    """Return the basis, or None of numbers so far apart that no singular vectors are found."""
    written, read = (_lines(spec, places, tensors) for places in (gauge.writes, gauge.reads))
    (q_OFU, r_OUU), (p_OFU, s_OUU) = (torch.linalg.qr(each.mT) for each in (written, read))
    try:
        left, values_OU, right = torch.linalg.svd(r_OUU @ s_OUU.mT, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    roots = values_OU.sqrt()[:, :, None]
    turned = roots * (q_OFU @ left).mT
    signs = _signs(turned.pow(3).sum(2))[:, :, None]
    return _Basis(
        lines=(turned * signs, roots * (p_OFU @ right.mT).mT * signs),
        values_OU=values_OU,
        back_OUU=r_OUU.mT @ left * signs.mT,
        there_OUU=signs * (right @ s_OUU),
    )


def _settle_basis(spec: SymmetrySpec, gauge: Gauge, tensors: dict[str, torch.Tensor]) -> None:
    basis = _basis(spec, gauge, tensors)
    if basis is None:
        return
    both = [list(_sides(spec, places, tensors)) for places in (gauge.writes, gauge.reads)]
    for sides, lines_OUF in zip(both, basis.lines, strict=True):
        lacking = spec.groups[gauge.group].size - lines_OUF.shape[1]
        whole = functional.pad(lines_OUF, (0, 0, 0, lacking))
        widths = [side.lines_OUF().shape[2] for side in sides]
        for side, own in zip(sides, torch.split(whole, widths, dim=2), strict=True):
            side.block.copy_(own.reshape(side.block.shape))


def turned(spec: SymmetrySpec, ours: Tensors, theirs: Tensors) -> dict[str, torch.Tensor]:
    """Return the same function as theirs, whose units are matched, in bases nearest to ours.

    A gauge with a head of a lower rank than units, to rounding, stays in its bases.
    """
    found = dict(theirs)
    for gauge in with_bases(spec):
        one, other = _basis(spec, gauge, ours), _basis(spec, gauge, found)
        shape = blocks.shape_of(spec, gauge.group)
        if one is None or other is None or any(_flat(s, shape[-1]) for s in (one, other)):
            continue
        writes_OUU, reads_OUU = (a @ b.mT for a, b in zip(one.lines, other.lines, strict=True))
        rotation_OUU = nearest_rotation(writes_OUU + reads_OUU)
        # what writes ours is back·S^-½ times its settled lines; what reads theirs, S^-½·there
        ours_OUU = one.back_OUU / one.values_OU.sqrt()[:, None, :]
        theirs_OUU = other.there_OUU / other.values_OU.sqrt()[:, :, None]
        change_OUU = ours_OUU @ rotation_OUU @ theirs_OUU
        found = blocks.change_basis(spec, found, gauge, change_OUU.reshape(*shape, shape[-1]))
    return found


def _flat(side: _Basis, units: int) -> bool:
    values_OU = side.values_OU
    return values_OU.shape[1] < units or bool((values_OU[:, -1] <= FLAT * values_OU[:, 0]).any())


def nearest_rotation(product_OUU: torch.Tensor) -> torch.Tensor:
    """Return the orthogonal Q of greatest ⟨product, Q⟩ (Schönemann 1966), of each of a batch."""
    left, _, right = torch.linalg.svd(product_OUU)
    rotation_OUU: torch.Tensor = left @ right
    return rotation_OUU


def likeness_of_weights(
    spec: SymmetrySpec, ours: Tensors, theirs: Tensors, *, skip: Collection[str] = ()
) -> float:
    """Return how alike two models' tensors but `skip` are, -1 … 1, units and scales matched."""
    total, most = 0.0, 0.0
    inside: set[tuple[str, int, int]] = set()
    for gauge in with_bases(spec):
        inside |= {(p.tensor, p.axis, p.leaf) for p in (*gauge.writes, *gauge.reads)}
        product, *norms = (
            _product(spec, gauge, one, other)
            for one, other in ((ours, theirs), (ours, ours), (theirs, theirs))
        )
        if min(norms) > 0:
            ours_norm, theirs_norm = (norm**0.5 for norm in norms)
            # of two tensors, in the unit of a product of weights
            weight = 2 * ours_norm**0.5 * theirs_norm**0.5
            total += weight * (product / ours_norm / theirs_norm)
            most += weight
    for name in spec.axes:
        if name in skip:
            continue
        sides = (blocks.blocks(spec, name, side[name]) for side in (ours, theirs))
        for (dims, a), (_, b) in zip(*sides, strict=True):
            if not any((name, dim.axis, dim.leaf) in inside for dim in dims):
                total += float((a * b).sum())
                most += float(a.norm() * b.norm())
    return total / most if most > 0 else 0.0


def _product(spec: SymmetrySpec, gauge: Gauge, one: Tensors, other: Tensors) -> float:
    """Return ⟨AᵀB, CᵀD⟩, summed over all bases."""
    a, b, c, d = (
        _lines(spec, places, tensors)
        for tensors in (one, other)
        for places in (gauge.writes, gauge.reads)
    )
    return float(((a @ c.mT) * (b @ d.mT)).sum())
