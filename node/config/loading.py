"""From flags, environment and file to the settings of a node, each with where it came from.

A value comes from a flag, else a ``PMNODE_*`` variable, else the TOML file, else the default.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from node.config.setting import DEFAULT, PREFIX, ConfigError, Origin
from node.config.table import RESERVED_VARIABLES, SETTINGS, Config


class Loaded(NamedTuple):
    """The settings of a node, and where each came from."""

    config: Config
    origins: Mapping[str, Origin]


def load(
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Loaded:
    """Gather the settings: flag over environment over file over default.

    A flag of None or of an empty tuple was not given. A path in the file is relative to
    the file's folder. Raises `ConfigError`.
    """
    values: dict[str, Any] = {name: row.default for name, row in SETTINGS.items()}
    origins = dict.fromkeys(SETTINGS, DEFAULT)
    for key, raw, origin in (
        *_from_file(file),
        *_from_environment(environ or {}),
        *_from_flags(flags or {}),
    ):
        row = SETTINGS.get(key)
        if row is None:
            raise ConfigError(key, raw, origin, _did_you_mean(key, origin))
        value = row.parse(raw, origin)
        if isinstance(value, Path) and origin.kind == "file":
            value = Path(origin.where).parent / value
        values[key], origins[key] = value, origin
    return Loaded(Config(**values), origins)


def _from_file(file: Path | None) -> list[tuple[str, object, Origin]]:
    if file is None:
        return []
    origin = Origin("file", str(file))
    try:
        parsed = tomllib.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise ConfigError("config", file, origin, f"cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("config", file, origin, f"is not TOML: {error}") from error
    return [(key, value, origin) for key, value in parsed.items()]


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, object, Origin]]:
    return [
        (variable.removeprefix(PREFIX).lower(), value, Origin("environment", variable))
        for variable, value in sorted(environ.items())
        if variable.startswith(PREFIX) and variable not in RESERVED_VARIABLES
    ]


def _from_flags(flags: Mapping[str, object]) -> list[tuple[str, object, Origin]]:
    return [
        (key, value, Origin("flag", "--" + key.replace("_", "-")))
        for key, value in flags.items()
        if value is not None and value != ()
    ]


def _did_you_mean(key: str, origin: Origin) -> str:
    close = difflib.get_close_matches(key, SETTINGS, n=1)
    if not close:
        return "there is no such setting; `pm-node config show` lists them all"
    row = SETTINGS[close[0]]
    spelt = {"environment": row.variable, "flag": row.flag}.get(origin.kind, row.name)
    return f"there is no such setting; did you mean {spelt}?"


def template(chosen: Mapping[str, object] | None = None) -> str:
    """Return a configuration file: the `chosen` values set, all others commented out."""
    chosen = chosen or {}
    lines = ["# Settings of a pm-node. Flags and PMNODE_* variables go before these.", ""]
    for row in SETTINGS.values():
        lines += [f"# {row.help}: {row.expects}"]
        if row.name in chosen:
            value = row.parse(chosen[row.name], Origin("flag", row.flag))
            lines += [f"{row.name} = {row.kind.toml(value)}", ""]
        elif row.default is None:
            lines += [f"# {row.name} =", ""]
        else:
            lines += [f"# {row.name} = {row.kind.toml(row.default)}", ""]
    return "\n".join(lines)
