"""NUTS on a smooth emulator, and the draws it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..observation import Observation
from .campaign import KINDS, Settings
from .compilation import TRACING, program
from .densities import log_likelihoods
from .likelihood import CalibratedDistance, ExactLikelihood, IndependentDistance
from .smooth import SmoothEmulator

_ACCEPTED = 0.9
_FIELDS = ("diverging", "energy", "accept_prob", "num_steps")


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of one model's couplings under one likelihood.

    draws (chain, draw, k) in kT at formation (or, where images share energies, at the reference temperature);
    log_likelihood (chain, draw, image); rhat and ess (p,), couplings first; energy, acceptance and divergence
    (chain, draw) as NUTS reports them; nuisances by name, (chain, draw).
    """

    kind: str
    names: tuple[str, ...]
    draws: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    rhat: NDArray[np.float64]
    ess: NDArray[np.float64]
    stats: Mapping[str, NDArray]
    nuisances: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def full(self) -> NDArray[np.float64]:
        """All draws of couplings and nuisances, (n, p)."""
        return np.column_stack([self.flat, *(v.reshape(-1) for v in self.nuisances.values())])

    @property
    def flat(self) -> NDArray[np.float64]:
        """All draws, (n, k)."""
        return self.draws.reshape(self.draws.shape[0] * self.draws.shape[1], self.draws.shape[2])

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.flat.mean(axis=0)

    @property
    def sd(self) -> NDArray[np.float64]:
        return self.flat.std(axis=0, ddof=1)

    @property
    def cov(self) -> NDArray[np.float64]:
        return np.atleast_2d(np.cov(self.flat.T))

    def quantile(self, q: float) -> NDArray[np.float64]:
        """Quantile of each coupling, (k,)."""
        return np.quantile(self.flat, q, axis=0)

    @property
    def divergences(self) -> int:
        return int(self.stats["diverging"].sum()) if "diverging" in self.stats else 0


def numpyro_model(observations: Sequence[Observation], smooth: SmoothEmulator, kind: str, observed: Mapping[str, Any]) -> None:
    """The numpyro model that NUTS samples: parameters from their priors, one distribution for images alike."""
    import jax.numpy as jnp
    import numpyro

    values, laws = (
        smooth.parameters.sample(),
        {"calibrated": CalibratedDistance, "exact": ExactLikelihood, "independent": IndependentDistance},
    )
    for images in batches(smooth, observations):
        name = "+".join(o.name for o in images)
        numpyro.sample(name, laws[kind](smooth, images, values), obs=observed[name])
    numpyro.factor("leash", smooth.leash(jnp.stack([values[n] for n in smooth.parameters.names])[None], jnp)[0])


def seen(observations: Sequence[Observation], smooth: SmoothEmulator, kind: str) -> dict[str, NDArray[np.float64]]:
    """What each distribution of the numpyro model observes, by its name."""
    values = {
        "calibrated": smooth.statistic,
        "exact": smooth.features,
        "independent": lambda images: np.stack([o.histogram for o in images]),
    }
    return {"+".join(o.name for o in images): values[kind](images) for images in batches(smooth, observations)}


def batches(smooth: SmoothEmulator, observations: Sequence[Observation]) -> list[list[Observation]]:
    """Images whose statistics have the same rows, which go into one distribution: fewer operations to compile."""
    groups: dict[tuple[int, int], list[Observation]] = {}
    for o in observations:
        groups.setdefault((len(smooth.statistic(o)), smooth.n_composition(o)), []).append(o)
    return list(groups.values())


def sampler(
    observations: Sequence[Observation], smooth: SmoothEmulator, kind: str, settings: Settings, *given: Any
) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """NUTS compiled for a key, the smooth emulator's numbers and what was seen: it returns draws and what NUTS says of them.

    Numbers are arguments, not constants: then one program serves all posteriors of the same form.
    """
    import jax
    from numpyro.infer import MCMC, NUTS, init_to_value
    from numpyro.infer.util import potential_energy

    names = smooth.parameters.names

    def model(numbers: Any, observed: Any) -> None:
        numpyro_model(observations, smooth.with_numbers(numbers), kind, observed)

    def run(key: Any, numbers: Any, observed: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        start = {n: numbers["own"]["centre"][a] for a, n in enumerate(names)}
        kernel = NUTS(model, init_strategy=init_to_value(values=start), dense_mass=True, target_accept_prob=_ACCEPTED)
        mcmc = MCMC(
            kernel, num_warmup=settings.warmup, num_samples=settings.draws, num_chains=settings.parallel,
            chain_method="vectorized", progress_bar=False,
        )  # fmt: skip
        mcmc.run(jax.random.wrap_key_data(key), numbers, observed, extra_fields=_FIELDS)
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)

    def potential(numbers: Any, observed: Any, values: Any) -> Any:
        return potential_energy(model, (numbers, observed), {}, values)

    with TRACING:
        target = jax.jit(potential).lower(*given[1:], dict.fromkeys(names, 0.0)).as_text()
    lengths = f"{settings.warmup} {settings.draws} {settings.parallel}"
    # the density with all its constants and transformations, the lengths, and this very code
    return program(run, *given, made_from=[target, lengths, Path(__file__).read_bytes()])


def sample(observations: Sequence[Observation], smooth: SmoothEmulator, kind: str, seed: int, settings: Settings) -> Posterior:
    """NUTS on a smooth emulator (Hoffman and Gelman, J. Mach. Learn. Res. 15, 1593, 2014; numpyro's)."""
    import jax
    from arviz_stats.base import array_stats

    names, k = smooth.parameters.names, len(smooth.model.names)
    words = np.random.SeedSequence(
        [seed, (*KINDS, "exact").index(kind), *np.frombuffer(smooth.model.name.encode(), np.uint8)]
    ).generate_state(1)
    given = (jax.random.key_data(jax.random.key(int(words[0]))), smooth.numbers(), seen(observations, smooth, kind))
    found, extra = (jax.tree.map(np.asarray, part) for part in sampler(observations, smooth, kind, settings, *given)(*given))
    draws = np.stack([found[n] for n in names], axis=-1)
    likelihoods = log_likelihoods(smooth, observations, kind, draws.reshape(-1, draws.shape[-1]))
    rhat = np.array([array_stats.rhat(draws[..., a], chain_axis=0, draw_axis=1) for a in range(draws.shape[-1])])
    ess = np.array([array_stats.ess(draws[..., a], chain_axis=0, draw_axis=1) for a in range(draws.shape[-1])])
    nuisances = {n: draws[..., a] for a, n in enumerate(names) if a >= k}
    return Posterior(kind, names[:k], draws[..., :k], likelihoods.reshape(*draws.shape[:2], -1), rhat, ess, extra, nuisances)
