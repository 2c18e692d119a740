"""What every mechanism answers, and what it says it guarantees.

Inside a mechanism money is in abstract units and floating point, as in the papers; the
market's own prices come from functions on `Wei` (`nash.bargain`, `ask.market_ask`) that
never touch a float. `verify` computes an outcome's certificate from the inputs alone, without
the solver: what proves an optimum (shadow prices, a gap) the outcome states beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, TypeAlias

from node.protocol.errors import LocalProtocolError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Market: TypeAlias = Mapping[str, Json]
"""A mechanism's inputs, by the keys that the command line uses."""

DEFAULT_TOLERANCE: Final = 1e-9


class Claim(Enum):
    """A property that a mechanism claims; tests try to break each by simulation."""

    INDIVIDUAL_RATIONALITY = "individual-rationality"
    INCENTIVE_COMPATIBILITY = "incentive-compatibility"
    BUDGET_BALANCE = "budget-balance"
    ENVY_FREE = "envy-free"
    PARETO = "pareto"
    SHARING_INCENTIVE = "sharing-incentive"


class Status(Enum):
    """How a clearing ended."""

    TRADE = "trade"
    NO_TRADE = "no_trade"
    INFEASIBLE = "infeasible"
    APPROXIMATE = "approximate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """One reason why an input is refused."""

    field: str
    reason: str


class RefusedInputError(LocalProtocolError):
    """An input that a mechanism does not clear; names the field at fault."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What `verify` found, each figure at most `tolerance` if the outcome is right."""

    violations: Mapping[str, float]
    tolerance: float

    @property
    def valid(self) -> bool:
        """Whether no figure is over the tolerance (a NaN is)."""
        return all(value <= self.tolerance for value in self.violations.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The answer of a mechanism, with the keys that the command line prints."""

    status: Status
    values: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """Return the outcome as one JSON object."""
        return {"status": self.status.value, **self.values}


class Mechanism(Protocol):
    """A rule from inputs to an outcome: deterministic in the market, tolerance and seed."""

    name: str
    claims: frozenset[Claim]

    def validate(self, market: Market) -> list[Issue]:
        """Return why `market` is refused; an empty list if it is not."""

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return the outcome; raises `RefusedInputError` where `validate` finds issues."""

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge `outcome` from the inputs alone."""
