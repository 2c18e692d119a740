"""The rounds of an agent whose market clears by rounds: train, bring the model, take part, go on.

    train ─► submit ─► join ─► invited ─► pay ─► judge the root ─► claim ─► fetch what was sold
                         └─ off, or terms that we do not take: no money moves, train on

An agent adopts the model that it gets where the broker measured it better than its own. After a
crash a round goes on where the journal says: nothing is paid twice, and what is owed is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import trio

from node.agent import progress as journalled
from node.agent.brokers import Brokers
from node.agent.joining import Joining
from node.agent.keeping import RoundKeeper
from node.agent.merging import read_tensors
from node.agent.progress import Progress
from node.agent.session import Meet
from node.agent.settings import AgentSettings
from node.agent.submission import Submission
from node.agent.taking_part import Bought, ClearingTerms
from node.chronicle import EpochTrained, PeerFault, RoundPlayed, RoundsPlayed
from node.net.transfer import Source, fetch_blob
from node.params.architecture import layout
from node.params.encoding import encode_tensors
from node.params.merges import require_whole
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from node.protocol.messages import PARAMS_PROTOCOL
from node.protocol.offer import NOT_FOR_SALE, Offer
from node.protocol.parameters import encoded_length
from node.protocol.participation import Participation
from node.protocol.types import Digest, PeerId, UnixTime
from node.station.station import Station
from node.training.trainer import Score, Trainer

RETRY_SECONDS: Final = 2.0
FORGET_SECONDS: Final = 60.0
Tensors = Mapping[str, torch.Tensor]


class Participant:
    """Plays the rounds of one agent with a trainer."""

    def __init__(
        self,
        *,
        station: Station,
        brokers: Brokers,
        trainer: Trainer,
        settings: AgentSettings,
        terms: ClearingTerms,
        keeper: RoundKeeper,
        meet: Meet,
    ) -> None:
        """`keeper` runs beside: what was paid comes back though no round is played any more.

        Raises `LocalProtocolError` for a trainer of adapters, which no round takes.
        """
        try:
            require_whole(trainer.architecture.text, "a round")
        except RemoteProtocolError as error:
            raise LocalProtocolError(error.detail) from error
        self._station = station
        self._brokers = brokers
        self._trainer = trainer
        self._settings = settings
        self._terms = terms
        self._keeper = keeper
        self._meet = meet
        self._submission = Submission(station, brokers, self._fault)
        self._joining = Joining(
            station, brokers, keeper, terms, settings, self._submission, self._fault
        )

    async def run(self) -> None:
        """Play every round that is left, then only tidy up."""
        if journalled.recall(self._station.journal) is None:
            initial = await trio.to_thread.run_sync(self._trainer.initial)
            self._remember(Progress(0, 0, self._keep(initial), False))
        while (progress := self._progress()).round < self._settings.rounds:
            await self._play(progress)
        score = await self._score(self._load(progress.root))
        self._station.observer.emit(RoundsPlayed(rounds=progress.round, accuracy=score.accuracy))
        while True:
            self._forget_blobs()
            await trio.sleep(FORGET_SECONDS)

    async def _play(self, progress: Progress) -> None:
        number = progress.round + 1
        if not progress.offered:
            progress = await self._train(progress)
        before = await self._score(self._load(progress.root))
        joined = await self._join(number, progress.root)
        await self._meet(number, "tried")
        because, root = str(joined), progress.root
        if isinstance(joined, Participation):
            seen = await self._keeper.seen_through(joined)
            because, root = await self._adopted(seen, progress.root)
        await self._meet(number, "traded")
        after = await self._score(self._load(root))
        self._station.observer.emit(
            RoundPlayed(
                round=number,
                epoch=progress.epoch,
                accuracy_before=round(before.accuracy, 6),
                accuracy=round(after.accuracy, 6),
                loss_before=before.loss,
                loss=after.loss,
                bought=root != progress.root,
                because=because,
            )
        )
        self._remember(Progress(number, progress.epoch, root, False))
        self._forget_blobs()

    async def _train(self, progress: Progress) -> Progress:
        """Train the epochs of one round; the first has the warm-up's besides."""
        parameters, epoch = self._load(progress.root), progress.epoch
        epochs = self._settings.epochs_per_round
        if progress.round == 0:
            epochs += self._settings.warmup_epochs
        for _ in range(epochs):
            trained = await trio.to_thread.run_sync(self._trainer.train_epoch, parameters, epoch)
            parameters = dict(trained.parameters)
            epoch += 1
            score = await self._score(parameters)
            self._station.observer.emit(
                EpochTrained(
                    epoch=epoch,
                    training_loss=trained.loss,
                    accuracy=round(score.accuracy, 6),
                    loss=score.loss,
                )
            )
        return self._remember(Progress(progress.round, epoch, self._keep(parameters), True))

    # ── joining ──

    async def _join(self, number: int, root: Digest) -> Participation | str:
        """Come into the round, or go on with what the journal has of it; returns why not."""
        known = next((p for p in self._keeper.parts() if p.record.number == number), None)
        off = "" if known is not None else self._joining.choose(number)
        statement = b"" if known is not None or off else await self._submit(root)
        await self._meet(number, "offered")
        if known is not None:
            return known
        return off or await self._joining.join(number, statement, root)

    async def _submit(self, root: Digest) -> bytes:
        """Have the broker fetch our model, which is for this round and for nobody to buy."""
        station = self._station
        blob, now = station.blobs.ref(root), station.clock()
        offer = Offer(
            seller=station.account,
            peer_id=station.peer_id,
            addresses=station.network.addresses(),
            task=station.task,
            architecture=self._trainer.architecture.text,
            layers=(),
            weights_root=blob.root,
            leaf_count=blob.leaf_count,
            byte_length=blob.byte_length,
            reserve=NOT_FOR_SALE,
            issued_at=now,
            expires_at=UnixTime(now + self._settings.offer_seconds),
            nonce=station.journal.next_nonce(),
        )
        station.served.add(root)
        data = station.seal(offer)
        station.book.receive(data, now)
        await self._submission.of_ours(data)
        return data

    # ── what it gave ──

    async def _adopted(self, part: Participation, own: Digest) -> tuple[str, Digest]:
        """Return how a round ended, and the root of what to go on from."""
        record = part.record
        broker = self._keeper.peer_of(record.broker)
        because = record.reason.partition(":")[0] or part.state.value
        if part.wronged:  # what else it says of its models is worth as much
            return because, own
        try:
            models = self._terms.audit.models(record.inputs, self._station.account)
        except MarketError:
            return because, own
        for bought in models[:1]:
            if await self._fetch(bought, broker):
                return "bought", Digest(bought.root)
            because = "model-away"
        return because, own

    async def _fetch(self, bought: Bought, broker: PeerId) -> bool:
        """Fetch a model that was sold to us; it is what its root says, or is not taken.

        It is as long as a model of ours, or no byte of it is fetched.
        """
        station, root = self._station, Digest(bought.root)
        expected = encoded_length(layout(self._trainer.architecture))
        if bought.byte_length != expected:
            fault = f"{bought.byte_length} bytes, a model of ours has {expected}"
            self._fault("fetch-model", RemoteProtocolError("wrong-layout", fault, peer=broker))
            return False
        patience = trio.current_time() + self._settings.round_patience
        while not station.blobs.has(root):
            source = Source(
                peer=broker,
                protocol=PARAMS_PROTOCOL,
                name=root,
                addresses=station.book.addresses_of(broker),
            )
            try:
                await fetch_blob(
                    station.network,
                    source,
                    lambda hashes: station.blobs.writer(root, bought.byte_length, hashes),
                    root=root,
                    byte_length=bought.byte_length,
                )
            except RemoteProtocolError as error:
                self._fault("fetch-model", error)
                if trio.current_time() > patience:
                    return False
                await trio.sleep(RETRY_SECONDS)
        try:
            self._load(root)
        except RemoteProtocolError as error:
            self._fault("fetch-model", error)
            return False
        return True

    # ── the journal, and the blobs ──

    def _progress(self) -> Progress:
        progress = journalled.recall(self._station.journal)
        assert progress is not None
        return progress

    def _remember(self, progress: Progress) -> Progress:
        journalled.remember(self._station.journal, progress)
        return progress

    def _keep(self, parameters: Tensors) -> Digest:
        return self._station.blobs.put_bytes(encode_tensors(parameters)).root

    def _load(self, root: Digest) -> dict[str, torch.Tensor]:
        text = self._trainer.architecture.text
        return read_tensors(self._station.blobs, text, root)

    def _forget_blobs(self) -> None:
        parts = self._keeper.parts()
        kept = {self._progress().root, *(p.record.base_root for p in parts if not p.over)}
        self._station.forget_blobs(kept)

    async def _score(self, parameters: Tensors) -> Score:
        return await trio.to_thread.run_sync(self._trainer.evaluate, parameters)

    def _fault(self, during: str, error: RemoteProtocolError) -> None:
        peer = error.peer or self._brokers.current
        self._station.observer.emit(
            PeerFault(peer=peer, during=during, reason=error.reason, detail=error.detail)
        )
