"""Tables of a micrograph that has been read: CSV to work on by hand, netCDF with everything, extxyz for viewers of atoms."""

from __future__ import annotations

import csv
import io
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write, write_dataset
from .micrograph import Micrograph

# long name and unit of the columns of a micrograph's table
_MEANING = {
    "n1": ("lattice index along the first vector", "1"),
    "n2": ("lattice index along the second vector", "1"),
    "b": ("site in the cell", "1"),
    "x": ("column position, to the right from the centre of the first pixel", "px"),
    "y": ("row position, down from the centre of the first pixel", "px"),
    "x_error": ("standard error of x", "px"),
    "y_error": ("standard error of y", "px"),
    "x_nm": ("column position, to the right", "nm"),
    "y_nm": ("row position, down", "nm"),
    "intensity": ("height of the column over the local background", "intensity of the image"),
    "intensity_error": ("standard error of the intensity", "intensity of the image"),
    "background": ("fitted background under the column", "intensity of the image"),
    "misfit": ("residual under the column over that expected from the noise", "1"),
    "residual": ("distance of the maximum from where its neighbours predict it", "nearest-neighbour distance"),
    "species": ("most probable species; empty for a site that is left out", "1"),
    "note": ("why the site is left out, or patch for contamination", "1"),
}


def write_csv(micrograph: Micrograph, path: str | Path) -> Path:
    """The sites as CSV, a row each, whole or not at all; the file is a valid `table`.

    The columns are those of ``Micrograph.table``. A site that is left out has an empty species. `species_read` repeats
    the species: whoever corrects a label in `species` leaves it, so that a reader knows which labels are by hand.

    Parameters
    ----------
    micrograph : Micrograph
    path : path

    Returns
    -------
    Path

    Examples
    --------
    ``write_csv(analyse(image, lattice, species, bright="Re"), "image.csv")``
    """
    table = dict(micrograph.table)
    table["species_read"] = table["species"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*([_cell(name, v) for v in column.tolist()] for name, column in table.items()), strict=True))
    return write(Path(path), text.getvalue())


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if not np.isfinite(value):
        return ""
    # probabilities must sum to 1 again
    return repr(value) if name.startswith("p_") else f"{value:.7g}"


def write_extxyz(micrograph: Micrograph, path: str | Path) -> Path:
    """The sites that are used as extended xyz, whole or not at all.

    Positions are in Å, y down as in the image; intensity, its error, background and p_<species> follow.

    Parameters
    ----------
    micrograph : Micrograph
    path : path

    Returns
    -------
    Path

    Examples
    --------
    ``write_extxyz(analyse(image, lattice, species, bright="Re"), "image.extxyz")``
    """
    used, table = micrograph.used, micrograph.table
    further = ["intensity", "intensity_error", "background", *(f"p_{s}" for s in micrograph.labels.species)]
    properties = ":".join(["species:S:1:pos:R:3", *(f"{name}:R:1" for name in further)])
    head = f'Properties={properties} pbc="F F F" pixel_size_nm={micrograph.pixel_size:.8g} image={json.dumps(micrograph.image.name)}'
    places = np.column_stack([10 * table["x_nm"], 10 * table["y_nm"], np.zeros(micrograph.n)])
    numbers = np.column_stack([places, *(table[name] for name in further)])[used]
    rows = [" ".join([s, *(f"{v:.10g}" for v in row)]) for s, row in zip(table["species"][used], numbers.tolist(), strict=True)]
    return write(Path(path), "\n".join([str(len(rows)), head, *rows, ""]))


def write_netcdf(micrograph: Micrograph, path: str | Path) -> Path:
    """All that was read as netCDF, whole or not at all.

    Variables by site, with `units` and `long_name`; levels and label errors by species; settings, warnings and versions
    as JSON and the hash of the image's file in the attributes. Open it with ``xarray.open_dataset``.

    Parameters
    ----------
    micrograph : Micrograph
    path : path

    Returns
    -------
    Path

    Examples
    --------
    ``write_netcdf(analyse(image, lattice, species, bright="Re"), "image.nc")``
    """
    import xarray as xr

    m, labels, table = micrograph, micrograph.labels, dict(micrograph.table)
    p = np.column_stack([table.pop(f"p_{s}") for s in labels.species])
    data: dict[str, Any] = {}
    for name, column in table.items():
        long, unit = _MEANING[name]
        values = column.astype(str).astype(object) if column.dtype.kind in "OU" else column
        data[name] = ("site", values, {"long_name": long, "units": unit})
    intensity = "intensity of the image"
    stray = np.full(m.n, np.nan)
    stray[m.used] = labels.stray
    data |= {
        "used": ("site", m.used, {"long_name": "whether the species of the site is told", "units": "1"}),
        "probability": (("site", "species_name"), p, {"long_name": "probability of each species", "units": "1"}),
        "stray": ("site", stray, {"long_name": "probability that the column fits no level", "units": "1"}),
        "level": ("species_name", labels.means, {"long_name": "intensity level of the species", "units": intensity}),
        "spread": ("species_name", labels.spreads, {"long_name": "standard deviation within the level", "units": intensity}),
        "fraction": ("species_name", labels.fractions, {"long_name": "expected share of the sites", "units": "1"}),
        "label_error": (
            ("species_name", "labelled"), labels.label_error,
            {"long_name": "probability that a site of the species carries the label", "units": "1"},
        ),
        "threshold": ("boundary", labels.threshold, {"long_name": "intensity between neighbouring levels, from above", "units": intensity}),
        "stray_position": (("spot", "axis"), m.registration.strays, {"long_name": "bright spots that are no column", "units": "px"}),
        "lattice_vector": (("vector", "axis"), m.registration.vectors, {"long_name": "mean lattice vectors", "units": "px"}),
    }  # fmt: skip
    names = list(labels.species)
    settings = {k: v for k, v in m.observation.source.items() if k != "warnings"}
    attributes = {
        "title": f"sites of {m.image.name}",
        "settings": json.dumps(settings, sort_keys=True, default=str),
        "warnings": json.dumps(list(m.warnings)),
        "contamination": m.contamination.sentence,
        "homogeneity": m.homogeneity.sentence,
        "pixel_size_nm": m.pixel_size,
        "sha256": str(m.image.source.get("sha256", "")),
        "versions": json.dumps(versions(), sort_keys=True),
    }
    dataset = xr.Dataset(data, {"species_name": names, "labelled": names, "axis": ["x", "y"]}, attributes)
    return write_dataset(dataset, path)


def versions() -> dict[str, str]:
    """Versions of what read the image.

    Examples
    --------
    >>> sorted(versions())
    ['bayesatoms', 'numpy', 'python', 'scikit-image', 'scipy']
    """
    found = {"python": platform.python_version()}
    for package in ("bayesatoms", "numpy", "scikit-image", "scipy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a source tree
            found[package] = "source"
    return found
