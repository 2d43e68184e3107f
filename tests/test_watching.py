"""A watched folder: files taken when they are whole, once each, bad ones set aside; what is written; how it goes on and how it ends."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
import tifffile
from conftest import generator
from pictures import disc
from PIL import Image

from bayesatoms import cli, study
from bayesatoms.configuration import Configuration
from bayesatoms.errors import InputError
from bayesatoms.imaging.render import render
from bayesatoms.inference.stopping import StopRule
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation
from bayesatoms.plots.sequential import live
from bayesatoms.results import sites_table
from bayesatoms.watching import Arrivals, watch

METAL, SPECIES = Lattice.triangular(0.316), ("Mo", "Re")
HEAD = '[study]\nname = "s"\nseed = 1\nmodels = "mos2_res2"\ninclude = ["R", "P1"]\n'
QUICK = "[infer]\npoints = 4\nsamples = 120\nburn = 60.0\n"
WATCH = '[watch]\nfolder = "in"\n'


def table(name, side=20):
    """A random alloy as `run` and `observe` export it."""
    labels = (generator(f"watched {name}").random((side, side)) < 0.4).astype(int)
    return sites_table(Observation.from_labels(labels, METAL, SPECIES, name=name))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "study.toml").write_text(HEAD + QUICK + WATCH)
    return tmp_path


def run(place, *options):
    """The command's exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["watch", str(place / "study.toml"), "--out", str(place / "out"), "--every", "0.01", "--quiet", *options])
    return stopped.value.code


def state(place):
    return json.loads((place / "out" / "live.json").read_text())


# ------------------------------------------------------------------ files


def test_a_file_is_taken_when_it_is_whole_and_again_only_when_it_changed(tmp_path):
    arrivals, path = Arrivals(tmp_path, "*.csv"), tmp_path / "a.csv"
    (tmp_path / "b.txt").write_text("other")
    (tmp_path / ".c.csv").write_text("hidden")
    with path.open("w") as file:
        file.write("x,y\n")
        file.flush()
        assert arrivals.look() == [] and arrivals.waiting
        file.write("1,2\n")
        file.flush()
        assert arrivals.look() == [] and arrivals.waiting  # it has grown
    assert arrivals.look() == [path] and not arrivals.waiting
    assert arrivals.look() == []
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 10**9))  # written again, as long as before
    assert arrivals.look() == [] and arrivals.look() == [path]
    path.unlink()
    assert arrivals.look() == [] and not arrivals.waiting


def test_files_come_in_the_order_in_which_they_were_written(tmp_path):
    arrivals = Arrivals(tmp_path)
    for age, name in ((3, "c"), (2, "a"), (1, "b")):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(0, time.time_ns() - age * 10**9))
    arrivals.look()
    assert [p.name for p in arrivals.look()] == ["c", "a", "b"]


# ------------------------------------------------------------------ the command


def test_images_are_taken_once_bad_ones_set_aside_and_a_second_run_goes_on(place, capsys):
    """Two tables, one of them twice, one that is cut off, one with a picture's suffix: one run; then another with one table more."""
    folder = place / "in"
    for name in ("one", "two"):
        (folder / f"{name}.csv").write_text(table(name))
    (folder / "copy.csv").write_text(table("two"))
    (folder / "cut.csv").write_text("x,y,species\n1.0,2.0,Mo\n3.0")
    (folder / "notes.md").write_text("what was done")
    (folder / "overlay.png").write_bytes(b"no key says how to read pictures")
    assert run(place, "--once") == 0
    said = capsys.readouterr().out
    first = state(place)
    assert {n: f["status"] for n, f in first["files"].items()} == {
        "one.csv": "taken", "two.csv": "taken", "copy.csv": "the same again", "cut.csv": "set aside",
    }  # fmt: skip
    assert "cut.csv: set aside. " in said and "It is " in first["files"]["copy.csv"]["why"]
    assert sorted(first["images"]) == ["one", "two"] and len(first["updates"]) == 2 and not first["stop"]
    with Image.open(place / "out" / "live.png") as picture:
        picture.verify()
    assert not [p for p in (place / "out").iterdir() if p.name.endswith(".tmp")]

    (folder / "cut.csv").write_text(table("three"))  # copied again, whole this time
    assert run(place, "--once") == 0
    said, second = capsys.readouterr().out, state(place)
    assert "Going on with 2 images" in said and said.count(" images, ") == 1  # the one new update
    assert second["files"]["cut.csv"]["status"] == "taken" and sorted(second["images"]) == ["cut", "one", "two"]
    assert [u["log_evidence"] for u in second["updates"][:2]] == [u["log_evidence"] for u in first["updates"]]
    assert [u["chains"] for u in second["updates"][:2]] == [0, 0]


def test_it_ends_when_the_rule_says_so(place, capsys):
    for name in ("one", "two", "three"):
        (place / "in" / f"{name}.csv").write_text(table(name))
    assert run(place, "--sd", "P1.w1=0.09", "--error", "0.1") == 0
    said = capsys.readouterr().out
    assert "Stop after " in said and "at most 0.0" in said and "with 90 % confidence" in said
    assert state(place)["stop"] and len(state(place)["images"]) < 3


def test_ctrl_c_leaves_a_session_that_goes_on(place, capsys, monkeypatch):
    (place / "in" / "one.csv").write_text(table("one", side=14))
    looks = iter(range(100))

    def interrupted(seconds):
        if next(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("bayesatoms.watching.watch.__kwdefaults__", {**watch.__kwdefaults__, "pause": interrupted})
    assert run(place) == 130
    assert "run the same command to continue" in capsys.readouterr().err and state(place)["images"] == ["one"]
    assert run(place, "--idle", "0.0") == 0
    said = capsys.readouterr().out
    assert "Going on with 1 image taken before" in said and "No new file for" in said


def test_micrographs_and_the_images_of_the_study(place):
    """A rendered picture is read by the keys of [watch], after a table that the study itself names; the second picture is none."""
    (place / "first.csv").write_text(table("first", side=14))
    (place / "study.toml").write_text(
        f'{HEAD}{QUICK}[[image]]\ntable = "first.csv"\n[watch]\nfolder = "in"\npattern = "*.tif"\nbright = "Re"\npixel_size_nm = 0.0263\n'
    )
    rng = generator("watched picture")
    sites = disc(METAL, 12 * 0.316)
    alloy = Configuration.from_sites(METAL, SPECIES, sites, (rng.random(len(sites)) < 0.4).astype(int))
    options = {"intensity": {"Mo": 0.45, "Re": 1.0}, "spacing": 12.0, "background": 0.3, "shape": (144, 150)}
    picture = render(alloy, noise=0.05, rng=rng, **options)
    tifffile.imwrite(place / "in" / "scan.tif", (1000 * picture.image.data).astype(np.float32))
    (place / "in" / "broken.tif").write_bytes((place / "in" / "scan.tif").read_bytes()[:500])
    said = []
    session = watch(study.read(place / "study.toml"), place / "out", once=True, every=0.0, say=said.append)
    assert [o.name for o in session.observations] == ["first", "scan"]
    assert any(line.startswith("broken.tif: set aside. ") for line in said)
    assert session.observations[1].probabilities is not None and session.updates[-1].number == 2


def test_bad_input_is_refused(place):
    def ask(text, **keywords):
        (place / "study.toml").write_text(text)
        watch(study.read(place / "study.toml"), place / "out", once=True, **keywords)

    for text, keywords, said in (
        (HEAD, {}, "no folder to watch"),
        (HEAD + '[watch]\nfolder = "nowhere"\n', {}, r"folder .*nowhere to watch is no folder"),
        (HEAD, {"folder": place / "out"}, "is no folder"),
        (HEAD + WATCH + '[infer]\nlikelihood = "independent"\n', {}, "calibrated likelihood and no"),
        (HEAD + WATCH + "[nuisances]\ncomposition = true\n", {}, "calibrated likelihood and no"),
        (HEAD + "[watch]\nfolders = 1\n", {}, "key watch.folders is unknown; expected one of"),
        (HEAD + WATCH, {"stop": StopRule(sd={"P2.w1": 0.1})}, r"sd names 'P2.w1'; expected one of P1.w1"),
    ):
        with pytest.raises(InputError, match=said):
            ask(text, **keywords)
    with pytest.raises(InputError, match="no update to draw"):
        live([], study.parse(HEAD).models)
