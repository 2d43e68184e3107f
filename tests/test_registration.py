"""Registration: the lattice of a picture is found whatever its scale, distortion and second sublattice, and refused where there is none."""

import numpy as np
import pytest
from conftest import generator
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from bayesatoms.configuration import Configuration
from bayesatoms.errors import InputError
from bayesatoms.imaging.filters import blurred
from bayesatoms.imaging.registration import register
from bayesatoms.imaging.render import render
from bayesatoms.imaging.vectors import lattice_vectors
from bayesatoms.lattice import Lattice

METAL, SQUARE, HONEYCOMB = Lattice.triangular(0.316), Lattice.square(0.39), Lattice.honeycomb(0.142)
CHALCOGEN = (1 / 3, 2 / 3, 0.4)
LEVELS = {"A": 0.5, "B": 1.0}


def picture(name, lattice=METAL, n=26, chains=0.0, levels=LEVELS, **options):
    """A rendered alloy; `chains` displaces every other row of cells by +- so many spacings, as 1T' does."""
    rng = generator(f"registration {name}")
    alloy = Configuration.random(lattice, ("A", "B"), (n, n), (0.5, 0.5), rng, periodic=False)
    if chains:
        row = alloy.supercell.sites[:, 0] % 2 * 2 - 1
        along = lattice.cell[0] / np.linalg.norm(lattice.cell[0])
        options["displacements"] = chains * lattice.shell_distances(1)[0] * row[:, None] * along
    return render(alloy, intensity=levels, rng=rng, **({"noise": 0.05, "rotation": 11.0, "shape": (400, 400)} | options))


CASES = {
    "plain": {},
    "second sublattice": {"beside": [CHALCOGEN]},
    "nearly equal sublattices": {"beside": [(1 / 3, 2 / 3, 0.6)]},
    "chains of 1T'": {"chains": 0.08, "beside": [(1 / 3, 2 / 3, 0.3)]},
    "strong chains of 1T'": {"chains": 0.12, "beside": [(1 / 3, 2 / 3, 0.3)]},
    "low contrast": {"levels": {"A": 0.3, "B": 1.0}, "noise": 0.1},
    "more noise than signal": {"noise": 1.0},
    "13 % shear": {"shear": 0.13},
    "slow distortion": {"distortion": (6.0, 260.0)},
    "drift": {"drift": (0.08, 0.04)},
    "ramp": {"ramp": (3.0, 1.0)},
    "patches": {"patches": 4},
    "fine": {"spacing": 7.0, "n": 50, "shape": (250, 250)},
    "coarse": {"spacing": 55.0, "n": 18, "shape": (700, 700)},
    "jitter": {"jitter": 0.8},
    "square": {"lattice": SQUARE},
    "square, low contrast": {"lattice": SQUARE, "levels": {"A": 0.3, "B": 1.0}, "noise": 0.2},
    "perovskite": {"lattice": SQUARE, "levels": {"A": 0.9, "B": 1.0}, "beside": [(0.5, 0.5, 0.5)], "known": 20.0},
    "honeycomb": {"lattice": HONEYCOMB},
    "pure honeycomb": {"lattice": HONEYCOMB, "levels": {"A": 1.0, "B": 1.0}},
}


def found_of(shown, registration, spacing, margin=0.25):
    """Share of the columns at least `margin` spacings inside that were found."""
    inside = ((shown.positions > margin * spacing) & (shown.positions < np.array(shown.image.shape[::-1]) - 1 - margin * spacing)).all(
        axis=1
    )
    near = cKDTree(registration.positions).query(shown.positions[inside])[0] < 0.35 * spacing
    return near.mean()


@pytest.mark.parametrize("case", CASES)
def test_every_column_is_found_and_indexed(case):
    options = dict(CASES[case])
    known = options.pop("known", None)
    lattice, spacing = options.get("lattice", METAL), options.get("spacing", 20.0)
    shown = picture(case, **options)
    found = register(shown.image.data, lattice, spacing=known)
    assert found_of(shown, found, spacing) >= 0.998
    # true and found indices differ by one symmetry operation of the lattice: neighbours are the same pairs
    row = cKDTree(shown.positions).query(found.positions)[1]
    true = {tuple(s): i for i, s in enumerate(shown.sites.tolist())}
    near = found.neighbours()
    checked = right = 0
    for i, around in enumerate(near):
        n1, n2, b = shown.sites[row[i]].tolist()
        expected = {true.get((n1 + m1, n2 + m2, c)) for m1, m2, c in lattice.shell(1, b).tolist()}
        if None in expected or (around < 0).any():
            continue
        checked += 1
        right += {int(row[j]) for j in around} == expected
    assert checked > 100 and right == checked


@pytest.mark.parametrize("kind", [0, 1])
def test_sublattices_are_told_apart_by_geometry(kind):
    """The dim sublattice can be asked for; its bright atoms stay with it, and dim atoms of the bright one do not join it."""
    rng = generator("sublattices")
    alloy = Configuration.random(HONEYCOMB, ("A", "B"), (40, 40), (0.5, 0.5), rng, periodic=False)
    labels = alloy.labels.copy()
    labels[..., 0], labels[..., 1] = np.where(labels[..., 0], 3, 2), np.where(labels[..., 1], 1, 0)
    both = Configuration(HONEYCOMB, ("a", "b", "A", "B"), labels, alloy.periodic)
    # the brightest of the dim sublattice outshine the dimmest of the bright one
    shown = render(both, intensity={"a": 0.3, "b": 0.6, "A": 0.5, "B": 1.0}, spacing=13.0, noise=0.04, shape=(380, 380), rng=rng)
    found = register(shown.image.data, Lattice.triangular(0.246), sublattice=kind)
    row = cKDTree(shown.positions).query(found.positions)[1]
    assert (shown.sites[row, 2] == kind).all()
    inside = ((shown.positions > 4) & (shown.positions < 376)).all(axis=1) & (shown.sites[:, 2] == kind)
    assert len(found.sites) >= inside.sum()


def test_empty_sites_are_predicted():
    """A vacancy has no maximum, and a dim column in the flank of a bright one may have none."""
    shown = picture("vacancies", levels={"A": 0.0, "B": 1.0})
    found = register(shown.image.data, METAL)
    assert found_of(shown, found, 20.0) >= 0.99
    assert 0.3 < (~found.seen).mean() < 0.7


@pytest.mark.parametrize("seed", range(6))
def test_noise_has_no_lattice(seed):
    rng = generator(f"noise {seed}")
    field = gaussian_filter(rng.normal(size=(300, 300)), (0.0, 2.0, 4.0)[seed % 3])
    for lattice in (METAL, SQUARE, HONEYCOMB):
        with pytest.raises(InputError, match="lattice"):
            register(field, lattice)


def test_random_spots_have_no_lattice():
    rng = generator("spots")
    y, x = np.mgrid[:300, :300]
    spots = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 18) for a, b in rng.uniform(0, 300, (250, 2)))
    with pytest.raises(InputError, match="lattice"):
        register(spots, METAL)


def test_another_lattice_is_refused():
    with pytest.raises(InputError, match="lattice"):
        register(picture("square", lattice=SQUARE).image.data, METAL)
    with pytest.raises(InputError, match="lattice"):
        register(picture("plain").image.data, HONEYCOMB)


def test_a_known_spacing_decides():
    """Corners and centres of a square cell: two sublattices or one ordered alloy, on the finer lattice; the header's scale tells."""
    options = {k: v for k, v in CASES["perovskite"].items() if k != "known"}
    image = picture("perovskite", **options).image.data
    areas = [abs(np.linalg.det(next(lattice_vectors(image, SQUARE, spacing=s)))) for s in (None, 14.2, 20.0, 40.0)]
    assert areas == pytest.approx([200, 200, 400, 1600], rel=0.05)


def test_kinds_that_are_not_there_are_refused():
    with pytest.raises(InputError, match="sublattice 3"):
        register(picture("plain").image.data, METAL, sublattice=3)
    with pytest.raises(InputError, match="5 %"):
        data = picture("plain").image.data.copy()
        data[15:] = np.nan
        register(data, METAL)


def test_filters_leave_out_what_was_not_recorded():
    rng = generator("filters")
    field = 5.0 + 0.1 * rng.normal(size=(120, 120))
    holed = field.copy()
    holed[40:60, 40:60] = np.nan
    for width in (2.0, 12.0):
        assert np.abs(blurred(holed, width) - 5.0)[np.isfinite(holed)].max() < 0.2
    wide = gaussian_filter(field, 12.0)
    assert np.abs(blurred(field, 12.0) - wide)[20:100, 20:100].max() < 0.02
