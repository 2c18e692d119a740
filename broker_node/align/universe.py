"""One numbering for all models of an architecture: each is aligned once, to the universe.

A model's alignment is its place in the universe: which of its units is universe unit u, and by
what it comes to its canonical scales. The recipe of any pair is the composition of two places,
so that N models need N alignments, not N², and recipes agree with one another: what goes from A
to B and on to C is numbered as if it had gone from A to C.

A model comes in by the correlation of its units' values with the mean of those already in, and
from there by weight matching to the mean of the others' weights. `settle` goes over all models
again, each against the mean of the others (Ainsworth, Hayase and Srinivasa 2022, Algorithm 3,
begun at activations). All of it is linear in the number of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from broker_node.align.activation_matching import match_values
from broker_node.align.carrying import canonical, carried
from broker_node.align.matching import improve_units, sweeps_of
from broker_node.align.preservation import require_same_architecture
from broker_node.align.probing import all_standardised, probe_rows, unit_values
from broker_node.align.stages import Aligned, AlignmentError, ArchitectureMismatchError
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, layout, permutation_spec
from node.params.permutation import permute, rescale, restrict
from node.protocol.types import Digest

NAME: Final = "universe"
PASSES: Final = 3
"""Over all models, in `settle`; a pass in which no unit finds a better place is the last."""


@dataclass(slots=True, eq=False)
class _Place:
    """A model in the universe."""

    tensors: Mapping[str, torch.Tensor]
    """What of it the universe is about, as it came."""
    scales: Mapping[str, torch.Tensor]
    """Into its balanced gauge, by its own units."""
    permutations: dict[str, torch.Tensor]
    """By group: universe unit u is its own unit ``perm_U[u]``."""
    settled_at: int = -1
    """After how many changes of the universe it found no better place: before another, none is."""


class Universe:
    """Models of one architecture, or the same layers of them, in one numbering of units."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        probe_RF: torch.Tensor | None,
        seed: int,
        layers: tuple[int, ...] = (),
    ) -> None:
        """`layers` are those whose tensors are aligned; empty means all.

        Raises `AlignmentError` without usable rows, `ArchitectureError` for such layers.
        """
        self._architecture = architecture
        self._rows_RF = probe_rows(architecture, probe_RF, NAME)
        self._seed = seed
        names = [tensor.name for tensor in layout(architecture, layers)]
        self._spec = restrict(permutation_spec(architecture), names)
        self._places: dict[Digest, _Place] = {}
        self._weights: dict[str, torch.Tensor] = {}
        """The sum of all canonical tensors, in the universe's numbering."""
        self._values: dict[str, torch.Tensor] = {}
        """Likewise of all standardised values_RU on the rows."""
        self._changes = 0
        """How often `_weights` became others."""

    @classmethod
    def of(
        cls,
        models: Iterable[Verified],
        *,
        probe_RF: torch.Tensor | None,
        seed: int,
        layers: tuple[int, ...] = (),
        passes: int = PASSES,
    ) -> Universe:
        """Return the universe of one or more models, whatever order they are named in."""
        ordered = sorted(models, key=lambda model: model.weights_root)
        if not ordered:
            raise AlignmentError("a universe of no models")
        universe = cls(ordered[0].architecture, probe_RF=probe_RF, seed=seed, layers=layers)
        for model in ordered:
            universe.add(model)
        universe.settle(passes)
        return universe

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, model: Verified) -> bool:
        return model.weights_root in self._places

    @torch.inference_mode()
    def add(self, model: Verified) -> None:
        """Align one more model; those that are in stay as they are. Safe to repeat.

        Raises `ArchitectureMismatchError` for a model of another architecture, or without the
        universe's layers, and `AlignmentError` for one whose values overflow.
        """
        self._require_alike(model)
        if model in self:
            return
        own = {name: model.tensors[name] for name in self._spec.axes}
        values = all_standardised(unit_values(self._architecture, self._spec, own, self._rows_RF))
        found = canonical(self._spec, own)
        permutations = {name: torch.arange(group.size) for name, group in self._spec.groups.items()}
        if self._places:
            mean = {name: total / len(self) for name, total in self._weights.items()}
            by_value = match_values(self._spec, self._values, values, (mean, found.tensors))
            permutations = self._improved(mean, found.tensors, by_value)
        self._places[model.weights_root] = _Place(own, found.scales, permutations)
        self._weights = _sum(self._weights, self._placed(found.tensors, permutations))
        moved = {group: values[group][:, perm_U] for group, perm_U in permutations.items()}
        self._values = _sum(self._values, moved)
        self._changes += 1

    @torch.inference_mode()
    def settle(self, passes: int = PASSES) -> None:
        """Match every model to the mean of the others, in the order they came, so many times.

        Recipes of earlier pairs stay right; later ones are of the new places.
        """
        if len(self) < 2:
            return
        for _ in range(passes):
            moved = False
            for place in self._places.values():
                if place.settled_at == self._changes:
                    continue
                own = rescale(self._spec, _double(place.tensors), place.scales)
                placed = self._placed(own, place.permutations)
                mean = {
                    name: (total - placed[name]) / (len(self) - 1)
                    for name, total in self._weights.items()
                }
                better = self._improved(mean, own, place.permutations)
                if _same(better, place.permutations):
                    place.settled_at = self._changes
                    continue
                moved = True
                again = self._placed(own, better)
                self._weights = {
                    name: total - placed[name] + again[name]
                    for name, total in self._weights.items()
                }
                place.permutations = better
                self._changes += 1
            if not moved:
                break

    @property
    def row_evaluations(self) -> int:
        """Forward passes of one row that all models took to come in."""
        return len(self) * len(self._rows_RF)

    @torch.inference_mode()
    def standing(self, model: Verified) -> dict[str, torch.Tensor]:
        """Return a whole model in the universe's numbering and its balanced gauge, in float32.

        The same function as the model's own. What two of these come to at α is, to rounding,
        what their pair's recipe comes to, so that M buyers and N sellers need no M·N recipes.
        Raises `AlignmentError` for a model that was not added, or a universe of some layers.
        """
        place = self._place(model)
        if set(place.tensors) != {tensor.name for tensor in layout(self._architecture)}:
            raise AlignmentError("models stand whole in a universe of all layers alone")
        own = rescale(self._spec, _double(place.tensors), place.scales)
        return {
            name: tensor.float() for name, tensor in self._placed(own, place.permutations).items()
        }

    def pair(self, buyer: Verified, seller: Verified, *, method: str = NAME) -> Aligned:
        """Return the pair by composition of the two places; nothing is matched.

        Raises `AlignmentError` for a model that was not added.
        """
        require_same_architecture(buyer, seller)
        ours, theirs = (self._place(model) for model in (buyer, seller))
        if set(seller.tensors) != set(self._spec.axes):
            raise AlignmentError("the universe is not of the layers that are sold")
        permutations = {}
        for group, ours_U in ours.permutations.items():
            composed_U = torch.empty_like(ours_U)
            composed_U[ours_U] = theirs.permutations[group]
            permutations[group] = composed_U.tolist()
        return carried(
            buyer,
            seller,
            permutations=permutations,
            scales=(ours.scales, theirs.scales),
            method=method,
            seed=self._seed,
        )

    def _require_alike(self, model: Verified) -> None:
        if model.architecture != self._architecture:
            raise ArchitectureMismatchError(
                f"{model.architecture.text[:100]}, in a universe of {self._architecture.text[:100]}"
            )
        missing = [name for name in self._spec.axes if name not in model.tensors]
        if missing:
            raise ArchitectureMismatchError(f"the model comes without {missing[0]}")

    def _place(self, model: Verified) -> _Place:
        if model not in self:
            raise AlignmentError(f"{model.weights_root.hex()} is not in the universe")
        return self._places[model.weights_root]

    def _placed(
        self, tensors: Mapping[str, torch.Tensor], permutations: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        listed = {group: perm_U.tolist() for group, perm_U in permutations.items()}
        return permute(self._spec, tensors, listed)

    def _improved(
        self,
        mean: Mapping[str, torch.Tensor],
        own: Mapping[str, torch.Tensor],
        start: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        return improve_units(
            self._spec, mean, own, start, seed=self._seed, sweeps=sweeps_of(self._spec)
        )


def _double(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu().double() for name, tensor in tensors.items()}


def _sum(
    totals: Mapping[str, torch.Tensor], more: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {name: totals[name] + one if totals else one for name, one in more.items()}


def _same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(perm_U, right[group]) for group, perm_U in left.items())


def universe(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,
) -> Aligned:
    """Return the pair as it stands in the universe of these two models.

    Whoever holds more models makes one `Universe` of them all instead. Raises
    `ArchitectureMismatchError`, and `AlignmentError` without usable rows, for layers that are
    not sold from the input on, or if the result is another function.
    """
    require_same_architecture(buyer, seller)
    both = Universe.of((buyer, seller), probe_RF=probe_RF, seed=seed, layers=seller.layers)
    return both.pair(buyer, seller)
