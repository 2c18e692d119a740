"""What is odd about models, rows and curves is named in the document of `pm-node try`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from broker_node.evaluate.doubts import valleys
from node.cli.cautions import shared_rows
from node.data.own_rows import read_rows
from node.params.architecture import Architecture, permutation_spec, random_init
from node.params.permutation import Tensors, rescale
from tests.cli.conftest import Command

NET = Architecture("mlp", {"widths": [64, 8, 10]})
FAST = ("--align", "identity", "--merge", "lerp")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, seed in (("a", 1), ("b", 2)):
        save_file(random_init(NET, seed), tmp_path / f"{name}.safetensors")
    nothing = {name: torch.zeros_like(tensor) for name, tensor in random_init(NET, 1).items()}
    save_file(nothing, tmp_path / "constant.safetensors")
    return tmp_path


def names_of(pm_node: Command, *words: object) -> list[str]:
    document = pm_node("try", *words, *FAST, "--json").json
    return [warning["name"] for warning in document["warnings"]]


def test_a_model_that_answers_every_row_alike_is_said_to(pm_node: Command, models: Path) -> None:
    files = [models / f"{name}.safetensors" for name in ("a", "constant")]
    assert "constant" in names_of(pm_node, *files, "--data", "digits")
    files[1] = models / "b.safetensors"
    assert "constant" not in names_of(pm_node, *files, "--data", "digits")


def test_rows_that_choose_and_score_are_told_and_counted(pm_node: Command, models: Path) -> None:
    rows = read_rows("digits", label="last", normalise="auto", data_folder=models)
    twice = models / "twice.npz"
    np.savez(twice, x=np.tile(rows.inputs_RF[:40], (2, 1)), y=np.tile(rows.targets_R[:40], 2))
    files = [models / f"{name}.safetensors" for name in ("a", "b")]
    words = (*files, "--normalise", "none")
    assert "rows-overlap" in names_of(pm_node, *words, "--data", twice)
    once = models / "once.npz"
    np.savez(once, x=rows.inputs_RF[:80], y=rows.targets_R[:80])
    assert "rows-overlap" not in names_of(pm_node, *words, "--data", once)
    one_RF, other_RF = torch.eye(4), torch.eye(4)[1:]
    assert shared_rows(one_RF, torch.cat([other_RF, other_RF, 2 * other_RF])) == 6


def test_an_empty_file_of_rows_is_refused(pm_node: Command, models: Path) -> None:
    (models / "empty.csv").write_text("")
    files = [models / f"{name}.safetensors" for name in ("a", "b")]
    pm_node("try", *files, "--data", models / "empty.csv", *FAST).refused(2, "empty.csv")


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ([3.0, 2.0, 1.0], 1),
        ([1.0, 2.0, 3.0], 1),
        ([3.0, 1.0, 2.0], 1),
        ([1.0, 3.0, 1.5], 2),
        ([3.0, 1.0, 3.0, 0.5, 3.0], 2),
        ([3.0, 1.0, 1.01, 1.0, 3.0], 1),
        ([2.0, 2.0, 2.0], 1),
        ([1.0, float("inf"), 1.5], 2),
    ],
)
def test_valleys_of_a_curve_are_counted_and_ripples_are_not(
    losses: list[float], count: int
) -> None:
    assert valleys(losses) == count


def test_a_curve_with_two_valleys_is_told(
    pm_node: Command, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cli.try_document.valleys", lambda losses: 2)
    files = [models / f"{name}.safetensors" for name in ("a", "b")]
    assert "several-minima" in names_of(pm_node, *files, "--data", "digits")


def test_the_control_stands_beside_the_gain(pm_node: Command, models: Path) -> None:
    files = [models / f"{name}.safetensors" for name in ("a", "b")]
    out = models / "out"
    ran = pm_node("try", *files, "--data", "digits", *FAST, "--out", out)
    assert "Control: fine-tuned on those labels" in " ".join(ran.out.split())
    assert "control: A fine-tuned on the rows that chose" in (out / "card.md").read_text()
    document = pm_node("try", *files, "--data", "digits", *FAST, "--json").json
    tuned = document["controls"]["tuned"]
    assert tuned["bound"] < tuned["gain"]
    assert tuned["loss"] < document["controls"]["own"]["loss"]


def rescaled(tensors: Tensors, power: int, share: float = 1.0) -> dict[str, torch.Tensor]:
    """The same function: hidden units times 2^±power, or a share of them."""
    spec = permutation_spec(NET)
    (name,) = spec.groups
    drawn = torch.Generator().manual_seed(0)
    count = spec.groups[name].size
    signs_U = 2.0 * torch.randint(0, 2, (count,), generator=drawn) - 1
    meant_U = torch.arange(count) < share * count
    return rescale(spec, tensors, {name: torch.where(meant_U, 2.0 ** (power * signs_U), 1.0)})


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_sold_model_in_strange_scales_is_named_and_an_honest_one_is_not(
    pm_node: Command, models: Path, share: float
) -> None:
    files = [models / f"{name}.safetensors" for name in ("a", "b")]
    assert "rescaled" not in names_of(pm_node, *files, "--data", "digits")
    save_file(rescaled(random_init(NET, 2), 4, share), files[1])
    document = pm_node("try", *files, "--data", "digits", *FAST, "--json").json
    (said,) = [each["text"] for each in document["warnings"] if each["name"] == "rescaled"]
    assert "B (b.safetensors)" in said
    assert "`identity`" in said
    assert len(said) <= 300  # as many as the table shows
    # A's own scales are A's affair, and a seller's like A's are not strange beside them
    save_file(rescaled(random_init(NET, 1), 4, share), files[0])
    assert "rescaled" not in names_of(pm_node, *files, "--data", "digits")
