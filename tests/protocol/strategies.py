"""Any message that the schema allows, for hypothesis."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Final, TypeVar

from hypothesis import strategies as st

from node.protocol import clearing
from node.protocol.attestation import Attestation
from node.protocol.bids import AskingPrice, Bid, BidAndAsk
from node.protocol.brokerage import BrokerageRecord
from node.protocol.call import Allocation, BudgetBid
from node.protocol.convening import ConveningRecord
from node.protocol.dispute import Evidence
from node.protocol.eip712 import Domain
from node.protocol.evaluation import Evaluation
from node.protocol.fees import MAX_FEE_BASIS_POINTS
from node.protocol.messages import StreamMessage
from node.protocol.offer import MAX_LIFETIME, STATEMENTS, Offer
from node.protocol.participation import ParticipationRecord
from node.protocol.pooling import Publication
from node.protocol.purchase import PurchaseRecord
from node.protocol.quorum import Commitment, Figure, Opening, SealedFigure
from node.protocol.quote import Quote
from node.protocol.sale import SaleRecord
from node.protocol.schema import checksummed
from node.protocol.types import (
    UINT64_MAX,
    UINT256_MAX,
    Address,
    Digest,
    Millionths,
    PeerId,
    UnixTime,
    Wei,
)

M = TypeVar("M")

SIGNED: Final[tuple[type[Any], ...]] = (*STATEMENTS.values(), Quote, Bid, AskingPrice, BudgetBid)
"""What an account signs as typed data."""
STREAMED: Final[tuple[type[Any], ...]] = typing.get_args(StreamMessage)
MESSAGES: Final[tuple[type[Any], ...]] = (
    *SIGNED,
    *STREAMED,
    Evaluation,
    Evidence,
    Domain,
    clearing.ClearingDomain,
    clearing.Opening,
    clearing.Clearing,
    PurchaseRecord,
    SaleRecord,
    BrokerageRecord,
    Figure,
    SealedFigure,
    Attestation,
    Commitment,
    Opening,
    BidAndAsk,
    Allocation,
    ConveningRecord,
    ParticipationRecord,
    Publication,
)

uint64 = st.one_of(st.integers(0, UINT64_MAX), st.sampled_from([0, 1, 255, 2**32, UINT64_MAX]))
uint256 = st.one_of(st.integers(0, UINT256_MAX), st.sampled_from([0, 1, 256, UINT256_MAX]))
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_BY_ANNOTATION: Final[dict[object, st.SearchStrategy[Any]]] = {
    Wei: uint256,
    UnixTime: uint64,
    int: uint64,
    Millionths: st.one_of(
        st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), -1, 0, 2**63 - 1])
    ),
    Digest: st.binary(min_size=32, max_size=32),
    Address: st.binary(min_size=20, max_size=20).map(checksummed),
    PeerId: st.text(st.characters(exclude_categories=["Cs"]), max_size=32),
    str: _texts,
    bytes: st.binary(max_size=100),
    bool: st.booleans(),
}


def of_annotation(annotation: Any) -> st.SearchStrategy[Any]:
    """Return the strategy of one field's values."""
    if annotation in _BY_ANNOTATION:
        return _BY_ANNOTATION[annotation]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return st.lists(of_annotation(inner[0]), max_size=4).map(tuple)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(st.none(), *(of_annotation(a) for a in inner if a is not type(None)))
    return messages(annotation)


def messages(cls: type[M]) -> st.SearchStrategy[M]:
    """Return any message of a class, with the bounds that several fields share observed."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: of_annotation(hints[f.name]) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if "expires_at" in fields:
        fields["issued_at"] = st.integers(0, UINT64_MAX - MAX_LIFETIME)
        fields["expires_at"] = st.integers(1, MAX_LIFETIME)
    if cls is Offer:
        fields["layers"] = st.sets(uint64, max_size=4).map(sorted).map(tuple)
    if "fee_basis_points" in fields:
        fields["fee_basis_points"] = st.integers(0, MAX_FEE_BASIS_POINTS)

    def make(**chosen: Any) -> M:
        if "expires_at" in chosen:
            chosen["expires_at"] += chosen["issued_at"]
        if cls is Quote:
            chosen["fee"], chosen["price"] = sorted((chosen["fee"], chosen["price"]))
            chosen["fund_by"], chosen["reveal_by"] = sorted(
                (chosen["fund_by"], chosen["reveal_by"])
            )
            chosen["fund_by"] -= chosen["fund_by"] == chosen["reveal_by"] > 0
            chosen["reveal_by"] += chosen["fund_by"] == chosen["reveal_by"]
        return cls(**chosen)

    return st.builds(make, **fields)
