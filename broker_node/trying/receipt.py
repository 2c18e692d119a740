"""What a trial measured, as a broker would have signed it, so that anybody may measure it again.

The evaluation is that of the market's receipts, field for field, with these meanings:

`task`           what the rows are (`Described.text`)
`method`         alignment and merge, ``weight-matching+lerp``
`sold_root`      of the seller's model; of several, SHA-256 of their roots one after another
`recipe_hash`    SHA-256 of the recipes one after another: of a single one, its own hash
`alpha`          the share that is not the buyer's, 1 − Π(1 − α); 0 where there is no recipe
`notice_digest`  32 zeros: no broker has published terms
`seed`           drawn of the user's seed and the rows (`broker_node.trying.trial.split_seed`)

The merged bytes are made again from the recipes, or, where a method has none, are those of the
merged file; the losses are measured again. A signature, where there is one, says who vouches.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker_node.appraisal import CODE_VERSION
from broker_node.evaluate.gain import Gain, paired_gain
from broker_node.evaluate.validation import ValidationSet
from broker_node.quorum.replay import differs
from broker_node.trying.making import Candidate, Step, made_by, share_of
from broker_node.trying.scoring import score
from broker_node.trying.trial import Trial, split, split_seed
from broker_node.verify.computing import computing
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture
from node.params.encoding import weights_root
from node.params.merges import is_adapter
from node.params.permutation import Tensors
from node.params.recipe import NO_ALIGNMENT, Recipe
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.evaluation import Evaluation, check_evaluation
from node.protocol.quorum import (
    BOUND_TOLERANCE,
    GAIN_TOLERANCE,
    Figure,
    figure_of,
    gain_is_close,
    loss_is_close,
)
from node.protocol.signing import address_of, recover, sign_digest
from node.protocol.types import Address, Digest

NO_NOTICE: Final = Digest(bytes(32))
NO_MERGE: Final = "none"
"""The method of a trial in which nothing gained: the buyer's model stays as it is."""
MAX_SELLERS: Final = 64
_SIGNED: Final = b"pm-node try: a receipt, 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Which rows were measured on, in the words that give them again."""

    name: str
    label: str
    normalise: str

    @property
    def text(self) -> str:
        """The task of the evaluation."""
        return f"try: {self.name}; label {self.label}; normalise {self.normalise}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReceipt:
    """One merge that was measured, with all that is needed to measure it again."""

    evaluation: Evaluation
    seed: int
    rows: Described
    sold_roots: tuple[Digest, ...]
    steps: tuple[Step, ...]
    """Which sold model is merged by which recipe, in order; none where no recipe makes it."""
    evaluation_hash: Digest
    account: Address | None
    signature: bytes | None


def receipt_of(
    trial: Trial,
    buyer: Verified,
    sellers: Sequence[Verified],
    validation: ValidationSet,
    *,
    seed: int,
    rows: Described,
    account_key: bytes | None = None,
) -> TrialReceipt:
    """Return the receipt of the best merge, signed if a key is given.

    Where nothing gained, that of the buyer's model as it is. `buyer` and `sellers` are what is
    merged: of adapters these, and not the whole models that were tried.
    """
    chosen = None if trial.best is None else trial.candidates[trial.best]
    tensors, gain, places, steps = _told(trial, chosen, buyer)
    if is_adapter(buyer.architecture):
        tensors = merged_adapter(trial, buyer, sellers)[1]
    roots = tuple(sellers[place].weights_root for place in places)
    evaluation = Evaluation(
        task=rows.text,
        architecture=buyer.architecture.text,
        method=NO_MERGE if chosen is None else f"{chosen.align}+{chosen.merge}",
        base_root=buyer.weights_root,
        sold_root=sold_root(roots),
        merged_root=weights_root(dict(tensors)),
        recipe_hash=recipe_hash(steps),
        alpha=share_of([step.recipe for step in steps]),
        notice_digest=NO_NOTICE,
        validation_root=validation.root,
        seed=trial.seed,
        choice_rows=len(trial.choice.targets_R),
        score_rows=len(trial.scored.targets_R),
        loss_before=gain.loss_before,
        loss_after=gain.loss_after,
        gain=gain.gain,
        bound=gain.bound,
        code_version=CODE_VERSION,
    )
    signature = None if account_key is None else sign_digest(account_key, signed_digest(evaluation))
    return TrialReceipt(
        evaluation=evaluation,
        seed=seed,
        rows=rows,
        sold_roots=roots,
        steps=steps,
        evaluation_hash=evaluation.hash,
        account=None if account_key is None else address_of(account_key),
        signature=signature,
    )


def _told(
    trial: Trial, chosen: Candidate | None, buyer: Verified
) -> tuple[Tensors, Gain, tuple[int, ...], tuple[Step, ...]]:
    """Return the model, its gain, its sellers, and its steps by their places among those."""
    if chosen is None or chosen.tensors is None or chosen.gain is None:
        losses_R = trial.buyer.losses_R
        return buyer.tensors, paired_gain(losses_R, losses_R), (0,), (Step(0, NO_ALIGNMENT),)
    places = chosen.sellers
    steps = tuple(Step(places.index(step.seller), step.recipe) for step in chosen.steps or ())
    return chosen.tensors, chosen.gain, places, steps


def merged_adapter(
    trial: Trial, buyer: Verified, sellers: Sequence[Verified]
) -> tuple[Architecture, Tensors]:
    """Return the adapter of the best merge, or the buyer's own, and of what it is."""
    chosen = None if trial.best is None else trial.candidates[trial.best]
    steps = () if chosen is None else chosen.steps or ()
    return made_by(buyer, dict(enumerate(sellers)), steps)


def sold_root(roots: Sequence[Digest]) -> Digest:
    """Return the root of what was sold: of several models, the SHA-256 of their roots."""
    return roots[0] if len(roots) == 1 else Digest(hashlib.sha256(b"".join(roots)).digest())


def recipe_hash(steps: Sequence[Step]) -> Digest:
    """Return the SHA-256 of the recipes' encodings, one after another."""
    encoded = b"".join(step.recipe.encode() for step in steps)
    return Digest(hashlib.sha256(encoded).digest())


def signed_digest(evaluation: Evaluation) -> Digest:
    """Return what an account signs of a trial."""
    return Digest(hashlib.sha256(_SIGNED + evaluation.hash).digest())


def check_receipt(
    receipt: TrialReceipt,
    buyer: Verified,
    sold: Sequence[Verified],
    validation: ValidationSet,
    *,
    merged: Tensors | None = None,
) -> Figure:
    """Measure again what a receipt says; returns what was found.

    `sold` are the models in any order; `merged` is what was made of them, needed where no recipe
    makes it. Raises `RemoteProtocolError` whose reason is the field that does not hold, with what
    was said and what was found, and `LocalProtocolError` if a model is missing.
    """
    evaluation = receipt.evaluation
    _check_said(receipt, validation)
    if evaluation.architecture != buyer.architecture.text:
        differs("architecture", evaluation.architecture, buyer.architecture.text)
    if evaluation.base_root != buyer.weights_root:
        differs("base_root", evaluation.base_root.hex(), buyer.weights_root.hex())
    made = _merged_again(receipt, buyer, sold, merged)
    _, scored = split(validation, evaluation.seed)
    before, after = (score(*computing(each), scored) for each in (buyer, made))
    gain = paired_gain(before.losses_R, after.losses_R)
    found = Figure(
        loss_before=gain.loss_before,
        loss_after=gain.loss_after,
        gain=gain.gain,
        bound=gain.bound,
    )
    _check_figures(figure_of(evaluation), found)
    if receipt.evaluation_hash != evaluation.hash:
        differs("evaluation_hash", receipt.evaluation_hash.hex(), evaluation.hash.hex())
    _check_signature(receipt)
    return found


def _check_said(receipt: TrialReceipt, validation: ValidationSet) -> None:
    """Check what needs no weights."""
    evaluation = receipt.evaluation
    check_evaluation(evaluation)
    choice, scored = len(validation) // 2, len(validation) - len(validation) // 2
    for field, said, found in (
        ("code_version", evaluation.code_version, CODE_VERSION),
        ("task", evaluation.task, receipt.rows.text),
        ("notice_digest", evaluation.notice_digest.hex(), NO_NOTICE.hex()),
        ("recipe_hash", evaluation.recipe_hash.hex(), recipe_hash(receipt.steps).hex()),
        ("alpha", evaluation.alpha, share_of([step.recipe for step in receipt.steps])),
        ("sold_root", evaluation.sold_root.hex(), sold_root(receipt.sold_roots).hex()),
        ("validation_root", evaluation.validation_root.hex(), validation.root.hex()),
        ("seed", evaluation.seed.hex(), split_seed(receipt.seed, validation.root).hex()),
        ("choice_rows", evaluation.choice_rows, choice),
        ("score_rows", evaluation.score_rows, scored),
    ):
        if said != found:
            differs(field, said, found)


def _merged_again(
    receipt: TrialReceipt, buyer: Verified, sold: Sequence[Verified], merged: Tensors | None
) -> Verified:
    by_root = {model.weights_root: model for model in sold}
    for root in receipt.sold_roots:
        if root not in by_root:
            found = ", ".join(held.hex() for held in by_root)
            differs("sold_root", root.hex(), f"not among the models given: {found}")
    for step in receipt.steps:
        if step.seller >= len(receipt.sold_roots):
            differs("recipe", f"for model {step.seller}", f"of {len(receipt.sold_roots)}")
    places = {place: by_root[root] for place, root in enumerate(receipt.sold_roots)}
    architecture, tensors = made_by(buyer, places, receipt.steps)
    if not receipt.steps:
        if merged is None:
            raise LocalProtocolError(
                f"no recipe makes what {receipt.evaluation.method} gives: name the merged file "
                "with --merged"
            )
        tensors = merged
    for kind, made in (("merged", tensors), ("merged file", merged)):
        if made is not None and weights_root(dict(made)) != receipt.evaluation.merged_root:
            said = receipt.evaluation.merged_root.hex()
            differs("merged_root", said, f"{weights_root(dict(made)).hex()} ({kind})")
    return dataclasses.replace(buyer, architecture=architecture, tensors=tensors)


def _check_figures(said: Figure, found: Figure) -> None:
    for field, close in (
        ("loss_before", loss_is_close(said.loss_before, found.loss_before)),
        ("loss_after", loss_is_close(said.loss_after, found.loss_after)),
        ("gain", gain_is_close(found, said.gain - found.gain, GAIN_TOLERANCE)),
        ("bound", gain_is_close(found, said.bound - found.bound, BOUND_TOLERANCE)),
    ):
        if not close:
            differs(field, getattr(said, field), getattr(found, field))


def _check_signature(receipt: TrialReceipt) -> None:
    if (receipt.signature is None) != (receipt.account is None):
        raise RemoteProtocolError("signature", "account and signature are both there, or neither")
    if receipt.signature is not None:
        signer = recover(signed_digest(receipt.evaluation), receipt.signature)
        if signer != receipt.account:
            differs("account", receipt.account, signer)


def recipe_at(data: bytes) -> Recipe:
    """Return a recipe as it stands in a file, whose every byte counts."""
    recipe = Recipe.decode(data)
    if recipe.encode() != data:
        raise RemoteProtocolError("malformed", "recipe: not in its canonical encoding")
    return recipe
