"""The price of one leg in whole Wei: Nash bargaining between a bid and an ask, after the fee.

The buyer pays p, the broker keeps fee(p) = ⌊p · basis points / 10,000⌋, the seller receives
n(p) = p − fee(p). The price maximises (bid − p) · (n(p) − ask) over whole Wei, exactly: the
fee's rounding repeats with a period of at most 10,000, so in every residue class the product
is a parabola, and one of at most two members next to its vertex is the best of the class.

Rounding: the fee is rounded down, in favour of the two who trade; of prices with equal
products the lowest is taken, in favour of the buyer. Both are checked for no loss after
rounding, not before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from node.protocol.errors import LocalProtocolError
from node.protocol.fees import BASIS_POINTS, fee_of
from node.protocol.types import UINT256_MAX, Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """A price that neither side loses by; price = fee + what the seller receives."""

    price: Wei
    fee: Wei

    @property
    def seller_receives(self) -> Wei:
        """What is left of the price after the fee."""
        return Wei(self.price - self.fee)


def bargain(bid: Wei, ask: Wei, *, fee_basis_points: int) -> Deal | None:
    """Return the Nash price of one leg, or None where there is nothing to share.

    `bid` is what the goods are worth to the buyer, `ask` the least that the seller wants to
    receive after the fee. A deal has a price of at least 1 (the escrow takes no other),
    price <= bid, price − fee >= ask, and leaves at least one of the two better off: a trade
    that only moves the fee about is not worth its gas.

    Raises `LocalProtocolError` for amounts under 0 or over 256 bits, and for a fee that is
    not 0 … 9,999 basis points.
    """
    if not 0 <= bid <= UINT256_MAX or not 0 <= ask <= UINT256_MAX:
        raise LocalProtocolError(f"bid {bid} and ask {ask} must be 0 … 2**256 - 1")
    if not 0 <= fee_basis_points < BASIS_POINTS:
        raise LocalProtocolError(f"fee must be 0 … 9999 basis points, got {fee_basis_points}")
    lowest = max(1, _lowest_price(ask, fee_basis_points))
    if lowest > bid:
        return None
    best = max(
        _candidates(lowest, bid, ask, fee_basis_points),
        key=lambda price: ((bid - price) * _surplus(price, ask, fee_basis_points), -price),
    )
    deal = Deal(price=Wei(best), fee=fee_of(Wei(best), fee_basis_points))
    if deal.price > bid or deal.seller_receives < ask:
        raise LocalProtocolError(f"price {best} breaks bid {bid} or ask {ask}")
    return deal if bid > deal.price or deal.seller_receives > ask else None


def _surplus(price: int, ask: int, fee_basis_points: int) -> int:
    return price - fee_of(Wei(price), fee_basis_points) - ask


def _lowest_price(ask: int, fee_basis_points: int) -> int:
    """Return the least price of which at least `ask` is left after the fee.

    What is left, p − ⌊p·f⌋ = ⌈p·(1 − f)⌉, never falls as p grows.
    """
    kept = BASIS_POINTS - fee_basis_points
    return (ask - 1) * BASIS_POINTS // kept + 1 if ask > 0 else 0


def _candidates(lowest: int, bid: int, ask: int, fee_basis_points: int) -> set[int]:
    """Return the prices of lowest … bid among which the best one certainly is."""
    period = BASIS_POINTS // math.gcd(BASIS_POINTS, fee_basis_points)
    kept = BASIS_POINTS - fee_basis_points
    candidates = set()
    for residue in range(min(period, bid - lowest + 1)):
        first = lowest + residue
        # here n(p) = n(first) + (p - first) * kept / 10,000 exactly: a parabola in p
        short = ask - _surplus(first, 0, fee_basis_points)
        to_vertex = ((bid - first) * kept + short * BASIS_POINTS) // (2 * kept * period)
        last = (bid - first) // period
        for step in (to_vertex, to_vertex + 1):
            candidates.add(first + min(max(step, 0), last) * period)
    return candidates
