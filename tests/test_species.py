"""Species from intensities, against synthetic columns whose species are known.

Statistical checks allow SIGMA = 4 standard errors; seeds are fixed. Calibration is measured where the
levels can be told apart (ratio 0.3 to 0.75, relative spread 2 to 12 %, errors 1 to 10 % of the bright
level): closer levels need a range of the contrast, and the labels then carry a warning.
"""

from __future__ import annotations

import numpy as np
import pytest

from bayesatoms.errors import InputError
from bayesatoms.imaging.contamination import contamination, tail_correction
from bayesatoms.imaging.levels import Levels
from bayesatoms.imaging.species import classify, relabelled

SIGMA = 4.0
AB = ("A", "B")  # B is bright


def columns(rng, species, means, spread, error, strays=0.0):
    """Intensities and errors of columns of the given species."""
    means, n = np.asarray(means, dtype=float), len(species)
    errors = error * means.max() * np.exp(0.2 * rng.normal(size=n))
    y = means[species] * (1 + np.broadcast_to(spread, means.shape)[species] * rng.normal(size=n)) + errors * rng.normal(size=n)
    y += np.where(rng.random(n) < strays, 0.35 * means.max() * rng.normal(size=n), 0.0)
    return y, errors


def calibration_error(p, true, bins=12):
    """Expected calibration error over equal bins of probability."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    return sum(abs((p - true)[which == b].sum()) for b in range(bins)) / len(p)


def many(sets, seed):
    """Data sets over the whole range of circumstances: species, intensities, errors."""
    rng = np.random.default_rng(seed)
    for _ in range(sets):
        n = int(np.exp(rng.uniform(np.log(100), np.log(1000))))
        true = (rng.random(n) < rng.uniform(0.02, 0.98)).astype(int)
        spread = rng.uniform(0.02, 0.12) * np.exp(0.3 * rng.normal(size=2))
        yield true, *columns(rng, true, (100 * rng.uniform(0.3, 0.75), 100), spread, rng.uniform(0.01, 0.1), 0.003)


def test_probabilities_are_calibrated_and_the_check_would_see_it_if_not():
    p, true, wrong, alarms = [], [], [], 0
    for species, y, e in many(80, 3):
        found = classify(y, e, AB, "B")
        p.append(found.probabilities[:, 1])
        true.append(species)
        odds = np.log(p[-1] + 1e-9) - np.log(1 - p[-1] + 1e-9)
        wrong.append(1 / (1 + np.exp(-odds / 4)))  # as with spreads twice as wide
        alarms += any("fit better" in w for w in found.warnings)
    p, true, wrong = map(np.concatenate, (p, true, wrong))
    assert calibration_error(p, true) < 0.01
    assert calibration_error(wrong, true) > 0.02  # negative control
    assert alarms <= 1


def test_the_label_errors_are_those_that_occur():
    rng = np.random.default_rng(5)
    counts, expected, weight = np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2)
    for _ in range(25):
        true = (rng.random(600) < 0.25).astype(int)
        found = classify(*columns(rng, true, (65, 100), 0.08, 0.08), AB, "B")
        np.add.at(counts, (true, found.labels), 1)
        expected += found.label_error * np.bincount(true)[:, None]
        weight += np.bincount(true)
    seen, said = counts / weight[:, None], expected / weight[:, None]
    assert seen[1, 0] > 2 * seen[0, 1] > 0  # not symmetric: the rare species loses more
    assert (np.abs(seen - said) < SIGMA * np.sqrt(seen * (1 - seen) / weight[:, None]) + 0.005).all()


@pytest.mark.parametrize("n_bright", [10, 454])
@pytest.mark.parametrize("ratio", [0.38, 0.6])
def test_ten_sites_of_464(n_bright, ratio):
    rng = np.random.default_rng(7)
    true = (np.arange(464) < n_bright).astype(int)
    found = classify(*columns(rng, true, (100 * ratio, 100), 0.06, 0.04), AB, "B")
    assert (found.labels != true).sum() <= 1
    assert abs(found.fractions[1] - n_bright / 464) < 0.005
    np.testing.assert_allclose(found.means, (100 * ratio, 100), rtol=0.06)


@pytest.mark.parametrize("strays", [0, 1])
def test_an_absent_species_does_not_split_the_majority(strays):
    rng, split = np.random.default_rng(8), 0
    for k in range(16):
        y, e = columns(rng, np.full(464, k % 2), (50, 100), rng.uniform(0.02, 0.1), rng.uniform(0.01, 0.06))
        y[:strays] *= 1.7
        found = classify(y, e, AB, "B")
        split += np.bincount(found.labels, minlength=2).min() > 3
        # which of the two species the one level is cannot be known
        assert any("majority may be" in w for w in found.warnings) or any("sites of" in w for w in found.warnings)
        assert np.isfinite(found.label_error).all() and np.allclose(found.label_error.sum(axis=1), 1)
    assert split <= 1


def test_three_species_and_a_vacancy_in_any_order():
    rng = np.random.default_rng(9)
    true = rng.choice(4, 1500, p=(0.1, 0.6, 0.02, 0.28))  # order of names: nothing, Mo, W, Ta
    y, e = columns(rng, true, (0, 36, 100, 62), 0.05, 0.025)
    found = classify(y, e, ("none", "Mo", "W", "Ta"), ("W", "Ta", "Mo"), vacancy="none")
    assert (found.labels != true).mean() < 0.003
    assert found.means[0] == 0 and found.order.tolist() == [2, 3, 1, 0]
    assert (np.diff(found.threshold) < 0).all()
    np.testing.assert_allclose(found.fractions, np.bincount(true) / 1500, atol=0.005)
    grid = np.linspace(-60, 200, 4000)
    np.testing.assert_allclose(found.density(grid).sum(axis=1) * (grid[1] - grid[0]), found.fractions, rtol=0.02)
    half = classify(y[true != 2][:600], e[true != 2][:600], ("V", "X"), "X", vacancy="V")  # one level besides the vacancy
    assert half.means[0] == 0


def test_strays_do_not_grab_a_level():
    rng = np.random.default_rng(10)
    true = (rng.random(464) < 0.3).astype(int)
    y, e = columns(rng, true, (55, 100), 0.05, 0.03)
    y[:3] = 210, 260, 330
    found = classify(y, e, AB, "B")
    np.testing.assert_allclose(found.means, (55, 100), rtol=0.03)
    assert (found.stray[:3] > 0.99).all() and found.stray[3:].mean() < 0.02
    assert (found.labels[3:] != true[3:]).sum() <= 1


def test_clipped_intensities():
    rng = np.random.default_rng(11)
    true = (rng.random(464) < 0.03).astype(int)
    y, e = columns(rng, true, (45, 100), 0.08, 0.03)
    found = classify(np.minimum(y, 98), e, AB, "B")
    assert (found.labels != true).sum() <= 1  # the pile-up narrows the bright level
    assert any("clipped" in w for w in found.warnings)


def test_a_range_of_the_contrast_and_atomic_numbers():
    rng = np.random.default_rng(12)
    true = (rng.random(400) < 0.4).astype(int)
    y, e = columns(rng, true, (38, 100), 0.07, 0.03)
    for contrast in ({"A": 42, "B": 75}, (0.3, 0.5)):
        found = classify(y, e, AB, "B", contrast=contrast)
        assert (found.labels == true).all() and not found.warnings
    assert any("edge" in w for w in classify(y, e, AB, "B", contrast=(0.6, 0.8)).warnings)


def test_a_further_level_and_overlap_are_told():
    rng = np.random.default_rng(13)
    true = rng.choice(3, 600, p=(0.5, 0.4, 0.1))
    y, e = columns(rng, true, (40, 70, 110), 0.04, 0.03)
    assert any("3 levels" in w for w in classify(y, e, AB, "B").warnings)
    y, e = columns(rng, true % 2, (80, 100), 0.08, 0.06)
    assert any("overlap" in w for w in classify(y, e, AB, "B", contrast=(0.75, 0.85)).warnings)


def test_moving_the_thresholds():
    rng = np.random.default_rng(14)
    true = (rng.random(500) < 0.5).astype(int)
    found = classify(*columns(rng, true, (70, 100), 0.08, 0.06), AB, "B")
    assert (relabelled(found, 0.0) == found.labels).all()
    bright = [int(relabelled(found, s).sum()) for s in (-4, -1, 0, 1, 4)]
    assert bright == sorted(bright) and bright[0] < bright[2] < bright[4]
    assert (relabelled(found, 2.0) != found.labels)[found.uncertain < 0.05].sum() == 0


def test_the_gradient_of_the_posterior():
    rng = np.random.default_rng(15)
    y, e = columns(rng, rng.choice(4, 80), (100, 60, 30, 0), 0.05, 0.03)
    levels = Levels(y, e**2, rng.uniform(0.5, 3, 80), np.full(2, 0.2), np.full(2, 0.9), 4, True, 2.0)
    at = rng.normal(0, 0.3, (1, levels.size)) + np.array([4.6, 0, 0, -2, -2, -2, -3, 0, 0, 0])
    step = 1e-5 * np.eye(levels.size)
    numerical = (levels.log_posterior(at + step)[0] - levels.log_posterior(at - step)[0]) / 2e-5
    np.testing.assert_allclose(levels.log_posterior(at)[1][0], numerical, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------- contamination and tails


def smooth(rng, x, y, length):
    """A smooth random field of unit variance at positions."""
    k, phase = rng.normal(size=(60, 2)) / length, rng.uniform(0, 2 * np.pi, 60)
    return np.sqrt(2 / 60) * np.cos(np.stack([x, y], axis=1) @ k.T + phase).sum(axis=1)


def field(rng, contaminated):
    """Labels in patches under a background just as smooth, which turns dim columns bright where contaminated."""
    x, y = (q.ravel() for q in np.meshgrid(np.arange(22.0), np.arange(22.0)))
    back = smooth(rng, x, y, 3.0)
    # thickness patches follow the background; clean labels follow a field of their own
    drive = back if contaminated else smooth(rng, x, y, 3.0)
    true = (drive + rng.normal(size=484) > 0.7).astype(int)
    values, e = columns(rng, true, (60, 100), 0.05, 0.03)
    return values, e, back, np.c_[x, y]


def test_labels_that_follow_the_background_are_found_and_others_are_not():
    rng, alarms, found = np.random.default_rng(16), 0, 0
    for _ in range(25):
        values, e, back, at = field(rng, False)
        alarms += contamination(classify(values, e, AB, "B"), values, back, at).suspect
    for _ in range(5):
        values, e, back, at = field(rng, True)
        test = contamination(classify(values, e, AB, "B"), values, back, at)
        found += test.suspect and test.correlation > 0 and "bright labels are commoner" in test.sentence
    assert alarms <= 2  # 1 % of 25, with room for chance
    assert found == 5


def test_intensities_that_follow_the_background():
    values, e, back, at = field(np.random.default_rng(17), False)
    test = contamination(classify(values, e, AB, "B"), values + 4 * back, back, at)
    assert test.within_p_value < 0.005 and "rises" in test.sentence


def test_tails_are_taken_off_only_where_there_are_any():
    rng, n = np.random.default_rng(18), 30
    site = np.arange(n * n).reshape(n, n)
    around = np.stack([np.roll(site, s, axis=a) for a in (0, 1) for s in (1, -1)], axis=-1).reshape(-1, 4)
    around[rng.random(around.shape) < 0.02] = -1
    true = (rng.random(n * n) < 0.3).astype(int)
    y, e = columns(rng, true, (40, 100), 0.05, 0.02)
    mixed = y + 0.05 * np.where(around >= 0, y[around], y.mean()).sum(axis=1)
    found = classify(mixed, e, AB, "B", neighbours=around, tails=True)
    np.testing.assert_allclose(found.means, (40, 100), rtol=0.03)
    assert any("taken off" in w for w in found.warnings)
    tails = tail_correction(mixed, around, classes=np.eye(2)[true])
    assert abs(tails.fraction[0] - 0.05) < SIGMA * tails.error[0]
    clean = tail_correction(y, around, classes=np.eye(2)[true])
    assert not clean.significant and (clean.intensity == y).all()


# ---------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bright": "C"}, "none of the species"),
        ({"contrast": (0.6, 0.4)}, "0 < low < high < 1"),
        ({"contrast": (0.6, 1.2)}, "0 < low < high < 1"),
        ({"contrast": {"A": 42, "C": 75}}, "atomic number of each"),
        ({"contrast": {"A": 75, "B": 42}}, "turn `bright` round"),
        ({"intensity": np.ones(5), "error": np.ones(5)}, "at least 12"),
        ({"intensity": np.full(20, np.nan)}, "no numbers"),
        ({"error": np.ones(19)}, "shape"),
        ({"error": -np.ones(20)}, "standard errors"),
        ({"intensity": -np.ones(20)}, "invert"),
        ({"species": ("A", "B", "C")}, "from the brightest to the dimmest"),
        ({"vacancy": "none"}, "vacancy"),
        ({"tails": True}, "neighbours"),
        ({"species": ("A", "A")}, "different names"),
    ],
)
def test_wrong_input_is_named(change, words):
    given = {"intensity": np.linspace(1, 2, 20), "error": np.full(20, 0.1), "species": AB, "bright": "B"} | change
    with pytest.raises(InputError, match=words):
        classify(**given)
