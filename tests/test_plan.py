"""How much data is required: predictions against closed forms, dense grids, and fits and experiments that are really simulated."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import numpyro
import pytest
import xarray as xr
from conftest import generator
from numpyro import distributions as dist
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from bayesatoms import cli
from bayesatoms.errors import CheckError, InputError
from bayesatoms.hamiltonian import Cluster, Hamiltonian, Pair
from bayesatoms.inference.campaign import Campaign
from bayesatoms.inference.comparison import remaining
from bayesatoms.inference.densities import explore, log_prior, scoring
from bayesatoms.inference.evidence import evidences
from bayesatoms.inference.parameters import Nuisances, Parameters
from bayesatoms.inference.posterior import Fit, Result, Settings
from bayesatoms.inference.priors import PRIOR_SCALES
from bayesatoms.inference.quasi import Natural, from_origin
from bayesatoms.inference.sampling import Posterior
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.design import DesignPoint
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation
from bayesatoms.planning.plan import ladder, plan
from bayesatoms.planning.power import Bench, Truth, decided
from bayesatoms.planning.precision import Precision, learned, variances
from bayesatoms.planning.prospects import Belief, field_window, prospective, simulated
from bayesatoms.planning.surfaces import Surface, places_over

METAL = Lattice.triangular(0.316)
ALLOY = {"lattice": METAL, "species": ("A", "B")}
R = Hamiltonian("R", **ALLOY)
P1 = Hamiltonian("P1", Pair("A", "B", name="w", prior=dist.Normal(0, 0.5)), **ALLOY)
ERRORS = [[0.94, 0.06], [0.1, 0.9]]
QUICK = Settings(points=6, samples=160)
SETS = 200  # synthetic fits and experiments
W = 0.16  # true coupling of the synthetic ones, kT


@threadpool_limits.wrap(limits=1, user_api="blas")
def analysed(models, images, seed: int = 1, settings: Settings = QUICK) -> Result:
    """A result without NUTS: draws by importance sampling on the smooth emulators."""
    numpyro.enable_x64()
    pool = Pool()
    campaign = Campaign.prepare(models, images, seed=seed, pool=pool, settings=settings, workers=1, report=lambda *_: None)
    regions, fits = campaign.run(), {}
    for m in models:
        own = {r.kind: r for r in regions if r.model is m}
        parameters = Parameters.of(m, images)
        level = [float(campaign.emulator.log_origin(o)) for o in images]
        posteriors = {"calibrated": drawn(np.zeros((400, 0)), (), level)}
        if own:
            rng, smooth = np.random.default_rng(seed), own["calibrated"].smooth
            posteriors = {"calibrated": drawn(explore(smooth, images, "calibrated", rng, n=4000), m.names, level)}
        fits[m.name] = Fit(m, "calibrated", posteriors, {k: r.smooth for k, r in own.items()}, np.zeros(len(m.names)), {}, parameters)
    simulated = campaign.simulated(regions)
    return Result(fits, images, campaign.emulator, campaign.statistic, settings, seed, "calibrated", [], {}, simulated=simulated)


def drawn(draws, names, level) -> Posterior:
    """A posterior from its draws (n, k)."""
    k, values = len(names), np.broadcast_to(level, (1, len(draws), len(level)))
    return Posterior("calibrated", names, draws[None], values, np.ones(k), np.ones(k), {})


def image(name: str, side: int, x: float, error=None) -> Observation:
    """A window of the random alloy."""
    labels = (generator(f"plan {name}").random((side, side)) < x).astype(int)
    return Observation.from_labels(labels, METAL, ALLOY["species"], name=name, label_error=error)


@cache
def scene() -> Result:
    """Two images of the random alloy with wrong labels, analysed."""
    return analysed([R, P1], [image("small", 14, 0.3, ERRORS), image("large", 20, 0.45, ERRORS)])


@cache
def planned():
    """A plan at three compositions, all truths."""
    return plan(scene(), composition=[0.15, 0.5, 0.8], target_sd={"P1.w": 0.02}, most=24, experiments=200, seed=3)


@cache
def real(x: float = 0.4, w: float = W) -> SimpleNamespace:
    """What is simulated and analysed apart from any plan: a prospect on a pool of its own, likelihoods on a grid, images of a truth."""
    result = scene()
    one = prospective(result, field_window(result, None), np.array([1 - x, x]), ERRORS)
    campaign = Campaign.prepare(
        [R, P1], [*result.observations, one], seed=77, pool=Pool(), settings=Settings(samples=300), workers=1, report=lambda *_: None,
        statistic=result.statistic,
    )  # fmt: skip
    emulator = campaign.simulate(np.linspace(-0.35, 0.6, 20)[:, None])
    grid = np.linspace(-0.3, 0.5, 401)[:, None]
    naturals = [from_origin(emulator.images[o.name].batch, np.zeros(1), grid, emulator.n_composition(o)) for o in campaign.observations]
    before = sum(n(emulator.statistic(o)) for n, o in zip(naturals[:-1], result.observations, strict=True))
    variant = campaign.variants[one.name][0]
    point = DesignPoint(campaign.compiled[one.name], np.array([w]), variant.atoms, 14 * SETS, 12.0, 200.0, 5)
    counts = variant.operator.counts(point.run().snapshots, generator("plan images"))
    values = result.statistic(counts)[:, emulator.images[one.name].rows]
    return SimpleNamespace(one=one, grid=grid, before=before, more=naturals[-1], values=values, x=x)


def prospect(x: float, error=ERRORS):
    """One that a plan would make, with chains about the posterior and the truth."""
    result = scene()
    one = prospective(result, field_window(result, None), np.array([1 - x, x]), error)
    p = result["P1"].posterior
    belief = Belief(P1, p.mean, p.cov, p.flat)
    pool, nowhere = result.simulated.pool, np.array([[W]])
    return simulated(result, [one], [belief], nowhere, seed=3, pool=pool, workers=1, report=lambda *_: None)[0], belief


# ---------------------------------------------------------------------- closed forms


def test_information_of_a_crystal_near_the_random_alloy():
    """J = 12 n x^2 (1 - x)^2 for unlike pairs on a whole triangular crystal, by its own error: three tests, |z| < 4 (2e-4)."""
    labels = (generator("plan whole").random((24, 24)) < 0.4).astype(int)
    result = analysed([R, P1], [Observation.from_labels(labels, METAL, ("A", "B"), periodic=True, name="whole")])
    found = [prospective(result, field_window(result, None), np.array([1 - x, x]), None) for x in (0.2, 0.5, 0.75)]
    belief = Belief(P1, np.zeros(1), np.array([[0.002]]), result["P1"].draws)
    each = simulated(result, found, [belief], np.zeros((0, 1)), seed=1, pool=Pool(), workers=1, report=lambda *_: None)
    assert [o.window.whole for o in found] == [(24, 24)] * 3
    for p, x in zip(each, (0.2, 0.5, 0.75), strict=True):
        zero = np.zeros((1, 1))
        one = Precision(np.eye(1), np.eye(1), p.information(P1, zero), p.replicates(P1, zero[0]))
        value, error = one.single()
        law = 12 * 576 * x**2 * (1 - x) ** 2
        assert abs(value[0] - law) < 4 * error[0] + law / 576
        assert error[0] < 0.05 * law
        # the same by the emulator's own linear response, and half as many images are refused
        assert value[0] == pytest.approx(float(scoring(p.emulator, P1, p.observation, zero[0])[0][0, 0]))
        assert abs(value[0] - law / 2) > 4 * error[0]


def test_evidence_on_surfaces_is_the_integral():
    """Two couplings whose images are counts, far from normal: evidences under three priors against a grid, to 0.02."""
    h = Hamiltonian("H", *(Pair("A", "B", shell=s, name=f"w{s}", prior=dist.Normal(0, 0.7)) for s in (1, 2)), **ALLOY)
    slopes, rate = np.array([[1.0, 0.4], [-0.3, 1.2], [0.5, 0.5]]), np.array([20.0, 15.0, 8.0])

    def one(w):  # Poisson counts of three kinds, at rates exp(w . slopes)
        return Natural(w @ slopes.T, (rate * np.expm1(w @ slopes.T)).sum(axis=1))

    seen = np.array([22.0, 13.0, 9.0])
    axis = np.linspace(-1.6, 1.6, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    before = one(grid)(seen)
    p = np.exp(before - before.max())
    p /= p.sum()
    centre = p @ grid
    cov = ((grid - centre) * p[:, None]).T @ (grid - centre)
    places = places_over(centre, cov)
    surface = Surface.fit(h, centre, cov, places, one(places)(seen), one(places), rate)
    rng = generator("plan evidence")
    for n in (0, 1, 5, 40):
        sums = rng.poisson(n * rate * np.exp(slopes @ (centre + np.array([0.1, -0.1]))), size=(12, 3)).astype(float)
        found = surface.evidence(sums, n, PRIOR_SCALES)
        likelihood = sums @ one(grid).slope.T - n * one(grid).constant + before
        for scale, value in zip(PRIOR_SCALES, found.log_z, strict=True):
            exact = logsumexp(likelihood + log_prior(h, grid, scale), axis=1) + 2 * np.log(axis[1] - axis[0])
            assert value == pytest.approx(exact, abs=0.02)
        assert found.inside.all()
    assert surface.error[1] * 40 < 0.02
    with pytest.raises(CheckError, match="chains answer at"):
        held = np.arange(len(places)) < 20
        Surface.fit(h, centre, cov, places, one(places)(seen), one(places), rate, held)


def test_decisions_are_those_of_a_comparison():
    """2,000 sets of evidences of three models: one model remains just where `comparison.remaining` leaves one."""
    log_z = generator("plan rule").normal(0, 2.5, size=(3, len(PRIOR_SCALES), 2000)).cumsum(axis=1)
    winner = decided(log_z)
    weights = np.exp(log_z - logsumexp(log_z, axis=0))
    names = ("R", "P", "M")
    for e in range(2000):
        kept = remaining({s: dict(zip(names, weights[:, i, e].tolist(), strict=True)) for i, s in enumerate(PRIOR_SCALES)})
        assert kept == (names[winner[e]],) if winner[e] >= 0 else len(kept) > 1
    assert 100 < (winner >= 0).sum() < 1900


def test_precision_in_closed_form():
    """Two couplings, one of which no image sees."""
    j = np.array([[4.0, 2.0], [2.0, 3.0]])
    p = Precision(np.diag([1.0, 2.0]), np.eye(2) * 0.5, np.stack([j, j]), np.stack([j] * 4))
    for n in (0, 1, 7):
        assert p.predicted(n).sd == pytest.approx(np.sqrt(np.diag(np.linalg.inv(np.diag([1.0, 2.0]) + n * j))))
        assert p.predicted(n, alone=True).sd == pytest.approx(np.sqrt(np.diag(np.linalg.inv(np.eye(2) * 0.5 + n * j))))
    n = p.needed(0, 0.1)
    assert p.predicted(n).sd[0] <= 0.1 < p.predicted(n - 1).sd[0]
    assert p.single()[0] == pytest.approx(1 / np.diag(np.linalg.inv(j)))
    blind = Precision(np.eye(2), np.eye(2), np.stack([np.diag([1.0, 0.0])] * 2), np.stack([np.diag([1.0, 0.0])] * 2))
    assert blind.needed(1, 0.5) == np.inf
    assert variances(np.array([[2.0, 2.0], [2.0, 2.0]])).tolist() == [np.inf, np.inf]
    assert blind.predicted(10**6).sd == pytest.approx([1e-3, 1.0], rel=1e-5)


# ---------------------------------------------------------------------- against simulation


def test_predicted_sd_is_that_of_synthetic_fits():
    """200 images of known coupling, their posteriors on a grid by another pool: widths within 5 %, the scatter of the means |z| < 4 (6e-5).

    Negative controls: predictions without the wrong labels, and for half or twice as many images, are refused.
    """
    r = real()
    values = r.values[:SETS] @ r.more.slope.T - r.more.constant + log_prior(P1, r.grid)
    p = np.exp(values - values.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    mean = (p @ r.grid)[:, 0]
    sd = np.sqrt(np.mean(p @ r.grid[:, 0] ** 2 - mean**2))
    prior, at = np.eye(1) / 0.25, np.array([[W]])

    def predicted(error, images=1.0):
        found, _ = prospect(r.x, error)
        j = images * found.information(P1, at)
        return Precision(prior, prior, j, images * found.replicates(P1, at[0])).predicted(1), j[0, 0, 0]

    one, j = predicted(ERRORS)
    assert sd == pytest.approx(one.sd[0], rel=0.05)
    assert one.error[0] < 0.03 * one.sd[0]
    scatter = np.sqrt(j) / (4 + j)  # of the means, which the prior draws in
    assert abs(mean.std(ddof=1) / scatter - 1) < 4 / np.sqrt(2 * SETS)
    for wrong in (predicted(np.eye(2))[0], predicted(ERRORS, 0.5)[0], predicted(ERRORS, 2.0)[0]):
        assert abs(sd / wrong.sd[0] - 1) > 0.08


@pytest.mark.parametrize("images", [8, 14])
def test_predicted_power_is_the_share_of_real_experiments(images):
    """200 experiments that add images to those observed, on a pool and a grid of their own: |z| < 4 by both errors, and within 0.1.

    Two tests, 6e-5 each. Negative control: the power for half or twice as many images is refused.
    """
    r, result = real(), scene()
    total = r.values[: images * SETS].reshape(SETS, images, -1).sum(axis=1)
    log_z = []
    for scale in PRIOR_SCALES:
        value = r.before + total @ r.more.slope.T - images * r.more.constant + log_prior(P1, r.grid, scale)
        log_z.append(logsumexp(value, axis=1) + np.log(r.grid[1, 0] - r.grid[0, 0]))
    share = np.mean(decided(np.array([np.zeros_like(log_z), log_z])) == 1)
    found, belief = prospect(r.x)
    bench = Bench.build(result, found, [belief], ["R", "P1"])
    rungs = [images // 2, images, 2 * images]
    p = bench.power(Truth("P1", "P1", np.full((800, 1), W)), rungs, generator("plan power"))
    error = np.sqrt(share * (1 - share) / SETS + p.right * (1 - p.right) / 800)
    assert abs(p.right[1] - share) < min(4 * error[1], 0.1)
    assert abs(p.right[0] - share) > 4 * error[0]
    assert abs(p.right[2] - share) > 4 * error[2] or p.right[2] > 0.99
    assert (p.inside > 0.9).all()


# ---------------------------------------------------------------------- the whole


def test_a_plan_in_numbers_and_words():
    p = planned()
    d = p.dataset
    assert d.images.values.tolist() == [0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 24]
    assert dict(d.sizes) == {"coupling": 1, "composition": 3, "images": 11, "image": 2, "truth": 3}
    assert d.truth.values.tolist() == ["R", "P1", "average"]
    assert d.sd.values[:, :, 0] == pytest.approx(float(d.present_sd[0]))
    assert (np.diff(d.sd.values, axis=2) < 0).all()
    assert ((d.sd_low <= d.sd * 1.0001) & (d.sd <= d.sd_high * 1.0001)).all()
    # before any further image: what the comparison of the images so far says
    one = {n: [i.log_z for i in evidences(scene(), f, PRIOR_SCALES)] for n, f in scene().fits.items()}
    now = decided(np.array(list(one.values()))[..., None])[0]
    assert d.power.sel(truth="R").values[:, 0] == pytest.approx(float(now == 0))
    best = p.best("P1.w")
    assert [c.images for c in best] == sorted(c.images for c in best)
    assert best[0].composition == 0.5
    assert best[0].value <= 0.02
    assert p.precisions["P1", 1].predicted(best[0].images - 1).sd[0] > 0.02
    assert p.needed("P1.w", composition=0.15).images > 3 * best[0].images  # the law: (0.15 x 0.85 / 0.25)^2 = 0.26
    assert p.needed("P1.w", 1.0).images == 0
    choice = p.needed("R")
    assert choice.value - 2 * choice.error >= 0.8 - 0.03 or not np.isfinite(choice.images)
    assert d.power.attrs["units"] == "1"
    assert d.sd.attrs["units"] == "kT at formation"
    text = str(p)
    assert f"sd of P1.w: {float(d.present_sd[0]):.2g} now, {best[0].value:.2g} after {best[0].images:.0f} more at x = 0.5" in text
    assert "To tell R and P1 apart if R is true:" in text


def test_seeds_workers_and_chains_that_are_there():
    result, again = scene(), {"composition": [0.5], "most": 4, "experiments": 60}
    one = plan(result, **again, seed=3)
    before = result.simulated.pool.simulated
    calls = []
    two = plan(result, **again, seed=3, workers=2, progress=lambda *a: calls.append(a))
    assert result.simulated.pool.simulated == before  # nothing is simulated twice
    assert one.dataset.identical(two.dataset)
    assert calls == [("plan", 1, 1)]
    other = plan(result, **again, seed=4)
    assert not one.dataset.equals(other.dataset)
    # another composition beside it changes nothing
    wider = plan(result, **{**again, "composition": [0.5, 0.6]}, seed=3)
    assert wider.dataset.sd.sel(composition=0.5).values == pytest.approx(one.dataset.sd.values[:, 0])
    assert wider.dataset.power.sel(composition=0.5).values == pytest.approx(one.dataset.power.values[:, 0])


def test_a_truth_of_ones_own_and_fields():
    result = scene()
    at = plan(result, truth=("P1", {"w": 0.1}), composition={"A": [0.5]}, field=(26, 26), most=4, experiments=60, seed=3)
    assert at.environments == 24 * 24
    assert at.dataset.truth.values.tolist() == ["P1"]
    assert "if P1 (w = 0.10) is true" in str(at)
    assert at.dataset.composition.attrs["long_name"] == "fraction of A"
    wide = plan(result, models=["P1"], field=1000, composition=[0.5], most=2, experiments=60, seed=3)
    assert wide.environments == 1000
    assert not wide.dataset.sizes["truth"]  # nothing to choose from
    assert "apart" not in str(wide)
    assert wide.best()[0].composition == 0.5
    # more sites tell more, in proportion
    ratio = wide.dataset.information.item() / at.dataset.information.item()
    assert ratio == pytest.approx(1000 / 576, rel=0.15)


def test_the_images_so_far_on_the_learning_curve():
    result = scene()
    sd, information = learned(result, result["P1"])
    assert sd.shape == information.shape == (2, 1)
    assert sd[1, 0] < sd[0, 0] < 0.5
    # the posterior is about as wide as the information of its images says
    assert sd[1, 0] == pytest.approx(result["P1"].posterior.sd[0], rel=0.2)
    assert information[1, 0] > 2 * information[0, 0]


@pytest.mark.slow
def test_three_species_and_four_couplings():
    """Couplings beyond what a pool covers densely, and compositions of more than two species."""
    species = ("A", "B", "C")
    pairs = [Pair(a, b, name=a + b, prior=dist.Normal(0, 0.3)) for a, b in ("AB", "AC", "BC")]
    many = Hamiltonian(
        "4", *pairs, Cluster("AAB", METAL.triangle("up"), name="t", prior=dist.Normal(0, 0.3)), lattice=METAL, species=species
    )
    none = Hamiltonian("R", lattice=METAL, species=species)
    labels = generator("plan many").integers(0, 3, (26, 26))
    result = analysed([none, many], [Observation.from_labels(labels, METAL, species, name="three")])
    p = plan(result, composition=[[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]], most=8, experiments=100, seed=1)
    assert np.isfinite(p.dataset.sd.values).all()
    assert np.isfinite(p.dataset.power.values).all()
    assert (p.dataset.sd.isel(images=-1) < 0.6 * p.dataset.sd.isel(images=0)).all()
    assert p.best("4.AB")[0].composition in ("A 0.2 B 0.3 C 0.5", "A 0.3333 B 0.3333 C 0.3333")
    assert "law" not in p.dataset


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["R"]}, "models R have no couplings: there is nothing to predict"),
        ({"models": ["P9"]}, "model 'P9' is not in this result"),
        ({"composition": [0.0, 0.5]}, "expected one row of rising numbers between 0 and 1"),
        ({"composition": [0.5, 1.2]}, "expected one row of rising numbers between 0 and 1"),
        ({"composition": {"Q": [0.5]}}, "expected values of one of A, B"),
        ({"composition": [0.001]}, "leaves a species without atoms"),
        ({"target_sd": {"w9": 0.1}}, "target_sd names coupling 'w9'; expected some of P1.w"),
        ({"target_sd": 0.0}, "target_sd of P1.w is 0.0; expected a number above 0"),
        ({"truth": "M"}, "truth is of model 'M'; expected one of R, P1"),
        ({"truth": ("P1", {"w": 3.0})}, "standard deviations from its posterior mean"),
        ({"truth": ("P1", {"v": 0.1})}, "v"),
        ({"field": 0}, "field 0 given"),
        ({"field": (4, 4, 4)}, "field of 3 sides given; expected 2"),
        ({"field": (2, 2)}, "has no site with all its neighbours"),
        ({"label_error": [[0.5, 0.5], [0.5, 0.5]]}, "labels carry no information"),
        ({"most": 0}, "most 0 given"),
        ({"experiments": 3}, "experiments 3 given; expected at least 50"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(InputError, match=message):
        plan(scene(), **{"composition": [0.5], "most": 2, "seed": 1, **change})


def test_questions_that_a_plan_cannot_answer():
    p = planned()
    for what, goal, message in (("M", None, "neither a truth"), ("P1.w", -1.0, "goal -1 given"), ("R", 1.5, "expected a power between")):
        with pytest.raises(InputError, match=message):
            p.needed(what, goal)
    with pytest.raises(InputError, match=r"composition 0\.3 was not planned for"):
        p.needed("R", composition=0.3)
    assert ladder(1) == [0, 1]


def test_nuisances_are_refused():
    """An image not yet taken has a temperature of its own."""
    from dataclasses import replace

    result = scene()
    images = [replace(o, temperature=t) for o, t in zip(result.observations, (700.0, 1100.0), strict=True)]
    fit = replace(result["P1"], parameters=Parameters.of(P1, images, Nuisances(energies=True)))
    with pytest.raises(InputError, match="model P1 has nuisance parameters"):
        plan(replace(result, fits={**result.fits, "P1": fit}), seed=1)


def test_plan_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "study.toml").write_text('[study]\nname = "s"\nseed = 3\nmodels = "mos2_res2"\n')
    monkeypatch.setattr(cli, "_stored", lambda *_: scene())
    given = ["plan", str(tmp_path), "--composition", "0.3,0.5", "--most", "4", "--quiet", "--workers", "1"]

    def run(*more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([*given, *more])
        said = capsys.readouterr()
        return stopped.value.code, said.out, said.err.strip()

    code, out, err = run("--sd", "P1.w=0.05", "--out", str(tmp_path / "deep"))
    assert code == 0, err
    assert "To tell" in out and "sd of P1.w:" in out
    found = xr.load_dataset(tmp_path / "deep" / "plan.nc", engine="h5netcdf")
    assert found.attrs["seed"] == 3 and found.composition.values.tolist() == [0.3, 0.5]
    assert all((tmp_path / "deep" / f"{name}_curve.png").stat().st_size > 10_000 for name in ("learning", "power"))
    for more, message in ((["--sd", "w9=0.1"], "w9"), (["--truth", "X"], "X"), (["--composition", "half"], "expected numbers")):
        code, _, err = run(*more)
        assert code == 2 and message in err and len(err.splitlines()) == 1
