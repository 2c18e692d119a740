"""The rounds of an agent whose market clears by rounds: train, bring the model, take part, go on.

    train ─► submit ─► join ─► invited ─► pay ─► judge the root ─► claim ─► fetch what was sold
                         └─ off, or terms that we do not take: no money moves, train on

An agent adopts the model that it gets where the broker measured it better than its own. After a
crash a round goes on where the journal says: nothing is paid twice, and what is owed is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
import trio

from node.agent import progress as journalled
from node.agent.brokers import Brokers
from node.agent.merging import read_tensors
from node.agent.progress import Progress
from node.agent.session import Meet
from node.agent.settings import AgentSettings
from node.agent.submission import Submission
from node.agent.taking_part import Audit, Bought, TakingPart
from node.chain.clearing import Web3ClearingHouse
from node.chain.errors import ChainUnavailableError, WrongContractError
from node.chain.rounds import Round
from node.chronicle import ClearingOff, EpochTrained, PeerFault, RoundPlayed, RoundsPlayed
from node.net.transfer import Source, fetch_blob
from node.params.encoding import encode_tensors
from node.protocol.clearing import Opening
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from node.protocol.messages import PARAMS_PROTOCOL
from node.protocol.offer import NOT_FOR_SALE, Offer
from node.protocol.participation import Participation, ParticipationRecord
from node.protocol.pooling import (
    JOIN_SECONDS,
    AskHouse,
    House,
    Invited,
    JoinRound,
    NotInvited,
)
from node.protocol.types import NO_ADDRESS, Address, Digest, PeerId, UnixTime, Wei
from node.settlement import rounds
from node.settlement.cashier import Cashier
from node.station.station import Station
from node.training.trainer import Score, Trainer

UNKNOWN_BASE: Final = "unknown-base"
POLL_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 2.0
FORGET_SECONDS: Final = 60.0
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearingTerms:
    """What a participant is told once, at its start."""

    mechanism: str
    audit: Audit
    open_house: Callable[[Address], Web3ClearingHouse]
    """Opens the house at an address, which a broker has named. Raises `ChainError`."""
    cost: Wei
    """What a use of our data costs us."""
    reserve: Wei
    """The most that we pay for a model; 0 for no limit."""
    most_due: Wei | None
    """The most that we pay into a round; None for no limit."""
    least_challenge: int
    """Seconds in which we want to see a root before it stands."""


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
        turn: trio.Lock,
        meet: Meet,
    ) -> None:
        """`turn` is held while a transaction of the account is on its way."""
        self._station = station
        self._brokers = brokers
        self._trainer = trainer
        self._settings = settings
        self._terms = terms
        self._turn = turn
        self._meet = meet
        self._submission = Submission(station, brokers, self._fault)
        self._seat: tuple[PeerId, TakingPart, Cashier] | None = None

    async def run(self) -> None:
        """Play every round that is left, then only tidy up."""
        if journalled.recall(self._station.journal) is None:
            initial = await trio.to_thread.run_sync(self._trainer.initial)
            self._remember(Progress(0, 0, self._keep(initial), False))
        for part in self._open_parts():
            if part.record.number <= self._progress().round:  # its round went on without it
                _, taking, _ = await self._sit()
                await taking.see_through(part, self._brokers.current)
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
        part = next((p for p in self._parts() if p.record.number == number), None)
        if part is None:
            statement = await self._submit(progress.root)
            await self._meet(number, "offered")
            joined = await self._join(number, statement, progress.root)
        else:
            await self._meet(number, "offered")
            joined = part
        await self._meet(number, "tried")
        because, root = str(joined), progress.root
        if isinstance(joined, Participation):
            broker, taking, _ = await self._sit()
            await taking.see_through(joined, broker)
            because, root = await self._adopted(joined, broker, progress.root)
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
        self._brokers.begin_round()
        await self._submission.of_ours(data)
        return data

    async def _join(self, number: int, statement: bytes, root: Digest) -> Participation | str:
        """Ask to be counted in until we are, or there is no round; returns why not."""
        broker = self._brokers.current
        base, _ = self._station.offer_in(statement)
        asked = JoinRound(base_digest=base, cost=self._terms.cost, reserve=self._terms.reserve)
        patience = trio.current_time() + self._settings.round_patience
        while True:
            try:
                answer = await self._station.ask_either(
                    broker, asked, Invited, NotInvited, seconds=JOIN_SECONDS
                )
            except RemoteProtocolError as error:
                self._fault("join", error)
                if error.reason == UNKNOWN_BASE:  # it was restarted, and is told again
                    await self._submission.of_ours(statement)
                if trio.current_time() > patience:
                    return self._off(number, error.reason, error.detail)
                await trio.sleep(RETRY_SECONDS)
                continue
            if isinstance(answer, Invited):
                return await self._accept(number, answer, root)
            if answer.off:
                return self._off(number, answer.reason)
            patience = trio.current_time() + self._settings.round_patience  # it is there
            await trio.sleep(POLL_SECONDS)

    async def _accept(self, number: int, answer: Invited, root: Digest) -> Participation | str:
        """Take the terms of an invitation, if they are what follows from its inputs."""
        station, terms = self._station, self._terms
        try:
            broker, _, cashier = await self._sit()
            account = self._account_of(broker)
            due = await trio.to_thread.run_sync(
                terms.audit.due, answer.inputs, station.account, account, terms.mechanism
            )
            if due != answer.due:
                raise RemoteProtocolError("wrong-due", f"{answer.due}, and not {due}")
            name = answer.opening.round
            self._check(answer.opening, await cashier.ask(lambda house: house.round(name)))
        except (RemoteProtocolError, LocalProtocolError) as error:
            reason = error.reason if isinstance(error, RemoteProtocolError) else "wrong-inputs"
            self._fault("join", RemoteProtocolError(reason, str(error)))
            return self._off(number, reason, str(error))
        if terms.most_due is not None and due > terms.most_due:
            return self._off(number, "too-dear", f"{due} wei, of at most {terms.most_due}")
        return Participation.accepted(
            number=number,
            clearing_house=cashier.house.domain.clearing_house,
            broker=account,
            opening=answer.opening,
            due=due,
            inputs=answer.inputs,
            base_root=root,
        )

    def _check(self, opening: Opening, found: Round | None) -> None:
        """Raise `RemoteProtocolError` unless the round on chain is the one that we were told of."""
        if found is None:
            raise RemoteProtocolError("no-such-round", opening.round.hex())
        told = (opening.asset, opening.pay_by, opening.post_by, opening.challenge_period)
        there = (found.asset, found.pay_by, found.post_by, found.challenge_period)
        if told != there or opening.asset != NO_ADDRESS or found.posted_at:
            raise RemoteProtocolError("another-round", opening.round.hex())
        if opening.challenge_period < self._terms.least_challenge:
            raise RemoteProtocolError("short-challenge", f"{opening.challenge_period} s")

    async def _sit(self) -> tuple[PeerId, TakingPart, Cashier]:
        """Open the house that our broker clears in, once; wait for both to answer."""
        told = False
        while self._seat is None:
            broker = self._brokers.current
            try:
                house = await self._station.ask(broker, AskHouse(), House)
                if house.mechanism != self._terms.mechanism:
                    raise RemoteProtocolError("another-mechanism", house.mechanism, peer=broker)
                opened = await trio.to_thread.run_sync(self._terms.open_house, house.clearing_house)
                account = self._account_of(broker)
                if not await trio.to_thread.run_sync(opened.seats, account):
                    raise RemoteProtocolError("not-the-houses-broker", account, peer=broker)
            except (RemoteProtocolError, WrongContractError) as error:
                if not told:
                    reason = getattr(error, "reason", "wrong-contract")
                    self._fault("ask-house", RemoteProtocolError(reason, str(error)))
                told = True
            except ChainUnavailableError:
                pass
            else:
                station = self._station
                cashier = Cashier(opened, station.journal, station.observer, self._turn)
                taking = TakingPart(station, cashier, self._terms.audit)
                self._seat = (broker, taking, cashier)
                break
            await trio.sleep(RETRY_SECONDS)
        return self._seat

    def _account_of(self, broker: PeerId) -> Address:
        notice = self._station.notice_of(broker)
        if notice is None:
            raise RemoteProtocolError("no-notice", broker, peer=broker)
        return notice.broker

    # ── what it gave ──

    async def _adopted(
        self, part: Participation, broker: PeerId, own: Digest
    ) -> tuple[str, Digest]:
        """Return how a round ended, and the root of what to go on from."""
        record = part.record
        because = record.reason.partition(":")[0] or part.state.value
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
        """Fetch a model that was sold to us; it is what its root says, or is not taken."""
        station, root = self._station, Digest(bought.root)
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

    def _parts(self) -> list[Participation]:
        found = rounds.recall(self._station.journal, rounds.JOINED, ParticipationRecord)
        return [Participation(record) for record in found.values()]

    def _open_parts(self) -> list[Participation]:
        return [part for part in self._parts() if not part.over]

    @property
    def owes(self) -> bool:
        """Whether a round of ours is not over."""
        return bool(self._open_parts())

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
        kept = {self._progress().root, *(part.record.base_root for part in self._open_parts())}
        self._station.forget_blobs(kept)

    async def _score(self, parameters: Tensors) -> Score:
        return await trio.to_thread.run_sync(self._trainer.evaluate, parameters)

    def _off(self, number: int, reason: str, detail: str = "") -> str:
        self._station.observer.emit(ClearingOff(number=number, reason=reason, detail=detail[:300]))
        return reason

    def _fault(self, during: str, error: RemoteProtocolError) -> None:
        peer = error.peer or self._brokers.current
        self._station.observer.emit(
            PeerFault(peer=peer, during=during, reason=error.reason, detail=error.detail)
        )
