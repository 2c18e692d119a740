"""The chain's process is killed without warning; nobody pays twice, nothing answered is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.chain.client import ChainClient
from node.chain.errors import ChainUnavailableError
from node.chain.in_process import InProcessProvider
from node.chain.port import EscrowState, Fund
from node.chain.tester import DevelopmentChain, Stage, wall_clock
from node.chain.web3_escrow import open_escrow
from node.protocol.signing import address_of
from node.protocol.types import Wei
from tests.chain.market import BUYER, Clock, Market, build, do

ROOT = Path(__file__).resolve().parents[2]

# Serves a directory; at the given stage of the first transaction, dies.
PROGRAM = """
import os, signal, sys, threading
from pathlib import Path
from node.chain.rpc_server import serve_chain

def die(stage, raw):
    if stage == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

serve_chain(
    Path(sys.argv[1]), stop=threading.Event(), on_transaction=die,
    ready=lambda url: print(url, flush=True),
)
"""


@contextmanager
def serving(directory: Path, stage: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve the chain of `directory` in another process; yields its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), stage],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def market(tmp_path: Path) -> Market:
    """A market whose chain nobody serves at the moment."""
    clock = Clock()
    clock.now = wall_clock()
    with DevelopmentChain(tmp_path, clock=clock) as chain:
        return build(chain, InProcessProvider(chain), clock)


@pytest.mark.parametrize("stage", ["accepted", "executed"])
def test_a_payment_cut_off_by_a_kill_is_made_exactly_once(
    stage: Stage, market: Market, tmp_path: Path
) -> None:
    quote, signature = market.quote()
    with serving(tmp_path, stage) as (url, process):
        escrow = open_escrow(url, BUYER, market.domain, timeout=5.0)
        before = escrow.balance(escrow.account)
        transaction = escrow.sign(Fund(quote, signature), escrow.next_nonce())
        with pytest.raises(ChainUnavailableError):
            escrow.broadcast(transaction.raw)
        assert process.wait() == -signal.SIGKILL
        escrow.close()

    with DevelopmentChain(tmp_path) as chain:
        again = open_escrow(InProcessProvider(chain), BUYER, market.domain)
        for _ in range(2):
            again.broadcast(transaction.raw)
        outcome = again.receipt(transaction.hash)
        assert outcome is not None
        assert outcome.succeeded
        assert again.trade_state(quote.trade_id).state is EscrowState.FUNDED
        assert again.balance(again.account) == before - quote.price - outcome.fee
        assert again.balance(market.domain.escrow) == quote.price
        assert len(again.events(0, again.head().number)) == 1
        assert again.next_nonce() == transaction.nonce + 1
        other, other_signature = market.quote(1)
        assert do(again, Fund(other, other_signature)).succeeded


def test_a_kill_at_any_moment_loses_nothing_that_was_answered(
    market: Market, tmp_path: Path
) -> None:
    answered: list[bytes] = []
    receiver = address_of(b"\x66" * 32)
    with serving(tmp_path, "never") as (url, process):
        client = ChainClient(url, timeout=5.0)
        killer = threading.Timer(0.15, os.kill, (process.pid, signal.SIGKILL))
        killer.start()
        with contextlib.suppress(ChainUnavailableError):
            while True:
                answered.append(client.request_funds(receiver, Wei(1)))
        killer.join()
        client.close()
    with DevelopmentChain(tmp_path) as chain:
        assert answered
        assert all(chain.mined(one) is not None for one in answered)
        paid = ChainClient(InProcessProvider(chain)).ask("eth_getBalance", receiver)
        assert int(paid, 16) - len(answered) in (0, 1)  # the last one may have gone unheard
