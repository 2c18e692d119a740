"""The processes of a devnet: chain, broker, agents; started, watched, stopped, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from node.chain.client import ChainClient
from node.chain.errors import ChainUnavailableError
from node.devnet.errors import DevnetError
from node.devnet.logs import read_events
from node.home import BrokerAddress, BrokerNotFoundError, find_broker

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.05


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """One process, its data directory, and how to start it again."""

    name: str
    command: Sequence[str]
    home: Path
    environ: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    gone: bool = False
    """Whether it went away on purpose, and is missed by nobody."""
    _starting: threading.RLock = field(default_factory=threading.RLock)
    _abandoned: bool = False

    def start(self, **environ: str) -> None:
        """Start it; its output goes to a file beside its data."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self._starting, (self.home / "output.txt").open("ab") as output:
            if self._abandoned:
                raise DevnetError(f"{self.name} is not to be started any more")
            self.process = subprocess.Popen(
                self.command,
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        if self.process is None:
            return
        self.ask_to_stop()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def abandon(self) -> None:
        """SIGKILL, and never a start again; for a signal handler, so nothing else is waited for."""
        with self._starting:  # which another thread may be at
            self._abandoned = True
            if self.process is not None and self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.process.pid, signal.SIGKILL)

    def rest(self) -> None:
        """Ask an agent to train and buy no more, and to see what is open to its end."""
        if self.process is not None:
            self.process.send_signal(signal.SIGUSR1)

    def output(self) -> str:
        """Return the last lines that it printed."""
        path = self.home / "output.txt"
        return "\n".join(path.read_text(errors="replace").splitlines()[-12:])

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return its events of one name so far, oldest first."""
        return self.log((name,))

    def log(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return its events of these names so far, oldest first."""
        return read_events(self.home, names)


@dataclass
class Market:
    """The processes of one market on loopback, under one folder."""

    folder: Path
    chain_url: str
    chain: Node
    broker: Node
    agents: list[Node]
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Node]:
        return [*self.agents, self.broker, self.chain]

    def address(self) -> BrokerAddress:
        """Return what the broker says of itself. Raises `BrokerNotFoundError`."""
        return find_broker(self.folder / "state")

    def start(self, seconds: float = START_SECONDS) -> None:
        """Bring all up, each once what it needs is there.

        `seconds`: how long the broker may take over its rows. Raises `DevnetError`.
        """
        self.chain.start()
        self.await_chain()
        self.broker.start()
        self.await_broker(seconds)
        for agent in self.agents:
            agent.start()

    def await_chain(self) -> None:
        """Wait until the chain answers."""
        client = ChainClient(self.chain_url, timeout=5)

        def answers() -> bool:
            with contextlib.suppress(ChainUnavailableError):
                return client.chain_id() > 0
            return False

        try:
            self._await(answers, self.chain)
        finally:
            client.close()

    def await_broker(self, seconds: float = START_SECONDS) -> None:
        """Wait until the broker has said where it listens."""

        def announced() -> bool:
            with contextlib.suppress(BrokerNotFoundError):
                return self.address().pid == getattr(self.broker.process, "pid", None)
            return False

        self._await(announced, self.broker, seconds)

    def _await(
        self, condition: Callable[[], bool], node: Node, seconds: float = START_SECONDS
    ) -> None:
        patience = time.monotonic() + seconds
        while not condition():
            if not node.running:
                raise DevnetError(f"{node.name} ended while it started:\n{node.output()}")
            if time.monotonic() > patience:
                raise DevnetError(f"{node.name} was not up in {seconds:.0f} s")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stop all, the agents first, all at once."""
        for agent in self.agents:
            agent.ask_to_stop()
        for node in self.nodes:
            if node.running:
                node.stop()

    def abandon(self) -> None:
        """Kill all, and let none be started again; for a signal handler."""
        for node in self.nodes:
            node.abandon()


def compose(
    folder: Path,
    *,
    agents: int,
    common: Sequence[str],
    broker: Sequence[str] = (),
    agent: Sequence[str] = (),
) -> Market:
    """Lay out a market: ports, folders and commands; nothing is started."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PMNODE_")}
    environ.update(PMNODE_STATE=str(folder / "state"), PYTHONUNBUFFERED="1")
    environ.setdefault("OMP_NUM_THREADS", "1")  # processes share the cores already
    program = [sys.executable, "-m", "node.cli.main"]
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def node(name: str, *flags: str) -> Node:
        listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
        home = folder / name
        command = [*program, "--data-dir", str(home), "--listen", listen, *common, *flags]
        return Node(name, command, home, environ)

    chain_home = folder / "chain"
    chain = Node(
        "chain",
        [*program, "chain", "--directory", str(chain_home), "--port", str(port)],
        chain_home,
        environ,
    )
    return Market(
        folder=folder,
        chain_url=url,
        chain=chain,
        broker=node("broker", "--role", "broker", "--chain", url, *broker),
        agents=[
            node(
                f"agent-{number}",
                *("--role", "agent", "--agent", str(number), "--agents", str(agents), *agent),
            )
            for number in range(agents)
        ],
        environ=environ,
    )
