"""Many checkpoints of one architecture, from files and folders, for a survey of them all.

Whatever order the files are named in, they are gathered in the order of their paths. What a survey
cannot hold is refused by name before anything is computed: another architecture, adapters,
language models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker_node.trying.errors import TryError
from broker_node.trying.reading import Checkpoint, read_checkpoint, shown
from node.params.architecture import Architecture
from node.params.families.base import TokenModel
from node.params.merges import is_adapter
from node.params.peft import CONFIG, TENSORS
from node.protocol.types import Digest

SUFFIX: Final = ".safetensors"
MAX_MODELS: Final = 1_024
HELD: Final = 3
"""Times that every model is in memory: as read, in the universe's numbering, and in one stack."""
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Models of one architecture, no two of the same weights, in the order of their paths."""

    models: tuple[Checkpoint, ...]
    repeated: tuple[tuple[Path, Path], ...]
    """Files that were left out, each with the file that holds the same weights."""


def files_of(named: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and those that lie in folders; each once, by path.

    Raises `TryError` for a folder without safetensors or of an adapter, and for fewer than two
    files or over `MAX_MODELS`.
    """
    found: dict[Path, Path] = {}
    for path in sorted(named, key=str):
        try:
            for each in _inside(path) if path.is_dir() else [path]:
                found.setdefault(each.resolve(), each)
        except (OSError, ValueError) as error:
            raise TryError(f"cannot read {str(path)!r:.120}: {error}") from error
    if len(found) < 2:
        what = f"{next(iter(found.values()))} is one model" if found else "no model is named"
        raise TryError(f"{what}: name two files at least, or a folder of them")
    if len(found) > MAX_MODELS:
        raise TryError(f"{len(found)} models, at most {MAX_MODELS}")
    return sorted(found.values(), key=str)


def _inside(folder: Path) -> list[Path]:
    if (folder / CONFIG).exists():
        raise TryError(f"{folder} is an adapter's folder: {_PAIRS_OF_ADAPTERS}")
    found = [
        path
        for path in folder.iterdir()
        if path.suffix == SUFFIX and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise TryError(f"{folder} holds no *{SUFFIX}")
    return found


def require_memory(files: Sequence[Path], available: int) -> None:
    """Raise `TryError` unless so many bytes of memory hold the models as a survey does."""
    try:
        held = HELD * sum(path.stat().st_size for path in files)
    except OSError:
        return  # reading says what is wrong, and with which file
    if held > available:
        raise TryError(
            f"{len(files)} models take {held / _GIB:.1f} GiB of memory (their files {HELD} times), "
            f"and this machine has {available / _GIB:.1f}: survey fewer at a time"
        )


def gather(
    files: Sequence[Path],
    *,
    architecture: Architecture | None = None,
    order: Sequence[str] = (),
    read: Callable[[int], None] = lambda _: None,
) -> Gathered:
    """Return the models of the files (`files_of`); `read` hears how many there are so far.

    Raises `TryError` naming the file, both files where two do not go together, and what to do.
    """
    models: dict[Digest, Checkpoint] = {}
    repeated = []
    for place, path in enumerate(files):
        if path.name == TENSORS:
            raise TryError(f"{path} is an adapter's: {_PAIRS_OF_ADAPTERS}")
        model = read_checkpoint(path, architecture=architecture, order=order)
        _require_surveyed(model)
        first = next(iter(models.values()), model)
        _require_same(first, model)
        held = models.setdefault(model.model.weights_root, model)
        if held is not model:
            repeated.append((path, held.path))
        read(place + 1)
    if len(models) < 2:
        first_path, *others = files
        raise TryError(
            f"{first_path} and {others[0]} hold the same weights"
            + (", as all others do" if len(others) > 1 else "")
            + ": there is nobody else to merge with"
        )
    return Gathered(models=tuple(models.values()), repeated=tuple(repeated))


_PAIRS_OF_ADAPTERS: Final = "adapters are tried pair by pair, `pm-node try A B --base FILE`"


def _require_surveyed(checkpoint: Checkpoint) -> None:
    architecture = checkpoint.model.architecture
    if is_adapter(architecture):
        raise TryError(f"{checkpoint.path} holds adapters: {_PAIRS_OF_ADAPTERS}")
    if isinstance(architecture.model, TokenModel):
        raise TryError(
            f"{checkpoint.path} is {shown(architecture)}, a language model: the answers of all "
            "models to every place of all rows are too many to hold; try them pair by pair, "
            "`pm-node try A B`"
        )


def _require_same(first: Checkpoint, other: Checkpoint) -> None:
    ours, theirs = first.model.architecture, other.model.architecture
    if ours != theirs:
        raise TryError(
            f"{other.path} is {shown(theirs)} and {first.path} is {shown(ours)}: a survey is of "
            "models of one architecture; `pm-node try` merges pairs of other hidden widths"
        )
