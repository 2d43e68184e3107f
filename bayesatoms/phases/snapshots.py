"""Predicted configurations: what the alloy would look like at chosen compositions and temperatures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..configuration import Configuration, whole_counts
from ..errors import InputError
from ..lattice import Supercell
from ..montecarlo.engine import run_chains
from .arguments import chosen_draws, identity
from .candidates import Candidate, candidates_of
from .sheet import Sheet

if TYPE_CHECKING:
    from ..inference.posterior import Result


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One predicted configuration of a periodic crystal, and what it follows from.

    Attributes
    ----------
    configuration : Configuration
    composition : float
        Fraction of the second species, as whole atoms allow it.
    temperature : float
        Relative to formation.
    model : str
    couplings : ndarray, shape (k,)
        The posterior draw, in kT at formation.
    """

    configuration: Configuration
    composition: float
    temperature: float
    model: str
    couplings: NDArray[np.float64]


def snapshots(
    source: Result | Sequence[Candidate],
    points: Sequence[tuple[float, float]],
    *,
    model: str = "average",
    draws: int = 1,
    seed: int,
    size: int = 24,
    sweeps: float = 480.0,
) -> list[Snapshot]:
    """Run fresh chains at chosen points, each cooled from a random start, and keep their last configurations.

    Parameters
    ----------
    source : Result, or sequence of Candidate
        As for :func:`~bayesatoms.phases.diagram.phase_diagram`.
    points : sequence of (float, float)
        Composition, the fraction of the second species, and temperature relative to formation.
    model : str
        Of a Result: "average", or a name.
    draws : int
        Posterior draws, shared out by weight: one goes to the model of most weight.
    seed : int
        The result follows from it. A draw is the same one at all points, and each point has its own random numbers.
    size : int
        Cells along each side, at least 4; a multiple of 6 fits the usual orderings.
    sweeps : float
        At each of the temperatures passed on the way down, in steps of at most 30 %.

    Returns
    -------
    list of Snapshot
        Point by point, and within a point draw by draw.

    Raises
    ------
    InputError
        If an argument cannot be used.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> cold, hot = snapshots([Candidate(h, [[-1.0]])], [(0.5, 0.2), (0.5, 50.0)], seed=1, size=6)
    >>> cold.composition, int((cold.configuration.flat.reshape(6, 6)[:, 1:] != cold.configuration.flat.reshape(6, 6)[:, :-1]).sum())
    (0.5, 30)
    """
    candidates = list(source) if isinstance(source, Sequence) else candidates_of(source, model)
    if not any(c.weight > 0 for c in candidates):
        raise InputError(f"{len(candidates)} candidates without weight given; expected at least one with a weight above 0")
    if any(len(c.hamiltonian.species) != 2 for c in candidates):
        raise InputError(f"species {', '.join(candidates[0].hamiltonian.species)} given; snapshots of the phase map expect two species")
    for name, value, least in (("draws", draws, 1), ("size", size, 4), ("sweeps", sweeps, 1), ("seed", seed, 0)):
        if not (np.isfinite(value) and value >= least):
            raise InputError(f"{name} {value} given; expected a number of at least {least}")
    weights = np.array([c.weight for c in candidates])
    shares = whole_counts(weights / weights.sum(), draws)
    found: list[Snapshot] = []
    for number, (x, t) in enumerate(points):
        if not (0 < x < 1 and 0 < t < np.inf):
            raise InputError(f"point ({x:g}, {t:g}) given; expected a composition between 0 and 1 and a temperature above 0")
        for candidate, share in zip(candidates, shares, strict=True):
            if share:
                found += _at(candidate, int(share), (float(x), float(t)), size, float(sweeps), (seed, number))
    return found


def _at(
    candidate: Candidate, draws: int, point: tuple[float, float], size: int, sweeps: float, place: tuple[int, int]
) -> Iterator[Snapshot]:
    """Some draws of one model at one point."""
    h, (x, t), (seed, number) = candidate.hamiltonian, point, place
    box = h.lattice.supercell((size,) * h.lattice.dimension)
    counts = whole_counts([1 - x, x], box.n_sites)
    if counts.min() < 1:
        raise InputError(f"composition {x:g} leaves a species without atoms among {box.n_sites} sites; use a larger size")
    [chosen] = chosen_draws([candidate], np.array([draws]), seed)
    labels = _annealed(candidate, chosen, counts, box, t, sweeps, identity(seed, candidate, number))
    for row, couplings in zip(labels, chosen, strict=True):
        cells = row.reshape(*box.shape, -1).astype(np.int8)
        configuration = Configuration(h.lattice, h.species, cells, tuple(h.lattice.periodic))
        yield Snapshot(configuration, float(counts[1] / box.n_sites), t, h.name, couplings)


def _annealed(
    candidate: Candidate,
    couplings: NDArray[np.float64],
    counts: NDArray[np.int64],
    box: Supercell,
    t: float,
    sweeps: float,
    entropy: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Labels (draws, n_sites) at temperature t: chains that start at random and hot, and cool in steps."""
    start, *roots = np.random.SeedSequence(entropy).spawn(1 + len(couplings))
    rng, atoms = np.random.default_rng(start), np.repeat(np.arange(2, dtype=np.uint8), counts)
    labels = np.stack([rng.permutation(atoms) for _ in couplings])
    if not couplings.shape[1]:
        return labels  # the random alloy is the same at every temperature
    compiled = candidate.hamiltonian.compile(box)
    for stage in Sheet(compiled, box, couplings, np.array([t]), counts, 1, sweeps, entropy).stages:
        seeds = [root.spawn(1)[0] for root in roots]
        chains = run_chains(compiled, couplings / stage, labels, samples=1, sweeps=1.0, burn=sweeps, seeds=seeds)
        labels = np.stack([c.snapshots[-1] for c in chains])
    return labels
