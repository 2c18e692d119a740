"""Reading what an outcome states, which is as hostile as an input, for `verify`."""

from __future__ import annotations

from collections.abc import Sequence

from broker_node.mechanisms.base import Json, Outcome, RefusedInputError, Status
from broker_node.mechanisms.reading import Floats, array, items, number, shown


def stated(outcome: Outcome, key: str) -> Json:
    """Return what an outcome says under `key`. Raises `RefusedInputError` where it is missing."""
    if key not in outcome.values:
        raise RefusedInputError(key, "is missing from the outcome")
    return outcome.values[key]


def misstated_status(outcome: Outcome, *, trades: bool) -> float:
    """Return 0 where an outcome says `trade` or `no_trade`, whichever is so, and else 1."""
    return float(outcome.status is not (Status.TRADE if trades else Status.NO_TRADE))


def stated_number(outcome: Outcome, key: str) -> float:
    """Return a finite number that an outcome states."""
    return number(stated(outcome, key), key)


def stated_array(outcome: Outcome, key: str, shape: Sequence[int | None]) -> Floats:
    """Return the finite numbers of that shape that an outcome states."""
    return array(stated(outcome, key), key, shape)


def stated_indices(outcome: Outcome, key: str, below: int) -> list[int]:
    """Return a list of distinct indices under `below` that an outcome states."""
    indices: list[int] = []
    for place, index in enumerate(items(stated(outcome, key), key)):
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < below:
            reason = f"must be an index under {below}, got {shown(index)}"
            raise RefusedInputError(f"{key}[{place}]", reason)
        indices.append(index)
    if len(set(indices)) != len(indices):
        raise RefusedInputError(key, "names an index twice")
    return indices
