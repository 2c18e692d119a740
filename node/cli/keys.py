"""``pm-node keys``: an account's key made, brought in, handed out, looked at.

Passwords come from a file, from standard input, or from a person at a terminal: never from
an argument, which every user of the machine can list. A raw key is never printed.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.invocation import Invocation, on_node

if TYPE_CHECKING:
    from node.config.table import Config
    from node.home import Home

STANDARD_INPUT: Final = Path("-")
DEVELOPMENT_PASSWORD: Final = "development.password"  # noqa: S105 (the name of a file)
MAX_KEY_FILE: Final = 64 * 1024
_RAW_KEY: Final = re.compile(r"\s*(?:0x)?([0-9a-fA-F]{64})\s*")
_light = click.option(
    "--development", is_flag=True, help="a light key derivation, fit for play money only"
)


@click.group()
def keys() -> None:
    """Make, import, export and look at this node's keys."""


@keys.command("new")
@_light
@on_node
def keys_new(node: Invocation, development: bool) -> None:
    """Make an account, and a peer key if there is none; keys are never overwritten."""
    from node.identity import create_account, load_or_create_peer_key

    config = node.load().config
    home = node.home(config).prepare()
    with home.lock():
        _refuse_second(home)
        create_account(home.keystore, _new_password(config), development=development)
        load_or_create_peer_key(home.peer_key)
    _tell(node, home)


@keys.command("import")
@click.argument(
    "source", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@_light
@on_node
def keys_import(node: Invocation, source: Path, development: bool) -> None:
    """Bring in an account: a version 3 keystore, or a private key in hex.

    SOURCE is a file, or - for standard input (then with --password-file). A keystore keeps
    its password; a private key is sealed under the one given.
    """
    from node.identity import CorruptKeyError, import_account, import_keystore

    config = node.load().config
    if source == STANDARD_INPUT and config.password_file is None:
        raise click.UsageError(
            "SOURCE - takes standard input for the key: give the password by --password-file"
        )
    document, exposed = _read_source(source)
    home = node.home(config).prepare()
    with home.lock():
        _refuse_second(home)
        if document.lstrip().startswith("{"):
            import_keystore(home.keystore, document, _password(config))
        elif match := _RAW_KEY.fullmatch(document):
            if exposed:
                raise exposed
            private_key = bytes.fromhex(match[1])
            import_account(
                home.keystore, private_key, _new_password(config), development=development
            )
        else:
            raise CorruptKeyError(f"{source} is neither a keystore nor 64 hex digits")
    _tell(node, home)


@keys.command("export")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    default=None,
    help="a new file, mode 0600 (default: standard output)",
)
@click.option("--raw", is_flag=True, help="the bare private key, in hex; only with --to")
@click.option(
    "--new-password-file",
    type=click.Path(path_type=Path),
    default=None,
    help="file with the password of the exported keystore (default: as it is now)",
)
@on_node
def keys_export(
    node: Invocation, target: Path | None, raw: bool, new_password_file: Path | None
) -> None:
    """Hand out the account as a version 3 keystore, encrypted anew."""
    from node.identity import load_account, read_password, seal_account

    if raw and target is None:
        raise click.UsageError("--raw is written to a file alone: give --to FILE as well")
    if raw and new_password_file is not None:
        raise click.UsageError("--raw has no password: leave out --new-password-file")
    config = node.load().config
    home = node.existing_home(config)
    password = _password(config, home)
    account = load_account(home.keystore, password)
    if raw:
        document = account.private_key.hex() + "\n"
    else:
        new = read_password(new_password_file) if new_password_file else password
        document = seal_account(account, new)
    if target is None:
        click.echo(document, nl=False)
        return
    _write_private(target, document)
    if node.json_output:
        click.echo(json.dumps({"account": account.address, "written": str(target)}))
    else:
        click.echo(f"{account.address} is in {target}")


@keys.command("show")
@on_node
def keys_show(node: Invocation) -> None:
    """Print the account's address and the peer id; asks for no password."""
    _tell(node, node.existing_home(node.load().config))


# ── what is told ──


def _tell(node: Invocation, home: Home) -> None:
    from node.identity import list_accounts, load_peer_key

    accounts = list_accounts(home.keystore)
    told: dict[str, Any] = {
        "account": accounts[0] if len(accounts) == 1 else None,
        "accounts": list(accounts),
        "peer_id": load_peer_key(home.peer_key).peer_id if home.peer_key.exists() else None,
        "keystore": str(home.keystore),
    }
    if node.json_output:
        click.echo(json.dumps(told, indent=2))
        return
    absent = "none yet: `pm-node keys new` or the first start makes it"
    click.echo(f"account   {', '.join(accounts) or absent}")
    click.echo(f"peer id   {told['peer_id'] or absent}")
    click.echo(f"keystore  {home.keystore}")


# ── passwords ──


def _password(config: Config, home: Home | None = None) -> str:
    """Return the password of a key that exists."""
    from node.identity import read_password

    if config.password_file is not None:
        return read_password(config.password_file)
    if home is not None and (home.root / DEVELOPMENT_PASSWORD).exists():
        return read_password(home.root / DEVELOPMENT_PASSWORD)
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, err=True))
    return read_password(sys.stdin)


def _new_password(config: Config) -> str:
    """Return a password to seal a key with; a person types it twice."""
    if config.password_file is None and sys.stdin.isatty():
        return str(
            click.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
        )
    return _password(config)


# ── files ──


def _refuse_second(home: Home) -> None:
    from node.identity import KeyExistsError, list_accounts

    if accounts := list_accounts(home.keystore):
        raise KeyExistsError(
            f"{home.keystore} has an account, {accounts[0]}, and a node has one: "
            "move it away first, or give --data-dir"
        )


def _read_source(source: Path) -> tuple[str, Exception | None]:
    """Return the text, and an error to raise if it turns out to be a key that others can read."""
    from node.identity import CorruptKeyError, ExposedKeyError, MissingKeyError

    exposed = None
    try:
        if source == STANDARD_INPUT:
            data = sys.stdin.buffer.read(MAX_KEY_FILE + 1)
        else:
            with source.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                data = file.read(MAX_KEY_FILE + 1)
            if mode & 0o077:
                exposed = ExposedKeyError(
                    f"{source} has mode {mode:04o}: others may have read this key; if it is "
                    "still secret, run chmod 600 on it"
                )
    except OSError as error:
        raise MissingKeyError(f"cannot read {source}: {error.strerror}") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CorruptKeyError(f"{source} is not text") from error
    if len(data) > MAX_KEY_FILE:
        raise CorruptKeyError(f"{source} has more than {MAX_KEY_FILE} bytes")
    return text, exposed


def _write_private(target: Path, document: str) -> None:
    from node.identity import IdentityError, KeyExistsError

    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise KeyExistsError(f"{target} exists and is kept; name another file") from error
    except OSError as error:
        raise IdentityError(f"cannot write {target}: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(document)
        file.flush()
        os.fsync(descriptor)
