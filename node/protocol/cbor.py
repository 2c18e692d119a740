"""Canonical CBOR: one byte string for each value, and a decoder that is total.

RFC 8949 §4.2.1 (core deterministic encoding), narrowed to what the market speaks:
integers of 64 bits, byte strings, text, arrays, maps with text keys, true, false, null.
No floats, no tags, no indefinite lengths. The decoder reads only this language: every
byte string gives a value or a `RemoteProtocolError`, and `encode(decode(b)) == b`, so that
a signature over a value is a signature over its bytes.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import cbor2

from node.protocol.errors import LocalProtocolError, RemoteProtocolError

Value: TypeAlias = "int | bytes | str | bool | list[Value] | dict[str, Value] | None"

MAX_DEPTH: Final = 8
"""Deepest nesting of arrays and maps; the market's own messages need four."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLE_VALUES: Final[dict[int, bool | None]] = {20: False, 21: True, 22: None}


def encode(value: Value) -> bytes:
    """Return the canonical bytes of `value`.

    Raises `LocalProtocolError` for what the language lacks (floats, integers over 64 bits,
    text that has no UTF-8).
    """
    _refuse_foreign(value, 0)
    try:
        return cbor2.dumps(value, canonical=True)
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"text with half of a surrogate pair: {error}") from error


def decode(data: bytes) -> Value:
    """Return the one value whose canonical encoding is `data`.

    Raises `RemoteProtocolError("malformed")` for anything else, trailing bytes included.
    """
    reader = _Reader(data)
    value = reader.item(0)
    if reader.at != len(data):
        raise _malformed(f"{len(data) - reader.at} bytes after the value")
    return value


def _refuse_foreign(value: Value, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise LocalProtocolError(f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool | bytes | str):
        return
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise LocalProtocolError(f"integer of more than 64 bits: {value}")
    elif isinstance(value, list):
        for item in value:
            _refuse_foreign(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise LocalProtocolError(f"map key must be text, got {key!r}")
            _refuse_foreign(item, depth + 1)
    else:
        raise LocalProtocolError(f"cannot be sent: {type(value).__name__}")


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("malformed", detail)


class _Reader:
    """A cursor over the bytes of one message."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def item(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise _malformed(f"nested deeper than {MAX_DEPTH}")
        major, argument = self._head()
        if major == _UNSIGNED:
            return argument
        if major == _NEGATIVE:
            if argument >= 2**63:
                raise _malformed("negative integer under 64 bits")
            return -1 - argument
        if major == _BYTES:
            return self._take(argument)
        if major == _TEXT:
            return self._text(argument)
        if major == _ARRAY:
            self._room_for(argument)
            return [self.item(depth + 1) for _ in range(argument)]
        if major == _MAP:
            return self._map(argument, depth)
        if major == _SIMPLE and argument in _SIMPLE_VALUES:
            return _SIMPLE_VALUES[argument]
        raise _malformed(f"major type {major} with {argument} is not of this language")

    def _map(self, count: int, depth: int) -> dict[str, Value]:
        self._room_for(2 * count)
        result: dict[str, Value] = {}
        previous = b""
        for _ in range(count):
            start = self.at
            major, length = self._head()
            if major != _TEXT:
                raise _malformed("a map key that is not text")
            key = self._text(length)
            encoded = self.data[start : self.at]
            if result and encoded <= previous:
                raise _malformed(f"map keys out of order or repeated at {key!r}")
            previous = encoded
            result[key] = self.item(depth + 1)
        return result

    def _head(self) -> tuple[int, int]:
        first = self._take(1)[0]
        major, low = first >> 5, first & 31
        if low < 24:
            return major, low
        if low > 27 or major == _SIMPLE:
            raise _malformed(f"initial byte {first:#04x}")
        width = 1 << (low - 24)
        argument = int.from_bytes(self._take(width), "big")
        if argument < (24 if width == 1 else 1 << (4 * width)):
            raise _malformed(f"{argument} written in {width} bytes")
        return major, argument

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _malformed("text that is not UTF-8") from error

    def _take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise _malformed(f"{end - len(self.data)} bytes short")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def _room_for(self, items: int) -> None:
        # every item takes a byte at least: a count over that is a lie told to make us allocate
        if items > len(self.data) - self.at:
            raise _malformed(f"{items} items announced in {len(self.data) - self.at} bytes")
