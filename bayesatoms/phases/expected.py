"""The expected gain of an experiment over posterior draws, by simulating its outcomes.

Each draw in turn is the truth: images follow from its normal law, and the other draws, weighted by their likelihoods of such an
image, are what would be believed then (preposterior analysis, Raiffa and Schlaifer, Applied Statistical Decision Theory, 1961;
Lindley, Ann. Math. Stat. 27, 986, 1956).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]

_SAME = 1e-8  # of a count's variance, below which it is a combination of others
_NUMBERS = 2**22  # at once


class Expected(NamedTuple):
    """What images at one point do to a target.

    `present`, `expected` : variance, or entropy of a label in bits; `reduction` = 1 - expected / present, `error` its standard error;
    `information` on the target in bits; `everything` : the same on all that tells the draws apart (at most log2 of their number);
    `effective` : draws among which the weights are shared, on average.
    """

    present: float
    expected: float
    reduction: float
    error: float
    information: float
    everything: float
    effective: float


def expected_gain(mean: Floats, covariance: Floats, target: NDArray[Any], noise: Floats, step: float = 1.0) -> Expected:
    """What an image with normal counts does to a target, over draws that are equally likely now.

    Parameters
    ----------
    mean, covariance : ndarray, shapes (draws, q) and (draws, q, q)
        Of the image's counts at each draw.
    target : ndarray, shape (draws,)
        Floating point numbers, or the numbers of labels.
    noise : ndarray, shape (draws, images, q)
        Standard normal, of the images simulated at each draw.
    step : float
        Counts are multiples of it, which adds the variance step^2 / 12 of rounding.

    Returns
    -------
    Expected
        The error is that of a U-statistic of two draws, the truth and one believed (Hoeffding, Ann. Math. Stat. 19, 293, 1948).

    Examples
    --------
    What is known to 1 and measured to 1 keeps half of its variance.

    >>> rng = np.random.default_rng(0)
    >>> y, noise = rng.normal(size=400), rng.normal(size=(400, 16, 1))
    >>> found = expected_gain(y[:, None], np.ones((400, 1, 1)), y, noise, 1e-3)
    >>> abs(found.reduction - 0.5) < 4 * found.error < 0.3
    True
    """
    n, kept, score = len(mean), _independent(mean, covariance), _quantity(target) if target.dtype.kind == "f" else _label(target)
    mean, noise = (mean - mean.mean(axis=0))[:, kept], noise[..., kept]
    lower = np.linalg.cholesky(covariance[:, kept][:, :, kept] + step**2 / 12 * np.eye(len(kept)))
    inverse, levels = np.linalg.inv(lower), np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
    whitened = np.einsum("jab,jb->ja", inverse, mean)
    before, after, everything, effective = score(np.arange(n), None, n - 1.0), np.empty(n), np.empty(n), np.empty(n)
    block = max(1, _NUMBERS // (noise.shape[1] * n * max(1, len(kept))))
    for first in range(0, n, block):
        i = np.arange(first, min(first + block, n))
        own = (np.arange(len(i)), slice(None), i)
        image = mean[i][:, None] + np.einsum("iab,irb->ira", lower[i], noise[i])
        log_p = -0.5 * ((np.einsum("jab,irb->irja", inverse, image) - whitened) ** 2).sum(axis=-1) - levels
        everything[i] = (log_p[own] - logsumexp(log_p, axis=-1) + np.log(n)).mean(axis=1)
        log_p[own] = -np.inf  # the truth is not among those that are to find it
        p = np.exp(log_p - log_p.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        many = 1 / (p**2).sum(axis=-1)
        after[i], effective[i] = score(i, p, many).mean(axis=1), many.mean(axis=1)
    present, left = float(before.mean()), float(after.mean())
    error = 2 * float((after - left / present * before).std(ddof=1)) / n**0.5 / present
    bits = -0.5 * np.log2(max(left / present, 1e-300)) if target.dtype.kind == "f" else present - left
    whole = float(everything.mean() / np.log(2))
    return Expected(present, left, 1 - left / present, error, float(bits), whole, float(effective.mean()))


def _quantity(target: NDArray[Any]) -> Callable[..., Floats]:
    """Half the squared difference of truth i and a draw, under weights p (i, images, draws): its mean is the variance."""
    y, n = target - target.mean(), len(target)

    def score(i: NDArray[np.int64], p: Floats | None, many: Any) -> Floats:
        if p is None:  # all the others alike
            return (y**2 + 2 * y**2 / (n - 1) + ((y**2).sum() - y**2) / (n - 1)) / 2
        return (y[i, None] ** 2 - 2 * y[i, None] * (p @ y) + p @ y**2) / 2

    return score


def _label(target: NDArray[Any]) -> Callable[..., Floats]:
    """Bits of surprise at the label of truth i, whose probability is known as well as from `many` draws: its mean is the entropy."""
    hot, n = np.eye(int(target.max()) + 1)[target], len(target)
    # one more draw of unknown label: a label that no other draw has is not impossible
    prior = ((hot.sum(axis=0) - hot + 1 / hot.shape[1]) / n)[np.arange(n), target]

    def score(i: NDArray[np.int64], p: Floats | None, many: Any) -> Floats:
        if p is None:
            return -np.log2(prior)
        share = np.take_along_axis(p @ hot, target[i][:, None, None], axis=2)[..., 0]
        return -np.log2((many * share + prior[i, None]) / (many + 1))

    return score


def _independent(mean: Floats, covariance: Floats) -> list[int]:
    """Counts that are no combinations of others before them, nor the same in every image."""
    total, kept = covariance.mean(axis=0) + np.atleast_2d(np.cov(mean.T)), []
    for a in range(len(total)):
        explained = total[a, kept] @ np.linalg.solve(total[np.ix_(kept, kept)], total[a, kept]) if kept else 0.0
        if total[a, a] - explained > _SAME * max(total[a, a], 1.0):
            kept.append(a)
    return kept
