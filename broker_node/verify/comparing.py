"""Which of many models one may be a copy of, without matching it with each of them.

A *print* is what renumbering and rescaling units leave as it was: for each layer that writes
hidden units, the products of all pairs of rows in what enters the activation, means taken off.
Two prints are compared in microseconds (their cosine is linear CKA, Kornblith et al. 2019), and
are made once a model; a matching takes a tenth of a second. So prints only say which models are
looked at: those of them that are nearest, and no more than asked for. What is judged is the score
of `broker_node.verify.replicas`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, TypeAlias

import torch

from broker_node.verify.replicas import ReplicaError, likeness, outputs_of_hidden
from broker_node.verify.stages import Verified
from node.params.merges import is_adapter
from node.protocol.kinship import kin
from node.protocol.types import Digest

ROWS: Final = 256
"""On which models are compared, at most; as many as the threshold was chosen with."""
PRINT_ROWS: Final = 64
LEAST_PRINT: Final = 0.65
"""Cosine of two prints under which nobody looks further: no copy of `scripts/bench.py replicas`
has less than .74, independents have .51 to .97."""
MAX_PRINTS: Final = 1_024
"""Held at a time: 16 KiB for each hidden layer."""

_Print: TypeAlias = tuple[torch.Tensor, ...] | None
"""By hidden layer, of norm 1; None of a model that answers every row alike, or computes nothing."""


class Comparer:
    """Compares models on the same rows, probes_RF, and remembers their prints. Not thread-safe."""

    def __init__(self, probes_RF: torch.Tensor | None) -> None:
        """Without rows, nothing is like anything."""
        self._probes_RF = None if probes_RF is None else probes_RF[:ROWS]
        self._prints: OrderedDict[tuple[Digest, tuple[int, ...]], _Print] = OrderedDict()
        self._faults: dict[Digest, str] = {}

    def nearest(self, model: Verified, others: Iterable[Verified], most: int) -> list[Verified]:
        """Return at most `most` of `others` that it may be a copy of, the likeliest first.

        What is sold with other layers has no print to compare, and comes last. Adapters have none
        either: those on the same base are ranked by their scores, which cost no matching.
        """
        if is_adapter(model.architecture):
            return self._nearest_adapters(model, others, most)
        ours = self._print(model)
        if ours is None:
            return []
        ranked: list[tuple[float, int, Verified]] = []
        for place, other in enumerate(others):
            if other.architecture != model.architecture or not set(model.tensors) & set(
                other.tensors
            ):
                continue
            near = LEAST_PRINT
            if other.layers == model.layers:
                theirs = self._print(other)
                if theirs is None:
                    continue
                near = sum(float((a * b).sum()) for a, b in zip(ours, theirs, strict=True)) / len(
                    ours
                )
            if near >= LEAST_PRINT:
                ranked.append((-near, place, other))
        return [other for _, _, other in sorted(ranked, key=lambda row: row[:2])[:most]]

    def _nearest_adapters(
        self, model: Verified, others: Iterable[Verified], most: int
    ) -> list[Verified]:
        scored = [
            (-score, place, other)
            for place, other in enumerate(others)
            if kin(other.architecture.text) == kin(model.architecture.text)
            and (score := self.score(model, other)) is not None
        ]
        return [other for _, _, other in sorted(scored, key=lambda row: row[:2])[:most]]

    def why_not(self, model: Verified) -> str:
        """Return why a model can be compared with nothing, or nothing."""
        if is_adapter(model.architecture):
            return ""
        return self._faults.get(model.weights_root, "") if self._print(model) is None else ""

    def score(self, one: Verified, other: Verified) -> float | None:
        """Return how alike two models are, or None of two that cannot be compared."""
        if self._probes_RF is None:
            return None
        try:
            return likeness(one, other, self._probes_RF).score
        except ReplicaError:
            return None

    def _print(self, model: Verified) -> _Print:
        key = model.weights_root, model.layers
        if key not in self._prints:
            self._prints[key] = self._made(model)
            while len(self._prints) > MAX_PRINTS:
                self._prints.popitem(last=False)
        self._prints.move_to_end(key)
        return self._prints[key]

    def _made(self, model: Verified) -> _Print:
        if self._probes_RF is None:
            return None
        try:
            outputs = outputs_of_hidden(model, self._probes_RF[:PRINT_ROWS])
        except ReplicaError as error:
            self._faults[model.weights_root] = error.reason
            while len(self._faults) > MAX_PRINTS:
                del self._faults[next(iter(self._faults))]
            return None
        products = [outputs_NU @ outputs_NU.T for outputs_NU in outputs.values()]
        return tuple((product / product.norm()).float() for product in products)
