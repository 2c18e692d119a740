"""What `pm-node survey` found as one JSON document, from which table and files are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from broker_node.evaluate.crowd import Verdict
from broker_node.trying.gathering import Gathered
from broker_node.trying.reading import shown
from broker_node.trying.survey import Found, Survey
from node.cli import cautions
from node.protocol.types import ONE

if TYPE_CHECKING:
    from broker_node.evaluate.validation import ValidationSet
    from node.data.own_rows import OwnRows

FORMAT: Final = "pm-node survey 1"
NAMED: Final = 3
"""Files that a warning names before it counts the rest."""


def names_of(files: Sequence[Path]) -> list[str]:
    """Return a short name for each file: without its ending, or as typed where two are alike."""
    stems = [path.stem for path in files]
    return [
        str(path) if stems.count(stem) > 1 else stem
        for path, stem in zip(files, stems, strict=True)
    ]


def document_of(
    survey: Survey,
    gathered: Gathered,
    own: OwnRows,
    validation: ValidationSet,
    *,
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    """Return all that was found; numbers that are not finite are null."""
    names = names_of([model.path for model in gathered.models])
    return {
        "format": FORMAT,
        "architecture": shown(gathered.models[0].model.architecture),
        "rows": {
            "data": own.name,
            "normalise": own.normalise,
            "kind": "values" if validation.targets_R.is_floating_point() else "classes",
            "all": len(validation),
            "choice": len(survey.choice.targets_R),
            "confirm": len(survey.confirming.targets_R),
            "seed": seed,
            "root": validation.root.hex(),
        },
        "models": [
            {
                "name": name,
                "file": str(model.path),
                "root": model.model.weights_root.hex(),
                **_result(found, survey, names),
                "replica_of": _named(names, survey.replicas.get(place)),
                "merged_file": None,
            }
            for place, (name, model, found) in enumerate(
                zip(names, gathered.models, survey.found, strict=True)
            )
        ],
        "cost": {
            "row_evaluations": survey.row_evaluations,
            "score_evaluations": survey.score_evaluations,
            "paper_evaluations": survey.paper_evaluations,
            "seconds": round(seconds, 3),
        },
        "warnings": [
            {"name": name, "text": text} for name, text in _warnings(survey, gathered, names)
        ],
        "files": None,
    }


def _result(found: Found, survey: Survey, names: Sequence[str]) -> dict[str, Any]:
    choice = found.choice
    gain, recipe, merged = choice.gain, choice.recipe, found.merged
    measured = None if gain is None else found.other
    seller = None if measured is None else survey.models[measured].weights_root.hex()
    root = found.merged_root
    return {
        "loss": _finite(found.own.loss),
        "accuracy": found.own.accuracy,
        "verdict": choice.verdict.value,
        "best": _named(names, measured),
        "best_root": seller,
        "alpha": None if recipe is None or gain is None else recipe.alpha / ONE,
        "gain": None if gain is None else gain.gain / ONE,
        "bound": None if gain is None else gain.bound / ONE,
        "merged_loss": None if merged is None else _finite(merged.loss),
        "merged_accuracy": None if merged is None else merged.accuracy,
        "merged_root": None if root is None else root.hex(),
        "recipe_hash": None if recipe is None or gain is None else recipe.hash.hex(),
        "recipe": None if recipe is None or gain is None else recipe.encode().hex(),
    }


def _named(names: Sequence[str], place: int | None) -> str | None:
    return None if place is None else names[place]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def sorted_by(document: dict[str, Any], key: str) -> None:
    """Put the models in order: by `gain`, the largest first and those without last, or `name`."""
    models: list[dict[str, Any]] = document["models"]
    models.sort(key=lambda model: (model["name"], model["file"]))
    if key == "gain":
        models.sort(key=lambda model: -math.inf if model["gain"] is None else model["gain"],
                    reverse=True)  # fmt: skip


def _warnings(survey: Survey, gathered: Gathered, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return what a reader must know, each under a stable name."""
    models = gathered.models
    found = [
        ("repeated", f"{path} holds the weights of {held}: left out")
        for path, held in gathered.repeated
    ]
    alike = "renumbered or rescaled: neither gains of the other"
    found.extend(
        ("replica", f"{names[place]} is {names[first]}, {alike}")
        for place, first in sorted(survey.replicas.items())
    )
    found.extend(
        ("not-lined-up", f"{names[place]}: {each.left_out}")
        for place, each in enumerate(survey.found)
        if each.left_out
    )
    found.extend(
        (
            "not-lined-up",
            f"{names[place]}: its best other's units cannot be carried into its scales",
        )
        for place, each in enumerate(survey.found)
        if each.choice.verdict is Verdict.UNALIGNED and not each.left_out
    )
    found.extend(("computed-otherwise", said) for said in survey.fallbacks)
    notes = [note for model in models for note in model.notes]
    if notes:
        more = f"; and {len(notes) - NAMED} more files" if len(notes) > NAMED else ""
        found.append(("converted", "; ".join(notes[:NAMED]) + more))
    found += cautions.of_inferred([model.inferred for model in models])
    choice, confirming = survey.choice, survey.confirming
    found += cautions.of_count(len(choice.targets_R) + len(confirming.targets_R))
    right = [each.own.accuracy for each in survey.found if each.own.accuracy is not None]
    best = max(right, default=None)
    found += cautions.of_chance(best, confirming.targets_R, "no model is right in more than")
    found += cautions.of_overlap(choice.inputs_RF, confirming.inputs_RF, "confirm")
    return found
