"""Shapley values of many parties by sampling subsets, with confidence intervals.

Half of the evaluations go to antithetic permutations: each random order is walked forwards
and backwards, and the mean of the two marginal contributions is one sample. The other half
go to paired KernelSHAP in its unbiased form: subsets are drawn with the Shapley kernel, each
with its complement, and

    ψ = (b − b̄)/(½ − α) + v(M)/M,     b = E[z·v(z)],

α being the chance that two given parties are both in z, so each pair is again one sample and
the central limit theorem gives the interval. It is run on what is left of the game when the
additive game of the first half's estimate is taken off, which costs nothing (Shapley values
are linear) and leaves it unbiased and uncorrelated with the first. The two estimates are
combined by the inverse of their variances, with one weight for all parties: both sum to v(M),
so the combination does.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.gain_cache import MAX_PARTIES, OnceGain
from broker_node.mechanisms.reading import Floats

MIN_PARTIES: Final = 3
MIN_CONFIDENCE: Final = 0.5
MAX_CONFIDENCE: Final = 0.999
MIN_SAMPLES: Final = 8
"""Permutation pairs, and subset pairs, with which an interval means something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Shapley values (M) with their intervals; they sum to v(M) exactly, up to rounding."""

    psi: Floats
    low: Floats
    high: Floats
    confidence: float
    """Of each party's interval by itself."""
    evaluations: int
    """Distinct subsets whose performance was needed."""


def least_evaluations(parties: int) -> int:
    """Return the smallest budget that gives `MIN_SAMPLES` of either kind."""
    return parties + 1 + 2 * MIN_SAMPLES * 2 * (parties - 2)


def estimate(
    gain: OnceGain, parties: int, *, evaluations: int, seed: int, confidence: float = 0.95
) -> Estimate:
    """Return ψ of the replication-robust game, from at most `evaluations` subsets.

    Raises `RefusedInputError` for fewer than 3 or more than 256 parties, too few evaluations,
    and a confidence outside 0.5 … 0.999.
    """
    if not MIN_PARTIES <= parties <= MAX_PARTIES:
        raise RefusedInputError("parties", f"must be {MIN_PARTIES} … {MAX_PARTIES}, got {parties}")
    if not MIN_CONFIDENCE <= confidence <= MAX_CONFIDENCE:
        raise RefusedInputError(
            "confidence", f"must be {MIN_CONFIDENCE} … {MAX_CONFIDENCE}, got {confidence}"
        )
    if seed < 0:
        raise RefusedInputError("seed", f"must be at least 0, got {seed}")
    if evaluations < least_evaluations(parties):
        raise RefusedInputError(
            "evaluations", f"must be at least {least_evaluations(parties)}, got {evaluations}"
        )
    generator = np.random.Generator(np.random.Philox(seed))
    alone = np.array([gain(1 << party) for party in range(parties)])
    half = (evaluations - parties - 1) // 2
    walked = _antithetic(gain, parties, half // (2 * (parties - 2)), generator)
    kernel = _paired_kernel(gain, walked.mean(axis=0), half // 2, generator)
    noise_walked, noise_kernel = _variance_of_mean(walked), _variance_of_mean(kernel)
    both = noise_walked.sum() + noise_kernel.sum()
    weight = noise_kernel.sum() / both if both > 0 else 0.5
    weighted = weight * walked.mean(axis=0) + (1 - weight) * kernel.mean(axis=0)
    noise = weight**2 * noise_walked + (1 - weight) ** 2 * noise_kernel
    # the weight is estimated too: the degrees of freedom are those of the smaller half
    freedom = min(len(walked), len(kernel)) - 1
    reach = student_quantile(0.5 + confidence / 2, freedom) * np.sqrt(noise)
    psi = weighted - alone
    return Estimate(
        psi=psi, low=psi - reach, high=psi + reach, confidence=confidence, evaluations=len(gain)
    )


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t by the Cornish–Fisher expansion to 1/ν³.

    Within 1% from 7 degrees of freedom on, for probabilities up to 0.9995 (Abramowitz and
    Stegun 26.7.5); scipy's would cost a second of import time.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / float(freedom) ** power for power, term in enumerate(terms)))


def _variance_of_mean(samples_NM: Floats) -> Floats:
    variance: Floats = samples_NM.var(axis=0, ddof=1) / len(samples_NM)
    return variance


def _mask(members: npt.NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(members, bitorder="little").tobytes(), "little")


def _weighted(gain: OnceGain, subset: int) -> float:
    """Return (1 + |S|)·G(S), the game whose Shapley values less G({i}) are ψ."""
    return (1 + subset.bit_count()) * gain(subset)


def _antithetic(gain: OnceGain, parties: int, pairs: int, generator: np.random.Generator) -> Floats:
    """Return one sample of the marginal contributions a pair of orders, (pairs, M)."""
    samples = np.zeros((pairs, parties))
    for pair in range(pairs):
        order = generator.permutation(parties)
        for walk in (order, order[::-1]):
            subset, before = 0, 0.0
            for party in walk:
                subset |= 1 << int(party)
                after = _weighted(gain, subset)
                samples[pair, party] += (after - before) / 2
                before = after
    return samples


def _paired_kernel(
    gain: OnceGain, additive_M: Floats, pairs: int, generator: np.random.Generator
) -> Floats:
    """Return one KernelSHAP estimate a pair of complements, (pairs, M)."""
    parties = len(additive_M)
    sizes = np.arange(1, parties)
    chance = 1 / (sizes * (parties - sizes))
    chance /= chance.sum()
    together = float((chance * sizes * (sizes - 1)).sum() / (parties * (parties - 1)))
    whole = _weighted(gain, (1 << parties) - 1)
    left = whole - float(additive_M.sum())
    samples = np.empty((pairs, parties))
    for pair, size in enumerate(generator.choice(sizes, size=pairs, p=chance)):
        inside = np.zeros(parties, dtype=bool)
        inside[generator.permutation(parties)[:size]] = True
        value, other = (
            _weighted(gain, _mask(side)) - float(additive_M[side].sum())
            for side in (inside, ~inside)
        )
        met = (inside * value + ~inside * other) / 2
        samples[pair] = additive_M + (met - met.mean()) / (0.5 - together) + left / parties
    return samples
