"""No benchmark measures on rows that were trained on: an overlap is refused by name."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from node.data.clean import OverlapError  # noqa: E402
from node.data.rows import Dataset, Rows  # noqa: E402
from scripts import bench, text_models  # noqa: E402

OF_ROWS = ("alpha", "market", "modules", "quality", "replicas", "resnet", "widths")


def leaking(name: str, *_: object, **__: object) -> Dataset:
    """One of forty rows to test with is one to train on as well, under another label."""
    generator = np.random.Generator(np.random.Philox(key=1))
    train_RF, test_RF = (
        generator.standard_normal((count, 784), dtype=np.float32) for count in (200, 40)
    )
    test_RF[7] = train_RF[50]
    train, test = (
        Rows(inputs_RF=side_RF, targets_R=np.arange(len(side_RF), dtype=np.int64) % 10)
        for side_RF in (train_RF, test_RF)
    )
    return Dataset(name=name, train=train, test=test, classes=10)


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_benchmark_refuses_rows_that_it_would_train_on_and_measure_on(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.import_module(f"bench_{name}"), "load", leaking)
    assert bench.main([name]) == 2
    said = capsys.readouterr().err
    assert re.match(
        rf"{name}: rows-overlap: 1 of 200 rows to train on are among the 20 (of the broker|report)",
        said,
    )


def test_every_script_has_its_rows_of_the_split_that_is_checked() -> None:
    scripts = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*.py")]
    assert sum("clean_split(" in text for text in scripts) >= len(OF_ROWS)
    assert not any("split_test" in text for text in scripts)


# ── texts: the rows of a part are windows over its stretches ──

VERSES = np.random.Generator(np.random.Philox(key=3)).integers(97, 123, 30_000, dtype=np.uint8)


def test_stretches_that_are_apart_give_each_part_its_rows() -> None:
    held = text_models.held_out(text_models.parts(VERSES.tobytes()), 8)
    assert [*held] == ["choice", "score", "report"]


@pytest.mark.parametrize("part", ["choice", "score", "report"])
def test_a_window_over_the_end_of_what_is_trained_on_is_a_leak(part: str) -> None:
    pieces = text_models.parts(VERSES.tobytes())
    whole = np.frombuffer(VERSES.tobytes(), dtype=np.uint8)
    pieces["train"][4] = whole[3_000:4_000]
    pieces[part][4] = whole[3_999:4_300]
    with pytest.raises(OverlapError, match=rf"^rows-overlap: the parts train and {part}"):
        text_models.held_out(pieces, 8)


def test_a_copy_of_a_stretch_is_a_leak_wherever_it_stands() -> None:
    pieces = text_models.parts(VERSES.tobytes())
    pieces["train"].append(np.concatenate([VERSES[:5], *pieces["report"][:9]]))
    with pytest.raises(OverlapError, match=r"^rows-overlap: \d+ of \d+ rows of the part report"):
        text_models.held_out(pieces, 8)
    twice = text_models.parts(VERSES.tobytes())
    twice["score"] = [piece.copy() for piece in twice["choice"]]
    with pytest.raises(OverlapError, match=r"^rows-overlap: \d+ of \d+ rows choice are among"):
        text_models.held_out(twice, 8)


def test_a_text_may_say_a_thing_twice_and_is_told_how_often() -> None:
    pieces = text_models.parts(VERSES.tobytes())
    pieces["train"].append(pieces["report"][0][:18].copy())  # two rows of nine bytes
    report = text_models.held_out(pieces, 8)["report"]
    assert text_models.repeated(report, pieces["train"]) == 2
