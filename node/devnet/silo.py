"""The arm out of the market: every agent trains alone, on the rows it holds in the others.

No node is needed for that; the weights, batches and seeds are those of the market's arms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
import trio

from node.devnet.arms import OUT_OF_MARKET
from node.devnet.play import agent_name
from node.devnet.record import MarketRecord, figure_of
from node.devnet.spec import RunSpec
from node.roles.shells import trainer_of
from node.training.trainer import Trainer

Told = Callable[[str, int, float], None]
"""Called with the agent's name, the epoch's index, and the figure after it."""
AT_ONCE: Final = 2


async def play_silo(spec: RunSpec, seed: int, stop: trio.Event, told: Told) -> MarketRecord:
    """Train every agent to the last epoch, or until `stop`."""
    curves: dict[str, list[tuple[int, float]]] = {}
    limit = trio.CapacityLimiter(AT_ONCE)
    begun = trio.current_time()

    async def train(number: int) -> None:
        name = agent_name(number)
        curve = curves.setdefault(name, [])
        async with limit:
            trainer = await trainer_of(spec.config(seed, agent=number))
            parameters = await trio.to_thread.run_sync(trainer.initial)
            for epoch in range(spec.epochs):
                if stop.is_set():
                    return
                trained = await trio.to_thread.run_sync(trainer.train_epoch, parameters, epoch)
                parameters = trained.parameters
                figure = await trio.to_thread.run_sync(_figure, trainer, parameters, spec.metric)
                curve.append((epoch, figure))
                told(name, epoch, figure)

    async with trio.open_nursery() as nursery:
        for number in range(spec.agents):
            nursery.start_soon(train, number)
    return MarketRecord(
        arm=OUT_OF_MARKET,
        seed=seed,
        complete=all(len(curve) == spec.epochs for curve in curves.values()),
        seconds=round(trio.current_time() - begun, 2),
        earlier_seconds=0.0,
        rounds_played={},
        curves={name: curves[name] for name in sorted(curves)},
        agents=[],
        trades=[],
        legs=None,
        ledger=None,
        gas={},
        network=None,
    )


def _figure(trainer: Trainer, parameters: Mapping[str, torch.Tensor], metric: str) -> float:
    score = trainer.evaluate(parameters)
    return figure_of(score.accuracy if metric == "accuracy" else score.loss, metric)
