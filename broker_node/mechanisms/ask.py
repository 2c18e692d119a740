"""What an agent asks for its parameters by default, in whole Wei.

A buyer's valuation is believed uniform on 0 … U, and the broker prices at the midpoint of
bid and ask (`split_difference`, k = ½), so that the best ask solves p − c = ½(U' − p):

    ask = (2·cost + U') / 3,    U' = U·(1 − fee)

in what the seller receives, U' being the most that is left of a bid after the fee.

The scale U is what matters. Relative gains shrink as training goes on, and an ask over a
fixed scale soon refuses every trade. So U is twice an estimate of the middle valuation:

- before any receipt, the seller's own latest gain in money: models of one task are worth
  about as much to each other;
- a receipt's price is another estimate of it. Bids above the ask U/3 are on average 2U/3,
  and the midpoint of these two is U/2: half of U, as the seller's own gain is. The
  `RECENT` latest receipts count one each against `OWN_WEIGHT` for the seller's own gain,
  which is the fresher of the two.

The ask is rounded down, in favour of trade, and is never under the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from node.protocol.errors import LocalProtocolError
from node.protocol.fees import BASIS_POINTS
from node.protocol.types import Wei

RECENT: Final = 8
OWN_WEIGHT: Final = 8


def market_ask(
    own_gain_value: Wei | None, receipts: Sequence[Wei], cost: Wei, fee_basis_points: int
) -> Wei:
    """Return the least that a seller wants to receive, after the fee.

    `own_gain_value` is what its own latest trial was worth to it (None before the first;
    what is not over 0 counts as 0); `receipts` are prices of past trades of the task, the
    latest last; `cost` is what selling costs it. With nothing to go by the ask is the cost.

    Raises `LocalProtocolError` for a cost or receipt under 0 and a fee that is not
    0 … 9,999 basis points.
    """
    recent = list(receipts)[-RECENT:]
    if cost < 0 or any(price < 0 for price in recent):
        raise LocalProtocolError(f"cost {cost} and receipts {recent} must be at least 0")
    if not 0 <= fee_basis_points < BASIS_POINTS:
        raise LocalProtocolError(f"fee must be 0 … 9999 basis points, got {fee_basis_points}")
    weight, total = len(recent), int(sum(recent))
    if own_gain_value is not None:
        weight += OWN_WEIGHT
        total += OWN_WEIGHT * max(0, own_gain_value)
    if weight == 0:
        return cost
    # U' = 2·(total / weight)·(1 − fee), kept as one fraction until the only rounding
    numerator = 2 * cost * weight * BASIS_POINTS + 2 * total * (BASIS_POINTS - fee_basis_points)
    return Wei(max(cost, numerator // (3 * weight * BASIS_POINTS)))
