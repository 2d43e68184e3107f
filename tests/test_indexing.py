"""Indexing: true indices come back from distorted crystals, and what is no crystal is refused."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from bayesatoms.errors import InputError
from bayesatoms.indexing import index_positions
from bayesatoms.lattice import Lattice

TRIANGULAR, SQUARE, HONEYCOMB = Lattice.triangular(), Lattice.square(), Lattice.honeycomb()
OBLIQUE = Lattice([[1, 0], [0.3, 1.25]], name="oblique")
LATTICES = [TRIANGULAR, SQUARE, HONEYCOMB, OBLIQUE]
DATA = Path(os.environ.get("BAYESATOMS_TESTDATA", Path(__file__).parents[1] / "../shared/data"))
PIXELS = 17.3  # per spacing, in all rendered crystals


def turned(angle):
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def sheared(rng, amount):
    """A simple shear along a random direction: lattice vectors change by up to `amount` of their length."""
    angle = rng.uniform(0, 2 * np.pi)
    return turned(angle) @ np.array([[1, 0], [amount, 1]]) @ turned(-angle)


def crystal(lattice, side, rng, *, noise=0.0, shear=0.0, drift=0.0, period=25.0, missing=0.0, hole=0.0):
    """Positions (pixels) and true sites, shuffled, of a square field of view; lengths in spacings."""
    sites = lattice.supercell((3 * side, 3 * side)).sites - [3 * side // 2, 3 * side // 2, 0]
    x = lattice.positions(sites) / lattice.shell_distances(1)[0] @ turned(rng.uniform(0, 2 * np.pi)) @ sheared(rng, shear)
    phase = 2 * np.pi * (x[:, ::-1] / period + rng.random(2))
    x = x + drift * np.sin(phase) + rng.normal(0, noise, x.shape)
    centre = rng.uniform(-side / 4, side / 4, 2)
    seen = (np.abs(x) < side / 2).all(axis=1) & (rng.random(len(x)) >= missing) & (np.linalg.norm(x - centre, axis=1) >= hole)
    order = rng.permutation(np.flatnonzero(seen))
    return PIXELS * x[order] + 100, sites[order]


def agreement(found, truth, lattice):
    """Fraction of sites that agree up to the best one of the lattice's symmetries and a translation."""
    best = 0
    for operation in lattice.operations:
        moved = operation(found)
        shifts, counts = np.unique(truth[:, :2] - moved[:, :2], axis=0, return_counts=True)
        same = (truth[:, :2] - moved[:, :2] == shifts[counts.argmax()]).all(axis=1) & (truth[:, 2] == moved[:, 2])
        best = max(best, same.mean())
    return best


def unimodular_agreement(found, truth):
    """As `agreement` for one site a cell and a cell chosen by someone else: any whole-number change of cell."""
    fit = np.linalg.lstsq(np.column_stack([found[:, :2], np.ones(len(found))]), truth, rcond=None)[0][:2].round()
    assert abs(np.linalg.det(fit)) == pytest.approx(1)
    return np.unique(truth - found[:, :2] @ fit, axis=0, return_counts=True)[1].max() / len(truth)


def well_formed(result, lattice):
    """What holds for any result: unique sites from 0 on, none where not kept, residuals below half a spacing."""
    sites = result.sites[result.kept]
    assert len(np.unique(sites, axis=0)) == len(sites)
    assert (sites[:, :2].min(axis=0) == 0).all()
    assert set(sites[:, 2]) <= set(range(len(lattice.basis)))
    assert (result.sites[~result.kept] == -1).all()
    assert np.nanmax(result.residual[result.kept]) < 0.6
    assert result.goodness == result.kept.mean()


# ------------------------------------------------------------------ rendered crystals


@pytest.mark.parametrize("lattice", LATTICES, ids=lambda lattice: lattice.name)
def test_perfect_crystal(lattice):
    x, truth = crystal(lattice, 10, np.random.default_rng(1))
    result = index_positions(x, lattice)
    well_formed(result, lattice)
    assert result.goodness == 1
    assert agreement(result.sites, truth, lattice) == 1
    assert result.residual.max() < 1e-3
    assert result.spacing == pytest.approx(PIXELS, rel=1e-9)
    unit = PIXELS / lattice.shell_distances(1)[0]
    assert np.allclose(result.vectors @ result.vectors.T, lattice.cell @ lattice.cell.T * unit**2)
    predicted = (result.sites[:, :2] + lattice.basis[result.sites[:, 2]]) @ result.vectors
    assert np.ptp(x - predicted, axis=0).max() < 1e-6 * PIXELS  # one rigid shift


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lattice", [TRIANGULAR, SQUARE, HONEYCOMB], ids=lambda lattice: lattice.name)
def test_distorted_crystal(lattice, seed):
    """Shear 13 %, drift of +-0.6 spacings within 25, 5 % missing, a hole: every index is right."""
    rng = np.random.default_rng([2, seed])
    x, truth = crystal(lattice, 20, rng, noise=0.05, shear=0.13, drift=0.6, missing=0.05, hole=3)
    result = index_positions(x, lattice)
    well_formed(result, lattice)
    assert result.goodness >= 0.99
    assert agreement(result.sites[result.kept], truth[result.kept], lattice) == 1


def test_oblique_lattice_in_either_sense_of_the_y_axis():
    """It has no mirror symmetry of its own. (Under 13 % of shear it can be mistaken for itself in another setting.)"""
    for seed in range(3):
        x, truth = crystal(OBLIQUE, 14, np.random.default_rng([16, seed]), noise=0.05, shear=0.05, missing=0.05)
        for sense in (1, -1):
            result = index_positions(x * [1, sense], OBLIQUE)
            assert np.sign(np.linalg.det(result.vectors)) == sense
            assert result.goodness >= 0.99
            assert agreement(result.sites[result.kept], truth[result.kept], OBLIQUE) == 1


@pytest.mark.parametrize("lattice", [TRIANGULAR, SQUARE], ids=lambda lattice: lattice.name)
def test_noise_of_a_tenth_of_the_spacing_is_accepted(lattice):
    rng = np.random.default_rng(3)
    for side in [5] * 8 + [8] * 6 + [16] * 2:
        x, truth = crystal(lattice, side, rng, noise=0.1, shear=0.13, missing=0.05)
        result = index_positions(x, lattice)
        assert result.goodness >= 0.95
        assert agreement(result.sites[result.kept], truth[result.kept], lattice) >= 0.99


def test_residual_measures_the_noise():
    """Noise s along each axis: a distance with median s sqrt(2 ln 2), and a little more for the noise of the neighbours."""
    for noise in (0.02, 0.05, 0.08):
        x, _ = crystal(TRIANGULAR, 30, np.random.default_rng(4), noise=noise)
        expected = noise * np.sqrt(2 * np.log(2))
        assert expected < np.median(index_positions(x, TRIANGULAR).residual) < 1.1 * expected


@pytest.mark.parametrize("seed", range(4))
def test_chains_do_not_hide_the_fundamental_lattice(seed):
    """1T': alternate rows displaced against each other, bonds 0.8 to 1.2 of the mean; the 2 x 1 cell must not be taken."""
    rng = np.random.default_rng([5, seed])
    sites = TRIANGULAR.supercell((24, 24)).sites
    direction = np.array([np.cos(0.4 * seed), np.sin(0.4 * seed)])
    x = TRIANGULAR.positions(sites) + 0.1 * np.where(sites[:, :1] % 2, 1, -1) * direction + rng.normal(0, 0.03, (len(sites), 2))
    result = index_positions(x @ sheared(rng, 0.08) * 20, TRIANGULAR)
    assert result.goodness == 1
    assert agreement(result.sites, sites, TRIANGULAR) == 1


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.floats(0, 6.28), st.floats(-3, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_rotation_scale_mirror_and_order_do_not_matter(angle, log_scale, mirrored, seed):
    x, truth = crystal(TRIANGULAR, 8, np.random.default_rng(6), noise=0.05, shear=0.1)
    order = np.random.default_rng(seed).permutation(len(x))
    moved = x[order] @ turned(angle) * 10**log_scale * ([1, -1] if mirrored else [1, 1]) + 5
    result = index_positions(moved, TRIANGULAR)
    assert result.goodness == 1
    assert agreement(result.sites, truth[order], TRIANGULAR) == 1
    bonds = [np.linalg.norm(x[a] - x[b]) for a, b in cKDTree(x).query_pairs(1.3 * PIXELS)]  # no next neighbour is so near
    assert result.spacing == pytest.approx(np.median(bonds) * 10**log_scale, rel=1e-6)


def test_first_vector_lies_nearest_to_x():
    for seed in range(5):
        x, _ = crystal(TRIANGULAR, 8, np.random.default_rng([7, seed]), noise=0.03)
        v = index_positions(x, TRIANGULAR).vectors
        assert abs(np.arctan2(v[0, 1], v[0, 0])) <= np.pi / 6 + 0.05
        assert np.linalg.det(v) > 0


def test_adatoms_and_duplicates_get_no_index():
    """Extra spots in hollows and beside atoms (4 % each) lose against the lattice."""
    rng = np.random.default_rng(8)
    x, truth = crystal(TRIANGULAR, 18, rng, noise=0.03, shear=0.08)
    chosen = rng.choice(len(x), len(x) // 25, replace=False)
    triangle = cKDTree(x).query(x[chosen], 3)[1]
    extra = np.vstack([x[triangle].mean(axis=1), x[chosen] + 0.25 * PIXELS * turned(1.0)[0]])
    result = index_positions(np.vstack([x, extra]), TRIANGULAR)
    hollow = result.kept[len(x) : len(x) + len(chosen)]
    clean = result.kept[: len(x)]
    assert hollow.mean() < 0.15  # at the rim a triple of neighbours may lie on a line, with its mean next to an atom or outside
    assert clean.mean() > 0.97
    assert agreement(result.sites[: len(x)][clean], truth[clean], TRIANGULAR) == 1
    assert len(np.unique(result.sites[result.kept], axis=0)) == result.kept.sum()


def test_missing_row_is_crossed_but_not_a_gap():
    """A row with a few atoms left is bridged; an island four spacings away gets no index."""
    rng = np.random.default_rng(9)
    sites = SQUARE.supercell((26, 16)).sites
    x = SQUARE.positions(sites) + rng.normal(0, 0.04, (len(sites), 2))
    row, gap = (sites[:, 0] == 8) & (sites[:, 1] % 5 != 0), (sites[:, 0] > 18) & (sites[:, 0] < 22)
    seen = ~(row | gap)
    result = index_positions(30 * x[seen], SQUARE)
    assert np.array_equal(result.kept, sites[seen, 0] <= 18)
    assert agreement(result.sites[result.kept], sites[seen][result.kept], SQUARE) == 1
    assert np.isnan(result.residual[sites[seen, 0] > 22]).all()


def test_sublattice_hint_decides_between_equivalent_descriptions():
    """The two sublattices of honeycomb are alike in position; a few hints tell which is which."""
    rng = np.random.default_rng(10)
    x, truth = crystal(HONEYCOMB, 12, rng, noise=0.04, shear=0.08)
    for flip in (0, 1):
        basis = truth[:, 2] ^ flip
        hint = np.where(rng.random(len(x)) < 0.5, basis, -1)
        result = index_positions(x, HONEYCOMB, sublattice_hint=hint)
        assert result.goodness == 1
        assert np.array_equal(result.sites[:, 2], basis)


def test_ten_thousand_positions_take_seconds():
    x, truth = crystal(TRIANGULAR, 95, np.random.default_rng(11), noise=0.05, shear=0.1, drift=0.6, period=30)
    start = time.perf_counter()
    result = index_positions(x, TRIANGULAR)
    assert time.perf_counter() - start < 10
    assert len(x) > 10_000
    assert agreement(result.sites[result.kept], truth[result.kept], TRIANGULAR) == 1


# ------------------------------------------------------------------ refusals


def hard_discs(rng, n, closest):
    """Random sequential packing in a square with one disc to a unit of area: liquid-like order, no lattice."""
    side, placed = np.sqrt(n), np.empty((0, 2))
    for candidate in rng.uniform(0, side, (400 * n, 2)):
        if len(placed) < n and (len(placed) == 0 or np.linalg.norm(placed - candidate, axis=1).min() > closest):
            placed = np.vstack([placed, candidate])
    return placed


@pytest.mark.parametrize(("lattice", "sets"), [(TRIANGULAR, 200), (SQUARE, 50), (HONEYCOMB, 30)], ids=["triangular", "square", "honeycomb"])
def test_random_points_are_all_refused(lattice, sets):
    rng = np.random.default_rng(12)
    for n in [100, 300, 1000, *rng.integers(12, 40, sets - 3)]:
        with pytest.raises(InputError, match=f"{n} positions hold no {lattice.name} lattice"):
            index_positions(rng.uniform(0, 300, (n, 2)), lattice)


@pytest.mark.parametrize("lattice", [TRIANGULAR, SQUARE], ids=lambda lattice: lattice.name)
def test_amorphous_points_are_refused(lattice):
    rng = np.random.default_rng(13)
    for n in (100, 100, 400):
        with pytest.raises(InputError, match="expected at least"):
            index_positions(hard_discs(rng, n, 0.72), lattice)


def test_another_lattice_is_refused():
    """Else MoS2 imaged with its sulfur would pass for a metal plane with vacancies."""
    rng = np.random.default_rng(14)
    for there, named in [(HONEYCOMB, TRIANGULAR), (TRIANGULAR, HONEYCOMB), (TRIANGULAR, SQUARE), (SQUARE, TRIANGULAR), (HONEYCOMB, SQUARE)]:
        x, _ = crystal(there, 14, rng, noise=0.03, shear=0.05)
        with pytest.raises(InputError, match=f"hold no {named.name} lattice"):
            index_positions(x, named)


def square_block():
    return SQUARE.positions(SQUARE.supercell((5, 5)).sites)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (square_block()[:11], "11 positions found; expected at least 12"),
        (np.empty((0, 2)), "0 positions found"),
        (np.ones((20, 3)), r"shape \(20, 3\); expected \(n, 2\)"),
        (np.ones(20), "expected \\(n, 2\\)"),
        (np.where(np.arange(50).reshape(25, 2) == 6, np.nan, square_block()), "1 of 25 positions are not finite .first in row 3"),
        (np.where(np.arange(50).reshape(25, 2) > 47, np.inf, square_block()), "2 of 25|1 of 25"),
        (np.ones((20, 2)), "on one line or point"),
        (np.arange(30.0)[:, None] * [1.0, 0.3], "all 30 positions lie on one line"),
        (np.arange(30.0)[:, None] * [1.0, 0.3] + np.random.default_rng(0).normal(0, 0.1, (30, 2)), "on one line"),
    ],
)
def test_malformed_positions_are_refused(positions, message):
    with pytest.raises(InputError, match=message):
        index_positions(positions, SQUARE)


def test_malformed_arguments_are_refused():
    with pytest.raises(InputError, match="3 dimensions; expected 2"):
        index_positions(square_block(), Lattice.cubic())
    for hint in (np.zeros(24, dtype=int), np.ones(25, dtype=int), np.full(25, -2), np.zeros(25)):
        with pytest.raises(InputError, match="expected 25 integers from -1"):
            index_positions(square_block(), SQUARE, sublattice_hint=hint)


# ------------------------------------------------------------------ measured images


def measured(name, x, y, keep=lambda row: True):
    """Positions and indices found by others, from a table of the shared data."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent; set BAYESATOMS_TESTDATA to the shared data")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["lattice_i"] and row[x] and keep(row)]
    return tuple(np.array([[float(row[a]), float(row[b])] for row in rows]) for a, b in ((x, y), ("lattice_i", "lattice_j")))


@pytest.mark.parametrize(
    ("table", "x", "y"),
    [
        ("mores2/re05_sites.csv", "x_px", "y_px"),
        ("mores2/re05_sites.csv", "author_x_px", "author_y_px"),
        ("mores2/re78_sites.csv", "x_px", "y_px"),
        ("mores2/re78_sites.csv", "author_x_px", "author_y_px"),
        ("v_wse2/v_wse2_sites.csv", "x_px1024", "y_px1024"),
    ],
)
def test_published_images(table, x, y):
    """Every metal column of three images (1H, distorted 1T', 1H with drift) gets the index that a careful hand gave it."""
    positions, truth = measured(table, x, y, keep=lambda row: row.get("species", "W") in "WV")
    assert len(positions) > 500
    result = index_positions(positions, TRIANGULAR)
    well_formed(result, TRIANGULAR)
    assert result.goodness == 1
    assert unimodular_agreement(result.sites, truth) == 1


def test_both_descriptions_of_re78_agree():
    """Without 5 % of the columns, and from coarse instead of refined positions, the same lattice."""
    positions, truth = measured("mores2/re78_sites.csv", "x_px", "y_px")
    coarse, _ = measured("mores2/re78_sites.csv", "author_x_px", "author_y_px")
    assert np.allclose(index_positions(positions, TRIANGULAR).vectors, index_positions(coarse, TRIANGULAR).vectors, atol=0.2)
    rng = np.random.default_rng(15)
    for _ in range(3):
        seen = rng.random(len(truth)) > 0.05
        result = index_positions(positions[seen], TRIANGULAR)
        assert result.goodness > 0.99
        assert unimodular_agreement(result.sites[result.kept], truth[seen][result.kept]) >= 0.99
