"""Besag's pseudo-likelihood: couplings straight from the counts, without Monte Carlo.

The product over atoms of log p(s_i | rest, w), maximised over the couplings and one chemical
potential per image, is a multinomial logistic regression (Besag, J. R. Stat. Soc. B 36, 192, 1974).
Consistent but over-confident; here it starts the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..hamiltonian import Hamiltonian
from ..observation import Observation
from .conditionals import Conditionals, conditionals

_RIDGE = 1e-6  # keeps a direction without information finite; its sd then shows as about 1000 kT


@dataclass(frozen=True, eq=False)
class PseudoLikelihood:
    """Maximum pseudo-likelihood: couplings (k,), covariance (k, k) from the curvature, whether the conditionals were exact."""

    names: tuple[str, ...]
    couplings: NDArray[np.float64]
    covariance: NDArray[np.float64]
    exact: bool

    @property
    def sd(self) -> NDArray[np.float64]:
        return np.sqrt(np.diag(self.covariance))


def pseudo_likelihood(model: Hamiltonian, observations: Sequence[Observation]) -> PseudoLikelihood | None:
    """Maximum pseudo-likelihood of a model on all images together.

    Returns
    -------
    PseudoLikelihood or None
        None where no image shows enough of an atom's surroundings for the model's terms (counts of
        seven-site environments and second-neighbour pairs).

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> checkers = Observation.from_labels(np.indices((8, 8)).sum(0) % 2, h.lattice, h.species)
    >>> bool(pseudo_likelihood(h, [checkers]).couplings[0] < -1)    # unlike neighbours only: strongly attractive
    True
    """
    tables = [conditionals(model, o) for o in observations]
    if not model.terms or any(t is None for t in tables):
        return None
    tables = [t for t in tables if t is not None]
    k, n = len(model.species), len(model.terms)
    theta = np.zeros(n + len(tables) * (k - 1))
    value, gradient, hessian = _objective(theta, tables, n, k)
    for _ in range(100):  # damped Newton on a concave function
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step < 1e-12:
            break
        scale = 1.0
        while scale > 1e-8:
            trial = _objective(theta + scale * step, tables, n, k)
            if trial[0] > value:
                break
            scale /= 2
        else:
            break
        theta = theta + scale * step
        value, gradient, hessian = trial
    return PseudoLikelihood(model.names, theta[:n], np.linalg.inv(hessian)[:n, :n], all(t.exact for t in tables))


def _objective(theta: NDArray, tables: Sequence[Conditionals], n: int, k: int) -> tuple[float, NDArray, NDArray]:
    """Penalised log pseudo-likelihood, its gradient and minus its Hessian."""
    value, gradient, hessian = -0.5 * _RIDGE * theta @ theta, -_RIDGE * theta, _RIDGE * np.eye(len(theta))
    for image, table in enumerate(tables):
        own = slice(n + image * (k - 1), n + (image + 1) * (k - 1))
        index = np.r_[0:n, own]
        # design[row, s] are the derivatives of the logit of species s
        indicator = np.broadcast_to(np.eye(k)[:, 1:], (len(table.seen), k, k - 1))
        design = np.concatenate([-table.features, indicator], axis=2)
        value += table.weight @ table.log_probability(theta[:n], np.concatenate([[0.0], theta[own]]))
        logits = design @ theta[index]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        mean = np.einsum("rs,rsd->rd", p, design)
        gradient[index] += table.weight @ (design[np.arange(len(table.seen)), table.seen] - mean)
        second = np.einsum("r,rs,rsd,rse->de", table.weight, p, design, design) - np.einsum("r,rd,re->de", table.weight, mean, mean)
        hessian[np.ix_(index, index)] += second
    return float(value), gradient, hessian
