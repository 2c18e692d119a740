"""The beginning of a node in a loop of one's own: it waits for others, but not for ever."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final
from urllib.parse import urlsplit

from web3.types import RPCEndpoint, RPCResponse

from node.chain.client import DEFAULT_TIMEOUT, ChainClient, HttpProvider
from node.chain.errors import ChainUnavailableError
from node.chronicle import ChainAway, PeerFault
from node.config.table import Config
from node.home import Home, find_broker, state_directory
from node.observe import Observer, Record
from node.protocol.errors import LocalProtocolError, MarketError
from node.protocol.types import NO_ADDRESS
from node.roles.opening import Opened, open_node
from node.settlement.watch import POLL_SECONDS

LEAST_CALL_SECONDS: Final = 0.1


class JoinTimeoutError(MarketError):
    """The market could not be joined in time: says what was waited for."""

    def __init__(self, waited_for: str, seconds: float, trouble: str = "") -> None:
        told = f": {trouble}" if trouble else ""
        super().__init__(f"waited {seconds:g} s in vain for {waited_for}{told}")
        self.waited_for = waited_for
        self.seconds = seconds


class Wait:
    """How long joining may take, and what it waits for."""

    def __init__(self, seconds: float) -> None:
        """`math.inf` waits for ever. Raises `LocalProtocolError` for no positive number."""
        if not seconds > 0:
            raise LocalProtocolError(f"a timeout is a number of seconds above 0, got {seconds!r}")
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self.waited_for = "the network"
        self._trouble = ""

    def hear(self, record: Record) -> None:
        """Keep the last trouble that the node tells of."""
        match record.event:
            case ChainAway(reason=reason):
                self._trouble = reason
            case PeerFault(reason=reason, detail=detail):
                self._trouble = f"{reason}: {detail}" if detail else reason

    def left(self) -> float:
        """Return the seconds that are left. Raises `JoinTimeoutError` if none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.error()
        return min(left, threading.TIMEOUT_MAX)

    def until(self, happened: threading.Event) -> None:
        """Wait for `happened`. Raises `JoinTimeoutError`."""
        if not happened.wait(self.left()):
            raise self.error()

    def until_chain_answers(self, url: str) -> None:
        """Ask a chain until it answers. Raises `JoinTimeoutError`."""
        self.waited_for = chain_called(url)
        while True:
            client = ChainClient(url, max(LEAST_CALL_SECONDS, min(DEFAULT_TIMEOUT, self.left())))
            try:
                client.chain_id()
            except ChainUnavailableError as error:
                self._trouble = str(error)
            else:
                self._trouble = ""
                return
            finally:
                client.close()
            time.sleep(min(POLL_SECONDS, self.left()))

    def error(self) -> JoinTimeoutError:
        """Return what is to be said if nothing came of the wait."""
        return JoinTimeoutError(self.waited_for, self.seconds, self._trouble)


class PatientProvider(HttpProvider):
    """A chain by URL that is not asked for ever: `open_node` repeats itself until it answers."""

    def __init__(self, url: str, wait: Wait) -> None:
        super().__init__(url)
        self.wait: Wait | None = wait
        """None once the market is joined."""

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Return whatever the endpoint answered. Raises `JoinTimeoutError` when it is too late."""
        if self.wait is not None:
            self.wait.left()
        return super().make_request(method, params)


def open_within(
    config: Config,
    home: Home,
    observer: Observer,
    environ: Mapping[str, str],
    stack: ExitStack,
    *,
    wait: Wait,
) -> Opened:
    """Open what a node owns, as `open_node`, which waits for a chain as long as it takes.

    Raises `JoinTimeoutError` after `wait`, or the pause and the call under way then.
    """
    config = _located(config, environ)
    wait.until_chain_answers(config.chain)
    provider = PatientProvider(config.chain, wait)
    opened = open_node(config, home, observer, environ, stack, endpoint=provider)
    provider.wait = None
    return opened


def chain_called(url: str) -> str:
    """Return a chain's name in messages: its path and user may be secrets."""
    parts = urlsplit(url)
    return f"the chain at {parts.hostname}{'' if parts.port is None else f':{parts.port}'}"


def _located(config: Config, environ: Mapping[str, str]) -> Config:
    """Return the settings with what the broker of this machine says where they say nothing."""
    if config.chain and config.bootstrap:
        return config
    here = find_broker(state_directory(environ))
    return dataclasses.replace(
        config,
        chain=config.chain or here.chain,
        escrow=here.escrow if config.escrow == NO_ADDRESS else config.escrow,
        bootstrap=config.bootstrap or here.multiaddrs[:1],
    )
