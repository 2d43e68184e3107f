"""Images one by one: python benchmarks/sequential.py SECTION [options]. By hand, a minute or a few each.

cost      seconds for one more image of some 500 sites (models R, P1, M; w = -0.06), each of a new composition, then of known ones
orders    posterior and evidences in several orders beside those of `infer` on all images at once
misled    random alloys: how often does a session ever decide for an interaction?
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from numpyro import distributions as dist
from scipy.stats import binomtest

from bayesatoms import catalogue
from bayesatoms.configuration import Configuration
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference.evidence import evidences
from bayesatoms.inference.posterior import infer
from bayesatoms.inference.sequential import Sequential
from bayesatoms.inference.stopping import StopRule
from bayesatoms.inference.updates import Update
from bayesatoms.montecarlo.engine import run_chain
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation

COUPLING = -0.06  # kT, of unlike neighbours
SIDE, WINDOW = 30, 24  # cells of the crystal and of the image: 484 complete environments
COMPOSITIONS = (0.30, 0.70, 0.50, 0.40, 0.60, 0.35, 0.65, 0.45, 0.55, 0.33)


def candidates(names: Sequence[str] = ("R", "P1", "M")) -> list[Hamiltonian]:
    """The published models of these names."""
    return [m for m in catalogue.load("mos2_res2").models if m.name in names]


def photograph(models: Sequence[Hamiltonian], name: str, x: float, seed: int, w: float = COUPLING) -> Observation:
    """A window on a crystal sampled at w."""
    pair = next(m for m in models if m.name == "P1")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    start = Configuration.random(pair.lattice, pair.species, (SIDE, SIDE), (1 - x, x), rng)
    chain = run_chain(pair.compile(start.supercell), [w], start.flat, samples=1, burn=200, sweeps=1, seed=np.random.SeedSequence([seed, 2]))
    labels = chain.snapshots[0].astype(int).reshape(SIDE, SIDE)[:WINDOW, :WINDOW]
    return Observation.from_labels(labels, pair.lattice, pair.species, name=name)


def turned(o: Observation, name: str) -> Observation:
    """The same image by half a turn: another image of a composition that is known."""
    assert o.configuration is not None
    labels = o.configuration.labels[::-1, ::-1, 0].astype(int)
    return Observation.from_labels(labels, o.environments.lattice, o.environments.species, name=name)


def row(update: Update) -> str:
    """One update in a line."""
    known, at = update.estimates["P1"], f"{update.number:>3} {update.images[-1]:<14}"
    weights = " ".join(f"{n} {w:.3f}" for n, w in update.evidences.weights().items())
    errors, ok = np.sqrt(np.diag(update.evidences.covariance)), "ok" if update.ok else "a check failed"
    cost = f"{update.seconds:6.2f} s {update.chains:>4} chains"
    return f"{at} {cost}   P1 {known.mean[0]:+.4f} ± {known.sd[0]:.4f}   {weights}   error of ln Z up to {errors.max():.3f}   {ok}"


def cost(options: argparse.Namespace) -> None:
    """Seconds an image; a session before it has compiled everything."""
    models = candidates()
    images = [photograph(models, f"x = {x}", x, i + 10 * options.seed) for i, x in enumerate(COMPOSITIONS)]
    warm = Sequential(models, seed=options.seed + 1, workers=options.workers)
    for o in images[:2]:
        warm.add(o)
    session = Sequential(models, seed=options.seed, workers=options.workers)
    for o in [*images, *(turned(o, f"{o.name} turned") for o in images[:3])]:
        print(row(session.add(o)), flush=True)
    seconds = np.array([u.seconds for u in session.updates])
    print(f"new compositions: {seconds[: len(images)].mean():.2f} s an image, at most {seconds[: len(images)].max():.2f} s")


def orders(options: argparse.Namespace) -> None:
    """Means in posterior sd, ratios of widths and differences of ln Z against `infer`."""
    models = candidates()
    images = [photograph(models, f"x = {x}", x, i + 10 * options.seed) for i, x in enumerate(COMPOSITIONS[: options.images])]
    clock = time.perf_counter()
    result = infer(models, images, seed=99, workers=options.workers)
    truth = {n: evidences(result, result[n], (1.0,))[0] for n in result.fits}
    print(f"infer: {time.perf_counter() - clock:.1f} s")
    for number in range(options.orders + 1):
        order = np.random.default_rng(number).permutation(len(images))
        session = Sequential(models, seed=number, workers=options.workers)
        clock = time.perf_counter()
        if number:
            for i in order:
                session.add(images[i])
        else:
            session.add(images)
        last, z = session.updates[-1], session.updates[-1].log_evidence[1.0]
        said = []
        for n, known in last.estimates.items():
            shift, width = (known.mean - truth[n].mean) / truth[n].sd, known.sd / truth[n].sd
            nats = z[n] - z["R"] - truth[n].log_z + truth["R"].log_z
            said.append(f"{n}: shift {shift.round(3).tolist()} sd, widths x {width.round(3).tolist()}, ln Z {nats:+.3f}")
        print(f"{'at once' if not number else order.tolist()}: {'; '.join(said)}   {time.perf_counter() - clock:.1f} s", flush=True)


def misled(options: argparse.Namespace) -> None:
    """Sessions on random alloys of one composition; all share their chains, since only the labels' places differ."""
    plain = candidates(["R"])
    # under a wide prior an interaction has no chance: a narrow one lets the odds wander
    pair = Pair("Mo", "Re", shell=1, name="w1", prior=dist.Normal(0, options.prior))
    models = [*plain, Hamiltonian("P1", pair, lattice=plain[0].lattice, species=plain[0].species)]
    pool, wrong, right, stopped = Pool(), 0, 0, []
    rule = StopRule(decide=True, error=options.error)
    labels = np.random.default_rng(options.seed).permutation(np.arange(WINDOW**2) < round(0.4 * WINDOW**2)).astype(int)
    for number in range(options.sessions):
        rng = np.random.default_rng(np.random.SeedSequence([options.seed, number]))
        session = Sequential(models, seed=options.seed, stop=rule, pool=pool, workers=options.workers)
        photographs = (
            Observation.from_labels(
                rng.permutation(labels).reshape(WINDOW, WINDOW), models[0].lattice, models[0].species, name=f"random {i}"
            )
            for i in range(options.images)
        )
        *_, last = session.follow(photographs)
        wrong += last.stop.decided not in (None, "R")
        right += last.stop.decided == "R"
        stopped.append(last.number)
        if (number + 1) % 10 == 0:
            _say(wrong, right, number + 1, options, stopped)
    _say(wrong, right, options.sessions, options, stopped)


def _say(wrong: int, right: int, n: int, options: argparse.Namespace, stopped: Sequence[int]) -> None:
    low, high = binomtest(wrong, n).proportion_ci()
    print(
        f"{wrong} of {n} sessions decided for an interaction ({wrong / n:.3f}, 95 % interval {low:.3f} to {high:.3f}), "
        f"{options.error} stated; {right} for the random alloy; {np.mean(stopped):.1f} images on average, at most {options.images}",
        flush=True,
    )


def main() -> None:
    """The section asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=("cost", "orders", "misled"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=6, help="of a session")
    parser.add_argument("--orders", type=int, default=4)
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--error", type=float, default=0.05)
    parser.add_argument("--prior", type=float, default=0.1, help="standard deviation, kT")
    options = parser.parse_args()
    {"cost": cost, "orders": orders, "misled": misled}[options.section](options)


if __name__ == "__main__":
    main()
