"""What computes for a broker: an `Appraiser` that may do its work elsewhere.

Ingest (`admit`), trials (`measure`, with the control where it is asked for) and replays are what
costs; `screen` reads an offer and stays where the broker is. Calls wait for their answer and are
made from threads, `at_once` of them at a time; none awaits, and an engine knows no event loop.

All of it is a function of models, rows and seed, so that a task whose worker was lost is simply
done again, and any engine answers as `LocalEngine` does: bit for bit on a CPU of the same kind
with as many threads, within `LOSS_TOLERANCE` elsewhere, with merged bytes that are equal on every
machine. What an engine refuses has the name, reason and detail that it has in process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from broker_node.appraisal import Appraiser
from node.protocol.errors import LocalProtocolError

Tell = Callable[[str], None]
"""Hears, from any thread, what went on in another way than it was meant to."""

RETRIES: Final = 3


class EngineError(LocalProtocolError):
    """The engine cannot compute, whatever the models; `reason` is stable, as a peer's is.

    ``ray-missing``, ``ray-away``, ``no-gpu``, ``another-version``: it cannot start, or serve.
    ``worker-lost``, ``spoilt-twice``, ``task-failed``: a task failed as often as it was tried.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How an engine is set up."""

    workers: int = 1
    """Of the local engine: how many tasks are computed at once."""
    device: str = "cpu"
    """What evaluates: ``cpu``, ``cuda``, ``mps`` or ``auto``."""
    ray_address: str | None = None
    """A running Ray cluster; None for one of our own, on this machine's loopback alone."""
    retries: int = RETRIES
    """How often a task is tried again whose worker was lost."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.retries < 0:
            raise LocalProtocolError(f"{self.workers} workers, {self.retries} retries")


class Engine(Appraiser, Protocol):
    """An appraiser that says how many calls it takes at once, and can be closed."""

    @property
    def at_once(self) -> int:
        """How many calls are worth making at the same time; any further one would wait."""

    def settle(self) -> None:
        """Undo what starting the engine did to this process; called once, in its main thread."""

    def close(self) -> None:
        """Let go of what the engine started; nothing is asked of it afterwards."""
