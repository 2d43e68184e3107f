"""One sheet of a phase map: draws of a model side by side, cooled together and warmed again.

A sheet is one model at one composition, or at one chemical potential. Every lane is one posterior draw w of the
couplings and runs at w / T, so nothing is interpolated between couplings. All start at random and hot; T falls stage by
stage until an atom hardly moves, and rises again from there. Where the two ways disagree, or a lane's energy lies
above one that it met at a higher temperature, it is not in equilibrium, and the map says so. A stage lasts longer for the
lanes whose phase it has not yet told.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..hamiltonian import Compiled
from ..lattice import Supercell
from ..montecarlo.chains import Chain
from ..montecarlo.engine import run_chains
from ..montecarlo.ensembles import Canonical, Ensemble, SemiGrand
from ..montecarlo.lanes import MOST
from ..montecarlo.timeseries import autocorrelation_times
from .insertion import chemical_potentials
from .observables import bond_count, disordered_floor, order_parameter, ordered_threshold, warren_cowley

ORDER, LONG, ALPHA, ENERGY, COMPOSITION, HEAT, SUSCEPTIBILITY, POTENTIAL, DOUBT = range(9)  # what is known of a lane at a stage
RECORDS = 16  # snapshots a block
BLOCKS = 5  # of a stage, at most
_MEASURED = 5  # the first of them are series: means over records
_HOT = 0.3  # |w| / T at the first stage: nearly random, whatever the couplings
_STEP = 1.3  # ratio of neighbouring temperatures, at most
_BURN = 0.5  # of a block, before the first record of a stage
_SIGMAS = 3.0  # standard errors within which a lane's phase is not told, and beyond which two ways disagree
_PURE = 0.02  # share of the rarer species below which a crystal is nearly pure
_ATTEMPTS = 3  # coolings of a lane that gets trapped


@dataclass(frozen=True, eq=False)
class Sheet:
    """What to simulate. `couplings` (draws, k) in kT at formation, `temperatures` (T,) rising and relative to it.

    `counts` are the atoms of each species at the start, kept unless there is a chemical `potential` (of species `varied`,
    in kT at formation); `sweeps` those of a block; `entropy` where the random numbers come from.
    """

    compiled: Compiled
    box: Supercell
    couplings: NDArray[np.float64]
    temperatures: NDArray[np.float64]
    counts: NDArray[np.int64]
    varied: int
    sweeps: float
    entropy: tuple[int, ...]
    potential: float | None = None

    @cached_property
    def stages(self) -> NDArray[np.float64]:
        """Temperatures from hot to cold: those asked for, and others on the way to them."""
        hot = max(self.temperatures[-1], float(np.linalg.norm(self.couplings, axis=1).max(initial=0.0)) / _HOT)
        knots, found = np.unique(np.append(self.temperatures, hot))[::-1], []
        for above, below in itertools.pairwise(knots):
            n = max(1, int(np.ceil(np.log(above / below) / np.log(_STEP) - 1e-9)))
            found.append(np.geomspace(above, below, n + 1)[:-1])
        return np.concatenate([*found, knots[-1:]])

    @cached_property
    def asked(self) -> NDArray[np.int64]:
        """Which stage each temperature is."""
        return np.array([int(np.argmin(np.abs(np.log(self.stages / t)))) for t in self.temperatures])

    def ensemble(self, temperature: float) -> Ensemble:
        """The ensemble of a stage."""
        if self.potential is None:
            return Canonical()
        potential = [0.0, 0.0]
        potential[self.varied] = self.potential / temperature
        return SemiGrand(tuple(potential))

    @cached_property
    def threshold(self) -> float:
        """The order parameter above which a lane counts as ordered or separated."""
        return ordered_threshold(self.box, self.counts[self.varied] / self.box.n_sites)

    @cached_property
    def key(self) -> str:
        """Hash of all that the result follows from."""
        digest = hashlib.blake2b(digest_size=16)
        c, lattice = self.compiled, self.box.lattice
        for array in (
            c.tables, c.base, c.start, c.touch, c.stride, lattice.cell, lattice.basis, self.couplings, self.temperatures, self.counts
        ):  # fmt: skip
            digest.update(np.ascontiguousarray(array).tobytes() + str(array.shape).encode())
        digest.update(
            repr((self.box.shape, self.box.periodic, self.varied, float(self.sweeps), self.entropy, self.potential, _VERSION)).encode()
        )
        return digest.hexdigest()


_VERSION = 10  # of what a sheet computes: stored ones of another are not used


@dataclass(frozen=True, eq=False)
class Cooled:
    """What a sheet found, at the temperatures asked for.

    `values` (9, draws, T): see the numbers above, means of both ways (and half the difference of the two potentials); nan where
    there is none. `unsettled`, `frozen` (draws, T): not in equilibrium; beyond the temperature at which atoms stood still, where
    the last values are held.
    """

    values: NDArray[np.float64]
    unsettled: NDArray[np.bool_]
    frozen: NDArray[np.bool_]
    chains: int
    moves: int


@dataclass(eq=False)
class _Way:
    """One cooling and warming of some lanes: values and errors (2 ways, stages, lanes, 9), the last stage of each, whether it froze."""

    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    last: NDArray[np.int64]
    still: NDArray[np.bool_]
    chains: int = 0
    moves: int = 0
    trapped: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))


def cool(sheet: Sheet) -> Cooled:
    """Simulate a sheet: lanes that get trapped or break up into domains start anew, and the attempt of lowest energy counts.

    Examples
    --------
    Pairs that attract their own kind separate below w / T = ln(3) / 2 on a triangular lattice at x = 1/2.

    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.triangular(), species=("A", "B"))
    >>> box = h.lattice.supercell((12, 12))
    >>> sheet = Sheet(h.compile(box), box, np.array([[0.5]]), np.array([0.5, 2.0]), np.array([72, 72]), 1, 200.0, (1,))
    >>> (cool(sheet).values[ORDER, 0] > sheet.threshold).tolist()
    [True, False]
    """
    best = _way(sheet, np.arange(len(sheet.couplings)), 0)
    for attempt in range(1, _ATTEMPTS):
        lanes = np.flatnonzero(best.trapped.any(axis=0) | _broken(best))
        if not len(lanes):
            break
        other = _way(sheet, lanes, attempt)
        lower = _lowest(other) < _lowest(best)[lanes]
        better = lanes[lower]
        for name in ("values", "errors"):
            getattr(best, name)[:, :, better] = getattr(other, name)[:, :, lower]
        best.trapped[:, better], best.last[better], best.still[better] = other.trapped[:, lower], other.last[lower], other.still[lower]
        best.chains, best.moves = best.chains + other.chains, best.moves + other.moves
    unsettled = _disagree(best, sheet.box) | best.trapped
    stage = np.minimum(sheet.asked[:, None], best.last)  # beyond the last one its values hold
    lane = np.arange(len(best.last))
    for row in range(1, len(sheet.stages)):  # potentials are known at the temperatures asked for: where atoms froze, the last one holds
        missing = np.isnan(best.values[:, row, :, POTENTIAL])
        best.values[:, row, :, POTENTIAL][missing] = best.values[:, row - 1, :, POTENTIAL][missing]
    potentials = best.values[..., POTENTIAL]
    best.values[..., POTENTIAL] = np.where(np.isnan(potentials), potentials[::-1], potentials)  # one way alone is better than none
    best.values[..., DOUBT] = np.abs(np.diff(best.values[..., POTENTIAL], axis=0)) / 2
    values = best.values.mean(axis=0)[stage, lane]
    frozen = sheet.asked[:, None] >= best.last + ~best.still
    return Cooled(values.transpose(2, 1, 0), unsettled[stage, lane].T, frozen.T, best.chains, best.moves)


def split(sheet: Sheet) -> list[Sheet]:
    """Sheets of at most as many draws as run side by side."""
    return [
        replace(sheet, couplings=sheet.couplings[i : i + MOST], entropy=(*sheet.entropy, i)) for i in range(0, len(sheet.couplings), MOST)
    ]


def joined(parts: Sequence[Cooled]) -> Cooled:
    """The draws of several sheets."""
    return Cooled(
        np.concatenate([p.values for p in parts], axis=1),
        np.concatenate([p.unsettled for p in parts]),
        np.concatenate([p.frozen for p in parts]),
        sum(p.chains for p in parts),
        sum(p.moves for p in parts),
    )


def _way(sheet: Sheet, lanes: NDArray[np.int64], attempt: int) -> _Way:
    """Cool some lanes until they freeze, and warm them again."""
    n, stages = len(lanes), len(sheet.stages)
    found = _Way(np.full((2, stages, n, 9), np.nan), np.zeros((2, stages, n, 9)), np.full(n, stages - 1), np.zeros(n, dtype=bool))
    atoms = np.repeat(np.arange(2, dtype=np.uint8), sheet.counts)
    labels = np.stack([np.random.default_rng(_seed(sheet, attempt, lane)).permutation(atoms) for lane in lanes])
    moving = np.ones(n, dtype=bool)
    for stage in range(stages):
        here = np.flatnonzero(moving)
        if not len(here):
            break
        accepted = _stage(sheet, lanes, here, stage, 0, attempt, labels, found)
        still = here[_still(sheet, accepted, labels[here])]
        found.last[still], found.still[still], moving[still] = stage, True, False
    for stage in range(int(found.last.max()), -1, -1):
        here = np.flatnonzero(found.last >= stage)
        _stage(sheet, lanes, here, stage, 1, attempt, labels, found)
    found.trapped = _trapped(found)
    return found


def _still(sheet: Sheet, accepted: NDArray[np.float64], labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which lanes are frozen: an atom of the rarer species moves less than once in a block.

    With a chemical potential a sweep tries every site, and a nearly pure crystal has next to nothing to move: it is not frozen.
    """
    if sheet.potential is None:
        return accepted * sheet.sweeps < 1
    x = labels.mean(axis=1)
    rare = np.minimum(x, 1 - x)
    return (rare > _PURE) & (accepted * sheet.sweeps < rare)


def _seed(sheet: Sheet, *place: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([*sheet.entropy, *map(int, place)])


def _stage(
    sheet: Sheet,
    lanes: NDArray[np.int64],
    here: NDArray[np.int64],
    stage: int,
    way: int,
    attempt: int,
    labels: NDArray[np.uint8],
    found: _Way,
) -> NDArray[np.float64]:
    """Blocks of records of the lanes here until their phases are told; labels move on. Returns the acceptance of each lane here."""
    t, asked = float(sheet.stages[stage]), stage in sheet.asked
    accepted, active, series = np.zeros(len(labels)), here, np.zeros((len(here), _MEASURED, 0))
    for block in range(BLOCKS):
        place = (attempt, way, stage, block)
        chains = run_chains(
            sheet.compiled, sheet.couplings[lanes[active]] / t, labels[active], samples=RECORDS, sweeps=sheet.sweeps / RECORDS,
            burn=0.0 if block else _BURN * sheet.sweeps, seeds=[_seed(sheet, *place, lanes[i]) for i in active],
            sites=_seed(sheet, *place), ensemble=sheet.ensemble(t), kernel=_kernel(sheet),
        )  # fmt: skip
        snapshots = np.stack([c.snapshots for c in chains])
        labels[active], accepted[active] = snapshots[:, -1], [c.acceptance for c in chains]
        found.chains, found.moves = found.chains + len(chains), found.moves + sum(c.moves for c in chains)
        series = np.concatenate([series, _series(sheet, chains, snapshots.reshape(-1, snapshots.shape[-1]), t)], axis=2)
        _sum_up(found, way, stage, active, series, sheet.box.n_sites, t)
        apart = np.abs(found.values[way, stage, active, ORDER] - sheet.threshold)
        # near its threshold a lane goes on; one that stands still would only say the same again
        on = (apart < _SIGMAS * found.errors[way, stage, active, ORDER]) & (accepted[active] * sheet.sweeps > 1)
        for i, shots in zip(active, snapshots, strict=True) if sheet.potential is None else ():
            if asked or accepted[i] * sheet.sweeps < 1:
                found.values[way, stage, i, POTENTIAL] = t * _potential(sheet, sheet.couplings[lanes[i]] / t, shots)
        active, series = active[on], series[on]
        if not len(active):
            break
    return accepted[here]


def _potential(sheet: Sheet, couplings: NDArray[np.float64], snapshots: NDArray[np.uint8]) -> float:
    """Chemical potential in kT of the stage; where couplings are weak, fewer trials tell it as well."""
    energies = sheet.compiled.tables @ couplings
    every = next(n for n, most in ((4, 0.3), (2, 0.8), (1, np.inf)) if np.ptp(energies) <= most)
    return chemical_potentials(sheet.compiled, energies, snapshots[::every], sheet.varied)


def _kernel(sheet: Sheet) -> str:
    """The same kernel for any number of lanes: a lane must not depend on how many others still run."""
    return "lanes" if sheet.compiled.n_features else "generic"


def _series(sheet: Sheet, chains: Iterable[Chain], snapshots: NDArray[np.uint8], t: float) -> NDArray[np.float64]:
    """Order, share of a long wave, alpha, energy less chemical work a site and composition of every record, (lanes, 5, RECORDS)."""
    order = order_parameter(snapshots, sheet.box, species=sheet.varied)
    x = (snapshots == sheet.varied).mean(axis=1)
    energy = np.concatenate([c.features @ c.couplings for c in chains]) * t / sheet.box.n_sites
    if sheet.potential is not None:
        energy = energy - sheet.potential * x
    alpha = np.nan_to_num(warren_cowley(snapshots, sheet.box))  # of one species alone there is none
    rows = np.stack([order.share, order.separated.astype(float), alpha, energy, x])
    return np.moveaxis(rows.reshape(_MEASURED, -1, RECORDS), 1, 0)


def _sum_up(found: _Way, way: int, stage: int, lanes: NDArray[np.int64], series: NDArray[np.float64], n_sites: int, t: float) -> None:
    """Means over the records (lanes, 5, records) and their standard errors; heat capacity and susceptibility are variances."""
    n = series.shape[2]
    times = autocorrelation_times(series.reshape(-1, n)).reshape(len(lanes), _MEASURED)
    variance = series.var(axis=2, ddof=1)
    found.values[way, stage, lanes, :_MEASURED] = series.mean(axis=2)
    found.errors[way, stage, lanes, :_MEASURED] = np.sqrt(variance * times / n)
    found.values[way, stage, lanes, HEAT] = variance[:, ENERGY] * n_sites / t**2
    found.values[way, stage, lanes, SUSCEPTIBILITY] = variance[:, COMPOSITION] * n_sites / t


def _lowest(found: _Way) -> NDArray[np.float64]:
    return np.nanmin(found.values[..., ENERGY], axis=(0, 1))


def _disagree(found: _Way, box: Supercell) -> NDArray[np.bool_]:
    """Where (stages, lanes) the two ways differ in order, alpha or composition by more than noise, and than one random box shows anyway."""
    used = [ORDER, ALPHA, COMPOSITION]
    apart = np.abs(np.diff(found.values[..., used], axis=0))[0]
    noise = _SIGMAS * np.hypot(*found.errors[..., used])
    resolved = (disordered_floor(box), 1 / np.sqrt(bond_count(box)), 1 / np.sqrt(box.n_sites))
    return ((apart > noise) & (apart > resolved)).any(axis=-1)


def _broken(found: _Way) -> NDArray[np.bool_]:
    """Lanes that lost half of their order on the way down: domains whose walls cost next to nothing."""
    order = np.nan_to_num(found.values[..., ORDER].max(axis=0))
    return order[found.last, np.arange(len(found.last))] < order.max(axis=0) / 2


def _trapped(found: _Way) -> NDArray[np.bool_]:
    """Where (stages, lanes) a lane stayed above an energy that it had met at a higher temperature, on either way.

    In equilibrium the mean energy falls with the temperature, d<E>/dT = Var(E) / T^2 >= 0 (less chemical work, at given
    potential), so such a lane is stuck, in domains for instance; since the way from below starts there too, comparing
    the two ways would not tell.
    """
    energy, error = found.values[..., ENERGY], found.errors[..., ENERGY]
    lowest = np.minimum.accumulate(np.nan_to_num(energy, nan=np.inf).min(axis=0), axis=0)
    visible = 0.02 * (np.nanmax(energy, axis=(0, 1)) - np.nanmin(energy, axis=(0, 1)))
    before = np.concatenate([np.full((1, energy.shape[2]), np.inf), lowest[:-1]])
    return (np.nan_to_num(energy - _SIGMAS * error, nan=-np.inf) > before + visible).any(axis=0)
