"""Criteria by which one model is judged: smallest S2, greatest likelihood, WAIC, LOO, practical equivalence to zero.

Each is a function of arrays or of a fit; `comparison` puts them side by side. Evidence, p-values and
corrected BIC have files of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from ..hamiltonian import Hamiltonian
from .densities import log_likelihoods, pool_log_likelihoods
from .distance import squared_distance
from .emulator import SUPPORT_BAR
from .posterior import Fit, Result
from .sampling import Posterior

_GROUPS = 8  # of chains, for the jackknife
_MASS = 0.95  # of the interval that decides about practical equivalence


def judged(fit: Fit) -> Posterior:
    """The posterior that a comparison rests on: under the exact likelihood where there is one, else under the calibrated one.

    Examples
    --------
    ``judged(result["P1"]).mean`` after ``result = infer(...)``.
    """
    return fit.posteriors["exact"] if "exact" in fit.posteriors else fit.posteriors["calibrated"]


def everywhere(result: Result, fit: Fit, values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Where each image lies in the pool at a model's parameters (m, p): union couplings first, (m, q + own coordinates).

    Examples
    --------
    ``everywhere(result, result["P1"], judged(result["P1"]).full[:10])`` after ``result = infer(...)``.
    """
    embed = result.emulator.embed(fit.model)
    if not fit.model.terms:
        return {o.name: np.zeros((len(values), len(result.emulator.names))) for o in result.observations}
    return {o.name: fit.parameters.union(o.name, values, embed) for o in result.observations}


def with_couplings(fit: Fit, couplings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Parameters (m, p) of given couplings (m, k), the nuisances at their posterior means.

    Examples
    --------
    ``with_couplings(result["P1"], np.array([[0.1], [0.2]]))``.
    """
    rest = np.array([float(v.mean()) for v in judged(fit).nuisances.values()])
    return np.column_stack([couplings, np.broadcast_to(rest, (len(couplings), len(rest)))])


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

    def search(start: NDArray) -> tuple[NDArray, NDArray]:
        def objective(w: NDArray) -> float:
            s2 = image_s2(result, model, w)
            return float(n @ s2 / n.sum()) if np.isfinite(s2).all() else 1e3

        simplex = np.vstack([start, start + 0.7 * np.diag(scale)])
        options = {"initial_simplex": simplex, "xatol": 0.003 * scale.min(), "fatol": 1e-9, "maxiter": 400}
        found = minimize(objective, start, method="Nelder-Mead", options=options)
        return found.x, image_s2(result, model, found.x)

    tried = [search(np.asarray(s, dtype=float)) for s in (posterior.mean, *starts)]
    best, s2 = min(tried, key=lambda t: np.where(np.isfinite(t[1]), t[1], 1e3) @ n)
    totals, places = _left_out_minima(result, model, best, 0.5 * scale)
    factor = (_GROUPS - 1) / _GROUPS
    error = np.sqrt(factor * ((totals - totals.mean()) ** 2).sum())
    coupling_error = np.sqrt(factor * ((places - places.mean(axis=0)) ** 2).sum(axis=0))
    return LeastDistance(best, coupling_error, s2, float(n @ s2 / n.sum()), float(error))


def _left_out_minima(
    result: Result, model: Hamiltonian, best: NDArray[np.float64], step: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least total S2 (groups,) and its place (groups, k) without each group of chains, by the parabola through points around `best`."""
    k = len(best)
    pairs = [(a, b) for a in range(k) for b in range(a)]
    unit = np.eye(k)
    z = np.vstack([np.zeros((1, k)), unit, -unit, *((unit[a] + unit[b])[None] for a, b in pairs)])
    fit, q = result[model.name], len(result.emulator.names)
    union = everywhere(result, fit, with_couplings(fit, best + z * step))
    n = np.array([o.n for o in result.observations], dtype=float)
    totals = np.zeros((_GROUPS, len(z)))
    for o, share in zip(result.observations, n / n.sum(), strict=True):
        image = result.emulator.images[o.name]
        weights, frequencies = image.reweighting.weights(union[o.name][:, :q]), image.table[:, -len(o.counts) :]
        owner = np.repeat(np.arange(len(image.reweighting.records)), image.reweighting.records.astype(int)) % _GROUPS
        parts = np.stack([weights[:, owner == g] @ frequencies[owner == g] for g in range(_GROUPS)])
        rest = parts.sum(axis=0) - parts
        totals += share * squared_distance(o.histogram, rest / rest.sum(axis=-1, keepdims=True))
    middle, ahead, behind = totals[:, 0], totals[:, 1 : k + 1], totals[:, k + 1 : 2 * k + 1]
    gradient, curvature = (ahead - behind) / 2, np.zeros((_GROUPS, k, k))
    curvature[:, np.arange(k), np.arange(k)] = ahead + behind - 2 * middle[:, None]
    for number, (a, b) in enumerate(pairs):
        both = totals[:, 2 * k + 1 + number] - ahead[:, a] - ahead[:, b] + middle
        curvature[:, a, b] = curvature[:, b, a] = both
    values, vectors = np.linalg.eigh(curvature)
    # where the surface is no bowl the step would lead nowhere: stay
    bowl = values > 1e-3 * np.maximum(values.max(axis=1, keepdims=True), 1e-300)
    along = np.einsum("gab,ga->gb", vectors, gradient)
    move = np.where(bowl, -along / np.where(bowl, values, 1.0), 0.0)
    length = np.linalg.norm(move, axis=1, keepdims=True)
    move = move * np.minimum(1.0, 3.0 / np.maximum(length, 1e-300))  # the parabola is local
    least = middle + (along * move + 0.5 * values * move**2).sum(axis=1)
    return least, best + np.einsum("gab,gb->ga", vectors, move) * step


def image_s2(result: Result, model: Hamiltonian, couplings: NDArray[np.float64]) -> NDArray[np.float64]:
    """S2 of each image at a model's couplings straight from the pool; NaN where it has no support.

    Examples
    --------
    ``image_s2(result, result["P1"].model, np.array([-0.1]))`` after ``result = infer(...)``.
    """
    fit, q, values = result[model.name], len(result.emulator.names), []
    union = everywhere(result, fit, with_couplings(fit, couplings[None]))
    for o in result.observations:
        histogram, support = result.emulator.images[o.name].histogram(union[o.name][:, :q])
        values.append(float(squared_distance(o.histogram, histogram[0])) if support[0] >= SUPPORT_BAR else np.nan)
    return np.array(values)


# ---------------------------------------------------------------------- information criteria


@dataclass(frozen=True, eq=False)
class Elpd:
    """Expected log predictive density (higher is better) with its standard error and effective parameters p.

    pointwise (points,); pareto_k of each point and the largest, where it was smoothed; `exact` says for how many
    points the posterior without them was found instead.
    """

    elpd: float
    se: float
    p: float
    pointwise: NDArray[np.float64]
    pareto_k_max: float | None = None
    pareto_k: NDArray[np.float64] | None = None
    exact: int = 0


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
    return Elpd(float(weight @ pointwise), _standard_error(pointwise, weight), float(weight @ p), pointwise, worst, k)


def _standard_error(pointwise: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    n = weight.sum()
    mean = weight @ pointwise / n
    return float(np.sqrt(weight @ (pointwise - mean) ** 2))


@dataclass(frozen=True, eq=False)
class Greatest:
    """The maximum of a model's log likelihood, where it lies (k,), and the rms error of the smooth emulator that found it."""

    log_likelihood: float
    couplings: NDArray[np.float64]
    error: float


def greatest_log_likelihood(result: Result, fit: Fit) -> Greatest:
    """Maximum of the judged log likelihood over the couplings, for the BIC and the nested check.

    Examples
    --------
    ``greatest_log_likelihood(result, result["P1"]).couplings`` after ``result = infer(...)``.
    """
    posterior = judged(fit)
    if not fit.model.terms:
        return Greatest(float(posterior.log_likelihood[0, 0].sum()), np.zeros(0), 0.0)
    smooth = fit.smooth[posterior.kind]

    def total(w: NDArray) -> NDArray:
        return log_likelihoods(smooth, result.observations, posterior.kind, w).sum(axis=1) + smooth.leash(w)

    best = posterior.full[np.argmax(posterior.log_likelihood.sum(axis=-1))]
    found = minimize(lambda w: -total(w[None])[0], best, method="Nelder-Mead")
    some = posterior.full[:: max(1, len(posterior.full) // 64)]
    exact = pool_log_likelihoods(result.emulator, result.observations, posterior.kind, everywhere(result, fit, some))
    return Greatest(float(-found.fun), found.x[: len(fit.model.names)], float(np.sqrt(np.mean((exact.sum(axis=1) - total(some)) ** 2))))


# ---------------------------------------------------------------------- practical equivalence


@dataclass(frozen=True)
class Practical:
    """Whether a coupling matters: probability that it lies within `rope` kT of zero, its 95 % highest-density interval, the decision.

    `decision` is "within" where the whole interval lies inside, "outside" where none of it does, else "undecided".
    """

    name: str
    rope: float
    inside: float
    low: float
    high: float
    decision: str


def practical(names: Sequence[str], draws: NDArray[np.float64], rope: float) -> tuple[Practical, ...]:
    """Region of practical equivalence (Kruschke, Adv. Methods Pract. Psychol. Sci. 1, 270, 2018) for each coupling.

    Parameters
    ----------
    names : sequence of str
    draws : ndarray, shape (n, k)
        In kT at formation.
    rope : float
        Half its width, kT: couplings nearer to zero than this count as none.

    Examples
    --------
    >>> draws = np.random.default_rng(0).normal([0.0, 0.3, 0.1], [0.01, 0.02, 0.1], (4000, 3))
    >>> [(p.name, p.decision) for p in practical(("a", "b", "c"), draws, 0.05)]
    [('a', 'within'), ('b', 'outside'), ('c', 'undecided')]
    """
    found = []
    for name, values in zip(names, draws.T, strict=True):
        low, high = highest_density(values)
        decision = "within" if -rope < low and high < rope else "outside" if low > rope or high < -rope else "undecided"
        found.append(Practical(name, rope, float((np.abs(values) < rope).mean()), low, high, decision))
    return tuple(found)


def highest_density(values: NDArray[np.float64], mass: float = _MASS) -> tuple[float, float]:
    """The shortest interval that holds so much of the draws (n,).

    Examples
    --------
    >>> low, high = highest_density(np.random.default_rng(0).exponential(size=20000))
    >>> bool(low < 0.01), bool(abs(high + np.log(0.05)) < 0.1)
    (True, True)
    """
    from arviz_stats.base import array_stats

    low, high = array_stats.hdi(values, prob=mass)
    return float(low), float(high)
