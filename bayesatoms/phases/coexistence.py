"""Two phases side by side: where the common tangent of the free energy touches it.

At fixed composition a chain knows its chemical potential; its integral over composition is the free energy, and where that
lies above a straight line between two compositions, the alloy gains by splitting into both (Gibbs). In a box the free energy
may really lie above the line, since an interface has a price; the line is what an endless crystal does (Maxwell).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from ..errors import InputError

_FINE = 2001  # compositions at which the tangent is looked for
_VISIBLE = 3.0  # standard errors by which a free energy must lie above its tangent
_LEAST = 1e-5  # and kT a site: less is rounding


class Gap(NamedTuple):
    """Compositions of two phases that coexist, and how far the free energy rises above their tangent (kT a site)."""

    low: float
    high: float
    barrier: float


def free_energy(composition: ArrayLike, potential: ArrayLike, n_sites: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Free energy a site in kT on a fine grid of compositions, 0 at both ends but for a straight line.

    Parameters
    ----------
    composition : array_like, shape (m,)
        Rising, at least three.
    potential : array_like, shape (m,)
        Chemical potentials in kT there: see :func:`~bayesatoms.phases.insertion.chemical_potentials`.
    n_sites : int
        Of the box.

    Returns
    -------
    composition, free_energy : ndarray, shape (2001,)
        From 0 to 1. The logarithms of mixing are exact; what is left of the potential is interpolated (monotone
        cubic) and goes straight on beyond the first and last composition, flat.

    Raises
    ------
    InputError
        If there are fewer than three compositions, or they do not rise between 0 and 1.

    Examples
    --------
    A random alloy mixes: x ln x + (1 - x) ln(1 - x).

    >>> x = np.array([0.25, 0.5, 0.75])
    >>> fine, f = free_energy(x, np.log((1000 * x + 0.5) / (1000 * (1 - x) + 0.5)), 1000)
    >>> round(float(f[1000]), 6), round(float(-np.log(2)), 6)
    (-0.693147, -0.693147)
    """
    x, mu = np.asarray(composition, dtype=float), np.asarray(potential, dtype=float)
    if len(x) < 3 or (np.diff(x) <= 0).any() or x[0] <= 0 or x[-1] >= 1:
        raise InputError(f"compositions {x.tolist()} given; expected at least three, rising between 0 and 1")
    excess = mu - np.log((n_sites * x + 0.5) / (n_sites * (1 - x) + 0.5))
    fine = np.linspace(0.0, 1.0, _FINE)
    rest = PchipInterpolator(x, excess)(np.clip(fine, x[0], x[-1]))
    area = np.concatenate([[0.0], np.cumsum((rest[1:] + rest[:-1]) / 2 * np.diff(fine))])
    inside = np.clip(fine, 1e-300, 1 - 1e-16)
    return fine, inside * np.log(inside) + (1 - inside) * np.log(1 - inside) + area


def gaps(composition: ArrayLike, potential: ArrayLike, n_sites: int, error: float = 0.0) -> list[Gap]:
    """Pairs of coexisting compositions, by the common tangent of the free energy.

    Parameters
    ----------
    composition, potential, n_sites
        As for :func:`free_energy`.
    error : float
        Standard error of a potential, in kT.

    Returns
    -------
    list of Gap
        In the order of composition; empty where the free energy is convex, or would be but for errors of the potentials.

    Examples
    --------
    A regular solution ``f = x ln x + (1 - x) ln(1 - x) + 3 x (1 - x)`` splits at 0.0707 and 0.9293.

    >>> x = np.linspace(0.04, 0.96, 24)
    >>> [(round(g.low, 3), round(g.high, 3)) for g in gaps(x, np.log(x / (1 - x)) + 3 * (1 - 2 * x), 10**6)]
    [(0.071, 0.929)]
    """
    fine, f = free_energy(composition, potential, n_sites)
    hull = _lower_hull(fine, f).tolist()
    found, apart = [], float(np.diff(np.asarray(composition, dtype=float)).mean())
    for a, b in itertools.pairwise(hull):
        if b - a > 1:
            line = np.interp(fine[a : b + 1], fine[[a, b]], f[[a, b]])
            barrier = float((f[a : b + 1] - line).max())
            # of an integral over independent potentials, half way between two ends that are held (a Brownian bridge)
            noise = error * np.sqrt(apart * (fine[b] - fine[a])) / 2
            if barrier > max(_VISIBLE * noise, _LEAST):
                found.append(Gap(float(fine[a]), float(fine[b]), barrier))
    return found


@njit(nogil=True, cache=True)
def _lower_hull(x, f):
    """Numbers of the points on the lower convex hull (Andrew 1979)."""
    hull, n = np.empty(len(x), dtype=np.int64), 0
    for i in range(len(x)):
        while n > 1:
            a, b = hull[n - 2], hull[n - 1]
            if (f[b] - f[a]) * (x[i] - x[a]) <= (f[i] - f[a]) * (x[b] - x[a]):
                break
            n -= 1
        hull[n] = i
        n += 1
    return hull[:n]
