"""Multistate reweighting: one pool of chains answers for every coupling near it.

The energy is linear in the couplings, so snapshots with features F_n drawn at design points w_k with
n_k records each carry, at any w, weights proportional to

    exp(-w . F_n) / sum_k n_k exp(f_k - w_k . F_n)

(Shirts and Chodera, J. Chem. Phys. 129, 124105, 2008). The free energies f_k minimise a convex
function. Plain self-consistent iteration and an unguarded Newton can stall without a symptom, so the
norm of its gradient is part of the answer and is checked on every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from ..errors import CheckError, InputError
from .boltzmann import boltzmann, responsibilities

GRADIENT_BAR = 1e-8  # of the mean log-likelihood a record; above it the free energies are not solved

_TOGETHER = 32  # couplings at once: their weights stay in the cache


@dataclass(frozen=True, eq=False)
class Reweighting:
    """A solved pool.

    Attributes
    ----------
    features : ndarray, shape (n, q)
        Centred on their mean, which leaves all weights unchanged and keeps the exponentials small.
    couplings : ndarray, shape (K, q)
        Design points.
    records : ndarray of float, shape (K,)
        Independent records at each.
    free_energies : ndarray, shape (K,)
        -ln Z(w_k) up to a common constant, for the centred features.
    gradient_norm : float
    """

    features: NDArray[np.float64]
    centre: NDArray[np.float64]
    couplings: NDArray[np.float64]
    records: NDArray[np.float64]
    free_energies: NDArray[np.float64]
    gradient_norm: float
    log_mixture: NDArray[np.float64]

    @classmethod
    def solve(
        cls,
        features: ArrayLike,
        couplings: ArrayLike,
        records: ArrayLike,
        *,
        start: ArrayLike | None = None,
        iterations: int = 200,
    ) -> Reweighting:
        """Solve the free energies of a pool.

        Parameters
        ----------
        features : array_like, shape (n, q)
            Of all snapshots, chain after chain.
        couplings : array_like, shape (K, q)
        records : array_like of int, shape (K,)
            Snapshots of each chain; they sum to n.
        start : array_like, shape (K,), optional
            First guess of the free energies; by default from the chains' mean features.
        iterations : int
            Newton steps at most. A solution short of the bar is returned with its gradient norm: the
            caller decides with :meth:`check`.

        Raises
        ------
        InputError
            If the shapes disagree or something is not finite.

        Examples
        --------
        Two Gaussian ensembles exp(-F^2 / 2 - w F): Z(w) is proportional to exp(w^2 / 2).

        >>> rng = np.random.default_rng(0)
        >>> F = np.concatenate([rng.normal(0, 1, 4000), rng.normal(-1, 1, 4000)])[:, None]
        >>> pool = Reweighting.solve(F, [[0.0], [1.0]], [4000, 4000])
        >>> bool(abs(pool.log_z([1.0]) - pool.log_z([0.0]) - 0.5) < 0.06), pool.gradient_norm < 1e-8
        (True, True)
        """
        features, couplings = np.atleast_2d(np.asarray(features, float)), np.atleast_2d(np.asarray(couplings, float))
        records = np.asarray(records, dtype=float)
        if records.sum() != len(features) or len(records) != len(couplings) or couplings.shape[1] != features.shape[1]:
            raise InputError(
                f"{len(features)} snapshots of {features.shape[1]} features for {couplings.shape} couplings and {records.sum():g} records"
            )
        centre = features.mean(axis=0)
        centred = features - centre
        negative = np.ascontiguousarray(-(centred @ couplings.T))  # -u, (n, K)
        guess = _trapezoid(centred, couplings, records) if start is None else np.asarray(start, dtype=float)
        if not (np.isfinite(negative).all() and np.isfinite(guess).all()):
            raise InputError("features, couplings or the start of the free energies are not finite")
        f, norm = _solve(negative, records, guess, iterations)
        mixture = np.empty(len(features))
        responsibilities(negative, f + np.log(records), np.empty_like(negative), mixture)
        return cls(centred, centre, couplings, records, f, norm, mixture)

    def check(self) -> None:
        """Raise CheckError unless the gradient norm is within :data:`GRADIENT_BAR`."""
        if not self.gradient_norm <= GRADIENT_BAR:
            raise CheckError(
                f"free energies of the pool are not solved: gradient norm {self.gradient_norm:.1e}, expected at most {GRADIENT_BAR:.0e}; "
                "start from the default guess or allow more iterations"
            )

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        """Features one after the other, (q, n)."""
        return np.ascontiguousarray(self.features.T)

    def _factors(self, couplings: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights (m, n) before they are normalised, their sums and sums of squares (m, 2)."""
        raw, sums = np.empty((len(couplings), len(self.features))), np.empty((len(couplings), 2))
        boltzmann(np.ascontiguousarray(couplings), self._columns, self.log_mixture, raw, sums)
        return raw, sums

    def weights(self, couplings: ArrayLike) -> NDArray[np.float64]:
        """Normalised weights of all snapshots at couplings (q,) or (m, q); shape (n,) or (m, n)."""
        w = np.asarray(couplings, dtype=float)
        raw, sums = self._factors(np.atleast_2d(w))
        raw /= sums[:, :1]
        return raw.reshape(*w.shape[:-1], -1)

    def averages(self, couplings: NDArray[np.float64], table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Reweighted means (m, c) of the columns of a table (n, c) at couplings (m, q), and the effective records (m,) there."""
        means, effective = np.empty((len(couplings), table.shape[1])), np.empty(len(couplings))
        for first in range(0, len(couplings), _TOGETHER):
            some = slice(first, first + _TOGETHER)
            raw, sums = self._factors(couplings[some])
            means[some], effective[some] = raw @ table / sums[:, :1], sums[:, 0] ** 2 / sums[:, 1]
        return means, effective

    def sums(
        self, couplings: NDArray[np.float64], table: NDArray[np.float64], edges: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Sums by groups of records, those between two edges: weighted columns of a table (groups, m, c), squared weights, weights."""
        groups, m = len(edges) - 1, len(couplings)
        columns, squares, totals = np.empty((groups, m, table.shape[1])), np.empty((groups, m)), np.empty((groups, m))
        for first in range(0, m, _TOGETHER):
            some = slice(first, first + _TOGETHER)
            raw, _ = self._factors(couplings[some])
            for g, (low, high) in enumerate(pairwise(edges)):
                part = raw[:, low:high]
                columns[g, some], totals[g, some] = part @ table[low:high], part.sum(axis=1)
                squares[g, some] = np.einsum("mn,mn->m", part, part)
        return columns, squares, totals

    def log_z(self, couplings: ArrayLike) -> NDArray[np.float64]:
        """ln Z at couplings (q,) or (m, q), up to one constant of the pool; differences are what counts."""
        w = np.asarray(couplings, dtype=float)
        return logsumexp(-(w @ self.features.T) - self.log_mixture, axis=-1) - w @ self.centre

    def effective_records(self, couplings: ArrayLike) -> NDArray[np.float64]:
        """Kish's effective number of records, 1 / sum of squared weights, at couplings (q,) or (m, q)."""
        w = np.asarray(couplings, dtype=float)
        return self.averages(np.atleast_2d(w), self.features[:, :0])[1].reshape(w.shape[:-1])

    def support(self, couplings: ArrayLike) -> NDArray[np.float64]:
        """Effective records in units of one chain's mean length: below 0.05 there is no support."""
        return self.effective_records(couplings) / self.records.mean()


def _trapezoid(features: NDArray, couplings: NDArray, records: NDArray) -> NDArray[np.float64]:
    """First guess: f = integral of <F> dw from the pool's middle, with each chain's own mean as the integrand at its end."""
    stops = np.cumsum(records).astype(int)
    means = np.array([features[a:b].mean(axis=0) for a, b in zip(stops - records.astype(int), stops, strict=True)])
    middle, mean = np.average(couplings, axis=0, weights=records), np.average(means, axis=0, weights=records)
    return np.einsum("kq,kq->k", couplings - middle, (means + mean) / 2)


def _solve(negative: NDArray, records: NDArray, f: NDArray, iterations: int) -> tuple[NDArray[np.float64], float]:
    """Minimise mean_n [logsumexp_k(ln n_k + f_k - u_kn)] - sum_k n_k f_k / n over f, one of which is fixed."""
    share, log_records = records / records.sum(), np.log(records)

    def shares(f: NDArray) -> tuple[float, NDArray]:
        p, log_total = np.empty_like(negative), np.empty(len(negative))
        responsibilities(negative, f + log_records, p, log_total)
        return float(np.mean(log_total) - share @ f), p

    def objective(f: NDArray) -> tuple[float, NDArray]:
        value, p = shares(f)
        return value, p.mean(axis=0) - share

    # BFGS is safe far out, where the Hessian is singular; Newton then gains the digits
    f = minimize(objective, f - f.mean(), jac=True, method="L-BFGS-B", options={"maxiter": min(500, 5 * iterations), "gtol": 1e-5}).x
    value, p = shares(f)
    for _ in range(iterations):
        gradient = p.mean(axis=0) - share
        if np.linalg.norm(gradient) <= 0.1 * GRADIENT_BAR:
            break
        hessian = np.diag(p.mean(axis=0)) - p.T @ p / len(p)
        # the constant direction is null; f is kept at mean zero by the pseudo-inverse
        step, scale = -np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0], 1.0
        while scale > 1e-6:
            trial_value, trial_p = shares(f + scale * step)
            # near the minimum the value no longer resolves a step: then the gradient must shrink
            if trial_value < value or np.linalg.norm(trial_p.mean(axis=0) - share) < np.linalg.norm(gradient):
                break
            scale /= 2
        else:
            break
        f, value, p = f + scale * step, trial_value, trial_p
    return f - f.mean(), float(np.linalg.norm(p.mean(axis=0) - share))
