"""The two-agent linear market of Train 'n Trade §6.1.3 under watch, for Figures 3 and 5.

Played on the floor, without payment. The broker chooses α on its rows and knows θ*, as in the
paper: a purchase is decided by Δ, the ratio of squared distances from θ* before and after the
merge (Algorithm 1, Eq. 3). The table `linear` decides by the loss on the broker's rows instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from broker_node.evaluate.evaluation import Evaluated
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.stages import Verified
from node.data.linear import true_parameters
from node.devnet.arms import ARMS, OUT_OF_MARKET
from node.devnet.floor import Floor
from node.params.recipe import apply_recipe
from node.protocol.types import Digest, Wei
from node.training.trainer import Trainer
from scripts.reproduction.engine import Json
from scripts.reproduction.studies import AGENTS, Setting

ROUNDS: Final = 100
LEAST_RATIO: Final = 1.0
"""Buy where Δ is over this: the merged parameters are nearer to θ*."""
ALIKE: Final = "unaligned"
"""The arm: units of a linear model have no order, so there is nothing to align."""
MODULES: Final = ("scripts/reproduction/linear.py",)


def settings(setting: Setting) -> Json:
    """Return what is played; what the paper does not give is marked as ours."""
    return {
        "dataset": "linear: 500 rows without noise, 800 of variance .5, 1,000 features",
        "rounds": ROUNDS,
        "gate": "Δ of Eq. 3, with θ* known, > 1",
        "protocol": setting.protocol,
        "ours": {
            "learning_rate": 0.01,
            "initial": 0.0,
            "alpha": "exact-quadratic on [0, 1]",
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One trial, and whether its buyer bought."""

    alpha: float
    before: float
    """‖θ̂ − θ*‖², of the buyer's own parameters."""
    after: float
    """‖θ̄ − θ*‖², of the merged ones."""
    bought: bool


@dataclass
class LinearMarket(Floor):
    """A floor of two agents that notes their trials."""

    truth_known: bool = True
    """Whether purchases are decided by distances from θ*, or as on any floor."""
    tried: list[list[Tried]] = field(default_factory=lambda: [[] for _ in AGENTS])
    """By agent: one trial a round."""
    _trainers: list[Trainer] = field(default_factory=list)
    _buyers: dict[Digest, int] = field(default_factory=dict)
    _errors: dict[Digest, tuple[float, float]] = field(default_factory=dict)

    def truth_of(self, number: int) -> NDArray[np.float64]:
        """Return the parameters θ* [F] that agent `number` is after."""
        return true_parameters(self.seed)

    def error(self, number: int, parameters: dict[str, torch.Tensor]) -> float:
        """Return ‖θ − θ*‖² in float64."""
        weight_F = parameters["weight"].double().numpy().reshape(-1)
        return float(np.square(weight_F - self.truth_of(number)).sum())

    def _trainer(self, number: int) -> Trainer:
        self._trainers.append(super()._trainer(number))
        return self._trainers[-1]

    def _verified(self, trainer: Trainer, tensors: Mapping[str, torch.Tensor]) -> Verified:
        verified = super()._verified(trainer, tensors)
        number = next(n for n, known in enumerate(self._trainers) if known is trainer)
        self._buyers[verified.weights_root] = number
        return verified

    def buyer(self, base_root: Digest) -> int:
        """Return whose parameters have this root."""
        return self._buyers[base_root]

    def _trial(self, base: Verified, sold: Verified, validation: ValidationSet) -> Evaluated:
        found = super()._trial(base, sold, validation)
        number = self.buyer(base.weights_root)
        own = dict(base.tensors)
        merged = apply_recipe(base.architecture, own, sold.tensors, found.recipe)
        self._errors[base.weights_root] = (self.error(number, own), self.error(number, merged))
        return found

    def _objection(self, found: Evaluated) -> str:
        if not self.truth_known:
            return super()._objection(found)
        before, after = self._errors[found.base_root]
        return "" if before > LEAST_RATIO * after else "gain"

    def _deal(self, found: Evaluated, seller_worth: Wei, receipts: list[Wei]) -> tuple[str, Wei]:
        because, price = super()._deal(found, seller_worth, receipts)
        before, after = self._errors[found.base_root]
        self.tried[self.buyer(found.base_root)].append(
            Tried(alpha=found.alpha / 1e6, before=before, after=after, bought=not because)
        )
        return because, price


def play_linear(setting: Setting, seed: int, rounds: int = ROUNDS) -> Json:
    """Return the log of one seed, by agent: losses in and out of the market, and its trials."""
    spec = setting.spec("linear", warmup_epochs=0, rounds=rounds)
    alone = Floor(spec, ARMS[OUT_OF_MARKET], seed).play()
    market = LinearMarket(spec, ARMS[ALIKE], seed)
    found = market.play()
    return {
        agent: {
            "alone": [loss for _, loss in alone.curves[number]],
            "market": [loss for _, loss in found.curves[number]],
            "alpha": [one.alpha for one in market.tried[number]],
            "before": [one.before for one in market.tried[number]],
            "after": [one.after for one in market.tried[number]],
            "bought": [one.bought for one in market.tried[number]],
        }
        for number, agent in enumerate(AGENTS)
    }
