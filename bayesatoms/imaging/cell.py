"""The average cell of an image: where the columns of one cell are, through drift and slow distortion.

The phases of two reflections, followed across the image (geometric phase analysis, Hytch, Snoeck and
Kilaas, Ultramicroscopy 74, 131, 1998), give every pixel its place in the cell. Averaged over all
cells, the image shows each kind of column once and far above the noise: sublattices are told apart by
where they lie, so a dim atom on a bright sublattice is never taken for one of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import InputError
from ..lattice import Lattice

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FOLLOW = 1.3  # width of the filter that follows the phases, in cells: wide enough for noise, narrow enough for strain
_FINE = 6.0  # pixels of the binned image across the shorter lattice vector
_GRID = 48  # bins across the averaged cell
_KIND = 0.12  # of the height of the highest column: less is no column
_APART = 0.3  # spacings between two kinds of columns at least


@dataclass(frozen=True, eq=False)
class Phases:
    """The place in the cell of every point of an image.

    Attributes
    ----------
    vectors : ndarray, shape (2, 2)
        Mean lattice vectors as rows, in pixels.
    order : ndarray of complex, shape (2, rows, columns)
        Amplitude and phase of the two reflections relative to the mean lattice, on the image binned by `factor`.
    factor : int
    """

    vectors: Floats
    order: NDArray[np.complex128]
    factor: int

    @classmethod
    def of(cls, flat: Floats, vectors: Floats) -> Phases:
        """Follow the lattice of `vectors` through an image without background (0 where nothing was recorded)."""
        factor = max(1, int(np.linalg.norm(vectors, axis=1).min() / _FINE))
        rows, columns = (n // factor for n in flat.shape)
        small = flat[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor).mean(axis=(1, 3))
        y, x = np.mgrid[:rows, :columns] * float(factor) + (factor - 1) / 2
        for _ in range(3):
            waves = np.linalg.inv(vectors).T  # rows: cycles a pixel
            width = _FOLLOW * np.linalg.norm(vectors, axis=1).mean() / factor
            order = np.array([_blurred(small * np.exp(-2j * np.pi * (k[0] * x + k[1] * y)), width) for k in waves])
            # the mean slope of the phase corrects the mean lattice
            drift = [[np.angle((h[:, 1:] * h[:, :-1].conj()).sum()), np.angle((h[1:] * h[:-1].conj()).sum())] for h in order]
            waves = waves + np.array(drift) / (2 * np.pi * factor)
            vectors = np.linalg.inv(waves).T
        waves = np.linalg.inv(vectors).T
        order = np.array([_blurred(small * np.exp(-2j * np.pi * (k[0] * x + k[1] * y)), width) for k in waves])
        return cls(vectors, order, factor)

    def places(self, points: Floats) -> Floats:
        """Fractional coordinates, modulo 1, of points (n, 2) given as x, y."""
        at = ((points - (self.factor - 1) / 2) / self.factor)[:, ::-1].T
        angle = [np.arctan2(*(ndimage.map_coordinates(part, at, order=1, mode="nearest") for part in (h.imag, h.real))) for h in self.order]
        return (points @ np.linalg.inv(self.vectors) + np.array(angle).T / (2 * np.pi)) % 1.0

    @property
    def strength(self) -> Floats:
        """How strong both reflections are at each point of the binned image, 1 at the median."""
        product = np.sqrt(np.abs(self.order[0] * self.order[1]))
        return product / max(float(np.median(product)), 1e-300)


def _blurred(field: NDArray[np.complex128], width: float) -> NDArray[np.complex128]:
    return ndimage.gaussian_filter(field.real, width) + 1j * ndimage.gaussian_filter(field.imag, width)


def average_cell(flat: Floats, there: NDArray[np.bool_], phases: Phases) -> Floats:
    """Mean image of one cell, shape (48, 48); axis 0 runs along the first lattice vector."""
    step = max(1, int(np.sqrt(flat.size / 5e5)))  # enough for so few bins
    y, x = np.mgrid[: flat.shape[0] : step, : flat.shape[1] : step]
    there = there[::step, ::step]
    y, x = y[there], x[there]
    places = phases.places(np.column_stack([x, y]).astype(float))
    corner = tuple(np.minimum(v // phases.factor, n - 1) for v, n in zip((y, x), phases.strength.shape, strict=True))
    weight = np.minimum(phases.strength[corner], 2.0)
    bins = (places * _GRID).astype(np.int64) % _GRID
    flatbins = bins[:, 0] * _GRID + bins[:, 1]
    total = np.bincount(flatbins, weight * flat[y, x], _GRID**2)
    count = np.bincount(flatbins, weight, _GRID**2)
    filled = np.where(count > 0, total / np.maximum(count, 1e-12), np.nan).reshape(_GRID, _GRID)
    if np.isnan(filled).any():  # a coarse cell aligned with the pixels leaves bins empty
        known = np.isfinite(filled)
        near = [ndimage.gaussian_filter(np.where(known, f, 0.0), 1.5, mode="wrap") for f in (filled, np.ones_like(filled))]
        filled = np.where(known, filled, near[0] / np.maximum(near[1], 1e-12))
    return filled


@dataclass(frozen=True, eq=False)
class Motif:
    """The columns of one cell.

    Attributes
    ----------
    places : ndarray, shape (m, 2)
        Fractional coordinates; first the sites of the lattice in the order of its basis, then all others.
    heights : ndarray, shape (m,)
        Mean height above the gaps, in the image's unit.
    sites : int
        How many of them are sites of the lattice.
    clarity : float
        Height of the dimmest site over that of the brightest other kind that might have been taken for it; inf without one.
    inverted : bool
        The cell has narrow dark spots rather than bright ones.
    """

    places: Floats
    heights: Floats
    sites: int
    clarity: float
    inverted: bool


def motif(cell: Floats, vectors: Floats, lattice: Lattice, sublattice: int, name: str) -> Motif:
    """Find the kinds of columns in an average cell and which of them are the lattice.

    Parameters
    ----------
    cell : ndarray, shape (g, g)
    vectors : ndarray, shape (2, 2)
    lattice : Lattice
    sublattice : int
        For a lattice with one site a cell: the kind of column that is meant, 0 the brightest.
    name : str
        For messages.

    Raises
    ------
    InputError
        If there are fewer kinds of columns than asked for.
    """
    spacing = column_spacing(vectors, lattice)
    smooth = _smoothed(cell, vectors, 0.08 * spacing)
    places, heights = _maxima(smooth)
    middle = 0.5 * (smooth.max() + smooth.min())
    inverted = bool((smooth > middle).mean() > 0.62)  # a lattice of columns fills less than half of the cell
    keep: list[int] = []
    floor = float(np.quantile(smooth, 0.05))
    heights = heights - floor
    for i in np.argsort(-heights, kind="stable"):
        if heights[i] >= _KIND * heights.max() and all(_gap(places[i] - places[j], vectors) > _APART * spacing for j in keep):
            keep.append(int(i))
    places, heights = places[keep], heights[keep]
    basis = lattice.basis
    if len(basis) == 1:
        if sublattice >= len(places):
            raise InputError(
                f"{name}: the cell holds {len(places)} kind(s) of columns; sublattice {sublattice} asked for, counted from 0, the brightest"
            )
        order = [sublattice, *(j for j in range(len(places)) if j != sublattice)]
        others = [heights[j] / heights[sublattice] for j in range(len(places)) if j != sublattice]
        clarity = min((max(r, 1 / r) for r in others), default=np.inf)
        return Motif(places[order], heights[order], 1, float(clarity), inverted)
    best, total = None, -np.inf
    for origin in places:
        for operation in Lattice(lattice.cell).operations:
            sites = (origin + (basis - basis[0]) @ operation.matrix) % 1.0
            score = sum(_value(smooth, s) - floor for s in sites)
            if score > total + 1e-9:
                best, total = sites, score
    assert best is not None
    near = [min(places, key=lambda p, s=s: _gap(p - s, vectors)) for s in best]
    best = np.array([p if _gap(p - s, vectors) < 0.2 * spacing else s for p, s in zip(near, best, strict=True)])
    rest = [j for j, p in enumerate(places) if min(_gap(p - s, vectors) for s in best) > _APART * spacing]
    own = np.array([_value(smooth, s) - floor for s in best])
    if own.min() < 0.2 * own.max():
        raise InputError(
            f"{name}: the cell of {lattice.name} should hold {len(basis)} columns; only {int((own >= 0.2 * own.max()).sum())} "
            "of its places hold one; check the lattice's name"
        )
    clarity = own.min() / heights[rest].max() if rest else np.inf
    return Motif(np.vstack([best, places[rest]]), np.concatenate([own, heights[rest]]), len(basis), float(clarity), inverted)


def column_spacing(vectors: Floats, lattice: Lattice) -> float:
    """Nearest-neighbour distance in pixels."""
    return float(np.sqrt(abs(np.linalg.det(vectors) / np.linalg.det(lattice.cell))) * lattice.shell_distances(1)[0])


def _smoothed(cell: Floats, vectors: Floats, width: float) -> Floats:
    """The cell blurred by a round Gaussian of so many pixels, in Fourier space as the cell is oblique."""
    n = np.fft.fftfreq(len(cell), 1 / len(cell))
    waves = np.linalg.inv(vectors).T
    k = n[:, None, None] * waves[0] + n[None, :, None] * waves[1]
    return np.fft.ifft2(np.fft.fft2(cell) * np.exp(-2 * (np.pi * width) ** 2 * (k**2).sum(axis=-1))).real


def _maxima(cell: Floats) -> tuple[Floats, Floats]:
    """Fractional coordinates of the maxima of a periodic cell, and their heights."""
    peak = np.argwhere(cell == ndimage.maximum_filter(cell, 3, mode="wrap"))
    places = []
    for i, j in peak:
        shift = []
        for before, here, after in (
            (cell[i - 1, j], cell[i, j], cell[(i + 1) % _GRID, j]),
            (cell[i, j - 1], cell[i, j], cell[i, (j + 1) % _GRID]),
        ):
            bend = before - 2 * here + after
            shift.append(0.5 * (before - after) / bend if bend < 0 else 0.0)
        places.append(((i + shift[0] + 0.5) / _GRID % 1.0, (j + shift[1] + 0.5) / _GRID % 1.0))
    return np.array(places), cell[tuple(peak.T)]


def _value(cell: Floats, place: Floats) -> float:
    return float(ndimage.map_coordinates(cell, (np.asarray(place) * _GRID - 0.5)[:, None], order=1, mode="grid-wrap")[0])


def _gap(difference: Floats, vectors: Floats) -> float:
    """Distance in pixels between two places of the cell, by the shortest way around."""
    near = difference - np.round(difference)
    ways = near + np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    return float(np.linalg.norm(ways @ vectors, axis=1).min())
