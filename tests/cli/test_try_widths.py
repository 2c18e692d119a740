"""`pm-node try` with a file of other hidden widths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from broker_node.trying.reading import read_checkpoint
from node.params.encoding import load_safetensors, save_safetensors
from node.training.registry import build_trainer
from node.training.trainer import Task
from tests.cli.conftest import Command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of digits: 64-32-16-10, and 64-37-21-10 under names of its own."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("widths")
    models = []
    for agent in range(2):
        task = Task(dataset="digits", data_folder=Path("/nowhere"), agent=agent, agents=2, seed=5)
        trainer = build_trainer("mlp", task)
        tensors = trainer.initial()
        for epoch in range(12):
            tensors = trainer.train_epoch(tensors, epoch).parameters
        models.append(tensors)
    generator = torch.Generator().manual_seed(3)
    sizes = [64, 32, 16, 10], [64, 37, 21, 10]
    wider: dict[str, torch.Tensor] = {}
    for at in range(3):
        weight = 0.02 * torch.randn(sizes[1][at + 1], sizes[1][at], generator=generator)
        weight[: sizes[0][at + 1], : sizes[0][at]] = models[1][f"layers.{at}.weight"]
        bias = torch.zeros(sizes[1][at + 1])
        bias[: sizes[0][at + 1]] = models[1][f"layers.{at}.bias"]
        wider |= {f"net.fc{at}.weight": weight, f"net.fc{at}.bias": bias}
    paths = folder / "a.safetensors", folder / "b.safetensors"
    save_safetensors(models[0], paths[0])
    save_safetensors(wider, paths[1])
    return paths


@pytest.mark.parametrize("named", [(), ("--architecture", "mlp:64-32-16-10")], ids=["read", "said"])
def test_a_file_of_other_widths_is_merged_beside_its_controls_and_verified(
    pm_node: Command, files: tuple[Path, Path], tmp_path: Path, named: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    merges = ("--merge", "lerp", "--merge", "outright")
    ran = pm_node("try", *files, "--data", "digits", *merges, *named, "--out", out, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert [model["architecture"] for model in found["models"]] == [
        "mlp 64-32-16-10",
        "mlp 64-37-21-10",
    ]
    assert {method["align"] for method in found["methods"]} == {"partial-matching"}
    assert found["gains"]
    projected, random = found["controls"]["widths"]
    assert (projected["align"], projected["merge"], projected["alpha"]) == (
        "partial-matching",
        "outright",
        1,
    )
    assert (random["align"], random["merge"]) == ("random-matching", "lerp")
    assert found["result"]["gain"] > random["gain"]
    merged = out / "merged.safetensors"
    assert set(load_safetensors(merged)) == set(load_safetensors(files[0]))
    assert read_checkpoint(merged).model.weights_root.hex() == found["result"]["merged_root"]
    assert "control of other widths, B by random" in (out / "card.md").read_text()
    checked = pm_node(
        "verify", out / "receipt.json", "--base", files[0], "--sold", files[1],
        "--merged", merged, "--data", "digits",
    )  # fmt: skip
    assert checked.code == 0
    assert "the trial holds" in checked.out


def test_the_table_has_the_controls_and_another_depth_is_refused_by_name(
    pm_node: Command, files: tuple[Path, Path], tmp_path: Path
) -> None:
    ran = pm_node("try", *files, "--data", "digits", "--merge", "lerp")
    controls = [
        line for line in ran.out.splitlines() if "control" in line and line.startswith(" B")
    ]
    assert ["partial" in line for line in controls] == [True, False]
    assert "random-matching" in controls[1]
    deeper = {f"layers.{at}.weight": torch.eye(64) for at in range(3)}
    deeper |= {f"layers.{at}.bias": torch.zeros(64) for at in range(3)}
    deeper |= {"layers.3.weight": torch.zeros(10, 64), "layers.3.bias": torch.zeros(10)}
    save_safetensors(deeper, tmp_path / "deep.safetensors")
    pm_node("try", files[0], tmp_path / "deep.safetensors", "--data", "digits").refused(
        2, "one architecture", "other depth: 4, the buyer's has 3"
    )
