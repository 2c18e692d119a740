"""A batch of trades as everyone in it would put it together: for the gas table and the tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eth_abi.abi import encode
from eth_keys.datatypes import PrivateKey
from eth_utils.crypto import keccak

from contracts.stage import Quote, Stage, sign


class Spending(NamedTuple):
    """What one buyer spends, with one signature, in the order of the Solidity struct."""

    quotes: tuple[Quote, ...]
    payees: tuple[int, ...]
    payer: int
    nonce: int
    closes_by: int
    consent: bytes


class Batch(NamedTuple):
    """What is kept of a batch, in the order of the Solidity struct."""

    asset: str
    legs: int
    closes_from: int
    dispute_window: int
    commitments: bytes
    quotes: bytes
    movements: bytes
    payouts: bytes


def movement(quote: Quote, payer: int, payees: int) -> int:
    """Return who pays and gets what in one trade, in the one word that Solidity's `Movement` is."""
    return quote.price << 144 | quote.fee << 32 | payer << 16 | payees


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that the calls about one batch need, in its own order: by buyer, then by trade id."""

    quotes: tuple[Quote, ...]
    digests: tuple[bytes, ...]
    spendings: tuple[Spending, ...]
    accounts: tuple[str, ...]
    movements: tuple[int, ...]
    payouts: tuple[tuple[str, int, int], ...]
    digest: bytes
    """What a quorum signs."""
    batch: Batch
    batch_id: bytes


def consent_digest(stage: Stage, digests: Sequence[bytes], nonce: int, closes_by: int) -> bytes:
    """Return what a buyer signs to spend its deposit on these quotes."""
    kind = keccak(text="Consent(bytes32[] quotes,uint256 nonce,uint64 closesBy)")
    words = (kind, keccak(b"".join(digests)), nonce, closes_by)
    return stage.digest(keccak(encode(["bytes32", "bytes32", "uint256", "uint64"], words)))


def plan(
    stage: Stage,
    quotes: Sequence[Quote],
    keys: Mapping[str, PrivateKey],
    nonce: int = 0,
    closes_by: int | None = None,
) -> Plan:
    """Put a batch together; `keys` are those of the buyers, by address.

    Each buyer consents to it until `closes_by`, by default just as long as it takes.
    """
    buyers = list(dict.fromkeys(quote.buyer for quote in quotes))
    in_order = sorted(quotes, key=lambda quote: quote.trade_id)
    ordered = tuple(quote for buyer in buyers for quote in in_order if quote.buyer == buyer)
    closes_from = max(quote.reveal_by + quote.grace for quote in ordered)
    dispute_window = max(quote.dispute_window for quote in ordered)
    closes_by = closes_from + 2 * dispute_window if closes_by is None else closes_by
    digests = {quote: stage.view("quoteDigest", quote) for quote in ordered}
    paid = [(quote.seller, quote.price - quote.fee) for quote in ordered]
    paid += [(quote.fee_recipient, quote.fee) for quote in ordered if quote.fee]
    accounts = list(dict.fromkeys([*(account for account, _ in paid), *buyers]))
    spendings, movements = [], []
    for buyer in buyers:
        own = tuple(quote for quote in ordered if quote.buyer == buyer)
        payees = tuple(
            accounts.index(q.seller) | (accounts.index(q.fee_recipient) << 8 if q.fee else 0)
            for q in own
        )
        payer = accounts.index(buyer)
        asked = consent_digest(stage, [digests[quote] for quote in own], nonce, closes_by)
        consent = sign(keys[buyer], asked)
        spendings.append(Spending(own, payees, payer, nonce, closes_by, consent))
        movements += [movement(q, payer, to) for q, to in zip(own, payees, strict=True)]
    payouts = []
    for account in accounts:
        got = sum(amount for to, amount in paid if to == account)
        back = min(got, sum(quote.price for quote in ordered if quote.buyer == account))
        payouts.append((account, back, got - back))
    quotes_hash = keccak(b"".join(digests[quote] for quote in ordered))
    batch = Batch(
        asset=ordered[0].asset,
        legs=len(ordered),
        closes_from=closes_from,
        dispute_window=dispute_window,
        commitments=keccak(b"".join(quote.secret_commitment for quote in ordered)),
        quotes=quotes_hash,
        movements=keccak(encode(["address[]", "uint256[]"], [accounts, movements])),
        payouts=keccak(encode(["(address,uint256,uint256)[]"], [payouts])),
    )
    kinds = ["address", "uint8", "uint64", "uint64", *["bytes32"] * 4]
    return Plan(
        quotes=ordered,
        digests=tuple(digests[quote] for quote in ordered),
        spendings=tuple(spendings),
        accounts=tuple(accounts),
        movements=tuple(movements),
        payouts=tuple(payouts),
        digest=stage.digest(keccak(keccak(text="Batch(bytes32[] quotes)") + quotes_hash)),
        batch=batch,
        batch_id=keccak(encode(kinds, batch)),
    )


def secret_of(trade_id: bytes) -> bytes:
    """Return the secret of a trade of ours: one for each, and the same in every run."""
    return hashlib.sha256(b"the secret of " + trade_id).digest()


def shown(quotes: Sequence[Quote], mask: int) -> list[bytes]:
    """Return what `revealBatch` takes: secrets where the mask has a bit, else commitments."""
    return [
        secret_of(quote.trade_id) if mask >> place & 1 else quote.secret_commitment
        for place, quote in enumerate(quotes)
    ]
