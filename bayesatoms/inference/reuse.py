"""What a campaign simulated, kept so that another one takes its chains: other labels, masks or statistics of the same images.

A chain knows nothing of labels. What it needs to be found again in a pool, or run again, is its recipe:
the terms, the box, the atoms in it, the couplings and the length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..hamiltonian import Hamiltonian, Orbit
from ..lattice import Lattice, Supercell
from ..montecarlo.pool import Pool
from ..observation import Observation
from .parameters import Parameters

FILE = "design.json"  # in a results folder, beside pool/


@dataclass(frozen=True)
class Point:
    """One chain of every image, or of the one named: union couplings, length and seed.

    Points of one image with the same `ladder` ran together and exchanged configurations; 0 is a chain of its own.
    """

    couplings: tuple[float, ...]
    samples: int
    sweeps: float
    burn: float
    seed: int
    image: str | None = None
    ladder: int = 0


@dataclass(frozen=True)
class Box:
    """What was simulated for one image: cells along each axis, and atoms of each species."""

    shape: tuple[int, ...]
    atoms: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Simulated:
    """The chains of a campaign by their recipes, the pool that holds them, and where its posteriors were.

    `geometry` is the lattice up to its scale (:func:`geometry`), `terms` maps each coupling to a hash of what it
    counts, in the order of the features, `centres` "model, likelihood" to its couplings, mean and covariance.
    """

    lattice: str
    geometry: Sequence[Any]
    species: tuple[str, ...]
    terms: Mapping[str, str]
    boxes: Mapping[str, Box]
    points: Sequence[Point]
    centres: Mapping[str, Mapping[str, Any]]
    pool: Pool

    @classmethod
    def load(cls, folder: str | Path) -> Simulated:
        """That of a results folder.

        Raises
        ------
        InputError
            If the folder holds no finished run.
        """
        path = Path(folder) / FILE
        try:
            found = json.loads(path.read_text(encoding="utf8"))
            boxes = {name: Box(tuple(b["shape"]), tuple(b["atoms"])) for name, b in found["boxes"].items()}
            points = [Point(**{**p, "couplings": tuple(p["couplings"])}) for p in found["points"]]
            known = (found["lattice"], found["geometry"], tuple(found["species"]), dict(found["terms"]), boxes, points, found["centres"])
        except OSError as error:
            raise InputError(f"reuse: {path} cannot be read ({error.strerror}); expected the results folder of a finished run") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"reuse: {path} is no list of chains written by bayesatoms; expected the results folder of a run") from None
        return cls(*known, Pool(path.parent / "pool"))

    def save(self) -> str:
        """All but the chains as the text of a JSON file, which :meth:`load` reads beside their pool."""
        content = {
            "lattice": self.lattice, "geometry": self.geometry, "species": self.species, "terms": self.terms, "centres": self.centres,
            "boxes": {name: asdict(b) for name, b in self.boxes.items()}, "points": [asdict(p) for p in self.points],
        }  # fmt: skip
        return json.dumps(content, indent=1)

    def check(self, observations: Sequence[Observation], terms: Mapping[str, Orbit]) -> None:
        """Refuse another lattice, other species or other terms, and images none of which was simulated.

        Raises
        ------
        InputError
            Naming what was simulated and what is asked for.
        """
        first = observations[0].environments
        if self.geometry != geometry(first.lattice):
            raise InputError(f"reuse: the chains are on {self.lattice}, the images on {first.lattice!r}; expected the same lattice")
        if self.species != first.species:
            there, here = "/".join(self.species), "/".join(first.species)
            raise InputError(f"reuse: the chains are of species {there}, the images of {here}; expected the same in the same order")
        if list(self.terms) != list(terms):
            raise InputError(
                f"reuse: the chains count the terms {', '.join(self.terms)}, the models have {', '.join(terms)}; "
                "expected the same models in the same order"
            )
        other = [name for name, orbit in terms.items() if identity(orbit) != self.terms[name]]
        if other:
            raise InputError(f"reuse: {', '.join(other)} stood for another term when the chains were run; expected the same models")
        if not any(o.name in self.boxes for o in observations):
            there, here = ", ".join(self.boxes), ", ".join(o.name for o in observations)
            raise InputError(f"reuse: the chains are of images {there}, asked for are {here}; images are matched by name")

    def box(self, observation: Observation) -> tuple[Supercell, tuple[int, ...]]:
        """The box simulated for the image of that name, and its atoms.

        Raises
        ------
        InputError
            Where it does not serve: no such image, a window too wide for it, or a composition too far from it.

        Notes
        -----
        The likelihood is conditional on the composition that the window shows, so a box somewhat beside it is
        right as long as the conditioning does not extrapolate. The window's own binomial standard deviation is
        the limit: windows of the box scatter by 0.5 to 0.9 of it, and over one of it the curvature of the counts
        in the composition, 1 / n of the count, is under a tenth of their own standard deviation.
        """
        o = observation
        if o.name not in self.boxes:
            raise InputError(f"{o.name}: no image of that name was simulated")
        found, lattice = self.boxes[o.name], o.environments.lattice
        if not o.window.fits(o.environments, found.shape):
            raise InputError(f"{o.name}: its window of {o.window.extent} cells does not fit into the box of {found.shape}")
        x, n = np.array(found.atoms) / sum(found.atoms), sum(found.atoms)
        wanted = o.true_composition
        apart = np.abs(x - wanted) - 0.5 / n  # whole atoms
        if ((x > 0) != (wanted > 0)).any() or (apart > np.sqrt(wanted * (1 - wanted) / o.n)).any():
            parts = [f"{s} {b:.4f} in the box, {w:.4f} in the image" for s, b, w in zip(self.species, x, wanted, strict=True)]
            raise InputError(f"{o.name}: the composition is beyond one standard deviation of its window ({'; '.join(parts[1:])})")
        return lattice.supercell(found.shape), found.atoms

    def centre(self, model: Hamiltonian | Parameters, kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Mean and covariance of a posterior as it was left, if the model had these couplings and parameters."""
        name = model.model.name if isinstance(model, Parameters) else model.name
        found = self.centres.get(f"{name}, {kind}")
        if found is None or tuple(found["couplings"]) != tuple(model.names):
            return None
        return np.array(found["mean"], dtype=float), np.array(found["cov"], dtype=float)


def geometry(lattice: Lattice) -> list[Any]:
    """A lattice up to its scale, in plain lists.

    Examples
    --------
    >>> geometry(Lattice.square(0.3)) == geometry(Lattice.square(0.4)), geometry(Lattice.square()) == geometry(Lattice.triangular())
    (True, False)
    """
    cell = (lattice.cell / np.linalg.norm(lattice.cell[0])).round(9) + 0.0
    return [cell.tolist(), lattice.basis.round(9).tolist(), list(lattice.sublattices), list(lattice.periodic)]


def identity(orbit: Orbit) -> str:
    """Hash of what a term counts."""
    return hashlib.blake2b(repr((orbit.sites.tolist(), orbit.table.tolist(), orbit.layer)).encode(), digest_size=8).hexdigest()
