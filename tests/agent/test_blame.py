"""Nobody's offer is passed over for what brokers, their endpoints or their bugs brought about."""

from __future__ import annotations

from typing import Any

import pytest

from node.journal import Journal
from node.protocol.errors import RemoteProtocolError
from tests.agent.rounds import session_on
from tests.protocol.cast import OFFER, OFFER_DIGEST


async def after_a_trial_that_fails(journal: Journal, reason: str) -> tuple[set[Any], set[Any]]:
    """Return which offers are not tried again, and which are tried last."""
    session: Any = session_on(journal)

    async def offers(*_: object) -> Any:
        return [(OFFER_DIGEST, OFFER)]

    async def fails(*_: object) -> Any:
        raise RemoteProtocolError(reason)

    session._new_offers, session._try = offers, fails
    session._fault = lambda *_: None
    trials, failed = await session._trials((OFFER_DIGEST, OFFER), 1)
    assert (trials, failed) == ([], reason)
    return session._tried, session._missed


@pytest.mark.parametrize(
    "reason",
    [
        "below-quorum",
        "figures-differ",
        "recipe-differs",
        "chain-away",
        "not-of-the-quorum",
        "internal-error",
    ],
)
async def test_an_offer_that_a_quorum_could_not_measure_is_tried_again(
    journal: Journal, reason: str
) -> None:
    assert await after_a_trial_that_fails(journal, reason) == (set(), {OFFER_DIGEST})


@pytest.mark.parametrize("reason", ["overflows", "architecture-mismatch"])
async def test_an_offer_of_nonsense_is_not(journal: Journal, reason: str) -> None:
    assert await after_a_trial_that_fails(journal, reason) == ({OFFER_DIGEST}, set())
