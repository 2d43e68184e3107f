"""The background under the columns: bilinear between knots a few spacings apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

KNOTS = 2.5  # spacings between the knots


class Ground:
    """A background that is bilinear between knots.

    Parameters
    ----------
    shape : (rows, columns)
        Of the image.
    step : float
        Between knots, pixels.
    there : ndarray of bool
        Which pixels were recorded; elsewhere the background is a smooth continuation.
    """

    def __init__(self, shape: tuple[int, int], step: float, there: NDArray[np.bool_]) -> None:
        self.shape = shape
        self.knots = [max(2, round(n / step) + 1) for n in shape]
        self.steps = [(n - 1) / (k - 1) for n, k in zip(shape, self.knots, strict=True)]
        self.n = self.knots[0] * self.knots[1]
        self.rows, self.columns = (self._hats(n, k) for n, k in zip(shape, self.knots, strict=True))
        self.tables = tuple(t for n, k in zip(shape, self.knots, strict=True) for t in self._between(n, k))
        self.there = there
        mass = self._mass()
        smooth = sparse.kron(sparse.eye_array(self.knots[0]), _bend(self.knots[1])) + sparse.kron(
            _bend(self.knots[0]), sparse.eye_array(self.knots[1])
        )
        # where nothing was recorded the background has only its neighbours to go by
        self.penalty = (1e-3 * self.steps[0] * self.steps[1] * smooth).tocsr()
        self.mass = (mass + self.penalty).tocsr()

    @staticmethod
    def _between(n: int, knots: int) -> tuple[Integers, Floats]:
        """The knot before each pixel along an axis, and how far it is on the way to the next."""
        at = np.arange(n) * (knots - 1) / (n - 1)
        low = np.minimum(at.astype(np.int64), knots - 2)
        return low, at - low

    def _hats(self, n: int, knots: int) -> sparse.csr_array:
        low, share = self._between(n, knots)
        rows = np.repeat(np.arange(n), 2)
        return sparse.csr_array((np.column_stack([1 - share, share]).ravel(), (rows, np.column_stack([low, low + 1]).ravel())), (n, knots))

    def _mass(self) -> sparse.csr_array:
        """Overlaps of the knots' hats, thinned by the fraction of recorded pixels around both."""
        full = sparse.kron(self.rows.T @ self.rows, self.columns.T @ self.columns).tocoo()
        recorded = (self.rows.T @ self.there.astype(float) @ self.columns).ravel()
        whole = (self.rows.T @ np.ones(self.shape) @ self.columns).ravel()
        share = np.sqrt(np.maximum(recorded / whole, 1e-6))
        return sparse.csr_array((full.data * share[full.row] * share[full.col], (full.row, full.col)), full.shape)

    def field(self, level: Floats) -> Floats:
        """The background at every pixel."""
        return self.rows @ (self.columns @ level.reshape(self.knots).T).T

    def gradient(self, residual: Floats) -> Floats:
        """A residual against the hat of each knot."""
        return (self.rows.T @ (self.columns.T @ residual.T).T).ravel()

    def weights(self, points: Floats) -> tuple[Integers, Floats]:
        """The four knots around each point and their weights there; shape (n, 4)."""
        place = [np.clip(points[:, 1 - axis] / self.steps[axis], 0, self.knots[axis] - 1) for axis in (0, 1)]
        low = [np.minimum(p.astype(np.int64), k - 2) for p, k in zip(place, self.knots, strict=True)]
        share = [p - b for p, b in zip(place, low, strict=True)]
        knots, weights = [], []
        for i in (0, 1):
            for j in (0, 1):
                knots.append((low[0] + i) * self.knots[1] + low[1] + j)
                weights.append((share[0] if i else 1 - share[0]) * (share[1] if j else 1 - share[1]))
        return np.column_stack(knots), np.column_stack(weights)

    def at(self, level: Floats, points: Floats) -> Floats:
        """The background at points (n, 2), x and y."""
        knots, weights = self.weights(points)
        return (level[knots] * weights).sum(axis=1)


def _bend(n: int) -> sparse.csr_array:
    """Squared second differences along n knots."""
    if n < 3:
        return sparse.csr_array((n, n))
    d = sparse.diags_array([np.ones(n - 2), -2 * np.ones(n - 2), np.ones(n - 2)], offsets=[0, 1, 2], shape=(n - 2, n))
    return (d.T @ d).tocsr()
