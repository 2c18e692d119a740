"""What `pm-node survey` refuses, in one line, and what its help says beforehand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from broker_node.trying.reading import METADATA_KEY
from node.params.architecture import Architecture, random_init
from node.params.encoding import save_safetensors
from tests.cli.conftest import Command

ROOT = Path(__file__).resolve().parents[2]
NET = Architecture("mlp", {"widths": [64, 32, 16, 10]})


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two models, under names of their author's own."""
    folder = tmp_path / "models"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        tensors = random_init(NET, seed)
        named = {key.replace("layers.", "net.fc"): tensor for key, tensor in tensors.items()}
        save_safetensors(named, folder / f"{name}.safetensors")
    return folder


def spoil(folder: Path) -> None:
    """Put files of every fault beside the good ones."""
    wide = random_init(Architecture("mlp", {"widths": [64, 8, 10]}), 1)
    save_safetensors(wide, folder / "wide.safetensors")
    gpt = Architecture(
        "gpt",
        {"context": 8, "depth": 1, "heads": 2, "hidden": 8, "norm": "rms", "tied": False,
         "vocabulary": 16, "width": 8},
    )  # fmt: skip
    for seed, name in enumerate(("gpt", "gpt2")):
        path = folder / f"{name}.safetensors"
        save_safetensors(random_init(gpt, seed), path, {METADATA_KEY: gpt.text})
    for name in ("adapter", "empty"):
        (folder / name).mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    shutil.copy(folder / "a.safetensors", folder / "adapter_model.safetensors")
    data = bytearray((folder / "a.safetensors").read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    at = 8 + length + header["net.fc0.bias"]["data_offsets"][0]
    data[at : at + 4] = np.float32("nan").tobytes()
    (folder / "nan.safetensors").write_bytes(data)
    row = ",".join(["0.5"] * 64)
    (folder / "narrow.csv").write_text("1,2,3,0\n" * 20)
    (folder / "one.csv").write_text(f"{row},3\n" * 20)
    (folder / "few.csv").write_text(f"{row},3\n{row},4\n")


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ([], ("two safetensors files at least",)),
        (["a.safetensors", "--data", "digits"], ("a.safetensors is one model", "two files")),
        (["a.safetensors", "b.safetensors"], ("--data",)),
        (["a.safetensors", "absent.safetensors", "--data", "digits"], ("absent", "unreadable")),
        (["empty", "--data", "digits"], ("empty holds no *.safetensors",)),
        (
            ["a.safetensors", "wide.safetensors", "--data", "digits"],
            ("wide.safetensors is mlp 64-8-10", "a.safetensors is mlp 64-32-16-10", "pm-node try"),
        ),
        (["a.safetensors", "nan.safetensors", "--data", "digits"], ("nan.safe", "not-finite")),
        (["a.safetensors", "adapter", "--data", "digits"], ("adapter is an adapter's", "--base")),
        (["adapter_model.safetensors", "a.safetensors", "--data", "digits"], ("--base FILE",)),
        (
            ["gpt.safetensors", "gpt2.safetensors", "--data", "digits"],
            ("gpt.safetensors is", "language model", "pair by pair"),
        ),
        (["a.safetensors", "b.safetensors", "--data", "narrow.csv"], ("3 features", "64")),
        (["a.safetensors", "b.safetensors", "--data", "one.csv"], ("one-class",)),
        (["a.safetensors", "b.safetensors", "--data", "few.csv"], ("at least 8",)),
        (["a.safetensors", "b.safetensors", "--data", "nowhere.csv"], ("nowhere.csv", "digits")),
        (["a.safetensors", "b.safetensors", "--data", "digits", "--sort", "size"], ("--sort",)),
        (
            ["a.safetensors", "b.safetensors", "--data", "digits", "--architecture", "mlp:64-10"],
            ("a.safetensors", "is no mlp 64-10"),
        ),
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
    pm_node("survey", *words).refused(2, *fragments)


def test_more_models_than_memory_holds_are_refused_before_they_are_read(
    pm_node: Command, tmp_path: Path
) -> None:
    for name in "ab":
        with (tmp_path / f"{name}.safetensors").open("wb") as file:
            file.truncate(1 << 40)  # of holes, that take no room
    pm_node("survey", tmp_path, "--data", "digits").refused(2, "GiB of memory", "survey fewer")


def test_help_alone_is_enough_and_needs_nothing_heavy(pm_node: Command) -> None:
    ran = pm_node("survey", "--help")
    assert ran.code == 0
    for fragment in (
        *("safetensors", "--data", "--out", "--force", "--architecture", "--seed", "--json"),
        *("rows that chose nothing", "pm-node try A B", "pm-node survey models/", "Exit code"),
    ):
        assert fragment in " ".join(ran.out.split())
    assert "\n  survey " in pm_node("--help").out
    code = (
        "import sys, node.cli.main as main\n"
        "assert main.run(['survey', '--help']) == 0\n"
        "print(sorted({'torch', 'numpy', 'web3', 'trio', 'matplotlib'} & sys.modules.keys()))"
    )
    ran_alone = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran_alone.stdout.splitlines()[-1] == "[]"
