"""The likelihoods, as numpyro distributions that any model may use.

`CalibratedDistance` (the default) is the statistical distance measured in the metric of whole
images: the score of the declared statistic t, with simulated mean and covariance and conditional on the
window's composition, integrated over the couplings (:mod:`bayesatoms.inference.quasi`). Near its greatest
value it is -D^2 / 2, and D^2 is 4 N s^2 where environments are independent.

`IndependentDistance` is the published exp(-2 N s^2): a baseline that takes overlapping environments
for independent ones and is therefore too sure, by a factor of about two in the standard deviation.

`ExactLikelihood` is the probability of the configuration itself, exp(-w . F) / Z(w) with Z from the
reweighted pool: only where a whole periodic crystal is seen without label errors, a simulation mostly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ..observation import Observation
from .distance import squared_distance
from .emulator import AbstractEmulator, PartitionEmulator
from .moments import Moments
from .quasi import NEAR_NODES, NODES, bounded, natural


def independent_log_density(observed: Any, predicted: Any, n: int, xp: ModuleType = np) -> Any:
    """-2 N s^2 of histograms (..., n_classes)."""
    return -2.0 * n * squared_distance(observed, predicted, xp)


def exact_log_density(features: Any, couplings: Any, log_z: Any) -> Any:
    """log p of a configuration, -w . F - ln Z(w); shapes (..., k), (..., k), (...).

    Examples
    --------
    Two states of energy 0 and w: at w = ln 2 the second has probability 1/3.

    >>> float(np.exp(exact_log_density(np.ones(1), np.log([2.0]), np.log(1.5))).round(6))
    0.333333
    """
    return -(couplings * features).sum(axis=-1) - log_z


class CalibratedDistance(dist.Distribution):
    """The law of t by its mean m(w) and covariance C(w), conditional on the composition the window shows.

    Parameters
    ----------
    emulator : AbstractEmulator
    observation : Observation or sequence of Observation
        Several images make a batch of one distribution: the same, and quicker to compile.
    couplings : mapping of str to float
        In kT at formation, by name.

    Notes
    -----
    The log density is the integral of the score (dm/dw)^T C^-1 (t - m) from the emulator's origin, and at the origin
    what the emulator says it is: right as a function of the couplings, up to a factor that depends on t alone.

    The simulated box has the window's own (de-noised) composition, so the density of the composition
    itself would count it twice: only log p(t | composition) enters. The leading rows of t are the
    composition, hence the conditional density is the lower block of one Cholesky factor.

    Examples
    --------
    Inside a numpyro model: ``numpyro.sample(o.name, CalibratedDistance(emulator, o, w), obs=emulator.statistic(o))``.
    """

    support = constraints.real_vector
    pytree_data_fields = ("mean_", "lower", "begin", "natural", "log_origin")
    pytree_aux_fields = ("n_given", "near")

    def __init__(
        self,
        emulator: AbstractEmulator,
        observation: Observation | Sequence[Observation],
        couplings: Mapping[str, Any],
        *,
        validate_args: bool | None = None,
    ) -> None:
        origin = emulator.origin
        names = dict.fromkeys((*origin, *couplings))  # in an order that no hash decides: compiled programs are found by their text

        def moments(place: Any) -> Any:
            begin = {n: origin.get(n, 0.0) for n in names}
            found = emulator.moments(observation, {n: begin[n] + place * (couplings.get(n, 0.0) - begin[n]) for n in names})
            return found.mean, found.lower

        mean, lower = jax.vmap(moments)(jnp.asarray(NEAR_NODES if emulator.near else NODES))
        self.mean_, self.lower, self.begin, self.near = mean[-1], lower[-1], (mean[0], lower[0]), emulator.near
        self.n_given = emulator.n_composition(observation)
        self.natural = natural(Moments(mean, lower, None), self.n_given, jnp)
        self.log_origin = jnp.asarray(emulator.log_origin(observation))
        shape = jnp.shape(self.mean_)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def log_prob(self, value: Any) -> Any:
        """log p(t | composition) of a statistic, shape (d,)."""
        value = jnp.asarray(value)
        ratio = self.natural(value)
        if self.near:
            ratio = bounded(ratio, value, Moments(self.mean_, self.lower, None), Moments(*self.begin, None), self.n_given, jnp)
        return self.log_origin + ratio

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draw t (composition included) from the Normal law of the same mean and covariance."""
        noise = jax.random.normal(key, (*sample_shape, *self.batch_shape, *self.event_shape))
        return self.mean_ + (self.lower @ noise[..., None])[..., 0]


class IndependentDistance(dist.Distribution):
    """log p = -2 N s^2(observed, predicted), up to a constant: the published likelihood.

    Its value is the histogram (class frequencies). Parameters as for :class:`CalibratedDistance`.
    """

    support = constraints.simplex
    pytree_data_fields = ("histogram", "n")

    def __init__(
        self,
        emulator: AbstractEmulator,
        observation: Observation | Sequence[Observation],
        couplings: Mapping[str, Any],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.histogram = emulator.moments(observation, couplings).histogram
        self.n = observation.n if isinstance(observation, Observation) else np.array([o.n for o in observation])
        shape = jnp.shape(self.histogram)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def log_prob(self, value: Any) -> Any:
        """-2 N s^2 of a histogram, shape (n_classes,)."""
        return independent_log_density(jnp.asarray(value), self.histogram, self.n, jnp)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Frequencies of N independent environments: what this likelihood believes an image to be."""
        counts = dist.Multinomial(self.n, self.histogram).sample(key, sample_shape)
        return counts / jnp.asarray(self.n)[..., None]


class ExactLikelihood(dist.Distribution):
    """log p of a whole periodic configuration at fixed composition, -w . F - ln Z(w), through its features.

    Its value are the features (counts of every term, about the pool's), which are sufficient; the density is that
    of the configuration. Parameters as for :class:`CalibratedDistance`, the emulator one that knows ln Z.

    Examples
    --------
    Inside a numpyro model: ``numpyro.sample(o.name, ExactLikelihood(emulator, o, w), obs=emulator.features(o))``.
    """

    support = constraints.real_vector
    pytree_data_fields = ("couplings", "log_z")

    def __init__(
        self,
        emulator: PartitionEmulator,
        observation: Observation | Sequence[Observation],
        couplings: Mapping[str, Any],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.couplings, self.log_z = emulator.energy(observation, couplings)
        shape = jnp.shape(self.couplings)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def log_prob(self, value: Any) -> Any:
        """log p of a configuration of these features, shape (k,)."""
        return exact_log_density(jnp.asarray(value), self.couplings, self.log_z)
