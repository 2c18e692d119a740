"""How alike the units of two models are, and which assignment that makes the best.

Similarities grow by slices of the summed-over axis. As soon as what is still missing, bounded by
Cauchy and Schwarz, could not make any other unit the best of its row, the assignment is known to
be optimal and the rest is not computed.

Weights may be in bfloat16, as they are on a device: products are then summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

FIRST_SLICE: Final = 128
"""Summed-over places in the first slice; every further one doubles what there is."""
MARGIN: Final = 1e-4
"""Of the bound: what rounding may have done to a similarity."""


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` in a type that sums are taken in."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def add_products_(total_UV: torch.Tensor, ours_UF: torch.Tensor, theirs_VF: torch.Tensor) -> None:
    """Add ours · theirsᵀ to `total_UV`; of bfloat16, summed in float32."""
    if ours_UF.dtype != torch.bfloat16:
        total_UV.addmm_(ours_UF, theirs_VF.T)
    elif ours_UF.is_cuda:
        total_UV += torch.mm(ours_UF, theirs_VF.T, out_dtype=torch.float32)
    else:
        total_UV.addmm_(ours_UF.float(), theirs_VF.T.float())


class Similarity:
    """Σ over blocks of ours_UF · theirs_VF, computed slice by slice as far as it is needed."""

    def __init__(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.parts = list(parts)
        self.size = self.parts[0][0].shape[0]
        self._slices = self._sliced()
        self.total_UV = wide(self.parts[0][0].new_zeros(self.size, self.size))
        self._missing: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _sliced(self) -> list[tuple[int, int, int]]:
        """Return (part, begin, end): short parts first, slices that double what there is."""
        found = []
        have = FIRST_SLICE
        order = sorted(range(len(self.parts)), key=lambda at: self.parts[at][0].shape[1])
        for part in order:
            width = self.parts[part][0].shape[1]
            begin = 0
            while begin < width:
                end = min(width, begin + have)
                found.append((part, begin, end))
                have += end - begin
                begin = end
        return found

    def _rest(self, done: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (self.parts[part][0][:, begin:end], self.parts[part][1][:, begin:end])
            for part, begin, end in self._slices[done:]
        ]

    def certified(self, *, checks: bool = True) -> torch.Tensor | None:
        """Return the permutation whose every unit is the best of its row, if there is one.

        Without one, `total_UV` is complete.
        """
        for done, (part, begin, end) in enumerate(self._slices, start=1):
            ours, theirs = self.parts[part]
            add_products_(self.total_UV, ours[:, begin:end], theirs[:, begin:end])
            last = done == len(self._slices)
            # a look costs about as much as 30 places of the slice
            if last or (checks and end - begin >= 32):
                chosen_U, best_U = self.total_UV.max(1)
                if not _is_permutation(best_U):
                    continue
                if last or self._is_settled(chosen_U, best_U, done):
                    return best_U.cpu()
        return None

    def _norms(self, done: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norms of both sides' rows over all slices that are still missing."""
        if not self._missing:
            both = (self.total_UV.new_zeros(self.size), self.total_UV.new_zeros(self.size))
            self._missing = [both]
            for ours, theirs in reversed(self._rest(0)):
                both = (
                    both[0] + wide(ours).square().sum(1),
                    both[1] + wide(theirs).square().sum(1),
                )
                self._missing.append(both)
            self._missing.reverse()
        ours_2, theirs_2 = self._missing[done]
        return ours_2.sqrt(), theirs_2.sqrt()

    def _is_settled(self, chosen_U: torch.Tensor, best_U: torch.Tensor, done: int) -> bool:
        """Whether what is missing cannot change the best of any row."""
        ours_U, theirs_V = self._norms(done)
        reach_U = (1 + MARGIN) * ours_U * theirs_V.max()
        self.total_UV.scatter_(1, best_U[:, None], -torch.inf)
        second_U = self.total_UV.max(1).values
        self.total_UV.scatter_(1, best_U[:, None], chosen_U[:, None])
        worst_U = second_U + reach_U
        # if the chosen ones go on as they began, is that enough? most looks end here
        had_2 = self._norms(0)[0].square().sum()
        missing_2 = ours_U.square().sum()
        guess = chosen_U.sum() * missing_2 / (had_2 - missing_2).clamp(min=1e-30)
        if not bool(chosen_U.sum() + guess > worst_U.sum()):
            return False
        for ours, theirs in self._rest(done):
            chosen_U = chosen_U + (wide(ours) * wide(theirs[best_U])).sum(1)
        return bool((chosen_U > worst_U + MARGIN * reach_U).all())


def _is_permutation(units: torch.Tensor) -> bool:
    seen = torch.zeros(len(units), dtype=torch.bool, device=units.device)
    seen[units] = True
    return bool(seen.all())


def assigned(similarity_UV: torch.Tensor) -> torch.Tensor:
    """Return the assignment of the greatest sum, which is known not to be that of the rows."""
    centred_UV = similarity_UV - similarity_UV.mean(0)
    centred_UV = centred_UV - centred_UV.mean(1, keepdim=True)
    _, columns = linear_sum_assignment(centred_UV.cpu().numpy(), maximize=True)
    return torch.from_numpy(np.asarray(columns, dtype=np.int64))


def best(similarity_UV: torch.Tensor) -> torch.Tensor:
    best_U = similarity_UV.argmax(1)
    return best_U.cpu() if _is_permutation(best_U) else assigned(similarity_UV)
