"""Benches of what is shared by many at once: pooled data, coupled prices, weights for budgets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy.optimize import linprog

from broker_node.mechanisms.base import Market, Outcome
from tests.mechanisms.claim_benches import Bench, Told
from tests.mechanisms.judged import floats
from tests.mechanisms.weight_markets import array, limits_of, weight_markets


class PoolBench(Bench):
    """Parties that pool their data; a gain is money alone, after what each pays in."""

    def markets(self) -> st.SearchStrategy[Told]:
        share = st.floats(0, 1)
        return st.integers(1, 4).flatmap(
            lambda parties: st.fixed_dictionaries(
                {
                    "parties": st.just(parties),
                    "performance_by_bitmask": st.lists(
                        share, min_size=2**parties, max_size=2**parties
                    ).map(lambda rest: [0.0, *rest[1:]]),
                },
                optional={"non_refundable": st.sampled_from([0.0, 0.1])},
            )
        )

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        return floats(outcome.values["net"])

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        return sum(floats(outcome.values["net"]))


class CoupledBench(Bench):
    """Data sellers, then the buyers of each model; a model trades where all its buyers accept."""

    def markets(self) -> st.SearchStrategy[Told]:
        return st.tuples(*[st.integers(1, 3)] * 3).flatmap(lambda shape: self._of(*shape))

    @staticmethod
    def _of(sellers: int, models: int, buyers: int) -> st.SearchStrategy[Told]:
        share, cost = st.floats(0, 0.5, allow_subnormal=False), st.floats(0.01, 10)

        def rows(value: st.SearchStrategy[Any], high: int, wide: int) -> st.SearchStrategy[Any]:
            return st.lists(
                st.lists(value, min_size=wide, max_size=wide), min_size=high, max_size=high
            )

        return st.fixed_dictionaries(
            {
                "shapley": rows(share, sellers, models),
                "delta": st.lists(share, min_size=models, max_size=models),
                "kappa_d": st.lists(cost, min_size=sellers, max_size=sellers),
                "kappa_m": rows(cost, models, buyers),
                "omega": rows(share, models, buyers),
                "reserve": rows(st.floats(1, 500), models, buyers),
            }
        )

    @staticmethod
    def _prices(outcome: Outcome) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield each model that trades, what it pays for data, and what its buyers pay."""
        trades = outcome.values["trades"]
        assert isinstance(trades, list)
        for model in np.flatnonzero(np.array(trades, dtype=bool)):
            data, paid = (
                np.array(outcome.values[key]) for key in ("p_data_to_model", "p_model_to_buyer")
            )
            yield int(model), data[:, model], paid[model]

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        of_sellers = np.zeros(len(truth["kappa_d"]))
        of_buyers = np.zeros(np.shape(truth["reserve"]))
        for model, data, paid in self._prices(outcome):
            of_sellers += data - truth["kappa_d"]
            of_buyers[model] = truth["reserve"][model] - paid
        return [*of_sellers.tolist(), *of_buyers.ravel().tolist()]

    def lies(self, truth: Told) -> Iterator[tuple[int, Told]]:
        sellers = len(truth["kappa_d"])
        for seller, factor in itertools.product(range(sellers), (0.5, 0.9, 1.1, 2.0)):
            told = list(truth["kappa_d"])
            told[seller] *= factor
            yield seller, {**truth, "kappa_d": told}

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        """What any model pays for its data over what its buyers pay for it."""
        return max((data.sum() - paid.sum() for _, data, paid in self._prices(outcome)), default=0)


class WeightBench(Bench):
    """Buyers with budgets that buy weights, as `weight_markets` draws them.

    Money that is kept is worth nothing to a buyer. Amounts are relative: an outcome is as exact
    as its gap, of which utilities are as the square root.
    """

    tolerance = 1e-3

    def markets(self) -> st.SearchStrategy[Told]:
        return weight_markets(most=3)

    @staticmethod
    def _worth(truth: Told, buyer: int, bundle: np.ndarray) -> float:
        """Return what `bundle` [seller][type] is worth to a buyer, at most its limit."""
        total = 0.0
        for demand, capacity, had in zip(
            array(truth["demand"])[buyer], array(truth["capacity"]), bundle, strict=True
        ):
            wanted = demand > 0
            if wanted.any() and (capacity[wanted] > 0).all():
                total += float((had[wanted] / demand[wanted]).min())
        return min(total, float(limits_of(truth)[buyer]))

    def _bundles(self, told: Told, outcome: Outcome) -> np.ndarray:
        """Return what each buyer got of [seller][type]: x of what it said that it demands."""
        return np.asarray(array(outcome.values["x"])[:, :, None] * array(told["demand"]))

    def clear(self, market: Market) -> Outcome:
        outcome = super().clear(market)
        bundles = self._bundles(dict(market), outcome).tolist()
        return Outcome(status=outcome.status, values={**outcome.values, "bundles": bundles})

    def gains(self, truth: Told, outcome: Outcome) -> list[float]:
        """What it has, or what it is over its budget."""
        bundles, kept = array(outcome.values["bundles"]), floats(outcome.values["surplus"])
        return [
            self._worth(truth, buyer, bundle) if left >= -1e-6 * budget else left / budget
            for buyer, (bundle, left, budget) in enumerate(
                zip(bundles, kept, truth["budget"], strict=True)
            )
        ]

    def lies(self, truth: Told) -> Iterator[tuple[int, Told]]:
        """Of how much of each type it needs; limits stay, which are in its own units."""
        demand = array(truth["demand"])
        for buyer, factor in itertools.product(range(len(demand)), (0.3, 0.7, 1.5, 4.0)):
            for kind in range(demand.shape[2]):
                told = demand.copy()
                told[buyer, :, kind] *= factor
                yield buyer, {**truth, "demand": told.tolist()}

    def deficit(self, truth: Told, outcome: Outcome) -> float:
        bundles, prices = array(outcome.values["bundles"]), array(outcome.values["prices"])
        received = float((bundles.sum(axis=0) * prices).sum())
        paid = sum(truth["budget"]) - sum(floats(outcome.values["surplus"]))
        return (received - paid) / sum(truth["budget"])

    def envy(self, truth: Told, outcome: Outcome) -> float:
        bundles, budgets = array(outcome.values["bundles"]), truth["budget"]
        own = self.gains(truth, outcome)
        worst = 0.0
        for me, other in itertools.permutations(range(len(own)), 2):
            wanted = self._worth(truth, me, budgets[me] / budgets[other] * bundles[other])
            worst = max(worst, (wanted - own[me]) / max(wanted, 1e-12))
        return worst

    def forgone(self, truth: Told, outcome: Outcome) -> float:
        """The most that utilities can rise together, none of them falling: a linear programme."""
        demand, capacity = array(truth["demand"]), array(truth["capacity"])
        buyers, sellers, types = demand.shape
        own = np.array(self.gains(truth, outcome)) * (1 - 1e-7)
        edges = [
            (s, j)
            for s, j in itertools.product(range(buyers), range(sellers))
            if (demand[s, j] > 0).any() and (capacity[j][demand[s, j] > 0] > 0).all()
        ]
        used = np.zeros((sellers * types, len(edges)))
        had = np.zeros((buyers, len(edges)))
        for e, (s, j) in enumerate(edges):
            used[j * types : (j + 1) * types, e] = demand[s, j]
            had[s, e] = 1.0
        limits = limits_of(truth)
        capped = np.isfinite(limits)
        found = linprog(
            -had.sum(axis=0),
            A_ub=np.vstack([used, -had, had[capped]]),
            b_ub=np.concatenate([capacity.ravel(), -own, limits[capped]]),
        )
        assert found.status == 0, found.message
        return float((-found.fun - own.sum()) / own.sum())

    def under_share(self, truth: Told, outcome: Outcome) -> float:
        capacity, budgets = array(truth["capacity"]), np.array(truth["budget"])
        worst = 0.0
        for buyer, own in enumerate(self.gains(truth, outcome)):
            alone = self._worth(truth, buyer, budgets[buyer] / budgets.sum() * capacity)
            worst = max(worst, (alone - own) / max(alone, 1e-12))
        return worst
