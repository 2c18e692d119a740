"""Who may sell what: a copy of another's model is named, and what was bought and merged is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trio

from broker_node.align.weight_matching import weight_matching
from broker_node.commitments import MAX_OF_ROOT
from broker_node.findings import LikenessExplained, NotCompared, ReplicaFound
from broker_node.provenance import MAX_COMPARED, Provenance, replicas_in
from broker_node.shelf import ModelShelf
from broker_node.verify.comparing import Comparer
from broker_node.verify.stages import Verified
from node.agent.strategies.replicator import replica
from node.cli.status import status_of
from node.config.loading import load
from node.home import Home
from node.journal import Journal, TradeRow
from node.observe import Event, Observer
from node.params.architecture import permutation_spec
from node.params.permutation import rescale
from node.params.recipe import interpolate
from node.protocol import cbor
from node.protocol.brokerage import BrokerageRecord, BrokerageState
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import NOT_FOR_SALE, Offer
from node.protocol.quote import trade_id_of
from node.protocol.schema import to_map
from node.protocol.types import Digest, Millionths, UnixTime
from tests.compute.test_replicas import NET, model, moved, noisy, started
from tests.protocol import cast

ANN, BOB, CARL = (cast.Party(name) for name in ("ann", "bob", "carl"))
MOST = Millionths(700_000)
"""Of a merge of untrained models; under a half it is like neither."""
S = BrokerageState


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


class Door:
    """A broker's door: offers come, with their models, at a second that the test names."""

    def __init__(self, journal: Journal, mode: str = "refuse") -> None:
        self.now, self.events, self.journal = cast.NOW, list[Event](), journal
        observer = Observer()
        observer.subscribe(lambda record: self.events.append(record.event))
        self.heard: dict[Digest, UnixTime] = {}
        self.book: list[tuple[Digest, Offer]] = []
        station: Any = SimpleNamespace(
            journal=journal,
            observer=observer,
            clock=lambda: self.now,
            domain=cast.DOMAIN,
            book=SimpleNamespace(heard_at=self.heard.get, offers=lambda now: iter(self.book)),
        )
        self.shelf = ModelShelf(100)
        generator = torch.Generator().manual_seed(0)
        self.provenance = Provenance(
            mode=mode,
            station=station,
            shelf=self.shelf,
            probes_RF=torch.randn(200, 64, generator=generator),
            compute=trio.CapacityLimiter(1),
        )

    async def offers(self, by: cast.Party, held: Verified, **changes: Any) -> Offer:
        """Offer a model, a second later than the last. Raises what its seller is told."""
        self.now = UnixTime(self.now + 1)
        said = {"issued_at": self.now, "expires_at": UnixTime(self.now + 600)} | changes
        made = cast.offer(by, weights_root=held.weights_root, **said)
        await self.takes(made, held)
        return made

    async def takes(self, made: Offer, held: Verified) -> None:
        self.shelf.put(held)
        await self.provenance.judge(made, held)

    def hears(self, by: cast.Party, held: Verified, **changes: Any) -> Offer:
        """Hear an offer by gossip, in the same second as the last."""
        made = cast.offer(by, weights_root=held.weights_root, **changes)
        name = digest(cast.DOMAIN, made)
        self.heard[name] = self.now
        self.book.append((name, made))
        return made

    async def refuses(self, by: cast.Party, held: Verified, **changes: Any) -> str:
        with pytest.raises(RemoteProtocolError) as told:
            await self.offers(by, held, **changes)
        assert (told.value.reason, told.value.peer) == ("replica", by.peer_id)
        return told.value.detail

    def found(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def sells(
        self, buyer: cast.Party, base: Verified, sold: Verified, state: S = S.PAID
    ) -> Verified:
        """Broker a purchase, and return the merge that it made."""
        aligned = weight_matching(base, sold, seed=0)
        assert aligned.recipe is not None
        merged = model(interpolate(base.tensors, aligned.transformed, MOST))
        nonce = Digest(merged.weights_root)
        deal = cast.deal(
            quote_changes={
                "trade_id": trade_id_of(buyer.account, ANN.account, cast.OFFER_DIGEST, nonce),
                "buyer": buyer.account,
                "seller": ANN.account,
            },
            evaluation_changes={
                "base_root": base.weights_root,
                "sold_root": sold.weights_root,
                "merged_root": merged.weights_root,
            },
            recipe=aligned.recipe.with_alpha(MOST).encode(),
        )
        self.provenance.kin.quoted(deal)
        record = BrokerageRecord(state=state.value, note="", deal=deal)
        self.journal.save_trade(
            TradeRow(
                trade_id=deal.quote.trade_id, role="broker", state=state.value,
                over=True, record=cbor.encode(to_map(record)),
            )
        )  # fmt: skip
        return merged


def trained_on(held: Verified) -> Verified:
    return model(noisy(0.2)(dict(held.tensors)))


def copy_of(held: Verified, draw: int = 1) -> Verified:
    """What the strategy `replicator` offers."""
    return model(dict(replica(NET, held.tensors, draw=Digest(bytes([draw]) * 32))))


OWN, OTHER = model(started(1)), model(started(2))


async def test_a_copy_is_refused_by_name_with_what_it_is_like(journal: Journal) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    await door.offers(BOB, OTHER)
    told = await door.refuses(BOB, copy_of(OWN))
    assert OWN.weights_root.hex() in told
    assert ANN.account in told
    (found,) = door.found(ReplicaFound)
    assert (found.of_root, found.of_seller, found.seller) == (
        OWN.weights_root, ANN.account, BOB.account,
    )  # fmt: skip
    assert found.score > 990_000
    assert found.refused
    await door.refuses(BOB, copy_of(OWN))  # and once more, uncompared
    assert len(door.found(ReplicaFound)) == 1


@pytest.mark.parametrize(("mode", "told"), [("report", 1), ("ignore", 0)])
async def test_a_copy_is_let_in_where_the_broker_only_reports_or_does_not_look(
    journal: Journal, mode: str, told: int
) -> None:
    door = Door(journal, mode)
    await door.offers(ANN, OWN)
    await door.offers(BOB, copy_of(OWN))
    assert [found.refused for found in door.found(ReplicaFound)] == [False] * told


async def test_who_was_heard_of_first_has_it_whichever_model_comes_first(journal: Journal) -> None:
    door = Door(journal)
    first = door.hears(ANN, OWN)
    door.now = UnixTime(door.now + 5)
    later = door.hears(BOB, copy_of(OWN))
    await door.takes(later, copy_of(OWN))
    await door.takes(first, OWN)
    (found,) = door.found(ReplicaFound)
    assert found.seller == BOB.account
    with pytest.raises(RemoteProtocolError, match="replica"):
        await door.takes(later, copy_of(OWN))


@pytest.mark.parametrize("ago", [1, 60, 3_600])
@pytest.mark.parametrize("theirs", [OWN, copy_of(OWN)], ids=["same-bytes", "disguised"])
async def test_the_time_that_a_seller_signs_takes_nothing_from_whoever_was_admitted(
    journal: Journal, theirs: Verified, ago: int
) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    before = {"issued_at": UnixTime(door.now - ago), "expires_at": UnixTime(door.now + 600)}
    await door.refuses(BOB, theirs, **before)
    await door.offers(ANN, OWN)
    assert {found.seller for found in door.found(ReplicaFound)} == {BOB.account}


async def test_of_one_second_the_one_that_was_heard_first_stands_before_it_has_come(
    journal: Journal,
) -> None:
    """A copied root is said, and submitted, before the seller itself comes to this door."""
    door = Door(journal)
    first, later = door.hears(ANN, OWN), door.hears(BOB, OWN, issued_at=UnixTime(cast.NOW - 60))
    with pytest.raises(RemoteProtocolError, match="replica"):
        await door.takes(later, OWN)
    await door.takes(first, OWN)


async def test_of_one_second_the_order_outlives_a_restart(journal: Journal) -> None:
    door = Door(journal)
    for by in (CARL, ANN, BOB):  # in no order of their names
        door.provenance.noted(door.hears(by, OWN))
    after = Door(journal)
    await after.offers(CARL, OWN)
    await after.refuses(ANN, OWN)
    await after.refuses(BOB, OWN)


async def test_a_crowd_that_claims_one_root_is_no_place_for_and_stands_behind_the_first(
    journal: Journal,
) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    crowd = [cast.Party(f"crowd {number}") for number in range(MAX_OF_ROOT + 4)]
    for by in crowd:
        await door.refuses(by, OWN)
    assert len(journal.facts("commitment/")) == MAX_OF_ROOT
    await door.offers(ANN, OWN)
    assert {found.of_seller for found in door.found(ReplicaFound)} == {ANN.account}


async def test_a_store_full_of_claims_to_held_models_lets_the_next_offer_in(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_node.commitments.MAX_COMMITMENTS", 4)
    door = Door(journal, "report")
    for number in range(4):  # all first, and all held
        await door.offers(cast.Party(f"free {number}"), model(started(10 + number)))
    await door.offers(ANN, OWN)
    await door.offers(BOB, OWN)
    await door.offers(CARL, OTHER)
    assert len(journal.facts("commitment/")) == 4
    assert door.provenance.committed(ANN.account, OWN.weights_root)


async def test_a_flood_of_claims_to_one_held_root_gives_way_before_its_first(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_node.commitments.MAX_COMMITMENTS", 4)
    door = Door(journal, "report")
    await door.offers(ANN, OWN)
    for number in range(4):
        await door.offers(cast.Party(f"free {number}"), OWN)
    await door.offers(CARL, OTHER)
    assert door.provenance.committed(ANN.account, OWN.weights_root)
    assert door.provenance.committed(CARL.account, OTHER.weights_root)


async def test_the_same_account_may_offer_what_is_like_its_own(journal: Journal) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    await door.offers(ANN, copy_of(OWN))
    assert door.events == []


async def test_the_same_bytes_are_a_replica_unless_they_were_bought(journal: Journal) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    told = await door.refuses(BOB, OWN)
    assert "1.000" in told
    door.sells(CARL, OTHER, OWN)
    await door.offers(CARL, OWN)
    (explained,) = door.found(LikenessExplained)
    assert explained.why == "bought"


async def test_what_was_merged_and_trained_on_is_explained_by_its_receipt(journal: Journal) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    await door.offers(BOB, OTHER)
    merged = door.sells(BOB, OTHER, OWN)
    await door.offers(BOB, trained_on(merged))
    (explained,) = door.found(LikenessExplained)
    assert explained.why == "descends"
    assert explained.own > explained.score


async def test_a_copy_of_what_was_bought_is_no_merge_of_it(journal: Journal) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    await door.offers(BOB, OTHER)
    door.sells(BOB, OTHER, OWN)
    await door.refuses(BOB, copy_of(OWN))


@pytest.mark.parametrize("state", [S.QUOTED, S.EXPIRED, S.DISPUTED, S.REFUNDED])
async def test_a_purchase_that_was_not_made_explains_nothing(journal: Journal, state: S) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    await door.offers(BOB, OTHER)
    merged = door.sells(BOB, OTHER, OWN, state)
    await door.refuses(BOB, trained_on(merged))


async def test_a_restarted_broker_knows_purchases_commitments_and_replicas(
    journal: Journal,
) -> None:
    before = Door(journal)
    await before.offers(ANN, OWN)
    await before.offers(BOB, OTHER)
    merged = before.sells(BOB, OTHER, OWN)
    await before.refuses(CARL, copy_of(OWN))
    after = Door(journal)
    after.now = UnixTime(cast.NOW + 1_200)
    assert [one.seller for one in replicas_in(journal)] == [CARL.account]
    await after.refuses(CARL, copy_of(OWN))
    assert after.events == []  # nothing had to be compared
    await after.offers(BOB, trained_on(merged))  # its own models are not held any more
    await after.offers(ANN, OWN)  # told again, later than the other one: it was committed to first
    (explained,) = after.found(LikenessExplained)
    assert (explained.seller, explained.why) == (BOB.account, "related")


async def test_models_of_their_own_are_let_in_and_bases_are_nobodys_matter(
    journal: Journal,
) -> None:
    door = Door(journal)
    for number, party in enumerate((ANN, BOB, CARL)):
        await door.offers(party, model(started(number)))
    await door.offers(BOB, copy_of(model(started(0))), reserve=NOT_FOR_SALE)
    assert door.events == []


async def test_no_more_models_are_matched_than_is_said(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Door(journal)
    for number in range(3 * MAX_COMPARED):
        await door.offers(ANN, copy_of(OWN, 1 + number))
    asked = []
    monkeypatch.setattr(Comparer, "score", lambda *pair: asked.append(pair))
    await door.offers(BOB, copy_of(OWN, 99))
    assert len(asked) == MAX_COMPARED


async def test_a_crowd_of_commitments_makes_nobodys_held_model_a_strangers(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_node.commitments.MAX_COMMITMENTS", 4)
    door = Door(journal)
    await door.offers(ANN, OWN)
    for number in range(8):
        made = cast.offer(CARL, weights_root=Digest(bytes([number]) * 32), issued_at=cast.NOW)
        door.provenance.noted(made)
    assert len(journal.facts("commitment/")) == 4
    await door.refuses(BOB, copy_of(OWN))


@pytest.mark.parametrize("scale", [2.0**-8, 2.0**8])
async def test_other_units_hide_nothing(journal: Journal, scale: float) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    scales = {"hidden.0": torch.full((24,), scale), "hidden.1": torch.full((24,), 1 / scale)}
    spec = permutation_spec(NET)
    scales = dict(zip(spec.groups, scales.values(), strict=True))
    await door.refuses(BOB, model(dict(rescale(spec, OWN.tensors, scales))))


async def test_a_constant_model_is_said_to_be_past_comparing(journal: Journal) -> None:
    door = Door(journal)
    await door.offers(ANN, OWN)
    await door.offers(BOB, model({name: torch.zeros_like(t) for name, t in OWN.tensors.items()}))
    (told,) = door.found(NotCompared)
    assert (told.seller, told.reason) == (BOB.account, "constant")


def test_prints_are_the_same_of_a_model_renumbered_and_rescaled() -> None:
    comparer = Comparer(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    strangers = [model(started(number)) for number in range(3, 6)]
    disguised = model(moved(started(1)))
    assert comparer.nearest(OWN, [*strangers, disguised], 1) == [disguised]
    assert Comparer(None).nearest(OWN, [disguised], 1) == []
    constant = dataclasses.replace(
        OWN, weights_root=Digest(bytes(32)),
        tensors={name: torch.zeros_like(t) for name, t in OWN.tensors.items()},
    )  # fmt: skip
    assert comparer.nearest(constant, [OWN], 1) == comparer.nearest(OWN, [constant], 1) == []
    assert comparer.score(OWN, constant) is None


async def test_status_counts_replicas_from_the_journal_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "broker").prepare()
    journal = Journal(home.journal)
    door = Door(journal)
    await door.offers(ANN, OWN)
    await door.refuses(BOB, copy_of(OWN))
    journal.close()
    assert status_of(home, load(flags={"role": "broker"}), 0)["replicas"] == 1
