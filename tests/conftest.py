"""What the tests share: the real data, one seed, and every kind of term on every kind of lattice.

A test takes the fixture `system` and so meets all of them; a new term or lattice is added here, once.
All randomness comes from `generator(name)`. BAYESATOMS_SEED sweeps the suite over other seeds.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from bayesatoms.hamiltonian import Cluster, Compiled, Field, Hamiltonian, Pair
from bayesatoms.lattice import Lattice, Supercell

SEED = int(os.environ.get("BAYESATOMS_SEED", "20210421"))
DATA = Path(os.environ.get("BAYESATOMS_TESTDATA", Path(__file__).parents[2] / "shared" / "data"))

# Property tests are fixed too: the same examples on every machine, none of them timed, nothing left on disk.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


def seed_of(name: str) -> np.random.SeedSequence:
    """The seed of that name: tests draw independent numbers, whatever order they run in."""
    return np.random.SeedSequence([SEED, zlib.crc32(name.encode())])


def generator(name: str) -> np.random.Generator:
    """The random numbers of that name."""
    return np.random.default_rng(seed_of(name))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; the test is skipped, with the reason, where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no shared data at {DATA}; set BAYESATOMS_TESTDATA")
    return DATA


@dataclass(frozen=True)
class System:
    """A Hamiltonian and a supercell that its whole symmetry maps onto itself; `spread` names the terms that share that symmetry."""

    hamiltonian: Hamiltonian
    shape: tuple[int, ...]
    spread: tuple[str, ...]

    @property
    def k(self) -> int:
        return len(self.hamiltonian.species)

    @cached_property
    def supercell(self) -> Supercell:
        return self.hamiltonian.lattice.supercell(self.shape)

    @cached_property
    def compiled(self) -> Compiled:
        return self.hamiltonian.compile(self.supercell)

    def labels(self, rng: np.random.Generator) -> np.ndarray:
        """Random labels, every species equally likely."""
        return rng.integers(0, self.k, self.supercell.n_sites).astype(np.uint8)


def _triangular() -> System:
    lattice = Lattice.triangular(0.316)
    up, bent, scalene = lattice.triangle("up"), [(0, 0, 0), (1, 0, 0), (2, 1, 0)], [(0, 0, 0), (1, 0, 0), (3, 1, 0)]
    terms = (
        Field("B"),
        *(Pair("A", "B", shell=s) for s in (1, 2, 3)),
        *(Pair("A", "B", direction=d) for d in range(3)),
        Cluster("AAB", up, name="up_AAB"),
        Cluster("ABB", up, name="up_ABB"),
        Cluster("ABB", lattice.triangle("down"), name="down_ABB"),
        Cluster("ABB", up, orbit="all", name="all_ABB"),
        # ends of unlike species on a bent triple: its mirror makes (A, B, B) and (B, B, A) one decoration
        Cluster("ABB", bent, name="bent"),
        Cluster("ABB", bent, orbit="all", name="all_bent"),
        # no symmetry maps this one onto itself: every decoration is its own
        Cluster("AAB", scalene, name="scalene"),
        Cluster("AAB", scalene, orbit="all", name="all_scalene"),
    )
    spread = ("h_B", "w1", "w2", "w3", "all_ABB", "all_bent", "all_scalene")
    return System(Hamiltonian("triangular", *terms, lattice=lattice, species="AB"), (6, 6), spread)


def _square() -> System:
    lattice = Lattice.square()
    corner, block = [(1, 0, 0), (0, 0, 0), (0, 1, 0)], [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
    terms = (
        Field("A"),
        *(Pair("A", "B", shell=s) for s in (1, 2, 3)),
        Pair("B", "B", name="BB"),
        *(Pair("A", "B", direction=d) for d in range(2)),
        Cluster("ABB", corner, name="corner"),
        Cluster("ABB", corner, orbit="all", name="all_corner"),
        Cluster("ABAB", block, name="chequer"),
        Cluster("AABB", block, orbit="all", name="stripe"),
    )
    spread = ("h_A", "w1", "w2", "w3", "BB", "all_corner", "chequer", "stripe")
    return System(Hamiltonian("square", *terms, lattice=lattice, species="AB"), (5, 5), spread)


def _honeycomb() -> System:
    lattice = Lattice.honeycomb(sublattices=("metal", "chalcogen"))
    ends = lattice.shell(1, 0)
    path = np.vstack([ends[0], [(0, 0, 0)], ends[1]])
    terms = (
        Field("B"),
        Field("B", sublattice="chalcogen", name="chalcogen"),
        *(Pair("A", "B", shell=s) for s in (1, 2, 3)),
        *(Pair("A", "B", direction=d) for d in range(3)),
        Cluster("AAB", path, name="path"),
        Cluster("AAB", path, orbit="all", name="all_path"),
    )
    spread = ("h_B", "chalcogen", "w1", "w2", "w3", "all_path")
    return System(Hamiltonian("honeycomb", *terms, lattice=lattice, species="AB"), (4, 4), spread)


def _cubic() -> System:
    lattice = Lattice.cubic()
    corner = [(1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 1, 0)]
    terms = (
        Field("C"),
        Pair("A", "B", shell=1),
        Pair("B", "C", shell=2),
        Pair("A", "C", shell=3),
        Cluster("ABC", corner, name="corner"),
        Cluster("ABC", corner, orbit="all", name="all_corner"),
    )
    return System(Hamiltonian("cubic", *terms, lattice=lattice, species="ABC"), (3, 3, 3), ("h_C", "w1", "w2", "w3", "all_corner"))


def _film() -> System:
    lattice, species = Lattice.cubic(0.39, film=True), ("La", "Ca", "O")
    flat, upright = [(1, 0, 0, 0), (0, 0, 0, 0), (0, 1, 0, 0)], [(1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 1, 0)]
    terms = (
        Field("O"),
        Field("Ca", layer=-1, name="surface"),
        Field("Ca", layer=0, name="bottom"),
        Pair("La", "Ca", name="bulk"),
        Pair("La", "O", layer=-1, name="in_surface"),
        Pair("Ca", "Ca", shell=2, name="diagonal"),
        *(Pair("La", "Ca", direction=d) for d in range(3)),
        Cluster(("La", "Ca", "O"), flat, name="flat"),
        Cluster(("La", "Ca", "O"), flat, orbit="all", layer=-1, name="surface_flat"),
        Cluster(("La", "Ca", "O"), upright, name="upright"),
        Cluster(("La", "Ca", "O"), upright, orbit="all", name="all_upright"),
    )
    spread = ("h_O", "surface", "bottom", "bulk", "in_surface", "diagonal", "w1_2", "surface_flat", "all_upright")
    return System(Hamiltonian("film", *terms, lattice=lattice, species=species), (4, 4, 3), spread)


SYSTEMS = {"triangular": _triangular, "square": _square, "honeycomb": _honeycomb, "cubic": _cubic, "film": _film}


@pytest.fixture(scope="session", params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> System:
    """Each lattice with every kind of term that fits it."""
    return SYSTEMS[request.param]()
