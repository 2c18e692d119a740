"""The broker that the buyer asked: has its peers measure, seal, open and sign.

    measured ─► replay ─► sealed figures ─► all opened ─► median ─► private result
    quote    ─► our signature ─► cosign ─► signatures, by rising account

A peer that is away, slow or of another opinion is left out; with fewer than a quorum there is no
result, and no deal, for the reason ``below-quorum``. All that there are have their time to measure:
were the first m enough, whoever makes its figure up would always be among them.

A peer that was restarted between two questions has forgotten its seal, or what it agreed to, and
so have we after a restart of our own: then the poll is held anew, in which nobody measures again
what it still knows.
"""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import trio

from broker_node.appraisal import Trial
from broker_node.quorum.pen import Pen
from broker_node.quorum.refusals import reasons_of, too_few, unsealed
from broker_node.quorum.seats import Seats
from broker_node.quorum.terms import check_parties
from broker_node.settings import BrokerSettings
from node.chronicle import PeerFault
from node.protocol.bids import BidAndAsk
from node.protocol.eip712 import digest
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.messages import (
    Cosign,
    Cosigned,
    Opened,
    OpenFigure,
    Replay,
    Sealed,
    StreamMessage,
)
from node.protocol.quorum import (
    Ballot,
    Commitment,
    Opening,
    case_of,
    figure_of,
    join_signatures,
)
from node.protocol.quote import Quote
from node.protocol.schema import raw_address
from node.protocol.signing import recover, sign_digest
from node.protocol.types import Address, Digest, PeerId
from node.station.station import Station
from node.station.turns import Turns

REPLAY_SECONDS: Final = 45.0
"""For a peer to fetch two models and to measure them."""
AGAIN_SECONDS: Final = 15.0
"""For the same, while a buyer waits for its quote."""
OPEN_SECONDS: Final = 5.0
COSIGN_SECONDS: Final = 10.0
STRAGGLER_SECONDS: Final = 5.0
"""So long the rest is waited for, once there is a quorum: peers that were late the last time,
and signatures, of which any m are as good."""
ANSWER_SECONDS: Final = 3.0
"""For what we found to reach whoever asked us, before it gives up."""
POLLS: Final = 2
ON_TIME: Final = 3
"""So often in a row a peer that was late is on time before it is waited for again: one that hangs
every other time would cost `REPLAY_SECONDS` as often."""
SILENT: Final = frozenset({"timeout", "too-slow"})
A = TypeVar("A", Sealed, Opened, Cosigned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """What a peer needs besides the evaluation, each as it was signed."""

    notice: bytes
    base: bytes
    offer: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Agreement:
    """A trial of which a quorum has the same opinion."""

    papers: Papers
    ballot: Ballot
    evaluation: Evaluation
    openings: tuple[Opening, ...]
    peers: Mapping[PeerId, Address]


class Lead:
    """Brings trials and quotes of this broker before its quorum."""

    def __init__(self, station: Station, seats: Seats, pen: Pen, settings: BrokerSettings) -> None:
        self._station = station
        self._seats = seats
        self._pen = pen
        self._settings = settings
        self._needed, self._brokers = settings.quorum
        self._agreed: OrderedDict[Digest, Agreement] = OrderedDict()
        self._late: dict[PeerId, int] = {}
        """Peers that had no word for us in time when they were asked to measure, and how often
        they are yet to be on time."""
        self._turns = Turns()

    def holds(self, case: Digest, trial: Trial) -> bool:
        """Whether we remember that our quorum said this of the trial."""
        known = self._agreed.get(case)
        return known is not None and known.evaluation == trial.evaluation

    async def agree(self, trial: Trial, papers: Papers, *, deadline: float = math.inf) -> Trial:
        """Return the trial with the figures that a quorum has agreed on.

        `deadline`: when whoever asked us gives up, by the clock of trio; we answer before.
        Raises `RemoteProtocolError`: ``below-quorum`` with what each peer said,
        ``seller-unreachable`` if all that they lacked are the models, ``figures-differ`` if we
        could not have measured the median ourselves, or ``broker-is-a-party``.
        """
        station = self._station
        (base_digest, base), (offer_digest, offer) = map(
            station.offer_in, (papers.base, papers.offer)
        )
        check_parties((station.account,), base, offer)
        case = case_of(trial.evaluation, base_digest, offer_digest)
        async with self._turns.of(case):
            known = self._agreed.get(case)
            if known is None:
                until = deadline - OPEN_SECONDS - ANSWER_SECONDS
                known = await self._poll(case, trial, papers, REPLAY_SECONDS, until)
        return replace(trial, evaluation=known.evaluation)

    async def cosign(
        self,
        case: Digest,
        trial: Trial,
        quote: Quote,
        receipt: bytes,
        bids: BidAndAsk,
        *,
        deadline: float = math.inf,
    ) -> bytes:
        """Return the signatures of a quorum, ours among them, as the escrow takes them.

        `deadline`: as of `agree`.

        Raises `RemoteProtocolError`: ``below-quorum``, ``trade-id-used``, ``chain-away``,
        ``not-of-the-quorum`` if we have no seat ourselves.
        """
        agreement = self._agreed.get(case)
        if agreement is None or agreement.evaluation != trial.evaluation:
            raise too_few(1, self._needed, [])
        if not await self._seats.is_seated(self._station.account):
            raise RemoteProtocolError("not-of-the-quorum", self._station.account)
        offer = self._station.offer_in(agreement.papers.offer)[1]
        # nobody is asked for what we would not sign ourselves
        ours = self._pen.sign(quote, offer_expires=offer.expires_at)
        found, why = await self._signatures(case, agreement, quote, receipt, bids)
        if len(found) + 1 < self._needed:  # who was restarted has to measure again
            until = deadline - OPEN_SECONDS - COSIGN_SECONDS - ANSWER_SECONDS
            agreement = await self._renewed(case, trial, agreement, until)
            if agreement.evaluation != trial.evaluation:  # the buyer is to be told of it first
                raise too_few(len(found) + 1, self._needed, why)
            found, why = await self._signatures(case, agreement, quote, receipt, bids)
        if len(found) + 1 < self._needed:
            self._agreed.pop(case, None)
            raise too_few(len(found) + 1, self._needed, why)
        signatures = {self._station.account: ours}
        for account in sorted(found, key=raw_address):
            if len(signatures) < self._needed:  # each that is not needed costs gas
                signatures[account] = found[account]
        agreement.ballot.signed()
        return join_signatures(signatures)

    async def _signatures(
        self,
        case: Digest,
        agreement: Agreement,
        quote: Quote,
        receipt: bytes,
        bids: BidAndAsk,
    ) -> tuple[dict[Address, bytes], list[str]]:
        """Ask for signatures that the escrow will take; and why there are none of the others."""
        question = Cosign(
            case=case, openings=agreement.openings, quote=quote, receipt=receipt, bids=bids
        )
        signing = digest(self._station.domain, quote)

        def check(account: Address, answer: Cosigned) -> None:
            if recover(signing, answer.signature) != account:
                raise RemoteProtocolError("wrong-signer", f"not signed by {account}")

        answers, why = await self._gather(
            agreement.peers, question, Cosigned, check, COSIGN_SECONDS, enough=self._needed - 1
        )
        said = reasons_of(agreement.peers, why)
        found: dict[Address, bytes] = {}
        for peer, answer in answers.items():
            account = agreement.peers[peer]
            if await self._seats.is_seated(account):  # or it would be a revert
                found[account] = answer.signature
            else:
                said.append(f"{account[:10]} not-of-the-quorum")
        return found, said

    async def _renewed(
        self, case: Digest, trial: Trial, known: Agreement, until: float
    ) -> Agreement:
        """Poll again, unless somebody has meanwhile."""
        async with self._turns.of(case):
            other = self._agreed.get(case)
            if other is not None and other is not known:
                return other
            self._agreed.pop(case, None)
            return await self._poll(case, trial, known.papers, AGAIN_SECONDS, until)

    # ── polls ──

    async def _poll(
        self, case: Digest, trial: Trial, papers: Papers, seconds: float, until: float
    ) -> Agreement:
        """Have peers seal and open, up to `POLLS` times. Raises `RemoteProtocolError`.

        They have so many seconds to measure, and none after `until`.
        """
        parties = {self._station.offer_in(data)[1].seller for data in (papers.base, papers.offer)}
        peers = await self._seats.others(self._brokers - 1, without=parties)
        why: list[str] = []
        found = 1
        for _ in range(POLLS):
            ballot = self._ballot(trial)
            left = max(0.0, min(seconds, until - trio.current_time()))
            fair = left >= min(seconds, AGAIN_SECONDS)
            fixed = await self._sealed(ballot, trial, papers, peers, left, fair=fair)
            openings, why = await self._opened(case, ballot, fixed, peers)
            found = len(openings)
            if found < self._needed:
                continue
            said = {opening.broker for opening in openings}
            agreement = self._agreed[case] = Agreement(
                papers=papers,
                ballot=ballot,
                evaluation=ballot.settle(openings),
                openings=openings,
                peers={peer: account for peer, account in peers.items() if account in said},
            )
            while len(self._agreed) > self._settings.max_trials_remembered:
                self._agreed.popitem(last=False)
            return agreement
        raise too_few(found, self._needed, why)

    def _ballot(self, trial: Trial) -> Ballot:
        station, subject = self._station, trial.evaluation
        ballot = Ballot(station.domain, station.account, subject, needed=self._needed)
        ballot.commit(figure_of(subject), Digest(secrets.token_bytes(32)))
        return ballot

    async def _sealed(
        self,
        ballot: Ballot,
        trial: Trial,
        papers: Papers,
        peers: Mapping[PeerId, Address],
        seconds: float,
        *,
        fair: bool,
    ) -> tuple[Commitment, ...]:
        """Return sealed figures of a quorum, ours among them, by rising account.

        Who is late is waited for no more, if its time was `fair`: it may be we who took long.
        """
        station = self._station

        def check(account: Address, answer: Sealed) -> None:
            if answer.commitment.broker != account:
                raise RemoteProtocolError("bad-commitment", answer.commitment.broker)
            ballot.check_commitment(answer.commitment)

        question = Replay(
            notice=papers.notice,
            base=papers.base,
            offer=papers.offer,
            subject=ballot.subject,
            recipe=trial.recipe,
        )
        found, why = await self._gather(
            peers,
            question,
            Sealed,
            check,
            seconds,
            enough=self._needed - 1,
            all_of=peers.keys() - self._late.keys(),
        )
        for peer in peers:
            on_time = peer in found or why.get(peer, "timeout") not in SILENT
            if on_time or fair:
                self._note(peer, on_time=on_time)
        if len(found) + 1 < self._needed:
            raise unsealed(len(found) + 1, self._needed, peers, why)
        ours = Commitment(
            broker=station.account,
            signature=sign_digest(station.keys.account, ballot.sealing),
            commitment=ballot.commitment,
        )
        fixed = [ours, *(answer.commitment for answer in found.values())]
        return tuple(sorted(fixed, key=lambda each: raw_address(each.broker)))

    def _note(self, peer: PeerId, *, on_time: bool) -> None:
        if not on_time:
            self._late[peer] = ON_TIME
        elif peer in self._late:
            self._late[peer] -= 1
            if not self._late[peer]:
                del self._late[peer]

    async def _opened(
        self,
        case: Digest,
        ballot: Ballot,
        fixed: tuple[Commitment, ...],
        peers: Mapping[PeerId, Address],
    ) -> tuple[tuple[Opening, ...], list[str]]:
        """Return the figures that were opened, and why the others were not."""
        sealers = {each.broker for each in fixed}
        ours = ballot.open(fixed, sealers)

        def check(account: Address, answer: Opened) -> None:
            if answer.opening.broker != account:
                raise RemoteProtocolError("bad-opening", answer.opening.broker)
            ballot.check_opening(answer.opening)

        asked = {peer: account for peer, account in peers.items() if account in sealers}
        answers, why = await self._gather(
            asked,
            OpenFigure(case=case, commitments=fixed),
            Opened,
            check,
            OPEN_SECONDS,
            enough=len(asked),
        )
        return (ours, *(answer.opening for answer in answers.values())), reasons_of(asked, why)

    async def _gather(
        self,
        peers: Mapping[PeerId, Address],
        question: StreamMessage,
        kind: type[A],
        check: Callable[[Address, A], None],
        seconds: float,
        *,
        enough: int,
        all_of: Collection[PeerId] = (),
    ) -> tuple[dict[PeerId, A], dict[PeerId, str]]:
        """Ask all at once; returns good answers, and why there is none of the others.

        Once there are `enough`, and all of `all_of` have answered one way or another, the rest
        has `STRAGGLER_SECONDS`. Whatever goes wrong with one peer is that peer's fault.
        """
        found: dict[PeerId, A] = {}
        why: dict[PeerId, str] = {}
        awaited = set(all_of)

        async def ask(peer: PeerId, account: Address, scope: trio.CancelScope) -> None:
            try:
                answer = await self._station.ask(peer, question, kind, seconds=seconds)
                check(account, answer)
            except MarketError as error:
                reason, detail = "unaskable", str(error)
                if isinstance(error, RemoteProtocolError):
                    reason, detail = error.reason, error.detail
                why[peer] = reason
                self._station.observer.emit(
                    PeerFault(
                        peer=peer,
                        during=type(question).__name__,
                        reason=reason,
                        detail=detail,
                    )
                )
            else:
                found[peer] = answer
            awaited.discard(peer)
            if not awaited and len(found) >= enough:
                scope.deadline = min(scope.deadline, trio.current_time() + STRAGGLER_SECONDS)

        async with trio.open_nursery() as nursery:
            for peer, account in peers.items():
                nursery.start_soon(ask, peer, account, nursery.cancel_scope)
        return found, why
