"""`pm-node mechanism`: what scripts and other languages rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker_node.mechanisms import max_min
from broker_node.mechanisms.base import Claim
from broker_node.mechanisms.registry import MECHANISMS
from broker_node.mechanisms.weight_market.linear import SolverError, leximin
from broker_node.mechanisms.weight_market.market import WeightMarket
from node.cli import mechanism
from tests.cli.conftest import Command

ROOT = Path(__file__).resolve().parents[2]
BARGAIN = {"v_a_own": 2, "v_a_other": 0, "v_b_own": 0, "v_b_other": 10, "legs": ["a"]}
DEAL = {
    "status": "trade",
    "legs": ["a"],
    "net_transfer_to_a": 6,
    "utility_a": 4,
    "utility_b": 4,
}
AUCTION = {"bids": [3, 9, 5], "copies": 1, "reserve": 4}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Write a JSON value, or text as it is, to a file of its own."""

    def write(value: object, name: str = "market.json") -> Path:
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def test_the_list_names_every_mechanism_and_what_it_claims(pm_node: Command) -> None:
    rows = pm_node("mechanism", "list", "--json").json
    assert [row["name"] for row in rows] == list(MECHANISMS)
    assert all(row["summary"] for row in rows)
    assert {claim for row in rows for claim in row["claims"]} <= {c.value for c in Claim}
    plain = pm_node("mechanism", "list").out
    assert all(name in plain for name in MECHANISMS)


def test_the_list_says_of_what_keys_a_market_is(pm_node: Command) -> None:
    (row,) = [row for row in pm_node("mechanism", "list", "--json").json if row["name"] == "kplus1"]
    assert row["keys"] == {
        "required": ["bids", "copies", "reserve"],
        "optional": [],
        "outcome": ["winners", "price"],
    }
    assert "required: bids, copies, reserve" in pm_node("mechanism", "list").out
    written_down = pm_node("mechanism", "clear", "--help").out
    assert "docs/mechanisms.md" in written_down
    assert (ROOT / "docs" / "mechanisms.md").is_file()


def test_a_market_is_cleared_from_a_file_or_from_standard_input(
    pm_node: Command, written: Any
) -> None:
    ran = pm_node("mechanism", "clear", "nash", written(BARGAIN), "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json == DEAL
    piped = pm_node("--json", "mechanism", "clear", "nash", "-", stdin=json.dumps(BARGAIN))
    assert piped.json == DEAL
    plain = pm_node("mechanism", "clear", "nash", written(BARGAIN))
    assert "net_transfer_to_a   6.0" in plain.out


@pytest.mark.parametrize(
    ("name", "market", "status"),
    [
        ("nash", {**BARGAIN, "v_b_other": 1}, "no_trade"),
        ("kplus1", {**AUCTION, "reserve": 20}, "no_trade"),
        ("kplus1", AUCTION, "trade"),
    ],
)
def test_every_outcome_ends_in_zero(
    pm_node: Command, written: Any, name: str, market: object, status: str
) -> None:
    ran = pm_node("mechanism", "clear", name, written(market), "--json")
    assert ran.code == 0
    assert ran.json["status"] == status


def test_what_is_infinite_is_null(pm_node: Command, written: Any) -> None:
    market = {"alpha": 0.25, "beta": 0.5, "delta_a": 4}
    ran = pm_node("mechanism", "clear", "gain-bounds", written(market), "--json")
    assert ran.json["upper"] is None
    assert mechanism._finite({"a": [float("inf"), (float("nan"), 1)]}) == {"a": [None, [None, 1]]}


def test_a_batch_is_answered_in_order_with_refusals_in_place(
    pm_node: Command, written: Any
) -> None:
    cases: list[object] = [AUCTION, {**AUCTION, "bids": [1, -2]}, 7, {**AUCTION, "reserve": 20}]
    ran = pm_node("mechanism", "clear", "kplus1", written({"cases": cases}), "--json")
    assert ran.code == 0
    assert ran.json.keys() == {"outcomes"}
    cleared, negative, no_object, unsold = ran.json["outcomes"]
    assert cleared == {"status": "trade", "winners": [1], "price": 5}
    assert negative == {
        "status": "refused",
        "field": "bids[1]",
        "reason": "must be at least 0, got -2",
    }
    assert no_object == {
        "status": "refused",
        "field": "market",
        "reason": "must be an object, got 7",
    }
    assert unsold["status"] == "no_trade"
    plain = pm_node("mechanism", "clear", "kplus1", written({"cases": cases}))
    assert plain.code == 0
    assert plain.out.count("case ") == 4
    assert pm_node("mechanism", "clear", "kplus1", written({"cases": []}), "--json").json == {
        "outcomes": []
    }


def test_a_case_that_a_solver_fails_on_leaves_the_others_answered(
    pm_node: Command, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(market: WeightMarket) -> Any:
        if len(market.budget_S) == 2:
            raise SolverError("not solved")
        return leximin(market)

    monkeypatch.setattr(max_min, "leximin", failing)
    one = {"demand": [[[2]]], "budget": [1], "capacity": [[1]]}
    two = {"demand": [[[1]], [[1]]], "budget": [1, 1], "capacity": [[1]]}
    cases = written({"cases": [one, two, one]})
    ran = pm_node("mechanism", "clear", "max-min", cases, "--json")
    assert ran.code == 0
    first, failed, last = ran.json["outcomes"]
    assert failed == {"status": "unsolved", "reason": "not solved"}
    assert first["utility"] == last["utility"] == [pytest.approx(0.5)]
    answer = written(ran.json, "outcomes.json")
    checked = pm_node("mechanism", "verify", "max-min", cases, answer, "--json")
    assert [one["valid"] for one in checked.json["certificates"]] == [True, False, True]


def test_a_nan_in_a_batch_is_refused_in_its_place(pm_node: Command, written: Any) -> None:
    text = '{"cases": [{"bids": [1, NaN], "copies": 1, "reserve": 0}, ' + json.dumps(AUCTION) + "]}"
    first, second = pm_node("mechanism", "clear", "kplus1", written(text), "--json").json[
        "outcomes"
    ]
    assert first == {"status": "refused", "field": "bids[1]", "reason": "must be finite, got NaN"}
    assert second["status"] == "trade"


def test_verify_confirms_what_clear_answered(pm_node: Command, written: Any) -> None:
    market = written(BARGAIN)
    told = pm_node("mechanism", "clear", "nash", market, "--json").out
    outcome = written(told, "outcome.json")
    ran = pm_node("mechanism", "verify", "nash", market, outcome, "--json")
    assert ran.code == 0
    assert ran.json["valid"] is True
    assert all(figure <= ran.json["tolerance"] for figure in ran.json["violations"].values())
    piped = pm_node("mechanism", "verify", "nash", market, "-", "--json", stdin=told)
    assert piped.json == ran.json
    assert "valid               true" in pm_node("mechanism", "verify", "nash", market, outcome).out


def test_verify_ends_in_one_where_the_outcome_is_another(pm_node: Command, written: Any) -> None:
    wrong = written({**DEAL, "net_transfer_to_a": 7}, "outcome.json")
    ran = pm_node("mechanism", "verify", "nash", written(BARGAIN), wrong, "--json")
    assert (ran.code, ran.err) == (1, "")
    assert ran.json["valid"] is False
    assert ran.json["violations"]["optimality"] > 0


def test_a_batch_is_verified_case_by_case(pm_node: Command, written: Any) -> None:
    market = written({"cases": [AUCTION, {**AUCTION, "copies": 0}, AUCTION]})
    told = pm_node("mechanism", "clear", "kplus1", market, "--json").json
    outcome = written(told, "outcome.json")
    ran = pm_node("mechanism", "verify", "kplus1", market, outcome, "--json")
    assert ran.code == 0
    assert [found["valid"] for found in ran.json["certificates"]] == [True, True, True]
    assert ran.json["certificates"][1]["violations"] == {"refusal": 0}
    told["outcomes"][1] = {"status": "refused", "field": "bids", "reason": "?"}
    told["outcomes"][2] = {"status": "trade", "winners": [1]}
    ran = pm_node("mechanism", "verify", "kplus1", market, written(told, "outcome.json"), "--json")
    assert ran.code == 1
    assert [found["valid"] for found in ran.json["certificates"]] == [True, False, False]
    assert ran.json["certificates"][2]["field"] == "price"


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ('{"bids": [1], "copies": 1, "reserve": NaN}', ["reserve", "NaN"]),
        ('{"bids": [1, -Infinity], "copies": 1, "reserve": 0}', ["bids[1]: ", "-Infinity"]),
        ('{"bids": [[[Infinity]]], "copies": 1, "reserve": 0}', ["bids[0][0][0]: ", "Infinity"]),
        ('{"bids": [1], "copies": 1, "reserve": 1e999}', ["reserve", "inf"]),
        ('{"bids": [1], "copies": 1, "reserve": -3}', ["reserve", "-3"]),
        ('{"bids": [1], "copies": 1, "copies": 2, "reserve": 0}', ["copies", "2 times"]),
        ('{"bids": [], "copies": 1, "reserve": 0}', ["bids", "0"]),
        ('{"bids": [1], "copies": 1}', ["reserve", "missing"]),
        ('{"bids": [1], "copies": 1, "reserve": 0, "fee": 1}', ["fee"]),
        ("[1, 2]", ["market", "[1, 2]"]),
        ('{"cases": 3}', ["cases", "3"]),
        ('{"cases": [], "seed": 1}', ["seed"]),
        ("", ["market.json", "JSON"]),
        ('{"bids": ', ["market.json", "JSON"]),
        ("[" * 100_000, ["market.json", "deep"]),
        ("[" * 200 + "]" * 200, ["market.json", "deep"]),
        ('{"a":' * 100_000, ["market.json", "deep"]),
        ('"' + '\\"' * 100_000, ["market.json", "JSON"]),
        ('{"' + "[" * 200 + '": 1}', ["bids", "missing"]),
        ('{"bids": [' + "1" * 5_000 + "]}", ["market.json", "digits"]),
    ],
)
def test_bad_input_is_one_line_that_names_field_and_value(
    pm_node: Command, written: Any, text: str, fragments: list[str]
) -> None:
    pm_node("mechanism", "clear", "kplus1", written(text), "--json").refused(2, *fragments)
    pm_node("mechanism", "verify", "kplus1", written(text), written(DEAL, "o.json")).refused(2)


def test_files_that_cannot_be_read_are_named(
    pm_node: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pm_node("mechanism", "clear", "nash", tmp_path / "none.json").refused(2, "none.json")
    pm_node("mechanism", "clear", "nash", tmp_path).refused(2, tmp_path.name)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    pm_node("mechanism", "clear", "nash", binary).refused(2, "UTF-8")
    monkeypatch.setattr(mechanism, "MAX_BYTES", 1_000)
    pm_node("mechanism", "clear", "nash", "/dev/zero").refused(2, "more than 1000 bytes")
    pm_node("mechanism", "clear", "nash", "-", stdin="1" * 1_001).refused(2, "more than 1000")


def test_words_that_are_wrong_are_named(pm_node: Command, written: Any) -> None:
    market = written(BARGAIN)
    pm_node("mechanism", "clear", "haggle", market).refused(2, "haggle", "nash")
    pm_node("mechanism", "clear", "nash", market, "--tolerance", "nan").refused(2, "tolerance")
    pm_node("mechanism", "clear", "nash", market, "--seed", "x").refused(2, "seed", "x")
    pm_node("mechanism", "verify", "nash", "-", "-").refused(2, "standard input")
    batch = written({"cases": []}, "batch.json")
    pm_node("mechanism", "verify", "nash", batch, market).refused(2, "batch")
    short = written({"cases": [BARGAIN]}, "short.json")
    outcomes = written({"outcomes": []}, "outcomes.json")
    pm_node("mechanism", "verify", "nash", short, outcomes).refused(2, "outcomes", "0 of 1")


@pytest.mark.parametrize(
    ("outcome", "field"),
    [
        ({**DEAL, "status": "sold"}, "status"),
        ({"status": "trade"}, "legs"),
        ({**DEAL, "legs": 3}, "legs"),
        ({**DEAL, "utility_b": "4"}, "utility_b"),
        ('{"status": "trade", "legs": ["a"], "net_transfer_to_a": NaN}', "net_transfer_to_a"),
        ([], "outcome"),
    ],
)
def test_an_outcome_that_is_none_is_bad_input(
    pm_node: Command, written: Any, outcome: object, field: str
) -> None:
    told = written(outcome, "outcome.json")
    pm_node("mechanism", "verify", "nash", written(BARGAIN), told).refused(2, field)


def test_the_commands_need_neither_torch_nor_a_chain() -> None:
    code = (
        "import sys, node.cli.main as main\n"
        "assert main.run(['mechanism', 'list']) == 0\n"
        "print(sorted({'scipy', 'torch', 'web3', 'trio', 'libp2p'} & sys.modules.keys()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout.splitlines()[-1] == "[]"
