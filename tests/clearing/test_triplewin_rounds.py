"""Rounds of TripleWin over real libp2p and the real clearing house, models trained here."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_node.clearing.terms import read
from node.chronicle import ClearingOff
from tests.clearing.rounds_market import open_rounds, part_of


async def test_buyers_pay_and_sellers_and_the_producer_are_paid(tmp_path: Path) -> None:
    async with open_rounds(tmp_path, mechanism="triplewin") as market:
        agents = await market.agents()
        await market.to_the_root(*agents)
        await market.to_the_end(*agents)
        books = market.books()
        assert books.balances
        (pot,) = books.pots.values()
        document = read(part_of(agents[0]).record.inputs)
        producer = document.parties[document.producers[0]]
        assert pot.paid[producer] == 0 < pot.claimed[producer]
        for account in document.parties:  # each seller's parameters were used
            assert pot.claimed[account] >= 10**15
            assert account == producer or pot.paid[account] > 0
        assert sum(pot.net.values()) == 0
        assert {agent.states_of_round[-1] for agent in agents} == {"settled"}


@pytest.mark.slow
async def test_where_there_are_no_prices_no_money_moves_and_it_is_said(tmp_path: Path) -> None:
    async with open_rounds(tmp_path, mechanism="triplewin", share=1_000_000_000) as market:
        agents = await market.agents()
        for agent in agents:
            assert (await agent.stays_out()).reason == "infeasible"
            assert not (await agent.has_played()).bought
        assert [event.reason for event in market.broker.heard(ClearingOff)] == ["infeasible"]
        books = market.books()
        assert (books.pots, books.balance) == ({}, 0)
