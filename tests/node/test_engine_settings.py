"""Where a broker computes is a setting, and what cannot be had is missed before it starts."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from broker_node.appraisal import DrillAppraiser
from broker_node.engine.engine import EngineError
from broker_node.engine.local import LocalEngine
from node.config.table import SETTINGS, Config
from node.protocol.errors import LocalProtocolError
from node.roles import shells


def engine_of(**settings: Any) -> Any:
    opened: Any = SimpleNamespace(config=Config(role="broker", **settings), observer=None)
    return shells._engine(opened, DrillAppraiser())


def test_a_broker_computes_in_its_own_process_one_thing_at_a_time() -> None:
    engine = engine_of()
    assert isinstance(engine, LocalEngine)
    assert engine.at_once == 1
    assert engine_of(engine_workers=3).at_once == 3


def test_ray_is_not_imported_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    engine_of()
    with pytest.raises(EngineError, match="ray-missing"):
        engine_of(engine="ray")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_here_is_missed_at_the_start() -> None:
    with pytest.raises(LocalProtocolError, match="device = cuda"):
        engine_of(device="cuda")


def test_the_choices_are_those_that_are_registered() -> None:
    from broker_node.engine.registry import ENGINES
    from broker_node.evaluate.device import DEVICES

    assert set(SETTINGS["engine"].choices) == set(ENGINES)
    assert SETTINGS["device"].choices == DEVICES
