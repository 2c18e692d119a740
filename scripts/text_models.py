"""Small language models of one text, from different seeds: what a benchmark of merging starts from.

The text is the King James Version, from Debian's package `bible-kjv-text` by the program `bible`:
its verses one a line, without their numbers, as bytes. It is cut into `STRETCHES`, and each of
them, by position, into a part to train on, the broker's rows to choose by, rows that score, and
rows that are only reported on. No two rows of the last three have a byte in common.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from broker_node.evaluate.curve import row_losses
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.data.clean import OverlapError, require_apart
from node.data.files import DataError
from node.data.rows import Rows
from node.params.architecture import Architecture, apply, layout, random_init
from node.params.encoding import decode_file, encode_tensors, weights_root
from node.params.families.base import TokenModel
from node.params.permutation import Tensors
from node.protocol.errors import MarketError

CONTEXT: Final = 64
VOCABULARY: Final = 128
"""Bytes; the text is ASCII."""
ARCHITECTURE: Final = Architecture(
    "gpt",
    {
        "context": CONTEXT,
        "depth": 4,
        "heads": 4,
        "hidden": 512,
        "norm": "rms",
        "tied": False,
        "vocabulary": VOCABULARY,
        "width": 128,
    },
)
COMMAND: Final = ("bible", "-l99999", "Gen1:1-Rev22:21")
PACKAGE: Final = "bible-kjv"
TEXT_SHA256: Final = "b55e956fcf5f187160b3d0dfa93bbac269d127902ad9fb6c8f05a5dab019f6d5"
TIMEOUT: Final = 60
STRETCHES: Final = 20
SHARES: Final = {"train": 0.88, "choice": 0.04, "score": 0.04, "report": 0.04}
"""Of each stretch, in this order."""
REPEATED: Final = 0.05
"""The largest share of a part's rows that may stand word for word in what is trained on: a book
repeats itself, in one such row of a hundred here; a copy of a stretch does in all."""
STEPS: Final = 700
WARM: Final = 50
BATCH: Final = 16
LEARNING_RATE: Final = 3e-3
LAST_RATE: Final = 0.1
"""Of `LEARNING_RATE`, at the end of the cosine."""
DECAY: Final = 0.1
LARGEST_GRADIENT: Final = 1.0
TUNING_RATE: Final = 1e-3
"""At the first step of fine-tuning; it falls in a line to `LAST_TUNING_RATE` of it."""
LAST_TUNING_RATE: Final = 0.05
STOPPING: Final = 4
"""One row in so many says when fine-tuning stops."""
LOOKED_EVERY: Final = 10
"""Steps, to see whether to stop."""


def text() -> bytes:
    """Return the verses. Raises `DataError` that says what to install, or for another text."""
    program = shutil.which(COMMAND[0])
    if program is None:
        raise DataError(f"there is no program {COMMAND[0]!r}: apt-get install {PACKAGE}")
    run = subprocess.run(
        [program, *COMMAND[1:]], capture_output=True, check=False, stdin=subprocess.DEVNULL,
        timeout=TIMEOUT,
    )  # fmt: skip
    numbered = re.finditer(rb"^  \d+ (.*?) *$", run.stdout, re.MULTILINE)
    verses = b"".join(found[1] + b"\n" for found in numbered)
    got = hashlib.sha256(verses).hexdigest()
    if got != TEXT_SHA256:
        raise DataError(f"the verses of {COMMAND[0]!r} have SHA-256 {got}, expected {TEXT_SHA256}")
    return verses


def unigram_entropy(data: bytes) -> float:
    """Return the entropy of single bytes in nats: the loss by their counts alone."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8)).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def parts(data: bytes) -> dict[str, list[NDArray[np.uint8]]]:
    """Return the pieces of each part, one a stretch."""
    found: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in SHARES}
    for stretch in np.array_split(np.frombuffer(data, dtype=np.uint8), STRETCHES):
        ends = (np.cumsum(list(SHARES.values())) * len(stretch)).round().astype(int)
        for name, piece in zip(SHARES, np.split(stretch, ends[:-1]), strict=True):
            found[name].append(piece)
    return found


def rows_of(pieces: list[NDArray[np.uint8]], context: int = CONTEXT) -> Rows:
    """Return rows of `context` bytes, each with the one behind it; none have a byte in common."""
    windows = np.concatenate(
        [
            piece[: len(piece) // (context + 1) * (context + 1)].reshape(-1, context + 1)
            for piece in pieces
        ]
    )
    return Rows(
        inputs_RF=windows[:, :-1].astype(np.float32), targets_R=windows[:, -1].astype(np.int64)
    )


def held_out(pieces: dict[str, list[NDArray[np.uint8]]], context: int = CONTEXT) -> dict[str, Rows]:
    """Return the rows of each part but the one that is trained on, of stretches that are apart.

    Raises `OverlapError` for a byte of the text in two parts, for a row in two, and for a part of
    which more than `REPEATED` stands word for word in what is trained on.
    """
    for one, other in itertools.combinations(pieces, 2):
        if any(np.shares_memory(a, b) for a in pieces[one] for b in pieces[other]):
            raise OverlapError(
                f"{OverlapError.reason}: the parts {one} and {other} have bytes of the text in "
                "common: every window over these is in both; cut them apart"
            )
    rows = {name: rows_of(of, context) for name, of in pieces.items() if name != "train"}
    require_apart(rows)
    for name, of in rows.items():
        count = repeated(of, pieces["train"])
        if count > REPEATED * len(of):
            raise OverlapError(
                f"{OverlapError.reason}: {count:,} of {len(of):,} rows of the part {name} stand "
                "word for word in what is trained on: the stretches are copies of one another"
            )
    return rows


def repeated(rows: Rows, trained: list[NDArray[np.uint8]]) -> int:
    """Return how many of the rows stand word for word, at any place, in what is trained on."""
    inputs_RF, targets_R = rows.inputs_RF, rows.targets_R
    windows_RF = np.concatenate([inputs_RF, targets_R[:, None]], axis=1).astype(np.uint8)
    wanted = [window.tobytes() for window in windows_RF]
    looked_for, found, size = set(wanted), set[bytes](), windows_RF.shape[1]
    for piece in trained:
        data = piece.tobytes()
        for at in range(len(data) - size + 1):
            if (window := data[at : at + size]) in looked_for:
                found.add(window)
    return sum(window in found for window in wanted)


def _batch(
    pieces: list[torch.Tensor], context: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs_RF and targets_R of `BATCH` windows drawn anywhere in the pieces."""
    starts = torch.tensor([len(piece) - context for piece in pieces])
    ends = starts.cumsum(0)
    drawn = torch.randint(int(ends[-1]), (BATCH,), generator=generator)
    of_piece = torch.searchsorted(ends, drawn, right=True)
    windows = torch.stack(
        [
            pieces[piece][at : at + context + 1]
            for piece, at in zip(
                of_piece.tolist(), (drawn - (ends - starts)[of_piece]).tolist(), strict=True
            )
        ]
    )
    return windows[:, :-1], windows[:, -1]


def fitted(
    architecture: Architecture, pieces: list[NDArray[np.uint8]], *, seed: int, steps: int
) -> dict[str, torch.Tensor]:
    """Return a model trained on windows of the pieces, all drawn by the seed: AdamW, cosine."""
    model = architecture.model
    assert isinstance(model, TokenModel)
    context = model.input_width()
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor.requires_grad_() for name, tensor in random_init(architecture, seed).items()
    }
    bytes_of = [torch.from_numpy(piece.astype(np.int64)) for piece in pieces]
    optimizer = torch.optim.AdamW(
        tensors.values(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=DECAY
    )
    for step in range(steps):
        turn = (1 + math.cos(math.pi * step / steps)) / 2
        rate = min((step + 1) / WARM, LAST_RATE + (1 - LAST_RATE) * turn)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        inputs_RF, targets_R = _batch(bytes_of, context, generator)
        logits_RTV = apply(architecture, tensors, inputs_RF)
        wanted_RT = model.next_tokens(inputs_RF, targets_R)
        loss = functional.cross_entropy(logits_RTV.flatten(0, 1), wanted_RT.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(tensors.values(), LARGEST_GRADIENT)
        optimizer.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def tuned(
    architecture: Architecture,
    base: Tensors,
    rows: Rows,
    *,
    seed: int,
    steps: int,
    stopping: bool,
) -> tuple[Tensors, int]:
    """Return a model after so many steps on the rows, and how many: Adam, `BATCH` rows a step.

    `stopping`: every fourth row is kept from it, and the step of least loss on those is taken;
    not having begun is among them.
    """
    model = architecture.model
    assert isinstance(model, TokenModel)
    held = np.arange(len(rows)) % STOPPING == 0 if stopping else np.zeros(len(rows), dtype=bool)
    inputs_RF, targets_R = _sides(rows.take(np.flatnonzero(~held)))
    wanted_RT = model.next_tokens(inputs_RF, targets_R)
    names = list(base)
    current = [base[name].detach().clone().requires_grad_() for name in names]
    optimizer = torch.optim.Adam(current, lr=TUNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, LAST_TUNING_RATE, total_iters=steps
    )
    generator = torch.Generator().manual_seed(seed)

    def seen() -> float:
        side = dict(zip(names, current, strict=True))
        stop = _sides(rows.take(np.flatnonzero(held)))
        with torch.no_grad():
            return float(row_losses(architecture, side, *stop).mean())

    best: tuple[float, Tensors, int] = (seen() if stopping else math.inf, base, 0)
    for step in range(1, steps + 1):
        drawn_R = torch.randint(len(inputs_RF), (BATCH,), generator=generator)
        logits_RTV = apply(architecture, dict(zip(names, current, strict=True)), inputs_RF[drawn_R])
        loss = functional.cross_entropy(logits_RTV.flatten(0, 1), wanted_RT[drawn_R].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        last = step == steps
        if last or (stopping and step % LOOKED_EVERY == 0):
            side = {name: t.detach().clone() for name, t in zip(names, current, strict=True)}
            found = seen() if stopping else -math.inf
            best = min(best, (found, side, step), key=lambda one: one[0])
    return best[1], best[2]


def _sides(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.targets_R.copy())


def verified(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Verified:
    """Return the tensors as a model that may be computed with; raises as `verify`."""
    root = weights_root(tensors)
    return verify(Received(weights_root=root, architecture=architecture, tensors=tensors))


def kept_model(
    architecture: Architecture, pieces: list[NDArray[np.uint8]], seed: int, kept: Path
) -> Verified:
    """Return the model of a seed, trained anew unless the folder `kept` has it undamaged.

    Its file is named by all of its settings, and by the text.
    """
    said = (
        f"{architecture.text} adamw {LEARNING_RATE:g} to {LAST_RATE:g} decay {DECAY:g} warm {WARM} "
        f"batch {BATCH} steps {STEPS} clip {LARGEST_GRADIENT:g} text {TEXT_SHA256} "
        f"{STRETCHES} {SHARES} seed {seed}"
    )
    path = kept / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.tensors"
    try:
        return verified(architecture, decode_file(path, layout(architecture)))
    except (MarketError, OSError):
        path.unlink(missing_ok=True)
    tensors = fitted(architecture, pieces, seed=seed, steps=STEPS)
    kept.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_tensors(tensors))
    return verified(architecture, decode_file(path, layout(architecture)))
