"""An error is the same one after it went to another process."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251  as what carries errors between processes does

import pytest

from broker_node.engine.engine import EngineError
from node.config.setting import ConfigError, Origin
from node.net.errors import PeerTimeoutError
from node.params.families.base import ArchitectureError
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from tests.protocol import cast

ERRORS = [
    LocalProtocolError("a promise that we cannot keep"),
    RemoteProtocolError("not-finite", "layers.0.weight: nan … nan", peer=cast.SELLER.peer_id),
    RemoteProtocolError("busy"),
    ArchitectureError("too wide", reason="bad-layers"),
    EngineError("worker-lost", "three times"),
    ConfigError("engine", "cloud", Origin("flag", "--engine"), "local or ray"),
    PeerTimeoutError("nothing for 30 s"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", ["sent", "copied"])
def test_an_error_keeps_its_kind_its_words_and_its_values(error: MarketError, way: str) -> None:
    there = copy.copy(error) if way == "copied" else pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)
    assert there.args == error.args
