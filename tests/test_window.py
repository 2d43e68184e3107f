"""Windows, the observation operator and observations against counting by hand.

Statistical checks allow SIGMA = 4 standard errors (6.3e-5 false alarms each, about 20 of them) or a
chi-square p-value of ALARM = 1e-4; seeds are fixed.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import generator
from scipy import stats

from bayesatoms.configuration import Configuration, whole_counts
from bayesatoms.environments import Environments
from bayesatoms.errors import InputError
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation
from bayesatoms.response import check_label_error
from bayesatoms.window import Operator, Window

SIGMA = 4.0
ALARM = 1e-4
RING = [(1, 0), (1, 1), (0, 1), (-1, 0), (-1, -1), (0, -1)]  # neighbours in the triangular cell (120 degrees), counter-clockwise


def triangular(symmetry: str = "full", species=("Mo", "Re")) -> Environments:
    return Environments(Lattice.triangular(0.316), species, symmetry=symmetry)


def count_by_hand(grid: np.ndarray, seen: set[tuple[int, int]], e: Environments) -> np.ndarray:
    """Counts of the 26 classes around every seen site of a dictionary-like grid whose six neighbours are seen."""
    order = {tuple(row): c for c, row in enumerate(e.descriptors.tolist())}
    counts = np.zeros(26, dtype=int)
    for i, j in seen:
        ring = [(i + di, j + dj) for di, dj in RING]
        if all(site in seen for site in ring):
            s = [int(grid[site]) for site in ring]
            pairs = [sum(s[r] * s[(r + step) % 6] for r in range(6)) for step in (1, 2, 3)]
            counts[order[int(grid[i, j]), sum(s), pairs[0], pairs[1], pairs[2] // 2]] += 1
    return counts


class Wrapped(dict):
    """Labels of a periodic crystal, asked for at any cell."""

    def __init__(self, grid: np.ndarray, origin: tuple[int, int] = (0, 0)) -> None:
        self.grid, self.origin = grid, origin

    def __getitem__(self, site):
        return self.grid[tuple((np.add(site, self.origin)) % self.grid.shape)]


class Everywhere(set):
    """Seen at every cell."""

    def __contains__(self, site) -> bool:
        return True


# ------------------------------------------------------------------ windows


LATTICES = {
    "triangular": (Lattice.triangular(), 1),
    "triangular, two shells": (Lattice.triangular(), 2),
    "square": (Lattice.square(), 1),
    "honeycomb": (Lattice.honeycomb(), 1),
    "honeycomb, two shells": (Lattice.honeycomb(), 2),
    "cubic": (Lattice.cubic(), 1),
}


@pytest.mark.parametrize("name", LATTICES)
def test_a_block_has_just_as_many_complete_environments(name):
    lattice, shells = LATTICES[name]
    e = Environments(lattice, "AB", shells)
    for n in [*range(1, 40), 64, 100, 255, 434, 464, 466, 471]:
        window = Window.block(e, n)
        assert sum(len(rows) for rows in window.complete(e)) == n
        assert len(np.unique(window.sites, axis=0)) == len(window.sites)
        assert window.sites[:, :-1].min() == 0
    with pytest.raises(InputError, match="at least one"):
        Window.block(e, 0)


def test_the_window_of_a_configuration():
    lattice = Lattice.square()
    labels = np.zeros((4, 5), dtype=int)
    whole = Window.of(Configuration.from_labels(lattice, "AB", labels, periodic=True))
    assert whole.whole == whole.extent == (4, 5) and len(whole.sites) == 20
    image = Window.of(Configuration.from_labels(lattice, "AB", labels))
    assert image.whole is None and image.extent == (4, 5)
    labels[1, 2] = -1
    holed = Window.of(Configuration.from_labels(lattice, "AB", labels, periodic=True))
    assert holed.whole is None and [1, 2, 0] not in holed.sites.tolist() and len(holed.sites) == 19
    e = Environments(lattice, "AB")
    assert [sum(map(len, w.complete(e))) for w in (whole, image, holed)] == [20, 6, 2]  # a hole takes itself and three of the six inside


def test_a_film_is_complete_between_its_surfaces():
    film = Lattice.cubic(film=True)
    e = Environments(film, "AB")
    window = Window.of(Configuration.from_labels(film, "AB", np.zeros((3, 3, 5), dtype=int), periodic=(True, True, False)))
    assert window.whole == (3, 3, 5) and sum(map(len, window.complete(e))) == 9 * 3


@pytest.mark.parametrize("x", [(0.98, 0.02), (0.5, 0.5), (1.0, 0.0), (0.157, 0.843)])
def test_the_box_is_larger_and_of_the_composition(x):
    e = triangular()
    for n in (30, 464):
        window = Window.block(e, n)
        supercell, atoms = window.box(e, x)
        assert all(big >= small + 4 for big, small in zip(supercell.shape, window.extent, strict=True))
        assert atoms.sum() == supercell.n_sites and supercell.periodic == (True, True)
        assert ((atoms > 0) == (np.array(x) > 0)).all()
        np.testing.assert_allclose(atoms / atoms.sum(), x, atol=0.5 / atoms.sum() + 1e-12)
    whole = Window(e.lattice.supercell((5, 6)).sites, whole=(5, 6))
    assert whole.box(e, x)[0].shape == (5, 6)


# ------------------------------------------------------------------ the operator


def test_a_whole_crystal_is_counted_by_hand():
    """Operator, observation and a plain loop agree on periodic crystals, from whatever origin."""
    e, rng = triangular(), generator("whole")
    cell = e.lattice.supercell((6, 7))
    operator = Operator(e, Window(cell.sites, whole=cell.shape), cell)
    assert operator.n == 42
    snapshots = rng.integers(0, 2, (20, 42)).astype(np.uint8)
    for row, counts in zip(snapshots, operator.counts(snapshots, rng), strict=True):
        grid = row.reshape(6, 7)
        sites = {(i, j) for i in range(6) for j in range(7)}
        around = Everywhere(sites)
        np.testing.assert_array_equal(counts, count_by_hand(Wrapped(grid), around, e))
        np.testing.assert_array_equal(counts, Observation.from_labels(grid, e.lattice, e.species, periodic=True).counts)


def test_an_image_with_holes_is_counted_by_hand():
    e, rng = triangular(), generator("holes")
    for _ in range(10):
        labels = rng.integers(0, 2, (9, 11))
        labels[rng.random((9, 11)) < 0.08] = -1
        seen = {(int(i), int(j)) for i, j in np.argwhere(labels >= 0)}
        o = Observation.from_labels(labels, e.lattice, e.species)
        np.testing.assert_array_equal(o.counts, count_by_hand(labels, seen, e))
        assert 0 < o.n < 63


def test_a_crystal_is_cut_to_the_window_at_random_places():
    """Every count is the one by hand at some origin, and all origins are equally likely."""
    e, rng = triangular(), generator("cut")
    shape = (7, 8)
    grid = rng.integers(0, 2, shape)
    mask = np.ones((5, 6), dtype=bool)
    mask[1, 2] = mask[3, 5] = False
    seen = {(int(i), int(j)) for i, j in np.argwhere(mask)}
    window = Window(np.array(sorted((*s, 0) for s in seen)))
    operator = Operator(e, window, e.lattice.supercell(shape))
    by_hand = {}
    for origin in np.ndindex(*shape):
        by_hand.setdefault(tuple(count_by_hand(Wrapped(grid, origin), seen, e).tolist()), []).append(origin)
    assert operator.n == sum(next(iter(by_hand))) == 5
    assert len(by_hand) > 50, "the crystal should look different from nearly every origin"
    drawn = operator.counts(np.tile(grid.reshape(1, -1).astype(np.uint8), (20_000, 1)), rng)
    visits = dict.fromkeys(by_hand, 0)
    for row in drawn.tolist():
        visits[tuple(row)] += 1  # a count that is nobody's would be a KeyError
    expected = np.array([20_000 * len(origins) / 56 for origins in by_hand.values()])
    assert stats.chisquare(list(visits.values()), expected).pvalue > ALARM
    # negative control: the same draws if the last row of origins were never chosen
    never = np.array([v * all(o[0] != 6 for o in by_hand[k]) for k, v in visits.items()])
    assert stats.chisquare(never * 20_000 / never.sum(), expected).pvalue < ALARM


def test_a_film_is_cut_along_its_plane_only():
    """The layers of a film stay where they are: counts of species by layer do not mix."""
    film, rng = Lattice.cubic(film=True), generator("film")
    e = Environments(film, "AB", symmetry="none")
    cell = film.supercell((5, 5, 5))
    grid = np.zeros((5, 5, 5), dtype=np.uint8)
    grid[:, :, 1] = 1  # one layer of B
    sites = np.array([(i, j, k, 0) for i in range(3) for j in range(3) for k in range(5)])
    counts = Operator(e, Window(sites), cell).counts(np.tile(grid.reshape(1, -1), (20, 1)), rng)
    assert (counts == counts[0]).all() and counts[0].sum() == 3
    assert counts[0] @ e.centre == 1


def test_honeycomb_windows_keep_their_sublattices():
    lattice = Lattice.honeycomb(sublattices=("metal", "chalcogen"))
    e, cell = Environments(lattice, "AB"), lattice.supercell((6, 6))
    snapshot = np.tile([0, 1], 36).astype(np.uint8)[None]  # every metal site A, every chalcogen site B
    counts = Operator(e, Window.block(e, 20), cell).counts(np.repeat(snapshot, 10, axis=0), generator("honeycomb"))
    names = np.array(e.names)
    assert (counts.sum(axis=1) == 20).all() and (counts == counts[0]).all()
    assert sorted(names[counts[0] > 0]) == ["A|3B(3)", "B|0B(0)#2"]


def test_an_operator_refuses_what_does_not_fit():
    e = triangular()
    small, large = e.lattice.supercell((5, 5)), e.lattice.supercell((9, 9))
    with pytest.raises(InputError, match="does not fit"):
        Operator(e, Window.block(e, 30), small)
    # once counted environments that close around the window instead of the box
    with pytest.raises(InputError, match="closes on itself"):
        Operator(e, Window(small.sites, whole=(5, 5)), large)


# ------------------------------------------------------------------ label errors

ERRORS = {
    "two species": ("AB", [[0.71, 0.29], [0.005, 0.995]], (0.4, 0.6)),
    "symmetric": ("AB", [[0.9, 0.1], [0.1, 0.9]], (0.25, 0.75)),
    "three species": ("ABC", [[0.8, 0.15, 0.05], [0.0, 0.9, 0.1], [0.3, 0.1, 0.6]], (0.5, 0.3, 0.2)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_label_errors_change_the_composition_as_they_should(name):
    """Labelled composition E^T x, pairs and counts: each site is mistaken once, however many environments it is in."""
    species, error, x = ERRORS[name]
    k, rng = len(species), generator(f"errors {name}")
    e = triangular(species=tuple(species))
    cell = e.lattice.supercell((10, 10))
    atoms = whole_counts(x, 100)
    snapshots = np.stack([rng.permutation(np.repeat(np.arange(k), atoms)) for _ in range(2000)]).astype(np.uint8)
    operator = Operator(e, Window(cell.sites, whole=cell.shape), cell, error)
    counts = operator.counts(snapshots, rng)
    assert (counts.sum(axis=1) == 100).all()
    labelled = np.stack([counts[:, e.centre == s].sum(axis=1) for s in range(k)], axis=1) / 100
    standard = labelled.std(axis=0, ddof=1) / np.sqrt(len(labelled))
    expected = atoms / 100 @ np.array(error)
    assert (np.abs(labelled.mean(axis=0) - expected) < SIGMA * standard).all()
    assert (np.abs(labelled.mean(axis=0) - atoms / 100) > SIGMA * standard).any(), "negative control: without errors"
    # every site is a neighbour six times: this holds exactly if all its environments see the same label
    for s in range(1, k):
        np.testing.assert_array_equal(counts @ e.descriptors[:, s], 6 * counts[:, e.centre == s].sum(axis=1))


def test_label_errors_keep_the_number_of_environments_in_a_window():
    e, rng = triangular(), generator("window errors")
    operator = Operator(e, Window.block(e, 33), e.lattice.supercell((14, 14)), [[0.9, 0.1], [0.2, 0.8]])
    counts = operator.counts(rng.integers(0, 2, (200, 196)).astype(np.uint8), rng)
    assert operator.n == 33 and (counts.sum(axis=1) == 33).all()


def test_pairs_shrink_by_the_product_of_the_errors():
    """Correlations of labels are those of the atoms times (1 - e_A - e_B)^2: two independent mistakes a pair."""
    e, rng = Environments(Lattice.square(), "AB"), generator("pairs")
    cell, error = e.lattice.supercell((8, 8)), np.array([[0.8, 0.2], [0.1, 0.9]])
    board = (np.indices((8, 8)).sum(axis=0) % 2).reshape(1, -1).astype(np.uint8)  # all 128 bonds unlike
    counts = Operator(e, Window(cell.sites, whole=cell.shape), cell, error).counts(np.repeat(board, 4000, axis=0), rng)
    ring = e.descriptors[:, 1]
    unlike = counts @ np.where(e.centre == 0, ring, 4 - ring) / 2
    expected = 128 * (0.8 * 0.9 + 0.2 * 0.1)
    assert abs(unlike.mean() - expected) < SIGMA * unlike.std() / np.sqrt(len(unlike))


@pytest.mark.parametrize(
    "wrong",
    [
        [[0.9, 0.2], [0.1, 0.9]],
        [[1.1, -0.1], [0.0, 1.0]],
        [[0.5, 0.5], [0.5, 0.5]],
        [[1.0]],
        np.eye(3),
        [[np.nan, np.nan], [0, 1]],
        [0.9, 0.1],
    ],
)
def test_impossible_label_errors_are_refused(wrong):
    with pytest.raises(InputError, match="label_error"):
        check_label_error(wrong, 2)


# ------------------------------------------------------------------ observations


@pytest.mark.parametrize("name", ERRORS)
def test_composition_is_denoised(name):
    """Labels in the proportions E^T x are those of a crystal of composition x."""
    species, error, x = ERRORS[name]
    e = triangular(species=tuple(species))
    centres = 10_000 * np.array(x) @ error
    counts = np.zeros(e.n_classes)
    for s, n in enumerate(np.round(centres)):
        counts[np.flatnonzero(e.centre == s)[3]] = n
    o = Observation.from_counts(counts, e, label_error=error)
    np.testing.assert_allclose(o.composition, centres / 10_000, atol=1e-4)
    np.testing.assert_allclose(o.true_composition, x, atol=2e-4)
    plain = Observation.from_counts(counts, e)
    np.testing.assert_array_equal(plain.true_composition, plain.composition)
    assert (o.composition_sd > plain.composition_sd).all()


def test_composition_is_denoised_to_what_is_possible():
    """Fewer B labels than the errors alone would give: half an atom of the window is left, not a negative number."""
    e = triangular()
    o = Observation.from_counts([99] + [0] * 12 + [1] + [0] * 12, e, label_error=[[0.9, 0.1], [0.1, 0.9]])
    np.testing.assert_allclose(o.true_composition, np.array([1.0, 0.005]) / 1.005)


def test_error_of_the_composition():
    """The printed standard deviation is that of repeated binomial images."""
    e, rng, error = triangular(), generator("composition sd"), np.array([[0.9, 0.1], [0.05, 0.95]])
    n, x = 400, 0.3
    labelled = rng.binomial(n, np.array([1 - x, x]) @ error[:, 1], size=4000)
    true = []
    for b in labelled:
        counts = np.zeros(26)
        counts[0], counts[13] = n - b, b
        true.append(Observation("x", e, counts, Window.block(e, 1), error).true_composition[1])
    counts = np.zeros(26)
    b = round(n * (np.array([1 - x, x]) @ error[:, 1]))
    counts[0], counts[13] = n - b, b
    sd = Observation("x", e, counts, Window.block(e, 1), error).composition_sd[1]
    assert abs(np.std(true) / sd - 1) < SIGMA / np.sqrt(2 * 4000) + 0.01  # 1 % for rounding b to whole atoms
    assert abs(np.mean(true) - x) < SIGMA * sd / np.sqrt(4000)


def test_counts_make_an_observation():
    e = triangular()
    counts = np.arange(26)
    o = Observation.from_counts(counts, e, name="made up", sites=325, temperature=1000.0, source={"doi": "none"})
    assert o.n == 325 == sum(map(len, o.window.complete(e)))
    assert abs(o.histogram.sum() - 1) < 1e-12
    np.testing.assert_allclose(o.composition, [78 / 325, 247 / 325])
    assert (o.name, o.temperature, o.source, o.configuration) == ("made up", 1000.0, {"doi": "none"}, None)
    np.testing.assert_array_equal(o.label_error, np.eye(2))
    assert o.with_environments(triangular()) is o
    with pytest.raises(InputError, match="only counts are known"):
        o.with_environments(triangular("none"))


def test_the_published_counts_make_observations(data):
    table = np.genfromtxt(data / "mores2" / "author_hist26.csv", delimiter=",", names=True, dtype=int)
    for column, n, re in (("re05", 464, 10), ("re55", 466, 278), ("re78", 434, 366), ("re95", 471, 451)):
        o = Observation.from_counts(table[column], triangular(), sites=n)
        assert o.n == n
        assert abs(o.composition[1] - re / n) < 1e-12


@pytest.mark.parametrize(
    ("counts", "keywords", "words"),
    [
        ([1] * 25, {}, "25 counts given; expected 26"),
        ([1] * 27, {}, "27 counts given; expected 26"),
        ([-1] + [1] * 25, {}, "count -1"),
        ([0.5] + [1] * 25, {}, "count 0.5"),
        ([np.nan] + [1] * 25, {}, "count nan"),
        ([np.inf] + [1] * 25, {}, "count inf"),
        ([0] * 26, {}, "at least one"),
        ([1] * 26, {"sites": 27}, "sum to 26; expected 27"),
        ([1] * 26, {"label_error": [[1, 0], [1, 0]]}, "label_error"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, keywords, words):
    with pytest.raises(InputError, match=words):
        Observation.from_counts(counts, triangular(), name="bad", **keywords)


def test_an_image_can_be_counted_again_by_other_environments():
    e, rng = triangular(), generator("again")
    labels = rng.integers(0, 2, (10, 10))
    o = Observation.from_labels(labels, e.lattice, e.species, name="image")
    raw = o.with_environments(triangular("none"))
    assert raw.n == o.n and raw.name == "image" and raw.environments.n_classes == 128
    folded = np.bincount(e.class_of, weights=raw.counts[raw.environments.class_of], minlength=26)
    np.testing.assert_array_equal(folded, o.counts)
    two = o.with_environments(Environments(e.lattice, e.species, 2))
    assert 0 < two.n < o.n


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((2, 2), dtype=int), "none of the 4 seen sites"),
        (np.full((5, 5), -1), "none of the 0 seen sites"),
        (np.full((5, 5), 2), "labels run from"),
        (np.full((5, 5), 256), "labels run from"),  # once wrapped around to species 0
        (np.full((5, 5), -2), "labels run from"),
        (np.zeros((5, 5)), "expected integers"),
        (np.zeros(5, dtype=int), "expected 2 axes"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, words):
    with pytest.raises(InputError, match=words):
        Observation.from_labels(labels, Lattice.triangular(), "AB")


def test_sites_make_a_configuration():
    lattice = Lattice.honeycomb()
    sites, labels = np.array([[-2, 5, 1], [0, 6, 0], [-1, 5, 1]]), [1, 0, 1]
    c = Configuration.from_sites(lattice, "AB", sites, labels)
    assert c.labels.shape == (3, 2, 2) and c.n_seen == 3 and c.periodic == (False, False)
    assert [int(c.labels[tuple(s)]) for s in sites - [-2, 5, 0]] == labels
    with pytest.raises(InputError, match="one site"):
        Configuration.from_sites(lattice, "AB", sites[[0, 1, 0]], labels)


def test_whole_counts_are_the_nearest():
    rng = generator("whole counts")
    for _ in range(50):
        x, n = rng.dirichlet(np.ones(3)), int(rng.integers(1, 500))
        counts = whole_counts(x, n)
        assert counts.sum() == n and (np.abs(counts - x * n) < 1).all()
    assert whole_counts([0.3, 0.7], 10).tolist() == [3, 7]  # 0.3 x 10 is not 3 in floating point
    for wrong in ([0.5, 0.4], [1.5, -0.5], [np.nan, 1.0]):
        with pytest.raises(InputError, match="sum to 1"):
            whole_counts(wrong, 10)
    c = Configuration.random(Lattice.honeycomb(), "ABC", (4, 5), [0.5, 0.25, 0.25], rng)
    assert np.bincount(c.flat).tolist() == [20, 10, 10]
