"""Exact partition functions of small crystals, and the posteriors that follow from them: the truth for the tests.

Couplings multiply unlike pairs, so the Ising coupling K is w = 2 K. A configuration of whole composition n is
seen, hence its likelihood is exp(-w . F) / Z_n(w), Z_n summed over the configurations of that composition
alone. Kaufman's Z sums over all magnetisations: it belongs to another experiment, in which the
magnetisation is an outcome like the rest, and its posterior is the narrower one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, uint64
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

TRIANGULAR = (((1, 0), (0, 1), (1, 1)), ((1, -1), (2, 1), (1, 2)))  # half of the first and second shell, axes 120 degrees apart
SQUARE = (((1, 0), (0, 1)),)


@dataclass(frozen=True)
class States:
    """Configurations sorted by their features (m, q), with the logarithm of how many share each (m,)."""

    features: NDArray[np.float64]
    log_count: NDArray[np.float64]

    def log_z(self, couplings: ArrayLike) -> NDArray[np.float64]:
        """ln Z at couplings (..., q)."""
        return logsumexp(self.log_count - np.asarray(couplings, float) @ self.features.T, axis=-1)

    def moments(self, couplings: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (q,) and covariance (q, q) of the features at couplings (q,)."""
        w = np.asarray(couplings, float)
        p = np.exp(self.log_count - self.features @ w - self.log_z(w))
        apart = self.features - p @ self.features
        return p @ self.features, (apart * p[:, None]).T @ apart


def enumerate_states(shape: tuple[int, int], atoms: int, shells: tuple = TRIANGULAR) -> States:
    """All configurations of a torus with so many B atoms, by their unlike pairs in each shell.

    One atom is kept at the origin: every configuration has `atoms` translations with one there, so
    all counts are short by the same factor, which is put back.

    Examples
    --------
    Of two atoms on the 3 x 3 square torus, 18 of 36 pairs are neighbours and share two of their eight unlike bonds.

    >>> s = enumerate_states((3, 3), 2, SQUARE)
    >>> s.features.ravel().tolist(), np.exp(s.log_count).round(9).tolist()
    ([8.0, 6.0], [18.0, 18.0])
    """
    n = shape[0] * shape[1]
    near = np.zeros((len(shells), n), dtype=np.uint64)
    for s, shell in enumerate(shells):
        for site in range(n):
            for step in shell:
                other = (site // shape[1] + step[0]) % shape[0] * shape[1] + (site % shape[1] + step[1]) % shape[1]
                near[s, site] |= np.uint64(1) << np.uint64(other)
    most = atoms * max(len(shell) for shell in shells) + 1
    table = np.zeros((most,) * len(shells), dtype=np.int64).ravel()
    _enumerate(n, atoms, near, most, table)
    seen = np.flatnonzero(table)
    like = np.stack(np.unravel_index(seen, (most,) * len(shells)), axis=1)
    degree = np.array([2 * len(shell) for shell in shells])
    return States(degree * atoms - 2.0 * like, np.log(table[seen]) + np.log(n / atoms))


@njit(cache=True)
def _enumerate(n, atoms, near, most, table):
    """Count the like pairs of every choice of `atoms` sites that holds site 0, smallest word first (Gosper's hack)."""
    one = uint64(1)
    word, last = (one << uint64(atoms - 1)) - one, one << uint64(n - 1)  # the other atoms, on sites 1 to n - 1
    while word < last:
        full, place, factor = (word << one) | one, 0, 1
        for s in range(len(near) - 1, -1, -1):
            like, rest = 0, full
            while rest:
                low = rest & (~rest + one)
                like += _bits(full & near[s, _bits(low - one)])
                rest ^= low
            place += factor * like
            factor *= most
        table[place] += 1
        if atoms == 1:
            break
        low = word & (~word + one)
        ripple = word + low
        word = ripple | ((word ^ ripple) >> uint64(_bits(low - one) + 2))


@njit(cache=True)
def _bits(word):
    """How many bits are set."""
    word = word - ((word >> uint64(1)) & uint64(0x5555555555555555))
    word = (word & uint64(0x3333333333333333)) + ((word >> uint64(2)) & uint64(0x3333333333333333))
    return np.int64((((word + (word >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)) * uint64(0x0101010101010101)) >> uint64(56))


# ------------------------------------------------------------------ the square Ising model


def kaufman_log_z(k: float, n: int, m: int) -> float:
    """ln Z of the n x m Ising torus at coupling K (Kaufman, Phys. Rev. 76, 1232, 1949), for n, m >= 3.

    Z = (2 sinh 2K)^(nm/2) / 2 times the sum of four products over r = 0 .. n - 1:
    2 cosh(m g_(2r+1) / 2), 2 sinh(m g_(2r+1) / 2), 2 cosh(m g_(2r) / 2), 2 sinh(m g_(2r) / 2), where
    cosh g_l = cosh 2K coth 2K - cos(pi l / n) and g_0 = 2K + ln tanh K, which is negative above Tc.

    Examples
    --------
    >>> round(kaufman_log_z(0.3, 4, 4), 9)
    12.785523326
    """
    gamma = np.arccosh(np.cosh(2 * k) / np.tanh(2 * k) - np.cos(np.pi * np.arange(2 * n) / n))
    gamma[0] = 2 * k + np.log(np.tanh(k))
    odd, even = m * gamma[1::2] / 2, m * gamma[::2] / 2
    products = [np.log(2 * np.cosh(odd)).sum(), np.log(2 * np.sinh(odd)).sum(), np.log(2 * np.cosh(even)).sum()]
    signs, last = [1, 1, 1, np.sign(even[0])], np.log(2 * np.sinh(np.abs(even))).sum()
    top = max(products)
    total = sum(s * np.exp(p - top) for s, p in zip(signs, [*products, last], strict=True))
    return float(n * m / 2 * np.log(2 * np.sinh(2 * k)) - np.log(2) + top + np.log(total))


def ising_log_z(k: float, side: int) -> NDArray[np.float64]:
    """ln Z_n of the side x side Ising torus at coupling K for n = 0 .. side^2 spins up, by its transfer matrix.

    A fugacity exp(i theta) for every spin up turns Z into a Fourier series in theta, whose coefficients are the Z_n.
    They lose digits below 1e-13 of the whole, far from any composition that occurs.

    Examples
    --------
    All spins alike: 32 bonds of +1.

    >>> round(float(ising_log_z(0.5, 4)[0]), 9)
    16.0
    """
    n, words = side * side, np.arange(2**side)
    spins = 2.0 * ((words[:, None] >> np.arange(side)) & 1) - 1
    row = k * (spins * np.roll(spins, 1, axis=1)).sum(axis=1)
    log = row[:, None] / 2 + row[None] / 2 + k * spins @ spins.T
    scale, up = log.max(), ((spins + 1) / 2).sum(axis=1)
    half = []
    for theta in 2 * np.pi * np.arange((n + 1) // 2 + 1) / (n + 1):
        transfer = np.exp(log - scale + 1j * theta * (up[:, None] + up[None]) / 2)
        power = np.linalg.matrix_power(transfer, side // 2)
        half.append(np.sum(power * (power if side % 2 == 0 else power @ transfer).T))
    full = np.array([half[j] if j < len(half) else half[n + 1 - j].conjugate() for j in range(n + 1)])
    z = np.fft.fft(full).real / (n + 1)
    return np.log(np.maximum(z, 1e-300)) + side * scale


# ------------------------------------------------------------------ posteriors on a grid


@dataclass(frozen=True)
class Grid:
    """A density on grid points (m, q), normalised to sum 1; shape (m,)."""

    points: NDArray[np.float64]
    density: NDArray[np.float64]

    @classmethod
    def of(cls, points: NDArray[np.float64], log_density: NDArray[np.float64]) -> Grid:
        """From a log density up to a constant.

        Examples
        --------
        >>> g = Grid.of(np.linspace(-8, 8, 401)[:, None], -0.5 * np.linspace(-8, 8, 401) ** 2)
        >>> bool(abs(g.mean[0]) < 1e-9), round(float(g.sd[0]), 6), g.divergence(g)
        (True, 1.0, 0.0)
        """
        density = np.exp(log_density - np.max(log_density))
        return cls(points, density / density.sum())

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean (q,)."""
        return self.density @ self.points

    @property
    def sd(self) -> NDArray[np.float64]:
        """Standard deviations (q,)."""
        return np.sqrt(self.density @ (self.points - self.mean) ** 2)

    def divergence(self, other: Grid) -> float:
        """Kullback-Leibler divergence of another density on the same points from this one, in nats."""
        seen = self.density > 1e-15
        return float(self.density[seen] @ np.log(self.density[seen] / np.maximum(other.density[seen], 1e-300)))


def exact_posterior(points: NDArray[np.float64], features: ArrayLike, log_z: NDArray[np.float64], prior_sd: float) -> Grid:
    """Posterior of couplings on grid points (m, q), prior Normal(0, prior_sd) for each.

    `features` (images, q) are those of the configurations, `log_z` (m,) the sum of ln Z over the images, or (m, images).
    """
    features = np.atleast_2d(np.asarray(features, float))
    total = log_z.sum(axis=1) if log_z.ndim == 2 else log_z
    return Grid.of(points, -points @ features.sum(axis=0) - total - 0.5 * (points**2).sum(axis=1) / prior_sd**2)
