"""What the chain's tests share: a clock in the hand, funded accounts, a deployed escrow."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from node.chain.client import ChainClient, Endpoint
from node.chain.deploy import MarketPlan, deploy_market
from node.chain.port import Call, TransactionOutcome
from node.chain.seats import take_seat
from node.chain.tester import DevelopmentChain
from node.chain.web3_escrow import Web3Escrow, open_escrow
from node.protocol.eip712 import Domain, digest
from node.protocol.quote import Quote, trade_id_of
from node.protocol.signing import address_of, sign_digest
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei

START = 1_700_000_000
ETHER = 10**18
BUYER, SELLER, BROKER = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
SECRET = b"\x05" * 32
SALT = Digest(b"\x07" * 32)
BOND = Wei(ETHER)
PLAN = MarketPlan(salt=SALT, brokers=(address_of(BROKER),), minimum_bond=BOND)


class Clock:
    """The wall clock, moved by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> UnixTime:
        return UnixTime(self.now)


@dataclass
class Market:
    """One chain with an escrow, and an endpoint to reach it by."""

    chain: DevelopmentChain
    endpoint: Endpoint
    clock: Clock
    client: ChainClient
    domain: Domain
    opened: list[Web3Escrow] = field(default_factory=list)

    def escrow(self, key: bytes) -> Web3Escrow:
        escrow = open_escrow(
            self.endpoint, key, self.domain, broker=address_of(BROKER), timeout=5.0
        )
        self.opened.append(escrow)
        return escrow

    def quote(
        self, number: int = 0, *, price: int = ETHER, escrow: Address | None = None
    ) -> tuple[Quote, bytes]:
        """Return a quote and the broker's signature over it."""
        buyer, seller = address_of(BUYER), address_of(SELLER)
        quote = Quote(
            trade_id=trade_id_of(buyer, seller, Digest(bytes(32)), Digest(bytes([number]) * 32)),
            buyer=buyer,
            seller=seller,
            encryptor=seller,
            asset=NO_ADDRESS,
            price=Wei(price),
            fee=Wei(price // 100),
            fee_recipient=address_of(BROKER),
            offer_root=Digest(b"\x0a" * 32),
            goods_root=Digest(b"\x0b" * 32),
            leaf_count=1,
            byte_length=1024,
            secret_commitment=Digest(hashlib.sha256(SECRET).digest()),
            dh_commitment=Digest(b"\x0c" * 32),
            fund_by=UnixTime(self.clock.now + 60),
            reveal_by=UnixTime(self.clock.now + 120),
            grace=30,
            dispute_window=20,
            receipt_hash=Digest(b"\x0d" * 32),
        )
        domain = (
            self.domain if escrow is None else Domain(chain_id=self.domain.chain_id, escrow=escrow)
        )
        return quote, sign_digest(BROKER, digest(domain, quote))


def do(escrow: Web3Escrow, call: Call) -> TransactionOutcome:
    """Sign, send and read the outcome of a call."""
    transaction = escrow.sign(call, escrow.next_nonce())
    escrow.broadcast(transaction.raw)
    outcome = escrow.receipt(transaction.hash)
    assert outcome is not None
    return outcome


def build(chain: DevelopmentChain, endpoint: Endpoint, clock: Clock) -> Market:
    """Fund the three accounts and deploy."""
    client = ChainClient(endpoint, timeout=5.0)
    for key in (BUYER, SELLER, BROKER):
        client.request_funds(address_of(key), Wei(10 * ETHER))
    domain = deploy_market(client, BROKER, PLAN)
    take_seat(client, BROKER, domain, bond=BOND)
    return Market(chain, endpoint, clock, client, domain)
