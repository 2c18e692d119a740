"""A lead that lies, in each way that it can: no honest member signs, and the pair lives on.

After each lie another broker leads the same pair to the same member, which signs for it; and so it
does for the liar, once that is honest.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from broker_node.quorum import docket
from broker_node.quorum.docket import MAX_BALLOTS
from node.protocol.bids import BidAndAsk
from node.protocol.messages import Opened, OpenFigure, Replay
from node.protocol.quorum import (
    Ballot,
    Commitment,
    Opening,
    figure_of,
    with_figure,
)
from node.protocol.signing import sign_digest
from node.protocol.types import Digest, Millionths, UnixTime, Wei
from tests.protocol.cast import BUYER, DOMAIN, SELLER, STRANGER, Party, word
from tests.quorum.chamber import Room, Sale, open_room
from tests.quorum.liar import Liar, by_account, nothing_came_of_it, refused, signatures_of, trades
from tests.quorum.quorum_market import Measured

T = TypeVar("T")


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with open_room(tmp_path) as room:
        yield room


# ── what was to be measured ──

SUBJECTS: dict[str, tuple[dict[str, Any], str]] = {
    "rows that choose": ({"choice_rows": 1}, "choice-rows"),
    "rows that score": ({"score_rows": 2}, "score-rows"),
    "another seed": ({"seed": word("a seed that flatters")}, "seed"),
    "other rows": ({"validation_root": word("rows")}, "validation-root"),
    "another base": ({"base_root": word("a base")}, "base-root"),
    "other weights": ({"sold_root": word("weights")}, "sold-root"),
    "another merge": ({"merged_root": word("a merge")}, "merged-root"),
    "another recipe": ({"recipe_hash": word("a recipe")}, "recipe-hash"),
    "another weight": ({"alpha": Millionths(7)}, "alpha"),
    "another task": ({"task": "another"}, "task"),
    "another notice": ({"notice_digest": word("a notice")}, "notice-digest"),
}


@pytest.mark.parametrize("what", SUBJECTS)
async def test_a_member_seals_nothing_that_was_not_to_be_measured(room: Room, what: str) -> None:
    changes, reason = SUBJECTS[what]
    liar = Liar(room)
    await refused(reason, liar.replay(**changes))
    await nothing_came_of_it(liar)


async def test_a_notice_may_not_say_how_many_rows_there_are(room: Room) -> None:
    liar = Liar(room)
    data = liar.lead.give_notice(validation_rows=500)
    liar.lead.station.take_in((data,))
    again = Liar(room, base=liar.base, sold=liar.sold)
    await refused("another-validation-set", again.replay())
    assert signatures_of(room["second"]) == []
    await trades(room, "third", base=liar.base, sold=liar.sold)


# ── the seed ──


async def test_a_broker_does_not_look_for_a_seed_that_suits_a_trial(room: Room) -> None:
    liar = Liar(room)
    await liar.replay()
    room.now += 1  # type: ignore[assignment]
    liar.lead.station.take_in((liar.lead.give_notice(seed=word("the next seed")),))
    ground = Liar(room, base=liar.base, sold=liar.sold)
    assert ground.trial.evaluation.seed != liar.trial.evaluation.seed
    error = await refused("seed-changed", ground.replay())
    assert f"trial_seed = 0x{word('the seed of first').hex()}" in error.detail
    room.restart("second")  # it remembers
    await refused("seed-changed", ground.replay())
    await trades(room, "third", base=liar.base, sold=liar.sold)
    # an honest one that had lost its journal goes on by the seed that its peers told it
    room.now += 1  # type: ignore[assignment]
    liar.lead.station.take_in((liar.lead.give_notice(),))
    await trades(room, "first", base=liar.base, sold=liar.sold)


async def test_the_seed_is_the_one_that_was_gossiped_before_there_was_anything_to_measure(
    room: Room,
) -> None:
    await room["second"].bench._member.pin_seeds()
    room.now += 1  # type: ignore[assignment]
    room["first"].station.take_in((room["first"].give_notice(seed=word("for the first pair")),))
    liar = Liar(room)
    await refused("seed-changed", liar.replay())
    await trades(room, "third", base=liar.base, sold=liar.sold)


async def test_other_rows_have_a_seed_of_their_own(tmp_path: Path) -> None:
    """All brokers of a market may move to other rows, each by a seed that it then names."""
    with open_room(tmp_path) as room:
        liar = Liar(room)
        await liar.replay()
        for name in room.brokers:
            room.appraisers[name].validation_root = word("new rows")  # type: ignore[misc]
            room.now += 1  # type: ignore[assignment]
            broker = room[name]
            data = broker.give_notice(seed=word(f"new seed of {name}"))
            for other in room.brokers.values():
                other.station.take_in((data,))
        await nothing_came_of_it(Liar(room, base=liar.base, sold=liar.sold))


# ── bid and ask ──

BIDS: dict[str, tuple[Callable[[Sale], BidAndAsk], str]] = {
    "a bid of its own": (lambda s: s.bids(buyer=Party("first")), "not-the-buyers-bid"),
    "an ask of its own": (lambda s: s.bids(seller=Party("first")), "not-the-sellers-ask"),
    "the buyer's ask": (lambda s: s.bids(seller=BUYER), "not-the-sellers-ask"),
    "those of another trade": (lambda s: s.bids(trade_id=word("a trade")), "wrong-trade-id"),
    "an ask for another offer": (
        lambda s: s.bids(offer_digest=word("a cheaper offer")),
        "another-offer",
    ),
    "a higher bid than was signed": (
        lambda s: dataclasses.replace(
            s.bids(), bid=dataclasses.replace(s.bids().bid, valuation=Wei(2 * s.valuation))
        ),
        "not-the-buyers-bid",
    ),
    "a lower ask than was signed": (
        lambda s: dataclasses.replace(
            s.bids(), asking=dataclasses.replace(s.bids().asking, ask=Wei(s.ask // 2))
        ),
        "not-the-sellers-ask",
    ),
    "another key": (
        lambda s: dataclasses.replace(
            s.bids(), bid=dataclasses.replace(s.bids().bid, buyer_key=word("the lead's key"))
        ),
        "not-the-buyers-bid",
    ),
    "a nonce that it does not follow from": (
        lambda s: dataclasses.replace(s.bids(), buyer_nonce=word("another nonce")),
        "wrong-trade-id",
    ),
    "no signature": (
        lambda s: dataclasses.replace(s.bids(), bid_signature=b""),
        "bad-signature",
    ),
}


@pytest.mark.parametrize("what", BIDS)
async def test_no_price_is_made_of_what_the_parties_did_not_sign(room: Room, what: str) -> None:
    bids, reason = BIDS[what]
    liar = Liar(room)
    await refused(reason, liar.cosign(bids=bids))
    await nothing_came_of_it(liar)


QUOTES: dict[str, tuple[dict[str, Any], str]] = {
    "a higher price": ({"price": Wei(9 * 10**14)}, "wrong-price"),
    "a lower price": ({"price": Wei(2 * 10**14)}, "wrong-price"),
    "no fee": ({"fee": Wei(0)}, "wrong-price"),
    "a trade id that was chosen": ({"trade_id": word("a trade of its choice")}, "wrong-trade-id"),
    "another buyer": ({"buyer": STRANGER.account}, "wrong-quote"),
    "another seller": ({"seller": STRANGER.account}, "wrong-quote"),
    "another encryptor": ({"encryptor": Party("second").account}, "wrong-quote"),
    "another treasury": ({"fee_recipient": STRANGER.account}, "wrong-quote"),
}


@pytest.mark.parametrize("what", QUOTES)
async def test_no_quote_is_signed_that_does_not_follow(room: Room, what: str) -> None:
    changes, reason = QUOTES[what]
    liar = Liar(room)
    await refused(reason, liar.cosign(quote=changes))
    await nothing_came_of_it(liar)


async def test_two_quotes_of_one_trade_are_signed_by_nobody(room: Room) -> None:
    liar = Liar(room)
    _, openings = await liar.open()
    await liar.cosign_for(openings)
    await refused("trade-id-used", liar.cosign_for(openings, quote={"grace": 7}))
    room.restart("second")
    _, openings = await liar.open()
    await refused("trade-id-used", liar.cosign_for(openings, quote={"grace": 7}))
    assert len(signatures_of(room["second"])) == 1
    await trades(room, "third", base=liar.base, sold=liar.sold)


# ── the figures ──


async def test_a_figure_that_is_made_up_is_not_signed_for(room: Room) -> None:
    liar = Liar(room)
    _, openings = await liar.open(Measured(times=10).figure())
    assert len({o.figure for o in openings}) == 2
    evaluation = with_figure(liar.trial.evaluation, Measured(times=10).figure())
    trial = dataclasses.replace(liar.trial, evaluation=evaluation)
    # the lower median of two is the lower of them: the honest one
    await refused("wrong-evaluation", liar.cosign_for(openings, trial=trial))
    _, openings = await liar.open(Measured(off=-90_000).figure())
    await refused("figures-differ", liar.cosign_for(openings))
    await nothing_came_of_it(liar)


async def test_what_was_sealed_is_opened_for_one_set_and_then_polled_anew(room: Room) -> None:
    liar = Liar(room)
    ballot, _ = await liar.open()
    first = await liar.replay()
    ours = by_account(first, *(c for c in ballot._set if c.broker == ballot._us))
    stale = next(c for c in ballot._set if c.broker != ballot._us)
    assert stale.commitment != first.commitment  # another salt
    other = Ballot(DOMAIN, ballot._us, liar.trial.evaluation, needed=2)
    signing = other.commit(figure_of(liar.trial.evaluation), word("another salt"))
    again = Commitment(
        broker=ballot._us,
        commitment=other.commitment,
        signature=sign_digest(liar.lead.party.account_key, signing),
    )
    question = OpenFigure(case=liar.case, commitments=by_account(again, stale))
    await refused("another-set", liar.ask(question, Opened))
    await liar.ask(OpenFigure(case=liar.case, commitments=ours), Opened)
    await nothing_came_of_it(liar)


async def test_a_figure_is_not_opened_beside_a_strangers(room: Room) -> None:
    liar = Liar(room)
    stranger = Ballot(DOMAIN, STRANGER.account, liar.trial.evaluation, needed=2)
    signing = stranger.commit(figure_of(liar.trial.evaluation), word("salt"))
    theirs = Commitment(
        broker=STRANGER.account,
        commitment=stranger.commitment,
        signature=sign_digest(STRANGER.account_key, signing),
    )
    await refused("not-of-the-quorum", liar.open(None, theirs))
    await nothing_came_of_it(liar)


async def test_nothing_is_opened_or_signed_that_was_not_sealed_here(room: Room) -> None:
    liar = Liar(room)
    _, openings = await liar.open()
    await refused("not-our-opening", liar.cosign_for(openings[:1]))
    forged = dataclasses.replace(openings[1], salt=word("another salt"))
    await refused("not-our-opening", liar.cosign_for((openings[0], forged)))
    await refused(
        "not-our-commitment", liar.ask(OpenFigure(case=liar.case, commitments=()), Opened)
    )
    await refused(
        "unknown-trial", liar.ask(OpenFigure(case=word("a case"), commitments=()), Opened)
    )
    await nothing_came_of_it(liar)


# ── the same weights under other statements ──


async def test_weights_that_are_offered_anew_are_another_case(room: Room) -> None:
    """What was agreed of one offer neither serves for another, nor stands in its way."""
    liar = Liar(room)
    cheap = room.statement(SELLER, reserve=Wei(5), nonce=2)
    poison = Liar(room, base=liar.base, sold=cheap)
    await poison.cosign()
    assert poison.case != liar.case
    await refused("unknown-trial", liar.ask(OpenFigure(case=liar.case, commitments=()), Opened))
    for name in ("first", "third"):
        await trades(room, name, base=liar.base, sold=liar.sold, nonce=f"old {name}")
        await trades(room, name, base=liar.base, sold=cheap, nonce=f"new {name}")


async def test_a_base_that_is_submitted_anew_is_another_case(room: Room) -> None:
    liar = Liar(room)
    again = room.statement(BUYER, name="base", nonce=2)
    poison = Liar(room, base=again, sold=liar.sold)
    await poison.open()
    await nothing_came_of_it(liar)


async def test_another_broker_measures_by_a_notice_of_its_own(room: Room) -> None:
    liar = Liar(room)
    notice = room["third"].station.book.data_of(room["third"].notice()[0])
    await refused("notice-digest", liar.replay(notice=notice, notice_digest=word("theirs")))
    digest_of_third = room["third"].notice()[0]
    await refused("notice-digest", liar.replay(notice=notice, notice_digest=digest_of_third))
    await nothing_came_of_it(liar)


# ── whoever signs does not trade ──


@pytest.mark.parametrize("party", ["first", "second"])
@pytest.mark.parametrize("side", ["buyer", "seller"])
async def test_no_broker_signs_where_it_or_its_lead_is_a_party(
    room: Room, party: str, side: str
) -> None:
    honest = Liar(room)
    if side == "buyer":
        liar = Liar(room, base=room.statement(Party(party), name="base", nonce=99))
    else:
        liar = Liar(room, sold=room.statement(Party(party), nonce=99))
    await refused("broker-is-a-party", liar.replay())
    if party == "first":
        await refused("broker-is-a-party", liar.lead.agree(liar.base, liar.sold))
    await nothing_came_of_it(honest)


@pytest.mark.parametrize("side", ["buyer", "seller"])
async def test_no_figure_is_opened_beside_that_of_a_party(room: Room, side: str) -> None:
    """A lead that has a party seal too finds no honest member that opens or signs."""
    third = Party("third")
    honest = Liar(room)
    of_party = {"base": room.statement(third, name="base", nonce=9)}
    if side == "seller":
        of_party = {"sold": room.statement(third, nonce=9)}
    liar = Liar(room, **of_party)
    theirs = Ballot(DOMAIN, third.account, liar.trial.evaluation, needed=2)
    figure, salt = figure_of(liar.trial.evaluation), word("salt")
    signing = theirs.commit(figure, salt)
    sealed = Commitment(
        broker=third.account,
        commitment=theirs.commitment,
        signature=sign_digest(third.account_key, signing),
    )
    await refused("broker-is-a-party", liar.open(None, sealed))
    _, openings = await liar.open()
    more = (*openings, Opening(broker=third.account, figure=figure, salt=salt))
    await refused("broker-is-a-party", liar.cosign_for(more))
    await nothing_came_of_it(honest)


# ── more than its share ──


async def test_a_lead_that_polls_for_ever_has_few_ballots(room: Room) -> None:
    liar = Liar(room)
    for _ in range(MAX_BALLOTS + 4):
        await liar.open()
    ((case,),) = (d._cases.values() for d in room["second"].bench._member._dockets.values())
    assert len(case._ballots) == MAX_BALLOTS
    for _ in range(MAX_BALLOTS + 4):
        await liar.cosign(nonce=Digest(secrets.token_bytes(32)))
    assert len(case._ballots) <= 2 * MAX_BALLOTS
    await trades(room, "third", base=liar.base, sold=liar.sold)


async def test_what_one_lead_asks_for_pushes_out_nothing_of_another(room: Room) -> None:
    third = Liar(room)
    room["second"].bench._member._places = 2
    trial = await room["third"].agree(third.base, third.sold)
    for nonce in range(2, 8):
        await Liar(room, base=third.base, sold=room.statement(SELLER, nonce=nonce)).open()
    room.wires.asked.clear()
    room.wires.handlers.pop(Party("first").peer_id)
    await room["third"].sign(third.base, third.sold, trial)
    assert room.wires.times(Party("second").peer_id, Replay) == 0  # it was not forgotten
    (ours, _) = room["second"].bench._member._dockets.values()
    assert len(ours._cases) <= 2


async def test_signatures_are_counted_for_each_lead(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docket, "SIGNATURES_A_DAY", 2)
    liar = Liar(room)
    _, openings = await liar.open()
    for number in (1, 2, 2, 1):  # the same again is no other
        await liar.cosign_for(openings, nonce=word(f"nonce {number}"))
    await refused("busy", liar.cosign_for(openings, nonce=word("nonce 3")))
    await trades(room, "third", base=liar.base, sold=liar.sold)


async def test_one_pair_cannot_have_all_signatures_of_an_honest_lead(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accounts are free: buyer and seller alike may be one that wants the lead silenced."""
    monkeypatch.setattr(docket, "OF_A_BUYER_A_DAY", 2)
    liar = Liar(room)
    _, openings = await liar.open()
    for number in (1, 2, 2):
        await liar.cosign_for(openings, nonce=word(f"nonce {number}"))
    await refused("busy", liar.cosign_for(openings, nonce=word("nonce 3")))
    another = Party("another buyer")
    base = room.statement(another, name="base", nonce=7)
    other = Liar(room, base=base, sold=liar.sold)
    await other.cosign(bids=lambda s: s.bids(buyer=another))
    ours = room["second"].bench._member._dockets[Party("first").account]
    assert sum(ours._of_buyer.values()) == 3
    ours.count_signature(UnixTime(room.now + docket.DAY), another.account)
    assert dict(ours._of_buyer) == {another.account: 1}


async def test_nothing_new_is_signed_for_an_offer_that_is_over(room: Room) -> None:
    """What was signed for it may have been forgotten, and a second quote would cost the bond."""
    liar = Liar(room)
    _, openings = await liar.open()
    await liar.cosign_for(openings)
    offer = room["first"]._take_in(liar.sold)[1]
    room.now = UnixTime(offer.expires_at - 1)
    ends = {"fund_by": UnixTime(room.now + 20), "reveal_by": UnixTime(room.now + 40)}
    await liar.cosign_for(openings, nonce=word("in time"), quote=ends)
    room.now = offer.expires_at
    await refused("expired", liar.cosign_for(openings, nonce=word("too late"), quote=ends))
