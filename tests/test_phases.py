"""Phases: observables on configurations one can draw, and the map against what is known of the triangular alloy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.phases.candidates import Candidate
from bayesatoms.phases.diagram import phase_diagram
from bayesatoms.phases.observables import (
    disordered_floor,
    order_parameter,
    ordered_threshold,
    phase,
    structure_factor,
    warren_cowley,
)
from bayesatoms.phases.sheet import ENERGY, ORDER, _broken, _trapped, _Way

TRIANGULAR = Lattice.triangular(a=0.316)
ALLOY = {"lattice": TRIANGULAR, "species": ("Mo", "Re")}
RANDOM = Hamiltonian("R", **ALLOY)
PAIRS = Hamiltonian("P1", Pair("Mo", "Re", shell=1, name="w1"), **ALLOY)
UP = TRIANGULAR.triangle("up")
MANY = Hamiltonian("M", Cluster(("Mo", "Mo", "Re"), UP, name="t1"), Cluster(("Mo", "Re", "Re"), UP, name="t2"), **ALLOY)
NO_DRAWS = np.zeros((0, 0))


def _box(lattice: Lattice = TRIANGULAR, side: int = 24):
    return lattice.supercell((side,) * lattice.dimension)


def _root3(side: int = 24) -> np.ndarray:
    """One of three sublattices of the triangular lattice, whose sites are no neighbours of each other."""
    return (np.indices((side, side)).sum(0) % 3 == 0).astype(np.int8).reshape(1, -1)


def _random(supercell, composition: float, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    atoms = np.arange(supercell.n_sites) < round(composition * supercell.n_sites)
    return np.array([rng.permutation(atoms) for _ in range(n)]).astype(np.int8)


# ------------------------------------------------------------------ observables


def test_root3_order_is_complete_at_one_third():
    labels, box = _root3(), _box()
    order = order_parameter(labels, box)
    assert order.share[0] == pytest.approx(1.0)
    assert not order.separated[0]
    # the two corners K of the Brillouin zone, (1/3, 1/3) and its negative
    assert order.peak[0].tolist() in ([8, 8], [16, 16])
    # every neighbour of a Re is a Mo, so p = 1 and alpha = 1 - 1 / (2/3); the second shell is the same sublattice
    assert warren_cowley(labels, box)[0] == pytest.approx(-1 / 2)
    assert warren_cowley(labels, box, shell=2)[0] == pytest.approx(1.0)
    assert warren_cowley(labels, box, pair=(1, 1))[0] == pytest.approx(1.0)


@pytest.mark.parametrize("lattice", [Lattice.square(), Lattice.cubic()], ids=lambda x: x.name)
def test_chessboard(lattice):
    box = _box(lattice, 6)
    labels = box.sites[None, :, :-1].sum(-1) % 2
    order = order_parameter(labels, box)
    assert (order.share[0], bool(order.separated[0]), order.peak[0].tolist()) == (pytest.approx(1.0), False, [3] * lattice.dimension)
    assert warren_cowley(labels, box)[0] == pytest.approx(-1.0)


def test_honeycomb_sublattice_order_sits_at_k_zero():
    box = _box(Lattice.honeycomb(), 6)
    labels = box.sites[None, :, -1]
    order = order_parameter(labels, box)
    assert (order.share[0], bool(order.separated[0]), order.peak[0].tolist()) == (pytest.approx(1.0), False, [0, 0])
    assert warren_cowley(labels, box)[0] == pytest.approx(-1.0)


def test_two_slabs_are_separated():
    box = _box()
    labels = (box.sites[None, :, 0] < 12).astype(np.int8)
    order = order_parameter(labels, box)
    # a square wave of period L: first harmonic 2 / (L sin(pi / L))^2 of the variance 1/4
    assert order.share[0] == pytest.approx(8 / (24 * np.sin(np.pi / 24)) ** 2)
    assert order.separated[0]
    # 2 of 3 bonds step between planes, 2 of 24 such steps are walls; random: half of the bonds unlike
    assert warren_cowley(labels, box)[0] == pytest.approx(1 - (2 / 3) * (2 / 24) / 0.5)
    assert phase(order.share, order.separated, ordered_threshold(box, 0.5)).tolist() == [2]


@pytest.mark.parametrize("composition", [0.1, 0.5])
def test_random_alloy_has_the_finite_size_values(composition):
    box, n = _box(side=6), 20_000
    labels = _random(box, composition, n, seed=3)
    alpha = warren_cowley(labels, box)
    error = alpha.std() / np.sqrt(n)
    assert abs(alpha.mean() + 1 / (box.n_sites - 1)) < 4 * error
    assert 8 * error < 1 / (box.n_sites - 1)  # so that 0 would be refused
    box = _box()
    order = order_parameter(_random(box, composition, 500, seed=4), box)
    assert 1.0 < order.share.mean() / disordered_floor(box) < 1.25  # the mean of a maximum lies above its typical value
    assert phase(order.share, order.separated, ordered_threshold(box, composition)).max() == 0


@pytest.mark.parametrize("lattice", [TRIANGULAR, Lattice.honeycomb(), Lattice.cubic()], ids=lambda x: x.name)
def test_structure_factor_sum_rule_and_translation(lattice):
    box = _box(lattice, 6)
    labels = _random(box, 0.25, 3, seed=1)
    s = structure_factor(labels, box)
    assert s.sum(axis=tuple(range(1, s.ndim))) == pytest.approx(box.n_cells)
    grid = labels.reshape(3, *box.shape, -1)
    moved = np.roll(grid, 2, axis=1).reshape(3, -1)
    assert structure_factor(moved, box) == pytest.approx(s)
    assert warren_cowley(moved, box) == pytest.approx(warren_cowley(labels, box))
    assert order_parameter(1 - labels, box).share == pytest.approx(order_parameter(labels, box).share)


def test_one_species_alone_has_no_alpha_and_no_peak():
    box, labels = _box(side=6), np.zeros((1, 36), dtype=int)
    assert np.isnan(warren_cowley(labels, box)[0])
    assert order_parameter(labels, box).share[0] == 0


def test_labels_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"shape \(1, 35\) given; expected integers of shape \(snapshots, 36\)"):
        order_parameter(np.zeros(35, dtype=int), _box(side=6))


# ------------------------------------------------------------------ the map


@pytest.fixture(scope="module")
def ordering():
    """w = -1 kT per unlike pair, known to 2 %, and half the weight on the random alloy."""
    draws = np.random.default_rng(1).normal(-1.0, 0.02, size=(500, 1))
    candidates = [Candidate(PAIRS, draws, 0.5), Candidate(RANDOM, NO_DRAWS, 0.5)]
    return phase_diagram(candidates, composition={"Re": [0.1, 1 / 3, 0.5]}, temperature=[0.01, 0.5, 1.0], draws=40, seed=5, workers=2)


def test_strong_ordering_shows_an_ordered_region(ordering):
    d = ordering.dataset
    # sqrt3 x sqrt3 at x = 1/3 sets in between w/T = -1.4 and -1.6; w/T here -100, -2, -1
    assert d.p_ordered.sel(composition=1 / 3).values.tolist() == [0.5, 0.5, 0.0]
    # hard hexagons at x = 0.1 are a liquid; x = 1/2 has no order down to -2.2
    assert d.p_ordered.sel(composition=0.1).values.tolist() == [0.0, 0.0, 0.0]
    assert d.p_ordered.sel(composition=0.5, temperature=[0.5, 1.0]).values.tolist() == [0.0, 0.0]
    assert d.p_separated.values.max() == 0
    high = d.order_parameter.sel(composition=1 / 3, quantile=0.95).values
    assert high[0] > 0.9
    assert high[1] > 0.6
    assert high[2] < 0.1
    assert d.warren_cowley.sel(composition=1 / 3, quantile=0.05).values[0] == pytest.approx(-0.5, abs=0.02)


def test_beyond_the_simulated_couplings_the_map_says_so(ordering):
    """At w / T = -100 the order at x = 1/3 stands still; hard hexagons (x = 0.1) and the frustrated alloy (x = 1/2) still move."""
    supported = ordering.dataset.supported
    assert supported.sel(temperature=0.01).values.tolist() == [1.0, 0.5, 1.0]  # at x = 1/3 only the random alloy
    # one draw in forty is so well ordered at 0.5 that an atom moves less than once in 480 sweeps
    assert supported.sel(temperature=[0.5, 1.0]).values.min() > 0.95


def test_summary_and_file(ordering, tmp_path):
    summary = json.loads(json.dumps(ordering.summary()))
    assert (summary["max_p_ordered"], summary["ordered_up_to"], summary["draws"]) == (0.5, None, 40)  # 0.5 is not above 0.5
    assert summary["max_p_ordered_at"]["composition"] == pytest.approx(1 / 3)
    path = ordering.save(tmp_path / "phases.nc")
    with xr.open_dataset(path, engine="h5netcdf") as back:
        xr.testing.assert_equal(back, ordering.dataset)
        assert (int(back.attrs["seed"]), list(back.attrs["models"]), list(back.attrs["box"])) == (5, ["P1", "R"], [24, 24])
        assert all({"units", "long_name"} <= set(v.attrs) for v in back.variables.values())
    assert [p.name for p in tmp_path.iterdir()] == ["phases.nc"]


def test_attraction_separates():
    draws = np.random.default_rng(2).normal(0.3, 0.005, size=(50, 1))
    diagram = phase_diagram([Candidate(PAIRS, draws)], composition=[0.5], temperature=[0.2, 0.4, 1.0], draws=20, seed=1)
    d = diagram.dataset  # separation begins at w/T = ln(3) / 2 = 0.549; w/T here 1.5, 0.75, 0.3
    assert d.p_separated.values[:, 0].tolist() == [1.0, 1.0, 0.0]
    assert d.p_ordered.values.max() == 0
    assert d.hysteresis.values[-1, 0] == 0
    assert diagram.summary()["ordered_up_to"] is None


def test_hot_alloy_follows_the_high_temperature_series():
    # alpha = 2 w x (1 - x) + two triangles a bond at second order - 1 / (N - 1); below |w|/T = 0.1 by the line to random
    diagram = phase_diagram([Candidate(PAIRS, [[0.1]])], composition=[0.5], temperature=[1.0, 2.0], draws=1, seed=4, sweeps=4000)
    expected = [0.05 + 2 * 0.05**2 - 1 / 575, 0.025 + 2 * 0.025**2 - 1 / 575]
    assert diagram.dataset.warren_cowley.sel(quantile=0.5).values[:, 0] == pytest.approx(expected, abs=0.01)


def test_mixed_triangles_of_one_orientation_are_pairs():
    # N_unlike = 2 N_mixed(one orientation): M at (2w, 2w) is P1 at w, though its grid of magnitudes is another
    common = {"composition": [1 / 3], "temperature": [0.3, 1.0, 2.0], "draws": 1, "seed": 1}
    pairs = phase_diagram([Candidate(PAIRS, [[-0.8]])], **common).dataset
    many = phase_diagram([Candidate(MANY, [[-1.6, -1.6]])], **common).dataset
    assert many.warren_cowley.values == pytest.approx(pairs.warren_cowley.values, abs=0.03)
    assert many.p_ordered.values[:, 0].tolist() == pairs.p_ordered.values[:, 0].tolist() == [1.0, 0.0, 0.0]


def test_random_alloy_is_exact_and_never_ordered():
    diagram = phase_diagram([Candidate(RANDOM, NO_DRAWS)], composition=np.linspace(0.1, 0.9, 9), seed=1)
    d = diagram.dataset
    assert d.p_ordered.values.max() == d.p_separated.values.max() == d.hysteresis.values.max() == 0
    assert np.unique(d.warren_cowley).tolist() == [-1 / 575]
    assert d.sizes == {"quantile": 3, "temperature": 13, "composition": 9}
    assert (d.supported.values.min(), diagram.summary()["chains"]) == (1.0, 0)


@pytest.mark.parametrize(("lattice", "box"), [(Lattice.honeycomb(), [18, 18]), (Lattice.cubic(), [12, 12, 12])], ids=["honeycomb", "cubic"])
def test_default_box(lattice, box):
    random = Hamiltonian("R", lattice=lattice, species=("A", "B"))
    assert phase_diagram([Candidate(random, NO_DRAWS)], composition=[0.5], seed=1).dataset.attrs["box"] == box


def _way(energy, order=None) -> _Way:
    """One lane whose energies (order parameters) on cooling and on warming are these."""
    energy = np.array(energy)
    values, errors = np.zeros((2, energy.shape[1], 1, 9)), np.full((2, energy.shape[1], 1, 9), 0.1)
    values[..., 0, ENERGY] = energy
    if order is not None:
        values[..., 0, ORDER] = order
    return _Way(values, errors, np.array([energy.shape[1] - 1]), np.array([False]))


def test_a_chain_above_an_energy_met_at_higher_temperature_is_trapped():
    cooling, heating = [0.0, -1.0, -5.0, -6.0], [0.0, -1.1, -8.0, -6.0]  # domains, healed only on heating
    assert _trapped(_way([cooling, heating]))[:, 0].tolist() == [False, False, False, True]
    assert not _trapped(_way([heating[:3], heating[:3]])).any()


def test_a_lane_that_loses_its_order_on_cooling_is_broken():
    energy = [[0.0, -1.0, -2.0]] * 2
    assert _broken(_way(energy, [[0.0, 0.2, 0.3], [0.0, 0.9, 0.3]])).tolist() == [True]
    assert _broken(_way(energy, [[0.0, 0.2, 0.9], [0.0, 0.9, 0.9]])).tolist() == [False]


SMALL = {"composition": [0.3, 0.7], "temperature": [0.3, 1.0], "draws": 30, "seed": 9, "size": 12, "sweeps": 60}


def _spread_draws() -> np.ndarray:
    return np.random.default_rng(3).normal([-0.3, -0.1], [0.2, 0.3], size=(200, 2))


def test_same_result_whatever_the_workers_and_progress_counts():
    candidates, seen = [Candidate(MANY, _spread_draws(), 2.0), Candidate(PAIRS, _spread_draws()[:, 1:])], []
    one = phase_diagram(candidates, **SMALL)
    two = phase_diagram(candidates, **SMALL, workers=2, progress=lambda *call: seen.append(call))
    xr.testing.assert_identical(one.dataset, two.dataset)
    assert seen == [("phases", i, 4) for i in range(1, 5)]  # two models, two compositions
    other = phase_diagram(candidates, **{**SMALL, "seed": 10})
    assert not np.array_equal(one.dataset.order_parameter, other.dataset.order_parameter)


def test_composition_of_the_first_species_is_the_mirror_image():
    candidates = [Candidate(MANY, _spread_draws())]
    second = phase_diagram(candidates, **SMALL).dataset
    first = phase_diagram(candidates, **{**SMALL, "composition": {"Mo": [0.3, 0.7]}}).dataset
    for name in ("order_parameter", "warren_cowley", "p_ordered"):
        assert first[name].values == pytest.approx(second[name].values[..., ::-1])


THREE = Hamiltonian("T", lattice=TRIANGULAR, species=("A", "B", "C"))
GOOD = [Candidate(PAIRS, [[0.1]])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": [0.0, 1.0]}, r"temperature \[0.0, 1.0\] given; expected one row of rising numbers above 0"),
        ({"temperature": [1.0, 0.5]}, "temperature .* rising"),
        ({"composition": [0.5, 1.0]}, r"composition \[0.5, 1.0\] given; expected one row of rising numbers between 0 and 1"),
        ({"composition": [0.5, 0.5]}, "composition .* rising"),
        ({"composition": []}, r"composition \[\] given"),
        ({"composition": {"W": [0.5]}}, r"composition of \['W'\] given; expected values of one of Mo, Re"),
        ({"chemical_potential": [0.0]}, "composition and chemical_potential given, or neither; expected one"),
        ({"composition": None}, "composition and chemical_potential given, or neither; expected one"),
        (
            {"composition": None, "chemical_potential": [1.0, 0.0]},
            r"chemical_potential \[1.0, 0.0\] given; .* rising numbers$",
        ),
        ({"formation": -3.0}, "formation temperature -3.0 given; expected a positive number of K"),
        ({"composition": [1e-4]}, "leaves a species without atoms among 576 sites"),
        ({"draws": 0}, "draws 0 given; expected a number of at least 1"),
        ({"sweeps": 3}, "sweeps 3 given; expected a number of at least 16"),
        ({"seed": -1}, "seed -1 given"),
        ({"size": 7}, "size 7 given; expected even numbers of cells"),
        ({"size": (6, 6, 6)}, "one or 2 of them"),
        ({"source": []}, "0 candidates without weight given; expected at least one"),
        ({"source": [Candidate(PAIRS, [[0.1]], 0.0)]}, "1 candidates without weight"),
        ({"source": [Candidate(THREE, NO_DRAWS)]}, "species A, B, C given; a phase diagram expects two"),
        ({"source": [*GOOD, Candidate(THREE, NO_DRAWS)]}, "models P1, T given; expected different names, one lattice"),
        ({"source": GOOD * 2}, "models P1, P1 given; expected different names"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"source": GOOD, "composition": [0.5], "seed": 1, **change}
    with pytest.raises(InputError, match=message):
        phase_diagram(arguments.pop("source"), **arguments)


@pytest.mark.parametrize("draws", [np.zeros((0, 1)), [[0.1, 0.2]], [[np.nan]], [0.1]])
def test_bad_draws_are_named(draws):
    with pytest.raises(InputError, match=r"model P1: couplings of shape .* given; expected finite draws \(n, 1\), n >= 1"):
        Candidate(PAIRS, draws)
    with pytest.raises(InputError, match=r"model P1: weight -1 given; expected a number >= 0"):
        Candidate(PAIRS, [[0.1]], -1)
