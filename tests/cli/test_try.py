"""`pm-node try`: a trainer with checkpoints and rows, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from broker_node.trying.reading import METADATA_KEY, read_checkpoint
from broker_node.trying.scoring import score
from node.cli import try_files
from node.data.datasets import load_digits
from node.params.architecture import Architecture, permutation_spec
from node.params.encoding import load_safetensors, save_safetensors
from node.params.permutation import permute
from node.params.recipe import Recipe
from node.training.registry import build_trainer
from node.training.trainer import Task
from tests.cli.conftest import Command

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"merged.safetensors", "card.md", "receipt.json", "curves.csv", "plot.svg"}
FAST = ("--merge", "lerp", "--merge", "outright")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of digits, each short of other classes, under names of their own."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    for agent, name in enumerate("abc"):
        task = Task(dataset="digits", data_folder=Path("/nowhere"), agent=agent, agents=3, seed=5)
        trainer = build_trainer("mlp", task)
        tensors = trainer.initial()
        for epoch in range(12):
            tensors = trainer.train_epoch(tensors, epoch).parameters
        named = {key.replace("layers.", "net.fc"): tensor for key, tensor in tensors.items()}
        save_safetensors(named, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A folder of one's own with the three files."""
    return Path(shutil.copytree(trained, tmp_path / "models"))


def files(folder: Path, names: str = "ab") -> list[Path]:
    return [folder / f"{name}.safetensors" for name in names]


def test_two_checkpoints_and_a_data_set_end_in_a_better_model(
    pm_node: Command, models: Path
) -> None:
    out = models / "out"
    ran = pm_node("try", *files(models), "--data", "digits", "--out", out, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert found["gains"]
    assert found["result"]["loss_after"] < found["result"]["loss_before"]
    assert found["rows"]["choice"] == found["rows"]["score"] == 300
    assert {method["align"] for method in found["methods"]} >= {"identity", "weight-matching"}
    assert found["controls"]["ensemble"]["accuracy"] > found["controls"]["own"]["accuracy"]
    assert {path.name for path in out.iterdir()} == NAMES
    assert set(found["files"].values()) == {str(out / name) for name in NAMES}
    # what was written scores what was said, under the names that A's own code loads
    merged = load_safetensors(out / "merged.safetensors")
    assert set(merged) == set(load_safetensors(models / "a.safetensors"))
    with safe_open(out / "merged.safetensors", "pt") as held:
        assert "mlp" in held.metadata()[METADATA_KEY]
    read = read_checkpoint(out / "merged.safetensors")
    assert read.model.weights_root.hex() == found["result"]["merged_root"]
    rows = load_digits(Path("/nowhere")).test
    every = score(
        read.model.architecture,
        read.model.tensors,
        try_rows(torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.labels_R.copy())),
    )
    choice = found["methods"][found["best"]]["choice_loss"]
    assert every.loss == pytest.approx((choice + found["result"]["loss_after"]) / 2, rel=1e-6)


def try_rows(inputs_RF: torch.Tensor, targets_R: torch.Tensor) -> Any:
    from broker_node.trying.methods import Rows

    return Rows(inputs_RF, targets_R)


def test_the_table_names_models_methods_bounds_and_what_was_taken_for_granted(
    pm_node: Command, models: Path
) -> None:
    ran = pm_node("try", *files(models), "--data", "digits", *FAST)
    assert (ran.code, ran.err) == (0, "")
    said = " ".join(ran.out.split())
    for fragment in (
        *("mlp 64-32-16-10", "a.safetensors", "ensemble", "weight-matching", "at least", "★"),
        *("gain %", "≥ %"),
        *("! inferred: ReLU", "Best: B into A by", "nothing is written", "300 rows that choose"),
    ):
        assert fragment in said
    assert not [path for path in models.iterdir() if path.suffix != ".safetensors"]


def test_three_checkpoints_are_tried_alone_and_together(pm_node: Command, models: Path) -> None:
    out = models / "out"
    ran = pm_node("try", *files(models, "abc"), "--data", "digits", *FAST, "--json", "--out", out)
    assert ran.code == 0, ran.err
    tried = {frozenset(method["sellers"]) for method in ran.json["methods"]}
    assert tried >= {frozenset("B"), frozenset("C"), frozenset("BC")}
    assert [model["name"] for model in ran.json["models"]] == ["A", "B", "C"]
    assert {curve["seller"] for curve in ran.json["curves"]} == {"B", "C"}
    assert "c.safetensors" in (out / "plot.svg").read_text()


def test_curves_and_card_say_what_the_document_says(pm_node: Command, models: Path) -> None:
    out = models / "out"
    found = pm_node("try", *files(models), "--data", "digits", *FAST, "--json", "--out", out).json
    lines = (out / "curves.csv").read_text().splitlines()
    assert lines[0] == "seller,alignment,alpha,choice_loss,loss,accuracy,chosen"
    points = [point for curve in found["curves"] for point in curve["points"]]
    assert len(lines) == 1 + len(points)
    assert sum(line.endswith(",1") for line in lines[1:]) == len(found["curves"])
    card = (out / "card.md").read_text()
    for fragment in (
        *(model["root"] for model in found["models"]),
        found["result"]["merged_root"],
        found["rows"]["root"],
        f"{100 * found['result']['gain']:.2f} %",
        f"{100 * found['result']['accuracy_after']:.2f} %",
        "inferred",
    ):
        assert fragment in card


def test_an_alignment_is_named_so_that_others_can_tell_whether_they_found_the_same(
    pm_node: Command, models: Path
) -> None:
    out = models / "out"
    words = ("try", *files(models), "--data", "digits", "--merge", "lerp", "--json", "--force")
    by = ("--align", "weight-matching", "--align", "least-squares", "--align", "identity")
    found = pm_node(*words, *by).json
    hashes = {curve["align"]: curve["alignment_hash"] for curve in found["curves"]}
    assert hashes.pop("least-squares") is None  # it renumbers, and does more
    assert len(set(hashes.values())) == 2
    alone = pm_node(*words, *by[:2], "--out", out).json
    assert [curve["alignment_hash"] for curve in alone["curves"]] == [hashes["weight-matching"]]
    row = f"| hash of the alignment | `{hashes['weight-matching']}` |"
    assert row in (out / "card.md").read_text()
    (step,) = json.loads((out / "receipt.json").read_text())["recipes"]
    recipe = Recipe.decode(bytes.fromhex(step["recipe"].removeprefix("0x")))
    assert recipe.alignment_hash.hex() == hashes["weight-matching"]
    pm_node(*words, *by[2:4], "--out", out)
    assert "hash of the alignment" not in (out / "card.md").read_text()


def test_a_hostile_file_name_does_nothing_in_card_plot_and_table(
    pm_node: Command, models: Path
) -> None:
    strange = models / "[red]|<script>\x1b[31m`$x$.safetensors"
    shutil.copy(models / "b.safetensors", strange)
    out = models / "out"
    ran = pm_node("try", models / "a.safetensors", strange, "--data", "digits", *FAST, "--out", out)
    assert ran.code == 0, ran.err
    assert "\x1b[31m" not in ran.out
    assert "[red]|<script>" in ran.out.replace("\n", "")
    assert "<script>" not in (out / "card.md").read_text()
    assert "<script>" not in (out / "plot.svg").read_text()
    rows = [line for line in (out / "card.md").read_text().splitlines() if line.startswith("| B")]
    assert rows[0].replace("\\|", "").count("|") == 6


def test_a_copy_is_said_to_be_one_and_gains_nothing(pm_node: Command, models: Path) -> None:
    read = read_checkpoint(models / "a.safetensors")
    spec = permutation_spec(read.model.architecture)
    orders = {name: list(range(group.size))[::-1] for name, group in spec.groups.items()}
    copied = permute(spec, read.model.tensors, orders)
    save_safetensors(read.named(copied), models / "copy.safetensors")
    shutil.copy(models / "a.safetensors", models / "same.safetensors")
    sellers = [models / "copy.safetensors", models / "same.safetensors"]
    out = models / "out"
    ran = pm_node(
        "try", models / "a.safetensors", *sellers, "--data", "digits", "--json", "--out", out
    )
    assert ran.code == 0, ran.err
    found = ran.json
    assert (found["gains"], found["methods"]) == (False, [])
    assert found["result"]["gain"] == found["result"]["bound"] == 0
    said = [warning["text"] for warning in found["warnings"] if warning["name"] == "replica"]
    assert "B is A, renumbered" in said[0]
    assert "C is A, the same weights" in said[1]
    root = read_checkpoint(out / "merged.safetensors").model.weights_root
    assert root == read.model.weights_root
    assert "No merge" in (out / "card.md").read_text()
    ran = pm_node("verify", out / "receipt.json", "--base", models / "a.safetensors",
                  "--sold", sellers[0], "--data", "digits")  # fmt: skip
    assert ran.code == 0, ran.err


def test_nothing_is_written_over_unless_that_is_said(pm_node: Command, models: Path) -> None:
    out = models / "out"
    words = ("try", *files(models), "--data", "digits", *FAST, "--align", "identity", "--out", out)
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    assert pm_node(*words).code == 0
    before = (out / "receipt.json").read_bytes()
    (out / "receipt.json").write_text("old")
    pm_node(*words).refused(2, "merged.safetensors exists", "--force")
    assert (out / "receipt.json").read_text() == "old"
    assert pm_node(*words, "--force").code == 0
    assert (out / "receipt.json").read_bytes() == before
    assert {path.name for path in out.iterdir()} == NAMES | {"mine.txt"}
    again = ("try", out / "merged.safetensors", models / "c.safetensors", "--data", "digits")
    pm_node(*again, "--out", out, "--force").refused(2, "would write over the model")
    pm_node(*words[:-1], out / "mine.txt").refused(2, "is a file: name a folder")
    pm_node(*words[:-1], out / "no" / "such").refused(2, "there is no folder")


def test_an_interrupted_command_leaves_no_half_of_a_folder(
    pm_node: Command, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(try_files, "plot", interrupted)
    before = sorted(path.name for path in models.iterdir())
    ran = pm_node("try", *files(models), "--data", "digits", *FAST, "--out", models / "out")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")
    assert sorted(path.name for path in models.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["a"], ("two models at least",)),
        (["a", "b"], ("--data",)),
        (["a", "b", "--data", "nowhere.csv"], ("nowhere.csv", "digits")),
        (["a", "absent", "--data", "digits"], ("absent.safetensors", "unreadable")),
        (["a", "wide", "--data", "digits"], ("64-8-10", "64-32-16-10", "one architecture")),
        (["a", "nan", "--data", "digits"], ("nan.safetensors", "not-finite", "net.fc0.bias")),
        (["a", "conv", "--data", "digits"], ("conv.safetensors", "convolution", "--architecture")),
        (["a", "b", "--data", "digits", "--architecture", "vit:3-2"], ("vit:3-2", "mlp, linear")),
        (["a", "b", "--data", "digits", "--architecture", "mlp:64-10"], ("is no mlp 64-10",)),
        (["a", "b", "--data", "digits", "--align", "magic"], ("magic", "weight-matching")),
        (["a", "b", "--data", "digits", "--merge", "magic"], ("magic", "lerp")),
        (["a", "b", "--data", "narrow.csv"], ("3 features", "64")),
        (["a", "b", "--data", "one.csv"], ("one-class",)),
        (["a", "b", "--data", "few.csv"], ("at least 8",)),
        (["a", "b", "--data", "labels.csv"], ("label of row 1 is 12", "0 … 9")),
        (["a", "b", "--data", "digits", "--normalise", "mnist"], ("leave out --normalise",)),
        (["a", "b", "--data", "digits", "--metric", "nope"], ("MODULE:FUNCTION",)),
        (["a", "b", "--data", "digits", "--metric", "no_such_module:f"], ("no_such_module",)),
        (["a", "b", "--data", "digits", "--metric", "mine:absent"], ("mine:absent",)),
        (["a", "b", "--data", "digits", "--metric", "mine:fails"], ("ZeroDivisionError",)),
        (["a", "b", "--data", "digits", "--metric", "mine:text"], ("one number",)),
        (["a", "b", "--data", "digits", "--sign"], ("--out",)),
        (["a", "b", "--data", "digits", "--seed", "-1"], ("--seed",)),
        (["a", "b", "--data", "digits", "--tuned-from", "nan.safetensors"], ("not-finite",)),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    pm_node: Command,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    fragments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(models)
    spoil(models)
    count = next((at for at, word in enumerate(words) if word.startswith("--")), len(words))
    named = [f"{word}.safetensors" for word in words[:count]]
    pm_node("try", *named, *words[count:]).refused(2, *fragments)


def spoil(folder: Path) -> None:
    """Put files of every fault beside the good ones."""
    tensors = load_safetensors(folder / "a.safetensors")
    wide = {
        "net.fc0.weight": torch.zeros(8, 64),
        "net.fc0.bias": torch.zeros(8),
        "net.fc1.weight": torch.zeros(10, 8),
        "net.fc1.bias": torch.zeros(10),
    }
    save_safetensors(wide, folder / "wide.safetensors")
    conv = {"conv.weight": torch.zeros(4, 1, 3, 3), "conv.bias": torch.zeros(4)}
    save_safetensors(conv, folder / "conv.safetensors")
    data = bytearray((folder / "a.safetensors").read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    at = 8 + length + header["net.fc0.bias"]["data_offsets"][0]
    data[at : at + 4] = np.float32("nan").tobytes()
    (folder / "nan.safetensors").write_bytes(data)
    assert tensors.keys() == load_safetensors(folder / "b.safetensors").keys()
    row = ",".join(["0.5"] * 64)
    (folder / "narrow.csv").write_text("1,2,3,0\n" * 20)
    (folder / "one.csv").write_text(f"{row},3\n" * 20)
    (folder / "few.csv").write_text(f"{row},3\n{row},4\n")
    (folder / "labels.csv").write_text(f"{row},12\n" * 20)
    (folder / "mine.py").write_text(
        "def fails(model, batch):\n    return 1 / 0\n\n"
        "def text(model, batch):\n    return 'good'\n\n"
        "def right(model, batch):\n"
        "    inputs, targets = batch\n"
        "    return (model(inputs).argmax(1) == targets).double().mean()\n"
    )


def test_a_metric_of_the_users_own_stands_beside_the_loss(
    pm_node: Command, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    spoil(models)
    words = ("try", *files(models), "--data", "digits", *FAST, "--metric", "mine:right")
    found = pm_node(*words, "--json").json
    for method in found["methods"]:
        assert method["metric"] == method["accuracy"]
    assert found["controls"]["ensemble"]["metric"] == found["controls"]["ensemble"]["accuracy"]
    assert "mine:right" in pm_node(*words).out


def test_half_precision_and_rows_that_look_wrong_are_said(pm_node: Command, models: Path) -> None:
    tensors = load_safetensors(models / "b.safetensors")
    half = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_safetensors(half, models / "half.safetensors")
    rows = load_digits(Path("/nowhere")).test
    generator = np.random.Generator(np.random.Philox(1))
    np.savez(models / "r.npz", x=generator.normal(size=(100, 64)), y=rows.labels_R[:100])
    ran = pm_node("try", models / "a.safetensors", models / "half.safetensors", "--data",
                  models / "r.npz", *FAST, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    said = {warning["name"]: warning["text"] for warning in ran.json["warnings"]}
    assert "half.safetensors was converted from BF16 to F32" in said["converted"]
    assert "--normalise" in said["chance"]
    assert "100 rows" in said["few-rows"]


def test_another_seed_draws_other_halves_and_the_same_one_the_same(
    pm_node: Command, models: Path
) -> None:
    words = ("try", *files(models), "--data", "digits", *FAST, "--align", "identity", "--json")
    first, again, other = (pm_node(*words, "--seed", str(seed)).json for seed in (0, 0, 1))
    assert first == again
    assert first["result"]["loss_before"] != other["result"]["loss_before"]
    assert pm_node("--seed", "1", *words).json == other


def test_help_alone_is_enough_and_needs_nothing_heavy(pm_node: Command) -> None:
    ran = pm_node("try", "--help")
    assert ran.code == 0
    for fragment in (
        *("safetensors", "--data", "--out", "--force", "--architecture", "--label", "--normalise"),
        *("--metric", "runs that code of yours", "--seed", "--json", "pm-node verify", "Exit code"),
        *("IDX", ".npz", "CSV", "digits", "pm-node try a.safetensors b.safetensors"),
    ):
        assert fragment in " ".join(ran.out.split())
    given = re.findall(r'{"name": "(?:[^{}]|{[^{}]*})*}', ran.out)
    built = [Architecture(each["name"], each["config"]) for each in map(json.loads, given)]
    assert [each.name for each in built] == ["resnet", "gpt"]
    assert "★" in ran.out
    assert "○" in ran.out
    code = (
        "import sys, node.cli.main as main\n"
        "assert main.run(['try', '--help']) == 0\n"
        "print(sorted({'torch', 'numpy', 'web3', 'trio', 'matplotlib'} & sys.modules.keys()))"
    )
    ran_alone = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran_alone.stdout.splitlines()[-1] == "[]"


def test_a_trial_needs_neither_network_nor_chain(models: Path) -> None:
    code = (
        "import sys, socket\n"
        "def refused(*_, **__):\n    raise AssertionError('a socket')\n"
        "socket.socket.connect = refused\n"
        "import node.cli.main as main\n"
        f"assert main.run(['try', *{[str(path) for path in files(models)]!r}, '--data', 'digits',"
        f" '--merge', 'lerp', '--align', 'identity', '--out', {str(models / 'out')!r}]) == 0\n"
        "print(sorted({'web3', 'libp2p', 'trio', 'eth_tester'} & sys.modules.keys()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout.splitlines()[-1] == "[]"
