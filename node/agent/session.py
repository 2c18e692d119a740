"""One round of the market at a time: `offer`, `step`, `adopt`.

    train ─► offer ──────────────► step ───────────────────────────────► adopt ─► train …
             sign, gossip, submit  try what others offer, buy the best   merged weights

`Learner` drives a session with a `Trainer`, `node.market.Market` with a loop of the user's
own. What a session must know after a crash is a small fact in the journal (`Progress`); the
weights are a blob.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
import trio

from node.agent.buyer import Buyer, NoPrice, Tried
from node.agent.selection import NOT_ITS_OWN, in_turn
from node.agent.seller import Seller
from node.agent.settings import AgentSettings
from node.agent.submission import Submission
from node.chain.errors import ChainUnavailableError
from node.chronicle import LegEnded, PeerFault
from node.params.architecture import Architecture, layout, parse_architecture
from node.params.encoding import decode_file, encode_tensors
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.offer import Offer
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.types import Digest, Millionths, PeerId, UnixTime, Wei
from node.settlement.desk import TradeDesk
from node.settlement.purse import Purse
from node.settlement.trade import Trade, roots_of
from node.station.station import Station

FORGOTTEN: Final = frozenset({"unknown-offer", "unreachable", "timeout"})
CAME_TO_NOTHING: Final = frozenset({PurchaseState.ABANDONED, PurchaseState.REFUNDED})
Tensors = Mapping[str, torch.Tensor]
Meet = Callable[[int, str], Awaitable[int | None]]
"""Called at a stage of a round, ``offered`` or ``traded``; returns when the others are there
too, with how many of them offer. None: nobody knows."""


async def never_wait(_round: int, _stage: str) -> None:
    """Meet nobody: agents of a real market keep no common clock."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an agent stands, as its journal has it."""

    round: int
    """Rounds that are over."""
    epoch: int
    """Epochs of training that are in `root`."""
    root: Digest
    offered: bool
    """Whether `root` is what this round offers; its trade may be under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one round of trading came to. Amounts are wei, fractions millionths."""

    round: int
    """1 for the first."""
    bought: bool
    because: str
    """``bought``, or why not: ``no-offer``, ``gain``, ``bound``, ``ask``, ``fee``, ``cash``, or
    the reason of whatever went wrong."""
    trade_id: Digest | None = None
    seller: PeerId | None = None
    price: Wei | None = None
    alpha: Millionths | None = None
    gain: Millionths | None = None
    bound: Millionths | None = None


class Session:
    """The rounds of one agent, whoever trains between them."""

    def __init__(
        self,
        *,
        station: Station,
        desk: TradeDesk,
        buyer: Buyer,
        seller: Seller,
        purse: Purse,
        settings: AgentSettings,
        broker: PeerId,
        meet: Meet = never_wait,
    ) -> None:
        self._station = station
        self._desk = desk
        self._buyer = buyer
        self._seller = seller
        self._purse = purse
        self._settings = settings
        self._broker = broker
        self._meet = meet
        self._submission = Submission(station, broker, self._fault)
        self._bought = self._offers_bought()
        """Offers that are never tried again, also after a restart."""
        self._tried = set(self._bought)
        """Offers that need no trial, for one was had; besides what was bought, only live ones."""
        self._missed: set[Digest] = set()
        """Live offers whose trial failed for a reason that was not their own."""
        self._base: tuple[Digest, Offer] | None = None
        self._trade: Trade | None = None
        self.progress = self._recall()
        """None before the first `begin` or `offer` of this journal."""

    # ── the three calls ──

    async def begin(self, parameters: Tensors) -> Progress:
        """Remember the weights that training starts from."""
        return self._remember(Progress(0, 0, self._keep(parameters), False))

    async def offer(
        self, architecture: Architecture, parameters: Tensors | None = None, *, epoch: int = 0
    ) -> Digest:
        """Offer parameters to the market, and submit them to the broker for trials.

        Without `parameters`: once more what this round has offered already, after a restart.
        Returns the digest of the signed offer.
        """
        progress = self.progress
        if parameters is not None:
            played = 0 if progress is None else progress.round
            progress = self._remember(Progress(played, epoch, self._keep(parameters), True))
        if progress is None or not progress.offered:
            raise LocalProtocolError("there is nothing to offer yet: give parameters")
        held = self._station.blobs.ref(progress.root)
        now = self._station.clock()
        offer = Offer(
            seller=self._station.account,
            peer_id=self._station.peer_id,
            addresses=self._station.network.addresses(),
            task=self._station.task,
            architecture=architecture.text,
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
        await self._submission.of_ours(data)
        self._base = name, offer
        return name

    async def step(self) -> Step:
        """Try what others offer on what we offered, buy what helps most, see it settled.

        "Settled" is delivered: the payment may still be in its dispute window. One purchase a
        round at most; no `RemoteProtocolError` leaves this, it is the reason of a round
        without one.
        """
        progress, base = self.progress, self._base
        if progress is None or base is None:
            raise LocalProtocolError("offer first: the round's trials are on what is offered")
        number = progress.round + 1
        others = await self._meet(number, "offered")
        trials, failed = await self._trials(base, others)
        await self._meet(number, "tried")
        if trials:
            step = await self._buy_best(number, trials)
        else:
            step = Step(round=number, bought=False, because=failed)
        await self._meet(number, "traded")
        self._station.observer.emit(
            LegEnded(
                round=number,
                because=step.because,
                trade_id=step.trade_id,
                seller=step.seller,
                price=step.price,
                alpha=step.alpha,
                gain=step.gain,
                bound=step.bound,
            )
        )
        return step

    async def adopt(self) -> dict[str, torch.Tensor]:
        """End the round; returns the weights to go on from: the merged ones if it bought any."""
        progress, base = self.progress, self._base
        if progress is None or base is None:
            raise LocalProtocolError("there is no round to end: offer and step first")
        bought = self._adopted(self._trade)
        root = progress.root if bought is None else bought
        self._base, self._trade = None, None
        self._remember(Progress(progress.round + 1, progress.epoch, root, False))
        self.forget_blobs()
        return self.load(base[1].architecture, root)

    # ── trading ──

    async def _trials(
        self, base: tuple[Digest, Offer], others: int | None
    ) -> tuple[list[Tried], str]:
        """Have what is new tried; with no trial, the reason of the last that failed."""
        expected = self._settings.offers_per_round if others is None else others
        offers = await self._new_offers(base[1].architecture, expected)
        trials: list[Tried] = []
        failed = "no-offer"
        for offered in offers:
            try:
                trials.append(await self._try(base, offered))
                self._tried.add(offered[0])
            except RemoteProtocolError as error:
                self._fault("trial", error)
                failed = error.reason
                (self._missed if failed in NOT_ITS_OWN else self._tried).add(offered[0])
        if trials:
            best_gain = max(trial.result.gain for trial in trials)
            self._seller.own_gain_value = self._settings.value_of(best_gain)
        return trials, failed

    async def _buy_best(self, number: int, trials: list[Tried]) -> Step:
        best = max(trials, key=self._merit)
        found = best.result
        because = self._settings.objection(found.alpha, found.gain, found.bound)
        trade_id: Digest | None = None
        price: Wei | None = None
        if not because:
            try:
                most = await self._purse.left()
                answer = await self._buyer.buy(best, self._desk, most=most)
            except RemoteProtocolError as error:
                self._fault("buy", error)
                because = error.reason
            except ChainUnavailableError:
                because = "chain-away"
            else:
                if isinstance(answer, NoPrice):
                    because = answer.reason
                else:
                    self._bought.add(best.offer_digest)
                    because, price = await self._settled(answer)
                    trade_id = answer.machine.record.trade_id
        return Step(
            round=number,
            bought=because == "bought",
            because=because,
            trade_id=trade_id,
            seller=best.offer.peer_id,
            price=price,
            alpha=found.alpha,
            gain=found.gain,
            bound=found.bound,
        )

    async def _settled(self, trade: Trade) -> tuple[str, Wei | None]:
        self._trade = trade
        await trade.settled.wait()
        price = trade.quote.price if trade.quote else None
        if self._adopted(trade) is not None:
            return "bought", price
        return trade.machine.state.value, price

    def _merit(self, trial: Tried) -> tuple[bool, int, int]:
        found = trial.result
        good = not self._settings.objection(found.alpha, found.gain, found.bound)
        return good, found.bound, found.gain

    async def _try(self, base: tuple[Digest, Offer], offered: tuple[Digest, Offer]) -> Tried:
        try:
            return await self._buyer.try_offer(broker=self._broker, base=base, offered=offered)
        except RemoteProtocolError as error:
            if error.reason not in FORGOTTEN:
                raise
        # a broker that was restarted has to be told again what it is to try
        for name, submit in (
            (base[0], self._submission.of_ours),
            (offered[0], self._submission.of_another),
        ):
            data = self._station.book.data_of(name)
            if data is not None:
                await submit(data)
        return await self._buyer.try_offer(broker=self._broker, base=base, offered=offered)

    async def _new_offers(self, architecture: str, expected: int) -> list[tuple[Digest, Offer]]:
        """Wait for offers of others that were not tried yet, as long as a round's patience."""
        station, settings = self._station, self._settings
        patience = trio.current_time() + settings.round_patience
        while True:
            self._forget_offers()
            found = [
                (name, offer)
                for name, offer in station.book.latest_of_each_seller(station.task, station.clock())
                if offer.seller != station.account
                and name not in self._tried
                and offer.architecture == architecture
            ]
            heard = station.heard
            new = sum(name not in self._missed for name, _ in found)
            if new >= expected or trio.current_time() >= patience:
                return in_turn(
                    found,
                    receipts=station.book.receipts(station.task),
                    broker=self._broker,
                    missed=self._missed,
                    most=max(settings.trials_per_round, expected),
                )
            with trio.move_on_at(patience):
                await heard.wait()

    def _forget_offers(self) -> None:
        """Keep in mind no offer that is in the book no more, but what was bought."""
        live = {name for name, _ in self._station.book.offers(self._station.clock())}
        self._tried &= live | self._bought
        self._missed &= live

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

    async def adopt_unfinished(self) -> None:
        """See the purchases that a crash interrupted to their end, and adopt what they gave."""
        for trade in self._desk.open_trades():
            if isinstance(trade.machine, Purchase):
                await trade.settled.wait()
        progress = self.progress
        if progress is None or not progress.offered:
            return
        for row in self._station.journal.trades(role="buyer"):
            found = self._desk.find(row.trade_id, "buyer")
            adopted = self._adopted(found)
            if found is None or adopted is None or not isinstance(found.machine, Purchase):
                continue
            if found.machine.record.evaluation.base_root == progress.root:
                self._remember(Progress(progress.round + 1, progress.epoch, adopted, False))
                return

    # ── the journal, and the blobs ──

    def load(self, architecture: str, root: Digest) -> dict[str, torch.Tensor]:
        """Return the tensors of a blob of ours."""
        return decode_file(self._station.blobs.path(root), layout(parse_architecture(architecture)))

    def _recall(self) -> Progress | None:
        match self._station.journal.recall("progress"):
            case [int(played), int(epoch), bytes(root), bool(offered)]:
                return Progress(played, epoch, Digest(root), offered)
            case _:
                return None

    def _remember(self, progress: Progress) -> Progress:
        self._station.journal.remember(
            "progress", [progress.round, progress.epoch, progress.root, progress.offered]
        )
        self.progress = progress
        return progress

    def _keep(self, parameters: Tensors) -> Digest:
        return self._station.blobs.put_bytes(encode_tensors(parameters)).root

    def _offers_bought(self) -> set[Digest]:
        """Return the offers that we have bought or are buying: none is paid for twice."""
        found = (
            self._desk.find(row.trade_id, "buyer")
            for row in self._station.journal.trades(role="buyer")
        )
        machines = [trade.machine for trade in found if trade is not None]
        return {
            machine.record.offer_digest
            for machine in machines
            if isinstance(machine, Purchase) and machine.state not in CAME_TO_NOTHING
        }

    def forget_blobs(self) -> None:
        """Delete what nobody can ask for any more; what was bought stays."""
        kept = set() if self.progress is None else {self.progress.root}
        for trade in self._desk.open_trades():
            kept |= roots_of(trade)
        for row in self._station.journal.trades(role="buyer"):
            purchase = self._desk.find(row.trade_id, "buyer")
            if purchase is not None and isinstance(purchase.machine, Purchase):
                record = purchase.machine.record
                kept |= {record.quote.offer_root, record.evaluation.merged_root}
                if purchase.machine.state is PurchaseState.CHEATED:
                    kept.add(record.quote.goods_root)  # the proof
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
