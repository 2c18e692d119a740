"""Reading a mechanism's JSON inputs: exact keys, finite numbers, rectangular arrays.

Every refusal is a `RefusedInputError` whose field is the entry at fault, ``prior.mu`` or
``omega[2][0]``, and whose reason says what it must be and what was given. No number is over
`LARGEST` in size, so that squares, and sums of millions, are still numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from broker_node.mechanisms.base import Issue, Json, Market, RefusedInputError

Floats = npt.NDArray[np.float64]
LARGEST: Final = 1e150
MAX_DIMENSIONS: Final = 8
MAX_CELLS: Final = 4_000_000
"""Of a vector or table of amounts."""


def issues_of(read: Callable[[Market], object], market: Market) -> list[Issue]:
    """Return why `read` refuses a market, the first reason found; empty if it does not."""
    try:
        read(market)
    except RefusedInputError as refused:
        return [Issue(field=refused.field, reason=refused.reason)]
    return []


def require_keys(market: Market, required: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise `RefusedInputError` for a key that is missing or unknown."""
    for key in required:
        if key not in market:
            raise RefusedInputError(key, "is missing")
    for key in market:
        if key not in required and key not in optional:
            raise RefusedInputError(f"{key!s:.40}", "is not a key of this mechanism")


# ── one value ──


def number(value: Json, field: str) -> float:
    """Return a finite number as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedInputError(field, f"must be a number, got {shown(value)}")
    try:
        converted = float(value)
    except OverflowError as error:
        raise RefusedInputError(field, f"must be finite, got {shown(value)}") from error
    if not math.isfinite(converted):
        raise RefusedInputError(field, f"must be finite, got {converted}")
    return converted


def amount(value: Json, field: str, *, signed: bool = False) -> float:
    """Return a number of at most `LARGEST` in size, and of at least 0 unless `signed`."""
    read = number(value, field)
    if abs(read) > LARGEST:
        raise RefusedInputError(field, f"must be at most {LARGEST:g} in size, got {read:g}")
    if read < 0 and not signed:
        raise RefusedInputError(field, f"must be at least 0, got {read:g}")
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
        raise RefusedInputError(field, f"must be a list, got {shown(value)}")
    if length is not None and len(value) != length:
        raise RefusedInputError(field, f"must have {length} items, got {len(value)}")
    return value


def mapping(value: Json, field: str) -> dict[str, Json]:
    """Return an object."""
    if not isinstance(value, dict):
        raise RefusedInputError(field, f"must be an object, got {shown(value)}")
    return value


def shown(value: Json) -> str:
    """Return a value as an error message has room for it."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"about 2**{value.bit_length()}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, list):
        return f"a list of {len(value)} items"
    return "an object"


def as_written(value: float) -> Fraction:
    """Return the shortest decimal that is this float: 0.3 is three tenths, and not a bit less.

    For amounts on their way to Wei, where 10 · 0.3 rounded down must be 3. Order is kept.
    """
    return Fraction(repr(float(value)))


# ── arrays ──


def amounts(value: Json, field: str, *, signed: bool = False, length: int | None = None) -> Floats:
    """Return a list of one amount or more, exactly `length` if that is given."""
    read = array(value, field, (length,))
    if not 1 <= len(read) <= MAX_CELLS:
        raise RefusedInputError(field, f"must have 1 … {MAX_CELLS} items, got {len(read)}")
    return read if signed else require_at_least_zero(read, field)


def table(value: Json, field: str, *, signed: bool = False) -> Floats:
    """Return rows of amounts, all of one length, as an array [row][column]."""
    if value == []:
        raise RefusedInputError(field, "must have a row, got a list of 0 items")
    read = array(value, field, (None, None))
    if not 1 <= read.size <= MAX_CELLS:
        raise RefusedInputError(field, f"must have 1 … {MAX_CELLS} cells, got {read.size}")
    return read if signed else require_at_least_zero(read, field)


def array(value: Json, field: str, shape: Sequence[int | None] | None = None) -> Floats:
    """Return nested lists of numbers as a float array.

    `shape` has one length an axis, None standing for any; without it the first items of the
    lists say the shape, in at most 8 dimensions.
    """
    found = _shape_of(value, field)
    if shape is not None:
        _require_shape(value, field, found, shape)
    _check(value, field, found)
    try:
        converted = np.array(value, dtype=np.float64)
    except OverflowError:
        flat = np.array(value, dtype=object)
        size = np.vectorize(abs, otypes=[object])(flat)
        where = np.argwhere(size > LARGEST)[0]
        reason = f"must be finite, got {shown(flat[tuple(where)])}"
        raise RefusedInputError(named(field, where), reason) from None
    require_finite(converted, field)
    if (np.abs(converted) > LARGEST).any():
        where = np.argwhere(np.abs(converted) > LARGEST)[0]
        raise RefusedInputError(
            named(field, where),
            f"must be at most {LARGEST:g} in size, got {float(converted[tuple(where)]):g}",
        )
    return converted


def with_null(value: Json, field: str, shape: tuple[int, int]) -> Floats:
    """Return rows of numbers in which null stands for no limit, +∞."""
    if value is None:
        return np.full(shape, math.inf)
    filled: list[Json] = []
    unlimited: list[list[bool]] = []
    for index, row in enumerate(items(value, field)):
        cells = items(row, f"{field}[{index}]")
        filled.append([0 if cell is None else cell for cell in cells])
        unlimited.append([cell is None for cell in cells])
    limits = array(filled, field, shape)
    limits[np.array(unlimited, dtype=bool).reshape(shape)] = math.inf
    return limits


def require_finite(values: Floats, field: str) -> Floats:
    """Return `values`; raises `RefusedInputError` naming the first that is not finite."""
    return _all(np.isfinite(values), values, field, "must be finite")


def require_at_least_zero(values: Floats, field: str) -> Floats:
    """Return `values`; raises `RefusedInputError` naming the first under 0."""
    return _all(values >= 0, values, field, "must be at least 0")


def require_over_zero(values: Floats, field: str) -> Floats:
    """Return `values`; raises `RefusedInputError` naming the first that is not over 0."""
    return _all(values > 0, values, field, "must be over 0")


def _all(good: npt.NDArray[np.bool_], values: Floats, field: str, rule: str) -> Floats:
    if not good.all():
        where = np.argwhere(~good)[0]
        raise RefusedInputError(named(field, where), f"{rule}, got {float(values[tuple(where)]):g}")
    return values


def named(field: str, where: Sequence[int] | npt.NDArray[np.intp]) -> str:
    """Return the name of one entry, ``field[2][0]``."""
    return field + "".join(f"[{int(index)}]" for index in where)


def _shape_of(value: Json, field: str) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list):
        if len(shape) == MAX_DIMENSIONS:
            raise RefusedInputError(field, f"must have at most {MAX_DIMENSIONS} dimensions")
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _require_shape(
    value: Json, field: str, found: Sequence[int], shape: Sequence[int | None]
) -> None:
    for have, want in zip(found, shape, strict=False):
        if want is not None and have != want:
            raise RefusedInputError(field, f"must have {want} items, got {have}")
        if isinstance(value, list) and value:
            value, field = value[0], f"{field}[0]"
    if len(found) < len(shape) and not (found and found[-1] == 0):
        raise RefusedInputError(field, f"must be a list, got {shown(value)}")
    if len(found) < len(shape):
        raise RefusedInputError(field, "must not be empty")
    if len(found) > len(shape):
        raise RefusedInputError(field, f"must be a number, got {shown(value)}")


def _check(value: Json, field: str, shape: tuple[int, ...]) -> None:
    if not shape:
        if type(value) not in {int, float}:
            raise RefusedInputError(field, f"must be a number, got {shown(value)}")
        return
    if not isinstance(value, list):
        raise RefusedInputError(field, f"must be a list of {shape[0]} items, got {shown(value)}")
    if len(value) != shape[0]:
        raise RefusedInputError(field, f"must have {shape[0]} items, got {len(value)}")
    if len(shape) == 1 and set(map(type, value)) <= {int, float}:
        return  # a row of numbers, without a call for each
    for index, item in enumerate(value):
        _check(item, f"{field}[{index}]", shape[1:])
