"""Reference posteriors of crystals too large to enumerate: ln Z on a grid from a very long pool, with its own error.

A crystal is seen whole and its composition is given, so its likelihood is exp(-w . F) / Z(w), Z summed over the
configurations of that composition. ln Z comes from chains at many couplings (`Case.nodes`), reweighted by code of
this file alone: records are sorted by their features, which are whole numbers, and the free energies solved on the
table. Its error is stated three ways: two independent halves of the pool, the Kullback-Leibler divergence between
the posteriors that follow from them, and the integral of the chains' mean features, which uses no reweighting.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpyro.distributions as dist
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import qmc

from bayesatoms.configuration import Configuration
from bayesatoms.hamiltonian import Compiled, Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chain
from bayesatoms.montecarlo.ensembles import SemiGrand

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from exact import Grid, exact_posterior  # the exact truths are shared with the tests

__all__ = ["CASES", "Case", "Grid", "Reference", "exact_posterior", "reference"]


@dataclass(frozen=True)
class Case:
    """A material whose images are whole periodic crystals, drawn at known couplings.

    `atoms` of species B are in every image; 0 draws them from the ensemble without a field, in which the
    composition is an outcome (the Ising model), on which the inference then conditions.
    `reach`, `steps` : half width of the grid about the truth, and its points a side. `nodes`, `records` : chains
    of the reference pool, and records of each, `apart` sweeps between them.
    """

    name: str
    model: Hamiltonian
    side: int
    truth: tuple[float, ...]
    atoms: int
    prior_sd: float
    reach: float
    steps: int
    nodes: int
    records: int
    apart: int

    @cached_property
    def compiled(self) -> Compiled:
        """The terms on the torus."""
        return self.model.compile(self.model.lattice.supercell((self.side, self.side)))

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """Grid points (m, q)."""
        axes = [w + np.linspace(-self.reach, self.reach, self.steps) for w in self.truth]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))

    def draw(self, count: int, seed: int) -> list[Configuration]:
        """Independent configurations at the truth, from one long chain (its records are 50 autocorrelation times apart or more)."""
        rng, n = np.random.default_rng([seed, 1]), self.side**2
        free = self.atoms == 0
        labels = rng.permutation(np.arange(n) < (n // 2 if free else self.atoms)).astype(int)
        length = {"samples": count, "sweeps": 2000 if free else 150, "burn": 5000 if free else 500}
        chain = run_chain(
            self.compiled,
            self.truth,
            labels,
            **length,
            seed=np.random.SeedSequence([seed, 2]),
            ensemble=SemiGrand((0.0, 0.0)) if free else None,
        )
        shape, lattice = (self.side, self.side), self.model.lattice
        return [
            Configuration.from_labels(lattice, self.model.species, s.reshape(shape).astype(int), periodic=True) for s in chain.snapshots
        ]

    def features(self, configuration: Configuration) -> NDArray[np.float64]:
        """Features (q,) of a configuration."""
        return self.compiled.features(configuration.flat)


def _material(lattice: Lattice, shells: int, prior_sd: float) -> Hamiltonian:
    pairs = [Pair("A", "B", shell=s, name=f"w{s}", prior=dist.Normal(0, prior_sd)) for s in range(1, shells + 1)]
    return Hamiltonian(f"P{shells}", *pairs, lattice=lattice, species=("A", "B"))


CASES = {
    case.name: case
    for case in (
        Case("alloy", _material(Lattice.triangular(0.316), 2, 1.0), 24, (0.4, -0.15), 173, 1.0, 0.42, 85, 96, 3000, 4),
        Case("ising 0.30", _material(Lattice.square(), 1, 1.0), 16, (0.6,), 0, 1.0, 0.6, 481, 25, 3000, 4),
        Case("ising 0.40", _material(Lattice.square(), 1, 1.0), 16, (0.8,), 0, 1.0, 0.6, 481, 25, 3000, 4),
    )
}


@dataclass(frozen=True)
class Reference:
    """ln Z (m,) on a case's grid at one composition, from the whole pool and from its two halves, and by integration."""

    log_z: NDArray[np.float64]
    halves: NDArray[np.float64]
    integrated: NDArray[np.float64]

    def errors(self, case: Case, features: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Divergences (images, 2) of the posteriors: between the halves, and between reweighting and integration."""
        found = []
        for f in features:
            whole = exact_posterior(case.points, f, self.log_z, case.prior_sd)
            # the polynomial means nothing where no chains are: compare where the posterior is, its 4.5 sd ellipse
            near = whole.density > np.exp(-10) * whole.density.max()
            posteriors = [
                exact_posterior(case.points[near], f, z[near], case.prior_sd) for z in (self.log_z, *self.halves, self.integrated)
            ]
            found.append((posteriors[1].divergence(posteriors[2]), posteriors[0].divergence(posteriors[3])))
        return np.array(found)


def reference(case: Case, atoms: int, cache: Path) -> Reference:
    """The reference of a case at one composition, from the cache folder if it is there; species are exchanged so that B is the rarer."""
    atoms = min(atoms, case.side**2 - atoms)
    recipe = repr((case.truth, case.side, case.reach, case.steps, case.nodes, case.records, case.apart, case.model.lattice.name, atoms))
    path = cache / f"{case.name.replace(' ', '_')}_{atoms}_{hashlib.blake2b(recipe.encode(), digest_size=6).hexdigest()}.npz"
    if not path.exists():
        clock = time.perf_counter()
        cache.mkdir(parents=True, exist_ok=True)
        found = _simulate(case, atoms)
        np.savez(path.with_suffix(".part.npz"), log_z=found.log_z, halves=found.halves, integrated=found.integrated)
        path.with_suffix(".part.npz").replace(path)
        print(f"reference of {case.name}, {atoms} atoms: {time.perf_counter() - clock:.0f} s", file=sys.stderr, flush=True)
    with np.load(path) as file:
        return Reference(file["log_z"], file["halves"], file["integrated"])


def _simulate(case: Case, atoms: int) -> Reference:
    q, n = len(case.truth), case.side**2
    if q == 1:  # over the grid and a little beyond
        nodes = case.truth[0] + 1.1 * case.reach * np.linspace(-1, 1, case.nodes)[:, None]
    else:  # most where the posteriors are
        normal = qmc.MultivariateNormalQMC(np.zeros(q), seed=np.random.default_rng(atoms))
        nodes = np.array(case.truth) + 0.4 * case.reach * normal.random(1 << (case.nodes - 1).bit_length())[: case.nodes]
    chains = []
    for i, w in enumerate(nodes):
        labels = np.random.default_rng([atoms, i]).permutation(np.arange(n) < atoms).astype(int)
        seed = np.random.SeedSequence([atoms, i, 3])
        chains.append(run_chain(case.compiled, w, labels, samples=case.records, sweeps=case.apart, burn=500, seed=seed).features)
    features = np.array(chains)
    middle = case.records // 2
    one, two = (_log_z(features[:, part], nodes, case.points) for part in (slice(0, middle), slice(middle, None)))
    return Reference(_log_z(features, nodes, case.points), np.array([one, two]), _integrated(features, nodes, case.points))


def _log_z(features: NDArray[np.float64], nodes: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln Z on points (m, q) up to a constant, from features (K, n, q) at nodes (K, q): Shirts and Chodera's equations on a table.

    Chodera et al., J. Chem. Theory Comput. 3, 26, 2007, eq. 25, with one bin for every value that occurs.
    """
    values, counts = np.unique(features.reshape(-1, features.shape[-1]), axis=0, return_counts=True)
    shift = counts @ values / counts.sum()
    negative, share, log_n = -(values - shift) @ nodes.T, np.full(len(nodes), 1 / len(nodes)), np.log(features.shape[1])
    weight = counts / counts.sum()

    def objective(f: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = negative + f + log_n
        top = logits.max(axis=1, keepdims=True)
        p = np.exp(logits - top)
        total = p.sum(axis=1, keepdims=True)
        return float(weight @ (top + np.log(total))[:, 0] - share @ f), weight @ (p / total) - share

    solved = minimize(
        objective, np.zeros(len(nodes)), jac=True, method="L-BFGS-B", options={"maxiter": 20000, "gtol": 1e-10, "ftol": 1e-16}
    )
    if np.linalg.norm(solved.jac) > 1e-6:
        raise RuntimeError(f"free energies of the reference are not solved: gradient norm {np.linalg.norm(solved.jac):.1e}, expected 1e-6")
    base = np.log(counts) - logsumexp(negative + solved.x + log_n, axis=1)
    blocks = np.array_split(points, max(1, len(points) // 64))
    return np.concatenate([logsumexp(base - b @ (values - shift).T, axis=1) - b @ shift for b in blocks])


def _integrated(features: NDArray[np.float64], nodes: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln Z on points up to a constant, from -<F> at the nodes: the polynomial whose gradient fits them best.

    In two dimensions nodes count less away from the middle, where the alloy orders and no polynomial follows.
    """
    q, centre = nodes.shape[1], nodes.mean(axis=0)
    reach = np.abs(points - centre).max()
    degree = 10 if q == 1 else 7
    powers = np.array([p for p in itertools.product(range(degree + 1), repeat=q) if 0 < sum(p) <= degree])
    z, rows = (nodes - centre) / reach, []
    for a in range(q):
        lowered = powers - np.eye(q, dtype=int)[a]
        rows.append(powers[:, a] * np.prod(z[:, None] ** np.maximum(lowered, 0), axis=2))
    near = np.exp(-2 * (z**2).sum(axis=1)) if q > 1 else np.ones(len(z))
    means, scale = features.mean(axis=1), near[:, None] / features.std(axis=1)
    design = np.concatenate([row * scale[:, [a]] for a, row in enumerate(rows)])
    target = np.concatenate([-means[:, a] * reach * scale[:, a] for a in range(q)])
    coefficients = np.linalg.lstsq(design, target, rcond=None)[0]
    return np.prod(((points - centre) / reach)[:, None] ** powers, axis=2) @ coefficients


def quick(case: Case) -> Case:
    """The case with a reference pool a tenth as long, to try the benchmark out."""
    return replace(case, records=case.records // 10)
