"""An operator's bond: looked at, left with, lost to a report; and what is owed, collected."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from broker_node.quorum.receipts import ReceiptFile
from node.chain.client import ChainClient
from node.chain.deploy import MarketPlan, deploy_market
from node.chain.in_process import InProcessProvider
from node.chain.registry import RegistryView
from node.chain.rpc_server import ChainServer
from node.chain.seats import take_seat
from node.chain.tester import DevelopmentChain, fund_account
from node.cli.receipt_file import write
from node.home import Home
from node.identity import import_account
from node.journal import Journal
from node.protocol import envelope
from node.protocol.eip712 import Domain, digest
from node.protocol.envelope import Signed
from node.protocol.offer import Receipt
from node.protocol.quorum import join_signatures
from node.protocol.signing import address_of, sign_digest
from node.protocol.types import Address, Digest, UnixTime, Wei
from tests.cli.conftest import PASSWORD, Command
from tests.protocol import cast as parties

ONE, TWO, REPORTER = b"\x11" * 32, b"\x12" * 32, b"\x13" * 32
WHO, OTHER, CITIZEN = address_of(ONE), address_of(TWO), address_of(REPORTER)
CHAIN_ID, START = 999, 1_700_000_000
BOND = 5 * 10**17
EXIT_DELAY = 100 * 86_400
PLAN = MarketPlan(salt=Digest(bytes(32)), brokers=(WHO, OTHER), threshold=2, minimum_bond=Wei(BOND))


class Clock:
    now = START

    def __call__(self) -> UnixTime:
        return UnixTime(self.now)


@dataclasses.dataclass
class Place:
    """A market of two brokers on a chain that is nobody's development chain: its money counts."""

    folder: Path
    chain: DevelopmentChain
    clock: Clock
    client: ChainClient
    url: str
    domain: Domain
    password: Path

    @property
    def registry(self) -> RegistryView:
        return RegistryView(self.client, PLAN.registry)

    @property
    def blocks(self) -> int:
        return self.chain.evm.head.block_number

    def words(self, key: bytes = ONE, *, market: bool = True) -> tuple[str | Path, ...]:
        """The flags of whoever has this key, with a data directory of its own."""
        home = Home(self.folder / key.hex()[:4])
        if not home.root.exists():
            import_account(home.prepare().keystore, key, PASSWORD, development=True)
        named = ("--escrow", self.domain.escrow) if market else ()
        directory = ("--data-dir", home.root, "--password-file", self.password)
        return ("--chain", self.url, *named, *directory)

    def balance(self, account: Address) -> int:
        return int(self.client.ask("eth_getBalance", account, "latest"), 16)

    def receipt(self, name: str, signers: tuple[bytes, ...] = (ONE, TWO), **changes: Any) -> Path:
        """Write a receipt whose quote is changed so, and signed by these."""
        deal = parties.good_deal()
        domain = changes.pop("domain", self.domain)
        quote = dataclasses.replace(deal.quote, **changes)
        signed = digest(domain, quote)
        signatures = join_signatures({address_of(key): sign_digest(key, signed) for key in signers})
        file = ReceiptFile(
            domain=domain,
            receipt=cast(Signed[Receipt], envelope.decode(deal.receipt)),
            evaluation=deal.evaluation,
            recipe=deal.recipe,
            quote=quote,
            broker_signatures=signatures,
            signers=tuple(address_of(key) for key in signers),
            notice=None,
        )
        path = self.folder / name
        path.write_text(write(file))
        return path


@pytest.fixture
def place(tmp_path: Path, password_file: Path) -> Iterator[Place]:
    clock = Clock()
    with DevelopmentChain(chain_id=CHAIN_ID, clock=clock) as chain, ChainServer(chain) as server:
        for account in (WHO, OTHER, CITIZEN):
            fund_account(chain, account, Wei(10**18))
        client = ChainClient(InProcessProvider(chain))
        domain = deploy_market(client, REPORTER, PLAN)
        for key in (ONE, TWO):
            take_seat(client, key, domain, bond=Wei(BOND))
        yield Place(tmp_path, chain, clock, client, server.url, domain, password_file)


# ── looking ──


def test_a_standing_is_bond_seat_and_what_is_owed(pm_node: Command, place: Place) -> None:
    told = pm_node("contracts", "standing", "--json", *place.words()).json
    assert told == {
        "chain_id": CHAIN_ID,
        "account": WHO,
        "registry": PLAN.registry,
        "escrow": PLAN.escrow,
        "bond": str(BOND),
        "minimum_bond": str(BOND),
        "leaves_at": None,
        "slashed": False,
        "markets": [PLAN.escrow],
        "seat": "taken",
        "owed": {"registry": "0", "escrow": "0"},
    }
    shown = pm_node("contracts", "standing", *place.words()).out
    assert f"bond            {BOND:,} wei" in shown
    assert f"taken in the escrow {PLAN.escrow}" in shown


def test_any_account_can_be_looked_at_without_one_of_ones_own(
    pm_node: Command, place: Place
) -> None:
    words = ("--chain", place.url, "--escrow", PLAN.escrow, "--data-dir", place.folder / "none")
    for account, seat in ((OTHER, "taken"), (OTHER.lower(), "taken"), (CITIZEN, "stranger")):
        ran = pm_node("contracts", "standing", account, "--json", *words)
        assert (ran.code, ran.json["seat"]) == (0, seat)
    for wrong in ("0x12", "nobody"):
        pm_node("contracts", "standing", wrong, *words).refused(2, wrong, "no account")


def test_a_data_directory_knows_its_market(pm_node: Command, place: Place) -> None:
    words = place.words(market=False)
    pm_node("contracts", "standing", *words).refused(2, "escrow", "--escrow")
    journal = Journal(Home(Path(words[3])).journal)
    journal.remember("market", [CHAIN_ID, PLAN.escrow])
    journal.close()
    assert pm_node("contracts", "standing", "--json", *words).json["escrow"] == PLAN.escrow


# ── leaving ──


def test_a_broker_leaves_and_has_its_bond_back_after_a_hundred_days(
    pm_node: Command, place: Place
) -> None:
    words, leaves_at = place.words(), START + EXIT_DELAY
    ran = pm_node("contracts", "leave", "--yes", *words)
    assert ran.code == 0, ran.err
    said, cost, _ = ran.err.splitlines()
    assert said.startswith(f"{WHO} signs for none of its markets (1) from now on")
    assert cost.startswith(f"to send on chain {CHAIN_ID}: giveNotice; at most ")
    assert f"wei, paid by {WHO}" in cost
    date = datetime.fromtimestamp(leaves_at, UTC).isoformat()
    assert f"from {leaves_at} ({date}) on" in ran.out
    standing = pm_node("contracts", "standing", "--json", *words).json
    assert (standing["leaves_at"], standing["seat"]) == (leaves_at, "empty")

    place.clock.now = leaves_at - 1
    early = pm_node("contracts", "take-bond", "--yes", *words)
    early.refused(1, f"until {leaves_at} ({date})", str(leaves_at - 1))
    place.clock.now = leaves_at + 2  # a chain nobody uses has a block every other second
    held = place.balance(WHO)
    ran = pm_node("contracts", "take-bond", "--yes", "--json", *words)
    assert ran.code == 0, ran.err
    assert (ran.json["sent"], ran.json["paid"]) == (["takeBond", "withdraw"], str(BOND))
    assert (ran.json["bond"], ran.json["owed"]["registry"]) == ("0", "0")
    spent = sum(int(line.split()[-2].replace(",", "")) for line in ran.err.splitlines()[1:])
    assert place.balance(WHO) == held + BOND - spent
    pm_node("contracts", "take-bond", *words).refused(1, WHO, "no bond", "nothing to take")
    pm_node("contracts", "leave", *words).refused(1, WHO, "no bond", "nothing to leave")


def test_a_notice_is_given_once_and_a_taken_bond_is_paid_out_by_typing_it_again(
    pm_node: Command, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = place.words()
    pm_node("contracts", "take-bond", *words).refused(1, "gave no notice", "contracts leave")
    pm_node("contracts", "leave", "--yes", *words)
    blocks = place.blocks
    again = pm_node("contracts", "leave", "--json", *words)
    assert (again.code, again.json["sent"], again.err) == (0, [], "")
    assert place.blocks == blocks
    place.clock.now += EXIT_DELAY
    whole = RegistryView.withdraw
    bad = dataclasses.replace(place.registry.withdraw(OTHER), name="withdraw")
    monkeypatch.setattr(RegistryView, "withdraw", lambda *_, **__: bad)  # nothing is owed to OTHER
    cut_off = pm_node("contracts", "take-bond", "--yes", *words)
    assert cut_off.code == 5
    assert f"NothingOwed: asset = 0x{'00' * 20}, account = {OTHER}, owed = 0" in cut_off.err
    monkeypatch.setattr(RegistryView, "withdraw", whole)
    ran = pm_node("contracts", "take-bond", "--yes", "--json", *words)
    assert (ran.json["sent"], ran.json["paid"]) == (["withdraw"], str(BOND))


def test_whoever_leaves_with_trades_open_is_told_how_they_will_pay(
    pm_node: Command, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = place.words()
    Journal(Home(Path(words[5])).journal).close()
    monkeypatch.setattr(Journal, "trades", lambda *_, **__: [None, None])
    ran = pm_node("contracts", "leave", "--yes", *words)
    assert ran.code == 0
    assert "2 trades are open" in ran.err
    assert "pm-node contracts collect" in ran.err


# ── two quotes of one trade ──


def test_a_report_of_two_quotes_slashes_who_signed_both_and_pays_reporter_and_buyer(
    pm_node: Command, place: Place
) -> None:
    one, two = place.receipt("1.json"), place.receipt("2.json", (ONE,), grace=31)
    words = place.words(REPORTER, market=False)
    ran = pm_node("contracts", "report", one, two, "--yes", "--json", *words)
    assert ran.code == 0, ran.err
    assert (ran.json["sent"], ran.json["convicted"]) == (["proveEquivocation"], [WHO])
    said = ran.err.splitlines()[0]
    buyer = parties.BUYER.account
    assert said.startswith(f"{WHO} signed two quotes of trade 0x{parties.TRADE_ID.hex()}")
    assert f"{BOND // 20:,} to buyer {buyer}" in said
    slashed, spared = place.registry.standing(WHO), place.registry.standing(OTHER)
    assert (slashed.bond, slashed.slashed, spared.bond) == (0, True, BOND)
    shown = pm_node("contracts", "standing", *place.words()).out
    assert "slashed: it lost its bond" in shown
    again = pm_node("contracts", "report", one, two, "--yes", *words)
    again.refused(1, WHO, "was slashed already")

    # the parts lie in the registry: a reporter fetches its own, and for the buyer too
    held = place.balance(buyer)
    ran = pm_node("contracts", "collect", "--yes", "--json", *place.words(REPORTER))
    assert (ran.json["sent"], ran.json["paid"]) == (["withdraw"], str(BOND // 20))
    assert pm_node("contracts", "collect", buyer, "--yes", *place.words(REPORTER)).code == 0
    assert place.balance(buyer) == held + BOND // 20
    nothing = pm_node("contracts", "collect", buyer, "--yes", *place.words(REPORTER))
    assert (nothing.code, nothing.err) == (0, "")
    assert "nothing was owed" in nothing.out


def test_all_who_signed_both_are_convicted_and_two_buyers_get_nothing(
    pm_node: Command, place: Place
) -> None:
    one = place.receipt("1.json")
    two = place.receipt("2.json", buyer=CITIZEN)
    ran = pm_node("contracts", "report", one, two, "--yes", "--json", *place.words(REPORTER))
    assert ran.code == 0, ran.err
    assert sorted(ran.json["convicted"]) == sorted([WHO, OTHER])
    assert "to nobody (two buyers are named)" in ran.err
    assert place.registry.credit(parties.BUYER.account) == 0
    assert ran.json["owed"]["registry"] == str(2 * (BOND // 20))


def test_receipts_that_convict_nobody_cost_nothing_and_are_told_why(
    pm_node: Command, place: Place
) -> None:
    one = place.receipt("1.json")
    elsewhere = dataclasses.replace(place.domain, escrow=CITIZEN)
    wrong_chain = dataclasses.replace(place.domain, chain_id=1)
    words, blocks = place.words(REPORTER), place.blocks
    for changes, fragment in (
        ({}, "both are the quote 0x"),
        ({"trade_id": Digest(b"\x07" * 32)}, f"the second of 0x{'07' * 32}"),
        ({"signers": (REPORTER,), "grace": 31}, f"the second by {CITIZEN}: nobody signed both"),
        ({"domain": elsewhere, "grace": 31}, CITIZEN),
    ):
        other = place.receipt("2.json", **changes)
        ran = pm_node("contracts", "report", one, other, "--yes", *words)
        ran.refused(1, "no-conflict", fragment)
    first = place.receipt("1.json", domain=wrong_chain)
    second = place.receipt("2.json", domain=wrong_chain, grace=31)
    ran = pm_node("contracts", "report", first, second, "--yes", *words)
    ran.refused(5, "the chain's id is 999, not 1")
    one.write_text("{}")
    pm_node("contracts", "report", one, second, *words).refused(1, "malformed")
    pm_node("contracts", "report", one, place.folder / "no", *words).refused(2, "does not exist")
    assert place.blocks == blocks


# ── what real money is asked ──


def test_no_real_money_is_sent_without_a_yes_nor_beside_a_node_that_runs(
    pm_node: Command, place: Place
) -> None:
    blocks, words = place.blocks, place.words()
    receipts = (place.receipt("1.json"), place.receipt("2.json", (ONE,), grace=31))
    for command in (("leave",), ("report", *receipts)):
        ran = pm_node("contracts", *command, *words)
        assert (ran.code, ran.out) == (2, "")
        assert "at most" in ran.err
        assert "this spends real money: say --yes" in ran.err
        with Home(Path(words[5])).lock():
            ran = pm_node("contracts", *command, "--yes", *words)
        assert ran.code == 4
        assert "in use by process" in ran.err
    assert place.blocks == blocks


def test_an_account_that_cannot_pay_is_told_how_much_it_lacks(
    pm_node: Command, place: Place
) -> None:
    receipts = (place.receipt("1.json"), place.receipt("2.json", (ONE,), grace=31))
    ran = pm_node("contracts", "report", *receipts, "--yes", *place.words(b"\x14" * 32))
    assert ran.code == 5
    assert "holds 0 wei, and this begins with" in ran.err
    assert place.registry.standing(WHO).bond == BOND


@pytest.mark.parametrize("command", ["standing", "leave", "take-bond", "collect"])
def test_what_is_not_a_market_of_ours_is_not_dealt_with(
    pm_node: Command, place: Place, command: str
) -> None:
    words = place.words(market=False)
    pm_node("contracts", command, *words[2:]).refused(2, "chain", "--chain URL")
    ran = pm_node("contracts", command, *words, "--escrow", CITIZEN)
    ran.refused(5, f"no code at {CITIZEN}")
    ran = pm_node("contracts", command, *words, "--escrow", PLAN.registry)
    ran.refused(5, "is not that of ParameterEscrow")
    ran = pm_node("contracts", command, *words, "--escrow", PLAN.escrow, "--chain-id", "1")
    ran.refused(5, "the chain's id is 999, not 1")
