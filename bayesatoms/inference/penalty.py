"""The corrected BIC of the published likelihood: what a coupling really costs under exp(-2 N s^2).

That likelihood takes overlapping environments for independent ones, so its gain from an absent coupling is not
half a chi-square but larger. With H its curvature and J the variance of its score, both over images of the
model, the penalty tr(inv(H) J) ln N in place of k ln N restores the rate of false couplings (Takeuchi 1976;
composite likelihoods: Gao and Song, J. Am. Stat. Assoc. 105, 1531, 2010).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..hamiltonian import Hamiltonian
from ..observation import Observation
from .criteria import everywhere, with_couplings
from .densities import widths
from .emulator import ImageEmulator
from .posterior import Result
from .predictive import composition, re_estimated

_IMAGES = 1500  # simulated, for each observed image
_STEP = 0.1  # of the likelihood's own width, for its curvature


def penalty(result: Result, model: Hamiltonian, couplings: NDArray[np.float64], rng: np.random.Generator) -> float:
    """Effective number of couplings tr(inv(H) J) under the published likelihood; k if environments were independent.

    Parameters
    ----------
    result : Result
    model : Hamiltonian
        One of the result's.
    couplings : ndarray, shape (k,)
        Where: the minimum of S2.
    rng : numpy.random.Generator

    Returns
    -------
    float
        0 for a model without couplings.

    Examples
    --------
    ``penalty(result, model, least_distance(result, model).couplings, np.random.default_rng(0))``.
    """
    if not model.terms:
        return 0.0
    fit, k, q = result[model.name], len(model.names), len(result.emulator.names)
    theta = with_couplings(fit, couplings[None])
    union = everywhere(result, fit, theta)
    parts = []
    for o in result.observations:
        # how the union couplings of the image follow those that all images share
        slope = fit.parameters.slope(o.name, theta[0], widths(fit.parameters))[:k, :k].T @ result.emulator.embed(model)
        parts.append(_of_image(result.emulator.images[o.name], o, union[o.name][0, :q], slope, rng))
    curvature, variance = sum(h for h, _ in parts), sum(j for _, j in parts)
    return float(np.trace(np.linalg.pinv(curvature, rcond=1e-8, hermitian=True) @ variance))


def corrected_bic(n: float, s2: float, effective: float) -> float:
    """2 N s^2 + (tr(inv(H) J) / 2) ln N: the published convention with the corrected penalty.

    Examples
    --------
    >>> round(corrected_bic(1835, 0.0184, 3.0), 1)
    78.8
    """
    return float(2 * n * s2 + effective / 2 * np.log(n))


def _of_image(
    image: ImageEmulator, o: Observation, union: NDArray[np.float64], slope: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """H and J of one image, over simulated images of the model."""
    weights = image.reweighting.weights(union)
    cumulative = np.cumsum(weights)
    p = image.counts[np.searchsorted(cumulative, rng.random(_IMAGES) * cumulative[-1])] / o.n
    here = _scores(image, o, union, slope, p)
    variance = np.atleast_2d(np.cov(here.T))
    # a step well inside the likelihood's own width
    size = _STEP / np.sqrt(np.maximum(np.diag(variance), 1e-12))
    curvature = np.zeros((len(slope), len(slope)))
    for a, step in enumerate(np.diag(size)):
        ahead, behind = (_scores(image, o, union + s @ slope, slope, p).mean(axis=0) for s in (step, -step))
        curvature[a] = -(ahead - behind) / (2 * size[a])
    return (curvature + curvature.T) / 2, variance


def _scores(
    image: ImageEmulator, o: Observation, union: NDArray[np.float64], slope: NDArray[np.float64], p: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Gradient of -2 N s^2 in the couplings for each histogram p (m, n_classes), the composition re-estimated from it; (m, k).

    `union` (q,) are the image's union couplings, `slope` (k, q) how they follow the couplings.
    """
    weights = image.reweighting.weights(union)
    frequencies = image.table[:, -p.shape[1] :]
    q = weights @ frequencies
    features = image.reweighting.features @ slope.T
    gradient = -((frequencies - q) * weights[:, None]).T @ features  # dq/dw = -Cov(frequencies, F)
    base = o.environments.random_distribution(o.composition)
    random = re_estimated(o.environments, None, o.composition, composition(o.environments, p)[:, None])[:, 0]
    tilt = random / np.where(base > 0, base, 1.0)
    mass = tilt @ q
    model = tilt * q / mass[:, None]
    relative = gradient / np.where(q > 0, q, 1.0)[:, None]  # d ln q / dw, before the tilted histogram is normalised again
    overlap = np.sqrt(p * model)
    cosine = np.clip(overlap.sum(axis=1), -1.0, 1.0 - 1e-12)
    # s = arccos(cosine), so d(s^2) = -2 (s / sin s) d(cosine), and d(cosine) = half the overlap times d ln q
    angle = np.arccos(cosine)
    along = 0.5 * (overlap @ relative - cosine[:, None] * (model @ relative))
    return 4 * o.n * (angle / np.sin(angle))[:, None] * along
