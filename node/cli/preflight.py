"""What can be known to be wrong before a node waits for its chain."""

from __future__ import annotations

from typing import Final

from node.config.loading import Loaded
from node.config.table import ConfigError

GENERATED: Final = "random"
"""The data set of nodes that only settle: it needs no rows."""


def check_data(loaded: Loaded) -> str:
    """Return where the examples will come from. Raises `ConfigError` if they cannot."""
    from node.data.datasets import DATASETS, locate
    from node.data.files import DataError
    from node.data.folder import default_data_folder

    config, origins = loaded
    if config.data_folder is not None and not config.data_folder.is_dir():
        raise ConfigError(
            "data_folder", config.data_folder, origins["data_folder"], "there is no such folder"
        )
    if config.dataset == GENERATED or (config.role == "agent" and ":" in config.trainer):
        return config.dataset
    if config.dataset not in DATASETS:
        known = ", ".join(sorted((*DATASETS, GENERATED)))
        raise ConfigError("dataset", config.dataset, origins["dataset"], f"expected one of {known}")
    try:
        found = locate(config.dataset, config.data_folder or default_data_folder())
    except DataError as error:
        raise ConfigError(
            "dataset", config.dataset, origins["dataset"], f"{error}; or take --dataset digits"
        ) from error
    return config.dataset if found is None else f"{config.dataset} in {found}"
