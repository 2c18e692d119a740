"""A receipt is believed for what its weights and rows give, and not for who signed it."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from broker_node.appraisal import MarketAppraiser, Trial
from broker_node.evaluate.validation import ValidationSet
from broker_node.quorum.receipts import ReceiptFile, check_measured_again, check_signed, model_of
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.cli.main import run
from node.cli.receipt_file import read, write
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.architecture import Architecture, random_init
from node.params.encoding import save_safetensors, weights_root
from node.params.recipe import Recipe
from node.protocol import envelope
from node.protocol.eip712 import Domain, digest
from node.protocol.envelope import Signed
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.offer import BrokerNotice, Receipt
from node.protocol.quorum import join_signatures, signers_of
from node.protocol.schema import to_map
from node.protocol.signing import address_of, peer_id_of_seed, sign_digest
from node.protocol.types import Digest, Millionths, UnixTime
from tests.protocol import cast
from tests.quorum.brokers import DOMAIN, account_of, key_of

PEER_SEED = bytes(range(32))
ARCHITECTURE = Architecture("mlp", {"widths": [64, 24, 10]})


def model(seed: int) -> Verified:
    tensors = random_init(ARCHITECTURE, seed)
    return verify(
        Received(weights_root=weights_root(tensors), architecture=ARCHITECTURE, tensors=tensors)
    )


BASE, SOLD, OTHER = model(1), model(2), model(3)


@pytest.fixture(scope="module")
def appraiser() -> MarketAppraiser:
    torch.set_num_threads(1)
    rows = ValidationSet.of(split_test(load_digits(Path("/nowhere"))).validation)
    return MarketAppraiser(rows, classes=10)


@pytest.fixture(scope="module")
def notice(appraiser: MarketAppraiser) -> BrokerNotice:
    return dataclasses.replace(
        cast.notice(),
        broker=account_of(0),
        peer_id=peer_id_of_seed(PEER_SEED),
        task="digits",
        validation_root=appraiser.validation_root,
        validation_rows=appraiser.validation_rows,
    )


@pytest.fixture(scope="module")
def trial(appraiser: MarketAppraiser, notice: BrokerNotice) -> Trial:
    return appraiser.measure(BASE, SOLD, task="digits", notice=(digest(DOMAIN, notice), notice))


def signed_by_broker(
    evaluation: Evaluation,
    recipe: bytes,
    notice: BrokerNotice,
    *,
    domain: Domain = DOMAIN,
    signers: tuple[int, ...] = (0, 1),
) -> ReceiptFile:
    """All that a broker and its peer would sign for this evaluation, true or not."""
    terms = cast.quote()
    receipt = Receipt(
        broker=account_of(0),
        peer_id=peer_id_of_seed(PEER_SEED),
        trade_id=terms.trade_id,
        task=evaluation.task,
        buyer=terms.buyer,
        seller=terms.seller,
        offer_digest=Digest(bytes(32)),
        offer_root=evaluation.sold_root,
        notice_digest=evaluation.notice_digest,
        price=terms.price,
        fee=terms.fee,
        evaluation_hash=evaluation.hash,
        issued_at=UnixTime(1_000),
        expires_at=UnixTime(2_000),
        nonce=1,
    )
    quote = dataclasses.replace(
        terms, offer_root=evaluation.sold_root, receipt_hash=digest(domain, receipt)
    )
    name = digest(domain, quote)
    signatures = join_signatures({account_of(n): sign_digest(key_of(n), name) for n in signers})

    def sign(body: Any) -> Signed[Any]:
        return envelope.sign(domain, body, account_key=key_of(0), peer_seed=PEER_SEED)

    return ReceiptFile(
        domain=domain,
        receipt=sign(receipt),
        evaluation=evaluation,
        recipe=recipe,
        quote=quote,
        broker_signatures=signatures,
        signers=tuple(signers_of(name, signatures)),
        notice=sign(notice),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, held in (("base", BASE), ("sold", SOLD), ("other", OTHER)):
        save_safetensors(held.tensors, tmp_path / f"{name}.safetensors")
    return tmp_path


def verified(folder: Path, file: ReceiptFile, *more: str, **files: str) -> int:
    """Run the command on a receipt; returns its exit code."""
    path = folder / "receipt.json"
    path.write_text(write(file))
    named = {"base": "base", "sold": "sold", **files}
    arguments = [f"--{flag}={folder / name}.safetensors" for flag, name in named.items()]
    return run(
        ["verify", str(path), *arguments, "--dataset", "digits", "--data-dir", str(folder), *more]
    )


def test_a_receipt_holds_for_whoever_has_weights_and_rows(
    folder: Path, trial: Trial, notice: BrokerNotice, capsys: pytest.CaptureFixture[str]
) -> None:
    file = signed_by_broker(trial.evaluation, trial.recipe, notice)
    assert verified(folder, file) == 0
    assert "holds" in capsys.readouterr().out
    assert verified(folder, file, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["said"] == told["found"]
    assert told["signers"] == list(file.signers)
    assert read(folder / "receipt.json") == file


def test_a_file_without_the_notice_is_refused_unless_that_is_said(
    folder: Path, trial: Trial, notice: BrokerNotice, capsys: pytest.CaptureFixture[str]
) -> None:
    file = signed_by_broker(trial.evaluation, trial.recipe, notice)
    less = dataclasses.replace(file, notice=None)
    assert verified(folder, less) == 1
    refused = capsys.readouterr()
    assert refused.out == ""
    assert "--no-notice" in refused.err
    assert verified(folder, less, "--no-notice") == 0
    assert "not checked: who chose the rows" in capsys.readouterr().out
    assert verified(folder, less, "--no-notice", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["not_checked"]) == 3


def test_what_is_said_to_be_without_a_notice_is_checked_where_there_is_one(
    folder: Path, trial: Trial, notice: BrokerNotice, capsys: pytest.CaptureFixture[str]
) -> None:
    other = dataclasses.replace(trial.evaluation, seed=Digest(b"\x01" * 32))
    file = signed_by_broker(other, trial.recipe, notice)
    assert verified(folder, file, "--no-notice") == 1
    assert "seed is said to be" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [(1, 2), (10, 20), (1, -1), (-1, -1)])
def test_no_other_rows_count_than_those_that_are_due(
    folder: Path,
    trial: Trial,
    notice: BrokerNotice,
    capsys: pytest.CaptureFixture[str],
    rows: tuple[int, int],
) -> None:
    drawn = [each % (notice.validation_rows + 1) for each in rows]
    evaluation = dataclasses.replace(trial.evaluation, choice_rows=drawn[0], score_rows=drawn[1])
    file = signed_by_broker(evaluation, trial.recipe, notice)
    assert verified(folder, file) == 1
    assert "choice_rows and score_rows are said to be" in capsys.readouterr().err
    shared = drawn == [notice.validation_rows] * 2
    assert reason_of(lambda: check_signed(file, shared_rows=True)) == (
        "" if shared else "choice-rows"
    )


def reason_of(check: Callable[[], None]) -> str:
    try:
        check()
    except RemoteProtocolError as error:
        return error.reason
    return ""


def gained(evaluation: Evaluation, more: int) -> Evaluation:
    """A gain of so many millionths more, sound in itself."""
    less = evaluation.loss_before * more // 1_000_000
    after = evaluation.loss_after - less
    gain = (evaluation.loss_before - after) * 1_000_000 // evaluation.loss_before
    return dataclasses.replace(
        evaluation,
        loss_after=after,
        gain=Millionths(gain),
        bound=Millionths(evaluation.bound + more),
    )


FALSE: dict[str, tuple[Callable[[Evaluation], Evaluation], str]] = {
    "a gain": (lambda e: gained(e, 50_000), "loss_after"),
    "a gain of a little more than noise": (lambda e: gained(e, 100), "loss_after"),
    "a bound": (
        lambda e: dataclasses.replace(e, bound=Millionths(min(e.gain, e.bound + 500))),
        "bound",
    ),
    "the bytes": (
        lambda e: dataclasses.replace(e, merged_root=Digest(b"\x01" * 32)),
        "merged_root",
    ),
    "the recipe": (
        lambda e: dataclasses.replace(e, recipe_hash=Digest(b"\x01" * 32)),
        "recipe_hash",
    ),
    "the merge weight": (
        lambda e: dataclasses.replace(e, alpha=Millionths(e.alpha ^ 1)),
        "alpha",
    ),
    "the code": (lambda e: dataclasses.replace(e, code_version="pm-node/0"), "code_version"),
    "the rows": (
        lambda e: dataclasses.replace(e, validation_root=Digest(b"\x01" * 32)),
        "validation_root",
    ),
    "how many rows": (
        lambda e: dataclasses.replace(e, choice_rows=10, score_rows=20),
        "choice_rows and score_rows",
    ),
    "the seed": (lambda e: dataclasses.replace(e, seed=Digest(b"\x01" * 32)), "seed"),
}


@pytest.mark.parametrize("what", FALSE)
def test_a_valid_signature_over_something_false_fails_by_the_name_of_the_field(
    folder: Path,
    trial: Trial,
    notice: BrokerNotice,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    change, field = FALSE[what]
    file = signed_by_broker(change(trial.evaluation), trial.recipe, notice)
    assert verified(folder, file) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert f"{field} {'are' if ' and ' in field else 'is'} said to be" in line


def test_another_merge_weight_gives_other_bytes(
    folder: Path, trial: Trial, notice: BrokerNotice, capsys: pytest.CaptureFixture[str]
) -> None:
    half = Recipe.decode(trial.recipe).with_alpha(Millionths(123_456))
    evaluation = dataclasses.replace(trial.evaluation, alpha=half.alpha, recipe_hash=half.hash)
    assert verified(folder, signed_by_broker(evaluation, half.encode(), notice)) == 1
    assert "merged_root is said to be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "field"), [({"base": "other"}, "base_root"), ({"sold": "other"}, "sold_root")]
)
def test_other_weights_are_told_by_their_root(
    folder: Path,
    trial: Trial,
    notice: BrokerNotice,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, str],
    field: str,
) -> None:
    file = signed_by_broker(trial.evaluation, trial.recipe, notice)
    assert verified(folder, file, **files) == 1
    assert f"{field} is said to be" in capsys.readouterr().err


def test_bad_files_are_refused_in_one_line(
    folder: Path, trial: Trial, notice: BrokerNotice, capsys: pytest.CaptureFixture[str]
) -> None:
    file = signed_by_broker(trial.evaluation, trial.recipe, notice)
    assert verified(folder, file, base="missing") == 2
    (folder / "junk.safetensors").write_bytes(b"junk")
    assert verified(folder, file, base="junk") != 0
    for text in ("", "{}", "[]", '{"format": "pm-node receipt 1"}', "[" * 100_000):
        (folder / "receipt.json").write_text(text)
        capsys.readouterr()
        weights = [f"--{w}={folder}/{w}.safetensors" for w in ("base", "sold")]
        assert run(["verify", str(folder / "receipt.json"), *weights]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


Path_ = tuple[str | int, ...]


def leaves(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where the values of a file stand."""
    match value:
        case dict():
            for key, held in value.items():
                yield from leaves(held, (*at, key))
        case list():
            for number, held in enumerate(value):
                yield from leaves(held, (*at, number))
        case _:
            yield at


def other_than(held: Any) -> st.SearchStrategy[Any]:
    """Values of the same shape, and some of another."""
    match held:
        case int():
            alike: st.SearchStrategy[Any] = st.integers(0, 2**64 - 1) | st.just(held + 1)
        case str() if held.startswith("0x"):
            length = (len(held) - 2) // 2
            turned = held[:-1] + format(int(held[-1], 16) ^ 1, "x")
            alike = st.binary(min_size=length, max_size=length).map(lambda b: "0x" + b.hex())
            alike |= st.just(turned) | st.just(held[:-2])
        case str() if held.isdecimal():
            alike = st.integers(0, 2**256 - 1).map(str)
        case _:
            alike = st.text(max_size=40) | st.just(held + "x")
    odd: st.SearchStrategy[Any] = st.sampled_from([None, "", -1, 1.5, [], {}, True])
    return (alike | odd).filter(lambda value: value != held or type(value) is not type(held))


def replaced(value: Any, at: Path_, by: Any) -> Any:
    if not at:
        return by
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], by)
    return copy


def judged(path: Path, document: Any, appraiser: MarketAppraiser) -> str:
    """Return what is said against a file; empty if it holds."""
    path.write_text(json.dumps(document))
    try:
        found = read(path)
        check_signed(found)
        for held, root, field in (
            (BASE, found.evaluation.base_root, "base_root"),
            (SOLD, found.evaluation.sold_root, "sold_root"),
        ):
            model_of(ARCHITECTURE, held.tensors, root=root, field=field)
        check_measured_again(found, BASE, SOLD, appraiser)
    except MarketError as error:
        return str(error)
    return ""


def test_every_single_field_is_held_to_something_that_names_it(
    tmp_path_factory: pytest.TempPathFactory,
    trial: Trial,
    notice: BrokerNotice,
    appraiser: MarketAppraiser,
) -> None:
    file = signed_by_broker(trial.evaluation, trial.recipe, notice)
    path, whole = tmp_path_factory.mktemp("mutated") / "receipt.json", json.loads(write(file))
    assert judged(path, whole, appraiser) == ""
    places = list(leaves(whole))
    fields = sum(
        len(to_map(part)) for part in (file.domain, file.receipt.body, file.evaluation, file.quote)
    )
    addresses = len(notice.addresses) - 1
    assert len(places) == fields + len(to_map(notice)) + addresses + 2 * 2 + 3 + len(file.signers)

    @settings(max_examples=4, deadline=None, phases=[Phase.generate])
    @given(st.data())
    def mutated(at: Path_, data: st.DataObject) -> None:
        held = functools.reduce(operator.getitem, at, whole)
        changed = replaced(whole, at, data.draw(other_than(held)))
        said = judged(path, changed, appraiser)
        named = next(str(key) for key in reversed(at) if isinstance(key, str))
        assert named in said, (at, said)

    for at in places:
        functools.partial(mutated, at)()


def test_a_part_that_is_left_out_or_put_in_is_told(
    tmp_path: Path, trial: Trial, notice: BrokerNotice, appraiser: MarketAppraiser
) -> None:
    file = signed_by_broker(trial.evaluation, trial.recipe, notice)
    whole = json.loads(write(file))
    path = tmp_path / "receipt.json"
    for key in whole:
        less = {name: held for name, held in whole.items() if name != key}
        assert key in judged(path, less, appraiser)
    assert "more" in judged(path, {**whole, "more": 1}, appraiser)


def test_one_broker_alone_signs_a_receipt_like_a_quorum(
    folder: Path, trial: Trial, notice: BrokerNotice
) -> None:
    file = signed_by_broker(trial.evaluation, trial.recipe, notice)
    signature = sign_digest(key_of(0), digest(DOMAIN, file.quote))
    alone = dataclasses.replace(file, broker_signatures=signature, signers=(address_of(key_of(0)),))
    assert verified(folder, alone) == 0
