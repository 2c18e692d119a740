"""A seller that its broker cannot fetch from goes on without; one whose broker is away waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.agent.brokers import Brokers
from node.agent.selection import in_turn
from node.agent.submission import UNREACHED_SECONDS, Submission
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import Address, Digest, PeerId, UnixTime
from node.station.holding import HOLD_SECONDS, HeldBack

BROKER = PeerId("broker")
STRANGER = PeerId("stranger")
ROOT = Digest(bytes(32))


class OnlyOne(Brokers):
    """The brokers of an agent that has one."""

    def __init__(self) -> None:
        self.current = BROKER

    def begin_round(self) -> None: ...

    async def pass_over(self, error: RemoteProtocolError) -> bool:
        await trio.lowlevel.checkpoint()
        return False


class Broker:
    """Answers with these reasons, the last of them for ever; an empty one is a good answer."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        self.asked = 0
        self.reported: list[str] = []

    async def ask(self, *_: Any, **__: Any) -> None:
        await trio.lowlevel.checkpoint()
        reason = self.reasons[min(self.asked, len(self.reasons) - 1)]
        self.asked += 1
        if reason:
            raise RemoteProtocolError(reason, "", peer=BROKER)

    def report(self, _: str, error: RemoteProtocolError) -> None:
        self.reported.append(error.reason)

    def submission(self) -> Submission:
        station: Any = self
        return Submission(station, OnlyOne(), self.report)


async def test_a_seller_that_its_broker_cannot_reach_asks_for_a_while_and_goes_on(
    autojump_clock: MockClock,
) -> None:
    broker, begun = Broker("seller-unreachable"), trio.current_time()
    with trio.fail_after(10 * UNREACHED_SECONDS):
        await broker.submission().of_ours(b"")
    assert UNREACHED_SECONDS / 2 < trio.current_time() - begun <= UNREACHED_SECONDS
    assert broker.asked > 2
    assert broker.reported == ["seller-unreachable"]


async def test_a_seller_waits_for_a_broker_that_is_away(autojump_clock: MockClock) -> None:
    broker, begun = Broker(*["unreachable"] * 100, ""), trio.current_time()
    await broker.submission().of_ours(b"")
    assert trio.current_time() - begun > 4 * UNREACHED_SECONDS
    assert broker.asked == 101


class Gossip:
    """What was published, and when, while a node's holds run."""

    def __init__(self) -> None:
        self.published: list[tuple[bytes, float]] = []
        self.held = HeldBack(self.publish)
        self._begun = trio.current_time()

    async def publish(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.published.append((data, trio.current_time() - self._begun))

    async def offers(self, broker: Broker, data: bytes) -> None:
        async with self.held.holding(ROOT, data):
            await broker.submission().of_ours(data)


@pytest.mark.parametrize("reason", ["timeout", "unreachable", "quota-exceeded"])
async def test_an_offer_is_published_in_time_though_its_broker_says_for_ever_that_it_is_busy(
    reason: str, autojump_clock: MockClock
) -> None:
    broker, gossip = Broker(reason), Gossip()
    with trio.move_on_after(10 * HOLD_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gossip.held.run)
            nursery.start_soon(gossip.offers, broker, b"offer")
    assert gossip.published == [(b"offer", HOLD_SECONDS)]
    assert b"offer" not in gossip.held  # and is said again with all others


async def test_an_offer_that_its_broker_has_taken_is_published_at_once_and_once(
    autojump_clock: MockClock,
) -> None:
    gossip = Gossip()
    with trio.move_on_after(10 * HOLD_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gossip.held.run)
            await gossip.offers(Broker(""), b"first")
            await trio.sleep(HOLD_SECONDS / 2)
            nursery.start_soon(gossip.offers, Broker("timeout"), b"second")
    # the end of the first is none of a second of the same weights
    assert gossip.published == [(b"first", 0), (b"second", 1.5 * HOLD_SECONDS)]


@pytest.mark.parametrize("reason", ["unreachable", "timeout", "seller-unreachable", "expired"])
async def test_the_offer_of_another_is_submitted_once(
    reason: str, autojump_clock: MockClock
) -> None:
    broker = Broker(reason)
    with trio.fail_after(UNREACHED_SECONDS):
        await broker.submission().of_another(b"")
    assert (broker.asked, broker.reported) == (1, [reason])


def offered(number: int, issued_at: int) -> Any:
    offer = SimpleNamespace(seller=Address(f"0x{number}"), issued_at=UnixTime(issued_at), nonce=0)
    return Digest(bytes([number]) * 32), offer


def receipt(number: int, broker: PeerId) -> Any:
    return SimpleNamespace(peer_id=broker, buyer=Address("0xb"), seller=Address(f"0x{number}"))


def test_whom_our_brokers_receipts_name_is_tried_first_then_the_newest() -> None:
    offers = [offered(1, 10), offered(2, 30), offered(3, 20), offered(4, 40)]
    receipts = [receipt(1, BROKER), receipt(3, STRANGER)]
    missed = {offers[3][0]}
    found = in_turn(offers, receipts=receipts, brokers={BROKER}, missed=missed, most=9)
    assert [name[0] for name, _ in found] == [1, 2, 3, 4]
    found = in_turn(offers, receipts=receipts, brokers={BROKER}, missed=missed, most=2)
    assert [name[0] for name, _ in found] == [1, 2]
