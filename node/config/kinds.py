"""The kinds of value that a setting can have: how each is read, written and described.

A kind takes what TOML gives (typed) and what flags and variables give (text) alike, and
nothing else: ``true`` is no integer, and ``1.0`` no amount of wei.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from node.protocol.errors import RemoteProtocolError
from node.protocol.types import NO_ADDRESS, ONE, UINT256_MAX, PeerId

T = TypeVar("T")
MAX_TEXT: Final = 4_096
MAX_BROKERS: Final = 64
"""As in `node.protocol.quorum`, which takes a third of a second to import."""
_INTEGER: Final = re.compile(r"[+-]?[0-9](_?[0-9])*")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_DIGEST: Final = re.compile(r"0x[0-9a-fA-F]{64}")
_BEFORE_NAME: Final = re.compile(r",\s*(?=[A-Za-z_]|$)")
_QUORUM: Final = re.compile(r"([1-9][0-9]?)/([1-9][0-9]?)")
_MULTIADDR: Final = re.compile(r"/(ip[46]|dns[46]?)/([^/\s]+)/tcp/([0-9]{1,5})(/p2p/([^/\s]+))?")


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of value is read and shown."""

    name: str
    expects: str
    parse: Callable[[object], Any]
    """Reads a value from any origin; raises `ValueError`."""
    show: Callable[[Any], str] = str
    """Writes a value for a person."""
    toml: Callable[[Any], str] = str
    """Writes a value for a configuration file."""
    repeated: bool = False


def display(value: object) -> str:
    """Return a value of any origin as a short text on one line."""
    text = value if isinstance(value, str) else str(value)
    return json.dumps(text[:200], ensure_ascii=False) if isinstance(value, str) else text[:200]


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw or len(raw) > MAX_TEXT or not raw.isprintable():
        raise ValueError
    return raw


def _integer(raw: object) -> int:
    if isinstance(raw, bool):
        raise ValueError
    if isinstance(raw, int):
        return raw
    if isinstance(raw, str) and len(raw) <= MAX_TEXT and _INTEGER.fullmatch(raw.strip()):
        return int(raw)
    raise ValueError


def _wei(raw: object) -> int:
    value = _integer(raw)
    if not 0 <= value <= UINT256_MAX:
        raise ValueError
    return value


def _fraction(raw: object) -> int:
    """Read a decimal fraction into whole millionths, without a float in between."""
    if isinstance(raw, bool):
        raise ValueError
    text = str(raw)
    if not isinstance(raw, str | int | float | Decimal) or len(text) > 64:
        raise ValueError
    with localcontext(prec=200):  # so that nothing that fits in the text is rounded
        try:
            exact = Decimal(text) * ONE
        except ArithmeticError as error:
            raise ValueError from error
        if not exact.is_finite() or exact.adjusted() > 20 or exact != exact.to_integral_value():
            raise ValueError
    return int(exact)


def _path(raw: object) -> Path:
    if isinstance(raw, Path):
        return raw
    try:
        return Path(_text(raw)).expanduser()
    except RuntimeError as error:  # ~somebody whom this machine does not know
        raise ValueError from error


def _address(raw: object) -> str:
    from node.protocol.schema import checksummed  # noqa: PLC0415 (a third of a second to import)

    if not isinstance(raw, str) or not _ADDRESS.fullmatch(raw):
        raise ValueError
    address = checksummed(bytes.fromhex(raw[2:]))
    if raw[2:] not in {address[2:], raw[2:].lower(), raw[2:].upper()}:
        raise ValueError  # a mistyped checksum
    return address


def _digest(raw: object) -> str:
    if not isinstance(raw, str) or not _DIGEST.fullmatch(raw):
        raise ValueError
    return raw.lower()


def _multiaddr(raw: object) -> str:
    text = _text(raw)
    match = _MULTIADDR.fullmatch(text)
    if match is None or int(match[3]) > 65_535:
        raise ValueError
    if match[5] is not None:
        from node.protocol.signing import public_key_of  # noqa: PLC0415 (as above)

        try:
            public_key_of(PeerId(match[5]))
        except RemoteProtocolError as error:
            raise ValueError from error
    return text


def _peer(raw: object) -> str:
    text = _multiaddr(raw)
    if "/p2p/" not in text:
        raise ValueError
    return text


def _url(raw: object) -> str:
    if raw == "":
        return ""
    text = _text(raw)
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError
    return text


def _several(one: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    """Read a TOML array, repeated flags, or one text with commas."""

    def parse(raw: object) -> tuple[T, ...]:
        items = raw.split(",") if isinstance(raw, str) else raw
        if not isinstance(items, list | tuple):
            raise ValueError
        texts = [item.strip() if isinstance(item, str) else item for item in items]
        return tuple(one(text) for text in texts if text != "")

    return parse


def _factories(raw: object) -> tuple[str, ...]:
    """Read entries, in which there are commas: one text with options is one entry."""
    if not isinstance(raw, str):
        return _several(_text)(raw)
    return _several(_text)([raw] if "{" in raw else _BEFORE_NAME.split(raw))


def _layers(raw: object) -> tuple[int, ...]:
    layers = tuple(sorted(_several(_integer)(raw)))
    if layers and (layers[0] < 0 or len(set(layers)) < len(layers)):
        raise ValueError
    return layers


def _quorum(raw: object) -> tuple[int, int]:
    """Read m/n: more than half of n, so that no two quorums are without a broker in common."""
    match = _QUORUM.fullmatch(raw) if isinstance(raw, str) else None
    if match is None:
        raise ValueError
    needed, brokers = int(match[1]), int(match[2])
    if not (needed <= brokers <= MAX_BROKERS and 2 * needed > brokers):
        raise ValueError
    return needed, brokers


def _fraction_of(quorum: tuple[int, int]) -> str:
    return f"{quorum[0]}/{quorum[1]}"


def _list_toml(values: tuple[str | int, ...]) -> str:
    return json.dumps(list(values))


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _millionths(value: int) -> str:
    text = f"{value // ONE}.{value % ONE:06d}".rstrip("0")
    return text + "0" if text.endswith(".") else text


_MULTIADDR_FORM: Final = "a multiaddr such as /ip4/127.0.0.1/tcp/4001"

KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("text", "a short text", _text, toml=_quoted),
        Kind("integer", "a whole number", _integer),
        Kind("wei", "a whole number of wei", _wei, toml=_quoted),
        Kind("fraction", "a fraction of at most six decimals", _fraction, _millionths, _millionths),
        Kind("path", "a path", _path, toml=_quoted),
        Kind("url", "a URL with http or https, or nothing", _url, toml=_quoted),
        Kind(
            "address",
            f"an Ethereum address such as {NO_ADDRESS}, checksum right",
            _address,
            toml=_quoted,
        ),
        Kind(
            "addresses",
            "Ethereum addresses, separated by commas",
            _several(_address),
            show=", ".join,
            toml=_list_toml,
            repeated=True,
        ),
        Kind(
            "factories",
            "MODULE:FUNCTION SIDE,SIDE,..., perhaps with tokens=N and a JSON object of options; "
            "several by commas, or by repeating the flag",
            _factories,
            show=", ".join,
            toml=_list_toml,
            repeated=True,
        ),
        Kind("digest", "32 bytes: 0x and 64 hexadecimal digits", _digest, toml=_quoted),
        Kind(
            "layers",
            "layers by number from 0, each once, separated by commas",
            _layers,
            show=lambda layers: ",".join(map(str, layers)),
            toml=_list_toml,
        ),
        Kind(
            "quorum",
            f"m/n with n/2 < m ≤ n ≤ {MAX_BROKERS}, such as 2/3",
            _quorum,
            show=_fraction_of,
            toml=lambda quorum: _quoted(_fraction_of(quorum)),
        ),
        Kind("multiaddr", _MULTIADDR_FORM, _multiaddr, toml=_quoted),
        Kind(
            "peers",
            f"{_MULTIADDR_FORM}/p2p/12D3Koo…, separated by commas",
            _several(_peer),
            show=", ".join,
            toml=_list_toml,
            repeated=True,
        ),
    )
}
