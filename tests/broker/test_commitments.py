"""Whose a model is: not whoever named its root first, but who has shown its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_node.commitments import MAX_OF_ROOT, Commitments
from broker_node.findings import ReplicaFound
from node.journal import Journal
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import UnixTime
from tests.broker.test_provenance import ANN, BOB, CARL, OWN, Door, copy_of
from tests.protocol import cast

ROOT = OWN.weights_root


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


async def test_a_root_that_was_named_early_is_its_owners_who_shows_the_bytes(
    journal: Journal,
) -> None:
    """Whoever reads a root in gossip may sign an offer of it, and be heard before its owner."""
    door = Door(journal)
    claimed = door.hears(BOB, OWN)
    door.now = UnixTime(door.now + 5)
    honest = door.hears(ANN, OWN)
    door.provenance.noted(honest, shown=True)
    await door.takes(honest, OWN)
    with pytest.raises(RemoteProtocolError, match="replica"):
        await door.takes(claimed, OWN)
    assert {found.seller for found in door.found(ReplicaFound)} == {BOB.account}


async def test_of_two_who_have_shown_the_bytes_the_first_heard_has_them(journal: Journal) -> None:
    door = Door(journal)
    first = door.hears(ANN, OWN)
    door.now = UnixTime(door.now + 5)
    later = door.hears(BOB, copy_of(OWN))
    door.provenance.noted(later, shown=True)
    await door.takes(later, copy_of(OWN))
    door.provenance.noted(first, shown=True)
    await door.takes(first, OWN)
    assert {found.seller for found in door.found(ReplicaFound)} == {BOB.account}


async def test_what_was_shown_is_known_after_a_restart(journal: Journal) -> None:
    door = Door(journal)
    claimed = door.hears(BOB, OWN)
    door.provenance.noted(door.hears(ANN, OWN), shown=True)
    after = Door(journal)
    await after.offers(ANN, OWN)
    with pytest.raises(RemoteProtocolError, match="replica"):
        await after.takes(claimed, OWN)


def test_a_journal_of_before_bytes_had_to_be_shown_is_read(journal: Journal) -> None:
    journal.remember(f"commitment/{ANN.account}/{ROOT.hex()}", [3, 1])
    journal.remember(f"commitment/{BOB.account}/{ROOT.hex()}", 4)  # and of before there were turns
    known = Commitments(journal, set)
    assert known.place((ANN.account, ROOT)) < known.place((BOB.account, ROOT))
    known.note((BOB.account, ROOT), 9, shown=True)
    again = Commitments(journal, set)
    assert again.place((BOB.account, ROOT)) < again.place((ANN.account, ROOT))


def test_those_who_might_be_first_are_asked_to_show_the_bytes_and_nobody_else(
    journal: Journal,
) -> None:
    known = Commitments(journal, set)
    first, second, third = ((by.account, ROOT) for by in (ANN, BOB, CARL))
    known.note(first, 1)
    assert not known.unshown(first), "nobody else says that it has it"
    known.note(second, 2)
    assert known.unshown(first)
    known.note(second, 2, shown=True)
    assert known.unshown(first), "it was heard before the other"
    known.note(third, 3)
    assert not known.unshown(third), "it comes after one that has shown it"
    known.note(first, 1, shown=True)
    assert not known.unshown(first)


def test_a_crowd_that_names_a_root_first_leaves_room_for_who_shows_it(journal: Journal) -> None:
    known = Commitments(journal, set)
    for number in range(MAX_OF_ROOT):
        known.note((cast.Party(f"crowd {number}").account, ROOT), 1)
    known.note((ANN.account, ROOT), 2, shown=True)
    assert (ANN.account, ROOT) in known
    assert len(journal.facts("commitment/")) == MAX_OF_ROOT
    assert min(known, key=known.place) == (ANN.account, ROOT)
