"""Independent pieces of one analysis, side by side in threads: nearly all of their time is spent in compiled code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def side_by_side(function: Callable[[Item], Answer], items: Iterable[Item], workers: int) -> list[Answer]:
    """Answers in the order of the items, from so many threads; each item must have its own random numbers.

    Examples
    --------
    >>> side_by_side(abs, [-3, 2], workers=2)
    [3, 2]
    """
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as crew:
        return list(crew.map(function, items))
