"""Priors of different widths, and of different models: what an evidence owes to them.

Evidences depend on the width of a prior where the likelihood does not. So each is quoted for the
declared priors and for priors of half and double their width, and models one of which is a special
case of another are compared at the same physical scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..hamiltonian import Hamiltonian
from .densities import log_prior, unbounded
from .parameters import Parameters

PRIOR_SCALES = (0.5, 1.0, 2.0)
_MATCHED = 1.5  # ratio of widths beyond which two priors are not those of one physical scale
_GRID, _REACH = 4001, 12.0  # points along a direction, and how many widths of the inner prior they reach each way


def prior_draws(model: Hamiltonian | Parameters, n: int, rng: np.random.Generator, scale: float = 1.0) -> NDArray[np.float64]:
    """Draws of the priors; those of couplings widened by `scale` about their mean (about 0 where bounded); shape (n, p).

    Examples
    --------
    >>> from numpyro import distributions as dist
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), lattice=Lattice.square(), species=("A", "B"))
    >>> w = prior_draws(h, 4000, np.random.default_rng(0), scale=2)
    >>> w.shape, bool(abs(w.std() - 2) < 0.1)
    ((4000, 1), True)
    """
    import jax

    columns, couplings = [], model.model.names if isinstance(model, Parameters) else model.names
    for name in model.names:
        prior, widen = model.prior(name), scale if name in couplings else 1.0
        middle = float(prior.mean)
        about = middle if widen != 1 and unbounded(prior) and np.isfinite(middle) else 0.0
        value = np.asarray(prior.sample(jax.random.key(int(rng.integers(2**31))), (n,)), dtype=float)
        columns.append(about + widen * (value - about))
    return np.stack(columns, axis=1) if columns else np.zeros((n, 0))


def prior_sd(model: Hamiltonian) -> NDArray[np.float64]:
    """Standard deviation of each coupling's prior, infinite where it has none.

    Examples
    --------
    >>> from numpyro import distributions as dist
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> prior_sd(Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 2)), lattice=Lattice.square(), species=("A", "B"))).tolist()
    [2.0]
    """
    return np.array([float(np.sqrt(np.asarray(model.prior(name).variance))) for name in model.names])


def induced_widths(inner: Hamiltonian, outer: Hamiltonian, inside: NDArray[np.float64]) -> NDArray[np.float64]:
    """Width that the outer model's prior gives to each coupling of a model inside it, along the line where the two are one.

    Parameters
    ----------
    inner, outer : Hamiltonian
    inside : ndarray, shape (k_inner, k_outer)
        The inner model's couplings as the outer's (`comparison.nesting`).

    Returns
    -------
    ndarray, shape (k_inner,)
        Standard deviation of the outer prior's density along each line, normalised there (what Savage and Dickey's ratio sees).

    Examples
    --------
    A pair of coupling w is a mixed triangle of one orientation with (2 w, 2 w):

    >>> from numpyro import distributions as dist
    >>> from bayesatoms.hamiltonian import Cluster, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> metal = Lattice.triangular()
    >>> alloy = dict(lattice=metal, species=("A", "B"))
    >>> pair = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), **alloy)
    >>> sides = [Cluster(s, metal.triangle("up"), name=s, prior=dist.Normal(0, 2)) for s in ("AAB", "ABB")]
    >>> induced_widths(pair, Hamiltonian("M", *sides, **alloy), np.array([[2.0, 2.0]])).round(3).tolist()
    [0.707]
    """
    found = []
    for name, direction in zip(inner.names, inside, strict=True):
        own = inner.prior(name)
        width, middle = float(np.sqrt(np.asarray(own.variance))), float(own.mean)
        if not (np.isfinite(width) and np.isfinite(middle)):
            found.append(np.nan)
            continue
        c = middle + np.linspace(-_REACH, _REACH, _GRID) * width
        density = log_prior(outer, c[:, None] * direction)
        weight = np.exp(density - density.max()) if np.isfinite(density.max()) else np.full(len(c), np.nan)
        weight /= weight.sum()
        mean = weight @ c
        found.append(float(np.sqrt(weight @ (c - mean) ** 2)))
    return np.array(found)


def mismatched(models: Mapping[str, Hamiltonian], nested: Mapping[tuple[str, str], NDArray[np.float64]]) -> list[str]:
    """A sentence for every pair of nested models whose priors are not of one physical scale.

    Parameters
    ----------
    models : mapping of name to Hamiltonian
    nested : mapping of (inner, outer) to ndarray, shape (k_inner, k_outer)

    Examples
    --------
    >>> mismatched({}, {})
    []
    """
    found = []
    for (inner, outer), inside in nested.items():
        if not models[inner].terms:
            continue
        own, other = prior_sd(models[inner]), induced_widths(models[inner], models[outer], inside)
        for name, a, b in zip(models[inner].names, own, other, strict=True):
            if np.isfinite(a) and np.isfinite(b) and not 1 / _MATCHED < b / a < _MATCHED:
                found.append(
                    f"The priors of {inner} and {outer} are not of one physical scale: where {outer} is {inner}, its prior gives {name} "
                    f"a width of {b:.2g} kT, {inner} declares {a:.2g} kT; their evidences differ by that alone."
                )
    return found
