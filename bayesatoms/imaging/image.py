"""Image: one micrograph as numbers, with its scale and what is known to be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_LEAST = 16  # pixels along an axis


@dataclass(frozen=True, eq=False)
class Image:
    """A grey image; pixel ``data[row, column]`` lies at x = column, y = row, y downwards.

    Parameters
    ----------
    data : ndarray of float, shape (rows, columns)
        Intensity in any unit; nan where nothing was recorded, infinities likewise.
    name : str
    pixel_size : float, optional
        nm; found from the lattice if not known.
    warnings : tuple of str
        What a reader should know: 8 bit, clipped, cropped out of a figure, ...
    source : mapping
        File, hash, format, header: stored with every result.
    ceiling : float, optional
        The value at which bright pixels were clipped, if they were.

    Raises
    ------
    InputError
        If there is no picture in the data or the pixel size is not positive.

    Examples
    --------
    >>> Image(np.eye(32), "diagonal", pixel_size=0.02).field_of_view
    (0.64, 0.64)
    """

    data: NDArray[np.float64]
    name: str = "image"
    pixel_size: float | None = None
    warnings: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    ceiling: float | None = None

    def __post_init__(self) -> None:
        data = np.asarray(self.data)
        if data.ndim != 2 or min(data.shape) < _LEAST:
            raise InputError(f"{self.name}: an array of shape {data.shape}; expected a grey image of at least {_LEAST} x {_LEAST} pixels")
        if data.dtype.kind not in "fiub":
            raise InputError(f"{self.name}: pixels of type {data.dtype}; expected real numbers")
        data = np.ascontiguousarray(data, dtype=np.float64)
        object.__setattr__(self, "data", np.where(np.isinf(data), np.nan, data) if np.isinf(data).any() else data)
        finite = self.data[np.isfinite(self.data)]
        if not len(finite):
            raise InputError(f"{self.name}: no pixel is a number; expected an image")
        if np.ptp(finite) == 0:
            raise InputError(f"{self.name}: every pixel is {finite[0]:g}: the image is empty; expected atomic columns")
        if self.pixel_size is not None and not (np.isfinite(self.pixel_size) and self.pixel_size > 0):
            raise InputError(f"{self.name}: pixel size {self.pixel_size:g} nm; expected a positive number")

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape

    @property
    def field_of_view(self) -> tuple[float, float] | None:
        """Height and width in nm, if the pixel size is known."""
        return None if self.pixel_size is None else (self.shape[0] * self.pixel_size, self.shape[1] * self.pixel_size)
