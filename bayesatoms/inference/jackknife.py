"""The pool's own Monte Carlo error: what would change if other records had been drawn.

Every chain is cut into stretches; each stretch is left out in turn, and what was computed from the whole pool is
computed from the rest (Miller, Biometrika 61, 1, 1974). Stretches, because neighbouring records may still be
correlated; of every chain, because without whole chains some couplings would have no support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

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


class Stretches:
    """Every chain of a pool cut into stretches: averages without each of them, all in one pass over the records."""

    def __init__(self, whole: Reweighting, groups: int) -> None:
        lengths = whole.records.astype(int)
        self.group = group = np.concatenate([np.arange(n) * groups // n for n in lengths])
        first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.left = np.array([np.add.reduceat(group != g, first) for g in range(groups)], dtype=float)
        self.order = np.argsort(group, kind="stable")
        self.edges = np.searchsorted(group[self.order], np.arange(groups + 1))
        # every chain loses about the same share, so the mixture changes by a constant, and constants cancel
        self.whole = replace(whole, features=whole.features[self.order], log_mixture=whole.log_mixture[self.order])
        self.known: dict[tuple[bytes, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def averages(self, couplings: NDArray[np.float64], table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means (groups, m, c) of the columns of a table (n, c) at couplings (m, q), and effective records (groups, m)."""
        key = couplings.tobytes(), table.shape[1]
        if key not in self.known:
            means, squares, totals = self.whole.sums(couplings, table[self.order], self.edges)
            means, squares, totals = (part.sum(axis=0) - part for part in (means, squares, totals))
            self.known[key] = means / totals[..., None], totals**2 / squares
        return self.known[key]


@dataclass(frozen=True, eq=False)
class Rest(Reweighting):
    """A pool without one of its stretches."""

    stretches: Stretches
    group: int

    def averages(self, couplings: NDArray[np.float64], table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """As those of the pool, without the stretch."""
        means, effective = self.stretches.averages(couplings, table)
        return means[self.group], effective[self.group]


def left_out(emulator: Emulator, groups: int) -> list[Emulator]:
    """The emulator without each group of records in turn, one stretch of every chain.

    The free energies stay as they are: solved anew without whole chains they move the errors of log evidences by a
    twentieth (measured), at ten times the price. All are answered in one pass over the records, and answers remembered.

    Examples
    --------
    ``[rest.support(w) for rest in left_out(result.emulator, 8)]`` after ``result = infer(...)``.
    """
    images = {name: _without(image, groups) for name, image in emulator.images.items()}
    sides = {
        name: [tuple(_without(side, groups) for side in pair) for pair in v.sides]
        for name, v in emulator.varied.items()
        if isinstance(v, VariedEmulator)
    }
    found = []
    for g in range(groups):
        rest = {name: image[g] for name, image in images.items()}
        varied = {
            name: replace(emulator.varied[name], middle=rest[name], sides=[(low[g], high[g]) for low, high in pairs])
            for name, pairs in sides.items()
        }
        found.append(replace(emulator, images=rest, varied=varied))
    return found


def _without(image: ImageEmulator, groups: int) -> list[ImageEmulator]:
    """One image's emulator without each group."""
    r = image.reweighting
    stretches, found = Stretches(r, groups), []
    for g in range(groups):
        # infinitely probable records have no weight
        mixture = np.where(stretches.group == g, np.inf, r.log_mixture)
        own = {f.name: getattr(r, f.name) for f in fields(r)} | {"records": stretches.left[g], "log_mixture": mixture}
        traces = None if image.traces is None else _cut(image.traces, g, groups)
        found.append(replace(image, reweighting=Rest(**own, stretches=stretches, group=g), traces=traces))
    return found


def _cut(r: Reweighting, group: int, groups: int) -> Reweighting:
    """A pool whose records of one group are gone."""
    lengths = r.records.astype(int)
    keep = np.concatenate([np.arange(n) * groups // n != group for n in lengths])
    left = np.add.reduceat(keep, np.concatenate([[0], np.cumsum(lengths)[:-1]])).astype(float)
    return replace(r, features=r.features[keep], records=left, log_mixture=r.log_mixture[keep])


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
    rests = left_out(result.emulator, groups)

    def moved(name: str) -> list[float]:
        whole = _totals(result, result.emulator, name, draws[name])
        ratios = [_totals(result, rest, name, draws[name]) - whole for rest in rests]
        return [logsumexp(ratio) - np.log(len(ratio)) for ratio in ratios]

    shifts = np.array(side_by_side(moved, names, result.threads)).T
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
