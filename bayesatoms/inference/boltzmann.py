"""Compiled loops of reweighting: Boltzmann factors of thousands of records at a time.

Nearly all of their time goes into exponentials, which numpy takes one by one where the processor has no AVX-512.
Here they are polynomials in plain arithmetic, which the compiler turns into vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10  # their sum is ln 2 to 80 bits; multiples of the first are exact
_ROUND = 6755399441055744.0  # 1.5 2^52: adding it leaves the nearest whole number in the lowest bits
_LEAST = -708.0  # below it the result would not be a normal number

_BLOCK = 1024  # records: what is done to them stays in the fastest cache

_exact = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}
_free = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "nnan"}}  # sums in any order


@intrinsic
def _bits(context: Any, value: Any) -> Any:
    """The bits of a real number."""
    return types.int64(types.float64), lambda context, builder, signature, given: builder.bitcast(given[0], ir.IntType(64))


@intrinsic
def _real(context: Any, bits: Any) -> Any:
    """The real number of some bits."""
    return types.float64(types.int64), lambda context, builder, signature, given: builder.bitcast(given[0], ir.DoubleType())


@njit(**_exact, inline="always")
def _exp(x: float) -> float:
    """exp(x) for x from -708 to 0 (clipped below) to two units in the last place: 2^k times the Taylor series about 0."""
    x = max(x, _LEAST)
    shifted = x * _LOG2E + _ROUND
    k = shifted - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    r2 = r * r
    r4 = r2 * r2  # by Estrin's scheme: no term waits for the one before it
    low = (1.0 + r) + (0.5 + 1 / 6.0 * r) * r2 + ((1 / 24.0 + 1 / 120.0 * r) + (1 / 720.0 + 1 / 5040.0 * r) * r2) * r4
    high = (1 / 40320.0 + 1 / 362880.0 * r) + (1 / 3628800.0 + 1 / 39916800.0 * r) * r2
    p = low + (high + (1 / 479001600.0 + 1 / 6227020800.0 * r) * r4) * (r4 * r4)
    return p * _real((_bits(shifted) + int64(1023)) << int64(52))


@njit(**_exact)
def exponentials(values: NDArray[np.float64], top: float) -> None:
    """exp(values - top) in place, for a top that no value exceeds.

    Examples
    --------
    >>> values = np.array([0.0, -1.0, -700.0])
    >>> exponentials(values, 0.0)
    >>> bool(np.allclose(values, np.exp([0.0, -1.0, -700.0]), rtol=1e-15, atol=0))
    True
    """
    for i in range(len(values)):
        values[i] = _exp(values[i] - top)


@njit(**_free)
def _largest(row: NDArray[np.float64]) -> float:
    top = -np.inf
    for i in range(len(row)):
        top = max(top, row[i])
    return top


@njit(**_free)
def _reduced(couplings: NDArray, columns: NDArray, log_mixture: NDArray, low: int, out: NDArray[np.float64]) -> None:
    """-w . F - log mixture of the records from `low` on."""
    mixture = log_mixture[low : low + len(out)]
    for i in range(len(out)):
        out[i] = -mixture[i]
    for a in range(len(couplings)):
        w, column = couplings[a], columns[a][low : low + len(out)]
        for i in range(len(out)):
            out[i] -= w * column[i]


@njit(**_free)
def _sums(row: NDArray[np.float64]) -> tuple[float, float]:
    total, squares = 0.0, 0.0
    for i in range(len(row)):
        total += row[i]
        squares += row[i] * row[i]
    return total, squares


@njit(nogil=True, cache=True)
def boltzmann(
    couplings: NDArray[np.float64],
    columns: NDArray[np.float64],
    log_mixture: NDArray[np.float64],
    out: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> None:
    """Boltzmann factors out (m, n) of n records over the mixture they were drawn from, up to a factor for each row.

    `couplings` (m, q), `columns` (q, n) the features; `sums` (m, 2) gets each row's sum and its sum of squares.
    """
    n, m = len(log_mixture), len(couplings)
    top = np.full(m, -np.inf)
    for low in range(0, n, _BLOCK):  # all couplings for a block of records, which is fetched once
        for p in range(m):
            part = out[p][low : low + _BLOCK]
            _reduced(couplings[p], columns, log_mixture, low, part)
            top[p] = max(top[p], _largest(part))
    for p in range(m):
        total, squares = 0.0, 0.0
        for low in range(0, n, _BLOCK):
            part = out[p][low : low + _BLOCK]
            exponentials(part, top[p])
            more = _sums(part)
            total, squares = total + more[0], squares + more[1]
        sums[p, 0], sums[p, 1] = total, squares


@njit(nogil=True, cache=True)
def responsibilities(negative: NDArray[np.float64], offset: NDArray[np.float64], p: NDArray[np.float64], log_total: NDArray) -> None:
    """Share p (n, K) that each of K ensembles has in a record, from logarithms (n, K) and an offset (K,); log of the sums (n,)."""
    for i in range(len(p)):
        p[i] = negative[i] + offset
        top = _largest(p[i])
        exponentials(p[i], top)
        total = _sums(p[i])[0]
        p[i] /= total
        log_total[i] = top + np.log(total)
