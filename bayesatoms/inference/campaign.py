"""The campaign: which chains to run for a set of models and images, round after round.

All candidates share one pool in the union of their couplings. A round fits a smooth emulator over the
region where each posterior is believed to be, finds the posterior there by importance sampling,
and adds chains at draws of it; it ends when the posteriors stay put and their draws have support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from ..errors import CheckError, InputError
from ..hamiltonian import Compiled, Hamiltonian, Orbit
from ..lattice import Supercell
from ..montecarlo.pool import DesignPoint, Pool
from ..observation import Observation
from ..progress import Progress
from ..window import Operator
from .emulator import SUPPORT_BAR, Emulator, ImageEmulator, Records
from .likelihood import calibrated_log_density, independent_log_density
from .pseudolikelihood import pseudo_likelihood
from .reuse import Box, Point, Simulated, geometry, identity
from .smooth import SmoothEmulator
from .statistic import Statistic, union

KINDS = ("calibrated", "independent")
_LOOKS = 4  # passes over reused chains, at most, before new ones are run
_AWAY = 2.5  # standard deviations from a region's centre beyond which a posterior is not inside it


@dataclass(frozen=True)
class Settings:
    """How much to simulate and when to stop. The defaults serve a few images of some hundred sites.

    points : chains a round for each posterior; samples, sweeps, burn : records of a chain, sweeps
    between them and before the first; rounds : at most; moved : largest shift of a mean, in standard
    deviations, that counts as standing still; support : effective records under the posterior, in
    chains, below which chains are added; warmup, draws, parallel : NUTS steps and chains.
    """

    points: int = 8
    samples: int = 240
    sweeps: float = 2.0
    burn: float = 120.0
    rounds: int = 8
    moved: float = 0.15
    support: float = 1.0
    warmup: int = 500
    draws: int = 2000
    parallel: int = 4


@dataclass(frozen=True, eq=False)
class Region:
    """Where one posterior is believed to be, and its history.

    `centre`, `cov` are the current mean and covariance (k,), (k, k); `draws` (n, k) equally weighted;
    `settled` says that the last round left it in place with support.
    """

    model: Hamiltonian
    kind: str
    centre: NDArray[np.float64]
    cov: NDArray[np.float64]
    draws: NDArray[np.float64]
    smooth: SmoothEmulator | None = None
    settled: bool = False
    support: float = 0.0


@dataclass(eq=False)
class Campaign:
    """Everything that simulation needs, and what it has gathered so far."""

    models: Sequence[Hamiltonian]
    observations: Sequence[Observation]
    statistic: Statistic
    pool: Pool
    seed: int
    settings: Settings
    workers: int
    report: Progress
    names: tuple[str, ...]
    compiled: dict[str, Compiled] = field(default_factory=dict)
    operators: dict[str, Operator] = field(default_factory=dict)
    atoms: dict[str, tuple[int, ...]] = field(default_factory=dict)
    records: dict[str, list[Records]] = field(default_factory=dict)
    orbits: Mapping[str, Orbit] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    design: list[Point] = field(default_factory=list)
    past: Simulated | None = None
    notes: list[str] = field(default_factory=list)
    emulator: Emulator | None = None
    moves: int = 0
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
        workers: int,
        report: Progress,
        statistic: Statistic | None = None,
        past: Simulated | None = None,
    ) -> Campaign:
        """Declare the statistic, choose each image's box (a past campaign's where it serves) and compile the union of all terms on it."""
        check_inputs(models, observations)
        orbits = union({m.name: dict(zip(m.names, m.orbits, strict=True)) for m in models})
        if statistic is None:
            statistic = Statistic.of_terms(observations[0].environments, orbits)
        campaign = cls(models, observations, statistic, pool, seed, settings, workers, report, tuple(orbits), orbits=orbits, past=past)
        if past is not None:
            past.check(observations, orbits)
        for o in observations:
            supercell, atoms = campaign._box(o)
            campaign.shapes[o.name] = supercell.shape
            campaign.compiled[o.name] = Compiled.build(list(orbits.values()), supercell, len(o.environments.species))
            campaign.operators[o.name] = Operator(o.environments, o.window, supercell, o.response)
            campaign.atoms[o.name], campaign.records[o.name] = tuple(int(a) for a in atoms), []
        return campaign

    def _box(self, o: Observation) -> tuple[Supercell, Sequence[int]]:
        if self.past is not None:
            try:
                return self.past.box(o)
            except InputError as misfit:
                self.notes.append(str(misfit))
        return o.window.box(o.environments, o.true_composition)

    def simulate(self, points: NDArray[np.float64]) -> Emulator:
        """Run chains at union couplings (m, q) for every image and solve the pool anew."""
        s = self.settings
        return self.gather([Point(tuple(w.tolist()), s.samples, s.sweeps, s.burn, self.seed) for w in points])

    def gather(self, points: Sequence[Point]) -> Emulator:
        """Chains of every image, from the pool (the past campaign's too) or run, and the pool solved anew."""
        recipes = [
            DesignPoint(self.compiled[o.name], np.array(p.couplings), self.atoms[o.name], p.samples, p.sweeps, p.burn, p.seed)
            for o in self.observations
            for p in points
        ]
        if self.past is not None:
            self.pool.take(recipes, self.past.pool)
        found = iter(self.pool.run(recipes, workers=self.workers, progress=self.report))
        self.design.extend(points)
        images = {}
        for o in self.observations:
            name = np.frombuffer(o.name.encode(), np.uint8)
            for _ in points:  # the operator's random numbers follow from the image and the chain's place, not from the round
                rng = np.random.default_rng(np.random.SeedSequence([self.seed, len(self.records[o.name]), *name]))
                chain = next(found)
                self.records[o.name].append(Records.of(chain, self.operators[o.name], rng))
                self.moves += chain.moves
            before = self.emulator.images[o.name].reweighting.free_energies if self.emulator else None
            images[o.name] = ImageEmulator.build(o, self.statistic, self.records[o.name], before)
        self.emulator = Emulator(self.names, images, self.statistic)
        return self.emulator

    # ------------------------------------------------------------------ where to start

    def start(self, model: Hamiltonian, given: Mapping[str, float] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """First centre and covariance: given, or pseudo-likelihood, or linear response about the random alloy; Cramer-Rao width."""
        assert self.emulator is not None
        origin, k = np.zeros(len(model.names)), len(model.names)
        steps = [scoring(self.emulator, model, o, origin) for o in self.observations]
        information, score = sum(i for i, _ in steps), sum(s for _, s in steps)
        response = np.linalg.solve(information + np.eye(k), score)
        # a weak prior keeps directions finite in which the images say nothing
        cov = 2.25 * np.linalg.inv(information + np.eye(k))
        if given is not None:
            return model.vector(given), cov
        guess = pseudo_likelihood(model, self.observations)
        centre = guess.couplings if guess is not None and guess.exact else response
        for a, name in enumerate(model.names):  # a bounded prior may exclude the estimate: begin inside it, one width away
            prior = model.prior(name)
            for side in (1, -1):
                if not np.asarray(prior.support(centre[a])) and np.asarray(prior.support(side * np.sqrt(cov[a, a]))):
                    centre = np.where(np.arange(k) == a, side * np.sqrt(cov[a, a]), centre)
            if not np.asarray(prior.support(centre[a])):
                centre = np.where(np.arange(k) == a, float(prior.mean), centre)
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
                start = self.start(model, given)
                known = {} if self.past is None or given is not None else {kind: self.past.centre(model, kind) for kind in KINDS}
                regions += [Region(model, k, *(known.get(k) or start), np.zeros((0, len(start[0])))) for k in KINDS]
        if self.past is not None:
            regions = self.look(regions)
        for number in range(self.settings.rounds):
            active = [r for r in regions if not r.settled]
            if not active:
                break
            self.simulate(np.concatenate([self._points(r, number) for r in active]))
            regions = [self._advance(r, number) for r in regions]
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
            boxes={o.name: Box(self.shapes[o.name], self.atoms[o.name]) for o in self.observations},
            points=tuple(self.design),
            centres={
                f"{r.model.name}, {r.kind}": {"couplings": r.model.names, "mean": r.centre.tolist(), "cov": r.cov.tolist()} for r in regions
            },
            pool=self.pool,
        )

    @property
    def _mark(self) -> list[int]:
        """Part of the random numbers' keys: none where no chains are reused."""
        return [] if self.past is None else [len(self.past.points)]

    def _points(self, region: Region, number: int) -> NDArray[np.float64]:
        """Design points of one region in union couplings: spread over it, wider than the posterior itself."""
        assert self.emulator is not None
        key = [self.seed, number, *self._mark, *np.frombuffer((region.model.name + region.kind).encode(), np.uint8)]
        sobol = qmc.MultivariateNormalQMC(np.zeros(len(region.centre)), seed=np.random.default_rng(np.random.SeedSequence(key)))
        count = 1 << (self.settings.points - 1).bit_length()
        z = 1.6 * sobol.random(count)[: self.settings.points]
        points = region.centre + z @ np.linalg.cholesky(region.cov).T
        if len(region.draws):  # half of them at the draws that the pool supports least
            some = region.draws[:: max(1, len(region.draws) // 256)]
            union = some @ self.emulator.embed(region.model)
            supports = np.min([image.reweighting.support(union) for image in self.emulator.images.values()], axis=0)
            thin = some[np.argsort(supports)[: 4 * (self.settings.points // 2) : 4]]
            points[: len(thin)] = thin
        return points @ self.emulator.embed(region.model)

    def _advance(self, region: Region, number: int) -> Region:
        assert self.emulator is not None
        key = [self.seed, 7, number, *self._mark, *np.frombuffer(region.model.name.encode(), np.uint8)]
        rng = np.random.default_rng(np.random.SeedSequence(key))
        try:
            smooth = SmoothEmulator.fit(self.emulator, region.model, region.centre, region.cov, rng)
        except CheckError:
            return replace(region, settled=False)  # too thin a pool: more chains over the same region
        draws = explore(smooth, self.observations, region.kind, rng)
        centre, cov = draws.mean(axis=0), np.atleast_2d(np.cov(draws.T))
        away = float(np.linalg.norm(smooth.whitened(centre[None])))
        if away > _AWAY:
            # the posterior lies beyond this region: what was found is its edge, whose width says nothing
            return replace(region, centre=centre, cov=region.cov, draws=draws, smooth=smooth, settled=False)
        sd = np.sqrt(np.diag(cov))
        shift = np.abs(centre - region.centre) / sd
        width = np.abs(np.log(sd / np.sqrt(np.diag(region.cov))))
        some = draws[:: max(1, len(draws) // 256)] @ self.emulator.embed(region.model)
        supports = np.min([image.reweighting.support(some) for image in self.emulator.images.values()], axis=0)
        support = float(np.quantile(supports, 0.05))
        # the bulk well supported, and the outermost draws twice as well as they will be checked for
        held = support > self.settings.support and supports.min() > 2 * SUPPORT_BAR
        first = region.smooth is None
        still = not first and bool(max(shift.max(), width.max()) < self.settings.moved)
        return replace(region, centre=centre, cov=cov, draws=draws, smooth=smooth, settled=bool(still and held), support=support)

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


def check_inputs(models: Sequence[Hamiltonian], observations: Sequence[Observation]) -> None:
    """Refuse what cannot be inferred from: nothing to infer, names twice, lattices or species that differ (InputError)."""
    if not models or not observations:
        raise InputError(f"{len(models)} models and {len(observations)} observations given; expected at least one of each")
    if not any(m.terms for m in models):
        raise InputError(f"model {', '.join(m.name for m in models)} has no couplings: there is nothing to infer; add a model with a term")
    for kind, names in (("models", [m.name for m in models]), ("observations", [o.name for o in observations])):
        if len(set(names)) != len(names):
            raise InputError(f"two {kind} are called {max(names, key=names.count)!r}; give each a name of its own")
    for name in [*(m.name for m in models), *(o.name for o in observations)]:
        if not name.strip() or set(name) & set('/\\:*?"<>|') or name.startswith("."):
            raise InputError(f"name {name!r} cannot be a file's name; use letters, digits, spaces, - or _")
    first = observations[0].environments
    for o in observations:
        if o.environments.key != first.key or o.environments.species != first.species:
            raise InputError(f"{o.name} is counted by {o.environments!r}, {observations[0].name} by {first!r}; expected the same for all")
        if np.count_nonzero(o.true_composition > 0) < 2:
            raise InputError(
                f"{o.name} shows one species only; a fixed composition without a partner says nothing about couplings: leave it out"
            )
    for m in models:
        if m.lattice != first.lattice or m.species != first.species:
            raise InputError(
                f"model {m.name} is on {m.lattice!r} with {'/'.join(m.species)}; "
                f"the images are on {first.lattice!r} with {'/'.join(first.species)}"
            )


def scoring(
    emulator: Emulator, model: Hamiltonian, observation: Observation, couplings: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fisher information (k, k) and score (k,) of one image at a model's couplings, by linear response: dm/dw = -Cov(t, F)."""
    image, embed = emulator.images[observation.name], emulator.embed(model)
    moments = image.moments(couplings @ embed)
    weights = image.reweighting.weights(couplings @ embed)
    apart = image.table[:, : len(image.offset)] + image.offset - moments.mean
    slope = -(apart * weights[:, None]).T @ image.reweighting.features @ embed.T
    given = image.n_composition
    # whitening by the Cholesky factor and dropping its leading rows is conditioning on the composition
    jacobian = np.linalg.solve(moments.lower, slope)[given:]
    apart = np.linalg.solve(moments.lower, emulator.statistic(observation) - moments.mean)[given:]
    return jacobian.T @ jacobian, jacobian.T @ apart


def log_likelihoods(
    smooth: SmoothEmulator, observations: Sequence[Observation], kind: str, couplings: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log likelihood of each image at many couplings (m, k); shape (m, images)."""
    columns = []
    for o in observations:
        mean, lower, histogram = (part[0] for part in smooth.factors([o.name], couplings))
        if kind == "calibrated":
            columns.append(calibrated_log_density(smooth.statistic(o), mean, lower, smooth.n_composition(o)))
        else:
            columns.append(independent_log_density(o.histogram, histogram, o.n))
    return np.stack(columns, axis=1)


def pool_log_likelihoods(
    emulator: Emulator, observations: Sequence[Observation], kind: str, union: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same straight from the pool, at union couplings (m, q); shape (m, images)."""
    columns = []
    for o in observations:
        moments, _ = emulator.images[o.name].batch(union)
        if kind == "calibrated":
            columns.append(calibrated_log_density(emulator.statistic(o), moments.mean, moments.lower, emulator.n_composition(o)))
        else:
            columns.append(independent_log_density(o.histogram, moments.histogram, o.n))
    return np.stack(columns, axis=1)


def log_prior(model: Hamiltonian, couplings: NDArray[np.float64], scale: float = 1.0) -> NDArray[np.float64]:
    """Log prior density at couplings (m, k); `scale` widens every prior about its mean, or about 0 where it is bounded."""
    total = np.zeros(len(couplings))
    for a, name in enumerate(model.names):
        prior = model.prior(name)
        middle = float(prior.mean)
        about = middle if scale != 1 and unbounded(prior) and np.isfinite(middle) else 0.0
        value = about + (couplings[:, a] - about) / scale
        inside = np.asarray(prior.support(value))
        total += np.where(inside, np.asarray(prior.log_prob(np.where(inside, value, middle))), -np.inf) - np.log(scale)
    return total


def unbounded(prior: Any) -> bool:
    """Whether a prior allows any real number."""
    return bool(np.all(np.asarray(prior.support(np.array([-1e6, -1.0, 0.0, 1.0, 1e6])))))


def explore(
    smooth: SmoothEmulator, observations: Sequence[Observation], kind: str, rng: np.random.Generator, n: int = 3000
) -> NDArray[np.float64]:
    """Equally weighted draws (n, k) of the posterior on a smooth emulator, by adaptive importance sampling with Student-t proposals."""
    centre, root = smooth.centre, 1.3 * smooth.scale
    for _ in range(8):
        k, freedom = len(centre), 6.0
        z = rng.normal(size=(n, k)) / np.sqrt(rng.chisquare(freedom, size=(n, 1)) / freedom)
        w = centre + z @ root.T
        proposal = -(freedom + k) / 2 * np.log1p((z**2).sum(axis=1) / freedom)
        target = log_likelihoods(smooth, observations, kind, w).sum(axis=1) + log_prior(smooth.model, w) + smooth.leash(w)
        weight = target - proposal
        if not np.isfinite(weight.max()):
            raise CheckError(
                f"{smooth.model.name}: no point near {centre.round(3).tolist()} is possible under the prior; give a start inside it"
            )
        weight = np.exp(weight - weight.max())
        weight /= weight.sum()
        centre = weight @ w
        apart = w - centre
        cov = (apart * weight[:, None]).T @ apart + 1e-12 * np.eye(k)
        root = np.linalg.cholesky(cov) * 1.2
        if 1 / (weight**2).sum() > 0.5 * n:
            break
    return w[rng.choice(n, size=n, p=weight)]
