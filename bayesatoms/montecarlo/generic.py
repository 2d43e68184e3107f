"""The Monte Carlo kernels: compiled loops over plain arrays, for any Hamiltonian.

A configuration is kept twice: the species of every site and the decoration number of every cluster
instance. Changing a site changes the numbers of the few instances it belongs to, so the energy
change of a move is a handful of table look-ups, whatever the terms, the species and the lattice are.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..generators import State, below, generator_state, uniform
from ..hamiltonian import Compiled
from .chains import Chain, pack
from .ensembles import Canonical
from .work import Couplings, Kernel, Labels, Seeds, Work

KERNEL_VERSION = 2  # part of every stored chain's identity: raise it when a kernel's output changes
EXCHANGE_VERSION = 2  # the same for chains of a ladder

Ints = NDArray[np.int64]
Index = NDArray[np.uint32]  # unsigned: signed indices cost a test for negative ones each
Codes = NDArray[np.uint32]
Floats = NDArray[np.float64]

_jit = njit(nogil=True, cache=True)


@_jit
def energy_change(site: int, step: int, codes: Codes, start: Index, touch: Index, stride: Index, energies: Floats) -> float:
    """Energy change if `step` were added to the species of a site."""
    change = 0.0
    for entry in range(np.uint32(start[site]), np.uint32(start[site + 1])):
        old = codes[touch[entry]]
        change += energies[np.uint32(old + np.uint32(step) * stride[entry])] - energies[old]  # modulo 2^32
    return change


@_jit
def turn(site: int, step: int, codes: Codes, start: Index, touch: Index, stride: Index) -> None:
    """Add `step` to the species of a site in the codes of its clusters."""
    for entry in range(np.uint32(start[site]), np.uint32(start[site + 1])):
        codes[touch[entry]] += np.uint32(np.uint32(step) * stride[entry])


@_jit
def _swaps(
    count: int,
    labels: Labels,
    codes: Codes,
    slots: Ints,
    group: Ints,
    bounds: Ints,
    near: NDArray[np.bool_],
    start: Index,
    touch: Index,
    stride: Index,
    energies: Floats,
    state: State,
) -> int:
    """So many attempts to swap two unlike atoms of one group of sites; returns how many were accepted.

    `slots` lists the sites group by group and in it species by species; ``bounds[g, s]:bounds[g, s + 1]`` are those
    of species s. A move picks a slot at random and then one of the slots of all other species in its group: the
    reverse move picks the same two slots with the same probability, so detailed balance is exact. Sites whose
    numbers differ by d (modulo their number) meet in no cluster unless ``near[d]``.
    """
    accepted, n = 0, len(labels)
    for _ in range(count):
        p = below(state, n)
        i = slots[p]
        a, here = np.int64(labels[i]), bounds[group[i]]
        same = here[a + 1] - here[a]
        others = here[-1] - here[0] - same
        if others == 0:
            continue
        q = here[0] + below(state, others)
        if q >= here[a]:
            q += same
        j = slots[q]
        step = np.int64(labels[j]) - a
        change = energy_change(i, step, codes, start, touch, stride, energies)
        if near[j - i if j >= i else j - i + n]:
            turn(i, step, codes, start, touch, stride)
            change += energy_change(j, -step, codes, start, touch, stride, energies)
            turn(i, -step, codes, start, touch, stride)
        else:
            change += energy_change(j, -step, codes, start, touch, stride, energies)
        if change <= 0.0 or uniform(state) < np.exp(-change):
            turn(i, step, codes, start, touch, stride)
            turn(j, -step, codes, start, touch, stride)
            labels[i], labels[j] = labels[j], labels[i]
            slots[p], slots[q] = j, i
            accepted += 1
    return accepted


@_jit
def _record(row: int, labels: Labels, codes: Codes, met: Ints, snapshots: Labels, seen: Ints) -> None:
    """Keep a snapshot, and how often every code of every kind of cluster occurs."""
    for site in range(len(labels)):
        snapshots[row, site] = labels[site]
    met[:] = 0
    for instance in range(len(codes)):
        met[codes[instance]] += 1
    for code in range(len(met)):
        seen[row, code] = met[code]


@_jit
def swap_chain(
    labels: Labels,
    codes: Codes,
    slots: Ints,
    group: Ints,
    bounds: Ints,
    near: NDArray[np.bool_],
    start: Index,
    touch: Index,
    stride: Index,
    energies: Floats,
    burn: int,
    interval: int,
    state: State,
    snapshots: Labels,
    seen: Ints,
) -> int:
    """Canonical chain, see :func:`_swaps`; returns the number of accepted moves after the burn-in."""
    accepted, met = 0, np.zeros(seen.shape[1], dtype=np.int64)
    for row in range(-1, len(snapshots)):
        done = _swaps(burn if row < 0 else interval, labels, codes, slots, group, bounds, near, start, touch, stride, energies, state)
        if row >= 0:
            accepted += done
            _record(row, labels, codes, met, snapshots, seen)
    return accepted


@_jit
def flip_chain(
    labels: Labels,
    codes: Codes,
    start: Index,
    touch: Index,
    stride: Index,
    energies: Floats,
    potential: Floats,
    stiff: float,
    surplus: int,
    burn: int,
    interval: int,
    state: State,
    snapshots: Labels,
    seen: Ints,
) -> int:
    """Semi-grand canonical chain: turn an atom into another species with probability min(1, exp(-dE + dmu)).

    `potential[s]` is the chemical potential of species s in kT; the sampled probability is
    exp(-E + sum_i potential[labels_i] - stiff surplus^2) / Xi, `surplus` being the atoms of species 1 beyond a target
    (for two species). Returns the number of accepted moves after the burn-in.
    """
    accepted, n, k, met = 0, len(labels), len(potential), np.zeros(seen.shape[1], dtype=np.int64)
    for row in range(-1, len(snapshots)):
        for _ in range(burn if row < 0 else interval):
            i = below(state, n)
            a = np.int64(labels[i])
            b = (a + 1 + below(state, k - 1)) % k
            change = potential[a] - potential[b] + energy_change(i, b - a, codes, start, touch, stride, energies)
            change += stiff * (2 * (b - a) * surplus + 1)
            if change <= 0.0 or uniform(state) < np.exp(-change):
                turn(i, b - a, codes, start, touch, stride)
                labels[i] = b
                surplus += b - a
                accepted += row >= 0
        if row >= 0:
            _record(row, labels, codes, met, snapshots, seen)
    return accepted


@_jit
def exchange_chains(
    labels: Labels,
    codes: Codes,
    slots: Ints,
    group: Ints,
    bounds: Ints,
    near: NDArray[np.bool_],
    start: Index,
    touch: Index,
    stride: Index,
    tables: Floats,
    energies: Floats,
    couplings: Floats,
    parent: Ints,
    parity: Ints,
    far: int,
    warm: int,
    legs: int,
    leg: int,
    state: State,
    snapshots: Labels,
    features: Floats,
    accepted: Ints,
    exchanged: Ints,
) -> int:
    """Canonical chains at several couplings, one a rung, that exchange their configurations.

    Replicas (labels, codes, slots, one a row) sit on rungs (energies, couplings, one a row). After
    every `leg` swap moves of each replica a rung of even parity, next time one of odd parity, exchanges
    with its parent in the tree of rungs (rung 0 is the root) with probability
    min(1, exp((w_i - w_j).(F_i - F_j))): the product of the rungs' distributions stays as it is.
    `warm` legs come before the first record, `legs` before each. Records go to the rung,
    ``snapshots[rung, row]`` and ``features[rung, row]``; `accepted` counts the moves of each rung and
    ``exchanged[rung]`` the (attempts, successes) with its parent, after the warm legs. Returns the round
    trips of all replicas, from the root to rung `far` and back.
    """
    rungs, n_features = couplings.shape
    at, heading, counted = np.arange(rungs), np.zeros(rungs, np.int64), np.zeros((rungs, n_features))
    trips, turn = 0, 0
    for row in range(-1, snapshots.shape[1]):
        for _ in range(warm if row < 0 else legs):
            for r in range(rungs):
                a = at[r]
                done = _swaps(leg, labels[a], codes[a], slots[a], group, bounds, near, start, touch, stride, energies[r], state)
                if row >= 0:
                    accepted[r] += done
            for a in range(rungs):
                for f in range(n_features):
                    counted[a, f] = 0.0
                for instance in range(codes.shape[1]):
                    for f in range(n_features):
                        counted[a, f] += tables[codes[a, instance], f]
            for r in range(1, rungs):
                if parity[r] != turn:
                    continue
                other = parent[r]
                a, b = at[r], at[other]
                gain = 0.0
                for f in range(n_features):
                    gain += (couplings[r, f] - couplings[other, f]) * (counted[a, f] - counted[b, f])
                success = gain >= 0.0 or uniform(state) < np.exp(gain)
                if success:
                    at[r], at[other] = b, a
                if row >= 0:
                    exchanged[r, 0] += 1
                    exchanged[r, 1] += success
            turn = 1 - turn
            first, last = at[0], at[far]
            if heading[last] == 1:
                heading[last] = 2
            if heading[first] == 2 and row >= 0:
                trips += 1
            heading[first] = 1
        if row >= 0:
            for r in range(rungs):
                a = at[r]
                for site in range(labels.shape[1]):
                    snapshots[r, row, site] = labels[a, site]
                for f in range(n_features):
                    features[r, row, f] = counted[a, f]
    return trips


_CLUSTERS: WeakKeyDictionary[Compiled, Clusters] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Clusters:
    """A compiled Hamiltonian in short numbers, the place in the tables added to every decoration number."""

    base: Index
    start: Index
    touch: Index
    stride: Index
    near: NDArray[np.bool_]

    @classmethod
    def of(cls, compiled: Compiled) -> Clusters:
        """Those of a Hamiltonian; kept for as long as it lives."""
        if compiled not in _CLUSTERS:
            near = np.zeros(compiled.n_sites, dtype=bool)
            for rows in compiled.members:
                for i, j in itertools.permutations(range(rows.shape[1]), 2):
                    near[(rows[:, j] - rows[:, i]) % compiled.n_sites] = True
            short = (a.astype(np.uint32) for a in (compiled.base, compiled.start, compiled.touch, compiled.stride))
            _CLUSTERS[compiled] = cls(*short, near)
        return _CLUSTERS[compiled]

    def codes(self, compiled: Compiled, labels: Labels) -> Codes:
        """The code of every cluster: its row in the tables."""
        return self.base + compiled.codes(labels).astype(np.uint32)


def arrange(labels: Labels, sites: Ints, first: Ints, n_species: int) -> tuple[Ints, Ints, Ints]:
    """Sites group by group and species by species, the group of each site, and where each species of each group begins.

    `sites` lists them by group, ``first[g]:first[g + 1]`` those of group g.

    Examples
    --------
    >>> slots, group, bounds = arrange(np.array([1, 0, 1, 1], dtype=np.uint8), np.array([0, 2, 1, 3]), np.array([0, 2, 4]), 2)
    >>> slots.tolist(), group.tolist(), bounds.tolist()
    ([0, 2, 1, 3], [0, 1, 0, 1], [[0, 0, 2], [2, 3, 4]])
    """
    group = np.empty(len(labels), dtype=np.int64)
    group[sites] = np.repeat(np.arange(len(first) - 1), np.diff(first))
    counts = np.array([np.bincount(labels[sites[a:b]], minlength=n_species) for a, b in itertools.pairwise(first)])
    bounds = first[:-1, None] + np.concatenate([np.zeros((len(counts), 1), dtype=np.int64), counts.cumsum(axis=1)], axis=1)
    return np.lexsort((labels, group)), group, bounds


def exchange(
    work: Work,
    couplings: Couplings,
    labels: Labels,
    seed: np.random.SeedSequence,
    tree: tuple[Ints, Ints, int],
    lengths: tuple[int, int, int],
) -> tuple[list[Chain], Ints, int]:
    """Canonical chains of a ladder: as :func:`bayesatoms.montecarlo.lanes.exchange`, for any crystal."""
    compiled, (warm, legs, leg) = work.compiled, lengths
    crystal, everywhere, shape = Clusters.of(compiled), Canonical().sites(labels.shape[1]), (len(couplings), work.samples)
    _, group, bounds = arrange(labels[0], *everywhere, compiled.n_species)
    snapshots, features = np.empty((*shape, labels.shape[1]), dtype=np.uint8), np.zeros((*shape, compiled.n_features))
    accepted, exchanged = np.zeros(len(couplings), dtype=np.int64), np.zeros((len(couplings), 2), dtype=np.int64)
    trips = exchange_chains(
        labels, np.array([crystal.codes(compiled, row) for row in labels]), np.argsort(labels, axis=1, kind="stable"),
        group, bounds, crystal.near, crystal.start, crystal.touch, crystal.stride, compiled.tables, couplings @ compiled.tables.T,
        couplings, *tree, warm, legs, leg, generator_state(seed), snapshots, features, accepted, exchanged,
    )  # fmt: skip
    attempted = leg * legs * work.samples
    found = [
        Chain(w, None, pack(s, compiled.n_species), f, labels.shape[1], float(a / max(attempted, 1)), attempted + warm * leg)
        for w, s, f, a in zip(couplings, snapshots, features, accepted, strict=True)
    ]
    return found, exchanged, int(trips)


class Generic(Kernel):
    """Any Hamiltonian, one chain after another."""

    name = "generic"

    def refuses(self, work: Work, couplings: Couplings) -> str | None:
        return None

    def run(self, work: Work, couplings: Couplings, labels: Labels, seeds: Seeds) -> list[Chain]:
        return [self._one(work, w, row, seed) for w, row, seed in zip(couplings, labels, seeds, strict=True)]

    def _one(self, work: Work, couplings, labels, seed) -> Chain:
        c, start = work.compiled, labels
        crystal = Clusters.of(c)
        labels, snapshots = start.copy(), np.empty((work.samples, len(start)), dtype=np.uint8)
        seen = np.zeros((work.samples, len(c.tables)), dtype=np.int64)
        burn, interval = work.moves(start)
        place, energies = (crystal.start, crystal.touch, crystal.stride), c.tables @ couplings
        tail = (burn, interval, generator_state(seed), snapshots, seen)
        if isinstance(work.ensemble, Canonical):
            slots, group, bounds = arrange(labels, *work.ensemble.sites(len(labels)), c.n_species)
            accepted = swap_chain(labels, crystal.codes(c, labels), slots, group, bounds, crystal.near, *place, energies, *tail)
        else:
            accepted = flip_chain(labels, crystal.codes(c, labels), *place, energies, work.potential, work.stiffness, 0, *tail)
        features = seen @ c.tables
        attempted = interval * work.samples
        return Chain(
            couplings,
            work.chemical,
            pack(snapshots, c.n_species),
            features,
            len(labels),
            accepted / max(attempted, 1),
            attempted + burn,
            self.name,
        )
