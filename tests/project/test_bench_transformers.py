"""The benchmark of language models cuts its text cleanly, and measures what lies between two."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from node.data.files import DataError  # noqa: E402
from node.params.architecture import Architecture  # noqa: E402
from node.protocol.types import Millionths  # noqa: E402
from scripts import bench_transformers, text_models  # noqa: E402

TINY = Architecture(
    "gpt",
    {
        "context": 8, "depth": 1, "heads": 2, "hidden": 16, "norm": "rms", "tied": False,
        "vocabulary": 128, "width": 16,
    },
)  # fmt: skip
TEXT = b"".join(b"%d and %d make %d.\n" % (a, b, a + b) for a in range(60) for b in range(40))


def test_no_byte_of_the_text_is_in_two_parts() -> None:
    pieces = text_models.parts(TEXT)
    assert set(pieces) == {"train", "choice", "score", "report"}
    stretches = zip(*pieces.values(), strict=True)
    together = [np.concatenate(stretch) for stretch in stretches]
    assert np.concatenate(together).tobytes() == TEXT
    assert sum(map(len, pieces["train"])) / len(TEXT) == pytest.approx(0.88, abs=0.01)


def test_rows_follow_one_another_and_share_no_byte() -> None:
    piece = np.frombuffer(TEXT[:100], dtype=np.uint8)
    rows = text_models.rows_of([piece, piece[:9], piece[:8]], context=8)
    assert len(rows) == 11 + 1
    told = np.concatenate([rows.inputs_RF[:11], rows.targets_R[:11, None]], axis=1)
    assert told.astype(np.uint8).tobytes() == TEXT[:99]


def test_a_text_that_knows_nothing_but_counts_has_the_entropy_of_its_bytes() -> None:
    assert text_models.unigram_entropy(b"aabb") == pytest.approx(np.log(2))


def test_without_the_text_the_benchmark_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (row,) = bench_transformers.rows()
    assert "apt-get install bible-kjv" in row["case"]
    fake = tmp_path / "bible"
    fake.write_text("#!/bin/sh\necho '  1 In the end.'\n", encoding="utf-8")
    fake.chmod(0o755)
    with pytest.raises(DataError, match="SHA-256"):
        text_models.text()


def test_the_barrier_is_what_stands_above_the_line_between_the_ends() -> None:
    losses = tuple(1.0 + 0.1 * step for step in range(11))
    straight = bench_transformers.Line(losses=losses, best=Millionths(0), seconds=0)
    assert straight.barrier == pytest.approx(0)
    bent = bench_transformers.Line(
        losses=(*losses[:5], losses[5] + 0.7, *losses[6:]), best=Millionths(0), seconds=0
    )
    assert bent.barrier == pytest.approx(0.7)
    assert bent.at(Millionths(500_000)) == pytest.approx(2.2)


def test_two_models_are_trained_kept_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(text_models, "STEPS", 120)
    pieces = text_models.parts(TEXT)
    buyer, seller = (
        text_models.kept_model(TINY, pieces["train"], seed, tmp_path) for seed in (0, 1)
    )
    assert buyer.weights_root != seller.weights_root
    monkeypatch.setattr(text_models, "fitted", None)
    again = text_models.kept_model(TINY, pieces["train"], 0, tmp_path)
    assert again.weights_root == buyer.weights_root

    choice, report = (text_models.rows_of(pieces[name], 8) for name in ("choice", "report"))
    found = {
        method: bench_transformers.path_of(method, buyer, seller, choice, report)
        for method in ("identity", "weight-matching", "orthogonal", "learned-gauge")
    }
    ends = {(line.losses[0], round(line.losses[-1], 4)) for line in found.values()}
    assert len(ends) == 1, "no method changes what either model answers"
    knows = text_models.unigram_entropy(TEXT)
    assert max(next(iter(ends))) < knows
    assert found["identity"].barrier > 0
    assert found["learned-gauge"].barrier < found["identity"].barrier
