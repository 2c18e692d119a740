"""Where data files lie for a user who names no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

NAME: Final = ".data"
_CHECKOUT: Final = Path(__file__).resolve().parents[2]


def default_data_folder() -> Path:
    """Return `.data` of the working directory if there is one, else of the checkout."""
    here = Path.cwd() / NAME
    return here if here.is_dir() else _CHECKOUT / NAME
