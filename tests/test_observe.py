"""From pixels to a results folder: `observe`, images in a study, exported tables and what the report says of them."""

from __future__ import annotations

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import xarray as xr
from conftest import generator
from pictures import disc
from test_plots import importance_draws

from bayesatoms import cli, plots, results, study
from bayesatoms.configuration import Configuration
from bayesatoms.errors import InputError
from bayesatoms.files import Ledger
from bayesatoms.imaging.export import write_csv, write_extxyz, write_netcdf
from bayesatoms.imaging.matching import match_table
from bayesatoms.imaging.micrograph import Micrograph, analyse
from bayesatoms.imaging.read import read_image
from bayesatoms.imaging.render import render
from bayesatoms.imaging.strain import strain
from bayesatoms.inference import posterior
from bayesatoms.inference.sensitivity import Estimate, Row, Sensitivity
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation
from bayesatoms.reporting import images
from bayesatoms.tables import read_table

METAL = Lattice.triangular(0.316)
SPECIES = ("Mo", "Re")
OBSERVE = ["--lattice", "triangular", "--a", "0.316", "--species", "Mo,Re", "--bright", "Re"]
HEAD = '[study]\nname = "s"\nseed = 1\nmodels = "mos2_res2"\ninclude = ["R", "P1"]\n'
QUICK = "[infer]\npoints = 2\nsamples = 60\nburn = 30.0\nwarmup = 50\ndraws = 100\n[phases]\nrun = false\n"
ENDINGS = (".csv", ".nc", ".extxyz", ".json", "_overlay.png", "_report.png")


def picture(name: str, noise: float = 0.05):
    """A rendered alloy that fills the picture, some 170 sites."""
    rng = generator(name)
    sites = disc(METAL, 12 * 0.316)
    alloy = Configuration.from_sites(METAL, SPECIES, sites, (rng.random(len(sites)) < 0.4).astype(int))
    options = {"intensity": {"Mo": 0.45, "Re": 1.0}, "spacing": 12.0, "background": 0.3, "shape": (144, 150)}
    return render(alloy, noise=noise, rng=rng, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images, a table of other labels in pixels, and files that are none."""
    path = tmp_path_factory.mktemp("images")
    for name in ("one", "two"):
        tifffile.imwrite(path / f"{name}.tif", (1000 * picture(name).image.data).astype(np.float32))
    np.save(path / "movie.npy", np.stack([picture("one").image.data] * 2))
    np.save(path / "noise.npy", generator("noise").normal(size=(96, 96)))
    (path / "broken.tif").write_bytes((path / "one.tif").read_bytes()[:400])
    return path


@pytest.fixture(scope="module")
def micrograph(folder) -> Micrograph:
    return analyse(read_image(folder / "one.tif"), METAL, SPECIES, bright="Re")


def code_of(*arguments: str) -> int:
    try:
        cli.main(list(arguments))
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


# ---------------------------------------------------------------------- observe


def test_observe_writes_all_and_says_the_main_things(folder, micrograph, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert code_of("observe", str(folder / "one.tif"), str(folder / "two.tif"), *OBSERVE, "--out", str(out)) == 0
    assert {p.name for p in out.iterdir()} == {f"{name}{end}" for name in ("one", "two") for end in ENDINGS} | {"written.json"}
    said = capsys.readouterr().out
    o = micrograph.observation
    for text in (
        f"one: {int(micrograph.used.sum())} of {micrograph.n} sites used, {o.n} complete environments",
        f"Re {o.true_composition[1]:.4f} ± {o.composition_sd[1]:.4f}",
        f"{micrograph.pixel_size:.5g} nm by the lattice (not given)",
        *micrograph.warnings,
    ):
        assert text in said
    found = json.loads((out / "one.json").read_text())
    assert found["sites_used"] == micrograph.used.sum() and found["warnings"] == list(micrograph.warnings)
    assert found["source"]["sha256"] == micrograph.image.source["sha256"]
    assert found["contamination"] and found["homogeneity"] and found["goodness"] == pytest.approx(micrograph.registration.goodness)
    with (out / "one_overlay.png").open("rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_observe_takes_what_analyse_takes(folder, tmp_path):
    arguments = ["--contrast", "Mo=42,Re=75", "--roi", "0,0,150,400", "--mask", "0,0,30,30", "--pixel-size", "0.0226", "--hard", "--tails"]
    assert code_of("observe", str(folder / "one.tif"), *OBSERVE, *arguments, "--out", str(tmp_path)) == 0
    with (tmp_path / "one.csv").open() as file:
        x, y = np.array([[float(r["x"]), float(r["y"])] for r in csv.DictReader(file) if r["species"]]).T
    assert x.max() < 150 and not ((x < 29) & (y < 29)).any()
    assert json.loads((tmp_path / "one.json").read_text())["pixel_size_given_nm"] == 0.0226
    assert code_of("observe", str(folder / "movie.npy"), *OBSERVE, "--frame", "1", "--out", str(tmp_path)) == 0
    assert (tmp_path / "movie_1.csv").exists()


BAD = {
    "no file": (["none.tif"], [], r"image .*none.tif cannot be read"),
    "truncated": (["broken.tif"], [], r"broken.tif"),
    "no lattice": (["noise.npy"], [], r"noise: "),
    "one of two": (["one.tif", "noise.npy"], [], r"noise: "),
    "one name": (["one.tif", "one.tif"], [], r"two images are called 'one'"),
    "bright": (["one.tif"], ["--bright", "W"], r"bright='W'"),
    "lattice": (["one.tif"], ["--lattice", "oblique"], r"lattice name 'oblique' is unknown"),
    "pixel size": (["one.tif"], ["--pixel-size", "-1"], r"pixel_size=-1.0; expected a positive number"),
    "contrast": (["one.tif"], ["--contrast", "0.3"], r"--contrast is '0.3'; expected two ratios"),
    "contrast of words": (["one.tif"], ["--contrast", "Mo=forty"], r"--contrast is 'forty'; expected"),
    "roi": (["one.tif"], ["--roi", "1,2,3"], r"--roi has 3 numbers"),
    "roi outside": (["one.tif"], ["--roi", "5000,5000,6000,6000"], r"roi holds none of the image's"),
    "mask": (["one.tif"], ["--mask", "none.png"], r"none.png cannot be read"),
    "frame": (["one.tif"], ["--frame", "last"], r"--frame is 'last'; expected a whole number"),
    "one species": (["one.tif"], ["--species", "Re"], r"expected at least two different names"),
}


@pytest.mark.parametrize("case", BAD)
def test_observe_refuses_in_one_sentence_and_writes_nothing(case, folder, tmp_path, capsys):
    images, arguments, expected = BAD[case]
    out = tmp_path / "out"
    assert code_of("observe", *(str(folder / i) for i in images), *OBSERVE, *arguments, "--out", str(out)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("bayesatoms: ") and len(said.splitlines()) == 1 and re.search(expected, said), said
    assert not out.exists()


def test_an_out_that_is_a_file(folder, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert code_of("observe", str(folder / "one.tif"), *OBSERVE, "--out", str(tmp_path / "taken")) == 2
    assert "cannot be written to" in capsys.readouterr().err


# ---------------------------------------------------------------------- exports


def test_the_table_is_a_valid_input(micrograph, tmp_path):
    o = micrograph.observation
    for path in (write_csv(micrograph, tmp_path / "a.csv"), write_extxyz(micrograph, tmp_path / "a.extxyz")):
        again = Observation.from_table(path, METAL, SPECIES, probabilities="p_")
        assert np.allclose(again.counts, o.counts, atol=1e-6) and "labels_by_hand" not in again.source
        assert again.composition == pytest.approx(o.composition)
        hard = Observation.from_table(path, METAL, SPECIES)
        assert np.array_equal(hard.counts, micrograph.relabelled(micrograph.labels.labels).counts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.extxyz"]


def test_labels_corrected_in_place_are_not_lost(folder, tmp_path, capsys):
    """The same command again would overwrite the table that somebody worked on: refused, and nothing is touched."""
    command = ("observe", str(folder / "one.tif"), *OBSERVE, "--out", str(tmp_path))
    assert code_of(*command) == 0 and code_of(*command) == 0
    table = tmp_path / "one.csv"
    table.write_text(corrected := table.read_text() + " ")
    assert code_of(*command) == 2
    assert "changed" in capsys.readouterr().err and table.read_text() == corrected


def test_the_csv_has_every_site_with_its_digits(micrograph, tmp_path):
    table = read_table(write_csv(micrograph, tmp_path / "a.csv"))
    assert table.rows == micrograph.n
    left = [note for s, note in zip(table.columns["species"], table.columns["note"], strict=True) if not s]
    assert len(left) == (~micrograph.used).sum() and set(left) <= {"edge", "vacant", "misfit", "faint"}
    xy = np.array([table.columns["x"], table.columns["y"]], dtype=float).T
    assert np.allclose(xy, micrograph.columns.positions[: micrograph.n], atol=1e-4)
    assert table.columns["species_read"] == table.columns["species"]


def test_extxyz_is_in_angstrom_for_other_programs(micrograph, tmp_path):
    path = write_extxyz(micrograph, tmp_path / "a.extxyz")
    table = read_table(path)
    xy = np.column_stack([table.columns["x"], table.columns["y"]])
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 1e3 * np.eye(len(xy))
    assert np.median(apart.min(axis=1)) == pytest.approx(3.16, rel=0.02)
    assert np.allclose(table.columns["p_Mo"] + table.columns["p_Re"], 1)
    ase = pytest.importorskip("ase.io", reason="the crystal extra is not installed")
    atoms = ase.read(path, format="extxyz")
    assert len(atoms) == micrograph.used.sum() and np.allclose(atoms.positions[:, :2], xy, atol=1e-6)
    assert np.allclose(atoms.arrays["intensity"], table.columns["intensity"])


def test_netcdf_says_what_it_holds(micrograph, tmp_path):
    path = write_netcdf(micrograph, tmp_path / "a.nc")
    with xr.open_dataset(path) as d:
        assert all({"units", "long_name"} <= set(v.attrs) for v in d.data_vars.values())
        assert np.allclose(d["x"], micrograph.columns.positions[: micrograph.n, 0])
        p = d["probability"].sel(species_name="Re").values[micrograph.used]
        assert np.array_equal(p, micrograph.labels.probabilities[:, 1])
        assert np.array_equal(d["label_error"], micrograph.labels.label_error)
        assert json.loads(d.attrs["warnings"]) == list(micrograph.warnings)
        assert json.loads(d.attrs["settings"])["bright"] == "Re" and d.attrs["sha256"] == micrograph.image.source["sha256"]
        assert "numpy" in json.loads(d.attrs["versions"])


# ---------------------------------------------------------------------- labels by hand


def by_hand(path, edit) -> None:
    """Edit the rows of an exported table."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    edit(rows)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


@pytest.mark.parametrize("with_read", [True, False])
def test_a_label_by_hand_wins_over_its_probabilities(with_read, micrograph, tmp_path):
    path = write_csv(micrograph, tmp_path / "a.csv")
    changed = []

    def edit(rows):
        for r in [r for r in rows if r["species"]][20:23]:
            r["species"] = "Mo" if r["species"] == "Re" else "Re"
            changed.append((float(r["x"]), float(r["y"]), r["species"]))
        if not with_read:
            for r in rows:
                del r["species_read"]

    by_hand(path, edit)
    o = Observation.from_table(path, METAL, SPECIES, probabilities="p_")
    assert o.source["labels_by_hand"] == 3
    for x, y, species in changed:
        site = np.linalg.norm(o.positions - [x, y], axis=1).argmin()
        assert o.probabilities[site].tolist() == [float(s == species) for s in SPECIES]
    assert o.configuration.n_seen == micrograph.used.sum()
    assert np.abs(o.composition - micrograph.observation.composition).max() > 0


def test_a_site_that_was_left_out_can_be_labelled_by_hand(micrograph, tmp_path):
    path = write_csv(micrograph, tmp_path / "a.csv")
    left = [i for i in np.flatnonzero(~micrograph.used) if micrograph.notes[i] == "edge"][:2]
    assert left

    def edit(rows):
        for i in left:
            rows[i]["species"] = "Re"

    by_hand(path, edit)
    o = Observation.from_table(path, METAL, SPECIES, probabilities="p_")
    assert o.source["labels_by_hand"] == len(left)
    assert o.configuration.n_seen == micrograph.used.sum() + len(left)


def test_an_ambiguous_label_that_nobody_touched_keeps_its_probabilities(micrograph, tmp_path):
    """Where a picture has two readings, the exported label need not be the more probable one."""
    path = write_csv(micrograph, tmp_path / "a.csv")

    def edit(rows):
        r = next(r for r in rows if r["species"] == "Re")
        r["p_Mo"], r["p_Re"] = "0.6", "0.4"

    by_hand(path, edit)
    o = Observation.from_table(path, METAL, SPECIES, probabilities="p_")
    assert "labels_by_hand" not in o.source and (np.abs(o.probabilities[:, 0] - 0.6) < 1e-9).any()


# ---------------------------------------------------------------------- other labels by position


def other_labels(micrograph: Micrograph, path, shift: float = 0.0, scale: float = 1.0, rows: int | None = None) -> None:
    """A table of our sites with the first ten labels turned round; the first `rows` only."""
    places = scale * micrograph.columns.positions[: micrograph.n][micrograph.used] + shift
    labels = micrograph.labels.labels.copy()
    labels[:10] = 1 - labels[:10]
    lines = [f"{x},{y},{SPECIES[s]}" for (x, y), s in zip(places, labels, strict=True)]
    path.write_text("\n".join(["u,v,label", *lines[:rows], ",5,Mo", "5,5,", ""]))


NAMES = {"x": "u", "y": "v", "species": "label"}


def test_rows_are_matched_to_sites(micrograph, tmp_path):
    other_labels(micrograph, tmp_path / "t.csv", shift=2.0)
    o = match_table(micrograph, tmp_path / "t.csv", NAMES)
    assert o.source["labels_changed"] == 10 and o.source["sites_without_label"] == 0 and o.source["labels_rows"] == micrograph.used.sum()
    labels = micrograph.labels.labels.copy()
    labels[:10] = 1 - labels[:10]
    assert np.array_equal(o.counts, micrograph.relabelled(labels).counts) and o.probabilities is None


def test_sites_without_a_row_become_unseen(micrograph, tmp_path):
    other_labels(micrograph, tmp_path / "t.csv", rows=100)
    o = match_table(micrograph, tmp_path / "t.csv", NAMES)
    assert o.configuration.n_seen == len(o.positions) == 100
    assert o.source["sites_without_label"] == micrograph.used.sum() - 100


def test_tables_of_another_picture_are_refused(micrograph, tmp_path):
    other_labels(micrograph, tmp_path / "t.csv", scale=1.3)
    with pytest.raises(InputError, match="rows among the sites of one lie at one; expected most: positions must be in pixels"):
        match_table(micrograph, tmp_path / "t.csv", NAMES)
    with pytest.raises(InputError, match="column 'x' not found; the table has u, v, label"):
        match_table(micrograph, tmp_path / "t.csv")
    with pytest.raises(InputError, match="expected x, y, species"):
        match_table(micrograph, tmp_path / "t.csv", {"z": "u"})
    (tmp_path / "w.csv").write_text("x,y,species\n1,1,W\n")
    with pytest.raises(InputError, match="holds W; expected Mo, Re"):
        match_table(micrograph, tmp_path / "w.csv")
    (tmp_path / "n.csv").write_text("x,y,species\none,1,Mo\n")
    with pytest.raises(InputError, match="no number"):
        match_table(micrograph, tmp_path / "n.csv")


# ---------------------------------------------------------------------- studies


def written(folder, body: str):
    path = folder / "study.toml"
    path.write_text(HEAD + body + QUICK)
    return path


BAD_STUDY = {
    "bright missing": ('path = "one.tif"\n', r"image 1: key bright is missing; expected .*Mo, Re"),
    "path and table": ('path = "one.tif"\ntable = "t.csv"\nbright = "Re"\n', r"give one of path .*; found path and table"),
    "bright with counts": ('counts = [1, 2]\nbright = "Re"\n', r"key bright needs path, but the image is given by counts"),
    "label_error with path": ('path = "one.tif"\nbright = "Re"\nlabel_error = [[1.0]]\n', r"key label_error needs counts or table"),
    "columns with path": ('path = "one.tif"\nbright = "Re"\ncolumns = {x = "u"}\n', r"key columns needs table, but the image is given"),
    "sites with table": ('table = "t.csv"\nsites = 4\n', r"key sites needs counts"),
    "unknown key": ('path = "one.tif"\nbrigth = "Re"\n', r"key image.0.brigth is unknown; expected one of bright, contrast"),
    "pixel size": ('path = "one.tif"\nbright = "Re"\npixel_size_nm = -1.0\n', r"key image.0.pixel_size_nm: .*greater than 0"),
    "frame": ('path = "one.tif"\nbright = "Re"\nframe = "last"\n', r"key image.0.frame"),
    "contrast": ('path = "one.tif"\nbright = "Re"\ncontrast = [0.3]\n', r"contrast = \[0.3\]; expected \[low, high\]"),
    "other species": ('path = "one.tif"\nbright = "Re"\nspecies = ["Mo", "W"]\n', r"species Mo, W; the models have Mo, Re"),
    "bright of others": ('path = "one.tif"\nbright = "W"\n', r"image 1: one: bright='W'"),
    "no image": ('path = "none.tif"\nbright = "Re"\n', r"image 1: image .*none.tif cannot be read"),
    "roi": ('path = "one.tif"\nbright = "Re"\nroi = [[0, 0]]\n', r"roi: expected corners"),
    "relabel without table": (
        'path = "one.tif"\nbright = "Re"\nrelabel = {a = {species = "label"}}\n', r"relabel without table; expected the table",
    ),
    "relabel of two": (
        'path = ["one.tif", "two.tif"]\nbright = "Re"\nrelabel = {a = {table = "t.csv"}}\n', r"relabel for 2 images at once; expected one",
    ),
    "same names": ('path = "one.tif"\nbright = "Re"\n[[image]]\npath = "one.tif"\nbright = "Re"\n', r"two observations are called 'one'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_STUDY)
def test_studies_that_are_refused(case, folder, tmp_path, capsys):
    body, expected = BAD_STUDY[case]
    assert code_of("run", str(written(folder, f"[[image]]\n{body}")), "--out", str(tmp_path / "out"), "--quiet") == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and re.search(expected, said), said
    assert not (tmp_path / "out").exists()


def test_several_images_and_frames_are_observations_each(folder):
    body = (
        '[[image]]\npath = ["one.tif", "two.tif"]\nbright = "Re"\nname = "sample"\ntemperature_K = 900.0\n'
        '[[image]]\npath = "movie.npy"\nbright = "Re"\nframe = "mean"\nsoft = false\n'
    )
    s = study.read(written(folder, body))
    assert [o.name for o in s.observations] == ["sample_1", "sample_2", "movie"] == list(s.readings)
    assert [o.temperature for o in s.observations] == [900.0, 900.0, None]
    assert [o.probabilities is None for o in s.observations] == [False, False, True]


def test_run_takes_images_to_a_report(folder, micrograph, tmp_path, monkeypatch):
    """Pixels, another labelling by position and a table beside them; every file, and every number that the report repeats."""
    monkeypatch.setattr(posterior, "sample", importance_draws)
    other_labels(micrograph, folder / "others.csv")
    write_csv(micrograph, folder / "table.csv")
    body = (
        '[[image]]\npath = "one.tif"\nbright = "Re"\n'
        'relabel = {others = {table = "others.csv", x = "u", y = "v", species = "label"}}\n'
        '[[image]]\ntable = "table.csv"\nprobabilities = "p_"\n'
    )
    out = tmp_path / "out"
    for old in ("overlays/gone.png", "sites/mine.csv"):
        (out / old).parent.mkdir(parents=True, exist_ok=True)
        (out / old).write_text("of an earlier study")
    Ledger(out).close([out / "overlays/gone.png"])  # the other is not ours, and stays
    assert code_of("run", str(written(folder, body)), "--out", str(out), "--quiet", "--workers", "1") in (0, 1)
    names = {p.relative_to(out).as_posix() for folder in ("overlays", "sites") for p in (out / folder).iterdir()}
    assert names == {
        "overlays/one.png", "overlays/one_report.png", "sites/one.csv", "sites/one.nc", "sites/one.extxyz", "sites/table.csv",
        "sites/mine.csv",
    }  # fmt: skip
    found = json.loads((out / "summary.json").read_text())
    image = found["images"]["one"]
    assert image["sites"] == micrograph.n and image["sites_used"] == micrograph.used.sum()
    assert image["pixel_size_nm"] == pytest.approx(micrograph.pixel_size) and image["pixel_size_header_nm"] is None
    assert image["goodness"] == micrograph.registration.goodness and image["label_error"] == micrograph.labels.label_error.tolist()
    assert image["warnings"] == list(micrograph.warnings) and image["contamination"] and image["homogeneity"]
    assert "warnings" not in found["images"]["table"]
    moved = found["sensitivity"]["rows"]
    assert {(r["labelling"], r["coupling"]) for r in moved} == {("thresholds lowered", "w1"), ("thresholds raised", "w1")}
    assert found["inputs"]["one"]["sha256"] == micrograph.image.source["sha256"]
    page = (out / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert 'alt="Reading of one"' in page and "data:image/png;base64,iVBOR" in page and 'id="sensitivity"' in page
    for part in (
        *micrograph.warnings,
        micrograph.homogeneity.sentence,
        f"{int(micrograph.used.sum())} of {micrograph.n} sites used",
        f"{100 * micrograph.labels.label_error[0, 0]:.2f}",
        "label-sensitive",
        "thresholds lowered",
        "others",
    ):
        assert part in text
    assert found["sensitivity"]["sentences"][0].replace("-0", "−0").replace("'", "&#39;") in text


def test_thresholds_move_both_ways_and_lose_no_species(micrograph, monkeypatch):
    found = results._thresholds(SimpleNamespace(readings={"one": micrograph}))
    bright = {name: images[0].composition[1] for name, images in found.items()}
    assert bright["thresholds raised"] <= micrograph.observation.composition[1] <= bright["thresholds lowered"]
    monkeypatch.setattr(results, "_SHIFT", 1e6)
    assert results._thresholds(SimpleNamespace(readings={"one": micrograph})) == {}
    assert results._thresholds(SimpleNamespace(readings={})) == {}


def test_thresholds_that_the_chains_do_not_cover_are_said(micrograph):
    given = Estimate(-0.3, 0.1, -0.5, -0.1)
    row = Row("thresholds raised", "P1", "w1", None, float("nan"), "not covered", 0.0, "too few chains")
    found = images.sensitivity(Sensitivity({("P1", "w1"): given}, [row]))
    assert (found["any"], found["all"]) == (False, False) and found["rows"][0]["method"] == "not covered: too few chains"
    assert images.sensitivity(None) is None
    assert results._sensitivity(Sensitivity({("P1", "w1"): given}, [row]))["rows"][0]["mean"] is None


# ---------------------------------------------------------------------- strain and the real images


def test_strain_is_that_of_the_picture():
    """A square lattice whose columns are moved by a smooth field: its gradient is found, with signs as one looks at the image."""
    square = Lattice.square(0.39)
    alloy = Configuration.random(square, ("A", "B"), (16, 16), (0.5, 0.5), generator("strain"), periodic=False)
    m = analyse(
        render(alloy, intensity={"A": 0.6, "B": 1.0}, spacing=14.0, noise=0.01, rng=generator("strain")).image,
        square,
        ("A", "B"),
        bright="B",
    )
    flat = strain(m)
    assert np.nanquantile(np.abs([flat.e_xx, flat.e_yy, flat.e_xy]), 0.95) < 0.01 and np.nanmax(np.abs(flat.rotation)) < 1.5
    x, y = m.columns.positions[: m.n].T
    cx = x.mean()
    bent = np.column_stack([x + 1e-4 * (x - cx) ** 2, y - 0.5e-3 * (x - cx) ** 2])
    columns = m.columns.__class__(**{**vars(m.columns), "positions": np.vstack([bent, m.columns.positions[m.n :]])})
    found = strain(m.__class__(**{**{k: v for k, v in vars(m).items() if k != "table"}, "columns": columns}))
    known = np.isfinite(found.e_xx)
    assert known.sum() > 100
    # of u = (1e-4 x², +0.5e-3 x² upwards): e_xx = 2e-4 x, and a rotation by half of the slope, 1e-3 x / 2
    step = x[known] - x[known].mean()
    assert np.polyfit(step, found.e_xx[known], 1)[0] == pytest.approx(2e-4, rel=0.1)
    assert np.polyfit(step, found.rotation[known], 1)[0] == pytest.approx(np.degrees(0.5e-3), rel=0.1)
    assert np.polyfit(step, found.e_xy[known], 1)[0] == pytest.approx(0.5e-3, rel=0.1)


def test_the_authors_labels_are_matched_to_the_image(data):
    m = analyse(read_image(data / "mores2" / "re78.tif"), METAL, SPECIES, bright="Re")
    columns = {"x": "author_x_px", "y": "author_y_px", "species": "species_author"}
    o = match_table(m, data / "mores2" / "re78_sites.csv", columns)
    assert o.source["labels_matched"] >= 0.99 * o.source["labels_rows"] and 25 <= o.source["labels_changed"] <= 45
    assert o.configuration.composition[1] > m.observation.composition[1] + 0.04
    assert f"{m.used.sum()} of {m.n} sites used" in plots.overlay(m).axes[0].get_title(loc="left")
