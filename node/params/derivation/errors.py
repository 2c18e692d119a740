"""Why no symmetries are derived from a module."""

from __future__ import annotations

from node.protocol.errors import LocalProtocolError


class UnderivableError(LocalProtocolError):
    """A module whose symmetries are not understood, with the operation that is to blame.

    `reason` is stable: ``untraceable`` (no one graph for all inputs: control flow or shapes
    that depend on data), ``unknown-operation``, ``data-dependent-index``, ``mutation``,
    ``bad-module`` (no tensors, or tensors that share part of their storage) and
    ``not-preserved`` (the check on outputs failed).
    """

    def __init__(self, reason: str, detail: str, *, node: str = "", operation: str = "") -> None:
        where = f" at {node} ({operation})" if node else ""
        super().__init__(f"{reason}{where}: {detail}")
        self.reason = reason
        self.detail = detail
        self.node = node
        self.operation = operation
