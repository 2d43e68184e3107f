"""Lattice vectors of an image, from its autocorrelation alone.

An image repeats under the translations of its lattice, whatever else is in the cell; the first shell
of the autocorrelation shows it even where drift has spoiled long-range order. The shape of the cell is
known, its scale and rotation are not: wanted is the finest lattice of the right shape under which the
image repeats. A coarser one (a superlattice, such as the chains of 1T') repeats as well or a little
better; a finer one puts columns onto gaps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.fft import irfft2, next_fast_len, rfft2

from ..errors import InputError
from ..lattice import Lattice
from .filters import binned, flattened

Floats = NDArray[np.float64]

# Lengths of translations are in pixels. An octave [s, 2 s) of them is looked for with the image filtered for it.
_FINEST, _CELLS = 5.0, 4.0  # shortest translation, and how many times the longest must fit into the image
_HIGH_PASS, _LOW_PASS = 1.2, 0.15  # widths of the filters, in s
_TILE, _BINNED = 36, 12.0  # tiles are so many s wide; images are binned so that s stays below the second
_STRAIN = 0.2  # of the cell at most: a rectangle of 1 x 1.45 passes for a square, a triangular lattice (0.27) does not
_REPEATS, _CHANCE = 0.06, 1.2  # least correlation under the first shell; and what noise has of it, times the root of the cells
_AS_GOOD = (
    0.28  # of the best correlation within three translations: a finer lattice with so much of it is the lattice; chains have 0.3 to 0.7
)
_STRAINED = 8.0  # more of the best correlation that a strained lattice must have, times its strain squared
_CANDIDATES = 3  # lattices; the finest is the lattice unless its columns cannot be indexed
_PEAKS = 60  # maxima of the autocorrelation that are paired, the shortest first
# superlattices of two to four cells, as integer matrices
_DIVISIONS = [n for n in np.array(list(itertools.product(range(-2, 3), repeat=4))).reshape(-1, 2, 2) if 1.5 < abs(np.linalg.det(n)) < 4.5]


def lattice_vectors(data: Floats, lattice: Lattice, *, spacing: float | None = None, name: str = "image") -> Iterator[Floats]:
    """Candidates for the mean lattice vectors of an image, the finest lattice first, each looked for when it is asked for.

    Parameters
    ----------
    data : ndarray, shape (rows, columns)
        nan where nothing was recorded.
    lattice : Lattice
        Its cell gives the shape.
    spacing : float, optional
        Nearest-neighbour distance in pixels, if known to a fifth; only such lattices are looked for then.
    name : str
        For messages.

    Yields
    ------
    ndarray, shape (2, 2)
        Vectors as rows, in pixels (x, y).

    Raises
    ------
    InputError
        If the image does not repeat as the lattice does.

    Examples
    --------
    >>> y, x = np.mgrid[:200, :200]
    >>> image = np.cos(2 * np.pi * x / 20) + np.cos(2 * np.pi * y / 20)
    >>> np.linalg.norm(next(lattice_vectors(image, Lattice.square())), axis=1).round(1).tolist()
    [20.0, 20.0]
    """
    cell = lattice.cell / lattice.shell_distances(1)[0]
    longest = float(np.linalg.norm(cell, axis=1).max())
    limits = (_FINEST, min(data.shape) / _CELLS)
    if spacing is not None:
        limits = max(limits[0], 0.8 * spacing * longest), min(limits[1], 1.25 * spacing * longest)
    if limits[1] <= limits[0]:
        known = "" if spacing is None else f" and {spacing:.3g} pixels between neighbours"
        raise InputError(
            f"{name}: too small for a {lattice.name} lattice: {data.shape[1]} x {data.shape[0]} pixels{known}; "
            f"expected at least {_CELLS:.0f} cells of {_FINEST:.0f} pixels or more across"
        )
    best, areas = (0.0, _REPEATS), []
    s = limits[0]
    while s < limits[1]:
        found, score = _octave(data, cell, s, min(2 * s, limits[1]), limits[0])
        best = max(best, score, key=lambda pair: pair[0] - pair[1])
        if found is not None and all(abs(np.linalg.det(found)) > 1.3 * area for area in areas):
            areas.append(abs(np.linalg.det(found)))
            yield found
            if len(areas) == _CANDIDATES:
                return
        s *= 1.8  # less than an octave, so that none falls between two
    if not areas:
        raise InputError(
            f"{name}: no {lattice.name} lattice found with cells of {limits[0]:.0f} to {limits[1]:.0f} pixels: shifted by the best "
            f"candidate the image is like itself to {best[0]:.2f}, expected at least {best[1]:.2f}; "
            "check the lattice's name, crop to the crystal, or set the pixel size"
        )


def _octave(data: Floats, cell: Floats, low: float, high: float, finest: float) -> tuple[Floats | None, tuple[float, float]]:
    """The finest lattice whose longest vector lies in [low, high), or None; and the best correlation seen with what it had to reach."""
    factor = max(1, int(low / _BINNED))
    small = binned(data, factor)
    correlation = _autocorrelation(small, low / factor)
    found, best = [], (0.0, 1.0)
    for vectors, shell in _candidates(correlation, cell, low / factor, high / factor):
        score = float(_at(correlation, shell).mean())
        least = _REPEATS + _CHANCE * np.sqrt(abs(np.linalg.det(vectors)) / np.isfinite(small).sum())
        best = max(best, (score, float(least)), key=lambda pair: pair[0] - pair[1])
        if score >= least and score >= _needed(vectors, cell) * _envelope(correlation, np.linalg.norm(vectors, axis=1).max()):
            found.append((abs(np.linalg.det(vectors)), -score, vectors))
    if not found:
        return None, best
    area = min(area for area, _, _ in found)
    vectors = min((f for f in found if f[0] < 1.15 * area), key=lambda f: f[1])[2]
    return _divided(data, vectors * factor, cell, finest), best


def _divided(data: Floats, vectors: Floats, cell: Floats, least: float) -> Floats:
    """The finest lattice of the right shape of which `vectors` span a superlattice, if the image repeats under it.

    Displacements split the maximum of the autocorrelation at its translations, so it need not have any there.
    """
    half = 0.4 * float(np.linalg.norm(vectors, axis=1).max())
    factor = max(1, int(half / _BINNED))
    correlation = _autocorrelation(binned(data, factor), half / factor)
    envelope = _envelope(correlation, 2 * half / factor)
    best = vectors
    for n in _DIVISIONS:
        finer = np.linalg.solve(n, vectors)
        if _size(finer, cell) < least or abs(np.linalg.det(finer)) > 0.9 * abs(np.linalg.det(best)):
            continue
        if _strain(finer, cell) < _STRAIN:
            score = float(_at(correlation, _first_shell(cell) @ finer / factor).mean())
            if score >= _needed(finer, cell) * envelope:
                best = finer
    return best


def _autocorrelation(data: Floats, s: float) -> Floats:
    """Autocorrelation of the image filtered for translations from s, 1 at zero, the mean over tiles; zero shift in the middle."""
    reach = int(6.5 * s)
    total = np.zeros((2 * reach + 1, 2 * reach + 1))
    weight = np.zeros_like(total)
    sides = [min(n, int(_TILE * s)) for n in data.shape]
    starts = [np.unique(np.linspace(0, n - side, min(3, -(-n // side))).astype(int)) for n, side in zip(data.shape, sides, strict=True)]
    shape = [next_fast_len(max(side + reach, 2 * reach) + 1, real=True) for side in sides]
    for corner in itertools.product(*starts):
        tile = data[tuple(slice(c, c + side) for c, side in zip(corner, sides, strict=True))]
        there = np.isfinite(tile)
        taper = there * np.hanning(sides[0])[:, None] * np.hanning(sides[1])
        if there.mean() < 0.2:
            continue
        band = flattened(tile, _LOW_PASS * s, _HIGH_PASS * s)
        limit = 4 * np.median(np.abs(band[there]))  # a few glaring spots must not outweigh the lattice
        band = np.clip(band, -limit, limit)
        band = (band - np.average(band, weights=taper)) * taper
        for field, into in ((band, total), (taper, weight)):
            power = irfft2(np.abs(rfft2(field, shape)) ** 2, shape)
            into += np.roll(power, (reach, reach), axis=(0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    total /= np.maximum(weight, max(0.02 * weight.max(), 1e-300))
    return total / max(total[reach, reach], 1e-300)


def _at(correlation: Floats, shifts: Floats) -> Floats:
    """Correlation at shifts (n, 2) in x, y."""
    middle = len(correlation) // 2
    return ndimage.map_coordinates(correlation, (shifts + middle)[:, ::-1].T, order=3, mode="nearest")


def _envelope(correlation: Floats, length: float) -> float:
    """The best correlation at translations up to three times the length, but for zero."""
    middle = len(correlation) // 2
    y, x = np.ogrid[-middle : middle + 1, -middle : middle + 1]
    r = np.hypot(x, y)
    peak = correlation == ndimage.maximum_filter(correlation, 3)
    there = peak & (r > 0.5 * length) & (r < 3.1 * length)
    return float(correlation[there].max(initial=0.0))


def _candidates(correlation: Floats, cell: Floats, low: float, high: float) -> list[tuple[Floats, Floats]]:
    """Pairs of maxima that could be the cell, longest vector in [low, high), each with its first shell of translations."""
    middle = len(correlation) // 2
    peaks = np.argwhere((correlation == ndimage.maximum_filter(correlation, 3)) & (correlation > _REPEATS))[:, ::-1] - middle
    length = np.linalg.norm(peaks, axis=1)
    peaks = peaks[(length > 0.5 * low) & (length < 1.05 * high)]
    peaks = peaks[np.argsort(np.linalg.norm(peaks, axis=1), kind="stable")[:_PEAKS]]  # the finest lattice is made of the shortest
    peaks = np.array([_vertex(correlation, p) for p in peaks]).reshape(-1, 2)
    first = _first_shell(cell)
    found = []
    for a, b in itertools.permutations(range(len(peaks)), 2):
        vectors = peaks[[a, b]]
        if low <= _size(vectors, cell) < high and _strain(vectors, cell) < _STRAIN:
            found.append((vectors, first @ vectors))
    return found


def _needed(vectors: Floats, cell: Floats) -> float:
    """Share of the best correlation that makes these vectors the lattice."""
    return _AS_GOOD + _STRAINED * _strain(vectors, cell) ** 2


def _first_shell(cell: Floats) -> Floats:
    """The shortest translations, one of each +-t, in units of the cell."""
    steps = np.array([n for n in itertools.product(range(-2, 3), repeat=2) if n > (0, 0)])
    distance = np.linalg.norm(steps @ cell, axis=1)
    return steps[distance < 1.01 * distance.min()]


def _size(vectors: Floats, cell: Floats) -> float:
    """Length of the longest lattice vector, but for strain."""
    return float(np.sqrt(abs(np.linalg.det(vectors) / np.linalg.det(cell))) * np.linalg.norm(cell, axis=1).max())


def _strain(vectors: Floats, cell: Floats) -> float:
    """Size of the strain that makes `vectors` from the cell, scale left aside; inf for a flat cell."""
    m = np.linalg.solve(cell, vectors)
    area = abs(np.linalg.det(m))
    if area < 1e-9:
        return np.inf
    return float(np.sqrt((((m.T @ m / area - np.eye(2)) / 2) ** 2).sum() / 2))


def _vertex(correlation: Floats, peak: NDArray[np.int64]) -> Floats:
    """A maximum to a fraction of a pixel, by a parabola along each axis."""
    x, y = peak + len(correlation) // 2
    if not (0 < x < len(correlation) - 1 and 0 < y < len(correlation) - 1):
        return peak.astype(float)
    c = correlation
    shift = []
    for before, here, after in ((c[y, x - 1], c[y, x], c[y, x + 1]), (c[y - 1, x], c[y, x], c[y + 1, x])):
        bend = before - 2 * here + after
        shift.append(0.5 * (before - after) / bend if bend < 0 else 0.0)
    return peak + np.array(shift)
