"""What a Ray worker does: one task from weights in the object store to an answer.

A model is in the store as its canonical encoding under its root, and is checked against the root
whenever it is read: an entry that is not what it was is answered with `Spoilt`, and is never
computed with. A refusal is an answer too, for it is nothing that another try would change.
Only what this module and those below it can read is ever unpickled, of our own cluster.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from broker_node.appraisal import CODE_VERSION, Appraiser, Remeasured, Trial
from broker_node.verify.stages import Verified
from node.params.architecture import layout, parse_architecture
from node.params.encoding import decode_tensors
from node.params.families.factories import allow_said
from node.params.merges import is_adapter
from node.protocol.errors import MarketError
from node.protocol.evaluation import Evaluation
from node.protocol.merkle import StreamingRoot
from node.protocol.offer import BrokerNotice, Offer
from node.protocol.types import Digest

T = TypeVar("T")
Blob = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every task of one engine has in common."""

    name: str
    """Of the engine: a worker keeps the appraiser of the engine that it last worked for."""
    appraiser: Mapping[str, Any]
    """Its reference in the object store, which Ray leaves alone inside of a mapping."""
    code: str
    threads: int
    """Of PyTorch, as many as at the broker: the order of float sums depends on it."""
    modules: tuple[str, ...] = ()
    """Of an operator's own, which the broker's has allowed, as its settings say them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What an encoding in the object store is said to be."""

    weights_root: Digest
    architecture: str
    layers: tuple[int, ...]

    @classmethod
    def of(cls, model: Verified) -> Described:
        return cls(
            weights_root=model.weights_root,
            architecture=model.architecture.text,
            layers=model.layers,
        )


@dataclass(frozen=True, slots=True)
class Spoilt:
    """An entry of the object store that does not have its root any more."""

    root: Digest


@dataclass(frozen=True, slots=True)
class AnotherVersion:
    """The worker's code would measure otherwise."""

    code: str


class SpoiltError(Exception):
    def __init__(self, root: Digest) -> None:
        super().__init__(root.hex())
        self.root = root


_kept: Final[dict[str, Appraiser]] = {}


def _appraiser(context: Context) -> Appraiser:
    if context.name not in _kept:
        ray: Any = importlib.import_module("ray")
        _kept.clear()
        _kept[context.name] = ray.get(context.appraiser["reference"])
    return _kept[context.name]


def root_of(blob: Blob) -> Digest:
    """Return the root of a canonical encoding."""
    root = StreamingRoot()
    root.update(blob.data)
    return root.finish()[0]


def model_of(said: Described, blob: Blob, appraiser: Appraiser) -> Verified:
    """Return a model that was verified before it was put in the store.

    Adapters are on the base that the appraiser has.

    Raises `SpoiltError` unless it still is that model, byte for byte.
    """
    if root_of(blob) != said.weights_root:
        raise SpoiltError(said.weights_root)
    architecture = parse_architecture(said.architecture)
    return Verified(
        weights_root=said.weights_root,
        architecture=architecture,
        tensors=decode_tensors(blob.data, layout(architecture, said.layers)),
        layers=said.layers,
        base=appraiser.adapter_base if is_adapter(architecture) else None,
    )


def _pair(
    said: tuple[Described, Described], blobs: tuple[Blob, Blob], appraiser: Appraiser
) -> tuple[Verified, Verified]:
    base, sold = (model_of(*each, appraiser) for each in zip(said, blobs, strict=True))
    return base, sold


def _answer(
    context: Context, compute: Callable[[Appraiser], T]
) -> T | MarketError | Spoilt | AnotherVersion:
    if context.code != CODE_VERSION:
        return AnotherVersion(CODE_VERSION)
    torch.set_num_threads(context.threads)
    try:
        allow_said(context.modules)
        return compute(_appraiser(context))
    except MarketError as error:
        return error
    except SpoiltError as error:
        return Spoilt(error.root)


def admitted(
    context: Context, blob: Blob, offer: Offer
) -> Described | MarketError | Spoilt | AnotherVersion:
    """Verify an encoding against its offer; the tensors stay here."""
    return _answer(context, lambda appraiser: Described.of(appraiser.admit(blob.data, offer)))


def measured(
    context: Context,
    base_blob: Blob,
    sold_blob: Blob,
    said: tuple[Described, Described],
    task: str,
    notice: tuple[Digest, BrokerNotice],
) -> Trial | MarketError | Spoilt | AnotherVersion:
    """Measure a pair."""

    def compute(appraiser: Appraiser) -> Trial:
        base, sold = _pair(said, (base_blob, sold_blob), appraiser)
        return appraiser.measure(base, sold, task=task, notice=notice)

    return _answer(context, compute)


def replayed(
    context: Context,
    base_blob: Blob,
    sold_blob: Blob,
    said: tuple[Described, Described],
    subject: Evaluation,
    recipe: bytes,
) -> Remeasured | MarketError | Spoilt | AnotherVersion:
    """Measure again what another broker measured."""

    def compute(appraiser: Appraiser) -> Remeasured:
        base, sold = _pair(said, (base_blob, sold_blob), appraiser)
        return appraiser.replay(subject, recipe, base, sold)

    return _answer(context, compute)
