"""Sees a participation in a round of a clearing house to its end: look, journal, act, look again.

The rules are `node.protocol.participation`; what a root must be is computed by `audit`, from what
the broker published and what the chain says was paid, and compared with what is on chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from node.chain.clearing import Web3ClearingHouse
from node.chain.rounds import Claim, Expire, HouseCall, Pay, Reclaim, Withdraw
from node.chronicle import ClearingChanged, PeerFault, RootDisputed
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from node.protocol.participation import Act, Judgement, Participation
from node.protocol.pooling import (
    AskCleared,
    Cleared,
    Heard,
    Objection,
    publication_digest,
)
from node.protocol.pot import Sight
from node.protocol.signing import recover
from node.protocol.sum_tree import SumTree
from node.protocol.types import NO_ADDRESS, Address, Digest, PeerId, Wei
from node.settlement import rounds
from node.settlement.cashier import DONE, UNWANTED, Cashier
from node.station.station import Station

POLL_SECONDS: Final = 0.4
AFTER_REFUSAL: Final = 5.0
"""A call that the house refused cost gas: what the chain shows may differ after a while."""


class Audit(Protocol):
    """The mechanism, as a participant needs it: pure, and told once at the start."""

    def due(self, inputs: bytes, account: Address, broker: Address, terms: ClearingTerms) -> Wei:
        """Return what an account is to pay by these inputs.

        Raises `MarketError`, also if they are not of what the account asked for by its `terms`.
        """

    def payers(self, inputs: bytes) -> tuple[Address, ...]:
        """Return every account that may have paid. Raises `MarketError`."""

    def leaves(
        self, invited: bytes, inputs: bytes, paid: Mapping[Address, Wei]
    ) -> tuple[tuple[Address, Wei], ...]:
        """Return what the leaves of the root must be. Raises `MarketError`."""

    def models(self, inputs: bytes, account: Address) -> tuple[Bought, ...]:
        """Return the models that an account gets which do better than its own, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """A model that a participant may have."""

    root: bytes
    byte_length: int
    performance: float
    """0 … 1, on the broker's rows."""


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


class TakingPart:
    """Everything that one participant does about a round of one house."""

    def __init__(
        self,
        station: Station,
        cashier: Cashier,
        audit: Audit,
        peer_of: Callable[[Address], PeerId],
    ) -> None:
        """`peer_of`: whom to ask what a broker's account has published."""
        self._station = station
        self._cashier = cashier
        self._audit = audit
        self._peer_of = peer_of
        self._told: set[tuple[str, str]] = set()

    async def see_through(self, part: Participation) -> None:
        """Return once the round is over for us, or is only to be outlasted.

        Of one that is outlasted already this is one look, unless there is something to do again.
        """
        if not part.outlasting:
            self._save(part)
        while not part.over:
            before = rounds.encoded(part.record)
            sight = await self._cashier.ask(self._sight_of(part))
            acts = part.see(sight)
            if rounds.encoded(part.record) != before:
                self._save(part)
            for act in acts:
                await self._do(act, part, sight)
            if part.outlasting:
                return
            if not part.over:
                await trio.sleep(POLL_SECONDS)

    def _sight_of(self, part: Participation) -> Callable[[Web3ClearingHouse], Sight]:
        record = part.record
        return lambda house: rounds.look(
            house, record.opening.round, leaf=record.leaf, judged=record.judged
        )

    async def _do(self, act: Act, part: Participation, sight: Sight) -> None:
        record, us = part.record, self._station.account
        name = record.opening.round
        match act:
            case Act.PAY:
                await self._send(
                    part,
                    act,
                    Pay(name, NO_ADDRESS, us, part.lacks(sight)),
                    # a wei that a stranger paid for us is no payment of ours
                    done=lambda house: house.paid_in(name, us) >= record.due,
                    wanted=lambda: part.may_pay(self._station.clock()),
                )
            case Act.JUDGE:
                await self._judge(part, sight)
            case Act.OBJECT:
                await self._object(part, sight)
            case Act.CLAIM:
                tree, leaf = _tree(part), record.leaf
                posted = await self._cashier.ask(lambda house: house.posted(tree))
                if posted is None or leaf is None:
                    return  # it was taken away since; the next look shows that
                await self._send(
                    part,
                    act,
                    Claim(posted, leaf, tree.payouts[leaf], tree.path(leaf)),
                    done=lambda house: house.claimed(name, leaf),
                )
            case Act.EXPIRE:
                await self._send(
                    part, act, Expire(name), done=lambda house: not _posted(house, name)
                )
            case Act.RECLAIM:
                await self._send(
                    part,
                    act,
                    Reclaim(name, us),
                    done=lambda house: house.paid_in(name, us) == 0,
                )
            case Act.WITHDRAW:
                await self._send(
                    part,
                    act,
                    Withdraw(NO_ADDRESS, us),
                    done=lambda house: house.credit(NO_ADDRESS, us) == 0,
                )

    async def _send(
        self,
        part: Participation,
        act: Act,
        call: HouseCall,
        *,
        done: Callable[[Web3ClearingHouse], bool],
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        ended = await self._cashier.carry_out(
            part.record.opening.round, f"clearing-{act.value}", call, done=done, wanted=wanted
        )
        if ended not in (DONE, UNWANTED):
            await trio.sleep(AFTER_REFUSAL)

    # ── the root ──

    async def _judge(self, part: Participation, sight: Sight) -> None:
        """Compare the posted root with ours; what cannot be had yet is asked for again."""
        record, broker = part.record, self._peer_of(part.record.broker)
        name = record.opening.round
        try:
            told = await self._station.ask(broker, AskCleared(round=name), Cleared)
        except RemoteProtocolError as error:
            self._fault(broker, "clearing", error)
            return
        reason, leaf, amount, given = "", None, Wei(0), _leaves_told(part, told)
        try:
            self._check_signature(part, told)
            ours = await self._leaves(part, told.inputs)
            tree = await trio.to_thread.run_sync(SumTree, name, ours)
            if await self._cashier.ask(lambda house: house.posted(tree)) is None:
                reason = "wrong-root"
            else:
                given = ours
        except (RemoteProtocolError, LocalProtocolError) as error:
            reason = str(error)[:1_000]
        if reason and given:
            tree = await trio.to_thread.run_sync(SumTree, name, given)
            if await self._cashier.ask(lambda house: house.posted(tree)) is None:
                given = ()
        for index, (account, owed) in enumerate(given):
            if account == self._station.account:
                leaf, amount = index, owed
                break
        acts = part.judge(
            Judgement(
                root=sight.root,
                right=not reason,
                reason=reason,
                leaf=leaf,
                amount=amount,
                inputs=told.inputs,
                accounts=tuple(account for account, _ in given),
                amounts=tuple(owed for _, owed in given),
            )
        )
        self._save(part)
        for act in acts:
            await self._do(act, part, sight)

    def _check_signature(self, part: Participation, told: Cleared) -> None:
        record = part.record
        if told.round != record.opening.round:
            raise RemoteProtocolError("another-round", told.round.hex())
        named = publication_digest(self._cashier.house.domain, told.round, told.inputs)
        if recover(named, told.signature) != record.broker:
            raise RemoteProtocolError("bad-signature", f"not by {record.broker}")

    async def _leaves(self, part: Participation, inputs: bytes) -> tuple[tuple[Address, Wei], ...]:
        """Compute the leaves from the published inputs and what the chain says was paid."""
        payers = await trio.to_thread.run_sync(self._audit.payers, inputs)
        name = part.record.opening.round
        paid, found = await self._cashier.ask(lambda house: rounds.payments(house, name, payers))
        if sum(paid.values()) != found.pot:
            raise RemoteProtocolError("others-paid", f"the pot is {found.pot}")
        invited = part.record.invited
        return await trio.to_thread.run_sync(self._audit.leaves, invited, inputs, paid)

    async def _object(self, part: Participation, sight: Sight) -> None:
        record, broker = part.record, self._peer_of(part.record.broker)
        self._station.observer.emit(
            RootDisputed(
                round_id=record.opening.round,
                broker=record.broker,
                root=record.judged,
                reason=record.reason,
                seconds_left=sight.stands_from - sight.now,
            )
        )
        said = Objection(
            round=record.opening.round, version=sight.version, reason=record.reason[:200]
        )
        try:
            await self._station.ask(broker, said, Heard)
        except RemoteProtocolError as error:
            self._fault(broker, "objection", error)

    # ── saying ──

    def _save(self, part: Participation) -> None:
        record = part.record
        rounds.save(self._station.journal, rounds.JOINED, record.number, record)
        self._station.observer.emit(
            ClearingChanged(
                round_id=record.opening.round,
                number=record.number,
                side="participant",
                state=record.state,
                due=record.due,
                amount=record.amount,
                reason=record.reason,
            )
        )

    def _fault(self, peer: PeerId, during: str, error: RemoteProtocolError) -> None:
        """Tell of a fault of the broker's, each once."""
        if (during, error.reason) in self._told:
            return
        self._told.add((during, error.reason))
        self._station.observer.emit(
            PeerFault(peer=peer, during=during, reason=error.reason, detail=error.detail)
        )


def _leaves_told(part: Participation, told: Cleared) -> tuple[tuple[Address, Wei], ...]:
    """Return the leaves as the broker lists them, if they could be those of a tree."""
    if not told.accounts or len(told.accounts) != len(told.amounts):
        return ()
    leaves = tuple(zip(told.accounts, told.amounts, strict=True))
    try:
        SumTree(part.record.opening.round, leaves)
    except MarketError:
        return ()
    return leaves


def _posted(house: Web3ClearingHouse, name: Digest) -> bool:
    found = house.round(name)
    return found is not None and found.posted_at != 0


def _tree(part: Participation) -> SumTree:
    record: Any = part.record
    return SumTree(record.opening.round, list(zip(record.accounts, record.amounts, strict=True)))
