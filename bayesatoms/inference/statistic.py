"""The declared statistic: what of a histogram the likelihood looks at.

The gradient of the squared statistical distance along a coupling is a fixed linear contrast of the
histogram, to first order the count per environment of that coupling's term. So the statistic is
t = (count of every term of all candidate models per environment, composition): linear in the
histogram, free of a reference point, and sufficient for a whole periodic crystal.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..configuration import Configuration
from ..environments import Environments
from ..errors import InputError
from ..hamiltonian import Orbit
from ..window import Window, tally


@dataclass(frozen=True, eq=False)
class Statistic:
    """t = contrasts @ histogram; the first `n_composition` rows are the composition, on which the likelihood conditions.

    Attributes
    ----------
    contrasts : ndarray, shape (n, n_classes)
    names : tuple of str
        One a row: "x_<species>" of the centres and of each shell, then the terms kept.
    dropped : tuple of str
        Terms that add nothing to those before them: their counts are linear combinations on every
        periodic crystal.
    """

    environments: Environments
    contrasts: NDArray[np.float64]
    names: tuple[str, ...]
    n_composition: int
    dropped: tuple[str, ...]

    @classmethod
    def of_terms(cls, environments: Environments, orbits: Mapping[str, Orbit]) -> Statistic:
        """The statistic of a set of terms, dependent ones dropped in the order given.

        Raises
        ------
        InputError
            If a term does not fit into the environments: the histogram does not show it.

        Examples
        --------
        >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
        >>> from bayesatoms.lattice import Lattice
        >>> h = Hamiltonian("P", Pair("A", "B"), Pair("B", "B", name="bb"), lattice=Lattice.triangular(), species=("A", "B"))
        >>> e = Environments(h.lattice, h.species)
        >>> s = Statistic.of_terms(e, dict(zip(h.names, h.orbits)))
        >>> s.names, s.dropped    # with the composition, AB pairs determine BB pairs
        (('x_B', 'x_B shell 1', 'w1'), ('bb',))
        """
        composition, composition_names = composition_rows(environments)
        rows = {name: contrast(environments, orbit, name) for name, orbit in orbits.items()}
        random = _random_histograms(environments)
        kept, explained = [], np.vstack([np.ones(len(random)), composition @ random.T])
        for name, row in rows.items():
            values = random @ row
            rest = values - explained.T @ np.linalg.lstsq(explained.T, values, rcond=None)[0]
            if np.linalg.norm(rest) > 1e-6 * max(np.linalg.norm(values - values.mean()), 1e-12):
                kept.append(name)
                explained = np.vstack([explained, values])
        contrasts = np.vstack([composition, *(rows[n] for n in kept)])
        return cls(environments, contrasts, (*composition_names, *kept), len(composition), tuple(n for n in rows if n not in kept))

    def __call__(self, counts: ArrayLike) -> NDArray[np.float64]:
        """t of class counts (..., n_classes); shape (..., n)."""
        counts = np.asarray(counts, dtype=float)
        return counts @ self.contrasts.T / counts.sum(axis=-1, keepdims=True)

    @property
    def hash(self) -> str:
        """Identity of the statistic: evidences compare only at the same one."""
        content = repr((self.names, self.environments.species, self.environments.n_classes)).encode() + self.contrasts.round(9).tobytes()
        return hashlib.blake2b(content, digest_size=8).hexdigest()


def composition_rows(environments: Environments) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Composition of the centres and of each shell of neighbours, as contrasts, with their names.

    In a periodic crystal they are one and the same; a window's rim has neighbours that are no centres, and
    whether those are rich or poor in a species shifts every count of pairs and clusters. Conditioning on both
    leaves the counts that the couplings explain.
    """
    lattice, rows, names = environments.lattice, [], []
    counts = [[1, *(len(lattice.shell(s, b)) for s in range(1, environments.shells + 1))] for b in range(len(environments.templates))]
    for species in range(1, len(environments.species)):
        for shell in range(environments.shells + 1):
            raw = []
            for b, sizes in enumerate(counts):
                first = sum(sizes[:shell])
                raw.append((environments.digits(b)[:, first : first + sizes[shell]] == species).mean(axis=1))
            rows.append(environments.average(np.concatenate(raw))[0])
            names.append(f"x_{environments.species[species]}" + (f" shell {shell}" if shell else ""))
    # centres first: where the shells add nothing (a whole crystal) it is they that are dropped
    order = sorted(range(len(names)), key=lambda i: "shell" in names[i])
    return np.array([rows[i] for i in order]), tuple(names[i] for i in order)


def contrast(environments: Environments, orbit: Orbit, name: str) -> NDArray[np.float64]:
    """Counts of a term per environment, class by class: its mean over a histogram is the count per site of a periodic crystal.

    Clusters that contain the centre are counted, or, if the term has none, those elsewhere in the
    environment; each is shared among the environments that show it.

    Raises
    ------
    InputError
        If no environment shows a cluster of the term.
    """
    shown = [environments.fits(b, orbit.sites) for b in range(len(environments.templates))]
    with_centre = any(0 in positions for fits in shown for _, positions in fits)
    used = [[f for f in fits if not with_centre or 0 in f[1]] for fits in shown]
    seen = np.bincount([c for fits in used for c, _ in fits], minlength=len(orbit.sites))
    if (seen == 0).any():
        raise InputError(
            f"term {name}: environments of {environments.shells} shell(s) show {np.count_nonzero(seen)} of its "
            f"{len(seen)} clusters a cell; use Environments with more shells, or a smaller cluster"
        )
    raw = np.zeros(environments.offsets[-1])
    for b, fits in enumerate(used):
        digits = environments.digits(b)
        for cluster, positions in fits:
            raw[environments.offsets[b] : environments.offsets[b + 1]] += orbit.table[tuple(digits[:, list(positions)].T)] / seen[cluster]
    return environments.average(raw)[0]


def _random_histograms(environments: Environments, n: int = 120) -> NDArray[np.float64]:
    """Histograms of random periodic crystals of many compositions: linear relations among terms show in them exactly."""
    rng = np.random.default_rng(20211)  # any generic set will do: the relations hold for every crystal
    lattice, k = environments.lattice, len(environments.species)
    side = 2 * environments.shells + 3
    shape = (side,) * (lattice.dimension - 1) + (side + 1,)
    rows = None
    histograms = []
    for _ in range(n):
        c = Configuration.random(lattice, environments.species, shape, rng.dirichlet(np.full(k, 2.0)), rng)
        rows = Window.of(c).complete(environments) if rows is None else rows
        histograms.append(tally(environments, rows, c.flat.astype(np.uint8)[None])[0])
    counts = np.array(histograms, dtype=float)
    return counts / counts.sum(axis=1, keepdims=True)


def union(orbits_by_model: Mapping[str, Mapping[str, Orbit]]) -> dict[str, Orbit]:
    """All terms of all candidate models by name.

    Raises
    ------
    InputError
        If one name stands for different terms in two models.
    """
    found: dict[str, tuple[str, Orbit]] = {}
    for model, (name, orbit) in itertools.chain.from_iterable(((m, item) for item in o.items()) for m, o in orbits_by_model.items()):
        if name in found and found[name][1].key != orbit.key:
            raise InputError(
                f"coupling {name!r} means different terms in models {found[name][0]} and {model}; give one of them another name"
            )
        found.setdefault(name, (model, orbit))
    return {name: orbit for name, (_, orbit) in found.items()}
