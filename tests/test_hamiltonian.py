"""Hamiltonians against counting by eye (positions and distances alone), and the energy change against the difference of totals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import SYSTEMS, generator

from bayesatoms.configuration import Configuration
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Field, Hamiltonian, Orbit, Pair, Term
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo import generic

# ------------------------------------------------------------------ an oracle that knows nothing but positions


class Places:
    """All sites of a supercell and of its periodic images, as points with labels."""

    def __init__(self, system, labels):
        cell = system.supercell
        self.home = cell.n_sites
        turns = [(0, -1, 1) if p else (0,) for p in cell.lattice.periodic]
        shifts = [np.multiply(t, cell.shape) @ cell.lattice.cell for t in itertools.product(*turns)]
        self.points = np.concatenate([cell.lattice.positions(cell.sites) + s for s in shifts])
        self.number = np.tile(np.arange(self.home), len(shifts))
        self.labels = labels[self.number]
        self.apart = np.linalg.norm(self.points[:, None] - self.points[None], axis=-1)

    def count(self, decoration, cluster, accept=lambda points, number: True):
        """Clusters congruent to `cluster` (points) that carry the decoration, however they lie, as far as `accept` agrees."""
        cluster = np.asarray(cluster, dtype=float)
        wanted = np.linalg.norm(cluster[:, None] - cluster[None], axis=-1)
        found = [(i,) for i in range(self.home) if self.labels[i] == decoration[0]]
        for m in range(1, len(cluster)):
            fits = self.labels == decoration[m]
            longer = []
            for chosen in found:
                near = np.abs(self.apart[list(chosen)] - wanted[:m, m, None]).max(axis=0) < 1e-6
                longer += [(*chosen, int(j)) for j in np.flatnonzero(fits & near)]
            found = longer
        found = [c for c in found if accept(self.points[list(c)], self.number[list(c)])]
        # a cluster was met once for every way in which it lies on itself with the same decoration
        itself = [
            p
            for p in itertools.permutations(range(len(cluster)))
            if np.allclose(wanted[np.ix_(p, p)], wanted) and all(decoration[i] == decoration[j] for i, j in enumerate(p))
        ]
        assert len(found) % len(itself) == 0
        return len(found) // len(itself)


def parallel_to(cluster):
    """Accepts only translations of a cluster, whichever of its sites is which."""

    def centred(points):
        return points - points.mean(axis=0)

    reference = centred(np.asarray(cluster, dtype=float))

    def accept(points, number):
        apart = np.linalg.norm(centred(points)[:, None] - reference[None], axis=-1)
        return bool((apart.min(axis=0) < 1e-6).all())

    return accept


def along(*direction):
    """Accepts only bonds parallel to a direction."""
    unit = np.array(direction) / np.linalg.norm(direction)
    return lambda points, number: abs(abs((points[1] - points[0]) @ unit) - np.linalg.norm(points[1] - points[0])) < 1e-6


def in_layer(height):
    return lambda points, number: bool((np.abs(points[:, 2] - height) < 1e-6).all())


ROOT3 = np.sqrt(3)


def _oracle_triangular(p):
    a = 0.316
    up = a * np.array([(0, 0), (1, 0), (0.5, ROOT3 / 2)])
    bent, scalene = a * np.array([(0, 0), (1, 0), (1.5, ROOT3 / 2)]), a * np.array([(0, 0), (1, 0), (2.5, ROOT3 / 2)])
    counts = {"h_B": (p.labels[: p.home] == 1).sum()}
    for shell, d in enumerate((1, ROOT3, 2), 1):
        counts[f"w{shell}"] = p.count((0, 1), [(0, 0), (d * a, 0)])
    for d in range(3):
        counts[f"w1_{d}"] = p.count((0, 1), [(0, 0), (a, 0)], along(np.cos(d * np.pi / 3), np.sin(d * np.pi / 3)))
    counts |= {
        "up_AAB": p.count((0, 0, 1), up, parallel_to(up)),
        "up_ABB": p.count((0, 1, 1), up, parallel_to(up)),
        "down_ABB": p.count((0, 1, 1), up, parallel_to(-up)),
        "all_ABB": p.count((0, 1, 1), up),
        "bent": p.count((0, 1, 1), bent, parallel_to(bent)),
        "all_bent": p.count((0, 1, 1), bent),
        "scalene": p.count((0, 0, 1), scalene, parallel_to(scalene)),
        "all_scalene": p.count((0, 0, 1), scalene),
    }
    return counts


def _oracle_square(p):
    corner, block = np.array([(1, 0), (0, 0), (0, 1)]), np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    counts = {"h_A": (p.labels[: p.home] == 0).sum(), "BB": p.count((1, 1), [(0, 0), (1, 0)])}
    for shell, d in enumerate((1, np.sqrt(2), 2), 1):
        counts[f"w{shell}"] = p.count((0, 1), [(0, 0), (d, 0)])
    counts |= {f"w1_{d}": p.count((0, 1), [(0, 0), (1, 0)], along(1 - d, d)) for d in range(2)}
    counts |= {
        "corner": p.count((0, 1, 1), corner, parallel_to(corner)),
        "all_corner": p.count((0, 1, 1), corner),
        "chequer": p.count((0, 1, 0, 1), block),
        "stripe": p.count((0, 0, 1, 1), block),
    }
    return counts


def _oracle_honeycomb(p):
    path = np.array([(0, 1), (0, 0), (-ROOT3 / 2, -0.5)])

    def on_metal(points, number):
        return number[1] % 2 == 0

    chalcogen = np.arange(p.home) % 2 == 1
    counts = {"h_B": (p.labels[: p.home] == 1).sum(), "chalcogen": (p.labels[: p.home][chalcogen] == 1).sum()}
    for shell, d in enumerate((1, ROOT3, 2), 1):
        counts[f"w{shell}"] = p.count((0, 1), [(0, 0), (d, 0)])
    for d in range(3):
        angle = np.pi / 6 + d * np.pi / 3
        counts[f"w1_{d}"] = p.count((0, 1), [(0, 0), (1, 0)], along(np.cos(angle), np.sin(angle)))
    return counts | {"path": p.count((0, 0, 1), path, parallel_to(path)), "all_path": p.count((0, 0, 1), path, on_metal)}


def _oracle_cubic(p):
    corner = np.array([(1, 0, 0), (0, 0, 0), (0, 0, 1)])
    lengths = {"w1": ((0, 1), 1), "w2": ((1, 2), np.sqrt(2)), "w3": ((0, 2), ROOT3)}
    counts = {"h_C": (p.labels[: p.home] == 2).sum()}
    counts |= {name: p.count(ab, [(0, 0, 0), (d, 0, 0)]) for name, (ab, d) in lengths.items()}
    return counts | {"corner": p.count((0, 1, 2), corner, parallel_to(corner)), "all_corner": p.count((0, 1, 2), corner)}


def _oracle_film(p):
    a, top = 0.39, 0.78
    flat, upright = a * np.array([(1, 0, 0), (0, 0, 0), (0, 1, 0)]), a * np.array([(1, 0, 0), (0, 0, 0), (0, 0, 1)])
    bond, height, home = [(0, 0, 0), (a, 0, 0)], p.points[: p.home, 2], p.labels[: p.home]

    def rising(points, number):  # no operation of a film turns its normal: the third species stands above the second
        return points[2, 2] > points[1, 2] + 0.1

    def rising_along_x(points, number):
        return rising(points, number) and points[0, 0] > points[1, 0] + 0.1

    return {
        "h_O": (home == 2).sum(),
        "surface": (home[np.abs(height - top) < 1e-6] == 1).sum(),
        "bottom": (home[np.abs(height) < 1e-6] == 1).sum(),
        "bulk": p.count((0, 1), bond),
        "in_surface": p.count((0, 2), bond, in_layer(top)),
        "diagonal": p.count((1, 1), [(0, 0, 0), (a, a, 0)]),
        **{f"w1_{d}": p.count((0, 1), bond, along(*np.eye(3)[d])) for d in range(3)},
        "flat": p.count((0, 1, 2), flat, parallel_to(flat)),
        "surface_flat": p.count((0, 1, 2), flat, in_layer(top)),
        "upright": p.count((0, 1, 2), upright, rising_along_x),
        "all_upright": p.count((0, 1, 2), upright, rising),
    }


ORACLES = {
    "triangular": _oracle_triangular,
    "square": _oracle_square,
    "honeycomb": _oracle_honeycomb,
    "cubic": _oracle_cubic,
    "film": _oracle_film,
}


def test_features_are_what_one_counts_by_eye(system):
    """Every term of every system, whole and with unseen sites, against plain geometry."""
    rng, names = generator(f"oracle {system.hamiltonian.name}"), system.hamiltonian.names
    total = np.zeros(len(names))
    for hidden in (0, 0, 0, system.supercell.n_sites // 5):
        labels = system.labels(rng).astype(np.int8)
        labels[rng.permutation(len(labels))[:hidden]] = -1
        expected = ORACLES[system.hamiltonian.name](Places(system, labels))
        found = dict(zip(names, system.compiled.features(labels).tolist(), strict=True))
        assert found == {name: float(count) for name, count in expected.items()}
        total += list(found.values())
    assert total.min() > 0, "a count that is always zero says nothing"


# ------------------------------------------------------------------ energy changes


def moves(system, rng, n):
    """Random flips and swaps: sites and the species numbers they get (one or two at a time)."""
    labels = system.labels(rng)
    for trial in range(n):
        i, j = rng.permutation(system.supercell.n_sites)[:2]
        flip, swap = [(i, (labels[i] + rng.integers(1, system.k)) % system.k)], [(i, labels[j]), (j, labels[i])]
        new = flip if trial % 2 else swap
        yield labels, new
        if rng.random() < 0.5:
            for site, species in new:
                labels[site] = species


def test_energy_change_is_the_difference_of_totals(system):
    """For all terms together with random couplings and for each alone; and the change back is the opposite."""
    rng, c = generator(f"change {system.hamiltonian.name}"), system.compiled
    crystal = generic.Clusters.of(c)
    arrays = (crystal.start, crystal.touch, crystal.stride)
    for w, n in [(rng.normal(size=c.n_features), 100), *((alone, 25) for alone in np.eye(c.n_features))]:
        energies, largest = c.tables @ w, 0.0
        for labels, new in moves(system, rng, n):
            codes, before = crystal.codes(c, labels), labels.copy()
            total, change = w @ c.features(labels), 0.0
            for site, species in new:
                change += generic.energy_change(site, int(species) - int(before[site]), codes, *arrays, energies)
                generic.turn(site, int(species) - int(before[site]), codes, *arrays)
                before[site] = species
            assert abs(change - (w @ c.features(before) - total)) < 1e-9
            np.testing.assert_array_equal(codes, crystal.codes(c, before))
            largest = max(largest, abs(change))
            for site, _ in new:
                change += generic.energy_change(site, int(labels[site]) - int(before[site]), codes, *arrays, energies)
                generic.turn(site, int(labels[site]) - int(before[site]), codes, *arrays)
            assert abs(change) < 1e-9
            np.testing.assert_array_equal(codes, crystal.codes(c, labels))
        assert largest > 0.1, "no move changed anything"


def test_energy_does_not_drift(system):
    """Over thousands of moves decoration numbers stay exact and the summed changes stay with the total."""
    rng, c = generator(f"drift {system.hamiltonian.name}"), system.compiled
    w = rng.normal(size=c.n_features)
    energies, labels, crystal = c.tables @ w, system.labels(rng), generic.Clusters.of(c)
    codes, energy = crystal.codes(c, labels), w @ c.features(labels)
    place = (crystal.start, crystal.touch, crystal.stride)
    for site, step in zip(rng.integers(0, c.n_sites, 5000), rng.integers(1, system.k, 5000), strict=True):
        species = (int(labels[site]) + int(step)) % system.k
        energy += generic.energy_change(site, species - int(labels[site]), codes, *place, energies)
        generic.turn(site, species - int(labels[site]), codes, *place)
        labels[site] = species
    np.testing.assert_array_equal(codes, crystal.codes(c, labels))
    assert abs(energy - w @ c.features(labels)) < 1e-9


# ------------------------------------------------------------------ symmetry


def turned(system, labels, operation):
    cell, out = system.supercell, np.empty_like(labels)
    out[cell.index(operation(cell.sites))] = labels
    return out


def test_whole_orbits_do_not_see_the_symmetry(system):
    rng, names = generator(f"symmetry {system.hamiltonian.name}"), np.array(system.hamiltonian.names)
    blind = np.isin(names, system.spread)
    differ = np.zeros(len(names), dtype=bool)
    for _ in range(5):
        labels = system.labels(rng)
        features = system.compiled.features(labels)
        for operation in system.hamiltonian.lattice.operations:
            differ |= system.compiled.features(turned(system, labels, operation)) != features
    # the terms of one direction or orientation are the negative control; the rest may not change
    assert not differ[blind].any()
    assert differ[~blind].all()


def test_translations_and_enlargements(system):
    rng, h = generator(f"translation {system.hamiltonian.name}"), system.hamiltonian
    periodic = h.lattice.periodic
    grid = system.labels(rng).astype(np.int8).reshape(*system.shape, -1)
    features = h.features(Configuration(h.lattice, h.species, grid, periodic))
    steps = [int(rng.integers(1, n)) if p else 0 for n, p in zip(system.shape, periodic, strict=True)]
    rolled = np.roll(grid, steps, tuple(range(len(steps))))
    np.testing.assert_array_equal(h.features(Configuration(h.lattice, h.species, rolled, periodic)), features)
    for axis in range(2):
        twice = np.concatenate([grid, grid], axis=axis)
        np.testing.assert_array_equal(h.features(Configuration(h.lattice, h.species, twice, periodic)), 2 * features)


# ------------------------------------------------------------------ the identity of the published models


def published(lattice):
    alloy = {"lattice": lattice, "species": ("Mo", "Re")}
    up = lattice.triangle("up")
    mixed = [("Mo", "Mo", "Re"), ("Mo", "Re", "Re")]
    return (
        Hamiltonian("P1", Pair("Mo", "Re", name="w1"), **alloy),
        Hamiltonian("M", *(Cluster(s, up, name=n) for s, n in zip(mixed, ("t1", "t2"), strict=True)), **alloy),
        Hamiltonian("both", *(Cluster(s, up, orbit="all", name=n) for s, n in zip(mixed, ("t1", "t2"), strict=True)), **alloy),
    )


def test_unlike_pairs_are_mixed_triangles():
    """N_unlike = 2 N_mixed (one orientation) = N_mixed (both), in integers, so P1 at w is M at (2w, 2w)."""
    pair, one, both = published(Lattice.triangular(0.316))
    rng = generator("identity")
    for x in (0.0, 0.02, 0.2, 0.5, 0.78, 1.0):
        for shape in ((3, 3), (4, 7), (12, 12)):
            c = Configuration.random(pair.lattice, pair.species, shape, [1 - x, x], rng)
            unlike = pair.features(c)[0]
            assert unlike == 2 * one.features(c).sum() == both.features(c).sum()
            assert unlike > 0 or c.composition.max() == 1
            for w in (-0.087, 0.4):
                assert abs(pair.energy(c, {"w1": w}) - one.energy(c, {"t1": 2 * w, "t2": 2 * w})) < 1e-9
    # negative control: (Mo, Mo, Re) alone is another number on the other orientation
    down = Hamiltonian("", Cluster(("Mo", "Mo", "Re"), pair.lattice.triangle("down")), lattice=pair.lattice, species=pair.species)
    crystals = [Configuration.random(pair.lattice, pair.species, (12, 12), [0.5, 0.5], rng) for _ in range(5)]
    assert any(one.features(c)[0] != down.features(c)[0] for c in crystals)


# ------------------------------------------------------------------ declarations


class Mismatch(Term):
    """A term of a user's own: the squared difference of sizes across every nearest-neighbour bond."""

    def __init__(self, sizes, name="mismatch"):
        self.sizes, self.name, self.prior = np.asarray(sizes), name, None

    def orbit(self, lattice, species):
        return Orbit(lattice.bonds(1), (self.sizes[:, None] - self.sizes[None]) ** 2)


def test_a_term_of_the_users_own():
    sizes, rng = np.array([1.0, 1.1, 1.35]), generator("own term")
    h = Hamiltonian("own", Mismatch(sizes), Pair("A", "C", name="AC"), lattice=Lattice.square(), species="ABC")
    labels = rng.integers(0, 3, (5, 6)).astype(np.int8)
    c = Configuration.from_labels(h.lattice, h.species, labels, periodic=True)
    s = sizes[labels]
    expected = ((s - np.roll(s, 1, 0)) ** 2).sum() + ((s - np.roll(s, 1, 1)) ** 2).sum()
    compiled = h.compile(c.supercell)
    np.testing.assert_allclose(h.features(c)[0], expected, rtol=1e-12)
    assert len(compiled.members) == 1, "terms on the same bonds are one look-up"
    crystal = generic.Clusters.of(compiled)
    energies, codes = compiled.tables @ [2.0, 0.5], crystal.codes(compiled, c.flat)
    flipped = c.flat.copy()
    flipped[7] = (flipped[7] + 1) % 3
    step = int(flipped[7]) - int(c.flat[7])
    change = generic.energy_change(7, step, codes, crystal.start, crystal.touch, crystal.stride, energies)
    assert abs(change - (compiled.features(flipped) - compiled.features(c.flat)) @ [2.0, 0.5]) < 1e-12


def test_an_abstract_term_cannot_be_made():
    with pytest.raises(TypeError, match="orbit"):
        Term()


def test_open_blocks_end_at_their_edge():
    """An open n x n chequerboard has 2 n (n - 1) unlike neighbours, a periodic one 2 n^2."""
    h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species="AB")
    board = np.indices((6, 6)).sum(axis=0) % 2
    assert [h.features(Configuration.from_labels(h.lattice, "AB", board, periodic=p))[0] for p in (False, True)] == [60, 72]


def test_without_terms_it_is_the_random_model():
    h = Hamiltonian("R", lattice=Lattice.square(), species="AB")
    c = Configuration.from_labels(h.lattice, "AB", [[0, 1], [1, 0]], periodic=True)
    assert h.names == () and h.features(c).shape == (0,) and h.energy(c, {}) == 0.0
    assert "random" in repr(h)


def test_couplings_by_name_or_in_order():
    pair, triangles, _ = published(Lattice.triangular())
    np.testing.assert_array_equal(triangles.vector({"t2": 2.0, "t1": 1.0}), [1.0, 2.0])
    np.testing.assert_array_equal(triangles.vector([1, 2]), [1.0, 2.0])
    for wrong in ({"t1": 1.0}, {"t1": 1.0, "t3": 2.0}, [1.0], [[1.0, 2.0, 3.0]]):
        with pytest.raises(InputError, match="model M"):
            triangles.vector(wrong)
    with pytest.raises(InputError, match="w1 has no prior"):
        pair.prior("w1")
    prior = object()  # carried, never looked into
    assert Hamiltonian("P", Pair("A", "B", prior=prior), lattice=Lattice.square(), species="AB").prior("w1") is prior


L = Lattice.square()
FILM = Lattice.cubic(film=True)


def build(*terms, lattice=L, species=("A", "B")):
    return Hamiltonian("H", *terms, lattice=lattice, species=species)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: build(species=("A",)), "two different"),
        (lambda: build(Pair("A", "C")), "'C' is unknown"),
        (lambda: build(Field("C")), "'C' is unknown"),
        (lambda: build(Cluster("ABC", [(0, 0, 0), (1, 0, 0), (0, 1, 0)])), "'C' is unknown"),
        (lambda: build(Pair("A", "B"), Pair("B", "A")), "two terms are called 'w1'"),
        (lambda: build(Pair("A", "B", shell=0)), "shells count from 1"),
        (lambda: build(Pair("A", "B", shell=99)), "too far"),
        (lambda: build(Pair("A", "B", direction=2)), "expected 0 to 1"),
        (lambda: build(Field("A", sublattice="metal")), "'metal' is unknown"),
        (lambda: build(Cluster("AB", [(0, 0, 0, 0), (1, 0, 0, 0)])), "site references"),
        (lambda: Cluster("AB", [(0, 0, 0)]), "one site a species"),
        (lambda: Cluster("AB", [(0, 0, 0), (0, 0, 0)]), "named twice"),
        (lambda: Cluster("AB", [(0, 0, 0), (1, 0, 0)], orbit="some"), "'one' or 'all'"),
        (lambda: build(Pair("A", "B")).compile(L.supercell((1, 4))), "too small"),
        (lambda: build(Pair("A", "B", shell=3)).compile(L.supercell((2, 4))), "too small"),
        # these once wrapped around or picked a row of a crystal that has no layers
        (lambda: build(Field("A", layer=3), lattice=FILM).compile(FILM.supercell((3, 3, 3))), "layer 3 does not exist"),
        (lambda: build(Pair("A", "B", layer=-4), lattice=FILM).compile(FILM.supercell((3, 3, 3))), "layer -4 does not exist"),
        (lambda: build(Field("A", layer=0)).compile(L.supercell((3, 3))), "film"),
    ],
)
def test_refusals(refused, words):
    with pytest.raises(InputError, match=words):
        refused()


def test_every_system_is_tried_with_every_kind_of_term():
    """The register is complete: each lattice has all that this page is about."""
    for name, maker in SYSTEMS.items():
        terms = maker().hamiltonian.terms
        assert {Field, Pair, Cluster} <= {type(t) for t in terms}, name
        assert {t.orbit_of for t in terms if isinstance(t, Cluster)} == {"one", "all"}, name
        assert name == "cubic" or any(isinstance(t, Pair) and t.direction is not None for t in terms), name
