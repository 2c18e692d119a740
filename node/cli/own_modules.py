"""Modules of one's own at a command: which functions may build them, and what they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from node.params.architecture import Architecture


def module_option(command: Any) -> Any:
    """Add ``--module``; `named_architecture` and `allow_as_said` do as it says."""
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
            "batch of rows with logits. A file that names another shape is refused",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _named(options: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return each ``--module`` with its keywords, once it was imported. Raises `TryError`."""
    from broker_node.trying.errors import TryError
    from node.params.families.factories import FactoryError, imported, read_named

    try:
        named = [read_named(text) for text in options["modules_named"]]
        for name, _ in named:
            imported(name)
    except FactoryError as error:
        raise TryError(f"--module {error}") from error
    return named


def _allow(named: list[tuple[str, dict[str, Any]]], config: Mapping[str, object]) -> None:
    """Allow what a configuration says, if its function is named with these very keywords.

    Raises `TryError` for other keywords; of another function nothing is known afterwards either.
    """
    from broker_node.trying.errors import TryError
    from node.params.families.base import ArchitectureError
    from node.params.families.factories import allow, options_text
    from node.params.families.own import OwnModule

    try:
        entry = OwnModule.read_entry(config)
    except ArchitectureError:
        return  # whoever reads it all says what is wrong
    known = [options_text(keywords) for name, keywords in named if name == entry.name]
    if entry.options in known:
        allow(entry)
    elif known:
        raise TryError(
            f"--module {entry.name:.100} has the keywords {known[0]:.150}, and those of what it is "
            f"to build are {entry.options:.150}: write the same ones"
        )


def allow_as_said(options: Mapping[str, Any], text: str) -> None:
    """Allow the one shape that the text of an architecture names, if ``--module`` builds it.

    The text is that of a receipt which the user has this command replay. Raises `TryError`.
    """
    from node.params.families import own
    from node.protocol import bounded_json

    named = _named(options)
    try:
        value: object = bounded_json.loads(text)
    except ValueError:
        return  # whoever reads it all says what is wrong
    match value:
        case {"name": own.NAME, "config": dict(config)}:
            _allow(named, config)


def named_architecture(options: Mapping[str, Any]) -> Architecture | None:
    """Return what ``--architecture``, or ``--module`` and ``--input``, say; None for neither.

    Of what the functions build, just that is allowed. Raises `TryError`, and `click.UsageError`
    for options that do not go together.
    """
    from broker_node.trying.reading import built, flag_said
    from node.params.families import own

    sides, named = options["input_shape"], _named(options)
    if sides is None:
        if options["tokens"] is not None:
            raise click.UsageError("--tokens says what the numbers of --input are: name that too")
        if options["architecture"] is not None:
            said = flag_said(options["architecture"])
            if said[1] == own.NAME:
                _allow(named, said[2])
            return built(*said)
        if named:
            raise click.UsageError(
                f"--module {named[0][0]:.100} is named: say with --input what shape a row has"
            )
        return None
    if options["architecture"] is not None:
        raise click.UsageError("--architecture and --input both say what A is: leave one out")
    if len(named) != 1:
        raise click.UsageError(f"--input is of one --module, and {len(named)} are named")
    parts = [side.strip() for side in sides.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise click.UsageError(f"--input {sides!r:.60}: write sides such as 3,32,32")
    name, keywords = named[0]
    config: dict[str, object] = {"factory": name, "input": [int(part[:12]) for part in parts]}
    if keywords:
        config["options"] = keywords
    if options["tokens"] is not None:
        config["tokens"] = options["tokens"]
    _allow(named, config)
    return built(f"--module {name:.100}", own.NAME, config)
