"""``pm-node doctor``: looks over the machine, the data directory and the market.

Each check ends in one line: ``ok``, ``warn`` (works, but) or ``fail`` (a node would not, or
not for long), the last two with what to do. The exit code is 0 unless something fails.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from node.cli.checked import Check
from node.cli.exits import DONE, FAILED
from node.cli.invocation import Invocation, on_node
from node.protocol.errors import MarketError

if TYPE_CHECKING:
    from node.config.loading import Loaded
    from node.home import Home

OLDEST_PYTHON: Final = (3, 11)
FEW_BYTES: Final = 1 << 30
TOO_FEW_BYTES: Final = 100 << 20
COMPILER_SECONDS: Final = 20.0
PATHS_NAMED: Final = 3


@click.command()
@on_node
def doctor(node: Invocation) -> int:
    """Check this machine, the data directory, the chain and the peers."""
    loaded = node.load()
    found: list[Check] = []
    for check in examine(loaded, node.home(loaded.config)):
        found.append(check)
        if not node.json_output:
            remedy = f": {check.remedy}" if check.remedy else ""
            click.echo(f"{check.level:4}  {check.name:11}  {check.detail}{remedy}")
    healthy = all(check.level != "fail" for check in found)
    if node.json_output:
        document = {"healthy": healthy, "checks": [asdict(check) for check in found]}
        click.echo(json.dumps(document, indent=2))
    return DONE if healthy else FAILED


def examine(loaded: Loaded, home: Home) -> Iterator[Check]:
    """Make all checks, the quick ones first."""
    from node.cli.doctor_market import market_checks

    yield check_python(sys.version_info[:3])
    yield from check_compiler(_compiles)
    yield check_disk(_nearest(home.root), shutil.disk_usage(_nearest(home.root)).free)
    yield _check_data(loaded)
    yield check_modes(home)
    yield check_keystore(loaded, home)
    yield check_peer_key(home)
    yield check_journal(home)
    yield from market_checks(loaded.config, os.environ)


# ── the machine ──


def check_python(version: tuple[int, ...]) -> Check:
    text = ".".join(map(str, version))
    if version >= OLDEST_PYTHON:
        return Check("python", "ok", text)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Check("python", "fail", text, f"install Python {oldest} or later")


def check_compiler(compiles: Callable[[str], bool]) -> Iterator[Check]:
    """Only the installation compiles, so what is missing is no failure of a node that runs."""
    later = "needed when dependencies are next installed: apt-get install -y"
    for name, source, package in (
        ("gcc", "#include <stdio.h>\n", "gcc libc6-dev"),
        ("gmp", "#include <stddef.h>\n#include <gmp.h>\n", "libgmp-dev"),
    ):
        if compiles(source):
            yield Check(name, "ok", "compiles" if name == "gcc" else "headers found")
        else:
            yield Check(name, "warn", "not found", f"{later} {package}")


def _compiles(source: str) -> bool:
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if compiler is None:
        return False
    try:
        ended = subprocess.run(
            [compiler, "-fsyntax-only", "-x", "c", "-"],
            input=source.encode(),
            capture_output=True,
            timeout=COMPILER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ended.returncode == 0


def check_disk(folder: Path, free: int) -> Check:
    detail = f"{free / (1 << 30):.1f} GiB free at {folder}"
    remedy = "make room: a node that cannot write its journal stops trading"
    if free < TOO_FEW_BYTES:
        return Check("disk", "fail", detail, remedy)
    return (
        Check("disk", "warn", detail, remedy) if free < FEW_BYTES else Check("disk", "ok", detail)
    )


def _nearest(path: Path) -> Path:
    """Return the path, or the folder above it that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())


def _check_data(loaded: Loaded) -> Check:
    from node.cli.preflight import check_data
    from node.config.table import ConfigError

    try:
        return Check("data", "ok", check_data(loaded))
    except ConfigError as error:
        return Check("data", "fail", f"{error.key} = {error.value}", error.remedy)


# ── the data directory ──


def check_modes(home: Home) -> Check:
    """What others may write is fatal, and so is a key that they may read."""
    name = "file modes"
    if not home.root.is_dir():
        remedy = "`pm-node init` makes it, and so does the first start"
        return Check(name, "ok", f"no data directory {home.root} yet; {remedy}")
    folders = [home.root, home.keystore, home.blobs, home.logs]
    private = [home.peer_key, home.root / "development.password", *home.keystore.glob("*")]
    others = [p for p in home.root.iterdir() if p.is_file() and p not in private]
    fatal = [*_open_to(folders, 0o022), *_open_to(private, 0o077), *_open_to(others, 0o022)]
    remedy = f"chmod -R go-rwx {home.root}"
    if fatal:
        return Check(name, "fail", f"others may use {_named(fatal)}", remedy)
    if foreign := [p for p in (*folders, *private, *others) if p.exists() and not _ours(p)]:
        return Check(name, "fail", f"not yours: {_named(foreign)}", f"chown -R it: {home.root}")
    if lax := [*_open_to(folders, 0o077), *_open_to(others, 0o077)]:
        return Check(name, "warn", f"others may read {_named(lax)}", remedy)
    return Check(name, "ok", f"{home.root} is yours alone")


def _open_to(paths: Iterable[Path], bits: int) -> list[Path]:
    return [p for p in paths if p.exists() and stat.S_IMODE(p.stat().st_mode) & bits]


def _ours(path: Path) -> bool:
    return path.stat().st_uid == os.geteuid()


def _named(paths: list[Path]) -> str:
    more = f" and {len(paths) - PATHS_NAMED} more" if len(paths) > PATHS_NAMED else ""
    return ", ".join(str(path) for path in paths[:PATHS_NAMED]) + more


def check_keystore(loaded: Loaded, home: Home) -> Check:
    """With a password the account is opened; without, its file is only looked at."""
    from node.identity import list_accounts, load_account, read_password

    name, own = "keystore", home.root / "development.password"
    accounts = list_accounts(home.keystore)
    if not accounts:
        return Check(name, "ok", "no account yet; `pm-node keys new` or the first start makes it")
    if len(accounts) > 1:
        several = f"{len(accounts)} accounts in {home.keystore}"
        return Check(name, "fail", several, "keep one there, move the others away")
    source = loaded.config.password_file or (own if own.exists() else None)
    try:
        if source is not None:
            load_account(home.keystore, read_password(source))
            return Check(name, "ok", f"{accounts[0]} opens")
        document = json.loads((home.keystore / f"{accounts[0]}.json").read_text(encoding="utf-8"))
        version = document.get("version") if isinstance(document, dict) else None
    except MarketError as error:
        return Check(name, "fail", str(error), "mend it, or bring the backup of the keystore")
    except (OSError, ValueError) as error:
        return Check(name, "fail", f"{accounts[0]}: {error}", "bring the backup of the keystore")
    if version != 3:
        return Check(name, "fail", f"{accounts[0]} is no version 3 keystore", "bring its backup")
    return Check(name, "ok", f"{accounts[0]}; with --password-file it is also opened")


def check_peer_key(home: Home) -> Check:
    from node.identity import load_peer_key

    if not home.peer_key.exists():
        return Check("peer key", "ok", "none yet; the first start makes it")
    try:
        return Check("peer key", "ok", load_peer_key(home.peer_key).peer_id)
    except MarketError as error:
        remedy = f"move {home.peer_key} away: a new one is made, and no funds are lost"
        return Check("peer key", "fail", str(error), remedy)


def check_journal(home: Home) -> Check:
    """Every trade in it must still be one that this version can resume."""
    if not home.journal.exists():
        return Check("journal", "ok", "none yet; the first start makes it")
    from node.settlement.history import trade_rows

    try:
        rows = trade_rows(home.journal)
    except MarketError as error:
        remedy = "keep a copy of the directory, and start no node on it before that is mended"
        return Check("journal", "fail", str(error), remedy)
    unfinished = sum(not row["over"] for row in rows)
    return Check("journal", "ok", f"{len(rows)} trades, {unfinished} of them open")
