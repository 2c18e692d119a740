"""Weights and rows go to a device once in a trial, and merges are made where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from broker_node import appraisal
from broker_node.align.weight_matching import weight_matching
from broker_node.appraisal import MarketAppraiser, Trial
from broker_node.clearing.measuring import Measuring
from broker_node.evaluate.curve import ON_CPU, Between, LossCurve
from broker_node.evaluate.device import OnDevice, _made
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.merges import MergeStack
from broker_node.evaluate.methods import MARKET, PAPER, Method
from broker_node.evaluate.residents import MODELS_HELD, Residence
from broker_node.evaluate.search import SEARCHES
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, random_init
from node.params.encoding import decode_tensors, encode_tensors, load_safetensors, save_safetensors
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.quorum import LOSS_TOLERANCE
from node.protocol.types import ONE, Digest, Millionths
from tests.compute.test_devices import EVERY, GPU, NOTICE, SCREEN

Pair = tuple[Verified, Verified]
CPU = torch.device("cpu")
WEIGHT = "layers.0.weight"


class Sent(TorchFunctionMode):
    """Counts what is asked to be on a device, by the memory that it lies in and by its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: Counter[int] = Counter()
        self.shapes: Counter[tuple[int, ...]] = Counter()
        self._kept: list[torch.Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.Tensor.to and args[1:2] == (CPU,):
            self._kept.append(args[0])  # or its memory is somebody else's
            self.memory[args[0].data_ptr()] += 1
            self.shapes[tuple(args[0].shape)] += 1
        return func(*args, **named)


def sent_in_a_trial(
    pair: Pair, validation: ValidationSet, made: Method, **settings: Any
) -> tuple[Sent, Trial]:
    appraiser = MarketAppraiser(
        validation,
        classes=10,
        device="cuda",
        method=made.alignment,
        merging=made.merging,
        **settings,
    )
    with pytest.MonkeyPatch.context() as patched, Sent() as sent:
        patched.setattr(appraisal, "runner_on", lambda _: OnDevice(CPU))
        return sent, appraiser.measure(*pair, task="digits", notice=NOTICE)


@pytest.mark.parametrize("made", [PAPER, MARKET], ids=["paper", "market"])
@pytest.mark.parametrize("search", ["halving-brent", "paper-grid", "half"])
def test_a_trial_sends_both_models_once_whatever_shares_it_looks_at(
    pair: Pair, validation: ValidationSet, made: Method, search: str
) -> None:
    sent, found = sent_in_a_trial(pair, validation, made, search=search)
    assert found.evaluation.alpha > 0
    for name, tensor in pair[0].tensors.items():
        assert sent.memory[tensor.data_ptr()] == 1, name
        if tensor.ndim > 1:  # the seller's, as it was lined up, and no merge of both
            assert sent.shapes[tuple(tensor.shape)] == 2, name
    half = len(validation) // 2
    chosen_on = search != "half" or made == MARKET  # one half, unseen, looks at no rows
    assert sent.shapes[tuple(validation.inputs_RF[:half].shape)] == 1 + chosen_on


def test_controls_send_no_more_than_the_model_that_was_tuned(
    pair: Pair, validation: ValidationSet
) -> None:
    sent, found = sent_in_a_trial(pair, validation, MARKET, control=True, tune=True)
    assert found.tuned is not None
    assert sent.shapes[tuple(pair[0].tensors[WEIGHT].shape)] == 3
    assert sent.memory[pair[0].tensors[WEIGHT].data_ptr()] == 1


def test_a_round_sends_no_share_that_it_tries(pair: Pair, validation: ValidationSet) -> None:
    rows = (len(validation) // 2,) * 2
    found = Measuring(
        pair, validation, rows=rows, seed=Digest(bytes(32)), method="identity",
        runner=OnDevice(CPU),
    )  # fmt: skip
    with Sent() as sent:
        found.performance(0, 0b11)
    # both models by themselves (who is asked first), and what they were fused into
    assert sent.shapes[tuple(pair[0].tensors[WEIGHT].shape)] <= 4


def test_what_crosses_to_a_gpu_is_each_model_and_the_rows_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crossings: Counter[tuple[int, ...]] = Counter()
    real = torch.Tensor.to

    def counted(tensor: torch.Tensor, *where: Any, **how: Any) -> torch.Tensor:
        found = real(tensor, *where, **how)
        crossings[tuple(found.shape)] += (tensor.device.type, found.device.type) == ("cpu", "cuda")
        return found

    monkeypatch.setattr(torch.Tensor, "to", counted)
    architecture = Architecture("mlp", {"widths": [12, 9, 7, 5]})
    there = torch.device("cuda", 0)
    with FakeTensorMode():  # types and devices, without a device
        base, other = random_init(architecture, 1), random_init(architecture, 2)
        inputs_RF, targets_R = torch.zeros(40, 12), torch.zeros(40, dtype=torch.int64)
        runner = OnDevice(there, rows_at_once=16, models_at_once=4)
        rows = (inputs_RF, targets_R)
        for alphas, part in (
            (SCREEN, slice(0, 20)),
            (SCREEN, slice(20, 40)),
            (SCREEN[3:5], slice(0, 40)),
            (SCREEN[5:7], slice(0, 40)),
        ):
            runner.along(architecture, (base, other), alphas, *rows, part)
        for model in (base, other, Between(base, other, Millionths(ONE))):
            runner.losses(architecture, model, *rows)
            runner.outputs(architecture, model, inputs_RF)
    for tensor in base.values():
        assert crossings[tuple(tensor.shape)] == 2
    assert crossings[(40, 12)] == crossings[(40,)] == 1
    assert sum(crossings.values()) == 2 * len(base) + 2
    assert runner.fallbacks() == ()


def test_a_stack_of_many_models_never_meets_what_is_on_the_cpu() -> None:
    architecture = Architecture("mlp", {"widths": [12, 9, 7, 5]})
    with FakeTensorMode():
        models = [random_init(architecture, seed) for seed in range(3)]
        rows = (torch.zeros(40, 12), torch.zeros(40, dtype=torch.int64))
        stack = MergeStack(architecture, models, *rows, device=torch.device("cuda", 0))
        merges = [(1, Millionths(ONE // 4)), (2, Millionths(ONE // 2))]
        found = [stack.losses(0, merges, slice(0, 30)), stack.outputs(slice(0, 40))]
    assert [tuple(each.shape) for each in found] == [(2, 30), (3, 40, 5)]
    assert {each.device.type for each in found} == {"cpu"}
    assert stack.row_evaluations == 2 * 30 + 3 * 40


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("alpha", [0, 1, 333_333, ONE - 1, ONE])
def test_a_merge_made_on_a_device_has_the_bytes_of_the_recipe(
    name: str, alpha: int, pair: Pair
) -> None:
    ours, theirs = (model.tensors for model in pair)
    heights = len(ours[WEIGHT])
    shares = {WEIGHT: tuple(Millionths(k * ONE // heights) for k in range(heights))}
    place = Residence(torch.device(name))
    for by_row in ({}, shares if alpha else {}):
        merge = Between(ours, theirs, Millionths(alpha), by_row)
        expected = interpolate(ours, theirs, Millionths(alpha), shares=by_row)
        for key, tensor in _made(place, merge).items():
            assert tensor.device.type == name
            assert torch.equal(tensor.cpu().view(torch.int32), expected[key].view(torch.int32)), key
            assert torch.equal(merge.tensors()[key], expected[key])


@pytest.mark.parametrize("name", EVERY)
def test_shares_are_fitted_where_the_weights_lie(
    name: str, pair: Pair, validation: ValidationSet
) -> None:
    aligned = weight_matching(*pair, seed=0)
    here, there = (
        evaluate(aligned, validation, seed=NOTICE[1].seed, merging="unit-alpha", runner=runner)
        for runner in (ON_CPU, OnDevice(torch.device(name)))
    )
    assert here.recipe.shares
    if name == "cpu":
        assert there.recipe == here.recipe
        assert there.merged_root == here.merged_root
    assert abs(there.gain - here.gain) <= 5_000, "what brokers of a quorum allow one another"
    assert there.loss_before == pytest.approx(here.loss_before, rel=LOSS_TOLERANCE)


def test_what_was_not_used_for_long_is_let_go_of_and_sent_again() -> None:
    models = [{"w": torch.full((3, 2), float(k))} for k in range(MODELS_HELD + 1)]
    place = Residence(CPU)

    def sent(model: Tensors) -> int:
        with Sent() as counted:
            assert place.weights(model)["w"] is model["w"]
        return sum(counted.shapes.values())

    assert [sent(model) for model in models[:-1]] == [1] * MODELS_HELD
    assert sent(models[0]) == 0
    assert sent(models[-1]) == 1
    assert sent(models[0]) == 0, "used since"
    assert sent(models[1]) == 1, "the least recently used had to go"


def test_more_rows_than_a_device_keeps_are_sent_part_by_part(
    pair: Pair, validation: ValidationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = validation.inputs_RF, validation.targets_R
    ends = pair[0].tensors, pair[1].tensors
    runner = OnDevice(CPU, rows_at_once=100)
    whole = runner.along(pair[0].architecture, ends, SCREEN, *rows)
    monkeypatch.setattr("broker_node.evaluate.residents.ROWS_HELD", 1_000)
    with Sent() as sent:
        parts = OnDevice(CPU, rows_at_once=100).along(pair[0].architecture, ends, SCREEN, *rows)
    assert whole is not None
    assert parts is not None
    assert torch.equal(whole, parts)
    assert sent.shapes[(100, 64)] == len(validation) // 100
    assert sent.shapes[tuple(rows[0].shape)] == 0


def test_memory_that_a_gpu_fetches_from_holds_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    tensors = dict(pair[0].tensors)
    save_safetensors(tensors, tmp_path / "a.safetensors")
    for read in (
        decode_tensors(encode_tensors(tensors), locked=True),
        load_safetensors(tmp_path / "a.safetensors", locked=True),
    ):
        assert {name: bool(torch.equal(read[name], tensors[name])) for name in tensors} == (
            dict.fromkeys(tensors, True)
        )


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_fetches_what_was_read_for_it(name: str, pair: Pair) -> None:
    tensors = decode_tensors(encode_tensors(dict(pair[0].tensors)), locked=True)
    assert all(tensor.is_pinned() for tensor in tensors.values())
    there = Residence(torch.device(name)).weights(tensors)
    for key, tensor in there.items():
        assert torch.equal(tensor.cpu(), tensors[key])


def test_the_search_on_a_device_ends_where_it_does_on_the_cpu(
    pair: Pair, validation: ValidationSet
) -> None:
    ours, theirs = pair
    rows = validation.inputs_RF, validation.targets_R
    for search in SEARCHES.keys() - {"exact-quadratic"}:
        found = [
            SEARCHES[search](
                LossCurve(ours.architecture, ours.tensors, theirs.tensors, *rows, runner=runner)
            )
            for runner in (ON_CPU, OnDevice(CPU))
        ]
        assert found[0] == pytest.approx(found[1], abs=ONE // 1_000)
