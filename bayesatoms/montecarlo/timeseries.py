"""Time series of chains: autocorrelation, the part before equilibrium, and the honest error of a mean.

Every mean carries the cut of the part before equilibrium and its integrated autocorrelation time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from ..errors import CheckError

DRIFT = 20.0  # variance of eighths of a chain over what the fluctuations inside them allow
_LEAST = 50  # autocorrelation times in a chain whose error can be believed (emcee's rule)
_WINDOW = 5.0  # Sokal's self-consistent window: sum correlations up to 5 autocorrelation times
_FEW = 64  # lags that are summed one by one before a Fourier transform is cheaper


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
    x = np.ascontiguousarray(series, dtype=float)
    time = _direct(x, _FEW)
    if time > 0:
        return max(1.0, time)
    x = x - x.mean()
    spectrum = np.fft.rfft(x, 2 * len(x))
    correlation = np.fft.irfft(spectrum * spectrum.conj())[: len(x)]
    return _time(correlation)


def autocorrelation_times(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same of many series (m, n) at once; shape (m,).

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(3, 100))
    >>> autocorrelation_times(rows).tolist() == [autocorrelation_time(row) for row in rows]
    True
    """
    times = _each(np.ascontiguousarray(series, dtype=float), _FEW)
    for i in np.flatnonzero(times <= 0):
        times[i] = autocorrelation_time(series[i])
    return np.maximum(times, 1.0)


@njit(nogil=True, cache=True)
def _direct(series: NDArray[np.float64], most: int) -> float:
    """Sokal's time by summing lag after lag, which most series need few of; 0 where the window does not close in time."""
    x = series - series.mean() if len(series) else series
    n, variance, time = len(x), 0.0, 1.0
    for i in range(n):
        variance += x[i] * x[i]
    if n < 4 or not np.any(np.abs(x) > 1e-12):
        return 1.0
    for lag in range(1, min(most, n)):
        product = 0.0
        for i in range(n - lag):
            product += x[i] * x[i + lag]
        time += 2 * product / variance
        if lag >= _WINDOW * time:
            return time
    return 0.0


@njit(nogil=True, cache=True)
def _each(series: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """The direct sums of many series."""
    times = np.empty(len(series))
    for i in range(len(series)):
        times[i] = _direct(series[i], most)
    return times


@njit(nogil=True, cache=True)
def _after(series: NDArray[np.float64], starts: NDArray[np.int64], most: int) -> NDArray[np.float64]:
    """The direct sums of one series from several starts on."""
    times = np.empty(len(starts))
    for i in range(len(starts)):
        times[i] = _direct(series[starts[i] :], most)
    return times


def _time(correlation: NDArray[np.float64]) -> float:
    """Sokal's window on an autocorrelation function."""
    n = len(correlation)
    times = 2 * np.cumsum(correlation / correlation[0]) - 1
    enough = np.flatnonzero(np.arange(n) >= _WINDOW * times)
    return float(max(1.0, times[enough[0] if len(enough) else n - 1]))


def equilibration(series: ArrayLike) -> int:
    """Records to cut: the start that leaves most independent ones (Chodera, J. Chem. Theory Comput. 12, 1799, 2016)."""
    series = np.ascontiguousarray(series, dtype=float)
    starts = np.unique(np.linspace(0, len(series) // 2, 11).astype(int))
    times = _after(series, starts, _FEW)
    for i in np.flatnonzero(times <= 0):
        times[i] = autocorrelation_time(series[starts[i] :])
    return int(starts[int(np.argmax((len(series) - starts) / np.maximum(times, 1.0)))])


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


def drift(series: ArrayLike) -> float:
    """Variance of the means of a series' eighths over what the correlated fluctuations within them allow; 1 in equilibrium.

    The autocorrelation is that within the eighths: a slow wandering cannot hide in it, as it does in the
    whole series' own (Geweke, Bayesian Statistics 4, 169, 1992, compares two parts likewise). An
    autoregressive series of 20 autocorrelation times or more exceeds 20 in 1 % of cases; one that spans
    three, in half of them.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> noise = rng.normal(size=400)
    >>> drift(noise) < 3, drift(noise + np.linspace(0, 4, 400)) > DRIFT
    (True, True)
    """
    series = np.asarray(series, dtype=float)
    length = len(series) // 8
    if length < 4:
        return 0.0
    eighths = series[len(series) - 8 * length :].reshape(8, length)
    inside = eighths.var(axis=1, ddof=1).mean()
    if inside == 0:
        return 0.0 if np.ptp(series) == 0 else np.inf
    apart = eighths - eighths.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(apart, 2 * length, axis=1)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), axis=1)[:, :length].sum(axis=0)
    return float(eighths.mean(axis=1).var(ddof=1) * length / (inside * _time(correlation)))
