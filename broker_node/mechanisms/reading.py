"""Reading a mechanism's JSON inputs: exact keys, finite numbers, errors that name the field."""

from __future__ import annotations

import math
from collections.abc import Collection

from broker_node.mechanisms.base import Json, Market, RefusedInputError


def require_keys(market: Market, required: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise `RefusedInputError` for a key that is missing or unknown."""
    for key in required:
        if key not in market:
            raise RefusedInputError(key, "is missing")
    for key in market:
        if key not in required and key not in optional:
            raise RefusedInputError(key, "is not a key of this mechanism")


def number(value: Json, field: str) -> float:
    """Return a finite number as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedInputError(field, f"must be a number, got {value!r:.40}")
    try:
        converted = float(value)
    except OverflowError as error:
        raise RefusedInputError(field, "is too large") from error
    if not math.isfinite(converted):
        raise RefusedInputError(field, "must be finite")
    return converted


def non_negative(value: Json, field: str) -> float:
    """Return a finite number of at least 0."""
    read = number(value, field)
    if read < 0:
        raise RefusedInputError(field, f"must be at least 0, got {read:g}")
    return read


def positive(value: Json, field: str) -> float:
    """Return a finite number over 0."""
    read = number(value, field)
    if read <= 0:
        raise RefusedInputError(field, f"must be over 0, got {read:g}")
    return read


def fraction(value: Json, field: str) -> float:
    """Return a number in 0 … 1."""
    read = number(value, field)
    if not 0 <= read <= 1:
        raise RefusedInputError(field, f"must be 0 … 1, got {read:g}")
    return read


def items(value: Json, field: str, *, length: int | None = None) -> list[Json]:
    """Return a list, of exactly `length` items if that is given."""
    if not isinstance(value, list):
        raise RefusedInputError(field, "must be a list")
    if length is not None and len(value) != length:
        raise RefusedInputError(field, f"must have {length} items, got {len(value)}")
    return value


def mapping(value: Json, field: str) -> dict[str, Json]:
    """Return an object."""
    if not isinstance(value, dict):
        raise RefusedInputError(field, "must be an object")
    return value
