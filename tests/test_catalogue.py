"""Models files are found by name or path, and a wrong one is refused in one sentence."""

import dataclasses
import hashlib
import sys

import numpy as np
import pytest

from bayesatoms import catalogue
from bayesatoms.errors import InputError

GOOD = """
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.environments import Environments
from bayesatoms.observation import Observation

alloy = {"lattice": Lattice.square(), "species": ("A", "B")}
R = Hamiltonian("R", **alloy)
P = Hamiltonian("P", Pair("A", "B", name="w"), **alloy)
cross = Environments(Lattice.square(), ("A", "B"))
one = Observation.from_counts([3] * cross.n_classes, cross, name="one")
"""


@pytest.fixture
def write(tmp_path):
    """Write a models file: a sound beginning and the given last lines."""

    def write(*last, begin=GOOD, name="mine.py"):
        path = tmp_path / name
        path.write_text(begin + "\n".join(last) + "\n")
        return path

    return write


def refusal(path):
    with pytest.raises(InputError) as caught:
        catalogue.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "expected" in message
    assert "\n" not in message
    assert caught.value.__context__ is None or caught.value.__suppress_context__  # no second traceback
    return message


def test_a_users_file_is_loaded_by_path(write):
    path = write("MODELS = [R, P]", "DATA = [one]", "REFERENCES = ['Somebody (2020)']")
    loaded = catalogue.load(path)
    assert [m.name for m in loaded.models] == ["R", "P"]
    assert [o.name for o in loaded.data] == ["one"]
    assert loaded.references == ("Somebody (2020)",)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert catalogue.load(str(path)).path == path
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.models = ()


def test_data_and_references_are_optional(write):
    loaded = catalogue.load(write("MODELS = (R,)"))
    assert (loaded.data, loaded.references) == ((), ())


def test_an_edited_file_is_read_anew_and_leaves_nothing_behind(write, tmp_path):
    """Same size, same second: a bytecode cache would serve the old one."""
    assert catalogue.load(write("MODELS = [R]")).models[0].name == "R"
    assert catalogue.load(write("MODELS = [P]")).models[0].name == "P"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_files_of_one_name_do_not_meet(write, tmp_path):
    (tmp_path / "other").mkdir()
    first, second = catalogue.load(write("MODELS = [R]")), catalogue.load(write("MODELS = [P]", name="other/mine.py"))
    assert (first.models[0].name, second.models[0].name) == ("R", "P")
    assert "mine" not in sys.modules


def test_a_file_may_define_its_own_term(write):
    term = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from bayesatoms.hamiltonian import Orbit, Term
@dataclass(frozen=True)
class Everywhere(Term):
    name: str = "e"
    prior: None = None
    kind: ClassVar[str] = "mine"
    def orbit(self, lattice, species):
        return Orbit(np.zeros((1, 1, 3), dtype=int), np.ones(2))
"""
    loaded = catalogue.load(write("MODELS = [Hamiltonian('E', Everywhere(), **alloy)]", begin=term + GOOD))
    block = loaded.models[0].lattice.supercell((3, 3))
    assert loaded.models[0].compile(block).features(np.zeros(9, dtype=np.int8)).tolist() == [9.0]


def test_shipped_files_are_found_by_name_in_a_source_tree_and_in_a_wheel(write, tmp_path, monkeypatch):
    assert "mos2_res2" in catalogue.shipped()
    write("MODELS = [P]", name="wheel.py")
    write("raise RuntimeError", name="_private.py")
    monkeypatch.setattr(catalogue, "_INSTALLED", tmp_path)
    assert catalogue.shipped() == ("wheel",)
    assert catalogue.load("wheel").path == tmp_path / "wheel.py"


def test_missing_files_and_folders_are_refused_with_the_shipped_names(tmp_path):
    assert "not found" in refusal(tmp_path / "absent.py")
    assert "mos2_res2" in refusal("mos2_res3")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "study.toml").write_text("")
    assert "is no .py file" in refusal(tmp_path / "study.toml")


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ([], "has no MODELS"),
        (["MODELS = []"], "MODELS is empty"),
        (["MODELS = P"], "MODELS is Hamiltonian(P: w); expected a list"),
        (["MODELS = [R, 'P1']"], "MODELS[1] is str 'P1'; expected an entry of type Hamiltonian"),
        (["MODELS = [R, Hamiltonian]"], "MODELS[1] is the class Hamiltonian (not called)"),
        (["MODELS = [R, P, P]"], "MODELS holds more than one entry called 'P'"),
        (["MODELS = [R]", "DATA = [one, one]"], "DATA holds more than one entry called 'one'"),
        (["MODELS = [R]", "DATA = [[1, 2, 3]]"], "DATA[0] is list [1, 2, 3]; expected an entry of type Observation"),
        (["MODELS = [R]", "REFERENCES = 'Somebody (2020)'"], "REFERENCES is str 'Somebody (2020)'; expected a list"),
    ],
)
def test_wrong_declarations_are_named(write, last, said):
    assert said in refusal(write(*last))


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (["x = 1", "y = 1 / (x - 1)"], "line 3: ZeroDivisionError: division by zero"),
        (["", "MODELS = [R"], "line 3: SyntaxError: '[' was never closed"),
        (["def f():", "    return nothing", "f()"], "line 3: NameError: name 'nothing' is not defined"),
        (["from bayesatoms import nowhere"], "line 2: ImportError"),
        (["raise SystemExit(3)"], "line 2: SystemExit: 3"),
        (["assert False"], "line 2: AssertionError: no message"),
    ],
)
def test_an_error_inside_the_file_is_told_by_line_and_message(write, last, said):
    known = set(sys.modules)
    assert said in refusal(write(*last, begin="\n"))
    assert not [m for m in set(sys.modules) - known if m.startswith("_bayesatoms_models")]


def test_an_input_error_inside_the_file_keeps_its_own_words(write):
    message = refusal(write("MODELS = [Hamiltonian('X', Pair('A', 'C', name='w'), **alloy)]"))
    assert "species 'C' is unknown" in message
    assert "InputError" not in message
