"""What the merge is worth: the drop of the loss, relative to the buyer's, and how sure it is.

Both models are measured on the same rows, so the statistics are paired. With b the loss of
the buyer's model in a row and d what the merge takes off it, the gain is g = mean(d)/mean(b).
Its standard error is that of the residuals d − g·b over mean(b) (the delta method for a
ratio); the bound is one-sided, 95%, from Student's t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from scipy.special import stdtrit

from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import ONE, Millionths

CONFIDENCE: Final = 0.95
NANO: Final = 1_000_000_000
MAX_LOSS: Final = 1e9
"""A row, in nats or squared units; a model past this computes nothing that has a price."""
_LIMIT: Final = 1e12
"""Gains past this share are cut off, so that every figure fits 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A measured gain. Losses are in billionths, rounded to nearest.

    Of a nat where there are classes, of the squared unit of values.
    """

    loss_before: int
    loss_after: int
    gain: Millionths
    """Relative drop of the loss, rounded down; negative where the merge does harm."""
    bound: Millionths
    """One-sided 95% lower bound of the gain, rounded down."""
    z_score: Millionths
    """Mean drop over its standard error, paired; 0 where every row dropped equally by 0."""


def _floor_millionths(value: float) -> Millionths:
    """Round down: what is uncertain is never given away by rounding."""
    return Millionths(math.floor(max(-_LIMIT, min(_LIMIT, value)) * ONE))


def _nano(loss: float) -> int:
    if not 0 <= loss <= MAX_LOSS:
        raise RemoteProtocolError("overflows", f"a loss of {loss:g} a row")
    return round(loss * NANO)


def paired_gain(before_R: torch.Tensor, after_R: torch.Tensor) -> Gain:
    """Return the gain of going from losses `before_R` to `after_R` on the same R >= 2 rows.

    Raises `RemoteProtocolError("overflows")` for losses that are no sane number.
    """
    rows = len(before_R)
    if rows < 2 or len(after_R) != rows:
        raise LocalProtocolError(f"{rows} and {len(after_R)} losses are not 2 or more pairs")
    before, after = float(before_R.mean()), float(after_R.mean())
    loss_before, loss_after = _nano(before), _nano(after)
    drop_R = before_R - after_R
    drop = float(drop_R.mean())
    error = float(drop_R.std()) / math.sqrt(rows)
    relative = drop / before if before > 0 else 0.0
    residual_error = float((drop_R - relative * before_R).std()) / math.sqrt(rows)
    quantile = float(stdtrit(rows - 1, CONFIDENCE))
    bound = relative - quantile * residual_error / before if before > 0 else 0.0
    return Gain(
        loss_before=loss_before,
        loss_after=loss_after,
        gain=_floor_millionths(relative),
        bound=_floor_millionths(bound),
        z_score=_floor_millionths(drop / error) if error > 0 else Millionths(0),
    )
