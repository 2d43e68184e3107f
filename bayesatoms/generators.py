"""Random numbers of the kernels: xoshiro256++ (Blackman and Vigna, ACM Trans. Math. Softw. 47, 36, 2021).

Four words of state belong to each chain; numba's own generators cost ten times more.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

State = NDArray[np.uint64]

jit = njit(nogil=True, cache=True)


def generator_state(seed: np.random.SeedSequence) -> State:
    """The four words of a generator (never all zero: SeedSequence hashes)."""
    return seed.generate_state(4, np.uint64)


@jit
def step(s0: int, s1: int, s2: int, s3: int) -> tuple[int, int, int, int, int]:
    """The next 64 random bits and the four words after them: for loops that keep their state in registers."""
    total = s0 + s3
    word = ((total << uint64(23)) | (total >> uint64(41))) + s0
    shifted = s1 << uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= shifted
    return word, s0, s1, s2, (s3 << uint64(45)) | (s3 >> uint64(19))


@jit
def next_word(state: State) -> int:
    """The next 64 random bits."""
    word, s0, s1, s2, s3 = step(state[0], state[1], state[2], state[3])
    state[0], state[1], state[2], state[3] = s0, s1, s2, s3
    return word


@jit
def below(state: State, n: int) -> int:
    """A random integer in [0, n) by multiply-shift; the bias is under n / 2^32."""
    return np.int64(((next_word(state) >> uint64(32)) * uint64(n)) >> uint64(32))


@jit
def uniform(state: State) -> float:
    """A random number in [0, 1) of 53 bits."""
    return np.float64(next_word(state) >> uint64(11)) * 2.0**-53
