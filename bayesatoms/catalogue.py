"""Models files: the candidate Hamiltonians, and published data where there are some.

A models file is ordinary Python that ends in ``MODELS = [Hamiltonian, ...]`` and may add
``DATA = [Observation, ...]`` and ``REFERENCES = ["...", ...]``. The user's own file and the shipped
ones are loaded the same way, by path, so a new model needs no change here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InputError
from .hamiltonian import Hamiltonian
from .observation import Observation

_INSTALLED = Path(__file__).parent / "models"  # where a wheel carries the shipped files
_SOURCE = Path(__file__).parent.parent / "models"  # where a source tree or an editable install has them


@dataclass(frozen=True)
class Catalogue:
    """What one models file declares.

    Parameters
    ----------
    path : Path
        The file that was loaded.
    models : tuple of Hamiltonian
        The candidates, in the order of the file.
    data : tuple of Observation
        Published data declared beside them; often none.
    sha256 : str
        Hash of the file's bytes as executed, stored with every result.
    references : tuple of str
        What to cite.

    Examples
    --------
    >>> published = load("mos2_res2")
    >>> [m.name for m in published.models], [o.n for o in published.data]
    (['R', 'P1', 'P2', 'M'], [464, 466, 434, 471])
    """

    path: Path
    models: tuple[Hamiltonian, ...]
    data: tuple[Observation, ...]
    sha256: str
    references: tuple[str, ...]


def shipped() -> tuple[str, ...]:
    """Names of the models files that come with the package.

    Returns
    -------
    tuple of str
        Sorted; each is a valid argument of :func:`load`.

    Examples
    --------
    >>> "mos2_res2" in shipped()
    True
    """
    return tuple(sorted(p.stem for p in _folder().glob("*.py") if not p.stem.startswith("_")))


def load(name_or_path: str | Path) -> Catalogue:
    """Load a models file.

    Parameters
    ----------
    name_or_path : str or Path
        The name of a shipped file (see :func:`shipped`), or the path of a ``.py`` file.

    Returns
    -------
    Catalogue

    Raises
    ------
    InputError
        If there is no such file, it cannot be run, or it does not end in a list MODELS of
        Hamiltonians with different names.

    Examples
    --------
    >>> load("mos2_res2").models[1]
    Hamiltonian(P1: w1)
    """
    path = _find(name_or_path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"models file {path} cannot be read ({error.strerror}); expected {_EXPECTED}") from None
    digest = hashlib.sha256(source).hexdigest()
    module = _run(path, source, digest)
    models = _declared(module, path, "MODELS", Hamiltonian, needed=True)
    data = _declared(module, path, "DATA", Observation)
    references = _declared(module, path, "REFERENCES", str)
    for name, entries in (("MODELS", models), ("DATA", data)):
        _all_different(path, name, [e.name for e in entries])
    return Catalogue(path, models, data, digest, references)


_EXPECTED = "a Python file that ends in MODELS = [Hamiltonian, ...]"


def _folder() -> Path:
    """Where the shipped files are: beside the modules in a wheel, beside the package in a source tree.

    The second is looked at only where the first is absent: beside an installed package lie other people's.
    """
    return _INSTALLED if _INSTALLED.is_dir() else _SOURCE


def _find(name_or_path: str | Path) -> Path:
    """The file meant: a shipped one by bare name, any other by its path."""
    names = shipped()
    if isinstance(name_or_path, str) and name_or_path in names:
        return _folder() / f"{name_or_path}.py"
    path = Path(name_or_path)
    if path.is_file() and path.suffix == ".py":
        return path
    found = "is a folder" if path.is_dir() else "is no .py file" if path.exists() else "not found"
    raise InputError(f"models file {name_or_path} {found}; expected a path ending in .py or the name of a shipped file: {', '.join(names)}")


def _run(path: Path, source: bytes, digest: str) -> ModuleType:
    """Execute exactly the bytes that were hashed (no bytecode cache) as a module of a name of its own."""
    where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    name = f"_bayesatoms_models_{path.stem}_{where[:8]}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(_failure(path, error)) from None
    return module


def _failure(path: Path, error: BaseException) -> str:
    """One sentence: the last line of the file that was running, and what went wrong there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    what = (error.msg if isinstance(error, SyntaxError) else str(error)) or "no message"
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"models file {path}, line {line or '?'}: {kind}{what}; expected {_EXPECTED} and runs without an error"


def _declared(module: ModuleType, path: Path, name: str, kind: type, *, needed: bool = False) -> tuple[Any, ...]:
    """The entries of one of the lists that a models file may end in."""
    wanted = f"{name} = [{kind.__name__}, ...]"
    if not hasattr(module, name):
        if not needed:
            return ()
        raise InputError(f"models file {path} has no {name}; expected {wanted} as its last lines")
    entries = getattr(module, name)
    if not isinstance(entries, (list, tuple)):
        raise InputError(f"models file {path}: {name} is {_describe(entries)}; expected a list, {wanted}")
    if needed and not entries:
        raise InputError(f"models file {path}: {name} is empty; expected {wanted}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, kind):
            raise InputError(f"models file {path}: {name}[{i}] is {_describe(entry)}; expected an entry of type {kind.__name__}")
    return tuple(entries)


def _describe(entry: object) -> str:
    """An object in an error message: its type and, if it is short, itself."""
    if isinstance(entry, type):
        return f"the class {entry.__name__} (not called)"
    text, kind = repr(entry), type(entry).__name__
    if len(text) > 60:
        return f"something of type {kind}"
    return text if text.startswith(kind) else f"{kind} {text}"


def _all_different(path: Path, what: str, names: Sequence[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"models file {path}: {what} holds more than one entry called {twice[0]!r}; expected different names")
