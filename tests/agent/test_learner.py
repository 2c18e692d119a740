"""What an agent that trains by itself tells of its rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from node.agent.learner import MERGE_LOST, Learner
from node.agent.progress import Progress, Step
from node.chronicle import RoundPlayed
from node.protocol.types import Digest
from node.training.trainer import Score
from tests.market.market import weights

BEFORE, AFTER = Score(accuracy=0.5, loss=0.9), Score(accuracy=0.75, loss=0.6)


@dataclass
class Rounds:
    """A session of which one round is left to end; `merged` says whether the purchase is there."""

    merged: bool
    progress: Progress = field(default_factory=lambda: Progress(0, 6, Digest(bytes(32)), True))
    ended: int = 0
    outcome_of: str = ""

    async def outcome(self) -> tuple[dict[str, Any], bool]:
        return weights("merged" if self.merged else "own"), self.merged

    def end(self) -> None:
        self.ended += 1


@dataclass
class Told:
    events: list[Any] = field(default_factory=list)

    def emit(self, event: Any) -> None:
        self.events.append(event)


class Trainer:
    def evaluate(self, _: Any) -> Score:
        return AFTER


async def ended(session: Rounds, step: Step) -> RoundPlayed:
    told = Told()
    learner = Learner(
        session=session,  # type: ignore[arg-type]
        trainer=Trainer(),  # type: ignore[arg-type]
        settings=None,  # type: ignore[arg-type]
        observer=told,  # type: ignore[arg-type]
    )
    await learner._end(step, BEFORE)
    (event,) = told.events
    assert session.ended == 1
    assert isinstance(event, RoundPlayed)
    return event


BOUGHT = Step(round=1, bought=True, because="bought")


async def test_a_round_that_bought_is_told_with_what_it_gave() -> None:
    event = await ended(Rounds(merged=True), BOUGHT)
    assert (event.bought, event.because, event.accuracy) == (True, "bought", 0.75)


async def test_a_merge_that_the_disk_has_lost_is_no_purchase_in_the_log() -> None:
    event = await ended(Rounds(merged=False), BOUGHT)
    assert (event.bought, event.because) == (False, MERGE_LOST)


async def test_a_round_that_bought_nothing_scores_nothing_anew() -> None:
    event = await ended(Rounds(merged=False), Step(round=1, bought=False, because="bound"))
    assert (event.bought, event.because, event.accuracy) == (False, "bound", 0.5)
