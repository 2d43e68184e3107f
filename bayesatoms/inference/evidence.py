"""Log evidence of a model, and the posterior that goes with it, under priors of any width.

ln Z = ln of the integral of likelihood times prior over the couplings. Three ways, by need:

- up to three couplings that may take any value: Gauss-Hermite quadrature in the posterior's own axes;
- beyond that, or under a bounded prior: sequential Monte Carlo from the prior to the posterior through
  tempered likelihoods (Del Moral, Doucet, Jasra, J. R. Stat. Soc. B 68, 411, 2006);
- importance sampling from a Student-t law beside the quadrature: their difference is its stated error.

The error of the pool of chains itself is another matter: see `jackknife`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from .criteria import judged
from .densities import log_likelihoods, log_prior, unbounded
from .posterior import Fit, Result
from .priors import prior_draws

Density = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_QUADRATURE_MOST = 3  # couplings
_NODES = {1: 81, 2: 41, 3: 25}
_RUNS, _PARTICLES = 4, 512  # of sequential Monte Carlo
_EFFECTIVE = 0.6  # share of the particles that each step of the temperature leaves effective
_ACCEPTED, _MOST_MOVES = 2.0, 40  # moves that each particle accepts at a temperature, on average; and tries at most


@dataclass(frozen=True, eq=False)
class Integral:
    """An evidence and what was integrated.

    Attributes
    ----------
    log_z : float
    error : float
        Numerical, one standard deviation; of the integration alone.
    mean, sd : ndarray, shape (k,)
        Of the posterior; from :func:`evidence` of the couplings alone, from the integrators of all they integrate.
    how : {"quadrature", "sequential Monte Carlo", "none"}
        The last for a model without couplings, whose evidence is its likelihood.
    """

    log_z: float
    error: float
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    how: str


def log_evidence(result: Result, fit: Fit, prior_scale: float = 1.0) -> tuple[float, float]:
    """Log evidence of a model and its numerical error; `prior_scale` widens every prior.

    All models are judged on one statistic, so their evidences compare. See :func:`evidence`.

    Examples
    --------
    ``value, error = log_evidence(result, result["P1"])`` after ``result = infer(...)``.
    """
    found = evidence(result, fit, prior_scale)
    return found.log_z, found.error


def evidence(result: Result, fit: Fit, prior_scale: float = 1.0) -> Integral:
    """Evidence, posterior mean and standard deviations of a model under its priors or wider or narrower ones.

    Parameters
    ----------
    result : Result
    fit : Fit
        One of the result's.
    prior_scale : float
        Every prior becomes so many times as wide.

    Returns
    -------
    Integral
    """
    return evidences(result, fit, (prior_scale,))[0]


def evidences(result: Result, fit: Fit, prior_scales: Sequence[float]) -> list[Integral]:
    """The same under several widths of the priors, which share the likelihoods: a quadrature takes the same points for all.

    Examples
    --------
    ``narrow, declared = evidences(result, result["P1"], (0.5, 1.0))`` after ``result = infer(...)``.
    """
    posterior = judged(fit)
    if not fit.model.terms:
        return [Integral(float(posterior.log_likelihood[0, 0].sum()), 0.0, np.zeros(0), np.zeros(0), "none")] * len(prior_scales)
    smooth, p, k = fit.smooth[posterior.kind], fit.parameters, len(fit.model.names)
    # the nodes of a quadrature would straddle the edge of a bounded prior, and their number explodes with the couplings
    few = len(p.names) <= _QUADRATURE_MOST and all(unbounded(p.prior(name)) for name in p.names)
    known: dict[bytes, NDArray[np.float64]] = {}

    def likelihood(w: NDArray) -> NDArray:
        found = known.get(key := w.tobytes()) if few else None
        if found is None:
            found = log_likelihoods(smooth, result.observations, posterior.kind, w).sum(axis=1) + smooth.leash(w)
            if few:
                known[key] = found
        return found

    def integral(scale: float) -> Integral:
        rng = _generator(result, fit)
        if few:
            full = posterior.full
            at = (full.mean(axis=0), np.atleast_2d(np.cov(full.T)))
            found = quadrature(lambda w: likelihood(w) + log_prior(p, w, scale), *at, rng)
        else:
            found = sequential(likelihood, lambda w: log_prior(p, w, scale), lambda n, r: prior_draws(p, n, r, scale), rng)
        return replace(found, mean=found.mean[:k], sd=found.sd[:k])

    return [integral(scale) for scale in prior_scales]


def _generator(result: Result, fit: Fit) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([result.seed, 31, *np.frombuffer(fit.model.name.encode(), np.uint8)]))


def quadrature(density: Density, mean: NDArray[np.float64], cov: NDArray[np.float64], rng: np.random.Generator) -> Integral:
    """Gauss-Hermite quadrature of exp(density) about a normal law, with importance sampling beside it for the error.

    Parameters
    ----------
    density : callable
        Log of the integrand at couplings (m, k).
    mean, cov : ndarray, shapes (k,) and (k, k)
        A normal law near the integrand.
    rng : numpy.random.Generator

    Examples
    --------
    >>> found = quadrature(lambda w: -0.5 * (w**2).sum(axis=1), np.array([0.1]), np.eye(1), np.random.default_rng(0))
    >>> round(found.log_z, 6), found.error < 0.05    # half the log of 2 pi
    (0.918939, True)
    """
    k, root = len(mean), np.linalg.cholesky(cov)
    nodes, weights = hermegauss(_NODES[k])
    z = np.stack(np.meshgrid(*[nodes] * k, indexing="ij"), axis=-1).reshape(-1, k)
    log_w = np.log(np.stack(np.meshgrid(*[weights] * k, indexing="ij"), axis=-1).reshape(-1, k)).sum(axis=1)
    w = mean + z @ root.T
    terms = density(w) + log_w + 0.5 * (z**2).sum(axis=1) + np.log(np.diag(root)).sum()
    value = logsumexp(terms)
    p = np.exp(terms - value)
    centre = p @ w
    sampled = importance(density, mean, root, rng)
    return Integral(float(value), float(np.hypot(value - sampled, 1e-6)), centre, np.sqrt(p @ (w - centre) ** 2), "quadrature")


def importance(density: Density, mean: NDArray[np.float64], root: NDArray[np.float64], rng: np.random.Generator, n: int = 8000) -> float:
    """Log of the integral by importance sampling from a Student-t law a fifth wider than Normal(mean, root root^T).

    Examples
    --------
    >>> value = importance(lambda w: -0.5 * (w**2).sum(axis=1), np.zeros(1), np.eye(1), np.random.default_rng(0))
    >>> bool(abs(value - 0.5 * np.log(2 * np.pi)) < 0.03)
    True
    """
    proposal = multivariate_t(mean, 1.5 * root @ root.T, df=5)
    w = proposal.rvs(size=n, random_state=rng).reshape(n, -1)
    return float(logsumexp(density(w) - proposal.logpdf(w)) - np.log(n))


def sequential(
    likelihood: Density,
    prior: Density,
    draw: Callable[[int, np.random.Generator], NDArray[np.float64]],
    rng: np.random.Generator,
    *,
    runs: int = _RUNS,
    particles: int = _PARTICLES,
) -> Integral:
    """Sequential Monte Carlo: particles of the prior become those of the posterior as the likelihood is switched on.

    The exponent of the likelihood grows by steps that leave 60 % of the particles effective; after each,
    particles are resampled and moved by random-walk Metropolis steps of their own covariance. The evidence is the
    mean over independent runs, its error their scatter.

    Parameters
    ----------
    likelihood, prior : callable
        Logs at couplings (m, k).
    draw : callable(n, rng)
        n draws (n, k) of the prior.
    rng : numpy.random.Generator
    runs, particles : int

    Examples
    --------
    A coin's bias with a flat prior, 7 heads of 10: the evidence is B(8, 4) = 1 / 1320.

    >>> def heads(w):
    ...     p = np.clip(w[:, 0], 1e-12, 1 - 1e-12)
    ...     return 7 * np.log(p) + 3 * np.log1p(-p)
    >>> flat = lambda w: np.where((w[:, 0] > 0) & (w[:, 0] < 1), 0.0, -np.inf)
    >>> found = sequential(heads, flat, lambda n, r: r.random((n, 1)), np.random.default_rng(0))
    >>> bool(abs(found.log_z + np.log(1320)) < 4 * found.error), bool(abs(found.mean[0] - 8 / 12) < 0.02)
    (True, True)
    """
    done = [_run(likelihood, prior, draw(particles, child), child) for child in rng.spawn(runs)]
    values = np.array([value for value, _ in done])
    w = np.concatenate([places for _, places in done])
    top = values.max()
    z = np.exp(values - top)
    error = z.std(ddof=1) / z.mean() / np.sqrt(runs)
    return Integral(float(top + np.log(z.mean())), float(error), w.mean(axis=0), w.std(axis=0, ddof=1), "sequential Monte Carlo")


def _run(likelihood: Density, prior: Density, w: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, NDArray[np.float64]]:
    n, k = w.shape
    power, log_z, value, before = 0.0, 0.0, likelihood(w), prior(w)
    while power < 1:
        step = _step(value, 1 - power)
        weight = step * value
        log_z += logsumexp(weight) - np.log(n)
        power += step
        p = np.exp(weight - logsumexp(weight))
        # systematic resampling: the least noise for its price
        picks = np.minimum(np.searchsorted(np.cumsum(p), (rng.random() + np.arange(n)) / n), n - 1)
        w, value, before = w[picks], value[picks], before[picks]
        root = 2.38 / np.sqrt(k) * np.linalg.cholesky(np.atleast_2d(np.cov(w.T)) + 1e-12 * np.eye(k))
        accepted, tried = 0.0, 0
        while accepted < _ACCEPTED and tried < _MOST_MOVES:
            there = w + rng.normal(size=w.shape) @ root.T
            ahead = prior(there)
            inside = np.isfinite(ahead)
            reached = np.full(n, -np.inf)
            reached[inside] = likelihood(there[inside])
            with np.errstate(invalid="ignore"):
                gain = np.where(inside, power * (reached - value) + ahead - before, -np.inf)
            yes = np.log(rng.random(n)) < gain
            w, value, before = np.where(yes[:, None], there, w), np.where(yes, reached, value), np.where(yes, ahead, before)
            accepted, tried = accepted + yes.mean(), tried + 1
    return float(log_z), w


def _step(value: NDArray[np.float64], left: float) -> float:
    """How far the exponent may grow while so many particles stay effective."""

    def excess(step: float) -> float:
        log_w = step * (value - value.max())
        return float(np.exp(2 * logsumexp(log_w) - logsumexp(2 * log_w))) / len(value) - _EFFECTIVE

    return left if excess(left) >= 0 else float(brentq(excess, 0.0, left, xtol=1e-10))
