"""What a seller asks that believes the market's past prices alone, in whole Wei.

Each receipt of the task is taken for what some buyer had to give: less the fee, for that is
what reaches a seller. Of these amounts the ask is the one that would have earned the most over
all of them, the top √n no candidates (`bayesian_ask.learned_ask`), where the broker prices at
the midpoint of bid and ask. Prices lie under the values that they were bid from, so it asks for
little; it is a strategy to be measured, not a recommendation.

Comparing is done in floating point; what is returned is one of the amounts, exactly, or the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from broker_node.mechanisms.bayesian_ask import learned_ask
from node.protocol.errors import LocalProtocolError
from node.protocol.fees import BASIS_POINTS, fee_of
from node.protocol.types import Wei

MIDPOINT: Final = 0.5


def history_ask(
    _own_gain_value: Wei | None, receipts: Sequence[Wei], cost: Wei, fee_basis_points: int
) -> Wei:
    """Return the least that a seller wants to receive; its cost where there is no receipt.

    Raises `LocalProtocolError` for a cost or receipt under 0 and a fee that is not
    0 … 9,999 basis points.
    """
    if cost < 0 or any(price < 0 for price in receipts):
        raise LocalProtocolError(f"cost {cost} and receipts {list(receipts)} must be at least 0")
    if not 0 <= fee_basis_points < BASIS_POINTS:
        raise LocalProtocolError(f"fee must be 0 … 9999 basis points, got {fee_basis_points}")
    if not receipts:
        return cost
    amounts = sorted(Wei(price - fee_of(price, fee_basis_points)) for price in receipts)
    samples = np.array(amounts, dtype=np.float64)
    chosen = learned_ask(samples, cost=float(cost), share=MIDPOINT)
    exact = next((amount for amount in amounts if float(amount) == chosen), cost)
    return Wei(max(cost, exact))
