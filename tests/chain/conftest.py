"""A chain for each test, and a market on it by either endpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from node.chain.in_process import InProcessProvider
from node.chain.rpc_server import ChainServer
from node.chain.tester import DevelopmentChain
from tests.chain.market import Clock, Market, build


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def chain(clock: Clock) -> Iterator[DevelopmentChain]:
    with DevelopmentChain(clock=clock) as chain:
        yield chain


@pytest.fixture(params=["in process", "over RPC"])
def market(
    request: pytest.FixtureRequest, chain: DevelopmentChain, clock: Clock
) -> Iterator[Market]:
    if request.param == "in process":
        yield build(chain, InProcessProvider(chain), clock)
        return
    with ChainServer(chain) as server:
        market = build(chain, server.url, clock)
        yield market
        for escrow in market.opened:
            escrow.close()
        market.client.close()
