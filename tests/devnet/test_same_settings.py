"""The processes of an experiment are started with the very settings of its tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import trio

from node.config.loading import load
from node.config.table import SETTINGS, Config, ConfigError
from node.data.rows import Dataset, Rows
from node.devnet.arms import ARMS
from node.devnet.errors import DevnetError
from node.devnet.floor import run_seed
from node.devnet.launch import Market, Node
from node.devnet.play import (
    SETTLE_SECONDS,
    SILENCE_SECONDS,
    WINDOWS,
    agent_config,
    broker_config,
    silence_limit,
)
from node.devnet.processes import ProcessPlay, flags_of
from node.devnet.spec import RunSpec
from node.protocol.types import Millionths, Wei


def spec_in(folder: Path) -> RunSpec:
    return RunSpec(
        folder=folder,
        dataset="digits",
        protocol="paper",
        agents=3,
        rounds=7,
        epochs_per_round=2,
        warmup_epochs=1,
        priced=False,
        endowment="dirichlet",
        concentration=Millionths(300_000),
        fee_basis_points=35,
        budget=Wei(10**18),
        leaves={2: 4},
        layers=(0, 1),
        data_folder=folder,
    )


def read_back(config: Config) -> Config:
    """Return the settings as a process takes them from its command line."""
    words = flags_of(config)
    names = {row.flag: name for name, row in SETTINGS.items()}
    given = {names[flag]: text for flag, text in zip(words[::2], words[1::2], strict=True)}
    return load(flags=given).config


def test_every_setting_of_a_task_reaches_the_process(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    configs = [agent_config(spec, 3, number) for number in range(3)]
    configs += [broker_config(spec, ARMS[arm], 3) for arm in ("fedavg", "aligned")]
    configs.append(dataclasses.replace(configs[0], meeting="/ip4/127.0.0.1/tcp/1"))
    for config in configs:
        assert read_back(config) == config
    assert [config.rounds for config in configs[:3]] == [7, 7, 4]
    assert {config.concentration for config in configs} == {300_000}
    assert {config.layers for config in configs[:3]} == {(0, 1)}
    assert {config.trial_seed for config in configs[3:5]} == {"0x" + run_seed(3).hex()}


@pytest.mark.parametrize("seed", ["", "0x12", "12" * 32, "0x" + "g" * 64])
def test_a_seed_of_trials_that_is_no_digest_is_refused(seed: str) -> None:
    with pytest.raises(ConfigError, match="trial_seed"):
        load(flags={"trial_seed": seed})


def test_more_rows_and_more_agents_are_given_more_time() -> None:
    large = Rows(  # as TinyImageNet has them, without their memory
        inputs_RF=np.broadcast_to(np.zeros(1, np.float32), (100_000, 12_288)),
        targets_R=np.zeros(100_000, np.int64),
    )
    dataset = Dataset(name="large", train=large, test=large)
    assert silence_limit(2, None) == SILENCE_SECONDS
    assert silence_limit(2, dataset) > 1_000
    assert silence_limit(8, dataset) > silence_limit(2, dataset) + 2_000


def test_what_is_open_after_the_last_round_is_waited_for_as_long_as_its_windows() -> None:
    longest = ("fund_seconds", "reveal_seconds", "grace_seconds", "dispute_window_seconds")
    assert sum(WINDOWS[name] for name in longest) < SETTLE_SECONDS


async def test_a_broker_may_take_as_long_over_its_rows_as_an_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def start(_market: Market, seconds: float = 0.0) -> None:
        given.append(seconds)
        raise DevnetError("that is enough")

    monkeypatch.setattr(Market, "start", start)
    spec = dataclasses.replace(spec_in(tmp_path), processes=True)
    play = ProcessPlay(
        spec, ARMS["aligned"], 0, tmp_path, lambda *_: None, trio.Event(), silence=777.0
    )
    with pytest.RaisesGroup(pytest.RaisesExc(DevnetError, match="enough")):
        await play.run()
    assert given == [777.0]


def test_a_broker_that_says_nothing_is_given_up_after_the_time_it_was_given(tmp_path: Path) -> None:
    broker = Node("broker", ["sleep", "600"], tmp_path / "broker", {"PATH": "/usr/bin:/bin"})
    market = Market(
        folder=tmp_path, chain_url="", chain=Node("chain", [], tmp_path, {}), broker=broker,
        agents=[],
    )  # fmt: skip
    broker.start()
    try:
        with pytest.raises(DevnetError, match="broker was not up in 0 s"):
            market.await_broker(0.2)
    finally:
        broker.kill()
