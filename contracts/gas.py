"""What each operation of the contracts costs in gas, against what it must cost at the least.

The floor of an operation is the sum of what no contract with this ABI, these events and this
storage (one slot for a trade, or for a batch) could save:

- the intrinsic cost of a transaction and of its calldata, byte by byte (EIP-2028);
- the storage it has to write, cold (EIP-2929), less what EIP-3529 gives back;
- the precompiles, the log entries, the hashes of the terms, and the call that pays out;
- and never less than EIP-7623 charges for the calldata alone.

Left out are the dispatch, the checks, memory and arithmetic, and so all of the cipher: this is
what a contract's code can be judged by. All constants are those of the Prague fork.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from eth_keys.datatypes import PrivateKey

from contracts.batch import Plan, plan, secret_of, shown
from contracts.clearing import Clearing, Opening, clearing_hash
from contracts.stage import ETHER, SECRET, ZERO, Outcome, Stage
from node.protocol.sum_tree import SumTree
from node.protocol.types import Address, Digest, Wei

TABLE: Final = Path(__file__).resolve().parent / "gas.json"

TRANSACTION: Final = 21_000
TOKEN: Final = 4  # gas for a calldata token: a zero byte is one, any other byte four (EIP-2028)
TOKEN_AT_LEAST: Final = 10  # the same where the calldata is nearly all there is (EIP-7623)
SLOT_READ: Final = 2_100  # SLOAD of a cold slot (EIP-2929)
SLOT_FILLED: Final = 22_100  # SSTORE of a cold slot, from zero
SLOT_CHANGED: Final = 5_000  # SSTORE of a cold slot, from anything else
SLOT_CLEARED: Final = 4_800  # given back for a slot set to zero (EIP-3529)
REFUND_SHARE: Final = 5  # of the gas used, at most a fifth is given back (EIP-3529)
CALL: Final = 100  # to a warm account, as precompiles are
COLD_CALL: Final = 2_600
CALL_WITH_VALUE: Final = 9_000 - 2_300  # an account without code hands the stipend back
ECRECOVER: Final = CALL + 3_000
SHA256: Final = CALL + 60
SHA256_WORD: Final = 12
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


SIGNATURE: Final = ECRECOVER + PLACE + SLOT_READ  # of a broker, and whether it sits
FUND: Final = TERMS + SIGNATURE + PLACE + SLOT_FILLED + log(4, 1)
REVEAL: Final = TERMS + SHA256 + SHA256_WORD + PLACE + SLOT_CHANGED + log(2, 1)
SETTLE: Final = TERMS + PLACE + SLOT_CHANGED + PLACE  # of finalize and refund, before the credits
PAID: Final = PLACE + log(2, 2)  # the second account that is credited, and the event
REFUNDED: Final = log(2, 1)
WITHDRAW: Final = 2 * PLACE + SLOT_CHANGED + log(3, 2) + CALL_WITH_VALUE

DEPTH: Final = 20
LEAF_WORDS: Final = 33  # a leaf of 1 KiB and the 13 bytes before it
DISPUTE: Final = (
    SETTLE
    + PLACE
    + COLD_CALL  # to the court
    + 2 * (SHA256 + LEAF_WORDS * SHA256_WORD)
    + 2 * DEPTH * (SHA256 + 3 * SHA256_WORD)
    + 5 * (SHA256 + 3 * SHA256_WORD)  # two roots, two commitments, the key
    + log(2, 2)
)
CLAIM_LEAVES: Final = 50
CLAIM_DEPTH: Final = 6
CLAIM: Final = (
    KECCAK
    + 6 * KECCAK_WORD
    + 2 * PLACE
    + SLOT_CHANGED  # which leaves were claimed
    + 2 * PLACE
    + KECCAK
    + 4 * KECCAK_WORD
    + CLAIM_DEPTH * (KECCAK + 5 * KECCAK_WORD)
    + log(3, 2)
)
LEGS: Final = 50
SPENDING: Final = ECRECOVER + KECCAK + 9 * KECCAK_WORD + 4 * PLACE + 2 * SLOT_CHANGED
"""Of each buyer: the consent, its nonce, the deposit."""
LEG: Final = TERMS + PLACE + SLOT_READ + 3 * KECCAK_WORD
"""Of each trade: its terms, whether it was funded by itself, and its part of the three lists."""
LOCK: Final = SIGNATURE + SLOT_FILLED + log(2, 8 + 8 + 3 * LEGS) + LEGS * LEG
"""The event has the batch, and four lists: the accounts are left to each case."""
REVEAL_BATCH: Final = SLOT_CHANGED + LEGS * (SHA256 + SHA256_WORD + KECCAK_WORD) + log(2, 3 + LEGS)
PAYOUT: Final = 2 * PLACE + SLOT_CHANGED
CLOSE: Final = SLOT_CHANGED + log(2, 0)


def measure() -> list[Row]:
    """Play every operation on fresh chains and return its gas, in the order of a trade.

    *First* is to an account that is owed nothing yet, *again* to one that is.
    """
    return [*trades(), further_signature(), dispute(), *batches(), *claims()]


def row(operation: str, outcome: Outcome, work: int, given_back: int = 0) -> Row:
    """Return the row of one transaction."""
    return Row(operation, outcome.gas, floor(outcome.data, work, given_back))


def trades() -> list[Row]:
    """Measure the steps of single trades."""
    stage = Stage()
    rows = []
    for occasion, slot in (("first", SLOT_FILLED), ("again", SLOT_CHANGED)):
        quote = stage.quote(trade_id=occasion.encode().ljust(32, b"\xff"))
        funded = stage.fund(quote)
        revealed = stage.send("reveal", quote, SECRET, sender="seller")
        stage.wait_until(revealed.time + quote.dispute_window + 1)
        paid = stage.send("finalize", quote, sender="seller")
        if occasion == "first":
            rows += [row("fund", funded, FUND), row("reveal", revealed, REVEAL)]
        rows.append(row(f"finalize, {occasion}", paid, SETTLE + PAID + 3 * PLACE + 2 * slot))
    for occasion, slot in (("first", SLOT_FILLED), ("again", SLOT_CHANGED)):
        quote = stage.quote(trade_id=occasion.encode().ljust(32, b"\xee"))
        stage.fund(quote)
        stage.wait_until(quote.reveal_by + quote.grace + 1)
        refunded = stage.send("refund", quote, sender="buyer")
        rows.append(row(f"refund, {occasion}", refunded, SETTLE + REFUNDED + PLACE + slot))
    own = stage.send("withdraw", ZERO, stage.accounts["seller"], sender="seller")
    rows.append(row("withdraw, own", own, WITHDRAW + CALL, SLOT_CLEARED))
    others = stage.send("withdraw", ZERO, stage.accounts["treasury"], sender="stranger")
    rows.append(row("withdraw, for another", others, WITHDRAW + COLD_CALL, SLOT_CLEARED))
    return rows


def further_signature() -> Row:
    """Measure by how much a second signature makes `fund` dearer."""
    gas, least = 0, 0
    for sign, threshold in ((1, 2), (-1, 1)):
        stage = Stage(("broker", "second"), threshold)
        outcome = stage.fund(stage.quote())
        gas += sign * outcome.gas
        least += sign * floor(outcome.data, FUND + (threshold - 1) * SIGNATURE)
    return Row("further signature", gas, least)


def words(count: int, *about: Any) -> list[bytes]:
    """Return so many digests that stand for something."""
    return [hashlib.sha256(repr((i, about)).encode()).digest() for i in range(count)]


def bound(top: bytes, index: int, path: list[bytes], leaves: int, length: int) -> bytes:
    """Return the root over a leaf hash and its path (see `ParameterTree`)."""
    for level, beside in enumerate(path):
        pair = beside + top if index >> level & 1 else top + beside
        top = hashlib.sha256(b"\x01" + pair).digest()
    return hashlib.sha256(b"\x03" + leaves.to_bytes(8) + length.to_bytes(8) + top).digest()


def dispute() -> Row:
    """Measure the dispute of a leaf of 1 GiB: noise opens to nothing that was offered."""
    stage = Stage()
    leaves, index = 1 << DEPTH, 777_777
    length = leaves * 1024
    leaf, (offered, dh) = b"".join(words(32, "leaf")), words(2, "offer")
    goods_path, offer_path = words(DEPTH, "goods"), words(DEPTH, "offers")
    hashed = hashlib.sha256(b"\x00" + index.to_bytes(8) + (1024).to_bytes(4) + leaf).digest()
    quote = stage.quote(
        leaf_count=leaves,
        byte_length=length,
        goods_root=bound(hashed, index, goods_path, leaves, length),
        offer_root=bound(offered, index, offer_path, leaves, length),
    )
    quote = quote._replace(dh_commitment=hashlib.sha256(dh + quote.trade_id).digest())
    stage.fund(quote)
    stage.send("reveal", quote, SECRET, sender="seller")
    evidence = (SECRET, dh, index, leaf, goods_path, offered, offer_path)
    disputed = stage.send("dispute", quote, evidence, sender="buyer")
    return row("dispute20", disputed, DISPUTE + SLOT_FILLED)


def batches() -> list[Row]:
    """Measure 50 trades from deposits, by trade: of two parties, and of as many as trades.

    Each is the second of its kind: everyone has credits, and has signed consents before.
    """
    rows = []
    for name, count in (("batch50", 2), (f"batch50, {LEGS} buyers", LEGS)):
        stage = Stage()
        keys: dict[str, PrivateKey] = {}
        for number in range(1, count + 1):
            key = PrivateKey((1_000 + number).to_bytes(32))
            keys[key.public_key.to_checksum_address()] = key
        for account in keys:
            stage.send("deposit", ZERO, account, 50 * ETHER, sender="stranger", value=50 * ETHER)
        for occasion in range(2):
            gas, least = played(stage, planned(stage, keys, occasion), count)
        rows.append(Row(name, gas // LEGS, least // LEGS))
    return rows


def planned(stage: Stage, keys: Mapping[str, PrivateKey], nonce: int) -> Plan:
    """Return a batch in which the holders of these keys buy from one another in turn."""
    parties = list(keys)
    quotes = []
    for number in range(LEGS):
        trade_id, offer, goods, dh, receipt = words(5, number, nonce, len(keys))
        seller = parties[(number + 1) % len(parties)]
        quote = stage.quote(
            trade_id=trade_id,
            buyer=parties[number % len(parties)],
            seller=seller,
            encryptor=seller,
            offer_root=offer,
            goods_root=goods,
            secret_commitment=hashlib.sha256(secret_of(trade_id)).digest(),
            dh_commitment=dh,
            receipt_hash=receipt,
        )
        quotes.append(quote)
    return plan(stage, quotes, keys, nonce)


def played(stage: Stage, made: Plan, buyers: int) -> tuple[int, int]:
    """Lock, reveal and close a batch; return its gas and its floor."""
    signatures = stage.signatures(made.digest)
    everything = (1 << LEGS) - 1
    locked = stage.send("lockBatch", made.spendings, made.accounts, signatures, sender="broker")
    secrets = shown(made.quotes, everything)
    revealed = stage.send("revealBatch", made.batch, secrets, everything, sender="broker")
    stage.wait_until(revealed.time + made.batch.dispute_window + 1)
    closed = stage.send("closeBatch", made.batch, made.payouts, sender="broker")
    least = floor(locked.data, LOCK + buyers * SPENDING + LOG_WORD * len(made.accounts)) + floor(
        revealed.data, REVEAL_BATCH
    )
    least += floor(closed.data, CLOSE + len(made.payouts) * PAYOUT)
    return locked.gas + revealed.gas + closed.gas, least


def claims() -> list[Row]:
    """Measure claims in a round of 50 accounts."""
    stage = Stage()
    house = stage.clearing_house()
    (round_id,) = words(1, "round")
    now = stage.now()
    opening = Opening(round_id, ZERO, now + 100, now + 200, 50)
    signatures = stage.signatures(stage.digest(opening.struct_hash(), house))
    stage.send("open", opening, signatures, sender="broker", to=house)
    claimants = (stage.accounts["seller"], stage.accounts["treasury"], stage.accounts["seller"])
    payouts = [(Address(claimants[i % 3]), Wei(ETHER + i)) for i in range(CLAIM_LEAVES)]
    tree = SumTree(Digest(round_id), payouts)
    pot = tree.root.sum
    stage.send("pay", round_id, stage.accounts["buyer"], pot, sender="buyer", value=pot, to=house)
    stage.wait_until(opening.pay_by + 1)
    signed = stage.digest(clearing_hash(round_id, tree.root, CLAIM_LEAVES, 0), house)
    what = (round_id, *tree.root, CLAIM_LEAVES, stage.signatures(signed))
    posted = stage.send("post", *what, sender="broker", to=house)
    stands_from = posted.time + opening.challenge_period + 1
    stage.wait_until(stands_from)
    clearing = Clearing(round_id, *tree.root, CLAIM_LEAVES, ZERO, stands_from)
    rows = []
    for index, occasion, slot in ((0, "claim", SLOT_FILLED), (2, "claim, again", SLOT_CHANGED)):
        leaf = (index, *payouts[index], tree.path(index))
        claimed = stage.send("claim", clearing, *leaf, sender="seller", to=house)
        rows.append(row(occasion, claimed, CLAIM + slot))
    return rows


def table() -> dict[str, dict[str, int]]:
    """Return what `contracts/gas.json` must hold, measured now."""
    return {row.operation: {"gas": row.gas, "floor": row.floor} for row in measure()}


def committed() -> dict[str, dict[str, int]]:
    """Return what `contracts/gas.json` does hold."""
    rows: dict[str, dict[str, int]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return rows
