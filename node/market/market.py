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
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import torch
import trio
from torch import nn

from node.agent.agent import Agent
from node.agent.progress import Step
from node.config.loading import load
from node.config.table import Config
from node.home import Home, default_data_dir
from node.market.joining import Wait, chain_called, open_within
from node.market.modules import Reading, checked_tensors, read
from node.params.architecture import Architecture, parse_architecture
from node.params.errors import ProfileError
from node.params.families.base import ArchitectureError
from node.protocol.errors import LocalProtocolError
from node.protocol.kinship import kin
from node.roles.opening import Opened, open_observer
from node.roles.shells import agent_of, open_station

T = TypeVar("T")
Parameters = nn.Module | Mapping[str, torch.Tensor]
JOIN_SECONDS: Final = 120.0
CLOSE_SECONDS: Final = 60.0
ANOTHER_ARCHITECTURE: Final = frozenset(
    {"missing-tensor", "unexpected-tensor", "wrong-shape", "wrong-dtype"}
)
"""What `ProfileError` calls tensors that are whole, but not those of a layout."""


class Market:
    """One agent of one market. A context manager; not for use from two threads at once.

    Ctrl-C is safe at any moment. A call that it interrupts goes on in the node, and the next one
    waits for it: what an interrupted `step` bought is there for `adopt`, and an interrupted
    `adopt` may be called again. Closing ends the call; a purchase under way then is seen to its
    end when the data directory is opened again, and `resume` or `adopt` gives what it bought.
    """

    def __init__(
        self, *, console: bool = False, timeout: float = JOIN_SECONDS, **settings: Any
    ) -> None:
        """Take the settings of an agent by name, as in ``config show``; others as configured.

        `console` shows the node's events on standard error; `timeout` is how many seconds `open`
        may take. Nothing is opened yet. Raises `ConfigError`.
        """
        self.config: Config = load(environ=os.environ, flags={**settings, "role": "agent"}).config
        self._console = console
        self._timeout = timeout
        self._stack = ExitStack()
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._agent: Agent | None = None
        self._halt: trio.Event | None = None
        self._fault: BaseException | None = None
        self._gate = threading.Lock()
        """Guards the next two: a node that is closed before it began does not begin."""
        self._begun = False
        self._stopping = False
        self._up = threading.Event()
        self._over = threading.Event()
        """The node has ended, and `_fault` is why, if it was no wish of ours."""
        self._turn = trio.Lock()
        self._calls: set[trio.CancelScope] = set()
        self._leaving = trio.lowlevel.ParkingLot()
        """Where the node's end waits for the calls' ends."""
        self.architecture: Architecture | None = None
        """Of what the last `adopt` or `resume` returned: adapters' ranks change by a merge."""
        self._last: tuple[str, bool] | None = None
        """Of the outcome of an `adopt` or `resume` that has not returned: the architecture, and
        whether it is merged. Nothing else is ever adopted once more."""

    # ── the node's life ──

    def open(self, *, timeout: float | None = None) -> Self:
        """Join the market; returns once its book and the broker's terms are known.

        A chain or broker that is away is waited for, `timeout` seconds (else those of the
        constructor; `math.inf` for ever). Raises `JoinTimeoutError`, or the `MarketError` of
        whatever else keeps the node from joining.
        """
        if self._thread is not None:
            raise LocalProtocolError("this market is open, or was: make another")
        self._stopping = False
        wait = Wait(self._timeout if timeout is None else timeout)
        home = Home(self.config.data_dir or default_data_dir("agent", os.environ)).prepare()
        try:
            self._stack.enter_context(home.lock())
            observer = open_observer(self.config, home, self._stack, console=self._console)
            unsubscribe = observer.subscribe(wait.hear)
            opened = open_within(self.config, home, observer, os.environ, self._stack, wait=wait)
            # a daemon: a loop that ends without `close` is as a process that was killed
            self._thread = threading.Thread(
                target=self._live, args=(opened, wait), name="pm-node", daemon=True
            )
            self._thread.start()
            wait.until(self._up)
            self._running()
            unsubscribe()
        except BaseException as error:
            self._close_after(error)
            raise
        return self

    def close(self) -> None:
        """Leave the market, open trades or not: they go on when this data directory is opened.

        Raises whatever ended the node before.
        """
        with self._gate:
            self._stopping = True
        if self._begun:
            if self._token is not None and self._halt is not None:
                with suppress(trio.RunFinishedError):  # it has ended by itself
                    self._token.run_sync_soon(self._halt.set)
            if not self._over.wait(CLOSE_SECONDS):
                raise LocalProtocolError(f"the node did not end within {CLOSE_SECONDS:.0f} s")
        self._stack.close()
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def settle(self) -> None:
        """Wait until no trade of this node is open: every payment made, every refund drawn."""
        self._call(self._until_settled, in_turn=False)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._close_after(error)

    def _close_after(self, error: BaseException) -> None:
        """Close, and let `error` be what is raised; what else comes to light is a note to it."""
        try:
            self.close()
        except Exception as fault:  # noqa: BLE001 (told with the error that it must not hide)
            if fault is not error:
                error.add_note(f"and the market's node ended by {type(fault).__name__}: {fault}")

    # ── the three calls ──

    def offer(self, parameters: Parameters, *, architecture: Architecture | None = None) -> None:
        """Offer parameters for sale, and submit them to the broker for trials.

        `parameters` is a module (`node.market.modules` says which), or tensors with their
        `architecture`. Raises `ArchitectureError`, `ProfileError` for weights that are not
        finite, and `LocalProtocolError` while a `step` that bought is not adopted, be it one
        before a restart: `adopt`, or `resume`, gives what was paid for.
        """
        self._last = None
        if isinstance(parameters, nn.Module):
            reading = read(parameters)
            if architecture not in (None, reading.architecture):
                raise ArchitectureError(f"the module is {reading.architecture.text}")
            architecture, tensors = reading.architecture, reading.tensors()
        elif architecture is None:
            raise ArchitectureError("tensors alone do not say what they are of: name one")
        else:
            tensors = dict(parameters)
        chosen, copies = architecture, checked_tensors(tensors, architecture)

        async def offer(agent: Agent) -> None:
            progress = agent.session.progress
            epoch = 1 if progress is None else progress.epoch + 1
            await agent.session.offer(chosen, copies, epoch=epoch)

        self._call(offer)

    def step(self) -> Step:
        """Play one round: try what others offer, buy what helps most, see it delivered.

        Raises `LocalProtocolError` for a second one on the same offer.
        """
        return self._call(lambda agent: agent.session.step())

    def adopt(self, module: nn.Module | None = None) -> dict[str, torch.Tensor]:
        """End the round; returns its weights: the merged ones if any were bought, else the offered.

        Merged ones are written into `module` before the round ends; if none were bought, it is
        left as it is. Called again after it was interrupted, before the next `offer`, it does and
        returns the same. Raises `LocalProtocolError` if there is no round to end, and
        `ArchitectureError`, which ends none, for a module of another architecture than what was
        offered.
        """
        reading = None if module is None else read(module)
        tensors, merged = self._call(
            lambda agent: self._outcome(agent, reading and reading.architecture)
        )
        if merged and reading is not None:
            reading.write(tensors)
        self._call(_end_round)
        self._last = None
        return tensors

    async def _outcome(
        self, agent: Agent, wanted: Architecture | None
    ) -> tuple[dict[str, torch.Tensor], bool]:
        """Return what the round came to; once more, if it is over and its end was interrupted."""
        session = agent.session
        progress = session.progress
        over = session.architecture is None and progress is not None and not progress.offered
        if over and progress is not None and self._last is not None:
            text, merged = self._last
            tensors = session.load(text, progress.root)
        else:
            tensors, merged = await session.outcome()
            text = session.architecture or ""
            self._last = session.outcome_of, merged
            self.architecture = parse_architecture(session.outcome_of)
        if wanted is not None and kin(wanted.text) != kin(text):
            raise ArchitectureError(f"the module is not what was offered: {wanted.text}")
        return tensors, merged

    def resume(self, model: nn.Module | Architecture) -> dict[str, torch.Tensor] | None:
        """Return where this data directory's agent stood when it was last closed, if anywhere.

        Purchases that were under way then are seen to their end, and what they gave is adopted.
        Given a module, it is written there; None leaves it as it is. Raises `ArchitectureError`
        if the agent stood at weights of another architecture, and ends no round then, and
        `ProfileError` for weights that the disk has spoilt.
        """
        reading: Reading | None = None
        if isinstance(model, Architecture):
            architecture = model
        else:
            reading = read(model)
            architecture = reading.architecture

        async def recall(agent: Agent) -> tuple[dict[str, torch.Tensor] | None, bool]:
            session = agent.session
            if await session.take_up() is not None:
                return await self._outcome(agent, architecture)
            if session.progress is None:
                return None, False
            held = session.progress.adapters or architecture.text
            if kin(held) != kin(architecture.text):
                raise ArchitectureError(f"it stood at another architecture: {held}")
            self.architecture = parse_architecture(held)
            try:
                return session.load(held, session.progress.root), False
            except ProfileError as error:
                if error.reason not in ANOTHER_ARCHITECTURE:
                    raise
                raise ArchitectureError(f"it stood at another architecture: {error}") from error

        tensors, bought = self._call(recall)
        if tensors is not None and reading is not None:
            reading.write(tensors)
        if bought:
            self._call(_end_round)
        self._last = None
        return tensors

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
        if self._agent is None or self._over.is_set():
            raise self._fault or LocalProtocolError("the market is not open")
        return self._agent

    def _call(self, ask: Callable[[Agent], Awaitable[T]], *, in_turn: bool = True) -> T:
        """Have the node do something, after what it does already, unless not `in_turn`."""
        agent = self._running()

        async def call() -> T:
            with trio.CancelScope() as scope:
                if self._halt is None or self._halt.is_set():
                    scope.cancel()
                self._calls.add(scope)
                try:
                    if not in_turn:
                        return await ask(agent)
                    async with self._turn:
                        return await ask(agent)
                finally:
                    self._calls.discard(scope)
                    self._leaving.unpark_all()
            raise _EndedError

        try:
            return trio.from_thread.run(call, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled, _EndedError) as error:
            self._over.wait(CLOSE_SECONDS)  # only then is it known why
            raise self._fault or LocalProtocolError("the node has ended") from error

    def _live(self, opened: Opened, wait: Wait) -> None:
        with self._gate:
            self._begun = not self._stopping
        if not self._begun:
            return
        try:
            trio.run(self._serve, opened, wait)
        except BaseException as error:  # noqa: BLE001 (told to whoever calls next)
            self._fault = _one(error)
        finally:
            self._over.set()
            self._up.set()

    async def _serve(self, opened: Opened, wait: Wait) -> None:
        self._halt = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        if self._stopping:  # by a `close` that saw no token yet
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._node, opened, wait)
            await self._halt.wait()
            nursery.cancel_scope.cancel()

    async def _node(self, opened: Opened, wait: Wait) -> None:
        async with open_station(opened) as station:
            try:
                async with trio.open_nursery() as nursery:
                    agent = agent_of(opened, station, None)
                    nursery.start_soon(agent.run)
                    wait.waited_for = chain_called(opened.chain_url)
                    await agent.desk.running.wait()
                    wait.waited_for = f"the broker {opened.brokers[0]}"
                    await agent.joined.wait()
                    self._agent = agent
                    self._up.set()
            finally:  # no call is left when the network goes
                if self._halt is not None:
                    self._halt.set()
                for scope in self._calls:
                    scope.cancel()
                with trio.CancelScope(shield=True):
                    while self._calls:
                        await self._leaving.park()

    async def _until_settled(self, agent: Agent) -> None:
        while agent.desk.open_trades():  # noqa: ASYNC110 (machines tell whoever made them alone)
            await trio.sleep(0.1)


async def _end_round(agent: Agent) -> None:
    """End the round, unless a call that was interrupted has ended it."""
    if agent.session.architecture is not None:
        agent.session.end()


class _EndedError(Exception):
    """The node ended under a call."""


def _one(error: BaseException) -> BaseException:
    """Return the first fault of a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
