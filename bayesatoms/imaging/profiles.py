"""Gaussian profiles of columns on the pixels of an image: their light, their derivatives, their overlaps.

A profile has height 1 and the standard deviation `width`; its four derivatives are those by
amplitude, x, y and width.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

PATCH = 4.0  # widths: a column's light ends there
SPAN = 4  # knots of the background along an axis that one column may touch


def overlaps(d: Floats, si: Floats, sj: Floats) -> Floats:
    """Overlap integrals of two unit Gaussians and their derivatives by x, y and width, at d = r_i - r_j; shape (n, 4, 4)."""
    s2, d2 = si**2 + sj**2, (d**2).sum(axis=1)
    g = 2 * np.pi * si**2 * sj**2 / s2 * np.exp(-0.5 * d2 / s2)
    u = d / s2[:, None]
    by_i, by_j = (2 / s - 2 * s / s2 + d2 * s / s2**2 for s in (si, sj))  # of ln g
    out = np.empty((len(d), 4, 4))
    out[:, 0, 0] = g
    out[:, 0, 3], out[:, 3, 0] = g * by_j, g * by_i
    out[:, 3, 3] = g * (by_i * by_j + 4 * si * sj / s2**2 - 4 * d2 * si * sj / s2**3)
    for a in range(2):
        out[:, 0, 1 + a], out[:, 1 + a, 0] = g * u[:, a], -g * u[:, a]
        out[:, 3, 1 + a] = g * u[:, a] * (by_i - 2 * si / s2)
        out[:, 1 + a, 3] = -g * u[:, a] * (by_j - 2 * sj / s2)
        for b in range(2):
            out[:, 1 + a, 1 + b] = g * ((a == b) / s2 - u[:, a] * u[:, b])
    return out


@njit(nogil=True, cache=True)
def _box(x, y, reach, shape):
    x0, x1 = max(0, int(np.ceil(x - reach))), min(shape[1] - 1, int(np.floor(x + reach)))
    y0, y1 = max(0, int(np.ceil(y - reach))), min(shape[0] - 1, int(np.floor(y + reach)))
    return x0, x1, y0, y1


@njit(nogil=True, cache=True)
def _profile(centre, s, first, last, u, g):
    """Distances from the centre in widths and the Gaussian of them, for the pixels first..last of one axis."""
    for k in range(first, last + 1):
        v = (k - centre) / s
        u[k - first], g[k - first] = v, np.exp(-0.5 * v * v)


@njit(nogil=True, cache=True)
def subtract(image: Floats, position: Floats, amplitude: Floats, widths: Floats, kinds: Integers, patch: float) -> None:
    """Take the columns off an image, in place."""
    u, gx, gy = np.empty(image.shape[1]), np.empty(image.shape[1]), np.empty(image.shape[0])
    v = np.empty(image.shape[0])
    for i in range(len(position)):
        s = widths[kinds[i]]
        x0, x1, y0, y1 = _box(position[i, 0], position[i, 1], patch * s, image.shape)
        _profile(position[i, 0], s, x0, x1, u, gx)
        _profile(position[i, 1], s, y0, y1, v, gy)
        for row in range(y0, y1 + 1):
            a = amplitude[i] * gy[row - y0]
            for column in range(x0, x1 + 1):
                image[row, column] -= a * gx[column - x0]


@njit(nogil=True, cache=True)
def gradients(
    residual: Floats, there: Truths, position: Floats, width: Floats, patch: float,
    row_low: Integers, row_share: Floats, column_low: Integers, column_share: Floats,
) -> tuple[Floats, Floats, Floats, Integers]:  # fmt: skip
    """Residual against unit derivatives by amplitude, x, y, width; the recorded share of each profile; overlaps with the knots' hats.

    The knots of a column are numbered from `corner` on.
    """
    n = len(position)
    gradient, share, light = np.zeros((n, 4)), np.zeros(n), np.zeros((n, SPAN, SPAN, 4))
    corner, d = np.zeros((n, 2), dtype=np.int64), np.empty(4)
    u, gx, v, gy = np.empty(there.shape[1]), np.empty(there.shape[1]), np.empty(there.shape[0]), np.empty(there.shape[0])
    for i in range(n):
        s = width[i]
        x0, x1, y0, y1 = _box(position[i, 0], position[i, 1], patch * s, residual.shape)
        if x1 < x0 or y1 < y0:
            continue
        _profile(position[i, 0], s, x0, x1, u, gx)
        _profile(position[i, 1], s, y0, y1, v, gy)
        corner[i, 0], corner[i, 1] = row_low[y0], column_low[x0]
        for row in range(y0, y1 + 1):
            k, p, w = row_low[row] - corner[i, 0], row_share[row], v[row - y0]
            for column in range(x0, x1 + 1):
                if not there[row, column]:
                    continue
                g, t = gx[column - x0] * gy[row - y0], u[column - x0]
                d[0], d[1], d[2], d[3] = g, g * t / s, g * w / s, g * (t * t + w * w) / s
                share[i] += g * g
                m, q = column_low[column] - corner[i, 1], column_share[column]
                for a in range(4):
                    gradient[i, a] += residual[row, column] * d[a]
                    light[i, k, m, a] += (1 - p) * (1 - q) * d[a]
                    light[i, k, m + 1, a] += (1 - p) * q * d[a]
                    light[i, k + 1, m, a] += p * (1 - q) * d[a]
                    light[i, k + 1, m + 1, a] += p * q * d[a]
        share[i] /= np.pi * s * s
    return gradient, share, light, corner


@njit(nogil=True, cache=True)
def summed_overlaps(there: Truths, position: Floats, width: Floats, first: Integers, second: Integers, patch: float) -> Floats:
    """What `overlaps` gives in closed form, over the recorded pixels only."""
    out = np.zeros((len(first), 4, 4))
    a, b = np.empty(4), np.empty(4)
    tables = np.empty((4, 2, max(there.shape)))  # x and y of the first, x and y of the second: distance, profile
    for p in range(len(first)):
        i, j = first[p], second[p]
        x0, x1, y0, y1 = _box(position[i, 0], position[i, 1], patch * width[i], there.shape)
        for k, (who, axis) in enumerate(((i, 0), (i, 1), (j, 0), (j, 1))):
            low, high = (x0, x1) if axis == 0 else (y0, y1)
            _profile(position[who, axis], width[who], low, high, tables[k, 0], tables[k, 1])
        for row in range(y0, y1 + 1):
            for column in range(x0, x1 + 1):
                if there[row, column]:
                    x, y = column - x0, row - y0
                    _fill(tables[0, 0, x], tables[1, 0, y], tables[0, 1, x] * tables[1, 1, y], width[i], a)
                    _fill(tables[2, 0, x], tables[3, 0, y], tables[2, 1, x] * tables[3, 1, y], width[j], b)
                    for k in range(4):
                        for m in range(4):
                            out[p, k, m] += a[k] * b[m]
    return out


@njit(nogil=True, cache=True)
def _fill(u, v, g, s, out):
    out[0], out[1], out[2], out[3] = g, g * u / s, g * v / s, g * (u * u + v * v) / s


@njit(nogil=True, cache=True)
def _derivatives(column, row, position, s, out):
    u, v = (column - position[0]) / s, (row - position[1]) / s
    g = np.exp(-0.5 * (u * u + v * v))
    out[0], out[1], out[2], out[3] = g, g * u / s, g * v / s, g * (u * u + v * v) / s


@njit(nogil=True, cache=True)
def add_linear(image: Floats, position: Floats, width: Floats, coefficients: Floats, patch: float) -> None:
    """Add the derivatives by amplitude, x, y and width of each column times its coefficients (n, 4)."""
    d = np.empty(4)
    for i in range(len(position)):
        x0, x1, y0, y1 = _box(position[i, 0], position[i, 1], patch * width[i], image.shape)
        for row in range(y0, y1 + 1):
            for column in range(x0, x1 + 1):
                _derivatives(column, row, position[i], width[i], d)
                for a in range(4):
                    image[row, column] += coefficients[i, a] * d[a]


@njit(nogil=True, cache=True)
def power_under(residual: Floats, there: Truths, position: Floats, width: Floats, patch: float, power: int = 2) -> Floats:
    """Mean of a power of a field under each column, weighted with its profile; of the square by default."""
    n = len(position)
    total, weight = np.zeros(n), np.zeros(n)
    for i in range(n):
        s = width[i]
        x0, x1, y0, y1 = _box(position[i, 0], position[i, 1], patch * s, residual.shape)
        for row in range(y0, y1 + 1):
            for column in range(x0, x1 + 1):
                if there[row, column]:
                    g = np.exp(-0.5 * (((column - position[i, 0]) / s) ** 2 + ((row - position[i, 1]) / s) ** 2))
                    total[i] += g * residual[row, column] ** power
                    weight[i] += g
    return total / np.maximum(weight, 1e-12)
