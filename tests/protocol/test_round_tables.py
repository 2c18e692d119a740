"""Both sides of a round do what the tables in their essays say, and nothing else."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest

from node.protocol import convening, participation
from node.protocol.clearing import EXPIRY, Opening
from node.protocol.convening import CONVENING_ENDS, Convening, ConveningState
from node.protocol.errors import LocalProtocolError
from node.protocol.participation import (
    PARTICIPATION_ENDS,
    PAY_MARGIN,
    UNPUBLISHED_SECONDS,
    Act,
    Judgement,
    Participation,
    ParticipationState,
)
from node.protocol.pot import NO_ROOT, Sight
from node.protocol.schema import from_map, to_map
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei
from tests.protocol import tables

US = Address("0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF")
ROUND = Digest(b"\x07" * 32)
ROOT, OTHER = Digest(b"\x01" * 32), Digest(b"\x02" * 32)
PAY_BY, POST_BY, STANDS = UnixTime(1_000), UnixTime(2_000), UnixTime(1_500)
EXPIRES = UnixTime(STANDS + EXPIRY)
DUE = Wei(90)
OPENING = Opening(
    round=ROUND, asset=NO_ADDRESS, pay_by=PAY_BY, post_by=POST_BY, challenge_period=100
)


def sight(now: int, **seen: object) -> Sight:
    return dataclasses.replace(Sight(now=UnixTime(now)), **seen)  # type: ignore[arg-type]


def posted(now: int, root: Digest = ROOT, **seen: object) -> Sight:
    there = {"stands_from": STANDS, "expires_at": EXPIRES, "pot": DUE, "paid": DUE, "version": 1}
    return sight(now, root=root, **{**there, **seen})


def a_part(state: str, **changes: object) -> Participation:
    begun = Participation.accepted(
        number=1, clearing_house=US, broker=US, opening=OPENING, due=DUE, inputs=b"{}",
        base_root=ROOT,
    )  # fmt: skip
    judged = state in {"agreed", "objecting", "outlasting", "claiming", "credited"}
    wrong = state in {"objecting", "outlasting"}
    changed = {
        "state": state,
        **({"judged": ROOT} if judged else {}),
        **({"reason": "wrong-root"} if wrong else {}),
        **changes,
    }
    return Participation(dataclasses.replace(begun.record, **changed))  # type: ignore[arg-type]


Seen = dict[tuple[str, str], tuple[Sight, dict[str, object]]]
OWED: dict[str, object] = {"leaf": 0, "amount": Wei(5), "accounts": (US,), "amounts": (Wei(5),)}
SEEN_BY_US: Seen = {
    ("paying", "nothing is due"): (sight(10), {"due": Wei(0)}),
    ("paying", "what is due was paid"): (sight(10, paid=DUE), {}),
    ("paying", "time to pay, less than is due was paid"): (
        sight(PAY_BY - PAY_MARGIN, paid=Wei(1)), {},
    ),
    ("paying", "past pay_by, less was paid"): (sight(PAY_BY + 1, paid=Wei(1)), {}),
    ("paying", "past pay_by, nothing was paid"): (sight(PAY_BY + 1), {}),
    ("waiting", "a root"): (posted(1_100), {}),
    ("waiting", "no root, past post_by, we paid"): (sight(POST_BY + 1, paid=DUE), {}),
    ("waiting", "no root, past post_by, we paid nothing"): (sight(POST_BY + 1), {}),
    ("waiting", "a root that stands for long, and no inputs"): (
        posted(STANDS + UNPUBLISHED_SECONDS + 1), {},
    ),
    ("agreed", "another root, or none"): (posted(1_100, OTHER), OWED),
    ("agreed", "the root stands, and owes us"): (posted(STANDS), OWED),
    ("agreed", "the root stands, and owes us nothing"): (posted(STANDS), {}),
    ("objecting", "another root, or none"): (sight(1_100, paid=DUE), OWED),
    ("objecting", "the root stands, and we have a leaf in it"): (posted(STANDS), OWED),
    ("objecting", "the root stands, we have none, and paid"): (posted(STANDS), {}),
    ("objecting", "the root stands, we have none, and paid none"): (
        posted(STANDS, paid=Wei(0)), {},
    ),
    ("outlasting", "a root of which we saw no inputs yet"): (
        posted(EXPIRES - 1), {"judged": NO_ROOT, "reason": "unpublished"},
    ),
    ("outlasting", "the root can be ended"): (posted(EXPIRES), {}),
    ("outlasting", "no root any more, and ours is in the pot"): (sight(EXPIRES, paid=DUE), {}),
    ("outlasting", "nothing of ours is in the pot"): (sight(EXPIRES), {}),
    ("claiming", "claimed"): (posted(STANDS, claimed=True), OWED),
    ("claiming", "the root is no more"): (sight(EXPIRES, paid=DUE), OWED),
    ("reclaiming", "nothing of ours is in the pot"): (sight(POST_BY + 1), {}),
    ("credited", "nothing is owed to us; the root was ours"): (posted(STANDS), OWED),
    ("credited", "nothing is owed to us; it was not; we paid"): (
        posted(STANDS), {**OWED, "reason": "wrong-root"},
    ),
    ("credited", "nothing is owed to us; it was not"): (
        posted(STANDS, paid=Wei(0)), {**OWED, "reason": "wrong-root"},
    ),
}  # fmt: skip


def judgement(*, right: bool) -> Judgement:
    return Judgement(
        root=ROOT, right=right, reason="" if right else "wrong-root", leaf=0, amount=Wei(5),
        inputs=b"{}",
    )  # fmt: skip


JUDGED = {
    "judged: it is what we computed": judgement(right=True),
    "judged: it is another": judgement(right=False),
}


def of_table(module: ModuleType) -> list[tuple[str, ...]]:
    return tables.rows(module)


@pytest.mark.parametrize("row", of_table(participation), ids=" · ".join)
def test_a_participant_does_what_its_table_says(row: tuple[str, ...]) -> None:
    state, seen, following, effects = row
    if seen in JUDGED:
        part = a_part(state)
        acts = part.judge(JUDGED[seen])
    else:
        look, changes = SEEN_BY_US[state, seen]
        part = a_part(state, **changes)
        acts = part.see(look)
    assert part.state.value == following
    assert [act.value for act in acts] == effects.split()


def a_convening(state: str, **changes: object) -> Convening:
    begun = Convening.agreed(
        number=1, since=3, opening=OPENING, statements=(b"x",), dues=(DUE,), inputs=b"{}"
    )
    changed = {"state": state, **changes}
    return Convening(dataclasses.replace(begun.record, **changed))  # type: ignore[arg-type]


KEPT: dict[str, object] = {"accounts": (US,), "amounts": (Wei(5),), "leaf": 0}
SEEN_BY_BROKER: Seen = {
    ("opening", "the round is on chain"): (sight(10), {}),
    ("opening", "it is not, in time"): (sight(10, opened=False), {}),
    ("opening", "it is not, past pay_by"): (sight(PAY_BY + 1, opened=False), {}),
    ("collecting", "past pay_by, something was paid"): (sight(PAY_BY + 1, pot=DUE), {}),
    ("collecting", "past pay_by, nothing was paid"): (sight(PAY_BY + 1), {}),
    ("computing", "past post_by"): (sight(POST_BY + 1, pot=DUE), {}),
    ("posting", "a root is there"): (posted(1_100), KEPT),
    ("posting", "none, in time"): (sight(1_100, pot=DUE), KEPT),
    ("posting", "none, past post_by"): (sight(POST_BY + 1, pot=DUE), KEPT),
    ("challenged", "it was taken back, in time"): (sight(1_200, pot=DUE), KEPT),
    ("challenged", "it was taken back, past post_by"): (sight(POST_BY + 1, pot=DUE), KEPT),
    ("challenged", "it stands, and owes us"): (posted(STANDS), KEPT),
    ("challenged", "it stands, and owes us nothing"): (posted(STANDS), {}),
    ("claiming", "claimed"): (posted(STANDS, claimed=True), KEPT),
    ("claiming", "the root expired"): (sight(EXPIRES), KEPT),
    ("credited", "nothing is owed to us"): (posted(STANDS), KEPT),
}


@pytest.mark.parametrize("row", of_table(convening), ids=" · ".join)
def test_a_broker_does_what_its_table_says(row: tuple[str, ...]) -> None:
    state, seen, following, effects = row
    if seen == "computed":
        machine = a_convening(state)
        duties = machine.computed(inputs=b"{}", accounts=(US,), amounts=(DUE,), leaf=None)
    else:
        look, changes = SEEN_BY_BROKER[state, seen]
        machine = a_convening(state, **changes)
        duties = machine.see(look)
    assert machine.state.value == following
    assert [duty.value for duty in duties] == effects.split()


def test_every_row_of_both_tables_was_seen() -> None:
    told = {row[:2] for row in of_table(participation) if row[1] not in JUDGED}
    assert told == set(SEEN_BY_US)
    assert {row[:2] for row in of_table(convening)} - {("computing", "computed")} == set(
        SEEN_BY_BROKER
    )


@pytest.mark.parametrize("module", [participation, convening], ids=["participant", "broker"])
def test_the_graph_beside_a_machine_is_its_table(module: ModuleType) -> None:
    name = module.__name__.rpartition(".")[2]
    drawn = sorted(tables.edges(name))
    assert drawn == sorted(
        (state, following, seen) for state, seen, following, _ in of_table(module)
    )


def test_a_round_that_is_over_wants_nothing_more() -> None:
    for part_end in PARTICIPATION_ENDS:
        assert a_part(part_end.value).see(posted(STANDS, credit=Wei(9))) == []
    for end in CONVENING_ENDS:
        assert a_convening(end.value).see(posted(STANDS, credit=Wei(9))) == []


def test_nothing_is_paid_in_the_last_seconds() -> None:
    assert a_part("paying").see(sight(PAY_BY - PAY_MARGIN + 1)) == []


@pytest.mark.parametrize("paid", [0, 1, DUE - 1])
def test_what_a_stranger_paid_for_us_keeps_us_from_paying_no_more_than_that(paid: int) -> None:
    part, seen = a_part("paying"), sight(10, paid=Wei(paid))
    assert part.see(seen) == [Act.PAY]
    assert part.lacks(seen) == DUE - paid
    assert part.see(sight(11, paid=Wei(paid + part.lacks(seen)))) == []
    assert part.state is ParticipationState.WAITING


def test_what_is_owed_is_not_claimed_before_the_root_stands() -> None:
    part = a_part("agreed", **OWED)
    assert part.see(posted(STANDS - 1)) == []
    assert part.state is ParticipationState.AGREED
    broker = a_convening("challenged", **KEPT)
    assert broker.see(posted(STANDS - 1)) == []
    assert broker.state is ConveningState.CHALLENGED


def test_a_root_that_took_the_place_of_one_is_judged_anew() -> None:
    part = a_part("waiting")
    part.judge(judgement(right=False))
    assert part.see(posted(1_200, OTHER)) == []
    assert (part.state, part.record.reason, part.record.judged) == (
        ParticipationState.WAITING, "", NO_ROOT,
    )  # fmt: skip
    part.judge(dataclasses.replace(judgement(right=True), root=OTHER))
    assert part.state is ParticipationState.AGREED


def test_a_wrong_root_that_stands_is_outlasted_in_silence_once_it_was_judged() -> None:
    part = a_part("outlasting")
    assert part.see(posted(EXPIRES - 1)) == []
    assert (part.over, part.outlasting, part.wronged) == (False, True, True)


def test_what_is_published_late_is_judged_and_claimed_after_all() -> None:
    part = a_part("waiting")
    assert part.see(posted(STANDS + UNPUBLISHED_SECONDS + 1)) == []
    assert (part.outlasting, part.wronged) == (True, True)
    late = posted(STANDS + 9_000)
    assert part.see(late) == [Act.JUDGE]
    part.judge(dataclasses.replace(judgement(right=True), accounts=(US,), amounts=(Wei(5),)))
    assert part.see(late) == [Act.CLAIM]
    assert (part.outlasting, part.wronged) == (False, False)


def test_a_root_that_never_came_is_nobodys_lie() -> None:
    part = a_part("waiting")
    assert part.see(sight(POST_BY + 1, paid=DUE)) == [Act.RECLAIM]
    assert not part.wronged
    assert part.see(sight(POST_BY + 2, credit=DUE)) == [Act.WITHDRAW]
    assert part.see(sight(POST_BY + 3)) == []
    assert part.state is ParticipationState.SETTLED


def test_a_judgement_out_of_its_turn_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="paying"):
        a_part("paying").judge(judgement(right=True))
    with pytest.raises(LocalProtocolError, match="posting"):
        a_convening("posting").computed(inputs=b"", accounts=(), amounts=(), leaf=None)


def test_what_the_journal_keeps_of_a_round_is_read_back() -> None:
    part, broker = a_part("agreed", **OWED), a_convening("challenged", **KEPT)
    assert from_map(type(part.record), to_map(part.record)) == part.record
    assert from_map(type(broker.record), to_map(broker.record)) == broker.record
