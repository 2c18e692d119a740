"""Rounds of a clearing house in the journal of a node, and what the node sees of one on chain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from node.chain.clearing import Web3ClearingHouse
from node.chain.rounds import Round
from node.journal import Journal
from node.protocol import cbor
from node.protocol.convening import Convening, ConveningRecord
from node.protocol.errors import RemoteProtocolError
from node.protocol.participation import Participation, ParticipationRecord
from node.protocol.pot import NO_ROOT, Sight
from node.protocol.schema import Message, from_map, to_map
from node.protocol.types import NO_ADDRESS, Address, Digest, Wei

R = TypeVar("R", bound=Message)
JOINED: Final = "joined/"
"""Facts of participations begin so; the rest is the number of our round."""
CONVENED: Final = "convened/"
"""Facts of rounds that a broker convened."""
OFF: Final = "round-off/"
"""Facts of rounds that a broker did not open."""
KEPT_OFF: Final = 256


def save(journal: Journal, kind: str, number: int, record: Message) -> None:
    """Journal a round as it is now; on disk when this returns."""
    journal.remember(f"{kind}{number:08}", to_map(record))


def recall(journal: Journal, kind: str, record: type[R]) -> dict[int, R]:
    """Return the rounds of a journal by number, rising; one that cannot be read is left out."""
    found = {}
    for name, value in sorted(journal.facts(kind).items()):
        try:
            found[int(name.removeprefix(kind))] = from_map(record, value)
        except (RemoteProtocolError, ValueError):
            continue
    return found


def save_off(journal: Journal, number: int, reason: str, inputs: bytes) -> None:
    """Journal that a round was not opened, and forget those of long ago."""
    journal.remember(f"{OFF}{number:08}", {"reason": reason[:1_000], "inputs": inputs})
    journal.forget(sorted(journal.facts(OFF))[:-KEPT_OFF])


def unsettled(journal: Journal) -> int:
    """Return how many rounds want something done today, on either side."""
    joined = map(Participation, recall(journal, JOINED, ParticipationRecord).values())
    convened = map(Convening, recall(journal, CONVENED, ConveningRecord).values())
    return sum(not (part.over or part.outlasting) for part in joined) + sum(
        not convening.over for convening in convened
    )


def forget(
    journal: Journal, kind: str, records: Iterable[ParticipationRecord | ConveningRecord]
) -> None:
    """Forget rounds that are over, and their transactions."""
    records = list(records)
    if records:
        journal.forget(f"{kind}{record.number:08}" for record in records)
        journal.forget_transactions(record.opening.round for record in records)


def encoded(record: Message) -> bytes:
    """Return a record's bytes, to see whether it changed."""
    return cbor.encode(to_map(record))


def look(
    house: Web3ClearingHouse,
    round_id: Digest,
    *,
    leaf: int | None,
    judged: Digest,
) -> Sight:
    """Return what the chain shows of a round. Raises `ChainUnavailableError`."""
    _, now = house.now()
    found = house.round(round_id)
    credit = house.credit(NO_ADDRESS, house.account)
    if found is None:
        return Sight(now=now, opened=False, credit=credit)
    posted = found.posted_at != 0
    root = found.clearing if posted else NO_ROOT
    return Sight(
        now=now,
        pot=found.pot,
        paid=house.paid_in(round_id, house.account),
        root=root,
        version=found.version,
        stands_from=found.stands_from,
        expires_at=found.expires_at,
        claimed=leaf is not None and root == judged and house.claimed(round_id, leaf),
        credit=credit,
    )


def payments(
    house: Web3ClearingHouse, round_id: Digest, accounts: Iterable[Address]
) -> tuple[dict[Address, Wei], Round]:
    """Return what each of these accounts paid, those with something alone, and the round.

    Raises `ChainUnavailableError`, and `RemoteProtocolError` if the round is not there.
    """
    found = house.round(round_id)
    if found is None:
        raise RemoteProtocolError("no-such-round", round_id.hex())
    paid = {account: house.paid_in(round_id, account) for account in dict.fromkeys(accounts)}
    return {account: amount for account, amount in paid.items() if amount}, found
