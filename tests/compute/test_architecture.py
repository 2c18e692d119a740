from __future__ import annotations

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.params.architecture import (
    Architecture,
    apply,
    architecture_hash,
    layout,
    parse_architecture,
    permutation_spec,
    random_init,
)
from node.params.families.base import MAX_PARAMETERS, ArchitectureError
from node.params.permutation import permute, rescale
from node.protocol.errors import LocalProtocolError

PAPER = '{"config":{"widths":[784,32,32,32,16,10]},"name":"mlp"}'


def test_the_text_of_the_papers_network_is_canonical_and_comes_back() -> None:
    architecture = parse_architecture(PAPER)
    assert architecture.text == PAPER
    assert architecture == Architecture("mlp", {"widths": [784, 32, 32, 32, 16, 10]})
    assert len({architecture, parse_architecture(PAPER)}) == 1
    assert architecture_hash(architecture) == hashlib.sha256(PAPER.encode()).digest()


def test_layout_names_every_tensor_in_sorted_order() -> None:
    specs = layout(Architecture("mlp", {"widths": [4, 3, 2]}))
    assert [(spec.name, spec.dtype, spec.shape) for spec in specs] == [
        ("layers.0.bias", "F32", (3,)),
        ("layers.0.weight", "F32", (3, 4)),
        ("layers.1.bias", "F32", (2,)),
        ("layers.1.weight", "F32", (2, 3)),
    ]


def test_a_network_of_many_layers_keeps_its_layout_sorted_by_name() -> None:
    names = [spec.name for spec in layout(Architecture("mlp", {"widths": [2] * 14}))]
    assert names == sorted(names)
    assert len(names) == 26


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "[" * 3000,
        '{"name":"mlp"}',
        '{"config":{"widths":[2,2]},"name":"mlp","extra":1}',
        '{"config":{"widths":[2,2]},"name":["mlp"]}',
        '{"config":[],"name":"mlp"}',
        '{"config":{},"name":"mlp"}',
        '{"config":{"widths":[2]},"name":"mlp"}',
        '{"config":{"widths":[2,0]},"name":"mlp"}',
        '{"config":{"widths":[2,-1]},"name":"mlp"}',
        '{"config":{"widths":[2,true]},"name":"mlp"}',
        '{"config":{"widths":[2,2.0]},"name":"mlp"}',
        '{"config":{"widths":[2,NaN]},"name":"mlp"}',
        '{"config":{"widths":[2,1e3]},"name":"mlp"}',
        '{"config":{"widths":"22"},"name":"mlp"}',
        '{"config":{"widths":[1048576,1048576]},"name":"mlp"}',
        '{"config":{"widths":[2,' + "9" * 3000 + ']},"name":"mlp"}',
        '{"config":{"widths":[' + ",".join(["1"] * 900) + ']},"name":"mlp"}',
        '{"config":{"widths":[2,2]},"config":{"widths":[2,2]},"name":"mlp"}',
        '{"config": {"widths":[2,2]},"name":"mlp"}',
        '{"name":"mlp","config":{"widths":[2,2]}}',
        '{"config":{"inputs":2},"name":"linear"}',
        '{"config":{"inputs":2,"outputs":0},"name":"linear"}',
        '{"config":{"shapes":{}},"name":"random"}',
        '{"config":{"shapes":{"a":[]}},"name":"random"}',
        '{"config":{"shapes":{"../a":[1]}},"name":"random"}',
        '{"config":{"shapes":{"a\\u0000":[1]}},"name":"random"}',
        '{"config":{"shapes":{"a":[1,1,1,1,1,1,1,1,1]}},"name":"random"}',
        '{"config":{"shapes":{"a":[65536,65536]}},"name":"random"}',
        PAPER + " " * 5000,
    ],
)
def test_hostile_texts_are_refused_by_name(text: str) -> None:
    with pytest.raises(ArchitectureError) as refused:
        parse_architecture(text)
    assert refused.value.reason == "bad-architecture"
    assert len(str(refused.value)) < 400


def test_an_unregistered_name_has_a_reason_of_its_own() -> None:
    with pytest.raises(ArchitectureError) as refused:
        parse_architecture('{"config":{},"name":"' + "x" * 500 + '"}')
    assert refused.value.reason == "unknown-architecture"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(
    value=st.fixed_dictionaries(
        {
            "name": st.sampled_from(["mlp", "linear", "random", "cnn"]),
            "config": st.dictionaries(
                st.sampled_from(["widths", "inputs", "outputs", "shapes"]), JSON, max_size=2
            ),
        }
    )
)
def test_any_json_is_an_architecture_or_an_error_that_we_name(value: object) -> None:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    try:
        architecture = parse_architecture(text)
    except ArchitectureError:
        return
    assert architecture.text == text
    assert sum(spec.byte_length for spec in layout(architecture)) <= 4 * MAX_PARAMETERS


@given(text=st.text(max_size=60))
def test_any_text_is_refused_or_canonical(text: str) -> None:
    with pytest.raises(ArchitectureError):
        parse_architecture(text)


def test_initialisation_is_that_of_torch_and_the_same_for_a_seed() -> None:
    torch.manual_seed(11)
    first, second = torch.nn.Linear(7, 5), torch.nn.Linear(5, 3)
    tensors = random_init(Architecture("mlp", {"widths": [7, 5, 3]}), 11)
    torch.testing.assert_close(tensors["layers.0.weight"], first.weight.data, rtol=0, atol=0)
    torch.testing.assert_close(tensors["layers.0.bias"], first.bias.data, rtol=0, atol=0)
    torch.testing.assert_close(tensors["layers.1.weight"], second.weight.data, rtol=0, atol=0)
    again = random_init(Architecture("mlp", {"widths": [7, 5, 3]}), 12)
    assert not torch.equal(again["layers.0.weight"], tensors["layers.0.weight"])


def test_the_forward_pass_is_that_of_a_torch_module() -> None:
    architecture = Architecture("mlp", {"widths": [7, 5, 3]})
    tensors = random_init(architecture, 1)
    first, second = torch.nn.Linear(7, 5), torch.nn.Linear(5, 3)
    first.weight.data, first.bias.data = tensors["layers.0.weight"], tensors["layers.0.bias"]
    second.weight.data, second.bias.data = tensors["layers.1.weight"], tensors["layers.1.bias"]
    inputs_RF = torch.randn(4, 7)
    expected = second(torch.relu(first(inputs_RF)))
    torch.testing.assert_close(apply(architecture, tensors, inputs_RF), expected)


def test_a_linear_model_is_one_affine_map_without_symmetries() -> None:
    architecture = Architecture("linear", {"inputs": 3, "outputs": 2})
    tensors = random_init(architecture, 0)
    inputs_RF = torch.randn(5, 3)
    expected = inputs_RF @ tensors["weight"].T + tensors["bias"]
    torch.testing.assert_close(apply(architecture, tensors, inputs_RF), expected)
    assert permutation_spec(architecture).groups == {}


def test_random_tensors_have_shapes_and_no_function() -> None:
    architecture = Architecture("random", {"shapes": {"b": [2], "a": [3, 4]}})
    assert [spec.name for spec in layout(architecture)] == ["a", "b"]
    assert random_init(architecture, 0)["a"].shape == (3, 4)
    with pytest.raises(LocalProtocolError):
        apply(architecture, random_init(architecture, 0), torch.zeros(1, 1))


@given(seed=st.integers(0, 2**32 - 1), widths=st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_the_symmetries_of_the_specification_change_no_output(seed: int, widths: list[int]) -> None:
    architecture = Architecture("mlp", {"widths": widths})
    spec = permutation_spec(architecture)
    tensors = {name: t.double() for name, t in random_init(architecture, seed).items()}
    generator = torch.Generator().manual_seed(seed)
    permutations = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }
    scales = {
        name: torch.rand(group.size, generator=generator, dtype=torch.float64) + 0.1
        for name, group in spec.groups.items()
    }
    changed = rescale(spec, permute(spec, tensors, permutations), scales)
    inputs_RF = torch.randn(8, widths[0], generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        apply(architecture, changed, inputs_RF), apply(architecture, tensors, inputs_RF)
    )


def test_rescaling_a_group_without_relu_is_refused() -> None:
    spec = permutation_spec(Architecture("mlp", {"widths": [2, 2, 2]}))
    with pytest.raises(LocalProtocolError):
        rescale(spec, {}, {"hidden.7": torch.ones(2)})
