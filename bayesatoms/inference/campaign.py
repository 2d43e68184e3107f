"""The campaign: which chains to run for a set of models and images, round after round.

All candidates share one pool in the union of their couplings. A round fits a smooth emulator over the
region where each posterior is believed to be, finds the posterior there by importance sampling,
and adds chains at draws of it; it ends when the posteriors stay put and their draws have support.
Where chains turn out too slow, those of later rounds exchange configurations with their neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from ..errors import CheckError, InputError
from ..hamiltonian import Compiled, Hamiltonian, Orbit
from ..lattice import Supercell
from ..montecarlo.chains import Chain
from ..montecarlo.design import DesignPoint
from ..montecarlo.exchange import Ladder, linked
from ..montecarlo.executors import Executor
from ..montecarlo.pool import Pool
from ..observation import Observation
from ..progress import Progress
from .densities import SMOOTH_BAR, emulator_error, explore, scoring, smooth_error, widths
from .emulator import SLOW_BAR, SUPPORT_BAR, Emulator, ImageEmulator, Records, slow_weight
from .inputs import KINDS, check_inputs
from .parameters import Nuisances, Parameters, noisy
from .pseudolikelihood import pseudo_likelihood
from .quasi import path, stones
from .reuse import Box, Point, Simulated, geometry, identity
from .smooth import SmoothEmulator
from .statistic import Statistic, union
from .threads import side_by_side
from .variation import Variant, VariedEmulator, middle, variants

_GROWTH = 4.0  # of the covariance of a region, where its posterior lies beyond it
_LOOKS = 4  # passes over reused chains, at most, before new ones are run
_REFITS = 3  # fits of one round at most, each where the last found the posterior
_WIDER = 2.25  # first covariance over that of the posterior
_SCATTER = 50  # different draws without which a width was not found
_FOOTHOLD = 0.3  # chains' worth of records wanted at each place on the way from the random alloy
_AWAY = 2.5  # standard deviations from a region's centre beyond which a posterior is not inside it


@dataclass(frozen=True)
class Settings:
    """How much to simulate and when to stop. The defaults serve a few images of some hundred sites.

    points : chains a round for each posterior; samples, sweeps, burn : records of a chain, sweeps
    between them and before the first; rounds : at most; moved : largest shift of a mean, in standard
    deviations, that counts as standing still; support : effective records under the posterior, in
    chains, below which chains are added; noise : largest part of a standard deviation by which the pool's own
    error may move a mean before chains are added; warmup, draws, parallel : NUTS steps and chains.
    """

    points: int = 8
    samples: int = 240
    sweeps: float = 2.0
    burn: float = 120.0
    rounds: int = 8
    moved: float = 0.15
    support: float = 1.0
    noise: float = 0.15
    warmup: int = 500
    draws: int = 2000
    parallel: int = 4


@dataclass(frozen=True, eq=False)
class Region:
    """Where one posterior is believed to be, and its history.

    `centre`, `cov` are the current mean and covariance (p,), (p, p); `draws` (n, p) equally weighted;
    `settled`: the last round left it in place with support; `beyond`: it lies outside the region fitted; `widest`: first variances.
    """

    parameters: Parameters
    kind: str
    centre: NDArray[np.float64]
    cov: NDArray[np.float64]
    draws: NDArray[np.float64]
    smooth: SmoothEmulator | None = None
    settled: bool = False
    support: float = 0.0
    beyond: bool = False
    widest: NDArray[np.float64] | float = 0.0

    @property
    def model(self) -> Hamiltonian:
        return self.parameters.model


@dataclass(eq=False)
class Campaign:
    """Everything that simulation needs, and what it has gathered so far."""

    models: Sequence[Hamiltonian]
    observations: Sequence[Observation]
    statistic: Statistic
    pool: Pool
    seed: int
    settings: Settings
    workers: int | Executor
    report: Progress
    names: tuple[str, ...]
    compiled: dict[str, Compiled] = field(default_factory=dict)
    nuisances: Nuisances = field(default_factory=Nuisances)
    kinds: tuple[str, ...] = KINDS
    variants: dict[str, list[Variant]] = field(default_factory=dict)
    records: dict[str, list[list[Records]]] = field(default_factory=dict)
    shares: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    orbits: Mapping[str, Orbit] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    design: list[Point] = field(default_factory=list)
    past: Simulated | None = None
    notes: list[str] = field(default_factory=list)
    emulator: Emulator | None = None
    moves: int = 0
    counted: set[str] = field(default_factory=set)  # chains whose moves are in `moves`: images of one box share theirs
    history: list[dict] = field(default_factory=list)

    @classmethod
    def prepare(
        cls,
        models: Sequence[Hamiltonian],
        observations: Sequence[Observation],
        *,
        seed: int,
        pool: Pool,
        settings: Settings,
        workers: int | Executor,
        report: Progress,
        statistic: Statistic | None = None,
        past: Simulated | None = None,
        nuisances: Nuisances | None = None,
        kinds: tuple[str, ...] = KINDS,
    ) -> Campaign:
        """Declare the statistic, choose each image's box (a past campaign's where it serves) and compile the union of all terms on it."""
        check_inputs(models, observations, kinds)
        orbits = union({m.name: dict(zip(m.names, m.orbits, strict=True)) for m in models})
        if statistic is None:
            statistic = Statistic.of_terms(observations[0].environments, orbits)
        campaign = cls(models, observations, statistic, pool, seed, settings, workers, report, tuple(orbits), orbits=orbits, past=past)
        campaign.nuisances, campaign.kinds = nuisances or Nuisances(), kinds
        if past is not None:
            past.check(observations, orbits)
        for o in observations:
            supercell, atoms = campaign._box(o)
            campaign.shapes[o.name] = supercell.shape
            campaign.compiled[o.name] = Compiled.build(list(orbits.values()), supercell, len(o.environments.species))
            campaign.variants[o.name] = variants(o, supercell, atoms, campaign.nuisances)
            campaign.records[o.name] = [[] for _ in campaign.variants[o.name]]
            inside = np.zeros(supercell.n_sites, dtype=bool)
            inside[supercell.index(o.window.sites)] = True
            campaign.shares[o.name] = np.array([inside[orbit.instances(supercell)].all(axis=1).mean() for orbit in orbits.values()])
        return campaign

    def _box(self, o: Observation) -> tuple[Supercell, Sequence[int]]:
        if self.past is not None:
            try:
                return self.past.box(o)
            except InputError as misfit:
                self.notes.append(str(misfit))
        # the window's composition says something of the sample's only if the box is much larger than the window
        return o.window.box(o.environments, o.true_composition, 2 if self.nuisances.composition else 1)

    def simulate(self, points: NDArray[np.float64], parameters: Parameters | None = None) -> Emulator:
        """Run chains at union couplings (m, q) for every image, or at parameters (m, p) of a model, and solve the pool anew."""
        return self.gather(self._recipes(points, parameters))

    def _recipes(self, points: NDArray[np.float64], parameters: Parameters | None = None) -> list[Point]:
        s, q = self.settings, len(self.names)
        length = (s.samples, s.sweeps, s.burn, self.seed)
        if parameters is None or parameters.shared:
            union = points if parameters is None else points @ self._embed(parameters.model)
            return [Point(tuple(w.tolist()), *length) for w in union]
        each = {o.name: parameters.union(o.name, points, self._embed(parameters.model))[:, :q] for o in self.observations}
        return [Point(tuple(w.tolist()), *length, name) for name, union in each.items() for w in union]

    def _embed(self, model: Hamiltonian) -> NDArray[np.float64]:
        return np.array([[float(n == u) for u in self.names] for n in model.names]).reshape(len(model.names), len(self.names))

    def gather(self, points: Sequence[Point]) -> Emulator:
        """Chains of every image, from the pool (the past campaign's too) or run, and the pool solved anew."""
        found = self._chains(points)
        self.design.extend(points)
        for o in self.observations:  # in many short calls: threads would only wait for each other
            self._see(points, found, o)
        new = {key: chain.moves for key, chain in found.values() if key not in self.counted}
        self.counted.update(new)
        self.moves += sum(new.values())
        images = dict(zip(self.records, side_by_side(partial(self._emulate, variant=0), self.observations, self.threads), strict=True))
        varied = {}
        for o in self.observations:
            if len(self.variants[o.name]) > 1:
                rows = images[o.name].rows
                sides = [self._emulate(o, i, rows) for i in range(1, len(self.variants[o.name]))]
                at = middle(o, self.variants[o.name][0].atoms, self.nuisances)
                ends = [v.place for v in self.variants[o.name][1:]]
                pairs = list(zip(sides[::2], sides[1::2], strict=True))
                places = np.column_stack([ends[::2], at, ends[1::2]])
                varied[o.name] = VariedEmulator(images[o.name], pairs, places)
        self.emulator = Emulator(self.names, images, self.statistic, varied, not self.nuisances.composition)
        return self.emulator

    def _see(self, points: Sequence[Point], found: Mapping[tuple[str, int, Point], tuple[str, Chain]], o: Observation) -> None:
        """One image's records of new chains, as each of its variants shows them."""
        name = np.frombuffer(o.name.encode(), np.uint8)
        for number, (variant, records) in enumerate(zip(self.variants[o.name], self.records[o.name], strict=True)):
            for p in (p for p in points if p.image in (None, o.name)):
                # the operator's random numbers follow from the image and the chain's place, not from the round
                rng = np.random.default_rng(np.random.SeedSequence([self.seed, len(records), *name, *([number] if number else [])]))
                records.append(Records.of(found[o.name, number, p][1], variant.operator, rng))

    def _chains(self, points: Sequence[Point]) -> dict[tuple[str, int, Point], tuple[str, Chain]]:
        """Key and chain of each point, by image and variant; those that have none yet are run, ladders as a whole."""
        alone: dict[tuple[str, int, Point], DesignPoint] = {}
        together: dict[tuple[str, int, int], list[Point]] = {}
        for o in self.observations:
            for p in (p for p in points if p.image in (None, o.name)):
                for number in range(len(self.variants[o.name])):
                    if p.ladder:
                        together.setdefault((o.name, number, p.ladder), []).append(p)
                    else:
                        alone[o.name, number, p] = self._recipe(o.name, p, number)
        ladders = {place: Ladder([self._recipe(place[0], p, place[1]) for p in rungs]) for place, rungs in together.items()}
        if self.past is not None:
            self.pool.take([*alone.values(), *(rung for ladder in ladders.values() for rung in ladder.recipes)], self.past.pool)
        chains = self.pool.run(list(alone.values()), workers=self.workers, progress=self.report)
        found = {place: (recipe.key, chain) for (place, recipe), chain in zip(alone.items(), chains, strict=True)}
        exchanged = self.pool.run_ladders(list(ladders.values()), workers=self.workers, progress=self.report)
        for (place, ladder), rows in zip(ladders.items(), exchanged, strict=True):
            for p, rung, chain in zip(together[place], ladder.recipes, rows, strict=True):
                found[place[0], place[1], p] = (rung.key, chain)
        return found

    def _recipe(self, image: str, p: Point, variant: int = 0) -> DesignPoint:
        atoms = self.variants[image][variant].atoms
        return DesignPoint(self.compiled[image], np.array(p.couplings), atoms, p.samples, p.sweeps, p.burn, p.seed)

    @property
    def threads(self) -> int:
        """Threads for what is not simulation: executors are for chains alone."""
        return self.workers if isinstance(self.workers, int) else 1

    @property
    def exchanging(self) -> set[str]:
        """Images whose chains run in ladders, since chains alone were too slow."""
        return {p.image for p in self.design if p.ladder and p.image is not None}

    def _exchange(self, points: Sequence[Point], regions: Sequence[Region]) -> list[Point]:
        """The same points, with those of images that need it, and what joins them, in a ladder."""
        needed = {o.name for o in self.observations if o.name in self.exchanging or self._slow(o.name, regions)}
        if not needed:
            return list(points)
        number, found = 1 + max(p.ladder for p in self.design), []
        for o in self.observations:
            own = [replace(p, image=o.name) for p in points if p.image in (None, o.name)]
            if o.name in needed:
                rungs = linked([self._recipe(o.name, p) for p in dict.fromkeys(own)])
                own = [replace(own[0], couplings=tuple(r.couplings.tolist()), ladder=number) for r in rungs]
            found += own
        return found

    def _slow(self, image: str, regions: Sequence[Region]) -> bool:
        """Whether chains out of equilibrium carry weight where one of the posteriors is."""
        assert self.emulator is not None
        at = [r.parameters.union(image, r.centre, self._embed(r.model))[: len(self.names)] for r in regions]
        return any(slow_weight(self.emulator.images[image], union) > SLOW_BAR for union in at)

    def _emulate(self, o: Observation, variant: int, rows: tuple[int, ...] | None = None) -> ImageEmulator:
        """The emulator of one image, or of one of its variants."""
        before = None
        if self.emulator is not None:
            old = self.emulator.images[o.name]
            if variant:
                old = self.emulator.varied[o.name].sides[(variant - 1) // 2][(variant - 1) % 2]
            before = old.reweighting.free_energies
        records = self.records[o.name][variant]
        if o.name in self.exchanging and (quick := [r for r in records if not r.slow]):
            before, records = None, quick  # what is stuck would only spoil what exchange has freed
        seen = None
        if o.window.whole and not noisy(o) and o.probabilities is None and o.configuration is not None:
            seen = self.compiled[o.name].features(o.configuration.flat)
        box = (self.shapes[o.name], self.variants[o.name][0].atoms)
        shared = sum((self.shapes[other.name], self.variants[other.name][0].atoms) == box for other in self.observations)
        return ImageEmulator.build(
            o,
            self.statistic,
            records,
            before,
            shared=shared,
            features_seen=seen,
            rows=rows,
            shares=self.shares[o.name],
        )

    # ------------------------------------------------------------------ where to start

    def start(self, parameters: Parameters, given: Mapping[str, float] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """First centre and covariance: given, or pseudo-likelihood, or linear response about the random alloy; Cramer-Rao width."""
        assert self.emulator is not None
        model, k = parameters.model, len(parameters.model.names)
        origin = np.array([float(np.asarray(parameters.prior(n).mean)) for n in parameters.names])
        origin[:k] = 0.0
        for o in self.observations:
            places = list(parameters.own[o.name])
            origin[places] = middle(o, self.variants[o.name][0].atoms, self.nuisances)
        # a weak prior keeps directions finite in which the images say nothing; what is no coupling keeps its own
        weak = np.diag(1 / widths(parameters) ** 2)
        for o in self.observations:
            for place in parameters.own[o.name]:
                if parameters.names[place].startswith("x_"):  # what the window shows says more than a flat prior
                    weak[place, place] = o.n / max(origin[place] * (1 - origin[place]), 1e-6)
        # the energy is felt at a temperature only where there is one: slopes at the origin leave temperatures to their priors
        steps = [scoring(self.emulator, parameters, o, origin) for o in self.observations]
        information, score = sum(i for i, _ in steps), sum(s for _, s in steps)
        response = origin + np.linalg.solve(information + weak, score)
        cov = _WIDER * np.linalg.inv(information + weak)
        if given is not None:
            origin[:k] = model.vector(given)
            return origin, cov
        centre, guess = response, pseudo_likelihood(model, self.observations) if parameters.shared or not parameters.temperature else None
        if guess is not None and guess.exact:
            centre[:k] = guess.couplings
        for a, name in enumerate(model.names):  # a bounded prior may exclude the estimate: begin inside it, one width away
            prior = model.prior(name)
            for side in (1, -1):
                if not np.asarray(prior.support(centre[a])) and np.asarray(prior.support(side * np.sqrt(cov[a, a]))):
                    centre[a] = side * np.sqrt(cov[a, a])
            if not np.asarray(prior.support(centre[a])):
                centre[a] = float(prior.mean)
        return centre, cov

    # ------------------------------------------------------------------ rounds

    def run(self, starts: Mapping[str, Mapping[str, float]] | None = None) -> list[Region]:
        """All rounds; returns one region a model with couplings and a likelihood, in that order."""
        if self.past is None:
            self.simulate(np.zeros((1, len(self.names))))
        else:
            self.gather(self.past.points)
        regions = []
        for model in self.models:
            if model.terms:
                given = (starts or {}).get(model.name)
                parameters = Parameters.of(model, self.observations, self.nuisances)
                start = self.start(parameters, given)
                known = {} if self.past is None or given is not None else {k: self.past.centre(parameters, k) for k in self.kinds}
                for kind in self.kinds:
                    # the pseudo-likelihood of a whole crystal is nearly as sure as the exact likelihood: no need to look further
                    centre, cov = known.get(kind) or (start[0], start[1] / _WIDER if kind == "exact" else start[1])
                    regions.append(Region(parameters, kind, centre, cov, np.zeros((0, len(centre))), widest=np.diag(cov)))
        if self.past is not None:
            regions = self.look(regions)
        for number in range(self.settings.rounds):
            active = [r for r in regions if not r.settled]
            if not active:
                break
            points = [p for r in active for p in (*self._recipes(self._points(r, number), r.parameters), *self._stones(r))]
            self.gather(self._exchange(list(dict.fromkeys(points)), active))
            regions = side_by_side(partial(self._advance, number=number), regions, self.threads)
            self._remember(number, regions)
        return regions

    def look(self, regions: Sequence[Region]) -> list[Region]:
        """Find the posteriors on the chains there are, running none."""
        for number in range(_LOOKS):
            if not all(r.settled for r in regions):
                regions = [r if r.settled else self._advance(r, self.settings.rounds + number) for r in regions]
        self._remember(-1, regions)
        return list(regions)

    def simulated(self, regions: Sequence[Region]) -> Simulated:
        """What was run so far, for a later campaign to take."""
        first = self.observations[0].environments
        return Simulated(
            lattice=repr(first.lattice),
            geometry=geometry(first.lattice),
            species=first.species,
            terms={name: identity(orbit) for name, orbit in self.orbits.items()},
            boxes={o.name: Box(self.shapes[o.name], self.variants[o.name][0].atoms) for o in self.observations},
            points=tuple(self.design),
            centres={
                f"{r.model.name}, {r.kind}": {"couplings": r.parameters.names, "mean": r.centre.tolist(), "cov": r.cov.tolist()}
                for r in regions
            },
            pool=self.pool,
        )

    @property
    def _mark(self) -> list[int]:
        """Part of the random numbers' keys: none where no chains are reused."""
        return [] if self.past is None else [len(self.past.points)]

    def _points(self, region: Region, number: int) -> NDArray[np.float64]:
        """Design points of one region (points, p): spread over it, wider than the posterior itself."""
        assert self.emulator is not None
        key = [self.seed, number, *self._mark, *np.frombuffer((region.model.name + region.kind).encode(), np.uint8)]
        sobol = qmc.MultivariateNormalQMC(np.zeros(len(region.centre)), seed=np.random.default_rng(np.random.SeedSequence(key)))
        n = max(self.settings.points, 2 * len(region.centre))
        z = 1.6 * sobol.random(1 << (n - 1).bit_length())[:n]
        points = region.centre + z @ np.linalg.cholesky(region.cov).T
        if len(region.draws):  # half of them at the draws that the pool supports least
            some = region.draws[:: max(1, len(region.draws) // 256)]
            thin = some[np.argsort(self._supports(region, some))[: 4 * (n // 2) : 4]]
            points[: len(thin)] = thin
        return points

    def _stones(self, region: Region) -> list[Point]:
        """Chains still wanted on the way from the random alloy, along which likelihoods are integrated."""
        if len(self.models) < 2 or region.kind == "independent" or region.smooth is None or region.beyond:
            return []  # one model alone is compared with nothing
        assert self.emulator is not None
        s, q, found = self.settings, len(self.names), []
        for name, image in self.emulator.images.items():
            end, several = region.parameters.union(name, region.centre, self._embed(region.model)), self.emulator.at(name)
            places = stones(path(several.batch, several.random, end))[:, :q]
            bare = places[image.reweighting.support(places) < _FOOTHOLD]
            found += [Point(tuple(w), s.samples, s.sweeps, s.burn, self.seed, name) for w in bare.tolist()]
        return found

    def _supports(self, region: Region, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Least support (m,) among the images at parameters (m, p)."""
        assert self.emulator is not None
        if region.smooth is not None and (found := region.smooth.support(values)) is not None:
            return found
        embed, q = self.emulator.embed(region.model), len(self.names)
        at = {name: region.parameters.union(name, values, embed)[:, :q] for name in self.emulator.images}
        return np.min([image.reweighting.support(at[name]) for name, image in self.emulator.images.items()], axis=0)

    def _advance(self, region: Region, number: int) -> Region:
        """Where the posterior is on the chains there are now, and whether it stands still, supported and known well enough."""
        assert self.emulator is not None
        key = [self.seed, 7, number, *self._mark, *np.frombuffer(region.model.name.encode(), np.uint8)]
        rng = np.random.default_rng(np.random.SeedSequence(key))
        found = region
        for _ in range(_REFITS):  # chains tell most about the place for which the polynomials are fitted: follow the posterior there
            before, found = found, self._refit(found, rng)
            if found.smooth is before.smooth or _moved(before, found) < self.settings.moved:
                break
        if found.smooth is None or found.smooth is region.smooth:
            return replace(found, settled=False)  # too thin a pool: more chains over the same region
        supports = self._supports(found, found.draws[:: max(1, len(found.draws) // 256)])
        support = float(np.quantile(supports, 0.05))
        # the bulk well supported, and the outermost draws twice as well as they will be checked for
        held = support > self.settings.support and supports.min() > 2 * SUPPORT_BAR
        quiet = emulator_error(self.emulator, found.smooth, self.observations, found.centre, found.cov).max() < self.settings.noise
        still = region.smooth is not None and not found.beyond and _moved(region, found) < self.settings.moved
        some = found.draws[:: max(1, len(found.draws) // 128)]
        # the check is of other draws: leave it some room
        close = found.smooth.support(some) is not None or (
            smooth_error(self.emulator, found.smooth, self.observations, found.kind, some) < 0.8 * SMOOTH_BAR
        )
        free = all(o.name in self.exchanging or not self._slow(o.name, [found]) for o in self.observations)
        found = replace(found, settled=bool(still and held and quiet and close and free), support=support)
        return replace(found, settled=found.settled and not self._stones(found))

    def _refit(self, region: Region, rng: np.random.Generator) -> Region:
        """The posterior on polynomials fitted where it is believed to be; the region unchanged if the pool is too thin there."""
        assert self.emulator is not None
        try:
            smooth = SmoothEmulator.fit(self.emulator, region.parameters, region.centre, region.cov, rng)
        except CheckError:
            return region
        draws = explore(smooth, self.observations, region.kind, rng)
        centre, cov, beyond = draws.mean(axis=0), np.atleast_2d(np.cov(draws.T)), _astray(smooth, draws)
        if beyond:  # there a width means nothing: look farther, but not wider than at first
            cov = np.clip((region.widest / np.diag(region.cov)).min(), 1.0, _GROWTH) * region.cov
        return replace(region, centre=centre, cov=cov, draws=draws, smooth=smooth, beyond=beyond)

    def _remember(self, number: int, regions: Sequence[Region]) -> None:
        for r in regions:
            sd = np.sqrt(np.diag(r.cov)).tolist()
            row = {
                "round": number + 1,
                "model": r.model.name,
                "likelihood": r.kind,
                "mean": r.centre.tolist(),
                "sd": sd,
                "support": r.support,
            }
            self.history.append({**row, "chains": len(self.design), "settled": r.settled})


def _astray(smooth: SmoothEmulator, draws: NDArray[np.float64]) -> bool:
    """Whether a posterior lies beyond its region: found at the edge, its width says nothing; nor does that of a few points."""
    away = float(np.linalg.norm(smooth.whitened(draws.mean(axis=0)[None])))
    return away > _AWAY or len(np.unique(draws, axis=0)) < _SCATTER


def _moved(before: Region, after: Region) -> float:
    """Largest shift of a mean, in standard deviations, or change of a width, in its logarithm."""
    sd, old = np.sqrt(np.diag(after.cov)), np.sqrt(np.diag(before.cov))
    return float(max((np.abs(after.centre - before.centre) / sd).max(), np.abs(np.log(sd / old)).max()))
