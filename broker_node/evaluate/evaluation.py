"""The fourth stage: an aligned pair with its merge weight chosen and its gain measured.

α, and the shares of rows where the merge has them, are chosen on one half of the drawn rows and
the gain scored on the other, so that the choice does not flatter the score. All of it is a
function of the pair, the rows and the seed; `replay` computes the scored half again from a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import ON_CPU, Between, LossCurve, Model, Runner
from broker_node.evaluate.doubts import valleys
from broker_node.evaluate.gain import Gain, paired_gain
from broker_node.evaluate.methods import merging_for
from broker_node.evaluate.residents import Residence
from broker_node.evaluate.search import SEARCHES
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.merge import lerp
from broker_node.merge.registry import TRADED
from broker_node.merge.stages import Fitted, MergeError, Rows
from node.params.architecture import Architecture
from node.params.encoding import weights_root
from node.params.families.shapes import Shapes
from node.params.permutation import Tensors
from node.params.recipe import Recipe, apply_recipe
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Digest, Millionths

DEFAULT_SEARCH: Final = "halving-brent"
QUADRATIC_SEARCH: Final = "exact-quadratic"


_SETTINGS: Final = ("alignment", "alpha_search", "merging")
"""Of a broker, in the order in which a method names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What one trial found; integers only, so that it can be signed."""

    architecture: str
    method: str
    """The alignment method."""
    search: str
    """The α search."""
    merging: str = lerp.NAME
    """What came after it, of `broker_node.merge.registry.TRADED`."""
    base_root: Digest
    sold_root: Digest
    merged_root: Digest
    """Of what the buyer gets by applying `recipe`."""
    recipe: Recipe
    validation_root: Digest
    seed: Digest
    choice_rows: int
    score_rows: int
    loss_before: int
    """Of the buyer's model on the scored rows, in billionths (of a nat, or a squared unit)."""
    loss_after: int
    """Of the merged model on the same rows."""
    gain: Millionths
    bound: Millionths
    z_score: Millionths
    row_evaluations: int
    """Forward passes of one row, choosing and scoring together."""
    valleys: int = 1
    """Of the loss between both models, as far as the search looked."""

    @property
    def named(self) -> str:
        """All that was done, as it is signed; a line is not named, which every merge begins as."""
        done = [self.method, self.search]
        return "+".join(done if self.merging == lerp.NAME else [*done, self.merging])

    @property
    def alpha(self) -> Millionths:
        """The merge weight: 0 is no trade, one million buys outright."""
        return self.recipe.alpha


def apart(named: str, other: str) -> dict[str, tuple[str, str]]:
    """Return by the name of the setting what differs between two methods, `Evaluated.named` each.

    What is no such name, as a drill's, is compared whole, as ``method``.
    """
    sides = [each.split("+") for each in (named, other)]
    if any(not 2 <= len(side) <= len(_SETTINGS) for side in sides):
        return {} if named == other else {"method": (named, other)}
    one, two = ([*side, lerp.NAME][: len(_SETTINGS)] for side in sides)
    rows = zip(_SETTINGS, one, two, strict=True)
    return {setting: (ours, theirs) for setting, ours, theirs in rows if ours != theirs}


def _gather(
    validation: ValidationSet, rows: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs_RF and targets_R of the rows."""
    indices_R = torch.from_numpy(rows)
    return validation.inputs_RF[indices_R], validation.targets_R[indices_R]


def _score(
    architecture: Architecture,
    base: Tensors,
    merged: Model,
    inputs_RF: torch.Tensor,
    targets_R: torch.Tensor,
    runner: Runner,
) -> Gain:
    before_R, after_R = (
        runner.losses(architecture, model, inputs_RF, targets_R) for model in (base, merged)
    )
    return paired_gain(before_R, after_R)


def choice_inputs(
    validation: ValidationSet, *, seed: Digest, choice_rows: int, score_rows: int
) -> torch.Tensor:
    """Return the rows that choose in a trial without their targets, inputs_RF.

    Raises `LocalProtocolError` as `draw_rows`.
    """
    drawn = draw_rows(seed, len(validation), choice=choice_rows, score=score_rows)
    return validation.inputs_RF[torch.from_numpy(drawn.choice)]


def require_search(search: str, validation: ValidationSet) -> None:
    """Raise `LocalProtocolError` unless `search` is registered, and suits rows of this kind."""
    if search not in SEARCHES:
        raise LocalProtocolError(f"no search {search!r}; there are {sorted(SEARCHES)}")
    if search == QUADRATIC_SEARCH and not validation.targets_R.is_floating_point():
        raise LocalProtocolError(f"`{search}` is for values, and the rows have classes")


def evaluate(
    aligned: Aligned,
    validation: ValidationSet,
    *,
    seed: Digest,
    choice_rows: int | None = None,
    score_rows: int | None = None,
    search: str = DEFAULT_SEARCH,
    merging: str = lerp.NAME,
    runner: Runner = ON_CPU,
) -> Evaluated:
    """Choose α and measure the gain; half of all rows each, unless told otherwise.

    `merging` is what goes on from α, if the pair and the rows allow for it; what was done is
    told in `merging` of the outcome. Losses, and shares, are what `runner` finds; the merged bytes
    are made here, and are the same for the same recipe with any.

    Raises `LocalProtocolError` if the rows do not suffice, the search is not registered or
    not for such rows, or the architecture computes nothing, and `RemoteProtocolError`
    ``overflows`` if the measured losses are no sane numbers, ``wrong-architecture`` if the
    search cannot do with such a model. Raises `AlignmentError` for an alignment without a
    recipe: nobody could replay it.
    """
    architecture = aligned.buyer.architecture
    if isinstance(architecture.model, Shapes):
        raise LocalProtocolError("tensors of the family `random` cannot be evaluated")
    unsearched = aligned.exact_recipe
    require_search(search, validation)
    choice_rows = len(validation) // 2 if choice_rows is None else choice_rows
    score_rows = len(validation) - choice_rows if score_rows is None else score_rows
    drawn = draw_rows(seed, len(validation), choice=choice_rows, score=score_rows)
    base = aligned.buyer.tensors
    chosen = _gather(validation, drawn.choice)
    curve = LossCurve(architecture, base, aligned.transformed, *chosen, runner=runner)
    alpha = SEARCHES[search](curve)
    merging, fitted = _fitted(merging, aligned, chosen, alpha, runner)
    recipe = unsearched.with_alpha(alpha).with_shares(fitted.shares)
    merged = Between(base, aligned.transformed, alpha, fitted.shares)
    # rows that serve for both are not copied twice
    shared = np.array_equal(drawn.choice, drawn.score)
    scored = chosen if shared else _gather(validation, drawn.score)
    score = _score(architecture, base, merged, *scored, runner)
    return Evaluated(
        architecture=architecture.text,
        method=aligned.method,
        search=search,
        merging=merging,
        base_root=aligned.buyer.weights_root,
        sold_root=aligned.seller.weights_root,
        merged_root=weights_root(merged.tensors()),
        recipe=recipe,
        validation_root=validation.root,
        seed=seed,
        choice_rows=choice_rows,
        score_rows=score_rows,
        loss_before=score.loss_before,
        loss_after=score.loss_after,
        gain=score.gain,
        bound=score.bound,
        z_score=score.z_score,
        row_evaluations=curve.row_evaluations + fitted.row_evaluations + 2 * score_rows,
        valleys=valleys(list(curve.seen().values())),
    )


def _fitted(
    merging: str,
    aligned: Aligned,
    chosen: tuple[torch.Tensor, torch.Tensor],
    alpha: Millionths,
    runner: Runner,
) -> tuple[str, Fitted]:
    """Return the merge that was made, by name, and its shares.

    Rows that nothing can be fitted on, such as of one class alone, leave it at the line.
    """
    if merging not in TRADED:
        raise LocalProtocolError(f"no merge {merging!r}; there are {list(TRADED)}")
    merging = merging_for(merging, aligned)
    if merging == lerp.NAME:
        return merging, Fitted()
    try:
        rows = Rows(*chosen)
    except MergeError:
        return lerp.NAME, Fitted()
    fit = TRADED[merging]

    def there(place: Residence) -> Fitted:
        buyer = replace(aligned.buyer, tensors=place.weights(aligned.buyer.tensors))
        sold = place.weights(aligned.transformed)
        return fit(buyer, sold, Rows(*place.rows(*chosen)), alpha)

    return merging, runner.elsewhere(
        "the fit of shares", there, lambda: fit(aligned.buyer, aligned.transformed, rows, alpha)
    )


def replay(
    architecture: Architecture,
    base: Tensors,
    sold: Tensors,
    recipe: Recipe,
    validation: ValidationSet,
    *,
    seed: Digest,
    choice_rows: int,
    score_rows: int,
    runner: Runner = ON_CPU,
) -> tuple[Digest, Gain]:
    """Return the merged root and the gain of a recipe, computed again by somebody else.

    The root is equal on every machine; losses agree to the rounding of float32 sums.
    Raises `RemoteProtocolError("bad-recipe")` if the recipe does not fit the architecture.
    """
    drawn = draw_rows(seed, len(validation), choice=choice_rows, score=score_rows)
    merged = apply_recipe(architecture, base, sold, recipe)
    scored = _gather(validation, drawn.score)
    return weights_root(merged), _score(architecture, base, merged, *scored, runner)
