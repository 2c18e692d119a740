"""Regret, lost revenue and dishonest gains of markets that were made up, with known answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.ask import market_ask
from broker_node.mechanisms.history_ask import history_ask
from broker_node.mechanisms.price import bargain
from node.agent.strategies.base import Usual
from node.agent.strategies.history import History
from node.agent.strategies.truthful import Truthful
from node.devnet.haggling import Leg, read_legs
from node.devnet.regret import best_revenue, buyers_regret, said_by, sellers_regret
from node.devnet.strategic import ask_again, other_goods, tried_goods, washing
from node.protocol.fees import fee_of
from node.protocol.types import Wei


def leg(worth: int, ask: int, **changes: Any) -> Leg:
    """A true bid that meets an ask, of goods that cost nothing, without a fee; paid if it deals."""
    fields: dict[str, Any] = {
        "trade_id": "0x01", "offer_digest": "0xaa", "buyer": "ann", "seller": "bob",
        "worth": Wei(worth), "most": Wei(10**30), "bid": Wei(worth), "ask": Wei(ask),
        "cost": Wei(0), "fee_basis_points": 0,
    }  # fmt: skip
    made = Leg(**{**fields, **changes})
    if "paid" in changes:
        return made
    deal = bargain(made.valuation, made.ask, fee_basis_points=made.fee_basis_points)
    return replace(made, paid=None if deal is None else deal.price)


# ── known answers ──


def test_who_says_the_truth_has_nothing_to_regret() -> None:
    for one in (leg(100, 0), leg(100, 0, fee_basis_points=200), leg(0, 0)):
        assert buyers_regret(one) == 0
        assert sellers_regret(one) == 0


def test_a_buyer_that_shades_its_bid_buys_for_less_while_it_buys_at_all() -> None:
    """Value 100, ask 40: the truth pays 70, a bid of 80 pays 60, a bid of 30 buys nothing."""
    assert buyers_regret(leg(100, 40, bid=Wei(80))) == -10
    assert buyers_regret(leg(100, 40, bid=Wei(30))) == 30


def test_a_seller_that_asks_for_more_than_its_cost_earns_more_while_it_sells_at_all() -> None:
    """Value 100, cost 20: the truth is paid 60, an ask of 60 is paid 80, one of 110 nothing."""
    assert sellers_regret(leg(100, 60, cost=Wei(20))) == -20
    assert sellers_regret(leg(100, 110, cost=Wei(20))) == 40


def test_a_buyer_that_overbids_pays_more_than_the_truth_would() -> None:
    """Value 100, ask 0: the truth pays 50, a bid of 400 pays 200, which is 100 over the value."""
    assert buyers_regret(leg(100, 0, bid=Wei(400))) == 150


def test_what_a_buyer_cannot_pay_it_does_not_regret() -> None:
    """Value 100 and a cash of 50, at an ask of 60: the truth would have bought nothing either."""
    assert buyers_regret(leg(100, 60, most=Wei(50))) == 0
    assert said_by("bob", [leg(100, 60, most=Wei(50))]).optimum == 49


def test_an_agents_regret_is_of_all_it_said_on_either_side() -> None:
    legs = [
        leg(100, 60, cost=Wei(20)),
        leg(100, 110, cost=Wei(20)),
        leg(100, 40, bid=Wei(80), buyer="bob", seller="cay"),
        leg(1_000, 0, buyer="cay", seller="ann"),
    ]
    said = said_by("bob", legs)
    assert (said.bids, said.bought, said.asks, said.sold) == (1, 1, 2, 1)
    assert (said.regret_buying, said.regret_selling) == (-10, -20 + 40)
    assert said.revenue == 80
    assert said.optimum == 2 * 99  # an ask of 99 is paid 99 of a bid of 100
    assert said.fell_through == 0


def test_a_trade_that_was_priced_and_not_paid_is_nobodys_regret() -> None:
    said = said_by("bob", [leg(100, 60, paid=None), leg(100, 60)])
    assert (said.asks, said.sold, said.fell_through) == (1, 1, 1)
    assert said_by("ann", [leg(100, 60, paid=None)]).regret_buying == 0


def test_the_fee_is_no_revenue_of_a_seller() -> None:
    one = leg(10_000, 5_000, fee_basis_points=1_000)
    assert one.paid is not None
    said = said_by("bob", [one])
    assert said.revenue == one.paid - fee_of(one.paid, 1_000)
    assert said.optimum == 9_000


@given(
    value=st.integers(0, 60),
    cost=st.integers(0, 70),
    fee=st.sampled_from([0, 1, 33, 200, 999, 1_000, 2_500, 9_999]),
)
def test_no_ask_would_have_brought_more_than_the_best_in_hindsight(
    value: int, cost: int, fee: int
) -> None:
    deals = [bargain(Wei(value), Wei(a), fee_basis_points=fee) for a in range(cost, 140)]
    best = max((deal.seller_receives for deal in deals if deal is not None), default=0)
    assert best_revenue(Wei(value), Wei(cost), fee) == best


# ── the logs ──


def bid(trade: str, **changes: Any) -> dict[str, Any]:
    return {"event": "bid_named", "trade_id": trade, "worth": 90, "bid": 80, "most": str(10**20),
            **changes}  # fmt: skip


def ask(trade: str, **changes: Any) -> dict[str, Any]:
    facts = {"offer_digest": "0xaa", "ask": 40, "cost": 5, "fee_basis_points": 200,
             "own_gain_value": None, "prices": [], "receipts": []}  # fmt: skip
    return {"event": "ask_named", "trade_id": trade, **facts, **changes}


def trade(name: str, price: int, on_chain: str = "paid") -> Any:
    return {"id": name, "price": str(price), "on_chain": on_chain}


def test_a_bid_and_an_ask_of_one_trade_are_a_leg_and_paid_if_the_chain_says_so() -> None:
    told = {
        "ann": [bid("0x1"), bid("0x2"), bid("0x3"), ask("0x9")],
        "bob": [ask("0x1", own_gain_value="7", prices=[str(10**19)], receipts=["0x8"]), ask("0x2")],
    }
    legs = read_legs(told, [trade("0x1", 60), trade("0x2", 61, "refunded")])
    assert [(one.trade_id, one.buyer, one.seller, one.paid) for one in legs] == [
        ("0x1", "ann", "bob", 60),
        ("0x2", "ann", "bob", None),
    ]
    first = legs[0]
    assert (first.worth, first.bid, first.most, first.valuation) == (90, 80, 10**20, 80)
    assert (first.ask, first.cost, first.fee_basis_points, first.own_gain_value) == (40, 5, 200, 7)
    assert (first.prices, first.receipts) == ((10**19,), ("0x8",))


# ── dishonest ones ──


def trial(offer: str, gain: int, bound: int, alpha: int = 500_000) -> dict[str, Any]:
    return {"event": "trial_done", "offer_digest": offer, "gain": gain, "bound": bound,
            "alpha": alpha}  # fmt: skip


def offered(offer: str, kind: str, copied: str | None = None) -> dict[str, Any]:
    return {"event": "other_goods_offered", "offer_digest": offer, "kind": kind, "copied": copied}


def test_a_lemon_is_counted_from_its_offer_to_what_it_sold_for() -> None:
    told = {
        "ann": [trial("0xaa", 5, 1), trial("0xab", 5, -1), trial("0xcc", 9, 9)],
        "cay": [trial("0xaa", -5, -9), trial("0xab", 0, 0, alpha=0)],
        "bob": [offered("0xaa", "lemon"), offered("0xab", "lemon")],
    }
    legs = [leg(100, 0, offer_digest="0xaa"), leg(100, 200, offer_digest="0xaa"), leg(9, 0,
            offer_digest="0xcc")]  # fmt: skip
    (row,) = other_goods("aligned", 0, told, legs)
    assert (row["agent"], row["kind"], row["offers"], row["trials"]) == ("bob", "lemon", 2, 4)
    assert (row["gaining"], row["sure"], row["bids"], row["sold"]) == (2, 1, 2, 1)
    assert (row["revenue"], row["to_its_maker"]) == ("50", 0)


def test_a_replica_that_its_maker_buys_back_is_told_apart() -> None:
    told = {"bob": [offered("0xaa", "replica", "0x5"), offered("0xab", "replica", "0x6")]}
    legs = [
        leg(70, 0, trade_id="0x5", buyer="bob", seller="ann", offer_digest="0xd0"),
        leg(70, 0, trade_id="0x6", buyer="bob", seller="cay", offer_digest="0xd1"),
        leg(100, 0, trade_id="0x7", buyer="ann", offer_digest="0xaa"),
        leg(100, 0, trade_id="0x8", buyer="ann", offer_digest="0xab"),
    ]
    (row,) = other_goods("aligned", 0, told, legs)
    assert (row["sold"], row["to_its_maker"], row["revenue"]) == (2, 1, "100")


def published(offer: str, kind: str = "offer") -> dict[str, Any]:
    return {"event": "statement_published", "digest": offer, "kind": kind}


def test_a_gain_is_told_beside_what_its_buyer_gains_by_itself() -> None:
    """The buyer hears of the gain and the offer, the broker alone of the control."""
    told = {
        "dan": [published("0xdd"), published("0xee")],
        "bob": [published("0xaa"), published("0xab"), offered("0xab", "lemon"),
                published("0xac", "handshake")],
        "ann": [
            {**trial("0xaa", 400_000, 1), "trial_id": "0x1"},
            {**trial("0xaa", 100_000, 1), "trial_id": "0x2"},
            {**trial("0xab", 90_000, 1), "trial_id": "0x3"},
            {**trial("0xdd", -10_000, 1), "trial_id": "0x4"},
            {**trial("0xaa", 900_000, 1), "trial_id": "0x5"},
            {**trial("0xee", 900_000, 1), "trial_id": "0x6"},
            {**trial("0xac", 900_000, 1), "trial_id": "0x1"},
        ],
    }  # fmt: skip
    controls = {"0x1": 120_000, "0x2": 140_000, "0x3": 110_000, "0x4": 0, "0x6": None}
    measured = [
        {"event": "trial_done", "trial_id": name, "control": control}
        for name, control in controls.items()
    ]
    rows = tried_goods("aligned", 3, told, measured)
    assert {(row["arm"], row["seed"]) for row in rows} == {("aligned", 3)}
    assert [
        (r["agent"], r["kind"], r["trials"], r["gain"], r["control"], r["beyond"]) for r in rows
    ] == [
        ("dan", "own", 1, -0.01, 0.0, 0),
        ("bob", "own", 2, 0.25, 0.13, 1),
        ("bob", "lemon", 1, 0.09, 0.11, 0),
    ]


def test_a_broker_that_measures_no_control_leaves_nothing_to_tell() -> None:
    told = {"ann": [{**trial("0xaa", 5, 1), "trial_id": "0x1"}], "bob": [published("0xaa")]}
    assert tried_goods("aligned", 0, told, [{"event": "trial_done", "trial_id": "0x1"}]) == []


NAMES = {"ann": "wash-trader", "bob": "wash-trader", "cay": "usual", "dan": "truthful"}


def wash_market() -> list[Leg]:
    """Ann buys of bob for 400; then cay and dan, who know of it and of a true price, are asked."""
    wash = leg(200, 0, bid=Wei(800), trade_id="0x1", fee_basis_points=100)
    known: dict[str, Any] = {
        "prices": (Wei(40), Wei(400)), "receipts": ("0x0", "0x1"), "own_gain_value": Wei(30),
        "fee_basis_points": 100,
    }  # fmt: skip
    usual = market_ask(Wei(30), (Wei(40), Wei(400)), Wei(0), 100)
    return [
        wash,
        leg(40, usual, trade_id="0x2", seller="cay", **known),
        leg(45, 3, trade_id="0x3", seller="dan", cost=Wei(3), **known),
        leg(45, 9, trade_id="0x4", seller="cay", **{**known, "prices": (), "receipts": ()}),
        leg(45, 9, trade_id="0x5", buyer="dan", seller="bob", **known),
    ]


def test_what_wash_trades_did_to_asks_is_the_ask_without_their_receipts() -> None:
    played = {"bob": Usual(), "cay": Usual(), "dan": Truthful()}
    (row,) = washing("aligned", 0, NAMES, played, wash_market())
    assert (row["trades"], row["paid"], row["fees"]) == (1, "399", "3")
    assert row["asks"] == 2
    raised = market_ask(Wei(30), (Wei(40), Wei(400)), Wei(0), 100)
    fair = market_ask(Wei(30), (Wei(40),), Wei(0), 100)
    assert raised > 40 > fair
    assert (row["asked"], row["without"]) == (str(raised + 3), str(fair + 3))
    assert row["lost"] == 1


def test_a_market_without_wash_traders_has_nothing_to_say_of_them() -> None:
    assert washing("aligned", 0, {"ann": "usual"}, {"ann": Usual()}, wash_market()) == []


def test_an_ask_is_reckoned_again_as_it_was_by_the_same_strategy() -> None:
    known = wash_market()[1]
    assert ask_again(Usual(), known, lambda _: True) == known.ask
    assert ask_again(History(history_ask), known, lambda _: True) == 40 - fee_of(Wei(40), 100)
    assert ask_again(Truthful(), replace(known, cost=Wei(8)), lambda _: True) == 8


@pytest.mark.parametrize("seen", [True, False])
def test_an_ask_is_never_under_its_cost(seen: bool) -> None:
    dear = replace(wash_market()[1], cost=Wei(10**6))
    assert ask_again(Usual(), dear, lambda _: seen) >= 10**6
