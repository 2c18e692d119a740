"""A contract's functions, by the ABI in its artifact: calls to bytes, answers to values.

Selectors and types are read from the compiled artifact, so that a contract and what calls it
cannot drift apart unseen: a function that is missing fails at construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError, EncodingError
from eth_hash.auto import keccak

from node.chain.errors import ChainAnswerError
from node.protocol.errors import LocalProtocolError

AbiEntry = Mapping[str, Any]

WORD_BYTES: Final = 32
SELECTOR_BYTES: Final = 4


class Functions:
    """Some functions of one contract; all that they answer is of static types."""

    def __init__(self, contract: str, abi: Sequence[AbiEntry], names: Sequence[str]) -> None:
        """Raises `LocalProtocolError` if the ABI lacks one of `names`."""
        entries = {entry["name"]: entry for entry in abi if entry["type"] == "function"}
        missing = [name for name in names if name not in entries]
        if missing:
            raise LocalProtocolError(f"not the ABI of {contract}: it lacks {missing}")
        self._inputs = {
            name: (selector(entries[name]), types(entries[name]["inputs"])) for name in names
        }
        self._outputs = {name: types(entries[name]["outputs"]) for name in names}

    def call(self, name: str, *arguments: object) -> bytes:
        """Return the calldata. Raises `LocalProtocolError` for what is not of its types."""
        code, kinds = self._inputs[name]
        try:
            return code + encode(kinds, arguments)
        except EncodingError as error:
            raise LocalProtocolError(f"arguments of {name} do not fit: {error}") from error

    def read(self, name: str, data: bytes) -> tuple[Any, ...]:
        """Return what the function answered. Raises `ChainAnswerError` for another shape."""
        return decode_words(self._outputs[name], data, name)

    def read_any(self, name: str, data: bytes) -> tuple[Any, ...]:
        """`read`, for a function that answers with lists too."""
        return _decode(self._outputs[name], data, name)


def type_of(member: AbiEntry) -> str:
    """Return a parameter's type as it stands in a signature."""
    kind = str(member["type"])
    if kind.startswith("tuple"):
        return f"({','.join(types(member['components']))}){kind[len('tuple') :]}"
    return kind


def types(members: Sequence[AbiEntry]) -> tuple[str, ...]:
    """Return the types of parameters."""
    return tuple(type_of(member) for member in members)


def topic(entry: AbiEntry) -> bytes:
    """Return the hash of a signature: of an event, its first topic."""
    return keccak(f"{entry['name']}({','.join(types(entry['inputs']))})".encode())


def selector(entry: AbiEntry) -> bytes:
    """Return the first four bytes of `topic`."""
    return topic(entry)[:SELECTOR_BYTES]


def decode_words(kinds: tuple[str, ...], data: bytes, what: str) -> tuple[Any, ...]:
    """Return values of one word each. Raises `ChainAnswerError`."""
    if len(data) != WORD_BYTES * len(kinds):
        raise ChainAnswerError(f"{what} answered {len(data)} bytes, not {len(kinds)} words")
    return _decode(kinds, data, what)


def _decode(kinds: tuple[str, ...], data: bytes, what: str) -> tuple[Any, ...]:
    try:
        return decode(kinds, data)
    except (DecodingError, OverflowError) as error:
        raise ChainAnswerError(f"{what} answered words out of range: {error}") from error
