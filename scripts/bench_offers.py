#!/usr/bin/env python3
"""How many signed offers a node's gossip validator judges in a second, on one core.

    python scripts/bench_offers.py [--offers 2000]

Each is decoded, its bounds and lifetime checked, its EIP-712 digest computed, both
signatures verified, and kept. The floor, in the same run and over the same offers: the two
verifications alone, on keys, digests and signatures that are taken apart beforehand. No
validator that checks both signatures by these libraries can be faster.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import coincurve

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from node.protocol import envelope  # noqa: E402  (the path above comes first)
from node.protocol.book import MAX_OF_ISSUER, OfferBook  # noqa: E402
from node.protocol.eip712 import Domain, digest  # noqa: E402
from node.protocol.offer import Offer  # noqa: E402
from node.protocol.signing import address_of, peer_id_of_seed, public_key_of  # noqa: E402
from node.protocol.types import Digest, UnixTime, Wei  # noqa: E402

NOW: Final = UnixTime(1_800_000_000)
OFFERS: Final = 2_000
ROUNDS: Final = 5
OFFERS_OF_A_SELLER: Final = 20
DOMAIN: Final = Domain(chain_id=31_337, escrow=address_of(b"\x01" * 32))
ARCHITECTURE: Final = '{"config":{"widths":[784,32,32,32,16,10]},"name":"mlp"}'
assert OFFERS_OF_A_SELLER < MAX_OF_ISSUER


def offers(count: int) -> list[bytes]:
    """Return messages of many sellers, each good and unlike all others."""
    made = []
    for number in range(count):
        seller = number // OFFERS_OF_A_SELLER
        account_key = hashlib.sha256(b"account %d" % seller).digest()
        peer_seed = hashlib.sha256(b"peer %d" % seller).digest()
        body = Offer(
            seller=address_of(account_key),
            peer_id=peer_id_of_seed(peer_seed),
            addresses=("/ip4/203.0.113.7/tcp/4001", "/dns4/example.org/tcp/4001"),
            task="mnist",
            architecture=ARCHITECTURE,
            layers=(),
            weights_root=Digest(hashlib.sha256(b"weights %d" % number).digest()),
            leaf_count=110,
            byte_length=112_344,
            reserve=Wei(10**15),
            issued_at=NOW,
            expires_at=UnixTime(NOW + 600),
            nonce=number,
        )
        signed = envelope.sign(DOMAIN, body, account_key=account_key, peer_seed=peer_seed)
        made.append(envelope.encode(signed))
    return made


def per_second(work: Callable[[], None], count: int) -> float:
    """Return how many of `count` things `work` does in a second of this core."""
    began = time.process_time()
    work()
    return count / (time.process_time() - began)


def judge(messages: Iterable[bytes]) -> None:
    """Have an empty book judge each message; all must be good."""
    book = OfferBook(DOMAIN)
    for data in messages:
        verdict = book.receive(data, NOW)
        assert verdict.accepted, verdict


def hear_again(book: OfferBook, messages: Iterable[bytes]) -> None:
    """Have a book that knows each message judge it once more."""
    for data in messages:
        assert book.receive(data, NOW).reason == "duplicate"


def decode(messages: Iterable[bytes]) -> None:
    """Read each message, and check nothing."""
    for data in messages:
        envelope.decode(data)


def taken_apart(messages: Iterable[bytes]) -> list[tuple[bytes, bytes, bytes, Any]]:
    """Return digest, r‖s‖recovery id, Ed25519 signature and Ed25519 key of each message."""
    found = []
    for data in messages:
        signed = envelope.decode(data)
        account = signed.account_signature
        found.append(
            (
                bytes(digest(DOMAIN, signed.body)),
                account[:64] + bytes([account[64] - 27]),
                signed.peer_signature,
                public_key_of(signed.body.peer_id),
            )
        )
    return found


def verify(parts: Iterable[tuple[bytes, bytes, bytes, Any]]) -> None:
    """Do nothing but the two verifications."""
    for name, account_signature, peer_signature, peer_key in parts:
        coincurve.PublicKey.from_signature_and_message(account_signature, name, hasher=None)
        peer_key.verify(peer_signature, name)


def rows(count: int = OFFERS) -> list[dict[str, Any]]:
    """Return a row for each case; the floor is measured between the rounds of the others."""
    messages = offers(count)
    parts = taken_apart(messages)
    known = OfferBook(DOMAIN)
    for data in messages:
        known.receive(data, NOW)
    cases: dict[str, Callable[[], None]] = {
        "judged: decoded, both signatures, kept": lambda: judge(messages),
        "both signatures alone": lambda: verify(parts),
        "decoded alone": lambda: decode(messages),
        "known already": lambda: hear_again(known, messages),
    }
    found: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for case, work in cases.items():
            found[case].append(per_second(work, count))
    speeds = {case: statistics.median(values) for case, values in found.items()}
    floor = "both signatures alone"
    return [
        {
            "case": case,
            "value": round(speed),
            "unit": "offers/s",
            "against": None if case == floor else floor,
            "ratio": None if case == floor else round(speed / speeds[floor], 3),
        }
        for case, speed in speeds.items()
    ]


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--offers", type=int, default=OFFERS, help="how many messages")
    for row in rows(parser.parse_args().offers):
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f} of the floor"
        print(f"{row['case']:40}{row['value']:>8} {row['unit']}  {ratio}")


if __name__ == "__main__":
    main()
