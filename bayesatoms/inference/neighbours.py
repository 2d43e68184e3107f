"""Points in groups of neighbours, and few of many that still cover them all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def tiles(points: NDArray[np.float64], most: int) -> list[NDArray[np.int64]]:
    """Points (n, k) in groups of at most `most` neighbours: halves at the median of the widest direction, again and again.

    Examples
    --------
    >>> [t.tolist() for t in tiles(np.array([[0.0], [5.0], [0.1], [5.1]]), 2)]
    [[0, 2], [1, 3]]
    """
    waiting, found = [np.arange(len(points))], []
    while waiting:
        group = waiting.pop(0)
        if len(group) <= most:
            found.append(np.sort(group))
            continue
        axis = int(np.argmax(np.ptp(points[group], axis=0)))
        order = group[np.argsort(points[group, axis], kind="stable")]
        waiting += [order[: len(order) // 2], order[len(order) // 2 :]]
    return found


def spread_out(points: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """At most so many of the points (n, k), each as far as can be from those before: a crowded middle takes only its share.

    Examples
    --------
    >>> spread_out(np.array([[0.0], [0.1], [0.2], [5.0], [9.0]]), 2).tolist()
    [2, 4]
    """
    if len(points) <= most:
        return np.arange(len(points))
    chosen = [int(np.argmin(((points - np.median(points, axis=0)) ** 2).sum(axis=1)))]
    nearest = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < most:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return np.sort(chosen)
