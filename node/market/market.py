"""An agent of the market for a synchronous loop: the node runs in a thread of its own.

It is the very agent of ``pm-node --role agent``, without a trainer: `offer`, `step` and
`adopt` are those of `node.agent.session.Session`, which the built-in trainer goes through
too. Between the calls the node goes on by itself: it gossips, sells what was offered,
encrypts, reveals, collects its payments.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import torch
import trio
from torch import nn

from node.agent.agent import Agent
from node.agent.session import Step
from node.config.table import Config, load
from node.home import Home, default_data_dir
from node.market.modules import architecture_of, load_into, tensors_of
from node.params.architecture import Architecture
from node.params.families.base import ArchitectureError
from node.protocol.errors import LocalProtocolError
from node.roles.opening import Opened, open_node, open_observer
from node.roles.shells import agent_of, open_station

T = TypeVar("T")
Parameters = nn.Module | Mapping[str, torch.Tensor]
CLOSE_SECONDS: Final = 60.0


class Market:
    """One agent of one market. A context manager; not for use from two threads at once."""

    def __init__(self, *, console: bool = False, **settings: Any) -> None:
        """Take the settings of an agent by name, as in ``config show``; others as configured.

        `console` shows the node's events on standard error. Nothing is opened yet. Raises
        `ConfigError`.
        """
        flags = {name: _flag(value) for name, value in settings.items()}
        self.config: Config = load(environ=os.environ, flags={**flags, "role": "agent"}).config
        self._console = console
        self._stack = ExitStack()
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._agent: Agent | None = None
        self._stop: trio.Event | None = None
        self._fault: BaseException | None = None
        self._up = threading.Event()
        self._architecture: Architecture | None = None
        self._epochs = 0

    # ── the node's life ──

    def open(self) -> Self:
        """Join the market; returns once its book and the broker's terms are known.

        Raises `MarketError` for whatever keeps the node from that; a chain or broker that is
        away is waited for.
        """
        if self._thread is not None:
            raise LocalProtocolError("this market is open, or was: make another")
        home = Home(self.config.data_dir or default_data_dir("agent", os.environ)).prepare()
        try:
            self._stack.enter_context(home.lock())
            observer = open_observer(self.config, home, self._stack, console=self._console)
            opened = open_node(self.config, home, observer, os.environ, self._stack)
        except BaseException:
            self._stack.close()
            raise
        # a daemon: a loop that ends without `close` is as a process that was killed
        self._thread = threading.Thread(
            target=self._live, args=(opened,), name="pm-node", daemon=True
        )
        self._thread.start()
        try:
            self._up.wait()
        except BaseException:  # Ctrl-C, while a chain or a broker is waited for
            self.close()
            raise
        if self._fault is not None:
            self.close()
        return self

    def close(self) -> None:
        """Leave the market, open trades or not: they go on when this data directory is opened.

        Raises whatever ended the node before.
        """
        if self._thread is not None and self._thread.is_alive():
            if self._token is not None and self._stop is not None:
                self._token.run_sync_soon(self._stop.set)
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                raise LocalProtocolError(f"the node did not end within {CLOSE_SECONDS:.0f} s")
        self._stack.close()
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def settle(self) -> None:
        """Wait until no trade of this node is open: every payment made, every refund drawn."""
        self._call(self._until_settled)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ── the three calls ──

    def offer(self, parameters: Parameters, *, architecture: Architecture | None = None) -> None:
        """Offer parameters for sale, and submit them to the broker for trials.

        `parameters` is a module (`node.market.modules` says which), or tensors with their
        `architecture`. Raises `ArchitectureError`.
        """
        if isinstance(parameters, nn.Module):
            architecture, tensors = architecture_of(parameters), tensors_of(parameters)
        else:
            tensors = dict(parameters)
        if architecture is None:
            raise ArchitectureError("tensors alone do not say what they are of: name one")
        self._architecture = architecture
        self._epochs += 1
        chosen, epoch = architecture, self._epochs

        async def offer(agent: Agent) -> None:
            await agent.session.offer(chosen, tensors, epoch=epoch)

        self._call(offer)

    def step(self) -> Step:
        """Play one round: try what others offer, buy what helps most, see it delivered."""
        return self._call(lambda agent: agent.session.step())

    def adopt(self, module: nn.Module | None = None) -> dict[str, torch.Tensor]:
        """End the round; returns the weights to go on from, and writes them into `module`."""
        tensors = self._call(lambda agent: agent.session.adopt())
        if module is not None:
            load_into(module, tensors)
        return tensors

    def resume(self, architecture: Architecture) -> dict[str, torch.Tensor] | None:
        """Return where this data directory's agent stood when it was last closed, if anywhere.

        Purchases that were under way then are seen to their end first.
        """

        async def recall(agent: Agent) -> dict[str, torch.Tensor] | None:
            await agent.session.adopt_unfinished()
            progress = agent.session.progress
            if progress is None:
                return None
            self._epochs = progress.epoch
            return agent.session.load(architecture.text, progress.root)

        return self._call(recall)

    @property
    def account(self) -> str:
        """The Ethereum account that pays and is paid."""
        return self._running().station.account

    @property
    def peer_id(self) -> str:
        """Who the node is on the network."""
        return self._running().station.peer_id

    # ── the thread ──

    def _running(self) -> Agent:
        if self._agent is None or self._thread is None or not self._thread.is_alive():
            raise self._fault or LocalProtocolError("the market is not open")
        return self._agent

    def _call(self, ask: Callable[[Agent], Awaitable[T]]) -> T:
        agent = self._running()

        async def call() -> T:
            return await ask(agent)

        try:
            return trio.from_thread.run(call, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as error:
            raise self._fault or LocalProtocolError("the node has ended") from error

    def _live(self, opened: Opened) -> None:
        try:
            trio.run(self._serve, opened)
        except BaseException as error:  # noqa: BLE001 (told to whoever calls next)
            self._fault = _one(error)
        finally:
            self._up.set()

    async def _serve(self, opened: Opened) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with open_station(opened) as station, trio.open_nursery() as nursery:
            self._agent = agent_of(opened, station, None)
            nursery.start_soon(self._agent.run)
            await self._agent.joined.wait()
            self._up.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    async def _until_settled(self, agent: Agent) -> None:
        while agent.desk.open_trades():  # noqa: ASYNC110 (machines tell whoever made them alone)
            await trio.sleep(0.1)


def _one(error: BaseException) -> BaseException:
    """Return the first fault of a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _flag(value: object) -> object:
    """Return a setting as the table takes it: lists as one text with commas."""
    if isinstance(value, list | tuple):
        return tuple(str(part) for part in value)
    return value
