"""What a buyer does for a trade ends with the trade."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.agent import buyer
from node.agent.buyer import Buyer
from node.net.errors import PeerUnreachableError
from node.observe import Observer
from node.protocol.events import GoodsRefused, GoodsVerified
from node.protocol.purchase import FUND_MARGIN
from node.protocol.types import UnixTime
from tests.protocol.cast import FUND_BY, NOW, SELLER, purchase_record

LAST = FUND_BY - FUND_MARGIN
"""The last second in which a deposit is begun."""


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
    return Buyer(station, settings)


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


async def no_thread(question: Any, *arguments: Any) -> Any:
    """Ask without a thread: the jumping clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return question(*arguments)
