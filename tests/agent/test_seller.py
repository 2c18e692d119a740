"""A seller that was restarted asks as it would have asked, and knows what it has forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.agent.seller import OWN_GAIN, Seller
from node.agent.strategies.base import Usual
from node.journal import Journal, TradeRow
from node.observe import Observer
from node.protocol.bids import AskingPrice, check_ask
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import Ask, AskRequest, PrepareGoods
from node.protocol.types import Wei
from tests.protocol.cast import (
    BUYER,
    BUYER_KEY,
    BUYER_NONCE,
    DOMAIN,
    NOTICE,
    OFFER,
    OFFER_DIGEST,
    SELLER,
    TRADE_ID,
    word,
)  # fmt: skip

ETHER = Wei(10**18)
ASKED = AskRequest(trade_id=TRADE_ID, offer_digest=OFFER_DIGEST, fee_basis_points=0)
PEER = NOTICE.peer_id
Start = Callable[[], Seller]


class Desk:
    """Knows no open trade, and must not be asked of one that was pruned."""

    def find(self, trade_id: bytes, side: str) -> None:
        assert trade_id != TRADE_ID


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


@pytest.fixture
def start(journal: Journal) -> Start:
    """Make a seller anew from its journal; it asks for what its own gain was worth."""

    def ask(own: Wei | None, *_: object) -> Wei:
        return own if own is not None else Wei(7)

    def begin() -> Seller:
        station: Any = SimpleNamespace(
            journal=journal,
            domain=DOMAIN,
            keys=SimpleNamespace(account=SELLER.account_key),
            book=SimpleNamespace(receipts=lambda _: []),
            account=SELLER.account,
            own_offer=lambda _: OFFER,
            notice_of=lambda _: NOTICE,
            observer=Observer(),
        )
        desk: Any = Desk()
        settings: Any = SimpleNamespace(ask=ask, strategy=Usual())
        consent: Any = None
        return Seller(station, desk, settings, consent)

    return begin


async def asks(seller: Seller) -> int:
    answer = await seller._ask(PEER, ASKED)
    assert isinstance(answer, Ask)
    asking = AskingPrice(trade_id=TRADE_ID, offer_digest=OFFER_DIGEST, ask=answer.ask)
    check_ask(DOMAIN, asking, answer.signature, SELLER.account)
    return answer.ask


@pytest.mark.parametrize("worth", [3 * ETHER, 2**255])
async def test_what_its_own_trials_were_worth_is_in_its_ask_after_a_restart(
    start: Start, worth: int
) -> None:
    first = start()
    assert first.own_gain_value is None
    first.own_gain_value = Wei(1)
    first.own_gain_value = Wei(worth)
    again = start()
    assert again.own_gain_value == worth
    assert await asks(again) == await asks(first) == worth


async def test_a_trial_that_gave_nothing_is_remembered_too(start: Start) -> None:
    start().own_gain_value = Wei(0)
    assert start().own_gain_value == 0


@pytest.mark.parametrize("fact", [None, 7, "", "-1", "1.5", "one", "١٢x"])
async def test_a_gain_that_is_none_of_ours_is_no_gain(
    start: Start, journal: Journal, fact: Any
) -> None:
    journal.remember(OWN_GAIN, fact)
    assert start().own_gain_value is None
    assert await asks(start()) == OFFER.reserve


async def test_what_was_asked_for_one_offer_is_no_ask_for_another(start: Start) -> None:
    """A broker names the id of a trade of the dear offer, and the cheap offer."""
    seller: Any = start()
    seller._desk = SimpleNamespace(find=lambda *_: None)
    dear = PrepareGoods(
        trade_id=TRADE_ID,
        offer_digest=OFFER_DIGEST,
        buyer=BUYER.account,
        buyer_key=BUYER_KEY,
        buyer_nonce=BUYER_NONCE,
    )
    cheap = dataclasses.replace(ASKED, offer_digest=word("the cheap offer"))
    answer = await seller._ask(PEER, cheap)
    assert isinstance(answer, Ask)
    with pytest.raises(RemoteProtocolError) as refused:
        await seller._prepare(PEER, dear)
    assert refused.value.reason == "never-asked"
    # nor does its signature stand for the dear one before other brokers
    claimed = AskingPrice(trade_id=TRADE_ID, offer_digest=OFFER_DIGEST, ask=answer.ask)
    with pytest.raises(RemoteProtocolError) as refused:
        check_ask(DOMAIN, claimed, answer.signature, SELLER.account)
    assert refused.value.reason == "not-the-sellers-ask"


def test_of_a_sale_that_was_pruned_nothing_is_served(start: Start, journal: Journal) -> None:
    journal.save_trade(
        TradeRow(trade_id=TRADE_ID, role="seller", state="paid", over=True, record=b"record")
    )
    for day in (0, 100):
        journal.prune(day * 86_400, trade_seconds=90 * 86_400)
    for part in ("data", "hashes"):
        with pytest.raises(RemoteProtocolError) as refused:
            start().serve_goods(PEER, TRADE_ID, part)
        assert refused.value.reason == "unknown-trade"
