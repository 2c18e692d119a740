"""What can be wrong with a parameter set, or with the disk it lies on."""

from __future__ import annotations

from node.protocol.errors import MarketError, RemoteProtocolError


class ProfileError(RemoteProtocolError):
    """A file or an encoding is not of the strict profile; `reason` says which rule it broke."""


class BadGoodsError(RemoteProtocolError):
    """Bought goods decrypt to something other than what was offered.

    `index` is the first leaf that differs: with the ciphertext leaf it is the evidence of a
    dispute.
    """

    def __init__(self, index: int, detail: str = "") -> None:
        super().__init__("bad-goods", detail or f"leaf {index} is not the one that was offered")
        self.index = index


class StoreError(MarketError):
    """The blob store cannot do as asked.

    `reason` is stable: ``disk-full``, ``missing-blob``, ``missing-hashes``, ``corrupt-blob``,
    ``corrupt-hashes``, ``bad-range``, ``incomplete``, ``busy``, ``disk``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
