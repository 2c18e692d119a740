"""What of an offer can be told before it is fetched, and of a blob before it is a model.

All of it is the seller's word or bytes: what would take too long to align, or is of another size
than its architecture, is refused from the offer alone.
"""

from __future__ import annotations

from pathlib import Path

from broker_node.align.matching import MAX_WORK, work_of
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.adapters import Base
from node.params.architecture import Architecture, layout, parse_architecture, permutation_spec
from node.params.encoding import decode_file, decode_tensors
from node.params.families.lora import Lora
from node.params.permutation import PermutationSpec, restrict
from node.protocol import merkle
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import Offer
from node.protocol.parameters import encoded_length


def require_admissible(architecture: Architecture, offer: Offer, *, matches: bool) -> None:
    """Raise `RemoteProtocolError` for what could never be admitted: ``too-wide``, ``wrong-size``.

    `matches`: whether units will be matched; only those of what is sold are.
    """
    tensors = layout(architecture, offer.layers)
    if matches and offer.for_sale:
        sold = {spec.name for spec in tensors}
        _require_matchable(restrict(permutation_spec(architecture), sold))
    expected = encoded_length(tensors)
    if offer.byte_length != expected or offer.leaf_count != merkle.leaf_count(expected):
        raise RemoteProtocolError("wrong-size", f"{offer.byte_length} bytes, not {expected}")


def _require_matchable(spec: PermutationSpec) -> None:
    """Raise `RemoteProtocolError("too-wide")` for what would take too long to align.

    Besides time that bounds memory: of one group at most 2,596 units are taken, of which a
    matrix is 51 MiB of float64, and a few of them are in use at once.
    """
    work = work_of(spec, sweeps=1)
    if work > MAX_WORK:
        widest = max(group.size for group in spec.groups.values())
        raise RemoteProtocolError(
            "too-wide",
            f"groups of up to {widest} units: {work:.3g} steps of matching, "
            f"of at most {MAX_WORK:.3g}",
        )


def admitted(
    blob: Path | memoryview, offer: Offer, base: Base | None = None, *, locked: bool = False
) -> Verified:
    """Return the model in a blob. Raises `MarketError` unless it is what the offer says.

    `base`: what adapters are of; `locked`: as for `decode_tensors`.
    """
    architecture = parse_architecture(offer.architecture)
    expected = layout(architecture, offer.layers)
    if isinstance(blob, Path):
        tensors = decode_file(blob, expected, locked=locked)
    else:
        tensors = decode_tensors(blob, expected, locked=locked)
    return verify(
        Received(
            weights_root=offer.weights_root,
            architecture=architecture,
            tensors=tensors,
            layers=offer.layers,
            base=base if isinstance(architecture.model, Lora) else None,
        )
    )
