"""The phase map: order over composition (or chemical potential) and temperature, with the posterior's own uncertainty.

Posterior draws of every candidate, shared out by weight, are simulated one by one at every point of the map: E / T = (w / T) . F.
The draws of a model run side by side (see :mod:`~bayesatoms.phases.sheet`), so this costs little more than a grid over couplings,
and nothing is interpolated. What the draws do at a point is the predictive distribution there.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ..configuration import whole_counts
from ..errors import InputError
from ..files import write, write_dataset
from ..hamiltonian import Compiled
from ..lattice import Supercell
from ..montecarlo.executors import Executor, Known, executor
from .arguments import axis_of, box_shape, chosen_draws, identity, one_system, rising, version
from .candidates import Candidate, candidates_of
from .mapping import Draws, boundaries_of, map_of, models_of, notes_of
from .observables import disordered_floor
from .sheet import ALPHA, COMPOSITION, ENERGY, HEAT, ORDER, POTENTIAL, RECORDS, SUSCEPTIBILITY, Cooled, Sheet, cool, joined, split

if TYPE_CHECKING:
    from ..inference.posterior import Result
    from ..observation import Observation


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """The map and what lies behind it, as xarray Datasets.

    Attributes
    ----------
    dataset : Dataset
        Over (temperature, composition) or (temperature, chemical_potential), `quantile` in front where a value has a spread:
        order_parameter, warren_cowley, energy, heat_capacity, chemical_potential (or mean_composition and susceptibility), each
        with its mean as NAME_mean; p_disordered, p_ordered, p_separated, p_coexistence; hysteresis, supported, extrapolated, disagreement.
    models : Dataset
        The probability of each phase under each model, and the models' weights.
    boundaries : Dataset
        Transition temperatures (draw, composition) with quantiles, the highest of each draw, coexisting compositions.
    """

    dataset: xr.Dataset
    models: xr.Dataset = field(default_factory=xr.Dataset)
    boundaries: xr.Dataset = field(default_factory=xr.Dataset)

    @property
    def tree(self) -> xr.DataTree:
        """All of it in one tree."""
        return xr.DataTree.from_dict({"/": self.dataset, "/models": self.models, "/boundaries": self.boundaries})

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know, in words."""
        return tuple(np.atleast_1d(self.dataset.attrs.get("notes", [])).tolist())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write netCDF, all of it or nothing: to a temporary file first, then renamed."""
        return write_dataset(self.tree, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PhaseDiagram:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            If there is no phase map in the file.
        """
        try:
            with xr.open_datatree(path, engine="h5netcdf") as tree:
                every = [tree[name].to_dataset().load() for name in ("/", "/models", "/boundaries")]
            # a tree hands its coordinates down to branches that do not use them
            used = [{n for v in d.data_vars.values() for n in v.coords} for d in every]
            return cls(*(d.drop_vars(set(d.coords) - kept) for d, kept in zip(every, used, strict=True)))
        except (OSError, KeyError, ValueError) as why:
            raise InputError(f"{path} holds no phase map ({why}); expected a file that PhaseDiagram.save wrote") from None

    def summary(self) -> dict[str, Any]:
        """The figures for summary.json; temperatures relative to formation, None where nothing orders."""
        d, b = self.dataset, self.boundaries
        ordered = d.p_ordered.to_numpy()
        across = d.p_ordered.dims[1]
        row, column = np.unravel_index(np.argmax(ordered), ordered.shape)
        where = {"temperature": float(d.temperature[row]), str(across): float(d[across][column])}
        warm = d.temperature.to_numpy()[(ordered > 0.5).any(axis=1)]
        highest = np.quantile(b.highest, (0.05, 0.5, 0.95), method="closest_observation")
        return {
            "max_p_ordered": float(ordered.max()),
            "max_p_ordered_at": where if ordered.any() else None,
            "ordered_up_to": float(warm.max()) if len(warm) else None,
            "max_p_separated": float(d.p_separated.max()),
            "p_transition": float((b.highest > 0).mean()),
            "highest_transition": [float(h) if 0 < h < np.inf else None for h in highest],
            "max_hysteresis": float(d.hysteresis.max()),
            "min_supported": float(d.supported.min()),
            "max_disagreement": float(d.disagreement.max()),
            "notes": list(self.notes),
            **{name: int(d.attrs[name]) for name in ("draws", "chains", "moves")},
        }


def phase_diagram(
    source: Result | Sequence[Candidate],
    *,
    model: str = "average",
    composition: ArrayLike | Mapping[str, ArrayLike] | None = None,
    chemical_potential: ArrayLike | Mapping[str, ArrayLike] | None = None,
    temperature: ArrayLike | None = None,
    formation: float | None = None,
    images: Sequence[Observation] | None = None,
    draws: int = 100,
    seed: int,
    workers: int | Executor = 1,
    size: int | Sequence[int] | None = None,
    sweeps: float = 480.0,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> PhaseDiagram:
    """Map order, separation and their probabilities over all candidates by weight.

    Parameters
    ----------
    source : Result, or sequence of Candidate
        What `infer` returned, or models with draws and weights of one's own: on one lattice, with the same two
        species. A model without terms is the exact random alloy.
    model : str
        Of a Result: "average" takes all its models by posterior weight, a name that model alone.
    composition : array_like, or {species: array_like}
        Rising fractions in (0, 1) of the second species, or of the one named. With five or more, coexisting compositions follow
        from the common tangent.
    chemical_potential : array_like, or {species: array_like}
        Instead: rising chemical potentials of that species against the other, in kT at formation.
    temperature : array_like, optional
        Rising, relative to the formation temperature; 13 from 0.02 to 2, evenly in the logarithm, by default.
    formation : float, optional
        Formation temperature in K: adds temperatures in K. By default that of the images, where all have one.
    images : sequence of Observation, optional
        What the draws were inferred from: compositions beyond all of theirs count as extrapolated. By default those of the Result.
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
        Sweeps of a block of records at each temperature, each way: up to five blocks, while the phase is not told.
    folder : path, optional
        Keeps what is finished: the same call, interrupted, goes on from there.
    progress : callable, optional
        Called with ("phases", done, of how many).

    Returns
    -------
    PhaseDiagram

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
    >>> diagram.notes
    ('no transition in range: disordered for all draws from 0.1 to 1 of the formation temperature',)
    """
    candidates = list(source) if isinstance(source, Sequence) else candidates_of(source, model)
    if images is None:
        images = () if isinstance(source, Sequence) else source.observations
    lattice, species = one_system(candidates)
    if (composition is None) == (chemical_potential is None):
        raise InputError("composition and chemical_potential given, or neither; expected one of the two")
    canonical = composition is not None
    varied, x = axis_of("composition" if canonical else "chemical_potential", composition if canonical else chemical_potential, species)
    t = rising("temperature", np.geomspace(0.02, 2, 13) if temperature is None else temperature, (0.0, np.inf))
    for key, value, least in (("draws", draws, 1), ("sweeps", sweeps, RECORDS), ("seed", seed, 0)):
        if not (np.isfinite(value) and value >= least):
            raise InputError(f"{key} {value} given; expected a number of at least {least}")
    if formation is not None and not (np.isfinite(formation) and formation > 0):
        raise InputError(f"formation temperature {formation} given; expected a positive number of K")
    box = lattice.supercell(box_shape(lattice.dimension, len(lattice.basis), size))
    starts = x if canonical else np.full(len(x), 0.5)
    counts = [whole_counts([c, 1 - c] if varied == 0 else [1 - c, c], box.n_sites) for c in starts]
    if min(c.min() for c in counts) < 1:
        raise InputError(f"composition {x.tolist()} leaves a species without atoms among {box.n_sites} sites; use a larger size")
    if canonical and len({tuple(c) for c in counts}) < len(x):
        raise InputError(f"compositions {x.tolist()} given: some are the same number of atoms among {box.n_sites} sites; use a larger size")
    weights = np.array([c.weight for c in candidates])
    weights = weights / weights.sum()
    chosen = chosen_draws(candidates, whole_counts(weights, draws), seed)
    sheets = _sheets(candidates, chosen, box, counts, None if canonical else x, varied, t, float(sweeps), seed)
    cooled = dict(_run(sheets, workers, None if folder is None else Path(folder), progress))
    name, text = ("composition", "fraction") if canonical else ("chemical_potential", "chemical potential")
    axis = (name, x, f"{text} of {species[varied]}")
    found = _gather(candidates, chosen, sheets, cooled, (box, counts, varied), t, axis)
    attrs = {
        "seed": seed, "version": version(), "box": list(box.shape), "sweeps": float(sweeps), "draws": int(draws),
        "models": [c.hamiltonian.name for c in candidates], "weights": weights.tolist(),
        "chains": sum(c.chains for c in cooled.values()), "moves": sum(c.moves for c in cooled.values()), "notes": notes_of(found),
    }  # fmt: skip
    dataset = map_of(found).assign_attrs(attrs)
    about = {"units": "1", "long_name": "whether it lies beyond the compositions of all images"}
    dataset["extrapolated"] = (name, _extrapolated(images, x, varied, canonical), about)
    known = {o.temperature for o in images}
    formation = formation or (known.pop() if len(known) == 1 else None)
    parts = [dataset, models_of(found, weights.tolist()), boundaries_of(found)]
    if formation is not None:
        kelvin = ("temperature", t * formation, {"units": "K", "long_name": "temperature"})
        parts = [p.assign_coords(kelvin=kelvin) if "temperature" in p.dims else p for p in parts]
    return PhaseDiagram(*parts)


def _sheets(
    candidates: Sequence[Candidate], chosen: Sequence[NDArray[np.float64]], box: Supercell, counts: Sequence[NDArray[np.int64]],
    potentials: NDArray[np.float64] | None, varied: int, t: NDArray[np.float64], sweeps: float, seed: int,
) -> dict[tuple[int, int], list[Sheet]]:  # fmt: skip
    """By candidate and column of the map, those of models with terms."""
    found = {}
    for number, (candidate, some) in enumerate(zip(candidates, chosen, strict=True)):
        if not some.shape[1] or not len(some):
            continue  # the random alloy needs no chains
        compiled: Compiled = candidate.hamiltonian.compile(box)
        for column, count in enumerate(counts):
            potential = None if potentials is None else float(potentials[column])
            place = int(count[1]) if potential is None else zlib.crc32(np.float64(potential).tobytes())
            found[number, column] = split(Sheet(compiled, box, some, t, count, varied, sweeps, identity(seed, candidate, place), potential))
    return found


def _run(
    sheets: Mapping[tuple[int, int], Sequence[Sheet]],
    workers: int | Executor,
    folder: Path | None,
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[tuple[tuple[int, int], Cooled]]:
    """Each column's draws, from the folder or simulated."""
    every = [sheet for parts in sheets.values() for sheet in parts]
    done: dict[str, Cooled] = {}
    with executor(workers) as crew:
        tasks = (Known(s, found) if folder is not None and (found := _stored(folder, s)) is not None else s for s in every)
        for number, (sheet, cooled) in enumerate(crew.run(cool, tasks), 1):
            done[sheet.key] = cooled
            if folder is not None:
                _store(folder, sheet, cooled)
            if progress is not None:
                progress("phases", number, len(every))
    for place, parts in sheets.items():
        yield place, joined([done[s.key] for s in parts])


def _store(folder: Path, sheet: Sheet, cooled: Cooled) -> None:
    path = folder / f"{sheet.key}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        numbers = {"chains": cooled.chains, "moves": cooled.moves}
        np.savez_compressed(buffer, values=cooled.values, unsettled=cooled.unsettled, frozen=cooled.frozen, **numbers)
        write(path, buffer.getvalue())


def _stored(folder: Path, sheet: Sheet) -> Cooled | None:
    path = folder / f"{sheet.key}.npz"
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes())) as found:
            return Cooled(found["values"], found["unsettled"], found["frozen"], int(found["chains"]), int(found["moves"]))
    except (OSError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, EOFError):  # a damaged file is simulated again
        path.unlink(missing_ok=True)
        return None


def _gather(
    candidates: Sequence[Candidate], chosen: Sequence[NDArray[np.float64]], sheets: Mapping[tuple[int, int], Sequence[Sheet]],
    cooled: Mapping[tuple[int, int], Cooled], system: tuple[Supercell, Sequence[NDArray[np.int64]], int], t: NDArray[np.float64],
    axis: tuple[str, NDArray[np.float64], str],
) -> Draws:  # fmt: skip
    """Every draw's values, those of the random alloy from its formulas."""
    (box, counts, varied), owner = system, np.repeat(np.arange(len(candidates)), [len(c) for c in chosen])
    shape = (len(owner), len(t), len(counts))
    values, unsettled, frozen = np.zeros((9, *shape)), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    n = box.n_sites
    values[ORDER], values[ALPHA] = disordered_floor(box), -1 / (n - 1)
    for column, count in enumerate(counts):
        k = count[varied]
        if axis[0] == "composition":
            values[COMPOSITION, :, :, column], values[POTENTIAL, :, :, column] = k / n, t * np.log((k + 0.5) / (n - k + 0.5))
        else:
            mu = axis[1][column]
            x = expit(mu / t)
            values[COMPOSITION, :, :, column], values[ALPHA, :, :, column] = x, 0.0
            values[ENERGY, :, :, column], values[HEAT, :, :, column] = -mu * x, mu**2 * x * (1 - x) / t**2
            values[SUSCEPTIBILITY, :, :, column] = x * (1 - x) / t
    for (number, column), found in cooled.items():
        mine = owner == number
        values[:, mine, :, column] = found.values.swapaxes(0, 1)  # the two selected axes come first
        unsettled[mine, :, column], frozen[mine, :, column] = found.unsettled, found.frozen
    return Draws(values, unsettled, frozen, owner, tuple(c.hamiltonian.name for c in candidates), t, axis, box)


def _extrapolated(images: Sequence[Any], x: NDArray[np.float64], varied: int, canonical: bool) -> NDArray[np.bool_]:
    """Which compositions lie beyond those of all images: couplings were never seen at work there."""
    if not len(images) or not canonical:
        return np.zeros(len(x), dtype=bool)
    seen = [o.true_composition[varied] for o in images]
    return (x < min(seen)) | (x > max(seen))
