"""Lattices against textbook shells, spglib's symmetry and plain counting of supercells."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import generator

from bayesatoms.errors import InputError
from bayesatoms.lattice import Lattice

# Sites at the first distances in units of the nearest one: the theta series of each lattice.
SHELLS = {
    "triangular": (Lattice.triangular, [(1, 6), (3, 6), (4, 6), (7, 12), (9, 6)]),
    "square": (Lattice.square, [(1, 4), (2, 4), (4, 4), (5, 8), (8, 4)]),
    "honeycomb": (Lattice.honeycomb, [(1, 3), (3, 6), (4, 3), (7, 6), (9, 6)]),
    "cubic": (Lattice.cubic, [(1, 6), (2, 12), (3, 8), (4, 6), (5, 24), (6, 24)]),
}
FCC = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
HCP = np.array([[1.0, 0.0, 0.0], [-0.5, np.sqrt(0.75), 0.0], [0.0, 0.0, 1.6]])
CRYSTALS = {
    "triangular": Lattice.triangular(),
    "square": Lattice.square(),
    "honeycomb": Lattice.honeycomb(),
    "boron nitride": Lattice.honeycomb(sublattices=("B", "N")),
    "rectangular": Lattice([[1.0, 0.0], [0.0, 1.3]]),
    "oblique": Lattice([[1.0, 0.0], [0.2, 1.3]]),
    "rhombic": Lattice([[1.0, 0.4], [1.0, -0.4]]),
    "kagome": Lattice(Lattice.triangular().cell, [[0.5, 0], [0, 0.5], [0.5, 0.5]]),
    "chequer": Lattice(np.eye(2), [[0, 0], [0.5, 0.5]], sublattices=("A", "B")),
    "skew square": Lattice([[1.0, 0.0], [5.0, 1.0]]),  # its rows are not the shortest vectors
    "skew bcc": Lattice([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.5]]),
    "herringbone": Lattice([[1.0, 0.0], [0.0, 1.5]], [[0.1, 0.1], [0.9, 0.9], [0.6, 0.9], [0.4, 0.1]]),
    "cubic": Lattice.cubic(),
    "fcc": Lattice(FCC),
    "bcc": Lattice(np.ones((3, 3)) / 2 - np.eye(3)),
    "diamond": Lattice(FCC, [[0, 0, 0], [0.25, 0.25, 0.25]]),
    "zinc blende": Lattice(FCC, [[0, 0, 0], [0.25, 0.25, 0.25]], sublattices=("Zn", "S")),
    "hcp": Lattice(HCP, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    "rock salt": Lattice(FCC, [[0, 0, 0], [0.5, 0.5, 0.5]], sublattices=("Na", "Cl")),
}


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize("a", [1.0, 0.316, 0.4547855])  # the last once split equal distances at a rounding digit
def test_shells(name, a):
    maker, expected = SHELLS[name]
    lattice = maker(a)
    squared = [d2 for d2, _ in expected]
    np.testing.assert_allclose(lattice.shell_distances(len(expected)), a * np.sqrt(squared), rtol=1e-12)
    for b in range(len(lattice.basis)):
        home = lattice.positions((*[0] * lattice.dimension, b))
        seen = set()
        for k, (d2, count) in enumerate(expected, 1):
            shell = lattice.shell(k, b)
            assert len(shell) == count
            np.testing.assert_allclose(np.linalg.norm(lattice.positions(shell) - home, axis=1), a * np.sqrt(d2), rtol=1e-12)
            seen |= {tuple(s) for s in shell}
        assert len(seen) == sum(count for _, count in expected), "a site lies in two shells"


def test_shells_do_not_depend_on_the_choice_of_cell():
    """Once, neighbours more than six cells along a skew row were lost without a word."""
    for skew, plain in [([[1, 0], [5, 1]], np.eye(2)), ([[1, 0, 0], [4, 1, 0], [0, -3, 1]], np.eye(3))]:
        for k in range(1, 9):
            one, two = Lattice(skew), Lattice(plain)
            places = [lattice.positions(lattice.shell(k, 0)) for lattice in (one, two)]
            np.testing.assert_allclose(*(p[np.lexsort(p.round(6).T)] for p in places), atol=1e-9)
    tall = Lattice(np.diag([1, 1, 7.5]))
    squares = {i * i + j * j for i in range(9) for j in range(9)} - {0} | {7.5**2}
    np.testing.assert_allclose(tall.shell_distances(27) ** 2, sorted(squares)[:27])


def test_shell_order_does_not_depend_on_the_unit():
    for maker, _ in SHELLS.values():
        for k in (1, 2, 3):
            order = maker(1.0).shell(k, 0)
            for a in (0.316, 0.4547855, 250.0):
                np.testing.assert_array_equal(maker(a).shell(k, 0), order)


def test_planar_shells_run_counter_clockwise():
    for lattice in (Lattice.triangular(), Lattice.square(), Lattice.honeycomb()):
        vectors = lattice.positions(lattice.shell(1, 0)) - lattice.positions((0, 0, 0))
        angle = np.arctan2(vectors[:, 1], vectors[:, 0]) % (2 * np.pi)
        np.testing.assert_allclose(np.diff(angle), 2 * np.pi / len(angle), atol=1e-9)


@pytest.mark.parametrize("name", SHELLS)
def test_bonds_are_all_of_them_once(name):
    maker, expected = SHELLS[name]
    lattice = maker(0.3)
    for k, (_, count) in enumerate(expected[:3], 1):
        bonds = lattice.bonds(k)
        assert len(bonds) == count * len(lattice.basis) // 2
        both = [(tuple(one), tuple(two)) for one, two in np.concatenate([bonds, bonds[:, ::-1]])]
        home = {((*np.subtract(i[:-1], i[:-1]), i[-1]), (*np.subtract(j[:-1], i[:-1]), j[-1])) for i, j in both}
        assert len(home) == 2 * len(bonds), "a bond and its reverse must count once"
        along = [lattice.bonds(k, d) for d in range(len(lattice.directions(k)))]
        assert sorted(map(str, np.concatenate(along).tolist())) == sorted(map(str, bonds.tolist())), "directions must split the bonds"


def test_directions():
    tau = np.pi / 3
    three = [[np.cos(i * tau), np.sin(i * tau)] for i in range(3)]
    np.testing.assert_allclose(Lattice.triangular(0.316).directions(1), three, atol=1e-12)
    np.testing.assert_allclose(Lattice.square(2).directions(1), np.eye(2), atol=1e-12)
    assert [len(Lattice.honeycomb().directions(k)) for k in (1, 2)] == [3, 3]
    assert [len(Lattice.cubic().directions(k)) for k in (1, 2, 3)] == [3, 6, 4]


def test_triangles_have_three_equal_sides_and_point_apart():
    lattice = Lattice.triangular(0.316)
    heights = {}
    for orientation in ("up", "down"):
        corners = lattice.positions(lattice.triangle(orientation))
        sides = [np.linalg.norm(corners[i] - corners[j]) for i, j in itertools.combinations(range(3), 2)]
        np.testing.assert_allclose(sides, 0.316)
        heights[orientation] = np.sort(corners[:, 1]).round(9)
    assert heights["up"][0] == heights["up"][1] < heights["up"][2]  # two corners below, one on top
    assert heights["down"][0] < heights["down"][1] == heights["down"][2]


# ------------------------------------------------------------------ symmetry


@pytest.mark.parametrize(
    ("lattice", "count"),
    [
        (Lattice.triangular(), 12),
        (Lattice.square(), 8),
        (Lattice.honeycomb(), 12),
        (Lattice.honeycomb(sublattices=("A", "B")), 6),
        (Lattice.cubic(), 48),
        (Lattice.cubic(film=True), 8),
    ],
)
def test_number_of_operations(lattice, count):
    assert len(lattice.operations) == count


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")  # spglib's, on every call
@pytest.mark.parametrize("name", CRYSTALS)
def test_operations_are_those_of_spglib(name):
    """The same matrices and, up to lattice vectors, the same translations."""
    spglib = pytest.importorskip("spglib", reason="extra 'crystal' is not installed")
    lattice = CRYSTALS[name]
    d = lattice.dimension
    cell = np.eye(3) * 7.77  # a plane becomes a stack of far layers, whose one further operation is the mirror
    cell[:d, :d] = lattice.cell
    places = np.zeros((len(lattice.basis), 3))
    places[:, :d] = lattice.basis
    numbers = [sorted(set(lattice.sublattices)).index(s) + 1 for s in lattice.sublattices]
    found = spglib.get_symmetry((cell, places, numbers), symprec=1e-5)
    expected = set()
    for rotation, translation in zip(found["rotations"], found["translations"], strict=True):
        if d == 3 or rotation[2, 2] == 1:
            shift = np.round((translation[:d] % 1) * 1000).astype(int) % 1000
            expected.add((tuple(rotation[:d, :d].T.ravel().tolist()), tuple(shift.tolist())))
    ours = set()
    for o in lattice.operations:
        place = lattice.basis[o.image[0]] + o.shift[0] - lattice.basis[0] @ o.matrix
        shift = np.round((place % 1) * 1000).astype(int) % 1000
        ours.add((tuple(o.matrix.ravel().tolist()), tuple(shift.tolist())))
    assert ours == expected
    assert len(lattice.operations) == len(ours), "an operation is listed twice"


@pytest.mark.parametrize("name", CRYSTALS)
def test_operations_keep_distances(name):
    lattice = CRYSTALS[name]
    rng = generator(f"operations of {name}")
    sites = np.column_stack([rng.integers(-3, 4, (8, lattice.dimension)), rng.integers(0, len(lattice.basis), 8)])
    apart = np.linalg.norm(lattice.positions(sites)[:, None] - lattice.positions(sites)[None], axis=-1)
    for operation in lattice.operations:
        places = lattice.positions(operation(sites))
        np.testing.assert_allclose(np.linalg.norm(places[:, None] - places[None], axis=-1), apart, atol=1e-9)
        assert [lattice.sublattices[b] for b in operation(sites)[:, -1]] == [lattice.sublattices[b] for b in sites[:, -1]]


def test_a_film_keeps_its_normal():
    for operation in Lattice.cubic(film=True).operations:
        np.testing.assert_array_equal(operation([[0, 0, 2, 0]]), [[0, 0, 2, 0]])


# ------------------------------------------------------------------ supercells


@pytest.mark.parametrize("lattice", [Lattice.triangular(), Lattice.honeycomb(), Lattice.cubic(film=True)], ids=lambda lattice: lattice.name)
def test_supercell_numbers_its_sites(lattice):
    block = lattice.supercell((4, 3, 5)[: lattice.dimension])
    assert block.n_sites == block.n_cells * len(lattice.basis) == len(block.sites)
    np.testing.assert_array_equal(block.index(block.sites), np.arange(block.n_sites))
    turns = np.where(lattice.periodic, block.shape, 0)
    for sign in (-2, 1):  # whole turns along a periodic axis come back to the same site
        moved = block.sites.copy()
        moved[:, :-1] += sign * turns
        np.testing.assert_array_equal(block.index(moved), np.arange(block.n_sites))


def test_open_axes_end():
    film = Lattice.cubic(film=True).supercell((3, 3, 2))
    assert film.index([[0, 0, -1, 0], [0, 0, 2, 0], [-1, 3, 1, 0]]).tolist() == [-1, -1, film.index([2, 0, 1, 0])]
    open_block = Lattice.square().supercell((3, 4), periodic=(False, True))
    assert open_block.index([[3, 0, 0], [-1, 0, 0], [2, -1, 0]]).tolist() == [-1, -1, 11]


def test_gather_is_index_of_every_translation():
    lattice = Lattice.honeycomb()
    block = lattice.supercell((3, 4), periodic=(True, False))
    template = np.vstack([[(0, 0, 1)], lattice.shell(1, 1), lattice.shell(2, 1)])
    rows = block.gather(template)
    assert rows.shape == (12, len(template))
    for cell, row in zip(itertools.product(range(3), range(4)), rows, strict=True):
        for (i, j, b), number in zip(template, row, strict=True):
            x, y = (cell[0] + i) % 3, cell[1] + j
            assert number == ((x * 4 + y) * 2 + b if 0 <= y < 4 else -1)


# ------------------------------------------------------------------ identity and refusals


def test_equal_lattices_are_equal():
    assert Lattice.triangular(0.316) == Lattice(Lattice.triangular(0.316).cell, name="mine")
    assert hash(Lattice.square()) == hash(Lattice(np.eye(2)))
    different = [Lattice.square(), Lattice.square(2), Lattice.triangular(), Lattice.cubic(), Lattice.cubic(film=True),
                 Lattice.honeycomb(), Lattice.honeycomb(sublattices=("A", "B"))]  # fmt: skip
    assert len(set(different)) == len(different)
    assert Lattice.square() != "square"
    assert Lattice.named("honeycomb", 0.25) == Lattice.honeycomb(0.25)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: Lattice([[1, 0], [2, 0]]), "no basis"),
        (lambda: Lattice([[1, 0, 0]]), "no basis"),
        (lambda: Lattice.square().shell(40, 0), "too far"),
        (lambda: Lattice.cubic().shell(20, 0), "too far"),
        (lambda: Lattice(np.eye(2), [[0, 0, 0]]), "coordinates"),
        (lambda: Lattice(np.eye(2), [[0, 0], [1, 1]]), "coincide"),
        (lambda: Lattice(np.eye(2), [[0, 0], [0.5, 0.5]], sublattices=("A",)), "sublattice names"),
        (lambda: Lattice(np.eye(2), periodic=(True,)), "axes"),
        (lambda: Lattice.triangular(0.0), "above 0"),
        (lambda: Lattice.square(float("nan")), "above 0"),
        (lambda: Lattice.named("kagome", 1.0), "triangular"),
        (lambda: Lattice.square().triangle(), "triangular lattice"),
        (lambda: Lattice.triangular().triangle("left"), "'up' or 'down'"),
        (lambda: Lattice.square().shell(0, 0), "count from 1"),
        (lambda: Lattice.square().bonds(1, 2), "0 to 1"),
        (lambda: Lattice.square().bonds(1, -1), "0 to 1"),
        (lambda: Lattice.square().supercell((3,)), "does not fit"),
        (lambda: Lattice.square().supercell((3, 0)), "does not fit"),
    ],
)
def test_refusals(refused, words):
    with pytest.raises(InputError, match=words):
        refused()
