"""Calibration from the pool itself: its held-out chains are synthetic images of known couplings.

Whole chains are left out in turn, the free energies solved again without them and the smooth emulator fitted
again, so nothing that an analysis uses has seen the image it is tested on. No chain is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..errors import CheckError
from ..hamiltonian import Hamiltonian
from .densities import widths
from .emulator import SUPPORT_BAR, Emulator, ImageEmulator
from .priors import prior_draws
from .quasi import Natural, from_origin
from .ranked import Calibration, Ranked
from .ranks import pit_values
from .reweighting import Reweighting
from .smooth import SmoothEmulator

if TYPE_CHECKING:
    from .posterior import Fit, Result

FOLDS = 4
DATASETS = 300
_POINTS = 2000  # draws of the prior of each synthetic data set, one of which is its truth
_RECORDS = 4000  # of each image that the quick calibration of every run works with, at most
_WHOLE = 0.99  # share of the prior that the pool must support to be tested all over


@dataclass(frozen=True, eq=False)
class Folds:
    """A pool in parts: `rests[f]` is the emulator without part f, `parts[name]` the part of every record of an image."""

    whole: Emulator
    rests: tuple[Emulator, ...]
    parts: Mapping[str, NDArray[np.int64]]


@threadpool_limits.wrap(limits=1, user_api="blas")
def held_out(
    result: Result,
    *,
    datasets: int = DATASETS,
    seed: int | None = None,
    folds: int = FOLDS,
    records: int | None = _RECORDS,
    prior: bool = False,
) -> Calibration:
    """Rank statistics of every posterior of a result, from its own chains.

    Parameters
    ----------
    result : Result
    datasets : int
        Synthetic data sets of each model and likelihood; each has one image for every image of the result.
    seed : int, optional
        The result's by default.
    folds : int
        Parts that the chains are divided into.
    records : int, optional
        Records of each image that are used, at most; all of them if None.
    prior : bool
        Draw truths from the prior where the pool supports nearly all of it; else it is never tried.

    Returns
    -------
    Calibration

    Raises
    ------
    CheckError
        If no part of the chains can be left out: too few chains.

    Notes
    -----
    A truth w' is drawn from p(w | y), y the user's images; a snapshot with the pool's weights at w' is the synthetic
    image y'; both are analysed together, p(w | y, y') being p(w | y) reweighted by the likelihood of y' under the
    emulator that has not seen the chain of that snapshot (posterior simulation-based calibration, arXiv 2502.03279).
    Draws of p(w | y) stand for it, the truth being one of them, so ranks are exactly uniform if the likelihood is right.
    Models in which an image's composition or label errors are parameters are left out.

    Examples
    --------
    ``print(held_out(infer(models, images, seed=1)))``
    """
    seed = result.seed if seed is None else seed
    parts = divide(result.emulator, folds, records)
    rows, everywhere = [], False
    # where an image's composition or label errors are parameters, a chain at one of them is no draw at another
    checked = [f for f in result.fits.values() if f.model.terms and not any(f.parameters.own.values())]
    for fit in checked:
        for kind in fit.posteriors:
            rng = np.random.default_rng(np.random.SeedSequence([seed, 17, *np.frombuffer((fit.model.name + kind).encode(), np.uint8)]))
            whole = prior and fit.parameters.shared and _supported(result.emulator, fit.model, rng)
            everywhere |= whole
            rows.append(_ranked(fit, kind, parts, datasets, rng, whole))
    settings = {"datasets": datasets, "folds": len(parts.rests), "records": records, "points": _POINTS}
    return Calibration(tuple(rows), "held-out", "prior" if everywhere else "local", seed, settings)


def divide(emulator: Emulator, folds: int, records: int | None = None) -> Folds:
    """Leave out whole chains in turn: neighbours in coupling space go to different parts, so that the rest supports what is left out.

    Raises
    ------
    CheckError
        If there are not two chains for every part.
    """
    rests: list[dict[str, ImageEmulator]] = [{} for _ in range(folds)]
    thinned, parts = {}, {}
    for name, image in emulator.images.items():
        image = _thinned(image, records)
        chains = len(image.reweighting.records)
        if chains < 2 * folds:
            raise CheckError(f"{name}: {chains} chains cannot be left out in {folds} parts; simulate more points, or ask for fewer folds")
        dealt = np.empty(chains, dtype=np.int64)
        dealt[_along(image.reweighting.couplings)] = np.arange(chains) % folds
        thinned[name], parts[name] = image, np.repeat(dealt, image.reweighting.records.astype(int))
        for f in range(folds):
            rests[f][name] = _kept(image, parts[name] != f, dealt != f)
    whole = replace(emulator, images=thinned)
    return Folds(whole, tuple(replace(emulator, images=images) for images in rests), parts)


def _along(couplings: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order of the design points along their longest direction."""
    apart = couplings - couplings.mean(axis=0)
    return np.argsort(apart @ np.linalg.svd(apart, full_matrices=False)[2][0], kind="stable")


def _thinned(image: ImageEmulator, records: int | None) -> ImageEmulator:
    """Every so manieth record of each chain, if there are more than `records`."""
    lengths = image.reweighting.records.astype(int)
    stride = 1 if records is None else -(-lengths.sum() // records)
    if stride == 1:
        return image
    keep = np.concatenate([np.arange(n) % stride == 0 for n in lengths])
    return _kept(image, keep, np.ones(len(lengths), dtype=bool))


def _kept(image: ImageEmulator, records: NDArray[np.bool_], chains: NDArray[np.bool_]) -> ImageEmulator:
    """An image's share of the pool with some records and chains, its free energies solved again."""
    r = image.reweighting
    owner = np.repeat(np.arange(len(r.records)), r.records.astype(int))
    lengths = np.bincount(owner[records], minlength=len(r.records))[chains]
    solved = Reweighting.solve(r.features[records] + r.centre, r.couplings[chains], lengths, start=r.free_energies[chains])
    return replace(
        image, reweighting=solved, counts=image.counts[records], values=image.values[records], table=image.table[records],
        slow=image.slow[chains], observed=None, traces=None,
    )  # fmt: skip


def _supported(emulator: Emulator, model: Hamiltonian, rng: np.random.Generator) -> bool:
    """Whether the pool supports (nearly) the whole prior, in every image."""
    union = prior_draws(model, 400, rng) @ emulator.embed(model)
    held = np.min([image.reweighting.support(union) for image in emulator.images.values()], axis=0) >= SUPPORT_BAR
    return bool(held.mean() >= _WHOLE)


# ---------------------------------------------------------------------- one model, one likelihood


def _ranked(fit: Fit, kind: str, folds: Folds, datasets: int, rng: np.random.Generator, whole: bool) -> Ranked:
    parameters, drawn = fit.parameters, fit.posteriors[kind].full
    points = prior_draws(parameters, _POINTS, rng) if whole else drawn[:: max(1, len(drawn) // _POINTS)][:_POINTS]
    own, embed = rng.integers(len(points), size=datasets), folds.whole.embed(fit.model)
    emulated = {} if kind == "exact" else _emulate(fit, kind, folds, points, rng, whole)
    total, lost = np.zeros((datasets, len(points))), np.zeros(datasets, dtype=bool)
    information = np.zeros((datasets, points.shape[1], points.shape[1]))
    for name, image in folds.whole.images.items():
        union = parameters.union(name, points, embed)
        picks = pick(image.reweighting, union[own], rng)
        jacobian = embed.T @ parameters.slope(name, points.mean(axis=0), widths(parameters))
        information += jacobian.T @ fisher(image, union[own]) @ jacobian
        for f, rest in enumerate(folds.rests):
            here = np.flatnonzero(folds.parts[name][picks] == f)
            if kind == "exact":
                features = image.reweighting.features[picks[here]] + image.reweighting.centre
                total[here] += whole_density(features, rest.images[name].reweighting, union)
            elif f in emulated:
                total[here] += log_densities(image.values[picks[here]], image.counts[picks[here]], emulated[f][name])
            else:
                lost[here] = True
    if lost.all():
        raise CheckError(
            f"model {fit.model.name}: the pool has no support without any part of its chains; simulate more, or use more folds"
        )
    flags = {"no support without the chain": lost} if lost.any() else {}
    ranked = rank(points, own, total, information, rng)
    return Ranked(fit.model.name, kind, parameters.names, points[own], **ranked, flags=flags)


def _emulate(fit: Fit, kind: str, folds: Folds, points: NDArray, rng: np.random.Generator, whole: bool) -> dict[int, dict[str, Predicted]]:
    """What every image would be at the points, without each part of the chains; parts that leave no support are left out."""
    found, full = {}, fit.posteriors[kind].full
    for f, rest in enumerate(folds.rests):
        observations = {name: image.observation for name, image in rest.images.items()}
        if whole:
            union = {name: fit.parameters.union(name, points, rest.embed(fit.model)) for name in observations}
            found[f] = {n: predict(rest.images[n], kind, union[n], rest.n_composition(o)) for n, o in observations.items()}
            continue
        try:
            smooth = SmoothEmulator.fit(rest, fit.parameters, full.mean(axis=0), np.atleast_2d(np.cov(full.T)), rng)
        except CheckError:
            continue
        calibrated = kind == "calibrated"
        found[f] = {
            n: smooth.natural(o, points) if calibrated else smooth.factors([n], points).histogram[0] for n, o in observations.items()
        }
    return found


# ---------------------------------------------------------------------- pieces that fresh simulations use too


def pick(reweighting: Reweighting, union: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """One record for each of the couplings (n, q), drawn with the pool's weights there; shape (n,)."""
    found = []
    for block in np.array_split(union, max(1, len(union) // 32)):
        cumulative = np.cumsum(reweighting.weights(block), axis=1)
        places = rng.random(len(block)) * cumulative[:, -1]
        found += [np.searchsorted(row, u) for row, u in zip(cumulative, places, strict=True)]
    return np.array(found, dtype=np.int64)


def fisher(image: ImageEmulator, union: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fisher information (n, q, q) of one image at couplings (n, q): Cov(F) of the box by the window's share of each term."""
    features, q = image.reweighting.features, union.shape[1]
    products = (features[:, :, None] * features[:, None, :]).reshape(len(features), -1)
    averages, _ = image.reweighting.averages(union, np.column_stack([features, products]))
    mean = averages[:, :q]
    return (averages[:, q:].reshape(-1, q, q) - mean[:, :, None] * mean[:, None, :]) * np.sqrt(np.outer(image.shares, image.shares))


Predicted = Natural | NDArray[np.float64]  # calibrated: what to make of a statistic; independent: histograms (m, classes)


def predict(image: ImageEmulator, kind: str, union: NDArray[np.float64], n_given: int) -> Predicted:
    """What a likelihood needs of the pool at couplings (m, q)."""
    if kind == "calibrated":
        return from_origin(image.batch, union.mean(axis=0), union, n_given)
    return image.batch(union)[0].histogram


def log_densities(values: NDArray[np.float64], counts: NDArray, predicted: Predicted) -> NDArray[np.float64]:
    """Log likelihood of n images with statistic (n, d) and class counts (n, classes), at m points; shape (n, m)."""
    if isinstance(predicted, Natural):
        return values @ predicted.slope.T - predicted.constant
    n = counts.sum(axis=1, keepdims=True)
    # -2 N s^2 with s from the overlap of the square roots; both arguments are far from 1 in every image that is not empty
    half = np.sqrt(np.maximum(2 - 2 * np.minimum(np.sqrt(counts / n) @ np.sqrt(predicted).T, 1.0), 0.0)) / 2
    return -2 * n * (2 * np.arcsin(np.minimum(half, 1.0))) ** 2


def whole_density(features: NDArray[np.float64], pool: Reweighting, union: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exact log likelihood -w.F - ln Z(w) of whole crystals with features F (n, q), at couplings (m, q); shape (n, m)."""
    return -(features @ union.T) - np.concatenate([pool.log_z(block) for block in np.array_split(union, max(1, len(union) // 32))])


def rank(
    points: NDArray[np.float64],
    own: NDArray[np.int64],
    log_density: NDArray[np.float64],
    information: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    precision: NDArray[np.float64] | None = None,
    truth: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> dict[str, Any]:
    """Ranks, means and spreads of posteriors that are weights on common points drawn from the prior.

    Parameters
    ----------
    points : ndarray, shape (m, k)
    own : ndarray of int, shape (n,)
        The point that is each data set's truth.
    log_density : ndarray, shape (n, m)
        Log likelihood of each data set at each point.
    information : ndarray, shape (n, k, k)
        Fisher information of each data set at its truth.
    rng : numpy.random.Generator
        Splits the truth's own mass.
    precision : ndarray, shape (k, k), optional
        Of the prior; by default the inverse covariance of the points.
    truth : tuple of ndarray, shapes (n, k) and (n,), optional
        Truths and the log likelihood there, where they are none of the points (`own` is -1).

    Returns
    -------
    dict
        `pit`, `mean`, `sd`, `bound` and `effective` of :class:`Ranked`.
    """  # fmt: skip
    weights = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    known, density = truth if truth is not None else (points[own], log_density[np.arange(len(own)), own])
    columns = [pit_values(points[:, a] < known[:, a, None], weights, own, rng) for a in range(points.shape[1])]
    pit = np.column_stack([*columns, pit_values(log_density < density[:, None], weights, own, rng)])
    mean = weights @ points
    middle = points.mean(axis=0)  # second moments about a near point lose no digits
    variance = weights @ (points - middle) ** 2 - (mean - middle) ** 2
    precision = np.linalg.inv(np.atleast_2d(np.cov(points.T))) if precision is None else precision
    bound = np.sqrt(np.diagonal(np.linalg.inv(precision + information), axis1=1, axis2=2))
    return {
        "pit": pit, "mean": mean, "sd": np.sqrt(np.maximum(variance, 0)), "bound": bound, "effective": 1 / (weights**2).sum(axis=1)
    }  # fmt: skip
