"""Predicted standard deviations: Cramer and Rao's bound from the pool, before and during an experiment.

What is known now has a precision, the inverse of the posterior's covariance, to which n more images alike add n times
their Fisher information J(w). J depends on the couplings, which are not known: the variance is averaged over the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckError
from ..inference.criteria import judged
from ..inference.densities import scoring
from ..inference.jackknife import jackknife_covariance
from ..inference.posterior import Fit, Result
from ..inference.priors import prior_sd
from .prospects import Prospect

Floats = NDArray[np.float64]

DRAWS = 24  # of each posterior at which the information is looked up
_MOST = 10**9  # images; beyond, there is no number


class Predicted(NamedTuple):
    """Standard deviations (..., k) of a model's couplings: expected, central 90 % over the posterior, error of the simulation."""

    sd: Floats
    low: Floats
    high: Floats
    error: Floats


@dataclass(frozen=True, eq=False)
class Precision:
    """One model at one prospect.

    Attributes
    ----------
    now, prior : ndarray, shape (k, k)
        Precision of the posterior so far, and of the prior alone.
    information : ndarray, shape (draws, k, k)
        Fisher information of one image at draws of the posterior.
    replicates : ndarray, shape (groups, k, k)
        At the posterior mean, without each stretch of the chains in turn.
    """

    now: Floats
    prior: Floats
    information: Floats
    replicates: Floats

    @classmethod
    def of(cls, fit: Fit, prospect: Prospect) -> Precision:
        """That of a fit's model.

        Raises
        ------
        CheckError
            If chains answer at less than half of the draws.
        """
        p = judged(fit)
        draws = p.flat[:: max(1, len(p.flat) // DRAWS)][:DRAWS]
        information = prospect.information(fit.model, draws)
        known = np.isfinite(information).all(axis=(1, 2))
        if known.mean() < 0.5 or not prospect.held(fit.model, p.mean[None])[0]:
            raise CheckError(f"model {fit.model.name}: chains answer at {known.sum()} of {len(draws)} draws of its posterior")
        replicates = prospect.replicates(fit.model, p.mean)
        return cls(np.linalg.inv(p.cov), prior_precision(fit), information[known], replicates)

    def predicted(self, images: float, *, alone: bool = False) -> Predicted:
        """Standard deviations (k,) after so many more images, or from such images alone.

        Examples
        --------
        A coupling known to 0.1, and images that each tell it as well:

        >>> p = Precision(np.eye(1) * 100, np.eye(1), np.full((8, 1, 1), 100.0), np.full((8, 1, 1), 100.0))
        >>> p.predicted(3).sd.round(6).tolist(), p.predicted(4, alone=True).sd.round(4).tolist()
        ([0.05], [0.0499])
        """
        begin = self.prior if alone else self.now
        variance = variances(begin + images * self.information)
        each = np.sqrt(variances(begin + images * self.replicates))
        spread = np.sqrt(np.quantile(variance, [0.05, 0.95], axis=0))
        return Predicted(np.sqrt(variance.mean(axis=0)), spread[0], spread[1], np.sqrt(np.diag(jackknife_covariance(each))))

    def needed(self, coupling: int, sd: float) -> float:
        """Fewest more images after which a coupling is known as well as that; infinite if there is no such number.

        Examples
        --------
        >>> p = Precision(np.eye(1) * 100, np.eye(1), np.full((8, 1, 1), 100.0), np.full((8, 1, 1), 100.0))
        >>> p.needed(0, 0.05), p.needed(0, 0.0499), p.needed(0, 0.2)
        (3.0, 4.0, 0.0)
        """

        def reached(n: int) -> bool:
            return bool(self.predicted(n).sd[coupling] <= sd * (1 + 1e-9))

        if reached(0):
            return 0.0
        high = 1
        while not reached(high):
            if high > _MOST:
                return np.inf
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle) else (middle, high)
        return float(high)

    def single(self) -> tuple[Floats, Floats]:
        """Information (k,) of one image about each coupling, the others unknown, mean over the posterior, and its simulation error."""
        each = 1 / variances(self.replicates)
        return (1 / variances(self.information)).mean(axis=0), np.sqrt(np.diag(jackknife_covariance(each)))


def variances(precision: Floats) -> Floats:
    """Diagonals (..., k) of the inverses of precisions (..., k, k), infinite where a coupling is not known at all.

    Examples
    --------
    >>> variances(np.array([[[4.0, 0.0], [0.0, 0.0]]])).tolist()
    [[0.25, inf]]
    """
    size = np.sqrt(np.maximum(np.einsum("...aa->...a", precision), 1e-300))
    values, vectors = np.linalg.eigh(precision / size[..., :, None] / size[..., None, :])
    null = values < 1e-9
    parts = np.where(null[..., None, :], 0.0, vectors**2) / np.where(null, 1.0, values)[..., None, :]
    moved = (np.where(null[..., None, :], vectors**2, 0.0) > 1e-9).any(axis=-1)
    return np.where(moved, np.inf, parts.sum(axis=-1) / size**2)


def prior_precision(fit: Fit) -> Floats:
    """Precision (k, k) of a model's priors, 0 where one has no variance."""
    sd = prior_sd(fit.model)
    return np.diag(np.where(np.isfinite(sd), 1 / sd**2, 0.0))


def learned(result: Result, fit: Fit) -> tuple[Floats, Floats]:
    """What the images so far told: standard deviations (images, k) expected after each in their order, and information (images, k) of each.

    By Fisher information, averaged over the posterior; the last row is what all of them together could tell.
    """
    p = judged(fit)
    draws = p.flat[:: max(1, len(p.flat) // DRAWS)][:DRAWS]
    each = np.array([[scoring(result.emulator, fit.model, o, w)[0] for w in draws] for o in result.observations])  # (images, draws, k, k)
    sd = np.sqrt(variances(prior_precision(fit) + np.cumsum(each, axis=0)).mean(axis=1))
    return sd, (1 / variances(each)).mean(axis=1)
