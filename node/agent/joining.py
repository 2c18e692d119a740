"""How an agent comes into a round of a clearing house: it asks, and takes the terms or leaves them.

    join ─► not invited yet, join again, … ─► invited ─► terms that follow from the inputs ─► in
              └─ off, or another round than on chain, or not what we asked for, or too dear, or
                 no house that we can be in: no money of ours moves

No round is joined with a broker whose root was wrong before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from node.agent.brokers import Brokers
from node.agent.keeping import RoundKeeper
from node.agent.settings import AgentSettings
from node.agent.submission import Submission
from node.agent.taking_part import ClearingTerms
from node.chain.errors import ChainUnavailableError, WrongContractError
from node.chain.rounds import Round
from node.chronicle import BrokerDistrusted, ClearingOff
from node.protocol.clearing import Opening
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.participation import Participation
from node.protocol.pooling import JOIN_SECONDS, AskHouse, House, Invited, JoinRound, NotInvited
from node.protocol.types import NO_ADDRESS, Address, Digest, PeerId
from node.settlement.cashier import Cashier
from node.station.station import Station

UNKNOWN_BASE: Final = "unknown-base"
DISTRUSTED: Final = "distrusted-broker"
POLL_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 2.0
Report = Callable[[str, RemoteProtocolError], None]


class Joining:
    """Comes into the rounds of one agent. What goes wrong is reported, and told as the reason."""

    def __init__(
        self,
        station: Station,
        brokers: Brokers,
        keeper: RoundKeeper,
        terms: ClearingTerms,
        settings: AgentSettings,
        submission: Submission,
        report: Report,
    ) -> None:
        self._station = station
        self._brokers = brokers
        self._keeper = keeper
        self._terms = terms
        self._settings = settings
        self._submission = submission
        self._report = report
        self._seats: dict[PeerId, Cashier] = {}
        self._told: set[Address] = set()

    def choose(self, number: int) -> str:
        """Settle whom this round is joined by; returns why nobody, or nothing."""
        wronged = self._keeper.distrusted()
        by_peer = {
            peer: wronged[notice.broker]
            for peer in self._brokers.peers
            if (notice := self._station.notice_of(peer)) is not None and notice.broker in wronged
        }
        for peer, record in by_peer.items():
            if record.broker not in self._told:
                self._told.add(record.broker)
                self._station.observer.emit(
                    BrokerDistrusted(
                        peer=peer,
                        broker=record.broker,
                        round_id=record.opening.round,
                        reason=record.reason,
                    )
                )
        self._brokers.shunned = frozenset(by_peer)
        self._brokers.begin_round()
        if self._brokers.current not in by_peer:
            return ""
        record = by_peer[self._brokers.current]
        return self._off(number, DISTRUSTED, f"{record.broker}: {record.reason}")

    async def join(self, number: int, statement: bytes, root: Digest) -> Participation | str:
        """Ask to be counted in until we are, or there is no round; returns why not."""
        broker = self._brokers.current
        try:
            await self._sit(broker)  # before there is a time to pay by
        except RemoteProtocolError as error:
            await self._brokers.pass_over(error)  # the next round is another's, if there is one
            return self._off(number, error.reason, error.detail)
        base, _ = self._station.offer_in(statement)
        asked = JoinRound(base_digest=base, cost=self._terms.cost, reserve=self._terms.reserve)
        patience = trio.current_time() + self._settings.round_patience
        while True:
            try:
                answer = await self._station.ask_either(
                    broker, asked, Invited, NotInvited, seconds=JOIN_SECONDS
                )
            except RemoteProtocolError as error:
                self._report("join", error)
                if error.reason == UNKNOWN_BASE:  # it was restarted, and is told again
                    await self._submission.of_ours(statement)
                if trio.current_time() > patience:
                    return self._off(number, error.reason, error.detail)
                await trio.sleep(RETRY_SECONDS)
                continue
            if isinstance(answer, Invited):
                return await self._accept(number, broker, answer, root)
            if answer.off:
                return self._off(number, answer.reason)
            patience = trio.current_time() + self._settings.round_patience  # it is there
            await trio.sleep(POLL_SECONDS)

    async def _accept(
        self, number: int, broker: PeerId, answer: Invited, root: Digest
    ) -> Participation | str:
        """Take the terms of an invitation, if they are what follows from its inputs."""
        station, terms = self._station, self._terms
        try:
            cashier = await self._sit(broker)
            account = self._account_of(broker)
            due = await trio.to_thread.run_sync(
                terms.audit.due, answer.inputs, station.account, account, terms
            )
            if due != answer.due:
                raise RemoteProtocolError("wrong-due", f"{answer.due}, and not {due}")
            name = answer.opening.round
            self._check(answer.opening, await cashier.ask(lambda house: house.round(name)))
        except (RemoteProtocolError, LocalProtocolError) as error:
            reason = error.reason if isinstance(error, RemoteProtocolError) else "wrong-inputs"
            self._report("join", RemoteProtocolError(reason, str(error)))
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

    async def _sit(self, broker: PeerId) -> Cashier:
        """Return who calls the house that a broker clears in; waits for both to answer.

        Raises `RemoteProtocolError` if the broker has not named one that it sits in for as long as
        a round has patience. While the chain is away, that is no fault of the broker's.
        """
        told, patience = False, trio.current_time() + self._settings.round_patience
        while broker not in self._seats:
            try:
                house = await self._station.ask(broker, AskHouse(), House)
                if house.mechanism != self._terms.mechanism:
                    raise RemoteProtocolError("another-mechanism", house.mechanism, peer=broker)
                cashier = await self._keeper.cashier(house.clearing_house)
                account = self._account_of(broker)
                if not await trio.to_thread.run_sync(cashier.house.seats, account):
                    raise RemoteProtocolError("not-the-houses-broker", account, peer=broker)
            except (RemoteProtocolError, WrongContractError) as error:
                reason = getattr(error, "reason", "wrong-contract")
                fault = RemoteProtocolError(reason, str(error), peer=broker)
                if not told:
                    self._report("ask-house", fault)
                told = True
                if trio.current_time() >= patience:
                    raise fault from error
            except ChainUnavailableError:
                patience = trio.current_time() + self._settings.round_patience
            else:
                self._seats[broker] = cashier
                break
            await trio.sleep(RETRY_SECONDS)
        return self._seats[broker]

    def _account_of(self, broker: PeerId) -> Address:
        notice = self._station.notice_of(broker)
        if notice is None:
            raise RemoteProtocolError("no-notice", broker, peer=broker)
        return notice.broker

    def _off(self, number: int, reason: str, detail: str = "") -> str:
        self._station.observer.emit(ClearingOff(number=number, reason=reason, detail=detail[:300]))
        return reason
