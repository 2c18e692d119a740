"""What the broker measured in one trial: the private half of a receipt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from node.protocol import cbor
from node.protocol.errors import RemoteProtocolError
from node.protocol.schema import Message, to_map
from node.protocol.types import ONE, Digest, Millionths


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Message):
    """One trial, replayable by whoever holds both weights and the rows.

    Losses are in billionths of a nat; `gain` and `bound` are relative drops of the loss.
    """

    task: str
    architecture: str
    method: str
    base_root: Digest
    """The buyer's own weights."""
    sold_root: Digest
    merged_root: Digest
    """What the buyer gets when it applies the recipe; it checks."""
    recipe_hash: Digest
    alpha: Millionths
    notice_digest: Digest
    validation_root: Digest
    seed: Digest
    choice_rows: int
    """Rows on which α was chosen."""
    score_rows: int
    """Other rows, on which the gain was scored."""
    loss_before: int
    loss_after: int
    gain: Millionths
    bound: Millionths
    """One-sided 95% lower bound of `gain`, paired over rows."""
    code_version: str

    @property
    def hash(self) -> Digest:
        """The commitment that stands in the public receipt."""
        return Digest(hashlib.sha256(cbor.encode(to_map(self))).digest())


def check_measured(gain: Millionths, bound: Millionths, alpha: Millionths) -> None:
    """Raise `RemoteProtocolError` for what no measurement can give: money hangs on these."""
    if not (bound <= gain <= ONE and 0 <= alpha <= ONE):
        raise RemoteProtocolError(
            "impossible-measurement", f"gain {gain}, bound {bound}, alpha {alpha}"
        )


def check_evaluation(evaluation: Evaluation) -> None:
    """Raise `RemoteProtocolError` unless the gain is the relative drop of these very losses."""
    check_measured(evaluation.gain, evaluation.bound, evaluation.alpha)
    before, after = evaluation.loss_before, evaluation.loss_after
    # both losses are rounded to a billionth, and the gain to a millionth
    if abs(evaluation.gain * before - (before - after) * ONE) > 2 * max(before, ONE):
        raise RemoteProtocolError(
            "impossible-measurement",
            f"a gain of {evaluation.gain} from loss_before {before} to loss_after {after}",
        )


def rows_due(committed: int, *, shared: bool) -> tuple[int, int]:
    """Return how many of the committed rows choose α, and how many score the gain.

    A half of them chooses, and the other half scores; or, if they are `shared`, all do both. Any
    other numbers are other rows, which a broker could choose once it has seen the weights.
    """
    half = committed // 2
    return (committed, committed) if shared else (half, committed - half)


def trial_seed(notice_seed: Digest, base_root: Digest, sold_root: Digest) -> Digest:
    """Draw a trial's seed, so that the broker cannot pick rows once it has seen weights."""
    return Digest(hashlib.sha256(notice_seed + base_root + sold_root).digest())
