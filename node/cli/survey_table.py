"""What `pm-node survey` found, as a table for a person at a terminal."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.text import Text

from broker_node.evaluate.crowd import Verdict
from node.cli.try_document import file_name
from node.cli.try_table import hundredths, table_of
from node.devnet.report.words import NONE, alpha_text, counted, legible, three_digits

WORDS: Final = {
    Verdict.CONFIRMED: "gains",
    Verdict.UNCONFIRMED: "not sure",
    Verdict.NO_GAIN: "no gain",
    Verdict.NO_SELLER: "nobody else",
    Verdict.OVERFLOWS: "overflows",
    Verdict.UNALIGNED: "not lined up",
}
WHOLE: Final = "gains, whole"
"""At α 1, where the other model by itself is best."""
NAME_WIDTH: Final = 16


def print_survey(document: dict[str, Any]) -> None:
    """Print the table, warnings, what it took and the outcome to standard output.

    Names are printed as they are: markup and control characters in them do nothing.
    """
    out = Console()
    rows, cost = document["rows"], document["cost"]
    title = (
        f"{legible(document['architecture'], 60)}, scored on {rows['confirm']:,} rows of "
        f"{legible(file_name(rows['data']), 40)}"
    )
    headings = ["model", "best other", "verdict", "loss", "right %", "α", "gain %", "≥ %"]
    table = table_of(title, headings, left=3)
    for model in document["models"]:
        table.add_row(
            _name(model["name"]),
            _name(model["best"]),
            Text(_words(model)),
            NONE if model["loss"] is None else three_digits(model["loss"]),
            hundredths(model["accuracy"]),
            alpha_text(model["alpha"]),
            hundredths(model["gain"]),
            hundredths(model["bound"]),
            style="bold" if model["verdict"] == Verdict.CONFIRMED else "",
        )
    out.print(table)
    for warning in document["warnings"]:
        out.print(Text(f"! {warning['name']}: {legible(warning['text'], 300)}", style="yellow"))
    unused = rows["all"] - rows["choice"] - rows["confirm"]
    chose = f"rows: {rows['choice']:,} chose, {rows['confirm']:,} others confirmed and score"
    left = f", {unused:,} were not used" if unused else ""
    spent = f"{cost['row_evaluations']:,} row evaluations to choose and confirm"
    took = f"{cost['score_evaluations']:,} to score; {three_digits(cost['seconds'])} s"
    times = cost["paper_evaluations"] / cost["row_evaluations"]
    pairs = f"{cost['paper_evaluations']:,} by its rule, {times:.1f} times as many"
    lines = [
        f"{chose}{left}; drawn by seed {rows['seed']}",
        f"cost: {spent}, {took}",
        f"all pairs the paper's way: {pairs}",
        "no control stands beside these gains: `pm-node try` shows what fine-tuning gains",
    ]
    for line in lines:
        out.print(Text(f"  {line}", style="dim"), soft_wrap=True)
    out.print(Text(outcome(document), style="bold"), soft_wrap=True)
    files = document["files"]
    written = (
        "nothing is written; --out FOLDER writes the merges and survey.json"
        if files is None
        else f"{files['survey']} and {counted(files['merged'], 'merged model')} beside it"
    )
    out.print(Text(f"  {written}"), soft_wrap=True)


def _name(name: str | None) -> Text:
    return Text(NONE if name is None else legible(name, NAME_WIDTH))


def outcome(document: dict[str, Any]) -> str:
    """Return the result in one sentence."""
    models = document["models"]
    gaining = [model for model in models if model["verdict"] == Verdict.CONFIRMED]
    text = f"{len(gaining)} of {len(models)} models gain by another, 95 % sure of each"
    whole = sum(model["alpha"] == 1 for model in gaining)
    if whole:
        text += f" ({whole} by taking it whole)"
    unsure = sum(model["verdict"] == Verdict.UNCONFIRMED for model in models)
    return f"{text}, {unsure} perhaps." if unsure else f"{text}."


def _words(model: dict[str, Any]) -> str:
    verdict = Verdict(model["verdict"])
    return WHOLE if verdict is Verdict.CONFIRMED and model["alpha"] == 1 else WORDS[verdict]
