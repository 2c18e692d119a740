"""The same market without nodes, chain and network: for studies of many seeds.

Agents, trainers, trials and prices are the market's own code (`broker_node`, `node.training`);
only what carries them is left out. Without prices a round of this floor ends with the same
weights as a round of the nodes, to the bit: the rows of each trial are drawn by the same seed
(`tests/devnet/test_run.py`). With prices an ask may know fewer or more receipts than here,
where all of the last round's are known and none of this round's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from broker_node.evaluate.evaluation import Evaluated, choice_inputs, evaluate
from broker_node.evaluate.methods import ROWS, align
from broker_node.evaluate.validation import ValidationSet
from broker_node.mechanisms.ask import market_ask
from broker_node.mechanisms.price import bargain
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.data.datasets import load
from node.data.split import split_test
from node.devnet.arms import Arm
from node.devnet.record import figure_of
from node.devnet.spec import RunSpec
from node.params.architecture import part_of
from node.params.encoding import weights_root
from node.params.recipe import apply_recipe
from node.protocol.evaluation import rows_due, trial_seed
from node.protocol.types import Digest, Millionths, Wei
from node.roles.opening import PLAY_VALUE
from node.roles.shells import endowment_of, protocol_of
from node.training.registry import build_trainer
from node.training.trainer import Task, Trainer

RECEIPTS_CONSIDERED: Final = 16
Tensors = dict[str, torch.Tensor]
Told = Callable[[int, int, float], None]
"""Called with agent, epoch index and figure."""


def run_seed(seed: int) -> Digest:
    """Return the seed from which a run's trials draw their rows: one for all its arms."""
    return Digest(hashlib.sha256(f"pm-node devnet trials {seed}".encode()).digest())


@dataclass
class FloorResult:
    """What one arm with one seed came to."""

    curves: list[list[tuple[int, float]]]
    """By agent: epoch index and figure, after whatever was adopted then."""
    possible: int = 0
    traded: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    prices: list[int] = field(default_factory=list)
    held: list[Tensors] = field(default_factory=list)
    """By agent: the weights at the end."""


@dataclass
class Floor:
    """One arm of a run, with one seed."""

    spec: RunSpec
    arm: Arm
    seed: int
    layers: frozenset[int] = frozenset()
    """Which layers are offered and bought (Table 2), where not those of `spec`."""
    least_ratio: float | None = None
    """Buy if loss before ÷ loss after is over this, whatever the gate (§6.1.3: 1)."""
    always: bool = False
    """Buy whatever is offered, at the best α, gain or no gain."""

    def play(self, told: Told = lambda *_: None) -> FloorResult:
        """Play to the last epoch."""
        spec = self.spec
        trainers = [self._trainer(number) for number in range(spec.agents)]
        held = [trainer.initial() for trainer in trainers]
        result = FloorResult(curves=[[] for _ in trainers])
        validation = self._validation() if self.arm.trades else None
        receipts: list[Wei] = []
        epoch = 0
        for round_ in range(1, spec.rounds + 1):
            epochs = spec.epochs_per_round + (spec.warmup_epochs if round_ == 1 else 0)
            for _ in range(epochs):
                for number, trainer in enumerate(trainers):
                    held[number] = trainer.train_epoch(held[number], epoch).parameters
                    figure = self._figure(trainer, held[number])
                    result.curves[number].append((epoch, figure))
                    told(number, epoch, figure)
                epoch += 1
            if validation is None:
                continue
            bases = [self._verified(t, h) for t, h in zip(trainers, held, strict=True)]
            goods = [self._part_of(base) for base in bases] if self._sold else bases
            trials = [
                [
                    (other, self._trial(bases[number], goods[other], validation))
                    for other in range(spec.agents)
                    if other != number
                ]
                for number in range(spec.agents)
            ]
            worth = [self._value(max(found.gain for _, found in had)) for had in trials]
            paid = list(receipts)
            for number, trainer in enumerate(trainers):
                result.possible += 1
                seller, found = max(trials[number], key=lambda t: self._merit(t[1]))
                because, price = self._deal(found, worth[seller], paid)
                if because:
                    result.lost[because] = result.lost.get(because, 0) + 1
                    continue
                result.traded += 1
                receipts.append(price)
                result.prices.append(price)
                held[number] = apply_recipe(
                    trainer.architecture, held[number], goods[seller].tensors, found.recipe
                )
                figure = self._figure(trainer, held[number])
                result.curves[number][-1] = (epoch - 1, figure)
                told(number, epoch - 1, figure)
        result.held = held
        return result

    # ── one trial ──

    def _trial(self, base: Verified, sold: Verified, validation: ValidationSet) -> Evaluated:
        seed = trial_seed(run_seed(self.seed), base.weights_root, sold.weights_root)
        choice, score = rows_due(len(validation), shared=self.spec.protocol == "paper")
        probe_RF = None
        if self.arm.alignment in ROWS:
            probe_RF = choice_inputs(validation, seed=seed, choice_rows=choice, score_rows=score)
        number = int.from_bytes(seed[:8], "big")
        return evaluate(
            align(self.arm.alignment, base, sold, seed=number, probe_RF=probe_RF),
            validation,
            seed=seed,
            choice_rows=choice,
            score_rows=score,
            search=self.spec.search_of(self.arm),
            merging=self.arm.merging,
        )

    def _merit(self, found: Evaluated) -> tuple[bool, int, int]:
        return not self._objection(found), found.bound, found.gain

    def _objection(self, found: Evaluated) -> str:
        if self.always:
            return ""
        if self.least_ratio is not None:
            after = found.loss_after
            good = after == 0 or found.loss_before / after > self.least_ratio
            return "" if good else "gain"
        if found.alpha <= 0 or found.gain <= 0:
            return "gain"
        return "bound" if self.spec.protocol == "clean" and found.bound <= 0 else ""

    def _deal(self, found: Evaluated, seller_worth: Wei, receipts: list[Wei]) -> tuple[str, Wei]:
        """Return why there is no deal, or the price of one."""
        because = self._objection(found)
        if because or not self.spec.priced:
            return because, Wei(1)
        fee = self.spec.fee_basis_points
        bid = self._value(found.gain)
        ask = market_ask(seller_worth, receipts[-RECEIPTS_CONSIDERED:], Wei(0), fee)
        deal = bargain(bid, ask, fee_basis_points=fee)
        if deal is None:
            return ("ask" if bargain(bid, ask, fee_basis_points=0) is None else "fee"), Wei(0)
        return "", deal.price

    def _value(self, gain: Millionths) -> Wei:
        return Wei(max(0, PLAY_VALUE * gain // 1_000_000))

    # ── the agents ──

    def _trainer(self, number: int) -> Trainer:
        config = self.spec.config(self.seed, agent=number)
        task = Task(
            dataset=self.spec.dataset,
            data_folder=self.spec.data,
            agent=number,
            agents=self.spec.agents,
            seed=self.seed,
            endowment=endowment_of(config),
            protocol=protocol_of(config),
        )
        return build_trainer(self.spec.trainer, task)

    def _validation(self) -> ValidationSet:
        dataset = load(self.spec.dataset, self.spec.data, seed=self.seed)
        protocol = protocol_of(self.spec.config(self.seed))
        return ValidationSet.of(split_test(dataset, protocol=protocol).validation)

    @property
    def _sold(self) -> tuple[int, ...]:
        return tuple(sorted(self.layers)) or self.spec.layers

    def _part_of(self, base: Verified) -> Verified:
        tensors = part_of(base.architecture, base.tensors, self._sold)
        received = Received(
            weights_root=weights_root(tensors),
            architecture=base.architecture,
            tensors=tensors,
            layers=self._sold,
        )
        return verify(received)

    def _verified(self, trainer: Trainer, tensors: Mapping[str, torch.Tensor]) -> Verified:
        received = Received(
            weights_root=weights_root(tensors), architecture=trainer.architecture, tensors=tensors
        )
        return verify(received)

    def _figure(self, trainer: Trainer, tensors: Tensors) -> float:
        score = trainer.evaluate(tensors)
        metric = self.spec.metric
        return figure_of(score.accuracy if metric == "accuracy" else score.loss, metric)
