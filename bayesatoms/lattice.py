"""Crystal lattices: cell, basis, shells, bond directions, symmetry, and finite supercells.

A *site reference* is a row of ``d + 1`` integers ``(n_1, ..., n_d, b)``: the cell it lies in and
its place in the basis. Everything else (pairs, clusters, environments, images) is made of such
references, so any two- or three-dimensional lattice with a basis goes the same way.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError

_TOLERANCE = 1e-6  # relative to the shortest lattice vector; positions closer than this coincide


@dataclass(frozen=True)
class Operation:
    """A symmetry operation in lattice coordinates: site ``(n, b)`` goes to ``(n W + shift[b], image[b])``."""

    matrix: NDArray[np.int64]
    shift: NDArray[np.int64]
    image: NDArray[np.int64]

    def __call__(self, sites: ArrayLike) -> NDArray[np.int64]:
        sites = np.asarray(sites, dtype=np.int64)
        basis = sites[..., -1]
        moved = sites[..., :-1] @ self.matrix + self.shift[basis]
        return np.concatenate([moved, self.image[basis][..., None]], axis=-1)


class Lattice:
    """A periodic lattice with a basis.

    Parameters
    ----------
    cell : array_like, shape (d, d)
        Lattice vectors as rows, in nm; d is 2 or 3.
    basis : array_like, shape (b, d), optional
        Fractional coordinates of the sites of one cell; the origin alone by default.
    sublattices : sequence of str, optional
        A name for each site of the basis. Symmetry only maps a site onto one of the same name.
    periodic : sequence of bool, optional
        Which axes repeat; an open last axis makes a film whose cells along it are layers.
    name : str
        Shown in reports.

    Raises
    ------
    InputError
        If the cell is singular, the shapes disagree or two basis sites coincide.

    Examples
    --------
    >>> metal = Lattice.triangular(a=0.316)
    >>> metal.shell_distances(3).round(3).tolist()
    [0.316, 0.547, 0.632]
    >>> len(metal.shell(1, basis=0)), len(metal.operations)
    (6, 12)
    """

    def __init__(
        self,
        cell: ArrayLike,
        basis: ArrayLike | None = None,
        *,
        sublattices: tuple[str, ...] | list[str] | None = None,
        periodic: tuple[bool, ...] | list[bool] | None = None,
        name: str = "custom",
    ) -> None:
        self.cell = np.array(cell, dtype=float)
        if self.cell.shape not in ((2, 2), (3, 3)) or abs(np.linalg.det(self.cell)) < 1e-12:
            raise InputError(f"cell {self.cell.tolist()} is no basis of the plane or of space; expected 2 or 3 independent rows")
        d = len(self.cell)
        self.basis = np.zeros((1, d)) if basis is None else np.atleast_2d(np.array(basis, dtype=float))
        if self.basis.shape[1] != d:
            raise InputError(f"basis has {self.basis.shape[1]} coordinates a site; the cell has {d}")
        self.sublattices = tuple(sublattices) if sublattices is not None else ("A",) * len(self.basis)
        if len(self.sublattices) != len(self.basis):
            raise InputError(f"{len(self.sublattices)} sublattice names for {len(self.basis)} basis sites")
        self.periodic = (True,) * d if periodic is None else tuple(bool(p) for p in periodic)
        if len(self.periodic) != d:
            raise InputError(f"periodic names {len(self.periodic)} axes; the lattice has {d}")
        self.name = name
        apart = self.basis[:, None] - self.basis[None]
        apart -= np.round(apart)
        close = np.linalg.norm(apart @ self.cell, axis=-1) + np.eye(len(self.basis)) < self._tolerance
        if close.any():
            raise InputError(f"basis sites {np.argwhere(close)[0].tolist()} coincide")

    # ------------------------------------------------------------------ the common lattices

    @classmethod
    def triangular(cls, a: float = 1.0) -> Lattice:
        """Triangular lattice with nearest-neighbour distance `a` (nm): a metal plane of MoS2."""
        return cls(_positive(a) * np.array([[1.0, 0.0], [-0.5, np.sqrt(0.75)]]), name="triangular")

    @classmethod
    def square(cls, a: float = 1.0) -> Lattice:
        """Square lattice with nearest-neighbour distance `a` (nm)."""
        return cls(_positive(a) * np.eye(2), name="square")

    @classmethod
    def honeycomb(cls, a: float = 1.0, sublattices: tuple[str, str] = ("A", "A")) -> Lattice:
        """Honeycomb lattice with nearest-neighbour distance `a` (nm); name the two sublattices apart to keep them apart."""
        cell = np.sqrt(3) * _positive(a) * np.array([[1.0, 0.0], [-0.5, np.sqrt(0.75)]])
        return cls(cell, [[1 / 3, 2 / 3], [2 / 3, 1 / 3]], sublattices=sublattices, name="honeycomb")

    @classmethod
    def cubic(cls, a: float = 1.0, *, film: bool = False) -> Lattice:
        """Simple cubic lattice (nm); `film` opens the third axis, whose cells are then layers."""
        return cls(_positive(a) * np.eye(3), periodic=(True, True, not film), name="cubic film" if film else "cubic")

    @classmethod
    def named(cls, name: str, a: float) -> Lattice:
        """The common lattice of that name, as study.toml declares it.

        Raises
        ------
        InputError
            If the name is unknown.
        """
        makers = {"triangular": cls.triangular, "square": cls.square, "honeycomb": cls.honeycomb, "cubic": cls.cubic}
        if name not in makers:
            raise InputError(f"lattice name {name!r} is unknown; expected one of {', '.join(makers)}")
        return makers[name](a)

    # ------------------------------------------------------------------ geometry

    @property
    def dimension(self) -> int:
        return len(self.cell)

    @property
    def _tolerance(self) -> float:
        return _TOLERANCE * float(np.linalg.norm(self.cell, axis=1).min())

    @cached_property
    def key(self) -> tuple:
        """What makes two lattices the same: geometry, sublattices, open axes (not the name)."""
        return (self.cell.round(9).tobytes(), self.basis.round(9).tobytes(), self.sublattices, self.periodic)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lattice) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Lattice({self.name}, a={np.linalg.norm(self.cell[0]):.4g} nm, {len(self.basis)} site(s) a cell)"

    def positions(self, sites: ArrayLike) -> NDArray[np.float64]:
        """Cartesian positions (nm) of site references, shape (..., d)."""
        sites = np.asarray(sites, dtype=np.int64)
        return (sites[..., :-1] + self.basis[sites[..., -1]]) @ self.cell

    @cached_property
    def _radius(self) -> float:
        """How far shells and symmetry are looked for (nm)."""
        rows = np.linalg.norm(self.cell, axis=1)
        return float(max(rows.max(), rows.min() * (6 if self.dimension == 2 else 4))) + self._tolerance

    @cached_property
    def _cells(self) -> NDArray[np.int64]:
        """Every cell that holds a site within the radius of the home cell's, however skew the cell is."""
        heights = 1 / np.linalg.norm(np.linalg.inv(self.cell), axis=0)
        reach = np.floor(self._radius / heights + np.ptp(self.basis, axis=0)).astype(int)
        return np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))), dtype=np.int64)

    @cached_property
    def _ball(self) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
        """Sites around the home cell and their distances from each basis site; complete up to the radius."""
        b = len(self.basis)
        sites = np.column_stack([np.repeat(self._cells, b, axis=0), np.tile(np.arange(b), len(self._cells))])
        places = self.positions(sites)
        return sites, [np.linalg.norm(places - self.positions((*([0] * self.dimension), b)), axis=1) for b in range(len(self.basis))]

    def shell_distances(self, n: int) -> NDArray[np.float64]:
        """The `n` smallest distinct distances between sites (nm), over all sublattices.

        Raises
        ------
        InputError
            If there are fewer within the radius in which neighbours are looked for.
        """
        every = np.sort(np.concatenate(self._ball[1]))
        every = every[(every > self._tolerance) & (every < self._radius)]
        distinct = every[np.concatenate([[True], np.diff(every) > self._tolerance])]
        if n > len(distinct):
            raise InputError(f"shell {n} of the {self.name} lattice is too far away; expected 1 to {len(distinct)}")
        return distinct[:n]

    def shell(self, k: int, basis: int) -> NDArray[np.int64]:
        """Sites at the k-th distance (1 = nearest) from basis site `basis`, counter-clockwise in 2-D; shape (z, d + 1)."""
        if k < 1:
            raise InputError(f"shell {k} does not exist; shells count from 1 (nearest neighbours)")
        sites, distances = self._ball
        chosen = sites[np.abs(distances[basis] - self.shell_distances(k)[-1]) < self._tolerance]
        vectors = self.positions(chosen) - self.positions((*([0] * self.dimension), basis))
        if self.dimension == 2:
            angle = np.arctan2(vectors[:, 1], vectors[:, 0]).round(6) % (2 * np.pi)
            return chosen[np.argsort(angle, kind="stable")]
        return chosen[np.lexsort((vectors / self.shell_distances(1)[0]).round(6).T)]  # in its own unit: the order must not depend on a

    def bonds(self, k: int, direction: int | None = None) -> NDArray[np.int64]:
        """Every bond of shell `k` that starts in the home cell, once; shape (n, 2, d + 1).

        `direction` keeps the bonds along one row of :meth:`directions`.
        """
        origin = [0] * self.dimension
        pairs = []
        for b in range(len(self.basis)):
            for site in self.shell(k, b):
                # a bond and its reverse are one: keep the end whose (cell, basis) comes first
                if tuple(site) > (*origin, b):
                    pairs.append([(*origin, b), tuple(site)])
        pairs = np.array(pairs, dtype=np.int64)
        if direction is None:
            return pairs
        directions = self.directions(k)
        if not 0 <= direction < len(directions):
            raise InputError(f"direction {direction} does not exist in shell {k}; expected 0 to {len(directions) - 1}")
        vectors = _undirected(self.positions(pairs[:, 1]) - self.positions(pairs[:, 0]))
        return pairs[np.linalg.norm(vectors - directions[direction], axis=1) < 1e-6]

    def directions(self, k: int) -> NDArray[np.float64]:
        """Distinct bond directions of shell `k` as unit vectors, a bond and its reverse being one; shape (n, d)."""
        pairs = self.bonds(k)
        vectors = _undirected(self.positions(pairs[:, 1]) - self.positions(pairs[:, 0]))
        if self.dimension == 2:
            order = np.argsort(np.arctan2(vectors[:, 1], vectors[:, 0]).round(6), kind="stable")
        else:
            order = np.lexsort(vectors.round(6).T)
        distinct: list[NDArray[np.float64]] = []
        for v in vectors[order]:
            if not any(np.linalg.norm(v - u) < 1e-6 for u in distinct):
                distinct.append(v)
        return np.array(distinct)

    def triangle(self, orientation: str = "up") -> NDArray[np.int64]:
        """A nearest-neighbour triangle of a triangular lattice, pointing "up" or "down"; shape (3, 3).

        In a metal plane of MoS2 one orientation has a sulfur pair at its centre, the other a hollow.

        Raises
        ------
        InputError
            If the lattice is not triangular or the orientation is unknown.
        """
        if self.dimension != 2 or len(self.basis) != 1 or len(self.shell(1, 0)) != 6:
            raise InputError(f"triangle() needs a triangular lattice; this one is {self.name}")
        if orientation not in ("up", "down"):
            raise InputError(f"orientation {orientation!r} is unknown; expected 'up' or 'down'")
        ring = self.shell(1, 0)  # counter-clockwise, so ring[0], ring[1] close a triangle above the first bond
        ends = ring[:2] if orientation == "up" else ring[[5, 0]]
        return np.vstack([[(0, 0, 0)], ends])

    # ------------------------------------------------------------------ symmetry

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """Space-group operations modulo lattice translations, from the metric and the basis."""
        d, metric = self.dimension, self.cell @ self.cell.T
        lengths = np.linalg.norm(self._cells @ self.cell, axis=1)
        rows = [self._cells[np.abs(lengths - r) < self._tolerance] for r in np.linalg.norm(self.cell, axis=1)]  # where each axis may go
        matrices = np.array(list(itertools.product(*rows)), dtype=np.int64).reshape(-1, d, d)
        turned = matrices @ metric @ np.swapaxes(matrices, 1, 2)
        matrices = matrices[np.abs(turned - metric).max(axis=(1, 2)) < 1e-6 * np.abs(metric).max()]
        for axis in np.flatnonzero(~np.array(self.periodic)):  # an open axis may not be mixed or reversed
            keep = (matrices[:, axis, axis] == 1) & (np.abs(matrices[:, axis]).sum(-1) == 1) & (np.abs(matrices[:, :, axis]).sum(-1) == 1)
            matrices = matrices[keep]
        found = []
        for matrix in matrices:
            for target in range(len(self.basis)):
                operation = self._with_translation(matrix, self.basis[target] - self.basis[0] @ matrix)
                if operation is not None:
                    found.append(operation)
        return tuple(found)

    def _with_translation(self, matrix: NDArray[np.int64], translation: NDArray[np.float64]) -> Operation | None:
        moved = self.basis @ matrix + translation
        image, shift = [], []
        for b, place in enumerate(moved):
            apart = place - self.basis
            cells = np.round(apart)
            hits = np.flatnonzero(np.linalg.norm((apart - cells) @ self.cell, axis=1) < 10 * self._tolerance)
            if len(hits) != 1 or self.sublattices[hits[0]] != self.sublattices[b]:
                return None
            image.append(hits[0])
            shift.append(cells[hits[0]])
        return Operation(matrix, np.array(shift, dtype=np.int64), np.array(image, dtype=np.int64))

    def supercell(self, shape: tuple[int, ...], periodic: tuple[bool, ...] | None = None) -> Supercell:
        """A finite block of `shape` cells; axes repeat as `periodic` says (default: as the lattice's own)."""
        return Supercell(self, tuple(int(n) for n in shape), self.periodic if periodic is None else tuple(periodic))


@dataclass(frozen=True)
class Supercell:
    """A finite block of a lattice; site number = (cell in C order) * basis size + basis index.

    Examples
    --------
    >>> block = Lattice.square().supercell((4, 4))
    >>> block.n_sites, block.gather([[0, 0, 0], [1, 0, 0]])[-1].tolist()
    (16, [15, 3])
    """

    lattice: Lattice
    shape: tuple[int, ...]
    periodic: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != self.lattice.dimension or min(self.shape) < 1:
            raise InputError(f"supercell shape {self.shape} does not fit a {self.lattice.dimension}-D lattice")

    @property
    def n_cells(self) -> int:
        return int(np.prod(self.shape))

    @property
    def n_sites(self) -> int:
        return self.n_cells * len(self.lattice.basis)

    @cached_property
    def sites(self) -> NDArray[np.int64]:
        """Site references in the order of the site numbers, shape (n_sites, d + 1)."""
        cells = np.indices(self.shape).reshape(len(self.shape), -1).T
        b = len(self.lattice.basis)
        return np.column_stack([np.repeat(cells, b, axis=0), np.tile(np.arange(b), len(cells))])

    def index(self, sites: ArrayLike) -> NDArray[np.int64]:
        """Site numbers of references, wrapped along periodic axes; -1 outside an open axis."""
        sites = np.asarray(sites, dtype=np.int64)
        cells, inside = sites[..., :-1].copy(), np.ones(sites.shape[:-1], dtype=bool)
        for axis, (n, wraps) in enumerate(zip(self.shape, self.periodic, strict=True)):
            if wraps:
                cells[..., axis] %= n
            else:
                inside &= (cells[..., axis] >= 0) & (cells[..., axis] < n)
        cells[~inside] = 0
        flat = np.ravel_multi_index(tuple(np.moveaxis(cells, -1, 0)), self.shape) * len(self.lattice.basis) + sites[..., -1]
        return np.where(inside, flat, -1)

    def gather(self, template: ArrayLike) -> NDArray[np.int64]:
        """Site numbers of a template of m references translated to every cell; shape (n_cells, m), -1 outside."""
        template = np.asarray(template, dtype=np.int64)
        cells = np.indices(self.shape).reshape(len(self.shape), -1).T
        moved = np.repeat(template[None], len(cells), axis=0)
        moved[..., :-1] += cells[:, None, :]
        return self.index(moved)


def _positive(a: float) -> float:
    if not (np.isfinite(a) and a > 0):
        raise InputError(f"lattice constant a is {a}; expected a length above 0 in nm")
    return float(a)


def _undirected(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors with the first non-zero coordinate from the last axis down made positive (v and -v alike)."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in unit:
        for value in row[::-1]:
            if abs(value) > 1e-9:
                row *= np.sign(value)
                break
    return unit
