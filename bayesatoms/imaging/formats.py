"""File formats: what each one holds, as plain stacks of frames with the scale of the header, nothing judged yet.

TIFF, PNG and the like, NumPy, HDF5 and Nanonis .sxm are read here; dm3, dm4, emd, mrc, nexus and others by RosettaSciIO, the `io` extra.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Scale = tuple[tuple[float, str], tuple[float, str]]  # (size of a pixel, unit) along y and along x, as the header has them


@dataclass(frozen=True, eq=False)
class Picture:
    """One data set of a file.

    Parameters
    ----------
    stack : ndarray, shape (frames, rows, columns) or (frames, rows, columns, 3 or 4)
    label : str
        The channel, data set or series of the file.
    scale : pair of (float, str), optional
        Size of a pixel and its unit along y and along x, as the header has them.
    warnings : tuple of str
    """

    stack: NDArray
    label: str
    scale: Scale | None = None
    warnings: tuple[str, ...] = ()


def load(path: Path) -> tuple[str, list[Picture]]:
    """The name of the format and everything in the file that is a picture or a stack of them.

    Raises
    ------
    InputError
        If the file is not there, of no known kind, broken, or holds no picture.
    """
    known = ", ".join(sorted(SUFFIXES))
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected an image file (read_images takes folders)")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: suffix {suffix or '(none)'} is unknown; expected one of {known}")
    try:
        empty = path.stat().st_size == 0
    except OSError as error:
        raise InputError(f"image {path} cannot be read ({error.strerror}); expected one of {known}") from None
    if empty:
        raise InputError(f"{path} is empty (0 bytes); expected an image")
    name, reader = SUFFIXES[suffix]
    pictures, problem = [], ""
    with _quiet():
        try:
            pictures = reader(path)
        except InputError:
            raise
        except Exception as error:  # the libraries raise anything on a broken file, ZeroDivisionError included
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem:  # raised out here: in there it would keep what the library left open
        raise InputError(f"{path} cannot be read as {name} ({problem}); is the file whole, and its suffix right?")
    pictures = [p for p in pictures if p.stack.dtype.kind in "fiub" and p.stack.size]
    if not pictures:
        raise InputError(f"{path}: {name} without a two-dimensional image of real numbers; expected a micrograph")
    return name, pictures


@contextmanager
def _quiet() -> Iterator[None]:
    """Readers warn and log about tags nobody asked for; what matters comes back as an error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _stack(array: NDArray) -> NDArray | None:
    """(rows, columns), (frames, rows, columns) or either with 3 or 4 colours last, as frames; None if it is none of them."""
    colours = array.ndim >= 3 and array.shape[-1] in (3, 4)
    if array.ndim == 2 + colours:
        return array[None]
    return array if array.ndim == 3 + colours else None


# ---------------------------------------------------------------------- TIFF


def _tiff(path: Path) -> list[Picture]:
    import tifffile

    pictures = []
    with tifffile.TiffFile(path) as file:
        for k, series in enumerate(file.series):
            axes = series.axes
            if not {"X", "Y"} <= set(axes):
                continue
            short = [page for page in series.pages if page is not None and _missing(page, path.stat().st_size)]
            if short:
                raise InputError(f"{path} ends before its pixels do; the TIFF is truncated: copy it again")
            last = [axes.index(a) for a in "YXS" if a in axes]
            array = np.moveaxis(series.asarray(), last, range(-len(last), 0))
            if "S" in axes and array.shape[-1] not in (3, 4):  # grey with transparency
                array = array[..., 0]
            frame = array.shape[-len(last) :] if "S" in axes and array.shape[-1] in (3, 4) else array.shape[-2:]
            shown = _shown(array, series.keyframe)
            frame, array = (*frame, *shown.shape[array.ndim :]), shown
            pictures.append(Picture(array.reshape(-1, *frame), f"series {k}", _tiff_scale(file, series.keyframe)))
    return pictures


def _shown(array: NDArray[Any], page: Any) -> NDArray[Any]:
    """The pixels as they are meant to look: where white is the least value they are turned round, palettes become colours."""
    kind = getattr(page.photometric, "name", "")
    if kind == "MINISWHITE":
        return np.iinfo(array.dtype).max - array if array.dtype.kind == "u" else -array
    if kind == "PALETTE" and page.colormap is not None:
        return (np.moveaxis(page.colormap[:, array], 0, -1) >> 8).astype(np.uint8)
    return array


def _missing(page: Any, size: int) -> bool:
    """Whether the pixels of a page lie, in part, behind the end of the file; some readers put zeros there."""
    ends = [at + n for at, n in zip(getattr(page, "dataoffsets", ()), getattr(page, "databytecounts", ()), strict=False) if n]
    return bool(ends) and max(ends) > size


def _tiff_scale(file: Any, page: Any) -> Scale | None:
    """From OME, FEI, Gatan, ImageJ or plain resolution tags, in this order."""
    tag = {t.code: t.value for t in page.tags}
    if file.is_ome and (pixels := re.search(r"<(?:\w+:)?Pixels\b[^>]*>", file.ome_metadata or "")):
        field = dict(re.findall(r'(\w+)="([^"]*)"', pixels[0]))
        if "PhysicalSizeX" in field and "PhysicalSizeY" in field:
            return tuple((float(field[f"PhysicalSize{a}"]), field.get(f"PhysicalSize{a}Unit", "µm")) for a in "YX")
    scan = next((s for k in ("EScan", "Scan") if (s := (file.fei_metadata or {}).get(k))), {})
    if {"PixelWidth", "PixelHeight"} <= set(scan):
        return (float(scan["PixelHeight"]), "m"), (float(scan["PixelWidth"]), "m")
    if {65003, 65004, 65009, 65010} <= set(tag):
        return (float(tag[65010]), str(tag[65004])), (float(tag[65009]), str(tag[65003]))
    if 282 not in tag or 283 not in tag or not all(v[0] and v[1] for v in (tag[282], tag[283])):
        return None
    unit = str((file.imagej_metadata or {}).get("unit", "")) or {2: "inch", 3: "cm"}.get(int(tag.get(296, 1)), "")
    return (tag[283][1] / tag[283][0], unit), (tag[282][1] / tag[282][0], unit)


# ---------------------------------------------------------------------- PNG, JPEG, ...; NumPy


def _raster(path: Path) -> list[Picture]:
    from PIL import Image, ImageSequence

    frames = []
    with Image.open(path) as file:
        for frame in ImageSequence.Iterator(file):
            if frame.mode not in ("L", "F", "I", "RGB", "RGBA") and not frame.mode.startswith("I;16"):
                frame = frame.convert({"1": "L"}.get(frame.mode, "RGBA" if frame.has_transparency_data else "RGB"))
            frames.append(np.array(frame))
    return [Picture(np.stack(frames), "picture")]


def _numpy(path: Path) -> list[Picture]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = dict(loaded) if hasattr(loaded, "files") else {"array": loaded}
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise InputError(f"{path} is no plain NumPy file, or holds Python objects; expected arrays of numbers") from None
    return [Picture(stack, name) for name, array in arrays.items() if (stack := _stack(array)) is not None]


# ---------------------------------------------------------------------- HDF5


def _hdf5(path: Path) -> list[Picture]:
    import h5py

    pictures, seen = [], []

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.ndim:
            seen.append(f"{name} {item.shape} {item.dtype}")
        # hyperspy keeps whatever its source said under these names; small arrays are axes and tables
        if item.dtype.kind in "fiub" and item.ndim in (2, 3) and min(item.shape[-2:]) > 1 and not re.search("metadata/", name):
            scale, image = _hdf5_scale(item)
            if image and (stack := _stack(item[()])) is not None:
                pictures.append(Picture(stack, name, scale))

    with h5py.File(path) as file:
        file.visititems(visit)
    if not pictures:
        raise InputError(f"{path}: no data set of two or three dimensions; the file has {'; '.join(seen[:20]) or 'no data sets'}")
    return pictures


def _hdf5_scale(item: Any) -> tuple[Scale | None, bool]:
    """The scale of a data set - as hyperspy, EMD files or ilastik write it - and whether it is an image, not spectra of a map."""
    group, plain = item.parent, {k: _word(v) for k, v in item.attrs.items()}
    axes = [{k: _word(v) for k, v in group[f"axis-{n}"].attrs.items()} for n in range(item.ndim) if f"axis-{n}" in group]
    if len(axes) == item.ndim and all("scale" in a for a in axes):
        spectra = item.ndim == 3 and axes[1].get("navigate") and not axes[2].get("navigate")
        return tuple((float(a["scale"]), str(a.get("units", ""))) for a in axes[-2:]), not spectra
    dims = [group[f"dim{n + 1}"] for n in range(item.ndim) if f"dim{n + 1}" in group]
    if len(dims) == item.ndim and all(d.ndim == 1 and len(d) > 1 for d in dims):
        steps = [(float(d[1]) - float(d[0]), str(_word(d.attrs.get("units", ""))).replace("_", "").strip("[]")) for d in dims[-2:]]
        return (steps[0], steps[1]), True
    if "element_size_um" in plain and len(size := np.ravel(item.attrs["element_size_um"])) >= 2:
        return ((float(size[-2]), "um"), (float(size[-1]), "um")), True
    return None, True


def _word(value: Any) -> Any:
    """An attribute as a plain number or text."""
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) and np.size(value) == 1 else value
    return value.decode("utf8", "replace") if isinstance(value, bytes) else value


# ---------------------------------------------------------------------- Nanonis


def _sxm(path: Path) -> list[Picture]:
    """Nanonis scans: a text header, then planes of 4-byte numbers; forward and backward of each channel, "Z forward" first.

    Rows are turned so that the first is the top of the scan, and backward lines so that they run from left to right.
    """
    data = path.read_bytes()
    head, mark, planes = data.partition(b"\x1a\x04")
    if not head.lstrip().startswith(b":NANONIS_VERSION:") or not mark:
        raise InputError(f"{path} is no whole Nanonis scan; expected a header from :NANONIS_VERSION: to :SCANIT_END:, then the data")
    parts = re.split(r"^:([^:\n][^\n]*):[ \t]*\r?$", head.decode("latin-1"), flags=re.MULTILINE)
    header = dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))
    if missing := {"SCAN_PIXELS", "SCAN_RANGE", "DATA_INFO"} - set(header):
        raise InputError(f"{path}: the Nanonis header has no {', '.join(sorted(missing))}; the file is damaged")
    columns, rows = map(int, header["SCAN_PIXELS"].split())
    wide, high = map(float, header["SCAN_RANGE"].split())
    kind = "<f4" if "LSBFIRST" in header.get("SCANIT_TYPE", "") else ">f4"
    table = [line.strip().split("\t") for line in header["DATA_INFO"].splitlines()]
    name, way = table[0].index("Name"), table[0].index("Direction")
    labels = [f"{line[name]} {w}" for line in table[1:] for w in (("forward", "backward") if line[way] == "both" else (line[way],))]
    if len(planes) < 4 * rows * columns * len(labels):
        raise InputError(
            f"{path}: {len(planes)} bytes of data; expected {4 * rows * columns * len(labels)} for {len(labels)} planes: truncated"
        )
    stack = np.frombuffer(planes, kind, rows * columns * len(labels)).reshape(-1, rows, columns).astype(np.float32)
    scale = (high / rows, "m"), (wide / columns, "m")
    pictures = []
    for label, plane in zip(labels, stack, strict=True):
        plane = plane[:, ::-1] if label.endswith("backward") else plane
        plane = plane[::-1] if header.get("SCAN_DIR", "down") == "up" else plane  # the first line scanned is then the lowest
        pictures.append(Picture(plane[None], label, scale))
    return sorted(pictures, key=lambda p: p.label != "Z forward")


# ---------------------------------------------------------------------- the io extra


def _rosetta(module: str) -> Callable[[Path], list[Picture]]:
    """A reader that asks RosettaSciIO."""

    def read(path: Path) -> list[Picture]:
        try:
            reader = importlib.import_module(f"rsciio.{module}").file_reader
        except ImportError as error:
            what = f"reading {path.suffix} files needs RosettaSciIO, the io extra ({error}); pip install bayesatoms[io]"
            raise InputError(f"{path}: {what}") from None
        return [p for number, entry in enumerate(reader(str(path))) if (p := _signal(entry, number))]

    return read


def _signal(entry: Mapping[str, Any], number: int) -> Picture | None:
    """An image or a series of images as RosettaSciIO gives it; None for spectra, maps of them and points."""
    data, axes = np.asarray(entry["data"]), list(entry["axes"])
    if data.dtype.names and set(data.dtype.names) >= {"R", "G", "B"}:  # the way hyperspy packs colours
        data = np.stack([data[c] for c in "RGB"], axis=-1)
    flags = [bool(a.get("navigate", False)) for a in axes]
    if len(axes) not in (2, 3) or (len(axes) == 3 and flags[1:] == [True, False]) or (len(axes) == 2 and flags == [True, False]):
        return None
    stack = _stack(data)
    scale = tuple((float(a.get("scale", 1.0)), str(a.get("units", ""))) for a in axes[-2:])
    title = str(entry.get("metadata", {}).get("General", {}).get("title", "") or f"image {number}")
    return None if stack is None else Picture(stack, title, scale)


_ROSETTA = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".mrc": "mrc",
    ".ser": "tia",
    ".emi": "tia",
    ".nxs": "nexus",
    ".nexus": "nexus",
    ".prz": "pantarhei",
    ".rpl": "ripple",
    ".sur": "digitalsurf",
    ".unf": "semper",
    ".zspy": "zspy",
}
SUFFIXES: dict[str, tuple[str, Callable[[Path], list[Picture]]]] = {
    **dict.fromkeys((".tif", ".tiff"), ("TIFF", _tiff)),
    **{s: (f"{s[1:].upper()} picture", _raster) for s in (".png", ".jpg", ".jpeg", ".bmp", ".gif")},
    **dict.fromkeys((".npy", ".npz"), ("NumPy", _numpy)),
    **dict.fromkeys((".h5", ".hdf5", ".hdf", ".hspy"), ("HDF5", _hdf5)),
    ".sxm": ("Nanonis scan", _sxm),
    **{s: (f"{s[1:]} (RosettaSciIO)", _rosetta(module)) for s, module in _ROSETTA.items()},
}
