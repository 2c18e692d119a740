"""The plain Eisenberg–Gale programme, a baseline of paper 003 §IV: `eeg` without (6c).

The paper says that (6b) is dropped too; (6b) only writes an allocation as a demand times its
utility, and stays. Buyers may be sold more than they can use: `x` is what they buy, `utility`
what they have of it, at most their limit.
"""

from __future__ import annotations

from broker_node.mechanisms.base import Claim
from broker_node.mechanisms.eeg import ExtendedEisenbergGale


class EisenbergGale(ExtendedEisenbergGale):
    """A Fisher market of weights that does not know the limits of utility."""

    name = "eg"
    claims = frozenset(
        {
            Claim.INDIVIDUAL_RATIONALITY,
            Claim.BUDGET_BALANCE,
            Claim.ENVY_FREE,
            Claim.SHARING_INCENTIVE,
        }
    )
    limited = False
