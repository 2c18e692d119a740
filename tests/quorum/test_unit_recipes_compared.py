"""Shares of units leave a lead more room to lie, and honest brokers none the less agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from broker_node.align.registry import ALIGNERS
from broker_node.appraisal import MarketAppraiser, Trial
from broker_node.evaluate.evaluation import choice_inputs
from broker_node.evaluate.methods import MARKET
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.merge import unit_alpha
from broker_node.merge.stages import Rows
from broker_node.verify.stages import Verified
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.encoding import weights_root
from node.params.recipe import Recipe, apply_recipe
from node.protocol.offer import BrokerNotice
from node.protocol.quorum import RECIPE_TOLERANCE, figure_of, sealed, with_figure
from node.protocol.types import Digest
from tests.protocol.cast import BUYER, SELLER
from tests.quorum.chamber import Room, open_room
from tests.quorum.liar import Liar, nothing_came_of_it, refused, signatures_of
from tests.quorum.test_recipes_compared import ARCHITECTURE, pair

__all__ = ["pair"]


class Elsewhere(MarketAppraiser):
    """On a machine whose sums are rounded otherwise: gradients are off by a part in a million."""

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        true = torch.autograd.grad
        draws = torch.Generator().manual_seed(1)

        def rounded(loss: torch.Tensor, of: list[torch.Tensor], **how: Any) -> list[torch.Tensor]:
            return [
                each * (1 + 1e-6 * torch.randn(each.shape, generator=draws))
                for each in true(loss, of, **how)
            ]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, "grad", rounded)
            trial = super().measure(base, sold, task=task, notice=notice)
        self.recipe = trial.recipe
        return trial


@pytest.fixture
def rows(tmp_path: Path) -> ValidationSet:
    return ValidationSet.of(split_test(load_digits(tmp_path)).validation)


@pytest.fixture
def elsewhere(rows: ValidationSet) -> Elsewhere:
    return Elsewhere(rows, classes=10, method=MARKET.alignment, merging=MARKET.merging)


@pytest.fixture
def room(
    tmp_path: Path, pair: tuple[Verified, Verified], rows: ValidationSet, elsewhere: Elsewhere
) -> Iterator[Room]:
    def here() -> MarketAppraiser:
        return MarketAppraiser(rows, classes=10, method=MARKET.alignment, merging=MARKET.merging)

    with open_room(tmp_path, first=here, second=lambda: elsewhere, third=here) as room:
        room.models |= {model.weights_root: model for model in pair}
        yield room


async def test_brokers_that_round_otherwise_sign_one_anothers_recipes(
    room: Room, pair: tuple[Verified, Verified], elsewhere: Elsewhere
) -> None:
    base, sold = pair
    liar = Liar(room, base=room.statement(BUYER, base), sold=room.statement(SELLER, sold))
    assert Recipe.decode(liar.trial.recipe).shares
    await liar.cosign()
    assert len(signatures_of(room["second"])) == 1
    assert elsewhere.recipe != liar.trial.recipe  # it found other shares by itself


def _fitted_to_the_score(liar: Liar, pair: tuple[Verified, Verified], rows: ValidationSet) -> Trial:
    """Shares that were fitted to the rows which score the gain."""
    base, sold = pair
    subject = liar.trial.evaluation
    halves = {"choice": subject.choice_rows, "score": subject.score_rows}
    score = torch.from_numpy(draw_rows(subject.seed, len(rows), **halves).score)
    probe_RF = choice_inputs(
        rows, seed=subject.seed, choice_rows=halves["choice"], score_rows=halves["score"]
    )
    aligned = ALIGNERS["universe"](
        base, sold, seed=int.from_bytes(subject.seed[:8], "big"), probe_RF=probe_RF
    )
    twice = torch.cat((score, score))  # so that they decide, too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_alpha, "STEPS", 400)
        found = unit_alpha.unit_shares(
            base,
            aligned.transformed,
            Rows(rows.inputs_RF[twice], rows.targets_R[twice]),
            subject.alpha,
        )
    recipe = Recipe.decode(liar.trial.recipe).with_shares(found.shares)
    merged = apply_recipe(ARCHITECTURE, base.tensors, sold.tensors, recipe)
    lie = sealed(
        dataclasses.replace(subject, recipe_hash=recipe.hash, merged_root=weights_root(merged))
    )
    figure = liar.lead.appraiser.replay(lie, recipe.encode(), base, sold).figure
    return Trial(evaluation=with_figure(lie, figure), recipe=recipe.encode())


async def test_shares_that_were_fitted_to_the_rows_that_score_are_refused(
    room: Room, pair: tuple[Verified, Verified], rows: ValidationSet
) -> None:
    base, sold = pair
    liar = Liar(room, base=room.statement(BUYER, base), sold=room.statement(SELLER, sold))
    honest = liar.trial
    fitted = _fitted_to_the_score(liar, pair, rows)
    moved = figure_of(fitted.evaluation).gain - figure_of(honest.evaluation).gain
    assert moved > 4 * RECIPE_TOLERANCE
    # whoever replays it alone finds nothing wrong
    found = (
        room["third"].appraiser.replay(sealed(fitted.evaluation), fitted.recipe, base, sold).figure
    )
    assert found == figure_of(fitted.evaluation)
    liar.trial = fitted
    await refused("recipe-differs", liar.replay())
    liar.trial = honest
    await nothing_came_of_it(liar)
