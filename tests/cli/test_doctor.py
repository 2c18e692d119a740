"""The doctor: every check can be well and unwell, and says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from node.chain.client import ChainClient
from node.chain.deploy import MarketPlan, deploy_market
from node.cli.doctor import check_compiler, check_disk, check_python
from node.cli.doctor_market import check_clock
from node.home import Home
from node.identity import import_account
from node.journal import Journal, TradeRow
from node.net.host import open_host
from node.protocol.signing import address_of
from node.protocol.types import Address, Digest, UnixTime, Wei
from tests.cli.conftest import PASSWORD, Command, private_file

KEY = bytes(range(1, 33))
NOW = UnixTime(1_800_000_000)
NOWHERE = "http://127.0.0.1:1"
ABSENT_PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
DATA = ("--dataset", "random")


def levels(document: dict[str, Any]) -> dict[str, str]:
    for check in document["checks"]:
        assert check["level"] == "ok" or check["remedy"], check
    return {check["name"]: check["level"] for check in document["checks"]}


@pytest.fixture
def prepared(home: Path) -> Home:
    """A data directory with an account under `PASSWORD`."""
    made = Home(home).prepare()
    import_account(made.keystore, KEY, PASSWORD, development=True)
    return made


@pytest.fixture(scope="module")
def escrow(chain_url: str) -> Address:
    client = ChainClient(chain_url)
    try:
        account = address_of(KEY)
        client.request_funds(account, Wei(10**18))
        plan = MarketPlan(salt=Digest(bytes(32)), brokers=(account,), minimum_bond=Wei(1))
        return deploy_market(client, KEY, plan).escrow
    finally:
        client.close()


# ── the machine ──


def test_an_old_python_fails() -> None:
    assert check_python((3, 10, 4)).level == "fail"
    assert check_python((3, 11, 0)).level == "ok"


def test_a_machine_that_cannot_compile_is_warned_of_its_next_installation() -> None:
    without_gmp = list(check_compiler(lambda source: "gmp" not in source))
    assert [check.level for check in without_gmp] == ["ok", "warn"]
    assert "libgmp-dev" in without_gmp[1].remedy
    assert [check.level for check in check_compiler(lambda _: False)] == ["warn", "warn"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_compiler_of_this_machine_is_found(pm_node: Command, home: Path) -> None:
    assert levels(pm_node("doctor", *DATA, "--data-dir", home, "--json").json)["gcc"] == "ok"


@pytest.mark.parametrize(
    ("free", "level"), [(1 << 20, "fail"), (500 << 20, "warn"), (5 << 30, "ok")]
)
def test_a_full_disk_is_named(tmp_path: Path, free: int, level: str) -> None:
    assert check_disk(tmp_path, free).level == level


# ── the data directory ──


def test_a_machine_without_a_node_is_healthy(pm_node: Command, home: Path) -> None:
    ran = pm_node("doctor", *DATA, "--data-dir", home)
    assert ran.code == 0
    assert "fail" not in ran.out
    assert "no data directory" in ran.out
    assert not home.exists()


def test_a_data_set_that_is_not_there_fails(pm_node: Command, home: Path) -> None:
    ran = pm_node("doctor", "--dataset", "cifar", "--data-dir", home, "--json")
    assert ran.code == 1
    assert not ran.json["healthy"]
    assert levels(ran.json)["data"] == "fail"


def test_a_data_directory_in_order_is_healthy(
    pm_node: Command, prepared: Home, password_file: Path
) -> None:
    Journal(prepared.journal).close()
    words = ("doctor", *DATA, "--data-dir", prepared.root, "--json")
    assert pm_node(*words).code == 0
    ran = pm_node(*words, "--password-file", password_file)
    assert ran.code == 0
    found = {check["name"]: check["detail"] for check in ran.json["checks"]}
    assert found["keystore"] == f"{address_of(KEY)} opens"
    assert found["journal"] == "0 trades, 0 of them open"


@pytest.mark.parametrize(
    ("path", "mode", "level"),
    [
        (".", 0o770, "fail"),
        (".", 0o755, "warn"),
        (f"keystore/{address_of(KEY)}.json", 0o640, "fail"),
        ("config.toml", 0o644, "warn"),
        ("config.toml", 0o666, "fail"),
    ],
)
def test_what_others_may_use_is_named_with_the_command_that_mends_it(
    pm_node: Command, prepared: Home, path: str, mode: int, level: str
) -> None:
    private_file(prepared.config, "")
    (prepared.root / path).chmod(mode)
    ran = pm_node("doctor", *DATA, "--data-dir", prepared.root, "--json")
    (modes,) = [check for check in ran.json["checks"] if check["name"] == "file modes"]
    assert modes["level"] == level
    assert str((prepared.root / path).resolve()) in modes["detail"]
    assert modes["remedy"].startswith("chmod")
    assert ran.code == (1 if level == "fail" else 0)


def test_a_keystore_that_does_not_open_fails(
    pm_node: Command, prepared: Home, tmp_path: Path
) -> None:
    wrong = private_file(tmp_path / "wrong", "wrong\n")
    words = ("doctor", *DATA, "--data-dir", prepared.root, "--json")
    ran = pm_node(*words, "--password-file", wrong)
    assert (ran.code, levels(ran.json)["keystore"]) == (1, "fail")
    private_file(prepared.keystore / f"{address_of(KEY)}.json", "{")
    ran = pm_node(*words)
    assert (ran.code, levels(ran.json)["keystore"]) == (1, "fail")


def test_a_damaged_peer_key_and_a_damaged_journal_fail(pm_node: Command, prepared: Home) -> None:
    private_file(prepared.peer_key, "no key")
    journal = Journal(prepared.journal)
    journal.save_trade(
        TradeRow(trade_id=Digest(bytes(32)), role="buyer", state="x", over=False, record=b"\xff")
    )
    journal.close()
    ran = pm_node("doctor", *DATA, "--data-dir", prepared.root, "--json")
    found = levels(ran.json)
    assert (ran.code, found["peer key"], found["journal"]) == (1, "fail", "fail")


# ── the market ──


def test_the_chain_and_the_escrow_that_were_named_are_looked_at(
    pm_node: Command, home: Path, chain_url: str, escrow: Address
) -> None:
    ran = pm_node(
        *("doctor", *DATA, "--role", "broker", "--data-dir", home, "--json"),
        *("--chain", chain_url, "--escrow", escrow),
    )
    assert ran.code == 0
    found = levels(ran.json)
    assert (found["chain"], found["clock"], found["escrow"]) == ("ok", "ok", "ok")


def test_another_contract_than_ours_fails(pm_node: Command, home: Path, chain_url: str) -> None:
    ran = pm_node(
        *("doctor", *DATA, "--role", "broker", "--data-dir", home, "--json"),
        *("--chain", chain_url, "--escrow", address_of(KEY)),
    )
    assert ran.code == 1
    assert levels(ran.json)["escrow"] == "fail"


def test_a_chain_that_does_not_answer_fails_and_its_password_is_not_told(
    pm_node: Command, home: Path
) -> None:
    ran = pm_node(
        *("doctor", *DATA, "--role", "broker", "--data-dir", home),
        *("--chain", "http://user:hunter2@127.0.0.1:1"),
    )
    assert ran.code == 1
    (line,) = [line for line in ran.out.splitlines() if line.startswith("fail")]
    assert "http://127.0.0.1:1" in line
    assert "hunter2" not in ran.out + ran.err


@pytest.mark.parametrize(
    ("head", "on_demand", "level"),
    [
        (NOW, False, "ok"),
        (NOW + 15, False, "ok"),
        (NOW + 16, False, "fail"),
        (NOW - 300, False, "ok"),
        (NOW - 301, False, "warn"),
        (NOW - 100_000, True, "ok"),
        (NOW + 16, True, "fail"),
    ],
)
def test_a_clock_apart_from_the_chains_is_named(head: int, on_demand: bool, level: str) -> None:
    check = check_clock(NOW, UnixTime(head), makes_blocks_on_demand=on_demand)
    assert check.level == level


async def test_bootstrap_peers_are_dialled(pm_node: Command, home: Path) -> None:
    async with open_host(bytes(32), "/ip4/127.0.0.1/tcp/0") as host:
        (alive,) = host.addresses()

        def doctor(*peers: str) -> tuple[int, list[str]]:
            flags = [word for peer in peers for word in ("--bootstrap", peer)]
            # a broker's market is its own: only what it is to dial is looked at
            ran = pm_node("doctor", *DATA, "--role", "broker", "--data-dir", home, *flags, "--json")
            checks = ran.json["checks"]
            return ran.code, [c["level"] for c in checks if c["name"] == "bootstrap"]

        assert await trio.to_thread.run_sync(doctor, alive, ABSENT_PEER) == (0, ["ok", "warn"])
        assert await trio.to_thread.run_sync(doctor, ABSENT_PEER) == (1, ["fail"])
        impostor = alive.rsplit("/", 1)[0] + "/" + ABSENT_PEER.rsplit("/", 1)[1]
        assert await trio.to_thread.run_sync(doctor, impostor) == (1, ["fail"])
