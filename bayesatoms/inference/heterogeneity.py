"""Whether the images agree about the couplings, and what each of them says alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..hamiltonian import Hamiltonian
from .criteria import judged
from .densities import scoring
from .posterior import Result

_RANK = 1e-8  # of the largest information, below which a direction carries none


@dataclass(frozen=True, eq=False)
class Heterogeneity:
    """A score test of one set of couplings for all images.

    Attributes
    ----------
    p : float
        Chance of scores as different as these if all images share their couplings.
    modes, sd : ndarray, shape (images, k)
        What each image says alone, by linear response at the common estimate; sd is infinite for a coupling
        about which it says nothing by itself.
    """

    p: float
    modes: NDArray[np.float64]
    sd: NDArray[np.float64]


def heterogeneity(result: Result, model: Hamiltonian) -> Heterogeneity | None:
    """Test of a model's couplings being the same in all images; None for a single image or a model without couplings.

    Examples
    --------
    ``heterogeneity(result, result["P1"].model).p`` after ``result = infer(...)``.
    """
    if not model.terms or len(result.observations) < 2:
        return None
    fit, k = result[model.name], len(model.names)
    mean = judged(fit).full.mean(axis=0)
    steps = [scoring(result.emulator, fit.parameters, o, mean) for o in result.observations]
    # nuisances are held where they are: the question is about the couplings
    return score_test(mean[:k], [(i[:k, :k], s[:k]) for i, s in steps])


def score_test(estimate: NDArray[np.float64], steps: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Heterogeneity | None:
    """The test from each image's Fisher information (k, k) and score (k,) at a common estimate (Rao's score test).

    The scores' sum of squares in the metric of their information, about the common estimate that makes their sum
    zero, is chi-square with (sum of the ranks - rank of the sum) degrees of freedom; None where that is zero.

    Examples
    --------
    Two measurements 0 and 2 of unit variance differ by 2 / sqrt 2 standard deviations:

    >>> found = score_test(np.zeros(1), [(np.eye(1), np.array([0.0])), (np.eye(1), np.array([2.0]))])
    >>> round(found.p, 4), found.modes.ravel().tolist()
    (0.1573, [0.0, 2.0])
    """
    information, score = sum(i for i, _ in steps), sum(s for _, s in steps)
    shift = np.linalg.pinv(information, rcond=_RANK, hermitian=True) @ score
    q = sum(float((s - i @ shift) @ np.linalg.pinv(i, rcond=_RANK, hermitian=True) @ (s - i @ shift)) for i, s in steps)
    freedom = sum(_rank(i) for i, _ in steps) - _rank(information)
    if freedom <= 0:
        return None
    modes = np.array([estimate + np.linalg.pinv(i, rcond=_RANK, hermitian=True) @ s for i, s in steps])
    return Heterogeneity(float(stats.chi2.sf(q, freedom)), modes, np.array([_sd(i) for i, _ in steps]))


def _rank(information: NDArray[np.float64]) -> int:
    return int(np.linalg.matrix_rank(information, tol=_RANK * max(np.trace(information), 1e-300)))


def _sd(information: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(information)
    null = values < _RANK * max(np.trace(information), 1e-300)
    variance = (vectors[:, ~null] ** 2 / values[~null]).sum(axis=1)
    return np.sqrt(np.where((vectors[:, null] ** 2 > 1e-9).any(axis=1), np.inf, variance))
