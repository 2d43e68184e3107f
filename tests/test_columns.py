"""Columns: positions and intensities of known pictures come back, with standard errors that are right."""

import numpy as np
import pytest
from conftest import generator
from scipy.spatial import cKDTree

from bayesatoms.configuration import Configuration
from bayesatoms.imaging.columns import fit_columns
from bayesatoms.imaging.micrograph import analyse
from bayesatoms.imaging.profiles import gradients, overlaps
from bayesatoms.imaging.render import render
from bayesatoms.lattice import Lattice

METAL = Lattice.triangular(0.316)
ALLOY = ("Mo", "Re")
LEVELS = {"Mo": 0.5, "Re": 1.0}
# z-scores of 900 coordinates of one picture have a standard deviation of 1 +- 0.024, the noise that scales them is known to some 5 %
Z = (0.9, 1.15)

FAULTS = {
    "white": {"noise": 0.05},
    "faint": {"noise": 0.25},
    "poisson": {"dose": 40.0, "background": 0.2},
    "filtered": {"noise": 0.2, "smooth": 1.0},
    "filtered more": {"noise": 0.4, "smooth": 2.0},
    "blurred": {"noise": 0.04, "blur": 2.0},
    "second sublattice": {"noise": 0.04, "beside": [(1 / 3, 2 / 3, 0.35)]},
    "distorted": {"noise": 0.04, "distortion": (4.0, 200.0)},
    "8 bit": {"noise": 0.05, "bits": 8},
    "ramp and patches": {"noise": 0.05, "ramp": (1.0, 0.5), "patches": 3},
}


def picture(name, lattice=METAL, composition=(0.6, 0.4), shape=(420, 420), **faults):
    rng = generator(f"columns {name}")
    alloy = Configuration.random(lattice, ALLOY, (30, 30), composition, rng, periodic=False)
    return render(alloy, intensity=LEVELS, rotation=17.0, shape=shape, rng=rng, **faults)


def scores(micrograph, rendered):
    """z of x and y and of the intensity relative to its level, for columns half a spacing inside the picture; and which were found."""
    n, spacing = micrograph.n, micrograph.registration.spacing
    position, columns = micrograph.columns.positions[:n], micrograph.columns
    distance, row = cKDTree(position).query(rendered.positions)
    inner = ((rendered.positions > 0.5 * spacing) & (rendered.positions < np.array(rendered.image.shape[::-1]) - 0.5 * spacing)).all(axis=1)
    found = (distance < 0.35 * spacing) & inner
    row = row[found]
    z = (position[row] - rendered.positions[found]) / columns.position_errors[:n][row]
    level = np.array([LEVELS[s] for s in ALLOY])[rendered.labels[found]]
    gain = np.median(columns.intensities[:n][row] / level)
    za = (columns.intensities[:n][row] - gain * level) / columns.intensity_errors[:n][row]
    return z, za, found.sum() / inner.sum(), gain


@pytest.mark.parametrize("fault", FAULTS)
def test_standard_errors_are_right(fault):
    shown = picture(fault, **FAULTS[fault])
    z, za, recall, _ = scores(analyse(shown.image, METAL, ALLOY, bright="Re"), shown)
    assert recall == 1.0
    assert Z[0] < z.std() < Z[1]
    assert np.abs(z.mean(axis=0)).max() < 0.2  # sd 0.05; the rest is bias, small beside the error
    assert 0.85 < za.std() < 1.2


def test_rows_that_jitter_move_columns_sideways_only():
    """Jitter enters the error along the scan; across it the errors stay on the safe side."""
    shown = picture("jitter", noise=0.03, jitter=0.6)
    found = analyse(shown.image, METAL, ALLOY, bright="Re")
    z, _, recall, _ = scores(found, shown)
    assert recall == 1.0
    assert 0.85 < z[:, 0].std() < 1.15 and z[:, 1].std() < 1.1
    calm = analyse(picture("jitter", noise=0.03).image, METAL, ALLOY, bright="Re").columns
    along, across = (np.median(found.columns.position_errors[:, i]) / np.median(calm.position_errors[:, i]) for i in (0, 1))
    assert along > 1.5 * across  # negative control: without the jitter both are the same
    assert np.median(calm.position_errors[:, 0]) == pytest.approx(np.median(calm.position_errors[:, 1]), rel=0.03)


def test_without_noise_positions_are_exact():
    shown = picture("exact", noise=1e-4)
    found = analyse(shown.image, METAL, ALLOY, bright="Re")
    distance = cKDTree(found.columns.positions[: found.n]).query(shown.positions)[0]
    inner = ((shown.positions > 20) & (shown.positions < 400)).all(axis=1)
    assert distance[inner].max() < 0.02  # pixels, of 20 a spacing
    gain = scores(found, shown)[3]
    assert gain == pytest.approx(1.0, abs=2e-3)


def test_dim_columns_beside_bright_ones_are_kept():
    """A maximum filter with a least distance loses them; here the dim ones have a quarter of the light, and wide profiles."""
    rng = generator("dim beside bright")
    alloy = Configuration.random(METAL, ALLOY, (26, 26), (0.2, 0.8), rng, periodic=False)
    shown = render(alloy, intensity={"Mo": 0.25, "Re": 1.0}, width=4.6, shape=(380, 380), noise=0.02, rng=rng)
    found = analyse(shown.image, METAL, ALLOY, bright="Re")
    distance, row = cKDTree(found.columns.positions[: found.n]).query(shown.positions)
    inner = ((shown.positions > 5) & (shown.positions < 375)).all(axis=1)
    assert (distance[inner & (shown.labels == 0)] < 7).all() and (inner & (shown.labels == 0)).sum() > 60
    labels = np.full(found.n, -1)
    labels[found.used] = found.labels.labels
    use = inner & (labels[row] >= 0)
    assert (labels[row] == shown.labels)[use].all()


def test_overlapping_columns_are_fitted_jointly():
    """Two columns one and a half widths of each other's light apart: fitted alone each would take the other's."""
    y, x = np.mgrid[:60, :60].astype(float)
    truth = np.array([[25.2, 30.1], [34.7, 29.8]])
    clean = 1.0 + sum(h * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * 4.0**2)) for (a, b), h in zip(truth, (1.0, 0.4), strict=True))
    noisy = clean + generator("overlap").normal(0, 0.01, clean.shape)
    fit = fit_columns(noisy, np.round(truth), np.array([0, 0]), 20.0)
    assert np.all(np.abs(fit.positions - truth) < 4 * fit.position_errors)
    assert np.all(np.abs(fit.intensities - [1.0, 0.4]) < 4 * fit.intensity_errors)
    alone = fit_columns(noisy, np.round(truth[:1]), np.array([0]), 20.0)
    assert abs(alone.positions[0, 0] - truth[0, 0]) > 0.2  # negative control


def test_pixels_that_are_missing_are_no_zeros():
    shown = picture("missing", noise=0.03)
    data = shown.image.data.copy()
    data[150:230, 200:300] = np.nan
    found = analyse(data, METAL, ALLOY, bright="Re")
    z, _, _, _ = scores(found, shown)
    assert Z[0] < z.std() < Z[1]
    held = found.columns.positions[: found.n][found.used]
    assert not ((held > [205, 155]) & (held < [295, 225])).all(axis=1).any()


def test_clipped_columns_keep_their_height():
    """The flanks tell what the clipped top was."""
    shown = picture("clipped", noise=0.02)
    data = np.minimum(shown.image.data, 0.85)
    seeds, kinds = shown.positions, np.zeros(len(shown.positions), dtype=int)
    cut, blind = (fit_columns(d, seeds, kinds, 20.0).intensities for d in (np.where(data >= 0.85, np.nan, data), data))
    bright = shown.labels == 1
    assert np.median(cut[bright]) == pytest.approx(1.0, abs=0.03)
    assert np.median(blind[bright]) < np.median(cut[bright]) - 0.02  # negative control


def test_overlaps_in_closed_form_are_sums_over_pixels():
    rng = generator("overlaps")
    for _ in range(20):
        here, there = rng.uniform(25, 35, 2), rng.uniform(25, 35, 2)
        si, sj = rng.uniform(1.5, 4.0, 2)
        y, x = np.mgrid[:60, :60].astype(float)
        parts = []
        for (a, b), s in ((here, si), (there, sj)):
            u, v = (x - a) / s, (y - b) / s
            g = np.exp(-0.5 * (u * u + v * v))
            parts.append(np.array([g, g * u / s, g * v / s, g * (u * u + v * v) / s]).reshape(4, -1))
        exact = parts[0] @ parts[1].T
        closed = overlaps((here - there)[None], np.array([si]), np.array([sj]))[0]
        assert np.abs(closed - exact).max() < 1e-5 * np.abs(exact).max()


def test_gradients_are_those_of_the_sum_of_squares():
    rng = generator("gradients")
    from bayesatoms.imaging.ground import Ground

    shape = (50, 40)
    image = rng.normal(size=shape)
    ground = Ground(shape, 15.0, np.ones(shape, dtype=bool))
    point, width = np.array([[19.3, 24.6]]), np.array([3.1])
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)

    def light(v):
        a, b, c, s = v
        return a * np.exp(-((x - b) ** 2 + (y - c) ** 2) / (2 * s**2))

    found = gradients(image, np.ones(shape, dtype=bool), point, width, 8.0, *ground.tables)[0][0]
    v = np.array([1.0, *point[0], width[0]])
    numerical = [((image * (light(v + h) - light(v - h))).sum() / 2e-5) for h in 1e-5 * np.eye(4)]
    assert found == pytest.approx(numerical, rel=1e-4, abs=1e-5)
