"""The weight market (paper 003 §III, Problem 2): the extended Eisenberg–Gale programme.

Buyers with budgets buy weights in fixed proportions from sellers of limited capacity; the
equilibrium maximises Σ_s B_s log u_s over what is feasible with u_s ≤ D_s for every buyer.
Every buyer then gets the most that its budget affords at the prices, or all that it can use,
and keeps the rest; what is not sold out costs nothing.

Where the paper errs: (6c) is printed for every seller and holds for every buyer; what is
spent is Σ_j x_sj b_sj = B_s − μ_s u_s; in Proposition 3 it is u_s < D_s that makes μ_s 0; the
objective of Proposition 2 has its B_s; and EEG is not better than EG for each buyer where
there is more than one type, only not worse in total over what was seen.

Efficient, balanced and envy-free at its prices, hence not truthful: a buyer that misreports
its demand moves them.
"""

from __future__ import annotations

from broker_node.mechanisms.base import (
    Certificate,
    Claim,
    Issue,
    Market,
    Outcome,
    RefusedInputError,
)
from broker_node.mechanisms.reading import issues_of, shown
from broker_node.mechanisms.weight_market.certificate import certify
from broker_node.mechanisms.weight_market.equilibrium import clear
from broker_node.mechanisms.weight_market.market import RANGES, issues, read


class ExtendedEisenbergGale:
    """A Fisher market of weights: budgets, capacities and limits of utility."""

    name = "eeg"
    claims = frozenset(
        {
            Claim.INDIVIDUAL_RATIONALITY,
            Claim.BUDGET_BALANCE,
            Claim.ENVY_FREE,
            Claim.PARETO,
            Claim.SHARING_INCENTIVE,
        }
    )
    limited = True

    def validate(self, market: Market) -> list[Issue]:
        return issues(market, (RANGES,)) or issues_of(_ranges, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return x, prices, utility, surplus, gap and ranges; nothing here is random.

        The status is `approximate` where the relative gap is over 1e-6. With `price_ranges`
        true the ranges are looked for in a market of any size, with false in none.
        """
        ranges = _ranges(market)
        return clear(
            read(market, (RANGES,)), limited=self.limited, tolerance=tolerance, ranges=ranges
        )

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge feasibility, the duality gap and its parts; of ranges, that they hold the figures.

        They are null only where the market asks for none, or is large and does not ask. That a
        range has no more to it would take a solver, and is not judged.
        """
        known = read(market, (RANGES,))
        ranges = _ranges(market)
        return certify(known, outcome, limited=self.limited, ranges=ranges)


def _ranges(market: Market) -> bool | None:
    asked = market.get(RANGES)
    if asked is None or isinstance(asked, bool):
        return asked
    raise RefusedInputError(RANGES, f"must be true, false or null, got {shown(asked)}")
