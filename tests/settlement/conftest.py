"""Settlement without waiting: trio's clock jumps, and the chain's clock with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

from node.protocol.types import Address
from tests.settlement.bounded import Test, bounded
from tests.settlement.fake_chain import ETHER, FakeChain
from tests.settlement.trades import BROKER, BUYER, SELLER, Node, begin, wall

T = TypeVar("T")
LONGEST_SECONDS = 5_000
"""On the clock that jumps: what is not done by then never will be."""
HERE = Path(__file__).parent
SHARED_MEMORY = Path("/dev/shm")


def run_jumping(test: Test, *, clock: object, instruments: list[Any]) -> None:
    jumping = MockClock(autojump_threshold=0)
    trio.run(bounded(test, LONGEST_SECONDS), clock=jumping, instruments=instruments)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run each asynchronous test of this folder on the jumping clock, unasked."""
    for item in items:
        if item.path.parent == HERE and item.get_closest_marker("trio") is not None:
            item.add_marker(pytest.mark.trio(run=run_jumping), append=False)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the fake chain without a thread: the jumping clock does not wait for threads."""

    async def run_here(question: Callable[..., T], *arguments: object) -> T:
        await trio.lowlevel.checkpoint()
        return question(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)


@pytest.fixture
async def chain() -> FakeChain:
    begin()
    chain = FakeChain(wall)
    for account in (BUYER, SELLER, BROKER):
        chain.balances[account] = 10 * ETHER
    return chain


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder that costs no disk writes; that a journal survives is its own tests' matter."""
    if not SHARED_MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def node_of(chain: FakeChain, memory: Path) -> Callable[..., Node]:
    """Make a node of an account on this chain."""

    def make(account: Address = BUYER, *, confirmations: int = 0) -> Node:
        return Node(memory, chain, account, confirmations=confirmations)

    return make


@pytest.fixture
def buyer(node_of: Callable[..., Node]) -> Node:
    return node_of(BUYER)


@pytest.fixture
def seller(node_of: Callable[..., Node]) -> Node:
    return node_of(SELLER)


@pytest.fixture
def broker(node_of: Callable[..., Node]) -> Node:
    return node_of(BROKER)
