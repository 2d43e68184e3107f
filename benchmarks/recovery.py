"""Which model made the crystals: python benchmarks/recovery.py [--sets N] [--alloys N] [--agree N]

Synthetic data in the geometry of the published images of Mo(1-x)Re(x)S2 (four compositions, and either their number of
environments or ten times as many), judged by the rule of `bayesatoms.compare`. One pool of chains serves all data sets
of a size: its moments are put on grids of couplings, and evidences are sums over the grid. Some sets also take
the public way, `infer` and `compare`, which must agree.

Printed: how often the true model has the highest weight and which models remain, at both sizes; how often random
alloys of the published size lose R, a false interaction; the largest difference of log Bayes factors between the two ways.
By hand, not in the tests: about ten minutes of one processor.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpyro
from numpy.typing import NDArray
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from bayesatoms import catalogue
from bayesatoms.hamiltonian import Hamiltonian
from bayesatoms.inference.campaign import Campaign, Settings
from bayesatoms.inference.comparison import compare, remaining
from bayesatoms.inference.densities import log_prior
from bayesatoms.inference.emulator import SUPPORT_BAR, Emulator
from bayesatoms.inference.moments import normal_log_density
from bayesatoms.inference.posterior import infer
from bayesatoms.inference.priors import PRIOR_SCALES
from bayesatoms.inference.quasi import Natural, from_origin
from bayesatoms.montecarlo.pool import DesignPoint, Pool
from bayesatoms.observation import Observation

SEED = 2021
TRUTHS = {"R": {}, "P1": {"w1": -0.15}, "M": {"t1": -0.51, "t2": -0.19}}  # |w| >= 0.1, of the size that the published fits have
GRIDS = {  # by model: lower end, upper end and step of each coupling at ten times the published size
    "R": [],
    "P1": [(-0.5, 0.3, 0.005)],
    "P2": [(-0.5, 0.3, 0.01), (-0.25, 0.25, 0.01)],
    "M": [(-1.1, 0.6, 0.03), (-0.7, 0.5, 0.02)],
}
WIDER = 3.0  # posteriors at the published size, in those of ten times as many environments
ROUNDS, SERVED, CHAINS = 4, 3, 4  # rounds at most; data sets served in each, by truth and model; chains for each
CUT = 0.02  # share of a posterior that the pool may cut off


@dataclass(eq=False)
class Geometry:
    """Four images of a size, the pool for them and the statistics at the grids' points."""

    models: Sequence[Hamiltonian]
    campaign: Campaign
    wider: float
    grids: dict[str, NDArray[np.float64]]
    cell: dict[str, float]
    tables: dict[str, list]

    @classmethod
    def of(cls, times: int) -> Geometry:
        """The published images with so many times their environments."""
        study = catalogue.load("mos2_res2")
        images = [Observation.from_counts(times * o.counts, o.environments, name=o.name) for o in study.data]
        campaign = Campaign.prepare(
            study.models, images, seed=SEED, pool=Pool(), settings=Settings(samples=160), workers=1, report=lambda *_: None
        )  # fmt: skip
        wider = 1.0 if times > 1 else WIDER
        grids, cell = {}, {}
        for model in study.models:
            axes = [np.arange(wider * a, wider * b, wider * step) for a, b, step in GRIDS[model.name]]
            grids[model.name] = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes)) if axes else np.zeros((1, 0))
            cell[model.name] = float(np.prod([wider * step for *_, step in GRIDS[model.name]]))
        return cls(study.models, campaign, wider, grids, cell, {})

    def data(self, truth: str, sets: int, seed: int) -> list[list[NDArray[np.int64]]]:
        """Class counts of each set (image by image), from chains that are not in the pool."""
        union = np.array([TRUTHS[truth].get(n, 0.0) for n in self.campaign.names])
        each = []
        for i, o in enumerate(self.campaign.observations):
            variant = self.campaign.variants[o.name][0]
            point = DesignPoint(self.campaign.compiled[o.name], union, variant.atoms, sets, 40.0, 400.0, seed)
            rng = np.random.default_rng(np.random.SeedSequence([seed, i]))
            each.append(variant.operator.counts(point.run().snapshots, rng))
        return [[counts[r] for counts in each] for r in range(sets)]

    def simulate(self, points: NDArray[np.float64]) -> Emulator:
        """More chains, and the tables at the grids anew."""
        emulator = self.campaign.simulate(points)
        self.tables = {}
        for model in self.models:
            union = self.grids[model.name] @ emulator.embed(model)
            self.tables[model.name] = [emulator.images[o.name].batch(union) for o in self.campaign.observations]
        return emulator

    def log_likelihood(self, model: Hamiltonian, counts: Sequence[NDArray]) -> NDArray[np.float64]:
        """At the model's grid; -inf where the pool has no support."""
        emulator, total = self.campaign.emulator, 0.0
        assert emulator is not None
        for o, seen, (moments, support) in zip(self.campaign.observations, counts, self.tables[model.name], strict=True):
            value = emulator.statistic(replace(o, counts=seen))
            if isinstance(moments, Natural):
                density = moments(value)
            else:
                density = normal_log_density(value, moments.mean, moments.lower, emulator.n_composition(o))
            total = total + np.where(support >= SUPPORT_BAR, density, -np.inf)
        return total

    def integrate(self) -> None:
        """The calibrated likelihood on the grids, over that of the random alloy; the Normal density has found the posteriors."""
        emulator = self.campaign.emulator
        assert emulator is not None
        for model in self.models:
            union, tables = self.grids[model.name] @ emulator.embed(model), []
            for o, (_, support) in zip(self.campaign.observations, self.tables[model.name], strict=True):
                held, image = support >= SUPPORT_BAR, emulator.images[o.name]
                found = from_origin(image.batch, image.random, union[held], emulator.n_composition(o))
                slope, constant = np.zeros((len(union), found.slope.shape[1])), np.zeros(len(union))
                slope[held], constant[held] = found
                tables.append((Natural(slope, constant), support))
            self.tables[model.name] = tables

    def log_evidence(self, counts: Sequence[NDArray]) -> dict[float, dict[str, float]]:
        """By prior scale and model."""
        found: dict[float, dict[str, float]] = {s: {} for s in PRIOR_SCALES}
        for model in self.models:
            value = self.log_likelihood(model, counts)
            for s in PRIOR_SCALES:
                found[s][model.name] = float(logsumexp(value + log_prior(model, self.grids[model.name], s)) + np.log(self.cell[model.name]))
        return found

    def edge(self, model: Hamiltonian, counts: Sequence[NDArray]) -> float:
        """Share of a posterior's mass in cells next to where the pool or the grid ends."""
        shape = [len(np.arange(self.wider * a, self.wider * b, self.wider * step)) for a, b, step in GRIDS[model.name]]
        value = self.log_likelihood(model, counts)
        known = np.pad(np.isfinite(value).reshape(shape), 1)
        inside = np.ones(shape, dtype=bool)
        for axis in range(len(shape)):
            for move in (0, 2):
                cut = tuple(slice(move, move + shape[a]) if a == axis else slice(1, -1) for a in range(len(shape)))
                inside &= known[cut]
        return float(np.exp(value - logsumexp(value)).reshape(shape)[~inside].sum())

    def cover(self, data: Mapping[str, Sequence[Sequence[NDArray]]]) -> None:
        """Chains along the pair model, then over the posteriors of each model for each truth, in rounds until nothing is cut off."""
        rng, names = np.random.default_rng(SEED), self.campaign.names
        embed = {m.name: np.array([[float(n == u) for u in names] for n in m.names]).reshape(len(m.names), len(names)) for m in self.models}
        line = self.wider * np.linspace(-0.3, 0.12, 13)[:, None] @ embed["P1"]
        self.simulate(np.vstack([np.zeros((1, len(names))), line]))
        for number in range(ROUNDS):
            points = []
            for sets in data.values():
                for model in self.models[1:]:
                    # two data sets to begin with, then those that are cut off most
                    some = sets[:2] if number == 0 else [c for c in sets if self.edge(model, c) > CUT][:SERVED]
                    for counts in some:
                        centre, root = self.normal(model, counts)
                        z = rng.normal(size=(CHAINS, len(centre)))
                        # as wide as the scatter of such data sets' posteriors, and again by the spread that `infer` uses
                        points.append((centre + 1.6 * np.sqrt(2) * z @ root.T) @ embed[model.name])
            if not points:
                break
            self.simulate(np.concatenate(points))
        # and on the way from the random alloy to each of them, along which the likelihood is integrated
        ends = [self.normal(model, sets[0])[0] @ embed[model.name] for sets in data.values() for model in self.models[1:]]
        self.simulate(np.concatenate([np.linspace(0, 1, 7)[1:-1, None] * end for end in ends]))
        self.integrate()

    def normal(self, model: Hamiltonian, counts: Sequence[NDArray]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (k,) and root of the covariance (k, k) of the likelihood on the grid."""
        value, grid = self.log_likelihood(model, counts), self.grids[model.name]
        p = np.exp(value - logsumexp(value))
        centre = p @ grid
        apart = grid - centre
        step = np.array([self.wider * s for *_, s in GRIDS[model.name]])
        return centre, np.linalg.cholesky((apart * p[:, None]).T @ apart + np.diag(step**2))


def weights(log_z: Mapping[str, float]) -> dict[str, float]:
    """Normalised, equal prior weights."""
    total = logsumexp(list(log_z.values()))
    return {n: float(np.exp(v - total)) for n, v in log_z.items()}


def judge(geometry: Geometry, sets: Sequence[Sequence[NDArray]]) -> tuple[Counter, Counter, float]:
    """How often each model has the highest weight, which sets of models remain, and the worst edge."""
    best, kept, edge = Counter(), Counter(), 0.0
    for counts in sets:
        by_scale = {s: weights(z) for s, z in geometry.log_evidence(counts).items()}
        best[max(by_scale[1.0], key=by_scale[1.0].__getitem__)] += 1
        kept[" ".join(sorted(remaining(by_scale)))] += 1
        edge = max([edge, *(geometry.edge(m, counts) for m in geometry.models[1:])])
    return best, kept, edge


def size(times: int, number: Mapping[str, int]) -> tuple[Geometry, dict]:
    """One geometry: pool, data, verdicts."""
    clock = time.perf_counter()
    geometry = Geometry.of(times)
    data = {truth: geometry.data(truth, n, SEED + 1 + i) for i, (truth, n) in enumerate(number.items())}
    geometry.cover(data)
    print(f"{times} x the published size: {len(geometry.campaign.design)} chains an image, {time.perf_counter() - clock:.0f} s", flush=True)
    for truth, sets in data.items():
        best, kept, edge = judge(geometry, sets)
        several = sum(n for names, n in kept.items() if len(names.split()) > 1)
        lost = sum(n for names, n in kept.items() if truth not in names.split())
        print(
            f"  truth {truth} ({len(sets)} sets): highest weight {best[truth] / len(sets):.0%} {dict(best)}; several remain in "
            f"{several / len(sets):.0%}; the truth does not remain in {lost}; mass at the pool's edge at most {edge:.1e}"
        )
        print(f"    remain: {dict(kept.most_common())}", flush=True)
    print(f"  {time.perf_counter() - clock:.0f} s", flush=True)
    return geometry, data


def agree(geometry: Geometry, sets: Sequence[Sequence[NDArray]]) -> None:
    """The public way on some sets: log Bayes factor of R over P1, at the same statistic."""
    chosen = [m for m in geometry.models if m.name in ("R", "P1")]
    for i, counts in enumerate(sets):
        images = [replace(o, counts=seen) for o, seen in zip(geometry.campaign.observations, counts, strict=True)]
        result = infer(chosen, images, seed=i, statistic=geometry.campaign.statistic)
        rows = compare(result).rows
        public = rows["R"].log_evidence[1.0] - rows["P1"].log_evidence[1.0]
        error = np.hypot(rows["R"].pool_error, rows["P1"].pool_error)
        here = geometry.log_evidence(counts)[1.0]
        print(
            f"  set {i}: ln B(R : P1) by infer and compare {public:.2f} ± {error:.2f}, on the shared pool {here['R'] - here['P1']:.2f}",
            flush=True,
        )


def main() -> None:
    """All parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=20, help="data sets of each truth")
    parser.add_argument("--alloys", type=int, default=200, help="random alloys of the published size")
    parser.add_argument("--agree", type=int, default=2, help="sets that also take the public way")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10], help="times the published size")
    options = parser.parse_args()
    numpyro.enable_x64()
    with threadpool_limits(1):
        for times in options.sizes:
            alloys = options.alloys if times == 1 else options.sets
            geometry, data = size(times, {"R": alloys, "P1": options.sets, "M": options.sets})
            if times == 1:
                agree(geometry, data["R"][: options.agree])


if __name__ == "__main__":
    main()
