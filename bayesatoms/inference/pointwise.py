"""Point-wise log likelihoods: single atoms given all others, and whole images; their agreement, and what is left out exactly.

What WAIC and LOO leave out must be a real unit of data. Single atoms are one, through the conditionals
of a lattice model; whole images are the other. Environments are not: they overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from ..errors import CheckError
from ..hamiltonian import Hamiltonian
from .conditionals import conditionals
from .criteria import Elpd, everywhere, judged, loo, waic
from .densities import explore, log_likelihoods
from .emulator import SUPPORT_BAR
from .evidence import log_evidence
from .posterior import Fit, Result
from .smooth import SmoothEmulator

K_BAR = 0.7  # Pareto k above which importance sampling of the posterior without a point fails (Vehtari et al. 2017)
_THIN = 4  # of the draws, for the many atoms
_RADIUS = 3.0  # of a smooth emulator for a posterior without one image, which is wide and near the pool's edge
_PASSES = 3  # at a posterior without one image
_STILL = 0.3  # standard deviations by which it may move between passes


@dataclass(frozen=True, eq=False)
class Atoms:
    """Conditionals of all atoms under each model.

    log_likelihood (chain, draw, points) by model name; multiplicity (points,): atoms with equal surroundings are one point;
    totals (chain, draw) by model, and `images` (chain, draw) the whole-image log likelihood at the same draws.
    """

    log_likelihood: Mapping[str, NDArray[np.float64]]
    multiplicity: NDArray[np.float64]
    images: Mapping[str, NDArray[np.float64]]

    @property
    def n(self) -> int:
        """Atoms."""
        return int(self.multiplicity.sum())


def atoms(result: Result, models: Sequence[Hamiltonian]) -> tuple[Atoms | None, str]:
    """The conditionals of all atoms, or None and the reason why they are not to be had.

    The same atoms serve every model, so every image must show enough around them for every model, and its labels
    must be the crystal's.

    Examples
    --------
    ``found, why = atoms(result, [fit.model for fit in result.fits.values()])``.
    """
    # a conditional of wrong labels is not that of the crystal: with label errors only whole images are right
    noisy = [o.name for o in result.observations if not np.array_equal(o.label_error, np.eye(len(o.label_error)))]
    if noisy:
        return None, f"{', '.join(noisy)} {'has' if len(noisy) == 1 else 'have'} label errors, and a wrong label has a wrong conditional"
    terms = {t.name: t for m in models for t in m.terms}
    everything = Hamiltonian("all", *terms.values(), lattice=models[0].lattice, species=models[0].species)
    tables = {o.name: conditionals(everything, o) for o in result.observations}
    short = [name for name, t in tables.items() if t is None or not t.exact]
    if short:
        return None, f"{', '.join(short)} {'does' if len(short) == 1 else 'do'} not show enough around an atom for every model"
    known = {name: t for name, t in tables.items() if t is not None}
    found, images, place = {}, {}, [result.emulator.names.index(n) for n in terms]
    for m in models:
        posterior = judged(result[m.name])
        shape = posterior.draws[:, ::_THIN].shape[:2]
        draws = posterior.full.reshape(*posterior.draws.shape[:2], -1)[:, ::_THIN].reshape(int(np.prod(shape)), -1)
        # the random alloy has one likelihood, whatever the draw
        at = everywhere(result, result[m.name], draws if m.terms else draws[:1])
        values = np.concatenate([t.profile(at[name][:, place]) for name, t in known.items()], axis=1)
        found[m.name] = (values if m.terms else np.repeat(values, np.prod(shape), axis=0)).reshape(*shape, -1)
        images[m.name] = posterior.log_likelihood[:, ::_THIN].sum(axis=-1)
    return Atoms(found, np.concatenate([t.weight for t in known.values()]), images), ""


# ---------------------------------------------------------------------- agreement of the two


@dataclass(frozen=True)
class Consistency:
    """How the summed conditionals follow the whole-image log likelihood over the posterior draws.

    `slope` of the sum on the whole (1 if atoms were independent given the couplings; above 1 they repeat each other),
    their `correlation`, and `shift`: how far the posterior mean would move, in its standard deviations, were the
    conditionals its likelihood.
    """

    slope: float
    correlation: float
    shift: float

    @property
    def ok(self) -> bool:
        """Whether the conditionals see what the images see."""
        return self.correlation > 0.8 and self.shift < 1.0


def consistency(found: Atoms, name: str, draws: NDArray[np.float64]) -> Consistency | None:
    """Agreement of atoms and images under one model, over its draws (chain, draw, k); None without couplings.

    Examples
    --------
    Conditionals that are the whole twice over: slope 2, correlation 1, and no shift.

    >>> rng = np.random.default_rng(0)
    >>> w = rng.normal(size=(1, 4000, 1))
    >>> whole = -0.5 * w[..., 0] ** 2
    >>> twice = Atoms({"P1": whole[..., None]}, np.array([2.0]), {"P1": whole})
    >>> c = consistency(twice, "P1", w)
    >>> round(c.slope, 6), round(c.correlation, 6), c.shift < 0.1, c.ok
    (2.0, 1.0, True, True)
    """
    if not draws.shape[-1]:
        return None
    total = (found.log_likelihood[name] @ found.multiplicity).reshape(-1)
    whole = found.images[name].reshape(-1)
    flat = draws.reshape(-1, draws.shape[-1])
    apart = total - total.mean(), whole - whole.mean()
    slope = float(apart[0] @ apart[1] / (apart[1] @ apart[1]))
    correlation = float(apart[0] @ apart[1] / np.sqrt((apart[0] @ apart[0]) * (apart[1] @ apart[1])))
    weight = total - whole
    weight = np.exp(weight - logsumexp(weight))
    shift = float(np.max(np.abs(weight @ flat - flat.mean(axis=0)) / flat.std(axis=0)))
    return Consistency(slope, correlation, shift)


# ---------------------------------------------------------------------- whole images


def image_waic(fit: Fit) -> Elpd:
    """WAIC with whole images left out.

    Examples
    --------
    ``image_waic(result["P1"]).elpd`` after ``result = infer(...)``.
    """
    values = judged(fit).log_likelihood
    return waic(values.reshape(-1, values.shape[-1]))


def image_loo(result: Result, fit: Fit) -> tuple[Elpd, tuple[str, ...]]:
    """Leave-one-image-out, by Pareto-smoothed importance sampling where that holds, else from the posterior without the image.

    Where Pareto k exceeds 0.7 the posterior of the other images is found anew on the pool, which costs no
    simulation. With one image there is none left: its predictive density is then the evidence.

    Parameters
    ----------
    result : Result
    fit : Fit
        One of the result's.

    Returns
    -------
    Elpd
    tuple of str
        Images whose Pareto k is above 0.7 and the posterior without which the pool does not cover: their terms are unreliable.

    Examples
    --------
    ``elpd, uncovered = image_loo(result, result["P1"])`` after ``result = infer(...)``.
    """
    found = loo(judged(fit).log_likelihood)
    assert found.pareto_k is not None
    pointwise, uncovered = found.pointwise.copy(), []
    bad = np.flatnonzero((found.pareto_k > K_BAR) | (len(result.observations) == 1)) if fit.model.terms else np.zeros(0, dtype=int)
    for i in bad:
        value = _without_image(result, fit, int(i))
        if value is None:
            uncovered.append(result.observations[i].name)
        else:
            pointwise[i] = value
    se = float(np.sqrt(len(pointwise) * pointwise.var()))
    rest = found.pareto_k[[i for i in range(len(pointwise)) if i not in bad or result.observations[i].name in uncovered]]
    worst = float(rest.max()) if len(rest) and np.isfinite(rest.max()) else None
    exact = len(bad) - len(uncovered)
    p = found.p + float(found.pointwise.sum() - pointwise.sum())
    return replace(found, elpd=float(pointwise.sum()), se=se, p=p, pointwise=pointwise, pareto_k_max=worst, exact=exact), tuple(uncovered)


def _without_image(result: Result, fit: Fit, place: int) -> float | None:
    """Log density of one image under the posterior of the others; None where the pool does not reach that posterior."""
    others = [o for i, o in enumerate(result.observations) if i != place]
    if not others:
        return log_evidence(result, fit)[0]
    kind, smooth = judged(fit).kind, fit.smooth[judged(fit).kind]
    rng = np.random.default_rng(np.random.SeedSequence([result.seed, 37, place, *np.frombuffer(fit.model.name.encode(), np.uint8)]))
    draws = explore(smooth, others, kind, rng)
    for _ in range(_PASSES):
        centre, cov = draws.mean(axis=0), np.atleast_2d(np.cov(draws.T))
        try:
            smooth = SmoothEmulator.fit(result.emulator, fit.parameters, centre, cov, rng, radius=_RADIUS)
        except CheckError:
            return None
        draws = explore(smooth, others, kind, rng)
        if np.all(np.abs(draws.mean(axis=0) - centre) < _STILL * np.sqrt(np.diag(cov))):
            break
    else:
        return None
    some, q = everywhere(result, fit, draws[:: max(1, len(draws) // 64)]), len(result.emulator.names)
    support = np.min([image.reweighting.support(some[name][:, :q]) for name, image in result.emulator.images.items()], axis=0)
    if np.mean(support < SUPPORT_BAR) > 0.05:
        return None
    values = log_likelihoods(smooth, [result.observations[place]], kind, draws)[:, 0]
    return float(logsumexp(values) - np.log(len(values)))


# ---------------------------------------------------------------------- differences and stacking


def difference(one: Elpd, other: Elpd, multiplicity: NDArray[np.float64] | None = None) -> tuple[float, float]:
    """elpd of one model less another's over the same points, and the standard error of that difference.

    Examples
    --------
    >>> a, b = (Elpd(p.sum(), 0.0, 0.0, p) for p in (np.array([-1.0, -2.0]), np.array([-1.5, -1.5])))
    >>> [round(v, 4) for v in difference(a, b)]
    [0.0, 0.7071]
    """
    apart = one.pointwise - other.pointwise
    weight = np.ones(len(apart)) if multiplicity is None else multiplicity
    n = weight.sum()
    mean = weight @ apart / n
    return float(n * mean), float(np.sqrt(weight @ (apart - mean) ** 2))


def stacking_weights(pointwise: NDArray[np.float64], multiplicity: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Weights of the mixture of predictive laws that predicts left-out points best (Yao et al., Bayesian Anal. 13, 917, 2018, eq. 5).

    Maximises sum_i m_i log sum_k w_k p_ik over the simplex, a concave function.

    Parameters
    ----------
    pointwise : ndarray, shape (points, models)
        Log predictive density of each point when left out.
    multiplicity : ndarray, shape (points,), optional

    Returns
    -------
    ndarray, shape (models,)
        They sum to 1. With equal rows the answer is not unique and is the one of equal weights.

    Examples
    --------
    A model that is better by a factor of 3 on half of the points and worse by 3 on the other half gets half:

    >>> stacking_weights(np.log(np.array([[3.0, 1.0], [1.0, 3.0]]))).round(3).tolist()
    [0.5, 0.5]
    """
    weight = np.ones(len(pointwise)) if multiplicity is None else multiplicity
    weight = weight / weight.sum()
    p = np.exp(pointwise - pointwise.max(axis=1, keepdims=True))
    k = p.shape[1]
    found = minimize(
        lambda w: -float(weight @ np.log(p @ w)),
        np.full(k, 1 / k),
        jac=lambda w: -(weight @ (p / (p @ w)[:, None])),
        method="SLSQP",
        bounds=[(0.0, 1.0)] * k,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(k)},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    w = np.clip(found.x, 0.0, None)
    return w / w.sum()
