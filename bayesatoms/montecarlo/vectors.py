"""Vector code for kernels that move many chains side by side.

Loops left to the compiler's vectoriser are at its mercy: one array too many and it gives up, four to eight
times slower. These few operations are written as LLVM vectors instead and become whatever the machine has
(AVX-512, AVX2, NEON); the rest of a kernel stays plain numba.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

WORD, BYTE, FLOAT, LONG = ir.IntType(32), ir.IntType(8), ir.FloatType(), ir.IntType(64)
TRIED = 15 / 16  # share of its moves that a lane tries; it lets the others pass at random, so that lanes that began alike part
_ALIGNED = 16  # bytes; chunks begin at multiples of their own width in arrays aligned to a cache line
# 2^f on [-1/2, 1/2]: the Taylor series of exp(f ln 2) with its last two terms adjusted, relative error 2e-7
_POWERS = (1.0, 0.6931471805599453, 0.2402265069591007, 0.0555041086648, 0.0096181291076, 0.0013333558146)


@cache
def chunk() -> int:
    """Lanes that one piece of vector code treats: as many bytes as a register holds, so that nothing spills."""
    return 64 if llvm.get_host_cpu_features().get("avx512bw", False) else 32


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin at a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + 64, dtype=np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size].view(dtype).reshape(shape)


class Vectors:
    """Operations on vectors of `width` lanes, written at a builder's position."""

    def __init__(self, builder: ir.IRBuilder, width: int) -> None:
        self.builder, self.width = builder, width
        self.bytes, self.words, self.floats = (ir.VectorType(kind, width) for kind in (BYTE, WORD, FLOAT))

    def constant(self, kind: ir.VectorType, value: float) -> ir.Constant:
        """The same number in every lane."""
        return ir.Constant(kind, [value] * self.width)

    def load(self, pointer: Any, offset: Any, kind: ir.VectorType) -> Any:
        """Lanes beginning at an element of an array."""
        found = self.builder.load(self._at(pointer, offset, kind))
        found.align = _ALIGNED
        return found

    def store(self, value: Any, pointer: Any, offset: Any) -> None:
        """Write lanes from an element of an array on."""
        self.builder.store(value, self._at(pointer, offset, value.type)).align = _ALIGNED

    def _at(self, pointer: Any, offset: Any, kind: ir.VectorType) -> Any:
        offset = ir.Constant(LONG, offset) if isinstance(offset, int) else offset
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), kind.as_pointer())

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, fused where the machine can."""
        function = ir.FunctionType(a.type, [a.type] * 3)
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function, f"llvm.fmuladd.v{self.width}f32"), [a, b, c])

    def to_float(self, small: Any) -> Any:
        """Signed bytes as floats."""
        return self.builder.sitofp(self.builder.sext(small, self.words), self.floats)

    def clamp(self, x: Any, low: float, high: float) -> Any:
        """x held between two numbers."""
        low, high = self.constant(self.floats, low), self.constant(self.floats, high)
        x = self.builder.select(self.builder.fcmp_ordered("<", x, high), x, high)
        return self.builder.select(self.builder.fcmp_ordered(">", x, low), x, low)

    def exp2(self, x: Any, scale: int = 0) -> Any:
        """2^(x + scale) for |x + scale| < 126, relative error 2e-7: a polynomial for the fraction, the exponent by shifting."""
        b = self.builder
        magic = self.constant(self.floats, 1.5 * 2.0**23)  # added and taken off: rounds to an integer, which stays in the low bits
        shifted = b.fadd(x, magic)
        fraction = b.fsub(x, b.fsub(shifted, magic))
        power = self.constant(self.floats, _POWERS[-1])
        for coefficient in _POWERS[-2::-1]:
            power = self.fma(power, fraction, self.constant(self.floats, coefficient))
        exponent = b.shl(b.bitcast(shifted, self.words), self.constant(self.words, 23))
        raised = b.add(b.add(b.bitcast(power, self.words), exponent), self.constant(self.words, scale << 23))
        return b.bitcast(raised, self.floats)

    def random(self, state: Any, lane: int, lanes: int) -> Any:
        """The next 32 random bits of every lane: xoshiro128+ (Blackman and Vigna 2021), state (4, lanes)."""
        b = self.builder
        s0, s1, s2, s3 = (self.load(state, k * lanes + lane, self.words) for k in range(4))
        found, shifted = b.add(s0, s3), b.shl(s1, self.constant(self.words, 9))
        s2, s3 = b.xor(s2, s0), b.xor(s3, s1)
        s1, s0 = b.xor(s1, s2), b.xor(s0, s3)
        s2 = b.xor(s2, shifted)
        s3 = b.or_(b.shl(s3, self.constant(self.words, 11)), b.lshr(s3, self.constant(self.words, 21)))
        for k, s in enumerate((s0, s1, s2, s3)):
            self.store(s, state, k * lanes + lane)
        return found

    def accepted(self, log2: Any, state: Any, lane: int, lanes: int) -> Any:
        """All ones, in bytes, where a move of probability TRIED min(1, 2^log2) is accepted; 31 random bits a lane."""
        b = self.builder
        log2 = b.fadd(self.clamp(log2, -90.0, 0.0), self.constant(self.floats, float(np.log2(TRIED))))
        threshold = self.exp2(log2, 31)
        draw = b.sitofp(b.lshr(self.random(state, lane, lanes), self.constant(self.words, 1)), self.floats)
        return b.sext(b.fcmp_ordered("<", draw, threshold), self.bytes)
