"""Images left out: p-values and coverage on synthetic truth, densities by direct integration, controls that must fail."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from types import SimpleNamespace
from unittest import mock

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import generator
from scipy import stats
from scipy.special import logsumexp

from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference import posterior
from bayesatoms.inference.campaign import Campaign, Settings
from bayesatoms.inference.densities import explore, log_likelihoods, log_prior, pool_log_likelihoods
from bayesatoms.inference.distance import distance
from bayesatoms.inference.fresh import synthetic
from bayesatoms.inference.left_out import LEVELS, leave_one_image_out, predictive_check
from bayesatoms.inference.parameters import Nuisances, Parameters
from bayesatoms.inference.posterior import Fit, Result, infer
from bayesatoms.inference.sampling import Posterior
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation

METAL = Lattice.triangular(0.316)
ALLOY = {"lattice": METAL, "species": ("A", "B")}
R = Hamiltonian("R", **ALLOY)
P1 = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0.1, 0.1)), **ALLOY)
SMALL, LARGE = 0, 1  # the images, in order
QUICK = Settings(points=4, samples=160, draws=500)
SETS = 80
ALARM = 1e-3  # of each test of uniformity


def drawn(kind, log_likelihood, draws) -> Posterior:
    """A posterior from its draws (n, k), without NUTS."""
    k = draws.shape[1]
    return Posterior(
        kind, P1.names[:k], draws[None], np.broadcast_to(log_likelihood, (1, len(draws), len(log_likelihood))), np.ones(k), np.ones(k), {}
    )


def analysed(emulator, observations) -> Result:
    """A result of these images on a pool that covers the prior; its posterior, the place to start from, is the prior."""
    images = {o.name: dataclasses.replace(emulator.images[o.name], observation=o) for o in observations}
    emulator = dataclasses.replace(emulator, images=images)
    prior = generator("prior draws").normal(0.1, 0.1, (400, 1))
    likelihoods = {"R": [float(emulator.log_origin(o)) for o in observations], "P1": [0.0, 0.0]}
    fits = {
        m.name: Fit(m, "calibrated", {"calibrated": drawn("calibrated", likelihoods[m.name], d)}, {}, np.zeros(0), {}, at)
        for m, d, at in ((R, prior[:, :0], Parameters.of(R, observations)), (P1, prior, Parameters.of(P1, observations)))
    }
    return Result(fits, observations, emulator, emulator.declared, QUICK, 1, "calibrated", [], {})


@cache
def scene() -> SimpleNamespace:
    """A window of 144 environments and one of 784, a pool of chains over the prior, and data sets with truths from the prior."""
    numpyro.enable_x64()
    rng = generator("left out")
    blocks = [(rng.random((side, side)) < 0.4).astype(int) for side in (14, 30)]
    images = [Observation.from_labels(b, METAL, ("A", "B"), name=n) for b, n in zip(blocks, ("small", "large"), strict=True)]
    campaign = Campaign.prepare([R, P1], images, seed=1, pool=Pool(), settings=QUICK, workers=1, report=lambda *_: None)
    emulator = campaign.simulate(np.linspace(-0.35, 0.5, 24)[:, None])
    truths, sets = synthetic([P1], images, "P1", seed=2, datasets=SETS)
    return SimpleNamespace(emulator=emulator, truths=truths[:, 0], sets=sets, results=[analysed(emulator, s) for s in sets])


@cache
def tables():
    """Every data set's table."""
    return [leave_one_image_out(r, seed=i, draws=150, replicates=4) for i, r in enumerate(scene().results)]


def p_values(model, image):
    return np.array([t[model, image].shown.p_value for t in tables()])


# ---------------------------------------------------------------------- calibration


@pytest.mark.parametrize("image", ["small", "large"])
def test_p_values_are_uniform_under_the_right_model(image):
    """Truths from the prior, fresh images: Kolmogorov-Smirnov, false alarm 1 in 1,000 each."""
    assert not any(t.warnings or t.chains for t in tables())
    assert stats.kstest(p_values("P1", image), "uniform").pvalue > ALARM


def test_p_values_of_a_wrong_model_are_not():
    """Negative control: the same images without an interaction."""
    assert stats.kstest(p_values("R", "large"), "uniform").pvalue < ALARM


def test_a_posterior_far_too_narrow_is_noticed():
    """Negative control: the large image predicted at the mean of the small one's posterior, as if that were sure."""
    found = []
    for i, (result, table) in enumerate(zip(scene().results, tables(), strict=True)):
        o = result.observations[LARGE]
        at = np.broadcast_to(table["P1", "large"].mean @ result.emulator.embed(P1), (1, 1))
        found.append(predictive_check(result.emulator.images["large"], o, at, np.random.default_rng(i), 600).p_value)
    assert stats.kstest(found, "uniform").pvalue < ALARM
    assert np.mean(found) < p_values("P1", "large").mean()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("image", ["small", "large"])
def test_predictive_intervals_hold_what_they_promise(image, level):
    """Mean share of classes inside, over the data sets: within 4 standard errors of the level, false alarm 6e-5 each."""
    inside = np.array([t["P1", image].shown.coverage[level] for t in tables()])
    assert abs(inside.mean() - level) < 4 * inside.std(ddof=1) / np.sqrt(SETS)
    assert all(t["P1", image].shown.classes > 3 for t in tables())


def test_intervals_of_a_wrong_model_hold_less():
    """Negative control of the one above."""
    inside = np.array([t["R", "large"].shown.coverage[0.9] for t in tables()])
    assert inside.mean() < 0.9 - 4 * inside.std(ddof=1) / np.sqrt(SETS)


def test_the_right_model_predicts_best():
    """Gain in log density of P1 over R, summed over images: positive on average by 4 standard errors, false alarm 3e-5."""
    gain = np.array([t.log_density["P1"] - t.log_density["R"] for t in tables()])
    assert gain.mean() > 4 * gain.std(ddof=1) / np.sqrt(SETS)


# ---------------------------------------------------------------------- against direct answers


@pytest.mark.parametrize("number", range(3))
def test_posterior_and_density_are_those_of_a_grid(number):
    """The posterior of the small image alone, and the large one's density under it, by sums over a grid straight on the pool."""
    result, row = scene().results[number], tables()[number]["P1", "large"]
    grid = np.linspace(-0.3, 0.45, 301)[:, None]
    values = pool_log_likelihoods(result.emulator, result.observations, "calibrated", grid)
    weight = values[:, SMALL] + log_prior(P1, grid)
    weight = np.exp(weight - logsumexp(weight))
    mean = weight @ grid[:, 0]
    sd = np.sqrt(weight @ (grid[:, 0] - mean) ** 2)
    # 3,000 draws: 0.02 and 0.013 standard deviations of error, some more as they are drawn with repetition
    assert row.mean[0] == pytest.approx(mean, abs=0.1 * sd) and row.sd[0] == pytest.approx(sd, rel=0.1)
    exact = logsumexp(np.log(weight) + values[:, LARGE])
    assert row.log_density == pytest.approx(exact, abs=4 * row.log_density_error + 0.05)


def test_what_is_predicted_has_not_been_seen():
    """Other counts in the left-out image change the verdict about it, and nothing of the prediction."""
    result, table = scene().results[0], tables()[0]
    small, large = result.observations
    shuffled = dataclasses.replace(large, counts=scene().sets[1][LARGE].counts)
    again = leave_one_image_out(analysed(scene().emulator, [small, shuffled]), seed=0, draws=150, replicates=4)
    assert np.array_equal(again["P1", "large"].mean, table["P1", "large"].mean)
    assert np.array_equal(again["P1", "large"].sd, table["P1", "large"].sd)
    assert again["P1", "large"].shown.distance != table["P1", "large"].shown.distance
    assert not np.array_equal(again["P1", "small"].mean, table["P1", "small"].mean)


def test_random_alloy_is_predicted_exactly():
    result, table = scene().results[0], tables()[0]
    for o in result.observations:
        row, exact = table["R", o.name], o.environments.random_distribution(o.composition)
        assert np.allclose(row.shown.histogram, exact, atol=1e-14)
        assert row.shown.distance == pytest.approx(float(distance(o.histogram, exact)), abs=1e-12)
        assert row.log_density == pytest.approx(float(result.emulator.log_origin(o)), abs=1e-12) and row.log_density_error == 0


def test_p_value_is_never_zero_and_small_for_what_cannot_be():
    """An image of clusters alone lies beyond all of 400 replicates: p is 1 / 401. Those of a chain near zero coupling lie
    among them: the mean of 40 p-values is one half within 4 standard errors, false alarm 6e-5."""
    result = scene().results[0]
    o = result.observations[LARGE]
    image, at = result.emulator.images["large"], np.array([[0.0]])
    split = Observation.from_labels((np.arange(900) < 360).astype(int).reshape(30, 30), METAL, ("A", "B"), name="large")
    found = predictive_check(image, split, at, np.random.default_rng(1), 400)
    assert found.p_value == 1 / 401 and found.distance > 3 * found.expected and found.coverage[0.9] < 0.5
    pool = image.reweighting
    chain = int(np.argmin(np.abs(pool.couplings[:, 0])))
    first = int(pool.records[:chain].sum())
    fair = [dataclasses.replace(o, counts=image.counts[first + i]) for i in range(40)]
    p = [predictive_check(image, f, None, np.random.default_rng(i), 400).p_value for i, f in enumerate(fair)]
    assert pool.records[chain] >= 40 and abs(np.mean(p) - 0.5) < 4 * np.sqrt(1 / 12 / 40)


# ---------------------------------------------------------------------- chains, workers, words


def importance_draws(observations, smooth, kind, seed, settings) -> Posterior:
    """Stands in for NUTS: equally weighted draws of the same posterior, with nothing to compile."""
    draws = explore(smooth, observations, kind, np.random.default_rng(seed), n=1000)
    found = drawn(kind, np.zeros(len(observations)), draws)
    return dataclasses.replace(found, log_likelihood=log_likelihoods(smooth, observations, kind, draws)[None], rhat=np.ones(1))


@pytest.fixture(scope="module")
def inferred():
    """The first data set by `infer`, whose chains lie about the posterior of both images."""
    with mock.patch.object(posterior, "sample", importance_draws):
        return infer([R, P1], scene().sets[0], seed=5, settings=QUICK)


@pytest.fixture(scope="module")
def found(inferred):
    stages = []
    table = leave_one_image_out(inferred, seed=0, progress=lambda *s: stages.append(s))
    return SimpleNamespace(table=table, stages=stages)


def test_chains_are_run_where_the_pool_is_thin(inferred, found):
    """Without the large image the posterior is far wider than the chains: those added reach it, and find it where the wide pool does."""
    table, wide = found.table, tables()[0]
    assert table.chains > 0 and not table.warnings
    assert table["P1", "large"].sd[0] > 1.5 * inferred["P1"].posterior.sd[0]
    for image in ("small", "large"):
        one, other = table["P1", image], wide["P1", image]
        assert one.support > 0.05
        # two pools, each with an error of 0.15 standard deviations at most by the rules of `infer`
        assert abs(one.mean[0] - other.mean[0]) < 0.3 * other.sd[0] and one.sd[0] == pytest.approx(other.sd[0], rel=0.2)
    assert len(inferred.simulated.pool) == inferred.simulation["chains"]  # the result's own pool is left alone


def test_same_numbers_for_any_number_of_workers(inferred, found):
    again = leave_one_image_out(inferred, seed=0, workers=2)
    assert again.plain() == found.table.plain()
    other = leave_one_image_out(inferred, seed=1)
    assert other.plain()["rows"] != found.table.plain()["rows"]


def test_progress_is_told(found):
    assert [s for s in found.stages if s[0] == "leave out"] == [("leave out", i, 4) for i in (1, 2, 3, 4)]


def test_table_is_printed_and_plain(found):
    text, plain = str(found.table), json.loads(json.dumps(found.table.plain()))
    assert text.count("\n") == 5 and "is the greatest" in text and "small" in text and "large" in text
    assert [(r["model"], r["image"]) for r in plain["rows"]] == [("R", "small"), ("R", "large"), ("P1", "small"), ("P1", "large")]
    assert {"distance", "p_value", "coverage_50", "coverage_90", "log_density"} <= set(plain["rows"][0])
    best = max(plain["log_density"], key=plain["log_density"].get)
    assert f"{best} {plain['log_density'][best]:.2f} is the greatest" in text
    with pytest.raises(InputError, match="no prediction of"):
        found.table["P1", "third"]


def test_what_cannot_be_left_out_is_refused():
    result = scene().results[0]
    with pytest.raises(InputError, match="one image, small: without it none is left"):
        leave_one_image_out(dataclasses.replace(result, observations=result.observations[:1]), seed=0)
    with pytest.raises(InputError, match="draws=1"):
        leave_one_image_out(result, seed=0, draws=1)
    own = Parameters.of(P1, result.observations, Nuisances(composition=True))
    fits = {"P1": dataclasses.replace(result["P1"], parameters=own)}
    with pytest.raises(InputError, match="parameters of single images \\(x_B of small, x_B of large\\)"):
        leave_one_image_out(dataclasses.replace(result, fits=fits), seed=0)
