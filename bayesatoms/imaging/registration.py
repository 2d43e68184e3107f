"""Registration: which lattice site every column of an image is, and where the columns nobody sees must be.

Maxima of the image are sorted into sublattices by their place in the cell, those of the lattice get
indices (:func:`bayesatoms.indexing.index_positions`), and the indexed ones predict where the rest must
be: a dim column in the flank of a bright one has no maximum of its own, a vacancy has none either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from ..errors import InputError
from ..indexing import index_positions
from ..lattice import Lattice
from .cell import Motif, Phases, average_cell, column_spacing, motif
from .filters import flattened
from .vectors import lattice_vectors

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

_BACKGROUND = 1.2  # width of the filter that removes the background for the search, in spacings
_SMOOTH, _SHARP = 0.14, 0.05  # and of the one against noise, for maxima and for the average cell
_FAINT = 0.15  # of the way from the gaps to the median column: a lower maximum is a ripple of the noise
_CATCH = 0.3  # spacings from its place in the average cell to a maximum, at most; chains of 1T' need 0.15
_FIT, _RIDGE = 14, 0.5  # sites that predict a place, and the weight of the mean lattice beside them
_FAR, _NEAR = 2.2, 0.15  # spacings to the third nearest known site at most; from a predicted place to a maximum taken for it
_OUTSIDE = 0.5  # spacings beyond the edge from which columns shine in
_ROUNDS = 3  # rows of sites without a maximum that are filled from the edge of the known ones
_VOTES = 3  # neighbours of the first two shells that must be known: as many as a site beyond a straight edge has


@dataclass(frozen=True, eq=False)
class Registration:
    """The lattice in an image.

    Attributes
    ----------
    lattice : Lattice
    sites : ndarray of int, shape (n, 3)
        Site references.
    positions : ndarray, shape (n, 2)
        x, y in pixels: of the maximum where there is one, else predicted.
    seen : ndarray of bool, shape (n,)
        Whether there is a maximum.
    beside : ndarray, shape (m, 2)
        Positions of the columns that are not sites of the lattice, and of sites just outside the image.
    kinds : ndarray of int, shape (n + m,)
        Kind of each column, sites first: place in `motif`.
    motif : Motif
    vectors : ndarray, shape (2, 2)
        Mean lattice vectors as rows, pixels.
    spacing : float
        Median nearest-neighbour distance, pixels.
    goodness : float
        Fraction of the maxima near the lattice's places that got an index.
    residual : ndarray, shape (n,)
        Distance of each column from where its neighbours predict it, in spacings; nan where not known. A micrograph has it
        by the fitted positions of the sites used, else it is by maxima.
    strays : ndarray, shape (s, 2)
        Maxima that belong to no column: adatoms, contamination, amorphous patches.
    """

    lattice: Lattice
    sites: Integers
    positions: Floats
    seen: Truths
    beside: Floats
    kinds: Integers
    motif: Motif
    vectors: Floats
    spacing: float
    goodness: float
    residual: Floats
    strays: Floats

    @cached_property
    def ideal(self) -> Floats:
        """Places of the sites in the ideal lattice, nm."""
        return self.lattice.positions(self.sites)

    def neighbours(self, shell: int = 1) -> Integers:
        """Rows of the neighbours of each site in a shell, -1 where not in the image; shape (n, z)."""
        return neighbour_rows(self.lattice, self.sites, shell)


def neighbour_rows(lattice: Lattice, sites: Integers, shell: int = 1) -> Integers:
    """Rows of the neighbours of each site within `sites`, -1 where absent; shape (n, z)."""
    row = {tuple(s): i for i, s in enumerate(sites.tolist())}
    shells = [lattice.shell(shell, b) for b in range(len(lattice.basis))]
    z = max(len(s) for s in shells)
    found = np.full((len(sites), z), -1, dtype=np.int64)
    for i, (n1, n2, b) in enumerate(sites.tolist()):
        for j, (m1, m2, c) in enumerate(shells[b].tolist()):
            found[i, j] = row.get((n1 + m1, n2 + m2, c), -1)
    return found


def register(data: Floats, lattice: Lattice, *, spacing: float | None = None, sublattice: int = 0, name: str = "image") -> Registration:
    """Find the lattice in an image and index its columns.

    Parameters
    ----------
    data : ndarray, shape (rows, columns)
        nan where nothing was recorded or is to be used.
    lattice : Lattice
        Of the sites that are meant; there may be further columns in the cell.
    spacing : float, optional
        Nearest-neighbour distance in pixels, where known.
    sublattice : int
        Of the kinds of columns in the cell, by mean height from 0, the brightest, the one that is meant.
    name : str
        For messages.

    Raises
    ------
    InputError
        If there is no such lattice.
    """
    there = np.isfinite(data)
    if there.mean() < 0.05:
        raise InputError(f"{name}: only {there.mean():.1%} of the pixels are used; expected at least 5 %; check roi and mask")
    first = None
    for vectors in lattice_vectors(data, lattice, spacing=spacing, name=name):
        try:
            return _registered(data, there, vectors, lattice, sublattice, name)
        except InputError as error:
            first = first or error
    raise first


def _registered(data: Floats, there: Truths, vectors: Floats, lattice: Lattice, sublattice: int, name: str) -> Registration:
    """The registration on one candidate of the mean lattice."""
    pitch = column_spacing(vectors, lattice)
    flat = flattened(data, _SMOOTH * pitch, _BACKGROUND * pitch)
    limit = 6 * np.median(np.abs(flat[there]))
    phases = Phases.of(np.clip(flat, -limit, limit), vectors)  # a few glaring spots must not lead the phase
    sharp = flattened(data, _SHARP * pitch, _BACKGROUND * pitch)
    cell = average_cell(np.clip(sharp, -limit, limit), there, phases)
    kinds = motif(cell, phases.vectors, lattice, name)
    if not 0 <= sublattice < (len(kinds.places) if kinds.sites == 1 else 1):
        raise InputError(
            f"{name}: sublattice {sublattice} asked for; the cell holds {len(kinds.places)} kind(s) of columns, {kinds.sites} of them "
            "sites of the lattice; expected one of the kinds, counted from 0, the brightest, for a lattice with one site a cell"
        )
    maxima = _maxima(flat, there)
    gaps = (phases.places(maxima)[:, None] - kinds.places + 0.5) % 1.0 - 0.5
    apart = np.linalg.norm(gaps @ phases.vectors, axis=-1) / pitch
    kind = np.where(apart.min(axis=1) < _CATCH, apart.argmin(axis=1), -1)
    height = ndimage.map_coordinates(flat, maxima[:, ::-1].T, order=1)
    ours = (kind >= 0) & (kind < kinds.sites)
    ours &= height > (1 - _FAINT) * np.quantile(flat[there], 0.02) + _FAINT * np.median(height[ours])
    # a lattice of one site is indexed as the cell that was found, which may be strained further than an unknown one could be
    shape = lattice if kinds.sites > 1 else Lattice(phases.vectors / pitch, name=lattice.name)
    try:
        indexing = index_positions(maxima[ours], shape, sublattice_hint=kind[ours] if kinds.sites > 1 else None, vectors=phases.vectors)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    kept = indexing.kept
    sites, positions, seen = _filled(indexing.sites[kept], maxima[ours][kept], lattice, data, maxima[ours][~kept], pitch)
    residual = np.full(len(sites), np.nan)
    residual[: kept.sum()] = indexing.residual[kept]
    # the motif was found along other axes than the indices run; the way from site 0 to a column is the same in pixels
    offsets = (kinds.places - kinds.places[0]) @ phases.vectors @ np.linalg.inv(indexing.vectors)
    columns = _Predicted(lattice, sites, positions, offsets, kinds.sites, data.shape, maxima, pitch)
    if sublattice:
        anchor = positions
        sites, positions, seen = columns.sublattice(sublattice, data)
        residual = np.full(len(sites), np.nan)
        beside, others = columns.beside([k for k in range(len(offsets)) if k != sublattice], known=anchor, target=(sublattice, positions))
    else:
        beside, others = columns.beside(range(len(offsets)), known=positions, target=(0, positions))
    order = np.lexsort(sites.T[::-1])
    strays = maxima[(kind < 0) & (height > np.median(height[ours]))]
    own = sites[order, 2] if kinds.sites > 1 else np.full(len(sites), sublattice)
    return Registration(
        lattice, sites[order], positions[order], seen[order], beside, np.concatenate([own, others]), kinds, indexing.vectors,
        indexing.spacing, indexing.goodness, residual[order], strays,
    )  # fmt: skip


def _maxima(flat: Floats, there: Truths) -> Floats:
    """All maxima, x, y, to a fraction of a pixel: no least distance, which would lose the dim ones beside bright ones."""
    peak = (flat == ndimage.maximum_filter(flat, 3)) & there
    y, x = np.nonzero(peak)
    inner = (y > 0) & (x > 0) & (y < flat.shape[0] - 1) & (x < flat.shape[1] - 1)
    y, x = y[inner], x[inner]

    def vertex(before: Floats, here: Floats, after: Floats) -> Floats:
        bend = before - 2 * here + after
        return np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1.0), 0.0)

    here = flat[y, x]
    return np.column_stack([x + vertex(flat[y, x - 1], here, flat[y, x + 1]), y + vertex(flat[y - 1, x], here, flat[y + 1, x])])


def misplaced(lattice: Lattice, sites: Integers, positions: Floats, spacing: float) -> Floats:
    """How far each site (n,) lies from where its neighbours predict it, in spacings; shape (n,)."""
    ideal = lattice.positions(sites)
    where, _ = predicted(ideal, positions, ideal, abs(np.linalg.det(lattice.cell)) / len(lattice.basis), others=True)
    return np.linalg.norm(positions - where, axis=1) / spacing


def predicted(
    ideal: Floats, positions: Floats, wanted: Floats, cell_area: float, *, others: bool = False
) -> tuple[Floats, NDArray[np.float64]]:
    """Where places of the ideal lattice lie in the image, by affine fits to the nearest known sites.

    Parameters
    ----------
    ideal, positions : ndarray, shape (n, 2)
        Known sites in the ideal lattice (any unit) and in the image (pixels).
    wanted : ndarray, shape (m, 2)
        Places in the ideal lattice.
    cell_area : float
        Ideal area per site, which sets the scale of the weights.
    others : bool
        The places are those of the known sites themselves, each to be predicted by the others.

    Returns
    -------
    positions : ndarray, shape (m, 2)
    distance : ndarray, shape (m,)
        To the farthest of the three nearest known sites, in units of the root of the area.
    """
    unit = np.sqrt(cell_area)
    design = np.column_stack([np.ones(len(ideal)), ideal])
    mean = np.linalg.lstsq(design, positions, rcond=None)[0]
    rest = positions - design @ mean
    k = min(_FIT + others, len(ideal))
    distance, near = (found[:, int(others) :] for found in cKDTree(ideal).query(wanted, k))
    weight = np.exp(-0.5 * (distance / (1.3 * unit)) ** 2) + 1e-9
    step = (ideal[near] - wanted[:, None]) / unit
    local = np.concatenate([np.ones((*near.shape, 1)), step], axis=-1)
    weighted = np.swapaxes(local * weight[..., None], 1, 2)
    ridge = np.diag([1e-9, _RIDGE, _RIDGE])
    fit = np.linalg.solve(weighted @ local + ridge, weighted @ rest[near])
    return np.column_stack([np.ones(len(wanted)), wanted]) @ mean + fit[:, 0], distance[:, min(2, distance.shape[1] - 1)] / unit


def _filled(
    sites: Integers, positions: Floats, lattice: Lattice, data: Floats, spare: Floats, pitch: float
) -> tuple[Integers, Floats, Truths]:
    """Add the sites inside the image that have no index yet, predicted from the ones around them.

    `spare` maxima near a prediction are taken: beyond many empty sites the indexed region goes on.
    """
    seen = np.ones(len(sites), dtype=bool)
    area = abs(np.linalg.det(lattice.cell)) / len(lattice.basis)
    around = [np.vstack([lattice.shell(1, b), lattice.shell(2, b)]).tolist() for b in range(len(lattice.basis))]
    tree = cKDTree(spare) if len(spare) else None
    idle = 0
    while idle < _ROUNDS:
        known = {tuple(s) for s in sites.tolist()}
        votes: dict[tuple[int, int, int], int] = {}
        for n1, n2, b in known:
            for m1, m2, c in around[b]:
                there = (n1 + m1, n2 + m2, c)
                if there not in known:
                    votes[there] = votes.get(there, 0) + 1
        new = np.array(sorted(s for s, v in votes.items() if v >= _VOTES), dtype=np.int64).reshape(-1, 3)
        if not len(new):
            break
        where, far = predicted(lattice.positions(sites), positions, lattice.positions(new), area)
        inside = _recorded(data, where) & (far < _FAR)
        new, where = new[inside], where[inside]
        if not len(new):
            break
        caught = np.zeros(len(new), dtype=bool)
        if tree is not None:
            distance, which = tree.query(where)
            caught = distance < _CATCH * pitch
            where[caught] = spare[which[caught]]
        idle = 0 if caught.any() else idle + 1
        sites, positions, seen = np.vstack([sites, new]), np.vstack([positions, where]), np.concatenate([seen, caught])
    return sites, positions, seen


def _recorded(data: Floats, points: Floats) -> Truths:
    """Which points lie on a pixel that was recorded."""
    column, row = np.round(points).astype(np.int64).T
    inside = (row >= 0) & (column >= 0) & (row < data.shape[0]) & (column < data.shape[1])
    found = np.zeros(len(points), dtype=bool)
    found[inside] = np.isfinite(data[row[inside], column[inside]])
    return found


class _Predicted:
    """Where columns of every kind lie, by the indexed ones around them."""

    def __init__(
        self, lattice: Lattice, sites: Integers, positions: Floats, offsets: Floats, n_sites: int, shape: tuple[int, int],
        maxima: Floats, pitch: float,
    ) -> None:  # fmt: skip
        self.lattice, self.positions, self.offsets, self.n_sites, self.shape, self.pitch = (
            lattice,
            positions,
            offsets,
            n_sites,
            shape,
            pitch,
        )
        self.maxima, self.tree = maxima, cKDTree(maxima)
        self.ideal = lattice.positions(sites)
        self.area = abs(np.linalg.det(lattice.cell)) / len(lattice.basis)
        steps = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
        self.cells = np.unique((sites[:, None, :2] + steps).reshape(-1, 2), axis=0)

    def _of(self, kind: int, margin: float) -> tuple[Integers, Floats, Truths]:
        """Cells, positions and whether a maximum was caught, for all columns of a kind up to `margin` pixels outside the image."""
        basis = self.lattice.basis
        place = basis[kind] if kind < self.n_sites else basis[0] + self.offsets[kind]
        where, far = predicted(self.ideal, self.positions, (self.cells + place) @ self.lattice.cell, self.area)
        near = (far < _FAR) & (where > -margin - 0.5).all(axis=1) & (where < np.array(self.shape[::-1]) + margin - 0.5).all(axis=1)
        where = where[near]
        distance, which = self.tree.query(where)
        caught = distance < _NEAR * self.pitch
        where[caught] = self.maxima[which[caught]]
        return self.cells[near], where, caught

    def sublattice(self, kind: int, data: Floats) -> tuple[Integers, Floats, Truths]:
        """Sites, positions and whether seen, of a kind that is not the brightest one."""
        cells, where, caught = self._of(kind, 0.0)
        there = _recorded(data, where)
        sites = np.column_stack([cells - cells[there].min(axis=0), np.zeros(len(cells), dtype=np.int64)])
        return sites[there], where[there], caught[there]

    def beside(self, kinds: Iterable[int], known: Floats, target: tuple[int, Floats]) -> tuple[Floats, Integers]:
        """Positions and kinds of all columns but the target's: those of other kinds, and all just outside, which shine in."""
        places, labels = [], []
        for kind in [*kinds, *([target[0]] if target[0] not in kinds else [])]:
            _, where, _ = self._of(kind, _OUTSIDE * self.pitch)
            if kind == target[0] or kind < self.n_sites:
                own = target[1] if kind == target[0] or target[0] == 0 else known
                where = where[cKDTree(own).query(where)[0] > 0.5 * self.pitch]
                if own is known and target[0]:
                    where = np.vstack([known, where])
            places.append(where)
            labels.append(np.full(len(where), kind))
        return np.vstack(places), np.concatenate(labels)
