"""Configuration: which species sits on which site, and which sites nobody saw.

An image and a simulated box are the same object; an image merely has unseen sites and open axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .lattice import Lattice, Supercell

UNSEEN = -1


@dataclass(frozen=True, eq=False)
class Configuration:
    """Species labels on the sites of a finite block of a lattice.

    Parameters
    ----------
    lattice : Lattice
    species : tuple of str
        Names; label s means ``species[s]``.
    labels : ndarray of int8, shape (n_1, ..., n_d, b)
        Species number of each site, -1 where the site was not seen.
    periodic : tuple of bool
        Which axes wrap around. An image is open along all of them.

    Raises
    ------
    InputError
        If the shape does not fit the lattice or a label is no species.

    Examples
    --------
    >>> c = Configuration.from_labels(Lattice.square(), ("Mo", "Re"), [[0, 1], [1, -1]])
    >>> c.composition.round(3).tolist(), c.n_seen
    ([0.333, 0.667], 3)
    """

    lattice: Lattice
    species: tuple[str, ...]
    labels: NDArray[np.int8]
    periodic: tuple[bool, ...]

    def __post_init__(self) -> None:
        d, b = self.lattice.dimension, len(self.lattice.basis)
        if self.labels.ndim != d + 1 or self.labels.shape[-1] != b:
            raise InputError(f"labels have shape {self.labels.shape}; expected {d} axes of cells and a last axis of {b} basis site(s)")
        check_species(self.species)
        low, high = int(self.labels.min(initial=0)), int(self.labels.max(initial=0))
        if low < UNSEEN or high >= len(self.species):
            raise InputError(f"labels run from {low} to {high}; expected -1 (unseen) to {len(self.species) - 1} for species {self.species}")

    @classmethod
    def from_labels(
        cls,
        lattice: Lattice,
        species: Sequence[str],
        labels: ArrayLike,
        *,
        periodic: bool | Sequence[bool] = False,
    ) -> Configuration:
        """A configuration from an array of species numbers over the cells (a last axis of length 1 may be left out)."""
        array = np.asarray(labels)
        if array.dtype.kind not in "iub":
            raise InputError(f"labels are of type {array.dtype}; expected integers, -1 for an unseen site")
        if array.ndim == lattice.dimension and len(lattice.basis) == 1:
            array = array[..., None]
        axes = (bool(periodic),) * lattice.dimension if isinstance(periodic, bool) else tuple(periodic)
        # clipped first: a label beyond int8 must be refused below, not wrap around to a species
        return cls(lattice, tuple(species), np.clip(array.astype(np.int64), UNSEEN - 1, 127).astype(np.int8), axes)

    @classmethod
    def from_sites(cls, lattice: Lattice, species: Sequence[str], sites: ArrayLike, labels: ArrayLike) -> Configuration:
        """An open configuration from site references (n, d + 1) and their species numbers (n,); all other sites are unseen."""
        sites, labels = np.asarray(sites, dtype=np.int64), np.asarray(labels)
        cells = sites[:, :-1] - sites[:, :-1].min(axis=0)
        grid = np.full((*(cells.max(axis=0) + 1), len(lattice.basis)), UNSEEN, dtype=np.int8)
        if len(np.unique(sites, axis=0)) != len(sites):
            raise InputError("two labels are given for one site; expected every site once")
        grid[(*cells.T, sites[:, -1])] = np.clip(labels, UNSEEN - 1, 127)
        return cls(lattice, tuple(species), grid, (False,) * lattice.dimension)

    @classmethod
    def random(
        cls,
        lattice: Lattice,
        species: Sequence[str],
        shape: Sequence[int],
        composition: ArrayLike,
        rng: np.random.Generator,
        *,
        periodic: bool = True,
    ) -> Configuration:
        """A random alloy of exactly the nearest whole numbers of atoms to `composition` (fractions of each species)."""
        n = int(np.prod(shape)) * len(lattice.basis)
        labels = rng.permutation(np.repeat(np.arange(len(species)), whole_counts(composition, n))).astype(np.int8)
        axes = lattice.periodic if periodic else (False,) * lattice.dimension
        return cls(lattice, tuple(species), labels.reshape(*shape, len(lattice.basis)), tuple(axes))

    @property
    def supercell(self) -> Supercell:
        return self.lattice.supercell(self.labels.shape[:-1], self.periodic)

    @property
    def flat(self) -> NDArray[np.int8]:
        """Labels in the order of the site numbers of :attr:`supercell`."""
        return self.labels.reshape(-1)

    @property
    def n_seen(self) -> int:
        return int((self.labels != UNSEEN).sum())

    @property
    def composition(self) -> NDArray[np.float64]:
        """Fraction of each species among the seen sites."""
        seen = self.labels[self.labels != UNSEEN]
        return np.bincount(seen, minlength=len(self.species)) / max(len(seen), 1)


def check_species(species: Sequence[str]) -> None:
    """Refuse fewer than two or repeated species names (InputError)."""
    if len(species) < 2 or len(set(species)) != len(species) or not all(isinstance(s, str) and s for s in species):
        raise InputError(f"species {tuple(species)} given; expected at least two different names")


def whole_counts(composition: ArrayLike, n: int) -> NDArray[np.int64]:
    """Whole numbers of atoms nearest to `composition` that sum to n (largest remainders)."""
    share = np.asarray(composition, dtype=float)
    if not (share.min() >= 0 and abs(share.sum() - 1) <= 1e-6):  # so written, not a number is refused too
        raise InputError(f"composition {share.tolist()} given; expected fractions >= 0 that sum to 1")
    exact = share * n
    counts = np.floor(exact + 1e-9).astype(np.int64)
    for species in np.argsort(counts - exact, kind="stable")[: n - counts.sum()]:
        counts[species] += 1
    return counts
