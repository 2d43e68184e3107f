"""What calls over composition and temperature have in common: their checks, boxes, draws and random numbers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..lattice import Lattice
from .candidates import Candidate


def chosen_draws(candidates: Sequence[Candidate], shares: NDArray[np.int64], seed: int) -> list[NDArray[np.float64]]:
    """Draws of each candidate, each at most once if there are enough."""
    found = []
    for c, n in zip(candidates, shares, strict=True):
        rng = np.random.default_rng(np.random.SeedSequence(identity(seed, c)))
        found.append(c.couplings[rng.choice(len(c.couplings), int(n), replace=n > len(c.couplings))])
    return found


def identity(seed: int, candidate: Candidate, *place: int) -> tuple[int, ...]:
    """Random numbers by identity: the model's name and place, so that neither workers nor other candidates change them."""
    return (seed, zlib.crc32(candidate.hamiltonian.name.encode()), *place)


def one_system(candidates: Sequence[Candidate]) -> tuple[Lattice, tuple[str, ...]]:
    """The lattice and species that all candidates share.

    Raises
    ------
    InputError
        If there are none with weight, or they differ in lattice or species, share a name, or have not two species.
    """
    if not candidates or not any(c.weight > 0 for c in candidates):
        raise InputError(f"{len(candidates)} candidates without weight given; expected at least one with a weight above 0")
    systems = {(c.hamiltonian.lattice, c.hamiltonian.species) for c in candidates}
    names = [c.hamiltonian.name for c in candidates]
    if len(systems) > 1 or len(set(names)) < len(names):
        raise InputError(f"models {', '.join(names)} given; expected different names, one lattice, and the same species in the same order")
    lattice, species = systems.pop()
    if len(species) != 2:
        raise InputError(f"species {', '.join(species)} given; a phase diagram expects two species for now")
    return lattice, species


def axis_of(name: str, given: ArrayLike | Mapping[str, ArrayLike] | None, species: tuple[str, ...]) -> tuple[int, NDArray[np.float64]]:
    """Number of the species whose composition or chemical potential varies, and the values.

    Examples
    --------
    >>> axis_of("composition", {"Mo": [0.2, 0.5]}, ("Mo", "Re"))
    (0, array([0.2, 0.5]))

    Raises
    ------
    InputError
        If the species is unknown or the values do not rise.
    """
    between = (0.0, 1.0) if name == "composition" else (-np.inf, np.inf)
    if not isinstance(given, Mapping):
        return 1, rising(name, given, between)
    if len(given) != 1 or not set(given) <= set(species):
        raise InputError(f"{name} of {sorted(given)} given; expected values of one of {', '.join(species)}")
    [(one, grid)] = given.items()
    return species.index(one), rising(f"{name} of {one}", grid, between)


def rising(name: str, grid: Any, between: tuple[float, float]) -> NDArray[np.float64]:
    """A row of rising numbers between two others.

    Raises
    ------
    InputError
        If it is not.
    """
    grid, (low, high) = np.asarray(grid, dtype=float), between
    if grid.ndim != 1 or not len(grid) or not (np.isfinite(grid) & (grid > low) & (grid < high)).all() or (np.diff(grid) <= 0).any():
        where = f" between {low:g} and {high:g}" if np.isfinite(high) else f" above {low:g}" if np.isfinite(low) else ""
        raise InputError(f"{name} {grid.tolist()} given; expected one row of rising numbers{where}")
    return grid


def box_shape(dimension: int, n_basis: int, size: int | Sequence[int] | None) -> tuple[int, ...]:
    """Sides of the box: as given, or of about 576 sites and a multiple of 6, so that orderings fit.

    Examples
    --------
    >>> box_shape(2, 1, None), box_shape(3, 1, 8)
    ((24, 24), (8, 8, 8))

    Raises
    ------
    InputError
        If a side is odd or below 6, or there are not as many as dimensions.
    """
    if size is None:
        size = max(12, 6 * round((576 / n_basis) ** (1 / dimension) / 6))
    shape = (int(size),) * dimension if np.ndim(size) == 0 else tuple(int(n) for n in size)
    if len(shape) != dimension or any(n < 6 or n % 2 for n in shape):
        raise InputError(f"size {size} given; expected even numbers of cells, at least 6, one or {dimension} of them")
    return shape


def version() -> str:
    """The package's version, for what is written into files."""
    try:
        return metadata.version("bayesatoms")
    except metadata.PackageNotFoundError:  # run from the source tree
        return "source"
