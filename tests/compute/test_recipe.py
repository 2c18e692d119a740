from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.params.architecture import Architecture, permutation_spec, random_init
from node.params.recipe import (
    NO_ALIGNMENT,
    Recipe,
    apply_recipe,
    check_recipe,
    interpolate,
    pack_scales,
    transform,
)
from node.protocol import cbor
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import ONE, Millionths

SMALL = Architecture("mlp", {"widths": [3, 4, 2]})
SPEC = permutation_spec(SMALL)


def recipe(
    permutation: tuple[int, ...] = (2, 0, 3, 1),
    scales: tuple[float, ...] = (1.0, 0.5, 3.0, 8.0),
    alpha: int = 300_000,
) -> Recipe:
    return Recipe(
        permutations={"hidden.0": permutation},
        scales={"hidden.0": pack_scales(torch.tensor(scales))},
        alpha=Millionths(alpha),
    )


@given(
    permutation=st.permutations(range(5)),
    scales=st.lists(st.floats(2**-20, 2**20, width=32), min_size=5, max_size=5),
    alpha=st.integers(0, ONE),
)
def test_a_recipe_comes_back_from_its_bytes(
    permutation: list[int], scales: list[float], alpha: int
) -> None:
    sent = recipe(tuple(permutation), tuple(scales), alpha)
    received = Recipe.decode(sent.encode())
    assert received == sent
    assert received.encode() == sent.encode()
    assert received.hash == sent.hash


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_recipe_or_the_senders_fault(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Recipe.decode(data)


@given(data=st.data())
def test_a_damaged_recipe_never_escapes_as_another_error(data: st.DataObject) -> None:
    encoded = bytearray(recipe().encode())
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    try:
        decoded = Recipe.decode(bytes(encoded))
        check_recipe(SPEC, decoded)
    except RemoteProtocolError:
        return
    assert decoded.encode() == bytes(encoded)


@pytest.mark.parametrize(
    "value",
    [
        {"alpha": -1, "permutations": {}, "scales": {}},
        {"alpha": ONE + 1, "permutations": {}, "scales": {}},
        {"alpha": True, "permutations": {}, "scales": {}},
        {"alpha": 0, "permutations": [], "scales": {}},
        {"alpha": 0, "permutations": {"g": 1}, "scales": {}},
        {"alpha": 0, "permutations": {"g": [0, 0]}, "scales": {}},
        {"alpha": 0, "permutations": {"g": [0, False]}, "scales": {}},
        {"alpha": 0, "permutations": {"g": [0, 2]}, "scales": {}},
        {"alpha": 0, "permutations": {}, "scales": {"g": b"abc"}},
        {"alpha": 0, "permutations": {}, "scales": {"g": [1]}},
        {"alpha": 0, "permutations": {}},
    ],
)
def test_malformed_recipes_are_refused(value: cbor.Value) -> None:
    with pytest.raises(RemoteProtocolError):
        Recipe.decode(cbor.encode(value))


@pytest.mark.parametrize(
    "wrong",
    [
        Recipe(permutations={"hidden.1": (0, 1)}, scales={}, alpha=Millionths(0)),
        recipe((0, 1, 2)),
        recipe(scales=(1.0, 1.0, 1.0)),
        recipe(scales=(1.0, 1.0, 1.0, 0.0)),
        recipe(scales=(1.0, 1.0, 1.0, -1.0)),
        recipe(scales=(1.0, 1.0, 1.0, float("nan"))),
        recipe(scales=(1.0, 1.0, 1.0, float("inf"))),
        recipe(scales=(1.0, 1.0, 1.0, 1e30)),
        Recipe(permutations={}, scales={"output": pack_scales(torch.ones(2))}, alpha=Millionths(0)),
    ],
)
def test_a_recipe_that_is_not_exact_for_the_architecture_is_refused(wrong: Recipe) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        apply_recipe(SMALL, random_init(SMALL, 0), random_init(SMALL, 1), wrong)
    assert refused.value.reason == "bad-recipe"


@pytest.mark.parametrize("alpha", [-1, ONE + 1, 0.5, True])
def test_alpha_outside_of_the_unit_is_our_own_mistake(alpha: int) -> None:
    with pytest.raises(LocalProtocolError):
        Recipe(permutations={}, scales={}, alpha=Millionths(alpha))


def test_the_ends_of_the_line_are_the_models_themselves() -> None:
    base, sold = random_init(SMALL, 0), random_init(SMALL, 1)
    at_zero = apply_recipe(SMALL, base, sold, recipe(alpha=0))
    at_one = apply_recipe(SMALL, base, sold, recipe(alpha=ONE))
    transformed = transform(SPEC, sold, recipe())
    for name in base:
        assert torch.equal(at_zero[name], base[name])
        assert torch.equal(at_one[name], transformed[name])
    assert at_zero["layers.0.bias"] is not base["layers.0.bias"]
    minus, plus = {"zero": torch.tensor([-0.0])}, {"zero": torch.tensor([0.0])}
    assert bool(interpolate(plus, minus, Millionths(ONE))["zero"].signbit())
    assert bool(interpolate(minus, plus, Millionths(0))["zero"].signbit())


def test_unit_u_of_the_buyer_meets_the_unit_that_the_permutation_names() -> None:
    sold = random_init(SMALL, 1)
    transformed = transform(SPEC, sold, recipe((2, 0, 3, 1), (1.0, 0.5, 3.0, 8.0)))
    torch.testing.assert_close(transformed["layers.0.bias"][1], sold["layers.0.bias"][0] * 0.5)
    torch.testing.assert_close(transformed["layers.0.weight"][2], sold["layers.0.weight"][3] * 3)
    torch.testing.assert_close(
        transformed["layers.1.weight"][:, 3], sold["layers.1.weight"][:, 1] / 8
    )
    assert torch.equal(transformed["layers.1.bias"], sold["layers.1.bias"])


@given(seed=st.integers(0, 1000), alpha=st.integers(1, ONE - 1))
def test_the_merge_is_numpys_float32_to_the_last_bit(seed: int, alpha: int) -> None:
    base, other = random_init(SMALL, seed), random_init(SMALL, seed + 1)
    merged = interpolate(base, other, Millionths(alpha))
    keep, take = np.float32((ONE - alpha) / ONE), np.float32(alpha / ONE)
    for name in base:
        expected = base[name].numpy() * keep + other[name].numpy() * take
        assert expected.tobytes() == merged[name].numpy().tobytes()


def test_the_alignment_hash_does_not_depend_on_alpha() -> None:
    assert recipe(alpha=1).alignment_hash == recipe(alpha=2).alignment_hash
    assert recipe(alpha=1).hash != recipe(alpha=2).hash
    assert recipe((0, 1, 2, 3)).alignment_hash != recipe().alignment_hash


def test_no_alignment_is_the_plain_interpolation() -> None:
    base, sold = random_init(SMALL, 0), random_init(SMALL, 1)
    half = Millionths(ONE // 2)
    merged = apply_recipe(SMALL, base, sold, NO_ALIGNMENT.with_alpha(half))
    expected = interpolate(base, sold, half)
    assert all(torch.equal(merged[name], expected[name]) for name in base)
