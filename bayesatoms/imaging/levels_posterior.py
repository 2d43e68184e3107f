"""The posterior of the levels: all its modes, averaged over, and what it says of a column of any intensity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import ndtr, ndtri

from .levels import BINS, STRAY, STRAY_WIDTH, Floats, Levels, logistic

_DRAWS, _USED = 384, 48  # weighted draws of the parameters; so many are kept for the labels of many sites


@dataclass(frozen=True, eq=False)
class Fit:
    """Posterior of the levels: its highest point and equally weighted draws (B, P)."""

    levels: Levels
    best: Floats
    draws: Floats

    @cached_property
    def reading(self) -> NDArray[np.int64]:
        """The level that each draw puts where the majority is: two of them are two readings of the same picture."""
        means, _, _, fractions = (part[0] for part in self.levels.parts(self.best[None]))
        return np.abs(self.levels.parts(self.draws)[0] - means[fractions.argmax()]).argmin(axis=1)

    def shares(self, y: Floats, v: Floats) -> tuple[Floats, Floats, Floats]:
        """Averages: probability of each level (n, k), of being a stray (n,), of each level in the likeliest reading (n, k)."""
        likely = np.bincount(self.reading).argmax()
        p, stray, coherent = np.zeros((self.levels.k, len(y))), np.zeros(len(y)), np.zeros((self.levels.k, len(y)))
        step = max(1, 200_000 // len(y))
        for i in range(0, len(self.draws), step):
            one, other = self.levels.shares(self.draws[i : i + step], y, v)
            p += one.sum(axis=0)
            stray += other.sum(axis=0)
            coherent += one[self.reading[i : i + step] == likely].sum(axis=0)
        return (p / p.sum(axis=0)).T, stray / len(self.draws), (coherent / coherent.sum(axis=0)).T


def fit_levels(levels: Levels) -> Fit:
    """Posterior of the levels by Laplace's approximation at every mode, corrected by importance weights.

    Examples
    --------
    >>> y = np.r_[np.linspace(95, 105, 6), np.linspace(36, 44, 94)]
    >>> one = Levels(y, np.full(100, 9.0), np.ones(100), np.array([0.2]), np.array([0.9]), 2, False)
    >>> fit_levels(one).shares(y, one.v)[0].sum(axis=0).round().tolist()
    [6.0, 94.0]
    """
    data = levels.binned()

    def downhill(t: Floats) -> tuple[float, Floats]:
        value, gradient = data.log_posterior(t[None])
        return -value[0], -gradient[0]

    modes: list[tuple[float, Floats, Floats, int]] = []
    for start in data.starts():
        # with the curvature of the start, BFGS (it needs no threads, unlike L-BFGS-B in new releases) takes a dozen steps
        first = {"hess_inv0": _covariance(data, start, 0), "gtol": 3e-2, "maxiter": 100}
        t = minimize(downhill, start, jac=True, method="BFGS", options=first).x
        value = float(data.log_posterior(t[None])[0][0])
        if all(abs(value - other) > 0.05 or np.abs(t - at).max() > 0.3 for other, at, _, _ in modes):
            major = int(data.parts(t[None])[3][0, : len(data.low) + 1].argmax())
            modes.append((value, data.anchored(t[None], major)[0], _covariance(data, t, major), major))
    modes.sort(key=lambda m: -m[0])
    evidence = np.array([value + 0.5 * np.linalg.slogdet(cov)[1] for value, _, cov, _ in modes])
    kept = [i for i in np.argsort(-evidence)[:4] if evidence[i] > evidence.max() - 8]
    # a mode of small evidence still gets draws: Laplace may have misjudged it
    share = np.maximum(np.exp(evidence[kept] - evidence.max()), 0.15)
    share /= share.sum()
    normal = _normal(_DRAWS, levels.size)
    counts = np.diff(np.round(np.concatenate([[0], np.cumsum(share)]) * _DRAWS).astype(int))
    roots = [np.linalg.cholesky(modes[i][2]) * 1.25 for i in kept]
    blocks = np.split(normal, np.cumsum(counts)[:-1])
    # each mode in its own coordinates: see `anchored`
    moved = [modes[i][1] + b @ root.T for i, b, root in zip(kept, blocks, roots, strict=True)]
    theta = np.concatenate([data.anchored(m, modes[i][3], back=True) for i, m in zip(kept, moved, strict=True)])
    proposal = np.zeros(len(theta))
    for i, root, s in zip(kept, roots, share, strict=True):
        z = np.linalg.solve(root, (data.anchored(theta, modes[i][3]) - modes[i][1]).T)
        proposal += s * np.exp(-0.5 * (z * z).sum(axis=0)) / np.prod(np.diag(root))
    step = max(1, 400_000 // (len(data.y) * levels.k))
    value = np.concatenate([data.log_posterior(theta[i : i + step])[0] for i in range(0, len(theta), step)])
    log_w = value - np.log(proposal + 1e-300)
    weight = np.exp(log_w - log_w.max())
    weight = np.minimum(weight, weight.mean() * np.sqrt(len(weight)))  # truncated: no single draw decides
    weight /= weight.sum()
    best = data.anchored(modes[0][1][None], modes[0][3], back=True)[0]
    used = _DRAWS if len(levels.y) <= BINS else _USED
    chosen = np.searchsorted(np.cumsum(weight), (np.arange(used) + 0.5) / used).clip(max=len(theta) - 1)
    return Fit(levels, best, theta[chosen])


def _covariance(data: Levels, t: Floats, level: int, step: float = 1e-3) -> Floats:
    """Inverse curvature at `t` in the coordinates anchored to `level`; directions without curvature are held to a sd of 3."""
    at = data.anchored(t[None], level)[0]
    move = step * np.eye(len(t))
    theta = data.anchored(np.concatenate([at + move, at - move]), level, back=True)
    gradient = data.log_posterior(theta)[1]
    low, width = data.low[:level], (data.high - data.low)[:level]
    s = logistic(theta[:, 1 : 1 + level])
    gradient[:, 1 : 1 + level] -= gradient[:, :1] * width * s * (1 - s) / (low + width * s)
    curvature = -(gradient[: len(t)] - gradient[len(t) :]) / (2 * step)
    eigen, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    cov = (vectors / np.maximum(np.abs(eigen), 0.11)) @ vectors.T
    return (cov + cov.T) / 2


def _normal(n: int, d: int) -> Floats:
    """Evenly spread normal numbers (n, d), the same on every call: an additive recurrence, no seed to hand through."""
    root = 2.0
    for _ in range(60):
        root = (1 + root) ** (1 / (d + 1))
    return ndtri((0.5 + np.arange(1, n + 1)[:, None] * root ** -np.arange(1.0, d + 1)) % 1)


def density(y: Floats, means: Floats, spreads: Floats, noise: float) -> Floats:
    """Density of each level at intensities (m,) of typical error, strays included: (k, m)."""
    v1 = spreads[:, None] ** 2 + noise**2
    v2 = v1 + (STRAY_WIDTH * means.max()) ** 2
    d2 = (y - means[:, None]) ** 2
    near, far = (np.exp(-0.5 * d2 / v) / np.sqrt(2 * np.pi * v) for v in (v1, v2))
    return (1 - STRAY) * near + STRAY * far


def regions(means: Floats, spreads: Floats, fractions: Floats, noise: float) -> tuple[Floats, Floats]:
    """Thresholds between the levels (brightest first) and the confusion matrix of the fitted mixture."""
    sd = np.hypot(spreads, noise)
    y = np.linspace(min((means - 6 * sd).min(), 0), (means + 6 * sd).max(), 4001)
    joint = fractions[:, None] * density(y, means, spreads, noise)
    threshold = []
    for j in range(len(means) - 1):
        inside = (y <= means[j]) & (y >= means[j + 1])
        gap = np.log(joint[j, inside] + 1e-300) - np.log(joint[j + 1, inside] + 1e-300)
        threshold.append(float(y[inside][np.abs(gap).argmin()]))  # where no point is even, the end that is nearest to it
    edges = np.concatenate([[np.inf], threshold, [-np.inf]])
    wide = np.hypot(sd, STRAY_WIDTH * means.max())
    below = (1 - STRAY) * ndtr((edges - means[:, None]) / sd[:, None]) + STRAY * ndtr((edges - means[:, None]) / wide[:, None])
    return np.array(threshold), below[:, :-1] - below[:, 1:]
