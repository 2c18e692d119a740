"""The figures of Train 'n Trade, by name on the command line."""

from __future__ import annotations

from typing import Final

from scripts.reproduction import dynamics, figure3, figure4, figure5
from scripts.reproduction.figure import FigureStudy

FIGURES: Final[dict[str, FigureStudy]] = {
    module.FIGURE.name: module.FIGURE for module in (figure3, figure4, figure5, dynamics)
}
