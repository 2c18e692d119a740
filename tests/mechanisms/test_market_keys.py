"""The keys that are printed and written down are those that the mechanisms read and state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker_node.mechanisms.base import DEFAULT_TOLERANCE, Json
from broker_node.mechanisms.keys import KEYS
from broker_node.mechanisms.registry import MECHANISMS
from tests.mechanisms.test_independence import MARKETS

WRITTEN = Path(__file__).resolve().parents[2] / "docs" / "mechanisms.md"
EVERY = {key for keys in KEYS.values() for key in (*keys.required, *keys.optional, *keys.outcome)}


def test_every_mechanism_has_its_keys() -> None:
    assert list(KEYS) == list(MECHANISMS)


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_a_market_lacks_its_required_keys_and_no_other(name: str) -> None:
    market: dict[str, Json] = {}
    while True:
        (issue, *_) = MECHANISMS[name].validate(market)
        if issue.reason != "is missing":
            break
        market[issue.field] = None
    assert tuple(market) == KEYS[name].required


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_a_market_knows_its_optional_keys_and_no_other(name: str) -> None:
    required: dict[str, Json] = dict.fromkeys(KEYS[name].required)
    known = set()
    for key in EVERY - required.keys():
        (issue, *_) = MECHANISMS[name].validate({**required, key: None})
        if issue.reason != "is not a key of this mechanism":
            known.add(key)
    assert known == set(KEYS[name].optional)


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_an_outcome_states_its_keys_and_no_other(name: str) -> None:
    told: dict[str, Json] = {}
    for market in MARKETS[name]:
        outcome = MECHANISMS[name].clear(market, tolerance=DEFAULT_TOLERANCE, seed=0)
        told |= outcome.values
    assert tuple(told) == KEYS[name].outcome


def test_the_table_that_is_written_down_is_this_one() -> None:
    rows = {}
    for line in WRITTEN.read_text().splitlines():
        if line.startswith("| `"):
            name, *parts = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:-1])
            rows[name[0]] = [tuple(part) for part in parts]
    assert rows == {
        name: [keys.required, keys.optional, keys.outcome] for name, keys in KEYS.items()
    }
