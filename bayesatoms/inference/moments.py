"""Mean and covariance of an image's statistic: what emulators answer and likelihoods ask for."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Sampling law of an image's statistic at given couplings (or at m of them, with a leading axis).

    mean (d,); lower (d, d), the Cholesky factor of its covariance, the emulator's own error included;
    histogram (n_classes,), the mean class frequencies.
    """

    mean: Any
    lower: Any
    histogram: Any


def columns(array: Any, xp: ModuleType = np) -> list[Any]:
    """The entries along the last axis, each without it.

    Under jax by a single split, whose derivative is a single concatenation; that of one index after another is a sum of
    arrays of full size, which made the gradients of small systems several times as slow.

    Examples
    --------
    >>> [c.tolist() for c in columns(np.arange(6).reshape(2, 3))]
    [[0, 3], [1, 4], [2, 5]]
    """
    if xp is np:
        return [array[..., i] for i in range(array.shape[-1])]
    from jax import lax

    return [part[..., 0] for part in lax.split(array, (1,) * array.shape[-1], axis=array.ndim - 1)]


def triangle(lower: Any, xp: ModuleType = np) -> list[list[Any]]:
    """Rows of entries of matrices (..., d, d)."""
    d = lower.shape[-1]
    flat = columns(lower.reshape(*lower.shape[:-2], d * d), xp)
    return [flat[i * d : (i + 1) * d] for i in range(d)]


def normal_log_density(value: Any, mean: Any, lower: Any, n_given: int, xp: ModuleType = np) -> Any:
    """log p(t | its first `n_given` rows) for t ~ Normal(mean, lower lower^T); shapes (..., d), (..., d, d).

    The given rows lead, so what is left of them is the lower block of the one Cholesky factor.

    Examples
    --------
    >>> float(normal_log_density(np.zeros(2), np.zeros(2), np.eye(2), 1).round(6))
    -0.918939
    """
    apart, rows, z, total = columns(xp.asarray(value - mean), xp), triangle(xp.asarray(lower), xp), [], 0.0
    for i in range(len(apart)):  # forward substitution: d is 2 to 6, and this compiles to a few fused lines
        z.append((apart[i] - sum(rows[i][j] * z[j] for j in range(i))) / rows[i][i])
        if i >= n_given:
            total = total - 0.5 * z[i] ** 2 - xp.log(rows[i][i]) - 0.5 * np.log(2 * np.pi)
    return total
