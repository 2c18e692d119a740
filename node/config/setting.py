"""A row of the table of settings: its name, what it may be, and where a value came from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from node.config.kinds import KINDS, Kind, display
from node.protocol.errors import MarketError

PREFIX: Final = "PMNODE_"

OriginKind = Literal["default", "file", "environment", "flag"]


class ConfigError(MarketError):
    """A setting cannot be used: names the key, the value, its origin and the remedy."""

    def __init__(self, key: str, value: object, origin: Origin, remedy: str) -> None:
        super().__init__(f"{key} = {display(value)} ({origin}): {remedy}")
        self.key = key
        self.value = value
        self.origin = origin
        self.remedy = remedy


class Origin(NamedTuple):
    """Where a value came from."""

    kind: OriginKind
    where: str = ""
    """The file, the variable or the flag."""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".rstrip()


DEFAULT: Final = Origin("default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table."""

    name: str
    kind: Kind
    default: Any
    help: str
    low: int | None
    high: int | None
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        """Return the command-line flag, as in ``--data-dir``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the environment variable, as in ``PMNODE_DATA_DIR``."""
        return PREFIX + self.name.upper()

    @property
    def multiple(self) -> bool:
        """Return whether the flag may be repeated."""
        return self.kind.repeated

    @property
    def expects(self) -> str:
        """Return what a right value looks like, for help texts and errors."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        match self.low, self.high:
            case None, None:
                return self.kind.expects
            case low, None:
                return f"{self.kind.expects}, at least {self.kind.show(low)}"
            case low, high:
                return f"{self.kind.expects}, {self.kind.show(low)} to {self.kind.show(high)}"

    def parse(self, raw: object, origin: Origin) -> Any:
        """Return `raw`, from any origin, as a value; raises `ConfigError`."""
        try:
            value = self.kind.parse(raw)
        except ValueError as error:
            raise ConfigError(self.name, raw, origin, f"expected {self.expects}") from error
        if self.choices and value not in self.choices:
            raise ConfigError(self.name, raw, origin, f"expected {self.expects}")
        if (self.low is not None and value < self.low) or (
            self.high is not None and value > self.high
        ):
            raise ConfigError(self.name, raw, origin, f"expected {self.expects}")
        return value


def setting(
    kind: str,
    default: Any,
    help: str,  # noqa: A002
    *,
    low: int | None = None,
    high: int | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    row = {"kind": KINDS[kind], "help": help, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=row)
