"""The emulator: what the statistic of an image would be at any couplings, without simulating there.

`Emulator` reweights the pool of chains: exact up to Monte Carlo noise inside the pool's support. It
answers `moments`, the one thing a likelihood asks for; so does the polynomial through it of `smooth`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckError, InputError
from ..hamiltonian import Hamiltonian
from ..montecarlo.chains import Chain, autocorrelation_time, equilibration
from ..observation import Observation
from ..window import Operator
from .reweighting import Reweighting
from .statistic import Statistic

SUPPORT_BAR = 0.05  # effective records in units of one chain, below which there is no answer
LOOKS = 6  # places of the window on each snapshot: their mean carries less of the window's own noise into m(w) and its slope
SLOW = 20  # a chain with fewer autocorrelation times than this has not equilibrated


class Moments(NamedTuple):
    """Sampling law of an image's statistic at given couplings (or at m of them, with a leading axis).

    mean (d,); lower (d, d), the Cholesky factor of its covariance, the emulator's own error included;
    histogram (n_classes,), the mean class frequencies.
    """

    mean: Any
    lower: Any
    histogram: Any


class AbstractEmulator(Protocol):
    """What a likelihood needs."""

    def moments(self, observation: Observation | Sequence[Observation], couplings: Mapping[str, Any]) -> Moments:
        """Moments of the statistic at couplings by name, of one image or stacked for several; differentiable by jax."""

    def statistic(self, observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
        """Its observed value."""

    def n_composition(self, observation: Observation | Sequence[Observation]) -> int:
        """How many of its leading rows are composition."""


@dataclass(frozen=True, eq=False)
class Records:
    """The independent records of one chain, each seen through one image's window at several places.

    counts has shape (LOOKS, n, n_classes): whole numbers, or soft counts where the image's labels are soft.
    """

    couplings: NDArray[np.float64]
    features: NDArray[np.float64]
    counts: NDArray[np.int64] | NDArray[np.float64]
    slow: bool
    n_sites: int

    @classmethod
    def of(cls, chain: Chain, operator: Operator, rng: np.random.Generator) -> Records:
        """Cut the chain before equilibrium, thin it by its autocorrelation time, apply the operator."""
        kept, time = independent_records(chain.features)
        snapshots = chain.snapshots[kept]
        counts = np.stack([operator.counts(snapshots, rng) for _ in range(LOOKS)])
        return cls(chain.couplings, chain.features[kept], counts, len(chain) < SLOW * time, chain.n_sites)


@dataclass(frozen=True, eq=False)
class ImageEmulator:
    """One image's share of the pool: reweighted snapshots seen through its window.

    Attributes
    ----------
    counts : ndarray, shape (n, n_classes)
        Of every snapshot, at the first look: images as they come.
    values : ndarray, shape (n, d)
        The statistic of those, only the rows that vary in this image.
    table : ndarray, shape (n, d + d (d + 1) / 2 + n_classes)
        What is averaged: statistic about `offset`, its products, class frequencies; mean over the looks.
    rows : tuple of int
        Which rows of the statistic those are, and
    n_composition : int
        how many of them are composition.
    slow : ndarray of bool, shape (K,)
        Chains that did not equilibrate.
    """

    observation: Observation
    reweighting: Reweighting
    counts: NDArray[np.int64] | NDArray[np.float64]
    values: NDArray[np.float64]
    table: NDArray[np.float64]
    offset: NDArray[np.float64]
    rows: tuple[int, ...]
    n_composition: int
    slow: NDArray[np.bool_]
    n_box: int

    @classmethod
    def build(
        cls, observation: Observation, statistic: Statistic, records: Sequence[Records], start: NDArray[np.float64] | None = None
    ) -> ImageEmulator:
        """Solve the free energies of an image's chains; `start` are those of the first of them, known from before."""
        lengths = [len(r.features) for r in records]
        guess = None
        if start is not None:
            guess = np.concatenate([start, np.full(len(records) - len(start), start.mean())])
        features, couplings = np.concatenate([r.features for r in records]), np.array([r.couplings for r in records])
        solved = Reweighting.solve(features, couplings, lengths, start=guess)
        counts = np.concatenate([r.counts for r in records], axis=1)
        values = statistic(counts)
        rows = _varying(values[0])
        values = values[..., rows]
        offset = values[0].mean(axis=0)  # second moments about a near point lose no digits
        i, j = np.triu_indices(len(rows))
        apart = values - offset
        table = np.column_stack([part.mean(axis=0) for part in (apart, apart[..., i] * apart[..., j], counts / observation.n)])
        n_composition = sum(r < statistic.n_composition for r in rows)
        slow = np.array([r.slow for r in records])
        return cls(observation, solved, counts[0], values[0], table, offset, rows, n_composition, slow, records[0].n_sites)

    def moments(self, couplings: Any, xp: ModuleType = np) -> Moments:
        """Reweighted mean, covariance and histogram at union couplings (q,)."""
        raw = -(xp.asarray(self.reweighting.features) @ couplings) - self.reweighting.log_mixture
        weights = xp.exp(raw - raw.max())
        weights = weights / weights.sum()
        return self._from_averages(weights @ self.table, 1 / xp.sum(weights**2), xp)

    def _from_averages(self, averages: Any, records: Any, xp: ModuleType = np) -> Moments:
        """Moments from averages of the table (..., columns) over so many effective records (...)."""
        d = len(self.offset)
        i, j = np.triu_indices(d)
        mean = averages[..., :d]
        products = averages[..., d : d + len(i)] - mean[..., i] * mean[..., j]
        place = np.zeros((len(i), d * d))
        place[np.arange(len(i)), i * d + j] = place[np.arange(len(i)), j * d + i] = 1.0
        # the sample covariance is short by 1/n, and the emulator's own mean is off by C/n
        inflate = (1 + 1 / records) / xp.maximum(1 - 1 / records, 1e-9)
        cov = (products @ place).reshape(*products.shape[:-1], d, d) * inflate[..., None, None]
        # where the weights sit on a few records there is no support and no covariance: any factor will do
        cov = xp.where((records < 2 * d)[..., None, None], xp.eye(d), cov)
        return Moments(mean + self.offset, xp.linalg.cholesky(cov), averages[..., d + len(i) :])

    def histogram(
        self, couplings: NDArray[np.float64], keep: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean class frequencies at union couplings (m, q), and their support; `keep` leaves out snapshots (for a jackknife)."""
        weights = self.reweighting.weights(couplings)
        if keep is not None:
            weights = weights * keep
            weights /= weights.sum(axis=1, keepdims=True)
        n_classes = self.counts.shape[1]
        return weights @ self.table[:, -n_classes:], 1 / (weights**2).sum(axis=1) / self.reweighting.records.mean()

    def batch(self, couplings: NDArray[np.float64]) -> tuple[Moments, NDArray[np.float64]]:
        """Moments at many couplings (m, q) at once, and their support (m,)."""
        parts, records = [], []
        for block in np.array_split(couplings, max(1, len(couplings) // 32)):
            weights = self.reweighting.weights(block)
            parts.append(weights @ self.table)
            records.append(1 / (weights**2).sum(axis=1))
        effective = np.concatenate(records)
        return self._from_averages(np.concatenate(parts), effective), effective / self.reweighting.records.mean()

    def fisher(self, couplings: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fisher information of the window's share of the crystal about the union couplings, Cov(F) n / sites."""
        weights = self.reweighting.weights(couplings)
        apart = self.reweighting.features - weights @ self.reweighting.features
        return (apart * weights[:, None]).T @ apart * self.observation.n / self.n_box


def independent_records(features: NDArray[np.float64]) -> tuple[slice, float]:
    """Which records of a chain to keep: after equilibration, thinned by the slowest feature's autocorrelation time."""
    varying = features[:, features.std(axis=0) > 0]
    if not varying.shape[1]:
        return slice(0, None), 1.0
    # directions of the features are alike; their principal one is the slowest in practice, so look at each
    cut = max(equilibration(column) for column in varying.T)
    time = max(autocorrelation_time(column[cut:]) for column in varying.T)
    return slice(cut, None, max(1, round(time))), time


def _varying(values: NDArray[np.float64]) -> tuple[int, ...]:
    """Rows of the statistic that vary in this image and are not determined by those before them."""
    apart = (values - values.mean(axis=0)) / len(values) ** 0.5
    kept: list[int] = []
    basis = np.zeros((len(values), 0))
    for r in range(values.shape[1]):
        rest = apart[:, r] - basis @ (basis.T @ apart[:, r])
        if np.linalg.norm(rest) > 1e-6 * max(np.linalg.norm(apart[:, r]), 1e-12) and np.linalg.norm(rest) > 1e-12:
            kept.append(r)
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
    return tuple(kept)


@dataclass(frozen=True, eq=False)
class Emulator:
    """The reweighted pool of all images.

    Attributes
    ----------
    names : tuple of str
        Couplings of all candidate models, the union in which the pool lives.
    images : dict of ImageEmulator by observation name
    declared : Statistic
    """

    names: tuple[str, ...]
    images: Mapping[str, ImageEmulator]
    declared: Statistic

    def vector(self, couplings: Mapping[str, Any], xp: ModuleType = np) -> Any:
        """Union couplings from a mapping by name; those of other models are zero."""
        return xp.stack([xp.asarray(couplings.get(n, 0.0), dtype=float) for n in self.names])

    def embed(self, model: Hamiltonian) -> NDArray[np.float64]:
        """Matrix (k, q) that turns a model's couplings into union couplings."""
        return np.array([[float(n == u) for u in self.names] for n in model.names]).reshape(len(model.names), len(self.names))

    def moments(self, observation: Observation | Sequence[Observation], couplings: Mapping[str, Any]) -> Moments:
        """Moments of one image's statistic, or stacked for several; jax arrays may be passed and differentiated through."""
        import jax.numpy as jnp

        if isinstance(observation, Observation):
            return self.images[observation.name].moments(self.vector(couplings, jnp), jnp)
        each = [self.moments(o, couplings) for o in observation]
        return Moments(*(jnp.stack(parts) for parts in zip(*each, strict=True)))

    def statistic(self, observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
        """The observed value of the statistic (its rows that vary in this image), stacked for several."""
        return stacked(lambda o: self.declared(o.counts)[list(self.images[o.name].rows)], observation)

    def n_composition(self, observation: Observation | Sequence[Observation]) -> int:
        """Leading rows of the statistic that are composition."""
        return common(lambda o: self.images[o.name].n_composition, observation)

    def support(self, couplings: Mapping[str, float] | NDArray[np.float64]) -> float:
        """Effective records at the couplings in units of one chain, the worst image's."""
        w = self.vector(couplings) if isinstance(couplings, Mapping) else np.asarray(couplings)
        return float(min(image.reweighting.support(w) for image in self.images.values()))

    def check_support(self, couplings: Mapping[str, float]) -> None:
        """Refuse couplings at which the pool has nothing to say.

        Raises
        ------
        CheckError
            If the support is under 5 % of a chain.
        """
        support = self.support(couplings)
        if support < SUPPORT_BAR:
            raise CheckError(
                f"the pool has no support at {dict(couplings)}: {support:.3f} of a chain, expected at least {SUPPORT_BAR}; "
                "simulate there first"
            )

    @property
    def gradient_norm(self) -> float:
        """The worst image's gradient norm of the free energies."""
        return max(image.reweighting.gradient_norm for image in self.images.values())


def stacked(value: Callable[[Observation], NDArray], observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
    """A vector of one image, or those of several on a new leading axis."""
    return value(observation) if isinstance(observation, Observation) else np.stack([value(o) for o in observation])


def common(value: Callable[[Observation], int], observation: Observation | Sequence[Observation]) -> int:
    """A number that all images must share to enter one distribution."""
    found = {value(o) for o in ([observation] if isinstance(observation, Observation) else observation)}
    if len(found) != 1:
        raise InputError(f"images with {sorted(found)} rows of composition cannot share one distribution; give each its own")
    return found.pop()
