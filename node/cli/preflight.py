"""What can be known to be wrong before a node waits for its chain."""

from __future__ import annotations

from typing import Final

from node.config.table import ConfigError, Loaded

GENERATED: Final = "random"
"""The data set of nodes that only settle: it needs no rows."""


def check_data(loaded: Loaded) -> str:
    """Return where the examples will come from. Raises `ConfigError` if they cannot."""
    from node.data.datasets import DATASETS, MNIST_FILES
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
    if config.dataset == "mnist":
        folder = (config.data_folder or default_data_folder()) / "mnist"
        missing = [name for name in MNIST_FILES if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                "dataset",
                config.dataset,
                origins["dataset"],
                f"there is no {folder / missing[0]}; run scripts/fetch_data.py, "
                "name a --data-folder that has it, or take --dataset digits",
            )
        return f"mnist in {folder}"
    return config.dataset
