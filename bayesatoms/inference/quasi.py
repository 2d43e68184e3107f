"""The calibrated likelihood: the best score that a mean and a covariance can give, integrated.

Of all scores linear in the statistic t, s(w) = (dm/dw)^T C^-1 (t - m) carries most information and has mean zero
whatever the law of t (Godambe, Ann. Math. Stat. 31, 1208, 1960). Its integral over the couplings is a quasi-likelihood
(Wedderburn, Biometrika 61, 439, 1974; McCullagh, Ann. Stat. 11, 59, 1983): for t Normal with a constant covariance
it is -D^2 / 2, and where t is all that an image knows of its energy it is the exact likelihood, however skewed t is.
Counts of rare species are: the Normal density of three clusters expected and none seen is wrong in its
normaliser above all, which alone draws couplings to where still fewer are expected.

The integral runs along straight lines on which the moments are known at a few nodes; there is nothing but moments
in it, so every emulator serves. It is linear in t: A(w) . t - b(w).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from .moments import Moments, columns, normal_log_density, triangle

_PLACES, _NEAR = 6, 4  # nodes of a line, its ends included; of one that stays within a posterior (log likelihoods differ by .01 at most)
_BOUND = 8.0  # by which it may differ from the Normal density's about a posterior
_STEP = 6.0  # standard deviations that the statistic moves along one line, at most
_MOST = 8  # lines from the random alloy to a posterior


class Natural(NamedTuple):
    """Log likelihood A . t - b: slope A (..., d) and constant b (...)."""

    slope: Any
    constant: Any

    def __call__(self, value: Any) -> Any:
        """Log likelihood ratio of a statistic (..., d) to where the line began."""
        return (self.slope * value).sum(axis=-1) - self.constant


def lobatto(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Gauss-Lobatto nodes and weights on [0, 1], and the matrix that differentiates the polynomial through values at the nodes.

    Examples
    --------
    >>> x, w, d = lobatto(4)
    >>> x.round(6).tolist(), round(float(w @ x**5), 12), bool(np.allclose(d @ x**3, 3 * x**2))
    ([0.0, 0.276393, 0.723607, 1.0], 0.166666666667, True)
    """
    last = legendre.Legendre.basis(n - 1)
    x = np.concatenate([[-1.0], np.sort(last.deriv().roots().real), [1.0]])
    weights = 2 / (n * (n - 1) * last(x) ** 2)
    x, weights = (x + 1) / 2, weights / 2
    apart = x[:, None] - x + np.eye(n)
    barycentric = 1 / apart.prod(axis=1)
    matrix = barycentric / barycentric[:, None] / apart
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, -matrix.sum(axis=1))
    return x, weights, matrix


_RULES = {n: lobatto(n) for n in (_PLACES, _NEAR)}
NODES, NEAR_NODES = _RULES[_PLACES][0], _RULES[_NEAR][0]


def natural(moments: Moments, n_given: int, xp: ModuleType = np) -> Natural:
    """The quasi-likelihood of the last of the nodes over the first, from moments on a line; leading axis the nodes.

    Given its first `n_given` rows: whitened by the Cholesky factor, whose leading rows they are, they drop out.

    Examples
    --------
    A Poisson count, mean 3 exp(-w): nothing seen at w = 1 is 3 (1 - 1/e) more likely than at w = 0, in logarithms.

    >>> mean = 3 * np.exp(-NODES)[:, None]
    >>> ratio = natural(Moments(mean, np.sqrt(mean)[..., None], None), 0)
    >>> round(float(ratio(np.zeros(1))), 6), round(float(3 * (1 - np.exp(-1))), 6)
    (1.896362, 1.896362)
    """
    d = moments.mean.shape[-1]
    _, along_line, derivative = _RULES[len(moments.mean)]
    slope = columns(xp.tensordot(xp.asarray(derivative), moments.mean, axes=1), xp)
    rows, z, a = triangle(moments.lower, xp), [], [None] * d
    for i in range(d):  # forward and back substitution: d is 2 to 6, and this compiles to a few fused lines
        z.append((slope[i] - sum(rows[i][j] * z[j] for j in range(i))) / rows[i][i])
    for i in reversed(range(d)):
        known = z[i] if i >= n_given else xp.zeros_like(z[i])
        a[i] = (known - sum(rows[j][i] * a[j] for j in range(i + 1, d))) / rows[i][i]
    weights = xp.stack(a, axis=-1)
    constant = (weights * moments.mean).sum(axis=-1)
    return Natural(xp.tensordot(xp.asarray(along_line), weights, axes=1), xp.tensordot(xp.asarray(along_line), constant, axes=1))


def bounded(ratio: Any, value: Any, end: Moments, begin: Moments, n_given: int, xp: ModuleType = np) -> Any:
    """A log likelihood ratio that strays no farther than 8 from that of Normal densities at the two ends of the line.

    Near a posterior the two differ by little. Where a polynomial goes astray its slope may promise anything, but its
    mean is far from what was seen, and the Normal density says so.

    Examples
    --------
    >>> end, begin = (Moments(np.full(1, m), np.eye(1), None) for m in (1.0, 0.0))
    >>> [round(float(bounded(np.float64(r), np.ones(1), end, begin, 0)), 2) for r in (0.5, 1.5, 100.0)]
    [0.5, 1.49, 8.5]
    """
    apart = normal_log_density(value, end.mean, end.lower, n_given, xp) - normal_log_density(value, begin.mean, begin.lower, n_given, xp)
    return apart + _BOUND * xp.tanh((ratio - apart) / _BOUND)


Batch = Callable[..., tuple[Moments, NDArray[np.float64]]]  # of an emulator, see `BatchEmulator`


def from_origin(batch: Batch, origin: NDArray[np.float64], points: NDArray[np.float64], n_given: int, *, near: bool = False) -> Natural:
    """The quasi-likelihood at points (m, c) of an image's coordinates over that at `origin` (c,); slope (m, d), constant (m,).

    `near` says that all lie within one posterior, where fewer nodes do.
    """
    nodes = origin + (NEAR_NODES if near else NODES)[1:, None, None] * (points - origin)
    flat = batch(np.concatenate([origin[None], nodes.reshape(-1, points.shape[1])]), histogram=False)[0]

    def spread(part: NDArray[np.float64]) -> NDArray[np.float64]:
        first = np.broadcast_to(part[0], (1, len(points), *part.shape[1:]))  # all lines begin there
        return np.concatenate([first, part[1:].reshape(*nodes.shape[:2], *part.shape[1:])])

    return natural(Moments(spread(flat.mean), spread(flat.lower), None), n_given)


def path(batch: Batch, origin: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places (n, c) that lie between: corners of as many lines as the statistic moves by six standard deviations, both ends included."""
    ends = batch(np.stack([origin, end]), histogram=False)[0]
    moved = np.linalg.norm(np.linalg.solve(ends.lower[0], ends.mean[1] - ends.mean[0]))
    lines = int(np.clip(np.ceil(moved / _STEP), 1, _MOST))
    return origin + np.linspace(0, 1, lines + 1)[:, None] * (end - origin)


def along(batch: Batch, corners: NDArray[np.float64], value: NDArray[np.float64], n_given: int) -> float:
    """Log likelihood of a statistic (d,) at the last corner over that at the first."""
    parts = [from_origin(batch, a, b[None], n_given)(value)[0] for a, b in pairwise(corners)]
    return float(sum(parts))


def stones(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """All nodes on the lines between corners (n, c) but the first and the last: where the moments must be known."""
    inner = [a + NODES[1:, None] * (b - a) for a, b in pairwise(corners)]
    return np.concatenate(inner)[:-1]
