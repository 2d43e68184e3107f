"""Neighbourhoods of a crystal whose sites are all translations of each other: one order of neighbours for all sites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .monomials import Expansion

LARGEST = 16  # sites of a neighbourhood: tables of 2^16 entries

Codes = NDArray[np.uint16]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The sites that a site's field looks at, in one order for all sites.

    Attributes
    ----------
    neighbours : ndarray of int, shape (n_sites, z)
    back : ndarray of int, shape (z,)
        Slot of a site in the list of its neighbour in slot k.
    counts : ndarray of int, shape (2^z, families)
        Products of each family that are 1, for every code (bit k of it is the neighbour in slot k).
    near : ndarray of bool, shape (n_sites,)
        Whether two sites whose numbers differ by d (modulo n_sites) may be neighbours: if not, they are not.
    """

    neighbours: NDArray[np.uint32]
    back: NDArray[np.uint16]
    counts: NDArray[np.int64]
    near: NDArray[np.bool_]

    @classmethod
    def of(cls, expansion: Expansion, torus: tuple[int, ...] | None) -> Neighbourhood:
        """Put the sites of an expansion in order.

        Raises
        ------
        InputError
            If sites differ in kind, or a neighbourhood has too many sites.
        """
        n = len(expansion.kind)
        if torus is None or len(expansion.constants) > 1:
            raise InputError("sites that are not all translations of each other given; expected a periodic lattice of one site a cell")
        places = np.array(np.unravel_index(np.arange(n), torus)).T
        shifts = [_shifts(f.sites, places, torus) for f in expansion.families]
        used = np.unique(np.concatenate([s.reshape(-1) for s in shifts])) if shifts else np.zeros(0, dtype=np.int64)
        if len(used) > LARGEST:
            raise InputError(f"a neighbourhood of {len(used)} sites given; expected at most {LARGEST}")
        steps = np.array(np.unravel_index(used, torus)).T
        around = (places[:, None] + steps) % np.array(torus)
        neighbours = np.ravel_multi_index(tuple(np.moveaxis(around, -1, 0)), torus).reshape(n, len(used))
        opposite = np.ravel_multi_index(tuple((-steps % np.array(torus)).T), torus) if len(used) else used
        bits = np.arange(2 ** len(used))[:, None] >> np.arange(len(used)) & 1
        counts = np.zeros((2 ** len(used), len(shifts)), dtype=np.int64)
        for f, products in enumerate(shifts):
            for product in products:
                counts[:, f] += bits[:, np.searchsorted(used, product)].all(axis=1)
        near = np.zeros(n, dtype=bool)
        near[np.unique((neighbours - np.arange(n)[:, None]) % n)] = True
        return cls(neighbours.astype(np.uint32), np.searchsorted(used, opposite).astype(np.uint16), counts, near)

    def codes(self, labels: NDArray[np.uint8]) -> Codes:
        """The code of every site, shape (n_sites,)."""
        return (labels[self.neighbours].astype(np.int64) << np.arange(self.neighbours.shape[1])).sum(axis=1).astype(np.uint16)


def _shifts(sites: Ints, places: Ints, torus: tuple[int, ...]) -> Ints:
    """Displacements (count, degree) of a family's products, as flat cell numbers, the same about every site."""
    around = (places[sites] - places[:, None, None]) % np.array(torus)
    flat = np.sort(np.ravel_multi_index(tuple(np.moveaxis(around, -1, 0)), torus), axis=2)
    order = np.lexsort(np.moveaxis(flat, 2, 0)[::-1], axis=1)
    return np.take_along_axis(flat, order[:, :, None], axis=1)[0]
