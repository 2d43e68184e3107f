"""Does choosing the next composition by expected gain save images? python benchmarks/next_image.py SECTION [options]

choice  simulated campaigns: the truth is drawn from the prior, images are simulated at it one by one, and the posterior of the one
        coupling is exact after each. The next composition is the one of largest expected gain, or one at random; the campaign ends
        when the posterior's standard deviation is small enough. How many images each way takes, and what is saved. Minutes.
stop    campaigns through the session that a microscopist has: `Sequential` with a stop rule, the next composition by expected
        gain from its draws. The image at which it stops, against the first after which the exact posterior of the same images
        (and of some more) stays narrow enough; and the width it stated, against that of a new session given all at once. Minutes.

A triangular alloy of 22 x 22 sites with one pair coupling, prior Normal(0, 0.2) kT. Images are whole periodic crystals, so
the likelihood is exp(-w F) / Z(w), with ln Z of every composition from one reweighted pool of chains.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from numpyro import distributions as dist

from bayesatoms.hamiltonian import Compiled, Hamiltonian, Pair
from bayesatoms.inference.reweighting import Reweighting
from bayesatoms.inference.sequential import Sequential
from bayesatoms.inference.stopping import StopRule
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chain, run_chains
from bayesatoms.observation import Observation
from bayesatoms.phases.candidates import Candidate
from bayesatoms.planning.targets import coupling, what_next

Floats = NDArray[np.float64]
WAYS = ("gain", "random", "worst")


@dataclass(frozen=True, eq=False)
class Alloy:
    """What is imaged: a periodic crystal of `side` x `side` sites at any of some `compositions`, and what is believed beforehand."""

    side: int = 22
    compositions: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(1, 20))
    prior_sd: float = 0.2
    seed: int = 1
    reach: tuple[float, float] = (-1.4, 1.15)
    nodes: int = 44
    chains: int = 16
    records: int = 60
    burn: float = 1500.0  # sweeps before an image is taken

    @cached_property
    def model(self) -> Hamiltonian:
        pair = Pair("A", "B", name="w1", prior=dist.Normal(0, self.prior_sd))
        return Hamiltonian("P1", pair, lattice=Lattice.triangular(), species=("A", "B"))

    @cached_property
    def compiled(self) -> Compiled:
        return self.model.compile(self.model.lattice.supercell((self.side, self.side)))

    @cached_property
    def grid(self) -> Floats:
        """Couplings at which the posterior is computed."""
        return np.linspace(*self.reach, 1021)

    def atoms(self, composition: float) -> tuple[int, int]:
        """Of each species."""
        n = round(composition * self.side**2)
        return self.side**2 - n, n

    @cached_property
    def log_z(self) -> dict[int, Floats]:
        """ln Z on the grid by the atoms of the rarer species: swapping the two changes no unlike pair."""
        return {rare: self._log_z(rare) for rare in sorted({min(self.atoms(x)) for x in self.compositions})}

    def _log_z(self, rare: int) -> Floats:
        nodes, features = np.linspace(*self.reach, self.nodes), []
        for place, w in enumerate(nodes):
            root = np.random.SeedSequence([self.seed, 1, rare, place])
            start, sites, *seeds = root.spawn(2 + self.chains)
            rng, atoms = np.random.default_rng(start), np.arange(self.side**2) < rare
            labels = np.array([rng.permutation(atoms) for _ in range(self.chains)]).astype(np.uint8)
            found = run_chains(
                self.compiled, np.full((self.chains, 1), w), labels, samples=self.records, sweeps=8.0, burn=400.0, seeds=seeds,
                sites=sites, kernel="lanes",
            )  # fmt: skip
            features.append(np.concatenate([c.features[:, 0] for c in found]))
        pool = Reweighting.solve(np.concatenate(features)[:, None], nodes[:, None], [len(f) for f in features])
        pool.check()
        return np.concatenate([pool.log_z(some[:, None]) for some in np.array_split(self.grid, 40)])

    def prior(self) -> Floats:
        """Log density on the grid."""
        return -0.5 * (self.grid / self.prior_sd) ** 2

    def labels(self, w: float, composition: float, seed: np.random.SeedSequence) -> NDArray[np.uint8]:
        """An image at the truth, from a chain of its own."""
        start, moves = seed.spawn(2)
        atoms = np.repeat(np.arange(2, dtype=np.uint8), self.atoms(composition))
        labels = np.random.default_rng(start).permutation(atoms)
        return run_chain(self.compiled, [w], labels, samples=1, sweeps=1.0, burn=self.burn, seed=moves).snapshots[-1]

    def log_likelihood(self, labels: NDArray[np.uint8]) -> Floats:
        """Of an image, on the grid."""
        rare = int(min(labels.sum(), len(labels) - labels.sum()))
        return -self.grid * float(self.compiled.features(labels)[0]) - self.log_z[rare]


def moments(log: Floats, grid: Floats) -> tuple[float, float]:
    """Mean and standard deviation of a log density on a grid; its ends must be empty."""
    p = np.exp(log - log.max())
    if max(p[0], p[-1]) > 1e-6:
        raise RuntimeError(f"the posterior reaches the end of its grid: density {p[0]:.0e} at {grid[0]:g}, {p[-1]:.0e} at {grid[-1]:g}")
    p /= p.sum()
    mean = float(p @ grid)
    return mean, float(np.sqrt(p @ (grid - mean) ** 2))


def draws(log: Floats, grid: Floats, n: int) -> Floats:
    """n values of equal probability, (n, 1)."""
    p = np.exp(log - log.max())
    below = np.concatenate([[0], np.cumsum((p[1:] + p[:-1]) / 2)])
    return np.interp((np.arange(n) + 0.5) / n, below / below[-1], grid)[:, None]


@dataclass(frozen=True)
class Campaign:
    """One campaign: the truth, the compositions imaged in their order, and mean and standard deviation after each image."""

    truth: float
    compositions: tuple[float, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]

    @property
    def images(self) -> int:
        """How many it took."""
        return len(self.sds)


def choose(alloy: Alloy, log: Floats, way: str, place: tuple[int, ...], n_draws: int, sweeps: float) -> float:
    """The next composition: the best of the gain map of the present posterior, any, or always the worst of the prior's."""
    if way == "random":
        return float(np.random.default_rng([alloy.seed, 2, *place]).choice(alloy.compositions))
    if way == "worst":
        return worst(alloy, n_draws, sweeps)
    return best(alloy, draws(log, alloy.grid, n_draws), place, n_draws, sweeps)


@cache
def worst(alloy: Alloy, n_draws: int, sweeps: float) -> float:
    """The composition that the gain map of the prior ranks last."""
    return best(alloy, draws(alloy.prior(), alloy.grid, n_draws), (0,), n_draws, sweeps, -1)


def best(alloy: Alloy, known: Floats, place: tuple[int, ...], n_draws: int, sweeps: float, rank: int = 0) -> float:
    """The composition of that rank on the gain map of some draws (n, 1)."""
    source = [Candidate(alloy.model, known)]
    gain = what_next(
        source, coupling(source, "P1", "w1"), composition=alloy.compositions, sites=alloy.side**2, size=alloy.side, draws=n_draws,
        sweeps=sweeps, seed=int(np.random.SeedSequence([alloy.seed, 3, *place]).generate_state(1)[0]),
    )  # fmt: skip
    ranked = gain.best(len(alloy.compositions)) or gain.best(len(alloy.compositions), supported=0.0)
    return ranked[rank].composition


def campaign(alloy: Alloy, number: int, way: str, target: float, *, most: int = 800, n_draws: int = 64, sweeps: float = 60.0) -> Campaign:
    """Image after image until the posterior is as narrow as the target; the truth depends on the number alone."""
    truth = float(np.random.default_rng([alloy.seed, 4, number]).normal(0, alloy.prior_sd))
    log, compositions, means, sds = alloy.prior(), [], [], []
    while len(sds) < most and not (sds and sds[-1] <= target):
        place = (number, WAYS.index(way), len(sds))
        x = choose(alloy, log, way, place, n_draws, sweeps)
        labels = alloy.labels(truth, x, np.random.SeedSequence([alloy.seed, 5, *place]))
        log = log + alloy.log_likelihood(labels)
        mean, sd = moments(log, alloy.grid)
        compositions.append(x)
        means.append(mean)
        sds.append(sd)
    return Campaign(truth, tuple(compositions), tuple(means), tuple(sds))


def side_by_side(function: Callable[[int], Campaign], n: int, workers: int) -> list[Campaign]:
    """Campaigns 0 to n - 1."""
    with ThreadPoolExecutor(workers) as crew:
        return list(crew.map(function, range(n)))


def saving(some: Floats, others: Floats, rng: np.random.Generator, n: int = 10000) -> tuple[float, float, float]:
    """Share of the others' images that some save, in total, with a 95 % bootstrap interval over the campaigns (the same truths)."""
    picks = rng.integers(0, len(some), (n, len(some)))
    low, high = np.quantile(1 - some[picks].sum(axis=1) / others[picks].sum(axis=1), [0.025, 0.975])
    return float(1 - some.sum() / others.sum()), float(low), float(high)


def choice(options: argparse.Namespace) -> None:
    """Images needed each way."""
    clock, alloy = time.perf_counter(), Alloy(seed=options.seed)
    _ = alloy.log_z
    print(f"ln Z of {len(alloy.log_z)} compositions: {time.perf_counter() - clock:.0f} s", flush=True)
    counts = {}
    for way in WAYS[: 3 if options.worst else 2]:
        clock = time.perf_counter()
        found = side_by_side(lambda i, way=way: campaign(alloy, i, way, options.target), options.campaigns, options.workers)
        counts[way] = np.array([c.images for c in found])
        z = np.array([(c.means[-1] - c.truth) / c.sds[-1] for c in found])
        x = np.concatenate([c.compositions for c in found])
        print(
            f"{way:<7} images {np.median(counts[way]):.0f} in the median, {counts[way].mean():.2f} on average "
            f"({counts[way].min()} to {counts[way].max()}); compositions {x.mean():.2f} ± {x.std():.2f}; "
            f"(mean - truth) / sd: {z.mean():+.2f} ± {z.std():.2f}; {time.perf_counter() - clock:.0f} s",
            flush=True,
        )
    rng = np.random.default_rng([options.seed, 6])
    share, low, high = saving(counts["gain"], counts["random"], rng)
    better = int((counts["gain"] < counts["random"]).sum())
    print(
        f"sd <= {options.target} kT with {share:.0%} fewer images than at random [{low:.0%}, {high:.0%}], "
        f"median of the campaigns {np.median(1 - counts['gain'] / counts['random']):.0%}; fewer in {better} of {options.campaigns}"
    )


# ------------------------------------------------------------------ the stop rule


@dataclass(frozen=True)
class Stopped:
    """One session: images when it stopped, those hindsight would have taken, and widths then: stated, of a fresh session, exact."""

    images: int
    hindsight: int
    stated: float
    afresh: float
    exact: float


def session(alloy: Alloy, number: int, target: float, *, most: int = 40, n_draws: int = 64, sweeps: float = 60.0) -> Stopped:
    """Image after image until the stop rule says so; hindsight goes on for a quarter more, and until the target is met."""
    truth = float(np.random.default_rng([alloy.seed, 4, number]).normal(0, alloy.prior_sd))
    rule = StopRule(sd={"P1.w1": target})
    running = Sequential([alloy.model], seed=alloy.seed, stop=rule)
    seen: list[Observation] = []
    log, sds, stopped = alloy.prior(), [], 0
    known = draws(log, alloy.grid, n_draws)
    while len(sds) < most and (not stopped or len(sds) < 1.25 * stopped + 1 or sds[-1] > target):
        place = (number, 7, len(sds))
        x = best(alloy, known, place, n_draws, sweeps)
        labels = alloy.labels(truth, x, np.random.SeedSequence([alloy.seed, 5, *place]))
        log = log + alloy.log_likelihood(labels)
        sds.append(moments(log, alloy.grid)[1])
        if not stopped:
            crystal = labels.reshape(alloy.side, alloy.side)
            seen.append(Observation.from_labels(crystal, alloy.model.lattice, alloy.model.species, periodic=True, name=f"image {len(sds)}"))
            found = running.add(seen[-1])
            w = running.draws("P1")
            known = w[:: max(1, len(w) // n_draws)][:n_draws]
            stopped = len(sds) if found.stop.stop else 0
    fresh = Sequential([alloy.model], seed=alloy.seed + 1)
    fresh.add(seen)
    wide = np.flatnonzero(np.array(sds) > target)
    hindsight = int(wide[-1]) + 2 if len(wide) else 1
    stated, afresh = (float(s.draws("P1").std(ddof=1)) for s in (running, fresh))
    return Stopped(stopped or most, hindsight, stated, afresh, sds[len(seen) - 1])


def stop(options: argparse.Namespace) -> None:
    """How well it stops."""
    clock, alloy = time.perf_counter(), Alloy(seed=options.seed)
    _ = alloy.log_z
    print(f"ln Z of {len(alloy.log_z)} compositions: {time.perf_counter() - clock:.0f} s", flush=True)
    clock, found = time.perf_counter(), []
    for number in range(options.campaigns):
        found.append(session(alloy, number, options.target))
        s = found[-1]
        widths = f"sd {s.stated:.4f} stated, {s.afresh:.4f} afresh, {s.exact:.4f} exact"
        print(f"{number:>3}: stopped at {s.images}, hindsight {s.hindsight}; {widths}", flush=True)
    n, right = np.array([s.images for s in found]), np.array([s.hindsight for s in found])
    close = int((np.abs(n - right) <= 0.25 * right).sum())
    ratio = np.array([[s.stated / s.exact, s.stated / s.afresh] for s in found])
    print(
        f"within 25 % of hindsight in {close} of {len(n)} campaigns, within one image in {int((np.abs(n - right) <= 1).sum())}; "
        f"too early in {int((n < right).sum())}, too late in {int((n > right).sum())}; {n.mean():.2f} images on average, hindsight "
        f"{right.mean():.2f}; sd stated over exact {ratio[:, 0].mean():.3f} ± {ratio[:, 0].std():.3f}, over afresh "
        f"{ratio[:, 1].mean():.3f} ± {ratio[:, 1].std():.3f}; {time.perf_counter() - clock:.0f} s"
    )


SECTIONS = {"choice": choice, "stop": stop}


def main() -> None:
    """Run one section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--campaigns", type=int, default=50)
    parser.add_argument("--target", type=float, default=0.02, help="posterior standard deviation, kT")
    parser.add_argument("--worst", action="store_true", help="also choose the worst composition (negative control)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    SECTIONS[options.section](options)


if __name__ == "__main__":
    main()
