"""Why a call failed: revert data to a name and its values, by the ABIs of what was called.

Decoding is total: data of no shape that is known is named ``unknown``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_hash.auto import keccak

from node.chain.abi import SELECTOR_BYTES, AbiEntry, selector, types
from node.chain.errors import CallRefusedError, TransactionRefusedError
from node.protocol.schema import checksummed

UNKNOWN_REVERT: Final = "unknown"
_PANIC: Final = keccak(b"Panic(uint256)")[:SELECTOR_BYTES]
_ERROR: Final = keccak(b"Error(string)")[:SELECTOR_BYTES]
_MAX_REASON: Final = 200


class Revert(NamedTuple):
    """A custom error and its values by name; a revert message, ``panic 0x11``, or ``unknown``."""

    name: str
    values: Mapping[str, object] | None = None

    def refusal(self) -> TransactionRefusedError:
        """Return it as the error of a transaction that was not taken."""
        if self.values is None:
            return TransactionRefusedError(self.name)
        return CallRefusedError(self.name, self.values)


class Reverts:
    """The custom errors of some contracts."""

    def __init__(self, *abis: Sequence[AbiEntry]) -> None:
        """Of two errors of one selector the later is meant."""
        self._errors = {
            selector(entry): entry for abi in abis for entry in abi if entry["type"] == "error"
        }

    def read(self, data: bytes) -> Revert:
        """Return what the bytes of a revert say."""
        code, rest = data[:SELECTOR_BYTES], data[SELECTOR_BYTES:]
        entry = self._errors.get(code)
        try:
            if entry is not None:
                kinds = types(entry["inputs"])
                names = [member["name"] for member in entry["inputs"]]
                values = map(_value, kinds, decode(kinds, rest))
                return Revert(entry["name"], dict(zip(names, values, strict=True)))
            if code == _ERROR:
                (message,) = decode(("string",), rest)
                return Revert(str(message)[:_MAX_REASON])
            if code == _PANIC:
                (number,) = decode(("uint256",), rest)
                return Revert(f"panic {number:#x}")
        except (DecodingError, UnicodeDecodeError, OverflowError):
            pass
        return Revert(f"{UNKNOWN_REVERT} 0x{code.hex()}" if code else UNKNOWN_REVERT)


def revert_data(text: str) -> bytes | None:
    """Return the revert bytes inside eth-tester's ``execution reverted: b'…'``, if any."""
    _, marker, literal = text.partition("execution reverted: ")
    if not marker or literal[:2] not in ("b'", 'b"'):
        return None
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, bytes) else None


def _value(kind: str, value: object) -> object:
    """Return a value as the rest of the node writes it."""
    return checksummed(bytes.fromhex(str(value)[2:])) if kind == "address" else value
