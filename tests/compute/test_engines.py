"""A broker's engine answers the same wherever it computes, and loses nothing with a worker."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from broker_node.appraisal import DrillAppraiser, MarketAppraiser, Trial
from broker_node.engine import ray_tasks
from broker_node.engine.cluster import Cluster
from broker_node.engine.engine import EngineError, EngineSettings
from broker_node.engine.local import LocalEngine
from broker_node.engine.ray_engine import RayEngine
from broker_node.engine.registry import ENGINES
from broker_node.evaluate.validation import ValidationSet
from broker_node.trying.reading import admitted
from broker_node.verify.stages import Verified
from node.params.architecture import random_init
from node.params.encoding import encode_tensors, weights_root
from node.params.families import factories
from node.protocol import merkle
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from node.protocol.offer import Offer
from tests.compute.lost_worker import WaitingAppraiser
from tests.params import own_modules as mine
from tests.params.own_modules import FEATURES, own
from tests.protocol import cast

NOTICE = (cast.NOTICE_DIGEST, cast.NOTICE)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install pm-node[ray]"
)


def offer_of(tensors: dict[str, torch.Tensor], like: Verified, data: bytes) -> Offer:
    return cast.offer(
        architecture=like.architecture.text,
        weights_root=weights_root(tensors),
        byte_length=len(data),
        leaf_count=merkle.leaf_count(len(data)),
    )


def plain(trial: Trial) -> dict[str, object]:
    """Everything that a trial found: what is signed, the recipe's bytes, the control."""
    return dataclasses.asdict(trial)


def hostile(model: Verified, what: str) -> tuple[bytes, Offer]:
    """Return the bytes of a model in which something is wrong, and what is said of them."""
    tensors = {name: tensor.clone() for name, tensor in model.tensors.items()}
    name = next(iter(tensors))
    if what == "a NaN":
        tensors[name].view(-1)[3] = torch.nan
    elif what == "huge":
        tensors[name].view(-1)[3] = 1e7
    data = encode_tensors(tensors)
    offer = offer_of(tensors, model, data)
    if what == "another root":
        data = data[:-1] + bytes([data[-1] ^ 1])
    elif what == "cut short":
        data = data[:-4]
    elif what == "no model":
        data = os.urandom(len(data))
    return data, offer


# ------------------------------------------------------------------------------ in process


def test_the_engine_in_process_is_what_it_asks(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    appraiser = MarketAppraiser(validation, classes=10)
    engine = ENGINES["local"](appraiser, EngineSettings(), lambda _: None)
    assert engine.at_once == 1
    assert (engine.validation_root, engine.rows) == (appraiser.validation_root, appraiser.rows)
    trial = engine.measure(*pair, task="digits", notice=NOTICE)
    assert plain(trial) == plain(appraiser.measure(*pair, task="digits", notice=NOTICE))


def test_trials_that_are_measured_at_once_are_what_they_are_one_by_one(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    engine = LocalEngine(MarketAppraiser(validation, classes=10), EngineSettings(workers=4))
    assert engine.at_once == 4
    pairs = [pair, pair[::-1]] * 2
    alone = [engine.measure(*each, task="digits", notice=NOTICE) for each in pairs]
    found: dict[int, Trial] = {}

    def measure(at: int) -> None:
        torch.set_num_threads(1)
        found[at] = engine.measure(*pairs[at], task="digits", notice=NOTICE)

    threads = [threading.Thread(target=measure, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [plain(found[at]) for at in range(4)] == [plain(trial) for trial in alone]


def test_an_engine_has_workers() -> None:
    with pytest.raises(LocalProtocolError, match="0 workers"):
        EngineSettings(workers=0)


def test_without_ray_its_engine_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, validation: ValidationSet
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pm-node\[ray\]") as refused:
        RayEngine(MarketAppraiser(validation, classes=10), EngineSettings(), print)
    assert refused.value.reason == "ray-missing"


def test_an_entry_that_lost_its_root_is_never_computed_with(
    pair: tuple[Verified, Verified],
) -> None:
    said = ray_tasks.Described.of(pair[0])
    blob = bytearray(encode_tensors(pair[0].tensors))
    array = torch.frombuffer(blob, dtype=torch.uint8).numpy()
    assert (
        weights_root(dict(ray_tasks.model_of(said, array, DrillAppraiser()).tensors))
        == said.weights_root
    )
    blob[-1] ^= 1
    with pytest.raises(ray_tasks.SpoiltError):
        ray_tasks.model_of(said, array, DrillAppraiser())


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto", "ray", "127.0.0.1:99999", "::1"])
def test_a_cluster_that_is_not_there_is_missed_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    begun = time.monotonic()
    with pytest.raises(EngineError, match="ray-away"):
        Cluster(address)
    assert time.monotonic() - begun < 10


class PaperCluster:
    """A cluster on paper: so many cores and GPUs, and what tasks are said to need."""

    cpus, gpus = 8, 2
    needed: dict[str, int]

    def __init__(self, address: str | None) -> None:
        self.address = address

    def put(self, value: object) -> object:
        return value

    def room(self, **needs: int) -> int:
        room: int = Cluster.room(self, **needs)  # type: ignore[arg-type]  # only counts
        return room

    def needs(self, **needed: int) -> None:
        self.needed = needed

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("device", "gpus", "at_once"), [("cpu", 0, 8), ("cuda", 1, 2), ("auto", 1, 2)]
)
def test_a_task_is_given_a_gpu_where_it_evaluates_on_one(
    device: str,
    gpus: int,
    at_once: int,
    validation: ValidationSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker_node.engine.ray_engine.Cluster", PaperCluster)
    appraiser = MarketAppraiser(validation, classes=10, device=device)
    engine = RayEngine(appraiser, EngineSettings(device=device, ray_address="there:1"), print)
    cluster: Any = engine._cluster
    assert cluster.address == "there:1"
    assert cluster.needed == {"cpus": 1, "gpus": gpus, "retries": 3}
    assert engine.at_once == at_once


# ---------------------------------------------------------------------------------- on Ray


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def appraiser(validation: ValidationSet) -> MarketAppraiser:
    return MarketAppraiser(validation, classes=10, control=True)


@pytest.fixture(scope="module")
def cluster(appraiser: MarketAppraiser, told: list[str]) -> Iterator[RayEngine]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(factories, "_allowed", {})
        own(mine.perceptron, FEATURES)
        engine = RayEngine(appraiser, EngineSettings(), told.append)
    yield engine
    engine.close()


@needs_ray
def test_a_cluster_of_our_own_is_heard_on_this_machine_alone(cluster: RayEngine) -> None:
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    heard = [
        connection.laddr.ip
        for process in ours
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert heard
    assert {address.removeprefix("::ffff:") for address in heard} == {"127.0.0.1"}


@needs_ray
def test_trials_on_the_cluster_are_those_of_the_process_bit_for_bit(
    cluster: RayEngine, appraiser: MarketAppraiser, pair: tuple[Verified, Verified]
) -> None:
    for ours, theirs in (pair, pair[::-1]):
        here = appraiser.measure(ours, theirs, task="digits", notice=NOTICE)
        there = cluster.measure(ours, theirs, task="digits", notice=NOTICE)
        assert here.control is not None
        assert plain(there) == plain(here)
        figures = [
            engine.replay(here.evaluation, here.recipe, ours, theirs)
            for engine in (cluster, appraiser)
        ]
        assert figures[0] == figures[1]


@needs_ray
def test_weights_are_put_in_the_store_once(
    cluster: RayEngine, pair: tuple[Verified, Verified], monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in pair:
        cluster._forget(model.weights_root)
    sizes: list[int] = []
    put = cluster._cluster.put

    def counted(value: Any) -> Any:
        sizes.append(len(value))
        return put(value)

    monkeypatch.setattr(cluster._cluster, "put", counted)
    for ours, theirs in (pair, pair[::-1]):
        cluster.measure(ours, theirs, task="digits", notice=NOTICE)
    assert sizes == [len(encode_tensors(model.tensors)) for model in pair]


@needs_ray
def test_what_the_cluster_lets_in_is_the_model_that_was_sent(
    cluster: RayEngine, pair: tuple[Verified, Verified], tmp_path: Path
) -> None:
    data, offer = hostile(pair[0], "nothing")
    (tmp_path / "blob").write_bytes(data)
    model = cluster.admit(tmp_path / "blob", offer)
    assert model.weights_root == pair[0].weights_root
    assert weights_root(dict(model.tensors)) == pair[0].weights_root
    assert (model.architecture, model.layers) == (pair[0].architecture, ())


@needs_ray
@pytest.mark.parametrize("what", ["a NaN", "huge", "another root", "cut short", "no model"])
def test_a_hostile_model_is_refused_alike(
    cluster: RayEngine,
    appraiser: MarketAppraiser,
    pair: tuple[Verified, Verified],
    tmp_path: Path,
    what: str,
) -> None:
    data, offer = hostile(pair[0], what)
    (tmp_path / "blob").write_bytes(data)
    refusals = []
    for engine in (appraiser, cluster):
        with pytest.raises(RemoteProtocolError) as refused:
            engine.admit(tmp_path / "blob", offer)
        refusals.append(refused.value)
    here, there = refusals
    assert type(there) is type(here)
    assert (there.reason, there.detail, str(there)) == (here.reason, here.detail, str(here))


@needs_ray
def test_a_pair_that_cannot_be_measured_is_refused_alike(
    cluster: RayEngine, appraiser: MarketAppraiser, pair: tuple[Verified, Verified]
) -> None:
    trial = appraiser.measure(*pair, task="digits", notice=NOTICE)
    refusals: list[MarketError] = []
    for engine in (appraiser, cluster):
        with pytest.raises(RemoteProtocolError) as refused:
            engine.replay(trial.evaluation, trial.recipe, *pair[::-1])
        refusals.append(refused.value)
    assert str(refusals[0]) == str(refusals[1])
    assert vars(refusals[0]) == vars(refusals[1])


@needs_ray
def test_a_spoilt_entry_is_named_and_put_there_again(
    cluster: RayEngine,
    appraiser: MarketAppraiser,
    pair: tuple[Verified, Verified],
    told: list[str],
) -> None:
    here = appraiser.measure(*pair, task="digits", notice=NOTICE)
    root = pair[1].weights_root
    other = torch.frombuffer(bytearray(encode_tensors(pair[0].tensors)), dtype=torch.uint8)
    cluster._hold(root, cluster._cluster.put(other.numpy()), len(other))
    told.clear()
    assert plain(cluster.measure(*pair, task="digits", notice=NOTICE)) == plain(here)
    assert told == [f"spoilt-entry: {root.hex()} in the object store, put there again"]


@needs_ray
def test_a_trial_whose_worker_is_killed_is_measured_by_another(
    cluster: RayEngine,
    pair: tuple[Verified, Verified],
    validation: ValidationSet,
    tmp_path: Path,
) -> None:
    waiting = WaitingAppraiser(validation, tmp_path)
    engine = RayEngine(waiting, EngineSettings(), print)
    found: list[Trial] = []
    asking = threading.Thread(
        target=lambda: found.append(engine.measure(*pair, task="digits", notice=NOTICE))
    )
    asking.start()
    patience = time.monotonic() + 60
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < patience
        time.sleep(0.05)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    assert psutil.Process().pid in {parent.pid for parent in worker.parents()}
    worker.send_signal(signal.SIGKILL)
    asking.join(90)
    alone = MarketAppraiser(validation, classes=10)
    here = alone.measure(*pair, task="digits", notice=NOTICE)
    assert [plain(trial) for trial in found] == [plain(here)]


@needs_ray
def test_a_trial_that_ends_every_worker_ends_by_name(
    cluster: RayEngine,
    pair: tuple[Verified, Verified],
    validation: ValidationSet,
    tmp_path: Path,
) -> None:
    deadly = WaitingAppraiser(validation, tmp_path, always=True)
    engine = RayEngine(deadly, EngineSettings(retries=1), print)
    with pytest.raises(EngineError, match="worker-lost"):
        engine.measure(*pair, task="digits", notice=NOTICE)


@needs_ray
def test_a_gpu_that_nobody_has_is_missed_at_the_start(
    cluster: RayEngine, appraiser: MarketAppraiser
) -> None:
    if cluster._cluster.gpus:
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match="no-gpu"):
        RayEngine(appraiser, EngineSettings(device="cuda"), print)
    assert RayEngine(appraiser, EngineSettings(device="auto"), print).at_once >= 1


@needs_ray
def test_workers_measure_modules_that_the_brokers_operator_has_named_and_no_others(
    cluster: RayEngine, appraiser: MarketAppraiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factories, "_allowed", {})
    of_both = own(mine.perceptron, FEATURES)
    ours, theirs = (admitted(of_both, random_init(of_both, seed)) for seed in (0, 1))
    here = appraiser.measure(ours, theirs, task="digits", notice=NOTICE)
    assert plain(cluster.measure(ours, theirs, task="digits", notice=NOTICE)) == plain(here)
    # named since, here alone
    untold = own(mine.perceptron, FEATURES, options={"hidden": 21})
    ours, theirs = (admitted(untold, random_init(untold, seed)) for seed in (0, 1))
    with pytest.raises(MarketError, match="unknown-architecture"):
        cluster.measure(ours, theirs, task="digits", notice=NOTICE)


@needs_ray
def test_a_worker_of_another_version_is_not_believed(
    cluster: RayEngine, pair: tuple[Verified, Verified], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_node.engine.ray_engine.CODE_VERSION", "pm-node/0")
    context = cluster._context
    monkeypatch.setattr(
        cluster, "_context", ray_tasks.Context(
            name=context.name, appraiser=context.appraiser, code="pm-node/0", threads=1
        )
    )  # fmt: skip
    with pytest.raises(EngineError, match="another-version"):
        cluster.measure(*pair, task="digits", notice=NOTICE)
