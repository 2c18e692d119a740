"""A user's own PyTorch loop in the market: it offers, buys, adopts, is paid, and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from node.config.table import ConfigError
from node.data.datasets import load
from node.data.split import endowment, split_test
from node.devnet.play import WINDOWS
from node.devnet.processes import _flags
from node.home import AlreadyRunningError, BrokerNotFoundError, find_broker
from node.market import Market, architecture_of, load_into, tensors_of
from node.params.families.base import ArchitectureError
from node.protocol.errors import LocalProtocolError

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A broker for digits on this machine, which serves its own chain of play money."""
    state = tmp_path / "state"
    monkeypatch.setenv("PMNODE_STATE", str(state))
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "node.cli.main", "--role", "broker", "--dataset", "digits"),
            *("--task", "digits", "--data-dir", str(tmp_path / "broker"), *_flags(**WINDOWS)),
        ],
        cwd=CHECKOUT,
        env={**os.environ, "PMNODE_STATE": str(state)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            patience = time.monotonic() + 60
            while not _announced(state):
                assert process.poll() is None
                assert time.monotonic() < patience
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


def _announced(state: Path) -> bool:
    try:
        find_broker(state)
    except BrokerNotFoundError:
        return False
    return True


class Learner:
    """A loop as a user would write it."""

    def __init__(self, number: int, folder: Path) -> None:
        torch.manual_seed(number)
        self.model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
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


def market_of(number: int, tmp_path: Path) -> Market:
    return Market(
        data_dir=str(tmp_path / f"agent-{number}"), task="digits", minimum_dispute_window=1,
        round_patience_seconds=20,
    )  # fmt: skip


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
                adopted = market.adopt(learner.model)
                assert all(
                    torch.equal(adopted[name], tensor)
                    for name, tensor in tensors_of(learner.model).items()
                )
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


def test_without_a_broker_the_market_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMNODE_STATE", str(tmp_path / "nobody"))
    with pytest.raises(BrokerNotFoundError, match="absent"):
        market_of(0, tmp_path).open()


def test_a_setting_that_is_misspelt_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean --reserve"):
        Market(data_dir=str(tmp_path), reserv=5)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), "without ReLU between"),
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "Tanh"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "end in an affine layer"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(5, 2)), "do not fit"),
        (nn.Linear(4, 2, bias=False), "without bias"),
        (nn.Conv2d(1, 1, 3), "Conv2d"),
        (nn.Sequential(), "end in an affine layer"),
    ],
)
def test_a_module_without_a_name_is_refused_by_the_part_that_does_not_fit(
    module: nn.Module, told: str
) -> None:
    with pytest.raises(ArchitectureError, match=told):
        architecture_of(module)


def test_a_module_and_its_tensors_compute_the_same() -> None:
    from node.params.architecture import apply

    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    inputs_RF = torch.randn(7, 6)
    computed = apply(architecture_of(module), tensors_of(module), inputs_RF)
    assert torch.equal(computed, module(inputs_RF))
    other = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    load_into(other, tensors_of(module))
    assert torch.equal(other(inputs_RF), module(inputs_RF))
    with pytest.raises(ArchitectureError, match="not those"):
        load_into(nn.Linear(6, 3), tensors_of(module))
