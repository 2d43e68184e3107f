"""Posteriors: rounds of simulation, then NUTS, then the checks that say whether to believe them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..environments import Environments
from ..errors import CheckError, InputError
from ..hamiltonian import Hamiltonian
from ..montecarlo.pool import Pool
from ..observation import Observation
from ..progress import Progress, reporter
from .campaign import KINDS, Campaign, Region, Settings, log_likelihoods, pool_log_likelihoods
from .emulator import SUPPORT_BAR, Emulator
from .likelihood import CalibratedDistance, IndependentDistance
from .reuse import Simulated
from .reweighting import GRADIENT_BAR
from .smooth import SmoothEmulator
from .statistic import Statistic

_RHAT_BAR, _ESS_BAR = 1.01, 400  # Vehtari et al., Bayesian Anal. 16, 667 (2021)
_ONE_HEAP = 1.8  # kurtosis minus squared skewness of a uniform law
_SMOOTH_BAR = 0.25  # rms error of the smooth emulator's log likelihood over the posterior


@dataclass(frozen=True)
class Check:
    """One thing that was checked: whether it held, and what was seen."""

    ok: bool
    why: str


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of one model's couplings under one likelihood.

    draws (chain, draw, k) in kT at formation; log_likelihood (chain, draw, image); rhat and ess (k,);
    energy, acceptance and divergence (chain, draw) as NUTS reports them.
    """

    kind: str
    names: tuple[str, ...]
    draws: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    rhat: NDArray[np.float64]
    ess: NDArray[np.float64]
    stats: Mapping[str, NDArray]

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


@dataclass(frozen=True, eq=False)
class Fit:
    """One model's posteriors and what was checked about them.

    `posterior` is the one of the likelihood asked for; `posteriors` holds both by name;
    `crb_sd` (k,) is the Cramer-Rao bound at its mean: no analysis of these images could be surer.
    """

    model: Hamiltonian
    likelihood: str
    posteriors: Mapping[str, Posterior]
    smooth: Mapping[str, SmoothEmulator]
    crb_sd: NDArray[np.float64]
    checks: Mapping[str, Check]

    @property
    def posterior(self) -> Posterior:
        return self.posteriors[self.likelihood]

    @property
    def draws(self) -> NDArray[np.float64]:
        """Draws of the couplings (n, k), kT at formation."""
        return self.posterior.flat


@dataclass(frozen=True, eq=False)
class Result:
    """What `infer` returns; ``result["P1"]`` is the fit of that model.

    `simulated` says which chains it rests on, `notes` which images could not take the chains to be reused.
    """

    fits: Mapping[str, Fit]
    observations: Sequence[Observation]
    emulator: Emulator
    statistic: Statistic
    settings: Settings
    seed: int
    likelihood: str
    history: Sequence[Mapping[str, Any]]
    simulation: Mapping[str, float]
    timing: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    simulated: Simulated | None = None
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Fit:
        if name not in self.fits:
            raise InputError(f"model {name!r} is not in this result; it has {', '.join(self.fits)}")
        return self.fits[name]

    @property
    def n(self) -> int:
        """Complete environments of all images."""
        return sum(o.n for o in self.observations)

    @cached_property
    def checks(self) -> dict[str, Check]:
        """All checks, the pool's own and each model's as "model: check"."""
        norm = self.emulator.gradient_norm
        found = {"free energies": Check(norm <= GRADIENT_BAR, f"gradient norm {norm:.1e}, at most {GRADIENT_BAR:.0e}")}
        for fit in self.fits.values():
            found.update({f"{fit.model.name}: {name}": check for name, check in fit.checks.items()})
        return found


def emulate(
    models: Sequence[Hamiltonian],
    observations: Sequence[Observation],
    *,
    seed: int,
    statistic: Statistic | None = None,
    pool: Pool | None = None,
    settings: Settings | None = None,
    workers: int = 1,
    progress: bool | Progress | None = None,
) -> Emulator:
    """The reweighted pool around the models' posteriors, for a numpyro model of one's own.

    Parameters are those of :func:`infer`. Its answers hold where ``emulator.support(w)`` is at least 0.05:
    start a sampler there (``init_strategy=numpyro.infer.init_to_median()``), not at random.

    Returns
    -------
    Emulator
    """
    campaign, _ = _campaign(models, observations, seed, statistic, pool, settings, workers, progress, None, None)
    assert campaign.emulator is not None
    return campaign.emulator


@threadpool_limits.wrap(limits=1, user_api="blas")
def infer(
    models: Sequence[Hamiltonian] | Hamiltonian,
    observations: Sequence[Observation] | Observation,
    *,
    seed: int,
    environments: Environments | None = None,
    likelihood: str = "calibrated",
    statistic: Statistic | None = None,
    pool: Pool | None = None,
    out: str | Path | None = None,
    reuse: Result | str | Path | None = None,
    settings: Settings | None = None,
    start: Mapping[str, Mapping[str, float]] | None = None,
    workers: int = 1,
    progress: bool | Progress | None = None,
) -> Result:
    """Infer the couplings of every candidate model from the images; one pool of chains serves them all.

    Parameters
    ----------
    models : sequence of Hamiltonian
        A model without terms (the random alloy) takes part in the comparison and has no draws.
    observations : sequence of Observation
    seed : int
        Same seed, same answer, for any number of workers.
    environments : Environments, optional
        Count the images by these instead (not possible for images known by counts alone).
    likelihood : {"calibrated", "independent"}
        Which of the two posteriors, both always computed, is the fit's own.
    statistic : Statistic, optional
        A declared statistic; by default the terms of all models and the composition.
    pool : Pool, optional
        Chains to build on; by default a new one, in ``out/pool`` if `out` is given.
    out : path, optional
        Folder in which finished chains are kept; a run that was stopped continues from there.
    reuse : Result or path of a results folder, optional
        Of the same models and images under other labels, masks or statistics: its chains are taken first, and
        new ones run only where they are too few. Images are matched by name; one whose window or composition
        its old box does not serve is simulated anew, and a note in the result says so.
    settings : Settings, optional
    start : mapping of model name to couplings, optional
        Where to begin instead of the pseudo-likelihood estimate.
    workers : int
        Chains simulated at once.
    progress : bool or callable(stage, done, total), optional

    Returns
    -------
    Result

    Raises
    ------
    InputError
        If there is nothing to infer, models and images do not belong together, or the chains to be reused are
        of another lattice, other species, terms or images.

    Notes
    -----
    Couplings are effective values, in kT at the temperature at which the configuration froze in.

    Examples
    --------
    >>> from numpyro import distributions as dist
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), lattice=Lattice.square(), species=("A", "B"))
    >>> labels = np.random.default_rng(0).integers(0, 2, (24, 24))
    >>> image = Observation.from_labels(labels, h.lattice, h.species, name="random")
    >>> fit = infer(h, image, seed=1, settings=Settings(points=4, samples=120, warmup=200, draws=250))["P1"]
    >>> bool(abs(fit.posterior.mean[0]) < 4 * fit.posterior.sd[0]), fit.draws.shape
    (True, (1000, 1))
    """
    if likelihood not in KINDS:
        raise InputError(f"likelihood {likelihood!r} is unknown; expected one of {', '.join(KINDS)}")
    models = [models] if isinstance(models, Hamiltonian) else list(models)
    observations = [observations] if isinstance(observations, Observation) else list(observations)
    if environments is not None:
        observations = [o.with_environments(environments) for o in observations]
    pool = pool if pool is not None else Pool(None if out is None else Path(out) / "pool")
    clock, before = time.perf_counter(), pool.simulated
    past = reuse.simulated if isinstance(reuse, Result) else None if reuse is None else Simulated.load(reuse)
    campaign, regions = _campaign(models, observations, seed, statistic, pool, settings, workers, progress, start, past)
    timing = {"simulate": time.perf_counter() - clock}
    clock, report, fits = time.perf_counter(), reporter(progress), {}
    for number, model in enumerate(models, 1):
        own = {r.kind: r for r in regions if r.model is model}
        fits[model.name] = _fit(campaign, model, own, likelihood)
        report("sample", number, len(models))
    timing["sample"] = time.perf_counter() - clock
    assert campaign.emulator is not None
    s, chains = campaign.settings, len(campaign.design) * len(observations)
    simulation = {
        "chains": chains,
        "chains_simulated_now": pool.simulated - before,
        "sweeps": chains * (s.burn + s.sweeps * s.samples),
        "attempted_moves": campaign.moves,
        "design_points": len(campaign.design),
    }
    if past is not None:
        simulation["chains_reused"] = len(past.points) * (len(observations) - len(campaign.notes))
    return Result(
        fits, observations, campaign.emulator, campaign.statistic, campaign.settings, seed, likelihood, campaign.history, simulation,
        timing, simulated=campaign.simulated(regions), notes=tuple(f"{note}: simulated anew." for note in campaign.notes),
    )  # fmt: skip


def _campaign(models, observations, seed, statistic, pool, settings, workers, progress, start, past) -> tuple[Campaign, list[Region]]:
    import numpyro

    numpyro.enable_x64()  # histograms differ in the fifth digit where posteriors differ by a standard deviation
    for name, couplings in (start or {}).items():
        chosen = [m for m in models if m.name == name]
        if not chosen:
            raise InputError(f"start names model {name!r}; the candidates are {', '.join(m.name for m in models)}")
        chosen[0].vector(couplings)
    for model in models:
        for coupling in model.names:
            model.prior(coupling)
    campaign = Campaign.prepare(
        models, observations, seed=seed, pool=pool if pool is not None else Pool(), settings=settings or Settings(), workers=workers,
        report=reporter(progress), statistic=statistic, past=past,
    )  # fmt: skip
    return campaign, campaign.run(start)


def _fit(campaign: Campaign, model: Hamiltonian, regions: Mapping[str, Region], likelihood: str) -> Fit:
    assert campaign.emulator is not None
    if not model.terms:
        posteriors = {kind: _without_couplings(campaign, kind) for kind in KINDS}
        return Fit(model, likelihood, posteriors, {}, np.zeros(0), {})
    posteriors, smooth, checks = {}, {}, {}
    for kind in KINDS:
        region = regions[kind]
        if region.smooth is None:
            why = f"under the {kind} likelihood the pool never had enough support; give a start, more rounds or a narrower prior"
            raise CheckError(f"model {model.name}: {why}")
        smooth[kind] = region.smooth
        posteriors[kind] = sample(model, campaign.observations, region.smooth, kind, campaign.seed, campaign.settings)
        if kind == likelihood:
            checks = _checks(campaign, region, posteriors[kind])
    mean = posteriors[likelihood].mean @ campaign.emulator.embed(model)
    information = sum(image.fisher(mean) for image in campaign.emulator.images.values())
    embed = campaign.emulator.embed(model)
    bound = cramer_rao(embed @ information @ embed.T)
    return Fit(model, likelihood, posteriors, smooth, bound, checks)


def cramer_rao(information: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least standard deviation of each coupling, infinite where a direction without information moves it.

    Examples
    --------
    >>> cramer_rao(np.array([[4.0, 0.0], [0.0, 0.0]])).tolist()
    [0.5, inf]
    """
    values, vectors = np.linalg.eigh(information)
    null = values < 1e-9 * max(values.max(), 1e-300)
    variance = (vectors[:, ~null] ** 2 / values[~null]).sum(axis=1)
    return np.sqrt(np.where((vectors[:, null] ** 2 > 1e-9).any(axis=1), np.inf, variance))


def _without_couplings(campaign: Campaign, kind: str) -> Posterior:
    """The random alloy: nothing to draw, its likelihood straight from the pool."""
    from .likelihood import calibrated_log_density, independent_log_density

    emulator, values = campaign.emulator, []
    assert emulator is not None
    for o in campaign.observations:
        image = emulator.images[o.name]
        moments = image.moments(np.zeros(len(emulator.names)))
        if kind == "calibrated":
            values.append(calibrated_log_density(emulator.statistic(o), moments.mean, moments.lower, image.n_composition))
        else:
            values.append(independent_log_density(o.histogram, o.environments.random_distribution(o.composition), o.n))
    shape = (campaign.settings.parallel, campaign.settings.draws)
    empty = np.zeros((*shape, 0))
    return Posterior(kind, (), empty, np.broadcast_to(values, (*shape, len(values))).astype(float), np.zeros(0), np.zeros(0), {})


def numpyro_model(model: Hamiltonian, observations: Sequence[Observation], smooth: SmoothEmulator, kind: str) -> None:
    """The numpyro model that NUTS samples: couplings from their priors, one distribution for images alike."""
    import jax.numpy as jnp
    import numpyro

    couplings = model.sample()
    for images in batches(smooth, observations):
        name = "+".join(o.name for o in images)
        if kind == "calibrated":
            numpyro.sample(name, CalibratedDistance(smooth, images, couplings), obs=smooth.statistic(images))
        else:
            numpyro.sample(name, IndependentDistance(smooth, images, couplings), obs=np.stack([o.histogram for o in images]))
    numpyro.factor("leash", smooth.leash(jnp.stack([couplings[n] for n in model.names])[None], jnp)[0])


def batches(smooth: SmoothEmulator, observations: Sequence[Observation]) -> list[list[Observation]]:
    """Images whose statistics have the same rows, which go into one distribution: fewer operations to compile."""
    groups: dict[tuple[int, int], list[Observation]] = {}
    for o in observations:
        groups.setdefault((len(smooth.statistic(o)), smooth.n_composition(o)), []).append(o)
    return list(groups.values())


def sample(
    model: Hamiltonian, observations: Sequence[Observation], smooth: SmoothEmulator, kind: str, seed: int, settings: Settings
) -> Posterior:
    """NUTS on a smooth emulator (Hoffman and Gelman, J. Mach. Learn. Res. 15, 1593, 2014; numpyro's)."""
    import jax
    from arviz_stats.base import array_stats
    from numpyro.infer import MCMC, NUTS, init_to_value

    values = {n: smooth.centre[a] for a, n in enumerate(model.names)}
    kernel = NUTS(
        lambda: numpyro_model(model, observations, smooth, kind),
        init_strategy=init_to_value(values=values), dense_mass=True, target_accept_prob=0.9,
    )  # fmt: skip
    mcmc = MCMC(
        kernel,
        num_warmup=settings.warmup,
        num_samples=settings.draws,
        num_chains=settings.parallel,
        chain_method="vectorized",
        progress_bar=False,
    )
    words = np.random.SeedSequence([seed, KINDS.index(kind), *np.frombuffer(model.name.encode(), np.uint8)]).generate_state(1)
    mcmc.run(jax.random.key(int(words[0])), extra_fields=("diverging", "energy", "accept_prob", "num_steps"))
    found = mcmc.get_samples(group_by_chain=True)
    draws = np.stack([np.asarray(found[n]) for n in model.names], axis=-1)
    extra = {k: np.asarray(v) for k, v in mcmc.get_extra_fields(group_by_chain=True).items()}
    likelihoods = log_likelihoods(smooth, observations, kind, draws.reshape(-1, draws.shape[-1]))
    rhat = np.array([array_stats.rhat(draws[..., a], chain_axis=0, draw_axis=1) for a in range(draws.shape[-1])])
    ess = np.array([array_stats.ess(draws[..., a], chain_axis=0, draw_axis=1) for a in range(draws.shape[-1])])
    return Posterior(kind, model.names, draws, likelihoods.reshape(*draws.shape[:2], -1), rhat, ess, extra)


def _checks(campaign: Campaign, region: Region, posterior: Posterior) -> dict[str, Check]:
    emulator, model, smooth = campaign.emulator, region.model, region.smooth
    assert emulator is not None and smooth is not None
    some = posterior.flat[:: max(1, len(posterior.flat) // 200)]
    union = some @ emulator.embed(model)
    support = np.min([image.reweighting.support(union) for image in emulator.images.values()], axis=0)
    exact = pool_log_likelihoods(emulator, campaign.observations, region.kind, union).sum(axis=1)
    apart = exact - log_likelihoods(smooth, campaign.observations, region.kind, some).sum(axis=1)
    slow = max(_slow_weight(image, posterior.mean @ emulator.embed(model)) for image in emulator.images.values())
    shape = min(_shape(image, posterior.mean @ emulator.embed(model)) for image in emulator.images.values())
    rounds = max((h["round"] for h in campaign.history), default=0)
    return {
        "rounds": Check(
            region.settled,
            f"posterior {'stood still' if region.settled else 'still moved'} after {rounds} rounds, {len(campaign.design)} chains an image",
        ),
        "support": Check(
            bool((support >= SUPPORT_BAR).all()), f"least support of a draw {support.min():.2f} of a chain, at least {SUPPORT_BAR}"
        ),
        "emulator": Check(
            bool(apart.std() < _SMOOTH_BAR), f"rms error of the log likelihood over the posterior {apart.std():.3f}, at most {_SMOOTH_BAR}"
        ),
        "equilibrium": Check(slow < 0.05, f"chains too slow to judge carry {slow:.1%} of the weight, at most 5 %"),
        "normality": Check(
            shape > _ONE_HEAP,
            f"least kurtosis minus squared skewness of the statistic {shape:.2f}, above {_ONE_HEAP} (3 if normal, 1 if two heaps)",
        ),
        "rhat": Check(bool(posterior.rhat.max() < _RHAT_BAR), f"largest R-hat {posterior.rhat.max():.4f}, below {_RHAT_BAR}"),
        "ess": Check(bool(posterior.ess.min() > _ESS_BAR), f"least effective sample size {posterior.ess.min():.0f}, above {_ESS_BAR}"),
        "divergences": Check(posterior.divergences == 0, f"{posterior.divergences} divergent transitions, expected none"),
    }


def _slow_weight(image: Any, union: NDArray[np.float64]) -> float:
    """Share of the weight at these couplings carried by chains that did not equilibrate."""
    owner = np.repeat(image.slow, image.reweighting.records.astype(int))
    return float(image.reweighting.weights(union)[owner].sum())


def _shape(image: Any, union: NDArray[np.float64]) -> float:
    """Least kurtosis minus squared skewness among the statistic's whitened components.

    It is 3 for a normal law and for a Poisson law of any mean, 1.8 for a uniform one and 1, the least there
    can be, for two points (Pearson 1916): rare species make the statistic skew and long-tailed, which the
    likelihood survives; two heaps, as in a separating alloy, it does not.
    """
    moments, weights = image.moments(union), image.reweighting.weights(union)
    z = np.linalg.solve(moments.lower, (image.values - moments.mean).T)[image.n_composition :]
    z = z - (z @ weights)[:, None]
    variance = z**2 @ weights
    return float(np.min(z**4 @ weights / variance**2 - (z**3 @ weights) ** 2 / variance**3))
