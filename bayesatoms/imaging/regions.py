"""Regions of an image that are used or left out: polygons, rectangles and mask pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

Region = str | Path | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]] | NDArray[np.bool_]


def region(shape: tuple[int, int], given: Region, what: str, folder: str | Path | None = None) -> NDArray[np.bool_]:
    """The pixels of a region.

    Parameters
    ----------
    shape : (rows, columns)
        Of the image.
    given : polygon, polygons, path or array
        A polygon is a list of at least three corners (x, y) in pixels, two opposite corners make a
        rectangle; several polygons are united. A path leads to a picture of the same size whose pixels
        above half of its range are inside; an array of truth values is taken as it is.
    what : str
        "roi" or "mask": for messages.
    folder : path, optional
        Relative paths start here.

    Raises
    ------
    InputError
        If the region cannot be understood, does not fit the image or holds none of its pixels.

    Examples
    --------
    >>> int(region((20, 30), [(5, 5), (14, 9)], "roi").sum())
    50
    """
    if isinstance(given, str | Path):
        inside = _picture(shape, Path(folder or ".") / given, what)
    elif isinstance(given, np.ndarray) and (given.dtype == bool or given.shape[1:] != (2,)):
        if given.shape != shape:
            raise InputError(f"{what} has shape {given.shape}; expected that of the image, {shape}")
        inside = given if given.dtype == bool else given > 0.5 * (np.nanmin(given) + np.nanmax(given))
    else:
        inside = np.zeros(shape, dtype=bool)
        for polygon in _polygons(given, what):
            inside |= _filled(shape, polygon)
    if not inside.any():
        raise InputError(f"{what} holds none of the image's {shape[1]} x {shape[0]} pixels (x, y); expected corners within it, in pixels")
    return inside


def _polygons(given: ArrayLike, what: str) -> list[NDArray[np.float64]]:
    advice = f"{what}: expected corners [[x, y], ...] of a polygon in pixels, or a list of such polygons, or the path of a mask picture"
    try:
        nested = [list(part) for part in given]  # type: ignore[union-attr]
        several = bool(nested) and isinstance(nested[0][0], list | tuple | np.ndarray)
        found = [np.asarray(p, dtype=float) for p in (nested if several else [nested])]
    except (TypeError, ValueError, IndexError):
        raise InputError(f"{advice}; found {given!r}") from None
    for p in found:
        if p.ndim != 2 or p.shape[1] != 2 or len(p) < 2 or not np.isfinite(p).all():
            raise InputError(f"{advice}; found {p.tolist() if p.size <= 10 else f'an array of shape {p.shape}'}")
    return found


def _filled(shape: tuple[int, int], polygon: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Pixels whose centre lies in the polygon."""
    from skimage.draw import polygon2mask

    if len(polygon) == 2:
        (x0, y0), (x1, y1) = np.sort(polygon, axis=0)
        y, x = np.ogrid[: shape[0], : shape[1]]
        return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    return polygon2mask(shape, polygon[:, ::-1])


def _picture(shape: tuple[int, int], path: Path, what: str) -> NDArray[np.bool_]:
    from .read import read_image

    picture = read_image(path, crop=False).data
    if picture.shape != shape:
        raise InputError(
            f"{what} {path} has {picture.shape[1]} x {picture.shape[0]} pixels; expected those of the image, {shape[1]} x {shape[0]}"
        )
    return picture > 0.5 * (np.nanmin(picture) + np.nanmax(picture))
