"""Posteriors against the exact one: python benchmarks/inference.py [--case alloy] [--budget 50 100 ...] [--help]

Whole periodic crystals drawn at known couplings: the Ising model on a 16 x 16 torus (K = 0.30 and 0.40, w = 2 K) and a
24 x 24 triangular alloy (x = 0.3, w = (0.4, -0.15) kT). The composition is given, so the exact posterior is that of
exp(-w . F) / Z(w) at this composition (`references.py`; docs/benchmarks.md says why it is not Kaufman's). For each
likelihood and budget the table has the median and the 95 % range over data sets of

    KL       Kullback-Leibler divergence of our posterior from the exact one, on a grid
    sd       our standard deviation over the exact one (of the worst coupling: the one with the median farthest from 1)
    shift    of the mean, in exact standard deviations, largest of the couplings: median, 95 % quantile, largest

and, over all data sets, the mean ratio of the standard deviations, the ratio of root-mean-square errors about the
truth (ours over the exact mean's), and our sd over the Cramer-Rao bound. The currency is one configuration = 10 sweeps
of simulation, about three autocorrelation times, and everything counts: pilot, equilibration, records. A peer's
configuration starts at random and is equilibrated for 20 sweeps; the table counts it once.

With --peer-python PATH (an environment in which `import sbi` works) NPE and NLE run beside it on the alloy. By hand, not
in the tests: an hour or so for everything; references are kept in the folder --cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
import numpyro
from numpy.typing import NDArray
from references import CASES, Case, Grid, exact_posterior, quick, reference

from bayesatoms.inference.campaign import Campaign, Settings
from bayesatoms.inference.densities import log_likelihoods
from bayesatoms.montecarlo.engine import run_chain
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation

SWEEPS = 10  # of one configuration
FRESH = 20  # sweeps of a peer's configuration, from a random start: its mean energy is then within 0.02 sd of equilibrium
INSIDE = 6.0  # standard deviations about the smooth emulator's centre within which it is evaluated
LIKELIHOODS = ("exact", "calibrated", "independent")


def plan(budget: int, boxes: int) -> Settings:
    """Chains for a budget of so many configurations in all, over `boxes` crystals that need chains of their own.

    One pilot chain and eight design points, or two rounds of eight where there is enough for it.
    """
    sweeps = SWEEPS * budget / boxes
    rounds = 1 if sweeps < 2500 else 2
    burn = 15 if sweeps < 2500 else 30
    samples = int(sweeps / (1 + 8 * rounds)) - burn
    if samples < 20:
        raise SystemExit(f"{budget} configurations for {boxes} crystals leave {samples} records a chain; expected at least 20")
    return Settings(points=8, samples=samples, sweeps=1, burn=burn, rounds=rounds)


@dataclass(frozen=True)
class Found:
    """One data set: divergences both ways, sd ratios (q,), shifts (q,) in exact sd, errors (2, q) about the truth, sd (q,), cost."""

    kl: float
    kl_back: float
    ratio: NDArray[np.float64]
    shift: NDArray[np.float64]
    error: NDArray[np.float64]
    sd: NDArray[np.float64]
    configurations: float
    seconds: float


def exact(case: Case, images: list, cache: Path) -> Grid:
    """The exact posterior of some images."""
    total = np.sum([reference(case, int((c.flat == 1).sum()), cache).log_z for c in images], axis=0)
    return exact_posterior(case.points, [case.features(c) for c in images], total, case.prior_sd)


def ours(case: Case, images: list, likelihood: str, budget: int, seed: int) -> tuple[Grid | None, float, float]:
    """Our posterior on the grid (None where the chains did not suffice), the configurations it cost, and the seconds."""
    observations = [Observation.from_configuration(c, name=f"image {i}") for i, c in enumerate(images)]
    boxes = len({o.counts.sum() * o.composition[1] for o in observations})
    pool, clock = Pool(), time.perf_counter()
    settings = plan(budget, boxes)
    campaign = Campaign.prepare(
        [case.model], observations, seed=seed, pool=pool, settings=settings, workers=1, report=lambda *_: None, kinds=(likelihood,)
    )
    smooth = campaign.run()[0].smooth
    seconds = time.perf_counter() - clock
    if smooth is None:
        return None, pool.sweeps / SWEEPS, seconds
    near = np.linalg.norm(smooth.whitened(case.points), axis=1) < INSIDE
    log = np.full(len(case.points), -np.inf)
    log[near] = log_likelihoods(smooth, observations, likelihood, case.points[near]).sum(axis=1) + smooth.leash(case.points[near])
    return Grid.of(case.points, log - 0.5 * (case.points**2).sum(axis=1) / case.prior_sd**2), pool.sweeps / SWEEPS, seconds


def compare(case: Case, truth: Grid, found: Grid, configurations: float, seconds: float) -> Found:
    """The measures of one data set."""
    error = np.array([found.mean, truth.mean]) - np.array(case.truth)
    shift = (found.mean - truth.mean) / truth.sd
    return Found(truth.divergence(found), found.divergence(truth), found.sd / truth.sd, shift, error, found.sd, configurations, seconds)


def one(case: Case, likelihood: str, budget: int, cache: Path, images: list, seed: int) -> Found | None:
    """One data set, in a process of its own."""
    numpyro.enable_x64()
    found, configurations, seconds = ours(case, images, likelihood, budget, seed)
    return None if found is None else compare(case, exact(case, images, cache), found, configurations, seconds)


COLUMNS = {
    "spent": 7, "KL": 8, "95 % of KL": 15, "KL back": 8, "sd": 7, "95 % of sd": 11, "shift": 6, "95 %": 6, "most": 6,
    "mean sd": 12, "rmse": 12, "sd/CRB": 12, "s": 7, "sets": 5, "failed": 7,
}  # fmt: skip


def row(label: str, found: list[Found | None], bound: NDArray[np.float64] | None) -> str:
    """One line of the table."""
    good = [f for f in found if f is not None]
    if not good:
        return f"{label:<36} all {len(found)} data sets failed"
    kl, ratio, shift = np.array([f.kl for f in good]), np.array([f.ratio for f in good]), np.array([np.abs(f.shift).max() for f in good])
    worst = int(np.argmax(np.abs(np.median(ratio, axis=0) - 1)))
    error = np.sqrt(np.mean([f.error**2 for f in good], axis=0))  # (2, q)
    means = np.mean([f.sd for f in good], axis=0)
    low, high = np.quantile(kl, [0.025, 0.975])
    near, far = np.quantile(ratio[:, worst], [0.025, 0.975])
    cells = [
        f"{np.mean([f.configurations for f in good]):.0f}", f"{np.median(kl):.4f}", f"{low:.4f}-{high:.4f}",
        f"{np.median([f.kl_back for f in good]):.4f}", f"{np.median(ratio[:, worst]):.3f}", f"{near:.2f}-{far:.2f}",
        f"{np.median(shift):.2f}", f"{np.quantile(shift, 0.95):.2f}", f"{shift.max():.2f}",
        "/".join(f"{r:.3f}" for r in ratio.mean(axis=0)), "/".join(f"{r:.3f}" for r in error[0] / error[1]),
        "-" if bound is None else "/".join(f"{r:.3f}" for r in means / bound),
        f"{np.median([f.seconds for f in good]):.2f}", str(len(found)), str(len(found) - len(good)),
    ]  # fmt: skip
    return f"{label:<36}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def equal(ours: dict[int, float], divergence: float) -> str:
    """How many configurations ours needs for a divergence, between the budgets that were run (power law)."""
    spent, kl = np.array(sorted(ours)), np.array([ours[b] for b in sorted(ours)])
    order = np.argsort(kl)
    needed = np.exp(np.interp(np.log(divergence), np.log(kl[order]), np.log(spent[order])))
    return ("at most " if divergence > kl.max() else "over " if divergence < kl.min() else "") + f"{needed:.0f}"


def bound(case: Case, cache: Path, images: int) -> NDArray[np.float64] | None:
    """Cramer-Rao bound (q,) at the truth, from the curvature of the reference's ln Z; None where compositions differ."""
    if not case.atoms:
        return None
    q, side = len(case.truth), case.steps
    log_z = reference(case, case.atoms, cache).log_z.reshape((side,) * q)
    middle, step = (side // 2,) * q, case.points.reshape(*(side,) * q, q)[(1,) * q] - case.points[0]
    information = np.empty((q, q))
    for a in range(q):
        slopes = np.gradient(log_z, step[a], axis=a)
        information[a] = [np.gradient(slopes, step[b], axis=b)[middle] for b in range(q)]
    return np.sqrt(np.diag(np.linalg.inv(images * information)))


# ------------------------------------------------------------------ peers


def simulated(case: Case, count: int, prior_sd: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Couplings (n, q) from the prior and features (n, q) of one fresh configuration at each."""
    rng = np.random.default_rng([seed, 11])
    couplings, start = rng.normal(0, prior_sd, (count, len(case.truth))), np.arange(case.side**2) < case.atoms
    features = []
    for i, w in enumerate(couplings):
        chain = {"samples": 1, "sweeps": 1, "burn": FRESH - 1, "seed": np.random.SeedSequence([seed, 12, i])}
        features.append(run_chain(case.compiled, w, rng.permutation(start).astype(int), **chain).features[0])
    return couplings, np.array(features)


def peers(case: Case, given: argparse.Namespace, images: list[list], ours: dict[int, float]) -> None:
    """NPE and NLE on the same data sets, where an environment with sbi was given."""
    program = Path(__file__).with_name("peers.py")
    if not given.peer_python or subprocess.run([given.peer_python, "-c", "import sbi"], capture_output=True).returncode:
        print(f"sbi (NPE, NLE): not run: no `import sbi` in {given.peer_python or 'any environment: give --peer-python PATH'}")
        return
    clock = time.perf_counter()
    couplings, features = simulated(case, max(given.peer_budget), given.peer_prior, given.seed)
    print(f"peers' prior Normal(0, {given.peer_prior:g}); {len(features)} configurations simulated in {time.perf_counter() - clock:.0f} s")
    truths = []
    for sets in images:
        # where the peers' prior is narrower, in their favour, the exact posterior they are held against has it too
        truth = exact(case, sets, given.cache)
        change = -0.5 * (case.points**2).sum(axis=1) * (given.peer_prior**-2 - case.prior_sd**-2)
        truths.append(Grid.of(case.points, np.log(np.maximum(truth.density, 1e-300)) + change))
    observed = np.array([case.features(sets[0]) for sets in images])
    common = {"couplings": couplings, "statistics": features, "observed": observed, "points": case.points, "prior_sd": given.peer_prior}
    for method in given.peers:
        for budget in given.peer_budget:
            with tempfile.TemporaryDirectory() as folder:
                task, answer = Path(folder) / "task.npz", Path(folder) / "answer.npz"
                np.savez(task, **common, method=method, budget=budget, seed=given.seed)
                done = subprocess.run([given.peer_python, str(program), str(task), str(answer)], capture_output=True, text=True)
                if done.returncode:
                    print(f"sbi {method} {budget}: failed with exit status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
                    continue
                with np.load(answer) as file:
                    log, seconds = file["log_posterior"], file["seconds"]
            found = [compare(case, t, Grid.of(case.points, g), budget, seconds.sum()) for t, g in zip(truths, log, strict=True)]
            print(row(f"{case.name}, sbi {method} {budget}", found, None), flush=True)
            if ours:
                median = float(np.median([f.kl for f in found]))
                print(
                    f"    divergence {median:.4f}: {budget} configurations of {FRESH} sweeps; ours {equal(ours, median)} of {SWEEPS} sweeps"
                )


# ------------------------------------------------------------------ the table


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--likelihood", nargs="+", choices=LIKELIHOODS, default=list(LIKELIHOODS))
    parser.add_argument("--images", nargs="+", type=int, choices=(1, 8), default=[1, 8])
    parser.add_argument(
        "--budget", nargs="+", type=int, default=[50, 100, 200, 400, 2000], help="configurations in all; 8 images only from 2000"
    )
    parser.add_argument("--sets", type=int, default=50, help="data sets (of 8 images: four times as many)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "bayesatoms" / "benchmarks")
    parser.add_argument("--quick", action="store_true", help="reference pools a tenth as long")
    parser.add_argument("--peer-python", help="an interpreter that can import sbi")
    parser.add_argument("--peers", nargs="+", choices=("NPE", "NLE"), default=["NPE", "NLE"])
    parser.add_argument("--peer-budget", nargs="+", type=int, default=[1000, 3000, 10000, 30000])
    parser.add_argument("--peer-prior", type=float, default=1.0, help="standard deviation of the peers' prior, kT; ours is 1")
    return parser.parse_args()


def main() -> None:
    """Print one line for each case, likelihood, number of images and budget; then the peers."""
    given = arguments()
    print(f"load {os.getloadavg()[0]:.2f}; {given.workers} of {os.cpu_count()} cores; one configuration = {SWEEPS} sweeps")
    print(f"{'':<36}" + "".join(f"{title:>{width}}" for title, width in COLUMNS.items()))
    for name in given.case:
        case = quick(CASES[name]) if given.quick else CASES[name]
        for count in given.images:
            budgets = [b for b in given.budget if (b >= 2000) == (count == 8)]
            sets = given.sets * (4 if count == 8 else 1)
            if not budgets:
                continue
            drawn = case.draw(sets * count, given.seed)
            images = [drawn[i * count : (i + 1) * count] for i in range(sets)]
            first = [(c, reference(case, int((c.flat == 1).sum()), given.cache)) for c in drawn[:50]]
            halves, means = np.concatenate([r.errors(case, [case.features(c)]) for c, r in first]).max(axis=0)
            print(f"{name}: the exact posterior is known to a divergence of {halves / 4:.1e} (from two halves of its pool) and")
            print(f"    {means:.1e} (reweighting against integrated mean features); the worst of {len(first)} images")
            ours = {}
            for likelihood in given.likelihood:
                for budget in budgets:
                    task = partial(one, case, likelihood, budget, given.cache)
                    if given.workers == 1:
                        found = [task(sets, seed) for seed, sets in enumerate(images)]
                    else:
                        with ProcessPoolExecutor(given.workers) as pool:
                            found = list(pool.map(task, images, range(len(images))))
                    label = f"{name}, {count} image{'s' * (count > 1)}, {likelihood} {budget}"
                    print(row(label, found, bound(case, given.cache, count)), flush=True)
                    if likelihood == "exact" and any(found):
                        ours[budget] = float(np.median([f.kl for f in found if f is not None]))
            if count == 1 and case.atoms:
                peers(case, given, images, ours)
    print(f"load {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    sys.exit(main())
