from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from broker_node.mechanisms.base import RefusedInputError, Status
from broker_node.mechanisms.gain_cache import OnceGain
from broker_node.mechanisms.replication import coverage_market, monotone_market
from broker_node.mechanisms.shapley import clear_sampled
from broker_node.mechanisms.shapley_sampling import estimate, least_evaluations, student_quantile
from broker_node.mechanisms.shapley_values import replication_robust

Floats = npt.NDArray[np.float64]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def gain_of(game: Floats) -> OnceGain:
    return OnceGain(lambda subset: float(game[subset]))


@pytest.mark.parametrize("market", [coverage_market, monotone_market])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_hold_the_exact_value_as_often_as_they_say(
    market: object, confidence: float
) -> None:
    assert callable(market)
    parties, markets, inside = 8, 120, 0
    for seed in range(markets):
        game = market(parties, generator(seed))
        found = estimate(gain_of(game), parties, evaluations=500, seed=seed, confidence=confidence)
        exact = replication_robust(game)
        inside += int(((found.low <= exact) & (exact <= found.high)).sum())
    # 960 intervals, eight of a market not independent: two standard errors of 120 are 0.07, 0.04
    assert inside / (parties * markets) == pytest.approx(
        confidence, abs=2 * np.sqrt(confidence * (1 - confidence) / markets)
    )


@pytest.mark.parametrize("freedom", [7, 20, 1000])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.9995])
def test_quantiles_are_students(probability: float, freedom: int) -> None:
    exact = float(stats.t.ppf(probability, freedom))
    assert student_quantile(probability, freedom) == pytest.approx(exact, rel=0.01)


def test_intervals_shrink_as_the_square_root_of_the_evaluations() -> None:
    game = monotone_market(10, generator(3))
    widths = []
    for evaluations in (1600, 6400, 25600):
        found = estimate(gain_of(game), 10, evaluations=evaluations, seed=1)
        widths.append(float((found.high - found.low).mean()))
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.2)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.2)


def test_estimates_sum_to_the_value_of_the_whole() -> None:
    game = monotone_market(9, generator(4))
    found = estimate(gain_of(game), 9, evaluations=400, seed=2)
    assert found.psi.sum() == pytest.approx(replication_robust(game).sum(), abs=1e-10)


def test_an_additive_gain_without_synergy_in_size_is_found_with_narrow_intervals() -> None:
    # G = |S|/(1 + |S|)·c makes (1 + |S|)·G additive: every order tells the same
    found = estimate(
        OnceGain(lambda s: 0.5 * s.bit_count() / (1 + s.bit_count())), 20, evaluations=800, seed=0
    )
    assert found.psi == pytest.approx(np.full(20, 0.5 - 0.25))
    assert (found.high - found.low).max() < 1e-12


def test_a_budget_is_kept_and_every_subset_is_asked_for_once() -> None:
    asked: list[int] = []
    game_seed = generator(7)
    weight = game_seed.random(40)

    def gain(subset: int) -> float:
        asked.append(subset)
        return float(weight[: 4 + subset.bit_count()].sum() / weight.sum())

    once = OnceGain(gain)
    found = estimate(once, 30, evaluations=3000, seed=5)
    again = estimate(once, 30, evaluations=3000, seed=5)
    assert len(asked) == len(set(asked)) == found.evaluations <= 3000
    np.testing.assert_array_equal(found.psi, again.psi)


def test_a_market_of_sixteen_is_approximate_balanced_and_inside_its_intervals() -> None:
    game = coverage_market(16, generator(11), examples=200)
    outcome = clear_sampled(gain_of(game), 16, evaluations=4000, seed=0, confidence=0.999)
    values = {key: np.array(v, dtype=float) for key, v in outcome.values.items() if key != "reason"}
    exact = replication_robust(game)
    assert outcome.status is Status.APPROXIMATE
    assert values["net"].sum() == pytest.approx(0, abs=1e-9)
    assert (values["psi_low"] <= exact).all()
    assert (exact <= values["psi_high"]).all()
    payout = values["gain"].sum() * exact / exact.sum()
    assert (values["payout_low"] <= payout).all()
    assert (payout <= values["payout_high"]).all()
    # the cost of 4,000 models instead of 65,535
    assert values["evaluations"] <= 4000
    assert np.abs(values["psi"] / exact - 1).max() < 0.03


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"parties": 2}, "parties"),
        ({"parties": 257}, "parties"),
        ({"evaluations": 50}, "evaluations"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_bad_sampling_is_refused_under_its_field(arguments: dict[str, float], field: str) -> None:
    with pytest.raises(RefusedInputError) as refused:
        estimate(
            OnceGain(lambda _: 0.5),
            **{"parties": 13, "evaluations": 1000, "seed": 0, **arguments},  # type: ignore[arg-type]
        )
    assert refused.value.field == field


def test_the_smallest_budget_is_enough() -> None:
    for parties in (3, 13, 40):
        least = least_evaluations(parties)
        found = estimate(
            OnceGain(lambda s: 0.01 * s.bit_count()), parties, evaluations=least, seed=0
        )
        assert found.evaluations <= least
        with pytest.raises(RefusedInputError, match=f"evaluations: must be at least {least}"):
            estimate(OnceGain(lambda _: 0.5), parties, evaluations=least - 1, seed=0)
