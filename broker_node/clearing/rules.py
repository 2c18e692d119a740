"""Mechanisms that clear by rounds, by name; and what anybody computes of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker_node.clearing.shapley_round import ShapleyRound
from broker_node.clearing.terms import Asked, Document, Performance, Rule, Settled, read
from broker_node.clearing.triplewin_round import TripleWinRound
from broker_node.mechanisms.base import RefusedInputError
from node.protocol.types import Address, Wei

RULES: Final[Mapping[str, Rule]] = {rule.name: rule for rule in (ShapleyRound(), TripleWinRound())}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaves:
    """Who gets what of a pot, in the order of the tree; and what that follows from."""

    payouts: tuple[tuple[Address, Wei], ...]
    settled: Settled

    def of(self, account: Address) -> int | None:
        """Return the first leaf of an account, if it has one."""
        return next((i for i, (owner, _) in enumerate(self.payouts) if owner == account), None)


def rule_of(document: Document) -> Rule:
    """Return the mechanism of a document. Raises `RefusedInputError`."""
    if document.mechanism not in RULES:
        raise RefusedInputError("mechanism", f"there are {', '.join(RULES)}")
    return RULES[document.mechanism]


def leaves_of(document: Document, performance: Performance, paid: Mapping[Address, Wei]) -> Leaves:
    """Return the leaves of the root: the parties', then what strangers paid, then the broker's.

    `paid` is what the chain says of every account that paid in. A party that neither paid nor gets
    anything has no leaf. Raises `RefusedInputError`, also if the leaves are not the pot.
    """
    strangers = sorted(set(paid) - set(document.parties), key=str.lower)
    settled = rule_of(document).settle(document, performance, paid)
    payouts = [
        (account, amount)
        for account, amount in zip(document.parties, settled.amounts, strict=True)
        if amount or paid.get(account)
    ]
    payouts += [(account, paid[account]) for account in strangers if paid[account]]
    if settled.kept:
        payouts.append((document.broker, settled.kept))
    if any(amount < 0 for _, amount in payouts):
        raise RefusedInputError("amounts", "one is below 0")
    if sum(amount for _, amount in payouts) != sum(paid.values()):
        raise RefusedInputError("amounts", "they are not the pot")
    return Leaves(payouts=tuple(payouts), settled=settled)


def asked_of(data: bytes) -> tuple[Document, Asked]:
    """Read a document, and return what its parties are to pay. Raises `RefusedInputError`."""
    document = read(data)
    return document, rule_of(document).ask(document, document.performance)


def checked(
    invited: bytes, published: bytes, paid: Mapping[Address, Wei]
) -> tuple[Document, Leaves]:
    """Return what follows from what a broker published. Raises `RefusedInputError`.

    It must be of the terms and the measurements of the invitation; more may have been measured.
    """
    before, document = read(invited), read(published)
    if before.terms() != document.terms():
        raise RefusedInputError("terms", "are not those of the invitation")
    if any(document.measured.get(key) != value for key, value in before.measured.items()):
        raise RefusedInputError("performance", "is not that of the invitation")
    if sorted(document.others, key=str.lower) != sorted(
        set(paid) - set(document.parties), key=str.lower
    ):
        raise RefusedInputError("others", "are not those who paid")
    leaves = leaves_of(document, document.performance, paid)
    _check_models(document, leaves.settled)
    return document, leaves


def _check_models(document: Document, settled: Settled) -> None:
    """Each model that was sold is listed, with what was measured of it."""
    told = sorted((performance, buyers) for _, _, performance, buyers in document.models)
    due = sorted(
        (round(document.performance(sold.reference, sold.parties) * 1_000_000), sold.buyers)
        for sold in settled.sold
    )
    if told != due:
        raise RefusedInputError("models", "are not those that were sold")
