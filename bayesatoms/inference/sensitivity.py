"""Label sensitivity: which couplings rest on how the images were labelled.

The chains of a result are looked at once more through other labels of the same images, and its draws
reweighted by the ratio of the likelihoods. NUTS does not run, and nothing is simulated unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..montecarlo.pool import Pool
from ..observation import Observation
from .campaign import Campaign, Region
from .densities import log_prior, pool_log_likelihoods, scoring
from .parameters import Parameters
from .posterior import Fit, Posterior, Result

_DRAWS = 2000  # of each posterior that are reweighted
_FEW = 0.1  # effective share of them below which they say little: a mean moved by 1.5 standard deviations
_STEPS = 30  # to a new mode
_COVERED = 0.5  # chains of support that an answer needs: some 50 records, so its mean is good to 0.15 sd
_NOISE = 0.1  # standard deviations that a mean moves by Monte Carlo alone: no verdict about zero turns on it


class Estimate(NamedTuple):
    """A coupling: mean, standard deviation and 95 % interval, in kT at formation."""

    mean: float
    sd: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """What the interval says about zero: 1 above, -1 below, 0 undecided."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Row:
    """One coupling of one model under one labelling.

    `shift` is in standard deviations of the main posterior; `method` "reweighted" (the main draws), "laplace"
    (normal, at the mode on the same chains), "simulated" (the rounds of `infer` with further chains) or "not covered":
    then there is no estimate, and `why` says what is missing. `effective` is the effective number of the reweighted draws.
    """

    labelling: str
    model: str
    coupling: str
    estimate: Estimate | None
    shift: float
    method: str
    effective: float
    why: str = ""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How the couplings move: `given` by (model, coupling) as labelled, a row for each of them and each labelling."""

    given: Mapping[tuple[str, str], Estimate]
    rows: Sequence[Row]

    def others(self, model: str, coupling: str) -> dict[str, Estimate | None]:
        """Estimates of one coupling by labelling, None where the chains do not cover it."""
        return {r.labelling: r.estimate for r in self.rows if (r.model, r.coupling) == (model, coupling)}

    @property
    def sensitive(self) -> tuple[tuple[str, str], ...]:
        """Couplings, as (model, coupling), that some labelling moves."""
        return tuple(key for key, e in self.given.items() if any(moves(e, o) for o in self.others(*key).values() if o is not None))

    def sentences(self) -> list[str]:
        """One for every coupling."""
        return [sentence(f"{model}: {name}", e, self.others(model, name)) for (model, name), e in self.given.items()]

    def __str__(self) -> str:
        return "\n".join(self.sentences())


def moves(given: Estimate, other: Estimate) -> bool:
    """Whether a labelling matters: the mean moves by over one standard deviation, or what the interval says about zero changes.

    Examples
    --------
    >>> given = Estimate(-0.28, 0.1, -0.48, -0.08)
    >>> moves(given, Estimate(-0.22, 0.1, -0.42, -0.02)), moves(given, Estimate(-0.19, 0.1, -0.39, 0.01))
    (False, True)
    """
    shift = abs(other.mean - given.mean) / given.sd
    return bool(shift > 1 or (other.sign != given.sign and shift > _NOISE))


def sentence(name: str, given: Estimate, others: Mapping[str, Estimate | None]) -> str:
    """What other labellings do to one coupling.

    Examples
    --------
    >>> print(sentence("w1", Estimate(-0.28, 0.1, -0.48, -0.08), {"authors": Estimate(-0.01, 0.12, -0.25, 0.23)}))
    w1 is label-sensitive: -0.28 ± 0.10 as labelled, -0.01 ± 0.12 under 'authors'.
    """
    known = {label: e for label, e in others.items() if e is not None}
    moved = {label: e for label, e in known.items() if moves(given, e)}
    said = f"{_figures(given)} as labelled"
    if moved:
        text = f"{name} is label-sensitive: {said}, {_under(moved)}."
    elif known:
        text = f"{name} is not label-sensitive: {said}, {_under(known)}."
    else:
        text = f"{name}: {said}."
    missing = " and ".join(repr(label) for label in others if label not in known)
    return f"{text} The chains do not cover {missing}: run infer with its labels and reuse." if missing else text


def _under(estimates: Mapping[str, Estimate]) -> str:
    return ", ".join(f"{_figures(e)} under {label!r}" for label, e in estimates.items())


def _figures(e: Estimate) -> str:
    return f"{e.mean:.2f} ± {e.sd:.2f}"


@threadpool_limits.wrap(limits=1, user_api="blas")
def label_sensitivity(
    result: Result, alternatives: Mapping[str, Sequence[Observation] | Observation], *, simulate: bool = False
) -> Sensitivity:
    """How the calibrated posterior of each coupling moves under other labellings of the same images.

    Parameters
    ----------
    result : Result
    alternatives : mapping of labelling to observations
        Images are matched by name; those not given keep their labels.
    simulate : bool
        Whether to run the chains that are missing where a labelling is not covered, by the rounds of `infer`.

    Returns
    -------
    Sensitivity
        Printing it gives a sentence for each coupling.

    Raises
    ------
    InputError
        If an image is not one of the result's, or the result does not know its chains.

    Notes
    -----
    The operator is applied to the stored snapshots anew, with the same random numbers, and the draws are weighted by
    the ratio of the likelihoods on the two pools. Where fewer than a tenth of the draws are effective, the posterior
    is approximated by a normal law at its mode (Laplace), with the Fisher information of linear response. Where the
    chains do not support that mode and its surroundings, no numbers are given.

    Examples
    --------
    ``print(label_sensitivity(result, {"authors": images}))`` after ``result = infer(...)``.
    """
    if result.simulated is None:
        raise InputError("this result does not know its chains; expected one that infer has returned")
    if any(not fit.parameters.shared for fit in result.fits.values()):
        raise InputError("labels are compared for couplings shared by all images; this result has nuisances: infer again without them")
    fits = [fit for fit in result.fits.values() if fit.model.terms]
    given = {(f.model.name, n): e for f in fits for n, e in zip(f.model.names, estimates(f.posteriors["calibrated"]), strict=True)}
    rows: list[Row] = []
    for label, images in alternatives.items():
        observations = _relabelled(result, label, [images] if isinstance(images, Observation) else images)
        campaign = _campaign(result, observations)
        if not campaign.notes:
            campaign.gather(result.simulated.points)
        answers = {fit.model.name: _moved(result, campaign, fit) for fit in fits}
        if simulate and not all(a.found for a in answers.values()):
            regions = [r for r in _campaign(result, observations).run() if r.kind == "calibrated"]
            answers |= {r.model.name: _drawn(r) for r in regions if not answers[r.model.name].found}
        for (model, name), before in given.items():
            a = answers[model]
            after = a.found[result[model].model.names.index(name)] if a.found else None
            shift = np.nan if after is None else (after.mean - before.mean) / before.sd
            rows.append(Row(label, model, name, after, shift, a.method, a.effective, a.why))
    return Sensitivity(given, rows)


def estimates(posterior: Posterior) -> list[Estimate]:
    """Each coupling of a posterior."""
    return _estimates(posterior.flat, None)


def _relabelled(result: Result, label: str, images: Sequence[Observation]) -> list[Observation]:
    """All images of the result, those of a labelling in the places of their names."""
    names = [o.name for o in result.observations]
    for o in images:
        if o.name not in names:
            raise InputError(f"labelling {label!r} has an image {o.name!r}; the result has {', '.join(names)}")
    other = {o.name: o.with_environments(result.statistic.environments) for o in images}
    return [other.get(o.name, o) for o in result.observations]


def _campaign(result: Result, observations: Sequence[Observation]) -> Campaign:
    """The result's models and chains for other labels; in a pool of its own, so that the result's stays as it is."""
    return Campaign.prepare(
        [fit.model for fit in result.fits.values()], observations, seed=result.seed, pool=Pool(), statistic=result.statistic,
        settings=replace(result.settings, support=_COVERED), workers=1, report=lambda *_: None, past=result.simulated,
    )  # fmt: skip


class _Answer(NamedTuple):
    """Estimates of one model's couplings if there are any, how they were found, effective draws, and what is missing."""

    found: list[Estimate] | None
    method: str
    effective: float
    why: str = ""


def _moved(result: Result, campaign: Campaign, fit: Fit) -> _Answer:
    """What one model's posterior becomes, without new chains."""
    if campaign.emulator is None:
        return _Answer(None, "not covered", 0.0, "; ".join(campaign.notes))
    posterior = fit.posteriors["calibrated"]
    draws = posterior.flat[:: max(1, len(posterior.flat) // _DRAWS)]
    union = draws @ campaign.emulator.embed(fit.model)
    ratio = pool_log_likelihoods(campaign.emulator, campaign.observations, "calibrated", union).sum(axis=1)
    ratio -= pool_log_likelihoods(result.emulator, result.observations, "calibrated", union).sum(axis=1)
    weights = np.exp(ratio - ratio.max())
    weights /= weights.sum()
    effective = float(1 / (weights**2).sum())
    if effective > _FEW * len(draws) and campaign.emulator.support(weights @ union) > _COVERED:
        return _Answer(_estimates(draws, weights), "reweighted", effective)
    return _laplace(campaign, fit, effective)


def _laplace(campaign: Campaign, fit: Fit, effective: float) -> _Answer:
    """Normal approximation at the mode, found by Fisher scoring on the pool; covered if it is supported to one deviation each way."""
    emulator, model = campaign.emulator, fit.model
    assert emulator is not None
    embed, w = emulator.embed(model), campaign.start(Parameters.of(model, campaign.observations), None)[0]
    if emulator.support(w @ embed) < _COVERED:
        w = fit.posteriors["calibrated"].mean  # where the chains were put
    for _ in range(_STEPS):
        parts = [scoring(emulator, model, o, w) for o in campaign.observations]
        pull, stiff = _prior(model, w)
        root = np.linalg.cholesky(np.linalg.inv(sum(i for i, _ in parts) + stiff))
        step = root.T @ (sum(s for _, s in parts) + pull)
        w = w + root @ step / max(1.0, float(np.linalg.norm(step)))  # one standard deviation at most: the slope is local
        if np.linalg.norm(step) < 0.01:
            break
    about = np.vstack([w, w + root.T, w - root.T])
    support = min(emulator.support(v @ embed) for v in about)
    if not (support >= _COVERED and np.isfinite(log_prior(model, about)).all() and np.linalg.norm(step) < 0.01):
        return _Answer(None, "not covered", effective, f"support {support:.2f} of a chain about the mode, expected {_COVERED}")
    sd = np.sqrt((root**2).sum(axis=1))
    return _Answer(
        [Estimate(float(m), float(s), float(m - 1.96 * s), float(m + 1.96 * s)) for m, s in zip(w, sd, strict=True)], "laplace", effective
    )


def _prior(model: Hamiltonian, w: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope of the log prior and minus its curvature, where that is positive, by differences; shapes (k,), (k, k)."""
    h = 1e-3 * np.eye(len(w))
    up, here, down = log_prior(model, w + h), log_prior(model, w[None]), log_prior(model, w - h)
    slope, curvature = (up - down) / 2e-3, (2 * here - up - down) / 1e-6
    inside = np.isfinite(slope) & np.isfinite(curvature)
    return np.where(inside, slope, 0.0), np.diag(np.where(inside, np.maximum(curvature, 0.0), 0.0))


def _drawn(region: Region) -> _Answer:
    """What further chains gave."""
    if region.settled:
        return _Answer(_estimates(region.draws, None), "simulated", 0.0)
    return _Answer(None, "not covered", 0.0, f"the posterior still moves, support {region.support:.2f} of a chain at its outer draws")


def _estimates(draws: NDArray[np.float64], weights: NDArray[np.float64] | None) -> list[Estimate]:
    weights = np.full(len(draws), 1 / len(draws)) if weights is None else weights
    mean = weights @ draws
    sd = np.sqrt(weights @ (draws - mean) ** 2)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0, weights=weights, method="inverted_cdf")
    return [Estimate(*map(float, row)) for row in zip(mean, sd, low, high, strict=True)]
