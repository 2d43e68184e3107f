"""Other labels for an image that has been read: those of a table, matched to its sites by position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..configuration import UNSEEN
from ..errors import InputError
from ..observation import Observation
from ..tables import read_table
from .micrograph import Micrograph

_NEAR = 0.35  # spacings from a site to the row that labels it
_FEWEST = 0.8  # of the rows among the sites that must lie at one: by chance 0.44 do, and the table belongs to another picture


def match_table(micrograph: Micrograph, path: str | Path, columns: Mapping[str, str] | None = None) -> Observation:
    """The image under the labels of a table.

    Each row gives its label to the nearest site, if that lies within 0.35 spacings. The labels are hard and
    taken as certain; a site without a row becomes unseen. How many of each is stored in the observation's `source`.

    Parameters
    ----------
    micrograph : Micrograph
    path : path
        Any table that :func:`bayesatoms.tables.read_table` reads, positions in pixels of the image; rows without
        a position or a label are left out.
    columns : mapping, optional
        Which columns hold "x", "y" and "species"; those names themselves by default.

    Returns
    -------
    Observation

    Raises
    ------
    InputError
        If the file, a column or a species is not there, or the rows do not lie at the sites.

    Examples
    --------
    ``match_table(micrograph, "sites.csv", {"species": "label_of_a_colleague"})`` after ``micrograph = analyse(...)``.
    """
    from scipy.spatial import cKDTree

    path, species = Path(path), micrograph.labels.species
    table = read_table(path)
    wanted = {"x": "x", "y": "y", "species": "species", **(columns or {})}
    if unknown := set(wanted) - {"x", "y", "species"}:
        raise InputError(f"columns names {sorted(unknown)}; expected x, y, species")
    rows = table.records()
    for column in wanted.values():
        if column not in rows[0]:
            raise InputError(f"{path}: column {column!r} not found; the table has {', '.join(rows[0])}")
    rows = [r for r in rows if all((r[wanted[c]] or "").strip() for c in wanted)]
    given = [r[wanted["species"]] for r in rows]
    if strange := sorted(set(given) - set(species)):
        raise InputError(f"{path}: column {wanted['species']!r} holds {', '.join(strange)}; expected {', '.join(species)}")
    try:
        xy = np.array([[float(r[wanted["x"]]), float(r[wanted["y"]])] for r in rows]).reshape(-1, 2)
    except ValueError as error:
        raise InputError(f"{path}: columns {wanted['x']!r}, {wanted['y']!r} hold something that is no number ({error})") from None
    sites = micrograph.columns.positions[: micrograph.n][micrograph.used]
    distance, site = cKDTree(sites).query(xy) if len(xy) else (np.zeros(0), np.zeros(0, int))
    near = distance < _NEAR * micrograph.registration.spacing
    among = distance < micrograph.registration.spacing  # further off, the row lies outside the region that is used
    if near.sum() < max(1, _FEWEST * among.sum()):
        raise InputError(
            f"{path}: only {int(near.sum())} of the {int(among.sum())} labelled rows among the sites of {micrograph.image.name} lie at "
            "one; expected most: positions must be in pixels of this image, x to the right and y down from its first pixel"
        )
    labels = np.full(len(sites), UNSEEN, dtype=np.int8)
    for row in np.flatnonzero(near)[np.argsort(-distance[near], kind="stable")]:  # the nearest row is the last to speak
        labels[site[row]] = species.index(given[row])
    told = labels != UNSEEN
    source = {"labels": path.name, "labels_sha256": table.sha256, "labels_rows": len(rows), "labels_matched": int(told.sum())}
    source["sites_without_label"] = int((~told).sum())
    source["labels_changed"] = int((labels[told] != micrograph.labels.labels[told]).sum())
    o = micrograph.relabelled(labels)
    return replace(o, source={**o.source, **source})
