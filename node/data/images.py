"""Images of bytes as rows of normalised features."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.data.files import DataError

LEVELS: Final = 256
_BLOCK: Final = 4096
"""Rows that are worked on at once: what lies between bytes and float32 stays small."""


def normalised(
    pixels: NDArray[np.uint8] | NDArray[np.float64], top: float, mean: float, std: float
) -> NDArray[np.float32]:
    """Return R x F features: pixels over `top`, less `mean`, over `std`."""
    flat_RF = pixels.reshape(len(pixels), -1).astype(np.float32)
    normalised_RF: NDArray[np.float32] = (
        flat_RF / np.float32(top) - np.float32(mean)
    ) / np.float32(std)
    return normalised_RF


def channel_levels(train_RCP: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return levels_CV: what the byte V of channel C becomes, by the rows' own mean and std.

    Sums are of integers, so the levels are the same on every machine. Raises `DataError` for
    a channel of one colour.
    """
    channels = train_RCP.shape[1]
    counts_CV = np.zeros((channels, LEVELS), dtype=np.int64)
    for start in range(0, len(train_RCP), _BLOCK):
        block_RCP = train_RCP[start : start + _BLOCK]
        for channel in range(channels):
            counts_CV[channel] += np.bincount(block_RCP[:, channel].ravel(), minlength=LEVELS)
    values = np.arange(LEVELS, dtype=np.int64)
    levels_CV = np.empty((channels, LEVELS), dtype=np.float32)
    for channel, counts_V in enumerate(counts_CV):
        total = int(counts_V.sum())
        mean = int((counts_V * values).sum()) / total
        variance = int((counts_V * values * values).sum()) / total - mean * mean
        if variance <= 0:
            raise DataError(f"channel {channel} of the images is of one colour")
        levels_CV[channel] = (values - mean) / variance**0.5
    return levels_CV


def with_levels(
    pixels_RCP: NDArray[np.uint8], levels_CV: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return R x (C·P) features, channel after channel, as `channel_levels` says."""
    rows, channels, size = pixels_RCP.shape
    features_RCP = np.empty((rows, channels, size), dtype=np.float32)
    for start in range(0, rows, _BLOCK):
        block = slice(start, start + _BLOCK)
        for channel in range(channels):
            features_RCP[block, channel] = levels_CV[channel][pixels_RCP[block, channel]]
    return features_RCP.reshape(rows, channels * size)
