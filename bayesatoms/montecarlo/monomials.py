"""Binary Hamiltonians as sums of products of occupations: what the fast kernels read.

With two species every feature is a polynomial in the occupations o = 0, 1, so the energy of turning site i
from 0 to 1 is a field: f_i = c_kind(i) + sum over families of W_family * n_family(i), where n counts how
many products of neighbours' occupations are 1. Sites of a family carry equally many products (a site that has
fewer is padded with a row that is always 0), so a kernel's inner loop has no branches and no tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..hamiltonian import Compiled

_DIGITS = 10  # decimals to which two coefficients are the same


@dataclass(frozen=True, eq=False)
class Family:
    """Products with one coefficient for each feature.

    `sites` (n_sites, count, degree) are the sites whose occupations are multiplied; the number `n_sites` itself
    stands for a site that is always empty. `coefficients` (n_features,).
    """

    sites: NDArray[np.int64]
    coefficients: NDArray[np.float64]

    @property
    def count(self) -> int:
        return self.sites.shape[1]

    @property
    def degree(self) -> int:
        return self.sites.shape[2]


@dataclass(frozen=True, eq=False)
class Expansion:
    """The field on every site, and the features themselves.

    Attributes
    ----------
    families : tuple of Family
    kind : ndarray of int, shape (n_sites,)
        Which row of `constants` a site has.
    constants : ndarray, shape (kinds, n_features)
        What turning a site from 0 to 1 adds to the features among empty neighbours.
    empty : ndarray, shape (n_features,)
        Features of the crystal of species 0 alone.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> found = expand(h.compile(h.lattice.supercell((4, 4))))
    >>> [(f.degree, f.count, f.coefficients.tolist()) for f in found.families], found.constants.tolist()
    ([(1, 4, [-2.0])], [[4.0]])
    """

    families: tuple[Family, ...]
    kind: NDArray[np.int64]
    constants: NDArray[np.float64]
    empty: NDArray[np.float64]

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """(degree, count) of every family: all that a kernel's code depends on."""
        return tuple((f.degree, f.count) for f in self.families)

    def weights(self, couplings: NDArray[np.float64]) -> NDArray[np.float64]:
        """Energy of one product of each family, in kT; shape (..., families) for couplings (..., n_features)."""
        table = np.array([f.coefficients for f in self.families]).reshape(len(self.families), len(self.empty))
        return np.asarray(couplings) @ table.T

    def features(self, counts: NDArray[np.number], alone: NDArray[np.number]) -> NDArray[np.float64]:
        """Features from how many products on occupied sites are 1.

        Parameters
        ----------
        counts : ndarray, shape (..., families)
            Sum of n_family(i) over the occupied sites i. A product of degree d + 1 is met from each of its d + 1 sites.
        alone : ndarray, shape (..., kinds)
            Occupied sites of each kind.

        Returns
        -------
        ndarray, shape (..., n_features)
        """
        total = self.empty + np.asarray(alone) @ self.constants
        for f, family in enumerate(self.families):
            total = total + np.asarray(counts)[..., f, None] * family.coefficients / (family.degree + 1)
        return total


def expand(compiled: Compiled) -> Expansion:
    """Write a Hamiltonian of two species as products of occupations (a Moebius transform of its tables).

    Raises
    ------
    InputError
        If there are more than two species.
    """
    if compiled.n_species != 2:
        raise InputError(f"a Hamiltonian of {compiled.n_species} species given; expected two: use the generic kernel")
    n, terms = compiled.n_sites, {}
    constants, empty = np.zeros((n, compiled.n_features)), np.zeros(compiled.n_features)
    for rows, (_, base) in zip(compiled.members, compiled.groups, strict=True):
        size = rows.shape[1]
        table = _products(compiled.tables[base : base + 2**size])
        empty += len(rows) * table[0]
        for subset in range(1, 2**size):
            if not np.any(table[subset]):
                continue
            inside = [p for p in range(size) if subset >> p & 1]
            for p in inside:
                others = rows[:, [q for q in inside if q != p]]
                if not others.shape[1]:
                    np.add.at(constants, rows[:, p], table[subset])
                    continue
                joined = np.column_stack([rows[:, p], np.sort(others, axis=1)])
                terms.setdefault(joined.shape[1], []).append((joined, np.broadcast_to(table[subset], (len(joined), table.shape[1]))))
    families = [f for _, parts in sorted(terms.items()) for f in _families(n, parts)]
    kinds, kind = np.unique(constants.round(_DIGITS), axis=0, return_inverse=True)
    return Expansion(tuple(families), kind.reshape(-1).astype(np.int64), kinds, empty)


def _products(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of the products of occupations: out[S] = sum over T in S of (-1)^|S - T| table[T]."""
    out = table.copy()
    for bit in range(len(table).bit_length() - 1):
        pairs = out.reshape(-1, 2, 2**bit, table.shape[1])
        pairs[:, 1] -= pairs[:, 0]
    return out


def _families(n: int, parts: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> list[Family]:
    """Sum the coefficients of equal products and sort the products by coefficient."""
    rows, where = np.unique(np.concatenate([p[0] for p in parts]), axis=0, return_inverse=True)
    given = np.concatenate([p[1] for p in parts])
    total = np.column_stack([np.bincount(where.reshape(-1), column, len(rows)) for column in given.T]).round(_DIGITS)
    kept = total.any(axis=1)
    rows, total = rows[kept], total[kept]
    values, family = np.unique(total, axis=0, return_inverse=True)
    found = []
    for number, value in enumerate(values):
        mine = rows[family.reshape(-1) == number]  # sorted by the site they belong to
        counts = np.bincount(mine[:, 0], minlength=n)
        slot = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts, counts)
        sites = np.full((n, counts.max(), rows.shape[1] - 1), n, dtype=np.int64)
        sites[mine[:, 0], slot] = mine[:, 1:]
        found.append(Family(sites, value))
    return found
