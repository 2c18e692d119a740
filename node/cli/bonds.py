"""``pm-node contracts standing | leave | take-bond | report | collect``: a bond, and what is owed.

A bond is put up by a broker's first start, and leaves by two commands with a hundred days between
them. What the registry owes besides, a victim's and a reporter's part of a slashed bond, no node
collects by itself: `collect` does. Each looks at the chain first and sends what is left to do, so
that one that was cut off is continued by typing it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.contracts import (
    account_key,
    afford,
    chain_client,
    chain_id_option,
    only_account,
    say,
)
from node.cli.invocation import Invocation, on_node
from node.config.table import ConfigError, Origin

if TYPE_CHECKING:
    from node.chain.check import MarketTerms
    from node.chain.client import ChainClient
    from node.chain.registry import RegistryCall, RegistryView, Standing
    from node.config.loading import Loaded
    from node.home import Home
    from node.protocol.eip712 import Domain
    from node.protocol.types import Address, UnixTime

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_yes = click.option("--yes", is_flag=True, help="spend real money without asking")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A market on a chain, and the data directory that a command is about."""

    client: ChainClient
    domain: Domain
    terms: MarketTerms
    registry: RegistryView
    loaded: Loaded
    home: Home


@click.command("standing")
@click.argument("account", required=False, metavar="[0x…]")
@chain_id_option
@on_node
def standing(node: Invocation, account: str | None, chain_id: int | None) -> None:
    """Say what an account has in a market: bond, notice, seat, and what it is owed.

    --chain names the chain. The market is that of --escrow, or of the data directory; the account
    that of the data directory, or the one that is named. Takes no password and sends nothing.
    """
    with _market(node, chain_id) as place:
        _show(node, place, _account(node, place, account), {})


@click.command("leave")
@_yes
@chain_id_option
@on_node
def leave(node: Invocation, yes: bool, chain_id: int | None) -> None:
    """Give notice as a broker: its signature counts nowhere from now on.

    The bond stays up for 100 days more, for what was signed before; `take-bond` takes it then. The
    account cannot serve again before that. --chain names the chain.
    """
    from node.chain.errors import StandingError

    with _market(node, chain_id) as place:
        broker = _account(node, place, None)
        found = place.registry.standing(broker)
        if not found.bond:
            raise StandingError(f"{_nothing_up(place, found)}: there is nothing to leave")
        calls = [] if found.leaves_at is not None else [place.registry.give_notice(found)]
        if calls:
            say(
                f"{broker} signs for none of its markets ({len(found.markets)}) from now on, and "
                f"its bond of {found.bond:,} wei stays up for 100 days"
            )
            _say_open_trades(place.home)
        sent = _act(node, place, calls, yes=yes)
        _show(node, place, broker, {"sent": sent})


@click.command("take-bond")
@_yes
@chain_id_option
@on_node
def take_bond(node: Invocation, yes: bool, chain_id: int | None) -> None:
    """Take a bond back, 100 days after `leave`; it comes to the account.

    --chain names the chain.
    """
    from node.chain.errors import StandingError

    with _market(node, chain_id) as place:
        broker, registry = _account(node, place, None), place.registry
        found = registry.standing(broker)
        if not found.bond and not found.credit:
            raise StandingError(f"{_nothing_up(place, found)}: there is nothing to take")
        calls = []
        if found.bond:
            if found.leaves_at is None:
                raise StandingError(
                    f"{broker} gave no notice in the registry {registry.address}, and its bond of "
                    f"{found.bond} wei is up: give it with `pm-node contracts leave`"
                )
            now = _now(place.client)
            if now < found.leaves_at:
                raise StandingError(
                    f"the bond of {broker} is up until {found.leaves_at} ({_date(found.leaves_at)})"
                    f"; the chain's time is {now} ({_date(now)})"
                )
            calls.append(registry.take_bond(found))
        calls.append(registry.withdraw(broker))
        sent = _act(node, place, calls, yes=yes)
        _show(node, place, broker, {"sent": sent, "paid": str(found.bond + found.credit)})


@click.command("report")
@click.argument("first", metavar="FIRST.json", type=FILE)
@click.argument("second", metavar="SECOND.json", type=FILE)
@_yes
@chain_id_option
@on_node
def report(node: Invocation, first: Path, second: Path, yes: bool, chain_id: int | None) -> None:
    """Have a broker slashed that signed two quotes of one trade.

    FIRST.json and SECOND.json are receipts as `pm-node trade receipt` writes them; the market is
    theirs. Who signed both loses its bond: a twentieth goes to the buyer, if both name the same,
    and a twentieth to whoever reports, for `collect`; the rest to nobody. A report that waits to be
    mined can be copied, and the copy mined first. --chain names the chain.
    """
    from node.chain.errors import StandingError
    from node.cli.receipt_file import read
    from node.protocol.equivocation import equivocations
    from node.protocol.errors import RemoteProtocolError

    one, other = read(first), read(second)
    if one.domain != other.domain:
        raise RemoteProtocolError(
            "no-conflict",
            f"the first is of chain {one.domain.chain_id}, escrow {one.domain.escrow}, the second "
            f"of chain {other.domain.chain_id}, escrow {other.domain.escrow}",
        )
    proofs = equivocations(
        one.domain, one.quote, one.broker_signatures, other.quote, other.broker_signatures
    )
    with _market(node, chain_id, one.domain) as place:
        reporter, registry = _account(node, place, None), place.registry
        standings = {proof.broker: registry.standing(proof.broker) for proof in proofs}
        due = [proof for proof in proofs if standings[proof.broker].bond]
        if not due:
            raise StandingError(
                "; ".join(_nothing_up(place, each) for each in standings.values())
                + ": there is nothing left to lose"
            )
        for proof in due:
            bond = standings[proof.broker].bond
            victim = f"buyer {proof.victim}" if proof.victim else "nobody (two buyers are named)"
            say(
                f"{proof.broker} signed two quotes of trade 0x{one.quote.trade_id.hex()}, and "
                f"loses its bond of {bond:,} wei: about {bond // 20:,} to {victim}, as much to "
                f"{reporter}"
            )
        calls = [registry.prove_equivocation(one.domain.escrow, proof) for proof in due]
        sent = _act(node, place, calls, yes=yes)
        convicted = [proof.broker for proof in due]
        _show(node, place, reporter, {"sent": sent, "convicted": convicted})


@click.command("collect")
@click.argument("account", required=False, metavar="[0x…]")
@_yes
@chain_id_option
@on_node
def collect(node: Invocation, account: str | None, yes: bool, chain_id: int | None) -> None:
    """Have paid out what the registry and the escrow of a market owe an account.

    A running node draws from its escrow by itself, and never from the registry: the parts of a
    slashed bond come by this. It may be done for another account, which alone is paid. --chain
    names the chain.
    """
    with _market(node, chain_id) as place:
        owner, registry = _account(node, place, account), place.registry
        places = (registry.address, place.domain.escrow)
        owed = {at: registry.credit(owner, at=at) for at in places}
        calls = [registry.withdraw(owner, at=at) for at, amount in owed.items() if amount]
        sent = _act(node, place, calls, yes=yes)
        _show(node, place, owner, {"sent": sent, "paid": str(sum(owed.values()))})


# ── where ──


@contextmanager
def _market(
    node: Invocation, chain_id: int | None, domain: Domain | None = None
) -> Iterator[_Place]:
    """Look at the market that is named, by `domain` or as `standing` says."""
    from node.chain.check import check_escrow
    from node.chain.registry import RegistryView
    from node.protocol.eip712 import Domain

    loaded = node.load()
    home = node.home(loaded.config)
    with chain_client(loaded, chain_id) as client:
        if domain is None:
            here = client.chain_id()
            domain = Domain(chain_id=here, escrow=_escrow(loaded, home, here))
        terms = check_escrow(client, domain)
        yield _Place(
            client=client,
            domain=domain,
            terms=terms,
            registry=RegistryView(client, terms.registry),
            loaded=loaded,
            home=home,
        )


def _escrow(loaded: Loaded, home: Home, chain_id: int) -> Address:
    """Return the escrow of the settings, or that in which the data directory began or deployed."""
    from node.chain.deployment import newest_escrow
    from node.journal import Journal
    from node.protocol.types import NO_ADDRESS, Address

    if loaded.config.escrow != NO_ADDRESS:
        return loaded.config.escrow
    if home.journal.exists():
        journal = Journal(home.journal, read_only=True)
        try:
            match journal.recall("market"):
                case [int() as known, str() as escrow] if known == chain_id:
                    return Address(escrow)
        finally:
            journal.close()
    found = newest_escrow(home.root, chain_id)
    if found is None:
        remedy = f"{home.root} is of no market of chain {chain_id}: name one with --escrow"
        raise ConfigError("escrow", "", Origin("default"), remedy)
    return found


def _account(node: Invocation, place: _Place, named: str | None) -> Address:
    from node.protocol.schema import checksummed

    if named is None:
        return only_account(node.existing_home(place.loaded.config))
    try:
        return checksummed(bytes.fromhex(named.removeprefix("0x")))
    except ValueError as error:
        raise click.BadParameter(f"{named!r} is no account", param_hint="0x…") from error


def _now(client: ChainClient) -> UnixTime:
    """Return the chain's time."""
    from node.chain import answers

    block = answers.mapping(client.ask("eth_getBlockByNumber", "latest", False), "a block")
    return answers.time(block.get("timestamp"), "a block's timestamp")


# ── what is sent ──


def _act(node: Invocation, place: _Place, calls: Sequence[RegistryCall], *, yes: bool) -> list[str]:
    """Say what calls cost at most, and send them; return their names."""
    from node.chain.client import is_development_chain
    from node.chain.registry import Web3Registry
    from node.chain.transactions import Wallet
    from node.protocol.types import Wei

    if not calls:
        return []
    client, here = place.client, place.domain.chain_id
    home = node.existing_home(place.loaded.config)
    wallet = Wallet(account_key(home, place.loaded).private_key, here)
    with home.lock():
        gas, price = sum(call.gas for call in calls), wallet.fees(client).max_fee
        cost = Wei(gas * price)
        say(
            f"to send on chain {here}: {', '.join(call.name for call in calls)}; at most "
            f"{gas:,} gas at {price:,} wei = {cost:,} wei, paid by {wallet.address}"
        )
        play_money = is_development_chain(client)
        afford(client, wallet, cost, "Send?", yes=yes, play_money=play_money)
        registry = Web3Registry(client, wallet, place.registry.address)
        for call in calls:
            mined = registry.send(call)
            say(f"{call.name} of {call.to} cost {mined.fee:,} wei")
    return [call.name for call in calls]


def _say_open_trades(home: Home) -> None:
    from node.journal import Journal

    if not home.journal.exists():
        return
    journal = Journal(home.journal, read_only=True)
    try:
        count = len(list(journal.trades(open_only=True)))
    finally:
        journal.close()
    if count:
        say(
            f"{count} trades are open in {home.root}, whose broker does not start after this: "
            "what they will owe it, `pm-node contracts collect` draws"
        )


# ── what is told ──


def _show(node: Invocation, place: _Place, account: Address, done: dict[str, Any]) -> None:
    from node.chain.check import escrow_artifact, escrow_codec

    found = place.registry.standing(account)
    codec = escrow_codec(escrow_artifact())
    seat = codec.decode_seat(place.client.view(place.domain.escrow, codec.seat_of(account)))
    owed = place.registry.credit(account, at=place.domain.escrow)
    if node.json_output:
        told = {
            **done,
            "chain_id": place.domain.chain_id,
            "account": account,
            "registry": place.registry.address,
            "escrow": place.domain.escrow,
            "bond": str(found.bond),
            "minimum_bond": str(place.terms.minimum_bond),
            "leaves_at": found.leaves_at,
            "slashed": found.slashed,
            "markets": list(found.markets),
            "seat": seat.name.lower(),
            "owed": {"registry": str(found.credit), "escrow": str(owed)},
        }
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"account         {account}")
    click.echo(f"registry        {place.registry.address}")
    click.echo(f"bond            {found.bond:,} wei, of {place.terms.minimum_bond:,} at the least")
    for market in found.markets:
        click.echo(f"market          {market}")
    click.echo(f"seat            {seat.name.lower()} in the escrow {place.domain.escrow}")
    click.echo(f"owed            {found.credit:,} wei by the registry, {owed:,} by the escrow")
    for line in _next(found, owed):
        click.echo(line)
    if "paid" in done:
        click.echo(f"{int(done['paid']):,} wei were paid" if done["sent"] else "nothing was owed")


def _next(found: Standing, owed: int) -> Iterator[str]:
    """Say what a standing means."""
    if found.slashed:
        yield "slashed: it lost its bond, and is never a broker again"
    if found.leaves_at is not None:
        yield (
            f"gave notice: `pm-node contracts take-bond` takes the bond from {found.leaves_at} "
            f"({_date(found.leaves_at)}) on"
        )
    if found.credit or owed:
        yield "what is owed is paid out by `pm-node contracts collect`"


def _nothing_up(place: _Place, found: Standing) -> str:
    why = ": it was slashed already" if found.slashed else ""
    return f"{found.account} has no bond in the registry {place.registry.address}{why}"


def _date(time: UnixTime) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):  # an endpoint may say anything
        return "no date"
