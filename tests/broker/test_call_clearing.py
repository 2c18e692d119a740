"""What a call gives is within every budget and capacity, in whole layers, and proved."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.calls import clearing as call_clearing
from broker_node.calls.call import Attempt, Closed, Placed
from broker_node.calls.clearing import ClearedCall, clear_call
from broker_node.calls.demand import predicted, slope_of
from broker_node.mechanisms.base import Certificate
from broker_node.mechanisms.eeg import ExtendedEisenbergGale
from node.protocol.call import BudgetBid
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Address, Digest, Millionths, Wei
from tests.broker.test_call import account

LAYERS = 4
ETHER = 10**18


def trial(buyer: int, seller: int, layers: int, gain: int) -> Attempt:
    name = Digest(bytes([buyer, seller, layers]) * 10 + b"\0\0")
    return Attempt(
        trial_id=name,
        buyer=account(f"buyer {buyer}"),
        seller=account(f"seller {seller}"),
        offer_digest=Digest(name[::-1]),
        layers=layers,
        capacity=LAYERS,
        gain=Millionths(gain),
        age=(0, layers),
    )


def closed(gains: list[list[list[int]]], budgets: list[int]) -> Closed:
    """Gains by buyer, seller and number of layers less one; what does not help is not bid on."""
    placed = []
    for b, (of_sellers, budget) in enumerate(zip(gains, budgets, strict=True)):
        attempts = tuple(
            trial(b, s, k + 1, gain)
            for s, of_layers in enumerate(of_sellers)
            for k, gain in enumerate(of_layers)
        )
        named = tuple(one.trial_id for one in attempts if one.gain > 0)
        if named:
            bid = BudgetBid(trials=named, budget=Wei(budget))
            placed.append(Placed(buyer=account(f"buyer {b}"), bid=bid, attempts=attempts))
    return Closed(placed=tuple(sorted(placed, key=lambda one: one.buyer)))


@st.composite
def calls(draw: st.DrawFn) -> Closed:
    buyers, sellers = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    gain = st.integers(-200_000, 900_000)
    gains = [[[draw(gain) for _ in range(LAYERS)] for _ in range(sellers)] for _ in range(buyers)]
    budgets = [draw(st.integers(1, 10 * ETHER)) for _ in range(buyers)]
    return closed(gains, budgets)


def buyer(number: int) -> Address:
    return account(f"buyer {number}")


@given(call=calls())
@settings(max_examples=60, deadline=None)
def test_every_budget_and_every_capacity_is_kept_in_whole_wei_and_whole_layers(
    call: Closed,
) -> None:
    cleared = clear_call(call)
    sold: dict[Address, int] = {}
    for placed in call.placed:
        answer = cleared.answer_to(placed.buyer)
        assert sum(one.price for one in answer) <= placed.bid.budget
        wanted = {one.offer_digest for one in placed.wanted}
        assert {one.offer_digest for one in answer} <= wanted
        assert len({one.offer_digest for one in answer}) == len(answer)
        assert all(one.price >= 1 for one in answer)
    for one in cleared.given:
        assert one.layers <= one.share + call_clearing.WHOLE
        sold[one.seller] = sold.get(one.seller, 0) + one.layers
    assert all(layers <= LAYERS for layers in sold.values())
    assert cleared.certificate is None or cleared.certificate.valid


@given(call=calls())
@settings(max_examples=20, deadline=None)
def test_whoever_has_the_bids_clears_the_call_to_the_same_wei(call: Closed) -> None:
    assert clear_call(call) == clear_call(call)


def even(gain_a_layer: int) -> list[int]:
    return [gain_a_layer * (k + 1) for k in range(LAYERS)]


def total(cleared: ClearedCall, number: int) -> tuple[int, int]:
    own = [one for one in cleared.given if one.buyer == buyer(number)]
    return sum(one.layers for one in own), sum(
        one.price for one in cleared.answer_to(buyer(number))
    )


def test_a_lone_buyer_gets_all_layers_for_its_whole_budget() -> None:
    cleared = clear_call(closed([[even(100_000)]], [ETHER]))
    layers, paid = total(cleared, 0)
    assert layers == LAYERS
    assert ETHER - ETHER // 10**5 <= paid <= ETHER


def test_two_buyers_of_one_seller_share_its_layers_by_their_budgets() -> None:
    cleared = clear_call(closed([[even(50_000)], [even(50_000)]], [3 * ETHER, ETHER]))
    assert [total(cleared, number)[0] for number in (0, 1)] == [3, 1]
    paid = [total(cleared, number)[1] for number in (0, 1)]
    assert paid[0] == pytest.approx(3 * paid[1], rel=1e-4)


def test_of_a_fraction_of_layers_the_whole_ones_are_paid_for_and_no_more() -> None:
    cleared = clear_call(closed([[even(50_000)]] * 3, [ETHER] * 3))
    for number in range(3):
        (one,) = [given_ for given_ in cleared.given if given_.buyer == buyer(number)]
        assert one.share == pytest.approx(LAYERS / 3, rel=1e-4)
        layers, paid = total(cleared, number)
        assert layers == 1
        assert paid == pytest.approx(ETHER * 3 / LAYERS, rel=1e-4)  # a layer's price, of its budget


def test_of_what_was_not_bid_on_the_next_shorter_beginning_is_given() -> None:
    gains = even(50_000)
    whole = closed([[gains]], [ETHER])
    (placed,) = whole.placed
    fewer = BudgetBid(trials=placed.bid.trials[:2], budget=placed.bid.budget)
    cleared = clear_call(
        Closed(placed=(Placed(buyer=placed.buyer, bid=fewer, attempts=placed.attempts),))
    )
    layers, paid = total(cleared, 0)
    assert layers == 2
    assert paid == pytest.approx(ETHER / 2, rel=1e-4)


@pytest.mark.parametrize("newest_first", [True, False])
def test_of_two_offers_of_the_same_layers_the_newer_one_counts_and_is_given(
    newest_first: bool,
) -> None:
    old = dataclasses.replace(trial(0, 0, LAYERS, 400_000), age=(1, 0))
    new = dataclasses.replace(
        trial(0, 0, LAYERS, 200_000), age=(2, 0),
        trial_id=Digest(b"\x07" * 32), offer_digest=Digest(b"\x08" * 32),
    )  # fmt: skip
    attempts = (new, old) if newest_first else (old, new)
    bid = BudgetBid(trials=(old.trial_id, new.trial_id), budget=Wei(ETHER))
    cleared = clear_call(Closed(placed=(Placed(buyer=buyer(0), bid=bid, attempts=attempts),)))
    (given_,) = cleared.answer_to(buyer(0))
    assert given_.offer_digest == new.offer_digest
    assert given_.predicted == 200_000


def test_what_is_paid_for_layers_that_are_all_but_whole_is_no_more_than_is_left() -> None:
    (placed,) = closed([[even(50_000)]], [100]).placed
    (seller,) = {attempt.seller for attempt in placed.attempts}
    share, dear = 2 - call_clearing.WHOLE / 2, Fraction(51, call_clearing.UNIT)
    (given_,) = call_clearing._whole_layers(placed, {seller: 0.05}, {seller: (share, dear)})
    assert given_.allocation is not None
    assert (given_.layers, given_.allocation.price) == (2, 100)


def test_nobody_pays_for_more_gain_than_there_is_loss() -> None:
    cleared = clear_call(closed([[even(240_000), even(240_000)]], [ETHER]))
    shares = sum(one.share for one in cleared.given)
    assert shares == pytest.approx(1_000_000 / 240_000, rel=1e-3)
    assert total(cleared, 0)[1] <= ETHER // 10**8  # layers are left over: they cost next to nothing


def test_a_call_in_which_nobody_could_gain_gives_nothing_to_anybody() -> None:
    losing = closed([[[1_000, -500_000, -500_000, -500_000]]], [ETHER])
    cleared = clear_call(losing)
    assert cleared.answer_to(buyer(0)) == ()
    assert cleared.outcome is None


def test_an_outcome_that_its_certificate_does_not_prove_gives_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = Certificate(violations={"budget": 1.0}, tolerance=1e-9)
    monkeypatch.setattr(ExtendedEisenbergGale, "verify", lambda *_: wrong)
    with pytest.raises(LocalProtocolError, match="no exact outcome: trade, budget 1"):
        clear_call(closed([[even(50_000)]], [ETHER]))


def test_the_prediction_is_the_line_through_nothing_that_fits_the_trials_best() -> None:
    assert slope_of({1: Millionths(100_000), 2: Millionths(200_000)}) == pytest.approx(0.1)
    # ½·(1·0 + 2·200,000)/5: what the whole model gains counts for more than its first layer
    assert slope_of({1: Millionths(0), 2: Millionths(200_000)}) == pytest.approx(0.08)
    assert slope_of({}) == 0
    assert slope_of({1: Millionths(-5), 2: Millionths(1)}) == 0
    assert predicted(0.3, 4) == 1_000_000
    assert predicted(0.1, 2) == 200_000
