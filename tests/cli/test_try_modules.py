"""`pm-node try` of somebody's own modules: named on the command line, imported from its folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from node.data.datasets import load_digits
from node.params.families import factories
from tests.cli.conftest import Command

ROOT = Path(__file__).resolve().parents[2]
BUILDS = '''
"""A module of one's own; importing it leaves a trace."""
from pathlib import Path
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        return self.head(torch.tanh(self.norm(self.conv(images))).mean((2, 3)))

def build(width=8):
    return Net(width)

class Sorting(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(64, 20), nn.Linear(20, 10)

    def forward(self, rows):
        return self.out(torch.sort(self.into(rows))[0])

def sorting():
    return Sorting()

def lazy():
    return nn.Sequential(nn.Flatten(), *(nn.ReLU() for _ in range(4)), nn.LazyLinear(10))

def breaks():
    raise OSError("no licence")
'''
SPY = "from pathlib import Path\nPath('spied').touch()\n\ndef build():\n    pass\n"
QUICK = ("--merge", "lerp", "--merge", "reset")


class Net(nn.Module):
    """The same, for training here."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(torch.tanh(self.norm(self.conv(images))).mean((2, 3)))
        return answer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained-modules")
    rows = load_digits(Path("/nowhere")).train
    inputs_RF, labels_R = (torch.from_numpy(t.copy()) for t in (rows.inputs_RF, rows.labels_R))
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        module = Net().train()
        own_R = (labels_R < 5) == (seed == 0)
        own_R |= torch.rand(len(own_R)) < 0.2
        steps = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(4):
            for batch_R in torch.split(own_R.nonzero()[:, 0], 64):
                steps.zero_grad()
                images = inputs_RF[batch_R].reshape(-1, 1, 8, 8)
                functional.cross_entropy(module(images), labels_R[batch_R]).backward()  # type: ignore[no-untyped-call]
                steps.step()
        save_file(module.state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, stood in: two files, and the code that they are of."""
    folder = Path(shutil.copytree(trained, tmp_path / "mine"))
    monkeypatch.setattr(factories, "_allowed", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(folder)
    name = f"net_of_{tmp_path.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(BUILDS)
    return folder


def module_in(folder: Path) -> str:
    return next(folder.glob("net_of_*.py")).stem


def named(folder: Path, function: str = "build") -> tuple[str, ...]:
    return ("--module", f"{module_in(folder)}:{function}", "--input", "1,8,8")


def tried(pm_node: Command, folder: Path, *more: Any) -> Any:
    return pm_node("try", "a.safetensors", "b.safetensors", "--data", "digits", *more)


def test_two_checkpoints_of_ones_own_module_are_merged_and_the_receipt_is_replayed(
    here: Path,
) -> None:
    """The whole command in a process of its own, as a shell runs it in that folder."""

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "node.cli.main", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=here, env=environment, capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip

    files, module = ("a.safetensors", "b.safetensors"), named(here)[:2]
    first = ran("try", *files, "--data", "digits", *named(here), *QUICK, "--out", "out", "--json")
    assert (first.returncode, first.stderr) == (0, "")
    found = json.loads(first.stdout)
    assert found["architecture"] == f"module {module[1]} 1x8x8"
    tried = {(method["align"], method["merge"]) for method in found["methods"]}
    # what joint matching finds is listed where it is another model than those before it
    assert {align for align, merge in tried if merge == "lerp"} >= {"identity", "weight-matching"}
    assert any(merge == "reset" for _, merge in tried)
    assert found["gains"]
    # what no recipe makes has a name as well
    hashes = {curve["align"]: curve["alignment_hash"] for curve in found["curves"]}
    assert len(bytes.fromhex(hashes["joint-matching"])) == 32
    # the merge has all of A's own names, the counters that no merge touches among them
    merged = load_file(here / "out" / "merged.safetensors")
    Net().load_state_dict(merged)
    own = load_file(here / "a.safetensors")
    assert torch.equal(merged["norm.num_batches_tracked"], own["norm.num_batches_tracked"])
    sides = ("--base", files[0], "--sold", files[1], "--merged", "out/merged.safetensors")
    again = ran("verify", "out/receipt.json", *sides, "--data", "digits", *module)
    assert again.returncode == 0, again.stderr
    assert "the trial holds" in again.stdout
    untold = ran("verify", "out/receipt.json", *sides, "--data", "digits")
    assert untold.returncode == 1
    assert "unknown-architecture" in untold.stderr
    assert "Traceback" not in untold.stderr


@pytest.mark.parametrize("align", ["weight-matching", "universe"])
def test_a_recipe_of_a_module_is_replayed_from_the_weights_alone(
    pm_node: Command, here: Path, align: str
) -> None:
    more = (*named(here), "--align", align, "--merge", "lerp", "--out", "out")
    assert tried(pm_node, here, *more).code == 0
    sides = ("--base", "a.safetensors", "--sold", "b.safetensors", "--data", "digits")
    ran = pm_node("verify", "out/receipt.json", *sides, *named(here)[:2])
    assert ran.code == 0, ran.err
    assert f"by {align}+lerp" in ran.out


def test_a_module_whose_graph_cannot_be_read_is_tried_as_it_is_numbered(
    pm_node: Command, here: Path
) -> None:
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        layers = {"into": nn.Linear(64, 20), "out": nn.Linear(20, 10)}
        save_file(nn.ModuleDict(layers).state_dict(), f"{name}.safetensors")
    module = ("--module", f"{module_in(here)}:sorting", "--input", "64")
    for align in (("--align", "identity"), ()):
        more = (*module, *align, "--merge", "lerp", "--merge", "unit-alpha", "--json")
        ran = tried(pm_node, here, *more, "--out", "out", "--force")
        assert (ran.code, ran.err) == (0, "")
        assert Path("out/merged.safetensors").exists()
        assert not any(method["usual"] for method in ran.json["methods"])
        assert ran.json["controls"]["scaled"] is not None


def test_an_architecture_file_says_what_module_and_input_say(pm_node: Command, here: Path) -> None:
    name = f"{module_in(here)}:build"
    document = {"name": "module", "config": {"factory": name, "input": [1, 8, 8]}}
    Path("net.json").write_text(json.dumps(document))
    other = tried(pm_node, here, "--architecture", "net.json", "--module", name + ' {"width": 9}')
    assert other.code == 2
    assert 'has the keywords {"width":9}, and those of what it is to build are {}' in other.err
    fast = ("--align", "identity", "--merge", "lerp", "--json")
    ran = tried(pm_node, here, "--architecture", "net.json", "--module", name, *fast)
    assert ran.code == 0, ran.err
    assert ran.json["architecture"] == f"module {name} 1x8x8"


def test_a_file_from_elsewhere_imports_nothing_that_was_not_named(
    pm_node: Command, here: Path
) -> None:
    Path("spy_of_a_peer.py").write_text(SPY)
    text = json.dumps(
        {"config": {"factory": "spy_of_a_peer:build", "input": [1, 8, 8]}, "name": "module"},
        separators=(",", ":"),
    )
    save_file(load_file("a.safetensors"), "a.safetensors", {"pm-node.architecture": text})
    ran = tried(pm_node, here)
    assert ran.code == 2
    assert "unknown-architecture: this node was not told of 'spy_of_a_peer:build'" in ran.err
    assert not Path("spied").exists()
    assert "spy_of_a_peer" not in sys.modules


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--module", "{m}:breaks", "--input", "1,8,8"), "cannot build: OSError: no licence"),
        (("--module", "{m}:nothing", "--input", "1,8,8"), "has no attribute 'nothing'"),
        (("--module", "gone_for_good:f", "--input", "1,8,8"), "ModuleNotFoundError"),
        (("--module", "{m}:build", "--input", "3,8,8"), "fails on rows of [3, 8, 8]"),
        (("--module", "{m}:build", "--input", "1,8,8.5"), "write sides such as 3,32,32"),
        (("--module", '{m}:build {{"width": 9}}', "--input", "1,8,8"), "is [8], not [9]"),
        (("--module", '{m}:build {{"depth": 9}}', "--input", "1,8,8"), "cannot build: TypeError"),
        (("--module", "{m}:build", "--input", "1,28,28"), "rows have 64 features, the model"),
        (("--module", "{m}:build"), "say with --input what shape a row has"),
        (("--module", "{m}:lazy", "--input", "1,8,8"), "5.weight of {m}:lazy has no shape"),
        (("--input", "1,8,8"), "--input is of one --module"),
        (("--module", "{m}:build", "--tokens", "9"), "name that too"),
        (("--module", "{m}:build", "--input", "8", "--architecture", "mlp:4-2"), "leave one out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_used_is_one_line_that_says_why(
    pm_node: Command, here: Path, more: tuple[str, ...], told: str
) -> None:
    ran = tried(pm_node, here, *(word.format(m=module_in(here)) for word in more))
    assert ran.code == 2
    assert told.replace("{m}", module_in(here)) in ran.err
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err


def test_a_file_of_other_names_says_which_it_lacks(pm_node: Command, here: Path) -> None:
    renamed = {f"old_{name}": tensor for name, tensor in load_file("b.safetensors").items()}
    save_file(renamed, "b.safetensors")
    ran = tried(pm_node, here, *named(here))
    assert ran.code == 2
    assert "it lacks conv.bias" in ran.err


def test_a_node_that_is_told_of_a_function_that_is_not_there_does_not_start(
    pm_node: Command, here: Path
) -> None:
    role = ("--role", "agent", "--dataset", "digits", "--data-dir", "node")
    for said, told in (
        ("gone_for_good:f 1,8,8", "'gone_for_good:f' cannot be loaded"),
        (f"{module_in(here)}:build", "and the shape of a row, such as mine.models:build 3,32,32"),
        # the function is there, and it is looked at before any peer is heard
        (f"{module_in(here)}:build 3,8,8", "fails on rows of [3, 8, 8]"),
    ):
        pm_node(*role, "--modules", said).refused(2, told)
