"""Whom a lead asks, whose refusals it passes on as whose, and how long it waits for anybody."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from broker_node.quorum import lead as leading
from broker_node.quorum import member as measuring
from broker_node.verify.stages import Verified
from node.agent.brokers import fails
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import SELLER_UNREACHABLE, Cosign, OpenFigure, Replay
from node.protocol.offer import Offer
from node.protocol.quorum import signers_of
from node.protocol.types import PeerId
from tests.protocol.cast import BUYER, DOMAIN, SELLER, Party, word
from tests.quorum.chamber import NAMES, Room, Sale, open_room

STEPS = (Replay, OpenFigure, Cosign)
PEERS = {Party(name).peer_id: name for name in NAMES}
"""Who a question goes to, in the words of a test."""


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with open_room(tmp_path) as room:
        yield room


@pytest.fixture
def pair(room: Room) -> tuple[bytes, bytes]:
    return room.statement(BUYER, name="base"), room.statement(SELLER)


async def refusal(act: Awaitable[Any]) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        await act
    return caught.value


# ── parties, and what sellers say ──


@pytest.mark.parametrize("side", ["buyer", "seller"])
async def test_a_lead_asks_no_broker_about_a_trade_of_its_own(room: Room, side: str) -> None:
    """Its name would vouch for its own sale, and its figure price it."""
    second, third = (Party(name) for name in ("second", "third"))
    base = room.statement(second if side == "buyer" else BUYER, name="base", nonce=9)
    sold = room.statement(second if side == "seller" else SELLER, nonce=9)
    first = room["first"]
    trial = await first.agree(base, sold)
    (agreement,) = first.lead._agreed.values()
    assert set(agreement.peers.values()) == {third.account}
    assert {o.broker for o in agreement.openings} == {first.party.account, third.account}
    sale = Sale(first, base, sold, trial, word("nonce"))
    bids = sale.bids(**{side: second})  # type: ignore[arg-type]
    signed = await first.lead.cosign(sale.case, trial, sale.quote, sale.receipt, bids)
    assert second.account not in signers_of(digest(DOMAIN, sale.quote), signed)
    assert not any(room.wires.times(second.peer_id, step) for step in STEPS)
    # polled anew, it is not asked either
    room.restart("third")
    sale = Sale(first, base, sold, trial, word("next"))
    bids = sale.bids(**{side: second})  # type: ignore[arg-type]
    await first.lead.cosign(sale.case, trial, sale.quote, sale.receipt, bids)
    assert not any(room.wires.times(second.peer_id, step) for step in STEPS)


async def test_a_seller_that_shows_its_weights_to_no_member_is_not_the_leads_failure(
    room: Room, pair: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for reason in ("busy", "below-quorum", "not-our-broker", "internal-error"):

        async def keeps_back(peer: PeerId, reason: str = reason) -> None:
            await trio.lowlevel.checkpoint()
            raise RemoteProtocolError(reason, "said the seller", peer=peer)

        room.wires.introduce = keeps_back
        error = await refusal(room["first"].agree(*pair))
        assert error.reason == SELLER_UNREACHABLE
        assert not fails(error)
    room.wires.introduce = None

    async def refuses(offer: Offer) -> Verified:
        raise RemoteProtocolError("unknown-weights", "said the seller", peer=offer.peer_id)

    async def trickles(offer: Offer) -> Verified:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(measuring, "MODEL_SECONDS", 0.2)
    for keeps in (refuses, trickles):
        for name in ("second", "third"):
            member = room[name].bench._member
            member._models = dataclasses.replace(member._models, model=keeps)
        error = await refusal(room["first"].agree(*pair))
        assert error.reason == SELLER_UNREACHABLE
    for name in ("second", "third"):
        room.restart(name)
    assert len(await room["first"].trade(*pair)) == 2 * 65


async def test_members_that_differ_are_the_quorums_failure_and_not_the_sellers(
    room: Room, pair: tuple[bytes, bytes]
) -> None:
    """One seller's word beside another reason is not enough to blame the seller."""

    async def keeps_back(_: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        raise RemoteProtocolError("busy")

    room.wires.introduce = keeps_back
    room.wires.handlers.pop(Party("second").peer_id)
    room.wires.handlers.pop(Party("third").peer_id)
    error = await refusal(room["first"].agree(*pair))
    assert error.reason == "below-quorum"
    assert fails(error)


# ── patience ──


async def test_one_that_hangs_every_other_time_is_waited_for_once(
    room: Room, pair: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "STRAGGLER_SECONDS", 0.1)
    monkeypatch.setattr(leading, "REPLAY_SECONDS", 2.0)
    hangs = True

    async def alternates(peer: PeerId, question: Any) -> None:
        if PEERS.get(peer) == "third" and isinstance(question, Replay) and hangs:
            await trio.sleep_forever()

    room.wires.before = alternates
    took = []
    for nonce in range(1, 6):
        hangs = bool(nonce % 2)
        begun = trio.current_time()
        await room["first"].agree(pair[0], room.statement(SELLER, nonce=nonce))
        took.append(trio.current_time() - begun)
    assert took[0] >= 2.0
    assert max(took[1:]) < 1.5


async def test_whoever_asked_has_its_answer_before_it_gives_up(
    room: Room, pair: tuple[bytes, bytes]
) -> None:
    """However long a peer hangs: no figure is waited for when the rest of the time is due."""

    async def never(peer: PeerId, question: Any) -> None:
        if PEERS.get(peer) == "third":
            await trio.sleep_forever()

    room.wires.before = never
    first, ahead = room["first"], leading.OPEN_SECONDS + leading.ANSWER_SECONDS
    trial = first.measure(*pair)
    names = [first._take_in(data)[0] for data in pair]
    begun = trio.current_time()
    await first.bench.agree(
        trial, first.bases, first.notice()[0], *names, deadline=begun + ahead + 1
    )
    assert 0.9 <= trio.current_time() - begun < ahead
    assert first.lead._late == {}  # a second is no time to measure in
    # and a quote, for which all must measure again
    for name in ("second", "third"):
        room.restart(name)
    room.wires.before = _hanging_on_replay
    begun = trio.current_time()
    sale = Sale(first, *pair, trial, word("nonce"))
    ahead += leading.COSIGN_SECONDS
    with pytest.raises(RemoteProtocolError) as caught:
        await first.lead.cosign(
            sale.case, trial, sale.quote, sale.receipt, sale.bids(), deadline=begun + ahead + 1
        )
    assert caught.value.reason == "below-quorum"
    assert trio.current_time() - begun < leading.AGAIN_SECONDS / 2


async def _hanging_on_replay(_: PeerId, question: Any) -> None:
    if isinstance(question, Replay):
        await trio.sleep_forever()
