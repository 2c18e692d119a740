"""A lead that asks one honest member whatever a test wants, and what must not come of it."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from broker_node.appraisal import Trial
from node.protocol.bids import BidAndAsk
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.messages import Cosign, Cosigned, Opened, OpenFigure, Replay, Sealed
from node.protocol.quorum import (
    Ballot,
    Commitment,
    Figure,
    Opening,
    case_of,
    figure_of,
    sealed,
    signers_of,
)
from node.protocol.schema import raw_address
from node.protocol.signing import sign_digest
from node.protocol.types import Digest
from tests.protocol.cast import BUYER, DOMAIN, SELLER, Party, word
from tests.quorum.chamber import Broker, Room, Sale

T = TypeVar("T")


class Liar:
    """The first broker, whose every question is as a test wants it; the second is honest."""

    def __init__(self, room: Room, *, base: bytes | None = None, sold: bytes | None = None) -> None:
        self.room = room
        self.base = base or room.statement(BUYER, name="base")
        self.sold = sold or room.statement(SELLER)
        self.trial = room["first"].measure(self.base, self.sold)

    @property
    def lead(self) -> Broker:
        return self.room["first"]

    @property
    def member(self) -> Broker:
        return self.room["second"]

    @property
    def case(self) -> Digest:
        names = [self.lead._take_in(data)[0] for data in (self.base, self.sold)]
        return case_of(self.trial.evaluation, *names)

    async def ask(self, question: Any, kind: type[T]) -> T:
        return await self.lead.station.ask(  # type: ignore[type-var]
            self.member.party.peer_id, question, kind, seconds=10
        )

    async def replay(self, **changes: Any) -> Commitment:
        """Have it measured; `changes` are of the question, or of its subject."""
        fields = {field.name for field in dataclasses.fields(Evaluation)}
        of_subject = {name: value for name, value in changes.items() if name in fields}
        notice = self.lead.station.book.data_of(self.lead.notice()[0])
        said: dict[str, Any] = {
            "notice": notice,
            "base": self.base,
            "offer": self.sold,
            "subject": dataclasses.replace(sealed(self.trial.evaluation), **of_subject),
            "recipe": self.trial.recipe,
        }
        others = {name: value for name, value in changes.items() if name not in fields}
        answer = await self.ask(Replay(**(said | others)), Sealed)
        return answer.commitment

    async def open(
        self, figure: Figure | None = None, *more: Commitment
    ) -> tuple[Ballot, tuple[Opening, ...]]:
        """Have it sealed and opened; `figure` is what we say ourselves."""
        account = self.lead.party.account
        ballot = Ballot(DOMAIN, account, self.trial.evaluation, needed=2)
        salt = Digest(secrets.token_bytes(32))
        signing = ballot.commit(figure or figure_of(self.trial.evaluation), salt)
        ours = Commitment(
            broker=account,
            commitment=ballot.commitment,
            signature=sign_digest(self.lead.party.account_key, signing),
        )
        fixed = by_account(ours, await self.replay(), *more)
        answer = await self.ask(OpenFigure(case=self.case, commitments=fixed), Opened)
        return ballot, (ballot.open(fixed, {c.broker for c in fixed}), answer.opening)

    async def cosign(
        self,
        bids: Callable[[Sale], BidAndAsk] = Sale.bids,
        **how: Any,
    ) -> None:
        """Poll as one must, and have signed what a test says."""
        _, openings = await self.open()
        await self.cosign_for(openings, bids, **how)

    async def cosign_for(
        self,
        openings: tuple[Opening, ...],
        bids: Callable[[Sale], BidAndAsk] = Sale.bids,
        *,
        trial: Trial | None = None,
        **how: Any,
    ) -> None:
        nonce = how.pop("nonce", word("the liar's nonce"))
        sale = Sale(self.lead, self.base, self.sold, trial or self.trial, nonce, **how)
        question = Cosign(
            case=self.case,
            openings=openings,
            quote=sale.quote,
            receipt=sale.receipt,
            bids=bids(sale),
        )
        await self.ask(question, Cosigned)


def by_account(*commitments: Commitment) -> tuple[Commitment, ...]:
    return tuple(sorted(commitments, key=lambda each: raw_address(each.broker)))


def signatures_of(broker: Broker) -> list[str]:
    """For which trades a broker has ever signed, by its journal."""
    rows = broker.journal._read("SELECT name FROM fact WHERE name LIKE 'quote-signed %'", ())
    return [name for (name,) in rows]


async def refused(reason: str, act: Awaitable[Any]) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        await act
    assert caught.value.reason == reason, caught.value
    return caught.value


async def trades(room: Room, name: str, *, base: bytes, sold: bytes, nonce: str = "") -> None:
    """An honest lead has this pair signed by the honest member: nobody else can answer."""
    third = next(other for other in ("first", "third") if other != name)
    handler = room.wires.handlers.pop(Party(third).peer_id)
    lead = room[name]
    trial = await lead.agree(base, sold)
    quote, joined = await lead.sign(base, sold, trial, nonce=nonce or f"honest {name}")
    room.wires.handlers[Party(third).peer_id] = handler
    assert set(signers_of(digest(DOMAIN, quote), joined)) == {
        Party(name).account,
        Party("second").account,
    }


async def nothing_came_of_it(liar: Liar) -> None:
    """The member signed nothing, and the pair is dead for nobody."""
    assert signatures_of(liar.member) == []
    for name in ("third", "first"):
        await trades(liar.room, name, base=liar.base, sold=liar.sold)
    assert len(signatures_of(liar.member)) == 2
