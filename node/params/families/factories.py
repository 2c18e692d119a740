"""Functions that build modules of an operator's own, by the names that texts call them by.

An architecture of the family `module` says ``package.module:function``. Code never travels: such a
name is looked up among those that the operator of this process has allowed, each with the options
that it may be called with, and was imported then. A text that names anything else makes nothing
happen: no import, no call, and no option that a stranger chose ever reaches a function.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

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
_allowed: Final[dict[str, dict[str, Factory]]] = {}
"""By name, and by the canonical text of the options."""


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


def read_entry(text: str) -> tuple[str, dict[str, Option]]:
    """Read a name with its options, ``mine:build {"depth": 4}``. Raises `FactoryError`."""
    name, brace, options = text.partition("{")
    return name.strip(), read_options(brace + options) if brace else {}


def allow(name: str, options: Mapping[str, Option] | None = None) -> None:
    """Import a function, and let texts speak of it with these options. Safe to repeat.

    This runs the operator's code. Raises `FactoryError` for whatever keeps it from being had.
    """
    if not is_name(name):
        raise FactoryError(f"{name!r:.80}: write MODULE:FUNCTION, such as mine.models:build")
    module, _, function = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), function)
    except Exception as error:  # an operator's own module may raise anything
        told = f"{type(error).__name__}: {error}"[:200]
        raise FactoryError(f"{name!r:.80} cannot be loaded: {told}") from error
    if not callable(factory):
        raise FactoryError(f"{name!r:.80} is a {type(factory).__name__}, and no function")
    _allowed.setdefault(name, {})[options_text(options or {})] = factory


def allow_said(entries: Iterable[str]) -> None:
    """Allow functions as settings name them: ``mine:build``, or ``mine:build {"depth": 4}``.

    Raises `FactoryError`.
    """
    for entry in entries:
        allow(*read_entry(entry))


def said() -> tuple[str, ...]:
    """Return all that is allowed, as `allow_said` takes it in another process of this operator."""
    return tuple(f"{name} {options}" for name, known in _allowed.items() for options in known)


def allowed(name: str, options: str) -> Factory:
    """Return the function of this name, to be called with these options and no others.

    Raises `ArchitectureError` ``unknown-architecture`` for any that the operator has not named.
    """
    known = _allowed.get(name)
    if known is None:
        raise ArchitectureError(
            f"this node was not told of {name!r:.100}; its operator names functions that build "
            "models with --module, or in the setting `modules`",
            reason="unknown-architecture",
        )
    if options not in known:
        raise ArchitectureError(
            f"{name:.100} is known with the options {', '.join(sorted(known))[:150]}, "
            f"and not {options:.150}",
            reason="unknown-architecture",
        )
    return known[options]
