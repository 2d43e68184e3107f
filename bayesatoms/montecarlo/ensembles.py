"""Ensembles: what a chain keeps and what it lets go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Canonical:
    """Atoms of each species are kept: moves swap two unlike atoms.

    Parameters
    ----------
    groups : array_like of int, shape (n_sites,), optional
        Sites swap only with sites of the same number, so each group keeps its composition: sublattices, layers.
    """

    groups: ArrayLike | None = None

    def sites(self, n_sites: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sites group by group, and where each group begins (one more entry than groups).

        Raises
        ------
        InputError
            If there is not one group number a site.
        """
        if self.groups is None:
            return np.arange(n_sites), np.array([0, n_sites])
        groups = np.asarray(self.groups)
        if groups.shape != (n_sites,):
            raise InputError(f"group numbers of shape {groups.shape} given for {n_sites} sites; expected one a site")
        return np.argsort(groups, kind="stable"), np.concatenate([[0], np.cumsum(np.unique(groups, return_counts=True)[1])])

    def key(self) -> tuple:
        """What makes two of them the same."""
        return ("canonical", None if self.groups is None else np.asarray(self.groups).tolist())


@dataclass(frozen=True)
class SemiGrand:
    """Atoms turn into other species at given chemical potentials.

    Parameters
    ----------
    potential : tuple of float, length k
        Chemical potential of each species in kT: the density is exp(-E + sum_i potential[species_i]) / Xi.
    """

    potential: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "potential", tuple(float(m) for m in np.asarray(self.potential).reshape(-1)))

    def key(self) -> tuple:
        """What makes two of them the same."""
        return ("semigrand", self.potential)


@dataclass(frozen=True)
class Constrained:
    """Atoms turn into other species, held near the start's composition (variance-constrained semi-grand; two species).

    The density is exp(-E - (n - n_0)^2 / (2 spread^2)), n the atoms of species 1, n_0 those of the start. A flip costs
    a quarter of a swap and moves atoms anywhere at once; averages agree with the canonical ones to order
    spread^2 / n_sites (Sadigh and Erhart, Phys. Rev. B 86, 134204, 2012).

    Parameters
    ----------
    spread : float
        Standard deviation of n in a random alloy of this stiffness; 5 is small for crystals of a thousand sites.
    """

    spread: float = 5.0

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise InputError(f"spread {self.spread} given; expected a positive number of atoms")

    def key(self) -> tuple:
        """What makes two of them the same."""
        return ("constrained", self.spread)


Ensemble = Canonical | SemiGrand | Constrained
