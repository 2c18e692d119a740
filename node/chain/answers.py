"""Reading an endpoint's answers as if it were hostile: every shape is checked, once, here.

A public RPC endpoint is a stranger. What it says becomes amounts and deadlines, so each
value is read by the one function for its shape, and anything else is a `ChainAnswerError`
with the offending value. Quantities may also be plain integers: eth-tester's provider
answers so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from node.chain.errors import ChainAnswerError
from node.protocol.types import DIGEST_BYTES, UINT64_MAX, UINT256_MAX, Digest, UnixTime, Wei

MAX_DATA: Final = 1 << 20
_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_SHOWN: Final = 80


def quantity(value: object, what: str, most: int = UINT64_MAX) -> int:
    """Read a number between 0 and `most`."""
    number = -1
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _QUANTITY.fullmatch(value):
        number = int(value, 16)
    if not 0 <= number <= most:
        raise _wrong(what, value)
    return number


def wei(value: object, what: str) -> Wei:
    """Read an amount."""
    return Wei(quantity(value, what, UINT256_MAX))


def time(value: object, what: str) -> UnixTime:
    """Read a block's time."""
    return UnixTime(quantity(value, what))


def data(value: object, what: str) -> bytes:
    """Read bytes."""
    if isinstance(value, bytes) and len(value) <= MAX_DATA:
        return bytes(value)
    if not isinstance(value, str) or len(value) > 2 + 2 * MAX_DATA or not _DATA.fullmatch(value):
        raise _wrong(what, value)
    return bytes.fromhex(value[2:])


def digest(value: object, what: str) -> Digest:
    """Read 32 bytes."""
    found = data(value, what)
    if len(found) != DIGEST_BYTES:
        raise _wrong(what, value)
    return Digest(found)


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """Read an object."""
    if not isinstance(value, Mapping):
        raise _wrong(what, value)
    return value


def array(value: object, what: str, most: int) -> list[Any]:
    """Read an array of at most `most` items."""
    if not isinstance(value, list | tuple) or len(value) > most:
        raise _wrong(what, value)
    return list(value)


def _wrong(what: str, value: object) -> ChainAnswerError:
    return ChainAnswerError(f"the endpoint answered {what} with {repr(value)[:_SHOWN]}")
