"""The emulator: what the statistic of an image would be at any couplings, without simulating there.

`Emulator` reweights the pool of chains: exact up to Monte Carlo noise inside the pool's support. It
answers `moments`, the one thing a likelihood asks for; so does the polynomial through it of `smooth`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from ..errors import CheckError, InputError
from ..hamiltonian import Hamiltonian
from ..montecarlo.chains import Chain, judge, site_kinds
from ..montecarlo.timeseries import autocorrelation_time, equilibration
from ..observation import Observation
from ..window import Operator
from .moments import Moments, normal_log_density
from .reweighting import Reweighting
from .statistic import Statistic

SUPPORT_BAR = 0.05  # effective records in units of one chain, below which there is no answer
LOOKS = 6  # places of the window on each snapshot: their mean carries less of the window's own noise into m(w) and its slope
_FLAT = 1e-12  # smallest eigenvalue of a covariance over its largest, below which it has none
SLOW_BAR = 0.05  # share of the weight that chains out of equilibrium may carry


class AbstractEmulator(Protocol):
    """What a likelihood needs.

    `origin` are the parameters, by name, at which it knows the likelihood: the rest are 0. `near` says that they are
    a posterior's centre, and that it answers for no more than that posterior's region.
    """

    near: bool

    @property
    def origin(self) -> Mapping[str, Any]: ...

    def log_origin(self, observation: Observation | Sequence[Observation]) -> Any:
        """Log likelihood of the observed statistic there, one or stacked for several."""

    def moments(self, observation: Observation | Sequence[Observation], couplings: Mapping[str, Any]) -> Moments:
        """Moments of the statistic at couplings by name, of one image or stacked for several; differentiable by jax."""

    def statistic(self, observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
        """Its observed value."""

    def n_composition(self, observation: Observation | Sequence[Observation]) -> int:
        """How many of its leading rows are composition."""


class PartitionEmulator(Protocol):
    """What the exact likelihood needs."""

    def energy(self, observation: Observation | Sequence[Observation], couplings: Mapping[str, Any]) -> tuple[Any, Any]:
        """Couplings (..., k) and ln Z (...) of a crystal that is seen whole, or stacked for several; differentiable by jax."""

    def features(self, observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
        """Its observed features (..., k), in the same order and about the same origin as those of ln Z."""


class BatchEmulator(Protocol):
    """What answers for one image at many points; `random` (c,) are its coordinates of the random alloy."""

    @property
    def random(self) -> NDArray[np.float64]: ...

    def batch(self, couplings: NDArray[np.float64], *, histogram: bool = True) -> tuple[Moments, NDArray[np.float64]]:
        """Moments at many points of the pool's coordinates (m, ...), and their support (m,); histograms of no class where not asked for."""


@dataclass(frozen=True, eq=False)
class Records:
    """The independent records of one chain, each seen through one image's window at several places.

    counts has shape (LOOKS, n, n_classes): whole numbers, or soft counts where the image's labels are soft;
    trace (m, q) are the features of all records after the burn-in, `time` the autocorrelation time by which they were
    thinned to `features`.
    """

    couplings: NDArray[np.float64]
    features: NDArray[np.float64]
    counts: NDArray[np.int64] | NDArray[np.float64]
    slow: bool
    n_sites: int
    trace: NDArray[np.float64]
    time: float

    @classmethod
    def of(cls, chain: Chain, operator: Operator, rng: np.random.Generator) -> Records:
        """Cut the chain before equilibrium, thin it by its autocorrelation time, apply the operator."""
        kept, time = independent_records(chain.features)
        snapshots = chain.snapshots[kept]
        counts = np.stack([operator.counts(snapshots, rng) for _ in range(LOOKS)])
        slow = not judge(chain, site_kinds(operator.supercell)).ok
        return cls(chain.couplings, chain.features[kept], counts, slow, chain.n_sites, chain.features, time)


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
    shares : ndarray, shape (q,)
        Of each term's clusters in the box, how many lie wholly in the window.
    shared : int
        Images that rest on these very chains: the emulator's error is common to them.
    observed : ndarray, shape (q,), or None
        Features of the image, about those of `traces`, where it shows a whole crystal without label errors;
    log_states : float
        the logarithm of the number of configurations with its composition;
    traces : Reweighting or None
        the pool without thinning, which knows ln Z best: its records cost nothing but their features,
    time : float
        and their mean autocorrelation time.
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
    shares: NDArray[np.float64]
    shared: int = 1
    observed: NDArray[np.float64] | None = None
    log_states: float = 0.0
    traces: Reweighting | None = None
    time: float = 1.0

    @classmethod
    def build(
        cls,
        observation: Observation,
        statistic: Statistic,
        records: Sequence[Records],
        start: NDArray[np.float64] | None = None,
        *,
        shares: NDArray[np.float64] | None = None,
        shared: int = 1,
        features_seen: NDArray[np.float64] | None = None,
        rows: tuple[int, ...] | None = None,
    ) -> ImageEmulator:
        """Solve the free energies of an image's chains; `start` are those of the first of them, known from before.

        `shares` of each term's clusters lie in the window, all by default; `features_seen` are those of a crystal seen
        whole; `rows` keeps the statistic's rows of another emulator.
        """
        lengths = [len(r.features) for r in records]
        guess = None
        if start is not None:
            guess = np.concatenate([start, np.full(len(records) - len(start), start.mean())])
        features, couplings = np.concatenate([r.features for r in records]), np.array([r.couplings for r in records])
        solved = Reweighting.solve(features, couplings, lengths, start=guess)
        traces = None
        if features_seen is not None:
            # thinned free energies are the place to start from; centring on another mean shifts them along the couplings
            features = np.concatenate([r.trace for r in records])
            guess = solved.free_energies + couplings @ (solved.centre - features.mean(axis=0))
            traces = Reweighting.solve(features, couplings, [len(r.trace) for r in records], start=guess)
            features_seen = features_seen - traces.centre
        counts = np.concatenate([r.counts for r in records], axis=1)
        values = statistic(counts)
        rows = _varying(values[0]) if rows is None else rows
        values = values[..., rows]
        offset = values[0].mean(axis=0)  # second moments about a near point lose no digits
        i, j = np.triu_indices(len(rows))
        apart = values - offset
        table = np.column_stack([part.mean(axis=0) for part in (apart, apart[..., i] * apart[..., j], counts / observation.n)])
        n_composition = sum(r < statistic.n_composition for r in rows)
        slow = np.array([r.slow for r in records])
        atoms = np.round(observation.composition * records[0].n_sites)
        log_states = float(gammaln(atoms.sum() + 1) - gammaln(atoms + 1).sum())
        return cls(
            observation, solved, counts[0], values[0], table, offset, rows, n_composition, slow,
            np.ones(features.shape[1]) if shares is None else shares, shared, features_seen, log_states, traces,
            float(np.mean([r.time for r in records])),
        )  # fmt: skip

    @property
    def random(self) -> NDArray[np.float64]:
        """Union couplings (q,) of the random alloy."""
        return np.zeros(self.reweighting.features.shape[1])

    def log_z(self, couplings: Any, xp: ModuleType = np) -> Any:
        """ln Z at union couplings (..., q), for features about those of `traces`: at zero that of the number of configurations."""
        assert self.traces is not None
        logits = -(couplings @ xp.asarray(self.traces.features).T) - self.traces.log_mixture
        top = logits.max(axis=-1)
        raw = top + xp.log(xp.exp(logits - top[..., None]).sum(axis=-1))
        return raw - logsumexp(-self.traces.log_mixture) + self.log_states

    def temper(self, couplings: NDArray[np.float64]) -> float:
        """What an exact log likelihood's slope at union couplings (q,) is to be multiplied by for the emulator's own error."""
        assert self.traces is not None
        return float(1 / (1 + self.shared * self.time / self.traces.effective_records(couplings)))

    def moments(self, couplings: Any, xp: ModuleType = np) -> Moments:
        """Reweighted mean, covariance and histogram at union couplings (q,)."""
        raw = -(xp.asarray(self.reweighting.features) @ couplings) - self.reweighting.log_mixture
        weights = xp.exp(raw - raw.max())
        weights = weights / weights.sum()
        return self._from_averages(weights @ self.table, 1 / xp.sum(weights**2), xp)[0]

    def _from_averages(self, averages: Any, records: Any, xp: ModuleType = np) -> tuple[Moments, Any]:
        """Moments from averages of the table (..., columns) over so many effective records (...), and these: 0 without a covariance."""
        d = len(self.offset)
        i, j = np.triu_indices(d)
        mean = averages[..., :d]
        products = averages[..., d : d + len(i)] - mean[..., i] * mean[..., j]
        place = np.zeros((len(i), d * d))
        place[np.arange(len(i)), i * d + j] = place[np.arange(len(i)), j * d + i] = 1.0
        # the sample covariance is short by 1/n, and the emulator's own mean is off by C/n, for all images that share it at once
        inflate = (1 + self.shared / records) / xp.maximum(1 - 1 / records, 1e-9)
        cov = (products @ place).reshape(*products.shape[:-1], d, d) * inflate[..., None, None]
        # where the weights sit on a few records there is no support and no covariance: any factor will do
        cov = xp.where((records < 2 * d)[..., None, None], xp.eye(d), cov)
        try:
            lower = xp.linalg.cholesky(cov)
        except np.linalg.LinAlgError:  # of a rare species all records may show the same
            values = np.linalg.eigvalsh(cov)
            flat = values[..., 0] <= _FLAT * values[..., -1]
            lower, records = np.linalg.cholesky(np.where(flat[..., None, None], np.eye(d), cov)), np.where(flat, 0.0, records)
        return Moments(mean + self.offset, lower, averages[..., d + len(i) :]), records

    def histogram(
        self, couplings: NDArray[np.float64], keep: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean class frequencies at union couplings (m, q), and their support; `keep` leaves out snapshots (for a jackknife)."""
        table = self.table[:, -self.counts.shape[1] :]
        if keep is None:
            found, records = self.reweighting.averages(couplings, table)
            return found, records / self.reweighting.records.mean()
        weights = self.reweighting.weights(couplings) * keep
        weights /= weights.sum(axis=1, keepdims=True)
        return weights @ table, 1 / (weights**2).sum(axis=1) / self.reweighting.records.mean()

    def batch(self, couplings: NDArray[np.float64], *, histogram: bool = True) -> tuple[Moments, NDArray[np.float64]]:
        """Moments at many couplings (m, q) at once, and their support (m,); without the histogram in half the time."""
        wanted = self.table if histogram else self.table[:, : -self.counts.shape[1]]
        moments, effective = self._from_averages(*self.reweighting.averages(couplings, wanted))
        return moments, effective / self.reweighting.records.mean()

    def of_chains(self, chains: NDArray[np.intp]) -> tuple[Moments, NDArray[np.float64]]:
        """Moments of whole chains by their own records alone, and how many those are; independent of one another."""
        stops = np.cumsum(self.reweighting.records).astype(int)
        averages = np.array([self.table[stops[c] - int(self.reweighting.records[c]) : stops[c]].mean(axis=0) for c in chains])
        return self._from_averages(averages, self.reweighting.records[chains])

    def fisher(self, couplings: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fisher information of what the window shows about the union couplings: Cov(F), by the share of each term's clusters."""
        weights = self.reweighting.weights(couplings)
        apart = self.reweighting.features - weights @ self.reweighting.features
        return (apart * weights[:, None]).T @ apart * np.sqrt(np.outer(self.shares, self.shares))


def slow_weight(image: ImageEmulator, union: NDArray[np.float64]) -> float:
    """Share of the weight at union couplings (q,) carried by chains that did not equilibrate."""
    owner = np.repeat(image.slow, image.reweighting.records.astype(int))
    return float(image.reweighting.weights(union)[owner].sum())


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
    varied : dict by observation name
        Emulators that also answer for other compositions or label errors of an image, where those are parameters.
    given : bool
        Whether the window's composition is given, on which the likelihood conditions, or an outcome like the rest.
    """

    names: tuple[str, ...]
    images: Mapping[str, ImageEmulator]
    declared: Statistic
    varied: Mapping[str, BatchEmulator] = field(default_factory=dict)
    given: bool = True

    def at(self, name: str) -> BatchEmulator:
        """What answers for one image at all of its coordinates."""
        return self.varied.get(name, self.images[name])

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

    near = False

    @property
    def origin(self) -> Mapping[str, float]:
        """The random alloy."""
        return dict.fromkeys(self.names, 0.0)

    def log_origin(self, observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
        """Log likelihood of the random alloy, from the Normal law."""

        def value(o: Observation) -> NDArray[np.float64]:
            moments = self.images[o.name].moments(self.images[o.name].random)
            return np.asarray(normal_log_density(self.statistic(o), moments.mean, moments.lower, self.n_composition(o)))

        return stacked(value, observation)

    def n_composition(self, observation: Observation | Sequence[Observation]) -> int:
        """Leading rows of the statistic that are composition."""
        # a crystal that is seen whole shows its composition without error
        return common(lambda o: self.images[o.name].n_composition if self.given or o.window.whole else 0, observation)

    def energy(self, observation: Observation | Sequence[Observation], couplings: Mapping[str, Any]) -> tuple[Any, Any]:
        """Union couplings (..., q) and ln Z (...) of crystals that are seen whole; jax arrays may be passed and differentiated through."""
        import jax.numpy as jnp

        if isinstance(observation, Observation):
            w = self.vector(couplings, jnp)
            return w, self.images[observation.name].log_z(w, jnp)
        found = [self.energy(o, couplings) for o in observation]
        return tuple(jnp.stack(parts) for parts in zip(*found, strict=True))

    def features(self, observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
        """Observed features (..., q) of crystals that are seen whole, about the pool's.

        Raises
        ------
        InputError
            If an image is a window or has label errors: its features are not known.
        """

        def seen(o: Observation) -> NDArray[np.float64]:
            found = self.images[o.name].observed
            if found is None:
                raise InputError(f"{o.name} is no whole crystal without label errors: it has no exact likelihood; use the calibrated one")
            return found

        return stacked(seen, observation)

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
