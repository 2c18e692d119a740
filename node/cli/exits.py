"""How a command ends, for scripts that call it.

| code | meaning                                                                      |
|------|------------------------------------------------------------------------------|
| 0    | done                                                                         |
| 1    | it ran, and did not come to what was asked (a ledger that does not balance)  |
| 2    | bad input: a flag, a setting, a file; nothing was begun                      |
| 3    | keys or the data directory cannot be used                                    |
| 4    | another process runs there, or the address is taken                          |
| 5    | the chain or the contract is not the one that was named                      |
| 130  | interrupted                                                                  |
"""

from __future__ import annotations

from typing import Final

from node.chain.errors import ChainError, ChainLogError
from node.config.table import ConfigError
from node.home import AlreadyRunningError, HomeError
from node.identity import IdentityError
from node.net.errors import CannotListenError
from node.protocol.errors import MarketError

FAILED: Final = 1
BAD_INPUT: Final = 2
INTERRUPTED: Final = 130

_CODES: Final[tuple[tuple[type[MarketError], int], ...]] = (
    (ConfigError, BAD_INPUT),
    (AlreadyRunningError, 4),
    (CannotListenError, 4),
    (ChainLogError, 4),
    (IdentityError, 3),
    (HomeError, 3),
    (ChainError, 5),
)


def code_of(error: MarketError) -> int:
    """Return the exit code for an error that ends a command."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), BAD_INPUT)
