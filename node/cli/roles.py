"""Runs one node of a role: opens what it owns, joins its market, and closes in order.

    data directory ─ run lock ─ keys ─ chain ─ journal ─ network ─ agent | broker

Nothing here trades; it only puts the shells together from a `Config`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import trio

from node.chronicle import NetworkUsed, OurFault
from node.cli.exits import INTERRUPTED
from node.cli.opening import Opened, open_node, open_observer
from node.cli.ports import port_of, remember, with_port
from node.clock import wall_clock
from node.config.table import Config
from node.data.folder import default_data_folder
from node.home import BrokerAddress, Home, announced_broker, default_data_dir, state_directory
from node.net.host import Network, open_host
from node.params.store import BlobStore
from node.protocol.bargain import Patience
from node.protocol.types import PeerId
from node.station.station import Station

if TYPE_CHECKING:
    from broker_node.appraisal import Appraiser

LONGEST_DISPUTE_WINDOW: Final = 7 * 24 * 3_600
LEAST_REVEAL_SECONDS: Final = 5
BLOCK_SECONDS: Final = 15
"""A slow block of a public chain."""


def run_role(config: Config, environ: Mapping[str, str], *, json_output: bool) -> None:
    """Run an agent or a broker until it is told to stop. Raises `MarketError` if it cannot."""
    home = Home(config.data_dir or default_data_dir(config.role, environ)).prepare()
    with ExitStack() as stack:
        stack.enter_context(home.lock())
        observer = open_observer(config, home, environ, stack, json_output=json_output)
        opened = open_node(config, home, observer, environ, stack)
        trio.run(_serve, opened, environ)


async def _serve(opened: Opened, environ: Mapping[str, str]) -> None:
    """Run the role's shell until SIGTERM or SIGINT; a second SIGINT aborts."""
    config, observer = opened.config, opened.observer

    def fault(where: str, peer: PeerId | None, error: Exception) -> None:
        observer.emit(OurFault(during=where, reason=f"{type(error).__name__}: {error} ({peer})"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
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
        confirmations=opened.confirmations,
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
    dataset = load(config.dataset, config.data_folder or default_data_folder())
    rows = split_test(dataset).validation
    return MarketAppraiser(
        ValidationSet(
            torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.labels_R.copy())
        ),
        classes=dataset.classes,
    )


def _patience(opened: Opened) -> Patience:
    """Return the waits that an agent agrees to; with real money, blocks enough for each step."""
    blocks = 0 if opened.play_money else BLOCK_SECONDS
    return Patience(
        least_dispute_window=opened.config.minimum_dispute_window,
        longest_dispute_window=LONGEST_DISPUTE_WINDOW,
        # a payment must be deep before the reveal, and the reveal mined before any refund
        least_reveal_seconds=LEAST_REVEAL_SECONDS + blocks * (opened.confirmations + 8),
        least_grace=1 + blocks * 8,
    )


async def _agent(opened: Opened, station: Station) -> None:
    from broker_node.mechanisms.ask import market_ask
    from node.agent.agent import Agent
    from node.agent.settings import AgentSettings
    from node.training.registry import build_trainer
    from node.training.trainer import Task

    config = opened.config
    task = Task(
        dataset=config.dataset,
        data_folder=config.data_folder or default_data_folder(),
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
            value_per_unit_gain=opened.value_per_unit_gain,
            min_gain=config.min_gain,
            patience=_patience(opened),
            ask=market_ask,
            prepared_seconds=config.fund_seconds,
        ),
        confirmations=opened.confirmations,
    )
    await agent.run()
