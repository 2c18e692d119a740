"""Ports that stay: a node that was given any free one takes the same again after a restart.

Others know it by that address; a broker that came back elsewhere would have lost its market.
"""

from __future__ import annotations

import socket
from pathlib import Path


def remembered(path: Path, host: str) -> int:
    """Return the port kept in `path` if it is free on `host`, else 0: any."""
    try:
        port = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return 0
    return port


def remember(path: Path, port: int) -> None:
    """Keep a port for the next start."""
    path.write_text(f"{port}\n", encoding="ascii")


def with_port(listen: str, path: Path) -> str:
    """Return a multiaddress that asks for any TCP port with the one that was had before."""
    if not listen.endswith("/tcp/0"):
        return listen
    host = listen.split("/")[2]
    return f"{listen.removesuffix('0')}{remembered(path, host)}"


def port_of(multiaddress: str) -> int:
    """Return the TCP port in a multiaddress."""
    parts = multiaddress.split("/")
    return int(parts[parts.index("tcp") + 1])
