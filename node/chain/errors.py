"""What can go wrong between us and a chain, each with one name and one remedy.

Nothing that web3, requests, eth-tester or a socket raises leaves `node.chain`: the adapter
maps it to one of these. A caller decides by type alone:

===========================  =====================================================
`ChainUnavailableError`      nothing is known; back off and ask again
`ChainAnswerError`           the endpoint answered nonsense; as above, and say so
`FeeTooHighError`            the endpoint asks more for gas than we allow; as above
`TransactionRefusedError`    this transaction will never be accepted as it stands
`CallRefusedError`           of these, where a contract said why, with its values
`NonceTooLowError`           sign it again with the next nonce
`UnfundedAccountError`       the account cannot pay; tell its owner
`WrongContractError`         this is not our market; stop
`NotSeatedError`             our signature counts for nothing in this market; stop
`StandingError`              the registry would refuse this account; the message says why
===========================  =====================================================
"""

from __future__ import annotations

from collections.abc import Mapping

from node.protocol.errors import MarketError


class ChainError(MarketError):
    """Base of the errors of this package."""


class ChainUnavailableError(ChainError):
    """The endpoint is down, too slow, or answers nonsense: nothing is known, ask again later."""


class AnswerLostError(ChainUnavailableError):
    """The question may have arrived, and no answer came: what it asked for may have been done."""


class ChainAnswerError(AnswerLostError):
    """The endpoint answered with something of another shape than was asked for."""


class FeeTooHighError(ChainUnavailableError):
    """The endpoint names gas fees above our ceiling: a broken or a thieving endpoint."""


class TransactionRefusedError(ChainError):
    """The chain will not take this transaction.

    `reason` is the name of the contract's custom error where there is one
    (``WrongState``), otherwise what the endpoint said.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class CallRefusedError(TransactionRefusedError):
    """A contract refused a call, with a custom error of its own.

    `reason` is its name and `values` what it said, by name: whole numbers, bytes, and addresses
    with their checksum.
    """

    def __init__(self, reason: str, values: Mapping[str, object]) -> None:
        shown = (
            f"{name} = {'0x' + value.hex() if isinstance(value, bytes) else value}"
            for name, value in values.items()
        )
        super().__init__(reason, ", ".join(shown))
        self.values = dict(values)


class NonceTooLowError(ChainError):
    """Another transaction of this account has taken the nonce."""


class UnfundedAccountError(ChainError):
    """The account cannot pay for the transaction's value and gas."""


class WrongContractError(ChainError):
    """The chain id, or the code at the escrow's address, is not what was expected."""


class NotSeatedError(ChainError):
    """A broker has no seat in the market that it was to serve, and cannot take one."""


class StandingError(ChainError):
    """What was asked for is not open to an account, by what the registry knows of it."""


class ChainLogError(ChainError):
    """The development chain's log is damaged, of another chain, or in use by another process."""
