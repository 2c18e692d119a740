"""The broker's fee: a share of the price in basis points, rounded down for those who trade."""

from __future__ import annotations

from typing import Final

from node.protocol.types import Wei

BASIS_POINTS: Final = 10_000
"""One, in basis points."""

MAX_FEE_BASIS_POINTS: Final = 1_000
"""No broker asks for more than a tenth of the price."""


def fee_of(price: Wei, fee_basis_points: int) -> Wei:
    """Return the broker's share of `price`, rounded down."""
    return Wei(price * fee_basis_points // BASIS_POINTS)
