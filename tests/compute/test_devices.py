"""A device evaluates as the CPU does, and one that is too small says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from broker_node.align.weight_matching import weight_matching
from broker_node.appraisal import MarketAppraiser
from broker_node.engine.engine import EngineSettings
from broker_node.engine.local import LocalEngine
from broker_node.evaluate import device as devices
from broker_node.evaluate.curve import ON_CPU, LossCurve
from broker_node.evaluate.device import OnDevice, device_of, runner_on
from broker_node.evaluate.evaluation import Evaluated, evaluate
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, apply, random_init
from node.params.device_memory import is_out_of_memory
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.errors import LocalProtocolError
from node.protocol.quorum import LOSS_TOLERANCE
from node.protocol.types import ONE, Millionths
from tests.protocol import cast

NOTICE = (cast.NOTICE_DIGEST, cast.NOTICE)
SCREEN = tuple(Millionths(k * ONE // 10) for k in range(11))
GPU = [
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
        ],
    )
]
EVERY = ["cpu", *GPU]
"""The CPU is a device too, if it is asked to be one: all but its speed is seen on it."""


def curve_of(
    pair: tuple[Verified, Verified], validation: ValidationSet, runner: OnDevice | None
) -> LossCurve:
    ours, theirs = pair
    other = weight_matching(ours, theirs, seed=0).transformed
    rows = (validation.inputs_RF, validation.targets_R)
    return LossCurve(ours.architecture, ours.tensors, other, *rows, runner=runner or ON_CPU)


def trial(
    pair: tuple[Verified, Verified], validation: ValidationSet, runner: OnDevice | None
) -> Evaluated:
    aligned = weight_matching(*pair, seed=0)
    return evaluate(aligned, validation, seed=cast.NOTICE.seed, runner=runner or ON_CPU)


@pytest.mark.parametrize("name", EVERY)
def test_losses_on_a_device_are_those_of_the_cpu(
    name: str, pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    runner = OnDevice(torch.device(name), rows_at_once=100, models_at_once=4)
    here, there = (curve_of(pair, validation, each) for each in (None, runner))
    total = len(validation)
    there.measure(SCREEN, 64)
    there.measure(SCREEN, total)
    assert there.row_evaluations == len(SCREEN) * total
    for alpha in (*SCREEN, Millionths(123_456)):
        assert there.loss(alpha, total) == pytest.approx(
            here.loss(alpha, total), rel=LOSS_TOLERANCE
        )
    assert there.row_evaluations == here.row_evaluations
    assert runner.fallbacks() == ()


@pytest.mark.parametrize("name", EVERY)
def test_a_trial_on_a_device_has_the_merged_bytes_of_its_recipe(
    name: str, pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    here = trial(pair, validation, None)
    there = trial(pair, validation, OnDevice(torch.device(name)))
    assert there.alpha == pytest.approx(here.alpha, abs=ONE // 1_000)
    if there.alpha == here.alpha:
        assert there.merged_root == here.merged_root
    assert there.row_evaluations == here.row_evaluations
    assert there.loss_after == pytest.approx(here.loss_after, rel=10 * LOSS_TOLERANCE)
    assert there.loss_before == pytest.approx(here.loss_before, rel=LOSS_TOLERANCE)


@pytest.mark.parametrize("name", EVERY)
def test_convolutions_are_stacked_too(name: str) -> None:
    resnet = Architecture("resnet", {"classes": 4, "depth": 10, "image": [3, 8, 8], "widen": 1})
    base, other = random_init(resnet, 1), random_init(resnet, 2)
    generator = torch.Generator().manual_seed(0)
    inputs_RF = torch.randn(20, resnet.model.input_width(), generator=generator)
    targets_R = torch.arange(20) % 4
    runner = OnDevice(torch.device(name))
    found_AR = runner.along(resnet, (base, other), SCREEN, inputs_RF, targets_R)
    assert found_AR is not None
    for alpha, found_R in zip(SCREEN, found_AR, strict=True):
        merged = interpolate(base, other, alpha)
        torch.testing.assert_close(
            found_R, ON_CPU.losses(resnet, merged, inputs_RF, targets_R), rtol=1e-4, atol=1e-6
        )
    assert runner.fallbacks() == ()


def test_what_is_on_a_device_never_meets_what_is_not() -> None:
    architecture = Architecture("mlp", {"widths": [12, 9, 7, 5]})
    with FakeTensorMode():  # types and devices, without a device
        ends = (random_init(architecture, 1), random_init(architecture, 2))
        rows = (torch.zeros(40, 12), torch.zeros(40, dtype=torch.int64))
        runner = OnDevice(torch.device("cuda", 0), rows_at_once=16, models_at_once=4)
        found = [
            runner.along(architecture, ends, SCREEN, *rows),
            runner.losses(architecture, ends[0], *rows),
            runner.outputs(architecture, ends[0], rows[0]),
        ]
    assert [tuple(each.shape) for each in found if each is not None] == [(11, 40), (40,), (40, 5)]
    assert {(each.device.type, each.dtype) for each in found if each is not None} == {
        ("cpu", torch.float64)
    }
    assert runner.fallbacks() == ()


# ------------------------------------------------------------------------ what does not fit


def is_stacked(tensors: Tensors) -> bool:
    return torch._C._functorch.is_batchedtensor(tensors["layers.0.weight"])


class Small:
    """A device that has room for so many rows of so many models, and no more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.refused = 0

    def __call__(
        self, architecture: Architecture, tensors: Tensors, inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        models = 1
        if is_stacked(tensors):
            models = len(torch._C._functorch.get_unwrapped(tensors["layers.0.weight"]))
        if models * len(inputs_RF) > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return apply(architecture, tensors, inputs_RF)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Small]:
    allocator = Small(request.param)
    monkeypatch.setattr(devices, "apply", allocator)
    yield allocator
    assert allocator.refused


@pytest.mark.parametrize(
    ("small", "said"),
    [
        (900, "at most 2 models and 8192 rows at once on cpu"),
        (200, "at most 1 models and 128 rows at once on cpu"),
        (16, "at most 1 models and 16 rows at once on cpu"),
    ],
    indirect=["small"],
)
def test_a_device_without_the_memory_is_asked_for_less_and_it_is_told(
    pair: tuple[Verified, Verified], validation: ValidationSet, small: Small, said: str
) -> None:
    runner = OnDevice(torch.device("cpu"))
    curve = curve_of(pair, validation, runner)
    curve.measure(SCREEN, 400)
    losses = [curve.loss(alpha, 400) for alpha in SCREEN]
    assert runner.fallbacks() == (f"out-of-memory: {said}",)
    alone = curve_of(pair, validation, None)
    assert losses == pytest.approx([alone.loss(a, 400) for a in SCREEN], rel=LOSS_TOLERANCE)


def test_where_not_even_one_model_fits_the_cpu_evaluates_by_name(
    pair: tuple[Verified, Verified],
    validation: ValidationSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "apply", Small(room=0))
    runner = OnDevice(torch.device("cpu"))
    assert trial(pair, validation, runner) == trial(pair, validation, None)
    assert runner.fallbacks() == ("out-of-memory: cpu is too small, the cpu evaluates",)


def test_the_words_of_a_device_that_has_no_error_for_it_are_understood() -> None:
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(torch.OutOfMemoryError("tried to allocate"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_fault_that_is_no_lack_of_memory_is_not_covered_up(
    pair: tuple[Verified, Verified], validation: ValidationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(devices, "apply", broken)
    with pytest.raises(RuntimeError, match="device-side"):
        curve_of(pair, validation, OnDevice(torch.device("cpu"))).measure(SCREEN, 64)


def test_a_model_that_cannot_be_stacked_is_run_by_itself_and_it_is_told(
    pair: tuple[Verified, Verified], validation: ValidationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = curve_of(pair, validation, None).loss(SCREEN[3], 64)

    def choosy(
        architecture: Architecture, tensors: Tensors, inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        outputs = apply(architecture, tensors, inputs_RF)
        if bool(outputs.sum() > 0):  # what a stack of models cannot be asked
            return outputs
        return outputs

    monkeypatch.setattr(devices, "apply", choosy)
    runner = OnDevice(torch.device("cpu"))
    curve = curve_of(pair, validation, runner)
    curve.measure(SCREEN, 64)
    assert curve.loss(SCREEN[3], 64) == pytest.approx(here, rel=LOSS_TOLERANCE)
    (told,) = runner.fallbacks()
    assert told.startswith("no-batching: one model at a time on cpu")


# ------------------------------------------------------------------------- which device it is


def test_without_a_device_the_broker_does_not_start() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(LocalProtocolError, match="device = cuda"):
        device_of("cuda")
    with pytest.raises(LocalProtocolError, match="device = cuda"):
        LocalEngine(
            MarketAppraiser(
                ValidationSet(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])), classes=2
            ),
            EngineSettings(device="cuda"),
        )


def test_a_device_that_there_is_none_of_is_named() -> None:
    with pytest.raises(LocalProtocolError, match="tpu"):
        device_of("tpu")


def test_the_cpu_runs_as_it_always_did() -> None:
    assert runner_on("cpu") is ON_CPU


def test_a_broker_tells_in_its_trial_what_it_could_not_do(
    pair: tuple[Verified, Verified],
    validation: ValidationSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def small(
        architecture: Architecture, tensors: Tensors, inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        if is_stacked(tensors):
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return apply(architecture, tensors, inputs_RF)

    monkeypatch.setattr(devices, "apply", small)
    monkeypatch.setattr("broker_node.appraisal.runner_on", lambda _: OnDevice(torch.device("cpu")))
    appraiser = MarketAppraiser(validation, classes=10, device="cuda")
    found = appraiser.measure(*pair, task="digits", notice=NOTICE)
    assert found.fallbacks == ("out-of-memory: at most 1 models and 8192 rows at once on cpu",)
