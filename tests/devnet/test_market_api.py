"""A user's own PyTorch loop in the market: it offers, buys, adopts, is paid, and comes back."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import node.market
from node.config.table import ConfigError
from node.data.datasets import load
from node.data.split import endowment, split_test
from node.home import AlreadyRunningError, BrokerAddress, BrokerNotFoundError, find_broker
from node.market import JoinTimeoutError, Market, Step, architecture_of, tensors_of
from node.params.families.base import ArchitectureError
from node.protocol.errors import LocalProtocolError

CHECKOUT = Path(__file__).parents[2]
WINDOWS = (
    "--fund-seconds=30", "--reveal-seconds=60", "--grace-seconds=10",
    "--dispute-window-seconds=2", "--minimum-dispute-window=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a broker for digits has left word, which serves its own chain of play money."""
    folder = tmp_path_factory.mktemp("broker")
    state = folder / "state"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "node.cli.main", "--role", "broker", "--dataset", "digits"),
            *("--task", "digits", "--data-dir", str(folder / "broker"), *WINDOWS),
        ],
        cwd=CHECKOUT,
        env={**os.environ, "PMNODE_STATE": str(state)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            patience = time.monotonic() + 120
            while not _announced(state):
                assert process.poll() is None
                assert time.monotonic() < patience
                time.sleep(0.05)
            yield state
        finally:
            process.terminate()


@pytest.fixture
def broker(state: Path, monkeypatch: pytest.MonkeyPatch) -> BrokerAddress:
    """The broker of this machine. Each test has a model of its own: the book is everybody's."""
    monkeypatch.setenv("PMNODE_STATE", str(state))
    return find_broker(state)


def _announced(state: Path) -> bool:
    try:
        find_broker(state)
    except BrokerNotFoundError:
        return False
    return True


class Net(nn.Module):
    """A model as a user would write it."""

    def __init__(self, units: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, units)
        self.out = nn.Linear(units, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(torch.relu(self.hidden(inputs.flatten(1))))
        return result


class Learner:
    """A loop as a user would write it."""

    def __init__(self, number: int, folder: Path, units: int = 32) -> None:
        torch.manual_seed(number)
        self.model = Net(units)
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.1)
        data = load("digits", folder)
        rows = endowment(data, number, 2, seed=0)
        report = split_test(data).report
        self.inputs, self.labels = torch.tensor(rows.inputs_RF), torch.tensor(rows.labels_R)
        self.test = torch.tensor(report.inputs_RF), torch.tensor(report.labels_R)

    def train(self) -> None:
        for _ in range(20):
            self.optimiser.zero_grad()
            functional.cross_entropy(self.model(self.inputs), self.labels).backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()

    def accuracy(self) -> float:
        with torch.no_grad():
            return float((self.model(self.test[0]).argmax(1) == self.test[1]).double().mean())


def market_of(number: int, tmp_path: Path, **settings: Any) -> Market:
    usual: dict[str, Any] = {"minimum_dispute_window": 1, "round_patience_seconds": 20}
    return Market(data_dir=str(tmp_path / f"agent-{number}"), task="digits", **(usual | settings))


@pytest.mark.usefixtures("broker")
def test_a_loop_of_ones_own_trades_and_comes_back(tmp_path: Path) -> None:
    learners = [Learner(number, tmp_path) for number in range(2)]
    bought = []
    with market_of(0, tmp_path) as one, market_of(1, tmp_path) as other:
        assert one.account != other.account
        with pytest.raises(AlreadyRunningError):
            market_of(0, tmp_path).open()
        for _ in range(3):
            for learner, market in zip(learners, (one, other), strict=True):
                learner.train()
                market.offer(learner.model)
            for learner, market in zip(learners, (one, other), strict=True):
                before = learner.accuracy()
                round_ = market.step()
                with pytest.raises(LocalProtocolError, match="first"):
                    market.step()  # would pay twice, and adopt once
                if round_.bought:
                    learner.train()
                    with pytest.raises(LocalProtocolError, match="adopt first"):
                        market.offer(learner.model)  # the merge would be of an older model
                with pytest.raises(ArchitectureError, match="not what was offered"):
                    market.adopt(nn.Linear(64, 10))  # and the round is not over
                adopted = market.adopt(learner.model)
                for name, tensor in tensors_of(learner.model).items():
                    assert torch.equal(adopted[name], tensor)
                if round_.bought:
                    assert round_.price is not None
                    assert round_.price > 0
                    assert round_.gain is not None
                    bought.append(learner.accuracy() - before)
        for market in (one, other):
            market.settle()
    assert bought
    assert sum(bought) > 0
    with pytest.raises(LocalProtocolError, match="not open"):
        one.step()
    with market_of(0, tmp_path) as again:
        kept = again.resume(architecture_of(learners[0].model))
        assert kept is not None
        for name, tensor in tensors_of(learners[0].model).items():
            assert torch.equal(kept[name], tensor)


@pytest.mark.usefixtures("broker")
def test_what_was_bought_while_the_market_was_closed_is_there_when_it_is_opened_again(
    tmp_path: Path,
) -> None:
    mine, others = (Learner(number, tmp_path, units=28) for number in range(2))
    with market_of(1, tmp_path) as seller:
        market = market_of(0, tmp_path).open()
        bought = False
        for _ in range(6):
            for learner, side in ((mine, market), (others, seller)):
                learner.train()
                side.offer(learner.model)
            bought = cut_off_while_it_buys(market)
            if bought:
                break
            market.adopt(mine.model)
        assert bought
        offered = tensors_of(mine.model)
        with market_of(0, tmp_path) as again:
            with pytest.raises(LocalProtocolError, match="adopt first"):
                again.offer(mine.model)
            with pytest.raises(ArchitectureError):
                again.resume(nn.Linear(64, 10))  # and the round is not over
            merged = again.resume(mine.model)
            assert merged is not None
            for name, tensor in tensors_of(mine.model).items():
                assert torch.equal(merged[name], tensor)
            assert not all(torch.equal(merged[name], offered[name]) for name in merged)
            again.offer(mine.model)


def cut_off_while_it_buys(market: Market) -> bool:
    """Close a market in its step as soon as that has opened a trade; False if it opens none."""

    def step() -> None:
        with contextlib.suppress(LocalProtocolError):  # the node has ended
            market.step()

    loop = threading.Thread(target=step)
    loop.start()
    agent = market._running()
    while loop.is_alive():
        if any(trade.side == "buyer" for trade in agent.desk.open_trades()):
            market.close()
            loop.join(20)
            return True
        time.sleep(0.005)
    return False


def test_without_a_broker_the_market_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMNODE_STATE", str(tmp_path / "nobody"))
    with pytest.raises(BrokerNotFoundError, match="absent"):
        market_of(0, tmp_path).open()


def test_a_setting_that_is_misspelt_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean --reserve"):
        Market(data_dir=str(tmp_path), reserv=5)


@pytest.mark.usefixtures("broker")
def test_with_nothing_bought_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    model = Net(31).double()
    with market_of(0, tmp_path, round_patience_seconds=1) as market:
        with pytest.raises(LocalProtocolError, match="offer"):
            market.step()
        market.offer(model)
        assert market.step().because == "no-offer"
        offered = tensors_of(model)
        with torch.no_grad():
            model.out.bias.add_(1e-12)  # trained on, and beyond what float32 holds
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        adopted = market.adopt(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        for name, tensor in offered.items():
            assert torch.equal(adopted[name], tensor)
        market.offer(offered, architecture=architecture_of(model))  # by its tensors alone
        with pytest.raises(ArchitectureError, match="name one"):
            market.offer(offered)
        with pytest.raises(ArchitectureError, match="the module is"):
            market.offer(model, architecture=architecture_of(nn.Linear(64, 10)))


def of_docstring() -> str:
    assert node.market.__doc__ is not None
    (example,) = re.findall(r"\n\n(    from .*?)\n\n\S", node.market.__doc__, re.DOTALL)
    return textwrap.dedent(example)


def of_readme() -> str:
    section = (CHECKOUT / "README.md").read_text().partition("## From your own loop")[2]
    (example,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    return str(example)


@pytest.mark.parametrize(
    ("example", "units"), [(of_docstring(), 30), (of_readme(), 29)], ids=["docstring", "README"]
)
def test_the_example_is_a_loop_that_runs(
    example: str,
    units: int,
    broker: BrokerAddress,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is written, but for what the reader would write: where, for how long, of what."""
    for written, ours in (
        ("http://127.0.0.1:8545", broker.chain), ("0x...", broker.escrow),
        ("/ip4/...", broker.multiaddrs[0]), ("range(50)", "range(1)"),
    ):  # fmt: skip
        example = example.replace(written, ours)
    assert "..." not in example
    if broker.chain in example:
        monkeypatch.setenv("PMNODE_STATE", str(tmp_path / "elsewhere"))
    for name, value in (
        ("DATA_DIR", tmp_path / "a"),
        ("TASK", "digits"),
        ("ROUND_PATIENCE_SECONDS", 1),
    ):
        monkeypatch.setenv(f"PMNODE_{name}", str(value))
    names: dict[str, object] = {"model": Net(units), "train_one_epoch": lambda _: None}
    exec(example, names)
    round_ = names["round_"]
    assert isinstance(round_, Step)
    assert round_.because == "no-offer"


def absent(broker: BrokerAddress) -> dict[str, object]:
    """The market of `broker`, with another in its place that is not there."""
    nobody = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
    return {"chain": broker.chain, "escrow": broker.escrow, "bootstrap": [nobody]}


def test_a_broker_that_is_away_is_waited_for_as_long_as_was_said(
    broker: BrokerAddress, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(JoinTimeoutError, match=r"for the broker /ip4/127.0.0.1/tcp/9/p2p/.*: un"):
        market_of(0, tmp_path, timeout=8, **absent(broker)).open()
    assert time.monotonic() - began < 20
    with market_of(0, tmp_path) as market:  # nothing is left of the first
        assert market.account.startswith("0x")


LOOP = """
import signal, sys
from node.market import Market

signal.signal(signal.SIGINT, signal.default_int_handler)
with Market(data_dir=sys.argv[1], chain=sys.argv[2], escrow=sys.argv[3], bootstrap=sys.argv[4],
            console=True):
    pass
"""


def test_ctrl_c_ends_a_loop_whose_broker_is_away(broker: BrokerAddress, tmp_path: Path) -> None:
    market = absent(broker)
    assert isinstance(market["bootstrap"], list)
    where = [str(tmp_path / "agent"), broker.chain, broker.escrow, market["bootstrap"][0]]
    with subprocess.Popen(
        [sys.executable, "-c", LOOP, *where], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            told = next(line for line in process.stderr if "list-book" in line)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=50)
        finally:
            process.kill()
    assert time.monotonic() - began < 20
    assert told.splitlines()[-1] == "KeyboardInterrupt"
