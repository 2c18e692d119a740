"""All that one call gave may be quoted, however much it is; of older calls enough is kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from broker_node.calls.call import Closed
from broker_node.calls.clearing import ClearedCall, clear_call
from broker_node.calls.desk import CallDesk
from node.protocol.errors import RemoteProtocolError
from tests.broker.test_call_clearing import LAYERS, closed, even


def desk_of() -> CallDesk:
    nobody: Any = SimpleNamespace()
    settings: Any = SimpleNamespace(mechanism="eeg", call_seconds=1)
    return CallDesk(nobody, nobody, settings)


def cleared_for(buyer: int, sellers: int) -> ClearedCall:
    """A call in which one buyer is given something of each of so many sellers."""
    useless = [[0] * LAYERS] * sellers
    gains = [useless] * buyer + [[even(10_000)] * sellers]
    cleared = clear_call(closed(gains, [10**18] * len(gains)))
    assert len(cleared.given) == sellers
    return cleared


def quotable(desk: CallDesk, cleared: ClearedCall) -> int:
    """How many of a call's allocations are quoted at their price; what is not is refused."""
    found = 0
    for one in cleared.given:
        assert one.allocation is not None
        question: Any = SimpleNamespace(trial_id=one.trial_id, valuation=one.allocation.price)
        try:
            found += desk.price_of(question) == one.allocation.price
        except RemoteProtocolError as error:
            if error.reason != "not-allocated":
                raise
    return found


def test_all_that_a_call_gave_is_quoted_and_whole_calls_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker_node.calls.desk.REMEMBERED", 4)
    desk = desk_of()
    calls = [cleared_for(buyer, sellers) for buyer, sellers in enumerate((6, 2, 1, 1, 7))]
    seen = []
    for last, cleared in enumerate(calls):
        desk._keep_prices(cleared)
        seen.append([quotable(desk, one) for one in calls[: last + 1]])
    assert seen == [[6], [6, 2], [6, 2, 1], [0, 2, 1, 1], [0, 0, 0, 0, 7]]


def test_calls_that_gave_nothing_take_no_room() -> None:
    desk = desk_of()
    nothing = clear_call(Closed(placed=()))
    for _ in range(3):
        desk._keep_prices(nothing)
    assert not desk._priced
