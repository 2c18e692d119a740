"""The quorum from one broker's side: it leads its own trials, and is a member in its peers'."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import trio

from broker_node.appraisal import Appraiser, Trial
from broker_node.bases import Bases
from broker_node.quorum.lead import Lead, Papers
from broker_node.quorum.member import Member, Models
from broker_node.quorum.pen import Pen
from broker_node.quorum.seats import Seats
from broker_node.settings import BrokerSettings
from node.chain.port import Escrow
from node.chronicle import OurFault
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import Digest
from node.station.station import Answer, Question, Station

ALONE: Final = (1, 1)
"""The quorum of a broker that signs by itself."""
PIN_SECONDS: Final = 5.0
"""Between two looks at what was gossiped, for brokers that we did not know."""


class Bench:
    """All that a broker does as one of several; one that signs alone does nothing here."""

    def __init__(
        self,
        station: Station,
        escrow: Escrow,
        appraiser: Appraiser,
        models: Models,
        settings: BrokerSettings,
        compute: trio.CapacityLimiter,
    ) -> None:
        self._station = station
        self._seats = Seats(station, escrow, settings.peers)
        pen = Pen(station)
        alone = settings.quorum == ALONE
        self.lead = None if alone else Lead(station, self._seats, pen, settings)
        """None for a broker that signs alone."""
        self._member = Member(station, self._seats, pen, appraiser, models, settings, compute)

    def answers(self) -> Mapping[Question, Answer]:
        """The kinds of request that it answers."""
        return {} if self.lead is None else self._member.answers()

    async def run(self) -> None:
        """Keep up with the others, for ever."""
        if self.lead is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._seats.run)
                nursery.start_soon(self._pin_for_ever)

    async def _pin_for_ever(self) -> None:
        """Learn the others' seeds when they are said, and not when a trial is to be measured."""
        while True:
            heard = self._station.heard
            try:
                await self._member.pin_seeds()
            except RemoteProtocolError as error:  # the chain is away: there will be another look
                self._station.observer.emit(OurFault(during="pin-seeds", reason=str(error)))
            await trio.sleep(PIN_SECONDS)
            await heard.wait()

    def holds(self, case: Digest, trial: Trial) -> bool:
        """Whether a quote for this trial can be signed: a quorum still stands by it."""
        return self.lead is None or self.lead.holds(case, trial)

    async def agree(
        self,
        trial: Trial,
        bases: Bases,
        notice: Digest,
        base: Digest,
        offer: Digest,
        *,
        deadline: float = math.inf,
    ) -> Trial:
        """Return the trial as the quorum sees it, before `deadline`, by the clock of trio.

        Raises `RemoteProtocolError`.
        """
        if self.lead is None:
            return trial
        said = []
        for name in (notice, base, offer):
            data = self._station.book.data_of(name) or bases.data_of(name)
            if data is None:
                raise RemoteProtocolError("unknown-offer", name.hex())
            said.append(data)
        papers = Papers(notice=said[0], base=said[1], offer=said[2])
        return await self.lead.agree(trial, papers, deadline=deadline)
