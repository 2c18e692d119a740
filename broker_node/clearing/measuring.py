"""What a fused model is, and how well it does: the G(S) of a round.

Models are fused as in trades, one after the other: each is aligned with what is fused so far, and
merged at the α that does best on the rows that choose. A trade's α is that of the least loss; here
G is an accuracy, and α is that of the best of `ALPHAS`, the least of equals: who adds nothing is
merged at 0. First comes the reference if it is of the parties, then whoever does best alone. G is
the share of the rows that score which are classified right, in millionths: the same rows for every
subset, drawn by the broker's published seed. So G may fall as a party is added, by chance or for
rows that chose otherwise; that is what is measured, and it is not made up for.

Pure compute; each subset is measured once, and kept in a file if there is one. Fused models are
kept as long as there is room: a subset is one more merge on top of the one without its last.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import torch

from broker_node.clearing.terms import key_of
from broker_node.evaluate.adapters import merged_pair
from broker_node.evaluate.curve import ON_CPU, Between, Model, Runner
from broker_node.evaluate.methods import align
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.mechanisms.gain_cache import GainCache, OnceGain
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture
from node.params.merges import require_whole
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.kinship import kin
from node.protocol.types import ONE, Digest, Millionths

ALPHAS: Final = tuple(range(0, ONE + 1, ONE // 20))
"""Merge weights that are tried, millionths."""
FUSED_BYTES: Final = 512 * 1024**2
"""What fused models may take up in memory."""


class Measuring:
    """The models of one round's parties, in their order, and what was measured of them."""

    def __init__(
        self,
        models: Sequence[Verified],
        validation: ValidationSet,
        *,
        rows: tuple[int, int],
        seed: Digest,
        method: str,
        cache: Path | None = None,
        runner: Runner = ON_CPU,
    ) -> None:
        """`rows`: how many choose α, how many score; `cache`: what was measured before is there;
        `runner`: what answers the rows. Models are lined up and fused on the CPU.

        Raises `RemoteProtocolError` for models of several architectures and for adapters, whose
        ranks of all subsets may not add up, `LocalProtocolError` for rows without classes.
        """
        for model in models:
            require_whole(model.architecture.text, "a round")
        if validation.targets_R.is_floating_point():
            raise LocalProtocolError("rows of values have no accuracy: a round needs classes")
        if len({kin(model.architecture.text) for model in models}) > 1:
            raise RemoteProtocolError("architecture-mismatch", "a round is of one architecture")
        self._models = tuple(models)
        drawn = draw_rows(seed, len(validation), choice=rows[0], score=rows[1])
        choice, score = torch.from_numpy(drawn.choice), torch.from_numpy(drawn.score)
        self._choice = validation.inputs_RF[choice], validation.targets_R[choice]
        self._score = validation.inputs_RF[score], validation.targets_R[score]
        self._method, self._path, self._runner = method, cache, runner
        said = b"".join(model.weights_root for model in models) + validation.root + seed
        texts = " ".join(dict.fromkeys(model.architecture.text for model in models))
        said += f"{texts} {method} {ALPHAS} {rows}".encode()
        self._market = hashlib.sha256(said).digest()
        self._seed = int.from_bytes(seed[:8], "big")
        self._fused: OrderedDict[tuple[int, ...], Verified] = OrderedDict()
        self._gains: dict[int, OnceGain] = {}
        self._open = ExitStack()
        self.measured: dict[tuple[int, int], int] = {}
        """(reference, parties) → millionths, of all that was asked for."""

    def close(self) -> None:
        """Let go of the file; what was measured stays in it. Safe to repeat."""
        self._open.close()

    def performance(self, reference: int, parties: int) -> float:
        """Return G of the model fused of these parties, 0 … 1, in whole millionths."""
        key = key_of(reference, parties)
        found = self._gain_at(key[0])(parties)
        self.measured[key] = round(found * ONE)
        return found

    def fused(self, reference: int, parties: int) -> dict[str, torch.Tensor]:
        """Return the tensors of a fused model."""
        return dict(self._fuse(self._order(reference, parties)).tensors)

    def _order(self, reference: int, parties: int) -> tuple[int, ...]:
        members = [i for i in range(len(self._models)) if parties >> i & 1]
        if len(members) == 1:
            return tuple(members)
        alone = {i: self._gain_at(i)(1 << i) for i in members}
        return tuple(sorted(members, key=lambda i: (i != reference, -alone[i], i)))

    def _fuse(self, order: tuple[int, ...]) -> Verified:
        if len(order) == 1:
            return self._models[order[0]]
        if order in self._fused:
            self._fused.move_to_end(order)
            return self._fused[order]
        base, sold = self._fuse(order[:-1]), self._models[order[-1]]
        aligned = align(self._method, base, sold, seed=self._seed, probe_RF=self._choice[0])
        share, best = Millionths(0), -1
        for alpha in map(Millionths, ALPHAS):
            tried = Between(aligned.buyer.tensors, aligned.transformed, alpha)
            right = self._right((aligned.buyer.architecture, tried), self._choice)
            if right > best:
                share, best = alpha, right
        fused = self._fused[order] = merged_pair(aligned, share)
        most = FUSED_BYTES // max(1, sum(tensor.nbytes for tensor in fused.tensors.values()))
        while len(self._fused) > max(2, most):
            self._fused.popitem(last=False)
        return fused

    def _gain_at(self, reference: int) -> OnceGain:
        if reference not in self._gains:
            cache = None
            if self._path is not None:
                path = self._path.with_name(f"{self._path.name}.{reference}")
                named = hashlib.sha256(self._market + f" {reference}".encode()).digest()
                cache = GainCache(path, Digest(named), len(self._models))
                self._open.enter_context(cache)
            self._gains[reference] = OnceGain(lambda s: self._accuracy(reference, s), cache)
        return self._gains[reference]

    def _accuracy(self, reference: int, parties: int) -> float:
        fused = self._fuse(self._order(reference, parties))
        right = self._right((fused.architecture, fused.tensors), self._score)
        return round(ONE * right / len(self._score[1])) / ONE

    def fallbacks(self) -> tuple[str, ...]:
        """Return what could not be computed as it was meant to be, and what was done instead."""
        return self._runner.fallbacks()

    def _right(
        self, model: tuple[Architecture, Model], rows: tuple[torch.Tensor, torch.Tensor]
    ) -> int:
        inputs_RF, targets_R = rows
        outputs_RC = self._runner.outputs(*model, inputs_RF)
        return int((outputs_RC.argmax(dim=1) == targets_R).sum())
