"""The lanes kernel: many chains of one crystal side by side, each with its own couplings and random numbers.

Occupations lie as bytes [site][lane], so one load serves a register full of chains. All lanes try the same
sites; each decides by its own random number. That leaves them independent: whatever the sites, each lane's move
keeps its own distribution, so lanes in equilibrium have the product distribution at any two times. The sites
follow from a generator that all lanes of a crystal share and never from which lanes run together, so a
chain is the same in any company.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import int64, njit, types, uint64
from numba.extending import intrinsic
from numpy.typing import NDArray

from ..generators import State, below, generator_state, next_word
from .chains import Chain
from .ensembles import Canonical
from .monomials import Expansion
from .vectors import LONG, Vectors, aligned, chunk
from .work import LOG2E, Couplings, Kernel, Labels, Seeds, Work

_jit = njit(nogil=True, cache=True)
_BLOCK = 128  # moves between two readings of the byte counters: fewer than 256
WIDTHS = (16, 32, 64)  # lanes: more would not fit the caches
MOST = WIDTHS[-1]

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]
Floats = NDArray[np.float32]


class _Shape(NamedTuple):
    """What a kernel's code depends on: lanes, whether kinds of sites differ, whether a composition is held, families."""

    lanes: int
    kinds: bool
    held: bool
    families: tuple[tuple[int, int], ...]  # (degree, count)

    @classmethod
    def read(cls, text: str) -> _Shape:
        lanes, kinds, held, *families = text.split()
        return cls(int(lanes), kinds == "kinds", held == "held", tuple((int(d), int(c)) for d, c in (f.split("x") for f in families)))

    def __str__(self) -> str:
        families = [f"{d}x{c}" for d, c in self.families]
        return " ".join([str(self.lanes), "kinds" if self.kinds else "alike", "held" if self.held else "free", *families])


class _Site:
    """One site of a move in the making: where its row and its neighbours' rows begin."""

    def __init__(self, builder: ir.IRBuilder, site: Any, rows: Any, slots: int, lanes: int) -> None:
        first = builder.mul(site, ir.Constant(LONG, slots))
        at = [builder.gep(rows, [builder.add(first, ir.Constant(LONG, k))]) for k in range(slots)]
        self.builder, self.row = builder, builder.mul(site, ir.Constant(LONG, lanes))
        self.neighbours = [builder.zext(builder.load(p), LONG) for p in at]

    def counts(self, v: Vectors, occupied: Any, lane: Any, families: tuple[tuple[int, int], ...]) -> list[Any]:
        """Products of each family that are 1, as bytes."""
        rows = iter(self.neighbours)
        found = []
        for degree, count in families:
            total = None
            for _ in range(count):
                product = None
                for _ in range(degree):
                    one = v.load(occupied, self.builder.add(next(rows), lane), v.bytes)
                    product = one if product is None else self.builder.and_(product, one)
                total = product if total is None else self.builder.add(total, product)
            found.append(total)
        return found


def _chunks(builder: ir.IRBuilder, lanes: int) -> list[tuple[Vectors, int]]:
    width = min(lanes, chunk())
    return [(Vectors(builder, width), first) for first in range(0, lanes, width)]


def _pointers(context: Any, builder: ir.IRBuilder, signature: Any, args: Any, which: tuple[int, ...]) -> list[Any]:
    return [context.make_array(signature.args[k])(context, builder, args[k]).data for k in which]


def _field(v: Vectors, counts: list[Any], weights: Any, lane: int, lanes: int) -> Any:
    """Sum of weight times count, in floats; None where there is no family."""
    total = None
    for f, count in enumerate(counts):
        weight, number = v.load(weights, f * lanes + lane, v.floats), v.to_float(count)
        total = v.builder.fmul(number, weight) if total is None else v.fma(number, weight, total)
    return total


@intrinsic
def _swap(typing, occupied, rows, i, j, kind_i, kind_j, weights, constants, state, tally, shape):
    """Exchange the atoms of sites i and j in every lane where they differ, with probability min(1, exp(-dE))."""
    if not isinstance(shape, types.StringLiteral):
        return None
    lanes, kinds, _, families = _Shape.read(shape.literal_value)

    def generate(context, b, signature, args):
        occupied, rows, weights, constants, state, tally = _pointers(context, b, signature, args, (0, 1, 6, 7, 8, 9))
        slots = sum(degree * count for degree, count in families)
        one, other = (_Site(b, args[k], rows, slots, lanes) for k in (2, 3))
        for v, lane in _chunks(b, lanes):
            here = ir.Constant(LONG, lane)
            at_i, at_j = b.add(one.row, here), b.add(other.row, here)
            old_i, old_j = v.load(occupied, at_i, v.bytes), v.load(occupied, at_j, v.bytes)
            unlike = b.xor(old_i, old_j)
            before = one.counts(v, occupied, here, families)
            v.store(b.xor(old_i, unlike), occupied, at_i)  # i first: j may be its neighbour
            after = other.counts(v, occupied, here, families)
            sign = b.neg(old_i)  # 0 where i gains the atom, all ones where it loses it
            steps = [b.sub(b.xor(b.sub(a, c), sign), sign) for a, c in zip(before, after, strict=True)]
            gain = _field(v, steps, weights, lane, lanes)
            if kinds:
                level = b.fsub(v.load(constants, b.add(args[4], here), v.floats), v.load(constants, b.add(args[5], here), v.floats))
                signed = b.select(b.icmp_unsigned("==", old_i, v.constant(v.bytes, 0)), level, b.fneg(level))
                gain = signed if gain is None else b.fadd(gain, signed)
            gain = v.constant(v.floats, 0.0) if gain is None else gain
            moved = b.and_(v.accepted(gain, state, lane, lanes), unlike)
            v.store(b.xor(old_j, moved), occupied, at_j)
            v.store(b.xor(old_i, moved), occupied, at_i)
            for row, counted in enumerate((unlike, moved)):
                v.store(b.add(v.load(tally, row * lanes + lane, v.bytes), counted), tally, row * lanes + lane)
        return context.get_dummy_value()

    return types.void(occupied, rows, i, j, kind_i, kind_j, weights, constants, state, tally, shape), generate


@intrinsic
def _flip(typing, occupied, rows, i, kind, weights, constants, held, state, tally, shape):
    """Turn the atom of site i in every lane, with probability min(1, exp(-dE + dmu - d(kappa surplus^2)))."""
    if not isinstance(shape, types.StringLiteral):
        return None
    lanes, _, with_target, families = _Shape.read(shape.literal_value)

    def generate(context, b, signature, args):
        occupied, rows, weights, constants, held, state, tally = _pointers(context, b, signature, args, (0, 1, 4, 5, 6, 7, 8))
        site = _Site(b, args[2], rows, sum(degree * count for degree, count in families), lanes)
        for v, lane in _chunks(b, lanes):
            here = ir.Constant(LONG, lane)
            at = b.add(site.row, here)
            old = v.load(occupied, at, v.bytes)
            empty = b.icmp_unsigned("==", old, v.constant(v.bytes, 0))
            field = v.load(constants, b.add(args[3], here), v.floats)
            found = _field(v, site.counts(v, occupied, here, families), weights, lane, lanes)
            field = field if found is None else b.fadd(field, found)
            if with_target:
                surplus, stiff = v.load(held, lane, v.floats), v.load(held, lanes + lane, v.floats)
                field = v.fma(b.fadd(surplus, surplus), stiff, field)
            gain = b.select(empty, field, b.fneg(field))
            if with_target:
                gain = b.fadd(gain, stiff)  # kappa ((n +- 1)^2 - n^2) = kappa (+-2 n + 1)
            taken = v.accepted(gain, state, lane, lanes)
            moved = b.and_(taken, v.constant(v.bytes, 1))
            v.store(b.xor(old, moved), occupied, at)
            if with_target:
                step = b.select(empty, v.constant(v.floats, 1.0), v.constant(v.floats, -1.0))
                step = b.select(b.icmp_unsigned("!=", moved, v.constant(v.bytes, 0)), step, v.constant(v.floats, 0.0))
                v.store(b.fadd(surplus, step), held, lane)
            v.store(b.add(v.load(tally, lanes + lane, v.bytes), moved), tally, lanes + lane)
        return context.get_dummy_value()

    return types.void(occupied, rows, i, kind, weights, constants, held, state, tally, shape), generate


@intrinsic
def _count(typing, occupied, rows, i, sums, shape):
    """Add the products of each family about an occupied site i to the sums (families, lanes)."""
    if not isinstance(shape, types.StringLiteral):
        return None
    lanes, _, _, families = _Shape.read(shape.literal_value)

    def generate(context, b, signature, args):
        occupied, rows, sums = _pointers(context, b, signature, args, (0, 1, 3))
        site = _Site(b, args[2], rows, sum(degree * count for degree, count in families), lanes)
        for v, lane in _chunks(b, lanes):
            here = ir.Constant(LONG, lane)
            mask = b.neg(v.load(occupied, b.add(site.row, here), v.bytes))
            for f, count in enumerate(site.counts(v, occupied, here, families)):
                total = v.load(sums, f * lanes + lane, v.words)
                v.store(b.add(total, b.zext(b.and_(count, mask), v.words)), sums, f * lanes + lane)
        return context.get_dummy_value()

    return types.void(occupied, rows, i, sums, shape), generate


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
        _count(occupied, rows, site, sums, shape)
    for f in range(sums.shape[0]):
        for r in range(lanes):
            counts[row, f, r] = sums[f, r]
    for site in range(n):
        for r in range(lanes):
            alone[row, kind[site], r] += occupied[site * lanes + r]
    eight = np.zeros(lanes, dtype=np.uint8)
    for byte in range(packed.shape[2]):
        eight[:] = 0
        for site in range(8 * byte, min(8 * byte + 8, n)):
            for r in range(lanes):
                eight[r] |= occupied[site * lanes + r] << (7 - (site & 7))
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
                    _swap(occupied, rows, i, j, kind[i] * lanes, kind[j] * lanes, weights, constants, state, tally, shape)
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
                    _flip(occupied, rows, i, kind[i] * lanes, weights, constants, held, state, tally, shape)
                left -= _BLOCK
                _empty(tally, totals)
            if row < 0:
                totals[:] = 0
            else:
                totals[0] += interval
                _record(occupied, rows, kind, sums, row, packed, counts, alone, shape)

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
        text = str(_Shape(lanes, len(expansion.constants) > 1, held, expansion.shape))
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
            burn, interval = round(burn / unlike), max(1, round(interval / unlike))
            swaps(bench.layout.text)(*bench.crystal, sites, first, *bench.model, bench.sites, burn, interval, *bench.records)
        else:
            held = aligned((2, bench.width), np.float32)
            held[1] = -LOG2E * work.stiffness
            flips(bench.layout.text)(*bench.crystal, *bench.model, held, bench.sites, burn, interval, *bench.records)
        moves = [burn * t // max(interval * work.samples, 1) + t for t in bench.totals[0].tolist()]
        return bench.chains(moves)


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
        share, n = self.totals[1] / np.maximum(self.totals[0], 1), len(self.work.expansion.kind)
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
