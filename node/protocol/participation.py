"""One participant's side of a round of a clearing house.

It begins with an invitation that was accepted, and holds the participant's promise to itself: *what
I pay comes back by a root that I computed myself, or I say so while it can still be taken back.*

| state      | what is seen                                 | next       | effects  |
|------------|----------------------------------------------|------------|----------|
| paying     | nothing is due                               | waiting    |          |
| paying     | what is due was paid                         | waiting    |          |
| paying     | time to pay, less than is due was paid       | paying     | pay      |
| paying     | past pay_by, less was paid                   | waiting    |          |
| paying     | past pay_by, nothing was paid                | absent     |          |
| waiting    | a root                                       | waiting    | judge    |
| waiting    | no root, past post_by, we paid               | reclaiming | reclaim  |
| waiting    | no root, past post_by, we paid nothing       | settled    |          |
| waiting    | a root that stands for long, and no inputs   | outlasting |          |
| waiting    | judged: it is what we computed               | agreed     |          |
| waiting    | judged: it is another                        | objecting  | object   |
| agreed     | another root, or none                        | waiting    |          |
| agreed     | the root stands, and owes us                 | claiming   | claim    |
| agreed     | the root stands, and owes us nothing         | settled    |          |
| objecting  | another root, or none                        | waiting    |          |
| objecting  | the root stands, and we have a leaf in it    | claiming   | claim    |
| objecting  | the root stands, we have none, and paid      | outlasting |          |
| objecting  | the root stands, we have none, and paid none | wronged    |          |
| outlasting | a root of which we saw no inputs yet         | outlasting | judge    |
| outlasting | judged: it is what we computed               | agreed     |          |
| outlasting | judged: it is another                        | objecting  | object   |
| outlasting | the root can be ended                        | outlasting | expire   |
| outlasting | no root any more, and ours is in the pot     | reclaiming | reclaim  |
| outlasting | nothing of ours is in the pot                | wronged    |          |
| claiming   | claimed                                      | credited   | withdraw |
| claiming   | the root is no more                          | waiting    |          |
| reclaiming | nothing of ours is in the pot                | credited   | withdraw |
| credited   | nothing is owed to us; the root was ours     | settled    |          |
| credited   | nothing is owed to us; it was not; we paid   | outlasting |          |
| credited   | nothing is owed to us; it was not            | wronged    |          |

A payment is begun only with `PAY_MARGIN` left: one that comes late is refused by the house and
costs gas. It is of what the account lacks: anybody may pay a part for it, which keeps nobody from
paying the rest. Whatever was paid, be it too little, is in the pot and comes back by the root or
without. Somebody who objected still claims the leaf that a wrong root has for it: better than
nothing. What nobody could claim is for those who paid in once the root has expired, `EXPIRY` after
it stood: that is what *outlasting* waits for, while rounds go on elsewhere.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Final

from node.protocol.clearing import Opening
from node.protocol.errors import LocalProtocolError
from node.protocol.pot import NO_ROOT, Sight
from node.protocol.schema import Message
from node.protocol.types import Address, Digest, UnixTime, Wei

PAY_MARGIN: Final = 2
"""Seconds before `pay_by` in which no payment is begun any more."""
UNPUBLISHED_SECONDS: Final = 120
"""How long after a root stands its inputs are still asked for."""


class ParticipationState(enum.Enum):
    PAYING = "paying"
    WAITING = "waiting"
    AGREED = "agreed"
    OBJECTING = "objecting"
    CLAIMING = "claiming"
    RECLAIMING = "reclaiming"
    CREDITED = "credited"
    SETTLED = "settled"
    ABSENT = "absent"
    OUTLASTING = "outlasting"
    WRONGED = "wronged"


S = ParticipationState
PARTICIPATION_ENDS: Final = frozenset({S.SETTLED, S.ABSENT, S.WRONGED})
NO_ROOT_CAME: Final = "no-root"
UNPAID: Final = "unpaid"
_FAULTLESS: Final = frozenset({"", UNPAID, NO_ROOT_CAME})
"""Reasons that are nobody's lie: what was paid comes back."""


class Act(enum.Enum):
    """What the shell is to do; each is safe to repeat."""

    PAY = "pay"
    JUDGE = "judge"
    OBJECT = "object"
    CLAIM = "claim"
    EXPIRE = "expire"
    RECLAIM = "reclaim"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What we found a posted root to be, by the inputs that were published for it."""

    root: Digest
    """Which was judged: `Sight.root`."""
    right: bool
    reason: str
    """Why it is wrong; nothing if it is right."""
    leaf: int | None
    """Ours in the tree that has this root, if we know the tree and have one."""
    amount: Wei
    """What that leaf owes us."""
    inputs: bytes
    """What was published."""
    accounts: tuple[Address, ...] = ()
    """Of the leaves of the tree that has this root, if we know it."""
    amounts: tuple[Wei, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipationRecord(Message):
    """All that a participant must not forget; what the journal keeps."""

    state: str
    number: int
    """Of our own rounds, which it is, from 1."""
    clearing_house: Address
    broker: Address
    """Whose account signs what is published."""
    opening: Opening
    due: Wei
    invited: bytes
    """The inputs as they were when we were invited."""
    base_root: Digest
    """Of the model that we brought."""
    judged: Digest
    """The root that was judged last."""
    leaf: int | None
    amount: Wei
    inputs: bytes
    """What was published for the root that was judged last."""
    accounts: tuple[Address, ...]
    """Of its leaves, if we know them."""
    amounts: tuple[Wei, ...]
    reason: str
    """Why that was wrong, or anything else went so; else nothing."""


class Participation:
    """One round, from the invitation to the last wei. Only `see` and `judge` change its state."""

    def __init__(self, record: ParticipationRecord) -> None:
        self.record = record

    @classmethod
    def accepted(
        cls,
        *,
        number: int,
        clearing_house: Address,
        broker: Address,
        opening: Opening,
        due: Wei,
        inputs: bytes,
        base_root: Digest,
    ) -> Participation:
        """Return the machine of an invitation whose terms we take."""
        return cls(
            ParticipationRecord(
                state=S.PAYING.value,
                number=number,
                clearing_house=clearing_house,
                broker=broker,
                opening=opening,
                due=due,
                invited=inputs,
                base_root=base_root,
                judged=NO_ROOT,
                leaf=None,
                amount=Wei(0),
                inputs=b"",
                accounts=(),
                amounts=(),
                reason="",
            )
        )

    @property
    def state(self) -> ParticipationState:
        return S(self.record.state)

    @property
    def over(self) -> bool:
        return self.state in PARTICIPATION_ENDS

    @property
    def outlasting(self) -> bool:
        """Whether nothing is to be done before the root expires, or its inputs are published."""
        return self.state is S.OUTLASTING

    @property
    def wronged(self) -> bool:
        """Whether the root is not what follows from its inputs, or nobody was told them."""
        return self.record.reason not in _FAULTLESS

    def lacks(self, sight: Sight) -> Wei:
        """Return what is still to be paid of what is due, whoever paid the rest."""
        return Wei(max(self.record.due - sight.paid, 0))

    def may_pay(self, now: UnixTime) -> bool:
        """Whether there is time for a payment to be mined."""
        return now + PAY_MARGIN <= self.record.opening.pay_by

    def see(self, sight: Sight) -> list[Act]:
        """Take in a look at the chain; return what is to be done now."""
        match self.state:
            case S.PAYING:
                return self._paying(sight)
            case S.WAITING:
                return self._waiting(sight)
            case S.AGREED | S.OBJECTING:
                return self._judged(sight)
            case S.OUTLASTING:
                return self._outlasting(sight)
            case S.CLAIMING:
                if sight.claimed:
                    return self._move(S.CREDITED, Act.WITHDRAW)
                return [Act.CLAIM] if sight.root == self.record.judged else self._anew()
            case S.RECLAIMING:
                return self._move(S.CREDITED, Act.WITHDRAW) if not sight.paid else [Act.RECLAIM]
            case S.CREDITED:
                return [Act.WITHDRAW] if sight.credit else self._drawn(sight)
            case _:
                return []

    def judge(self, found: Judgement) -> list[Act]:
        """Take in what a root was found to be. Raises `LocalProtocolError` out of its turn."""
        if self.state not in (S.WAITING, S.OUTLASTING):
            raise LocalProtocolError(f"nothing is to be judged in state {self.state.value}")
        self._note(
            judged=found.root,
            leaf=found.leaf,
            amount=found.amount,
            inputs=found.inputs,
            accounts=found.accounts,
            amounts=found.amounts,
            reason="" if found.right else found.reason or "wrong-root",
        )
        return self._move(S.AGREED) if found.right else self._move(S.OBJECTING, Act.OBJECT)

    def _paying(self, sight: Sight) -> list[Act]:
        due = self.record.due
        if sight.paid >= due:
            return self._move(S.WAITING)
        if sight.now > self.record.opening.pay_by:
            self._note(reason=UNPAID)
            return self._move(S.WAITING if sight.paid else S.ABSENT)
        return [Act.PAY] if self.may_pay(sight.now) else []

    def _waiting(self, sight: Sight) -> list[Act]:
        if sight.posted:
            if sight.now > sight.stands_from + UNPUBLISHED_SECONDS:
                self._note(reason="unpublished")
                return self._move(S.OUTLASTING)
            return [Act.JUDGE]
        if sight.now > self.record.opening.post_by:
            self._note(reason=NO_ROOT_CAME)
            return self._move(S.RECLAIMING, Act.RECLAIM) if sight.paid else self._move(S.SETTLED)
        return []

    def _judged(self, sight: Sight) -> list[Act]:
        if sight.root != self.record.judged:
            return self._anew()
        if not sight.stands:
            return []
        if self.record.leaf is not None and self.record.amount:
            return self._move(S.CLAIMING, Act.CLAIM)
        return self._move(S.SETTLED) if self.state is S.AGREED else self._drawn(sight)

    def _anew(self) -> list[Act]:
        """Forget the root that was judged: it is no more."""
        self._note(
            judged=NO_ROOT, leaf=None, amount=Wei(0), inputs=b"", accounts=(), amounts=(), reason=""
        )
        return self._move(S.WAITING)

    def _outlasting(self, sight: Sight) -> list[Act]:
        if not sight.paid:
            return self._move(S.WRONGED)
        if not sight.posted:
            return self._move(S.RECLAIMING, Act.RECLAIM)
        if sight.now >= sight.expires_at:
            return [Act.EXPIRE]
        return [] if sight.root == self.record.judged else [Act.JUDGE]

    def _drawn(self, sight: Sight) -> list[Act]:
        """End, with nothing more to draw; or wait for what a wrong root keeps from us."""
        if not self.wronged:
            return self._move(S.SETTLED)
        return self._move(S.OUTLASTING if sight.paid else S.WRONGED)

    def _move(self, state: ParticipationState, *acts: Act) -> list[Act]:
        self.record = dataclasses.replace(self.record, state=state.value)
        return list(acts)

    def _note(self, **changes: object) -> None:
        self.record = dataclasses.replace(self.record, **changes)  # type: ignore[arg-type]
