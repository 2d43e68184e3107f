"""Parameters that differ from image to image: temperatures, compositions, label errors; and models of many couplings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Hamiltonian, Pair
from bayesatoms.inference.campaign import Campaign, Settings
from bayesatoms.inference.densities import log_likelihoods
from bayesatoms.inference.parameters import Nuisances, Parameters
from bayesatoms.inference.posterior import infer
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chain
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation
from bayesatoms.study import parse

LATTICE = Lattice.triangular(0.316)
P1 = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), lattice=LATTICE, species=("A", "B"))
QUICK = Settings(points=6, samples=160)
TEMPERATURES = {"cold": 700.0, "hot": 2100.0}


def alloy(seed, couplings, name, model=P1, fractions=(0.7, 0.3), side=30, window=26, error=None):
    """A window onto a crystal at known couplings, labels read with errors."""
    rng = np.random.default_rng(seed)
    counts = np.round(np.array(fractions) * side**2).astype(int)
    counts[0] = side**2 - counts[1:].sum()
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    compiled = model.compile(LATTICE.supercell((side, side)))
    chain = run_chain(compiled, couplings, labels, samples=1, burn=300, sweeps=1, seed=np.random.SeedSequence([seed, 5]))
    seen = chain.snapshots[0].astype(int)
    if error is not None:
        seen = (rng.random(len(seen)) < error[seen, 1]).astype(int)
    return Observation.from_labels(seen.reshape(side, side)[:window, :window], LATTICE, model.species, name=name, label_error=error)


def region(images, nuisances=None, model=P1, settings=QUICK, seed=1):
    """The calibrated posterior by the rounds of `infer`, without the final NUTS."""
    numpyro.enable_x64()
    campaign = Campaign.prepare(
        [model], images, seed=seed, pool=Pool(), settings=settings, workers=1, report=lambda *_: None, kinds=("calibrated",),
        nuisances=nuisances,
    )  # fmt: skip
    return campaign.run()[0]


@pytest.fixture(scope="module")
def pair():
    """Two images of one material, E = 0.45 kT at 700 K, frozen in at 700 and 2100 K."""
    return [alloy(1, [0.45], "cold"), alloy(2, [0.15], "hot")]


def test_couplings_of_each_image(pair):
    n = Nuisances(
        energies=True, temperatures={"cold": 700.0, "hot": dist.Normal(1400, 100)}, reference=700.0, constant={"w1": dist.Normal(0, 1)}
    )
    p = Parameters.of(P1, pair, n)
    assert p.names == ("w1", "w1 constant", "T of hot") and p.unit == "kT at 700 K"
    theta = np.array([0.3, 0.1, 1400.0])
    assert p.of_image("cold", theta) == pytest.approx([0.4]) and p.of_image("hot", theta) == pytest.approx([0.25])
    # w = E T_ref / T + c: slopes T_ref / T, 1 and -E T_ref / T^2
    assert p.slope("hot", theta, np.array([1.0, 1.0, 100.0])) == pytest.approx(np.array([[0.5, 1.0, -0.3 * 700 / 1400**2]]), rel=1e-6)
    assert Parameters.of(P1, pair).shared and not p.shared


def test_energies_are_shared_where_temperatures_differ(pair):
    """E within 3.5 sd of the truth by two temperatures (false alarm 0.05 %); taken for one coupling in kT the images disagree."""
    found = region(pair, Nuisances(energies=True, temperatures=TEMPERATURES, reference=700.0))
    sd = float(np.sqrt(found.cov[0, 0]))
    assert found.settled and abs(found.centre[0] - 0.45) < 3.5 * sd
    # each image alone, propagated by hand: precision-weighted E of the two
    alone = [region([o]) for o in pair]
    e, s = (np.array([r.centre[0] for r in alone]) * (1, 3), np.sqrt([r.cov[0, 0] for r in alone]) * (1, 3))
    expected = (e / s**2).sum() / (1 / s**2).sum()
    assert abs(found.centre[0] - expected) < 0.35 * sd and sd == pytest.approx((1 / s**2).sum() ** -0.5, rel=0.12)
    apart = (alone[0].centre[0] - alone[1].centre[0]) / np.hypot(*np.sqrt([r.cov[0, 0] for r in alone]))
    assert apart > 2  # negative control: in kT they are not one number


def test_images_together_or_one_by_one():
    """Two images in one call, and the product of the posteriors of each alone (its prior counted once), by Normal laws."""
    images = [alloy(seed, [0.25], name) for seed, name in ((11, "one"), (12, "two"))]
    both, alone = region(images), [region([o]) for o in images]
    precision = np.array([1 / r.cov[0, 0] for r in alone])
    total = precision.sum() - 1  # Normal(0, 1) is in both
    mean, sd = (precision @ [r.centre[0] for r in alone]) / total, total**-0.5
    # each of the three pools may be off by 0.15 sd of its own posterior
    assert abs(both.centre[0] - mean) < 0.35 * sd and np.sqrt(both.cov[0, 0]) == pytest.approx(sd, rel=0.12)


def test_two_temperatures_tell_energy_from_entropy_and_one_does_not(pair):
    constant = {"w1": dist.Normal(0, 1)}
    found = region(pair, Nuisances(energies=True, temperatures=TEMPERATURES, reference=700.0, constant=constant))
    truth = np.array([0.45, 0.0])
    distance = (found.centre - truth) @ np.linalg.solve(found.cov, found.centre - truth)
    assert found.settled and distance < 13.8  # chi-square of two, 0.1 %
    sd = np.sqrt(np.diag(found.cov))
    assert (sd < 0.3).all()  # both are known, much better than their priors
    assert np.corrcoef(found.draws.T)[0, 1] < -0.8
    with pytest.raises(InputError, match="all images froze in at 700 K: one temperature cannot tell the energy of w1"):
        region(pair[:1], Nuisances(energies=True, temperatures={"cold": 700.0}, constant=constant))
    same = {"cold": 700.0, "hot": 700.0}
    with pytest.raises(InputError, match="one temperature cannot tell"):
        region(pair, Nuisances(energies=True, temperatures=same, constant=constant))


def test_an_unknown_temperature_is_learnt_from_the_other_image(pair):
    prior = dist.LogNormal(np.log(2100), 0.8)
    found = region(pair, Nuisances(energies=True, temperatures={"cold": 700.0, "hot": prior}, reference=700.0))
    assert found.settled and found.parameters.names == ("w1", "T of hot")
    # a weak coupling leaves the hottest temperatures open, so look at the logarithm
    known = np.log(found.draws[:, 1])
    assert known.std() < 0.75 * 0.8 and abs(known.mean() - np.log(2100)) < 3.5 * known.std()


def test_composition_of_the_sample_is_a_parameter():
    """The couplings stay where conditioning on the window leaves them; the composition is as uncertain as clustered windows scatter.

    At 0.3 kT: nearer the transition, at 0.45, the likelihood is no polynomial over so wide a range of compositions, and says so.
    """
    images = [alloy(1, [0.3], "cold")]
    given, free = region(images), region(images, Nuisances(composition=True))
    assert free.settled and free.parameters.names == ("w1", "x_B of cold")
    sd = np.sqrt(np.diag(free.cov))
    assert abs(free.centre[0] - given.centre[0]) < 0.4 * sd[0] and 0.85 < sd[0] / np.sqrt(given.cov[0, 0]) < 1.3
    x = images[0].composition[1]
    binomial = np.sqrt(x * (1 - x) / images[0].n)
    # w1 > 0 makes like atoms cluster, so that windows scatter more than binomially; Normal(0, 1) prior, sampling of 0.3
    assert abs(free.centre[1] - x) < 2 * sd[1] and 1.2 * binomial < sd[1] < 4 * binomial


def test_rates_of_wrong_labels_have_an_error():
    error = np.array([[0.95, 0.05], [0.05, 0.95]])
    image = alloy(3, [0.4], "noisy", error=error)
    known, unknown = region([image]), region([image], Nuisances(label_error=0.5))
    assert unknown.parameters.names == ("w1", "label errors of noisy") and unknown.settled
    # an unknown rate costs: the pair count says the same of fewer interactions and of more errors
    assert np.corrcoef(unknown.draws.T)[0, 1] > 0.1
    assert unknown.cov[0, 0] > 1.02 * known.cov[0, 0]
    perfect = replace(image, label_error=np.eye(2))
    assert region([perfect], Nuisances(label_error=0.5)).parameters.shared  # labels without errors have no rate


def test_infer_reports_nuisances(pair, tmp_path):
    from bayesatoms.inference import trees

    settings = replace(QUICK, warmup=200, draws=250)
    nuisances = Nuisances(energies=True, temperatures={"cold": 700.0, "hot": dist.LogNormal(np.log(2100), 0.3)}, reference=700.0)
    result = infer(P1, pair, seed=1, settings=settings, nuisances=nuisances)
    fit = result["P1"]
    assert fit.draws.shape == (1000, 1) and fit.posterior.full.shape == (1000, 2)
    hot = fit.couplings_of(pair[1], fit.posterior.full)[:, 0]
    assert hot == pytest.approx(fit.draws[:, 0] * 700 / fit.posterior.nuisances["T of hot"].reshape(-1))
    assert np.isfinite(fit.crb_sd).all() and fit.crb_sd[0] < 1.1 * fit.posterior.sd[0]
    tree = trees.tree(result, "P1")
    assert tree["posterior"]["w1"].attrs["units"] == "kT at 700 K" and tree["posterior"]["T of hot"].attrs["units"] == "K"
    assert (tree["posterior_predictive"]["counts"].sum("environment") == tree["constant_data"]["sites"]).all()


def test_differing_temperatures_that_are_not_used_are_noted(pair):
    from bayesatoms.inference.posterior import _temperature_note

    images = [replace(o, temperature=t) for o, t in zip(pair, (700.0, 1400.0), strict=True)]
    assert "share couplings in kT" in _temperature_note(images, None)[0]
    assert not _temperature_note(images, Nuisances(energies=True)) and not _temperature_note(pair, None)


def test_what_cannot_be_is_refused(pair):
    with pytest.raises(InputError, match="cold: energies need its formation temperature"):
        Parameters.of(P1, pair, Nuisances(energies=True))
    with pytest.raises(InputError, match="formation temperature -3 K"):
        Parameters.of(P1, pair, Nuisances(energies=True, temperatures={"cold": -3.0, "hot": 700.0}))
    with pytest.raises(InputError, match="temperatures name image 'warm'"):
        Parameters.of(P1, pair, Nuisances(energies=True, temperatures={**TEMPERATURES, "warm": 900.0}))
    with pytest.raises(InputError, match="constant names coupling 'w9'"):
        infer(P1, pair, seed=1, nuisances=Nuisances(energies=True, temperatures=TEMPERATURES, constant={"w9": dist.Normal(0, 1)}))


def test_study_section():
    text = '[study]\nname = "s"\nseed = 1\nmodels = "mos2_res2"\n[nuisances]\n{}\n'
    assert parse(text.format("energies = true\ntemperature_K = {a = [900, 100]}")).file.nuisances.temperature_K == {"a": (900.0, 100.0)}
    with pytest.raises(InputError, match="expected numbers above 0"):
        parse(text.format("temperature_K = {a = [900, -1]}"))


@pytest.mark.slow
def test_the_page_on_nuisances_runs():
    """Its blocks one after another, as a reader would type them, on images made here."""
    import bayesatoms as ba

    page = Path(__file__).parents[1] / "docs" / "nuisances.md"
    made = [alloy(1, [0.45], "annealed"), alloy(2, [0.225], "quenched")]
    namespace = {"ba": ba, "dist": dist, "np": np, "models": [P1], "images": made}
    for source in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf8"), flags=re.MULTILINE | re.DOTALL):
        exec(source, namespace)
    drawn = namespace["mcmc"].get_samples()
    truth = 0.45 * 0.08617333 * 700  # meV, were the annealed sample at 700 K; the furnace says 1000 K
    assert abs(float(drawn["E"].mean()) - truth * 1000 / 700) < 4 * float(drawn["E"].std())
    assert float(drawn["T of annealed"].mean()) < float(drawn["T of quenched"].mean())


# ---------------------------------------------------------------------- many couplings


def ternary():
    prior, up = dist.Normal(0, 0.5), LATTICE.triangle("up")
    pairs = [Pair(*ab, shell=s, name=f"{''.join(ab)}{s}", prior=prior) for s in (1, 2) for ab in (("A", "B"), ("A", "C"), ("B", "C"))]
    triangles = [Cluster(t, up, orbit="all", name="".join(t).lower(), prior=prior) for t in (("A", "B", "C"), ("A", "A", "B"))]
    return Hamiltonian("H8", *pairs, *triangles, lattice=LATTICE, species=("A", "B", "C"))


EIGHT = np.array([0.3, -0.2, 0.1, -0.1, 0.1, 0.0, 0.2, -0.15])


def test_quadratics_through_slopes_follow_the_pool():
    """Where a pool is dense enough to be reweighted everywhere, the regression on its chains says the same log likelihood."""
    from bayesatoms.inference import smooth as module
    from bayesatoms.inference.smooth import SmoothEmulator

    model = Hamiltonian("P2", *P1.terms, Pair("A", "B", shell=2, prior=dist.Normal(0, 1)), lattice=LATTICE, species=("A", "B"))
    numpyro.enable_x64()
    image = alloy(4, [0.3, -0.1], "one", model=model)
    campaign = Campaign.prepare(
        [model], [image], seed=1, pool=Pool(), settings=Settings(points=12), workers=1, report=lambda *_: None, kinds=("calibrated",)
    )
    found = campaign.run()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DENSE", 1)
        regressed = SmoothEmulator.fit(campaign.emulator, found.parameters, found.centre, found.cov, np.random.default_rng(0))
    inside = found.draws[regressed.support(found.draws) > 0][:400]
    assert len(inside) > 350 and np.quantile(regressed.support(inside), 0.05) > 1
    values = [log_likelihoods(s, [image], "calibrated", inside).sum(axis=1) for s in (found.smooth, regressed)]
    assert np.std(values[0] - values[1]) < 0.25
    # held-out residuals: their mean square is 1, or less as far as looks at other places of a snapshot agree less than
    # snapshots do (the mean has less of the window's noise than one look), with the spread of a chi-square over 4 values
    # of some 15 chains or more, 3 sd
    found = campaign.emulator.images["one"]
    calm = (found.table[:, : len(found.offset)].var(axis=0) / found.values.var(axis=0)).mean()
    assert 0.4 * calm < regressed.misfit < 1.6


@pytest.mark.slow
def test_eight_couplings():
    """Ten ternary crystals, eight couplings: chi-square of the truth under each posterior; sum within 99.9 % of chi-square(80)."""
    model, total = ternary(), 0.0
    for seed in range(10):
        image = alloy(100 + seed, EIGHT, f"i{seed}", model=model, fractions=(1 / 3, 1 / 3, 1 / 3), side=40, window=34)
        found = region([image], model=model, settings=Settings())
        assert found.settled and found.smooth.misfit < 2
        total += (found.centre - EIGHT) @ np.linalg.solve(found.cov, found.centre - EIGHT)
    assert 44 < total < 125
