"""What can happen at a node, in the market's words: every event that a shell emits.

Logs, metrics, the devnet's report and the crash tests all read these, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from node.observe import Event, Level
from node.protocol.types import Address, Digest, Millionths, PeerId, Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReady(Event):
    role: str
    peer_id: PeerId
    account: Address
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStopped(Event):
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainAway(Event):
    level: ClassVar[Level] = Level.WARNING
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainBack(Event):
    """The chain answers again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementPublished(Event):
    kind: str
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementJudged(Event):
    """Our verdict on a message from gossip."""

    level: ClassVar[Level] = Level.DEBUG
    sender: PeerId
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFault(Event):
    """A peer broke the protocol, or could not be reached; only its own business stops."""

    level: ClassVar[Level] = Level.WARNING
    peer: PeerId
    during: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerPassedOver(Event):
    """A broker has failed us: for the rest of the round another one of ours is asked."""

    level: ClassVar[Level] = Level.WARNING
    peer: PeerId
    reason: str
    instead: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class OurFault(Event):
    """A handler of ours failed; the peer was told so, and the node goes on."""

    level: ClassVar[Level] = Level.ERROR
    during: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialDone(Event):
    trial_id: Digest
    task: str
    gain: Millionths
    bound: Millionths
    alpha: Millionths
    seconds: float
    offer_digest: Digest | None = None
    """What was tried; a broker does not say."""
    control: Millionths | None = None
    """What the buyer's model gains by itself; of a broker that measures it, and tells nobody."""
    tuned: Millionths | None = None
    """What it gains by fine-tuning on the broker's labels, likewise."""
    doubts: tuple[str, ...] = ()
    """What makes the figure doubtful: ``constant`` models, ``several-minima``; a broker says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BidNamed(Event):
    """What a buyer says that a trade is worth to it, and what it is; nobody else hears the latter.

    The broker is told the lower of `bid` and `most`.
    """

    level: ClassVar[Level] = Level.DEBUG
    trade_id: Digest
    worth: Wei
    bid: Wei
    most: Wei
    """What its cash and budget allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskNamed(Event):
    """What a seller asks for, and all that it knew."""

    level: ClassVar[Level] = Level.DEBUG
    trade_id: Digest
    offer_digest: Digest
    ask: Wei
    cost: Wei
    """The reserve of what is offered."""
    fee_basis_points: int
    own_gain_value: Wei | None
    prices: tuple[Wei, ...]
    receipts: tuple[Digest, ...]
    """The trades that `prices` are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherGoodsOffered(Event):
    """Something else is on offer than what was trained."""

    offer_digest: Digest
    kind: str
    copied: Digest | None
    """The trade that it was bought in, if it is a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDealReached(Event):
    """Two parties have no price that both prefer to no trade."""

    offer_digest: Digest
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCleared(Event):
    """A broker has cleared one call of a market: what was bid, and what came of it.

    `market` and `outcome` are those of the mechanism, so that whoever reads this can have its
    certificate recomputed; the given rows are its allocations, made whole.
    """

    level: ClassVar[Level] = Level.DEBUG
    call: Digest
    mechanism: str
    buyers: tuple[Address, ...]
    sellers: tuple[Address, ...]
    budgets: Mapping[Address, str]
    """Wei, of all who bid."""
    market: Mapping[str, object]
    outcome: Mapping[str, object]
    """Empty where nobody could gain by anything."""
    valid: bool
    """Whether the certificate held."""
    given: Mapping[Address, tuple[Mapping[str, object], ...]]
    """By buyer: ``seller``, ``share`` of its layers, whole ``layers``, ``offer``, ``price`` in
    wei, ``predicted`` gain in millionths."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Event):
    """A promise or an effect is in the journal, and has not left this process yet."""

    level: ClassVar[Level] = Level.DEBUG
    trade_id: Digest
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent(Event):
    """It has left this process; nothing is known of its fate yet."""

    level: ClassVar[Level] = Level.DEBUG
    trade_id: Digest
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Event):
    """The bytes of a question have left this process; none of an answer was read yet."""

    level: ClassVar[Level] = Level.DEBUG
    peer: PeerId
    kind: str
    trade_id: Digest | None
    """Of the trade that the question names, if it names one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Event):
    """The bytes of an answer have left this process; nothing is known of their fate yet."""

    level: ClassVar[Level] = Level.DEBUG
    peer: PeerId
    kind: str
    trade_id: Digest | None
    """Of the trade that the answer or its question names, if one does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionMined(Event):
    trade_id: Digest
    step: str
    hash: Digest
    succeeded: bool
    gas: int
    revert: str | None = None
    """Why it failed: the name of the contract's error, a revert message, or ``unknown``."""
    values: Mapping[str, object] | None = None
    """What the contract's error says, by name; None where it is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionRefused(Event):
    level: ClassVar[Level] = Level.WARNING
    trade_id: Digest
    step: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionDelayed(Event):
    level: ClassVar[Level] = Level.WARNING
    trade_id: Digest
    step: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeChanged(Event):
    trade_id: Digest
    side: str
    state: str
    price: Wei
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherTerms(Event):
    """Somebody funded another quote under the id of a trade of ours; it is not our trade."""

    level: ClassVar[Level] = Level.WARNING
    trade_id: Digest
    side: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearingChanged(Event):
    """A round of a clearing house, on one side of it: ``participant`` or ``broker``."""

    round_id: Digest
    number: int
    side: str
    state: str
    due: Wei
    amount: Wei
    """What our leaf owes us, once that is known."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearingOff(Event):
    """A round that was not opened, or that we took no part in: no money of ours moved."""

    number: int
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootDisputed(Event):
    """A root on chain is not what follows from what its broker published; it may be taken back."""

    level: ClassVar[Level] = Level.ERROR
    round_id: Digest
    broker: Address
    """Who signed what was published."""
    root: Digest
    reason: str
    seconds_left: int
    """Until it can be replaced no more; below 0 where it is too late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerDistrusted(Event):
    """No round is joined by this broker any more: its root was wrong, or without its inputs."""

    level: ClassVar[Level] = Level.ERROR
    peer: PeerId
    broker: Address
    round_id: Digest
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectionHeard(Event):
    """A participant says that a root of ours is wrong."""

    level: ClassVar[Level] = Level.WARNING
    round_id: Digest
    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochTrained(Event):
    """One pass of an agent over its own rows, and how well it does now."""

    epoch: int
    """Passes so far, this one included."""
    training_loss: float
    accuracy: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LegEnded(Event):
    """What one round's chance to buy came to; the figures are of the best trial.

    A round that a restart cut off may be told of twice: the later event is how it ended.
    """

    round: int
    because: str
    trade_id: Digest | None
    seller: PeerId | None
    price: Wei | None
    alpha: Millionths | None
    gain: Millionths | None
    bound: Millionths | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlayed(Event):
    """One round of an agent: how well it does before and after what it bought.

    A round that a restart cut off may be told of twice: the later event is how it ended.
    """

    round: int
    epoch: int
    accuracy_before: float
    accuracy: float
    loss_before: float
    loss: float
    bought: bool
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFitted(Event):
    """What was adopted has been brought back to the ranks that are trained."""

    lost: Millionths
    """Of all that the adapter adds, by norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsPlayed(Event):
    """The agent has trained all it meant to; it still serves its buyers."""

    rounds: int
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkUsed(Event):
    """What crossed the network while the node ran, told as it stops."""

    bytes_in: Mapping[str, int]
    bytes_out: Mapping[str, int]
    accepted: int
    ignored: Mapping[str, int]
    rejected: Mapping[str, int]
    published: int
