"""What a market in JSON is made of, by mechanism: what goes in, and what an outcome states.

An outcome has a `status` besides. `docs/mechanisms.md` says what each key means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a market and of its outcome, in the order of the mechanism's own text."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    outcome: tuple[str, ...]


_BOUGHT: Final = ("x", "prices", "utility", "surplus", "gap")
_RANGED: Final = (*_BOUGHT, "relative_gap", "price_ranges", "surplus_ranges")
_WEIGHTS: Final = ("demand", "budget", "capacity")

KEYS: Final[dict[str, Keys]] = {
    "nash": Keys(
        ("v_a_own", "v_a_other", "v_b_own", "v_b_other"),
        ("legs", "tau", "disagreement", "budget", "fee"),
        ("legs", "net_transfer_to_a", "utility_a", "utility_b", "fee"),
    ),
    "bayesian-ask": Keys(("prior", "support", "cost"), ("mode", "k"), ("price", "revenue")),
    "gain-bounds": Keys(("alpha", "beta", "delta_a"), (), ("lower", "upper", "exact")),
    "procurement": Keys(("cost", "value", "budget"), (), ("winners", "payment")),
    "mcafee": Keys(
        ("bids", "asks"),
        (),
        ("trades", "buyer_price", "seller_price", "buyers", "sellers", "surplus"),
    ),
    "kplus1": Keys(("bids", "copies", "reserve"), (), ("winners", "price")),
    "vcg": Keys(("values",), (), ("welfare", "payments", "assignment")),
    "fusion": Keys(("local", "acquired", "lam"), ("mask",), ("fused",)),
    "shapley": Keys(
        ("parties", "performance_by_bitmask"),
        ("ceiling", "non_refundable"),
        ("psi", "payout", "net", "gain", "hurt", "reason", "fee"),
    ),
    "triplewin": Keys(
        ("shapley", "delta", "kappa_d", "kappa_m", "omega"),
        ("reserve",),
        ("feasible", "trades", "p_data_to_model", "p_model_to_buyer", "loop_gain"),
    ),
    "eeg": Keys(_WEIGHTS, ("max_utility", "price_ranges"), _RANGED),
    "eg": Keys(_WEIGHTS, ("max_utility", "price_ranges"), _RANGED),
    "proportional": Keys(_WEIGHTS, ("max_utility",), _BOUGHT),
    "social-welfare": Keys(_WEIGHTS, ("max_utility",), (*_BOUGHT, "shadow_prices")),
    "max-min": Keys(_WEIGHTS, ("max_utility",), (*_BOUGHT, "levels")),
}
