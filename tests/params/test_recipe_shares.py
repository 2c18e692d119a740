"""A recipe may say of each row how much of it is bought, and says no more than that."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.params import sharded
from node.params.architecture import Architecture, part_of, random_init
from node.params.encoding import weights_root
from node.params.recipe import MAX_SHARES, Recipe, apply_recipe, interpolate, pack_scales
from node.protocol import cbor
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import ONE, Millionths
from tests.params.test_sharded_sets import MLP, a_recipe, merged, read, written

SMALL = Architecture("mlp", {"widths": [3, 4, 2]})
share = st.integers(0, ONE).map(Millionths)
shares_of_small = st.fixed_dictionaries(
    {},
    optional={
        "layers.0.weight": st.tuples(*[share] * 4),
        "layers.0.bias": st.tuples(*[share] * 4),
        "layers.1.weight": st.tuples(*[share] * 2),
    },
)


def recipe(shares: dict[str, tuple[Millionths, ...]], alpha: int = 300_000) -> Recipe:
    return Recipe(
        permutations={"hidden.0": (2, 0, 3, 1)},
        scales={"hidden.0": pack_scales(torch.tensor([1.0, 0.5, 3.0, 8.0]))},
        alpha=Millionths(alpha),
        shares=shares,
    )


@given(shares=shares_of_small)
def test_shares_come_back_from_a_recipes_bytes(
    shares: dict[str, tuple[Millionths, ...]],
) -> None:
    sent = recipe(shares)
    received = Recipe.decode(sent.encode())
    assert received == sent
    assert received.encode() == sent.encode()


def test_a_recipe_without_shares_has_the_bytes_that_it_always_had() -> None:
    old = {
        "alpha": 300_000,
        "permutations": {"hidden.0": [2, 0, 3, 1]},
        "scales": {"hidden.0": recipe({}).scales["hidden.0"]},
    }
    assert recipe({}).encode() == cbor.encode(old)  # type: ignore[arg-type]
    assert (
        recipe({}).hash.hex() == "c2db73c99f10aa7fa285d340fad9475eab301b810ba918e95aabab588cee45a3"
    )


def test_an_alignment_has_one_name_whatever_is_bought_of_it() -> None:
    some = recipe({"layers.0.bias": (Millionths(1),) * 4})
    assert some.alignment_hash == recipe({}).alignment_hash
    assert some.hash != recipe({}).hash
    assert some.with_alpha(Millionths(9)).shares == {}
    assert recipe({}).with_shares(some.shares) == some


@pytest.mark.parametrize(
    ("shares", "alpha"),
    [
        ({}, 1),
        ([], 1),
        ({"layers.0.bias": 1}, 1),
        ({"layers.0.bias": []}, 1),
        ({"layers.0.bias": [1, -1, 1, 1]}, 1),
        ({"layers.0.bias": [1, ONE + 1, 1, 1]}, 1),
        ({"layers.0.bias": [1, True, 1, 1]}, 1),
        ({"layers.0.bias": [1, b"1", 1, 1]}, 1),
        ({"layers.0.bias": [1, "1", 1, 1]}, 1),
        ({"layers.0.bias": [1, None, 1, 1]}, 1),
        ({"layers.0.bias": b"1111"}, 1),
        ({"layers.0.bias": [1, 1, 1, 1]}, 0),
        ({"layers.0.bias": [0] * (MAX_SHARES // 2), "layers.1.bias": [0] * MAX_SHARES}, 1),
    ],
)
def test_malformed_shares_are_the_senders_fault(shares: cbor.Value, alpha: int) -> None:
    said: cbor.Value = {"alpha": alpha, "permutations": {}, "scales": {}, "shares": shares}
    with pytest.raises(RemoteProtocolError) as refused:
        Recipe.decode(cbor.encode(said))
    assert refused.value.reason == "bad-recipe"


def test_as_many_shares_as_allowed_are_read() -> None:
    most = Recipe(
        permutations={},
        scales={},
        alpha=Millionths(1),
        shares={"a": (Millionths(ONE),) * MAX_SHARES},
    )
    assert Recipe.decode(most.encode()) == most


@given(data=st.data())
def test_a_damaged_recipe_with_shares_never_escapes_as_another_error(data: st.DataObject) -> None:
    encoded = bytearray(recipe({"layers.0.bias": (Millionths(5),) * 4}).encode())
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    ours, theirs = random_init(SMALL, 0), random_init(SMALL, 1)
    try:
        decoded = Recipe.decode(bytes(encoded))
        apply_recipe(SMALL, ours, theirs, decoded)
    except RemoteProtocolError:
        return
    assert decoded.encode() == bytes(encoded)


@pytest.mark.parametrize(
    "shares",
    [
        {"layers.0.bias": (1,) * 3},
        {"layers.0.bias": (1,)},  # would spread over all rows
        {"layers.0.weight": (1,) * 3},  # one a column
        {"layers.0.weight": (1,) * 12},
        {"layers.9.weight": (1,) * 4},
        {"hidden.0": (1,) * 4},
    ],
)
def test_shares_that_do_not_fit_the_model_are_refused(shares: dict[str, tuple[int, ...]]) -> None:
    given = {name: tuple(map(Millionths, of)) for name, of in shares.items()}
    with pytest.raises(RemoteProtocolError) as refused:
        apply_recipe(SMALL, random_init(SMALL, 0), random_init(SMALL, 1), recipe(given))
    assert refused.value.reason == "bad-recipe"


def test_shares_of_a_layer_that_is_not_sold_are_refused() -> None:
    ours, theirs = random_init(SMALL, 0), random_init(SMALL, 1)
    given = {"layers.1.bias": (Millionths(1),) * 2}
    plain = Recipe(permutations={}, scales={}, alpha=Millionths(1), shares=given)
    apply_recipe(SMALL, ours, theirs, plain)
    with pytest.raises(RemoteProtocolError) as refused:
        apply_recipe(SMALL, ours, part_of(SMALL, theirs, (0,)), plain)
    assert refused.value.reason == "bad-recipe"


@pytest.mark.parametrize("wrong", [-1, ONE + 1, 0.5, True])
def test_shares_outside_of_the_unit_are_our_own_mistake(wrong: int) -> None:
    with pytest.raises(LocalProtocolError):
        recipe({"layers.0.bias": (Millionths(wrong),)})
    with pytest.raises(LocalProtocolError):
        dataclasses.replace(recipe({"layers.0.bias": (Millionths(1),)}), alpha=Millionths(0))


@given(alpha=st.integers(0, ONE), seed=st.integers(0, 99))
def test_the_same_share_for_every_row_is_that_alpha_to_the_byte(alpha: int, seed: int) -> None:
    ours, theirs = random_init(SMALL, seed), random_init(SMALL, seed + 1)
    rows = {name: (Millionths(alpha),) * len(tensor) for name, tensor in theirs.items()}
    one = interpolate(ours, theirs, Millionths(alpha))
    each = interpolate(ours, theirs, Millionths(1), shares=rows)
    assert weights_root(one) == weights_root(each)


@given(shares=st.tuples(*[share] * 4), seed=st.integers(0, 99))
def test_every_row_is_merged_as_if_it_were_alone(shares: tuple[Millionths, ...], seed: int) -> None:
    ours, theirs = random_init(SMALL, seed), random_init(SMALL, seed + 1)
    name = "layers.0.weight"
    found = interpolate(ours, theirs, Millionths(77), shares={name: shares})
    for at, one in enumerate(shares):
        alone = interpolate({name: ours[name][at]}, {name: theirs[name][at]}, one)
        assert torch.equal(found[name][at], alone[name])
    others = interpolate(ours, theirs, Millionths(77))
    assert all(torch.equal(found[each], others[each]) for each in found if each != name)


def test_rows_at_the_ends_are_the_models_own_to_the_sign_of_a_zero() -> None:
    ours, theirs = torch.tensor([[-0.0], [-0.0], [3.0]]), torch.tensor([[-0.0], [7.0], [-0.0]])
    shares = (Millionths(ONE), Millionths(0), Millionths(ONE))
    found = interpolate({"w": ours}, {"w": theirs}, Millionths(5), shares={"w": shares})["w"]
    assert torch.signbit(found).flatten().tolist() == [True, True, True]
    assert found.abs().flatten().tolist() == [0.0, 0.0, 0.0]


@given(seed=st.integers(0, 99), data=st.data())
@settings(deadline=None, max_examples=15)
def test_files_in_pieces_are_merged_by_the_same_shares(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("sets")
    ours, theirs = random_init(MLP, seed), random_init(MLP, seed + 1)
    named = data.draw(st.sets(st.sampled_from(sorted(theirs)), min_size=1))
    shares = {name: data.draw(st.tuples(*[share] * len(theirs[name]))) for name in sorted(named)}
    given = a_recipe(seed, 400_000).with_shares(shares)
    base, sold = written(folder / "base", ours, 2), written(folder / "sold", theirs, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "PIECE_BYTES", 60)  # a row or two at a time
        root = merged(base, sold, given, folder / "merged")
    expected = apply_recipe(MLP, ours, theirs, given)
    assert root == weights_root(expected)
    assert all(torch.equal(read(folder / "merged")[name], expected[name]) for name in expected)


def test_files_are_not_merged_by_shares_of_another_height(tmp_path: Path) -> None:
    ours, theirs = random_init(MLP, 0), random_init(MLP, 1)
    base, sold = written(tmp_path / "base", ours, 1), written(tmp_path / "sold", theirs, 1)
    given = a_recipe(0, 1).with_shares({"layers.0.bias": (Millionths(1),)})
    with pytest.raises(RemoteProtocolError) as refused:
        merged(base, sold, given, tmp_path / "merged")
    assert refused.value.reason == "bad-recipe"
    assert not list((tmp_path / "merged").iterdir())
