"""Order by direction, the waves and sublattices of an ordering, and how it is found: configurations one can draw, and chains."""

from __future__ import annotations

import numpy as np
import pytest

from bayesatoms.errors import InputError
from bayesatoms.lattice import Lattice
from bayesatoms.phases.observables import order_parameter, structure_factor, structure_peaks, sublattice_order, warren_cowley, wave_order

LATTICES = [Lattice.square(), Lattice.triangular(), Lattice.honeycomb(), Lattice.cubic()]


def random(box, share, n, seed):
    """Random alloys of fixed composition."""
    rng, atoms = np.random.default_rng(seed), np.arange(box.n_sites) < round(share * box.n_sites)
    return np.array([rng.permutation(atoms) for _ in range(n)]).astype(np.uint8)


def _sorted(peaks):
    return sorted((round(p.height, 9), round(p.share, 9)) for p in peaks)


def root3(box):
    """Number of the sublattice of sqrt3 x sqrt3 order."""
    return box.sites[:, :-1].sum(axis=1) % 3


# ------------------------------------------------------------------ short-range order


def test_directions_average_to_the_shell():
    """The mean over directions, weighed by their bonds, is the shell's parameter; each has the finite-size value in a random alloy."""
    for lattice in LATTICES:
        box, n = lattice.supercell((6,) * lattice.dimension), 4000
        labels = random(box, 0.5, n, seed=1)
        bonds = [len(lattice.bonds(1, d)) for d in range(len(lattice.directions(1)))]
        along = np.array([warren_cowley(labels, box, direction=d) for d in range(len(bonds))])
        assert np.average(along, axis=0, weights=bonds) == pytest.approx(warren_cowley(labels, box), abs=1e-12)
        # 9 directions in all, |z| < 4: a false alarm in 6e-4
        assert (np.abs(along.mean(axis=1) + 1 / (box.n_sites - 1)) < 4 * along.std(axis=1) / np.sqrt(n)).all()


def test_rows_show_by_direction_only():
    box = Lattice.triangular().supercell((6, 6))
    rows = box.sites[:, 1] % 2
    along = [float(warren_cowley(rows, box, direction=d)[0]) for d in range(3)]
    assert sorted(along) == [-1.0, -1.0, 1.0] and warren_cowley(rows, box)[0] == pytest.approx(-1 / 3)
    # the row that is alike lies along the first axis
    alike = Lattice.triangular().directions(1)[np.argmax(along)]
    assert abs(alike @ [1, 0]) == pytest.approx(1.0)
    with pytest.raises(InputError, match="direction 3 does not exist in shell 1; expected 0 to 2"):
        warren_cowley(rows, box, direction=3)


# ------------------------------------------------------------------ waves


def test_a_single_wave_has_amplitude_one():
    """Chessboard, rows, sqrt3 x sqrt3 at a third, sublattices of the honeycomb: 1 at their wave vector, 0 at another."""
    square, triangular, honeycomb, cubic = (lattice.supercell((6,) * lattice.dimension) for lattice in LATTICES)
    for box, labels, k, other in [
        (square, square.sites[:, :2].sum(axis=1) % 2, [0.5, 0.5], [0.5, 0]),
        (square, square.sites[:, 0] % 2, [0.5, 0], [0, 0.5]),
        (triangular, (root3(triangular) == 0).astype(int), [1 / 3, 1 / 3], [0.5, 0]),
        (triangular, (root3(triangular) == 0).astype(int), [-1 / 3, 2 / 3], [0.5, 0.5]),
        (honeycomb, honeycomb.sites[:, -1], [0, 0], [0.5, 0]),
        (cubic, cubic.sites[:, :3].sum(axis=1) % 2, [0.5, 0.5, 0.5], [0.5, 0.5, 0]),
    ]:
        assert wave_order(labels, box, k) == pytest.approx(1.0) and wave_order(labels, box, other) == pytest.approx(0, abs=1e-9)
        assert wave_order(labels, box, [k, other]) == pytest.approx(1.0)
        assert wave_order(1 - labels, box, k) == pytest.approx(1.0)
        assert wave_order(labels, box, k, species=0) == pytest.approx(1.0)


@pytest.mark.parametrize("lattice", LATTICES, ids=lambda x: x.name)
def test_waves_are_those_of_the_structure_factor(lattice):
    """The squared amplitudes over all pairs +-k sum to 1, and each is its share of the spectral weight."""
    box = lattice.supercell((4, 6) if lattice.dimension == 2 else (2, 4, 3))
    labels = random(box, 0.4, 5, seed=2)
    factor = structure_factor(labels, box).reshape(5, -1) / box.n_cells
    index = np.indices(box.shape).reshape(len(box.shape), -1).T
    kept = [i for i, m in enumerate(index) if tuple(m) <= tuple(-m % box.shape)]
    assert wave_order(labels, box, index[kept] / box.shape) == pytest.approx(1.0)
    for i in kept[:8]:
        pair = 1 if (2 * index[i] % box.shape == 0).all() else 2
        assert wave_order(labels, box, index[i] / box.shape) ** 2 == pytest.approx(pair * factor[:, i])
    share = order_parameter(labels, box).share
    assert np.max([wave_order(labels, box, index[i] / box.shape) for i in kept], axis=0) == pytest.approx(np.sqrt(share))


def test_a_chessboard_with_errors_has_the_staggered_magnetisation():
    box = Lattice.square().supercell((8, 8))
    board = box.sites[:, :2].sum(axis=1) % 2
    labels = np.array([board, board, 1 - board])
    labels[1:, [0, 1, 9, 8]] ^= 1  # two atoms of each species change places
    assert labels.sum(axis=1).tolist() == [32, 32, 32]
    expected = np.abs(((2 * labels - 1) * (2 * board - 1)).mean(axis=1))
    assert wave_order(labels, box, [0.5, 0.5]) == pytest.approx(expected) and expected[1] == 1 - 8 / 64
    assert sublattice_order(labels, box, board) == pytest.approx(expected)


def test_random_alloys_have_the_amplitude_of_noise():
    """Mean square amplitude at one pair +-k of M wave vectors: 2 / (M - 1), since all but k = 0 share the weight (one site a cell)."""
    box, n = Lattice.triangular().supercell((6, 6)), 20_000
    squares = wave_order(random(box, 1 / 3, n, seed=3), box, [1 / 3, 1 / 3]) ** 2
    assert abs(squares.mean() - 2 / 35) < 4 * squares.std() / np.sqrt(n)
    assert abs(squares.mean() - 2 / 30) > 8 * squares.std() / np.sqrt(n)  # negative control


def test_waves_that_do_not_fit_are_named():
    box = Lattice.square().supercell((4, 6))
    labels = np.zeros(24, dtype=int)
    assert wave_order(labels, box, [0.25, 1 / 6]).tolist() == [0.0]  # one species alone
    for k in ([1 / 3, 0], [0.5], [[0.25, 0], [-0.25, 0]], [[0.5, 0.5], [0.5, 0.5]]):
        with pytest.raises(InputError, match=r"expected 2 numbers each, multiples of one over the cells of the box \(4, 6\)"):
            wave_order(labels, box, k)


# ------------------------------------------------------------------ finding it


def test_stars_are_found():
    """Rows of three directions on the triangular lattice are one star of three; sqrt3 x sqrt3 is the one pair of corners K."""
    box = Lattice.triangular().supercell((6, 6))
    rows = [box.sites[:, 0] % 2, box.sites[:, 1] % 2, box.sites[:, :2].sum(axis=1) % 2]
    for row in rows:
        (peak,) = structure_peaks(structure_factor(row, box), box)
        assert peak.height == pytest.approx(36) and peak.share == pytest.approx(1)
        assert sorted(peak.star.tolist()) == [[0, 0.5], [0.5, 0], [0.5, 0.5]]
        assert wave_order(row, box, peak.star) == pytest.approx(1.0) and wave_order(row, box, peak.k) == pytest.approx(1.0)
    domains = structure_peaks(structure_factor(np.array(rows), box), box)[0]
    assert domains.height == pytest.approx(12) and domains.share == pytest.approx(1)
    corner = structure_peaks(structure_factor((root3(box) == 1).astype(int), box), box)[0]
    assert np.abs(corner.k) == pytest.approx([1 / 3, 1 / 3]) and len(corner.star) == 1


@pytest.mark.parametrize("lattice", LATTICES, ids=lambda x: x.name)
def test_stars_share_the_weight_among_them(lattice):
    """All stars together hold all of it, and no wave vector is in two of them; turning the crystal changes none of their shares."""
    box = lattice.supercell((4,) * lattice.dimension)
    labels = random(box, 0.3, 1, seed=4)[0]
    peaks = structure_peaks(structure_factor(labels, box), box, count=box.n_cells)
    assert sum(p.share for p in peaks) == pytest.approx(1.0)
    pairs = {min(tuple(m), tuple(-m % 4)) for m in np.indices(box.shape).reshape(len(box.shape), -1).T}
    listed = [min(tuple(m), tuple(-m % 4)) for p in peaks for m in (p.star * 4).round().astype(int) % 4]
    assert set(listed) == pairs and len(listed) == len(pairs)
    heights = [p.height for p in peaks]
    assert heights == sorted(heights, reverse=True)
    for operation in lattice.operations[:: max(1, len(lattice.operations) // 8)]:
        turned = np.empty_like(labels)
        turned[box.index(operation(box.sites))] = labels
        again = structure_peaks(structure_factor(turned, box), box, count=box.n_cells)
        # as sets: the order of stars of the same height is that of their numbers, which turning changes
        assert np.array(_sorted(again)) == pytest.approx(np.array(_sorted(peaks)))
        assert wave_order(turned, box, peaks[0].star) == pytest.approx(wave_order(labels, box, peaks[0].star))


def test_a_box_that_is_not_symmetric_keeps_what_it_holds():
    box = Lattice.square().supercell((4, 6))
    peak = structure_peaks(structure_factor(box.sites[:, 0] % 2, box), box)[0]
    assert sorted(peak.star.tolist()) == [[0.0, 0.5], [0.5, 0.0]]
    quarter = structure_peaks(structure_factor((box.sites[:, 0] % 4 < 2).astype(int), box), box)[0]
    assert np.abs(quarter.star).tolist() == [[0.25, 0.0]]  # (0, 1/4) is no wave of six cells


def test_a_faint_order_is_found_in_noise():
    """Chessboards of which three atoms in ten are put at random, in the mean of 20 snapshots; not found where all are."""
    box, rng = Lattice.square().supercell((8, 8)), np.random.default_rng(5)
    board = box.sites[:, :2].sum(axis=1) % 2
    faint = np.where(rng.random((20, 64)) < 0.3, rng.integers(0, 2, (20, 64)), board)
    best, second = structure_peaks(structure_factor(faint, box), box, count=2)
    assert best.star.tolist() == [[0.5, 0.5]] and best.height > 5 * second.height
    best, second = structure_peaks(structure_factor(rng.integers(0, 2, (20, 64)), box), box, count=2)
    assert best.height < 3 * second.height


# ------------------------------------------------------------------ sublattices


def test_sublattices_of_root3():
    """One, two or half of three sublattices filled: 1, 1, and r_alpha - r_beta = 1/2."""
    box = Lattice.triangular().supercell((6, 6))
    number = root3(box)
    half = (number == 0) & (np.cumsum(number == 0) % 2 == 0)
    labels = np.array([number == 0, number != 0, half]).astype(int)
    assert sublattice_order(labels, box, number).tolist() == [1.0, 1.0, 0.5]
    assert sublattice_order(labels, box, number, species=0).tolist() == [1.0, 1.0, 0.5]
    assert sublattice_order(np.ones(36, dtype=int), box, number).tolist() == [0.0]


@pytest.mark.parametrize("wrong", [np.zeros(36, dtype=int), np.arange(35), np.arange(36) * 2, np.full(36, -1), np.linspace(0, 1, 36)])
def test_sublattices_that_do_not_fit_are_named(wrong):
    with pytest.raises(InputError, match="expected one a site"):
        sublattice_order(np.zeros(36, dtype=int), Lattice.triangular().supercell((6, 6)), wrong)


def test_a_factor_that_does_not_fit_is_named():
    box = Lattice.square().supercell((4, 6))
    for factor, count in [(np.ones((6, 4)), 1), (np.ones((1, 1, 4, 6)), 1), (np.ones((4, 6)), 0)]:
        with pytest.raises(InputError, match=r"expected a last shape \(4, 6\)"):
            structure_peaks(factor, box, count=count)
