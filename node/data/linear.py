"""The linear study of Train 'n Trade (§6.1.3), generated from a seed.

True parameters and inputs are standard normal, and a value is their product. Agent A holds
500 rows, fewer than there are parameters; agent B holds 800, but of variance .5 is the noise
in its values. The rows to test with have none.

Numbers are rounded to 2⁻¹² first: then every product and every sum in float64 is exact, in
whatever order it is taken, so that all machines generate the same rows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.data.files import DataError
from node.data.rows import Dataset, Rows
from node.data.streams import stream

NAME: Final = "linear"
FEATURES: Final = 1_000
HOLDINGS: Final = (500, 800)
"""Rows of A and of B."""
NOISE_VARIANCES: Final = (0.0, 0.5)
TEST_ROWS: Final = 10_000
_PARTS: Final = 2**12


def load_linear(seed: int) -> Dataset:
    """Return the study's rows for `seed` (0 or more): 1,300 and 10,000 rows of 1,000."""
    if seed < 0:
        raise DataError(f"a seed is 0 or more, got {seed}")
    truth_F = true_parameters(seed)
    parts = [
        draw_linear(seed, 1 + agent, rows, truth_F, variance)
        for agent, (rows, variance) in enumerate(zip(HOLDINGS, NOISE_VARIANCES, strict=True))
    ]
    return Dataset(
        name=NAME,
        train=Rows(
            inputs_RF=np.concatenate([part.inputs_RF for part in parts]),
            targets_R=np.concatenate([part.values_R for part in parts]),
        ),
        test=draw_linear(seed, 1 + len(HOLDINGS), TEST_ROWS, truth_F, 0.0),
        classes=0,
        holdings=HOLDINGS,
    )


def true_parameters(seed: int, *, distance: float = 0.0) -> NDArray[np.float64]:
    """Return the parameters θ* [1,000] behind the values of `seed`'s rows.

    With a `distance` those of another task: so far from them, to the rounding of numbers, in a
    direction that the seed draws.
    """
    truth_F = _normal(seed, 0, FEATURES)
    if not distance:
        return truth_F
    direction_F = stream(seed, 6, 0, 3).standard_normal(FEATURES)
    moved_F = truth_F + distance * direction_F / np.linalg.norm(direction_F)
    rounded: NDArray[np.float64] = np.rint(moved_F * _PARTS) / _PARTS
    return rounded


def _normal(seed: int, part: int, *shape: int) -> NDArray[np.float64]:
    numbers = stream(seed, 6, part, 1).standard_normal(shape)
    rounded: NDArray[np.float64] = np.rint(numbers * _PARTS) / _PARTS
    return rounded


def draw_linear(
    seed: int, part: int, rows: int, truth_F: NDArray[np.float64], variance: float
) -> Rows:
    """Return `rows` rows with values of `truth_F` [1,000], under noise of `variance`.

    `part` tells apart what one seed draws: 1 and 2 are A's and B's rows, 3 those to test with.
    """
    inputs_RF = _normal(seed, part, rows, FEATURES)
    noise_R = stream(seed, 6, part, 2).standard_normal(rows)
    values_R = inputs_RF @ truth_F + variance**0.5 * noise_R
    return Rows(inputs_RF=inputs_RF.astype(np.float32), targets_R=values_R.astype(np.float32))
