"""What of a verified model computes: the model itself, or its base with the adapter applied.

Adapters that sit on the same weights make whole models of one architecture, whatever their ranks,
and a merge of adapters makes the interpolation of these (`node.params.adapters`). So losses and
shares are found over whole models, and only what is handed out is an adapter again.
"""

from __future__ import annotations

from broker_node.verify.stages import Verified
from node.params.adapters import Adapter, applied
from node.params.architecture import Architecture
from node.params.encoding import weights_root
from node.params.families.shapes import Shapes
from node.params.merges import is_adapter
from node.params.permutation import Tensors
from node.protocol.errors import LocalProtocolError


def computes(model: Verified) -> bool:
    """Whether a model answers rows: tensors of no function do not, nor adapters without a base."""
    if is_adapter(model.architecture):
        return model.base is not None
    return not isinstance(model.architecture.model, Shapes)


def computing(model: Verified) -> tuple[Architecture, Tensors]:
    """Return what is run for a model: an architecture that computes, and its tensors.

    Raises `LocalProtocolError` for adapters whose base is not held, and `ProfileError`:
    ``wrong-base``, ``not-finite``.
    """
    if not is_adapter(model.architecture):
        return model.architecture, model.tensors
    if model.base is None:
        raise LocalProtocolError("adapters compute nothing without the weights of their base")
    adapter = Adapter(model.architecture, model.tensors)
    return model.base.architecture, applied(adapter, model.base)


def whole(model: Verified) -> Verified:
    """Return a model that computes by itself, under the root of all its weights; as `computing`."""
    if not is_adapter(model.architecture):
        return model
    architecture, tensors = computing(model)
    return Verified(
        weights_root=weights_root(dict(tensors)), architecture=architecture, tensors=tensors
    )
