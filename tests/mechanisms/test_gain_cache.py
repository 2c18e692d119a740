from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.gain_cache import GainCache, OnceGain
from node.protocol.types import Digest

MARKET = Digest(bytes(range(32)))
OTHER = Digest(bytes(32))


def line(subset: object = "0x3", performance: object = 0.5, market: str = MARKET.hex()) -> bytes:
    check = hashlib.sha256(f"{market} {subset} {performance!r}".encode()).hexdigest()[:16]
    entry = {"market": market, "subset": subset, "performance": performance, "check": check}
    return json.dumps(entry).encode() + b"\n"


def test_a_performance_that_was_found_is_not_asked_for_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def gain(subset: int) -> float:
        asked.append(subset)
        return subset / 7

    for _ in range(2):
        with GainCache(tmp_path / "gains", MARKET, 3) as cache:
            once = OnceGain(gain, cache)
            assert [once(subset) for subset in range(1, 8)] == [s / 7 for s in range(1, 8)]
    assert asked == list(range(1, 8))


def test_another_market_in_the_same_file_is_another_market(tmp_path: Path) -> None:
    with GainCache(tmp_path / "gains", MARKET, 3) as cache:
        cache.put(3, 0.5)
    with GainCache(tmp_path / "gains", OTHER, 2) as cache:
        assert cache.get(3) is None
        cache.put(3, 0.25)
    with GainCache(tmp_path / "gains", MARKET, 3) as cache:
        assert (cache.get(3), len(cache)) == (0.5, 1)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    with GainCache(tmp_path / "gains", MARKET, 3):
        assert stat.S_IMODE((tmp_path / "gains").stat().st_mode) == 0o600


def test_what_was_found_before_a_crash_is_there_after_it(tmp_path: Path) -> None:
    path = tmp_path / "gains"
    killed = f"""
import os
from pathlib import Path
from broker_node.mechanisms.gain_cache import GainCache, OnceGain
def gain(subset):
    if subset == 5:
        os._exit(9)
    return subset / 8
once = OnceGain(gain, GainCache(Path({str(path)!r}), bytes(range(32)), 3))
for subset in range(1, 8):
    once(subset)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    calls: list[int] = []

    def resumed(subset: int) -> float:
        calls.append(subset)
        return subset / 8

    with GainCache(path, MARKET, 3) as cache:
        once = OnceGain(resumed, cache)
        assert [once(subset) for subset in range(1, 8)] == [s / 8 for s in range(1, 8)]
    assert calls == [5, 6, 7]


@pytest.mark.parametrize("left", [1, 20, len(line()) - 1])
def test_half_a_last_line_is_cut_off(tmp_path: Path, left: int) -> None:
    path = tmp_path / "gains"
    path.write_bytes(line() + line("0x5", 0.75)[:left])
    with GainCache(path, MARKET, 3) as cache:
        assert (cache.get(3), cache.get(5)) == (0.5, None)
        cache.put(5, 0.75)
    assert path.read_bytes() == line() + line("0x5", 0.75)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (b"{\n", "is no JSON"),
        (b"\xff\n", "is no JSON"),
        (b"[" * 400 + b"\n", "is no JSON"),
        (b"\n", "is no JSON"),
        (b"[]\n", "must have the keys"),
        (b"{}\n", "must have the keys"),
        (b"9" * 600 + b"\n", "has over 512 bytes"),
        (b"9" * 600, "has over 512 bytes"),
        (line(performance=float("nan")), "has a performance of nan"),
        (line(performance=float("inf")), "has a performance of inf"),
        (line(performance=-0.5), "has a performance of -0.5"),
        (line(performance=1), "has a performance of 1"),
        (line(performance=True), "has a performance of True"),
        (line(performance="0.5"), "has a performance of '0.5'"),
        (line(performance=None), "has a performance of None"),
        (line().replace(b"0.5", b"0.6"), "does not match its checksum"),
        (line().replace(b"0x3", b"0x2"), "does not match its checksum"),
        (line(subset=3), "must name its market and subset in hexadecimal"),
        (line(subset="three"), "has a subset 'three'"),
        (line(subset="0x8"), "has a subset '0x8'"),
        (line(subset="0x0"), "has a subset '0x0'"),
        (line(subset="-0x1"), "has a subset '-0x1'"),
        (line(subset="0x03"), "has a subset '0x03'"),
        (line(performance=0.25), "gives subset 0x3 another performance than before"),
    ],
)
def test_a_corrupt_line_is_refused_by_its_number(tmp_path: Path, entry: bytes, reason: str) -> None:
    path = tmp_path / "gains"
    path.write_bytes(line() + entry)
    with pytest.raises(RefusedInputError) as refused:
        GainCache(path, MARKET, 3)
    assert refused.value.field == "cache"
    assert f"line 2 of {path} {reason}" in refused.value.reason
    assert path.read_bytes() == line() + entry  # nothing is repaired behind the owner's back


def test_a_file_that_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path, tmp_path / "link", tmp_path / "no" / "such"):
        with pytest.raises(RefusedInputError, match="cache: cannot open"):
            GainCache(path, MARKET, 3)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_is_open_once_at_a_time(tmp_path: Path) -> None:
    with (
        GainCache(tmp_path / "gains", MARKET, 3),
        pytest.raises(RefusedInputError, match="cache: cannot use"),
    ):
        GainCache(tmp_path / "gains", MARKET, 3)
    GainCache(tmp_path / "gains", MARKET, 3).__exit__(None, None, None)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gains"
    with GainCache(path, MARKET, 3) as cache:
        cache.put(3, 0.5)
        whole, write = path.read_bytes(), os.write
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(RefusedInputError, match="cache: cannot write"):
            cache.put(5, 0.25)
        assert cache.get(5) is None
    assert path.read_bytes() == whole


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), -0.1, None, "many"])
def test_a_gain_that_is_no_performance_is_refused_and_not_kept(
    tmp_path: Path, answer: object
) -> None:
    with GainCache(tmp_path / "gains", MARKET, 3) as cache:
        once = OnceGain(lambda _: answer, cache)  # type: ignore[arg-type,return-value]
        with pytest.raises(RefusedInputError, match="gain of subset 0x6"):
            once(6)
        assert len(cache) == 0


@pytest.mark.parametrize(
    ("market", "parties", "field"),
    [(Digest(b"short"), 3, "market"), (MARKET, 0, "parties"), (MARKET, 257, "parties")],
)
def test_a_cache_of_no_market_is_refused(
    tmp_path: Path, market: Digest, parties: int, field: str
) -> None:
    with pytest.raises(RefusedInputError) as refused:
        GainCache(tmp_path / "gains", market, parties)
    assert refused.value.field == field
