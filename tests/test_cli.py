"""The command line and study files: bad input in one sentence with its exit code, a real run, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from bayesatoms import cli, study
from bayesatoms.errors import InputError, RunError
from bayesatoms.phases.diagram import PhaseDiagram

COUNTS = [404, 45, 0, 2, 2, 0, 0, 1, 0, 0, 0, 0, 0, 7, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
HEAD = '[study]\nname = "s"\nseed = 1\nmodels = "mos2_res2"\n'

RANDOM_ONLY = """
from bayesatoms.hamiltonian import Hamiltonian
from bayesatoms.lattice import Lattice

MODELS = [Hamiltonian("R", lattice=Lattice.triangular(0.316), species=("Mo", "Re"))]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "counts.csv").write_text("re05\n" + "\n".join(map(str, COUNTS)) + "\n")
    scattered = np.random.default_rng(0).random((60, 2)) * 100
    (tmp_path / "sites.csv").write_text("x,y,species\n" + "\n".join(f"{x},{y},Mo" for x, y in scattered) + "\n")
    (tmp_path / "third.csv").write_text("x,y,species\n1,2,W\n2,3,Mo\n")
    (tmp_path / "words.csv").write_text("x,y,species\none,2,Mo\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01" * 30)
    (tmp_path / "random.py").write_text(RANDOM_ONLY)
    return tmp_path


BAD = {
    "missing study": (None, r"study .*none.toml cannot be read \(No such file or directory\)"),
    "no toml": ("[study\n", r"is no TOML"),
    "unknown key": (HEAD + "[infer]\nsamplse = 3\n", r"key infer.samplse is unknown; expected one of likelihood, .*samples"),
    "unknown section": (HEAD + "[imag]\n", r"key imag is unknown; expected one of study, lattice, image"),
    "missing key": ('[study]\nname = "s"\nseed = 1\n', r"key study.models: field required"),
    "wrong type": (HEAD.replace("seed = 1", 'seed = "one"'), r"key study.seed: .*found 'one'"),
    "missing models": (HEAD.replace("mos2_res2", "nowhere.py"), r"nowhere.py"),
    "missing table": (HEAD + '[[image]]\ntable = "none.csv"\n', r"table .*none.csv cannot be read"),
    "unreadable table": (HEAD + '[[image]]\ntable = "binary.csv"\n', r"table .*binary.csv is no CSV text"),
    "without the columns": (
        HEAD + '[[image]]\ntable = "sites.csv"\ncolumns = {x = "x_px"}\n',
        r"column 'x_px' not found; the table has x, y, species",
    ),
    "unknown column role": (HEAD + '[[image]]\ntable = "sites.csv"\ncolumns = {z = "x"}\n', r"columns names \['z'\]; expected x, y"),
    "not a number": (HEAD + '[[image]]\ntable = "words.csv"\n', r"hold something that is no number"),
    "no lattice": (HEAD + '[[image]]\ntable = "sites.csv"\n', r"sites.csv: .*lattice"),
    "third species": (HEAD + '[[image]]\ntable = "third.csv"\n', r"column 'species' holds W; expected Mo, Re"),
    "species count": (
        HEAD + '[[image]]\ntable = "sites.csv"\nspecies = ["Mo", "Re", "W"]\n',
        r"species Mo, Re, W; the models have Mo, Re",
    ),
    "counts and table": (
        HEAD + '[[image]]\ntable = "sites.csv"\ncounts = "counts.csv"\n',
        r"give one of path .*, table and counts; found counts and table",
    ),
    "neither": (HEAD + "[[image]]\n", r"give one of path .*; found none of them"),
    "too few counts": (HEAD + "[[image]]\ncounts = [1, 2]\n", r"2 counts given; expected 26"),
    "sum": (HEAD + '[[image]]\ncounts = "counts.csv"\ncolumn = "re05"\nsites = 465\n', r"the counts sum to 464; expected 465"),
    "negative count": (HEAD + f"[[image]]\ncounts = {[-1, *COUNTS[1:]]}\n", r"count -1 of class Mo\|0Re"),
    "column of counts": (HEAD + '[[image]]\ncounts = "counts.csv"\n', r"column None not found in .*counts.csv; it has re05"),
    "label error": (
        HEAD + f"[[image]]\ncounts = {COUNTS}\nlabel_error = [[0.9, 0.2], [0.0, 1.0]]\n",
        r"label_error is .*probabilities that sum to 1",
    ),
    "no information": (HEAD + f"[[image]]\ncounts = {COUNTS}\nlabel_error = [[0.5, 0.5], [0.5, 0.5]]\n", r"labels carry no information"),
    "nothing to infer": (HEAD.replace("mos2_res2", "random.py") + f"[[image]]\ncounts = {COUNTS}\n", r"there is nothing to infer"),
    "no image": (HEAD.replace("mos2_res2", "random.py"), r"no \[\[image\]\] and no DATA"),
    "other lattice": (HEAD + '[lattice]\nname = "square"\na_nm = 0.3\n', r"\[lattice\] is square"),
    "unknown model": (HEAD.replace('"s"', '"s"\ninclude = ["P9"]'), r"model 'P9' is not in mos2_res2.py; it has R, P1, P2, M"),
    "two axes": (
        HEAD + "[phases]\ncomposition = [0.5]\nchemical_potential = [0.0]\n",
        r"key phases.chemical_potential: .*expected composition or chemical_potential, not both",
    ),
    "falling potentials": (
        HEAD + "[phases]\nchemical_potential = [0.5, 0.0]\n",
        r"key phases.chemical_potential: .*expected rising numbers; found \[0.5",
    ),
    "cold temperature": (HEAD + "[phases]\ntemperature = [0.0, 1.0]\n", r"key phases.temperature: .*expected rising numbers above 0"),
    "odd size": (HEAD + "[phases]\nsize = 9\n", r"key phases.size: .*expected even numbers of cells, at least 6.*; found 9"),
    "three sides": (HEAD + "[phases]\nsize = [6, 6, 6]\n", r"key phases.size has 3 numbers; expected one, or 2"),
    "formation": (HEAD + "[phases]\nformation_K = 0\n", r"key phases.formation_K: .*greater than 0; found 0"),
    "map of another model": (HEAD + '[phases]\nmodel = "P9"\n', r"key phases.model is 'P9'; expected average or one of R, P1, P2, M"),
    "map of a model left out": (
        HEAD.replace('"s"', '"s"\ninclude = ["R", "P1"]') + '[phases]\nmodel = "M"\n',
        r"key phases.model is 'M'; expected average or one of R, P1;?",
    ),
    "unknown nuisance": (HEAD + "[nuisances]\nenergy = true\n", r"key nuisances.energy is unknown; expected one of energies"),
    "relabel counts": (
        HEAD + f'[[image]]\ncounts = {COUNTS}\nrelabel = {{a = {{species = "b"}}}}\n',
        r"key relabel needs path or table, but the image is given by counts",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
def test_bad_input_is_one_sentence_and_exit_code_2(case, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    text, expected = BAD[case]
    path = folder / ("none.toml" if text is None else "study.toml")
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(path), "--out", str(folder / "out"), "--quiet"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("bayesatoms: ") and "Traceback" not in said and len(said.splitlines()) == 1
    with pytest.raises(InputError, match=expected):
        raise InputError(said)
    assert not (folder / "out").exists()


def test_usage_errors_exit_with_2_and_help_with_0(capsys):
    for arguments, code in ((["run"], 2), (["nonsense"], 2), (["demo", "--seed", "-1"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == code
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("trouble", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "bayesatoms: stopped; finished chains are kept, run the same command to continue"),
        (RunError("pool folder p: no room; make some"), 3, "bayesatoms: pool folder p: no room; make some"),
    ],
)
def test_a_stopped_run_says_how_to_go_on(trouble, code, said, folder, capsys, monkeypatch):
    def stop(plan, out, *, workers, **_):
        assert list(workers.run(abs, [-1])) == [(-1, 1)]
        raise trouble

    for command, function in (("run", "run"), ("calibrate", "calibrate_study")):
        monkeypatch.setattr(f"bayesatoms.results.{function}", stop)
        (folder / "study.toml").write_text(HEAD)
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, str(folder / "study.toml"), "--out", str(folder / "out"), "--workers", "2", "--executor", "processes"])
        assert stopped.value.code == code and capsys.readouterr().err.strip() == said


def test_executors_by_name_and_address(folder, capsys, monkeypatch):
    (folder / "study.toml").write_text(HEAD)
    monkeypatch.setitem(sys.modules, "distributed", None)
    for by, said in (
        ("magic", "expected one of serial, threads, processes, dask"),
        ("tcp://here:8786", "pip install 'bayesatoms[cluster]'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["run", str(folder / "study.toml"), "--out", str(folder / "out"), "--executor", by])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_an_output_folder_that_cannot_be_made(folder, capsys):
    (folder / "study.toml").write_text(HEAD)
    (folder / "taken").write_text("a file")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(folder / "study.toml"), "--out", str(folder / "taken"), "--quiet"])
    assert stopped.value.code == 2 and "taken" in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    code = "import sys; import bayesatoms.cli as c\ntry: c.app(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "numba", "numpyro", "matplotlib", "scipy", "xarray", "arviz_stats"} & set(loaded)


TABLE = """
[study]
name = "re78, two labellings"
seed = 4
models = "mos2_res2"
include = ["R", "P1"]

[[image]]
name = "re78"
table = "{data}/mores2/re78_sites.csv"
columns = {{x = "x_px", y = "y_px", species = "species_own"}}
relabel = {{authors = {{x = "author_x_px", y = "author_y_px", species = "species_author"}}}}

[[image]]
name = "re05"
table = "{data}/mores2/re05_sites.csv"
columns = {{x = "x_px", y = "y_px", species = "species_own"}}

[infer]
points = 4
samples = 150
warmup = 300
draws = 1000

[phases]
composition = [0.5, 0.97]
temperature = [0.1, 1.0]
draws = 20
size = 6
formation_K = 1000
"""


def test_real_tables_end_to_end(data, tmp_path, capsys):
    """re78 and re05 through `run`: results folder, both labellings in summary and report, and a second run from the pool."""
    path, out = tmp_path / "study.toml", tmp_path / "out"
    path.write_text(TABLE.format(data=data.as_posix()))
    code = 0
    try:
        cli.main(["run", str(path), "--out", str(out), "--quiet"])
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    assert code in (0, None), said.err
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and "pool" not in p.parts}
    expected = {"study.toml", "summary.json", "report.html", "phases.nc", "sites/re78.csv", "sites/re05.csv", "models/P1.nc", "models/R.nc"}
    assert expected <= names
    found = json.loads((out / "summary.json").read_text())
    assert found["images"]["re78"]["window"] == "seen sites" and len(found["images"]["re78"]["histogram"]) == 26
    careful, authors = found["models"]["P1"]["couplings"]["w1"], found["labellings"]["authors"]["P1"]["w1"]
    # the labels matter: the coupling moves by more than Monte Carlo noise between them
    assert abs(careful["mean"] - authors["mean"]) > 0.1 * careful["sd"]
    assert found["comparison"]["units"] == "atoms" and "verdict" in found["comparison"]
    assert all(c["ok"] for c in found["checks"].values())
    report = (out / "report.html").read_text()
    assert "authors" in report and found["comparison"]["verdict"] in report
    parts = list((out / "phases").glob("*.npz"))
    mapped = PhaseDiagram.load(out / "phases.nc")
    assert len(parts) == 2 and mapped.dataset.attrs["box"].tolist() == [6, 6]  # the random alloy needs none
    assert mapped.dataset.extrapolated.values.tolist() == [False, True]
    assert mapped.dataset.kelvin.values.tolist() == [100.0, 1000.0]
    assert "At fraction of Re 0.5: " in report and "100 % of the compositions" not in report
    again = study.read(out / "study.toml") if (out / "mores2").exists() else study.read(path)
    assert [o.n for o in again.observations] == [found["images"][n]["environments"] for n in ("re78", "re05")]


WSE2 = """
from numpyro import distributions as dist

from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice

ALLOY = {"lattice": Lattice.triangular(0.328), "species": ("W", "V")}
MODELS = [Hamiltonian("R", **ALLOY), Hamiltonian("P1", Pair("W", "V", name="w1", prior=dist.Normal(0, 1)), **ALLOY)]
"""

WSE2_STUDY = """
[study]
name = "V in WSe2"
seed = 1
models = "wse2.py"

[[image]]
name = "v_wse2"
table = "{data}/v_wse2/v_wse2_sites.csv"
columns = {{x = "x_px1024", y = "y_px1024"}}
keep = {{species = ["W", "V"]}}

[infer]
points = 4
samples = 150
warmup = 300
draws = 1000

[phases]
run = false
"""


def test_a_table_with_two_sublattices_end_to_end(data, tmp_path, capsys):
    """Metal sites of V-doped WSe2 by `columns` and `keep`; V atoms are known to avoid each other, so unlike pairs are favoured."""
    (tmp_path / "wse2.py").write_text(WSE2)
    (tmp_path / "study.toml").write_text(WSE2_STUDY.format(data=data.as_posix()))
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(tmp_path / "study.toml"), "--out", str(out), "--quiet"])
    assert stopped.value.code == 0, capsys.readouterr().err
    found = json.loads((out / "summary.json").read_text())
    assert found["images"]["v_wse2"]["environments"] == 846 and found["phases"] is None
    coupling = found["models"]["P1"]["couplings"]["w1"]
    assert coupling["q95"] < 0
    assert not (out / "phases.nc").exists() and (out / "sites" / "v_wse2.csv").exists()
