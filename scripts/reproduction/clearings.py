"""The weight market's clearings: five schemes on measured demands, and how long they take."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from broker_node.mechanisms.base import Mechanism
from broker_node.mechanisms.eeg import ExtendedEisenbergGale
from broker_node.mechanisms.eg import EisenbergGale
from broker_node.mechanisms.max_min import MaxMin
from broker_node.mechanisms.proportional import Proportional
from broker_node.mechanisms.social_welfare import SocialWelfare
from broker_node.mechanisms.weight_market.market import read
from broker_node.mechanisms.weight_market.metrics import (
    envy_freeness_index,
    proportional_fairness_index,
)
from node.data.streams import stream
from scripts.reproduction import demands as demanded
from scripts.reproduction.demands import BUYERS, WHOLE, demands, market, measured
from scripts.reproduction.engine import Json, ReproductionError
from scripts.reproduction.seeds import Given

SCHEMES: Final[dict[str, Mechanism]] = {
    "EEG": ExtendedEisenbergGale(),
    "EG": EisenbergGale(),
    "PS": Proportional(),
    "SWM": SocialWelfare(),
    "MMF": MaxMin(),
}
"""By the paper's names."""
SELLERS: Final = 14
COUNTS: Final = (5, 10, 14, 20, 30, 40, 50, 60)
"""Sellers of Figures 2b, 3a and 3b."""
PRIORITY: Final = 2.0
"""SP 7's budget in Figure 2c."""
TOLERANCE: Final = 1e-8
EQUAL_TO: Final = 1e-6
"""Relative; utilities closer than this are equal."""
TIMED_BUYERS: Final = (8, 32, 128, 512)
TIMED_SELLERS: Final = (5, 20, 40, 200)
TIMINGS: Final = 3


def settings(_variant: str) -> Json:
    return {
        **demanded.settings(),
        "sellers": SELLERS,
        "counts": list(COUNTS),
        "priority": PRIORITY,
        "tolerance": TOLERANCE,
    }


def cleared(name: str, inputs: dict[str, Any]) -> Json:
    """Return utilities, and the two indices, of one clearing.

    Raises `ReproductionError` if its certificate fails.
    """
    mechanism = SCHEMES[name]
    if name in {"EEG", "EG"}:
        inputs = {**inputs, "price_ranges": False}
    outcome = mechanism.clear(inputs, tolerance=TOLERANCE, seed=0)
    certificate = mechanism.verify(inputs, outcome)
    if not certificate.valid:
        raise ReproductionError(f"the certificate of {name} fails: {certificate.violations}")
    known = read({key: inputs[key] for key in ("demand", "budget", "capacity", "max_utility")})
    x_SJ = np.array(outcome.values["x"], dtype=np.float64)
    utility = np.array(outcome.values["utility"], dtype=np.float64)
    return {
        "utility": [round(float(one), 6) for one in utility],
        "envy_freeness": envy_freeness_index(known, x_SJ),
        "proportional_fairness": proportional_fairness_index(known, x_SJ).tolist(),
    }


def play(seed: int, given: Given) -> Json:
    """Clear the markets of one draw of the parties' rows."""
    gain_SJR = measured(seed, given.data_folder, max(COUNTS))
    demand_SJR = demands(gain_SJR)
    doubled = [1.0] * (BUYERS - 1) + [PRIORITY]
    return {
        "gain": {"mean": float(gain_SJR.mean()), "of_buyers": gain_SJR.mean(axis=(1, 2)).tolist()},
        "by_sellers": {
            str(count): {name: cleared(name, market(demand_SJR, count)) for name in SCHEMES}
            for count in COUNTS
        },
        "doubled": cleared("EEG", market(demand_SJR, SELLERS, doubled))["utility"],
    }


def timed(_given: Given) -> Json:
    """Return the processor seconds of EEG by sellers and buyers: the least of a few."""
    found: Json = {"seconds": {}}
    for sellers in TIMED_SELLERS:
        found["seconds"][str(sellers)] = {}
        for buyers in TIMED_BUYERS:
            inputs = random_market(buyers, sellers)
            seconds = []
            for _ in range(TIMINGS):
                start = time.process_time()
                SCHEMES["EEG"].clear(inputs, tolerance=TOLERANCE, seed=0)
                seconds.append(time.process_time() - start)
            found["seconds"][str(sellers)][str(buyers)] = min(seconds)
    return found


def random_market(buyers: int, sellers: int) -> dict[str, Any]:
    """Return a market whose demands are drawn uniformly about those of an average buyer."""
    drawn = stream(71, buyers, sellers).uniform(0.5, 1.5, (buyers, sellers, 3)) / WHOLE
    inputs = market(np.asarray(drawn), sellers)
    return {**inputs, "price_ranges": False}
