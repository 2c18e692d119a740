"""JSON from a stranger, with a bound on its depth.

The standard library's decoder recurses, and relies on the interpreter's recursion limit.
py-evm raises that limit far above the default when it is imported, and then 100 kB of ``[``
overflow the C stack and kill the process. So depth is counted before anything is
decoded.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_DEPTH: Final = 32
"""A transaction's access list, in a block, in a batch, is 8 deep."""

_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def loads(data: bytes | str, **options: Any) -> Any:
    """Decode JSON in UTF-8; `options` are those of `json.loads`.

    Raises `ValueError` for anything else, and for nesting over `MAX_DEPTH`.
    """
    # json would also guess UTF-16, in which brackets hide from the count
    text = data if isinstance(data, str) else data.decode()
    depth = 0
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"JSON nested deeper than {MAX_DEPTH}")
        elif first in "]}":
            depth -= 1
    return json.loads(text, **options)
