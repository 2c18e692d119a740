"""The folder of a run: what it is called, who may write to it, and what it may take the place of.

| in the folder                       | a new run          | --resume           | --force  |
|-------------------------------------|--------------------|--------------------|----------|
| nothing                             | begins             | refused            | begins   |
| a finished run of the same settings | replaces it        | ends where it did  | replaces |
| an unfinished one                   | refused            | goes on with it    | replaces |
| a run of other settings             | refused            | refused            | replaces |
| a run in progress, or no run at all | refused            | refused            | refused  |

A run holds the lock in its folder to its end, and the operating system lets go of it however
that comes. The marker says what was asked for; without one a folder is somebody else's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from node.config.kinds import KINDS
from node.devnet import defaults
from node.devnet.errors import DevnetError
from node.devnet.report.document import DOCUMENT
from node.devnet.spec import RunSpec
from node.home import AlreadyRunningError, HomeError, RunLock
from node.protocol import bounded_json

MARKER: Final = ".pm-node-run"
"""Marks a folder that a later run of the same name may replace; holds what was asked for."""
PARTIAL: Final = MARKER + ".tmp"
LOCK: Final = "run.lock"
OURS: Final = frozenset({MARKER, PARTIAL, LOCK})
MAX_NAME: Final = 120
"""Characters of a name that options make up; file systems allow 255 bytes."""


class RunInProgressError(AlreadyRunningError):
    """Another process plays in this folder."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        holder = "another process" if pid is None else f"process {pid}"
        HomeError.__init__(
            self,
            f"{holder} plays the run in {folder}; wait for it, stop it, or name another folder "
            "with --name",
        )
        self.directory = folder
        self.pid = pid


def name_of(spec: RunSpec) -> str:
    """Return what a run is called that nobody named: its data set, and all that is not usual.

    Two runs of other settings have other names; where data files lie is not in them.
    """
    first, last = spec.seeds[0], spec.seeds[-1]
    seeds = f"{len(spec.seeds)}-seeds" if first == 0 else f"seeds-{first}-to-{last}"
    leaves = "+".join(f"{agent}@{after}" for agent, after in sorted(spec.leaves.items()))
    parts = (
        (f"{spec.agents}-agents", spec.agents != defaults.USUAL_AGENTS),
        ("paper", spec.protocol != "clean"),
        ("free", not spec.priced),
        ("+".join(spec.arms), spec.arms != defaults.arms_of(spec.dataset)),
        (f"{spec.rounds}-rounds", spec.rounds != defaults.rounds_of(spec.dataset)),
        (
            f"{spec.epochs_per_round}-epochs-a-round",
            spec.epochs_per_round != defaults.USUAL_EPOCHS_PER_ROUND,
        ),
        (
            f"{spec.warmup_epochs}-epochs-before",
            spec.warmup_epochs != defaults.warmup_of(spec.dataset),
        ),
        ("layers-" + "+".join(map(str, spec.layers)), bool(spec.layers)),
        (spec.endowment, spec.endowment != "paper"),
        (
            f"concentration-{KINDS['fraction'].show(spec.concentration)}",
            spec.concentration != defaults.USUAL_CONCENTRATION,
        ),
        (f"fee-{spec.fee_basis_points}", spec.fee_basis_points != defaults.USUAL_FEE_BASIS_POINTS),
        (f"budget-{spec.budget}", spec.budget is not None),
        ("+".join(spec.strategies).replace(":", "."), bool(spec.strategies)),
        (
            f"shading-{KINDS['fraction'].show(spec.shading)}",
            spec.shading != defaults.USUAL_SHADING,
        ),
        (f"replicas-{spec.replicas}", spec.replicas != defaults.USUAL_REPLICAS),
        ("scanned", spec.scan),
        (f"control-{spec.control}", bool(spec.control)),
        (f"leave-{leaves}", bool(leaves)),
        ("processes", spec.processes),
        (spec.mechanism, spec.mechanism != defaults.USUAL_MECHANISM),
        (f"seed-{first}" if first == last else seeds, spec.seeds != (0,)),
    )
    name = "-".join([spec.dataset, *(part for part, unusual in parts if unusual)])
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: MAX_NAME - 13]}-{digest}"


@contextmanager
def run_folder(
    folder: Path, asked: Mapping[str, object], *, resume: bool = False, force: bool = False
) -> Iterator[None]:
    """Hold `folder` for a run of the settings `asked`, emptied unless it is to `resume`.

    Raises `DevnetError` for whatever it may not take the place of, or cannot write to, and
    `RunInProgressError` if another process plays there.
    """
    with ExitStack() as stack:
        try:
            _look(folder, resume=resume)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunLock(folder / LOCK))
            _prepare(folder, asked, resume=resume, force=force)
        except AlreadyRunningError as error:
            raise RunInProgressError(folder, error.pid) from error
        except OSError as error:
            raise DevnetError(
                f"a run cannot use {folder} ({error.strerror}: {error.filename}); "
                "name another with --name"
            ) from error
        yield


def _look(folder: Path, *, resume: bool) -> None:
    """Refuse what needs no lock to be seen, so that nothing is written to what is not ours."""
    if folder.exists() and not folder.is_dir():
        raise DevnetError(f"{folder} is a file, no run's folder; name another with --name")
    ours = (folder / MARKER).is_file()
    if resume and not ours:
        raise DevnetError(f"there is no run to resume in {folder}; leave out --resume to begin one")
    if not ours and folder.exists() and any(path.name not in OURS for path in folder.iterdir()):
        raise DevnetError(f"{folder} holds something else than a run; name another with --name")
    above = next((path for path in folder.parents if (path / MARKER).is_file()), None)
    if above is not None:
        raise DevnetError(f"{folder} is within the run in {above}; name another with --name")


def _prepare(folder: Path, asked: Mapping[str, object], *, resume: bool, force: bool) -> None:
    """Empty the folder and mark it, or leave it as it is for a run that goes on."""
    _look(folder, resume=resume)
    marker = folder / MARKER
    if marker.is_file() and not force:
        known = _object(marker)
        if known is None:
            raise DevnetError(
                f"{marker} is damaged: begin anew with --force, or name another with --name"
            )
        changed = sorted(key for key in {*asked, *known} if known.get(key) != asked.get(key))
        if known and changed:
            raise DevnetError(
                f"the run in {folder} was asked for with another {', '.join(changed)}: "
                "--name another, take the same options, or replace it with --force"
            )
        if resume and known:
            return
        if known and not _finished(folder):
            raise DevnetError(
                f"the run in {folder} is unfinished: the same options and --resume go on with "
                "it, --force begins it anew (with make: ARGS=--resume)"
            )
    if marker.is_file():  # from here on there is nothing to resume, even after a power cut
        _write(marker, {})
    for path in list(folder.iterdir()):
        if path.name in OURS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    _write(marker, asked)


def _write(path: Path, document: Mapping[str, object]) -> None:
    partial = path.with_name(PARTIAL)
    with partial.open("w", encoding="ascii") as file:
        file.write(json.dumps(document) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _object(path: Path) -> dict[str, Any] | None:
    try:
        found = bounded_json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _finished(folder: Path) -> bool:
    report = _object(folder / DOCUMENT)
    return report is not None and report.get("complete") is True
