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


def normal_log_density(value: Any, mean: Any, lower: Any, n_given: int, xp: ModuleType = np) -> Any:
    """log p(t | its first `n_given` rows) for t ~ Normal(mean, lower lower^T); shapes (..., d), (..., d, d).

    The given rows lead, so what is left of them is the lower block of the one Cholesky factor.

    Examples
    --------
    >>> float(normal_log_density(np.zeros(2), np.zeros(2), np.eye(2), 1).round(6))
    -0.918939
    """
    apart, z, total = value - mean, [], 0.0
    for i in range(apart.shape[-1]):  # forward substitution: d is 2 to 6, and this compiles to a few fused lines
        z.append((apart[..., i] - sum(lower[..., i, j] * z[j] for j in range(i))) / lower[..., i, i])
        if i >= n_given:
            total = total - 0.5 * z[i] ** 2 - xp.log(lower[..., i, i]) - 0.5 * np.log(2 * np.pi)
    return total
