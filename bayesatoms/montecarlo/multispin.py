"""The multi-spin kernel: 512 chains, one bit each, for two species and pairs of one kind.

A word holds one site of many chains, so counting neighbours is a handful of logical operations for all of them.
A move needs draws only as far as they matter: the threshold and the random number are compared bit by
bit from the top, and after about ten bits every one of 512 chains is decided (Isakov, Zintchenko and Troyer,
arXiv 1401.1084, and earlier multi-spin codes draw a fixed number). Probabilities have 32 bits. As in the lanes
kernel, chains share the sites they try, and each lets a sixteenth of its moves pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, njit, types, uint64
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from ..errors import InputError
from ..generators import State, below, generator_state
from .chains import Chain
from .ensembles import SemiGrand
from .monomials import Expansion
from .vectors import LONG, TRIED, aligned
from .work import Couplings, Kernel, Labels, Seeds, Work

LANES = 512
BITS = 32  # of a probability
_WORDS = LANES // 64
_FIRST, _MORE = 8, 4  # bits compared before the first look whether anything is undecided, and between further looks
_TRIED = round(-np.log2(1 - TRIED))  # bits, all of them 1, of the share of moves that a lane tries
_COUNTER = 28  # planes of a vertical counter: up to 2^28 pairs

_jit = njit(nogil=True, cache=True)
_VECTOR = ir.VectorType(LONG, _WORDS)

Words = NDArray[np.uint64]


def _at(builder: Any, pointer: Any, vector: Any) -> Any:
    """Pointer to a vector: `vector` counts whole vectors."""
    offset = builder.mul(vector, ir.Constant(LONG, _WORDS)) if not isinstance(vector, int) else ir.Constant(LONG, vector * _WORDS)
    return builder.bitcast(builder.gep(pointer, [offset]), _VECTOR.as_pointer())


def _load(builder: Any, pointer: Any, vector: Any) -> Any:
    found = builder.load(_at(builder, pointer, vector))
    found.align = 64
    return found


def _store(builder: Any, value: Any, pointer: Any, vector: Any) -> None:
    builder.store(value, _at(builder, pointer, vector)).align = 64


def _add(builder: Any, planes: list[Any], word: Any) -> list[Any]:
    """Add one bit a lane to a bit-sliced number."""
    out = []
    for plane in planes:
        out.append(builder.xor(plane, word))
        word = builder.and_(plane, word)
    return [*out, word]


def _draw(builder: Any, state: list[Any]) -> tuple[Any, list[Any]]:
    """One random bit a lane: xoshiro256+ in each of the eight words."""
    s0, s1, s2, s3 = state
    k17, k45, k19 = (ir.Constant(_VECTOR, [k] * _WORDS) for k in (17, 45, 19))
    found, shifted = builder.add(s0, s3), builder.shl(s1, k17)
    s2, s3 = builder.xor(s2, s0), builder.xor(s3, s1)
    s1, s0 = builder.xor(s1, s2), builder.xor(s0, s3)
    return found, [s0, s1, builder.xor(s2, shifted), builder.or_(builder.shl(s3, k45), builder.lshr(s3, k19))]


def _neighbours(builder: Any, occupied: Any, rows: Any, site: Any, count: int) -> list[Any]:
    """How many neighbours of a site are occupied, as a bit-sliced number."""
    first, planes = builder.mul(site, ir.Constant(LONG, count)), []
    for k in range(count):
        row = builder.zext(builder.load(builder.gep(rows, [builder.add(first, ir.Constant(LONG, k))])), LONG)
        planes = _add(builder, planes, _load(builder, occupied, row))[: count.bit_length()]
    return planes


@intrinsic
def _flip(typing, occupied, rows, i, needs, chances, state, shape):
    """Turn the atoms of site i; returns nothing. The shape is the level of each number of neighbours, '-' where nothing is drawn."""
    if not isinstance(shape, types.StringLiteral):
        return None
    levels = shape.literal_value.split()
    count = len(levels) - 1

    def generate(context, b, signature, args):
        pointer = {k: context.make_array(signature.args[k])(context, b, args[k]).data for k in (0, 1, 3, 4, 5)}
        site = args[2]
        old, planes = _load(b, pointer[0], site), _neighbours(b, pointer[0], pointer[1], site, count)
        full = ir.Constant(_VECTOR, [2**64 - 1] * _WORDS)
        absent, needed, masks = [b.xor(p, full) for p in planes], None, {}
        for n, level in enumerate(levels):
            if level == "-":
                continue
            same = None
            for k in range(len(planes)):
                bit = planes[k] if n >> k & 1 else absent[k]
                same = bit if same is None else b.and_(same, bit)
            adding, removing = _load(b, pointer[3], 2 * n), _load(b, pointer[3], 2 * n + 1)
            needs = b.and_(same, b.xor(adding, b.and_(old, b.xor(adding, removing))))
            needed = needs if needed is None else b.or_(needed, needs)
            masks[int(level)] = b.or_(masks[int(level)], needs) if int(level) in masks else needs
        needed = ir.Constant(_VECTOR, [0] * _WORDS) if needed is None else needed
        easy = b.xor(needed, full)  # moves that cost nothing are tried as often as all others

        def compare(bit, undecided, below, generator, tried):
            """One bit further down, which is `tried` in the share of moves tried: `below` where the draw is below the probability."""
            word, generator = _draw(b, generator)
            chance = easy if tried else ir.Constant(_VECTOR, [0] * _WORDS)
            for level, mask in masks.items():
                chance = b.or_(chance, b.and_(mask, _load(b, pointer[4], b.add(bit, ir.Constant(LONG, level * BITS)))))
            differs = b.and_(undecided, b.xor(word, chance))
            return b.xor(undecided, differs), b.or_(below, b.and_(differs, chance)), generator

        generator = [_load(b, pointer[5], k) for k in range(4)]
        undecided, below = full, ir.Constant(_VECTOR, [0] * _WORDS)
        for bit in range(_FIRST):
            undecided, below, generator = compare(ir.Constant(LONG, bit), undecided, below, generator, bit < _TRIED)
        values = [undecided, below, *generator]
        before = b.block
        loop, done = b.append_basic_block("more"), b.append_basic_block("decided")
        _branch(b, undecided, loop, done)
        b.position_at_end(loop)
        bit = b.phi(LONG)
        bit.add_incoming(ir.Constant(LONG, _FIRST), before)
        held = [b.phi(_VECTOR) for _ in values]
        for phi, value in zip(held, values, strict=True):
            phi.add_incoming(value, before)
        undecided, below, *generator = held
        for k in range(_MORE):
            undecided, below, generator = compare(b.add(bit, ir.Constant(LONG, k)), undecided, below, generator, False)
        following = b.add(bit, ir.Constant(LONG, _MORE))
        bit.add_incoming(following, b.block)
        inside = b.block
        for phi, value in zip(held, [undecided, below, *generator], strict=True):
            phi.add_incoming(value, inside)
        last = b.icmp_unsigned(">=", following, ir.Constant(LONG, BITS))
        undecided_left = b.select(last, ir.Constant(LONG, 0), _any(b, undecided))
        b.cbranch(b.icmp_unsigned("!=", undecided_left, ir.Constant(LONG, 0)), loop, done)
        b.position_at_end(done)
        final = []
        for value, later in zip(values, [undecided, below, *generator], strict=True):
            phi = b.phi(_VECTOR)
            phi.add_incoming(value, before)
            phi.add_incoming(later, inside)
            final.append(phi)
        _, below, *generator = final
        for k, word in enumerate(generator):
            _store(b, word, pointer[5], k)
        _store(b, b.xor(old, below), pointer[0], site)
        return context.get_dummy_value()

    return types.void(occupied, rows, i, needs, chances, state, shape), generate


def _any(builder: Any, vector: Any) -> Any:
    """All the bits of a vector, or-ed into one word."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(LONG, [_VECTOR]), f"llvm.vector.reduce.or.v{_WORDS}i64")
    return builder.call(function, [vector])


def _branch(builder: Any, vector: Any, yes: Any, no: Any) -> None:
    builder.cbranch(builder.icmp_unsigned("!=", _any(builder, vector), ir.Constant(LONG, 0)), yes, no)


@intrinsic
def _count(typing, occupied, rows, i, counter, shape):
    """Add site i's atom and its occupied neighbours to the vertical counters (2, 2, planes, words) of even and odd sites.

    Were there one counter for all sites, the compiler would keep it in registers it has not got.
    """
    if not isinstance(shape, types.StringLiteral):
        return None
    count = len(shape.literal_value.split()) - 1

    def generate(context, b, signature, args):
        occupied, rows, counter = (context.make_array(signature.args[k])(context, b, args[k]).data for k in (0, 1, 3))
        here, planes = _load(b, occupied, args[2]), _neighbours(b, occupied, rows, args[2], count)
        bank = b.mul(b.and_(args[2], ir.Constant(LONG, 1)), ir.Constant(LONG, 2 * _COUNTER))
        for weight, carry in [(0, here), *((_COUNTER + k, b.and_(p, here)) for k, p in enumerate(planes))]:
            for plane in range(weight, _COUNTER if weight == 0 else 2 * _COUNTER):
                place = b.add(bank, ir.Constant(LONG, plane))
                held = _load(b, counter, place)
                _store(b, b.xor(held, carry), counter, place)
                carry = b.and_(held, carry)
        return context.get_dummy_value()

    return types.void(occupied, rows, i, counter, shape), generate


@_jit
def _transpose(block: Words) -> None:
    """Transpose a matrix of 64 x 64 bits in place (Warren, Hacker's Delight, section 7-3)."""
    width, mask = 32, uint64(0x00000000FFFFFFFF)
    while width:
        k = 0
        while k < 64:
            swapped = ((block[k] >> uint64(width)) ^ block[k + width]) & mask
            block[k + width] ^= swapped
            block[k] ^= swapped << uint64(width)
            k = (k + width + 1) & ~width
        width >>= 1
        mask ^= mask << uint64(width)


@_jit
def _record(occupied, rows, count, row, counter, packed, counts, alone, shape):
    """Write bit-packed snapshots (lanes, samples, bytes), neighbours of occupied sites (samples, lanes) and atoms (samples, lanes)."""
    n = len(rows) // count
    counter[:] = 0
    for site in range(n):
        _count(occupied, rows, site, counter, shape)
    for lane in range(LANES):
        for bank in range(2):
            for plane in range(counter.shape[2]):
                alone[row, lane] += int64((counter[bank, 0, plane, lane >> 6] >> uint64(lane & 63)) & uint64(1)) << plane
                counts[row, lane] += int64((counter[bank, 1, plane, lane >> 6] >> uint64(lane & 63)) & uint64(1)) << plane
    block = np.empty(64, dtype=np.uint64)
    for first in range(0, n, 64):
        for w in range(_WORDS):
            for k in range(64):
                block[63 - k] = occupied[(first + k) * _WORDS + w] if first + k < n else uint64(0)
            _transpose(block)
            for lane in range(64):
                word = block[lane]
                for byte in range(min(8, packed.shape[2] - first // 8)):
                    packed[64 * w + lane, row, first // 8 + byte] = (word >> uint64(56 - 8 * byte)) & uint64(255)


@cache
def flips(shape: str) -> Callable[..., None]:
    """The semi-grand kernel of a shape; compiled once and kept on disk."""

    @_jit
    def run(
        occupied: Words,
        rows: NDArray[np.uint32],
        needs: Words,
        chances: Words,
        state: Words,
        sites: State,
        burn: int,
        interval: int,
        counter: Words,
        packed: NDArray[np.uint8],
        counts: NDArray[np.int64],
        alone: NDArray[np.int64],
    ) -> None:
        """Semi-grand chains: pick a site, the same in all lanes, and turn its atom with probability min(1, exp(-dE + dmu))."""
        count = (len(shape) - 1) // 2
        n = len(rows) // count
        for row in range(-1, packed.shape[1]):
            for _ in range(burn if row < 0 else interval):
                _flip(occupied, rows, below(sites, n), needs, chances, state, shape)
            if row >= 0:
                _record(occupied, rows, count, row, counter, packed, counts, alone, shape)

    return run


@dataclass(frozen=True, eq=False)
class Layout:
    """A model of equal pairs as the kernel reads it.

    `rows` (n_sites * z,) are the neighbours; `needs` (z + 1, 2, words) says in which lanes adding and removing an atom
    with so many neighbours must be drawn for, and `chances` (levels, bits, words) with which probability.
    """

    rows: NDArray[np.uint32]
    needs: Words
    chances: Words
    text: str

    @classmethod
    def of(cls, expansion: Expansion, fields: NDArray[np.float64]) -> Layout:
        """The layout for fields (lanes, z + 1): energy of adding an atom among so many neighbours.

        Raises
        ------
        InputError
            If the model is not one of pairs alike on sites alike, with at most nine neighbours.
        """
        check(expansion)
        family = expansion.families[0]
        padded = np.zeros((LANES, family.count + 1))
        padded[: len(fields)] = fields
        needs = np.array([[_pack(f > 0), _pack(f < 0)] for f in padded.T])
        levels: list[bytes] = []
        names = []
        for f in np.abs(padded).round(12).T:
            if not f.any():
                names.append("-")
                continue
            if f.tobytes() not in levels:
                levels.append(f.tobytes())
            names.append(str(levels.index(f.tobytes())))
        chances = np.zeros((max(len(levels), 1), BITS, _WORDS), dtype=np.uint64)
        for k, level in enumerate(levels):
            whole = np.round(TRIED * np.exp(-np.frombuffer(level)) * 2.0**BITS).astype(np.uint64)
            for bit in range(BITS):
                chances[k, bit] = _pack(whole >> np.uint64(BITS - 1 - bit) & np.uint64(1) == 1)
        return cls(np.ascontiguousarray(family.sites.reshape(-1), dtype=np.uint32), needs, chances, " ".join(names))


def counter() -> Words:
    """Room for the counts of one record, (2, 2, planes, words), beginning at a cache line."""
    return aligned((2, 2, _COUNTER, _WORDS), np.uint64)


def check(expansion: Expansion) -> None:
    """Raise InputError if the model is not one of pairs alike on sites alike."""
    families = expansion.families
    if len(families) != 1 or families[0].degree != 1 or len(expansion.constants) > 1 or families[0].count > 9:
        raise InputError("a model other than one kind of pair on sites all alike given; expected that for the multi-spin kernel")
    if (families[0].sites == len(expansion.kind)).any():
        raise InputError("sites with fewer neighbours than others given; expected sites all alike for the multi-spin kernel")


def _pack(lanes: NDArray[np.bool_]) -> Words:
    """Bits of the lanes as words: lane 64 w + k is bit k of word w."""
    return np.packbits(lanes, bitorder="little").view(np.uint64)


class MultiSpin(Kernel):
    """512 chains of nearest neighbours at a time, as bits."""

    name = "multispin"

    def refuses(self, work: Work, couplings: Couplings) -> str | None:
        if work.compiled.n_species != 2:
            return f"there are {work.compiled.n_species} species; it takes two"
        if not isinstance(work.ensemble, SemiGrand):
            return "it turns atoms at given chemical potentials only"
        try:
            check(work.expansion)
        except InputError as error:
            return str(error)
        return None

    def run(self, work: Work, couplings: Couplings, labels: Labels, seeds: Seeds) -> list[Chain]:
        found = []
        for first in range(0, len(couplings), LANES):
            some = slice(first, first + LANES)
            found += self._batch(work, couplings[some], labels[some], seeds[first])
        return found

    def _batch(self, work: Work, couplings, labels, seed) -> list[Chain]:
        e, used, n = work.expansion, len(couplings), labels.shape[1]
        weights = e.weights(couplings)[:, 0]
        field = (couplings @ e.constants[0] + work.potential[0] - work.potential[1])[:, None]
        layout = Layout.of(e, field + weights[:, None] * np.arange(e.families[0].count + 1))
        every = np.zeros((LANES, n), dtype=bool)
        every[:used] = labels
        occupied = aligned((n, _WORDS), np.uint64)
        occupied[:] = np.packbits(np.ascontiguousarray(every.T), axis=1, bitorder="little").view(np.uint64)
        needs, chances = aligned(layout.needs.shape, np.uint64), aligned(layout.chances.shape, np.uint64)
        needs[:], chances[:] = layout.needs, layout.chances
        state = aligned((4, _WORDS), np.uint64)
        state[:] = seed.generate_state(state.size, np.uint64).reshape(state.shape)
        packed = np.zeros((LANES, work.samples, (n + 7) // 8), dtype=np.uint8)
        counts, alone = (np.zeros((work.samples, LANES), dtype=np.int64) for _ in range(2))
        burn, interval = (max(1, round(m / TRIED)) if m else 0 for m in work.moves(labels[0]))
        flips(layout.text)(
            occupied.reshape(-1),
            layout.rows,
            needs,
            chances,
            state,
            generator_state(work.sites),
            burn,
            interval,
            counter(),
            packed,
            counts,
            alone,
        )
        features = e.features(counts.T[:, :, None], alone.T[:, :, None])
        moves = round((burn + interval * work.samples) * TRIED)
        # which moves were accepted is known to the words only, not to the chains
        return [Chain(couplings[r], work.chemical, packed[r][None], features[r], n, float("nan"), moves, self.name) for r in range(used)]
