"""Rows that many ask for are read once: not again for each agent, nor for each seed."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from node.data.datasets import DATASETS, load
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
