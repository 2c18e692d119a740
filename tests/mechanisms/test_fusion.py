from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Outcome, RefusedInputError, Status
from broker_node.mechanisms.fusion import Fusion, fuse, fuse_layers

FUSION = Fusion()
weight = st.floats(-1e6, 1e6)


def clear(**market: Json) -> Outcome:
    return FUSION.clear(market, tolerance=1e-9, seed=0)


def fused(**market: Json) -> Json:
    outcome = clear(**market)
    assert FUSION.verify(market, outcome).valid
    return outcome.values["fused"]


@st.composite
def markets(draw: st.DrawFn) -> Any:
    layers, width = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sellers = draw(st.integers(0, 4))
    rows = st.lists(
        st.lists(weight, min_size=width, max_size=width), min_size=layers, max_size=layers
    )
    return {
        "local": draw(rows),
        "acquired": draw(st.lists(rows, min_size=sellers, max_size=sellers)),
        "lam": draw(st.lists(st.floats(0, 1), min_size=sellers, max_size=sellers)),
        "mask": draw(
            st.none()
            | st.lists(
                st.lists(st.booleans(), min_size=layers, max_size=layers),
                min_size=sellers,
                max_size=sellers,
            )
        ),
    }


def test_one_seller_moves_the_local_weights_by_lambda() -> None:
    assert fused(local=[1, 3], acquired=[[5, 7]], lam=[0.25]) == [2, 4]


def test_lambda_of_one_replaces_the_local_weights_only_if_there_is_one_seller() -> None:
    assert fused(local=[1.0], acquired=[[5]], lam=[1]) == [5]
    both = fused(local=[1.0], acquired=[[5], [9]], lam=[1, 1])
    assert both == [7]  # the mean of the sellers: neither seller's knowledge is the buyer's now
    one = fused(local=[1.0], acquired=[[5], [9]], lam=[1, 0])
    assert one == [3]  # and half of the local weights is left under a single λ of 1


@pytest.mark.parametrize("sellers", [1, 2, 5])
def test_the_uniform_average_needs_lambda_n_over_n_plus_one(sellers: int) -> None:
    theirs: list[Json] = [[float(index)] for index in range(sellers)]
    uniform = (10 + sum(range(sellers))) / (sellers + 1)
    at = sellers / (sellers + 1)
    assert fused(local=[10], acquired=theirs, lam=[at] * sellers) == pytest.approx([uniform])
    assert fused(local=[10], acquired=theirs, lam=[1] * sellers) != pytest.approx([uniform])


def test_nothing_acquired_leaves_the_local_weights() -> None:
    outcome = clear(local=[[1, 2], [3, 4]], acquired=[], lam=[])
    assert outcome.to_json() == {"status": "no_trade", "fused": [[1, 2], [3, 4]]}


def test_a_layer_is_divided_by_the_number_of_its_own_sellers() -> None:
    mask: list[Json] = [[True, True, False], [False, True, False]]
    result = fused(
        local=[0.0, 0.0, 7.0], acquired=[[8, 8, 8], [4, 4, 4]], lam=[0.5, 0.5], mask=mask
    )
    # 8·½ of one seller, (8·½ + 4·½)/2 of two, nothing of none
    assert result == [4, 3, 7]


def test_a_mask_may_speak_of_sellers_layers_or_single_weights() -> None:
    local: list[Json] = [[0, 0], [0, 0]]
    theirs: list[Json] = [[2, 2], [2, 2]]
    assert fused(local=local, acquired=[theirs, theirs], lam=[1, 1], mask=[1, 0]) == theirs
    by_weight: list[Json] = [[[1, 0], [0, 0]]]
    assert fused(local=local, acquired=[theirs], lam=[1], mask=by_weight) == [[2, 0], [0, 0]]


@given(market=markets())
def test_every_fusion_is_certified_and_stays_between_the_weights_it_is_made_of(
    market: dict[str, Json],
) -> None:
    outcome = FUSION.clear(market, tolerance=1e-9, seed=0)
    assert FUSION.verify(market, outcome).valid


@given(market=markets(), by=st.sampled_from([1e-3, -1e-3]), where=st.integers(0, 11))
def test_a_fusion_with_one_weight_changed_is_not_certified(
    market: dict[str, Json], by: float, where: int
) -> None:
    outcome = FUSION.clear(market, tolerance=1e-9, seed=0)
    weights = np.array(outcome.values["fused"], dtype=float)
    scale = max(1.0, np.abs(np.array(market["local"], dtype=float)).max(), np.abs(weights).max())
    for theirs in np.array(market["acquired"], dtype=float):
        scale = max(scale, np.abs(theirs).max())
    weights.flat[where % weights.size] += by * scale
    changed = Outcome(status=outcome.status, values={"fused": weights.tolist()})
    assert not FUSION.verify(market, changed).valid


def test_a_status_that_hides_a_fusion_is_not_certified() -> None:
    market: dict[str, Json] = {"local": [1.0], "acquired": [[2.0]], "lam": [1]}
    outcome = FUSION.clear(market, tolerance=1e-9, seed=0)
    hidden = Outcome(status=Status.NO_TRADE, values=outcome.values)
    assert not FUSION.verify(market, hidden).valid


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"lam": [1.5]}, "lam[0]", "0 … 1, got 1.5"),
        ({"lam": [-0.1]}, "lam[0]", "0 … 1, got -0.1"),
        ({"lam": [float("nan")]}, "lam[0]", "finite, got nan"),
        ({"lam": []}, "lam", "1 items, got 0"),
        ({"lam": 0.5}, "lam", "a list, got 0.5"),
        ({"acquired": [[1, 2, 3]]}, "acquired[0]", "2 items, got 3"),
        ({"acquired": [[1, float("inf")]]}, "acquired[0][1]", "finite, got inf"),
        ({"acquired": [[1, "2"]]}, "acquired[0][1]", "number, got '2'"),
        ({"acquired": [[1, True]]}, "acquired[0][1]", "number, got True"),
        ({"acquired": [[1, 10**400]]}, "acquired[0][1]", "finite, got about 2**1329"),
        ({"acquired": None}, "acquired", "list"),
        ({"local": []}, "local", "no weights"),
        ({"local": [[1], [2, 3]]}, "local[1]", "1 items, got 2"),
        ({"local": [1, 1e200]}, "local[1]", "got 1e+200"),
        ({"mask": [[1, 2]]}, "mask[0][1]", "true or false"),
        ({"mask": [[1], [1]]}, "mask", "begins [1, 2], got [2, 1]"),
        ({"extra": 1}, "extra", "not a key"),
    ],
)
def test_a_bad_fusion_is_refused_under_its_field(
    changes: dict[str, Json], field: str, reason: str
) -> None:
    market: dict[str, Json] = {"local": [1, 2], "acquired": [[3, 4]], "lam": [0.5], **changes}
    issues = FUSION.validate(market)
    assert [issue.field for issue in issues] == [field]
    assert reason in issues[0].reason
    with pytest.raises(RefusedInputError):
        FUSION.clear(market, tolerance=1e-9, seed=0)


def test_lists_nested_without_end_are_refused() -> None:
    deep: list[Json] = [1]
    for _ in range(5_000):
        deep = [deep]
    for field in ("local", "mask"):
        market: dict[str, Json] = {"local": [1.0], "acquired": [[2.0]], "lam": [1], field: deep}
        assert [issue.field for issue in FUSION.validate(market)] == [field]


def test_a_models_layers_are_fused_each_with_the_sellers_that_supply_it() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    local = {name: generator.normal(size=(3, 4)).astype(np.float32) for name in ("in", "out")}
    first = {name: generator.normal(size=(3, 4)).astype(np.float32) for name in ("in", "out")}
    second = {"in": generator.normal(size=(3, 4)).astype(np.float32)}
    result = fuse_layers(local, [first, second], [0.5, 1.0])
    assert result["in"].dtype == np.float32
    both = local["in"] + (0.5 * (first["in"] - local["in"]) + (second["in"] - local["in"])) / 2
    np.testing.assert_allclose(result["in"], both, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        result["out"], (local["out"] + first["out"]) / 2, rtol=1e-5, atol=1e-6
    )


def test_layers_that_nobody_supplies_stay_as_they_are() -> None:
    local = {"w": np.arange(3.0), "count": np.array(7)}
    result = fuse_layers(local, [{}], [1.0])
    np.testing.assert_array_equal(result["w"], local["w"])
    assert result["w"] is not local["w"]
    assert result["count"] == 7


def test_a_sellers_bad_layer_is_refused_by_its_name() -> None:
    local = {"w": np.zeros(2)}
    with pytest.raises(RefusedInputError, match=r"w: acquired\[0\]\[1\]: must be finite, got nan"):
        fuse_layers(local, [{"w": np.array([0.0, np.nan])}], [1.0])
    with pytest.raises(RefusedInputError, match=r"w: acquired\[0\]: must have the shape"):
        fuse_layers(local, [{"w": np.zeros(3)}], [1.0])
    with pytest.raises(RefusedInputError, match="no counterpart of 'other'"):
        fuse_layers(local, [{"other": np.zeros(3)}], [1.0])
    with pytest.raises(RefusedInputError, match="must be floating point, got int64"):
        fuse(np.array([1, 2]), [np.array([1.0, 2.0])], [1.0])


@pytest.mark.parametrize("unit", [1e-140, 1e-12, 1.0, 1e12])
def test_a_wrong_weight_is_found_at_any_scale_of_weights(unit: float) -> None:
    market: dict[str, Json] = {"local": [unit, 2 * unit], "acquired": [[3 * unit, 0]], "lam": [0.5]}
    outcome = FUSION.clear(market, tolerance=1e-9, seed=0)
    assert FUSION.verify(market, outcome).valid
    wrong = Outcome(status=outcome.status, values={"fused": [2 * unit, 1.01 * unit]})
    assert not FUSION.verify(market, wrong).valid
