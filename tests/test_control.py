"""Runs that stop when their errors are small enough: the errors are honest, and stuck chains are found out."""

from __future__ import annotations

import numpy as np
import pytest
from exact import kaufman_log_z

from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.chains import joined
from bayesatoms.montecarlo.control import check_size, feature, ordered, run_until, split_rhat
from bayesatoms.montecarlo.engine import run_chain
from bayesatoms.montecarlo.ensembles import SemiGrand

SQUARE = Hamiltonian("Ising", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
TRIANGULAR = Hamiltonian("P2", Pair("A", "B"), Pair("A", "B", shell=2), lattice=Lattice.triangular(), species=("A", "B"))


def ising(side):
    return SQUARE.compile(SQUARE.lattice.supercell((side, side)))


@pytest.mark.parametrize("kernel", ["code", "lanes"])
def test_errors_are_what_they_say(kernel):
    """Unlike pairs of the 12 x 12 torus at T = 3 against Kaufman's sum, 24 runs: the deviations in units of the errors said.

    Their mean square lies in chi-square's central 99.9 %.
    """
    k = 1 / 3
    energy = -(kaufman_log_z(k + 1e-5, 12, 12) - kaufman_log_z(k - 1e-5, 12, 12)) / 2e-5
    unlike = (energy + 288) / 2 / 144
    deviations = []
    for seed in range(24):
        found = run_until(
            ising(12),
            [2 * k],
            (72, 72),
            {"unlike": 0.002},
            observables={"unlike": feature(0)},
            seed=seed,
            ensemble=SemiGrand((0, 0)),
            kernel=kernel,
        )
        assert found.ok and found.means["unlike"].error <= 0.002
        assert {c.kernel for c in found.chains} == {kernel}
        deviations.append((found.means["unlike"].value - unlike) / found.means["unlike"].error)
    assert 6.5 < np.sum(np.square(deviations)) < 55  # chi-square of 24 degrees of freedom, 0.05 and 99.97 %


def test_a_smaller_error_costs_more_and_is_reached():
    coarse, fine = (run_until(ising(12), [0.5], (72, 72), {"energy": e}, seed=3) for e in (0.002, 0.0004))
    assert coarse.ok and fine.ok and fine.sweeps > 2 * coarse.sweeps
    assert abs(coarse.means["energy"].value - fine.means["energy"].value) < 4 * np.hypot(0.002, 0.0004)


def test_stuck_chains_are_found_out():
    """Deep in the separated phase at fixed composition blocks and droplets do not turn into each other; at high temperature all is well."""
    found = run_until(
        TRIANGULAR.compile(TRIANGULAR.lattice.supercell((18, 18))), [1.6, 0.0], (162, 162), {"energy": 0.001}, seed=1, most=2000
    )
    assert not found.ok and any("hot and cold" in r or "not mixed" in r for r in found.reasons)
    assert "not settled" in str(found)
    fine = run_until(TRIANGULAR.compile(TRIANGULAR.lattice.supercell((18, 18))), [0.2, 0.0], (162, 162), {"energy": 0.002}, seed=1)
    assert fine.ok and str(fine).endswith("settled")


def test_a_run_that_may_not_go_on_says_so():
    found = run_until(ising(12), [0.5], (72, 72), {"energy": 1e-5}, seed=3, most=500)
    assert not found.ok and "asked for 1e-05: run longer" in found.reasons[0]


def test_size():
    """Far above the transition a box of 16 is large enough; at the critical temperature the energy still changes."""
    errors = {"energy": 0.004}
    assert check_size(SQUARE, (16, 16), [0.3], (128, 128), errors, seed=1, ensemble=SemiGrand((0, 0))).ok
    small = check_size(SQUARE, (4, 4), [2 / 2.2692], (8, 8), errors, seed=1, ensemble=SemiGrand((0, 0)))
    assert not small.ok and "twice as long" in small.reasons[-1]


def test_ordered_starts_are_ground_states():
    """sqrt3 x sqrt3 at a third, rows at a half of second neighbours, blocks where like atoms attract."""
    compiled = TRIANGULAR.compile(TRIANGULAR.lattice.supercell((12, 12)))
    third = ordered(compiled, np.array([-1.0, 0.0]), (96, 48))
    assert compiled.features(third)[0] == 6 * 48  # no two of the rarer atoms touch
    block = ordered(compiled, np.array([1.0, 0.0]), (72, 72))
    assert compiled.features(block)[0] == 4 * 12  # two straight walls
    rows = ordered(compiled, np.array([-1.0, -1.0]), (72, 72))
    assert (compiled.features(rows) == 2 * 144).all()


def test_parts_are_one_chain():
    start = np.arange(144) % 2
    parts = [run_chain(ising(12), [0.3], start, samples=n, burn=0, seed=np.random.SeedSequence(n)) for n in (3, 5)]
    whole = joined(parts)
    assert len(whole) == 8 and whole.moves == sum(c.moves for c in parts)
    assert np.array_equal(whole.snapshots, np.concatenate([c.snapshots for c in parts]))


def test_rhat_of_what_agrees_and_what_does_not():
    rng = np.random.default_rng(1)
    assert split_rhat(rng.normal(size=(6, 400))) < 1.02
    assert split_rhat(rng.normal(size=(6, 400)) + np.linspace(0, 3, 400)) > 1.2  # each drifts
    assert split_rhat(np.ones((4, 10))) == 1.0 and split_rhat(np.repeat([[1.0], [2.0]], 10, axis=1)) == np.inf


def test_refusals():
    for errors, options, words in [
        ({"magnetisation": 0.1}, {}, "observable 'magnetisation' is unknown; expected composition, energy"),
        ({"energy": 0.0}, {}, "expected a positive number"),
        ({"energy": 0.1}, {"chains": 3}, "3 chains asked for; expected an even number"),
    ]:
        with pytest.raises(InputError, match=words):
            run_until(ising(4), [0.1], (8, 8), errors, seed=1, **options)
