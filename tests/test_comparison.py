"""Comparison: every criterion against an exact answer, an enumeration, another program, or a control that must fail."""

from __future__ import annotations

import dataclasses
from functools import cache
from types import SimpleNamespace
from unittest import mock

import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import generator
from scipy import stats
from scipy.special import logsumexp

from bayesatoms.configuration import Configuration
from bayesatoms.environments import Environments
from bayesatoms.hamiltonian import Cluster, Hamiltonian, Pair
from bayesatoms.inference import pointwise, posterior
from bayesatoms.inference.campaign import Campaign, Settings
from bayesatoms.inference.comparison import Row, compare, likelihood_check, nesting
from bayesatoms.inference.criteria import Greatest, judged, waic
from bayesatoms.inference.densities import explore, log_likelihoods, log_prior, pool_log_likelihoods
from bayesatoms.inference.distance import squared_distance
from bayesatoms.inference.evidence import evidence, quadrature, sequential
from bayesatoms.inference.heterogeneity import heterogeneity, score_test
from bayesatoms.inference.jackknife import evidence_noise, left_out
from bayesatoms.inference.misfit import groups, laplace_shifts, misfit, residual
from bayesatoms.inference.penalty import penalty
from bayesatoms.inference.pointwise import atoms, consistency, difference, image_loo, stacking_weights
from bayesatoms.inference.posterior import infer
from bayesatoms.inference.priors import induced_widths, mismatched
from bayesatoms.inference.sampling import Posterior
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chain
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation

METAL = Lattice.triangular(0.316)
ALLOY = {"lattice": METAL, "species": ("A", "B")}
R = Hamiltonian("R", **ALLOY)
P1 = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 0.5)), **ALLOY)
P2 = Hamiltonian("P2", Pair("A", "B", prior=dist.Normal(0, 0.5)), Pair("A", "B", shell=2, prior=dist.Normal(0, 0.5)), **ALLOY)
QUICK = Settings(points=4, samples=160, draws=500)


def crystal(rng, couplings, model=P2, x=0.4, side=22, name="image"):
    """A whole periodic crystal sampled at known couplings."""
    start = Configuration.random(METAL, ("A", "B"), (side, side), (1 - x, x), rng)
    seed = np.random.SeedSequence(rng.integers(2**63))
    chain = run_chain(model.compile(start.supercell), couplings, start.flat, samples=1, burn=150, sweeps=1, seed=seed)
    labels = chain.snapshots[0].reshape(side, side).astype(int)
    return Observation.from_labels(labels, METAL, ("A", "B"), periodic=True, name=name)


def importance_draws(observations, smooth, kind, seed, settings) -> Posterior:
    """Stands in for NUTS: equally weighted draws of the same posterior, with nothing to compile."""
    shape = (settings.parallel, settings.draws)
    draws = explore(smooth, observations, kind, np.random.default_rng(seed), n=shape[0] * shape[1]).reshape(*shape, -1)
    likelihoods = log_likelihoods(smooth, observations, kind, draws.reshape(-1, draws.shape[-1])).reshape(*shape, -1)
    k = len(smooth.model.names)
    return Posterior(kind, smooth.model.names, draws, likelihoods, np.ones(k), np.full(k, 1e3), {"diverging": np.zeros(shape, bool)})


def fitted(models, images, seed=1):
    """A result without NUTS: its draws are those of importance sampling on the same emulator."""
    with mock.patch.object(posterior, "sample", importance_draws):
        return infer(models, images, seed=seed, settings=QUICK)


@cache
def scene() -> SimpleNamespace:
    """Three crystals with a clear pair coupling, judged by three models."""
    rng = generator("comparison scene")
    images = [crystal(rng, [0.25, 0.0], name=n) for n in ("one", "two", "three")]
    result = fitted([R, P1, P2], images)
    return SimpleNamespace(result=result, comparison=compare(result))


# ---------------------------------------------------------------------- evidence


@pytest.mark.parametrize("k", [1, 2, 3])
def test_quadrature_is_the_closed_form_of_a_normal_law(k):
    rng = generator(f"quadrature {k}")
    root = np.tril(rng.normal(size=(k, k))) + 2 * np.eye(k)
    centre = rng.normal(size=k)

    def density(w):
        return -0.5 * (np.linalg.solve(root, (w - centre).T) ** 2).sum(axis=0)

    found = quadrature(density, centre + 0.2, 1.3 * root @ root.T, rng)
    assert found.log_z == pytest.approx(k / 2 * np.log(2 * np.pi) + np.log(np.abs(np.diag(root))).sum(), abs=1e-4)
    assert found.mean == pytest.approx(centre, abs=1e-3)
    assert found.sd == pytest.approx(np.sqrt((root**2).sum(axis=1)), rel=1e-3)
    assert found.error < 0.1


@pytest.mark.parametrize("k", [2, 5, 8])
def test_sequential_monte_carlo_is_the_closed_form_within_its_error(k):
    """Normal prior and likelihood in k couplings: 4.5 errors of each, false alarm below 1e-3 for a t law of 3 degrees of freedom
    would be 10; so the error is pooled over three repetitions (9 degrees, 1.5e-3 at 4.5)."""
    rng, width, sd = generator(f"sequential {k}"), 1.0, 0.15
    truth = rng.normal(size=k) * 0.3
    exact = stats.multivariate_normal(np.zeros(k), (width**2 + sd**2) * np.eye(k)).logpdf(truth)
    runs = [
        sequential(
            lambda w: stats.norm.logpdf(w, truth, sd).sum(axis=1),
            lambda w: stats.norm.logpdf(w, 0, width).sum(axis=1),
            lambda n, r: r.normal(0, width, (n, k)),
            child,
        )
        for child in rng.spawn(3)
    ]
    off = np.mean([r.log_z for r in runs]) - exact
    error = np.sqrt(np.mean([r.error**2 for r in runs]) / 3)
    assert abs(off) < 4.5 * error and error < 0.1
    shrunk = truth * width**2 / (width**2 + sd**2)
    assert runs[0].mean == pytest.approx(shrunk, abs=5 * sd / np.sqrt(500))


def test_sequential_monte_carlo_keeps_within_a_bounded_prior():
    """Likelihood that peaks beyond the edge of a flat prior: the integral is a difference of normal distribution functions."""
    rng = generator("bounded")
    inside = stats.uniform(0, 1)
    found = sequential(
        lambda w: stats.norm.logpdf(w[:, 0], -0.1, 0.2), lambda w: inside.logpdf(w[:, 0]), lambda n, r: r.random((n, 1)), rng
    )
    exact = np.log(stats.norm.cdf(1, -0.1, 0.2) - stats.norm.cdf(0, -0.1, 0.2))
    assert abs(found.log_z - exact) < 6 * found.error and found.error < 0.1
    assert found.mean[0] == pytest.approx(stats.truncnorm(0.5, 5.5, -0.1, 0.2).mean(), abs=0.01)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_evidence_of_a_model_is_the_integral_on_a_grid(scale):
    result, fit = scene().result, scene().result["P1"]
    grid = np.linspace(*(judged(fit).mean + s * 8 * judged(fit).sd for s in (-1, 1)), 2001)
    smooth = fit.smooth["calibrated"]
    density = log_likelihoods(smooth, result.observations, "calibrated", grid) if grid.ndim > 1 else None
    density = log_likelihoods(smooth, result.observations, "calibrated", grid.reshape(-1, 1)).sum(axis=1) + smooth.leash(
        grid.reshape(-1, 1)
    )
    density = density + log_prior(P1, grid.reshape(-1, 1), scale)
    p = np.exp(density - logsumexp(density))
    found = evidence(result, fit, scale)
    assert found.log_z == pytest.approx(logsumexp(density) + np.log(grid[1, 0] - grid[0, 0]), abs=2e-3)
    assert found.mean[0] == pytest.approx(p @ grid[:, 0], abs=1e-3)
    assert found.sd[0] == pytest.approx(np.sqrt(p @ (grid[:, 0] - p @ grid[:, 0]) ** 2), rel=5e-3)


def test_noise_of_the_pool_reaches_the_weights_and_the_verdict():
    c = scene().comparison
    for row in c.rows.values():
        assert row.evidence_error >= row.pool_error > 0
        # R lies some ten standard deviations off, where its likelihood is known to a few per cent of itself
        assert row.pool_error < (0.5 if row.name in c.remain else 0.1 * abs(row.log_evidence[1.0] - c.rows["P1"].log_evidence[1.0]))
    assert set(c.stability) == set(c.rows) and c.stability[c.remain[0]] > 0.5
    # models share the pool: the error of a difference is smaller than independent errors would make it
    noise = evidence_noise(scene().result)
    i, j = (noise.names.index(n) for n in ("P1", "P2"))
    cov = noise.covariance
    assert cov[i, i] + cov[j, j] - 2 * cov[i, j] < cov[i, i] + cov[j, j]


def test_a_verdict_that_noise_could_change_says_so():
    c = scene().comparison
    sure = dataclasses.replace(c, remain=("P1",), stability={"P1": 1.0, "P2": 0.01, "R": 0.0})
    unsure = dataclasses.replace(c, remain=("P1",), stability={"P1": 1.0, "P2": 0.3, "R": 0.0})
    assert sure.decides and not sure.unsure and "decide for P1" in sure.verdict
    assert not unsure.decides and unsure.unsure == ("P2",)
    assert "whether P2 remains is within the noise of the simulation" in unsure.verdict


@pytest.mark.slow
def test_jackknife_error_is_the_scatter_between_seeds():
    """Sixteen pools at the same design points: variance of ln L at fixed couplings over the mean jackknife variance, within the
    0.1 % and 99.9 % points of chi-square with 15 degrees of freedom over 15 (widened by a third for the jackknife's own error)."""
    rng = generator("pools")
    images = [crystal(rng, [0.2, 0.0], name=n) for n in ("one", "two")]
    design = np.linspace(-0.05, 0.45, 9)[:, None]
    values, variances = [], []
    for seed in range(16):
        settings = Settings(samples=120)
        campaign = Campaign.prepare([R, P1], images, seed=seed, pool=Pool(), settings=settings, workers=1, report=lambda *_: None)
        emulator = campaign.simulate(design)
        fit = SimpleNamespace(model=R, posteriors={"calibrated": SimpleNamespace(kind="calibrated", full=np.zeros((1, 0)))})
        result = SimpleNamespace(fits={"R": fit}, observations=images, emulator=emulator)
        result = type("R", (), {"__getitem__": lambda self, name: self.fits[name], **vars(result)})()
        values.append(pool_log_likelihoods(emulator, images, "calibrated", np.zeros((1, 1))).sum())
        variances.append(evidence_noise(result).error("R") ** 2)
    ratio = np.var(values, ddof=1) / np.mean(variances)
    low, high = stats.chi2.ppf([0.001, 0.999], 15) / 15
    assert low / 1.33 < ratio < high * 1.33, ratio


# ---------------------------------------------------------------------- what is left out


def test_pools_without_a_stretch_are_those_of_the_other_records():
    """Moments, weights and support at any couplings, against the pool with those records taken away."""
    whole = scene().result.emulator
    name, image = next(iter(whole.images.items()))
    r = image.reweighting
    group = np.concatenate([np.arange(n) * 4 // n for n in r.records.astype(int)])
    couplings = scene().result["P1"].posterior.flat[:3] @ whole.embed(scene().result["P1"].model)
    for g, rest in enumerate(left_out(whole, 4)):
        keep, found = group != g, rest.images[name]
        w = r.weights(couplings) * keep
        w /= w.sum(axis=1, keepdims=True)
        assert found.reweighting.weights(couplings) == pytest.approx(w, abs=1e-12)
        means, effective = found.reweighting.averages(couplings, image.table)
        assert means == pytest.approx(w @ image.table, rel=1e-9, abs=1e-12)
        assert effective == pytest.approx(1 / (w**2).sum(axis=1), rel=1e-9)
        assert found.moments(couplings[0]).mean == pytest.approx(found.batch(couplings[:1])[0].mean[0], abs=1e-9)
        assert found.moments(couplings[0]).mean != pytest.approx(image.moments(couplings[0]).mean, abs=1e-9)


def test_image_left_out_is_the_ratio_of_two_integrals(monkeypatch):
    """Exact leave-one-image-out against a grid straight on the pool, which knows no smooth emulator."""
    result, fit = scene().result, scene().result["P1"]
    monkeypatch.setattr(pointwise, "K_BAR", -np.inf)
    found, uncovered = image_loo(result, fit)
    assert not uncovered and found.exact == 3
    grid = np.linspace(*(judged(fit).mean[0] + s * 6 * judged(fit).sd[0] for s in (-1, 1)), 241)[:, None]
    values = pool_log_likelihoods(result.emulator, result.observations, "calibrated", grid @ result.emulator.embed(P1))
    whole = values.sum(axis=1) + log_prior(P1, grid)
    exact = [logsumexp(whole) - logsumexp(whole - values[:, i]) for i in range(3)]
    # Monte Carlo error of 3,000 draws, and the two emulators' difference
    assert found.pointwise == pytest.approx(exact, abs=0.05)
    monkeypatch.undo()
    smoothed, _ = image_loo(result, fit)
    assert smoothed.exact == 0 and smoothed.elpd == pytest.approx(found.elpd, abs=0.15)


def test_one_image_leaves_none_and_its_score_is_the_evidence():
    rng = generator("one image")
    result = fitted([R, P1], [crystal(rng, [0.2, 0.0])])
    found, _ = image_loo(result, result["P1"])
    assert found.elpd == pytest.approx(evidence(result, result["P1"]).log_z, abs=1e-12)
    c = compare(result)
    assert c.rows["P1"].heterogeneity is None and c.units == "atoms"


def test_atoms_and_images_stand_side_by_side_and_agree():
    c = scene().comparison
    assert c.units == "atoms" and c.n_units == 3 * 22 * 22 and not c.units_why
    for name, row in c.rows.items():
        assert len(row.loo_images.pointwise) == 3
        if name != "R":
            assert row.consistency.ok and 0.7 < row.consistency.slope < 2.5
    assert c.rows["R"].consistency is None
    assert not any("disagree (correlation" in w for w in c.warnings)


def test_conditionals_of_another_crystal_are_noticed():
    """Negative control: the atoms of crystals without interaction against the images of those with one."""
    result, rng = scene().result, generator("other crystal")
    found, _ = atoms(result, [R, P1, P2])
    others = [crystal(rng, [0.0, 0.0], name=o.name) for o in result.observations]
    wrong, _ = atoms(dataclasses.replace(result, observations=others), [R, P1, P2])
    mixed = dataclasses.replace(wrong, images=found.images)
    agree = consistency(found, "P1", judged(result["P1"]).draws[:, ::4])
    disagree = consistency(mixed, "P1", judged(result["P1"]).draws[:, ::4])
    assert agree.ok and not disagree.ok and disagree.shift > 1


def test_label_errors_and_short_sight_say_why_atoms_are_no_units():
    result = scene().result
    noisy = dataclasses.replace(result.observations[0], label_error=np.array([[0.9, 0.1], [0.1, 0.9]]))
    found, why = atoms(dataclasses.replace(result, observations=[noisy, *result.observations[1:]]), [R, P1])
    assert found is None and why.startswith("one has label errors")
    bare = Observation.from_counts(result.observations[0].counts, result.observations[0].environments, name="one")
    found, why = atoms(dataclasses.replace(result, observations=[bare, *result.observations[1:]]), [R, P1, P2])
    assert found is None and why == "one does not show enough around an atom for every model"


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas, inside arviz
def test_waic_loo_and_stacking_are_arviz_ones():
    arviz = pytest.importorskip("arviz", reason="arviz is not installed")
    if not hasattr(arviz, "waic"):
        pytest.skip("this arviz has no InferenceData")
    rng = generator("arviz")
    draws = rng.normal(size=(4, 500, 3))
    y = rng.normal(0.4, 1.0, 60)
    values = {
        "near": stats.norm.logpdf(y, 0.4 + 0.1 * draws[..., :1], 1.0),
        "wide": stats.norm.logpdf(y, 0.3 + 0.1 * draws[..., 1:2], 2.0),
        "off": stats.norm.logpdf(y, 1.4 + 0.1 * draws[..., 2:], 1.0),
    }
    given = {n: arviz.from_dict(posterior={"w": draws[..., 0]}, log_likelihood={"y": v}) for n, v in values.items()}
    theirs = arviz.compare(given, ic="loo", method="stacking")
    ours = {n: pointwise.loo(v) for n, v in values.items()}
    weight = stacking_weights(np.column_stack([ours[n].pointwise for n in values]))
    assert weight == pytest.approx([theirs.loc[n, "weight"] for n in values], abs=2e-3)
    best = max(ours, key=lambda n: ours[n].elpd)
    for n in values:
        assert ours[n].elpd == pytest.approx(theirs.loc[n, "elpd_loo"], abs=0.05)
        apart, error = difference(ours[n], ours[best])
        assert (-apart, error) == pytest.approx((theirs.loc[n, "elpd_diff"], theirs.loc[n, "dse"]), abs=0.05)
        flat = waic(values[n].reshape(-1, 60))
        wanted = arviz.waic(given[n])
        assert (flat.elpd, flat.p, flat.se) == pytest.approx((wanted.elpd_waic, wanted.p_waic, wanted.se), abs=1e-8)


def test_stacking_weights_are_at_the_maximum():
    """Karush-Kuhn-Tucker: the gradient is 1 where a weight is positive and at most 1 elsewhere. With equal columns: shared."""
    rng = generator("stacking")
    for _ in range(20):
        pointwise_ = rng.normal(size=(rng.integers(4, 200), rng.integers(2, 6))) * rng.uniform(0.1, 3)
        many = rng.integers(1, 5, len(pointwise_)).astype(float)
        w = stacking_weights(pointwise_, many)
        p = np.exp(pointwise_)
        gradient = (many / many.sum()) @ (p / (p @ w)[:, None])
        assert w.sum() == pytest.approx(1) and gradient.max() < 1 + 1e-4
        assert np.all(np.abs(gradient[w > 1e-3] - 1) < 1e-3)
    assert stacking_weights(np.zeros((5, 4))) == pytest.approx(np.full(4, 0.25))


# ---------------------------------------------------------------------- BIC


@cache
def random_pool():
    """Whole random crystals at one composition: one image and a result around no interaction."""
    rng = generator("random pool")
    return fitted([R, P1], [crystal(rng, [0.0, 0.0], x=0.3, side=24)])


def test_penalty_is_the_number_of_couplings_if_environments_are_independent():
    """The pool's images replaced by very many independent environments: tr(inv(H) J) is 1, with overlapping ones more.

    It holds as N grows: at 576 environments in 26 classes, the rarest with a tenth of a count, it is 1.1 to 1.2.
    """
    result = random_pool()
    image, rng = result.emulator.images["image"], generator("independent")
    q = image.reweighting.weights(np.zeros(1)) @ image.table[:, -26:]
    many = dataclasses.replace(result.observations[0], counts=20 * result.observations[0].counts, configuration=None)
    independent = dataclasses.replace(image, counts=rng.multinomial(many.n, q / q.sum(), size=len(image.counts)))
    loose = dataclasses.replace(result, observations=[many], emulator=dataclasses.replace(result.emulator, images={"image": independent}))
    # 1,500 images: the variance of the score is known to 4 %; four errors
    assert penalty(loose, P1, np.zeros(1), rng) == pytest.approx(1.0, abs=0.16)
    assert 2.0 < penalty(result, P1, np.zeros(1), rng) < 8.0
    assert penalty(result, R, np.zeros(0), rng) == 0.0


@pytest.mark.slow
def test_corrected_bic_keeps_false_interactions_rare():
    """2,000 random alloys of 576 sites, x = 0.3: the published BIC finds an interaction in far more than 5 %, the corrected one in at
    most 2 % (true rate about 0.5 %; above 2 % in 2,000 by chance: under 1e-9)."""
    rng = generator("false interactions")
    pair = Settings(samples=400)
    image = crystal(rng, [0.0, 0.0], x=0.3, side=24)
    campaign = Campaign.prepare([R, P1], [image], seed=5, pool=Pool(), settings=pair, workers=1, report=lambda *_: None)
    emulator = campaign.simulate(np.linspace(-0.5, 0.5, 21)[:, None])
    grid = np.linspace(-0.45, 0.45, 361)
    model = emulator.images["image"].histogram(grid[:, None])[0]
    start = image.configuration.flat
    labels = np.array([rng.permutation(start) for _ in range(2000)]).astype(np.uint8)
    counts = campaign.variants["image"][0].operator.counts(labels, rng)
    n = image.n
    # the exact histogram of whole random crystals at w = 0 is the one in the middle of the grid
    random, least = squared_distance(counts / n, model[180]), squared_distance((counts / n)[:, None], model[None]).min(axis=1)
    stub = dataclasses.replace(random_pool(), emulator=emulator, observations=[image])
    effective = penalty(stub, P1, np.zeros(1), rng)
    published = np.mean(2 * n * least + 0.5 * np.log(n) < 2 * n * random)
    corrected = np.mean(2 * n * least + 0.5 * effective * np.log(n) < 2 * n * random)
    print(f"false interactions: published BIC {published:.3f}, corrected {corrected:.4f}, effective couplings {effective:.2f}")
    assert published > 0.10
    assert corrected <= 0.02


# ---------------------------------------------------------------------- priors


def test_priors_of_one_scale_are_let_be_and_others_are_not():
    sides = [Cluster(s, METAL.triangle("up"), name=s, prior=dist.Normal(0, 2)) for s in ("AAB", "ABB")]
    matched, inside = Hamiltonian("M", *sides, **ALLOY), {("P1", "M"): np.array([[2.0, 2.0]])}
    one = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), **ALLOY)
    wide = Hamiltonian("M", *(dataclasses_prior(t, dist.Normal(0, 8)) for t in sides), **ALLOY)
    assert induced_widths(one, matched, inside["P1", "M"])[0] == pytest.approx(np.sqrt(0.5), rel=1e-3)
    assert not mismatched({"P1": one, "M": matched}, inside)
    found = mismatched({"P1": one, "M": wide}, inside)
    assert len(found) == 1 and "a width of 2.8 kT, P1 declares 1 kT" in found[0]


def dataclasses_prior(term, prior):
    return Cluster(term.species, term.sites, name=term.name, prior=prior)


def test_wider_priors_favour_the_random_alloy_of_random_crystals():
    """Where the likelihood is narrow, double the prior costs ln 2 a coupling; the posterior hardly moves."""
    row = scene().comparison.rows["P1"]
    p = row.posterior
    assert row.log_evidence[1.0] - row.log_evidence[2.0] == pytest.approx(np.log(2), abs=0.35)
    assert p[0.5].mean[0] < p[1.0].mean[0] < p[2.0].mean[0] and p[0.5].sd[0] < p[2.0].sd[0]
    assert p[1.0].mean[0] == pytest.approx(judged(scene().result["P1"]).mean[0], abs=0.1 * p[1.0].sd[0])


# ---------------------------------------------------------------------- nesting


def row_with(greatest, error=0.05) -> Row:
    row = scene().comparison.rows["P1"]
    return dataclasses.replace(row, greatest=Greatest(greatest, np.zeros(1), 0.0), pool_error=error)


def test_a_nested_model_is_never_more_likely():
    assert all(c.ok for c in scene().comparison.checks.values())
    assert set(scene().comparison.checks) == {"nested: R in P1", "nested: R in P2", "nested: P1 in P2"}
    assert likelihood_check("P1", row_with(10.0), "P2", row_with(9.9)).ok
    broken = likelihood_check("P1", row_with(10.0), "P2", row_with(9.0))
    assert not broken.ok and "P2 contains P1 and cannot be less likely" in broken.why


def test_nesting_is_read_off_the_features():
    result = scene().result
    assert nesting(result, P1, P2) == pytest.approx(np.array([[1.0, 0.0]]), abs=1e-9)
    assert nesting(result, P2, P1) is None


# ---------------------------------------------------------------------- do the images agree


def test_images_of_two_materials_disagree():
    rng = generator("two materials")
    same = fitted([P1], [crystal(rng, [0.2], P1, name=n) for n in ("one", "two")])
    other = fitted([P1], [crystal(rng, [w], P1, name=n) for w, n in ((0.35, "one"), (-0.15, "two"))])
    # 1 % false alarm; the two materials differ by about eight of its standard deviations
    assert heterogeneity(same, P1).p > 0.01
    found = heterogeneity(other, P1)
    assert found.p < 1e-6
    assert found.modes[0, 0] - found.modes[1, 0] > 4 * np.hypot(*found.sd[:, 0])


def test_score_test_has_its_size_for_normal_scores():
    """600 sets of three images and two couplings: p uniform (Kolmogorov-Smirnov, 0.1 % false alarm), also with a blind image."""
    rng = generator("score test")
    roots = [rng.normal(size=(2, 2)) + 2 * np.eye(2) for _ in range(3)]
    roots[2][:, 1] = 0.0
    p = []
    for _ in range(600):
        w = rng.normal(size=2)
        p.append(score_test(np.zeros(2), [(r.T @ r, r.T @ (r @ w + rng.normal(size=2))) for r in roots]).p)
    assert stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.slow
def test_heterogeneity_test_has_its_size_on_simulated_images():
    """600 sets of two simulated crystals: p uniform (0.1 % false alarm) at the truth that made them."""
    rng = generator("size of the test")
    images = [crystal(rng, [0.15], P1, x=x, name=n) for x, n in ((0.3, "one"), (0.5, "two"))]
    result = fitted([P1], images)
    chains = {}
    for o in images:
        start = o.configuration
        seed = np.random.SeedSequence(rng.integers(2**63))
        chain = run_chain(P1.compile(start.supercell), [0.15], start.flat, samples=600, burn=200, sweeps=30, seed=seed)
        chains[o.name] = [
            Observation.from_labels(s.reshape(22, 22).astype(int), METAL, ("A", "B"), periodic=True, name=o.name) for s in chain.snapshots
        ]
    truth = dataclasses.replace(judged(result["P1"]), draws=np.full((1, 2, 1), 0.15))
    at_truth = dataclasses.replace(result["P1"], posteriors={**result["P1"].posteriors, "calibrated": truth})
    p = []
    for pair in zip(*chains.values(), strict=True):
        p.append(heterogeneity(dataclasses.replace(result, observations=list(pair), fits={"P1": at_truth}), P1).p)
    print(f"heterogeneity: {np.mean(np.array(p) < 0.05):.3f} below 0.05")
    assert stats.kstest(p, "uniform").pvalue > 1e-3


# ---------------------------------------------------------------------- misfit


def test_groups_are_a_partition_and_large_enough():
    e = Environments(METAL, ("A", "B"))
    for x in (0.03, 0.2, 0.5):
        expected = 480 * e.random_distribution([1 - x, x])
        table, names = groups(e, expected)
        assert np.array_equal(table.sum(axis=0), np.ones(26)) and len(set(names)) == len(names)
        assert sum(v < 15 for v in table @ expected) <= 1  # at most one rest


def test_shift_of_one_group_is_the_closed_form():
    """exp(-(z - s)^2 / 2 - |s| / 0.5): two truncated normal laws, whose probability of a negative shift is known."""
    for z in (0.5, 2.0, 3.5):
        draws = laplace_shifts([np.eye(1)], [np.array([z])], generator(f"shift {z}"))[0][:, 0]
        above, below = (stats.norm.sf(-(z - 2)), 0.5 * (z - 2) ** 2), (stats.norm.sf(z + 2), 0.5 * (z + 2) ** 2)
        weight = np.array([np.log(above[0]) + above[1], np.log(below[0]) + below[1]])
        negative = np.exp(weight[1] - logsumexp(weight))
        # 2,000 draws with an autocorrelation of a few: five errors of 500 independent ones
        assert np.mean(draws < 0) == pytest.approx(negative, abs=5 * np.sqrt(negative * (1 - negative) / 500) + 1e-3)


def test_a_right_model_is_rarely_blamed():
    """30 crystals of the model's own making: each names a group with a probability of about 1 %; four or more of 30: 0.03 %."""
    result, rng = random_pool(), generator("blame")
    start, found = result.observations[0].configuration.flat, []
    for _ in range(30):
        labels = rng.permutation(start).reshape(24, 24).astype(int)
        o = Observation.from_labels(labels, METAL, ("A", "B"), periodic=True, name="image")
        found.append(residual(result.emulator, P1, np.zeros(1), o))
    shifts = laplace_shifts([f.precision for f in found], [f.pull for f in found], rng)
    low, high = (np.array([np.quantile(d, q, axis=0) for d in shifts]) for q in (0.025, 0.975))
    assert ((low > 0) | (high < 0)).any(axis=1).sum() < 4
    # and the residuals are of unit size, so the small number is no accident of a wide covariance
    z = np.array([f.z for f in found])
    assert 0.8 < z.std() < 1.2


def test_an_implanted_motif_is_named():
    """Rings of B around A stamped into a random crystal: what is named is the environment of the rings' atoms."""
    result, rng = random_pool(), generator("motif")
    grid = result.observations[0].configuration.labels[..., 0].astype(int)
    grid = rng.permutation(grid.reshape(-1)).reshape(24, 24)
    ring = [tuple(step[:2]) for step in METAL.shell(1, 0)]
    total, places = grid.sum(), [(r, c) for r in range(2, 24, 6) for c in range(2, 24, 6)]
    kept = set()
    for r, c in places:
        grid[r, c] = 0
        kept.add((r, c))
        for a, b in ring:
            grid[(r + a) % 24, (c + b) % 24] = 1
            kept.add(((r + a) % 24, (c + b) % 24))
    free = [p for p in zip(*np.nonzero(grid), strict=True) if p not in kept]
    for i in rng.permutation(len(free))[: grid.sum() - total]:  # the composition stays
        grid[free[i]] = 0
    o = Observation.from_labels(grid, METAL, ("A", "B"), periodic=True, name="image")
    named = [s for s in misfit(dataclasses.replace(result, observations=[o]), [P1]) if s.named]
    # each of the 96 atoms of the rings has its two neighbours on the ring 120 degrees apart: one pair at the middle distance
    assert max(named, key=lambda s: s.z).group == "B|2B(0,1,0)"
    assert str(max(named, key=lambda s: s.z)).startswith("image shows more B|2B(0,1,0) than P1 can")


# ---------------------------------------------------------------------- all of it


def test_table_verdict_and_practical_zero_are_printed():
    c = scene().comparison
    text = str(c)
    assert c.verdict in text and "with probability" in text
    for word in ("corr.", "stack", "ln Z", "remains"):
        assert word in text
    decisions = {p.name: p.decision for p in c.rows["P2"].practical}
    assert decisions["w1"] == "outside"
    assert {p.rope for p in c.rows["P1"].practical} == {0.05}


def test_clear_data_decide_and_scores_agree():
    c = scene().comparison
    assert "R" not in c.remain and c.order[0] in ("P1", "P2")
    assert c.rows["R"].stacking < 0.2 and sum(r.stacking for r in c.rows.values()) == pytest.approx(1)
    assert c.rows["R"].bic > c.rows["P1"].bic and c.rows["R"].bic_corrected > c.rows["P1"].bic_corrected
    assert c.rows["R"].loo_difference[0] < -2 * c.rows["R"].loo_difference[1]
    assert max(r.loo_difference[0] for r in c.rows.values()) == 0.0


def test_the_exact_posterior_is_the_judge_where_it_is():
    fit = scene().result["P1"]
    exact = dataclasses.replace(fit.posteriors["calibrated"], kind="exact")
    assert judged(dataclasses.replace(fit, posteriors={**fit.posteriors, "exact": exact})) is exact
    assert judged(fit).kind == "calibrated"


def test_two_comparisons_of_one_result_are_identical_but_for_the_region_of_no_interest():
    one, two = scene().comparison, compare(scene().result, rope=0.5)
    plain = [line for line in str(one).splitlines() if "with probability" not in line]
    assert plain == [line for line in str(two).splitlines() if "with probability" not in line]
    assert all(np.array_equal(one.rows[n].p_values, two.rows[n].p_values) for n in one.rows)
    assert all(one.rows[n].shifts == two.rows[n].shifts for n in one.rows)
    assert two.rows["P1"].practical[0].decision == "within" and two.rows["P1"].practical[0].rope == 0.5
