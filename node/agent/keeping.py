"""Sees every round of an agent to its end, beside whatever else the agent does.

    accepted ─► seen through ─► over
                     └─► a wrong root stands ─► outlasted ─► ended, taken back ─► over

A round may outlast many after it: what a wrong root keeps from us comes back only once that root
has expired. The houses are those that the journal names, whoever the brokers are now: besides the
chain nobody has to answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from node.agent.brokers import Brokers
from node.agent.taking_part import ClearingTerms, TakingPart
from node.chain.errors import ChainUnavailableError, WrongContractError
from node.chronicle import OurFault
from node.protocol.participation import Participation, ParticipationRecord
from node.protocol.types import Address, PeerId
from node.settlement import rounds
from node.settlement.cashier import Cashier
from node.station.station import Station

RETRY_SECONDS: Final = 2.0
OUTLAST_SECONDS: Final = 60.0
"""Between two looks at a round that only waits for its root to expire."""
KEPT_ROUNDS: Final = 16
"""How many rounds that are over stay in the journal."""


@dataclass
class _Kept:
    part: Participation
    seen: trio.Event = field(default_factory=trio.Event)
    """Set once the round is over, or outlasting."""


class RoundKeeper:
    """Everything that one account has in houses. `run` returns only when it is cancelled."""

    def __init__(
        self, station: Station, brokers: Brokers, terms: ClearingTerms, turn: trio.Lock
    ) -> None:
        """`turn` is held while a transaction of the account is on its way."""
        self._station = station
        self._brokers = brokers
        self._terms = terms
        self._turn = turn
        self._opening = trio.Lock()
        self._cashiers: dict[Address, Cashier] = {}
        self._kept: dict[int, _Kept] = {}
        self._begun, self._to_begin = trio.open_memory_channel[_Kept](math.inf)

    async def run(self) -> None:
        """Go on with what the journal has, and with what is accepted from now on."""
        for part in self.parts():
            if not part.over:
                self._begin(part)
        async with trio.open_nursery() as nursery:
            async for kept in self._to_begin:
                nursery.start_soon(self._keep, kept)

    async def seen_through(self, part: Participation) -> Participation:
        """Return once nothing more can be done about a round today; as it is then."""
        if part.over:
            return part
        kept = self._kept.get(part.record.number) or self._begin(part)
        await kept.seen.wait()
        return kept.part

    def parts(self) -> list[Participation]:
        """Return the rounds that the journal has, by their number."""
        found = rounds.recall(self._station.journal, rounds.JOINED, ParticipationRecord)
        return [Participation(record) for record in found.values()]

    def distrusted(self) -> Mapping[Address, ParticipationRecord]:
        """Return the brokers whose root was not what they published, each with its round."""
        return {part.record.broker: part.record for part in self.parts() if part.wronged}

    async def cashier(self, address: Address) -> Cashier:
        """Return who sends our calls of a house; waits for the chain.

        Raises `WrongContractError` if it is none.
        """
        async with self._opening:
            while address not in self._cashiers:
                try:
                    house = await trio.to_thread.run_sync(self._terms.open_house, address)
                except ChainUnavailableError:
                    await trio.sleep(RETRY_SECONDS)
                    continue
                station = self._station
                self._cashiers[address] = Cashier(
                    house, station.journal, station.observer, self._turn
                )
            return self._cashiers[address]

    def _begin(self, part: Participation) -> _Kept:
        kept = self._kept[part.record.number] = _Kept(part)
        self._begun.send_nowait(kept)
        return kept

    async def _keep(self, kept: _Kept) -> None:
        part, told = kept.part, False
        while True:
            try:
                cashier = await self.cashier(part.record.clearing_house)
            except WrongContractError as error:  # the chain is another than it was
                if not told:
                    self._station.observer.emit(OurFault(during="round", reason=str(error)))
                told = True
            else:
                taking = TakingPart(self._station, cashier, self._terms.audit, self.peer_of)
                await taking.see_through(part)
            kept.seen.set()
            if part.over:
                break
            await trio.sleep(OUTLAST_SECONDS)
        del self._kept[part.record.number]
        self._forget()

    def _forget(self) -> None:
        """Forget rounds that were over long ago; a broker that wronged us is not forgotten."""
        over = [part.record for part in self.parts() if part.over and not part.wronged]
        rounds.forget(self._station.journal, rounds.JOINED, over[:-KEPT_ROUNDS])

    def peer_of(self, account: Address) -> PeerId:
        """Return the broker that signs as an account, else the one that is asked now."""
        for peer in self._brokers.peers:
            notice = self._station.notice_of(peer)
            if notice is not None and notice.broker == account:
                return peer
        return self._brokers.current
