"""The shipped models: the published counts as published, and the models' own identities."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from bayesatoms import catalogue
from bayesatoms.configuration import Configuration

SHARED = Path(os.environ.get("BAYESATOMS_TESTDATA", Path(__file__).parent.parent.parent / "shared" / "data"))

# image: environments, Re centres, occupied classes, S2 to the random alloy from raw counts
PUBLISHED = {
    "re05": (464, 10, 8, 0.00615),
    "re55": (466, 278, 25, 0.03257),
    "re78": (434, 366, 13, 0.02988),
    "re95": (471, 451, 6, 0.01241),
}


@pytest.fixture(scope="module")
def mores2():
    return catalogue.load("mos2_res2")


@pytest.mark.parametrize("name", catalogue.shipped())
def test_every_shipped_file_loads_and_says_what_to_cite(name):
    loaded = catalogue.load(name)
    assert loaded.models
    assert loaded.references
    assert not {o.n for o in loaded.data} & {0}


def test_candidates_are_named_and_share_lattice_and_species(mores2):
    assert {m.name: m.names for m in mores2.models} == {"R": (), "P1": ("w1",), "P2": ("w1", "w2"), "M": ("t1", "t2")}
    assert {m.species for m in mores2.models} == {("Mo", "Re")}
    assert len({m.lattice for m in mores2.models}) == 1
    assert mores2.models[0].lattice.shell_distances(1)[0] == pytest.approx(0.316)


def test_priors_are_matched_in_physical_scale(mores2):
    _, p1, p2, m = mores2.models
    assert [p1.prior("w1").scale, p2.prior("w1").scale, p2.prior("w2").scale] == [1, 1, 1]
    assert [m.prior("t1").scale, m.prior("t2").scale] == [2, 2]


@pytest.mark.parametrize("seed", range(3))
def test_p1_at_w_is_m_at_2w_2w(mores2, seed):
    """Exact on every periodic configuration: each bond lies in one triangle of an orientation."""
    _, p1, _, m = mores2.models
    c = Configuration.random(p1.lattice, p1.species, (7, 6), [0.6, 0.4], np.random.default_rng(seed))
    assert p1.features(c)[0] == 2 * m.features(c).sum()
    assert p1.energy(c, {"w1": 0.25}) == m.energy(c, {"t1": 0.5, "t2": 0.5})


def test_counts_are_the_published_ones(mores2):
    assert [o.name for o in mores2.data] == list(PUBLISHED)
    for o in mores2.data:
        n, rhenium, occupied, _ = PUBLISHED[o.name]
        assert o.n == n
        assert o.counts[o.environments.centre == 1].sum() == rhenium
        assert np.count_nonzero(o.counts) == occupied
        assert o.composition == pytest.approx([1 - rhenium / n, rhenium / n], abs=1e-15)


def test_distance_to_the_random_alloy_is_the_published_one(mores2):
    for o in mores2.data:
        p, q = o.histogram, o.environments.random_distribution(o.composition)
        s = 2 * np.arcsin(np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / 2)
        assert s**2 == pytest.approx(PUBLISHED[o.name][3], abs=1e-5)


def test_counts_equal_the_published_file_class_by_class(mores2):
    table = SHARED / "mores2" / "author_hist26.csv"
    if not table.is_file():
        pytest.skip(f"{table} is absent; set BAYESATOMS_TESTDATA to the folder of test data")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    for o in mores2.data:
        classes = [[int(r[c]) for c in ("centre", "n_re", "ortho", "meta", "para")] for r in rows]
        assert o.environments.descriptors.tolist() == classes
        assert o.counts.tolist() == [int(r[o.name]) for r in rows]
