"""The model card of a merge: what it is of, what it scores, and what that rests on."""

from __future__ import annotations

from typing import Any, Final

from node.cli.try_document import alignment_hash, best_control, file_name
from node.devnet.report.words import NONE, alpha_text, legible, percent

_SPECIAL: Final = str.maketrans({char: f"\\{char}" for char in "\\`*_{}[]<>()#+|!~"})


def card(document: dict[str, Any]) -> str:
    """Return the card as Markdown; names of files in it are text, whatever they hold."""
    found, rows = document["result"], document["rows"]
    lines = ["# A merged model" if document["gains"] else "# No merge: the buyer's model", ""]
    if not document["gains"]:
        lines.append(
            f"No merge lowered the loss on the {rows['choice']:,} rows that choose; "
            "what is written is A as it was."
        )
        lines.append("")
    lines += ["## Made of", "", "| model | file | weights root | loss | accuracy |"]
    lines += ["|---|---|---|---|---|"]
    used = {"A", *found["sellers"]}
    for model in document["models"]:
        role = "" if model["name"] in used else " (not used)"
        lines.append(
            f"| {model['name']}{role} | {_text(file_name(model['file']))} | `{model['root']}` | "
            f"{_loss(model['loss'])} | {percent(model['accuracy'])} |"
        )
    lines += [
        "",
        f"Architecture: {_text(document['architecture'])}.",
        "",
        f"Weights root of the merge: `{found['merged_root']}`.",
        "",
        "## Measured",
        "",
        "| | |",
        "|---|---|",
        f"| method | {_text(found['method'])} |",
        f"| α, the share that is not A's | {alpha_text(found['alpha'])} |",
        *(f"| hash of the alignment | `{name}` |" for name in [alignment_hash(document)] if name),
        f"| rows | {_text(file_name(rows['data']))}, normalise {_text(rows['normalise'])} |",
        f"| rows that chose α and method | {rows['choice']:,} |",
        f"| other rows, that scored | {rows['score']:,} |",
        f"| root of the rows, seed | `{rows['root']}`, {rows['seed']} |",
        f"| loss | {_loss(found['loss_before'])} → {_loss(found['loss_after'])} |",
        f"| gain | {percent(found['gain'])} |",
        f"| at least (one-sided 95 %, paired over rows) | {percent(found['bound'])} |",
        f"| accuracy | {percent(found['accuracy_before'])} → {percent(found['accuracy_after'])} |",
    ]
    if document["best"] is not None and rows["kind"] == "classes":
        best, own = document["methods"][document["best"]], document["controls"]["own"]
        lines.append(f"| perplexity | {_loss(own['perplexity'])} → {_loss(best['perplexity'])} |")
        if document["metric"] is not None:
            name = _text(document["metric"])
            lines.append(f"| {name} | {_loss(own['metric'])} → {_loss(best['metric'])} |")
    lines += [
        f"| beside it: what a market's broker does with {'+'.join(each['sellers'])} by default, "
        f"{_text(each['align'])}, {_text(each['merge'])} | loss {_loss(each['loss'])}, accuracy "
        f"{percent(each['accuracy'])}, gain {percent(each['gain'])}, at least "
        f"{percent(each['bound'])} |"
        for each in document["methods"]
        if each["usual"] and not each["refused"]
    ]
    for name, words in (
        ("tuned", "A fine-tuned on the rows that chose, no merge"),
        ("scaled", "A's own outputs scaled by the one number that those rows like best, no merge"),
    ):
        control = document["controls"][name]
        if control is not None:
            lines.append(
                f"| control: {words} | loss "
                f"{_loss(control['loss'])}, accuracy {percent(control['accuracy'])}, gain "
                f"{percent(control['gain'])}, at least {percent(control['bound'])} |"
            )
    highest = best_control(document)
    if highest is not None and found["above_controls"] is False:
        lines.append(f"| **not above its best control** | {highest[0]}, {percent(highest[1])} |")
    ensemble = document["controls"]["ensemble"]
    if ensemble is not None:
        lines.append(
            f"| beside it: an ensemble, which runs all of {', '.join(ensemble['members'])} and is "
            f"in no file | loss {_loss(ensemble['loss'])}, "
            f"accuracy {percent(ensemble['accuracy'])} |"
        )
    lines += [
        f"| beside it: control of other widths, {'+'.join(each['sellers'])} by "
        f"{_text(each['align'])}, {_text(each['merge'])} at α {alpha_text(each['alpha'])} | "
        f"loss {_loss(each['loss'])}, accuracy {percent(each['accuracy'])} |"
        for each in document["controls"]["widths"]
        if not each["refused"]
    ]
    lines += ["", "## Warnings", ""]
    lines += [f"- {each['name']}: {_text(each['text'])}" for each in document["warnings"]]
    lines += [
        "- Rows that a model was trained on flatter it: whether these were is not known here.",
        "- A merge keeps what its sources learned; hidden behaviour was not searched for.",
        "- Licences of the sources apply to the merge.",
        "",
        "`pm-node verify receipt.json` measures these figures again, from the weights and the rows"
        + ("." if found["signed_by"] is None else f"; signed by `{found['signed_by']}`."),
        "",
    ]
    return "\n".join(lines)


def _text(value: object) -> str:
    return legible(value, 300).translate(_SPECIAL)


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.6g}"
