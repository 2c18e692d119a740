"""Shapley values of a game over few parties, given by the value of every subset.

A subset is a bitmask (bit i = party i) and a game an array of length 2^M, in that order; more
axes in front are more games. `shapley_values` weighs all subsets in one product with the
membership matrix. `shapley_by_dividends` gets the same from the Harsanyi dividends, which
it finds by a fast Möbius transform; a certificate uses it.

The replication-robust game of Ohrimenko, Tople and Tschiatschek (§4) over the performance
G(S) of the model trained on the data of S:

    v(S) = G(S) + Σ_{j∈S} (G(S) − G({j})),     v(∅) = 0

so ψ_i = Shapley_i[(1 + |S|)·G(S)] − G({i}), the bracket being 0 at ∅ whatever G(∅) is: only
performances of subsets are needed.
"""

from __future__ import annotations

from functools import lru_cache
from math import factorial
from typing import Final

import numpy as np

from broker_node.mechanisms.reading import Floats

MAX_EXACT: Final = 12
"""Parties up to which the market evaluates every subset: 4,096 trained models."""


@lru_cache(maxsize=32)
def _membership(parties: int) -> tuple[Floats, Floats]:
    """Return who is in each subset (2^M × M), and each subset's size (2^M)."""
    subsets = np.arange(1 << parties)[:, None]
    inside = ((subsets >> np.arange(parties)) & 1).astype(np.float64)
    size = inside.sum(axis=1)
    inside.setflags(write=False)
    size.setflags(write=False)
    return inside, size


def parties_of(game: Floats) -> int:
    """Return M of a game of 2^M values."""
    return int(game.shape[-1]).bit_length() - 1


def shapley_values(game: Floats) -> Floats:
    """Return the Shapley values (…, M) of games (…, 2^M)."""
    parties = parties_of(game)
    inside, size = _membership(parties)
    weights = [
        factorial(s) * factorial(parties - s - 1) / factorial(parties) for s in range(parties)
    ]
    # of a subset of size s: what joining it weighs (0 for the whole), and what having joined does
    joining = np.array([*weights, 0.0])[size.astype(np.intp)]
    joined = np.array([0.0, *weights])[size.astype(np.intp)]
    values: Floats = (game * (joining + joined)) @ inside - (game @ joining)[..., None]
    return values


def replication_robust(performance: Floats) -> Floats:
    """Return ψ (…, M) of the replication-robust game, from performances (…, 2^M)."""
    parties = parties_of(performance)
    _, size = _membership(parties)
    weighted = (1 + size) * performance
    weighted[..., 0] = 0
    psi: Floats = shapley_values(weighted) - performance[..., 1 << np.arange(parties)]
    return psi


def robust_game(performance: Floats) -> Floats:
    """Return v (2^M) of the definition, subset by subset, from performances (2^M)."""
    parties = len(performance).bit_length() - 1
    game = np.zeros(len(performance))
    for subset in range(1, len(performance)):
        members = [party for party in range(parties) if subset >> party & 1]
        game[subset] = performance[subset] + sum(
            performance[subset] - performance[1 << party] for party in members
        )
    return game


def shapley_by_dividends(game: Floats) -> Floats:
    """Return the Shapley values (M) of one game (2^M): each subset's dividend in equal parts."""
    parties = len(game).bit_length() - 1
    dividend = game.astype(np.float64)
    for party in range(parties):
        halves = dividend.reshape(-1, 2, 1 << party)  # without and with the party
        halves[:, 1] -= halves[:, 0]
    return np.array(
        [
            sum(
                dividend[subset] / subset.bit_count()
                for subset in range(1 << parties)
                if subset >> party & 1
            )
            for party in range(parties)
        ]
    )
