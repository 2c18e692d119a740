"""An operator puts a market on a chain: once, by terms that it named, at a cost it was told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.chain.client import ChainClient
from node.chain.deploy import SHARED_SALT, MarketPlan, deploy_part
from node.chain.in_process import InProcessProvider
from node.chain.rpc_server import ChainServer
from node.chain.tester import DevelopmentChain, fund_account
from node.chain.transactions import Wallet
from node.home import Home
from node.identity import import_account
from node.protocol.signing import address_of
from node.protocol.types import Address, Wei
from tests.cli.conftest import PASSWORD, Command

KEY = bytes(range(1, 33))
OPERATOR = address_of(KEY)
ONE, TWO, THREE = (address_of(bytes([n]) * 32) for n in (1, 2, 3))
CHAIN_ID = 999
BOND = 5 * 10**17
TERMS = ("--brokers", f"{ONE},{TWO}", "--quorum", "2/2", "--bond", str(BOND))
NAMES = ["DeliveryCourt", "BrokerRegistry", "ParameterEscrow", "ClearingHouse"]
PLAN = MarketPlan(salt=SHARED_SALT, brokers=(ONE, TWO), threshold=2, minimum_bond=Wei(BOND))
ADDRESSES = {
    "court": PLAN.court,
    "registry": PLAN.registry,
    "escrow": PLAN.escrow,
    "clearing_house": PLAN.clearing_house,
}


@pytest.fixture
def chain() -> Iterator[DevelopmentChain]:
    """A chain that is nobody's development chain: its money counts."""
    with DevelopmentChain(chain_id=CHAIN_ID) as chain:
        fund_account(chain, OPERATOR, Wei(10**18))
        yield chain


@pytest.fixture
def url(chain: DevelopmentChain) -> Iterator[str]:
    with ChainServer(chain) as server:
        yield server.url


@pytest.fixture
def words(home: Path, password_file: Path) -> tuple[str | Path, ...]:
    """A data directory with an account under `PASSWORD`."""
    import_account(Home(home).prepare().keystore, KEY, PASSWORD, development=True)
    return ("--data-dir", home, "--password-file", password_file)


Words = tuple[str | Path, ...]


def deployed_before(chain: DevelopmentChain, parts: int) -> None:
    client = ChainClient(InProcessProvider(chain))
    for part in PLAN.parts[:parts]:
        deploy_part(client, Wallet(KEY, CHAIN_ID), part)


# ── deploying ──


def test_a_market_is_deployed_and_its_addresses_are_kept_by_chain(
    pm_node: Command, url: str, words: Words, home: Path
) -> None:
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", "--json", *words)
    assert ran.code == 0, ran.err
    assert ran.json["deployed"] == NAMES
    assert ran.json["file"] == str(home / "deployments" / "999.json")
    written = json.loads((home / "deployments" / "999.json").read_text())
    assert written["chain_id"] == CHAIN_ID
    (market,) = written["markets"]
    assert {name: market[name] for name in ADDRESSES} == ADDRESSES
    assert (market["brokers"], market["threshold"]) == ([ONE, TWO], 2)
    assert (market["minimum_bond"], market["minimum_challenge"]) == (str(BOND), 86_400)


def test_terms_and_cost_are_said_before_the_first_contract(
    pm_node: Command, url: str, words: Words
) -> None:
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", *words)
    terms, cost, *progress = ran.err.splitlines()
    assert terms.startswith(f"a market of {ONE}, {TWO}, of whom 2 must sign")
    assert f"{BOND:,} wei" in terms
    assert "a root can be vetoed for 86,400 s or more" in terms
    assert cost.startswith(f"to deploy on chain {CHAIN_ID}: {', '.join(NAMES)}; at most ")
    assert f"wei, paid by {OPERATOR}" in cost
    assert [line.split()[0] for line in progress] == NAMES
    assert ran.out.count("  new") == ran.out.count("no seat yet") + 2 == 4
    assert "quorum          2 of 2" in ran.out


def test_a_second_run_deploys_nothing_says_so_and_asks_for_no_password(
    pm_node: Command, url: str, words: Words, home: Path, chain: DevelopmentChain
) -> None:
    assert pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", *words).code == 0
    before = (home / "deployments" / "999.json").read_bytes()
    blocks = chain.evm.head.block_number
    again = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--data-dir", home)
    assert again.code == 0
    assert "nothing was deployed" in again.out
    assert "new" not in again.out
    assert again.err == ""
    assert chain.evm.head.block_number == blocks
    assert (home / "deployments" / "999.json").read_bytes() == before


def test_another_operator_of_the_same_terms_finds_the_same_market(
    pm_node: Command, url: str, words: Words, tmp_path: Path
) -> None:
    pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", *words)
    swapped = ("--brokers", TWO, "--brokers", ONE, "--quorum", "2/2", "--bond", str(BOND))
    ran = pm_node(
        *("contracts", "deploy", "--chain", url, *swapped, "--json"),
        *("--data-dir", tmp_path / "other", "--out", tmp_path / "out.json"),
    )
    assert ran.json["deployed"] == []
    assert {name: ran.json[name] for name in ADDRESSES} == ADDRESSES
    assert (tmp_path / "out.json").exists()
    assert not (tmp_path / "other").exists()


def test_whoever_pays_nothing_needs_no_account_and_gets_the_addresses(
    pm_node: Command, url: str, chain: DevelopmentChain, tmp_path: Path
) -> None:
    fresh = tmp_path / "fresh"
    deployed_before(chain, 4)
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--data-dir", fresh)
    assert ran.code == 0, ran.err
    assert (fresh / "deployments" / "999.json").exists()
    assert fresh.stat().st_mode & 0o777 == 0o700


def test_a_second_market_of_a_chain_shares_court_and_registry_and_both_are_kept(
    pm_node: Command, url: str, words: Words, home: Path
) -> None:
    first = ("contracts", "deploy", "--chain", url, *TERMS, "--yes", "--json", *words)
    pm_node(*first)
    second = pm_node(*first, "--salt", "0x" + "07" * 32).json
    assert second["deployed"] == ["ParameterEscrow", "ClearingHouse"]
    markets = json.loads((home / "deployments" / "999.json").read_text())["markets"]
    assert [market["escrow"] for market in markets] == [PLAN.escrow, second["escrow"]]


def test_a_shorter_challenge_is_another_clearing_house_of_the_same_market(
    pm_node: Command, url: str, words: Words, home: Path
) -> None:
    first = ("contracts", "deploy", "--chain", url, *TERMS, "--yes", "--json", *words)
    pm_node(*first)
    second = pm_node(*first, "--minimum-challenge", "600", "--out", home / "second.json").json
    assert second["deployed"] == ["ClearingHouse"]
    assert second["minimum_challenge"] == 600
    verify = ("contracts", "verify", "--chain", url, "--from", home / "second.json")
    shown = pm_node(*verify)
    assert shown.code == 0, shown.err
    assert "least challenge 600 s" in shown.out
    document = json.loads((home / "second.json").read_text())
    document["markets"][0]["minimum_challenge"] = 601
    (home / "second.json").write_text(json.dumps(document))
    pm_node(*verify).refused(5, "the clearing_house at", "is of other contracts")


@pytest.mark.parametrize("parts", [1, 3])
def test_a_deployment_that_was_cut_off_is_continued_by_typing_it_again(
    pm_node: Command, url: str, words: Words, chain: DevelopmentChain, parts: int
) -> None:
    deployed_before(chain, parts)
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", "--json", *words)
    assert ran.json["deployed"] == NAMES[parts:]


def test_on_play_money_one_broker_with_a_bond_of_an_ether_need_not_be_named(
    pm_node: Command, chain_url: str, words: Words
) -> None:
    ran = pm_node("contracts", "deploy", "--chain", chain_url, "--json", *words)
    assert ran.code == 0, ran.err
    assert ran.json["brokers"] == [OPERATOR]
    assert (ran.json["threshold"], ran.json["minimum_bond"]) == (1, str(10**18))
    verified = pm_node("contracts", "verify", "--chain", chain_url, "--json", *words)
    assert verified.json["escrow"] == ran.json["escrow"]


# ── what real money is asked ──


@pytest.mark.parametrize("missing", ["--brokers", "--quorum", "--bond"])
def test_on_a_chain_of_real_money_no_term_is_guessed(
    pm_node: Command, url: str, words: Words, chain: DevelopmentChain, missing: str
) -> None:
    at = TERMS.index(missing)
    ran = pm_node(
        "contracts", "deploy", "--chain", url, *TERMS[:at], *TERMS[at + 2 :], "--yes", *words
    )
    ran.refused(2, missing.removeprefix("--"), "cannot be changed later")


def test_no_brokers_in_the_file_of_settings_are_no_brokers_named(
    pm_node: Command, url: str, words: Words, home: Path
) -> None:
    (home / "config.toml").write_text('brokers = []\nquorum = "1/1"\nbond = 1\n')
    ran = pm_node("contracts", "deploy", "--chain", url, "--yes", *words)
    ran.refused(2, "brokers", "cannot be changed later")


def test_real_money_is_not_spent_without_a_yes(
    pm_node: Command, url: str, words: Words, chain: DevelopmentChain
) -> None:
    blocks = chain.evm.head.block_number
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, *words)
    assert ran.code == 2
    assert ran.out == ""
    assert "real money" in ran.err
    assert "--yes" in ran.err
    assert chain.evm.head.block_number == blocks


def test_an_account_that_cannot_pay_for_all_of_it_is_told_how_much_it_lacks(
    pm_node: Command, words: Words, home: Path
) -> None:
    with DevelopmentChain(chain_id=CHAIN_ID) as chain, ChainServer(chain) as server:
        fund_account(chain, OPERATOR, Wei(10**15))
        blocks = chain.evm.head.block_number
        ran = pm_node("contracts", "deploy", "--chain", server.url, *TERMS, "--yes", *words)
        assert chain.evm.head.block_number == blocks
    assert ran.code == 5
    assert f"pm-node: {OPERATOR} holds {10**15} wei" in ran.err
    assert "Traceback" not in ran.err
    assert not (home / "deployments").exists()


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (("--quorum", "3/2"), ["quorum", "m/n"]),
        (("--quorum", "1/2"), ["quorum", "n/2 < m"]),
        (("--quorum", "2/3"), ["quorum", "expected m/2"]),
        (("--quorum", "2"), ["quorum", "m/n"]),
        (("--brokers", ONE), ["brokers", "each broker once"]),
        (("--brokers", "0x00"), ["brokers", "Ethereum addresses"]),
        (("--brokers", "0x" + "00" * 20), ["brokers", "no zero"]),
        (("--bond", "0"), ["bond", "at least 1"]),
        (("--minimum-challenge", "0"), ["--minimum-challenge", "1<=x<=2592000"]),
        (("--minimum-challenge", "2592001"), ["--minimum-challenge", "1<=x<=2592000"]),
        (("--minimum-challenge", "a day"), ["--minimum-challenge"]),
        (("--salt", "0x07"), ["salt", "32 bytes"]),
        (("--salt", "0x" + " 7" * 32), ["salt", "32 bytes"]),
        (("--chain", "ftp://x"), ["chain", "URL"]),
        (("--chain-id", "0"), ["--chain-id"]),
        (("--chain-id", "1"), []),
    ],
)
def test_terms_that_cannot_be_are_named(
    pm_node: Command, url: str, words: Words, change: tuple[str, ...], fragments: list[str]
) -> None:
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", *words, *change)
    if fragments:
        ran.refused(2, *fragments)
    else:
        ran.refused(5, "the chain's id is 999, not 1")


# ── what may be wrong with chain, file and account ──


def test_a_chain_must_be_named(pm_node: Command, words: Words) -> None:
    for command in ("deploy", "verify"):
        pm_node("contracts", command, *words).refused(2, "chain", "--chain URL")


def test_an_endpoint_that_does_not_answer_is_named(pm_node: Command, words: Words) -> None:
    for command in ("deploy", "verify"):
        ran = pm_node("contracts", command, "--chain", "http://127.0.0.1:1", *words)
        ran.refused(5, "eth_chainId")


def test_a_file_of_another_chain_is_found_before_money_is_spent(
    pm_node: Command, url: str, words: Words, tmp_path: Path, chain: DevelopmentChain
) -> None:
    out = tmp_path / "1.json"
    out.write_text('{"version": 1, "chain_id": 1, "markets": []}')
    blocks = chain.evm.head.block_number
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", *words, "--out", out)
    ran.refused(5, "the chain's id is 999", str(out), "is of 1")
    assert chain.evm.head.block_number == blocks


@pytest.mark.parametrize("name", ["nonsense", "."])
def test_a_file_that_cannot_be_used_is_found_before_money_is_spent(
    pm_node: Command, url: str, words: Words, tmp_path: Path, chain: DevelopmentChain, name: str
) -> None:
    (tmp_path / "nonsense").write_text("nonsense")
    blocks = chain.evm.head.block_number
    ran = pm_node(
        *("contracts", "deploy", "--chain", url, *TERMS, "--yes", *words),
        *("--out", tmp_path / name),
    )
    ran.refused(2, str(tmp_path))
    assert chain.evm.head.block_number == blocks


def test_other_code_at_an_address_of_the_market_ends_it_before_money_is_spent(
    pm_node: Command,
    url: str,
    words: Words,
    chain: DevelopmentChain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code_of = ChainClient.code

    def code(client: ChainClient, account: Address) -> bytes:
        return b"\x60\x01" if account == PLAN.escrow else code_of(client, account)

    monkeypatch.setattr(ChainClient, "code", code)
    blocks = chain.evm.head.block_number
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", *words)
    ran.refused(5, PLAN.escrow, "not that of ParameterEscrow")
    assert chain.evm.head.block_number == blocks


def test_a_node_that_runs_there_keeps_its_account_to_itself(
    pm_node: Command, url: str, words: Words, home: Path
) -> None:
    with Home(home).lock():
        ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", *words)
    ran.refused(4, "in use by process")


def test_without_an_account_nothing_can_be_paid(
    pm_node: Command, url: str, tmp_path: Path, password_file: Path
) -> None:
    empty = Home(tmp_path / "empty").prepare().root
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", "--data-dir", empty)
    ran.refused(3, str(empty), "pm-node keys new")
    nowhere = tmp_path / "nowhere"
    ran = pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", "--data-dir", nowhere)
    ran.refused(3, str(nowhere))
    assert not nowhere.exists()


# ── verifying ──


@pytest.fixture
def market(pm_node: Command, url: str, words: Words, home: Path) -> Path:
    """The file of a market that is deployed."""
    assert pm_node("contracts", "deploy", "--chain", url, *TERMS, "--yes", *words).code == 0
    return home / "deployments" / "999.json"


def test_a_market_is_as_compiled(
    pm_node: Command, url: str, market: Path, home: Path, tmp_path: Path
) -> None:
    ran = pm_node("contracts", "verify", "--chain", url, "--data-dir", home)
    assert ran.code == 0
    assert ran.out.endswith("the code of each is as compiled\n")
    for address in ADDRESSES.values():
        assert address in ran.out
    told = pm_node("contracts", "verify", "--chain", url, "--from", market, "--json").json
    assert told["verified"] is True
    assert {name: told[name] for name in ADDRESSES} == ADDRESSES


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_changed_byte_of_any_contract_is_not_as_compiled(
    pm_node: Command, url: str, market: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code_of = ChainClient.code

    def code(client: ChainClient, account: Address) -> bytes:
        found = code_of(client, account)
        return found[:-1] + b"\xff" if account == ADDRESSES[name] else found

    monkeypatch.setattr(ChainClient, "code", code)
    ran = pm_node("contracts", "verify", "--chain", url, "--from", market)
    ran.refused(5, ADDRESSES[name], "is not that of")


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_that_this_version_would_not_deploy_to_is_of_other_contracts(
    pm_node: Command, url: str, market: Path, name: str
) -> None:
    document = json.loads(market.read_text())
    document["markets"][0] |= {name: THREE, "release": "0.0.9"}
    market.write_text(json.dumps(document))
    ran = pm_node("contracts", "verify", "--chain", url, "--from", market)
    ran.refused(5, f"at {THREE} is of other contracts", "release 0.0.9")


def test_the_market_of_a_named_escrow_is_verified(
    pm_node: Command, url: str, words: Words, market: Path
) -> None:
    again = ("--yes", "--salt", "0x" + "07" * 32, "--json")
    newest = pm_node("contracts", "deploy", "--chain", url, *TERMS, *again, *words).json["escrow"]
    verify = ("contracts", "verify", "--chain", url, "--from", market, "--json")
    assert pm_node(*verify).json["escrow"] == newest
    assert pm_node(*verify, "--escrow", PLAN.escrow).json["escrow"] == PLAN.escrow
    pm_node(*verify, "--escrow", THREE).refused(2, "no market with the escrow", THREE)


def test_a_chain_that_lost_the_market_is_told(pm_node: Command, market: Path) -> None:
    with DevelopmentChain(chain_id=CHAIN_ID) as chain, ChainServer(chain) as server:
        ran = pm_node("contracts", "verify", "--chain", server.url, "--from", market)
    ran.refused(5, "there is no code at")


def test_without_a_file_there_is_nothing_to_verify(pm_node: Command, url: str, home: Path) -> None:
    ran = pm_node("contracts", "verify", "--chain", url, "--data-dir", home)
    ran.refused(2, "no market of chain 999", "--from", "contracts deploy")
