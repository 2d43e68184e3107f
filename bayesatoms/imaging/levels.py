"""Levels: the intensity levels of k species as a mixture with priors, and its whole posterior.

A free mixture splits the majority as soon as a species is rare or absent. Here the ratio of adjacent
levels and the spread within a level have priors, so a level may stay empty; and everything that
follows is averaged over the posterior of the parameters, several modes included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STRAY = 0.004  # share of the columns that fit no level (adatom, damage, dirt); more of them could swallow a level of 2 %
STRAY_WIDTH = 0.35  # how far off such a column is, in units of the brightest level
SPREAD, SPREAD_COMMON, SPREAD_OWN = 0.06, 0.6, 0.3  # relative spread within a level: median; sd of its logarithm, shared and own
EMPTY_SPREAD, EMPTY_SD = 0.03, 0.7  # the same for a vacancy, relative to the brightest level
LEAN = 0.2  # Dirichlet prior of the fractions: under one, so that a species may well be all but absent
BINS, _PER_LEVEL = 1200, 200  # more sites than that are binned, so many bins between zero and the median
_ROOT = np.sqrt(2 * np.pi)


@dataclass(frozen=True, eq=False)
class Levels:
    """Mixture of `k` levels, brightest first; with `vacancy` the last has mean zero.

    Parameters
    ----------
    y, v, w : ndarray, shape (n,)
        Intensities, their squared standard errors, how many sites each stands for.
    low, high : ndarray
        Range of the ratio of each level to the next brighter one (vacancy left out).
    k : int
    vacancy : bool
    edge : float
        Prior of a ratio within its range: Beta(edge, edge).

    Notes
    -----
    Parameters, in this order: log of the brightest mean; logit of each ratio within its range; log of
    each relative spread; log odds of each fraction against the last.
    """

    y: Floats
    v: Floats
    w: Floats
    low: Floats
    high: Floats
    k: int
    vacancy: bool
    edge: float = 1.0

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.low) + 2 * self.k

    def binned(self) -> Levels:
        """The same with nearly equal sites put together: no cost then depends on how many there are."""
        if len(self.y) <= BINS:
            return self
        step = np.median(np.abs(self.y)) / _PER_LEVEL
        third = np.searchsorted(np.quantile(self.v, (1 / 3, 2 / 3)), self.v)
        _, at = np.unique(np.stack([np.round(self.y / step), third]), axis=1, return_inverse=True)
        w = np.bincount(at.ravel(), self.w)
        y, v = (np.bincount(at.ravel(), self.w * q) / w for q in (self.y, self.v))
        return replace(self, y=y, v=v, w=w)

    def parts(self, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Means, squared spreads (both (B, k)), squared width of a stray (B,) and fractions (B, k) at parameters (B, P)."""
        c = len(self.low)
        ratio = self.low + (self.high - self.low) * logistic(theta[:, 1 : 1 + c])
        means = np.exp(np.clip(theta[:, :1], -300, 300)) * np.cumprod(np.column_stack([np.ones(len(theta)), ratio]), axis=1)
        base = means
        if self.vacancy:
            base, means = np.column_stack([means, means[:, 0]]), np.column_stack([means, np.zeros(len(theta))])
        spread2 = (np.exp(np.clip(theta[:, 1 + c : 1 + c + self.k], -9, 2)) * base) ** 2  # a line search may step far out
        z = np.column_stack([theta[:, 1 + c + self.k :], np.zeros(len(theta))])
        f = np.exp(z - z.max(axis=1, keepdims=True))
        return means, spread2, (STRAY_WIDTH * means[:, 0]) ** 2, f / f.sum(axis=1, keepdims=True)

    def densities(self, theta: Floats, y: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Density of each level and its stray part at intensities `y` with squared errors `v`: two arrays (B, k, n)."""
        means, spread2, wide2, _ = self.parts(theta)
        d2 = (y - means[:, :, None]) ** 2
        v1 = v + spread2[:, :, None]
        v2 = v1 + wide2[:, None, None]
        stray = STRAY / _ROOT * np.exp(-0.5 * d2 / v2) / np.sqrt(v2)
        return (1 - STRAY) / _ROOT * np.exp(-0.5 * d2 / v1) / np.sqrt(v1) + stray, stray

    def shares(self, theta: Floats, y: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Probability of each level and of being a stray, (B, k, n) and (B, n)."""
        whole, stray = self.densities(theta, y, v)
        f = self.parts(theta)[3][:, :, None]
        joint = f * whole + 1e-300
        total = joint.sum(axis=1, keepdims=True)
        return joint / total, (f * stray).sum(axis=1) / total[:, 0]

    def anchored(self, theta: Floats, level: int, *, back: bool = False) -> Floats:
        """The parameters with the log mean of `level` in place of the brightest one's (or `back`).

        Where the brightest level is empty its mean follows from the ratio alone, along a curve; the
        majority's own mean is free of that. The Jacobian is one.
        """
        s = logistic(theta[:, 1 : 1 + level])
        shift = np.log(self.low[:level] + (self.high - self.low)[:level] * s).sum(axis=1)
        return np.column_stack([theta[:, 0] + (-shift if back else shift), theta[:, 1:]])

    @cached_property
    def _spread_prior(self) -> tuple[Floats, Floats]:
        """Mean and precision of the log relative spreads."""
        mean, cov = np.full(self.k, np.log(SPREAD)), np.full((self.k, self.k), SPREAD_COMMON**2) + SPREAD_OWN**2 * np.eye(self.k)
        if self.vacancy:
            mean[-1] = np.log(EMPTY_SPREAD)
            cov[-1], cov[:, -1] = 0, 0
            cov[-1, -1] = EMPTY_SD**2
        return mean, np.linalg.inv(cov)

    def log_posterior(self, theta: Floats) -> tuple[Floats, Floats]:
        """Log posterior density (B,) up to a constant, and its gradient (B, P)."""
        c, k = len(self.low), self.k
        means, spread2, wide2, f = self.parts(theta)
        d = self.y - means[:, :, None]
        v1 = self.v + spread2[:, :, None]
        v2 = v1 + wide2[:, None, None]
        near = (1 - STRAY) / _ROOT * np.exp(-0.5 * d * d / v1) / np.sqrt(v1) * f[:, :, None]
        far = STRAY / _ROOT * np.exp(-0.5 * d * d / v2) / np.sqrt(v2) * f[:, :, None]
        total = (near + far).sum(axis=1) + 1e-300
        near *= (self.w / total)[:, None]
        far *= (self.w / total)[:, None]
        # sums over the sites of the derivatives by mean, squared spread and squared stray width, times the scale of each
        by_mean = ((near / v1 + far / v2) * d).sum(axis=2) * means
        far_wide = (far * (d * d / v2 - 1) / v2).sum(axis=2)
        by_spread = ((near * (d * d / v1 - 1) / v1).sum(axis=2) + far_wide) * spread2
        s = logistic(theta[:, 1 : 1 + c])
        ratio = self.low + (self.high - self.low) * s
        spread_mean, precision = self._spread_prior
        q = theta[:, 1 + c : 1 + c + k] - spread_mean
        value = (self.w * np.log(total)).sum(axis=1) - 0.5 * np.einsum("bi,ij,bj->b", q, precision, q)
        value += self.edge * np.log(s * (1 - s) + 1e-300).sum(axis=1) + LEAN * np.log(f + 1e-300).sum(axis=1)
        gradient = np.empty_like(theta)
        gradient[:, 0] = by_mean.sum(axis=1) + by_spread.sum(axis=1) + far_wide.sum(axis=1) * wide2
        below = (by_mean + by_spread)[:, : c + 1]
        tail = below[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]  # a ratio moves all the levels below it
        gradient[:, 1 : 1 + c] = tail * (self.high - self.low) * s * (1 - s) / ratio + self.edge * (1 - 2 * s)
        gradient[:, 1 + c : 1 + c + k] = by_spread - q @ precision
        gradient[:, 1 + c + k :] = ((near + far).sum(axis=2) - self.w.sum() * f + LEAN * (1 - k * f))[:, :-1]
        return value, gradient

    def starts(self, most: int = 4) -> Floats:
        """The best of a fixed grid: every level in turn put on every quantile, for every combination of ratios."""
        c, k = len(self.low), self.k
        order = np.argsort(self.y)
        share = np.cumsum(self.w[order]) / self.w.sum()
        at = np.searchsorted(share, (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)).clip(max=len(order) - 1)
        anchors = self.y[order][np.concatenate([at, [len(order) - 1]])]
        anchors = np.unique(np.maximum(anchors, 0.02 * anchors.max()))
        u = np.linspace(-2.6, 2.6, {0: 1, 1: 9, 2: 6, 3: 4}.get(c, 3))
        combos = np.stack(np.meshgrid(*[u] * c, indexing="ij"), axis=-1).reshape(-1, c) if c else np.zeros((1, 0))
        logs = np.cumsum(np.log(self.low + (self.high - self.low) * logistic(combos)), axis=1)
        down = np.column_stack([np.zeros(len(combos)), logs])
        tops = (np.log(anchors)[:, None, None] - down).reshape(-1)
        many = np.tile(np.repeat(combos, c + 1, axis=0), (len(anchors), 1))
        spreads = np.tile(self._spread_prior[0], (len(tops), 1))
        theta = np.column_stack([tops, many, spreads, np.zeros((len(tops), k - 1))])
        data = self._coarse()
        dense = data.densities(theta, data.y, data.v)[0] + 1e-300
        f = np.full((len(theta), k), 1 / k)
        for _ in range(6):  # the fractions follow
            joint = f[:, :, None] * dense
            total = joint.sum(axis=1)
            f = (joint / total[:, None] * data.w).sum(axis=2) + LEAN
            f /= f.sum(axis=1, keepdims=True)
        value = (data.w * np.log(total)).sum(axis=1) + LEAN * np.log(f).sum(axis=1)
        value += self.edge * np.log(logistic(many) * (1 - logistic(many))).sum(axis=1)
        theta[:, 1 + c + k :] = np.log(f[:, :-1] / f[:, -1:])
        major = f.argmax(axis=1)
        first = [np.where(major == j)[0][value[major == j].argmax()] for j in range(k) if (major == j).any()]
        means = self.parts(theta)[0]
        chosen = []
        for i in [*first, *np.argsort(-value)[:200]]:  # the best for every majority, then the best that differ
            if len(chosen) < k + most and all((np.abs(means[i] - means[j]) > 0.08 * means[i, 0]).any() for j in chosen):
                chosen.append(i)
        return np.concatenate([self._alone(), theta[chosen]])

    def _alone(self) -> Floats:
        """A start for each species to be the only one there: the grid, of typical spreads, may miss a broad single level."""
        order = np.argsort(self.y)
        middle = self.y[order][np.searchsorted(np.cumsum(self.w[order]), self.w.sum() / 2)]
        if middle <= 0:
            return np.empty((0, self.size))
        c, k = len(self.low), self.k
        excess = np.median((self.y - middle) ** 2) / 0.455 - np.median(self.v)
        theta = np.zeros((c + 1, self.size))
        theta[:, 1 + c : 1 + c + k] = np.log(np.sqrt(np.clip(excess, (0.02 * middle) ** 2, (0.4 * middle) ** 2)) / middle)
        down = np.concatenate([[0.0], np.cumsum(np.log((self.low + self.high) / 2))])
        theta[:, 0] = np.log(middle) - down
        z = np.log(self.w.sum() / LEAN) * np.eye(c + 1, k)
        theta[:, 1 + c + k :] = z[:, :-1] - z[:, -1:]
        return theta

    def _coarse(self) -> Levels:
        """At most about 300 groups of neighbouring intensities, the extremes one by one."""
        if len(self.y) <= 300:
            return self
        order = np.argsort(self.y)
        group = np.concatenate([np.arange(20), 20 + np.arange(len(order) - 40) * 260 // (len(order) - 40), 280 + np.arange(20)])
        w = np.bincount(group, self.w[order])
        y, v = (np.bincount(group, (self.w * q)[order]) / w for q in (self.y, self.v))
        return replace(self, y=y, v=v, w=w)


def logistic(u: Floats) -> Floats:
    """1 / (1 + exp(-u))."""
    return 1 / (1 + np.exp(-np.clip(u, -40, 40)))
