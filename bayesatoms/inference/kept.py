"""What a session keeps in its folder: its images and what it is about, so that a stopped one goes on.

Chains are in the pool beside them. Posteriors are not kept: found again from the same images and chains, they are the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration import Configuration
from ..environments import Environments
from ..errors import InputError
from ..files import write
from ..hamiltonian import Hamiltonian
from ..observation import Observation
from ..window import Window
from .posterior import Result
from .reuse import geometry, identity
from .settings import Settings

FILE = "session.json"
_SYMMETRIES = ("full", "rotations", "none")
_OPTIONAL = ("positions", "probabilities")


class Kept:
    """The folder of one session.

    Parameters
    ----------
    folder : path
        Made if need be.
    models, seed, settings
        Of the session: another one does not go on here.

    Raises
    ------
    InputError
        If the folder cannot be made, or holds another session.
    """

    def __init__(self, folder: Path, models: Sequence[Hamiltonian], seed: int, settings: Settings) -> None:
        self.folder, self._models = folder, models
        self._content: dict[str, Any] = {
            "seed": seed,
            "settings": asdict(settings),
            "lattice": geometry(models[0].lattice),
            "species": list(models[0].species),
            "models": {m.name: {n: _term(m, n) for n in m.names} for m in models},
            "begun": None,
            "batches": [],
        }
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"folder {folder} cannot be made ({error.strerror}); choose another out") from None

    def begin(self, result: Result | None) -> list[list[Observation]]:
        """The images that an earlier session left here, in the order and together as they were added.

        Raises
        ------
        InputError
            If it was about something else, or what it left cannot be read.
        """
        self._content["begun"] = None if result is None else [o.name for o in result.observations]
        path = self.folder / FILE
        if not path.exists():
            self._write()
            return []
        try:
            before = json.loads(path.read_text(encoding="utf8"))
            batches = [list(names) for names in before["batches"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no session written by bayesatoms ({error}); choose another out") from None
        here = json.loads(json.dumps(self._content))
        other = [key for key in here if key != "batches" and before.get(key) != here[key]]
        if other:
            raise InputError(
                f"{self.folder} holds a session with another {' and '.join(other)}: it can only go on with the same; choose another out"
            )
        self._content["batches"] = batches
        return [[self._read(name) for name in names] for names in batches]

    def check(self, images: Sequence[Observation]) -> None:
        """Refuse images that could not be read back (InputError)."""
        for o in images:
            if o.environments.symmetry not in _SYMMETRIES:
                raise InputError(f"{o.name}: a session in a folder keeps images counted with symmetry {', '.join(_SYMMETRIES)} only")

    def add(self, images: Sequence[Observation]) -> None:
        """Keep images: first themselves, then that they are there."""
        for o in images:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **_arrays(o))
            write(self._path(o.name), buffer.getvalue())
        self._content["batches"].append([o.name for o in images])
        self._write()

    def _write(self) -> None:
        write(self.folder / FILE, json.dumps(self._content, indent=1))

    def _path(self, name: str) -> Path:
        return self.folder / "images" / f"{name}.npz"

    def _read(self, name: str) -> Observation:
        path = self._path(name)
        try:
            with np.load(path, allow_pickle=False) as file:
                return _observation({n: file[n] for n in file.files}, self._models[0])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}); choose another out") from None


def _term(model: Hamiltonian, name: str) -> list[Any]:
    """A term and its prior, as far as a session must know them again."""
    orbit, prior = dict(zip(model.names, model.orbits, strict=True))[name], model.prior(name)
    return [identity(orbit), type(prior).__name__, round(float(np.asarray(prior.mean)), 9), round(float(np.asarray(prior.variance)), 9)]


def _arrays(o: Observation) -> dict[str, Any]:
    """An observation as plain arrays."""
    words = {
        "name": o.name, "temperature": o.temperature, "source": dict(o.source), "shells": o.environments.shells,
        "symmetry": o.environments.symmetry, "whole": o.window.whole,
    }  # fmt: skip
    found = {"words": np.array(json.dumps(words, default=str)), "counts": o.counts, "label_error": o.label_error, "sites": o.window.sites}
    if o.configuration is not None:
        found |= {"labels": o.configuration.labels, "periodic": np.array(o.configuration.periodic)}
    return found | {n: v for n in _OPTIONAL if (v := getattr(o, n)) is not None}


def _observation(arrays: dict[str, Any], model: Hamiltonian) -> Observation:
    """The observation of such arrays."""
    words = json.loads(str(arrays["words"]))
    configuration = None
    if "labels" in arrays:
        configuration = Configuration(model.lattice, tuple(model.species), arrays["labels"], tuple(map(bool, arrays["periodic"])))
    environments = Environments(model.lattice, model.species, words["shells"], words["symmetry"])
    whole = None if words["whole"] is None else tuple(words["whole"])
    return Observation(
        words["name"], environments, arrays["counts"], Window(arrays["sites"], whole), arrays["label_error"], configuration,
        words["temperature"], words["source"], *(arrays.get(n) for n in _OPTIONAL),
    )  # fmt: skip
