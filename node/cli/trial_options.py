"""The options of commands that measure merges on rows of one's own, and what these name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.invocation import Invocation

if TYPE_CHECKING:
    from broker_node.evaluate.validation import ValidationSet
    from broker_node.trying.reading import Checkpoint
    from broker_node.trying.receipt import Described
    from node.data.own_rows import OwnRows

DEVICES: Final = ("cpu", "cuda", "mps", "auto")
"""Those of `broker_node.evaluate.device`, which loads PyTorch."""


def rows_options(command: Any) -> Any:
    """Add the options that say which rows are measured on; `verify` takes them too."""
    for option in (
        click.option(
            "--normalise",
            default=None,
            help="as in training: auto (bytes over 255, other numbers as they are), none, mnist, "
            "fashion, or MEAN,STD after the division  [default: auto]",
        ),
        click.option(
            "--label",
            default=None,
            help="column of a CSV file that holds the label: first, last, or its heading  "
            "[default: last]",
        ),
        click.option(
            "--data",
            default=None,
            metavar="ROWS",
            help="labelled rows that no model was trained on: a CSV file, an .npz file of x and "
            "y, a folder of IDX files, or digits, mnist, fashion, linear",
        ),
    ):
        command = option(command)
    return command


def trial_options(*, out: str) -> Callable[[Any], Any]:
    """Add the options that say what is read and written; `out` is the help of ``--out``."""

    def add(command: Any) -> Any:
        for option in (
            click.option(
                "--order", default=None, metavar="NAME,NAME,...",
                help="layers as data flows through them, where names and shapes leave that open",
            ),
            click.option(
                "--architecture", default=None,
                help="mlp:784-256-10, linear:64-10, or a JSON file of {name, config}  [default: by "
                "the files' metadata, names and shapes]",
            ),
            click.option(
                "--force", is_flag=True, help="replace those files where --out has them already"
            ),
            click.option("--out", type=click.Path(path_type=Path), default=None, help=out),
            click.option(
                "--data-folder", type=click.Path(file_okay=False, path_type=Path), default=None,
                help="where the files of a built-in data set are  [default: .data]",
            ),
        ):  # fmt: skip
            command = option(command)
        return rows_options(command)

    return add


def run_options(*, device: str) -> Callable[[Any], Any]:
    """Add ``--seed``, which `seed_of` reads, ``--device`` with this help, and ``--json``."""

    def add(command: Any) -> Any:
        for option in (
            click.option(
                "--json", "as_json", is_flag=True, help="one JSON document on standard output"
            ),
            click.option(
                "--device", type=click.Choice(DEVICES), default="cpu", show_default=True,
                help=device,
            ),
            click.option(
                "--seed", default=None, type=click.IntRange(0, 2**63 - 1), metavar="N",
                help="draws the two halves of the rows  [default: 0]",
            ),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


def seed_of(options: Mapping[str, Any], invocation: Invocation) -> int:
    """Return what draws the rows: the command's own seed, or that of all of `pm-node`, or 0."""
    seed = options["seed"]
    return int(str(invocation.flags.get("seed") or 0)) if seed is None else int(seed)


def read_validation(
    buyer: Checkpoint, options: dict[str, Any]
) -> tuple[OwnRows, ValidationSet, Described]:
    """Return the rows that the options name, fit for the buyer's model. Raises `DataError`."""
    from broker_node.evaluate.validation import ValidationSet
    from broker_node.trying.receipt import Described
    from node.data.folder import default_data_folder
    from node.data.own_rows import AUTO, read_rows

    own = read_rows(
        options["data"],
        label=options["label"] or "last",
        normalise=options["normalise"] or AUTO,
        data_folder=options["data_folder"] or default_data_folder(),
    )
    model = buyer.model.architecture.model
    rows = own.for_model(model.input_width(), outputs_of(buyer))
    described = Described(
        name=Path(own.name).name or own.name, label=own.label, normalise=own.normalise
    )
    return own, ValidationSet.of(rows), described


def outputs_of(checkpoint: Checkpoint) -> int:
    """Return how many numbers a model answers with."""
    import torch

    from node.params.architecture import apply

    model = checkpoint.model
    width = model.architecture.model.input_width()
    return int(apply(model.architecture, model.tensors, torch.zeros(1, width)).shape[-1])
