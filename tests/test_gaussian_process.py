"""The Gaussian process against plain linear algebra, known functions, the reweighted pool and NUTS.

Chi-square checks allow ALARM = 1e-4 on each side. The seeds are fixed; every kind has a control that must fail.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import generator
from scipy import stats
from threadpoolctl import threadpool_limits

from bayesatoms.errors import CheckError, InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference.emulator import Emulator, ImageEmulator, Records
from bayesatoms.inference.gaussian_process import ChainMoments, GaussianProcess, ImageProcess
from bayesatoms.inference.likelihood import CalibratedDistance
from bayesatoms.inference.process import Functionals, Rough, ScalarProcess
from bayesatoms.inference.quasi import from_origin
from bayesatoms.inference.statistic import Statistic
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.pool import DesignPoint, Pool
from bayesatoms.observation import Observation
from bayesatoms.window import Operator

ALARM = 1e-4


@pytest.fixture(scope="module", autouse=True)
def double():
    numpyro.enable_x64()
    with threadpool_limits(
        1, user_api="blas"
    ):  # matrices of a hundred rows gain nothing from threads, and lose much where cores are shared
        yield


def wave(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A function of two inputs and its slopes."""
    u = np.exp(-0.3 * x[:, 1])
    value = np.sin(1.5 * x[:, 0]) * u + 0.3 * x[:, 1]
    return value, np.column_stack([1.5 * np.cos(1.5 * x[:, 0]) * u, -0.3 * np.sin(1.5 * x[:, 0]) * u + 0.3])


def measured(rng: np.random.Generator, n: int = 24, noise: float = 0.04, slope_noise: float = 0.1) -> dict:
    """Noisy values and slopes of the wave at random points."""
    x = rng.uniform(-1.5, 1.5, (n, 2))
    errors, (y, slopes) = noise * rng.uniform(0.5, 1.5, n), wave(x)
    return {
        "x": x,
        "y": y + errors * rng.normal(size=n),
        "noise": errors,
        "slopes": slopes + slope_noise * rng.normal(size=(n, 2)),
        "slope_noise": np.full((n, 2), slope_noise),
    }


def inside(total: float, freedom: int) -> bool:
    return bool(ALARM < stats.chi2.sf(total, freedom) < 1 - ALARM)


# ------------------------------------------------------------------ one scalar


def test_covariances_of_slopes_are_slopes_of_covariances():
    rng = generator("functionals")
    kernel = Functionals(1.3, jnp.array([0.7, 1.9]))
    x, y, h = rng.normal(size=2), rng.normal(size=2), 1e-4
    value, steps = np.eye(3)[0], np.eye(2) * h

    def k(x, y):
        return float(kernel.evaluate((x, value), (y, value)))

    assert k(x, y) == pytest.approx(1.3**2 * np.exp(-0.5 * (((x - y) / [0.7, 1.9]) ** 2).sum()), rel=1e-12)
    for i, role in enumerate(np.eye(3)[1:]):
        assert float(kernel.evaluate((x, role), (y, value))) == pytest.approx((k(x + steps[i], y) - k(x - steps[i], y)) / (2 * h), abs=1e-7)
        for j, other in enumerate(np.eye(3)[1:]):
            corners = [[k(x + a * steps[i], y + b * steps[j]) * a * b for a in (1, -1)] for b in (1, -1)]
            assert float(kernel.evaluate((x, role), (y, other))) == pytest.approx(np.sum(corners) / (4 * h * h), abs=1e-6)


def test_predictions_are_those_of_plain_linear_algebra():
    data = measured(generator("algebra"))
    fitted, x = ScalarProcess.fit(**data), generator("places").uniform(-1, 1, (2, 2))
    a, lengths = float(fitted.kernel.amplitude), np.asarray(fitted.kernel.lengths) * fitted.shift[1]

    def k(u, v):
        return (a * fitted.scale[1]) ** 2 * np.exp(-0.5 * (((u[:, None] - v) / lengths) ** 2).sum(axis=2))

    def slope(u, v, j):  # by the j-th input of u
        return -k(u, v) * (u[:, None] - v)[..., j] / lengths[j] ** 2

    def curve(u, v, i, j):
        apart = u[:, None] - v
        return k(u, v) * ((i == j) / lengths[i] ** 2 - apart[..., i] * apart[..., j] / (lengths[i] * lengths[j]) ** 2)

    p, d = data["x"], (0, 1)
    among = np.block([[k(p, p), *(slope(p, p, j).T for j in d)], *([slope(p, p, i), *(curve(p, p, i, j) for j in d)] for i in d)])
    errors = np.concatenate([data["noise"], *data["slope_noise"].T])
    seen = np.concatenate([data["y"] - fitted.scale[0], *data["slopes"].T])
    cross, inverse = np.vstack([k(p, x), *(slope(p, x, j) for j in d)]), np.linalg.inv(among + np.diag(errors**2))
    mean, variance = fitted.predict(x)
    np.testing.assert_allclose(mean, fitted.scale[0] + cross.T @ inverse @ seen, rtol=1e-6)
    np.testing.assert_allclose(variance, k(x, x).diagonal() - np.einsum("nm,nk,km->m", cross, inverse, cross), rtol=1e-5)


def test_held_out_is_a_refit_without_the_point():
    data = measured(generator("left out"))
    fitted = ScalarProcess.fit(**data)
    own = np.asarray(fitted.point) == 3
    root, y = np.asarray(fitted.root), np.asarray(fitted.y)
    covariance = np.linalg.inv(root.T @ root)  # noise included
    inverse, cross = np.linalg.inv(covariance[np.ix_(~own, ~own)]), covariance[~own, 3]
    residual, variance = y[3] - cross @ inverse @ y[~own], covariance[3, 3] - cross @ inverse @ cross
    assert fitted.held_out()[3] == pytest.approx(residual / np.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_errors_are_what_they_are_said_to_be(factor):
    """Residuals of predictions at new places and of held-out points; with errors stated half too small, both checks fail."""
    rng, new, held = generator("errors"), [], []
    for _ in range(20):
        data = measured(rng)
        data = data | {"noise": factor * data["noise"], "slope_noise": factor * data["slope_noise"]}
        fitted, x = ScalarProcess.fit(**data), rng.uniform(-1.2, 1.2, (2, 2))
        mean, variance = fitted.predict(x)
        new.extend((np.asarray(mean) - wave(x)[0]) / np.sqrt(variance))
        held.extend(fitted.held_out())
    assert inside(np.square(new).sum(), len(new)) == (factor == 1)
    assert inside(np.square(held).sum(), len(held)) == (factor == 1)


def test_slopes_are_worth_much():
    """The predictive variance in the middle falls to under a half where slopes are known as well as the values."""
    data, x = measured(generator("worth"), slope_noise=0.03), np.array([[0.3, 0.2], [-0.5, 0.4]])
    bare = {key: data[key] for key in ("x", "y", "noise")}
    assert (ScalarProcess.fit(**data).predict(x)[1] < 0.5 * ScalarProcess.fit(**bare).predict(x)[1]).all()


@pytest.mark.parametrize("smooth", [False, True])
def test_a_map_with_a_kink(smooth):
    """An order that sets in along a line of composition and temperature: the rough kernel's errors hold, the smooth one's do not."""
    rng, z = generator("kink"), []
    for _ in range(20):
        x = rng.uniform((0.1, 1.0), (0.9, 3.0), (24, 2))
        order, errors = np.maximum(8 * x[:, 0] * (1 - x[:, 0]) - x[:, 1] + 0.3, 0) / 2, np.full(24, 0.005)
        fitted = ScalarProcess.fit(x, order + errors * rng.normal(size=24), errors, smooth=smooth)
        assert isinstance(fitted.kernel, Functionals if smooth else Rough)
        z.extend(fitted.held_out())
    assert (stats.chi2.sf(np.square(z).sum(), len(z)) > ALARM) == (not smooth)


def test_refusals():
    data = measured(generator("refused"), n=6)
    bad = {
        "shapes": {"noise": data["noise"][:3]},
        "not finite": {"y": data["y"] * np.nan},
        "not positive": {"noise": np.zeros(6)},
        "rough": {"smooth": False},
        "at least 3": {key: value[:2] for key, value in data.items()},
    }
    for match, change in bad.items():
        with pytest.raises(InputError, match=match):
            ScalarProcess.fit(**data | change)


# ------------------------------------------------------------------ the emulator

MODEL = Hamiltonian(
    "P2",
    Pair("A", "B", prior=dist.Normal(0, 1)),
    Pair("A", "B", shell=2, prior=dist.Normal(0, 0.5)),
    lattice=Lattice.triangular(0.316),
    species=("A", "B"),
)


@dataclass(frozen=True)
class Pooled:
    """An image, its reweighted pool, and draws of the posterior by importance sampling from it."""

    image: Observation
    emulator: Emulator
    centre: np.ndarray
    draws: np.ndarray


def log_posterior(image: Observation, batch, emulator, couplings: np.ndarray) -> np.ndarray:
    likelihood = from_origin(batch, np.zeros(2), couplings, emulator.n_composition(image))(emulator.statistic(image))
    return likelihood + stats.norm(0, [1, 0.5]).logpdf(couplings).sum(axis=1)


@pytest.fixture(scope="module")
def pooled() -> Pooled:
    rng = generator("alloy")
    image = Observation.from_labels((rng.random((20, 21)) < 0.4).astype(int), MODEL.lattice, MODEL.species, name="alloy")
    statistic = Statistic.of_terms(image.environments, dict(zip(MODEL.names, MODEL.orbits, strict=True)))
    supercell, atoms = image.window.box(image.environments, image.true_composition)
    compiled, operator = MODEL.compile(supercell), Operator(image.environments, image.window, supercell)
    design = 0.22 * (
        2 * stats.qmc.Sobol(2, rng=rng).random(32)[:24] - 1
    )  # even: no chain lies far out, where only extrapolation predicts it
    points = [DesignPoint(compiled, w, atoms, samples=160, sweeps=2.0, burn=100.0, seed=1) for w in design]
    records = [Records.of(chain, operator, rng) for chain in Pool().run(points)]
    emulator = Emulator(MODEL.names, {"alloy": ImageEmulator.build(image, statistic, records)}, statistic)
    centre, root = np.zeros(2), 0.08 * np.eye(2)
    for _ in range(4):
        w = centre + 1.3 * rng.normal(size=(2000, 2)) @ root.T
        proposal = -0.5 * (np.linalg.solve(1.3 * root, (w - centre).T) ** 2).sum(axis=0)
        support = emulator.images["alloy"].batch(w)[1]
        weight = np.where(support > 0.2, log_posterior(image, emulator.images["alloy"].batch, emulator, w) - proposal, -np.inf)
        weight = np.exp(weight - weight.max())
        weight /= weight.sum()
        centre = weight @ w
        root = np.linalg.cholesky(((w - centre) * weight[:, None]).T @ (w - centre))
    assert 1 / (weight**2).sum() > 1000
    return Pooled(image, emulator, centre, w[rng.choice(2000, size=2000, p=weight)])


@pytest.fixture(scope="module")
def gp(pooled):
    return GaussianProcess.fit(pooled.emulator)


def test_it_says_what_the_reweighted_pool_says(pooled, gp):
    """Two estimates from the same chains: they differ by less than their two errors, means and widths by 3 at most anywhere."""
    image, w = pooled.emulator.images["alloy"], pooled.draws
    pool, (own, support) = image.batch(w)[0], gp.batch("alloy", w)
    errors = np.sqrt(1 / (support * image.reweighting.records.mean()) + 1 / image.reweighting.effective_records(w))
    z = np.linalg.solve(gp.images["alloy"].root, (own.mean - pool.mean).T) / errors
    assert np.sqrt(np.mean(z**2)) < 1 and np.abs(z).max() < 3
    widths = np.diagonal(own.lower, axis1=1, axis2=2) / np.diagonal(pool.lower, axis1=1, axis2=2)
    # the logarithm of a width from n records is known to 1 / sqrt(2 n)
    z = np.log(widths).T / (errors / np.sqrt(2))
    assert np.sqrt(np.mean(z**2)) < 1 and np.abs(z).max() < 3
    spread = image.table[:, -own.histogram.shape[1] :].std(axis=0)
    assert np.sqrt(np.mean(((own.histogram - pool.histogram) / (spread * errors[:, None])) ** 2)) < 1
    np.testing.assert_allclose(own.histogram.sum(axis=1), 1)


def test_posterior_is_that_of_the_reweighted_pool(pooled, gp):
    """Draws reweighted from one emulator's likelihood to the other's: mean and width within 0.15 standard deviations."""
    draws, image = pooled.draws, pooled.image
    weight = log_posterior(image, partial(gp.batch, "alloy"), gp, draws)
    weight = np.exp(weight - log_posterior(image, pooled.emulator.images["alloy"].batch, pooled.emulator, draws))
    weight /= weight.sum()
    assert 1 / (weight**2).sum() > 0.5 * len(draws)
    mean, sd = weight @ draws, draws.std(axis=0)
    assert np.abs((mean - draws.mean(axis=0)) / sd).max() < 0.15
    assert np.abs(np.sqrt(weight @ (draws - mean) ** 2) / sd - 1).max() < 0.15


def test_it_is_differentiable_inside_the_likelihood(pooled, gp):
    image, centre = pooled.image, pooled.centre

    @jax.jit
    @jax.value_and_grad
    def density(w):
        return CalibratedDistance(gp, image, dict(zip(MODEL.names, w, strict=True))).log_prob(gp.statistic(image))

    (value, slope), h = density(jnp.asarray(centre)), 1e-4
    for a, step in enumerate(h * np.eye(2)):
        assert float(slope[a]) == pytest.approx(float(density(centre + step)[0] - density(centre - step)[0]) / (2 * h), rel=1e-5, abs=1e-5)
    there = jnp.asarray(pooled.emulator.images["alloy"].reweighting.couplings[0])  # the distance to a chain has no slope at the chain
    assert np.isfinite(density(there)[1]).all()
    w = dict(zip(MODEL.names, centre, strict=True))
    alone, batch = gp.moments(image, w), gp.batch("alloy", centre[None])[0]
    np.testing.assert_allclose(alone.mean, batch.mean[0])
    ratio = from_origin(partial(gp.batch, "alloy"), np.zeros(2), centre[None], gp.n_composition(image))(gp.statistic(image))
    assert float(value) == pytest.approx(float(gp.log_origin(image) + ratio[0]), rel=1e-9)
    stacked = gp.moments([image, image], w)
    np.testing.assert_allclose(stacked.mean, [alone.mean, alone.mean])
    assert gp.statistic([image, image]).shape == stacked.mean.shape and gp.n_composition([image]) == gp.n_composition(image)


def test_its_own_error_is_in_the_likelihood(pooled, gp):
    """The covariance grows by the emulator's own variance, for images that share its chains by so many of them."""
    image, w = gp.images["alloy"], jnp.asarray(pooled.centre[None])
    found = []
    for shared in (0.0, 1.0, 8.0):
        moments, support = replace(image, shared=shared)(w)
        whitened = np.linalg.solve(image.root, np.asarray(moments.lower[0]))
        found.append(whitened @ whitened.T)
    own = np.diag(found[1] - found[0])
    assert (own > 0).all() and own.max() == pytest.approx(1 / (float(support[0]) * image.records), rel=1e-6)
    np.testing.assert_allclose(found[2] - found[0], 8 * np.diag(own), atol=1e-9)


def test_support_ends_where_the_chains_end(pooled, gp):
    centre = dict(zip(MODEL.names, pooled.centre, strict=True))
    gp.check_support(centre)
    assert gp.support(centre) > 1
    for away in (0.8, -3.0):
        with pytest.raises(CheckError, match="no support"):
            gp.check_support({**centre, "w1": centre["w1"] + away})
    assert gp.leash(centre) == 0
    assert gp.leash({**centre, "w1": 3.0}) < -12.5 < gp.leash({**centre, "w1": 0.3}) <= 0
    with pytest.raises(InputError, match="was not emulated"):
        gp.batch("another", np.zeros((1, 2)))


def test_a_chain_that_lies_is_found_out(pooled, gp):
    """Held-out residuals of the pool pass; with one chain's mean six errors off they do not, and it is named."""
    assert set(gp.check()) == {"alloy"}
    chains = ChainMoments.of(pooled.emulator.images["alloy"])
    k = int(np.argmin(((chains.couplings - pooled.centre) ** 2).sum(axis=1)))
    shifted = chains.mean.copy()
    shifted[k] += 6 * chains.mean_error[k]
    wrong = replace(gp, images={"alloy": ImageProcess.fit(replace(chains, mean=shifted))})
    with pytest.raises(CheckError, match="not equilibrated") as error:
        wrong.check()
    assert str(chains.couplings[k].round(4).tolist()) in str(error.value)


def test_too_few_chains_are_refused(pooled):
    image = pooled.emulator.images["alloy"]
    slow = replace(image, slow=np.arange(len(image.slow)) > 2)
    with pytest.raises(CheckError, match="at least 4"):
        ChainMoments.of(slow)


@pytest.mark.slow
def test_nuts_on_the_process_finds_the_posterior_of_the_pool(pooled, gp):
    """4000 draws each: the means of two samplers of one law differ by 0.15 standard deviations in under 1e-4 of cases."""
    from numpyro.infer import MCMC, NUTS, init_to_value

    image, found = pooled.image, {}
    values = dict(zip(MODEL.names, pooled.centre, strict=True))
    for name, emulator in (("gp", gp), ("pool", pooled.emulator)):

        def model(emulator=emulator):
            w = MODEL.sample()
            numpyro.sample("t", CalibratedDistance(emulator, image, w), obs=emulator.statistic(image))
            numpyro.factor("leash", gp.leash(w))

        kernel = NUTS(model, init_strategy=init_to_value(values=values), dense_mass=True, target_accept_prob=0.9)
        mcmc = MCMC(kernel, num_warmup=400, num_samples=4000, progress_bar=False)
        mcmc.run(jax.random.key(1), extra_fields=("diverging",))
        assert np.mean(mcmc.get_extra_fields()["diverging"]) < 0.002, name
        found[name] = np.stack([np.asarray(mcmc.get_samples()[n]) for n in MODEL.names], axis=1)
    sd = found["pool"].std(axis=0)
    assert np.abs((found["gp"].mean(axis=0) - found["pool"].mean(axis=0)) / sd).max() < 0.15
    assert np.abs(found["gp"].std(axis=0) / sd - 1).max() < 0.15
