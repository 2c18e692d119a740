"""A receipt as a JSON file: read strictly, written from a trade of the journal.

Bytes are 0x and hexadecimal digits, amounts of money decimal texts, everything else as it is.
"""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any, Final

from broker_node.quorum.receipts import ReceiptFile
from node.cli.message_json import MAX_FILE_BYTES, bytes_of, from_json, malformed, to_json
from node.journal import Journal, TradeRow
from node.protocol import bounded_json, envelope
from node.protocol.brokerage import Brokerage
from node.protocol.eip712 import Domain, digest
from node.protocol.envelope import Signed
from node.protocol.errors import LocalProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.offer import BrokerNotice, Receipt
from node.protocol.purchase import Purchase
from node.protocol.quorum import signers_of
from node.protocol.quote import Quote
from node.protocol.types import Address, Digest
from node.settlement.trade import machine_of

FORMAT: Final = "pm-node receipt 1"
_KEYS: Final = frozenset(
    {"format", "domain", "receipt", "evaluation", "recipe", "quote", "broker_signatures",
     "signers", "notice"}
)  # fmt: skip
_SIGNATURES: Final = frozenset({"account_signature", "peer_signature"})


def write(file: ReceiptFile) -> str:
    """Return the file's text."""
    return json.dumps(
        {
            "format": FORMAT,
            "domain": to_json(file.domain),
            "receipt": _signed_to_json(file.receipt),
            "evaluation": to_json(file.evaluation),
            "recipe": "0x" + file.recipe.hex(),
            "quote": to_json(file.quote),
            "broker_signatures": "0x" + file.broker_signatures.hex(),
            "signers": list(file.signers),
            "notice": None if file.notice is None else _signed_to_json(file.notice),
        },
        indent=2,
    )


def read(path: Path) -> ReceiptFile:
    """Return what a file says. Raises `RemoteProtocolError("malformed")` naming what is not."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise malformed("file", f"over {MAX_FILE_BYTES} bytes")
    try:
        value = bounded_json.loads(path.read_bytes())
    except ValueError as error:
        raise malformed("file", str(error)) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise malformed("format", f"not a {FORMAT!r}")
    if set(value) != _KEYS:
        raise malformed("file", f"has too much or too little of {sorted(set(value) ^ _KEYS)}")
    signers = value["signers"]
    if not isinstance(signers, list) or not all(isinstance(each, str) for each in signers):
        raise malformed("signers", "must be accounts")
    notice = value["notice"]
    return ReceiptFile(
        domain=from_json(Domain, value["domain"]),
        receipt=_signed_from_json(Receipt, value["receipt"]),
        evaluation=from_json(Evaluation, value["evaluation"]),
        recipe=bytes_of("recipe", value["recipe"]),
        quote=from_json(Quote, value["quote"]),
        broker_signatures=bytes_of("broker_signatures", value["broker_signatures"]),
        signers=tuple(Address(each) for each in signers),
        notice=None if notice is None else _signed_from_json(BrokerNotice, notice),
    )


def of_trade(journal: Journal, row: TradeRow) -> ReceiptFile:
    """Return the receipt of a trade that this node bought or brokered.

    Raises `LocalProtocolError` for a sale: what was measured is the buyer's and the broker's.
    """
    machine = machine_of(row)
    match machine:
        case Purchase():
            held = machine.record
            quote, evaluation = held.quote, held.evaluation
            recipe, receipt = held.recipe, held.receipt
            signatures, notice = held.broker_signature, held.notice
        case Brokerage():
            deal = machine.record.deal
            quote, evaluation = deal.quote, deal.evaluation
            recipe, receipt, signatures = deal.recipe, deal.receipt, deal.broker_signature
            notice = machine.record.notice
        case _:
            raise LocalProtocolError("a seller is not told what was measured: ask the buyer")
    market = journal.recall("market")
    if not isinstance(market, list) or len(market) != 2:
        raise LocalProtocolError("the journal does not say which market it is of")
    domain = Domain(chain_id=market[0], escrow=Address(str(market[1])))  # type: ignore[arg-type]
    signed = envelope.decode(receipt)
    assert isinstance(signed.body, Receipt)
    return ReceiptFile(
        domain=domain,
        receipt=typing.cast("Signed[Receipt]", signed),
        evaluation=evaluation,
        recipe=recipe,
        quote=quote,
        broker_signatures=signatures,
        signers=tuple(signers_of(digest(domain, quote), signatures)),
        notice=_notice(journal, notice, domain, evaluation.notice_digest),
    )


def _notice(
    journal: Journal, kept: bytes, domain: Domain, name: Digest
) -> Signed[BrokerNotice] | None:
    """Return the notice that is kept with a trade; of an older record, one of our own, if any."""
    for data in (kept,) if kept else journal.statements(0):
        signed = envelope.decode(data)
        if isinstance(signed.body, BrokerNotice) and digest(domain, signed.body) == name:
            return typing.cast("Signed[BrokerNotice]", signed)
    return None


def _signed_to_json(signed: Signed[Any]) -> dict[str, Any]:
    return {
        **to_json(signed.body),
        "account_signature": "0x" + signed.account_signature.hex(),
        "peer_signature": "0x" + signed.peer_signature.hex(),
    }


def _signed_from_json(cls: type[Any], value: object) -> Signed[Any]:
    if not isinstance(value, dict) or not set(value) >= _SIGNATURES:
        raise malformed(cls.__name__, "needs two signatures")
    body = {name: each for name, each in value.items() if name not in _SIGNATURES}
    return Signed(
        body=from_json(cls, body),
        account_signature=bytes_of("account_signature", value["account_signature"]),
        peer_signature=bytes_of("peer_signature", value["peer_signature"]),
    )
