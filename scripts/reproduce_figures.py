"""The figures of `reproduce.py`, by name on the command line."""

from __future__ import annotations

from typing import Final

from scripts import (
    reproduce_dynamics,
    reproduce_figure3,
    reproduce_figure4,
    reproduce_figure5,
)
from scripts.reproduce_figure import FigureStudy

FIGURES: Final[dict[str, FigureStudy]] = {
    module.FIGURE.name: module.FIGURE
    for module in (
        reproduce_figure3,
        reproduce_figure4,
        reproduce_figure5,
        reproduce_dynamics,
    )
}
