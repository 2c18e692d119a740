"""One round of the market at a time: `offer`, `step`, `adopt`.

    train ─► offer ──────────────► step ───────────────────────────────► adopt ─► train …
             sign, gossip, submit  try what others offer, buy the best   merged weights

`Learner` drives a session with a `Trainer`, `node.market.Market` with a loop of the user's
own. What a session must know after a crash is a small fact in the journal (`Progress`); the
weights are a blob. A round that a crash cut off after it had bought is taken up where `step`
would have left it, and nothing else is offered before it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import torch
import trio

from node.agent import progress as journalled
from node.agent.asking import Asking, Named
from node.agent.brokers import Brokers
from node.agent.buyer import Buyer, NoPrice, Tried
from node.agent.calling import BOUGHT, Calling, in_order_of_gain, require_pairwise, step_of
from node.agent.merging import LostMergeError, fuse_bought, merge_of, merged_weights, read_tensors
from node.agent.offering import Offering
from node.agent.progress import GAVE_WEIGHTS, Progress, Step, adapters_of
from node.agent.selection import NOT_ITS_OWN, new_offers
from node.agent.seller import Seller
from node.agent.settings import AgentSettings
from node.agent.submission import Submission
from node.chain.errors import ChainUnavailableError
from node.chronicle import OurFault, PeerFault
from node.params.architecture import Architecture, layout, parse_architecture
from node.params.disk import BlobRef
from node.params.encoding import encode_tensors
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.offer import Offer
from node.protocol.purchase import Purchase, PurchaseRecord
from node.protocol.types import Digest
from node.settlement.desk import TradeDesk
from node.settlement.purse import Purse
from node.settlement.trade import Trade, roots_of
from node.station.station import Station

STAGES: Final = ("offered", "tried", "traded")
NO_ROUND: Final = "there is no round to end: offer and step first"
Tensors = Mapping[str, torch.Tensor]
Meet = Callable[[int, str], Awaitable[int | None]]
"""Called at one of `STAGES`; returns once the others are there, and how many offer, or None."""


async def never_wait(_round: int, _stage: str) -> None:
    """Meet nobody: agents of a real market keep no common clock."""


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
        brokers: Brokers,
        meet: Meet = never_wait,
    ) -> None:
        self._station = station
        self._desk = desk
        self._seller = seller
        self._purse = purse
        self._settings = settings
        self._brokers = brokers
        self._meet = meet
        submission = Submission(station, brokers, self._fault)
        self._offering = Offering(station, settings, submission)
        self._asking = Asking(station, buyer, brokers, submission)
        self._calling = Calling(station, buyer, desk, purse, settings, self._fault)
        self._bought = journalled.offers_bought(station.journal)
        """Offers that are never tried again, also after a restart."""
        self._tried = set(self._bought)
        """Offers that need no trial, for one was had; besides what was bought, only live ones."""
        self._missed: set[Digest] = set()
        """Live offers whose trial failed for a reason that was not their own."""
        self._base: tuple[Digest, Offer] | None = None
        """What this round offers; None once its trials are under way."""
        self.architecture: str | None = None
        """Of what this round offers; None before it does, and after it ended."""
        self._trades: list[Trade] = []
        """What this round has opened, less what came to nothing; several in a call market only."""
        self._fused: tuple[str, Digest] | None = None
        """What several purchases of this round were fused to, once it was asked for."""
        self.outcome_of = ""
        """The architecture of the last `outcome`: adapters' ranks add."""
        self._told: set[Digest] = set()
        """Trades of which the log says what they came to."""
        self.progress = journalled.recall(station.journal)
        """None before the first `begin` or `offer` of this journal."""

    # ── the three calls ──

    async def begin(self, parameters: Tensors) -> Progress:
        """Remember the weights that training starts from."""
        return self._remember(Progress(0, 0, self._keep(parameters).root, False))

    async def offer(
        self, architecture: Architecture, parameters: Tensors | None = None, *, epoch: int = 0
    ) -> Digest:
        """Offer parameters to the market, and submit them to the broker for trials.

        Without `parameters`: once more what this round has offered already, after a restart.
        An agent that sells some layers offers those, and shows the broker alone the rest.
        Returns the digest of the signed offer. Raises `LocalProtocolError` while the last step,
        also one that a restart cut off, has bought something that was not adopted, or for adapters
        in a call market, and `ArchitectureError` for a model that lacks the layers.
        """
        require_pairwise(architecture.text, self._settings.mechanism)
        if self._trades or self._has_bought():
            raise LocalProtocolError("adopt first: what the last step bought would be lost")
        layout(architecture, self._settings.layers)
        progress = self.progress
        if parameters is not None:
            played = 0 if progress is None else progress.round
            root = self._keep(parameters).root
            earlier = journalled.made_on(self._station.journal, root)
            self._base = self.architecture = None  # what was offered before is not the round's
            adapters = adapters_of(architecture.text)
            progress = self._remember(Progress(played, epoch, root, True, earlier, adapters))
        if progress is None or not progress.offered:
            raise LocalProtocolError("there is nothing to offer yet: give parameters")
        self._brokers.begin_round()
        name, self._base = await self._offering.put(architecture, progress.root)
        self.architecture = architecture.text
        return name

    async def step(self) -> Step:
        """Try what others offer on what we offered, buy what helps most, see it settled.

        "Settled" is delivered: the payment may still be in its dispute window. One purchase a
        round at most, but for what a call gives (`Calling`), of which the last step is returned;
        no `RemoteProtocolError` leaves this, it is the reason of a round without one. Raises
        `LocalProtocolError` for a second step on the same offer.
        """
        progress, base = self.progress, self._base
        if progress is None or base is None:
            raise LocalProtocolError("offer first: a step's trials are on what was just offered")
        self._base = None
        number = progress.round + 1
        others = await self._meet(number, "offered")
        trials, failed = await self._trials(base, others)
        await self._meet(number, "tried")
        steps = [Step(round=number, bought=False, because=failed)]
        if trials and self._settings.mechanism == "eeg":
            steps = await self._buy_in_call(number, base, trials)
        elif trials:
            steps = [await self._buy_best(number, base, trials)]
        await self._meet(number, "traded")
        for step in steps:
            self._tell(step)
        return steps[-1]

    async def outcome(self) -> tuple[dict[str, torch.Tensor], bool]:
        """Return what `adopt` would, and whether it is merged, once that is settled.

        A round that a restart cut off while it bought is taken up for that. What several
        purchases gave is fused; what does not fit is told of. A merge that our disk has spoilt is
        made again; one that is lost for good is told of, and counts as not given.
        """
        if self.architecture is None:
            await self.take_up()
        if self.architecture is None or self.progress is None:
            raise LocalProtocolError(NO_ROUND)
        for trade in self._trades:
            if not trade.machine.settled:  # its step was cut off
                await trade.settled.wait()
        blobs = self._station.blobs
        merged: list[tuple[PurchaseRecord, dict[str, torch.Tensor]]] = []
        for purchase in self._giving():
            try:
                tensors = await trio.to_thread.run_sync(merged_weights, blobs, purchase.record)
                merged.append((purchase.record, tensors))
            except LostMergeError as error:
                self._station.observer.emit(OurFault(during="adopt", reason=str(error)))
                self._trades = [trade for trade in self._trades if trade.machine is not purchase]
        self.outcome_of = self.architecture
        if not merged:
            return self.load(self.architecture, self.progress.root), False
        tensors, held, unfit = await trio.to_thread.run_sync(fuse_bought, blobs, merged)
        for reason in unfit:
            self._station.observer.emit(OurFault(during="adopt", reason=reason))
        self._fused, self.outcome_of = held, held.architecture
        return tensors, True

    def end(self) -> None:
        """End the round with its `outcome`, which has been asked for."""
        progress, giving = self.progress, self._giving()
        if self.architecture is None or progress is None:
            raise LocalProtocolError(NO_ROUND)
        held = self._fused if len(giving) > 1 else (self.architecture, progress.root)
        if held is None or not all(trade.machine.settled for trade in self._trades):
            raise LocalProtocolError(
                "ask for the outcome first: what is being bought would be lost"
            )
        if len(giving) == 1:
            held = merge_of(giving[0].record)
        self._remember(progress.ended(*held))
        self._base, self.architecture, self._trades, self._fused = None, None, [], None
        self.forget_blobs()

    async def adopt(self) -> dict[str, torch.Tensor]:
        """End the round; returns the weights to go on from: the merged ones if it bought any."""
        adopted, _ = await self.outcome()
        self.end()
        return adopted

    # ── after a restart ──

    async def take_up(self) -> Step | None:
        """See the purchases that a crash interrupted to their end.

        Returns what the round that was under way has bought: it is as after its `step`. None
        if that round has bought nothing, and may still be offered and played.
        """
        for trade in self._desk.open_trades():
            if isinstance(trade.machine, Purchase):
                await trade.settled.wait()
        progress, last = self.progress, None
        opened = journalled.under_way(self._station.journal, progress)
        for purchase in sorted(opened, key=self._given):
            assert progress is not None
            bought = self._given(purchase)
            step = journalled.step_of(purchase, progress.round + 1, bought=bought)
            self._tell(step)
            self.architecture = purchase.record.own_architecture
            if bought:
                last = step
        found = [self._desk.find(p.record.trade_id, "buyer") for p in opened if self._given(p)]
        self._trades = [trade for trade in found if trade is not None] or self._trades
        return last

    async def rejoin(self) -> None:
        """Be in the round that was taken up until all others are through with it.

        They may have been cut off before they had tried what it offers: it is on offer again.
        """
        if self.architecture is None or self.progress is None:
            raise LocalProtocolError("there is no round to be in: take it up first")
        await self._offering.put(parse_architecture(self.architecture), self.progress.root)
        for stage in STAGES:
            await self._meet(self.progress.round + 1, stage)

    def _has_bought(self) -> bool:
        """Whether the round that is not over has bought weights, or may still get them."""
        opened = journalled.under_way(self._station.journal, self.progress)
        return any(not purchase.settled or self._given(purchase) for purchase in opened)

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
            best = max(trial.result.gain for trial in trials)
            self._seller.own_gain_value = self._settings.value_of(best)
        return trials, failed

    async def _buy_best(self, number: int, base: tuple[Digest, Offer], trials: list[Tried]) -> Step:
        best = max(trials, key=self._merit)
        because = self._objection(best)
        trade: Trade | None = None
        if not because:
            try:
                most = await self._purse.left(best.offer.seller)
                best, answer = await self._asking.buy(
                    best, base, self._desk, most=most, objection=self._objection
                )
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
                    trade = answer
                    because = await self._settled(trade)
        return step_of(number, best, because, trade)

    async def _settled(self, trade: Trade) -> str:
        self._trades = [trade]
        await trade.settled.wait()
        self._trades = [trade] if self._giving() else []
        return BOUGHT if self._trades else str(trade.machine.state.value)

    async def _buy_in_call(self, number: int, base: Named, trials: list[Tried]) -> list[Step]:
        def opened(tried: Tried, trade: Trade) -> None:
            self._bought.add(tried.offer_digest)
            self._trades.append(trade)

        steps = await self._calling.buy(
            number, trials, objection=self._objection, opened=opened,
            again=lambda offered: self._try(base, offered),
        )  # fmt: skip
        given = {purchase.record.trade_id for purchase in self._giving()}
        self._trades = [t for t in self._trades if t.machine.record.trade_id in given]
        return in_order_of_gain(steps, given)

    def _merit(self, trial: Tried) -> tuple[bool, bool, int, int]:
        found, favoured = trial.result, self._settings.strategy.favours(trial.offer)
        return not self._objection(trial), favoured, found.bound, found.gain

    def _objection(self, trial: Tried) -> str:
        found, favoured = trial.result, self._settings.strategy.favours(trial.offer)
        return self._settings.objection(found.alpha, found.gain, found.bound, favoured=favoured)

    async def _try(self, base: tuple[Digest, Offer], offered: tuple[Digest, Offer]) -> Tried:
        return await self._asking.try_offer(base, offered)

    async def _new_offers(self, architecture: str, expected: int) -> list[tuple[Digest, Offer]]:
        parts = self._offering.parts(parse_architecture(architecture))
        return await new_offers(
            self._station,
            self._settings,
            architecture,
            parts=parts,
            expected=expected * (1 if parts is None else len(parts)),
            brokers=self._brokers.peers,
            tried=self._forget_offers,
            missed=self._missed,
        )

    def _forget_offers(self) -> set[Digest]:
        """Return what was tried; no offer is kept in mind that left the book, but the bought."""
        live = {name for name, _ in self._station.book.offers(self._station.clock())}
        self._tried &= live | self._bought
        self._missed &= live
        return self._tried

    # ── what was bought ──

    def _giving(self) -> list[Purchase]:
        machines = [trade.machine for trade in self._trades]
        return [one for one in machines if isinstance(one, Purchase) and self._given(one)]

    def _given(self, purchase: Purchase) -> bool:
        """Whether merged weights were delivered as measured, and lie in the store."""
        root = purchase.record.evaluation.merged_root
        return purchase.state in GAVE_WEIGHTS and self._station.blobs.has(root)

    # ── the journal, and the blobs ──

    def load(self, architecture: str, root: Digest) -> dict[str, torch.Tensor]:
        """Return the tensors of a blob of ours."""
        return read_tensors(self._station.blobs, architecture, root)

    def _remember(self, progress: Progress) -> Progress:
        journalled.remember(self._station.journal, progress)
        self.progress = progress
        return progress

    def _keep(self, parameters: Tensors) -> BlobRef:
        return self._station.blobs.put_bytes(encode_tensors(parameters))

    def forget_blobs(self) -> None:
        """Delete what nobody can ask for any more; what was bought stays."""
        kept = journalled.roots_kept(self._station.journal, self.progress)
        kept = kept.union(*map(roots_of, self._desk.open_trades()))
        self._station.forget_blobs(kept)

    def _tell(self, step: Step) -> None:
        """Tell what a round came to, of each trade once."""
        if step.trade_id is not None:
            if step.trade_id in self._told:
                return
            self._told.add(step.trade_id)
        self._station.observer.emit(journalled.told(step))

    def _fault(self, during: str, error: RemoteProtocolError) -> None:
        peer = error.peer or self._brokers.current
        fault = PeerFault(peer=peer, during=during, reason=error.reason, detail=error.detail)
        self._station.observer.emit(fault)
