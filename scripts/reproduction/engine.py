"""The engine under every experiment: saved, locked, gone on with, and told, in one way.

An experiment is saved as JSON in ``runs/reproduce`` while it is played and, at its end, as a
picture too. What is saved names all on which its figures depend but the seeds; the same command
goes on where it was interrupted, plays only what is missing if seeds are added, and refuses
what is saved under other settings, code or libraries.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from node.protocol.errors import MarketError
from scripts.bench import machine

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "runs" / "reproduce"
MAX_SEEDS: Final = 1_000
INTERRUPTED: Final = 130
"""The exit status of a program that Ctrl-C ended."""
REFUSED: Final = 2
"""That of one that cannot play as asked."""

Json: TypeAlias = dict[str, Any]


class ReproductionError(MarketError):
    """An experiment cannot be played, or not be saved where it should be."""


class Kept(Protocol):
    """An experiment on the disk, as far as it is played."""

    path: Path
    conditions: Json
    """As `conditions_of` gives them: under equal ones it goes on."""

    def resume(self, saved: Json) -> None:
        """Take over what is saved under the same conditions; raise one of `UNREADABLE`."""

    def again(self, saved: Json) -> None:
        """Ask for all seeds of which anything is saved; raise one of `UNREADABLE`."""

    def play(self) -> None:
        """Play what is missing, saving after each part; Ctrl-C may come at any time."""

    def document(self) -> Json:
        """Return it as it stands; ``played`` counts its parts."""

    def picture(self, found: Json) -> bytes:
        """Return the document as PNG."""

    def show(self, found: Json) -> None:
        """Print the document as tables."""


UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError)
"""What JSON of another shape raises."""


# ── what is saved ──


def code_of(places: Sequence[str]) -> str:
    """Return the SHA-256 of the modules at `places`, under the root of the repository.

    Raises `ReproductionError` if there is none at one of them.
    """
    found = hashlib.sha256()
    for place in places:
        path = ROOT / place
        modules = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        if not modules or not all(module.is_file() for module in modules):
            raise ReproductionError(f"there is no code at {path}")
        for module in modules:
            content = module.read_bytes()
            found.update(f"{module.relative_to(ROOT).as_posix()} {len(content)}\n".encode())
            found.update(content)
    return found.hexdigest()


def conditions_of(places: Sequence[str], libraries: Sequence[str], **chosen: Any) -> Json:
    """Return all on which figures depend but the seed, as JSON gives it back."""
    found = {
        **chosen,
        "version": metadata.version("pm-node"),
        "code": code_of(places),
        "libraries": {name: metadata.version(name) for name in libraries},
    }
    back: Json = json.loads(json.dumps(found))
    return back


def write(path: Path, content: bytes) -> None:
    """Write a file so that an interruption leaves the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save(kept: Kept) -> Json:
    """Put `kept` on the disk as it stands, and return its document. Raises `OSError`."""
    found = kept.document()
    write(kept.path, f"{json.dumps(found, indent=1, allow_nan=False)}\n".encode())
    return found


def note_machine(machines: list[Json]) -> None:
    """Add this machine to those that played, once."""
    here = machine()
    if here not in machines:
        machines.append(here)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of an experiment. Raises `ReproductionError` if another process does."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReproductionError(f"another process is playing {path}") from None
        yield


def _resume(kept: Kept) -> None:
    if not kept.path.exists():
        return
    try:
        saved = json.loads(kept.path.read_bytes())
        same = saved["conditions"] == kept.conditions
        if same:
            kept.resume(saved)
    except UNREADABLE as error:
        raise ReproductionError(
            f"{kept.path} is no experiment that can be read ({error!r}); --again replaces it"
        ) from error
    if not same:
        raise ReproductionError(
            f"{kept.path} is of other settings, code or libraries; --again replaces it"
        )


# ── the command ──


def keep(kept: Kept, *, again: bool, as_json: bool) -> int:
    """Play `kept` to its end or to Ctrl-C, save and tell it; return the exit status.

    Raises `MarketError` or `OSError` if it cannot be played or saved.
    """
    kept.path.parent.mkdir(parents=True, exist_ok=True)
    ended = True
    with _alone(kept.path):
        if again:
            with suppress(OSError, *UNREADABLE):
                kept.again(json.loads(kept.path.read_bytes()))
        else:
            _resume(kept)
        try:
            kept.play()
        except KeyboardInterrupt:
            ended = False
        found = kept.document()
        if found["played"]:
            found = save(kept)
            write(kept.path.with_suffix(".png"), kept.picture(found))
    if as_json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        kept.show(found)
    print(
        f"saved in {kept.path}" if ended
        else f"interrupted; the same command goes on from {kept.path}",
        file=sys.stderr,
    )  # fmt: skip
    return 0 if ended else INTERRUPTED


def answered(play: Callable[[], int]) -> int:
    """Return what `play` does, or 2 with one line that says why it cannot."""
    try:
        return play()
    except (MarketError, OSError) as error:
        print(f"reproduce.py: {error}", file=sys.stderr)
        return REFUSED


def number(least: int, most: int) -> Callable[[str], int]:
    """Return a type of an option: a whole number from `least` to `most`."""

    def number_of(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not from {least} to {most}")
        return value

    return number_of


def parser_of(name: str, title: str, seeds: int) -> argparse.ArgumentParser:
    """Return what every experiment's command understands; `seeds` are played unless told."""
    parser = argparse.ArgumentParser(prog=f"reproduce.py {name}", description=f"{title}.")
    parser.add_argument(
        "--seeds", type=number(1, MAX_SEEDS), default=seeds, help=f"how many ({seeds})"
    )
    parser.add_argument("--first", type=number(0, 2**31 - 1), default=0, help="the first seed (0)")
    parser.add_argument("--data-folder", type=Path, help="where the files of data sets are")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where to save (runs/reproduce)"
    )
    parser.add_argument("--again", action="store_true", help="play anew what is saved")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of tables")
    return parser
