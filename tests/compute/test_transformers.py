"""Model classes of `transformers`, small and random: derived, borne out, and matched."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from node.params import blocks
from node.params.derivation.check import derive_checked, require_preserved, unsettled
from node.params.derivation.derive import derive
from node.params.derivation.errors import UnderivableError
from node.params.symmetry import GaugeKind
from tests.compute.test_symmetries import check_symmetries, noisy_copy

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: the extra `models`"
)

from broker_node.align.symmetric_matching import match_symmetries  # noqa: E402

IDS = torch.arange(14).reshape(2, 7)


def gpt2(*, layers: int = 2) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=24, n_layer=layers, n_head=3, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=3, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=24, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=3, num_labels=5,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)  # type: ignore[no-any-return]


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=3, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "gpt2": (gpt2, IDS),
    "llama": (llama, IDS),
    "vit": (vit, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))),
    "bert": (bert, IDS),
}


class Logits(nn.Module):
    """A model that returns what it computes as a plain tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.model(given).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_a_planted_permutation_leaves_the_outputs_and_is_found(name: str) -> None:
    torch.manual_seed(0)
    build, example = MODELS[name]
    module = build()
    spec = derive(module, (example,))
    require_preserved(module, spec, (example,))
    ours = unsettled(module, spec, torch.Generator().manual_seed(1))
    theirs, planted = noisy_copy(spec, ours, 2)
    found = match_symmetries(spec, ours, theirs, seed=0)
    assert blocks.permutation_hash(spec, found.permutations) == blocks.permutation_hash(
        spec, planted
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "vit", "bert"])
def test_outputs_bear_out_every_group_and_gauge(name: str) -> None:
    build, example = MODELS[name]
    check_symmetries((Logits(build()), (example,)), 0)


def described(name: str) -> tuple[list[tuple[int, int]], dict[str, list[GaugeKind]]]:
    """The groups' sizes and how many groups they stand within; gauges by the group's size."""
    build, example = MODELS[name]
    spec = derive(build(), (example,))
    gauges: dict[str, list[GaugeKind]] = {}
    for gauge in spec.gauges:
        gauges.setdefault(str(spec.groups[gauge.group].size), []).append(gauge.kind)
    return [(group.size, len(group.within)) for group in spec.groups.values()], gauges


@pytest.mark.parametrize("name", ["gpt2", "vit", "bert"])
def test_a_layer_has_heads_their_insides_and_hidden_units(name: str) -> None:
    groups, gauges = described(name)
    inner = 96 if name == "gpt2" else 20
    # the stream; then heads, what queries and keys share inside, what values and outputs do
    assert groups == [(24, 0)] + 2 * [(3, 0), (8, 1), (8, 1), (inner, 0)]
    assert gauges["8"] == 4 * [GaugeKind.LINEAR]
    assert set(gauges) <= {"8", "24"}


def test_shared_keys_and_turned_queries_leave_fewer_symmetries() -> None:
    groups, gauges = described("llama")
    # heads of keys, heads of queries that share one, values inside; rotation pins the queries'
    assert groups == [(24, 0)] + 2 * [(3, 0), (2, 1), (4, 1), (20, 0)]
    assert gauges["4"] == 2 * [GaugeKind.LINEAR]
    assert gauges["20"] == 2 * [GaugeKind.SCALE]


def test_a_tied_embedding_moves_with_its_head() -> None:
    module: Any = gpt2(layers=1)
    spec = derive(module, (IDS,))
    assert spec.ties == {"lm_head.weight": "transformer.wte.weight"}
    tensors = dict(module.state_dict())
    moved = blocks.permute(
        spec, tensors, blocks.random_permutation(spec, torch.Generator().manual_seed(0))
    )
    assert torch.equal(moved["lm_head.weight"], moved["transformer.wte.weight"])


SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1,
    "num_attention_heads": 4, "use_cache": False,
}  # fmt: skip
SHARED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2}
OTHERS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "mistral": ("MistralForCausalLM", "MistralConfig", SHARED, 5),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", SHARED, 5),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**SHARED, "pad_token_id": 0}, 5),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL, 5),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 50, "hidden_size": 16, "n_layer": 1, "n_head": 4, "use_cache": False},
        5,
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {**SMALL, "ffn_dim": 20, "max_position_embeddings": 32, "word_embed_proj_dim": 16},
        5,
    ),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": 50, "dim": 16, "hidden_dim": 20, "n_layers": 1, "n_heads": 4},
        5,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_classes_that_nobody_thought_of_are_derived_too(name: str) -> None:
    model, config, options, groups = OTHERS[name]
    torch.manual_seed(0)
    module = getattr(transformers, model)(getattr(transformers, config)(**options))
    spec = derive_checked(module, (IDS,))
    assert len(spec.groups) == groups
    # heads in a fixed order (a slope for each) still have interchangeable units inside
    assert [group.movable for group in spec.groups.values()].count(False) == (name == "bloom")


@pytest.mark.slow
def test_experts_that_are_chosen_by_what_is_computed_are_refused_by_name() -> None:
    options = {**SHARED, "num_local_experts": 2}
    module = transformers.MixtralForCausalLM(transformers.MixtralConfig(**options))
    with pytest.raises(UnderivableError) as error:
        derive(module, (IDS,))
    assert "topk" in str(error.value)
