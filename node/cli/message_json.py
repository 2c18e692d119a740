"""Messages in files of JSON: written, and read strictly.

Bytes are 0x and hexadecimal digits, amounts of money decimal texts, everything else as it is.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Final, TypeVar

from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import UINT256_MAX, Digest, Wei

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_WEI_DIGITS: Final = len(str(UINT256_MAX))
M = TypeVar("M")


def to_json(message: Any) -> dict[str, Any]:
    """Return a message as a JSON object."""
    hints = typing.get_type_hints(type(message))
    shown = {}
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, bytes):
            value = "0x" + value.hex()
        elif hints[field.name] is Wei:
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        shown[field.name] = value
    return shown


def from_json(cls: type[M], value: object) -> M:
    """Return a message of a JSON object. Raises `RemoteProtocolError` naming what is not right."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if not isinstance(value, dict) or set(value) != set(names):
        raise malformed(cls.__name__, f"must have exactly {names}")
    read = {}
    for name in names:
        each, kind = value[name], hints[name]
        if kind in (Digest, bytes):
            each = bytes_of(name, each)
        elif kind is Wei:
            if not isinstance(each, str) or not each.isascii() or not each.isdecimal():
                raise malformed(name, "must be a decimal text")
            if len(each) > MAX_WEI_DIGITS:
                raise malformed(name, f"has {len(each)} digits, over {MAX_WEI_DIGITS}")
            each = int(each)
        elif isinstance(each, list):
            each = tuple(each)
        read[name] = each
    try:
        return cls(**read)
    except LocalProtocolError as error:
        raise malformed(cls.__name__, str(error)) from error


def bytes_of(name: str, value: object) -> bytes:
    """Return the bytes of a field, written in the one way that is right."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise malformed(name, "must be 0x and hexadecimal digits")
    try:
        found = bytes.fromhex(value[2:])
    except ValueError as error:
        raise malformed(name, str(error)) from error
    if "0x" + found.hex() != value:
        raise malformed(name, "must be 0x and lower-case hexadecimal digits")
    return found


def malformed(what: str, detail: str) -> RemoteProtocolError:
    """Return the refusal of a file that names what is not right in it."""
    return RemoteProtocolError("malformed", f"{what}: {detail}"[:400])
