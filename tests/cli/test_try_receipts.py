"""The receipt of a trial is believed for what its weights and rows give."""

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

from broker_node.evaluate.validation import ValidationSet
from broker_node.trying import making
from broker_node.trying.methods import aligners, mergers
from broker_node.trying.reading import admitted
from broker_node.trying.receipt import (
    Described,
    TrialReceipt,
    check_receipt,
    receipt_of,
    signed_digest,
)
from broker_node.trying.trial import Trial, run_trial
from broker_node.verify.stages import Verified
from node.cli.try_receipt_file import is_of_trial, read, write
from node.data.datasets import load_digits
from node.home import Home
from node.identity import create_account
from node.params.architecture import Architecture, random_init
from node.params.encoding import load_safetensors, save_safetensors
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.schema import to_map
from node.protocol.signing import address_of, sign_digest
from node.protocol.types import Digest, Millionths
from tests.cli.conftest import PASSWORD, Command

ARCHITECTURE = Architecture("mlp", {"widths": [64, 24, 10]})
ROWS = Described(name="digits", label="last", normalise="auto")
KEY = bytes(range(1, 33))
SEED = 3


def model(seed: int) -> Verified:
    return admitted(ARCHITECTURE, random_init(ARCHITECTURE, seed))


BASE, SOLD, THIRD, OTHER = (model(seed) for seed in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def validation() -> ValidationSet:
    torch.set_num_threads(1)
    return ValidationSet.of(load_digits(Path("/nowhere")).test)


def tried(validation: ValidationSet, sellers: list[Verified]) -> Trial:
    return run_trial(
        BASE,
        sellers,
        validation,
        seed=SEED,
        aligners=aligners(["identity", "weight-matching"]),
        mergers=mergers(["lerp"]),
    )


@pytest.fixture(scope="module")
def signed(validation: ValidationSet) -> TrialReceipt:
    trial = tried(validation, [SOLD])
    assert trial.best is not None
    return receipt_of(trial, BASE, [SOLD], validation, seed=SEED, rows=ROWS, account_key=KEY)


def resigned(receipt: TrialReceipt, **changes: Any) -> TrialReceipt:
    """What somebody who holds the key may write, true or not."""
    evaluation: Evaluation = dataclasses.replace(receipt.evaluation, **changes)
    return dataclasses.replace(
        receipt,
        evaluation=evaluation,
        evaluation_hash=evaluation.hash,
        signature=sign_digest(KEY, signed_digest(evaluation)),
    )


def test_a_receipt_holds_for_whoever_has_weights_and_rows(
    tmp_path: Path, validation: ValidationSet, signed: TrialReceipt
) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(write(signed))
    assert is_of_trial(path)
    assert read(path) == signed
    found = check_receipt(signed, BASE, [SOLD], validation)
    assert (found.gain, found.bound) == (signed.evaluation.gain, signed.evaluation.bound)
    assert signed.account == address_of(KEY)
    unsigned = dataclasses.replace(signed, account=None, signature=None)
    check_receipt(unsigned, BASE, [OTHER, SOLD], validation)


FALSE: dict[str, Callable[[Evaluation], dict[str, Any]]] = {
    "loss_after": lambda e: {
        "loss_after": e.loss_after - e.loss_before // 20,
        "gain": Millionths(
            (e.loss_before - e.loss_after + e.loss_before // 20) * 1_000_000 // e.loss_before
        ),
    },
    "bound": lambda e: {"bound": Millionths(min(e.gain, e.bound + 5_000))},
    "merged_root": lambda e: {"merged_root": Digest(b"\1" * 32)},
    "base_root": lambda e: {"base_root": Digest(b"\1" * 32)},
    "sold_root": lambda e: {"sold_root": Digest(b"\1" * 32)},
    "recipe_hash": lambda e: {"recipe_hash": Digest(b"\1" * 32)},
    "alpha": lambda e: {"alpha": Millionths(e.alpha ^ 1)},
    "code_version": lambda _: {"code_version": "pm-node/0"},
    "validation_root": lambda _: {"validation_root": Digest(b"\1" * 32)},
    "choice_rows": lambda _: {"choice_rows": 10},
    "score_rows": lambda _: {"score_rows": 20},
    "seed": lambda _: {"seed": Digest(b"\1" * 32)},
    "notice_digest": lambda _: {"notice_digest": Digest(b"\1" * 32)},
    "task": lambda _: {"task": "try: other rows"},
    "architecture": lambda _: {
        "architecture": Architecture("linear", {"inputs": 1, "outputs": 2}).text
    },
}


@pytest.mark.parametrize("field", FALSE)
def test_a_valid_signature_over_something_false_fails_by_the_name_of_the_field(
    validation: ValidationSet, signed: TrialReceipt, field: str
) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        check_receipt(resigned(signed, **FALSE[field](signed.evaluation)), BASE, [SOLD], validation)
    assert f"{field} is said to be" in str(refused.value)


def test_other_weights_rows_signers_and_seeds_are_told(
    validation: ValidationSet, signed: TrialReceipt
) -> None:
    fewer = ValidationSet(validation.inputs_RF[1:], validation.targets_R[1:])
    for told, base, sold, rows in (
        ("base_root", OTHER, [SOLD], validation),
        ("sold_root", BASE, [OTHER], validation),
        ("validation_root", BASE, [SOLD], fewer),
    ):
        with pytest.raises(RemoteProtocolError, match=f"{told} is said to be"):
            check_receipt(signed, base, sold, rows)
    for changed, told in (
        (dataclasses.replace(signed, account=address_of(bytes([7] * 32))), "account"),
        (dataclasses.replace(signed, account=None), "signature"),
        (dataclasses.replace(signed, seed=SEED + 1), "seed"),
    ):
        with pytest.raises(RemoteProtocolError, match=told):
            check_receipt(changed, BASE, [SOLD], validation)


def leaves(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the values of a file stand."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, held in pairs:
            yield from leaves(held, (*at, key))
    else:
        yield at


def others(held: Any) -> list[Any]:
    """Values of the same shape, and of others."""
    match held:
        case int():
            return [held + 1, held ^ 64, -1, None, str(held)]
        case str() if held.startswith("0x"):
            turned = held[:-1] + format(int(held[-1], 16) ^ 1, "x")
            return [turned, held[:-2], "0x" + "11" * ((len(held) - 2) // 2), "", 7]
        case None:
            return ["0x", 0]
        case _:
            return [held + "x", "", None, 1]


def replaced(value: Any, at: tuple[str | int, ...], by: Any) -> Any:
    if not at:
        return by
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], by)
    return copy


@pytest.mark.parametrize("is_signed", [True, False])
def test_any_single_changed_field_fails(
    tmp_path: Path, validation: ValidationSet, signed: TrialReceipt, is_signed: bool
) -> None:
    receipt = signed if is_signed else dataclasses.replace(signed, account=None, signature=None)
    path, whole = tmp_path / "receipt.json", json.loads(write(receipt))
    places = list(leaves(whole))
    assert len(places) == len(to_map(receipt.evaluation)) + 1 + 1 + 1 + 3 + 1 + 2 + 2
    for at in places:
        for other in others(functools.reduce(operator.getitem, at, whole)):
            path.write_text(json.dumps(replaced(whole, at, other)))
            with pytest.raises(MarketError):
                check_receipt(read(path), BASE, [SOLD], validation)


def test_what_no_recipe_makes_is_held_to_the_merged_file(
    validation: ValidationSet, signed: TrialReceipt
) -> None:
    trial = tried(validation, [SOLD])
    assert trial.best is not None
    candidates = [dataclasses.replace(each, steps=None) for each in trial.candidates]
    without = dataclasses.replace(trial, candidates=tuple(candidates))
    told = receipt_of(without, BASE, [SOLD], validation, seed=SEED, rows=ROWS)
    merged = candidates[trial.best].tensors
    assert told.steps == ()
    assert told.evaluation.alpha == 0
    with pytest.raises(LocalProtocolError, match="--merged"):
        check_receipt(told, BASE, [SOLD], validation)
    check_receipt(told, BASE, [SOLD], validation, merged=merged)
    with pytest.raises(RemoteProtocolError, match="merged_root is said to be"):
        check_receipt(told, BASE, [SOLD], validation, merged=OTHER.tensors)
    with pytest.raises(RemoteProtocolError, match="merged_root is said to be"):
        check_receipt(signed, BASE, [SOLD], validation, merged=OTHER.tensors)


def test_merges_in_turn_are_made_again_step_by_step(
    tmp_path: Path, validation: ValidationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "best_alpha", lambda _: Millionths(300_000))
    trial = tried(validation, [SOLD, THIRD])
    best = next(at for at, each in enumerate(trial.candidates) if len(each.sellers) == 2)
    told = receipt_of(
        dataclasses.replace(trial, best=best), BASE, [SOLD, THIRD], validation, seed=SEED, rows=ROWS
    )
    (tmp_path / "receipt.json").write_text(write(told))
    told = read(tmp_path / "receipt.json")
    assert len(told.steps) == 2
    check_receipt(told, BASE, [THIRD, SOLD], validation)
    for changed, field in (
        (dataclasses.replace(told, steps=told.steps[::-1]), "recipe_hash"),
        (dataclasses.replace(told, sold_roots=told.sold_roots[::-1]), "sold_root"),
    ):
        with pytest.raises(RemoteProtocolError, match=f"{field} is said to be"):
            check_receipt(changed, BASE, [SOLD, THIRD], validation)
    with pytest.raises(RemoteProtocolError, match="not among the models given"):
        check_receipt(told, BASE, [SOLD], validation)


def test_the_commands_sign_and_verify_and_refuse_in_one_line(
    pm_node: Command, tmp_path: Path, home: Path, password_file: Path
) -> None:
    address = create_account(Home(home).prepare().keystore, PASSWORD, development=True).address
    for name, held in (("a", BASE), ("b", SOLD), ("c", OTHER)):
        save_safetensors(held.tensors, tmp_path / f"{name}.safetensors")
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    out = tmp_path / "out"
    methods = ("--align", "weight-matching", "--merge", "lerp")
    signing = ("--sign", "--data-dir", home, "--password-file", password_file)
    ran = pm_node("try", a, b, "--data", "digits", *methods, "--out", out, "--json", *signing)
    assert ran.code == 0, ran.err
    assert ran.json["result"]["signed_by"] == address
    words = ("verify", out / "receipt.json", "--base", a, "--data", "digits")
    ran = pm_node(*words, "--sold", b, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["said"] == ran.json["found"]
    assert ran.json["signed_by"] == address
    merged = out / "merged.safetensors"
    plain = pm_node(*words, "--sold", c, "--sold", b, "--merged", merged)
    assert plain.code == 0, plain.err
    assert f"signed by {address}" in plain.out
    assert "not checked: whether any model was trained" in plain.out
    pm_node(*words, "--sold", c).refused(1, "sold_root is said to be")
    pm_node(*words, "--sold", b, "--merged", a).refused(1, "merged_root is said to be")
    pm_node(*words[:-2], "--sold", b).refused(2, "--data", "digits")
    whole = json.loads((out / "receipt.json").read_text())
    whole["evaluation"]["bound"] -= 5_000
    (out / "receipt.json").write_text(json.dumps(whole))
    pm_node(*words, "--sold", b).refused(1, "bound is said to be")
    assert set(load_safetensors(merged)) == set(BASE.tensors)
