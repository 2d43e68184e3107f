"""The posterior-predictive check across images: each is left out in turn and predicted from the others.

The posterior of the others is found on the chains that the result has in its pool, and more are run only where
these are too few. What is predicted is the histogram of local environments as the left-out image would show it, at
its own composition: its window, its label errors, the spread of the posterior and the noise of one sample all count.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..errors import CheckError, InputError
from ..montecarlo.executors import Executor
from ..montecarlo.pool import Pool
from ..observation import Observation
from ..progress import Progress, reporter
from .campaign import Campaign
from .criteria import judged
from .densities import explore, log_likelihoods
from .distance import squared_distance
from .emulator import SUPPORT_BAR, Emulator, ImageEmulator
from .misfit import groups
from .posterior import Fit, Result
from .predictive import composition, re_estimated
from .reuse import Point
from .smooth import SmoothEmulator
from .threads import side_by_side

LEVELS = (0.5, 0.9)  # of the predictive intervals
LEAST = 5.0  # expected counts of a class that stands alone; rarer ones join their parent
_ROUNDS = 4  # in which chains are added, at most
_PASSES = 6  # at a posterior on the chains there are: each may widen its region by no more than the radius
_RADIUS = 3.0  # of a smooth emulator for a posterior without one image, which is wide and near the pool's edge
_STILL = 0.3  # standard deviations by which a mean may move between passes, and logarithm of a width
_SCATTER = 50  # different draws without which a width was not found
_WIDE = 1.6  # standard deviations of the new chains' places over those of the posterior
_LOOK = 256  # draws at which support is looked at
_TAIL = 0.05  # share of the draws that may lie worse than the bar
_BLOCK = 32  # posterior draws handled at once
_FIXED = 1e-6  # counts by which a group must scatter: one that the composition determines is nothing to predict


@dataclass(frozen=True, eq=False)
class Shown:
    """How one image compares with what was predicted of it.

    `histogram` (n_classes,) is the predictive mean at the image's own composition, `distance` the statistical distance s
    (radians) from it to the observed one, `expected` the median distance of the images that were predicted, and
    `p_value` the share of these that lie as far. `coverage` gives the share of the `classes` (those of fewer than 5
    expected counts pooled) whose count lies inside its central predictive interval, by the interval's level; NaN
    where the composition determines all of them.
    """

    histogram: NDArray[np.float64]
    distance: float
    expected: float
    p_value: float
    coverage: Mapping[float, float]
    classes: int


@dataclass(frozen=True, eq=False)
class Prediction:
    """One image as one model predicts it from the others.

    `n` environments; `mean` and `sd` (p,) of the posterior of the others, in the model's parameters (kT at formation);
    `log_density` is the logarithm of the image's likelihood averaged over it (of the statistic, given the composition),
    with the error of so many draws, to which the pool's own comes; `support` the 5 % quantile of the draws' in the
    image's box, in chains.
    """

    model: str
    image: str
    n: int
    shown: Shown
    log_density: float
    log_density_error: float
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    support: float

    def plain(self) -> dict[str, Any]:
        """Everything but the histogram as numbers and text, for a JSON file."""
        s = self.shown
        inside = {f"coverage_{100 * q:.0f}": c if s.classes else None for q, c in s.coverage.items()}
        return {
            "model": self.model, "image": self.image, "environments": self.n, "distance": s.distance, "expected_distance": s.expected,
            "p_value": s.p_value, "classes": s.classes, **inside,
            "log_density": self.log_density, "log_density_error": self.log_density_error,
            "mean": self.mean.tolist(), "sd": self.sd.tolist(), "support": self.support,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The table: one row for each model and image left out, by model; `chains` were run for it beside those of the result."""

    rows: tuple[Prediction, ...]
    draws: int
    replicates: int
    seed: int
    chains: int = 0
    warnings: tuple[str, ...] = ()

    def __getitem__(self, place: tuple[str, str]) -> Prediction:
        for row in self.rows:
            if (row.model, row.image) == place:
                return row
        known = ", ".join(f"{r.model}, {r.image}" for r in self.rows)
        raise InputError(f"there is no prediction of {place!r}; expected model and image, one of {known}")

    @property
    def log_density(self) -> dict[str, float]:
        """Total log predictive density of each model, the best first."""
        names = dict.fromkeys(r.model for r in self.rows)
        total = {name: sum(r.log_density for r in self.rows if r.model == name) for name in names}
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def plain(self) -> dict[str, Any]:
        """The table as dicts, lists, numbers and text, for a JSON file."""
        return {
            "rows": [row.plain() for row in self.rows], "log_density": self.log_density, "draws": self.draws,
            "replicates": self.replicates, "seed": self.seed, "chains": self.chains, "warnings": list(self.warnings),
        }  # fmt: skip

    def __str__(self) -> str:
        wide = max(8, *(len(r.image) + 2 for r in self.rows))
        head = f"{'model':<8}{'left out':<{wide}}{'N':>6}{'s':>9}{'s exp.':>9}{'p':>9}{'in 50 %':>10}{'in 90 %':>10}{'ln density':>12}"
        lines = [head]
        for r in self.rows:
            s = r.shown
            inside = [f"{round(s.coverage[q] * s.classes) if s.classes else 0}/{s.classes}" for q in LEVELS]
            numbers = f"{r.n:>6}{s.distance:>9.4f}{s.expected:>9.4f}{s.p_value:>9.4f}{inside[0]:>10}{inside[1]:>10}{r.log_density:>12.2f}"
            lines.append(f"{r.model:<8}{r.image:<{wide}}{numbers}")
        total = self.log_density
        best = next(iter(total))
        apart = ", ".join(f"{name} {value - total[best]:+.2f}" for name, value in total.items() if name != best)
        lines.append(f"Log predictive density, all images: {best} {total[best]:.2f} is the greatest" + (f"; {apart}." if apart else "."))
        return "\n".join([*lines, *(f"Warning: {w}" for w in self.warnings)])


@threadpool_limits.wrap(limits=1, user_api="blas")
def leave_one_image_out(
    result: Result,
    *,
    seed: int,
    workers: int | Executor = 1,
    progress: bool | Progress | None = None,
    draws: int = 200,
    replicates: int = 10,
) -> LeftOut:
    """Leave one image out at a time, infer from the others, and predict it.

    Parameters
    ----------
    result : Result
        Of two images or more. Its chains are reweighted; new ones run where they do not reach a posterior.
    seed : int
    workers : int or Executor
        Chains simulated, and predictions made, at once; the numbers do not depend on it.
    progress : bool or callable(stage, done, total), optional
    draws : int
        Of each posterior, at which images are predicted.
    replicates : int
        Images simulated at each of them.

    Returns
    -------
    LeftOut
        Printing it gives the table.

    Raises
    ------
    InputError
        If there is one image only, nothing is to be drawn, or an image's composition or label errors are parameters:
        without the image nothing is known of those.
    CheckError
        If chains that were added did not reach the posterior of the others.

    Notes
    -----
    The p-value compares the image with images simulated at the draws, each by its statistical distance from the
    predictive mean re-estimated at its own composition. Image and replicates are measured alike, by a distance that
    knows of no draw, so it is uniform if the model and its prior are right, the spread of the posterior included: a
    cross-validatory predictive check (Marshall and Spiegelhalter, Stat. Med. 22, 1649, 2003).
    The random alloy has no couplings: its mean is exact, its images are the pool's at zero coupling.

    Examples
    --------
    ``print(leave_one_image_out(infer(models, images, seed=1), seed=1))``
    """
    import numpyro

    numpyro.enable_x64()
    _check(result, draws, replicates)
    report, threads = reporter(progress), workers if isinstance(workers, int) else 1
    cases = [_Case.start(fit, i) for fit in result.fits.values() if fit.model.terms for i in range(len(result.observations))]
    emulator, campaign = result.emulator, None
    for number in range(_ROUNDS + 1):
        waiting = [c for c in cases if not c.settled]
        found = iter(side_by_side(partial(_find, result, emulator, seed, number), waiting, threads))
        cases = [c if c.settled else next(found) for c in cases]
        wanted = [c for c in cases if not c.settled]
        if not wanted or number == _ROUNDS or result.simulated is None:
            break
        campaign = campaign or _campaign(result, workers, report)
        points = [p for c in wanted for p in _points(result, c, _places(result, c, seed, number))]
        emulator = campaign.gather(list(dict.fromkeys(points)))
    if lost := next((c for c in cases if c.smooth is None), None):
        raise CheckError(
            f"model {lost.fit.model.name}: the chains do not reach the posterior without {result.observations[lost.place].name}; "
            "infer with more points a round, or with a narrower prior"
        )
    # a draw at which the image's own box has no records gets a chain of its own there
    bare = [p for c in cases for p in _points(result, c, _bare(result, emulator, c, draws), (result.observations[c.place],))]
    if bare and result.simulated is not None:
        campaign = campaign or _campaign(result, workers, report)
        emulator = campaign.gather(list(dict.fromkeys(bare)))
    known = {(c.fit.model.name, c.place): c for c in cases}
    pairs = [(fit, i) for fit in result.fits.values() for i in range(len(result.observations))]
    done = itertools.count(1)

    def row(pair: tuple[Fit, int]) -> Prediction:
        fit, place = pair
        made = _predict(result, emulator, fit, place, known.get((fit.model.name, place)), seed, draws, replicates)
        report("leave out", next(done), len(pairs))
        return made

    rows = tuple(side_by_side(row, pairs, threads))
    return LeftOut(rows, draws, replicates, seed, campaign.pool.simulated if campaign else 0, _warnings(result, cases))


def _check(result: Result, draws: int, replicates: int) -> None:
    if len(result.observations) < 2:
        raise InputError(
            f"one image, {result.observations[0].name}: without it none is left to infer from; expected two or more "
            "(cut a large image into regions, or see the p-values of compare)"
        )
    if draws < 2 or replicates < 1:
        raise InputError(f"draws={draws}, replicates={replicates}; expected at least 2 draws and 1 replicate")
    for fit in result.fits.values():
        own = [fit.parameters.names[i] for places in fit.parameters.own.values() for i in places]
        if own:
            raise InputError(
                f"model {fit.model.name} has parameters of single images ({', '.join(own)}), of which nothing is known without the image; "
                "expected none: infer without these nuisances"
            )


# ---------------------------------------------------------------------- the posterior of the others


@dataclass(frozen=True, eq=False)
class _Case:
    """One model without the image at `place`: where its posterior is believed to be, draws of it, and whether they are to be trusted.

    `support` (m,) is that of the first draws, in the worst image; `still` says that the last pass moved nothing.
    """

    fit: Fit
    place: int
    centre: NDArray[np.float64]
    cov: NDArray[np.float64]
    draws: NDArray[np.float64]
    support: NDArray[np.float64]
    smooth: SmoothEmulator | None = None
    still: bool = False
    settled: bool = False

    @classmethod
    def start(cls, fit: Fit, place: int) -> _Case:
        full = judged(fit).full  # the posterior with the image is where to look first, no more
        return cls(fit, place, full.mean(axis=0), np.atleast_2d(np.cov(full.T)), full[:0], np.zeros(0))


def _generator(seed: int, purpose: int, fit: Fit, place: int, number: int = 0) -> np.random.Generator:
    words = np.frombuffer(fit.model.name.encode(), np.uint8)
    return np.random.default_rng(np.random.SeedSequence([seed, 43, purpose, place, number, *words]))


def _find(result: Result, emulator: Emulator, seed: int, number: int, case: _Case) -> _Case:
    """The posterior of the other images on the chains there are: fit polynomials where it is believed to be, draw, look again there."""
    fit, rng = case.fit, _generator(seed, 0, case.fit, case.place, number)
    others = [o for i, o in enumerate(result.observations) if i != case.place]
    centre, cov, draws, smooth, still = case.centre, case.cov, case.draws, None, False
    for _ in range(_PASSES):
        try:
            wider = SmoothEmulator.fit(emulator, fit.parameters, centre, cov, rng, radius=_RADIUS)
            found = explore(wider, others, judged(fit).kind, rng)
        except CheckError:
            still = False  # the region outgrew the pool: chains are wanted at the draws that it was found by
            break
        before, smooth, draws, centre = (centre, cov), wider, found, found.mean(axis=0)
        enough = len(np.unique(draws, axis=0)) >= _SCATTER
        cov = np.atleast_2d(np.cov(draws.T)) if enough else cov
        if still := enough and _moved(before, (centre, cov)) < _STILL:
            break
    some = draws[:_LOOK]
    support = _support(result, emulator, fit, smooth, some) if len(some) else np.zeros(0)
    settled = bool(still and np.quantile(support, _TAIL) > result.settings.support)
    return replace(case, centre=centre, cov=cov, draws=draws, support=support, smooth=smooth, still=still, settled=settled)


def _moved(before: tuple[NDArray, NDArray], after: tuple[NDArray, NDArray]) -> float:
    """Largest shift of a mean, in standard deviations, or change of a width, in its logarithm."""
    old, sd = np.sqrt(np.diag(before[1])), np.sqrt(np.diag(after[1]))
    return float(max((np.abs(after[0] - before[0]) / sd).max(), np.abs(np.log(sd / old)).max()))


def _support(
    result: Result, emulator: Emulator, fit: Fit, smooth: SmoothEmulator | None, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least support (m,) of parameters (m, p) among the images."""
    known = None if smooth is None else smooth.support(values)
    if known is not None:  # a regression on chains, which needs none just there
        return known
    return np.min([_held(emulator, fit, o, values) for o in result.observations], axis=0)


def _held(emulator: Emulator, fit: Fit, o: Observation, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """That of one image by reweighting."""
    return emulator.images[o.name].reweighting.support(fit.parameters.union(o.name, values, emulator.embed(fit.model)))


def _places(result: Result, case: _Case, seed: int, number: int) -> NDArray[np.float64]:
    """Where chains are wanted (n, p): half of them at the draws that lack support, the rest about the posterior, wider than it."""
    n = max(result.settings.points, 2 * len(case.centre))
    z = _generator(seed, 1, case.fit, case.place, number).normal(size=(n, len(case.centre)))
    places = case.centre + _WIDE * z @ np.linalg.cholesky(case.cov).T
    thin = case.draws[np.argsort(case.support, kind="stable")[: 4 * (n // 2) : 4]] if len(case.support) else case.draws
    places[: len(thin)] = thin[:n]
    return places


def _bare(result: Result, emulator: Emulator, case: _Case, draws: int) -> NDArray[np.float64]:
    """Those of a case's first draws at which the left-out image's box has no support."""
    some = np.unique(case.draws[:draws], axis=0)
    return some[_held(emulator, case.fit, result.observations[case.place], some) < SUPPORT_BAR]


def _points(result: Result, case: _Case, places: NDArray[np.float64], observations: Sequence[Observation] | None = None) -> list[Point]:
    """Chains at parameters (n, p), in every image's box or in those given."""
    s, embed = result.settings, result.emulator.embed(case.fit.model)
    return [
        Point(tuple(w), s.samples, s.sweeps, s.burn, result.seed, o.name)
        for o in observations or result.observations
        for w in case.fit.parameters.union(o.name, places, embed).tolist()
    ]


def _campaign(result: Result, workers: int | Executor, report: Progress) -> Campaign:
    """A campaign that has all chains of the result, to add more; what it runs stays with it."""
    fits = list(result.fits.values())
    campaign = Campaign.prepare(
        [f.model for f in fits], result.observations, seed=result.seed, pool=Pool(), settings=result.settings, workers=workers,
        report=report, statistic=result.statistic, past=result.simulated, kinds=tuple(dict.fromkeys(judged(f).kind for f in fits)),
    )  # fmt: skip
    assert result.simulated is not None
    campaign.gather(result.simulated.points)
    return campaign


# ---------------------------------------------------------------------- the prediction


def _predict(
    result: Result, emulator: Emulator, fit: Fit, place: int, case: _Case | None, seed: int, draws: int, replicates: int
) -> Prediction:
    """One row of the table; without a case the random alloy's."""
    o, rng = result.observations[place], _generator(seed, 2, fit, place)
    image = emulator.images[o.name]
    if case is None:
        shown = predictive_check(image, o, None, rng, draws * replicates)
        density, support = float(judged(fit).log_likelihood[0, 0, place]), float(image.reweighting.support(image.random))
        return Prediction(fit.model.name, o.name, o.n, shown, density, 0.0, np.zeros(0), np.zeros(0), support)
    assert case.smooth is not None
    some = case.draws[:draws]
    shown = predictive_check(image, o, fit.parameters.union(o.name, some, emulator.embed(fit.model)), rng, replicates)
    values = log_likelihoods(case.smooth, [o], judged(fit).kind, case.draws)[:, 0]
    top = values.max()
    likelihood = np.exp(values - top)
    density, error = float(top + np.log(likelihood.mean())), float(likelihood.std() / likelihood.mean() / len(values) ** 0.5)
    support = float(np.quantile(_held(emulator, fit, o, some), _TAIL))
    return Prediction(fit.model.name, o.name, o.n, shown, density, error, case.draws.mean(axis=0), case.draws.std(axis=0, ddof=1), support)


def predictive_check(
    image: ImageEmulator, observation: Observation, union: NDArray[np.float64] | None, rng: np.random.Generator, replicates: int = 10
) -> Shown:
    """Compare an image with those that its box shows at couplings drawn from a posterior that has not seen it.

    Parameters
    ----------
    image : ImageEmulator
        The pool's answer for the image's box, window and label errors.
    observation : Observation
    union : ndarray, shape (m, q), or None
        Union couplings, kT at formation; None is the random alloy, whose mean histogram is exact.
    rng : numpy.random.Generator
    replicates : int
        Images simulated at each of the couplings (in all, for the random alloy).

    Returns
    -------
    Shown

    Notes
    -----
    Counts are compared less the predictive mean at their own composition. Intervals are central; ties among whole
    numbers are broken at random, so that the coverage is right for small counts as well.

    Examples
    --------
    ``predictive_check(result.emulator.images["one"], result.observations[0], None, np.random.default_rng(0), 2000)``.
    """
    o, e, classes = observation, observation.environments, len(observation.counts)
    at = np.zeros((1, image.reweighting.features.shape[1])) if union is None else union
    mean, counts = np.zeros(classes), []
    for block in np.array_split(at, -(-len(at) // _BLOCK)):
        weights = image.reweighting.weights(block)
        mean += (weights @ image.table[:, -classes:]).sum(axis=0) / len(at)
        cumulative = np.cumsum(weights, axis=1, out=weights)
        # a sum of many weights may fall short of the last random number by rounding
        picks = [np.minimum(np.searchsorted(row, rng.random(replicates) * row[-1]), len(row) - 1) for row in cumulative]
        counts.append(image.counts[np.concatenate(picks)])
    histogram = None if union is None else (mean / mean.sum())[None]
    own = o.composition if histogram is None else composition(e, histogram[0])
    images = np.concatenate([o.counts[None], *counts]) / o.n  # the observed one first: all are treated alike
    predicted = re_estimated(e, histogram, own, composition(e, images)[None])[0]
    s2 = squared_distance(images, predicted)
    table, _ = groups(e, o.n * mean, LEAST)  # as the box has them: nothing here depends on what was observed
    rest = o.n * (images - predicted) @ table.T
    rest = rest[:, rest[1:].std(axis=0) > _FIXED]
    below, ties = (rest[1:] < rest[0]).sum(axis=0), (rest[1:] == rest[0]).sum(axis=0)
    rank = (below + rng.random(rest.shape[1]) * (1 + ties)) / len(rest)
    coverage = {level: float((np.abs(rank - 0.5) <= level / 2).mean()) if rest.shape[1] else np.nan for level in LEVELS}
    p = float((1 + (s2[1:] >= s2[0]).sum()) / len(s2))
    return Shown(predicted[0], float(np.sqrt(s2[0])), float(np.sqrt(np.median(s2[1:]))), p, coverage, rest.shape[1])


def _warnings(result: Result, cases: Sequence[_Case]) -> tuple[str, ...]:
    """Posteriors that the chains do not cover, after all rounds."""
    return tuple(
        f"{c.fit.model.name}: the posterior without {result.observations[c.place].name} "
        f"{'still moved' if not c.still else f'has {np.mean(c.support < SUPPORT_BAR):.0%} of its draws where the chains have no support'} "
        f"after {_ROUNDS} rounds; its row is unreliable."
        for c in cases
        if not c.still or np.mean(c.support < SUPPORT_BAR) > _TAIL
    )
