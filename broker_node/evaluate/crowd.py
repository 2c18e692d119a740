"""For each of M buyers, the best of N sellers, by probes that all of them share.

Every model is aligned once, to the universe, and answers the shared rows once. From there:

1. A pair's promise is had without a forward pass: the seller's own loss, which is what buying
   outright (α = 1) comes to, and the loss of the mean of both models' answers at a few α, which
   stands for the merge. Half of a buyer's shortlist are the best by the one, half by the other.
2. Pairs on a shortlist are probed: their merges at a few α on a few rows. In the universe what A
   makes of B at α is what B makes of A at 1 − α, so that a pair is probed once for both, and who
   is on many shortlists knows of many. What a merge costs on all shared rows is told by what it
   differs, on the few, from the mean of the answers, which is known on all (`answers`).
3. Each buyer searches: a few times the merge that seems lowest of all is measured on more rows.
   Buying outright stands beside these, at no cost.
4. The best merge of all, if it beats the buyer's own model on those rows, is made by its recipe
   and confirmed on fresh rows, by the paired bound (`gain`). One merge a buyer is confirmed, on
   rows that chose nothing, so that the bound is not one of many.

`Crowd.row_evaluations` counts every forward pass of one row, alignment included: so many for each
model and so many for each buyer, at most, none for a pair. The outcome is a function of the
models, the rows and the seed, whatever order the models are named in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple

import torch

from broker_node.align.stages import AlignmentError
from broker_node.align.universe import Universe
from broker_node.evaluate.answers import ALL, Answers, Line
from broker_node.evaluate.curve import ON_CPU, Between, LossCurve, Runner
from broker_node.evaluate.gain import MAX_LOSS, Gain, paired_gain
from broker_node.evaluate.merges import MergeStack
from broker_node.evaluate.validation import ValidationSet, draw_rows, require_classes
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture
from node.params.families.base import TokenModel
from node.params.recipe import Recipe
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import ONE, Digest, Millionths

PROMISING: Final = tuple(Millionths(k * ONE // 10) for k in (2, 5, 8))
"""Where the mean of two models' answers stands for their merge."""
PROBED: Final = tuple(Millionths(k * ONE // 20) for k in (1, 5, 10, 15, 19))
"""Where the shortlist is probed; 0 and 1 are known beforehand. Merges of models that never met
are often best just beside one of the two, with a barrier between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many rows each stage may use; where there are fewer, all of them.

    Raises `LocalProtocolError` for what is no budget.
    """

    answer_rows: int = 2_500
    """The shared rows: all models answer them once."""
    promise_rows: int = 256
    """Of these, for the promise of every pair: no forward pass, but N² of them."""
    promising: int = 8
    """Sellers whose promise to a buyer is then taken on all shared rows."""
    shortlist: int = 4
    probe_rows: int = 80
    search_rows: int = 500
    """Of the shared rows, for each merge that the search measures."""
    search_calls: int = 4
    """Merges that a buyer measures in its search, at most."""
    confirm_rows: int = 640

    def __post_init__(self) -> None:
        counts = (self.promise_rows, self.probe_rows, self.shortlist, self.search_calls)
        if min(counts) < 1 or self.confirm_rows < 2 or self.promising < self.shortlist:
            raise LocalProtocolError(f"a stage without rows, or that takes in too few: {self}")
        if not max(self.probe_rows, self.promise_rows) <= self.answer_rows:
            raise LocalProtocolError(f"fewer rows that all answer than are looked at: {self}")
        if not self.probe_rows <= self.search_rows <= self.answer_rows:
            raise LocalProtocolError(f"a search on fewer rows than probes, or than all: {self}")


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
    """The buyer's model, every seller's, or the merge has losses that are no sane number."""
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
    """Sellers of exactly the same loss; the lowest root is taken."""
    overflowed: tuple[Digest, ...] = ()
    """Sellers that were left out since their losses are no sane number."""
    row_evaluations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """What came of all buyers, by root."""

    choices: tuple[Choice, ...]
    row_evaluations: int
    """Forward passes of one row: alignment, answers, probes, searches and confirmations."""
    batch: int
    """Merges that went through together, less than planned where memory ran out."""
    fallbacks: tuple[str, ...] = ()
    """What could not be computed as it was meant to be, and what was done instead."""


class _Found(NamedTuple):
    """In the order in which the lowest is taken."""

    loss: float
    seller: int
    alpha: Millionths


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
    runner: Runner = ON_CPU,
) -> Crowd:
    """Return the best seller of each buyer; a model does not buy of itself.

    Rows are drawn by the seed: `choice_rows`, half of all unless told otherwise, for probes
    and searches, and `budget.confirm_rows` of the rest. Raises `AlignmentError` for a model
    that is not in the universe, `LocalProtocolError` for one that is named twice on a side,
    where the rows do not suffice, are of one class (``one-class``), or of tokens, and
    ``out-of-memory`` where there is no room for a single merge.

    `runner`: what runs models. On a device all of them lie there, or none.
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
            torch.from_numpy(drawn.choice[: budget.answer_rows]),
            torch.from_numpy(drawn.score),
        )
    )
    standing = [universe.standing(model) for model in everybody]
    stack = runner.elsewhere(
        "the stack of all models",
        lambda place: MergeStack(architecture, standing, *chosen, batch=batch, device=place.device),
        lambda: MergeStack(architecture, standing, *chosen, batch=batch),
    )
    answers = Answers(stack.outputs(slice(0, len(stack))), chosen[1])
    alone = stack.row_evaluations
    race = _Race(
        architecture, universe, everybody, stack, answers, budget, chosen, confirming, runner
    )
    offered = [index[model.weights_root] for model in named[1]]
    choices = race.run([index[model.weights_root] for model in named[0]], offered)
    spent = alone + sum(choice.row_evaluations for choice in choices)
    return Crowd(
        choices=choices,
        row_evaluations=universe.row_evaluations + spent,
        batch=stack.batch,
        fallbacks=(*stack.fallbacks, *runner.fallbacks()),
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
    answers: Answers
    """Of each model by itself to the shared rows."""
    budget: Budget
    chosen: tuple[torch.Tensor, torch.Tensor]
    confirming: tuple[torch.Tensor, torch.Tensor]
    runner: Runner
    lines: dict[frozenset[int], Line] = field(default_factory=dict)
    """Of the pairs that were probed, whoever asked."""

    def run(self, buyers: Sequence[int], offered: Sequence[int]) -> tuple[Choice, ...]:
        """Return the choices of all buyers; all probe before the first of them searches."""
        choices = [self._probed(buyer, offered) for buyer in buyers]
        return tuple(
            self._searched(buyer, offered, choice)
            for buyer, choice in zip(buyers, choices, strict=True)
        )

    def _root(self, model: int) -> Digest:
        return self.models[model].weights_root

    def _sane(self, model: int) -> bool:
        return _sane(self.answers.alone(model))

    def _probed(self, buyer: int, offered: Sequence[int]) -> Choice:
        """Return how it stands with a buyer after its probes."""
        others = [seller for seller in offered if seller != buyer]
        overflowed = [seller for seller in others if not self._sane(seller)]
        spent = 0
        if self._sane(buyer) and len(overflowed) < len(others):
            spent = self._probe(buyer, self._shortlist(buyer, sorted({*others} - {*overflowed})))
        return Choice(
            buyer=self._root(buyer),
            verdict=Verdict.OVERFLOWS if others else Verdict.NO_SELLER,
            overflowed=tuple(map(self._root, overflowed)),
            row_evaluations=spent,
        )

    def _shortlist(self, buyer: int, sellers: Sequence[int]) -> list[int]:
        """Return the most promising sellers, half by their own loss, half by both models'."""
        listed = sorted(sellers, key=lambda seller: (self.answers.alone(seller), seller))
        listed = listed[: math.ceil(self.budget.shortlist / 2)]
        rest = sorted({*sellers} - {*listed})
        sieves = (
            (self.budget.promise_rows, self.budget.promising),
            (len(self.answers), self.budget.shortlist - len(listed)),
        )
        for rows, taken in sieves:
            if len(rest) > taken:
                promise_K = self.answers.promise(buyer, rest, PROMISING, rows).amin(0)
                rest = [seller for _, seller in sorted(zip(promise_K.tolist(), rest, strict=True))]
                rest = rest[:taken]
        return listed + rest

    def _probe(self, buyer: int, sellers: Sequence[int]) -> int:
        """Probe the pairs that nobody has, all at once; return how many rows that took."""
        lacking = [one for one in sellers if frozenset((buyer, one)) not in self.lines]
        if not lacking:
            return 0
        few = min(self.budget.probe_rows, len(self.stack))
        merges = [(seller, alpha) for seller in lacking for alpha in PROBED]
        losses_KR = self.stack.losses(buyer, merges, slice(0, few))
        for seller in lacking:
            base, other = (self.stack.tensors(model) for model in (buyer, seller))
            curve = LossCurve(self.architecture, base, other, *self.chosen, runner=self.runner)
            self.lines[frozenset((buyer, seller))] = Line(self.answers, (buyer, seller), curve)
        for (seller, alpha), losses_R in zip(merges, losses_KR, strict=True):
            self.lines[frozenset((buyer, seller))].know(alpha, losses_R)
        return losses_KR.numel()

    def _searched(self, buyer: int, offered: Sequence[int], choice: Choice) -> Choice:
        """Return the choice of one buyer, from where it stood after its probes."""
        sane = [seller for seller in offered if seller != buyer and self._sane(seller)]
        if not sane or not self._sane(buyer):
            return choice
        lines = [
            self.lines[pair] for one in sane if (pair := frozenset((buyer, one))) in self.lines
        ]
        spent = self._search(buyer, lines)
        found = [_Found(self.answers.alone(seller), seller, ALL) for seller in sane]
        found += [
            _Found(loss, line.other(buyer), alpha)
            for line in lines
            for alpha, loss in line.told(buyer, self._search_rows).items()
        ]
        best = min(found)
        tied = {one.seller for one in found if one.loss == best.loss} - {best.seller}
        choice = replace(
            choice,
            verdict=Verdict.NO_GAIN,
            seller=self._root(best.seller),
            tied=tuple(self._root(seller) for seller in sorted(tied)),
            row_evaluations=choice.row_evaluations + spent,
        )
        gains = best.loss < self.answers.alone(buyer)
        return self._confirmed(choice, buyer, best) if gains else choice

    @property
    def _search_rows(self) -> int:
        return min(self.budget.search_rows, len(self.stack))

    def _search(self, buyer: int, lines: Sequence[Line]) -> int:
        """Measure where the lowest of all lines seems lowest, a few times; return the rows spent.

        A line is left for the next one as soon as its lowest is measured, or is its end.
        """
        spent = calls = 0
        left = list(lines)
        while left and calls < self.budget.search_calls:
            line = min(left, key=lambda line: (line.lowest(buyer)[0], line.other(buyer)))
            _, alpha = line.lowest(buyer)
            if alpha == ALL or alpha in line.told(buyer, self._search_rows):
                left.remove(line)
                continue
            spent += line.measure(buyer, alpha, self._search_rows)
            calls += 1
        return spent

    def _confirmed(self, choice: Choice, buyer: int, best: _Found) -> Choice:
        """Return the choice with the gain on fresh rows of the merge that its recipe makes."""
        ours, theirs = self.models[buyer], self.models[best.seller]
        try:
            aligned = self.universe.pair(ours, theirs)
            recipe = aligned.exact_recipe.with_alpha(best.alpha)
        except AlignmentError:
            return replace(choice, verdict=Verdict.UNALIGNED)
        merged = Between(ours.tensors, aligned.transformed, best.alpha)
        losses = [
            self.runner.losses(self.architecture, model, *self.confirming)
            for model in (ours.tensors, merged)
        ]
        spent = choice.row_evaluations + sum(len(losses_R) for losses_R in losses)
        try:
            gain = paired_gain(*losses)
        except RemoteProtocolError:
            return replace(choice, verdict=Verdict.OVERFLOWS, row_evaluations=spent)
        sure = Verdict.CONFIRMED if gain.bound > 0 else Verdict.UNCONFIRMED
        return replace(choice, verdict=sure, recipe=recipe, gain=gain, row_evaluations=spent)


def _sane(loss: float) -> bool:
    return math.isfinite(loss) and loss <= MAX_LOSS
