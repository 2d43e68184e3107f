"""Figures: what is drawn are the numbers of the result, nothing global is touched, and files appear whole."""

import dataclasses
import itertools
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import matplotlib as mpl
import numpy as np
import pytest
from conftest import generator
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure
from numpyro import distributions as dist
from pictures import disc

from bayesatoms import plots
from bayesatoms.configuration import Configuration
from bayesatoms.environments import Environments
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Hamiltonian, Pair
from bayesatoms.imaging.micrograph import Micrograph, analyse
from bayesatoms.imaging.render import render
from bayesatoms.imaging.strain import strain
from bayesatoms.inference import posterior
from bayesatoms.inference.campaign import Settings
from bayesatoms.inference.comparison import compare
from bayesatoms.inference.criteria import image_s2
from bayesatoms.inference.densities import explore, log_likelihoods
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation
from bayesatoms.phases.candidates import Candidate
from bayesatoms.phases.diagram import phase_diagram
from bayesatoms.plots import fits
from bayesatoms.plots.style import HATCH, species_colours

METAL = Lattice.triangular(0.316)
SPECIES = ("Mo", "Re")


def models() -> list[Hamiltonian]:
    """The random alloy, unlike pairs, and mixed triangles of one orientation (in which the pairs are nested)."""
    alloy, up, prior = {"lattice": METAL, "species": SPECIES}, METAL.triangle("up"), dist.Normal(0, 1)
    triangles = [Cluster(s, up, name=n, prior=prior) for s, n in ((("Mo", "Mo", "Re"), "t1"), (("Mo", "Re", "Re"), "t2"))]
    return [Hamiltonian("R", **alloy), Hamiltonian("P1", Pair(*SPECIES, prior=prior), **alloy), Hamiltonian("M", *triangles, **alloy)]


def random_image(name: str, side: int) -> Observation:
    """A random alloy with one site unseen."""
    labels = (generator(name).random((side, side)) < 0.4).astype(int)
    labels[side // 2, side // 2] = -1
    return Observation.from_labels(labels, METAL, SPECIES, name=name, source={"file": f"{name}.csv", "sha256": "ab12"})


def importance_draws(observations, smooth, kind, seed, settings) -> posterior.Posterior:
    """Stands in for NUTS: equally weighted draws of the same posterior, with nothing to compile."""
    shape = (settings.parallel, settings.draws)
    draws = explore(smooth, observations, kind, np.random.default_rng(seed), n=shape[0] * shape[1]).reshape(*shape, -1)
    likelihoods = log_likelihoods(smooth, observations, kind, draws.reshape(-1, draws.shape[-1])).reshape(*shape, -1)
    k, stats = len(smooth.model.names), {"diverging": np.zeros(shape, bool)}
    return posterior.Posterior(kind, smooth.model.names, draws, likelihoods, np.ones(k), np.full(k, 1e3), stats)


@cache
def scene() -> SimpleNamespace:
    """A result with an image and a set of bare counts, its comparison, and a phase map of its models."""
    counts = Observation.from_counts(random_image("hidden", 15).counts, Environments(METAL, SPECIES), name="counts")
    images = [random_image("image", 16), counts]
    with mock.patch.object(posterior, "sample", importance_draws):
        result = posterior.infer(models(), images, seed=1, settings=Settings(points=4, samples=100, draws=60))
    candidates = [Candidate(result[n].model, result[n].draws, w) for n, w in (("R", 0.3), ("P1", 0.7))]
    grid = {"composition": {"Re": [0.3, 0.5, 0.7]}, "temperature": [0.05, 0.3, 1.0]}
    diagram = phase_diagram(candidates, **grid, draws=8, seed=1, size=6, sweeps=60)
    return SimpleNamespace(result=result, comparison=compare(result), diagram=diagram)


@pytest.fixture(scope="module")
def result():
    return scene().result


@pytest.fixture(scope="module")
def comparison():
    return scene().comparison


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc) for ax in figure.axes for loc in ("left", "center") if ax.get_title(loc)]


def words(figure: Figure) -> str:
    """All text of a figure."""
    return " ".join(t.get_text() for t in figure.findobj(mpl.text.Text))


# ---------------------------------------------------------------------- images


def discs(figure: Figure) -> dict[tuple, np.ndarray]:
    """Positions of discs by whether they are filled, and how opaque."""
    found = {}
    for c in figure.axes[0].findobj(EllipseCollection):
        found[len(c.get_facecolor()) > 0, c.get_alpha()] = np.asarray(c.get_offsets())
    return found


def test_site_map_shows_every_site_once(result):
    o = result.observations[0]
    found = discs(plots.site_map(o))
    counted, pale, hidden = found[True, None], found[True, 0.35], found[False, None]
    assert len(counted) == o.n
    assert len(counted) + len(pale) == o.configuration.n_seen
    assert len(hidden) == 1
    # the hole is where the unseen site is, six sites around it at the lattice constant
    gap = np.linalg.norm(np.vstack([counted, pale]) - hidden[0], axis=1)
    assert np.sort(gap)[:6] == pytest.approx(0.316)


def test_site_map_uses_measured_positions_and_keeps_the_scale(result):
    o = result.observations[0]
    ideal = METAL.positions(o.configuration.supercell.sites[o.configuration.flat != -1])
    turned = 64.0 * ideal @ np.array([[0.8, 0.6], [-0.6, 0.8]]) + 5.0  # pixels
    found = discs(plots.site_map(dataclasses.replace(o, positions=turned)))
    places = np.vstack([found[True, None], found[True, 0.35]])
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(len(places))
    assert apart.min(axis=0) == pytest.approx(0.316)
    assert places[:, 1].max() < 0  # images count y downwards


def test_scale_bar_is_round_and_as_long_as_it_says(result):
    figure = plots.site_map(result.observations[0])
    bar = figure.axes[0].lines[0].get_xdata()
    assert f"{bar[1] - bar[0]:g} nm" in words(figure)
    assert bar[1] - bar[0] in (0.5, 1.0, 2.0)


def test_counts_alone_show_the_most_frequent_classes(result):
    o = result.observations[1]
    texts = titles(plots.site_map(o))
    most = np.sort(o.counts)[::-1][: len(texts)]
    assert [int(t.split()[0]) for t in texts] == most.tolist()


def test_counts_of_a_crystal_in_space_are_drawn_as_bars():
    environments = Environments(Lattice.cubic(), ("A", "B"))
    o = Observation.from_counts(np.r_[30, np.zeros(environments.n_classes - 2, int), 10], environments, name="bulk")
    ax = plots.site_map(o).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == [environments.names[0], environments.names[-1]]
    assert ax.lines[0].get_xdata().tolist() == [30, 10]


def test_environment_key_has_a_picture_of_every_class():
    environments = Environments(METAL, SPECIES)
    figure = plots.environment_key(environments)
    assert len(figure.axes) == environments.n_classes == 26
    assert all(name in words(figure) for name in environments.names)
    bonds = figure.axes[0].findobj(LineCollection)[0]
    assert len(bonds.get_segments()) == 12  # six to the centre, six around the ring


def test_environment_key_refuses_what_cannot_be_looked_at():
    with pytest.raises(InputError, match="two-dimensional"):
        plots.environment_key(Environments(Lattice.cubic(), ("A", "B")))


# ---------------------------------------------------------------------- fits


def outside(band, counts) -> float:
    return float(np.mean((counts < band.low) | (counts > band.high)))


def test_predicted_bands_hold_the_truth_and_nothing_else(result):
    """The images are random alloys: their counts lie in the bands of every candidate; those of a separated alloy do not."""
    apart = Observation.from_labels((np.indices((16, 16))[0] < 10).astype(int), METAL, SPECIES, name="apart")
    for o, fit in itertools.product(result.observations, result.fits.values()):
        band = plots.predicted_counts(result, fit.model, o)
        assert band.mean.sum() == pytest.approx(o.n)
        assert (band.low <= band.high).all()
        assert outside(band, o.counts) <= 0.25
        assert outside(band, apart.counts) > 0.45


def test_predicted_bands_of_the_random_alloy_have_its_exact_mean(result):
    o = result.observations[1]
    band = plots.predicted_counts(result, result["R"].model, o)
    exact = o.n * o.environments.random_distribution(o.composition)
    assert np.abs(band.mean - exact).max() < 0.02 * o.n


def test_histogram_draws_the_counts(result, comparison):
    o = result.observations[1]
    figure = plots.histogram(result, o, comparison)
    drawn = next(line for line in figure.axes[0].lines if line.get_marker() == "o").get_ydata()
    assert drawn.sum() == o.n
    assert drawn[drawn > 0].tolist() == o.counts[o.counts > 0].tolist()
    assert all(f"{n}: S² {r.least.s2[1]:.4f}, p {r.p_values[1]:.3f}" in words(figure) for n, r in comparison.rows.items())
    assert len(figure.axes[0].child_axes) == len(drawn)  # a picture under each class


# ---------------------------------------------------------------------- the statistical distance


def test_landscape_is_the_statistical_distance(result, comparison):
    model, least = result["P1"].model, comparison.rows["P1"].least
    ax = plots.s2_landscape(result, model, least).axes[0]
    x, y = ax.lines[0].get_data()
    n = np.array([o.n for o in result.observations])
    for i in (0, 20, 60):
        assert y[i] == pytest.approx(image_s2(result, model, np.array([x[i]])) @ n / n.sum())
    assert x[np.argmin(y)] == pytest.approx(least.couplings[0], abs=2 * (x[1] - x[0]))
    assert np.nanmin(y) >= least.total - 1e-9


def test_landscape_hatches_where_the_pool_has_no_support(result, comparison, monkeypatch):
    least = {name: comparison.rows[name].least for name in ("P1", "M")}
    assert not hatched(plots.s2_landscape(result, result["P1"].model, least["P1"]))
    monkeypatch.setattr(fits, "_span", lambda *a: np.linspace(-4, 4, 17))
    for name in ("P1", "M"):
        figure = plots.s2_landscape(result, result[name].model, least[name])
        assert hatched(figure)
        assert "no support" in words(figure)


def hatched(figure: Figure) -> bool:
    patches = [c for c in figure.axes[0].collections if c.get_hatch() == HATCH]
    return any(len(p.vertices) for c in patches for p in c.get_paths())


def test_landscape_refuses_unknown_couplings(result):
    with pytest.raises(InputError, match="w9"):
        plots.s2_landscape(result, result["P1"].model, couplings=["w9"])
    with pytest.raises(InputError, match="one or two"):
        plots.s2_landscape(result, result["R"].model)


def test_weights_are_those_of_the_comparison(comparison):
    text = words(plots.weights(comparison))
    for row in comparison.rows.values():
        assert "  ".join(f"{row.weight[s]:.3f}" for s in (0.5, 1.0, 2.0)) in text


# ---------------------------------------------------------------------- couplings


def test_posteriors_show_every_coupling_with_its_numbers(result):
    figure = plots.posteriors(result)
    assert len(figure.axes) == 3
    for title, (fit, i) in zip(titles(figure), [(result["P1"], 0), (result["M"], 0), (result["M"], 1)], strict=True):
        assert title.startswith(f"{fit.model.name} · {fit.model.names[i]}")
        assert plots.signed(fit.posterior.mean[i]) in title
    for ax, fit in zip(figure.axes, (result["P1"], result["M"]), strict=False):
        low, high = ax.get_xlim()
        assert low < 0 < high
        bar = next(line for line in ax.lines if line.get_linewidth() == 2.4).get_xdata()
        assert bar[1] - bar[0] == pytest.approx(2 * fit.crb_sd[0])


def test_densities_are_densities(result):
    ax = plots.posteriors(result).axes[0]
    for line in (line for line in ax.lines if line.get_linestyle() in ("-", "--") and len(line.get_xdata()) == 300):
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(1, abs=0.03)


def test_corner_has_a_panel_a_pair_and_refuses_one_coupling(result):
    figure = plots.corner(result, result["M"].model)
    rho = np.corrcoef(result["M"].draws.T)[0, 1]
    assert f"ρ(t1, t2) = {plots.signed(rho, 2)}" in words(figure)
    assert sum(ax.axison for ax in figure.axes) == 3
    with pytest.raises(InputError, match="posteriors"):
        plots.corner(result, result["P1"].model)


def test_label_shift_compares_what_is_shared(result):
    moved = dataclasses.replace(result, fits={n: result[n] for n in ("R", "P1")})
    ax = plots.label_shift({"first": result, "second": moved}).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["P1 · w1"]
    means = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert means == pytest.approx([result["P1"].posterior.mean[0]] * 2)
    with pytest.raises(InputError, match="share no model"):
        plots.label_shift({"first": result, "random": dataclasses.replace(result, fits={"R": result["R"]})})
    with pytest.raises(InputError, match="none"):
        plots.label_shift({})


# ---------------------------------------------------------------------- images of pixels


@cache
def micrograph() -> Micrograph:
    """A rendered image with a vacant and an uncertain site, and a stray spot."""
    rng, sites = generator("drawn"), disc(METAL, 12 * 0.316)
    alloy = Configuration.from_sites(METAL, SPECIES, sites, (rng.random(len(sites)) < 0.4).astype(int))
    drawn = render(alloy, intensity={"Mo": 0.45, "Re": 1.0}, spacing=12.0, background=0.3, shape=(150, 160), noise=0.05, rng=rng)
    found = analyse(drawn.image, METAL, SPECIES, bright="Re")
    p = found.labels.probabilities.copy()
    p[7] = (0.4, 0.6) if found.labels.labels[7] else (0.6, 0.4)
    notes, used = found.notes.copy(), found.used.copy()
    notes[np.flatnonzero(~used)[0]] = "vacant"
    registration = dataclasses.replace(found.registration, strays=np.array([[70.0, 75.0]]))
    labels = dataclasses.replace(found.labels, probabilities=p)
    return dataclasses.replace(found, labels=labels, notes=notes, registration=registration)


def test_overlay_marks_every_site_once():
    m = micrograph()
    ax = plots.overlay(m).axes[0]
    circles, doubted = ax.findobj(EllipseCollection)
    assert np.array_equal(circles.get_offsets(), m.columns.positions[: m.n][m.used])
    colours = np.array([mpl.colors.to_rgba(c) for c in species_colours(2)])
    assert np.array_equal(circles.get_edgecolor(), colours[m.labels.labels])
    assert len(doubted.get_offsets()) == (m.labels.uncertain > 0.05).sum() >= 1
    marked = sum(len(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "None")
    assert marked == (m.notes != "").sum() + 1  # the stray
    legend = {t.get_text() for t in ax.figure.legends[0].get_texts()}
    assert {f"Mo ({(m.labels.labels == 0).sum()})", "no atom, left out (1)", "spots that are no column (1)"} <= legend
    o = m.observation
    assert f"x(Re) = {o.true_composition[1]:.3f} ± {o.composition_sd[1]:.3f}" in words(ax.figure) and f"N = {o.n}" in words(ax.figure)


def test_the_scale_bar_of_an_overlay_is_round_and_as_long_as_it_says():
    m = micrograph()
    figure = plots.overlay(m)
    bar = next(line for line in figure.axes[0].lines if line.get_linestyle() == "-").get_xdata()
    length = (bar[1] - bar[0]) * m.pixel_size
    assert f"{length:g} nm" in words(figure) and round(length, 9) in (0.5, 1.0, 2.0)


def test_intensities_show_the_sites_and_their_mixture():
    m = micrograph()
    ax = plots.intensities(m).axes[0]
    assert sum(p.get_height() for p in ax.patches) == m.used.sum()
    curves = {line.get_label(): line for line in ax.lines}
    width = ax.patches[0].get_width()
    x, y = curves["mixture"].get_data()
    assert np.trapezoid(y, x) / width == pytest.approx(m.used.sum(), rel=0.05)
    assert np.allclose(y, curves["Mo"].get_ydata() + curves["Re"].get_ydata())
    assert curves["threshold"].get_xdata()[0] == m.labels.threshold[0]


def test_maps_colour_what_is_known():
    m = micrograph()
    hollow, discs = plots.certainty(m).axes[0].findobj(EllipseCollection)
    assert len(hollow.get_offsets()) == (~m.used).sum() and len(discs.get_offsets()) == m.used.sum()
    assert discs.get_array().max() == pytest.approx(max(m.labels.uncertain.max(), 1e-3))
    shown = plots.background(m).axes[0].images[0].get_array()
    assert np.array_equal(shown, m.columns.ground)
    figure = plots.strain(m)
    assert titles(figure)[1:] == ["e_xx", "e_yy", "e_xy", "rotation", "larger principal strain and its axis"]
    found = strain(m)
    for ax, values in zip(figure.axes[1:5], (100 * found.e_xx, 100 * found.e_yy, 100 * found.e_xy, found.rotation), strict=True):
        assert np.array_equal(ax.findobj(EllipseCollection)[1].get_array(), values[np.isfinite(values)])


def test_reading_has_six_panels():
    figure = plots.reading(micrograph())
    assert len([ax for ax in figure.axes if ax.get_label() != "<colorbar>"]) == 6
    assert len(plots.to_png(figure, dpi=50)) > 10_000


# ---------------------------------------------------------------------- style and files


def test_nothing_global_is_touched(result, comparison):
    before = dict(mpl.rcParams)
    plots.weights(comparison)
    assert dict(mpl.rcParams) == before
    for path in Path(plots.__file__).parent.glob("*.py"):
        assert "import pyplot" not in path.read_text() and "matplotlib.pyplot" not in path.read_text()


def test_model_colours_are_told_apart_and_the_random_alloy_is_grey():
    colours = plots.model_colours(models())
    assert len(set(colours.values())) == 3
    assert len(set(mpl.colors.to_rgb(colours["R"]))) == 1


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_files_are_the_same_every_time(tmp_path, comparison, suffix, start):
    found = [plots.save(plots.weights(comparison), tmp_path / f"{i}.{suffix}").read_bytes() for i in (0, 1)]
    assert found[0] == found[1]
    assert found[0].startswith(start)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("before")
    broken = Figure()
    broken.savefig = mock.Mock(side_effect=RuntimeError("no"))
    with pytest.raises(RuntimeError):
        plots.save(broken, path)
    assert path.read_text() == "before"
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        plots.save(Figure(), tmp_path / "figure.doc")
    plots.save(Figure(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
