"""What `pm-node try` found as one JSON document, from which table, card and files are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from broker_node.evaluate.doubts import answers_alike, valleys
from broker_node.trying.controls import Control
from broker_node.trying.making import Candidate, is_usual
from broker_node.trying.methods import OUTRIGHT
from broker_node.trying.reading import Checkpoint, shown
from broker_node.trying.receipt import TrialReceipt
from broker_node.trying.scales import STRANGE, scale_spread
from broker_node.trying.scoring import Score
from broker_node.trying.trial import Trial
from node.cli import cautions
from node.devnet.report.words import legible
from node.protocol.types import ONE

if TYPE_CHECKING:
    from broker_node.evaluate.validation import ValidationSet
    from node.data.own_rows import OwnRows

FORMAT: Final = "pm-node try 1"


def labels_of(models: Sequence[Checkpoint]) -> list[str]:
    """Return short names, A, B, C …, in the order of the files."""
    return [
        chr(ord("A") + place) if place < 26 else f"M{place + 1}" for place in range(len(models))
    ]


def document_of(
    trial: Trial,
    models: Sequence[Checkpoint],
    own: OwnRows,
    validation: ValidationSet,
    receipt: TrialReceipt,
    *,
    metric: str | None,
    merges: Sequence[str] = (),
) -> dict[str, Any]:
    """Return all that was found; numbers that are not finite are null.

    `merges` are those that the user named, none of them if all were tried.
    """
    labels = labels_of(models)
    evaluation = receipt.evaluation
    chosen = None if trial.best is None else trial.candidates[trial.best]
    document: dict[str, Any] = {
        "format": FORMAT,
        "architecture": shown(models[0].traded.architecture),
        "models": [
            {
                "name": label,
                "file": str(model.path),
                "root": model.traded.weights_root.hex(),
                "architecture": shown(model.model.architecture),
                **_scores(trial.buyer if place == 0 else trial.sellers[place - 1]),
                "replica_of": "A" if place - 1 in trial.replicas else None,
            }
            for place, (label, model) in enumerate(zip(labels, models, strict=True))
        ],
        "rows": {
            "data": own.name,
            "normalise": own.normalise,
            "kind": "values" if validation.targets_R.is_floating_point() else "classes",
            "choice": len(trial.choice.targets_R),
            "score": len(trial.scored.targets_R),
            "seed": receipt.seed,
            "root": validation.root.hex(),
        },
        "methods": [
            {**_method(each, labels), "usual": is_usual(each, trial.usual)}
            for each in trial.candidates
        ],
        "controls": {
            "own": _scores(trial.buyer),
            "ensemble": None if trial.ensemble is None else {
                **_scores(trial.ensemble),
                "members": [
                    label for place, label in enumerate(labels, start=-1)
                    if place not in trial.replicas and place not in trial.repeated
                ],
            },
            "tuned": _control(trial.tuned),
            "scaled": _control(trial.scaled),
            "widths": [_method(each, labels) for each in trial.widths],
        },
        "curves": [
            {
                "seller": labels[curve.seller + 1],
                "align": curve.align,
                "alignment_hash": (
                    None if curve.alignment_hash is None else curve.alignment_hash.hex()
                ),
                "points": [
                    {
                        "alpha": point.alpha / ONE,
                        "choice_loss": _finite(point.choice_loss),
                        "loss": _finite(point.score_loss),
                        "accuracy": point.accuracy,
                        "chosen": point.chosen,
                    }
                    for point in curve.points
                ],
            }
            for curve in trial.curves
        ],
        "metric": metric,
        "merges": list(merges),
        "best": trial.best,
        "gains": trial.best is not None,
        "result": {
            "method": evaluation.method,
            "sellers": [] if chosen is None else [labels[place + 1] for place in chosen.sellers],
            "alpha": _share(0 if chosen is None else chosen.alpha),
            "loss_before": evaluation.loss_before / 1e9,
            "loss_after": evaluation.loss_after / 1e9,
            "accuracy_before": trial.buyer.accuracy,
            "accuracy_after": (
                trial.buyer.accuracy if chosen is None or chosen.score is None
                else chosen.score.accuracy
            ),
            "gain": evaluation.gain / ONE,
            "bound": evaluation.bound / ONE,
            "above_controls": None,
            "merged_root": evaluation.merged_root.hex(),
            "signed_by": receipt.account,
        },
        "warnings": list(_warnings(trial, models, labels, chosen)),
        "files": None,
    }  # fmt: skip
    control = best_control(document)
    if chosen is not None and control is not None:
        document["result"]["above_controls"] = document["result"]["gain"] > control[1]
    return document


def best_control(document: dict[str, Any]) -> tuple[str, float] | None:
    """Return the control that gains most, in words, and what it gains.

    B alone in A's widths, the other of `widths`, is no control here: it is B that was bought.
    """
    controls = document["controls"]
    found = [
        (words, controls[name]["gain"])
        for name, words in (("tuned", "A fine-tuned"), ("scaled", "A scaled"))
        if controls[name] is not None
    ]
    found += [
        (f"{'+'.join(each['sellers'])} by {each['align']}, {each['merge']}", each["gain"])
        for each in controls["widths"]
        if not each["refused"] and each["merge"] != OUTRIGHT
    ]
    return max(found, key=lambda each: each[1], default=None)


def alignment_hash(document: dict[str, Any]) -> str | None:
    """Return what names the alignment of the best merge; None where it is not of one seller."""
    if document["best"] is None:
        return None
    best = document["methods"][document["best"]]
    found = {
        (curve["seller"], curve["align"]): curve["alignment_hash"] for curve in document["curves"]
    }
    return found.get(("+".join(best["sellers"]), best["align"]))


def _control(control: Control | None) -> dict[str, Any] | None:
    if control is None:
        return None
    gain = control.gain
    return {**_scores(control.score), "gain": gain.gain / ONE, "bound": gain.bound / ONE}


def _scores(found: Score) -> dict[str, Any]:
    return {
        "loss": _finite(found.loss),
        "accuracy": found.accuracy,
        "perplexity": None if found.perplexity is None else _finite(found.perplexity),
        "metric": None if found.metric is None else _finite(found.metric),
    }


def _method(candidate: Candidate, labels: list[str]) -> dict[str, Any]:
    gain = candidate.gain
    return {
        "sellers": [labels[place + 1] for place in candidate.sellers],
        "align": candidate.align,
        "merge": candidate.merge,
        "alpha": _share(candidate.alpha),
        "choice_loss": _finite(candidate.choice_loss),
        **(
            {"loss": None, "accuracy": None, "perplexity": None, "metric": None}
            if candidate.score is None
            else _scores(candidate.score)
        ),
        "gain": None if gain is None else gain.gain / ONE,
        "bound": None if gain is None else gain.bound / ONE,
        "row_evaluations": candidate.row_evaluations,
        "refused": candidate.refused or None,
    }


def _share(alpha: int | None) -> float | None:
    return None if alpha is None else alpha / ONE


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _warnings(
    trial: Trial, models: Sequence[Checkpoint], labels: list[str], chosen: Candidate | None
) -> list[dict[str, str]]:
    """Return what a reader must know, each under a stable name."""
    found: list[tuple[str, str]] = []
    for place, residual in trial.replicas.items():
        label = labels[place + 1]
        how = (
            "the same weights"
            if models[place + 1].model.weights_root == models[0].model.weights_root
            else f"renumbered or rescaled (to {residual:.1g} of its norm)"
        )
        found.append(("replica", f"{label} is A, {how}: gain 0, left out"))
    found.extend(
        ("repeated", f"{labels[place + 1]} is {labels[first + 1]} again: left out")
        for place, first in trial.repeated.items()
    )
    found.extend(("converted", note) for model in models for note in model.notes)
    found.extend(("computed-otherwise", said) for said in trial.fallbacks)
    found += cautions.of_inferred([model.inferred for model in models])
    choice, scored = trial.choice, trial.scored
    found += cautions.of_count(len(choice.targets_R) + len(scored.targets_R))
    found += cautions.of_chance(trial.buyer.accuracy, scored.targets_R, "A is right in")
    found.extend(_of_answers(trial, models, labels))
    found.extend(_of_curves(trial, labels))
    found.extend(_of_scales(trial, models, labels))
    found += cautions.of_overlap(choice.inputs_RF, scored.inputs_RF, "score")
    if chosen is not None and chosen.gain is not None and chosen.gain.bound <= 0:
        found.append(("unsure", "the gain is not sure: its 95% bound is not above 0"))
    return [{"name": name, "text": text} for name, text in found]


def _of_answers(
    trial: Trial, models: Sequence[Checkpoint], labels: list[str]
) -> list[tuple[str, str]]:
    """Return which models answer every row alike."""
    found = []
    for label, model in zip(labels, models, strict=True):
        held = model.model
        rows_RF = trial.choice.inputs_RF
        if answers_alike(held.architecture, held.tensors, rows_RF, len(rows_RF)):
            text = f"{label} answers every row alike: it has learned nothing that these rows show"
            found.append(("constant", text))
    return found


def _of_scales(
    trial: Trial, models: Sequence[Checkpoint], labels: list[str]
) -> list[tuple[str, str]]:
    """Return which sold models came in scales far stranger than A's (`STRANGE`)."""
    own = scale_spread(models[0].model)
    found = []
    for place, (label, model) in enumerate(zip(labels[1:], models[1:], strict=True)):
        if own is None or place in trial.replicas or place in trial.repeated:
            continue
        theirs = scale_spread(model.model)
        if theirs is not None and theirs > own + STRANGE:
            text = (
                f"{label} ({legible(model.path.name, 60)}) has units in strange scales: nine "
                f"in ten within a factor of {2**theirs:.0f} of balanced, A's within {2**own:.1f}. "
                "What it computes is the same, and matching undoes them; `identity` merges them as "
                "they are, and says little of the model"
            )
            found.append(("rescaled", text))
    return found


def _of_curves(trial: Trial, labels: list[str]) -> list[tuple[str, str]]:
    """Return which curves of loss against α have more than one valley on the rows that choose."""
    found = []
    for curve in trial.curves:
        count = valleys([point.choice_loss for point in curve.points])
        if count > 1:
            text = (
                f"the loss from A to {labels[curve.seller + 1]} by {curve.align} has {count} "
                "valleys; α is in the deepest of those that were seen, every tenth was looked at"
            )
            found.append(("several-minima", text))
    return found


def file_name(path: str) -> str:
    """Return the last part of a path, for people."""
    return Path(path).name
