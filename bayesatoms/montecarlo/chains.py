"""Chains: what one run of a kernel leaves behind, and whether it may be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..lattice import Supercell
from .timeseries import DRIFT, autocorrelation_time, drift, equilibration

SLOW = 20  # autocorrelation times below which a chain is too short to tell its own length
MEMORY = 0.1  # share of the first arrangement still there at the end, above which a chain has not forgotten its start


@dataclass(frozen=True, eq=False)
class Chain:
    """What one run left behind.

    `packed` holds the snapshots, 1 bit a site for two species (`n_bits` planes otherwise);
    `features` (n, n_features) counts every term; `couplings` and `potential` say where it ran, `kernel` what ran it.
    """

    couplings: NDArray[np.float64]
    potential: NDArray[np.float64] | None
    packed: NDArray[np.uint8]
    features: NDArray[np.float64]
    n_sites: int
    acceptance: float
    moves: int
    kernel: str = "generic"

    @property
    def snapshots(self) -> NDArray[np.uint8]:
        """Species of every site of every snapshot, shape (n, n_sites)."""
        return unpack(self.packed, self.n_sites)

    def __len__(self) -> int:
        return len(self.features)


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
    labels = np.unpackbits(packed[0], axis=1, count=n_sites)
    for p, plane in enumerate(packed[1:], start=1):
        labels |= np.unpackbits(plane, axis=1, count=n_sites) << p
    return labels


def joined(parts: Sequence[Chain]) -> Chain:
    """One chain of its parts, each of which began where the one before it ended."""
    moves = sum(c.moves for c in parts)
    return replace(
        parts[0],
        packed=np.concatenate([c.packed for c in parts], axis=1),
        features=np.concatenate([c.features for c in parts]),
        acceptance=float(sum(c.acceptance * c.moves for c in parts) / max(moves, 1)),
        moves=moves,
    )


@dataclass(frozen=True)
class Verdict:
    """Whether a chain may be believed, and why not.

    times : autocorrelation times that the chain spans (the slowest feature's); memory : see :func:`memory`;
    drift : see :func:`drift`, the largest of the features; reasons : empty where nothing is wrong.
    """

    times: float
    memory: float
    drift: float
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.reasons


def judge(chain: Chain, kinds: ArrayLike | None = None) -> Verdict:
    """Judge whether a chain samples equilibrium, from its features and its snapshots.

    Parameters
    ----------
    chain : Chain
    kinds : array_like of int, shape (n_sites,), optional
        Sites that no symmetry makes alike (sublattices, layers of a film): see :func:`site_kinds`.

    Returns
    -------
    Verdict

    Notes
    -----
    Measured on 240 records. A series as slow as a twelfth of the chain passes for fast in nine of ten
    cases by its autocorrelation time alone, so features do not suffice; in separated and ordered phases the
    arrangement that stays is what tells. Triangular alloy at x = 1/2 in 26 x 26 cells, 480 sweeps: no chain of 80 was flagged at
    0.2 and 0.4 kT, all of 120 were at 0.62 kT and above; by the autocorrelation time alone 10 % were. False alarms in equilibrium
    come from the time and the drift, 1 % at most where the chain spans 40 times or more.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> from bayesatoms.montecarlo.engine import run_chain
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.triangular(), species=("A", "B"))
    >>> compiled = h.compile(h.lattice.supercell((16, 16)))
    >>> start, seed = np.repeat([0, 1], 128), np.random.SeedSequence(1)
    >>> [judge(run_chain(compiled, [w], start, samples=200, seed=seed)).ok for w in (0.2, 1.0)]
    [True, False]
    """
    columns = [c for c in chain.features.T if c.std() > 0]
    cuts = [equilibration(c) for c in columns]
    cut = max(cuts, default=0)
    times = min((len(chain) / autocorrelation_time(c[cut:]) for c in columns), default=float(len(chain)))
    kept, wander = memory(chain.snapshots[cut:], kinds), max((drift(c[cut:]) for c in columns), default=0.0)
    reasons = []
    if times < SLOW:
        reasons.append(f"it spans {times:.0f} autocorrelation times, expected at least {SLOW}")
    if kept > MEMORY:
        reasons.append(f"{kept:.0%} of the arrangement of its first part is still there in its last, expected at most {MEMORY:.0%}")
    if wander > DRIFT:
        reasons.append(f"its eighths differ by {wander:.0f} times the variance that they allow themselves, expected at most {DRIFT:g}")
    return Verdict(times, kept, wander, tuple(reasons))


def memory(snapshots: ArrayLike, kinds: ArrayLike | None = None) -> float:
    """Share of a crystal's variance by which the first and the last two fifths of a chain agree, site by site.

    Sites alike by symmetry have one mean in equilibrium; as long as some sites keep more of one species than
    others do, the chain sits in one arrangement of many: domains, a sublattice of an ordered phase.

    Parameters
    ----------
    snapshots : array_like of int, shape (n, n_sites)
        Species of every site.
    kinds : array_like of int, shape (n_sites,), optional
        Sites are compared with those of their kind.

    Returns
    -------
    float
        0 where the start is forgotten (it scatters to both sides), 1 where nothing moved. It is the
        Edwards-Anderson overlap (J. Phys. F 5, 965, 1975) of two parts of one run.

    Examples
    --------
    >>> frozen = np.tile([0, 1, 1, 0], (10, 1))
    >>> memory(frozen), memory(frozen, [0, 1, 1, 0])
    (1.0, 0.0)
    """
    labels = np.asarray(snapshots)
    kinds = np.zeros(labels.shape[1], dtype=int) if kinds is None else np.asarray(kinds)
    part, share, total = max(1, 2 * len(labels) // 5), 0.0, 0.0
    size = np.bincount(kinds)
    for species in range(int(labels.max(initial=0)) + 1):
        here = labels == species
        mean = (np.bincount(kinds, here.mean(axis=0)) / np.maximum(size, 1))[kinds]
        share += float((here[:part].mean(axis=0) - mean) @ (here[-part:].mean(axis=0) - mean))
        total += float(mean @ (1 - mean))
    return share / total if total > 0 else 0.0


def site_kinds(supercell: Supercell) -> NDArray[np.int64]:
    """Number of each site's kind: its sublattice, and its layer along axes that do not repeat; shape (n_sites,).

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> site_kinds(Lattice.honeycomb().supercell((2, 1))).tolist()
    [0, 1, 0, 1]
    """
    open_axes = [a for a, periodic in enumerate(supercell.periodic) if not periodic]
    columns, sizes = [*open_axes, -1], [*(supercell.shape[a] for a in open_axes), len(supercell.lattice.basis)]
    return np.unique(np.ravel_multi_index(tuple(supercell.sites[:, columns].T), sizes), return_inverse=True)[1].reshape(-1)


def disagreement(one: Chain, two: Chain) -> float:
    """Largest difference of two chains' mean features, in its standard errors: for two starts at the same couplings.

    A chain stuck from its start looks the same all along; only another start tells. Above 5 at least one of
    them is not in equilibrium; two chains that span 20 autocorrelation times or more exceed it in under 2 % of cases.

    Raises
    ------
    InputError
        If the chains ran at different couplings.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> from bayesatoms.montecarlo.engine import run_chain
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.triangular(), species=("A", "B"))
    >>> compiled = h.compile(h.lattice.supercell((16, 16)))
    >>> hot, cold = np.random.default_rng(0).permutation(256) % 2, np.repeat([0, 1], 128)
    >>> chains = [run_chain(compiled, [0.2], s, samples=200, seed=np.random.SeedSequence(i)) for i, s in enumerate((hot, cold))]
    >>> disagreement(*chains) < 5
    True
    """
    if not np.array_equal(one.couplings, two.couplings):
        raise InputError(f"chains at {one.couplings.tolist()} and {two.couplings.tolist()} given; expected the same couplings")
    worst = 0.0
    for a, b in zip(one.features.T, two.features.T, strict=True):
        means, variances = [], []
        for series in (a, b):
            kept = series[equilibration(series) :]
            means.append(kept.mean())
            variances.append(kept.var(ddof=1) * autocorrelation_time(kept) / len(kept))
        if means[0] != means[1]:
            worst = max(worst, abs(means[0] - means[1]) / max(np.sqrt(sum(variances)), 1e-300))
    return float(worst)
