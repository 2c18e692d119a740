"""Figures are sealed, then opened for one set, and only what is close to one's own is signed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.quorum import (
    BOUND_TOLERANCE,
    GAIN_TOLERANCE,
    LOSS_TOLERANCE,
    Ballot,
    BallotState,
    Commitment,
    Figure,
    commitment_to,
    figure_of,
    is_close,
    join_signatures,
    lower_median,
    sealed,
    with_figure,
)
from node.protocol.signing import recover, sign_digest
from node.protocol.types import Digest, Millionths
from tests.quorum.brokers import (
    DOMAIN,
    SUBJECT,
    Seat,
    account_of,
    figure,
    key_of,
    reveal,
    seal,
    seats,
)

THREE = [figure(100_000), figure(100_003), figure(99_998)]


def refuses(reason: str, act: Callable[[], Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        act()
    assert caught.value.reason == reason


def test_honest_brokers_agree_on_one_evaluation_whoever_computes_it() -> None:
    brokers = seats(THREE, needed=2)
    openings = reveal(brokers)
    agreed = {broker.ballot.settle(openings).hash for broker in brokers}
    assert len(agreed) == 1
    assert {broker.ballot.state for broker in brokers} == {BallotState.AGREED}
    found = brokers[0].ballot.settle(openings)
    assert (found.gain, found.bound) == (100_000, 99_950)
    assert sealed(found) == sealed(SUBJECT)


def test_a_figure_says_nothing_before_it_is_opened_and_nobody_can_say_it_again() -> None:
    first, second, _ = seats([figure(7), figure(7), figure(7)], needed=2)
    assert first.commit().commitment != second.commit().commitment
    salt, other = Digest(bytes(32)), Digest(bytes([1]) * 32)
    said = {
        commitment_to(name, account_of(who), what, with_salt)
        for name in (SUBJECT.hash, sealed(SUBJECT).hash)
        for who in (0, 1)
        for what in (figure(7), figure(8), figure(7, margin=51))
        for with_salt in (salt, other)
    }
    assert len(said) == 2 * 2 * 3 * 2


def test_nobody_opens_before_it_sealed_or_settles_before_it_opened() -> None:
    first, second = seats(THREE[:2], needed=2)
    refuses("not-committed", lambda: first.ballot.open((), set()))
    refuses("not-committed", lambda: first.ballot.settle(()))
    fixed = seal([first, second])
    opening = second.ballot.open(fixed, {first.account, second.account})
    refuses("not-revealed", lambda: first.ballot.settle((opening,)))
    with pytest.raises(LocalProtocolError):
        first.ballot.signed()


def broken_sets(brokers: list[Seat]) -> dict[str, tuple[Commitment, ...]]:
    first, second, third = seal(brokers)
    stranger = seats({9: figure(5)}, needed=2)[0].commit()
    forged = dataclasses.replace(second, commitment=Digest(bytes(32)))
    return {
        "below-quorum": (first,),
        "unsorted-brokers": (second, first, third),
        "not-our-commitment": (second, third),
        "bad-commitment": (first, forged, third),
        "not-of-the-quorum": tuple(
            sorted((first, second, stranger), key=lambda c: bytes.fromhex(c.broker[2:]))
        ),
    }


@pytest.mark.parametrize(
    "reason",
    [
        "below-quorum",
        "unsorted-brokers",
        "not-our-commitment",
        "bad-commitment",
        "not-of-the-quorum",
    ],
)
def test_a_set_that_is_no_quorum_is_not_opened_for(reason: str) -> None:
    brokers = seats(THREE, needed=2)
    seated = {broker.account for broker in brokers}
    first = brokers[0].ballot
    wrong = broken_sets(brokers)[reason]
    refuses(reason, lambda: first.open(wrong, seated))
    assert first.state is BallotState.COMMITTED


def test_the_same_broker_twice_is_one_broker() -> None:
    brokers = seats(THREE, needed=2)
    first = brokers[0].commit()
    refuses("unsorted-brokers", lambda: brokers[0].ballot.open((first, first), {first.broker}))


def test_a_figure_is_opened_for_one_set_only() -> None:
    brokers = seats(THREE, needed=2)
    fixed, seated = seal(brokers), {broker.account for broker in brokers}
    first = brokers[0].ballot
    opening = first.open(fixed, seated)
    assert first.open(fixed, seated) == opening
    refuses("another-set", lambda: first.open(fixed[:2], seated))


def test_a_figure_that_was_not_sealed_or_cannot_be_one_is_dropped() -> None:
    absurd = Figure(loss_before=10, loss_after=5, gain=Millionths(9), bound=Millionths(9))
    first, second, third = seats(THREE, needed=2)
    openings = reveal([first, second, third])
    ballot = first.ballot
    for wrong in (
        dataclasses.replace(openings[1], figure=figure(100_004)),
        dataclasses.replace(openings[1], salt=Digest(bytes(32))),
        dataclasses.replace(openings[1], broker=account_of(9)),
    ):
        refuses("bad-opening", lambda wrong=wrong: ballot.settle((openings[0], wrong)))  # type: ignore[misc]
    refuses("not-our-opening", lambda: ballot.settle(openings[1:]))
    refuses("below-quorum", lambda: ballot.settle(openings[:1]))
    refuses("bad-opening", lambda: ballot.settle((openings[0], openings[0])))
    refuses("impossible-measurement", lambda: Ballot(
        DOMAIN, account_of(0), SUBJECT, needed=2
    ).commit(absurd, Digest(bytes(32))))  # fmt: skip
    assert ballot.settle(openings[:2]).gain in (99_998, 100_000, 100_003)


def test_what_was_agreed_stays_as_it_is() -> None:
    brokers = seats(THREE, needed=2)
    openings = reveal(brokers)
    ballot = brokers[0].ballot
    agreed = ballot.settle(openings)
    ballot.signed()
    ballot.signed()
    assert ballot.settle(openings) is agreed
    others = (openings[:2], (openings[0], openings[2]))
    medians = {lower_median([o.figure for o in pair]) for pair in others} - {figure_of(agreed)}
    assert medians
    for pair in others:
        if lower_median([o.figure for o in pair]) in medians:
            refuses("another-median", lambda pair=pair: ballot.settle(pair))  # type: ignore[misc]
    assert ballot.state is BallotState.SIGNED


def test_an_honest_broker_signs_for_no_median_that_it_could_not_have_measured() -> None:
    far = figure(100_000 - GAIN_TOLERANCE - 2)
    both = seats({0: figure(100_000), 1: far}, needed=2)
    openings = reveal(both)
    one = next(broker for broker in both if broker.number == 0)
    refuses("figures-differ", lambda: one.ballot.settle(openings))
    assert one.ballot.state is BallotState.REFUSED
    refuses("figures-differ", lambda: one.ballot.settle(openings))
    with pytest.raises(LocalProtocolError):
        one.ballot.signed()


@pytest.mark.parametrize("off", [-1, 1])
def test_noise_up_to_the_tolerance_is_never_punished(off: int) -> None:
    ours = figure(100_000)
    near, far = (
        dataclasses.replace(
            ours, gain=Millionths(ours.gain + off * by), bound=Millionths(ours.bound - 1)
        )
        for by in (GAIN_TOLERANCE, GAIN_TOLERANCE + 2)
    )
    assert is_close(ours, near)
    assert not is_close(ours, far)
    assert is_close(ours, figure(100_000, margin=50 + off * BOUND_TOLERANCE))
    assert not is_close(ours, figure(100_000, margin=50 + off * (BOUND_TOLERANCE + 2)))
    assert is_close(ours, dataclasses.replace(ours, loss_after=shifted(ours.loss_after, off)))
    assert not is_close(
        ours, dataclasses.replace(ours, loss_after=shifted(ours.loss_after, 2 * off))
    )


def shifted(loss: int, by: int) -> int:
    return loss + by * round(LOSS_TOLERANCE * loss)


def test_a_merge_that_does_harm_has_noise_to_match() -> None:
    """A loss of a thousand times the buyer's is no more exact, relative to the buyer's."""
    before = 10**9
    one, other = (
        Figure(
            loss_before=before,
            loss_after=after,
            gain=Millionths((before - after) // 1_000),
            bound=Millionths((before - after) // 1_000 - 50),
        )
        for after in (1_000 * before, 1_000 * before + 10 * before // 1_000)
    )
    assert other.gain - one.gain < -GAIN_TOLERANCE
    assert is_close(one, other)


def test_signatures_come_by_rising_account() -> None:
    name = Digest(bytes([7]) * 32)
    given = {account_of(n): sign_digest(key_of(n), name) for n in range(5)}
    joined = join_signatures(given)
    found = [recover(name, joined[at : at + 65]) for at in range(0, len(joined), 65)]
    assert found == sorted(given, key=lambda account: bytes.fromhex(account[2:]))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_comes_and_in_whatever_order_nobody_signs_what_it_did_not_agree_to(
    data: st.DataObject,
) -> None:
    gains = data.draw(st.lists(st.integers(-300_000, 900_000), min_size=2, max_size=5))
    needed = data.draw(st.integers(1, len(gains)))
    brokers = seats([figure(gain) for gain in gains], needed=needed)
    seated = {broker.account for broker in brokers}
    fixed = seal(brokers)
    ours = data.draw(st.sampled_from(brokers))
    openings = tuple(broker.ballot.open(fixed, seated) for broker in brokers)
    for _ in range(4):
        part = tuple(o for o in openings if data.draw(st.booleans()))
        try:
            agreed = ours.ballot.settle(part)
        except RemoteProtocolError:
            continue
        assert is_close(ours.said, figure_of(agreed))
        assert len(part) >= needed
        assert agreed == with_figure(sealed(SUBJECT), lower_median([o.figure for o in part]))
        ours.ballot.signed()
