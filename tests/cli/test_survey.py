"""`pm-node survey`: a folder of checkpoints, and for each of them the best other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.gain import paired_gain
from broker_node.evaluate.validation import draw_rows
from broker_node.trying.reading import METADATA_KEY, read_checkpoint
from broker_node.trying.trial import split_seed
from node.cli import survey_files
from node.data.datasets import load_digits
from node.params.architecture import Architecture, permutation_spec, random_init
from node.params.encoding import load_safetensors, save_safetensors, weights_root
from node.params.permutation import permute
from node.params.recipe import Recipe, apply_recipe
from node.protocol.types import ONE, Digest
from node.training.registry import build_trainer
from node.training.trainer import Task
from tests.cli.conftest import Command

ALL = "abcdef"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six models of digits, each short of other classes and trained longer than the last."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    for agent, name in enumerate(ALL):
        task = Task(dataset="digits", data_folder=Path("/nowhere"), agent=agent, agents=6, seed=5)
        trainer = build_trainer("mlp", task)
        tensors = trainer.initial()
        for epoch in range(10 + 2 * agent):
            tensors = trainer.train_epoch(tensors, epoch).parameters
        named = {key.replace("layers.", "net.fc"): tensor for key, tensor in tensors.items()}
        save_safetensors(named, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A folder of one's own with the six files."""
    return Path(shutil.copytree(trained, tmp_path / "models"))


def by_name(document: Any) -> dict[str, Any]:
    return {model["name"]: model for model in document["models"]}


def halves(document: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of digits that confirm, by the seed and the root that the document says."""
    rows = load_digits(Path("/nowhere")).test
    said = document["rows"]
    seed = split_seed(said["seed"], Digest(bytes.fromhex(said["root"])))
    drawn = draw_rows(seed, len(rows), choice=len(rows) // 2, score=said["confirm"]).score
    return torch.from_numpy(rows.inputs_RF[drawn]), torch.from_numpy(rows.targets_R[drawn])


def renumbered(source: Path, copy: Path) -> None:
    """Write the model with all its units in the reverse order."""
    read = read_checkpoint(source)
    spec = permutation_spec(read.model.architecture)
    orders = {name: list(range(group.size))[::-1] for name, group in spec.groups.items()}
    save_safetensors(read.named(permute(spec, read.model.tensors, orders)), copy)


def test_a_folder_of_checkpoints_ends_in_merges_that_gain_what_was_told(
    pm_node: Command, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = pm_node("survey", models, "--data", "digits", "--json", "--out", out)
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert json.loads((out / "survey.json").read_text()) == found
    assert (found["rows"]["choice"], found["rows"]["confirm"]) == (300, 300)
    rows = halves(found)
    confirmed = [model for model in found["models"] if model["verdict"] == "confirmed"]
    assert len(confirmed) >= 3
    assert any(0 < model["alpha"] < 1 for model in confirmed)
    for model in confirmed:
        own, merged = read_checkpoint(Path(model["file"])), Path(model["merged_file"])
        other = read_checkpoint(Path(by_name(found)[model["best"]]["file"]))
        # what was written gains what was told, on rows that chose nothing
        read = read_checkpoint(merged)
        losses = [
            row_losses(own.model.architecture, each.model.tensors, *rows) for each in (own, read)
        ]
        gain = paired_gain(*losses)
        assert (gain.gain / ONE, gain.bound / ONE) == (model["gain"], model["bound"])
        assert losses[0].mean().item() == pytest.approx(model["loss"])
        assert losses[1].mean().item() == pytest.approx(model["merged_loss"])
        # and is what the recipe makes, to the byte
        recipe = Recipe.decode(bytes.fromhex(model["recipe"]))
        assert (recipe.hash.hex(), recipe.alpha / ONE) == (model["recipe_hash"], model["alpha"])
        made = apply_recipe(own.model.architecture, own.model.tensors, other.model.tensors, recipe)
        assert weights_root(made) == read.model.weights_root
        assert read.model.weights_root.hex() == model["merged_root"]
        assert other.model.weights_root.hex() == model["best_root"]
        # under the names that its own code loads
        assert set(load_safetensors(merged)) == set(load_safetensors(Path(model["file"])))
        with safe_open(merged, "pt") as held:
            assert "mlp" in held.metadata()[METADATA_KEY]
    written = {Path(model["merged_file"]).name for model in confirmed} | {"survey.json"}
    assert {path.name for path in out.iterdir()} == written
    gains = [model["gain"] for model in found["models"] if model["gain"] is not None]
    assert gains == sorted(gains, reverse=True)


def test_the_outcome_is_one_whatever_order_the_files_are_named_in(
    pm_node: Command, models: Path
) -> None:
    files = [models / f"{name}.safetensors" for name in ALL]
    ways = ([models], files, files[::-1], [files[3], models])
    documents = [pm_node("survey", *way, "--data", "digits", "--json").json for way in ways]
    for document in documents:
        assert document["cost"].pop("seconds") > 0
    assert all(document == documents[0] for document in documents)
    other = pm_node("survey", models, "--data", "digits", "--json", "--seed", "1").json
    assert by_name(other)["a"]["loss"] != by_name(documents[0])["a"]["loss"]


def test_rows_are_divided_as_a_trial_of_one_pair_divides_them(
    pm_node: Command, models: Path
) -> None:
    files = [models / f"{name}.safetensors" for name in "ab"]
    words = (*files, "--data", "digits", "--seed", "4", "--json")
    fast = ("--align", "identity", "--merge", "outright")
    tried = pm_node("try", *words, *fast).json
    surveyed = by_name(pm_node("survey", *words).json)
    for name, model in zip("ab", tried["models"], strict=True):
        assert surveyed[name]["loss"] == pytest.approx(model["loss"])
        assert surveyed[name]["accuracy"] == model["accuracy"]


def test_a_renumbered_copy_is_found_and_merged_like_the_original(
    pm_node: Command, models: Path
) -> None:
    before = by_name(pm_node("survey", models, "--data", "digits", "--json").json)
    buyer = next(name for name, each in before.items() if 0 < (each["alpha"] or 0) < 1)
    best = before[buyer]["best"]
    (models / "copies").mkdir()
    for name in (buyer, best):
        renumbered(models / f"{name}.safetensors", models / "copies" / f"{name}{name}.safetensors")
    ran = pm_node("survey", models, models / "copies", "--data", "digits", "--json")
    after = by_name(ran.json)
    twins = {buyer, buyer * 2}, {best, best * 2}
    for name in twins[0]:
        assert after[name]["best"] in twins[1]
        assert after[name]["verdict"] == before[buyer]["verdict"]
    one, other = (after[name] for name in sorted(twins[0]))
    assert one["gain"] == pytest.approx(other["gain"], abs=1e-3)
    assert one["loss"] == pytest.approx(other["loss"])
    assert one["root"] != other["root"]
    said = [each["text"] for each in ran.json["warnings"] if each["name"] == "replica"]
    for pair in twins:
        assert any(all(name in text.split(",")[0] for name in pair) for text in said)
    assert len(said) == 2


def test_files_of_the_same_weights_are_counted_once_and_both_are_named(
    pm_node: Command, models: Path
) -> None:
    shutil.copy(models / "a.safetensors", models / "z.safetensors")
    ran = pm_node("survey", models, "--data", "digits", "--json")
    assert len(ran.json["models"]) == 6
    (said,) = [each["text"] for each in ran.json["warnings"] if each["name"] == "repeated"]
    assert "z.safetensors holds the weights of" in said
    assert "a.safetensors" in said
    files = models / "a.safetensors", models / "z.safetensors"
    pm_node("survey", *files, "--data", "digits").refused(
        2, "a.safetensors", "z.safetensors", "the same weights"
    )


def test_the_table_names_models_verdicts_bounds_rows_and_cost(
    pm_node: Command, models: Path
) -> None:
    ran = pm_node("survey", models, "--data", "digits", "--sort", "name")
    assert (ran.code, ran.err) == (0, "")
    said = " ".join(ran.out.split())
    for fragment in (
        *("mlp 64-32-16-10", "best other", "gain %", "≥ %", "gains", "! inferred: ReLU"),
        "rows: 300 chose, 300 others confirmed and score; drawn by seed 0",
        *("row evaluations to choose and confirm", "all pairs the paper's way", "no control"),
        *("of 6 models gain by another", "nothing is written"),
    ):
        assert fragment in said
    first = [
        line.split()[0] for line in ran.out.splitlines() if line[1:3] in {f"{n} " for n in ALL}
    ]
    assert first == list(ALL)
    assert max(map(len, ran.out.splitlines()[:12])) <= 80


def test_what_it_cost_is_linear_and_the_papers_way_is_counted_by_its_rule(
    pm_node: Command, models: Path
) -> None:
    cost = pm_node("survey", models, "--data", "digits", "--json").json["cost"]
    assert cost["paper_evaluations"] == 6 * 5 * 10 * 300 + 6 * 3 * 300
    # into the universe, answers, four probed at five α, four searched, one confirmed
    assert cost["row_evaluations"] <= 6 * (256 + 300 + 4 * 5 * 80 + 4 * 300 + 2 * 300)
    assert cost["row_evaluations"] >= 6 * (256 + 300)


def test_a_model_that_overflows_has_no_other_and_spoils_nobody(
    pm_node: Command, models: Path
) -> None:
    tensors = load_safetensors(models / "a.safetensors")
    huge = {name: tensor.sign() * 9e5 for name, tensor in tensors.items()}
    save_safetensors(huge, models / "huge.safetensors")
    ran = pm_node("survey", models, "--data", "digits", "--json")
    assert ran.code == 0, ran.err
    found = by_name(ran.json)
    assert found["huge"]["verdict"] == "overflows"
    assert found["huge"]["best"] is None
    assert sum(model["verdict"] == "confirmed" for model in found.values()) >= 3
    assert pm_node("survey", models, "--data", "digits").code == 0


def test_a_model_whose_units_overflow_is_left_out_by_name_and_the_others_are_surveyed(
    pm_node: Command, tmp_path: Path
) -> None:
    deep = Architecture("mlp", {"widths": [2, *[2] * 60, 2]})
    for seed, name in enumerate(("one", "two")):
        save_safetensors(random_init(deep, seed), tmp_path / f"{name}.safetensors")
    # all its units are silent, but for features as large as some of the rows have
    burst = {
        name: torch.full_like(tensor, 9e5 if name.endswith("weight") else 0.0)
        for name, tensor in random_init(deep, 2).items()
    }
    burst["layers.0.weight"] = torch.ones(2, 2)
    burst["layers.0.bias"] = torch.full((2,), -9e5)
    save_safetensors(burst, tmp_path / "burst.safetensors")
    inputs_RF = np.random.Generator(np.random.Philox(2)).normal(size=(80, 2))
    inputs_RF[::4] *= 1e7
    np.savez(tmp_path / "rows.npz", x=inputs_RF, y=np.arange(80) // 2 % 2)
    ran = pm_node("survey", tmp_path, "--data", tmp_path / "rows.npz", "--normalise", "none",
                  "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    found = by_name(ran.json)
    assert (found["burst"]["verdict"], found["burst"]["loss"]) == ("unaligned", None)
    assert {found[name]["verdict"] for name in ("one", "two")} & {"unaligned"} == set()
    said = [each["text"] for each in ran.json["warnings"] if each["name"] == "not-lined-up"]
    assert len(said) == 1
    assert said[0].startswith("burst: values of hidden.")


def test_nothing_is_written_over_unless_that_is_said_and_no_merge_is_left_behind(
    pm_node: Command, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("survey", models, "--data", "digits", "--out", out)
    assert pm_node(*words).code == 0
    (out / "mine.txt").write_text("kept")
    found = json.loads((out / "survey.json").read_text())
    stale = {f"{model['name']}.merged.safetensors" for model in found["models"]}
    stale -= {path.name for path in out.iterdir()}
    (out / min(stale)).write_text("of an earlier survey")
    pm_node(*words).refused(2, "merged.safetensors exists", "--force")
    assert pm_node(*words, "--force").code == 0
    assert not (out / min(stale)).exists()
    assert (out / "mine.txt").read_text() == "kept"
    pm_node(*words[:-1], models).refused(2, "is read from")
    again = ("survey", out, "--data", "digits", "--out", tmp_path / "next")
    assert pm_node(*again).code == 0
    pm_node(*words[:-1], out / "mine.txt").refused(2, "is a file: name a folder")
    pm_node(*words[:-1], out / "no" / "such").refused(2, "there is no folder")


def test_a_model_that_is_read_is_never_written_over(pm_node: Command, models: Path) -> None:
    (models / "b.safetensors").rename(models / "a.merged.safetensors")
    before = (models / "a.merged.safetensors").read_bytes()
    files = [models / "a.safetensors", models / "a.merged.safetensors"]
    words = ("survey", *files, "--data", "digits", "--out", models, "--force")
    pm_node(*words).refused(2, "would write over the model")
    assert (models / "a.merged.safetensors").read_bytes() == before


def test_an_interrupted_survey_leaves_no_half_of_a_folder(
    pm_node: Command, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(survey_files, "settle", interrupted)
    before = sorted(path.name for path in tmp_path.iterdir())
    ran = pm_node("survey", models, "--data", "digits", "--out", tmp_path / "out")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_files_of_one_name_in_two_folders_are_told_apart(
    pm_node: Command, models: Path, tmp_path: Path
) -> None:
    (models / "B").mkdir()
    shutil.copy(models / "b.safetensors", models / "B" / "a.safetensors")
    (models / "b.safetensors").unlink()
    out = tmp_path / "out"
    words = ("survey", models, models / "B", "--data", "digits", "--json", "--out", out)
    found = pm_node(*words).json
    names = [model["name"] for model in found["models"]]
    assert {str(models / "a.safetensors"), str(models / "B" / "a.safetensors")} < set(names)
    files = [model["merged_file"] for model in found["models"] if model["merged_file"]]
    assert len(set(files)) == len(files) == found["files"]["merged"]
    for model in found["models"]:
        if model["merged_file"]:
            read = read_checkpoint(Path(model["merged_file"])).model
            assert read.weights_root.hex() == model["merged_root"]


def test_a_hostile_file_name_does_nothing_in_table_and_folder(
    pm_node: Command, models: Path, tmp_path: Path
) -> None:
    strange = models / "[red]\x1b[31m\n.safetensors"
    (models / "f.safetensors").rename(strange)
    out = tmp_path / "out"
    ran = pm_node("survey", models, "--data", "digits", "--out", out)
    assert ran.code == 0, ran.err
    assert "\x1b[31m" not in ran.out
    assert "[red]" in ran.out
    assert all(path.parent == out for path in out.rglob("*"))


def test_rows_of_values_are_surveyed_too(pm_node: Command, tmp_path: Path) -> None:
    generator = np.random.Generator(np.random.Philox(3))
    truth_F = generator.normal(size=4).astype(np.float32)
    inputs_RF = generator.normal(size=(120, 4)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=inputs_RF, y=inputs_RF @ truth_F)
    for name, off in (("low", -0.5), ("high", 0.5)):
        weights = torch.from_numpy(truth_F + np.float32(off)).reshape(1, 4)
        tensors = {"weight": weights, "bias": torch.zeros(1)}
        save_safetensors(tensors, tmp_path / f"{name}.safetensors")
    ran = pm_node("survey", tmp_path, "--data", tmp_path / "rows.npz", "--normalise", "none",
                  "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    for model in ran.json["models"]:
        assert model["accuracy"] is None
        assert model["alpha"] == pytest.approx(0.5)
        assert model["gain"] > 0.99
    assert {warning["name"] for warning in ran.json["warnings"]} == {"few-rows"}
