"""One trial from two blobs: decode, verify, align, evaluate, in that order, in one thread.

Pure compute: no network, no chain, no clock. `Appraiser` is what the service asks;
`MarketAppraiser` measures on the broker's validation rows, `DrillAppraiser` deals in random
tensors that compute nothing, for drills of the settlement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch

from broker_node.admission import admitted, require_admissible
from broker_node.align import identity
from broker_node.align.stages import Aligned
from broker_node.evaluate.adapters import as_traded, whole_pair
from broker_node.evaluate.control import own_gain
from broker_node.evaluate.curve import Runner
from broker_node.evaluate.device import fetches_by_itself, runner_on
from broker_node.evaluate.doubts import answers_alike
from broker_node.evaluate.evaluation import (
    DEFAULT_SEARCH,
    choice_inputs,
    evaluate,
    require_search,
)
from broker_node.evaluate.gain import Gain
from broker_node.evaluate.methods import PAPER, ROWS, Method, align
from broker_node.evaluate.tuning import tuned_gain
from broker_node.evaluate.validation import ValidationSet
from broker_node.evaluate.work import multiplications
from broker_node.quorum.replay import differs, merged_again, replayed
from broker_node.verify.stages import Verified
from node.params.adapters import Base, require_base, require_sellable
from node.params.architecture import (
    Architecture,
    parse_architecture,
)
from node.params.encoding import weights_root
from node.params.families.base import TokenModel
from node.params.families.lora import Lora
from node.params.families.shapes import Shapes
from node.params.recipe import Recipe, apply_recipe
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from node.protocol.evaluation import Evaluation, rows_due, trial_seed
from node.protocol.offer import BrokerNotice, Offer
from node.protocol.quorum import Figure
from node.protocol.types import ONE, Digest, Millionths

CODE_VERSION: Final = "pm-node/3"
"""Of what a replay must agree with; changes with any change of the figures."""
MAX_FORWARD: Final = 2e11
"""Multiplications of one pass over the rows of a trial, which makes some tens of them: a minute and
more, in a thread that nothing can stop. Perceptrons of 40 million weights on 5,000 rows; of
residual networks the smallest, on digits, but not on MNIST."""
MAX_ON_DEVICE: Final = 100 * MAX_FORWARD


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """A measured pair: what is signed, and what the buyer would apply."""

    evaluation: Evaluation
    recipe: bytes
    control: Millionths | None = None
    """What the buyer's model gains by itself (`own_gain`), where that is measured."""
    tuned: Millionths | None = None
    """What it gains by fine-tuning on the broker's labels (`tuned_gain`), where that is."""
    fallbacks: tuple[str, ...] = ()
    """What could not be computed as it was meant to be, and how it was computed instead."""
    doubts: tuple[str, ...] = ()
    """What makes the figure doubtful (`broker_node.evaluate.doubts`), each by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remeasured:
    """What somebody else's trial comes to, measured again."""

    figure: Figure
    fallbacks: tuple[str, ...] = ()
    """As of a `Trial`."""


class Appraiser(Protocol):
    """Verifies models and measures pairs; calls may take long, none awaits."""

    @property
    def validation_root(self) -> Digest:
        """The commitment to the rows, published before any weights are seen."""

    @property
    def validation_rows(self) -> int:
        """How many rows the commitment holds."""

    @property
    def rows(self) -> tuple[int, int]:
        """How many of them choose α in a trial, and how many score it (`rows_due`)."""

    @property
    def adapter_base(self) -> Base | None:
        """What adapters must be of, if any are taken."""

    @property
    def probes_RF(self) -> torch.Tensor | None:
        """Rows without their labels, to run models on; None where nothing is computed."""

    def screen(self, offer: Offer) -> None:
        """Raise `RemoteProtocolError` for an offer that could never be admitted, unfetched."""

    def admit(self, blob: Path | memoryview, offer: Offer) -> Verified:
        """Return the model in a blob. Raises `MarketError` unless it is what the offer says."""

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        """Align the sold model with the base, choose α, score the gain."""

    def replay(
        self, subject: Evaluation, recipe: bytes, base: Verified, sold: Verified
    ) -> Remeasured:
        """Measure again what another broker measured. Raises `RemoteProtocolError`."""


class MarketAppraiser:
    """Measures on validation rows that were committed beforehand."""

    def __init__(
        self,
        validation: ValidationSet,
        *,
        classes: int,
        method: str = PAPER.alignment,
        merging: str = PAPER.merging,
        search: str = DEFAULT_SEARCH,
        shared_rows: bool = False,
        control: bool = False,
        base: Base | None = None,
        tune: bool = False,
        device: str = "cpu",
    ) -> None:
        """`shared_rows`: choose α and score the gain on all rows alike, as the papers do.

        `control`: measure too what each buyer's model gains by itself. `tune`: what it gains by
        fine-tuning on the rows that choose.
        `base`: the model that adapters must be of, and are run on; without one none is taken.
        `device`: what evaluates (`broker_node.evaluate.device`); merged bytes are the CPU's.
        """
        self._made = Method(alignment=method, merging=merging)
        require_search(search, validation)
        self._validation = validation
        self._search = search
        self._control = control
        self._base = base
        self._tune = tune
        self._device = device
        self.validation_root: Digest = validation.root
        self.validation_rows: int = len(validation)
        self.rows: tuple[int, int] = rows_due(len(validation), shared=shared_rows)
        self._ends = (int(validation.inputs_RF.shape[1]), classes)

    @property
    def validation(self) -> ValidationSet:
        """The rows themselves."""
        return self._validation

    @property
    def probes_RF(self) -> torch.Tensor | None:
        """All of the rows."""
        return self._validation.inputs_RF

    @property
    def adapter_base(self) -> Base | None:
        """What adapters are run on."""
        return self._base

    @property
    def method(self) -> str:
        """How units are matched."""
        return self._made.alignment

    def runner(self) -> Runner:
        """Return what runs models on the device, for one trial or one round."""
        return runner_on(self._device)

    def screen(self, offer: Offer) -> None:
        architecture = parse_architecture(offer.architecture)
        if isinstance(architecture.model, Lora):
            if self._base is None:
                raise RemoteProtocolError("wrong-base", "adapters of any base are refused here")
            require_base(architecture.model, self._base.architecture, self._base.root)
            if offer.for_sale:
                require_sellable(architecture.model)
        self._require_fitting(architecture)  # before symmetries are made of what a stranger wrote
        require_admissible(architecture, offer, matches=self._made.alignment != identity.NAME)

    def _require_fitting(self, architecture: Architecture) -> None:
        """Raise `RemoteProtocolError` ``wrong-architecture`` for a model of other rows."""
        model, rows = architecture.model, self._validation
        try:
            fits = (model.input_width(), model.output_width()) == self._ends
            if fits and isinstance(model, TokenModel):
                model.next_tokens(rows.inputs_RF, rows.targets_R)
        except LocalProtocolError as error:
            raise RemoteProtocolError("wrong-architecture", str(error)[:200]) from error
        if not fits:
            raise RemoteProtocolError("wrong-architecture", architecture.text[:200])
        work = sum(self.rows) * multiplications(architecture)
        if work > (MAX_FORWARD if self._device == "cpu" else MAX_ON_DEVICE):
            raise RemoteProtocolError(
                "too-costly", f"{work:.3g} multiplications for the {sum(self.rows)} rows of a trial"
            )

    def admit(self, blob: Path | memoryview, offer: Offer) -> Verified:
        self.screen(offer)
        return admitted(blob, offer, self._base, locked=fetches_by_itself(self._device))

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        seed = trial_seed(notice[1].seed, base.weights_root, sold.weights_root)
        choice, score = self.rows
        made, rows = self._made, self._validation
        runner = self.runner()
        probe_RF = None
        if made.alignment in ROWS:
            probe_RF = choice_inputs(rows, seed=seed, choice_rows=choice, score_rows=score)
        number = int.from_bytes(seed[:8], "big")
        aligned = align(made.alignment, base, sold, seed=number, probe_RF=probe_RF)
        pair = whole_pair(aligned)
        found = evaluate(
            pair,
            rows,
            seed=seed,
            choice_rows=choice,
            score_rows=score,
            search=self._search,
            runner=runner,
            merging=made.merging,
        )
        found = as_traded(aligned, found)
        return Trial(
            evaluation=Evaluation(
                task=task,
                architecture=found.architecture,
                method=found.named,
                base_root=found.base_root,
                sold_root=found.sold_root,
                merged_root=found.merged_root,
                recipe_hash=found.recipe.hash,
                alpha=found.alpha,
                notice_digest=notice[0],
                validation_root=found.validation_root,
                seed=seed,
                choice_rows=found.choice_rows,
                score_rows=found.score_rows,
                loss_before=found.loss_before,
                loss_after=found.loss_after,
                gain=found.gain,
                bound=found.bound,
                code_version=CODE_VERSION,
            ),
            recipe=found.recipe.encode(),
            control=self._alone(own_gain, pair.buyer, seed, runner) if self._control else None,
            tuned=self._tuned(pair.buyer, seed, runner) if self._tune else None,
            doubts=self._doubts(pair, found.valleys, runner),
            fallbacks=runner.fallbacks(),
        )

    def _doubts(self, pair: Aligned, count: int, runner: Runner) -> tuple[str, ...]:
        sides = {"the buyer's": pair.buyer.tensors, "the seller's": pair.transformed}
        found = [
            f"constant: {whose} model answers every row alike"
            for whose, tensors in sides.items()
            if answers_alike(
                pair.buyer.architecture,
                {**pair.buyer.tensors, **tensors},
                self._validation.inputs_RF,
                runner=runner,
            )
        ]
        if count > 1:
            found.append(
                f"several-minima: {count} valleys between both models, α is in the deepest seen"
            )
        return tuple(found)

    def _tuned(self, base: Verified, seed: Digest, runner: Runner) -> Millionths | None:
        """Return what a base gains by fine-tuning; None where it is too large, or diverges."""
        try:
            return self._alone(tuned_gain, base, seed, runner)
        except MarketError:
            return None

    def _alone(
        self, measure: Callable[..., Gain], base: Verified, seed: Digest, runner: Runner
    ) -> Millionths:
        """Return what a whole base gains without anybody's weights, on the rows of its trial."""
        choice_rows, score_rows = self.rows
        return measure(
            base.architecture,
            base.tensors,
            self._validation,
            seed=seed,
            choice_rows=choice_rows,
            score_rows=score_rows,
            runner=runner,
        ).gain

    def replay(
        self, subject: Evaluation, recipe: bytes, base: Verified, sold: Verified
    ) -> Remeasured:
        if subject.code_version != CODE_VERSION:
            differs("code_version", subject.code_version, CODE_VERSION)
        runner = self.runner()
        figure = replayed(subject, recipe, base, sold, self._validation, runner=runner)
        return Remeasured(figure=figure, fallbacks=runner.fallbacks())


class DrillAppraiser:
    """Deals in tensors without a function: every trial finds the same gain, bought outright.

    For drills of the settlement only: a broker started with ``--dataset random``, and
    nothing that computes anything is admitted.
    """

    GAIN: Final = Millionths(100_000)
    validation_root: Digest = Digest(hashlib.sha256(b"pm-node drill: no rows").digest())
    validation_rows: int = 0
    rows: tuple[int, int] = (0, 0)
    probes_RF: torch.Tensor | None = None
    adapter_base: Base | None = None

    def screen(self, offer: Offer) -> None:
        architecture = parse_architecture(offer.architecture)
        if not isinstance(architecture.model, Shapes):
            raise RemoteProtocolError("drill-only", architecture.text[:200])
        require_admissible(architecture, offer, matches=False)

    def admit(self, blob: Path | memoryview, offer: Offer) -> Verified:
        self.screen(offer)
        return admitted(blob, offer)

    def measure(
        self, base: Verified, sold: Verified, *, task: str, notice: tuple[Digest, BrokerNotice]
    ) -> Trial:
        if base.architecture != sold.architecture:
            raise RemoteProtocolError("architecture-mismatch", sold.architecture.text[:200])
        recipe = Recipe(permutations={}, scales={}, alpha=Millionths(ONE))
        merged = apply_recipe(base.architecture, base.tensors, sold.tensors, recipe)
        return Trial(
            evaluation=Evaluation(
                task=task,
                architecture=base.architecture.text,
                method="drill",
                base_root=base.weights_root,
                sold_root=sold.weights_root,
                merged_root=weights_root(merged),
                recipe_hash=recipe.hash,
                alpha=recipe.alpha,
                notice_digest=notice[0],
                validation_root=self.validation_root,
                seed=trial_seed(notice[1].seed, base.weights_root, sold.weights_root),
                choice_rows=0,
                score_rows=0,
                loss_before=1_000_000_000,
                loss_after=900_000_000,
                gain=self.GAIN,
                bound=self.GAIN,
                code_version=CODE_VERSION,
            ),
            recipe=recipe.encode(),
        )

    def replay(
        self, subject: Evaluation, recipe: bytes, base: Verified, sold: Verified
    ) -> Remeasured:
        merged_again(subject, recipe, base, sold)
        figure = Figure(
            loss_before=1_000_000_000, loss_after=900_000_000, gain=self.GAIN, bound=self.GAIN
        )
        return Remeasured(figure=figure)
