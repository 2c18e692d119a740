"""Functions that build modules of an operator's own, by the names that texts call them by.

An architecture of the family `module` says ``package.module:function``. Code never travels: such a
name is looked up among the entries that the operator of this process has allowed, and was imported
then. An entry says everything that a text does: options, the shape of a row, how many tokens there
are. A text that says anything else makes nothing happen: no import, no call, and neither an option
nor a size that a stranger chose ever reaches a function.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, cast

from node.params.families.base import ArchitectureError
from node.protocol import bounded_json
from node.protocol.errors import LocalProtocolError

Option: TypeAlias = int | str | bool
Factory: TypeAlias = Callable[..., object]
MAX_NAME: Final = 256
MAX_OPTIONS: Final = 64
MAX_TEXT: Final = 1024
"""Of one option's name or text."""
_WORD: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_NAME: Final = re.compile(rf"{_WORD}(\.{_WORD})*:{_WORD}")
_ENTRY: Final = re.compile(
    rf"(?P<name>{_WORD}(\.{_WORD})*:{_WORD})"
    r"\s+(?P<sides>[0-9]{1,9}(\s*,\s*[0-9]{1,9}){0,5})(\s+tokens=(?P<tokens>[0-9]{1,9}))?"
)
_allowed: Final[dict[Entry, Factory]] = {}


class FactoryError(LocalProtocolError):
    """A function that the operator named and that is not to be had."""


def is_name(text: object) -> bool:
    """Whether a text is of the form ``package.module:function``."""
    return isinstance(text, str) and len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None


def options_text(options: Mapping[str, object]) -> str:
    """Return options in their canonical form, JSON of sorted keys.

    Raises `ArchitectureError` for a value that is no integer, text or boolean, or too many.
    """
    for name, value in options.items():
        if type(value) not in {int, str, bool}:
            raise ArchitectureError(f"the option {name!r:.80} must be an integer, text or boolean")
        if len(name) > MAX_TEXT or len(str(value)) > MAX_TEXT:
            raise ArchitectureError(f"the option {name!r:.80} is too long")
    if len(options) > MAX_OPTIONS:
        raise ArchitectureError(f"{len(options)} options, of at most {MAX_OPTIONS}")
    return json.dumps(dict(options), sort_keys=True, separators=(",", ":"))


def read_options(text: str) -> dict[str, Option]:
    """Read options as an operator types them, a JSON object. Raises `FactoryError`."""
    try:
        value = bounded_json.loads(text)
        if not isinstance(value, dict):
            raise FactoryError(
                f'options are a JSON object such as {{"depth": 4}}, got {text!r:.80}'
            )
        options_text(value)
    except ValueError as error:
        raise FactoryError(f"options {text!r:.80} are not JSON: {error!s:.120}") from error
    except ArchitectureError as error:
        raise FactoryError(error.detail) from error
    return value


@dataclass(frozen=True, slots=True)
class Entry:
    """One architecture that an operator allows; its text is ``mine:build 128 tokens=9 {"a":1}``."""

    name: str
    input: tuple[int, ...]
    """Sides of a row's shape; of sequences their length alone."""
    vocabulary: int = 0
    """Different tokens, 0 where a row is none of ids."""
    options: str = "{}"
    """Canonical JSON."""

    def __str__(self) -> str:
        tokens = [f"tokens={self.vocabulary}"] if self.vocabulary else []
        options = [] if self.options == "{}" else [self.options]
        return " ".join([self.name, ",".join(map(str, self.input)), *tokens, *options])


def read_named(text: str) -> tuple[str, dict[str, Option]]:
    """Read a name with its options, ``mine:build {"depth": 4}``. Raises `FactoryError`."""
    name, brace, options = text.partition("{")
    return name.strip(), read_options(brace + options) if brace else {}


def read_entry(text: str) -> Entry:
    """Read ``mine:build 1,8,8 {"depth": 4}`` or ``mine:build 128 tokens=9``.

    Raises `FactoryError`.
    """
    name, options = read_named(text)
    match = _ENTRY.fullmatch(name)
    if match is None:
        raise FactoryError(
            f"{text!r:.120}: write MODULE:FUNCTION and the shape of a row, such as "
            "mine.models:build 3,32,32, perhaps tokens=N and a JSON object of options after it"
        )
    sides = tuple(int(side) for side in re.split(r"\s*,\s*", match["sides"]))
    return Entry(match["name"], sides, int(match["tokens"] or 0), options_text(options))


def look_here() -> None:
    """Let what the operator names be imported from the working directory, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def imported(name: str) -> Factory:
    """Return a function, of the working directory or of what is installed.

    This runs the operator's code. Raises `FactoryError` for whatever keeps it from being had.
    """
    if not is_name(name):
        raise FactoryError(f"{name!r:.80}: write MODULE:FUNCTION, such as mine.models:build")
    module, _, function = name.partition(":")
    look_here()
    try:
        factory = getattr(importlib.import_module(module), function)
    except Exception as error:  # an operator's own module may raise anything
        told = f"{type(error).__name__}: {error}"[:200]
        raise FactoryError(f"{name!r:.80} cannot be loaded: {told}") from error
    if not callable(factory):
        raise FactoryError(f"{name!r:.80} is a {type(factory).__name__}, and no function")
    return cast("Factory", factory)


def allow(entry: Entry) -> None:
    """Import a function, and let texts say what `entry` says; raises as `imported`."""
    _allowed[entry] = imported(entry.name)


def allow_said(entries: Iterable[str]) -> None:
    """Allow what settings say, as `read_entry` reads it. Safe to repeat. Raises `FactoryError`."""
    for entry in entries:
        allow(read_entry(entry))


def entries() -> tuple[Entry, ...]:
    """Return all that is allowed; texts of them are for another process of this operator."""
    return tuple(_allowed)


def allowed(entry: Entry) -> Factory:
    """Return the function of an entry, to be called with its options.

    Raises `ArchitectureError` ``unknown-architecture`` for any that the operator has not named.
    """
    if entry in _allowed:
        return _allowed[entry]
    known = sorted(str(each) for each in _allowed if each.name == entry.name)
    if not known:
        raise ArchitectureError(
            f"this node was not told of {entry.name!r:.100}; its operator names functions that "
            "build models with --module, or in the setting `modules`",
            reason="unknown-architecture",
        )
    raise ArchitectureError(
        f"known is `{'`, `'.join(known)[:150]}`, and not `{str(entry)[:150]}`",
        reason="unknown-architecture",
    )
