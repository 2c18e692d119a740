"""Any of the four processes may die at any moment: nobody loses money or goods.

`test_every_death` is the whole table, step × victim × outcome (``make test-slow``); the
default suite plays the moments at which most is at stake.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.drill import (
    CHAIN_MOMENTS,
    MOMENTS,
    REFUND_MOMENTS,
    VICTIMS,
    Case,
    Drill,
    Moment,
    table,
)

FUND_SENT = next(m for m in MOMENTS if (m.step, m.phase) == ("fund", "sent"))
GOOD_ENDS = {
    "buyer has the weights, seller the money",
    "buyer has its money, seller its key",
    "nothing moved",
}

FUNDED_BY_THEN = {(m.step, m.phase) for m in MOMENTS[MOMENTS.index(FUND_SENT) :]}


def play(
    folder: Path,
    kills: list[tuple[Moment, str]],
    refunds: list[tuple[Moment, str]],
) -> list[Case]:
    """Kill at each moment in turn, in one market, and see all its trades to their ends."""
    with Drill(folder).running() as drill:
        cases = [drill.kill_at(moment, victim) for moment, victim in kills]
        cases += [drill.kill_seller_and_at_refund(m, victim) for m, victim in refunds]
        ledger = drill.await_ends(cases)
        text = table(cases)
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        print(text)
        bad = [case for case in cases if case.outcome not in GOOD_ENDS]
        assert not bad, table(bad)
        assert ledger.stuck == 0
        receipts = drill.receipts()
        for case in cases:
            if case.outcome.startswith("buyer has the weights"):
                assert drill.bought_weights(case.trade_id)
                assert case.trade_id in receipts, case
        return cases


def moment(step: str, phase: str, actor: str) -> Moment:
    return next(
        m
        for m in (*MOMENTS, *REFUND_MOMENTS, *CHAIN_MOMENTS)
        if (m.step, m.phase, m.actor) == (step, phase, actor)
    )


def test_the_deaths_at_which_most_is_at_stake(tmp_path: Path) -> None:
    """Each of the four, where its word or its money has just left it; and nobody to reveal."""
    kills = [
        (moment("answer quote", "sent", "broker"), "broker"),
        (moment("fund", "sent", "buyer"), "buyer"),
        (moment("reveal", "sent", "seller"), "seller"),
        (moment("fund", "executed", "chain"), "chain"),
    ]
    cases = play(tmp_path, kills, [(moment("refund", "saved", "buyer"), "seller")])
    assert cases[-1].outcome == "buyer has its money, seller its key"
    assert sum(case.outcome.startswith("buyer has the weights") for case in cases) >= 3


@pytest.mark.slow
def test_every_death(tmp_path: Path) -> None:
    kills = [(m, victim) for m in MOMENTS for victim in VICTIMS]
    kills += [(m, "chain") for m in CHAIN_MOMENTS]
    refunds = [(m, victim) for m in REFUND_MOMENTS for victim in VICTIMS]
    cases = play(tmp_path, kills, refunds)
    for case in cases:
        if case.moment in REFUND_MOMENTS:
            assert case.outcome == "buyer has its money, seller its key", case
        elif (case.moment.step, case.moment.phase) in FUNDED_BY_THEN:
            assert case.outcome != "nothing moved", case
    assert sum(case.outcome.startswith("buyer has the weights") for case in cases) > 40
