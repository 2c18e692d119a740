"""Mechanisms by name."""

from __future__ import annotations

from typing import Final

from broker_node.mechanisms.base import Mechanism
from broker_node.mechanisms.bayesian_ask import BayesianAsk
from broker_node.mechanisms.nash import Nash

MECHANISMS: Final[dict[str, Mechanism]] = {
    mechanism.name: mechanism for mechanism in (Nash(), BayesianAsk())
}
