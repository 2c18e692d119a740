"""Brokers that compute with other numbers of threads agree, and none is blamed for its noise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from broker_node.appraisal import MarketAppraiser, Remeasured, Trial
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.stages import Verified
from node.chronicle import PeerFault
from node.data.datasets import load_digits
from node.data.split import split_test
from node.protocol.evaluation import Evaluation
from node.protocol.offer import BrokerNotice
from node.protocol.quorum import GAIN_TOLERANCE
from node.protocol.types import Digest
from tests.market.test_layer_subsets import DigitsAgent, offers
from tests.quorum.quorum_market import (
    BROKERS,
    agreed_gain,
    broker_with,
    join_all,
    lead_figures,
    open_quorum,
)
from tests.quorum.test_quorum_market import signers

THREADS = {"broker": 1, "second": 2, "third": 1}
ONE_AT_A_TIME = threading.Lock()


class Threaded(MarketAppraiser):
    """Measures with so many threads, as a machine of so many cores does."""

    def __init__(self, rows: ValidationSet, threads: int) -> None:
        super().__init__(rows, classes=10)
        self._threads = threads
        self.used: list[int] = []

    @contextmanager
    def _threaded(self) -> Iterator[None]:
        with ONE_AT_A_TIME:
            before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
            try:
                self.used.append(torch.get_num_threads())
                yield
            finally:
                torch.set_num_threads(before)

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        with self._threaded():
            return super().measure(base, sold, task=task, notice=notice)

    def replay(
        self, subject: Evaluation, recipe: bytes, base: Verified, sold: Verified
    ) -> Remeasured:
        with self._threaded():
            return super().replay(subject, recipe, base, sold)


async def test_members_of_other_thread_counts_agree_and_nobody_is_blamed(tmp_path: Path) -> None:
    rows = ValidationSet.of(split_test(load_digits(tmp_path)).validation)
    appraisers = {name: Threaded(rows, threads) for name, threads in THREADS.items()}
    shells = {name: broker_with(appraiser) for name, appraiser in appraisers.items()}
    async with open_quorum(tmp_path, shells) as market:
        seller = await join_all(market, "seller", shell=DigitsAgent)
        buyer = await join_all(market, "buyer", shell=DigitsAgent)
        await offers(seller, 8)
        await offers(buyer, 1)
        trade = await buyer.buy(seller)
        assert {name: set(each.used) for name, each in appraisers.items()} == {
            name: {threads} for name, threads in THREADS.items()
        }
        figures = lead_figures(market)
        assert len(figures) == len(BROKERS)
        assert max(figures) - min(figures) <= GAIN_TOLERANCE
        assert 0 < min(figures) <= agreed_gain(market) <= max(figures)
        assert len(signers(market, trade)) == 2
        for party in market.parties.values():
            blamed = [f for f in party.heard(PeerFault) if f.during != "list-book"]
            assert blamed == [], party.name  # while it dials, a broker may not be there yet
        await market.see_paid(trade, buyer, seller)
