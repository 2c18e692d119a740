"""Which strategies there are, by name. One of an operator's own is ``package.module:factory``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from node.agent.settings import AskPolicy
from node.agent.strategies.base import Strategy, Usual
from node.agent.strategies.history import History
from node.agent.strategies.lemon import Lemon
from node.agent.strategies.replicator import Replicator
from node.agent.strategies.shading import Shading
from node.agent.strategies.truthful import Truthful
from node.agent.strategies.wash import WashTrader
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Millionths

USUAL: Final = "usual"
WASH_TRADER: Final = "wash-trader"


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyFacts:
    """What a strategy is made of: the settings that speak of it."""

    learned: AskPolicy
    """An ask that is learned of receipts alone."""
    shading: Millionths
    owner: str
    """What accounts of one owner know each other by; empty where there is none."""


StrategyFactory = Callable[[StrategyFacts], Strategy]


class StrategyError(LocalProtocolError):
    """A strategy that the operator named and that cannot be played."""


STRATEGIES: Final[dict[str, StrategyFactory]] = {
    USUAL: lambda _: Usual(),
    "truthful": lambda _: Truthful(),
    "history": lambda facts: History(facts.learned),
    "shading": lambda facts: Shading(facts.shading),
    WASH_TRADER: lambda facts: WashTrader(facts.owner),
    "replicator": lambda _: Replicator(),
    "lemon": lambda _: Lemon(),
}
DISHONEST: Final = frozenset({WASH_TRADER, "replicator", "lemon"})
"""For a test bench of play money: an agent on a chain of real money refuses them."""


def build_strategy(name: str, facts: StrategyFacts) -> Strategy:
    """Return the strategy `name`, built-in or ``package.module:factory``.

    Raises `StrategyError` if there is none, and `LocalProtocolError` for facts that it cannot
    be made of; what an operator's own factory raises is passed on.
    """
    if name in STRATEGIES:
        return STRATEGIES[name](facts)
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise StrategyError(f"no strategy {name!r}; built in are {', '.join(STRATEGIES)}")
    try:
        factory: StrategyFactory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise StrategyError(f"cannot load strategy {name!r}: {error}") from error
    return factory(facts)
