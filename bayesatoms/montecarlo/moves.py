"""Moves of many chains at once, as vector code: what the lanes kernel's loops are made of.

Occupations lie as bytes [site][lane]; `rows` names, for every site, where its neighbours' rows begin. All lanes try the
same sites; each decides by its own random number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vectors import LONG, Vectors, chunk


class Shape(NamedTuple):
    """What a kernel's code depends on: lanes, whether kinds of sites differ, whether a composition is held, families."""

    lanes: int
    kinds: bool
    held: bool
    families: tuple[tuple[int, int], ...]  # (degree, count)

    @classmethod
    def read(cls, text: str) -> Shape:
        """Undo ``str``."""
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
def swap(
    typing: Any,
    occupied: Any,
    rows: Any,
    i: Any,
    j: Any,
    kind_i: Any,
    kind_j: Any,
    weights: Any,
    constants: Any,
    state: Any,
    tally: Any,
    shape: Any,
) -> Any:
    """Exchange the atoms of sites i and j in every lane where they differ, with probability min(1, exp(-dE))."""
    if not isinstance(shape, types.StringLiteral):
        return None
    lanes, kinds, _, families = Shape.read(shape.literal_value)

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
def flip(
    typing: Any, occupied: Any, rows: Any, i: Any, kind: Any, weights: Any, constants: Any, held: Any, state: Any, tally: Any, shape: Any
) -> Any:
    """Turn the atom of site i in every lane, with probability min(1, exp(-dE + dmu - d(kappa surplus^2)))."""
    if not isinstance(shape, types.StringLiteral):
        return None
    lanes, _, with_target, families = Shape.read(shape.literal_value)

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
def count(typing: Any, occupied: Any, rows: Any, i: Any, sums: Any, shape: Any) -> Any:
    """Add the products of each family about an occupied site i to the sums (families, lanes)."""
    if not isinstance(shape, types.StringLiteral):
        return None
    lanes, _, _, families = Shape.read(shape.literal_value)

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
