"""The methods that a trial goes through: those of the registries, called by name.

What a method can be told depends on its version: rows without labels, or a common ancestor, are
handed to those that take them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from broker_node.align.identity import NAME as IDENTITY
from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import ON_CPU, LossCurve, Runner
from broker_node.evaluate.evaluation import DEFAULT_SEARCH, QUADRATIC_SEARCH
from broker_node.evaluate.methods import Method, usual
from broker_node.evaluate.residents import Residence
from broker_node.evaluate.search import SEARCHES
from broker_node.trying.errors import TryError
from broker_node.verify.stages import Verified
from node.params.permutation import Tensors
from node.params.recipe import Recipe, interpolate
from node.protocol.errors import MarketError
from node.protocol.kinship import kin
from node.protocol.types import ONE, Millionths

LERP: Final = "lerp"
OUTRIGHT: Final = "outright"
ENSEMBLE: Final = "ensemble"
CHAIN: Final = "lerp in turn"
"""Of several sellers: the next is merged into what the last one made."""
_REGISTRY: Final = "broker_node.merge"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows with their targets, as a merge method is handed them."""

    inputs_RF: torch.Tensor = field(repr=False)
    targets_R: torch.Tensor = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """What a merge method gave: a model, and the recipe that makes it if one does."""

    tensors: Tensors | None = field(repr=False)
    recipe: Recipe | None = field(repr=False)
    row_evaluations: int


Merger = Callable[[Sequence[Aligned], Rows], Product]


def best_alpha(curve: LossCurve) -> Millionths:
    """Return the α of lowest loss: where the loss is a parabola exactly, else by the search."""
    return SEARCHES[QUADRATIC_SEARCH if curve.quadratic else DEFAULT_SEARCH](curve)


def curve_of(buyer: Verified, other: Tensors, rows: Rows, *, runner: Runner = ON_CPU) -> LossCurve:
    """Return the loss from the buyer's model to `other` along a straight line."""
    return LossCurve(
        buyer.architecture, buyer.tensors, other, rows.inputs_RF, rows.targets_R, runner=runner
    )


def _lerp(aligned: Sequence[Aligned], rows: Rows) -> Product:
    (pair,) = aligned
    curve = curve_of(pair.buyer, pair.transformed, rows)
    return _at(pair, best_alpha(curve), curve.row_evaluations)


def _outright(aligned: Sequence[Aligned], _rows: Rows) -> Product:
    (pair,) = aligned
    return _at(pair, Millionths(ONE), 0)


def _at(pair: Aligned, alpha: Millionths, row_evaluations: int) -> Product:
    recipe = recipe_of(pair)
    return Product(
        tensors=interpolate(pair.buyer.tensors, pair.transformed, alpha),
        recipe=None if recipe is None else recipe.with_alpha(alpha),
        row_evaluations=row_evaluations,
    )


def recipe_of(aligned: Aligned) -> Recipe | None:
    """Return the alignment's recipe; None where T(sold) is more than permuted and scaled."""
    return aligned.recipe


def usual_of(buyer: Verified, seller: Verified) -> Method | None:
    """Return what a market's broker would do of both unless told otherwise; None if nothing.

    Nothing is done of two architectures, or of a module whose symmetries cannot be read.
    """
    if kin(seller.architecture.text) != kin(buyer.architecture.text):
        return None
    try:
        return usual(seller)
    except MarketError:
        return None


def aligners(chosen: Sequence[str] = (), *, adapters: bool = False) -> list[str]:
    """Return the alignment methods to go through. Raises `TryError` for an unknown one.

    Of `adapters` that is none but `identity`: their units are those of one base.
    """
    return _chosen("--align", chosen, [IDENTITY] if adapters else list(ALIGNERS))


def mergers(
    chosen: Sequence[str] = (),
    *,
    seed: int = 0,
    ancestor: Verified | None = None,
    adapters: bool = False,
) -> dict[str, Merger]:
    """Return the merge methods to go through, by name. Raises `TryError` for an unknown one.

    `lerp` and `outright` are as above; all others are those of the registry of merge methods, and
    make no `adapters`. `ensemble` may be chosen, and makes no model: a trial scores it anyway.
    """
    known: dict[str, Merger] = {LERP: _lerp, OUTRIGHT: _outright}
    if not adapters and importlib.util.find_spec(_REGISTRY) is not None:
        module = importlib.import_module(f"{_REGISTRY}.registry")
        stages = importlib.import_module(f"{_REGISTRY}.stages")
        for name, merger in module.MERGERS.items():
            if name not in {LERP, OUTRIGHT, ENSEMBLE}:
                known[name] = _registered(merger, stages.Rows, seed, ancestor)
    named = _chosen("--merge", chosen, [*known, ENSEMBLE])
    return {name: known[name] for name in named if name != ENSEMBLE}


def _registered(merger: Any, rows_type: Any, seed: int, ancestor: Verified | None) -> Merger:
    def merge(aligned: Sequence[Aligned], rows: Rows) -> Product:
        more = {"base": ancestor} if ancestor is not None and _takes(merger, "base") else {}
        found = merger(aligned, rows_type(rows.inputs_RF, rows.targets_R), seed=seed, **more)
        return Product(
            tensors=found.tensors, recipe=found.recipe, row_evaluations=found.row_evaluations
        )

    return merge


def align(
    name: str,
    buyer: Verified,
    seller: Verified,
    probe_RF: torch.Tensor,
    *,
    seed: int,
    runner: Runner = ON_CPU,
) -> Aligned:
    """Line a seller's units up with the buyer's; raises `AlignmentError`.

    `probe_RF` are rows of the choice half, without their labels. A method that can be told of a
    device is computed on the runner's.
    """
    aligner: Any = ALIGNERS[name]
    more: Mapping[str, Any] = {"probe_RF": probe_RF} if _takes(aligner, "probe_RF") else {}

    def here() -> Aligned:
        found: Aligned = aligner(buyer, seller, seed=seed, **more)
        return found

    def there(place: Residence) -> Aligned:
        found: Aligned = aligner(buyer, seller, seed=seed, device=place.device, **more)
        return found

    return runner.elsewhere(name, there, here) if _takes(aligner, "device") else here()


def _takes(method: Any, parameter: str) -> bool:
    return parameter in inspect.signature(method).parameters


def _chosen(flag: str, chosen: Sequence[str], known: list[str]) -> list[str]:
    for name in chosen:
        if name not in known:
            raise TryError(f"{flag} {name!r:.40}: there are {', '.join(known)}")
    return [name for name in known if not chosen or name in chosen]
