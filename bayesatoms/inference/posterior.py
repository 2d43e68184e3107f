"""Posteriors: rounds of simulation, then NUTS, then the checks that say whether to believe them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..environments import Environments
from ..errors import CheckError, InputError
from ..hamiltonian import Hamiltonian
from ..montecarlo.executors import Executor
from ..montecarlo.pool import Pool
from ..observation import Observation
from ..progress import Progress, reporter
from .campaign import Campaign, Region, Settings
from .checks import Check, posterior_checks
from .densities import widths
from .emulator import Emulator
from .heldout import held_out
from .identifiability import Identifiability, identifiability
from .inputs import KINDS, check_inputs
from .likelihood import independent_log_density
from .moments import normal_log_density
from .parameters import Nuisances, Parameters
from .ranked import Calibration
from .reuse import Simulated
from .reweighting import GRADIENT_BAR
from .sampling import Posterior, sample
from .smooth import SmoothEmulator
from .statistic import Statistic
from .threads import side_by_side


@dataclass(frozen=True, eq=False)
class Fit:
    """One model's posteriors and what was checked about them.

    `posterior` is the one of the likelihood asked for; `posteriors` holds all by name;
    `crb_sd` (k,) is the Cramer-Rao bound at its mean (with the priors of the nuisances, where there are any): no
    analysis of these images could be surer.
    """

    model: Hamiltonian
    likelihood: str
    posteriors: Mapping[str, Posterior]
    smooth: Mapping[str, SmoothEmulator]
    crb_sd: NDArray[np.float64]
    checks: Mapping[str, Check]
    parameters: Parameters

    @property
    def posterior(self) -> Posterior:
        return self.posteriors[self.likelihood]

    def couplings_of(self, observation: Observation, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Couplings (n, k) in kT that one image had at its formation, at parameters (n, p) such as ``posterior.full``."""
        return self.parameters.of_image(observation.name, values)[..., : len(self.model.names)]

    @property
    def draws(self) -> NDArray[np.float64]:
        """Draws of the couplings (n, k), kT at formation."""
        return self.posterior.flat


@dataclass(frozen=True, eq=False)
class Result:
    """What `infer` returns; ``result["P1"]`` is the fit of that model.

    `simulated` says which chains it rests on, `notes` what a reader must know of how it was made, `identified` which
    couplings these images can tell at all, found before anything was simulated. `threads` may work on it at once.
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
    identified: Identifiability | None = None
    threads: int = 1

    @cached_property
    def calibration(self) -> Calibration | None:
        """Whether the posteriors can be trusted, from the pool's held-out chains; None where they are too few. Takes seconds, once."""
        try:
            return held_out(self)
        except CheckError:
            return None

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


@threadpool_limits.wrap(limits=1, user_api="blas")
def emulate(
    models: Sequence[Hamiltonian],
    observations: Sequence[Observation],
    *,
    seed: int,
    statistic: Statistic | None = None,
    pool: Pool | None = None,
    settings: Settings | None = None,
    nuisances: Nuisances | None = None,
    workers: int | Executor = 1,
    progress: bool | Progress | None = None,
) -> Emulator:
    """The reweighted pool around the models' posteriors, for a numpyro model of one's own.

    Parameters are those of :func:`infer`. Its answers hold where ``emulator.support(w)`` is at least 0.05:
    start a sampler there (``init_strategy=numpyro.infer.init_to_median()``), not at random.

    Returns
    -------
    Emulator
    """
    campaign, _ = _campaign(models, observations, seed, statistic, pool, settings, workers, progress, nuisances=nuisances)
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
    nuisances: Nuisances | None = None,
    workers: int | Executor = 1,
    progress: bool | Progress | None = None,
) -> Result:
    """Infer the couplings of every candidate model from the images; one pool of chains serves them all.

    Parameters
    ----------
    models : sequence of Hamiltonian
        A model without terms (the random alloy) takes part in the comparison and has no draws.
    observations : sequence of Observation
    seed : int
        Same seed, same answer, for any number and kind of workers.
    environments : Environments, optional
        Count the images by these instead (not possible for images known by counts alone).
    likelihood : {"calibrated", "independent", "exact"}
        Which posterior is the fit's own; the first two are always computed. "exact" is for whole periodic crystals
        without label errors, simulations mostly: the probability of the configuration itself.
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
    nuisances : Nuisances, optional
        What else is uncertain or differs between the images: formation temperatures, compositions, label errors.
    workers : int or Executor
        Chains simulated at once.
    progress : bool or callable(stage, done, total), optional

    Returns
    -------
    Result

    Raises
    ------
    InputError
        If there is nothing to infer, models and images do not belong together, an exact likelihood is asked for
        where it is not known, one temperature is to tell an energy from a temperature-independent part, or the
        chains to be reused are of another lattice, other species, terms or images.

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
    if likelihood not in (*KINDS, "exact"):
        raise InputError(f"likelihood {likelihood!r} is unknown; expected one of {', '.join(KINDS)}, exact")
    models = [models] if isinstance(models, Hamiltonian) else list(models)
    observations = [observations] if isinstance(observations, Observation) else list(observations)
    if environments is not None:
        observations = [o.with_environments(environments) for o in observations]
    pool = pool if pool is not None else Pool(None if out is None else Path(out) / "pool")
    check_inputs(models, observations, KINDS if likelihood in KINDS else (*KINDS, likelihood))
    # what judges the draws takes seconds to import: let it come while chains run, which leave the interpreter free
    threading.Thread(target=import_module, args=("arviz_stats.base",), daemon=True).start()
    identified = identifiability(models, observations, seed=seed)
    clock, before = time.perf_counter(), pool.simulated
    past = reuse.simulated if isinstance(reuse, Result) else None if reuse is None else Simulated.load(reuse)
    campaign, regions = _campaign(
        models, observations, seed, statistic, pool, settings, workers, progress, start, past, nuisances,
        KINDS if likelihood in KINDS else (*KINDS, likelihood),
    )  # fmt: skip
    timing = {"simulate": time.perf_counter() - clock}
    clock, report, done = time.perf_counter(), reporter(progress), itertools.count(1)
    # posteriors one by one, those of the fits themselves first: they take longest, and none shall be left alone at the end
    wanted = sorted(((m, kind) for m in models for kind in campaign.kinds), key=lambda w: (w[1] != likelihood, -len(w[0].terms)))

    def draw(one: tuple[Hamiltonian, str]) -> tuple[Posterior, dict[str, Check]]:
        model, kind = one
        region = next((r for r in regions if r.model is model and r.kind == kind), None)
        found = _posterior(campaign, kind, region)
        checks = posterior_checks(campaign, region, found) if region is not None and kind == likelihood else {}
        report("sample", next(done), len(wanted))
        return found, checks

    drawn = dict(zip(wanted, side_by_side(draw, wanted, campaign.threads), strict=True))
    fits = {m.name: _fit(campaign, m, regions, {k: drawn[m, k] for k in campaign.kinds}, likelihood) for m in models}
    timing["sample"] = time.perf_counter() - clock
    assert campaign.emulator is not None
    s, chains = campaign.settings, len(campaign.counted)
    simulation = {
        "chains": chains,
        "chains_simulated_now": pool.simulated - before,
        "sweeps": chains * (s.burn + s.sweeps * s.samples),
        "attempted_moves": campaign.moves,
        "design_points": len(campaign.design),
    }
    if past is not None:
        simulation["chains_reused"] = chains - simulation["chains_simulated_now"]
    return Result(
        fits, observations, campaign.emulator, campaign.statistic, campaign.settings, seed, likelihood, campaign.history, simulation,
        timing, simulated=campaign.simulated(regions), identified=identified, threads=campaign.threads,
        notes=(*(f"{note}: simulated anew." for note in campaign.notes), *_temperature_note(observations, nuisances)),
    )  # fmt: skip


def _temperature_note(observations: Sequence[Observation], nuisances: Nuisances | None) -> list[str]:
    known = sorted({o.temperature for o in observations if o.temperature is not None})
    if len(known) < 2 or (nuisances is not None and nuisances.energies):
        return []
    return [
        f"The images froze in between {known[0]:g} and {known[-1]:g} K but share couplings in kT, as an interaction that is all entropy "
        "would; Nuisances(energies=True) shares energies instead."
    ]


def _campaign(
    models, observations, seed, statistic, pool, settings, workers, progress, start=None, past=None, nuisances=None, kinds=KINDS
) -> tuple[Campaign, list[Region]]:
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
    known = {n for m in models for n in m.names}
    for name in nuisances.constant if nuisances is not None else ():
        if name not in known:
            raise InputError(f"constant names coupling {name!r}; the models have {', '.join(sorted(known))}")
    campaign = Campaign.prepare(
        models, observations, seed=seed, pool=pool if pool is not None else Pool(), settings=settings or Settings(), workers=workers,
        report=reporter(progress), statistic=statistic, past=past, nuisances=nuisances, kinds=kinds,
    )  # fmt: skip
    return campaign, campaign.run(start)


def _posterior(campaign: Campaign, kind: str, region: Region | None) -> Posterior:
    """Draws of one model's posterior under one likelihood; without a region it has no couplings."""
    if region is None:
        return _without_couplings(campaign, kind)
    if region.smooth is None:
        why = f"under the {kind} likelihood the pool never had enough support; give a start, more rounds or a narrower prior"
        raise CheckError(f"model {region.model.name}: {why}")
    return sample(campaign.observations, region.smooth, kind, campaign.seed, campaign.settings)


def _fit(
    campaign: Campaign,
    model: Hamiltonian,
    regions: Sequence[Region],
    drawn: Mapping[str, tuple[Posterior, dict[str, Check]]],
    likelihood: str,
) -> Fit:
    posteriors, checks = {kind: found for kind, (found, _) in drawn.items()}, drawn[likelihood][1]
    if not model.terms:
        return Fit(model, likelihood, posteriors, {}, np.zeros(0), {}, Parameters.of(model, campaign.observations))
    parameters = Parameters.of(model, campaign.observations, campaign.nuisances)
    smooth = {r.kind: r.smooth for r in regions if r.model is model and r.smooth is not None}
    return Fit(model, likelihood, posteriors, smooth, _bound(campaign, parameters, posteriors[likelihood]), checks, parameters)


def _bound(campaign: Campaign, parameters: Parameters, posterior: Posterior) -> NDArray[np.float64]:
    """Cramer-Rao bound of each coupling (k,) at the posterior's mean; nuisances are known as well as their priors say."""
    assert campaign.emulator is not None
    embed, k, theta = campaign.emulator.embed(parameters.model), len(parameters.model.names), posterior.full.mean(axis=0)
    information = np.diag(np.r_[np.zeros(k), 1 / widths(parameters)[k:] ** 2])
    for name, image in campaign.emulator.images.items():
        slope = parameters.slope(name, theta, widths(parameters))[:k]
        information += slope.T @ embed @ image.fisher(parameters.of_image(name, theta)[:k] @ embed) @ embed.T @ slope
    return cramer_rao(information)[:k]


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
    emulator, values = campaign.emulator, []
    assert emulator is not None
    for o in campaign.observations:
        image = emulator.images[o.name]
        moments = image.moments(np.zeros(len(emulator.names)))
        if kind == "exact":
            values.append(-image.log_states)
        elif kind == "calibrated":
            values.append(normal_log_density(emulator.statistic(o), moments.mean, moments.lower, emulator.n_composition(o)))
        else:
            values.append(independent_log_density(o.histogram, o.environments.random_distribution(o.composition), o.n))
    shape = (campaign.settings.parallel, campaign.settings.draws)
    empty = np.zeros((*shape, 0))
    return Posterior(kind, (), empty, np.broadcast_to(values, (*shape, len(values))).astype(float), np.zeros(0), np.zeros(0), {})
