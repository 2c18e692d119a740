"""The folder that `pm-node survey` writes: the merge of each model that gains, and the document."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from broker_node.evaluate.crowd import Verdict
from broker_node.trying.errors import TryError
from broker_node.trying.gathering import SUFFIX, Gathered
from broker_node.trying.reading import METADATA_KEY
from broker_node.trying.survey import Survey
from node.cli.try_files import require_free, settle
from node.params.encoding import save_safetensors

SURVEY: Final = "survey.json"
MERGED: Final = f".merged{SUFFIX}"


def merged_names(files: Sequence[Path]) -> dict[Path, str]:
    """Return under which name the merge of each file's model is written; no two are alike.

    By the paths alone, whatever the models are: a number is added to the second of two like names.
    """
    names: dict[Path, str] = {}
    taken = set()  # as a file system sees them that tells no capitals
    for path in files:
        stem, count = path.stem, 1
        while (name := f"{stem}{MERGED}").lower() in taken:
            count += 1
            stem = f"{path.stem}-{count}"
        taken.add(name.lower())
        names[path] = name
    return names


def require_survey_room(
    out: Path, files: Sequence[Path], named: Sequence[Path], *, force: bool
) -> None:
    """Raise `TryError` unless the files can be written to `out` without loss.

    A folder that is `named` to be read is none to write to: its next survey would read the merges.
    """
    for folder in named:
        try:
            if folder.is_dir() and folder.resolve() == out.resolve():
                raise TryError(f"--out {out} is read from: name another folder")
        except (OSError, ValueError) as error:
            raise TryError(f"--out {str(out)!r:.120}: {error}") from error
    require_free(out, (*merged_names(files).values(), SURVEY), files, force=force)


def write_survey(
    out: Path,
    document: dict[str, Any],
    survey: Survey,
    gathered: Gathered,
    files: Sequence[Path],
) -> None:
    """Write the merges and the document, and put into this where they are.

    They are written beside `out` first, so that an interrupted command leaves no half of them.
    Files of our names that an earlier survey left go. Raises `TryError` if the disk refuses.
    """
    names = merged_names(files)
    written = [SURVEY]
    by_file = {model["file"]: model for model in document["models"]}
    try:
        above = out.absolute() if out.is_dir() else out.absolute().parent
        draft = above / f".survey-{secrets.token_hex(8)}"
        draft.mkdir()
        try:
            for place, (model, found) in enumerate(zip(gathered.models, survey.found, strict=True)):
                if found.choice.verdict is not Verdict.CONFIRMED:
                    continue
                name = names[model.path]
                metadata = {"format": "pt", METADATA_KEY: model.model.architecture.text}
                save_safetensors(model.named(survey.merged(place)), draft / name, metadata)
                by_file[str(model.path)]["merged_file"] = str(out / name)
                written.append(name)
            document["files"] = {"survey": str(out / SURVEY), "merged": len(written) - 1}
            text = json.dumps(document, indent=2, allow_nan=False)
            (draft / SURVEY).write_text(text + "\n", encoding="ascii")
            for name in written[1:]:
                # as readable as the others: a draft of safetensors is its owner's alone
                (draft / name).chmod((draft / SURVEY).stat().st_mode & 0o777)
            settle(draft, out, written)
            for name in {*names.values()} - {*written}:
                (out / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise TryError(f"cannot write to {out}: {error.strerror}") from error
