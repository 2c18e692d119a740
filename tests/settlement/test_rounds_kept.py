"""Rounds in a journal: what is still to be done, and what is forgotten once it is over."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from node.journal import Journal, TransactionRow
from node.protocol.clearing import Opening
from node.protocol.convening import Convening, ConveningRecord
from node.protocol.participation import Participation, ParticipationRecord
from node.protocol.types import NO_ADDRESS, Digest, UnixTime, Wei
from node.settlement import rounds
from tests.settlement.trades import BROKER, BUYER


def opening(number: int) -> Opening:
    return Opening(
        round=Digest(bytes([number]) * 32), asset=NO_ADDRESS, pay_by=UnixTime(10),
        post_by=UnixTime(20), challenge_period=5,
    )  # fmt: skip


def joined(number: int, state: str) -> ParticipationRecord:
    part = Participation.accepted(
        number=number, clearing_house=BUYER, broker=BROKER, opening=opening(number), due=Wei(9),
        inputs=b"{}", base_root=Digest(bytes(32)),
    )  # fmt: skip
    return dataclasses.replace(part.record, state=state)


def convened(number: int, state: str) -> ConveningRecord:
    made = Convening.agreed(
        number=number, since=3, opening=opening(number), statements=(b"x",), dues=(Wei(9),),
        inputs=b"{}",
    )  # fmt: skip
    return dataclasses.replace(made.record, state=state)


@pytest.fixture
def journal(memory: Path) -> Journal:
    return Journal(memory / "rounds.db")


def attempt(journal: Journal, number: int, nonce: int, *, mined: bool) -> None:
    name = Digest(bytes([number]) * 32)
    row = TransactionRow(
        trade_id=name, step="clearing-pay", attempt=0, nonce=nonce,
        hash=Digest(bytes([nonce + 100]) * 32), raw=b"raw",
    )  # fmt: skip
    journal.save_transaction(row)
    if mined:
        journal.mark_mined(row.hash, gas=1, block=1, succeeded=True)


@pytest.mark.parametrize(
    ("state", "count"),
    [("paying", 1), ("waiting", 1), ("credited", 1), ("outlasting", 0), ("settled", 0),
     ("absent", 0), ("wronged", 0)],
)  # fmt: skip
def test_what_only_waits_for_a_root_to_expire_is_not_waited_for(
    journal: Journal, state: str, count: int
) -> None:
    rounds.save(journal, rounds.JOINED, 1, joined(1, state))
    assert rounds.unsettled(journal) == count


def test_a_broker_has_not_settled_what_it_convened_before_that_is_over(journal: Journal) -> None:
    for number, state in enumerate(["opening", "collecting", "challenged", "over", "failed"]):
        rounds.save(journal, rounds.CONVENED, number, convened(number, state))
    assert rounds.unsettled(journal) == 3


def test_rounds_are_forgotten_with_the_transactions_that_can_be_mined_no_more(
    journal: Journal,
) -> None:
    old, kept = joined(1, "settled"), joined(2, "settled")
    for record in (old, kept):
        rounds.save(journal, rounds.JOINED, record.number, record)
    attempt(journal, 1, 0, mined=True)
    attempt(journal, 2, 1, mined=True)
    rounds.forget(journal, rounds.JOINED, [old])
    assert rounds.recall(journal, rounds.JOINED, ParticipationRecord) == {2: kept}
    assert journal.transactions(old.opening.round) == []
    assert len(journal.transactions(kept.opening.round)) == 1


def test_a_transaction_that_the_chain_may_still_take_is_not_forgotten(journal: Journal) -> None:
    attempt(journal, 1, 4, mined=False)
    attempt(journal, 2, 3, mined=True)
    rounds.forget(journal, rounds.JOINED, [joined(1, "settled")])
    assert [row.nonce for row in journal.unmined_transactions(0, 9)] == [4]


def test_rounds_that_were_not_opened_are_kept_for_a_while(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "KEPT_OFF", 2)
    for number in (7, 8, 9):
        rounds.save_off(journal, number, "infeasible", b"{}")
    assert sorted(journal.facts(rounds.OFF)) == [f"{rounds.OFF}{n:08}" for n in (8, 9)]
