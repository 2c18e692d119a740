"""A certificate that ran the code it judges would confirm its mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import broker_node.mechanisms as package
from broker_node.mechanisms.base import Json
from broker_node.mechanisms.registry import MECHANISMS

FOLDER = str(Path(str(package.__file__)).parent)
PLAIN = {"base.py", "reading.py", "stated.py"}
"""What has no rule of a mechanism in it."""
WEIGHTS: dict[str, Json] = {
    "demand": [[[1.0, 2.0], [2.0, 1.0]], [[2.0, 1.0], [1.0, 3.0]]],
    "budget": [1.0, 2.0],
    "capacity": [[1.0, 1.0], [2.0, 1.0]],
    "max_utility": [None, 0.4],
}
MARKETS: dict[str, list[Any]] = {
    "nash": [
        {"v_a_own": 1, "v_a_other": 4, "v_b_own": 2, "v_b_other": 9, "fee": 0.1},
        {"v_a_own": 5, "v_a_other": 0, "v_b_own": 2, "v_b_other": 1},
    ],
    "bayesian-ask": [
        {"prior": prior, "support": support, "cost": 0.25, "mode": mode}
        for prior, support in (
            ({"kind": "uniform", "low": 0, "high": 1}, None),
            ({"kind": "exponential", "rate": 2}, [0, 3]),
            ({"kind": "pareto", "xm": 1, "alpha": 2.5}, None),
            ({"kind": "normal", "mu": 1, "sigma": 1}, None),
            ({"kind": "lognormal", "mu": 0, "sigma": 1}, [0.1, 5]),
            ({"kind": "mixture_normal", "components": [[1, 0, 1], [2, 3, 1]]}, None),
            ({"kind": "empirical", "samples": [1, 2, 3]}, None),
        )
        for mode in ("take_it_or_leave_it", "split_difference")
    ],
    "gain-bounds": [{"alpha": 0.4, "beta": 0.6, "delta_a": 1.3}],
    "procurement": [{"cost": [1, 2, 3], "value": [3, 2, 1], "budget": 5}],
    "mcafee": [{"bids": [9, 8, 4.6, 2], "asks": [1, 2, 4, 8]}],
    "kplus1": [{"bids": [3, 9, 5], "copies": 1, "reserve": 4}],
    "vcg": [{"values": [[10, 0], [8, 5], [0, 4]]}],
    "fusion": [{"local": [1, 2], "acquired": [[3, 4]], "lam": [0.5], "mask": [[1, 0]]}],
    "shapley": [{"parties": 2, "performance_by_bitmask": [0, 0.5, 0.7, 0.9], "ceiling": 1}],
    "triplewin": [
        {
            "shapley": [[0.1], [0.2]],
            "delta": [0.5],
            "kappa_d": [1, 2],
            "kappa_m": [[4, 8]],
            "omega": [[0.5, 0.5]],
            "reserve": [[None, 90]],
        }
    ],
    **{name: [WEIGHTS] for name in ("eeg", "eg", "proportional", "social-welfare", "max-min")},
}


def code_run_by(call: Callable[[], Any]) -> tuple[set[CodeType], Any]:
    """Return the functions of the mechanisms that a call runs, and what it returns."""
    ran: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(FOLDER):
            ran.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        answer = call()
    finally:
        sys.setprofile(before)
    return ran, answer


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_clearing_and_checking_share_nothing_but_the_reading_of_inputs(name: str) -> None:
    mechanism = MECHANISMS[name]
    for market in MARKETS[name]:
        reading, issues = code_run_by(partial(mechanism.validate, market))
        assert issues == []
        clear = partial(mechanism.clear, market, tolerance=1e-9, seed=0)
        clearing, outcome = code_run_by(clear)
        checking, certificate = code_run_by(partial(mechanism.verify, market, outcome))
        assert certificate.valid, certificate.violations
        shared = {
            f"{Path(code.co_filename).name}:{code.co_qualname}"
            for code in (clearing & checking) - reading
            if Path(code.co_filename).name not in PLAIN
        }
        assert shared == set()


def test_every_mechanism_is_looked_at() -> None:
    assert set(MARKETS) == set(MECHANISMS)
