"""What was found to be a replica is kept by age: the newest findings outlive a flood of models."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_node import provenance
from broker_node.provenance import replicas_in
from node.journal import Journal
from tests.broker.test_provenance import ANN, BOB, OTHER, OWN, Door, copy_of
from tests.compute.test_replicas import model, started


async def test_the_oldest_finding_goes_where_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "MAX_FOUND", 2)
    journal = Journal(tmp_path / "journal.db")
    try:
        door = Door(journal)
        await door.offers(ANN, OWN)
        drawn = (copy_of(OWN, draw) for draw in range(4))
        # by name the newest would be the first to go
        copies = sorted(drawn, key=lambda held: held.weights_root, reverse=True)
        for one in copies:
            await door.refuses(BOB, one)
        kept = {found.root for found in replicas_in(journal)}
        assert kept == {one.weights_root for one in copies[-2:]}
    finally:
        journal.close()


async def test_a_flood_of_honest_models_washes_no_finding_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "MAX_COMMITMENTS", 4)
    journal = Journal(tmp_path / "journal.db")
    try:
        door = Door(journal)
        await door.offers(ANN, OWN)
        copied = copy_of(OWN)
        made = await door.refuses(BOB, copied)
        assert OWN.weights_root.hex() in made
        await door.offers(ANN, OTHER)
        for seed in range(3, 8):
            await door.offers(ANN, model(started(seed)))
        assert door.provenance._found[BOB.account, copied.weights_root] is not None
    finally:
        journal.close()
