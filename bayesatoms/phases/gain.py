"""What next: the composition and temperature at which one more image is expected to tell most about a chosen target.

A crystal equilibrated at composition x and temperature T (relative to formation) has the weights exp(-(w / T) . F). At every point
of a grid each posterior draw is simulated for mean and covariance of its counts F of all terms of all candidates, which are
sufficient for a periodic crystal of given composition. Each draw in turn is then the truth: images follow from its normal law, and
the other draws, weighted by their likelihoods of such an image, are what would be believed then (preposterior analysis, Raiffa and
Schlaifer, Applied Statistical Decision Theory, 1961; Lindley, Ann. Math. Stat. 27, 986, 1956).

Half the mean squared difference of the target at the truth and at the draws believed is the expected variance. The truth is not
among those draws, so a target on which images say nothing keeps its variance on average, whatever the weights, and errors of the
simulation make an image look less useful, not more. Of a label (a phase, a model) the expected logarithm of the probability
given to the truth is a lower bound of the information (Barber and Agakov, Adv. Neural Inf. Process. Syst. 16, 2003).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..configuration import whole_counts
from ..errors import InputError
from ..files import write_dataset
from ..hamiltonian import Compiled
from ..montecarlo.chains import SLOW, unpack
from ..montecarlo.engine import run_chains
from ..montecarlo.executors import Executor, executor
from ..montecarlo.timeseries import autocorrelation_time
from .arguments import axis_of, box_shape, chosen_draws, identity, one_system, rising, version
from .candidates import Candidate, candidates_of
from .expected import Expected, expected_gain
from .sheet import Sheet, split

if TYPE_CHECKING:
    from ..inference.posterior import Result

Floats = NDArray[np.float64]
Target = Callable[[str, Floats], ArrayLike] | Mapping[str, ArrayLike] | ArrayLike

RECORDS = 60  # of a chain at each temperature, each way
IMAGES = 16  # simulated at each truth
_LEAST = 8  # draws
_BURN = 0.5  # of the records' sweeps, before the first of them
_SIGMAS = 4.0  # standard errors beyond which two ways disagree: every draw is compared in several counts
_RESOLVED = 5.0  # draws among which the weights of an image are shared, below which there are too few
_SUPPORTED = 0.9  # share of the draws whose chains must be in equilibrium


class Choice(NamedTuple):
    """A point of the map: what an image there is expected to leave (a standard deviation, or an entropy in bits) and to tell."""

    composition: float
    temperature: float
    expected: float
    reduction: float
    error: float
    information: float


@dataclass(frozen=True, eq=False)
class Gain:
    """Expected gain of one more image.

    Attributes
    ----------
    dataset : Dataset
        Over (temperature, composition): `reduction` of the target's variance (of a label: of its entropy) with `reduction_error`,
        `expected_sd` (`expected_entropy`), `information` in bits on the target, `information_all` on couplings and models
        altogether, `linear` (the reduction by Fisher information and linear response, not for labels), `supported` (share
        of draws whose chains are in equilibrium), `effective_draws`. `present_sd` (`present_entropy`) is a single number.
    """

    dataset: xr.Dataset

    @property
    def label(self) -> bool:
        """Whether the target is a label."""
        return "present_entropy" in self.dataset

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know, in words."""
        return tuple(np.atleast_1d(self.dataset.attrs.get("notes", [])).tolist())

    def best(self, n: int = 5, *, supported: float = _SUPPORTED) -> list[Choice]:
        """The n points of largest reduction among those where at least this share of the draws is in equilibrium."""
        d, columns = self.dataset, ("expected_entropy" if self.label else "expected_sd", "reduction", "reduction_error", "information")
        fine = np.argwhere(d.supported.to_numpy() >= supported)
        order = np.argsort([-d.reduction.to_numpy()[i, j] for i, j in fine], kind="stable")[:n]
        x, t, values = d.composition.to_numpy(), d.temperature.to_numpy(), [d[name].to_numpy() for name in columns]
        return [Choice(float(x[j]), float(t[i]), *(float(v[i, j]) for v in values)) for i, j in fine[order]]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write netCDF, all of it or nothing: to a temporary file first, then renamed."""
        return write_dataset(self.dataset, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Gain:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            If there is no gain in the file.
        """
        try:
            found = cls(xr.load_dataset(path, engine="h5netcdf"))
            found.best(1)
            return found
        except (OSError, AttributeError, KeyError, ValueError) as why:
            raise InputError(f"{path} holds no expected gain ({why}); expected a file that Gain.save wrote") from None

    def __str__(self) -> str:
        d, (unit, text) = self.dataset, ("bits", "entropy") if self.label else ("sd", "variance")
        present = float(d.present_entropy if self.label else d.present_sd)
        lines = [
            f"  {unit} {c.expected:.4g} at x = {c.composition:.4g}, T = {c.temperature:.4g} "
            f"({c.reduction:.0%} +- {c.error:.0%} less {text}, {c.information:.2f} bits)"
            for c in self.best()
        ] or ["  nothing that can be relied on: no point of the map is in equilibrium"]
        name = d.attrs.get("target", "target")
        first = f"{name}: {unit} {present:.4g} now; an image of {d.attrs['sites']} sites is expected to leave"
        return "\n".join([first, *lines, *self.notes])


def gain_map(
    source: Result | Sequence[Candidate],
    target: Target,
    *,
    composition: ArrayLike | Mapping[str, ArrayLike],
    temperature: ArrayLike,
    sites: int = 500,
    model: str = "average",
    draws: int = 100,
    seed: int,
    size: int | Sequence[int] | None = None,
    sweeps: float = 240.0,
    workers: int | Executor = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> Gain:
    """Map how much an image at each composition and temperature is expected to tell about a target.

    Parameters
    ----------
    source : Result, or sequence of Candidate
        As :func:`~bayesatoms.phases.diagram.phase_diagram` takes.
    target : callable, mapping or array_like
        A scalar function of the draws: a callable (model name, couplings (m, k)) -> (m,); a mapping of model names to values, one
        for each draw that the candidate holds; or values (draws,) in the order of a phase map of the same source, `draws` and
        `seed`, such as ``diagram.boundaries.transition.sel(composition=0.5)``. Floating point numbers are a quantity, whose
        variance is to fall; whole numbers, booleans and words are labels, whose entropy is.
    composition : array_like, or {species: array_like}
        Rising fractions in (0, 1) of the second species, or of the one named.
    temperature : array_like
        Rising, relative to the formation temperature.
    sites : int
        Atoms in the image, or in several at the same point. Covariances of a periodic box are scaled to it; the rim of an image,
        where clusters are cut, tells less than its share.
    model : str
        Of a Result: "average" takes all its models by posterior weight, a name that model alone.
    draws : int
        Posterior draws in all, shared out by weight. Sharper images need more; the notes of the result say so.
    seed : int
        The result follows from it, whatever `workers` is. Images at all points have their noise in common.
    size : int or sequence of int, optional
        Cells along each side of the box, as in a phase map: about 576 sites by default.
    sweeps : float
        Sweeps of the records at each temperature, on the way down and on the way up.
    workers : int or Executor
    progress : callable, optional
        Called with ("gain", done, of how many).

    Returns
    -------
    Gain

    Raises
    ------
    InputError
        If an argument cannot be used, no candidate has a term, or the target is the same for all draws.

    Notes
    -----
    Cost: at each composition every draw is cooled and warmed through the temperatures and the stages between them, 64 draws side
    by side, some 3 `sweeps` a temperature. On one core, 24 x 24 sites: 3 s for 100 draws of one coupling at 16 points, 15 s for 400
    draws of three couplings at 15. Time of the likelihoods grows with the square of `draws`.

    `linear` is 1 - (b' (S^-1 + J)^-1 b + r) / variance, averaged over the draws of each model: S their covariance, J = Cov(F) / T^2
    the Fisher information, b and r slope and residual variance of the target's regression on the couplings. It tells models not apart.

    Examples
    --------
    A pair coupling near the random alloy: J = 8 n x^2 (1 - x)^2 on a square lattice, 250 at x = 1/2, and S = 0.01.

    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> draws = np.linspace(-1, 1, 64)[:, None] * 0.1 * 3**0.5
    >>> gain = gain_map([Candidate(h, draws)], lambda _, w: w[:, 0], composition=[0.1, 0.5], temperature=[1.0], draws=64, size=12, seed=1)
    >>> gain.best(1)[0].composition, bool(abs(gain.dataset.linear.values[0, 1] - 2.5 / 3.5) < 0.05)
    (0.5, True)
    """
    candidates = list(source) if isinstance(source, Sequence) else candidates_of(source, model)
    lattice, species = one_system(candidates)
    varied, x = axis_of("composition", composition, species)
    t = rising("temperature", temperature, (0.0, np.inf))
    for key, value, least in (("sites", sites, 2), ("draws", draws, _LEAST), ("sweeps", sweeps, RECORDS), ("seed", seed, 0)):
        if not (np.isfinite(value) and value >= least):
            raise InputError(f"{key} {value} given; expected a number of at least {least}")
    draws, sites = int(draws), int(sites)
    box = lattice.supercell(box_shape(lattice.dimension, len(lattice.basis), size))
    counts = [whole_counts([c, 1 - c] if varied == 0 else [1 - c, c], box.n_sites) for c in x]
    if min(c.min() for c in counts) < 1:
        raise InputError(f"composition {x.tolist()} leaves a species without atoms among {box.n_sites} sites; use a larger size")
    orbits = list({o.key: o for c in candidates for o in c.hamiltonian.orbits}.values())
    if not orbits:
        raise InputError("no candidate has a term; expected one at least: images of the random alloy alone tell nothing")
    weights, q = np.array([c.weight for c in candidates]), len(orbits)
    # numbers of the draws, by the very choice that a phase map makes
    numbered: list[Any] = [SimpleNamespace(hamiltonian=c.hamiltonian, couplings=np.arange(len(c.couplings))) for c in candidates]
    picks = chosen_draws(numbered, whole_counts(weights / weights.sum(), draws), seed)
    values = _values(target, candidates, picks, draws)
    keys, unit = [o.key for o in orbits], np.eye(q)
    embeds = [unit[[keys.index(o.key) for o in c.hamiltonian.orbits]].reshape(-1, q) for c in candidates]
    couplings, compiled = [c.couplings[p] for c, p in zip(candidates, picks, strict=True)], Compiled.build(orbits, box, len(species))
    sheets: list[Sheet] = []
    place: dict[int, tuple[int, slice]] = {}  # column and draws of each sheet
    for column, count in enumerate(counts):
        first = 0
        for c, w, embed in zip(candidates, couplings, embeds, strict=True):
            whole = Sheet(compiled, box, w @ embed, t, count, varied, float(sweeps), (*identity(seed, c, int(count[1])), 2))
            for part in split(whole):
                sheets.append(part)
                place[id(part)] = column, slice(first, first + len(part.couplings))
                first += len(part.couplings)
    mean, covariance = np.empty((len(x), len(t), draws, q)), np.empty((len(x), len(t), draws, q, q))
    settled, moves = np.empty((len(x), len(t), draws), dtype=bool), 0
    with executor(workers) as crew:
        for done, (sheet, found) in enumerate(crew.run(_fluctuations, sheets), 1):
            column, some = place[id(sheet)]
            mean[column, :, some], covariance[column, :, some], settled[column, :, some] = found[:3]
            moves += found[3]
            if progress is not None:
                progress("gain", done, len(sheets))
    half, scale = np.random.default_rng([seed, 1]).normal(size=(draws, IMAGES // 2, q)), box.n_sites / sites
    noise, points = np.concatenate([half, -half], axis=1), [[(j, i) for j in range(len(x))] for i in range(len(t))]
    every = [[expected_gain(mean[at], covariance[at] * scale, values, noise, scale) for at in row] for row in points]
    dataset = _dataset(every, values.dtype.kind != "f", t, (x, species[varied]), settled)
    if values.dtype.kind == "f":
        linear = [[_linear(couplings, embeds, values, covariance[at] / scale / t[at[1]] ** 2) for at in row] for row in points]
        about = {"units": "1", "long_name": "expected reduction of the variance by Fisher information and linear response"}
        dataset["linear"] = (("temperature", "composition"), np.array(linear), about)
    attrs = {"seed": seed, "version": version(), "box": list(box.shape), "sites": sites, "sweeps": float(sweeps), "moves": moves}
    attrs |= {"draws": draws, "models": [c.hamiltonian.name for c in candidates], "notes": _notes(dataset, draws)}
    return Gain(dataset.assign_attrs(attrs))


def _fluctuations(sheet: Sheet) -> tuple[Floats, Floats, NDArray[np.bool_], int]:
    """Mean (T, draws, q), covariance (T, draws, q, q) of the counts, which are in equilibrium (T, draws), and moves made."""
    w, stages, asked = sheet.couplings, sheet.stages, {int(s): row for row, s in enumerate(sheet.asked)}
    atoms, lanes = np.repeat(np.arange(2, dtype=np.uint8), sheet.counts), range(len(w))
    labels = np.stack([np.random.default_rng(_seed(sheet, lane)).permutation(atoms) for lane in lanes])
    series = np.empty((len(asked), len(w), 2, RECORDS, w.shape[1]))
    moving, moves = np.ones((len(asked), len(w)), dtype=bool), 0
    for way, order in enumerate((range(len(stages)), range(len(stages))[::-1])):
        for stage in order:
            row = asked.get(stage)
            samples, sweeps = (1, 1.0) if row is None else (RECORDS, sheet.sweeps / RECORDS)
            chains = run_chains(
                sheet.compiled, w / stages[stage], labels, samples=samples, sweeps=sweeps, burn=_BURN * sheet.sweeps,
                seeds=[_seed(sheet, way, stage, lane) for lane in lanes], sites=_seed(sheet, way, stage), kernel="lanes",
            )  # fmt: skip
            labels, moves = np.concatenate([unpack(c.packed[:, -1:], c.n_sites) for c in chains]), moves + sum(c.moves for c in chains)
            if row is not None:
                series[row, :, way] = [c.features for c in chains]
                moving[row] &= np.array([c.acceptance for c in chains]) * sheet.sweeps > 1
    times = np.array([[[max(map(autocorrelation_time, s.T)) for s in both] for both in rows] for rows in series])
    effective, mean = (RECORDS / times).sum(axis=-1), series.mean(axis=(2, 3))
    apart = series - mean[:, :, None, None]
    shrunk = np.maximum(1 - 1 / effective, 0.5)[..., None, None]  # about its own mean a sample scatters too little
    covariance = np.einsum("tlwra,tlwrb->tlab", apart, apart) / (2 * RECORDS) / shrunk
    noise = np.sqrt((series.var(axis=3) * (times / RECORDS)[..., None]).sum(axis=2))
    alike = (np.abs(np.diff(series.mean(axis=3), axis=2))[:, :, 0] <= _SIGMAS * noise).all(axis=-1)
    # d<E>/dT = Var(E) / T^2 >= 0: a lane above an energy that it had at a higher temperature is stuck
    energy, error = (mean * w).sum(axis=-1), np.sqrt(np.einsum("lp,tlpq,lq->tl", w, covariance, w).clip(0) / effective)
    lowest = np.minimum.accumulate((energy + _SIGMAS * error)[::-1], axis=0)[::-1]
    alike[:-1] &= (energy - _SIGMAS * error)[:-1] <= lowest[1:]
    return mean, covariance, alike & moving & (effective >= SLOW), moves


def _seed(sheet: Sheet, *place: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([*sheet.entropy, *map(int, place)])


def _linear(couplings: Sequence[Floats], embeds: Sequence[Floats], y: Floats, information: Floats) -> float:
    """Reduction of the variance by Fisher information (draws, q, q) within every model; which model it is stays as open."""
    left, first = 0.0, 0
    for w, embed in zip(couplings, embeds, strict=True):
        (n, k), mine, about = w.shape, y[first : first + len(w)], embed @ information[first : first + len(w)] @ embed.T
        first += n
        if n < k + 2 or k == 0:
            left += float(((mine - y.mean()) ** 2).sum())
            continue
        apart, rest = w - w.mean(axis=0), mine - mine.mean()
        slope = np.linalg.lstsq(apart, rest, rcond=None)[0]
        values, vectors = np.linalg.eigh(apart.T @ apart / (n - 1))
        root = vectors * np.sqrt(values.clip(0))
        told = np.linalg.inv(np.eye(k) + root.T @ about @ root).mean(axis=0)  # where S^-1 may not exist, this does
        left += n * float((mine.mean() - y.mean()) ** 2 + slope @ root @ told @ root.T @ slope)
        left += float(((rest - apart @ slope) ** 2).sum()) * n / (n - k - 1)
    return 1 - left / (len(y) * float(y.var(ddof=1)))


def _values(target: Target, candidates: Sequence[Candidate], picks: Sequence[NDArray[Any]], draws: int) -> NDArray[Any]:
    """The target at the draws: floating point numbers, or numbers of labels."""
    parts: list[NDArray[Any]] = []
    for c, p in zip(candidates, picks, strict=True):
        if not len(p) or not (callable(target) or isinstance(target, Mapping)):
            continue
        name, known = c.hamiltonian.name, c.couplings[p] if callable(target) else c.couplings
        if isinstance(target, Mapping) and name not in target:
            raise InputError(f"target of models {', '.join(map(str, target))} given; expected values for {name} too")
        found = np.asarray(target(name, known) if callable(target) else target[name])
        if found.shape != (len(known),):
            raise InputError(f"target of model {name}: values of shape {found.shape} given; expected one for each of {len(known)} draws")
        parts.append(found if callable(target) else found[p])
    values: NDArray[Any] = np.concatenate(parts) if parts else np.asarray(target)
    if values.shape != (draws,) or values.dtype.kind not in "fiubUS":
        raise InputError(f"target of shape {values.shape} and type {values.dtype} given; expected numbers or labels, {draws} of them")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        share = 1 - np.isfinite(values).mean()
        raise InputError(f"target not finite for {share:.0%} of the draws; extend the phase map, or ask for a label such as target > 1")
    if (values == values[0]).all():
        raise InputError(f"target {values[0]} given for all {draws} draws; there is nothing to be learned about it")
    return values.astype(float) if values.dtype.kind == "f" else np.unique(values, return_inverse=True)[1].reshape(-1)


def _dataset(
    rows: Sequence[Sequence[Expected]], label: bool, t: Floats, across: tuple[Floats, str], settled: NDArray[np.bool_]
) -> xr.Dataset:
    """The map of what is expected."""
    every = {name: np.array([[getattr(e, name) for e in row] for row in rows]) for name in Expected._fields}
    kind, units, text = ("entropy", "bits", "entropy") if label else ("sd", "that of the target", "standard deviation")
    left, present = every["expected"] ** (1 if label else 0.5), float(every["present"][0, 0]) ** (1 if label else 0.5)
    columns = {
        f"expected_{kind}": (left, units, f"{text} of the target expected after the image"),
        "reduction": (every["reduction"], "1", f"expected reduction of the {'entropy' if label else 'variance'} of the target"),
        "reduction_error": (every["error"], "1", "standard error of the reduction"),
        "information": (every["information"], "bits", "information on the target"),
        "information_all": (every["everything"], "bits", "information on couplings and models"),
        "effective_draws": (every["effective"], "1", "draws among which the weights are shared after an image, mean"),
        "supported": (settled.mean(axis=2).T, "1", "share of draws whose chains are in equilibrium"),
    }
    axes = ("temperature", "composition")
    variables: dict[str, tuple] = {name: (axes, v, {"units": u, "long_name": s}) for name, (v, u, s) in columns.items()}
    variables[f"present_{kind}"] = ((), present, {"units": units, "long_name": f"{text} of the target now"})
    texts = ("temperature relative to the formation temperature", f"fraction of {across[1]}")
    grid = zip(axes, (t, across[0]), texts, strict=True)
    return xr.Dataset(variables, {name: (name, v, {"units": "1", "long_name": s}) for name, v, s in grid})


def _notes(dataset: xr.Dataset, draws: int) -> list[str]:
    slow, thin = dataset.supported < _SUPPORTED, dataset.effective_draws < _RESOLVED
    texts = (
        (slow, f"more than {1 - _SUPPORTED:.0%} of the draws are not in equilibrium: they are not recommended"),
        (thin, f"an image tells more than {draws} draws resolve: gains there are larger than shown"),
    )
    return [f"at {int(where.sum())} of {where.size} points {text}" for where, text in texts if where.any()]
