"""What a report says of rounds of a clearing house: to the wei, at a terminal and on the page."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from node.devnet.experiment import verdict
from node.devnet.report.clearing import clearing_fault, clearing_lines, rounds_table
from node.devnet.report.document import Report
from node.devnet.report.findings import headline, warnings
from tests.devnet.test_report_page import page_of
from tests.devnet.test_report_samples import HOSTILE, make_report
from tests.devnet.test_report_terminal import printed

DUE = 4_300_000_000_000_001


def party(name: str, roles: list[str], *, due: int, got: int) -> dict[str, Any]:
    return {
        "agent": name, "roles": roles, "alone": 0.653, "due": str(due), "paid": str(due),
        "got": str(got), "net": str(got - due), "ended": "settled",
    }  # fmt: skip


def a_round(at: int = 1, **changed: Any) -> dict[str, Any]:
    return {
        "round": at, "id": "0x07", "state": "over", "mechanism": "triplewin", "reason": "",
        "right": True, "certified": True, "broker_got": "0", "paid_in": str(DUE),
        "paid_out": str(DUE), "held": "0", "sum": "0",
        "parties": [
            party("agent-0", ["data seller", "model buyer"], due=DUE, got=DUE // 4),
            party("agent-1", ["data seller", "producer of model 0"], due=0, got=DUE - DUE // 4),
        ],
        "models": [{"performance": 0.7, "buyers": [0, 1]}],
        "figures": {"loop_gain": [0.01], "hurt": [[1]]},
        **changed,
    }  # fmt: skip


def ledger(**changed: Any) -> dict[str, Any]:
    amounts = {"paid_in": 2 * DUE, "claimed": 2 * DUE, "reclaimed": 0, "withdrawn": 2 * DUE,
               "held": 0, "credited": 0, "stuck": 0, **changed}  # fmt: skip
    balances = not any(amounts[name] for name in ("held", "credited", "stuck"))
    return {**{name: str(amount) for name, amount in amounts.items()}, "balances": balances}


def a_report(market: dict[str, Any] | None = None, *, mechanism: str = "triplewin") -> Report:
    report = make_report(seeds=1, arms=("out-of-market", "aligned"), trades_kept=0)
    report["legs"] = {}
    report["ledger"] = {**report["ledger"], **dict.fromkeys(  # type: ignore[typeddict-item]
        ("deposited", "paid_out", "fees", "refunded", "held", "credited", "stuck"), "0"
    )}  # fmt: skip
    report["settings"] = {**report["settings"], "mechanism": mechanism}
    report["clearing"] = [a_market() if market is None else market]
    return report


def a_market(**changed: Any) -> dict[str, Any]:
    return {
        "arm": "aligned", "seed": 0, "house": "0x00", "rounds": [a_round(1), a_round(2)],
        "off": [], "stayed_out": [], "disputed": [], "ledger": ledger(), **changed,
    }  # fmt: skip


def test_the_headline_is_of_rounds_and_not_of_trades_that_could_not_be_made() -> None:
    said = headline(a_report())
    assert said.startswith("Buying models (aligned) raised test accuracy by")
    assert "2 rounds cleared, 2 models sold: 0.008600 play-ether in, as much out" in said
    assert "Σ = 0 to the wei" in said
    assert "is −0.003225 to 0.003225" in said
    assert "trade" not in said
    assert headline(a_report(mechanism="shapley")).startswith("Pooling models (aligned)")


def test_a_run_of_rounds_in_which_all_adds_up_warns_of_nothing_and_succeeds() -> None:
    assert warnings(a_report()) == []
    assert verdict(a_report()) == ""


def test_every_wei_of_every_party_is_at_the_terminal_and_on_the_page() -> None:
    report = a_report()
    text, shown = printed(report, 400), page_of(report)
    for one in report["clearing"][0]["rounds"]:
        for each in one["parties"]:
            for amount in (each["due"], each["paid"], each["got"], each["net"]):
                assert amount in text
                assert amount in shown
    for role in ("data seller, producer of model 0", "data seller, model buyer"):
        assert role in text
        assert role in shown
    assert "certified, leaves computed again" in text
    assert f"in {DUE}, out {DUE}, broker 0, Σ 0" in text
    assert f"✓ paid in {2 * DUE} = claimed {2 * DUE} + taken back 0 + held 0" in text
    assert "pooling hurts model 0 by agent-1" in text
    assert '<a href="#rounds">Rounds</a>' in shown
    assert "No trade was made" not in shown + text


@pytest.mark.parametrize(
    ("changed", "fault", "warned"),
    [
        ({"ledger": ledger(held=3)}, "pots", "3 wei held"),
        ({"ledger": ledger(stuck=1)}, "pots", "1 wei stuck"),
        ({"ledger": ledger(credited=9)}, "pots", "9 wei not drawn"),
        ({"rounds": [a_round(sum="1")]}, "pots", "1 round with a sum that is not 0"),
        ({"rounds": [a_round(right=False)]}, "root", ""),
        ({"rounds": [a_round(certified=False)]}, "certificate", ""),
        ({"off": [{"reason": "infeasible", "figures": {}, "certified": False}]}, "certif", ""),
    ],
)
def test_what_is_wrong_with_a_round_fails_the_run_and_is_said(
    changed: dict[str, Any], fault: str, warned: str
) -> None:
    report = a_report(a_market(**changed))
    assert fault in verdict(report)
    assert clearing_fault(report) == verdict(report)
    if warned:
        assert any(warned in line for line in warnings(report))
        assert "DO NOT BALANCE" in headline(report)
    text = printed(report, 400)
    for name, word in (("right", "OTHERS THAN COMPUTED"), ("certified", "NOT CERTIFIED")):
        wrong = any(one[name] is False for one in report["clearing"][0]["rounds"])
        assert (word in text) == wrong


def test_a_round_without_a_certificate_is_said_to_have_none_and_is_no_fault() -> None:
    report = a_report(a_market(rounds=[a_round(certified=None, right=None)]))
    assert clearing_fault(report) == ""
    assert "no certificate, leaves none" in "\n".join(clearing_lines(report))


def test_who_stayed_out_who_objected_and_what_was_not_opened_have_a_line_each() -> None:
    market = a_market(
        off=[{"reason": "infeasible", "figures": {"loop_gain": [1.25]}, "certified": True}],
        stayed_out=[{"agent": "agent-2", "round": 3, "reason": "too-dear"}],
        disputed=[{"agent": "agent-1", "broker": "broker", "round": "0x07",
                   "reason": "wrong-root", "seconds_left": 4}],
    )  # fmt: skip
    lines = list(clearing_lines(a_report(market)))
    assert any("not opened, infeasible; loop gains 1.25: no money moved" in line for line in lines)
    assert any("agent-2 took no part in its round 3: too-dear" in line for line in lines)
    said = "agent-1 says that a root of broker is wrong (4 s before it stood): wrong-root"
    assert any(said in line for line in lines)


def test_a_market_in_which_nothing_was_opened_says_so() -> None:
    report = a_report(a_market(rounds=[], ledger=ledger(paid_in=0, claimed=0, withdrawn=0)))
    assert "0 rounds cleared, 0 models sold: 0.000000 play-ether in" in headline(report)
    assert "No round was opened." in rounds_table(report)


def test_rounds_into_which_nobody_paid_are_no_success_and_are_not_counted_as_cleared() -> None:
    vain = a_round(paid_in="0", paid_out="0", models=[], reason="nobody-paid")
    report = a_report(a_market(rounds=[vain], ledger=ledger(paid_in=0, claimed=0, withdrawn=0)))
    assert "nobody paid" in verdict(report)
    assert verdict(report, allow_no_trade=True) == ""
    assert "0 rounds cleared, 0 models sold (nobody paid into 1 more)" in headline(report)
    both = a_report(a_market(rounds=[vain, a_round(2)]))
    assert verdict(both) == ""
    assert "1 round cleared, 1 model sold (nobody paid into 1 more)" in headline(both)


def test_names_of_hostile_nodes_are_shown_and_do_nothing() -> None:
    market = a_market()
    bad = copy.deepcopy(market["rounds"][0])
    bad["reason"] = HOSTILE[0]
    for each, name in zip(bad["parties"], HOSTILE, strict=False):
        each["agent"] = each["ended"] = name
    report = a_report({**market, "rounds": [bad]})
    assert "<script>" not in page_of(report)
    assert "<img" not in rounds_table(report)
    assert "\x1b" not in printed(report, 400)


def test_a_market_of_trades_has_no_rounds_in_its_report() -> None:
    report = make_report(seeds=1)
    assert list(clearing_lines(report)) == []
    assert clearing_fault(report) == ""
    assert 'href="#rounds"' not in page_of(report)
    assert "paid on chain" in headline(report)
