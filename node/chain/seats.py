"""A broker's way to its seat: a bond, the market that it serves, the seat itself.

    bond ──► serve(market) ──► seat(broker)
    └─ in the registry ─┘      └ in the market: an escrow, or a clearing house

Each step is a transaction that is sent only if the chain does not show it done, so that the
way may be gone at every start: a broker that sits sends nothing, one whose process died between
two steps goes on from there, and one that was unseated for a bond that is gone puts up another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.chain import answers
from node.chain.abi import Functions
from node.chain.check import (
    HouseTerms,
    MarketTerms,
    check_clearing_house,
    check_escrow,
    escrow_artifact,
    escrow_codec,
    registry_artifact,
)
from node.chain.client import ChainClient
from node.chain.codec import EscrowCodec
from node.chain.errors import ChainUnavailableError, NotSeatedError
from node.chain.port import Seat
from node.chain.transactions import Wallet, send_and_wait
from node.protocol.clearing import ClearingDomain
from node.protocol.eip712 import Domain
from node.protocol.types import Address, Wei

STEP_GAS: Final = 300_000
"""For each step: more than twice what it needs."""
SEAT_TIMEOUT: Final = 120.0
NOTHING: Final = Wei(0)


@dataclass(frozen=True, slots=True)
class _Standing:
    """What the registry knows of a broker."""

    bond: Wei
    leaves_at: int
    serves: bool


def take_seat(
    client: ChainClient,
    private_key: bytes,
    domain: Domain | ClearingDomain,
    *,
    bond: Wei | None,
    timeout: float = SEAT_TIMEOUT,
) -> int:
    """Do what is left of the way to the seat of this key's account; return how many steps.

    `bond` is what the broker has up in the end, the registry's minimum or more; None puts nothing
    up. Raises `NotSeatedError` if the broker may not sit, or may only with a bond that it was not
    given, `WrongContractError` as `check_escrow` or `check_clearing_house`, and as `send_and_wait`.
    """
    return _Way(client, Wallet(private_key, domain.chain_id), domain, timeout).go(bond)


class _Way:
    def __init__(
        self,
        client: ChainClient,
        wallet: Wallet,
        domain: Domain | ClearingDomain,
        timeout: float,
    ) -> None:
        self._client, self._wallet, self._domain = client, wallet, domain
        self._timeout = timeout
        if isinstance(domain, Domain):
            self._what, self._market = "escrow", domain.escrow
        else:
            self._what, self._market = "clearing house", domain.clearing_house
        artifact = registry_artifact()
        names = ("bond", "serve", "brokerOf")
        self._registry = Functions(artifact.name, artifact.abi, names)
        self._codec: EscrowCodec = escrow_codec(escrow_artifact())
        self._seat = Functions("BrokerQuorum", escrow_artifact().abi, ("seat",))

    def go(self, bond: Wei | None) -> int:
        broker, market = self._wallet.address, self._market
        terms = self._terms()
        standing = self._standing(terms.registry)
        if standing.leaves_at:
            raise NotSeatedError(
                f"broker {broker} gave notice in the registry {terms.registry}; its account "
                "cannot serve again before it has taken its bond back"
            )
        steps = 0
        least = max(terms.minimum_bond, Wei(1))
        offered = bond or NOTHING
        if max(standing.bond, offered) < least:
            raise NotSeatedError(
                f"broker {broker} has a bond of {standing.bond} wei in the registry "
                f"{terms.registry}, and needs {least}: say with --bond what to put up"
            )
        if offered > standing.bond:
            self._require_none_pending()
            missing = Wei(offered - standing.bond)
            self._send(terms.registry, self._registry.call("bond"), missing)
            steps += 1
        if not standing.serves:
            self._send(terms.registry, self._registry.call("serve", market))
            steps += 1
        if self._sits() is not Seat.TAKEN:
            self._send(market, self._seat.call("seat", broker))
            steps += 1
        if self._sits() is not Seat.TAKEN:
            raise NotSeatedError(f"the {self._what} at {market} does not seat broker {broker}")
        return steps

    def _terms(self) -> MarketTerms | HouseTerms:
        brokers = (self._wallet.address,)
        if isinstance(self._domain, Domain):
            return check_escrow(self._client, self._domain, brokers)
        return check_clearing_house(self._client, self._domain, brokers)

    def _standing(self, registry: Address) -> _Standing:
        asked = self._registry.call("brokerOf", self._wallet.address)
        answer = self._client.view(registry, asked)
        bond, leaves_at, markets = self._registry.read_any("brokerOf", answer)
        here = self._market.lower()  # addresses come without their checksum's capitals
        return _Standing(Wei(bond), leaves_at, here in {str(market).lower() for market in markets})

    def _require_none_pending(self) -> None:
        """Raise `ChainUnavailableError` while a transaction waits: it may be the bond itself."""
        asked = self._client.ask("eth_getTransactionCount", self._wallet.address, "latest")
        if answers.quantity(asked, "a nonce") < self._client.nonce(self._wallet.address):
            raise ChainUnavailableError(
                f"a transaction of {self._wallet.address} is not mined yet: no second bond is sent"
            )

    def _sits(self) -> Seat:
        asked = self._codec.seat_of(self._wallet.address)
        return self._codec.decode_seat(self._client.view(self._market, asked))

    def _send(self, to: Address, data: bytes, value: Wei = NOTHING) -> None:
        send_and_wait(
            self._client,
            self._wallet,
            to,
            data,
            value,
            gas=STEP_GAS,
            read_revert=self._codec.reverts.read,
            timeout=self._timeout,
        )
