"""The campaign: which chains to run for a set of models and images, round after round.

All candidates share one pool in the union of their couplings. A round searches each posterior on the chains
there are (:mod:`bayesatoms.inference.regions`) and adds chains at draws of it; it ends when the posteriors stay put
and their draws have support. Where chains turn out too slow, those of later rounds exchange configurations with
their neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..environments import Environments
from ..errors import InputError
from ..hamiltonian import Compiled, Hamiltonian, Orbit
from ..lattice import Supercell
from ..montecarlo.chains import Chain
from ..montecarlo.design import DesignPoint
from ..montecarlo.exchange import Ladder, linked
from ..montecarlo.executors import Executor
from ..montecarlo.pool import Pool
from ..observation import Observation
from ..progress import Progress
from .emulator import Emulator, ImageEmulator, Records
from .inputs import KINDS, check_inputs
from .parameters import Nuisances, Parameters, noisy
from .regions import WIDER, Region, Search
from .reuse import Box, Point, Simulated, geometry, identity
from .settings import Settings
from .statistic import Statistic, union
from .threads import side_by_side
from .variation import Variant, VariedEmulator, middle, variants

_LOOKS = 4  # passes over reused chains, at most, before new ones are run


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
        campaign = cls.empty(
            models, observations[0].environments, seed=seed, pool=pool, settings=settings, workers=workers, report=report,
            statistic=statistic, past=past, nuisances=nuisances, kinds=kinds,
        )  # fmt: skip
        if past is not None:
            past.check(observations, campaign.orbits)
        for o in observations:
            campaign.admit(o)
        return campaign

    @classmethod
    def empty(
        cls,
        models: Sequence[Hamiltonian],
        environments: Environments,
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
        """One that knows its models, and no image yet."""
        orbits = union({m.name: dict(zip(m.names, m.orbits, strict=True)) for m in models})
        if statistic is None:
            statistic = Statistic.of_terms(environments, orbits)
        campaign = cls(models, (), statistic, pool, seed, settings, workers, report, tuple(orbits), orbits=orbits, past=past)
        campaign.nuisances, campaign.kinds = nuisances or Nuisances(), kinds
        return campaign

    def copy(self) -> Campaign:
        """Another that has the same chains and images: what is done with it leaves this one as it is."""
        records = {image: [list(r) for r in rows] for image, rows in self.records.items()}
        own = {f.name: type(v)(v) for f in fields(self) if isinstance(v := getattr(self, f.name), dict | list | set)}
        return replace(self, **{**own, "records": records})

    def admit(self, o: Observation) -> None:
        """Take one more image: choose its box and compile the terms on it. It needs chains (:meth:`gather`) before anything else.

        Raises
        ------
        InputError
            If it does not belong with the models or the images there are.
        """
        check_inputs(self.models, [*self.observations, o], self.kinds)
        supercell, atoms = self._box(o)
        seen = variants(o, supercell, atoms, self.nuisances)
        self.shapes[o.name] = supercell.shape
        self.compiled[o.name] = Compiled.build(list(self.orbits.values()), supercell, len(o.environments.species))
        self.variants[o.name] = seen
        self.records[o.name] = [[] for _ in seen]
        inside = np.zeros(supercell.n_sites, dtype=bool)
        inside[supercell.index(o.window.sites)] = True
        self.shares[o.name] = np.array([inside[orbit.instances(supercell)].all(axis=1).mean() for orbit in self.orbits.values()])
        self.observations = [*self.observations, o]

    def box(self, image: str) -> Box:
        """What is simulated for an image."""
        return Box(self.shapes[image], self.variants[image][0].atoms)

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

    def named(self, places: Mapping[str, NDArray[np.float64]]) -> list[Point]:
        """Points of single images, at union couplings (m, q) by image."""
        s = self.settings
        return [Point(tuple(w), s.samples, s.sweeps, s.burn, self.seed, name) for name, union in places.items() for w in union.tolist()]

    def _embed(self, model: Hamiltonian) -> NDArray[np.float64]:
        return np.array([[float(n == u) for u in self.names] for n in model.names]).reshape(len(model.names), len(self.names))

    def gather(self, points: Sequence[Point]) -> Emulator:
        """Chains of the points' images, from the pool (the past campaign's too) or run, and the pool of each solved anew."""
        found = self._chains(points)
        self.design.extend(points)
        for o in self.observations:
            self._see(points, found, o)
        new = {key: chain.moves for key, chain in found.values() if key not in self.counted}
        self.counted.update(new)
        self.moves += sum(new.values())
        touched = [o for o in self.observations if any(p.image in (None, o.name) for p in points)]
        fresh = dict(zip((o.name for o in touched), side_by_side(partial(self._emulate, variant=0), touched, self.threads), strict=True))
        old = {} if self.emulator is None else self.emulator.images
        images, varied = {}, {} if self.emulator is None else dict(self.emulator.varied)
        for o in self.observations:
            images[o.name] = fresh[o.name] if o.name in fresh else _sharing(old[o.name], self._sharers(o))
            if len(self.variants[o.name]) > 1 and o.name in fresh:
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

    def exchange(self, points: Sequence[Point], regions: Sequence[Region]) -> list[Point]:
        """The same points, with those of images that need it, and what joins them, in a ladder."""
        needed = {o.name for o in self.observations if o.name in self.exchanging or self.search.slow(o.name, regions)}
        if not needed:
            return list(points)
        number, found = 1 + max(p.ladder for p in self.design), []
        for o in self.observations:
            own = [replace(p, image=o.name) for p in points if p.image in (None, o.name)]
            if own and o.name in needed:
                rungs = linked([self._recipe(o.name, p) for p in dict.fromkeys(own)])
                own = [replace(own[0], couplings=tuple(r.couplings.tolist()), ladder=number) for r in rungs]
            found += own
        return found

    def _sharers(self, o: Observation) -> int:
        """Images that rest on the chains of this one."""
        return sum(self.box(other.name) == self.box(o.name) for other in self.observations)

    def _emulate(self, o: Observation, variant: int, rows: tuple[int, ...] | None = None) -> ImageEmulator:
        """The emulator of one image, or of one of its variants."""
        before = None
        if self.emulator is not None and o.name in self.emulator.images:
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
        return ImageEmulator.build(
            o,
            self.statistic,
            records,
            before,
            shared=self._sharers(o),
            features_seen=seen,
            rows=rows,
            shares=self.shares[o.name],
        )

    # ------------------------------------------------------------------ rounds

    @property
    def search(self) -> Search:
        """The search for posteriors on the chains there are now."""
        assert self.emulator is not None
        # where no chains are reused the keys of the random numbers have no mark
        mark = () if self.past is None else (len(self.past.points),)
        own = {o.name: middle(o, self.variants[o.name][0].atoms, self.nuisances) for o in self.observations}
        return Search(
            self.emulator, self.observations, self.settings, self.seed, several=len(self.models) > 1, mark=mark,
            exchanging=frozenset(self.exchanging), own=own,
        )  # fmt: skip

    def start(self, parameters: Parameters, given: Mapping[str, float] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """First centre and covariance of a posterior: see :meth:`Search.start`."""
        return self.search.start(parameters, given)

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
                start = self.search.start(parameters, given)
                known = {} if self.past is None or given is not None else {k: self.past.centre(parameters, k) for k in self.kinds}
                for kind in self.kinds:
                    # the pseudo-likelihood of a whole crystal is nearly as sure as the exact likelihood: no need to look further
                    centre, cov = known.get(kind) or (start[0], start[1] / WIDER if kind == "exact" else start[1])
                    regions.append(Region.at(parameters, kind, centre, cov))
        if self.past is not None:
            regions = self.look(regions)
        for number in range(self.settings.rounds):
            active = [r for r in regions if not r.settled]
            if not active:
                break
            search, points = self.search, []
            for r in active:
                points += [*self._recipes(search.points(r, number), r.parameters), *self.named(search.stones(r))]
            self.gather(self.exchange(list(dict.fromkeys(points)), active))
            regions = side_by_side(partial(self.search.advance, number=number), regions, self.threads)
            self._remember(number, regions)
        return regions

    def look(self, regions: Sequence[Region]) -> list[Region]:
        """Find the posteriors on the chains there are, running none."""
        for number in range(_LOOKS):
            if not all(r.settled for r in regions):
                regions = [r if r.settled else self.search.advance(r, self.settings.rounds + number) for r in regions]
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
            boxes={o.name: self.box(o.name) for o in self.observations},
            points=tuple(self.design),
            centres={
                f"{r.model.name}, {r.kind}": {"couplings": r.parameters.names, "mean": r.centre.tolist(), "cov": r.cov.tolist()}
                for r in regions
            },
            pool=self.pool,
        )

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


def _sharing(image: ImageEmulator, shared: int) -> ImageEmulator:
    """An image's emulator whose chains so many images rest on."""
    return image if image.shared == shared else replace(image, shared=shared)
