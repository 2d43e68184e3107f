"""Executors: run independent tasks one after another, in threads, in processes or on a dask cluster.

What to use when. Threads (the default for two workers or more) suit one machine: the kernels release the
interpreter lock, and nothing is copied. Processes cost a second to start, but each has an interpreter of its
own: for many short tasks on many cores, and where a task that dies must not take the run with it. Dask is
for several machines.

Tasks carry their own seeds: the answer depends neither on the executor nor on the number of workers, nor on
which task finishes first. Tasks are taken from their iterable as workers become free, so there may be any number of them.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Self

from ..errors import InputError, RunError

TRIES = 3  # workers that one task may take with it before it is given up
_PATIENCE = 20  # seconds within which a dask scheduler must answer
_KINDS = ("serial", "threads", "processes", "dask")


class Known(NamedTuple):
    """A task whose result is at hand: among the tasks of :meth:`Executor.run` it is handed on as it is."""

    task: Any
    result: Any


class Executor(ABC):
    """Applies a function to tasks and yields (task, result) as they finish.

    It may be used for any number of runs, one at a time; :meth:`close` it, or use it in a ``with`` statement, to let
    its workers go.

    Examples
    --------
    >>> with executor("threads", 2) as crew:
    ...     sorted(crew.run(abs, [-2, -1]))
    [(-2, 2), (-1, 1)]
    """

    @abstractmethod
    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield (task, function(task)) as they finish.

        Parameters
        ----------
        function : callable
            Of a module, where other processes are to find it.
        tasks : iterable
            Taken one by one as workers become free. A :class:`Known` is not run.

        Raises
        ------
        InputError
            If the executor is still busy with another run.
        RunError
            If workers cannot be kept alive, or one task ends three of them.
        """

    def close(self) -> None:  # noqa: B027  (not all have any)
        """Let the workers go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Serial(Executor):
    """One task after another in this thread."""

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for task in tasks:
            yield task if isinstance(task, Known) else (task, function(task))


class _Parallel(Executor):
    """Several tasks in flight, few at a time."""

    room: int
    _running = False

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        if self._running:
            raise InputError("this executor is in the middle of another run; finish or close that one, or make a second executor")
        self._running, flying = True, 0
        try:
            for task in tasks:
                if isinstance(task, Known):
                    yield task
                    continue
                done = [self._finished()] if flying >= self.room else []
                self._submit(function, task)  # before a result is handed on: no worker waits for what is made of it
                flying += 1 - len(done)
                yield from done
            while flying:
                flying -= 1
                yield self._finished()
        finally:
            self._running = False
            self._drop()

    @abstractmethod
    def _submit(self, function: Callable[[Any], Any], task: Any) -> None:
        """Begin a task, or put it into a queue."""

    @abstractmethod
    def _finished(self) -> tuple[Any, Any]:
        """Wait until some task is done: that one and its result."""

    @abstractmethod
    def _drop(self) -> None:
        """The run is over, or was stopped: forget what is still in flight."""


class Threads(_Parallel):
    """Several tasks at once in threads of this process."""

    def __init__(self, workers: int) -> None:
        self.room = 2 * workers
        self._workers = workers
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: dict[Future[Any], Any] = {}

    def _submit(self, function: Callable[[Any], Any], task: Any) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers)
        self._waiting[self._threads.submit(function, task)] = task

    def _finished(self) -> tuple[Any, Any]:
        done, _ = wait(self._waiting, return_when=FIRST_COMPLETED)
        future = done.pop()
        return self._waiting.pop(future), future.result()

    def _drop(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)  # what has not begun does not begin
        self._threads = None
        self._waiting.clear()


@dataclass(eq=False)
class _Job:
    """A task on its way, and how many workers it has taken with it."""

    function: Callable[[Any], Any]
    task: Any
    lost: int = 0


@dataclass(eq=False)
class _Worker:
    """A process, the pipe to it, what it is at, and whether it has said that it is up."""

    process: BaseProcess
    pipe: Connection
    job: _Job | None = None
    up: bool = False


class Processes(_Parallel):
    """Several tasks at once, each in a process of its own: a fresh interpreter, since jax and others keep threads that a fork would break.

    A task whose process dies (killed, out of memory) is run again, in three processes at most. A process whose
    parent is gone ends by itself.
    """

    def __init__(self, workers: int) -> None:
        self.room = 2 * workers
        self._workers = workers
        self._crew: list[_Worker] = []
        self._queue: deque[_Job] = deque()
        self._stillborn = 0

    def _submit(self, function: Callable[[Any], Any], task: Any) -> None:
        self._queue.append(_Job(function, task))
        self._feed()

    def _feed(self) -> None:
        """Work for every worker that has none, workers for work that has none."""
        for worker in [w for w in self._crew if w.up and w.job is None]:
            if not self._queue:
                return
            worker.job = self._queue.popleft()
            try:
                worker.pipe.send((worker.job.function, worker.job.task))
            except OSError:  # it died while idle
                self._lost(worker)
        starting = sum(not w.up for w in self._crew)
        for _ in range(min(self._workers - len(self._crew), len(self._queue) - starting)):
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # else its end would not be noticed
            self._crew.append(_Worker(process, ours))

    def _finished(self) -> tuple[Any, Any]:
        while True:
            [pipe, *_] = wait_for([w.pipe for w in self._crew])
            worker = next(w for w in self._crew if w.pipe is pipe)
            try:
                fine, result = worker.pipe.recv()
            except (EOFError, OSError):
                self._lost(worker)
                self._feed()
                continue
            job, worker.job, worker.up, self._stillborn = worker.job, None, True, 0
            self._feed()
            if job is None:  # it only said that it is up
                continue
            if not fine:
                raise result
            return job.task, result

    def _lost(self, worker: _Worker) -> None:
        """A process has ended: its task goes to the next one, unless it has ended too many."""
        self._crew.remove(worker)
        worker.pipe.close()
        worker.process.join()
        code, job = worker.process.exitcode or 0, worker.job
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if not worker.up:
            self._stillborn += 1
            if code > 0 or self._stillborn == TRIES:
                raise RunError(
                    f"a worker process ended {how} before it took a task; a script that uses processes must do its work under "
                    "`if __name__ == '__main__':`, since each of them imports it; else there is too little memory for another process"
                )
        if job is not None:
            job.lost += 1
            if job.lost == TRIES:
                raise RunError(
                    f"task {_name(job.task)} ended {TRIES} worker processes, the last {how}: most likely there is too little memory; "
                    "what is finished is kept, run again with fewer workers to continue"
                )
            self._queue.appendleft(job)

    def _drop(self) -> None:
        self._queue.clear()
        busy = [w for w in self._crew if w.job is not None or not w.up]
        self._crew = [w for w in self._crew if w not in busy]
        _end(busy)

    def close(self) -> None:
        """End the processes."""
        self._queue.clear()
        crew, self._crew = self._crew, []
        _end(crew)


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join()
        worker.process.close()
        worker.pipe.close()


def _work(pipe: Connection) -> None:
    """What a worker process does until its parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the whole group; the parent decides what becomes of it
    with suppress(OSError):
        pipe.send((True, None))
        while True:
            try:
                function, task = pipe.recv()
                answer = True, function(task)
            except EOFError:
                return
            except Exception as error:
                error.add_note("in a worker process:\n" + traceback.format_exc())
                answer = False, error
            try:
                pipe.send(answer)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                pipe.send((False, RuntimeError(f"the answer {answer[1]!r:.200} of a worker cannot be sent back: {error}")))


class Dask(_Parallel):
    """Tasks on a dask cluster: one on this machine, or the one whose scheduler is at an address.

    All machines need the same version of bayesatoms. Files are written by this process only. Dask runs the tasks of
    a worker that died again, as often as its own configuration says.

    Raises
    ------
    InputError
        If dask is not installed, or no scheduler answers at the address.
    """

    def __init__(self, workers: int | None = None, scheduler: str | None = None) -> None:
        try:
            import distributed
        except ImportError:
            raise InputError("executor 'dask' needs dask.distributed, which is not installed; pip install 'bayesatoms[cluster]'") from None
        self._distributed, self._cluster = distributed, None
        if scheduler is None:
            self._cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        try:
            self._client = distributed.Client(self._cluster or scheduler, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"no dask scheduler answers at {scheduler} ({error}); expected an address such as tcp://host:8786") from None
        self._waiting: dict[Any, Any] = {}
        self._asked, self._threads = 0.0, 0

    @property
    def room(self) -> int:  # type: ignore[override]
        """Two tasks a thread of the cluster; workers come and go, so it is asked every few seconds."""
        if not self._threads or time.monotonic() > self._asked + 5:
            self._asked, self._threads = time.monotonic(), sum(self._client.nthreads().values())
        return 2 * max(1, self._threads)

    def _submit(self, function: Callable[[Any], Any], task: Any) -> None:
        self._waiting[self._client.submit(function, task, pure=False)] = task

    def _finished(self) -> tuple[Any, Any]:
        task = None
        try:
            with self._client.as_current():
                done, _ = self._distributed.wait(list(self._waiting), return_when="FIRST_COMPLETED")
            future = done.pop()
            task = self._waiting.pop(future)
            return task, future.result()
        except self._distributed.KilledWorker as error:
            raise RunError(
                f"task {_name(task)} ended every dask worker that took it ({error}): most likely there is too little memory; "
                "what is finished is kept, run again to continue"
            ) from None
        except (CancelledError, OSError) as error:
            raise RunError(f"the dask scheduler is gone ({error}); what is finished is kept, run again to continue") from None

    def _drop(self) -> None:
        with suppress(Exception):  # the scheduler may be gone
            self._client.cancel(list(self._waiting))
        self._waiting.clear()

    def close(self) -> None:
        """Leave the cluster; end it if it is ours."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def cores() -> int:
    """Processor cores that this process may use.

    Examples
    --------
    >>> cores() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def executor(kind: str | int | Executor = "threads", workers: int | None = None, *, scheduler: str | None = None) -> Executor:
    """An executor by its name.

    Parameters
    ----------
    kind : str, int or Executor
        "serial", "threads", "processes" or "dask"; a number stands for that many threads, an executor for itself.
    workers : int, optional
        Tasks at once; by default one for each core that may be used.
    scheduler : str, optional
        Address of a running dask scheduler, tcp://host:8786; by default dask starts workers on this machine.

    Returns
    -------
    Executor

    Raises
    ------
    InputError
        If there is no such kind, or what it needs is missing.

    Examples
    --------
    >>> list(executor(1).run(abs, [-1, 2]))
    [(-1, 1), (2, 2)]
    >>> executor("threads", workers=2).room
    4
    """
    if isinstance(kind, Executor):
        return kind
    if isinstance(kind, int):
        return Serial() if kind <= 1 else Threads(kind)
    if kind not in _KINDS:
        raise InputError(f"executor {kind!r} is unknown; expected one of {', '.join(_KINDS)}")
    if scheduler is not None and kind != "dask":
        raise InputError(f"scheduler {scheduler} given for the executor {kind!r}; expected one for 'dask' only")
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers given; expected at least one")
    if kind == "dask":
        return Dask(workers, scheduler)
    number = workers or cores()
    return {"serial": Serial, "threads": lambda: Threads(number), "processes": lambda: Processes(number)}[kind]()


def _name(task: Any) -> str:
    """What messages call a task: the key by which it is stored, if it has one."""
    return str(getattr(task, "key", task))
