"""``pm-node survey``: of many checkpoints, the best other for each to be merged with."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from node.cli.exits import DONE
from node.cli.invocation import Invocation
from node.cli.trial_options import read_validation, run_options, seed_of, trial_options


@click.command("survey")
@click.argument("files", metavar="FILE...", nargs=-1, type=click.Path(path_type=Path))
@trial_options(
    out="folder to write survey.json to, and NAME.merged.safetensors for each model that gains for "
    "sure"
)
@click.option(
    "--sort", type=click.Choice(["gain", "name"]), default="gain", show_default=True,
    help="the order of the table",
)  # fmt: skip
@run_options(device="what runs the models; they are lined up, and merged for good, on the CPU")
@click.pass_obj
def survey(node: Invocation | None, /, **options: Any) -> int:
    """Find for each of many checkpoints the best other to merge with, offline.

    FILE... are two or more safetensors files of one architecture and widths, or folders of them.
    Every model is lined up once with all others and answers ROWS once; a few merges of the most
    promising pairs are measured. So forward passes grow with the models, not with their pairs, and
    the pair that is best of all may be missed. Merges are along a straight line: alpha is the share
    of the other model, and at alpha 1 it is that model itself, taken whole.

    One half of ROWS, drawn by --seed, chooses; for each model one merge is then confirmed on rows
    of the other half: gains are of rows that chose nothing. "≥" is a one-sided 95% bound, paired
    over rows, of that model alone: of a hundred models that gain nothing five may seem to. Whoever
    takes the best line of the table chooses by those rows: measure it again on others.

    \b
    pm-node survey models/ --data val.csv
    pm-node survey a.safetensors b.safetensors c.safetensors --data digits --out merged

    `pm-node try A B` tries one pair by all methods, of other hidden widths, language models and
    adapters too, signs a receipt, and shows the control: what fine-tuning on the same labels gains.
    Nothing is signed here; the document (--json, and survey.json) has each recipe with its hash and
    the roots of both models and of the merge, so that anyone who has the files can make it again.

    Exit code 0: it ran, whether or not a merge gains. 2: a file or an option cannot be used; the
    line says which, and what to do.
    """  # noqa: D301 (click keeps the lines of a paragraph that begins so)
    invocation = node or Invocation(config=None, flags={}, json_output=False)
    if not options["files"]:
        raise click.UsageError("name two safetensors files at least, or a folder of them")
    if not options["data"]:
        raise click.UsageError("say with --data on which rows; see --help")
    as_json = options["as_json"] or invocation.json_output
    return _run(options, seed=seed_of(options, invocation), as_json=as_json)


def _run(options: dict[str, Any], *, seed: int, as_json: bool) -> int:
    import psutil
    from rich.console import Console

    from broker_node.evaluate.device import runner_on
    from broker_node.trying.gathering import files_of, gather, require_memory
    from broker_node.trying.reading import parse_flag
    from broker_node.trying.survey import run_survey
    from node.cli.survey_document import document_of, sorted_by
    from node.cli.survey_files import require_survey_room, write_survey
    from node.cli.survey_table import print_survey

    files, out = files_of(options["files"]), options["out"]
    if out is not None:
        require_survey_room(out, files, options["files"], force=options["force"])
    runner = runner_on(options["device"])
    require_memory(files, psutil.virtual_memory().total)
    named, order = options["architecture"], options["order"]
    console = Console(stderr=True, quiet=as_json)
    with contextlib.ExitStack() as stack:
        told: Callable[[str], None] = _ignored
        if console.is_terminal:
            told = stack.enter_context(console.status("reading")).update
        gathered = gather(
            files,
            architecture=None if named is None else parse_flag(named),
            order=() if order is None else tuple(order.split(",")),
            read=lambda count: told(f"reading {count} of {len(files)} models"),
        )
        own, validation, _ = read_validation(gathered.models[0], options)
        start = time.perf_counter()
        models = [each.model for each in gathered.models]
        found = run_survey(models, validation, seed=seed, told=told, runner=runner)
        seconds = time.perf_counter() - start
        document = document_of(found, gathered, own, validation, seed=seed, seconds=seconds)
        sorted_by(document, options["sort"])
        if out is not None:
            told("writing")
            write_survey(out, document, found, gathered, files)
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        print_survey(document)
    return DONE


def _ignored(_: str) -> None:
    pass
