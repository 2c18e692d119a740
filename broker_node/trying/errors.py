"""What a trial of somebody's own files cannot begin with."""

from __future__ import annotations

from node.protocol.errors import LocalProtocolError


class TryError(LocalProtocolError):
    """A file or an option that nothing can be tried with; says which, and what to do."""
