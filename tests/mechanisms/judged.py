"""What every mechanism is held to: its outcome verified, a tampered one not."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from broker_node.mechanisms.base import (
    DEFAULT_TOLERANCE,
    Json,
    Market,
    Mechanism,
    Outcome,
    RefusedInputError,
)


def cleared(mechanism: Mechanism, market: Market) -> Outcome:
    """Return an outcome whose certificate holds."""
    outcome = mechanism.clear(market, tolerance=DEFAULT_TOLERANCE, seed=0)
    certificate = mechanism.verify(market, outcome)
    assert certificate.valid, (dict(market), outcome, dict(certificate.violations))
    return outcome


def unchecked(mechanism: Mechanism, market: Market) -> Outcome:
    """Return an outcome alone, where a test needs hundreds."""
    return mechanism.clear(market, tolerance=DEFAULT_TOLERANCE, seed=0)


def rejected(mechanism: Mechanism, market: Market, change: Mapping[str, Json]) -> set[str]:
    """Return the figures of the certificate that a change of the outcome breaks; never none."""
    outcome = cleared(mechanism, market)
    wrong = Outcome(status=outcome.status, values={**outcome.values, **change})
    certificate = mechanism.verify(market, wrong)
    assert not certificate.valid, change
    return {name for name, off in certificate.violations.items() if not off <= DEFAULT_TOLERANCE}


def refuses(mechanism: Mechanism, market: Market, field: str) -> str:
    """Return the reason why a market is refused; both ways name the field."""
    issues = mechanism.validate(market)
    assert [issue.field for issue in issues] == [field], issues
    with pytest.raises(RefusedInputError) as refused:
        mechanism.clear(market, tolerance=DEFAULT_TOLERANCE, seed=0)
    assert refused.value.field == field
    return refused.value.reason


def needs_every_figure(mechanism: Mechanism, market: Market) -> None:
    """Check that an outcome without one of its figures is refused by that figure's name."""
    outcome = cleared(mechanism, market)
    for name in outcome.values:
        rest = {key: value for key, value in outcome.values.items() if key != name}
        with pytest.raises(RefusedInputError) as refused:
            mechanism.verify(market, Outcome(status=outcome.status, values=rest))
        assert refused.value.field == name


def floats(value: Json) -> list[float]:
    """Return a list of an outcome as floats."""
    assert isinstance(value, list)
    return [number(item) for item in value]


def number(value: Json) -> float:
    """Return a number of an outcome as a float."""
    assert isinstance(value, float | int)
    return float(value)


def indices(value: Json) -> list[int]:
    """Return a list of indices of an outcome."""
    assert isinstance(value, list)
    assert all(isinstance(item, int) for item in value)
    return [item for item in value if isinstance(item, int)]
