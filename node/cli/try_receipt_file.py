"""The receipt of `pm-node try` as a JSON file: written, and read strictly.

Bytes are 0x and hexadecimal digits; everything else is as it is. `evaluation` has the fields of
the market's receipts; `recipes` say which sold model is merged by what, in order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from broker_node.trying.making import Step
from broker_node.trying.receipt import MAX_SELLERS, Described, TrialReceipt, recipe_at
from node.cli.message_json import MAX_FILE_BYTES, bytes_of, from_json, malformed, to_json
from node.protocol import bounded_json
from node.protocol.evaluation import Evaluation
from node.protocol.types import DIGEST_BYTES, UINT64_MAX, Address, Digest

FORMAT: Final = "pm-node try receipt 1"
MAX_STEPS: Final = 256
_KEYS: Final = frozenset(
    {"format", "evaluation", "evaluation_hash", "seed", "rows", "sold_roots", "recipes", "account",
     "signature"}
)  # fmt: skip
_ROWS: Final = ("data", "label", "normalise")


def write(receipt: TrialReceipt) -> str:
    """Return the file's text."""
    rows, signature = receipt.rows, receipt.signature
    return json.dumps(
        {
            "format": FORMAT,
            "evaluation": to_json(receipt.evaluation),
            "evaluation_hash": "0x" + receipt.evaluation_hash.hex(),
            "seed": receipt.seed,
            "rows": {"data": rows.name, "label": rows.label, "normalise": rows.normalise},
            "sold_roots": ["0x" + root.hex() for root in receipt.sold_roots],
            "recipes": [
                {"sold": step.seller, "recipe": "0x" + step.recipe.encode().hex()}
                for step in receipt.steps
            ],
            "account": receipt.account,
            "signature": None if signature is None else "0x" + signature.hex(),
        },
        indent=2,
    )


def is_of_trial(path: Path) -> bool:
    """Return whether a file says that it is a receipt of `pm-node try`; never raises."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return False
        value = bounded_json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def read(path: Path) -> TrialReceipt:
    """Return what a file says. Raises `RemoteProtocolError("malformed")` naming what is not."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise malformed("file", f"over {MAX_FILE_BYTES} bytes")
    try:
        value = bounded_json.loads(path.read_bytes())
    except ValueError as error:
        raise malformed("file", str(error)) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise malformed("format", f"not a {FORMAT!r}")
    if set(value) != _KEYS:
        raise malformed("file", f"has too much or too little of {sorted(set(value) ^ _KEYS)}")
    seed, account, signature = value["seed"], value["account"], value["signature"]
    if type(seed) is not int or not 0 <= seed <= UINT64_MAX:
        raise malformed("seed", "must be a whole number of 64 bits")
    if account is not None and not isinstance(account, str):
        raise malformed("account", "must be an account, or null")
    return TrialReceipt(
        evaluation=from_json(Evaluation, value["evaluation"]),
        evaluation_hash=_digest("evaluation_hash", value["evaluation_hash"]),
        seed=seed,
        rows=_rows(value["rows"]),
        sold_roots=tuple(
            _digest("sold_roots", root) for root in _listed("sold_roots", value["sold_roots"], 1)
        ),
        steps=tuple(_step(step) for step in _listed("recipes", value["recipes"], 0)),
        account=None if account is None else Address(account),
        signature=None if signature is None else bytes_of("signature", signature),
    )


def _listed(name: str, value: object, least: int) -> list[Any]:
    most = MAX_SELLERS if least else MAX_STEPS
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise malformed(name, f"must be a list of {least} … {most}")
    return value


def _digest(name: str, value: object) -> Digest:
    found = bytes_of(name, value)
    if len(found) != DIGEST_BYTES:
        raise malformed(name, f"{len(found)} bytes, not {DIGEST_BYTES}")
    return Digest(found)


def _rows(value: object) -> Described:
    if not isinstance(value, dict) or set(value) != set(_ROWS):
        raise malformed("rows", f"must have exactly {list(_ROWS)}")
    for name in _ROWS:
        if not isinstance(value[name], str):
            raise malformed(name, "must be text")
    return Described(name=value["data"], label=value["label"], normalise=value["normalise"])


def _step(value: object) -> Step:
    if not isinstance(value, dict) or set(value) != {"sold", "recipe"}:
        raise malformed("recipes", "each must have exactly sold and recipe")
    sold = value["sold"]
    if type(sold) is not int or not 0 <= sold < MAX_SELLERS:
        raise malformed("sold", f"must be a place in sold_roots, got {sold!r:.40}")
    return Step(sold, recipe_at(bytes_of("recipe", value["recipe"])))
