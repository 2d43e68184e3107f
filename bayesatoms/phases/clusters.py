"""Connected clusters of one species: how large they are, and whether one reaches around the periodic box.

Atoms of a species are connected where they are neighbours in a shell. Use :func:`clusters` for summaries of many snapshots
and :func:`cluster_sizes` for the sizes in one. Definitions are those of percolation theory (D. Stauffer and A. Aharony,
Introduction to Percolation Theory, 2nd edition, 1994, section 2.2).

A cluster wraps along an axis if a closed path inside it goes around the box along that axis: the path, followed in the
unlimited crystal, ends in another box than it began. Touching both sides is not enough, nor is crossing the boundary and
coming back. Each atom carries its displacement, in boxes, from the first of its cluster; a bond between atoms that are connected
already, over which the displacements disagree, closes such a path (J. Machta et al., Phys. Rev. E 54, 1332, 1996;
M. E. J. Newman and R. M. Ziff, Phys. Rev. E 64, 016706, 2001).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..lattice import Supercell


class Clusters(NamedTuple):
    """Clusters of one species in each snapshot, of a crystal in d dimensions.

    number : clusters, shape (n,).
    largest : share of the species' atoms that are in the largest cluster, shape (n,); nan without atoms.
    mean_size : sum s^2 n_s / sum s n_s over all clusters, n_s of which have s atoms: the mean size of an atom's cluster, shape (n,).
    mean_size_of_others : the same without the largest cluster, which peaks at the threshold of percolation; nan if there is no other.
    wraps : whether any cluster wraps around the box along each axis, shape (n, d); never along an open one.
    """

    number: NDArray[np.int64]
    largest: NDArray[np.float64]
    mean_size: NDArray[np.float64]
    mean_size_of_others: NDArray[np.float64]
    wraps: NDArray[np.bool_]


def clusters(labels: ArrayLike, supercell: Supercell, *, shell: int = 1, species: int = 1) -> Clusters:
    """Clusters of a species in every snapshot.

    Parameters
    ----------
    labels : array_like of int, shape (n, n_sites) or (n_sites,)
    supercell : Supercell
    shell : int
        Atoms at this distance are connected; 1 is nearest neighbours.
    species : int

    Returns
    -------
    Clusters

    Raises
    ------
    InputError
        If the labels do not fit the supercell or it holds no bond of the shell.

    Examples
    --------
    A row that closes around the box along the second axis, and one atom.

    >>> from bayesatoms.lattice import Lattice
    >>> block = Lattice.square().supercell((4, 4))
    >>> labels = [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]]
    >>> found = clusters(np.reshape(labels, -1), block)
    >>> found.number.tolist(), found.largest.tolist(), found.mean_size.tolist(), found.mean_size_of_others.tolist(), found.wraps.tolist()
    ([2], [0.8], [3.4], [1.0], [[False, True]])
    """
    here = _present(labels, supercell, species)
    bonds, crossings = _bonds(supercell, shell)
    sums, wraps = _survey(here, bonds, crossings)
    number, atoms, squares, largest = sums.T
    ones = np.ones(len(sums))
    share = np.divide(largest, atoms, out=ones * np.nan, where=atoms > 0)
    mean = np.divide(squares, atoms, out=ones * np.nan, where=atoms > 0)
    others = np.divide(squares - largest**2, atoms - largest, out=ones * np.nan, where=atoms > largest)
    return Clusters(number.astype(np.int64), share, mean, others, wraps)


def cluster_sizes(labels: ArrayLike, supercell: Supercell, *, shell: int = 1, species: int = 1) -> NDArray[np.int64]:
    """Atoms in each cluster of one snapshot, the largest first.

    Parameters
    ----------
    labels : array_like of int, shape (n_sites,)
    supercell, shell, species
        As for :func:`clusters`.

    Returns
    -------
    ndarray of int, shape (number of clusters,)

    Raises
    ------
    InputError
        If the labels do not fit the supercell, are more than one snapshot, or it holds no bond of the shell.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> block = Lattice.square().supercell((4, 4))
    >>> cluster_sizes([1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0], block).tolist()
    [3, 2]
    """
    here = _present(labels, supercell, species)
    if len(here) != 1:
        raise InputError(f"{len(here)} snapshots given; expected one, shape ({supercell.n_sites},)")
    bonds, crossings = _bonds(supercell, shell)
    roots = _connect(here[0], bonds, crossings)[0]
    return np.sort(np.unique(roots[here[0]], return_counts=True)[1])[::-1]


@lru_cache(maxsize=16)
def _bonds(supercell: Supercell, shell: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Site numbers of every bond (b, 2), and how many boxes further its second end lies along each axis (b, d)."""
    rows, crossings = [], []
    for bond in supercell.lattice.bonds(shell):
        ends = supercell.gather(bond)
        moved = supercell.sites[:: len(supercell.lattice.basis), :-1][:, None] + bond[None, :, :-1]
        boxes = moved // np.array(supercell.shape)
        inside = (ends >= 0).all(axis=1)
        rows.append(ends[inside])
        crossings.append((boxes[:, 1] - boxes[:, 0])[inside])
    bonds = np.concatenate(rows)
    if not len(bonds):
        raise InputError(f"supercell {supercell.shape} holds no bond of shell {shell}; use a larger one")
    return np.ascontiguousarray(bonds), np.ascontiguousarray(np.concatenate(crossings))


@njit(cache=True)
def _survey(here, bonds, crossings):
    """Per snapshot: clusters, atoms, sum of squared sizes, largest (n, 4), and the axes that any cluster wraps along (n, d)."""
    n_sites = here.shape[1]
    sums, wraps = np.zeros((len(here), 4)), np.zeros((len(here), crossings.shape[1]), dtype=np.bool_)
    for n in range(len(here)):
        roots, wrapped = _connect(here[n], bonds, crossings)
        wraps[n] = wrapped
        size = np.zeros(n_sites, dtype=np.int64)
        for i in range(n_sites):
            if here[n, i]:
                size[roots[i]] += 1
        for i in range(n_sites):
            if size[i]:
                sums[n, 0] += 1
                sums[n, 1] += size[i]
                sums[n, 2] += float(size[i]) ** 2
                sums[n, 3] = max(sums[n, 3], size[i])
    return sums, wraps


@njit(cache=True)
def _connect(here, bonds, crossings):
    """Root of every atom (n_sites,), by union-find with the displacement of each site from its parent in boxes; axes wrapped (d,)."""
    n_sites, d = len(here), crossings.shape[1]
    parent, rank = np.arange(n_sites), np.zeros(n_sites, dtype=np.int64)
    offset, wrapped = np.zeros((n_sites, d), dtype=np.int64), np.zeros(d, dtype=np.bool_)
    for b in range(len(bonds)):
        i, j = bonds[b, 0], bonds[b, 1]
        if not (here[i] and here[j]):
            continue
        one, two = _root(i, parent, offset), _root(j, parent, offset)
        if one == two:
            for a in range(d):
                if offset[i, a] + crossings[b, a] != offset[j, a]:
                    wrapped[a] = True
            continue
        # from the root of i over the bond to the root of j
        sign = 1
        if rank[one] < rank[two]:
            one, two, sign = two, one, -1
        for a in range(d):
            offset[two, a] = sign * (offset[i, a] + crossings[b, a] - offset[j, a])
        parent[two] = one
        rank[one] += rank[one] == rank[two]
    for i in range(n_sites):
        parent[i] = _root(i, parent, offset)
    return parent, wrapped


@njit(cache=True)
def _root(i, parent, offset):
    """Root of a site; afterwards the site and all above it hang on the root itself, with their displacements from it."""
    root = i
    while parent[root] != root:
        root = parent[root]
    if parent[i] == root:
        return root
    # `total` is the displacement of the site at hand from the root: its parents' are taken off as they are passed
    total = np.zeros(offset.shape[1], dtype=np.int64)
    site = i
    while site != root:
        total += offset[site]
        site = parent[site]
    site = i
    while site != root:
        above, step = parent[site], offset[site].copy()
        offset[site], parent[site] = total, root
        total = total - step
        site = above
    return root


def _present(labels: ArrayLike, supercell: Supercell, species: int) -> NDArray[np.bool_]:
    labels = np.atleast_2d(np.asarray(labels))
    if labels.ndim != 2 or labels.shape[1] != supercell.n_sites or labels.dtype.kind not in "iub":
        raise InputError(
            f"labels of type {labels.dtype} and shape {labels.shape} given; expected integers of shape (snapshots, {supercell.n_sites}) "
            f"for a supercell of {supercell.shape} cells"
        )
    return np.ascontiguousarray(labels == species)
