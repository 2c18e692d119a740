from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from broker_node.mechanisms.registry import MECHANISMS

ROOT = Path(__file__).resolve().parents[2]


def test_mechanisms_are_registered_under_their_own_names() -> None:
    ours = {"nash", "bayesian-ask", "gain-bounds", "procurement", "mcafee", "kplus1", "vcg"}
    assert ours <= set(MECHANISMS)
    assert all(name == mechanism.name for name, mechanism in MECHANISMS.items())


def test_the_registry_imports_nothing_that_takes_long() -> None:
    code = (
        "import sys, broker_node.mechanisms.registry\n"
        "print(sorted({'scipy', 'torch', 'web3', 'cvxpy', 'trio'} & sys.modules.keys()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout.strip() == "[]"


def test_an_empty_market_is_refused_by_every_mechanism_under_a_name() -> None:
    for mechanism in MECHANISMS.values():
        (issue,) = mechanism.validate({})
        assert issue.field
        assert issue.reason
