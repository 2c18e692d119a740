"""What each mechanism's claims are held against: its markets, who wants what, and who may lie.

A bench knows of its mechanism what an outcome means to those in it, by the market's own words
and not by the mechanism's figures. What a party says is told apart from what is so: `truth` is
the market as it is, and an outcome may be of another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Market, Mechanism, Outcome
from broker_node.mechanisms.registry import MECHANISMS
from tests.mechanisms.judged import floats, indices, number, unchecked

Told = dict[str, Any]
FACTORS = (0.0, 0.5, 0.9, 1.1, 2.0, 5.0)
"""What a misreport is of the truth."""
amounts = st.floats(0, 10) | st.integers(0, 5).map(float)
several = st.lists(amounts, min_size=1, max_size=5)


class Bench:
    """Simulations of one mechanism; what it does not define it cannot be held to."""

    tolerance = 1e-9

    def __init__(self, name: str) -> None:
        self.mechanism: Mechanism = MECHANISMS[name]

    def markets(self) -> st.SearchStrategy[Told]:
        """Draw markets that the mechanism clears."""
        raise NotImplementedError

    def clear(self, market: Market) -> Outcome:
        return unchecked(self.mechanism, market)

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        """Return what each party has of an outcome, over staying away."""
        raise NotImplementedError

    def lies(self, truth: Told) -> Iterator[tuple[int, Told]]:
        """Yield parties, and the market as it is with one of them saying something else."""
        raise NotImplementedError

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        """Return the money that must come from outside: received − paid."""
        raise NotImplementedError

    def envy(self, truth: Told, outcome: Outcome) -> float:
        """Return by how much anybody would rather have what another has."""
        raise NotImplementedError

    def forgone(self, truth: Told, outcome: Outcome) -> float:
        """Return what somebody could have besides, with nobody worse off."""
        raise NotImplementedError

    def under_share(self, truth: Told, outcome: Outcome) -> float:
        """Return by how much anybody would do better alone with its share of what there is."""
        raise NotImplementedError


def scaled(truth: Told, key: str, party: int) -> Iterator[Told]:
    """Yield `truth` with one party's number under `key` misstated, and a few that are far off."""
    told = truth[key]
    for one in (*(told[party] * factor for factor in FACTORS), told[party] + 0.5, 11.0):
        yield {**truth, key: [*told[:party], one, *told[party + 1 :]]}


class NashBench(Bench):
    """Parties a and b, with and without cash; a fee is charged where balance is judged alone."""

    def markets(self) -> st.SearchStrategy[Told]:
        value = st.floats(-20, 20)
        return st.fixed_dictionaries(
            dict.fromkeys(("v_a_own", "v_a_other", "v_b_own", "v_b_other"), value),
            optional={
                "tau": st.floats(0, 1),
                "budget": st.lists(st.none() | st.floats(0, 30), min_size=2, max_size=2),
            },
        )

    @staticmethod
    def _traded(truth: Told, legs: Any) -> tuple[float, float]:
        """Return what both have of some legs, before any transfer."""
        of_a = ("b" in legs) * truth["v_a_other"] - ("a" in legs) * truth["v_a_own"]
        of_b = ("a" in legs) * truth["v_b_other"] - ("b" in legs) * truth["v_b_own"]
        return of_a, of_b

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        of_a, of_b = self._traded(truth, outcome.values["legs"])
        transfer = number(outcome.values["net_transfer_to_a"])
        return [of_a + transfer, of_b - transfer]

    def lies(self, truth: Told) -> Iterator[tuple[int, Told]]:
        for party, keys in enumerate((("v_a_own", "v_a_other"), ("v_b_own", "v_b_other"))):
            for key, factor in itertools.product(keys, FACTORS):
                yield party, {**truth, key: truth[key] * factor}

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        """With a fee: what both have by it over what they have by the legs, and the fee."""
        taxed = {**truth, "fee": 0.02}
        found = self.clear(taxed)
        traded = self._traded(truth, found.values["legs"])
        had = number(found.values["utility_a"]) + number(found.values["utility_b"])
        return had - sum(traded) + number(found.values["fee"])

    def forgone(self, truth: Told, outcome: Outcome) -> float:
        """Of those who can pay: cash is no limit here."""
        rich = {**truth, "budget": [None, None]}
        return self.forgone_by(truth, self.clear(rich), (np.inf, np.inf))

    def forgone_by(self, truth: Told, outcome: Outcome, cash: tuple[float, float]) -> float:
        """Return what both could have besides by any legs and a transfer within `cash`."""
        had = self.gains(truth, outcome)
        most = 0.0
        for legs in ([], ["a"], ["b"], ["a", "b"]):
            of_a, of_b = self._traded(truth, legs)
            # what B can have by these legs while A has what it had, if that can be paid
            transfer = max(had[0] - of_a, -cash[0])
            if transfer <= cash[1] and of_b - transfer >= had[1]:
                most = max(most, of_a + of_b - sum(had))
        return most


class AskBench(Bench):
    """A seller with a cost and one buyer, of a value that the market does not hear of."""

    def markets(self) -> st.SearchStrategy[Told]:
        prior = st.one_of(
            st.fixed_dictionaries(
                {"kind": st.just("uniform"), "low": amounts, "high": st.just(11)}
            ),
            st.fixed_dictionaries({"kind": st.just("exponential"), "rate": st.floats(0.1, 2)}),
            st.fixed_dictionaries({"kind": st.just("empirical"), "samples": several}),
        )
        return st.fixed_dictionaries(
            {
                "prior": prior,
                "support": st.none(),
                "cost": amounts,
                "mode": st.sampled_from(["take_it_or_leave_it", "split_difference"]),
                "value": amounts,
            }
        )

    def clear(self, market: Market) -> Outcome:
        said = {key: value for key, value in market.items() if key != "value"}
        outcome = super().clear(said)
        ask, bid = number(outcome.values["price"]), number(market["value"])
        price: Json = None
        if bid >= ask:
            price = ask if market["mode"] == "take_it_or_leave_it" else (ask + bid) / 2
        return Outcome(status=outcome.status, values={"price": price})

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        if outcome.values["price"] is None:
            return [0.0, 0.0]
        price = number(outcome.values["price"])
        return [price - truth["cost"], truth["value"] - price]

    def lies(self, truth: Told) -> Iterator[tuple[int, Told]]:
        for party, key in enumerate(("cost", "value")):
            for factor in FACTORS:
                yield party, {**truth, key: truth[key] * factor}

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        if outcome.values["price"] is None:
            return 0.0
        return float(sum(self.gains(truth, outcome)) - (truth["value"] - truth["cost"]))

    def forgone(self, truth: Told, outcome: Outcome) -> float:
        return float(max(0.0, truth["value"] - truth["cost"]) - sum(self.gains(truth, outcome)))


class ProcurementBench(Bench):
    """Sellers of data, whose costs nobody knows."""

    def markets(self) -> st.SearchStrategy[Told]:
        pairs = st.lists(st.tuples(amounts, amounts), min_size=1, max_size=6)
        return st.builds(
            lambda offers, budget: {
                "cost": [cost for cost, _ in offers],
                "value": [value for _, value in offers],
                "budget": budget,
            },
            pairs,
            st.floats(0, 40),
        )

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        won, paid = indices(outcome.values["winners"]), floats(outcome.values["payment"])
        return [
            pay - (seller in won) * cost
            for seller, (pay, cost) in enumerate(zip(paid, truth["cost"], strict=True))
        ]

    def lies(self, truth: Told) -> Iterator[tuple[int, Told]]:
        for seller in range(len(truth["cost"])):
            for told in scaled(truth, "cost", seller):
                yield seller, told

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        return sum(floats(outcome.values["payment"])) - float(truth["budget"])

    def forgone(self, truth: Told, outcome: Outcome) -> float:
        """In value that the budget could have bought at cost."""
        had = sum(truth["value"][seller] for seller in indices(outcome.values["winners"]))
        sets = itertools.product((0, 1), repeat=len(truth["cost"]))
        return float(
            max(
                np.dot(taken, truth["value"])
                for taken in sets
                if np.dot(taken, truth["cost"]) <= truth["budget"]
            )
            - had
        )


class DoubleAuctionBench(Bench):
    """Buyers, then sellers, of one piece each."""

    def markets(self) -> st.SearchStrategy[Told]:
        return st.fixed_dictionaries({"bids": several, "asks": several})

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        told = outcome.values
        buyers, sellers = indices(told["buyers"]), indices(told["sellers"])
        of_buyers = [
            bid - number(told["buyer_price"]) if buyer in buyers else 0.0
            for buyer, bid in enumerate(truth["bids"])
        ]
        of_sellers = [
            number(told["seller_price"]) - ask if seller in sellers else 0.0
            for seller, ask in enumerate(truth["asks"])
        ]
        return of_buyers + of_sellers

    def lies(self, truth: Told) -> Iterator[tuple[int, Told]]:
        first = 0
        for key in ("bids", "asks"):
            for trader in range(len(truth[key])):
                for told in scaled(truth, key, trader):
                    yield first + trader, told
            first += len(truth[key])

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        bought = len(indices(outcome.values["buyers"]))
        sold = len(indices(outcome.values["sellers"]))
        if not bought and not sold:
            return 0.0
        paid, received = (number(outcome.values[f"{side}_price"]) for side in ("buyer", "seller"))
        return sold * received - bought * paid

    def forgone(self, truth: Told, outcome: Outcome) -> float:
        pairs = zip(sorted(truth["bids"], reverse=True), sorted(truth["asks"]), strict=False)
        most = sum(max(0.0, bid - ask) for bid, ask in pairs)
        had = sum(truth["bids"][buyer] for buyer in indices(outcome.values["buyers"]))
        had -= sum(truth["asks"][seller] for seller in indices(outcome.values["sellers"]))
        return float(most - had)


class CopiesBench(Bench):
    """Bidders for copies of one good, whose seller has no cost."""

    def markets(self) -> st.SearchStrategy[Told]:
        return st.fixed_dictionaries(
            {"bids": several, "copies": st.integers(1, 5), "reserve": amounts}
        )

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        won, price = indices(outcome.values["winners"]), number(outcome.values["price"])
        return [bid - price if who in won else 0.0 for who, bid in enumerate(truth["bids"])]

    def lies(self, truth: Told) -> Iterator[tuple[int, Told]]:
        for who in range(len(truth["bids"])):
            for told in scaled(truth, "bids", who):
                yield who, told

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        """The seller is paid what is paid, and sells no more than there is."""
        return max(0.0, float(len(indices(outcome.values["winners"])) - truth["copies"]))

    def envy(self, truth: Told, outcome: Outcome) -> float:
        won, price = indices(outcome.values["winners"]), number(outcome.values["price"])
        had = self.gains(truth, outcome)
        copies = [bid - price for bid in truth["bids"]] if won else had
        nothing = [0.0] * len(had) if len(won) < len(had) else had
        others = zip(copies, nothing, had, strict=True)
        return max(max(copy, none) - own for copy, none, own in others)

    def forgone(self, truth: Told, outcome: Outcome) -> float:
        had = sum(truth["bids"][who] for who in indices(outcome.values["winners"]))
        return float(sum(sorted(truth["bids"], reverse=True)[: truth["copies"]]) - had)


class AssignmentBench(Bench):
    """Buyers of one good each at most, whose seller has no cost."""

    def markets(self) -> st.SearchStrategy[Told]:
        worth = st.floats(-2, 10) | st.integers(-1, 4).map(float)
        tables = st.tuples(st.integers(1, 4), st.integers(1, 3)).flatmap(
            lambda shape: st.lists(
                st.lists(worth, min_size=shape[1], max_size=shape[1]),
                min_size=shape[0],
                max_size=shape[0],
            )
        )
        return st.fixed_dictionaries({"values": tables})

    @staticmethod
    def _held(outcome: Outcome) -> list[int | None]:
        told = outcome.values["assignment"]
        assert isinstance(told, list)
        return [good if isinstance(good, int) else None for good in told]

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        paid = floats(outcome.values["payments"])
        held = zip(truth["values"], self._held(outcome), paid, strict=True)
        return [(0.0 if good is None else row[good]) - pay for row, good, pay in held]

    def lies(self, truth: Told) -> Iterator[tuple[int, Told]]:
        rows = truth["values"]
        for who, row in enumerate(rows):
            others = [[value * factor for value in row] for factor in FACTORS]
            others += [[*row[:g], one, *row[g + 1 :]] for g in range(len(row)) for one in (0.0, 11)]
            for told in others:
                yield who, {"values": [*rows[:who], told, *rows[who + 1 :]]}

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        """The seller of the goods is paid what is paid: nobody is paid to take one."""
        held = [good for good in self._held(outcome) if good is not None]
        assert len(set(held)) == len(held)
        return -min(floats(outcome.values["payments"]))

    def envy(self, truth: Told, outcome: Outcome) -> float:
        paid, held = floats(outcome.values["payments"]), self._held(outcome)
        bundles = list(zip(held, paid, strict=True))
        return max(
            (0.0 if good is None else row[good]) - pay - own
            for row, own in zip(truth["values"], self.gains(truth, outcome), strict=True)
            for good, pay in bundles
        )

    def forgone(self, truth: Told, outcome: Outcome) -> float:
        rows = truth["values"]
        choices = [*range(len(rows[0])), *([None] * len(rows))]
        most = max(
            sum(row[g] for row, g in zip(rows, taken, strict=True) if g is not None)
            for taken in itertools.permutations(choices, len(rows))
        )
        held = zip(rows, self._held(outcome), strict=True)
        return float(most - sum(row[g] for row, g in held if g is not None))
