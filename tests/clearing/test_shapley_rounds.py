"""Rounds of Shapley division over real libp2p and the real clearing house, models trained here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from broker_node.clearing.rules import checked
from broker_node.clearing.terms import read
from node.agent import keeping
from node.chain.errors import CallRefusedError
from node.chronicle import (
    BrokerDistrusted,
    ObjectionHeard,
    RootDisputed,
    RoundPlayed,
    TransactionMined,
)
from node.devnet.pots import read_books
from node.net.transfer import Source, fetch_blob
from node.protocol.clearing import EXPIRY
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import PARAMS_PROTOCOL
from node.protocol.types import Digest, Wei
from tests.clearing.rounds_market import (
    PAY,
    RoundMarket,
    RoundParty,
    has_forged,
    open_rounds,
    part_of,
)
from tests.market.market import ETHER, eventually


def steps(party: RoundParty, step: str) -> int:
    mined = [e for e in party.heard(TransactionMined) if e.step.startswith(f"clearing-{step}")]
    return sum(event.succeeded for event in mined)


def nets(market: RoundMarket, *parties: RoundParty) -> list[int]:
    (pot,) = market.books().pots.values()
    return [pot.net.get(party.account, 0) for party in parties]


async def test_three_agents_pool_and_every_wei_comes_out_again(tmp_path: Path) -> None:
    async with open_rounds(tmp_path) as market:
        agents = await market.agents()
        await market.to_the_root(*agents)
        await market.to_the_end(*agents)
        books = market.books()
        assert books.balances
        assert sum(nets(market, *agents)) == 0
        assert any(nets(market, *agents))
        for agent in agents:
            assert agent.states_of_round == [
                "paying", "waiting", "agreed", "claiming", "credited", "settled",
            ]  # fmt: skip
            assert steps(agent, "pay") == steps(agent, "claim") == steps(agent, "withdraw") == 1
        record = part_of(agents[0]).record
        document = read(record.inputs)
        ((root, _, performance, buyers),) = document.models
        assert buyers == (0, 1, 2)
        for agent in agents:  # who is better off with the fused model has it, by its root
            at = document.parties.index(agent.account)
            better = document.performance(at, 1 << at) < performance / 1_000_000
            assert (await agent.has_played()).bought == better
            assert agent.station.blobs.has(Digest(bytes.fromhex(root))) == better
        (pot,) = books.pots.values()
        paid = {account: Wei(amount) for account, amount in pot.paid.items()}
        _, leaves = checked(record.invited, record.inputs, paid)
        for account, amount in leaves.payouts:
            assert pot.claimed[account] == amount


@pytest.mark.slow
async def test_who_does_not_pay_gets_no_model_and_the_round_goes_on(tmp_path: Path) -> None:
    async with open_rounds(tmp_path) as market:
        *payers, miser = await market.agents(agent_2={"most_due": Wei(1)})
        assert (await miser.stays_out()).reason == "too-dear"
        await market.to_the_root(*payers)
        await market.to_the_end(*payers)
        assert market.books().balances
        assert nets(market, miser) == [0]
        ((root, length, _, _),) = read(part_of(payers[0]).record.inputs).models
        name = Digest(bytes.fromhex(root))
        source = Source(
            peer=market.broker.peer_id,
            protocol=PARAMS_PROTOCOL,
            name=name,
            addresses=market.broker.network.addresses(),
        )
        with pytest.raises(RemoteProtocolError, match="not-sold-to-you"):
            await fetch_blob(
                miser.network,
                source,
                lambda hashes: miser.station.blobs.writer(name, length, hashes),
                root=name,
                byte_length=length,
            )
        assert not (await miser.has_played()).bought


@pytest.mark.slow
async def test_too_little_too_much_and_a_strangers_money_all_come_back(tmp_path: Path) -> None:
    async with open_rounds(tmp_path) as market:
        first, second, short = await market.agents(agent_2={"most_due": Wei(1)})
        await short.stays_out()
        await second.comes_to("waiting")
        opening = part_of(second).record.opening
        stranger = market.convener.house()
        short.house().pay(opening.round, Wei(7))
        stranger.pay(opening.round, Wei(11))
        second.house().pay(opening.round, Wei(13))
        await market.to_the_root(first, second)
        with pytest.raises(CallRefusedError, match="CollectionOver"):
            short.house().pay(opening.round, Wei(ETHER))
        await market.to_the_end(first, second)
        (pot,) = market.books().pots.values()
        record = part_of(first).record
        due = dict(zip(record.accounts, record.amounts, strict=True))
        assert due[short.account] == 7
        assert due[stranger.account] == 11
        assert pot.paid[second.account] == part_of(second).record.due + 13
        assert sum(due.values()) == pot.paid.total()
        assert sum(nets(market, first, second)) == 0


@pytest.mark.slow
async def test_a_false_root_is_objected_to_its_broker_shunned_and_what_it_kept_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "OUTLAST_SECONDS", 0.3)
    async with open_rounds(tmp_path) as market:
        agents = await market.agents(agent_0={"rounds": 2})
        has_forged(market, victims=2)
        for agent in agents:
            await agent.comes_to("waiting")
        market.skip(PAY + 1)
        for agent in agents:
            await agent.comes_to("objecting")
            (disputed,) = agent.heard(RootDisputed)
            assert (disputed.reason, disputed.seconds_left > 0) == ("wrong-root", True)
            assert disputed.broker == market.broker.account
        await eventually(lambda: len(market.broker.heard(ObjectionHeard)) == 3, "three objections")
        await market.to_the_end(*agents)
        for agent in agents:
            await agent.comes_to("outlasting")
            assert agent.heard(RoundPlayed)[0].because == "wrong-root"
        # the half that the root had for one of them was claimed all the same
        assert sorted(steps(agent, "claim") for agent in agents) == [0, 0, 1]
        assert (await agents[0].stays_out()).reason == "distrusted-broker"
        (shunned,) = agents[0].heard(BrokerDistrusted)
        assert (shunned.peer, shunned.broker) == (market.broker.peer_id, market.broker.account)
        assert len(agents[0].heard(RoundPlayed)) == 2
        assert len(market.books().pots) == 1
        # half a year later; of the broker nothing is heard any more, and one of them starts anew
        reader = agents[0].house()
        addresses = market.broker.network.addresses()
        await market.convener.stop()
        gone = SimpleNamespace(addresses=lambda: addresses)
        monkeypatch.setattr(market.convener, "network", gone)
        await agents[1].stop()
        market.skip(EXPIRY + 1)
        await agents[1].start()
        for agent in agents:
            await agent.comes_to("wronged")
        books = read_books(reader)
        assert books.balances
        assert books.reclaimed > 0
        (pot,) = books.pots.values()
        assert pot.claimed[market.broker.account] == pot.reclaimed[market.broker.account] == 0
        assert sum(pot.net[agent.account] for agent in agents) == 0


@pytest.mark.slow
async def test_a_crash_between_payment_and_claim_loses_nothing(tmp_path: Path) -> None:
    async with open_rounds(tmp_path) as market:
        agents = await market.agents()
        crashed, *others = agents
        for agent in agents:
            await agent.comes_to("waiting")
        await crashed.stop()
        await market.to_the_root(*others)
        await market.to_the_end(*others)
        assert not market.books().balances
        crashed.events.clear()
        await crashed.start()
        assert (await crashed.has_played()).because != "no-round"
        assert crashed.states_of_round[-1] == "settled"
        assert steps(crashed, "pay") == 0
        books = market.books()
        assert books.balances
        assert sum(nets(market, *agents)) == 0


@pytest.mark.slow
async def test_a_broker_that_was_killed_posts_what_it_owes(tmp_path: Path) -> None:
    async with open_rounds(tmp_path) as market:
        agents = await market.agents()
        for agent in agents:
            await agent.comes_to("waiting")
        await market.convener.stop()
        market.skip(PAY + 1)
        await market.convener.start()
        await market.convener.comes_to("challenged")
        await market.to_the_end(*agents)
        assert market.books().balances
        assert {agent.states_of_round[-1] for agent in agents} == {"settled"}


@pytest.mark.slow
async def test_without_a_root_everybody_takes_back_what_they_paid(tmp_path: Path) -> None:
    async with open_rounds(tmp_path) as market:
        agents = await market.agents()
        for agent in agents:
            await agent.comes_to("waiting")
        await market.convener.stop()
        market.skip(PAY + market.rounds.post_seconds + 2)
        for agent in agents:
            await agent.comes_to("settled")
        books = read_books(agents[0].house())
        assert books.balances
        assert books.reclaimed == books.paid_in > 0
