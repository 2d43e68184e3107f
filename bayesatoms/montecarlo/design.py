"""Design points, and the tasks in which their chains are run.

A design point is a complete recipe (compiled Hamiltonian, couplings, composition, ensemble, length, seed); its key
is a hash of all that and of the kernel version, and its random numbers follow from the key. What a worker gets is
a task: one or several recipes that run together. Whoever runs it, in whatever company, the chains are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..hamiltonian import Compiled
from .chains import Chain
from .engine import KERNELS, run_chain, run_chains
from .ensembles import Canonical, Ensemble
from .generic import KERNEL_VERSION
from .lanes import MOST
from .storage import Recipe
from .work import Work

_ALONE = ("code", "lanes", "generic")  # kernels whose chains do not depend on their company, the fastest first
_BOXES = 16  # compiled Hamiltonians that a worker process remembers


@dataclass(frozen=True, eq=False)
class DesignPoint:
    """Where and how long to run one chain.

    Parameters
    ----------
    compiled : Compiled
    couplings : array_like, shape (n_features,)
        kT.
    counts : tuple of int
        Atoms of each species at the start (kept, in the canonical ensemble), placed at random.
    samples : int
        Records.
    sweeps, burn : float
        Sweeps between records and before the first, as for :func:`~bayesatoms.montecarlo.engine.run_chains`.
    seed : int
    ensemble : Canonical, SemiGrand or Constrained
    kernel : str
        "code", "lanes" or "generic"; "auto" is the first of them that can run it. Ask for "lanes" where a pool has
        dozens of points of one crystal that differ in their couplings: they then run side by side.

    Raises
    ------
    InputError
        If the kernel asked for cannot run it.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> point = DesignPoint(h.compile(h.lattice.supercell((6, 6))), [0.2], (18, 18), samples=5, sweeps=1, burn=10, seed=1)
    >>> point.kernel, point.run().acceptance > 0.5
    ('code', True)
    """

    compiled: Compiled
    couplings: NDArray[np.float64]
    counts: tuple[int, ...]
    samples: int
    sweeps: float
    burn: float
    seed: int
    ensemble: Ensemble = Canonical()  # noqa: RUF009 - it holds nothing that changes
    kernel: str = "auto"
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "couplings", np.asarray(self.couplings, dtype=float).reshape(-1))
        # plain numbers, so that the key does not depend on which kind of integer or array they came as
        object.__setattr__(self, "counts", tuple(int(n) for n in self.counts))
        object.__setattr__(self, "kernel", self._chosen())
        digest = _digest(self.compiled).copy()
        _add(digest, self.couplings)
        recipe = (
            self.counts,
            int(self.samples),
            float(self.sweeps),
            float(self.burn),
            int(self.seed),
            self.ensemble.key(),
            self.kernel,
            KERNEL_VERSION,
        )
        digest.update(repr(recipe).encode())
        object.__setattr__(self, "key", digest.hexdigest())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "compiled": (_digest(self.compiled).digest(), self.compiled)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "compiled": _known(*state["compiled"])})

    def _chosen(self) -> str:
        """The kernel that runs it: part of what it is, so it does not depend on who else is asked for."""
        if self.kernel not in ("auto", *_ALONE):
            raise InputError(f"kernel {self.kernel!r} given for a design point; expected auto, {', '.join(_ALONE)}")
        work = Work(self.compiled, self.ensemble, self.samples, self.sweeps, self.burn, np.random.SeedSequence(0))
        why = {k: KERNELS[k].refuses(work, self.couplings[None]) for k in (_ALONE if self.kernel == "auto" else (self.kernel,))}
        if None not in why.values():
            raise InputError(f"the {self.kernel} kernel cannot run this: {why[self.kernel]}; ask for 'auto'")
        return next(k for k, reason in why.items() if reason is None)

    @property
    def family(self) -> str:
        """Hash of all that points which can run side by side have in common."""
        digest = _digest(self.compiled).copy()
        recipe = (self.counts, int(self.samples), float(self.sweeps), float(self.burn), self.ensemble.key(), self.kernel, KERNEL_VERSION)
        digest.update(repr(recipe).encode())
        return digest.hexdigest()

    def run(self) -> Chain:
        """Run the chain. The random numbers follow from the key, so they do not depend on who runs it."""
        return _side_by_side((self,))[0]


def _side_by_side(points: Sequence[DesignPoint]) -> list[Chain]:
    """Chains of points of one family."""
    first, atoms = points[0], np.repeat(np.arange(len(points[0].counts), dtype=np.uint8), points[0].counts)
    seeds = [np.random.SeedSequence(int(p.key, 16)).spawn(2) for p in points]
    labels = np.array([np.random.default_rng(start).permutation(atoms) for start, _ in seeds])
    return run_chains(
        first.compiled, np.array([p.couplings for p in points]), labels,
        samples=first.samples, sweeps=first.sweeps, burn=first.burn, ensemble=first.ensemble, kernel=first.kernel,
        seeds=[moves for _, moves in seeds], sites=np.random.SeedSequence(int(first.family, 16)),
    )  # fmt: skip


def _add(digest: Any, array: NDArray[Any]) -> None:
    digest.update(np.ascontiguousarray(array).tobytes() + str(array.shape).encode())


_DIGESTS: WeakKeyDictionary[Compiled, Any] = WeakKeyDictionary()
_KNOWN: dict[bytes, Compiled] = {}  # in a worker process: what came with the last tasks


def _digest(compiled: Compiled) -> Any:
    """The beginning of the key of every point of one Hamiltonian in one box; a campaign has thousands."""
    if compiled not in _DIGESTS:
        digest = hashlib.blake2b(digest_size=16)
        for array in (compiled.tables, compiled.base, compiled.start, compiled.touch, compiled.stride):
            _add(digest, array)
        _DIGESTS[compiled] = digest
    return _DIGESTS[compiled]


def _known(digest: bytes, compiled: Compiled) -> Compiled:
    """The object that an earlier task brought: kernels remember what they have worked out for it, which costs more than many a chain."""
    if digest not in _KNOWN:
        while len(_KNOWN) >= _BOXES:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[digest] = compiled
    return _KNOWN[digest]


class Task(Protocol):
    """Chains that run together in one worker: each is stored by its own recipe."""

    key: str

    @property
    def recipes(self) -> Sequence[Recipe]:
        """Of each chain."""

    def run(self) -> Any:
        """Run all of them: an object that has them as `chains`, in the order of the recipes."""


@dataclass(frozen=True)
class Chains:
    """What a task left behind that has no more to tell than its chains."""

    chains: list[Chain]


@dataclass(frozen=True, eq=False)
class Batch:
    """Design points of one family that are one task."""

    recipes: tuple[DesignPoint, ...]

    @property
    def key(self) -> str:
        return self.recipes[0].key

    def run(self) -> Chains:
        """Run their chains."""
        return Chains(_side_by_side(self.recipes))


def tasks(points: Sequence[DesignPoint]) -> list[Batch]:
    """Put design points that are to be simulated into tasks: those of the lanes kernel side by side, all others alone.

    What a chain is does not depend on the company it runs in, so this only matters for speed. A few dozen are put
    into pieces of half a kernel's width, which is nearly as fast a chain and leaves work for two.
    """
    families: dict[str, list[DesignPoint]] = {}
    for point in points:
        families.setdefault(point.family if point.kernel == "lanes" else point.key, []).append(point)
    found = []
    for members in families.values():
        width = MOST if len(members) >= 2 * MOST else MOST // 2
        found += [Batch(tuple(members[i : i + width])) for i in range(0, len(members), width)]
    return found


@dataclass(frozen=True, eq=False)
class Stretch:
    """A further stretch of a design point's chain, as long as the first: it begins where the one before it ended.

    Its random numbers are its own, so no state of a generator need be kept, and it is the same stretch however the chain
    came to be as long as it is.
    """

    point: DesignPoint
    number: int
    burn: float = 0.0
    key: str = field(init=False)

    def __post_init__(self) -> None:
        words = f"{self.point.key} stretch {self.number}".encode()
        object.__setattr__(self, "key", hashlib.blake2b(words, digest_size=16).hexdigest())

    @property
    def couplings(self) -> NDArray[np.float64]:
        return self.point.couplings

    @property
    def counts(self) -> tuple[int, ...]:
        return self.point.counts

    @property
    def samples(self) -> int:
        return self.point.samples

    @property
    def sweeps(self) -> float:
        return self.point.sweeps

    def run(self, labels: NDArray[np.uint8]) -> Chain:
        """Run it from the last snapshot (n_sites,) of the stretch before."""
        p, seed = self.point, np.random.SeedSequence(int(self.key, 16))
        length = {"samples": p.samples, "sweeps": p.sweeps, "burn": self.burn}
        return run_chain(p.compiled, p.couplings, labels, **length, seed=seed, ensemble=p.ensemble, kernel=p.kernel)


@dataclass(frozen=True, eq=False)
class Extension:
    """Stretches of one design point that are missing, one after the other; `labels` is the last snapshot of those there are."""

    recipes: tuple[DesignPoint | Stretch, ...]
    labels: NDArray[np.uint8] | None

    @property
    def key(self) -> str:
        return self.recipes[0].key

    def run(self) -> Chains:
        """Run them."""
        found: list[Chain] = []
        for recipe in self.recipes:
            labels = found[-1].snapshots[-1] if found else self.labels
            found.append(recipe.run() if isinstance(recipe, DesignPoint) else recipe.run(labels))
        return Chains(found)
