"""Which architectures can be merged with one another, by their texts alone.

Two parameter sets of one text can. Adapters can too where they sit on the same weights of the same
architecture, whatever their ranks and the modules that they change: what is merged is what they add
to those weights (docs/adr/0017). So agents and brokers compare `kin` of two texts, before anything
is fetched.
"""

from __future__ import annotations

import json
from typing import Final

from node.protocol import bounded_json
from node.protocol.errors import RemoteProtocolError

ADAPTERS: Final = "lora"
"""The family's name in an architecture's text."""
SHOWN: Final = 240
"""Of a text, so that the root at its end is seen."""
_ENDING: Final = f',"name":"{ADAPTERS}"}}'


def kin(text: str) -> str:
    """Return what the texts of all that merges with this one have in common.

    Of adapters that is the text without their modules; of all else, and of a text that is not
    canonical, the text itself. Total.
    """
    if not text.endswith(_ENDING):
        return text
    try:
        value = bounded_json.loads(text)
    except (ValueError, RecursionError):
        return text
    config = value.get("config") if isinstance(value, dict) else None
    if not isinstance(config, dict) or "modules" not in config or _canonical(value) != text:
        return text
    del config["modules"]
    return _canonical(value)


def require_kin(own: str, sold: str) -> None:
    """Raise `RemoteProtocolError` unless what is `sold` can be merged into our `own`.

    Reasons: ``wrong-base`` for two adapters, ``architecture-mismatch`` for all else.
    """
    ours, theirs = kin(own), kin(sold)
    if ours == theirs:
        return
    adapters = ours != own and theirs != sold
    reason = "wrong-base" if adapters else "architecture-mismatch"
    raise RemoteProtocolError(reason, f"{_told(theirs)}, not {_told(ours)}")


def is_adapter(text: str) -> bool:
    """Whether a text is that of adapters; total."""
    return kin(text) != text


def _told(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
