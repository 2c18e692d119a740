"""What an agent is told once, at its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from node.protocol.bargain import Patience
from node.protocol.types import Millionths, Wei


class AskPolicy(Protocol):
    """How a seller names its ask, in what must reach it."""

    def __call__(
        self, own_gain_value: Wei | None, receipts: Sequence[Wei], cost: Wei, fee_basis_points: int
    ) -> Wei:
        """Return the ask.

        `own_gain_value` is what its own latest trial was worth to the seller, None before
        there was one; `receipts` are the prices of the task's recent trades, oldest first;
        `cost` is its reserve.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How one agent behaves. Durations are seconds, amounts wei, fractions millionths."""

    brokers: tuple[str, ...]
    """Multiaddresses, each with its peer id: whom we join by, and let see our weights."""
    rounds: int
    warmup_epochs: int
    epochs_per_round: int
    offer_seconds: int
    round_patience: float
    """How long a round waits for somebody else's new offer."""
    reserve: Wei
    value_per_unit_gain: Wei
    """κ: what the removal of the whole loss would be worth (`MECHANISMS`, 000 §3.3)."""
    min_gain: Millionths
    patience: Patience
    ask: AskPolicy
    prepared_seconds: int = 120
    """How long encrypted goods wait for their quote."""
    max_unfunded_sales: int = 64
    max_unfunded_sales_a_buyer: int = 16
    """Each costs an encryption and its disk, and the buyer nothing."""

    def value_of(self, gain: Millionths) -> Wei:
        """Return κ·Δ, the private value of a relative drop of the loss; zero at no gain."""
        return Wei(max(0, self.value_per_unit_gain * gain // 1_000_000))
