"""A broker asks its engine for all that costs, several at once, and closes it at the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from broker_node.appraisal import Trial
from broker_node.engine.engine import EngineSettings
from broker_node.engine.local import LocalEngine
from broker_node.findings import ComputedOtherwise
from broker_node.service import Broker
from broker_node.verify.stages import Verified
from node.agent.agent import Agent
from node.params.encoding import encode_tensors
from node.protocol.offer import Offer
from tests.market.market import open_market, weights
from tests.market.test_trials import signed_anew, try_at_once

SAID = "out-of-memory: at most 1 models and 16 rows at once on cuda"


class WatchedEngine(LocalEngine):
    """An engine that had to make do, and says so."""

    asked: list[str]

    def admit(self, blob: Path | memoryview, offer: Offer) -> Verified:
        self.asked.append("admit")
        return super().admit(blob, offer)

    def measure(self, base: Verified, sold: Verified, **rest: Any) -> Trial:
        self.asked.append("measure")
        return dataclasses.replace(super().measure(base, sold, **rest), fallbacks=(SAID,))

    def close(self) -> None:
        self.asked.append("close")


class EngineBroker(Broker):
    def __init__(self, **arguments: Any) -> None:
        self.engine = WatchedEngine(arguments["appraiser"], EngineSettings(workers=2))
        self.engine.asked = []
        super().__init__(**arguments, engine=self.engine)


async def test_a_broker_computes_by_its_engine_and_tells_what_went_otherwise(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, EngineBroker) as market:
        broker = market.broker
        assert broker.shell._compute.total_tokens == 2
        seller, buyer = (
            await market.join("seller", Agent),
            await market.join("buyer", Agent),
        )
        base, _ = await buyer.offer()
        names = await signed_anew(seller, encode_tensors(weights("seller")), 1)
        await try_at_once(buyer, base, names)
        assert broker.shell.engine.asked == ["admit", "admit", "measure"]
        assert [told.reason for told in broker.heard(ComputedOtherwise)] == [SAID]
    assert broker.shell.engine.asked[-1] == "close"
