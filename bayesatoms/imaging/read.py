"""Read micrographs: any format to an :class:`Image` with its pixel size in nm and warnings of what is wrong with it.

Use `read_image` for one picture and `read_images` for every frame, every file, or the aligned mean of a series.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from .formats import SUFFIXES, Picture, Scale, load
from .image import Image
from .quality import ceiling, clipped, find_picture, grey, opaque, smoothed
from .stack import average

_NM = {
    **dict.fromkeys(("m", "meter", "metre", "meters", "metres"), 1e9),
    **dict.fromkeys(("cm", "centimeter"), 1e7),
    **dict.fromkeys(("mm", "millimeter"), 1e6),
    **dict.fromkeys(("inch", "in", "inches"), 2.54e7),
    **dict.fromkeys(("μm", "um", "micron", "microns", "micrometer", "micrometre", "micrometers", "micrometres"), 1e3),
    **dict.fromkeys(("nm", "nanometer", "nanometre", "nanometers", "nanometres"), 1.0),
    **dict.fromkeys(("å", "a", "ang", "angstrom", "angstroms", "ångström", "ångstrom"), 0.1),
    **dict.fromkeys(("pm", "picometer", "picometre", "picometers", "picometres"), 1e-3),
}
_NONE = {"", "1", "none", "px", "pixel", "pixels", "undefined", "<undefined>"}
_PRINTED = 1000.0  # nm: a coarser pixel in inches or centimetres is dots per inch for a printer (2540 dpi is 10 µm)


def read_image(
    path: str | Path,
    *,
    pixel_size: float | None = None,
    frame: int | Literal["mean"] | None = None,
    channel: str | int | None = None,
    crop: bool = True,
    name: str | None = None,
) -> Image:
    """Read one image.

    Parameters
    ----------
    path : path
        TIFF (also ImageJ, OME, FEI, Gatan), PNG, JPEG, BMP, GIF, npy, npz, HDF5 (also hyperspy), Nanonis sxm;
        with the io extra dm3, dm4, emd, mrc, ser, nxs and more.
    pixel_size : float, optional
        nm; instead of what the header says.
    frame : int or "mean", optional
        Which frame of a series, from 0 (-1 = the last), or the mean of all after alignment.
    channel : str or int, optional
        Which data set of the file, by name or number; "Z" forward in a Nanonis scan if not given.
    crop : bool, default: True
        Cut the picture out of a figure with margins and axes.
    name : str, optional
        The file's stem by default.

    Returns
    -------
    Image
        With a warning each for: 8 bits, colour, clipping, smoothing, a figure, a contradicted header.

    Raises
    ------
    InputError
        If the file, the frame or the channel is not there, the file is broken or ambiguous, there is no image in it, or its
        pixels are not square or have no positive size.

    Examples
    --------
    >>> import tempfile, tifffile
    >>> counts = np.random.default_rng(1).poisson(100, (64, 80)).astype(np.uint16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tifffile.imwrite(f"{folder}/alloy.tif", counts, imagej=True, resolution=(50, 50), metadata={"unit": "nm"})
    ...     image = read_image(f"{folder}/alloy.tif")
    >>> image.name, image.shape, image.pixel_size, image.warnings
    ('alloy', (64, 80), 0.02, ())
    """
    path = Path(path)
    kind, pictures = load(path)
    picture = _channel(path, pictures, channel, kind)
    count = len(picture.stack)
    if frame is None and count > 1:
        raise InputError(f"{path}: {count} frames; choose frame=0 to {count - 1} or frame='mean', or call read_images for all of them")
    return _image(path, _source(path, kind), picture, 0 if frame is None else frame, pixel_size, crop, name or path.stem)


def read_images(
    path: str | Path | Sequence[str | Path],
    *,
    pixel_size: float | None = None,
    frames: Literal["mean"] | Sequence[int] | None = None,
    channel: str | int | None = None,
    crop: bool = True,
) -> list[Image]:
    """Read every image of a file, of a folder, or of several files.

    Parameters
    ----------
    path : path or sequence of paths
        Of a folder, all files of a known format are read, in the order of their names.
    pixel_size, channel, crop
        As for :func:`read_image`; without `channel`, every data set of a file is read (of a Nanonis scan, "Z" forward).
    frames : "mean" or sequence of int, optional
        The mean of the frames after alignment, one image a data set; or only these frames. All, one by one, by default.

    Returns
    -------
    list of Image
        Named after file, data set and frame where there are several.

    Raises
    ------
    InputError
        As for :func:`read_image`, or if there is no file to read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/movie.npy", np.random.default_rng(1).normal(size=(3, 32, 32)))
    ...     [image.name for image in read_images(folder)]
    ['movie_0', 'movie_1', 'movie_2']
    """
    images = []
    for file in _files(path):
        kind, pictures = load(file)
        source = _source(file, kind)
        chosen = pictures if channel is None and kind != "Nanonis scan" else [_channel(file, pictures, channel, kind)]
        for picture in chosen:
            stem = file.stem if len(chosen) == 1 else f"{file.stem}_{picture.label}"
            wanted = ["mean"] if frames == "mean" else range(len(picture.stack)) if frames is None else frames
            for frame in wanted:
                name = stem if frame == "mean" or len(picture.stack) == 1 else f"{stem}_{frame}"
                images.append(_image(file, source, picture, frame, pixel_size, crop, re.sub(r"[^\w.-]+", "_", name)))
    return images


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that are meant; a folder stands for the images in it."""
    files = []
    for one in [path] if isinstance(path, (str, Path)) else path:
        folder = Path(one)
        if folder.is_dir():
            found = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
            if not found:
                raise InputError(f"folder {folder} holds no image; expected files of the kinds {', '.join(sorted(SUFFIXES))}")
            files += found
        else:
            files.append(folder)
    if not files:
        raise InputError("no path given; expected a file, a folder or several of them")
    return files


def _channel(path: Path, pictures: list[Picture], channel: str | int | None, kind: str) -> Picture:
    """The data set that is meant."""
    labels = [p.label for p in pictures]
    listed = ", ".join(f"{k}: {label!r} {p.stack.shape}" for k, (label, p) in enumerate(zip(labels, pictures, strict=True)))
    if channel is None:
        # the reader of Nanonis scans puts the forward topography first
        if len(pictures) == 1 or (kind == "Nanonis scan" and labels[0] == "Z forward"):
            return pictures[0]
        raise InputError(f"{path}: {len(pictures)} data sets ({listed}); choose one with channel=")
    if isinstance(channel, int):
        found = pictures[channel : channel + 1] if channel >= 0 else []
    else:
        exact = [p for p in pictures if p.label == channel]
        found = exact or [p for p in pictures if p.label.endswith(f"/{channel}") or p.label == f"{channel} forward"]
    if len(found) != 1:
        raise InputError(f"{path}: channel {channel!r} names {len(found) or 'none'} of the data sets; the file has {listed}")
    return found[0]


# ---------------------------------------------------------------------- the scale


def calibrate(scale: Scale | None) -> tuple[float | None, str | None]:
    """The pixel size in nm, None if the header has none, and a warning if its unit is not understood.

    Parameters
    ----------
    scale : pair of (size, unit), or None
        Along y and along x.

    Raises
    ------
    InputError
        If the two disagree in unit or, by more than 1 %, in size, are not positive, or belong to a diffraction pattern.

    Examples
    --------
    >>> calibrate(((0.125, "Å"), (0.125, "Angstrom")))
    (0.0125, None)
    >>> calibrate(((1 / 300, "inch"), (1 / 300, "inch")))  # for a printer
    (None, None)
    """
    if scale is None:
        return None, None
    (dy, unit_y), (dx, unit_x) = ((float(size), _plain(unit)) for size, unit in scale)
    if unit_y in _NONE and unit_x in _NONE:
        bare = unit_x in ("", "<undefined>") and dx not in (0, 1)
        return None, f"the header has a scale of {dx:.4g} but no unit; it is left out: give pixel_size= in nm" if bare else None
    factor_y, factor_x = _NM.get(unit_y), _NM.get(unit_x)
    if factor_y != factor_x:
        raise InputError(f"the header has {unit_x or 'no unit'!r} along x and {unit_y or 'no unit'!r} along y; expected one unit")
    if factor_x is None:
        if re.search(r"^1/|[-−]1$", unit_x):
            raise InputError(f"the header's unit is {unit_x!r}: a diffraction pattern or a Fourier transform; expected an image")
        return None, f"the header's unit {unit_x!r} is no known length; its scale of {dx:g} is left out"
    if not all(math.isfinite(d) and d > 0 for d in (dx, dy)):
        raise InputError(f"the header has pixels of {dx:g} x {dy:g} {unit_x}; expected positive numbers")
    if factor_x >= 1e6 and min(dx, dy) * factor_x > _PRINTED:
        return None, None
    if abs(dx - dy) > 0.01 * min(dx, dy):
        raise InputError(f"the header has pixels of {dx:g} x {dy:g} {unit_x}; expected square ones: resample the image")
    return float(np.round(math.sqrt(dx * dy) * factor_x, 12)), None


def _plain(unit: str) -> str:
    """A unit in one spelling: small letters, Greek mu, no "/px"."""
    unit = unicodedata.normalize("NFKC", unit.strip(" \"'\0").replace("\\u00B5", "µ")).lower()
    return re.sub(r"\s*(/|per)\s*(px|pixels?)$", "", unit)


def _size(path: Path, scale: Scale | None, given: float | None) -> tuple[float | None, float | None, list[str]]:
    """The pixel size to use, the header's, and warnings; a given one stands above a header that is wrong."""
    if given is not None and not (isinstance(given, (int, float, np.number)) and math.isfinite(given) and given > 0):
        raise InputError(f"{path}: pixel_size={given!r}; expected a positive number of nm")
    try:
        header, warning = calibrate(scale)
    except InputError as error:
        if given is None:
            raise InputError(f"{path}: {error}; if the header is wrong, give pixel_size= in nm") from None
        return given, None, [f"{error}; pixel_size={given:g} nm used instead"]
    warnings = [warning] if warning else []
    if given is not None and header is not None and abs(given / header - 1) > 0.02:
        warnings.append(f"pixel_size={given:g} nm used, though the header says {header:.4g} nm ({100 * (given / header - 1):+.0f} %)")
    return (header if given is None else float(given)), header, warnings


# ---------------------------------------------------------------------- the picture


def _source(path: Path, kind: str) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest(), "format": kind}


def _image(
    path: Path, source: dict[str, Any], picture: Picture, frame: int | Literal["mean"], pixel_size: float | None, crop: bool, name: str
) -> Image:
    """An image from one frame, or the mean of all, with everything that is known about it."""
    count = len(picture.stack)
    if frame != "mean" and not (isinstance(frame, (int, np.integer)) and -count <= frame < count):
        raise InputError(f"{path}: frame {frame!r} asked for; the file has {count}, 0 to {count - 1}, or 'mean'")
    size, header, notes = _size(path, picture.scale, pixel_size)
    raw = opaque(picture.stack if frame == "mean" else picture.stack[frame][None])
    warnings = [*picture.warnings, *notes]
    if raw.dtype in (np.uint8, np.int8):
        warnings.append("8 bit: 256 grey levels at most, chosen for the eye; use the recorded data if you have them")
    source = {**source, "channel": picture.label, "frame": frame, "frames": count, "pixel_size_header": header}
    source |= {"shape": list(picture.stack.shape[1:]), "dtype": str(picture.stack.dtype)}
    if crop and raw.dtype == np.uint8 and (box := find_picture(raw[0])):
        raw = raw[:, box[0], box[1]]
        source["crop"] = [box[0].start, box[0].stop, box[1].start, box[1].stop]
        warnings.append(_cropped(box, picture.stack.shape[1:3]))
    grey_stack, colour = grey(raw) if raw.ndim == 4 else (raw, None)
    warnings += [colour] if colour else []
    values = grey_stack.astype(float)
    if np.isinf(values).any():
        warnings.append(f"{np.isinf(values).sum()} infinite pixels taken as not recorded")
        values[np.isinf(values)] = np.nan
    Image(values[0], name)  # says what is wrong with a picture that is none, before anything is measured on it
    warnings += clipped(grey_stack if grey_stack.dtype.kind in "iu" else values)
    if text := smoothed(values[0]):
        warnings.append(text)
    if frame != "mean" or count == 1:
        return Image(values[0], name, size, tuple(warnings), source, ceiling(grey_stack if grey_stack.dtype.kind in "iu" else values))
    mean, drift = average(values, name)
    source["drift"] = drift.round(3).tolist()
    far = np.hypot(*drift.T).max()
    warnings.append(f"mean of {count} frames aligned by up to {far:.1f} pixels, taking each step to be below half a lattice spacing")
    return Image(mean, name, size, tuple(warnings), source)


def _cropped(box: tuple[slice, slice], shape: Sequence[int]) -> str:
    (top, bottom), (left, right) = ((s.start, s.stop) for s in box)
    return (
        f"cropped out of a figure: rows {top} to {bottom}, columns {left} to {right} of {shape[0]} x {shape[1]}; "
        "a figure is resampled and its intensities need not be proportional to the signal (crop=False keeps it whole)"
    )
