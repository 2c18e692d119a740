"""Has a broker try and quote; and the next one, where that one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from node.agent.brokers import Brokers, fails
from node.agent.buyer import Buyer, NoPrice, Tried
from node.agent.submission import Submission
from node.net.errors import PeerTimeoutError, PeerUnreachableError
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import FAILING
from node.protocol.offer import Offer
from node.protocol.types import Digest, Wei
from node.settlement.desk import TradeDesk
from node.settlement.trade import Trade
from node.station.station import Station

FORGOTTEN: Final = frozenset({"unknown-offer", "unreachable", "timeout"})
Named = tuple[Digest, Offer]


class Asking:
    """The trials and quotes of one agent, whichever of its brokers gives them."""

    def __init__(
        self, station: Station, buyer: Buyer, brokers: Brokers, submission: Submission
    ) -> None:
        self._station = station
        self._buyer = buyer
        self._brokers = brokers
        self._submission = submission

    async def try_offer(self, base: Named, offered: Named) -> Tried:
        """As `Buyer.try_offer`; raises what says most of why no broker has tried it."""
        failed: RemoteProtocolError | None = None
        told = False
        while True:
            broker = self._brokers.current
            try:
                return await self._buyer.try_offer(broker=broker, base=base, offered=offered)
            except RemoteProtocolError as error:
                failed = _telling(failed, error)
                if fails(error) and await self._brokers.pass_over(error):
                    told = False
                    continue
                if told or error.reason not in FORGOTTEN:
                    raise failed from error
            await self._tell(base, offered)
            told = True

    async def buy(
        self,
        best: Tried,
        base: Named,
        desk: TradeDesk,
        *,
        most: Wei,
        objection: Callable[[Tried], str],
    ) -> tuple[Tried, Trade | NoPrice]:
        """As `Buyer.buy`; another broker measures first, for it quotes only what it has tried.

        Returns the trial that was bid on too. `objection`: why a trial is not bid on, if it is not.
        """
        while True:
            try:
                answer = await self._buyer.buy(best, desk, most=most)
            except RemoteProtocolError as error:
                if not fails(error):
                    raise
                given, failed = None, error
            else:
                if not isinstance(answer, NoPrice) or answer.reason not in FAILING:
                    return best, answer
                given, failed = answer, RemoteProtocolError(answer.reason)
            asked = best.notice.peer_id
            if asked == self._brokers.current and not await self._brokers.pass_over(failed):
                if given is None:
                    raise failed
                return best, given
            try:
                best = await self.try_offer(base, (best.offer_digest, best.offer))
            except RemoteProtocolError as error:
                raise _telling(failed, error) from error
            because = objection(best)
            if because:
                return best, NoPrice(because)

    async def _tell(self, base: Named, offered: Named) -> None:
        """Tell a broker what it is to try: one that was restarted, or that was not asked before."""
        for name, submit in (
            (base[0], self._submission.of_ours),
            (offered[0], self._submission.of_another),
        ):
            data = self._station.book.data_of(name)
            if data is not None:
                await submit(data)


def _telling(before: RemoteProtocolError | None, after: RemoteProtocolError) -> RemoteProtocolError:
    """Return the failure that says more: an answer before silence, the first of two."""
    if before is None or isinstance(before, PeerUnreachableError | PeerTimeoutError):
        return after
    return before
