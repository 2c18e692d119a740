"""Of N models, the best other for each to be merged with: forward passes linear in N.

`best_sellers` (ADR 23) chooses, on one half of the rows, with every model a buyer and a seller;
one merge for each model is confirmed on rows of the other half, which chose nothing. Each model is
scored on those rows too, for the table. The outcome is a function of the models, the rows and the
seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from broker_node.align.stages import AlignmentError
from broker_node.align.universe import Universe
from broker_node.evaluate.crowd import Budget, Choice, Verdict, best_sellers
from broker_node.evaluate.curve import ON_CPU, Runner, losses_of
from broker_node.evaluate.metrics import accuracy_of
from broker_node.evaluate.search import PAPER_GRID
from broker_node.evaluate.validation import ValidationSet
from broker_node.trying.making import REPLICA, distance
from broker_node.trying.methods import Rows
from broker_node.trying.scoring import Score
from broker_node.trying.trial import split, split_seed
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture
from node.params.encoding import weights_root
from node.params.permutation import Tensors
from node.params.recipe import apply_recipe
from node.protocol.types import Digest

PROBE_ROWS: Final = 256
"""Rows of choice, without their labels, by which models come into the universe."""
CONFIRM_ROWS: Final = 2_500
"""Of the half that confirms, at most: as many as choose. A survey has time for more than the 640
of a market, under which small gains stay unconfirmed."""
ALIKE: Final = 1e-3
"""Of the loss: replicas are looked for among models that are no further apart."""
NEIGHBOURS: Final = 4
"""In the order of losses, to which a model is held, so that the search is linear."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of one model. Others are numbered as they were given."""

    own: Score
    """On the rows that confirm."""
    choice: Choice
    other: int | None = None
    """The best other; None where there is none."""
    merged: Score | None = None
    """On the same rows, where a merge was confirmed, or was to be."""
    merged_root: Digest | None = None
    left_out: str = ""
    """Why the model could not be lined up with the others at all."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """All that was found, model by model as they were given."""

    seed: Digest
    choice: Rows = field(repr=False)
    """The rows that chose."""
    confirming: Rows = field(repr=False)
    models: tuple[Verified, ...] = field(repr=False)
    found: tuple[Found, ...]
    replicas: dict[int, int]
    """Models that are an earlier one renumbered or rescaled, and which that is."""
    row_evaluations: int
    """Forward passes of one row that choosing and confirming took."""
    score_evaluations: int
    """What the table took beside them: every model, and every merge, on the rows that confirm."""
    fallbacks: tuple[str, ...] = ()
    """What could not be computed as it was meant to be, and how it was computed instead."""

    @property
    def paper_evaluations(self) -> int:
        """What the paper's way takes on as many rows: counted, not run.

        Every ordered pair at ten values of α on the rows that choose; every model there once; and
        every model and one merge of it on the rows that confirm.
        """
        models, choice = len(self.models), len(self.choice.targets_R)
        pairs = models * (models - 1) * len(PAPER_GRID) * choice
        return pairs + models * (choice + 2 * len(self.confirming.targets_R))

    def merged(self, place: int) -> dict[str, torch.Tensor]:
        """Return what the recipe makes of a model and its best other, to the byte."""
        found = self.found[place]
        assert found.other is not None
        return _made(self.models[place], self.models[found.other], found.choice)


def budget_of(choice: int, confirm: int) -> Budget:
    """Return the budget of a survey with so many rows on either side.

    A market's own; where a stage would have more rows than there are, it has all of them.
    """
    usual = Budget()
    answer = min(usual.answer_rows, choice)
    return replace(
        usual,
        answer_rows=answer,
        promise_rows=min(usual.promise_rows, answer),
        probe_rows=min(usual.probe_rows, answer),
        search_rows=min(usual.search_rows, answer),
        confirm_rows=min(CONFIRM_ROWS, confirm),
    )


def run_survey(
    models: Sequence[Verified],
    validation: ValidationSet,
    *,
    seed: int,
    told: Progress = lambda _: None,
    runner: Runner = ON_CPU,
) -> Survey:
    """Return the best other of each of N >= 2 models; deterministic under `seed`.

    Models are of one architecture, no two of the same weights. `told` hears what is being done,
    `runner` runs the models; they are lined up on the CPU. Raises `TryError` for too few rows or
    rows of one class.
    """
    drawn = split_seed(seed, validation.root)
    choice, rest = split(validation, drawn)
    budget = budget_of(len(choice.targets_R), len(rest.targets_R))
    chosen, confirming = _first(choice, budget.answer_rows), _first(rest, budget.confirm_rows)
    architecture = models[0].architecture
    universe, left_out = _universe(models, chosen, seed, told)
    within = [place for place in range(len(models)) if place not in left_out]
    told(f"choosing for {len(within)} models")
    choices: dict[Digest, Choice] = {}
    fallbacks: tuple[str, ...] = ()
    spent = len(models) * min(PROBE_ROWS, len(chosen.targets_R))
    if within:
        crowd = best_sellers(
            universe,
            architecture,
            [models[place] for place in within],
            [models[place] for place in within],
            validation,
            seed=drawn,
            budget=budget,
            choice_rows=len(choice.targets_R),
            runner=runner,
        )
        fallbacks = crowd.fallbacks
        choices = {made.buyer: made for made in crowd.choices}
        spent += crowd.row_evaluations - universe.row_evaluations
    told("scoring")
    place_of = {model.weights_root: place for place, model in enumerate(models)}
    found = []
    for place, model in enumerate(models):
        lost = Choice(buyer=model.weights_root, verdict=Verdict.UNALIGNED)
        made = choices.get(model.weights_root, lost)
        other = None if made.seller is None else place_of[made.seller]
        mine = Found(
            own=_scored(architecture, model.tensors, confirming, runner),
            choice=made,
            other=other,
            left_out=left_out.get(place, ""),
        )
        if made.gain is not None and other is not None:
            tensors = _made(model, models[other], made)
            mine = replace(
                mine,
                merged=_scored(architecture, tensors, confirming, runner),
                merged_root=weights_root(tensors),
            )
        found.append(mine)
    return Survey(
        seed=drawn,
        choice=chosen,
        confirming=confirming,
        models=tuple(models),
        found=tuple(found),
        replicas=_replicas(universe, models, [(found[place].own.loss, place) for place in within]),
        row_evaluations=spent,
        score_evaluations=len(confirming.targets_R)
        * sum(1 + (each.merged is not None) for each in found),
        fallbacks=tuple(dict.fromkeys((*fallbacks, *runner.fallbacks()))),
    )


def _first(rows: Rows, count: int) -> Rows:
    return Rows(rows.inputs_RF[:count], rows.targets_R[:count])


def _universe(
    models: Sequence[Verified], chosen: Rows, seed: int, told: Progress
) -> tuple[Universe, dict[int, str]]:
    """Return the universe of all models that can be lined up, and why the others cannot."""
    universe = Universe(models[0].architecture, probe_RF=chosen.inputs_RF[:PROBE_ROWS], seed=seed)
    left_out: dict[int, str] = {}
    # by root, as `Universe.of`: whoever comes first counts
    ordered = sorted(range(len(models)), key=lambda place: models[place].weights_root)
    for done, place in enumerate(ordered):
        told(f"lining up {done + 1} of {len(models)} models")
        try:
            universe.add(models[place])
        except AlignmentError as error:
            left_out[place] = str(error)
    told(f"lining up {len(universe)} models once more")
    universe.settle()
    return universe, left_out


@torch.inference_mode()
def _scored(architecture: Architecture, tensors: Tensors, rows: Rows, runner: Runner) -> Score:
    """Return loss and accuracy, by one forward pass of each row."""
    outputs_RO = runner.outputs(architecture, tensors, rows.inputs_RF)
    values = rows.targets_R.is_floating_point()
    return Score(
        losses_R=losses_of(outputs_RO, rows.targets_R),
        accuracy=None if values else accuracy_of(outputs_RO, rows.targets_R),
        metric=None,
    )


def _made(ours: Verified, theirs: Verified, choice: Choice) -> dict[str, torch.Tensor]:
    assert choice.recipe is not None
    return apply_recipe(ours.architecture, ours.tensors, theirs.tensors, choice.recipe)


def _replicas(
    universe: Universe, models: Sequence[Verified], losses: Sequence[tuple[float, int]]
) -> dict[int, int]:
    """Return which models are others in disguise, among those of nearly the same loss.

    In one numbering and gauge a model that was renumbered or rescaled is itself again.
    """
    replicas: dict[int, int] = {}
    ordered = sorted(losses)
    for at, (loss, place) in enumerate(ordered):
        for near, other in ordered[at + 1 : at + 1 + NEIGHBOURS]:
            if near - loss > ALIKE * loss:
                break
            earlier, later = sorted((place, other))
            standing = (universe.standing(models[each]) for each in (earlier, later))
            if distance(*standing) < REPLICA:
                first = replicas.get(earlier, earlier)
                replicas[later] = min(first, replicas.get(later, first))
    return replicas
