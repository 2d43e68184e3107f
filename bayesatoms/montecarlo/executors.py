"""Executors: run independent tasks, in order, on one thread or on several.

The kernels release the interpreter lock, so threads are enough on one machine. Tasks carry their
own seeds: the answer does not depend on how many workers there are or which finishes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Executor(Protocol):
    """Something that applies a function to tasks and yields (task, result) as they finish."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Yield (task, function(task)) as they finish."""


class Serial:
    """One task after another in this thread."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        for task in tasks:
            yield task, function(task)


class Threads:
    """Several tasks at once in threads of this process; few are in flight, however many there are."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        threads = ThreadPoolExecutor(self.workers)
        waiting: dict[Future[Result], Task] = {}
        try:
            for task in tasks:
                waiting[threads.submit(function, task)] = task
                if len(waiting) >= 2 * self.workers:
                    yield from self._finished(waiting)
            while waiting:
                yield from self._finished(waiting)
        finally:  # stopped early: what has not begun is dropped
            threads.shutdown(cancel_futures=True)

    @staticmethod
    def _finished(waiting: dict[Future[Result], Task]) -> Iterator[tuple[Task, Result]]:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield waiting.pop(future), future.result()


def executor(workers: int) -> Executor:
    """The executor for a number of workers."""
    return Serial() if workers <= 1 else Threads(workers)
