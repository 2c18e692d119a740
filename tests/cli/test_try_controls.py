"""What A gains without anybody stands beside every merge of `pm-node try`, and an ensemble too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from broker_node.evaluate.control import own_gain
from broker_node.evaluate.validation import ValidationSet
from broker_node.trying.reading import read_checkpoint
from broker_node.trying.trial import split_seed
from node.data.own_rows import read_rows
from node.params.encoding import load_safetensors, save_safetensors
from node.protocol.types import ONE
from tests.cli.conftest import Command
from tests.cli.test_try import FAST, files, models, trained  # fixtures too

__all__ = ["models", "trained"]
TOLD = "The merge is not above its best control"


@pytest.fixture
def sure(models: Path) -> list[Path]:
    """A too sure of itself, and a seller whose every weight is zero."""
    a, b = files(models)
    tensors = load_safetensors(a)
    last = {name: 6 * tensors[name] for name in ("net.fc2.weight", "net.fc2.bias")}
    save_safetensors({**tensors, **last}, a)
    save_safetensors({name: torch.zeros_like(each) for name, each in tensors.items()}, b)
    return [a, b]


def test_a_seller_of_zeros_gains_no_more_than_one_factor_and_that_is_told(
    pm_node: Command, sure: list[Path], tmp_path: Path
) -> None:
    more = ("--align", "identity", *FAST)
    found = pm_node("try", *sure, "--data", "digits", *more, "--json").json
    tuned, scaled = (found["controls"][name] for name in ("tuned", "scaled"))
    assert found["gains"]
    assert found["result"]["gain"] > 0.2
    assert scaled["gain"] > 0.2
    assert scaled["bound"] < scaled["gain"]
    assert scaled["accuracy"] == found["controls"]["own"]["accuracy"]
    assert found["result"]["gain"] <= max(tuned["gain"], scaled["gain"])
    assert found["result"]["above_controls"] is False
    ran = pm_node("try", *sure, "--data", "digits", *more, "--out", tmp_path / "out")
    (row,) = [line for line in ran.out.splitlines() if "scaled" in line and "control" in line[:60]]
    assert f"{100 * scaled['gain']:.1f}" in row
    (best,) = [line for line in ran.out.splitlines() if line.startswith("Best:")]
    assert TOLD in best
    card = (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert "outputs scaled by the one number" in card
    assert "not above its best control" in card


def test_the_scaled_control_is_what_a_broker_measures_beside_its_trial(
    pm_node: Command, sure: list[Path], models: Path
) -> None:
    found = pm_node("try", *sure, "--data", "digits", *FAST, "--json").json
    model = read_checkpoint(sure[0]).model
    own = read_rows("digits", label="last", normalise="auto", data_folder=models)
    rows = ValidationSet.of(own.for_model(64, 10))
    gain = own_gain(
        model.architecture,
        model.tensors,
        rows,
        seed=split_seed(0, rows.root),
        choice_rows=found["rows"]["choice"],
        score_rows=found["rows"]["score"],
    )
    scaled = found["controls"]["scaled"]
    assert (scaled["gain"], scaled["bound"]) == (gain.gain / ONE, gain.bound / ONE)


def test_a_merge_above_its_controls_is_not_belittled(
    pm_node: Command, models: Path, tmp_path: Path
) -> None:
    words = ("try", *files(models, "ca"), "--data", "digits", "--json")
    found = pm_node(*words, "--merge", "unit-alpha", "--out", tmp_path / "out").json
    tuned, scaled = (found["controls"][name]["gain"] for name in ("tuned", "scaled"))
    assert found["result"]["gain"] > max(tuned, scaled)
    assert found["result"]["above_controls"] is True
    assert "not above" not in (tmp_path / "out" / "card.md").read_text(encoding="utf-8")


def said_of_ensemble(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("Ensemble:")]
    return line


def test_an_ensemble_may_be_asked_for_and_is_no_file(
    pm_node: Command, models: Path, tmp_path: Path
) -> None:
    asked: tuple[Any, ...] = ("try", *files(models), "--data", "digits", "--merge", "ensemble")
    found = pm_node(*asked, "--json").json
    assert (found["merges"], found["methods"], found["gains"]) == (["ensemble"], [], False)
    assert found["controls"]["ensemble"]["members"] == ["A", "B"]
    ran = pm_node(*asked)
    assert (ran.code, ran.err) == (0, "")
    assert "A (a.safetensors), B (b.safetensors)" in said_of_ensemble(ran.out)
    assert "no file is written of it" in said_of_ensemble(ran.out)
    assert "No merge improves" not in ran.out
    assert "--out FOLDER" not in ran.out
    out = tmp_path / "out"
    pm_node(*asked, "--out", out).refused(2, "--merge ensemble writes no model", "--merge lerp")
    assert not out.exists()
    # beside a merge, which is written
    ran = pm_node(*asked, "--merge", "lerp", "--out", out)
    assert (ran.code, ran.err) == (0, "")
    assert "no file is written of it" in said_of_ensemble(ran.out)
    assert (out / "merged.safetensors").exists()
    assert "an ensemble, which runs all of A, B and is in no file" in (out / "card.md").read_text()


def test_of_a_copy_of_ones_own_model_there_is_no_ensemble(pm_node: Command, models: Path) -> None:
    copy = models / "copy.safetensors"
    copy.write_bytes(files(models)[0].read_bytes())
    ran = pm_node("try", files(models)[0], copy, "--data", "digits", "--merge", "ensemble")
    assert "no model but A is left" in said_of_ensemble(ran.out)
