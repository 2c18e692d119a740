"""Buyer and seller count the brokers' signatures as the escrow will, before they are bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from broker_node.service import Broker
from node.agent.agent import Agent
from node.agent.consent import Consent
from node.chain.errors import ChainUnavailableError
from node.chain.port import Seat
from node.protocol.bargain import quorum_of
from node.protocol.eip712 import digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import SELLER_UNREACHABLE
from node.protocol.quorum import join_signatures
from node.protocol.quote import Quote
from node.protocol.schema import raw_address
from node.protocol.signing import address_of, sign_digest
from node.protocol.types import Address, UnixTime
from tests.market.market import Market, seed_of
from tests.protocol import cast
from tests.quorum.brokers import DOMAIN, account_of, key_of
from tests.quorum.quorum_market import join_all, open_quorum

QUOTE = cast.quote()
STRANGER = seed_of("nobody's account")


def signed(*numbers: int) -> bytes:
    name = digest(DOMAIN, QUOTE)
    return join_signatures({account_of(n): sign_digest(key_of(n), name) for n in numbers})


class Seats:
    """An escrow whose brokers are these; it may be away."""

    domain = DOMAIN

    def __init__(self, *seated: int, threshold: int) -> None:
        self.seated = {account_of(number) for number in seated}
        self.threshold = threshold
        self.asked = 0
        self.away = False

    def seat(self, account: Address) -> Seat:
        self.asked += 1
        if self.away:
            raise ChainUnavailableError("away")
        return Seat.TAKEN if account in self.seated else Seat.EMPTY


async def judged(escrow: Any, signatures: bytes, quote: Quote = QUOTE) -> str:
    try:
        await Consent(escrow).require(quote, signatures)
    except RemoteProtocolError as error:
        return error.reason
    return ""


async def test_as_many_seated_brokers_must_have_signed_as_the_escrow_wants() -> None:
    escrow = Seats(0, 1, 2, threshold=2)
    assert await judged(escrow, signed(0, 1)) == ""
    assert await judged(escrow, signed(0, 1, 2)) == ""
    assert await judged(escrow, signed(1)) == "below-quorum"
    assert await judged(escrow, signed(0, 5)) == "not-of-the-quorum"
    assert await judged(Seats(0, threshold=1), signed(0)) == ""


@pytest.mark.parametrize("party", ["buyer", "seller"])
async def test_no_party_is_among_several_that_sign(party: str) -> None:
    """One that signs alone is not held to that: whoever joined by it trusts it."""
    parties: dict[str, Any] = {party: account_of(1)}
    quote = dataclasses.replace(QUOTE, **parties)

    def by(*numbers: int) -> bytes:
        name = digest(DOMAIN, quote)
        return join_signatures({account_of(n): sign_digest(key_of(n), name) for n in numbers})

    for escrow, signatures, reason in (
        (Seats(0, 1, 2, threshold=2), by(0, 2), ""),
        (Seats(0, 1, 2, threshold=2), by(0, 1), "broker-is-a-party"),
        (Seats(0, 1, 2, threshold=2), by(0, 1, 2), "broker-is-a-party"),
        (Seats(1, threshold=1), by(1), ""),
    ):
        assert await judged(escrow, signatures, quote) == reason


async def test_each_broker_counts_once_and_they_come_in_rising_order() -> None:
    escrow = Seats(0, 1, threshold=2)
    both = signed(0, 1)
    assert await judged(escrow, both[65:] + both[:65]) == "unsorted-brokers"
    assert await judged(escrow, both[:65] * 2) == "unsorted-brokers"
    assert await judged(escrow, both[:-1]) == "bad-signature"
    assert await judged(escrow, b"") == "bad-signature"
    assert escrow.asked == 0


def test_who_signed_is_told_by_rising_account() -> None:
    found = quorum_of(DOMAIN, QUOTE, signed(2, 0, 1), threshold=3)
    assert list(found) == sorted(map(account_of, range(3)), key=raw_address)


async def test_a_chain_that_is_away_says_neither_yes_nor_no() -> None:
    escrow = Seats(0, threshold=1)
    escrow.away = True
    with pytest.raises(ChainUnavailableError):
        await judged(escrow, signed(0))


# ── against a broker that signs without its quorum ──


def alone(own: bytes, _: Any) -> bytes:
    return own


def with_a_stranger(own: bytes, name: Any) -> bytes:
    return join_signatures(
        {
            address_of(seed_of("account of broker")): own,
            address_of(STRANGER): sign_digest(STRANGER, name),
        }
    )


HOW: dict[str, Callable[[bytes, Any], bytes]] = {
    "below-quorum": alone,
    "not-of-the-quorum": with_a_stranger,
}


def hasty(signatures: Callable[[bytes, Any], bytes]) -> type[Broker]:
    """A broker that asks no other before it sends its quote."""

    class Hasty(Broker):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            lead: Any = self._bench.lead

            async def cosign(_case: Any, _trial: Any, quote: Quote, *_: Any, **__: Any) -> bytes:
                await trio.lowlevel.checkpoint()
                return signatures(
                    lead._pen.sign(quote, offer_expires=UnixTime(2**40)),
                    digest(self.station.domain, quote),
                )

            lead.cosign = cosign

    return Hasty


class Careless(Agent):
    """Countersigns whatever its broker signed."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seller._consent = Anything()


class Anything(Consent):
    def __init__(self) -> None: ...

    async def require(self, quote: Quote, signatures: bytes) -> None:
        await trio.lowlevel.checkpoint()


def nothing_was_lost(market: Market) -> None:
    assert market.ledger().deposited == 0
    assert market["buyer"].journal.trades() == []


@pytest.mark.parametrize("reason", HOW)
async def test_a_seller_countersigns_nothing_that_the_escrow_would_refuse(
    tmp_path: Path, reason: str
) -> None:
    async with open_quorum(tmp_path, {"broker": hasty(HOW[reason])}) as market:
        seller, buyer = [await join_all(market, name) for name in ("seller", "buyer")]
        await seller.offer()
        with pytest.raises(RemoteProtocolError) as caught:
            await buyer.buy(seller)
        # to the buyer it is the seller's word: that could shun no honest broker by it
        assert caught.value.reason == SELLER_UNREACHABLE
        assert caught.value.detail.startswith(reason)
        assert seller.blamed("Countersign") == [reason]
        (row,) = seller.journal.trades(role="seller")
        assert row.state == "prepared"
        nothing_was_lost(market)


@pytest.mark.parametrize("reason", HOW)
async def test_a_buyer_opens_no_purchase_that_the_escrow_would_refuse(
    tmp_path: Path, reason: str
) -> None:
    async with open_quorum(tmp_path, {"broker": hasty(HOW[reason])}) as market:
        seller = await join_all(market, "seller", shell=Careless)
        buyer = await join_all(market, "buyer")
        await seller.offer()
        with pytest.raises(RemoteProtocolError) as caught:
            await buyer.buy(seller)
        assert caught.value.reason == reason
        assert [row.state for row in seller.journal.trades()] == ["countersigned"]
        nothing_was_lost(market)
