"""A market with three brokers, two of whom sign: separate hosts, keys, journals and endpoints."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from broker_node.appraisal import Appraiser, DrillAppraiser, Remeasured, Trial
from broker_node.service import Broker
from broker_node.verify.stages import Verified
from node.agent.agent import Agent
from node.chain.client import ChainClient
from node.chain.deploy import MarketPlan, deploy_market
from node.chain.in_process import InProcessProvider
from node.chain.seats import take_seat
from node.chain.tester import DevelopmentChain, fund_account
from node.protocol.evaluation import Evaluation
from node.protocol.offer import BrokerNotice
from node.protocol.quorum import Figure, figure_of, with_figure
from node.protocol.signing import address_of
from node.protocol.types import Digest, Millionths, Wei
from tests.market.market import ETHER, Clock, Market, Party, eventually, seed_of

BROKERS = ("broker", "second", "third")
"""The first is the one that agents ask."""
SECONDS = 60


class Measured(DrillAppraiser):
    """Measures the drill's gain, times so much and off by so many millionths."""

    def __init__(self, times: int = 1, off: int = 0) -> None:
        self._gain = DrillAppraiser.GAIN * times + off

    def figure(self, bound: int = 0) -> Figure:
        """A figure that is sound in itself."""
        return Figure(
            loss_before=10**9,
            loss_after=10**9 - self._gain * 1_000,
            gain=Millionths(self._gain),
            bound=Millionths(self._gain - bound),
        )

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        trial = super().measure(base, sold, task=task, notice=notice)
        return dataclasses.replace(trial, evaluation=with_figure(trial.evaluation, self.figure()))

    def replay(
        self, subject: Evaluation, recipe: bytes, base: Verified, sold: Verified
    ) -> Remeasured:
        super().replay(subject, recipe, base, sold)
        return Remeasured(figure=self.figure())


class OtherRows(DrillAppraiser):
    """Has committed to other rows than everybody else."""

    validation_root = Digest(b"\x07" * 32)


def broker_with(appraiser: Appraiser) -> type[Broker]:
    """A broker that measures so."""

    class Measuring(Broker):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**{**arguments, "appraiser": appraiser})

    return Measuring


@asynccontextmanager
async def open_quorum(
    folder: Path, shells: Mapping[str, type[Broker]] | None = None
) -> AsyncIterator[Market]:
    """Open a market of which two of three brokers sign; the lead is `market.broker`."""
    clock = Clock()
    keys = {name: seed_of(f"account of {name}") for name in BROKERS}
    async with AsyncExitStack() as stack:
        chain = stack.enter_context(DevelopmentChain(clock=clock, block_seconds=1))
        client = ChainClient(InProcessProvider(chain))
        for key in keys.values():
            fund_account(chain, address_of(key), Wei(2 * ETHER))
        plan = MarketPlan(
            salt=Digest(secrets.token_bytes(32)),
            brokers=tuple(map(address_of, keys.values())),
            threshold=2,
            minimum_bond=Wei(ETHER),
        )

        def deploy() -> Any:
            domain = deploy_market(client, keys["broker"], plan)
            for key in keys.values():
                take_seat(client, key, domain, bond=Wei(ETHER))
            return domain

        domain = await trio.to_thread.run_sync(deploy)
        nursery = await stack.enter_async_context(trio.open_nursery())
        market = Market(folder, nursery, clock, chain, client, domain)
        for name in BROKERS:
            shell = (shells or {}).get(name, Broker)
            peers = [] if name == "broker" else [market.broker.network.addresses()[0]]
            await market.join(name, shell, quorum=(2, 3), peers=tuple(peers))
        lead = market.broker
        for name in BROKERS[1:]:
            peer = market[name]
            await eventually(
                lambda peer=peer: lead.station.book.notice_of(  # type: ignore[misc]
                    peer.peer_id, lead.station.task, clock()
                ),
                f"the notice of {name}",
                SECONDS,
            )
        yield market
        market.check_healthy()
        nursery.cancel_scope.cancel()


async def join_all(
    market: Market, name: str, *, shell: type[Agent] = Agent, **settings: Any
) -> Party:
    """Let an agent join by all three brokers: they all may fetch what it offers."""
    addresses = tuple(market[broker].network.addresses()[0] for broker in BROKERS)
    return await market.join(name, shell, brokers=addresses, **settings)


def lead_figures(market: Market) -> list[int]:
    """The gains that were opened before the lead, in the order of its trials."""
    lead = market.broker.shell._bench.lead
    return sorted(
        opening.figure.gain for agreement in lead._agreed.values() for opening in agreement.openings
    )


def agreed_gain(market: Market) -> int:
    """What the lead's only trial came to."""
    (agreement,) = market.broker.shell._bench.lead._agreed.values()
    return figure_of(agreement.evaluation).gain
