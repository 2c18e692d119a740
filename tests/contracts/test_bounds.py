"""The bounds that all deadlines and all gas rest on."""

from __future__ import annotations

from contracts.stage import BOND, CHALLENGE, ZERO, Stage

DAY = 86_400


def test_bounds_are_what_was_written_down(stage: Stage) -> None:
    house = stage.market("ClearingHouse", CHALLENGE)
    bounds = {
        stage.escrow: {"ETH": ZERO, "DEPOSIT_NOTICE": 30 * DAY, "MAX_LEGS": 64},
        stage.registry: {
            "ETH": ZERO,
            "EXIT_DELAY": 100 * DAY,
            "MAX_MARKETS": 16,
            "SLASH_SHARE": 10,
            "minimumBond": BOND,
        },
        house: {
            "ETH": ZERO,
            "MAX_WINDOW": 30 * DAY,
            "EXPIRY": 180 * DAY,
            "MAX_LEAVES": 2**15,
            "minimumChallenge": CHALLENGE,
        },
    }
    for contract, values in bounds.items():
        assert {name: stage.view(name, of=contract) for name in values} == values
