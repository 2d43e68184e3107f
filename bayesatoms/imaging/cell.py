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
from scipy.optimize import least_squares

from ..errors import InputError
from ..lattice import Lattice

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FOLLOW = 1.3  # width of the filter that follows the phases, in cells: wide enough for noise, narrow enough for strain
_FINE = 6.0  # pixels of the binned image across the shorter lattice vector
_GRID = 32  # bins across the averaged cell
_KIND = 0.09  # of the height of the highest column: less is no column; scattered ones leave 0.06 beside them
_EVEN = 0.2  # of it: less is no site of a lattice whose sites all hold the same species
_ALIKE = 0.75  # of the height of the sites: further columns so high make it another lattice
_MOST = 5  # kinds of columns
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
    """Mean image of one cell, shape (32, 32); axis 0 runs along the first lattice vector."""
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
        Fractional coordinates; first the sites of the lattice in the order of its basis, then all others from
        the highest down. A lattice of one site has the highest.
    heights : ndarray, shape (m,)
        Mean height above the background, in the image's unit.
    sites : int
        How many of them are sites of the lattice.
    inverted : bool
        The cell has narrow dark spots rather than bright ones.
    """

    places: Floats
    heights: Floats
    sites: int
    inverted: bool

    def clarity(self, kind: int) -> float:
        """Least ratio of brightness (>= 1, inf without others) of the columns meant, `kind` for one site a cell, to others."""
        meant = [kind] if self.sites == 1 else range(self.sites)
        rest = [h for j, h in enumerate(self.heights) if j not in meant]
        ratios = [max(self.heights[k] / h, h / self.heights[k]) for k in meant for h in rest]
        return float(min(ratios, default=np.inf))


def motif(cell: Floats, vectors: Floats, lattice: Lattice, name: str) -> Motif:
    """Find the kinds of columns in an average cell and which of them are the lattice.

    Kinds are added one at a time, the highest first, to a sum of equal profiles: a dim column in the
    flank of a bright one is no maximum of the cell, but one of what the bright one leaves.

    Parameters
    ----------
    cell : ndarray, shape (g, g)
    vectors : ndarray, shape (2, 2)
    lattice : Lattice
    name : str
        For messages.

    Raises
    ------
    InputError
        If the cell does not hold the sites of the lattice.
    """
    spacing = column_spacing(vectors, lattice)
    middle = 0.5 * (cell.max() + cell.min())
    inverted = bool((cell > middle).mean() > 0.62)  # columns fill less than half of the cell
    places, heights = _kinds(cell, vectors, spacing)
    if len(lattice.basis) == 1:
        alike = int((heights > _ALIKE * heights[0]).sum())
        if alike > 2:
            raise InputError(
                f"{name}: the cell of the {lattice.name} lattice found holds {alike} columns of about the same height; expected one, "
                "or two sublattices; it is a superlattice or another lattice: check the lattice's name, or give the pixel size"
            )
        return Motif(places, heights, 1, inverted)
    best, total = None, -np.inf
    for origin in places:
        for operation in Lattice(lattice.cell).operations:
            sites = (origin + (lattice.basis - lattice.basis[0]) @ operation.matrix) % 1.0
            gaps = np.array([[_gap(p - s, vectors) for p in places] for s in sites])
            score = float(np.where(gaps < _APART * spacing, heights, 0.0).max(axis=1).sum())
            if score > total * (1 + 1e-9):
                best, total = gaps, score
    assert best is not None
    found = best.argmin(axis=1)
    held = (best.min(axis=1) < _APART * spacing) & (heights[found] > _EVEN * heights.max())
    if not held.all() or len(set(found.tolist())) < len(found):
        raise InputError(
            f"{name}: the cell of {lattice.name} should hold {len(held)} columns; {int(held.sum())} of its places hold one; "
            "check the lattice's name"
        )
    rest = max((h for j, h in enumerate(heights) if j not in found), default=0.0)
    if rest > _ALIKE * heights[found].min():
        raise InputError(
            f"{name}: besides the {len(held)} columns of a {lattice.name} cell there is one just as high: another lattice, or its "
            "sublattices; name the lattice of one kind of column"
        )
    order = [*found, *(j for j in range(len(places)) if j not in found)]
    return Motif(places[order], heights[order], len(found), inverted)


def _kinds(cell: Floats, vectors: Floats, spacing: float) -> tuple[Floats, Floats]:
    """Places and heights of the columns in a cell, the highest first.

    All have one profile, a Gaussian with a wider one under it (the tails of the probe).
    """
    n = len(cell)
    at = (np.arange(n) + 0.5) / n
    grid = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1)
    ways = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    scale = float(np.ptp(cell)) or 1.0
    data = (cell - cell.min()) / scale

    def profile(place: Floats, width: float, tail: float, wide: float) -> Floats:
        way = (grid - place + 0.5) % 1.0 - 0.5
        distance2 = (((way[..., None, :] + ways) @ vectors) ** 2).sum(axis=-1)
        return ((1 - tail) * np.exp(-0.5 * distance2 / width**2) + tail * np.exp(-0.5 * distance2 / wide**2)).sum(axis=-1)

    def model(v: Floats) -> Floats:
        base, width, tail, ratio = v[:4]
        kinds = v[4:].reshape(-1, 3)
        return base + sum(h * profile(np.array(f), width, tail, ratio * width) for *f, h in kinds)

    start = np.array([0.0, 0.2 * spacing, 0.05, 2.5])
    low, high = [-1.0, 0.1 * spacing, 0.0, 2.0], [1.0, 0.34 * spacing, 0.5, 4.0]
    kinds = np.zeros((0, 3))
    v = start
    while len(kinds) < _MOST:
        left = _smoothed(data - (model(v) if len(kinds) else 0.0), vectors, 0.1 * spacing)
        for i in np.argsort(-left, axis=None):
            place = (np.array(np.unravel_index(i, left.shape)) + 0.5) / n
            if all(_gap(place - k[:2], vectors) > _APART * spacing for k in kinds):
                break
        height = float(left.flat[i] - np.median(left))
        if len(kinds) and height < _KIND * kinds[:, 2].max():
            break
        kinds = np.vstack([kinds, [*place, height]])
        near = 0.12 * spacing / np.sqrt(abs(np.linalg.det(vectors)))  # a column stays near where it was seen first
        bounds = (
            [*low, *np.column_stack([kinds[:, :2] - near, np.zeros(len(kinds))]).ravel()],
            [*high, *np.column_stack([kinds[:, :2] + near, np.full(len(kinds), 3.0)]).ravel()],
        )
        guess = np.clip([*v[:4], *kinds.ravel()], np.add(bounds[0], 1e-9), np.subtract(bounds[1], 1e-9))
        v = least_squares(lambda u: (model(u) - data).ravel(), guess, bounds=bounds, xtol=1e-3, ftol=1e-4, max_nfev=10).x
        kinds = v[4:].reshape(-1, 3)
    kinds = kinds[kinds[:, 2] >= _KIND * kinds[:, 2].max()]
    kinds = kinds[np.argsort(-kinds[:, 2], kind="stable")]
    return kinds[:, :2] % 1.0, kinds[:, 2] * scale


def column_spacing(vectors: Floats, lattice: Lattice) -> float:
    """Nearest-neighbour distance in pixels."""
    return float(np.sqrt(abs(np.linalg.det(vectors) / np.linalg.det(lattice.cell))) * lattice.shell_distances(1)[0])


def _smoothed(cell: Floats, vectors: Floats, width: float) -> Floats:
    """The cell blurred by a round Gaussian of so many pixels, in Fourier space as the cell is oblique."""
    n = np.fft.fftfreq(len(cell), 1 / len(cell))
    waves = np.linalg.inv(vectors).T
    k = n[:, None, None] * waves[0] + n[None, :, None] * waves[1]
    return np.fft.ifft2(np.fft.fft2(cell) * np.exp(-2 * (np.pi * width) ** 2 * (k**2).sum(axis=-1))).real


def _gap(difference: Floats, vectors: Floats) -> float:
    """Distance in pixels between two places of the cell, by the shortest way around."""
    near = difference - np.round(difference)
    ways = near + np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    return float(np.linalg.norm(ways @ vectors, axis=1).min())
