"""The linear system of an interior-point step, by elimination of all that is block diagonal.

    [ AΘAᵀ + diag(slack)      C ᵀ              ] [ price ]   [ of_goods  ]
    [ C                       diag(EΘEᵀ) + own ] [ bang  ] = [ of_buyers ]

A takes purchases to goods, E to buyers, Θ is diagonal and positive, C = EΘAᵀ. Every purchase
is of one buyer and one seller, so EΘEᵀ is diagonal and AΘAᵀ has one R × R block a seller.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
REFINEMENTS = 1


class Elimination:
    """The system, factored. Raises `LinAlgError` where rounding left it indefinite."""

    def __init__(self, demand_RSJ: Array, theta_SJ: Array, slack_RJ: Array, own_S: Array) -> None:
        types, buyers, sellers = demand_RSJ.shape
        self.shape_RJ = (types, sellers)
        taken_RSJ = demand_RSJ * theta_SJ
        self.coupling_SG = np.ascontiguousarray(taken_RSJ.transpose(1, 0, 2)).reshape(buyers, -1)
        self.buyers_S = theta_SJ.sum(axis=1) + own_S
        self.goods_JRR = np.einsum("qsj,rsj->jqr", taken_RSJ, demand_RSJ)
        for r in range(types):
            self.goods_JRR[:, r, r] += slack_RJ[r]
        self.by_goods = types * sellers <= buyers
        self.factor = self._of_goods() if self.by_goods else self._of_buyers()

    def _of_goods(self) -> Array:
        types, sellers = self.shape_RJ
        scaled_SG = self.coupling_SG / np.sqrt(self.buyers_S)[:, None]
        dense = scaled_SG.T @ scaled_SG
        np.negative(dense, out=dense)
        of_seller = np.arange(sellers)
        for q in range(types):
            for r in range(types):
                dense[q * sellers + of_seller, r * sellers + of_seller] += self.goods_JRR[:, q, r]
        return _cholesky(dense.T)

    def _of_buyers(self) -> Array:
        self.lower_JRR = np.linalg.cholesky(self.goods_JRR)
        scaled_SG = self._forward(self.coupling_SG)
        dense = scaled_SG @ scaled_SG.T
        np.negative(dense, out=dense)
        dense[np.diag_indices_from(dense)] += self.buyers_S
        return _cholesky(dense.T)

    def _forward(self, rows_NG: Array) -> Array:
        """Return L⁻¹ of each row, for the block diagonal Cholesky factor L of the goods."""
        types, sellers = self.shape_RJ
        rows_NRJ = rows_NG.reshape(-1, types, sellers)
        solved_NRJ = np.empty_like(rows_NRJ)
        for r in range(types):
            rest = rows_NRJ[:, r].copy()
            for q in range(r):
                rest -= self.lower_JRR[:, r, q] * solved_NRJ[:, q]
            solved_NRJ[:, r] = rest / self.lower_JRR[:, r, r]
        return solved_NRJ.reshape(len(rows_NG), -1)

    def solve(self, of_goods_RJ: Array, of_buyers_S: Array) -> tuple[Array, Array]:
        """Return price_RJ and bang_S, refined against the uneliminated system."""
        price_RJ, bang_S = self._once(of_goods_RJ, of_buyers_S)
        for _ in range(REFINEMENTS):
            rest_RJ, rest_S = self._applied(price_RJ, bang_S)
            more_RJ, more_S = self._once(of_goods_RJ - rest_RJ, of_buyers_S - rest_S)
            price_RJ, bang_S = price_RJ + more_RJ, bang_S + more_S
        return price_RJ, bang_S

    def _applied(self, price_RJ: Array, bang_S: Array) -> tuple[Array, Array]:
        goods_RJ = np.einsum("jqr,rj->qj", self.goods_JRR, price_RJ)
        goods_RJ += (bang_S @ self.coupling_SG).reshape(self.shape_RJ)
        return goods_RJ, self.coupling_SG @ price_RJ.ravel() + self.buyers_S * bang_S

    def _once(self, of_goods_RJ: Array, of_buyers_S: Array) -> tuple[Array, Array]:
        if self.by_goods:
            right_G = of_goods_RJ.ravel() - (of_buyers_S / self.buyers_S) @ self.coupling_SG
            price_G = _solve(self.factor, right_G)
            bang_S = (of_buyers_S - self.coupling_SG @ price_G) / self.buyers_S
            return price_G.reshape(self.shape_RJ), bang_S
        bang_S = _solve(self.factor, of_buyers_S - self.coupling_SG @ self._goods(of_goods_RJ))
        rest_RJ = of_goods_RJ - (bang_S @ self.coupling_SG).reshape(self.shape_RJ)
        return self._goods(rest_RJ).reshape(self.shape_RJ), bang_S

    def _goods(self, right_RJ: Array) -> Array:
        """Return the goods' own block diagonal system solved, flat."""
        solved_JR = np.linalg.solve(self.goods_JRR, right_RJ.T[:, :, None])[:, :, 0]
        return np.ascontiguousarray(solved_JR.T).ravel()


def _cholesky(dense: Array) -> Array:
    from scipy.linalg.lapack import dpotrf  # noqa: PLC0415  slow to import, and not always needed

    factor, failed = dpotrf(dense, lower=1, overwrite_a=1, clean=0)
    if failed:
        raise np.linalg.LinAlgError("the system of this step is not positive definite")
    return np.asarray(factor)


def _solve(factor: Array, right: Array) -> Array:
    from scipy.linalg.lapack import dpotrs  # noqa: PLC0415  as above

    return np.asarray(dpotrs(factor, right, lower=1)[0])
