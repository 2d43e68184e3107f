"""Lattice Hamiltonians, linear in their couplings: E(sigma) = sum_a w_a F_a(sigma).

F_a counts how often term a occurs. A term states, once per cell, the clusters of sites it looks at
and what each decoration of such a cluster counts (an `Orbit`); that single statement serves the
energy change in Monte Carlo, the reweighting, the pseudo-likelihood and the phase diagram. A new
kind of interaction is a subclass of :class:`Term` with the one method :meth:`Term.orbit`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .configuration import UNSEEN, Configuration, check_species
from .errors import InputError
from .lattice import Lattice, Operation, Supercell


@dataclass(frozen=True, eq=False)
class Orbit:
    """Clusters per cell and what their decorations count.

    `sites` has shape (n, m, d + 1): n clusters of m site references, repeated in every cell.
    `table` has shape (k,) * m: the contribution of a cluster decorated with those species.
    `layer` keeps only clusters all of whose sites lie in that layer of an open last axis.
    """

    sites: NDArray[np.int64]
    table: NDArray[np.float64]
    layer: int | None = None

    @property
    def key(self) -> tuple:
        """What makes two orbits the same count."""
        return (self.sites.shape, self.sites.tobytes(), self.table.tobytes(), self.layer)

    def instances(self, supercell: Supercell) -> NDArray[np.int64]:
        """Site numbers of every cluster that lies inside the supercell, shape (n_instances, m)."""
        rows = np.concatenate([supercell.gather(cluster) for cluster in self.sites])
        rows = rows[(rows >= 0).all(axis=1)]
        if self.layer is not None:
            depth = supercell.shape[-1]
            if supercell.lattice.periodic[-1] or not -depth <= self.layer < depth:
                raise InputError(f"layer {self.layer} does not exist; expected {-depth} to {depth - 1}, in a film whose last axis is open")
            rows = rows[(supercell.sites[rows][..., -2] == self.layer % depth).all(axis=1)]
        return rows


class Term(ABC):
    """One interaction with one coupling. Subclasses give :meth:`orbit`."""

    name: str
    prior: Any

    @abstractmethod
    def orbit(self, lattice: Lattice, species: Sequence[str]) -> Orbit:
        """The clusters this term looks at and what their decorations count."""


@dataclass(frozen=True)
class Field(Term):
    """Number of sites that carry a species: a site energy or a chemical potential.

    `sublattice` keeps sites of that name, `layer` those of one layer of a film (-1 the last).
    """

    species: str
    sublattice: str | None = None
    layer: int | None = None
    name: str | None = None
    prior: Any = None

    def __post_init__(self) -> None:
        _default_name(self, f"h_{self.species}")

    def orbit(self, lattice: Lattice, species: Sequence[str]) -> Orbit:
        if self.sublattice is not None and self.sublattice not in lattice.sublattices:
            raise InputError(
                f"field {self.name}: sublattice {self.sublattice!r} is unknown; the lattice has {sorted(set(lattice.sublattices))}"
            )
        origin = (0,) * lattice.dimension
        chosen = [b for b, s in enumerate(lattice.sublattices) if self.sublattice in (None, s)]
        sites = np.array([[(*origin, b)] for b in chosen], dtype=np.int64)
        return Orbit(sites, _indicator([(self.species,)], species, self.name), self.layer)


@dataclass(frozen=True)
class Pair(Term):
    """Number of pairs (a, b) at the distance of a shell, whichever end is which.

    `direction` keeps the bonds along one row of ``lattice.directions(shell)``; `layer` those inside one layer of a film.
    """

    a: str
    b: str
    shell: int = 1
    direction: int | None = None
    layer: int | None = None
    name: str | None = None
    prior: Any = None

    def __post_init__(self) -> None:
        along = "" if self.direction is None else f"_{self.direction}"
        _default_name(self, f"w{self.shell}{along}")

    def orbit(self, lattice: Lattice, species: Sequence[str]) -> Orbit:
        table = _indicator([(self.a, self.b), (self.b, self.a)], species, self.name)
        return Orbit(lattice.bonds(self.shell, self.direction), table, self.layer)


@dataclass(frozen=True, eq=False)
class Cluster(Term):
    """Number of clusters with a given decoration.

    `species[i]` sits on `sites[i]` (site references, (m, d + 1)). Decorations that a symmetry of the
    lattice maps onto each other while mapping the cluster onto itself count alike, so a triangle
    (Mo, Mo, Re) counts mixed triangles whichever corner the Re is on. ``orbit="one"`` takes the
    translations of the cluster as given (one triangle orientation), ``"all"`` also its images under
    the lattice's symmetry (both).
    """

    species: Sequence[str]
    sites: ArrayLike
    orbit_of: str = "one"
    layer: int | None = None
    name: str | None = None
    prior: Any = None

    def __init__(
        self,
        species: Sequence[str],
        sites: ArrayLike,
        *,
        orbit: str = "one",
        layer: int | None = None,
        name: str | None = None,
        prior: Any = None,
    ) -> None:
        fields = {
            "species": tuple(species),
            "sites": np.array(sites, dtype=np.int64),
            "orbit_of": orbit,
            "layer": layer,
            "name": name,
            "prior": prior,
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)
        _default_name(self, "c_" + "".join(self.species))
        if orbit not in ("one", "all"):
            raise InputError(f"cluster {self.name}: orbit {orbit!r} is unknown; expected 'one' or 'all'")
        if self.sites.ndim != 2 or len(self.sites) != len(self.species):
            raise InputError(
                f"cluster {self.name}: {len(self.species)} species for sites of shape {self.sites.shape}; expected one site a species"
            )
        if len({tuple(s) for s in self.sites}) != len(self.sites):
            raise InputError(f"cluster {self.name}: a site is named twice")

    def orbit(self, lattice: Lattice, species: Sequence[str]) -> Orbit:
        if self.sites.shape[1] != lattice.dimension + 1:
            raise InputError(
                f"cluster {self.name}: site references have {self.sites.shape[1]} numbers; this lattice needs {lattice.dimension + 1}"
            )
        home = _canonical(self.sites)
        decorations = {tuple(self.species[i] for i in p) for p in _stabiliser(self.sites, lattice.operations)}
        images = {home[0]: self.sites}
        if self.orbit_of == "all":
            for operation in lattice.operations:
                moved = operation(self.sites)
                images.setdefault(_canonical(moved)[0], moved)
        return Orbit(np.array(list(images.values())), _indicator(sorted(decorations), species, self.name), self.layer)


def _default_name(term: Term, name: str) -> None:
    if term.name is None:
        object.__setattr__(term, "name", name)


def _canonical(sites: NDArray[np.int64]) -> tuple[tuple, NDArray[np.intp]]:
    """A cluster up to translation, as a hashable, and the order of its sites in it."""
    order = np.lexsort(sites.T[::-1])
    moved = sites[order].copy()
    moved[:, :-1] -= moved[0, :-1].copy()
    # translation by the first site of the sorted list is not unique between basis sites, so sort once more
    again = np.lexsort(moved.T[::-1])
    return tuple(map(tuple, moved[again])), order[again]


def _stabiliser(sites: NDArray[np.int64], operations: Sequence[Operation]) -> set[tuple[int, ...]]:
    """Permutations of a cluster's sites by operations that map it onto a translation of itself."""
    home, order = _canonical(sites)
    permutations = {tuple(range(len(sites)))}
    for operation in operations:
        image, moved_order = _canonical(operation(sites))
        if image == home:
            permutation = np.empty(len(sites), dtype=int)
            permutation[order] = moved_order
            permutations.add(tuple(int(i) for i in permutation))
    return permutations


def _indicator(decorations: Sequence[Sequence[str]], species: Sequence[str], name: str | None) -> NDArray[np.float64]:
    """Table that is 1 for the listed decorations and 0 elsewhere."""
    table = np.zeros((len(species),) * len(decorations[0]))
    for decoration in decorations:
        for s in decoration:
            if s not in species:
                raise InputError(f"term {name}: species {s!r} is unknown; the Hamiltonian has {', '.join(species)}")
        table[tuple(species.index(s) for s in decoration)] = 1.0
    return table


class Hamiltonian:
    """A named sum of terms on a lattice; with no term, the random alloy.

    Parameters
    ----------
    name : str
    *terms : Term
    lattice : Lattice
    species : sequence of str

    Raises
    ------
    InputError
        If two terms share a name or a term does not fit the lattice or the species.

    Examples
    --------
    >>> h = Hamiltonian("P1", Pair("Mo", "Re", shell=1, name="w1"), lattice=Lattice.triangular(), species=("Mo", "Re"))
    >>> c = Configuration.from_labels(h.lattice, h.species, [[1, 0, 0], [0, 0, 0], [0, 0, 0]], periodic=True)
    >>> h.features(c).tolist(), h.energy(c, {"w1": -0.5})
    ([6.0], -3.0)
    """

    def __init__(self, name: str, *terms: Term, lattice: Lattice, species: Sequence[str]) -> None:
        check_species(species)
        self.name, self.terms, self.lattice, self.species = name, tuple(terms), lattice, tuple(species)
        names = [t.name for t in terms]
        if len(set(names)) != len(names):
            raise InputError(f"model {name}: two terms are called {max(names, key=names.count)!r}; give each a name of its own")
        self.orbits: tuple[Orbit, ...] = tuple(t.orbit(lattice, self.species) for t in terms)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the couplings, in order."""
        return tuple(t.name for t in self.terms)

    def __repr__(self) -> str:
        return f"Hamiltonian({self.name}: {' + '.join(self.names) or 'random'})"

    def vector(self, couplings: Mapping[str, float] | ArrayLike) -> NDArray[np.float64]:
        """Couplings as a vector in the order of :attr:`names`, from a mapping by name or an array."""
        if isinstance(couplings, Mapping):
            if set(couplings) != set(self.names):
                raise InputError(f"model {self.name}: couplings {sorted(couplings)} given; expected {sorted(self.names)}")
            return np.array([float(couplings[n]) for n in self.names])
        vector = np.asarray(couplings, dtype=float).reshape(-1)
        if len(vector) != len(self.names):
            raise InputError(f"model {self.name}: {len(vector)} couplings given; expected {len(self.names)} ({', '.join(self.names)})")
        return vector

    def features(self, configuration: Configuration) -> NDArray[np.float64]:
        """How often each term occurs, shape (n_terms,); clusters with an unseen site do not count."""
        compiled = self.compile(configuration.supercell)
        return compiled.features(configuration.flat)

    def energy(self, configuration: Configuration, couplings: Mapping[str, float] | ArrayLike) -> float:
        """Energy in the unit of the couplings (kT at formation)."""
        return float(self.vector(couplings) @ self.features(configuration))

    def compile(self, supercell: Supercell) -> Compiled:
        """The plain arrays that kernels and workers get."""
        return Compiled.build(self.orbits, supercell, len(self.species))

    def sample(self) -> dict[str, Any]:
        """Sample the couplings from their priors inside a numpyro model: one site a coupling, by name."""
        import numpyro

        return {t.name: numpyro.sample(t.name, self.prior(t.name)) for t in self.terms}

    def prior(self, name: str) -> Any:
        """The prior of a coupling, a numpyro distribution.

        Raises
        ------
        InputError
            If the term was declared without one.
        """
        prior = self.terms[self.names.index(name)].prior
        if prior is None:
            raise InputError(
                f"model {self.name}: coupling {name} has no prior; declare the term with prior=dist.Normal(0, 1) "
                "or another numpyro distribution"
            )
        return prior


@dataclass(frozen=True, eq=False)
class Compiled:
    """A Hamiltonian on one supercell, as plain arrays (all any kernel or worker ever sees).

    Clusters ("instances") are numbered through; the decoration of instance i is a number in base k
    and ``tables[base[i] + decoration]`` is its contribution to every feature. Clusters on the same
    sites are merged, so terms that differ only in decoration cost one look-up.
    ``touch[start[s]:start[s + 1]]`` are the instances of site s and ``stride`` the place values there.
    """

    n_species: int
    n_sites: int
    tables: NDArray[np.float64]  # (codes, features)
    base: NDArray[np.int64]  # (instances,)
    start: NDArray[np.int64]  # (sites + 1,)
    touch: NDArray[np.int64]
    stride: NDArray[np.int64]
    members: tuple[NDArray[np.int64], ...]  # per group, (instances, m) site numbers
    groups: NDArray[np.int64]  # per group: first instance, base
    torus: tuple[int, ...] | None = None  # cells along each axis, where every site is a translation of every other

    @classmethod
    def build(cls, orbits: Sequence[Orbit], supercell: Supercell, n_species: int) -> Compiled:
        """Compile orbits into arrays; raises InputError where a cluster meets its own periodic image."""
        merged: dict[tuple, list[int]] = {}
        for number, orbit in enumerate(orbits):
            merged.setdefault((orbit.sites.tobytes(), orbit.sites.shape, orbit.layer), []).append(number)
        tables, members, bases, firsts = [], [], [], []
        base = first = 0
        for numbers in merged.values():
            rows = orbits[numbers[0]].instances(supercell)
            if any((rows[:, i] == rows[:, j]).any() for i, j in itertools.combinations(range(rows.shape[1]), 2)):
                raise InputError(f"supercell {supercell.shape} is too small: a cluster meets its own periodic image")
            codes = n_species ** rows.shape[1]
            table = np.zeros((codes, len(orbits)))
            for number in numbers:
                table[:, number] = orbits[number].table.reshape(-1, order="F")
            tables.append(table)
            members.append(rows)
            bases.append(base)
            firsts.append(first)
            base, first = base + codes, first + len(rows)
        torus = supercell.shape if all(supercell.periodic) and len(supercell.lattice.basis) == 1 else None
        return cls._index(supercell.n_sites, n_species, tables, members, bases, firsts, len(orbits), torus)

    @classmethod
    def _index(cls, n_sites, n_species, tables, members, bases, firsts, n_features, torus) -> Compiled:
        sites = np.concatenate([m.reshape(-1) for m in members]) if members else np.zeros(0, dtype=np.int64)
        instance = [first + np.repeat(np.arange(len(m)), m.shape[1]) for m, first in zip(members, firsts, strict=True)]
        stride = [np.tile(n_species ** np.arange(m.shape[1]), len(m)) for m in members]
        order = np.argsort(sites, kind="stable")
        return cls(
            n_species=n_species,
            n_sites=n_sites,
            tables=np.concatenate(tables) if tables else np.zeros((0, n_features)),
            base=np.concatenate([np.full(len(m), b) for m, b in zip(members, bases, strict=True)])
            if members
            else np.zeros(0, dtype=np.int64),
            start=np.concatenate([[0], np.cumsum(np.bincount(sites, minlength=n_sites))]).astype(np.int64),
            touch=(np.concatenate(instance) if instance else np.zeros(0, dtype=np.int64))[order].astype(np.int64),
            stride=(np.concatenate(stride) if stride else np.zeros(0, dtype=np.int64))[order].astype(np.int64),
            members=tuple(members),
            groups=np.array(list(zip(firsts, bases, strict=True)), dtype=np.int64).reshape(-1, 2),
            torus=torus,
        )

    @property
    def n_features(self) -> int:
        return self.tables.shape[1]

    def codes(self, labels: NDArray[np.integer]) -> NDArray[np.int64]:
        """Decoration number of every instance (all sites must carry a species)."""
        parts = [labels[m].astype(np.int64) @ self.n_species ** np.arange(m.shape[1]) for m in self.members]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def features(self, labels: NDArray[np.integer]) -> NDArray[np.float64]:
        """Features of one configuration, shape (n_features,); instances with an unseen site are left out."""
        total = np.zeros(self.n_features)
        for rows, (_, base) in zip(self.members, self.groups, strict=True):
            decorated = labels[rows].astype(np.int64)
            decorated = decorated[(decorated != UNSEEN).all(axis=1)]
            code = decorated @ self.n_species ** np.arange(rows.shape[1])
            counts = np.bincount(code, minlength=self.n_species ** rows.shape[1])
            total += counts @ self.tables[base : base + len(counts)]
        return total
