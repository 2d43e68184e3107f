"""Criteria by which one model is judged: smallest S2, information criteria, evidence, p-values.

Each is a function of arrays or of a fit; `comparison` puts them side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from ..environments import Environments
from ..hamiltonian import Hamiltonian
from .campaign import log_likelihoods, log_prior, unbounded
from .distance import squared_distance
from .emulator import SUPPORT_BAR, Emulator
from .posterior import Fit, Result

_GROUPS = 8  # of chains, for the jackknife


# ---------------------------------------------------------------------- smallest statistical distance


@dataclass(frozen=True, eq=False)
class LeastDistance:
    """The point of smallest total S2, as the published analysis fits.

    couplings and their Monte Carlo error (k,); s2 a per-image vector; total = sum N_i S2_i / N with its
    Monte Carlo error; both errors by a jackknife over groups of chains.
    """

    couplings: NDArray[np.float64]
    coupling_error: NDArray[np.float64]
    s2: NDArray[np.float64]
    total: float
    error: float


def least_distance(result: Result, model: Hamiltonian, starts: Sequence[NDArray[np.float64]] = ()) -> LeastDistance:
    """Minimise the total S2 of a model on the stored pool.

    Parameters
    ----------
    result : Result
    model : Hamiltonian
    starts : sequence of arrays (k,), optional
        Further places to start from, such as the minimum of a model nested in this one.
    """
    n = np.array([o.n for o in result.observations], dtype=float)
    if not model.terms:
        s2 = np.array([squared_distance(o.histogram, o.environments.random_distribution(o.composition)) for o in result.observations])
        return LeastDistance(np.zeros(0), np.zeros(0), s2, float(n @ s2 / n.sum()), 0.0)
    posterior = result[model.name].posteriors["independent"]
    scale = posterior.sd

    def search(start: NDArray, keep: list[NDArray] | None, spread: float) -> tuple[NDArray, NDArray]:
        def objective(w: NDArray) -> float:
            s2 = image_s2(result, model, w, keep)
            return float(n @ s2 / n.sum()) if np.isfinite(s2).all() else 1e3

        simplex = np.vstack([start, start + spread * np.diag(scale)])
        options = {"initial_simplex": simplex, "xatol": 0.003 * scale.min(), "fatol": 1e-9, "maxiter": 400}
        found = minimize(objective, start, method="Nelder-Mead", options=options)
        return found.x, image_s2(result, model, found.x, keep)

    tried = [search(np.asarray(s, dtype=float), None, 0.7) for s in (posterior.mean, *starts)]
    best, s2 = min(tried, key=lambda t: np.where(np.isfinite(t[1]), t[1], 1e3) @ n)
    left_out = [search(best, keep, 0.2) for keep in _groups(result.emulator)]
    totals, places = np.array([n @ s / n.sum() for _, s in left_out]), np.array([w for w, _ in left_out])
    factor = (_GROUPS - 1) / _GROUPS
    error = np.sqrt(factor * ((totals - totals.mean()) ** 2).sum())
    coupling_error = np.sqrt(factor * ((places - places.mean(axis=0)) ** 2).sum(axis=0))
    return LeastDistance(best, coupling_error, s2, float(n @ s2 / n.sum()), float(error))


def image_s2(
    result: Result, model: Hamiltonian, couplings: NDArray[np.float64], keep: Sequence[NDArray] | None = None
) -> NDArray[np.float64]:
    """S2 of each image at a model's couplings straight from the pool; NaN where it has no support."""
    union, values = (couplings @ result.emulator.embed(model))[None], []
    for i, o in enumerate(result.observations):
        histogram, support = result.emulator.images[o.name].histogram(union, None if keep is None else keep[i])
        values.append(float(squared_distance(o.histogram, histogram[0])) if support[0] >= SUPPORT_BAR else np.nan)
    return np.array(values)


def _groups(emulator: Emulator) -> list[list[NDArray[np.bool_]]]:
    """For each jackknife group, which snapshots of each image stay when its chains are left out."""
    owners = [np.repeat(np.arange(len(i.reweighting.records)), i.reweighting.records.astype(int)) for i in emulator.images.values()]
    return [[owner % _GROUPS != g for owner in owners] for g in range(_GROUPS)]


# ---------------------------------------------------------------------- information criteria


@dataclass(frozen=True, eq=False)
class Elpd:
    """Expected log predictive density (higher is better) with its standard error, effective parameters and warnings."""

    elpd: float
    se: float
    p: float
    pointwise: NDArray[np.float64]
    pareto_k_max: float | None = None


def waic(log_likelihood: NDArray[np.float64], multiplicity: NDArray[np.float64] | None = None) -> Elpd:
    """Widely applicable information criterion (Watanabe, J. Mach. Learn. Res. 11, 3571, 2010), as elpd.

    Parameters
    ----------
    log_likelihood : ndarray, shape (draws, points)
    multiplicity : ndarray, shape (points,), optional
        How many equal points each column stands for.

    Examples
    --------
    >>> round(waic(np.log(np.array([[0.5, 0.25], [0.5, 0.25]]))).elpd, 4)
    -2.0794
    """
    weight = np.ones(log_likelihood.shape[1]) if multiplicity is None else multiplicity
    lppd = logsumexp(log_likelihood, axis=0) - np.log(len(log_likelihood))
    p = log_likelihood.var(axis=0)
    return Elpd(float(weight @ (lppd - p)), _standard_error(lppd - p, weight), float(weight @ p), lppd - p)


def loo(log_likelihood: NDArray[np.float64], multiplicity: NDArray[np.float64] | None = None) -> Elpd:
    """Pareto-smoothed leave-one-out (Vehtari, Gelman, Gabry, Stat. Comput. 27, 1413, 2017; arviz-stats).

    `log_likelihood` has shape (chain, draw, points); Pareto k above 0.7 makes a point unreliable.
    """
    from arviz_stats.base import array_stats

    weight = np.ones(log_likelihood.shape[2]) if multiplicity is None else multiplicity
    found = []
    for i in range(log_likelihood.shape[2]):
        column = log_likelihood[:, :, i]
        if np.ptp(column) < 1e-12:  # the draws do not matter to this point: leaving it out changes nothing
            found.append((float(column[0, 0]), -np.inf, 0.0))
        else:
            found.append(tuple(float(v) for v in array_stats.loo(column, chain_axis=0, draw_axis=1)))
    pointwise, k, p = np.array(found).T
    worst = float(k.max()) if np.isfinite(k.max()) else None
    return Elpd(float(weight @ pointwise), _standard_error(pointwise, weight), float(weight @ p), pointwise, worst)


def _standard_error(pointwise: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    n = weight.sum()
    mean = weight @ pointwise / n
    return float(np.sqrt(weight @ (pointwise - mean) ** 2))


def greatest_log_likelihood(result: Result, fit: Fit) -> float:
    """Maximum of the calibrated log likelihood, for the BIC."""
    calibrated = fit.posteriors["calibrated"]
    if not fit.model.terms:
        return float(calibrated.log_likelihood[0, 0].sum())
    smooth = fit.smooth["calibrated"]
    best = calibrated.flat[np.argmax(calibrated.log_likelihood.sum(axis=-1))]
    found = minimize(lambda w: -_smooth_total(result, smooth, "calibrated", w[None])[0], best, method="Nelder-Mead")
    return float(-found.fun)


def _smooth_total(result: Result, smooth, kind: str, couplings: NDArray[np.float64]) -> NDArray[np.float64]:
    return log_likelihoods(smooth, result.observations, kind, couplings).sum(axis=1) + smooth.leash(couplings)


# ---------------------------------------------------------------------- evidence


def log_evidence(result: Result, fit: Fit, prior_scale: float = 1.0) -> tuple[float, float]:
    """Log evidence under the calibrated likelihood, and its numerical error.

    Gauss-Hermite quadrature in the posterior's own axes for up to three couplings, checked by
    importance sampling from a Student-t proposal; the latter alone beyond three or under a bounded prior. `prior_scale` widens
    every prior. All models are judged on one statistic, so their evidences compare.
    """
    calibrated = fit.posteriors["calibrated"]
    if not fit.model.terms:
        return float(calibrated.log_likelihood[0, 0].sum()), 0.0
    smooth, k = fit.smooth["calibrated"], len(fit.model.names)

    def density(w: NDArray) -> NDArray:
        return _smooth_total(result, smooth, "calibrated", w) + log_prior(fit.model, w, prior_scale)

    root = np.linalg.cholesky(calibrated.cov)
    sampled = _importance(density, calibrated.mean, root, np.random.default_rng(result.seed))
    if k > 3 or not all(unbounded(fit.model.prior(name)) for name in fit.model.names):
        return sampled  # the nodes of a quadrature would straddle the edge of a bounded prior
    nodes, weights = hermegauss({1: 81, 2: 41}.get(k, 25))
    z = np.stack(np.meshgrid(*[nodes] * k, indexing="ij"), axis=-1).reshape(-1, k)
    log_w = np.log(np.stack(np.meshgrid(*[weights] * k, indexing="ij"), axis=-1).reshape(-1, k)).sum(axis=1)
    value = logsumexp(density(calibrated.mean + z @ root.T) + log_w + 0.5 * (z**2).sum(axis=1)) + np.log(np.diag(root)).sum()
    return float(value), float(np.hypot(value - sampled[0], 1e-6))


def _importance(density, mean: NDArray, root: NDArray, rng: np.random.Generator, n: int = 8000) -> tuple[float, float]:
    from scipy.stats import multivariate_t

    proposal = multivariate_t(mean, 1.5 * root @ root.T, df=5)
    w = proposal.rvs(size=n, random_state=rng).reshape(n, -1)
    log_ratio = density(w) - proposal.logpdf(w)
    value = logsumexp(log_ratio) - np.log(n)
    ratio = np.exp(log_ratio - value)
    return float(value), float(ratio.std() / np.sqrt(n))


# ---------------------------------------------------------------------- simulated p-values


def simulated_p_values(
    result: Result, model: Hamiltonian, draws: NDArray[np.float64], rng: np.random.Generator, replicates: int = 10
) -> NDArray[np.float64]:
    """How often an image of the model lies as far from it as the observed one; one p-value an image, then the total's.

    Images are simulated at posterior draws and seen through the window; each time the composition is
    estimated anew from the simulated image, as it was from the real one. For the random alloy this is
    its null distribution.
    """
    n = np.array([o.n for o in result.observations], dtype=float)
    simulated, observed = [], []
    for o in result.observations:
        image = result.emulator.images[o.name]
        union = draws @ result.emulator.embed(model)
        far, near = [], []
        for block in np.array_split(union, max(1, len(union) // 32)):
            weights = image.reweighting.weights(block)
            cumulative = np.cumsum(weights, axis=1)
            for row, total in zip(cumulative, image.histogram(block)[0] if model.terms else [None] * len(block), strict=True):
                picks = np.searchsorted(row, rng.random(replicates) * row[-1])
                p = image.counts[picks] / o.n
                far.append(squared_distance(p, _re_estimated(o.environments, total, o.composition, _composition(o.environments, p))))
                near.append(squared_distance(o.histogram, _re_estimated(o.environments, total, o.composition, o.composition[None]))[0])
        simulated.append(np.array(far))
        observed.append(np.array(near)[:, None])
    values = [float((s >= o).mean()) for s, o in zip(simulated, observed, strict=True)]
    total = sum(w * s for w, s in zip(n, simulated, strict=True)) >= sum(w * o for w, o in zip(n, observed, strict=True))
    return np.array([*values, float(np.mean(total))])


def _composition(environments: Environments, p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([p[:, environments.centre == s].sum(axis=1) for s in range(len(environments.species))], axis=1)


@lru_cache(maxsize=4096)
def _random(environments: Environments, composition: tuple[float, ...]) -> NDArray[np.float64]:
    return environments.random_distribution(np.array(composition) / sum(composition))


def _re_estimated(environments: Environments, histogram: NDArray | None, x: NDArray, seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """The model's histogram at the compositions seen (m, k): exact for the random alloy (None), tilted by it otherwise."""
    # compositions of hard labels are whole numbers of atoms, so few differ
    distinct, which = np.unique(seen.round(12), axis=0, return_inverse=True)
    random = np.array([_random(environments, tuple(s)) for s in distinct])[which.reshape(-1)]
    if histogram is None:
        return random
    base = environments.random_distribution(x)
    tilted = histogram * random / np.where(base > 0, base, 1.0)
    return tilted / tilted.sum(axis=1, keepdims=True)
