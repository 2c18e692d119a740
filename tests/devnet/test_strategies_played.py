"""Agents of several strategies in one market, by the real nodes, and what is told of them."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from node.cli.devnet import _strategies
from node.cli.exits import BAD_INPUT
from node.cli.main import run
from node.config.loading import load
from node.config.table import SETTINGS
from node.devnet.arms import ARMS
from node.devnet.errors import DevnetError
from node.devnet.folder import name_of
from node.devnet.play import agent_config, broker_config
from node.devnet.processes import flags_of
from node.devnet.report.document import Report, as_written
from node.devnet.report.page import page
from node.devnet.report.strategies import (
    Balance,
    Strategies,
    StrategyRow,
    TriedGoods,
    Washing,
    together,
)
from node.devnet.report.strategy_rows import strategy_tables
from node.devnet.report.table import print_report
from node.devnet.spec import RunSpec
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Millionths
from tests.devnet.test_report_samples import make_report

CHECKOUT = Path(__file__).parents[2]
PLAYED = ("truthful", "shading", "lemon", "wash-trader", "wash-trader")


def played(folder: Path, *words: str) -> dict[str, Any]:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "node.cli.main", "devnet", "--dataset", "digits", "--json"),
            *("--arms", "aligned", "--name", str(folder), *words),
        ],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2_000:]
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("devnet") / "run"
    words = ("--agents", "5", "--rounds", "3", "--strategies", ",".join(PLAYED))
    return played(folder, *words, "--endowment", "dirichlet")


@pytest.mark.slow
def test_every_strategy_is_measured_and_the_market_balances_to_the_wei(
    report: dict[str, Any],
) -> None:
    told = report["strategies"]
    rows = {row["agent"]: row for row in told["agents"]}
    assert tuple(row["strategy"] for row in rows.values()) == PLAYED
    assert sum(row["bids"] for row in rows.values()) == sum(row["asks"] for row in rows.values())
    paid = [trade for trade in report["trades"] if trade["on_chain"] == "paid"]
    assert sum(row["sold"] for row in rows.values()) == len(paid) > 0
    for name, row in rows.items():
        assert row["bought"] == sum(trade["buyer"] == name for trade in paid)
        assert row["fell_through"] == 0
    (balance,) = told["balance"]
    assert balance["surplus"] == "0"
    assert int(balance["paid"]) == int(report["ledger"]["deposited"]) > 0
    assert int(balance["received"]) + int(balance["fees"]) == int(balance["paid"])


@pytest.mark.slow
def test_the_truth_is_not_regretted_by_who_says_it_and_no_lemon_sells_without_a_sure_gain(
    report: dict[str, Any],
) -> None:
    rows = {row["agent"]: row for row in report["strategies"]["agents"]}
    assert (rows["agent-0"]["regret_buying"], rows["agent-0"]["regret_selling"]) == ("0", "0")
    # the lemon lies about nothing but its goods
    assert (rows["agent-2"]["regret_buying"], rows["agent-2"]["regret_selling"]) == ("0", "0")
    for row in rows.values():
        if not row["strategy"].startswith("wash"):
            assert int(row["revenue"]) <= int(row["optimum"])
    (lemon,) = report["strategies"]["goods"]
    assert (lemon["agent"], lemon["kind"], lemon["offers"]) == ("agent-2", "lemon", 3)
    assert lemon["trials"] == 4 * 3
    assert lemon["sold"] <= lemon["bids"] <= lemon["sure"]
    tried = {(row["agent"], row["kind"]): row for row in report["strategies"]["tried"]}
    assert tried.keys() == {(name, "lemon" if name == "agent-2" else "own") for name in rows}
    assert all(row["trials"] == 4 * 3 for row in tried.values())


@pytest.mark.slow
def test_wash_traders_buy_from_one_another_and_cost_their_owner_the_fee(
    report: dict[str, Any],
) -> None:
    (row,) = report["strategies"]["washing"]
    ours = {"agent-3", "agent-4"}
    trades = [t for t in report["trades"] if {t["buyer"], t["seller"]} == ours]
    assert row["trades"] == len(trades) > 0
    assert int(row["paid"]) == sum(int(trade["price"]) for trade in trades)
    assert 0 < int(row["fees"]) < int(row["paid"])
    assert int(row["asked"]) >= int(row["without"])


@pytest.mark.slow
def test_a_lemon_sells_where_its_buyer_is_too_sure_of_itself(tmp_path: Path) -> None:
    """Each of two agents lacks half of the classes: noise makes it less sure, and loses less."""
    report = played(tmp_path / "run", *("--agents", "2", "--rounds", "2"), "--strategies=0=lemon")
    (lemon,) = report["strategies"]["goods"]
    assert lemon["offers"] == lemon["trials"] == 2
    assert lemon["sold"] == lemon["bids"] == lemon["sure"] > 0
    assert int(lemon["revenue"]) > 0
    # all of which its buyer could have had by being less sure of itself
    tried = {row["kind"]: row for row in report["strategies"]["tried"]}
    assert 0.03 < tried["lemon"]["gain"] < tried["lemon"]["control"] + 0.03


@pytest.mark.slow
def test_a_replicator_sells_what_it_bought(tmp_path: Path) -> None:
    words = ("--agents", "3", "--rounds", "4", "--strategies", "0=replicator")
    report = played(tmp_path / "run", *words)
    told = report["strategies"]
    assert [row["strategy"] for row in told["agents"]] == ["replicator", "usual", "usual"]
    (row,) = told["goods"]
    assert (row["agent"], row["kind"]) == ("agent-0", "replica")
    # its first round is before its first purchase
    assert 1 <= row["offers"] <= 3
    assert row["sold"] <= row["sure"] <= row["trials"]
    assert told["washing"] == []


# ── what is shown ──


def told_of(arm: str, seed: int) -> Strategies:
    return Strategies(
        agents=[
            StrategyRow(
                arm=arm, seed=seed, agent="agent-0", strategy="<b>wash", bids=3, bought=2, asks=4,
                sold=1, fell_through=0, regret_buying=str(10**18), regret_selling=str(-(10**17)),
                revenue="0", optimum="5",
            )
        ],
        goods=[],
        tried=[
            TriedGoods(
                arm=arm, seed=seed, agent="agent-0", kind="lemon", trials=7, gain=0.092,
                control=0.107, beyond=3,
            )
        ],
        washing=[
            Washing(
                arm=arm, seed=seed, trades=1, paid="7", fees="1", asks=2, asked="9",
                without="8", lost=0,
            )
        ],
        balance=[Balance(arm=arm, seed=seed, paid="1007", received="1000", fees="7", surplus="0")],
    )  # fmt: skip


def shown(report: Report, folder: Path) -> tuple[str, str]:
    """Return page and terminal."""
    console = Console(record=True, width=80, file=io.StringIO())
    print_report(report, folder, console)
    return page(as_written(report), {}), console.export_text()


def test_page_and_terminal_tell_of_the_strategies(tmp_path: Path) -> None:
    report = make_report(seeds=1)
    report["strategies"] = told_of("aligned", 0)
    html, text = shown(report, tmp_path)
    assert "&lt;b&gt;wash" in html
    assert "<b>wash" in text
    for said in (html, text):
        for words in (
            *("Strategies: regret", "1.000000", "−0.100000", "Wash trades", "1007"),
            *("gain, and control", "9.20 %", "10.70 %"),
        ):
            assert words in said
        assert "Other goods" not in said
        assert "Regret: what a true bid" in said
    lines = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80


def test_rows_of_several_markets_say_which_they_are_of(tmp_path: Path) -> None:
    report = make_report(seeds=2)
    one = [table.headings for table in strategy_tables({**report, "strategies": told_of("a", 0)})]
    assert not any("arm" in headings or "seed" in headings for headings in one)
    both = together([told_of("a", 0), told_of("b", 1)])
    tables = strategy_tables({**report, "strategies": both})
    assert all(table.headings[table.left - 2 : table.left] == ["arm", "seed"] for table in tables)
    assert [len(table.rows) for table in tables] == [2, 2, 2, 2]


def test_a_run_without_strategies_says_nothing_of_them(tmp_path: Path) -> None:
    html, text = shown(make_report(seeds=1), tmp_path)
    assert "Regret: what a true bid" not in html + text


# ── what is asked for ──


@pytest.mark.parametrize(
    ("text", "agents", "read"),
    [
        (None, 2, ()),
        ("truthful,lemon", 2, ("truthful", "lemon")),
        ("0=lemon", 3, ("lemon", "usual", "usual")),
        ("*=truthful, 2=lemon", 3, ("truthful", "truthful", "lemon")),
        ("1=my.own:strategy", 2, ("usual", "my.own:strategy")),
    ],
)
def test_strategies_are_named_one_for_each_or_by_number(
    text: str | None, agents: int, read: tuple[str, ...]
) -> None:
    assert _strategies(text, agents) == read


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--strategies", "3=lemon"), "is not NUMBER=STRATEGY with an agent of 0 to 1"),
        (("--strategies", "0=lemon,0=usual"), "each once"),
        (("--strategies", "0=lemon,usual"), "is not NUMBER=STRATEGY"),
        (("--strategies", "0="), "is not NUMBER=STRATEGY"),
        (("--strategies", "lemon"), "1 strategies for 2 agents"),
        (("--strategies", ""), "1 strategies for 2 agents"),
        (("--strategies", "lemon,melon"), "no strategy 'melon'"),
        (("--strategies", "0=wash-trader"), "needs another one"),
        (("--strategies", "0=shading", "--free"), "leave out --free"),
        (
            ("--strategies", "0=shading", "--mechanism", "triplewin"),
            "strategies are of bids and asks, which triplewin has not: leave out --mechanism",
        ),
        (("--shading", "1"), "is not a fraction"),
    ],
)
def test_strategies_that_nobody_can_play_are_refused_on_one_line(
    tmp_path: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(["devnet", "--dataset", "digits", "--name", str(folder), *words]) == BAD_INPUT
    said = capsys.readouterr().err
    assert told in said
    assert len(said.strip().splitlines()) == 1
    assert not folder.exists()


def spec_of(folder: Path, **changes: Any) -> RunSpec:
    return RunSpec(folder=folder, dataset="digits", agents=5, strategies=PLAYED, **changes)


def test_every_agent_is_told_its_strategy_and_the_wash_traders_their_owner(
    tmp_path: Path,
) -> None:
    spec = spec_of(tmp_path, shading=Millionths(70_000))
    spec.check()
    configs = [agent_config(spec, 3, number) for number in range(5)]
    assert tuple(config.strategy for config in configs) == PLAYED
    assert {config.shading for config in configs} == {70_000}
    assert [config.owner is not None for config in configs] == [False] * 3 + [True] * 2
    assert configs[3].owner == configs[4].owner
    # and the broker measures what each buyer's model gains by itself, for the report
    arm = ARMS["aligned"]
    broker = broker_config(spec, arm, 3)
    assert broker.control == "tune"
    assert broker_config(dataclasses.replace(spec, control="none"), arm, 3).control == "none"
    names = {row.flag: name for name, row in SETTINGS.items()}
    for config in [*configs, broker]:
        words = flags_of(config)
        given = {names[flag]: text for flag, text in zip(words[::2], words[1::2], strict=True)}
        assert load(flags=given).config == config


def test_a_run_without_strategies_has_the_settings_that_it_always_had(tmp_path: Path) -> None:
    spec = dataclasses.replace(spec_of(tmp_path), strategies=())
    config = agent_config(spec, 0, 1)
    defaults = {name: row.default for name, row in SETTINGS.items()}
    for name in ("strategy", "shading", "owner"):
        assert getattr(config, name) == defaults[name]


def test_runs_of_other_strategies_have_other_names(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    others = [
        dataclasses.replace(spec, strategies=()),
        dataclasses.replace(spec, strategies=PLAYED[::-1]),
        dataclasses.replace(spec, shading=Millionths(1)),
    ]
    assert len({name_of(one) for one in [spec, *others]}) == 4


def test_a_spec_is_checked_for_its_strategies_before_anything_is_begun(tmp_path: Path) -> None:
    for changes, told in (
        ({"agents": 4}, "5 strategies for 4 agents"),
        ({"priced": False}, "leave out --free"),
        ({"mechanism": "eeg"}, "which eeg has not: leave out --mechanism"),
        ({"mechanism": "shapley"}, "which shapley has not: leave out --mechanism"),
    ):
        with pytest.raises(DevnetError, match=told):
            dataclasses.replace(spec_of(tmp_path), **changes).check()
    with pytest.raises(LocalProtocolError, match="cannot load"):
        dataclasses.replace(spec_of(tmp_path), strategies=("no.such:thing",) * 5).check()
