"""What next: expected gains are those of closed forms, of the random alloy's rule and of simulated experiments."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import generator, seed_of
from exact import ising_log_z
from matplotlib.figure import Figure
from scipy.interpolate import make_interp_spline
from scipy.stats import norm

from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chains
from bayesatoms.phases.candidates import Candidate
from bayesatoms.phases.diagram import phase_diagram
from bayesatoms.phases.expected import expected_gain
from bayesatoms.phases.gain import gain_map
from bayesatoms.plots.gain import gain_map_figure
from bayesatoms.plots.style import HATCH

SPECIES = ("A", "B")
SQUARE = Hamiltonian("P1", Pair(*SPECIES, name="w"), lattice=Lattice.square(), species=SPECIES)
SECOND = Hamiltonian("P2", Pair(*SPECIES, shell=2, name="v"), lattice=Lattice.square(), species=SPECIES)
RANDOM = Hamiltonian("R", lattice=Lattice.square(), species=SPECIES)


def spread(n: int, mean: float, sd: float) -> np.ndarray:
    """A normal law as n values of equal probability (n, 1)."""
    return norm.ppf((np.arange(n) + 0.5) / n, mean, sd)[:, None]


def coupling(name: str, w: np.ndarray) -> np.ndarray:
    """The first coupling as target."""
    return w[:, 0]


# ---------------------------------------------------------------------- closed forms


def linear_gaussian(seed: int, n: int = 250) -> tuple:
    """Draws of two couplings, three counts linear in them (the third the sum of the others), a target, and its exact reduction."""
    rng = np.random.default_rng(np.random.SeedSequence([*seed_of("gain linear").entropy, seed]))
    slope, noise = np.array([[3.0, 1.0], [-1.0, 2.0]]), np.array([[2.0, 0.5], [0.5, 1.0]])
    b, both = np.array([1.0, -2.0]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    w = rng.normal(size=(n, 2))
    mean, covariance = w @ slope.T @ both.T, np.broadcast_to(both @ noise @ both.T, (n, 3, 3))
    posterior = np.linalg.inv(np.eye(2) + slope.T @ np.linalg.solve(noise, slope))
    return (mean, covariance, w @ b, rng.normal(size=(n, 16, 3)), 1e-3), 1 - b @ posterior @ b / (b @ b)


def test_linear_gaussian_case():
    """Ten replicates, |z| < 4 each by the stated error (6e-4 in all), and that error is right: their chi-square within 2e-3.

    Negative control: images with half the noise are refused by all of them together.
    """
    cases, (truth, *_) = zip(*map(linear_gaussian, range(10)), strict=True)
    found = [expected_gain(*case) for case in cases]
    error = np.array([f.error for f in found])
    z = (np.array([f.reduction for f in found]) - truth) / error
    assert np.abs(z).max() < 4
    assert 1.479 < (z**2).sum() < 29.59  # 1e-3 on either side, ten degrees of freedom
    sharper = np.array([expected_gain(case[0] * 2**0.5, *case[1:]).reduction for case in cases])
    assert (sharper - truth).mean() > 4 * error.mean() / np.sqrt(10)
    assert error.max() < 0.03
    assert found[0].information == pytest.approx(-0.5 * np.log2(1 - found[0].reduction))


def test_information_on_a_label():
    """Two labels whose counts lie at -1 and 1 with noise 1: the mutual information by quadrature; |z| < 4."""
    y = np.arange(400) % 2
    t = np.linspace(-9, 9, 4001)
    mixture = (norm.pdf(t, -1) + norm.pdf(t, 1)) / 2
    exact = np.trapezoid(norm.pdf(t, 1) * np.log2(norm.pdf(t, 1) / mixture), t)
    rng = generator("gain label")
    found = expected_gain((2.0 * y - 1)[:, None], np.ones((400, 1, 1)), y, rng.normal(size=(400, 32, 1)), 1e-3)
    assert found.present == pytest.approx(-np.log2(199.5 / 400))  # the truth itself is not counted, one of unknown label is
    assert abs(found.information - exact) < 4 * found.error
    assert found.error < 0.1 < exact
    # the likelihoods themselves tell the same
    assert found.everything == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("sharp", [0.1, 3.0, 100.0])
def test_a_target_that_images_cannot_inform_gains_nothing(sharp):
    """Numbers and labels drawn without regard to the counts: |z| < 4, even where an image leaves few draws (six tests, 4e-4)."""
    rng = generator(f"gain control {sharp}")
    mean, noise = sharp * rng.normal(size=(200, 2)), rng.normal(size=(200, 16, 2))
    covariance = np.broadcast_to(np.eye(2), (200, 2, 2))
    for target in (rng.normal(size=200), rng.integers(0, 3, 200)):
        found = expected_gain(mean, covariance, target, noise, 1e-3)
        assert abs(found.reduction) < 4 * found.error + 1e-3  # a label's baseline is known to 1 / draws^2 a label
    # what the draws believed would show without leaving out the truth: a variance among the few that remain, far too small
    assert found.effective < {0.1: 201, 3.0: 60, 100.0: 2}[sharp]


def test_counts_that_never_vary_tell_nothing():
    y = generator("gain constant").normal(size=50)
    found = expected_gain(np.full((50, 2), 7.0), np.zeros((50, 2, 2)), y, np.zeros((50, 4, 2)))
    assert found.reduction == pytest.approx(0, abs=1e-12)
    assert found.everything == pytest.approx(0, abs=1e-12)
    assert found.effective == pytest.approx(49)


# ---------------------------------------------------------------------- the random alloy


@pytest.fixture(scope="module")
def near_random():
    grid = {"composition": [0.1, 0.3, 0.5, 0.7, 0.9], "temperature": [1.0, 2.0]}
    return gain_map([Candidate(SQUARE, spread(200, 0.0, 0.1))], coupling, **grid, sites=500, draws=200, seed=3)


def test_information_near_the_random_alloy_goes_as_x2_times_1_minus_x2(near_random):
    """J = 8 n x^2 (1 - x)^2 / T^2 for unlike pairs on a square lattice, to 1 / n and to the square of w: ten points, |z| < 4."""
    d = near_random.dataset
    assert {c.composition for c in near_random.best(1)} == {0.5}
    x, t = d.composition.to_numpy(), d.temperature.to_numpy()[:, None]
    j = 0.1**2 * 8 * 500 * (x * (1 - x) / t) ** 2
    theory, found, error = j / (1 + j), d.reduction.to_numpy(), d.reduction_error.to_numpy()
    assert np.abs((found - theory) / error).max() < 4
    assert d.linear.to_numpy() == pytest.approx(theory, abs=0.03)
    ratio = found[0, 2] / found[0, 0]
    relative = np.hypot(error[0, 2] / found[0, 2], error[0, 0] / found[0, 0])
    assert abs(ratio - theory[0, 2] / theory[0, 0]) < 4 * relative * ratio
    # the same information at x = 1/2, falling as x (1 - x) only, is refused
    flat = j[0, 2] * x[0] * (1 - x[0]) / 0.25
    assert (flat / (1 + flat) - found[0, 0]) / error[0, 0] > 4
    assert d.supported.min() > 0.95
    assert d.present_sd == pytest.approx(0.1, rel=0.01)


# ---------------------------------------------------------------------- simulated experiments


def realised(w: np.ndarray, log_z, atoms: int, t: float, density, key: str) -> tuple[float, float]:
    """Mean posterior variance of w after one image of 6 x 6 sites, over images at every truth (m,), and its error.

    The likelihood is the exact one of the torus, exp(-w F / T) / Z_n(w / T), and the posterior is by quadrature.
    """
    compiled = SQUARE.compile(SQUARE.lattice.supercell((6, 6)))
    start = np.repeat([0, 1], [36 - atoms, atoms])
    chains = run_chains(compiled, w / t, start, samples=4, sweeps=60.0, burn=400.0, seeds=seed_of(key).spawn(len(w)), kernel="lanes")
    features = np.concatenate([c.features for c in chains])
    grid = np.linspace(-0.4, 1.4, 361)
    log_p = -grid * features / t - log_z(grid / t)[:, atoms] + density(grid)
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    variance = (p @ grid**2 - (p @ grid) ** 2).reshape(len(w), 4).mean(axis=1)
    return float(variance.mean()), float(variance.std(ddof=1) / np.sqrt(len(w)))


def test_gains_are_those_of_simulated_experiments():
    """One coupling, 0.5 +- 0.2 kT: images are made at the recommended point and at a poor one, and analysed exactly.

    |z| < 4 for both, by the errors of the prediction and of 256 truths; the recommended point is better by 10 errors.
    """
    w = spread(256, 0.5, 0.2)
    grid = {"composition": [1 / 6, 1 / 3, 1 / 2], "temperature": [0.7, 1.0, 2.0]}
    gain = gain_map([Candidate(SQUARE, w)], coupling, **grid, sites=36, size=6, draws=256, seed=5)
    best, poor = gain.best(1)[0], gain.best(9)[-1]
    assert (poor.composition, poor.temperature) == (1 / 6, 2.0)
    k = np.linspace(-0.3, 1.0, 40)  # unlike pairs at w / T are the Ising coupling K = w / 2 T, less 72 bonds of -K
    table = np.array([ising_log_z(one, 6) for one in k]) - 72 * k[:, None]
    spline = make_interp_spline(k, table, 5)
    found = {}
    for name, c in (("best", best), ("poor", poor)):
        after, error = realised(
            w, lambda v: spline(v / 2), round(36 * c.composition), c.temperature, lambda v: norm.logpdf(v, 0.5, 0.2), f"gain {name}"
        )
        predicted, doubt = c.expected**2, c.error * float(gain.dataset.present_sd) ** 2
        assert abs(after - predicted) < 4 * np.hypot(error, doubt), (name, after, predicted, error, doubt)
        found[name] = after, error
    assert found["poor"][0] - found["best"][0] > 10 * np.hypot(found["poor"][1], found["best"][1])
    # negative control: what images of twice the size would leave is refused
    twice = gain_map([Candidate(SQUARE, w)], coupling, **grid, sites=72, size=6, draws=256, seed=5).best(1)[0]
    assert twice.composition == best.composition
    assert found["best"][0] - twice.expected**2 > 4 * np.hypot(found["best"][1], twice.error * float(gain.dataset.present_sd) ** 2)


# ---------------------------------------------------------------------- targets and models


GRID = {"composition": [0.3, 0.5], "temperature": [0.5, 1.0], "size": 12, "sweeps": 120.0}


def test_transitions_of_a_phase_map_belong_to_the_same_draws():
    """Transition temperatures rise with the coupling, so an image tells them; of draws in another order it tells nothing."""
    source = [Candidate(SQUARE, spread(300, 1.0, 0.15))]
    diagram = phase_diagram(source, composition=[0.5], temperature=np.geomspace(0.5, 2, 9), draws=60, size=12, sweeps=64, seed=8)
    transition = diagram.boundaries.transition.sel(composition=0.5).to_numpy()
    right, wrong = (
        gain_map(source, target, **{**GRID, "temperature": [1.5, 2.0]}, sites=600, draws=60, seed=8)
        for target in (transition, generator("gain order").permutation(transition))
    )
    assert right.dataset.reduction.max() > 0.4
    assert (np.abs(wrong.dataset.reduction) < 4 * wrong.dataset.reduction_error).all()


def test_mappings_callables_and_labels_of_models():
    rng = generator("gain models")
    one, two = rng.normal(0.3, 0.05, (50, 1)), rng.normal(0.3, 0.05, (70, 1))
    source = [Candidate(SQUARE, one, 0.4), Candidate(SECOND, two, 0.4), Candidate(RANDOM, np.zeros((0, 0)), 0.2)]
    called = gain_map(source, lambda name, w: w.sum(axis=1), **GRID, draws=50, seed=2)
    mapped = gain_map(source, {"P1": one[:, 0], "P2": two[:, 0], "R": [0.0]}, **GRID, draws=50, seed=2)
    assert called.dataset.equals(mapped.dataset)
    which = gain_map(source, lambda name, w: np.full(len(w), name), **GRID, sites=2000, draws=50, seed=2)
    entropy = -sum(p * np.log2(p) for p in (0.4, 0.4, 0.2))
    assert which.dataset.present_entropy == pytest.approx(entropy, abs=0.1)
    at = which.dataset.sel(composition=0.5, temperature=0.5)
    assert at.information > 0.7 * entropy  # in 2,000 sites the models differ by many standard deviations
    assert at.information_all >= at.information
    assert "linear" not in which.dataset
    assert "bits" in str(which)
    weak = gain_map(source, lambda name, w: np.full(len(w), name), **GRID, sites=20, draws=50, seed=2)
    assert (weak.dataset.information < which.dataset.information).all()


def test_terms_that_depend_on_others_change_nothing():
    """A model that names the same interaction otherwise: like pairs follow from unlike ones at fixed composition."""
    same = Hamiltonian("like", Pair("B", "B", name="b"), lattice=Lattice.square(), species=SPECIES)
    source = [Candidate(SQUARE, spread(40, 0.2, 0.1), 0.5), Candidate(same, spread(40, -0.4, 0.2), 0.5)]
    found = gain_map(source, lambda name, w: np.full(len(w), name), **GRID, draws=80, seed=1)
    assert (np.abs(found.dataset.reduction) < 4 * found.dataset.reduction_error).all()  # 2 w = -b: no image tells them apart
    triangle = Cluster("AAB", [(0, 0, 0), (1, 0, 0), (0, 1, 0)], name="c")
    with pytest.raises(InputError, match="one lattice"):
        other = Hamiltonian("T", triangle, lattice=Lattice.triangular(), species=SPECIES)
        gain_map([*source, Candidate(other, [[0.1]])], coupling, **GRID, draws=80, seed=1)


# ---------------------------------------------------------------------- what cannot be relied on


def test_what_is_not_in_equilibrium_is_not_recommended():
    source = [Candidate(SQUARE, spread(40, 1.0, 0.1))]
    found = gain_map(source, coupling, composition=[0.5], temperature=[0.05, 2.0], size=12, sweeps=60, draws=40, seed=1)
    assert found.dataset.supported.values[0, 0] < 0.5 < 0.9 < found.dataset.supported.values[1, 0]
    assert [c.temperature for c in found.best()] == [2.0]
    assert any("at 1 of 2 points more than 10% of the draws are not in equilibrium" in n for n in found.notes)
    cold = gain_map(source, coupling, composition=[0.5], temperature=[0.05], size=12, sweeps=60, draws=40, seed=1)
    assert cold.best() == []
    assert "nothing that can be relied on" in str(cold)
    figure = gain_map_figure(cold)
    left = next(ax for ax in figure.axes if ax.get_ylabel().startswith("temperature"))
    assert [p.get_hatch() for p in left.patches] == [HATCH]
    assert not left.texts


def test_too_few_draws_are_told():
    found = gain_map([Candidate(SQUARE, spread(10, 0.0, 0.3))], coupling, **GRID, sites=20000, draws=10, seed=1)
    assert any("an image tells more than 10 draws resolve" in n for n in found.notes)


def test_workers_and_progress():
    source, calls = [Candidate(SQUARE, spread(70, 0.2, 0.1))], []
    one = gain_map(source, coupling, **GRID, draws=70, seed=1, progress=lambda *a: calls.append(a))
    two = gain_map(source, coupling, **GRID, draws=70, seed=1, workers=2)
    assert one.dataset.identical(two.dataset)
    assert calls == [("gain", i, 4) for i in (1, 2, 3, 4)]  # two compositions, 64 draws and 6
    assert not one.dataset.equals(gain_map(source, coupling, **GRID, draws=70, seed=2).dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": 1}, "sites 1 given; expected a number of at least 2"),
        ({"draws": 3}, "draws 3 given; expected a number of at least 8"),
        ({"sweeps": np.nan}, "sweeps nan given"),
        ({"composition": [0.5, 0.3]}, "expected one row of rising numbers"),
        ({"temperature": [0.0]}, "temperature .* given"),
        ({"composition": [0.001]}, "leaves a species without atoms"),
        ({"size": 7}, "size 7 given"),
        ({"source": [Candidate(RANDOM, np.zeros((0, 0)))]}, "no candidate has a term"),
        ({"target": lambda name, w: w}, r"model P1: values of shape \(20, 1\) given; expected one for each of 20 draws"),
        ({"target": {"other": np.zeros(20)}}, "target of models other given; expected values for P1 too"),
        ({"target": np.zeros(5)}, r"target of shape \(5,\) and type float64 given; expected numbers or labels, 20 of them"),
        ({"target": np.r_[np.inf, np.zeros(19)]}, "target not finite for 5% of the draws; extend the phase map"),
        ({"target": np.ones(20)}, "target 1.0 given for all 20 draws"),
    ],
)
def test_refusals(change, message):
    given = {"source": [Candidate(SQUARE, spread(20, 0.0, 0.1))], "target": coupling, **GRID, "draws": 20, "seed": 1, **change}
    with pytest.raises(InputError, match=message):
        gain_map(given.pop("source"), given.pop("target"), **given)


# ---------------------------------------------------------------------- the picture


def test_figure(near_random):
    figure = gain_map_figure(near_random)
    assert isinstance(figure, Figure)
    left, right = (ax for ax in figure.axes if ax.get_xlabel().startswith("fraction"))
    mesh = left.collections[0].get_array()
    assert np.asarray(mesh).reshape(2, 5) == pytest.approx(near_random.dataset.reduction.to_numpy())
    assert [t.get_text() for t in left.texts] == ["1", "2", "3", "4", "5"]
    first = near_random.best(1)[0]
    assert left.texts[0].xy == (first.composition, first.temperature)
    assert len([line for line in right.get_lines() if line.get_linestyle() == "--"]) == 2  # by Fisher information, one a temperature
