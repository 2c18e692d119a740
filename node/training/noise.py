"""A trainer that learns nothing: goods for trying out settlement without any training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch

from node.params.architecture import Architecture, layout
from node.training.trainer import Score, TrainedEpoch

DEFAULT_SHAPES: Final = {"noise": (64, 64)}


class NoiseTrainer:
    """Fresh standard normal tensors every epoch, a function of seed, agent and epoch."""

    def __init__(
        self,
        *,
        seed: int,
        agent: int,
        shapes: Mapping[str, tuple[int, ...]] = DEFAULT_SHAPES,
    ) -> None:
        self.architecture: Architecture = Architecture(
            "random", {"shapes": {name: list(shape) for name, shape in shapes.items()}}
        )
        self._seed = seed
        self._agent = agent

    def initial(self) -> dict[str, torch.Tensor]:
        return self._draw(0)

    def train_epoch(self, parameters: Mapping[str, torch.Tensor], epoch: int) -> TrainedEpoch:
        return TrainedEpoch(parameters=self._draw(epoch + 1), loss=0.0)

    def evaluate(self, parameters: Mapping[str, torch.Tensor]) -> Score:
        return Score(accuracy=0.0, loss=0.0)

    def _draw(self, number: int) -> dict[str, torch.Tensor]:
        key = np.random.SeedSequence([self._seed, 4, self._agent, number])
        generator = np.random.Generator(np.random.Philox(key))
        return {
            spec.name: torch.from_numpy(generator.standard_normal(spec.shape, dtype=np.float32))
            for spec in layout(self.architecture)
        }
