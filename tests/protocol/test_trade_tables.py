"""Each machine does what the table in its essay says, in every state, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import pytest

from node.protocol import book, brokerage, purchase, sale
from node.protocol.brokerage import BROKERAGE_ENDS, Brokerage, BrokerageState
from node.protocol.errors import LocalProtocolError
from node.protocol.events import (
    BadGoods,
    Deliver,
    Delivered,
    Effect,
    FetchGoods,
    Funded,
    GoodsRefused,
    GoodsVerified,
    Paid,
    PublishReceipt,
    Refunded,
    Revealed,
    Step,
    Tick,
    Transact,
    Withdrawn,
)
from node.protocol.purchase import FUND_MARGIN, PURCHASE_ENDS, Purchase, PurchaseState
from node.protocol.sale import REVEAL_MARGIN, SALE_ENDS, Sale, SaleState
from node.protocol.schema import from_map, to_map
from node.protocol.types import Digest, UnixTime
from tests.protocol import cast, tables
from tests.protocol.cast import (
    DISPUTE_WINDOW,
    FUND_BY,
    GRACE,
    NOW,
    REVEAL_BY,
    SECRET,
    Machine,
    brokerage_record,
    purchase_record,
    sale_record,
)

Act = Callable[[Any], list[Effect]]
RECEIPT: Final = cast.good_deal().receipt
REFUND_FROM: Final = UnixTime(REVEAL_BY + GRACE)
PAYABLE_FROM: Final = UnixTime(NOW + 100 + DISPUTE_WINDOW)


def told(event: Any, now: int = NOW) -> Act:
    return lambda machine: list(machine.receive(event, UnixTime(now)))


def tick(time: int) -> Act:
    return told(Tick(UnixTime(time)))


def delivered_late(machine: Purchase) -> list[Effect]:
    if machine.state is PurchaseState.REVEALED:
        machine.receive(Paid(), NOW)
    return machine.receive(Delivered(), NOW)


def countersign(machine: Sale) -> list[Effect]:
    whole = cast.good_deal()
    machine.countersign(
        whole.quote,
        broker_signature=whole.broker_signature,
        signature=whole.seller_signature,
        receipt=whole.receipt,
    )
    return []


def signed_by_seller(machine: Brokerage) -> list[Effect]:
    machine.countersigned(cast.good_deal().seller_signature)
    return []


# every way in which the world can speak to a machine: what is said, and in which rows it counts
PURCHASE: Final[list[tuple[set[str], Act]]] = [
    ({"goods verified, in time"}, told(GoodsVerified(), FUND_BY - FUND_MARGIN)),
    ({"goods verified, too late"}, told(GoodsVerified(), FUND_BY - FUND_MARGIN + 1)),
    ({"goods refused"}, told(GoodsRefused("not what the quote says"))),
    (set(), lambda m: list(m.expire(UnixTime(FUND_BY - FUND_MARGIN)))),
    ({"clock is past fund_by"}, lambda m: list(m.expire(UnixTime(FUND_BY - FUND_MARGIN + 1)))),
    ({"funded"}, told(Funded())),
    ({"funded"}, told(Funded(), REFUND_FROM + 1_000)),
    ({"revealed"}, told(Revealed(SECRET, NOW))),
    ({"revealed"}, told(Revealed(SECRET, REFUND_FROM), REFUND_FROM + 1_000)),
    ({"delivered"}, told(Delivered())),
    ({"delivered"}, told(Delivered("the recipe does not give the weights"))),
    ({"delivered, paid before"}, delivered_late),
    ({"bad goods"}, told(BadGoods(17))),
    ({"paid"}, told(Paid())),
    ({"refunded"}, told(Refunded())),
    ({"withdrawn"}, told(Withdrawn())),
    (set(), tick(0)),
    (set(), tick(FUND_BY)),
    ({"chain is past fund_by"}, tick(FUND_BY + 1)),
    ({"chain is past fund_by"}, tick(REFUND_FROM)),
    ({"chain is past fund_by", "chain is past reveal_by + grace"}, tick(REFUND_FROM + 1)),
]
SALE: Final[list[tuple[set[str], Act]]] = [
    ({"countersigned"}, countersign),
    (set(), lambda m: list(m.expire(UnixTime(NOW + 30)))),
    ({"clock is past prepared_until"}, lambda m: list(m.expire(UnixTime(NOW + 31)))),
    ({"funded, in time"}, told(Funded())),
    ({"funded, in time"}, told(Funded(), REVEAL_BY - REVEAL_MARGIN)),
    ({"funded, too late"}, told(Funded(), REVEAL_BY - REVEAL_MARGIN + 1)),
    ({"revealed"}, told(Revealed(SECRET, UnixTime(NOW + 100)))),
    ({"revealed"}, told(Revealed(SECRET, REFUND_FROM), REFUND_FROM + 1_000)),
    ({"refunded"}, told(Refunded())),
    ({"paid"}, told(Paid())),
    ({"withdrawn"}, told(Withdrawn())),
    (set(), tick(FUND_BY)),
    ({"chain is past fund_by"}, tick(FUND_BY + 1)),
    ({"chain is past fund_by"}, tick(PAYABLE_FROM)),
    ({"chain is past fund_by", "chain is past the dispute window"}, tick(PAYABLE_FROM + 1)),
    ({"chain is past fund_by", "chain is past the dispute window"}, tick(REFUND_FROM + 1_000)),
    ({"restarted, too late"}, lambda m: list(m.resume(UnixTime(REVEAL_BY - REVEAL_MARGIN + 1)))),
]
BROKERAGE: Final[list[tuple[set[str], Act]]] = [
    ({"countersigned"}, signed_by_seller),
    ({"funded"}, told(Funded())),
    ({"revealed"}, told(Revealed(SECRET, NOW))),
    ({"paid"}, told(Paid())),
    ({"refunded"}, told(Refunded())),
    ({"withdrawn"}, told(Withdrawn())),
    (set(), tick(FUND_BY)),
    ({"chain is past fund_by"}, tick(FUND_BY + 1)),
    ({"chain is past fund_by"}, tick(REFUND_FROM + 1_000)),
    (set(), lambda m: list(m.expire(UnixTime(REFUND_FROM + 1_000)))),
]
EFFECTS: Final[dict[str, Effect]] = {
    "fund": Transact(Step.FUND),
    "reveal": Transact(Step.REVEAL),
    "finalize": Transact(Step.FINALIZE),
    "refund": Transact(Step.REFUND),
    "withdraw": Transact(Step.WITHDRAW),
    "deliver": Deliver(SECRET),
    "publish": PublishReceipt(RECEIPT),
}


def a_purchase(state: str) -> Purchase:
    return Purchase(purchase_record(PurchaseState(state)))


def a_sale(state: str) -> Sale:
    return Sale(sale_record(SaleState(state)))


def a_brokerage(state: str) -> Brokerage:
    return Brokerage(brokerage_record(BrokerageState(state)))


@dataclasses.dataclass(frozen=True)
class Case:
    """One machine: its essay, its states, and what it can be told."""

    module: ModuleType
    make: Callable[[str], Machine]
    states: tuple[str, ...]
    ends: frozenset[str]
    events: list[tuple[set[str], Act]]

    @property
    def rows(self) -> dict[tuple[str, str], tuple[str, list[Effect]]]:
        return {
            (state, event): (then, [EFFECTS[word] for word in effects.split(", ") if word])
            for state, event, then, effects in tables.rows(self.module)
        }


def case(module: ModuleType, make: Any, states: Any, ends: Any, events: Any) -> Case:
    return Case(
        module, make, tuple(s.value for s in states), frozenset(s.value for s in ends), events
    )


CASES: Final = {
    "purchase": case(purchase, a_purchase, PurchaseState, PURCHASE_ENDS, PURCHASE),
    "sale": case(sale, a_sale, SaleState, SALE_ENDS, SALE),
    "brokerage": case(brokerage, a_brokerage, BrokerageState, BROKERAGE_ENDS, BROKERAGE),
}
PAIRS: Final = [
    pytest.param(name, state, number, id=f"{name}-{state}-{number}")
    for name, each in CASES.items()
    for state in each.states
    for number in range(len(each.events))
]


@pytest.mark.parametrize(("name", "state", "number"), PAIRS)
def test_a_machine_moves_as_its_table_says_and_else_stands_still(
    name: str, state: str, number: int
) -> None:
    told_as, act = CASES[name].events[number]
    rows = CASES[name].rows
    machine = CASES[name].make(state)
    before = machine.record
    expected = [rows[state, word] for word in told_as if (state, word) in rows]
    assert len(expected) <= 1
    restart = told_as == {"restarted, too late"}
    if not expected and restart:
        return  # what a restart owes in other states is a test of its own
    effects = act(machine)
    if expected:
        assert (machine.state.value, effects) == expected[0]
        assert machine.record.state == machine.state.value
    else:
        assert (machine.state.value, effects) == (state, [])
        assert machine.record is before  # so there is nothing to journal


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_the_table_is_among_what_is_told(name: str) -> None:
    each = CASES[name]
    said = set().union(*(words for words, _ in each.events))
    assert {event for _, event in each.rows} == said
    assert {state for state, _ in each.rows} | {then for then, _ in each.rows.values()} == set(
        each.states
    )
    assert len(tables.rows(each.module)) == len(each.rows)


@pytest.mark.parametrize("name", CASES)
def test_a_machine_is_over_exactly_where_no_row_leads_on(name: str) -> None:
    each = CASES[name]
    assert each.ends == set(each.states) - {state for state, _ in each.rows}
    assert {s for s in each.states if each.make(s).over} == each.ends


@pytest.mark.parametrize("name", CASES)
def test_the_graph_has_the_edges_of_the_table(name: str) -> None:
    drawn = [tuple(edge) for edge in tables.edges(name)]
    written = [
        (state, then, f"{event} / {effects}" if effects else event)
        for state, event, then, effects in tables.rows(CASES[name].module)
    ]
    assert sorted(drawn) == sorted(written)


def test_the_graph_of_the_book_has_the_verdicts_of_its_table() -> None:
    rows = tables.rows(book)
    verdicts = {"accept", "ignore", "reject"}
    drawn = [tuple(edge) for edge in tables.edges("book")]
    assert [edge for edge in drawn if edge[1] in verdicts] == [(q, v, r) for q, r, v in rows]
    asked = [question for question, _, _ in rows]
    assert [edge for edge in drawn if edge[1] not in verdicts] == [
        (here, there, "yes") for here, there in itertools.pairwise(asked)
    ]


# ── what a state owes the world ──

OWED: Final[dict[str, dict[str, list[Effect]]]] = {
    "purchase": {
        "fetching": [FetchGoods()],
        "funding": [Transact(Step.FUND)],
        "refunding": [Transact(Step.REFUND)],
        "revealed": [Deliver(SECRET)],
        "credited": [Transact(Step.WITHDRAW)],
    },
    "sale": {
        "revealing": [Transact(Step.REVEAL)],
        "finalizing": [Transact(Step.FINALIZE)],
        "credited": [Transact(Step.WITHDRAW)],
    },
    "brokerage": {"credited": [PublishReceipt(RECEIPT), Transact(Step.WITHDRAW)]},
}


@pytest.mark.parametrize(
    ("name", "state"), [(name, state) for name, each in CASES.items() for state in each.states]
)
def test_a_restart_asks_again_for_what_its_state_owes_and_changes_nothing(
    name: str, state: str
) -> None:
    machine = CASES[name].make(state)
    record = from_map(type(machine.record), to_map(machine.record))
    again = type(machine)(record)  # type: ignore[arg-type]
    for _ in range(2):
        assert again.resume(NOW) == OWED[name].get(state, [])
        assert again.record == machine.record


@pytest.mark.parametrize(
    ("name", "state"), [(name, state) for name, each in CASES.items() for state in each.states]
)
def test_only_what_a_state_owes_may_be_sent(name: str, state: str) -> None:
    machine = CASES[name].make(state)
    owed = {e.step for e in OWED[name].get(state, []) if isinstance(e, Transact)}
    assert {step for step in Step if machine.may_send(step, NOW)} == owed


@pytest.mark.parametrize(
    ("name", "settled"),
    [
        ("purchase", {"complete", "refunded", "cheated", "abandoned", "delivered"}),
        ("sale", {"paid", "refunded", "expired"}),
        ("brokerage", {"paid", "refunded", "expired"}),
    ],
)
def test_a_trade_is_settled_where_nobody_waits_any_more(name: str, settled: set[str]) -> None:
    assert {s for s in CASES[name].states if CASES[name].make(s).settled} == settled


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
    buyer.receive(BadGoods(17), NOW)
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
    for each in CASES.values():
        assert each.make(each.states[0]).record.trade_id == cast.TRADE_ID


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


@pytest.mark.parametrize("step", [s for s in Step if s is not Step.WITHDRAW])
def test_a_broker_never_touches_the_parties_transactions(step: Step) -> None:
    for state in BrokerageState:
        assert not a_brokerage(state.value).may_send(step, NOW)


def test_the_secret_of_another_trade_opens_nothing_of_ours() -> None:
    assert Digest(SECRET) != cast.good_deal().quote.secret_commitment
