"""Whether images can decide between models, from normal laws: what would have to be seen, and how much more would be needed.

A model with one coupling more than another wins by the ratio of the densities of that coupling at zero, prior over posterior
(Savage and Dickey; Dickey, Ann. Math. Stat. 42, 204, 1971). The rule is that of the comparison: a model has gone if it is
outside the smallest set with 95 % of the weight under priors of half, declared and double width, so an estimate has to
lie beyond a threshold for all three, and absence is decided only if the images are some twenty times surer than the narrowest prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from ..configuration import Configuration
from ..hamiltonian import Hamiltonian
from ..inference.comparison import remaining
from ..inference.densities import unbounded
from ..inference.identifiability import identifiability
from ..inference.priors import PRIOR_SCALES
from ..observation import Observation
from .bounds import Bound

Floats = NDArray[np.float64]

_SURE = float(np.log(0.95 / 0.05))  # log odds of two models at which one is left
_MOST = 1e7  # environments beyond which none are suggested
_FACTORS = np.geomspace(1, 1e4, 161)
_SITES = 600  # of the random crystal whose information is quoted


@dataclass(frozen=True)
class Decision:
    """Two models that differ by one coupling.

    Attributes
    ----------
    inner, outer, coupling : str
        The outer model has the coupling, the inner has not.
    estimate, sd : float
        Of the coupling by the images alone, kT.
    below, above : float
        The images decide for the outer model if they put it there.
    within : tuple of float, or None
        And for the inner if they put it there; None if images so unsure never can.
    decides : str
        The model for which the estimate would decide, or "".
    chance_outer, chance_inner : float
        How probable it is that such images decide for the outer model if it is right and its coupling follows its prior, and for
        the inner one if that is right.
    more : float or None
        Environments at equal composition of all species that would have to be added if the estimate stays; None beyond 10^7.
    """

    inner: str
    outer: str
    coupling: str
    estimate: float
    sd: float
    below: float
    above: float
    within: tuple[float, float] | None
    decides: str
    chance_outer: float
    chance_inner: float
    more: float | None

    def __str__(self) -> str:
        if np.isinf(self.sd):
            return f"{self.outer} against {self.inner}: the images say nothing about {self.coupling}; they cannot decide."
        both = np.isclose(-self.below, self.above, rtol=1e-3)
        where = f"|{self.coupling}| > {self.above:.2g} kT" if both else f"{self.coupling} < {self.below:.2g} or > {self.above:.2g} kT"
        seen = f"the estimate is {self.estimate:.2g} ± {self.sd:.2g}"
        if self.decides:
            return f"{self.outer} against {self.inner}: the data should decide for {self.decides}; {seen}, the threshold {where}."
        absent = "" if self.within is not None else f"; that {self.coupling} is absent they cannot decide, they are too few"
        needed = "more than can be imaged" if self.more is None else f"about {_rounded(self.more)} environments at equal composition"
        return (
            f"{self.outer} against {self.inner}: the data would decide for {self.outer} only if {where}; {seen}: they cannot decide"
            f"{absent}. If the estimate stays, {needed} would have to be added."
        )


def threshold(sd: float, prior_mean: float, prior_sd: float, odds: float = _SURE) -> tuple[float, float, tuple[float, float] | None]:
    """Estimates of a coupling at which images decide whether it is there.

    Parameters
    ----------
    sd : float
        Of the estimate, by the images alone.
    prior_mean, prior_sd : float
    odds : float
        Logarithm of those that are asked for.

    Returns
    -------
    below, above : float
        It is there if the estimate lies below the one or above the other.
    within : tuple of float, or None
        It is absent if the estimate lies between these; None if that cannot be.

    Examples
    --------
    >>> below, above, within = threshold(0.05, 0.0, 1.0)
    >>> round(above, 3), below == -above, within
    (0.182, True, None)
    >>> threshold(0.02, 0.0, 1.0)[2] is not None
    True
    """
    outside, inside = [], []
    for scale in PRIOR_SCALES:
        wide = (scale * prior_sd) ** 2
        v = 1 / (1 / sd**2 + 1 / wide)
        level = 0.5 * np.log(wide / v) + prior_mean**2 / (2 * wide)  # log odds are m^2 / 2 v less this

        def estimate(half: float, v: float = v, wide: float = wide) -> tuple[float, float]:
            m = np.sqrt(2 * v * half)
            return float(sd**2 * (-m / v - prior_mean / wide)), float(sd**2 * (m / v - prior_mean / wide))

        outside.append(estimate(odds + level))
        inside.append(estimate(level - odds) if level > odds else None)
    low, high = np.min(outside, axis=0)[0], np.max(outside, axis=0)[1]
    within = None
    if all(inside):
        ends = max(i[0] for i in inside if i), min(i[1] for i in inside if i)
        within = ends if ends[0] < ends[1] else None
    return float(low), float(high), within


def decisions(models: Sequence[Hamiltonian], bounds: Mapping[str, Bound], observations: Sequence[Observation], seed: int) -> list[Decision]:
    """Every two models of which one has exactly one coupling more, with normal priors and within the probe's reach.

    Examples
    --------
    ``print(*decisions(models, probe(...).bounds, images, seed=1), sep="\\n")``
    """
    pairs = [
        (a, b, next(iter(set(b.names) - set(a.names))))
        for a in models
        for b in models
        if set(a.names) < set(b.names) and len(b.names) == len(a.names) + 1 and _told(bounds[a.name]) and _told(bounds[b.name])
    ]
    if not pairs:
        return []
    each = _per_environment(models, observations[0], seed)
    return [_decision(a.name, bounds[b.name], name, each[b.name]) for a, b, name in pairs]


def normal_priors(bound: Bound) -> bool:
    """Whether the priors of the couplings can stand as normal laws: they have a width and exclude nothing.

    Examples
    --------
    ``normal_priors(probe(...).bounds["P1"])``
    """
    return bool(np.isfinite(bound.prior[1]).all()) and all(unbounded(bound.model.prior(n)) for n in bound.names)


def _told(bound: Bound) -> bool:
    return bound.supported and normal_priors(bound)


def _decision(inner: str, bound: Bound, name: str, each: Floats) -> Decision:
    place, (mean, variance) = bound.names.index(name), bound.prior
    mu, tau = float(mean[place]), float(np.sqrt(variance[place]))
    estimate, sd = _alone(bound, place, np.zeros_like(each), 0.0)
    if not np.isfinite(sd):
        return Decision(inner, bound.model.name, name, np.nan, np.inf, -np.inf, np.inf, None, "", 0.0, 0.0, None)
    below, above, within = threshold(sd, mu, tau)

    def decided(n: float) -> str:
        low, high, between = threshold(_alone(bound, place, each, n)[1], mu, tau)
        if not low <= estimate <= high:
            return bound.model.name
        return inner if between is not None and between[0] < estimate < between[1] else ""

    now = decided(0.0)
    more = None if now else next((float(n) for n in np.geomspace(10, _MOST, 241) if decided(float(n))), None)
    predictive, spread = float(np.hypot(tau, sd)), (lambda v, m, s: float(norm.cdf(v, m, s)))
    chance_outer = spread(below, mu, predictive) + 1 - spread(above, mu, predictive)
    chance_inner = 0.0 if within is None else spread(within[1], 0.0, sd) - spread(within[0], 0.0, sd)
    return Decision(inner, bound.model.name, name, estimate, sd, below, above, within, now, chance_outer, chance_inner, more)


def _alone(bound: Bound, place: int, each: Floats, n: float) -> tuple[float, float]:
    """Estimate and standard deviation of one coupling without its own prior, after n more environments that say the same."""
    mean, variance = bound.prior
    k, precision = len(bound.names), np.diag(1 / variance)
    information = bound.information.sum(axis=0)
    whole = information + precision
    whole[:k, :k] += n * each
    v = float(np.linalg.pinv(whole, hermitian=True)[place, place])
    left = 1 / v - 1 / variance[place]
    if left < 1e-6 / variance[place] or not np.isfinite(left):
        return float("nan"), float("inf")
    mode = float(np.linalg.pinv(information + precision, hermitian=True)[place, place])
    own = 1 / mode - 1 / variance[place]
    estimate = (bound.estimate[place] / mode - mean[place] / variance[place]) / own
    return float(estimate), float(left**-0.5)


def _per_environment(models: Sequence[Hamiltonian], image: Observation, seed: int) -> dict[str, Floats]:
    """Fisher information of one environment of a random crystal with as much of every species, by model."""
    e = image.environments
    side = max(2 * e.shells + 3, round((_SITES / len(e.lattice.basis)) ** (1 / e.lattice.dimension)))
    shape, k = (side,) * e.lattice.dimension, len(e.species)
    crystal = Configuration.random(e.lattice, e.species, shape, np.full(k, 1 / k), np.random.default_rng([seed, 43]))
    o = Observation.from_configuration(crystal, environments=e)
    found = identifiability(models, [o], seed=seed).models
    return {m.name: found[m.name].information[0] / o.n if m.terms else np.zeros((0, 0)) for m in models}


@dataclass(frozen=True)
class Verdict:
    """What all models come to: expected `weights` under the declared priors, which `remain`, and the factor `more` of the same data
    after which one would be left if they go on to say the same (None if it is beyond 10^4).
    """

    weights: Mapping[str, float]
    remain: tuple[str, ...]
    more: float | None

    @property
    def decides(self) -> bool:
        return len(self.remain) == 1 and len(self.weights) > 1


def verdict(bounds: Mapping[str, Bound]) -> Verdict | None:
    """The comparison's rule on expected evidences; None for one model, for priors far from normal, or where the probe did not reach.

    Examples
    --------
    ``verdict(probe(...).bounds).remain``
    """

    def weights(more: float) -> dict[float, dict[str, float]]:
        found = {}
        for scale in PRIOR_SCALES:
            log_z = np.array([b.log_evidence(scale, more) for b in bounds.values()])
            raw = np.exp(log_z - log_z.max())
            found[scale] = dict(zip(bounds, (raw / raw.sum()).tolist(), strict=True))
        return found

    if len(bounds) < 2 or not all(map(_told, bounds.values())):
        return None
    now = weights(1.0)
    more = next((float(f) for f in _FACTORS if len(remaining(weights(float(f)))) == 1), None)
    return Verdict(now[1.0], remaining(now), more)


def _rounded(n: float) -> str:
    """A number to one or two figures."""
    digits = -int(np.floor(np.log10(max(n, 1)))) + (1 if f"{n:.1e}"[0] in "12" else 0)
    return f"{round(n, digits):,.0f}"
