"""Whether a receipt holds: what was signed, and what its weights and rows give when measured again.

A signature says who says so, and no more: a signed gain that the weights do not have is found here
by whoever holds both models and the rows. What is measured again is the recipe of the receipt: that
it was fitted to the rows which score it is not seen here, but by the brokers that signed, each of
whom ran the trial itself (`node.protocol.quorum`). Each refusal is a `RemoteProtocolError` that
names the field, with what it is said to be and what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from broker_node.appraisal import Appraiser
from broker_node.quorum.replay import check_recipe, differs
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.adapters import Base
from node.params.architecture import Architecture, layout
from node.params.encoding import weights_root
from node.params.families.base import ArchitectureError
from node.params.merges import is_adapter
from node.protocol import envelope
from node.protocol.bargain import rows_are_due
from node.protocol.eip712 import Domain, digest
from node.protocol.envelope import Signed
from node.protocol.errors import RemoteProtocolError
from node.protocol.evaluation import Evaluation, check_evaluation, trial_seed
from node.protocol.offer import BrokerNotice, Receipt, Statement
from node.protocol.quorum import (
    BOUND_TOLERANCE,
    GAIN_TOLERANCE,
    Figure,
    figure_of,
    gain_is_close,
    loss_is_close,
    sealed,
    signers_of,
)
from node.protocol.quote import Quote
from node.protocol.types import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptFile:
    """One trade's measurement, with all that vouches for it."""

    domain: Domain
    receipt: Signed[Receipt]
    evaluation: Evaluation
    recipe: bytes
    quote: Quote
    broker_signatures: bytes
    signers: tuple[Address, ...]
    """The brokers that signed the quote, by rising account."""
    notice: Signed[BrokerNotice] | None
    """The terms under which was measured: without them nobody can see who chose the rows."""


RECEIPT_ALONE: Final = ("offer_digest", "issued_at", "expires_at", "nonce")
NOTICE_ALONE: Final = (
    "addresses", "fee_basis_points", "validation_rows", "issued_at", "expires_at", "nonce",
)  # fmt: skip
EVALUATION_ALONE: Final = (
    "architecture", "method", "base_root", "merged_root", "seed", "validation_root",
    "choice_rows", "score_rows", "loss_before", "loss_after", "gain", "bound", "code_version",
)  # fmt: skip
QUOTE_ALONE: Final = (
    "encryptor", "asset", "fee_recipient", "goods_root", "leaf_count", "byte_length",
    "secret_commitment", "dh_commitment", "fund_by", "reveal_by", "grace", "dispute_window",
)  # fmt: skip
"""Fields that are said once, so that only a hash or a signature can tell that one is another."""
DOMAIN_FIELDS: Final = ("chain_id", "escrow")
SHOWN: Final = 80


def check_signed(file: ReceiptFile, *, shared_rows: bool = False) -> None:
    """Check signatures and commitments; no weights are needed.

    What is said twice is compared first, so that the field that is another can be named; where a
    hash or a signature alone tells, all that it may be are. `shared_rows`: whether α may have been
    chosen on the rows that score it, as in the papers.
    """
    receipt, quote, evaluation = file.receipt.body, file.quote, file.evaluation
    for field, said, other, found in (
        ("receipt.task", receipt.task, "evaluation.task", evaluation.task),
        ("quote.trade_id", quote.trade_id, "receipt.trade_id", receipt.trade_id),
        ("quote.buyer", quote.buyer, "receipt.buyer", receipt.buyer),
        ("quote.seller", quote.seller, "receipt.seller", receipt.seller),
        ("quote.price", quote.price, "receipt.price", receipt.price),
        ("quote.fee", quote.fee, "receipt.fee", receipt.fee),
        ("quote.offer_root", quote.offer_root, "receipt.offer_root", receipt.offer_root),
        ("receipt.offer_root", receipt.offer_root, "evaluation.sold_root", evaluation.sold_root),
        (
            "receipt.notice_digest",
            receipt.notice_digest,
            "evaluation.notice_digest",
            evaluation.notice_digest,
        ),
    ):
        _same(field, said, other, found)
    recipe = check_recipe(evaluation, file.recipe)
    _same("evaluation.alpha", evaluation.alpha, "recipe", recipe.alpha)
    check_evaluation(evaluation)
    if file.notice is not None:
        _check_notice(file, file.notice, shared_rows=shared_rows)
    _same(
        "receipt.evaluation_hash",
        receipt.evaluation_hash,
        "evaluation",
        evaluation.hash,
        alone=EVALUATION_ALONE,
    )
    receipt_hash = digest(file.domain, receipt)
    issuer = ("broker", "peer_id") if file.notice is None else ()
    alone = (*issuer, *RECEIPT_ALONE, *DOMAIN_FIELDS)
    _same("quote.receipt_hash", quote.receipt_hash, "receipt", receipt_hash, alone=alone)
    _check_envelope(file.domain, "receipt", file.receipt, alone)
    _check_signers(file)


def _check_notice(file: ReceiptFile, signed: Signed[BrokerNotice], *, shared_rows: bool) -> None:
    notice, receipt, evaluation = signed.body, file.receipt.body, file.evaluation
    for field, said, other, found in (
        ("receipt.broker", receipt.broker, "notice.broker", notice.broker),
        ("receipt.peer_id", receipt.peer_id, "notice.peer_id", notice.peer_id),
        ("evaluation.task", evaluation.task, "notice.task", notice.task),
        (
            "evaluation.validation_root",
            evaluation.validation_root,
            "notice.validation_root",
            notice.validation_root,
        ),
        (
            "evaluation.seed",
            evaluation.seed,
            "what notice.seed draws for base_root and sold_root",
            trial_seed(notice.seed, evaluation.base_root, evaluation.sold_root),
        ),
    ):
        _same(field, said, other, found)
    if not rows_are_due(evaluation, notice, shared=shared_rows):
        raise RemoteProtocolError(
            "choice-rows",
            f"choice_rows and score_rows are said to be {evaluation.choice_rows} and "
            f"{evaluation.score_rows}, and are not those due of validation_rows "
            f"{notice.validation_rows}: a half each{', or all' if shared_rows else ''}",
        )
    notice_digest = digest(file.domain, notice)
    alone = NOTICE_ALONE + DOMAIN_FIELDS
    _same(
        "evaluation.notice_digest", evaluation.notice_digest, "notice", notice_digest, alone=alone
    )
    _check_envelope(file.domain, "notice", signed, alone)


def _check_signers(file: ReceiptFile) -> None:
    name = digest(file.domain, file.quote)
    alone = ("broker_signatures", *QUOTE_ALONE, *DOMAIN_FIELDS)
    try:
        signers = signers_of(name, file.broker_signatures)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(
            error.reason, f"{error.detail[:SHOWN]}{_one_of(alone)}"
        ) from error
    _same("signers", ", ".join(file.signers), "those of quote", ", ".join(signers), alone=alone)
    if file.receipt.body.broker not in signers:
        differs("broker", file.receipt.body.broker, ", ".join(signers))


def _check_envelope(
    domain: Domain, part: str, signed: Signed[Statement], alone: tuple[str, ...]
) -> None:
    try:
        envelope.check(domain, signed)
    except RemoteProtocolError as error:
        suspects = ("account_signature", "peer_signature", *alone)
        detail = f"{part}: {error.detail[:SHOWN]}{_one_of(suspects)}"
        raise RemoteProtocolError(error.reason, detail) from error


def _same(
    field: str, said: object, other: str, found: object, *, alone: tuple[str, ...] = ()
) -> None:
    """Raise `RemoteProtocolError` that names both fields unless they say the same."""
    if said != found:
        reason = field.rpartition(".")[2].replace("_", "-")
        shown = f"{field} is said to be {_shown(said)}, and {other} is {_shown(found)}"
        raise RemoteProtocolError(reason, shown + _one_of(alone))


def _one_of(fields: tuple[str, ...]) -> str:
    return f"; another one of: {', '.join(fields)}" if fields else ""


def check_measured_again(
    file: ReceiptFile, base: Verified, sold: Verified, appraiser: Appraiser
) -> Figure:
    """Check the figures against weights and rows; returns those that were found.

    A recipe that was fitted to the rows passes: what it gains on them, it does gain.
    """
    said = figure_of(file.evaluation)
    found = appraiser.replay(sealed(file.evaluation), file.recipe, base, sold).figure
    for field, close in (
        ("loss_before", loss_is_close(said.loss_before, found.loss_before)),
        ("loss_after", loss_is_close(said.loss_after, found.loss_after)),
        ("gain", gain_is_close(found, said.gain - found.gain, GAIN_TOLERANCE)),
        ("bound", gain_is_close(found, said.bound - found.bound, BOUND_TOLERANCE)),
    ):
        if not close:
            differs(field, getattr(said, field), getattr(found, field))
    return found


def model_of(
    architecture: Architecture,
    tensors: Mapping[str, torch.Tensor],
    *,
    root: bytes,
    field: str,
    base: Base | None = None,
) -> Verified:
    """Return tensors of a file as a model, or as those layers of one that they are.

    `base`: what adapters are of.
    """
    found = weights_root(dict(tensors))
    if found != root:
        differs(field, root.hex(), found.hex())
    received = Received(
        weights_root=found,
        architecture=architecture,
        tensors=tensors,
        layers=_layers_of(architecture, frozenset(tensors)),
        base=base if is_adapter(architecture) else None,
    )
    return verify(received)


def _layers_of(architecture: Architecture, names: frozenset[str]) -> tuple[int, ...]:
    """Return which layers have tensors of these names; none for all."""
    if names == {spec.name for spec in layout(architecture)}:
        return ()
    layers = []
    for layer in range(len(names) + len(layout(architecture))):
        try:
            of_layer = {spec.name for spec in layout(architecture, (layer,))}
        except ArchitectureError:
            break
        if of_layer <= names:
            layers.append(layer)
    return tuple(layers)


def _shown(value: object) -> str:
    text = "0x" + value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
