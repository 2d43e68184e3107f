"""The phase map as a whole: coexistence, chemical potentials, boundaries as draws, models compared, interruptions."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Field, Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.executors import executor
from bayesatoms.phases import diagram as diagram_module
from bayesatoms.phases.candidates import Candidate
from bayesatoms.phases.coexistence import free_energy, gaps
from bayesatoms.phases.diagram import PhaseDiagram, phase_diagram
from bayesatoms.phases.insertion import chemical_potentials
from bayesatoms.phases.mapping import Draws, disagreement, notes_of
from bayesatoms.phases.sheet import POTENTIAL, Sheet, cool, joined, split

SPECIES = ("A", "B")
SQUARE = Hamiltonian("square", Pair(*SPECIES, name="w"), lattice=Lattice.square(), species=SPECIES)
ORDERING = Hamiltonian("ordering", Pair(*SPECIES, name="w"), lattice=Lattice.triangular(), species=SPECIES)
RANDOM = Hamiltonian("R", lattice=Lattice.triangular(), species=SPECIES)


def magnetisation(w: float) -> float:
    """Of the square Ising model, w kT per unlike pair (Yang, Phys. Rev. 85, 808, 1952)."""
    return (1 - np.sinh(w) ** -4) ** 0.125


# ---------------------------------------------------------------------- chemical potential and coexistence


@pytest.mark.parametrize("w", [-0.4, 0.5])
def test_chemical_potential_is_that_of_the_enumerated_torus(w):
    """ln Z at n - 1 and n + 1 atoms of a 4 x 4 torus, against 128 chains: one comparison each, |z| < 4."""
    box = SQUARE.lattice.supercell((4, 4))
    compiled = SQUARE.compile(box)

    def features(atoms):
        return compiled.features(np.isin(np.arange(16), atoms).astype(int))[0]

    log_z = {n: np.logaddexp.reduce([-w * features(atoms) for atoms in itertools.combinations(range(16), n)]) for n in (4, 6)}
    exact = (log_z[4] - log_z[6]) / 2
    sheet = Sheet(compiled, box, np.full((128, 1), w), np.array([1.0]), np.array([11, 5]), 1, 200.0, (3,))
    found = joined([cool(s) for s in split(sheet)]).values[POTENTIAL, :, 0]
    assert abs(found.mean() - exact) < 4 * found.std(ddof=1) / np.sqrt(len(found))
    assert found.std(ddof=1) / np.sqrt(len(found)) < 0.02 < abs(exact - np.log(5.5 / 11.5))  # free mixing would be refused


def test_chemical_potential_refusals():
    compiled = SQUARE.compile(SQUARE.lattice.supercell((4, 4)))
    with pytest.raises(InputError, match="2 species, 0 of 16 atoms of one; expected two species, both present"):
        chemical_potentials(compiled, compiled.tables @ [0.1], np.zeros((1, 16)))


def test_a_regular_solution_and_one_that_mixes():
    x = np.linspace(0.05, 0.95, 19)
    mixing = np.log(x / (1 - x))
    assert gaps(x, mixing + 1.9 * (1 - 2 * x), 10**6) == []
    [gap] = gaps(x, mixing + 2.5 * (1 - 2 * x), 10**6)
    # ln(x / (1 - x)) = -2.5 (1 - 2 x) at the ends of the gap
    assert np.log(gap.low / (1 - gap.low)) == pytest.approx(-2.5 * (1 - 2 * gap.low), abs=0.02)
    assert gap.low + gap.high == pytest.approx(1, abs=1e-3)
    assert gaps(x, mixing + 2.5 * (1 - 2 * x), 10**6, error=1.0) == []  # an error as large as that hides it
    with pytest.raises(InputError, match="expected at least three"):
        free_energy([0.2, 0.4], [0.0, 0.1], 100)


@pytest.fixture(scope="module")
def separating():
    """The square Ising model at w = 1 kT, known to 1e-3: Tc = 1 / 0.8814 = 1.1346."""
    draws = np.random.default_rng(1).normal(1.0, 1e-3, (60, 1))
    grid = {"composition": np.linspace(0.04, 0.96, 15), "temperature": [0.8, 0.95, 1.05, 1.2, 1.4]}
    return phase_diagram([Candidate(SQUARE, draws)], **grid, draws=24, seed=4, workers=2, formation=500.0)


def test_coexisting_compositions_are_those_of_yang(separating):
    """The median over 24 draws of one coupling, at two temperatures; compositions of the map are 0.066 apart.

    Not at 0.8, where the dilute phase (0.010) is poorer than the map's first composition (0.04).
    """
    found = separating.boundaries.coexistence.sel(temperature=[0.95, 1.05])
    low = found.isel(side=0).to_numpy()
    exact = (1 - np.array([magnetisation(1 / 0.95), magnetisation(1 / 1.05)])) / 2
    assert np.isfinite(low).mean() > 0.8
    assert np.nanmedian(low, axis=0) == pytest.approx(exact, abs=0.02)
    assert np.nanmedian(found.isel(side=1), axis=0) == pytest.approx(1 - exact, abs=0.02)
    assert np.isnan(separating.boundaries.coexistence.sel(temperature=[1.4])).mean() > 0.9


def test_both_signs_of_separation_agree(separating):
    d = separating.dataset
    inside = d.sel(composition=0.5, method="nearest")
    assert inside.p_coexistence.values[[0, 1, -1]].tolist() == [1.0, 1.0, 0.0]
    assert inside.p_separated.values[[0, -1]].tolist() == [1.0, 0.0]
    # a few draws are stuck with slabs across, and say so
    assert 1 - inside.p_separated.values[1] <= inside.hysteresis.values[1]
    assert (d.p_disordered + d.p_ordered + d.p_separated).values == pytest.approx(1.0)
    assert d.heat_capacity.min() >= 0
    assert (np.diff(d.energy_mean.values, axis=0) > -1e-3).all()  # the energy rises with temperature everywhere
    assert d.kelvin.values == pytest.approx(500 * d.temperature.values)
    assert not d.extrapolated.any()  # no images, nothing to go beyond


def test_boundaries_are_draws(separating):
    b = separating.boundaries
    middle = b.transition.sel(composition=0.5, method="nearest")
    assert 1.0 < middle.median() < 1.2
    assert b.transition_band.sel(composition=0.5, method="nearest").values == pytest.approx(
        np.quantile(middle, [0.05, 0.5, 0.95], method="closest_observation")
    )
    assert (b.highest.values >= middle.values).all()
    assert b.p_transition.sel(composition=0.5, method="nearest") == 1.0
    assert set(b.model.values) == {"square"}


def test_file_holds_all_of_it(separating, tmp_path):
    back = PhaseDiagram.load(separating.save(tmp_path / "phases.nc"))
    for name in ("dataset", "models", "boundaries"):
        xr.testing.assert_equal(getattr(back, name), getattr(separating, name))
    assert back.summary() == separating.summary()
    (tmp_path / "broken.nc").write_bytes(b"no netCDF")
    with pytest.raises(InputError, match="holds no phase map"):
        PhaseDiagram.load(tmp_path / "broken.nc")


# ---------------------------------------------------------------------- chemical potential as axis


def test_semi_grand_map():
    """Exchanging the species turns mu into -mu; the random alloy is exact; below Tc the composition jumps."""
    draws = np.random.default_rng(2).normal(1.0, 1e-3, (40, 1))
    mu, t = [-1.0, -0.3, 0.3, 1.0], [0.7, 2.0]
    found = phase_diagram([Candidate(SQUARE, draws)], chemical_potential={"B": mu}, temperature=t, draws=16, size=12, seed=1).dataset
    x = found.mean_composition_mean.values
    assert x + x[:, ::-1] == pytest.approx(1.0, abs=0.02)
    assert x[0, 1] < 0.05
    assert x[0, 2] > 0.95  # one phase or the other
    assert 0.3 < x[1, 1] < 0.5 < x[1, 2] < 0.7
    mirror = phase_diagram([Candidate(SQUARE, draws)], chemical_potential={"A": mu}, temperature=t, draws=16, size=12, seed=1).dataset
    assert mirror.mean_composition_mean.values == pytest.approx(x, abs=0.02)
    random = phase_diagram([Candidate(RANDOM, np.zeros((0, 0)))], chemical_potential=mu, temperature=t, seed=1).dataset
    assert random.mean_composition_mean.values == pytest.approx(1 / (1 + np.exp(-np.array(mu) / np.array(t)[:, None])))
    x = random.mean_composition_mean.values
    assert random.susceptibility_mean.values == pytest.approx(x * (1 - x) / np.array(t)[:, None])
    assert random.energy_mean.values == pytest.approx(-np.array(mu) * x)
    assert random.heat_capacity_mean.values == pytest.approx(np.array(mu) ** 2 * x * (1 - x) / np.array(t)[:, None] ** 2)
    # atoms that hardly interact, 64 draws of at least 32 records each: a variance is known to sqrt(2 / 2048), four times that
    free = phase_diagram([Candidate(SQUARE, [[1e-3]])], chemical_potential=[0.5], temperature=[2.0], draws=64, size=12, seed=1).dataset
    x = 1 / (1 + np.exp(-0.25))
    assert free.energy_mean.item() == pytest.approx(-0.5 * x, abs=0.01)
    assert free.heat_capacity_mean.item() == pytest.approx(0.25 * x * (1 - x) / 4, rel=4 * (2 / 2048) ** 0.5)
    assert free.susceptibility_mean.item() == pytest.approx(x * (1 - x) / 2, rel=4 * (2 / 2048) ** 0.5)
    assert "chemical_potential" in found.dims
    assert "composition" not in found.dims


# ---------------------------------------------------------------------- models


def test_models_that_disagree():
    """Two models of equal weight, each sure of its phase: one bit; at high temperature none."""
    sure = np.array([[-1.0]])
    candidates = [Candidate(ORDERING, sure, 0.5), Candidate(RANDOM, np.zeros((0, 0)), 0.5)]
    found = phase_diagram(candidates, composition=[1 / 3], temperature=[0.4, 2.0], draws=8, seed=1)
    assert found.dataset.disagreement.values[:, 0] == pytest.approx([1.0, 0.0])
    assert found.models.p_ordered.sel(model="ordering").values[:, 0].tolist() == [1.0, 0.0]
    assert found.models.p_disordered.sel(model="R").values[:, 0].tolist() == [1.0, 1.0]
    assert found.models.weight.values.tolist() == [0.5, 0.5]
    assert found.summary()["max_disagreement"] == pytest.approx(1.0)


def _draws(order: np.ndarray, temperature: list[float], owner: list[int]) -> Draws:
    """A map of one composition whose draws have these order parameters (draws, temperature)."""
    box = ORDERING.lattice.supercell((24, 24))
    values = np.zeros((9, *order.shape, 1))
    values[0, ..., 0], values[4] = order, 1 / 3
    flags = np.zeros(values.shape[1:], dtype=bool)
    across = ("composition", np.array([1 / 3]), "fraction of B")
    return Draws(values, flags, flags, np.array(owner), ("one", "two"), np.array(temperature), across, box)


def test_disagreement_is_the_information_on_the_phase():
    one = np.array([[0.9], [0.9], [0.0], [0.0]])
    assert disagreement(_draws(one, [1.0], [0, 0, 1, 1]))[0, 0] == pytest.approx(1.0)
    assert disagreement(_draws(one, [1.0], [0, 1, 0, 1]))[0, 0] == pytest.approx(0.0)
    # three quarters and one quarter: H(1/2) - H(1/4)
    mixed = np.array([[0.9]] * 3 + [[0.0]] + [[0.9]] + [[0.0]] * 3)
    assert disagreement(_draws(mixed, [1.0], [0] * 4 + [1] * 4))[0, 0] == pytest.approx(1 - 0.8112781)


# ---------------------------------------------------------------------- boundaries in words


def test_boundaries_between_rows_and_beyond_them():
    order = np.array([[0.642, 0.042, 0.02], [0.0, 0.0, 0.0], [0.9, 0.9, 0.9]])  # threshold 0.342: half way down
    found = _draws(order, [0.5, 1.0, 2.0], [0, 0, 0])
    t = found.transitions[:, 0]
    assert t[0] == pytest.approx(0.5 * 2**0.5, rel=1e-3)
    assert t[1:].tolist() == [0.0, np.inf]
    assert any("33% of the draws have a transition above 2" in n for n in notes_of(found))


def test_a_grid_too_coarse_for_its_boundary_is_told():
    order = np.tile([0.642, 0.042], (4, 1)) + np.linspace(0, 0.01, 4)[:, None]
    [note] = notes_of(_draws(order, [0.5, 1.0], [0] * 4))
    assert note.startswith("the grid is too coarse for the boundary: neighbouring temperatures differ by 100%")
    spread = np.array([[0.9, 0.9, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0], [0.9, 0.9, 0.9, 0.0]])
    assert notes_of(_draws(spread, [0.5, 0.6, 0.7, 0.8], [0] * 3)) == []


def test_a_model_without_order_says_so():
    [note] = notes_of(_draws(np.zeros((2, 2)), [0.5, 1.0], [0, 0]))
    assert note == "no transition in range: disordered for all draws from 0.5 to 1 of the formation temperature"
    [note] = notes_of(_draws(np.full((2, 1), 0.9), [0.5], [0, 0]))
    assert note == "one temperature, 0.5: boundaries need two or more"


def test_compositions_beyond_the_images_are_extrapolated():
    images = [SimpleNamespace(true_composition=np.array([1 - x, x])) for x in (0.3, 0.6)]
    flagged = diagram_module._extrapolated(images, np.array([0.2, 0.3, 0.5, 0.7]), 1, True)
    assert flagged.tolist() == [True, False, False, True]


# ---------------------------------------------------------------------- long work


GRID = {"composition": [0.3, 0.5], "temperature": [0.4, 1.0], "draws": 6, "seed": 2, "size": 12, "sweeps": 64}


def test_interrupted_maps_go_on(tmp_path, monkeypatch):
    draws = np.random.default_rng(0).normal(-0.6, 0.2, (50, 1))
    source = [Candidate(ORDERING, draws)]
    whole = phase_diagram(source, **GRID)
    calls = []

    def failing(sheet):
        calls.append(sheet.key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return cool(sheet)

    monkeypatch.setattr(diagram_module, "cool", failing)
    with pytest.raises(KeyboardInterrupt):
        phase_diagram(source, **GRID, folder=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 1
    resumed = phase_diagram(source, **GRID, folder=tmp_path)
    assert len(calls) == 3  # the one that was finished is not run again
    xr.testing.assert_identical(resumed.dataset, whole.dataset)
    one, other = tmp_path.glob("*.npz")
    one.write_bytes(b"cut off")
    other.write_bytes(other.read_bytes()[: other.stat().st_size // 2])
    again = phase_diagram(source, **GRID, folder=tmp_path)
    assert len(calls) == 5
    xr.testing.assert_identical(again.dataset, whole.dataset)
    phase_diagram(source, **{**GRID, "seed": 3}, folder=tmp_path)
    assert len(calls) == 7  # another seed is another map


def test_stored_parts_belong_to_their_lattice_and_model():
    """The same field on two lattices, and one triangle in two orders of its sites, are not the same map."""

    def key(model):
        box = model.lattice.supercell((6, 6))
        return Sheet(model.compile(box), box, np.array([[0.1]]), np.array([1.0]), np.array([18, 18]), 1, 64.0, (1,)).key

    fields = [Hamiltonian("h", Field("B"), lattice=lattice, species=SPECIES) for lattice in (Lattice.square(), Lattice.triangular())]
    orders = [[[0, 0, 0], [1, 0, 0], [1, 2, 0]], [[1, 0, 0], [0, 0, 0], [1, 2, 0]]]
    clusters = [Hamiltonian("c", Cluster(("A", "B", "B"), o, name="t"), lattice=Lattice.square(), species=SPECIES) for o in orders]
    keys = [key(model) for model in (*fields, *clusters)]
    assert len(set(keys)) == 4
    assert keys == [key(model) for model in (*fields, *clusters)]


def test_frozen_rows_say_nothing_of_coexistence(separating):
    """Where atoms stand still the share of draws between two compositions is not known; a pure crystal is not frozen."""
    draws = np.full((4, 1), 1.0)
    grid = {"composition": np.linspace(0.1, 0.9, 5), "temperature": [0.02, 0.9]}
    cold = phase_diagram([Candidate(SQUARE, draws)], **grid, draws=4, seed=1, size=12, sweeps=64).dataset
    assert (cold.supported.values[0] < 1).all()
    assert np.isnan(cold.p_coexistence.values[0]).all()
    assert np.isfinite(cold.p_coexistence.values[1]).all()
    assert np.isfinite(cold.chemical_potential_mean.values).all()
    pure = phase_diagram([Candidate(SQUARE, draws)], chemical_potential=[-2.0, 2.0], temperature=[0.1], draws=4, seed=1, size=12).dataset
    assert (pure.supported.values == 1).all()
    assert pure.mean_composition_mean.values[0] == pytest.approx([0, 1], abs=1e-3)
    with pytest.raises(InputError, match="some are the same number of atoms among 36 sites"):
        phase_diagram([Candidate(SQUARE, draws)], composition=[0.30, 0.31], temperature=[1.0], draws=1, seed=1, size=6)


def test_processes_give_the_same_map():
    source = [Candidate(ORDERING, np.random.default_rng(0).normal(-0.6, 0.2, (50, 1)))]
    with executor("processes", 2) as crew:
        found = phase_diagram(source, **GRID, workers=crew)
    xr.testing.assert_identical(found.dataset, phase_diagram(source, **GRID).dataset)


def test_a_draw_does_not_depend_on_its_company():
    box = ORDERING.lattice.supercell((12, 12))
    w = np.array([[-0.9], [-0.5], [0.4]])
    common = (ORDERING.compile(box), box)
    rest = (np.array([0.4, 1.0]), np.array([96, 48]), 1, 64.0, (7,))
    alone, together = cool(Sheet(*common, w[:1], *rest)), cool(Sheet(*common, w, *rest))
    # the first stage depends on the strongest draw, so compare where that is the same one
    assert np.array_equal(alone.values[:, 0], together.values[:, 0])
