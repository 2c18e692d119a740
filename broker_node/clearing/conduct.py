"""The broker's part of a round on chain: what it signs, posts, publishes and serves.

The rules are `node.protocol.convening`; what is computed is journalled before anybody sees it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from broker_node.clearing.gathering import Joined
from broker_node.clearing.measuring import Measuring
from broker_node.clearing.rules import Leaves, checked, leaves_of
from broker_node.clearing.terms import Asked, Document, Sold, read
from broker_node.mechanisms.base import RefusedInputError
from node.agent.seller import Served, served
from node.chain.clearing import Web3ClearingHouse
from node.chain.errors import ChainUnavailableError
from node.chain.rounds import Claim, HouseCall, Open, Post, Withdraw
from node.chronicle import ClearingChanged
from node.params.disk import BlobRef
from node.protocol.clearing import Clearing, Opening
from node.protocol.convening import Convening, ConveningRecord, ConveningState, Duty
from node.protocol.eip712 import digest
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.pooling import Cleared, publication_digest, round_id_of
from node.protocol.quorum import join_signatures
from node.protocol.signing import sign_digest
from node.protocol.sum_tree import SumTree
from node.protocol.types import NO_ADDRESS, ONE, Address, Digest, PeerId, UnixTime, Wei
from node.settlement import rounds
from node.settlement.cashier import DONE, Cashier
from node.station.station import Station

POLL_SECONDS: Final = 0.4
AFTER_REFUSAL: Final = 5.0
KEPT_ROUNDS: Final = 256
"""How many rounds that are over are still answered for, and their models served."""
LISTED_LEAVES: Final = 1_000
"""Of which a message has room; more are left out of it, and follow from the inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """How a broker plays rounds. Durations are seconds, amounts wei, fractions millionths."""

    mechanism: str
    unit: Wei
    """What 1.0 of performance is worth."""
    entry: Wei
    """What a party never gets back."""
    expected: int
    """Agents that a round need not wait any longer for others with."""
    gather_seconds: float
    pay_seconds: int
    post_seconds: int
    challenge_seconds: int
    producers: int
    """How many of the parties make a model."""
    serving_cost: Wei
    margin: int
    share: int


class Keeper(Protocol):
    """Whoever has the store of blobs."""

    def keep_model(self, tensors: Mapping[str, Any]) -> BlobRef: ...


def document_of(settings: RoundSettings, broker: Address, joined: list[Joined]) -> Document:
    """Return the terms of a round, with nothing measured yet."""
    return Document(
        mechanism=settings.mechanism,
        unit=settings.unit,
        entry=settings.entry,
        broker=broker,
        parties=tuple(one.offer.seller for one in joined),
        costs=tuple(one.asked.cost for one in joined),
        reserves=tuple(one.asked.reserve for one in joined),
        producers=tuple(range(min(settings.producers, len(joined)))),
        serving_cost=settings.serving_cost,
        margin=settings.margin,
        share=settings.share,
    )


class Conduct:
    """Carries rounds out, step by step, with one account in one house."""

    def __init__(
        self,
        station: Station,
        house: Web3ClearingHouse,
        turn: trio.Lock,
        settings: RoundSettings,
        keeper: Keeper,
    ) -> None:
        self.house: Final = house
        self._station = station
        self._settings = settings
        self._keeper = keeper
        self._cashier = Cashier(house, station.journal, station.observer, turn)
        self._rounds: dict[Digest, Convening] = {}
        for record in rounds.recall(station.journal, rounds.CONVENED, ConveningRecord).values():
            self._rounds[record.opening.round] = Convening(record)

    def unfinished(self) -> list[Convening]:
        """Return the rounds that the journal has, and that are not over."""
        return [convening for convening in self._rounds.values() if not convening.over]

    # ── the way of a round ──

    async def agree(self, joined: list[Joined], document: Document, asked: Asked) -> Convening:
        """Set the times of a round, and write it down."""
        number = self._station.journal.next_nonce()
        block, now = await self._cashier.ask(lambda house: house.now())
        pay_by = UnixTime(max(now, self._station.clock()) + self._settings.pay_seconds)
        convening = Convening.agreed(
            number=number,
            since=block,
            opening=Opening(
                round=round_id_of(self.house.domain, self._station.peer_id, number),
                asset=NO_ADDRESS,
                pay_by=pay_by,
                post_by=UnixTime(pay_by + self._settings.post_seconds),
                challenge_period=self._settings.challenge_seconds,
            ),
            statements=tuple(one.statement for one in joined),
            dues=asked.dues,
            inputs=document.encode(),
        )
        self._rounds[convening.record.opening.round] = convening
        self._save(convening)
        return convening

    async def open(self, convening: Convening) -> bool:
        """See the round open on chain; False if it came to nothing before."""
        while convening.state is ConveningState.OPENING:
            await self._look(convening)
        return convening.state is not ConveningState.FAILED

    async def step(self, convening: Convening) -> bool:
        """Go on until there is something to compute (True), or the root is posted (False)."""
        while not convening.over:
            if convening.state is ConveningState.CHALLENGED:
                return False
            if Duty.COMPUTE in await self._look(convening):
                return True
        return False

    async def finish(self, convening: Convening) -> None:
        """See the root stand, and draw what is ours."""
        while not convening.over:
            await self._look(convening)
        self._forget()

    async def _look(self, convening: Convening) -> list[Duty]:
        """Look at the chain once, and do what is to be done; returns that."""
        record, before = convening.record, rounds.encoded(convening.record)
        judged = await self._judged(convening)
        sight = await self._cashier.ask(
            lambda house: rounds.look(house, record.opening.round, leaf=record.leaf, judged=judged)
        )
        duties = convening.see(sight)
        if rounds.encoded(convening.record) != before:
            self._save(convening)
        for duty in duties:
            await self._do(duty, convening)
        if not convening.over and Duty.COMPUTE not in duties:
            await trio.sleep(POLL_SECONDS)
        return duties

    async def _judged(self, convening: Convening) -> Digest:
        """Return the hash of the root on chain if it is ours."""
        if convening.record.leaf is None:
            return Digest(bytes(32))
        tree = tree_of(convening.record)
        posted = await self._cashier.ask(lambda house: house.posted(tree))
        return Digest(bytes(32)) if posted is None else posted.hash

    async def _do(self, duty: Duty, convening: Convening) -> None:
        record = convening.record
        name, us = record.opening.round, self._station.account
        match duty:
            case Duty.OPEN:
                call: HouseCall = Open(record.opening, self._signed(record.opening))
                await self._send(name, duty, call, lambda house: house.round(name) is not None)
            case Duty.POST:
                await self._post(convening)
            case Duty.CLAIM:
                tree, leaf = tree_of(record), record.leaf
                posted = await self._cashier.ask(lambda house: house.posted(tree))
                if posted is None or leaf is None:
                    return
                call = Claim(posted, leaf, tree.payouts[leaf], tree.path(leaf))
                await self._send(name, duty, call, lambda house: house.claimed(name, leaf))
            case Duty.WITHDRAW:
                call = Withdraw(NO_ADDRESS, us)
                await self._send(name, duty, call, lambda house: house.credit(NO_ADDRESS, us) == 0)
            case Duty.COMPUTE:
                return  # by whoever asked for the step

    async def _post(self, convening: Convening) -> None:
        """Sign and post the root of the record, as the version that is due."""
        record = convening.record
        tree = self.tree_to_post(record)
        name = record.opening.round
        found = await self._cashier.ask(lambda house: house.round(name))
        if found is None:
            return
        clearing = Clearing(
            round=name,
            root=tree.root.hash,
            sum=tree.root.sum,
            leaves=len(tree.payouts),
            version=found.version,
        )
        call = Post(name, tree.root, len(tree.payouts), self._signed(clearing))
        await self._send(
            name,
            Duty.POST,
            call,
            lambda house: (there := house.round(name)) is not None and there.posted_at != 0,
            attempt=f"-{found.version}",
        )

    def tree_to_post(self, record: ConveningRecord) -> SumTree:
        """Return what is posted."""
        return tree_of(record)

    async def _send(
        self, name: Digest, duty: Duty, call: HouseCall, done: Any, *, attempt: str = ""
    ) -> None:
        step = f"clearing-{duty.value}{attempt}"
        if await self._cashier.carry_out(name, step, call, done=done) != DONE:
            await trio.sleep(AFTER_REFUSAL)

    def _signed(self, message: Opening | Clearing) -> bytes:
        named = digest(self.house.domain, message)
        key = self._station.keys.account
        return join_signatures({self._station.account: sign_digest(key, named)})

    # ── what it comes to ──

    async def compute(
        self, convening: Convening, measuring: Measuring, limiter: trio.CapacityLimiter
    ) -> None:
        """Compute what the round comes to, and write it down. Raises `MarketError`."""
        record = convening.record
        invited = read(record.invited)
        name = record.opening.round
        paid = await self._paid(name, invited.parties, record.since)
        found, document = await trio.to_thread.run_sync(
            self._settle, invited, measuring, paid, limiter=limiter
        )
        convening.computed(
            inputs=document.encode(),
            accounts=tuple(account for account, _ in found.payouts),
            amounts=tuple(amount for _, amount in found.payouts),
            leaf=found.of(self._station.account),
        )
        self._save(convening)

    def _settle(
        self, invited: Document, measuring: Measuring, paid: Mapping[Address, Wei]
    ) -> tuple[Leaves, Document]:
        found = leaves_of(invited, measuring.performance, paid)
        models = tuple(self._model(measuring, sold) for sold in found.settled.sold)
        document = dataclasses.replace(
            invited,
            measured={**invited.measured, **measuring.measured},
            others=tuple(sorted(set(paid) - set(invited.parties), key=str.lower)),
            models=models,
        )
        # nothing is posted that participants would not compute from what they will be told
        _, again = checked(invited.encode(), document.encode(), paid)
        if again.payouts != found.payouts:
            raise RefusedInputError("inputs", "do not say what was computed")
        return again, document

    def _model(self, measuring: Measuring, sold: Sold) -> tuple[str, int, int, tuple[int, ...]]:
        blob = self._keeper.keep_model(measuring.fused(sold.reference, sold.parties))
        performance = round(measuring.performance(sold.reference, sold.parties) * ONE)
        return blob.root.hex(), blob.byte_length, performance, sold.buyers

    async def _paid(
        self, name: Digest, parties: tuple[Address, ...], since: int
    ) -> dict[Address, Wei]:
        """Return what everybody paid, strangers included: those are found by the events."""
        paid, found = await self._cashier.ask(lambda house: rounds.payments(house, name, parties))
        if sum(paid.values()) == found.pot:
            return paid

        def strangers(house: Web3ClearingHouse) -> list[Address]:
            last, _ = house.now()
            return [
                event.account
                for event in house.moved(since, last)
                if event.what == "PaidIn" and event.round == name
            ]

        payers = await self._cashier.ask(strangers)
        paid, found = await self._cashier.ask(
            lambda house: rounds.payments(house, name, (*parties, *payers))
        )
        if sum(paid.values()) != found.pot:
            raise ChainUnavailableError("the payments that the chain tells of are not the pot")
        return paid

    # ── what is told, and served ──

    def cleared(self, name: Digest) -> Cleared:
        """Return what a round was computed from. Raises `RemoteProtocolError`."""
        convening = self._rounds.get(name)
        if convening is None:
            raise RemoteProtocolError("unknown-round", name.hex())
        record = convening.record
        if not record.inputs:
            raise RemoteProtocolError("not-cleared-yet", name.hex())
        named = publication_digest(self.house.domain, name, record.inputs)
        few = len(record.accounts) <= LISTED_LEAVES
        return Cleared(
            round=name,
            inputs=record.inputs,
            accounts=record.accounts if few else (),
            amounts=record.amounts if few else (),
            signature=sign_digest(self._station.keys.account, named),
        )

    def serve_models(self, peer: PeerId, name: bytes, part: str) -> Served:
        """Serve a model to those whom it was sold to."""
        root = Digest(name)
        for convening in reversed(self._rounds.values()):
            record = convening.record
            if not record.inputs:
                continue
            for sold_root, _, _, buyers in read(record.inputs).models:
                if sold_root != root.hex():
                    continue
                peers = {self._station.offer_in(record.statements[i])[1].peer_id for i in buyers}
                if peer in peers and self._station.blobs.has(root):
                    return served(self._station.blobs, root, part)
        raise RemoteProtocolError("not-sold-to-you", name.hex()[:64], peer=peer)

    def sold_roots(self) -> frozenset[Digest]:
        """Return the models that their buyers may still fetch."""
        found: set[Digest] = set()
        for convening in self._rounds.values():
            try:
                models = read(convening.record.inputs).models if convening.record.inputs else ()
            except MarketError:
                continue
            found |= {Digest(bytes.fromhex(root)) for root, *_ in models}
        return frozenset(found)

    def _forget(self) -> None:
        """Forget rounds that were over long ago, with what was published and sold of them."""
        over = [each.record for each in self._rounds.values() if each.over][:-KEPT_ROUNDS]
        rounds.forget(self._station.journal, rounds.CONVENED, over)
        for record in over:
            del self._rounds[record.opening.round]

    def _save(self, convening: Convening) -> None:
        record = convening.record
        rounds.save(self._station.journal, rounds.CONVENED, record.number, record)
        self._station.observer.emit(
            ClearingChanged(
                round_id=record.opening.round,
                number=record.number,
                side="broker",
                state=record.state,
                due=Wei(sum(record.dues)),
                amount=Wei(0) if record.leaf is None else record.amounts[record.leaf],
                reason="",
            )
        )


def tree_of(record: ConveningRecord) -> SumTree:
    """Return the tree of what a round comes to."""
    return SumTree(record.opening.round, list(zip(record.accounts, record.amounts, strict=True)))
