"""Chains: one run of a kernel, its snapshots and features, and the honest error of its means.

Every mean carries the cut of the part before equilibrium and its integrated autocorrelation time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CheckError, InputError
from ..hamiltonian import Compiled
from . import kernels

_LEAST = 50  # autocorrelation times in a chain whose error can be believed (emcee's rule)
_WINDOW = 5.0  # Sokal's self-consistent window: sum correlations up to 5 autocorrelation times


@dataclass(frozen=True, eq=False)
class Chain:
    """What one run left behind.

    `packed` holds the snapshots, 1 bit a site for two species (`n_bits` planes otherwise);
    `features` (n, n_features) counts every term; `couplings` and `potential` say where it ran.
    """

    couplings: NDArray[np.float64]
    potential: NDArray[np.float64] | None
    packed: NDArray[np.uint8]
    features: NDArray[np.float64]
    n_sites: int
    acceptance: float
    moves: int

    @property
    def snapshots(self) -> NDArray[np.uint8]:
        """Species of every site of every snapshot, shape (n, n_sites)."""
        return unpack(self.packed, self.n_sites)

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Mean:
    """A Monte Carlo mean: value, standard error, autocorrelation time (in records), records used and cut."""

    value: float
    error: float
    time: float
    n: int
    cut: int

    def __str__(self) -> str:
        return f"{self.value:.6g} +- {self.error:.2g} (tau {self.time:.1f}, n {self.n})"


def pack(snapshots: NDArray[np.uint8], n_species: int) -> NDArray[np.uint8]:
    """Pack species numbers into bit planes, shape (planes, n, bytes)."""
    planes = max(1, int(n_species - 1).bit_length())
    return np.stack([np.packbits((snapshots >> p) & 1, axis=1) for p in range(planes)])


def unpack(packed: NDArray[np.uint8], n_sites: int) -> NDArray[np.uint8]:
    """Undo :func:`pack`.

    Examples
    --------
    >>> labels = np.array([[0, 2, 1], [1, 1, 0]], dtype=np.uint8)
    >>> unpack(pack(labels, 3), 3).tolist()
    [[0, 2, 1], [1, 1, 0]]
    """
    planes = [np.unpackbits(plane, axis=1, count=n_sites) << p for p, plane in enumerate(packed)]
    return np.sum(planes, axis=0, dtype=np.uint8)


def generator_state(seed: np.random.SeedSequence) -> NDArray[np.uint64]:
    """The four words of a kernel's generator (never all zero: SeedSequence hashes)."""
    return seed.generate_state(4, np.uint64)


def run_chain(
    compiled: Compiled,
    couplings: ArrayLike,
    labels: ArrayLike,
    *,
    samples: int,
    sweeps: float = 2.0,
    burn: float = 200.0,
    seed: np.random.SeedSequence,
    potential: ArrayLike | None = None,
) -> Chain:
    """Run one chain from a start configuration.

    Parameters
    ----------
    compiled : Compiled
    couplings : array_like, shape (n_features,)
        In kT.
    labels : array_like of int, shape (n_sites,)
        Start configuration; in the canonical ensemble its composition is kept.
    samples : int
        Snapshots to record.
    sweeps, burn : float
        Sweeps between records, and before the first. A canonical sweep attempts as many swaps as
        there are atoms that are not of the commonest species, a semi-grand one as many flips as sites.
    seed : numpy.random.SeedSequence
    potential : array_like, shape (k,), optional
        Chemical potentials in kT; given, the chain is semi-grand canonical.

    Returns
    -------
    Chain

    Raises
    ------
    InputError
        If the couplings, labels or potentials do not fit, or a canonical start holds one species only.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> compiled = h.compile(h.lattice.supercell((4, 4)))
    >>> chain = run_chain(compiled, [0.0], [0, 1] * 8, samples=2000, seed=np.random.SeedSequence(1))
    >>> bool(abs(chain.features.mean() - 32 * 16 / 30) < 0.3)   # 32 bonds, each unlike with probability 2 (1/2) (8/15)
    True
    """
    labels = np.array(labels, dtype=np.uint8).reshape(-1)
    couplings = np.asarray(couplings, dtype=float).reshape(-1)
    if len(couplings) != compiled.n_features or len(labels) != compiled.n_sites or labels.max() >= compiled.n_species:
        raise InputError(
            f"{len(couplings)} couplings and {len(labels)} labels given; expected {compiled.n_features} couplings and "
            f"{compiled.n_sites} labels below {compiled.n_species}"
        )
    if potential is not None and np.shape(potential) != (compiled.n_species,):
        raise InputError(f"chemical potentials {np.asarray(potential).tolist()} given; expected {compiled.n_species}, one a species")
    counts = np.bincount(labels, minlength=compiled.n_species)
    codes, energies = compiled.codes(labels), compiled.tables @ couplings
    snapshots = np.empty((samples, compiled.n_sites), dtype=np.uint8)
    features = np.zeros((samples, compiled.n_features))
    shared = (labels, codes, compiled.base, compiled.start, compiled.touch, compiled.stride, compiled.tables, energies)
    state = generator_state(seed)
    if potential is None:
        if counts.max() == len(labels):
            raise InputError("a canonical chain needs at least two species present; found one")
        per_sweep = len(labels) - counts.max()
        group = np.concatenate([[0], np.cumsum(counts)])
        control = (np.argsort(labels, kind="stable"), group, round(burn * per_sweep), max(1, round(sweeps * per_sweep)))
        accepted = kernels.swap_chain(*shared, *control, state, snapshots, features)
    else:
        per_sweep, potential = len(labels), np.asarray(potential, dtype=float)
        control = (potential, round(burn * per_sweep), max(1, round(sweeps * per_sweep)))
        accepted = kernels.flip_chain(*shared, *control, state, snapshots, features)
    attempted = control[-1] * samples
    packed = pack(snapshots, compiled.n_species)
    return Chain(couplings, potential, packed, features, len(labels), accepted / max(attempted, 1), attempted + control[-2])


def autocorrelation_time(series: ArrayLike) -> float:
    """Integrated autocorrelation time in records, 1 for independent ones (Sokal's window; Goodman and Weare 2010).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = np.zeros(100_000)
    >>> for i in range(1, len(x)): x[i] = 0.8 * x[i - 1] + rng.normal()
    >>> abs(autocorrelation_time(x) - (1 + 0.8) / (1 - 0.8)) < 0.7
    True
    """
    x = np.asarray(series, dtype=float) - np.mean(series)
    n = len(x)
    if n < 4 or not np.any(np.abs(x) > 1e-12):
        return 1.0
    spectrum = np.fft.rfft(x, 2 * n)
    correlation = np.fft.irfft(spectrum * spectrum.conj())[:n]
    times = 2 * np.cumsum(correlation / correlation[0]) - 1
    enough = np.flatnonzero(np.arange(n) >= _WINDOW * times)
    return float(max(1.0, times[enough[0] if len(enough) else n - 1]))


def equilibration(series: ArrayLike) -> int:
    """Records to cut: the start that leaves most independent ones (Chodera, J. Chem. Theory Comput. 12, 1799, 2016)."""
    series = np.asarray(series, dtype=float)
    starts = np.unique(np.linspace(0, len(series) // 2, 11).astype(int))
    effective = [(len(series) - s) / autocorrelation_time(series[s:]) for s in starts]
    return int(starts[int(np.argmax(effective))])


def mean(series: ArrayLike, *, cut: int | None = None) -> Mean:
    """Mean of a chain's series with its error, from the equilibrated part.

    Raises
    ------
    CheckError
        If fewer than fifty autocorrelation times remain: too short to judge. A chain of one to three
        times looks like ten, since its own mean is taken off; by fifty 97 % of those are found out.
    """
    series = np.asarray(series, dtype=float)
    cut = equilibration(series) if cut is None else cut
    kept = series[cut:]
    time = autocorrelation_time(kept)
    if len(kept) < _LEAST * time:
        raise CheckError(f"chain of {len(kept)} records spans {len(kept) / time:.1f} autocorrelation times; run it {_LEAST} long at least")
    return Mean(float(kept.mean()), float(kept.std(ddof=1) * np.sqrt(time / len(kept))), time, len(kept), cut)
