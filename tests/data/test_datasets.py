"""Rows that many ask for are read once: not again for each agent, nor for each seed."""

from __future__ import annotations

import gc
import gzip
import importlib.util
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from node.data import datasets
from node.data.datasets import DATASETS, load, load_digits
from node.data.files import DataError
from node.data.rows import Dataset
from tests.data.small import NOWHERE, toy


class Disk:
    """A source that counts how often it is read, and by how many at once."""

    def __init__(self) -> None:
        self.reads = 0
        self.at_once = 0
        self._reading = 0

    def load(self, _folder: Path, seed: int) -> Dataset:
        self.reads += 1
        self._reading += 1
        self.at_once = max(self.at_once, self._reading)
        time.sleep(0.02)
        self._reading -= 1
        return toy(10 + seed)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk()
    monkeypatch.setitem(DATASETS, "fake", replace(DATASETS["digits"], load=found.load))
    return found


def test_sixteen_agents_of_two_seeds_read_a_file_once(disk: Disk) -> None:
    begin = threading.Barrier(16)

    def agent(number: int) -> Dataset:
        begin.wait()
        return load("fake", NOWHERE, seed=number % 2)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(agent, range(16)))
    assert disk.reads == 1
    assert all(rows is found[0] for rows in found)


def test_what_nobody_holds_is_let_go_of_and_read_again_by_one_at_a_time(disk: Disk) -> None:
    for _ in range(2):
        load("fake", NOWHERE)
        gc.collect()
    assert disk.reads == 2
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: len(load("fake", NOWHERE).train), range(8)))
    assert disk.at_once == 1


def test_another_folder_has_other_rows(disk: Disk) -> None:
    assert load("fake", NOWHERE) is not load("fake", NOWHERE / "else")
    assert disk.reads == 2


def test_digits_are_those_of_scikit_learn_and_another_file_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "sklearn.datasets", None)  # a second to import
        read = load_digits(NOWHERE)
    other = tmp_path.joinpath(*datasets.DIGITS_FILE)
    other.parent.mkdir(parents=True)
    other.write_bytes(gzip.compress(b",".join([b"1"] * 65)))
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "none"), str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    asked = load_digits(NOWHERE)
    for ours, theirs in ((read.train, asked.train), (read.test, asked.test)):
        assert ours.inputs_RF.dtype == theirs.inputs_RF.dtype == np.float32
        assert ours.targets_R.dtype == theirs.targets_R.dtype == np.int64
        assert np.array_equal(ours.inputs_RF, theirs.inputs_RF)
        assert np.array_equal(ours.targets_R, theirs.targets_R)


def test_without_scikit_learn_there_are_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="come with scikit-learn"):
        load_digits(NOWHERE)


def test_generated_rows_are_of_their_seed() -> None:
    first, again, other = (load("linear", NOWHERE, seed=seed) for seed in (1, 1, 2))
    assert first is again
    assert first is not other


def test_a_source_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch, disk: Disk) -> None:
    def fail(_folder: Path, _seed: int) -> Dataset:
        raise DataError("damaged")

    monkeypatch.setitem(DATASETS, "fake", replace(DATASETS["digits"], load=fail))
    with pytest.raises(DataError, match="damaged"):
        load("fake", NOWHERE)
    monkeypatch.setitem(DATASETS, "fake", replace(DATASETS["digits"], load=disk.load))
    assert len(load("fake", NOWHERE).train) == 10
