"""Filters that leave out the pixels that were not recorded (nan)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]

_COARSE = 5.0  # a filter wider than so many pixels works on a binned image


def binned(data: Floats, factor: int) -> Floats:
    """Means over square blocks of pixels; nan where a block holds none.

    Examples
    --------
    >>> binned(np.array([[1.0, 3.0, 9.0], [1.0, np.nan, 9.0]]), 2).round(3).tolist()
    [[1.667]]
    """
    if factor == 1:
        return data
    rows, columns = (n // factor * factor for n in data.shape)
    blocks = data[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor)
    there = np.isfinite(blocks)
    if there.all():
        return blocks.mean(axis=(1, 3))
    with np.errstate(invalid="ignore"):
        return np.where(there, blocks, 0).sum(axis=(1, 3)) / there.sum(axis=(1, 3))


def blurred(data: Floats, width: float) -> Floats:
    """Gaussian mean of the recorded pixels around each pixel; `width` is its standard deviation in pixels."""
    factor = max(1, int(width / _COARSE))
    if factor > 1:
        small = blurred(binned(_padded(data, factor), factor), width / factor)
        at = [(np.arange(n) - (factor - 1) / 2) / factor for n in data.shape]
        return _bilinear(small, at[0], at[1])
    there = np.isfinite(data)
    if there.all():
        return ndimage.gaussian_filter(data, width)
    weight = ndimage.gaussian_filter(there.astype(float), width)
    return ndimage.gaussian_filter(np.where(there, data, 0.0), width) / np.maximum(weight, 0.02)


def flattened(data: Floats, smooth: float, background: float) -> Floats:
    """The image between two Gaussian filters, without noise and without background; 0 where nothing was recorded."""
    return np.where(np.isfinite(data), blurred(data, smooth) - blurred(data, background), 0.0)


def _padded(data: Floats, factor: int) -> Floats:
    """Rows and columns repeated at the far ends until whole blocks fit."""
    extra = [-n % factor for n in data.shape]
    return np.pad(data, ((0, extra[0]), (0, extra[1])), mode="edge") if any(extra) else data


def _bilinear(small: Floats, rows: Floats, columns: Floats) -> Floats:
    """A coarse image at rows x columns of fractional places."""

    def along(field: Floats, at: Floats) -> Floats:
        at = np.clip(at, 0, len(field) - 1)
        low = np.minimum(at.astype(np.int64), max(len(field) - 2, 0))
        high = np.minimum(low + 1, len(field) - 1)
        share = (at - low)[:, None]
        return field[low] * (1 - share) + field[high] * share

    return along(along(small, rows).T, columns).T
