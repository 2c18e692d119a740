"""An agent with several brokers asks one, the next where that one fails, and says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.agent.asking import Asking
from node.agent.brokers import PASSED_OVER_SECONDS, Brokers
from node.agent.buyer import NoPrice, Tried
from node.agent.submission import Submission
from node.chain.errors import WrongContractError
from node.chain.port import Seat
from node.chronicle import BrokerPassedOver, PeerFault
from node.net.errors import PeerTimeoutError, PeerUnreachableError
from node.observe import Observer
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import Book, ListBook, Submit
from node.protocol.offer import Offer
from node.protocol.schema import checksummed
from node.protocol.signing import peer_id_of_seed
from node.protocol.types import Address, Digest, PeerId, Wei
from tests.market.market import weights
from tests.protocol.cast import NOTICE, OFFER, OFFER_DIGEST
from tests.quorum.quorum_market import join_all, open_quorum
from tests.quorum.test_quorum_market import signers

FIRST, SECOND, THIRD = (peer_id_of_seed(bytes([number]) * 32) for number in (1, 2, 3))
BASE = (Digest(b"\x01" * 32), OFFER)
OFFERED = (OFFER_DIGEST, OFFER)
Fault = Callable[[PeerId], RemoteProtocolError]


def away(peer: PeerId) -> RemoteProtocolError:
    return PeerUnreachableError("nobody answers", peer=peer)


def silent(peer: PeerId) -> RemoteProtocolError:
    return PeerTimeoutError("no answer", peer=peer)


def says(reason: str) -> Fault:
    return lambda peer: RemoteProtocolError(reason, "", peer=peer)


class Several:
    """A market of brokers, each of which fails as a test says, and an agent that knows them."""

    def __init__(self, *peers: PeerId) -> None:
        self.faults: dict[PeerId, Fault] = {}
        self.quotes: dict[PeerId, str] = {}
        """Why a broker has no price, if it has none."""
        self.told: dict[PeerId, set[bytes]] = {peer: set() for peer in peers}
        self.asked: list[tuple[str, PeerId]] = []
        self.seated = set(peers)
        self.heard_of: set[PeerId] = set()
        """Whose notices the book has: they come by gossip, after the list was made."""
        self.accounts = {
            peer: checksummed(bytes([number]) * 20) for number, peer in enumerate(peers, 1)
        }
        self.settled: set[PeerId] = set()
        self.domain = SimpleNamespace(escrow="0xe", chain_id=1)
        self.task = "task"
        self.clock = lambda: 0
        self.observer = Observer()
        self.events: list[Any] = []
        self.observer.subscribe(lambda told: self.events.append(told.event))
        self.book = SimpleNamespace(
            data_of=lambda name: b"signed " + name,
            notice_of=lambda peer, *_: self._heard(peer),
        )
        station: Any = self
        escrow: Any = SimpleNamespace(seat=self._seat)
        addresses = [f"/ip4/127.0.0.1/tcp/1/p2p/{peer}" for peer in peers]
        self.brokers = Brokers(station, escrow, addresses)
        self.submission = Submission(station, self.brokers, self.report)
        buyer: Any = self
        self.asking = Asking(station, buyer, self.brokers, self.submission)

    def report(self, during: str, error: RemoteProtocolError) -> None:
        self.events.append(PeerFault(peer=error.peer or FIRST, during=during, reason=error.reason))

    def know(self, *peers: PeerId) -> None:
        """Let the agent have asked these for their terms."""
        self.heard_of |= set(peers)
        self.settled |= set(peers)

    def _heard(self, peer: PeerId) -> Any:
        if peer not in self.heard_of:
            return None
        return b"", dataclasses.replace(NOTICE, peer_id=peer, broker=self.accounts[peer])

    def _seat(self, account: Address) -> Seat:
        taken = {self.accounts[peer] for peer in self.seated}
        return Seat.TAKEN if account in taken else Seat.STRANGER

    # ── as a station ──

    def notice_of(self, peer: PeerId) -> Any:
        return NOTICE if peer in self.heard_of & self.settled else None

    def settled_by(self, peer: PeerId, account: Address) -> None:
        assert self.accounts[peer] == account
        self.settled.add(peer)

    def has_joined(self, _: PeerId) -> bool:
        return True

    def take_in(self, _: Any) -> None: ...

    async def ask(self, peer: PeerId, question: Any, *_: Any, **__: Any) -> Any:
        self.asked.append((type(question).__name__, peer))
        await self._reached(peer)
        if isinstance(question, ListBook):
            self.heard_of.add(peer)
            return Book(statements=())
        assert isinstance(question, Submit)
        self.told[peer].add(question.statement)
        return None

    async def _reached(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        if peer in self.faults:
            raise self.faults[peer](peer)

    # ── as a buyer ──

    async def try_offer(
        self, *, broker: PeerId, base: tuple[Digest, Offer], offered: tuple[Digest, Offer]
    ) -> Tried:
        self.asked.append(("TrialRequest", broker))
        await self._reached(broker)
        if not {b"signed " + base[0], b"signed " + offered[0]} <= self.told[broker]:
            raise RemoteProtocolError("unknown-offer", "", peer=broker)
        return tried(broker)

    async def buy(self, best: Tried, _desk: Any, *, most: Wei) -> Any:
        broker = best.notice.peer_id
        self.asked.append(("QuoteRequest", broker))
        await self._reached(broker)
        if broker in self.quotes:
            return NoPrice(self.quotes[broker])
        return f"bought by {broker}"

    async def bid(self, best: Tried, objection: str = "") -> tuple[Tried, Any]:
        desk: Any = None
        return await self.asking.buy(best, BASE, desk, most=Wei(1), objection=lambda _: objection)

    def passed_over(self) -> list[tuple[PeerId, str, PeerId]]:
        said = [event for event in self.events if isinstance(event, BrokerPassedOver)]
        return [(event.peer, event.reason, event.instead) for event in said]


def tried(broker: PeerId) -> Tried:
    result: Any = None
    return Tried(
        offer_digest=OFFER_DIGEST,
        offer=OFFER,
        base_digest=BASE[0],
        base_root=OFFER.weights_root,
        notice_digest=Digest(bytes(32)),
        notice=dataclasses.replace(NOTICE, peer_id=broker),
        notice_signed=b"",
        result=result,
    )


@pytest.fixture
def three() -> Several:
    return Several(FIRST, SECOND, THIRD)


# ── trials ──


@pytest.mark.parametrize(
    "fault", [away, silent, says("busy"), says("below-quorum"), says("internal-error")]
)
async def test_the_next_broker_tries_what_the_first_one_cannot(
    three: Several, autojump_clock: MockClock, fault: Fault
) -> None:
    three.faults[FIRST] = fault
    found = await three.asking.try_offer(BASE, OFFERED)
    assert found.notice.peer_id == SECOND
    assert three.passed_over() == [(FIRST, fault(FIRST).reason, SECOND)]
    assert three.told[SECOND] == {b"signed " + BASE[0], b"signed " + OFFER_DIGEST}


@pytest.mark.parametrize("reason", ["too-wide", "not-for-sale", "seller-unreachable"])
async def test_what_a_broker_says_of_an_offer_is_asked_of_no_other(
    three: Several, autojump_clock: MockClock, reason: str
) -> None:
    three.faults[FIRST] = says(reason)
    with pytest.raises(RemoteProtocolError):
        await three.asking.try_offer(BASE, OFFERED)
    assert {peer for _, peer in three.asked} == {FIRST}
    assert three.passed_over() == []


async def test_who_failed_is_left_alone_for_the_round_and_is_first_again_later(
    three: Several,
    autojump_clock: MockClock,
) -> None:
    three.faults[FIRST] = away
    await three.asking.try_offer(BASE, OFFERED)
    del three.faults[FIRST]
    asked = len(three.asked)
    assert (await three.asking.try_offer(BASE, OFFERED)).notice.peer_id == SECOND
    three.brokers.begin_round()
    assert (await three.asking.try_offer(BASE, OFFERED)).notice.peer_id == SECOND
    assert FIRST not in {peer for _, peer in three.asked[asked:]}
    await trio.sleep(PASSED_OVER_SECONDS)
    assert (await three.asking.try_offer(BASE, OFFERED)).notice.peer_id == SECOND
    three.brokers.begin_round()
    assert (await three.asking.try_offer(BASE, OFFERED)).notice.peer_id == FIRST


async def test_nobody_is_asked_twice_in_a_round_however_long_it_takes(
    three: Several, autojump_clock: MockClock
) -> None:
    async def slow(peer: PeerId) -> None:
        await trio.sleep(2 * PASSED_OVER_SECONDS)
        raise says("busy")(peer)

    three._reached = slow  # type: ignore[method-assign]
    three.know(FIRST, SECOND, THIRD)
    with pytest.raises(RemoteProtocolError) as caught:
        await three.asking.try_offer(BASE, OFFERED)
    assert caught.value.reason == "busy"
    assert [peer for _, peer in three.asked] == [FIRST, SECOND, THIRD]


async def test_the_reason_is_what_somebody_said_and_not_that_others_were_silent(
    three: Several,
    autojump_clock: MockClock,
) -> None:
    three.faults = {FIRST: away, SECOND: says("below-quorum"), THIRD: away}
    three.know(SECOND, THIRD)
    with pytest.raises(RemoteProtocolError) as caught:
        await three.asking.try_offer(BASE, OFFERED)
    assert caught.value.reason == "below-quorum"


async def test_a_broker_that_says_no_terms_is_not_asked_to_try(
    three: Several, autojump_clock: MockClock
) -> None:
    three.faults = {FIRST: away}
    three.seated.discard(SECOND)
    found = await three.asking.try_offer(BASE, OFFERED)
    assert found.notice.peer_id == THIRD
    assert ("TrialRequest", SECOND) not in three.asked


# ── quotes ──


@pytest.mark.parametrize("by_error", [True, False])
async def test_a_broker_that_fails_to_quote_is_followed_by_one_that_tries_and_quotes(
    three: Several, autojump_clock: MockClock, by_error: bool
) -> None:
    best = tried(FIRST)
    if by_error:
        three.faults[FIRST] = silent
    else:
        three.quotes[FIRST] = "below-quorum"
    found, trade = await three.bid(best)
    assert trade == f"bought by {SECOND}"
    assert found.notice.peer_id == SECOND
    kinds = [kind for kind, peer in three.asked if peer == SECOND]
    assert kinds.index("TrialRequest") < kinds.index("QuoteRequest")


async def test_a_price_that_suits_nobody_is_asked_of_no_other_broker(
    three: Several, autojump_clock: MockClock
) -> None:
    three.quotes[FIRST] = "ask"
    _, answer = await three.bid(tried(FIRST))
    assert answer == NoPrice("ask")
    assert three.asked == [("QuoteRequest", FIRST)]


async def test_a_seller_that_the_broker_cannot_reach_is_no_failure_of_the_broker(
    three: Several,
    autojump_clock: MockClock,
) -> None:
    three.faults[FIRST] = says("unreachable")
    with pytest.raises(RemoteProtocolError):
        await three.bid(tried(FIRST))
    assert three.asked == [("QuoteRequest", FIRST)]
    assert three.passed_over() == []


async def test_what_another_broker_measures_must_be_worth_a_bid_too(
    three: Several, autojump_clock: MockClock
) -> None:
    three.faults[FIRST] = away
    found, answer = await three.bid(tried(FIRST), objection="bound")
    assert answer == NoPrice("bound")
    assert found.notice.peer_id == SECOND
    assert ("QuoteRequest", SECOND) not in three.asked


async def test_without_a_quorum_anywhere_the_reason_is_that(
    three: Several, autojump_clock: MockClock
) -> None:
    three.quotes[FIRST] = "below-quorum"
    three.faults = {SECOND: away, THIRD: away}
    _, answer = await three.bid(tried(FIRST))
    assert answer == NoPrice("below-quorum")
    three.brokers.begin_round()
    three.faults = {FIRST: says("below-quorum"), SECOND: away, THIRD: away}
    with pytest.raises(RemoteProtocolError) as caught:
        await three.bid(tried(FIRST))
    assert caught.value.reason == "below-quorum"


# ── submission, and joining ──


async def test_an_offer_is_submitted_to_the_next_broker_at_once(
    three: Several, autojump_clock: MockClock
) -> None:
    three.faults[FIRST] = away
    begun = trio.current_time()
    await three.submission.of_ours(b"ours")
    assert trio.current_time() == begun
    assert three.told[SECOND] == {b"ours"}
    assert three.brokers.current == SECOND


async def test_while_all_are_away_the_first_that_comes_back_gets_the_offer(
    three: Several,
    autojump_clock: MockClock,
) -> None:
    three.faults = dict.fromkeys((FIRST, SECOND, THIRD), away)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(three.submission.of_ours, b"ours")
        await trio.sleep(1_000)
        assert not any(three.told.values())
        del three.faults[THIRD]
        await trio.sleep(2 * PASSED_OVER_SECONDS)
        assert three.told[THIRD] == {b"ours"}


async def test_an_agent_joins_by_the_first_broker_that_says_its_terms(
    three: Several, autojump_clock: MockClock
) -> None:
    three.faults[FIRST] = away
    await three.brokers.join()
    assert three.brokers.current == SECOND
    async with trio.open_nursery() as nursery:
        nursery.start_soon(three.brokers.keep_up)
        await trio.sleep(100)
        assert THIRD in three.heard_of
        assert FIRST not in three.heard_of
        del three.faults[FIRST]
    assert FIRST in three.heard_of


async def test_brokers_without_a_seat_are_refused_only_where_there_is_no_other(
    three: Several,
    autojump_clock: MockClock,
) -> None:
    three.seated = {THIRD}
    await three.brokers.join()
    assert three.brokers.current == THIRD
    strangers = [event.peer for event in three.events if event.reason == "not-the-escrows-broker"]
    assert strangers == [FIRST, SECOND]
    nobody = Several(FIRST, SECOND)
    nobody.seated = set()
    with pytest.raises(WrongContractError, match="has no seat"):
        await nobody.brokers.join()


# ── on real hosts ──


async def test_the_first_broker_dies_and_the_market_goes_on_by_the_second(tmp_path: Path) -> None:
    async with open_quorum(tmp_path) as market:
        seller = await join_all(market, "seller", round_patience=1)
        buyer = await join_all(market, "buyer", round_patience=20)
        await seller.offer()
        await buyer.offer()
        step = await buyer.shell.session.step()
        assert step.bought, step
        await buyer.shell.session.adopt()

        await market["broker"].stop()
        await seller.offer(weights("seller, later"))
        await buyer.offer(weights("buyer, later"))
        step = await buyer.shell.session.step()
        assert step.bought, step
        for agent in (seller, buyer):
            said = agent.heard(BrokerPassedOver)
            assert {event.peer for event in said} == {market["broker"].peer_id}
            assert {event.instead for event in said} == {market["second"].peer_id}
        trade = buyer.shell.desk.find(step.trade_id, "buyer")
        assert signers(market, trade) == {"second", "third"}
        await market.see_paid(trade, buyer, seller)
        assert market.ledger().stuck == 0
