from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from broker_node.mechanisms.base import Json, Outcome, RefusedInputError, Status
from broker_node.mechanisms.bayesian_ask import (
    BayesianAsk,
    best_ask,
    expected_profit,
    learned_ask,
)
from broker_node.mechanisms.priors import (
    Empirical,
    Exponential,
    LogNormal,
    MixtureNormal,
    Pareto,
    Prior,
    Truncated,
    Uniform,
    normal,
)
from tests.mechanisms.judged import cleared, needs_every_figure, number, refuses

ASK = BayesianAsk()
CASES: list[tuple[Prior, object]] = [
    (Uniform(1.0, 5.0), stats.uniform(1, 4)),
    (Exponential(0.7), stats.expon(scale=1 / 0.7)),
    (Pareto(2.0, 3.0), stats.pareto(3.0, scale=2.0)),
    (normal(3.0, 1.5), stats.norm(3.0, 1.5)),
    (LogNormal(0.5, 0.6), stats.lognorm(0.6, scale=math.exp(0.5))),
]


def clear(**inputs: Json) -> Outcome:
    return ASK.clear({"support": None, "cost": 0, **inputs}, tolerance=1e-9, seed=0)


def price(**inputs: Json) -> float:
    found = clear(**inputs).values["price"]
    assert isinstance(found, float | int)
    return float(found)


@pytest.mark.parametrize(("prior", "reference"), CASES)
def test_tails_and_quantiles_are_those_of_scipy(
    prior: Prior, reference: stats.rv_continuous
) -> None:
    for p in (-1.0, 0.0, 1.5, 2.0, 3.3, 7.0):
        assert prior.tail(p) == pytest.approx(float(reference.sf(p)), abs=1e-12)
    for q in (0.001, 0.3, 0.99):
        assert prior.quantile(q) == pytest.approx(float(reference.ppf(q)), rel=1e-9)


@pytest.mark.parametrize("prior", [case[0] for case in CASES])
@pytest.mark.parametrize("support", [None, (1.5, 4.0)])
@pytest.mark.parametrize(("start", "end"), [(-1.0, 3.0), (2.0, 3.5), (2.5, 9.0)])
def test_the_area_under_the_tail_is_its_integral(
    prior: Prior, support: tuple[float, float] | None, start: float, end: float
) -> None:
    believed = prior if support is None else Truncated(prior, *support)
    kinks = [p for p in (0.0, 1.0, 1.5, 2.0, 4.0, 5.0) if start < p < end]
    area, _ = integrate.quad(believed.tail, start, end, points=kinks or None)
    assert believed.tail_area(start, end) == pytest.approx(area, rel=1e-8)


@pytest.mark.parametrize("prior", [case[0] for case in CASES])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_expected_profit_is_the_mean_over_buyers(prior: Prior, share: float) -> None:
    generator = np.random.Generator(np.random.Philox(5))
    buyers = np.array([prior.quantile(float(u)) for u in generator.uniform(size=20_000)])
    ask, cost = 2.4, 0.8
    paid = share * buyers + (1 - share) * ask
    simulated = float(np.where(buyers >= ask, paid - cost, 0.0).mean())
    assert expected_profit(prior, ask, cost=cost, share=share) == pytest.approx(simulated, rel=0.05)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"prior": {"kind": "uniform", "low": 0, "high": 1}}, 0.5),
        ({"prior": {"kind": "uniform", "low": 0.8, "high": 1}}, 0.8),
        ({"prior": {"kind": "uniform", "low": 0, "high": 1}, "cost": 0.5}, 0.75),
        ({"prior": {"kind": "uniform", "low": 0, "high": 1}, "mode": "split_difference"}, 1 / 3),
        (
            {"prior": {"kind": "uniform", "low": 0, "high": 2}, "support": [0, 1]},
            0.5,
        ),
        ({"prior": {"kind": "exponential", "rate": 2}, "cost": 1}, 1.5),
        ({"prior": {"kind": "exponential", "rate": 2}, "support": [3, None]}, None),
        ({"prior": {"kind": "pareto", "xm": 1, "alpha": 3}, "cost": 2}, 3.0),
        ({"prior": {"kind": "pareto", "xm": 5, "alpha": 3}, "cost": 2}, 5.0),
        ({"prior": {"kind": "empirical", "samples": [1, 2, 3, 4]}}, 2.0),
        ({"prior": {"kind": "empirical", "samples": [1, 1, 1, 10]}}, 10.0),
    ],
)
def test_known_prices_of_the_table(inputs: dict[str, Json], expected: float | None) -> None:
    if expected is None:
        with pytest.raises(RefusedInputError):
            price(**inputs)
    else:
        assert price(**inputs) == pytest.approx(expected, rel=1e-6)


def test_the_capped_exponential_is_lamberts() -> None:
    from scipy.special import lambertw

    rate, cost, top = 1.3, 0.2, 2.0
    expected = cost + (1 - float(lambertw(math.exp(1 - rate * (top - cost))).real)) / rate
    prior: Json = {"kind": "exponential", "rate": rate}
    assert price(prior=prior, support=[0, top], cost=cost) == pytest.approx(expected)


def test_a_heavy_pareto_has_its_price_only_when_it_is_cut_off() -> None:
    alpha, top = 0.6, 9.0
    prior: Json = {"kind": "pareto", "xm": 1, "alpha": alpha}
    # with the mass above the support cut off, the tail is that of the table's row
    found = price(prior=prior, support=[1, top])
    assert found == pytest.approx(top * (1 - alpha) ** (1 / alpha), rel=1e-5)
    with pytest.raises(RefusedInputError, match="alpha"):
        price(prior=prior)


priors = st.one_of(
    st.builds(lambda low, width: Uniform(low, low + width), st.floats(0, 5), st.floats(0.1, 5)),
    st.builds(Exponential, st.floats(0.1, 5)),
    st.builds(Pareto, st.floats(0.1, 3), st.floats(1.2, 6)),
    st.builds(normal, st.floats(-1, 4), st.floats(0.1, 3)),
    st.builds(LogNormal, st.floats(-1, 1), st.floats(0.1, 1)),
    st.builds(
        lambda weight, gap: MixtureNormal(((weight, 1.0, 0.2), (1 - weight, 1.0 + gap, 0.3))),
        st.floats(0.05, 0.95),
        st.floats(0.5, 8),
    ),
    st.lists(st.floats(0, 10), min_size=1, max_size=30).map(Empirical),
)


@given(
    prior=priors,
    cut=st.none() | st.tuples(st.floats(0, 2), st.floats(0.5, 6)),
    cost=st.floats(0, 3),
    share=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)
@settings(max_examples=25, deadline=None)
def test_no_ask_on_a_fine_grid_earns_more(
    prior: Prior, cut: tuple[float, float] | None, cost: float, share: float
) -> None:
    believed = prior
    if cut is not None:
        believed = Truncated(prior, cut[0], cut[0] + cut[1])
        if not believed.mass > 1e-6:
            return
    ask = best_ask(believed, cost=cost, share=share)
    assert ask >= cost
    earned = expected_profit(believed, ask, cost=cost, share=share)
    top = believed.high if math.isfinite(believed.high) else believed.quantile(0.99999)
    for rival in np.linspace(cost, max(top, cost), 400):
        other = expected_profit(believed, float(rival), cost=cost, share=share)
        assert other <= earned + 1e-6 * max(abs(earned), 1e-6)


@given(share=st.floats(0, 1), cost=st.floats(0, 0.9))
def test_the_first_order_condition_of_split_difference_holds(share: float, cost: float) -> None:
    ask = best_ask(Uniform(0.0, 1.0), cost=cost, share=share)
    assert ask - cost == pytest.approx((1 - share) * (1 - ask), abs=1e-9)


def test_a_seller_that_cannot_earn_asks_for_its_cost() -> None:
    outcome = clear(prior={"kind": "uniform", "low": 0, "high": 1}, cost=3)
    assert outcome.status is Status.NO_TRADE
    assert outcome.values == {"price": 3.0, "revenue": 0.0}


def test_a_valuation_that_is_known_for_certain_is_asked_for() -> None:
    assert price(prior={"kind": "empirical", "samples": [1, 1]}) == 1


def test_where_no_observation_covers_the_cost_the_cost_is_asked() -> None:
    prior: Json = {"kind": "empirical", "samples": [1, 9]}
    assert price(prior=prior, support=[0, 5], cost=3) == 3


def test_the_higher_of_two_humps_can_be_the_better_one() -> None:
    components: list[Json] = [[0.7, 1.0, 0.05], [0.3, 10.0, 0.05]]
    prior: Json = {"kind": "mixture_normal", "components": components}
    assert price(prior=prior) == pytest.approx(9.9, abs=0.1)


@pytest.mark.parametrize(("count", "recovered"), [(10, 0.85), (100, 0.96)])
def test_learning_from_few_trades_recovers_most_of_the_revenue(
    count: int, recovered: float
) -> None:
    generator = np.random.Generator(np.random.Philox(3))
    uniform = Uniform(0.0, 1.0)
    earned = [
        expected_profit(
            uniform, learned_ask(generator.uniform(size=count), cost=0.0), cost=0.0, share=0.0
        )
        for _ in range(400)
    ]
    assert float(np.mean(earned)) / 0.25 > recovered


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("top", [1.0, 5.0])
def test_the_search_ends_where_the_first_order_condition_holds(keep: float, top: float) -> None:
    for prior, reference in ((normal(1.0, 0.7), stats.norm(1, 0.7)),):
        cost = 0.4
        ask = best_ask(prior, cost=cost, share=1 - keep)
        assert ask - cost == pytest.approx(keep * reference.sf(ask) / reference.pdf(ask), rel=1e-9)
        capped = best_ask(Truncated(prior, 0.0, top), cost=cost, share=1 - keep)
        inside = reference.sf(capped) - reference.sf(top)
        assert capped - cost == pytest.approx(keep * inside / reference.pdf(capped), rel=1e-9)


def test_a_best_ask_far_out_in_the_tail_is_found() -> None:
    wide = stats.lognorm(9.0)
    ask = best_ask(LogNormal(0.0, 9.0), cost=0.0)
    assert ask == pytest.approx(wide.sf(ask) / wide.pdf(ask), rel=1e-9)
    assert ask > float(wide.isf(1e-12))
    far = best_ask(normal(0.0, 1.0), cost=20.0)
    assert far - 20 == pytest.approx(stats.norm.sf(far) / stats.norm.pdf(far), rel=1e-9)


def test_a_cap_close_to_the_cost_leaves_a_uniform_prior() -> None:
    prior: Json = {"kind": "exponential", "rate": 1e-12}
    assert price(prior=prior, support=[0, 1]) == pytest.approx(0.5, rel=1e-9)


def test_a_support_in_the_far_lower_tail_is_priced_as_exactly() -> None:
    # by symmetry the truncated tail is a distribution function of the upper tail
    ask = best_ask(Truncated(normal(0.0, 1.0), -10.0, -9.0), cost=-9.5)
    inside = stats.norm.cdf(-9.0) - stats.norm.cdf(ask)
    assert ask + 9.5 == pytest.approx(inside / stats.norm.pdf(ask), rel=1e-9)


@pytest.mark.parametrize(("share", "alpha"), [(0.0, 0.3), (0.2, 0.3), (0.8, 0.5)])
def test_a_heavy_pareto_that_is_cut_off_has_a_formula(share: float, alpha: float) -> None:
    prior = Truncated(Pareto(1.0, alpha), 0.0, 9.0)
    ask = best_ask(prior, cost=0.0, share=share)
    searched = best_ask(prior, cost=1e-9, share=share)
    assert ask == pytest.approx(searched, rel=1e-6)
    if alpha > 1 - share:
        assert ask == 1.0
    else:
        assert ask == pytest.approx(9 * (1 - alpha / (1 - share)) ** (1 / alpha), rel=1e-12)


def test_a_pareto_of_alpha_one_has_a_best_ask_only_for_a_seller_without_cost() -> None:
    prior: Json = {"kind": "pareto", "xm": 2, "alpha": 1}
    assert price(prior=prior) == 2
    assert price(prior=prior, cost=-1) == 2
    for more in ({"cost": 0.1}, {"mode": "split_difference"}):
        inputs: dict[str, Json] = {"prior": prior, "support": None, "cost": 0, **more}
        assert "alpha" in refuses(ASK, inputs, "prior.alpha")


@given(
    samples=st.lists(st.floats(0, 10) | st.integers(0, 4).map(float), min_size=1, max_size=40),
    cost=st.floats(-1, 5),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_of_observations_the_one_that_earns_the_most_is_asked(
    samples: list[float], cost: float, share: float
) -> None:
    def earned(ask: float) -> float:
        return sum(share * v + (1 - share) * ask - cost for v in samples if v >= ask)

    ask = best_ask(Empirical(samples), cost=cost, share=share)
    best = max((earned(v) for v in samples if v >= cost), default=0.0)
    assert earned(ask) == pytest.approx(max(best, 0.0), abs=1e-9)


def test_many_observations_are_priced_and_checked() -> None:
    generator = np.random.Generator(np.random.Philox(8))
    drawn = generator.uniform(0, 1, 200_000).tolist()
    prior: Json = {"kind": "empirical", "samples": drawn}
    for mode in ("take_it_or_leave_it", "split_difference"):
        market: dict[str, Json] = {"prior": prior, "support": [0, 1], "cost": 0, "mode": mode}
        found = number(cleared(ASK, market).values["price"])
        assert found == pytest.approx(0.5 if mode.startswith("take") else 1 / 3, abs=0.03)


def test_each_figure_must_be_stated() -> None:
    prior: Json = {"kind": "exponential", "rate": 1}
    needs_every_figure(ASK, {"prior": prior, "support": None, "cost": 0})


def test_what_one_buyer_in_ten_would_pay_is_not_learned() -> None:
    samples = [1.0] * 9 + [100.0]
    assert best_ask(Empirical(samples), cost=0.0) == 100
    assert learned_ask(np.array(samples), cost=0.0) == 1


def test_the_certificate_recomputes_the_price() -> None:
    inputs: dict[str, Json] = {
        "prior": {"kind": "lognormal", "mu": 0, "sigma": 0.5},
        "support": None,
        "cost": 0.2,
        "mode": "split_difference",
        "k": 0.3,
    }
    outcome = ASK.clear(inputs, tolerance=1e-9, seed=0)
    assert ASK.verify(inputs, outcome).valid
    asked = outcome.values["price"]
    assert isinstance(asked, float)
    for factor in (0.7, 1.3):
        wrong = Outcome(status=Status.TRADE, values={**outcome.values, "price": asked * factor})
        assert not ASK.verify(inputs, wrong).valid


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prior": 3}, "prior"),
        ({"prior": {"kind": "cauchy"}}, "prior.kind"),
        ({"prior": {"kind": "uniform", "low": 1, "high": 1}}, "prior.high"),
        ({"prior": {"kind": "uniform", "low": 1}}, "high"),
        ({"prior": {"kind": "exponential", "rate": 0}}, "prior.rate"),
        ({"prior": {"kind": "normal", "mu": 0, "sigma": -1}}, "prior.sigma"),
        ({"prior": {"kind": "empirical", "samples": []}}, "prior.samples"),
        ({"prior": {"kind": "mixture_normal", "components": []}}, "prior.components"),
        ({"prior": {"kind": "mixture_normal", "components": [[1, 2]]}}, "prior.components[0]"),
        ({"prior": {"kind": "lognormal", "mu": 0, "sigma": 1e3}}, "prior.sigma"),
        ({"prior": {"kind": "lognormal", "mu": -1e3, "sigma": 1}}, "prior.mu"),
        ({"prior": {"kind": "exponential", "rate": 1e-200}}, "prior.rate"),
        ({"prior": {"kind": "pareto", "xm": 1, "alpha": 0.5}}, "prior.alpha"),
        ({"prior": {"kind": "empirical", "samples": [1, float("nan")]}}, "prior.samples[1]"),
        (
            {"prior": {"kind": "mixture_normal", "components": [[0, 1, 2]]}},
            "prior.components[0][0]",
        ),
        (
            {"prior": {"kind": "mixture_normal", "components": [[1, 1, 1]] * 101}},
            "prior.components",
        ),
        ({"prior": {"kind": "empirical", "samples": [1]}, "support": [2, 3]}, "support"),
        ({"cost": float("-inf")}, "cost"),
        ({"support": [2, 1]}, "support"),
        ({"support": [2, None]}, "support[1]"),
        ({"support": [8, 9]}, "support"),
        ({"mode": "haggle"}, "mode"),
        ({"k": 2}, "k"),
        ({"cost": None}, "cost"),
    ],
)
def test_a_refused_input_names_its_field(change: dict[str, Json], field: str) -> None:
    inputs: dict[str, Json] = {
        "prior": {"kind": "uniform", "low": 0, "high": 1},
        "support": None,
        "cost": 0,
        **change,
    }
    assert [issue.field for issue in ASK.validate(inputs)] == [field]
