"""The files of a report in the folder of a run."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from node.devnet.report.document import DOCUMENT, PAGE, PLOTS_FOLDER, Report, as_written
from node.devnet.report.page import page
from node.devnet.report.plots import draw_all


def write_report(folder: Path, report: Report) -> None:
    """Write ``report.json``, ``plots/*.png`` and ``report.html``, in this order.

    Each file appears whole, in place of an earlier one. The JSON is there first: whatever may
    hinder a plot, the figures are safe. Raises `OSError`.
    """
    written = as_written(report)
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps(written, indent=2, allow_nan=False) + "\n"
    _replace(folder / DOCUMENT, document.encode("ascii"))
    pictures = draw_all(written)
    (folder / PLOTS_FOLDER).mkdir(exist_ok=True)
    for name, picture in pictures.items():
        _replace(folder / PLOTS_FOLDER / f"{name}.png", picture.png)
    _replace(folder / PAGE, page(written, pictures).encode("utf-8"))


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, meets the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
