"""Different goods, one for each buyer at most: Vickrey, Clarke and Groves.

The assignment has the largest total value. Each buyer pays what the others lose by its
presence, W(−i) − (W − v_i). That needs no second assignment: the others gain from the good
that i would leave by passing goods on, along a path from it,

    p_j = max(0,  v_bj of an unassigned b,  v_bj − v_bg + p_g of a b that holds g),

and the least p that solves this is found by relaxing it from 0 (Leonard 1983: Clarke's
payments are the lowest prices that clear the market). Nothing is worth less than leaving
it: a pair with a value of 0 or less is not assigned.

It is efficient, truthful, individually rational and free of envy, all paid to the seller of
the goods, who has no costs: with a seller that may misreport its own, something must give
(Myerson and Satterthwaite 1983). It is no defence against buyers that collude.
"""

from __future__ import annotations

import math

import numpy as np

from broker_node.mechanisms.base import (
    DEFAULT_TOLERANCE,
    Certificate,
    Claim,
    Issue,
    Json,
    Market,
    Outcome,
    RefusedInputError,
    Status,
)
from broker_node.mechanisms.reading import issues_of, items, require_keys, shown, table
from broker_node.mechanisms.stated import misstated_status, stated, stated_array, stated_number
from broker_node.mechanisms.transfers import InWei, Transfers, largest_remainder
from node.protocol.types import Wei


def transfers_in_wei(market: Market, outcome: Outcome, *, unit: Wei) -> Transfers:
    """Return what each buyer pays, and the one seller receives; `unit` is what 1.0 is worth.

    The sum is rounded down, in favour of the buyers, and divided by largest remainder, nobody
    paying more than its good is worth to it. Raises `RefusedInputError` for an outcome in which
    somebody does, and for payments over 256 bits.
    """
    values_BG = _read(market)
    buyers, goods = values_BG.shape
    held_B = _stated_assignment(stated(outcome, "assignment"), buyers, goods)
    told_B = stated_array(outcome, "payments", (buyers,))
    worth_B = np.where(held_B >= 0, values_BG[np.arange(buyers), held_B], 0.0)
    for buyer in np.flatnonzero((told_B < 0) | (told_B > worth_B)):
        reason = f"must be 0 … {worth_B[buyer]:g}, got {told_B[buyer]:g}"
        raise RefusedInputError(f"payments[{buyer}]", reason)
    money = InWei(unit)
    exact = [money.exact(float(payment)) for payment in told_B]
    most = [money.most(float(worth)) for worth in worth_B]
    paid = tuple(map(Wei, largest_remainder(exact, math.floor(sum(exact)), most)))
    return Transfers(paid=paid, received=(Wei(sum(paid)),))


def _read(market: Market) -> np.ndarray:
    require_keys(market, ("values",))
    return table(market["values"], "values", signed=True)


class Vcg:
    """Different goods, one a buyer: the best assignment, each paying the others' loss."""

    name = "vcg"
    claims = frozenset(
        {
            Claim.INDIVIDUAL_RATIONALITY,
            Claim.INCENTIVE_COMPATIBILITY,
            Claim.BUDGET_BALANCE,
            Claim.ENVY_FREE,
            Claim.PARETO,
        }
    )

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(_read, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return welfare, payments [buyer], and assignment [buyer]: a good, or null."""
        from scipy.optimize import (  # noqa: PLC0415  it takes half a second to import
            linear_sum_assignment,
        )

        values_BG = np.maximum(_read(market), 0.0)
        rows, columns = linear_sum_assignment(values_BG, maximize=True)
        assigned = values_BG[rows, columns] > 0
        holders, held = rows[assigned], columns[assigned]
        prices_G = _lowest_prices(values_BG, holders, held)
        worth = values_BG[holders, held]
        payments = np.zeros(len(values_BG))
        payments[holders] = np.minimum(prices_G[held], worth)
        assignment: list[Json] = [None] * len(values_BG)
        for buyer, good in zip(holders, held, strict=True):
            assignment[int(buyer)] = int(good)
        values: dict[str, Json] = {
            "welfare": math.fsum(worth),
            "payments": [float(payment) for payment in payments],
            "assignment": assignment,
        }
        return Outcome(status=Status.TRADE if len(held) else Status.NO_TRADE, values=values)

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge by duality: payments are prices at which everybody likes its own good best.

        That proves the assignment optimal. They are Clarke's if none can fall: from each
        good with a price, a chain of buyers that are as happy with the next good leads to a
        buyer who has none, or to a good that is free.
        """
        values_BG = _read(market)
        buyers, goods = values_BG.shape
        held_B = _stated_assignment(stated(outcome, "assignment"), buyers, goods)
        payments_B = stated_array(outcome, "payments", (buyers,))
        has_B = held_B >= 0
        scale = max(1e-300, float(np.abs(values_BG).max()))
        prices_G = np.zeros(goods)
        prices_G[held_B[has_B]] = payments_B[has_B]
        worth_B = np.where(has_B, values_BG[np.arange(buyers), held_B], 0.0)
        utility_B = worth_B - payments_B
        best_B = np.maximum(0.0, (values_BG - prices_G).max(axis=1))
        welfare = stated_number(outcome, "welfare")
        tight_BG = values_BG - prices_G >= utility_B[:, None] - scale * DEFAULT_TOLERANCE
        violations = {
            "status": misstated_status(outcome, trades=bool(has_B.any())),
            "welfare": abs(welfare - math.fsum(worth_B)) / (scale * buyers),
            "negative_payment": max(0.0, -float(payments_B.min())) / scale,
            "paid_for_nothing": float(np.abs(payments_B[~has_B]).max(initial=0.0)) / scale,
            "individual_rationality": max(0.0, -float(utility_B.min())) / scale,
            "envy": float(np.abs(best_B - utility_B).max()) / scale,
            "not_lowest": _could_fall(prices_G, held_B, tight_BG, scale * DEFAULT_TOLERANCE)
            / scale,
        }
        return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)


def _lowest_prices(values_BG: np.ndarray, holders: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return the gain of everybody else from each good, if its holder left it."""
    idle = np.ones(len(values_BG), dtype=np.bool_)
    idle[holders] = False
    prices_G: np.ndarray = values_BG[idle].max(axis=0, initial=0.0)
    moved = values_BG[holders] - values_BG[holders, held][:, None]
    # a path passes each holder once at most, and most are short
    for _ in range(len(holders)):
        risen = np.maximum(prices_G, (moved + prices_G[held][:, None]).max(axis=0, initial=0.0))
        if np.array_equal(risen, prices_G):
            break
        prices_G = risen
    return prices_G


def _stated_assignment(value: Json, buyers: int, goods: int) -> np.ndarray:
    """Return the good that each buyer holds, −1 for none. Raises `RefusedInputError`."""
    field = "assignment"
    held = []
    for buyer, good in enumerate(items(value, field, length=buyers)):
        if good is None:
            held.append(-1)
        elif isinstance(good, bool) or not isinstance(good, int) or not 0 <= good < goods:
            raise RefusedInputError(
                f"{field}[{buyer}]", f"must be a good under {goods} or null, got {shown(good)}"
            )
        else:
            held.append(good)
    given = [good for good in held if good >= 0]
    if len(set(given)) != len(given):
        raise RefusedInputError(field, "gives one good to two buyers")
    return np.array(held)


def _could_fall(
    prices_G: np.ndarray, held_B: np.ndarray, tight_BG: np.ndarray, edge: float
) -> float:
    """Return the highest price that nothing holds up."""
    firm_G = prices_G <= edge
    asked_B = held_B < 0  # buyers whose wish holds a price up: those without a good, to begin with
    asked_B = asked_B | np.where(held_B >= 0, firm_G[held_B], False)
    while True:
        risen_G = firm_G | (tight_BG & asked_B[:, None]).any(axis=0)
        if np.array_equal(risen_G, firm_G):
            return float(prices_G[~firm_G].max(initial=0.0))
        firm_G = risen_G
        asked_B = asked_B | np.where(held_B >= 0, firm_G[held_B], False)
