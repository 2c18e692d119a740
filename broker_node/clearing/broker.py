"""A broker that clears by rounds: gathers agents, measures, opens, computes, posts, serves.

    join, join, … ─► measured ─► opened on chain ─► collected ─► computed ─► posted ─► stands

What agents brought is only remembered in memory, but for the rounds that are open: their models can
be fetched once more after a restart, and what was measured is on the disk.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any, Final

import trio

from broker_node.appraisal import MarketAppraiser
from broker_node.clearing.conduct import Conduct, RoundSettings, document_of
from broker_node.clearing.gathering import Gathering, Joined
from broker_node.clearing.measuring import Measuring
from broker_node.clearing.rules import RULES
from broker_node.clearing.terms import Asked, Document
from broker_node.findings import ComputedOtherwise
from broker_node.mechanisms.base import RefusedInputError
from broker_node.service import Broker
from broker_node.verify.stages import Verified
from node.chain.clearing import Web3ClearingHouse
from node.chronicle import ClearingOff, ObjectionHeard, OurFault
from node.params.disk import BlobRef
from node.params.encoding import encode_tensors
from node.params.merges import require_whole
from node.protocol.convening import Convening
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.kinship import kin
from node.protocol.messages import PARAMS_PROTOCOL, StreamMessage
from node.protocol.offer import Offer
from node.protocol.pooling import (
    AskCleared,
    AskHouse,
    Heard,
    House,
    Invited,
    JoinRound,
    NotInvited,
    Objection,
)
from node.protocol.types import Digest, PeerId
from node.settlement import rounds
from node.station.station import Answer, Question

MAX_ANSWERS: Final = 512
NOT_YET: Final = NotInvited(reason="gathering", off=False, inputs=b"")
MISMATCH: Final = "architecture-mismatch"
MEASURE_RETRY: Final = 2.0


class ClearingBroker(Broker):
    """A broker whose market clears by rounds, besides all that a broker does."""

    def __init__(
        self, *, house: Web3ClearingHouse, rounds: RoundSettings, cache: Path, **common: Any
    ) -> None:
        """`cache`: where what was measured is kept; `common` as of `Broker`."""
        super().__init__(**common)
        self._rounds = rounds
        self._cache = cache
        self._rule = RULES[rounds.mechanism]
        self._gathering = Gathering(
            expected=rounds.expected,
            seconds=rounds.gather_seconds,
            most=self._rule.most_parties,
        )
        self._conduct = Conduct(self.station, house, self.desk.turn, rounds, self)
        self._given: OrderedDict[Digest, Invited | NotInvited] = OrderedDict()
        """What agents are answered, by the digest of the base that they joined with."""
        self._measuring = trio.Semaphore(1)
        """Held by the one round that measures: what is measured has one file."""

    async def run(self) -> None:
        """Serve until cancelled."""
        self.station.serve(PARAMS_PROTOCOL, self._conduct.serve_models)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._rounds_for_ever)
            await super().run()

    def answers(self) -> Mapping[Question, Answer]:
        return {
            **super().answers(),
            AskHouse: self._house,
            JoinRound: self._join,
            AskCleared: self._cleared,
            Objection: self._hear,
        }

    def kept_blobs(self) -> frozenset[Digest]:
        return self._conduct.sold_roots()

    # ── answers ──

    async def _house(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        return House(
            clearing_house=self._conduct.house.domain.clearing_house,
            mechanism=self._rounds.mechanism,
        )

    async def _join(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, JoinRound)
        known = self._given.get(question.base_digest)
        offer = self.intake.bases.offer(question.base_digest, self.station.clock())
        if known is not None and (offer is None or offer.peer_id == peer):
            return known
        if offer is None:
            raise RemoteProtocolError("unknown-base", question.base_digest.hex(), peer=peer)
        if offer.peer_id != peer:
            raise RemoteProtocolError("not-your-submission", offer.peer_id, peer=peer)
        require_whole(offer.architecture, "a round")
        data = self.intake.bases.data_of(question.base_digest)
        assert data is not None  # it was there a moment ago
        joined = Joined(
            base_digest=question.base_digest, offer=offer, statement=data, asked=question
        )
        try:
            self._rule.admit(document_of(self._rounds, self.station.account, [joined]))
        except RefusedInputError as refused:
            raise RemoteProtocolError(
                f"bad-{refused.field}", refused.reason, peer=peer
            ) from refused
        if not self._gathering.add(joined):
            raise RemoteProtocolError("round-full", str(self._rule.most_parties), peer=peer)
        return NOT_YET

    async def _cleared(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, AskCleared)
        return self._conduct.cleared(question.round)

    async def _hear(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, Objection)
        self.station.observer.emit(
            ObjectionHeard(round_id=question.round, peer=peer, reason=question.reason[:200])
        )
        return Heard()

    # ── rounds ──

    async def _rounds_for_ever(self) -> None:
        await self.desk.running.wait()
        async with trio.open_nursery() as nursery:
            for convening in self._conduct.unfinished():
                await self._invite(convening)
                nursery.start_soon(self._see_through, convening, None)
            while True:
                joined = await self._gathering.complete()
                for one in joined:  # who asks again meanwhile is in this round, and not in another
                    self._answer(one.base_digest, NOT_YET)
                try:
                    await self._begin(joined, nursery)
                except MarketError as error:
                    left = [o for o in joined if self._given.get(o.base_digest) is NOT_YET]
                    if left:
                        self._off(left, str(error), b"")

    async def _begin(self, joined: list[Joined], nursery: trio.Nursery) -> None:
        """Measure, and open the round or say that there is none."""
        await self._measuring.acquire()
        measuring = None
        try:
            joined, models = self._alike(*await self._models_of(joined))
            measuring = self._measure(models)
            document, asked = await self._ask(joined, measuring)
            while (at := asked.stopped_by) is not None:  # the others have a round without it
                self._off([joined.pop(at)], asked.off, document.encode())
                del models[at]
                self._let_go(measuring)
                measuring = self._measure(models)
                document, asked = await self._ask(joined, measuring)
            if asked.off:
                self._off(joined, asked.off, document.encode())
                self._let_go(measuring)
                self._measuring.release()
                return
            convening = await self._conduct.agree(joined, document, asked)
        except BaseException:
            if measuring is not None:
                self._let_go(measuring)
            self._measuring.release()
            raise
        await self._invite(convening)
        nursery.start_soon(self._see_through, convening, measuring)

    async def _models_of(self, joined: list[Joined]) -> tuple[list[Joined], list[Verified]]:
        """Return those whose model can be had, and the models."""
        there, models = [], []
        for one in joined:
            try:
                models.append(await self.intake.model(one.offer))
            except RemoteProtocolError as error:
                self._off([one], error.reason, b"")
                continue
            there.append(one)
        if not there:
            raise RemoteProtocolError("no-model", "nobody's model can be had")
        return there, models

    def _alike(
        self, joined: list[Joined], models: list[Verified]
    ) -> tuple[list[Joined], list[Verified]]:
        """Return those whose models are of the architecture that most are, and their models."""
        counted = Counter(kin(model.architecture.text) for model in models)
        most, _ = max(counted.items(), key=lambda item: (item[1], item[0]))
        alike = [kin(model.architecture.text) == most for model in models]
        for one, is_so in zip(joined, alike, strict=True):
            if not is_so:
                self._off([one], MISMATCH, b"")
        return list(compress(joined, alike)), list(compress(models, alike))

    def _measure(self, models: list[Verified]) -> Measuring:
        appraiser = self._appraiser
        assert isinstance(appraiser, MarketAppraiser)
        return Measuring(
            models,
            appraiser.validation,
            rows=appraiser.rows,
            seed=self._seed(),
            method=appraiser.method,
            cache=self._cache,
            runner=appraiser.runner(),
        )

    def _let_go(self, measuring: Measuring) -> None:
        """Close what measures a round, and tell what it computed otherwise than it was meant to."""
        measuring.close()
        for said in measuring.fallbacks():
            self.station.observer.emit(ComputedOtherwise(during="round", reason=said))

    async def _ask(self, joined: list[Joined], measuring: Measuring) -> tuple[Document, Asked]:
        document = document_of(self._rounds, self.station.account, joined)
        asked = await trio.to_thread.run_sync(
            self._rule.ask, document, measuring.performance, limiter=self._compute
        )
        return dataclasses.replace(document, measured=dict(measuring.measured)), asked

    async def _invite(self, convening: Convening) -> None:
        """Open the round, and answer all who joined; they pay from then on."""
        if not await self._conduct.open(convening):
            return
        record = convening.record
        for statement, due in zip(record.statements, record.dues, strict=True):
            name, _ = self.station.offer_in(statement)
            self._answer(name, Invited(opening=record.opening, due=due, inputs=record.invited))

    async def _see_through(self, convening: Convening, measuring: Measuring | None) -> None:
        """See a round to its end; what it needs again after a restart is fetched again."""
        held = measuring is not None
        try:
            while await self._conduct.step(convening):
                if measuring is None:
                    if not held:
                        await self._measuring.acquire()
                        held = True
                    try:
                        measuring = self._measure(await self._fetched(convening))
                    except MarketError as error:
                        self._fault("round", error)
                        await trio.sleep(MEASURE_RETRY)
                        continue
                try:
                    await self._conduct.compute(convening, measuring, self._compute)
                except MarketError as error:
                    self._fault("round", error)
                    await trio.sleep(MEASURE_RETRY)
        finally:
            if measuring is not None:
                self._let_go(measuring)
            if held:
                self._measuring.release()
        await self._conduct.finish(convening)

    async def _fetched(self, convening: Convening) -> list[Verified]:
        offers: list[Offer] = [self.station.offer_in(s)[1] for s in convening.record.statements]
        return [await self.intake.model(offer) for offer in offers]

    def keep_model(self, tensors: Mapping[str, Any]) -> BlobRef:
        """Put a model that was sold into the store."""
        return self.station.blobs.put_bytes(encode_tensors(tensors))

    # ── saying ──

    def _answer(self, name: Digest, answer: Invited | NotInvited) -> None:
        self._given[name] = answer
        while len(self._given) > MAX_ANSWERS:
            self._given.popitem(last=False)

    def _off(self, joined: list[Joined], reason: str, inputs: bytes) -> None:
        number = self.station.journal.next_nonce()
        rounds.save_off(self.station.journal, number, reason, inputs)
        self.station.observer.emit(ClearingOff(number=number, reason=reason[:300]))
        for one in joined:
            self._answer(one.base_digest, NotInvited(reason=reason[:300], off=True, inputs=inputs))

    def _fault(self, during: str, error: MarketError) -> None:
        kind = "refused" if isinstance(error, RefusedInputError) else type(error).__name__
        self.station.observer.emit(OurFault(during=during, reason=f"{kind}: {error}"))
