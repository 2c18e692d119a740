"""What may be asked of a market that clears by rounds, and of whom it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node.devnet.arms import ARMS
from node.devnet.errors import DevnetError
from node.devnet.play import PAY_SECONDS, broker_config
from node.devnet.processes import flags_of
from node.devnet.spec import RunSpec
from node.protocol.types import Wei

FEE, VALUE = Wei(7), Wei(10**15)


def spec(mechanism: str, **changed: Any) -> RunSpec:
    return RunSpec(
        folder=Path("runs/none"), dataset="digits", agents=3, mechanism=mechanism, **changed
    )


@pytest.mark.parametrize(
    ("mechanism", "changed", "said"),
    [
        ("nash", {"entry_fee": FEE}, "--entry-fee is of --mechanism shapley, not of nash"),
        ("triplewin", {"entry_fee": FEE}, "not of triplewin"),
        ("eeg", {"performance_value": VALUE}, "--performance-value is of --mechanism shapley or"),
        ("shapley", {"producers": 2}, "--producers is of --mechanism triplewin, not of shapley"),
        ("triplewin", {"producers": 4}, "4 producers among 3 agents"),
        ("triplewin", {"producers": 0}, "0 producers among 3 agents"),
    ],
)
def test_an_option_of_another_mechanism_is_refused_by_its_name(
    mechanism: str, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(DevnetError, match=said):
        spec(mechanism, **changed).check()


def test_the_broker_is_told_what_was_asked_for_in_a_process_of_its_own_too() -> None:
    asked = spec("triplewin", performance_value=VALUE, producers=2)
    words = flags_of(broker_config(asked, ARMS["aligned"], seed=0))
    for flag, value in (
        ("--producers", "2"),
        ("--performance-value", str(VALUE)),
        ("--pay-seconds", str(PAY_SECONDS + 3)),
    ):
        assert words[words.index(flag) + 1] == value
    words = flags_of(broker_config(spec("shapley", entry_fee=FEE), ARMS["aligned"], seed=0))
    assert words[words.index("--entry-fee") + 1] == str(FEE)


def test_runs_of_other_mechanisms_are_written_down_as_before_there_were_rounds() -> None:
    named = {"entry_fee", "performance_value", "producers"}
    assert not named & spec("nash").document().keys()
    assert named <= spec("shapley").document().keys()
