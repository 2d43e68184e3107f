"""Calibration over the whole prior, from fresh simulations: couplings drawn from it, images simulated at them, analysed by a pool.

Every truth has chains of its own in the pool and neighbours share them, so a data set costs milliseconds once the
chains are there. Prior draws stand for the prior, the truths among them, and ranks are exact for any number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..montecarlo.chains import Chain
from ..montecarlo.design import DesignPoint
from ..montecarlo.engine import run_chain
from ..montecarlo.executors import Executor
from ..montecarlo.pool import Pool
from ..observation import Observation
from ..progress import Progress, reporter
from .campaign import Campaign, Settings
from .emulator import SUPPORT_BAR, ImageEmulator, Records
from .heldout import fisher, log_densities, predict, rank, whole_density
from .neighbours import spread_out, tiles
from .priors import prior_draws
from .ranked import Calibration, Ranked
from .statistic import Statistic

KINDS = ("calibrated", "independent")
_REACH = 6.5  # posterior standard deviations from a truth within which its posterior lies: three of the data, the rest its own
_CHAINS_REACH = 5.0  # and within which chains say something about it
_CORE = 8  # data sets that share an emulator
_PROBES, _PROBED = 24, 1.5  # places around a truth that must have support, and how many standard deviations wide they lie
_HELD = 0.9  # share of them
_APART = 1.0  # fluctuations by which two chains from different starts may differ
_ONE_HEAP = 1.8  # kurtosis minus squared skewness of a uniform law (Pearson 1916); two heaps have less
_EFFECTIVE = 200  # points of the prior that shall lie under a posterior


@dataclass(frozen=True)
class Effort:
    """How much to simulate.

    samples, sweeps, burn : records of a chain, sweeps between them and before the first; near : chains of an emulator,
    at most; rounds : in which chains are added where support is thin; added : of them at each truth;
    points : draws of the prior, at most.
    """

    samples: int = 60
    sweeps: float = 6.0
    burn: float = 150.0
    near: int = 64
    rounds: int = 4
    added: int = 3
    points: int = 1 << 16


@dataclass(eq=False)
class _Site:
    """One model's data sets: truths (n, k), class counts and features by image, and the chains so far (couplings (K, k), records).

    `precision` (k, k) is the prior's, `metric` (n, k, k) the inverse covariance to expect of a posterior at each truth.
    """

    model: Hamiltonian
    embed: NDArray[np.float64]
    truths: NDArray[np.float64]
    counts: Mapping[str, NDArray]
    features: Mapping[str, NDArray[np.float64]]
    precision: NDArray[np.float64]
    metric: NDArray[np.float64]
    design: NDArray[np.float64]
    records: dict[str, list[Records]]
    flags: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


@threadpool_limits.wrap(limits=1, user_api="blas")
def calibrate_prior(
    models: Sequence[Hamiltonian] | Hamiltonian,
    observations: Sequence[Observation] | Observation,
    *,
    seed: int,
    datasets: int = 1000,
    seen: Sequence[Observation] | Observation | None = None,
    truth: ArrayLike | None = None,
    likelihoods: Sequence[str] = KINDS,
    statistic: Statistic | None = None,
    pool: Pool | None = None,
    out: str | Path | None = None,
    effort: Effort | None = None,
    workers: int | Executor = 1,
    progress: bool | Progress | None = None,
) -> Calibration:
    """Simulate data sets with couplings from the prior and see whether the posteriors hold what they promise.

    Parameters
    ----------
    models : sequence of Hamiltonian
        With a prior on every coupling; those without terms are left out.
    observations : sequence of Observation
        One synthetic image is simulated for each: its window, composition and label errors count, its labels do not.
    seed : int
    datasets : int
        Of each model.
    seen : sequence of Observation, optional
        How the synthetic images really are seen, where that is not what the analysis believes (label errors that it
        ignores, say); matched by order.
    truth : array_like, shape (k,), optional
        These couplings (kT at formation) for every data set instead of draws from the prior: coverage of one truth. Ranks
        then need not be uniform.
    likelihoods : sequence of str
        Of "calibrated", "independent" and, for whole periodic crystals, "exact".
    statistic : Statistic, optional
        By default the terms of all the models and the composition, as `infer` declares it.
    pool : Pool, optional
    out : path, optional
        Folder in which finished chains are kept; a run that was stopped continues from there.
    effort : Effort, optional
    workers : int or Executor
    progress : bool or callable(stage, done, total), optional

    Returns
    -------
    Calibration

    Raises
    ------
    InputError
        If models and images do not belong together, a coupling has no prior, or a likelihood is unknown.

    Notes
    -----
    A data set is flagged, and left out of ranks and coverage, if at its truth a chain is shorter than 20 of its
    autocorrelation times, chains from a random and from a separated start disagree, the statistic falls into two heaps, or
    the pool has no support around it. All of these are judged on chains of their own, never on the data: so leaving
    sets out does not bias the ranks (they are those of the prior restricted to what is kept).

    Examples
    --------
    >>> from numpyro import distributions as dist
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 0.25)), lattice=Lattice.square(), species=("A", "B"))
    >>> image = Observation.from_labels(np.random.default_rng(0).integers(0, 2, (14, 14)), h.lattice, h.species, name="image")
    >>> c = calibrate_prior(h, image, seed=1, datasets=40, likelihoods=["calibrated"])
    >>> c["P1", "calibrated"].datasets > 30, c["P1", "calibrated"].pit.shape
    (True, (40, 2))
    """
    import numpyro

    numpyro.enable_x64()
    effort = effort or Effort()
    models = [models] if isinstance(models, Hamiltonian) else list(models)
    observations = [observations] if isinstance(observations, Observation) else list(observations)
    seen = observations if seen is None else [seen] if isinstance(seen, Observation) else list(seen)
    if len(seen) != len(observations):
        raise InputError(f"{len(seen)} images seen and {len(observations)} analysed; expected as many, in the same order")
    unknown = [kind for kind in likelihoods if kind not in (*KINDS, "exact")]
    if unknown or ("exact" in likelihoods and not all(o.window.whole for o in observations)):
        raise InputError(
            f"likelihoods {', '.join(likelihoods)}; expected calibrated, independent or, for whole periodic crystals only, exact"
        )
    seen = [replace(s, name=o.name) for s, o in zip(seen, observations, strict=True)]
    pool = pool if pool is not None else Pool(None if out is None else Path(out) / "pool")
    common = {"seed": seed, "pool": pool, "settings": Settings(), "workers": workers, "report": reporter(progress)}
    campaign = Campaign.prepare(models, observations, statistic=statistic, **common)
    shown = Campaign.prepare(models, seen, statistic=campaign.statistic, **common)
    rows: list[Ranked] = []
    for model in (m for m in models if m.terms):
        rows += _calibrate(campaign, shown, model, datasets, truth, likelihoods, effort)
    at = None if truth is None else np.asarray(truth, dtype=float).tolist()
    settings = {"datasets": datasets, **asdict(effort), "chains": pool.simulated, "truth": at}
    return Calibration(tuple(rows), "simulated", "prior" if truth is None else "truth", seed, settings)


def _calibrate(
    campaign: Campaign, shown: Campaign, model: Hamiltonian, n: int, truth: ArrayLike | None, kinds: Sequence[str], effort: Effort
) -> list[Ranked]:
    rng, pilot, truths = _truths(campaign, model, n, truth)
    site = _simulate(campaign, shown, model, truths, np.linalg.inv(np.atleast_2d(np.cov(pilot.T))), effort)
    # as many points as leave some hundred under a posterior
    ratio = np.sqrt(np.median(np.linalg.det(site.metric)) * np.linalg.det(np.atleast_2d(np.cov(pilot.T))))
    more = int(np.clip(_EFFECTIVE * ratio, 2048, effort.points)) - len(pilot)
    points = np.concatenate([pilot, prior_draws(model, more, rng)]) if more > 0 else pilot
    own = np.arange(n) if truth is None else np.full(n, -1)
    found: dict[str, list[tuple[NDArray, dict]]] = {kind: [] for kind in kinds}
    open_tiles = tiles(site.truths / points.std(axis=0), _CORE) if truth is None else [np.arange(n)]
    for name in ("two heaps", "no support"):
        site.flags[name] = np.zeros(n, dtype=bool)
    for number in range(effort.rounds + 1):
        waiting, wanted = [], []
        for place, core in enumerate(open_tiles):
            images = _emulators(campaign, site, core, effort.near)
            thin = _thin(site, images, core, rng)
            if number < effort.rounds and (missing := [t for t in thin if t is not None]):
                waiting.append(core)
                wanted += [part[: effort.added] for part in missing]
                continue
            site.flags["no support"][core] = [t is not None for t in thin]
            _finish(campaign, site, images, core, points, own, found, rng)
            campaign.report("analyse", place + 1, len(open_tiles))
        open_tiles = waiting
        if not open_tiles:
            break
        _extend(campaign, site, np.concatenate(wanted), effort)
    return [_row(model, kind, truths, parts, site.flags) for kind, parts in found.items()]


def _truths(campaign: Campaign, model: Hamiltonian, n: int, truth: ArrayLike | None) -> tuple[np.random.Generator, NDArray, NDArray]:
    """The generator of a model, draws of its prior, and the truths: the first n of them, or the one that is given."""
    rng = np.random.default_rng(np.random.SeedSequence([campaign.seed, 23, *np.frombuffer(model.name.encode(), np.uint8)]))
    pilot = prior_draws(model, max(n, 2000), rng)
    return rng, pilot, pilot[:n] if truth is None else np.tile(model.vector(truth), (n, 1))


def synthetic(
    models: Sequence[Hamiltonian],
    observations: Sequence[Observation],
    model: str,
    *,
    seed: int,
    datasets: int,
    effort: Effort | None = None,
) -> tuple[NDArray[np.float64], list[list[Observation]]]:
    """The data sets that :func:`calibrate_prior` would analyse, to analyse them otherwise.

    Parameters
    ----------
    models, observations, seed, datasets, effort
        As there.
    model : str
        The one whose prior the truths come from.

    Returns
    -------
    ndarray, shape (datasets, k)
        Truths, kT at formation.
    list of list of Observation
        The images of each data set, by counts alone.

    Examples
    --------
    ``truths, sets = synthetic([P1], images, "P1", seed=1, datasets=20)``, then ``infer([P1], sets[0], seed=1)``.
    """
    common = {"seed": seed, "pool": Pool(), "settings": Settings(), "workers": 1, "report": reporter(None)}
    campaign = Campaign.prepare(list(models), list(observations), **common)
    chosen = next(m for m in models if m.name == model)
    _, _, truths = _truths(campaign, chosen, datasets, None)
    counts, _ = _images(campaign, campaign, chosen, truths, effort or Effort())
    return truths, [
        [replace(o, counts=counts[o.name][i], configuration=None, positions=None) for o in observations] for i in range(datasets)
    ]


def _row(model: Hamiltonian, kind: str, truths: NDArray, parts: Sequence[tuple[NDArray, dict]], flags: Mapping[str, NDArray]) -> Ranked:
    order = np.argsort(np.concatenate([core for core, _ in parts]))
    values = {key: np.concatenate([ranked[key] for _, ranked in parts])[order] for key in parts[0][1]}
    return Ranked(model.name, kind, model.names, truths, **values, flags=dict(flags))


# ---------------------------------------------------------------------- simulations


def _simulate(campaign: Campaign, shown: Campaign, model: Hamiltonian, truths: NDArray, precision: NDArray, effort: Effort) -> _Site:
    """For every truth and image: the synthetic image, a chain for the pool, and a chain from a separated start to compare with."""
    embed = np.array([[float(n == u) for u in campaign.names] for n in model.names])
    distinct, where = np.unique(truths, axis=0, return_inverse=True)
    where = where.reshape(-1)
    counts, features = _images(campaign, shown, model, truths, effort)
    site = _Site(model, embed, truths, counts, features, precision, precision, np.zeros((0, len(model.names))), {})
    site.records = {o.name: [] for o in campaign.observations}
    chains = _extend(campaign, site, distinct, effort)
    slow, apart = np.zeros((2, len(campaign.observations), len(distinct)))
    information = np.zeros((len(distinct), len(embed), len(embed)))
    for i, o in enumerate(campaign.observations):
        shares = site.embed @ campaign.shares[o.name]
        covs = np.array([np.atleast_2d(np.cov((r.features @ embed.T).T)) for r in site.records[o.name]])
        information += covs * np.sqrt(np.outer(shares, shares))
        slow[i] = [r.slow for r in site.records[o.name]]
        for j, chain in enumerate(chains[o.name]):
            apart[i, j] = _disagreement(campaign, o.name, chain, effort, embed)
    site.metric = (information + precision)[where]
    site.flags["slow chains"] = slow.any(axis=0)[where]
    site.flags["starts disagree"] = (apart > _APART).any(axis=0)[where]
    return site


def _images(
    campaign: Campaign, shown: Campaign, model: Hamiltonian, truths: NDArray, effort: Effort
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Class counts and features of one synthetic image at each truth (n, k), by image: the end of a chain of its own."""
    embed = np.array([[float(n == u) for u in campaign.names] for n in model.names])
    words = np.frombuffer(model.name.encode(), np.uint8)
    recipes, boxes = [], Counter[tuple]()
    for o in campaign.observations:
        # images of one box and composition are different crystals of one material
        box = (campaign.shapes[o.name], shown.variants[o.name][0].atoms)
        own = [campaign.seed, 29, *words, *([boxes[box]] if boxes[box] else [])]
        boxes[box] += 1
        seeds = np.random.SeedSequence(own).generate_state(len(truths), np.uint32).astype(int)
        recipes += [
            DesignPoint(shown.compiled[o.name], w @ embed, shown.variants[o.name][0].atoms, 1, 1.0, 2 * effort.burn, int(s))
            for w, s in zip(truths, seeds, strict=True)
        ]
    found = iter(campaign.pool.run(recipes, workers=campaign.workers, progress=campaign.report))
    counts, features = {}, {}
    for o in campaign.observations:
        chains = [next(found) for _ in truths]
        rng = np.random.default_rng(np.random.SeedSequence([campaign.seed, 37, *words, *np.frombuffer(o.name.encode(), np.uint8)]))
        counts[o.name] = shown.variants[o.name][0].operator.counts(np.concatenate([c.snapshots for c in chains]), rng)
        features[o.name] = np.concatenate([c.features for c in chains])
    return counts, features


def _extend(campaign: Campaign, site: _Site, couplings: NDArray, effort: Effort) -> dict[str, list[Chain]]:
    """Chains at more couplings (m, k), for every image, into the pool."""
    length = (effort.samples, effort.sweeps, effort.burn, campaign.seed)
    recipes = [
        DesignPoint(campaign.compiled[o.name], w @ site.embed, campaign.variants[o.name][0].atoms, *length)
        for o in campaign.observations
        for w in couplings
    ]
    found, chains = iter(campaign.pool.run(recipes, workers=campaign.workers, progress=campaign.report)), {}
    for o in campaign.observations:
        name = np.frombuffer(o.name.encode(), np.uint8)
        chains[o.name] = [next(found) for _ in couplings]
        for chain in chains[o.name]:
            rng = np.random.default_rng(np.random.SeedSequence([campaign.seed, len(site.records[o.name]), *name]))
            record = Records.of(chain, campaign.variants[o.name][0].operator, rng)
            if record.counts.dtype == np.int64:  # thousands of chains are kept
                record = replace(record, counts=record.counts.astype(np.int32))
            site.records[o.name].append(record)
    site.design = np.concatenate([site.design, couplings])
    return chains


def _disagreement(campaign: Campaign, image: str, chain: Chain, effort: Effort, embed: NDArray) -> float:
    """How far apart the mean features of a chain and of one from a separated start are, in standard deviations of a snapshot."""
    atoms, compiled = campaign.variants[image][0].atoms, campaign.compiled[image]
    words = np.frombuffer(image.encode() + chain.couplings.tobytes(), np.uint8)
    other = run_chain(
        compiled, chain.couplings, np.repeat(np.arange(len(atoms)), atoms), samples=effort.samples, sweeps=effort.sweeps,
        burn=effort.burn, seed=np.random.SeedSequence([campaign.seed, 31, *words]),
    )  # fmt: skip
    one, two = chain.features @ embed.T, other.features @ embed.T
    spread = np.maximum(np.sqrt((one.var(axis=0) + two.var(axis=0)) / 2), 0.5)  # counts are whole numbers
    return float((np.abs(one.mean(axis=0) - two.mean(axis=0)) / spread).max())


# ---------------------------------------------------------------------- analysis of neighbours


def _distance(site: _Site, core: NDArray, others: NDArray) -> NDArray[np.float64]:
    """Distance of each point to the nearest truth of the core, in posterior standard deviations."""
    nearest = np.full(len(others), np.inf)
    done = set()
    for i in core:
        if (where := site.truths[i].tobytes()) not in done:
            done.add(where)
            apart = others - site.truths[i]
            nearest = np.minimum(nearest, np.sqrt(np.einsum("mk,kl,ml->m", apart, site.metric[i], apart)))
    return nearest


def _emulators(campaign: Campaign, site: _Site, core: NDArray, near: int) -> dict[str, ImageEmulator]:
    """The pool around the core's truths, for every image."""
    inside = np.flatnonzero(_distance(site, core, site.design) < _CHAINS_REACH)
    whitened = site.design[inside] @ np.linalg.cholesky(site.metric[core].mean(axis=0))
    chosen = inside[spread_out(whitened, near)]
    return {
        o.name: ImageEmulator.build(o, campaign.statistic, [site.records[o.name][c] for c in chosen], shares=campaign.shares[o.name])
        for o in campaign.observations
    }


def _enough(image: ImageEmulator, support: NDArray) -> NDArray[np.float64]:
    """Support, 0 where records are too few for a covariance."""
    return np.where(support * image.reweighting.records.mean() >= 2 * len(image.offset) + 2, support, 0.0)


def _held(images: Mapping[str, ImageEmulator], union: NDArray) -> NDArray[np.float64]:
    """Least support of couplings (m, q) among the images."""
    return np.min([_enough(image, image.reweighting.support(union)) for image in images.values()], axis=0)


def _thin(site: _Site, images: Mapping[str, ImageEmulator], core: NDArray, rng: np.random.Generator) -> list[NDArray | None]:
    """For each truth of the core None if the pool supports its surroundings, else the places that most lack it, worst first."""
    found: list[NDArray | None] = []
    done: dict[bytes, NDArray | None] = {}
    for i in core:
        if (where := site.truths[i].tobytes()) not in done:
            z = rng.normal(size=(_PROBES, len(site.truths[i])))
            probes = site.truths[i] + _PROBED * z @ np.linalg.inv(np.linalg.cholesky(site.metric[i]))
            support = _held(images, probes @ site.embed)
            worst = probes[np.argsort(support, kind="stable")]
            done[where] = None if (support >= SUPPORT_BAR).mean() >= _HELD else worst
        found.append(done[where])
    return found


def _finish(
    campaign: Campaign,
    site: _Site,
    images: Mapping[str, ImageEmulator],
    core: NDArray,
    points: NDArray,
    own: NDArray,
    found: Mapping[str, list],
    rng: np.random.Generator,
) -> None:
    """Posteriors of the core's data sets on the prior's points around them."""  # fmt: skip
    inside = _distance(site, core, points) < _REACH
    inside[own[core[own[core] >= 0]]] = True
    union = points[inside] @ site.embed
    held = _held(images, union) >= SUPPORT_BAR
    place = np.cumsum(inside) - 1  # of a point among those inside
    mine = np.where(own[core] >= 0, place[own[core]], -1)
    held[mine[mine >= 0]] = True  # a truth without support is flagged, but has a rank
    here = points[inside][held]
    mine = np.where(mine >= 0, (np.cumsum(held) - 1)[mine], -1)
    heaps, information = np.full(len(core), np.inf), 0.0
    truths = site.truths[core] @ site.embed
    apart = bool((mine < 0).any())  # a common truth that is none of the points
    at = np.concatenate([union[held], truths[:1]]) if apart else union[held]
    totals = {kind: np.zeros((len(core), len(here) + apart)) for kind in found}
    for o in campaign.observations:
        image = images[o.name]
        for kind, total in totals.items():
            total += _density(campaign, site, image, core, kind, at)
        heaps = np.minimum(heaps, [heap_shape(image, w) for w in truths])
        information = information + fisher(image, truths)
    site.flags["two heaps"][core] = heaps < _ONE_HEAP
    information = site.embed @ information @ site.embed.T
    for kind, total in totals.items():
        truth = (site.truths[core], total[:, -1]) if apart else None
        found[kind].append((core, rank(here, mine, total[:, : len(here)], information, rng, precision=site.precision, truth=truth)))


def _density(campaign: Campaign, site: _Site, image: ImageEmulator, core: NDArray, kind: str, union: NDArray) -> NDArray[np.float64]:
    """Log likelihood of one image of the core's data sets, at many couplings: shape (core, m)."""
    name = image.observation.name
    if kind == "exact":
        return whole_density(site.features[name][core], image.reweighting, union)
    counts = site.counts[name][core]
    return log_densities(campaign.statistic(counts)[:, list(image.rows)], counts, predict(image, kind, union, image.n_composition))


def heap_shape(image: ImageEmulator, union: NDArray[np.float64]) -> float:
    """Least kurtosis minus squared skewness of an image's whitened statistic at couplings (q,): 3 if normal, 1 if two heaps."""
    moments, weights = image.moments(union), image.reweighting.weights(union)
    z = np.linalg.solve(moments.lower, (image.values - moments.mean).T)[image.n_composition :]
    if not len(z):
        return 3.0
    z = z - (z @ weights)[:, None]
    variance = np.maximum(z**2 @ weights, 1e-300)
    return float(np.min(z**4 @ weights / variance**2 - (z**3 @ weights) ** 2 / variance**3))
