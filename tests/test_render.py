"""Rendered pictures: the physics of columns, faults and noise, and where the truth says the atoms are."""

from __future__ import annotations

import numpy as np
import pictures
import pytest
from conftest import generator

from bayesatoms.configuration import Configuration
from bayesatoms.errors import InputError
from bayesatoms.imaging.render import render
from bayesatoms.lattice import Lattice

METAL = Lattice.triangular(0.316)
SPECIES = ("Mo", "Re", "vacancy")
PEAKS = {"Mo": 0.4, "Re": 1.0, "vacancy": 0.0}
ALL = dict.fromkeys(SPECIES, 1.0)


def alloy(lattice=METAL, shape=(8, 9), name="alloy"):
    """A random block with every species and some unseen sites."""
    labels = generator(name).choice([0, 1, 2, -1], p=[0.4, 0.4, 0.1, 0.1], size=(*shape, len(lattice.basis)))
    return Configuration.from_labels(lattice, SPECIES, labels)


def one(label=1):
    return Configuration.from_labels(Lattice.square(0.3), SPECIES, [[label]])


def full(lattice, shape, periodic=False):
    return Configuration.from_labels(lattice, SPECIES, np.ones((*shape, len(lattice.basis)), dtype=int), periodic=periodic)


def centroid(data):
    y, x = np.indices(data.shape)
    return np.array([(x * data).sum(), (y * data).sum()]) / data.sum()


def gaussians(places, peaks, sigma, shape, shifts=None):
    """The sum of Gaussians, one pixel and one column at a time in spirit."""
    y, x = np.indices(shape)
    x = x + (0 if shifts is None else shifts[:, None])
    return sum(p * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * sigma**2)) for (a, b), p in zip(places, peaks, strict=True))


# ---------------------------------------------------------------------- columns


@pytest.mark.parametrize("at", [30.0, 30.37, 30.5])
def test_a_column_holds_its_counts_and_lies_where_the_truth_says(at):
    for options in ({}, {"blur": 3.0}, {"tail": 0.3, "tail_width": 4.0}, {"tail": 1.0, "tail_width": 4.5, "blur": 1.0}):
        seen = render(one(), intensity=PEAKS, width=2.5, margin=at, **options)
        assert seen.positions == pytest.approx(np.array([[at, at]]))
        assert seen.image.data.sum() == pytest.approx(2 * np.pi * 2.5**2 * PEAKS["Re"], rel=1e-6)
        assert centroid(seen.image.data) == pytest.approx([at, at], abs=1e-5)


def test_the_peak_is_the_intensity_over_the_background():
    data = render(one(), intensity={"Re": -0.7}, width=2.5, margin=30, background=2.0).image.data
    assert data[30, 30] == data.min() == pytest.approx(1.3)
    assert data[0, 0] == pytest.approx(2.0)


@pytest.mark.parametrize(
    "lattice", [METAL, Lattice.square(0.4), Lattice.honeycomb(0.14), Lattice([[0.3, 0.0], [0.1, 0.5]], [[0, 0], [0.4, 0.5]])]
)
def test_the_picture_is_the_sum_over_the_true_positions(lattice):
    c = alloy(lattice)
    bent = {"rotation": 20.0, "shear": 0.05, "distortion": (1.5, 90.0), "drift": (0.03, -0.02)}
    seen = render(
        c, intensity=PEAKS, spacing=14, width=2.0, blur=1.0, jitter=0.5, margin=30, beside=[(0.3, 0.6, 0.2)], rng=generator("sum"), **bent
    )
    assert np.array_equal(seen.labels, c.flat[c.supercell.index(seen.sites)])
    assert len(seen.positions) == c.n_seen
    assert len(seen.beside) == len(np.unique(seen.sites[:, :2], axis=0))
    places = np.vstack([seen.positions, seen.beside])
    peaks = np.concatenate([np.array(list(PEAKS.values()))[seen.labels], np.full(len(seen.beside), 0.2)])
    expected = gaussians(places, peaks * 4 / 5, np.sqrt(5), seen.image.shape, seen.shifts)
    assert np.abs(seen.image.data - expected).max() < 1e-6


def test_a_vacancy_and_an_unseen_site_show_nothing():
    c = Configuration.from_labels(Lattice.square(0.3), SPECIES, [[1, 2], [-1, 0]])
    seen = render(c, intensity=PEAKS, spacing=20, width=2)
    assert seen.labels.tolist() == [1, 2, 0]  # the vacancy is a site, the unseen one is not
    at = {tuple(s): seen.image.data[tuple(np.round(p[::-1]).astype(int))] for s, p in zip(seen.sites.tolist(), seen.positions, strict=True)}
    assert at == {(0, 0, 0): pytest.approx(1), (0, 1, 0): pytest.approx(0, abs=1e-8), (1, 1, 0): pytest.approx(0.4)}
    assert seen.image.data[20, 40] == pytest.approx(0, abs=1e-8)


def test_columns_outside_the_picture_reach_into_it():
    c = full(Lattice.square(0.3), (9, 9))
    whole, cut = render(c, intensity=ALL, shape=(151, 171)), render(c, intensity=ALL, shape=(31, 51))
    assert cut.image.data == pytest.approx(whole.image.data[60:91, 60:111], abs=1e-12)
    inside = (np.abs(whole.positions - [85, 75]) <= [25, 15]).all(axis=1)
    assert cut.positions + 60.0 == pytest.approx(whole.positions[inside])
    assert np.array_equal(cut.sites, whole.sites[inside])


# ---------------------------------------------------------------------- geometry


def test_a_lattice_has_the_fourier_peaks_of_its_cell():
    n, sigma = 16, 1.2
    for periodic in (False, True):
        seen = render(full(Lattice.square(0.3), (n, n), periodic), intensity=ALL, spacing=n, width=sigma, shape=(n * n, n * n))
        power = np.abs(np.fft.fft2(seen.image.data))
        k = np.array([0, 1, 2, 3]) * n
        decay = np.exp(-2 * (np.pi * sigma * k / n**2) ** 2)
        assert power[np.ix_(k, k)] == pytest.approx(2 * np.pi * sigma**2 * n**2 * np.outer(decay, decay), rel=1e-6)
        power[::n, ::n] = 0
        assert power.max() < 1e-3


@pytest.mark.parametrize(
    "turn", [{"rotation": 60}, {"rotation": -120}, {"rotation": 180}, {"mirror": True}, {"mirror": True, "rotation": 60}]
)
def test_a_symmetry_of_the_lattice_gives_the_same_positions(turn):
    sites = pictures.disc(METAL, 2.2)
    c = Configuration.from_sites(METAL, SPECIES, sites, np.ones(len(sites)))
    before, after = (render(c, intensity=ALL, spacing=17, shape=(300, 310), **t) for t in ({}, turn))
    assert {tuple(p) for p in before.positions.round(6) + 0.0} == {tuple(p) for p in after.positions.round(6) + 0.0}
    assert after.image.data == pytest.approx(before.image.data, abs=1e-6)


@pytest.mark.parametrize("name", pictures.LATTICES)
def test_spacing_and_pixel_size(name):
    seen = render(full(Lattice.named(name, 0.25), (5, 5)), intensity=ALL, spacing=18, rotation=33, mirror=True)
    apart = np.linalg.norm(seen.positions[:, None] - seen.positions, axis=-1)
    assert np.sort(apart[apart > 0])[0] == pytest.approx(18)
    assert seen.image.pixel_size == pytest.approx(0.25 / 18)


def steps(seen):
    """The vectors of the picture's two cell axes, from all sites."""
    cells = np.column_stack([seen.sites[:, :2], np.ones(len(seen.sites))])
    fit, residual, *_ = np.linalg.lstsq(cells, seen.positions, rcond=None)
    assert residual.sum() < 1e-12
    return fit[:2]


def test_rotation_shear_mirror_and_drift():
    c = full(Lattice.square(0.3), (4, 5))
    assert steps(render(c, intensity=ALL)) == pytest.approx(np.diag([20, 20]))
    assert steps(render(c, intensity=ALL, rotation=90)) == pytest.approx(np.array([[0, 20], [-20, 0]]))  # from x towards y
    assert steps(render(c, intensity=ALL, mirror=True)) == pytest.approx(np.diag([-20, 20]))
    assert steps(render(c, intensity=ALL, shear=0.1)) == pytest.approx(np.array([[20, 0], [2, 20]]))
    # a row later the sample has moved by (0.1, 0.2): the next column, 20 px below, is met after 25 rows
    assert steps(render(c, intensity=ALL, drift=(0.1, 0.2))) == pytest.approx(np.array([[20, 0], [2.5, 25]]))


def test_displacements_are_nm_along_the_lattice_and_zigzag_into_chains():
    c = full(METAL, (6, 6))
    off = np.zeros((36, 2))
    off[:, 1] = np.where(c.supercell.sites[:, 1] % 2, 0.03, -0.03)
    plain, bent = (render(c, intensity=ALL, shape=(400, 400), rotation=90, displacements=d) for d in (np.zeros((36, 2)), off))
    moved = bent.positions - plain.positions
    assert moved - moved.mean(axis=0) == pytest.approx(np.column_stack([-off[:, 1], off[:, 0]]) * 20 / 0.316)


def test_distortion_is_slow_and_bounded():
    c = full(Lattice.square(0.3), (15, 15))
    plain, bent = (render(c, intensity=ALL, shape=(400, 400), distortion=d) for d in (None, (3.0, 160.0)))
    moved = bent.positions - plain.positions
    moved -= (moved.max(axis=0) + moved.min(axis=0)) / 2
    assert np.abs(moved).max(axis=0) == pytest.approx([3, 3])
    local = np.diff(bent.positions.reshape(15, 15, 2), axis=0)
    assert np.abs(local - [20, 0]).max() <= 20 * 3 * 2 * np.pi / 160


# ---------------------------------------------------------------------- background


def test_the_ramp_is_the_difference_across_the_picture():
    data = render(one(2), intensity=PEAKS, margin=30, background=1.0, ramp=(0.4, -0.2)).image.data
    assert data[:, -1] - data[:, 0] == pytest.approx(0.4)
    assert data[-1] - data[0] == pytest.approx(-0.2)
    assert data.mean() == pytest.approx(1.0)
    assert np.diff(data, 2, axis=0) == pytest.approx(0, abs=1e-12)


def test_patches_lie_where_they_are_put():
    data = render(one(2), intensity=PEAKS, margin=60, patches=[(50.3, 70.6, 6.0, 0.5)]).image.data
    assert data.sum() == pytest.approx(2 * np.pi * 36 * 0.5, rel=1e-6)
    assert centroid(data) == pytest.approx([50.3, 70.6], abs=1e-4)
    several = render(alloy(), intensity=PEAKS, patches=3, rng=generator("patches")).image.data
    extra = several - render(alloy(), intensity=PEAKS).image.data
    assert extra.min() >= 0
    assert 0.1 <= extra.max() <= 1.5


# ---------------------------------------------------------------------- noise


def test_counting_noise_has_the_variance_of_its_mean_over_the_dose():
    options = {"intensity": PEAKS, "spacing": 30, "width": 12, "background": 0.2}
    for dose in (0.7, 40.0):
        mean = render(alloy(), **options).image.data
        data = render(alloy(), **options, dose=dose, rng=generator(f"dose {dose}")).image.data
        assert data * dose == pytest.approx(np.round(data * dose))
        for part in (mean < np.median(mean), mean >= np.median(mean)):
            n, z = part.sum(), ((data - mean) / np.sqrt(mean / dose))[part]
            assert abs(z.mean()) < 5 / np.sqrt(n)
            assert abs(z.var() - 1) < 5 * np.sqrt((2 + 1 / (dose * mean[part]).min()) / n)


def test_gaussian_noise_and_its_smoothing():
    data = render(one(2), intensity=PEAKS, shape=(300, 310), noise=0.3, rng=generator("noise")).image.data
    assert data.std() == pytest.approx(0.3, rel=5 / np.sqrt(2 * data.size))
    smooth = render(one(2), intensity=PEAKS, shape=(300, 310), noise=0.3, smooth=2.0, rng=generator("noise")).image.data
    assert smooth.std() == pytest.approx(0.3 / (2 * np.sqrt(np.pi) * 2.0), rel=0.1)  # of white noise through a Gaussian
    lag = np.mean(smooth[:, 2:] * smooth[:, :-2]) / smooth.var()
    assert lag == pytest.approx(np.exp(-(2**2) / (4 * 2.0**2)), abs=0.05)


def test_jitter_shifts_every_row_as_a_whole_and_not_the_truth():
    c = full(Lattice.square(0.3), (1, 40))  # a line of columns down the picture
    options = {"intensity": ALL, "spacing": 12, "width": 4.0, "margin": 40.25}
    straight, shaken = render(c, **options), render(c, **options, jitter=0.8, rng=generator("jitter"))
    assert np.array_equal(straight.positions, shaken.positions)
    data = shaken.image.data[35:-35]
    centre = data @ np.arange(data.shape[1]) / data.sum(axis=1)
    assert centre == pytest.approx(40.25 - shaken.shifts[35:-35], abs=1e-5)
    assert data.sum(axis=1) == pytest.approx(straight.image.data[35:-35].sum(axis=1))
    assert np.sqrt(np.mean(shaken.shifts**2)) == pytest.approx(0.8, rel=5 / np.sqrt(2 * len(shaken.shifts)))
    assert abs(np.corrcoef(shaken.shifts[1:], shaken.shifts[:-1])[0, 1]) < 5 / np.sqrt(len(shaken.shifts))


def test_the_same_seed_draws_the_same_picture():
    every = {"dose": 50, "noise": 0.1, "jitter": 0.3, "patches": 2, "background": 0.5}
    a, b, c = (render(alloy(), intensity=PEAKS, **every, rng=np.random.default_rng(s)).image.data for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


# ---------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("bits", [8, 16])
def test_bits_are_grey_levels_over_the_whole_range(bits):
    plain, coarse = (render(alloy(), intensity=PEAKS, background=0.3, bits=b).image.data for b in (None, bits))
    assert np.array_equal(coarse, np.round(coarse))
    assert (coarse.min(), coarse.max()) == (0, 2**bits - 1)
    back = plain.min() + coarse * np.ptp(plain) / (2**bits - 1)
    assert np.abs(back - plain).max() <= 0.5001 * np.ptp(plain) / (2**bits - 1)


def test_clipping_cuts_the_bright_columns_only():
    plain, cut = (render(alloy(), intensity=PEAKS, clip=c).image.data for c in (None, 0.6))
    assert np.array_equal(cut, np.minimum(plain, 0.6))


RNG = np.random.default_rng(0)
WRONG = {
    "an unknown species": ({"intensity": PEAKS | {"W": 1.0}}, "intensity names W"),
    "a missing species": ({"intensity": {"Mo": 1.0}}, "no intensity for Re"),
    "an intensity": ({"intensity": PEAKS | {"Mo": np.nan}}, "intensity of Mo is nan"),
    "no spacing": ({"spacing": 0}, "spacing is 0; expected a number above 0"),
    "spacing nan": ({"spacing": np.nan}, "spacing is nan"),
    "width": ({"width": -1.0}, "width is -1.0"),
    "text": ({"width": "wide"}, "width is wide"),
    "blur": ({"blur": -1.0}, "blur is -1.0; expected 0 or more"),
    "tail": ({"tail": 1.5}, "tail is 1.5"),
    "dose": ({"dose": 0, "rng": RNG}, "dose is 0"),
    "negative counts": ({"dose": 10, "background": -1, "rng": RNG}, "the intensity falls to -1"),
    "no generator": ({"noise": 0.1}, "give rng="),
    "drift": ({"drift": (0, 0.7)}, "drift in y is 0.7"),
    "distortion": ({"distortion": (10, 50)}, "expected a wavelength above"),
    "bits": ({"bits": 12}, "bits is 12"),
    "beside": ({"beside": [(0.1, 0.2)]}, "beside is"),
    "ragged": ({"beside": [(0.1, 0.2, 1.0), (0.1,)]}, "beside is"),
    "patch": ({"patches": [(3, 4, 0, 1.0)]}, "patch "),
    "displacements": ({"displacements": np.zeros((3, 2))}, "displacements of shape"),
    "shape": ({"shape": (0, 40)}, "has no pixel"),
    "a tiny picture": ({"shape": (8, 8)}, "at least 16 x 16"),
}


@pytest.mark.parametrize("options, says", WRONG.values(), ids=WRONG)
def test_wrong_input_is_named(options, says):
    with pytest.raises(InputError, match=says):
        render(alloy(), **({"intensity": PEAKS} | options))


def test_configurations_that_cannot_be_drawn():
    with pytest.raises(InputError, match="3 dimensions"):
        render(full(Lattice.cubic(0.4), (2, 2, 2)), intensity=ALL)
    with pytest.raises(InputError, match="no site"):
        render(one(-1), intensity=ALL)
    with pytest.raises(InputError, match="empty"):
        render(one(2), intensity=PEAKS)


# ---------------------------------------------------------------------- random pictures


@pytest.mark.parametrize("name", pictures.LATTICES)
def test_random_pictures_keep_to_their_ranges(name):
    rng = generator(f"random {name}")
    for _ in range(4):
        seen, truth = pictures.random_picture(rng, name)
        assert 300 <= len(seen.positions) <= 600
        edge = np.concatenate([seen.positions.min(axis=0), np.array(seen.image.shape[::-1]) - 1 - seen.positions.max(axis=0)])
        assert edge.max() < truth.options["spacing"]  # no empty border or corner
        share = np.mean(seen.labels == 1)
        assert abs(share - truth.composition) < 5 * np.sqrt(truth.composition * (1 - truth.composition) / len(seen.labels))
        clean = render(truth.configuration, **(truth.options | {"dose": None, "noise": 0.0})).image.data
        at = np.round(seen.positions[seen.labels == pictures.SPECIES.index(truth.bright) ^ 1]).astype(int).T[::-1]
        z = (seen.image.data - clean)[tuple(at)] / (truth.dim_peak / truth.signal_to_noise)
        assert z.std() == pytest.approx(1, abs=0.2 + 5 / np.sqrt(2 * len(z)))  # the ramp changes the counting noise
