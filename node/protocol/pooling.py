"""What agents and a broker say of a round of a clearing house: money without goods.

    join ─► not invited yet, … ─► invited ─► (pay on chain) ─► ask cleared ─► cleared

Everything that decides about money is published: `Cleared.inputs` is a document of JSON from which,
with what the chain says was paid, anybody computes who gets what. Its broker signs it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from node.protocol.clearing import ClearingDomain, Opening
from node.protocol.eip712 import digest
from node.protocol.schema import Message
from node.protocol.types import Address, Digest, PeerId, Wei

JOIN_SECONDS: Final = 60.0
"""How long an agent waits for each answer: its broker may measure models meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskHouse(Message):
    """Agent → broker: where do rounds clear?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class House(Message):
    """Broker → agent: in this clearing house, in which my account has a seat."""

    clearing_house: Address
    mechanism: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRound(Message):
    """Agent → broker: count me in, with the model that I submitted. Asked again until invited."""

    base_digest: Digest
    cost: Wei
    """What a use of its data costs the agent; of mechanisms that ask for it."""
    reserve: Wei
    """The most that it pays for a model; of mechanisms that ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotInvited(Message):
    """Broker → agent: the round is not open yet, ask again; or it is off, and no money moves."""

    reason: str
    off: bool
    """Whether there is no round this time."""
    inputs: bytes
    """Why there is none, in the form of `Cleared.inputs`; nothing while one may come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited(Message):
    """Broker → agent: the round is open on chain; pay what is due, or be no part of it."""

    opening: Opening
    due: Wei
    inputs: bytes
    """What the due follows from, in the form of `Cleared.inputs`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskCleared(Message):
    """Anyone → broker: what did the round come to?"""

    round: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared(Message):
    """Broker → anyone: all that the root was computed from, and its leaves."""

    round: Digest
    inputs: bytes
    accounts: tuple[Address, ...]
    """Of the leaves, in their order; they need no signature, the root is on chain."""
    amounts: tuple[Wei, ...]
    signature: bytes
    """Of the broker's account over the `Publication`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection(Message):
    """Agent → broker: the root on chain is not what follows from what you published."""

    round: Digest
    version: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard(Message):
    """Broker → agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication(Message):
    """What a broker signs of a round's inputs, in the domain of the house."""

    round: Digest
    inputs: Digest
    """SHA-256."""


def publication_digest(domain: ClearingDomain, round_id: Digest, inputs: bytes) -> Digest:
    """Return what a broker signs of what it publishes."""
    named = Publication(round=round_id, inputs=Digest(hashlib.sha256(inputs).digest()))
    return digest(domain, named)


def round_id_of(domain: ClearingDomain, broker: PeerId, number: int) -> Digest:
    """Return the name of a broker's round, the `number`-th of its journal."""
    said = f"{domain.chain_id} {domain.clearing_house} {broker} {number}".encode()
    return Digest(hashlib.sha256(b"pm-node round " + said).digest())
