"""An adapter's folder is a stranger's: what PEFT writes is read, all else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from node.params.adapters import Base
from node.params.architecture import Architecture, random_init
from node.params.encoding import weights_root
from node.params.errors import ProfileError
from node.params.families.lora import MAX_RANK
from node.params.peft import CONFIG, TENSORS, read_adapter, write_adapter
from tests.params.test_adapters import BASE, OTHER, OWN, adapter_of

PLAIN: dict[str, Any] = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "somebody/base",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "rank_pattern": {"layers.1": 2},
    "target_modules": ["layers.0", "1"],
    "task_type": None,
    "use_dora": False,
    "use_rslora": False,
}
PEFT = adapter_of({"layers.0": [4, 8], "layers.1": [2, 8]}, 8)


def folder_of(path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    (path / CONFIG).write_text(json.dumps({**PLAIN, **changes}))
    owned = {name: tensor.contiguous() for name, tensor in (tensors or PEFT.tensors).items()}
    safetensors.torch.save_file(owned, path / TENSORS, {"format": "pt"})
    return path


def test_a_folder_of_peft_is_read_with_its_patterns(tmp_path: Path) -> None:
    read = read_adapter(folder_of(tmp_path), BASE)
    assert read.architecture == PEFT.architecture
    assert weights_root(read.tensors) == weights_root(PEFT.tensors)
    read = read_adapter(folder_of(tmp_path, alpha_pattern={"0": 16.0}), BASE)
    assert [each.alpha for each in read.lora.modules] == [16, 8]


def test_what_is_written_is_read_and_only_for_its_own_base(tmp_path: Path) -> None:
    write_adapter(OWN, tmp_path / "out")
    read = read_adapter(tmp_path / "out", BASE)
    assert read.architecture == OWN.architecture
    assert weights_root(read.tensors) == weights_root(OWN.tensors)
    with pytest.raises(ProfileError) as refused:
        read_adapter(tmp_path / "out", OTHER)
    assert refused.value.reason == "wrong-base"


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("wrong-base", {"target_modules": ["q_proj"]}),
        ("wrong-rank", {"r": 5}),
        ("wrong-rank", {"rank_pattern": {}}),
        ("bad-rank", {"r": 0}),
        ("bad-rank", {"r": "4"}),
        ("bad-rank", {"r": True}),
        ("bad-rank", {"r": MAX_RANK + 1}),
        ("bad-rank", {"rank_pattern": {"layers.1": None}}),
        ("bad-alpha", {"lora_alpha": 0.5}),
        ("bad-alpha", {"lora_alpha": -8}),
        ("bad-alpha", {"lora_alpha": 1e300}),
        ("missing-tensor", {"target_modules": ["layers.0", "layers.1", "layers.2"]}),
        ("unexpected-tensor", {"exclude_modules": ["layers.1"]}),
        ("unsupported-adapter", {"peft_type": "IA3"}),
        ("unsupported-adapter", {"use_dora": True}),
        ("unsupported-adapter", {"use_rslora": True}),
        ("unsupported-adapter", {"fan_in_fan_out": True}),
        ("unsupported-adapter", {"bias": "all"}),
        ("unsupported-adapter", {"modules_to_save": ["head"]}),
        ("unsupported-adapter", {"init_lora_weights": "pissa"}),
        ("unsupported-adapter", {"layer_replication": [[0, 4]]}),
        ("unsupported-adapter", {"of_tomorrow": 1}),
        ("unsupported-adapter", {"target_modules": "(a+)+$"}),
        ("unsupported-adapter", {"target_modules": ["(a+)+$"]}),
        ("unsupported-adapter", {"target_modules": []}),
        ("unsupported-adapter", {"target_modules": [["layers.0"]]}),
        ("unsupported-adapter", {"rank_pattern": {"(a+)+$": 2}}),
        ("unsupported-adapter", {"rank_pattern": [2]}),
    ],
)
def test_a_configuration_of_anything_else_is_refused_by_name(
    tmp_path: Path, reason: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ProfileError) as refused:
        read_adapter(folder_of(tmp_path, **changes), BASE)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe{}",
        b'{"r": NaN, "peft_type": "LORA"}',
        b'{"r": 1, "r": 2}',
        b'{"a": {"r": 1, "r": 2}}',
        b"[" * 100_000,
        b" " * (1 << 20) + b"{}",
    ],
)
def test_a_configuration_that_is_no_bounded_object_is_refused(tmp_path: Path, text: bytes) -> None:
    (folder_of(tmp_path) / CONFIG).write_bytes(text)
    with pytest.raises(ProfileError) as refused:
        read_adapter(tmp_path, BASE)
    assert refused.value.reason == "malformed-config"


A = "base_model.model.layers.0.lora_A.weight"


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("wrong-dtype", lambda tensors: {**tensors, A: tensors[A].half()}),
        ("wrong-shape", lambda tensors: {**tensors, A: tensors[A][:, :5]}),
        ("wrong-shape", lambda tensors: {**tensors, A: tensors[A].flatten()}),
        ("wrong-rank", lambda tensors: {**tensors, A: tensors[A][:3]}),
        ("missing-tensor", lambda tensors: {n: t for n, t in tensors.items() if n != A}),
        ("unexpected-tensor", lambda tensors: {**tensors, "x": torch.zeros(1)}),
        ("not-finite", lambda tensors: {**tensors, A: tensors[A] * float("nan")}),
    ],
)
def test_tensors_of_anything_else_are_refused_by_name(
    tmp_path: Path,
    reason: str,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    with pytest.raises(ProfileError) as refused:
        read_adapter(folder_of(tmp_path, change(dict(PEFT.tensors))), BASE)
    assert refused.value.reason == reason


def test_pickles_and_pipes_are_not_opened(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / TENSORS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ProfileError, match="unreadable"):
        read_adapter(tmp_path, BASE)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(ProfileError, match="unreadable"):
        read_adapter(tmp_path, BASE)
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(ProfileError, match="not-a-regular-file"):
        read_adapter(tmp_path, BASE)


def test_a_base_without_the_shapes_of_the_adapter_is_refused(tmp_path: Path) -> None:
    narrow = Architecture("mlp", {"widths": [11, 10, 9, 4]})
    with pytest.raises(ProfileError) as refused:
        read_adapter(folder_of(tmp_path), Base.of(narrow, random_init(narrow, 0)))
    assert refused.value.reason == "wrong-shape"
    image = {"classes": 3, "depth": 10, "image": [1, 8, 8], "widen": 1}
    network = Architecture("resnet", image)
    with pytest.raises(ProfileError) as refused:
        read_adapter(
            folder_of(tmp_path, target_modules=["stem"]),
            Base.of(network, random_init(network, 0)),
        )
    assert refused.value.reason == "unsupported-adapter"
