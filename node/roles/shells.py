"""Puts the shells of either role together from what `opening` has opened.

keys ─ chain ─ journal ─ network ─ station ─ agent | broker
"""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from broker_node.mechanisms.ask import market_ask
from broker_node.mechanisms.history_ask import history_ask
from node.agent.agent import Agent
from node.agent.session import Meet, never_wait
from node.agent.settings import AgentSettings
from node.agent.strategies.base import Strategy
from node.agent.strategies.registry import (
    DISHONEST,
    USUAL,
    StrategyError,
    StrategyFacts,
    build_strategy,
)
from node.chronicle import NetworkUsed, OurFault
from node.clock import wall_clock
from node.config.table import Config
from node.data.datasets import load
from node.data.folder import default_data_folder
from node.data.split import Dirichlet, Endowment, SplitProtocol, split_test
from node.home import BrokerAddress
from node.net.host import Network, open_host
from node.params.architecture import layout
from node.params.families.base import ArchitectureError
from node.params.store import BlobStore
from node.protocol.bargain import Patience
from node.protocol.disclosure import Disclosure
from node.protocol.errors import LocalProtocolError
from node.protocol.types import ONE, Digest, PeerId, Wei
from node.roles.clearing import clearing_terms, clears, house_of_broker, round_settings
from node.roles.meeting import meeting_at
from node.roles.opening import Opened
from node.roles.ports import port_of, remember, with_port
from node.station.station import Station
from node.training.registry import build_trainer
from node.training.trainer import Task, Trainer

if TYPE_CHECKING:
    from broker_node.appraisal import Appraiser
    from broker_node.engine.engine import Engine
    from broker_node.service import Broker
    from node.params.adapters import Base
    from node.params.architecture import Architecture

LONGEST_DISPUTE_WINDOW: Final = 7 * 24 * 3_600
LEAST_REVEAL_SECONDS: Final = 5
DAY: Final = 86_400
BLOCK_SECONDS: Final = 15
"""A slow block of a public chain."""
ROOM_BLOCKS: Final = 8
"""To decide in what a step asks for, and have it mined."""
DISPUTE_WINDOW: Final = 60
"""In a broker's quotes, on play money, where none was named."""


@asynccontextmanager
async def open_station(opened: Opened) -> AsyncIterator[Station]:
    """Join the network, and leave it at the end; what crossed it is told then."""
    config, observer = opened.config, opened.observer

    def fault(where: str, peer: PeerId | None, error: Exception) -> None:
        observer.emit(OurFault(during=where, reason=f"{type(error).__name__}: {error} ({peer})"))

    kept = opened.home.root / "listen.port"
    listen = with_port(config.listen, kept)
    async with open_host(opened.keys.peer, listen, on_fault=fault) as network:
        remember(kept, port_of(network.addresses()[0]))
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
            trade_retention=config.trade_retention_days * DAY,
        )
        station.blobs.sweep()
        try:
            yield station
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


def address_of_broker(opened: Opened, station: Station) -> BrokerAddress:
    """Return what other nodes of this machine need in order to join."""
    return BrokerAddress(
        multiaddrs=station.network.addresses(),
        chain=opened.chain_url,
        chain_id=opened.escrow.domain.chain_id,
        escrow=opened.escrow.domain.escrow,
        account=opened.keys.address,
        pid=os.getpid(),
    )


async def broker_of(opened: Opened, station: Station) -> Broker:
    """Return the broker that the settings describe; nothing of it runs yet."""
    # an agent, which starts by the same module, is spared these imports: a second of its start
    from broker_node.service import Broker
    from broker_node.settings import BrokerSettings

    config = opened.config
    seed = config.trial_seed
    make: Callable[..., Broker] = Broker
    if clears(config):
        if config.replicas == "refuse":
            raise LocalProtocolError(
                f"replicas = refuse: in rounds ({config.mechanism}) all go on from one fused model "
                "and nothing is for sale; say report"
            )
        from broker_node.clearing.broker import ClearingBroker
        from broker_node.evaluate.device import device_of
        from broker_node.findings import ComputedOtherwise

        device = device_of(config.device)
        if config.engine != "local":
            said = (
                f"engine = {config.engine}: rounds ({config.mechanism}) are measured by the "
                f"broker's own process, on {device}"
            )
            opened.observer.emit(ComputedOtherwise(during="engine", reason=said))

        house = await trio.to_thread.run_sync(house_of_broker, opened)
        make = functools.partial(
            ClearingBroker,
            house=house,
            rounds=round_settings(config),
            cache=opened.home.root / "measured",
        )
    appraiser = await trio.to_thread.run_sync(_appraiser, config)
    return make(
        station=station,
        escrow=opened.escrow,
        appraiser=appraiser,
        engine=await trio.to_thread.run_sync(_engine, opened, appraiser),
        settings=BrokerSettings(
            fee_basis_points=config.fee_bps,
            fund_seconds=config.fund_seconds,
            reveal_seconds=config.reveal_seconds,
            grace_seconds=config.grace_seconds,
            dispute_window_seconds=dispute_window(
                config, confirmations=opened.confirmations, play_money=opened.play_money
            ),
            trial_seed=None if seed is None else Digest(bytes.fromhex(seed[2:])),
            quorum=config.quorum,
            peers=opened.brokers,
            disclosure=Disclosure(config.disclosure),
            mechanism=config.mechanism,
            call_seconds=config.call_seconds,
            replicas=config.replicas,
            scan=config.scan == "merges",
        ),
        confirmations=opened.confirmations,
    )


def endowment_of(config: Config) -> Endowment | None:
    """Return who holds which rows; None for the paper's division."""
    if config.endowment == "paper":
        return None
    return Dirichlet(concentration=config.concentration / ONE)


def protocol_of(config: Config) -> SplitProtocol:
    """Return which rows choose, score and report."""
    return "paper" if config.protocol == "paper" else "clean"


def _appraiser(config: Config) -> Appraiser:
    from broker_node.appraisal import DrillAppraiser, MarketAppraiser
    from broker_node.evaluate.methods import MARKET, PAPER
    from broker_node.evaluate.validation import ValidationSet, require_classes

    if config.dataset == "random":
        return DrillAppraiser()
    protocol = protocol_of(config)
    folder = config.data_folder or default_data_folder()
    dataset = load(config.dataset, folder, seed=config.seed)
    validation = ValidationSet.of(split_test(dataset, protocol=protocol).validation)
    require_classes(validation)
    usual = PAPER if protocol == "paper" else MARKET
    return MarketAppraiser(
        validation,
        classes=dataset.outputs,
        method=config.alignment or usual.alignment,
        merging=config.merging or usual.merging,
        search=config.alpha_search,
        shared_rows=protocol == "paper",
        control=config.control != "none",
        tune=config.control == "tune",
        base=adapter_base(config),
        device=config.device,
    )


def adapter_base(config: Config) -> Base | None:
    """Return the model that adapters are of, with its root, if the settings name one.

    Raises `LocalProtocolError` for a file that is no model.
    """
    from broker_node.trying.reading import read_base

    return None if config.adapter_base is None else read_base(config.adapter_base)


def _engine(opened: Opened, appraiser: Appraiser) -> Engine:
    """Return what computes, started. Raises `LocalProtocolError` where it cannot be had."""
    from broker_node.engine.engine import EngineSettings
    from broker_node.engine.registry import ENGINES
    from broker_node.findings import ComputedOtherwise

    def tell(said: str) -> None:  # from a thread that computes
        event = ComputedOtherwise(during="engine", reason=said)
        trio.from_thread.run_sync(opened.observer.emit, event)

    config = opened.config
    settings = EngineSettings(
        workers=config.engine_workers, device=config.device, ray_address=config.ray_address
    )
    return ENGINES[config.engine](appraiser, settings, tell)


def dispute_window(config: Config, *, confirmations: int, play_money: bool) -> int:
    """Return what a broker quotes, in seconds: by default what a buyer here would accept."""
    if config.dispute_window_seconds is not None:
        return config.dispute_window_seconds
    return max(DISPUTE_WINDOW, _deep(confirmations, play_money=play_money))


def least_dispute_window(config: Config, *, confirmations: int, play_money: bool) -> int:
    """Return what a buyer accepts, in seconds.

    With real money even a buyer that believes a reveal only once it is deep has time to dispute.
    """
    return max(config.minimum_dispute_window, _deep(confirmations, play_money=play_money))


def _deep(confirmations: int, *, play_money: bool) -> int:
    return 0 if play_money else BLOCK_SECONDS * (confirmations + ROOM_BLOCKS)


def _patience(opened: Opened) -> Patience:
    """Return the waits that an agent agrees to; with real money, blocks enough for each step."""
    blocks = 0 if opened.play_money else BLOCK_SECONDS
    return Patience(
        least_dispute_window=least_dispute_window(
            opened.config, confirmations=opened.confirmations, play_money=opened.play_money
        ),
        longest_dispute_window=LONGEST_DISPUTE_WINDOW,
        # a payment must be deep before the reveal, and the reveal mined before any refund
        least_reveal_seconds=LEAST_REVEAL_SECONDS + blocks * (opened.confirmations + ROOM_BLOCKS),
        least_grace=1 + blocks * ROOM_BLOCKS,
    )


async def trainer_of(config: Config) -> Trainer:
    """Return the trainer that the settings name. Raises `MarketError` if it cannot be had."""
    task = Task(
        dataset=config.dataset,
        data_folder=config.data_folder or default_data_folder(),
        agent=config.agent,
        agents=config.agents,
        seed=config.seed,
        protocol=protocol_of(config),
        endowment=endowment_of(config),
        architecture=_architecture(config),
    )
    return await trio.to_thread.run_sync(build_trainer, config.trainer, task)


def _architecture(config: Config) -> Architecture | None:
    """Return what the trainer `module` trains. Raises `LocalProtocolError` for no such file."""
    if config.architecture is None:
        return None
    from broker_node.trying.reading import parse_flag

    return parse_flag(str(config.architecture))


def agent_of(
    opened: Opened, station: Station, trainer: Trainer | None, *, meet: Meet | None = None
) -> Agent:
    """Return the agent that the settings describe; nothing of it runs yet.

    `meet`: how it waits for others in each round, where the settings name no meeting.
    """
    config = opened.config
    if meet is None:
        meet = never_wait if config.meeting is None else meeting_at(config.meeting, config.agent)
    priced, called = config.pricing == "bargain", config.mechanism == "eeg"
    if called and (config.layers or not priced):
        raise LocalProtocolError(
            "in a call market (--mechanism eeg) all beginnings of a model's layers are on offer, "
            "at the prices of the call: leave out --layers, and --pricing free"
        )
    return Agent(
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
            offers_per_round=config.offers_per_round,
            trials_per_round=config.trials_per_round,
            reserve=config.reserve if priced else Wei(0),
            value_per_unit_gain=opened.value_per_unit_gain,
            min_gain=config.min_gain,
            budget=config.budget,
            priced=priced,
            layers=_layers(config, trainer),
            gate="gain" if config.protocol == "paper" else "bound",
            patience=_patience(opened),
            ask=market_ask if priced and not called else _nothing,
            mechanism=config.mechanism,
            call_budget=config.call_budget,
            attests=config.attest == "clean-split",
            strategy=_strategy(config, play_money=opened.play_money),
            prepared_seconds=config.fund_seconds,
        ),
        confirmations=opened.confirmations,
        meet=meet,
        clearing=clearing_terms(opened),
    )


def strategy_of(config: Config) -> Strategy:
    """Return the strategy that the settings name. Raises `LocalProtocolError` for none of ours."""
    facts = StrategyFacts(learned=history_ask, shading=config.shading, owner=config.owner or "")
    return build_strategy(config.strategy, facts)


def _strategy(config: Config, *, play_money: bool) -> Strategy:
    """Return an agent's strategy; raises `StrategyError` where it has no business."""
    name = config.strategy
    if name in DISHONEST and not play_money:
        raise StrategyError(f"--strategy {name} is for play money: take an honest one")
    if name != USUAL and config.pricing == "free":
        raise StrategyError(f"--strategy {name} is for trades at a price: leave out --pricing free")
    return strategy_of(config)


def _layers(config: Config, trainer: Trainer | None) -> tuple[int, ...]:
    """Return which layers are sold. Raises `LocalProtocolError` if our model cannot be sold so."""
    if trainer is not None:
        try:
            layout(trainer.architecture, config.layers)
        except ArchitectureError as error:
            raise LocalProtocolError(f"--layers: {error.detail}") from error
    return config.layers


def _nothing(*_: object) -> Wei:
    """Ask for nothing; in a call sellers take its prices, from their reserve on."""
    return Wei(0)
