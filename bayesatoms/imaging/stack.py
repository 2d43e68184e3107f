"""The mean of several frames of one place: drift found by correlation, undone, averaged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import InputError

_LEAST = 16  # pixels along an axis
_NEAR = 0.05  # pixels: frames that are cut to whole pixels may end so far outside


def average(frames: NDArray, name: str = "image") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean of the aligned frames, cut to what all of them show.

    Each frame is aligned with the one before, then all of them with the mean of the others. A lattice shifted by one of its
    vectors looks nearly like itself, so of several good fits the smallest step is taken: the drift between two frames must be
    below half a lattice spacing.

    Parameters
    ----------
    frames : ndarray, shape (n, rows, columns)
        Not-a-number where nothing was recorded.

    Returns
    -------
    mean : ndarray, shape (fewer rows, fewer columns)
    drift : ndarray, shape (n, 2)
        Rows and columns that each frame lies further than the first.

    Raises
    ------
    InputError
        If no part of the picture is in all frames.

    Examples
    --------
    >>> scene = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(96, 96)), 2)
    >>> frames = np.stack([scene[8:72, 8:72], scene[10:74, 5:69]])
    >>> mean, drift = average(frames)
    >>> mean.shape, drift.round().tolist(), bool(np.abs(mean - scene[10:72, 8:69]).max() < 0.02)
    ((62, 61), [[0.0, 0.0], [-2.0, 3.0]], True)
    """
    spectra = [np.fft.fft2(_whole(frame)) for frame in frames]
    drift = np.zeros((len(frames), 2))
    for k in range(1, len(frames)):
        drift[k] = drift[k - 1] + _step(spectra[k - 1], spectra[k])
    for _ in range(4):  # the steps above gather errors, and a parabola falls short of the top
        aligned = [np.fft.fft2(_whole(frame)) for frame in _aligned(frames, drift, name)]
        total = np.sum(aligned, axis=0)
        # the mean of the others, since its own noise would hold a frame where it is; they lie off to the other side by 1/(n - 1)
        drift = drift + (1 - 1 / len(frames)) * np.array([_step(total - one, one) for one in aligned])
        drift = drift - drift[0]
    moved = _aligned(frames, drift, name)
    seen = np.sum([np.isfinite(m) for m in moved], axis=0)
    total = np.sum([np.nan_to_num(m) for m in moved], axis=0)
    return np.where(seen > 0, total / np.maximum(seen, 1), np.nan), drift


def _step(reference: NDArray, frame: NDArray) -> NDArray[np.float64]:
    """How far the frame of the second spectrum lies further than that of the first."""
    cross = reference.conj() * frame
    # the weight of maximum likelihood is signal/(noise^2 + 2 signal noise): Bragg peaks do not drown the disorder between them
    power = ndimage.uniform_filter(np.abs(cross), 3, mode="wrap")
    f = np.hypot(np.fft.fftfreq(power.shape[0])[:, None], np.fft.fftfreq(power.shape[1]))
    noise = max(np.median(power[f > 0.5]), 1e-12 * power.max())  # in the corners there is nothing else
    signal = np.maximum(power - noise, 0)
    fit = np.fft.ifft2(cross * signal / (noise + 2 * signal)).real
    peaks = np.argwhere((fit == ndimage.maximum_filter(fit, 3, mode="wrap")) & (fit >= 0.7 * fit.max()))
    shape = np.array(fit.shape)
    signed = (peaks + shape // 2) % shape - shape // 2
    best = np.argmin((signed**2).sum(axis=1))
    return signed[best] + [_vertex(np.take(fit, peaks[best][1 - axis], axis=1 - axis), peaks[best][axis]) for axis in (0, 1)]


def _vertex(line: NDArray, at: int) -> float:
    """How far the top of the parabola through a maximum and its neighbours lies beyond it."""
    before, top, after = line[at - 1], line[at], line[(at + 1) % len(line)]
    bend = before - 2 * top + after
    return 0.5 * (before - after) / bend if bend else 0.0


def _whole(frame: NDArray) -> NDArray[np.float64]:
    """A frame less its mean, gaps filled with it, fading out at the edges: what leaves on one side does not return on the other."""
    finite = np.isfinite(frame)
    level = frame[finite].mean() if finite.any() else 0.0
    return np.where(finite, frame - level, 0.0) * np.hanning(frame.shape[0])[:, None] * np.hanning(frame.shape[1])


def _moved(frame: NDArray, drift: NDArray) -> NDArray[np.float64]:
    """The frame moved back by its drift; gaps stay gaps."""
    finite = np.isfinite(frame)
    filled = np.where(finite, frame, frame[finite].mean() if finite.any() else 0.0)
    moved = ndimage.shift(filled, -drift, order=3, mode="nearest")
    return moved if finite.all() else np.where(ndimage.shift(finite.astype(float), -drift, order=1, cval=1.0) > 0.999, moved, np.nan)


def _aligned(frames: NDArray, drift: NDArray, name: str) -> list[NDArray[np.float64]]:
    """The frames moved back by their drift, on the rectangle that all of them show."""
    low = np.ceil(-drift.min(axis=0) - _NEAR).astype(int)
    high = np.floor(np.array(frames.shape[1:]) - drift.max(axis=0) + _NEAR).astype(int)
    if (high - low < _LEAST).any():
        raise InputError(
            f"{name}: the frames drift by {np.ptp(drift, axis=0).max():.0f} pixels and have no common part; choose frames that overlap"
        )
    return [_moved(frame, d)[low[0] : high[0], low[1] : high[1]] for frame, d in zip(frames, drift, strict=True)]
