"""A run in which agents sell some layers: the nodes, and the floor that has none, agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from node.agent.progress import recall
from node.cli.exits import BAD_INPUT
from node.cli.main import run
from node.devnet.arms import ARMS
from node.devnet.errors import DevnetError
from node.devnet.floor import Floor
from node.devnet.spec import RunSpec
from node.home import Home
from node.journal import Journal
from node.params.encoding import weights_root
from node.protocol.types import Digest
from tests.devnet.in_process import played

ROUNDS = 2
LAYERS = (0, 1)


def spec_of(folder: Path, **changes: Any) -> RunSpec:
    usual: dict[str, Any] = {
        "dataset": "digits", "rounds": ROUNDS, "priced": False, "protocol": "paper",
        "arms": ("aligned",), "layers": LAYERS,
    }  # fmt: skip
    return RunSpec(folder=folder, **(usual | changes))


def last_of(home: Path) -> Digest:
    """Return the root of the weights that an agent ended with."""
    journal = Journal(Home(home).journal)
    try:
        progress = recall(journal)
    finally:
        journal.close()
    assert progress is not None
    assert progress.round == ROUNDS
    return progress.root


def test_nodes_that_sell_some_layers_learn_what_the_floor_does_to_the_bit(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    report = played(
        folder,
        *("--dataset", "digits", "--layers", "0,1", "--free", "--protocol", "paper"),
        *("--arms", "aligned", "--rounds", str(ROUNDS)),
    )
    torch.set_num_threads(1)  # as in a run
    for name in ("aligned",):
        floor = Floor(spec_of(folder), ARMS[name], seed=0).play()
        assert floor.traded == report["legs"][name]["traded"] > 0
        whole = Floor(spec_of(folder, layers=()), ARMS[name], seed=0).play()
        assert whole.curves != floor.curves
        for number, curve in enumerate(floor.curves):
            nodes = report["arms"][name]["curves"]["0"][f"agent-{number}"]
            assert [figure for _, figure in nodes] == [figure for _, figure in curve], name
            home = folder / "markets" / f"{name}-seed-0" / f"agent-{number}"
            assert last_of(home) == weights_root(floor.held[number])
    assert {trade["on_chain"] for trade in report["trades"]} == {"paid"}
    assert any("Only layers 0, 1" in note for note in report["notes"])


def test_the_floor_sells_the_layers_that_it_is_told_of_before_those_of_the_run(
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    said = Floor(spec_of(tmp_path), ARMS["aligned"], seed=1).play()
    told = Floor(
        spec_of(tmp_path, layers=(2,)), ARMS["aligned"], seed=1, layers=frozenset(LAYERS)
    ).play()
    assert said.curves == told.curves


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": (3,)}, "no such layers"),
        ({"layers": (0, 1, 2)}, "all layers are written as none"),
        ({"layers": (1, 0)}, "must rise"),
        ({"dataset": "linear", "warmup_epochs": 0}, "`linear` is sold whole"),
        ({"dataset": "random", "arms": ("aligned",)}, "`random` is sold whole"),
    ],
)
def test_layers_that_nobody_could_sell_are_refused_before_anything_is_begun(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(DevnetError, match=told):
        spec_of(tmp_path / "run", **changes).check()


@pytest.mark.parametrize("typed", ["0,0", "-1", "one", "0;1"])
def test_what_names_no_layers_is_refused_on_one_line(
    tmp_path: Path, typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["devnet", "--dataset", "digits", "--layers", typed, "--name", str(tmp_path / "run")]
    assert run(words) == BAD_INPUT
    said = capsys.readouterr().err
    assert "layers by number from 0" in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
