"""The escrow's ABI: calls to bytes, logs to events, revert data to names.

Selectors, topics and types are read from the compiled artifact, so that the contract and
this file cannot drift apart unseen: a missing function or event fails at construction.
Decoding is total. A log or a return value of another shape than the ABI's is a
`ChainAnswerError`, whoever sent it.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, assert_never

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError, EncodingError
from eth_hash.auto import keccak

from node.chain.errors import ChainAnswerError
from node.chain.port import (
    Call,
    EscrowEvent,
    EscrowState,
    Finalize,
    Fund,
    FundedEvent,
    PaidEvent,
    Refund,
    RefundedEvent,
    Reveal,
    RevealedEvent,
    TradeState,
    Withdraw,
    WithdrawnEvent,
)
from node.protocol.errors import LocalProtocolError
from node.protocol.quote import Quote
from node.protocol.schema import checksummed
from node.protocol.types import Address, Digest, UnixTime, Wei

AbiEntry = Mapping[str, Any]

WORD_BYTES: Final = 32
SELECTOR_BYTES: Final = 4
UNKNOWN_REVERT: Final = "unknown"
_PANIC: Final = keccak(b"Panic(uint256)")[:SELECTOR_BYTES]
_ERROR: Final = keccak(b"Error(string)")[:SELECTOR_BYTES]
_MAX_REASON: Final = 200

# Fixed gas for each call, so that signing never depends on an estimate: more than twice
# the golden gas (fund 64k, reveal 48k, finalize 60k, refund 57k, withdraw 30k), and room
# for an account that is a contract. Unused gas is not paid for.
GAS_LIMITS: Final[Mapping[type[Call], int]] = {
    Fund: 200_000,
    Reveal: 150_000,
    Finalize: 200_000,
    Refund: 150_000,
    Withdraw: 150_000,
}

_FUNCTIONS: Final = (
    "fund",
    "reveal",
    "finalize",
    "refund",
    "withdraw",
    "credits",
    "tradeOf",
    "termsOf",
)


class EscrowCodec:
    """Encoder and decoder for one artifact's ABI."""

    def __init__(self, abi: Sequence[AbiEntry]) -> None:
        """Raises `LocalProtocolError` if the ABI is not that of a `ParameterEscrow`."""
        functions = {entry["name"]: entry for entry in abi if entry["type"] == "function"}
        events = {entry["name"]: entry for entry in abi if entry["type"] == "event"}
        missing = [name for name in _FUNCTIONS if name not in functions]
        missing += [name for name in _EVENTS if name not in events]
        if missing:
            raise LocalProtocolError(f"not the ABI of ParameterEscrow: it lacks {missing}")
        self._functions = {
            name: (_selector(functions[name]), _types(functions[name]["inputs"]))
            for name in _FUNCTIONS
        }
        self._events = {_topic(events[name]): name for name in _EVENTS}
        self._indexed = {
            name: sum(bool(member["indexed"]) for member in events[name]["inputs"])
            for name in _EVENTS
        }
        self._event_types = {name: _types(events[name]["inputs"]) for name in _EVENTS}
        self._errors = {
            _selector(entry): entry["name"] for entry in abi if entry["type"] == "error"
        }

    # --- calls

    def encode(self, call: Call) -> tuple[bytes, Wei]:
        """Return the calldata of `call`, and the value that must go with it."""
        match call:
            case Fund(quote, signature):
                return self._call("fund", _members(quote), signature), quote.price
            case Reveal(quote, secret):
                return self._call("reveal", _members(quote), secret), Wei(0)
            case Finalize(quote):
                return self._call("finalize", _members(quote)), Wei(0)
            case Refund(quote):
                return self._call("refund", _members(quote)), Wei(0)
            case Withdraw(account):
                return self._call("withdraw", account), Wei(0)
            case _:
                assert_never(call)

    def credits(self, account: Address) -> bytes:
        """Return calldata for `credits(account)`."""
        return self._call("credits", account)

    def trade_of(self, trade_id: Digest) -> bytes:
        """Return calldata for `tradeOf(tradeId)`."""
        return self._call("tradeOf", trade_id)

    def terms_of(self, trade_id: Digest) -> bytes:
        """Return calldata for `termsOf(tradeId)`."""
        return self._call("termsOf", trade_id)

    def _call(self, name: str, *arguments: object) -> bytes:
        selector, types = self._functions[name]
        try:
            return selector + encode(types, arguments)
        except EncodingError as error:
            raise LocalProtocolError(f"arguments of {name} do not fit: {error}") from error

    # --- answers

    def decode_trade(self, data: bytes) -> TradeState:
        """Read what `tradeOf` returned."""
        state, since = _decode(("uint8", "uint64"), data, "tradeOf")
        try:
            return TradeState(EscrowState(state), UnixTime(since))
        except ValueError as error:
            raise ChainAnswerError(f"tradeOf answered state {state}") from error

    def decode_terms(self, data: bytes) -> bytes:
        """Read the 26 bytes that `termsOf` returned."""
        (terms,) = _decode(("bytes26",), data, "termsOf")
        return bytes(terms)

    def decode_wei(self, data: bytes) -> Wei:
        """Read one uint256."""
        (amount,) = _decode(("uint256",), data, "credits")
        return Wei(amount)

    def decode_event(
        self, topics: Sequence[bytes], data: bytes, block: int, transaction: Digest
    ) -> EscrowEvent | None:
        """Read one of the escrow's logs; None for an event that this port does not know."""
        name = self._events.get(topics[0]) if topics else None
        if name is None:
            return None
        if len(topics) != 1 + self._indexed[name] or any(len(t) != WORD_BYTES for t in topics):
            raise ChainAnswerError(f"{name} came with {len(topics)} topics")
        # every member of these events is one word, the indexed ones first
        values = _decode(self._event_types[name], b"".join(topics[1:]) + data, name)
        return _EVENTS[name](block, transaction, values)

    def name_revert(self, data: bytes) -> str:
        """Return the custom error's name, the revert message, ``panic 0x11``, or ``unknown``."""
        selector, rest = data[:SELECTOR_BYTES], data[SELECTOR_BYTES:]
        if selector in self._errors:
            return str(self._errors[selector])
        try:
            if selector == _ERROR:
                (message,) = decode(("string",), rest)
                return str(message)[:_MAX_REASON]
            if selector == _PANIC:
                (code,) = decode(("uint256",), rest)
                return f"panic {code:#x}"
        except (DecodingError, UnicodeDecodeError, OverflowError):
            return UNKNOWN_REVERT
        return f"{UNKNOWN_REVERT} 0x{selector.hex()}" if selector else UNKNOWN_REVERT


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


def _members(quote: Quote) -> tuple[object, ...]:
    """Return the quote's values in order: the dataclass has the order of the struct."""
    return tuple(getattr(quote, field.name) for field in dataclasses.fields(quote))


def _type(member: AbiEntry) -> str:
    kind = str(member["type"])
    if kind.startswith("tuple"):
        return f"({','.join(_types(member['components']))}){kind[len('tuple') :]}"
    return kind


def _types(members: Sequence[AbiEntry]) -> tuple[str, ...]:
    return tuple(_type(member) for member in members)


def _topic(entry: AbiEntry) -> bytes:
    return keccak(f"{entry['name']}({','.join(_types(entry['inputs']))})".encode())


def _selector(entry: AbiEntry) -> bytes:
    return _topic(entry)[:SELECTOR_BYTES]


def _decode(types: tuple[str, ...], data: bytes, what: str) -> tuple[Any, ...]:
    if len(data) != WORD_BYTES * len(types):
        raise ChainAnswerError(f"{what} answered {len(data)} bytes, not {len(types)} words")
    try:
        return decode(types, data)
    except DecodingError as error:
        raise ChainAnswerError(f"{what} answered words out of range: {error}") from error


def _address(value: str) -> Address:
    return checksummed(bytes.fromhex(value[2:]))


_EventBuilder = Callable[[int, Digest, tuple[Any, ...]], EscrowEvent]

_EVENTS: Final[Mapping[str, _EventBuilder]] = {
    "Funded": lambda block, transaction, v: FundedEvent(
        block, transaction, Digest(v[0]), _address(v[1]), _address(v[2]), Wei(v[3])
    ),
    "Revealed": lambda block, transaction, v: RevealedEvent(block, transaction, Digest(v[0]), v[1]),
    "Paid": lambda block, transaction, v: PaidEvent(
        block, transaction, Digest(v[0]), Wei(v[1]), Wei(v[2])
    ),
    "Refunded": lambda block, transaction, v: RefundedEvent(
        block, transaction, Digest(v[0]), Wei(v[1])
    ),
    "Withdrawn": lambda block, transaction, v: WithdrawnEvent(
        block, transaction, _address(v[0]), Wei(v[1])
    ),
}
