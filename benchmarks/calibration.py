"""Coverage on the MoS2-ReS2 geometry and beside it: python benchmarks/calibration.py SECTION [options]. By hand, minutes each.

prior     data sets with couplings from Normal(0, SD) for each model, on the four published windows and compositions
fresh     some of them again, each through the public `infer` with a pool of its own: do the shared pool's answers agree?
errors    2 and 5 % wrong labels on one triangular alloy, modelled and ignored
window    an open window with 3 % wrong labels and 1 % of its sites missing
random    the random alloy as the truth: how often is w = 0 inside the 95 % interval?
held-out  the published images themselves: calibration near their own posterior, from held-out chains
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence

import numpy as np
from numpyro import distributions as dist

from bayesatoms import catalogue
from bayesatoms.configuration import UNSEEN, Configuration
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference.calibration import calibrate
from bayesatoms.inference.campaign import Settings
from bayesatoms.inference.fresh import calibrate_prior, synthetic
from bayesatoms.inference.posterior import infer
from bayesatoms.inference.ranked import Calibration
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation


def models_with(sd: float, names: Sequence[str]) -> tuple[list[Hamiltonian], list[Observation]]:
    """The published models with Normal(0, sd) on every coupling, and the published images."""
    found = catalogue.load("mos2_res2")
    return [_with_prior(m, sd) for m in found.models if m.name in names], list(found.data)


def _with_prior(model: Hamiltonian, sd: float) -> Hamiltonian:
    terms = []
    for term in model.terms:
        other = copy.copy(term)
        object.__setattr__(other, "prior", dist.Normal(0, sd))
        terms.append(other)
    return Hamiltonian(model.name, *terms, lattice=model.lattice, species=model.species)


def alloy(x: float = 0.3, side: int = 24, label_error: float = 0.0, missing: float = 0.0) -> tuple[Hamiltonian, Observation]:
    """A triangular alloy with two pair couplings, and an image's window of it; x is the composition as labelled."""
    lattice, species = Lattice.triangular(0.316), ("A", "B")
    prior = dist.Normal(0, 0.25)
    terms = (Pair("A", "B", shell=1, name="w1", prior=prior), Pair("A", "B", shell=2, name="w2", prior=prior))
    labels = Configuration.random(lattice, species, (side, side), (1 - x, x), np.random.default_rng(5)).labels[..., 0].copy()
    labels[np.random.default_rng(6).random(labels.shape) < missing] = UNSEEN
    error = None if not label_error else np.array([[1 - label_error, label_error], [label_error, 1 - label_error]])
    return Hamiltonian("P2", *terms, lattice=lattice, species=species), Observation.from_labels(
        labels, lattice, species, name="image", label_error=error
    )


def show(title: str, found: Calibration, clock: float) -> None:
    """Title, time and the table."""
    print(f"\n== {title}: {time.perf_counter() - clock:.0f} s, {found.settings.get('chains', 0)} chains\n{found}", flush=True)


def prior(options: argparse.Namespace) -> None:
    """Coverage over the prior, a pool for each model."""
    for name in options.models:
        clock = time.perf_counter()
        models, images = models_with(options.sd, [name])
        found = calibrate_prior(models, images, seed=options.seed, datasets=options.datasets, workers=options.workers)
        show(f"{name}, prior Normal(0, {options.sd:g})", found, clock)


def fresh(options: argparse.Namespace) -> None:
    """Posterior means and widths of the shared pool beside those of `infer` with a pool of its own for each data set."""
    for name in options.models:
        models, images = models_with(options.sd, [name])
        row = calibrate_prior(models, images, seed=options.seed, datasets=options.datasets, workers=options.workers)[name, "calibrated"]
        _, sets = synthetic(models, images, name, seed=options.seed, datasets=options.datasets)
        shifts, widths, inside = [], [], 0
        for i in np.flatnonzero(row.kept)[: options.sets]:
            result = infer(models, sets[i], seed=options.seed, settings=Settings(warmup=300, draws=1000), workers=options.workers)
            p = result[name].posterior
            shifts.append((p.mean - row.mean[i]) / p.sd)
            widths.append(row.sd[i] / p.sd)
            inside += (np.abs(np.mean(p.flat < row.truth[i], axis=0) - 0.5) < 0.45).astype(int)
            print(f"{name} {i}: shift {shifts[-1].round(3)} sd, widths {widths[-1].round(3)}", flush=True)
        print(
            f"{name}: {len(shifts)} sets; rms shift {np.sqrt(np.mean(np.square(shifts), axis=0)).round(3)} sd, "
            f"mean ratio of widths {np.mean(widths, axis=0).round(3)}, truths inside 90 % intervals {inside}"
        )


def errors(options: argparse.Namespace) -> None:
    """Wrong labels, modelled and ignored."""
    for rate in (0.02, 0.05):
        for said in ("modelled", "ignored"):
            clock = time.perf_counter()
            model, noisy = alloy(label_error=rate)
            _, blind = alloy()
            believed = noisy if said == "modelled" else blind
            found = calibrate_prior(
                model,
                believed,
                seed=options.seed,
                datasets=options.datasets,
                seen=noisy,
                likelihoods=["calibrated"],
                workers=options.workers,
            )
            show(f"{100 * rate:g} % wrong labels, {said}", found, clock)


def window(options: argparse.Namespace) -> None:
    """Wrong labels and missing sites together."""
    clock = time.perf_counter()
    model, image = alloy(label_error=0.03, missing=0.01)
    found = calibrate_prior(model, image, seed=options.seed, datasets=options.datasets, workers=options.workers)
    show(f"open window of {image.n} environments, 3 % wrong labels, 1 % of the sites missing", found, clock)


def random(options: argparse.Namespace) -> None:
    """The random alloy as the truth."""
    clock = time.perf_counter()
    model, image = alloy()
    found = calibrate_prior(model, image, seed=options.seed, datasets=options.datasets, truth=[0.0, 0.0], workers=options.workers)
    show("random alloy as truth", found, clock)
    for row in found.rows:
        for name in row.names:
            share, low, high = row.coverage(name, 0.95)
            print(f"{row.kind} {name}: 0 inside the 95 % interval in {100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")


def held_out(options: argparse.Namespace) -> None:
    """The published images: near their own posterior."""
    found = catalogue.load("mos2_res2")
    result = infer(list(found.models), list(found.data), seed=options.seed, workers=options.workers)
    clock = time.perf_counter()
    show("published images, held-out chains", calibrate(result, datasets=options.datasets), clock)


SECTIONS = {"prior": prior, "fresh": fresh, "errors": errors, "window": window, "random": random, "held-out": held_out}


def main() -> None:
    """Run one section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--sd", type=float, default=0.25, help="width of the prior, kT")
    parser.add_argument("--models", nargs="+", default=["P1", "P2", "M"])
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--sets", type=int, default=20, help="of them, through infer (fresh)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    SECTIONS[options.section](options)


if __name__ == "__main__":
    main()
