"""The broker's side of a round of a clearing house.

It begins when all who come have brought their models and what each is to pay is known.

| state      | what is seen                                | next       | effects  |
|------------|---------------------------------------------|------------|----------|
| opening    | the round is on chain                       | collecting |          |
| opening    | it is not, in time                          | opening    | open     |
| opening    | it is not, past pay_by                      | failed     |          |
| collecting | past pay_by, something was paid             | computing  | compute  |
| collecting | past pay_by, nothing was paid               | over       |          |
| computing  | computed                                    | posting    | post     |
| computing  | past post_by                                | failed     |          |
| posting    | a root is there                             | challenged |          |
| posting    | none, in time                               | posting    | post     |
| posting    | none, past post_by                          | failed     |          |
| challenged | it was taken back, in time                  | posting    | post     |
| challenged | it was taken back, past post_by             | failed     |          |
| challenged | it stands, and owes us                      | claiming   | claim    |
| challenged | it stands, and owes us nothing              | over       |          |
| claiming   | claimed                                     | credited   | withdraw |
| claiming   | the root expired                            | over       |          |
| credited   | nothing is owed to us                       | over       |          |

What is posted is in the record before it is: a broker that was killed in between posts the same
again. A round that failed costs nobody anything but gas: who paid takes it back.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Final

from node.protocol.clearing import Opening
from node.protocol.errors import LocalProtocolError
from node.protocol.pot import Sight
from node.protocol.schema import Message
from node.protocol.types import Address, Wei


class ConveningState(enum.Enum):
    OPENING = "opening"
    COLLECTING = "collecting"
    COMPUTING = "computing"
    POSTING = "posting"
    CHALLENGED = "challenged"
    CLAIMING = "claiming"
    CREDITED = "credited"
    OVER = "over"
    FAILED = "failed"


S = ConveningState
CONVENING_ENDS: Final = frozenset({S.OVER, S.FAILED})


class Duty(enum.Enum):
    """What the shell is to do; each is safe to repeat."""

    OPEN = "open"
    COMPUTE = "compute"
    POST = "post"
    CLAIM = "claim"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConveningRecord(Message):
    """All that a broker must not forget of a round; what the journal keeps."""

    state: str
    number: int
    since: int
    """The block before which nothing of the round is on chain."""
    opening: Opening
    statements: tuple[bytes, ...]
    """The models brought, each as it was signed, in the order of the parties."""
    dues: tuple[Wei, ...]
    invited: bytes
    """The inputs that the dues follow from."""
    inputs: bytes
    """What is published; nothing before it is computed."""
    accounts: tuple[Address, ...]
    """Of the leaves."""
    amounts: tuple[Wei, ...]
    leaf: int | None
    """Ours."""


class Convening:
    """One round, from its opening to the last wei of ours. Only `see` and `computed` change it."""

    def __init__(self, record: ConveningRecord) -> None:
        self.record = record

    @classmethod
    def agreed(
        cls,
        *,
        number: int,
        since: int,
        opening: Opening,
        statements: tuple[bytes, ...],
        dues: tuple[Wei, ...],
        inputs: bytes,
    ) -> Convening:
        """Return the machine of a round that is to be opened."""
        return cls(
            ConveningRecord(
                state=S.OPENING.value,
                number=number,
                since=since,
                opening=opening,
                statements=statements,
                dues=dues,
                invited=inputs,
                inputs=b"",
                accounts=(),
                amounts=(),
                leaf=None,
            )
        )

    @property
    def state(self) -> ConveningState:
        return S(self.record.state)

    @property
    def over(self) -> bool:
        return self.state in CONVENING_ENDS

    def see(self, sight: Sight) -> list[Duty]:
        """Take in a look at the chain; return what is to be done now."""
        opening = self.record.opening
        match self.state:
            case S.OPENING:
                if sight.opened:
                    return self._move(S.COLLECTING)
                return self._move(S.FAILED) if sight.now > opening.pay_by else [Duty.OPEN]
            case S.COLLECTING:
                if sight.now <= opening.pay_by:
                    return []
                return self._move(S.COMPUTING, Duty.COMPUTE) if sight.pot else self._move(S.OVER)
            case S.COMPUTING:
                return self._move(S.FAILED) if sight.now > opening.post_by else [Duty.COMPUTE]
            case S.POSTING:
                if sight.posted:
                    return self._move(S.CHALLENGED)
                return self._move(S.FAILED) if sight.now > opening.post_by else [Duty.POST]
            case S.CHALLENGED:
                return self._challenged(sight)
            case S.CLAIMING:
                if sight.claimed:
                    return self._move(S.CREDITED, Duty.WITHDRAW)
                return [Duty.CLAIM] if sight.posted else self._move(S.OVER)
            case S.CREDITED:
                return [Duty.WITHDRAW] if sight.credit else self._move(S.OVER)
            case _:
                return []

    def computed(
        self,
        *,
        inputs: bytes,
        accounts: tuple[Address, ...],
        amounts: tuple[Wei, ...],
        leaf: int | None,
    ) -> list[Duty]:
        """Take in what the round comes to. Raises `LocalProtocolError` out of its turn."""
        if self.state is not S.COMPUTING:
            raise LocalProtocolError(f"nothing is to be computed in state {self.state.value}")
        self.record = dataclasses.replace(
            self.record, inputs=inputs, accounts=accounts, amounts=amounts, leaf=leaf
        )
        return self._move(S.POSTING, Duty.POST)

    def _challenged(self, sight: Sight) -> list[Duty]:
        if not sight.posted:
            late = sight.now > self.record.opening.post_by
            return self._move(S.FAILED) if late else self._move(S.POSTING, Duty.POST)
        if not sight.stands:
            return []
        leaf = self.record.leaf
        if leaf is not None and self.record.amounts[leaf]:
            return self._move(S.CLAIMING, Duty.CLAIM)
        return self._move(S.OVER)

    def _move(self, state: ConveningState, *duties: Duty) -> list[Duty]:
        self.record = dataclasses.replace(self.record, state=state.value)
        return list(duties)
