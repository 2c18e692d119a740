"""How a command ends, for scripts that call it.

| code | meaning                                                                      |
|------|------------------------------------------------------------------------------|
| 0    | done                                                                         |
| 1    | it ran, and did not come to what was asked (a ledger that does not balance,  |
|      | an outcome that is not confirmed)                                            |
| 2    | bad input: a flag, a setting, a file, no market named; nothing was begun     |
| 3    | keys or the data directory cannot be used                                    |
| 4    | another process runs there, or the address is taken                          |
| 5    | the chain or the contract is not the one that was named, or does not answer  |
| 130  | interrupted                                                                  |

An error is one line on standard error; standard output is then empty.
"""

from __future__ import annotations

import functools
from typing import Final

from node.protocol.errors import MarketError, RemoteProtocolError

DONE: Final = 0
FAILED: Final = 1
BAD_INPUT: Final = 2
INTERRUPTED: Final = 130


@functools.cache
def _codes() -> tuple[tuple[type[MarketError], int], ...]:
    """Return the code of each kind of error; the first that fits counts."""
    from node.chain.errors import ChainError, ChainLogError, StandingError
    from node.config.table import ConfigError
    from node.home import AlreadyRunningError, BrokerNotFoundError, HomeError
    from node.identity import IdentityError
    from node.journal import JournalError
    from node.net.errors import CannotListenError

    return (
        (ConfigError, BAD_INPUT),
        (BrokerNotFoundError, BAD_INPUT),
        (AlreadyRunningError, 4),
        (CannotListenError, 4),
        (ChainLogError, 4),
        (StandingError, FAILED),
        (IdentityError, 3),
        (JournalError, 3),
        (HomeError, 3),
        (ChainError, 5),
        (RemoteProtocolError, FAILED),
    )


@functools.cache
def _remedies() -> tuple[tuple[type[MarketError], str], ...]:
    """Return what to do about errors that cannot know it themselves."""
    from node.home import BrokerNotFoundError
    from node.identity import PasswordError, WrongPasswordError

    return (
        (
            BrokerNotFoundError,
            "start `pm-node --role broker` here, or name --bootstrap, --chain and --escrow",
        ),
        (WrongPasswordError, "give the right one with --password-file or on standard input"),
        (PasswordError, "give one with --password-file or on standard input"),
    )


def code_of(error: MarketError) -> int:
    """Return the exit code for an error that ends a command."""
    return next((code for kind, code in _codes() if isinstance(error, kind)), BAD_INPUT)


def line_of(error: MarketError) -> str:
    """Return an error on one line, with what to do where the error itself cannot know."""
    text = " ".join(str(error).split())
    remedy = next((remedy for kind, remedy in _remedies() if isinstance(error, kind)), None)
    return text if remedy is None else f"{text}; {remedy}"


def fault_in(group: BaseExceptionGroup[BaseException]) -> MarketError | None:
    """Return a market error that ended a nursery, unless something worse did as well."""
    found: list[MarketError] = []
    for error in group.exceptions:
        inner = fault_in(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(inner, MarketError):
            return None
        found.append(inner)
    return found[0]
