"""Ranks of known truths in their posteriors: uniform if the posteriors are calibrated, and how to tell.

A probability integral transform (PIT) is the posterior mass below the truth. Over data sets whose truths come
from the prior it is uniform. The test compares its empirical distribution with the diagonal inside a band that
a uniform sample leaves nowhere, all places together, with the stated probability.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln
from scipy.stats import beta, binom

from ..errors import InputError

_PLACES = 100  # where the empirical distribution is looked at, at most
_FAR = 1e-7  # pointwise error below which a bound of the p-value serves


class Band(NamedTuple):
    """Counts of values up to each of the places z (K,): inside if lower <= count <= upper; `gamma` is the pointwise error."""

    z: NDArray[np.float64]
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    gamma: float


def pit_values(
    below: NDArray[np.bool_], weights: NDArray[np.float64], own: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Posterior mass below the truth, the truth's own mass split at random.

    Where the truth is one of the points drawn from the prior and posteriors are weights on those same points, it is
    exactly uniform for any number of points: given points and data, each point is the truth with the probability
    that is its weight.

    Parameters
    ----------
    below : ndarray of bool, shape (n, m)
        Which points lie below the truth of each of n data sets.
    weights : ndarray, shape (n, m)
        Posterior weights, rows summing to 1.
    own : ndarray of int, shape (n,)
        The point that is the truth; -1 where it is none of them.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray, shape (n,)

    Examples
    --------
    >>> below = np.array([[True, False, False]])
    >>> u = pit_values(below, np.array([[0.2, 0.5, 0.3]]), np.array([1]), np.random.default_rng(0))
    >>> bool(0.2 <= u[0] <= 0.7)
    True
    """
    mass = np.where(own >= 0, weights[np.arange(len(own)), own], 0.0)
    return (weights * below).sum(axis=1) + rng.random(len(own)) * mass


@lru_cache(maxsize=64)
def band(n: int, level: float = 0.95, places: int = _PLACES) -> Band:
    """Simultaneous band for the empirical distribution of n uniform values (Säilynoja et al., Stat. Comput. 32, 32, 2022, section 3).

    The pointwise error gamma of binomial intervals is made as large as it can be while all of them together hold
    with probability `level`. That probability is exact: the counts up to rising places are a Markov chain with
    binomial steps (their algorithm 2).

    Parameters
    ----------
    n : int
    level : float
    places : int
        At most; never more than n.

    Returns
    -------
    Band

    Raises
    ------
    InputError
        If there are no values or the level is not between 0 and 1.

    Examples
    --------
    >>> b = band(200)
    >>> 0.001 < b.gamma < 0.05, int(b.lower[49]) < 100 < int(b.upper[49])
    (True, True)
    """
    if n < 1 or not 0 < level < 1:
        raise InputError(f"a band for {n} values at level {level}; expected at least one value and a level between 0 and 1")
    z = np.arange(1, min(n, places)) / min(n, places) if n > 1 else np.array([0.5])
    low, high = 0.0, 1 - level
    for _ in range(30):  # by halves: the probability falls with gamma, in steps
        gamma = (low + high) / 2
        low, high = (gamma, high) if inside_probability(n, z, *_limits(n, z, gamma)) >= level else (low, gamma)
    return Band(z, *_limits(n, z, low), low)


def _limits(n: int, z: NDArray[np.float64], gamma: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts whose binomial tails, the count itself included, are both above gamma / 2."""
    lower = binom.ppf(gamma / 2, n, z).astype(np.int64)
    return np.maximum(lower, 0), n - np.maximum(binom.ppf(gamma / 2, n, 1 - z).astype(np.int64), 0)


def inside_probability(n: int, z: NDArray[np.float64], lower: NDArray[np.int64], upper: NDArray[np.int64]) -> float:
    """Probability that n uniform values have between lower and upper of them up to z, at every place.

    Examples
    --------
    >>> round(inside_probability(2, np.array([0.5]), np.array([1]), np.array([1])), 6)    # one below, one above
    0.5
    """
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    counts, mass, before = np.array([0]), np.array([1.0]), 0.0
    for place, a, b in zip(z, lower, upper, strict=True):
        after = np.arange(a, b + 1)
        # of those not yet below, each falls into the next step with the same probability
        share, new = (place - before) / (1 - before), after[:, None] - counts
        ways = log_factorial[n - counts] - log_factorial[np.maximum(new, 0)] - log_factorial[n - after][:, None]
        step = np.exp(ways + new * np.log(share) + (n - after)[:, None] * np.log1p(-share))
        counts, mass, before = after, np.where(new >= 0, step, 0.0) @ mass, place
    return float(mass.sum())


def uniformity(u: ArrayLike, places: int = _PLACES) -> float:
    """p-value of the hypothesis that u are uniform: the chance that a uniform sample strays as far from the diagonal somewhere.

    Parameters
    ----------
    u : array_like, shape (n,)
    places : int

    Returns
    -------
    float

    Raises
    ------
    InputError
        If there are no values.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> uniformity(rng.random(300)) > 0.05, uniformity(rng.beta(0.5, 0.5, 300)) < 0.001
    (True, True)
    """
    u = np.sort(np.asarray(u, dtype=float))
    n = len(u)
    if not n:
        raise InputError("no ranks were given; expected one a data set")
    z = np.arange(1, min(n, places)) / min(n, places) if n > 1 else np.array([0.5])
    counts = np.searchsorted(u, z, side="right")
    tails = np.minimum(binom.cdf(counts, n, z), binom.sf(counts - 1, n, z))
    gamma = 2 * float(tails.min())
    if gamma >= 1:
        return 1.0
    if gamma < _FAR:  # places times gamma is no less than the chance, and near it so far out
        return len(z) * gamma
    # strictly further out than the worst place seen: one count further in at that depth
    lower, upper = _limits(n, z, gamma * (1 + 1e-9))
    return float(min(1.0, max(0.0, 1 - inside_probability(n, z, lower, upper))))


def spread(u: ArrayLike) -> tuple[float, float]:
    """How far ranks lie to one side, and how far from the middle, each in standard errors of a uniform sample.

    The second is positive where truths lie in the tails too often: the posterior is too sure.

    Examples
    --------
    >>> side, out = spread(np.r_[np.linspace(0, 0.2, 50), np.linspace(0.8, 1, 50)])
    >>> abs(side) < 0.1, out > 5
    (True, True)
    """
    u = np.asarray(u, dtype=float) - 0.5
    n = len(u)
    return float(u.mean() * np.sqrt(12 * n)), float(((u**2).mean() - 1 / 12) * np.sqrt(180 * n))


def covered(u: ArrayLike, level: float) -> NDArray[np.bool_]:
    """Whether the truth lies inside the central interval of that probability.

    Examples
    --------
    >>> covered([0.04, 0.5, 0.93], 0.9).tolist()
    [False, True, True]
    """
    return np.abs(np.asarray(u, dtype=float) - 0.5) < level / 2


def binomial_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval for a probability seen `hits` times of n (Clopper and Pearson, Biometrika 26, 404, 1934): holds at least at `level`.

    Examples
    --------
    >>> low, high = binomial_interval(90, 100)
    >>> round(low, 4), round(high, 4)
    (0.8238, 0.951)
    """
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
