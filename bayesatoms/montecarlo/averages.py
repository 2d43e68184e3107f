"""Means over a chain and how they change with the couplings: sums by blocks, from which errors follow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Averages:
    """Sums of quantities, of features and of their products, over blocks of records.

    The energy is w . F, so d<A>/dw = -Cov(A, F): a chain that knows the mean of a histogram knows its gradient too
    (linear response; e.g. Newman and Barkema, Monte Carlo Methods in Statistical Physics, 1999, eq. 1.36).

    Parameters
    ----------
    records : ndarray, shape (blocks,)
        Records of each block.
    values : ndarray, shape (blocks, c)
    features : ndarray, shape (blocks, q)
    products : ndarray, shape (blocks, c, q)
    """

    records: NDArray[np.float64]
    values: NDArray[np.float64]
    features: NDArray[np.float64]
    products: NDArray[np.float64]

    @classmethod
    def of(cls, values: ArrayLike, features: ArrayLike, blocks: int = 16) -> Averages:
        """Sums over consecutive blocks of a chain's records, which should each span some autocorrelation times.

        Parameters
        ----------
        values : array_like, shape (n, c)
            Anything measured at every record, such as ``operator.counts(chain.snapshots, rng) / operator.n``.
        features : array_like, shape (n, q)
            ``chain.features``.
        blocks : int

        Raises
        ------
        InputError
            If there are fewer records than two a block, or the numbers of records differ.

        Examples
        --------
        Independent spins in a field h, energy h m: d<m>/dh = -(1 - m^2) at m = -tanh h.

        >>> m = np.where(np.random.default_rng(0).random(40_000) < 0.5 * (1 - np.tanh(0.3)), 1.0, -1.0)[:, None]
        >>> found = Averages.of(m, m)
        >>> exact = -(1 - np.tanh(0.3) ** 2)
        >>> bool(abs(found.gradient[0, 0] - exact) < 4 * found.gradient_error[0, 0]), bool(found.gradient_error[0, 0] < 0.01)
        (True, True)
        """
        x, f = np.asarray(values, dtype=float), np.asarray(features, dtype=float)
        if len(x) != len(f) or len(x) < 2 * blocks or blocks < 2:
            raise InputError(
                f"{len(x)} values and {len(f)} features in {blocks} blocks given; expected as many of each, 2 blocks, 2 records a block"
            )
        starts = np.linspace(0, len(x), blocks + 1).astype(int)
        pairs = list(itertools.pairwise(starts))
        return cls(
            np.diff(starts).astype(float),
            np.array([x[a:b].sum(axis=0) for a, b in pairs]),
            np.array([f[a:b].sum(axis=0) for a, b in pairs]),
            np.array([x[a:b].T @ f[a:b] for a, b in pairs]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Averages]) -> Averages:
        """Blocks of several chains at the same couplings."""
        fields = ("records", "values", "features", "products")
        return cls(*(np.concatenate([getattr(p, field) for p in parts]) for field in fields))

    @property
    def mean(self) -> NDArray[np.float64]:
        """Means of the values (c,)."""
        return self.values.sum(axis=0) / self.records.sum()

    @property
    def error(self) -> NDArray[np.float64]:
        """Standard errors of the means (c,), from the scatter of the blocks."""
        return _jackknife(self._left_out(self.values) / self._left_out(self.records)[:, None])

    @property
    def gradient(self) -> NDArray[np.float64]:
        """Derivatives of the means by the couplings (c, q), a kT."""
        return _response(*(part.sum(axis=0) for part in (self.records, self.values, self.features, self.products)))

    @property
    def gradient_error(self) -> NDArray[np.float64]:
        """Their standard errors (c, q), by leaving out block after block (Quenouille's jackknife)."""
        return _jackknife(_response(*(self._left_out(part) for part in (self.records, self.values, self.features, self.products))))

    def _left_out(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums.sum(axis=0) - sums


def _response(n: NDArray, values: NDArray, features: NDArray, products: NDArray) -> NDArray[np.float64]:
    """-Cov from sums (..., c), (..., q), (..., c, q) over n (...) records."""
    count = np.asarray(n)[..., None, None]
    return -(products - values[..., :, None] * features[..., None, :] / count) / (count - 1)


def _jackknife(left_out: NDArray[np.float64]) -> NDArray[np.float64]:
    apart = left_out - left_out.mean(axis=0)
    return np.sqrt((len(apart) - 1) / len(apart) * (apart**2).sum(axis=0))
