"""Species: from the intensities of the columns of one sublattice to a probability of each species at every site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ..configuration import check_species
from ..errors import InputError
from .contamination import FEW, further_level, tail_correction
from .levels import STRAY, Floats, Levels
from .levels_posterior import Fit, density, fit_levels, regions

_LEAST = 12  # sites
_ANY = (0.15, 0.93)  # ratio of a level to the next brighter one where nothing is known; Beta(3, 3) within
_EXPONENT = (1.4, 2.0)  # intensity of a column ~ Z to a power in this range: detector angles, thickness, thermal motion
_OVERLAP, _EDGE = 0.05, 0.07  # mean probability of a wrong label; end of the range of a ratio with half the posterior in it
_CLIPPED = 4  # sites of exactly the largest intensity
_FOLLOWS = 0.3  # rank correlation of brightness with the background
_PSEUDO = 2.0  # a row of the confusion matrix counts as many sites of the fitted mixture on top of those seen
_SHARE = 0.02  # of the posterior with another reading of the levels, that is worth a warning


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of the species at every site; all by species in the order of `species`.

    Parameters
    ----------
    species : tuple of str
    probabilities : ndarray, shape (n, k)
        Of each species at each site, averaged over the posterior of the levels.
    labels : ndarray of int8, shape (n,)
        The most probable species; where the picture has two readings (see `warnings`), within the likelier
        one, so that a level of one species is not cut in two.
    means, spreads, fractions : ndarray, shape (k,)
        Level, intrinsic standard deviation within it, expected share of the sites.
    label_error : ndarray, shape (k, k)
        Probability that a site of species [row] carries the label [column].
    threshold : ndarray, shape (k - 1,)
        Intensity between each level and the next dimmer one, from the brightest down.
    stray : ndarray, shape (n,)
        Probability that the column fits no level (an adatom, damage, dirt).
    noise : float
        Typical standard error of an intensity.
    intensity : ndarray, shape (n,)
        What was classified (after the correction for probe tails, if any).
    warnings : tuple of str
    """

    species: tuple[str, ...]
    probabilities: Floats
    labels: NDArray[np.int8]
    means: Floats
    spreads: Floats
    fractions: Floats
    label_error: Floats
    threshold: Floats
    stray: Floats
    noise: float
    intensity: Floats
    warnings: tuple[str, ...] = ()

    @property
    def uncertain(self) -> Floats:
        """Probability that the label of a site is wrong, (n,)."""
        return 1 - self.probabilities[np.arange(len(self.labels)), self.labels]

    @property
    def order(self) -> NDArray[np.int64]:
        """Species numbers from the brightest to the dimmest."""
        return np.argsort(-self.means, kind="stable")

    def density(self, values: ArrayLike) -> Floats:
        """Density of each species at intensities (m,), times its fraction: (k, m); the sum is the density of all."""
        return self.fractions[:, None] * density(np.asarray(values, dtype=float), self.means, self.spreads, self.noise)


def classify(
    intensity: ArrayLike,
    error: ArrayLike,
    species: Sequence[str],
    bright: str | Sequence[str],
    *,
    contrast: tuple[float, float] | Mapping[str, float] | None = None,
    vacancy: str | None = None,
    background: ArrayLike | None = None,
    neighbours: ArrayLike | None = None,
    tails: bool = False,
) -> Labels:
    """Probability of each species at every site of one sublattice.

    Parameters
    ----------
    intensity, error : array_like, shape (n,)
        Of each column over its local background, and its standard error.
    species : sequence of str
        Names; their order says nothing about brightness.
    bright : str or sequence of str
        The brightest species; for three or more levels all of them, brightest first (`vacancy` left out).
    contrast : (low, high) or mapping, optional
        Range of the ratio of a level to the next brighter one, or the atomic number of each species (of the
        whole column: summed). Without it a broad range is allowed.
    vacancy : str, optional
        The species of no intensity.
    background : array_like, shape (n,), optional
        Local background: labels that follow it are pointed out (:func:`.contamination.contamination` tests it).
    neighbours : array_like of int, shape (n, z), optional
        Site numbers of the nearest neighbours, -1 where there is none; needed for `tails`.
    tails : bool
        Take off what the probe's tails bring in from the neighbours, where that is significant.

    Raises
    ------
    InputError
        If the arrays do not fit each other, the names do not fit, or the contrast is no range within (0, 1).

    Examples
    --------
    >>> y = np.r_[np.linspace(95, 105, 6), np.linspace(36, 44, 94)]
    >>> found = classify(y, np.full(100, 3.0), ("Mo", "Re"), "Re", contrast={"Mo": 42, "Re": 75})
    >>> np.bincount(found.labels).tolist(), found.means.round().tolist()
    ([94, 6], [40.0, 100.0])
    """
    y, e = _columns(intensity, error)
    names = tuple(species)
    check_species(names)
    ordered = _brightness(names, bright, vacancy)
    low, high, edge = _ratios(ordered[: len(ordered) - (vacancy is not None)], contrast)
    if tails and neighbours is None:
        raise InputError("tails=True without neighbours; expected the site numbers of each site's neighbours: give them or leave tails out")

    def fitted(values: Floats) -> tuple[Fit, Floats, Floats, Floats]:
        fit = fit_levels(Levels(values, e**2, np.ones(len(values)), low, high, len(names), vacancy is not None, edge))
        return (fit, *fit.shares(values, e**2))

    fit, p, stray, coherent = fitted(y)
    notes: list[str] = []
    if tails:
        for _ in range(2):  # the classes sharpen once, the fraction then no longer moves
            found = tail_correction(y, neighbours, classes=p)
            if not found.significant:
                break
            fit, p, stray, coherent = fitted(found.intensity)
        if found.significant:
            notes.append(found.sentence)
            y = found.intensity
    back = np.array([ordered.index(s) for s in names])  # from the order of brightness to that of the species
    means, spread2, _, _ = (part[0] for part in fit.levels.parts(fit.best[None]))
    noise = float(np.sqrt(np.mean(e**2)))
    fractions = p.mean(axis=0)
    threshold, by_model = regions(means, np.sqrt(spread2), fractions, noise)
    hard = coherent.argmax(axis=1)
    # what the posterior says of these sites, and for species of few sites what the fitted levels say of any site
    counts = np.stack([np.bincount(hard, p[:, s], len(names)) for s in range(len(names))]) + _PSEUDO * by_model
    confusion = counts / counts.sum(axis=1, keepdims=True)
    notes += _warnings(fit, p, stray, ordered)
    if (clipped := int((y == y.max()).sum())) >= _CLIPPED:
        notes.append(f"{clipped} sites share the largest intensity: clipped, so that the spread of {ordered[0]} looks too small")
    if background is not None:
        ranks = [rankdata(q) for q in (p @ np.arange(len(names)), _fits(background, len(y), "background"))]
        follows = -float(np.corrcoef(*ranks)[0, 1]) if min(map(np.ptp, ranks)) > 0 else 0.0
        if abs(follows) > _FOLLOWS:
            notes.append(f"brightness follows the background (rank correlation {follows:+.2f}): see contamination()")
    return Labels(
        species=names,
        probabilities=p[:, back],
        labels=np.argsort(back)[hard].astype(np.int8),
        means=means[back],
        spreads=np.sqrt(spread2)[back],
        fractions=fractions[back],
        label_error=confusion[np.ix_(back, back)],
        threshold=threshold,
        stray=stray,
        noise=noise,
        intensity=y,
        warnings=tuple(notes),
    )


def relabelled(labels: Labels, shift: float) -> NDArray[np.int8]:
    """Hard labels (n,) with the log odds of each species against the next dimmer one raised by `shift`.

    It moves every threshold by as much as the data allow: sites that are certain keep their label. The
    studies of how much an answer depends on the labels use it with shifts of a few units both ways.
    """
    brighter = np.argsort(np.argsort(labels.means, kind="stable"), kind="stable")
    return (np.log(labels.probabilities + 1e-300) + shift * brighter).argmax(axis=1).astype(np.int8)


def tilted(labels: Labels, shift: float) -> Floats:
    """Probabilities (n, k) with the same log odds raised by `shift`: what :func:`relabelled` takes the largest of."""
    brighter = np.argsort(np.argsort(labels.means, kind="stable"), kind="stable")
    weight = labels.probabilities * np.exp(shift * (brighter - brighter.max() * (shift > 0)))
    return weight / weight.sum(axis=1, keepdims=True)


def _fits(values: ArrayLike, n: int | None, name: str) -> Floats:
    """A one-dimensional array of finite numbers, n of them (InputError)."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or (n is not None and len(array) != n):
        raise InputError(f"{name} has shape {array.shape}; expected one number for each of the {n or ''} sites")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: {int((~np.isfinite(array)).sum())} of {len(array)} values are no numbers; leave those sites out")
    return array


def _columns(intensity: ArrayLike, error: ArrayLike) -> tuple[Floats, Floats]:
    """Intensities and errors that can be used (InputError)."""
    y = _fits(intensity, None, "intensity")
    e = _fits(error, len(y), "error")
    if len(y) < _LEAST:
        raise InputError(f"{len(y)} sites; expected at least {_LEAST} to tell levels apart: label so few by hand")
    if e.min() < 0:
        raise InputError(f"the least error is {e.min():g}; expected standard errors >= 0")
    if np.quantile(y, 0.98) <= 0:
        raise InputError("nearly all intensities are zero or negative; expected columns brighter than their background: invert the image")
    return y, np.maximum(e, 1e-3 * np.median(np.abs(y)))  # an error of nought would make of two equal sites a level


def _brightness(names: tuple[str, ...], bright: str | Sequence[str], vacancy: str | None) -> tuple[str, ...]:
    """Species from the brightest to the dimmest, a vacancy last (InputError)."""
    if vacancy is not None and vacancy not in names:
        raise InputError(f"vacancy={vacancy!r} is none of the species {names}; give one of them or none")
    rest = [s for s in names if s != vacancy]
    given = [bright] if isinstance(bright, str) else [s for s in bright if s != vacancy]
    if unknown := [s for s in given if s not in names]:
        raise InputError(f"bright={bright!r}: {unknown[0]!r} is none of the species {names}; name the brightest of them")
    if vacancy in given:
        raise InputError(f"bright={bright!r} is the vacancy; expected the brightest species")
    given += [s for s in rest if s not in given] if len(rest) == len(given) + 1 else []
    if sorted(given) != sorted(rest):
        raise InputError(f"bright={bright!r} for species {names}; expected all of {rest}, each once, from the brightest to the dimmest")
    return (*given, *([vacancy] if vacancy is not None else []))


def _ratios(atoms: tuple[str, ...], contrast: tuple[float, float] | Mapping[str, float] | None) -> tuple[Floats, Floats, float]:
    """Least and greatest ratio of each level to the next brighter one, and the shape of its prior (InputError)."""
    many = len(atoms) - 1
    if contrast is None:
        return np.full(many, _ANY[0]), np.full(many, _ANY[1]), 3.0
    if isinstance(contrast, Mapping):
        if missing := [s for s in atoms if s not in contrast]:
            raise InputError(f"contrast names {sorted(contrast)}, not {missing[0]!r}; expected the atomic number of each of {list(atoms)}")
        z = np.array([float(contrast[s]) for s in atoms])
        if not (z > 0).all():
            raise InputError(f"contrast has atomic numbers {z.tolist()}; expected numbers > 0")
        if not (np.diff(z) < 0).all():
            raise InputError(
                f"atomic numbers {z.tolist()} for {list(atoms)}, said to run from brightest to dimmest; expected falling numbers: "
                "turn `bright` round, or give a range (low, high)"
            )
        ratio = z[1:] / z[:-1]
        return ratio ** _EXPONENT[1], ratio ** _EXPONENT[0], 1.0
    low, high = (float(c) for c in contrast)
    if not 0 < low < high < 1:
        raise InputError(f"contrast=({low:g}, {high:g}); expected 0 < low < high < 1, the ratio of a level to the next brighter one")
    return np.full(many, low), np.full(many, high), 1.0


def _warnings(fit: Fit, p: Floats, stray: Floats, ordered: tuple[str, ...]) -> list[str]:
    """What a reader of the labels should know, in words."""
    notes = []
    for s, number in zip(ordered, p.sum(axis=0), strict=True):
        if number < FEW:
            notes.append(f"about {number:.1f} sites of {s}: its level rests on the prior of the contrast")
    means = fit.levels.parts(fit.best[None])[0][0]
    readings = np.bincount(fit.reading, minlength=len(ordered)) / len(fit.reading)
    first, second = np.argsort(-readings)[:2]
    if readings[first] < 1 - _SHARE:
        notes.append(
            f"the majority may be {ordered[first]} or {ordered[second]} (probability {readings[first]:.2f} and {readings[second]:.2f}): "
            "intensities alone do not tell; a range of the contrast may"
        )
    wrong = float(1 - p.max(axis=1).mean())
    if wrong > _OVERLAP:
        notes.append(f"levels overlap: {100 * wrong:.1f} % of the labels are expected to be wrong")
    low, width = fit.levels.low, fit.levels.high - fit.levels.low
    drawn = fit.levels.parts(fit.draws)[0]
    for j, (a, b) in enumerate(pairwise(ordered[: len(low) + 1])):
        at = (drawn[:, j + 1] / drawn[:, j] - low[j]) / width[j]
        if max((at < _EDGE).mean(), (at > 1 - _EDGE).mean()) > 0.5 and p[:, [j, j + 1]].sum(axis=0).min() >= FEW:
            notes.append(
                f"contrast {b}/{a} of {means[j + 1] / means[j]:.3f} at the edge of its range {low[j]:.3f} to {low[j] + width[j]:.3f}: "
                "check the species, `bright` and the range"
            )
    if stray.mean() > 3 * STRAY:
        notes.append(f"{100 * stray.mean():.1f} % of the columns fit no level: adatoms, damage or contamination")
    if further := further_level(fit):
        notes.append(further)
    return notes
