"""The escrow's ABI: calls to bytes, logs to events.

Decoding is total. A log or a return value of another shape than the ABI's is a
`ChainAnswerError`, whoever sent it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, assert_never

from node.chain.abi import (
    WORD_BYTES,
    AbiEntry,
    Functions,
    decode_words,
    topic,
    types,
)
from node.chain.errors import ChainAnswerError
from node.chain.port import (
    Call,
    Dispute,
    DisputedEvent,
    EscrowEvent,
    EscrowState,
    Finalize,
    Fund,
    FundedEvent,
    FundMany,
    PaidEvent,
    Refund,
    RefundedEvent,
    Reveal,
    RevealedEvent,
    Seat,
    TradeState,
    Withdraw,
    WithdrawnEvent,
)
from node.chain.reverts import Reverts
from node.protocol.dispute import Evidence
from node.protocol.errors import LocalProtocolError
from node.protocol.quote import Quote
from node.protocol.schema import checksummed
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei

# Fixed gas for each call, so that signing never depends on an estimate: more than twice
# the golden gas (fund 64k, reveal 48k, finalize 60k, refund 57k, withdraw 30k), and room for an
# account that is a contract; one and a half times that of a dispute of the largest parameter set
# (250k). Unused gas is not paid for, but an account must hold what all of it would cost.
GAS_LIMITS: Final[Mapping[type[Call], int]] = {
    Fund: 200_000,
    FundMany: 200_000,  # each: 42k to 46k, so that who holds the gas of each holds that of all
    Reveal: 150_000,
    Finalize: 200_000,
    Refund: 150_000,
    Dispute: 400_000,
    Withdraw: 150_000,
}
BROKER_DISPUTE_GAS: Final = 2_000_000
"""Where the encryptor is a broker: up to 16 markets are told that it was slashed, each with 66k
that must be there and may be burnt; 1.5M was enough for a tree of 20 levels."""

_FUNCTIONS: Final = (
    "fund",
    "fundMany",
    "reveal",
    "finalize",
    "refund",
    "dispute",
    "withdraw",
    "credits",
    "tradeOf",
    "termsOf",
    "seatOf",
)


def fixed_gas(call: Call) -> int:
    """Return the limit of one call, whatever it finds on chain."""
    count = len(call.deposits) if isinstance(call, FundMany) else 1
    return count * GAS_LIMITS[type(call)]


class EscrowCodec:
    """Encoder and decoder for one artifact's ABI."""

    def __init__(self, abi: Sequence[AbiEntry], called: Sequence[AbiEntry] = ()) -> None:
        """`called` are the ABIs of what the escrow itself calls: their errors pass through it.

        Raises `LocalProtocolError` if the ABI is not that of a `ParameterEscrow`.
        """
        self._functions = Functions("ParameterEscrow", abi, _FUNCTIONS)
        events = {entry["name"]: entry for entry in abi if entry["type"] == "event"}
        missing = [name for name in _EVENTS if name not in events]
        if missing:
            raise LocalProtocolError(f"not the ABI of ParameterEscrow: it lacks {missing}")
        self._events = {topic(events[name]): name for name in _EVENTS}
        self._indexed = {
            name: sum(bool(member["indexed"]) for member in events[name]["inputs"])
            for name in _EVENTS
        }
        self._event_types = {name: types(events[name]["inputs"]) for name in _EVENTS}
        self.reverts: Final = Reverts(called, abi)

    # --- calls

    def encode(self, call: Call) -> tuple[bytes, Wei]:
        """Return the calldata of `call`, and the value that must go with it."""
        match call:
            case Fund(quote, signature):
                return self._call("fund", _members(quote), signature), quote.price
            case FundMany(deposits):
                quotes = [_members(one.quote) for one in deposits]
                signatures = [one.broker_signature for one in deposits]
                due = sum(one.quote.price for one in deposits)
                return self._call("fundMany", quotes, signatures), Wei(due)
            case Reveal(quote, secret):
                return self._call("reveal", _members(quote), secret), Wei(0)
            case Finalize(quote):
                return self._call("finalize", _members(quote)), Wei(0)
            case Refund(quote):
                return self._call("refund", _members(quote)), Wei(0)
            case Dispute(quote, evidence):
                return self._call("dispute", _members(quote), _members(evidence)), Wei(0)
            case Withdraw(account):
                return self._call("withdraw", NO_ADDRESS, account), Wei(0)
            case _:
                assert_never(call)

    def credits(self, account: Address) -> bytes:
        """Return calldata for `credits(asset, account)`, in ether."""
        return self._call("credits", NO_ADDRESS, account)

    def trade_of(self, trade_id: Digest) -> bytes:
        """Return calldata for `tradeOf(tradeId)`."""
        return self._call("tradeOf", trade_id)

    def terms_of(self, trade_id: Digest) -> bytes:
        """Return calldata for `termsOf(tradeId)`."""
        return self._call("termsOf", trade_id)

    def seat_of(self, account: Address) -> bytes:
        """Return calldata for `seatOf(account)`."""
        return self._call("seatOf", account)

    def _call(self, name: str, *arguments: object) -> bytes:
        return self._functions.call(name, *arguments)

    # --- answers

    def decode_trade(self, data: bytes) -> TradeState:
        """Read what `tradeOf` returned."""
        state, since = decode_words(("uint8", "uint64"), data, "tradeOf")
        try:
            return TradeState(EscrowState(state), UnixTime(since))
        except ValueError as error:
            raise ChainAnswerError(f"tradeOf answered state {state}") from error

    def decode_terms(self, data: bytes) -> bytes:
        """Read the 26 bytes that `termsOf` returned."""
        (terms,) = decode_words(("bytes26",), data, "termsOf")
        return bytes(terms)

    def decode_wei(self, data: bytes) -> Wei:
        """Read one uint256."""
        (amount,) = decode_words(("uint256",), data, "credits")
        return Wei(amount)

    def decode_seat(self, data: bytes) -> Seat:
        """Read what `seatOf` returned."""
        (seat,) = decode_words(("uint8",), data, "seatOf")
        try:
            return Seat(seat)
        except ValueError as error:
            raise ChainAnswerError(f"seatOf answered seat {seat}") from error

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
        values = decode_words(self._event_types[name], b"".join(topics[1:]) + data, name)
        return _EVENTS[name](block, transaction, values)


def _members(struct: Quote | Evidence) -> tuple[object, ...]:
    """Return the values in order: the dataclass has the order of the struct."""
    return tuple(getattr(struct, field.name) for field in dataclasses.fields(struct))


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
    "Disputed": lambda block, transaction, v: DisputedEvent(
        block, transaction, Digest(v[0]), int(v[1]), Wei(v[2])
    ),
    "Withdrawn": lambda block, transaction, v: WithdrawnEvent(
        block, transaction, _address(v[0]), _address(v[1]), _address(v[2]), Wei(v[3])
    ),
}
