"""What tells an ordered, a separated and a disordered alloy apart, on plain arrays of labels.

Use :func:`warren_cowley` for short-range order (local, smooth through a transition), and
:func:`order_parameter` for long-range order (one number for any lattice and any ordering, nothing to
declare in advance). Of an order whose wave vectors (:func:`structure_peaks` finds them) or sublattices
are known, :func:`wave_order` and :func:`sublattice_order` give the amplitude. Every function of
labels takes snapshots, shape (n, n_sites), in the order of the site numbers of a `Supercell`, and
gives one value a snapshot.

Normalisation. delta_i = 1 - c where the site carries the chosen species and -c elsewhere; per basis
site b, sigma_b(k) = sum over cells R of delta_{R,b} exp(-i k R), and
S(k) = sum_b |sigma_b(k)|^2 / (N c (1 - c)). By Parseval S sums to the number of cells over all k, so S
is 1 everywhere in a random alloy of one site a cell. Only the uniform mode is removed (delta has mean
zero), not k = 0 as such: with several sites a cell, k = 0 carries the order within the cell, such as
the chessboard of a honeycomb.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import fftn  # eight times faster here than numpy's
from scipy.special import gammainccinv

from ..errors import InputError
from ..lattice import Supercell

FLOORS = 5.0  # see ordered_threshold
PHASES = ("disordered", "ordered", "separated")


class Order(NamedTuple):
    """Long-range order of each snapshot.

    share : the largest share of the spectral weight held by one pair +-k, in [0, 1].
    separated : whether that k is a composition wave longer than half the box (separation) rather than an ordering.
    peak : index of that k along each reciprocal axis (k = peak / shape in reciprocal lattice vectors), shape (n, d).
    """

    share: NDArray[np.float64]
    separated: NDArray[np.bool_]
    peak: NDArray[np.int64]


class Peak(NamedTuple):
    """A star of wave vectors that the lattice's symmetry (and k -> -k) makes alike, from a structure factor.

    k : the strongest of them, in reciprocal lattice vectors, shape (d,), each in (-1/2, 1/2].
    height : S(k) there.
    share : spectral weight of the whole star, in [0, 1].
    star : all of them that the box holds, shape (m, d), one of each pair +-k.
    """

    k: NDArray[np.float64]
    height: float
    share: float
    star: NDArray[np.float64]


def warren_cowley(
    labels: ArrayLike, supercell: Supercell, *, shell: int = 1, pair: tuple[int, int] = (0, 1), direction: int | None = None
) -> NDArray[np.float64]:
    """Warren-Cowley parameter of one shell and one pair of species (J. M. Cowley, Phys. Rev. 77, 669, 1950).

    alpha_ij = 1 - p_ij / c_j, where p_ij is the probability that a neighbour of an atom i in the shell is
    a j. Over B bonds of which n_ij join an i and a j, whichever end is which, that is
    1 - n_ij / (2 B c_i c_j), and n_ii counts twice for i = j. 0 is random, negative means that unlike
    neighbours are preferred; a random alloy of fixed composition has -1 / (N - 1), not 0, since an atom
    is not its own neighbour.

    Parameters
    ----------
    labels : array_like of int, shape (n, n_sites) or (n_sites,)
    supercell : Supercell
    shell : int
        1 is nearest neighbours.
    pair : (int, int)
        Species numbers i, j.
    direction : int, optional
        Only bonds along this row of ``supercell.lattice.directions(shell)``: order that a symmetric average hides, as
        in rows of atoms.

    Returns
    -------
    ndarray, shape (n,)
        nan where one of the two species is absent.

    Raises
    ------
    InputError
        If the labels do not fit the supercell, it holds no bond of the shell, or there is no such direction.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> chessboard = np.indices((4, 4)).sum(0).reshape(1, 16) % 2
    >>> block = Lattice.square().supercell((4, 4))
    >>> warren_cowley(chessboard, block).tolist(), warren_cowley(chessboard, block, shell=2).tolist()
    ([-1.0], [1.0])

    Rows of one species: alike along them, unlike across.

    >>> rows = np.indices((4, 4))[1].reshape(1, 16) % 2
    >>> [warren_cowley(rows, block, direction=d).tolist() for d in (0, 1)], warren_cowley(rows, block).tolist()
    ([[1.0], [-1.0]], [0.0])
    """
    labels, (i, j) = _snapshots(labels, supercell), pair
    bonds = _bonds(supercell, shell, direction)
    first, second = labels[:, bonds[:, 0]], labels[:, bonds[:, 1]]
    joined = ((first == i) & (second == j)).mean(axis=1) + ((first == j) & (second == i)).mean(axis=1)
    expected = 2.0 * (labels == i).mean(axis=1) * (labels == j).mean(axis=1)
    return np.where(expected > 0, 1 - joined / np.where(expected > 0, expected, 1.0), np.nan)


def structure_factor(labels: ArrayLike, supercell: Supercell, *, species: int = 1) -> NDArray[np.float64]:
    """S(k) of one species on the wave vectors of the supercell, normalised as in the module's docstring.

    Parameters
    ----------
    labels : array_like of int, shape (n, n_sites) or (n_sites,)
    supercell : Supercell
        An open axis is transformed as if it repeated.
    species : int

    Returns
    -------
    ndarray, shape (n, n_1, ..., n_d)
        Entry (m_1, ..., m_d) is k = sum_a m_a / n_a times the a-th reciprocal lattice vector; 0 where
        the composition leaves nothing to scatter.

    Raises
    ------
    InputError
        If the labels do not fit the supercell.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> chessboard = np.indices((4, 4)).sum(0).reshape(1, 16) % 2
    >>> s = structure_factor(chessboard, Lattice.square().supercell((4, 4)))
    >>> float(s[0, 2, 2]), float(s.sum())
    (16.0, 16.0)
    """
    here = (_snapshots(labels, supercell) == species).astype(float)
    share = here.mean(axis=1)
    waves = fftn((here - share[:, None]).reshape(len(here), *supercell.shape, -1), axes=range(1, 1 + len(supercell.shape)))
    scatter = supercell.n_sites * share * (1 - share)
    weight = (waves.real**2 + waves.imag**2).sum(axis=-1)
    return weight / np.where(scatter > 0, scatter, 1.0).reshape(-1, *[1] * len(supercell.shape))


def structure_peaks(factor: ArrayLike, supercell: Supercell, *, count: int = 1) -> list[Peak]:
    """The strongest stars of wave vectors of a structure factor: which long-range order there is, without being told.

    Parameters
    ----------
    factor : array_like, shape (n_1, ..., n_d) or (n, n_1, ..., n_d)
        From :func:`structure_factor`; snapshots are averaged.
    supercell : Supercell
    count : int
        Stars to return at most.

    Returns
    -------
    list of Peak
        By the height of their strongest wave vector, the largest first. Domains or a small crystal may put all of a
        star's weight on one of its members, so `k` alone is one of the ways in which the order can lie; `star` is all.

    Raises
    ------
    InputError
        If the shape does not fit the supercell or the count is below 1.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> block = Lattice.square().supercell((4, 4))
    >>> rows = np.indices((4, 4))[1].reshape(1, 16) % 2
    >>> peak = structure_peaks(structure_factor(rows, block), block)[0]
    >>> peak.k.tolist(), peak.share, peak.star.tolist()
    ([0.0, 0.5], 1.0, [[0.0, 0.5], [0.5, 0.0]])
    """
    s = np.asarray(factor, dtype=float)
    if s.shape[-len(supercell.shape) :] != supercell.shape or s.ndim - len(supercell.shape) not in (0, 1) or count < 1:
        raise InputError(
            f"structure factor of shape {s.shape} and count {count} given; expected a last shape {supercell.shape} after that of the "
            "snapshots, if any, and a count of 1 or more"
        )
    s = s.reshape(-1, supercell.n_cells).mean(axis=0)
    star = _stars(supercell)
    peaks = []
    # rounding decides between wave vectors that are equal by symmetry, so the first of near equals is taken
    for best in np.argsort(-s.round(12), kind="stable"):
        if len(peaks) == count:
            break
        members = np.flatnonzero(star == star[best])
        if best == members[np.argmax(s[members].round(12))]:
            share = float(s[members].sum() / supercell.n_cells)
            peaks.append(Peak(_fractions(best, supercell)[0], float(s[best]), share, _half(_fractions(members, supercell))))
    return peaks


def wave_order(labels: ArrayLike, supercell: Supercell, k: ArrayLike, *, species: int = 1) -> NDArray[np.float64]:
    """Amplitude of the composition wave of given wave vectors: 1 where the arrangement is that wave alone, 0 where it is absent.

    The root of the spectral weight at k and -k, sum_b |sigma_b(k)|^2 over all of it (see the module's docstring), and
    of the sum over k if there are several, as of a star of equivalent ones. On a chessboard of composition 1/2 it is
    the staggered magnetisation per site, without its sign. In a random alloy its mean square is the share of the wave vectors.

    Parameters
    ----------
    labels : array_like of int, shape (n, n_sites) or (n_sites,)
    supercell : Supercell
    k : array_like, shape (d,) or (m, d)
        In reciprocal lattice vectors; whole numbers of waves must fit the box. One of each pair +-k.
    species : int

    Returns
    -------
    ndarray, shape (n,)
        In [0, 1]; 0 where the composition leaves nothing to order.

    Raises
    ------
    InputError
        If the labels or a wave vector do not fit the supercell.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> block = Lattice.honeycomb().supercell((3, 3))
    >>> one_sublattice = block.sites[:, -1]
    >>> wave_order(one_sublattice, block, [0, 0]).round(9).tolist(), wave_order(one_sublattice, block, [1 / 3, 1 / 3]).round(9).tolist()
    ([1.0], [0.0])
    """
    here = (_snapshots(labels, supercell) == species).astype(float)
    waves, shape = np.atleast_2d(np.asarray(k, dtype=float)), np.array(supercell.shape)
    turns = (waves * shape).round().astype(int) if waves.shape[1] == len(shape) else np.zeros((0, len(shape)), dtype=int)
    different = {min(tuple(t % shape), tuple(-t % shape)) for t in turns}
    if len(different) < len(waves) or np.abs(turns / shape - waves).max() > 1e-6:
        raise InputError(
            f"wave vectors {waves.tolist()} given; expected {len(shape)} numbers each, multiples of one over the cells of the box "
            f"{supercell.shape}, and one of each pair +-k"
        )
    share = here.mean(axis=1)
    delta = (here - share[:, None]).reshape(len(here), supercell.n_cells, -1)
    angle = 2 * np.pi * (supercell.sites[:: delta.shape[2], :-1] / shape) @ turns.T
    weight = sum((np.einsum("ncb,cm->nbm", delta, part(angle), optimize=True) ** 2).sum(axis=1) for part in (np.cos, np.sin))
    pairs = np.where(((2 * turns) % shape == 0).all(axis=1), 1.0, 2.0)
    scatter = supercell.n_cells * supercell.n_sites * share * (1 - share)
    return np.sqrt(weight @ pairs / np.where(scatter > 0, scatter, 1.0))


def sublattice_order(labels: ArrayLike, supercell: Supercell, sublattice: ArrayLike, *, species: int = 1) -> NDArray[np.float64]:
    """Largest less smallest share of a species on the sublattices of an order that is known.

    For two sublattices it is the long-range order parameter of Bragg and Williams, S = r_alpha + r_beta - 1, r the
    shares of rightly occupied sites (B. E. Warren, X-ray Diffraction, 1969, section 12.1), without its sign: 1 where the
    species fills one sublattice and is absent from another. In a random alloy it is of the order of 1 / sqrt(n_sites).

    Parameters
    ----------
    labels : array_like of int, shape (n, n_sites) or (n_sites,)
    supercell : Supercell
    sublattice : array_like of int, shape (n_sites,)
        Number of the sublattice of every site, from 0; at least two, none without sites.
    species : int

    Returns
    -------
    ndarray, shape (n,)

    Raises
    ------
    InputError
        If the labels or the sublattices do not fit the supercell.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> block = Lattice.square().supercell((4, 4))
    >>> chessboard = np.indices((4, 4)).sum(0).reshape(16) % 2
    >>> one_atom_moved = chessboard.copy()
    >>> one_atom_moved[[0, 1]] = one_atom_moved[[1, 0]]
    >>> sublattice_order([chessboard, one_atom_moved, 1 - chessboard], block, chessboard).tolist()
    [1.0, 0.75, 1.0]
    """
    here, numbers = _snapshots(labels, supercell) == species, np.asarray(sublattice)
    fits = numbers.shape == (supercell.n_sites,) and numbers.dtype.kind in "iu" and numbers.min() >= 0
    size = np.bincount(numbers) if fits else np.zeros(1)
    if len(size) < 2 or (size == 0).any():
        raise InputError(
            f"sublattice numbers of type {numbers.dtype} and shape {numbers.shape} given; expected one a site ({supercell.n_sites}), "
            "counted from 0 without gaps, two different ones or more"
        )
    shares = np.array([here[:, numbers == s].mean(axis=1) for s in range(len(size))])
    return np.ptp(shares, axis=0)


def order_parameter(labels: ArrayLike, supercell: Supercell, *, species: int = 1) -> Order:
    """The largest share of the spectral weight that one pair of wave vectors +-k holds, and where it is.

    1 for a structure that is a single composition wave at every site (chessboard, sqrt3 x sqrt3 at one
    third), 8 / pi^2 = 0.81 for two wide stripes, 2x / (1 - x) for the sqrt3 x sqrt3 order of all the
    atoms that a composition x < 1/3 has, and :func:`disordered_floor` for a random alloy.

    Parameters
    ----------
    labels : array_like of int, shape (n, n_sites) or (n_sites,)
    supercell : Supercell
    species : int

    Returns
    -------
    Order

    Raises
    ------
    InputError
        If the labels do not fit the supercell.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> block = Lattice.triangular().supercell((6, 6))
    >>> root3 = (np.indices((6, 6)).sum(0).reshape(1, 36) % 3 == 0).astype(int)
    >>> order = order_parameter(root3, block)
    >>> order.share.round(12).tolist(), order.separated.tolist(), order.peak.tolist()
    ([1.0], [False], [[2, 2]])
    """
    pairs, long, _ = _wave_vectors(supercell)
    shares = (structure_factor(labels, supercell, species=species) * pairs).reshape(-1, supercell.n_cells) / supercell.n_cells
    # a half of each pair would do; rounding decides between +k and -k, so the first of near equals is taken
    best = np.argmax(shares.round(12), axis=1)
    peak = np.column_stack(np.unravel_index(best, supercell.shape))
    return Order(shares[np.arange(len(best)), best], long.reshape(-1)[best], peak)


def disordered_floor(supercell: Supercell) -> float:
    """What :func:`order_parameter` gives in a random alloy of this box: the typical largest of many small shares.

    The shares of the M = n_cells / 2 pairs are Gamma(b) variables of mean 1 / M for b sites a cell; the
    largest of them is near the value that one of M exceeds: 2 ln(N / 2) / N for b = 1.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> round(disordered_floor(Lattice.triangular().supercell((24, 24))), 4)
    0.0197
    """
    pairs, b = supercell.n_cells / 2, len(supercell.lattice.basis)
    return float(gammainccinv(b, 1 / pairs) / (b * pairs))


def ordered_threshold(supercell: Supercell, composition: float) -> float:
    """The order parameter above which a box of a composition x counts as ordered or separated.

    Half of what complete separation into two slabs gives, 2 sin^2(pi x) / (pi^2 x (1 - x)): the middle of
    the way, as one defines a melting point, on the scale that x allows (complete sqrt3 x sqrt3 order has
    the same share at small x and more of it up to one third). A fixed multiple of the floor would not do:
    a correlated patch as large as the box, such as the triangular antiferromagnet at x = 1/2 has, whose
    correlations decay as 1 / sqrt(r) at zero temperature, gives 15 floors without any order. Yet never
    below five floors, which one of M^4 random alloys exceeds (M pairs of wave vectors): with fewer atoms
    than that (x < 0.1 for 24 x 24) the box is too small to tell, and nothing counts as ordered.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> box = Lattice.triangular().supercell((24, 24))
    >>> [round(ordered_threshold(box, x), 3) for x in (0.02, 0.1, 1 / 3, 0.5)]
    [0.098, 0.108, 0.342, 0.405]
    """
    slabs = 2 * np.sin(np.pi * composition) ** 2 / (np.pi**2 * composition * (1 - composition))
    return float(max(slabs / 2, FLOORS * disordered_floor(supercell)))


def phase(share: ArrayLike, separated: ArrayLike, threshold: ArrayLike) -> NDArray[np.int64]:
    """Which of `PHASES` it is: 0 disordered, 1 ordered, 2 separated.

    Parameters
    ----------
    share : array_like
        Order parameter.
    separated : array_like
        Whether its peak is at long wavelength, or the share of snapshots in which it is.
    threshold : array_like
        From :func:`ordered_threshold`.

    Examples
    --------
    >>> [PHASES[p] for p in phase([0.02, 0.9, 0.7], [1.0, 0.0, 1.0], 0.1)]
    ['disordered', 'ordered', 'separated']
    """
    return np.where(np.asarray(share) <= threshold, 0, np.where(np.asarray(separated) < 0.5, 1, 2))


def bond_count(supercell: Supercell, shell: int = 1) -> int:
    """How many bonds of a shell the supercell holds."""
    return len(_bonds(supercell, shell))


@lru_cache(maxsize=16)
def _bonds(supercell: Supercell, shell: int, direction: int | None = None) -> NDArray[np.int64]:
    rows = np.concatenate([supercell.gather(bond) for bond in supercell.lattice.bonds(shell, direction)])
    rows = rows[(rows >= 0).all(axis=1)]
    if not len(rows):
        raise InputError(f"supercell {supercell.shape} holds no bond of shell {shell}; use a larger one")
    return rows


@lru_cache(maxsize=16)
def _wave_vectors(supercell: Supercell) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Per wave vector: how many make up its pair (2, or 1 where k = -k), whether it is long, and |k| in 1/nm.

    Long means a wavelength over half the longest of the box, |k| < 2 |k|_min: a droplet's weight is
    spread over the first stars of wave vectors, not on the very smallest only, and no ordering that
    short-ranged couplings make has so long a period.
    """
    index = np.indices(supercell.shape).reshape(len(supercell.shape), -1).T
    fraction = index / np.array(supercell.shape)
    reciprocal = 2 * np.pi * np.linalg.inv(supercell.lattice.cell).T
    # the shortest of the equivalent vectors: those in the neighbouring reciprocal cells suffice for a reduced cell
    shifts = np.array(list(itertools.product((-2, -1, 0, 1), repeat=len(supercell.shape))))
    length = np.linalg.norm((fraction[:, None] + shifts) @ reciprocal, axis=-1).min(axis=1)
    alone = ((2 * index) % np.array(supercell.shape) == 0).all(axis=1)
    smallest = length[length > 0].min(initial=np.inf)
    long = (length > 0) & (length < 2 * smallest * (1 - 1e-9))
    return np.where(alone, 1.0, 2.0).reshape(supercell.shape), long.reshape(supercell.shape), length.reshape(supercell.shape)


@lru_cache(maxsize=16)
def _stars(supercell: Supercell) -> NDArray[np.int64]:
    """Per wave vector, in C order, a number that those alike by symmetry share: the smallest of them."""
    index = np.indices(supercell.shape).reshape(len(supercell.shape), -1).T
    common = int(np.lcm.reduce(supercell.shape))  # in units of 1 / common symmetry keeps wave vectors whole, whatever the box
    whole = index * (common // np.array(supercell.shape))
    # a site n goes to n W, so the phase k . n is kept where k goes to k W^-T; with the inverses, to k W^T
    turned = [
        sign * whole @ matrix.T
        for matrix in {o.matrix.tobytes(): o.matrix for o in supercell.lattice.operations}.values()
        for sign in (1, -1)
    ]
    flat = np.ravel_multi_index(tuple(np.moveaxis(np.array(turned) % common, -1, 0)), (common,) * len(supercell.shape))
    return flat.min(axis=0)


def _fractions(numbers: ArrayLike, supercell: Supercell) -> NDArray[np.float64]:
    """Wave vectors (m, d) in (-1/2, 1/2] of their numbers in C order."""
    shape = np.array(supercell.shape)
    index = np.column_stack(np.unravel_index(np.atleast_1d(numbers), supercell.shape))
    return np.where(2 * index > shape, index - shape, index) / shape


def _half(waves: NDArray[np.float64]) -> NDArray[np.float64]:
    """One of each pair +-k: the first."""
    kept: list[NDArray[np.float64]] = []
    for k in waves:
        if not any(np.abs(k + q - np.round(k + q)).max() < 1e-9 for q in kept):
            kept.append(k)
    return np.array(kept)


def _snapshots(labels: ArrayLike, supercell: Supercell) -> NDArray[np.integer]:
    labels = np.atleast_2d(np.asarray(labels))
    if labels.ndim != 2 or labels.shape[1] != supercell.n_sites or labels.dtype.kind not in "iub":
        raise InputError(
            f"labels of type {labels.dtype} and shape {labels.shape} given; expected integers of shape (snapshots, {supercell.n_sites}) "
            f"for a supercell of {supercell.shape} cells"
        )
    return labels
