"""Modules of the agents' own change hands where the broker's operator has named them too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from broker_node.appraisal import MarketAppraiser
from broker_node.evaluate.methods import MARKET
from broker_node.evaluate.validation import ValidationSet
from broker_node.service import Broker
from node.agent.agent import Agent
from node.config.loading import load
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.architecture import parse_architecture
from node.params.encoding import weights_root
from node.params.families import factories
from node.params.recipe import Recipe, apply_recipe
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Digest
from node.roles.shells import trainer_of
from node.training.module import ModuleTrainer
from node.training.registry import build_trainer
from node.training.trainer import Task, Trainer
from tests.market.market import Market, bought, eventually, open_market
from tests.params import own_modules as mine
from tests.params.own_modules import IMAGE, own

NOWHERE = Path("/nowhere")


class MeasuringBroker(Broker):
    """Measures on digits, as a broker of the market does by default."""

    def __init__(self, **arguments: Any) -> None:
        rows = ValidationSet.of(split_test(load_digits(NOWHERE)).validation)
        appraiser = MarketAppraiser(
            rows, classes=10, method=MARKET.alignment, merging=MARKET.merging
        )
        super().__init__(**(arguments | {"appraiser": appraiser}))


class PlayedAgent(Agent):
    """Its rounds are a test's to play."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**(arguments | {"trainer": None}))


@pytest.fixture(autouse=True)
def told_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(factories, "_allowed", {})


def trainer(agent: int) -> Trainer:
    architecture = own(mine.residual, *IMAGE)
    task = Task(
        dataset="digits", data_folder=NOWHERE, agent=agent, agents=2, seed=3,
        architecture=architecture,
    )  # fmt: skip
    return build_trainer("module", task)


def trained(agent: int, epochs: int = 5) -> dict[str, torch.Tensor]:
    learner = trainer(agent)
    tensors: dict[str, torch.Tensor] = learner.initial()
    for epoch in range(epochs):
        tensors = learner.train_epoch(tensors, epoch).parameters
    return tensors


@asynccontextmanager
async def market_in(folder: Path) -> AsyncIterator[Market]:
    async with open_market(folder, MeasuringBroker, trial_seed=Digest(bytes(32))) as market:
        await market.join("seller", PlayedAgent)
        await market.join("buyer", PlayedAgent, round_patience=5)
        yield market


async def test_a_convolutional_network_of_ones_own_is_sold_paid_for_and_merged_to_the_byte(
    tmp_path: Path,
) -> None:
    architecture = own(mine.residual, *IMAGE)
    ours, theirs = trained(0), trained(1)
    async with market_in(tmp_path) as market:
        seller, buyer = market["seller"], market["buyer"]
        await seller.shell.session.offer(architecture, theirs)
        await buyer.shell.session.offer(architecture, ours)
        await eventually(lambda: buyer.sees(seller), "the offer")
        step = await buyer.shell.session.step()
        assert step.because == "bought", (step, buyer.blamed())
        adopted = await buyer.shell.session.adopt()
        assert step.trade_id is not None
        trade = buyer.shell.desk.find(step.trade_id, "buyer")
        await market.see_paid(trade, buyer, seller)
        measured, recipe = bought(trade).evaluation, Recipe.decode(bought(trade).recipe)
        # every unit that a recipe can name has a partner, and what came is what was measured
        assert measured.method.startswith("universe+")
        assert len(recipe.permutations) == 2
        again = apply_recipe(parse_architecture(measured.architecture), ours, theirs, recipe)
        assert weights_root(again) == weights_root(adopted) == measured.merged_root
        learner = trainer(0)
        assert learner.evaluate(adopted).loss < learner.evaluate(ours).loss


async def test_a_broker_that_was_not_told_of_the_function_refuses_the_offer_by_name(
    tmp_path: Path,
) -> None:
    architecture = own(mine.residual, *IMAGE)
    tensors = trained(1, epochs=0)
    async with market_in(tmp_path) as market:
        seller = market["seller"]
        # one process has one list of what is allowed: here nobody is told any more
        factories._allowed.clear()
        await seller.shell.session.offer(architecture, tensors)
        assert seller.blamed("submit") == ["unknown-architecture"]
        assert not market.broker.station.blobs.roots()


def test_training_a_module_moves_its_running_statistics_and_is_the_same_again() -> None:
    learner = trainer(0)
    first = learner.initial()
    once, again = (learner.train_epoch(first, 0) for _ in range(2))
    assert all(torch.equal(once.parameters[name], again.parameters[name]) for name in first)
    assert all(not torch.equal(first[name], once.parameters[name]) for name in first)
    assert learner.evaluate(trained(0)).loss < learner.evaluate(first).loss


async def test_an_operator_names_the_model_and_its_function_in_the_settings(
    tmp_path: Path,
) -> None:
    name, file = mine.name_of(mine.residual), tmp_path / "net.json"
    file.write_text(
        f'{{"name": "module", "config": {{"factory": "{name}", "input": [1, 8, 8], '
        '"options": {"width": 6}}}'
    )
    (tmp_path / "config.toml").write_text(
        f"modules = ['{name} 1,8,8', '{name} 1,8,8 {{\"width\": 6}}']\narchitecture = 'net.json'\n"
        "trainer = 'module'\ndataset = 'digits'\n"
    )
    config = load(file=tmp_path / "config.toml").config
    assert config.modules == (f"{name} 1,8,8", f'{name} 1,8,8 {{"width": 6}}')
    with pytest.raises(LocalProtocolError, match="unknown-architecture"):
        await trainer_of(config)  # as a node would that had not begun by allowing them
    factories.allow_said(config.modules)
    learner = await trainer_of(config)
    assert isinstance(learner, ModuleTrainer)
    assert learner.architecture.config["options"] == {"width": 6}
    said = (f"{name} 1,8,8", "other.module:build 128 tokens=9")
    assert load(flags={"modules": said}).config.modules == said
    assert load(environ={"PMNODE_MODULES": ", ".join(said)}).config.modules == said
    single = f'{name} 1,8,8 {{"depth": 3, "width": 6}}'
    assert load(environ={"PMNODE_MODULES": single}).config.modules == (single,)


def test_a_trainer_without_a_module_says_which_setting_is_missing() -> None:
    task = Task(dataset="digits", data_folder=NOWHERE, agent=0, agents=2, seed=0)
    with pytest.raises(LocalProtocolError, match="`architecture`"):
        build_trainer("module", task)
