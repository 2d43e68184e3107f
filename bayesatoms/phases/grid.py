"""The grid of chains behind a phase map: annealed from above and from below, and what a draw reads off it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..hamiltonian import Compiled
from ..lattice import Supercell
from ..montecarlo.engine import run_chain
from ..montecarlo.timeseries import autocorrelation_time
from .candidates import Candidate
from .observables import bond_count, disordered_floor, order_parameter, warren_cowley

_WEAKEST = 0.1  # smallest |w| / T simulated; below it, the line to the exact random alloy at 0
_STRONGEST = 20.0  # largest: exp(-20) is never accepted; most chains freeze long before
_STEP = 1.3  # ratio of neighbouring magnitudes: finer than a usual grid of temperatures
RECORDS = 40  # snapshots a stage
_BURN = 0.3  # part of a stage's sweeps before the first snapshot
_ENOUGH = 0.2  # acceptance from which on a stage is shortened
_SIGMAS = 3.0  # the two ways disagree if further apart than so many standard errors
_ATTEMPTS = 3  # anneals of a column that gets trapped
ORDER, ALPHA, LONG, ENERGY = range(4)  # what is recorded at a grid point


@dataclass(frozen=True, eq=False)
class Job:
    """One (candidate, direction, composition): the ladder of magnitudes, up and down."""

    compiled: Compiled
    supercell: Supercell
    direction: NDArray[np.float64]
    magnitudes: NDArray[np.float64]
    counts: NDArray[np.int64]
    varied: int
    sweeps: float
    entropy: np.random.SeedSequence


@dataclass(frozen=True, eq=False)
class Column:
    """What a job found: values (magnitudes, 3), which grid points are not in equilibrium, the last one simulated."""

    values: NDArray[np.float64]
    unsettled: NDArray[np.bool_]
    top: int
    trapped: bool
    energy: float  # the lowest mean met
    chains: int
    moves: int


def anneal(job: Job) -> Column:
    """Anneal, again if it got trapped, and keep the attempt of lowest energy."""
    attempts: list[Column] = []
    while not attempts or (attempts[-1].trapped and len(attempts) < _ATTEMPTS):
        attempts.append(_attempt(job, job.entropy.spawn(1)[0]))
    best = min(attempts, key=lambda column: column.energy)
    return replace(best, chains=sum(c.chains for c in attempts), moves=sum(c.moves for c in attempts))


def _attempt(job: Job, entropy: np.random.SeedSequence) -> Column:
    """Anneal from above until frozen, then from below."""
    last = len(job.magnitudes) - 1
    start, *seeds = entropy.spawn(1 + 2 * (last + 1))
    labels = np.random.default_rng(start).permutation(np.repeat(np.arange(len(job.counts)), job.counts))
    means, errors, moves, top, acceptance = np.zeros((2, last + 1, 4)), np.zeros((2, last + 1, 4)), 0, last, 1.0
    for branch in (0, 1):
        for step in range(last + 1) if branch == 0 else range(top, -1, -1):
            # what relaxes a stage are accepted swaps: where most are, a fraction of the sweeps does
            burn, recorded = np.array([_BURN, 1 - _BURN]) * job.sweeps * min(1.0, _ENOUGH / max(acceptance, _ENOUGH))
            chain = run_chain(
                job.compiled, job.direction * job.magnitudes[step], labels,
                samples=RECORDS, burn=burn, sweeps=recorded / RECORDS, seed=seeds[step + branch * (last + 1)],
            )  # fmt: skip
            snapshots, acceptance, moves = chain.snapshots, chain.acceptance, moves + chain.moves
            labels = snapshots[-1]
            means[branch, step], errors[branch, step] = _record(snapshots, chain.features @ job.direction, job)
            # frozen: an atom of the rarer species moves less than once while the whole stage is recorded
            if branch == 0 and acceptance * recorded < 1:
                top = step
                break
    means, errors = means[:, : top + 1], errors[:, : top + 1]
    trapped = _trapped(means[..., ENERGY], errors[..., ENERGY])
    unsettled = _disagree(means, errors, job.supercell) | trapped
    held = np.minimum(np.arange(last + 1), top)  # beyond the top the frozen values hold; `top` marks them as extrapolated
    values = means[..., :ENERGY].mean(axis=0)
    return Column(values[held], unsettled[held], top, bool(trapped.any()), float(means[..., ENERGY].min()), 2 * (top + 1), moves)


def _record(snapshots: NDArray[np.uint8], energy: NDArray[np.float64], job: Job) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over a stage and their standard errors: order parameter, alpha, share of snapshots with a long-wave peak, energy."""
    order = order_parameter(snapshots, job.supercell, species=job.varied)
    series = np.stack([order.share, warren_cowley(snapshots, job.supercell), order.separated.astype(float), energy])
    times = np.array([autocorrelation_time(row) for row in series])
    return series.mean(axis=1), series.std(axis=1, ddof=1) * np.sqrt(times / series.shape[1])


def _disagree(means: NDArray[np.float64], errors: NDArray[np.float64], box: Supercell) -> NDArray[np.bool_]:
    """Where the two ways differ in order or alpha by more than the noise, and more than one random box shows anyway."""
    apart, noise = np.abs(means[1] - means[0]), _SIGMAS * np.hypot(*errors)
    resolved = (disordered_floor(box), 1 / np.sqrt(bond_count(box)))
    return ((apart > noise)[:, :LONG] & (apart[:, :LONG] > resolved)).any(axis=1)


def _trapped(energy: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a chain stayed above an energy (per unit of magnitude) already met at a smaller magnitude v, on either way.

    In equilibrium d<E>/dv = -Var(E) <= 0, so such a chain is stuck, in domains for instance; since the way
    from below starts there too, comparing the two ways would not tell.
    """
    lowest, noise = np.minimum.accumulate(energy.min(axis=0)), _SIGMAS * error
    visible = 0.02 * (energy.max() - energy.min())
    before = np.concatenate([[np.inf], lowest[:-1]])
    return (energy - noise > before + visible).any(axis=0)


def _spread_out(units: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """At most `n` of the unit vectors, spread over all of them: the most central one, then always the farthest."""
    chosen = [units[int(np.argmax(units @ units.mean(axis=0)))]]
    while len(chosen) < n:
        nearest = (units @ np.array(chosen).T).max(axis=1)
        if nearest.min() > 1 - 1e-9:
            break
        chosen.append(units[int(np.argmin(nearest))])
    return np.array(chosen)


def _mix(units: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (draws, directions) of the two nearest directions, inverse to the angle; one alone if it is (almost) hit."""
    angles = np.arccos(np.clip(units @ directions.T, -1, 1))
    weights = 1 / (angles + 1e-6)
    weights[angles > np.sort(angles, axis=1)[:, [min(1, angles.shape[1] - 1)]]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    weights[weights < 1e-3] = 0
    return weights / weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Part:
    """One candidate's share of the map: its chosen draws, the grid they need, and the columns once simulated."""

    candidate: Candidate
    strength: NDArray[np.float64]  # |w| of each draw
    directions: NDArray[np.float64]
    weights: NDArray[np.float64]
    columns: dict[tuple[int, int], Column] = field(default_factory=dict)

    @classmethod
    def of(cls, candidate: Candidate, n: int, seed: int, n_directions: int) -> Part:
        """Choose `n` draws, each at most once if there are enough, and the directions that stand for them."""
        available = len(candidate.couplings)
        draws = candidate.couplings[np.random.default_rng(_entropy(seed, candidate)).choice(available, n, replace=n > available)]
        strength = np.linalg.norm(draws, axis=1)
        if not strength.any():  # the random alloy: exact, no chains
            return cls(candidate, strength, np.zeros((0, draws.shape[1])), np.zeros((len(draws), 0)))
        units = draws[strength > 0] / strength[strength > 0, None]
        directions = _spread_out(units, n_directions)
        weights = np.zeros((len(draws), len(directions)))
        weights[strength > 0] = _mix(units, directions)
        weights[strength == 0, 0] = 1.0  # at magnitude 0 all directions are one
        return cls(candidate, strength, directions, weights)

    def magnitudes(self, direction: int, coldest: float) -> NDArray[np.float64]:
        """The ladder up to what the draws along a direction reach at the lowest temperature."""
        need = min(self.strength[self.weights[:, direction] > 0].max() / coldest, _STRONGEST)
        return _WEAKEST * _STEP ** np.arange(1 + max(0, int(np.ceil(np.log(need / _WEAKEST) / np.log(_STEP) - 1e-9))))

    def evaluate(self, temperature: NDArray[np.float64], n_compositions: int, random: tuple[float, float, float]) -> NDArray[np.float64]:
        """Order, alpha, long-wave share, unsettled and supported (5, draws, temperature, composition) from the grid."""
        v = self.strength[:, None] / temperature
        out = np.zeros((5, *v.shape, n_compositions))
        out[4] = 1.0
        if not len(self.directions):
            out[:3] = np.reshape(random, (3, 1, 1, 1))
            return out
        # knot 0 is the random alloy at magnitude 0, knot 1 + i the i-th magnitude; linear in the logarithm from knot 1 on
        place = np.where(v < _WEAKEST, v / _WEAKEST, 1 + np.log(np.maximum(v, _WEAKEST) / _WEAKEST) / np.log(_STEP))
        for (d, x), column in sorted(self.columns.items()):  # not as they finished: sums round
            knots = np.vstack([[*random, 0.0], np.column_stack([column.values, column.unsettled])])
            share = self.weights[:, d, None]
            for q in range(4):
                out[q, :, :, x] += share * np.interp(place, np.arange(len(knots)), knots[:, q])
            out[4, :, :, x] *= (share == 0) | (place <= column.top + 1 + 1e-9)
        return out


def _entropy(seed: int, candidate: Candidate, *place: int) -> np.random.SeedSequence:
    """Random numbers by identity: the model's name and place, so that neither workers nor other candidates change them."""
    return np.random.SeedSequence((seed, zlib.crc32(candidate.hamiltonian.name.encode()), *place))


def jobs_of(
    parts: Sequence[Part], box: Supercell, counts: Sequence[NDArray[np.int64]], varied: int, coldest: float, sweeps: float, seed: int
) -> dict[Job, tuple[Part, int, int]]:
    """Every job, and the part, direction and composition it is for."""
    jobs = {}
    for part in parts:
        compiled = part.candidate.hamiltonian.compile(box)
        for d, direction in enumerate(part.directions):
            magnitudes = part.magnitudes(d, coldest)
            for x, count in enumerate(counts):
                entropy = _entropy(seed, part.candidate, d, int(count[1]))
                jobs[Job(compiled, box, direction, magnitudes, count, varied, sweeps, entropy)] = (part, d, x)
    return jobs
