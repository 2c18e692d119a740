"""One declaration for each message: its fields, and from them its CBOR and its EIP-712 type.

A message is a frozen dataclass whose annotations are the market's own types. This table
says how each type crosses the wire, which values it may hold, and what Solidity calls it:

| annotation        | CBOR                    | EIP-712    | allowed                      |
|-------------------|-------------------------|------------|------------------------------|
| `Wei`             | byte string, big-endian | `uint256`  | 0 … 2^256 - 1                |
| `UnixTime`, `int` | integer                 | `uint64`   | 0 … 2^64 - 1                 |
| `Millionths`      | integer                 | `int64`    | -2^63 … 2^63 - 1             |
| `Digest`          | byte string             | `bytes32`  | 32 bytes                     |
| `Address`         | byte string             | `address`  | 20 bytes                     |
| `PeerId`, `str`   | text                    | `string`   | to 128, to 4,096 bytes       |
| `bytes`           | byte string             | `bytes`    | to 256 KiB                   |
| `tuple[str, ...]` | array                   | `string[]` | to 1,024 items               |
| another message   | map                     |            | signed by its digest instead |

Decoding is total and strict: no unknown field, no missing field, no other type.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, cast

from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address

from node.protocol.cbor import Value
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import (
    ADDRESS_BYTES,
    DIGEST_BYTES,
    UINT64_MAX,
    UINT256_MAX,
    Address,
    Digest,
    Millionths,
    PeerId,
    UnixTime,
    Wei,
)

M = TypeVar("M")

SECRETS: Final = frozenset({"secret", "private_key", "dh"})
"""Fields whose value is never shown, not even in an error."""

MAX_TEXT: Final = 4_096
MAX_PEER_ID: Final = 128
MAX_BYTES: Final = 256 * 1024
MAX_ITEMS: Final = 1_024


class Kind(NamedTuple):
    """How one annotation is checked, sent, and hashed."""

    check: Callable[[Any], bool]
    to_value: Callable[[Any], Value]
    from_value: Callable[[Value], Any]
    """Raises `TypeError` or `ValueError` for a value of another shape."""
    solidity: str
    to_word: Callable[[Any], bytes]
    """The 32 bytes that stand for the value in an EIP-712 struct hash."""


def _expect(value: Value, kind: type[M]) -> M:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _wei_to_value(value: int) -> Value:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _wei_from_value(value: Value) -> Wei:
    data = _expect(value, bytes)
    if len(data) > 32 or data[:1] == b"\0":
        raise ValueError("money is at most 32 bytes without leading zeros")
    return Wei(int.from_bytes(data, "big"))


@functools.lru_cache(maxsize=4_096)
def checksummed(raw: bytes) -> Address:
    """Return the EIP-55 form of 20 raw bytes."""
    if len(raw) != ADDRESS_BYTES:
        raise ValueError(f"an address has {ADDRESS_BYTES} bytes, got {len(raw)}")
    return Address(to_checksum_address(raw))


def raw_address(address: Address) -> bytes:
    """Return the 20 bytes of `address`."""
    return bytes.fromhex(address[2:])


def _is_address(value: object) -> bool:
    if not isinstance(value, str) or len(value) != 2 + 2 * ADDRESS_BYTES or value[:2] != "0x":
        return False
    try:
        return checksummed(bytes.fromhex(value[2:])) == value
    except ValueError:
        return False


def _integer(low: int, high: int, solidity: str) -> Kind:
    return Kind(
        check=lambda v: type(v) is int and low <= v <= high,
        to_value=lambda v: cast(int, v),
        from_value=lambda v: _expect(v, int),
        solidity=solidity,
        to_word=lambda v: _word(v % 2**256),
    )


def _utf8_length(text: str) -> float:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair: nothing that could be sent
        return math.inf


def _text(longest: int) -> Kind:
    return Kind(
        check=lambda v: type(v) is str and _utf8_length(v) <= longest,
        to_value=lambda v: cast(str, v),
        from_value=lambda v: _expect(v, str),
        solidity="string",
        to_word=lambda v: keccak(v.encode()),
    )


def _blob(low: int, high: int, solidity: str, to_word: Callable[[Any], bytes]) -> Kind:
    return Kind(
        check=lambda v: type(v) is bytes and low <= len(v) <= high,
        to_value=lambda v: cast(bytes, v),
        from_value=lambda v: _expect(v, bytes),
        solidity=solidity,
        to_word=to_word,
    )


_KINDS: Final[dict[object, Kind]] = {
    Wei: Kind(
        check=lambda v: type(v) is int and 0 <= v <= UINT256_MAX,
        to_value=_wei_to_value,
        from_value=_wei_from_value,
        solidity="uint256",
        to_word=_word,
    ),
    UnixTime: _integer(0, UINT64_MAX, "uint64"),
    int: _integer(0, UINT64_MAX, "uint64"),
    Millionths: _integer(-(2**63), 2**63 - 1, "int64"),
    Digest: _blob(DIGEST_BYTES, DIGEST_BYTES, "bytes32", lambda v: cast(bytes, v)),
    bytes: _blob(0, MAX_BYTES, "bytes", keccak),
    Address: Kind(
        check=_is_address,
        to_value=raw_address,
        from_value=lambda v: checksummed(_expect(v, bytes)),
        solidity="address",
        to_word=lambda v: b"\0" * 12 + raw_address(v),
    ),
    PeerId: _text(MAX_PEER_ID),
    str: _text(MAX_TEXT),
    bool: Kind(
        check=lambda v: type(v) is bool,
        to_value=lambda v: cast(bool, v),
        from_value=lambda v: _expect(v, bool),
        solidity="bool",
        to_word=lambda v: _word(int(v)),
    ),
}


def _array(item: Kind) -> Kind:
    def from_value(value: Value) -> tuple[Any, ...]:
        return tuple(item.from_value(each) for each in _expect(value, list))

    return Kind(
        check=lambda v: type(v) is tuple and len(v) <= MAX_ITEMS and all(map(item.check, v)),
        to_value=lambda v: [item.to_value(each) for each in v],
        from_value=from_value,
        solidity=f"{item.solidity}[]",
        to_word=lambda v: keccak(b"".join(item.to_word(each) for each in v)),
    )


def _message(cls: type[Any]) -> Kind:
    def no_word(_: object) -> bytes:
        raise LocalProtocolError(f"{cls.__name__} is signed by its own digest, not inside another")

    return Kind(
        check=lambda v: type(v) is cls,
        to_value=to_map,
        from_value=lambda v: from_map(cls, v),
        solidity=cls.__name__,
        to_word=no_word,
    )


def _kind_of(annotation: Any) -> Kind:
    if annotation in _KINDS:
        return _KINDS[annotation]
    origin = typing.get_origin(annotation)
    if origin is tuple:
        return _array(_kind_of(typing.get_args(annotation)[0]))
    if origin in (types.UnionType, typing.Union):
        inner = _kind_of(next(a for a in typing.get_args(annotation) if a is not type(None)))
        return Kind(
            check=lambda v: v is None or inner.check(v),
            to_value=lambda v: None if v is None else inner.to_value(v),
            from_value=lambda v: None if v is None else inner.from_value(v),
            solidity=inner.solidity,
            to_word=inner.to_word,
        )
    if dataclasses.is_dataclass(annotation):
        return _message(cast("type[Any]", annotation))
    raise LocalProtocolError(f"no kind for {annotation!r}")


_FIELDS: Final[dict[type[Any], tuple[tuple[str, Kind], ...]]] = {}


def fields_of(cls: type[Any]) -> tuple[tuple[str, Kind], ...]:
    """Return the name and the kind of each field, in the order of declaration."""
    if cls not in _FIELDS:
        hints = typing.get_type_hints(cls)
        _FIELDS[cls] = tuple((f.name, _kind_of(hints[f.name])) for f in dataclasses.fields(cls))
    return _FIELDS[cls]


def check_fields(message: Any) -> None:
    """Raise `LocalProtocolError` naming the first field that holds what its type forbids."""
    for name, kind in fields_of(type(message)):
        value = getattr(message, name)
        if not kind.check(value):
            shown = "what it is" if name in SECRETS else f"{value!r:.200}"
            raise LocalProtocolError(
                f"{type(message).__name__}.{name} cannot be {shown} ({kind.solidity})"
            )


def to_map(message: Any) -> dict[str, Value]:
    """Return the message as a map of CBOR values, one entry a field."""
    return {name: kind.to_value(getattr(message, name)) for name, kind in fields_of(type(message))}


def from_map(cls: type[M], value: Value) -> M:
    """Return the message that `value` describes; the inverse of `to_map`.

    Raises `RemoteProtocolError("malformed")` naming the field.
    """
    kinds = fields_of(cls)
    if type(value) is not dict:
        raise RemoteProtocolError("malformed", f"{cls.__name__} is a map")
    if value.keys() != {name for name, _ in kinds}:
        odd = [name[:40] for name in sorted(value.keys() ^ {name for name, _ in kinds})[:4]]
        raise RemoteProtocolError("malformed", f"{cls.__name__} has wrong fields: {odd}")
    arguments = {}
    for name, kind in kinds:
        try:
            arguments[name] = kind.from_value(value[name])
        except (TypeError, ValueError) as error:
            raise RemoteProtocolError("malformed", f"{cls.__name__}.{name}: {error}") from error
    try:
        return cls(**arguments)
    except LocalProtocolError as error:
        # what would be our own fault in our own code is the peer's in its message
        raise RemoteProtocolError("malformed", str(error)) from error


class Message:
    """Base of all messages: fields are checked as the value is made, so none is malformed."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_fields(self)
