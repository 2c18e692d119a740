"""Weight fusion: how a buyer takes up the weights it bought (weight market, Eq. 16).

    w̃ = w + (1/n) Σᵢ λᵢ (wᵢ − w) = (1 − Σλ/n)·w + Σᵢ (λᵢ/n)·wᵢ,     0 <= λᵢ <= 1

a convex combination of the local weights and those of n sellers. The paper says that λᵢ = 1
"entirely replaces the local knowledge with that of seller i"; that is so for n = 1 only.
With more sellers λ = 1 leaves nothing of the local weights and a mean of all the sellers',
and the uniform average of buyer and sellers needs λ = n/(n + 1).

A seller may supply some layers only: n is then, layer by layer, the number of sellers that
supply it, and a layer that nobody supplies stays as it is, as all do for n = 0.

No money moves here, and no property of a market is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from broker_node.mechanisms.base import (
    DEFAULT_TOLERANCE,
    Certificate,
    Claim,
    Issue,
    Json,
    Market,
    Outcome,
    RefusedInputError,
    Status,
)
from broker_node.mechanisms.reading import (
    Floats,
    array,
    issues_of,
    items,
    named,
    require_finite,
    require_keys,
)
from broker_node.mechanisms.stated import misstated_status, stated_array

Weights = npt.NDArray[np.floating]


def fuse(
    local: Weights,
    acquired: Sequence[Weights],
    lam: Sequence[float],
    mask: npt.NDArray[np.bool_] | None = None,
) -> Weights:
    """Return the fused weights of one array, in the shape and type of `local`.

    `acquired` has one array of that shape a seller, `lam` one λ in 0 … 1 a seller. `mask`
    says what each seller supplies; its shape is [seller], [seller][layer] or any longer
    beginning of [seller][…]. The sum is taken in double precision. Raises
    `RefusedInputError` for other shapes, and for weights that are not finite.
    """
    shares = _trade_offs(lam, len(acquired))
    if not np.issubdtype(local.dtype, np.floating):
        raise RefusedInputError("local", f"must be floating point, got {local.dtype}")
    require_finite(np.asarray(local, dtype=np.float64), "local")
    for index, theirs in enumerate(acquired):
        if theirs.shape != local.shape:
            raise RefusedInputError(
                f"acquired[{index}]", f"must have the shape {local.shape}, got {theirs.shape}"
            )
        require_finite(np.asarray(theirs, dtype=np.float64), f"acquired[{index}]")
    if not acquired:
        return local.copy()
    supplied = np.ones(len(acquired), dtype=bool) if mask is None else mask
    _require_mask(supplied.shape, (len(acquired), *local.shape))
    # broadcast from the left: one flag for a layer stands for all of its weights
    supplied = supplied.reshape(supplied.shape + (1,) * (local.ndim + 1 - supplied.ndim))
    sellers = np.maximum(supplied.sum(axis=0), 1)
    kept = 1 - np.tensordot(shares, supplied.astype(np.float64), axes=1) / sellers
    fused = kept * local.astype(np.float64)
    for share, flags, theirs in zip(shares, supplied, acquired, strict=True):
        fused += np.where(flags, share / sellers, 0.0) * theirs.astype(np.float64)
    return np.asarray(fused, dtype=local.dtype)


def fuse_layers(
    local: Mapping[str, Weights], acquired: Sequence[Mapping[str, Weights]], lam: Sequence[float]
) -> dict[str, Weights]:
    """Return a model's fused layers, by name.

    A seller's mapping holds the layers that it supplies; a name that `local` lacks is refused
    (`RefusedInputError`), and so are shapes that differ.
    """
    shares = _trade_offs(lam, len(acquired))
    for index, layers in enumerate(acquired):
        for name in layers:
            if name not in local:
                raise RefusedInputError(f"acquired[{index}]", f"has no counterpart of {name!r:.80}")
    fused = {}
    for name, weights in local.items():
        suppliers = [index for index, layers in enumerate(acquired) if name in layers]
        if not suppliers:
            fused[name] = weights.copy()
            continue
        try:
            fused[name] = fuse(
                weights,
                [acquired[index][name] for index in suppliers],
                [float(shares[index]) for index in suppliers],
            )
        except RefusedInputError as refused:
            raise RefusedInputError(f"{name}: {refused.field}", refused.reason) from refused
    return fused


def _trade_offs(lam: Sequence[float], sellers: int) -> Floats:
    if len(lam) != sellers:
        raise RefusedInputError("lam", f"must have {sellers} items, got {len(lam)}")
    shares = np.asarray(lam, dtype=np.float64).reshape(sellers)
    outside = ~((shares >= 0) & (shares <= 1))
    if outside.any():
        where = int(np.argmax(outside))
        raise RefusedInputError(f"lam[{where}]", f"must be 0 … 1, got {float(shares[where]):g}")
    return shares


def _require_mask(mask: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if not mask or len(mask) > len(shape) or mask != shape[: len(mask)]:
        raise RefusedInputError(
            "mask", f"must have a shape that begins {list(shape)}, got {list(mask)}"
        )


def _read(market: Market) -> tuple[Floats, list[Floats], list[float], npt.NDArray[np.bool_]]:
    require_keys(market, ("local", "acquired", "lam"), ("mask",))
    local = array(market["local"], "local")
    if local.size == 0:
        raise RefusedInputError("local", "has no weights")
    theirs = items(market["acquired"], "acquired")
    acquired = [
        array(weights, f"acquired[{index}]", local.shape) for index, weights in enumerate(theirs)
    ]
    lam = array(market["lam"], "lam", (len(acquired),))
    _trade_offs([float(share) for share in lam], len(acquired))
    given = market.get("mask")
    mask = np.ones(len(acquired), dtype=bool) if given is None else _flags(given)
    if acquired:
        _require_mask(mask.shape, (len(acquired), *local.shape))
    elif mask.size:
        raise RefusedInputError("mask", "must be empty where nothing was acquired")
    return local, acquired, [float(share) for share in lam], mask


def _flags(value: Json) -> npt.NDArray[np.bool_]:
    flags = array(_as_numbers(value), "mask")
    other = (flags != 0) & (flags != 1)
    if other.any():
        where = np.argwhere(other)[0]
        raise RefusedInputError(named("mask", where), "must be true or false")
    return flags.astype(bool)


def _as_numbers(value: Json, depth: int = 0) -> Json:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list) and depth <= 8:
        return [_as_numbers(item, depth + 1) for item in value]
    return value


class Fusion:
    """Eq. 16 on one array of weights; nothing is random."""

    name = "fusion"
    claims: frozenset[Claim] = frozenset()

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(_read, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return `fused`; `no_trade` where no seller supplies anything."""
        local, acquired, lam, mask = _read(market)
        fused = fuse(local, acquired, lam, mask if acquired else None)
        return Outcome(
            status=Status.TRADE if mask.any() else Status.NO_TRADE,
            values={"fused": fused.tolist()},
        )

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge Eq. 16 itself, entry by entry: n·(w̃ − w) = Σ λᵢ (wᵢ − w), over the scale."""
        local, acquired, lam, mask = _read(market)
        fused = stated_array(outcome, "fused", local.shape)
        scale = max(
            1e-300, *(float(np.abs(weights).max()) for weights in (local, fused, *acquired))
        )
        local, fused = local / scale, fused / scale
        sellers = np.zeros(local.shape)
        moved = np.zeros(local.shape)
        lowest, highest = local.copy(), local.copy()
        for index in range(len(acquired)):
            theirs = acquired[index] / scale
            flags = np.zeros(local.shape, dtype=bool)
            flags[...] = mask[index].reshape(
                mask[index].shape + (1,) * (local.ndim - mask.ndim + 1)
            )
            sellers[flags] += 1
            moved[flags] += lam[index] * (theirs - local)[flags]
            lowest[flags] = np.minimum(lowest, theirs)[flags]
            highest[flags] = np.maximum(highest, theirs)[flags]
        equation = np.where(sellers > 0, sellers * (fused - local) - moved, fused - local)
        return Certificate(
            violations={
                "equation": float(np.abs(equation).max()) / max(1, len(acquired)),
                "convexity": max(
                    0.0, float((lowest - fused).max()), float((fused - highest).max())
                ),
                "status": misstated_status(outcome, trades=bool(mask.any())),
            },
            tolerance=DEFAULT_TOLERANCE,
        )
