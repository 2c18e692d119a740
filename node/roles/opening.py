"""Opens what a node owns, from its settings: observer, chain, account, escrow, journal.

A chain that is down is waited for; everything else that is wrong ends here, by name.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from node.chain.answers import wei
from node.chain.client import ChainClient, Endpoint, is_development_chain
from node.chain.deploy import MarketPlan, deploy_market, load_or_make_salt
from node.chain.deployment import newest_escrow
from node.chain.errors import ChainUnavailableError, WrongContractError
from node.chain.port import Escrow
from node.chain.seats import take_seat
from node.chain.web3_escrow import open_escrow
from node.chronicle import ChainAway
from node.config.table import Config, ConfigError, Origin
from node.home import Home, find_broker, state_directory
from node.identity import (
    AccountKey,
    create_account,
    list_accounts,
    load_account,
    load_or_create_peer_key,
    read_password,
)
from node.journal import Journal
from node.observe import Console, JsonLines, Level, Observer
from node.params.families.base import ArchitectureError
from node.params.families.factories import FactoryError, allow_said
from node.params.families.own import prepare
from node.protocol import cbor
from node.protocol.eip712 import Domain
from node.protocol.types import NO_ADDRESS, Address, Wei
from node.roles.ports import remember, remembered
from node.settlement.watch import POLL_SECONDS
from node.station.station import Keys

T = TypeVar("T")
PLAY_MONEY: Final = Wei(100 * 10**18)
"""What the faucet of a development chain gives to a new account."""
PLAY_VALUE: Final = Wei(10**18)
"""What an agent with play money bids for the removal of its whole loss."""
PLAY_BOND: Final = Wei(10**18)
"""What a broker puts up on a development chain, and the least in the registry there."""
PLAY_MONEY_NOTICE: Final = "This is a development chain: the money is play money."
LONGEST_BACKOFF: Final = 5.0
CONFIRMATIONS: Final = 12
"""On a chain of real money, where none were named: deeper than its usual reorganisations."""


@dataclass
class Opened:
    """What a node of either role has open."""

    config: Config
    home: Home
    observer: Observer
    journal: Journal
    keys: Keys
    escrow: Escrow
    chain_url: str
    brokers: tuple[str, ...]
    trusted: frozenset[Address]
    confirmations: int
    value_per_unit_gain: Wei
    play_money: bool
    endpoint: Endpoint
    """The chain, for whatever else of it is opened."""


def _allow_modules(config: Config) -> None:
    """Import what the setting `modules` names, and look at it once, before any peer is heard.

    Raises `FactoryError` for what is not to be had, or is no good.
    """
    allow_said(config.modules)
    try:
        prepare()
    except ArchitectureError as error:
        raise FactoryError(f"the setting `modules`: {error.detail}") from error


def open_observer(
    config: Config,
    home: Home,
    stack: ExitStack,
    *,
    console: bool,
) -> Observer:
    """Log events to the data directory, and to standard error too with `console`."""
    observer = Observer().bind(node=config.data_dir.name if config.data_dir else config.role)
    log = JsonLines(home.logs / f"{config.role}.jsonl")
    stack.callback(log.close)
    observer.subscribe(log)
    if console:
        observer.subscribe(Console(sys.stderr, level=Level.named(config.log_level)))
    return observer


def open_node(
    config: Config,
    home: Home,
    observer: Observer,
    environ: Mapping[str, str],
    stack: ExitStack,
    *,
    endpoint: Endpoint | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Opened:
    """Open chain, account, escrow and journal; `stack` closes them.

    `endpoint`, if given, is the chain instead of what the settings say: one of this process.
    `sleep` is how a silent chain is waited for; what it raises ends the wait.
    Raises `MarketError` if anything but the chain's silence is in the way.
    """
    _allow_modules(config)
    market = _market(config, environ, elsewhere=endpoint is None)
    chain_url = market.chain
    if endpoint is None:
        chain_url = chain_url or stack.enter_context(_embedded_chain(home))
        endpoint = chain_url
    client = ChainClient(endpoint)
    stack.callback(client.close)
    patiently = _Patience(observer, sleep).ask
    chain_id = patiently(client.chain_id)
    play_money = patiently(lambda: is_development_chain(client))
    account = _account(config, home, play_money=play_money)
    if play_money:
        if chain_url:
            print(PLAY_MONEY_NOTICE, file=sys.stderr, flush=True)  # noqa: T201 (a promise to the user)
        patiently(lambda: _top_up(client, account.address))
    journal = Journal(home.journal)
    stack.callback(journal.close)
    escrow_address = config.escrow
    if escrow_address == NO_ADDRESS:
        # a later deployment moves no node: its open trades are in the market that it began in
        escrow_address = (
            _escrow_of(journal, chain_id) or newest_escrow(home.root, chain_id) or market.escrow
        )
    salt = home.root / "escrow.salt"
    unasked = play_money and config.role == "broker" and config.quorum == (1, 1)
    # one that we deployed unasked is deployed once more where the chain has begun anew
    if unasked and salt.exists() and escrow_address == _unasked(salt, account.address).escrow:
        escrow_address = NO_ADDRESS
    if escrow_address == NO_ADDRESS:
        if config.role != "broker":
            raise _missing("escrow", "name the escrow of the market, or join a broker here")
        if config.quorum != (1, 1):
            raise _missing("escrow", "deploy it first, with the accounts of all its brokers")
        if not play_money:
            raise _missing("escrow", "deploy it first; only play-money chains get one unasked")
        plan = _unasked(salt, account.address)
        domain = patiently(lambda: deploy_market(client, account.private_key, plan))
    else:
        domain = Domain(chain_id=chain_id, escrow=escrow_address)
    # a quote of a broker without a seat could be signed, and never funded
    broker = account.address if config.role == "broker" else None
    # what an agent joins says itself how many sign; its quotes are held to it when they are funded
    quorum = config.quorum[0] if config.role == "broker" else None
    escrow = patiently(
        lambda: open_escrow(endpoint, account.private_key, domain, broker=broker, quorum=quorum)
    )
    stack.callback(escrow.close)
    _bind(journal, escrow.domain, home)
    if broker is not None:
        bond = PLAY_BOND if config.bond is None and play_money else config.bond
        patiently(lambda: take_seat(client, account.private_key, domain, bond=bond))
    peer = load_or_create_peer_key(home.peer_key)
    return Opened(
        config=config,
        home=home,
        observer=observer,
        journal=journal,
        keys=Keys(account=account.private_key, peer=peer.seed),
        escrow=escrow,
        chain_url=chain_url,
        brokers=market.brokers,
        trusted=frozenset(config.brokers),
        confirmations=_confirmations(config, play_money=play_money),
        value_per_unit_gain=_value_per_unit_gain(config, play_money=play_money),
        play_money=play_money,
        endpoint=endpoint,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Market:
    chain: str
    escrow: Address
    brokers: tuple[str, ...]


def _market(config: Config, environ: Mapping[str, str], *, elsewhere: bool) -> _Market:
    """Return where the market is: as configured, else as the broker of this machine says."""
    if config.role == "broker" or not elsewhere:
        return _Market(chain=config.chain, escrow=config.escrow, brokers=config.bootstrap)
    if config.bootstrap and config.chain:
        return _Market(chain=config.chain, escrow=config.escrow, brokers=config.bootstrap)
    here = find_broker(state_directory(environ))
    return _Market(
        chain=config.chain or here.chain,
        escrow=config.escrow if config.escrow != NO_ADDRESS else here.escrow,
        brokers=config.bootstrap or here.multiaddrs[:1],
    )


@contextmanager
def _embedded_chain(home: Home) -> Iterator[str]:
    """Serve a development chain from this process; its state is in the data directory."""
    # the machine of a chain is imported by the one process that has it: half a second of a start
    from node.chain.rpc_server import serve_chain

    stop, ready, url = threading.Event(), threading.Event(), [""]

    kept = home.root / "chain.port"

    def note(address: str) -> None:
        url[0] = address
        remember(kept, int(address.rpartition(":")[2]))
        ready.set()

    thread = threading.Thread(
        target=serve_chain,
        kwargs={
            "directory": home.root / "chain",
            "port": remembered(kept, "127.0.0.1"),
            "stop": stop,
            "ready": note,
        },
        name="embedded chain",
        daemon=True,
    )
    thread.start()
    while not ready.wait(0.1):
        if not thread.is_alive():
            raise ChainUnavailableError("the embedded chain did not start; see above")
    try:
        yield url[0]
    finally:
        stop.set()
        thread.join(5)


def _unasked(salt: Path, broker: Address) -> MarketPlan:
    """Return the market that a broker on a development chain has to itself."""
    return MarketPlan(salt=load_or_make_salt(salt), brokers=(broker,), minimum_bond=PLAY_BOND)


def _escrow_of(journal: Journal, chain_id: int) -> Address | None:
    """Return the escrow that a data directory began in, if that was on this chain."""
    match journal.recall("market"):
        case [int() as known, str() as escrow] if known == chain_id:
            return Address(escrow)
    return None


def _bind(journal: Journal, domain: Domain, home: Home) -> None:
    """Keep a data directory to the market it began in: its open trades are nobody else's."""
    ours: list[cbor.Value] = [domain.chain_id, domain.escrow]
    known = journal.recall("market")
    if known is None:
        journal.remember("market", ours)
    elif known != ours:
        raise WrongContractError(
            f"{home.root} belongs to the market {known!r}, not {ours!r}; name that escrow with "
            "--escrow, or another --data-dir"
        )


def _confirmations(config: Config, *, play_money: bool) -> int:
    if config.confirmations is not None:
        return config.confirmations
    return 0 if play_money else CONFIRMATIONS


def _value_per_unit_gain(config: Config, *, play_money: bool) -> Wei:
    if config.value_per_unit_gain is not None:
        return config.value_per_unit_gain
    if config.role == "agent" and not play_money:
        raise _missing("value_per_unit_gain", "say what a gain is worth to you in real money")
    return PLAY_VALUE


def _account(config: Config, home: Home, *, play_money: bool) -> AccountKey:
    """Open the account, or make one; only play money may lie behind a password of our own."""
    own = home.root / "development.password"
    held = list_accounts(home.keystore)
    if config.password_file is not None:
        password = read_password(config.password_file)
    elif play_money and (own.exists() or not held):
        if not own.exists():
            _write_password(own)
        password = read_password(own)
    else:
        password = read_password(sys.stdin)
    if held:
        return load_account(home.keystore, password)
    return create_account(home.keystore, password, development=play_money)


def _write_password(path: Path) -> None:
    partial = path.with_suffix(".tmp")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(24) + "\n")
        file.flush()
        os.fsync(descriptor)
    partial.replace(path)


def _top_up(client: ChainClient, account: Address) -> None:
    """Ask the faucet, once for each account."""
    held = wei(client.ask("eth_getBalance", account, "latest"), "eth_getBalance")
    if client.nonce(account) == 0 and held == 0:
        client.request_funds(account, PLAY_MONEY)


@dataclass(frozen=True, slots=True)
class _Patience:
    """Waits for a chain: a node never exits because an endpoint is down."""

    observer: Observer
    sleep: Callable[[float], None]

    def ask(self, question: Callable[[], T]) -> T:
        """Ask the chain until it answers."""
        pause, told = POLL_SECONDS, False
        while True:
            try:
                return question()
            except ChainUnavailableError as error:
                if not told:
                    self.observer.emit(ChainAway(reason=str(error)))
                told = True
                self.sleep(pause)
                pause = min(2 * pause, LONGEST_BACKOFF)


def _missing(key: str, remedy: str) -> ConfigError:
    return ConfigError(key, "", Origin("default"), remedy)
