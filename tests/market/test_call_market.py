"""A call market, end to end: real hosts, the real contract, and whoever would cheat in a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from broker_node.calls.desk import CallDesk
from node.agent import progress as journalled
from node.agent.agent import Agent
from node.agent.session import Session
from node.chain.port import EscrowState, FundedEvent
from node.chronicle import CallCleared, LegEnded, OurFault, PeerFault, TradeChanged, TrialDone
from node.protocol.call import Allocation, BudgetBid
from node.protocol.eip712 import digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.messages import (
    Allocated,
    AskAllocations,
    Deal,
    NoDeal,
    Noted,
    PlaceBid,
    QuoteRequest,
    StayOut,
    StreamMessage,
)
from node.protocol.signing import sign_digest
from node.protocol.types import Address, Digest, Millionths, PeerId, Wei
from node.settlement.purse import Purse
from tests.market.market import (
    ETHER,
    Market,
    Party,
    architecture,
    eventually,
    open_market,
    weights,
)

CALL: dict[str, Any] = {"mechanism": "eeg", "call_seconds": 5}
BUDGET = Wei(ETHER // 100)
AGENT: dict[str, Any] = {
    "mechanism": "eeg",
    "call_budget": BUDGET,
    "reserve": Wei(0),
    "ask": lambda *_: Wei(0),
}


class Driven(Agent):
    """An agent whose rounds are those of whoever holds its session."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "trainer": None})


async def sellers(market: Market, *names: str, **settings: Any) -> list[Party]:
    """Have agents offer their weights that buy nothing themselves."""
    nothing = Millionths(1_000_001)
    found = []
    for name in names:
        party = await market.join(name, Driven, min_gain=nothing, **(AGENT | settings))
        await party.offer()
        found.append(party)
    return found


async def buyer_of(market: Market, offers: int, **settings: Any) -> tuple[Party, Session]:
    buyer = await market.join("buyer", Driven, offers_per_round=offers, **(AGENT | settings))
    return buyer, buyer.shell.session


async def test_one_budget_buys_of_two_sellers_and_their_weights_are_fused(tmp_path: Path) -> None:
    async with open_market(tmp_path, **CALL) as market:
        await sellers(market, "one", "two")
        buyer, session = await buyer_of(market, 2)
        await session.offer(architecture(), weights("buyer"))
        step = await session.step()
        assert step.bought
        legs = buyer.heard(LegEnded)
        assert [leg.because for leg in legs] == ["bought", "bought"]
        assert {leg.seller for leg in legs} == {market[n].peer_id for n in ("one", "two")}
        paid = sum(leg.price or 0 for leg in legs)
        assert BUDGET - 1_000_000 <= paid <= BUDGET
        fused = await session.adopt()
        for name, tensor in fused.items():
            mean = (weights("one")[name].double() + weights("two")[name].double()) / 2
            assert torch.equal(tensor, mean.float())
        (cleared,) = market.broker.heard(CallCleared)
        assert cleared.valid
        for leg in legs:
            assert leg.trade_id is not None
            await market.see_paid(leg.trade_id, buyer, party_of(market, leg.seller))
        await market.all_over()
        ledger = await market.drawn_ledger()
        assert ledger.balances
        assert ledger.deposited == paid == ledger.paid_out + ledger.fees
        first, second = market.events(FundedEvent)
        assert (first.transaction, first.block) == (second.transaction, second.block)
        await session.offer(architecture(), fused)  # and the next round begins on them


async def test_who_lacks_the_gas_for_trades_with_all_bids_for_the_best_that_it_can_pay_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def poor(_purse: Purse, *sellers: Address) -> Wei:
        return Wei(0) if len(sellers) > 1 else BUDGET

    monkeypatch.setattr(Purse, "left", poor)
    async with open_market(tmp_path, **CALL) as market:
        await sellers(market, "one", "two")
        buyer, session = await buyer_of(market, 2)
        await session.offer(architecture(), weights("buyer"))
        assert (await session.step()).bought
        best = max(buyer.heard(TrialDone), key=lambda trial: trial.gain)
        (leg,) = buyer.heard(LegEnded)
        assert leg.gain == best.gain
        assert BUDGET - 1_000_000 <= (leg.price or 0) <= BUDGET


def party_of(market: Market, peer: PeerId | None) -> Party:
    return next(party for party in market.parties.values() if party.peer_id == peer)


async def test_two_who_bid_in_one_call_share_what_one_seller_has(tmp_path: Path) -> None:
    """Of weights that are sold whole, the larger budget's half is none: nobody gets a fraction."""
    async with open_market(tmp_path, **CALL) as market:
        one, two = [
            await market.join(name, Driven, **(AGENT | {"call_budget": Wei(wei)}))
            for name, wei in (("one", BUDGET), ("two", 2 * BUDGET))
        ]
        for party in (one, two):
            await party.offer()
        steps: list[Any] = []

        async def play(party: Party) -> None:
            steps.append(await party.shell.session.step())

        market.nursery.start_soon(play, one)
        market.nursery.start_soon(play, two)
        await eventually(lambda: len(steps) == 2, "both rounds")
        assert all(step.bought for step in steps)
        cleared = market.broker.heard(CallCleared)
        assert sum(len(call.budgets) for call in cleared) == 2
        assert sorted(step.price for step in steps) == pytest.approx([BUDGET, 2 * BUDGET], rel=1e-5)


async def test_a_restart_ends_each_trade_of_a_call_and_fuses_what_was_delivered(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, **CALL) as market:
        await sellers(market, "one", "two")
        buyer = await market.join("buyer", Agent, offers_per_round=2, rounds=1, **AGENT)
        await eventually(lambda: len(journalled.purchases(buyer.journal)) == 2, "both purchases")
        await buyer.stop()
        assert not buyer.heard(LegEnded)
        await buyer.start()
        session: Session = buyer.shell.session
        await eventually(
            lambda: session.progress is not None and session.progress.round == 1, "the round"
        )
        assert [leg.because for leg in buyer.heard(LegEnded)] == ["bought", "bought"]
        assert len(buyer.journal.trades(role="buyer")) == 2
        assert session.progress is not None
        fused = session.load(architecture().text, session.progress.root)
        for name, tensor in fused.items():
            mean = (weights_of(market["one"])[name] + weights_of(market["two"])[name]) / 2
            assert torch.equal(tensor, mean.float())


def weights_of(party: Party) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in weights(party.name).items()}


async def bid_in_an_open_call(market: Market) -> tuple[Party, Session, list[Any]]:
    """A buyer whose bid is placed, in a call that another one keeps open; and its steps."""
    await sellers(market, "one")
    other = await market.join("other", Driven, **AGENT)
    await eventually(lambda: other.sees(market["one"]), "the offer")
    await other.shell.session._try(await other.offer(), other.sees(market["one"]))
    buyer, session = await buyer_of(market, 2)
    await session.offer(architecture(), weights("buyer"))
    steps: list[Any] = []

    async def play() -> None:
        steps.append(await session.step())

    market.nursery.start_soon(play)
    await eventually(lambda: market.broker.shell._calls._bids, "the bid")
    return buyer, session, steps


async def test_a_bid_that_a_broker_forgot_as_it_was_restarted_is_placed_anew(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, mechanism="eeg", call_seconds=600) as market:
        buyer, _, steps = await bid_in_an_open_call(market)
        await market.broker.stop()
        await market.broker.start()
        await eventually(lambda: steps, "the round", seconds=60)
        assert steps[0].bought
        assert "unknown-bid" in buyer.blamed("call")
        assert {leg.because for leg in buyer.heard(LegEnded)} == {"bought"}
        spent = sum(leg.price or 0 for leg in buyer.heard(LegEnded))
        assert spent == sum(event.price for event in market.events(FundedEvent)) <= BUDGET


async def test_who_has_bid_to_a_broker_that_stays_away_is_told_so_and_keeps_all_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.agent.calling.AWAY_SECONDS", 2.0)
    async with open_market(tmp_path, mechanism="eeg", call_seconds=600) as market:
        buyer, session, steps = await bid_in_an_open_call(market)
        await market.broker.stop()
        await eventually(lambda: steps, "the round", seconds=60)
        assert (steps[0].bought, steps[0].because) == (False, "unreachable")
        assert not buyer.heard(TradeChanged)
        kept = await session.adopt()
        assert all(torch.equal(kept[n], own) for n, own in weights("buyer").items())


async def test_whoever_wants_nothing_stays_out_and_nobody_waits_for_it(tmp_path: Path) -> None:
    async with open_market(tmp_path, mechanism="eeg", call_seconds=600) as market:
        (one,) = await sellers(market, "one")
        _, session = await buyer_of(market, 1)
        await session.offer(architecture(), weights("buyer"))
        assert (await one.shell.session.step()).because == "gain"
        assert (await session.step()).bought


async def test_a_seller_whose_reserve_is_over_the_price_of_the_call_keeps_its_weights(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, **CALL) as market:
        await sellers(market, "one", reserve=Wei(2 * BUDGET))
        _, session = await buyer_of(market, 1)
        await session.offer(architecture(), weights("buyer"))
        step = await session.step()
        assert (step.bought, step.because) == (False, "ask")
        kept = await session.adopt()
        assert all(torch.equal(kept[n], own) for n, own in weights("buyer").items())


# ── a buyer that breaks the rules of a call ──


async def ready(market: Market) -> tuple[Party, Digest]:
    """A buyer with one trial, that has not bid."""
    await sellers(market, "one")
    buyer, session = await buyer_of(market, 1)
    base = await buyer.offer()
    await eventually(lambda: buyer.sees(market["one"]), "the offer")
    seen = buyer.sees(market["one"])
    assert seen is not None
    tried = await session._try(base, seen)
    return buyer, tried.result.trial_id


async def place(buyer: Party, *trials: Digest, budget: int = 1_000, key: str = "") -> BudgetBid:
    bid = BudgetBid(trials=trials, budget=Wei(budget))
    signer = buyer.market[key].keys.account if key else buyer.keys.account
    signature = sign_digest(signer, digest(buyer.station.domain, bid))
    broker = buyer.market.broker.peer_id
    await buyer.station.ask(broker, PlaceBid(bid=bid, signature=signature), Noted)
    return bid


async def refusal(buyer: Party, *trials: Digest, budget: int = 1_000, key: str = "") -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        await place(buyer, *trials, budget=budget, key=key)
    return caught.value.reason


async def result_of(buyer: Party, bid: BudgetBid) -> Allocated:
    found: list[Allocated] = []
    name = digest(buyer.station.domain, bid)
    while not found:
        broker = buyer.market.broker.peer_id
        answer = await buyer.station.ask_either(broker, AskAllocations(bid=name), Allocated, Noted)
        if isinstance(answer, Allocated):
            found.append(answer)
    return found[0]


async def quote(buyer: Party, trial: Digest, valuation: int) -> StreamMessage:
    return await buyer.station.ask_either(
        buyer.market.broker.peer_id,
        QuoteRequest(
            trial_id=trial,
            valuation=Wei(valuation),
            buyer_nonce=Digest(bytes(32)),
            buyer_key=Digest(bytes([1]) * 32),
            signature=bytes(65),
        ),
        Deal,
        NoDeal,
    )


async def test_bids_against_the_rules_of_a_call_are_refused_by_name(tmp_path: Path) -> None:
    async with open_market(tmp_path, **CALL) as market:
        stranger = await market.join("stranger", Driven, **AGENT)
        assert await refusal(stranger, Digest(bytes(32))) == "not-in-the-call"
        buyer, trial = await ready(market)
        assert await refusal(buyer, trial, budget=0) == "no-budget"
        assert await refusal(buyer) == "no-trial"
        assert await refusal(buyer, trial, trial) == "trial-twice"
        assert await refusal(buyer, trial, key="one") == "not-the-buyers-bid"
        assert await refusal(buyer, trial, budget=100 * ETHER) == "budget-not-held"
        assert await refusal(buyer, Digest(bytes(32))) == "unknown-trial"
        # one who tried, and says nothing, keeps the call open
        other = await market.join("other", Driven, offers_per_round=1, **AGENT)
        base = await other.offer()
        seen = other.sees(market["one"])
        assert seen is not None
        late = await other.shell.session._try(base, seen)
        bid = await place(buyer, trial)
        assert await refusal(buyer, trial, budget=1_001) == "second-bid"
        assert await place(buyer, trial) == bid  # the same again, whose answer was lost
        with pytest.raises(RemoteProtocolError, match="unknown-bid"):
            await other.station.ask(
                market.broker.peer_id,
                AskAllocations(bid=digest(buyer.station.domain, bid)),
                Noted,
            )
        with pytest.raises(RemoteProtocolError, match="not-allocated"):
            await quote(buyer, trial, 1_000)
        (given,) = (await result_of(buyer, bid)).allocations
        assert await refusal(other, late.result.trial_id) == "call-closed"
        with pytest.raises(RemoteProtocolError, match="not-the-cleared-price"):
            await quote(buyer, trial, given.price - 1)
        with pytest.raises(RemoteProtocolError, match="not-the-cleared-price"):
            await quote(buyer, trial, given.price + 1)


async def test_a_broker_that_bargains_takes_no_bids_for_a_call(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        buyer = await market.join("buyer", Driven)
        assert await refusal(buyer, Digest(bytes(32))) == "not-my-role"
        with pytest.raises(RemoteProtocolError, match="not-my-role"):
            await buyer.station.ask(market.broker.peer_id, StayOut(), Noted)


# ── a broker that does ──


@pytest.mark.parametrize(
    ("price", "another", "reason"),
    [(BUDGET + 1, False, "over-budget"), (0, False, "no-price"), (1, True, "not-tried")],
)
async def test_an_answer_that_is_none_to_the_bid_is_refused_by_name_and_nothing_is_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, price: int, another: bool, reason: str
) -> None:
    answer = CallDesk._ask_cleared

    async def cheat(desk: CallDesk, peer: PeerId, question: StreamMessage) -> StreamMessage:
        given = await answer(desk, peer, question)
        if not isinstance(given, Allocated):
            return given
        offer = Digest(bytes(32)) if another else given.allocations[0].offer_digest
        false = Allocation(offer_digest=offer, price=Wei(price), predicted=Millionths(1))
        return Allocated(call=given.call, allocations=(false,))

    monkeypatch.setattr(CallDesk, "_ask_cleared", cheat)
    async with open_market(tmp_path, **CALL) as market:
        await sellers(market, "one")
        buyer, session = await buyer_of(market, 1)
        await session.offer(architecture(), weights("buyer"))
        step = await session.step()
        assert (step.bought, step.because) == (False, reason)
        assert reason in buyer.blamed("call")
        assert not buyer.heard(TradeChanged)
        assert {fault.peer for fault in buyer.heard(PeerFault)} == {market.broker.peer_id}


async def test_a_call_that_cannot_be_cleared_is_the_brokers_fault_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: object) -> None:
        raise LocalProtocolError("no exact outcome")

    async with open_market(tmp_path, **CALL) as market:
        (one,) = await sellers(market, "one")
        buyer, session = await buyer_of(market, 1)
        with monkeypatch.context() as patched:
            patched.setattr("broker_node.calls.desk.clear_call", breaks)
            await session.offer(architecture(), weights("buyer"))
            step = await session.step()
            assert (step.bought, step.because) == (False, "call-failed")
            assert any(fault.during == "clear" for fault in market.broker.heard(OurFault))
            await session.adopt()
        await one.offer(weights("anew"))
        await session.offer(architecture(), weights("buyer"))
        assert (await session.step()).bought
        states = {market.state(row.trade_id) for row in buyer.journal.trades(role="buyer")}
        assert states <= {EscrowState.FUNDED, EscrowState.REVEALED, EscrowState.PAID}
