"""Rows of token ids, as all models of token sequences take them."""

from __future__ import annotations

from typing import Protocol

import torch

from node.protocol.errors import LocalProtocolError


class _Tokens(Protocol):
    @property
    def vocabulary(self) -> int: ...

    def input_width(self) -> int: ...

    def rows(self, inputs_RF: torch.Tensor) -> torch.Tensor: ...


class TokenRows:
    """The part of `TokenModel` that follows from the vocabulary and the length of a row."""

    __slots__ = ()

    def rows(self: _Tokens, inputs_RF: torch.Tensor) -> torch.Tensor:
        """Return ids_RT; `LocalProtocolError` for what is no token."""
        ids_RT = inputs_RF.long()
        right_RT = (ids_RT == inputs_RF) & (ids_RT >= 0) & (ids_RT < self.vocabulary)
        if not bool(right_RT.all()):
            wrong = float(inputs_RF[~right_RT][0])
            raise LocalProtocolError(f"tokens are 0 … {self.vocabulary - 1}, got {wrong:g}")
        return ids_RT

    def next_tokens(
        self: _Tokens, inputs_RF: torch.Tensor, targets_R: torch.Tensor
    ) -> torch.Tensor:
        """Return what follows each token of each row, targets_RT.

        Raises `LocalProtocolError` for targets that are no tokens.
        """
        if targets_R.is_floating_point():
            raise LocalProtocolError("the target of a row of tokens is a token, not a value")
        return torch.cat((self.rows(inputs_RF)[:, 1:], self.rows(targets_R[:, None])), dim=1)

    def random_rows(self: _Tokens, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return rows of tokens drawn evenly, as float64 numbers."""
        shape = (count, self.input_width())
        return torch.randint(self.vocabulary, shape, generator=generator).double()
