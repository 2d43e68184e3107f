"""Predictive p-values: how often an image of a model lies as far from it as the observed one."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..environments import Environments
from ..hamiltonian import Hamiltonian
from .criteria import everywhere
from .distance import squared_distance
from .posterior import Result

_BLOCK = 32  # posterior draws handled at once


def simulated_p_values(
    result: Result, model: Hamiltonian, draws: NDArray[np.float64], rng: np.random.Generator, replicates: int = 10
) -> NDArray[np.float64]:
    """One p-value an image, then the total's.

    Images are simulated at posterior draws and seen through the window; each time the composition is
    estimated anew from the simulated image, as it was from the real one. For the random alloy this is
    its null distribution.

    Parameters
    ----------
    result : Result
    model : Hamiltonian
        One of the result's.
    draws : ndarray, shape (m, p)
        Of its parameters.
    rng : numpy.random.Generator
    replicates : int
        Images simulated at each draw.

    Returns
    -------
    ndarray, shape (images + 1,)

    Examples
    --------
    ``simulated_p_values(result, model, judged(result["P1"]).full[:200], np.random.default_rng(0))``.
    """
    n = np.array([o.n for o in result.observations], dtype=float)
    simulated, observed = [], []
    q = len(result.emulator.names)
    # the random alloy is the same at all its (empty) draws
    places = everywhere(result, result[model.name], draws if model.terms else draws[:1])
    for o in result.observations:
        image = result.emulator.images[o.name]
        union = places[o.name][:, :q]
        each = replicates if model.terms else replicates * len(draws)
        far, near = [], []
        for block in np.array_split(union, max(1, len(union) // _BLOCK)):
            weights = image.reweighting.weights(block)
            histogram = weights @ image.table[:, -len(o.counts) :] if model.terms else None
            cumulative = np.cumsum(weights, axis=1, out=weights)
            picks = np.stack([np.searchsorted(row, rng.random(each) * row[-1]) for row in cumulative])
            p = image.counts[picks] / o.n
            seen = composition(o.environments, p)
            far.append(squared_distance(p, re_estimated(o.environments, histogram, o.composition, seen)).reshape(-1))
            own = re_estimated(
                o.environments, histogram, o.composition, np.broadcast_to(o.composition, (len(block), 1, len(o.composition)))
            )
            near.append(np.repeat(squared_distance(o.histogram, own)[:, 0], each))
        simulated.append(np.concatenate(far))
        observed.append(np.concatenate(near))
    simulated.append(sum(w * s for w, s in zip(n, simulated, strict=True)))
    observed.append(sum(w * o for w, o in zip(n, observed, strict=True)))
    # the image itself is one of those that the model could have produced: a simulated p-value is never zero
    return np.array([(1 + (s >= o).sum()) / (1 + len(s)) for s, o in zip(simulated, observed, strict=True)])


def composition(environments: Environments, p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Composition of the centres of histograms (..., n_classes); shape (..., k).

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> e = Environments(Lattice.square(), ("A", "B"))
    >>> composition(e, e.random_distribution([0.75, 0.25])).round(6).tolist()
    [0.75, 0.25]
    """
    return np.stack([p[..., environments.centre == s].sum(axis=-1) for s in range(len(environments.species))], axis=-1)


@lru_cache(maxsize=4096)
def _random(environments: Environments, shares: tuple[float, ...]) -> NDArray[np.float64]:
    return environments.random_distribution(np.array(shares) / sum(shares))


def re_estimated(
    environments: Environments, histogram: NDArray[np.float64] | None, x: NDArray[np.float64], seen: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A model's histograms at other compositions: exact for the random alloy (None), tilted by it otherwise.

    Parameters
    ----------
    environments : Environments
    histogram : ndarray, shape (m, n_classes), or None
    x : ndarray, shape (k,)
        Composition at which they were simulated.
    seen : ndarray, shape (m, r, k)
        Those wanted, r for each.

    Returns
    -------
    ndarray, shape (m, r, n_classes)

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> e = Environments(Lattice.square(), ("A", "B"))
    >>> x, y = np.array([0.75, 0.25]), np.array([0.7, 0.3])
    >>> tilted = re_estimated(e, e.random_distribution(x)[None], x, y[None, None])[0, 0]
    >>> bool(np.allclose(tilted, e.random_distribution(y)))
    True
    """
    # compositions of hard labels are whole numbers of atoms, so few differ
    distinct, which = np.unique(seen.reshape(-1, seen.shape[-1]).round(12), axis=0, return_inverse=True)
    random = np.array([_random(environments, tuple(s)) for s in distinct])[which.reshape(seen.shape[:-1])]
    if histogram is None:
        return random
    base = environments.random_distribution(x)
    tilted = histogram[:, None] * random / np.where(base > 0, base, 1.0)
    return tilted / tilted.sum(axis=-1, keepdims=True)
