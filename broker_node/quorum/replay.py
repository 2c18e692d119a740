"""A trial measured again, by somebody who holds both models and the rows.

Permutation, scales and α are the recipe's, so that the merged bytes must be equal; only the losses
are computed anew. Pure compute.
"""

from __future__ import annotations

import hashlib
from typing import NoReturn

from broker_node.evaluate.adapters import replay_pair
from broker_node.evaluate.curve import ON_CPU, Runner
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.stages import Verified
from node.params.encoding import weights_root
from node.params.recipe import Recipe, apply_recipe
from node.protocol.errors import RemoteProtocolError
from node.protocol.evaluation import Evaluation, rows_due
from node.protocol.kinship import kin
from node.protocol.quorum import Figure
from node.protocol.types import Digest


def check_models(subject: Evaluation, base: Verified, sold: Verified) -> None:
    """Raise `RemoteProtocolError` unless these are the models that were measured."""
    for field, said, found in (
        ("architecture", kin(subject.architecture), kin(base.architecture.text)),
        ("architecture", subject.architecture, sold.architecture.text),
        ("base_root", subject.base_root.hex(), base.weights_root.hex()),
        ("sold_root", subject.sold_root.hex(), sold.weights_root.hex()),
    ):
        if said != found:
            differs(field, said, found)
    if base.layers:
        differs("base_root", "a whole model", f"layers {list(base.layers)}")


def check_recipe(subject: Evaluation, recipe: bytes) -> Recipe:
    """Return the recipe that was measured. Raises `RemoteProtocolError`."""
    found = Digest(hashlib.sha256(recipe).digest())
    if found != subject.recipe_hash:
        differs("recipe_hash", subject.recipe_hash.hex(), found.hex())
    read = Recipe.decode(recipe)
    if read.alpha != subject.alpha:
        differs("alpha", subject.alpha, read.alpha)
    return read


def check_merged(subject: Evaluation, merged_root: Digest) -> None:
    """Raise `RemoteProtocolError` unless the recipe gave the bytes that were measured."""
    if merged_root != subject.merged_root:
        differs("merged_root", subject.merged_root.hex(), merged_root.hex())


def replayed(
    subject: Evaluation,
    recipe: bytes,
    base: Verified,
    sold: Verified,
    validation: ValidationSet,
    *,
    runner: Runner = ON_CPU,
) -> Figure:
    """Return the figure of a trial, on our own rows.

    Raises `RemoteProtocolError` whose reason is the field that does not hold, with what was said
    and what was found.
    """
    check_models(subject, base, sold)
    read = check_recipe(subject, recipe)
    if subject.validation_root != validation.root:
        differs("validation_root", subject.validation_root.hex(), validation.root.hex())
    drawn, total = (subject.choice_rows, subject.score_rows), len(validation)
    due = [rows_due(total, shared=shared) for shared in (False, True)]
    if drawn not in due:
        differs("score_rows", drawn, f"{due[0]}, or {due[1]}")
    merged_root, gain = replay_pair(
        base,
        sold,
        read,
        validation,
        seed=subject.seed,
        choice_rows=subject.choice_rows,
        score_rows=subject.score_rows,
        runner=runner,
    )
    check_merged(subject, merged_root)
    return Figure(
        loss_before=gain.loss_before,
        loss_after=gain.loss_after,
        gain=gain.gain,
        bound=gain.bound,
    )


def merged_again(subject: Evaluation, recipe: bytes, base: Verified, sold: Verified) -> None:
    """Check the merged bytes alone, of models that compute nothing. Raises as `replayed`."""
    check_models(subject, base, sold)
    read = check_recipe(subject, recipe)
    merged = apply_recipe(base.architecture, base.tensors, sold.tensors, read)
    check_merged(subject, weights_root(merged))


def differs(field: str, said: object, found: object) -> NoReturn:
    """Raise `RemoteProtocolError` naming a field and both values."""
    reason = field.replace("_", "-")
    raise RemoteProtocolError(reason, f"{field} is said to be {said}, and is {found}"[:400])
