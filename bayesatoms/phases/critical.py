"""Critical and ordering temperatures: where a crystal and one twice as long fluctuate alike.

The ratio <M^2> / <M>^2 of an order parameter's square M falls towards 1 with the size of the crystal where there is order, and
rises towards that of Gaussian noise where there is none. At the transition it does not depend on the size, but for small
corrections: where two sizes cross (Binder, Z. Phys. B 43, 119, 1981). Since E / T = (w / T) . F, one search along a direction of
the couplings serves every posterior draw along it.

Separation is looked at in the semi-grand ensemble, at the chemical potential where the composition is as often rich as poor (its
third moment vanishes); M is the square of its excess. That is the top of the region of coexistence, wherever it lies. Order is
looked at at a given composition; M is the spectral weight of the star of wave vectors that the cold crystal shows.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, isotonic_regression

from ..configuration import whole_counts
from ..errors import InputError
from ..hamiltonian import Compiled, Field, Hamiltonian
from ..lattice import Supercell
from ..montecarlo.chains import Chain
from ..montecarlo.engine import run_chains
from ..montecarlo.ensembles import Canonical, Constrained, Ensemble, SemiGrand
from ..montecarlo.executors import Executor, executor
from .observables import structure_factor, structure_peaks
from .sheet import LONG, ORDER, Sheet, cool

_SCOUTED = np.geomspace(0.1, 6.0, 28)  # temperatures of |w| = 1 among which a transition is looked for
_SCOUT = 12  # cells along a side of the crystal that finds it
_WINDOWS = (0.12, 0.04)  # half widths of the temperatures about it, relative: to find it, and to measure it
_INNER = 0.5  # of the half width: a crossing further out is measured again with the window about it
_FACTORS = 64  # of one direction alone
_LEAST = 16  # of each of many
_SHIFTS = 6  # windows tried
_ONE_PHASE = 0.25  # composition by which a chain may be off the middle of a gap before it sees one phase only
_LEVEL = 0.2  # of the way from order (1) to noise, at which the larger crystal is near its transition
_ANNEALED = 16  # crystals cooled to find the ordered state
_BOOTSTRAP = 200
_FREE = SemiGrand((0.0, 0.0))
_SAME = 1e-9  # below which two directions are one


@dataclass(frozen=True, eq=False)
class Critical:
    """Critical or ordering temperatures of many couplings.

    Attributes
    ----------
    temperature : ndarray, shape (m,)
        Relative to that at which the couplings are in kT; 0 where nothing orders in range.
    error : ndarray, shape (m,)
        Standard errors of the search.
    kind : tuple of str
        "separation", "order" or "none", one each.
    composition : ndarray, shape (m,)
        Where it lies: found for separation, given for order.
    range : tuple of float
        Temperatures searched, for couplings of length 1.
    """

    temperature: NDArray[np.float64]
    error: NDArray[np.float64]
    kind: tuple[str, ...]
    composition: NDArray[np.float64]
    range: tuple[float, float]

    def __str__(self) -> str:
        found = self.temperature[self.temperature > 0]
        if not len(found):
            return f"no transition in range: |w| / T up to {1 / self.range[0]:.3g}"
        low, middle, high = np.quantile(found, (0.05, 0.5, 0.95))
        share = len(found) / len(self.temperature)
        kinds = ", ".join(f"{self.kind.count(k) / len(self.kind):.0%} {k}" for k in sorted(set(self.kind)))
        return f"{middle:.4g} [{low:.4g}, {high:.4g}] for {share:.0%} of {len(self.temperature)} couplings ({kinds})"


@dataclass(frozen=True, eq=False)
class _Search:
    """One direction: where to look, and at what."""

    hamiltonian: Hamiltonian
    direction: NDArray[np.float64]
    composition: float
    size: int
    records: int
    factors: int
    entropy: tuple[int, ...]


def critical_temperatures(
    hamiltonian: Hamiltonian,
    couplings: ArrayLike,
    *,
    composition: float = 0.5,
    size: int = 0,
    records: int = 1000,
    seed: int,
    workers: int | Executor = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> Critical:
    """Find the temperature at which each of many couplings orders or separates.

    Parameters
    ----------
    hamiltonian : Hamiltonian
        Of two species.
    couplings : array_like, shape (k,) or (m, k)
        In kT at formation, such as posterior draws. Those along one direction share its search.
    composition : float
        Of the second species: where order is looked for. Separation is followed to its own critical composition.
    size : int
        Cells along a side of the smaller crystal, a multiple of 6 so that orderings fit; by default 12 or 18 in two dimensions
        (many directions or one; 18 as well where the two species are not alike), 6 or 12 in three. The larger has twice as many.
    records : int
        Of every chain.
    seed : int
        The result follows from it, whatever `workers` is.
    workers : int or Executor
    progress : callable, optional
        Called with ("critical", done, of how many directions).

    Returns
    -------
    Critical

    Raises
    ------
    InputError
        If the model has no terms or more than two species, or an argument is out of range.

    Notes
    -----
    Square and triangular Ising model, one direction, default size: see tests/test_critical.py and docs/phases.md. Sizes that a transition
    of first order needs are larger than its correlation length; where it is strong, hysteresis in the map says more.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B", name="w"), lattice=Lattice.triangular(), species=("A", "B"))
    >>> found = critical_temperatures(h, [[0.5], [1.0], [0.0]], records=200, seed=1)   # w / Tc = ln(3) / 2
    >>> found.kind, bool(abs(found.temperature[1] * np.log(3) / 2 - 1) < 0.03), float(found.temperature[1] / found.temperature[0])
    (('separation', 'separation', 'none'), True, 2.0)
    """
    w = np.atleast_2d(np.asarray(couplings, dtype=float))
    if not hamiltonian.terms or len(hamiltonian.species) != 2:
        raise InputError(
            f"model {hamiltonian.name}: {len(hamiltonian.terms)} terms, {len(hamiltonian.species)} species; expected terms, two species"
        )
    if w.ndim != 2 or w.shape[1] != len(hamiltonian.names) or not np.isfinite(w).all():
        raise InputError(f"couplings of shape {w.shape} given; expected finite numbers (m, {len(hamiltonian.names)})")
    if not 0 < composition < 1:
        raise InputError(f"composition {composition} given; expected a number between 0 and 1")
    if size % 6 or size < 0 or records < 50:
        raise InputError(f"size {size} and {records} records given; expected a multiple of 6 and at least 50")
    sites = _SCOUT**hamiltonian.lattice.dimension * len(hamiltonian.lattice.basis)
    if whole_counts([1 - composition, composition], sites).min() < 1:
        raise InputError(f"composition {composition} leaves a species without atoms among {sites} sites; expected at least {1 / sites:.2g}")
    strength = np.linalg.norm(w, axis=1)
    units = np.round(w / np.where(strength > 0, strength, 1.0)[:, None] / _SAME) * _SAME
    directions, which = np.unique(units, axis=0, return_inverse=True)
    some = directions[directions.any(axis=1)]
    alone = len(some) < 2 or (len(some) == 2 and np.array_equal(some[0], -some[1]))  # both signs of one coupling
    few, many = {2: (18, 12)}.get(hamiltonian.lattice.dimension, (12, 6))
    searches = [
        # where the two species are not alike corrections are larger
        _Search(
            hamiltonian,
            d,
            composition,
            size or (few if alone or not _alike(hamiltonian, d) else many),
            records,
            _FACTORS if alone else _LEAST,
            (seed, _identity(d)),
        )
        for d in directions
        if d.any()
    ]
    results: dict[bytes, tuple[float, float, str, float]] = {}
    with executor(workers) as crew:
        for done, (search, result) in enumerate(crew.run(_search, searches), 1):
            results[search.direction.tobytes()] = result
            if progress is not None:
                progress("critical", done, len(searches))
    rows = [results.get(directions[i].tobytes(), (0.0, 0.0, "none", composition)) for i in which.reshape(-1)]
    t, error, kind, x = zip(*rows, strict=True)
    reach = (float(_SCOUTED[0]), float(_SCOUTED[-1]))
    return Critical(np.array(t) * strength, np.array(error) * strength, tuple(kind), np.array(x), reach)


def _alike(hamiltonian: Hamiltonian, direction: NDArray[np.float64]) -> bool:
    """Whether the energy stays the same when the two species are exchanged."""
    box = hamiltonian.lattice.supercell((6,) * hamiltonian.lattice.dimension)
    known = Compiled.build(hamiltonian.orbits, box, 2)
    some = np.random.default_rng(0).integers(0, 2, (4, known.n_sites))
    return all(np.isclose(*(known.features(row) @ direction for row in (r, 1 - r))) for r in some)


def _identity(direction: NDArray[np.float64]) -> int:
    """A number of the direction itself, so that its random numbers do not depend on what else is asked for."""
    return zlib.crc32(np.round(direction / _SAME).astype(np.int64).tobytes())


def _search(search: _Search) -> tuple[float, float, str, float]:
    """Critical temperature of a direction, its error, kind and composition."""
    sheet = _scout(search, search.composition, 0)
    scouted = cool(sheet)
    above = scouted.values[ORDER, 0] > sheet.threshold
    if not above.any():
        return 0.0, 0.0, "none", search.composition
    top = int(np.flatnonzero(above)[-1])
    separates = bool(scouted.values[LONG, 0, top] >= 0.5)
    kind = "separation" if separates else "order"
    looker = _Separation(search) if separates else _Ordering(search)
    middle = float(np.sqrt(_SCOUTED[top] * _SCOUTED[min(top + 1, len(_SCOUTED) - 1)]))
    u, brief = np.linspace(-1, 1, search.factors), replace(search, records=max(50, search.records // 4))
    middle, found = _approach(looker, middle, u, brief)
    half = _WINDOWS[1]
    for number in range(_SHIFTS if found else 0):
        small, large = (looker.ratios(middle * (1 + half * u), scale * search.size, search, _SHIFTS + number) for scale in (1, 2))
        rng = np.random.default_rng(np.random.SeedSequence([*search.entropy, 9, number]))
        crossing, error = _crossing(u, small, large, looker.noise, rng)
        if len(looker.one_phase) > len(u) // 2:
            middle *= 1 + half
            continue
        if abs(crossing) <= _INNER or (np.isfinite(crossing) and number == _SHIFTS - 1):
            return middle * (1 + half * crossing), middle * half * error, kind, looker.composition
        if np.isfinite(crossing):  # at the edge a cubic is hardly held, and what crosses beyond it is missed
            middle *= 1 + half * crossing
            continue
        middle *= 1 + half * (1 if np.median(large - small) < 0 else -1)
    return middle, np.inf, kind, looker.composition


def _approach(looker: _Ordering | _Separation, middle: float, u: NDArray[np.float64], brief: _Search) -> tuple[float, bool]:
    """A temperature near the transition, from where the larger crystal's ratio leaves that of order; and whether one was found."""
    half = _WINDOWS[0]
    for number in range(_SHIFTS):
        ratios = looker.ratios(middle * (1 + half * u), 2 * brief.size, brief, number)
        ratios[looker.one_phase] = 1.0  # chains that see one phase only are below the transition, whatever their noise
        smooth = isotonic_regression(ratios).x  # it rises with temperature, but for noise and chains that are stuck
        above = smooth > 1 + _LEVEL * (looker.noise - 1)
        if above[-1] and not above[0]:
            return middle * (1 + half * float(u[np.argmax(above)])), True
        middle *= 1 - 1.5 * half if above[0] else 1 + 1.5 * half
    return middle, False


def _scout(search: _Search, composition: float, number: int) -> Sheet:
    """A small crystal cooled at a composition."""
    h = search.hamiltonian
    box = h.lattice.supercell((_SCOUT,) * h.lattice.dimension)
    counts = whole_counts([1 - composition, composition], box.n_sites)
    return Sheet(h.compile(box), box, search.direction[None], _SCOUTED, counts, 1, 240.0, (*search.entropy, 0, number))


def _crossing(
    u: NDArray[np.float64], small: NDArray[np.float64], large: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Where (between -1 and 1) the logarithms of two ratios cross, and its error from resampled lanes; nan if they do not.

    Deep in either phase both sizes have the same ratio, and noise makes them cross: only what lies between counts.
    """
    if min(small.min(), large.min()) <= 0:  # atoms of one species alone
        return np.nan, np.inf
    logs = np.log(small), np.log(large)
    low, high = np.log1p(0.02 * (noise - 1)), np.log1p(0.7 * (noise - 1))

    def root(some: NDArray[np.int64]) -> float:
        lines = [np.polynomial.Polynomial.fit(u[some], log[some], 3, domain=[-1, 1]) for log in logs]
        apart = lines[1] - lines[0]
        roots = apart.roots()
        real = roots[np.abs(roots.imag) < 1e-9].real
        level = lines[1](real)
        good = real[(apart.deriv()(real) > 0) & (np.abs(real) < 1) & (level > low) & (level < high)]
        return float(good[np.argmin(np.abs(good))]) if len(good) else np.nan

    every = np.arange(len(u))
    again = np.array([root(np.sort(rng.choice(every, len(u)))) for _ in range(_BOOTSTRAP)])
    kept = again[np.isfinite(again)]
    return root(every), float(kept.std(ddof=1)) if len(kept) > _BOOTSTRAP // 2 else np.inf


class _Ordering:
    """Spectral weight of a star of wave vectors at fixed composition.

    Chains start from order: it melts at once where it is not stable, while order that has to grow gets stuck in domains.
    """

    one_phase = np.zeros(0, dtype=int)

    def __init__(self, search: _Search) -> None:
        self.composition = search.composition
        self.start, self.star = self._anneal(search)
        pairs = len(self.star)
        real = np.allclose(2 * self.star, np.round(2 * self.star))  # k and -k are one: the amplitude is a real number
        self.noise = 1 + (2 if real else 1) / pairs  # of Gaussian amplitudes

    def _anneal(self, s: _Search) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """The lowest of some small crystals cooled slowly (cells..., basis), and the star of its strongest wave vector."""
        box = _box(s, s.size)
        sheet = replace(_scout(s, s.composition, 1), box=box, compiled=s.hamiltonian.compile(box))
        counts = whole_counts([1 - s.composition, s.composition], box.n_sites)
        labels: NDArray[np.uint8] | None = None
        for stage, t in enumerate(sheet.stages[sheet.stages < 2.0]):
            couplings, key = np.tile(s.direction / t, (_ANNEALED, 1)), (*s.entropy, 101, stage)
            chains = _chains(replace(s, records=40), sheet.compiled, couplings, counts, box, key, Canonical(), labels)
            labels = np.stack([c.snapshots[-1] for c in chains])
        best = labels[int(np.argmin([c.features[-1] @ c.couplings for c in chains]))]
        return best.reshape(*box.shape, -1), structure_peaks(structure_factor(best, box), box)[0].star

    def ratios(self, t: NDArray[np.float64], size: int, s: _Search, number: int) -> NDArray[np.float64]:
        """<M^2> / <M>^2 at each temperature."""
        box, d = _box(s, size), s.hamiltonian.lattice.dimension
        labels = np.tile(self.start, (*[size // len(self.start)] * d, 1)).reshape(1, -1).repeat(len(t), axis=0)
        key = (*s.entropy, 1 + number, size)
        chains = _chains(s, s.hamiltonian.compile(box), s.direction / t[:, None], np.bincount(labels[0]), box, key, Canonical(), labels)
        at = tuple((np.round(self.star * size).astype(int) % size).T)
        weights = [structure_factor(c.snapshots, box)[(slice(None), *at)].sum(axis=1) for c in chains]
        return np.array([(m**2).mean() / m.mean() ** 2 for m in weights])


def _box(s: _Search, size: int) -> Supercell:
    return s.hamiltonian.lattice.supercell((size,) * s.hamiltonian.lattice.dimension)


class _Separation:
    """Excess composition in the semi-grand ensemble, at the chemical potential where its third moment vanishes."""

    noise = 3.0  # of a Gaussian excess

    def __init__(self, search: _Search) -> None:
        s, self.composition, self.one_phase = search, 0.5, np.zeros(0, dtype=int)
        self.symmetric = _alike(s.hamiltonian, s.direction)
        self.model = Hamiltonian(
            "h", *s.hamiltonian.terms, _named(s.hamiltonian), lattice=s.hamiltonian.lattice, species=s.hamiltonian.species
        )

    def ratios(self, t: NDArray[np.float64], size: int, s: _Search, number: int) -> NDArray[np.float64]:
        """<M^2> / <M>^2 at each temperature, M = (n - <n>)^2."""
        box = _box(s, size)
        mu, middle, brief = np.zeros(len(t)), box.n_sites / 2, replace(s, records=max(50, s.records // 4))
        if not self.symmetric:
            # held near one half by a spring, the mean excess tells the slope of the free energy; then the third moment does
            # (a spring softer than the random alloy would let go, in a small crystal below its transition)
            spring = Constrained(np.sqrt(box.n_sites) / 2)
            excess = np.array([n.mean() - middle for n in self._atoms(brief, box, t, mu, (number, 0), spring)])
            mu = np.polynomial.Polynomial.fit(t, -excess / spring.spread**2 * t, 1)(t)
            for attempt in (1, 2):
                # all chains together: each alone may see one phase only, but how many see which tells where the balance is
                atoms = np.concatenate(self._atoms(brief, box, t, mu, (number, attempt)))
                if abs(atoms.mean() / box.n_sites - 0.5) <= _ONE_PHASE:
                    mu = mu + _balanced(atoms) * t
        atoms = self._atoms(s, box, t, mu, (number, 3))
        if self.symmetric:
            return np.array([((n - middle) ** 4).mean() / ((n - middle) ** 2).mean() ** 2 for n in atoms])
        rows = [_moments(n, _balanced(n)) for n in atoms]
        x = np.array([np.average(n, weights=p) for n, (_, p) in zip(atoms, rows, strict=True)]) / box.n_sites
        self.one_phase = np.flatnonzero(np.abs(x - 0.5) > _ONE_PHASE)
        self.composition = float(np.median(x))
        return np.array([np.average(m**4, weights=p) / max(np.average(m**2, weights=p), 1e-12) ** 2 for m, p in rows])

    def _atoms(
        self,
        s: _Search,
        box: Supercell,
        t: NDArray[np.float64],
        mu: NDArray[np.float64],
        place: tuple[int, int],
        ensemble: Ensemble = _FREE,
    ) -> list[NDArray[np.float64]]:
        """Numbers of atoms of the second species in every record."""
        couplings, key = np.column_stack([s.direction / t[:, None], -mu / t]), (*s.entropy, 1 + place[0], box.shape[0], place[1])
        counts = whole_counts([0.5, 0.5], box.n_sites)
        # where both phases are alike one of them says all, and to begin in it avoids slabs of both
        labels = np.zeros((len(t), box.n_sites), dtype=np.uint8) if self.symmetric else None
        return [c.features[:, -1] for c in _chains(s, self.model.compile(box), couplings, counts, box, key, ensemble, labels)]


def _named(h: Hamiltonian) -> Field:
    """A field on the second species, under a name that the model does not use."""
    return Field(h.species[1], name=next(n for n in itertools.chain(["mu"], (f"mu{i}" for i in itertools.count())) if n not in h.names))


def _moments(n: NDArray[np.float64], shift: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Excess atoms and weights at a chemical potential moved by `shift` (kT)."""
    p = np.exp(shift * (n - n.mean()) - np.abs(shift * (n - n.mean())).max())
    return n - np.average(n, weights=p), p


def _balanced(n: NDArray[np.float64]) -> float:
    """By how much to move the chemical potential (kT) so that the third moment of the number of atoms vanishes."""

    def third(shift: float) -> float:
        m, p = _moments(n, shift)
        return float(np.average(m**3, weights=p))

    reach = 2.0 / max(n.std(), 1e-12)  # beyond, nothing would be left of the records
    return float(brentq(third, -reach, reach)) if third(-reach) * third(reach) < 0 else float(np.sign(third(0.0)) * 0.25 * reach)


def _chains(
    search: _Search,
    compiled: Compiled,
    couplings: NDArray[np.float64],
    counts: NDArray[np.int64],
    box: Supercell,
    place: tuple[int, ...],
    ensemble: Ensemble,
    labels: NDArray[np.uint8] | None = None,
) -> list[Chain]:
    """Chains side by side at many temperatures, from random starts or given ones; the time between records goes as the surface."""
    root = np.random.SeedSequence(place)
    start, sites, *seeds = root.spawn(2 + len(couplings))
    rng = np.random.default_rng(start)
    if labels is None:
        labels = np.stack([rng.permutation(np.repeat(np.arange(2, dtype=np.uint8), counts)) for _ in couplings])
    apart = box.n_cells ** (2 / len(box.shape)) / 64
    return run_chains(
        compiled, couplings, labels, samples=search.records, sweeps=apart, burn=max(200.0, 60 * apart), seeds=seeds, sites=sites,
        ensemble=ensemble, kernel="lanes",
    )  # fmt: skip
