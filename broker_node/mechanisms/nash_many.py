"""Nash bargains by the hundred thousand: the rule of `broker_node.mechanisms.nash` on arrays.

Operation by operation it is the scalar rule, and so equal to it bit for bit; N counts
bargains. For simulations, where the scalar rule's checks of JSON would take all the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.nash import ROUNDING, TIE
from broker_node.mechanisms.reading import LARGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class NashBargains:
    """N outcomes; where neither leg trades there was no trade."""

    leg_a_N: np.ndarray
    leg_b_N: np.ndarray
    net_transfer_to_a_N: np.ndarray
    utility_a_N: np.ndarray
    utility_b_N: np.ndarray
    fee_N: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    a_own: np.ndarray
    a_other: np.ndarray
    b_own: np.ndarray
    b_other: np.ndarray
    tau: np.ndarray
    of_a: np.ndarray
    of_b: np.ndarray
    cash_a: np.ndarray
    cash_b: np.ndarray
    fee: np.ndarray


def nash_many(
    v_a_own: ArrayLike,
    v_a_other: ArrayLike,
    v_b_own: ArrayLike,
    v_b_other: ArrayLike,
    *,
    leg_a: ArrayLike = True,
    leg_b: ArrayLike = True,
    tau: ArrayLike = 0.5,
    disagreement: tuple[ArrayLike, ArrayLike] = (0.0, 0.0),
    budget: tuple[ArrayLike, ArrayLike] = (np.inf, np.inf),
    fee: ArrayLike = 0.0,
) -> NashBargains:
    """Return the bargains over arrays [N], or numbers that hold for all of them.

    An infinite budget is no limit. Raises `RefusedInputError` as the scalar rule does, and
    for arrays that do not go together.
    """
    named = {
        "v_a_own": v_a_own,
        "v_a_other": v_a_other,
        "v_b_own": v_b_own,
        "v_b_other": v_b_other,
        "tau": tau,
        "disagreement[0]": disagreement[0],
        "disagreement[1]": disagreement[1],
        "budget[0]": budget[0],
        "budget[1]": budget[1],
        "fee": fee,
    }
    arrays = [np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in named.values()]
    legs = [np.atleast_1d(np.asarray(leg, dtype=np.bool_)) for leg in (leg_a, leg_b)]
    try:
        *numbers, table_a, table_b = np.broadcast_arrays(*arrays, *legs)
    except ValueError as error:
        raise RefusedInputError("v_a_own", f"arrays do not go together: {error}") from error
    if table_a.ndim != 1:
        raise RefusedInputError("v_a_own", f"must be a vector, got shape {table_a.shape}")
    for field, values in zip(named, numbers, strict=True):
        _check(field, values)
    terms = _Terms(**dict(zip(_Terms.__slots__, numbers, strict=True)))
    keep_a = table_a & (terms.b_other - terms.a_own >= 0)
    keep_b = table_b & (terms.a_other - terms.b_own >= 0)
    best = _settle(terms, keep_a, keep_b)
    both = keep_a & keep_b & (terms.fee > 0)
    if both.any():
        height = _product(terms, best)
        for only_a in (True, False):
            single = _settle(terms, both & only_a, both & (not only_a))
            product = _product(terms, single)
            traded, other = single.leg_a_N | single.leg_b_N, best.leg_a_N | best.leg_b_N
            better = traded & (~other | (product > (1 + TIE) * height))
            best = _chosen(better, single, best)
            height = np.where(better, product, height)
    return best


def _check(field: str, values: np.ndarray) -> None:
    unlimited = field.startswith("budget")
    if unlimited:
        good = (values >= 0) & ((values <= LARGEST) | np.isinf(values))
    elif field == "tau":
        good = (values >= 0) & (values <= 1)
    elif field == "fee":
        good = (values >= 0) & (values < 1)
    else:
        good = np.abs(values) <= LARGEST
    if not good.all():
        worst = int(np.argmin(good))
        raise RefusedInputError(field, f"cannot be {values[worst]:g}, its value {worst}")


def _settle(terms: _Terms, leg_a: np.ndarray, leg_b: np.ndarray) -> NashBargains:
    utility_a = terms.a_other * leg_b - terms.a_own * leg_a
    utility_b = terms.b_other * leg_a - terms.b_own * leg_b
    needed = terms.of_a - utility_a
    spared = utility_b - terms.of_b
    left = 1 - terms.fee
    low = np.maximum(np.where(needed > 0, needed / left, needed), -terms.cash_a)
    high = np.minimum(np.where(spared > 0, spared, spared / left), terms.cash_b)
    size = np.abs(terms.a_own) + np.abs(terms.a_other) + np.abs(terms.b_own) + np.abs(terms.b_other)
    size = size + np.abs(terms.of_a) + np.abs(terms.of_b)
    trade = (leg_a | leg_b) & (low <= high + ROUNDING * size)
    to_a = (1 - terms.tau) * (needed / left) + terms.tau * spared
    to_b = (1 - terms.tau) * needed + terms.tau * (spared / left)
    peak = np.where(to_a > 0, to_a, np.minimum(to_b, 0.0))
    transfer = np.where(trade, np.minimum(np.maximum(peak, low), high) + 0.0, 0.0)
    received = transfer * left
    paid_to_a, paid_by_b = (
        np.where(transfer > 0, received, transfer),
        np.where(transfer > 0, transfer, received),
    )
    return NashBargains(
        leg_a_N=leg_a & trade,
        leg_b_N=leg_b & trade,
        net_transfer_to_a_N=transfer,
        utility_a_N=np.where(trade, utility_a + paid_to_a, terms.of_a),
        utility_b_N=np.where(trade, utility_b - paid_by_b, terms.of_b),
        fee_N=terms.fee * np.abs(transfer),
    )


def _product(terms: _Terms, deals: NashBargains) -> np.ndarray:
    gain_a = np.maximum(0.0, deals.utility_a_N - terms.of_a)
    gain_b = np.maximum(0.0, deals.utility_b_N - terms.of_b)
    product: np.ndarray = gain_a**terms.tau * gain_b ** (1 - terms.tau)
    return product


def _chosen(better: np.ndarray, new: NashBargains, old: NashBargains) -> NashBargains:
    names = NashBargains.__slots__
    picked = {name: np.where(better, getattr(new, name), getattr(old, name)) for name in names}
    return NashBargains(**picked)
