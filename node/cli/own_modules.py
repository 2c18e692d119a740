"""Modules of one's own at a command: which functions may build them, and what they take."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from node.params.architecture import Architecture


def module_option(command: Any) -> Any:
    """Add ``--module``; `allow_modules` does as it says."""
    return click.option(
        "--module", "modules_named", multiple=True, metavar="MODULE:FUNCTION",
        help="a function of yours that builds the model, perhaps followed by a JSON object of its "
        "keywords, in one argument; the working directory counts. This runs that code of yours, "
        "unconfined; a file that names any other function is refused. May be repeated",
    )(command)  # fmt: skip


def shape_options(command: Any) -> Any:
    """Add what a module takes, which together with one ``--module`` is an architecture."""
    for option in (
        click.option(
            "--tokens", type=click.IntRange(1), default=None, metavar="N",
            help="with --input: rows are so many ids of N different tokens, and the module answers "
            "logits of the next one at every place",
        ),
        click.option(
            "--input", "input_shape", default=None, metavar="SIDE,SIDE,...",
            help="the shape of one row as the --module takes it, such as 3,32,32; it answers a "
            "batch of rows with logits",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def look_here() -> None:
    """Let what the user names be imported from the working directory, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def allow_modules(options: Mapping[str, Any]) -> None:
    """Import the functions that the user named. Raises `TryError`."""
    from broker_node.trying.errors import TryError
    from node.params.families.factories import FactoryError, allow_said

    if not options["modules_named"]:
        return
    look_here()
    try:
        allow_said(options["modules_named"])
    except FactoryError as error:
        raise TryError(f"--module {error}") from error


def named_architecture(options: Mapping[str, Any]) -> Architecture | None:
    """Return what ``--architecture``, or ``--module`` and ``--input``, say; None for neither.

    Raises `TryError`, and `click.UsageError` for options that do not go together.
    """
    from broker_node.trying.reading import built, parse_flag
    from node.params.families import factories, own

    named, sides = options["modules_named"], options["input_shape"]
    if sides is None:
        if options["tokens"] is not None:
            raise click.UsageError("--tokens says what the numbers of --input are: name that too")
        return None if options["architecture"] is None else parse_flag(options["architecture"])
    if options["architecture"] is not None:
        raise click.UsageError("--architecture and --input both say what A is: leave one out")
    if len(named) != 1:
        raise click.UsageError(f"--input is of one --module, and {len(named)} are named")
    parts = [side.strip() for side in sides.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise click.UsageError(f"--input {sides!r:.60}: write sides such as 3,32,32")
    name, keywords = factories.read_entry(named[0])
    config: dict[str, object] = {"factory": name, "input": [int(part[:12]) for part in parts]}
    if keywords:
        config["options"] = keywords
    if options["tokens"] is not None:
        config["tokens"] = options["tokens"]
    return built(f"--module {name:.100}", own.NAME, config)
