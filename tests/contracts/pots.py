"""Rounds of a clearing house and their roots, as a machine keeps books of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import strategies as st

from contracts.artifact import read_artifact
from contracts.clearing import Clearing, Opening
from contracts.stage import ZERO, Contract, Stage
from node.protocol.sum_tree import MAX_LEAVES, NOTHING, Node, Payout, above, depth, is_in, leaf
from node.protocol.types import Address, Digest, Wei
from tests.contracts.rewinding import Rewinding
from tests.contracts.rounds import EXPIRY, MAX, TOKEN, House, trio_of_brokers

PAYERS = ("buyer", "seller", "rival")
LEAVES_A_WORD = 127
"""Of `ClearingHouse`: a leaf beyond the last word is of no root."""
BROKERS = ("broker", "second", "third")

Refusal = tuple[Any, ...] | None
"""The error that a call must end with, and the first of its values; None if it must go through."""

payers = st.sampled_from(PAYERS)
assets = st.sampled_from(("ether", "token"))
amounts = st.integers(0, 1000)
signed_by = st.sampled_from((*["quorum"] * 5, "one", "one twice", "a stranger"))
roots = st.sampled_from(
    (*["right"] * 6, "hidden", "inflated", "lost", "sum", "stale", "no leaves", "too many")
)
times = st.tuples(st.integers(3, 60), st.integers(1, 200), st.integers(0, 30))
"""Seconds to collect in, to post in, and of the challenge beyond the shortest."""
RICHER = ("hidden", "inflated")
"""Roots with a leaf that is worth more than the nodes above it say, or than the top alone says."""
lies = st.sampled_from(("right", "right", "right", *RICHER, "lost"))
cuts = st.lists(st.integers(0, 2**32), max_size=4)
claims = st.sampled_from(
    (*["right"] * 6, "amount", "account", "place", "short", "long", "sooner", "beyond")
)


class Leaf(NamedTuple):
    """What is claimed, and the nodes beside its way up."""

    place: int
    payout: Payout
    path: tuple[Node, ...]


@dataclass(kw_only=True, eq=False)
class Root:
    """A root that a quorum signed, and what lies under it: also more than it says."""

    round_id: Digest
    payouts: Sequence[Payout]
    levels: list[list[Node]]
    clearing: Clearing | None = None
    claimed: set[int] = field(default_factory=set)

    @classmethod
    def over(cls, round_id: bytes, payouts: Sequence[Payout], hidden: dict[int, int]) -> Root:
        """Return the root over payouts, some of which are so much more than the sums above say."""
        levels = [
            [
                leaf(Digest(round_id), i, to, amount)._replace(sum=Wei(amount - hidden.get(i, 0)))
                for i, (to, amount) in enumerate(payouts)
            ]
        ]
        while len(levels[-1]) > 1:
            below = levels[-1]
            below += [NOTHING] * (len(below) % 2)
            levels.append([above(*pair) for pair in zip(below[::2], below[1::2], strict=True)])
        return cls(round_id=Digest(round_id), payouts=payouts, levels=levels)

    def inflate(self, pot: int) -> None:
        """Hide nothing below the top: it alone says that all comes to the pot."""
        self.levels = self.over(self.round_id, self.payouts, {}).levels
        self.levels[-1][0] = self.top._replace(sum=Wei(pot))

    @property
    def top(self) -> Node:
        """The root, and what it says that its leaves come to."""
        return self.levels[-1][0]

    def path(self, index: int) -> tuple[Node, ...]:
        """Return the nodes beside the way up from a leaf."""
        return tuple(level[index >> height ^ 1] for height, level in enumerate(self.levels[:-1]))

    def worth(self) -> list[int]:
        """Return the leaves that are worth something."""
        return [index for index, payout in enumerate(self.payouts) if payout.amount]

    def has(self, leaf: Leaf) -> bool:
        """Whether the root has a leaf."""
        return is_in(self.top, len(self.payouts), self.round_id, *leaf)


@dataclass(kw_only=True, eq=False)
class Pot:
    """A round by our books."""

    opening: Opening
    paid: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PAYERS, 0))
    pot: int = 0
    claimed: int = 0
    reclaimed: int = 0
    roots: list[Root] = field(default_factory=list)
    root: Root | None = None
    posted_at: int = 0
    expired: bool = False

    @property
    def id(self) -> bytes:
        """What the round is called."""
        return self.opening.round

    def rest(self) -> int:
        """Return what is still in the pot."""
        return self.pot - self.claimed - self.reclaimed

    def stands_from(self) -> int:
        """Return the first second in which the root can be claimed under."""
        return self.posted_at + self.opening.challenge_period + 1

    def expires_at(self) -> int:
        """Return the first second in which the root can be ended."""
        return self.stands_from() + EXPIRY

    def stands(self, now: int) -> bool:
        """Whether there is a root that cannot be challenged any more."""
        return self.root is not None and now >= self.stands_from()

    def shared(
        self, accounts: Sequence[str], cuts: Sequence[int], before: int, hidden: int
    ) -> Root:
        """Return a root over shares of the pot, behind so many leaves of nothing.

        The last leaf is worth so much more than the sums above it say.
        """
        places = sorted(cut % (self.pot + 1) for cut in cuts)
        shares = [b - a for a, b in zip([0, *places], [*places, self.pot], strict=True)]
        shares[-1] += hidden
        payouts = [Payout(Address(accounts[-1]), Wei(0))] * before
        payouts += [
            Payout(Address(accounts[i % len(accounts)]), Wei(share))
            for i, share in enumerate(shares)
        ]
        return Root.over(self.id, payouts, {len(payouts) - 1: hidden})

    def refusal_of_post(self, total: int, leaves: int, now: int) -> Refusal:
        """Return why no root can be posted, whoever signed it; None if it can."""
        opening = self.opening
        if not opening.pay_by < now <= opening.post_by:
            return ("NotPosting", now, opening.pay_by, opening.post_by)
        if self.stands(now):
            return ("RootStands", now, self.posted_at)
        if total != self.pot:
            return ("SumIsNotThePot", total, self.pot)
        return None if 0 < leaves <= MAX_LEAVES else ("BadLeafCount", leaves, MAX_LEAVES)

    def refusal_of_claim(
        self, root: Root, clearing: Clearing, leaf: Leaf, now: int, house: str
    ) -> Refusal:
        """Return why a leaf cannot be claimed under what is given out for a root."""
        count = len(root.payouts)
        no_word = leaf.place // LEAVES_A_WORD > (count - 1) // LEAVES_A_WORD
        if root is not self.root or clearing != root.clearing or no_word:
            return ("NotTheClearing", self.id)
        if now < clearing.stands_from:
            return ("RootDoesNotStand", now, clearing.stands_from)
        if leaf.place >= count:
            return ("NoSuchLeaf", leaf.place, count)
        if len(leaf.path) != depth(count):
            return ("WrongPathLength", len(leaf.path), count - 1)
        if not root.has(leaf):
            return ("NotInRoot",)
        if leaf.place in root.claimed:
            return ("AlreadyClaimed", self.id, leaf.place)
        return ("BadRecipient", house.lower()) if leaf.payout.account == house else None

    def known(self) -> tuple[Any, ...]:
        """Return what the house should tell of the round."""
        (_, asset, *times), paid = self.opening, sum(self.paid.values())
        posted = (self.posted_at, len(self.root.payouts)) if self.root else (0, 0)
        taken = paid - self.rest() if self.expired else 0
        return (asset.lower(), *times, *posted, len(self.roots), paid, taken)

    def edges(self) -> list[int]:
        """Return the last seconds before something changes."""
        edges = [self.opening.pay_by, self.opening.post_by]
        if self.root is not None:
            edges += [self.stands_from() - 1, self.expires_at() - 1]
        return edges


def signatures(house: House, struct: bytes, by: str) -> tuple[bytes, Refusal]:
    """Return what those who sign make of a struct hash, and what is said if they are none."""
    stage = house.stage
    quorum = stage.brokers[: stage.threshold]
    roles = {"one": quorum[:1], "one twice": quorum[:1] * 2, "a stranger": ["rival", "rival"]}
    digest = stage.digest(struct, house.contract)
    signatures = stage.signatures(digest, *roles.get(by, quorum))
    first = stage.accounts[quorum[0]].lower()
    refusals = {
        "one": ("BelowQuorum", 1, 2),
        "one twice": ("SignersUnsorted", first, first),
        "a stranger": ("NotSeated", 0, stage.accounts["rival"].lower()),
    }
    return signatures, refusals.get(by)


def deploy() -> tuple[Stage, tuple[House, Contract]]:
    """Return a house, and a token that everyone who pays has, and has approved."""
    stage = trio_of_brokers()
    token = stage.deploy(read_artifact(TOKEN))
    house = House(ZERO, stage)
    for role in PAYERS:
        stage.send("mint", stage.accounts[role], 2**100, sender=role, to=token)
        stage.send("approve", house.contract.address, MAX, sender=role, to=token)
    return stage, (house, token)


ready = Rewinding(deploy)
