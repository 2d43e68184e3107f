"""The pool: design points, the chains run at them, and their storage.

A design point is a complete recipe (compiled Hamiltonian, couplings, composition, ensemble, length,
seed); its key is a hash of all that and of the kernel version. A finished chain is written to a
temporary file, renamed, and only then entered in the sqlite catalogue, so a run killed at any
moment loses at most the chains in flight and continues where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..hamiltonian import Compiled
from ..progress import Progress
from .chains import Chain, run_chain
from .executors import executor
from .kernels import KERNEL_VERSION


@dataclass(frozen=True, eq=False)
class DesignPoint:
    """Where and how long to run one chain.

    `counts` are the atoms of each species at the start (kept, in the canonical ensemble), placed at random.
    """

    compiled: Compiled
    couplings: NDArray[np.float64]
    counts: tuple[int, ...]
    samples: int
    sweeps: float
    burn: float
    seed: int
    potential: tuple[float, ...] | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "couplings", np.asarray(self.couplings, dtype=float).reshape(-1))
        # plain numbers, so that the key does not depend on which kind of integer or array they came as
        object.__setattr__(self, "counts", tuple(int(n) for n in self.counts))
        if self.potential is not None:
            object.__setattr__(self, "potential", tuple(float(m) for m in self.potential))
        digest = hashlib.blake2b(digest_size=16)
        c = self.compiled
        for array in (c.tables, c.base, c.start, c.touch, c.stride, self.couplings):
            digest.update(np.ascontiguousarray(array).tobytes() + str(array.shape).encode())
        recipe = (self.counts, int(self.samples), float(self.sweeps), float(self.burn), int(self.seed), self.potential, KERNEL_VERSION)
        digest.update(repr(recipe).encode())
        object.__setattr__(self, "key", digest.hexdigest())

    def run(self) -> Chain:
        """Run the chain. The random numbers follow from the key, so they do not depend on who runs it."""
        start, moves = np.random.SeedSequence(int(self.key, 16)).spawn(2)
        labels = np.random.default_rng(start).permutation(np.repeat(np.arange(len(self.counts)), self.counts))
        length = {"samples": self.samples, "sweeps": self.sweeps, "burn": self.burn}
        return run_chain(self.compiled, self.couplings, labels, **length, seed=moves, potential=self.potential)


class Recipe(Protocol):
    """What the pool must know of a chain to store it."""

    key: str
    couplings: NDArray[np.float64]
    counts: tuple[int, ...]
    samples: int
    sweeps: float
    burn: float


class Together(Protocol):
    """Chains that run as one task: each is stored by its own recipe; `run` gives an object with all of them in `chains`."""

    key: str

    @property
    def rungs(self) -> Sequence[Recipe]:
        """The recipes, in the order of the chains."""

    def run(self) -> Any:
        """Run all of them."""


class Pool:
    """Chains by the key of their design point, in memory or in a folder.

    Parameters
    ----------
    folder : path, optional
        Where to keep the chains; without it they live as long as the object.

    Raises
    ------
    InputError
        If the folder cannot be made or holds a catalogue that cannot be read.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> point = DesignPoint(h.compile(h.lattice.supercell((6, 6))), [0.2], (18, 18), samples=5, sweeps=1, burn=10, seed=1)
    >>> pool = Pool()
    >>> len(pool.run([point, point])), pool.simulated, pool.moves
    (2, 1, 270)
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.simulated = 0  # chains run by this object, not read from storage
        self.moves = 0
        self.sweeps = 0.0
        self.exchanged: dict[str, Any] = {}
        self._chains: dict[str, Chain] = {}
        if self.folder is not None:
            try:
                (self.folder / "chains").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"pool folder {self.folder} cannot be made ({error.strerror}); expected a folder one may write to"
                ) from None
            self._execute(
                "CREATE TABLE IF NOT EXISTS chains "
                "(key TEXT PRIMARY KEY, couplings TEXT, counts TEXT, samples INT, moves INT, finished REAL)"
            )

    def run(self, points: Sequence[DesignPoint], *, workers: int = 1, progress: Progress | None = None, force: bool = False) -> list[Chain]:
        """Chains of the design points in their order; only those not yet there are simulated.

        `force` simulates all of them anew.
        """
        missing = {p.key: p for p in points if force or self._find(p.key) is None}
        for done, (point, chain) in enumerate(executor(workers).run(DesignPoint.run, missing.values()), 1):
            self._keep(point, chain)
            self.simulated += 1
            self.moves += chain.moves
            self.sweeps += point.burn + point.sweeps * point.samples
            if progress is not None:
                progress("simulate", done, len(missing))
        return [self._chains[p.key] for p in points]

    def run_ladders(
        self, ladders: Sequence[Together], *, workers: int = 1, progress: Progress | None = None, force: bool = False
    ) -> list[list[Chain]]:
        """Chains of each ladder in the order of its points; a ladder of which one chain is missing is run as a whole.

        A ladder is one task of one worker. Its acceptance rates and round trips come from its own `run`, and are
        in :attr:`exchanged` by its key where this object ran it.
        """
        missing = {a.key: a for a in ladders if force or any(self._find(r.key) is None for r in a.rungs)}
        for done, (ladder, found) in enumerate(executor(workers).run(_run_together, missing.values()), 1):
            self.exchanged[ladder.key] = found
            for rung, chain in zip(ladder.rungs, found.chains, strict=True):
                self._keep(rung, chain)
                self.simulated += 1
                self.moves += chain.moves
                self.sweeps += rung.burn + rung.sweeps * rung.samples
            if progress is not None:
                progress("exchange", done, len(missing))
        return [[self._chains[r.key] for r in a.rungs] for a in ladders]

    def take(self, points: Sequence[Recipe], other: Pool) -> None:
        """Copy what another pool has of these design points and this one has not."""
        for point in points:
            if self._find(point.key) is None and (chain := other._find(point.key)) is not None:
                self._keep(point, chain)

    def __len__(self) -> int:
        return len(self._chains)

    def _find(self, key: str) -> Chain | None:
        if key not in self._chains and self.folder is not None:
            row = self._execute("SELECT key FROM chains WHERE key = ?", key)
            chain = self._read(key) if row else None
            if chain is not None:
                self._chains[key] = chain
        return self._chains.get(key)

    def _keep(self, point: Recipe, chain: Chain) -> None:
        if self.folder is not None:
            path = self._path(point.key)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                potential = np.zeros(0) if chain.potential is None else chain.potential
                np.savez(file, couplings=chain.couplings, potential=potential, packed=chain.packed, features=chain.features,
                         numbers=np.array([chain.n_sites, chain.acceptance, chain.moves]))  # fmt: skip
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            values = (point.key, repr(point.couplings.tolist()), repr(point.counts), point.samples, chain.moves, time.time())
            self._execute("INSERT OR REPLACE INTO chains VALUES (?, ?, ?, ?, ?, ?)", *values)
        self._chains[point.key] = chain

    def _read(self, key: str) -> Chain | None:
        """A stored chain, or None where its file is missing or damaged: then it is simulated again."""
        try:
            # opened here, since np.load leaves a damaged file open
            with self._path(key).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                n_sites, acceptance, moves = file["numbers"]
                potential = file["potential"] if len(file["potential"]) else None
                return Chain(file["couplings"], potential, file["packed"], file["features"], int(n_sites), float(acceptance), int(moves))
        except Exception:  # a spoilt byte makes zipfile and numpy raise nearly anything
            return None

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / "chains" / f"{key}.npz"

    def _execute(self, statement: str, *values: object) -> list[tuple]:
        assert self.folder is not None
        path = self.folder / "catalogue.sqlite"
        try:
            connection = sqlite3.connect(path, timeout=60)
            try:
                with connection:
                    return connection.execute(statement, values).fetchall()
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"pool catalogue {path} cannot be used ({error}); expected an sqlite file written by bayesatoms; move it away to start anew"
            ) from None


def _run_together(ladder: Together) -> Any:
    return ladder.run()
