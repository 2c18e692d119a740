"""Each machine does what the table in its essay says, in every state, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import pytest

from node.protocol import book, brokerage, purchase, sale
from node.protocol.brokerage import (
    BROKERAGE_ENDS,
    COLLECT_SECONDS,
    Brokerage,
    BrokerageState,
)
from node.protocol.events import (
    BadGoods,
    Deliver,
    Delivered,
    Disputed,
    Effect,
    FetchGoods,
    Funded,
    GoodsRefused,
    GoodsVerified,
    Paid,
    PublishReceipt,
    Refunded,
    Revealed,
    SecretSent,
    Step,
    Tick,
    Transact,
    Withdrawn,
)
from node.protocol.purchase import FUND_MARGIN, PURCHASE_ENDS, Purchase, PurchaseState
from node.protocol.sale import REVEAL_MARGIN, SALE_ENDS, Sale, SaleState
from node.protocol.schema import from_map, to_map
from node.protocol.types import UnixTime
from tests.protocol import cast, tables
from tests.protocol.cast import (
    DISPUTE_WINDOW,
    FUND_BY,
    NOW,
    REFUND_FROM,
    REVEAL_BY,
    SECRET,
    Machine,
    a_brokerage,
    a_purchase,
    a_sale,
    countersign,
)

Act = Callable[[Any], list[Effect]]
RECEIPT: Final = cast.good_deal().receipt
RECORDED_QUOTE: Final = cast.good_deal().quote
PAYABLE_FROM: Final = UnixTime(NOW + 100 + DISPUTE_WINDOW)
LONG_DUE: Final = PAYABLE_FROM + COLLECT_SECONDS
LAPSES_AFTER: Final = RECORDED_QUOTE.lapses_after


def told(event: Any, now: int = NOW) -> Act:
    return lambda machine: list(machine.receive(event, UnixTime(now)))


def tick(time: int) -> Act:
    return told(Tick(UnixTime(time)))


def delivered_late(machine: Purchase) -> list[Effect]:
    if machine.state is PurchaseState.REVEALED:
        machine.receive(Paid(), NOW)
    return machine.receive(Delivered(), NOW)


def accused(*, paid: bool = False, chain_time: int = 0) -> Act:
    """Bad goods, after the payment or at some time of the chain's."""

    def act(machine: Purchase) -> list[Effect]:
        if machine.state is PurchaseState.REVEALED and paid:
            machine.receive(Paid(), NOW)
        if machine.state is PurchaseState.REVEALED:
            machine.receive(Tick(UnixTime(chain_time)), NOW)
        return machine.receive(BadGoods(cast.EVIDENCE), NOW)

    return act


def signed_by_us(machine: Sale) -> list[Effect]:
    countersign(machine)
    return []


def signed_by_seller(machine: Brokerage) -> list[Effect]:
    machine.countersigned(cast.good_deal().seller_signature)
    return []


LATE: Final = (
    "chain is past fund_by",
    "chain is past the dispute window",
    "chain is past reveal_by + grace",
    "chain is past the lapse",
)
"""What a buyer's chain may be past, one after the other."""


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
    ({"bad goods, in time"}, accused()),
    ({"bad goods, in time"}, accused(chain_time=PAYABLE_FROM)),
    ({"bad goods, too late"}, accused(chain_time=PAYABLE_FROM + 1)),
    ({"bad goods, too late"}, accused(paid=True)),
    ({"disputed"}, told(Disputed())),
    ({"disputed"}, told(Disputed(), REFUND_FROM + 1_000)),
    ({"paid"}, told(Paid())),
    ({"refunded"}, told(Refunded())),
    ({"withdrawn"}, told(Withdrawn())),
    (set(), tick(0)),
    (set(), tick(FUND_BY)),
    ({"chain is past fund_by"}, tick(FUND_BY + 1)),
    ({"chain is past fund_by"}, tick(PAYABLE_FROM)),
    (set(LATE[:2]), tick(PAYABLE_FROM + 1)),
    (set(LATE[:2]), tick(REFUND_FROM)),
    (set(LATE[:3]), tick(REFUND_FROM + 1)),
    (set(LATE[:3]), tick(LAPSES_AFTER)),
    (set(LATE), tick(LAPSES_AFTER + 1)),
]
SALE: Final[list[tuple[set[str], Act]]] = [
    ({"countersigned"}, signed_by_us),
    (set(), lambda m: list(m.expire(UnixTime(NOW + 30)))),
    ({"clock is past prepared_until"}, lambda m: list(m.expire(UnixTime(NOW + 31)))),
    ({"funded, in time"}, told(Funded())),
    ({"funded, in time"}, told(Funded(), REVEAL_BY - REVEAL_MARGIN)),
    ({"funded, too late"}, told(Funded(), REVEAL_BY - REVEAL_MARGIN + 1)),
    ({"revealed"}, told(Revealed(SECRET, UnixTime(NOW + 100)))),
    ({"revealed"}, told(Revealed(SECRET, REFUND_FROM), REFUND_FROM + 1_000)),
    ({"secret sent"}, told(SecretSent())),
    ({"secret sent"}, told(SecretSent(), REFUND_FROM + 1_000)),
    ({"refunded"}, told(Refunded())),
    ({"disputed"}, told(Disputed())),
    ({"paid"}, told(Paid())),
    ({"withdrawn"}, told(Withdrawn())),
    (set(), tick(FUND_BY)),
    ({"chain is past fund_by"}, tick(FUND_BY + 1)),
    ({"chain is past fund_by"}, tick(PAYABLE_FROM)),
    ({"chain is past fund_by", "chain is past the dispute window"}, tick(PAYABLE_FROM + 1)),
    ({"chain is past fund_by", "chain is past the dispute window"}, tick(REFUND_FROM + 1_000)),
    ({"chain is past fund_by", "chain is past the dispute window"}, tick(LAPSES_AFTER)),
    (
        {"chain is past fund_by", "chain is past the dispute window", "chain is past the lapse"},
        tick(LAPSES_AFTER + 1),
    ),
    ({"restarted, too late"}, lambda m: list(m.resume(UnixTime(REVEAL_BY - REVEAL_MARGIN + 1)))),
]
BROKERAGE: Final[list[tuple[set[str], Act]]] = [
    ({"countersigned"}, signed_by_seller),
    ({"funded"}, told(Funded())),
    ({"revealed"}, told(Revealed(SECRET, NOW))),
    ({"paid"}, told(Paid())),
    ({"refunded"}, told(Refunded())),
    ({"disputed"}, told(Disputed())),
    ({"withdrawn"}, told(Withdrawn())),
    (set(), tick(FUND_BY)),
    ({"chain is past fund_by"}, tick(FUND_BY + 1)),
    ({"chain is past fund_by"}, tick(LONG_DUE)),
    ({"chain is past fund_by", "payment is long due"}, tick(LONG_DUE + 1)),
    ({"chain is past fund_by", "payment is long due"}, tick(LAPSES_AFTER)),
    (
        {"chain is past fund_by", "payment is long due", "chain is past the lapse"},
        tick(LAPSES_AFTER + 1),
    ),
    (set(), lambda m: list(m.expire(UnixTime(LAPSES_AFTER + 1_000)))),
]
EFFECTS: Final[dict[str, Effect]] = {
    "fund": Transact(Step.FUND),
    "reveal": Transact(Step.REVEAL),
    "finalize": Transact(Step.FINALIZE),
    "refund": Transact(Step.REFUND),
    "dispute": Transact(Step.DISPUTE),
    "withdraw": Transact(Step.WITHDRAW),
    "deliver": Deliver(SECRET),
    "publish": PublishReceipt(RECEIPT),
}


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
        "disputing": [Transact(Step.DISPUTE)],
        "credited": [Transact(Step.WITHDRAW)],
    },
    "sale": {
        "revealing": [Transact(Step.REVEAL)],
        "finalizing": [Transact(Step.FINALIZE)],
        "credited": [Transact(Step.WITHDRAW)],
    },
    "brokerage": {
        "finalizing": [Transact(Step.FINALIZE)],
        "credited": [PublishReceipt(RECEIPT), Transact(Step.WITHDRAW)],
    },
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
        ("sale", {"paid", "refunded", "disputed", "expired", "lapsed"}),
        ("brokerage", {"paid", "refunded", "disputed", "expired", "lapsed"}),
    ],
)
def test_a_trade_is_settled_where_nobody_waits_any_more(name: str, settled: set[str]) -> None:
    assert {s for s in CASES[name].states if CASES[name].make(s).settled} == settled
