"""``pm-node verify`` of a receipt of `pm-node try`: measured again from weights and rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from node.cli.invocation import Invocation
from node.cli.own_modules import allow_as_said

SPLIT: Final = "whether the rows, or the seed that divides them, were picked once figures were seen"
LABELLED: Final = "whether any model was trained on the rows"
UNSIGNED: Final = "who measured: the receipt has no signature"


def verify_trial(
    node: Invocation,
    receipt: Path,
    base: Path,
    sold: Sequence[Path],
    merged: Path | None,
    options: dict[str, Any],
) -> None:
    """Check a receipt against files. Raises `MarketError` naming the field that does not hold."""
    from broker_node.trying.reading import read_adapters, read_beside, read_checkpoint
    from broker_node.trying.receipt import check_receipt
    from node.cli.trial_options import read_validation
    from node.cli.try_receipt_file import read
    from node.params.architecture import parse_architecture
    from node.params.merges import is_adapter
    from node.roles.shells import adapter_base

    file = read(receipt)
    allow_as_said(options, file.evaluation.architecture)
    architecture = parse_architecture(file.evaluation.architecture)
    below = adapter_base(node.load().config)
    if is_adapter(architecture):
        if below is None:
            raise click.UsageError("the receipt is of adapters: name their base, --adapter-base")
        paths = (base, *sold, *(() if merged is None else (merged,)))
        buyer, *others = read_adapters(paths, below)
        made = None if merged is None else others.pop().traded.tensors
    else:
        buyer = read_checkpoint(base, architecture=architecture)
        others = [read_beside(path, architecture) for path in sold]
        made = None
        if merged is not None:
            made = read_checkpoint(merged, architecture=architecture).model.tensors
    said = {**options, "label": options["label"] or file.rows.label}
    said["data_folder"] = node.load().config.data_folder
    said["normalise"] = options["normalise"] or file.rows.normalise
    if not said["data"]:
        raise click.UsageError(f"say with --data where the rows are: they were {file.rows.name}")
    _, validation, _ = read_validation(buyer, said)
    models = [model.traded for model in others]
    found = check_receipt(file, buyer.traded, models, validation, merged=made)
    unchecked = [SPLIT, LABELLED] if file.account else [SPLIT, LABELLED, UNSIGNED]
    evaluation = file.evaluation
    if node.json_output:
        told = {
            "holds": True,
            "signed_by": file.account,
            "not_checked": unchecked,
            "said": {"gain": evaluation.gain, "bound": evaluation.bound},
            "found": {"gain": found.gain, "bound": found.bound},
        }
        click.echo(json.dumps(told, indent=2))
        return
    signed = f", signed by {file.account}" if file.account else ""
    click.echo(
        f"the trial holds: a gain of {found.gain / 1e6:.6f} (said {evaluation.gain / 1e6:.6f}) by "
        f"{evaluation.method}{signed}"
    )
    for each in unchecked:
        click.echo(f"not checked: {each}")
