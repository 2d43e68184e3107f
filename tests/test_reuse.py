"""Other labels of the same images take the chains that there are: the same answer as a fresh run, few or no new chains, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import numpyro.distributions as dist
import pytest

from bayesatoms import cli, study
from bayesatoms.configuration import UNSEEN, Configuration
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference.campaign import Campaign, Settings
from bayesatoms.inference.posterior import infer
from bayesatoms.inference.reuse import FILE, Simulated
from bayesatoms.inference.sensitivity import Estimate, label_sensitivity, moves, sentence
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chain
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation

LATTICE, SPECIES = Lattice.triangular(0.316), ("A", "B")
ALLOY = {"lattice": LATTICE, "species": SPECIES}
P1 = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 0.5)), **ALLOY)
RANDOM = Hamiltonian("R", **ALLOY)
QUICK = Settings(points=4, samples=160, warmup=300, draws=1000)


def photograph(seed, name, w=0.2, x=0.3, side=28, window=22):
    """A window on a configuration sampled at w."""
    rng = np.random.default_rng(seed)
    start = Configuration.random(LATTICE, SPECIES, (side, side), (1 - x, x), rng)
    chain = run_chain(P1.compile(start.supercell), [w], start.flat, samples=1, burn=200, sweeps=1, seed=np.random.SeedSequence(seed))
    return relabelled(chain.snapshots[0].astype(int).reshape(side, side)[:window, :window], name)


def relabelled(labels, name):
    return Observation.from_labels(labels, LATTICE, SPECIES, name=name)


def labels(o):
    return o.configuration.labels[..., 0].astype(int)


def swapped(o, share, rng):
    """A share of the labels wrong, the composition kept."""
    found = labels(o).copy()
    for species in (0, 1):
        flat = found.reshape(-1)
        flat[rng.choice(np.flatnonzero(labels(o) == species), round(share * found.size / 2), replace=False)] = 1 - species
    return relabelled(found, o.name)


def permuted(o, rng):
    """The labels dealt out anew among the sites: no order is left."""
    return relabelled(rng.permutation(labels(o).reshape(-1)).reshape(labels(o).shape), o.name)


def rounds(observations, past, **changes):
    """The campaign of `infer` without the final NUTS, and its calibrated draws."""
    settings = {"seed": 3, "pool": Pool(), "settings": QUICK, "workers": 1, "report": lambda *_: None} | changes
    campaign = Campaign.prepare([RANDOM, P1], observations, past=past, **settings)
    region = next(r for r in campaign.run() if r.kind == "calibrated")
    assert region.settled
    return campaign, region.draws[:, 0]


def apart(one, two):
    """Difference of the means in standard deviations of the second, and ratio of the widths."""
    return abs(one.mean() - two.mean()) / two.std(), one.std() / two.std()


@pytest.fixture(scope="module")
def images():
    return [photograph(21, "one"), photograph(22, "two")]


@pytest.fixture(scope="module")
def result(images):
    return infer([RANDOM, P1], images, seed=3, settings=QUICK)


# ------------------------------------------------------------------ reuse


def test_identical_observations_need_no_chain(images, result, monkeypatch):
    # all of infer but NUTS, which takes longer than all the rest
    monkeypatch.setattr("bayesatoms.inference.posterior.sample", lambda *given: result["P1"].posteriors[given[2]])
    again = infer([RANDOM, P1], images, seed=3, settings=QUICK, reuse=result)
    assert again.simulation["chains_simulated_now"] == 0 and again.notes == ()
    assert again.simulation["chains_reused"] == result.simulation["chains"]
    shift, width = apart(rounds(images, result.simulated)[1], result["P1"].draws)
    assert shift < 0.15 and 0.9 < width < 1.1
    assert all(c.ok for c in again.checks.values()), again.checks
    # the same chains, seen through the same operator
    for name, image in result.emulator.images.items():
        np.testing.assert_array_equal(again.emulator.images[name].table, image.table)


def test_two_percent_of_labels_changed_need_few_chains(images, result):
    others = [swapped(o, 0.02, np.random.default_rng(5)) for o in images]
    campaign, draws = rounds(others, result.simulated)
    fresh, expected = rounds(others, None)
    assert len(campaign.design) <= len(result.simulated.points) + QUICK.points  # measured: none
    assert campaign.pool.simulated < fresh.pool.simulated / 2
    shift, width = apart(draws, expected)
    assert shift < 0.3 and 0.8 < width < 1.25
    assert np.array_equal(draws, rounds(others, result.simulated)[1])


def test_a_posterior_beyond_the_chains_gets_new_ones(images, result):
    """Chains at strong coupling only; the other labels have no order. The rounds go on and find it."""
    far = replace(result.simulated, points=[p for p in result.simulated.points if p.couplings[0] > 0.2])
    assert 0 < len(far.points) < len(result.simulated.points)
    others = [permuted(o, np.random.default_rng(8)) for o in images]
    campaign, draws = rounds(others, far)
    assert campaign.pool.simulated > 0
    shift, width = apart(draws, rounds(others, None)[1])
    assert shift < 0.3 and 0.8 < width < 1.25


def test_a_moved_window_and_an_image_that_does_not_fit(images, result):
    """A narrower mask takes the old box; another composition or too wide a window does not, and a note says why."""
    narrow = labels(images[0]).copy()
    narrow[:, :3] = UNSEEN
    campaign = Campaign.prepare(
        [P1], [relabelled(narrow, "one"), photograph(9, "two", x=0.45)], seed=1, pool=Pool(), settings=QUICK, workers=1,
        report=lambda *_: None, past=result.simulated,
    )  # fmt: skip
    assert campaign.shapes["one"] == result.simulated.boxes["one"].shape
    assert campaign.variants["one"][0].atoms == result.simulated.boxes["one"].atoms
    assert campaign.variants["two"][0].atoms != result.simulated.boxes["two"].atoms
    assert len(campaign.notes) == 1 and "two: the composition is beyond one standard deviation" in campaign.notes[0]
    campaign.gather(result.simulated.points)
    assert campaign.pool.simulated == len(result.simulated.points)  # of the second image only
    with pytest.raises(InputError, match=r"window of .* does not fit into the box"):
        result.simulated.box(photograph(21, "one", side=60, window=50))


def test_a_folder_serves_another_process(images, result, tmp_path):
    """What is written beside a pool finds the same chains again; keys do not change on the way."""
    pool = Pool(tmp_path / "pool")
    kept = Campaign.prepare(
        [P1], images, seed=3, pool=pool, settings=QUICK, workers=1, report=lambda *_: None, past=result.simulated
    )  # fmt: skip
    kept.gather(result.simulated.points)
    assert pool.simulated == 0
    (tmp_path / FILE).write_text(result.simulated.save())
    found = Simulated.load(tmp_path)
    assert found.points == list(result.simulated.points) and found.boxes == result.simulated.boxes
    campaign, draws = rounds(images, found)
    assert campaign.pool.simulated == 0
    assert np.array_equal(draws, rounds(images, result.simulated)[1])


def test_what_does_not_belong_together_is_refused(images, result, tmp_path):
    def ask(models, observations):
        infer(models, observations, seed=3, settings=QUICK, reuse=result)

    second = Hamiltonian("P2", Pair("A", "B", prior=dist.Normal(0, 1)), Pair("A", "B", shell=2, prior=dist.Normal(0, 1)), **ALLOY)
    with pytest.raises(InputError, match="chains count the terms w1, the models have w1, w2"):
        ask([second], [o.with_environments(type(o.environments)(LATTICE, SPECIES, 2)) for o in images])
    other = Hamiltonian("P1", Pair("B", "B", name="w1", prior=dist.Normal(0, 1)), **ALLOY)
    with pytest.raises(InputError, match="w1 stood for another term"):
        ask([other], images)
    square = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), lattice=Lattice.square(), species=SPECIES)
    with pytest.raises(InputError, match="reuse: the chains are on Lattice\\(triangular"):
        ask([square], [Observation.from_labels(labels(images[0]), square.lattice, SPECIES, name="one")])
    species = Hamiltonian("P1", Pair("A", "C", prior=dist.Normal(0, 1)), lattice=LATTICE, species=("A", "C"))
    with pytest.raises(InputError, match="the chains are of species A/B, the images of A/C"):
        ask([species], [Observation.from_labels(labels(images[0]), LATTICE, ("A", "C"), name="one")])
    with pytest.raises(InputError, match="the chains are of images one, two, asked for are three"):
        ask([P1], [relabelled(labels(images[0]), "three")])
    with pytest.raises(InputError, match=r"design.json cannot be read .* expected the results folder of a finished run"):
        Simulated.load(tmp_path)
    (tmp_path / FILE).write_text('{"points": 3}')
    with pytest.raises(InputError, match="no list of chains written by bayesatoms"):
        Simulated.load(tmp_path)


def test_the_study_file_names_a_folder_beside_itself(tmp_path, capsys):
    text = '[study]\nname = "s"\nseed = 1\nmodels = "mos2_res2"\n[infer]\nreuse = "earlier"\n'
    (tmp_path / "study.toml").write_text(text)
    assert study.read(tmp_path / "study.toml").file.infer.reuse == str(tmp_path / "earlier")
    for extra, expected in (([], "earlier"), (["--reuse", str(tmp_path / "elsewhere")], "elsewhere")):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["run", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out"), "--quiet", *extra])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and expected in said and "results folder of a finished run" in said


# ------------------------------------------------------------------ sensitivity


def test_the_same_labels_move_nothing(images, result):
    found = label_sensitivity(result, {"again": images})
    (row,) = found.rows
    assert row.method == "reweighted" and row.effective == pytest.approx(2000)
    assert abs(row.shift) < 0.05 and found.sensitive == ()
    assert found.sentences()[0].startswith("P1: w1 is not label-sensitive: 0.") and "under 'again'" in str(found)


def test_changed_labels_shift_as_a_full_run_says(images, result):
    others = [swapped(o, 0.08, np.random.default_rng(5)) for o in images]
    (row,) = label_sensitivity(result, {"careless": others}).rows
    expected = rounds(others, None)[1]
    assert row.method == "reweighted" and row.shift < -0.3  # wrong labels hide order: towards zero
    assert abs(row.estimate.mean - expected.mean()) < 0.3 * expected.std()
    assert 0.8 < row.estimate.sd / expected.std() < 1.25
    # one image relabelled of two: the other keeps its labels, the shift is smaller
    (half,) = label_sensitivity(result, {"careless": others[0]}).rows
    assert row.shift < half.shift < 0


def test_labels_dealt_out_anew_leave_no_coupling(images, result):
    """Negative control: labels permuted among the sites carry no order, so the coupling goes to zero and is named."""
    before = len(result.simulated.pool)
    others = [permuted(o, np.random.default_rng(8)) for o in images]
    found = label_sensitivity(result, {"dealt": others})
    (row,) = found.rows
    expected = rounds(others, None)[1]
    assert row.method == "laplace" and row.effective < 200
    assert abs(row.estimate.mean) < 3 * row.estimate.sd and row.estimate.sign == 0
    assert abs(row.estimate.mean - expected.mean()) < 0.3 * expected.std()
    assert found.sensitive == (("P1", "w1"),) and "P1: w1 is label-sensitive: 0." in str(found) and "under 'dealt'" in str(found)
    assert len(result.simulated.pool) == before


def test_what_the_chains_do_not_cover_gets_no_numbers(images, result):
    other = photograph(9, "two", x=0.45)
    found = label_sensitivity(result, {"bright": other})
    (row,) = found.rows
    assert row.method == "not covered" and row.estimate is None and np.isnan(row.shift) and "composition" in row.why
    assert "The chains do not cover 'bright'" in str(found) and found.sensitive == ()
    (row,) = label_sensitivity(result, {"bright": other}, simulate=True).rows
    assert row.method == "simulated" and row.estimate is not None
    with pytest.raises(InputError, match="labelling 'x' has an image 'three'; the result has one, two"):
        label_sensitivity(result, {"x": relabelled(labels(other), "three")})


def test_the_rule():
    given = Estimate(0.2, 0.1, 0.01, 0.39)
    assert moves(given, Estimate(0.31, 0.1, 0.1, 0.5)) and moves(given, Estimate(0.15, 0.1, -0.05, 0.35))
    assert not moves(given, Estimate(0.195, 0.1, -0.001, 0.39))  # Monte Carlo noise turns no verdict
    assert moves(Estimate(0.2, 0.5, 0.01, 0.4), Estimate(-0.2, 0.5, -0.4, -0.01))
    said = sentence("w1", given, {"a": Estimate(0.21, 0.1, 0.02, 0.4), "b": None})
    assert said == (
        "w1 is not label-sensitive: 0.20 ± 0.10 as labelled, 0.21 ± 0.10 under 'a'. "
        "The chains do not cover 'b': run infer with its labels and reuse."
    )


# ------------------------------------------------------------------ by hand, from the command line

MODELS = """
from numpyro import distributions as dist

from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice

ALLOY = {"lattice": Lattice.triangular(0.316), "species": ("A", "B")}
MODELS = [Hamiltonian("R", **ALLOY), Hamiltonian("P1", Pair("A", "B", name="w1", prior=dist.Normal(0, 0.5)), **ALLOY)]
"""
STUDY = """
[study]
name = "by hand"
seed = 3
models = "models.py"
[[image]]
name = "one"
table = "{table}"
{more}
[infer]
points = 4
samples = 160
warmup = 200
draws = 500
[phases]
run = false
"""


@pytest.mark.slow
def test_correct_the_table_and_run_again(images, tmp_path, capsys):
    """Run; correct labels in the exported table; run again with --reuse: no new chain. A relabelled column takes them too."""
    (tmp_path / "models.py").write_text(MODELS)
    places = LATTICE.positions(images[0].configuration.supercell.sites)
    found = zip(places, images[0].configuration.flat, swapped(images[0], 0.02, np.random.default_rng(1)).configuration.flat, strict=True)
    rows = [f"{x},{y},{SPECIES[a]},{SPECIES[b]}" for (x, y), a, b in found]
    (tmp_path / "sites.csv").write_text("\n".join(["x,y,species,second", *rows]))
    (tmp_path / "a.toml").write_text(STUDY.format(table="sites.csv", more='relabel = { second = { species = "second" } }'))

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["run", *map(str, arguments), "--quiet"])
        assert stopped.value.code == 0, capsys.readouterr().err

    run(tmp_path / "a.toml", "--out", tmp_path / "first")
    first = json.loads((tmp_path / "first" / "summary.json").read_text())
    pooled = len(list((tmp_path / "first" / "pool" / "chains").glob("*.npz")))
    assert pooled == first["simulation"]["chains"]  # none was added for the second labelling
    assert "P1: w1 is " in (tmp_path / "first" / "report.html").read_text()
    exported = (tmp_path / "first" / "sites" / "one.csv").read_text().splitlines()
    exported[50:55] = [line[:-1] + ("B" if line.endswith("A") else "A") for line in exported[50:55]]
    (tmp_path / "corrected.csv").write_text("\n".join(exported))
    (tmp_path / "b.toml").write_text(STUDY.format(table="corrected.csv", more=""))
    run(tmp_path / "b.toml", "--out", tmp_path / "again", "--reuse", tmp_path / "first")
    again = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert again["simulation"]["chains_simulated_now"] == 0 and again["notes"] == []
    assert (tmp_path / "again" / FILE).exists()
    one, two = (s["models"]["P1"]["couplings"]["w1"] for s in (first, again))
    assert one["mean"] != two["mean"] and abs(one["mean"] - two["mean"]) < 2 * one["sd"]
