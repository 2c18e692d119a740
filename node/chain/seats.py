"""A broker's way to its seat: a bond, the market that it serves, the seat itself.

    bond ──► serve(market) ──► seat(broker)
    └─ in the registry ─┘      └ in the market: an escrow, or a clearing house

Each step is a transaction that is sent only if the chain does not show it done, so that the
way may be gone at every start: a broker that sits sends nothing, one whose process died between
two steps goes on from there, and one that was unseated for a bond that is gone puts up another.
"""

from __future__ import annotations

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
)
from node.chain.client import ChainClient
from node.chain.codec import EscrowCodec
from node.chain.errors import ChainUnavailableError, NotSeatedError
from node.chain.port import Seat
from node.chain.registry import Standing, Web3Registry
from node.chain.transactions import Wallet, send_and_wait
from node.protocol.clearing import ClearingDomain
from node.protocol.eip712 import Domain
from node.protocol.types import Address, Wei

STEP_GAS: Final = 300_000
"""For each step: more than twice what it needs."""
SEAT_TIMEOUT: Final = 120.0
NOTHING: Final = Wei(0)


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
        self._codec: EscrowCodec = escrow_codec(escrow_artifact())
        self._seat = Functions("BrokerQuorum", escrow_artifact().abi, ("seat",))

    def go(self, bond: Wei | None) -> int:
        broker, market = self._wallet.address, self._market
        terms = self._terms()
        registry = Web3Registry(
            self._client, self._wallet, terms.registry, mined_within=self._timeout
        )
        standing = registry.standing(broker)
        self._require_welcome(registry, standing)
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
            registry.send(registry.put_up(Wei(offered - standing.bond)))
            steps += 1
        if market not in standing.markets:
            registry.send(registry.serve(market))
            steps += 1
        if self._sits() is not Seat.TAKEN:
            self._send(market, self._seat.call("seat", broker))
            steps += 1
        if self._sits() is not Seat.TAKEN:
            raise NotSeatedError(f"the {self._what} at {market} does not seat broker {broker}")
        return steps

    def _require_welcome(self, registry: Web3Registry, standing: Standing) -> None:
        """Raise `NotSeatedError` for what the registry would refuse, before it is paid for."""
        where = f"broker {standing.account} in the registry {registry.address}"
        if standing.slashed:
            raise NotSeatedError(
                f"{where} lost its bond: it was slashed, and is never taken again; "
                "a broker needs another account, which the market must list"
            )
        if standing.leaves_at is not None:
            raise NotSeatedError(
                f"{where} gave notice; its account cannot serve again before it has taken its "
                f"bond back, from {standing.leaves_at} on (`pm-node contracts take-bond`)"
            )
        most = registry.most_markets()
        if len(standing.markets) >= most and self._market not in standing.markets:
            raise NotSeatedError(
                f"{where} serves {most} markets, which is the most; this one needs another account"
            )

    def _terms(self) -> MarketTerms | HouseTerms:
        brokers = (self._wallet.address,)
        if isinstance(self._domain, Domain):
            return check_escrow(self._client, self._domain, brokers)
        return check_clearing_house(self._client, self._domain, brokers)

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
