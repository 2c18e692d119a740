"""Language models are traded as classifiers are: described in JSON, aligned, merged."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from broker_node.align.registry import ALIGNERS
from broker_node.evaluate.curve import losses_of, row_losses
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import (
    Architecture,
    apply,
    layout,
    parse_architecture,
    permutation_spec,
    random_init,
)
from node.params.derivation.check import require_preserved
from node.params.encoding import weights_root
from node.params.families.base import ArchitectureError
from node.params.families.gpt import Gpt, derived_symmetries
from node.params.permutation import permute
from node.params.recipe import apply_recipe
from node.protocol.errors import LocalProtocolError
from node.protocol.types import ONE, Millionths
from scripts.disguises import moved

SMALL: dict[str, Any] = {
    "context": 8, "depth": 2, "heads": 3, "hidden": 20, "norm": "rms", "tied": False,
    "vocabulary": 11, "width": 12,
}  # fmt: skip
KINDS = [(norm, tied) for norm in ("rms", "layer") for tied in (False, True)]


def built(**change: object) -> Architecture:
    return Architecture("gpt", {**SMALL, **change})


def model_of(architecture: Architecture) -> Gpt:
    assert isinstance(architecture.model, Gpt)
    return architecture.model


def verified(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Verified:
    return verify(
        Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
    )


def rough(architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Return weights of which no gain is 1, so that their order shows."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.2 * torch.rand(tensor.shape, generator=generator)
        for name, tensor in random_init(architecture, seed).items()
    }


def renumbered(
    architecture: Architecture, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    spec = permutation_spec(architecture)
    return permute(
        spec,
        tensors,
        {
            name: torch.randperm(group.size, generator=generator).tolist()
            for name, group in spec.groups.items()
        },
    )


@pytest.mark.parametrize(("norm", "tied"), KINDS)
def test_the_text_comes_back_and_its_tensors_are_the_modules(norm: str, tied: bool) -> None:
    architecture = built(norm=norm, tied=tied)
    assert parse_architecture(architecture.text) == architecture
    found = {spec.name: spec.shape for spec in layout(architecture)}
    assert {name: tuple(t.shape) for name, t in random_init(architecture, 0).items()} == found
    assert ("head.weight" in found) == (not tied)
    assert ("norm.bias" in found) == (norm == "layer")
    assert found["blocks.1.attention.query"] == (3, 4, 12)
    assert found["blocks.1.attention.out"] == (12, 3, 4)
    layers = architecture.model.layer_names()
    assert sorted(name for layer in layers for name in layer) == sorted(found)
    assert {"tokens.weight", "positions.weight"} <= set(layers[0])
    assert "norm.weight" in layers[1]


@pytest.mark.parametrize(("norm", "tied"), KINDS)
def test_the_graph_of_a_language_model_says_its_symmetries(norm: str, tied: bool) -> None:
    model = model_of(built(norm=norm, tied=tied))
    derived = derived_symmetries(model)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = model.build()
    ids = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(0))
    require_preserved(module, derived, (ids,))
    spec = model.permutation_spec()
    assert [group.size for group in spec.groups.values()] == [12, 3, 20, 3, 20]
    for part, at in (("query", 0), ("key", 0), ("value", 0), ("out", 1)):
        axis = spec.axes[f"blocks.1.attention.{part}"][at]
        assert axis is not None
        assert spec.groups[axis.group].size == 3
    sides = [(sorted(own.writes), sorted(own.reads)) for own in spec.rescalings.values()]
    assert ([("blocks.1.attention.query", 0)], [("blocks.1.attention.key", 0)]) in sides
    assert ([("blocks.1.attention.value", 0)], [("blocks.1.attention.out", 1)]) in sides
    gain = ["norm.bias", "norm.weight"] if norm == "layer" else ["norm.weight"]
    final = ([(name, 0) for name in gain], [("head.weight", 1)])
    assert (final in sides) == (not tied)  # the embedding that would make up for it writes, too
    assert len(sides) == 2 * (2 + 2) + (not tied)


@pytest.mark.parametrize("change", [{"depth": 1}, {"heads": 1}, {"heads": 12}, {"hidden": 1}])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_renumbered_language_models_answer_the_same(norm: str, change: dict[str, Any]) -> None:
    architecture = built(norm=norm, **change)
    tensors = {name: t.double() for name, t in rough(architecture, 1).items()}
    rows = model_of(architecture).random_rows(6, torch.Generator().manual_seed(0))
    same = apply(architecture, renumbered(architecture, tensors), rows)
    torch.testing.assert_close(same, apply(architecture, tensors, rows))


@pytest.mark.parametrize("method", ["weight-matching", "activation-matching", "universe"])
def test_a_renumbered_language_model_is_found_by_a_recipe(method: str) -> None:
    architecture = built()
    tensors = rough(architecture, 1)
    copy = renumbered(architecture, tensors)
    pair = verified(architecture, tensors), verified(architecture, copy)
    rows = model_of(architecture).random_rows(64, torch.Generator().manual_seed(0)).float()
    recipe = ALIGNERS[method](*pair, seed=0, probe_RF=rows).exact_recipe
    recipe = recipe.with_alpha(Millionths(ONE))
    assert weights_root(apply_recipe(architecture, tensors, copy, recipe)) == weights_root(tensors)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("method", ["weight-matching", "activation-matching", "universe"])
def test_a_copy_whose_norms_and_heads_were_rescaled_comes_back_by_a_recipe(
    method: str, norm: str
) -> None:
    architecture = built(norm=norm)
    tensors = rough(architecture, 1)
    copy = moved(architecture, tensors, torch.Generator().manual_seed(2))
    pair = verified(architecture, tensors), verified(architecture, copy)
    rows = model_of(architecture).random_rows(64, torch.Generator().manual_seed(0)).float()
    recipe = ALIGNERS[method](*pair, seed=0, probe_RF=rows).exact_recipe
    found = apply_recipe(architecture, tensors, copy, recipe.with_alpha(Millionths(ONE)))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-4, atol=1e-6)


def test_no_place_sees_what_comes_after_it() -> None:
    architecture = built()
    tensors = rough(architecture, 1)
    rows = model_of(architecture).random_rows(1, torch.Generator().manual_seed(0)).float()
    changed = rows.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 11
    before, after = (apply(architecture, tensors, each) for each in (rows, changed))
    torch.testing.assert_close(before[0, :5], after[0, :5])
    assert not torch.allclose(before[0, 5:], after[0, 5:])


def test_the_loss_of_a_row_is_the_mean_over_its_places() -> None:
    architecture = built(norm="layer")
    tensors = rough(architecture, 1)
    rows = model_of(architecture).random_rows(3, torch.Generator().manual_seed(0)).float()
    targets = torch.tensor([4, 0, 10])
    logits = apply(architecture, tensors, rows).double().log_softmax(-1)
    for row, found in enumerate(row_losses(architecture, tensors, rows, targets).tolist()):
        follows = [*rows[row, 1:].long().tolist(), int(targets[row])]
        said = [-float(logits[row, at, token]) for at, token in enumerate(follows)]
        assert found == pytest.approx(math.fsum(said) / 8)
    with pytest.raises(LocalProtocolError, match="answers for"):
        losses_of(logits, targets)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm": "batch"}, "norm must be one of layer, rms"),
        ({"norm": 1}, "norm must be one of"),
        ({"norm": ["rms"]}, "norm must be one of"),
        ({"tied": 1}, "tied must be true or false"),
        ({"heads": 5}, "12 is not of 5 equal heads"),
        ({"heads": 0}, "heads"),
        ({"heads": True}, "heads"),
        ({"depth": 17}, "depth must be 1 … 16"),
        ({"context": 1025}, "context must be 1 … 1024"),
        ({"vocabulary": 2**16 + 1}, "vocabulary must be"),
        ({"vocabulary": 2**16, "context": 65}, "answers"),
        ({"hidden": 2.0}, "hidden"),
        ({"width": "12"}, "width"),
        ({"more": 1}, "fields"),
        ({"width": 2**14, "heads": 1}, "parameters"),
    ],
)
def test_a_description_of_no_language_model_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchitectureError, match=words):
        built(**change)


@pytest.mark.parametrize("token", [-1.0, 11.0, 2.5, math.nan, 1e30])
def test_what_is_no_token_is_refused(token: float) -> None:
    architecture = built()
    tensors = random_init(architecture, 0)
    rows = torch.zeros(2, 8)
    rows[1, 3] = token
    with pytest.raises(LocalProtocolError, match=r"tokens are 0 … 10, got"):
        apply(architecture, tensors, rows)


@pytest.mark.parametrize("targets", [torch.tensor([1, 11]), torch.tensor([-1, 1])])
def test_a_target_that_is_no_token_is_refused(targets: torch.Tensor) -> None:
    architecture = built()
    with pytest.raises(LocalProtocolError, match="tokens are 0 … 10"):
        row_losses(architecture, random_init(architecture, 0), torch.zeros(2, 8), targets)
    with pytest.raises(LocalProtocolError, match="not a value"):
        row_losses(architecture, random_init(architecture, 0), torch.zeros(2, 8), targets.float())
