"""``pm-node try``: which checkpoints merge well, offline, on rows of one's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.exits import DONE
from node.cli.invocation import Invocation
from node.cli.own_modules import (
    module_option,
    named_architecture,
    shape_options,
)
from node.cli.trial_options import read_validation, run_options, seed_of, trial_options

if TYPE_CHECKING:
    from broker_node.evaluate.metrics import Metric
    from broker_node.trying.reading import Checkpoint
    from node.params.architecture import Architecture

FILE: Final = click.Path(dir_okay=False, path_type=Path)
MAX_MODELS: Final = 65
"""The buyer's, and as many sold ones as a receipt names."""


@click.command("try")
@click.argument("models", metavar="A B [C ...]", nargs=-1, type=click.Path(path_type=Path))
@trial_options(
    out="folder to write merged.safetensors, card.md, receipt.json, curves.csv and plot.svg to"
)
@click.option(
    "--base", type=click.Path(path_type=Path), default=None,
    help="where A, B, C are adapters, folders of PEFT: the weights that they are of",
)  # fmt: skip
@module_option
@shape_options
@click.option(
    "--align",
    multiple=True,
    metavar="NAME",
    help="only this alignment, such as weight-matching; may be repeated",
)
@click.option(
    "--merge",
    multiple=True,
    metavar="NAME",
    help="only this merge method, such as lerp or outright; may be repeated. `ensemble` runs all "
    "models and writes none",
)
@click.option(
    "--tuned-from", type=FILE, default=None,
    help="the model that A, B, C were all tuned from, for methods that need it",
)  # fmt: skip
@click.option(
    "--metric", default=None, metavar="NAME",
    help="also report loss, accuracy or perplexity, or by MODULE:FUNCTION metric(model, batch): "
    "model answers features with outputs, batch is (features, targets), the answer one number. "
    "This runs that code of yours, unconfined",
)  # fmt: skip
@click.option("--sign", is_flag=True, help="sign the receipt with the account of --data-dir")
@click.option("--data-dir", type=click.Path(path_type=Path), default=None, help="for --sign")
@click.option("--password-file", type=FILE, default=None, help="for --sign  [default: asked for]")
@run_options(
    device="what runs the models, and computes joint-matching's similarities in bfloat16; other "
    "alignments, merges and the bytes that are written are the CPU's"
)
@click.pass_obj
def try_(node: Invocation | None, /, **options: Any) -> int:
    """Try which checkpoints merge well, offline: no network, no chain, no account.

    A is yours; B, C and so on are what might improve it: safetensors files of one architecture,
    whose hidden widths may differ (partial-matching then, with its controls). Each is lined up
    with A by every alignment, merged by every method, and measured on ROWS. One half of the rows,
    drawn by --seed, chooses alpha, alignment and method; the other half, which chose nothing,
    scores. The gain is the drop of the loss; "≥" and "at least" are its one-sided 95% bound,
    paired over rows. In the table ★ is the best on the rows that choose, ○ what a market's broker
    does unless told otherwise. Controls (A fine-tuned, A's outputs scaled by one number) are what
    A gains without B; a merge that is not above them is told.

    \b
    pm-node try a.safetensors b.safetensors --data val.csv --out merged
    pm-node try a.safetensors b.safetensors c.safetensors --data digits
    pm-node try a.safetensors b.safetensors --data idx/ --normalise 0.1307,0.3081

    Adapters are folders of PEFT, all of one base: `pm-node try a/ b/ --base base.safetensors`.
    Ranks may differ, and add; --out is then a folder of PEFT too.

    An architecture is known for chains of layers NAME.weight, NAME.bias with ReLU between them;
    name another one with --architecture, with all of these keys:

    \b
    {"name": "resnet", "config": {"classes": 10, "depth": 16, "image": [3, 32, 32], "widen": 1}}
    {"name": "gpt", "config": {"context": 64, "depth": 2, "heads": 4, "hidden": 256,
      "norm": "rms", "tied": false, "vocabulary": 256, "width": 64}}

    A ResNet's depth is 6n + 4; norm is rms or layer. For any module of PyTorch name the function
    of yours that builds it, and the shape of a row, here or in a file for --architecture: its
    symmetries are read off its graph.

    \b
    pm-node try a.safetensors b.safetensors --data digits --module mine:build --input 1,8,8

    The function returns an nn.Module that answers a batch of rows with logits [rows, classes]; the
    files hold its state_dict. A graph that cannot be read leaves --align identity.

    float16, bfloat16 and float64 are converted to float32.

    `pm-node verify merged/receipt.json --base a.safetensors --sold b.safetensors --data val.csv`
    measures the receipt again. Exit code 0: it ran, whether or not a merge gains. 2: a file or
    an option cannot be used; the line says which, and what to do.
    """  # noqa: D301 (click keeps the lines of a paragraph that begins so)
    invocation = node or Invocation(config=None, flags={}, json_output=False)
    paths: Sequence[Path] = options["models"]
    if len(paths) < 2:
        raise click.UsageError("name two models at least: yours first, then what may improve it")
    if len(paths) > MAX_MODELS:
        raise click.UsageError(f"{len(paths)} models, at most {MAX_MODELS}")
    if not options["data"]:
        raise click.UsageError("say with --data on which rows; see --help")
    if set(options["merge"]) == {"ensemble"} and options["out"] is not None:
        raise click.UsageError(
            "--merge ensemble writes no model, for it runs all of them: keep their files and leave "
            "out --out, or name a merge to write too, such as --merge lerp"
        )
    if options["sign"] and options["out"] is None:
        raise click.UsageError("--sign signs a receipt: say with --out where it goes")
    as_json = options["as_json"] or invocation.json_output
    return _run(invocation, options, seed=seed_of(options, invocation), as_json=as_json)


def _run(node: Invocation, options: dict[str, Any], *, seed: int, as_json: bool) -> int:
    from rich.console import Console

    from broker_node.evaluate.device import runner_on
    from broker_node.trying.methods import aligners, mergers, usual_of
    from broker_node.trying.reading import read_checkpoint
    from broker_node.trying.receipt import receipt_of
    from broker_node.trying.trial import run_trial
    from node.cli.try_document import document_of
    from node.cli.try_files import require_room, write_all
    from node.cli.try_table import print_document

    adapters = options["base"] is not None or any(path.is_dir() for path in options["models"])
    chosen, out = aligners(options["align"], adapters=adapters), options["out"]
    if out is not None:
        require_room(out, options["models"], force=options["force"])
    key = _account_key(node, options) if options["sign"] else None
    metric = None if options["metric"] is None else load_metric(options["metric"])
    runner = runner_on(options["device"])
    console = Console(stderr=True, quiet=as_json)
    with console.status("reading") if console.is_terminal else _nothing():
        named = named_architecture(options)
        models = read_models(
            options["models"],
            named,
            options["order"],
            base=options["base"],
            device=options["device"],
        )
        buyer = models[0]
        ancestor = None
        if options["tuned_from"] is not None:
            held = read_checkpoint(options["tuned_from"], architecture=buyer.model.architecture)
            ancestor = held.model
        merges = mergers(options["merge"], seed=seed, ancestor=ancestor, adapters=adapters)
        own, validation, described = read_validation(buyer, options)
    with console.status("measuring") if console.is_terminal else _nothing():
        trial = run_trial(
            buyer.model,
            [model.model for model in models[1:]],
            validation,
            seed=seed,
            aligners=chosen,
            mergers=merges,
            metric=metric,
            runner=runner,
            usual=[usual_of(buyer.traded, model.traded) for model in models[1:]],
        )
        receipt = receipt_of(
            trial,
            buyer.traded,
            [model.traded for model in models[1:]],
            validation,
            seed=seed,
            rows=described,
            account_key=key,
        )
        document = document_of(
            trial,
            models,
            own,
            validation,
            receipt,
            metric=options["metric"],
            merges=sorted(set(options["merge"])),
        )
        if out is not None:
            document["files"] = write_all(out, document, trial, models, receipt)
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        print_document(document)
    return DONE


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def read_models(
    paths: Sequence[Path],
    named: Architecture | None,
    order: str | None,
    *,
    base: Path | None = None,
    device: str = "cpu",
) -> list[Checkpoint]:
    """Return the models of the files, of one architecture but for hidden widths.

    A named architecture is the first file's. `base`: of what folders of adapters are. `device`:
    what will run them. Raises `TryError`.
    """
    from broker_node.evaluate.device import fetches_by_itself
    from broker_node.trying.errors import TryError
    from broker_node.trying.reading import (
        read_adapters,
        read_base,
        read_beside,
        read_checkpoint,
        require_alike,
    )

    if base is not None:
        return read_adapters(paths, read_base(base))
    folders = [path for path in paths if path.is_dir()]
    if folders:
        raise TryError(f"{folders[0]} is a folder: if an adapter's, name its base with --base FILE")
    layers = () if order is None else tuple(order.split(","))
    locked = fetches_by_itself(device)
    models: list[Checkpoint] = []
    for path in paths:
        if models and named is not None:
            model = read_beside(path, named, order=layers, locked=locked)
        else:
            model = read_checkpoint(path, architecture=named, order=layers, locked=locked)
        if models:
            require_alike(models[0], model)
        models.append(model)
    return models


def load_metric(name: str) -> Metric:
    """Return a metric by its name, or by ``module:function``; the working directory counts.

    Whatever it raises ends the command in one line. Raises `TryError`.
    """
    from broker_node.evaluate.metrics import MetricError, metric_named
    from broker_node.trying.errors import TryError
    from node.params.families.factories import look_here

    look_here()
    try:
        return metric_named(name)
    except MetricError as error:
        raise TryError(f"--metric {error}") from error


def _account_key(node: Invocation, options: dict[str, Any]) -> bytes:
    """Return the key of the account that signs. Raises `IdentityError` and `HomeError`."""
    from node.cli.keys import _password
    from node.identity import load_account

    said = {
        name: options[name] for name in ("data_dir", "password_file") if options[name] is not None
    }
    invocation = dataclasses.replace(node, flags={**node.flags, **said})
    config = invocation.load().config
    home = invocation.existing_home(config)
    return load_account(home.keystore, _password(config, home)).private_key
