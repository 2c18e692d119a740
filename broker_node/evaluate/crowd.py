"""For each of M buyers, the best of N sellers, by probes that all of them share.

Every model is aligned once, to the universe, and answers the shared rows once. From there, for
each buyer:

1. A pair's promise is had without a forward pass: the seller's own loss, which is what buying
   outright (α = 1) comes to, and the loss of the mean of both models' answers at a few α, which
   stands for the merge. Half of the shortlist are the best by the one, half by the other.
2. The shortlist is probed: its merges at a few α on a few rows, all at once. What a merge costs
   on all shared rows is told from these by the difference to the mean of the answers, which is
   known on all of them (a control variate).
3. The finalists are searched: Brent's method between the neighbours of the best α, on all
   shared rows. Buying outright of the best model of all stands beside them, at no cost.
4. The best merge of all, if it beats the buyer's own model on those rows, is made by its recipe
   and confirmed on fresh rows, by the paired bound (`gain`). One merge a buyer is confirmed, on
   rows that chose nothing, so that the bound is not one of many.

`Crowd.row_evaluations` counts every forward pass of one row, alignment included: so many for each
model and so many for each buyer, none for a pair. The outcome is a function of the models, the
rows and the seed, whatever order the models are named in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import torch

from broker_node.align.stages import AlignmentError
from broker_node.align.universe import Universe
from broker_node.evaluate.curve import LossCurve, losses_of, row_losses
from broker_node.evaluate.gain import MAX_LOSS, Gain, paired_gain
from broker_node.evaluate.merges import MergeStack
from broker_node.evaluate.search import BRENT_TOLERANCE
from broker_node.evaluate.validation import ValidationSet, draw_rows, require_classes
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture
from node.params.families.base import TokenModel
from node.params.recipe import Recipe, interpolate
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import ONE, Digest, Millionths

PROMISING: Final = tuple(Millionths(k * ONE // 10) for k in (2, 5, 8))
"""Where the mean of two models' answers stands for their merge."""
PROBED: Final = tuple(Millionths(k * ONE // 20) for k in (1, 5, 10, 15, 19))
"""Where the shortlist is probed; 0 and 1 are known beforehand. Merges of models that never met
are often best just beside one of the two, with a barrier between."""
NOTHING: Final = Millionths(0)
ALL: Final = Millionths(ONE)
GOLDEN: Final = (3 - math.sqrt(5)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many rows each stage may use; where there are fewer, all of them.

    Raises `LocalProtocolError` for what is no budget.
    """

    promise_rows: int = 256
    """Of the answers of both, for a pair's promise: no forward pass, but N² of these."""
    shortlist: int = 4
    probe_rows: int = 96
    finalists: int = 2
    search_rows: int = 512
    """The shared rows: all models answer them once, and finalists are searched on them."""
    search_calls: int = 1
    """Of Brent's steps, after the best of the probed values and its neighbours."""
    confirm_rows: int = 640

    def __post_init__(self) -> None:
        counts = (self.promise_rows, self.probe_rows, self.finalists, self.search_calls)
        if min(counts) < 1 or self.confirm_rows < 2 or self.shortlist < self.finalists:
            raise LocalProtocolError(f"a stage without rows, or that takes in nobody: {self}")
        if self.search_rows < max(self.probe_rows, self.promise_rows):
            raise LocalProtocolError(f"fewer rows to search on than to probe: {self}")


class Verdict(StrEnum):
    """What came of a buyer."""

    CONFIRMED = "confirmed"
    """The gain's lower bound is above zero on fresh rows."""
    UNCONFIRMED = "unconfirmed"
    """Better on the rows of the search, but not surely so on fresh ones: no trade."""
    NO_GAIN = "no-gain"
    """No merge that was looked at beats the buyer's own model."""
    NO_SELLER = "no-seller"
    """Nobody else sells."""
    OVERFLOWS = "overflows"
    """The buyer's model, or every merge of it, has losses that are no sane number."""
    UNALIGNED = "unaligned"
    """The best seller's units cannot be carried into the buyer's scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best seller of one buyer."""

    buyer: Digest
    verdict: Verdict
    seller: Digest | None = None
    recipe: Recipe | None = field(default=None, repr=False)
    """What makes the merge out of both models, with its α."""
    gain: Gain | None = None
    """On the fresh rows, where it came to that."""
    tied: tuple[Digest, ...] = ()
    """Finalists of exactly the same loss; the lowest root is taken."""
    overflowed: tuple[Digest, ...] = ()
    """Sellers that were left out since their losses, or all their merges', are no sane number."""
    row_evaluations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """What came of all buyers, by root."""

    choices: tuple[Choice, ...]
    row_evaluations: int
    """Forward passes of one row: alignment, answers, probes, searches and confirmations."""
    batch: int
    """Merges that went through together, less than planned where memory ran out."""


@dataclass(frozen=True, slots=True)
class _Found:
    seller: int
    alpha: Millionths
    loss: float


def best_sellers(
    universe: Universe,
    architecture: Architecture,
    buyers: Iterable[Verified],
    sellers: Iterable[Verified],
    validation: ValidationSet,
    *,
    seed: Digest,
    budget: Budget | None = None,
    choice_rows: int | None = None,
    batch: int | None = None,
) -> Crowd:
    """Return the best seller of each buyer; a model does not buy of itself.

    Rows are drawn by the seed: `choice_rows`, half of all unless told otherwise, for probes
    and searches, and `budget.confirm_rows` of the rest. Raises `AlignmentError` for a model
    that is not in the universe, `LocalProtocolError` for one that is named twice on a side or
    where the rows do not suffice, are of one class (``one-class``), or of tokens.
    """
    if isinstance(architecture.model, TokenModel):
        raise LocalProtocolError("language models are tried pair by pair: answers are too many")
    require_classes(validation)
    budget = budget or Budget()
    named = [_by_root(side) for side in (buyers, sellers)]
    everybody = _by_root({model.weights_root: model for side in named for model in side}.values())
    if not everybody:
        raise LocalProtocolError("nobody buys and nobody sells")
    index = {model.weights_root: at for at, model in enumerate(everybody)}
    choice = choice_rows if choice_rows is not None else len(validation) // 2
    fresh = min(budget.confirm_rows, len(validation) - choice)
    drawn = draw_rows(seed, len(validation), choice=choice, score=fresh)
    chosen, confirming = (
        (validation.inputs_RF[indices_R], validation.targets_R[indices_R])
        for indices_R in (
            torch.from_numpy(drawn.choice[: budget.search_rows]),
            torch.from_numpy(drawn.score),
        )
    )
    standing = [universe.standing(model) for model in everybody]
    stack = MergeStack(architecture, standing, *chosen, batch=batch)
    outputs_NRO = stack.outputs(slice(0, len(stack))).double()
    alone = stack.row_evaluations
    own_NR = torch.stack([losses_of(outputs_RO, chosen[1]) for outputs_RO in outputs_NRO])
    race = _Race(
        architecture, universe, everybody, stack, outputs_NRO, own_NR, budget, chosen, confirming
    )
    offered = [index[model.weights_root] for model in named[1]]
    choices = tuple(race.run(index[model.weights_root], offered) for model in named[0])
    spent = alone + sum(choice.row_evaluations for choice in choices)
    return Crowd(
        choices=choices, row_evaluations=universe.row_evaluations + spent, batch=stack.batch
    )


def _by_root(models: Iterable[Verified]) -> list[Verified]:
    ordered = sorted(models, key=lambda model: model.weights_root)
    if len({model.weights_root for model in ordered}) != len(ordered):
        raise LocalProtocolError("a model is named twice")
    return ordered


@dataclass(frozen=True, slots=True)
class _Race:
    """What all buyers share."""

    architecture: Architecture
    universe: Universe
    models: Sequence[Verified]
    stack: MergeStack
    outputs_NRO: torch.Tensor
    """What each model answers by itself to the shared rows, float64."""
    own_NR: torch.Tensor
    """Its losses there."""
    budget: Budget
    chosen: tuple[torch.Tensor, torch.Tensor]
    confirming: tuple[torch.Tensor, torch.Tensor]

    def run(self, buyer: int, offered: Sequence[int]) -> Choice:
        """Return the choice of one buyer."""
        before = self.stack.row_evaluations
        others = [seller for seller in offered if seller != buyer]
        choice = Choice(buyer=self._root(buyer), verdict=Verdict.NO_SELLER)
        if not others:
            return choice
        sane = [seller for seller in others if _sane(self._alone(seller))]
        choice = replace(
            choice,
            verdict=Verdict.OVERFLOWS,
            overflowed=tuple(self._root(seller) for seller in others if seller not in sane),
        )
        if not _sane(self._alone(buyer)) or not sane:
            return choice
        probed = self._probe(buyer, self._shortlist(buyer, sane))
        finalists = sorted(probed, key=lambda one: (min(one.told.values()), one.seller))
        finalists = finalists[: self.budget.finalists]
        found = [one.search(self.budget.search_calls) for one in finalists]
        outright = min(sane, key=lambda seller: (self._alone(seller), seller))
        if all(one.seller != outright for one in finalists):
            found.append(_Found(outright, ALL, self._alone(outright)))
        spent = self.stack.row_evaluations - before
        spent += sum(one.curve.row_evaluations for one in finalists)
        best = min(found, key=lambda one: (one.loss, one.seller))
        choice = replace(
            choice,
            verdict=Verdict.NO_GAIN,
            seller=self._root(best.seller),
            tied=tuple(
                self._root(one.seller) for one in found if one.loss == best.loss and one != best
            ),
            row_evaluations=spent,
        )
        return self._confirmed(choice, buyer, best) if best.loss < self._alone(buyer) else choice

    def _root(self, model: int) -> Digest:
        return self.models[model].weights_root

    def _alone(self, model: int) -> float:
        """Return a model's own loss on the shared rows, which is that of its merges at 1."""
        return float(self.own_NR[model].mean())

    def _mixed(
        self, buyer: int, sellers: Sequence[int], alpha: Millionths, rows: int
    ) -> torch.Tensor:
        """Return losses_KR of the mean of both models' answers, weighted by α."""
        answers_NRO = self.outputs_NRO[:, :rows]
        mean_KRO = torch.lerp(answers_NRO[buyer], answers_NRO[list(sellers)], alpha / ONE)
        targets_R = self.chosen[1][:rows].repeat(len(sellers))
        return losses_of(mean_KRO.flatten(0, 1), targets_R).view(len(sellers), -1)

    def _shortlist(self, buyer: int, sellers: Sequence[int]) -> list[int]:
        """Return the most promising sellers, half by their own loss, half by both models'."""
        rows = self.budget.promise_rows
        mixed_K = torch.stack(
            [self._mixed(buyer, sellers, alpha, rows).mean(1) for alpha in PROMISING]
        ).amin(0)
        promise = dict(zip(sellers, mixed_K.tolist(), strict=True))
        listed = sorted(sellers, key=lambda seller: (self._alone(seller), seller))
        listed = listed[: math.ceil(self.budget.shortlist / 2)]
        rest = sorted({*sellers} - {*listed}, key=lambda seller: (promise[seller], seller))
        return listed + rest[: self.budget.shortlist - len(listed)]

    def _probe(self, buyer: int, sellers: Sequence[int]) -> list[_Probed]:
        """Return what the probes tell about the shortlist."""
        few = min(self.budget.probe_rows, len(self.stack))
        merges = [(seller, alpha) for seller in sellers for alpha in PROBED]
        losses = dict(zip(merges, self.stack.losses(buyer, merges, slice(0, few)), strict=True))
        mixed = {alpha: self._mixed(buyer, sellers, alpha, len(self.stack)) for alpha in PROBED}
        probed = []
        for at, seller in enumerate(sellers):
            base, other = (self.stack.tensors(model) for model in (buyer, seller))
            curve = LossCurve(self.architecture, base, other, *self.chosen)
            told = {}
            for alpha, model in ((NOTHING, buyer), (ALL, seller)):
                curve.know(alpha, self.own_NR[model])
                told[alpha] = self._alone(model)
            for alpha in PROBED:
                curve.know(alpha, losses[seller, alpha])
                told[alpha] = controlled(losses[seller, alpha], mixed[alpha][at])
            probed.append(_Probed(seller, curve, told))
        return probed

    def _confirmed(self, choice: Choice, buyer: int, best: _Found) -> Choice:
        """Return the choice with the gain on fresh rows of the merge that its recipe makes."""
        ours, theirs = self.models[buyer], self.models[best.seller]
        try:
            aligned = self.universe.pair(ours, theirs)
            recipe = aligned.exact_recipe.with_alpha(best.alpha)
        except AlignmentError:
            return replace(choice, verdict=Verdict.UNALIGNED)
        merged = interpolate(ours.tensors, aligned.transformed, best.alpha)
        losses = [
            row_losses(self.architecture, tensors, *self.confirming)
            for tensors in (ours.tensors, merged)
        ]
        spent = choice.row_evaluations + sum(len(losses_R) for losses_R in losses)
        try:
            gain = paired_gain(*losses)
        except RemoteProtocolError:
            return replace(choice, verdict=Verdict.OVERFLOWS, row_evaluations=spent)
        sure = Verdict.CONFIRMED if gain.bound > 0 else Verdict.UNCONFIRMED
        return replace(choice, verdict=sure, recipe=recipe, gain=gain, row_evaluations=spent)


@dataclass(frozen=True, slots=True)
class _Probed:
    """A seller of the shortlist."""

    seller: int
    curve: LossCurve
    told: dict[Millionths, float]
    """What each α seems to come to on all shared rows; inf where it overflows."""

    def search(self, calls: int) -> _Found:
        """Return the best α: Brent's steps between the neighbours of the best that was probed."""
        rows = len(self.curve)
        alphas = sorted(self.told)
        centre = alphas.index(min(alphas, key=lambda alpha: (self.told[alpha], alpha)))
        near = alphas[max(0, centre - 1) : centre + 2]
        known = {alpha: self.curve.loss(alpha, rows) for alpha in near}
        for _ in range(calls):
            alpha = brent_step(known)
            known[alpha] = self.curve.loss(alpha, rows)
        known[ALL] = self.curve.loss(ALL, rows)
        known.pop(NOTHING, None)
        best = min(known, key=lambda alpha: (known[alpha], alpha))
        return _Found(self.seller, best, known[best])


def controlled(few_R: torch.Tensor, like_R: torch.Tensor) -> float:
    """Return the mean over all rows, by the first few and by `like_R`, which is known on all.

    A control variate: what the few say of the difference, with the share of `like_R`, 0 … 1,
    that leaves the least variance. inf where it overflows.
    """
    beside_R = like_R[: len(few_R)]
    deviations_R = beside_R - beside_R.mean()
    spread = float(deviations_R.square().sum())
    share = float((deviations_R * few_R).sum()) / spread if spread > 0 else 0.0
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    mean = float(few_R.mean())
    moved = share * (float(like_R.mean()) - float(beside_R.mean())) if share > 0 else 0.0
    return mean + moved if math.isfinite(mean + moved) else math.inf


def brent_step(known: Mapping[Millionths, float]) -> Millionths:
    """Return where to look next, from two or more values of α and their losses.

    The bottom of the parabola through the lowest and its neighbours, where there is one that is
    not known yet; else the golden section of the wider side (Brent 1973, chapter 5).
    """
    alphas = sorted(known)
    middle = alphas.index(min(alphas, key=lambda alpha: (known[alpha], alpha)))
    left, best, right = (
        alphas[max(0, middle - 1)],
        alphas[middle],
        alphas[min(middle + 1, len(alphas) - 1)],
    )
    if left < best < right:
        rise, fall = (
            (known[right] - known[best]) / (right - best),
            (known[left] - known[best]) / (best - left),
        )
        bend = rise + fall
        if math.isfinite(bend) and bend > 0:
            bottom = best + (fall * (right - best) - rise * (best - left)) / (2 * bend)
            alpha = Millionths(round(bottom))
            if abs(alpha - best) >= BRENT_TOLERANCE * ONE and left < alpha < right:
                return alpha
    wider = left if best - left > right - best else right
    return Millionths(round(best + GOLDEN * (wider - best)))


def _sane(loss: float) -> bool:
    return math.isfinite(loss) and loss <= MAX_LOSS
