"""Log likelihoods as polynomials: what lets hundreds of imagined experiments be analysed in a second.

The log likelihood of n images alike is A(w) . T - n b(w) with T the sum of their statistics, that of the images so far one
function of the couplings. Both are smooth, so over the region where a posterior lies polynomials stand for them, and
each experiment's log likelihood is a polynomial again. Its highest point and curvature there give a law close to the
posterior, from which the evidence follows by importance sampling, under priors of any width from the same points.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import gammaln
from scipy.stats import chi2, norm, qmc

from ..errors import CheckError
from ..hamiltonian import Hamiltonian
from ..inference.densities import log_prior
from ..inference.quasi import Natural

Floats = NDArray[np.float64]

RADIUS = 4.5  # standard deviations of the posterior so far over which polynomials are fitted
_DEGREE = {1: 8, 2: 7, 3: 4}  # by couplings; 2 for more
_PLACES = {1: 256}  # at which likelihoods are looked up, by couplings; 1024 for more
_WEIGHTED, _INNER = 2.5, 0.5  # standard deviations that count most; share of the radius within which chains must answer
_STARTS, _STEPS = 256, 8  # places at which the highest point is looked for first, and Newton's steps from the best of them
_POINTS, _FREEDOM, _WIDER = 128, 8.0, 1.2  # of the importance sampling: draws, degrees of freedom, width over the posterior's
_EDGE = 0.95  # of the radius, beyond which a posterior's highest point is at the edge of what is known


class Evidence(NamedTuple):
    """Log evidences (scales, experiments), and which experiments' posteriors lie inside the region (experiments,)."""

    log_z: Floats
    inside: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Surface:
    """One model's log likelihoods over the posterior so far, in u = (w - centre) root^-T / RADIUS.

    Attributes
    ----------
    powers : ndarray of int, shape (P, k)
        Exponents of the monomials in u.
    now : ndarray, shape (P,)
        Of the images so far.
    slope, constant : ndarray, shapes (P, d) and (P,)
        Of one more image with statistic t: slope . (t - middle) - constant.
    middle : ndarray, shape (d,)
        A statistic that is near all of them.
    known, rest : ndarray, shapes (m, k) and (m, d + 2)
        Places in u, and what the polynomials leave there of `now`, `constant` and `slope`.
    error : tuple of float
        Root mean square change of what is left of `now`, and of the log likelihood of one image, from one place to the next.
    reach : float
        Of the radius, up to which chains answer.
    """

    model: Hamiltonian
    centre: Floats
    root: Floats
    powers: NDArray[np.int64]
    now: Floats
    slope: Floats
    constant: Floats
    middle: Floats
    known: Floats
    rest: Floats
    error: tuple[float, float]
    reach: float = 1.0

    @classmethod
    def fit(
        cls, model: Hamiltonian, centre: Floats, cov: Floats, places: Floats, now: Floats, natural: Natural, middle: Floats,
        held: NDArray[np.bool_] | None = None,
    ) -> Surface:  # fmt: skip
        """Polynomials through log likelihoods of the images so far (m,) and of one more, at `places` (m, k) of :func:`places_over`.

        `held` (m,) says where chains answer. CheckError if they do so nowhere near enough.

        Examples
        --------
        See :func:`places_over`.
        """
        root = np.linalg.cholesky(cov)
        powers = exponents(len(centre))
        u = np.linalg.solve(root, (places - centre).T).T / RADIUS
        length = np.linalg.norm(u, axis=1)
        held = np.ones(len(u), dtype=bool) if held is None else held
        reach = float(length[~held].min(initial=1.0))
        if held.sum() < 2 * len(powers) or reach < _INNER:
            raise CheckError(f"model {model.name}: chains answer at {held.sum()} of {len(held)} places, within {reach * RADIUS:.1f} sd")
        # the middle counts most: that is where posteriors are, and they shrink
        weight = np.where(held, np.exp(-0.25 * (length * RADIUS / _WEIGHTED) ** 2), 0.0)[:, None]
        one = natural.constant - natural.slope @ middle
        targets, basis = np.where(held[:, None], np.column_stack([now, one, natural.slope]), 0.0), monomials(u, powers)
        coefficients = np.linalg.lstsq(basis * weight, targets * weight, rcond=None)[0]
        known, rest = u[held], (targets - basis @ coefficients)[held]
        next_one = cKDTree(known).query(known, 2)[1][:, 1]
        apart = (rest - rest[next_one])[np.linalg.norm(known, axis=1) * RADIUS < _WEIGHTED]
        error = (float(np.sqrt(np.mean(apart[:, 0] ** 2))), float(np.sqrt(np.mean(apart[:, 1] ** 2))))
        return cls(
            model, centre, root, powers, coefficients[:, 0], coefficients[:, 2:], coefficients[:, 1], middle, known, rest, error, reach
        )

    def left(self, u: Floats, sums: Floats, n: int) -> Floats:
        """What the polynomials leave of each experiment's log likelihood (E,) at the place known next to u (E, k).

        The noise of the chains is too rough for polynomials and is multiplied by n; where posteriors are narrow it is one number.
        """
        rest = self.rest[self._tree.query(u)[1]]
        return rest[:, 0] + ((sums - n * self.middle) * rest[:, 2:]).sum(axis=1) - n * rest[:, 1]

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.known)

    @cached_property
    def _derivatives(self) -> Floats:
        """Matrices (k, P, P) that turn the coefficients of a polynomial into those of its derivative along each coordinate."""
        place = {tuple(p): i for i, p in enumerate(self.powers.tolist())}
        found = np.zeros((self.powers.shape[1], len(self.powers), len(self.powers)))
        for a, (i, p) in itertools.product(range(len(found)), enumerate(self.powers.tolist())):
            if p[a]:
                found[a, i, place[tuple(n - (b == a) for b, n in enumerate(p))]] = p[a]
        return found

    def values(self, u: Floats) -> Floats:
        """Couplings (..., k) at whitened coordinates."""
        return self.centre + RADIUS * u @ self.root.T

    def coefficients(self, sums: Floats, n: int) -> Floats:
        """Coefficients (E, P) of the log likelihoods of experiments that add n images with statistics that sum to (E, d)."""
        return self.now + (sums - n * self.middle) @ self.slope.T - n * self.constant

    def evidence(self, sums: Floats, n: int, scales: Sequence[float]) -> Evidence:
        """Log evidences of experiments under priors of several widths.

        Parameters
        ----------
        sums : ndarray, shape (E, d)
            Sums of the statistics of the n images that each experiment adds.
        n : int
        scales : sequence of float
            Widths of every prior, relative to the declared one.
        """
        c, k = self.coefficients(sums, n), len(self.centre)
        top, curvature = self._highest(c)
        inside = (top**2).sum(axis=1) < (_EDGE * self.reach) ** 2
        root = np.linalg.cholesky(np.linalg.inv(curvature)) * _WIDER
        z, log_q = _student(k)
        u = top[:, None] + z @ root.transpose(0, 2, 1)  # (E, m, k)
        flat = u.reshape(-1, k)
        held = (flat**2).sum(axis=1) <= self.reach**2
        flat = np.where(held[:, None], flat, 0.0)  # shapes stay as they are, for what is compiled
        likelihood = (monomials(flat, self.powers).reshape(len(c), len(z), -1) @ c[..., None]).reshape(-1)
        likelihood = np.where(held, likelihood, -np.inf).reshape(len(c), -1)
        # one volume element for the draws, one for the coordinates
        volume = np.log(np.abs(np.linalg.det(root))) + np.log(np.linalg.det(RADIUS * self.root)) + self.left(top, sums, n)
        values, log_z = self.values(flat), []
        for scale in scales:
            terms = likelihood + log_prior(self.model, values, scale).reshape(len(c), -1) - log_q
            highest = terms.max(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                total = highest + np.log(np.exp(terms - highest[:, None]).mean(axis=1))
            log_z.append(np.where(np.isfinite(highest), total + volume, -np.inf))
        return Evidence(np.array(log_z), inside & np.isfinite(log_z).all(axis=0))

    def _prior(self) -> tuple[Floats, Floats]:
        """Mean (k,) and precision (k, k) in u of the normal law with the moments of the declared prior; 0 where it has none."""
        priors = [self.model.prior(n) for n in self.model.names]
        mean, variance = (np.array([float(np.asarray(getattr(p, part))) for p in priors]) for part in ("mean", "variance"))
        precise = np.where(np.isfinite(variance) & np.isfinite(mean), 1 / variance, 0.0)
        scale = RADIUS * self.root
        middle = np.linalg.solve(scale, np.where(np.isfinite(mean), mean, self.centre) - self.centre)
        return middle, scale.T @ np.diag(precise) @ scale

    def _highest(self, c: Floats) -> tuple[Floats, Floats]:
        """Highest point (E, k) of each experiment's posterior, as if the prior were normal, and minus its second derivatives there."""
        k, (mean, precision), d = len(self.centre), self._prior(), self._derivatives
        starts = 1.5 * _sobol(k, _STARTS) / RADIUS
        starts = starts[(starts**2).sum(axis=1) < 1.0]
        prior = -0.5 * np.einsum("mk,kl,ml->m", starts - mean, precision, starts - mean)
        u = starts[np.argmax(c @ monomials(starts, self.powers).T + prior, axis=1)]
        slopes = [c @ d[a] for a in range(k)]
        bends = [[slopes[a] @ d[b] for b in range(k)] for a in range(k)]
        for step in range(_STEPS + 1):
            basis = monomials(u, self.powers)
            gradient = np.stack([(basis * s).sum(axis=1) for s in slopes], axis=1) - (u - mean) @ precision
            curvature = precision - np.stack([np.stack([(basis * b).sum(axis=1) for b in row], axis=1) for row in bends], axis=1)
            values, vectors = np.linalg.eigh(curvature)
            # where a polynomial bends upward it is far from its top: no wider than the region then
            curvature = (vectors * np.maximum(values, RADIUS**2 / 4)[:, None]) @ vectors.transpose(0, 2, 1)
            if step == _STEPS:
                break
            u = u + np.linalg.solve(curvature, gradient[..., None])[..., 0]
            u /= np.maximum(1.0, np.linalg.norm(u, axis=1, keepdims=True))
        return u, curvature


def places_over(centre: Floats, cov: Floats) -> Floats:
    """Couplings (m, k) at which the log likelihoods are wanted: a ball of :data:`RADIUS` standard deviations, evenly in the radius.

    Examples
    --------
    A coupling known to 0.1 +- 0.05, and images that each tell it as well: four more images at the very mean leave the evidence
    lower by the shrinking of the posterior, from 0.05 to 0.05 / 5^0.5.

    >>> from numpyro import distributions as dist
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), lattice=Lattice.square(), species=("A", "B"))
    >>> centre, cov = np.array([0.1]), np.array([[0.0025]])
    >>> w = places_over(centre, cov)
    >>> one = Natural(w * 400, 200 * w[:, 0] ** 2)  # t ~ Normal(w, 0.0025), over that at w = 0
    >>> s = Surface.fit(h, centre, cov, w, -200 * (w[:, 0] - 0.1) ** 2, one, np.array([0.1]))
    >>> before, after = (s.evidence(np.full((1, 1), 0.1 * n), n, [1.0]).log_z[0, 0] for n in (0, 4))
    >>> bool(abs(after - before - 4 * 200 * 0.1**2 + np.log(5) / 2) < 0.01)
    True
    """
    k = len(centre)
    z = _sobol(k + 1, _PLACES.get(k, 1024))
    direction = z[:, :k] / np.linalg.norm(z[:, :k], axis=1, keepdims=True)
    length = RADIUS * norm.cdf(z[:, k:]) ** (1 / min(k, 2))
    return centre + (direction * length) @ np.linalg.cholesky(cov).T


def exponents(k: int) -> NDArray[np.int64]:
    """Exponents (P, k) of all monomials up to the degree that serves so many couplings.

    Examples
    --------
    >>> len(exponents(1)), len(exponents(2)), int(exponents(4).sum(axis=1).max())
    (9, 36, 2)
    """
    degree = _DEGREE.get(k, 2)
    rows = [np.bincount(p, minlength=k) for n in range(degree + 1) for p in itertools.combinations_with_replacement(range(k), n)]
    return np.array(rows, dtype=np.int64)


def monomials(u: Floats, powers: NDArray[np.int64]) -> Floats:
    """All monomials (m, P) of places (m, k); each is an earlier one times a coordinate.

    Examples
    --------
    >>> monomials(np.array([[2.0, 3.0]]), exponents(4)[:, :2][:3]).tolist()
    [[1.0, 2.0, 3.0]]
    """
    found, place = np.ones((len(u), len(powers))), {}
    for i, p in enumerate(powers):
        place[tuple(p)] = i
        if p.any():
            a = int(np.argmax(p > 0))
            np.multiply(found[:, place[tuple(p - (np.arange(len(p)) == a))]], u[:, a], out=found[:, i])
    return found


def _sobol(k: int, n: int) -> Floats:
    """Even points of the standard normal law, (about n, k)."""
    return qmc.MultivariateNormalQMC(np.zeros(k), seed=np.random.default_rng(20212)).random(1 << (n - 1).bit_length())


@lru_cache
def _student(k: int) -> tuple[Floats, Floats]:
    """Points (m, k) of a Student-t law, evenly, and its log density there (m,), both in units of its root."""
    even = qmc.Sobol(k + 1, seed=np.random.default_rng(20213)).random(1 << (_POINTS - 1).bit_length())
    z = norm.ppf(np.clip(even[:, :k], 1e-9, 1 - 1e-9)) / np.sqrt(chi2.ppf(np.clip(even[:, k:], 1e-9, 1 - 1e-9), _FREEDOM) / _FREEDOM)
    const = gammaln((_FREEDOM + k) / 2) - gammaln(_FREEDOM / 2) - k / 2 * np.log(_FREEDOM * np.pi)
    return z, const - (_FREEDOM + k) / 2 * np.log1p((z**2).sum(axis=1) / _FREEDOM)
