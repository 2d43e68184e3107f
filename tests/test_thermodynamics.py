"""Thermodynamics against exact results: enumeration, Kaufman's and Onsager's energies, Yang's magnetisation, Ferdinand and Fisher's peak.

Every comparison is in units of the error that the code itself gives, |z| < 4: a false alarm in 6e-5 of them, of 50 here; in 6e-4
of the five whose error is a jackknife's over 24 parts.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from exact import SQUARE, enumerate_states, kaufman_log_z
from scipy.special import ellipk, logsumexp

from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.phases.free_energies import free_energy_difference
from bayesatoms.phases.thermodynamics import measure

ISING = Hamiltonian("Ising", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))  # w = 2 J, energies from the ground state
CRITICAL = 2 / np.log(1 + np.sqrt(2))
FREE = (0.0, 0.0)
FAST = {"kernel": "multispin", "chains": 64}


def z(found, exact):
    return (found.value - exact) / found.error


@pytest.fixture(scope="module")
def torus():
    """Of the 4 x 4 torus by enumeration: B atoms, unlike pairs and the logarithm of how many configurations have them."""
    rows = [np.array([[0, 0, 0]])]
    for atoms in range(1, 17):
        states = enumerate_states((4, 4), atoms, SQUARE)
        rows.append(np.column_stack([np.full(len(states.features), atoms), states.features[:, 0], states.log_count]))
    table = np.concatenate(rows)
    assert np.exp(table[:, 2]).sum() == pytest.approx(2**16)
    return table


def truth(torus, w, temperature, potential=0.0, atoms=None):
    """Exact values by name at coupling w and the potential of B, both over the temperature; of all compositions or of one."""
    n, unlike, log_count = (torus if atoms is None else torus[torus[:, 0] == atoms]).T
    h = (w * unlike - potential * n) / 16
    p = np.exp(log_count - 16 * h / temperature)
    p /= p.sum()
    x, m = n / 16, n / 8 - 1
    if atoms is not None:
        return {"energy": p @ (w * unlike) / 16, "heat_capacity": 16 * (p @ h**2 - (p @ h) ** 2) / temperature**2}
    return {
        "energy": p @ (w * unlike) / 16,
        "heat_capacity": 16 * (p @ h**2 - (p @ h) ** 2) / temperature**2,
        "composition": p @ x,
        "susceptibility": 16 * (p @ x**2 - (p @ x) ** 2),
        "long_range_order": p @ np.abs(m),
        "binder": 1 - (p @ m**4) / (3 * (p @ m**2) ** 2),
    }


@pytest.mark.parametrize(("temperature", "potential"), [(2.5, 0.0), (4.0, 0.0), (3.0, 0.6)])
def test_semi_grand_torus_by_enumeration(torus, temperature, potential):
    """All six of what a 4 x 4 torus measures, with and without a field."""
    found = measure(
        ISING,
        [2.0],
        temperature=temperature,
        potential=(0.0, potential),
        shape=(4, 4),
        errors={"heat_capacity": 0.01, "binder": 0.004},
        seed=1,
    )
    assert found.ok, str(found)
    assert found.heat_capacity.error <= 0.015 and found.binder.error <= 0.006
    exact = truth(torus, 2.0, temperature, potential)
    for name, value in exact.items():
        assert abs(z(getattr(found, name), value)) < 4, name
    wrong = truth(torus, 2.0, 1.1 * temperature, potential)  # negative control: a temperature wrong by a tenth is seen
    assert abs(z(found.energy, wrong["energy"])) > 8 and abs(z(found.heat_capacity, wrong["heat_capacity"])) > 4


def test_canonical_torus_by_enumeration(torus):
    found = measure(ISING, [2.0], temperature=3.0, composition=0.5, shape=(4, 4), errors={"heat_capacity": 0.01}, seed=2)
    exact = truth(torus, 2.0, 3.0, atoms=8)
    assert found.ok and found.susceptibility is None and (found.composition.value, found.composition.error) == (0.5, 0.0)
    assert abs(z(found.energy, exact["energy"])) < 4 and abs(z(found.heat_capacity, exact["heat_capacity"])) < 4
    # 32 bonds, 8 of 16 sites: alpha = 1 - unlike share / (1/2)
    assert abs(z(found.short_range_order, 1 - exact["energy"] / 2 * 16 / 32 / 0.5)) < 4


def test_errors_are_what_they_say(torus):
    """Heat capacity and Binder's cumulant in 16 runs: the mean square deviation is chi-square's, central 99.9 %."""
    exact = truth(torus, 2.0, 2.5)
    deviations = {"heat_capacity": [], "binder": []}
    for seed in range(16):
        found = measure(ISING, [2.0], temperature=2.5, potential=FREE, shape=(4, 4), errors={"energy": 0.02}, seed=seed, records=400)
        for name, into in deviations.items():
            into.append(z(getattr(found, name), exact[name]))
    for name, values in deviations.items():
        assert 3.5 < np.sum(np.square(values)) < 40.3, name  # chi-square of 16 degrees of freedom, 0.05 and 99.93 %


# ------------------------------------------------------------------ the square Ising model


def onsager(temperature):
    """Energy per site of the infinite crystal from its ground state, J = 1 (Onsager, Phys. Rev. 65, 117, 1944)."""
    k = 1 / temperature
    kappa = 2 * np.sinh(2 * k) / np.cosh(2 * k) ** 2
    return 2 - (1 + 2 / np.pi * (2 * np.tanh(2 * k) ** 2 - 1) * ellipk(kappa**2)) / np.tanh(2 * k)


def yang(temperature):
    """Spontaneous magnetisation (Yang, Phys. Rev. 85, 808, 1952)."""
    return (1 - np.sinh(2 / temperature) ** -4) ** (1 / 8)


@pytest.mark.parametrize("temperature", [1.9, 2.1])
def test_spontaneous_magnetisation_and_energy_below_the_transition(temperature):
    """48 x 48 from perfect order: the correlation length is 4 sites at most, so the size changes exp(-48 / 4), far below the error."""
    found = measure(
        ISING, [2.0], temperature=temperature, potential=FREE, composition=0.0, shape=(48, 48), errors={"long_range_order": 6e-4},
        seed=3, sweeps=50, records=200, **FAST,
    )  # fmt: skip
    assert found.ok, str(found)
    assert abs(z(found.long_range_order, yang(temperature))) < 4
    assert abs(z(found.energy, onsager(temperature))) < 4
    assert abs(z(found.long_range_order, yang(temperature + 0.02))) > 8  # negative control
    assert 0.66 < found.binder.value < 2 / 3  # <m^4> is nearly <m^2>^2 where m hardly fluctuates


@pytest.mark.parametrize("temperature", [3.0, 4.0])
def test_energy_above_the_transition(temperature):
    found = measure(
        ISING, [2.0], temperature=temperature, potential=FREE, shape=(32, 32), errors={"energy": 6e-4}, seed=4, sweeps=20, **FAST
    )
    assert found.ok, str(found)
    assert abs(z(found.energy, onsager(temperature))) < 4
    assert abs(z(found.energy, onsager(temperature + 0.02))) > 8  # negative control
    assert abs(z(found.composition, 0.5)) < 4
    assert found.long_range_order.value < 0.1 and found.binder.value < 0.1  # 2/3 in order, 0 where m is the sum of many patches


def kaufman_heat(temperature, side):
    """Exact heat capacity per site of the torus, by the second difference of ln Z."""
    k, h = 1 / temperature, 1e-3
    return k**2 * (kaufman_log_z(k + h, side, side) - 2 * kaufman_log_z(k, side, side) + kaufman_log_z(k - h, side, side)) / h**2 / side**2


SIDES = (8, 16, 32)


@pytest.fixture(scope="module")
def peaks():
    """Heat capacity at the maximum of each size: measured in one round of many chains, and exact."""
    found = {}
    for side, sweeps, chains in zip(SIDES, (10, 40, 100), (512, 512, 256), strict=True):
        grid = np.linspace(2.25, 2.45, 801)
        exact = np.array([kaufman_heat(t, side) for t in grid])
        best = int(np.argmax(exact))
        measured = measure(
            ISING, [2.0], temperature=grid[best], potential=FREE, shape=(side, side), errors={"heat_capacity": 0.02},
            seed=side, sweeps=sweeps, records=300, most=300 * sweeps, kernel="multispin", chains=chains,
        )  # fmt: skip
        found[side] = measured, exact[best]
    return found


def test_specific_heat_peak_of_each_size(peaks):
    for side, (found, exact) in peaks.items():
        # the magnetisation turns round too rarely to be called mixed, which matters to the heat capacity not at all
        assert not [r for r in found.reasons if r.startswith(("energy", "heat_capacity"))], str(found)
        assert abs(z(found.heat_capacity, exact)) < 4, side


def test_specific_heat_peak_grows_with_the_logarithm_of_the_size(peaks):
    """C_max = 0.494538 ln L + 0.2014 + b / L (Ferdinand and Fisher, Phys. Rev. 185, 832, 1969), of which three sizes give all."""
    design = np.array([[np.log(s), 1.0, 1 / s] for s in SIDES])
    row = np.linalg.inv(design)[0]
    slope = float(row @ [peaks[s][0].heat_capacity.value for s in SIDES])
    error = float(np.sqrt(row**2 @ [peaks[s][0].heat_capacity.error ** 2 for s in SIDES]))
    assert row @ [peaks[s][1] for s in SIDES] == pytest.approx(0.494538, abs=0.002)  # the form suffices: on exact values
    assert abs(slope - 0.494538) < 4 * error
    assert error < 0.06  # so that a heat capacity that saturates, slope 0, would be refused
    # negative control: away from the transition it does not grow
    far = [
        measure(ISING, [2.0], temperature=3.2, potential=FREE, shape=(s, s), errors={"heat_capacity": 0.004}, seed=s, sweeps=10, **FAST)
        for s in SIDES[1:]
    ]
    for side, cold in zip(SIDES[1:], far, strict=True):
        assert cold.ok and abs(z(cold.heat_capacity, kaufman_heat(3.2, side))) < 4
    gap, noise = far[1].heat_capacity.value - far[0].heat_capacity.value, np.hypot(*(f.heat_capacity.error for f in far))
    assert gap + 8 * noise < 0.494538 * np.log(2)


# ------------------------------------------------------------------ order, sizes, verdicts


def test_order_is_found_and_followed():
    """Unlike atoms attract: below the transition a chessboard, found without being told; above it no order, of the same wave."""
    settings = {"composition": 0.5, "shape": (16, 16), "seed": 5, "sweeps": 4}
    cold = measure(ISING, [-2.0], temperature=1.9, errors={"energy": 0.003}, **settings)
    hot = measure(ISING, [-2.0], temperature=6.0, errors={"energy": 0.01}, wave=cold.wave, **settings)
    like = measure(ISING, [2.0], temperature=6.0, errors={"energy": 0.01}, **settings)
    assert cold.ok and hot.ok and like.ok
    assert cold.wave.tolist() == [[0.5, 0.5]]
    assert cold.long_range_order.value > 0.9 and cold.binder.value > 0.66
    assert hot.long_range_order.value < 0.2 and hot.binder.value < 0.2
    assert (
        hot.short_range_order.value + 8 * hot.short_range_order.error < 0 < like.short_range_order.value - 8 * like.short_range_order.error
    )


@pytest.mark.parametrize("temperature", [2.0, 3.0])
def test_antiferromagnet_is_the_ferromagnet_of_one_sublattice_turned_over(temperature):
    """Its energy on an even torus is Kaufman's."""
    found = measure(
        ISING, [-2.0], temperature=temperature, potential=FREE, wave=[0.5, 0.5], shape=(8, 8), errors={"energy": 0.004}, seed=6, sweeps=10
    )
    k, h = 1 / temperature, 1e-4
    exact = -2 - (kaufman_log_z(k + h, 8, 8) - kaufman_log_z(k - h, 8, 8)) / (2 * h) / 64
    assert found.ok, str(found)
    assert abs(z(found.energy, exact)) < 4
    assert found.long_range_order.value > (0.8 if temperature < CRITICAL else 0) and abs(z(found.composition, 0.5)) < 4


def test_size_is_checked_on_request():
    settings = {"potential": FREE, "errors": {"energy": 0.004}, "seed": 1, "size_check": True}
    fine = measure(ISING, [2.0], temperature=5.0, shape=(12, 12), **settings)
    assert fine.ok and fine.size is not None and set(fine.size.apart) >= {"energy", "heat_capacity", "binder"}
    small = measure(ISING, [2.0], temperature=CRITICAL, shape=(4, 4), **settings)
    assert not small.ok and any("energy changes by" in r for r in small.reasons)


def test_what_is_not_settled_says_so():
    stuck = measure(ISING, [2.0], temperature=0.8, composition=0.5, shape=(16, 16), errors={"energy": 0.001}, seed=1, most=400)
    assert not stuck.ok and "not settled" in str(stuck)


# ------------------------------------------------------------------ free energies


def test_free_energy_by_enumeration(torus):
    """Four differences on the 4 x 4 torus, two ways each."""
    n, unlike, log_count = torus.T
    for composition, potential, end in [(0.5, None, 1.2), (0.25, None, -1.5), (None, (0.0, 0.5), 1.0), (None, FREE, -0.8)]:
        if potential is None:
            some = n == 16 * composition
            log_z = [logsumexp(log_count[some] - w * unlike[some]) for w in (0.0, end)]
        else:
            log_z = [logsumexp(log_count - w * unlike + potential[1] * n) for w in (0.0, end)]
        found = free_energy_difference(ISING, [0.0], [end], shape=(4, 4), composition=composition, potential=potential, seed=7)
        assert found.ok, found.reasons
        exact = log_z[0] - log_z[1]
        assert abs(z(found.reweighting, exact)) < 4 and abs(z(found.integration, exact)) < 4
        assert max(found.reweighting.error, found.integration.error) < 0.02 * abs(exact)  # an error of 8 % would be seen


def test_free_energies_add_up_and_turn_round():
    """F of a path is that of its parts, and of the way back its negative; two couplings, another lattice, no truth needed."""
    model = Hamiltonian("P2", Pair("A", "B"), Pair("A", "B", shell=2), lattice=Lattice.triangular(), species=("A", "B"))
    corners = ([0.0, 0.0], [0.3, 0.1], [-0.2, 0.2], [0.0, 0.0])
    steps = [
        free_energy_difference(model, a, b, shape=(8, 8), composition=0.25, seed=i, nodes=6) for i, (a, b) in enumerate(pairwise(corners))
    ]
    assert all(s.ok for s in steps), [s.reasons for s in steps]
    for way in ("reweighting", "integration"):
        parts = [getattr(s, way) for s in steps]
        assert abs(sum(p.value for p in parts)) < 4 * np.sqrt(sum(p.error**2 for p in parts))
        assert max(abs(p.value) for p in parts) > 40 * max(p.error for p in parts)  # the sum is of numbers that are not zero


def test_too_few_nodes_are_found_out():
    """From strong repulsion to strong attraction in two steps: the integral's rule fails and nothing lies between the rungs."""
    found = free_energy_difference(ISING, [-3.0], [3.0], shape=(6, 6), potential=FREE, seed=1, nodes=2)
    assert not found.ok and any("between rungs" in r or "differ by" in r for r in found.reasons)


def test_refusals():
    common = {"shape": (4, 4), "errors": {"energy": 0.1}, "seed": 1}
    for change, words in [
        ({"composition": 0.5, "temperature": 0.0}, "temperature 0.0 given; expected a number above 0"),
        ({}, "neither composition nor potential given"),
        ({"composition": 1.5}, "composition 1.5 given; expected the share of species 1"),
        ({"potential": (0.0,)}, r"potential \[0.0\] given; expected 2 finite numbers"),
        ({"composition": 0.5, "errors": {}}, "no error asked for; expected that of one or more of energy, heat_capacity"),
        ({"composition": 0.5, "errors": {"entropy": 0.1}}, "observable 'entropy' is unknown"),
        ({"composition": 0.5, "wave": [0.3, 0.0]}, "multiples of one over the cells"),
    ]:
        with pytest.raises(InputError, match=words):
            measure(ISING, [1.0], **{**common, **change})
    for change, words in [
        ({"nodes": 1}, "1 nodes of 8 chains asked for"),
        ({"chains": 5}, "8 nodes of 5 chains asked for"),
        ({"end": [0.0]}, "expected different couplings"),
    ]:
        with pytest.raises(InputError, match=words):
            free_energy_difference(ISING, [0.0], **{"end": [1.0], "shape": (4, 4), "composition": 0.5, "seed": 1, **change})
