"""Reweighting against enumerated crystals, and the check of its own gradient."""

from __future__ import annotations

import numpy as np
import pytest

from bayesatoms.configuration import Configuration
from bayesatoms.errors import CheckError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference.reweighting import GRADIENT_BAR, Reweighting
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.pool import DesignPoint, Pool

# 5x5 triangular torus, 12 B atoms: (w1, w2), <P1>, ln Z by enumeration
EXACT = [
    ((0.0, 0.0), 16.5, 15.464227),
    ((0.5, 0.0), 14.922194, 7.634392),
    ((-0.5, 0.0), 18.723293, 24.247358),
    ((0.3, -0.2), 15.069921, 14.165225),
]
DESIGN = np.array([[0.0, 0.0], [0.35, 0.0], [0.7, -0.1], [-0.35, 0.0], [-0.7, 0.1], [0.2, -0.3]])


@pytest.fixture(scope="module")
def pools():
    lattice = Lattice.triangular()
    h = Hamiltonian("BB", Pair("B", "B"), Pair("B", "B", shell=2), lattice=lattice, species=("A", "B"))
    compiled = h.compile(lattice.supercell((5, 5)))
    found = []
    for seed in range(12):  # independent repetitions give the standard error without any assumption
        points = [DesignPoint(compiled, w, (13, 12), samples=800, sweeps=3, burn=50, seed=seed) for w in DESIGN]
        chains = Pool().run(points)
        found.append(Reweighting.solve(np.concatenate([c.features for c in chains]), DESIGN, [len(c) for c in chains]))
    return found


@pytest.mark.parametrize(("w", "pairs", "log_z"), EXACT[1:])
def test_log_z_and_means_against_enumeration(pools, w, pairs, log_z):
    """Six comparisons at 4 standard errors with 11 degrees of freedom: false-alarm rate 1.3 % in all."""
    values = np.array([p.log_z(w) - p.log_z((0.0, 0.0)) for p in pools])
    assert values.mean() == pytest.approx(log_z - EXACT[0][2], abs=4 * values.std(ddof=1) / np.sqrt(len(values)))
    means = np.array([p.weights(w) @ (p.features[:, 0] + p.centre[0]) for p in pools])
    assert means.mean() == pytest.approx(pairs, abs=4 * means.std(ddof=1) / np.sqrt(len(means)))
    # negative control: the answer for other couplings is out of reach
    wrong = np.array([p.weights((w[0] + 0.1, w[1])) @ (p.features[:, 0] + p.centre[0]) for p in pools])
    assert abs(wrong.mean() - pairs) > 4 * wrong.std(ddof=1) / np.sqrt(len(wrong))


def test_gradient_norm_from_a_sensible_and_a_bad_start(pools):
    good = pools[0]
    assert good.gradient_norm <= GRADIENT_BAR
    good.check()
    features, records = good.features + good.centre, good.records
    bad_start = np.array([0, 300.0, -400, 250, -100, 700])
    recovered = Reweighting.solve(features, DESIGN, records, start=bad_start)
    recovered.check()
    assert recovered.free_energies == pytest.approx(good.free_energies, abs=1e-6)
    stopped = Reweighting.solve(features, DESIGN, records, start=bad_start, iterations=0)
    with pytest.raises(CheckError, match="free energies of the pool are not solved: gradient norm"):
        stopped.check()


def test_against_pymbar(pools):
    """The same equations solved by another program (Shirts and Chodera's own)."""
    pymbar = pytest.importorskip("pymbar", reason="pymbar, an oracle of this test, is not installed")
    good = pools[0]
    u = (good.features @ DESIGN.T).T
    theirs = np.asarray(pymbar.MBAR(u, good.records.astype(int), solver_protocol="robust").f_k)
    ours = good.free_energies
    assert ours - ours[0] == pytest.approx(theirs - theirs[0], abs=1e-6)


def test_no_support_far_away(pools):
    assert pools[0].support((0.0, 0.0)) > 1
    # 25 sites can hardly run out of support; a large crystal does
    lattice = Lattice.triangular()
    h = Hamiltonian("P1", Pair("A", "B"), lattice=lattice, species=("A", "B"))
    c = Configuration.random(lattice, h.species, (20, 20), (0.5, 0.5), np.random.default_rng(0))
    chains = Pool().run([DesignPoint(h.compile(c.supercell), [0.0], (200, 200), samples=200, sweeps=2, burn=50, seed=1)])
    pool = Reweighting.solve(chains[0].features, [[0.0]], [200])
    assert pool.support([0.0]) == pytest.approx(1.0) and pool.support([0.4]) < 0.05
