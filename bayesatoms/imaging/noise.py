"""Standard errors of fitted columns, from what the fit left of the image.

The noise is not assumed: its strength and how it grows with the light, its correlation (a filter that
somebody applied) and rows of the scan that jitter sideways are measured on the residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import nnls
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from .ground import KNOTS, Ground
from .normal import State, normal_equations
from .profiles import PATCH, add_linear, gradients, overlaps, power_under

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

_RIDGE = 1e-4  # columns so much alike that the data hardly tell them apart have errors as large as that allows
_SHARP = 0.7  # pixels: noise through a narrower filter may be white noise with leftovers of jitter
_SAMPLE = 36.0  # spacings across the part of the image on which the noise is measured


@dataclass(frozen=True)
class _Noise:
    """White noise seen through a Gaussian filter, growing with the light, on rows that jitter sideways.

    A column of amplitude 1 has the variance `level` (base + grow I) `passed` [H^-1] in amplitude, x, y,
    where I is the light under it, and sideways that of the jitter beside it.
    """

    level: float
    base: float
    grow: float
    passed: Floats
    jitter: float

    def under(self, light: Floats) -> Floats:
        return np.maximum(self.base + self.grow * light, 1e-12)


def standard_errors(
    residual: Floats, model: Floats, there: Truths, background: Floats, state: State, kinds: Integers, spacing: float, floor: float
) -> tuple[Floats, Floats]:
    """Standard errors of amplitude, x, y (n, 3), and the misfit of each column (n,)."""
    position, amplitude, width = state.position, state.amplitude, state.widths[kinds]
    light = np.maximum(background + 0.5 * amplitude, 0.0)
    low, high = _middle(there, _SAMPLE * spacing)
    inside = ((position > low - 2 * width[:, None]) & (position < high + 2 * width[:, None])).all(axis=1)
    if inside.sum() < 5:
        low, high, inside = np.zeros(2, dtype=np.int64), np.array(residual.shape[::-1]), np.ones(len(position), dtype=bool)
    cut = slice(low[1], high[1]), slice(low[0], high[0])
    part = State(position[inside] - low, amplitude[inside], state.widths, state.level)
    noise = _measured(residual[cut], model[cut], there[cut], part, kinds[inside], light[inside], spacing, floor)
    ground = Ground(residual.shape, KNOTS * spacing, there)
    share = gradients(residual, there, position, width, PATCH, *ground.tables)[1]
    inverse = _inverse_diagonal(position, amplitude, state.widths, kinds, share, spacing, floor)
    variance = noise.level * noise.under(light)[:, None] * noise.passed * inverse
    variance[:, 1:] /= np.maximum(np.abs(amplitude), floor)[:, None] ** 2
    variance[:, 1] += noise.jitter**2 / (width * np.sqrt(2 * np.pi))
    power = power_under(residual, there, position, width, PATCH)
    misfit = np.sqrt(power / noise.under(light))
    return np.sqrt(variance), misfit / max(float(np.median(misfit)), 1e-300)


def _middle(there: Truths, side: float) -> tuple[Integers, Integers]:
    """Corners (x, y) of the square of at most that side that holds most recorded pixels."""
    shape = np.array(there.shape)
    size = np.minimum(shape, int(np.ceil(side)))
    starts = [np.unique(np.linspace(0, n - s, 3).astype(np.int64)) for n, s in zip(shape, size, strict=True)]
    # the middle one where several hold as many
    corners = [(y, x) for y in starts[0] for x in starts[1]]
    corners.sort(key=lambda c: abs(2 * c[0] + size[0] - shape[0]) + abs(2 * c[1] + size[1] - shape[1]))
    y, x = max(corners, key=lambda c: there[c[0] : c[0] + size[0], c[1] : c[1] + size[1]].mean().round(2))
    return np.array([x, y]), np.array([x + size[1], y + size[0]])


def _measured(
    residual: Floats, model: Floats, there: Truths, state: State, kinds: Integers, light: Floats, spacing: float, floor: float
) -> _Noise:
    """The noise of an image, from what its fit left.

    The fit has taken its share of the noise out of the residual: how much, and at which wave numbers,
    is found by fitting white noise, as strong at each pixel as the light there makes it, in the same way.
    """
    position, amplitude, width = state.position, state.amplitude, state.widths[kinds]
    ground = Ground(residual.shape, KNOTS * spacing, there)
    matrix, _ = normal_equations(residual, there, State(position, amplitude, state.widths, np.zeros(ground.n)), kinds, ground, floor)
    fit = _Refit(there, matrix, state, kinds, ground, floor)
    rng = np.random.default_rng(0)  # one field is enough for ratios; the answer does not depend on it
    unit = max(float(light.mean()), 1e-300)
    strength = np.ones_like(residual)
    slope = np.zeros_like(residual)
    add_linear(slope, position, width, amplitude[:, None] * np.array([0.0, 1.0, 0.0, 0.0]), PATCH)
    slope[~there] = 0.0
    jitter, calm = _jitter(residual, slope, strength, there, fit, rng)
    for _ in range(2):
        white = fit(np.where(there, rng.normal(size=residual.shape) * np.sqrt(strength), 0.0))[1]
        expected = power_under(strength, there, position, width, PATCH, 1)
        kept = power_under(white, there, position, width, PATCH) / np.maximum(expected, 1e-300)  # nothing under a column in a hole
        power = power_under(calm, there, position, width, PATCH) / np.clip(kept, 0.2, None)
        base, grow = nnls(np.column_stack([np.ones(len(light)), light / unit]), np.minimum(power, 8 * np.median(power)))[0]
        strength = np.maximum(base + grow * np.maximum(model, 0.0) / unit, 1e-3 * max(base + grow, 1e-300))
        mean = float(strength[there].mean())
        jitter, calm = _jitter(residual, slope, strength, there, fit, rng)
        strength /= mean
    level, blur = _spectrum(calm, white, float(width.mean()))
    if jitter and blur < _SHARP:
        # rows that jitter leave some light even when their shifts are taken off, and that is not white: least where the image is flat
        flat = there & (slope**2 <= np.median(slope[there] ** 2))
        level, blur = float((calm[flat] ** 2).mean() / (white[flat] ** 2).mean()), 0.0
    passed = float(width.mean()) ** 2 / (float(width.mean()) ** 2 + blur**2)  # of the noise through a filter, by a profile
    return _Noise(level, base / mean, grow / unit / mean, np.array([passed, passed**2, passed**2]), jitter)


class _Refit:
    """The fit, its widths held, as a linear map: what it makes of a small disturbance of the image."""

    def __init__(self, there: Truths, matrix: sparse.csr_array, state: State, kinds: Integers, ground: Ground, floor: float) -> None:
        self.there, self.state, self.kinds, self.ground = there, state, kinds, ground
        strength = np.maximum(np.abs(state.amplitude), floor)
        self.factor = np.stack([np.ones(len(kinds)), strength, strength], axis=1)
        n, m = len(kinds), len(state.widths)
        free = np.r_[0 : 3 * n, 3 * n + m : matrix.shape[0]]
        matrix = matrix[free][:, free]
        diagonal = matrix.diagonal()
        self.scale = 1 / np.sqrt(diagonal + 1e-6 * diagonal.max())
        scale = sparse.diags_array(self.scale)
        self.matrix = scale @ matrix @ scale + 1e-6 * sparse.eye_array(len(diagonal))

    def __call__(self, noise: Floats) -> tuple[Floats, Floats]:
        """Change of amplitude and, times it, of x and y (n, 3); and what is left of the disturbance."""
        n, width = len(self.kinds), self.state.widths[self.kinds]
        gradient = gradients(noise, self.there, self.state.position, width, PATCH, *self.ground.tables)[0][:, :3] * self.factor
        right = np.concatenate([*gradient.T, self.ground.gradient(noise)])
        change = self.scale * cg(self.matrix, self.scale * right, rtol=1e-3, maxiter=300)[0]
        steps = change[: 3 * n].reshape(3, n).T * self.factor
        model = self.ground.field(change[3 * n :])
        add_linear(model, self.state.position, width, np.column_stack([steps, np.zeros(n)]), PATCH)
        return steps, np.where(self.there, noise - model, 0.0)


def _jitter(
    residual: Floats, slope: Floats, strength: Floats, there: Truths, fit: _Refit, rng: np.random.Generator
) -> tuple[float, Floats]:
    """Sideways shifts of the rows of the scan and the residual without them.

    The standard deviation (pixels) is that of independent rows which would move columns as much: rows
    that a filter has mixed move them further than each row's own shift tells.
    """
    power = (slope**2).sum(axis=1)
    rows = power > 0.2 * np.median(power)

    def shifts(field: Floats) -> Floats:
        return np.where(rows, (slope * field).sum(axis=1) / np.maximum(power, 1e-300), 0.0)

    def neighbours(v: Floats) -> float:
        both = rows[1:] & rows[:-1]
        return float((v[1:] * v[:-1])[both].mean() / max(float((v[rows] ** 2).mean()), 1e-300))

    found = shifts(residual)
    unit = rng.normal(size=len(found))
    left = shifts(fit(np.where(there, slope * unit[:, None], 0.0))[1])
    kept = max(float((left[rows] ** 2).mean() / (unit[rows] ** 2).mean()), 0.1)
    found = np.clip(found, *(np.array([-3.0, 3.0]) * np.sqrt(np.median(found[rows] ** 2) / 0.455)))
    calm = residual - slope * found[:, None]
    scale = float((calm[there] ** 2 / strength[there]).mean())
    chance = scale * ((slope**2 * strength).sum(axis=1)[rows] / power[rows] ** 2).mean()
    variance = (float((found[rows] ** 2).mean()) - chance) / kept
    if variance < 0.5 * chance + 4 * np.sqrt(2 / rows.sum()) * chance / kept:
        return 0.0, residual
    together = float(np.clip(neighbours(found) - neighbours(left), 0.0, 0.95))
    return float(np.sqrt(variance * (1 + 2 * sum(together ** (k * k) for k in range(1, 7))))), calm


def _spectrum(residual: Floats, white_left: Floats, width: float) -> tuple[float, float]:
    """Spectral density of the noise at long waves (variance of a pixel if white), and the width of the filter it went through, pixels.

    The density over that of white noise fitted in the same way is taken as a Gaussian in the wave
    number; it is fitted where the columns have light and the fit has left at least a fifth of the noise.
    """
    waves = np.hypot(np.fft.fftfreq(residual.shape[0])[:, None], np.fft.rfftfreq(residual.shape[1])[None, :])
    edges = np.linspace(0, 0.5, 41)
    bins = np.digitize(waves.ravel(), edges) - 1
    inside = bins < 40
    count = np.bincount(bins[inside], minlength=40)
    power = [(np.abs(np.fft.rfft2(f)) ** 2).ravel()[inside] / f.size for f in (residual, white_left)]
    seen, left = (np.bincount(bins[inside], p, 40) / np.maximum(count, 1) for p in power)
    k = 0.5 * (edges[1:] + edges[:-1])
    kept = left / max(float(np.mean(left[30:])), 1e-300)
    use = (kept > 0.2) & (count > 0)
    # as near to the columns' own wave numbers as the fit has left noise
    start = int(np.argmax(use))
    near = use & (k < max(2.5 * k[start], 0.8 / (2 * np.pi * width) * 2))
    near = near if near.sum() >= 4 else use
    density = np.log(np.maximum(seen[near] / np.maximum(left[near], 1e-300), 1e-300))
    weight = np.sqrt(count[near])
    slope, level = np.polyfit(k[near] ** 2, density, 1, w=weight)
    if slope >= 0.0:  # white
        slope, level = 0.0, float(np.average(density, weights=weight**2))
    return float(np.exp(level)), float(np.sqrt(-slope) / (2 * np.pi))


def _inverse_diagonal(
    position: Floats, amplitude: Floats, widths: Floats, kinds: Integers, share: Floats, spacing: float, floor: float
) -> Floats:
    """Diagonal of H^-1 for amplitude, x, y of each column, for its amplitude 1; shape (n, 3).

    Its neighbours and a common background are free.
    """
    n, width = len(position), widths[kinds]
    k = min(10, n)
    distance, near = cKDTree(position).query(position, k)
    distance, near = distance.reshape(n, k), near.reshape(n, k)
    share = np.maximum(share, 1e-4)
    strength = np.maximum(np.abs(amplitude), floor)
    out = np.empty((n, 3))
    size = 3 * k + 1
    for start in range(0, n, 1000):
        rows = np.arange(start, min(start + 1000, n))
        who = near[rows]
        m = len(rows)
        matrix = np.zeros((m, size, size))
        relative = strength[who] / strength[rows][:, None]
        factor = np.stack([np.ones_like(relative), relative, relative], axis=2)
        for a in range(k):
            for b in range(k):
                block = overlaps(position[who[:, a]] - position[who[:, b]], width[who[:, a]], width[who[:, b]])[:, :3, :3]
                block = block * np.sqrt(share[who[:, a]] * share[who[:, b]])[:, None, None] * factor[:, a, :, None] * factor[:, b, None, :]
                matrix[:, 3 * a : 3 * a + 3, 3 * b : 3 * b + 3] = block
            light = 2 * np.pi * width[who[:, a]] ** 2 * share[who[:, a]]
            matrix[:, -1, 3 * a] = matrix[:, 3 * a, -1] = light
        matrix[:, -1, -1] = (KNOTS * spacing) ** 2
        scale = np.sqrt(np.maximum(np.diagonal(matrix, axis1=1, axis2=2), 1e-12))
        matrix = matrix / scale[:, :, None] / scale[:, None, :] + _RIDGE * np.eye(size)
        inverse = np.linalg.inv(matrix)
        found = np.diagonal(inverse, axis1=1, axis2=2)[:, :3]
        out[rows] = np.where((found > 0) & (found < 1 / _RIDGE), found, np.nan) / scale[:, :3] ** 2
    # too many neighbours cut off for a few columns: as the other ones
    typical = np.nanquantile(out, 0.75, axis=0) if np.isfinite(out).all(axis=1).any() else np.full(3, 1 / _RIDGE)
    return np.where(np.isfinite(out), out, typical)
