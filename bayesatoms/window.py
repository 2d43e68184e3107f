"""Window and Operator: what part of a crystal an image shows, applied to simulations alike.

The operator cuts a simulated configuration to the window at a random place, leaves out the sites
nobody saw, makes the labelling errors (each site once, however many environments share it) and
counts the complete environments by class. It is the same on both sides: an image's own histogram is
counted by the same loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from .configuration import UNSEEN, Configuration
from .environments import Environments
from .errors import InputError
from .lattice import Supercell

_MARGIN = 4  # cells of unseen crystal that a simulated box adds along each open axis of a window
_SLACK = 4  # further cells it may add so that a whole number of atoms meets the composition


@dataclass(frozen=True, eq=False)
class Window:
    """The sites that were seen.

    Parameters
    ----------
    sites : ndarray of int, shape (n, d + 1)
        Site references, cells counted from 0.
    whole : tuple of int, optional
        Shape of the supercell where the window is a whole periodic crystal (a simulation); then
        environments wrap around.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> e = Environments(Lattice.triangular(), ("Mo", "Re"))
    >>> Window.block(e, 464).complete(e)[0].shape
    (464, 7)
    """

    sites: NDArray[np.int64]
    whole: tuple[int, ...] | None = None

    @classmethod
    def of(cls, configuration: Configuration) -> Window:
        """The seen sites of a configuration; its whole supercell if it is periodic and wholly seen."""
        seen = configuration.flat != UNSEEN
        closed = configuration.periodic == configuration.lattice.periodic
        whole = configuration.labels.shape[:-1] if closed and seen.all() else None
        return cls(configuration.supercell.sites[seen], whole)

    @classmethod
    def block(cls, environments: Environments, n: int) -> Window:
        """A nearly square block (in cells) with exactly n complete environments: stands in where only counts are known."""
        if n < 1:
            raise InputError(f"a window needs at least one complete environment; found {n}")
        lattice = environments.lattice
        cells = -(-n // len(lattice.basis))
        side = int(np.ceil(cells ** (1 / lattice.dimension)))
        grid = np.indices((side,) * lattice.dimension).reshape(lattice.dimension, -1).T
        b = len(lattice.basis)
        centres = np.column_stack([np.repeat(grid, b, axis=0), np.tile(np.arange(b), len(grid))])[:n]
        seen = {(*(c[:-1] + t[:-1]).tolist(), int(t[-1])) for c in centres for t in environments.templates[c[-1]]}
        sites = np.array(sorted(seen), dtype=np.int64)
        sites[:, :-1] -= sites[:, :-1].min(axis=0)
        return cls(sites)

    @property
    def extent(self) -> tuple[int, ...]:
        """Cells spanned along each axis."""
        return self.whole or tuple(int(n) for n in self.sites[:, :-1].max(axis=0, initial=0) + 1)

    def complete(self, environments: Environments) -> tuple[NDArray[np.int64], ...]:
        """Complete environments per basis site: rows of positions in :attr:`sites`, centre first; shape (n, z + 1)."""
        lattice = environments.lattice
        axes = lattice.periodic if self.whole else (False,) * lattice.dimension
        block = lattice.supercell(self.extent, axes)
        place = np.full(block.n_sites + 1, -1, dtype=np.int64)  # the last entry answers for "outside"
        place[block.index(self.sites)] = np.arange(len(self.sites))
        found = []
        for template in environments.templates:
            rows = place[block.gather(template)]
            found.append(rows[(rows >= 0).all(axis=1)])
        return tuple(found)

    def box(self, environments: Environments, composition: ArrayLike) -> tuple[Supercell, NDArray[np.int64]]:
        """The periodic box to simulate, and its atoms of each species: larger than the window, meeting the composition.

        Of the shapes within a few cells of (extent + margin) the one whose whole numbers of atoms come
        closest to the composition is taken, since rare species make the histogram sensitive to it.
        """
        lattice, x = environments.lattice, np.asarray(composition, dtype=float)
        if self.whole:
            choices = [self.whole]
        else:
            reach = [r if periodic else 0 for r, periodic in zip(_reach(environments), lattice.periodic, strict=True)]
            least = [n + max(_MARGIN, 2 * r) * (r > 0) for n, r in zip(self.extent, reach, strict=True)]
            slack = [range(_SLACK + 1) if r else range(1) for r in reach]
            choices = [tuple(n + s for n, s in zip(least, extra, strict=True)) for extra in np.ndindex(*map(len, slack))]
        best = min(choices, key=lambda shape: (round(_mismatch(x, np.prod(shape) * len(lattice.basis)), 4), np.prod(shape)))
        supercell = lattice.supercell(best)
        return supercell, _atoms(x, supercell.n_sites)


def _reach(environments: Environments) -> NDArray[np.int64]:
    """Cells that an environment reaches along each axis."""
    return np.max([np.abs(t[:, :-1]).max(axis=0) for t in environments.templates], axis=0)


def _atoms(x: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Whole atoms of each species nearest to x, at least one of every species that is present at all."""
    counts = np.maximum(np.round(x * n).astype(np.int64), (x > 0).astype(np.int64))
    counts[np.argmax(counts)] += n - counts.sum()
    return counts


def _mismatch(x: NDArray[np.float64], n: int) -> float:
    """Worst error of the composition, relative to the rarest species."""
    present = x[x > 0]
    return float(np.abs(_atoms(x, int(n)) / n - x).max() / present.min())


class Operator:
    """Shows of simulated snapshots what the image showed of the crystal.

    Parameters
    ----------
    environments : Environments
    window : Window
    supercell : Supercell
        Of the simulated snapshots.
    label_error : array_like, shape (k, k), optional
        Row = true species, column = probability of being labelled so; no errors by default.

    Raises
    ------
    InputError
        If the window does not fit into the supercell or the matrix is no matrix of probabilities.
    """

    def __init__(self, environments: Environments, window: Window, supercell: Supercell, label_error: ArrayLike | None = None) -> None:
        if any(n > m for n, m in zip(window.extent, supercell.shape, strict=True)):
            raise InputError(f"window of {window.extent} cells does not fit into a box of {supercell.shape}")
        if window.whole and (window.whole != supercell.shape or supercell.periodic != environments.lattice.periodic):
            raise InputError(f"the window is a whole crystal of {window.whole} cells that closes on itself; the box is {supercell.shape}")
        self.environments, self.supercell = environments, supercell
        self.sites = window.sites
        self.rows = window.complete(environments)
        k = len(environments.species)
        self.cumulative = np.cumsum(check_label_error(label_error, k), axis=1)

    @property
    def n(self) -> int:
        """Complete environments in the window."""
        return sum(len(r) for r in self.rows)

    def counts(self, snapshots: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int64]:
        """Class counts of each snapshot (n, n_sites) seen through the window at a random place; shape (n, n_classes)."""
        free = np.array(self.supercell.periodic)
        origins = rng.integers(0, np.where(free, self.supercell.shape, 1), size=(len(snapshots), len(free)))
        exact = np.array_equal(self.cumulative, np.cumsum(np.eye(len(self.cumulative)), axis=1))
        noise = np.zeros((len(snapshots), 0)) if exact else rng.random((len(snapshots), len(self.sites)))
        shape = np.array(self.supercell.shape, dtype=np.int64)
        seen = _look(snapshots, self.sites, shape, len(self.environments.lattice.basis), origins, noise, self.cumulative)
        return tally(self.environments, self.rows, seen)


def tally(environments: Environments, rows: tuple[NDArray[np.int64], ...], seen: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Class counts (n, n_classes) of labels (n, sites) over the complete environments `rows`."""
    counts = np.zeros((len(seen), environments.n_classes), dtype=np.int64)
    for b, members in enumerate(rows):
        classes = environments.class_of[environments.offsets[b] : environments.offsets[b + 1]]
        _tally(seen, members, environments.strides(b), classes, counts)
    return counts


def check_label_error(matrix: ArrayLike | None, k: int) -> NDArray[np.float64]:
    """The k x k label-error matrix, the identity for None; InputError unless its rows are probabilities and it can be undone."""
    if matrix is None:
        return np.eye(k)
    error = np.asarray(matrix, dtype=float)
    if error.shape != (k, k) or not (error.min() >= 0 and np.abs(error.sum(axis=1) - 1).max() <= 1e-6):
        raise InputError(f"label_error is {error.tolist()}; expected {k} x {k}, row = true species, every row probabilities that sum to 1")
    if abs(np.linalg.det(error)) < 1e-3:
        raise InputError(f"label_error {error.tolist()} says that labels carry no information; nothing can be inferred from this image")
    return error


@njit(nogil=True, cache=True)
def _look(snapshots, sites, shape, n_basis, origins, noise, cumulative):
    n, v, d = len(snapshots), len(sites), len(shape)
    seen = np.empty((n, v), dtype=np.uint8)
    for s in range(n):
        for i in range(v):
            flat = 0
            for axis in range(d):
                flat = flat * shape[axis] + (sites[i, axis] + origins[s, axis]) % shape[axis]
            label = snapshots[s, flat * n_basis + sites[i, d]]
            if noise.shape[1] > 0:
                true, label = label, 0
                while label < len(cumulative) - 1 and noise[s, i] >= cumulative[true, label]:
                    label += 1
            seen[s, i] = label
    return seen


@njit(nogil=True, cache=True)
def _tally(seen, rows, strides, classes, counts):
    for s in range(len(seen)):
        for r in range(len(rows)):
            code = 0
            for j in range(len(strides)):
                code += strides[j] * np.int64(seen[s, rows[r, j]])
            counts[s, classes[code]] += 1
