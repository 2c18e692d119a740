"""The published inputs of a round, and what follows from them: the same for everybody.

The document is JSON. What was measured stands in it as rows ``[reference, parties, performance]``:
the model fused of the parties in a bitmask (bit i = party i), beginning with that of party
`reference`, has so many millionths of accuracy on the broker's rows. One party alone is its own
reference; the number of parties stands for none of them. Whoever has the document, and asks the
chain who paid what, computes the leaves of the root: the broker with measurements, everybody else
by looking them up.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from broker_node.mechanisms.base import RefusedInputError
from node.protocol import bounded_json
from node.protocol.schema import checksummed
from node.protocol.types import ONE, UINT256_MAX, Address, Wei

MAX_PARTIES: Final = 64
"""A bitmask of parties is one word of 64 bits."""
MAX_MEASURED: Final = 20_000
MAX_OTHERS: Final = 1_024
"""Strangers that paid: each is a question to the chain. With more there is no root, and all take
back what they paid."""
MAX_DOCUMENT: Final = 200_000
"""Bytes: what a message carries, with room."""
Performance = Callable[[int, int], float]
"""(reference, parties) → accuracy, 0 … 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sold:
    """A model that parties get for what they paid."""

    reference: int
    parties: int
    """The bitmask of those whose parameters are in it."""
    buyers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the parties are to pay, by party; nothing where the round is off."""

    dues: tuple[Wei, ...]
    off: str
    """Why there is no round; nothing if there is."""
    figures: Mapping[str, Any]
    """For the report."""
    stopped_by: int | None = None
    """The party that a round which is off may be had without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a round came to."""

    amounts: tuple[Wei, ...]
    """What each party gets out of the pot."""
    kept: Wei
    """What the broker gets."""
    sold: tuple[Sold, ...]
    reason: str
    """Why no model changes hands; nothing if one does."""
    figures: Mapping[str, Any]


class Rule(Protocol):
    """A mechanism as a round plays it: pure, and the same for broker and participants."""

    name: str
    most_parties: int

    def admit(self, terms: Document) -> None:
        """Raise `RefusedInputError` for a cost or reserve that would stop everybody's round.

        `terms` has one party, who asks to be in, and nothing measured.
        """

    def ask(self, document: Document, performance: Performance) -> Asked:
        """Return what is due. Raises `RefusedInputError`."""

    def settle(
        self, document: Document, performance: Performance, paid: Mapping[Address, Wei]
    ) -> Settled:
        """Return what the parties get. Raises `RefusedInputError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The inputs of a round, read and checked."""

    mechanism: str
    unit: Wei
    """What 1.0 of performance is worth."""
    entry: Wei
    broker: Address
    parties: tuple[Address, ...]
    """By rising account."""
    costs: tuple[Wei, ...]
    """What a use of its data costs each party, as it said."""
    reserves: tuple[Wei, ...]
    """The most that each pays for a model, as it said."""
    producers: tuple[int, ...] = ()
    """Parties that make and sell a model."""
    serving_cost: Wei = Wei(0)
    margin: int = 0
    """Of every producer, millionths."""
    share: int = 0
    """Of each payment for a model that counts towards its data, millionths."""
    seed: int = 0
    """Of what is sampled."""
    measured: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """(reference, parties) → millionths of accuracy."""
    others: tuple[Address, ...] = ()
    """Who is no party and has paid all the same."""
    models: tuple[tuple[str, int, int, tuple[int, ...]], ...] = ()
    """Root, bytes, performance in millionths, and buyers of each model that was sold."""

    def performance(self, reference: int, parties: int) -> float:
        """Look a measurement up. Raises `RefusedInputError` if it is not there."""
        key = key_of(reference, parties)
        if key not in self.measured:
            raise RefusedInputError("performance", f"lacks parties {key[1]:#x} at {key[0]}")
        return self.measured[key] / ONE

    def terms(self) -> tuple[object, ...]:
        """Return what must not change from the invitation to the end."""
        return (
            self.mechanism, self.unit, self.entry, self.broker, self.parties, self.costs,
            self.reserves, self.producers, self.serving_cost, self.margin, self.share, self.seed,
        )  # fmt: skip

    def encode(self) -> bytes:
        """Return the document as JSON. Raises `RefusedInputError` if it is too long to be said."""
        data = json.dumps(
            {
                "mechanism": self.mechanism,
                "unit": str(self.unit),
                "entry": str(self.entry),
                "broker": self.broker,
                "parties": list(self.parties),
                "costs": [str(cost) for cost in self.costs],
                "reserves": [str(reserve) for reserve in self.reserves],
                "producers": list(self.producers),
                "serving_cost": str(self.serving_cost),
                "margin": self.margin,
                "share": self.share,
                "seed": self.seed,
                "performance": [[*key, value] for key, value in sorted(self.measured.items())],
                "others": list(self.others),
                "models": [
                    {"root": root, "bytes": length, "performance": value, "buyers": list(buyers)}
                    for root, length, value, buyers in self.models
                ],
            },
            separators=(",", ":"),
        ).encode()
        if len(data) > MAX_DOCUMENT:
            raise RefusedInputError("performance", f"{len(data)} bytes are too many to publish")
        return data


def key_of(reference: int, parties: int) -> tuple[int, int]:
    """Return under which reference a fused model was measured: one party alone is its own."""
    if parties.bit_count() == 1:
        return parties.bit_length() - 1, parties
    return reference, parties


def read(data: bytes) -> Document:
    """Read a document from a stranger. Raises `RefusedInputError` naming the field."""
    try:
        found = bounded_json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RefusedInputError("inputs", "is no JSON") from error
    if not isinstance(found, dict) or set(found) != _KEYS:
        raise RefusedInputError("inputs", f"must have the keys {', '.join(sorted(_KEYS))}")
    parties = tuple(_address(each, "parties") for each in _list(found, "parties", MAX_PARTIES))
    if not parties or any(a.lower() >= b.lower() for a, b in itertools.pairwise(parties)):
        raise RefusedInputError("parties", "must be accounts, rising, and one at least")
    count = len(parties)
    producers = tuple(
        _index(each, count, "producers") for each in _list(found, "producers", MAX_PARTIES)
    )
    if len(set(producers)) != len(producers):
        raise RefusedInputError("producers", "has one twice")
    return Document(
        mechanism=_text(found, "mechanism"),
        unit=_wei(found["unit"], "unit"),
        entry=_wei(found["entry"], "entry"),
        broker=_address(found["broker"], "broker"),
        parties=parties,
        costs=tuple(_wei(each, "costs") for each in _list(found, "costs", count, count)),
        reserves=tuple(_wei(each, "reserves") for each in _list(found, "reserves", count, count)),
        producers=producers,
        serving_cost=_wei(found["serving_cost"], "serving_cost"),
        margin=_whole(found["margin"], 1_000 * ONE, "margin"),
        share=_whole(found["share"], 1_000 * ONE, "share"),
        seed=_whole(found["seed"], 2**63 - 1, "seed"),
        measured=dict(_rows(found, count)),
        others=tuple(_address(each, "others") for each in _list(found, "others", MAX_OTHERS)),
        models=tuple(_model(each, count) for each in _list(found, "models", MAX_PARTIES)),
    )


_KEYS: Final = {
    "mechanism", "unit", "entry", "broker", "parties", "costs", "reserves", "producers",
    "serving_cost", "margin", "share", "seed", "performance", "others", "models",
}  # fmt: skip


def _list(found: dict[str, Any], name: str, most: int, least: int = 0) -> list[Any]:
    value = found[name]
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise RefusedInputError(name, f"must be a list of {least} to {most} items")
    return value


def _text(found: dict[str, Any], name: str) -> str:
    value = found[name]
    if not isinstance(value, str) or len(value) > 64:
        raise RefusedInputError(name, "must be a short text")
    return value


def _whole(value: Any, most: int, name: str) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise RefusedInputError(name, f"must be a whole number, 0 … {most}")
    return value


def _index(value: Any, count: int, name: str) -> int:
    return _whole(value, count - 1, name)


def _wei(value: Any, name: str) -> Wei:
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 78:
        raise RefusedInputError(name, "must be wei in decimal digits")
    if int(value) > UINT256_MAX:
        raise RefusedInputError(name, "is over 256 bits")
    return Wei(int(value))


def _address(value: Any, name: str) -> Address:
    try:
        found = checksummed(bytes.fromhex(value[2:]))
    except (TypeError, ValueError) as error:
        raise RefusedInputError(name, "must be accounts") from error
    if found != value:
        raise RefusedInputError(name, "must be accounts with their checksum")
    return found


def _rows(found: dict[str, Any], count: int) -> list[tuple[tuple[int, int], int]]:
    rows = []
    for row in _list(found, "performance", MAX_MEASURED):
        if not isinstance(row, list) or len(row) != 3:
            raise RefusedInputError("performance", "must be rows of three")
        reference = _index(row[0], count + 1, "performance")
        parties = _whole(row[1], (1 << count) - 1, "performance")
        if not parties or key_of(reference, parties) != (reference, parties):
            raise RefusedInputError("performance", f"has {parties:#x} at {reference}")
        rows.append(((reference, parties), _whole(row[2], ONE, "performance")))
    if len(dict(rows)) != len(rows):
        raise RefusedInputError("performance", "has a row twice")
    return rows


def _model(value: Any, count: int) -> tuple[str, int, int, tuple[int, ...]]:
    if not isinstance(value, dict) or set(value) != {"root", "bytes", "performance", "buyers"}:
        raise RefusedInputError("models", "must have root, bytes, performance and buyers")
    root = value["root"]
    try:
        well = isinstance(root, str) and len(bytes.fromhex(root)) == 32
    except ValueError:
        well = False
    if not well:
        raise RefusedInputError("models", "has a root that is none")
    buyers = tuple(_index(each, count, "models") for each in _list(value, "buyers", count))
    return (
        root,
        _whole(value["bytes"], 1 << 40, "models"),
        _whole(value["performance"], ONE, "models"),
        buyers,
    )
