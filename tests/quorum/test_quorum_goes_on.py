"""A quorum outlives its brokers' restarts, and what any one of them does to the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from broker_node.appraisal import DrillAppraiser, Remeasured
from broker_node.quorum import lead as leading
from broker_node.quorum import seats
from broker_node.verify.stages import Verified
from node.protocol import messages
from node.protocol.eip712 import digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.messages import Cosign, OpenFigure, Replay
from node.protocol.quorum import signers_of
from node.protocol.types import PeerId
from tests.protocol.cast import BUYER, DOMAIN, SELLER, Party, word
from tests.quorum.chamber import NAMES, Room, Sale, open_room
from tests.quorum.quorum_market import Measured

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


class DiedError(Exception):
    """The lead is no more."""


class Counting(DrillAppraiser):
    """Knows how often it measured again."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(
        self, subject: Evaluation, recipe: bytes, base: Verified, sold: Verified
    ) -> Remeasured:
        self.replays += 1
        return super().replay(subject, recipe, base, sold)


async def asked_of(room: Room, peer: PeerId, question: Any) -> None:
    """Have a peer answer the first broker, which does not hear it."""
    await room.wires.handlers[peer](Party("first").peer_id, messages.encode(question))


async def refusal(act: Awaitable[Any]) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        await act
    return caught.value


# ── restarts ──


@pytest.mark.parametrize("step", STEPS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("others", ["there", "away"])
async def test_a_member_may_be_restarted_before_any_question(
    room: Room, pair: tuple[bytes, bytes], step: type, others: str
) -> None:
    """With the third away the one that was restarted is needed; it measures again, and signs."""
    if others == "away":
        room.stop("third")
    restarted: list[str] = []

    async def before(peer: PeerId, question: Any) -> None:
        if isinstance(question, step) and PEERS.get(peer) == "second" and not restarted:
            restarted.append("second")
            room.restart("second")

    room.wires.before = before
    joined = await room["first"].trade(*pair)
    assert restarted
    assert len(joined) == 2 * 65


@pytest.mark.parametrize("step", STEPS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("after", [False, True], ids=["asked", "answered"])
async def test_a_lead_may_be_restarted_after_any_question(
    room: Room, pair: tuple[bytes, bytes], step: type, after: bool
) -> None:
    """It knows nothing any more, and leads the same pair again; nobody measures twice."""
    room.stop("third")

    async def before(peer: PeerId, question: Any) -> None:
        if isinstance(question, step) and PEERS[peer] == "second":
            if after:
                await asked_of(room, peer, question)
            raise DiedError

    room.wires.before = before
    with pytest.RaisesGroup(DiedError, allow_unwrapped=True, flatten_subgroups=True):
        await room["first"].trade(*pair, nonce="before")
    room.wires.before = None
    first = room.restart("first")
    room.wires.asked.clear()
    assert len(await first.trade(*pair, nonce="after")) == 2 * 65


async def test_what_a_member_measured_it_does_not_measure_again_for_another_poll(
    tmp_path: Path,
) -> None:
    counting = Counting()
    with open_room(tmp_path, second=lambda: counting) as room:
        base, sold = room.statement(BUYER, name="base"), room.statement(SELLER)
        room.stop("third")
        await room["first"].trade(base, sold, nonce="one")
        await room.restart("first").trade(base, sold, nonce="two")
        again = room.statement(SELLER, nonce=2)
        await room["first"].trade(base, again, nonce="three")
        assert counting.replays == 1


async def test_a_poll_that_failed_is_held_again(room: Room, pair: tuple[bytes, bytes]) -> None:
    async def nobody_opens(peer: PeerId, question: Any) -> None:
        if isinstance(question, OpenFigure):
            await asked_of(room, peer, question)
            raise RemoteProtocolError("truncated", peer=peer)

    room.wires.before = nobody_opens
    error = await refusal(room["first"].agree(*pair))
    assert error.reason == "below-quorum"
    assert "truncated" in error.detail
    room.wires.before = None
    assert len(await room["first"].trade(*pair)) == 2 * 65


async def test_one_whose_figures_differed_may_ask_again(tmp_path: Path) -> None:
    """What it could not sign for is forgotten with the poll that it came from."""
    measured = Measured(times=3)
    with open_room(tmp_path, second=lambda: measured, third=lambda: measured) as room:
        base, sold = room.statement(BUYER, name="base"), room.statement(SELLER)
        assert (await refusal(room["first"].agree(base, sold))).reason == "figures-differ"
        room.appraisers |= {"second": DrillAppraiser(), "third": DrillAppraiser()}
        for name in ("second", "third"):
            room.restart(name)
        assert len(await room["first"].trade(base, sold)) == 2 * 65


async def test_an_agreement_stays_good_for_signing_while_another_poll_begins(
    room: Room, pair: tuple[bytes, bytes]
) -> None:
    room.stop("third")
    trial = await room["first"].agree(*pair)
    agreement = next(iter(room["first"].lead._agreed.values()))
    replay = Replay(
        notice=agreement.papers.notice,
        base=agreement.papers.base,
        offer=agreement.papers.offer,
        subject=agreement.ballot.subject,
        recipe=trial.recipe,
    )
    await asked_of(room, Party("second").peer_id, replay)
    room.wires.asked.clear()
    _, joined = await room["first"].sign(*pair, trial)
    assert len(joined) == 2 * 65
    assert room.wires.times(Party("second").peer_id, Replay) == 0


async def test_a_result_of_another_poll_is_tried_anew_and_not_quoted(tmp_path: Path) -> None:
    """A member that was restarted found something else within noise: the buyer is told of it."""
    with open_room(tmp_path) as room:
        base, sold = room.statement(BUYER, name="base"), room.statement(SELLER)
        room.stop("third")
        first = room["first"]
        trial = await first.agree(base, sold)
        room.appraisers["second"] = Measured(off=-3)
        room.restart("second")
        error = await refusal(first.sign(base, sold, trial))
        assert error.reason == "below-quorum"
        (case,) = first.lead._agreed
        assert not first.bench.holds(case, trial)
        renewed = await first.agree(base, sold)
        assert renewed.evaluation.gain == trial.evaluation.gain - 3
        _, joined = await first.sign(base, sold, renewed, nonce="next")
        assert len(joined) == 2 * 65


# ── two at once ──


async def test_two_buyers_at_once_have_each_its_own_case(room: Room) -> None:
    sold = room.statement(SELLER)
    other = Party("another buyer")
    bases = [room.statement(by, name="base") for by in (BUYER, other)]
    joined: list[set[str]] = []

    async def buy(base: bytes) -> None:
        trial = await room["first"].agree(base, sold)
        buyer = BUYER if base == bases[0] else other
        sale = Sale(room["first"], base, sold, trial, word(f"nonce of {buyer.name}"))
        signed = await room["first"].lead.cosign(
            sale.case, trial, sale.quote, sale.receipt, sale.bids(buyer=buyer)
        )
        joined.append(set(signers_of(digest(DOMAIN, sale.quote), signed)))

    async with trio.open_nursery() as nursery:
        for base in bases:
            nursery.start_soon(buy, base)
    assert [len(each) for each in joined] == [2, 2]
    assert len(room["first"].lead._agreed) == 2


async def test_two_leads_at_once_do_not_stand_in_each_others_way(
    room: Room, pair: tuple[bytes, bytes]
) -> None:
    joined: dict[str, bytes] = {}

    async def lead(name: str) -> None:
        joined[name] = await room[name].trade(*pair, nonce=f"nonce of {name}")

    async with trio.open_nursery() as nursery:
        for name in NAMES:
            nursery.start_soon(lead, name)
    assert {name: len(each) for name, each in joined.items()} == dict.fromkeys(NAMES, 130)


# ── what one peer may do to a poll ──


async def test_whatever_one_peer_brings_about_is_its_own_fault(
    room: Room, pair: tuple[bytes, bytes]
) -> None:
    async def junk(peer: PeerId, question: Any) -> None:
        if PEERS.get(peer) == "third":
            raise LocalProtocolError("not an address like /ip4/…: '/junk'")

    room.wires.before = junk
    _, joined = await room["first"].sign(*pair, await room["first"].agree(*pair))
    assert len(joined) == 2 * 65
    faults = [(PEERS[f.peer], f.during, f.reason) for f in room["first"].faults]
    assert faults == [("third", "Replay", "unaskable")]


async def test_those_that_answer_at_once_push_out_nobody(
    room: Room, pair: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third is slower than a straggler may be, and is waited for all the same."""
    monkeypatch.setattr(leading, "STRAGGLER_SECONDS", 0.1)

    async def slowly(peer: PeerId, question: Any) -> None:
        if PEERS.get(peer) == "third" and isinstance(question, Replay):
            await trio.sleep(0.6)

    room.wires.before = slowly
    await room["first"].agree(*pair)
    (agreement,) = room["first"].lead._agreed.values()
    assert {o.broker for o in agreement.openings} == {Party(name).account for name in NAMES}


async def test_one_that_never_answers_is_waited_for_once(
    room: Room, pair: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "STRAGGLER_SECONDS", 0.1)
    monkeypatch.setattr(leading, "REPLAY_SECONDS", 2.0)

    async def never(peer: PeerId, question: Any) -> None:
        if PEERS.get(peer) == "third":
            await trio.sleep_forever()

    room.wires.before = never
    took = []
    for nonce in (1, 2):
        begun = trio.current_time()
        await room["first"].agree(pair[0], room.statement(SELLER, nonce=nonce))
        took.append(trio.current_time() - begun)
    assert took[0] >= 2.0
    assert took[1] < 1.5
    room.wires.before = None  # it is back, and counts again
    for nonce in range(3, 3 + leading.ON_TIME):
        assert room["first"].lead._late
        await room["first"].agree(pair[0], room.statement(SELLER, nonce=nonce))
    assert room["first"].lead._late == {}


async def test_no_signature_is_handed_on_that_the_escrow_would_not_take(
    room: Room, pair: tuple[bytes, bytes]
) -> None:
    trial = await room["first"].agree(*pair)
    gone = Party("second").account
    room.escrow.seated.discard(gone)
    quote, joined = await room["first"].sign(*pair, trial)
    assert gone not in signers_of(digest(DOMAIN, quote), joined)
    room.escrow.seated.discard(Party("third").account)
    error = await refusal(room["first"].sign(*pair, trial, nonce="next"))
    assert error.reason == "below-quorum"


async def test_a_lead_without_a_seat_asks_for_no_signature(
    room: Room, pair: tuple[bytes, bytes]
) -> None:
    trial = await room["first"].agree(*pair)
    room.escrow.seated.discard(Party("first").account)
    room.wires.asked.clear()
    error = await refusal(room["first"].sign(*pair, trial))
    assert error.reason == "not-of-the-quorum"
    assert room.wires.asked == []


async def test_a_lead_signs_before_it_asks_others_to(room: Room, pair: tuple[bytes, bytes]) -> None:
    """What it would not sign itself, two quotes for one trade, it asks nobody for."""
    trial = await room["first"].agree(*pair)
    await room["first"].sign(*pair, trial)
    room.wires.asked.clear()
    sale = Sale(room["first"], *pair, trial, word("nonce"), quote={"grace": 7})
    act = room["first"].lead.cosign(sale.case, trial, sale.quote, sale.receipt, sale.bids())
    assert (await refusal(act)).reason == "trade-id-used"
    assert room.wires.asked == []


async def test_an_endpoint_that_is_away_is_said_so(room: Room, pair: tuple[bytes, bytes]) -> None:
    room.escrow.away = True
    assert (await refusal(room["first"].agree(*pair))).reason == "chain-away"
    room.escrow.away = False
    assert len(await room["first"].trade(*pair)) == 2 * 65


async def test_strangers_are_not_remembered_without_end(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "MAX_STRANGERS", 3)
    of_first = room["first"].bench._seats
    strangers = [Party(f"stranger {number}").account for number in range(5)]
    for _ in range(2):
        for account in strangers:
            assert not await of_first.is_seated(account)
    assert list(of_first._strangers) == strangers[-3:]


async def test_a_reserve_that_is_said_anew_is_a_new_offer_of_the_same_weights(
    room: Room, pair: tuple[bytes, bytes]
) -> None:
    base, sold = pair
    first = room["first"]
    trial = await first.agree(base, sold)
    again = room.statement(SELLER, nonce=2)
    renewed = await first.agree(base, again, trial=first.measure(base, sold))
    assert renewed.evaluation == trial.evaluation
    for offer, nonce in ((sold, "old"), (again, "new")):
        _, joined = await first.sign(base, offer, trial, nonce=nonce)
        assert len(joined) == 2 * 65
    assert len(first.lead._agreed) == 2
    assert dataclasses.asdict(renewed)["recipe"] == trial.recipe
