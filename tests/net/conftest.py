"""Real hosts on loopback, two or three in one process."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import libp2p  # noqa: F401

from node.net.host import Network, open_host
from node.net.limits import Limits
from node.protocol.verdict import accept

LISTEN = "/ip4/127.0.0.1/tcp/0"

OpenHosts = Callable[..., AbstractAsyncContextManager[list[Network]]]
Eventually = Callable[[Callable[[], Any]], Awaitable[None]]


def seed_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@asynccontextmanager
async def _open_hosts(
    *names: str, limits: Limits | None = None, connect: bool = True
) -> AsyncIterator[list[Network]]:
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(open_host(seed_of(name), LISTEN, limits=limits))
            for name in names
        ]
        for host in hosts:
            host.set_gossip_validator(lambda _, __: accept())
        if connect:
            for host in hosts[1:]:
                await host.connect(hosts[0].addresses()[0])
        yield hosts


async def _eventually(condition: Callable[[], Any]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


@pytest.fixture
def open_hosts() -> OpenHosts:
    """`async with open_hosts("a", "b") as (a, b)`: the first is dialled by the others."""
    return _open_hosts


@pytest.fixture
def eventually() -> Eventually:
    """Wait, for ten seconds at most, until something is true."""
    return _eventually
