"""The report: everything a reader needs stands in it, it needs nothing else, and it appears whole."""

import dataclasses
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpyro import distributions as dist
from test_plots import METAL, SPECIES, scene

from bayesatoms import plots, results
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Field, Hamiltonian, Pair
from bayesatoms.inference.identifiability import orientations, redundant_pairs
from bayesatoms.inference.posterior import Check
from bayesatoms.lattice import Lattice
from bayesatoms.phases import diagram as diagram_module
from bayesatoms.phases.candidates import Candidate
from bayesatoms.phases.diagram import phase_diagram
from bayesatoms.reporting import notes, references
from bayesatoms.reporting.report import write_report
from bayesatoms.study import PhasesSection


class Page(HTMLParser):
    """Text, links and checkable structure of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.words, self.links, self.open, self.hidden = source, [], [], [], 0
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[key] for key in ("src", "href", "srcset", "data", "action", "poster") if key in found]
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert tag != "script" or "src" not in found
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.hidden += tag in ("style", "script")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.words.append(" " * (tag in ("td", "th", "dt", "dd", "h3", "li", "p", "strong")))
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A full report, with another labelling (whose posterior lies elsewhere) and a failing check."""
    result, path = scene().result, tmp_path_factory.mktemp("report") / "report.html"
    fit = dataclasses.replace(result["P1"], checks={**result["P1"].checks, "support": Check(False, "least support 0.01 < needed & so on")})
    broken = dataclasses.replace(result, fits={**result.fits, "P1": fit})
    broken.sources["models"] = "0123abcd"
    moved = dataclasses.replace(result["M"].posterior, draws=result["M"].posterior.draws + 0.5)
    other = dataclasses.replace(
        result, fits={**result.fits, "M": dataclasses.replace(result["M"], posteriors={"calibrated": moved, "independent": moved})}
    )
    given = write_report(
        broken, scene().diagram, path, comparison=scene().comparison, relabelled={"careful <labels>": other}, title="An <alloy>"
    )
    assert given == path
    return SimpleNamespace(page=Page(path.read_text(encoding="utf8")), path=path, result=broken, other=other, comparison=scene().comparison)


@pytest.fixture
def undrawn(monkeypatch):
    """Empty figures in place of all that take time."""
    for name in ("posteriors", "weights", "corner", "s2_landscape", "site_map", "histogram", "environment_key"):
        monkeypatch.setattr(plots, name, lambda *_: Figure(figsize=(1, 1)))


# ---------------------------------------------------------------------- self-contained


def test_the_page_needs_nothing_else(written):
    assert written.page.links and not written.page.open
    anchors = [link for link in written.page.links if link.startswith("#")]
    assert all(f'id="{link[1:]}"' in written.page.source for link in anchors)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in written.page.links if link not in anchors)
    style = re.search(r"<style>(.*?)</style>", written.page.source, re.S).group(1)
    assert "url(" not in style and "@import" not in style
    assert "http" not in re.sub(r"data:image[^\"]*|<script.*?</script>", "", written.page.source, flags=re.S)


def test_what_users_name_cannot_become_markup(written):
    assert "An <alloy>" in written.page.text and "careful <labels>" in written.page.text
    assert "<alloy>" not in written.page.source


def test_every_picture_has_words(written):
    pictures = re.findall(r'<img src="[^"]*" alt="([^"]*)">', written.page.source)
    # densities, weights, 2 landscapes, corner, 2 images with histograms, key, labels; map, one column, transitions, models
    assert len(pictures) == len(set(pictures)) == 15
    assert all(pictures)


# ---------------------------------------------------------------------- what stands in it


def test_the_verdict_comes_first(written):
    text = written.page.text
    assert text.index(written.comparison.verdict) < text.index("1 check failed") < text.index("Effective values, in kT")


def test_a_failing_check_is_prominent_and_a_passing_page_says_so(written, tmp_path, undrawn):
    alarm = re.search(r'<div class="failed".*?</div>', written.page.source, re.S).group(0)
    assert "P1: support" in alarm and "least support 0.01 &lt; needed &amp; so on" in alarm
    assert written.page.text.count("FAILED") == 1
    fine = Page(write_report(scene().result, path=tmp_path / "fine.html", comparison=passing()).read_text(encoding="utf8"))
    failed = [name for name, check in scene().result.checks.items() if not check.ok]
    assert ("All" in fine.text and "checks passed" in fine.text) == (not failed)
    assert fine.text.count("FAILED") == len(failed)
    assert "Phase map" not in fine.text and "between labellings" not in fine.text


def passing():
    """The comparison with all its checks passed."""
    return dataclasses.replace(scene().comparison, checks={n: Check(True, c.why) for n, c in scene().comparison.checks.items()})


def test_every_number_of_the_couplings_stands_in_the_table(written):
    for fit in written.result.fits.values():
        p, other = fit.posterior, fit.posteriors["independent"]
        for i, name in enumerate(fit.model.names):
            cells = [
                fit.model.name,
                name,
                plots.signed(p.mean[i]),
                f"{p.sd[i]:.3f}",
                *(plots.signed(p.quantile(q)[i]) for q in (0.05, 0.95)),
            ]
            cells += [f"{fit.crb_sd[i]:.3f}", plots.signed(other.mean[i]), f"{other.sd[i]:.3f}"]
            assert row(cells) in written.page.source


def row(cells: list[str]) -> str:
    """Cells of a table row as the template writes them: the second is text."""
    tags = [f'<td class="text">{c}</td>' if i == 1 else f"<td>{c}</td>" for i, c in enumerate(cells)]
    return "".join(tags)


def test_every_number_of_the_comparison_stands_in_the_table(written):
    for r in written.comparison.rows.values():
        for value in (
            f"{r.least.total:.4f}",
            f"{r.bic_published:.1f}",
            f"{r.log_evidence[1.0]:.2f}",
            f"{r.waic.elpd:.1f} ± {r.waic.se:.1f}",
        ):
            assert value.replace("-", "−") in written.page.text
        assert f"{r.p_values[-1]:.3f}" in written.page.text or r.p_values[-1] < 0.001


def test_images_are_described(written):
    o = written.result.observations[0]
    assert f"{o.configuration.n_seen} sites seen within 16 × 16 cells" in written.page.text
    assert "counts only: a block of" in written.page.text
    assert f"Re {o.true_composition[1]:.3f} ± {o.composition_sd[1]:.3f}" in written.page.text
    assert "file image.csv; sha256 ab12" in written.page.text


def test_all_checks_settings_and_sources_are_listed(written):
    text = written.page.text
    for name, check in {**written.result.checks, **written.comparison.checks}.items():
        assert name in text and check.why in text
    for word in (
        "points 4",
        "samples 100",
        f"hash {written.result.statistic.hash}",
        "sha256 0123abcd",
        "numpyro",
        "numba",
        "jax",
        "python",
        "seed 1",
    ):
        assert word in text
    assert len(re.findall(r"<tr><td>\d</td>", written.page.source)) == len(written.result.history)


def test_what_the_images_cannot_tell_is_said(written):
    assert "M: t1, t2 act on one of 2 orientations" in written.page.text
    assert "P1 is M at special couplings" in written.page.text
    assert all(w in written.page.text for w in written.comparison.warnings)


def test_labellings_are_set_side_by_side(written):
    text = written.page.text
    assert "How the couplings move between labellings" in text
    for result in (written.result, written.other):
        for i, name in enumerate(("t1", "t2")):
            p = result["M"].posterior
            assert f"M · {name}\u2002{plots.signed(p.mean[i])} ± {p.sd[i]:.3f}".replace("\u2002", " ") in text


def test_the_phase_map_stands_in_words_with_its_intervals(written):
    text, b, d = written.page.text, scene().diagram.boundaries, scene().diagram.dataset
    real = b.highest.values[(b.highest > 0) & np.isfinite(b.highest)]
    low, middle, high = np.quantile(real, [0.05, 0.5, 0.95])
    share = f"{100 * len(real) / b.sizes['draw']:.0f} % of the draws"
    assert f"{middle:.3g} [{low:.3g}, {high:.3g}] of the formation temperature in {share}" in text
    assert "By R alone: none, for all draws, from 0.05 to 1 of the formation temperature." in text
    mean = np.mean([o.true_composition[1] for o in written.result.observations])
    assert f"At fraction of Re {d.composition.sel(composition=mean, method='nearest').item():.3g}: " in text
    for key, value in (("max p ordered", f"{d.p_ordered.max().item():.3g}"), ("draws", "8"), ("models", "R, P1")):
        assert re.search(rf"\b{key}\s*{re.escape(value)}", text)


def test_the_notes_of_a_map_without_transitions_are_told(tmp_path, undrawn):
    scene_ = scene()
    calm = phase_diagram([Candidate(scene_.result["R"].model, np.zeros((0, 0)))], composition={"Re": [0.4]}, seed=1, formation=900.0)
    text = Page(write_report(scene_.result, calm, tmp_path / "calm.html", comparison=scene_.comparison).read_text(encoding="utf8")).text
    assert "no transition in range: disordered for all draws from 0.02 to 2 of the formation temperature." in text
    assert "Transition temperatures" not in text and "Widom" in text and "Gibbs" not in text


def test_the_map_to_explore_comes_with_plotly_and_without_it_the_page_runs_no_scripts(written, tmp_path, undrawn, monkeypatch):
    pytest.importorskip("plotly")
    assert written.page.source.count('id="plotly-gz"') == 1 and 'id="phase-plot"' in written.page.source
    assert len(written.page.source) < 6e6
    monkeypatch.setitem(sys.modules, "plotly", None)
    plain = write_report(scene().result, scene().diagram, tmp_path / "plain.html", comparison=scene().comparison).read_text(encoding="utf8")
    assert (
        "<script" not in plain and "phase-plot" not in plain and 'alt="Phase map"' in plain and len(plain) < len(written.page.source) - 1e6
    )


def test_the_map_of_a_study_follows_its_section_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    counted, real = [], diagram_module.cool
    monkeypatch.setattr(diagram_module, "cool", lambda sheet: counted.append(1) or real(sheet))
    section = PhasesSection(chemical_potential=[-0.5, 0.0], temperature=[1.0, 2.0], size=6, model="P1", draws=4, formation_K=800)
    plan = SimpleNamespace(file=SimpleNamespace(phases=section, study=SimpleNamespace(seed=1)))
    given = {"workers": 1, "progress": None}
    maps = [
        results._diagram(plan, scene().result, scene().comparison, tmp_path / "phases", force=force, **given)
        for force in (False, False, True)
    ]
    assert len(counted) == 4  # two columns, none the second time, two again when forced
    assert all(m.dataset.identical(maps[0].dataset) for m in maps)
    assert maps[0].dataset.chemical_potential.values.tolist() == [-0.5, 0.0] and maps[0].models.model.values.tolist() == ["P1"]
    assert maps[0].dataset.kelvin.values.tolist() == [800.0, 1600.0] and maps[0].dataset.attrs["box"] == [6, 6]
    seen = float(np.mean([o.true_composition[1] for o in scene().result.observations]))
    section.chemical_potential, section.composition, section.model = None, [0.08, seen, 0.9], "average"
    beyond = results._diagram(plan, scene().result, scene().comparison, tmp_path / "phases", force=False, **given)
    assert beyond.dataset.extrapolated.values.tolist() == [True, False, True]
    assert set(beyond.models.model.values) <= set(scene().result.fits) and beyond.dataset.attrs["weights"] != [1.0]


def test_the_papers_are_named(written):
    text = written.page.text
    for word in ("10.1038/s41524-021-00507-7", "Shirts", "Besag", "Hoffman", "Vehtari", "Watanabe", "NumPyro", "ArviZ", "Cowley"):
        assert word in text
    identifiers = [r.identifier for r in references.REFERENCES]
    assert len(set(identifiers)) == len(identifiers)


def test_a_known_temperature_gives_energies(tmp_path, undrawn):
    result = scene().result
    hot = dataclasses.replace(result, observations=[dataclasses.replace(o, temperature=1000.0) for o in result.observations])
    text = Page(write_report(hot, path=tmp_path / "hot.html", comparison=scene().comparison).read_text(encoding="utf8")).text
    assert "in meV at the stated 1000 K" in text
    assert plots.signed(86.17333 * result["P1"].posterior.mean[0], 1) in text


# ---------------------------------------------------------------------- written whole or not at all


def test_a_report_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")
    monkeypatch.setattr(plots, "weights", lambda comparison: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(scene().result, path=path, comparison=scene().comparison)
    assert path.read_text() == "before"


def test_a_report_is_moved_into_place(written, monkeypatch):
    assert [p.name for p in written.path.parent.iterdir()] == ["report.html"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        write_report(scene().result, path=tmp_path / "absent" / "report.html", comparison=scene().comparison)


# ---------------------------------------------------------------------- notes


UP = METAL.triangle("up")


def model(*terms) -> Hamiltonian:
    return Hamiltonian("X", *terms, lattice=METAL, species=SPECIES)


@pytest.mark.parametrize(
    "term, blind",
    [
        (Cluster(("Mo", "Re", "Re"), UP, name="t"), True),
        (Cluster(("Mo", "Re", "Re"), UP, orbit="all", name="t"), False),
        (Pair("Mo", "Re", direction=1), True),
        (Pair("Mo", "Re"), False),
    ],
)
def test_orientations_that_the_classes_hide(term, blind):
    assert bool(orientations(model(term), scene().result.statistic.environments)) == blind


def test_orientations_are_told_apart_by_classes_that_keep_them():
    assert not orientations(model(Cluster(("Mo", "Re", "Re"), UP, name="t"), Pair("Mo", "Re", direction=1)), raw_environments())


def raw_environments():
    from bayesatoms.environments import Environments

    return Environments(METAL, SPECIES, symmetry="none")


def test_more_pairs_than_a_fixed_composition_can_tell():
    two = model(Pair("Mo", "Re"), Pair("Re", "Re", name="rr"))
    assert "2 pair couplings on shell 1" in redundant_pairs(two)[0]
    assert not redundant_pairs(model(Pair("Mo", "Re"), Pair("Mo", "Re", shell=2)))


def test_a_coupling_the_images_say_nothing_about_is_named():
    result = scene().result
    vague = dataclasses.replace(result["P1"].posterior, draws=np.random.default_rng(0).normal(0, 1, (4, 60, 1)))
    fit = dataclasses.replace(result["P1"], posteriors={"calibrated": vague, "independent": vague})
    found = notes.identifiability(dataclasses.replace(result, fits={"P1": fit}), dataclasses.replace(scene().comparison, checks={}))
    assert any("P1: w1 is as uncertain as before" in note for note in found)
    assert not any("uncertain" in note for note in notes.identifiability(result, scene().comparison))


def test_meanings_name_the_sites_and_the_sign():
    film = Lattice.cubic(0.39, film=True)
    assert "nearest neighbours (0.39 nm) within layer -1; above 0 they avoid" in notes.meaning(Pair("La", "O", layer=-1), film)
    assert notes.meaning(Field("Ca", layer=-1), film) == "energy of a Ca on a site within layer -1; above 0 it is driven out"
    assert "in all orientations" in notes.meaning(Cluster("AAB", UP, orbit="all"), METAL)
    assert notes.prior_text(dist.Uniform(-1.0, 2.0)) == "Uniform(-1, 2)"
