"""From pixels to labels: rendered pictures of known alloys, the real micrographs, and what is no picture of a lattice.

Every parameter of the front end was chosen on rendered pictures; the real ones are read with the same defaults.
"""

import csv
from dataclasses import replace

import numpy as np
import pytest
from conftest import generator
from pictures import LATTICES, random_picture
from scipy import ndimage
from scipy.spatial import cKDTree

from bayesatoms.configuration import Configuration
from bayesatoms.environments import Environments
from bayesatoms.errors import InputError
from bayesatoms.imaging.homogeneity import homogeneity
from bayesatoms.imaging.micrograph import analyse, observe
from bayesatoms.imaging.read import read_image
from bayesatoms.imaging.regions import region
from bayesatoms.imaging.render import render
from bayesatoms.imaging.species import relabelled, tilted
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation

METAL, ALLOY = Lattice.triangular(0.316), ("Mo", "Re")
MARGIN = 0.25  # spacings from the edge that are not read
NEAR = 0.35  # spacings


def labels_of(found):
    """Label of every site, -1 where left out."""
    labels = np.full(found.n, -1)
    labels[found.used] = found.labels.labels
    return labels


def matched(found, positions):
    """For each true position: whether a site is near, and which."""
    distance, row = cKDTree(found.columns.positions[: found.n]).query(positions)
    return distance < NEAR * found.registration.spacing, row


def inside(positions, shape, spacing, margin=MARGIN):
    return ((positions > margin * spacing - 0.5) & (positions < np.array(shape[::-1]) - 0.5 - margin * spacing)).all(axis=1)


# ---------------------------------------------------------------------- rendered truth


class Tally:
    """What many rendered pictures say together."""

    def __init__(self):
        self.found, self.p, self.truth, self.expected, self.equal = [], [], [], [], 0

    def add(self, shown, truth):
        found = analyse(shown.image, truth.lattice, truth.configuration.species, bright=truth.bright)
        near, row = matched(found, shown.positions)
        there = inside(shown.positions, shown.image.shape, found.registration.spacing)
        self.found.append(near[there])
        p = np.full((found.n, 2), np.nan)
        p[found.used] = found.labels.probabilities
        use = near & found.used[row]
        self.p.append(p[row][use, 1])
        self.truth.append(shown.labels[use])
        self.expected.append(found.labels.uncertain.sum())
        self.equal += self.same_histogram(found, shown, row, use)

    @staticmethod
    def same_histogram(found, shown, row, use):
        """Whether the counts are those of the true labels on the same sites."""
        true = np.full(found.n, -1)
        true[row[use]] = shown.labels[use]
        return bool((found.relabelled(true[found.used]).counts == found.relabelled(found.labels.labels).counts).all())

    def calibration(self, bins=15):
        p, truth = np.concatenate(self.p), np.concatenate(self.truth)
        place = np.minimum((p * bins).astype(int), bins - 1)
        return sum(abs((p - truth)[place == b].sum()) for b in range(bins)) / len(p)

    @property
    def recall(self):
        return np.concatenate(self.found).mean()

    @property
    def wrong(self):
        return ((np.concatenate(self.p) > 0.5) != np.concatenate(self.truth)).sum()


def many(count, name, **faults):
    tally = Tally()
    for i in range(count):
        rng = generator(f"{name} {i}")
        drawn = {k: float(rng.uniform(*v)) for k, v in faults.items()}
        tally.add(*random_picture(rng, LATTICES[i % len(LATTICES)], **drawn))
    return tally


def check(tally, error=0.01):
    assert tally.recall >= 0.995
    assert tally.calibration() < error
    # the number of wrong labels is Poisson about what the probabilities say: three standard deviations, and one label; rendered columns
    # have no spread of their own, for which the prior allows, so that where labels are wrong they may be fewer than said
    expected = sum(tally.expected)
    assert 0.5 * expected - 3 * np.sqrt(expected) - 1 < tally.wrong < expected + 3 * np.sqrt(expected) + 1


def test_rendered_pictures_are_read_right():
    tally = many(12, "pictures")
    check(tally)
    assert tally.equal >= 11  # at signal-to-noise above 5 a label in a thousand may be wrong


def test_probabilities_are_calibrated_where_levels_overlap():
    """So much noise that labels are wrong: as many as the probabilities say."""
    tally = many(9, "noisy pictures", noise=(0.3, 0.6))
    assert tally.wrong >= 20  # else nothing is tested
    check(tally, error=0.02)  # the levels of a picture err together: nine say less than the fifty of the slow test


@pytest.mark.slow
def test_fifty_rendered_pictures():
    check(many(50, "fifty"))


@pytest.mark.slow
def test_calibration_over_fifty_noisy_pictures():
    tally = many(50, "fifty noisy", noise=(0.15, 0.45))
    check(tally)


def test_rare_species_are_found_and_none_is_invented():
    """Ten bright sites in 460, and none at all: no free fit on a tiny minority."""
    for bright in (10, 0):
        rng = generator(f"rare {bright}")
        labels = np.zeros(24 * 24, dtype=int)
        labels[rng.choice(24 * 24, bright, replace=False)] = 1
        alloy = Configuration.from_labels(METAL, ALLOY, labels.reshape(24, 24))
        shown = render(alloy, intensity={"Mo": 0.5, "Re": 1.0}, noise=0.06, shape=(340, 340), rng=rng)
        if not bright:  # one level alone cannot say which species it is; the majority is not split
            with pytest.raises(InputError, match="one level"):
                analyse(shown.image, METAL, ALLOY, bright="Re")
            return
        found = analyse(shown.image, METAL, ALLOY, bright="Re")
        near, row = matched(found, shown.positions)
        use = near & found.used[row]
        assert (labels_of(found)[row] == shown.labels)[use].all()


def test_vacancies_are_left_out_or_named():
    rng = generator("vacancy")
    alloy = Configuration.random(METAL, ("Mo", "Re", "none"), (26, 26), (0.5, 0.45, 0.05), rng, periodic=False)
    shown = render(alloy, intensity={"Mo": 0.5, "Re": 1.0, "none": 0.0}, noise=0.04, shape=(380, 380), rotation=9, rng=rng)
    near, row = matched(left := analyse(shown.image, METAL, ALLOY, bright="Re"), shown.positions)
    there = near & inside(shown.positions, shown.image.shape, 20.0)
    assert (left.notes[row][there & (shown.labels == 2)] == "vacant").mean() > 0.95
    assert (left.notes[row][there & (shown.labels < 2)] == "").mean() > 0.99
    assert any("hold no atom" in w for w in left.warnings)
    named = analyse(shown.image, METAL, ("Mo", "Re", "none"), bright=("Re", "Mo"), vacancy="none")
    use = there & named.used[row]
    assert (labels_of(named)[row] == shown.labels)[use].mean() > 0.99


def test_patches_of_contamination_are_flagged_and_change_little():
    rng = generator("patches")
    alloy = Configuration.random(METAL, ALLOY, (26, 26), (0.5, 0.5), rng, periodic=False)
    options = {"intensity": {"Mo": 0.5, "Re": 1.0}, "noise": 0.04, "shape": (400, 400)}
    clean = analyse(render(alloy, **options, rng=generator("patch noise")).image, METAL, ALLOY, bright="Re")
    blobs = [(120, 130, 40, 0.6), (300, 260, 50, 0.8)]
    dirty = analyse(render(alloy, **options, patches=blobs, rng=generator("patch noise")).image, METAL, ALLOY, bright="Re")
    flagged = dirty.columns.positions[: dirty.n][dirty.notes == "patch"]
    assert len(flagged) > 10
    near = np.min([np.linalg.norm(flagged - [x, y], axis=1) / r for x, y, r, _ in blobs], axis=0)
    assert (near < 2.5).all()
    assert abs(dirty.observation.composition[1] - clean.observation.composition[1]) < 0.01
    assert (clean.notes != "patch").all()


def test_dark_atoms_on_bright_ground():
    rng = generator("inverted")
    alloy = Configuration.random(METAL, ALLOY, (20, 20), (0.5, 0.5), rng, periodic=False)
    shown = render(alloy, intensity={"Mo": 0.5, "Re": 1.0}, noise=0.04, shape=(320, 320), rng=rng)
    upright = analyse(shown.image, METAL, ALLOY, bright="Re")
    dark = replace(shown.image, data=5.0 - shown.image.data)
    right = analyse(dark, METAL, ALLOY, bright="Re", invert=True)
    assert np.array_equal(labels_of(right), labels_of(upright))
    try:
        warned = analyse(dark, METAL, ALLOY, bright="Re").warnings
    except InputError as error:
        warned = [str(error)]
    assert any("dark" in w or "lattice" in w for w in warned)


def test_pixel_size_comes_from_the_lattice_and_is_compared_with_the_header():
    rng = generator("scale")
    alloy = Configuration.random(METAL, ALLOY, (20, 20), (0.5, 0.5), rng, periodic=False)
    shown = render(alloy, intensity={"Mo": 0.5, "Re": 1.0}, noise=0.04, shape=(320, 320), rng=rng)
    good = analyse(shown.image, METAL, ALLOY, bright="Re")
    assert good.pixel_size == pytest.approx(0.316 / 20, rel=2e-3) and not any("header" in w for w in good.warnings)
    wrong = analyse(replace(shown.image, pixel_size=0.316 / 20 * 1.06), METAL, ALLOY, bright="Re")
    assert any("header" in w and "+6%" in w for w in wrong.warnings)


def test_regions_of_interest_and_masks(tmp_path):
    rng = generator("regions")
    alloy = Configuration.random(METAL, ALLOY, (22, 22), (0.5, 0.5), rng, periodic=False)
    shown = render(alloy, intensity={"Mo": 0.5, "Re": 1.0}, noise=0.04, shape=(340, 340), rng=rng)
    whole = analyse(shown.image, METAL, ALLOY, bright="Re")
    polygon = [[20, 20], [320, 20], [320, 200], [20, 300]]
    part = analyse(shown.image, METAL, ALLOY, bright="Re", roi=polygon)
    outside = ~region(shown.image.shape, polygon, "roi")
    x, y = np.round(part.columns.positions[: part.n][part.used]).astype(int).T
    assert not outside[y, x].any() and part.used.sum() < whole.used.sum()
    from skimage.io import imsave

    imsave(tmp_path / "mask.png", (outside * 255).astype(np.uint8), check_contrast=False)
    masked = analyse(shown.image, METAL, ALLOY, bright="Re", mask="mask.png", folder=tmp_path)
    assert np.array_equal(masked.observation.counts, part.observation.counts)
    for bad in ([[1, 2]], "nothing.png", [[500, 500], [600, 600]], [["a", "b"], [1, 2]], 7):
        with pytest.raises(InputError, match=r"roi|nothing"):
            analyse(shown.image, METAL, ALLOY, bright="Re", roi=bad)
    imsave(tmp_path / "small.png", np.zeros((20, 20), dtype=np.uint8) + 255 * np.eye(20, dtype=np.uint8), check_contrast=False)
    with pytest.raises(InputError, match="340"):
        analyse(shown.image, METAL, ALLOY, bright="Re", mask=tmp_path / "small.png")


def test_moved_thresholds_move_uncertain_labels_only():
    rng = generator("moved")
    alloy = Configuration.random(METAL, ALLOY, (22, 22), (0.5, 0.5), rng, periodic=False)
    shown = render(alloy, intensity={"Mo": 0.75, "Re": 1.0}, noise=0.45, shape=(300, 300), rng=rng)
    found = analyse(shown.image, METAL, ALLOY, bright="Re")
    up, down = relabelled(found.labels, 3.0), relabelled(found.labels, -3.0)
    assert up.mean() > found.labels.labels.mean() > down.mean()
    sure = found.labels.uncertain < 0.01
    assert np.array_equal(up[sure], found.labels.labels[sure]) and np.array_equal(down[sure], found.labels.labels[sure])


def test_soft_labels_reach_the_observation():
    rng = generator("soft")
    alloy = Configuration.random(METAL, ALLOY, (22, 22), (0.5, 0.5), rng, periodic=False)
    shown = render(alloy, intensity={"Mo": 0.75, "Re": 1.0}, noise=0.45, shape=(300, 300), rng=rng)
    soft, hard = (analyse(shown.image, METAL, ALLOY, bright="Re", soft=s) for s in (True, False))
    assert soft.observation.probabilities is not None and hard.observation.probabilities is None
    assert soft.observation.counts.sum() == pytest.approx(hard.observation.counts.sum())
    wrong = 1 - np.diag(hard.observation.label_error)
    assert (wrong > 0.003).all() and np.array_equal(hard.observation.label_error, hard.labels.label_error)


# ---------------------------------------------------------------------- homogeneity


def test_homogeneity_has_its_false_alarm_rate():
    """One in a hundred homogeneous pictures, correlated or not, raises a false alarm: at most 5 of 120 (p = 0.006)."""
    lattice = Lattice.square()
    cells = lattice.supercell((24, 24), (False, False))
    near = np.array([cells.index(n) if n.min() >= 0 else n for n in np.zeros((0, 3), dtype=int)])
    y, x = np.mgrid[:24, :24]
    xy = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    grid = np.arange(576).reshape(24, 24)
    padded = np.pad(grid, 1, constant_values=-1)
    near = np.stack([padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1]], axis=-1).reshape(576, 4)
    alarms = 0
    for i in range(120):
        rng = generator(f"homogeneous {i}")
        field = rng.normal(size=(24, 24))
        if i % 2:  # clusters of like atoms
            field = ndimage.gaussian_filter(field, 0.5, mode="wrap")
        p = np.eye(2)[(field > np.quantile(field, 0.6)).ravel().astype(int)]
        alarms += homogeneity(xy, p, near).suspect
    assert alarms <= 5
    # negative control: half of the picture is richer
    rng = generator("inhomogeneous")
    p = np.eye(2)[(rng.random(576) < np.where(xy[:, 0] < 12, 0.3, 0.6)).astype(int)]
    assert homogeneity(xy, p, near).suspect
    # and the same composition with another order
    chess = ((xy.sum(axis=1) % 2) > 0) ^ (rng.random(576) < 0.1)
    mixed = np.where(xy[:, 0] < 12, chess, rng.random(576) < 0.5)
    assert homogeneity(xy, np.eye(2)[mixed.astype(int)], near).p_order < 0.005


# ---------------------------------------------------------------------- the published micrographs


@pytest.fixture(scope="module", params=["re05", "re78"])
def published(request, data):
    """The image, what was read in it and the careful labels."""
    folder = data / "mores2"
    with (folder / f"{request.param}_sites.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["x_px"]]
    truth = np.array([[float(r["x_px"]), float(r["y_px"])] for r in rows])
    image = read_image(folder / f"{request.param}.tif")
    return request.param, image, analyse(image, METAL, ALLOY, bright="Re"), truth, rows


def test_published_columns_and_labels(published):
    name, _, found, truth, rows = published
    near, row = matched(found, truth)
    assert near.mean() >= 0.99
    read = found.columns.positions[: found.n][found.used]
    false = cKDTree(truth).query(read)[0] > NEAR * found.registration.spacing
    assert false.sum() <= 0.01 * len(read)
    species = np.array([r["species_own"] for r in rows])
    told = near & found.used[row] & (species != "")
    differ = (np.array(ALLOY)[labels_of(found)[row]] != species)[told]
    assert told.sum() > 0.98 * len(rows)
    assert differ.sum() == 0 if name == "re05" else differ.mean() <= 0.01
    assert abs(found.labels.probabilities[:, 1].mean() - (species == "Re").sum() / (species != "").sum()) < 0.010
    assert found.labels.uncertain.mean() < 0.01


def test_published_counts_from_the_authors_positions_and_labels(published, data):
    name = published[0]
    with (data / "mores2" / "author_hist26.csv").open() as file:
        theirs = np.array([int(r[name]) for r in csv.DictReader(file)])
    path = data / "mores2" / f"{name}_sites.csv"
    columns = {"x": "author_x_px", "y": "author_y_px", "species": "species_author"}
    mine = Observation.from_table(path, METAL, ALLOY, columns=columns)
    assert abs(mine.counts - theirs).sum() <= 0.02 * theirs.sum()


def transformed(data, matrix):
    """The picture under a linear map of the plane, and the map of positions."""
    back = np.linalg.inv(matrix)
    height, width = data.shape
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]]) @ matrix.T
    low = corners.min(axis=0)
    size = np.ceil(np.ptp(corners, axis=0)).astype(int)
    y, x = np.mgrid[: size[1], : size[0]]
    source = np.stack([x + low[0], y + low[1]], axis=-1) @ back.T
    picture = ndimage.map_coordinates(data, [source[..., 1], source[..., 0]], order=3, mode="nearest")
    outside = ((source < 0) | (source > [width - 1, height - 1])).any(axis=-1)
    return np.where(outside, np.nan, picture), lambda points: points @ matrix.T - low


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, s], [-s, c]])


MAPS = {
    "turned 17": turned(17), "turned 90": turned(90), "mirror": np.diag([-1.0, 1.0]), "shear": np.array([[1, 0.05], [0, 1]]),
    "half": np.eye(2) / 2, "double": np.eye(2) * 2,
}  # fmt: skip


@pytest.mark.parametrize("change", ["noise 20", "noise 40", "ramp", "patches", *MAPS])
def test_reading_is_robust(published, change):
    """Noise, slopes, contamination and geometry change hardly a label, and no histogram on the sites read in both."""
    name, image, before, truth, _ = published
    data, move = image.data, lambda points: points
    rng = generator(f"robust {name} {change}")
    if change.startswith("noise"):
        data = data + rng.normal(0, float(change.split()[1]), data.shape)
    elif change == "ramp":
        data = data + np.linspace(0, 80, data.shape[1])
    elif change == "patches":
        y, x = np.mgrid[: data.shape[0], : data.shape[1]]
        for place in rng.uniform(80, np.array(data.shape[::-1]) - 80, (3, 2)):
            data = data + 90 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * 45**2))
    else:
        data, move = transformed(data, MAPS[change])
    after = analyse(replace(image, data=data), METAL, ALLOY, bright="Re")
    assert matched(after, move(truth))[0].mean() >= (0.97 if "noise" in change else 0.99)
    near, row = matched(after, move(before.columns.positions[: before.n]))
    both = near & before.used & after.used[row]
    same = labels_of(after)[row][both] == labels_of(before)[both]
    assert same.mean() >= 0.99 and both.sum() > 0.98 * before.used.sum()
    if change == "patches":
        assert (after.notes == "patch").sum() >= 5
        x = [m.labels.probabilities[:, 1].mean() for m in (before, after)]
        assert abs(x[0] - x[1]) < 0.01
        return
    # the environments whose sites were read in both pictures, by the probabilities of either reading
    p = np.full((after.n, 2), np.nan)
    p[after.used] = after.labels.probabilities
    both = both[before.used]
    counts = [
        before.relabelled(np.where(both, q.argmax(axis=1), -1), np.where(both[:, None], q, 0.5)).counts
        for q in (before.labels.probabilities, np.where(both[:, None], p[row][before.used], 0.5))
    ]
    assert abs(counts[0] - counts[1]).sum() / 2 <= (0.03 if "noise" in change else 0.01) * counts[0].sum()


# ---------------------------------------------------------------------- other microscopes, other materials

JANUS = ("partial_3", "partial_9", "partial_16", "partial_27", "full_15")


@pytest.mark.parametrize("name", JANUS)
def test_janus_images_are_indexed_with_soft_labels(data, name):
    found = analyse(read_image(data / "janus_wsse" / f"{name}.tif"), Lattice.triangular(0.315), ("S2", "SSe"), bright="SSe", sublattice=1)
    position, spacing = found.columns.positions[: found.n], found.registration.spacing
    interior = inside(position, found.image.shape, spacing, margin=1.4)
    gap = {i for i in range(found.n) if not found.used[i]}
    near = found.registration.neighbours()
    away = np.array([interior[i] and i not in gap and not (set(near[i].tolist()) & gap) for i in range(found.n)])
    assert (near[away] >= 0).all(axis=1).mean() >= 0.9 and away.sum() > 0.75 * interior.sum()
    assert found.observation.probabilities is not None
    assert ((found.labels.probabilities > 0.02) & (found.labels.probabilities < 0.98)).any(axis=1).mean() > 0.02
    assert 700 < found.used.sum() < 950


def test_implanted_selenium_with_its_hole(data):
    image = read_image(data / "se_mos2" / "se_mos2_survey_uint16.tif")
    found = analyse(image, METAL, ("S2", "SSe"), bright="SSe", sublattice=1)
    assert found.pixel_size == pytest.approx(0.012695, rel=0.1)
    hole = np.array([392, 530]) * 1024 / 1024
    dark = ndimage.gaussian_filter(image.data, 12)
    y, x = np.unravel_index(np.argmin(dark[60:-60, 60:-60]), (904, 904))
    hole = np.array([x + 60, y + 60])
    near = np.linalg.norm(found.columns.positions[: found.n] - hole, axis=1) < 18
    assert not found.used[near].all() or not near.any()
    assert found.observation.n > 1500


def test_perovskite_is_square(data):
    found = analyse(read_image(data / "perovskite_adf" / "test_ADF_cropped.hdf5"), Lattice.square(0.39), ("A", "B"), bright="A")
    angle = np.degrees(
        np.arccos(
            np.prod([1])
            * found.registration.vectors[0]
            @ found.registration.vectors[1]
            / np.prod(np.linalg.norm(found.registration.vectors, axis=1))
        )
    )
    assert abs(angle - 90) < 3 and found.registration.goodness > 0.9


@pytest.mark.parametrize("name", ["MoS2_4", "MoS2_kmr_doped"])
def test_figures_with_holes_are_cropped_and_masked_or_refused(data, name):
    image = read_image(data / "holes" / f"{name}.png")
    assert any("cropped" in w for w in image.warnings)
    try:
        found = analyse(image, METAL, ("Mo", "X"), bright="X")
    except InputError as error:
        assert "lattice" in str(error)
        return
    assert (found.notes == "vacant").sum() > 10
    empty = ndimage.gaussian_filter(image.data, 5)
    x, y = np.round(found.columns.positions[: found.n][found.used]).astype(int).T
    dark = empty < empty.min() + 0.3 * (np.median(empty) - empty.min())
    assert dark.sum() > 500 and dark[y, x].mean() < 0.01


# ---------------------------------------------------------------------- what is refused


def test_noise_and_emptiness_are_refused():
    rng = generator("refused")
    for picture in (rng.normal(size=(200, 200)), ndimage.gaussian_filter(rng.normal(size=(200, 200)), 3)):
        with pytest.raises(InputError, match=r"no triangular lattice|hold no|holds"):
            observe(picture, METAL, ALLOY, bright="Re")
    with pytest.raises(InputError, match="empty"):
        observe(np.ones((100, 100)), METAL, ALLOY, bright="Re")
    with pytest.raises(InputError, match="no pixel"):
        observe(np.full((100, 100), np.nan), METAL, ALLOY, bright="Re")
    with pytest.raises(InputError, match="16 x 16"):
        observe(np.ones((1, 1)), METAL, ALLOY, bright="Re")
    with pytest.raises(InputError, match="dimensions"):
        observe(rng.normal(size=(100, 100)), Lattice.cubic(), ALLOY, bright="Re")
    with pytest.raises(InputError, match="bright"):
        alloy = Configuration.random(METAL, ALLOY, (16, 16), (0.5, 0.5), rng, periodic=False)
        observe(render(alloy, intensity={"Mo": 0.5, "Re": 1.0}, noise=0.03, rng=rng).image, METAL, ALLOY, bright="W")


def test_a_photograph_is_refused(tmp_path):
    """Colours, shapes, no lattice."""
    rng = generator("photo")
    y, x = np.mgrid[:240, :320]
    photo = np.stack([ndimage.gaussian_filter(rng.normal(size=(240, 320)), s) for s in (9, 5, 14)], axis=-1)
    photo = (photo - photo.min()) / np.ptp(photo) * 200 + 30 * (x > 160)[..., None] * (y > 100)[..., None]
    from skimage.io import imsave

    imsave(tmp_path / "photo.png", photo.astype(np.uint8), check_contrast=False)
    with pytest.raises(InputError, match=r"photo: .*lattice"):
        observe(read_image(tmp_path / "photo.png"), METAL, ALLOY, bright="Re")


def test_environments_of_ones_own(published):
    _, _, found, _, _ = published
    two = Environments(METAL, ALLOY, shells=2)
    assert found.observation.with_environments(two).n < found.observation.n


@pytest.mark.slow
def test_janus_images_agree_with_their_pooled_posterior(data):
    """One coupling from five images: what they say together is what they say one by one, weighted with their errors."""
    from numpyro import distributions as dist
    from scipy.stats import chi2

    from bayesatoms.hamiltonian import Hamiltonian, Pair
    from bayesatoms.inference.campaign import Settings
    from bayesatoms.inference.posterior import infer

    lattice, species = Lattice.triangular(0.315), ("S2", "SSe")
    images = [
        observe(read_image(data / "janus_wsse" / f"{name}.tif"), lattice, species, bright="SSe", sublattice=1, name=name) for name in JANUS
    ]
    model = Hamiltonian("P1", Pair(*species, name="w1", prior=dist.Normal(0, 1)), lattice=lattice, species=species)
    settings = Settings(points=6, samples=160, warmup=300, draws=500, parallel=2)
    pooled = infer([model], images, seed=1, settings=settings)["P1"].draws[:, 0]
    alone = [infer([model], [o], seed=2, settings=settings)["P1"].draws[:, 0] for o in images]
    mean, sd = np.array([d.mean() for d in alone]), np.array([d.std() for d in alone])
    print("\npooled", pooled.mean(), pooled.std(), "alone", mean.round(3), sd.round(3))
    weight = 1 / sd**2
    common = (weight * mean).sum() / weight.sum()
    # the five are samples of different history, so that their own couplings need not agree; the pooled posterior is their product
    print("heterogeneity p", chi2.sf((weight * (mean - common) ** 2).sum(), len(images) - 1))
    assert abs(pooled.mean() - common) < 0.5 * pooled.std()
    assert pooled.std() == pytest.approx(1 / np.sqrt(weight.sum()), rel=0.2)


def test_vacuum_is_no_vacancy():
    """Vacancies are counted among atoms; a flake's outside and a hole are not made of vacancies."""
    rng = generator("vacuum")
    square = Lattice.square(0.39)
    labels = (rng.random((30, 30)) < 0.05).astype(int)
    y, x = np.mgrid[:30, :30]
    labels[np.hypot(x - 14, y - 14) < 5] = -1
    shown = render(
        Configuration.from_labels(square, ("A", "none"), labels), intensity={"A": 1.0, "none": 0.0}, noise=0.04, margin=80, rng=rng
    )
    found = analyse(shown.image, square, ("A", "none"), bright="A", vacancy="none")
    true = (labels == 1).sum() / (labels >= 0).sum()
    assert abs(found.labels.probabilities[:, 1].mean() - true) < 0.02
    assert (found.notes == "beyond").sum() > 50 and any("vacuum" in w for w in found.warnings)


def test_padding_is_not_recorded():
    rng = generator("padding")
    alloy = Configuration.random(METAL, ALLOY, (22, 22), (0.5, 0.5), rng, periodic=False)
    shown = render(alloy, intensity={"Mo": 0.5, "Re": 1.0}, noise=0.04, background=1.0, shape=(300, 300), rng=rng)
    plain = analyse(shown.image, METAL, ALLOY, bright="Re")
    padded = analyse(np.pad(shown.image.data, ((40, 50), (45, 30))), METAL, ALLOY, bright="Re")
    assert any("padding" in w for w in padded.warnings)
    assert padded.used.sum() == plain.used.sum()
    assert padded.observation.composition[1] == pytest.approx(plain.observation.composition[1], abs=0.003)


def test_thresholds_that_do_not_move_change_nothing():
    rng = generator("tilted")
    alloy = Configuration.random(METAL, ALLOY, (22, 22), (0.5, 0.5), rng, periodic=False)
    shown = render(alloy, intensity={"Mo": 0.75, "Re": 1.0}, noise=0.45, shape=(300, 300), rng=rng)
    found = analyse(shown.image, METAL, ALLOY, bright="Re")
    same = found.relabelled(relabelled(found.labels, 0.0), tilted(found.labels, 0.0))
    assert np.allclose(same.counts, found.observation.counts)
    more = [found.relabelled(relabelled(found.labels, s), tilted(found.labels, s)).composition[1] for s in (-3.0, 0.0, 3.0)]
    assert more[0] < more[1] < more[2]
    assert np.array_equal(tilted(found.labels, 3.0).argmax(axis=1), relabelled(found.labels, 3.0))
