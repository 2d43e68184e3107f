"""Response: what is seen of an atom, given its species; wrong labels and soft labels alike.

An atom of species s gives one of m outcomes, and an outcome is a vector of probabilities over the
species. Hard labels with errors have the unit vectors as outcomes. Soft labels have the vectors that
the image itself shows, each as likely as it was in the image given that species.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError

_NEGLIGIBLE = 1e-3  # a species less probable than this on a site is not reckoned with there


@dataclass(frozen=True, eq=False)
class Response:
    """What may be seen of an atom, and how likely it is for each species.

    Parameters
    ----------
    vectors : ndarray, shape (m, k)
        The outcomes: probabilities over the species, every row sums to 1.
    given : ndarray, shape (k, m)
        Row = true species, column = probability of that outcome; every row sums to 1.

    Examples
    --------
    >>> r = Response.of_soft([[1, 0], [0.8, 0.2], [0.2, 0.8], [0, 1]])
    >>> r.given.round(2).tolist()       # both certain labels, then the uncertain ones
    [[0.5, 0.0, 0.4, 0.1], [0.0, 0.5, 0.1, 0.4]]
    >>> r.label_error.round(2).tolist()
    [[0.84, 0.16], [0.16, 0.84]]
    """

    vectors: NDArray[np.float64]
    given: NDArray[np.float64]

    @classmethod
    def of_errors(cls, matrix: ArrayLike | None, k: int) -> Response:
        """Hard labels of k species with a label-error matrix; None stands for no errors."""
        return cls(np.eye(k), check_label_error(matrix, k))

    @classmethod
    def of_soft(cls, probabilities: ArrayLike) -> Response:
        """What soft labels (n, k) of an image say about how its atoms look.

        Every label counts for a species as much as its probability: outcome m has the probability
        p_m(s) / sum_m' p_m'(s) given s. That is right for posterior probabilities whose prior was the
        image's own composition. Certain labels are merged, the others are an outcome each.
        """
        p = settled(probabilities)
        k, certain = p.shape[1], p.max(axis=1) == 1
        vectors = np.vstack([np.eye(k), p[~certain]])
        weight = np.vstack([np.diag(p[certain].sum(axis=0)), p[~certain]])
        # of a species that nobody saw nothing is known: it would be recognised
        weight[np.diag_indices(k)] += weight.sum(axis=0) == 0
        return cls(vectors, (weight / weight.sum(axis=0)).T)

    @property
    def label_error(self) -> NDArray[np.float64]:
        """Expected soft label of each true species, (k, k): the label-error matrix where labels are hard."""
        return self.given @ self.vectors

    @cached_property
    def crisp(self) -> bool:
        """Whether the outcomes are the species themselves: hard labels."""
        return np.array_equal(self.vectors, np.eye(self.vectors.shape[1]))

    @cached_property
    def exact(self) -> bool:
        """Whether every species is seen as what it is."""
        return self.crisp and np.array_equal(self.given, self.vectors)


def settled(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Probabilities (n, k) without the species of less than 1 in 1000 on a site; a label that is left with one species is certain.

    Examples
    --------
    >>> settled([[0.9995, 0.0005], [0.75, 0.25]]).tolist()
    [[1.0, 0.0], [0.75, 0.25]]
    """
    p = np.asarray(probabilities, dtype=float)
    p = np.where(p >= _NEGLIGIBLE, p, 0.0)
    return p / p.sum(axis=1, keepdims=True)


def check_label_error(matrix: ArrayLike | None, k: int) -> NDArray[np.float64]:
    """The k x k label-error matrix, the identity for None; InputError unless its rows are probabilities and it can be undone."""
    if matrix is None:
        return np.eye(k)
    error = np.asarray(matrix, dtype=float)
    if error.shape != (k, k) or not (error.min() >= 0 and np.abs(error.sum(axis=1) - 1).max() <= 1e-6):
        raise InputError(f"label_error is {error.tolist()}; expected {k} x {k}, row = true species, every row probabilities that sum to 1")
    if abs(np.linalg.det(error)) < 1e-3:
        raise InputError(f"label_error {error.tolist()} says that labels carry no information; nothing can be inferred from this image")
    return error


def check_probabilities(probabilities: ArrayLike, n: int, k: int) -> NDArray[np.float64]:
    """Soft labels of n sites, (n, k); InputError unless every row holds probabilities that sum to 1."""
    try:
        p = np.asarray(probabilities, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"probabilities are no array of numbers; expected {n} seen sites x {k} species") from None
    if p.shape != (n, k):
        raise InputError(f"probabilities have shape {p.shape}; expected {n} seen sites x {k} species")
    wrong = np.flatnonzero(~((p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) <= 1e-6)))
    if len(wrong):
        raise InputError(f"probabilities of seen site {wrong[0]} are {p[wrong[0]].tolist()}; expected numbers >= 0 that sum to 1")
    return p
