"""`pm-node try` on adapters: folders of PEFT in, the best merge out as one, with its receipt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from node.params.adapters import Adapter
from node.params.encoding import save_safetensors, weights_root
from node.params.peft import CONFIG, TENSORS, read_adapter, write_adapter
from tests.cli.conftest import Command
from tests.params.learned_adapters import (
    PERCEPTRON,
    base_of,
    buyers,
    loss_of,
    sellers,
    strangers,
)

ADAPTER = (CONFIG, TENSORS)
BESIDE = {"card.md", "receipt.json", "curves.csv", "plot.svg"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("written")
    for seed, name in ((0, "base"), (9, "other")):
        save_safetensors(base_of(PERCEPTRON, seed).tensors, folder / f"{name}.safetensors")
    for adapter, name in ((buyers, "a"), (sellers, "b"), (strangers, "x")):
        write_adapter(adapter(PERCEPTRON), folder / name)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "models"))


def of_base(folder: Path, name: str = "base") -> tuple[str | Path, ...]:
    return ("--base", folder / f"{name}.safetensors", "--data", "digits")


def test_two_adapters_of_unequal_ranks_end_in_a_better_one(pm_node: Command, folder: Path) -> None:
    a, b, out = folder / "a", folder / "b", folder / "out"
    ran = pm_node("try", a, b, *of_base(folder), "--out", out, "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    base = base_of(PERCEPTRON)
    assert {path.name for path in out.iterdir()} == {*ADAPTER, *BESIDE}
    made = read_adapter(out, base)
    assert [each.rank for each in made.lora.modules] == [4 + 8, 4 + 8, 8]
    assert found["result"]["merged_root"] == weights_root(made.tensors).hex()
    assert found["models"][0]["root"] == weights_root(buyers(PERCEPTRON).tensors).hex()
    assert found["result"]["method"] == "identity+lerp"
    assert found["result"]["gain"] > 0.5
    alone = [loss_of(each(PERCEPTRON), base) for each in (buyers, sellers)]
    assert loss_of(made, base) < 0.6 * min(alone)
    assert "adapters of 2 layers of mlp 64-32-16-10" in (out / "card.md").read_text()

    # the receipt holds on these folders, and on no others
    receipt = out / "receipt.json"
    again = ("verify", receipt, "--data", "digits")
    of = ("--adapter-base", folder / "base.safetensors")
    assert pm_node(*again, "--base", a, "--sold", b, *of).code == 0
    assert pm_node(*again, "--base", a, "--sold", b, "--merged", out, *of).code == 0
    pm_node(*again, "--base", b, "--sold", b, *of).refused(1, "architecture")
    pm_node(*again, "--base", a, "--sold", a, *of).refused(1, "sold_root")
    other = ("--adapter-base", folder / "other.safetensors")
    pm_node(*again, "--base", a, "--sold", b, *other).refused(2, "wrong-base")
    pm_node(*again, "--base", a, "--sold", b).refused(2, "--adapter-base")

    # a seller whose α is said to be another has another product, and the merge another root
    config = json.loads((b / CONFIG).read_text())
    config["alpha_pattern"] = dict.fromkeys(config["alpha_pattern"], 1)
    louder = Adapter(sellers(PERCEPTRON).architecture, sellers(PERCEPTRON).tensors)
    save_safetensors(louder.tensors, b / TENSORS)
    (b / CONFIG).write_text(json.dumps(config))
    pm_node(*again, "--base", a, "--sold", b, *of).refused(1, "merged_root")


def test_what_cannot_be_tried_is_named_with_what_to_do(pm_node: Command, folder: Path) -> None:
    a, b, x, base = (folder / name for name in ("a", "b", "x", "base.safetensors"))
    pm_node("try", a, x, *of_base(folder)).refused(2, "wrong-base", str(x), "--base")
    pm_node("try", a, b, "--data", "digits").refused(2, "--base FILE")
    pm_node("try", a, base, *of_base(folder)).refused(2, str(base), "no folder of an adapter")
    pm_node("try", a, b, "--base", a, "--data", "digits").refused(2, "unreadable")
    pm_node("try", a, b, *of_base(folder), "--merge", "ties").refused(2, "lerp, outright")
    pm_node("try", a, b, *of_base(folder), "--align", "universe").refused(2, "identity")
    pm_node("try", a, b, *of_base(folder), "--out", a, "--force").refused(2, "write over")
    (b / TENSORS).rename(b / "adapter_model.bin")
    pm_node("try", a, b, *of_base(folder)).refused(2, str(b), "pickle is not opened")


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("bad-rank", {"r": 0, "rank_pattern": {}}),
        ("bad-rank", {"r": 2**40, "rank_pattern": {}}),
        ("bad-rank", {"rank_pattern": {"layers.0": [8]}}),
        ("bad-alpha", {"lora_alpha": "8", "alpha_pattern": {}}),
        ("wrong-base", {"target_modules": ["q_proj", "v_proj"]}),
        ("unsupported-adapter", {"target_modules": "all-linear"}),
        ("unsupported-adapter", {"target_modules": {"layers.0": 1}}),
        ("unsupported-adapter", {"use_dora": True}),
        ("unsupported-adapter", {"peft_type": ["LORA"]}),
    ],
)
def test_a_configuration_that_is_hostile_ends_in_one_line(
    pm_node: Command, folder: Path, said: str, changes: dict[str, object]
) -> None:
    path = folder / "b" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    pm_node("try", folder / "a", folder / "b", *of_base(folder)).refused(2, said, str(folder / "b"))
