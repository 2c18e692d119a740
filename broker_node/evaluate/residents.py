"""What lies on a device: every tensor is sent there once, for as long as it is in use.

A tensor is known by itself, not by its name or its model, so that two models which share tensors
share what was sent. Nothing that was handed in may be changed in place afterwards.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import torch

from node.params.permutation import Tensors

MODELS_HELD: Final = 3
"""Times the bytes of the largest model that was asked for: a buyer's, a seller's, and one more."""
ROWS_HELD: Final = 256 * 1024 * 1024
"""Bytes of rows; larger sets are sent part by part, whenever they are needed."""


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device; of locked memory nobody waits for the copy."""
    # not inside `inference_mode`: what was made there can have no part in a gradient
    with torch.inference_mode(mode=False):
        locked = device.type == "cuda" and tensor.device.type == "cpu" and tensor.is_pinned()
        return tensor.to(device, non_blocking=locked)


class Held:
    """Tensors on a device, the latest used ones, by the tensors that they are copies of."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self._bytes = 0
        # the original is kept too: an `id` is nobody else's for only so long
        self._copies: OrderedDict[int, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def copy(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return the copy, made now if need be; what does not fit stays until `trim`."""
        key = id(tensor)
        if key not in self._copies:
            self._copies[key] = (tensor, sent(tensor, device))
            self._bytes += tensor.nbytes
        self._copies.move_to_end(key)
        return self._copies[key][1]

    def trim(self) -> None:
        """Let go of the least recently used."""
        while self._bytes > self.room:
            _, (tensor, _) = self._copies.popitem(last=False)
            self._bytes -= tensor.nbytes

    def clear(self) -> None:
        """Let go of everything."""
        self._copies.clear()
        self._bytes = 0


class Residence:
    """A device, and what lies there during one trial."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._models = Held()
        self._rows = Held(ROWS_HELD)

    def weights(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Return a model's tensors on the device."""
        found = {name: self._models.copy(each, self.device) for name, each in tensors.items()}
        needed = sum(each.nbytes for each in found.values())
        self._models.room = max(self._models.room, MODELS_HELD * needed)
        self._models.trim()
        return found

    def rows(self, *sides: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return rows on the device: inputs, or inputs and targets; held if they are few enough."""
        if not self.holds(*sides):
            return tuple(sent(side, self.device) for side in sides)
        found = tuple(self._rows.copy(side, self.device) for side in sides)
        self._rows.trim()
        return found

    def holds(self, *sides: torch.Tensor) -> bool:
        """Whether the device would keep so many rows."""
        return sum(side.nbytes for side in sides) <= ROWS_HELD

    def clear(self) -> None:
        """Let go of everything, for what must be made room for."""
        self._models.clear()
        self._rows.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
