"""What a buyer does for a trade ends with the trade."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.agent import buyer
from node.agent.buyer import Buyer, NoPrice
from node.agent.consent import Consent
from node.agent.strategies.base import Usual
from node.chain.errors import ChainUnavailableError, UnfundedAccountError
from node.chronicle import TransactionDelayed
from node.net.errors import PeerUnreachableError
from node.observe import Observer
from node.protocol.errors import RemoteProtocolError
from node.protocol.events import GoodsRefused, GoodsVerified
from node.protocol.messages import NoDeal
from node.protocol.purchase import FUND_MARGIN, PurchaseRecord
from node.protocol.quote import Quote
from node.protocol.types import UnixTime, Wei
from tests.protocol.cast import (
    BUYER,
    DOMAIN,
    FUND_BY,
    NOTICE,
    NOW,
    OFFER,
    OFFER_DIGEST,
    SELLER,
    purchase_record,
    word,
)

LAST = FUND_BY - FUND_MARGIN
"""The last second in which a deposit is begun."""


class Willing(Consent):
    """Finds every quote well signed, unless a test says otherwise."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def require(self, quote: Quote, signatures: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.answers:
            raise self.answers.pop(0)


async def rich(purchase: PurchaseRecord) -> None:
    """Can pay for everything."""


def clock() -> UnixTime:
    return UnixTime(NOW + int(trio.current_time()))


@pytest.fixture
def ours() -> Buyer:
    """A buyer whose network is whatever a test says."""
    station: Any = SimpleNamespace(
        clock=clock,
        network=None,
        observer=Observer(),
        book=SimpleNamespace(addresses_of=lambda _: ()),
        blobs=SimpleNamespace(put_hashes=lambda *_: None, has=lambda _: True),
    )
    settings: Any = None
    return Buyer(station, settings, Willing(), afford=rich)


@pytest.mark.parametrize(
    ("said", "because"),
    [("ask", "cash"), ("fee", "cash"), ("below-quorum", "below-quorum"), ("busy", "busy")],
)
async def test_that_we_lack_cash_is_no_reason_of_a_broker_that_cannot_quote(
    ours: Buyer, said: str, because: str
) -> None:
    """With more cash there would have been a price; with more brokers, only elsewhere."""

    async def no_deal(*_: Any, **__: Any) -> NoDeal:
        await trio.lowlevel.checkpoint()
        return NoDeal(reason=said)

    station: Any = ours._station
    station.account, station.domain = BUYER.account, DOMAIN
    station.keys = SimpleNamespace(account=BUYER.account_key)
    station.ask_either = no_deal
    settings: Any = SimpleNamespace(value_of=lambda _: Wei(1_000), strategy=Usual())
    ours._settings = settings
    tried: Any = SimpleNamespace(
        result=SimpleNamespace(gain=1, trial_id=word("a trial")),
        notice=NOTICE,
        offer=OFFER,
        offer_digest=OFFER_DIGEST,
    )
    desk: Any = None
    assert await ours.buy(tried, desk, most=Wei(999)) == NoPrice(because)
    assert await ours.buy(tried, desk, most=Wei(1_000)) == NoPrice(said)


async def test_no_download_goes_on_for_a_trade_that_is_given_up(
    ours: Buyer, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    ended: list[float] = []

    async def endless(*_: Any, **__: Any) -> bytes:
        try:
            await trio.sleep(50_000)
        finally:
            ended.append(clock())
        return b""

    monkeypatch.setattr(buyer, "fetch_hashes", endless)
    with trio.fail_after(10_000):
        given = await ours.fetch_goods(purchase_record())
    assert given == GoodsRefused("the goods did not come in time")
    assert ended == [LAST + 1]


async def test_goods_that_come_in_the_last_second_are_in_time(
    ours: Buyer, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def slow(*_: Any, **__: Any) -> bytes:
        await trio.sleep(LAST - NOW + 0.5)
        return b""

    monkeypatch.setattr(buyer, "fetch_hashes", slow)
    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    assert await ours.fetch_goods(purchase_record()) == GoodsVerified()


async def test_a_seller_that_is_away_is_asked_until_it_is_too_late(
    ours: Buyer, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    asked: list[int] = []

    async def away(*_: Any, **__: Any) -> bytes:
        await trio.lowlevel.checkpoint()
        asked.append(clock())
        raise PeerUnreachableError("nobody answers", peer=SELLER.peer_id)

    monkeypatch.setattr(buyer, "fetch_hashes", away)
    assert isinstance(await ours.fetch_goods(purchase_record()), GoodsRefused)
    assert set(asked) == set(range(NOW, LAST + 1))


async def test_nothing_is_fetched_for_a_trade_whose_time_has_gone(
    ours: Buyer, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def never(*_: Any, **__: Any) -> bytes:
        raise AssertionError("it was asked for")

    monkeypatch.setattr(buyer, "fetch_hashes", never)
    await trio.sleep(LAST + 1 - NOW)
    assert isinstance(await ours.fetch_goods(purchase_record()), GoodsRefused)


@pytest.fixture
def goods_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """All goods are there at once."""

    async def whole(*_: Any, **__: Any) -> bytes:
        await trio.lowlevel.checkpoint()
        return b""

    monkeypatch.setattr(buyer, "fetch_hashes", whole)
    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)


async def test_nothing_is_paid_on_a_quote_whose_brokers_have_left_their_seats(
    ours: Buyer, goods_come: None, autojump_clock: MockClock
) -> None:
    ours._consent = Willing(RemoteProtocolError("not-of-the-quorum", "0xb has no seat"))
    given = await ours.fetch_goods(purchase_record())
    assert isinstance(given, GoodsRefused)
    assert "not-of-the-quorum" in given.reason


async def test_a_chain_that_is_away_is_asked_until_it_says_who_sits(
    ours: Buyer, goods_come: None, autojump_clock: MockClock
) -> None:
    ours._consent = Willing(*[ChainUnavailableError("away")] * 5)
    assert await ours.fetch_goods(purchase_record()) == GoodsVerified()
    assert trio.current_time() == pytest.approx(5 * buyer.RETRY_SECONDS)
    ours._consent = Willing(*[ChainUnavailableError("away")] * 100_000)
    assert isinstance(await ours.fetch_goods(purchase_record()), GoodsRefused)
    assert clock() == LAST + 1


async def test_no_deposit_is_made_that_could_not_be_disputed(
    ours: Buyer, goods_come: None, autojump_clock: MockClock
) -> None:
    """Fees may fall again, or money come, for as long as there is time to fund."""
    heard: list[Any] = []
    ours._station.observer.subscribe(lambda told: heard.append(told.event))
    poor_for = 5

    async def afford(_: PurchaseRecord) -> None:
        nonlocal poor_for
        await trio.lowlevel.checkpoint()
        poor_for -= 1
        if poor_for >= 0:
            raise UnfundedAccountError("the account holds 1 wei and needs 2")

    ours._afford = afford
    record = purchase_record()
    assert await ours.fetch_goods(record) == GoodsVerified()
    assert trio.current_time() == pytest.approx(5 * buyer.RETRY_SECONDS)
    (delayed,) = heard
    assert isinstance(delayed, TransactionDelayed)
    assert (delayed.trade_id, delayed.step) == (record.trade_id, "fund")
    assert delayed.reason == "the account holds 1 wei and needs 2"
    poor_for = 100_000
    given = await ours.fetch_goods(record)
    assert given == GoodsRefused(
        "no deposit is made that could not be disputed: the account holds 1 wei and needs 2"
    )
    assert clock() == LAST


async def test_who_has_nothing_left_to_bid_is_told_before_anybody_is_asked(ours: Buyer) -> None:
    settings: Any = SimpleNamespace(value_of=lambda _: Wei(1_000), strategy=Usual())
    ours._settings = settings
    tried: Any = SimpleNamespace(result=SimpleNamespace(gain=1), offer=None)
    desk: Any = None
    assert await ours.buy(tried, desk, most=Wei(0)) == NoPrice("cash")


async def no_thread(question: Any, *arguments: Any) -> Any:
    """Ask without a thread: the jumping clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return question(*arguments)
