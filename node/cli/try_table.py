"""What `pm-node try` found, as tables for a person at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker_node.trying.methods import ENSEMBLE, LERP
from node.cli.try_document import best_control, file_name
from node.devnet.report.words import NONE, alpha_text, legible, percent, three_digits

MAX_SHOWN: Final = 20
"""Methods in the table, those that choose best first."""


def print_document(document: dict[str, Any]) -> None:
    """Print models, methods, warnings and the outcome to standard output.

    Names are printed as they are: markup and control characters in them do nothing.
    """
    out = Console()
    _models(document, out)
    _methods(document, out)
    for line in _refusals(document):
        out.print(Text(f"  {line}", style="dim"))
    for warning in document["warnings"]:
        out.print(Text(f"! {warning['name']}: {legible(warning['text'], 300)}", style="yellow"))
    out.print(Text(outcome(document), style="bold"), soft_wrap=True)
    if ENSEMBLE in document["merges"]:
        out.print(Text(of_ensemble(document)), soft_wrap=True)
    for path in (document["files"] or {}).values():
        out.print(Text(f"  {path}"), soft_wrap=True)
    if document["files"] is None and document["merges"] != [ENSEMBLE]:
        out.print(Text("  nothing is written; --out FOLDER writes the merge and its receipt"))


def outcome(document: dict[str, Any]) -> str:
    """Return the result in one sentence."""
    found, rows = document["result"], document["rows"]
    if document["merges"] == [ENSEMBLE]:
        return "No merge was asked for: an ensemble is none."
    if not document["gains"]:
        return f"No merge improves A on the {rows['choice']:,} rows that choose; A stays as it is."
    accuracy = ""
    if found["accuracy_before"] is not None:
        before, after = percent(found["accuracy_before"], 1), percent(found["accuracy_after"], 1)
        accuracy = f", accuracy {before} → {after}"
    share = "" if found["alpha"] is None else f" at α {alpha_text(found['alpha'])}"
    return (
        f"Best: {' and '.join(found['sellers'])} into A by {found['method']}{share}: loss "
        f"{three_digits(found['loss_before'])} → {three_digits(found['loss_after'])}, "
        f"{percent(found['gain'], 1)} less (at least {percent(found['bound'], 1)}){accuracy}."
        f"{_control(document)}"
    )


def _control(document: dict[str, Any]) -> str:
    """Return what A gains by the labels alone, and whether any control does as well."""
    tuned, said = document["controls"]["tuned"], ""
    if tuned is not None:
        gain = percent(tuned["gain"], 1)
        said = f" Control: fine-tuned on those labels, A gains {gain} by itself."
    best = best_control(document)
    if best is None or document["result"]["above_controls"]:
        return said
    return f"{said} The merge is not above its best control: {best[0]}, {percent(best[1], 1)}."


def of_ensemble(document: dict[str, Any]) -> str:
    """Return what an ensemble is made of, and that it is no file, in one sentence."""
    found, own = document["controls"]["ensemble"], document["controls"]["own"]
    if found is None:
        return "Ensemble: none, for no model but A is left."
    files = {model["name"]: file_name(model["file"]) for model in document["models"]}
    members = ", ".join(legible(f"{name} ({files[name]})", 80) for name in found["members"])
    mean = "answers" if document["rows"]["kind"] == "values" else "probabilities"
    return (
        f"Ensemble: the mean of the {mean} of {members}: loss {_loss(own)} → {_loss(found)}. It "
        "runs all of them and is no single model: no file is written of it; keep theirs."
    )


def _loss(found: dict[str, Any]) -> str:
    return NONE if found["loss"] is None else three_digits(found["loss"])


def table_of(title: str, headings: Sequence[str], left: int) -> Table:
    """Return an empty table whose first `left` columns are words."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)  # eighty columns are enough
    for place, heading in enumerate(headings):
        side = "left" if place < left else "right"
        table.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    return table


def _models(document: dict[str, Any], out: Console) -> None:
    rows = document["rows"]
    title = (
        f"{legible(document['architecture'], 60)}, scored on {rows['score']:,} rows of "
        f"{legible(file_name(rows['data']), 40)}; {rows['choice']:,} others choose"
    )
    own_metric = [] if document["metric"] is None else [legible(document["metric"], 20)]
    table = table_of(title, ["model", "file", "root", "loss", "right %", *own_metric], left=3)
    for model in document["models"]:
        table.add_row(
            model["name"],
            Text(legible(file_name(model["file"]), 32)),
            model["root"][:8],
            *_figures(model, own=bool(own_metric)),
        )
    ensemble = document["controls"]["ensemble"]
    if ensemble is not None:
        cells = _figures(ensemble, own=bool(own_metric))
        table.add_row("all", Text("ensemble, which runs all of them"), "", *cells)
    out.print(table)


def _methods(document: dict[str, Any], out: Console) -> None:
    own_metric = [] if document["metric"] is None else [legible(document["metric"], 20)]
    headings = ["from", "alignment", "merge", "α", "loss", "right %", *own_metric]
    rows = f"{document['rows']['choice']:,} rows that choose"
    title = f"Merged into A, gain with its 95 % bound; ★ is best on the {rows}"
    if any(method["usual"] and not method["refused"] for method in document["methods"]):
        title += ", ○ what a market's broker does by default"
    table = table_of(title, [*headings, "gain %", "≥ %"], left=3)
    # no alignment of one name is broken
    names = [method["align"] for method in document["methods"] if "+" not in method["align"]]
    table.columns[1].min_width = min(20, max(map(len, names), default=0))
    shown = sorted(
        ((at, method) for at, method in enumerate(document["methods"]) if not method["refused"]),
        key=lambda each: (each[1]["choice_loss"] is None, each[1]["choice_loss"]),
    )
    first = [each for at, each in enumerate(shown) if at < MAX_SHOWN or each[1]["usual"]]
    for place, method in first:
        best = place == document["best"]
        table.add_row(
            "+".join(method["sellers"]),
            Text(method["align"]),
            Text(method["merge"] + (" ★" if best else "") + (" ○" if method["usual"] else "")),
            alpha_text(method["alpha"]),
            *_figures(method, own=bool(own_metric)),
            hundredths(method["gain"]),
            hundredths(method["bound"]),
            style="bold" if best else "",
        )
    for name, words in (("tuned", "fine-tuned"), ("scaled", "scaled")):
        control = document["controls"][name]
        if control is not None and shown:
            table.add_row(
                "A", Text(words), Text("control"), NONE,
                *_figures(control, own=bool(own_metric)),
                hundredths(control["gain"]), hundredths(control["bound"]),
                style="dim",
            )  # fmt: skip
    for method in document["controls"]["widths"]:
        if not method["refused"]:
            table.add_row(
                "+".join(method["sellers"]),
                Text(method["align"]),
                Text("control"),
                alpha_text(method["alpha"]),
                *_figures(method, own=bool(own_metric)),
                hundredths(method["gain"]),
                hundredths(method["bound"]),
                style="dim",
            )
    if shown:
        out.print(table)
    if len(shown) > len(first):
        out.print(Text(f"  and {len(shown) - len(first)} more; --json has all"))


def _figures(found: dict[str, Any], *, own: bool) -> list[str]:
    cells = [_loss(found), hundredths(found["accuracy"])]
    if own:
        cells.append(NONE if found["metric"] is None else f"{found['metric']:.4g}")
    return cells


def hundredths(fraction: float | None) -> str:
    """Return a fraction in hundredths, for a column of percent."""
    return percent(fraction, 1).removesuffix(" %")


def _refusals(document: dict[str, Any]) -> list[str]:
    """Return what was not possible, each reason once with the methods that gave it."""
    by_reason: dict[str, dict[str, None]] = {}
    for method in document["methods"]:
        if method["refused"]:
            name = method["align"] if method["merge"] == LERP else method["merge"]
            by_reason.setdefault(method["refused"], {})[name] = None
    return [
        f"not tried, {', '.join(names)}: {legible(reason)}" for reason, names in by_reason.items()
    ]
