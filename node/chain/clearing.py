"""The clearing house on web3: what a round of a mechanism collects, and pays out.

    open ──► pay, pay, … ──► post ──► (veto, post) ──► claim, claim, … ──► expire ──► reclaim
                              └──────── no root in time ──────────────────────────────┘

One account, one contract, one endpoint. Each method is one transaction: signed, handed to `save`,
sent, and seen mined. What is to be repeated after a crash is asked for first (`round`, `paid_in`,
`claimed`, `credit`): all of it is a matter of the chain and nothing is remembered here. For shells
that journal by themselves there is `sign`, `broadcast` and `outcome`, with a `HouseCall` each.

A call that the contract refuses is a `CallRefusedError` by the name of the contract's own error,
with its values; one that is refused without a reason is a `TransactionRefusedError`. All else that
may be raised is as of `transactions.broadcast`, and `ChainUnavailableError` where a transaction is
not mined in time: it may still be.

Who pays a token in has approved the house before; money is drawn by `withdraw`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, assert_never

from node.chain import answers, transactions
from node.chain.abi import Functions
from node.chain.check import HouseTerms, check_clearing_house, clearing_artifact, registry_artifact
from node.chain.client import DEFAULT_TIMEOUT, ChainClient, Endpoint
from node.chain.errors import CallRefusedError, ChainUnavailableError
from node.chain.house_events import MoneyMoved, money_moved
from node.chain.port import Fees, SignedTransaction, TransactionOutcome
from node.chain.reverts import Revert, Reverts
from node.chain.rounds import (
    Claim,
    Expire,
    HouseCall,
    Open,
    Pay,
    Post,
    PostedRoot,
    Reclaim,
    Round,
    Veto,
    Withdraw,
)
from node.chain.transactions import DEFAULT_FEE_CEILING, Wallet
from node.protocol.clearing import ClearingDomain, Opening
from node.protocol.errors import LocalProtocolError
from node.protocol.schema import checksummed
from node.protocol.signing import ACCOUNT_SIGNATURE_BYTES
from node.protocol.sum_tree import MAX_LEAVES, Node, Payout, SumTree, is_in
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei

MINED_WITHIN: Final = 120.0
_POLL_SECONDS: Final = 0.5

CALL_GAS: Final = 200_000
"""For each call, more than twice what it needs, so that signing never depends on an estimate."""
_SIGNATURE_GAS: Final = 20_000
_WORD_GAS: Final = 25_000
"""Of a root, for each `_WORD_LEAVES`: a slot that is filled. To empty it takes a fifth of that."""
_WORD_LEAVES: Final = 127
_ALL_WORDS_EMPTIED: Final = -(-MAX_LEAVES // _WORD_LEAVES) * 6_000

_FUNCTIONS: Final = (
    "open", "pay", "post", "veto", "claim", "expire", "reclaim", "withdraw",
    "roundOf", "paidIn", "claimed", "credits",
)  # fmt: skip


def open_clearing_house(
    endpoint: Endpoint,
    private_key: bytes,
    domain: ClearingDomain,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    mined_within: float = MINED_WITHIN,
    fee_ceiling: Wei = DEFAULT_FEE_CEILING,
    save: Callable[[bytes], None] | None = None,
) -> Web3ClearingHouse:
    """Open one account's view of a clearing house, after a look at what is there.

    `endpoint` is a URL or a web3 provider; `save` gets each transaction before it is sent. Raises
    `WrongContractError` and `ChainUnavailableError`.
    """
    client = ChainClient(endpoint, timeout)
    try:
        terms = check_clearing_house(client, domain)
    except BaseException:
        client.close()
        raise
    wallet = Wallet(private_key, domain.chain_id, fee_ceiling)
    return Web3ClearingHouse(client, wallet, domain, terms, mined_within, save)


class Web3ClearingHouse:
    """Made by `open_clearing_house`; as safe to share between threads as the provider is."""

    def __init__(
        self,
        client: ChainClient,
        wallet: Wallet,
        domain: ClearingDomain,
        terms: HouseTerms,
        mined_within: float,
        save: Callable[[bytes], None] | None,
    ) -> None:
        self._client, self._wallet, self._mined_within = client, wallet, mined_within
        self._save = save
        self.domain: Final = domain
        self.terms: Final = terms
        artifact = clearing_artifact()
        self._functions = Functions(artifact.name, artifact.abi, _FUNCTIONS)
        self._reverts = Reverts(registry_artifact().abi, artifact.abi)

    @property
    def account(self) -> Address:
        """The account that pays for transactions."""
        return self._wallet.address

    # --- reading

    def round(self, round_id: Digest) -> Round | None:
        """Return what is known of a round; None if it was not opened."""
        ((asset, *numbers, clearing),) = self._ask("roundOf", round_id)
        pay_by, post_by, challenge, posted_at, leaves, version, pot, taken = numbers
        if pay_by == 0:
            return None
        return Round(
            asset=_address(asset),
            pay_by=UnixTime(pay_by),
            post_by=UnixTime(post_by),
            challenge_period=challenge,
            posted_at=UnixTime(posted_at),
            leaves=leaves,
            version=version,
            pot=Wei(pot),
            taken=Wei(taken),
            clearing=Digest(clearing),
        )

    def posted(self, tree: SumTree) -> PostedRoot | None:
        """Return the root that is there, if it is that of this tree; else None."""
        found = self.round(tree.round_id)
        if found is None or found.posted_at == 0:
            return None
        posted = PostedRoot(
            round=tree.round_id,
            root=tree.root.hash,
            sum=tree.root.sum,
            leaves=len(tree.payouts),
            asset=found.asset,
            stands_from=found.stands_from,
        )
        return posted if posted.hash == found.clearing else None

    def paid_in(self, round_id: Digest, account: Address) -> Wei:
        """Return what an account paid into a round and has not taken back."""
        return Wei(self._ask("paidIn", round_id, account)[0])

    def claimed(self, round_id: Digest, index: int) -> bool:
        """Whether a leaf of the root that is there was claimed."""
        return bool(self._ask("claimed", round_id, index)[0])

    def credit(self, asset: Address, account: Address) -> Wei:
        """Return what `withdraw` would pay to an account."""
        return Wei(self._ask("credits", asset, account)[0])

    def now(self) -> tuple[int, UnixTime]:
        """Return number and time of the newest block."""
        block = answers.mapping(
            self._client.ask("eth_getBlockByNumber", "latest", False), "a block"
        )
        return (
            answers.quantity(block.get("number"), "a block's number"),
            answers.time(block.get("timestamp"), "a block's timestamp"),
        )

    def balance(self, *, block: int) -> Wei:
        """Return how much ether the house held at the end of a block."""
        held = self._client.ask("eth_getBalance", self.domain.clearing_house, hex(block))
        return answers.wei(held, "eth_getBalance")

    def moved(self, first: int, last: int) -> list[MoneyMoved]:
        """Return what came in, was credited, and went out, in these blocks, both included."""
        return money_moved(self._client, self.domain.clearing_house, first, last)

    def seats(self, account: Address) -> bool:
        """Whether the account is a broker of this house whose signature counts."""
        return account in check_clearing_house(self._client, self.domain, (account,)).seated

    def next_nonce(self) -> int:
        """Return the nonce of our account's next transaction."""
        return self._client.nonce(self.account)

    # --- a round, step by step

    def open(self, opening: Opening, signatures: bytes) -> None:
        """Open a round, signed by a quorum."""
        self.send(Open(opening, signatures))

    def pay(self, round_id: Digest, amount: Wei, *, account: Address | None = None) -> None:
        """Pay into a round, for our own account or for another, which takes it back if need be.

        Raises `LocalProtocolError` if there is no such round.
        """
        found = self.round(round_id)
        if found is None:
            raise LocalProtocolError(f"round {round_id.hex()} was not opened")
        self.send(Pay(round_id, found.asset, account or self.account, amount))

    def post(self, tree: SumTree, signatures: bytes) -> PostedRoot | None:
        """Post the root of a tree, signed by a quorum; None if another took its place since.

        Raises `LocalProtocolError` for a payout to the house itself, which could not be claimed.
        """
        if any(account == self.domain.clearing_house for account, _ in tree.payouts):
            raise LocalProtocolError("a payout to the clearing house itself cannot be claimed")
        self.send(Post(tree.round_id, tree.root, len(tree.payouts), signatures))
        return self.posted(tree)

    def veto(self, round_id: Digest) -> None:
        """Take the root of a round back, as one of its brokers."""
        self.send(Veto(round_id))

    def claim(self, posted: PostedRoot, index: int, payout: Payout, path: Sequence[Node]) -> None:
        """Have the account of a leaf credited.

        Raises `LocalProtocolError` for a leaf that is not in the root, before anything is sent.
        """
        root = Node(posted.root, posted.sum)
        if not is_in(root, posted.leaves, posted.round, index, payout, path):
            raise LocalProtocolError(f"leaf {index} is not in root {posted.root.hex()}")
        self.send(Claim(posted, index, payout, tuple(path)))

    def claim_all(self, tree: SumTree, indices: Iterable[int] | None = None) -> int:
        """Claim all leaves of a root that stands, or those named; return how many were left.

        Leaves of nothing are passed over. What was claimed is not claimed again, whoever did it.
        Raises `LocalProtocolError` if the root that is there is not that of this tree.
        """
        posted = self.posted(tree)
        if posted is None:
            raise LocalProtocolError(f"the root of round {tree.round_id.hex()} is another, or none")
        count = 0
        for index in range(len(tree.payouts)) if indices is None else indices:
            payout, path = tree.payouts[index], tree.path(index)
            if payout.amount == 0 or self.claimed(tree.round_id, index):
                continue
            try:
                self.claim(posted, index, payout, path)
            except CallRefusedError as refusal:
                if refusal.reason != "AlreadyClaimed":  # else somebody else was first
                    raise
            else:
                count += 1
        return count

    def expire(self, round_id: Digest) -> None:
        """End a root that could be claimed under for `EXPIRY`."""
        self.send(Expire(round_id))

    def reclaim(self, round_id: Digest, account: Address) -> None:
        """Have an account credited what it paid in, or its share of what nobody claimed."""
        self.send(Reclaim(round_id, account))

    def withdraw(self, asset: Address, account: Address) -> None:
        """Pay out an account's credit, to that account."""
        self.send(Withdraw(asset, account))

    # --- transactions

    def send(self, call: HouseCall) -> TransactionOutcome:
        """Sign, save, send, and see it mined; see the module for what is raised."""
        signed = self.sign(call, self._client.nonce(self.account))
        if self._save is not None:
            self._save(signed.raw)
        self.broadcast(signed.raw)
        deadline = time.monotonic() + self._mined_within
        while (outcome := self.outcome(signed.hash)) is None:
            if time.monotonic() > deadline:
                raise ChainUnavailableError(
                    f"0x{signed.hash.hex()} was not mined within {self._mined_within} s"
                )
            time.sleep(_POLL_SECONDS)
        if outcome.revert is not None:
            raise Revert(outcome.revert, outcome.values).refusal()
        return outcome

    def sign(self, call: HouseCall, nonce: int, fees: Fees | None = None) -> SignedTransaction:
        """Sign; the same arguments give the same bytes."""
        data, value, gas = self._encode(call)
        return self._wallet.sign(
            self.domain.clearing_house,
            data,
            value,
            gas=gas,
            nonce=nonce,
            fees=fees if fees is not None else self._wallet.fees(self._client),
        )

    def broadcast(self, raw: bytes) -> None:
        """Hand a signed transaction to the chain; once it is known, again is fine."""
        transactions.broadcast(self._client, raw, self._reverts.read)

    def outcome(self, transaction: Digest) -> TransactionOutcome | None:
        """Return how a transaction ended, None while it has not been mined."""
        return transactions.outcome(self._client, transaction, self._reverts.read)

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    def _encode(self, call: HouseCall) -> tuple[bytes, Wei, int]:
        """Return calldata, the value that goes with it, and a limit of gas."""
        function, value, gas = self._functions.call, Wei(0), CALL_GAS
        match call:
            case Open(opening, signatures):
                members = (
                    opening.round, opening.asset, opening.pay_by, opening.post_by,
                    opening.challenge_period,
                )  # fmt: skip
                return function("open", members, signatures), value, gas + _quorum_gas(signatures)
            case Pay(round_id, asset, account, amount):
                value = amount if asset == NO_ADDRESS else value
                return function("pay", round_id, account, amount), value, gas
            case Post(round_id, root, leaves, signatures):
                words = -(-leaves // _WORD_LEAVES)
                gas += _quorum_gas(signatures) + words * _WORD_GAS + _ALL_WORDS_EMPTIED
                return function("post", round_id, *root, leaves, signatures), value, gas
            case Veto(round_id):
                return function("veto", round_id), value, gas + _ALL_WORDS_EMPTIED
            case Claim(posted, index, payout, path):
                return function("claim", posted.fields, index, *payout, path), value, gas
            case Expire(round_id):
                return function("expire", round_id), value, gas + _ALL_WORDS_EMPTIED
            case Reclaim(round_id, account):
                return function("reclaim", round_id, account), value, gas
            case Withdraw(asset, account):
                return function("withdraw", asset, account), value, gas
            case _:
                assert_never(call)

    def _ask(self, name: str, *arguments: object) -> tuple[Any, ...]:
        asked = self._functions.call(name, *arguments)
        return self._functions.read_any(name, self._client.view(self.domain.clearing_house, asked))


def _quorum_gas(signatures: bytes) -> int:
    return _SIGNATURE_GAS * (len(signatures) // ACCOUNT_SIGNATURE_BYTES + 1)


def _address(text: str) -> Address:
    return checksummed(bytes.fromhex(text[2:]))
