"""Two quotes of one trade id, signed by one broker: what costs it its bond.

Brokers sign each quote by itself here. The registry also hears of quotes that were signed in a
batch: nodes sign none.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.protocol.eip712 import Domain, digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.quorum import signers_of
from node.protocol.quote import Quote
from node.protocol.types import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedQuote:
    """A quote and one broker's signature over it."""

    quote: Quote
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivocation:
    """One broker's two quotes of one trade."""

    broker: Address
    first: SignedQuote
    second: SignedQuote

    @property
    def victim(self) -> Address | None:
        """The buyer, which gets a part of the bond; None where the quotes name two."""
        buyer = self.first.quote.buyer
        return buyer if buyer == self.second.quote.buyer else None


def equivocations(
    domain: Domain, first: Quote, first_signatures: bytes, second: Quote, second_signatures: bytes
) -> tuple[Equivocation, ...]:
    """Return what each broker that signed both did, by rising account.

    Signatures come as `quorum.join_signatures` puts them. Raises `RemoteProtocolError`:
    ``no-conflict`` if these are quotes of two trades, or the same quote, or nobody signed both,
    and as `signers_of`.
    """
    if first.trade_id != second.trade_id:
        raise RemoteProtocolError(
            "no-conflict",
            f"the first is of trade 0x{first.trade_id.hex()}, "
            f"the second of 0x{second.trade_id.hex()}",
        )
    names = digest(domain, first), digest(domain, second)
    if names[0] == names[1]:
        raise RemoteProtocolError("no-conflict", f"both are the quote 0x{names[0].hex()}")
    signed = signers_of(names[0], first_signatures), signers_of(names[1], second_signatures)
    found = tuple(
        Equivocation(
            broker=broker,
            first=SignedQuote(quote=first, signature=signature),
            second=SignedQuote(quote=second, signature=signed[1][broker]),
        )
        for broker, signature in signed[0].items()
        if broker in signed[1]
    )
    if not found:
        raise RemoteProtocolError(
            "no-conflict",
            f"the first is signed by {', '.join(signed[0])}, the second by "
            f"{', '.join(signed[1])}: nobody signed both",
        )
    return found
