"""What an agent is told once, at its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from node.agent.strategies.base import Strategy, Usual
from node.protocol.bargain import Patience
from node.protocol.types import Millionths, Wei

Gate = Literal["gain", "bound"]


class AskPolicy(Protocol):
    """How a seller names its ask, in what must reach it."""

    def __call__(
        self,
        own_gain_value: Wei | None,
        receipts: Sequence[Wei],
        cost: Wei,
        fee_basis_points: int,
        /,
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
    """The usual ask, of which its strategy may make another."""
    strategy: Strategy = field(default_factory=Usual)
    attests: bool = False
    """Whether it swears of each model on offer that none of its broker's rows trained it."""
    budget: Wei | None = None
    """Most to spend on purchases in all; None for what the account holds."""
    priced: bool = True
    """False: every gain is worth one wei, the least that the escrow takes, and nothing is asked."""
    layers: tuple[int, ...] = ()
    """Which layers of its model it offers; empty means all. It buys of whatever layers."""
    gate: Gate = "bound"
    """What must be over 0 for a purchase: the measured gain, or its lower bound."""
    offers_per_round: int = 1
    """New offers of others that a round waits for, as long as its patience."""
    trials_per_round: int = 32
    """Most trials that a round has, or as many as the offers it waits for if those are more."""
    prepared_seconds: int = 120
    """How long encrypted goods wait for their quote."""
    mechanism: str = "nash"
    """How the market makes prices: of each pair's bid and ask, or, ``eeg``, in calls."""
    call_budget: Wei | None = None
    """Most to bid in one call; None for all that may be spent."""
    max_unfunded_sales: int = 64
    max_unfunded_sales_a_buyer: int = 16
    """Each costs an encryption and its disk, and the buyer nothing."""

    def value_of(self, gain: Millionths) -> Wei:
        """Return κ·Δ, the private value of a relative drop of the loss; zero at no gain."""
        if not self.priced:
            return Wei(1 if gain > 0 else 0)
        return Wei(max(0, self.value_per_unit_gain * gain // 1_000_000))

    def objection(
        self, alpha: Millionths, gain: Millionths, bound: Millionths, *, favoured: bool = False
    ) -> str:
        """Return why a trial is not bid for: ``gain``, ``bound``, or nothing.

        Of an offer that is `favoured` the bound does not matter.
        """
        if alpha <= 0 or gain <= 0 or gain < self.min_gain:
            return "gain"
        return "bound" if self.gate == "bound" and bound <= 0 and not favoured else ""
