"""Before a run: bounds are those of closed forms and of the posterior, thresholds those of the evidence, costs those of a run."""

from __future__ import annotations

import json
import time

import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import generator, seed_of
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

from bayesatoms import catalogue, cli
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference.comparison import compare
from bayesatoms.inference.parameters import Nuisances, Parameters
from bayesatoms.inference.posterior import infer
from bayesatoms.inference.priors import PRIOR_SCALES
from bayesatoms.inference.sequential import Sequential
from bayesatoms.inference.settings import Settings
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chains
from bayesatoms.observation import Observation
from bayesatoms.planning.bounds import Bound, probe
from bayesatoms.planning.cost import estimate, measure
from bayesatoms.planning.decisions import decisions, threshold, verdict
from bayesatoms.planning.validate import validate

METAL = Lattice.triangular(0.316)
ALLOY = {"lattice": METAL, "species": ("A", "B")}
WIDE = dist.Normal(0, 1)
R = Hamiltonian("R", **ALLOY)
P1 = Hamiltonian("P1", Pair("A", "B", name="w1", prior=WIDE), **ALLOY)
P2 = Hamiltonian("P2", Pair("A", "B", name="w1", prior=WIDE), Pair("A", "B", shell=2, name="w2", prior=WIDE), **ALLOY)


def images(
    n: int, w: float, *, x: float = 0.5, side: int = 22, box: int = 28, wrong: float = 0.0, key: str = "images"
) -> list[Observation]:
    """Windows of really simulated crystals; some labels wrong, and known to be."""
    compiled, rng = P1.compile(METAL.supercell((box, box))), generator(f"validate {key} labels")
    start = (np.arange(box**2) < round(x * box**2)).astype(np.uint8)
    starts = np.array([rng.permutation(start) for _ in range(n)])
    chains = run_chains(compiled, np.full((n, 1), w), starts, samples=1, burn=600.0, seeds=seed_of(f"validate {key}").spawn(n))
    found = []
    for i, c in enumerate(chains):
        labels = c.snapshots[-1].astype(int)
        labels = np.where(rng.random(len(labels)) < wrong, 1 - labels, labels).reshape(box, box)
        keywords = {} if side < box else {"periodic": True}
        error = None if wrong == 0 else [[1 - wrong, wrong], [wrong, 1 - wrong]]
        found.append(Observation.from_labels(labels[:side, :side], **ALLOY, name=f"{key} {i}", label_error=error, **keywords))
    return found


def bounds(models, observations, samples=240):
    return probe(models, observations, settings=Settings(samples=samples), nuisances=Nuisances(), seed=1).bounds


def normal_bound(model: Hamiltonian, estimate: list[float], information: np.ndarray, log_likelihood: float = 0.0) -> Bound:
    """A likelihood that is normal about an estimate, as a bound at its mode under the prior."""
    parameters = Parameters.of(model, images(1, 0.0, side=9, box=9, key="any"))
    middle, k = np.array(estimate), len(estimate)
    mode = np.linalg.solve(information + np.eye(k), information @ middle)
    score, apart = information @ (middle - mode), middle - mode
    height = log_likelihood - 0.5 * apart @ information @ apart
    return Bound(parameters, mode, information[None], information[None], score, height, None, True)


# ---------------------------------------------------------------------- bounds


def test_width_at_the_random_alloy_is_the_closed_form():
    """Var(F) = 12 n x^2 (1 - x)^2 for unlike pairs of a whole crystal: the sd to 8 % (3 sigma of some 200 records).

    The pseudo-likelihood's curvature is 1 / sqrt(2) of that, and 12 sigma away.
    """
    [o] = images(1, 0.0, side=24, box=24, key="whole")
    b = bounds([P1], [o])["P1"]
    exact = (12 * 576 / 16) ** -0.5
    assert b.crb_sd[0] == pytest.approx(exact, rel=0.08)
    assert b.pseudo.sd[0] == pytest.approx(exact / np.sqrt(2), rel=0.08)
    assert b.supported


def test_estimates_find_the_truth_and_undo_label_errors():
    """Six images at w = 0.35 with every tenth label wrong: |z| < 4; the pseudo-likelihood is 3 of these sd short of the truth."""
    noisy = bounds([P1], images(6, 0.35, wrong=0.1, key="noisy"))["P1"]
    assert abs(noisy.couplings[0] - 0.35) < 4 * noisy.sd[0]
    assert 0.35 - noisy.pseudo.couplings[0] > 3 * noisy.sd[0]
    assert noisy.sd[0] > 1.2 * noisy.clean_sd[0]
    clean = bounds([P1], images(6, 0.35, key="clean"))["P1"]
    assert abs(clean.couplings[0] - 0.35) < 4 * clean.sd[0]
    assert np.array_equal(clean.sd, clean.clean_sd)


def test_the_price_of_label_errors_near_the_random_alloy():
    """Correlations of labels shrink by (1 - 2 e)^2 = 0.64 and noise stays: widths grow by its inverse, to 10 % (same chains)."""
    b = bounds([P1], images(4, 0.0, wrong=0.1, key="price"))["P1"]
    assert b.crb_sd[0] / b.clean_sd[0] == pytest.approx(1 / 0.64, rel=0.1)


def test_a_large_image_is_as_a_block_of_it():
    """4,800 environments through a block of 1,000: the width of the pairs' closed form, less the rim, to 8 %."""
    large = images(1, 0.0, side=72, box=80, key="large")
    b = bounds([P1], large)["P1"]
    assert b.crb_sd[0] == pytest.approx((12 * large[0].n / 16) ** -0.5, rel=0.1)


def test_widths_are_those_of_the_posterior():
    """Two images, one coupling and two: the expected width is the posterior's to 15 %, the mode its mean to half a width."""
    given = images(2, 0.2, key="posterior")
    found, session = bounds([P1, P2], given, samples=150), Sequential([P1, P2], seed=1)
    session.add(given)
    for name in ("P1", "P2"):
        draws = session.draws(name)
        assert found[name].sd == pytest.approx(draws.std(axis=0), rel=0.15)
        assert (np.abs(found[name].couplings - draws.mean(axis=0)) < 0.5 * draws.std(axis=0)).all()
    # negative control: the pseudo-likelihood's own curvature is refused by the same rule
    assert found["P1"].pseudo.sd[0] < 0.85 * session.draws("P1").std()


def test_temperatures_turn_energies_into_couplings():
    """Information on an energy goes as 1 / T^2: at a thousand times the temperature, a millionth of the pairs' closed form.

    To 35 %, 3 sigma of the records of two chains.
    """
    cold, hot = images(2, 0.0, key="energies")
    known = Nuisances(energies=True, temperatures={cold.name: 500.0, hot.name: 5e5}, reference=500.0)
    both = probe([P1], [cold, hot], settings=Settings(), nuisances=known, seed=1).bounds["P1"]
    exact = 12 * hot.n * float(hot.composition.prod()) ** 2
    assert 1e6 * both.information[1, 0, 0] == pytest.approx(exact, rel=0.35)
    assert both.information[0, 0, 0] > 0.5 * exact


def test_models_without_couplings_and_images_that_say_nothing():
    dilute = images(1, 0.0, x=0.02, side=12, box=16, key="dilute")
    found = validate([R, P1], dilute, seed=1)
    assert found.bounds["R"].log_evidence() == 0.0 and found.bounds["R"].sd.shape == (0,)
    assert any("say next to nothing about w1" in s for s in found.sentences())
    assert found.verdict.remain == ("R", "P1") and "cannot decide" in str(found)


# ---------------------------------------------------------------------- evidence, thresholds, decisions


def test_evidence_is_the_integral():
    """Normal likelihood times normal prior, by quadrature, under three widths and for twice the data."""
    b = normal_bound(P1, [0.3], np.array([[200.0]]), 4.0)
    for scale in PRIOR_SCALES:
        for more in (1.0, 2.0):

            def density(w: float, scale: float = scale, more: float = more) -> float:
                return np.exp(more * (4.0 - 100.0 * (w - 0.3) ** 2) + norm.logpdf(w, 0, scale) - 8.0)

            exact = np.log(quad(density, -2, 2, points=[0.3])[0]) + 8.0
            assert b.log_evidence(scale, more) == pytest.approx(exact, abs=1e-6)
    two = normal_bound(P2, [0.3, -0.1], np.array([[200.0, 50.0], [50.0, 150.0]]))
    place = np.stack(np.meshgrid(*[np.linspace(-1.5, 1.5, 601)] * 2, indexing="ij"), axis=-1)
    apart = place - [0.3, -0.1]
    values = -0.5 * np.einsum("xya,ab,xyb->xy", apart, two.information[0], apart) + norm.logpdf(place).sum(axis=-1)
    assert two.log_evidence() == pytest.approx(logsumexp(values) + 2 * np.log(0.005), abs=1e-4)


@pytest.mark.parametrize("mean", [0.0, 0.4])
@pytest.mark.parametrize("sd", [0.05, 0.01])
def test_a_threshold_is_where_the_evidence_decides(sd, mean):
    """At the threshold the least favourable of three priors gives odds of 19, by quadrature; likewise for absence."""

    def log_odds(w: float, scale: float) -> float:
        # the images' law over the prior, against the same at zero
        wide = scale
        return norm.logpdf(w, mean, np.hypot(sd, wide)) - norm.logpdf(w, 0, sd)

    below, above, within = threshold(sd, mean, 1.0)
    for edge in (below, above):
        assert min(log_odds(edge, s) for s in PRIOR_SCALES) == pytest.approx(np.log(19), abs=1e-6)
    assert (within is None) == (sd == 0.05)
    if within is not None:
        for edge in within:
            assert max(log_odds(edge, s) for s in PRIOR_SCALES) == pytest.approx(-np.log(19), abs=1e-6)


def test_decisions_are_those_of_the_verdict():
    """For one coupling threshold and evidence are two ways to the same: estimates either side of it, and absence."""
    for sd, factor, expected in ((0.05, 0.95, ("R", "P1")), (0.05, 1.05, ("P1",)), (0.01, 0.0, ("R",))):
        _, above, _ = threshold(sd, 0.0, 1.0)
        value = factor * above
        b = normal_bound(P1, [value], np.array([[sd**-2]]), 0.5 * (value / sd) ** 2)
        null = Bound(Parameters.of(R, []), np.zeros(0), np.zeros((1, 0, 0)), np.zeros((1, 0, 0)), np.zeros(0), 0.0, None, True)
        found = verdict({"R": null, "P1": b})
        assert set(found.remain) == set(expected) and found.decides == (len(expected) == 1)
        assert sum(found.weights.values()) == pytest.approx(1.0)
        [d] = decisions([R, P1], {"R": null, "P1": b}, images(1, 0.0, side=9, box=9, key="any"), 1)
        assert (d.decides or "none") == (expected[0] if len(expected) == 1 else "none")
        assert d.estimate == pytest.approx(value, abs=1e-9) and d.sd == pytest.approx(sd)


def test_chances_and_what_is_missing():
    """Chances against simulated estimates (|z| < 4 of 4,000); the environments that are missing by the pairs' closed form."""
    sd, value, rng = 0.05, -0.12, generator("validate chances")
    null = Bound(Parameters.of(R, []), np.zeros(0), np.zeros((1, 0, 0)), np.zeros((1, 0, 0)), np.zeros(0), 0.0, None, True)
    b = normal_bound(P1, [value], np.array([[sd**-2]]), 0.5 * (value / sd) ** 2)
    [d] = decisions([R, P1], {"R": null, "P1": b}, images(1, 0.0, side=9, box=9, key="any"), 1)
    seen = rng.normal(0, 1, 4000) + rng.normal(0, sd, 4000)
    share = ((seen < d.below) | (seen > d.above)).mean()
    assert abs(share - d.chance_outer) < 4 * np.sqrt(share * (1 - share) / 4000)
    assert d.chance_inner == 0.0 and "cannot decide" in str(d)
    # 0.75 of information an environment at x = 1/2, for a width at which -0.12 is the threshold
    needed = next(s for s in np.geomspace(sd, 0.001, 4000) if threshold(s, 0.0, 1.0)[1] < abs(value))
    assert d.more == pytest.approx((needed**-2 - sd**-2) / 0.75, rel=0.2)


def test_verdict_agrees_with_the_comparison_of_the_published_counts(data):
    """Four published images: the same models remain as in the run (R, P1 and M), and the weights lie within 0.15 of its."""
    study = catalogue.load("mos2_res2")
    found = validate(study.models, study.data, seed=1)
    assert set(found.verdict.remain) == {"R", "P1", "M"}
    [pair] = [d for d in found.decisions if d.outer == "P1"]
    assert pair.estimate == pytest.approx(-0.06, abs=0.02) and pair.sd == pytest.approx(0.052, rel=0.1)
    assert pair.above == pytest.approx(0.19, abs=0.02)


# ---------------------------------------------------------------------- cost


def test_costs_follow_from_what_is_to_be_done():
    given, settings = images(2, 0.1, key="cost"), Settings()
    rates = measure([R, P1, P2], given, settings, Nuisances(), 0.8)
    assert rates.rate > 1e5 and all(v > 0 for v in rates.look.values())
    # images of one box share their chains
    assert sorted(v > 0 for v in rates.chain.values()) == (
        [False, True] if given[0].composition[0] == given[1].composition[0] else [True, True]
    )

    def total(models, workers=1, **changed):
        return estimate(models, given, Settings(**changed), rates, kept=0.8, lookup=2e-8, workers=workers).seconds

    low, expected, high = total([R, P1, P2])
    assert low < expected < high
    assert total([R, P1])[1] < expected and total([R, P1, P2], workers=4)[1] < expected < total([R, P1, P2], points=32)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("which", "n", "side"), [("R,P1", 1, 22), ("R,P1,P2", 3, 22), ("R,P1", 1, 60)])
def test_costs_and_widths_are_those_of_a_run(which, n, side):
    """Time of `infer` and `compare` on one core, everything compiled, within a factor of 2 of what was expected; widths to 15 %."""
    models = [m for m in (R, P1, P2) if m.name in which.split(",")]
    given = images(n, 0.2, side=side, box=side + 8, key=f"run {which} {n}")
    compare(infer(models, given, seed=3))  # compiles
    said = validate(models, given, seed=1)
    expected = sum(s.expected for s in said.cost.stages if s.name in ("simulate", "sample", "compare"))
    clock = time.perf_counter()
    result = infer(models, given, seed=4)
    compare(result)
    seconds = time.perf_counter() - clock
    for name, bound in said.bounds.items():
        if bound.names:
            assert bound.sd == pytest.approx(result[name].posterior.sd, rel=0.15)
    assert 0.5 < seconds / expected < 2, (seconds, said.cost)


# ---------------------------------------------------------------------- the whole, and the command line


def test_a_forecast_in_words_and_numbers():
    found = validate(
        [R, P1, P2], images(2, 0.35, wrong=0.05, key="words"), seed=1, relabelled=1, phases={"composition": [0.5], "draws": 20}
    )
    text, content = str(found), found.summary()
    for part in ("Given", "What these images can and cannot decide", "Time and memory", "0.05 of the labels expected to be wrong"):
        assert part in text
    assert "P1: w1 ~ Normal(0, 1) kT" in text and "label errors of words 0, words 1 cost width" in text
    assert "P1 against R: the data should decide for P1" in text
    assert {"labellings", "phase map"} <= set(content["cost"]["stages"])
    assert content["models"]["P1"]["sd"]["w1"] > content["models"]["P1"]["sd_without_label_errors"]["w1"]
    again = validate([R, P1, P2], images(2, 0.35, wrong=0.05, key="words"), seed=1)
    assert again.summary()["models"] == content["models"] and again.sentences() == found.sentences()


def test_what_the_probe_cannot_say_is_left_to_the_run():
    """A perfect checkerboard lies beyond the probe, some priors are far from normal laws: no verdict, and no contradiction."""
    square = {"lattice": Lattice.square(), "species": ("A", "B")}
    checkers = Observation.from_labels(np.indices((16, 16)).sum(0) % 2, **square, name="checkers")
    models = [Hamiltonian("R", **square), Hamiltonian("P", Pair("A", "B", name="w", prior=WIDE), **square)]
    strong = validate(models, checkers, seed=1)
    assert strong.verdict is None and not strong.decisions and not strong.bounds["P"].supported
    assert "as far as the probe reached" in str(strong) and "is left to the run" in str(strong)
    given = images(1, 0.0, key="flat")
    for prior in (dist.Cauchy(0, 1), dist.HalfNormal(1), dist.Uniform(-1, 1)):
        found = validate([R, Hamiltonian("P", Pair("A", "B", name="w1", prior=prior), **ALLOY)], given, seed=1)
        assert found.verdict is None and not found.decisions and found.bounds["P"].supported
        assert "priors that are bounded or have no width" in str(found)
        assert np.asarray(prior.support(found.bounds["P"].couplings[0]))


def test_refusals():
    given = images(1, 0.0, key="refused")
    with pytest.raises(InputError, match="nothing to infer"):
        validate([R], given)
    with pytest.raises(InputError, match="0 observations given"):
        validate([R, P1], [])
    with pytest.raises(InputError, match="0 workers given"):
        validate([R, P1], given, workers=0)
    with pytest.raises(InputError, match="prior"):
        validate([Hamiltonian("P", Pair("A", "B"), **ALLOY)], given)


STUDY = """
[study]
name = "s"
seed = 1
models = "mos2_res2"
include = ["R", "P1"]

[[image]]
name = "re55"
counts = [0, 3, 3, 9, 6, 7, 46, 7, 21, 27, 23, 30, 6, 1, 16, 21, 18, 15, 6, 49, 21, 7, 32, 28, 46, 18]

[phases]
run = false
"""


def test_command_line(tmp_path, capsys):
    (tmp_path / "study.toml").write_text(STUDY)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["validate", str(tmp_path / "study.toml"), "--json", str(tmp_path / "deep" / "f.json"), "--workers", "1"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "re55: 466 environments" in text and "cannot decide between R and P1" in text and "About " in text
    found = json.loads((tmp_path / "deep" / "f.json").read_text())
    assert found["verdict"]["remain"] == ["R", "P1"] and "phase map" not in found["cost"]["stages"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "study.toml"]  # nothing else is written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mos2_res2", "nowhere.py"), "nowhere.py"),
        (("seed = 1", "seed = -1"), "key study.seed"),
        (("counts = [0,", "counts = [-1,"), "count -1 of class"),
        (('include = ["R", "P1"]', 'include = ["R"]'), "there is nothing to infer"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(change, message, tmp_path, capsys):
    (tmp_path / "study.toml").write_text(STUDY.replace(*change))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["validate", str(tmp_path / "study.toml")])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and said.startswith("bayesatoms: ") and message in said and len(said.splitlines()) == 1
