"""Readings: micrographs to species by what a command line says, and what was read as files, as a summary and in a few lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .files import Ledger, write

if TYPE_CHECKING:
    from .imaging.micrograph import Micrograph


@dataclass(frozen=True)
class Options:
    """How to read micrographs, as typed: lists are text with commas (see ``bayesatoms observe --help``)."""

    lattice: str
    a: float
    species: str
    bright: str
    sublattice: int = 0
    pixel_size: float | None = None
    contrast: str | None = None
    roi: str | None = None
    mask: str | None = None
    vacancy: str | None = None
    frame: str | None = None
    channel: str | None = None
    invert: bool = False
    tails: bool = False
    soft: bool = True


def read(paths: Sequence[Path], options: Options) -> list[Micrograph]:
    """Read every image of some files to species; nothing is written.

    Parameters
    ----------
    paths : sequence of paths
    options : Options

    Returns
    -------
    list of Micrograph

    Raises
    ------
    InputError
        If anything typed cannot be understood, two images have one name, or an image cannot be read.

    Examples
    --------
    ``read([Path("alloy.tif")], Options("triangular", 0.316, "Mo,Re", "Re"))``
    """
    from .imaging.micrograph import analyse
    from .imaging.read import read_images
    from .lattice import Lattice

    o = options
    metal = Lattice.named(o.lattice, o.a)
    bright = _words(o.bright)
    keywords: dict[str, Any] = {
        "bright": bright[0] if len(bright) == 1 else bright, "contrast": _contrast(o.contrast), "sublattice": o.sublattice,
        "vacancy": o.vacancy, "roi": _region(o.roi, "--roi"), "mask": _region(o.mask, "--mask"), "tails": o.tails,
        "invert": o.invert, "soft": o.soft,
    }  # fmt: skip
    frames = [_frame(o.frame)] if o.frame not in (None, "mean") else o.frame
    channel = int(o.channel) if o.channel is not None and o.channel.isdigit() else o.channel
    pictures = read_images(list(paths), pixel_size=o.pixel_size, frames=frames, channel=channel)
    names = [p.name for p in pictures]
    if len(set(names)) < len(names):
        raise InputError(f"two images are called {max(names, key=names.count)!r}; rename a file: the results are called after them")
    return [analyse(picture, metal, _words(o.species), **keywords) for picture in pictures]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str, what: str, expected: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise InputError(f"{what} is {text!r}; expected {expected}") from None


def _contrast(text: str | None) -> tuple[float, float] | dict[str, float] | None:
    expected = "two ratios such as 0.3,0.7, or atomic numbers such as Mo=42,Re=75"
    if text is None:
        return None
    if "=" in text:
        pairs = [word.partition("=") for word in _words(text)]
        values = _numbers(",".join(value or "?" for _, _, value in pairs), "--contrast", expected)
        return dict(zip((name.strip() for name, _, _ in pairs), values, strict=True))
    values = _numbers(text, "--contrast", expected)
    if len(values) != 2:
        raise InputError(f"--contrast is {text!r}; expected {expected}")
    return values[0], values[1]


def _region(text: str | None, what: str) -> str | list[list[float]] | None:
    if text is None or not all(c in "0123456789+-.eE, " for c in text) or "," not in text:
        return text
    values = _numbers(text, what, "x0,y0,x1,y1, the corners of a polygon, or a mask picture")
    if len(values) < 4 or len(values) % 2:
        raise InputError(f"{what} has {len(values)} numbers; expected x0,y0,x1,y1 or the x,y of at least three corners")
    return [values[i : i + 2] for i in range(0, len(values), 2)]


def _frame(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--frame is {text!r}; expected a whole number from 0, or mean") from None


# ---------------------------------------------------------------------- out of the program


def write_reading(micrograph: Micrograph, folder: Path) -> list[Path]:
    """NAME.csv, .nc, .extxyz, .json, NAME_overlay.png and NAME_report.png in a folder, each whole or not at all.

    Raises
    ------
    InputError
        If the folder cannot be made or written to.
    """
    name = micrograph.image.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(folder)
        ledger.guard(folder / f"{name}.csv")
        tables = write_tables(micrograph, folder / name)
        pictures = write_pictures(micrograph, folder / f"{name}_overlay.png", folder / f"{name}_report.png")
        text = json.dumps(finite(reading_summary(micrograph)), indent=1, sort_keys=True, allow_nan=False, default=str)
        written = [*tables, *pictures, write(folder / f"{name}.json", text)]
        ledger.close({*written, *(folder / n for n in ledger.known if (folder / n).is_file())})
        return written
    except OSError as error:
        raise InputError(f"folder {folder} cannot be written to ({error.strerror}); choose another --out") from None


def finite(value: Any) -> Any:
    """The same with None for what is not finite: JSON has no word for it.

    Examples
    --------
    >>> finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tables(micrograph: Micrograph, stem: Path) -> list[Path]:
    """STEM.csv, STEM.nc and STEM.extxyz, each whole or not at all."""
    from .imaging.export import write_csv, write_extxyz, write_netcdf

    writers = {".csv": write_csv, ".nc": write_netcdf, ".extxyz": write_extxyz}
    return [write(micrograph, stem.with_name(stem.name + ending)) for ending, write in writers.items()]


def write_pictures(micrograph: Micrograph, overlay: Path, report: Path) -> list[Path]:
    """The overlay, and the figure of all six panels, each whole or not at all."""
    from . import plots

    return [plots.save(plots.overlay(micrograph), overlay), plots.save(plots.reading(micrograph), report, dpi=150)]


def reading_summary(micrograph: Micrograph) -> dict[str, Any]:
    """What `observe` says of an image, by key.

    Parameters
    ----------
    micrograph : Micrograph

    Returns
    -------
    dict
        Ready for JSON, but for numbers that are not finite.

    Examples
    --------
    ``reading_summary(analyse(image, lattice, species, bright="Re"))["sites_used"]``
    """
    m, o = micrograph, micrograph.observation
    notes = sorted(set(m.notes.tolist()) - {""})
    return {
        "sites": m.n,
        "sites_used": int(m.used.sum()),
        "sites_noted": {note: int((m.notes == note).sum()) for note in notes},
        "spots_beside": len(m.registration.strays),
        "environments": o.n,
        "composition": {
            s: {"mean": float(x), "sd": float(sd)} for s, x, sd in zip(m.labels.species, o.true_composition, o.composition_sd, strict=True)
        },
        "label_error": m.labels.label_error.tolist(),
        "label_error_mean": float(m.labels.uncertain.mean()),
        "levels": {s: float(v) for s, v in zip(m.labels.species, m.labels.means, strict=True)},
        "threshold": m.labels.threshold.tolist(),
        "pixel_size_nm": m.pixel_size,
        "pixel_size_header_nm": m.image.source.get("pixel_size_header"),
        "pixel_size_given_nm": m.image.pixel_size,
        "spacing_px": m.registration.spacing,
        "goodness": m.registration.goodness,
        "warnings": list(m.warnings),
        "contamination": m.contamination.sentence,
        "homogeneity": m.homogeneity.sentence,
        "source": {k: v for k, v in o.source.items() if k != "warnings"},
    }


def reading_lines(micrograph: Micrograph) -> list[str]:
    """A few lines for the terminal.

    Parameters
    ----------
    micrograph : Micrograph

    Returns
    -------
    list of str

    Examples
    --------
    ``print(*reading_lines(analyse(image, lattice, species, bright="Re")), sep="\\n")``
    """
    found = reading_summary(micrograph)
    parts = ", ".join(f"{s} {x['mean']:.4f} ± {x['sd']:.4f}" for s, x in found["composition"].items())
    said = found["pixel_size_given_nm"]
    given = "not given" if said is None else f"given {said:.5g}"
    return [
        f"{micrograph.image.name}: {found['sites_used']} of {found['sites']} sites used, {found['environments']} complete environments",
        f"  composition  {parts}",
        f"  labels       {100 * found['label_error_mean']:.2g} % expected to be wrong",
        f"  pixel size   {found['pixel_size_nm']:.5g} nm by the lattice ({given})",
        *(f"  warning: {w}" for w in found["warnings"]),
    ]
