"""Brokers of a quorum without a network: keys, figures, and the rounds between their machines."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node.protocol.evaluation import Evaluation
from node.protocol.quorum import Ballot, Commitment, Figure, Opening
from node.protocol.schema import raw_address
from node.protocol.signing import address_of, sign_digest
from node.protocol.types import ONE, Address, Digest, Millionths
from tests.protocol import cast

DOMAIN = cast.DOMAIN
LOSS = 10**12
"""Of a thousand nats a row: every gain of whole millionths is exact."""


def key_of(number: int) -> bytes:
    return hashlib.sha256(f"broker {number}".encode()).digest()


def account_of(number: int) -> Address:
    return address_of(key_of(number))


def figure(gain: int, *, margin: int = 50) -> Figure:
    """A figure that is sound in itself; its bound is `margin` under its gain."""
    return Figure(
        loss_before=LOSS,
        loss_after=LOSS - gain * (LOSS // ONE),
        gain=Millionths(gain),
        bound=Millionths(gain - margin),
    )


SUBJECT: Evaluation = dataclasses.replace(cast.good_deal().evaluation)


@dataclass
class Seat:
    """One broker: its key, what it says it measured, and its machine."""

    number: int
    said: Figure
    ballot: Ballot

    @property
    def account(self) -> Address:
        return account_of(self.number)

    def commit(self) -> Commitment:
        salt = Digest(hashlib.sha256(f"salt {self.number}".encode()).digest())
        signed = self.ballot.commit(self.said, salt)
        return Commitment(
            broker=self.account,
            commitment=self.ballot.commitment,
            signature=sign_digest(key_of(self.number), signed),
        )


def seats(figures: Sequence[Figure] | Mapping[int, Figure], *, needed: int) -> list[Seat]:
    """One broker for each figure, by rising account."""
    numbered = figures if isinstance(figures, Mapping) else dict(enumerate(figures))
    made = [
        Seat(number, said, Ballot(DOMAIN, account_of(number), SUBJECT, needed=needed))
        for number, said in numbered.items()
    ]
    return sorted(made, key=lambda seat: raw_address(seat.account))


def seal(brokers: Sequence[Seat]) -> tuple[Commitment, ...]:
    return tuple(broker.commit() for broker in brokers)


def reveal(brokers: Sequence[Seat]) -> tuple[Opening, ...]:
    """Seal and open, all with all."""
    fixed = seal(brokers)
    seated = {broker.account for broker in brokers}
    return tuple(broker.ballot.open(fixed, seated) for broker in brokers)
