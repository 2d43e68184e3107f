"""The exact references, and the likelihoods held against them where the truth can be summed."""

from __future__ import annotations

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import DATA, generator
from exact import Grid, States, enumerate_states, exact_posterior, ising_log_z, kaufman_log_z
from scipy.special import logsumexp

from bayesatoms.configuration import Configuration
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference.campaign import Campaign, Settings
from bayesatoms.inference.densities import log_likelihoods
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.pool import DesignPoint, Pool
from bayesatoms.observation import Observation

SPECIES = ("A", "B")
TRIANGULAR = Lattice.triangular()
PRIOR = 0.25
ALLOY = Hamiltonian(
    "P2", *(Pair("A", "B", shell=s, name=f"w{s}", prior=dist.Normal(0, PRIOR)) for s in (1, 2)), lattice=TRIANGULAR, species=SPECIES
)
ISING = Hamiltonian("Ising", Pair("A", "B", prior=dist.Normal(0, PRIOR)), lattice=Lattice.square(), species=SPECIES)


# ------------------------------------------------------------------ the references themselves


def brute_force(side: int, k: float) -> np.ndarray:
    """ln Z_n of the Ising torus, n spins up, from all of its states."""
    sites = side * side
    s = 2.0 * ((np.arange(2**sites)[:, None] >> np.arange(sites)) & 1).reshape(-1, side, side) - 1
    bonds = (s * np.roll(s, 1, 1)).sum(axis=(1, 2)) + (s * np.roll(s, 1, 2)).sum(axis=(1, 2))
    up = ((s + 1) / 2).sum(axis=(1, 2))
    return np.array([logsumexp(k * bonds[up == n]) for n in range(sites + 1)])


@pytest.mark.parametrize("k", [0.1, 0.3, 0.4, 0.5 * np.log(1 + np.sqrt(2)) + 1e-6, 0.7])
def test_ising_torus_by_transfer_matrix_by_kaufman_and_by_brute_force(k):
    each = brute_force(4, k)
    np.testing.assert_allclose(ising_log_z(k, 4), each, atol=1e-6)
    assert abs(kaufman_log_z(k, 4, 4) - logsumexp(each)) < 1e-9
    assert abs(kaufman_log_z(k, 5, 5) - logsumexp(ising_log_z(k, 5))) < 1e-9
    assert abs(kaufman_log_z(k, 6, 6) - logsumexp(ising_log_z(k, 6))) < 1e-9


def test_a_given_composition_says_less_than_an_observed_one():
    """Var(E) = <Var(E | n)> + Var(<E | n>): what conditioning on the composition gives away near the critical point.

    On the 6 x 6 torus at K = 0.4 nine tenths of the information about K: Kaufman's posterior is no reference for ours.
    """
    k, h = 0.4, 1e-3
    z = np.array([ising_log_z(k + i * h, 6) for i in (-1, 0, 1)])
    p = np.exp(z[1] - logsumexp(z[1]))
    within, means = p @ (z[2] - 2 * z[1] + z[0]) / h**2, (z[2] - z[0]) / (2 * h)
    between = p @ (means - p @ means) ** 2
    total = (kaufman_log_z(k + h, 6, 6) - 2 * kaufman_log_z(k, 6, 6) + kaufman_log_z(k - h, 6, 6)) / h**2
    assert within + between == pytest.approx(total, rel=1e-4)
    assert within < 0.15 * total


def test_enumerated_torus_is_that_of_the_data(data):
    """5 x 5, 12 B atoms: unlike pairs are 72 - 2 BB pairs in either shell, and ln Z of section 5's table follows."""
    found = enumerate_states((5, 5), 12)
    with np.load(DATA / "exact_triangular" / "torus_5x5.npz") as file:
        rows = file["n"] == 12
        known = {(p, q): g for p, q, g in zip(file["p1"][rows].tolist(), file["p2"][rows].tolist(), file["g"][rows].tolist(), strict=True)}
    like = ((72 - found.features) / 2).astype(int).tolist()
    assert {(p, q): round(g) for (p, q), g in zip(like, np.exp(found.log_count).tolist(), strict=True)} == known
    for w, pairs, log_z in [((0.5, 0.0), 14.922194, 7.634392), ((-0.5, 0.0), 18.723293, 24.247358), ((0.3, -0.2), 15.069921, 14.165225)]:
        ours = -np.array(w) / 2  # an energy per BB pair, as one of minus one half per unlike pair
        assert found.log_z(ours) - 36 * sum(w) == pytest.approx(log_z, abs=1e-6)
        assert (72 - found.moments(ours)[0][0]) / 2 == pytest.approx(pairs, abs=1e-6)


def test_enumerated_features_are_those_of_the_hamiltonian():
    """The reference counts pairs by its own bit operations: the same pairs as the compiled terms."""
    states, compiled = enumerate_states((6, 6), 3), ALLOY.compile(TRIANGULAR.supercell((6, 6)))
    rng = generator("features")
    seen = {tuple(compiled.features(rng.permutation(np.arange(36) < 3).astype(int))) for _ in range(3000)}
    assert seen == set(map(tuple, states.features.tolist()))
    assert np.exp(logsumexp(states.log_count)) == pytest.approx(36 * 35 * 34 / 6)
    square = enumerate_states((6, 6), 9, (((1, 0), (0, 1)),))
    assert square.log_z([0.8]) + 0.4 * 72 == pytest.approx(ising_log_z(0.4, 6)[9], abs=1e-9)


# ------------------------------------------------------------------ posteriors against them


def draw(h: Hamiltonian, side: int, atoms: int, w: tuple[float, ...], n: int, name: str) -> list[Observation]:
    """Whole crystals at known couplings, 100 sweeps apart."""
    compiled = h.compile(h.lattice.supercell((side, side)))
    seed = int(generator(name).integers(2**31))
    chain = DesignPoint(compiled, np.array(w), (side * side - atoms, atoms), samples=n, sweeps=100, burn=300, seed=seed).run()
    grids = chain.snapshots.reshape(n, side, side).astype(int)
    return [
        Observation.from_configuration(Configuration.from_labels(h.lattice, SPECIES, g, periodic=True), name=f"{name} {i}")
        for i, g in enumerate(grids)
    ]


def posterior(h: Hamiltonian, images: list[Observation], likelihood: str, points: np.ndarray, seed: int) -> Grid:
    """Ours on the grid, by the rounds of `infer` without the final NUTS."""
    settings = Settings(points=6, samples=300, sweeps=2, burn=40, rounds=2)
    campaign = Campaign.prepare(
        [h], images, seed=seed, pool=Pool(), settings=settings, workers=1, report=lambda *_: None, kinds=(likelihood,)
    )
    smooth = campaign.run()[0].smooth
    log = log_likelihoods(smooth, images, likelihood, points).sum(axis=1) + smooth.leash(points)
    return Grid.of(points, log - 0.5 * (points**2).sum(axis=1) / PRIOR**2)


def grid(side: int, q: int) -> np.ndarray:
    axes = [np.linspace(-1.2, 1.2, side)] * q
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, q)


@pytest.fixture(scope="module")
def torus() -> tuple[States, np.ndarray, np.ndarray]:
    """The 6 x 6 torus with 9 B atoms, 94 million configurations, and its ln Z on a grid."""
    states, points = enumerate_states((6, 6), 9), grid(61, 2)
    return states, points, states.log_z(points)


def test_exact_likelihood_gives_the_enumerated_posterior(torus):
    """Four crystals together and one alone: 8,000 sweeps leave about 0.05 sd and 2 %, so 0.3 sd and 10 % are six sigma.

    Negative control: the exact posterior of the same crystals with the couplings exchanged is far off.
    """
    numpyro.enable_x64()
    states, points, log_z = torus
    compiled = ALLOY.compile(TRIANGULAR.supercell((6, 6)))
    images = draw(ALLOY, 6, 9, (0.3, -0.2), 4, "enumerated")
    features = np.array([compiled.features(o.configuration.flat) for o in images])
    assert {tuple(f) for f in features} <= set(map(tuple, states.features))
    for count in (1, 4):
        truth = exact_posterior(points, features[:count], count * log_z, PRIOR)
        found = posterior(ALLOY, images[:count], "exact", points, seed=count)
        assert np.abs(found.mean - truth.mean).max() < 0.3 * truth.sd.min()
        np.testing.assert_allclose(found.sd, truth.sd, rtol=0.1)
        assert truth.divergence(found) < 0.03
        wrong = exact_posterior(points, features[:count, ::-1], count * log_z, PRIOR)
        assert truth.divergence(wrong) > 10 * truth.divergence(found)


def test_likelihoods_of_an_ising_crystal_at_its_composition():
    """6 x 6 with 18 of 36 spins up is too many to list; the transfer matrix gives their ln Z.

    Eight crystals: their sum is nearly normal, and so is what the calibrated likelihood takes each to be.
    """
    numpyro.enable_x64()
    points = grid(161, 1)
    images = draw(ISING, 6, 18, (0.3,), 8, "transfer")
    compiled = ISING.compile(ISING.lattice.supercell((6, 6)))
    features = np.array([compiled.features(o.configuration.flat) for o in images])
    # ln Z is smooth: a polynomial through 24 transfer matrices stands in for 161 of them
    nodes = np.polynomial.chebyshev.chebpts2(25) * 0.6
    k = nodes[nodes != 0]
    values = [ising_log_z(x, 6)[18] for x in k]
    log_z = np.polynomial.Chebyshev.fit(2 * k, values, 20, domain=[-1.2, 1.2])(points[:, 0]) - 36 * points[:, 0]
    truth = exact_posterior(points, features, 8 * log_z, PRIOR)
    for likelihood in ("exact", "calibrated"):
        found = posterior(ISING, images, likelihood, points, seed=5)
        assert abs(found.mean[0] - truth.mean[0]) < 0.3 * truth.sd[0], likelihood
        assert found.sd[0] == pytest.approx(truth.sd[0], rel=0.1), likelihood
    # negative control: Kaufman's Z, which also counts the other compositions, gives another posterior
    some = k[k > 0.02]
    kaufman = np.polynomial.Chebyshev.fit(2 * some, [kaufman_log_z(x, 6, 6) for x in some], 9)(points[:, 0]) - 36 * points[:, 0]
    inside = points[:, 0] > 0.05
    log = -points[:, 0] * features.sum() - 8 * kaufman - 0.5 * points[:, 0] ** 2 / PRIOR**2
    other = Grid.of(points, np.where(inside, log, -np.inf))
    assert abs(other.mean[0] - truth.mean[0]) > 0.5 * truth.sd[0]
