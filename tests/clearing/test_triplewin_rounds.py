"""Rounds of TripleWin over real libp2p and the real clearing house, models trained here."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_node.clearing.terms import read
from node.chronicle import ClearingOff, RootDisputed
from node.protocol.signing import address_of
from node.protocol.types import Wei
from tests.clearing.rounds_market import PAY, has_forged, open_rounds, part_of
from tests.market.market import seed_of

NAMES = [f"agent_{number}" for number in range(3)]


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


async def test_who_declines_the_price_is_left_out_and_the_others_have_their_round(
    tmp_path: Path,
) -> None:
    last = max(NAMES, key=account_of)  # the producer, who buys nothing, is the first
    async with open_rounds(tmp_path, mechanism="triplewin") as market:
        agents = await market.agents(**{last: {"reserve": Wei(21 * 10**14)}})
        miser = agents.pop(NAMES.index(last))
        assert (await miser.stays_out()).reason == "declined"
        await market.to_the_root(*agents)
        await market.to_the_end(*agents)
        document = read(part_of(agents[0]).record.inputs)
        assert set(document.parties) == {agent.account for agent in agents}
        assert {agent.states_of_round[-1] for agent in agents} == {"settled"}
        assert market.books().balances


@pytest.mark.slow
async def test_who_says_that_its_data_costs_nothing_is_not_let_in_and_stops_nobody(
    tmp_path: Path,
) -> None:
    async with open_rounds(tmp_path, mechanism="triplewin", gather_seconds=15) as market:
        giver, *others = await market.agents(agent_0={"cost": Wei(0)})
        for agent in others:
            await agent.comes_to("waiting")
        assert giver.part is None


@pytest.mark.slow
async def test_where_a_buyer_does_not_pay_its_model_is_not_sold_and_the_others_money_is_back(
    tmp_path: Path,
) -> None:
    last = max(NAMES, key=account_of)
    async with open_rounds(tmp_path, mechanism="triplewin") as market:
        agents = await market.agents(**{last: {"most_due": Wei(1)}})
        miser = agents.pop(NAMES.index(last))
        assert (await miser.stays_out()).reason == "too-dear"
        await market.to_the_root(*agents)
        await market.to_the_end(*agents)
        record = part_of(agents[0]).record
        assert miser.account in read(record.invited).parties
        assert read(record.inputs).models == ()
        for agent in agents:
            assert not (await agent.has_played()).bought
        books = market.books()
        (pot,) = books.pots.values()
        assert pot.paid.total() > 0
        assert not any(pot.net.values())
        assert books.balances


@pytest.mark.slow
async def test_a_false_root_of_prices_is_objected_to_by_all(tmp_path: Path) -> None:
    async with open_rounds(tmp_path, mechanism="triplewin") as market:
        agents = await market.agents()
        has_forged(market, victims=1)
        for agent in agents:
            await agent.comes_to("waiting")
        market.skip(PAY + 1)
        for agent in agents:
            await agent.comes_to("objecting")
            (disputed,) = agent.heard(RootDisputed)
            assert (disputed.reason, disputed.broker) == ("wrong-root", market.broker.account)


def account_of(name: str) -> str:
    return address_of(seed_of(f"account of {name.replace('_', '-')}")).lower()
