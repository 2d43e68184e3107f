"""Named targets: what they hold, what is refused, and that gains for each are those of simulated experiments."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import generator, seed_of
from exact import ising_log_z
from scipy.interpolate import make_interp_spline
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from bayesatoms import cli
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chains
from bayesatoms.phases.candidates import Candidate
from bayesatoms.phases.diagram import phase_diagram
from bayesatoms.phases.gain import Gain
from bayesatoms.planning.targets import Target, band, boundary, coupling, model_choice, named, what_next

SPECIES = ("A", "B")
SQUARE = Hamiltonian("P1", Pair(*SPECIES, name="w1"), lattice=Lattice.square(), species=SPECIES)
RANDOM = Hamiltonian("R", lattice=Lattice.square(), species=SPECIES)
MEAN, SD = 0.5, 0.25
GRID = {"composition": [1 / 6, 1 / 2], "temperature": [1.0, 2.5], "sites": 36, "size": 6}


def spread(n: int) -> np.ndarray:
    """The prior as n values of equal probability (n, 1)."""
    return norm.ppf((np.arange(n) + 0.5) / n, MEAN, SD)[:, None]


BOTH = [Candidate(SQUARE, spread(200), 0.5), Candidate(RANDOM, np.zeros((0, 0)), 0.5)]


# ---------------------------------------------------------------------- what they hold


def test_a_coupling_averaged_over_models_is_zero_in_those_without_it():
    w = spread(5)
    averaged, own = coupling(BOTH, "average", "w1"), coupling(BOTH, "P1", "w1")
    assert np.array_equal(averaged.values("P1", w), w[:, 0])
    assert np.array_equal(averaged.values("R", np.zeros((3, 0))), np.zeros(3))
    assert (averaged.model, own.model, own.name) == ("average", "P1", "w1 of P1")
    gain = what_next(BOTH, own, **GRID, draws=32, seed=1, sweeps=60)  # of P1 alone
    assert gain.dataset.attrs["models"] == ["P1"]
    assert float(gain.dataset.present_sd) == pytest.approx(SD, rel=0.1)
    assert str(gain).startswith("w1 of P1: sd 0.")


def test_names_as_typed():
    assert named("models", BOTH).name == model_choice(BOTH).name
    assert named(" w1 ", BOTH).model == "average"
    assert named("P1.w1", BOTH).model == "P1"
    dotted = Hamiltonian("D", Pair(*SPECIES, name="w.1"), lattice=Lattice.square(), species=SPECIES)
    assert named("w.1", [Candidate(dotted, [[0.1]])]).model == "average"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w7", "coupling 'w7' given; the models have w1"),
        ("P9.w1", "model 'P9' given; expected average or one of P1, R"),
        ("R.w1", "coupling 'w1' given; R have none"),
        ("T(half)", "holds something that is no number"),
        ("T(0.5,1)", "expected models, a coupling such as w1"),
        ("phase(0.5)", "expected models, a coupling such as w1"),
        ("T(1.5)", "with a composition between 0 and 1"),
        ("T(0.5)", "needs a phase map over compositions"),
        ("gap(0.5)", "expected models, a coupling such as w1"),
    ],
)
def test_names_that_cannot_be_understood(text, message):
    with pytest.raises(InputError, match=message):
        named(text, BOTH)


def test_one_model_is_no_choice_and_arguments_are_checked():
    with pytest.raises(InputError, match="one model, P1, given"):
        model_choice(BOTH[:1])
    with pytest.raises(InputError, match="no seed given"):
        what_next(BOTH, "w1", **GRID)


# ---------------------------------------------------------------------- bands of a phase map


@pytest.fixture(scope="module")
def diagram():
    """Unlike pairs avoid each other, so T rises with the coupling: separation at 0.57 w of the infinite crystal."""
    return phase_diagram(BOTH[:1], composition=[0.3, 0.5], temperature=np.geomspace(0.2, 0.6, 7), draws=160, size=8, sweeps=64, seed=8)


def test_boundary_and_band_are_those_of_the_draws_of_the_map(diagram):
    raw = diagram.boundaries.transition.sel(composition=0.5).to_numpy()
    target = boundary(diagram, composition=0.5)
    assert (target.draws, target.seed) == (160, 8)
    inside = (raw > 0) & np.isfinite(raw)
    assert np.array_equal(target.values[inside], raw[inside]) and inside.sum() > 80
    assert set(target.values[raw == 0]) <= {0.2} and set(target.values[np.isinf(raw)]) <= {0.6}
    assert any("below 0.2, or none" in note for note in target.notes)
    label = band(diagram, composition=0.5, temperature=0.35)
    assert np.array_equal(label.values, raw < 0.35)
    # another seed or other draws would take the values for those of other couplings
    with pytest.raises(InputError, match=r"seed 3 given; the phase map of .* was made with 8"):
        what_next(BOTH[:1], target, **GRID, seed=3)
    with pytest.raises(InputError, match="draws 50 given"):
        what_next(BOTH[:1], label, **GRID, draws=50)
    typed = named("phase(0.5, 0.35)", BOTH[:1], lambda x: diagram)
    assert np.array_equal(typed.values, label.values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: boundary(d, composition=0.4), "composition 0.4 given; the phase map has 0.3, 0.5"),
        (lambda d: band(d, composition=0.5, temperature=2.0), "temperature 2 given; the map reaches from 0.2 to 0.6"),
    ],
)
def test_points_that_are_not_on_the_map(diagram, make, message):
    with pytest.raises(InputError, match=message):
        make(diagram)


def test_maps_over_potentials_and_maps_without_a_transition():
    over = phase_diagram(BOTH[1:], chemical_potential=[0.0], temperature=[0.5, 1.0], seed=1)
    with pytest.raises(InputError, match="phase map over chemical_potential given"):
        boundary(over, composition=0.5)
    none = phase_diagram(BOTH[1:], composition=[0.5], temperature=[0.5, 1.0], seed=1)
    with pytest.raises(InputError, match=r"no draw has a transition at composition 0\.5 between 0\.5 and 1"):
        boundary(none, composition=0.5)
    with pytest.raises(InputError, match=r"x = 0\.5, T = 0\.7 is disordered for all draws"):
        band(none, composition=0.5, temperature=0.7)


def test_a_gain_is_written_and_read(tmp_path, diagram):
    gain = what_next(BOTH[:1], boundary(diagram, composition=0.5), **GRID, sweeps=60)
    again = Gain.load(gain.save(tmp_path / "next.nc"))
    assert again.best(3) == gain.best(3) and str(again) == str(gain)
    assert gain.dataset.attrs["target"] == "transition temperature at x = 0.5"
    (tmp_path / "other.nc").write_text("no gain")
    with pytest.raises(InputError, match="holds no expected gain"):
        Gain.load(tmp_path / "other.nc")


# ---------------------------------------------------------------------- simulated experiments


@functools.cache
def log_z():
    """ln Z of 6 x 6 sites by atoms at w / T: unlike pairs are the Ising coupling K = w / 2 T, less 72 bonds of -K."""
    k = np.linspace(-0.3, 1.0, 40)
    with threadpool_limits(1, user_api="blas"):
        table = np.array([ising_log_z(one, 6) for one in k]) - 72 * k[:, None]
    spline = make_interp_spline(k, table, 5)
    return lambda v: spline(v / 2)


def images(w: np.ndarray, atoms: int, t: float, key: str) -> np.ndarray:
    """Unlike pairs (m, 4) of really simulated images at every truth (m,)."""
    compiled = SQUARE.compile(SQUARE.lattice.supercell((6, 6)))
    start = np.repeat([0, 1], [36 - atoms, atoms])
    chains = run_chains(
        compiled, w[:, None] / t, start, samples=4, sweeps=60.0, burn=400.0, seeds=seed_of(key).spawn(len(w)), kernel="lanes"
    )
    return np.array([c.features[:, 0] for c in chains])


def believed(features: np.ndarray, w: np.ndarray, atoms: int, t: float, weight: np.ndarray | None = None) -> np.ndarray:
    """Exact posterior (m, 4, draws) over couplings (draws,) after each image, by the partition function of the torus."""
    log_p = -features[..., None] * w / t - log_z()(w / t)[:, atoms]
    p = np.exp(log_p - log_p.max(axis=-1, keepdims=True)) * (1.0 if weight is None else weight)
    return p / p.sum(axis=-1, keepdims=True)


def both_points(gain: Gain) -> dict[str, tuple]:
    """The recommended point and the poorest."""
    every = gain.best(9, supported=0.0)
    return {"best": every[0], "poor": every[-1]}


def agree(gain: Gain, after: dict[str, np.ndarray], present: float, pairs: float = 1.0) -> dict[str, tuple[float, float]]:
    """What is left after images of every truth (m,) agrees with the forecast: |z| < 4 at both points by the errors of both.

    The recommended point is the better one by more than two errors, truth by truth. `pairs` is 2 where those believed are the
    other truths: errors are then those of a U-statistic.
    """
    found = {name: (float(left.mean()), pairs * float(left.std(ddof=1) / np.sqrt(len(left)))) for name, left in after.items()}
    for name, c in both_points(gain).items():
        left, error = found[name]
        predicted, doubt = c.expected if gain.label else c.expected**2, c.error * present
        assert abs(left - predicted) < 4 * np.hypot(error, doubt), (name, left, predicted, error, doubt)
    apart = after["poor"] - after["best"]
    assert apart.mean() > 2 * pairs * apart.std(ddof=1) / np.sqrt(len(apart))
    return found


def test_a_coupling_averaged_over_models_in_simulated_experiments():
    """Half a chance of no interaction, half of 0.5 +- 0.25 kT: the variance left after one image of 36 sites."""
    target = coupling(BOTH, "average", "w1")
    gain = what_next(BOTH, target, **GRID, draws=400, seed=5)
    grid, truths = np.linspace(-0.3, 1.5, 361), np.concatenate([spread(200)[:, 0], np.zeros(200)])
    weight = np.append(norm.pdf(grid, MEAN, SD) / norm.pdf(grid, MEAN, SD).sum(), 1.0)
    after = {}
    for name, c in both_points(gain).items():
        atoms, w = round(36 * c.composition), np.append(grid, 0.0)
        p = believed(images(truths, atoms, c.temperature, f"average {name}"), w, atoms, c.temperature, weight)
        after[name] = ((p @ w**2) - (p @ w) ** 2).mean(axis=1)
    agree(gain, after, float(gain.dataset.present_sd) ** 2)


def test_the_choice_between_models_in_simulated_experiments():
    """The entropy of the two models after one image: the logarithm of the probability that the exact analysis gives to the truth.

    Negative control: what images of nine times the size would leave is refused.
    """
    gain = what_next(BOTH, model_choice(BOTH), **GRID, draws=400, seed=6)
    grid, truths = np.linspace(-0.3, 1.5, 361), np.concatenate([spread(200)[:, 0], np.zeros(200)])
    weight = np.append(norm.pdf(grid, MEAN, SD) / norm.pdf(grid, MEAN, SD).sum(), 1.0)
    after = {}
    for name, c in both_points(gain).items():
        atoms, w = round(36 * c.composition), np.append(grid, 0.0)
        p = believed(images(truths, atoms, c.temperature, f"choice {name}"), w, atoms, c.temperature, weight)
        right = np.concatenate([1 - p[:200, :, -1], p[200:, :, -1]])
        after[name] = -np.log2(right).mean(axis=1)
    left, error = agree(gain, after, float(gain.dataset.present_entropy))["best"]
    larger = what_next(BOTH, model_choice(BOTH), **{**GRID, "sites": 324}, draws=400, seed=6).best(1)[0]
    assert left - larger.expected > 4 * np.hypot(error, larger.error)


@pytest.mark.parametrize("kind", ["boundary", "band"])
def test_bands_of_a_phase_map_in_simulated_experiments(diagram, kind):
    """The transition temperature, and whether a point is disordered: the truth is each draw of the map in turn, believed are the others."""
    target: Target = boundary(diagram, composition=0.5) if kind == "boundary" else band(diagram, composition=0.5, temperature=0.35)
    gain = what_next(BOTH[:1], target, **GRID)
    # the couplings of the map's draws: those on which the target is a function, found by asking for them in the same way
    asked: list[np.ndarray] = []
    order = Target("couplings", lambda name, w: asked.append(w[:, 0]) or w[:, 0], "P1", 160, 8)
    what_next(BOTH[:1], order, **GRID, sweeps=60)
    w, y, n = asked[0], np.asarray(target.values), 160
    own = np.arange(n)
    after = {}
    for name, c in both_points(gain).items():
        atoms = round(36 * c.composition)
        p = believed(images(w, atoms, c.temperature, f"{kind} {name}"), w, atoms, c.temperature)
        p[own, :, own] = 0.0
        p /= p.sum(axis=-1, keepdims=True)
        if kind == "boundary":
            after[name] = ((p * (y[:, None, None] - y) ** 2).sum(axis=-1) / 2).mean(axis=1)
        else:
            many, prior = 1 / (p**2).sum(axis=-1), (np.array([(y == v).sum() - 1 for v in y]) + 0.5)[:, None] / n
            share = (p * (y[:, None, None] == y)).sum(axis=-1)
            after[name] = -np.log2((many * share + prior) / (many + 1)).mean(axis=1)
    agree(gain, after, float(gain.dataset.present_entropy if gain.label else gain.dataset.present_sd**2), 2.0)


def test_values_in_another_order_gain_nothing(diagram):
    """Negative control of all bands: a target whose values belong to other draws."""
    target = boundary(diagram, composition=0.5)
    mixed = Target("mixed", generator("targets order").permutation(target.values), draws=160, seed=8)
    found = what_next(BOTH[:1], mixed, **GRID, sweeps=60).dataset
    assert (np.abs(found.reduction) < 4 * found.reduction_error).all()


# ---------------------------------------------------------------------- the command line

STUDY = '[study]\nname = "s"\nseed = 4\nmodels = "mos2_res2"\n\n[phases]\nsize = 8\ntemperature = [0.2, 0.3, 0.45]\n'


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results folder whose chains need not be read."""
    (tmp_path / "study.toml").write_text(STUDY)
    monkeypatch.setattr(cli, "_stored", lambda *_: BOTH)
    return tmp_path


def test_next_on_the_command_line(results, capsys):
    for target, name in (("P1.w1", "w1 of P1"), ("T(0.5)", "transition temperature at x = 0.5"), ("models", "which model is right")):
        with pytest.raises(SystemExit) as stopped:
            arguments = [
                "--composition",
                "0.25,0.5",
                "--temperature",
                "1,2",
                "--sites",
                "100",
                "--draws",
                "64",
                "--quiet",
                "--workers",
                "1",
            ]
            cli.main(["next", str(results), "--target", target, *arguments, "--out", str(results / "deep" / "map.png")])
        said = capsys.readouterr()
        assert stopped.value.code == 0, said.err
        assert said.out.startswith(name) and "x = 0.5" in said.out and "100 sites" in said.out
        gain = Gain.load(results / "deep" / "map.nc")
        assert gain.dataset.attrs["target"] == name and gain.dataset.attrs["seed"] == 4
        assert (results / "deep" / "map.png").stat().st_size > 10_000
    assert list((results / "phases").glob("*.npz"))  # the band's map is kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "w9"], "coupling 'w9' given"),
        (["--target", "w1", "--composition", "half"], "--composition is 'half'; expected numbers"),
        (["--target", "w1", "--composition", "0.5,0.2"], "expected one row of rising numbers between 0 and 1"),
        (["--target", "w1", "--composition", "0.5", "--temperature", "-1"], "expected one row of rising numbers above 0"),
    ],
)
def test_next_refuses_in_one_sentence(results, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["next", str(results), *arguments, "--quiet", "--workers", "1"])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and message in said and len(said.splitlines()) == 1
    with pytest.raises(SystemExit) as stopped:
        cli.main(["next", str(results / "nowhere"), "--target", "models", "--quiet"])
    assert stopped.value.code == 2 and "cannot be read" in capsys.readouterr().err


# ---------------------------------------------------------------------- campaigns


def test_choosing_by_gain_saves_images():
    """Six campaigns on 12 x 12 sites: the target is met with 30 % fewer images than at random (61 % by the pairs' closed form).

    Negative control: the composition that the map ranks last takes more than twice as many as any at random (20 times, likewise).
    """
    place = Path(__file__).parents[1] / "benchmarks" / "next_image.py"
    if not place.is_file():
        pytest.skip("not a source tree: no benchmarks beside the tests")
    spec = importlib.util.spec_from_file_location("next_image", place)
    campaigns = importlib.util.module_from_spec(spec)
    sys.modules["next_image"] = campaigns
    spec.loader.exec_module(campaigns)
    alloy = campaigns.Alloy(side=12, compositions=(0.05, 0.1, 0.2, 0.5), burn=300.0, nodes=30, records=30)
    taken = {way: sum(campaigns.campaign(alloy, i, way, 0.05, n_draws=48).images for i in range(6)) for way in campaigns.WAYS}
    assert taken["gain"] < 0.7 * taken["random"]
    assert taken["worst"] > 2 * taken["random"]
