"""Rows that must be apart: known by their bytes, counted, refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from node.data import datasets
from node.data.clean import OverlapError, digests, require_apart, require_clean, without
from node.data.datasets import Source, load
from node.data.files import DataError
from node.data.rows import Dataset, Rows
from node.devnet import spec as spec_module
from node.devnet.spec import RunSpec


def rows(*firsts: float, label: int = 0) -> Rows:
    inputs_RF = np.zeros((len(firsts), 4), dtype=np.float32)
    inputs_RF[:, 0] = firsts
    return Rows(inputs_RF=inputs_RF, targets_R=np.full(len(firsts), label, dtype=np.int64))


def test_parts_that_share_no_row_are_counted() -> None:
    parts = require_apart({"one": rows(1, 2), "other": rows(3)})
    assert dict(parts.rows) == {"one": 2, "other": 1}


def test_shared_rows_are_refused_by_name_with_counts_whatever_their_labels() -> None:
    with pytest.raises(OverlapError, match=r"^rows-overlap: 2 of 3 rows one are among the 2 other"):
        require_apart({"one": rows(1, 2, 1), "other": rows(1, 9, label=3), "third": rows(7)})
    with pytest.raises(OverlapError, match="rows-overlap"):
        require_apart({"one": rows(0.0), "other": rows(-0.0)})


def test_a_pixel_makes_another_row() -> None:
    assert len(set(digests(rows(1, np.nextafter(np.float32(1), np.float32(2)))))) == 2


def test_the_rows_of_digits_are_apart_under_both_protocols(tmp_path: Path) -> None:
    digits = load("digits", tmp_path)
    assert dict(require_clean(digits).rows) == {
        "to train on": 1_197, "of the broker": 300, "reported on": 300,
    }  # fmt: skip
    assert dict(require_clean(digits, "paper").rows) == {"to train on": 1_197, "to test with": 600}
    assert (without(digits.train, digits.test)[0] is digits.train, digits.dropped) == (True, 0)


def test_what_is_to_be_tested_with_is_not_trained_on_and_that_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dirty(_folder: Path, _seed: int) -> Dataset:
        return Dataset(name="dirty", train=rows(1, 2, 3, 2), test=rows(2, 5), classes=1)

    source = Source(load=dirty, locate=lambda _: None, of_user=True)
    monkeypatch.setitem(datasets.DATASETS, "dirty", source)
    found = load("dirty", tmp_path)
    assert found.train.inputs_RF[:, 0].tolist() == [1, 3]
    assert found.dropped == 2
    require_clean(found)
    with pytest.raises(OverlapError, match="all 2 rows"):
        without(rows(1, 2), rows(1, 2, 3))


def test_an_experiment_with_shared_rows_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load("digits", tmp_path)
    leak = digits.test.take(np.arange(5))
    train = Rows(
        inputs_RF=np.concatenate([digits.train.inputs_RF, leak.inputs_RF]),
        targets_R=np.concatenate([digits.train.labels_R, leak.labels_R]),
    )
    leaky = dataclasses.replace(digits, train=train)
    monkeypatch.setattr(spec_module, "load", lambda *_, **__: leaky)
    with pytest.raises(DataError, match=r"^rows-overlap: \d of 1,202 rows to train on"):
        RunSpec(folder=tmp_path, dataset="digits").check()
