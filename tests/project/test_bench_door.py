"""One door to the benchmarks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the door, leading to one benchmark of our own."""
    spec = importlib.util.spec_from_file_location("bench", ROOT / "scripts" / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "bench_lamp.py").write_text(
        "def rows():\n    return [{'case': 'on', 'value': 2.5, 'unit': 's'}]\n"
    )
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "BENCHMARKS", {"lamp": "a lamp", "fog": "not there"})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bench_lamp", raising=False)
    return module


def test_json_has_the_machine_and_every_column(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["lamp", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "lamp"
    assert document["machine"].keys() == {"cpu", "cores", "python", "platform"}
    assert document["rows"] == [
        {"case": "on", "value": 2.5, "unit": "s", "against": None, "ratio": None}
    ]


def test_people_get_a_table(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["lamp"]) == 0
    assert "a lamp" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["sun"], ["fog"], ["lamp", "--quick"], []])
def test_an_unknown_benchmark_is_one_line_and_status_two(
    bench: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert bench.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


def test_a_row_without_a_unit_is_not_published(bench: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bench_lamp.py").write_text("def rows():\n    return [{'case': 1, 'value': 2}]\n")
    with pytest.raises(bench.BenchmarkError, match="unit"):
        bench.measure("lamp")


def test_the_script_itself_refuses_an_unknown_name() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "sun"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "offers" in run.stderr
