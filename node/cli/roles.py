"""Runs one node of a role: opens what it owns, joins its market, and closes in order.

    data directory ─ run lock ─ keys ─ chain ─ journal ─ network ─ agent | broker

Nothing here trades; it only puts the shells together from a `Config`.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from node.chain.answers import quantity
from node.chain.client import ChainClient
from node.chain.deploy import deploy_escrow, load_or_make_salt
from node.chain.errors import ChainUnavailableError
from node.chain.port import Escrow
from node.chain.web3_escrow import open_escrow
from node.chronicle import ChainAway, NetworkUsed, OurFault
from node.cli.exits import INTERRUPTED
from node.cli.failpoint import failpoint
from node.clock import wall_clock
from node.config.table import Config, ConfigError, Origin
from node.home import (
    BrokerAddress,
    Home,
    announced_broker,
    default_data_dir,
    find_broker,
    state_directory,
)
from node.identity import (
    AccountKey,
    create_account,
    list_accounts,
    load_account,
    load_or_create_peer_key,
    read_password,
)
from node.journal import Journal
from node.net.host import Network, open_host
from node.observe import Console, JsonLines, Level, Observer
from node.params.store import BlobStore
from node.protocol.bargain import Patience
from node.protocol.eip712 import Domain
from node.protocol.types import NO_ADDRESS, Address, PeerId, Wei
from node.settlement.watch import POLL_SECONDS
from node.station.station import Keys, Station

if TYPE_CHECKING:
    from broker_node.appraisal import Appraiser

T = TypeVar("T")
DEVELOPMENT_CLIENT: Final = "pm-node-development-chain/"
PLAY_MONEY: Final = Wei(100 * 10**18)
"""What the faucet of a development chain gives to a new account."""
PLAY_MONEY_NOTICE: Final = "This is a development chain: the money is play money."
LONGEST_BACKOFF: Final = 5.0
LONGEST_DISPUTE_WINDOW: Final = 7 * 24 * 3_600
LEAST_REVEAL_SECONDS: Final = 5
DATA_FOLDER: Final = Path(".data")


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
    stack: ExitStack = field(repr=False)


def run_role(config: Config, environ: Mapping[str, str], *, json_output: bool) -> None:
    """Run an agent or a broker until it is told to stop. Raises `MarketError` if it cannot."""
    home = Home(config.data_dir or default_data_dir(config.role, environ)).prepare()
    with ExitStack() as stack:
        stack.enter_context(home.lock())
        observer = _observer(config, home, environ, stack, json_output=json_output)
        opened = _open(config, home, observer, environ, stack)
        trio.run(_serve, opened, environ)


def _observer(
    config: Config,
    home: Home,
    environ: Mapping[str, str],
    stack: ExitStack,
    *,
    json_output: bool,
) -> Observer:
    observer = Observer().bind(node=config.data_dir.name if config.data_dir else config.role)
    log = JsonLines(home.logs / f"{config.role}.jsonl")
    stack.callback(log.close)
    observer.subscribe(log)
    if not json_output:
        observer.subscribe(Console(sys.stderr, level=Level.named(config.log_level)))
    freeze = failpoint(environ)
    if freeze is not None:
        observer.subscribe(freeze)
    return observer


def _open(
    config: Config,
    home: Home,
    observer: Observer,
    environ: Mapping[str, str],
    stack: ExitStack,
) -> Opened:
    market = _market(config, environ)
    chain_url = market.chain
    if not chain_url:
        chain_url = stack.enter_context(_embedded_chain(home))
    client = ChainClient(chain_url)
    stack.callback(client.close)
    chain_id = _patiently(client.chain_id, observer)
    play_money = str(client.ask("web3_clientVersion")).startswith(DEVELOPMENT_CLIENT)
    account = _account(config, home, play_money=play_money)
    if play_money:
        print(PLAY_MONEY_NOTICE, file=sys.stderr, flush=True)  # noqa: T201 (a promise to the user)
        _patiently(lambda: _top_up(client, account.address), observer)
    escrow_address = market.escrow
    if escrow_address == NO_ADDRESS:
        if config.role != "broker":
            raise _missing("escrow", "name the escrow of the market, or join a broker here")
        if not play_money:
            raise _missing("escrow", "deploy it first; only play-money chains get one unasked")
        salt = load_or_make_salt(home.root / "escrow.salt")
        domain = _patiently(
            lambda: deploy_escrow(client, account.private_key, account.address, salt), observer
        )
    else:
        domain = Domain(chain_id=chain_id, escrow=escrow_address)
    escrow = _patiently(
        lambda: open_escrow(chain_url, account.private_key, domain), observer
    )
    stack.callback(escrow.close)
    journal = Journal(home.journal)
    stack.callback(journal.close)
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
        stack=stack,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Market:
    chain: str
    escrow: Address
    brokers: tuple[str, ...]


def _market(config: Config, environ: Mapping[str, str]) -> _Market:
    """Return where the market is: as configured, else as the broker of this machine says."""
    if config.role == "broker":
        return _Market(chain=config.chain, escrow=config.escrow, brokers=())
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
    from node.chain.rpc_server import serve_chain

    stop, ready, url = threading.Event(), threading.Event(), [""]

    def note(address: str) -> None:
        url[0] = address
        ready.set()

    thread = threading.Thread(
        target=serve_chain,
        kwargs={"directory": home.root / "chain", "stop": stop, "ready": note},
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


def _account(config: Config, home: Home, *, play_money: bool) -> AccountKey:
    """Open the account, or make one; only play money may lie behind a password of our own."""
    own = home.root / "development.password"
    if config.password_file is not None:
        password = read_password(config.password_file)
    elif play_money:
        if not own.exists():
            descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(24) + "\n")
        password = read_password(own)
    else:
        password = read_password(sys.stdin)
    if list_accounts(home.keystore):
        return load_account(home.keystore, password)
    return create_account(home.keystore, password, development=play_money)


def _top_up(client: ChainClient, account: Address) -> None:
    """Ask the faucet, once for each account."""
    held = quantity(client.ask("eth_getBalance", account, "latest"), "eth_getBalance")
    if client.nonce(account) == 0 and held == 0:
        client.request_funds(account, PLAY_MONEY)


def _patiently(question: Callable[[], T], observer: Observer) -> T:
    """Ask the chain until it answers; a node never exits because an endpoint is down."""
    pause, told = POLL_SECONDS, False
    while True:
        try:
            return question()
        except ChainUnavailableError as error:
            if not told:
                observer.emit(ChainAway(reason=str(error)))
            told = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_BACKOFF)


def _missing(key: str, remedy: str) -> ConfigError:
    return ConfigError(key, "", Origin("default"), remedy)


# ── the running node ──


async def _serve(opened: Opened, environ: Mapping[str, str]) -> None:
    """Run the role's shell until SIGTERM or SIGINT; a second SIGINT aborts."""
    config, observer = opened.config, opened.observer

    def fault(where: str, peer: PeerId | None, error: Exception) -> None:
        observer.emit(OurFault(during=where, reason=f"{type(error).__name__}: {error} ({peer})"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        async with open_host(opened.keys.peer, config.listen, on_fault=fault) as network:
            station = Station(
                keys=opened.keys,
                domain=opened.escrow.domain,
                network=network,
                journal=opened.journal,
                blobs=BlobStore(opened.home.blobs),
                observer=observer,
                clock=wall_clock,
                trusted_brokers=opened.trusted,
                task=config.task,
            )
            station.blobs.sweep()
            try:
                if config.role == "broker":
                    with announced_broker(state_directory(environ), _address(opened, network)):
                        await _broker(opened, station)
                else:
                    await _agent(opened, station)
            finally:
                observer.emit(_used(network))


def _used(network: Network) -> NetworkUsed:
    counters = network.counters
    return NetworkUsed(
        bytes_in=dict(counters.bytes_in),
        bytes_out=dict(counters.bytes_out),
        accepted=counters.gossip_accepted,
        ignored=dict(counters.gossip_ignored),
        rejected=dict(counters.gossip_rejected),
        published=counters.gossip_published,
    )


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        count = 0
        async for number in signals:
            count += 1
            if count > 1 and number == signal.SIGINT:
                os._exit(INTERRUPTED)
            scope.cancel()


def _address(opened: Opened, network: Network) -> BrokerAddress:
    return BrokerAddress(
        multiaddrs=network.addresses(),
        chain=opened.chain_url,
        chain_id=opened.escrow.domain.chain_id,
        escrow=opened.escrow.domain.escrow,
        account=opened.keys.address,
        pid=os.getpid(),
    )


async def _broker(opened: Opened, station: Station) -> None:
    from broker_node.service import Broker
    from broker_node.settings import BrokerSettings

    config = opened.config
    broker = Broker(
        station=station,
        escrow=opened.escrow,
        appraiser=await trio.to_thread.run_sync(_appraiser, config),
        settings=BrokerSettings(
            fee_basis_points=config.fee_bps,
            fund_seconds=config.fund_seconds,
            reveal_seconds=config.reveal_seconds,
            grace_seconds=config.grace_seconds,
            dispute_window_seconds=config.dispute_window_seconds,
        ),
        confirmations=config.confirmations,
    )
    await broker.run()


def _appraiser(config: Config) -> Appraiser:
    import torch

    from broker_node.appraisal import DrillAppraiser, MarketAppraiser
    from broker_node.evaluate.validation import ValidationSet
    from node.data.datasets import load
    from node.data.split import split_test

    if config.dataset == "random":
        return DrillAppraiser()
    dataset = load(config.dataset, config.data_folder or DATA_FOLDER)
    rows = split_test(dataset).validation
    return MarketAppraiser(
        ValidationSet(
            torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.labels_R.copy())
        ),
        classes=dataset.classes,
    )


async def _agent(opened: Opened, station: Station) -> None:
    from broker_node.mechanisms.ask import market_ask
    from node.agent.agent import Agent
    from node.agent.settings import AgentSettings
    from node.training.trainer import Task, build_trainer

    config = opened.config
    task = Task(
        dataset=config.dataset,
        data_folder=config.data_folder or DATA_FOLDER,
        agent=config.agent,
        agents=config.agents,
        seed=config.seed,
    )
    trainer = await trio.to_thread.run_sync(build_trainer, config.trainer, task)
    agent = Agent(
        station=station,
        escrow=opened.escrow,
        trainer=trainer,
        settings=AgentSettings(
            brokers=opened.brokers,
            rounds=config.rounds,
            warmup_epochs=config.warmup_epochs,
            epochs_per_round=config.epochs_per_round,
            offer_seconds=config.offer_ttl_seconds,
            round_patience=config.round_patience_seconds,
            reserve=config.reserve,
            value_per_unit_gain=config.value_per_unit_gain,
            min_gain=config.min_gain,
            patience=Patience(
                least_dispute_window=config.minimum_dispute_window,
                longest_dispute_window=LONGEST_DISPUTE_WINDOW,
                least_reveal_seconds=LEAST_REVEAL_SECONDS,
            ),
            ask=market_ask,
        ),
        confirmations=config.confirmations,
    )
    await agent.run()
