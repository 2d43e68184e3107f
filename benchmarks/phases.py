"""Phase maps: are predicted critical temperatures right, and what does a map cost? python benchmarks/phases.py SECTION [options]

coverage  J is inferred from one periodic Ising configuration at 1.3 Tc, again and again, and turned into a prediction of Tc:
          how often the 90 % interval holds the truth, on the square and on the triangular lattice. Minutes.
map       wall time and peak memory of a map with posterior draws of two couplings, then against its grid and its draws.
          Every map in a process of its own; quote an idle machine. Tens of minutes at the default size.

Tc of a draw comes from simulation along its direction of the couplings, never from a known constant: the known ones are
the truth only. Configurations, ln Z and Tc are all made by the package's kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from numpyro import distributions as dist
from scipy.stats import binomtest

from bayesatoms.hamiltonian import Compiled, Hamiltonian, Pair
from bayesatoms.inference.reweighting import Reweighting
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.chains import Chain
from bayesatoms.montecarlo.engine import run_chains
from bayesatoms.montecarlo.ensembles import SemiGrand
from bayesatoms.phases.critical import critical_temperatures

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from exact import kaufman_log_z  # the exact truths are shared with the tests

SIDE, ABOVE, PRIOR_SD, LEVEL = 32, 1.3, 1.0, 0.9
FREE = SemiGrand((0.0, 0.0))
TOGETHER = 512  # chains: one word's bits of the multi-spin kernel
BURN, APART, RECORDS = 4000.0, 40.0, 20  # sweeps from a random start, and between records; a few correlation times at the coldest node
GRID, NODES, STEPS = (0.3, 1.42), 28, 801  # ends of the grid relative to the truth, chains' couplings and points on it

# ------------------------------------------------------------------ coverage of the critical temperature


@dataclass(frozen=True, eq=False)
class Ising:
    """The Ising model of a lattice at `ABOVE` times its critical temperature. `critical` is w / kT there, E = w per unlike pair."""

    name: str
    lattice: Lattice
    critical: float
    seed: int
    side: int = SIDE
    model: Hamiltonian = field(init=False)

    def __post_init__(self) -> None:
        pair = Pair("down", "up", name="w", prior=dist.Normal(0, PRIOR_SD))
        object.__setattr__(self, "model", Hamiltonian("Ising", pair, lattice=self.lattice, species=("down", "up")))

    @property
    def truth(self) -> float:
        """w in kT at formation."""
        return self.critical / ABOVE

    @cached_property
    def compiled(self) -> Compiled:
        return self.model.compile(self.lattice.supercell((self.side, self.side)))

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """Grid of w."""
        return self.truth * np.linspace(*GRID, STEPS)

    def chains(self, w: float, place: int, samples: int) -> list[Chain]:
        """Chains from random starts, whose magnetisation is free."""
        root = np.random.SeedSequence([self.seed, place])
        start, sites, *seeds = root.spawn(2 + TOGETHER)
        labels = np.random.default_rng(start).integers(0, 2, (TOGETHER, self.compiled.n_sites))
        return run_chains(
            self.compiled, np.full((TOGETHER, 1), w), labels, samples=samples, sweeps=APART, burn=BURN, seeds=seeds, sites=sites,
            ensemble=FREE, kernel="multispin",
        )  # fmt: skip

    @cached_property
    def images(self) -> NDArray[np.float64]:
        """Unlike pairs of independent configurations at the truth, (TOGETHER,): all that the likelihood asks for."""
        return np.array([c.features[0, 0] for c in self.chains(self.truth, 0, 1)])

    @cached_property
    def log_z(self) -> NDArray[np.float64]:
        """ln Z on the grid from one pool of chains, reweighted."""
        nodes = self.truth * np.linspace(*GRID, NODES)
        features = [np.concatenate([c.features[:, 0] for c in self.chains(w, 1 + i, RECORDS)]) for i, w in enumerate(nodes)]
        pool = Reweighting.solve(np.concatenate(features)[:, None], nodes[:, None], [len(f) for f in features])
        pool.check()
        return np.concatenate([pool.log_z(some[:, None]) for some in np.array_split(self.points, 60)])

    def posterior(self, unlike: float, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draws of w given a configuration's unlike pairs: quadrature on the grid, between whose points it is a straight line."""
        log = -self.points * unlike - self.log_z - 0.5 * (self.points / PRIOR_SD) ** 2
        density = np.exp(log - log.max())
        if max(density[0], density[-1]) > 1e-6:
            ends = f"{self.points[0]:.3f} (density {density[0]:.0e}) to {self.points[-1]:.3f} ({density[-1]:.0e})"
            raise RuntimeError(f"posterior of {self.name} reaches the end of its grid, {ends}")
        below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
        return np.interp(rng.random(draws), below / below[-1], self.points)


def narrowed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draws half as wide about their median: an analysis that is too sure."""
    middle = np.median(values, axis=-1, keepdims=True)
    return middle + (values - middle) / 2


def inside(values: NDArray[np.float64], truth: float) -> int:
    """How many rows of draws hold the truth in their central interval."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
    return int(((low < truth) & (truth < high)).sum())


def said(hits: int, n: int) -> str:
    """A share with its 95 % binomial interval."""
    between = binomtest(hits, n).proportion_ci(method="exact")
    return f"{hits}/{n} = {hits / n:.1%} [{between.low:.1%}, {between.high:.1%}]"


def coverage(options: argparse.Namespace) -> None:
    """Both lattices."""
    cases = (
        Ising("square", Lattice.square(), np.log(1 + np.sqrt(2)), options.seed),
        Ising("triangular", Lattice.triangular(), np.log(3) / 2, options.seed + 1),
    )
    for case in cases:
        clock = time.perf_counter()
        rng, n = np.random.default_rng([options.seed, 7]), min(options.repetitions, TOGETHER)
        images = case.images[:n]
        w = np.stack([case.posterior(unlike, options.draws, rng) for unlike in images])
        simulated = time.perf_counter() - clock
        # several searches, each for its share of the images, so that their own error is part of what is judged
        parts = np.array_split(np.arange(n), options.searches)
        found = [critical_temperatures(case.model, w[p].reshape(-1, 1), seed=i, workers=options.workers) for i, p in enumerate(parts)]
        predicted = np.concatenate([f.temperature.reshape(len(p), -1) for f, p in zip(found, parts, strict=True)])
        truth = 1 / ABOVE
        low, high = np.quantile(predicted, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
        ratio = np.array([f.temperature[0] / w[p[0], 0] for f, p in zip(found, parts, strict=True)]) * case.critical - 1
        stated = np.array([f.error[0] / f.temperature[0] for f in found])
        print(f"\n== {case.name}: {n} images of {case.side} x {case.side} at {ABOVE} Tc, w = {case.truth:.4f} kT at formation")
        print(f"90 % intervals of Tc / T_formation that hold {truth:.4f}: {said(inside(predicted, truth), n)}; expected 86 to 94 %")
        print(f"the same, posteriors half as wide: {said(inside(narrowed(predicted), truth), n)}; expected far below")
        print(f"below the interval {(truth < low).mean():.1%}, above {(truth > high).mean():.1%}; its width {np.mean(high - low):.4f}")
        z = (predicted.mean(axis=1) - truth) / predicted.std(axis=1)
        print(f"mean deviation of the posterior means {z.mean():+.3f} of their own widths, rms {np.sqrt((z**2).mean()):.3f}")
        print(
            f"searches: relative to the exact Tc {np.array2string(100 * ratio, precision=2)} %, errors stated {100 * stated.mean():.2f} %"
        )
        if case.name == "square":
            apart = case.log_z - [kaufman_log_z(p / 2, case.side, case.side) - case.side**2 * p for p in case.points]
            near = np.abs(case.points / case.truth - 1) < 0.25
            print(f"ln Z of the pool less Kaufman's within 25 % of the truth: spread {np.ptp(apart[near]):.4f}")
        print(f"{simulated:.0f} s for images and ln Z, {time.perf_counter() - clock:.0f} s in all", flush=True)


# ------------------------------------------------------------------ cost of a map


def one_map(grid: int, draws: int, workers: int, sweeps: float) -> dict[str, float]:
    """A map in this process: seconds, peak memory in MB, attempted moves."""
    from bayesatoms.phases.candidates import Candidate
    from bayesatoms.phases.diagram import phase_diagram

    lattice, species = Lattice.triangular(), ("A", "B")
    model = Hamiltonian("P2", Pair(*species, shell=1, name="w1"), Pair(*species, shell=2, name="w2"), lattice=lattice, species=species)
    posterior = np.random.default_rng(1).normal([-0.5, 0.1], 0.1, size=(1000, 2))
    x, t = np.linspace(0.02, 0.98, grid), np.geomspace(0.05, 2, grid)
    wall, cpu = time.perf_counter(), time.process_time()
    found = phase_diagram([Candidate(model, posterior)], composition=x, temperature=t, draws=draws, seed=1, workers=workers, sweeps=sweeps)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    summary = found.summary()
    return {"wall": wall, "cpu": cpu, "peak": peak, "moves": summary["moves"], "ordered": summary["max_p_ordered"]}


def child(grid: int, draws: int, options: argparse.Namespace) -> None:
    """The same in a process of its own, printed."""
    command = [sys.executable, __file__, "child", *map(str, (grid, draws, options.workers, options.sweeps))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    r = json.loads(done.stdout.splitlines()[-1])
    each, rate = 1e3 * r["wall"] / (grid**2 * draws), r["moves"] / r["cpu"] / 1e6
    print(
        f"{grid:>3} x {grid:<3} {draws:>4} draws: {r['wall']:7.1f} s ({r['cpu']:.1f} s of CPU), {each:6.2f} ms a point and draw, "
        f"peak {r['peak']:.0f} MB, {rate:.0f} million moves a CPU second, P(ordered) up to {r['ordered']:.2f}",
        flush=True,
    )


def map_(options: argparse.Namespace) -> None:
    """One map to compile, the largest, then smaller ones."""
    print(f"== maps, {options.workers} workers, load {os.getloadavg()[0]:.2f}")
    one_map(2, 2, 1, 16.0)  # what it compiles is kept for the others
    grid, draws = max(options.grids), max(options.draws_of_maps)
    child(grid, draws, options)
    for other in sorted(options.grids)[:-1]:
        child(other, draws, options)
    for other in sorted(options.draws_of_maps)[:-1]:
        child(grid, other, options)
    print(f"load {os.getloadavg()[0]:.2f}")


SECTIONS = {"coverage": coverage, "map": map_}


def main() -> None:
    """Run one section."""
    if sys.argv[1:2] == ["child"]:
        grid, draws, workers = map(int, sys.argv[2:5])
        print(json.dumps(one_map(grid, draws, workers, float(sys.argv[5]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--repetitions", type=int, default=300, help="images of each lattice (coverage)")
    parser.add_argument("--draws", type=int, default=2000, help="posterior draws of each image (coverage)")
    parser.add_argument("--searches", type=int, default=6, help="independent searches for Tc of each lattice (coverage)")
    parser.add_argument("--grids", type=int, nargs="+", default=[9, 15, 25], help="points a side (map)")
    parser.add_argument("--draws-of-maps", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--sweeps", type=float, default=480.0, help="of a block (map)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    SECTIONS[options.section](options)


if __name__ == "__main__":
    main()
