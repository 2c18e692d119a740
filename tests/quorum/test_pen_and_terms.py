"""What a broker signs when its peer asks: one quote for a trade, and only what follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from broker_node.mechanisms.price import bargain
from broker_node.quorum.pen import LONGEST_TRADE, PRUNE_SECONDS, Pen
from broker_node.quorum.terms import Terms, check_terms
from node.config.loading import load
from node.config.table import ConfigError
from node.journal import Journal, TradeRow
from node.protocol import envelope
from node.protocol.bids import AskingPrice, Bid, BidAndAsk
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import Cosign
from node.protocol.offer import Receipt
from node.protocol.quorum import join_signatures, own_signature
from node.protocol.quote import Quote
from node.protocol.signing import recover, sign_digest
from node.protocol.types import Digest, UnixTime, Wei
from node.station.station import Keys, Station
from tests.protocol import cast as parties
from tests.quorum.brokers import account_of, key_of

LATER = UnixTime(parties.NOW + 3_600)
"""When an offer ends."""


@dataclass
class Desk:
    """As much of a station as a pen needs."""

    journal: Journal
    keys: Keys
    domain: Any = parties.DOMAIN
    now: UnixTime = parties.NOW

    def clock(self) -> UnixTime:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def pen_on(path: Path) -> tuple[Pen, Journal]:
    journal = Journal(path)
    desk = Desk(journal, Keys(account=key_of(1), peer=bytes(32)))
    return Pen(cast(Station, desk)), journal


def refuses(reason: str, act: Callable[[], Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        act()
    assert caught.value.reason == reason


def test_one_quote_is_signed_for_a_trade_and_no_other_also_after_a_restart(path: Path) -> None:
    quote = parties.quote()
    other = dataclasses.replace(quote, price=Wei(quote.price + 1))
    pen, journal = pen_on(path)
    signature = pen.sign(quote, offer_expires=LATER)
    assert recover(digest(parties.DOMAIN, quote), signature) == account_of(1)
    refuses("trade-id-used", lambda: pen.sign(other, offer_expires=LATER))
    journal.close()
    pen, journal = pen_on(path)
    assert pen.sign(quote, offer_expires=LATER) == signature
    refuses("trade-id-used", lambda: pen.sign(other, offer_expires=LATER))
    assert pen.sign(dataclasses.replace(other, trade_id=Digest(bytes(32))), offer_expires=LATER)
    journal.close()


def test_what_was_signed_is_forgotten_when_nothing_can_be_signed_for_it(path: Path) -> None:
    """Neither before its trade is over, nor while its offer could be signed for."""
    pen, journal = pen_on(path)
    desk = cast(Any, pen)._station
    quote = parties.quote()
    over = quote.fund_by + LONGEST_TRADE
    old, long_lived = (
        dataclasses.replace(quote, trade_id=parties.word(n)) for n in ("old", "long")
    )
    journal.remember("quote-signed " + old.trade_id.hex(), digest(parties.DOMAIN, old))
    journal.remember("another fact", 1)
    pen.sign(quote, offer_expires=LATER)
    pen.sign(long_lived, offer_expires=UnixTime(over + 100))

    def remembered(at: int) -> set[str]:
        desk.now = UnixTime(at)
        newer = dataclasses.replace(quote, trade_id=parties.word(f"at {at}"))
        newer = dataclasses.replace(newer, fund_by=UnixTime(at + 1), reveal_by=UnixTime(at + 2))
        pen.sign(newer, offer_expires=UnixTime(at + 1))
        each = {"quote": quote, "old": old, "long": long_lived}
        return {name for name, signed in each.items() if pen.has_signed(signed)}

    assert remembered(over) == {"quote", "old", "long"}
    assert remembered(over + PRUNE_SECONDS - 1) == {"quote", "old", "long"}  # looked at hourly
    assert remembered(over + PRUNE_SECONDS) == {"old"}
    # and nothing can be signed for it a second time
    for gone in (quote, long_lived):
        other = dataclasses.replace(gone, price=Wei(gone.price + 1))
        refuses("expired", lambda other=other: pen.sign(other, offer_expires=desk.now))  # type: ignore[misc]
    changed = dataclasses.replace(old, price=Wei(old.price + 1))
    refuses("trade-id-used", lambda: pen.sign(changed, offer_expires=LATER))
    assert journal.recall("another fact") == 1
    journal.close()


def test_what_it_brokers_itself_it_does_not_sign_for_another(path: Path) -> None:
    quote = parties.quote()
    pen, journal = pen_on(path)
    journal.save_trade(
        TradeRow(trade_id=quote.trade_id, role="broker", state="x", over=False, record=b"x")
    )
    refuses("trade-id-used", lambda: pen.sign(quote, offer_expires=LATER))
    journal.close()


def test_a_party_finds_its_own_broker_among_those_that_signed() -> None:
    quote = parties.quote()
    name = digest(parties.DOMAIN, quote)
    each = {account_of(n): sign_digest(key_of(n), name) for n in range(3)}
    joined = join_signatures(each)

    def found(data: bytes, broker: int = 1) -> bytes:
        return own_signature(parties.DOMAIN, quote, data, account_of(broker))

    assert found(joined) == each[account_of(1)]
    refuses("wrong-signer", lambda: found(joined, 7))
    refuses("unsorted-brokers", lambda: found(joined[65:] + joined[:65]))
    refuses("unsorted-brokers", lambda: found(joined[:65] + joined))
    refuses("bad-signature", lambda: found(joined[:-1]))
    refuses("bad-signature", lambda: found(joined * 100))
    # one that stands alone is checked with everything else
    assert found(joined[:65]) == joined[:65]


def _honest() -> tuple[Cosign, dict[str, Any], Receipt]:
    deal, notice, offer = parties.good_deal(), parties.notice(), parties.offer()
    base = dataclasses.replace(offer, seller=deal.quote.buyer)
    valuation, ask = Wei(10**15), Wei(10**14)
    price = bargain(valuation, ask, fee_basis_points=notice.fee_basis_points)
    assert price is not None
    notice_digest, offer_digest = (digest(parties.DOMAIN, each) for each in (notice, offer))
    signed = envelope.decode(deal.receipt).body
    assert isinstance(signed, Receipt)
    receipt = dataclasses.replace(
        signed,
        broker=notice.broker,
        peer_id=notice.peer_id,
        notice_digest=notice_digest,
        offer_digest=offer_digest,
        task=offer.task,
        price=price.price,
        fee=price.fee,
        evaluation_hash=deal.evaluation.hash,
    )
    quote = dataclasses.replace(
        deal.quote,
        price=price.price,
        fee=price.fee,
        fee_recipient=notice.broker,
        receipt_hash=digest(parties.DOMAIN, receipt),
    )
    bid = Bid(trade_id=quote.trade_id, valuation=valuation, buyer_key=parties.BUYER_KEY)
    asking = AskingPrice(trade_id=quote.trade_id, offer_digest=offer_digest, ask=ask)
    bids = BidAndAsk(
        buyer_nonce=parties.BUYER_NONCE,
        bid=bid,
        bid_signature=parties.signature(bid, parties.BUYER),
        asking=asking,
        ask_signature=parties.signature(asking, parties.SELLER),
    )
    question = Cosign(case=Digest(bytes(32)), openings=(), quote=quote, receipt=b"", bids=bids)
    terms = Terms(
        notice_digest=notice_digest,
        notice=notice,
        base_digest=digest(parties.DOMAIN, base),
        base=base,
        offer_digest=offer_digest,
        offer=offer,
    )
    of_trial = {
        "terms": terms,
        "domain": parties.DOMAIN,
        "ours": account_of(1),
        "now": UnixTime(quote.fund_by - 10),
    }
    return question, of_trial, receipt


def wrong() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """What is refused: reason, name, changes of the quote, changes of the receipt too."""
    derived = {"trade_id": Digest(b"\x01" * 32)}
    yield "wrong-trade-id", "trade_id in both", derived, derived
    for name in ("trade_id", "offer_root"):
        yield "wrong-receipt", name, {name: Digest(b"\x01" * 32)}, {}
    stranger = account_of(9)
    for name in ("buyer", "seller"):
        yield "wrong-receipt", name, {name: stranger}, {}
        yield "wrong-quote", f"{name} in both", {name: stranger}, {name: stranger}
    for name in ("encryptor", "asset", "fee_recipient"):
        yield "wrong-quote", name, {name: stranger}, {}
    yield "wrong-quote", "byte_length", {"byte_length": 1}, {}
    yield "wrong-quote", "leaf_count", {"leaf_count": 1}, {}
    yield "wrong-price", "price", {"price": Wei(10**15)}, {"price": Wei(10**15)}
    yield "wrong-price", "fee", {"fee": Wei(0)}, {"fee": Wei(0)}
    yield "wrong-evaluation", "evaluation", {}, {"evaluation_hash": Digest(b"\x01" * 32)}
    yield "wrong-receipt", "notice", {}, {"notice_digest": Digest(b"\x01" * 32)}
    yield "wrong-receipt", "broker", {}, {"broker": stranger}
    yield "wrong-receipt", "offer", {}, {"offer_digest": Digest(b"\x01" * 32)}
    yield "wrong-receipt", "hash", {"receipt_hash": Digest(b"\x01" * 32)}, {}
    yield "wrong-times", "grace", {"grace": 10**9}, {}


def checked(quote: dict[str, Any], of_receipt: dict[str, Any]) -> None:
    question, of_trial, receipt = _honest()
    receipt = dataclasses.replace(receipt, **of_receipt)
    name = digest(parties.DOMAIN, receipt)
    terms: Quote = dataclasses.replace(question.quote, receipt_hash=name)
    terms = dataclasses.replace(terms, **quote)
    check_terms(
        dataclasses.replace(question, quote=terms),
        receipt,
        parties.good_deal().evaluation,
        receipt_hash=name,
        **of_trial,
    )


def test_a_quote_that_follows_from_the_median_is_signed() -> None:
    checked({}, {})


@pytest.mark.parametrize(
    ("reason", "quote", "of_receipt"),
    [pytest.param(reason, quote, more, id=name) for reason, name, quote, more in wrong()],
)
def test_nothing_else_is(reason: str, quote: dict[str, Any], of_receipt: dict[str, Any]) -> None:
    refuses(reason, lambda: checked(quote, of_receipt))


@pytest.mark.parametrize(
    ("text", "read"), [("1/1", (1, 1)), ("2/3", (2, 3)), ("33/64", (33, 64)), ("2/2", (2, 2))]
)
def test_a_quorum_is_more_than_half(text: str, read: tuple[int, int]) -> None:
    assert load(flags={"quorum": text}).config.quorum == read
    assert load(environ={"PMNODE_QUORUM": text}).config.quorum == read


@pytest.mark.parametrize("text", ["1/2", "2/4", "0/1", "4/3", "65/65", "2", "2/3/4", "a/b", "-1/1"])
def test_half_of_the_brokers_are_no_quorum(text: str) -> None:
    with pytest.raises(ConfigError, match="quorum"):
        load(flags={"quorum": text})
