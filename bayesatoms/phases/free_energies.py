"""Free energies between couplings, two ways: by reweighting a ladder of chains and by thermodynamic integration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..inference.reweighting import Reweighting
from ..montecarlo.control import APART, Settled, judged, starts
from ..montecarlo.engine import run_chains
from ..montecarlo.ensembles import Canonical, SemiGrand
from .thermodynamics import atom_counts

SUPPORT = 0.05  # effective records between two rungs of a ladder, in chains' lengths, below which reweighting has none


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class FreeEnergyDifference:
    """F(end) - F(start) = ln Z(start) - ln Z(end) of a whole crystal, in kT, two ways from separate chains.

    Attributes
    ----------
    reweighting : Estimate
        Of a ladder of chains from start to end (:class:`~bayesatoms.inference.reweighting.Reweighting`).
    integration : Estimate
        The integral of <F> dw along the line between, by Gauss and Legendre; what the rule itself misses is not in its error.
    apart : float
        Their difference in standard errors.
    reasons : tuple of str
        Why they are not to be believed; empty if they are.
    """

    reweighting: Estimate
    integration: Estimate
    apart: float
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.reasons


def free_energy_difference(
    hamiltonian: Hamiltonian,
    start: Mapping[str, float] | ArrayLike,
    end: Mapping[str, float] | ArrayLike,
    *,
    shape: Sequence[int],
    seed: int,
    composition: float | Sequence[float] | None = None,
    potential: Sequence[float] | None = None,
    nodes: int = 8,
    chains: int = 8,
    samples: int = 1000,
    sweeps: float = 2.0,
    burn: float = 200.0,
    kernel: str = "auto",
) -> FreeEnergyDifference:
    """Free energy between two couplings by reweighting and by thermodynamic integration, so that one checks the other.

    d ln Z / dw = -<F>: the line between the couplings is walked in steps at which the features' means are known (D. Frenkel and
    B. Smit, Understanding Molecular Simulation, 2002, section 7.1). At fixed composition F is Helmholtz's free energy, with
    a potential the grand one at that potential. Both have the random alloy, couplings of zero, as a reference that is known.

    Parameters
    ----------
    hamiltonian : Hamiltonian
    start, end : mapping of str to float, or array_like, shape (n_features,)
        kT; divide by the temperature for another than that of formation.
    shape, composition, potential
        As for :func:`~bayesatoms.phases.thermodynamics.measure`, potential in the same kT.
    seed : int
    nodes : int
        Couplings on the way, for each of the two ways.
    chains : int
        At each node; even, half of them from a cold start.
    samples, sweeps, burn, kernel
        As for :func:`~bayesatoms.montecarlo.engine.run_chains`.

    Returns
    -------
    FreeEnergyDifference

    Raises
    ------
    InputError
        If couplings, composition or potential do not fit, or there are too few nodes or chains.

    Examples
    --------
    Atoms in a field alone are independent of each other: Z = (1 + exp(-h))^N.

    >>> from bayesatoms.hamiltonian import Field
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("field", Field("B"), lattice=Lattice.square(), species=("A", "B"))
    >>> found = free_energy_difference(h, [0.0], [1.0], shape=(6, 6), potential=(0, 0), seed=1)
    >>> exact = 36 * (np.log(2) - np.log(1 + np.exp(-1)))
    >>> found.ok, all(abs(e.value - exact) < 4 * e.error for e in (found.reweighting, found.integration))
    (True, True)
    """
    first, last = hamiltonian.vector(start), hamiltonian.vector(end)
    if nodes < 2 or chains < 4 or chains % 2:
        raise InputError(f"{nodes} nodes of {chains} chains asked for; expected two nodes or more, and an even number of chains from 4 on")
    if np.array_equal(first, last):
        raise InputError(f"start and end are both {first.tolist()}; expected different couplings")
    field = None if potential is None else np.asarray(potential, dtype=float)
    supercell = hamiltonian.lattice.supercell(tuple(int(n) for n in shape))
    counts = atom_counts(hamiltonian, supercell, composition, field)
    compiled = hamiltonian.compile(supercell)
    root = np.random.SeedSequence(seed)
    ensemble = Canonical() if field is None else SemiGrand(tuple(field))
    common = {"samples": samples, "sweeps": sweeps, "burn": burn, "kernel": kernel, "ensemble": ensemble}
    points, weights = np.polynomial.legendre.leggauss(nodes)
    found, reasons = [], []
    for places in (np.linspace(0, 1, nodes), (points + 1) / 2):
        path = first + places[:, None] * (last - first)
        begin, *seeds = root.spawn(1 + nodes * chains)
        rngs = [np.random.default_rng(s) for s in begin.spawn(nodes)]
        labels = np.concatenate([starts(compiled, w, counts, chains, rng) for w, rng in zip(path, rngs, strict=True)])
        run = run_chains(compiled, np.repeat(path, chains, axis=0), labels, seeds=seeds, **common)
        slopes = {"slope": lambda c: c.features @ (last - first)}
        rows = [judged(run[k * chains : (k + 1) * chains], slopes, {"slope": np.inf}, samples * sweeps) for k in range(nodes)]
        reasons += [f"at {path[k].tolist()}: {r}" for k, row in enumerate(rows) for r in row.reasons]
        found.append((path, rows))
    (ladder, rungs), (_, stops) = found
    values, noises = np.array([(s.means["slope"].value, s.means["slope"].error) for s in stops]).T
    integration = Estimate(float(weights @ values / 2), float(np.hypot.reduce(weights * noises / 2)))
    reweighting, thin = _reweighted(ladder, rungs)
    reasons += thin
    gap, noise = abs(reweighting.value - integration.value), float(np.hypot(reweighting.error, integration.error))
    apart = gap / max(noise, 1e-300) if gap > 0 else 0.0
    if apart > APART:
        reasons.append(f"reweighting and integration differ by {apart:.0f} standard errors, expected at most {APART:.0f}: take more nodes")
    return FreeEnergyDifference(reweighting, integration, apart, tuple(reasons))


def _reweighted(ladder: NDArray[np.float64], rungs: Sequence[Settled]) -> tuple[Estimate, list[str]]:
    """Free energy from the first to the last rung, its error by leaving out a third of a chain of every rung in turn, and gaps."""
    # about independent records, one list a rung of stretches of chains: the weights of rungs are by how much they know
    steps = [(s.means["slope"].cut, int(np.ceil(s.means["slope"].time))) for s in rungs]
    kept = [[f for c in s.chains for f in np.array_split(c.features[cut::step], 3)] for s, (cut, step) in zip(rungs, steps, strict=True)]

    def solve(without: int | None, guess: Reweighting | None) -> Reweighting:
        used = [[f for r, f in enumerate(rung) if r != without] for rung in kept]
        features = np.concatenate([f for rung in used for f in rung])
        begin = None if guess is None else guess.free_energies + ladder @ (guess.centre - features.mean(axis=0))
        pool = Reweighting.solve(features, ladder, [sum(map(len, rung)) for rung in used], start=begin)
        pool.check()
        return pool

    def difference(pool: Reweighting) -> float:
        return float(pool.log_z(ladder[0]) - pool.log_z(ladder[-1]))

    pool = solve(None, None)
    left_out = np.array([difference(solve(r, pool)) for r in range(len(kept[0]))])
    error = np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum())
    between = (ladder[1:] + ladder[:-1]) / 2
    support = pool.support(between)
    reasons = [
        f"between rungs, at {w.tolist()}: {s:.2g} of a chain's records count, expected {SUPPORT} at least: take more nodes"
        for w, s in zip(between, support, strict=True)
        if s < SUPPORT
    ]
    return Estimate(difference(pool), float(error)), reasons
