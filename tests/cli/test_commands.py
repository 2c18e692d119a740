"""The commands that a newcomer types first."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import node
from node.config import SETTINGS
from node.data.folder import default_data_folder
from tests.cli.conftest import Command

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "web3", "libp2p", "trio", "numpy", "eth_utils", "cryptography", "requests"}


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys, node.cli.main as main\n"
        "assert main.run(['--help']) == 0\n"
        f"print(sorted({HEAVY!r} & sys.modules.keys()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout.splitlines()[-1] == "[]"


def test_help_names_every_setting_and_command(pm_node: Command) -> None:
    ran = pm_node("--help")
    assert ran.code == 0
    for row in SETTINGS.values():
        assert row.flag in ran.out
    for command in ("init", "keys", "status", "doctor", "trade", "config", "devnet", "chain"):
        assert command in ran.out
    for command in ("mechanism", "try", "survey"):
        assert f"\n  {command} " in ran.out


def test_the_help_of_contracts_names_the_way_in_and_the_way_out(pm_node: Command) -> None:
    ran = pm_node("contracts", "--help")
    assert ran.code == 0
    for command in ("deploy", "verify", "standing", "leave", "take-bond", "report", "collect"):
        assert f"\n  {command} " in ran.out
        assert pm_node("contracts", command, "--help").code == 0


def test_bare_pm_node_is_its_help(pm_node: Command) -> None:
    assert pm_node().out == pm_node("--help").out


def test_the_devnet_takes_processes_as_a_word_of_course(pm_node: Command) -> None:
    ran = pm_node("devnet", "--help")
    assert ran.code == 0
    assert "--processes" in ran.out
    pm_node("devnet", "--processes", "--agents", "1").refused(2, "--agents")


def test_init_makes_a_directory_whose_settings_are_the_flags(pm_node: Command, home: Path) -> None:
    ran = pm_node("init", "--role", "broker", "--fee-bps", "30", "--data-dir", home, "--json")
    assert ran.code == 0
    assert ran.json == {"data_dir": str(home), "config_written": True}
    file = home / "config.toml"
    assert tomllib.loads(file.read_text()) == {"role": "broker", "fee_bps": 30}
    assert file.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    shown = pm_node("config", "show", "--origin", "--data-dir", home).out.splitlines()
    assert f"fee_bps = 30    # file {file}" in shown


def test_init_overwrites_nothing(pm_node: Command, home: Path) -> None:
    assert pm_node("init", "--data-dir", home, "--rounds", "3").code == 0
    before = (home / "config.toml").read_text()
    ran = pm_node("init", "--data-dir", home, "--rounds", "4")
    assert ran.code == 0
    assert "kept" in ran.out
    assert (home / "config.toml").read_text() == before


def test_config_show_says_where_each_value_comes_from(
    pm_node: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pm_node("init", "--data-dir", home, "--rounds", "3")
    monkeypatch.setenv("PMNODE_SEED", "9")
    ran = pm_node("config", "show", "--origin", "--agents", "4", "--data-dir", home)
    lines = ran.out.splitlines()
    assert len(lines) == len(SETTINGS)
    assert f"rounds = 3    # file {home}/config.toml" in lines
    assert "seed = 9    # environment PMNODE_SEED" in lines
    assert "agents = 4    # flag --agents" in lines
    assert "fee_bps = 200    # default" in lines
    rows = pm_node("config", "show", "--data-dir", home, "--json").json
    assert rows["rounds"] == {"value": "3", "origin": f"file {home}/config.toml"}


def test_flags_may_stand_on_either_side_of_the_command(pm_node: Command, home: Path) -> None:
    before = pm_node("--json", "--data-dir", home, "--rounds", "3", "config", "show")
    after = pm_node("config", "show", "--rounds", "3", "--data-dir", home, "--json")
    assert before.json == after.json
    both = pm_node("--rounds", "3", "config", "show", "--rounds", "4", "--json").json
    assert both["rounds"]["value"] == "4"


def test_a_running_chain_says_where_it_is_and_ends_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "node.cli.main", "--json", "chain", "--port", "0"]
    with subprocess.Popen(
        [*command, "--directory", str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["url"].startswith("http://127.0.0.1:")
        process.terminate()
        assert process.wait(20) == 0


def test_data_lies_in_the_working_directory_else_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert node.__file__ is not None
    assert default_data_folder() == Path(node.__file__).resolve().parent.parent / ".data"
    (tmp_path / ".data").mkdir()
    assert default_data_folder() == tmp_path / ".data"
