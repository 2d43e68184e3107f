"""Environment classes against the published 26, the counts of bracelets and colourings, and the symmetry of whole crystals."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bayesatoms.configuration import Configuration
from bayesatoms.environments import Environments
from bayesatoms.errors import InputError
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation

MULTIPLICITY = [1, 6, 3, 6, 6, 2, 12, 6, 3, 6, 6, 6, 1] * 2
# Vlcek et al., npj Comput. Mater. 7, 42 (2021): (neighbours Re, then Re-Re pairs of the ring adjacent / next / opposite), for each centre.
RING = [
    (0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 1), (2, 0, 1, 0), (2, 1, 0, 0), (3, 0, 3, 0), (3, 1, 1, 1),
    (3, 2, 1, 0), (4, 2, 2, 2), (4, 2, 3, 1), (4, 3, 2, 1), (5, 4, 4, 2), (6, 6, 6, 3),
]  # fmt: skip
PUBLISHED = [(centre, *ring) for centre in (0, 1) for ring in RING]
HONEYCOMB = Lattice.honeycomb(sublattices=("A", "B"))


def published() -> Environments:
    return Environments(Lattice.triangular(0.316), ("Mo", "Re"))


def ring_class(ring: tuple[int, ...]) -> tuple[int, ...]:
    """The bracelet of a ring: the smallest of its turns and mirror images."""
    turns = [ring[i:] + ring[:i] for i in range(len(ring))]
    return min(turns + [turn[::-1] for turn in turns])


# ------------------------------------------------------------------ the published classes


def test_published_classes():
    e = published()
    assert e.n_classes == 26
    assert e.multiplicity.tolist() == MULTIPLICITY and sum(MULTIPLICITY) == 128 == e.offsets[-1]
    assert list(map(tuple, e.descriptors.tolist())) == PUBLISHED
    assert e.centre.tolist() == [0] * 13 + [1] * 13
    assert len(set(e.names)) == 26


def test_published_order_is_that_of_the_data(data):
    with (data / "mores2" / "author_hist26.csv").open() as file:
        rows = list(csv.DictReader(file))
    order = [tuple(int(row[c]) for c in ("centre", "n_re", "ortho", "meta", "para")) for row in rows]
    assert order == list(map(tuple, published().descriptors.tolist()))


def test_classes_do_not_depend_on_the_lattice_constant():
    """Equal distances were once told apart by rounding to a digit, at a = 0.4547855 for one."""
    reference = published()
    for a in (0.4547855, 0.3079155, 1.0, 3.16e-3, 316.0):
        e = Environments(Lattice.triangular(a), ("Mo", "Re"))
        np.testing.assert_array_equal(e.class_of, reference.class_of)
        np.testing.assert_array_equal(e.descriptors, reference.descriptors)
        assert e.names == reference.names


def test_classes_are_bracelets():
    """Two raw environments share a class exactly where their centres are equal and their rings turn or mirror into each other."""
    for lattice, z in ((Lattice.triangular(), 6), (Lattice.square(), 4)):
        e = Environments(lattice, ("A", "B", "C"))
        own = [(row[0], ring_class(tuple(row[1:]))) for row in e.digits(0).tolist()]
        assert len(own) == 3 ** (z + 1)
        assert len(set(zip(own, e.class_of.tolist(), strict=True))) == len(set(own)) == e.n_classes


# ------------------------------------------------------------------ other symmetries and lattices


# Colourings of the neighbours by k species up to symmetry (OEIS A000029, A000031; cube faces A047780, A198833), times k centres.
@pytest.mark.parametrize(
    ("lattice", "k", "symmetry", "colourings"),
    [
        (Lattice.triangular(), 2, "full", 13),
        (Lattice.triangular(), 3, "full", 92),
        (Lattice.triangular(), 2, "rotations", 14),
        (Lattice.triangular(), 3, "rotations", 130),
        (Lattice.triangular(), 2, "none", 64),
        (Lattice.square(), 2, "full", 6),
        (Lattice.square(), 3, "full", 21),
        (Lattice.square(), 3, "rotations", 24),
        (Lattice.honeycomb(), 2, "full", 4),
        (Lattice.honeycomb(), 3, "full", 10),
        (Lattice.honeycomb(), 3, "none", 2 * 27),
        (HONEYCOMB, 2, "full", 2 * 4),
        (HONEYCOMB, 3, "rotations", 2 * 11),
        (Lattice.cubic(), 2, "full", 10),
        (Lattice.cubic(), 3, "full", 56),
        (Lattice.cubic(), 3, "rotations", 57),
        (Lattice.cubic(film=True), 2, "full", 6 * 4),
    ],
)
def test_number_of_classes(lattice, k, symmetry, colourings):
    e = Environments(lattice, "ABC"[:k], symmetry=symmetry)
    assert e.n_classes == k * colourings
    assert e.multiplicity.sum() == e.offsets[-1] == sum(k ** len(t) for t in e.templates)


def test_subgroups():
    """Pairs of opposite neighbours under inversion leave (2^6 + 2^3) / 2 rings; a generator is as good as its group."""
    lattice = Lattice.triangular()
    inversion = [o for o in lattice.operations if np.array_equal(o.matrix, -np.eye(2))]
    assert Environments(lattice, "AB", symmetry=inversion).n_classes == 2 * 36
    sixfold = [o for o in lattice.operations if round(np.linalg.det(o.matrix)) == 1 and np.trace(o.matrix) == 1][:1]
    generated, group = (Environments(lattice, "AB", symmetry=s) for s in (sixfold, "rotations"))
    np.testing.assert_array_equal(generated.class_of, group.class_of)


def test_sublattices_share_classes_only_where_they_are_equal():
    merged, apart = Environments(Lattice.honeycomb(), "AB"), Environments(HONEYCOMB, "AB")
    np.testing.assert_array_equal(merged.class_of[:16], merged.class_of[16:])  # any three neighbours may be exchanged
    assert not set(apart.class_of[:16]) & set(apart.class_of[16:])
    np.testing.assert_array_equal(merged.multiplicity, 2 * apart.multiplicity[:8])


@pytest.mark.parametrize(
    ("lattice", "k", "shells", "symmetry"),
    [
        (Lattice.triangular(), 2, 1, "full"),
        (Lattice.triangular(), 3, 1, "full"),
        (Lattice.triangular(), 2, 2, "full"),
        (Lattice.triangular(), 2, 1, "none"),
        (Lattice.square(), 3, 2, "full"),
        (Lattice.honeycomb(), 2, 2, "full"),
        (HONEYCOMB, 3, 1, "full"),
        (Lattice.cubic(), 3, 1, "full"),
        (Lattice.cubic(film=True), 3, 1, "rotations"),
    ],
)
def test_classes_are_a_partition(lattice, k, shells, symmetry):
    """Every raw environment lies in one class, no class is empty, and symmetry never leads out of one."""
    e = Environments(lattice, "ABC"[:k], shells, symmetry)
    assert len(e.class_of) == e.offsets[-1]
    np.testing.assert_array_equal(np.unique(e.class_of), np.arange(e.n_classes))
    np.testing.assert_array_equal(e.class_of[e.representatives], np.arange(e.n_classes))
    assert len(e.names) == len(set(e.names)) == e.n_classes
    for operation in e._operations:
        image = e._image(operation)
        assert len(np.unique(image)) == len(image)
        np.testing.assert_array_equal(e.class_of[image], e.class_of)
    for composition in ([1 / k] * k, [1] + [0] * (k - 1), np.arange(1, k + 1) / np.arange(1, k + 1).sum()):
        assert abs(e.random_distribution(composition).sum() - 1) < 1e-12
    rows = e.descriptors  # of species per class: the same for every member
    basis = np.searchsorted(e.offsets, np.arange(e.offsets[-1]), side="right") - 1
    for b in range(len(lattice.basis)):
        counts = (e.digits(b)[:, 1:, None] == np.arange(1, k)).sum(axis=1)
        np.testing.assert_array_equal(counts, rows[e.class_of[basis == b], 1:k])


# ------------------------------------------------------------------ the random alloy


def test_random_distribution_is_the_closed_form():
    e = published()
    n = np.array([centre + ring[0] for centre, *ring in PUBLISHED])
    for x in (0.0, 10 / 464, 0.3, 0.5, 278 / 466, 1.0):
        np.testing.assert_allclose(e.random_distribution([1 - x, x]), MULTIPLICITY * x**n * (1 - x) ** (7 - n), rtol=1e-12)


def test_random_distribution_is_that_of_all_colourings():
    """By enumeration in plain Python, with its own idea of what is the same."""
    for lattice, z, x in ((Lattice.triangular(), 6, (0.2, 0.5, 0.3)), (Lattice.honeycomb(), 3, (0.6, 0.1, 0.3))):
        e = Environments(lattice, "ABC")
        mass: dict[tuple, float] = {}
        for centre, *ring in itertools.product(range(3), repeat=z + 1):
            group = (centre, ring_class(tuple(ring)))
            mass[group] = mass.get(group, 0.0) + x[centre] * float(np.prod([x[s] for s in ring]))
        ours = {}
        for c, raw in enumerate(e.representatives):
            centre, *ring = e.digits(0)[raw].tolist()
            ours[centre, ring_class(tuple(ring))] = e.random_distribution(x)[c]
        assert ours.keys() == mass.keys()
        np.testing.assert_allclose([ours[g] for g in mass], list(mass.values()), rtol=1e-12)


def test_average_over_classes():
    """The number of B neighbours is the same all over a class; the species of one neighbour is not, and its mean is the fraction of B."""
    e = published()
    digits = e.digits(0)
    ring, same = e.average(digits[:, 1:].sum(axis=1).astype(float))
    assert same
    np.testing.assert_array_equal(ring, e.descriptors[:, 1])
    east, same = e.average(digits[:, 1].astype(float))
    assert not same
    np.testing.assert_allclose(east, e.descriptors[:, 1] / 6, atol=1e-12)


# ------------------------------------------------------------------ whole crystals

CRYSTALS = {
    "triangular": (Lattice.triangular(), 2, (5, 5), 1),
    "triangular, two shells": (Lattice.triangular(), 2, (6, 6), 2),
    "square, three species": (Lattice.square(), 3, (4, 4), 1),
    "honeycomb": (Lattice.honeycomb(), 2, (4, 4), 1),
    "boron nitride": (HONEYCOMB, 2, (4, 4), 1),
    "cubic": (Lattice.cubic(), 2, (3, 3, 3), 1),
    "film": (Lattice.cubic(film=True), 2, (4, 4, 4), 1),
}


def counts_of(e: Environments, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    grid = labels.reshape(*shape, len(e.lattice.basis)).astype(np.int8)
    return Observation.from_configuration(Configuration(e.lattice, e.species, grid, e.lattice.periodic), environments=e).counts


@pytest.mark.parametrize("name", CRYSTALS)
@settings(max_examples=25)
@given(draw=st.data())
def test_symmetry_leaves_the_histogram_unchanged(name, draw):
    """Every operation of the lattice, every translation and every enlargement, on a random periodic crystal."""
    lattice, k, shape, shells = CRYSTALS[name]
    e = Environments(lattice, "ABC"[:k], shells)
    cell = lattice.supercell(shape)
    labels = draw.draw(arrays(np.int8, cell.n_sites, elements=st.integers(0, k - 1)))
    counts = counts_of(e, labels, shape)
    open_layers = 0 if all(lattice.periodic) else 2  # a film's first and last layer have no complete environment
    assert counts.sum() == cell.n_sites * (shape[-1] - open_layers) // shape[-1]
    for operation in lattice.operations:
        moved = np.empty_like(labels)
        moved[cell.index(operation(cell.sites))] = labels
        np.testing.assert_array_equal(counts_of(e, moved, shape), counts)
    steps = [draw.draw(st.integers(0, n - 1)) if p else 0 for n, p in zip(shape, lattice.periodic, strict=True)]
    grid = labels.reshape(*shape, -1)
    np.testing.assert_array_equal(counts_of(e, np.roll(grid, steps, range(len(shape))), shape), counts)
    twice = np.concatenate([grid, grid])
    np.testing.assert_array_equal(counts_of(e, twice, twice.shape[:-1]), 2 * counts)


def test_a_crystal_without_symmetry_is_seen_to_change():
    """Negative control: raw environments do change when the crystal is turned."""
    e = Environments(Lattice.triangular(), "AB", symmetry="none")
    cell = e.lattice.supercell((5, 5))
    labels = (np.arange(25) % 7 < 2).astype(np.int8)
    turned = [labels[np.argsort(cell.index(o(cell.sites)))] for o in e.lattice.operations]
    assert e.n_classes == 128
    assert any(not np.array_equal(counts_of(e, t, (5, 5)), counts_of(e, labels, (5, 5))) for t in turned)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: Environments(Lattice.triangular(), ("Mo",)), "two different names"),
        (lambda: Environments(Lattice.triangular(), ("Mo", "Mo")), "two different names"),
        (lambda: Environments(Lattice.cubic(), "AB", 3), "use fewer shells"),
        (lambda: Environments(Lattice.square(), "AB", symmetry="C4"), "'full', 'rotations', 'none'"),
        (lambda: published().random_distribution([0.5, 0.4]), "sum to 1"),
        (lambda: published().random_distribution([1.5, -0.5]), "sum to 1"),
        (lambda: published().random_distribution([0.2, 0.3, 0.5]), "2 fractions"),
    ],
)
def test_refusals(refused, words):
    with pytest.raises(InputError, match=words):
        refused()


def test_two_classifications_are_equal_by_what_they_count():
    assert published().key == Environments(Lattice.triangular(0.316), ("W", "V")).key
    others = [published(), Environments(Lattice.triangular(0.3), "AB"), Environments(Lattice.triangular(0.316), "AB", 2),
              Environments(Lattice.triangular(0.316), "ABC"), Environments(Lattice.triangular(0.316), "AB", symmetry="none")]  # fmt: skip
    assert len({e.key for e in others}) == len(others)
