"""The house rules, read off the syntax tree: what may import what, how long, how documented.

A room (a module or subpackage of bayesatoms) imports only from rooms on lower floors, and on its own
floor only where ``BESIDE`` says so. Imports inside functions count, those for type checkers do not.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bayesatoms

PACKAGE = Path(bayesatoms.__file__).parent
ROOT = PACKAGE.parent

FLOORS = (  # lowest first
    {"errors", "units", "progress", "files", "generators"},
    {"lattice", "tables"},
    {"hamiltonian", "environments", "configuration", "window", "counting", "response", "indexing"},
    {"observation", "catalogue"},
    {"montecarlo", "imaging"},  # theory and experiment: they meet in inference and never import each other
    {"inference"},
    {"phases"},
    {"planning"},
    {"plots", "study", "readings", "results", "watching"},
    {"reporting"},
    {"cli"},
    {"__main__"},
)
BESIDE = {
    ("units", "errors"),
    ("progress", "errors"),
    ("files", "errors"),
    ("environments", "configuration"),
    ("hamiltonian", "configuration"),
    ("window", "environments"),
    ("window", "configuration"),
    ("window", "response"),
    ("window", "counting"),
    ("catalogue", "observation"),
    ("results", "study"),
    ("readings", "plots"),
    ("results", "readings"),
    ("watching", "study"),
    ("watching", "readings"),
    ("watching", "plots"),
}
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = ("jax", "numba", "numpyro", "matplotlib.pyplot", "scipy", "xarray")
MOST_LINES = 500


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# an installed wheel carries the models files inside the package; they are data here, checked elsewhere
FILES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] != "models"}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below that may run (not the bodies for type checkers)."""
    children = node.orelse if for_type_checkers(node) else ast.iter_child_nodes(node)
    for child in children:
        yield child
        yield from running(child)


def imported(name: str, path: Path, tree: ast.AST, known: set[str]) -> Iterator[tuple[str, int]]:
    """Modules of the package that a module imports, with the line; relative imports resolved."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in running(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.partition(".")[0] == "bayesatoms")
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base.partition(".")[0] != "bayesatoms":
                continue
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in known:
                    yield full, node.lineno
                elif full != "bayesatoms.__version__":  # the one thing that the package itself gives to its rooms
                    yield base, node.lineno


IMPORTS = {name: sorted(set(imported(name, FILES[name], tree, set(FILES)))) for name, tree in TREES.items()}


def room(name: str) -> str:
    """The room of a module: the part below the package ("" for the package itself)."""
    return name.partition(".")[2].partition(".")[0]


def may_import(one: str, other: str) -> bool:
    """Whether one room may import another."""
    return one == other or (one, other) in BESIDE or FLOOR[one] > FLOOR[other]


# ---------------------------------------------------------------------- (a), (b) imports


def test_every_room_has_a_floor():
    rooms = {room(name) for name in FILES} - {""}
    assert rooms <= set(FLOOR), f"{sorted(rooms - set(FLOOR))}: give it a place in FLOORS"


def test_the_plan_itself_has_no_loop():
    assert all(FLOOR[one] == FLOOR[other] for one, other in BESIDE)
    TopologicalSorter({one: {b for a, b in BESIDE if a == one} for one, _ in BESIDE}).prepare()


@pytest.mark.parametrize("name", [n for n in FILES if room(n)])
def test_imports_point_downward(name):
    for target, line in IMPORTS[name]:
        where = f"{FILES[name].relative_to(ROOT)}:{line}"
        assert room(target), f"{where} imports from the package itself; import from the module that has it"
        one, other = room(name), room(target)
        assert may_import(one, other), f"{where}: {one} (floor {FLOOR[one]}) imports {target} (floor {FLOOR[other]})"


def test_theory_and_experiment_never_meet_below_inference():
    for name, targets in IMPORTS.items():
        rooms = {room(t) for t, _ in targets}
        assert not (room(name) == "montecarlo" and "imaging" in rooms)
        assert not (room(name) == "imaging" and "montecarlo" in rooms)
        if {"montecarlo", "imaging"} <= rooms:
            assert FLOOR[room(name)] >= FLOOR["inference"]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of a cycle, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_import_cycles():
    modules = {name: {t for t, _ in targets} for name, targets in IMPORTS.items()}
    rooms: dict[str, set[str]] = {}
    for name, targets in modules.items():
        rooms.setdefault(room(name), set()).update({room(t) for t in targets} - {room(name)})
    assert not cycle(modules)
    assert not cycle(rooms)


def test_the_checks_above_see_what_they_should():
    """Negative control: imports of all kinds are found, those for type checkers are not, a cycle is."""
    source = """
from typing import TYPE_CHECKING
import numpy
import bayesatoms.lattice
from . import kernels, __version__
from .. import units, __version__
from ..window import Window
from bayesatoms.imaging.read import read_image
if TYPE_CHECKING:
    from ..cli import main
def later():
    from ..inference import infer
"""
    rooms = ("lattice", "montecarlo", "montecarlo.kernels", "units", "window", "imaging.read", "cli", "inference")
    known = {f"bayesatoms.{m}" for m in rooms}
    found = list(imported("bayesatoms.montecarlo.pool", Path("pool.py"), ast.parse(source), known))
    names = ["lattice", "montecarlo.kernels", "montecarlo", "units", "window", "imaging.read", "inference"]
    assert [t for t, _ in found] == [f"bayesatoms.{n}" for n in names]
    assert [may_import("montecarlo", room(t)) for t, _ in found] == [True, True, True, True, True, False, False]
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})


# ---------------------------------------------------------------------- (c) size


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_too_long(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


# ---------------------------------------------------------------------- (d), (e) the public names


def test_importing_the_package_loads_nothing_heavy():
    program = f"import json, sys, bayesatoms; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.fixture
def public():
    """The public names."""
    names = getattr(bayesatoms, "__all__", [])
    if not names:
        pytest.skip("bayesatoms has no public names yet")
    return names


def test_no_public_name_is_a_submodule(public):
    assert len(set(public)) == len(public)
    assert not set(public) & {room(name) for name in FILES}


def test_every_public_name_can_be_had_and_is_listed(public):
    for name in public:
        assert getattr(bayesatoms, name) is not None
    assert set(public) <= set(dir(bayesatoms))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(bayesatoms, "no_such_name")


def test_the_readme_uses_public_names_only(public):
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("not a source tree: no README.md beside the package")
    assert set(re.findall(r"\bba\.([A-Za-z_]\w*)", readme.read_text(encoding="utf-8"))) <= set(public)


# ---------------------------------------------------------------------- (f) documented and typed


def is_public(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_")


def decorators(node: ast.FunctionDef) -> set[str]:
    return {ast.unparse(d.func if isinstance(d, ast.Call) else d).rpartition(".")[2] for d in node.decorator_list}


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """Public functions and methods (constructors too) with their full name and whether they are methods."""
    for node in filter(is_public, tree.body):
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (is_public(method) or method.name == "__init__"):
                    yield f"{node.name}.{method.name}", method, True
        else:
            yield node.name, node, False


def unannotated(node: ast.FunctionDef, method: bool) -> list[str]:
    """Parameters without a type, and "return"."""
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    if method and "staticmethod" not in decorators(node):
        positional = positional[1:]
    every = [*positional, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return [p.arg for p in every if p.annotation is None] + ["return"] * (node.returns is None)


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [m for m in node.body if isinstance(m, ast.FunctionDef)]


def documented_elsewhere(tree: ast.Module) -> set[str]:
    """Methods that need no docstring: a base class or a protocol of the same file has it, or a one-line property's name says it all."""
    classes = {c.name: c for c in tree.body if isinstance(c, ast.ClassDef)}
    everywhere = {c.name: c for other in TREES.values() for c in other.body if isinstance(c, ast.ClassDef)}
    promised = {m.name for c in classes.values() if "Protocol" in map(ast.unparse, c.bases) for m in methods(c) if ast.get_docstring(m)}
    exempt = set()
    for c in classes.values():
        bases = [everywhere[b] for b in map(ast.unparse, c.bases) if b in everywhere]
        inherited = {m.name for b in bases for m in methods(b)}
        for m in methods(c):
            plain = len(m.body) == 1 and decorators(m) & {"property", "cached_property"}
            if m.name in promised | inherited or plain:
                exempt.add(f"{c.name}.{m.name}")
    return exempt


@pytest.mark.parametrize("name", FILES)
def test_everything_public_is_documented_and_typed(name):
    tree = TREES[name]
    exempt = documented_elsewhere(tree)
    undocumented = [n.name for n in filter(is_public, tree.body) if not ast.get_docstring(n)]
    own_words = [(full, node) for full, node, method in functions(tree) if method and is_public(node) and full not in exempt]
    undocumented += [full for full, node in own_words if not ast.get_docstring(node)]
    assert not undocumented, f"no docstring: {undocumented}"
    untyped = {full: missing for full, node, method in functions(tree) if (missing := unannotated(node, method))}
    assert not untyped, f"no annotation: {untyped}"


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is_for(name):
    assert not FILES[name].read_text(encoding="utf-8").strip() or ast.get_docstring(TREES[name]), "no module docstring"
