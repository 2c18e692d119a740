"""A receipt and its weights out of a node's own data directory, held to what they say."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from pathlib import Path

import pytest
import torch

from broker_node.appraisal import MarketAppraiser
from broker_node.evaluate.validation import ValidationSet
from broker_node.quorum.receipts import ReceiptFile, check_signed
from node.cli.receipt_file import read, write
from node.data.datasets import load_digits
from node.data.split import split_test
from node.home import Home
from node.journal import Journal, TradeRow
from node.params.encoding import encode_tensors, load_weights, save_safetensors
from node.params.errors import ProfileError
from node.params.store import BlobStore
from node.protocol import cbor, envelope
from node.protocol.eip712 import digest
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.offer import BrokerNotice
from node.protocol.purchase import PurchaseState
from node.protocol.schema import to_map
from node.protocol.signing import peer_id_of_seed
from node.protocol.types import Digest
from tests.cli.conftest import Command
from tests.protocol import cast
from tests.quorum.brokers import DOMAIN, account_of
from tests.quorum.test_receipts_replayed import (
    BASE,
    OTHER,
    PEER_SEED,
    SOLD,
    leaves,
    replaced,
    signed_by_broker,
)
from tests.settlement.trades import purchase


@pytest.fixture(scope="module")
def receipt() -> ReceiptFile:
    """What a broker measured of two models, and signed."""
    torch.set_num_threads(1)
    rows = ValidationSet.of(split_test(load_digits(Path("/nowhere"))).validation)
    appraiser = MarketAppraiser(rows, classes=10)
    notice: BrokerNotice = dataclasses.replace(
        cast.notice(),
        broker=account_of(0),
        peer_id=peer_id_of_seed(PEER_SEED),
        task="digits",
        validation_root=appraiser.validation_root,
        validation_rows=appraiser.validation_rows,
    )
    trial = appraiser.measure(BASE, SOLD, task="digits", notice=(digest(DOMAIN, notice), notice))
    return signed_by_broker(trial.evaluation, trial.recipe, notice)


@pytest.fixture
def bought(home: Path, receipt: ReceiptFile) -> Path:
    """The data directory of a node that bought what was measured; its blobs."""
    own = Home(home).prepare()
    assert receipt.notice is not None
    record = dataclasses.replace(
        purchase(receipt.quote),
        state=PurchaseState.COMPLETE.value,
        evaluation=receipt.evaluation,
        recipe=receipt.recipe,
        receipt=envelope.encode(receipt.receipt),
        notice=envelope.encode(receipt.notice),
        broker_signature=receipt.broker_signatures,
    )
    journal = Journal(own.journal)
    journal.remember("market", [DOMAIN.chain_id, DOMAIN.escrow])
    journal.save_trade(
        TradeRow(
            trade_id=record.trade_id,
            role="buyer",
            state=record.state,
            over=True,
            record=cbor.encode(to_map(record)),
        )
    )
    journal.close()
    store = BlobStore(own.blobs)
    for model in (BASE, SOLD, OTHER):
        store.put_bytes(encode_tensors(dict(model.tensors)))
    return own.blobs


def test_what_a_node_keeps_is_enough_to_verify_its_receipt(
    pm_node: Command, home: Path, bought: Path, receipt: ReceiptFile, tmp_path: Path
) -> None:
    written = pm_node("trade", "receipt", receipt.quote.trade_id.hex(), "--data-dir", home)
    assert written.code == 0, written.err
    file = tmp_path / "receipt.json"
    file.write_text(written.out)
    said = json.loads(written.out)["evaluation"]
    base, sold = (bought / said[name].removeprefix("0x") for name in ("base_root", "sold_root"))
    words = ("verify", file, "--dataset", "digits", "--data-dir", home)
    ran = pm_node(*words, "--base", base, "--sold", sold)
    assert ran.code == 0, ran.err
    assert "holds" in ran.out
    save_safetensors(BASE.tensors, tmp_path / "base.safetensors")
    mixed = pm_node(*words, "--base", tmp_path / "base.safetensors", "--sold", sold)
    assert mixed.code == 0, mixed.err
    other = bought / OTHER.weights_root.hex()
    pm_node(*words, "--base", base, "--sold", other).refused(1, "sold_root is said to be")


@pytest.mark.parametrize("held", [b"", b"junk", b"\0\0\0\x01\x80", b"\0\0\0\0\0", bytes(64)])
def test_what_is_neither_safetensors_nor_a_blob_is_refused(tmp_path: Path, held: bytes) -> None:
    (tmp_path / "weights").write_bytes(held)
    with pytest.raises((ProfileError, RemoteProtocolError)):
        load_weights(tmp_path / "weights")


@pytest.mark.parametrize("digits", [79, 4_200, 5_000])
def test_a_number_of_too_many_digits_is_refused_by_the_name_of_its_field(
    tmp_path: Path, receipt: ReceiptFile, digits: int
) -> None:
    path, whole = tmp_path / "receipt.json", json.loads(write(receipt))
    for at in leaves(whole):
        held = functools.reduce(operator.getitem, at, whole)
        of_money = isinstance(held, str) and held.isdecimal()
        path.write_text(json.dumps(replaced(whole, at, "9" * digits)))
        with pytest.raises(MarketError, match=str(at[-1]) if of_money else None):
            check_signed(read(path))


@pytest.mark.parametrize("digits", ["79", "5000"])
def test_a_price_of_too_many_digits_ends_in_one_line(
    pm_node: Command, bought: Path, receipt: ReceiptFile, tmp_path: Path, digits: str
) -> None:
    path, whole = tmp_path / "receipt.json", json.loads(write(receipt))
    whole["quote"]["price"] = "1" * int(digits)
    path.write_text(json.dumps(whole))
    weights = bought / Digest(BASE.weights_root).hex()
    ran = pm_node("verify", path, "--base", weights, "--sold", weights)
    ran.refused(1, "price", f"{digits} digits")
