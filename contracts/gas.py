"""What each operation of the escrow costs in gas, against what it must cost at the least.

The floor of an operation is the sum of what no contract with this ABI, these events and one
storage slot a trade could save:

- the intrinsic cost of a transaction and of its calldata, byte by byte (EIP-2028);
- the storage it has to write, cold (EIP-2929), less what EIP-3529 gives back;
- the precompiles, the log entries, the hashes of the terms, and the call that pays out;
- and never less than EIP-7623 charges for the calldata alone.

Left out are the dispatch, the checks, memory and arithmetic: this is what a contract's code can
be judged by. All constants are those of the Prague fork.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

from contracts.stage import SECRET, Outcome, Stage

TABLE: Final = Path(__file__).resolve().parent / "gas.json"

TRANSACTION: Final = 21_000
TOKEN: Final = 4  # gas for a calldata token: a zero byte is one, any other byte four (EIP-2028)
TOKEN_AT_LEAST: Final = 10  # the same where the calldata is nearly all there is (EIP-7623)
SLOT_FILLED: Final = 22_100  # SSTORE of a cold slot, from zero (EIP-2929)
SLOT_CHANGED: Final = 5_000  # SSTORE of a cold slot, from anything else
SLOT_CLEARED: Final = 4_800  # given back for a slot set to zero (EIP-3529)
REFUND_SHARE: Final = 5  # of the gas used, at most a fifth is given back (EIP-3529)
CALL: Final = 100  # to a warm account, as precompiles are
COLD_CALL: Final = 2_600
CALL_WITH_VALUE: Final = 9_000 - 2_300  # an account without code hands the stipend back
ECRECOVER: Final = CALL + 3_000
SHA256_WORD: Final = CALL + 60 + 12
KECCAK: Final = 30
KECCAK_WORD: Final = 6
LOG: Final = 375
LOG_TOPIC: Final = 375
LOG_WORD: Final = 8 * 32

QUOTE_WORDS: Final = 19
TERMS: Final = (KECCAK + KECCAK_WORD * (1 + QUOTE_WORDS)) + (KECCAK + KECCAK_WORD * 3)
"""Hash of the type hash and the struct, then of the 66 bytes of EIP-712."""

PLACE: Final = KECCAK + KECCAK_WORD * 2
"""Where the value of a key lies in a mapping."""


class Row(NamedTuple):
    """One operation, in gas."""

    operation: str
    gas: int
    floor: int


def log(topics: int, words: int) -> int:
    """Return the cost of a log entry; the event's own name is one of the topics."""
    return LOG + LOG_TOPIC * topics + LOG_WORD * words


def floor(data: bytes, work: int, given_back: int = 0) -> int:
    """Return the least that a transaction with this calldata and this much work can cost."""
    tokens = sum(4 if byte else 1 for byte in data)
    used = TRANSACTION + TOKEN * tokens + work
    return max(used - min(given_back, used // REFUND_SHARE), TRANSACTION + TOKEN_AT_LEAST * tokens)


FUND: Final = TERMS + ECRECOVER + PLACE + SLOT_FILLED + log(4, 1)
REVEAL: Final = TERMS + SHA256_WORD + PLACE + SLOT_CHANGED + log(2, 1)
SETTLE: Final = TERMS + PLACE + SLOT_CHANGED + PLACE  # of finalize and refund, before the credits
PAID: Final = PLACE + log(2, 2)  # the second account that is credited, and the event
REFUNDED: Final = log(2, 1)
WITHDRAW: Final = PLACE + SLOT_CHANGED + log(2, 1) + CALL_WITH_VALUE


def measure() -> list[Row]:
    """Play every operation on a fresh chain and return its gas, in the order of a trade.

    *First* is to an account that is owed nothing yet, *again* to one that is.
    """
    stage = Stage()
    rows: list[Row] = []

    def row(operation: str, outcome: Outcome, work: int, given_back: int = 0) -> None:
        rows.append(Row(operation, outcome.gas, floor(outcome.data, work, given_back)))

    for occasion, slot in (("first", SLOT_FILLED), ("again", SLOT_CHANGED)):
        quote = stage.quote(trade_id=occasion.encode().ljust(32, b"\xff"))
        funded = stage.fund(quote)
        revealed = stage.send("reveal", quote, SECRET, sender="seller")
        stage.wait_until(revealed.time + quote.dispute_window + 1)
        paid = stage.send("finalize", quote, sender="seller")
        if occasion == "first":
            row("fund", funded, FUND)
            row("reveal", revealed, REVEAL)
        row(f"finalize, {occasion}", paid, SETTLE + PAID + 2 * slot)
    for occasion, slot in (("first", SLOT_FILLED), ("again", SLOT_CHANGED)):
        quote = stage.quote(trade_id=occasion.encode().ljust(32, b"\xee"))
        stage.fund(quote)
        stage.wait_until(quote.reveal_by + quote.grace + 1)
        refunded = stage.send("refund", quote, sender="buyer")
        row(f"refund, {occasion}", refunded, SETTLE + REFUNDED + slot)
    own = stage.send("withdraw", stage.accounts["seller"], sender="seller")
    row("withdraw, own", own, WITHDRAW + CALL, SLOT_CLEARED)
    others = stage.send("withdraw", stage.accounts["treasury"], sender="stranger")
    row("withdraw, for another", others, WITHDRAW + COLD_CALL, SLOT_CLEARED)
    return rows


def table() -> dict[str, dict[str, int]]:
    """Return what `contracts/gas.json` must hold, measured now."""
    return {row.operation: {"gas": row.gas, "floor": row.floor} for row in measure()}


def committed() -> dict[str, dict[str, int]]:
    """Return what `contracts/gas.json` does hold."""
    rows: dict[str, dict[str, int]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return rows
