"""A registry of bonds as brokers, markets and reporters use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eth_utils.crypto import keccak

from contracts.stage import ETHER, ZERO, Outcome, Quote, Stage


def to_registry(stage: Stage, function: str, *arguments: Any, **how: Any) -> Outcome:
    return stage.send(function, *arguments, to=stage.registry, **how)


def credit(stage: Stage, account: str) -> int:
    amount: int = stage.view("credits", ZERO, account, of=stage.registry)
    return amount


def alone(stage: Stage, quote: Quote, *signers: str) -> tuple[Any, ...]:
    """Return a quote that a broker, or somebody else, signed by itself."""
    return (quote, (), 0, stage.signature(quote, *signers))


def in_batch(stage: Stage, quotes: Sequence[Quote], place: int) -> tuple[Any, ...]:
    """Return one of the quotes that the broker signed as a batch."""
    digests = [stage.view("quoteDigest", quote) for quote in quotes]
    struct = keccak(keccak(text="Batch(bytes32[] quotes)") + keccak(b"".join(digests)))
    return (quotes[place], digests, place, stage.signatures(stage.digest(struct)))


def two_quotes(stage: Stage) -> tuple[Any, ...]:
    """Return a broker, and two quotes of one trade id that it signed."""
    first, second = stage.quote(), stage.quote(price=ETHER)
    return (stage.accounts["broker"], alone(stage, first), alone(stage, second))


def prove(stage: Stage, *evidence: Any, market: str = "") -> Outcome:
    place = market or stage.escrow.address
    return to_registry(stage, "proveEquivocation", place, *evidence, sender="rival")
