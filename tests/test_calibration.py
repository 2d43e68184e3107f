"""Calibration: the rank tests themselves, then posteriors that must pass them and posteriors that must not.

Tests of ranks fail by chance in at most 1 % of the seeds (`ALARM`); the seed is fixed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import numpyro
import pytest
from conftest import generator
from numpyro import distributions as dist
from typer.testing import CliRunner

from bayesatoms import cli, plots
from bayesatoms.configuration import Configuration
from bayesatoms.environments import Environments
from bayesatoms.errors import CheckError, InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference import ranks
from bayesatoms.inference.calibration import calibrate, load, save
from bayesatoms.inference.campaign import Campaign, Settings
from bayesatoms.inference.fresh import Effort, calibrate_prior, synthetic
from bayesatoms.inference.heldout import divide, held_out, rank
from bayesatoms.inference.neighbours import spread_out, tiles
from bayesatoms.inference.ranked import ALARM, LOG_LIKELIHOOD, Calibration, Ranked
from bayesatoms.inference.sampling import Posterior
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation
from bayesatoms.reporting.calibration import calibration as collected

LATTICE = Lattice.triangular(0.316)
SPECIES = ("A", "B")
P1 = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 0.25)), lattice=LATTICE, species=SPECIES)
RANDOM = Hamiltonian("R", lattice=LATTICE, species=SPECIES)


def image(x=0.4, side=20, name="image", label_error=None):
    """A random alloy: what counts is its window and composition."""
    labels = Configuration.random(LATTICE, SPECIES, (side, side), (1 - x, x), generator("image")).labels[..., 0]
    return Observation.from_labels(labels, LATTICE, SPECIES, name=name, label_error=label_error)


# ---------------------------------------------------------------------- ranks


@pytest.mark.parametrize("n", [30, 150])
def test_the_band_holds_a_whole_uniform_line_as_often_as_it_says(n):
    """8000 uniform samples; their share inside is within 4 standard errors of the stated probability (6e-5)."""
    b, rng = ranks.band(n), generator(f"band {n}")
    exact = ranks.inside_probability(n, b.z, b.lower, b.upper)
    assert 0.95 <= exact < 0.96  # discrete: the next larger gamma would fall below
    samples = np.sort(rng.random((8000, n)), axis=1)
    counts = np.stack([np.searchsorted(u, b.z, side="right") for u in samples])
    inside = ((counts >= b.lower) & (counts <= b.upper)).all(axis=1).mean()
    assert abs(inside - exact) < 4 * np.sqrt(0.05 * 0.95 / 8000)
    # one by one, binomial intervals of 95 % are left by many more samples: the simultaneous ones must be wider
    pointwise = np.abs(counts / n - b.z) <= 1.96 * np.sqrt(b.z * (1 - b.z) / n)
    assert pointwise.all(axis=1).mean() < 0.8


def test_p_values_agree_with_the_band_and_are_uniform():
    rng, n = generator("p values"), 80
    samples = rng.random((400, n))
    p = np.array([ranks.uniformity(u) for u in samples])
    b = ranks.band(n)
    counts = np.stack([np.searchsorted(np.sort(u), b.z, side="right") for u in samples])
    inside = ((counts >= b.lower) & (counts <= b.upper)).all(axis=1)
    assert np.mean((p >= 0.05) == inside) > 0.99
    for level in (0.05, 0.2, 0.5):  # 4 standard errors; p-values of counts are a little too large
        assert level - 4 * np.sqrt(level * (1 - level) / 400) - 0.03 < np.mean(p <= level) < level + 4 * np.sqrt(level * (1 - level) / 400)


@pytest.mark.parametrize("u", [generator("u").beta(0.6, 0.6, 400), generator("n").beta(2, 2, 400), generator("b").beta(1.5, 1, 400)])
def test_ranks_that_are_not_uniform_are_found(u):
    assert ranks.uniformity(u) < 1e-3


def test_few_and_extreme_values_have_an_answer():
    assert ranks.uniformity([0.5]) == 1.0 and ranks.uniformity(np.zeros(50)) < 1e-10
    assert ranks.binomial_interval(0, 10)[0] == 0 and ranks.binomial_interval(10, 10)[1] == 1
    with pytest.raises(InputError, match="no ranks"):
        ranks.uniformity([])
    with pytest.raises(InputError, match="level"):
        ranks.band(10, 1.5)


def toy(width=1.0, ignore=False, n=400, m=300):
    """Normal prior, one normal datum of sd 0.5: exact posteriors on the prior's points, or wrong ones."""
    rng = generator("toy")
    points, own = rng.normal(size=(m, 1)), rng.integers(m, size=n)
    y = points[own, 0] + 0.5 * rng.normal(size=n)
    density = -0.5 * ((y[:, None] - points[:, 0]) / (0.5 * width)) ** 2
    found = rank(points, own, density * (0 if ignore else 1), np.full((n, 1, 1), 4.0), rng)
    if ignore:  # ranks of the likelihood under weights that do not know it
        weights = np.full((n, m), 1 / m)
        found["pit"][:, 1] = ranks.pit_values(density < density[np.arange(n), own][:, None], weights, own, rng)
    return Ranked("toy", "calibrated", ("w",), points[own], **found)


def test_posteriors_on_points_of_the_prior_have_uniform_ranks_however_few_the_points():
    for m in (5, 300):
        row = toy(m=m)
        assert all(p > ALARM / 4 for p in row.p_values.values()), row.p_values
    assert 0.93 < toy().sharpness("w") < 1.07


def test_wrong_widths_are_named():
    assert Calibration((toy(0.5),), "held-out", "local", 1).verdicts["toy", "calibrated", "w"] == "too sure"
    assert Calibration((toy(2.5),), "held-out", "local", 1).verdicts["toy", "calibrated", "w"] == "too cautious"
    assert toy(0.5).coverage("w").share < 0.8 < toy().coverage("w").share


def test_a_posterior_that_ignores_the_data_passes_ranks_of_the_coupling_but_not_of_the_likelihood():
    row = toy(ignore=True)
    assert row.p_values["w"] > ALARM and row.p_values[LOG_LIKELIHOOD] < 1e-6


# ---------------------------------------------------------------------- fresh simulations


@pytest.fixture(scope="module")
def fresh():
    """150 images of a P1 alloy with couplings from the prior."""
    return calibrate_prior(P1, image(), seed=4, datasets=150)


def test_calibrated_posteriors_pass_over_the_prior_and_independent_ones_fail(fresh):
    """Clopper and Pearson's interval misses 0.9 by more than it allows in 5 % of the seeds, so 0.82 to 0.96 is asked: 0.5 %."""
    row, control = fresh["P1", "calibrated"], fresh["P1", "independent"]
    assert fresh.ok and row.flagged < 0.15
    assert 0.82 <= row.coverage("w1").share <= 0.96
    # the bound counts the 1141 pairs of the window, complete environments show 972: a sd of up to 1.08 times the bound, and 5 % either way
    assert 0.95 < row.sharpness("w1") < 1.05 * np.sqrt(1141 / 972)
    assert control.p_values["w1"] < 1e-3 and control.coverage("w1").high < 0.85
    assert fresh.verdicts["P1", "independent", "w1"] == "too sure"


def test_posteriors_on_points_agree_with_a_pool_of_their_own(fresh):
    """The first data sets analysed alone, by rounds of chains: same means and widths within Monte Carlo error."""
    few = calibrate_prior(P1, image(), seed=4, datasets=24)
    for name in ("truth",):
        assert np.array_equal(getattr(few["P1", "calibrated"], name), getattr(fresh["P1", "calibrated"], name)[:24])
    one, two = few["P1", "calibrated"], fresh["P1", "calibrated"]
    fine = one.kept & two.kept[:24]
    assert np.sqrt(np.mean(((one.mean - two.mean[:24]) / two.sd[:24])[fine] ** 2)) < 0.3
    assert 0.9 < np.median((one.sd / two.sd[:24])[fine]) < 1.1


def test_images_of_one_box_are_different_crystals():
    one, other = image(side=10), replace(image(side=10), name="other")
    _, sets = synthetic([P1], [one, other], "P1", seed=2, datasets=4)
    assert all((a.counts != b.counts).any() for a, b in sets)
    _, alone = synthetic([P1], [one], "P1", seed=2, datasets=4)
    assert all((a.counts == b.counts).all() for (a, _), [b] in zip(sets, alone, strict=True))


def test_the_data_sets_can_be_had():
    """Those of the calibration itself: same truths, and counts of the window's environments."""
    truths, sets = synthetic([P1], [image(side=14)], "P1", seed=2, datasets=16)
    found = calibrate_prior(P1, image(side=14), seed=2, datasets=16, effort=Effort(rounds=1), likelihoods=["calibrated"])
    assert np.array_equal(truths, found["P1", "calibrated"].truth)
    assert {s[0].n for s in sets} == {image(side=14).n} and len({s[0].counts.tobytes() for s in sets}) > 10


def test_the_same_seed_gives_the_same_calibration():
    quick = {"datasets": 16, "effort": Effort(rounds=1), "likelihoods": ["calibrated"]}
    one, two = (calibrate_prior(P1, image(side=14), seed=2, workers=w, **quick) for w in (1, 2))
    assert np.array_equal(one["P1", "calibrated"].pit, two["P1", "calibrated"].pit)


@pytest.mark.slow
def test_label_errors_cost_coverage_only_where_they_are_ignored():
    """5 % wrong labels, 300 images: modelled 0.85 to 0.95 (0.4 % of seeds are outside), ignored far below."""
    error = [[0.95, 0.05], [0.05, 0.95]]
    noisy, blind = image(0.3, 24, label_error=error), image(0.3, 24)
    modelled = calibrate_prior(P1, noisy, seed=6, datasets=300)["P1", "calibrated"]
    ignored = calibrate_prior(P1, blind, seed=6, datasets=300, seen=noisy)["P1", "calibrated"]
    assert 0.85 <= modelled.coverage("w1").share <= 0.95
    assert ignored.coverage("w1").high < 0.8


@pytest.mark.slow
def test_a_random_alloy_is_found_random():
    """w = 0 as the truth of 400 images: inside the 95 % interval of 92 to 98 % of them (0.6 % of seeds are outside)."""
    row = calibrate_prior(P1, image(0.3, 24), seed=8, datasets=400, truth=[0.0])["P1", "calibrated"]
    assert 0.92 <= row.coverage("w1", 0.95).share <= 0.98


def test_tiles_hold_every_point_once():
    found = tiles(generator("tiles").normal(size=(101, 3)), 8)
    assert sorted(np.concatenate(found)) == list(range(101)) and max(map(len, found)) <= 8


def test_few_of_many_points_cover_them_all():
    """A crowd in the middle does not crowd out the rest: no point is farther from the chosen than twice the best there can be."""
    points = np.concatenate([1e-3 * generator("crowd").normal(size=(500, 2)), generator("rest").uniform(-1, 1, (100, 2))])
    chosen = points[spread_out(points, 40)]
    holes = np.sqrt(((points[:, None] - chosen) ** 2).sum(axis=2)).min(axis=1)
    nearest = np.sqrt(((points[:, None] - points[np.argsort((points**2).sum(axis=1))[:40]]) ** 2).sum(axis=2)).min(axis=1)
    assert holes.max() < 0.35 < nearest.max() and len(spread_out(points[:30], 40)) == 30


def test_what_cannot_be_simulated_is_refused():
    with pytest.raises(InputError, match="likelihoods gaussian"):
        calibrate_prior(P1, image(), seed=1, likelihoods=["gaussian"])
    with pytest.raises(InputError, match="whole periodic crystals only, exact"):
        calibrate_prior(P1, image(), seed=1, likelihoods=["exact"])
    with pytest.raises(InputError, match="2 images seen and 1 analysed"):
        calibrate_prior(P1, image(), seed=1, seen=[image(), image(name="two")])


# ---------------------------------------------------------------------- held-out chains


@pytest.fixture(scope="module")
def result():
    """A result without NUTS: draws by importance sampling on the same posterior."""
    numpyro.enable_x64()
    observations, settings = [image(0.4, 22, "one"), image(0.4, 18, "two")], Settings(points=6)
    campaign = Campaign.prepare(
        [RANDOM, P1], observations, seed=3, pool=Pool(), settings=settings, workers=1, report=lambda *_: None
    )  # fmt: skip
    regions, none = campaign.run(), np.zeros(0)
    posteriors = {r.kind: Posterior(r.kind, ("w1",), r.draws[None], none, none, none, {}) for r in regions}
    fit = SimpleNamespace(model=P1, parameters=regions[0].parameters, posteriors=posteriors)
    nothing = SimpleNamespace(model=RANDOM, parameters=None, posteriors={})
    return SimpleNamespace(fits={"R": nothing, "P1": fit}, emulator=campaign.emulator, seed=3, observations=observations)


@pytest.fixture(scope="module")
def local(result):
    return held_out(result, datasets=300)


def test_held_out_chains_pass_the_calibrated_and_fail_the_independent_posterior(local):
    assert local.ok and local.scope == "local" and local.source == "held-out"
    assert 0.84 <= local["P1", "calibrated"].coverage("w1").share <= 0.95
    assert 0.9 < local["P1", "calibrated"].sharpness("w1") < 1.1
    assert local["P1", "independent"].p_values["w1"] < 1e-3


def test_nothing_of_a_left_out_part_is_used(result):
    parts = divide(result.emulator, 3, 900)
    for name, image_ in parts.whole.images.items():
        sizes = [len(rest.images[name].values) for rest in parts.rests]
        assert [len(image_.values) - n for n in sizes] == np.bincount(parts.parts[name]).tolist()
        assert len(image_.values) <= 900 and sum(len(r.images[name].reweighting.records) for r in parts.rests) == 2 * len(image_.slow)
        for f, rest in enumerate(parts.rests):
            assert np.array_equal(rest.images[name].values, image_.values[parts.parts[name] != f])
            rest.images[name].reweighting.check()
    with pytest.raises(CheckError, match="cannot be left out in 400 parts"):
        divide(result.emulator, 400)


def test_same_seed_same_ranks(result, local):
    again = calibrate(result, datasets=300)
    other = calibrate(result, datasets=50, seed=9)
    assert again.scope == "local" and np.array_equal(again["P1", "independent"].truth.shape, local["P1", "independent"].truth.shape)
    assert np.array_equal(held_out(result, datasets=300)["P1", "calibrated"].pit, local["P1", "calibrated"].pit)
    assert not np.array_equal(other["P1", "calibrated"].pit[:10], local["P1", "calibrated"].pit[:10])


def test_unknown_sources_are_refused(result):
    with pytest.raises(InputError, match="source 'posterior' is unknown"):
        calibrate(result, source="posterior")
    with pytest.raises(InputError, match="0 data sets"):
        calibrate(result, datasets=0)


# ---------------------------------------------------------------------- kept, printed, drawn


def test_a_calibration_is_kept_with_what_made_it(local, tmp_path):
    again = load(save(local, tmp_path / "calibration.nc"))
    assert str(again) == str(local) and again.seed == local.seed and again.settings == local.settings
    row = again["P1", "calibrated"]
    assert np.array_equal(row.pit, local["P1", "calibrated"].pit) and row.names == ("w1",)
    assert list(tmp_path.iterdir()) == [tmp_path / "calibration.nc"]
    (tmp_path / "broken.nc").write_text("nothing")
    for place in ("broken.nc", "absent.nc"):
        with pytest.raises(InputError, match="no calibration that can be read"):
            load(tmp_path / place)


def test_flags_leave_data_sets_out_and_are_kept(tmp_path):
    row = toy()
    flags = {"slow chains": np.arange(len(row.truth)) % 4 == 0}
    flagged = Ranked("toy", "calibrated", ("w",), row.truth, row.mean, row.sd, row.pit, row.bound, row.effective, flags)
    assert flagged.datasets == 300 and flagged.flagged == 0.25 and len(flagged.ranks("w")) == 300
    again = load(save(Calibration((flagged,), "simulated", "prior", 1), tmp_path / "c.nc"))
    assert np.array_equal(again["toy", "calibrated"].flags["slow chains"], flags["slow chains"])
    assert "left out: slow chains 25.0 %" in str(again)


def test_the_summary_says_what_the_schema_asks_for(local):
    found = json.loads(json.dumps(local.summary()))
    numbers = found["P1"]["w1"]
    assert {"coverage_50", "coverage_90", "datasets"} <= set(numbers) and numbers["likelihood"] == "calibrated"
    assert numbers["independent"]["coverage_90"] < numbers["coverage_90"]


def test_words_and_figure(local):
    text = str(local)
    assert "Calibrated likelihood: ranks are uniform" in text and "too sure for P1 w1" in text
    figure = plots.rank_bands(local)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["P1 · w1", "P1 · log likelihood"]
    assert len(figure.axes[0].lines) == 3
    with pytest.raises(InputError, match="no calibration of P9"):
        plots.rank_bands(local, "P9")
    section = collected(local)
    assert len(section["rows"]) == 4 and section["figure"]["source"].startswith("data:image/svg")
    assert collected(None) is None
    with pytest.raises(InputError, match="no calibration of"):
        local["P1", "exact"]
    with pytest.raises(InputError, match="P1 has no 'w9'"):
        local["P1", "calibrated"].ranks("w9")


# ---------------------------------------------------------------------- the command


@pytest.mark.parametrize(("width", "code"), [(1.0, 0), (0.4, 1)])
def test_the_command_fails_where_the_posteriors_do(monkeypatch, tmp_path, width, code):
    found = Calibration((toy(width),), "held-out", "local", 1)
    asked = {}

    def calibrated(study, out, **given):
        asked.update(given, out=out, name=study.file.study.name)
        return found

    monkeypatch.setattr("bayesatoms.results.calibrate_study", calibrated)
    (tmp_path / "study.toml").write_text('[study]\nname = "x"\nseed = 1\nmodels = "mos2_res2"\n')
    done = CliRunner().invoke(cli.app, ["calibrate", str(tmp_path), "--datasets", "50", "--quiet", "--workers", "1"])
    assert (done.exit_code == 0) is (code == 0) and "Checked where the posterior is." in done.output
    assert (code == 1) is isinstance(done.exception, CheckError)
    assert asked["out"] == tmp_path and asked["datasets"] == 50 and asked["source"] == "held-out"


def test_environments_of_the_images_are_what_the_statistic_needs():
    """Two shells of neighbours work as one does."""
    two = Environments(Lattice.square(), SPECIES, 2)
    h = Hamiltonian("P2", Pair("A", "B", shell=2, name="w2", prior=dist.Normal(0, 0.3)), lattice=two.lattice, species=SPECIES)
    seen = Observation.from_labels(generator("square").integers(0, 2, (12, 12)), two.lattice, SPECIES, name="s", environments=two)
    row = calibrate_prior(h, seen, seed=1, datasets=16, likelihoods=["calibrated"], effort=Effort(samples=40, rounds=1))["P2", "calibrated"]
    assert row.pit.shape == (16, 2) and row.datasets > 8
