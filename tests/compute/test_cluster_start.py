"""A Ray cluster of a broker's own starts on a busy machine too, stays, and leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from broker_node.engine.cluster import STARTS, Cluster
from broker_node.engine.engine import EngineError

LATE = "The current node timed out during startup.\nand much more"

# A start that is late, as Ray says it, then one that is not, from a thread that ends at once: what
# a broker does whose machine is busy. Ray is told of its settings as `Cluster` would, for it reads
# them when it is imported.
PROGRAM = """
import ctypes, json, os, pathlib, posixpath, signal, tempfile, threading
from broker_node.engine.cluster import OURS, Cluster, take_signals_back
os.environ.update(OURS, RAY_AUTH_TOKEN="5e" * 32)
import psutil
from ray._private import services

def handled():
    "Which function of the process, Python's or another, the system calls for SIGTERM."
    action = (ctypes.c_void_p * 32)()
    ctypes.CDLL(None).sigaction(signal.SIGTERM, None, action)
    return action[0]

def living():
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE]

heard, made, late = [], [], []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
told = handled()
answers = services.get_node

def busy(*arguments):
    if not late:
        late.extend(living())
        raise Exception("The current node timed out during startup.")
    return answers(*arguments)

services.get_node = busy
starting = threading.Thread(target=lambda: made.append(Cluster(None)))
starting.start()
starting.join()
cluster, = made
folders = len(list(pathlib.Path(tempfile.gettempdir()).iterdir()))
left = [pid for pid in late if pid in living()]
theirs = handled()
take_signals_back()
ours = handled()
signal.raise_signal(signal.SIGTERM)
cluster.needs(cpus=1, gpus=0, retries=0)
# would wait for ever for processes that ended with the thread
joined = cluster.run(posixpath.join, "a", "b")
cluster.close()
print(json.dumps({
    "late": len(late), "left": left, "folders": folders, "answer": joined, "heard": heard,
    "taken": theirs != told, "back": ours == told, "living": living(),
}))
"""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What came of `PROGRAM`; its folder for temporary files must be short, for Ray's sockets."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install pm-node[ray]")
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as folder:
        ran = subprocess.run(
            [sys.executable, "-c", f"import tempfile; tempfile.tempdir = {folder!r}\n{PROGRAM}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
        assert list(Path(folder).iterdir()) == []
    assert "SIGTERM" not in ran.stderr
    found: dict[str, object] = json.loads(ran.stdout)
    return found


def test_a_start_that_was_late_is_made_anew_and_its_processes_are_gone(
    played: dict[str, object],
) -> None:
    assert played["late"], "Ray had started no process when it was said to be late"
    assert (played["left"], played["folders"]) == ([], 1)


def test_a_cluster_outlives_the_thread_that_asked_for_it(played: dict[str, object]) -> None:
    assert played["answer"] == "a/b"


def test_a_signal_is_ours_again_once_the_cluster_runs(played: dict[str, object]) -> None:
    assert played["taken"], "Ray left SIGTERM alone: what takes it back is needed no more"
    assert (played["back"], played["heard"]) == (True, [1])


def test_a_cluster_that_is_closed_leaves_no_process(played: dict[str, object]) -> None:
    assert played["living"] == []


class PaperRay:
    """Ray's interface on paper: each start fails as the list says, and what is left is counted."""

    class exceptions:  # noqa: N801 (Ray's name)
        RayError = type("RayError", (Exception,), {})

    def __init__(self, *failures: BaseException | None) -> None:
        self.failures = list(failures)
        self.folders: list[Path] = []
        self.threads: list[threading.Thread] = []
        self.shutdowns = 0

    def is_initialized(self) -> bool:
        return False

    def init(self, *, _temp_dir: str | None = None, **_: object) -> None:
        self.threads.append(threading.current_thread())
        if _temp_dir is not None:
            self.folders.append(Path(_temp_dir))
            (self.folders[-1] / "socket").touch()
        failure = self.failures.pop(0)
        if failure is not None:
            raise failure

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def shutdown(self) -> None:
        self.shutdowns += 1


Paper = Callable[..., PaperRay]


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    def ray(*failures: BaseException | None) -> PaperRay:
        made = PaperRay(*failures)
        monkeypatch.setitem(sys.modules, "ray", made)
        return made

    return ray


def nothing_left(ray: PaperRay) -> bool:
    folders = [folder for folder in ray.folders if folder.exists()]
    return not folders and not any(thread.is_alive() for thread in ray.threads)


def test_one_late_start_costs_a_second_one_in_a_new_folder(paper: Paper) -> None:
    ray = paper(Exception(LATE), None)
    cluster = Cluster(None)
    assert (cluster.cpus, len(set(ray.folders)), ray.shutdowns) == (2, 2, 1)
    assert [folder.exists() for folder in ray.folders] == [False, True]
    cluster.close()
    assert nothing_left(ray)


@pytest.mark.parametrize(
    "failure",
    [Exception(LATE), RuntimeError("no GCS"), OSError("no room"), KeyError("node"), SystemExit(1)],
    ids=lambda failure: type(failure).__name__,
)
def test_a_cluster_that_never_starts_is_refused_with_what_to_do(
    failure: BaseException, paper: Paper
) -> None:
    ray = paper(*[failure] * STARTS)
    with pytest.raises(EngineError) as refused:
        Cluster(None)
    assert refused.value.reason == "ray-away"
    assert f"{STARTS} tries" in str(refused.value)
    assert "`--engine local`" in str(refused.value)
    assert type(failure).__name__ in str(refused.value)
    assert "much more" not in str(refused.value)
    assert ray.failures == []
    assert ray.shutdowns >= STARTS
    assert nothing_left(ray)


def test_a_cluster_that_is_joined_is_tried_once(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    listens = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr("socket.create_connection", lambda *_: listens)
    ray = paper(Exception("Head node temp_dir not found in NodeInfo"), None)
    with pytest.raises(EngineError, match=r"ray-away: 10\.0\.0\.5:6379: Exception: Head node"):
        Cluster("10.0.0.5:6379")
    assert (len(ray.threads), ray.folders, ray.shutdowns) == (1, [], 1)
