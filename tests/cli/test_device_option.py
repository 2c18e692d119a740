"""`pm-node try` and `survey` on a device: named where there is none, the CPU's where it is that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from broker_node.evaluate import device as devices
from broker_node.evaluate.device import OnDevice
from node.params.architecture import Architecture, apply, random_init
from node.params.encoding import save_safetensors
from tests.cli.conftest import Command

MLP = Architecture("mlp", {"widths": [64, 12, 10]})
FAST = ("--data", "digits", "--align", "identity", "--merge", "lerp", "--json")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, path in enumerate(paths):
        save_safetensors(random_init(MLP, seed), path)
    return paths


@pytest.mark.parametrize("command", ["try", "survey"])
def test_a_device_that_is_not_here_is_one_line_before_anything_is_read(
    pm_node: Command, models: list[Path], command: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    shutil.rmtree(models[0].parent)
    ran = pm_node(command, *models, "--data", "digits", "--device", "cuda")
    assert ran.code == 2
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert "device = cuda" in line


def test_what_a_device_could_not_do_is_a_warning_of_the_table(
    pm_node: Command, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = pm_node("try", *models, *FAST).json

    def small(architecture: Architecture, *rest: torch.Tensor) -> torch.Tensor:
        if torch._C._functorch.is_batchedtensor(rest[0]["layers.0.weight"]):  # type: ignore[index]
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return apply(architecture, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(devices, "apply", small)
    monkeypatch.setattr(devices, "runner_on", lambda _: OnDevice(torch.device("cpu")))
    there = pm_node("try", *models, *FAST, "--device", "auto").json
    told = {warning["name"]: warning["text"] for warning in there["warnings"]}
    assert (
        told["computed-otherwise"] == "out-of-memory: at most 1 models and 8192 rows at once on cpu"
    )
    assert there["result"]["loss_before"] == pytest.approx(here["result"]["loss_before"])
    assert there["methods"][0]["alpha"] == pytest.approx(here["methods"][0]["alpha"], abs=1e-3)


def test_a_survey_on_the_first_device_there_is_finds_the_same(
    pm_node: Command, models: list[Path]
) -> None:
    found = [
        pm_node("survey", *models, "--data", "digits", "--json", "--device", name).json
        for name in ("cpu", "auto")
    ]
    for one, other in zip(*(document["models"] for document in found), strict=True):
        assert (one["verdict"], one["best"]) == (other["verdict"], other["best"])
