"""The engine on a Ray cluster: tasks, placed by Ray where the weights and the GPUs are.

Each model is put in the object store once, under its root, and tasks name it. Ray decides where a
task runs, and runs it again where its worker was lost. What this module decides is only what a
task needs: as many cores as PyTorch has threads here, and a GPU if it evaluates on one.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import numpy as np
import torch

from broker_node.appraisal import CODE_VERSION, Appraiser, Remeasured, Trial
from broker_node.engine import ray_tasks
from broker_node.engine.cluster import Cluster, take_signals_back
from broker_node.engine.engine import EngineError, EngineSettings, Tell
from broker_node.engine.ray_tasks import AnotherVersion, Blob, Context, Described, Spoilt
from broker_node.verify.stages import Verified
from node.params.encoding import encode_tensors
from node.params.families import factories
from node.protocol.errors import MarketError
from node.protocol.evaluation import Evaluation
from node.protocol.offer import BrokerNotice, Offer
from node.protocol.types import Digest

MAX_HELD: Final = 2 * 1024**3
"""Bytes of weights in the object store; of what is over, Ray writes what is in use to disk."""


class RayEngine:
    """Computes in the workers of a Ray cluster, a running one or one of its own."""

    def __init__(self, appraiser: Appraiser, settings: EngineSettings, tell: Tell) -> None:
        """Join the cluster, or start one. Raises `EngineError`; `tell` hears of mishaps."""
        self._appraiser = appraiser
        self._tell = tell
        self._lock = threading.Lock()
        self._held: OrderedDict[Digest, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self.validation_root = appraiser.validation_root
        self.validation_rows = appraiser.validation_rows
        self.rows = appraiser.rows
        self.probes_RF = appraiser.probes_RF
        self.adapter_base = appraiser.adapter_base
        threads = torch.get_num_threads()
        self._cluster = Cluster(settings.ray_address)
        try:
            gpus = self._gpus(settings.device)
            self.at_once = self._cluster.room(cpus=threads, gpus=gpus)
            self._cluster.needs(cpus=threads, gpus=gpus, retries=settings.retries)
            self._context = Context(
                name=secrets.token_hex(8),
                appraiser={"reference": self._cluster.put(appraiser)},
                code=CODE_VERSION,
                threads=threads,
                modules=tuple(map(str, factories.entries())),
            )
        except BaseException:
            self._cluster.close()
            raise

    def _gpus(self, device: str) -> int:
        """Return how many GPUs a task is given; `EngineError` ``no-gpu`` if there are none."""
        if device == "cpu" or (device == "auto" and not self._cluster.gpus):
            return 0
        if not self._cluster.gpus:
            raise EngineError("no-gpu", f"`{device}` evaluates, and no machine of the cluster has")
        return 1

    def screen(self, offer: Offer) -> None:
        self._appraiser.screen(offer)

    def admit(self, blob: Path | memoryview, offer: Offer) -> Verified:
        self.screen(offer)
        read = np.fromfile(blob, np.uint8) if isinstance(blob, Path) else np.asarray(blob)
        data = cast("Blob", read)
        reference = self._cluster.put(data)
        said = self._answer(ray_tasks.admitted, self._context, reference, offer)
        if isinstance(said, Spoilt):
            raise EngineError("spoilt-twice", said.root.hex())
        self._hold(said.weights_root, reference, len(data))
        return ray_tasks.model_of(said, data, self._appraiser)

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        found: Trial = self._of_pair(ray_tasks.measured, base, sold, task, notice)
        return found

    def replay(
        self, subject: Evaluation, recipe: bytes, base: Verified, sold: Verified
    ) -> Remeasured:
        found: Remeasured = self._of_pair(ray_tasks.replayed, base, sold, subject, recipe)
        return found

    def settle(self) -> None:
        take_signals_back()

    def close(self) -> None:
        with self._lock:
            self._held.clear()
        self._cluster.close()

    def _of_pair(
        self, function: Callable[..., Any], base: Verified, sold: Verified, *rest: object
    ) -> Any:
        said = (Described.of(base), Described.of(sold))
        for _ in range(2):
            blobs = (self._reference(base), self._reference(sold))
            found = self._answer(function, self._context, *blobs, said, *rest)
            if not isinstance(found, Spoilt):
                return found
            self._tell(f"spoilt-entry: {found.root.hex()} in the object store, put there again")
            self._forget(found.root)
        raise EngineError("spoilt-twice", f"{found.root.hex()} in the object store")

    def _answer(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Return what a task answers, or raise what it refuses."""
        answer = self._cluster.run(function, *arguments)
        if isinstance(answer, MarketError):
            raise answer
        if isinstance(answer, AnotherVersion):
            _raise_version(answer.code)
        return answer

    def _reference(self, model: Verified) -> Any:
        """Return where the encoding of a model is in the object store, put there if need be."""
        with self._lock:
            if model.weights_root in self._held:
                self._held.move_to_end(model.weights_root)
                return self._held[model.weights_root][0]
        data = np.frombuffer(encode_tensors(model.tensors), np.uint8)
        reference = self._cluster.put(data)
        self._hold(model.weights_root, reference, len(data))
        return reference

    def _hold(self, root: Digest, reference: object, size: int) -> None:
        self._forget(root)
        with self._lock:
            self._held[root] = (reference, size)
            self._bytes += size
            while self._bytes > MAX_HELD and len(self._held) > 2:
                self._bytes -= self._held.popitem(last=False)[1][1]

    def _forget(self, root: Digest) -> None:
        with self._lock:
            if root in self._held:
                self._bytes -= self._held.pop(root)[1]


def _raise_version(code: str) -> NoReturn:
    raise EngineError("another-version", f"a worker measures as {code}, we as {CODE_VERSION}")
