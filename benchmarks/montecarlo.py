"""Attempted moves per second, beside other programs: python benchmarks/montecarlo.py [SECTION ...] [--rival NAME=PYTHON ...]

rates      our kernels and the rivals in turn, in one process tree, on the three workloads of `rivals.py`; all begin from the
           same equilibrated crystal, so that acceptance is that of equilibrium; median, least and most of the rounds
films      the generic kernel with three species, a film and triplets
records    what a histogram of local environments every five sweeps adds
map        512 points of couplings on the triangular alloy, their histograms against runs ten times as long
pool       one worker and two on the same pool
memory     bytes a chain, by sites and kernel

A move is attempted where it would change something: swaps of unlike atoms, flips. The clock is CPU time of one thread. A
rival is NAME=PYTHON, an interpreter in whose environment it is installed (`rivals.py` says how); one that is not given or
cannot be imported is printed as not run. By hand, not in the tests: ten minutes or so for everything.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from bayesatoms.environments import Environments
from bayesatoms.hamiltonian import Cluster, Compiled, Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.averages import Averages
from bayesatoms.montecarlo.design import DesignPoint
from bayesatoms.montecarlo.engine import run_chain, run_chains
from bayesatoms.montecarlo.ensembles import Ensemble, SemiGrand
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.window import Operator, Window

RIVALS = ("icet", "smol", "clease", "casm", "mcising")


@dataclass(frozen=True)
class Workload:
    """One workload: E = J1 sum ss + J2 sum ss (second neighbours) + J3 sum sss (triangles), s = 2 label - 1."""

    name: str
    lattice: Lattice
    side: int
    couplings: tuple[float, float, float]
    temperature: float
    atoms: int | None  # of label 0, kept; None: flips

    @property
    def swaps(self) -> bool:
        return self.atoms is not None

    @property
    def ensemble(self) -> Ensemble | None:
        return None if self.swaps else SemiGrand((0.0, 0.0))

    @property
    def hamiltonian(self) -> Hamiltonian:
        """Counts of unlike pairs and of decorated triangles, whose energies `weights` has."""
        terms = [Pair("A", "B", shell=k + 1) for k in range(2) if self.couplings[k]]
        if self.couplings[2]:
            up = self.lattice.triangle("up")
            terms += [Cluster(names, up, orbit="all", name=names) for names in ("AAA", "AAB", "ABB", "BBB")]
        return Hamiltonian(self.name, *terms, lattice=self.lattice, species=("A", "B"))

    @property
    def weights(self) -> NDArray[np.float64]:
        """Energy of each count: a pair ss is 1 - 2 unlike."""
        pairs, j3 = [-2 * j for j in self.couplings[:2] if j], self.couplings[2]
        return np.array(pairs + ([-j3, j3, -j3, j3] if j3 else []))

    def energy(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Per site, from counts (..., n_features)."""
        bonds = 3 if self.lattice == Lattice.triangular() else 2
        return features @ self.weights / self.side**2 + bonds * sum(self.couplings[:2])

    def start(self, compiled: Compiled) -> NDArray[np.uint8]:
        """An equilibrated crystal, by the generic kernel."""
        rng, n = np.random.default_rng(1), self.side**2
        labels = rng.permutation(np.arange(n) >= self.atoms) if self.swaps else np.zeros(n, dtype=bool)
        length = {"samples": 1, "sweeps": 1, "burn": 2000, "seed": np.random.SeedSequence(2), "ensemble": self.ensemble}
        return run_chain(compiled, self.weights / self.temperature, labels.astype(np.uint8), kernel="generic", **length).snapshots[0]


WORKLOADS = (
    Workload("W1", Lattice.square(), 64, (-1.0, 0.0, 0.0), 2.3, None),
    Workload("W2", Lattice.triangular(), 48, (1.0, -0.25, 0.0), 2.6, 691),
    Workload("W3", Lattice.triangular(), 48, (1.0, -0.25, 0.15), 3.0, 691),
)


@dataclass(frozen=True)
class Leg:
    """Moves attempted and accepted (None where unknown), CPU seconds, energy per site."""

    attempted: float
    accepted: float | None
    cpu: float
    energy: float


# ------------------------------------------------------------------ rates


class Ours:
    """One of our kernels with so many chains; goes on from where it stopped."""

    def __init__(self, work: Workload, compiled: Compiled, start: NDArray[np.uint8], kernel: str, chains: int) -> None:
        self.work, self.compiled, self.kernel, self.chains = work, compiled, kernel, chains
        self.labels = np.tile(start, (chains, 1))
        self.couplings = np.tile(work.weights / work.temperature, (chains, 1))
        self.sweeps, self.turn = 2.0, 0
        self.go(0.0)  # compiled and warm
        while (leg := self.go(0.0)).cpu < 0.2:
            self.sweeps *= 2
        self.speed = self.sweeps / leg.cpu

    @property
    def label(self) -> str:
        return f"ours: {self.kernel}" + (f" x {self.chains}" if self.chains > 1 else "")

    def go(self, seconds: float) -> Leg:
        """About so many CPU seconds."""
        self.turn += 1
        if seconds:
            self.sweeps = max(1.0, self.speed * seconds)
        seeds = np.random.SeedSequence([3, self.turn]).spawn(self.chains)
        length = {"samples": 1, "sweeps": self.sweeps, "burn": 0, "ensemble": self.work.ensemble, "kernel": self.kernel}
        clock = time.process_time()
        found = run_chains(self.compiled, self.couplings, self.labels, seeds=seeds, sites=np.random.SeedSequence([4, self.turn]), **length)
        cpu = time.process_time() - clock
        self.labels = np.concatenate([c.snapshots for c in found])
        moves = np.array([c.moves for c in found])
        accepted = float(sum(c.moves * c.acceptance for c in found))
        energy = float(np.mean([self.work.energy(c.features[-1]) for c in found]))
        return Leg(float(moves.sum()), None if np.isnan(accepted) else accepted, cpu, energy)

    def close(self) -> None:
        """Nothing to stop."""


class Theirs:
    """A rival in its own interpreter."""

    def __init__(self, rival: str, python: str, work: Workload, task: Path) -> None:
        self.label = rival
        command = [python, str(Path(__file__).with_name("rivals.py")), rival, work.name, str(task)]
        environment = {**os.environ, "PATH": str(Path(python).absolute().parent) + os.pathsep + os.environ["PATH"]}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, object]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        return json.loads(line) if line else {"ready": False, "reason": "it stopped without a word"}

    def go(self, seconds: float) -> Leg:
        """About so many CPU seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"go {seconds}\n")
        self.process.stdin.flush()
        leg = self._answer()
        return Leg(float(leg["attempted"]), leg["accepted"], float(leg["cpu"]), float(leg["energy"]))

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def kernels(work: Workload) -> list[tuple[str, int]]:
    """Which of ours run on a workload, with how many chains."""
    return [("generic", 1), ("code", 1), ("lanes", 64), *([] if work.swaps else [("multispin", 512)])]


def rates(given: argparse.Namespace) -> None:
    """Print rates and ratios of every workload."""
    interpreters = dict(pair.split("=", 1) for pair in given.rival)
    for work in WORKLOADS:
        if work.name not in given.work:
            continue
        compiled = work.hamiltonian.compile(work.lattice.supercell((work.side, work.side)))
        start = work.start(compiled)
        total = float(work.energy(compiled.features(start))) * len(start)
        with tempfile.TemporaryDirectory() as folder:
            task = Path(folder) / "task.npz"
            np.savez(task, labels=start.reshape(work.side, -1), temperature=work.temperature, energy=total, couplings=work.couplings)
            runners: list[Ours | Theirs] = [Ours(work, compiled, start, *k) for k in kernels(work)]
            moves = "swaps" if work.swaps else "flips"
            print(f"\n== {work.name}: {work.side} x {work.side}, {moves}, T = {work.temperature}; energy {total:.4f}")
            for rival in RIVALS:
                if rival not in interpreters:
                    print(f"{rival}: not run: give --rival {rival}=PYTHON")
                    continue
                theirs = Theirs(rival, interpreters[rival], work, task)
                if not theirs.about["ready"]:
                    print(f"{rival}: not run: {theirs.about['reason']}")
                    theirs.close()
                    continue
                apart = abs(float(theirs.about["energy"]) - total) / abs(total)
                print(f"{rival} {theirs.about['version']}: energy of the start differs by {apart:.1e} of it; {theirs.about['note']}")
                runners.append(theirs)
            legs: dict[str, list[Leg]] = {r.label: [] for r in runners}
            for _ in range(given.rounds):
                for runner in runners:
                    legs[runner.label].append(runner.go(given.seconds))
            for runner in runners:
                runner.close()
        _table(legs)


def _table(legs: dict[str, list[Leg]]) -> None:
    speed = {name: np.array([leg.attempted / leg.cpu for leg in found]) for name, found in legs.items()}
    print(f"{'':<22}{'moves/s':>10}{'least':>10}{'most':>10}{'accepted':>10}{'energy/site':>13}")
    for name, found in legs.items():
        share = "-" if found[0].accepted is None else f"{sum(leg.accepted for leg in found) / sum(leg.attempted for leg in found):.4f}"
        energy = np.mean([leg.energy for leg in found])
        print(f"{name:<22}{np.median(speed[name]):>10.3g}{speed[name].min():>10.3g}{speed[name].max():>10.3g}{share:>10}{energy:>13.4f}")
    rivals = [name for name in legs if not name.startswith("ours")]
    if rivals:
        print(f"{'ratio, median of rounds':<22}" + "".join(f"{name:>10}" for name in rivals))
    for name in legs:
        if rivals and name.startswith("ours"):
            print(f"{name:<22} " + "".join(f"{np.median(speed[name] / speed[rival]):>10.4g}" for rival in rivals))


# ------------------------------------------------------------------ the generic kernel


def films(given: argparse.Namespace) -> None:
    """Three species on a film of 12 x 12 x 6 cells: pairs and triplets, a few and many."""
    lattice, abc = Lattice.cubic(film=True), ("A", "B", "C")
    for shells, orbit in (((1,), "one"), ((1, 2), "all")):
        triplets = [Cluster(t, [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0)], orbit=orbit, name=t) for t in ("AAB", "ABC", "CCB")]
        pairs = [Pair(a, b, shell=s, name=f"{a}{b}{s}") for s in shells for a, b in ("AB", "AC", "BC")]
        h = Hamiltonian("film", *pairs, *triplets, lattice=lattice, species=abc)
        compiled = h.compile(lattice.supercell((12, 12, 6)))
        w, labels = np.linspace(-0.6, 0.6, compiled.n_features), np.arange(compiled.n_sites) % 3
        speed = []
        for k in range(given.rounds + 1):
            length = {"samples": 1, "sweeps": 3000 * given.seconds, "burn": 0, "seed": np.random.SeedSequence(k)}
            clock = time.process_time()
            chain = run_chain(compiled, w, labels, kernel="generic", **length)
            speed.append(chain.moves / (time.process_time() - clock))
        print(
            f"\n== three species, film of {compiled.n_sites} sites, {compiled.n_features} terms, {np.diff(compiled.start).mean():.0f} "
            f"clusters a site: {np.median(speed[1:]):.3g} swaps/s (acceptance {chain.acceptance:.2f})"
        )


# ------------------------------------------------------------------ histograms


def _whole(work: Workload) -> tuple[Compiled, Operator]:
    """The alloy and an operator that sees all of it, with 2 % wrong labels."""
    cell = work.lattice.supercell((work.side, work.side))
    environments = Environments(work.lattice, ("A", "B"))
    return work.hamiltonian.compile(cell), Operator(environments, Window(cell.sites, whole=cell.shape), cell, [[0.98, 0.02], [0.02, 0.98]])


def records(given: argparse.Namespace) -> None:
    """Chains of W2 with and without histograms, in turn: one every five swaps a site, and every five swaps an atom of the rarer species."""
    work = WORKLOADS[1]
    compiled, operator = _whole(work)
    start, n = work.start(compiled), work.side**2
    for (kernel, chains), per in itertools.product((("code", 1), ("lanes", 64)), ("site", "rarer atom")):
        w, labels = np.tile(work.weights / work.temperature, (chains, 1)), np.tile(start, (chains, 1))
        sweeps = 5.0 * (n / (n - work.atoms if 2 * work.atoms > n else work.atoms) if per == "site" else 1.0)
        count = max(200, int(20 * given.seconds * 64 / chains))
        spent = []
        for k in range(given.rounds + 1):
            seeds = np.random.SeedSequence(k).spawn(chains)
            times = []
            for samples in (1, count):
                clock = time.process_time()
                every = sweeps * count / samples
                found = run_chains(compiled, w, labels, samples=samples, sweeps=every, burn=0, seeds=seeds, kernel=kernel)
                if samples > 1:
                    for chain in found:
                        operator.counts(chain.snapshots, np.random.default_rng(k))
                times.append(time.process_time() - clock)
            spent.append(times)
        plain, seen = np.array(spent[1:]).T
        more = np.median(seen / plain) - 1
        print(f"\n== histogram every 5 swaps a {per}, {kernel} x {chains}, 2 % wrong labels: {more:+.0%} of the time without", flush=True)


def map_(given: argparse.Namespace) -> None:
    """512 points of (J1, J2) / T above the ordering temperature: time and distance to ten times longer runs."""
    work = WORKLOADS[1]
    compiled, operator = _whole(work)
    operator = Operator(operator.environments, Window(operator.supercell.sites, whole=operator.supercell.shape), operator.supercell)
    j1, j2 = np.meshgrid(np.linspace(0.1, 1 / 2.6, 32), np.linspace(-0.25 / 2.6, 0.05, 16), indexing="ij")
    points = np.column_stack([-2 * j1.reshape(-1), -2 * j2.reshape(-1)])
    counts = (work.atoms, work.side**2 - work.atoms)

    def histograms(samples: int, seed: int) -> tuple[NDArray[np.float64], float, float]:
        """Histograms of all points, the time they took, and the time their gradients took beside it."""
        clock = time.process_time()
        recipe = {"counts": counts, "samples": samples, "sweeps": 12.0, "burn": 1700.0, "seed": seed, "kernel": "lanes"}
        chains = Pool().run([DesignPoint(compiled, w, **recipe) for w in points])
        seen = [operator.counts(c.snapshots, np.random.default_rng(0)) for c in chains]
        clock, seconds = time.process_time(), time.process_time() - clock
        found = [Averages.of(s / operator.n, c.features, blocks=min(16, samples // 2)) for s, c in zip(seen, chains, strict=True)]
        assert all(np.isfinite(f.gradient).all() for f in found)
        return np.array([f.mean for f in found]), seconds, time.process_time() - clock

    histograms(4, 0)  # compiled
    short, seconds, gradients = histograms(700, 1)
    truth, _, _ = histograms(7000, 2)
    s = np.sqrt(((short - truth) ** 2).sum(axis=1))
    print(f"\n== 512 points of W2, 700 records of 12 sweeps each: {seconds:.1f} s of one core; with gradients {seconds + gradients:.1f} s")
    print(f"s to runs ten times longer: median {np.median(s):.4f}, most {s.max():.4f}; {np.mean(s <= 0.004):.0%} within 0.004")


# ------------------------------------------------------------------ pools


def pool(given: argparse.Namespace) -> None:
    """Wall time of one pool by one worker and by two, in turn."""
    work = WORKLOADS[1]
    compiled = work.hamiltonian.compile(work.lattice.supercell((work.side, work.side)))
    counts = (work.atoms, work.side**2 - work.atoms)
    times = []
    for k in range(given.rounds + 1):
        row = []
        for workers in (1, 2):
            recipe = {"counts": counts, "samples": 200, "sweeps": 10.0, "burn": 500.0}
            points = [DesignPoint(compiled, work.weights / (work.temperature + 0.1 * i), seed=2 * k + workers, **recipe) for i in range(16)]
            clock = time.perf_counter()
            Pool().run(points, workers=workers)
            row.append(time.perf_counter() - clock)
        times.append(row)
    one, two = np.array(times[1:]).T
    print(f"\n== pool of 16 chains: one worker {np.median(one):.1f} s, two {np.median(two):.1f} s, {np.median(one / two):.2f} times faster")


def memory(given: argparse.Namespace) -> None:
    """Peak memory of one chain of each kernel by sites, in a process of its own."""
    print("\n== memory of a chain (MB; of 64 in the lanes kernel, of 512 in the multi-spin one)")
    for side in (64, 256, 1024, *([4096] if given.large else [])):
        for kernel, chains in (("generic", 1), ("code", 1), ("lanes", 64), ("multispin", 512)):
            if side > 1024 and kernel != "generic":
                continue
            done = subprocess.run([sys.executable, "-c", _PROBE, str(side), kernel, str(chains)], capture_output=True, text=True)
            words = done.stdout.split() or ["-", "-", "-"]
            print(
                f"{side:>5} x {side:<5} {kernel:<10} x {chains:<4} {words[0]:>8} MB, crystal {words[1]:>8} MB; {words[2]} s for two sweeps"
            )


_PROBE = """
import resource, sys, time, numpy as np
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chains
from bayesatoms.montecarlo.ensembles import SemiGrand
side, kernel, chains = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
h = Hamiltonian("Ising", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
before = peak()
compiled = h.compile(h.lattice.supercell((side, side)))
crystal = peak() - before
clock = time.perf_counter()
labels = np.zeros(side * side, dtype=np.uint8)
run_chains(compiled, np.full((chains, 1), 0.8), labels, samples=1, burn=0, sweeps=2, seeds=np.random.SeedSequence(1).spawn(chains),
           ensemble=SemiGrand((0, 0)), kernel=kernel)
print(round(peak() - before - crystal), round(crystal), round(time.perf_counter() - clock, 1))
"""

SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "rates": rates, "films": films, "records": records, "map": map_, "pool": pool, "memory": memory,
}  # fmt: skip


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[], metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=PYTHON", help=", ".join(RIVALS))
    parser.add_argument("--work", nargs="+", choices=[w.name for w in WORKLOADS], default=[w.name for w in WORKLOADS])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one leg, CPU time")
    parser.add_argument("--large", action="store_true", help="4096 x 4096 sites in the memory section")
    given = parser.parse_args()
    features = llvm.get_host_cpu_features()
    isa = next((name for name in ("avx512bw", "avx2", "neon", "sse4.2") if features.get(name)), "none")
    print(f"{llvm.get_host_cpu_name()}, {isa}; load {os.getloadavg()[0]:.2f}")
    for section in given.sections or SECTIONS:
        SECTIONS[section](given)
    print(f"\nload {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
