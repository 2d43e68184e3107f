"""Chemical potentials at fixed composition: trying what one atom of the other species would cost.

Z_n sums exp(-E) over the arrangements with n atoms of a species. Turning one atom of an arrangement tells the ratio of two
of them (Widom, J. Chem. Phys. 39, 2808, 1963; Frenkel and Smit, Understanding Molecular Simulation, section 7.2):

    Z_(n+1) / Z_n = < sum over the other atoms of exp(-dE) >_n / (n + 1)
    Z_(n-1) / Z_n = < sum over its atoms of exp(-dE) >_n / (N - n + 1)
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..hamiltonian import Compiled


def chemical_potentials(compiled: Compiled, energies: NDArray[np.float64], snapshots: ArrayLike, species: int = 1) -> float:
    """Chemical potential -d ln Z / dn of a species against the other, in kT, from both sides of a composition.

    Parameters
    ----------
    compiled : Compiled
        Of two species.
    energies : ndarray, shape (codes,)
        ``compiled.tables @ couplings``, in kT.
    snapshots : array_like of int, shape (n, n_sites)
        Of a canonical chain there.
    species : int

    Returns
    -------
    float
        Mean of the steps n - 1 to n and n to n + 1.

    Raises
    ------
    InputError
        If there are more than two species, or one is absent.

    Examples
    --------
    A random alloy has ln(n / (N - n)), and in a small box ln((n + 1/2) / (N - n + 1/2)) to second order in 1 / n.

    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> compiled = h.compile(h.lattice.supercell((20, 20)))
    >>> shots = np.random.default_rng(0).permuted(np.tile([0, 0, 0, 1], (5, 100)), axis=1)
    >>> round(chemical_potentials(compiled, compiled.tables @ [0.0], shots), 4), round(float(np.log(100.5 / 300.5)), 4)
    (-1.0953, -1.0953)
    """
    labels = np.ascontiguousarray(snapshots, dtype=np.uint8)
    n = int((labels[0] == species).sum())
    if compiled.n_species != 2 or not 0 < n < labels.shape[1]:
        raise InputError(f"{compiled.n_species} species, {n} of {labels.shape[1]} atoms of one; expected two species, both present")
    sums = np.zeros(2)
    _insert(labels, compiled.base, compiled.start, compiled.touch, compiled.stride, np.asarray(energies, dtype=float), sums)
    more, fewer = np.log(sums[1 - species] / len(labels) / (n + 1)), np.log(sums[species] / len(labels) / (labels.shape[1] - n + 1))
    return float((fewer - more) / 2)


@njit(nogil=True, cache=True)
def _insert(labels, base, start, touch, stride, energies, sums):
    """Sums (2,) over snapshots and atoms of each species of exp(-dE) for turning it into the other."""
    codes = np.empty_like(base)
    for row in range(len(labels)):
        codes[:] = base
        for site in range(labels.shape[1]):
            if labels[row, site]:
                for k in range(start[site], start[site + 1]):
                    codes[touch[k]] += stride[k]
        for site in range(labels.shape[1]):
            turned = 1 - 2 * np.int64(labels[row, site])
            cost = 0.0
            for k in range(start[site], start[site + 1]):
                code = codes[touch[k]]
                cost += energies[code + turned * stride[k]] - energies[code]
            sums[labels[row, site]] += np.exp(-cost)
