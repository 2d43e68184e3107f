"""Likelihoods and emulators: one density in numpy and jax, finite gradients, the smooth emulator against the pool."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from bayesatoms.errors import CheckError, InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference.campaign import KINDS, Campaign, Settings
from bayesatoms.inference.densities import log_likelihoods, log_prior
from bayesatoms.inference.likelihood import CalibratedDistance, IndependentDistance
from bayesatoms.inference.moments import Moments, normal_log_density
from bayesatoms.inference.quasi import NODES, from_origin, natural
from bayesatoms.inference.smooth import SmoothEmulator
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation

LATTICE = Lattice.triangular(0.316)
MODEL = Hamiltonian(
    "P2", Pair("A", "B", prior=dist.Normal(0, 1)), Pair("A", "B", shell=2, prior=dist.Normal(0, 0.5)), lattice=LATTICE, species=("A", "B")
)


@pytest.fixture(scope="module")
def campaign():
    numpyro.enable_x64()
    rng = np.random.default_rng(3)
    images = [
        Observation.from_labels((rng.random((20, 21)) < x).astype(int), LATTICE, MODEL.species, name=f"x{x}", label_error=error)
        for x, error in ((0.3, None), (0.5, [[0.97, 0.03], [0.02, 0.98]]))
    ]
    found = Campaign.prepare(
        [MODEL], images, seed=1, pool=Pool(), settings=Settings(points=6, samples=160), workers=1, report=lambda *_: None
    )  # fmt: skip
    found.regions = found.run()
    return found


def test_conditional_density_is_joint_over_marginal():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4))
    cov, mean, value = a @ a.T + np.eye(4), rng.normal(size=4), rng.normal(size=4)
    joint = stats.multivariate_normal(mean, cov).logpdf(value)
    for given in range(4):
        marginal = stats.multivariate_normal(mean[:given], cov[:given, :given]).logpdf(value[:given]) if given else 0.0
        assert normal_log_density(value, mean, np.linalg.cholesky(cov), given) == pytest.approx(joint - marginal, abs=1e-10)


def test_numpy_and_numpyro_say_the_same(campaign):
    smooth, images = campaign.regions[0].smooth, campaign.observations
    w = campaign.regions[0].draws[:5]
    for kind, law in zip(KINDS, (CalibratedDistance, IndependentDistance), strict=True):
        expected = log_likelihoods(smooth, images, kind, w)
        for row, couplings in zip(expected, w, strict=True):
            named = dict(zip(MODEL.names, couplings, strict=True))
            values = [smooth.statistic(o) if kind == "calibrated" else o.histogram for o in images]
            one = [float(law(smooth, o, named).log_prob(v)) for o, v in zip(images, values, strict=True)]
            stacked = law(smooth, images, named).log_prob(np.stack(values))
            assert one == pytest.approx(row, abs=1e-9)
            assert np.asarray(stacked) == pytest.approx(row, abs=1e-9)


def test_counts_of_rare_clusters_have_their_exact_likelihood():
    """Two correlated Poisson counts of small means, an exponential family: exact at any point, where the Normal density is off."""
    mu = np.array([0.6, 0.3, 0.1])  # of three independent counts, the statistic being a + c and b + 2 c

    def moments(w):
        m = mu * np.exp(-np.array([w[0], w[1], w[0] + 2 * w[1]]))
        mean, cross = np.array([m[0] + m[2], m[1] + 2 * m[2]]), 2 * m[2]
        return mean, np.linalg.cholesky(np.array([[m[0] + m[2], cross], [cross, m[1] + 4 * m[2]]])), m

    w, off = np.array([0.9, -0.5]), []
    along = [moments(place * w) for place in NODES]
    ratio = natural(Moments(np.array([a[0] for a in along]), np.array([a[1] for a in along]), None), 0)
    for t in ([0, 0], [1, 0], [2, 3]):
        exact = -w @ t - (moments(w)[2].sum() - mu.sum())
        assert ratio(np.array(t, dtype=float)) == pytest.approx(exact, abs=1e-5)
        normal = [normal_log_density(np.array(t, dtype=float), m, lower, 0) for m, lower, _ in (along[-1], along[0])]
        off.append(normal[0] - normal[1] - exact)
    assert np.abs(off).max() > 0.3


@pytest.mark.parametrize("law", [CalibratedDistance, IndependentDistance])
def test_gradients_against_finite_differences(campaign, law):
    """Of both emulators, in float64: central differences at 1e-4 are good to about 1e-6 relative."""
    image = campaign.observations[1]
    for emulator in (campaign.emulator, campaign.regions[0].smooth):
        value = emulator.statistic(image) if law is CalibratedDistance else image.histogram

        def density(w, emulator=emulator, value=value):
            return law(emulator, image, dict(zip(MODEL.names, w, strict=True))).log_prob(jnp.asarray(value))

        w = jnp.asarray(campaign.regions[0].centre)
        gradient = np.asarray(jax.grad(density)(w))
        numeric = [(density(w + 1e-4 * e) - density(w - 1e-4 * e)) / 2e-4 for e in np.eye(2)]
        assert gradient == pytest.approx(np.array(numeric), rel=1e-4, abs=1e-3)


def test_smooth_emulator_follows_the_pool(campaign):
    """Over the posterior its log likelihood is within a tenth; far outside, the leash keeps everything finite."""
    region = campaign.regions[0]
    w = region.draws[:200]
    exact = np.zeros(len(w))
    for o in campaign.observations:
        # straight from the random alloy to each point: another path than the polynomials' own
        batch, value = campaign.emulator.images[o.name].batch, campaign.emulator.statistic(o)
        exact += from_origin(batch, np.zeros(2), w @ campaign.emulator.embed(MODEL), campaign.emulator.n_composition(o))(value)
    apart = exact - log_likelihoods(region.smooth, campaign.observations, "calibrated", w).sum(axis=1)
    assert apart.std() < 0.1
    far = region.centre + 50 * np.eye(2)
    assert np.isfinite(log_likelihoods(region.smooth, campaign.observations, "calibrated", far)).all()
    assert (region.smooth.leash(far) < -100).all() and (region.smooth.leash(w[:5]) <= 0).all()


def test_batch_and_single_moments_agree(campaign):
    image = campaign.emulator.images["x0.5"]
    w = campaign.regions[0].draws[:3]
    many, support = image.batch(w)
    for i, couplings in enumerate(w):
        one = image.moments(couplings)
        for a, b in zip(one, many, strict=True):
            assert a == pytest.approx(b[i], abs=1e-9)
        weights = image.reweighting.weights(couplings)
        assert support[i] == pytest.approx(1 / (weights**2).sum() / image.reweighting.records.mean())


def test_support_is_refused_where_the_pool_says_nothing(campaign):
    campaign.emulator.check_support({"w1": 0.0, "w2": 0.0})
    with pytest.raises(CheckError, match="the pool has no support at"):
        campaign.emulator.check_support({"w1": 2.0, "w2": -1.0})
    with pytest.raises(CheckError, match="points of the region have support"):
        SmoothEmulator.fit(campaign.emulator, MODEL, np.array([2.0, -1.0]), 1e-3 * np.eye(2), np.random.default_rng(0))


def test_records_that_all_show_the_same_are_no_support(campaign):
    """Of a rare species: what does not vary has no covariance, and the emulator must say so instead of failing."""
    image = campaign.emulator.images["x0.5"]
    flat, (i, j) = image.table.copy(), np.triu_indices(len(image.offset))
    flat[:, 0] = 0.0
    flat[:, len(image.offset) :][:, : len(i)][:, (i == 0) | (j == 0)] = 0.0
    w = campaign.regions[0].draws[:3]
    moments, support = replace(image, table=flat).batch(w)
    assert (support == 0).all() and np.isfinite(moments.lower).all()
    assert (image.batch(w)[1] > 0).all()


def test_samples_of_the_calibrated_law_have_its_moments(campaign):
    law = CalibratedDistance(campaign.emulator, campaign.observations, {"w1": 0.1, "w2": 0.0})
    draws = np.asarray(law.sample(jax.random.key(0), (20000,)))
    lower = np.asarray(law.lower)
    z = (draws.mean(axis=0) - law.mean_) / np.sqrt(np.einsum("nij,nij->ni", lower, lower) / 20000)
    assert np.abs(z).max() < 4.5  # six comparisons: false-alarm rate 4e-5
    assert np.cov(draws[:, 0].T) == pytest.approx(lower[0] @ lower[0].T, rel=0.1, abs=1e-9)


def test_prior_scaling_is_a_density():
    """Widening a prior by s divides its density at zero by s and keeps its integral."""
    grid = np.linspace(-12, 12, 4001)
    one = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), lattice=LATTICE, species=("A", "B"))
    for scale in (0.5, 1.0, 2.0):
        density = np.exp(log_prior(one, grid[:, None], scale))
        assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)
        assert density[2000] == pytest.approx(0.39894228 / scale, rel=1e-4)
    off = Hamiltonian("O", Pair("A", "B", prior=dist.Normal(-1.0, 0.1)), lattice=LATTICE, species=("A", "B"))
    assert grid[np.argmax(log_prior(off, grid[:, None], 0.5))] == pytest.approx(-1.0, abs=0.01)  # widened about its own middle
    bounded = Hamiltonian("B", Pair("A", "B", prior=dist.Uniform(0, 1)), lattice=LATTICE, species=("A", "B"))
    assert log_prior(bounded, np.array([[0.5], [-0.1]])).tolist() == [0.0, -np.inf]
    with pytest.raises(InputError, match="coupling w1 has no prior"):
        log_prior(Hamiltonian("N", Pair("A", "B"), lattice=LATTICE, species=("A", "B")), grid[:, None])
