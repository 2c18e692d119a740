"""The models of a whole market: what the benchmark of M buyers and N sellers starts from.

Every agent trains the paper's perceptron (Train 'n Trade §5.1) on rows that a Dirichlet draw
(β = .5) deals out class by class. Strangers begin at an initialisation of their own. Kin begin at
one model, which was trained a little on rows of all classes, and number their units anew after
they have trained: they can be merged well, if the broker finds their numbering.

Models are kept in a folder, under names that all of their settings are in; a file there that is
damaged is trained anew.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch

from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.gain import paired_gain
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.verify.stages import Verified
from node.data.clean import clean_split
from node.data.rows import Dataset
from node.data.split import Dirichlet, Division
from node.data.streams import stream
from node.params.architecture import Architecture, layout, permutation_spec, random_init
from node.params.encoding import decode_file, encode_tensors
from node.params.permutation import Tensors, permute
from node.protocol.errors import MarketError
from node.protocol.types import ONE, Digest
from scripts.quality_models import BATCH, LEARNING_RATE, fitted, verified

PAPER_MLP: Final = Architecture("mlp", {"widths": [784, 32, 32, 32, 16, 10]})
RULE: Final = Dirichlet(concentration=0.5)
STEPS: Final = 300
COMMON_ROWS: Final = 2_560
COMMON_EPOCHS: Final = 15

Labelled = tuple[torch.Tensor, torch.Tensor]
"""Rows with their classes."""


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """Models, and the rows that choose, score and report."""

    architecture: Architecture
    models: list[Verified]
    validation: ValidationSet
    report: Labelled

    def drawn(self, seed: Digest) -> tuple[Labelled, Labelled]:
        """Return the rows of choice and of score: those that `best_sellers` draws from too."""
        half = len(self.validation) // 2
        rest = len(self.validation) - half
        drawn = draw_rows(seed, len(self.validation), choice=half, score=rest)
        choice, score = (
            (self.validation.inputs_RF[indices_R], self.validation.targets_R[indices_R])
            for indices_R in (torch.from_numpy(drawn.choice), torch.from_numpy(drawn.score))
        )
        return choice, score

    def gain(self, buyer: Verified, merged: Tensors, rows: Labelled) -> float:
        """Return the relative drop of the buyer's loss."""
        before_R, after_R = (
            row_losses(self.architecture, tensors, *rows) for tensors in (buyer.tensors, merged)
        )
        return paired_gain(before_R, after_R).gain / ONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """Whose models they are; two with the same settings have the same models."""

    dataset: Dataset = field(repr=False)
    kept: Path = field(repr=False)
    kind: str
    agents: int
    seed: int
    steps: int = STEPS
    """Of Adam, at least, whoever holds how many rows."""
    architecture: Architecture = PAPER_MLP

    def market(self) -> Market:
        """Return the models with the rows of the data set's clean split."""
        halves = clean_split(self.dataset)
        report = halves.report
        return Market(
            self.architecture,
            self.models(),
            ValidationSet.of(halves.validation),
            (torch.from_numpy(report.inputs_RF.copy()), torch.from_numpy(report.labels_R.copy())),
        )

    def models(self) -> list[Verified]:
        """Return all agents' models, trained once."""
        return [self._model(agent) for agent in range(self.agents)]

    def _model(self, agent: int) -> Verified:
        settings = (
            f"{self.architecture.text} adam {LEARNING_RATE:g} batch {BATCH} steps {self.steps}"
        )
        said = f"{settings} {self.dataset.name} {RULE} {self.kind} seed {self.seed}"
        if self.kind == "kin":
            said += f" from {COMMON_EPOCHS} epochs of {COMMON_ROWS}"
        said += f" agent {agent} of {self.agents}"
        path = self.kept / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.tensors"
        try:
            return verified(decode_file(path, layout(self.architecture)), self.architecture)
        except (MarketError, OSError):
            path.unlink(missing_ok=True)
        tensors = self._trained(agent)
        self.kept.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_tensors(tensors))
        return verified(tensors, self.architecture)

    def _trained(self, agent: int) -> dict[str, torch.Tensor]:
        division = Division(dataset=self.dataset, agents=self.agents, seed=self.seed, rule=RULE)
        rows = division.rows_of(agent)
        own = int(np.random.SeedSequence([self.seed, self.agents, agent]).generate_state(1)[0])
        kin = self.kind == "kin"
        tensors = fitted(
            dict(self._common() if kin else random_init(self.architecture, own)),
            rows,
            seed=own,
            architecture=self.architecture,
            epochs=math.ceil(self.steps / math.ceil(len(rows) / BATCH)),
        )
        if not kin:
            return tensors
        generator = stream(self.seed, 12, agent)
        spec = permutation_spec(self.architecture)
        anew = {
            name: generator.permutation(group.size).tolist() for name, group in spec.groups.items()
        }
        return permute(spec, tensors, anew)

    def _common(self) -> Mapping[str, torch.Tensor]:
        """Return the model that kin begin at."""
        order = stream(self.seed, 11).permutation(len(self.dataset.train)).astype(np.int64)
        return fitted(
            dict(random_init(self.architecture, self.seed)),
            self.dataset.train.take(np.sort(order[:COMMON_ROWS])),
            seed=self.seed,
            architecture=self.architecture,
            epochs=COMMON_EPOCHS,
        )
