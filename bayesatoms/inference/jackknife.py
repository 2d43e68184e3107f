"""The pool's own Monte Carlo error: what would change if other records had been drawn.

Every chain is cut into stretches; each stretch is left out in turn, and what was computed from the whole pool is
computed from the rest (Miller, Biometrika 61, 1, 1974). Stretches, because neighbouring records may still be
correlated; of every chain, because without whole chains some couplings would have no support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from .criteria import everywhere, judged
from .densities import pool_log_likelihoods
from .emulator import Emulator, ImageEmulator
from .posterior import Result
from .reweighting import Reweighting
from .threads import side_by_side
from .variation import VariedEmulator

GROUPS = 8
_DRAWS = 32  # posterior draws at which the pools are compared


@dataclass(frozen=True, eq=False)
class Noise:
    """Scatter of the log evidences with the records, by model name in the order `names`.

    Attributes
    ----------
    shifts : ndarray, shape (groups, models)
        Log evidence without each group of records less that with all.
    weights : ndarray, shape (models,), or None
        Posterior weights of the models. What shifts all that have weight alike, the level at the random alloy above all,
        changes no comparison and does not count.
    """

    names: tuple[str, ...]
    shifts: NDArray[np.float64]
    weights: NDArray[np.float64] | None = None

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Of the log evidences, (models, models): models share the pool, so their errors go together."""
        common = 0.0 if self.weights is None else (self.shifts @ self.weights)[:, None]
        return np.atleast_2d(jackknife_covariance(self.shifts - common))

    def error(self, name: str) -> float:
        """Standard error of one model's log evidence."""
        place = self.names.index(name)
        return float(np.sqrt(self.covariance[place, place]))


def jackknife_covariance(left_out: ArrayLike) -> NDArray[np.float64]:
    """Covariance of an estimate from its values with each group left out, shape (groups, ...) to (..., ...).

    Examples
    --------
    Of a mean it is the usual one, the variance over the number of values:

    >>> x = np.array([1.0, 2.0, 4.0, 9.0])
    >>> means = (x.sum() - x) / 3
    >>> round(float(jackknife_covariance(means[:, None])[0, 0]), 6), round(float(x.var(ddof=1) / 4), 6)
    (3.166667, 3.166667)
    """
    values = np.asarray(left_out, dtype=float)
    apart = values - values.mean(axis=0)
    return (len(values) - 1) / len(values) * apart.T @ apart


def left_out(emulator: Emulator, groups: int) -> Iterator[Emulator]:
    """The emulator without each group of records in turn, one stretch of every chain.

    The free energies stay as they are: solved anew without whole chains they move the errors of log evidences by a
    twentieth (measured), at ten times the price.

    Examples
    --------
    ``[rest.support(w) for rest in left_out(result.emulator, 8)]`` after ``result = infer(...)``.
    """
    for g in range(groups):
        images = {name: _without(image, g, groups) for name, image in emulator.images.items()}
        varied = {}
        for name, v in emulator.varied.items():
            if isinstance(v, VariedEmulator):
                sides = [tuple(_without(side, g, groups) for side in pair) for pair in v.sides]
                varied[name] = replace(v, middle=images[name], sides=sides)
        yield replace(emulator, images=images, varied=varied)


def _without(image: ImageEmulator, group: int, groups: int) -> ImageEmulator:
    rest, keep = _rest(image.reweighting, group, groups)
    parts = {field: getattr(image, field)[keep] for field in ("counts", "values", "table")}
    traces = None if image.traces is None else _rest(image.traces, group, groups)[0]
    return replace(image, reweighting=rest, traces=traces, **parts)


def _rest(r: Reweighting, group: int, groups: int) -> tuple[Reweighting, NDArray[np.bool_]]:
    lengths = r.records.astype(int)
    keep = np.concatenate([np.arange(n) * groups // n != group for n in lengths])
    left = np.add.reduceat(keep, np.concatenate([[0], np.cumsum(lengths)[:-1]])).astype(float)
    # every chain loses about the same share, so the mixture changes by a constant, and constants cancel
    return replace(r, features=r.features[keep], records=left, log_mixture=r.log_mixture[keep]), keep


def evidence_noise(result: Result, groups: int = GROUPS, weights: Mapping[str, float] | None = None) -> Noise:
    """How far the log evidence of each model moves when stretches of the chains are left out.

    The evidence without a stretch is the one with all records times the posterior mean of the ratio of the
    two likelihoods, so no integral is done again.

    Parameters
    ----------
    result : Result
    groups : int
        Stretches of every chain.
    weights : mapping of str to float, optional
        Of the models; then errors are those beside the models that have weight.

    Returns
    -------
    Noise

    Examples
    --------
    ``evidence_noise(result).error("P1")`` after ``result = infer(...)``.
    """
    names = tuple(result.fits)
    draws = {name: everywhere(result, result[name], _some(result, name)) for name in names}
    whole = {name: _totals(result, result.emulator, name, draws[name]) for name in names}

    def without(rest: Emulator) -> list[float]:
        ratios = [_totals(result, rest, name, draws[name]) - whole[name] for name in names]
        return [logsumexp(ratio) - np.log(len(ratio)) for ratio in ratios]

    shifts = np.array(side_by_side(without, left_out(result.emulator, groups), result.threads))
    return Noise(names, shifts, None if weights is None else np.array([weights[n] for n in names]))


def _some(result: Result, name: str) -> NDArray[np.float64]:
    full = judged(result[name]).full
    return full[:: max(1, len(full) // _DRAWS)][: _DRAWS if result[name].model.terms else 1]


def _totals(result: Result, emulator: Emulator, name: str, at: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    return pool_log_likelihoods(emulator, result.observations, judged(result[name]).kind, at).sum(axis=1)


def stability(
    decide: Callable[[NDArray[np.float64]], Sequence[str]],
    log_evidence: NDArray[np.float64],
    covariance: NDArray[np.float64],
    rng: np.random.Generator,
    n: int = 400,
) -> dict[str, float]:
    """How often each model remains when the log evidences (models,) move by their Monte Carlo error.

    `decide` takes the moved log evidences and returns the names that remain.

    Examples
    --------
    >>> decide = lambda z: ["A", "B"] if z[1] > z[0] - 3 else ["A"]
    >>> share = stability(decide, np.array([0.0, -3.0]), np.diag([0.01, 0.01]), np.random.default_rng(0))
    >>> share["A"], bool(0.4 < share["B"] < 0.6)
    (1.0, True)
    """
    found: dict[str, float] = {}
    covariance = np.where(np.isfinite(covariance), covariance, 0.0)
    for moved in rng.multivariate_normal(log_evidence, covariance, size=n, method="svd"):
        for name in decide(moved):
            found[name] = found.get(name, 0.0) + 1 / n
    return {name: min(1.0, round(share, 9)) for name, share in found.items()}
