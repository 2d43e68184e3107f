"""Local environments: the centre and its shells, classified under a chosen symmetry.

A raw environment is the list of species on the centre and its neighbours, written as one number
in base k. Raw environments that a symmetry operation maps onto each other form a class; the
histogram of an image counts classes. Classes partition the raw environments, so every histogram
sums to the number of complete environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .configuration import check_species
from .errors import InputError
from .lattice import Lattice, Operation

_MOST_RAW = 2**22  # table size beyond which classification stops being sensible


class Environments:
    """The classes of local environment of a lattice.

    Parameters
    ----------
    lattice : Lattice
    species : sequence of str
        k species names.
    shells : int
        How many neighbour shells surround the centre; 1 gives the seven-site cluster of a triangular lattice.
    symmetry : {"full", "rotations", "none"} or sequence of Operation
        Which environments count as the same: all operations of the lattice, the proper ones,
        none, or a subgroup of ``lattice.operations``. Bond directions stay visible only in a group
        that does not mix them.

    Raises
    ------
    InputError
        If the number of raw environments exceeds about four million, or the symmetry is unknown.

    Notes
    -----
    Classes are ordered by site type, centre species, number of each further species among the
    neighbours, and the pairs among those by distance. For the binary triangular seven-site cluster
    this is the order of Vlcek et al., npj Comput. Mater. 7, 42 (2021): (centre, n, adjacent, next,
    opposite ring pairs), 26 classes.

    Examples
    --------
    >>> e = Environments(Lattice.triangular(), ("Mo", "Re"))
    >>> e.n_classes, e.multiplicity[:13].tolist()
    (26, [1, 6, 3, 6, 6, 2, 12, 6, 3, 6, 6, 6, 1])
    >>> e.descriptors[2].tolist(), e.names[2]
    ([0, 2, 0, 0, 1], 'Mo|2Re(0,0,1)')
    """

    def __init__(
        self,
        lattice: Lattice,
        species: Sequence[str],
        shells: int = 1,
        symmetry: str | Sequence[Operation] = "full",
    ) -> None:
        check_species(species)
        self.lattice, self.species, self.shells = lattice, tuple(species), int(shells)
        self.symmetry = symmetry if isinstance(symmetry, str) else "subgroup"
        self._operations = _group(lattice, symmetry)
        origin = (0,) * lattice.dimension
        self.templates: tuple[NDArray[np.int64], ...] = tuple(
            np.vstack([[(*origin, b)], *(lattice.shell(k, b) for k in range(1, shells + 1))]) for b in range(len(lattice.basis))
        )
        sizes = [len(species) ** len(t) for t in self.templates]
        if sum(sizes) > _MOST_RAW:
            raise InputError(f"{sum(sizes)} raw environments for {shells} shell(s) and {len(species)} species; use fewer shells")
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @cached_property
    def key(self) -> tuple:
        """What makes two classifications the same (the species by number, not by name)."""
        return (self.lattice.key, len(self.species), self.shells, self.class_of.tobytes())

    def __repr__(self) -> str:
        return f"Environments({self.lattice.name}, {'/'.join(self.species)}, {self.shells} shell(s), {self.n_classes} classes)"

    # ------------------------------------------------------------------ raw environments

    def digits(self, basis: int) -> NDArray[np.int64]:
        """Species on every site of every raw environment around basis site `basis`, shape (k^(z+1), z + 1), centre first."""
        sites = len(self.templates[basis])
        return np.arange(len(self.species) ** sites)[:, None] // self.strides(basis) % len(self.species)

    def strides(self, basis: int) -> NDArray[np.int64]:
        """Place values of the sites in the raw number."""
        return len(self.species) ** np.arange(len(self.templates[basis]))

    @cached_property
    def class_of(self) -> NDArray[np.int64]:
        """Class of each raw environment; raw environments of basis site b start at ``offsets[b]``."""
        lowest = np.arange(self.offsets[-1])
        images = [self._image(operation) for operation in self._operations]
        while True:  # one pass settles a group; more are needed only where generators were given
            before = lowest
            for image in images:
                lowest = np.minimum(lowest, lowest[image])
            if np.array_equal(lowest, before):
                break
        roots, member = np.unique(lowest, return_inverse=True)
        order = np.lexsort(np.column_stack([roots, self._describe(roots)[:, ::-1]]).T)
        rank = np.empty(len(roots), dtype=np.int64)
        rank[order] = np.arange(len(roots))
        return rank[member]

    def _image(self, operation: Operation) -> NDArray[np.int64]:
        """Raw environment onto which the operation maps each raw environment."""
        images = []
        for b, template in enumerate(self.templates):
            moved = operation(template)
            target = int(moved[0, -1])
            moved[:, :-1] -= moved[0, :-1].copy()
            place = {tuple(site): i for i, site in enumerate(self.templates[target])}
            position = [place[tuple(site)] for site in moved]
            images.append(self.offsets[target] + self.digits(b) @ self.strides(target)[position])
        return np.concatenate(images)

    def fits(self, basis: int, clusters: NDArray[np.int64]) -> list[tuple[int, tuple[int, ...]]]:
        """Every way a cluster (n, m, d + 1) lies inside the environment of a basis site: (cluster, positions of its sites)."""
        template = self.templates[basis]
        place = {tuple(site): i for i, site in enumerate(template)}
        found = []
        for number, cluster in enumerate(clusters):
            for anchor in template[template[:, -1] == cluster[0, -1]]:
                moved = cluster.copy()
                moved[:, :-1] += anchor[:-1] - cluster[0, :-1]
                positions = [place.get(tuple(site)) for site in moved]
                if None not in positions:
                    found.append((number, tuple(positions)))
        return found

    # ------------------------------------------------------------------ classes

    @property
    def n_classes(self) -> int:
        return len(self.multiplicity)

    @cached_property
    def multiplicity(self) -> NDArray[np.int64]:
        """How many raw environments each class holds."""
        return np.bincount(self.class_of)

    @cached_property
    def representatives(self) -> NDArray[np.int64]:
        """The lowest raw environment of each class."""
        return np.unique(self.class_of, return_index=True)[1]

    @cached_property
    def centre(self) -> NDArray[np.int64]:
        """Species of the centre of each class."""
        return self.descriptors[:, 0]

    @cached_property
    def descriptors(self) -> NDArray[np.int64]:
        """Per class: centre, number of each further species among the neighbours, pairs of those by distance."""
        full = self._describe(self.representatives)
        return full[:, 1:]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A short unique name a class: centre | neighbours (pairs by distance)."""
        k, texts = len(self.species), []
        for row in self.descriptors:
            ring = ",".join(f"{n}{s}" for s, n in zip(self.species[1:], row[1:k], strict=True))
            texts.append(f"{self.species[row[0]]}|{ring}({','.join(map(str, row[k:]))})")
        seen: dict[str, int] = {}
        for i, text in enumerate(texts):  # descriptors need not be complete; number what they cannot tell apart
            seen[text] = seen.get(text, 0) + 1
            if seen[text] > 1:
                texts[i] = f"{text}#{seen[text]}"
        return tuple(texts)

    def _describe(self, raw: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows (basis, centre, neighbours of each species >= 1, pairs of species >= 1 by distance)."""
        basis = np.searchsorted(self.offsets, raw, side="right") - 1
        k = len(self.species)
        rows = []
        for code, b in zip(raw, basis, strict=True):
            labels = (code - self.offsets[b]) // self.strides(b) % k
            ring = [(labels[1:][i], labels[1:][j]) for i, j in self._ring_pairs[b]]
            pairs = [
                np.count_nonzero(((one == s) & (two == t)) | ((one == t) & (two == s)))
                for s in range(1, k)
                for t in range(s, k)
                for one, two in ring
            ]
            rows.append([b, labels[0], *np.bincount(labels[1:], minlength=k)[1:], *pairs])
        return np.array(rows, dtype=np.int64)

    @cached_property
    def _ring_pairs(self) -> list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
        """Per basis site: index pairs among the neighbours, grouped by distance (the same distances for all)."""
        tables, distances = [], []
        for template in self.templates:
            places = self.lattice.positions(template[1:])
            i, j = np.triu_indices(len(places), 1)
            tables.append((i, j, np.linalg.norm(places[i] - places[j], axis=1)))
            distances.append(tables[-1][2])
        every = np.sort(np.concatenate(distances))  # equal distances differ by rounding: group them by the gaps, not by digits
        close = self.lattice.shell_distances(1)[0] * 1e-5
        every = every[np.diff(every, prepend=-1.0) > close]
        return [[(i[np.abs(apart - r) < close], j[np.abs(apart - r) < close]) for r in every] for i, j, apart in tables]

    def random_distribution(self, composition: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities of the random alloy of a composition (fractions of each species): the exact histogram of no interaction."""
        x = np.asarray(composition, dtype=float)
        if x.shape != (len(self.species),) or not (abs(x.sum() - 1) <= 1e-9 and x.min() >= 0):
            raise InputError(f"composition {x.tolist()} given; expected {len(self.species)} fractions that sum to 1")
        raw = np.concatenate([x[self.digits(b)].prod(axis=1) for b in range(len(self.templates))])
        return np.bincount(self.class_of, weights=raw) / len(self.templates)

    def average(self, raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
        """Mean of a raw-environment quantity over each class (last axis), and whether it is the same for all members."""
        total = np.apply_along_axis(lambda row: np.bincount(self.class_of, weights=row, minlength=self.n_classes), -1, raw)
        mean = total / self.multiplicity
        return mean, bool(np.allclose(mean[..., self.class_of], raw, atol=1e-12))


def _group(lattice: Lattice, symmetry: str | Sequence[Operation]) -> tuple[Operation, ...]:
    if not isinstance(symmetry, str):
        return tuple(symmetry)
    if symmetry == "full":
        return lattice.operations
    if symmetry == "rotations":
        return tuple(o for o in lattice.operations if round(np.linalg.det(o.matrix)) == 1)
    if symmetry == "none":
        return ()
    raise InputError(f"symmetry {symmetry!r} is unknown; expected 'full', 'rotations', 'none' or a list of operations")
