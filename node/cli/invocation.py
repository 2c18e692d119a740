"""What was typed: settings before or after the command's name, and how to answer.

``pm-node --data-dir D status --json`` and ``pm-node --json status --data-dir D`` are one.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from node.config.loading import Loaded, load
from node.config.table import SETTINGS, Config

if TYPE_CHECKING:
    from node.home import Home

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

CONFIG_VARIABLE: Final = "PMNODE_CONFIG"
SHOWN: Final = frozenset({"role", "data_dir", "password_file"})
"""The settings that the help of every command names; all others are taken too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One call of `pm-node`."""

    config: Path | None
    """The TOML file that was named, if one was."""
    flags: Mapping[str, object]
    json_output: bool

    @property
    def bare(self) -> bool:
        """Return whether nothing says what to do."""
        named = any(value not in (None, ()) for value in self.flags.values())
        return not (named or self.config or {"PMNODE_ROLE", CONFIG_VARIABLE} & os.environ.keys())

    def load(self) -> Loaded:
        """Return the settings, those of the data directory included. Raises `ConfigError`."""
        named = self.config
        if named is None and os.environ.get(CONFIG_VARIABLE):
            named = Path(os.environ[CONFIG_VARIABLE])
        loaded = load(file=named, environ=os.environ, flags=self.flags)
        own = self.home(loaded.config).config
        if named is None and own.exists():
            return load(file=own, environ=os.environ, flags=self.flags)
        return loaded

    def home(self, config: Config) -> Home:
        """Return the data directory, whether or not there is one."""
        from node.home import Home, default_data_dir

        return Home(config.data_dir or default_data_dir(config.role, os.environ))

    def existing_home(self, config: Config) -> Home:
        """Return the data directory. Raises `HomeError` if there is none."""
        from node.home import HomeError

        home = self.home(config)
        if not home.root.is_dir():
            raise HomeError(
                f"there is no data directory {home.root}; "
                "name one with --data-dir, or make it with `pm-node init`"
            )
        return home


def settings_flags(shown: frozenset[str] | None = None) -> Callable[[F], F]:
    """Add a flag for each row of the table of settings; the help names those `shown`, or all."""

    def add(command: F) -> F:
        for row in reversed(tuple(SETTINGS.values())):
            command = click.option(
                row.flag,
                row.name,
                multiple=row.multiple,
                default=None,
                help=f"{row.help}: {' or '.join(row.choices)}" if row.choices else row.help,
                hidden=shown is not None and row.name not in shown,
            )(command)
        command = click.option(
            "--json", "json_output", is_flag=True, help="one JSON value on standard output"
        )(command)
        return click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            default=None,
            help="TOML file (default: the data directory's)",
        )(command)

    return add


def on_node(command: Callable[..., R]) -> Callable[..., R]:
    """Hand a command the `Invocation`, as typed before the command's name and after it."""

    @settings_flags(SHOWN)
    @functools.wraps(command)
    def run(*arguments: Any, config_file: Path | None, json_output: bool, **options: Any) -> R:
        given = {name: options.pop(name) for name in SETTINGS}
        root = click.get_current_context().find_object(Invocation)
        if root is None:  # used outside of `pm-node`'s own group
            root = Invocation(config=None, flags={}, json_output=False)
        said = {name: value for name, value in given.items() if value not in (None, ())}
        invocation = dataclasses.replace(
            root,
            config=config_file or root.config,
            flags={**root.flags, **said},
            json_output=json_output or root.json_output,
        )
        return command(invocation, *arguments, **options)

    return run
