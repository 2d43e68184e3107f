"""Candidates: models with their posteriors and weights, from which a phase map is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..hamiltonian import Hamiltonian

if TYPE_CHECKING:
    from ..inference.posterior import Result


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model with its posterior: `couplings` (draws, k) in kT at formation, `weight` its share of the map."""

    hamiltonian: Hamiltonian
    couplings: NDArray[np.float64]
    weight: float = 1.0

    def __post_init__(self) -> None:
        k, name = len(self.hamiltonian.names), self.hamiltonian.name
        draws = np.asarray(self.couplings, dtype=float)
        if k and (draws.ndim != 2 or draws.shape[1] != k or not len(draws) or not np.isfinite(draws).all()):
            raise InputError(f"model {name}: couplings of shape {draws.shape} given; expected finite draws (n, {k}), n >= 1")
        if not (np.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"model {name}: weight {self.weight} given; expected a number >= 0")
        object.__setattr__(self, "couplings", draws if k else np.zeros((1, 0)))


def candidates_of(result: Result, model: str = "average") -> list[Candidate]:
    """The candidates of an inference: all its models by posterior weight ("average"), or the one named.

    Raises
    ------
    InputError
        If the result has no such model.
    """
    if model != "average":
        return [Candidate(result[model].model, result[model].draws)]
    from ..inference.comparison import evidence_weights

    return [Candidate(result[name].model, result[name].draws, weight) for name, weight in evidence_weights(result).items()]
