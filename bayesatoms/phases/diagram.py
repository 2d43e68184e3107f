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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..configuration import whole_counts
from ..errors import InputError
from ..montecarlo.executors import Executor, executor
from .candidates import Candidate, candidates_of
from .grid import ALPHA, LONG, ORDER, RECORDS, Part, anneal, jobs_of
from .observables import disordered_floor, ordered_threshold, phase

if TYPE_CHECKING:
    from ..inference.posterior import Result

QUANTILES = (0.05, 0.5, 0.95)


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


def phase_diagram(
    source: Result | Sequence[Candidate],
    *,
    model: str = "average",
    composition: ArrayLike | Mapping[str, ArrayLike],
    temperature: ArrayLike | None = None,
    draws: int = 100,
    seed: int,
    workers: int | Executor = 1,
    size: int | Sequence[int] | None = None,
    sweeps: float = 2400.0,
    directions: int = 8,
    progress: Callable[[str, int, int], None] | None = None,
) -> PhaseDiagram:
    """Map short-range order, long-range order and the probability of each phase, over all candidates by weight.

    Parameters
    ----------
    source : Result, or sequence of Candidate
        What `infer` returned, or models with draws and weights of one's own: on one lattice, with the same two
        species. A model without terms is the exact random alloy.
    model : str
        Of a Result: "average" takes all its models by posterior weight, a name that model alone.
    composition : array_like, or {species: array_like}
        Rising fractions in (0, 1) of the second species, or of the one named.
    temperature : array_like, optional
        Rising, relative to the formation temperature; 13 from 0.02 to 2, evenly in the logarithm, by default.
    draws : int
        Posterior draws in all, shared out by weight (largest remainders).
    seed : int
        The result follows from it, whatever `workers` is.
    workers : int or Executor
        Threads, or an executor.
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
    >>> from bayesatoms.hamiltonian import Hamiltonian
    >>> from bayesatoms.lattice import Lattice
    >>> random = Hamiltonian("R", lattice=Lattice.triangular(), species=("Mo", "Re"))
    >>> diagram = phase_diagram([Candidate(random, np.zeros((0, 0)))], composition={"Re": [0.3, 0.5]}, temperature=[0.1, 1.0], seed=1)
    >>> diagram.dataset.p_ordered.max().item(), diagram.summary()["chains"]
    (0.0, 0)
    """
    candidates = list(source) if isinstance(source, Sequence) else candidates_of(source, model)
    lattice, species = _one_system(candidates)
    varied, x = _composition(composition, species)
    t = _rising("temperature", np.geomspace(0.02, 2, 13) if temperature is None else temperature, np.inf)
    for name, value, least in (("draws", draws, 1), ("directions", directions, 1), ("sweeps", sweeps, RECORDS), ("seed", seed, 0)):
        if not (np.isfinite(value) and value >= least):
            raise InputError(f"{name} {value} given; expected a number of at least {least}")
    box = lattice.supercell(_shape(lattice.dimension, len(lattice.basis), size))
    counts = [whole_counts([c, 1 - c] if varied == 0 else [1 - c, c], box.n_sites) for c in x]
    if min(c.min() for c in counts) < 1:
        raise InputError(f"composition {x.tolist()} leaves a species without atoms among {box.n_sites} sites; use a larger size")
    weights = np.array([c.weight for c in candidates])
    shares = whole_counts(weights / weights.sum(), draws)
    parts = [Part.of(c, int(n), seed, directions) for c, n in zip(candidates, shares, strict=True) if n]
    jobs = jobs_of(parts, box, counts, varied, float(t[0]), float(sweeps), seed)
    for done, (job, column) in enumerate(executor(workers).run(anneal, jobs), 1):
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


def _version() -> str:
    try:
        return metadata.version("bayesatoms")
    except metadata.PackageNotFoundError:  # run from the source tree
        return "source"


def _dataset(
    values: NDArray[np.float64], axes: dict[str, tuple[NDArray[np.float64], str]], threshold: Sequence[float], attrs: dict[str, Any]
) -> xr.Dataset:
    """The map from the values of every draw, (5, draws, temperature, composition)."""
    phases = phase(values[ORDER], values[LONG], threshold)
    spread, plain = ("quantile", "temperature", "composition"), ("temperature", "composition")
    order, alpha = (np.quantile(values[q], QUANTILES, axis=0) for q in (ORDER, ALPHA))
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
