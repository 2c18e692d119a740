"""Whom a node joins by: the broker whose quotes its escrow takes, and no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import trio

from broker_node.service import Broker
from node.agent.agent import Agent
from node.chain.errors import WrongContractError
from node.chain.tester import fund_account
from node.chronicle import NodeReady
from node.cli.exits import fault_in
from node.journal import STATEMENT_SECONDS, Journal, TradeRow
from node.protocol import envelope
from node.protocol.types import Digest, UnixTime, Wei
from tests.market.market import ETHER, Market, Party, eventually, open_market, seed_of

DAY = 86_400


async def stranger_of(market: Market) -> Party:
    """Start a broker on the same escrow, under an account that the escrow does not take."""
    broker = Party(market, "another broker", Broker)
    fund_account(market.chain, broker.account, Wei(ETHER))
    await broker.start()
    await eventually(broker.station.own_notice, "its notice")
    return broker


def newcomer(market: Market, shell: type[Agent], broker: Party) -> Party:
    """An agent that would join by `broker`; not started yet."""
    agent = Party(market, "agent", shell, brokers=(broker.network.addresses()[0],))
    market.parties[agent.name] = agent
    fund_account(market.chain, agent.account, Wei(ETHER))
    return agent


async def test_a_broker_whose_quotes_the_escrow_does_not_take_is_refused(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        stranger = await stranger_of(market)
        agent = newcomer(market, Agent, stranger)
        with pytest.RaisesGroup(WrongContractError, flatten_subgroups=True) as refused:
            async with trio.open_nursery() as nursery:
                await nursery.start(agent._live)
        assert agent.heard(NodeReady)
        for fragment in (
            stranger.peer_id,
            f"signs as {stranger.account}",
            f"the escrow {market.domain.escrow}",
            "has no seat",
            "--bootstrap",
        ):
            assert fragment in str(fault_in(refused.value))


async def test_what_is_open_is_seen_to_its_end_before_a_broker_is_refused(tmp_path: Path) -> None:
    opened: list[Any] = ["a trade"]

    class Busy(Agent):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.desk.open_trades = lambda: opened  # type: ignore[method-assign]

    async with open_market(tmp_path) as market:
        agent = newcomer(market, Busy, await stranger_of(market))
        with pytest.RaisesGroup(WrongContractError, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                await nursery.start(agent._live)
                await eventually(lambda: agent.blamed("join"), "the refusal")
                await trio.sleep(2.5)
                opened.clear()
        assert agent.blamed("join") == ["not-the-escrows-broker"]


async def test_terms_under_another_account_are_no_terms(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        agent, broker = await market.join("agent", Agent), market.broker
        await eventually(lambda: agent.station.notice_of(broker.peer_id), "its terms")
        known = agent.station.notice_with_digest(broker.peer_id)
        assert known is not None
        other = Party(market, "its other account", Broker)
        newer = dataclasses.replace(
            known[1], broker=other.account, issued_at=UnixTime(known[1].issued_at + 1), nonce=1_000
        )
        signed = envelope.sign(
            market.domain, newer, account_key=other.keys.account, peer_seed=seed_of("peer broker")
        )
        await broker.station.publish(envelope.encode(signed))
        book = agent.station.book
        await eventually(
            lambda: book.notice_of(broker.peer_id, newer.task, newer.issued_at) != known, "gossip"
        )
        assert agent.station.notice_with_digest(broker.peer_id) == known


async def test_there_is_always_room_for_ourselves_and_for_the_escrows_broker(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        agent, broker = await market.join("agent", Agent), market.broker
        assert agent.station.book.favoured == {agent.account, broker.account}
        assert broker.station.book.favoured == {broker.account}


async def test_a_node_that_starts_forgets_what_ended_long_ago(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        agent = await market.join("agent", Agent)
        await agent.stop()
        now = market.clock()
        sale = TradeRow(
            trade_id=Digest(bytes(32)), role="seller", state="paid", over=True, record=b"record"
        )
        journal = Journal(agent.home / "journal.db")
        journal.save_trade(sale)
        journal.prune(now - 91 * DAY, trade_seconds=90 * DAY)
        journal.save_statement(Digest(bytes(32)), now - STATEMENT_SECONDS - 1, b"an old offer")
        assert journal.trades() == [sale]
        assert journal.statements(0) == [b"an old offer"]
        journal.close()
        await agent.start()
        await eventually(lambda: not agent.journal.trades(), "the trade to be forgotten")
        assert agent.journal.trade(sale.trade_id, "seller") is not None
        assert agent.journal.statements(0) == []
