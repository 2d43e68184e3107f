"""Integrals over the posterior of a session: evidences, means and widths after every image, in milliseconds.

The integrators of :mod:`bayesatoms.inference.evidence` serve a finished result and take their time. Here the posterior is
known to lie in the region of its polynomials: a Gauss-Hermite rule with a coarser one beside it for the error, or, with
many couplings or bounded priors, importance sampling with the error of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from ..observation import Observation
from .densities import log_likelihoods, log_prior, unbounded
from .evidence import Integral
from .regions import Region

_NODES = {1: (31, 41), 2: (17, 23), 3: (9, 13)}  # an axis, by the number of couplings: coarse and fine
_SAMPLES = 6000
_FREEDOM = 5  # of the Student-t law sampled from: its tails are wider than those of a posterior
_LEAST = 0.05  # share of effective samples below which the law is fitted again to what it found
_FITS = 6

Density = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def integrals(region: Region, observations: Sequence[Observation], scales: Sequence[float], seed: int) -> list[Integral]:
    """Evidence, mean and sd of a posterior under several widths of its priors.

    Parameters
    ----------
    region : Region
        With a smooth emulator of all images.
    observations : sequence of Observation
    scales : sequence of float
        Every prior becomes so many times as wide.
    seed : int

    Returns
    -------
    list of Integral
    """
    smooth, p = region.smooth, region.parameters
    assert smooth is not None

    def likelihood(w: NDArray[np.float64]) -> NDArray[np.float64]:
        return log_likelihoods(smooth, observations, region.kind, w).sum(axis=1) + smooth.leash(w)

    if len(region.centre) in _NODES and all(unbounded(p.prior(n)) for n in p.names):
        coarse, fine = (_rule(region, likelihood, scales, n) for n in _NODES[len(region.centre)])
        return [_quadrature(*pair) for pair in zip(coarse, fine, strict=True)]
    rng = np.random.default_rng(np.random.SeedSequence([seed, 43, *np.frombuffer(region.model.name.encode(), np.uint8)]))
    return _importance(region, likelihood, scales, rng)


Rule = tuple[float, NDArray[np.float64], NDArray[np.float64]]


def _rule(region: Region, likelihood: Density, scales: Sequence[float], n: int) -> list[Rule]:
    """Log of the integral, mean and sd by a product of Gauss-Hermite rules of n nodes, for each width of the priors."""
    root, k = np.linalg.cholesky(region.cov), len(region.centre)
    nodes, weights = hermegauss(n)
    z = np.stack(np.meshgrid(*[nodes] * k, indexing="ij"), axis=-1).reshape(-1, k)
    log_w = np.log(np.stack(np.meshgrid(*[weights] * k, indexing="ij"), axis=-1).reshape(-1, k)).sum(axis=1)
    w = region.centre + z @ root.T
    common = likelihood(w) + log_w + 0.5 * (z**2).sum(axis=1) + np.log(np.diag(root)).sum()
    return [_moments(common + log_prior(region.parameters, w, s), w) for s in scales]


def _moments(terms: NDArray[np.float64], w: NDArray[np.float64]) -> Rule:
    total = logsumexp(terms)
    p = np.exp(terms - total)
    mean = p @ w
    return float(total), mean, np.sqrt(p @ (w - mean) ** 2)


def _quadrature(coarse: Rule, fine: Rule) -> Integral:
    return Integral(fine[0], float(np.hypot(fine[0] - coarse[0], 1e-6)), fine[1], fine[2], "quadrature")


def _importance(region: Region, likelihood: Density, scales: Sequence[float], rng: np.random.Generator) -> list[Integral]:
    """The same by importance sampling; the law sampled from follows the posterior under the declared priors."""
    centre, cov = region.centre, region.cov
    for _ in range(_FITS):
        law = multivariate_t(centre, 1.3 * cov, df=_FREEDOM)
        w = law.rvs(size=_SAMPLES, random_state=rng).reshape(_SAMPLES, -1)
        priors = {s: log_prior(region.parameters, w, s) for s in {1.0, *scales}}
        inside = np.isfinite(list(priors.values())).any(axis=0)
        common = np.full(_SAMPLES, -np.inf)
        common[inside] = likelihood(w[inside]) - law.logpdf(w[inside])
        p = np.exp(common + priors[1.0] - logsumexp(common + priors[1.0]))
        if 1 / (p**2).sum() > _LEAST * _SAMPLES:
            break
        centre = p @ w
        cov = ((w - centre) * p[:, None]).T @ (w - centre) + 1e-12 * np.eye(len(centre))
    found = []
    for s in scales:
        terms = common + priors[s]
        total, mean, sd = _moments(terms, w)
        effective = np.exp(2 * total - logsumexp(2 * terms))
        error = np.sqrt(max(1 / effective - 1 / _SAMPLES, 0.0))
        found.append(Integral(total - np.log(_SAMPLES), float(error), mean, sd, "importance sampling"))
    return found
