"""What brokers sign for a clearing house: a round that is opened, and a root that is posted.

They sign by the keys of their accounts, as EIP-712 data of the house's own domain, so that nothing
signed for an escrow is good for a round, or the other way round. What m of them signed goes to the
contract as `quorum.join_signatures` puts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.protocol.eip712 import domain_separator
from node.protocol.errors import LocalProtocolError
from node.protocol.schema import Message
from node.protocol.types import Address, Digest, UnixTime, Wei

CLEARING_NAME: Final = "pm-node clearing"
CLEARING_VERSION: Final = "1"
DAY: Final = 86_400
MAX_WINDOW: Final = 30 * DAY
"""The longest time from an opening to `pay_by`, from there to `post_by`, and of a challenge."""
EXPIRY: Final = 180 * DAY
"""For how long a root that stands can be claimed under, at the least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearingDomain(Message):
    """The one clearing house that a signature is good for."""

    chain_id: int
    clearing_house: Address

    @property
    def separator(self) -> bytes:
        """EIP-712's domain separator."""
        return domain_separator(CLEARING_NAME, CLEARING_VERSION, self.chain_id, self.clearing_house)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening(Message):
    """What is agreed on before a round begins."""

    round: Digest
    asset: Address
    """What is paid in and out: an ERC-20 token, or the zero address for ETH."""
    pay_by: UnixTime
    """The last second in which participants can pay in."""
    post_by: UnixTime
    """The last second in which a root can be posted."""
    challenge_period: int
    """Seconds in which a posted root can be vetoed or replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearing(Message):
    """The root of a round, as its brokers sign it: the `version`-th, from 0, that is posted."""

    round: Digest
    root: Digest
    sum: Wei
    leaves: int
    version: int


def check_opening(opening: Opening, now: UnixTime, minimum_challenge: int) -> None:
    """Raise `LocalProtocolError` unless a house takes this round at `now`."""
    if not now <= opening.pay_by <= now + MAX_WINDOW:
        raise LocalProtocolError(f"pay_by {opening.pay_by} is not within 30 days of {now}")
    if not 0 < opening.post_by - opening.pay_by <= MAX_WINDOW:
        raise LocalProtocolError(
            f"post_by {opening.post_by} is not within 30 days after pay_by {opening.pay_by}"
        )
    if not minimum_challenge <= opening.challenge_period <= MAX_WINDOW:
        raise LocalProtocolError(
            f"a challenge lasts {minimum_challenge} to {MAX_WINDOW} s, "
            f"not {opening.challenge_period}"
        )
