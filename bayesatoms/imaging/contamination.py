"""Contamination: what can be wrong with labels that the levels alone do not show.

Dirt and thickness change the background and the intensity together, the tails of the probe mix
neighbours, and a further level is no species of the list. Each is tested and told in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ..errors import InputError
from .levels import STRAY, Floats
from .levels_posterior import Fit

if TYPE_CHECKING:
    from .species import Labels

ALARM = 0.01  # false alarms of a test of clean labels
_CELL = 1.2  # side of a cell of the grid in units of the distance between sites
_OVERLAPPING = 0.5  # a shift counts if so much of the area still lies on itself
_SIGNIFICANT = 3.0  # standard errors of the fraction that the tails bring in
_STEPS = 60  # of expectation maximisation for one more level
DECISIVE, APART, FEW = 10.0, 3.0, 5.0  # BIC difference, sd between levels, sites


@dataclass(frozen=True, eq=False)
class Contamination:
    """How labels and intensities follow the local background.

    Parameters
    ----------
    correlation, p_value : float
        Rank correlation of brightness (of the labels) with the background.
    within_correlation, within_p_value : float
        The same for the intensity relative to the level of its own species.
    suspect : bool
        Whether either is beyond chance (1 % false alarms for both together).
    sentence : str
    """

    correlation: float
    p_value: float
    within_correlation: float
    within_p_value: float
    suspect: bool
    sentence: str


@dataclass(frozen=True, eq=False)
class Tails:
    """Share of the neighbours' intensity found in a column, and the intensities without it.

    Parameters
    ----------
    intensity : ndarray, shape (n,)
        Corrected if `significant`, else as handed in.
    fraction, error : ndarray
        Per neighbour, one number for each shell, with standard errors.
    significant : bool
    sentence : str
    """

    intensity: Floats
    fraction: Floats
    error: Floats
    significant: bool
    sentence: str


def contamination(labels: Labels, intensity: ArrayLike, background: ArrayLike, positions: ArrayLike) -> Contamination:
    """Whether bright labels, or intensities within a species, go with the local background.

    Parameters
    ----------
    labels : Labels
    intensity, background : array_like, shape (n,)
    positions : array_like, shape (n, 2)

    Notes
    -----
    Both fields may be smooth in space, so that sites are no independent witnesses. The null is therefore
    one field shifted against the other by every vector (as on a torus) and turned by 180 degrees: each
    keeps its own correlations. All shifts are taken, hence there is no seed.

    Examples
    --------
    >>> from .species import classify
    >>> x, y = (q.ravel() for q in np.meshgrid(np.arange(20.0), np.arange(20.0)))
    >>> bright = np.sin(x * x + 3 * y * y) > 0.5
    >>> found = classify(np.where(bright, 100, 50) + np.sin(7 * x + 5 * y), np.full(400, 3.0), ("A", "B"), "A")
    >>> contamination(found, found.intensity, np.cos(11 * x * y), np.c_[x, y]).suspect
    False
    """
    y, b, at = (np.asarray(q, dtype=float) for q in (intensity, background, positions))
    n = len(labels.labels)
    if y.shape != (n,) or b.shape != (n,) or at.shape != (n, 2):
        raise InputError(
            f"intensity {y.shape}, background {b.shape}, positions {at.shape}; expected ({n},), ({n},) and ({n}, 2) as the labels"
        )
    if not (np.isfinite(y).all() and np.isfinite(b).all() and np.isfinite(at).all()):
        raise InputError("intensity, background or positions have values that are no numbers; leave those sites out")
    brightness = labels.probabilities @ np.argsort(np.argsort(labels.means, kind="stable"), kind="stable").astype(float)
    within = (y - labels.means[labels.labels]) / np.hypot(labels.spreads, labels.noise)[labels.labels]
    r, p = _shift_test(brightness, b, at)
    r_in, p_in = _shift_test(within, b, at)
    suspect = min(p, p_in) <= ALARM / 2
    words = []
    if p <= ALARM / 2:
        words.append(
            f"bright labels are {'commoner' if r > 0 else 'rarer'} where the background is high (correlation {r:+.2f}, p = {p:.2g}): "
            "contamination or thickness is read as a species, or the background holds the columns' own tails"
        )
    if p_in <= ALARM / 2:
        words.append(
            f"within a species the intensity {'rises' if r_in > 0 else 'falls'} with the background "
            f"(correlation {r_in:+.2f}, p = {p_in:.2g}): the background is not fully taken off"
        )
    clean = f"labels and intensities do not follow the background (correlations {r:+.2f} and {r_in:+.2f}, p = {p:.2g} and {p_in:.2g})"
    return Contamination(r, p, r_in, p_in, bool(suspect), "; ".join(words) or clean)


def _shift_test(u: Floats, v: Floats, positions: Floats) -> tuple[float, float]:
    """Rank correlation of two fields over the sites, and its p-value among all shifts of one against the other."""
    if np.ptp(u) == 0 or np.ptp(v) == 0:
        return 0.0, 1.0
    u, v = rankdata(u), rankdata(v)
    corner, extent = positions.min(axis=0), np.ptp(positions, axis=0)
    side = _CELL * np.sqrt(np.prod(np.maximum(extent, 1e-9 * extent.max())) / len(u))
    cell = ((positions - corner) / side).astype(int)
    shape = tuple(cell.max(axis=0) + 1)
    flat = np.ravel_multi_index(tuple(cell.T), shape)
    count = np.bincount(flat, minlength=np.prod(shape)).reshape(shape)
    mask = (count > 0).astype(float)

    def spread(q: Floats) -> Floats:
        grid = np.bincount(flat, q - q.mean(), minlength=np.prod(shape)).reshape(shape) / np.maximum(count, 1)
        return (grid - grid.sum() / mask.sum()) * mask

    a, b = spread(u), spread(v)
    here = _shifted(a, b, mask, mask)
    turned = _shifted(a, b[::-1, ::-1], mask, mask[::-1, ::-1])
    null = np.abs(np.concatenate([here[np.isfinite(here)], turned[np.isfinite(turned)]]))
    return float(np.corrcoef(u, v)[0, 1]), float((null >= np.abs(here[0, 0]) - 1e-12).mean())


def _shifted(a: Floats, b: Floats, mask_a: Floats, mask_b: Floats) -> Floats:
    """Correlation of `a` with `b` moved round by every shift, over the cells that both have; nan where too few are common."""

    def cross(p: Floats, q: Floats) -> Floats:
        return np.fft.irfft2(np.fft.rfft2(p) * np.conj(np.fft.rfft2(q)), s=p.shape)

    n = np.maximum(cross(mask_a, mask_b), 1.0)
    sum_a, sum_b = cross(a, mask_b), cross(mask_a, b)
    var = (cross(a * a, mask_b) - sum_a**2 / n) * (cross(mask_a, b * b) - sum_b**2 / n)
    r = (cross(a, b) - sum_a * sum_b / n) / np.sqrt(np.maximum(var, 1e-300))
    return np.where((n >= _OVERLAPPING * n.max()) & (var > 0), r, np.nan)


def tail_correction(
    intensity: ArrayLike, neighbours: ArrayLike, second_neighbours: ArrayLike | None = None, *, classes: ArrayLike | None = None
) -> Tails:
    """Take off what the probe's tails bring into each column from its neighbours, if that is significant.

    Parameters
    ----------
    intensity : array_like, shape (n,)
    neighbours, second_neighbours : array_like of int, shape (n, z)
        Site numbers, -1 where there is none (taken to be as bright as the site's other neighbours).
    classes : array_like, shape (n, k), optional
        Probability of each class: the regression is within classes. Without it all sites are one class.

    Notes
    -----
    The intensity of a site is regressed on the sum of the *class means* of its neighbours: their own
    intensities hold a share of this site's, which would count its noise twice.
    """
    y = np.asarray(intensity, dtype=float)
    shells = [np.asarray(s) for s in (neighbours, second_neighbours) if s is not None]
    for s in shells:
        if s.ndim != 2 or len(s) != len(y) or s.dtype.kind not in "iu" or (s.size and (s.min() < -1 or s.max() >= len(y))):
            raise InputError(
                f"neighbours of shape {s.shape}, type {s.dtype}; expected {len(y)} rows of site numbers below that, -1 for none"
            )
    p = np.ones((len(y), 1)) if classes is None else np.asarray(classes, dtype=float)
    level = p.T @ y / np.maximum(p.sum(axis=0), 1e-9)
    expected = p @ level if classes is not None else y
    x = np.column_stack([_sums(expected, s) for s in shells])
    full = np.column_stack([p, x])
    scatter = p @ (p.T @ (y - p @ level) ** 2 / np.maximum(p.sum(axis=0), 1e-9))  # each class has its own
    root = 1 / np.sqrt(np.maximum(scatter, 1e-12 * y.var() + 1e-300))
    solution = np.linalg.lstsq(full * root[:, None], y * root, rcond=None)[0]
    left = (y - full @ solution) * root
    near = np.abs(left) < 4 * np.median(np.abs(left)) / 0.6745 + 1e-12  # strays have no say
    full, root, y_near = full[near], root[near], y[near]
    solution, _, rank, _ = np.linalg.lstsq(full * root[:, None], y_near * root, rcond=None)
    variance = np.sum(((y_near - full @ solution) * root) ** 2) / max(len(y_near) - rank, 1)
    cov = variance * np.linalg.pinv((full * root[:, None] ** 2).T @ full)
    fraction, error = solution[p.shape[1] :], np.sqrt(np.diag(cov)[p.shape[1] :])
    if rank < full.shape[1] or not (np.abs(fraction) > _SIGNIFICANT * error).any():
        return Tails(y, fraction, error, False, "the neighbours' tails are not significant")
    used = np.where(np.abs(fraction) > _SIGNIFICANT * error, fraction, 0.0)
    clean = y
    for _ in range(4):  # the neighbours' own share of tails comes off too
        clean = y - sum(t * _sums(clean, s) for t, s in zip(used, shells, strict=True))
    words = " and ".join(f"{t:.3f} +- {e:.3f}" for t, e in zip(fraction, error, strict=True))
    return Tails(clean, fraction, error, True, f"each neighbour brings {words} of its intensity into a column: taken off")


def _sums(values: Floats, shell: NDArray[np.int64]) -> Floats:
    """Sum of `values` over the neighbours; a missing one counts as the mean of the others (of all sites where there are none)."""
    seen = shell >= 0
    total, number = (np.where(seen, values[shell], 0.0)).sum(axis=1), seen.sum(axis=1)
    return shell.shape[1] * np.where(number > 0, total / np.maximum(number, 1), values.mean())


def further_level(fit: Fit) -> str | None:
    """A warning if one level more than there are species fits decisively better and stands apart."""
    data = fit.levels.binned()
    y, v, w = data.y, data.v, data.w
    n, noise2 = w.sum(), float((w * v).sum() / w.sum())
    means, spread2, _, fractions = fit.levels.parts(fit.best[None])
    tried = np.linspace(y.min(), y.max(), 14)
    extra = tried, np.full(len(tried), np.median(spread2)), np.full(len(tried), 0.03)
    more = [np.column_stack([np.repeat(a, len(tried), axis=0), b]) for a, b in zip((means, spread2, 0.97 * fractions), extra, strict=True)]
    before = _maximised(y, v, w, means, spread2, fractions)[0][0]
    after, m, s2, number = _maximised(y, v, w, *more)
    order = np.argsort(m, axis=1)
    m, s2 = np.take_along_axis(m, order, axis=1), np.take_along_axis(s2, order, axis=1)
    sd = np.sqrt(s2 + noise2)
    apart = (np.diff(m, axis=1) > APART * np.maximum(sd[:, 1:], sd[:, :-1])).all(axis=1)
    better = np.where(apart & (number.min(axis=1) >= FEW), 2 * (after - before) - 3 * np.log(n), -np.inf)
    if better.max() <= DECISIVE:
        return None
    levels = ", ".join(f"{x:.3g}" for x in m[better.argmax()][::-1])
    return (
        f"{data.k + 1} levels ({levels}) fit better than {data.k} (BIC by {better.max():.0f}): "
        "columns of several atoms, a further species, or contamination"
    )


def _maximised(y: Floats, v: Floats, w: Floats, m: Floats, s2: Floats, f: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Free mixtures by expectation maximisation, all starts (B, k) at once: log likelihood (B,), means, squared spreads, sites."""
    floor, stray = (0.01 * np.abs(m).max()) ** 2, STRAY / max(np.ptp(y), 1e-300)
    for _ in range(_STEPS):
        var = v + s2[:, :, None]
        d = y - m[:, :, None]
        joint = (1 - STRAY) * f[:, :, None] * np.exp(-0.5 * d * d / var) / np.sqrt(2 * np.pi * var)
        total = joint.sum(axis=1) + stray
        joint *= (w / total)[:, None]
        number = joint.sum(axis=2)
        m = (joint * y / var).sum(axis=2) / np.maximum((joint / var).sum(axis=2), 1e-300)
        s2 = np.maximum((joint * (d * d - v)).sum(axis=2) / np.maximum(number, 1e-9), floor)
        f = np.maximum(number, 1e-6) / np.maximum(number, 1e-6).sum(axis=1, keepdims=True)
    return (w * np.log(total)).sum(axis=1), m, s2, number
