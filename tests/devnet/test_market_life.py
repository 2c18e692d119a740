"""A node in a loop of one's own joins in time or says why, and ends when it is told to."""

from __future__ import annotations

import math
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trio
from torch import nn

from node.market import Architecture, JoinTimeoutError, Market
from node.market import market as market_module
from node.market.modules import Reading
from node.params.errors import ProfileError
from node.params.families.base import ArchitectureError
from node.protocol.errors import LocalProtocolError, MarketError
from node.protocol.types import PeerId

NOBODY: Mapping[str, Any] = {
    "escrow": "0x" + "11" * 20,
    "bootstrap": ["/ip4/127.0.0.1/tcp/9/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"],
}


class NodeBrokeError(MarketError):
    """Why a node of these tests ends by itself."""


class Agent:
    """An agent without a market: it joins when it is let, and breaks when it is told to."""

    def __init__(self, *, joins: bool = True) -> None:
        self.desk = SimpleNamespace(running=trio.Event(), open_trades=list)
        self.joined = trio.Event()
        self.breaks = trio.Event()
        self.station = SimpleNamespace(account="0x0", peer_id=PeerId("nobody"))
        self.session = self
        self.steps: list[str] = []
        self.goes_on = trio.Event()
        self.cancelled_while_connected: bool | None = None
        self.connected = True
        self._joins = joins

    async def run(self) -> None:
        self.desk.running.set()
        if self._joins:
            self.joined.set()
        await self.breaks.wait()
        raise NodeBrokeError("the disk is full")

    async def step(self) -> None:
        self.steps.append("begun")
        try:
            await self.goes_on.wait()
        except trio.Cancelled:
            self.cancelled_while_connected = self.connected
            raise
        self.steps.append("ended")

    async def take_up(self) -> None:
        self.steps.append("breaks")
        self.breaks.set()
        await trio.sleep_forever()


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    return with_agent(monkeypatch, Agent())


def with_agent(monkeypatch: pytest.MonkeyPatch, agent: Agent) -> Agent:
    """Have markets opened around `agent`, with neither chain nor network."""

    @asynccontextmanager
    async def open_station(_: object) -> AsyncIterator[object]:
        try:
            yield agent.station
        finally:
            agent.connected = False

    def opened(*_: object, **__: object) -> object:
        return SimpleNamespace(chain_url="http://user:secret@127.0.0.1:8545/key", brokers=("b",))

    monkeypatch.setattr(market_module, "open_within", opened)
    monkeypatch.setattr(market_module, "open_station", open_station)
    monkeypatch.setattr(market_module, "agent_of", lambda *_: agent)
    monkeypatch.setattr(market_module, "CLOSE_SECONDS", 5.0)
    return agent


def from_the_node(market: Market, action: Callable[[], object]) -> None:
    assert market._token is not None
    market._token.run_sync_soon(action)


def eventually(condition: Callable[[], bool]) -> None:
    patience = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < patience
        time.sleep(0.01)


# ── waiting, in time ──


@contextmanager
def chain_that_only_names_itself() -> Iterator[str]:
    """An endpoint that knows its chain id and refuses every other question."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            answer = (
                b'"result": "0x1"' if b"eth_chainId" in asked else b'"error": {"message": "no"}'
            )
            body = b'{"jsonrpc": "2.0", "id": 1, ' + answer + b"}"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_chain_that_is_away_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    chain = "http://someone:password@127.0.0.1:9/apikey"
    market = Market(data_dir=str(tmp_path), chain=chain, timeout=1.0, **NOBODY)
    for _ in range(2):  # and the data directory is free again
        began = time.monotonic()
        with pytest.raises(
            JoinTimeoutError, match=r"1 s in vain for the chain at 127.0.0.1:9: "
        ) as e:
            market.open()
        assert 0.9 < time.monotonic() - began < 10
        assert e.value.waited_for == "the chain at 127.0.0.1:9"
        assert "password" not in str(e.value)
        assert "apikey" not in str(e.value)
    with pytest.raises(JoinTimeoutError, match=r"0\.2 s in vain"):
        market.open(timeout=0.2)


def test_a_chain_that_accepts_and_never_answers_is_not_waited_for_any_longer(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        chain = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with (
            pytest.raises(JoinTimeoutError, match="the chain at"),
            Market(data_dir=str(tmp_path), chain=chain, timeout=1.0, **NOBODY),
        ):
            pass
        assert time.monotonic() - began < 6


def test_a_chain_that_refuses_after_its_first_answer_is_not_waited_for_for_ever(
    tmp_path: Path,
) -> None:
    password = tmp_path / "password"
    password.write_text("a password\n")
    password.chmod(0o600)
    with chain_that_only_names_itself() as chain:
        market = Market(
            data_dir=str(tmp_path / "agent"), chain=chain, timeout=6.0, password_file=str(password),
            value_per_unit_gain=1, **NOBODY,
        )  # fmt: skip
        began = time.monotonic()
        with pytest.raises(JoinTimeoutError, match=r"the chain at .*: .*refused"):
            market.open()
        assert time.monotonic() - began < 25


def test_a_broker_that_is_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_agent(monkeypatch, Agent(joins=False))
    with pytest.raises(JoinTimeoutError, match=r"0\.3 s in vain for the broker b"):
        Market(data_dir=str(tmp_path), timeout=0.3).open()


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_a_wait_is_a_positive_number_of_seconds(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(LocalProtocolError, match="above 0"):
        Market(data_dir=str(tmp_path), timeout=seconds).open()


def test_a_wait_may_be_for_ever(agent: Agent, tmp_path: Path) -> None:
    with Market(data_dir=str(tmp_path), timeout=math.inf) as market:
        assert market.peer_id == "nobody"


def test_a_market_that_could_not_be_joined_may_be_tried_again(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = Market(data_dir=str(tmp_path), timeout=5.0)
    with monkeypatch.context() as away:
        away.setattr(market_module, "open_within", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            market.open()
    with market:
        assert market.peer_id == "nobody"
    with pytest.raises(LocalProtocolError, match="make another"):
        market.open()


# ── the node's end ──


def test_whoever_asked_is_told_why_the_node_ended(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = market_module._one

    def slowly(error: BaseException) -> BaseException:
        time.sleep(0.3)  # the calls have been given up by now
        return first(error)

    monkeypatch.setattr(market_module, "_one", slowly)
    architecture = Architecture("linear", {"inputs": 2, "outputs": 1})
    with (
        pytest.raises(NodeBrokeError, match="the disk is full"),
        Market(data_dir=str(tmp_path)) as market,
    ):
        market.resume(architecture)


def test_an_error_of_the_loop_is_not_hidden_by_one_of_the_node(
    agent: Agent, tmp_path: Path
) -> None:
    with (
        pytest.raises(KeyError, match="the loop") as raised,
        Market(data_dir=str(tmp_path)) as market,
    ):
        from_the_node(market, agent.breaks.set)
        eventually(market._over.is_set)
        raise KeyError("the loop's own")
    assert raised.value.__notes__ == [
        "and the market's node ended by NodeBrokeError: the disk is full"
    ]


# ── Ctrl-C ──


def test_ctrl_c_before_the_node_has_begun_ends_it_at_once(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, began = trio.run, threading.Event()

    def later(*args: Any) -> object:
        began.set()
        time.sleep(0.3)
        return run(*args)

    monkeypatch.setattr(trio, "run", later)
    market = Market(data_dir=str(tmp_path))

    def wait(_: float) -> bool:
        began.wait(5)
        raise KeyboardInterrupt

    monkeypatch.setattr(market._up, "wait", wait)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        market.open()
    assert time.monotonic() - start < 3
    assert market._thread is not None
    market._thread.join(5)
    assert not market._thread.is_alive()


def test_ctrl_c_while_the_thread_starts_lets_it_touch_nothing(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    monkeypatch.setattr(trio, "run", lambda *_: pytest.fail("the node has begun"))
    market = Market(data_dir=str(tmp_path))

    def interrupted(thread: threading.Thread) -> None:
        monkeypatch.undo()
        timer = threading.Timer(0.3, start, [thread])
        timer.start()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        market.open()
    assert market._thread is not None
    eventually(lambda: market._thread is not None and market._thread.ident is not None)
    market._thread.join(5)
    assert not market._begun


def test_ctrl_c_while_the_broker_is_waited_for_ends_the_node_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = with_agent(monkeypatch, Agent(joins=False))
    market = Market(data_dir=str(tmp_path))

    def wait(_: float) -> bool:
        eventually(agent.desk.running.is_set)
        raise KeyboardInterrupt

    monkeypatch.setattr(market._up, "wait", wait)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        market.open()
    assert time.monotonic() - start < 3
    assert market._over.is_set()


def test_a_call_that_was_interrupted_goes_on_and_the_next_one_waits_for_it(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Market(data_dir=str(tmp_path)) as market:
        waiter = threading.Thread(target=market.step)
        waiter.start()  # stands for the loop that was interrupted in it
        eventually(lambda: agent.steps == ["begun"])
        next_one = threading.Thread(target=market.step)
        next_one.start()
        time.sleep(0.1)
        assert agent.steps == ["begun"]
        market.settle()  # waits for no turn
        from_the_node(market, agent.goes_on.set)
        waiter.join(5)
        next_one.join(5)
        assert agent.steps == ["begun", "ended"] * 2


class Bought:
    """The session of a round that has bought, whose end may be held up."""

    architecture: str | None = '{"config":{"inputs":2,"outputs":1},"name":"linear"}'
    outcome_of = '{"config":{"inputs":2,"outputs":1},"name":"linear"}'
    merged: Mapping[str, torch.Tensor] = {
        "weight": torch.full((1, 2), 7.0), "bias": torch.zeros(1)
    }  # fmt: skip

    def __init__(self) -> None:
        self.progress = SimpleNamespace(root=b"offered", offered=True, epoch=1, adapters="")
        self.asked = 0
        self.ended = 0
        self.ends: Callable[[], object] = int
        """Called as the round ends."""

    async def take_up(self) -> object:
        return None if self.architecture is None else self.progress

    async def outcome(self) -> tuple[dict[str, torch.Tensor], bool]:
        if self.architecture is None:
            raise LocalProtocolError("there is no round to end")
        self.asked += 1
        return dict(self.merged), True

    def end(self) -> None:
        self.ends()
        self.ended += 1
        self.architecture = None
        self.progress = SimpleNamespace(root=b"merged", offered=False, epoch=1, adapters="")

    async def offer(self, *_: object, **__: object) -> None:
        raise NodeBrokeError("the disk is full")

    def load(self, _: str, root: bytes) -> dict[str, torch.Tensor]:
        assert root == b"merged"
        return dict(self.merged)


@pytest.fixture
def round_(agent: Agent) -> Bought:
    """The round of `agent`, which has bought and is not over."""
    bought = Bought()
    agent.session = bought  # type: ignore[assignment]
    return bought


def holds_merged(model: nn.Linear) -> bool:
    return torch.equal(model.weight, Bought.merged["weight"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_round_is_not_over_before_the_module_has_what_it_bought(
    round_: Bought, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    model = nn.Linear(2, 1)
    with Market(data_dir=str(tmp_path)) as market:
        with monkeypatch.context() as patched:
            patched.setattr(Reading, "write", interrupted)
            with pytest.raises(error):
                market.adopt(model)
        assert round_.ended == 0
        market.adopt(model)
        assert holds_merged(model)
        assert round_.ended == 1


@contextmanager
def ctrl_c_as_it_ends(round_: Bought) -> Iterator[None]:
    """Interrupt this thread as the node ends the round, and let it end after that."""
    heard = threading.Event()

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert heard.wait(5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    round_.ends = interrupt
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
        assert round_.ended == 0
    finally:
        heard.set()
        signal.signal(signal.SIGINT, before)


def test_adopting_that_was_interrupted_while_the_round_ended_may_be_repeated(
    round_: Bought, tmp_path: Path
) -> None:
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    with Market(data_dir=str(tmp_path)) as market:
        with ctrl_c_as_it_ends(round_):
            market.adopt(first)
        assert holds_merged(first)
        with pytest.raises(ArchitectureError, match="not what was offered"):
            market.adopt(nn.Linear(3, 1))
        adopted = market.adopt(second)
        assert (round_.asked, round_.ended) == (1, 1)
        assert holds_merged(second)
        assert torch.equal(adopted["weight"], Bought.merged["weight"])
        with pytest.raises(LocalProtocolError, match="no round to end"):
            market.adopt(second)


@pytest.mark.parametrize("call", [Market.adopt, Market.resume], ids=["adopt", "resume"])
def test_what_a_round_bought_is_not_written_once_more_over_what_was_trained_since(
    round_: Bought, tmp_path: Path, call: Callable[[Market, nn.Module], object]
) -> None:
    model = nn.Linear(2, 1)
    with Market(data_dir=str(tmp_path)) as market:
        call(market, model)
        assert holds_merged(model)
        assert (round_.asked, round_.ended) == (1, 1)
        train(model)
        for offers in (False, True):
            if offers:
                with pytest.raises(NodeBrokeError):
                    market.offer(model)
            with pytest.raises(LocalProtocolError, match="no round to end"):
                market.adopt(model)
            assert not holds_merged(model)


def train(model: nn.Linear) -> None:
    with torch.no_grad():
        model.weight.add_(1.0)


@pytest.mark.parametrize("trained", [nn.Linear(2, 1), nn.ReLU()], ids=["a model", "no model"])
def test_whoever_offers_after_an_interrupted_adopting_repeats_it_no_more(
    round_: Bought, tmp_path: Path, trained: nn.Module
) -> None:
    model = nn.Linear(2, 1)
    with Market(data_dir=str(tmp_path)) as market:
        with ctrl_c_as_it_ends(round_):
            market.adopt(model)
        eventually(lambda: round_.ended == 1)
        train(model)
        with pytest.raises(MarketError):
            market.offer(trained)
        with pytest.raises(LocalProtocolError, match="no round to end"):
            market.adopt(model)
        assert not holds_merged(model)


@pytest.mark.parametrize(
    ("reason", "of_another"),
    [
        ("missing-tensor", True), ("unexpected-tensor", True), ("wrong-shape", True),
        ("wrong-dtype", True), ("unreadable", False), ("truncated", False), ("not-finite", False),
    ],
)  # fmt: skip
def test_weights_that_the_disk_has_spoilt_are_not_said_to_be_of_another_model(
    round_: Bought,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
    of_another: bool,
) -> None:
    def spoilt(*_: object) -> None:
        raise ProfileError(reason, "weight")

    round_.end()
    monkeypatch.setattr(round_, "load", spoilt)
    expected = ArchitectureError if of_another else ProfileError
    with Market(data_dir=str(tmp_path)) as market, pytest.raises(expected, match=reason):
        market.resume(nn.Linear(2, 1))


def test_closing_ends_a_call_while_there_is_a_network_still(agent: Agent, tmp_path: Path) -> None:
    told: list[BaseException] = []

    def step() -> None:
        try:
            market.step()
        except LocalProtocolError as error:
            told.append(error)

    with Market(data_dir=str(tmp_path)) as market:
        waiter = threading.Thread(target=step)
        waiter.start()
        eventually(lambda: agent.steps == ["begun"])
    waiter.join(5)
    assert agent.cancelled_while_connected is True
    assert [str(error) for error in told] == ["the node has ended"]
    with pytest.raises(LocalProtocolError, match="not open"):
        market.step()
    market.close()
