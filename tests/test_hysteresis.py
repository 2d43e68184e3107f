"""Loops of composition against chemical potential, against exact compositions and mirror images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.phases.hysteresis import potential_loop

SPECIES = ("A", "B")
SQUARE = Hamiltonian("square", Pair(*SPECIES, name="w"), lattice=Lattice.square(), species=SPECIES)
UP = Lattice.triangular().triangle("up")
TRIANGLES = Hamiltonian(
    "M", Cluster(("A", "A", "B"), UP, name="t1"), Cluster(("A", "B", "B"), UP, name="t2"), lattice=Lattice.triangular(), species=SPECIES
)


def test_the_square_ising_model_coexists_at_zero_at_yangs_compositions():
    """16 lanes at two temperatures; means within 4 standard errors, and a step of the potential resolves its place."""
    for temperature in (0.7, 0.85):
        mu = np.linspace(-2, 2, 41)
        found = potential_loop(SQUARE, np.full((16, 1), 1.0), temperature=temperature, potential=mu, seed=3)
        assert found.width.min() > 0.5
        place, poor, rich = found.coexistence.T
        exact = (1 - (1 - np.sinh(1 / temperature) ** -4) ** 0.125) / 2
        for values, known in ((place, 0.0), (poor, exact), (1 - rich, exact)):
            assert abs(values.mean() - known) < 4 * values.std(ddof=1) / 4
        assert place.std() < 0.05
        # controls: what the loop alone would say, the jumps themselves, lies far off
        jump = mu[np.argmax(np.diff(found.up, axis=1), axis=1)]
        assert jump.min() > 0.05


def test_no_loop_above_the_critical_temperature():
    found = potential_loop(SQUARE, [[1.0]], temperature=2.0, potential=np.linspace(-8, 8, 17), size=16, seed=1)
    assert found.width[0] < 0.1
    assert np.isnan(found.coexistence).all()
    assert found.up[0] + found.down[0, ::-1] == pytest.approx(1.0, abs=0.05)


def test_exchange_of_the_species_turns_the_loop_round():
    """t1 and t2 exchanged: mu to -mu and x to 1 - x; 16 lanes, three t tests at 1e-4 each."""
    mu = np.linspace(-2.5, 2.5, 81)
    one, other = (
        potential_loop(TRIANGLES, np.tile(w, (16, 1)), temperature=0.5, potential=mu, seed=5).coexistence for w in ([1.0, 0.6], [0.6, 1.0])
    )
    turned = np.column_stack([-other[:, 0], 1 - other[:, 2], 1 - other[:, 1]])
    assert ttest_ind(one, turned).pvalue.min() > 1e-4
    assert ttest_ind(one[:, 0], -turned[:, 0]).pvalue < 1e-4  # the asymmetric alloy does not coexist at 0


def test_progress_and_refusals():
    seen = []
    mu = np.linspace(-2, 2, 5)
    potential_loop(SQUARE, [1.0], temperature=0.7, potential=mu, size=8, sweeps=64, seed=1, progress=lambda *call: seen.append(call))
    assert seen == [("loop", i, 10) for i in range(1, 11)]
    for change, message in (
        ({"temperature": 0.0}, "temperature 0.0, potentials .* given; expected it above 0"),
        ({"potential": [1.0, 0.0, 2.0]}, "at least three rising ones"),
        ({"couplings": [[1.0, 2.0]]}, r"couplings of shape \(1, 2\) given; expected finite ones \(m, 1\)"),
        ({"potential": np.linspace(-0.1, 0.1, 5), "temperature": 3.0}, "expected nearly 0 and 1: widen the range"),
    ):
        arguments = {"couplings": [1.0], "temperature": 0.7, "potential": mu, "size": 8, "sweeps": 64.0, "seed": 1, **change}
        with pytest.raises(InputError, match=message):
            potential_loop(SQUARE, arguments.pop("couplings"), **arguments)
