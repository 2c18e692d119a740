"""The rounds of an agent that trains by itself: train, offer, step, adopt, report.

After a crash it goes on where the journal says: a round that was offered is offered again,
and trained no second time; one that had bought is ended with what it bought, once all who are
still in it have met.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import trio

from node.agent.progress import Progress, Step
from node.agent.session import Session
from node.agent.settings import AgentSettings
from node.chronicle import AdapterFitted, EpochTrained, RoundPlayed, RoundsPlayed
from node.observe import Observer
from node.params.adapters import Adapter, fitted, lora_of
from node.params.architecture import parse_architecture
from node.protocol.kinship import is_adapter
from node.protocol.types import ONE, Millionths
from node.training.trainer import Score, Trainer

FORGET_SECONDS: Final = 60.0
MERGE_LOST: Final = "merge-lost"
"""Why a round that bought goes on without: the disk has spoilt the weights, for good."""
Tensors = Mapping[str, torch.Tensor]


class Learner:
    """Plays the rounds of one agent with a trainer."""

    def __init__(
        self, *, session: Session, trainer: Trainer, settings: AgentSettings, observer: Observer
    ) -> None:
        self._session = session
        self._trainer = trainer
        self._settings = settings
        self._observer = observer

    async def run(self) -> None:
        """Play every round that is left; then only tidy up, while the agent goes on serving."""
        session = self._session
        if session.progress is None:
            await session.begin(await trio.to_thread.run_sync(self._trainer.initial))
        unfinished = await session.take_up()
        if unfinished is not None:
            await session.rejoin()
            await self._end(unfinished, await self._score(self._load(self._progress())))
        while (progress := self._progress()).round < self._settings.rounds:
            await self._play(progress)
        score = await self._score(self._load(progress))
        self._observer.emit(RoundsPlayed(rounds=progress.round, accuracy=score.accuracy))
        while True:  # goods of sales that ended are still to be deleted
            await trio.sleep(FORGET_SECONDS)
            session.forget_blobs()

    async def _play(self, progress: Progress) -> None:
        session, architecture = self._session, self._trainer.architecture
        if progress.offered:
            before = await self._score(self._load(progress))
            await session.offer(architecture)
        else:
            parameters, epoch, before = await self._train(progress)
            await session.offer(architecture, parameters, epoch=epoch)
        await self._end(await session.step(), before)

    async def _end(self, step: Step, before: Score) -> None:
        """Tell of a round, then end it: killed in between, it is told of once more."""
        session, epoch = self._session, self._progress().epoch
        bought, after = step.bought, before
        if bought:
            adopted, bought = await session.outcome()
            after = await self._score(self._fitted(session.outcome_of, adopted))
        self._observer.emit(
            RoundPlayed(
                round=step.round,
                epoch=epoch,
                accuracy_before=round(before.accuracy, 6),
                accuracy=round(after.accuracy, 6),
                loss_before=before.loss,
                loss=after.loss,
                bought=bought,
                because=step.because if bought is step.bought else MERGE_LOST,
            )
        )
        session.end()

    async def _train(self, progress: Progress) -> tuple[Tensors, int, Score]:
        """Train the epochs of one round; the first has the warm-up's besides."""
        parameters: Tensors = self._load(progress)
        epoch, epochs = progress.epoch, self._settings.epochs_per_round
        if progress.round == 0:
            epochs += self._settings.warmup_epochs
        for _ in range(epochs):
            trained = await trio.to_thread.run_sync(self._trainer.train_epoch, parameters, epoch)
            parameters = trained.parameters
            epoch += 1
            score = await self._score(parameters)
            self._observer.emit(
                EpochTrained(
                    epoch=epoch,
                    training_loss=trained.loss,
                    accuracy=round(score.accuracy, 6),
                    loss=score.loss,
                )
            )
        if not epochs:
            score = await self._score(parameters)
        return parameters, epoch, score

    def _progress(self) -> Progress:
        progress = self._session.progress
        assert progress is not None
        return progress

    def _load(self, progress: Progress) -> dict[str, torch.Tensor]:
        text = progress.adapters or self._trainer.architecture.text
        return self._fitted(text, self._session.load(text, progress.root))

    def _fitted(self, text: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return adapters at the trainer's ranks, which a merge is past; all else as it is."""
        if not is_adapter(text) or text == self._trainer.architecture.text:
            return tensors
        wanted = self._trainer.architecture
        adapter, lost = fitted(Adapter(parse_architecture(text), tensors), lora_of(wanted))
        self._observer.emit(AdapterFitted(lost=Millionths(round(lost * ONE))))
        return dict(adapter.tensors)

    async def _score(self, parameters: Tensors) -> Score:
        return await trio.to_thread.run_sync(self._trainer.evaluate, parameters)
