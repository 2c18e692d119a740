"""What the tables do not say: margins, notes, and which signature counts."""

from __future__ import annotations

import dataclasses

import pytest

from node.protocol.brokerage import BrokerageState
from node.protocol.errors import LocalProtocolError
from node.protocol.events import (
    BadGoods,
    Deliver,
    Delivered,
    Funded,
    GoodsRefused,
    Paid,
    Refunded,
    Revealed,
    Step,
    Tick,
    Transact,
)
from node.protocol.purchase import FUND_MARGIN, Purchase, PurchaseState
from node.protocol.sale import REVEAL_MARGIN, Sale, SaleState
from node.protocol.schema import from_map, to_map
from node.protocol.types import Digest, UnixTime
from tests.protocol import cast
from tests.protocol.cast import (
    DISPUTE_WINDOW,
    FUND_BY,
    NOW,
    REFUND_FROM,
    REVEAL_BY,
    SECRET,
    a_brokerage,
    a_purchase,
    a_sale,
    countersign,
    purchase_record,
)

# ── the buyer ──


def test_money_is_sent_only_in_time() -> None:
    buyer = a_purchase("funding")
    last = UnixTime(FUND_BY - FUND_MARGIN)
    assert buyer.may_send(Step.FUND, last)
    assert not buyer.may_send(Step.FUND, UnixTime(last + 1))


def test_a_buyer_that_restarts_too_late_gives_up_and_funds_nothing() -> None:
    buyer = a_purchase("fetching")
    assert buyer.deadline == FUND_BY - FUND_MARGIN
    assert buyer.resume(UnixTime(FUND_BY)) == []
    assert buyer.state is PurchaseState.ABANDONED
    assert buyer.deadline is None


def test_a_buyer_that_restarts_while_funding_asks_the_chain_before_it_gives_up() -> None:
    buyer = a_purchase("funding")
    assert buyer.resume(UnixTime(REFUND_FROM)) == [Transact(Step.FUND)]
    assert not buyer.may_send(Step.FUND, REFUND_FROM)
    assert buyer.receive(Funded(), REFUND_FROM) == []
    assert buyer.receive(Tick(UnixTime(REFUND_FROM + 1)), NOW) == [Transact(Step.REFUND)]


def test_the_secret_is_remembered_with_the_state() -> None:
    buyer = a_purchase("funded")
    other = cast.word("what was revealed")
    assert buyer.receive(Revealed(other, NOW), NOW) == [Deliver(other)]
    assert Purchase(buyer.record).resume(NOW) == [Deliver(other)]


def test_what_was_wrong_is_remembered() -> None:
    buyer = a_purchase("fetching")
    buyer.receive(GoodsRefused("x" * 5_000), NOW)
    assert buyer.record.note == "x" * 1_000
    buyer = a_purchase("revealed")
    buyer.receive(BadGoods(cast.EVIDENCE), NOW)
    assert "17" in buyer.record.note
    for events in (
        (Delivered("as measured, but"), Paid()),
        (Paid(), Delivered("as measured, but")),
    ):
        buyer = a_purchase("revealed")
        for event in events:
            buyer.receive(event, NOW)
        assert (buyer.state, buyer.record.note) == (PurchaseState.COMPLETE, "as measured, but")


def test_a_revealed_purchase_without_its_secret_is_our_own_fault() -> None:
    record = dataclasses.replace(purchase_record(PurchaseState.REVEALED), secret=None)
    with pytest.raises(LocalProtocolError, match="no secret"):
        Purchase(record).resume(NOW)


def test_a_payment_that_ends_before_the_decryption_is_not_forgotten() -> None:
    buyer = a_purchase("revealed")
    assert buyer.receive(Paid(), NOW) == []
    assert not buyer.settled
    back = Purchase(from_map(type(buyer.record), to_map(buyer.record)))
    assert back.resume(NOW) == [Deliver(SECRET)]
    assert back.receive(Delivered(), NOW) == []
    assert back.state is PurchaseState.COMPLETE


def test_a_trade_names_itself() -> None:
    for machine in (a_purchase("fetching"), a_sale("prepared"), a_brokerage("proposed")):
        assert machine.record.trade_id == cast.TRADE_ID


# ── the seller ──


def test_the_secret_is_sent_only_while_it_is_owed_and_in_time_by_both_clocks() -> None:
    last = UnixTime(REVEAL_BY - REVEAL_MARGIN)
    seller = a_sale("revealing")
    assert seller.may_send(Step.REVEAL, last)
    assert not seller.may_send(Step.REVEAL, UnixTime(last + 1))
    seller.receive(Tick(last), NOW)
    assert seller.may_send(Step.REVEAL, NOW)
    seller.receive(Tick(UnixTime(last + 1)), NOW)
    assert not seller.may_send(Step.REVEAL, NOW)
    seller.receive(Tick(NOW), NOW)  # a block that is told again does not turn time back
    assert not seller.may_send(Step.REVEAL, NOW)


def test_a_sale_that_is_funded_when_the_chain_is_past_reveal_by_is_withheld() -> None:
    seller = a_sale("countersigned")
    seller.record = dataclasses.replace(
        seller.record, quote=dataclasses.replace(cast.quote(), fund_by=UnixTime(REVEAL_BY - 1))
    )
    seller.receive(Tick(UnixTime(REVEAL_BY - 1)), NOW)
    seller.receive(Tick(UnixTime(REVEAL_BY - REVEAL_MARGIN)), NOW)
    assert seller.receive(Funded(), NOW) == [Transact(Step.REVEAL)]
    seller = a_sale("countersigned")
    seller.chain_time = REVEAL_BY
    assert seller.receive(Funded(), NOW) == []
    assert seller.state is SaleState.WITHHELD


@pytest.mark.parametrize("state", [s.value for s in SaleState if s.value != "revealing"])
def test_the_secret_leaves_in_no_other_state(state: str) -> None:
    assert not a_sale(state).may_send(Step.REVEAL, NOW)
    assert Transact(Step.REVEAL) not in a_sale(state).resume(NOW)


def test_a_sale_without_a_quote_hears_nothing() -> None:
    seller = a_sale("prepared")
    for event in (Funded(), Revealed(SECRET, NOW), Paid(), Refunded(), Tick(REFUND_FROM)):
        assert seller.receive(event, NOW) == []
    assert seller.state is SaleState.PREPARED


def test_a_second_countersignature_is_only_for_the_same_quote() -> None:
    seller = a_sale("prepared")
    countersign(seller)
    record = seller.record
    countersign(seller)
    assert seller.record is record
    with pytest.raises(LocalProtocolError, match="countersigned"):
        seller.countersign(
            cast.quote(price=cast.VALUATION), broker_signature=b"", signature=b"", receipt=b""
        )
    assert seller.record is record


def test_a_sale_that_was_given_up_is_not_countersigned() -> None:
    seller = a_sale("prepared")
    seller.expire(UnixTime(NOW + 31))
    with pytest.raises(LocalProtocolError, match="expired"):
        countersign(seller)


def test_a_prepared_sale_that_restarts_too_late_is_given_up() -> None:
    seller = a_sale("prepared")
    assert seller.deadline == NOW + 30
    assert seller.resume(UnixTime(NOW + 31)) == []
    assert seller.state is SaleState.EXPIRED
    assert seller.deadline is None


def test_the_payment_is_finalized_when_the_window_after_the_reveal_has_passed() -> None:
    seller = a_sale("revealing")
    revealed_at = UnixTime(REVEAL_BY + 5)
    seller.receive(Revealed(SECRET, revealed_at), NOW)
    back = Sale(seller.record)
    assert back.receive(Tick(UnixTime(revealed_at + DISPUTE_WINDOW)), NOW) == []
    assert back.receive(Tick(UnixTime(revealed_at + DISPUTE_WINDOW + 1)), NOW) == [
        Transact(Step.FINALIZE)
    ]


# ── the broker ──


def test_the_sellers_signature_is_taken_once() -> None:
    broker = a_brokerage("proposed")
    broker.countersigned(b"first")
    broker.countersigned(b"second")
    assert broker.record.deal.seller_signature == b"first"


def test_a_trade_that_was_refunded_publishes_no_receipt() -> None:
    broker = a_brokerage("funded")
    assert broker.receive(Refunded(), NOW) == []
    assert broker.resume(NOW) == []


@pytest.mark.parametrize("step", [Step.FUND, Step.REVEAL, Step.REFUND])
def test_a_broker_never_touches_the_parties_transactions(step: Step) -> None:
    for state in BrokerageState:
        assert not a_brokerage(state.value).may_send(step, NOW)


def test_the_secret_of_another_trade_opens_nothing_of_ours() -> None:
    assert Digest(SECRET) != cast.good_deal().quote.secret_commitment
