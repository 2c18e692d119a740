"""Bad goods that were paid for: the money comes back, whoever dies and whenever."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import trio

from node.chain.errors import ChainUnavailableError, TransactionRefusedError
from node.chain.port import (
    Call,
    Dispute,
    DisputedEvent,
    EscrowEvent,
    EscrowState,
    Finalize,
    Fund,
    Refund,
    Reveal,
    RevealedEvent,
    Withdraw,
)
from node.protocol import cbor
from node.protocol.dispute import Evidence
from node.protocol.eip712 import digest
from node.protocol.events import Step
from node.protocol.types import Digest, Wei
from node.settlement.treasury import Ending
from tests.settlement.fake_chain import DOMAIN, ETHER, Deal, FakeChain, FakeEscrow
from tests.settlement.trades import (
    BROKER,
    BUYER,
    DISPUTE_WINDOW,
    SELLER,
    Node,
    always,
    goods_of,
    quote_of,
    secret_of,
    wall,
)
from tests.settlement.world import World, dies_once

EVIDENCE = goods_of().show(1)


def world_of(folder: Path) -> World:
    """Three nodes and one trade, whose goods are bad."""
    world = World(folder)
    world.nodes["buyer"].bench.evidence = EVIDENCE
    return world


def wait_for(world: World, confirmations: int) -> None:
    """Let every node believe what lies so many blocks deep."""
    for node in world.nodes.values():
        node.confirmations = confirmations
        node.journal.close()
        node.wake()


def check_returned(world: World) -> None:
    """The buyer has its price, and the others nothing, to the wei."""
    assert world.states() == [("refunded", "disputed", "disputed")]
    chain = world.chain
    assert chain.deals[world.quotes[0].trade_id].state is EscrowState.DISPUTED
    assert len(chain.calls(Dispute, succeeded=True)) == 1
    assert not chain.calls(Finalize)
    assert chain.balances[DOMAIN.escrow] == 0
    assert not any(chain.credits.values())
    assert chain.total == 30 * ETHER
    for account in (BUYER, SELLER, BROKER):
        assert chain.balances[account] == 10 * ETHER - world.gas(account)
    assert not world.nodes["broker"].bench.published


async def test_a_leaf_that_is_bad_brings_the_money_back(memory: Path) -> None:
    world = world_of(memory)
    await world.settle()
    check_returned(world)
    assert not [t for t in world.chain.history if not world.chain.mined[t.hash].succeeded]


@pytest.mark.parametrize("confirmations", [3, 12])
async def test_garbage_is_disputed_in_time_however_deep_a_reveal_must_be_to_be_believed(
    memory: Path, confirmations: int
) -> None:
    world = world_of(memory)
    assert confirmations * world.chain.block_seconds > DISPUTE_WINDOW
    wait_for(world, confirmations)
    await world.settle()
    check_returned(world)
    assert not [t for t in world.chain.history if not world.chain.mined[t.hash].succeeded]


async def test_a_buyer_may_die_anywhere_in_a_dispute_of_what_is_not_deep_yet(memory: Path) -> None:
    world = world_of(memory / "first")
    wait_for(world, 3)
    count = dies_once(world.nodes["buyer"], -1)
    await world.settle()
    for at in range(1, count() + 1):
        world = world_of(memory / f"{at}")
        wait_for(world, 3)
        dies_once(world.nodes["buyer"], at)
        await world.settle()
        assert world.nodes["buyer"].deaths == 1
        check_returned(world)


@pytest.mark.parametrize("evidence", [EVIDENCE, None], ids=["bad", "good"])
async def test_a_reveal_that_is_undone_costs_a_buyer_nothing(
    memory: Path, evidence: Evidence | None
) -> None:
    world = World(memory)
    buyer, quote = world.nodes["buyer"], world.quotes[0]
    buyer.bench.evidence = evidence
    wait_for(world, 3)
    whole = buyer.escrow.events

    def ahead(first_block: int, last_block: int) -> list[EscrowEvent]:
        found = whole(first_block, last_block)
        if quote.trade_id in world.chain.deals and last_block == world.chain.blocks[-1].number:
            found.append(RevealedEvent(last_block, Digest(bytes(32)), quote.trade_id, secret_of(0)))
        return found

    buyer.escrow.events = ahead  # type: ignore[method-assign]
    await world.settle(without=("seller",))
    assert buyer.bench.delivered
    assert buyer.state(quote) == "refunded"
    assert not world.chain.calls(Dispute)
    assert len(world.chain.calls(Refund)) == 1


async def test_a_secret_that_opens_nothing_is_no_reveal(memory: Path) -> None:
    world = world_of(memory)
    buyer, quote = world.nodes["buyer"], world.quotes[0]
    wait_for(world, 3)
    whole = buyer.escrow.events

    def lies(first_block: int, last_block: int) -> list[EscrowEvent]:
        found = whole(first_block, last_block)
        if last_block == world.chain.blocks[-1].number:
            found.append(RevealedEvent(last_block, Digest(bytes(32)), quote.trade_id, secret_of(1)))
        return found

    buyer.escrow.events = lies  # type: ignore[method-assign]
    await world.settle(without=("seller",))
    assert not buyer.bench.delivered


async def test_a_buyer_may_die_anywhere_in_a_dispute(memory: Path) -> None:
    world = world_of(memory / "first")
    count = dies_once(world.nodes["buyer"], -1)
    await world.settle()
    for at in range(1, count() + 1):
        for rewind in (False, True):
            world = world_of(memory / f"{at}-{rewind}")
            dies_once(world.nodes["buyer"], at, rewind=rewind)
            await world.settle()
            assert world.nodes["buyer"].deaths == 1
            check_returned(world)


async def test_an_endpoint_that_fails_within_the_window_costs_no_dispute(memory: Path) -> None:
    world = world_of(memory)
    buyer = world.nodes["buyer"]
    left = 3

    def lose(name: str) -> None:
        nonlocal left
        disputing = buyer.state(world.quotes[0]) == "disputing"
        if disputing and name == "broadcast" and left:
            left -= 1
            raise ChainUnavailableError("no answer")

    buyer.escrow.after = lose
    await world.settle()
    assert left == 0
    check_returned(world)


async def test_an_endpoint_that_has_not_seen_the_reveal_is_asked_again(memory: Path) -> None:
    world = world_of(memory)
    buyer = world.nodes["buyer"]
    left = 3

    def lag(name: str) -> None:
        nonlocal left
        if buyer.state(world.quotes[0]) == "disputing" and name == "broadcast" and left:
            left -= 1
            raise TransactionRefusedError("WrongState")

    buyer.escrow.before = lag
    await world.settle()
    assert left == 0
    check_returned(world)


async def test_a_dispute_that_the_logs_have_not_reached_yet_is_no_lost_one(memory: Path) -> None:
    world = world_of(memory)
    buyer, lagging = world.nodes["buyer"], True
    whole = buyer.escrow.events

    def lag(first_block: int, last_block: int) -> list[EscrowEvent]:
        nonlocal lagging
        found = whole(first_block, last_block)
        if not lagging or not any(isinstance(event, DisputedEvent) for event in found):
            return found
        lagging = False
        return []

    buyer.escrow.events = lag  # type: ignore[method-assign]
    await world.settle()
    assert not lagging
    check_returned(world)


async def test_a_chain_that_is_away_until_the_window_is_over_leaves_the_proof(
    memory: Path,
) -> None:
    world = world_of(memory)
    buyer, quote = world.nodes["buyer"], world.quotes[0]
    away_until: list[float] = []

    def away(name: str) -> None:
        if not away_until and buyer.state(quote) == "disputing":
            away_until.append(trio.current_time() + 3 * DISPUTE_WINDOW)
        if away_until and trio.current_time() < away_until[0]:
            raise ChainUnavailableError(name)

    buyer.escrow.before = away
    await world.settle()
    assert world.states() == [("cheated", "paid", "paid")]
    assert not world.chain.calls(Dispute)
    row = buyer.journal.trade(quote.trade_id, "buyer")
    assert row is not None
    record = cbor.decode(row.record)
    assert isinstance(record, dict)
    assert record["evidence"]
    assert "leaf 1" in str(record["note"])


@pytest.mark.parametrize(
    ("step", "state", "ending"),
    [
        (Step.FUND, EscrowState.DISPUTED, Ending.DONE),
        (Step.REVEAL, EscrowState.DISPUTED, Ending.DONE),
        (Step.DISPUTE, EscrowState.DISPUTED, Ending.DONE),
        (Step.FINALIZE, EscrowState.DISPUTED, Ending.UNWANTED),
        (Step.REFUND, EscrowState.DISPUTED, Ending.UNWANTED),
        (Step.DISPUTE, EscrowState.PAID, Ending.UNWANTED),
        (Step.DISPUTE, EscrowState.FUNDED, Ending.UNWANTED),
    ],
)
async def test_what_a_dispute_has_settled_is_not_done_once_more(
    chain: FakeChain, buyer: Node, step: Step, state: EscrowState, ending: Ending
) -> None:
    quote = quote_of()
    chain.deals[quote.trade_id] = Deal(state, wall(), digest(DOMAIN, quote))
    calls: dict[Step, Call] = {
        Step.FUND: Fund(quote, b""),
        Step.REVEAL: Reveal(quote, secret_of(0)),
        Step.FINALIZE: Finalize(quote),
        Step.REFUND: Refund(quote),
        Step.DISPUTE: Dispute(quote, EVIDENCE),
    }
    found = await buyer.treasury.carry_out(quote.trade_id, step, calls[step], wanted=always)
    assert found is ending
    assert not chain.published


async def test_what_a_stranger_disputes_is_as_good_as_our_own_dispute(memory: Path) -> None:
    """The seller itself could: it knows the dh as well."""
    world = world_of(memory)
    quote, seller = world.quotes[0], FakeEscrow(world.chain, SELLER)
    buyer = world.nodes["buyer"]
    buyer.bench.delivering = 3

    async def repent() -> None:
        while world.nodes["seller"].state(quote) != "revealed":
            await trio.sleep(0.1)
        seller.broadcast(seller.sign(Dispute(quote, EVIDENCE), seller.next_nonce()).raw)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(repent)
        await world.settle()
    check_returned(world)


async def test_a_row_that_cannot_say_when_it_was_revealed_is_disputed_all_the_same(
    memory: Path,
) -> None:
    world = world_of(memory)
    buyer, quote = world.nodes["buyer"], world.quotes[0]
    buyer.bench.delivering = 1_000
    with trio.move_on_after(200):
        async with trio.open_nursery() as nursery:
            for node in world.nodes.values():
                nursery.start_soon(node.live)
            while buyer.state(quote) != "revealed":
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    row = buyer.journal.trade(quote.trade_id, "buyer")
    assert row is not None
    record = cbor.decode(row.record)
    assert isinstance(record, dict)
    del record["revealed_at"], record["evidence"]
    buyer.journal.save_trade(dataclasses.replace(row, record=cbor.encode(record)))
    buyer.bench.delivering = 0.1
    for node in world.nodes.values():
        node.journal.close()
        node.wake()
    await world.settle()
    check_returned(world)


@pytest.mark.parametrize("simulates", [True, False])
async def test_evidence_that_the_court_refuses_is_not_sent_for_ever(
    memory: Path, simulates: bool
) -> None:
    world = world_of(memory)
    world.chain.simulates = simulates
    world.nodes["buyer"].bench.evidence = goods_of().show(2)
    await world.settle()
    assert world.states() == [("cheated", "paid", "paid")]
    assert len(world.chain.calls(Dispute)) <= 1
    assert world.chain.calls(Withdraw)
    assert world.chain.balances[SELLER] > Wei(10 * ETHER)
