"""Window and Operator: what part of a crystal an image shows, applied to simulations alike.

The operator cuts a simulated configuration to the window at a random place, leaves out the sites
nobody saw, sees each atom as the image would (each site once, however many environments share it)
and counts the complete environments by class. It is the same on both sides: an image's own histogram
is counted by the same loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import counting
from .configuration import UNSEEN, Configuration
from .environments import Environments
from .errors import InputError
from .lattice import Supercell
from .response import Response

_MARGIN = 4  # cells of unseen crystal that a simulated box adds along each open axis of a window
_CACHE = 2**18  # bytes of labels that are seen before their environments are counted
_BINS = 1024  # of a random number, a power of two: where the search for its outcome begins
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

    def box(self, environments: Environments, composition: ArrayLike, times: int = 1) -> tuple[Supercell, NDArray[np.int64]]:
        """The periodic box to simulate, and its atoms of each species: larger than the window, meeting the composition.

        The window is an open part of a crystal `times` as long along each periodic axis.
        Of the shapes within a few cells of (extent + margin) the one whose whole numbers of atoms come
        closest to the composition is taken, since rare species make the histogram sensitive to it.
        """
        lattice, x = environments.lattice, np.asarray(composition, dtype=float)
        if self.whole:
            choices = [self.whole]
        else:
            reach = [r if periodic else 0 for r, periodic in zip(_reach(environments), lattice.periodic, strict=True)]
            least = [max(n + max(_MARGIN, 2 * r), times * n) if r else n for n, r in zip(self.extent, reach, strict=True)]
            slack = [range(_SLACK + 1) if r else range(1) for r in reach]
            choices = [tuple(n + s for n, s in zip(least, extra, strict=True)) for extra in np.ndindex(*map(len, slack))]
        best = min(choices, key=lambda shape: (round(_mismatch(x, np.prod(shape) * len(lattice.basis)), 4), np.prod(shape)))
        supercell = lattice.supercell(best)
        return supercell, _atoms(x, supercell.n_sites)

    def fits(self, environments: Environments, shape: tuple[int, ...]) -> bool:
        """Whether a box of that shape, simulated for another window, serves this one: its ends do not meet around the box.

        Examples
        --------
        >>> from bayesatoms.lattice import Lattice
        >>> e = Environments(Lattice.square(), ("A", "B"))
        >>> window = Window(np.array([[0, 0, 0], [5, 5, 0]]))
        >>> window.fits(e, (8, 9)), window.fits(e, (7, 9))
        (True, False)
        """
        if self.whole:
            return self.whole == tuple(shape)
        axes = zip(self.extent, shape, _reach(environments), environments.lattice.periodic, strict=True)
        # along an open axis the layers themselves must be the same ones
        return all(m >= n + 2 * r if periodic and r else m == n for n, m, r, periodic in axes)


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
    response : Response or array_like, shape (k, k), optional
        What is seen of an atom: soft labels, or the label-error matrix of hard ones (row = true species,
        column = probability of being labelled so); no errors by default.

    Raises
    ------
    InputError
        If the window does not fit into the supercell or the matrix is no matrix of probabilities.
    """

    def __init__(
        self, environments: Environments, window: Window, supercell: Supercell, response: Response | ArrayLike | None = None
    ) -> None:
        if any(n > m for n, m in zip(window.extent, supercell.shape, strict=True)):
            raise InputError(f"window of {window.extent} cells does not fit into a box of {supercell.shape}")
        if window.whole and (window.whole != supercell.shape or supercell.periodic != environments.lattice.periodic):
            raise InputError(f"the window is a whole crystal of {window.whole} cells that closes on itself; the box is {supercell.shape}")
        self.environments, self.supercell = environments, supercell
        self.sites = window.sites
        self.rows = window.complete(environments)
        self.response = response if isinstance(response, Response) else Response.of_errors(response, len(environments.species))

    @property
    def n(self) -> int:
        """Complete environments in the window."""
        return sum(len(r) for r in self.rows)

    def counts(self, snapshots: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int64] | NDArray[np.float64]:
        """Class counts of each snapshot (n, n_sites) seen through the window at a random place; shape (n, n_classes).

        Whole numbers, or soft counts where labels are soft.
        """
        free = np.array(self.supercell.periodic)
        origins = rng.integers(0, np.where(free, self.supercell.shape, 1), size=(len(snapshots), len(free)))
        if self.response.crisp:
            return self._crisp(snapshots, origins, rng)
        noise = rng.random((len(snapshots), len(self.sites)))
        cumulative = np.cumsum(self.response.given, axis=1)
        near = np.stack([np.searchsorted(row, np.arange(_BINS) / _BINS, side="right") for row in cumulative])
        shape = np.array(self.supercell.shape, dtype=np.int64)
        seen = np.empty((len(snapshots), len(self.sites)), dtype=np.int32)
        counting.look(snapshots, self.sites, shape, len(self.environments.lattice.basis), origins, noise, cumulative, near, _BINS, seen)
        return tally(self.environments, self.rows, seen, self.response.vectors)

    @cached_property
    def _layout(self) -> tuple[Any, ...]:
        """What counting hard labels needs of the crystal: lines of sites, sites of the window, classes and strides; widths of a label."""
        shape, e = np.array(self.supercell.shape), self.environments
        lines = np.indices(tuple(shape[:-1])).reshape(len(shape) - 1, -1).T
        begin = np.append(np.cumprod(shape[:0:-1])[::-1], 1)[:-1]
        at = self.supercell.index(self.sites).astype(np.uint32)
        tables = [(e.class_of[e.offsets[b] : e.offsets[b + 1]], e.strides(b)) for b in range(len(e.lattice.basis))]
        largest = len(e.species) ** max(len(strides) for _, strides in tables)
        return (lines, begin, at, tables, *((np.uint8, np.uint32) if largest <= 2**8 else (np.uint16, np.uint64)))

    def _crisp(self, snapshots: NDArray[np.uint8], origins: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Counts where labels are hard: crystals side by side."""
        lines, begin, at, tables, field, four = self._layout
        shape, basis = np.array(self.supercell.shape), len(self.environments.lattice.basis)
        row = int(shape[-1]) * basis  # sites that follow each other along the last axis
        lead = ((lines + origins[:, None, :-1]) % shape[:-1]) @ begin
        given = np.zeros((0, 0)) if self.response.exact else np.ascontiguousarray(self.response.given, dtype=float)
        blocks = max(1, _CACHE // (len(self.sites) * counting.BLOCK * np.dtype(field).itemsize))
        seen = np.zeros((blocks, len(self.sites), counting.BLOCK), dtype=field)
        state = rng.integers(1, 2**64, 4, dtype=np.uint64)
        counts = np.zeros((len(snapshots), self.environments.n_classes), dtype=np.int64)
        codes = np.zeros(counting.BLOCK, dtype=field)
        lead, shift = (lead * basis).astype(np.int64), origins[:, -1] * basis
        for first in range(0, len(snapshots), blocks * counting.BLOCK):
            some = slice(first, first + blocks * counting.BLOCK)
            counting.see(snapshots[some], lead[some], shift[some], row, at, given, state, seen.view(four))
            for members, (classes, strides) in zip(self.rows, tables, strict=True):
                if len(classes) <= counting.LARGEST:
                    words, places = seen.view(np.uint64), strides.astype(np.uint64)
                    counting.tally_blocks(words, codes.view(np.uint64), codes, members, places, classes, counts[some])
                else:
                    one_by_one = seen.transpose(0, 2, 1).reshape(-1, len(self.sites))[: len(counts[some])]
                    counting.tally_one(one_by_one, members, strides, classes, counts[some])
        return counts


def tally(
    environments: Environments,
    rows: tuple[NDArray[np.int64], ...],
    seen: NDArray[np.integer],
    vectors: NDArray[np.float64] | None = None,
) -> NDArray[np.int64] | NDArray[np.float64]:
    """Class counts over the complete environments `rows`.

    Parameters
    ----------
    environments : Environments
    rows : tuple of ndarray
        As :meth:`Window.complete` gives them.
    seen : ndarray, shape (n, sites)
        Species number of each site, or its row in `vectors`.
    vectors : ndarray, shape (m, k), optional
        Soft labels. An environment then counts for every class with the probability that it is of it, the
        product over its sites.

    Returns
    -------
    ndarray, shape (n, n_classes)
        Whole numbers; real ones if there are vectors. Every row sums to the number of environments.
    """
    counts = np.zeros((len(seen), environments.n_classes), dtype=np.int64 if vectors is None else np.float64)
    if vectors is not None:
        species, lengths = np.argsort(vectors == 0, axis=1, kind="stable"), (vectors > 0).sum(axis=1)  # the possible ones first
    for b, members in enumerate(rows):
        classes = environments.class_of[environments.offsets[b] : environments.offsets[b + 1]]
        if vectors is None:
            counting.tally_one(seen, members, environments.strides(b), classes, counts)
        else:
            counting.tally_soft(seen, members, environments.strides(b), classes, vectors, species, lengths, counts)
    return counts
