"""A devnet whose prices are made in calls: budgets in, whole layers out, each call proved anew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker_node.mechanisms.base import Json
from node.agent.calling import OVER_WORTH
from node.cli.exits import BAD_INPUT
from node.cli.main import run
from node.devnet.assemble import prediction_of
from node.devnet.calls import _fairness, _verified
from node.devnet.defaults import CALL_BUDGET
from node.devnet.errors import DevnetError
from node.devnet.logs import read_events
from node.devnet.play import BROKER, call_budget
from node.devnet.report.calls import summary
from node.devnet.spec import RunSpec

CHECKOUT = Path(__file__).parents[2]
ROUNDS = 2
AGENTS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devnet") / "run"


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    words = [
        *("--mechanism", "eeg", "--agents", str(AGENTS), "--endowment", "dirichlet"),
        *("--rounds", str(ROUNDS), "--arms", "aligned", "--name", str(folder), "--json"),
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "node.cli.main", "devnet", "--dataset", "digits", *words],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2_000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_each_round_is_cleared_once_and_its_certificate_confirmed_anew(
    report: dict[str, Any],
) -> None:
    calls = report["calls"]["calls"]
    assert [call["round"] for call in calls] == list(range(1, ROUNDS + 1))
    assert all(call["confirmed"] for call in calls)
    assert all(call["relative_gap"] <= 1e-6 for call in calls)


def test_nobody_spends_more_than_its_budget_and_no_layer_is_sold_twice(
    report: dict[str, Any],
) -> None:
    for call in report["calls"]["calls"]:
        for buyer, budget in call["budgets"].items():
            spent = sum(int(one["price"]) for one in call["given"] if one["buyer"] == buyer)
            assert spent <= int(budget) == call_budget(0, int(buyer.removeprefix("agent-")))
        for seller, capacity in call["capacity"].items():
            own = [one for one in call["given"] if one["seller"] == seller]
            assert sum(one["layers"] for one in own) <= capacity
        assert call["within_budgets"]


def test_every_allocation_is_paid_at_the_price_of_the_call_or_left_as_over_its_worth(
    report: dict[str, Any], folder: Path
) -> None:
    given = [
        (call["round"], one)
        for call in report["calls"]["calls"]
        for one in call["given"]
        if one["layers"]
    ]
    trades = {trade["id"]: trade for trade in report["trades"]}
    assert len(trades) > len(given) // 2
    dear = [
        (event["round"], home.name)
        for home in (folder / "markets").glob("*/agent-*")
        for event in read_events(home, ("leg_ended",))
        if event["because"] == OVER_WORTH
    ]
    left = [(round_, one["buyer"]) for round_, one in given if one["trade"] is None]
    assert sorted(left) == sorted(dear)
    bought = [one for _, one in given if one["trade"] is not None]
    assert len(bought) == len(trades)
    for one in bought:
        trade = trades[one["trade"]]
        assert (trade["price"], trade["on_chain"]) == (one["price"], "paid")
        assert (trade["buyer"], trade["seller"]) == (one["buyer"], one["seller"])
        assert int(one["price"]) <= 10**18 * one["realised"]  # κ on play money: one ether
    ledger = report["ledger"]
    assert ledger["balances"]
    assert int(ledger["deposited"]) == sum(int(one["price"]) for one in bought)
    assert int(ledger["deposited"]) == int(ledger["paid_out"]) + int(ledger["fees"])


def test_each_call_says_how_fair_it_is_to_whom_it_is_least_fair(
    report: dict[str, Any], folder: Path
) -> None:
    """Of an exact clearing nobody envies another, and nobody would rather share by budget."""
    found = [call["fairness"] for call in report["calls"]["calls"]]
    for fair in found:
        assert fair["envy_freeness"] == pytest.approx(1, abs=1e-5)
        assert fair["proportional_fairness"] >= 1 - 1e-5
        assert fair["sharing_incentive"] >= 1 - 1e-5
    shown = f"sharing incentive {min(fair['sharing_incentive'] for fair in found):.3f}"
    assert any(shown in line for line in summary(report))  # type: ignore[arg-type]
    assert shown in (folder / "report.html").read_text(encoding="utf-8")


def test_one_who_is_given_nothing_envies_and_a_call_without_an_outcome_is_not_measured() -> None:
    market: dict[str, Json] = {
        "demand": [[[1.0]], [[1.0]]], "budget": [1.0, 3.0], "capacity": [[4.0]],
        "max_utility": [None, None],
    }  # fmt: skip
    by_budget = _fairness(market, {"x": [[1.0], [3.0]]})
    assert by_budget is not None
    assert set(by_budget.values()) == {1.0}
    assert _fairness(market, {"x": [[0.5], [3.5]]}) == {
        "envy_freeness": pytest.approx(0.428571), "proportional_fairness": 0.5,
        "sharing_incentive": 0.5,
    }  # fmt: skip
    assert _fairness({}, {}) is None
    assert _fairness(market, {"x": [[1.0]]}) is None
    assert _fairness(market, {"x": "all"}) is None


def test_the_report_says_how_well_gains_were_predicted(
    report: dict[str, Any], folder: Path
) -> None:
    calls = report["calls"]
    assert calls["purchases_predicted"]["count"] == len(report["trades"])
    assert calls["rounds_predicted"]["count"] == len(calls["fused"]) > 0
    for found in (calls["purchases_predicted"], calls["rounds_predicted"]):
        assert 0 <= found["mean_absolute_error"] < 1
    explained = calls["purchases_predicted"]["r_squared"]
    shown = f"R² {explained:.3f}".replace("-", "−")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert shown in page
    assert any(shown in line for line in summary(report))  # type: ignore[arg-type]
    assert '<a href="#calls">Calls</a>' in page
    assert "mean absolute error" in page
    assert "confirmed" in page


def test_a_price_that_was_changed_after_the_call_is_not_confirmed(
    report: dict[str, Any], folder: Path
) -> None:
    (home,) = (folder / "markets").glob(f"*/{BROKER}")
    told = read_events(home, ("call_cleared",))[0]
    assert _verified("eeg", told["market"], told["outcome"])[0]
    prices: Json = [[1.01 * price for price in row] for row in told["outcome"]["prices"]]
    assert not _verified("eeg", told["market"], {**told["outcome"], "prices": prices})[0]
    assert not _verified("eeg", told["market"], {"status": "sold"})[0]


def test_agents_have_budgets_of_their_own_that_follow_from_the_seed() -> None:
    budgets = [call_budget(0, number) for number in range(20)]
    assert len(set(budgets)) == 20
    assert budgets == [call_budget(0, number) for number in range(20)]
    assert call_budget(1, 0) != budgets[0]
    assert all(CALL_BUDGET // 2 <= budget < CALL_BUDGET // 2 + CALL_BUDGET for budget in budgets)


def test_a_prediction_is_judged_by_its_error_and_by_what_it_explains() -> None:
    found = prediction_of([(0.1, 0.1), (0.2, 0.3)])
    assert (found["count"], found["mean_absolute_error"], found["bias"]) == (2, 0.05, -0.05)
    assert found["r_squared"] == 0.5  # 1 − 0.01 / 0.02
    assert prediction_of([(0.1, 0.2)])["r_squared"] is None
    assert prediction_of([])["mean_absolute_error"] is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mechanism": "egg"}, "no mechanism 'egg'; there are nash, eeg"),
        ({"mechanism": "eeg", "priced": False}, "leave out --free"),
        ({"mechanism": "eeg", "layers": (0,)}, "leave out --layers"),
    ],
)
def test_what_no_call_could_price_is_refused_before_anything_is_begun(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(DevnetError, match=told):
        RunSpec(folder=tmp_path / "run", **{"dataset": "digits", **changes}).check()


def test_a_mechanism_that_there_is_not_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devnet", "--mechanism", "egg"]) == BAD_INPUT
    assert "egg" in capsys.readouterr().err
