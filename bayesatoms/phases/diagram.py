"""The phase map: order over composition and temperature, with the posterior's own uncertainty.

E / T = (w / T) . F, so temperature only rescales the couplings: chains on one grid of w / T serve every
draw at every temperature. Per candidate the grid has a few directions of w, one common row of magnitudes
|w| / T and the compositions asked for (nothing is interpolated in composition, where phases begin
abruptly). Each (direction, composition) is annealed from above, |w| / T growing from a random start, and
then from below, shrinking again; each magnitude takes over the last configuration of the one before.
Where the two ways disagree, or the energy lies above one met at higher temperature, the grid point is not
in equilibrium, and the map says so.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..configuration import whole_counts
from ..errors import InputError
from ..hamiltonian import Compiled, Hamiltonian
from ..lattice import Supercell
from ..montecarlo.chains import autocorrelation_time, run_chain
from ..montecarlo.executors import executor
from .observables import bond_count, disordered_floor, order_parameter, ordered_threshold, phase, warren_cowley

QUANTILES = (0.05, 0.5, 0.95)
_WEAKEST = 0.1  # smallest |w| / T simulated; below it, the line to the exact random alloy at 0
_STRONGEST = 20.0  # largest: exp(-20) is never accepted; most chains freeze long before
_STEP = 1.3  # ratio of neighbouring magnitudes: finer than a usual grid of temperatures
_RECORDS = 40  # snapshots a stage
_BURN = 0.3  # part of a stage's sweeps before the first snapshot
_ENOUGH = 0.2  # acceptance from which on a stage is shortened
_SIGMAS = 3.0  # the two ways disagree if further apart than so many standard errors
_ATTEMPTS = 3  # anneals of a column that gets trapped
_ORDER, _ALPHA, _LONG, _ENERGY = range(4)  # what is recorded at a grid point


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model with its posterior: `couplings` (draws, k) in kT at formation, `weight` its share of the map."""

    hamiltonian: Hamiltonian
    couplings: NDArray[np.float64]
    weight: float = 1.0

    def __post_init__(self) -> None:
        k, name = len(self.hamiltonian.names), self.hamiltonian.name
        draws = np.asarray(self.couplings, dtype=float)
        if k and (draws.ndim != 2 or draws.shape[1] != k or not len(draws) or not np.isfinite(draws).all()):
            raise InputError(f"model {name}: couplings of shape {draws.shape} given; expected finite draws (n, {k}), n >= 1")
        if not (np.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"model {name}: weight {self.weight} given; expected a number >= 0")
        object.__setattr__(self, "couplings", draws if k else np.zeros((1, 0)))


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """The map as an xarray Dataset over (temperature, composition), `quantile` in front where a value has a spread."""

    dataset: xr.Dataset

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write netCDF, all of it or nothing: to a temporary file first, then renamed."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.dataset.to_netcdf(temporary, engine="h5netcdf")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def summary(self) -> dict[str, Any]:
        """The figures for summary.json; temperatures relative to formation, None where nothing orders."""
        d = self.dataset
        ordered = d.p_ordered.to_numpy()
        row, column = np.unravel_index(np.argmax(ordered), ordered.shape)
        where = {"temperature": float(d.temperature[row]), "composition": float(d.composition[column])}
        warm = d.temperature.to_numpy()[(ordered > 0.5).any(axis=1)]
        return {
            "max_p_ordered": float(ordered.max()),
            "max_p_ordered_at": where if ordered.any() else None,
            "ordered_up_to": float(warm.max()) if len(warm) else None,
            "max_p_separated": float(d.p_separated.max()),
            "max_hysteresis": float(d.hysteresis.max()),
            "min_supported": float(d.supported.min()),
            **{name: int(d.attrs[name]) for name in ("draws", "chains", "moves")},
        }


@dataclass(frozen=True, eq=False)
class _Job:
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
class _Column:
    """What a job found: values (magnitudes, 3), which grid points are not in equilibrium, the last one simulated."""

    values: NDArray[np.float64]
    unsettled: NDArray[np.bool_]
    top: int
    trapped: bool
    energy: float  # the lowest mean met
    chains: int
    moves: int


def _anneal(job: _Job) -> _Column:
    """Anneal, again if it got trapped, and keep the attempt of lowest energy."""
    attempts: list[_Column] = []
    while not attempts or (attempts[-1].trapped and len(attempts) < _ATTEMPTS):
        attempts.append(_attempt(job, job.entropy.spawn(1)[0]))
    best = min(attempts, key=lambda column: column.energy)
    return replace(best, chains=sum(c.chains for c in attempts), moves=sum(c.moves for c in attempts))


def _attempt(job: _Job, entropy: np.random.SeedSequence) -> _Column:
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
                samples=_RECORDS, burn=burn, sweeps=recorded / _RECORDS, seed=seeds[step + branch * (last + 1)],
            )  # fmt: skip
            snapshots, acceptance, moves = chain.snapshots, chain.acceptance, moves + chain.moves
            labels = snapshots[-1]
            means[branch, step], errors[branch, step] = _record(snapshots, chain.features @ job.direction, job)
            # frozen: an atom of the rarer species moves less than once while the whole stage is recorded
            if branch == 0 and acceptance * recorded < 1:
                top = step
                break
    means, errors = means[:, : top + 1], errors[:, : top + 1]
    trapped = _trapped(means[..., _ENERGY], errors[..., _ENERGY])
    unsettled = _disagree(means, errors, job.supercell) | trapped
    held = np.minimum(np.arange(last + 1), top)  # beyond the top the frozen values hold; `top` marks them as extrapolated
    values = means[..., :_ENERGY].mean(axis=0)
    return _Column(values[held], unsettled[held], top, bool(trapped.any()), float(means[..., _ENERGY].min()), 2 * (top + 1), moves)


def _record(snapshots: NDArray[np.uint8], energy: NDArray[np.float64], job: _Job) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over a stage and their standard errors: order parameter, alpha, share of snapshots with a long-wave peak, energy."""
    order = order_parameter(snapshots, job.supercell, species=job.varied)
    series = np.stack([order.share, warren_cowley(snapshots, job.supercell), order.separated.astype(float), energy])
    times = np.array([autocorrelation_time(row) for row in series])
    return series.mean(axis=1), series.std(axis=1, ddof=1) * np.sqrt(times / series.shape[1])


def _disagree(means: NDArray[np.float64], errors: NDArray[np.float64], box: Supercell) -> NDArray[np.bool_]:
    """Where the two ways differ in order or alpha by more than the noise, and more than one random box shows anyway."""
    apart, noise = np.abs(means[1] - means[0]), _SIGMAS * np.hypot(*errors)
    resolved = (disordered_floor(box), 1 / np.sqrt(bond_count(box)))
    return ((apart > noise)[:, :_LONG] & (apart[:, :_LONG] > resolved)).any(axis=1)


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
class _Part:
    """One candidate's share of the map: its chosen draws, the grid they need, and the columns once simulated."""

    candidate: Candidate
    strength: NDArray[np.float64]  # |w| of each draw
    directions: NDArray[np.float64]
    weights: NDArray[np.float64]
    columns: dict[tuple[int, int], _Column] = field(default_factory=dict)

    @classmethod
    def of(cls, candidate: Candidate, n: int, seed: int, n_directions: int) -> _Part:
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


def phase_diagram(
    candidates: Sequence[Candidate],
    *,
    composition: ArrayLike | Mapping[str, ArrayLike],
    temperature: ArrayLike | None = None,
    draws: int = 100,
    seed: int,
    workers: int = 1,
    size: int | Sequence[int] | None = None,
    sweeps: float = 2400.0,
    directions: int = 8,
    progress: Callable[[str, int, int], None] | None = None,
) -> PhaseDiagram:
    """Map short-range order, long-range order and the probability of each phase, over all candidates by weight.

    Parameters
    ----------
    candidates : sequence of Candidate
        On one lattice, with the same two species. A model without terms is the exact random alloy.
    composition : array_like, or {species: array_like}
        Rising fractions in (0, 1) of the second species, or of the one named.
    temperature : array_like, optional
        Rising, relative to the formation temperature; 13 from 0.02 to 2, evenly in the logarithm, by default.
    draws : int
        Posterior draws in all, shared out by weight (largest remainders).
    seed : int
        The result follows from it, whatever `workers` is.
    workers : int
        Threads.
    size : int or sequence of int, optional
        Cells along each side of the box, even and at least 6, so that orderings fit; by default the multiple of 6
        (at least 12) nearest to 576 sites: 24 for one site a cell in two dimensions.
    sweeps : float
        Sweeps at each magnitude, each way; fewer where most swaps are accepted.
    directions : int
        Most directions of w a candidate gets.
    progress : callable, optional
        Called with ("phases", done, of how many).

    Returns
    -------
    PhaseDiagram
        Its dataset holds warren_cowley and order_parameter (quantile, temperature, composition), p_ordered, p_separated,
        hysteresis and supported (temperature, composition), threshold (composition), each with units and long_name.

    Raises
    ------
    InputError
        If an argument cannot be used; the message names it.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> random = Hamiltonian("R", lattice=Lattice.triangular(), species=("Mo", "Re"))
    >>> diagram = phase_diagram([Candidate(random, np.zeros((0, 0)))], composition={"Re": [0.3, 0.5]}, temperature=[0.1, 1.0], seed=1)
    >>> diagram.dataset.p_ordered.max().item(), diagram.summary()["chains"]
    (0.0, 0)
    """
    lattice, species = _one_system(candidates)
    varied, x = _composition(composition, species)
    t = _rising("temperature", np.geomspace(0.02, 2, 13) if temperature is None else temperature, np.inf)
    for name, value, least in (("draws", draws, 1), ("directions", directions, 1), ("sweeps", sweeps, _RECORDS), ("seed", seed, 0)):
        if not (np.isfinite(value) and value >= least):
            raise InputError(f"{name} {value} given; expected a number of at least {least}")
    box = lattice.supercell(_shape(lattice.dimension, len(lattice.basis), size))
    counts = [whole_counts([c, 1 - c] if varied == 0 else [1 - c, c], box.n_sites) for c in x]
    if min(c.min() for c in counts) < 1:
        raise InputError(f"composition {x.tolist()} leaves a species without atoms among {box.n_sites} sites; use a larger size")
    weights = np.array([c.weight for c in candidates])
    shares = whole_counts(weights / weights.sum(), draws)
    parts = [_Part.of(c, int(n), seed, directions) for c, n in zip(candidates, shares, strict=True) if n]
    jobs = _jobs(parts, box, counts, varied, float(t[0]), float(sweeps), seed)
    for done, (job, column) in enumerate(executor(workers).run(_anneal, jobs), 1):
        part, *place = jobs[job]
        part.columns[tuple(place)] = column
        if progress is not None:
            progress("phases", done, len(jobs))
    random = (disordered_floor(box), -1 / (box.n_sites - 1), 0.0)  # order, alpha, long-wave share of the random alloy
    values = np.concatenate([p.evaluate(t, len(x), random) for p in parts], axis=1)
    columns = [c for p in parts for c in p.columns.values()]
    attrs = {
        "seed": seed, "version": _version(), "box": list(box.shape), "sweeps": float(sweeps), "draws": int(draws),
        "models": [c.hamiltonian.name for c in candidates], "weights": (weights / weights.sum()).tolist(),
        "chains": sum(c.chains for c in columns), "moves": sum(c.moves for c in columns),
    }  # fmt: skip
    axes = {
        "quantile": (np.array(QUANTILES), "quantile over the posterior draws"),
        "temperature": (t, "temperature relative to the formation temperature"),
        "composition": (x, f"fraction of {species[varied]}"),
    }
    return PhaseDiagram(_dataset(values, axes, [ordered_threshold(box, c) for c in x], attrs))


def _one_system(candidates: Sequence[Candidate]) -> tuple[Any, tuple[str, ...]]:
    """The lattice and species that all candidates share."""
    if not candidates or not any(c.weight > 0 for c in candidates):
        raise InputError(f"{len(candidates)} candidates without weight given; expected at least one with a weight above 0")
    systems = {(c.hamiltonian.lattice, c.hamiltonian.species) for c in candidates}
    names = [c.hamiltonian.name for c in candidates]
    if len(systems) > 1 or len(set(names)) < len(names):
        raise InputError(f"models {', '.join(names)} given; expected different names, one lattice, and the same species in the same order")
    lattice, species = systems.pop()
    if len(species) != 2:
        raise InputError(f"species {', '.join(species)} given; a phase diagram expects two species for now")
    return lattice, species


def _composition(composition: ArrayLike | Mapping[str, ArrayLike], species: tuple[str, ...]) -> tuple[int, NDArray[np.float64]]:
    """Number of the species whose fraction varies, and the fractions."""
    if not isinstance(composition, Mapping):
        return 1, _rising("composition", composition, 1.0)
    if len(composition) != 1 or not set(composition) <= set(species):
        raise InputError(f"composition of {sorted(composition)} given; expected fractions of one of {', '.join(species)}")
    [(name, grid)] = composition.items()
    return species.index(name), _rising(f"composition of {name}", grid, 1.0)


def _rising(name: str, grid: ArrayLike, below: float) -> NDArray[np.float64]:
    grid = np.asarray(grid, dtype=float)
    if grid.ndim != 1 or not len(grid) or not (np.isfinite(grid) & (grid > 0) & (grid < below)).all() or (np.diff(grid) <= 0).any():
        between = f"between 0 and {below:g}" if np.isfinite(below) else "above 0"
        raise InputError(f"{name} {grid.tolist()} given; expected one row of rising numbers {between}")
    return grid


def _shape(dimension: int, n_basis: int, size: int | Sequence[int] | None) -> tuple[int, ...]:
    """Sides of the box."""
    if size is None:
        size = max(12, 6 * round((576 / n_basis) ** (1 / dimension) / 6))
    shape = (int(size),) * dimension if np.ndim(size) == 0 else tuple(int(n) for n in size)
    if len(shape) != dimension or any(n < 6 or n % 2 for n in shape):
        raise InputError(f"size {size} given; expected even numbers of cells, at least 6, one or {dimension} of them")
    return shape


def _entropy(seed: int, candidate: Candidate, *place: int) -> np.random.SeedSequence:
    """Random numbers by identity: the model's name and place, so that neither workers nor other candidates change them."""
    return np.random.SeedSequence((seed, zlib.crc32(candidate.hamiltonian.name.encode()), *place))


def _jobs(
    parts: Sequence[_Part], box: Supercell, counts: Sequence[NDArray[np.int64]], varied: int, coldest: float, sweeps: float, seed: int
) -> dict[_Job, tuple[_Part, int, int]]:
    """Every job, and the part, direction and composition it is for."""
    jobs = {}
    for part in parts:
        compiled = part.candidate.hamiltonian.compile(box)
        for d, direction in enumerate(part.directions):
            magnitudes = part.magnitudes(d, coldest)
            for x, count in enumerate(counts):
                entropy = _entropy(seed, part.candidate, d, int(count[1]))
                jobs[_Job(compiled, box, direction, magnitudes, count, varied, sweeps, entropy)] = (part, d, x)
    return jobs


def _version() -> str:
    try:
        return metadata.version("bayesatoms")
    except metadata.PackageNotFoundError:  # run from the source tree
        return "source"


def _dataset(
    values: NDArray[np.float64], axes: dict[str, tuple[NDArray[np.float64], str]], threshold: Sequence[float], attrs: dict[str, Any]
) -> xr.Dataset:
    """The map from the values of every draw, (5, draws, temperature, composition)."""
    phases = phase(values[_ORDER], values[_LONG], threshold)
    spread, plain = ("quantile", "temperature", "composition"), ("temperature", "composition")
    order, alpha = (np.quantile(values[q], QUANTILES, axis=0) for q in (_ORDER, _ALPHA))
    columns = {
        "warren_cowley": (spread, alpha, "Warren-Cowley parameter, nearest neighbours (0 random, negative: unlike preferred)"),
        "order_parameter": (spread, order, "largest share of the spectral weight in one pair of wave vectors"),
        "p_ordered": (plain, (phases == 1).mean(axis=0), "probability of long-range order"),
        "p_separated": (plain, (phases == 2).mean(axis=0), "probability of phase separation"),
        "hysteresis": (plain, values[3].mean(axis=0), "share of draws whose chains are not in equilibrium"),
        "supported": (plain, values[4].mean(axis=0), "share of draws within the simulated couplings; the others hold the frozen value"),
        "threshold": (("composition",), np.array(threshold), "order parameter above which a box counts as ordered or separated"),
    }
    return xr.Dataset(
        {key: (dims, array, {"units": "1", "long_name": text}) for key, (dims, array, text) in columns.items()},
        {key: (key, array, {"units": "1", "long_name": text}) for key, (array, text) in axes.items()},
        attrs,
    )
