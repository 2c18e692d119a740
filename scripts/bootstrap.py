#!/usr/bin/env python3
"""Set this checkout up: `.venv`, the tested versions, the project itself, the data.

Needs Python 3.11 or later and nothing else; what the system lacks is named together with
the command that installs it. A stamp, written last, makes the next run a matter of
milliseconds, and is void once pyproject.toml, constraints.txt or what is compiled change or
the checkout moves. An interrupted run is simply run again; two at once wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "pm-node.stamp"
LOCK = ROOT / ".bootstrap.lock"
MINIMUM = (3, 11)
FORMAT = "2"  # part of the stamp: raised when this script does something else


class SetupError(Exception):
    """The checkout cannot be set up; the message says what to do."""


def main() -> int:
    """Set up what is missing; returns the exit status."""
    try:
        check_python()
        wanted = fingerprint()
        if read_stamp() == wanted:
            return 0
        with only_one():
            if read_stamp() != wanted:
                set_up(wanted)
    except SetupError as error:
        print(f"set-up stopped: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd)
        print(f"set-up stopped: exit status {error.returncode} of: {command}", file=sys.stderr)
        return 1
    return 0


def set_up(wanted: str) -> None:
    """Install everything, and write the stamp."""
    check_system()
    STAMP.unlink(missing_ok=True)
    make_environment()
    pip: list[str | Path] = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "-qq",
        "--disable-pip-version-check",
    ]
    constraints: list[str | Path] = ["-c", ROOT / "constraints.txt"]
    say("installing torch")
    run([*pip, *constraints, pinned("torch")])
    say("installing pm-node and what it needs (a few minutes the first time)")
    run([*pip, *constraints, "-e", f"{ROOT}[dev]"])
    fetch = ROOT / "scripts" / "fetch_data.py"
    if fetch.exists():
        run([PYTHON, fetch])
    partial = STAMP.with_suffix(".partial")
    partial.write_text(wanted + "\n", encoding="utf-8")
    partial.replace(STAMP)
    say("ready")


def check_python() -> None:
    """Raise `SetupError` unless this Python will do."""
    if sys.version_info < MINIMUM:
        found = ".".join(str(part) for part in sys.version_info[:3])
        raise SetupError(
            f"Python {MINIMUM[0]}.{MINIMUM[1]} or later is needed, this is {found}. "
            "Try: apt-get install -y python3.11 python3.11-dev python3.11-venv"
        )


def check_system() -> None:
    """Raise `SetupError` naming everything that the build of a dependency would miss."""
    missing = missing_packages()
    if missing:
        what = ", ".join(missing.values())
        packages = " ".join(missing)
        prefix = "" if os.geteuid() == 0 else "sudo "
        raise SetupError(f"missing: {what}. Install with: {prefix}apt-get install -y {packages}")


def missing_packages() -> dict[str, str]:
    """Return what is missing, as {Debian package: what it is}."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    missing = {}
    compiler = next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), None)
    if compiler is None:
        missing["gcc"] = "a C compiler"
        missing["libc6-dev"] = "the C library's headers"
    headers = [f"-I{sysconfig.get_path('include')}", f"-I{sysconfig.get_path('platinclude')}"]
    if not compiles(compiler, "#include <stdio.h>"):
        missing["libc6-dev"] = "the C library's headers"
    if not compiles(compiler, "#include <Python.h>", headers):
        missing[f"{version}-dev"] = f"the headers of {version}"
    if not compiles(compiler, "#include <stddef.h>\n#include <gmp.h>"):
        missing["libgmp-dev"] = "the headers of GMP (gmp.h)"
    if shutil.which("make") is None:
        missing["make"] = "make"
    probe = [sys.executable, "-c", "import venv, ensurepip"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        missing[f"{version}-venv"] = "the module venv"
    return missing


def compiles(compiler: str | None, source: str, flags: Sequence[str] = ()) -> bool:
    """Return whether the compiler, wherever it looks for headers, takes `source`."""
    if compiler is None:
        return header_exists(source, flags)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "probe.c")
        file.write_text(source + "\nint main(void) { return 0; }\n", encoding="utf-8")
        command = [compiler, *flags, "-fsyntax-only", str(file)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def header_exists(source: str, flags: Sequence[str]) -> bool:
    """Return whether the last header that `source` includes lies in a usual place."""
    header = source.rsplit("<", 1)[1].split(">", 1)[0]
    folders = [flag[2:] for flag in flags] + ["/usr/include", "/usr/local/include"]
    folders += [str(path) for path in Path("/usr/include").glob("*-linux-*")]
    return any(Path(folder, header).exists() for folder in folders)


def make_environment() -> None:
    """Make `.venv`, unless there is one that works."""
    works = (
        PYTHON.exists()
        and not subprocess.run(
            [PYTHON, "-c", f"import sys, pip; sys.exit(sys.version_info < {MINIMUM})"],
            capture_output=True,
            check=False,
        ).returncode
    )
    if not works:
        say("making .venv")
        run([sys.executable, "-m", "venv", "--clear", VENV])


def pinned(name: str) -> str:
    """Return the requirement for `name` in constraints.txt, as in ``torch==2.13.0``."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.partition("==")[0] == name:
            return line
    raise SetupError(f"constraints.txt does not pin {name}")


def fingerprint() -> str:
    """Return what a finished set-up of this very checkout is stamped with."""
    digest = hashlib.sha256(f"{FORMAT}\0{ROOT}\0".encode())
    compiled = sorted(ROOT.glob("node/protocol/*.c"))
    for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt", ROOT / "setup.py", *compiled):
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def read_stamp() -> str | None:
    """Return the stamp of the last finished set-up, if its interpreter is still there."""
    try:
        return STAMP.read_text(encoding="utf-8").strip() if PYTHON.exists() else None
    except OSError:
        return None


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the set-up for one process; a second one says that it waits."""
    with LOCK.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str | Path]) -> None:
    """Run a step, in the checkout, and fail with it."""
    subprocess.run(command, cwd=ROOT, check=True)


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"set-up: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
