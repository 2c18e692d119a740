"""Rounds, and replays, are measured on the device that trials are, and tell what was otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from broker_node import appraisal
from broker_node.appraisal import MarketAppraiser
from broker_node.clearing.broker import ClearingBroker
from broker_node.clearing.measuring import Measuring
from broker_node.evaluate import device as devices
from broker_node.evaluate.curve import ON_CPU, Model, Runner
from broker_node.evaluate.device import OnDevice
from broker_node.evaluate.validation import ValidationSet
from broker_node.findings import ComputedOtherwise
from broker_node.verify.stages import Verified
from node.config.loading import load
from node.observe import Event, Observer
from node.params.architecture import Architecture, apply
from node.params.encoding import weights_root
from node.params.permutation import Tensors
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Digest
from node.roles import shells
from node.roles.shells import broker_of
from tests.protocol import cast

BOTH = 0b11
SMALL = "out-of-memory: at most 1 models and 64 rows at once on cpu"


class Counted(OnDevice):
    """A device, which is the CPU, and how often it was asked."""

    asked = 0

    def outputs(
        self, architecture: Architecture, model: Model, inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        self.asked += 1
        return super().outputs(architecture, model, inputs_RF)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Has memory for no more than 100 rows."""

    def cramped(
        architecture: Architecture, tensors: Tensors, inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        if len(inputs_RF) > 100:
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return apply(architecture, tensors, inputs_RF)

    monkeypatch.setattr(devices, "apply", cramped)
    runner = Counted(torch.device("cpu"))
    monkeypatch.setattr(appraisal, "runner_on", lambda name: runner if name == "cuda" else ON_CPU)
    yield runner
    assert runner.fallbacks() == (SMALL,)


def measuring(
    pair: tuple[Verified, Verified], validation: ValidationSet, runner: Runner
) -> Measuring:
    rows = (len(validation) // 2,) * 2
    return Measuring(
        pair, validation, rows=rows, seed=Digest(bytes(32)), method="identity", runner=runner
    )


def test_a_round_on_a_device_comes_to_what_it_does_on_the_cpu(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    runner = Counted(torch.device("cpu"))
    here, there = (measuring(pair, validation, one) for one in (ON_CPU, runner))
    for parties in (0b01, 0b10, BOTH):
        assert there.performance(0, parties) == here.performance(0, parties)
    fused = [weights_root(each.fused(0, BOTH)) for each in (here, there)]
    assert fused[0] == fused[1]
    assert runner.asked > 20, "every share that is tried, and each subset"
    assert there.fallbacks() == ()


def test_a_broker_that_clears_measures_on_its_device_and_tells_what_went_otherwise(
    pair: tuple[Verified, Verified], validation: ValidationSet, small: Counted
) -> None:
    events: list[Event] = []
    observer = Observer()
    observer.subscribe(lambda record: events.append(record.event))
    broker: Any = SimpleNamespace(
        _appraiser=MarketAppraiser(validation, classes=10, device="cuda"),
        _seed=lambda: Digest(bytes(32)),
        _cache=None,
        station=SimpleNamespace(observer=observer),
    )
    found = ClearingBroker._measure(broker, list(pair))
    assert found.performance(0, 0b01) > 0
    ClearingBroker._let_go(broker, found)
    assert small.asked
    (told,) = events
    assert isinstance(told, ComputedOtherwise)
    assert (told.during, told.reason) == ("round", SMALL)


def test_a_replay_tells_what_it_could_not_do_as_a_trial_does(
    pair: tuple[Verified, Verified], validation: ValidationSet, small: Counted
) -> None:
    notice = (cast.NOTICE_DIGEST, cast.NOTICE)
    trial = MarketAppraiser(validation, classes=10).measure(*pair, task="digits", notice=notice)
    elsewhere = MarketAppraiser(validation, classes=10, device="cuda")
    again = elsewhere.replay(trial.evaluation, trial.recipe, *pair)
    assert again.fallbacks == (SMALL,)
    assert again.figure.gain == pytest.approx(trial.evaluation.gain, abs=10)


class Opened:
    """As much of a node as is looked at before its market's house is opened."""

    def __init__(self, **flags: str) -> None:
        self.config = load(flags={"role": "broker", "mechanism": "shapley", **flags}).config
        self.events: list[Event] = []
        self.observer = Observer()
        self.observer.subscribe(lambda record: self.events.append(record.event))

    async def starts(self) -> None:
        opened: Any = self
        await broker_of(opened, opened)


class HouseError(Exception):
    """This far and no farther."""


async def test_an_engine_that_measures_no_rounds_is_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(_: Opened) -> None:
        raise HouseError

    monkeypatch.setattr(shells, "house_of_broker", none)
    for engine in ("local", "ray"):
        opened = Opened(engine=engine)
        with pytest.raises(HouseError):
            await opened.starts()
        told = [event for event in opened.events if isinstance(event, ComputedOtherwise)]
        assert bool(told) == (engine == "ray")
    assert "rounds (shapley) are measured by the broker's own process, on cpu" in told[0].reason


async def test_a_market_of_rounds_is_not_opened_without_its_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    for engine in ("local", "ray"):
        with pytest.raises(LocalProtocolError, match="device = cuda"):
            await Opened(engine=engine, device="cuda").starts()
