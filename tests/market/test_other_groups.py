"""A buyer pays for no recipe that it could not apply, whatever was measured with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from broker_node.appraisal import DrillAppraiser, Trial
from broker_node.service import Broker
from node.chronicle import PeerFault
from node.params.recipe import Recipe
from node.protocol.types import ONE, Millionths
from tests.market.market import open_market
from tests.market.strangers import pair


class OtherGroups(DrillAppraiser):
    """Reads groups off a model that the buyer does not find there."""

    def measure(self, *sides: Any, **said: Any) -> Trial:
        trial = super().measure(*sides, **said)
        recipe = Recipe(permutations={"units": (1, 0)}, scales={}, alpha=Millionths(ONE))
        measured = dataclasses.replace(trial.evaluation, recipe_hash=recipe.hash)
        return dataclasses.replace(trial, evaluation=measured, recipe=recipe.encode())


class Elsewhere(Broker):
    """Its models are read by another version of what reads the buyer's."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**(arguments | {"appraiser": OtherGroups()}))


async def test_a_recipe_of_groups_that_the_buyer_lacks_is_refused_before_any_money_moves(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, Elsewhere) as market:
        _, buyer = await pair(market)
        await buyer.offer()
        step = await buyer.shell.session.step()
        assert step.trade_id is None
        assert step.because == "bad-recipe"
        assert buyer.blamed("buy") == ["bad-recipe"]
        assert {fault.peer for fault in buyer.heard(PeerFault)} == {market.broker.peer_id}
        assert not buyer.journal.trades()
        assert not market.ledger().states
