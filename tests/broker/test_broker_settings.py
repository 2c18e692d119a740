"""A broker serves on terms under which the market hears of every trade that is paid."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.settings import LEAST_PRICE_HISTORY, BrokerSettings, ReceiptTooShortError
from node.config.table import SETTINGS
from node.protocol.book import OfferBook
from node.protocol.offer import MAX_LIFETIME
from node.protocol.types import UnixTime
from tests.protocol.cast import BROKER, DOMAIN, NOW, receipt, seal

WINDOWS = ("fund_seconds", "reveal_seconds", "grace_seconds", "dispute_window_seconds")
PLAY = 60
"""The dispute window on play money; on real money the confirmations decide."""
USUAL: dict[str, Any] = {name: SETTINGS[name].default or PLAY for name in WINDOWS}
ROOM = MAX_LIFETIME - LEAST_PRICE_HISTORY


def settings(**changes: int) -> BrokerSettings:
    return BrokerSettings(fee_basis_points=200, **(USUAL | changes))


def test_the_usual_terms_are_served() -> None:
    assert settings().longest_trade == sum(USUAL.values())


@pytest.mark.parametrize("name", WINDOWS)
def test_a_trade_that_outlasts_its_receipt_is_refused_at_the_start(name: str) -> None:
    most = ROOM - sum(USUAL.values()) + USUAL[name]
    assert settings(**{name: most}).longest_trade == ROOM
    with pytest.raises(ReceiptTooShortError) as refused:
        settings(**{name: most + 1})
    for fragment in (f"{name} = {most + 1}", f"make {ROOM + 1} s", f"shorten them to {ROOM} s"):
        assert fragment in str(refused.value)


def test_a_receipt_that_no_book_would_take_is_refused_at_the_start() -> None:
    with pytest.raises(ReceiptTooShortError, match=f"receipt_seconds = {MAX_LIFETIME + 1}"):
        settings(receipt_seconds=MAX_LIFETIME + 1)


@given(st.fixed_dictionaries({name: st.integers(0, 40_000) for name in WINDOWS}))
def test_the_receipt_of_the_slowest_trade_is_taken_and_is_read_for_an_hour(
    windows: dict[str, int],
) -> None:
    try:
        terms = settings(**windows)
    except ReceiptTooShortError:
        assert sum(windows.values()) > ROOM
        return
    body = receipt(issued_at=NOW, expires_at=UnixTime(NOW + terms.receipt_seconds))
    paid_at = UnixTime(NOW + terms.longest_trade)
    book = OfferBook(DOMAIN)
    assert book.receive(seal(body, BROKER), paid_at).accepted
    book.expire(UnixTime(paid_at + LEAST_PRICE_HISTORY - 1))
    assert book.receipts(body.task) == [body]


def test_no_blob_is_fetched_that_is_longer_than_the_largest_model_of_a_gibibyte() -> None:
    assert settings().max_model_bytes == 1024**3


def test_the_models_held_take_two_gibibytes_at_most_and_any_one_fits() -> None:
    assert settings().max_models_bytes == 2 * 1024**3
    assert settings().max_model_bytes <= settings().max_models_bytes
