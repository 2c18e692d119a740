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


def test_no_module_of_the_mechanisms_imports_what_takes_long() -> None:
    code = (
        "import importlib, pkgutil, sys, broker_node.mechanisms as package\n"
        "found = pkgutil.walk_packages(package.__path__, package.__name__ + '.')\n"
        "names = [importlib.import_module(one.name).__name__ for one in found]\n"
        "assert 'broker_node.mechanisms.registry' in names and len(names) > 30, names\n"
        "slow = {'scipy', 'torch', 'web3', 'cvxpy', 'trio', 'libp2p', 'sklearn', 'matplotlib'}\n"
        "print(sorted(slow & sys.modules.keys()))"
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
