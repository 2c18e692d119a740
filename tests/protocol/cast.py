"""What the protocol's tests share: three parties with known keys, and what they say and sign."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any, Final

from node.protocol import delivery, envelope
from node.protocol.bargain import Patience, Wanted
from node.protocol.brokerage import Brokerage, BrokerageRecord, BrokerageState
from node.protocol.dispute import Evidence
from node.protocol.eip712 import Domain, digest
from node.protocol.evaluation import Evaluation, trial_seed
from node.protocol.messages import Deal
from node.protocol.offer import BrokerNotice, Offer, Receipt, Revocation, Statement
from node.protocol.purchase import Purchase, PurchaseRecord, PurchaseState
from node.protocol.quote import Quote, trade_id_of
from node.protocol.sale import Sale, SaleRecord, SaleState
from node.protocol.signing import address_of, peer_id_of_seed, peer_sign, sign_digest
from node.protocol.types import (
    NO_ADDRESS,
    Address,
    Digest,
    Millionths,
    PeerId,
    UnixTime,
    Wei,
)

NOW: Final = UnixTime(1_800_000_000)


def word(name: str) -> Digest:
    """Return 32 bytes that stand for `name`."""
    return Digest(hashlib.sha256(name.encode()).digest())


@dataclasses.dataclass(frozen=True)
class Party:
    """Somebody with both keys, drawn from a name."""

    name: str

    @functools.cached_property
    def account_key(self) -> bytes:
        return word(f"account of {self.name}")

    @functools.cached_property
    def peer_seed(self) -> bytes:
        return word(f"peer of {self.name}")

    @functools.cached_property
    def account(self) -> Address:
        return address_of(self.account_key)

    @functools.cached_property
    def peer_id(self) -> PeerId:
        return peer_id_of_seed(self.peer_seed)


BUYER, SELLER, BROKER, STRANGER = (Party(n) for n in ("buyer", "seller", "broker", "stranger"))
DOMAIN: Final = Domain(chain_id=31_337, escrow=Party("escrow").account)
ARCHITECTURE: Final = '{"config":{"widths":[784,32,10]},"name":"mlp"}'
TASK: Final = "mnist"
FEE_BASIS_POINTS: Final = 200


def offer(by: Party = SELLER, **changes: Any) -> Offer:
    """Return what a seller says."""
    said: dict[str, Any] = {
        "seller": by.account,
        "peer_id": by.peer_id,
        "addresses": ("/ip4/127.0.0.1/tcp/4001",),
        "task": TASK,
        "architecture": ARCHITECTURE,
        "layers": (),
        "weights_root": word("sold weights"),
        "leaf_count": 100,
        "byte_length": 102_000,
        "reserve": Wei(1_000),
        "issued_at": NOW,
        "expires_at": UnixTime(NOW + 600),
        "nonce": 1,
    }
    return Offer(**(said | changes))


def revocation(of: Digest, by: Party = SELLER, **changes: Any) -> Revocation:
    """Return what takes an offer back."""
    said: dict[str, Any] = {
        "seller": by.account,
        "peer_id": by.peer_id,
        "offer_digest": of,
        "issued_at": NOW,
        "expires_at": UnixTime(NOW + 600),
        "nonce": 2,
    }
    return Revocation(**(said | changes))


def notice(by: Party = BROKER, **changes: Any) -> BrokerNotice:
    """Return a broker's terms."""
    said: dict[str, Any] = {
        "broker": by.account,
        "peer_id": by.peer_id,
        "addresses": ("/ip4/127.0.0.1/tcp/4002",),
        "task": TASK,
        "fee_basis_points": FEE_BASIS_POINTS,
        "validation_root": word("validation rows"),
        "validation_rows": 1_000,
        "seed": word("the broker's seed"),
        "issued_at": NOW,
        "expires_at": UnixTime(NOW + 3_600),
        "nonce": 1,
    }
    return BrokerNotice(**(said | changes))


def receipt(by: Party = BROKER, **changes: Any) -> Receipt:
    """Return what a trade came to."""
    said: dict[str, Any] = {
        "broker": by.account,
        "peer_id": by.peer_id,
        "trade_id": TRADE_ID,
        "task": TASK,
        "buyer": BUYER.account,
        "seller": SELLER.account,
        "offer_digest": OFFER_DIGEST,
        "offer_root": OFFER.weights_root,
        "notice_digest": NOTICE_DIGEST,
        "price": PRICE,
        "fee": FEE,
        "evaluation_hash": EVALUATION.hash,
        "issued_at": NOW,
        "expires_at": UnixTime(NOW + 24 * 3600),
        "nonce": 7,
    }
    return Receipt(**(said | changes))


def seal(body: Statement, by: Party, domain: Domain = DOMAIN) -> bytes:
    """Return the bytes of a statement with both signatures of `by`."""
    return envelope.encode(
        envelope.sign(domain, body, account_key=by.account_key, peer_seed=by.peer_seed)
    )


def forge(body: Statement, *, account: Party, peer: Party, domain: Domain = DOMAIN) -> bytes:
    """Return the bytes of a statement, signed by whoever, whatever it says."""
    signed = digest(domain, body)
    return envelope.encode(
        envelope.Signed(
            body=body,
            account_signature=sign_digest(account.account_key, signed),
            peer_signature=peer_sign(peer.peer_seed, signed),
        )
    )


# ── one trade that is as it should be ──

OFFER: Final = offer()
OFFER_DIGEST: Final = digest(DOMAIN, OFFER)
NOTICE: Final = notice()
NOTICE_DIGEST: Final = digest(DOMAIN, NOTICE)
BUYER_NONCE: Final = word("buyer's nonce")
TRADE_ID: Final = trade_id_of(BUYER.account, SELLER.account, OFFER_DIGEST, BUYER_NONCE)
BASE_ROOT: Final = word("base weights")
BUYER_PRIVATE, SELLER_PRIVATE = word("buyer's X25519"), word("seller's X25519")
BUYER_KEY: Final = Digest(delivery.public_key(BUYER_PRIVATE))
SELLER_KEY: Final = Digest(delivery.public_key(SELLER_PRIVATE))
SECRET: Final = word("the seller's secret")
PRICE, FEE = Wei(1_000_000), Wei(20_000)
VALUATION: Final = Wei(1_500_000)
ASK: Final = Wei(500_000)
FUND_BY: Final = UnixTime(NOW + 60)
REVEAL_BY: Final = UnixTime(NOW + 360)
GRACE: Final = 300
REFUND_FROM: Final = UnixTime(REVEAL_BY + GRACE)
DISPUTE_WINDOW: Final = 100
RECIPE: Final = b"\xa3recipe"
EVALUATION: Final = Evaluation(
    task=TASK,
    architecture=ARCHITECTURE,
    method="weight-matching+halving-brent",
    base_root=BASE_ROOT,
    sold_root=OFFER.weights_root,
    merged_root=word("merged weights"),
    recipe_hash=Digest(hashlib.sha256(RECIPE).digest()),
    alpha=Millionths(400_000),
    notice_digest=NOTICE_DIGEST,
    validation_root=NOTICE.validation_root,
    seed=trial_seed(NOTICE.seed, BASE_ROOT, OFFER.weights_root),
    choice_rows=500,
    score_rows=500,
    loss_before=1_000_000_000,
    loss_after=900_000_000,
    gain=Millionths(100_000),
    bound=Millionths(50_000),
    code_version="pm-node/1",
)
PATIENCE: Final = Patience(
    least_dispute_window=30, longest_dispute_window=3_600, least_reveal_seconds=120
)
WANTED: Final = Wanted(
    offer_digest=OFFER_DIGEST,
    offer=OFFER,
    notice_digest=NOTICE_DIGEST,
    notice=NOTICE,
    base_root=BASE_ROOT,
    valuation=VALUATION,
    buyer=BUYER.account,
    buyer_nonce=BUYER_NONCE,
    private_key=BUYER_PRIVATE,
)


def quote(**changes: Any) -> Quote:
    """Return the terms of the trade, with what a cheat wants to be different."""
    terms: dict[str, Any] = {
        "trade_id": TRADE_ID,
        "buyer": BUYER.account,
        "seller": SELLER.account,
        "encryptor": SELLER.account,
        "asset": NO_ADDRESS,
        "price": PRICE,
        "fee": FEE,
        "fee_recipient": BROKER.account,
        "offer_root": OFFER.weights_root,
        "goods_root": word("ciphertext"),
        "leaf_count": OFFER.leaf_count,
        "byte_length": OFFER.byte_length,
        "secret_commitment": delivery.secret_commitment(SECRET),
        "dh_commitment": delivery.dh_commitment(
            delivery.shared_secret(SELLER_PRIVATE, BUYER_KEY), TRADE_ID
        ),
        "fund_by": FUND_BY,
        "reveal_by": REVEAL_BY,
        "grace": GRACE,
        "dispute_window": DISPUTE_WINDOW,
        "receipt_hash": digest(DOMAIN, receipt()),
    }
    return Quote(**(terms | changes))


def signature(of: Any, by: Party, domain: Domain = DOMAIN) -> bytes:
    """Return an account's signature over a message."""
    return sign_digest(by.account_key, digest(domain, of))


def deal(
    *,
    quote_changes: dict[str, Any] | None = None,
    receipt_changes: dict[str, Any] | None = None,
    evaluation_changes: dict[str, Any] | None = None,
    domain: Domain = DOMAIN,
    **changes: Any,
) -> Deal:
    """Return a deal in which everything that is changed is consistently signed again.

    So it is what a broker and a seller who cheat together would send: hashes and signatures
    are those of what they say.
    """
    measured = dataclasses.replace(EVALUATION, **(evaluation_changes or {}))
    bill = receipt(**({"evaluation_hash": measured.hash} | (receipt_changes or {})))
    terms = quote(**({"receipt_hash": digest(domain, bill)} | (quote_changes or {})))
    made: dict[str, Any] = {
        "quote": terms,
        "broker_signature": signature(terms, BROKER, domain),
        "seller_signature": signature(terms, SELLER, domain),
        "seller_key": SELLER_KEY,
        "receipt": forge(bill, account=BROKER, peer=BROKER, domain=domain),
        "evaluation": measured,
        "recipe": RECIPE,
    }
    return Deal(**(made | changes))


@functools.cache
def good_deal() -> Deal:
    """Return the deal with nothing changed."""
    return deal()


# ── the three machines, in the state that a test wants ──


def purchase_record(state: PurchaseState = PurchaseState.FETCHING) -> PurchaseRecord:
    """Return a buyer's record; the secret is known in the states that come after it."""
    whole = good_deal()
    return PurchaseRecord(
        state=state.value,
        note="",
        quote=whole.quote,
        broker_signature=whole.broker_signature,
        seller_signature=whole.seller_signature,
        offer_digest=OFFER_DIGEST,
        seller_peer=SELLER.peer_id,
        seller_addresses=OFFER.addresses,
        seller_key=SELLER_KEY,
        private_key=BUYER_PRIVATE,
        evaluation=EVALUATION,
        recipe=RECIPE,
        receipt=whole.receipt,
        secret=SECRET if state in KNOWS_THE_SECRET else None,
        paid=state is PurchaseState.COMPLETE,
        revealed_at=UnixTime(NOW + 100) if state in KNOWS_THE_SECRET else UnixTime(0),
        evidence=EVIDENCE if state in ACCUSES else None,
    )


EVIDENCE: Final = Evidence(
    secret=SECRET,
    dh=Digest(delivery.shared_secret(BUYER_PRIVATE, SELLER_KEY)),
    index=17,
    leaf=bytes(1_024),
    goods_path=(word("beside the goods"),),
    offered=word("a leaf"),
    offer_path=(word("beside the leaf"),),
)
ACCUSES: Final = frozenset({PurchaseState.DISPUTING, PurchaseState.CHEATED})
KNOWS_THE_SECRET: Final = frozenset(
    {
        PurchaseState.REVEALED,
        PurchaseState.DISPUTING,
        PurchaseState.DELIVERED,
        PurchaseState.COMPLETE,
        PurchaseState.CHEATED,
    }
)


def sale_record(state: SaleState = SaleState.PREPARED) -> SaleRecord:
    """Return a seller's record; there is a quote once it is countersigned."""
    agreed = state is not SaleState.PREPARED
    whole = good_deal()
    return SaleRecord(
        state=state.value,
        note="",
        trade_id=TRADE_ID,
        offer_digest=OFFER_DIGEST,
        offer_root=OFFER.weights_root,
        buyer=BUYER.account,
        buyer_key=BUYER_KEY,
        ask=ASK,
        private_key=SELLER_PRIVATE,
        secret=SECRET,
        goods_root=whole.quote.goods_root,
        leaf_count=OFFER.leaf_count,
        byte_length=OFFER.byte_length,
        prepared_until=UnixTime(NOW + 30),
        quote=whole.quote if agreed else None,
        broker_signature=whole.broker_signature if agreed else b"",
        signature=whole.seller_signature if agreed else b"",
        receipt=whole.receipt if agreed else b"",
        revealed_at=UnixTime(NOW + 100) if agreed else UnixTime(0),
    )


def brokerage_record(state: BrokerageState = BrokerageState.PROPOSED) -> BrokerageRecord:
    """Return a broker's record."""
    proposed = state is BrokerageState.PROPOSED
    whole = good_deal()
    if proposed:
        whole = dataclasses.replace(whole, seller_signature=b"")
    revealed = state in {BrokerageState.REVEALED, BrokerageState.FINALIZING}
    return BrokerageRecord(
        state=state.value,
        note="",
        deal=whole,
        revealed_at=UnixTime(NOW + 100) if revealed else UnixTime(0),
    )


Machine = Purchase | Sale | Brokerage


def a_purchase(state: str) -> Purchase:
    """Return the buyer's machine in a state."""
    return Purchase(purchase_record(PurchaseState(state)))


def a_sale(state: str) -> Sale:
    """Return the seller's machine in a state."""
    return Sale(sale_record(SaleState(state)))


def a_brokerage(state: str) -> Brokerage:
    """Return the broker's machine in a state."""
    return Brokerage(brokerage_record(BrokerageState(state)))


def countersign(machine: Sale) -> None:
    """Have a seller take the quote."""
    whole = good_deal()
    machine.countersign(
        whole.quote,
        broker_signature=whole.broker_signature,
        signature=whole.seller_signature,
        receipt=whole.receipt,
    )
