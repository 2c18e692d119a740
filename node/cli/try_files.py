"""The folder that `pm-node try` writes: the merge, its card, its receipt, curves and plot."""

from __future__ import annotations

import csv
import io
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from broker_node.trying.errors import TryError
from broker_node.trying.reading import METADATA_KEY, Checkpoint
from broker_node.trying.receipt import TrialReceipt, merged_adapter
from broker_node.trying.trial import Trial
from node.cli.try_card import card
from node.cli.try_plot import plot
from node.cli.try_receipt_file import write
from node.params.adapters import Adapter
from node.params.encoding import save_safetensors
from node.params.peft import CONFIG, TENSORS, write_adapter

MERGED: Final = "merged.safetensors"
CARD: Final = "card.md"
RECEIPT: Final = "receipt.json"
CURVES: Final = "curves.csv"
PLOT: Final = "plot.svg"
BESIDE: Final = (CARD, RECEIPT, CURVES, PLOT)


def names_of(*, adapters: bool) -> tuple[str, ...]:
    """Return the files that are written; of adapters the folder is one of PEFT."""
    return (*((TENSORS, CONFIG) if adapters else (MERGED,)), *BESIDE)


def require_room(out: Path, models: Sequence[Path], *, force: bool) -> None:
    """Raise `TryError` unless the files can be written to `out` without loss.

    A folder with other things in it is written into; nothing of it is removed but, with `force`,
    files of our names. A model that is read is never written over.
    """
    try:
        names = names_of(adapters=any(path.is_dir() for path in models))
    except (OSError, ValueError) as error:
        raise TryError(f"--out {str(out)!r:.120}: {error}") from error
    read = [path / name for path in models for name in ("", TENSORS, CONFIG)]
    require_free(out, names, read, force=force)


def require_free(out: Path, names: Sequence[str], read: Sequence[Path], *, force: bool) -> None:
    """Raise `TryError` unless files of these names can be written to `out`, and none is `read`."""
    try:
        if out.exists() and not out.is_dir():
            raise TryError(f"--out {out} is a file: name a folder")
        held = [name for name in names if (out / name).exists()]
        inputs = {path.resolve() for path in read} if held else set()
        for name in held:
            if (out / name).resolve() in inputs:
                raise TryError(f"--out {out} would write over the model {out / name}: name another")
        if held and not force:
            raise TryError(f"{out / held[0]} exists: name another --out, or say --force")
        above = out if out.is_dir() else out.absolute().parent
        if not above.is_dir():
            raise TryError(f"--out {out}: there is no folder {above}")
        if not os.access(above, os.W_OK):
            raise TryError(f"--out {out}: {above} may not be written to")
    except (OSError, ValueError) as error:
        raise TryError(f"--out {str(out)!r:.120}: {error}") from error


def write_all(
    out: Path,
    document: dict[str, Any],
    trial: Trial,
    models: Sequence[Checkpoint],
    receipt: TrialReceipt,
) -> dict[str, str]:
    """Write the files and return where they are, by what they hold.

    They are written beside `out` first, so that an interrupted command leaves no half of them.
    Raises `TryError` if the disk refuses.
    """
    chosen = None if trial.best is None else trial.candidates[trial.best]
    buyer = models[0]
    names = names_of(adapters=buyer.adapter is not None)
    tensors = buyer.model.tensors if chosen is None else chosen.tensors
    assert tensors is not None
    try:
        above = out.absolute() if out.is_dir() else out.absolute().parent
        draft = above / f".try-{secrets.token_hex(8)}"
        draft.mkdir()
        try:
            (draft / CARD).write_text(card(document), encoding="utf-8")
            if buyer.adapter is not None:
                made = merged_adapter(trial, buyer.adapter, [each.traded for each in models[1:]])
                write_adapter(Adapter(*made), draft)
                weights = TENSORS
            else:
                metadata = {"format": "pt", METADATA_KEY: buyer.model.architecture.text}
                save_safetensors(buyer.named(tensors), draft / MERGED, metadata)
                weights = MERGED
            # as readable as the others: a draft of safetensors is its owner's alone
            (draft / weights).chmod((draft / CARD).stat().st_mode & 0o777)
            (draft / CURVES).write_text(curves(document), encoding="utf-8")
            (draft / PLOT).write_bytes(plot(document))
            (draft / RECEIPT).write_text(write(receipt) + "\n", encoding="ascii")
            settle(draft, out, names)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise TryError(f"cannot write to {out}: {error.strerror}") from error
    return {name.partition(".")[0]: str(out / name) for name in names}


def settle(draft: Path, out: Path, names: Sequence[str]) -> None:
    """Put the files in place: by one rename if there is no folder yet, else one by one."""
    if not out.exists():
        draft.rename(out)
        return
    for name in names:
        (draft / name).replace(out / name)


def curves(document: dict[str, Any]) -> str:
    """Return the curves as CSV, a row for each α of each seller and alignment."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["seller", "alignment", "alpha", "choice_loss", "loss", "accuracy", "chosen"])
    for curve in document["curves"]:
        for point in curve["points"]:
            writer.writerow(
                [
                    curve["seller"],
                    curve["align"],
                    f"{point['alpha']:.6f}",
                    *(_number(point[key]) for key in ("choice_loss", "loss", "accuracy")),
                    int(point["chosen"]),
                ]
            )
    return written.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"
