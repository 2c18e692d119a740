"""From a mechanism's money to whole Wei: what buyers pay is what sellers and broker receive.

Amounts are taken as the decimals that they are written as, times `unit`, what 1.0 is worth.
They are rounded once: a price that all pay alike to a whole Wei, so that equals still pay the
same, and amounts that differ by largest remainder, ties to the lower number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.reading import as_written
from node.protocol.errors import LocalProtocolError
from node.protocol.types import UINT256_MAX, Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """Who pays and who receives: Σ paid = Σ received + broker, every amount at least 0."""

    paid: tuple[Wei, ...]
    """By each buyer."""
    received: tuple[Wei, ...]
    """By each seller."""
    broker: Wei = Wei(0)
    """What the broker is left with."""

    def __post_init__(self) -> None:
        if sum(self.changes) != 0 or min(*self.paid, *self.received, self.broker) < 0:
            raise LocalProtocolError(f"transfers do not balance: {self.changes}")

    @property
    def changes(self) -> tuple[int, ...]:
        """What buyers, then sellers, then the broker gain: their sum is 0."""
        return (*(-amount for amount in self.paid), *self.received, self.broker)


@dataclass(frozen=True, slots=True)
class InWei:
    """What 1.0 of a mechanism's money is worth in Wei."""

    unit: Wei

    def __post_init__(self) -> None:
        if not 0 <= self.unit <= UINT256_MAX:
            raise RefusedInputError("unit", f"must be 0 … 2**256 - 1, got {self.unit}")

    def exact(self, amount: float) -> Fraction:
        """Return an amount in Wei before it is rounded. Raises `RefusedInputError` over 256 bits.

        The bound is that of a payment: what is only compared with one is cut by `most`.
        """
        found = as_written(amount) * self.unit
        if abs(found) > UINT256_MAX:
            raise RefusedInputError("unit", f"{self.unit} makes a payment of over 256 bits")
        return found

    def down(self, amount: float) -> Wei:
        """Return an amount in whole Wei, rounded down."""
        return Wei(math.floor(self.exact(amount)))

    def most(self, amount: float) -> int:
        """Return the most whole Wei that are at most an amount of any size."""
        return math.floor(as_written(amount) * self.unit)


def largest_remainder(
    amounts: Sequence[Fraction], total: int, most: Sequence[int] | None = None
) -> list[int]:
    """Return whole amounts that sum to `total`, as `amounts` do, each less than 1 away.

    Ties go to the lower index. With `most` none is raised above it, and where all stand there
    the sum is less. Raises `RefusedInputError` where `total` is not the sum, or its floor.
    """
    whole = [math.floor(amount) for amount in amounts]
    left = total - sum(whole)
    by_remainder = sorted(range(len(amounts)), key=lambda i: (whole[i] - amounts[i], i))
    if not 0 <= left <= len(amounts):
        raise RefusedInputError("total", f"{total} is not the sum of the amounts, {sum(amounts)}")
    raised = [i for i in by_remainder if most is None or whole[i] < most[i]][:left]
    for index in raised:
        whole[index] += 1
    return whole


def in_proportion(weights: Sequence[Fraction], total: Wei) -> tuple[Wei, ...]:
    """Return integers in proportion to `weights` whose sum is `total`, by largest remainder.

    Raises `LocalProtocolError` for weights under 0, and for none over 0 where there is
    something to divide.
    """
    whole = sum(weights, Fraction())
    if any(weight < 0 for weight in weights) or (whole == 0 and total > 0):
        raise LocalProtocolError(f"cannot divide {total} by weights of sum {float(whole):g}")
    if total == 0:
        return tuple(Wei(0) for _ in weights)
    shares = [weight * total / whole for weight in weights]
    return tuple(Wei(share) for share in largest_remainder(shares, total))
