"""What both sides' checks are tested with: other values, and what the seller says to them."""

from __future__ import annotations

from typing import Any, Final

from node.protocol.bargain import MAX_GRACE, MAX_REVEAL_SECONDS
from node.protocol.purchase import FUND_MARGIN
from node.protocol.schema import fields_of
from node.protocol.types import Wei
from tests.protocol import cast
from tests.protocol.cast import (
    ASK,
    BROKER,
    FEE,
    FUND_BY,
    NOW,
    PATIENCE,
    PRICE,
    REVEAL_BY,
    STRANGER,
    word,
)

OTHER: Final = word("something else")


def names(cls: type[Any]) -> set[str]:
    return {name for name, _ in fields_of(cls)}


def other_value(message: Any, name: str) -> Any:
    """Return another value of the same type, that contradicts no other field by itself."""
    kind, value = dict(fields_of(type(message)))[name], getattr(message, name)
    return {
        "address": STRANGER.account,
        "bytes32": OTHER,
        "bytes": b"something else",
        "string": "something else",
        "string[]": ("something else",),
    }.get(kind.solidity) or value - 1


def fits(field: str) -> dict[str, Any]:
    """Return a value for the fields in which one less would contradict another field."""
    higher: dict[str, int] = {"price": PRICE + 1, "fund_by": FUND_BY + 1}
    return {field: higher[field]} if field in higher else {}


BROKERS_BOOKKEEPING: Final = {"issued_at", "expires_at", "nonce"}
"""When it was written, and under which nonce, is between the broker and the books."""

SELLERS_QUOTE: Final[dict[str, list[tuple[Any, str]]]] = {
    "trade_id": [(OTHER, "wrong-trade-id")],
    "buyer": [(STRANGER.account, "wrong-buyer")],
    "seller": [(STRANGER.account, "wrong-seller")],
    "encryptor": [(BROKER.account, "wrong-encryptor")],
    "asset": [(STRANGER.account, "wrong-asset")],
    "price": [
        (Wei(ASK + FEE - 1), "fee-too-high"),
        (Wei(PRICE + 1), "wrong-receipt"),
        (Wei(PRICE - 1), "fee-too-high"),
    ],
    "fee": [(Wei(FEE + 1), "fee-too-high"), (Wei(FEE - 1), "wrong-receipt")],
    "offer_root": [(OTHER, "wrong-offer-root")],
    "goods_root": [(OTHER, "wrong-goods-root"), (cast.OFFER.weights_root, "wrong-goods-root")],
    "leaf_count": [(99, "wrong-size")],
    "byte_length": [(1, "wrong-size")],
    "secret_commitment": [(OTHER, "wrong-commitment")],
    "dh_commitment": [(OTHER, "wrong-commitment")],
    "fund_by": [
        (NOW + FUND_MARGIN, "too-late"),
        (REVEAL_BY - PATIENCE.least_reveal_seconds + 1, "too-short-to-reveal"),
        (REVEAL_BY - 1, "too-short-to-reveal"),
    ],
    "reveal_by": [
        (NOW + MAX_REVEAL_SECONDS + 1, "money-locked-too-long"),
        (FUND_BY + PATIENCE.least_reveal_seconds - 1, "too-short-to-reveal"),
    ],
    "grace": [(MAX_GRACE + 1, "money-locked-too-long"), (0, "grace-too-short")],
    "dispute_window": [(PATIENCE.longest_dispute_window + 1, "dispute-window-too-long")],
    "receipt_hash": [(OTHER, "wrong-receipt")],
}
