"""Figures of the phase map: what is drawn are the numbers of the map; predicted configurations; the map to explore."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re
import sys

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection, FillBetweenPolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text

from bayesatoms import plots
from bayesatoms.configuration import Configuration
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.phases.candidates import Candidate
from bayesatoms.phases.diagram import PhaseDiagram
from bayesatoms.phases.hysteresis import Loop
from bayesatoms.phases.mapping import Draws, boundaries_of, map_of, models_of, notes_of
from bayesatoms.phases.observables import warren_cowley
from bayesatoms.phases.sheet import ALPHA, COMPOSITION, DOUBT, HEAT, LONG, ORDER, POTENTIAL
from bayesatoms.phases.snapshots import snapshots
from bayesatoms.plots.boundaries import _pieces
from bayesatoms.plots.predicted import upright
from bayesatoms.plots.style import HATCH
from bayesatoms.reporting.interactive import phase_fragment

METAL = Lattice.triangular(0.316)
SPECIES = ("Mo", "Re")
ALLOY = {"lattice": METAL, "species": SPECIES}
P1 = Hamiltonian("P1", Pair(*SPECIES, name="w1"), **ALLOY)
X, T = np.array([0.2, 0.35, 0.5, 0.65, 0.8]), np.array([0.1, 0.2, 0.4, 0.8, 1.6])
# the temperature below which each draw has an ordered phase, at x = 0.35 to 0.65; the last one has none
CROSSINGS = np.array([0.15, 0.15, 0.3, 0.3, 0.6, 3.0, 0.6, 0.0])
OWNER = np.array([0, 0, 0, 0, 1, 1, 1, 1])


def made(name: str = "composition", across: np.ndarray = X) -> PhaseDiagram:
    """A map whose every number is known: model "sep" separates, "ord" orders, each draw below its own temperature."""
    shape, box = (len(CROSSINGS), len(T), len(across)), METAL.supercell((12, 12))
    below = (T[None, :, None] < CROSSINGS[:, None, None]) & (np.abs(np.arange(len(across)) - 2) < 2)[None, None]
    values = np.zeros((DOUBT + 1, *shape))
    values[ORDER] = np.where(below, 0.9, 0.02)
    values[LONG] = (OWNER == 0)[:, None, None]
    values[ALPHA] = np.where(below, 0.5, 0.01)
    values[HEAT] = np.linspace(0.1, 0.8, len(CROSSINGS))[:, None, None]
    canonical = name == "composition"
    x = across if canonical else np.full(len(across), 0.5)
    values[COMPOSITION] = x
    # regular solutions that part below 1 of the map's temperatures, for the first model alone
    mixing = T[:, None] * np.log(x / (1 - x)) + 2.2 * (1 - 2 * x)
    values[POTENTIAL] = np.where((OWNER == 0)[:, None, None], mixing, T[:, None] * np.log(x / (1 - x)))
    frozen, unsettled = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    frozen[:2, 0, :2], unsettled[:6, 2, 3] = True, True
    text = "fraction of Re" if canonical else "chemical potential of Re"
    draws = Draws(values, unsettled, frozen, OWNER, ("sep", "ord"), T, (name, across, text), box)
    d = map_of(draws).assign_attrs(notes=notes_of(draws), box=[12, 12], draws=8, chains=1, moves=1)
    d["extrapolated"] = (name, np.isin(np.arange(len(across)), [0, len(across) - 1]))
    parts = [d, models_of(draws, [0.6, 0.4]), boundaries_of(draws)]
    kelvin = ("temperature", T * 1000.0, {"units": "K"})
    return PhaseDiagram(*(p.assign_coords(kelvin=kelvin) if "temperature" in p.dims else p for p in parts))


def words(figure: Figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(Text))


def meshes(figure: Figure) -> list[np.ndarray]:
    """Values of all maps in a figure, without colour bars."""
    size = len(T) * len(X)
    return [m.get_array().reshape(len(T), len(X)) for ax in figure.axes for m in ax.findobj(QuadMesh) if m.get_array().size == size]


# ---------------------------------------------------------------------- the map


def test_phase_map_shows_the_numbers_and_what_is_not_to_be_relied_on():
    diagram = made()
    d, figure = diagram.dataset, plots.phase_map(diagram)
    wanted = [d.order_parameter.sel(quantile=0.5), d.warren_cowley.sel(quantile=0.5), d.p_ordered, d.p_separated]
    assert all(np.allclose(a, b) for a, b in zip(meshes(figure), wanted, strict=True))
    for ax in figure.axes[:4]:
        assert ax.get_xlabel() == "fraction of Re" and ax.get_yscale() == "log"
        assert sum(p.get_hatch() == HATCH for p in ax.patches) == 2  # cells frozen for 2 of 8 draws
        [dots] = [line for line in ax.lines if line.get_marker() == "."]
        assert np.array_equal(dots.get_xydata(), [[X[3], T[2]]])
        assert sum(p.get_hatch() is None for p in ax.patches) == 2  # first and last column lie beyond the images
    for text in ("temperature / formation temperature", "temperature, K", "not in equilibrium", "beyond the images' compositions"):
        assert text in words(figure)


def test_the_boundary_of_the_map_is_that_of_the_draws():
    diagram = made()
    figure = plots.phase_map(diagram)
    left, centre = figure.axes[:2]
    drawn = [line.get_ydata() for line in left.lines if len(line.get_xdata()) == len(X)]
    assert len(drawn) == 9  # eight draws and the median
    middle = diagram.boundaries.transition_band.sel(quantile=0.5).values
    assert drawn[-1][1:-1] == pytest.approx(middle[1:-1]) and middle[1] > 0
    assert np.isnan(drawn[7]).all()  # the draw without a transition has no line, not one along the edge
    top = left.get_ylim()[1]
    assert drawn[5][1] == drawn[5][3] == pytest.approx(top) and np.isnan(drawn[5][2])  # above the map: to its edge, not along it
    [band] = left.findobj(FillBetweenPolyCollection)
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(top)
    assert len([line for line in centre.lines if line.get_linestyle() == "--"]) == 2


def test_a_map_of_one_column_keeps_its_boundary():
    diagram = made()
    one, b = diagram.dataset.isel(composition=[2]), diagram.boundaries.isel(composition=[2])
    ax = plots.phase_map(dataclasses.replace(diagram, dataset=one, boundaries=b)).axes[0]
    rows = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert len(rows) == 9 and np.ptp(rows[0].get_xdata()) == pytest.approx(0.1)  # as wide as the cell
    assert rows[0].get_ydata() == pytest.approx(np.repeat(b.transition.values[0], 2))


def test_a_map_without_transitions_says_so():
    diagram = made()
    calm = diagram.dataset.assign_attrs(notes=["no transition in range: disordered for all draws"])
    none = diagram.boundaries.assign({n: diagram.boundaries[n] * 0 for n in ("transition", "transition_band", "highest")})
    none = none.fillna(0.0)
    figure = plots.phase_map(dataclasses.replace(diagram, dataset=calm, boundaries=none))
    assert "no transition in range" in words(figure) and "single draws" not in words(figure)


def test_a_map_over_chemical_potentials():
    figure = plots.phase_map(made("chemical_potential", np.linspace(-1, 1, 5)))
    assert figure.axes[0].get_xlabel() == "chemical potential of Re\n(kT at formation)"
    assert "chemical potential of Re 0: transition at" in words(
        plots.order_against_temperature(made("chemical_potential", np.linspace(-1, 1, 5)), 0.1)
    )


def test_models_are_set_beside_each_other_with_their_disagreement():
    diagram = made()
    figure = plots.model_disagreement(diagram)
    m = diagram.models
    wanted = [m[p].sel(model=n) for p in ("p_ordered", "p_separated") for n in ("sep", "ord")] + [diagram.dataset.disagreement]
    assert all(np.allclose(a, b) for a, b in zip(meshes(figure), wanted, strict=True))
    assert float(diagram.dataset.disagreement.max()) > 0.5 and "sep, weight 0.60" in words(figure)


# ---------------------------------------------------------------------- boundaries


def test_order_against_temperature_is_the_column_with_its_transitions():
    diagram = made()
    figure = plots.order_against_temperature(diagram, 0.47)
    column = diagram.dataset.sel(composition=0.5)
    for ax, name in zip(figure.axes, ("order_parameter", "warren_cowley", "heat_capacity"), strict=False):
        median = next(line for line in ax.lines if line.get_marker() == ".")
        assert np.allclose(median.get_ydata(), column[name].sel(quantile=0.5))
        [band] = ax.findobj(FillBetweenPolyCollection)
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(column[name].sel(quantile=0.95).max().item())
    met = diagram.boundaries.transition.sel(composition=0.5).values
    real = met[(met > 0) & np.isfinite(met)]
    ticks = next(line for line in figure.axes[0].lines if line.get_marker() == "|")
    assert np.array_equal(ticks.get_xdata(), real) and len(real) == 6
    assert f"fraction of Re 0.5: transition at {np.median(real):.3g}" in words(figure)
    assert "none in 12 %, above the map in 12 % of draws" in words(figure)
    with pytest.raises(InputError, match=r"composition 1\.5 given; expected a number between 0 and 1"):
        plots.order_against_temperature(diagram, 1.5)


def test_transition_temperatures_are_the_draws_of_each_model():
    diagram = made()
    figure = plots.transition_temperatures(diagram, {"sep": "#123456"})
    [ax] = [a for a in figure.axes if a.get_yticks().size]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["sep", "ord", "all, by weight"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [4, 2, 6] and dots[0].get_color() == "#123456"
    assert np.array_equal(dots[0].get_xdata(), diagram.boundaries.highest.values[:4])
    assert "none in 25 %, above the map in 25 % of draws" in words(figure)


def test_coexistence_shows_every_gap_and_how_many_have_one():
    diagram = made()
    gaps = diagram.boundaries.coexistence.values
    share = np.isfinite(gaps[..., 0]).mean(axis=0)
    assert 0 < share.max() < 1  # of one model, and not where it stands still
    figure = plots.coexistence(diagram)
    left, right = figure.axes[:2]
    assert [p.get_width() for p in right.patches] == pytest.approx(share.tolist())
    points = np.concatenate([line.get_xydata() for line in left.lines if line.get_alpha()])
    assert len(points) == np.isfinite(gaps).sum()
    with pytest.raises(InputError, match="coexistence needs five compositions"):
        plots.coexistence(made(across=X[:4]))


def test_a_gap_that_gives_way_to_another_is_no_line():
    gap = np.array([[0.1, 0.4], [0.12, 0.38], [0.6, 0.9], [np.nan, np.nan], [0.2, 0.8]])
    assert _pieces(gap) == [slice(0, 2), slice(2, 3), slice(4, 5)]


# ---------------------------------------------------------------------- predicted configurations


def test_snapshots_reach_the_ordered_ground_state_and_the_random_alloy():
    """Unlike neighbours at x = 1/3 on the triangular lattice: alpha = -1/2, no two rare atoms side by side; hot, alpha is 0 within 4 sd."""
    random = Hamiltonian("R", **ALLOY)
    cold, hot = snapshots([Candidate(P1, [[-1.0]])], [(1 / 3, 0.1), (1 / 3, 200.0)], seed=1, size=12)
    boxes = [METAL.supercell((12, 12))] * 2
    found = [warren_cowley(s.configuration.flat[None].astype(np.uint8), b)[0] for s, b in zip((cold, hot), boxes, strict=True)]
    assert found[0] == pytest.approx(-0.5) and abs(found[1]) < 4 / np.sqrt(3 * 144)
    assert cold.composition == pytest.approx(1 / 3) and cold.configuration.composition[1] == pytest.approx(1 / 3)
    some = snapshots([Candidate(P1, [[-1.0]], 0.75), Candidate(random, np.zeros((0, 0)), 0.25)], [(0.5, 1.0)], seed=2, draws=4, size=6)
    assert [s.model for s in some] == ["P1"] * 3 + ["R"]
    assert not np.array_equal(some[0].configuration.flat, some[1].configuration.flat)


def test_snapshots_follow_from_the_seed_and_their_place():
    draws = np.random.default_rng(0).normal(-0.5, 0.1, (20, 1))
    first, second = (snapshots([Candidate(P1, draws)], [(0.5, 1.0), (0.5, 2.0)], seed=s, size=6, sweeps=20) for s in (1, 1))
    assert all(np.array_equal(a.configuration.flat, b.configuration.flat) for a, b in zip(first, second, strict=True))
    assert np.array_equal(first[0].couplings, first[1].couplings)  # one draw at all points
    other = snapshots([Candidate(P1, draws)], [(0.5, 1.0)], seed=2, size=6, sweeps=20)
    assert not np.array_equal(first[0].configuration.flat, other[0].configuration.flat)


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"points": [(1.0, 1.0)]}, "point \\(1, 1\\) given; expected a composition between 0 and 1"),
        ({"points": [(0.5, 0.0)]}, "a temperature above 0"),
        ({"points": [(0.001, 1.0)]}, "leaves a species without atoms among 36 sites"),
        ({"draws": 0}, "draws 0 given; expected a number of at least 1"),
        ({"size": 2}, "size 2 given"),
        ({"source": [Candidate(P1, [[0.1]], 0.0)]}, "1 candidates without weight"),
        ({"source": [Candidate(Hamiltonian("3", lattice=METAL, species=("A", "B", "C")), [])]}, "expect two species"),
    ],
)
def test_snapshots_that_cannot_be_made(keywords, match):
    given = {"source": [Candidate(P1, [[0.1]])], "points": [(0.5, 1.0)], "seed": 1, "size": 6, **keywords}
    with pytest.raises(InputError, match=match):
        snapshots(given.pop("source"), given.pop("points"), **given)


def test_a_picture_of_snapshots_shows_every_atom_once_and_the_image_below():
    found = snapshots([Candidate(P1, [[-1.0]])], [(0.25, 0.5), (0.5, 0.5)], seed=1, size=8, sweeps=20)
    figure = plots.snapshots(found)
    for ax, snapshot in zip(figure.axes[:2], found, strict=True):
        [discs] = ax.findobj(EllipseCollection)
        colours = discs.get_facecolor()
        assert len(discs.get_offsets()) == len(np.unique(discs.get_offsets().round(6), axis=0)) == 64
        assert (colours == colours[0]).all(axis=1).sum() in (64 * snapshot.composition, 64 * (1 - snapshot.composition))
    for ax in figure.axes[2:]:
        assert min(ax.images[0].get_array().shape) > 8 * 12 * 0.8
    assert "x(Re) = 0.25, T = 0.5" in words(figure)
    with pytest.raises(InputError, match="0 snapshots given; expected 1 to 8"):
        plots.snapshots([])
    cube = Configuration.from_labels(Lattice.cubic(), SPECIES, np.zeros((4, 4, 4), dtype=int), periodic=True)
    with pytest.raises(InputError, match="3 dimensions given; expected planes"):
        plots.snapshots([dataclasses.replace(found[0], configuration=cube)])


def test_an_upright_window_keeps_bonds_inside():
    rng = np.random.default_rng(3)
    crystal = Configuration.random(METAL, SPECIES, (9, 8), [0.5, 0.5], rng)
    window = upright(crystal)
    seen = window.flat >= 0
    places = METAL.positions(window.supercell.sites[seen])
    assert seen.sum() == 72 and window.composition == pytest.approx(crystal.composition)
    assert np.ptp(places[:, 0]) < 9 * 0.316 and np.ptp(places[:, 1]) == pytest.approx(7 * 0.316 * np.sqrt(3) / 2)


# ---------------------------------------------------------------------- the map to explore


def parts(fragment: str) -> dict[str, str]:
    return dict(re.findall(r'<script[^>]*id="([^"]*)">(.*?)</script>', fragment, re.S))


def test_the_map_to_explore_holds_its_numbers_and_its_library():
    offline = pytest.importorskip("plotly.offline")
    diagram = made()
    fragment = phase_fragment(diagram)
    found = json.loads(parts(fragment)["phase-data"])
    heat, d = found["data"][0], diagram.dataset
    assert np.allclose(heat["z"], d.order_parameter.sel(quantile=0.5))
    assert len(heat["x"]) == len(X) + 1 and np.log(heat["y"][1]) == pytest.approx(np.log(T[:2]).mean())
    said = heat["text"][2][3]
    low, middle, high = d.heat_capacity.values[:, 2, 3]
    for text in (
        "fraction of Re 0.65, temperature 0.4 (400 K)",
        f"heat capacity, k a site: {middle:.3g} [{low:.3g}, {high:.3g}]",
        f"P(separated): {d.p_separated.values[2, 3]:.2f}",
        f"P(ordered): {d.p_ordered.values[2, 3]:.2f}",
        "not in equilibrium: 75 % of the draws",
    ):
        assert text in said
    assert "beyond the compositions" in heat["text"][2][0] and "beyond the compositions" not in said
    buttons = {b["label"]: b["args"][0] for b in found["layout"]["updatemenus"][0]["buttons"]}
    assert np.allclose(buttons["P(separated)"]["z"][0], d.p_separated)
    # colours by name are known to Python alone
    assert all(isinstance(b["colorscale"][0], list) for b in buttons.values())
    median = next(t for t in found["data"] if t["name"] == "transition, median")
    assert median["y"][1:4] == pytest.approx(diagram.boundaries.transition_band.sel(quantile=0.5).values[1:4], rel=1e-4)
    library = gzip.decompress(base64.b64decode(parts(fragment)["plotly-gz"])).decode()
    assert library == offline.get_plotlyjs() and len(fragment) < 2.5e6
    assert "src=" not in fragment.replace(parts(fragment)["plotly-gz"], "")


def test_names_in_the_map_to_explore_cannot_become_markup():
    pytest.importorskip("plotly")
    diagram = made()
    d = diagram.dataset.copy()
    d["composition"] = d["composition"].assign_attrs(long_name="fraction of </script><b>X</b>")
    found = parts(phase_fragment(dataclasses.replace(diagram, dataset=d)))["phase-data"]
    assert "<" not in found and "&lt;/script&gt;" in json.loads(found)["data"][0]["text"][0][0]


def test_unknown_potentials_are_blank_not_numbers():
    pytest.importorskip("plotly")
    diagram = made()
    d = diagram.dataset.copy(deep=True)
    d["chemical_potential"][:, 0, 0] = np.nan
    found = json.loads(parts(phase_fragment(dataclasses.replace(diagram, dataset=d)))["phase-data"])
    assert "chemical potential, kT at formation: not known for all draws" in found["data"][0]["text"][0][0]
    buttons = {b["label"]: b["args"][0] for b in found["layout"]["updatemenus"][0]["buttons"]}
    potential = buttons["chemical potential, kT at formation"]
    assert potential["z"][0][0][0] is None and np.isfinite(potential["zmax"])


def test_without_plotly_there_is_no_map_to_explore(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert phase_fragment(made()) is None


def test_loops_draw_both_ways_and_where_the_phases_coexist():
    mu, up = np.linspace(-1, 1, 5), np.array([[0.0, 0.1, 0.1, 0.9, 1.0], [0.0, 0.0, 0.1, 0.9, 1.0]])
    loop = Loop(mu, up, 1 - up[:, ::-1], np.array([[0.0, 0.1, 0.9], [0.2, 0.1, 0.9]]))
    ax = plots.loops(loop).axes[0]
    rising, falling = (line.get_ydata() for line in ax.lines[:2])
    assert rising == pytest.approx(np.median(up, axis=0))
    assert falling == pytest.approx(np.median(1 - up[:, ::-1], axis=0))
    assert ax.lines[2].get_xdata()[0] == pytest.approx(0.1)
    assert len(ax.lines[3].get_xdata()) == 4
    none = plots.loops(dataclasses.replace(loop, coexistence=np.full((2, 3), np.nan)))
    assert any("no loop" in t.get_text() for t in none.findobj(Text))
