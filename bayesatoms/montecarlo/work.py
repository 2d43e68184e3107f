"""What chains of one call have in common, and what a kernel is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..hamiltonian import Compiled
from .chains import Chain
from .ensembles import Canonical, Constrained, Ensemble, SemiGrand
from .monomials import Expansion, expand
from .neighbourhood import Neighbourhood

LOG2E = float(np.log2(np.e))

Couplings = NDArray[np.float64]  # (chains, n_features)
Labels = NDArray[np.uint8]  # (chains, n_sites)
Seeds = Sequence[np.random.SeedSequence]

_EXPANSIONS: WeakKeyDictionary[Compiled, Expansion] = WeakKeyDictionary()
_NEIGHBOURHOODS: WeakKeyDictionary[Compiled, Neighbourhood] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Work:
    """What all chains of one call have in common. `burn` and `sweeps` are in sweeps, `sites` seeds what lanes share."""

    compiled: Compiled
    ensemble: Ensemble
    samples: int
    sweeps: float
    burn: float
    sites: np.random.SeedSequence

    @cached_property
    def expansion(self) -> Expansion:
        """The Hamiltonian as products of occupations; kept for as long as the compiled one lives."""
        if self.compiled not in _EXPANSIONS:
            _EXPANSIONS[self.compiled] = expand(self.compiled)
        return _EXPANSIONS[self.compiled]

    @cached_property
    def neighbourhood(self) -> Neighbourhood:
        """The same as neighbourhoods; kept as well."""
        if self.compiled not in _NEIGHBOURHOODS:
            _NEIGHBOURHOODS[self.compiled] = Neighbourhood.of(self.expansion, self.compiled.torus)
        return _NEIGHBOURHOODS[self.compiled]

    def moves(self, labels: NDArray[np.uint8]) -> tuple[int, int]:
        """Moves of the burn-in and between records: a canonical sweep swaps as many pairs as there are atoms but the commonest."""
        n = len(labels)
        per_sweep = n - int(np.bincount(labels).max()) if isinstance(self.ensemble, Canonical) else n
        return round(self.burn * per_sweep), max(1, round(self.sweeps * per_sweep))

    @property
    def potential(self) -> NDArray[np.float64]:
        """Chemical potentials, zero where the ensemble has none."""
        k = self.compiled.n_species
        return np.array(self.ensemble.potential) if isinstance(self.ensemble, SemiGrand) else np.zeros(k)

    @property
    def chemical(self) -> NDArray[np.float64] | None:
        """Chemical potentials, where the ensemble has them."""
        return self.potential if isinstance(self.ensemble, SemiGrand) else None

    @property
    def stiffness(self) -> float:
        """kappa of exp(-kappa (n - n_0)^2)."""
        return 0.5 / self.ensemble.spread**2 if isinstance(self.ensemble, Constrained) else 0.0


class Kernel(ABC):
    """A way to run chains. Subclasses say what they cannot do and run what they can."""

    name: str

    @abstractmethod
    def refuses(self, work: Work, couplings: NDArray[np.float64]) -> str | None:
        """Why this work at couplings (chains, n_features) is not for it, or None."""

    @abstractmethod
    def run(self, work: Work, couplings: Couplings, labels: Labels, seeds: Seeds) -> list[Chain]:
        """Chains from starts (chains, n_sites) at couplings (chains, n_features)."""
