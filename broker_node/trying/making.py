"""Models made by every method, from the rows that choose alone.

A method that cannot be had here (no rows of some kind, no common ancestor, an alignment that
does not preserve the function) is kept with its reason; it stops no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker_node.align.partial import NAME as PARTIAL
from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import ON_CPU, Runner
from broker_node.evaluate.gain import Gain
from broker_node.evaluate.methods import Method
from broker_node.trying.methods import (
    CHAIN,
    LERP,
    OUTRIGHT,
    Merger,
    Product,
    Rows,
    align,
    best_alpha,
    curve_of,
    recipe_of,
)
from broker_node.trying.reading import admitted
from broker_node.trying.scoring import Score, score
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture
from node.params.encoding import weights_root
from node.params.merges import merge_bought
from node.params.permutation import Tensors
from node.params.recipe import Recipe, interpolate
from node.protocol.errors import MarketError
from node.protocol.types import ONE, Digest, Millionths

REPLICA: Final = 1e-4
"""‖A − T(B)‖ / ‖A‖ under which B is A renumbered: float32 rounding of scales leaves about 1e-6,
models that were trained apart have more than 0.5."""
ONE_SELLER: Final = "several-sellers"
"""The reason of a method that takes one seller at a time: nothing to tell a user."""


@dataclass(frozen=True, slots=True)
class Step:
    """One merge of a sold model, by its place among the sellers."""

    seller: int
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One method on one seller, or on several."""

    sellers: tuple[int, ...]
    align: str
    merge: str
    refused: str = ""
    """Why there is no model; the fields below are then empty."""
    tensors: Tensors | None = field(default=None, repr=False)
    steps: tuple[Step, ...] | None = None
    """What makes `tensors` of the buyer's and the sold models, to the byte; None if no recipe."""
    alpha: Millionths | None = None
    """The share that is not the buyer's; None where no single share says it."""
    choice_loss: float = float("inf")
    score: Score | None = None
    gain: Gain | None = None
    row_evaluations: int = 0


def share_of(recipes: Sequence[Recipe]) -> Millionths:
    """Return 1 − Π(1 − α) of merges one after another, rounded up; α itself for a single one."""
    kept = ONE
    for recipe in recipes:
        kept = kept * (ONE - recipe.alpha) // ONE
    return Millionths(ONE - kept)


class Maker:
    """Aligns and merges on the choice half; refusals of methods are kept beside their names."""

    def __init__(
        self,
        buyer: Verified,
        sellers: Sequence[Verified],
        choice: Rows,
        *,
        seed: int,
        aligners: Sequence[str],
        mergers: dict[str, Merger],
        usual: Sequence[Method | None],
        runner: Runner = ON_CPU,
    ) -> None:
        """`runner`: what measures curves and models; merges of the registry are the CPU's."""
        self.buyer, self.sellers, self.choice = buyer, sellers, choice
        self.runner = runner
        self.seed, self.aligners, self.mergers = seed, aligners, mergers
        self.usual = usual
        """By seller: what is measured and listed whatever else is, and whatever it equals."""
        self.replicas: dict[int, float] = {}
        self.repeated: dict[int, int] = {}
        self.independent: list[int] = []
        self.candidates: list[Candidate] = []
        self.lines: list[tuple[int, str, Aligned, Millionths]] = []
        self.pairs: dict[int, list[tuple[float, Aligned]]] = {}
        """By seller: its alignments with the loss at their α, best first."""
        self._made: set[tuple[tuple[int, ...], Digest]] = set()

    def run(self) -> None:
        """Go through all methods, seller by seller, and then all sellers together."""
        roots = [seller.weights_root for seller in self.sellers]
        for place, seller in enumerate(self.sellers):
            if roots.index(seller.weights_root) < place:
                self.repeated[place] = roots.index(seller.weights_root)
                continue
            residual = self._residual(seller)
            if residual < REPLICA:
                self.replicas[place] = residual
                continue
            self.independent.append(place)
            for name in self._aligners(seller):
                self._line(place, seller, name)
            self._others((place,))
            self._default(place)
        together = tuple(place for place in self.independent if place in self.pairs)
        if len(together) > 1:
            self._others(together)
            if LERP in self.mergers:
                self._chain(together)

    def _others(self, places: tuple[int, ...]) -> None:
        """Merge by all methods but the straight line, each seller lined up as served it best.

        Where that changes what a seller's model computes, those that keep it are tried too; to
        buy outright, they alone.
        """
        if not all(place in self.pairs for place in places):
            return
        best = [self.pairs[place][0][1] for place in places]
        exact = [
            next((each for _, each in self.pairs[place] if recipe_of(each) is not None), None)
            for place in places
        ]
        kept = [each for each in exact if each is not None]
        for merge in self.mergers:
            if merge == LERP or (merge == OUTRIGHT and len(places) > 1):
                continue
            if merge != OUTRIGHT or len(kept) < len(places):
                self._merged(places, best, merge)
            if len(kept) == len(places) and (merge == OUTRIGHT or kept != best):
                self._merged(places, kept, merge)

    def _default(self, place: int) -> None:
        """Merge one seller as a market's broker would, unless that was done or is left out."""
        usual = self.usual[place]
        if usual is None or usual.merging not in self.mergers:
            return
        if any(is_usual(each, self.usual) for each in self.candidates if place in each.sellers):
            return
        for _, aligned in self.pairs.get(place, []):
            if aligned.method == usual.alignment:
                self._merged((place,), [aligned], usual.merging)

    def _aligners(self, seller: Verified) -> Sequence[str]:
        """Return the alignments for a seller: one of other widths has its own, and no other.

        None where nothing is to be merged.
        """
        if not self.mergers:
            return ()
        if seller.architecture != self.buyer.architecture:
            return [PARTIAL] if PARTIAL in self.aligners else self.aligners
        return [name for name in self.aligners if name != PARTIAL] or self.aligners

    def _residual(self, seller: Verified) -> float:
        """Return how far a seller's model is from the buyer's once it is lined up with it."""
        if seller.weights_root == self.buyer.weights_root:
            return 0.0
        least = float("inf")
        alike = seller.architecture == self.buyer.architecture
        for name in ("identity", "weight-matching") if alike else (PARTIAL,):
            try:
                found = self._align(name, self.buyer, seller)
            except MarketError:
                continue
            least = min(least, distance(self.buyer.tensors, found.transformed))
        return least

    def _align(self, name: str, buyer: Verified, seller: Verified) -> Aligned:
        rows_RF = self.choice.inputs_RF
        return align(name, buyer, seller, rows_RF, seed=self.seed, runner=self.runner)

    def _line(self, place: int, seller: Verified, name: str) -> None:
        """Line one seller up by one method, and merge along the straight line."""
        try:
            aligned = self._align(name, self.buyer, seller)
            curve = curve_of(self.buyer, aligned.transformed, self.choice, runner=self.runner)
            alpha = best_alpha(curve)
        except MarketError as error:
            self.candidates.append(refused((place,), name, LERP, error))
            return
        loss = curve.loss(alpha, len(curve))
        self.lines.append((place, name, aligned, alpha))
        held = self.pairs.setdefault(place, [])
        held.append((loss, aligned))
        held.sort(key=lambda each: each[0])
        if LERP in self.mergers:
            recipe = recipe_of(aligned)
            self._keep(
                Candidate(
                    sellers=(place,),
                    align=name,
                    merge=LERP,
                    tensors=interpolate(self.buyer.tensors, aligned.transformed, alpha),
                    steps=None if recipe is None else (Step(place, recipe.with_alpha(alpha)),),
                    alpha=alpha,
                    choice_loss=loss,
                    row_evaluations=curve.row_evaluations,
                )
            )

    def _merged(self, places: tuple[int, ...], aligned: Sequence[Aligned], merge: str) -> None:
        names = "+".join(dict.fromkeys(each.method for each in aligned))
        try:
            found = self.mergers[merge](aligned, self.choice)
        except MarketError as error:
            if len(places) == 1 or getattr(error, "reason", "") != ONE_SELLER:
                self.candidates.append(refused(places, names, merge, error))
            return
        if found.tensors is not None:
            self._keep(self._candidate(places, names, merge, found))

    def _keep(self, candidate: Candidate) -> None:
        """Keep a candidate, unless a method before it made the same model of the same sellers.

        What a broker would do is kept beside its equal, so that it can be told by its name.
        """
        assert candidate.tensors is not None
        made = candidate.sellers, weights_root(dict(candidate.tensors))
        if made not in self._made or is_usual(candidate, self.usual):
            self._made.add(made)
            self.candidates.append(candidate)

    def _candidate(
        self, places: tuple[int, ...], names: str, merge: str, found: Product
    ) -> Candidate:
        assert found.tensors is not None
        steps = None
        if found.recipe is not None and len(places) == 1:
            steps = (Step(places[0], found.recipe),)
        return Candidate(
            sellers=places,
            align=names,
            merge=merge,
            tensors=found.tensors,
            steps=steps,
            alpha=None if steps is None else share_of([step.recipe for step in steps]),
            choice_loss=score(
                self.buyer.architecture, found.tensors, self.choice, runner=self.runner
            ).loss,
            row_evaluations=found.row_evaluations + len(self.choice.targets_R),
        )

    def _chain(self, places: tuple[int, ...]) -> None:
        """Merge the sellers one after another, best first, each where it lowers the loss."""
        order = sorted(places, key=lambda place: (self.pairs[place][0][0], place))
        names = "+".join(dict.fromkeys(self.pairs[place][0][1].method for place in order))
        current, loss, kept, evaluated = self.buyer, float("inf"), ONE, 0
        steps: list[Step] | None = []
        used = []
        try:
            for place in order:
                method = self.pairs[place][0][1].method
                aligned = self._align(method, current, self.sellers[place])
                curve = curve_of(current, aligned.transformed, self.choice, runner=self.runner)
                alpha = best_alpha(curve)
                evaluated += curve.row_evaluations
                recipe, loss = recipe_of(aligned), curve.loss(alpha, len(curve))
                if alpha == 0:
                    continue
                used.append(place)
                kept = kept * (ONE - alpha) // ONE
                steps = (
                    None
                    if steps is None or recipe is None
                    else [*steps, Step(place, recipe.with_alpha(alpha))]
                )
                merged = interpolate(current.tensors, aligned.transformed, alpha)
                current = admitted(current.architecture, merged)
        except MarketError as error:
            self.candidates.append(refused(places, names, CHAIN, error))
            return
        if len(used) > 1:
            self._keep(
                Candidate(
                    sellers=tuple(used),
                    align=names,
                    merge=CHAIN,
                    tensors=current.tensors,
                    steps=None if steps is None else tuple(steps),
                    alpha=Millionths(ONE - kept),
                    choice_loss=loss,
                    row_evaluations=evaluated,
                )
            )


def is_usual(candidate: Candidate, usual: Sequence[Method | None]) -> bool:
    """Return whether a candidate is what a broker would do of its one seller (`usual` by place)."""
    if len(candidate.sellers) != 1:
        return False
    done = usual[candidate.sellers[0]]
    return done is not None and (candidate.align, candidate.merge) == (done.alignment, done.merging)


def made_by(
    buyer: Verified, sold: Mapping[int, Verified], steps: Sequence[Step]
) -> tuple[Architecture, Tensors]:
    """Return what recipes make of the buyer's weights, one after another, and of what that is.

    Raises as `merge_bought`.
    """
    made: tuple[Architecture, Tensors] = (buyer.architecture, buyer.tensors)
    for step in steps:
        seller = sold[step.seller]
        made = merge_bought(made, (seller.architecture, seller.tensors), step.recipe)
    return made


def refused(places: tuple[int, ...], name: str, merge: str, error: MarketError) -> Candidate:
    return Candidate(
        sellers=places, align=name, merge=merge, refused=" ".join(str(error).split())[:200]
    )


def distance(ours: Tensors, theirs: Tensors) -> float:
    """Return ‖ours − theirs‖ / ‖ours‖ over all tensors, in float64."""
    apart = sum(float((ours[n].double() - theirs[n].double()).square().sum()) for n in ours)
    whole = sum(float(tensor.double().square().sum()) for tensor in ours.values())
    return float((apart / whole) ** 0.5) if whole > 0 else float("inf")
