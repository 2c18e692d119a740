"""The rounds of an agent: train, offer, try what others offer, buy what helps, adopt.

Agents keep no common clock: each plays a round when it has trained, waits a while for
somebody else's new offer, and goes on without. What it must know after a crash is a small
fact in the journal (`Progress`); the weights are a blob.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
import trio

from node.agent.buyer import PASSING, Buyer, Tried
from node.agent.seller import Seller
from node.agent.settings import AgentSettings
from node.chronicle import PeerFault, RoundPlayed, RoundsPlayed
from node.params.architecture import layout
from node.params.disk import BlobRef
from node.params.encoding import decode_file, encode_tensors
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import Submit, Submitted
from node.protocol.offer import Offer
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.types import Digest, PeerId, UnixTime
from node.settlement.desk import TradeDesk
from node.settlement.trade import Trade, roots_of
from node.station.station import Station
from node.training.trainer import Trainer

SUBMIT_SECONDS: Final = 60.0
FIRST_RETRY_SECONDS: Final = 0.25
LONGEST_RETRY_SECONDS: Final = 5.0
FORGET_SECONDS: Final = 60.0
FORGOTTEN: Final = frozenset({"unknown-offer", "unreachable", "timeout"})
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an agent stands, as its journal has it."""

    round: int
    epoch: int
    root: Digest
    trained: bool
    """Whether this round's training is in `root` already; its trade may be under way."""


class Learner:
    """Plays the rounds of one agent."""

    def __init__(
        self,
        *,
        station: Station,
        desk: TradeDesk,
        buyer: Buyer,
        seller: Seller,
        trainer: Trainer,
        settings: AgentSettings,
        broker: PeerId,
    ) -> None:
        self._station = station
        self._desk = desk
        self._buyer = buyer
        self._seller = seller
        self._trainer = trainer
        self._settings = settings
        self._broker = broker
        self._tried: set[Digest] = set()

    async def run(self) -> None:
        """Play every round that is left; then only tidy up, while the agent goes on serving."""
        progress = self._recall() or await self._begin()
        progress = await self._adopt_unfinished(progress)
        accuracy = await self._accuracy(self._load(progress.root))
        while progress.round < self._settings.rounds:
            progress, accuracy = await self._play(progress)
        self._station.observer.emit(RoundsPlayed(rounds=progress.round, accuracy=accuracy))
        while True:  # goods of sales that ended are still to be deleted
            await trio.sleep(FORGET_SECONDS)
            self._forget_blobs(progress)

    # ── one round ──

    async def _play(self, progress: Progress) -> tuple[Progress, float]:
        if not progress.trained:
            progress = await self._train(progress)
        held = self._station.blobs.ref(progress.root)
        before = await self._accuracy(self._load(progress.root))
        base = await self._offer(held)
        trade, because = await self._trade(base)
        adopted = self._adopted(trade)
        root = held.root if adopted is None else adopted
        accuracy = before if adopted is None else await self._accuracy(self._load(root))
        progress = self._remember(Progress(progress.round + 1, progress.epoch, root, False))
        self._forget_blobs(progress)
        self._station.observer.emit(
            RoundPlayed(
                round=progress.round,
                epoch=progress.epoch,
                accuracy_before=round(before, 6),
                accuracy=round(accuracy, 6),
                bought=adopted is not None,
                because=because,
            )
        )
        return progress, accuracy

    async def _train(self, progress: Progress) -> Progress:
        parameters: Tensors = self._load(progress.root)
        epoch, epochs = progress.epoch, self._settings.epochs_per_round
        if progress.round == 0:
            epochs += self._settings.warmup_epochs
        for _ in range(epochs):
            trained = await trio.to_thread.run_sync(self._trainer.train_epoch, parameters, epoch)
            parameters = trained.parameters
            epoch += 1
        held = self._keep(parameters)
        return self._remember(Progress(progress.round, epoch, held.root, True))

    async def _offer(self, held: BlobRef) -> tuple[Digest, Offer]:
        """Offer what we hold to the market, and submit it for trials."""
        now = self._station.clock()
        offer = Offer(
            seller=self._station.account,
            peer_id=self._station.peer_id,
            addresses=self._station.network.addresses(),
            task=self._station.task,
            architecture=self._trainer.architecture.text,
            layers=(),
            weights_root=held.root,
            leaf_count=held.leaf_count,
            byte_length=held.byte_length,
            reserve=self._settings.reserve,
            issued_at=now,
            expires_at=UnixTime(now + self._settings.offer_seconds),
            nonce=self._station.journal.next_nonce(),
        )
        self._station.served.add(held.root)
        name, data = self._station.sign(offer)
        await self._station.publish(data)
        await self._submit(data)
        return name, offer

    async def _submit(self, data: bytes) -> None:
        """Have the broker fetch and verify; keep trying while it is away."""
        told, pause = "", FIRST_RETRY_SECONDS
        while True:
            try:
                await self._station.ask(
                    self._broker, Submit(statement=data), Submitted, seconds=SUBMIT_SECONDS
                )
            except RemoteProtocolError as error:
                if error.reason != told:
                    self._fault("submit", error)
                told = error.reason
                if error.reason not in PASSING:
                    return
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_RETRY_SECONDS)
            else:
                return

    async def _trade(self, base: tuple[Digest, Offer]) -> tuple[Trade | None, str]:
        """Try every new offer, buy the best one that helps, and see it settled."""
        offers = await self._new_offers()
        if not offers:
            return None, "nobody offered anything new"
        trials: list[Tried] = []
        for offered in offers:
            try:
                trials.append(await self._try(base, offered))
            except RemoteProtocolError as error:
                self._fault("trial", error)
        helpful = [t for t in trials if self._helps(t)]
        if trials:
            best_gain = max(trial.result.gain for trial in trials)
            self._seller.own_gain_value = self._settings.value_of(best_gain)
        if not helpful:
            return None, "no offer helped" if trials else "no trial could be had"
        best = max(helpful, key=lambda trial: trial.result.bound)
        try:
            trade = await self._buyer.buy(best, self._desk)
        except RemoteProtocolError as error:
            self._fault("buy", error)
            return None, error.reason
        if trade is None:
            return None, "no price suited both"
        await trade.settled.wait()
        return trade, trade.machine.state.value

    async def _try(self, base: tuple[Digest, Offer], offered: tuple[Digest, Offer]) -> Tried:
        try:
            return await self._buyer.try_offer(broker=self._broker, base=base, offered=offered)
        except RemoteProtocolError as error:
            if error.reason not in FORGOTTEN:
                raise
        # a broker that was restarted has to be told again what it is to try
        for name in (base[0], offered[0]):
            data = self._station.book.data_of(name)
            if data is not None:
                await self._submit(data)
        return await self._buyer.try_offer(broker=self._broker, base=base, offered=offered)

    def _helps(self, trial: Tried) -> bool:
        gain = trial.result
        return gain.alpha > 0 and gain.bound > 0 and gain.gain >= self._settings.min_gain

    async def _new_offers(self) -> list[tuple[Digest, Offer]]:
        """Wait for offers of others that were not tried yet, as long as a round's patience."""
        patience = trio.current_time() + self._settings.round_patience
        while True:
            with trio.move_on_at(patience) as waiting:
                found = [
                    (name, offer)
                    for name, offer in self._station.book.latest_of_each_seller(
                        self._station.task, self._station.clock()
                    )
                    if offer.seller != self._station.account
                    and name not in self._tried
                    and offer.architecture == self._trainer.architecture.text
                ]
                if found:
                    self._tried.update(name for name, _ in found)
                    return found
                await self._station.heard.wait()
            if waiting.cancelled_caught:
                return []

    # ── what was bought ──

    def _adopted(self, trade: Trade | None) -> Digest | None:
        """Return the root of the merged weights, if the trade delivered them as measured."""
        if trade is None or not isinstance(trade.machine, Purchase):
            return None
        state = trade.machine.state
        if state not in (PurchaseState.DELIVERED, PurchaseState.COMPLETE):
            return None
        root = trade.machine.record.evaluation.merged_root
        return root if self._station.blobs.has(root) else None

    async def _adopt_unfinished(self, progress: Progress) -> Progress:
        """See the purchases that a crash interrupted to their end, and adopt what they gave."""
        for trade in self._desk.open_trades():
            if isinstance(trade.machine, Purchase):
                await trade.settled.wait()
        for row in self._station.journal.trades(role="buyer"):
            found = self._desk.find(row.trade_id, "buyer")
            adopted = self._adopted(found)
            if found is None or adopted is None or not isinstance(found.machine, Purchase):
                continue
            if progress.trained and found.machine.record.evaluation.base_root == progress.root:
                return self._remember(Progress(progress.round + 1, progress.epoch, adopted, False))
        return progress

    # ── the journal ──

    async def _begin(self) -> Progress:
        held = self._keep(await trio.to_thread.run_sync(self._trainer.initial))
        return self._remember(Progress(0, 0, held.root, False))

    def _recall(self) -> Progress | None:
        match self._station.journal.recall("progress"):
            case [int(played), int(epoch), bytes(root), bool(trained)]:
                return Progress(played, epoch, Digest(root), trained)
            case _:
                return None

    def _remember(self, progress: Progress) -> Progress:
        self._station.journal.remember(
            "progress", [progress.round, progress.epoch, progress.root, progress.trained]
        )
        return progress

    def _keep(self, parameters: Tensors) -> BlobRef:
        return self._station.blobs.put_bytes(encode_tensors(parameters))

    def _load(self, root: Digest) -> dict[str, torch.Tensor]:
        return decode_file(self._station.blobs.path(root), layout(self._trainer.architecture))

    async def _accuracy(self, parameters: Tensors) -> float:
        return (await trio.to_thread.run_sync(self._trainer.evaluate, parameters)).accuracy

    def _forget_blobs(self, progress: Progress) -> None:
        """Delete what nobody can ask for any more; what was bought stays."""
        kept = {progress.root}
        for trade in self._desk.open_trades():
            kept |= roots_of(trade)
        for row in self._station.journal.trades(role="buyer"):
            purchase = self._desk.find(row.trade_id, "buyer")
            if purchase is not None and isinstance(purchase.machine, Purchase):
                record = purchase.machine.record
                kept |= {record.quote.offer_root, record.evaluation.merged_root}
        self._station.forget_blobs(kept)

    def _fault(self, during: str, error: RemoteProtocolError) -> None:
        self._station.observer.emit(
            PeerFault(
                peer=error.peer or self._broker,
                during=during,
                reason=error.reason,
                detail=error.detail,
            )
        )
