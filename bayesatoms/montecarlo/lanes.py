"""The lanes kernel: many chains of one crystal side by side, each with its own couplings and random numbers.

Occupations lie as bytes [site][lane], so one load serves a register full of chains. All lanes try the same
sites; each decides by its own random number. That leaves them independent: whatever the sites, each lane's move
keeps its own distribution, so lanes in equilibrium have the product distribution at any two times. Lanes that began
alike part, since each lets a sixteenth of its moves pass at random (without that, free atoms would move alike for
ever); those moves are not counted. The sites follow from a generator that all lanes of a crystal share and never
from which lanes run together, so a chain is the same in any company.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import int64, njit, uint64
from numpy.typing import NDArray

from ..generators import State, below, generator_state, next_word, uniform
from .chains import Chain
from .ensembles import Canonical
from .monomials import Expansion
from .moves import Shape, count, flip, swap
from .vectors import TRIED, aligned
from .work import LOG2E, Couplings, Kernel, Labels, Seeds, Work

_jit = njit(nogil=True, cache=True)
_BLOCK = 128  # moves between two readings of the byte counters: fewer than 256
WIDTHS = (16, 32, 64)  # lanes: more would not fit the caches
MOST = WIDTHS[-1]

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]
Floats = NDArray[np.float32]


@_jit
def _empty(tally: Bytes, totals: NDArray[np.int64]) -> None:
    """Move the byte counters to the long ones."""
    for k in range(tally.shape[0]):
        for r in range(tally.shape[1]):
            totals[k, r] += tally[k, r]
            tally[k, r] = 0


@_jit
def _record(occupied, rows, kind, sums, row, packed, counts, alone, shape):
    """Write bit-packed snapshots (lanes, samples, bytes), products (samples, families, lanes) and atoms (samples, kinds, lanes)."""
    lanes, n = packed.shape[0], len(kind)
    sums[:] = 0
    for site in range(n):
        count(occupied, rows, site, sums, shape)
    for f in range(counts.shape[1]):
        for r in range(lanes):
            counts[row, f, r] = sums[f, r]
    few = np.zeros((alone.shape[1], lanes), dtype=np.uint8)
    for low in range(0, n, _BLOCK):
        few[:] = 0
        for site in range(low, min(low + _BLOCK, n)):
            mine, at = few[kind[site]], occupied[site * lanes : (site + 1) * lanes]
            for r in range(lanes):
                mine[r] += at[r]
        for k in range(len(few)):
            for r in range(lanes):
                alone[row, k, r] += few[k, r]
    words, eight = occupied.view(np.uint64), np.zeros(lanes, dtype=np.uint8)
    bits, width = eight.view(np.uint64), lanes // 8
    for byte in range(packed.shape[2]):
        bits[:] = 0
        for site in range(8 * byte, min(8 * byte + 8, n)):
            for w in range(width):
                bits[w] |= words[site * width + w] << uint64(7 - (site & 7))
        for r in range(lanes):
            packed[r, row, byte] = eight[r]


@cache
def swaps(shape: str) -> Callable[..., None]:
    """The canonical kernel of a shape; compiled once and kept on disk."""

    @_jit
    def run(
        occupied: Bytes,
        rows: Words,
        kind: NDArray[np.int64],
        members: NDArray[np.int64],
        first: NDArray[np.int64],
        weights: Floats,
        constants: Floats,
        state: Words,
        tally: Bytes,
        sites: State,
        burn: int,
        interval: int,
        sums: Words,
        packed: Bytes,
        counts: NDArray[np.int64],
        alone: NDArray[np.int64],
        totals: NDArray[np.int64],
    ) -> None:
        """Canonical chains: pick two sites of one group, the same in all lanes, and swap them where they differ.

        `members` lists the sites group by group and ``first[g]:first[g + 1]`` are those of group g. `burn` and
        `interval` count picks; `totals` (2, lanes) gets the unlike pairs met and those swapped, after the burn-in.
        """
        n, lanes, groups = len(kind), tally.shape[1], len(first) - 1
        for row in range(-1, packed.shape[1]):
            left = burn if row < 0 else interval
            while left > 0:
                for _ in range(min(left, _BLOCK)):
                    if groups == 1:
                        word = next_word(sites)
                        i = int64(((word >> uint64(32)) * uint64(n)) >> uint64(32))
                        j = int64(((word & uint64(0xFFFFFFFF)) * uint64(n)) >> uint64(32))
                    else:
                        p = below(sites, n)
                        g = np.searchsorted(first, p, side="right") - 1
                        i, j = members[p], members[first[g] + below(sites, first[g + 1] - first[g])]
                    swap(occupied, rows, i, j, kind[i] * lanes, kind[j] * lanes, weights, constants, state, tally, shape)
                left -= _BLOCK
                _empty(tally, totals)
            if row < 0:
                totals[:] = 0
            else:
                _record(occupied, rows, kind, sums, row, packed, counts, alone, shape)

    return run


@cache
def flips(shape: str) -> Callable[..., None]:
    """The semi-grand kernel of a shape; compiled once and kept on disk."""

    @_jit
    def run(
        occupied: Bytes,
        rows: Words,
        kind: NDArray[np.int64],
        weights: Floats,
        constants: Floats,
        state: Words,
        tally: Bytes,
        held: Floats,
        sites: State,
        burn: int,
        interval: int,
        sums: Words,
        packed: Bytes,
        counts: NDArray[np.int64],
        alone: NDArray[np.int64],
        totals: NDArray[np.int64],
    ) -> None:
        """Semi-grand chains: pick a site, the same in all lanes, and turn its atom.

        `held` (2, lanes) holds the atoms of species 1 beyond the target and the stiffness kappa that keeps them
        there (as -kappa log2 e), 0 in the free ensemble. `totals` (2, lanes) gets the attempts and the flips.
        """
        n, lanes = len(kind), tally.shape[1]
        for row in range(-1, packed.shape[1]):
            left = burn if row < 0 else interval
            while left > 0:
                for _ in range(min(left, _BLOCK)):
                    i = below(sites, n)
                    flip(occupied, rows, i, kind[i] * lanes, weights, constants, held, state, tally, shape)
                left -= _BLOCK
                _empty(tally, totals)
            if row < 0:
                totals[:] = 0
            else:
                totals[0] += interval
                _record(occupied, rows, kind, sums, row, packed, counts, alone, shape)

    return run


@cache
def exchanges(shape: str) -> Callable[..., int]:
    """The kernel of a ladder: canonical chains side by side that exchange their couplings."""

    @_jit
    def run(
        occupied: Bytes,
        rows: Words,
        kind: NDArray[np.int64],
        weights: Floats,
        constants: Floats,
        state: Words,
        tally: Bytes,
        sites: State,
        products: NDArray[np.float64],
        single: NDArray[np.float64],
        parent: NDArray[np.int64],
        parity: NDArray[np.int64],
        far: int,
        warm: int,
        legs: int,
        leg: int,
        sums: Words,
        packed: Bytes,
        counts: NDArray[np.int64],
        alone: NDArray[np.int64],
        totals: NDArray[np.int64],
        exchanged: NDArray[np.int64],
    ) -> int:
        """As :func:`~bayesatoms.montecarlo.generic.exchange_chains`: lanes are replicas, and rungs move among them.

        `products` (rungs, families) and `single` (rungs, kinds) are the energies, in kT, of one product counted from an
        occupied site and of one atom; records and `totals` go to the rung.
        """
        n, lanes, rungs = len(kind), tally.shape[1], len(parent)
        at, heading = np.arange(rungs), np.zeros(rungs, dtype=np.int64)
        moved, shot = np.zeros((2, lanes), dtype=np.int64), np.zeros((lanes, 1, packed.shape[2]), dtype=np.uint8)
        met, atoms = np.zeros((1, counts.shape[1], lanes), dtype=np.int64), np.zeros((1, alone.shape[1], lanes), dtype=np.int64)
        trips, turn = 0, 0
        for row in range(-1, packed.shape[1]):
            for _ in range(warm if row < 0 else legs):
                left, moved[:] = leg, 0
                while left > 0:
                    for _ in range(min(left, _BLOCK)):
                        word = next_word(sites)
                        i = int64(((word >> uint64(32)) * uint64(n)) >> uint64(32))
                        j = int64(((word & uint64(0xFFFFFFFF)) * uint64(n)) >> uint64(32))
                        swap(occupied, rows, i, j, kind[i] * lanes, kind[j] * lanes, weights, constants, state, tally, shape)
                    left -= _BLOCK
                    _empty(tally, moved)
                atoms[:] = 0
                _record(occupied, rows, kind, sums, 0, shot, met, atoms, shape)
                for r in range(rungs):
                    if row >= 0:
                        totals[0, r] += moved[0, at[r]]
                        totals[1, r] += moved[1, at[r]]
                for r in range(1, rungs):
                    if parity[r] != turn:
                        continue
                    other = parent[r]
                    a, b = at[r], at[other]
                    gain = 0.0
                    for f in range(products.shape[1]):
                        gain += (products[r, f] - products[other, f]) * (met[0, f, a] - met[0, f, b])
                    for k in range(single.shape[1]):
                        gain += (single[r, k] - single[other, k]) * (atoms[0, k, a] - atoms[0, k, b])
                    success = gain >= 0.0 or uniform(sites) < np.exp(gain)
                    if success:
                        at[r], at[other] = b, a
                        for f in range(weights.shape[0]):
                            weights[f, a], weights[f, b] = weights[f, b], weights[f, a]
                        for k in range(constants.shape[0]):
                            constants[k, a], constants[k, b] = constants[k, b], constants[k, a]
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
                    packed[r, row] = shot[at[r], 0]
                    counts[row, :, r] = met[0, :, at[r]]
                    alone[row, :, r] = atoms[0, :, at[r]]
        return trips

    return run


@dataclass(frozen=True, eq=False)
class Layout:
    """An expansion as the lanes kernel reads it: rows of neighbours (n_sites, slots), a shape's text, and its row of zeros."""

    rows: Words
    text: str

    @classmethod
    def of(cls, expansion: Expansion, lanes: int, *, held: bool = False) -> Layout:
        """The layout for so many lanes, whose composition may be held near a target."""
        n = len(expansion.kind)
        parts = [f.sites.reshape(n, -1) for f in expansion.families]
        rows = np.concatenate(parts, axis=1) if parts else np.zeros((n, 0), dtype=np.int64)
        text = str(Shape(lanes, len(expansion.constants) > 1, held, expansion.shape))
        return cls(np.ascontiguousarray(rows * lanes, dtype=np.uint32), text)


class Lanes(Kernel):
    """Chains of one crystal side by side."""

    name = "lanes"

    def refuses(self, work: Work, couplings: Couplings) -> str | None:
        if work.compiled.n_species != 2:
            return f"there are {work.compiled.n_species} species; it takes two"
        if any(count > 255 for _, count in work.expansion.shape):
            return "a site meets more than 255 clusters of one kind"
        return None

    def run(self, work: Work, couplings: Couplings, labels: Labels, seeds: Seeds) -> list[Chain]:
        found = []
        for first in range(0, len(couplings), MOST):
            some = slice(first, first + MOST)
            found += self._batch(work, couplings[some], labels[some], seeds[some])
        return found

    def _batch(self, work: Work, couplings: Couplings, labels: Labels, seeds: Seeds) -> list[Chain]:
        bench, (burn, interval) = Bench(work, couplings, labels, seeds), work.moves(labels[0])
        if isinstance(work.ensemble, Canonical):
            sites, first = work.ensemble.sites(labels.shape[1])
            unlike = share_unlike(labels[0], sites, first)
            burn, interval = round(burn / unlike / TRIED), max(1, round(interval / unlike / TRIED))
            swaps(bench.layout.text)(*bench.crystal, sites, first, *bench.model, bench.sites, burn, interval, *bench.records)
        else:
            burn, interval = round(burn / TRIED), max(1, round(interval / TRIED))
            held = aligned((2, bench.width), np.float32)
            held[1] = -LOG2E * work.stiffness
            flips(bench.layout.text)(*bench.crystal, *bench.model, held, bench.sites, burn, interval, *bench.records)
        recorded = bench.totals[0] * TRIED
        return bench.chains(np.round(recorded * (1 + burn / max(interval * work.samples, 1))).astype(int).tolist())


def exchange(
    work: Work,
    couplings: Couplings,
    labels: Labels,
    seeds: Seeds,
    tree: tuple[NDArray[np.int64], NDArray[np.int64], int],
    lengths: tuple[int, int, int],
) -> tuple[list[Chain], NDArray[np.int64], int]:
    """Canonical chains of a ladder of at most 64 rungs.

    Parameters
    ----------
    work : Work
    couplings, labels, seeds
        One a rung.
    tree : tuple
        Parent of each rung (rung 0 is the root), parity of its depth, and the rung that is farthest.
    lengths : tuple of int
        Legs before the first record, legs between records, swaps of unlike atoms in a leg.

    Returns
    -------
    chains : list of Chain
    exchanged : ndarray of int, shape (rungs, 2)
        Attempts and successes of each rung with its parent.
    trips : int
        From the root to the farthest rung and back.
    """
    bench, e, (warm, legs, leg) = Bench(work, couplings, labels, seeds), work.expansion, lengths
    picks = max(1, round(leg / TRIED / share_unlike(labels[0], *work.ensemble.sites(labels.shape[1]))))
    products = e.weights(couplings) / (1 + np.array([f.degree for f in e.families]))
    exchanged = np.zeros((len(couplings), 2), dtype=np.int64)
    single = couplings @ e.constants.T
    trips = exchanges(bench.layout.text)(
        *bench.crystal, *bench.model, bench.sites, products, single, *tree, warm, legs, picks, *bench.records, exchanged
    )
    return bench.chains([leg * (warm + legs * work.samples)] * len(couplings)), exchanged, int(trips)


class Bench:
    """The arrays of some chains side by side; lanes without a chain idle on an empty crystal."""

    def __init__(self, work: Work, couplings: Couplings, labels: Labels, seeds: Seeds) -> None:
        e, used, n = work.expansion, len(couplings), labels.shape[1]
        self.work, self.couplings = work, couplings
        self.width = next(w for w in WIDTHS if w >= used)
        self.layout = Layout.of(e, self.width, held=work.stiffness > 0)
        occupied = aligned((n + 1, self.width), np.uint8)  # the last row stays empty
        occupied[:n, :used] = labels.T
        weights = aligned((max(1, len(e.families)), self.width), np.float32)
        weights[: len(e.families), :used] = -LOG2E * e.weights(couplings).T
        constants = aligned((len(e.constants), self.width), np.float32)
        constants[:, :used] = -LOG2E * (e.constants @ couplings.T + work.potential[0] - work.potential[1])
        state = aligned((4, self.width), np.uint32)
        state[:, :used] = np.array([seed.generate_state(4, np.uint32) for seed in seeds]).T
        state[:, used:] = 1
        self.crystal = (occupied.reshape(-1), self.layout.rows, e.kind)
        self.model = (weights, constants, state, aligned((2, self.width), np.uint8))
        self.sites = generator_state(work.sites)
        self.packed = np.zeros((self.width, work.samples, (n + 7) // 8), dtype=np.uint8)
        self.counts = np.zeros((work.samples, len(e.families), self.width), dtype=np.int64)
        self.alone = np.zeros((work.samples, len(e.constants), self.width), dtype=np.int64)
        self.totals = np.zeros((2, self.width), dtype=np.int64)
        self.records = (aligned((max(1, len(e.families)), self.width), np.uint32), self.packed, self.counts, self.alone, self.totals)

    def chains(self, moves: Sequence[int]) -> list[Chain]:
        """What was recorded, chain by chain."""
        features = self.work.expansion.features(np.moveaxis(self.counts, 2, 0), np.moveaxis(self.alone, 2, 0))
        share, n = self.totals[1] / np.maximum(self.totals[0] * TRIED, 1), len(self.work.expansion.kind)
        return [
            Chain(w, self.work.chemical, self.packed[r][None], features[r], n, float(share[r]), moves[r], Lanes.name)
            for r, w in enumerate(self.couplings)
        ]


def share_unlike(labels: NDArray[np.uint8], sites: NDArray[np.int64], first: NDArray[np.int64]) -> float:
    """Share of the pairs picked (the second in the group of the first) whose atoms differ."""
    share = 0.0
    for a, b in itertools.pairwise(first):
        x = float(labels[sites[a:b]].mean())
        share += 2 * x * (1 - x) * (b - a) / len(labels)
    return share
