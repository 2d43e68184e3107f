"""What a plan promises, against simulated experiments: python benchmarks/planning.py SECTION [options]. By hand, minutes each.

sd         predicted standard deviations at three sizes and three compositions, beside those of synthetic fits
power      predicted probability of telling R, P1 and M apart, beside experiments that are simulated and analysed otherwise
published  the four published images, M at its estimate true: does an experiment of the size that the plan names decide?

Experiments are images from chains of their own, added to the published ones. They are analysed on a pool of their own,
with other seeds, by likelihoods on dense grids of couplings; `--public N` sends N of them through `infer` and `compare` too.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpyro
from numpy.typing import NDArray
from numpyro import distributions as dist
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from bayesatoms import catalogue
from bayesatoms.hamiltonian import Hamiltonian
from bayesatoms.inference.campaign import Campaign
from bayesatoms.inference.comparison import compare, remaining
from bayesatoms.inference.criteria import judged
from bayesatoms.inference.densities import log_prior
from bayesatoms.inference.emulator import SUPPORT_BAR
from bayesatoms.inference.fresh import calibrate_prior
from bayesatoms.inference.posterior import Result, Settings, infer
from bayesatoms.inference.priors import PRIOR_SCALES
from bayesatoms.inference.quasi import from_origin
from bayesatoms.inference.ranks import binomial_interval
from bayesatoms.montecarlo.pool import DesignPoint, Pool
from bayesatoms.observation import Observation
from bayesatoms.planning.plan import plan
from bayesatoms.planning.precision import DRAWS, Precision, variances
from bayesatoms.planning.prospects import Belief, Prospect, field_window, prospective, simulated

MODELS = ("R", "P1", "M")
GRIDS = {"R": (), "P1": ((-0.45, 0.25, 0.004),), "M": ((-1.3, 0.4, 0.025), (-0.7, 0.4, 0.02))}  # lower end, upper end, step
FIELDS = ((24, 24), (34, 34), (48, 48))  # cells along each side
COMPOSITIONS = (0.3, 0.5, 0.7)
WIDE = 2.0  # of the prior of the synthetic fits, in what one data set tells
WITHIN_SD, WITHIN_POWER = 0.15, 0.1


def published(options: argparse.Namespace) -> Result:
    """The published images, analysed."""
    study, clock = catalogue.load("mos2_res2"), time.perf_counter()
    chosen = [m for m in study.models if m.name in MODELS]
    result = infer(chosen, list(study.data), seed=options.seed, out=options.out, workers=options.workers)
    p = judged(result["M"])
    print(f"published images: M = {p.mean.round(3)} +- {p.sd.round(3)}; {time.perf_counter() - clock:.0f} s", flush=True)
    return result


# ---------------------------------------------------------------------- standard deviations


def sd(options: argparse.Namespace) -> None:
    """Ratios of what is found to what was predicted, for each size and composition.

    Truths scatter about one place, twice as widely as one data set tells, and so does the prior: a pool of many chains,
    which data sets share, serves them all. The posterior's width and the error of its mean are then the same number.
    """
    result, clock = published(options), time.perf_counter()
    place, worst, names = np.array(options.truth), 0.0, result["M"].model.names
    print(f"M about {place}, {options.sets} synthetic fits each; found / predicted for {', '.join(names)}")
    for field, images in [*((f, 1) for f in FIELDS), (FIELDS[0], 4)]:
        for x in COMPOSITIONS:
            # images of one box and seed would show one crystal: an atom more or less makes each a box of its own
            many = [prospective(result, field_window(result, field), np.array([1 - y, y]), None) for y in x + 0.002 * np.arange(images)]
            one = look(result, many[0], Belief(result["M"].model, place, judged(result["M"]).cov / 4, place[None]), options)
            wide = WIDE * np.sqrt(variances(images * one.information(result["M"].model, place[None])[0]))
            model, prior = narrowed(result["M"].model, place, wide), np.diag(1 / wide**2)
            found = calibrate_prior(
                model, many, seed=options.seed + 1, datasets=options.sets, likelihoods=["calibrated"], statistic=result.statistic,
                workers=options.workers,
            )["M", "calibrated"]  # fmt: skip
            one = look(result, many[0], Belief(result["M"].model, place, np.diag(wide**2), found.truth), options)
            information = one.information(model, found.truth[: 2 * DRAWS])
            information = information[np.isfinite(information).all(axis=(1, 2))]
            expected = Precision(prior, prior, information, one.replicates(model, place)).predicted(images)
            kept = found.kept
            widths = np.sqrt(np.mean(found.sd[kept] ** 2, axis=0)) / expected.sd
            errors = np.sqrt(np.mean((found.mean - found.truth)[kept] ** 2, axis=0)) / expected.sd
            worst = max(worst, np.abs(widths - 1).max())
            print(
                f"{images} x {many[0].n:5d} environments, x = {x:.1f}: predicted {expected.sd.round(4)} +- {expected.error.round(4)}, "
                f"posterior sd {widths.round(3)}, error of the means {errors.round(3)} (+- {1 / np.sqrt(2 * kept.sum()):.3f}), "
                f"{kept.sum()} sets, {time.perf_counter() - clock:.0f} s",
                flush=True,
            )
    print(f"largest difference of the posterior sd {worst:.3f}: {'within' if worst <= WITHIN_SD else 'NOT within'} {WITHIN_SD:g}")


def look(result: Result, one: Observation, belief: Belief, options: argparse.Namespace) -> Prospect:
    """A prospect with chains of its own."""
    nowhere, common = np.zeros((0, len(result.emulator.names))), {"seed": options.seed, "workers": options.workers}
    return simulated(result, [one], [belief], nowhere, pool=Pool(), report=lambda *_: None, **common)[0]


def narrowed(model: Hamiltonian, place: NDArray[np.float64], wide: NDArray[np.float64]) -> Hamiltonian:
    """The model with normal priors about a place."""
    terms = []
    for term, centre, width in zip(model.terms, place, wide, strict=True):
        other = copy.copy(term)
        object.__setattr__(other, "prior", dist.Normal(float(centre), float(width)))
        terms.append(other)
    return Hamiltonian(model.name, *terms, lattice=model.lattice, species=model.species)


# ---------------------------------------------------------------------- model choice


@dataclass(eq=False)
class Bench:
    """The published images and one prospect on a pool of their own, likelihoods on grids."""

    result: Result
    campaign: Campaign
    prospect: Observation
    grids: dict[str, NDArray[np.float64]]
    before: dict[str, NDArray[np.float64]]
    more: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, result: Result, x: float, seed: int) -> Bench:
        """Chains over the grids of both models, and the likelihoods there."""
        one = prospective(result, field_window(result, None), np.array([1 - x, x]), None)
        models, images = [f.model for f in result.fits.values()], [*result.observations, one]
        campaign = Campaign.prepare(
            models, images, seed=seed, pool=Pool(), settings=Settings(samples=300), workers=1, report=lambda *_: None,
            statistic=result.statistic,
        )  # fmt: skip
        rng, embed = np.random.default_rng(seed), {m.name: result.emulator.embed(m) for m in models}
        places = [np.zeros((1, len(campaign.names))), np.linspace(-0.4, 0.2, 13)[:, None] @ embed["P1"]]
        p = judged(result["M"])
        places.append((p.mean + 2.2 * rng.normal(size=(40, 2)) @ np.linalg.cholesky(p.cov).T) @ embed["M"])
        emulator = campaign.simulate(np.concatenate(places))
        grids, before, more = {}, {}, {}
        for m in models:
            axes = [np.arange(a, b, step) for a, b, step in GRIDS[m.name]]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes)) if axes else np.zeros((1, 0))
            union = grid @ embed[m.name]
            held = np.min([emulator.images[o.name].reweighting.support(union) for o in images], axis=0) >= SUPPORT_BAR
            grids[m.name], union = grid[held], union[held]
            naturals = [
                from_origin(emulator.images[o.name].batch, np.zeros(union.shape[1]), union, emulator.n_composition(o)) for o in images
            ]
            before[m.name] = sum(n(emulator.statistic(o)) for n, o in zip(naturals[:-1], images[:-1], strict=True))
            more[m.name] = naturals[-1].slope, naturals[-1].constant
        return cls(result, campaign, one, grids, before, more, emulator.images[one.name].rows)

    def data(self, truth: str, couplings: Sequence[float], images: int, sets: int, seed: int) -> NDArray:
        """Class counts (sets, images, classes), from chains that no pool has."""
        union = np.asarray(couplings, dtype=float) @ self.result.emulator.embed(self.result[truth].model)
        variant = self.campaign.variants[self.prospect.name][0]
        point = DesignPoint(self.campaign.compiled[self.prospect.name], union, variant.atoms, images * sets, 30.0, 400.0, seed)
        return variant.operator.counts(point.run().snapshots, np.random.default_rng(seed)).reshape(sets, images, -1)

    def decide(self, counts: NDArray) -> list[tuple[str, ...]]:
        """The models that remain in each experiment."""
        total, n = self.result.statistic(counts)[..., self.rows].sum(axis=1), counts.shape[1]
        z: dict[float, dict[str, NDArray]] = {s: {} for s in PRIOR_SCALES}
        for name, grid in self.grids.items():
            slope, constant = self.more[name]
            cell = np.prod([step for *_, step in GRIDS[name]])
            value = self.before[name] + total @ slope.T - n * constant
            for s in PRIOR_SCALES:
                z[s][name] = logsumexp(value + log_prior(self.result[name].model, grid, s), axis=1) + np.log(cell)
        found = []
        for e in range(len(counts)):
            weights = {}
            for s, by_model in z.items():
                each = np.array([by_model[n][e] for n in by_model])
                weights[s] = dict(zip(by_model, np.exp(each - logsumexp(each)).tolist(), strict=True))
            found.append(remaining(weights))
        return found


def power(options: argparse.Namespace) -> None:
    """Predicted and simulated probability of deciding rightly, at several numbers of images for each truth."""
    result = published(options)
    estimate, worst = judged(result["M"]).mean.round(3), 0.0
    cases = [("M", estimate, (2, 4, 8)), ("R", np.zeros(0), (6, 12, 32)), ("P1", np.array([-0.12]), (16, 64))]
    for x in options.compositions:
        bench = Bench.of(result, x, options.seed + 100)
        for truth, couplings, numbers in cases:
            for n in numbers:
                clock = time.perf_counter()
                found = plan(result, seed=options.seed, truth=(truth, couplings), composition=[x], most=n, workers=options.workers)
                predicted = found.dataset.sel(truth=truth, composition=x, images=n)
                remain = bench.decide(bench.data(truth, couplings, n, options.sets, options.seed + 7 * n))
                share = np.mean([r == (truth,) for r in remain])
                apart = abs(float(predicted.power) - share)
                worst = max(worst, apart)
                print(
                    f"x = {x:g}, {truth} {couplings} true, {n} more images: predicted {float(predicted.power):.3f} +- "
                    f"{float(predicted.power_error):.3f}, simulated {share:.3f} ({len(remain)} experiments), apart {apart:.3f}; wrong "
                    f"{float(predicted.wrong):.3f} and {np.mean([len(r) == 1 and r != (truth,) for r in remain]):.3f}; "
                    f"{time.perf_counter() - clock:.0f} s",
                    flush=True,
                )
    print(f"largest difference {worst:.3f}: {'within' if worst <= WITHIN_POWER else 'NOT within'} {WITHIN_POWER:g}")


def experiment(options: argparse.Namespace) -> None:
    """The plan for the published images if M is true at its estimate, and experiments of that size."""
    result = published(options)
    found = plan(result, seed=options.seed, truth="M", composition=options.grid, workers=options.workers)
    print(found, flush=True)
    choice = found.best("M", 1)[0]
    if not np.isfinite(choice.images):
        return
    n, couplings = int(choice.images), judged(result["M"]).mean
    bench = Bench.of(result, choice.composition, options.seed + 100)
    counts = bench.data("M", couplings, n, options.sets, options.seed + 5)
    remain = bench.decide(counts)
    right = sum(r == ("M",) for r in remain)
    low, high = binomial_interval(right, len(remain))
    print(
        f"{n} more images at x = {choice.composition:g}: {right} of {len(remain)} experiments decide for M, {right / len(remain):.3f} "
        f"[{low:.3f}, {high:.3f}] (promised {choice.value:.3f}); wrongly {sum(len(r) == 1 and r != ('M',) for r in remain)}",
        flush=True,
    )
    for e in range(options.public):
        images = [replace(bench.prospect, name=f"new {i}", counts=c) for i, c in enumerate(counts[e])]
        again = infer(
            [f.model for f in result.fits.values()], [*result.observations, *images], seed=options.seed, statistic=result.statistic,
            workers=options.workers,
        )  # fmt: skip
        print(f"  experiment {e}: by infer and compare {compare(again).remain} remain, on the grids {remain[e]}", flush=True)


SECTIONS = {"sd": sd, "power": power, "published": experiment}


def main() -> None:
    """Run one section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--sets", type=int, default=200, help="synthetic fits or experiments of each case")
    parser.add_argument("--truth", type=float, nargs=2, default=[-0.4, -0.15], help="t1 and t2 of M (sd)")
    parser.add_argument("--compositions", type=float, nargs="+", default=[0.5], help="(power)")
    parser.add_argument(
        "--grid", type=float, nargs="+", default=[0.2, 0.35, 0.5, 0.65, 0.8], help="compositions to choose from (published)"
    )
    parser.add_argument("--public", type=int, default=0, help="experiments that also take the public way (published)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default=None, help="folder for the chains of the published images and the prospects")
    options = parser.parse_args()
    numpyro.enable_x64()
    with threadpool_limits(1):
        SECTIONS[options.section](options)


if __name__ == "__main__":
    main()
