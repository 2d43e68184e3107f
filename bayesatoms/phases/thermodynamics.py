"""Thermodynamics of a crystal: what it measures at one temperature, with errors.

Energies are in kT at the temperature of formation, temperatures relative to it, so that chains run at couplings / temperature and
potential / temperature, and heat capacities are in k_B per site. Chains start hot and cold and go on until the errors asked for
are reached (:mod:`bayesatoms.montecarlo.control`). Variances and cumulants are nonlinear in the means that they are made of;
their errors are a jackknife's over blocks that span several autocorrelation times (B. Efron, The Jackknife, the
Bootstrap and Other Resampling Plans, 1982; for chains M. E. J. Newman and G. T. Barkema, Monte Carlo Methods in
Statistical Physics, 1999, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..hamiltonian import Compiled, Hamiltonian
from ..lattice import Supercell
from ..montecarlo.chains import Chain
from ..montecarlo.control import Observable, Settled, SizeCheck, check_size, run_until, starts
from ..montecarlo.control import composition as composition_series
from ..montecarlo.engine import run_chains
from ..montecarlo.ensembles import Canonical, Ensemble, SemiGrand
from ..montecarlo.timeseries import Mean, autocorrelation_time
from .observables import structure_factor, structure_peaks, warren_cowley, wave_order

BLOCK = 10.0  # autocorrelation times a block of the jackknife spans: shorter ones make errors too small by 1 / (4 BLOCK)

Function = Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]  # of two moments: value and derivatives
Nonlinear = tuple[Function, Observable, float]  # the function, series (n, 2) whose means are the moments, and a factor per site or 0

_MOST = 16  # blocks a chain
_LEAST = 8  # blocks of all chains


@dataclass(frozen=True, eq=False)
class Thermodynamics:
    """What a crystal measures at one temperature; `time` in records, as everywhere.

    Attributes
    ----------
    temperature : float
        Relative to that of formation.
    energy : Mean
        w . F per site, kT at formation.
    heat_capacity : Mean
        N Var(h) / T^2, h the energy per site, less its chemical potential in the semi-grand ensemble (the heat
        capacity at constant potential); k_B per site, never negative.
    composition : Mean
        Share of species 1. Exact in the canonical ensemble.
    susceptibility : Mean or None
        N Var(x) of the composition x, which is T dx / d(potential of species 1); None in the canonical ensemble.
    short_range_order : Mean
        Warren-Cowley parameter of species 0 and 1 as nearest neighbours; a snapshot that lacks one of them counts as 0.
    long_range_order : Mean
        Mean of |m|, m the order parameter: magnetisation 2 x - 1, or the amplitude of waves (:func:`~.observables.wave_order`).
    binder : Mean
        Cumulant U4 = 1 - <m^4> / (3 <m^2>^2) (K. Binder, Z. Phys. B 43, 119, 1981): 2/3 in perfect order, 0 for a
        magnetisation that is disordered, 1/3 for the two parts of a complex wave that is.
    wave : ndarray, shape (m, d), or None
        Wave vectors of the order parameter, in reciprocal lattice vectors; None where it is the magnetisation.
    settled : Settled
        Chains and verdict of the run.
    size : SizeCheck or None
        Comparison with a crystal of twice the length, where it was asked for.
    reasons : tuple of str
        Why the result is not to be believed; empty if it is.
    """

    temperature: float
    energy: Mean
    heat_capacity: Mean
    composition: Mean
    susceptibility: Mean | None
    short_range_order: Mean
    long_range_order: Mean
    binder: Mean
    wave: NDArray[np.float64] | None
    settled: Settled
    size: SizeCheck | None
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        rows = [f"{name.replace('_', ' ')}: {value}" for name in _NAMES if (value := getattr(self, name)) is not None]
        return "\n".join([*rows, "settled" if self.ok else "not settled: " + "; ".join(self.reasons)])


_NAMES = ("energy", "heat_capacity", "composition", "susceptibility", "short_range_order", "long_range_order", "binder")


def measure(
    hamiltonian: Hamiltonian,
    couplings: Mapping[str, float] | ArrayLike,
    *,
    shape: Sequence[int],
    errors: Mapping[str, float],
    seed: int,
    temperature: float = 1.0,
    composition: float | Sequence[float] | None = None,
    potential: Sequence[float] | None = None,
    wave: ArrayLike | None = None,
    size_check: bool = False,
    **options: Any,
) -> Thermodynamics:
    """Measure a periodic crystal until the errors asked for are reached.

    Parameters
    ----------
    hamiltonian : Hamiltonian
    couplings : mapping of str to float, or array_like, shape (n_features,)
        kT at formation.
    shape : sequence of int
        Cells of the crystal.
    errors : mapping of str to float
        Standard errors asked for, by the names of :class:`Thermodynamics`; at least one. The others are measured
        and judged too, and have the errors that they have.
    seed : int
    temperature : float
        Relative to formation.
    composition : float or sequence of float
        Share of species 1 of two, or of every species; kept, unless a potential is given: then it is that of the start.
    potential : sequence of float, optional
        Chemical potential of each species, kT at formation: the semi-grand ensemble. It starts at equal shares by default.
    wave : array_like, shape (d,) or (m, d), optional
        Wave vectors of the order parameter, in reciprocal lattice vectors. By default it is the magnetisation in the semi-grand
        ensemble of two species, otherwise the strongest star of a short run.
    size_check : bool
        Whether to run a crystal of twice the length too (:func:`~bayesatoms.montecarlo.control.check_size`): what was given an
        error must agree.
    **options
        Of :func:`~bayesatoms.montecarlo.control.run_until`: `kernel`, `chains`, `sweeps`, `records`, `most`, `progress`.

    Returns
    -------
    Thermodynamics

    Raises
    ------
    InputError
        If neither composition nor potential is given, a number is out of range, or an error is of something unknown.

    Examples
    --------
    Random spins: half of the bonds are unlike, and the variance of a bond's energy w / 2 is w^2 / 4, two bonds a site.

    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("Ising", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> hot = measure(h, [1.0], temperature=1e6, potential=(0, 0), shape=(8, 8), errors={"energy": 0.005}, seed=1)
    >>> hot.ok, abs(hot.energy.value - 1) < 0.02, abs(1e12 * hot.heat_capacity.value - 0.5) < 4e12 * hot.heat_capacity.error
    (True, True, True)
    """
    w = hamiltonian.vector(couplings)
    if not (np.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature {temperature} given; expected a number above 0, relative to that of formation")
    if not errors:
        raise InputError(f"no error asked for; expected that of one or more of {', '.join(_NAMES)}")
    field = None if potential is None else np.asarray(potential, dtype=float)
    supercell = hamiltonian.lattice.supercell(tuple(int(n) for n in shape))
    counts = atom_counts(hamiltonian, supercell, composition, field)
    ensemble: Ensemble = Canonical() if field is None else SemiGrand(tuple(field / temperature))
    compiled = hamiltonian.compile(supercell)
    if wave is None and (field is None or len(counts) > 2):
        wave = _strongest(compiled, supercell, w / temperature, counts, ensemble, seed)
    waves = None if wave is None else np.atleast_2d(np.asarray(wave, dtype=float))
    if waves is not None:
        wave_order(np.zeros(supercell.n_sites, dtype=int), supercell, waves)  # refuses waves that do not fit before any chain runs
    series = _Series(supercell, w, temperature, field, waves)
    known = series.observables()
    wanted = {**dict.fromkeys(known, np.inf), **errors}
    common = {"seed": seed, "observables": known, "ensemble": ensemble, **options}
    size = None
    if size_check:
        size = check_size(hamiltonian, supercell.shape, w / temperature, counts, wanted, **common)
    found = run_until(compiled, w / temperature, counts, wanted, **common) if size is None else size.small
    values, short = series.values(found)
    if field is None:
        values["composition"] = Mean(counts[1] / supercell.n_sites, 0.0, 1.0, values["energy"].n, values["energy"].cut)
    assert values["heat_capacity"].value >= 0
    susceptibility = values.pop("susceptibility", None)
    return Thermodynamics(
        temperature=float(temperature), susceptibility=susceptibility, wave=waves, settled=found, size=size,
        reasons=((found if size is None else size).reasons + tuple(short)), **values,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Series:
    """Series of a chain, of either size of a size check.

    A nonlinear function f of moments (A, B) is steered by the series f + df/dA (a - A) + df/dB (b - B): its mean over a chain
    is the chain's own f, its scatter that of f to first order. The value given out is f of the moments of all chains.
    """

    supercell: Supercell
    w: NDArray[np.float64]
    temperature: float
    field: NDArray[np.float64] | None
    waves: NDArray[np.float64] | None

    def observables(self) -> dict[str, Observable]:
        """By the names of :class:`Thermodynamics`."""
        known: dict[str, Observable] = {
            "energy": self.energy,
            "short_range_order": lambda c: np.nan_to_num(warren_cowley(c.snapshots, self.box(c)), nan=0.0),
            "long_range_order": lambda c: np.abs(self.order(c)),
            **{name: self._steering(name) for name in self.nonlinear()},
        }
        return known if self.field is None else {"composition": composition_series, **known}

    def nonlinear(self) -> dict[str, Nonlinear]:
        """Functions of two moments by name."""
        found: dict[str, Nonlinear] = {
            "heat_capacity": (_variance, lambda c: _powers(self.heat(c), 1), self.temperature**-2),
            "binder": (_binder, lambda c: _powers(self.order(c), 2), 0.0),
        }
        if self.field is not None:
            found["susceptibility"] = (_variance, lambda c: _powers(composition_series(c), 1), 1.0)
        return found

    def _steering(self, name: str) -> Observable:
        function, series, factor = self.nonlinear()[name]

        def steering(chain: Chain) -> NDArray[np.float64]:
            table = series(chain)
            value, slope = function(table.mean(axis=0))
            return (value + (table - table.mean(axis=0)) @ slope) * (factor * chain.n_sites if factor else 1.0)

        return steering

    def box(self, chain: Chain) -> Supercell:
        """The crystal of a chain."""
        if chain.n_sites == self.supercell.n_sites:
            return self.supercell
        return self.supercell.lattice.supercell(tuple(2 * n for n in self.supercell.shape))

    def energy(self, chain: Chain) -> NDArray[np.float64]:
        """Per site, kT at formation."""
        return chain.features @ self.w / chain.n_sites

    def heat(self, chain: Chain) -> NDArray[np.float64]:
        """Energy per site less the chemical potential of its atoms."""
        even = self.field is None or not np.ptp(self.field) > 0
        return self.energy(chain) - (0.0 if even else self.field[chain.snapshots].mean(axis=1))

    def order(self, chain: Chain) -> NDArray[np.float64]:
        """The order parameter: magnetisation, or amplitude of the waves."""
        return 2 * composition_series(chain) - 1 if self.waves is None else wave_order(chain.snapshots, self.box(chain), self.waves)

    def values(self, found: Settled) -> tuple[dict[str, Mean], list[str]]:
        """What a run measured by name, and which errors are of too few blocks."""
        values, reasons = dict(found.means), []
        for name, (function, series, factor) in self.nonlinear().items():
            tables = [series(c)[found.means[name].cut :] for c in found.chains]
            value, error, time, blocks = _jackknifed(function, tables)
            scale = factor * found.chains[0].n_sites if factor else 1.0
            values[name] = Mean(value * scale, error * scale, time, sum(map(len, tables)), found.means[name].cut)
            if blocks < _LEAST:
                reasons.append(f"{name}: its error is of {blocks} blocks of {BLOCK:g} autocorrelation times, expected {_LEAST}: run longer")
        return values, reasons


def _powers(series: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    """A series to a power and to twice that power, (n, 2)."""
    return np.column_stack([series**first, series ** (2 * first)])


def _variance(moments: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Variance from the first and second moment, and its derivatives."""
    return max(float(moments[1] - moments[0] ** 2), 0.0), np.array([-2 * moments[0], 1.0])


def _binder(moments: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Binder's cumulant from the second and fourth moment, and its derivatives; 0 where there is no order at all."""
    second, fourth = (float(m) for m in moments)
    if not second > 0:
        return 0.0, np.zeros(2)
    return 1 - fourth / (3 * second**2), np.array([2 * fourth / (3 * second**3), -1 / (3 * second**2)])


def _jackknifed(function: Function, tables: Sequence[NDArray[np.float64]]) -> tuple[float, float, float, int]:
    """A function of the mean moments of chains' tables (n, 2): value, error, autocorrelation time and number of blocks.

    Each block spans BLOCK autocorrelation times or the whole chain; blocks of chains shorter than that are not counted.
    """
    slope = function(np.concatenate(tables).mean(axis=0))[1]
    # the time of the combination that matters: first and second moments alone may be slower than their difference
    time = float(np.mean([autocorrelation_time(t @ slope) for t in tables]))
    pieces = []
    for table in tables:
        pieces += np.array_split(table, int(np.clip(len(table) // (BLOCK * time), 1, _MOST)))
    sums, sizes = np.array([p.sum(axis=0) for p in pieces]), np.array([len(p) for p in pieces])
    value = function(sums.sum(axis=0) / sizes.sum())[0]
    left_out = np.array([function((sums.sum(axis=0) - s) / (sizes.sum() - n))[0] for s, n in zip(sums, sizes, strict=True)])
    error = np.sqrt((len(pieces) - 1) / len(pieces) * ((left_out - left_out.mean()) ** 2).sum())
    return value, float(error), time, int(sizes.sum() // (BLOCK * time)) if min(sizes) < BLOCK * time else len(pieces)


def atom_counts(
    hamiltonian: Hamiltonian, supercell: Supercell, composition: float | Sequence[float] | None, field: NDArray[np.float64] | None
) -> list[int]:
    """Atoms of each species at the start."""
    kinds = len(hamiltonian.species)
    if field is not None and (field.shape != (kinds,) or not np.isfinite(field).all()):
        raise InputError(
            f"potential {field.tolist()} given; expected {kinds} finite numbers, one a species: {', '.join(hamiltonian.species)}"
        )
    if composition is None and field is None:
        raise InputError("neither composition nor potential given; expected a composition to keep, or chemical potentials")
    shares = np.full(kinds, 1 / kinds) if composition is None else np.atleast_1d(np.asarray(composition, dtype=float))
    if len(shares) == 1 and kinds == 2:
        shares = np.array([1 - shares[0], shares[0]])
    if shares.shape != (kinds,) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise InputError(f"composition {composition} given; expected the share of species 1 of two, or {kinds} shares that sum to 1")
    # the nearest whole numbers that sum to the sites
    stops = np.round(np.cumsum(shares) * supercell.n_sites).astype(int)
    return np.diff(stops, prepend=0).tolist()


def _strongest(
    compiled: Compiled, supercell: Supercell, w: NDArray[np.float64], counts: Sequence[int], ensemble: Ensemble, seed: int
) -> NDArray[np.float64]:
    """The strongest star of wave vectors in a short run from a hot and from a cold start."""
    begin, *seeds = np.random.SeedSequence([seed, 1]).spawn(3)
    labels = starts(compiled, w, counts, 2, np.random.default_rng(begin))
    chains = run_chains(compiled, np.tile(w, (2, 1)), labels, samples=50, sweeps=4, burn=100, seeds=seeds, ensemble=ensemble)
    factors = np.concatenate([structure_factor(c.snapshots, supercell) for c in chains])
    return structure_peaks(factors, supercell)[0].star
