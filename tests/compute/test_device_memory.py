"""A device without the memory for something leaves that to the CPU, or to less at once, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from broker_node.align import joint
from broker_node.align.symmetric_matching import SymmetricMatching, match_symmetries
from broker_node.align.universe import Universe
from broker_node.evaluate import merges as stacks
from broker_node.evaluate.crowd import best_sellers
from broker_node.evaluate.curve import ON_CPU, row_losses
from broker_node.evaluate.device import OnDevice
from broker_node.evaluate.evaluation import Evaluated, evaluate
from broker_node.evaluate.merges import MergeStack
from broker_node.evaluate.validation import ValidationSet
from broker_node.merge import unit_alpha
from broker_node.trying.methods import align, mergers
from broker_node.trying.survey import run_survey
from broker_node.trying.trial import run_trial
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, apply, random_init
from node.params.device_memory import is_out_of_memory
from node.params.families import factories
from node.params.permutation import Tensors
from tests.compute.test_aligners import SMALL, rows_for
from tests.compute.test_crowd import BEST, BUDGET, BUYER, SEED, VALIDATION, WORSE
from tests.compute.test_devices import EVERY, NOTICE, SCREEN
from tests.compute.test_own_modules_merged import verified
from tests.params import own_modules as mine
from tests.params.own_modules import CLASSES, FEATURES, own

Pair = tuple[Verified, Verified]
CPU = torch.device("cpu")
LANGUAGE = Architecture(
    "gpt",
    {"context": 6, "depth": 1, "heads": 3, "hidden": 12, "norm": "layer", "tied": False,
     "vocabulary": 11, "width": 12},
)  # fmt: skip
"""As `test_own_modules_merged` has it: derived once for both."""


class Full:
    """Has no memory the first so many times, and then does what it stands for."""

    def __init__(self, real: Callable[..., Any], times: int) -> None:
        self.real, self.left, self.asked = real, times, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.asked += 1
        if self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return self.real(*arguments, **named)


def fitted(pair: Pair, validation: ValidationSet, runner: Any) -> Evaluated:
    aligned = align("identity", *pair, validation.inputs_RF, seed=0)
    return evaluate(
        aligned, validation, seed=NOTICE[1].seed, merging=unit_alpha.NAME, runner=runner
    )


@pytest.mark.parametrize(("times", "told"), [(1, False), (2, True)])
def test_a_fit_without_memory_is_tried_again_alone_and_then_is_the_cpus(
    pair: Pair,
    validation: ValidationSet,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    told: bool,
) -> None:
    monkeypatch.setattr("broker_node.evaluate.evaluation.merging_for", lambda name, _: name)
    here = fitted(pair, validation, ON_CPU)
    assert here.recipe.shares
    full = Full(apply, times)
    monkeypatch.setattr(unit_alpha, "apply", full)
    runner = OnDevice(CPU)
    assert fitted(pair, validation, runner) == here
    said = ("out-of-memory: cpu is too small, the fit of shares is the cpu's",)
    assert runner.fallbacks() == (said if told else ())
    assert full.left == 0


def language_models() -> Pair:
    ours, theirs = (verified(LANGUAGE, random_init(LANGUAGE, seed)) for seed in (1, 2))
    return ours, theirs


@pytest.mark.parametrize("name", EVERY)
def test_heads_are_matched_on_the_device_of_a_trial(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device | None] = []

    def noted(*sides: Any, device: torch.device | None, **how: Any) -> SymmetricMatching:
        asked.append(device)
        return match_symmetries(*sides, device=device, **how)

    monkeypatch.setattr(joint, "match_symmetries", noted)
    ours, theirs = language_models()
    rows_RF = torch.zeros(1, 6)
    runner = OnDevice(torch.device(name))
    there = align(joint.NAME, ours, theirs, rows_RF, seed=0, runner=runner)
    here = align(joint.NAME, ours, theirs, rows_RF, seed=0)
    assert asked == [torch.device(name), None]
    assert runner.fallbacks() == ()
    assert all(tensor.device == CPU for tensor in there.transformed.values())
    assert near(ours, there.transformed) >= 0.97 * near(ours, here.transformed)


def near(ours: Verified, theirs: Tensors) -> float:
    return sum(float((ours.tensors[name] * theirs[name]).sum()) for name in theirs)


def test_matching_without_memory_is_the_cpus_to_the_byte_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def small(*sides: Any, device: torch.device | None, **how: Any) -> SymmetricMatching:
        if device is not None:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        return match_symmetries(*sides, device=device, **how)

    ours, theirs = language_models()
    here = align(joint.NAME, ours, theirs, torch.zeros(1, 6), seed=0)
    monkeypatch.setattr(joint, "match_symmetries", small)
    runner = OnDevice(CPU)
    there = align(joint.NAME, ours, theirs, torch.zeros(1, 6), seed=0, runner=runner)
    assert all(torch.equal(there.transformed[n], here.transformed[n]) for n in here.transformed)
    assert runner.fallbacks() == ("out-of-memory: cpu is too small, joint-matching is the cpu's",)


def test_a_trial_of_files_on_a_device_is_that_of_the_cpu(
    pair: Pair, validation: ValidationSet
) -> None:
    here, there = (
        run_trial(
            pair[0],
            [pair[1]],
            validation,
            seed=0,
            aligners=["identity", "weight-matching"],
            mergers=mergers(["lerp", "outright"]),
            runner=runner,
        )
        for runner in (ON_CPU, OnDevice(CPU))
    )
    assert (there.best, there.fallbacks) == (here.best, ())
    for one, other in zip(here.candidates, there.candidates, strict=True):
        assert (one.align, one.merge) == (other.align, other.merge)
        assert one.score is not None
        assert other.score is not None
        assert other.score.loss == pytest.approx(one.score.loss, rel=1e-3)


MODELS = [BUYER, BEST, *WORSE[:2]]


def crowd(runner: Any) -> Any:
    within = Universe.of(MODELS, probe_RF=rows_for(SMALL, 64), seed=0)
    return best_sellers(
        within, SMALL, MODELS, MODELS, VALIDATION, seed=SEED, budget=BUDGET, runner=runner
    )


@pytest.mark.parametrize("name", EVERY)
def test_the_best_sellers_on_a_device_are_those_of_the_cpu(name: str) -> None:
    here, there = crowd(ON_CPU), crowd(OnDevice(torch.device(name)))
    assert [choice.seller for choice in there.choices] == [c.seller for c in here.choices]
    assert there.row_evaluations == here.row_evaluations
    assert there.fallbacks == ()
    for one, other in zip(here.choices, there.choices, strict=True):
        if one.gain is not None and other.gain is not None:
            assert other.gain.gain == pytest.approx(one.gain.gain, abs=1_000)


def test_models_that_do_not_all_fit_on_a_device_stay_on_the_cpu_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def small(*arguments: Any, device: torch.device | None = None, **how: Any) -> MergeStack:
        if device is not None:
            raise torch.OutOfMemoryError("tried to allocate 80.00 GiB")
        return MergeStack(*arguments, **how)

    monkeypatch.setattr("broker_node.evaluate.crowd.MergeStack", small)
    found = crowd(OnDevice(CPU))
    said = "out-of-memory: cpu is too small, the stack of all models is the cpu's"
    assert found.fallbacks == (said,)
    assert [choice.seller for choice in found.choices] == [
        choice.seller for choice in crowd(ON_CPU).choices
    ]


def test_a_survey_tells_of_merges_that_did_not_fit_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stacks, "together", Full(stacks.together, 1))
    found = run_survey(MODELS, VALIDATION, seed=0, runner=OnDevice(CPU))
    (said,) = found.fallbacks
    assert said.startswith("out-of-memory: at most ")


def rows_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, FEATURES, generator=generator), torch.arange(count) % CLASSES


def test_a_module_of_ones_own_that_cannot_be_stacked_is_run_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(factories, "_allowed", {})
    architecture = own(mine.perceptron, FEATURES)
    ends = random_init(architecture, 1), random_init(architecture, 2)
    rows = rows_of(20)
    real = nn.Tanh.forward

    def looks(self: nn.Tanh, found: torch.Tensor) -> torch.Tensor:
        return real(self, found) if float(found.sum()) else found  # what no stack can be asked

    monkeypatch.setattr(nn.Tanh, "forward", looks)
    runner = OnDevice(CPU)
    found_AR = runner.along(architecture, ends, SCREEN, *rows)
    assert found_AR is not None
    torch.testing.assert_close(found_AR[0], row_losses(architecture, ends[0], *rows))
    (said,) = runner.fallbacks()
    assert said.startswith("no-batching: one model at a time on cpu")


def test_a_module_of_ones_own_that_runs_out_of_memory_is_asked_for_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(factories, "_allowed", {})
    architecture = own(mine.perceptron, FEATURES)
    tensors, rows = random_init(architecture, 1), rows_of(40)
    here_R = row_losses(architecture, tensors, *rows)
    real = nn.Tanh.forward

    def small(self: nn.Tanh, found: torch.Tensor) -> torch.Tensor:
        if len(found) > 16:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")
        return real(self, found)

    monkeypatch.setattr(nn.Tanh, "forward", small)
    runner = OnDevice(CPU, rows_at_once=32)
    torch.testing.assert_close(runner.losses(architecture, tensors, *rows), here_R)
    assert runner.fallbacks() == ("out-of-memory: at most 1 models and 16 rows at once on cpu",)


def test_a_cpu_without_memory_is_known_by_its_words() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(MemoryError())
