"""The pool: chains at design points, each simulated once and kept.

A finished chain is stored before anybody hears of it, so a run stopped or killed at any moment continues where it
stopped. What is stored how says :mod:`.storage`, what runs where :mod:`.executors`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from ..errors import InputError, RunError
from ..progress import Progress
from .chains import Chain, joined
from .design import Batch, Chains, DesignPoint, Extension, Stretch, Task, tasks
from .executors import Executor, Known, executor
from .generic import KERNEL_VERSION
from .storage import Folder, Memory, Recipe, Storage

_WINDOW = 256  # design points looked at together when they are put into tasks


class Pool:
    """Chains by the key of their design point, in memory or in a folder.

    Parameters
    ----------
    folder : path, optional
        Where to keep the chains, any number of them: none stays in memory. Without it they live as long as the object.
    force : bool
        Simulate anew what the folder holds already: each chain once.

    Attributes
    ----------
    simulated, moves, sweeps : number
        Chains run by this object, not read from storage; their attempted moves and their sweeps.
    exchanged : dict
        What the ladders run by this object tell beside their chains, by their keys.

    Raises
    ------
    InputError
        If the folder cannot be made or holds a catalogue that cannot be opened.
    RunError
        From every method, if the disk is full or workers die; finished chains are kept.

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

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, force: bool = False) -> None:
        self.storage: Storage = Memory() if folder is None else Folder(folder)
        self.simulated = 0
        self.moves = 0
        self.sweeps = 0.0
        self.exchanged: dict[str, Any] = {}
        self._own: set[str] | None = set() if force else None  # keys that need not be simulated anew

    def run(self, points: Sequence[DesignPoint], *, workers: int | Executor = 1, progress: Progress | None = None) -> list[Chain]:
        """Chains of the design points in their order; only those not yet there are simulated.

        Parameters
        ----------
        points : sequence of DesignPoint
        workers : int or Executor
            Threads, or another :func:`~bayesatoms.montecarlo.executors.executor`; the chains do not depend on it.
        progress : callable(stage, done, total), optional
            Counts what is missing.

        Returns
        -------
        list of Chain
        """
        distinct = {p.key: p for p in points}
        found = {p.key: chain for p, chain in self.stream(list(distinct.values()), workers=workers, progress=progress)}
        return [found[p.key] for p in points]

    def stream(
        self, points: Iterable[DesignPoint], *, workers: int | Executor = 1, progress: Progress | None = None
    ) -> Iterator[tuple[DesignPoint, Chain]]:
        """Each design point with its chain, in the order in which they are there: for more of them than fit into memory.

        Parameters
        ----------
        points : iterable of DesignPoint
            Taken a few hundred at a time.
        workers, progress
            As for :meth:`run`; the total is 0 where `points` has no length.

        Yields
        ------
        DesignPoint, Chain
            The chain is stored by then.

        Examples
        --------
        >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
        >>> from bayesatoms.lattice import Lattice
        >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
        >>> recipe = dict(compiled=h.compile(h.lattice.supercell((6, 6))), counts=(18, 18), samples=5, sweeps=1, burn=10)
        >>> points = (DesignPoint(couplings=[0.2], seed=seed, **recipe) for seed in range(1000))
        >>> sum(len(chain) for _, chain in Pool().stream(points))
        5000
        """
        flight: dict[str, list[DesignPoint]] = {}  # points that wait for one chain

        def plan() -> Iterator[Batch | Known]:
            window: list[DesignPoint] = []
            for point in points:
                if point.key in flight:
                    flight[point.key].append(point)
                elif (chain := self._find(point.key)) is not None:
                    yield Known(Batch((point,)), Chains([chain]))
                else:
                    flight[point.key] = [point]
                    window.append(point)
                if len(window) == _WINDOW:
                    yield from tasks(window)
                    window.clear()
            yield from tasks(window)

        done, total = 0, self._missing(points) if progress is not None and isinstance(points, Sized) else 0
        if progress is not None and total:
            progress("simulate", 0, total)
        with self._stored(), closing(self._execute(plan(), workers)) as items:
            for task, found, new in items:
                if new and progress is not None:
                    done += len(task.recipes)
                    progress("simulate", done, total)
                for point, chain in zip(task.recipes, found.chains, strict=True):
                    for twin in flight.pop(point.key, [point]) if new else [point]:
                        yield twin, chain

    def run_ladders(self, ladders: Sequence[Task], *, workers: int | Executor = 1, progress: Progress | None = None) -> list[list[Chain]]:
        """Chains of each ladder in the order of its points; a ladder of which one chain is missing is run as a whole.

        A ladder is one task of one worker. Its acceptance rates and round trips come from its own `run`, and are
        in :attr:`exchanged` by its key where this object ran it.
        """
        distinct = {a.key: a for a in ladders}
        plan = [a if (chains := self._all(a.recipes)) is None else Known(a, Chains(chains)) for a in distinct.values()]
        total, done, rows = sum(not isinstance(a, Known) for a in plan), 0, {}
        if progress is not None and total:
            progress("exchange", 0, total)
        with self._stored(), closing(self._execute(plan, workers)) as items:
            for ladder, found, new in items:
                rows[ladder.key] = found.chains
                if new:
                    self.exchanged[ladder.key] = replace(found, chains=[])
                    done += 1
                    if progress is not None:
                        progress("exchange", done, total)
        return [rows[a.key] for a in ladders]

    def extend(
        self, points: Sequence[DesignPoint], samples: int, *, workers: int | Executor = 1, progress: Progress | None = None
    ) -> list[Chain]:
        """Chains of the design points, continued to so many samples.

        What is stored is not simulated again: a chain grows by stretches of its own length, each of which begins where the
        one before it ended. So it is one chain without another burn-in; it begins with what :meth:`run` gives, and does
        not depend on how often, or how far, it was extended before.

        Parameters
        ----------
        points : sequence of DesignPoint
        samples : int
            Records of each chain.
        workers, progress
            As for :meth:`run`.

        Returns
        -------
        list of Chain
            Their `moves` are those of whole stretches.

        Raises
        ------
        InputError
            If there are to be no samples.

        Examples
        --------
        >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
        >>> from bayesatoms.lattice import Lattice
        >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
        >>> point = DesignPoint(h.compile(h.lattice.supercell((6, 6))), [0.2], (18, 18), samples=5, sweeps=1, burn=10, seed=1)
        >>> pool = Pool()
        >>> [short], [long] = pool.run([point]), pool.extend([point], samples=12)
        >>> len(long), bool((long.features[:5] == short.features).all()), pool.simulated
        (12, True, 3)
        """
        if samples < 1:
            raise InputError(f"{samples} samples asked for; expected at least one")
        distinct = {p.key: p for p in points}
        needed = {k: (p, *(Stretch(p, n) for n in range(1, -(-samples // p.samples)))) for k, p in distinct.items()}
        total = sum(self._missing(stretches) for stretches in needed.values())
        if progress is not None and total:
            progress("extend", 0, total)

        def plan() -> Iterator[Extension]:
            for stretches in needed.values():
                last = None
                for n, stretch in enumerate(stretches):
                    chain = self._find(stretch.key)
                    if chain is None:
                        yield Extension(stretches[n:], None if last is None else last.snapshots[-1])
                        break
                    last = chain

        done = 0
        with self._stored(), closing(self._execute(plan(), workers)) as items:
            for task, _, _ in items:
                done += len(task.recipes)
                if progress is not None:
                    progress("extend", done, max(total, done))
        return [_joined([self._get(r.key) for r in needed[p.key]], samples) for p in points]

    def take(self, points: Sequence[Recipe], other: Pool) -> None:
        """Copy what another pool has of these design points and this one has not."""
        with self._stored():
            for point in points:
                if not self._has(point.key) and (chain := other._find(point.key)) is not None:
                    self._keep(point, chain)

    def __len__(self) -> int:
        return len(self.storage)

    def _execute(self, plan: Iterable[Task | Known], workers: int | Executor) -> Iterator[tuple[Task, Any, bool]]:
        """Run tasks, store their chains, and hand each on with what it found and whether that is new."""
        with closing(executor(workers).run(partial(_run, KERNEL_VERSION), plan)) as items:
            for item in items:
                if isinstance(item, Known):
                    yield *item, False
                    continue
                task, found = item
                for recipe, chain in zip(task.recipes, found.chains, strict=True):
                    self._keep(recipe, chain)
                    self.simulated += 1
                    self.moves += chain.moves
                    self.sweeps += recipe.burn + recipe.sweeps * recipe.samples
                yield task, found, True

    @contextmanager
    def _stored(self) -> Iterator[None]:
        """However the work within ends, the catalogue knows of all that is finished, and who stopped it hears how to go on."""
        try:
            yield
        except BaseException as stopped:
            with suppress(RunError):  # the disk may be full: the catalogue is made good when it is opened again
                self.storage.flush()
            if isinstance(stopped, KeyboardInterrupt) and isinstance(self.storage, Folder):
                stopped.add_note(f"finished chains are kept in {self.storage.path}; run again to continue")
            raise
        self.storage.flush()

    def _missing(self, recipes: Iterable[Recipe]) -> int:
        """How many distinct ones are to be simulated."""
        return sum(not self._has(key) for key in {r.key for r in recipes})

    def _has(self, key: str) -> bool:
        return self._valid(key) and self.storage.has(key)

    def _find(self, key: str) -> Chain | None:
        return self.storage.get(key) if self._valid(key) else None

    def _valid(self, key: str) -> bool:
        return self._own is None or key in self._own

    def _get(self, key: str) -> Chain:
        chain = self._find(key)
        assert chain is not None
        return chain

    def _all(self, recipes: Sequence[Recipe]) -> list[Chain] | None:
        found = [self._find(r.key) for r in recipes]
        return None if any(c is None for c in found) else [c for c in found if c is not None]

    def _keep(self, recipe: Recipe, chain: Chain) -> None:
        self.storage.put(recipe, chain)
        if self._own is not None:
            self._own.add(recipe.key)


def _run(version: int, task: Task) -> Any:
    """What a worker does."""
    if version != KERNEL_VERSION:  # it would be stored as something that it is not
        raise InputError(f"a worker has kernels of version {KERNEL_VERSION}, expected {version}: install the same bayesatoms everywhere")
    return task.run()


def _joined(stretches: Sequence[Chain], samples: int) -> Chain:
    """One chain of its stretches, cut to so many records."""
    whole = joined(stretches)
    return replace(whole, packed=whole.packed[:, :samples], features=whole.features[:samples])
