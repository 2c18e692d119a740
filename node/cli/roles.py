"""Runs one node of a role until it is told to stop: opens what it owns, closes it in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack

import trio

from node.agent.agent import Agent
from node.cli.exits import INTERRUPTED
from node.cli.failpoint import failpoint
from node.cli.starting import Start
from node.config.table import Config
from node.home import Home, announced_broker, default_data_dir, state_directory
from node.roles.opening import Opened, open_node, open_observer
from node.roles.shells import address_of_broker, agent_of, broker_of, open_station, trainer_of


def run_role(
    config: Config, environ: Mapping[str, str], start: Start, *, json_output: bool
) -> None:
    """Run an agent or a broker until it is told to stop. Raises `MarketError` if it cannot."""
    start.check()
    home = Home(config.data_dir or default_data_dir(config.role, environ)).prepare()
    with ExitStack() as stack:
        stack.enter_context(home.lock())
        observer = open_observer(config, home, stack, console=not json_output)
        freeze = failpoint(environ)
        if freeze is not None:
            observer.subscribe(freeze)
        opened = open_node(config, home, observer, environ, stack, sleep=start.sleep)
        with start.leave_to_loop():
            trio.run(_serve, opened, environ)


async def _serve(opened: Opened, environ: Mapping[str, str]) -> None:
    """Run the role's shell until SIGTERM or SIGINT; a second SIGINT aborts."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
        async with open_station(opened) as station:
            if opened.config.role == "broker":
                address = address_of_broker(opened, station)
                with announced_broker(state_directory(environ), address):
                    await (await broker_of(opened, station)).run()
            else:
                agent = agent_of(opened, station, await trainer_of(opened.config))
                nursery.start_soon(_rest_on_signal, agent)
                await agent.run()


async def _rest_on_signal(agent: Agent) -> None:
    """On SIGUSR1: train and buy no more, see what is open to its end, serve buyers."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            agent.rest()


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        count = 0
        async for number in signals:
            count += 1
            if count > 1 and number == signal.SIGINT:
                os._exit(INTERRUPTED)
            scope.cancel()
