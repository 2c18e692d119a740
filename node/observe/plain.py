"""What may be written of a value: no secrets, bounded size, nothing but JSON.

A field whose name speaks of a secret, key, seed or password never leaves the event,
whatever it holds; `commitment` and `public` beside such a word make it harmless.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from itertools import islice
from typing import Any, Final

MAX_TEXT: Final = 2_048
LARGEST_SAFE_INTEGER: Final = 2**53 - 1
MAX_ITEMS: Final = 64
MAX_DEPTH: Final = 6
REDACTED: Final = "[redacted]"
_SECRET_WORDS: Final = frozenset(
    {"secret", "secrets", "key", "keys", "password", "passphrase", "seed", "mnemonic", "dh"}
)
_PUBLIC_WORDS: Final = frozenset({"public", "commitment"})


def is_secret(name: str) -> bool:
    """Return whether a field of this name is never to be written."""
    words = set(name.lower().split("_"))
    return bool(words & _SECRET_WORDS) and not words & _PUBLIC_WORDS


def plain(name: str, value: object, depth: int = 0) -> Any:
    """Return the `value` of a field called `name` as JSON can say it."""
    if is_secret(name):
        return REDACTED
    match value:
        case Enum():
            return value.name.lower()
        case float():
            return value if math.isfinite(value) else str(value)
        case int() if not isinstance(value, bool) and abs(value) > LARGEST_SAFE_INTEGER:
            return str(value)  # wei: a JSON reader that knows only doubles would round it
        case None | bool() | int():
            return value
        case str():
            return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
        case bytes() | bytearray() | memoryview():
            return f"0x{value.hex()}" if len(value) <= 64 else f"[{len(value)} bytes]"
        case datetime():
            return value.isoformat()
    if depth >= MAX_DEPTH:
        return "…"
    match value:
        case Mapping():
            pairs = islice(value.items(), MAX_ITEMS)
            return {str(key): plain(str(key), item, depth + 1) for key, item in pairs}
        case tuple() | list() | set() | frozenset():
            return [plain("", item, depth + 1) for item in islice(value, MAX_ITEMS)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: plain(name, item, depth + 1) for name, item in named.items()}
    return plain("", str(value))


def shown(value: object) -> str:
    """Return a plain value as one word of a console line, control characters escaped."""
    if isinstance(value, str):
        bare = value and value.isprintable() and not any(letter in value for letter in ' "=')
        return value if bare else json.dumps(value)
    return json.dumps(value)
