"""``pm-node contracts``: a whole market put on a chain, and one that is there looked at.

What an account has in it, its bond above all, is the business of `node.cli.bonds`.

What a market is built with cannot be changed later, and on a chain of real money it costs real
money: there every term is named, the cost is said first, and nothing is sent without a yes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.invocation import Invocation, on_node
from node.config.table import ETHER, ConfigError, Origin

if TYPE_CHECKING:
    from node.chain.check import MarketTerms
    from node.chain.client import ChainClient
    from node.chain.deploy import MarketPlan, Part
    from node.chain.transactions import Wallet
    from node.config.loading import Loaded
    from node.home import Home
    from node.identity import AccountKey
    from node.protocol.types import Address, Digest, Wei

FAUCET: Final = 100 * ETHER
DAY: Final = 86_400
NAMED: Final = (
    ("DeliveryCourt", "court"),
    ("BrokerRegistry", "registry"),
    ("ParameterEscrow", "escrow"),
    ("ClearingHouse", "clearing_house"),
)
"""Each contract of a market, and what it is called in the file."""

chain_id_option = click.option(
    "--chain-id", type=click.IntRange(min=1), default=None, help="refuse any chain but this one"
)


@click.group()
def contracts() -> None:
    """A market's contracts: put on a chain, verified; and what an account has in them."""


@contracts.command("deploy")
@click.option("--salt", default=None, metavar="0x…", help="another market of the very same terms")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="file of addresses (default: deployments/<chain id>.json in the data directory)",
)
@click.option(
    "--minimum-challenge",
    type=click.IntRange(min=1, max=30 * DAY),
    default=DAY,
    show_default=True,
    metavar="SECONDS",
    help="the shortest time in which brokers can veto a root of a clearing round",
)
@click.option("--yes", is_flag=True, help="spend real money without asking")
@chain_id_option
@on_node
def deploy(
    node: Invocation,
    salt: str | None,
    out: Path | None,
    minimum_challenge: int,
    yes: bool,
    chain_id: int | None,
) -> None:
    """Deploy what is not there yet of court, registry, escrow and clearing house.

    --chain names the chain, --brokers (0x…,0x…) who may ever sign, --quorum (m/n) how many must,
    --bond the least that each puts up, --minimum-challenge how long the root of a clearing round
    can be vetoed at the least. The addresses follow from these terms: a second run deploys nothing,
    and one that was cut off is continued by typing it again.
    """
    from node.chain.client import is_development_chain
    from node.chain.deployment import (
        check_market,
        deployments_file,
        describe,
        missing_parts,
        read_deployments,
        write_deployment,
    )

    loaded = _with_commas(node).load()
    home = node.home(loaded.config)
    with chain_client(loaded, chain_id) as client:
        here = client.chain_id()
        path = out or deployments_file(home.root, here)
        read_deployments(path, here)  # a file that cannot be used is found before money is spent
        play_money = is_development_chain(client)
        plan = dataclasses.replace(
            _plan(loaded, home, salt, play_money=play_money), minimum_challenge=minimum_challenge
        )
        missing = missing_parts(client, plan)
        if missing:
            account = account_key(node.existing_home(loaded.config), loaded)
            with home.lock():
                _send(client, account, plan, missing, yes=yes, play_money=play_money)
        terms = check_market(client, plan)
        market = describe(plan, _release())
        if out is None:
            home.prepare()  # where nothing had to be paid, there may be no data directory yet
        write_deployment(path, here, market)
    deployed = [part.name for part in missing]
    if node.json_output:
        told = {"chain_id": here, "deployed": deployed, "file": str(path), **market}
        click.echo(json.dumps(told, indent=2))
        return
    _show(here, market, terms, new=deployed)
    said = f"{len(deployed)} deployed" if deployed else "all of it was there: nothing was deployed"
    click.echo(f"{said}; addresses are in {path}")


@contracts.command("verify")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="file of addresses (default: as `contracts deploy` writes it)",
)
@chain_id_option
@on_node
def verify(node: Invocation, source: Path | None, chain_id: int | None) -> None:
    """Compare the code on a chain with the compiled contracts, byte for byte.

    --chain names the chain. The newest market of the file is looked at, or that of --escrow.
    """
    from node.chain.deployment import check_market, deployments_file, plan_of

    loaded = node.load()
    with chain_client(loaded, chain_id) as client:
        here = client.chain_id()
        path = source or deployments_file(node.home(loaded.config).root, here)
        market = _recorded(path, here, loaded.config.escrow)
        plan = plan_of(market)
        _require_own(plan, market)
        terms = check_market(client, plan)
    if node.json_output:
        seated = sorted(terms.seated)
        told = {"chain_id": here, "verified": True, **market, "seated": seated}
        click.echo(json.dumps(told, indent=2))
        return
    _show(here, market, terms)
    click.echo("the code of each is as compiled")


# ── what is typed ──


def _with_commas(node: Invocation) -> Invocation:
    """Take ``--brokers 0x…,0x…`` for two."""
    given = node.flags.get("brokers") or ()
    assert isinstance(given, tuple)
    apart = tuple(part for text in given for part in str(text).split(",") if part.strip())
    return dataclasses.replace(node, flags={**node.flags, "brokers": apart})


@contextmanager
def chain_client(loaded: Loaded, chain_id: int | None) -> Iterator[ChainClient]:
    from node.chain.client import ChainClient
    from node.chain.errors import WrongContractError

    if not loaded.config.chain:
        raise ConfigError("chain", "", Origin("default"), "name the chain with --chain URL")
    client = ChainClient(loaded.config.chain)
    try:
        if chain_id is not None and (here := client.chain_id()) != chain_id:
            raise WrongContractError(f"the chain's id is {here}, not {chain_id}")
        yield client
    finally:
        client.close()


def _plan(loaded: Loaded, home: Home, salt: str | None, *, play_money: bool) -> MarketPlan:
    """Return the terms as named; only of play money, unnamed ones are those of a devnet."""
    from node.chain.deploy import SHARED_SALT, MarketPlan
    from node.protocol.types import NO_ADDRESS, Wei

    config, origins = loaded
    if not play_money:
        for key, remedy in (
            ("brokers", "name who may ever sign quotes, --brokers 0x…,0x…"),
            ("quorum", "name how many of the brokers must sign, such as --quorum 2/3"),
            ("bond", "name the least that a broker puts up, in wei"),
        ):
            if origins[key].kind == "default" or not getattr(config, key):
                raise ConfigError(key, "", origins[key], f"{remedy}; it cannot be changed later")
    brokers = config.brokers or (only_account(home),)
    if len(set(brokers)) < len(brokers) or NO_ADDRESS in brokers:
        named = ", ".join(brokers)
        raise ConfigError("brokers", named, origins["brokers"], "each broker once, and no zero")
    threshold, among = config.quorum
    if among != len(brokers):
        remedy = f"expected m/{len(brokers)}, for as many brokers are named"
        raise ConfigError("quorum", f"{threshold}/{among}", origins["quorum"], remedy)
    return MarketPlan(
        salt=SHARED_SALT if salt is None else _salt(salt),
        brokers=brokers,
        threshold=threshold,
        minimum_bond=Wei(ETHER) if config.bond is None else config.bond,
    )


def _salt(text: str) -> Digest:
    from node.protocol.types import DIGEST_BYTES, Digest

    with_digits = text.removeprefix("0x")
    try:
        salt = bytes.fromhex(with_digits)
    except ValueError:
        salt = b""
    if len(with_digits) != 2 * DIGEST_BYTES or len(salt) != DIGEST_BYTES:
        raise ConfigError("salt", text, Origin("flag", "--salt"), "expected 32 bytes in hex")
    return Digest(salt)


# ── the account ──


def only_account(home: Home) -> Address:
    from node.identity import MissingKeyError, list_accounts

    held = list_accounts(home.keystore)
    if len(held) != 1:
        found = ", ".join(held) or "none: make one with `pm-node keys new`"
        raise MissingKeyError(f"expected one account in {home.keystore}, found {found}")
    return held[0]


def account_key(home: Home, loaded: Loaded) -> AccountKey:
    from node.cli.keys import _password
    from node.identity import load_account

    address = only_account(home)
    return load_account(home.keystore, _password(loaded.config, home), address)


# ── what is sent ──


def _send(
    client: ChainClient,
    account: AccountKey,
    plan: MarketPlan,
    missing: list[Part],
    *,
    yes: bool,
    play_money: bool,
) -> None:
    from node.chain.deploy import deploy_part
    from node.chain.deployment import estimate
    from node.chain.transactions import Wallet

    wallet = Wallet(account.private_key, client.chain_id())
    expected = estimate(client, wallet, missing)
    names = ", ".join(part.name for part in missing)
    say(
        f"a market of {', '.join(plan.brokers)}, of whom {plan.threshold} must sign, "
        f"each under a bond of {plan.minimum_bond:,} wei or more; a root can be vetoed for "
        f"{plan.minimum_challenge:,} s or more"
    )
    say(
        f"to deploy on chain {client.chain_id()}: {names}; at most {expected.gas:,} gas at "
        f"{expected.price:,} wei = {expected.cost:,} wei, paid by {wallet.address}"
    )
    afford(client, wallet, expected.least_balance, "Deploy?", yes=yes, play_money=play_money)
    for part in missing:
        deploy_part(client, wallet, part)
        say(f"{part.name} is at {part.address}")


def afford(
    client: ChainClient, wallet: Wallet, needed: Wei, question: str, *, yes: bool, play_money: bool
) -> None:
    """Return once the account holds what is needed, and somebody has said yes to real money.

    Play money is asked for where there is too little. Raises `UnfundedAccountError`,
    `ChainUnavailableError` while a transaction of the account waits, and click's own.
    """
    from node.chain.deployment import require_funds, require_none_pending
    from node.chain.errors import UnfundedAccountError
    from node.protocol.types import Wei

    require_none_pending(client, wallet)
    try:
        require_funds(client, wallet, needed)
    except UnfundedAccountError:
        if not play_money:
            raise
        client.request_funds(wallet.address, Wei(FAUCET))
    if not (yes or play_money):
        if not sys.stdin.isatty():
            raise click.UsageError("this spends real money: say --yes")
        click.confirm(question, abort=True, err=True)


def say(text: str) -> None:
    click.echo(text, err=True)


# ── what is told ──


def _release() -> str:
    from importlib.metadata import version

    return version("pm-node")


def _recorded(path: Path, chain_id: int, escrow: Address) -> dict[str, Any]:
    """Return the market of the file that has this escrow, or the newest."""
    from node.chain.deployment import DeploymentFileError, read_deployments
    from node.protocol.types import NO_ADDRESS

    markets = read_deployments(path, chain_id)
    if not markets:
        raise DeploymentFileError(
            f"there is no market of chain {chain_id} in {path}; "
            "deploy one with `pm-node contracts deploy`, or name the file with --from"
        )
    if escrow == NO_ADDRESS:
        return markets[-1]
    for market in markets:
        if market["escrow"] == escrow:
            return market
    raise DeploymentFileError(f"{path} has no market with the escrow {escrow}")


def _require_own(plan: MarketPlan, market: dict[str, Any]) -> None:
    """Raise unless this version's contracts, with the file's terms, have the file's addresses."""
    from node.chain.errors import WrongContractError

    for _, name in NAMED:
        if getattr(plan, name) != market[name]:
            raise WrongContractError(
                f"the {name} at {market[name]} is of other contracts than these "
                f"(release {str(market.get('release'))[:20]}; this is {_release()}), or the file "
                "was changed: verify it with the version that deployed it"
            )


def _show(
    chain_id: int, market: dict[str, Any], terms: MarketTerms, new: list[str] | None = None
) -> None:
    click.echo(f"chain           {chain_id}")
    for contract, name in NAMED:
        mark = "  new" if new and contract in new else ""
        click.echo(f"{name.replace('_', ' '):14}  {market[name]}{mark}")
    click.echo(f"quorum          {terms.threshold} of {len(market['brokers'])}")
    for broker in market["brokers"]:
        click.echo(
            f"broker          {broker}" + ("" if broker in terms.seated else "  no seat yet")
        )
    click.echo(f"least bond      {terms.minimum_bond:,} wei")
    click.echo(f"least challenge {market['minimum_challenge']:,} s")
