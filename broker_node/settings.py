"""What a broker is told once, at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.protocol.disclosure import Disclosure
from node.protocol.errors import LocalProtocolError
from node.protocol.messages import MAX_CALL_SECONDS
from node.protocol.offer import MAX_LIFETIME
from node.protocol.quorum import MAX_BROKERS
from node.protocol.types import Digest

LEAST_PRICE_HISTORY: Final = 3_600
"""What a receipt must have left, in seconds, when the payment of the slowest trade falls due:
it has yet to be collected and confirmed, and then to be read as a price."""
REPLICAS: Final = ("refuse", "report", "ignore")


class ReceiptTooShortError(LocalProtocolError):
    """The longest trade of these settings is paid when its receipt is good no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """How one broker behaves. Durations are seconds.

    A receipt is signed with its quote, whose digest of it is what the parties agree to, and
    published once the trade was paid. The last trade to be paid is funded in its last second,
    revealed in the last second before a refund, and then waits for its dispute window; the
    book keeps no statement for longer than `MAX_LIFETIME`.
    """

    fee_basis_points: int
    fund_seconds: int
    reveal_seconds: int
    """From the last moment to fund to the last moment to reveal."""
    grace_seconds: int
    dispute_window_seconds: int
    notice_seconds: int = 3_600
    max_trials_remembered: int = 4_096
    max_model_bytes: int = 1024**3
    """The longest blob that is fetched, its header included."""
    max_models_held: int = 256
    max_models_bytes: int = 2 * 1024**3
    """The tensors of all models held; one that is larger is held alone."""
    trial_seed: Digest | None = None
    """Draws the rows of every trial; None for one drawn once for the life of the journal. The
    other brokers of a quorum hold us to the first that they heard of: it is set here, if lost."""
    disclosure: Disclosure = Disclosure.FULL
    """What a buyer hears of its trials before it has a deal."""
    receipt_seconds: int = MAX_LIFETIME
    quorum: tuple[int, int] = (1, 1)
    """How many brokers sign a quote, and of how many. More than half: no two quorums are without
    a broker in common, which would have to sign two quotes of one trade."""
    peers: tuple[str, ...] = ()
    """Multiaddresses of other brokers of the quorum; whoever is not named is heard of by gossip."""
    mechanism: str = "nash"
    """How prices are made: of each pair's bid and ask, or, ``eeg``, of all budgets in a call."""
    call_seconds: int = 30
    """How long after the first bid of a call the others are waited for."""
    replicas: str = "report"
    """What becomes of a model for sale that is like another account's: ``refuse``, ``report`` or
    ``ignore``."""
    scan: bool = False
    """Whether each trial's merge is looked at for what a merge should not bring."""

    def __post_init__(self) -> None:
        """Raises `ReceiptTooShortError`, and `LocalProtocolError` for what is no quorum."""
        needed, brokers = self.quorum
        if not (1 <= needed <= brokers <= MAX_BROKERS and 2 * needed > brokers):
            raise LocalProtocolError(
                f"quorum = {needed}/{brokers}: more than half must sign, of at most {MAX_BROKERS}"
            )
        if self.mechanism == "eeg" and brokers > 1:
            raise LocalProtocolError(
                f"quorum = {needed}/{brokers}: prices of a call (eeg) are one broker's, which no "
                "other could follow from a bid and an ask; let one sign, or bargain"
            )
        if self.replicas not in REPLICAS:
            raise LocalProtocolError(f"replicas = {self.replicas!r}: one of {', '.join(REPLICAS)}")
        if not 1 <= self.call_seconds <= MAX_CALL_SECONDS:
            raise LocalProtocolError(
                f"call_seconds = {self.call_seconds}: 1 to {MAX_CALL_SECONDS} s"
            )
        if self.receipt_seconds > MAX_LIFETIME:
            raise ReceiptTooShortError(
                f"receipt_seconds = {self.receipt_seconds}: a receipt is good for at most "
                f"{MAX_LIFETIME} s; give it no more"
            )
        room = self.receipt_seconds - LEAST_PRICE_HISTORY
        if self.longest_trade > room:
            raise ReceiptTooShortError(
                f"fund_seconds = {self.fund_seconds}, reveal_seconds = {self.reveal_seconds}, "
                f"grace_seconds = {self.grace_seconds} and dispute_window_seconds = "
                f"{self.dispute_window_seconds} make {self.longest_trade} s from a quote to its "
                f"payment: its receipt, good for {self.receipt_seconds} s, would come too late to "
                f"be price history; shorten them to {room} s together"
            )

    @property
    def longest_trade(self) -> int:
        """Seconds from a quote to the first moment at which its payment is surely due."""
        return (
            self.fund_seconds
            + self.reveal_seconds
            + self.grace_seconds
            + self.dispute_window_seconds
        )
