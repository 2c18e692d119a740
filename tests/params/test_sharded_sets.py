"""A parameter set that does not fit into memory has the root, and the merge, of one that does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.params import sharded
from node.params.architecture import Architecture, part_of, permutation_spec, random_init
from node.params.disk import Draft
from node.params.encoding import load_safetensors, weights_root
from node.params.errors import ProfileError
from node.params.permutation import Axis, Group, PermutationSpec, Rescaling, Role, restrict
from node.params.recipe import Recipe, apply_recipe, pack_scales
from node.params.sharded import ShardedSet, merge_shards, open_set, root_of
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import Millionths

MLP = Architecture("mlp", {"widths": [7, 6, 5, 3]})
SPEC = permutation_spec(MLP)
Sets = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "PIECE_BYTES", 60)


def written(folder: Path, tensors: Sets, shards: int = 1) -> Path:
    """Write a set by another hand than ours, and return what to open it by."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        path = folder / "model.safetensors"
        safetensors.torch.save_file(tensors, path)
        return path
    mapped: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        held = {key: tensors[key] for key in sorted(tensors)[number::shards]}
        safetensors.torch.save_file(held, folder / name)
        mapped |= dict.fromkeys(held, name)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": mapped}))
    return path


def read(folder: Path) -> Sets:
    tensors: Sets = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_safetensors(path)
    return tensors


def a_recipe(seed: int, alpha: int, *, widths: tuple[int, ...] = (6, 5)) -> Recipe:
    generator = torch.Generator().manual_seed(seed)
    return Recipe(
        permutations={
            f"hidden.{i}": tuple(torch.randperm(width, generator=generator).tolist())
            for i, width in enumerate(widths)
        },
        scales={
            f"hidden.{i}": pack_scales(0.5 + torch.rand(width, generator=generator))
            for i, width in enumerate(widths)
        },
        alpha=Millionths(alpha),
    )


def merged(base: Path, sold: Path, recipe: Recipe, folder: Path, **more: Any) -> bytes:
    folder.mkdir(exist_ok=True)
    with open_set(base) as ours, open_set(sold) as theirs:
        return merge_shards(ours, theirs, more.pop("spec", SPEC), recipe, folder, **more)


@given(seed=st.integers(0, 99), shards=st.integers(1, 4), alpha=st.sampled_from([0, 1, 10**6]))
@settings(deadline=None, max_examples=25)
def test_files_and_pieces_leave_no_trace_in_a_root_or_a_merge(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shards: int, alpha: int
) -> None:
    folder = tmp_path_factory.mktemp("sets")
    alpha = alpha if alpha != 1 else 137_911 * (1 + seed % 7)
    ours, theirs = random_init(MLP, seed), random_init(MLP, seed + 1)
    base = written(folder / "base", ours, shards)
    sold = written(folder / "sold", theirs, 5 - shards)
    with open_set(base) as opened:
        assert root_of(opened) == weights_root(ours)
    recipe = a_recipe(seed, alpha)
    root = merged(base, sold, recipe, folder / "merged")
    expected = apply_recipe(MLP, ours, theirs, recipe)
    assert root == weights_root(expected)
    found = read(folder / "merged")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    names = sorted(path.name for path in (folder / "merged").iterdir())
    assert names == sorted(path.name for path in (folder / "base").iterdir())
    with open_set(folder / "merged") as again:
        assert root_of(again) == root


def test_a_subset_of_the_layers_changes_them_alone(tmp_path: Path) -> None:
    ours, theirs = random_init(MLP, 0), random_init(MLP, 1)
    part = {name: theirs[name] for name in ("layers.0.weight", "layers.0.bias")}
    whole = a_recipe(3, 400_000)
    recipe = Recipe(
        permutations={"hidden.0": whole.permutations["hidden.0"]}, scales={}, alpha=whole.alpha
    )
    root = merged(written(tmp_path / "a", ours), written(tmp_path / "b", part), recipe, tmp_path)
    assert root == weights_root(apply_recipe(MLP, ours, part, recipe))


GPT = {"context": 6, "depth": 2, "heads": 3, "hidden": 20, "tied": False, "vocabulary": 11}
DEEP = [
    Architecture("gpt", {**GPT, "norm": "rms", "width": 12}),
    Architecture("gpt", {**GPT, "norm": "layer", "width": 12, "tied": True}),
    Architecture("resnet", {"classes": 3, "depth": 10, "image": [1, 4, 4], "widen": 1}),
]


@pytest.mark.parametrize("architecture", DEEP, ids=["rms", "layer, tied", "resnet"])
@pytest.mark.parametrize("layers", [(), (0,), (1,)])
def test_scales_of_gains_and_of_heads_are_merged_as_in_memory(
    architecture: Architecture,
    layers: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharded, "PIECE_BYTES", 2_000)
    ours, theirs = random_init(architecture, 1), random_init(architecture, 2)
    sold = part_of(architecture, theirs, layers)
    whole = permutation_spec(architecture)
    spec = restrict(whole, sold)
    generator = torch.Generator().manual_seed(3)
    recipe = Recipe(
        permutations={
            name: tuple(torch.randperm(group.size, generator=generator).tolist())
            for name, group in spec.groups.items()
        },
        scales={
            name: pack_scales(
                torch.exp(torch.randn(spec.groups[own.group].size, generator=generator))
            )
            for name, own in spec.rescalings.items()
        },
        alpha=Millionths(371_234),
    )
    assert recipe.scales
    base, other = written(tmp_path / "a", ours, 2), written(tmp_path / "b", sold, 2)
    root = merged(base, other, recipe, tmp_path / "m", spec=whole)
    assert root == weights_root(apply_recipe(architecture, ours, sold, recipe))


@pytest.mark.parametrize("name", ["nope#0", "blocks.0.norm1.weight#1", "blocks.0.norm1.weight"])
def test_a_recipe_that_rescales_other_places_is_refused(name: str) -> None:
    tensors = random_init(DEEP[0], 1)
    recipe = Recipe(
        permutations={}, scales={name: pack_scales(torch.ones(12))}, alpha=Millionths(1)
    )
    with pytest.raises(RemoteProtocolError, match=r"bad-recipe.*not exact"):
        apply_recipe(DEEP[0], tensors, tensors, recipe)


def test_half_precision_is_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    ours = {name: t.to(torch.bfloat16) for name, t in random_init(MLP, 0).items()}
    theirs = {name: t.to(torch.bfloat16) for name, t in random_init(MLP, 1).items()}
    recipe = Recipe(permutations={}, scales={}, alpha=Millionths(300_000))
    merged(written(tmp_path / "a", ours), written(tmp_path / "b", theirs), recipe, tmp_path / "m")
    found = read(tmp_path / "m")
    for name, tensor in found.items():
        keep, take = torch.tensor(0.7), torch.tensor(0.3)
        exact = ours[name].float() * keep + theirs[name].float() * take
        assert torch.equal(tensor, exact.to(torch.bfloat16))


def test_counters_are_copied_and_never_averaged(tmp_path: Path) -> None:
    spec = PermutationSpec(groups={}, axes={"steps": (None,), "w": (None,)})
    ours = {"steps": torch.tensor([3]), "w": torch.zeros(2)}
    recipe = Recipe(permutations={}, scales={}, alpha=Millionths(500_000))
    base, same = written(tmp_path / "a", ours), {**ours, "w": torch.ones(2)}
    merged(base, written(tmp_path / "b", same), recipe, tmp_path / "m", spec=spec)
    assert read(tmp_path / "m")["steps"].item() == 3
    other = written(tmp_path / "c", {**ours, "steps": torch.tensor([4])})
    with pytest.raises(ProfileError, match="steps: integers that differ"):
        merged(base, other, recipe, tmp_path / "n", spec=spec)


def test_a_merge_that_overflows_leaves_nothing(tmp_path: Path) -> None:
    spec = PermutationSpec(
        groups={"g": Group(size=2)},
        axes={"w": (Axis("g", Role.WRITES),)},
        rescalings={"g": Rescaling("g", writes=frozenset({("w", 0)}), reads=frozenset())},
    )
    huge = {"w": torch.full((2,), 3e38)}
    recipe = Recipe(
        permutations={}, scales={"g": pack_scales(torch.tensor([1.0, 9.0]))}, alpha=Millionths(1)
    )
    with pytest.raises(ProfileError, match="not-finite"):
        merged(
            written(tmp_path / "a", huge), written(tmp_path / "b", huge), recipe, tmp_path / "m",
            spec=spec,
        )  # fmt: skip
    assert list((tmp_path / "m").iterdir()) == []


def test_a_disk_that_fails_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, kept = Draft.keep, list[Path]()

    def fail_at_the_third(self: Draft, path: Path) -> None:
        if len(kept) == 2:
            raise OSError(28, "No space left on device")
        kept.append(path)
        keep(self, path)

    ours = random_init(MLP, 0)
    base = written(tmp_path / "a", ours, 3)
    monkeypatch.setattr(Draft, "keep", fail_at_the_third)
    with pytest.raises(OSError, match="No space"):
        merged(base, base, a_recipe(0, 1), tmp_path / "m")
    left = [path.name for path in (tmp_path / "m").iterdir()]
    assert not any(name.endswith("index.json") or name.startswith(".") for name in left)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: index.pop("weight_map"), "malformed-index"),
        (lambda index: index.update(weight_map=[1]), "malformed-index"),
        (lambda index: index["weight_map"].update({"layers.0.bias": "../a.safetensors"}), "shard"),
        (lambda index: index["weight_map"].update({"layers.0.bias": "/a.safetensors"}), "shard"),
        (lambda index: index["weight_map"].update({"layers.0.bias": "model.bin"}), "shard"),
        (lambda index: index["weight_map"].update({"layers.0.bias": 3}), "bad-shard-name"),
        (lambda index: index["weight_map"].pop("layers.0.bias"), "wrong-index"),
        (
            lambda index: index["weight_map"].update(more="model-00001-of-00002.safetensors"),
            "wrong",
        ),
        (lambda index: index["weight_map"].update(more="away.safetensors"), "unreadable"),
    ],
)
def test_an_index_that_lies_is_refused_by_name(tmp_path: Path, change: Any, reason: str) -> None:
    path = written(tmp_path, random_init(MLP, 0), 2)
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ProfileError, match=reason), open_set(path):
        pass


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, random_init(MLP, 0), 2)
    twice = {"x": torch.zeros(1)}
    for number in (1, 2):
        name = tmp_path / f"model-0000{number}-of-00002.safetensors"
        safetensors.torch.save_file({**safetensors.torch.load_file(name), **twice}, name)
    index = json.loads(path.read_text())
    index["weight_map"]["x"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ProfileError, match="wrong-index"), open_set(path):
        pass


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="holds no"), open_set(tmp_path):
        pass
    for name in ("a", "b"):
        safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ProfileError, match="name one"), open_set(tmp_path):
        pass
    with pytest.raises(ProfileError, match="unreadable"), open_set(tmp_path / "c.safetensors"):
        pass
    (tmp_path / "d.safetensors.index.json").write_text("{" * 10)
    index = tmp_path / "d.safetensors.index.json"
    with pytest.raises(ProfileError, match="malformed-index"), open_set(index):
        pass


def test_what_is_not_finite_has_no_root(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(64, 3)}
    tensors["w"][40, 1] = float("nan")
    with open_set(written(tmp_path, tensors)) as opened, pytest.raises(ProfileError, match="w: "):
        root_of(opened)


def test_sold_tensors_of_other_shapes_are_refused(tmp_path: Path) -> None:
    ours = random_init(MLP, 0)
    theirs = {**ours, "layers.1.bias": torch.zeros(6)}
    base, sold = written(tmp_path / "a", ours), written(tmp_path / "b", theirs)
    with pytest.raises(RemoteProtocolError, match=r"layers\.1\.bias"):
        merged(base, sold, a_recipe(0, 1), tmp_path / "m")
    with pytest.raises(RemoteProtocolError, match="bad-recipe"):
        merged(base, base, a_recipe(0, 1, widths=(5, 5)), tmp_path / "m")


def test_memory_is_that_of_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are asked for a few at a time, however large the tensor."""
    asked: list[int] = []
    rows = ShardedSet.rows

    def counted(self: ShardedSet, name: str, wanted: Any) -> torch.Tensor:
        found = rows(self, name, wanted)
        asked.append(found.nbytes)
        return found

    monkeypatch.setattr(ShardedSet, "rows", counted)
    path = written(tmp_path / "a", random_init(MLP, 0), 2)
    with open_set(path) as opened:
        root_of(opened)
    merged(path, path, a_recipe(0, 5), tmp_path / "m")
    assert max(asked) <= 60
