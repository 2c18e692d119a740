"""One deployment for many plays: the chain is brought back to where it was ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from hypothesis import HealthCheck, settings

from contracts.stage import Stage

Cast = TypeVar("Cast")

LEAN: Final = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
"""Of machines on a chain."""


class Rewinding(Generic[Cast]):
    """Deploys when it is asked for the first time, and rewinds the chain each time after."""

    def __init__(self, deploy: Callable[[], tuple[Stage, Cast]]) -> None:
        self._deploy = deploy
        self._ready: tuple[Stage, Cast] | None = None
        self._snapshot: Any = None

    def __call__(self) -> Cast:
        """Return what was deployed, as it was then."""
        if self._ready is None:
            self._ready = self._deploy()
        else:
            self._ready[0].chain.revert_to_snapshot(self._snapshot)
        stage, cast = self._ready
        self._snapshot = stage.chain.take_snapshot()  # anvil goes back to each of them only once
        return cast
