"""What is checked before a sender's tensors are computed with.

In order of cost: names, shapes and element types against the architecture, or those of its
layers that are sold; finite and of sane magnitude, of adapters what they change by too; the weights
root; and, for a whole model that computes something, a finite output on probes; adapters do on the
weights of their base. Some layers compute nothing by themselves: what they make of a buyer's model
is seen when that is measured. Every refusal is a `RemoteProtocolError` with its own reason.
"""

from __future__ import annotations

from typing import Final

import torch

from broker_node.verify.computing import computes, computing
from broker_node.verify.stages import Received, Verified
from node.params.architecture import Architecture, apply, layout
from node.params.encoding import weights_root
from node.params.families.base import TokenModel
from node.params.families.lora import Lora
from node.protocol.errors import RemoteProtocolError

MAX_MAGNITUDE: Final = 1e6
"""Trained weights are under a hundred; past this, float32 sums of products may overflow."""
PROBES: Final = 32
_PROBE_SEED: Final = 7


def probes(architecture: Architecture) -> torch.Tensor:
    """Return `PROBES` fixed rows, probes_RF in float64: standard normal inputs, or any tokens."""
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    if isinstance(architecture.model, TokenModel):
        return architecture.model.random_rows(PROBES, generator)
    shape = (PROBES, architecture.model.input_width())
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@torch.inference_mode()
def verify(received: Received) -> Verified:
    """Return `received` as a model that may be computed with.

    Raises `RemoteProtocolError`: ``bad-layers``, ``wrong-tensors``, ``wrong-shape``,
    ``wrong-dtype``, ``not-finite``, ``bad-magnitude``, ``root-mismatch``, ``overflows``.
    """
    expected = layout(received.architecture, received.layers)
    names = [spec.name for spec in expected]
    if set(received.tensors) != set(names):
        different = sorted(set(received.tensors) ^ set(names))
        raise RemoteProtocolError("wrong-tensors", f"{len(different)} names: {different[:5]}"[:300])
    for spec in expected:
        tensor = received.tensors[spec.name]
        if tensor.dtype != torch.float32 or tensor.layout != torch.strided:
            raise RemoteProtocolError(
                "wrong-dtype", f"{spec.name}: {tensor.dtype}, {tensor.layout}"
            )
        if tuple(tensor.shape) != spec.shape:
            raise RemoteProtocolError(
                "wrong-shape", f"{spec.name}: {tuple(tensor.shape)}, expected {spec.shape}"
            )
    for name in names:
        # aminmax is 20 times faster than isfinite().all(), and a NaN survives it
        low, high = (float(bound) for bound in received.tensors[name].aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise RemoteProtocolError("not-finite", f"{name}: {low} … {high}")
        if max(-low, high) > MAX_MAGNITUDE:
            raise RemoteProtocolError("bad-magnitude", f"{name}: {low:g} … {high:g}")
    _require_small_changes(received)
    root = weights_root(dict(received.tensors))
    if root != received.weights_root:
        raise RemoteProtocolError(
            "root-mismatch", f"{root.hex()}, expected {received.weights_root.hex()}"
        )
    architecture = received.architecture
    model = Verified(
        weights_root=root,
        architecture=architecture,
        tensors=received.tensors,
        layers=received.layers,
        base=received.base,
    )
    if not received.layers and computes(model):
        runs, tensors = computing(model)
        logits_RC = apply(runs, tensors, probes(architecture).float())
        if not bool(torch.isfinite(logits_RC).all()):
            raise RemoteProtocolError("overflows", "the output on probes is not finite")
    return model


def _require_small_changes(received: Received) -> None:
    """Raise ``bad-magnitude`` for adapters that change a weight by more than a weight may be.

    A change is α/r · B·A, of which α/r may be 2^20. B is bounded with that too, for any merge moves
    the scale there.
    """
    model = received.architecture.model
    if not isinstance(model, Lora):
        return
    for each in model.modules:
        a_RI, b_OR = (received.tensors[name].double() for name in each.factors)
        found = {"B": each.scale * float(b_OR.abs().max())}
        # no entry of a product is larger than that of the norms, which cost nothing
        found["B·A"] = each.scale * float(b_OR.norm(dim=1).max() * a_RI.norm(dim=0).max())
        if found["B·A"] > MAX_MAGNITUDE:
            found["B·A"] = each.scale * float((b_OR @ a_RI).abs().max())
        for what, size in found.items():
            if size > MAX_MAGNITUDE:
                raise RemoteProtocolError(
                    "bad-magnitude",
                    f"{each.path}: α/r · {what} is up to {size:g}, at most {MAX_MAGNITUDE:g}"[:300],
                )
