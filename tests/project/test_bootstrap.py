"""Set-up: names what is missing, is stamped last, is redone when it should be."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script as a module that works on a checkout of its own."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    (tmp_path / "setup.py").write_text("setup()\n")
    (tmp_path / "node" / "protocol").mkdir(parents=True)
    (tmp_path / "node" / "protocol" / "fast.c").write_text("int fast;\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "stamp")
    monkeypatch.setattr(module, "LOCK", tmp_path / ".lock")
    return module


class Steps(list[str]):
    """Takes the place of `run`, and can fail at one step."""

    def __init__(self, fail_at: str = "") -> None:
        super().__init__()
        self.fail_at = fail_at

    def __call__(self, command: list[str | Path]) -> None:
        line = " ".join(str(part) for part in command)
        self.append(line)
        if self.fail_at and self.fail_at in line:
            raise subprocess.CalledProcessError(3, command)


@pytest.fixture
def steps(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Steps:
    taken = Steps()
    monkeypatch.setattr(bootstrap, "run", taken)
    monkeypatch.setattr(bootstrap, "missing_packages", dict)
    return taken


def test_the_first_run_installs_torch_first_and_the_second_does_nothing(
    bootstrap: ModuleType, steps: Steps
) -> None:
    assert bootstrap.main() == 0
    installs = [line for line in steps if " pip install " in line]
    assert installs[0].endswith("torch==2.13.0")
    assert installs[1].endswith("[dev]")
    assert all("-c " + str(bootstrap.ROOT / "constraints.txt") in line for line in installs)
    steps.clear()
    assert bootstrap.main() == 0
    assert steps == []


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "constraints.txt", "setup.py", "node/protocol/fast.c"]
)
def test_a_change_of_what_is_wanted_runs_it_again(
    bootstrap: ModuleType, steps: Steps, name: str
) -> None:
    assert bootstrap.main() == 0
    steps.clear()
    with (bootstrap.ROOT / name).open("a") as file:
        file.write("# more\n")
    assert bootstrap.main() == 0
    assert len(steps) == 2


def test_an_interrupted_run_is_run_again(bootstrap: ModuleType, steps: Steps) -> None:
    steps.fail_at = "[dev]"
    assert bootstrap.main() == 1
    assert not bootstrap.STAMP.exists()
    steps.fail_at = ""
    assert bootstrap.main() == 0
    assert bootstrap.STAMP.exists()


def test_a_failed_renewal_takes_the_old_stamp_away(bootstrap: ModuleType, steps: Steps) -> None:
    assert bootstrap.main() == 0
    (bootstrap.ROOT / "constraints.txt").write_text("torch==2.14.0\n")
    steps.fail_at = "torch==2.14.0"
    assert bootstrap.main() == 1
    (bootstrap.ROOT / "constraints.txt").write_text("torch==2.13.0\n")
    steps.clear()
    assert bootstrap.main() == 0
    assert len(steps) == 2


def test_a_moved_checkout_is_set_up_anew(
    bootstrap: ModuleType, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bootstrap.main() == 0
    before = bootstrap.fingerprint()
    elsewhere = bootstrap.ROOT / "copy"
    (elsewhere / "node" / "protocol").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "setup.py", "node/protocol/fast.c"):
        (elsewhere / name).write_bytes((bootstrap.ROOT / name).read_bytes())
    monkeypatch.setattr(bootstrap, "ROOT", elsewhere)
    assert bootstrap.fingerprint() != before


def test_what_is_missing_is_named_with_the_command_that_installs_it(
    bootstrap: ModuleType,
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        bootstrap, "missing_packages", lambda: {"libgmp-dev": "gmp.h", "make": "make"}
    )
    assert bootstrap.main() == 1
    assert "apt-get install -y libgmp-dev make" in capsys.readouterr().err
    assert steps == []


def test_an_old_python_is_told_which_one_is_needed(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "MINIMUM", (3, 99))
    assert bootstrap.main() == 1
    assert "3.99" in capsys.readouterr().err


def test_a_header_is_found_by_compiling_and_missed_when_it_is_not_there(
    bootstrap: ModuleType, tmp_path: Path
) -> None:
    compiler = bootstrap.shutil.which("gcc") or bootstrap.shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "here.h").write_text("")
    flags = [f"-I{tmp_path}"]
    assert bootstrap.compiles(compiler, "#include <here.h>", flags)
    assert not bootstrap.compiles(compiler, "#include <nowhere.h>", flags)
    assert bootstrap.compiles(None, "#include <here.h>", flags)
    assert not bootstrap.compiles(None, "#include <nowhere.h>", flags)


def test_a_venv_that_does_not_run_is_made_again(bootstrap: ModuleType, steps: Steps) -> None:
    assert bootstrap.main() == 0
    steps.clear()
    bootstrap.PYTHON.unlink()
    bootstrap.PYTHON.symlink_to("/nonexistent/python")
    assert bootstrap.main() == 0
    assert "-m venv --clear" in steps[0]


def test_a_torch_without_a_pin_is_not_installed(bootstrap: ModuleType, steps: Steps) -> None:
    (bootstrap.ROOT / "constraints.txt").write_text("numpy==2\n")
    assert bootstrap.main() == 1
    assert steps == []
