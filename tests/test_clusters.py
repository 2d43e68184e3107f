"""Clusters: shapes one can draw, two independent programs, and the thresholds of site percolation.

Statistical comparisons are |z| < 4, a false alarm in 6e-5 of them, of ten here.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bayesatoms.errors import InputError
from bayesatoms.lattice import Lattice
from bayesatoms.phases.clusters import cluster_sizes, clusters

LATTICES = [Lattice.square(), Lattice.triangular(), Lattice.honeycomb(), Lattice.cubic()]


def drawn(rows):
    """Labels of a drawing: # is an atom of species 1."""
    return np.array([[c == "#" for c in row] for row in rows], dtype=int).reshape(-1)


def random(supercell, share, n, seed):
    return (np.random.default_rng(seed).random((n, supercell.n_sites)) < share).astype(np.uint8)


@pytest.mark.parametrize(
    ("rows", "sizes", "wraps"),
    [
        (["....", "####", "....", "...."], [4], [False, True]),  # a row
        (["#...", "#...", "#...", "#..."], [4], [True, False]),
        (["##.#", "....", "....", "...."], [3], [False, False]),  # crosses the boundary and ends
        (["#..#", "#..#", "##.#", "...."], [7], [False, False]),  # reaches all columns but one, touches both sides
        (["#..#", "#..#", "####", "...."], [8], [False, True]),
        (["##..", ".##.", "..##", "#..#"], [8], [True, True]),  # one spiral staircase around both
        (["##..", ".#..", ".##.", "..#."], [6], [False, False]),  # a staircase that does not meet its own image
        ([".#..", "#.#.", ".#..", "...."], [1, 1, 1, 1], [False, False]),  # a ring of diagonals, none a neighbour
        (["###.", "#.#.", "###.", "...."], [8], [False, False]),  # a ring around a hole is no path around the box
        (["##.#", "#..#", "##.#", "...."], [8], [False, False]),  # an open ring across the boundary: goes out and comes back
        (["....", "....", "....", "...."], [], [False, False]),
        (["####", "####", "####", "####"], [16], [True, True]),
    ],
)
def test_drawings(rows, sizes, wraps):
    box, labels = Lattice.square().supercell((4, 4)), drawn(rows)
    found = clusters(labels, box)
    assert cluster_sizes(labels, box).tolist() == sizes
    assert found.wraps[0].tolist() == wraps
    assert clusters(labels, Lattice.square().supercell((4, 4), periodic=(False, False))).wraps[0].tolist() == [False, False]
    assert found.number[0] == len(sizes)
    if sizes:
        assert found.largest[0] == pytest.approx(sizes[0] / sum(sizes))
        assert found.mean_size[0] == pytest.approx(np.square(sizes).sum() / sum(sizes))
    assert np.isnan(found.largest[0]) == (not sizes) and np.isnan(found.mean_size_of_others[0]) == (len(sizes) < 2)


def test_second_neighbours_connect_diagonals():
    box, labels = Lattice.square().supercell((4, 4)), np.eye(4, dtype=int).reshape(-1)
    assert cluster_sizes(labels, box).tolist() == [1, 1, 1, 1]
    assert cluster_sizes(labels, box, shell=2).tolist() == [4]
    assert clusters(labels, box, shell=2).wraps.tolist() == [[True, True]]
    assert cluster_sizes(1 - labels, box, species=0).tolist() == [1, 1, 1, 1]


def test_a_film_does_not_wrap_across_its_open_axis():
    box = Lattice.cubic(film=True).supercell((3, 3, 4))
    assert clusters(np.ones(box.n_sites, dtype=int), box).wraps.tolist() == [[True, True, False]]


def by_components(labels, box, copies=1, axis=0):
    """Component of every atom of a crystal repeated along an axis, by scipy; -1 where no atom is. Shape (copies, n_sites)."""
    shape = tuple(n * (copies if a == axis else 1) for a, n in enumerate(box.shape))
    large = box.lattice.supercell(shape)
    home = box.index(large.sites)  # the site of the small box that each is an image of
    atoms = labels[home] == 1
    bonds = np.concatenate([large.gather(b) for b in box.lattice.bonds(1)])
    bonds = bonds[atoms[bonds].all(axis=1)]
    graph = coo_array((np.ones(len(bonds)), bonds.T), shape=(large.n_sites, large.n_sites))
    component = np.where(atoms, connected_components(graph, directed=False)[1], -1)
    order = np.lexsort([large.sites[:, axis] // box.shape[axis], home])
    return component[order].reshape(-1, copies).T


@pytest.mark.parametrize("lattice", LATTICES, ids=lambda x: x.name)
def test_against_graph_search(lattice):
    """Sizes by another program; wrapping by whether an atom is connected to an image of itself in a crystal seven times as long."""
    side = 5 if lattice.dimension == 2 else 3
    box, wrapped = lattice.supercell((side,) * lattice.dimension), []
    for share in (0.3, 0.5, 0.7):
        for labels in random(box, share, 12, seed=int(100 * share)):
            found = clusters(labels, box)
            component = by_components(labels, box)[0]
            assert cluster_sizes(labels, box).tolist() == sorted(np.unique(component[component >= 0], return_counts=True)[1], reverse=True)
            for axis in range(lattice.dimension):
                images = by_components(labels, box, 7, axis)
                expected = ((images[1:] == images[0]) & (images[0] >= 0)).any()
                assert found.wraps[0, axis] == expected
                wrapped.append(expected)
    assert 0.1 < np.mean(wrapped) < 0.9  # both answers occur


def test_translation_and_symmetry():
    box = Lattice.honeycomb().supercell((6, 5))
    labels = random(box, 0.68, 200, seed=1)
    moved = np.roll(labels.reshape(200, 6, 5, 2), (2, 3), axis=(1, 2)).reshape(200, -1)
    for one, two in zip(clusters(labels, box), clusters(moved, box), strict=True):
        assert np.array_equal(one, two, equal_nan=True)


def test_one_species_wraps_where_the_other_does_not():
    """On the triangular lattice an atom's six neighbours close a ring, so a species that wraps nowhere lies in a net of the other."""
    box = Lattice.triangular().supercell((10, 10))
    labels = random(box, 0.5, 3000, seed=2)
    one, other = (clusters(labels, box, species=s).wraps for s in (0, 1))
    assert (one.any(axis=1) | other.any(axis=1)).all()
    assert one[~other.any(axis=1)].all() and other[~one.any(axis=1)].all()
    assert 500 < (~one.any(axis=1)).sum() < 2500  # it is no empty statement
    square = Lattice.square().supercell((10, 10))  # negative control: its neighbours do not close a ring
    one, other = (clusters(random(square, 0.5, 3000, seed=2), square, species=s).wraps for s in (0, 1))
    assert not (one.any(axis=1) | other.any(axis=1)).all()


# ------------------------------------------------------------------ percolation


def wrapping(lattice, side, shares, n, seed):
    """Probability of wrapping along an axis, averaged over both, at each share; its standard errors from the snapshots."""
    box = lattice.supercell((side, side))
    rows = [clusters(random(box, p, n, [seed, side, i]), box).wraps.mean(axis=1) for i, p in enumerate(shares)]
    return np.array([r.mean() for r in rows]), np.array([r.std(ddof=1) / np.sqrt(n) for r in rows])


def crossing(lattice, threshold, seed):
    """Share at which the wrapping curves of two sizes cross, and its standard error: straight lines near the threshold."""
    sizes, half, n = (12, 36), 0.015, 2000
    shares = threshold + half * np.linspace(-1, 1, 5)
    design = np.column_stack([np.ones(5), shares - threshold])
    fits = []
    for side in sizes:
        y, error = wrapping(lattice, side, shares, n, seed)
        fits.append((np.linalg.lstsq(design / error[:, None], y / error)[0], np.linalg.inv(design.T @ (design / error[:, None] ** 2))))
    (small, a), (large, b) = fits
    gap, slope = small[0] - large[0], large[1] - small[1]
    place = gap / slope
    by = np.array([1.0, place]) / slope  # derivative of the crossing by the difference of the two lines
    return threshold + place, float(np.sqrt(by @ (a + b) @ by)), slope


@pytest.mark.parametrize(
    ("lattice", "threshold"), [(Lattice.square(), 0.592746), (Lattice.triangular(), 0.5)], ids=lambda x: getattr(x, "name", "")
)
def test_wrapping_curves_cross_at_the_threshold(lattice, threshold):
    """Random alloys of 12 x 12 and 36 x 36 cells (square: M. E. J. Newman and R. M. Ziff, 2000; triangular: exact, 1/2)."""
    found, error, slope = crossing(lattice, threshold, seed=3)
    assert slope > 1  # the larger crystal's curve is steeper, so they cross at all
    assert abs(found - threshold) < 4 * error
    assert error < 0.004  # so that a threshold wrong by 0.02 would be refused, and the one lattice's for the other's


def test_wrapping_at_the_threshold_is_universal():
    """0.521058290 along an axis, 0.690473725 along either, on the square torus (Newman and Ziff, Phys. Rev. E 64, 016706, 2001)."""
    box, n = Lattice.square().supercell((32, 32)), 6000
    wraps = clusters(random(box, 0.592746, n, seed=4), box).wraps
    for hits, exact in [(wraps.mean(axis=1), 0.521058290), (wraps.any(axis=1), 0.690473725), (wraps.all(axis=1), 0.351642855)]:
        assert abs(hits.mean() - exact) < 4 * hits.std(ddof=1) / np.sqrt(n)
    away = clusters(random(box, 0.57, n, seed=4), box).wraps.mean(axis=1)  # negative control
    assert abs(away.mean() - 0.521058290) > 8 * away.std(ddof=1) / np.sqrt(n)


def test_mean_size_of_a_dilute_alloy():
    """Square lattice, 1 + 4 p + 12 p^2 + 24 p^3 atoms in an atom's cluster (M. F. Sykes and M. Glen, J. Phys. A 9, 87, 1976)."""
    p, n = 0.02, 4000
    box = Lattice.square().supercell((24, 24))
    labels = random(box, p, n, seed=5)
    found, atoms = clusters(labels, box), labels.sum(axis=1)
    squares = found.mean_size * atoms
    ratio = squares.sum() / atoms.sum()
    error = (squares - ratio * atoms).std(ddof=1) / np.sqrt(n) / atoms.mean()
    series = 1 + 4 * p + 12 * p**2 + 24 * p**3
    assert abs(ratio - series) < 4 * error
    assert abs(ratio - (1 + 6 * p)) > 8 * error  # negative control: the triangular lattice's first term


def test_refusals():
    box = Lattice.square().supercell((4, 4))
    with pytest.raises(InputError, match=r"shape \(1, 15\) given; expected integers of shape \(snapshots, 16\)"):
        clusters(np.zeros(15, dtype=int), box)
    with pytest.raises(InputError, match="2 snapshots given; expected one"):
        cluster_sizes(np.zeros((2, 16), dtype=int), box)
    with pytest.raises(InputError, match="holds no bond of shell 1"):
        clusters([[1]], Lattice.square().supercell((1, 1), periodic=(False, False)))
