"""What a broker holds in memory: verified models, the latest used ones."""

from __future__ import annotations

from collections import OrderedDict

from broker_node.verify.stages import Verified
from node.protocol.types import Digest


class ModelShelf:
    """Verified models by weights root, the latest used ones."""

    def __init__(self, capacity: int, max_bytes: int = 2 * 1024**3) -> None:
        """Hold at most `capacity` models of `max_bytes` together; a larger one alone."""
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._models: OrderedDict[Digest, Verified] = OrderedDict()
        self._bytes = 0

    def get(self, root: Digest) -> Verified | None:
        """Return a model that was admitted, if it is still held."""
        if root in self._models:
            self._models.move_to_end(root)
        return self._models.get(root)

    def models(self) -> tuple[Verified, ...]:
        """Return all that is held, the latest used first."""
        return tuple(reversed(self._models.values()))

    def put(self, model: Verified) -> tuple[Digest, ...]:
        """Hold a model; returns the roots of those that had to go, least recently used first."""
        replaced = self._models.pop(model.weights_root, None)
        if replaced is not None:
            self._bytes -= _tensor_bytes(replaced)
        self._models[model.weights_root] = model
        self._bytes += _tensor_bytes(model)
        gone: list[Digest] = []
        while len(self._models) > 1 and self._is_full():
            root, forgotten = self._models.popitem(last=False)
            self._bytes -= _tensor_bytes(forgotten)
            gone.append(root)
        return tuple(gone)

    def _is_full(self) -> bool:
        return len(self._models) > self._capacity or self._bytes > self._max_bytes


def _tensor_bytes(model: Verified) -> int:
    return sum(tensor.nbytes for tensor in model.tensors.values())
