"""Every method on every seller: chosen on one half of the rows, scored on the other.

The split is one for all methods, so that they are compared on the same rows. α, the alignment and
the method are all chosen by the loss on the choice half; the scored half chooses nothing, and what
is reported of the chosen merge is as clean as of any other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import ON_CPU, Between, Runner
from broker_node.evaluate.gain import paired_gain
from broker_node.evaluate.methods import Method
from broker_node.evaluate.metrics import Metric
from broker_node.evaluate.search import SCREEN
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.trying.controls import Control, scaled_alone, tuned_alone
from broker_node.trying.errors import TryError
from broker_node.trying.making import Candidate, Maker, refused
from broker_node.trying.methods import Merger, Rows
from broker_node.trying.scoring import Score, score, score_ensemble
from broker_node.trying.widths import width_controls
from broker_node.verify.stages import Verified
from node.protocol.errors import MarketError
from node.protocol.evaluation import rows_due
from node.protocol.types import Digest, Millionths

MIN_ROWS: Final = 8
FEW_ROWS: Final = 400
"""With 200 rows to choose on, α is as good as with all of them; with 50 it is not."""
_SPLIT: Final = b"pm-node try: rows, 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One α of one curve."""

    alpha: Millionths
    choice_loss: float
    score_loss: float
    accuracy: float | None
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Loss against α from the buyer's model to a seller's, under one alignment."""

    seller: int
    align: str
    alignment_hash: Digest | None
    """`Aligned.alignment_hash`: the same pair, rows and seed give the same one."""
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """All that was found. Sellers are numbered as they were given."""

    seed: Digest
    choice: Rows = field(repr=False)
    scored: Rows = field(repr=False)
    buyer: Score
    sellers: tuple[Score, ...]
    """Each seller's own model, α = 1."""
    ensemble: Score | None
    replicas: dict[int, float]
    """Sellers that are the buyer's model renumbered, with the relative residual."""
    repeated: dict[int, int]
    """Sellers whose weights an earlier one has, and which that is."""
    candidates: tuple[Candidate, ...]
    widths: tuple[Candidate, ...]
    """Controls of sellers of other widths (`broker_node.trying.widths`); never the best."""
    curves: tuple[Curve, ...]
    tuned: Control | None
    """The buyer's model fine-tuned on the choice half; None where that cannot be done."""
    scaled: Control | None
    """Its own outputs times the factor that the choice half likes best."""
    usual: tuple[Method | None, ...]
    """By seller, what a market's broker would do; None where nothing, or nobody said."""
    best: int | None
    """The candidate of lowest loss on the choice half; None if none is below the buyer's own."""
    fallbacks: tuple[str, ...] = ()
    """What could not be computed as it was meant to be, and how it was computed instead."""


def split_seed(seed: int, validation_root: Digest) -> Digest:
    """Return what draws the two halves: a function of the user's seed and the rows alone."""
    packed = _SPLIT + struct.pack(">Q", seed) + validation_root
    return Digest(hashlib.sha256(packed).digest())


def split(validation: ValidationSet, seed: Digest) -> tuple[Rows, Rows]:
    """Return the rows that choose and those that score, a half each.

    Raises `TryError` for too few rows, or rows of one class: whatever answers that class would
    look best on them.
    """
    targets_R = validation.targets_R
    if len(validation) < MIN_ROWS:
        raise TryError(
            f"{len(validation)} rows, at least {MIN_ROWS} are needed (better {FEW_ROWS})"
        )
    choice, scored = rows_due(len(validation), shared=False)
    drawn = draw_rows(seed, len(validation), choice=choice, score=scored)
    halves = []
    for indices in (drawn.choice, drawn.score):
        indices_R = torch.from_numpy(indices)
        half_R = targets_R[indices_R]
        if bool((half_R == half_R[0]).all()):
            every = bool((targets_R == targets_R[0]).all())
            which = f"all {len(targets_R)} rows" if every else "all rows of one half"
            remedy = "bring rows of others too" if every else "take another --seed"
            raise TryError(
                f"one-class: {which} have the target {half_R[0].item():g}, and whatever answers "
                f"that would look best: {remedy}"
            )
        halves.append(Rows(validation.inputs_RF[indices_R], half_R))
    return halves[0], halves[1]


def run_trial(
    buyer: Verified,
    sellers: Sequence[Verified],
    validation: ValidationSet,
    *,
    seed: int,
    aligners: Sequence[str],
    mergers: dict[str, Merger],
    metric: Metric | None = None,
    usual: Sequence[Method | None] = (),
    runner: Runner = ON_CPU,
) -> Trial:
    """Return what every method gives; deterministic under `seed`. Raises `TryError`.

    `usual`: by seller, the method of `aligners` and `mergers` that is measured whatever else is
    (`broker_node.trying.methods.usual_of`). `runner`: what runs models; controls, and the merges
    of the registry, are the CPU's.
    """
    drawn = split_seed(seed, validation.root)
    choice, scored = split(validation, drawn)
    usual = tuple(usual) or (None,) * len(sellers)
    made = Maker(
        buyer,
        sellers,
        choice,
        seed=seed,
        aligners=aligners,
        mergers=mergers,
        usual=usual,
        runner=runner,
    )
    made.run()
    own = score(buyer.architecture, buyer.tensors, scored, metric, runner=runner)
    found = [_scored(each, buyer, scored, own, metric, runner) for each in made.candidates]
    before = score(buyer.architecture, buyer.tensors, choice, runner=runner).loss
    usable = [place for place, each in enumerate(found) if each.gain is not None]
    best = min(usable, key=lambda place: found[place].choice_loss, default=None)
    members = [buyer, *(sellers[place] for place in made.independent)]
    return Trial(
        seed=drawn,
        choice=choice,
        scored=scored,
        buyer=own,
        sellers=tuple(
            score(each.architecture, each.tensors, scored, metric, runner=runner)
            for each in sellers
        ),
        ensemble=score_ensemble(
            buyer.architecture,
            [each.tensors for each in members],
            scored,
            metric,
            architectures=[each.architecture for each in members],
        )
        if made.independent
        else None,
        widths=tuple(
            _scored(control, buyer, scored, own, metric, runner)
            for place in made.independent
            for control in width_controls(buyer, sellers[place], place, choice, seed=seed)
        ),
        replicas=made.replicas,
        repeated=made.repeated,
        candidates=tuple(found),
        tuned=tuned_alone(buyer, choice, scored, own, drawn, metric),
        scaled=scaled_alone(buyer, choice, scored, own, metric),
        usual=usual,
        curves=tuple(
            _curve(buyer, aligned, place, name, alpha, (choice, scored), runner)
            for place, name, aligned, alpha in made.lines
        ),
        best=best if best is not None and found[best].choice_loss < before else None,
        fallbacks=runner.fallbacks(),
    )


def _scored(
    candidate: Candidate,
    buyer: Verified,
    scored: Rows,
    own: Score,
    metric: Metric | None,
    runner: Runner,
) -> Candidate:
    """Return the candidate with its score; one whose losses are no sane numbers is refused."""
    if candidate.tensors is None:
        return candidate
    found = score(buyer.architecture, candidate.tensors, scored, metric, runner=runner)
    try:
        gain = paired_gain(own.losses_R, found.losses_R)
    except MarketError as error:
        return refused(candidate.sellers, candidate.align, candidate.merge, error)
    return dataclasses.replace(candidate, score=found, gain=gain)


def _curve(
    buyer: Verified,
    aligned: Aligned,
    place: int,
    name: str,
    chosen: Millionths,
    halves: tuple[Rows, Rows],
    runner: Runner,
) -> Curve:
    choice, scored = halves
    points = []
    for alpha in sorted({*SCREEN, chosen}):
        merged = Between(buyer.tensors, aligned.transformed, alpha)
        at = score(buyer.architecture, merged, scored, runner=runner)
        points.append(
            Point(
                alpha=alpha,
                choice_loss=score(buyer.architecture, merged, choice, runner=runner).loss,
                score_loss=at.loss,
                accuracy=at.accuracy,
                chosen=alpha == chosen,
            )
        )
    return Curve(
        seller=place, align=name, alignment_hash=aligned.alignment_hash, points=tuple(points)
    )
