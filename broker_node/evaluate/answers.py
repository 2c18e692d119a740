"""What N models answered to the rows that they share, and what that tells of their merges.

The mean of two models' answers, weighted as their merge is, costs no forward pass. Among models
that began at one its loss is nearly the merge's; between models that never met there is a barrier.
What few rows of a merge say of the difference is added to the mean answers' loss, which is known
on all rows (a control variate). The difference is 0 at either end; over α(1 − α), which is the
shape of a barrier, it is taken to be straight from one measured α to the next. Of a linear model
it is 0 everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch

from broker_node.evaluate.curve import LossCurve, losses_of
from node.protocol.types import ONE, Millionths

ALONG: Final = tuple(Millionths(k * ONE // 20) for k in range(1, 20))
"""Where merges are looked at."""
ALL: Final = Millionths(ONE)


class Answers:
    """Of N models to R shared rows, and the losses of their means. No forward pass."""

    def __init__(self, outputs_NRO: torch.Tensor, targets_R: torch.Tensor) -> None:
        self._outputs_NRO = outputs_NRO.double()
        self._targets_R = targets_R
        self._alone_N = [
            float(losses_of(outputs_RO, targets_R).mean()) for outputs_RO in self._outputs_NRO
        ]

    def __len__(self) -> int:
        return len(self._targets_R)

    def alone(self, model: int) -> float:
        """Return a model's own mean loss, which is that of buying it outright; maybe no number."""
        return self._alone_N[model]

    def mixed(
        self, buyer: int, sellers: Sequence[int], alpha: Millionths, rows: int
    ) -> torch.Tensor:
        """Return losses_KR, on the first rows, of the mean of the buyer's and each one's answers.

        Weighted by α, as their merges are.
        """
        answers_NRO = self._outputs_NRO[:, :rows]
        mean_KRO = torch.lerp(answers_NRO[buyer], answers_NRO[list(sellers)], alpha / ONE)
        targets_R = self._targets_R[:rows].repeat(len(sellers))
        return losses_of(mean_KRO.flatten(0, 1), targets_R).view(len(sellers), -1)

    def promise(
        self, buyer: int, sellers: Sequence[int], alphas: Sequence[Millionths], rows: int
    ) -> torch.Tensor:
        """Return means_AK of these; inf where that is no number."""
        means_AK = torch.stack([self.mixed(buyer, sellers, at, rows).mean(1) for at in alphas])
        return torch.where(means_AK.isfinite(), means_AK, math.inf)


class Line:
    """The merges of two models: what each seems to come to on all shared rows.

    Either may buy of the other: what was measured for one is told to both.
    """

    def __init__(self, answers: Answers, ends: tuple[int, int], curve: LossCurve) -> None:
        """`curve` goes from the first end to the second, on the same rows as the answers."""
        self.ends = ends
        self._answers = answers
        self._curve = curve
        like_A = answers.promise(ends[0], [ends[1]], ALONG, len(answers))[:, 0]
        self._like = dict(zip(ALONG, like_A.tolist(), strict=True))
        self._told: dict[Millionths, tuple[float, int]] = {}
        """What the merge comes to on all rows, by how many of them."""

    def other(self, buyer: int) -> int:
        """Return whom the buyer would buy of."""
        first, second = self.ends
        return second if buyer == first else first

    def measure(self, buyer: int, alpha: Millionths, rows: int) -> int:
        """Measure the buyer's merge on the first rows; return how many were not known before."""
        alpha = self._seen(buyer, alpha)
        before = self._curve.row_evaluations
        few_R = self._curve.losses(alpha, rows)
        first, second = self.ends
        (like_R,) = self._answers.mixed(first, [second], alpha, len(self._answers))
        self._told[alpha] = controlled(few_R, like_R), rows
        return self._curve.row_evaluations - before

    def know(self, alpha: Millionths, losses_R: torch.Tensor) -> None:
        """Take losses on the first rows from who has measured them; α as of the first end."""
        self._curve.know(alpha, losses_R)
        self.measure(self.ends[0], alpha, len(losses_R))

    def told(self, buyer: int, rows: int) -> Mapping[Millionths, float]:
        """Return what was measured on so many rows or more; inf where it overflows."""
        return {
            self._seen(buyer, alpha): loss
            for alpha, (loss, measured) in self._told.items()
            if measured >= rows
        }

    def lowest(self, buyer: int) -> tuple[float, Millionths]:
        """Return the least that any merge, or the other outright, seems to come to, and its α."""
        nodes = sorted(self._told)
        apart = [(self._told[at][0] - self._like[at]) / _barrier(at) for at in nodes]
        with np.errstate(invalid="ignore"):
            apart_A = np.interp(ALONG, nodes, apart).tolist() if nodes else [0.0] * len(ALONG)
        seeming = {
            self._seen(buyer, alpha): _number(self._like[alpha] + share * _barrier(alpha))
            for alpha, share in zip(ALONG, apart_A, strict=True)
        }
        seeming[ALL] = self._answers.alone(self.other(buyer))
        return min((loss, alpha) for alpha, loss in seeming.items())

    def _seen(self, buyer: int, alpha: Millionths) -> Millionths:
        """Return the α of the one direction in the other, if the buyer is the second end."""
        return alpha if buyer == self.ends[0] else Millionths(ONE - alpha)


def _barrier(alpha: Millionths) -> float:
    return alpha / ONE * (1 - alpha / ONE)


def _number(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def controlled(few_R: torch.Tensor, like_R: torch.Tensor) -> float:
    """Return the mean over all rows, by the first few and by `like_R`, which is known on all.

    A control variate: what the few say of the difference, with the share of `like_R`, 0 … 1,
    that leaves the least variance. inf where it overflows.
    """
    beside_R = like_R[: len(few_R)]
    deviations_R = beside_R - beside_R.mean()
    spread = float(deviations_R.square().sum())
    share = float((deviations_R * few_R).sum()) / spread if spread > 0 else 0.0
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    mean = float(few_R.mean())
    moved = share * (float(like_R.mean()) - float(beside_R.mean())) if share > 0 else 0.0
    return _number(mean + moved)
