"""Statistical distance between histograms, and what the published analysis makes of it.

s = arccos(sum_i sqrt(p_i q_i)) (Wootters, Phys. Rev. D 23, 357, 1981; Vlcek et al., npj Comput.
Mater. 7, 42, 2021), computed as 2 asin(|sqrt p - sqrt q| / 2): near p = q the arccos loses eight
digits and its gradient is not finite.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..errors import InputError


def squared_distance(p: Any, q: Any, xp: ModuleType = np) -> Any:
    """Squared statistical distance s^2 of histograms along the last axis; `xp` is numpy or jax.numpy.

    Parameters
    ----------
    p, q : array_like, shape (..., n_classes)
        Frequencies that sum to 1.
    xp : module
        numpy, or jax.numpy where gradients are needed: they are finite everywhere, empty bins included.

    Returns
    -------
    array, shape (...)
        In [0, (pi / 2)^2].

    Examples
    --------
    >>> round(float(squared_distance([1.0, 0.0], [0.5, 0.5])) ** 0.5 * 4 / np.pi, 12)
    1.0
    """
    p, q = xp.asarray(p), xp.asarray(q)
    tiny = 1e-300  # the square root's gradient at an empty bin is infinite; below this the bin does not matter
    root_p = xp.where(p > tiny, xp.sqrt(xp.where(p > tiny, p, 1.0)), 0.0)
    root_q = xp.where(q > tiny, xp.sqrt(xp.where(q > tiny, q, 1.0)), 0.0)
    chord2 = xp.sum((root_p - root_q) ** 2, axis=-1)
    # (2 asin(c / 2))^2 is analytic in c^2: its series near 0 keeps the gradient finite where asin(sqrt) is not
    small = chord2 < 1e-6
    half = xp.sqrt(xp.where(small, 1e-6, xp.minimum(chord2, 2.0))) / 2
    return xp.where(small, chord2 * (1 + chord2 / 12), 4 * xp.arcsin(xp.minimum(half, 1.0)) ** 2)


def distance(p: ArrayLike, q: ArrayLike) -> NDArray[np.float64]:
    """Statistical distance s in [0, pi / 2].

    Examples
    --------
    >>> round(float(distance([1.0, 0.0], [0.0, 1.0])), 6)
    1.570796
    """
    return np.sqrt(squared_distance(p, q))


def chi_square_p_value(n: float, s2: float, classes: int, images: int = 1) -> float:
    """The published p-value: 4 N s^2 as chi-square with (classes - 1) degrees of freedom an image.

    It takes environments as independent, which they are not: quote the simulated p-value beside it.

    Examples
    --------
    >>> round(chi_square_p_value(466, 0.0325, 26), 4)
    0.0001
    """
    return float(stats.chi2.sf(4 * n * s2, images * (classes - 1)))


def published_bic(n: float, s2: float, couplings: int) -> float:
    """The published convention 2 N s^2 + (k / 2) ln N: half the usual BIC with ln L = -2 N s^2.

    Examples
    --------
    >>> round(published_bic(1835, 0.0184, 1), 1)
    71.3
    """
    return float(2 * n * s2 + couplings / 2 * np.log(n))


def smoothed(counts: ArrayLike, how: str, random: ArrayLike | None = None) -> NDArray[np.float64]:
    """Frequencies from counts under a convention for empty classes.

    Parameters
    ----------
    counts : array_like, shape (n_classes,)
    how : {"raw", "jeffreys", "random-64"}
        As they are (published); half a count a class; 64 counts of the random alloy spread over the classes.
    random : array_like, shape (n_classes,), optional
        Histogram of the random alloy, for "random-64".

    Raises
    ------
    InputError
        If the convention is unknown.
    """
    counts = np.asarray(counts, dtype=float)
    if how == "raw":
        return counts / counts.sum()
    if how == "jeffreys":
        return (counts + 0.5) / (counts + 0.5).sum()
    if how == "random-64" and random is not None:
        return (counts + 64 * np.asarray(random)) / (counts.sum() + 64)
    raise InputError(f"zero-count convention {how!r} is unknown; expected 'raw', 'jeffreys' or 'random-64' (with the random histogram)")
