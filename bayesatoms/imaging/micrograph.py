"""Micrograph: an image read from pixels to species, with everything one needs to judge the reading.

``analyse`` does the whole way, image to labelled lattice; ``observe`` keeps what inference needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt, label
from scipy.spatial import cKDTree

from ..configuration import Configuration
from ..environments import Environments
from ..errors import InputError
from ..lattice import Lattice
from ..observation import Observation
from .cell import column_spacing
from .columns import Columns, fit_columns
from .contamination import Contamination, contamination
from .homogeneity import Homogeneity, homogeneity
from .image import Image
from .quality import ceiling
from .regions import Region, region
from .registration import Registration, misplaced, register
from .species import Labels, classify

Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]

_SCALE = 0.02  # the lattice and the header may differ by so much
_PADDING = 2.0  # pixels: a constant region along the edge wider than that, on average, was not recorded
_EDGE = 0.25  # spacings from the edge of what was recorded: much of a nearer column's light is missing
_FAINT = 0.1  # of the median column: less is no atom
_DOUBT = 0.35  # of it, or three standard errors: nor is less that shows no maximum
_NOTHING = 10.0  # nor is what is so many times likelier to be nothing than the dimmest species
_MISFIT = 4.0  # times the usual residual: no column
_PATCH = 0.35  # of the median column: a background so far above its surroundings is contamination
_SURROUNDINGS = 8.0  # spacings
_TOLD = 0.01  # by so much probabilities must differ between sites for labels to tell anything
_CLEAR = 1.25  # ratio of the heights of two kinds of columns below which brightness hardly tells them apart


@dataclass(frozen=True, eq=False)
class Micrograph:
    """An image that has been read.

    Attributes
    ----------
    image : Image
    registration : Registration
    columns : Columns
        Sites first, in the order of `registration.sites`, then those beside them.
    notes : ndarray of str, shape (n,)
        Why a site is left out ("edge", "vacant", "beyond", "misfit", "faint"), or "patch" where contamination lies on it; else "".
    used : ndarray of bool, shape (n,)
        Sites whose species is told.
    labels : Labels
        Of the sites used, in their order.
    pixel_size : float
        nm, from the lattice.
    contamination : Contamination
    homogeneity : Homogeneity
    observation : Observation
    warnings : tuple of str
    """

    image: Image
    registration: Registration
    columns: Columns
    notes: NDArray[np.str_]
    used: Truths
    labels: Labels
    pixel_size: float
    contamination: Contamination
    homogeneity: Homogeneity
    observation: Observation
    warnings: tuple[str, ...]

    @property
    def n(self) -> int:
        """Lattice sites within the image."""
        return len(self.registration.sites)

    @cached_property
    def table(self) -> dict[str, NDArray[Any]]:
        """The sites, a row each: indices, position and intensity with standard errors, species and its probabilities.

        A site that is left out has no species and its reason as `note`.
        """
        n, columns, size = self.n, self.columns, self.pixel_size
        species = np.full(n, "", dtype=object)
        species[self.used] = np.array(self.labels.species, dtype=object)[self.labels.labels]
        rows: dict[str, NDArray[Any]] = {name: self.registration.sites[:, i] for i, name in enumerate(("n1", "n2", "b"))}
        rows |= {"x": columns.positions[:n, 0], "y": columns.positions[:n, 1]}
        rows |= {"x_error": columns.position_errors[:n, 0], "y_error": columns.position_errors[:n, 1]}
        rows |= {"x_nm": columns.positions[:n, 0] * size, "y_nm": columns.positions[:n, 1] * size}
        rows |= {"intensity": columns.intensities[:n], "intensity_error": columns.intensity_errors[:n]}
        rows |= {"background": columns.background[:n], "misfit": columns.misfit[:n], "residual": self.registration.residual}
        rows["species"] = species
        for i, name in enumerate(self.labels.species):
            p = np.full(n, np.nan)
            p[self.used] = self.labels.probabilities[:, i]
            rows[f"p_{name}"] = p
        rows["note"] = self.notes
        return rows

    def relabelled(self, labels: NDArray[np.int8], probabilities: Floats | None = None) -> Observation:
        """The same sites under other labels (n used,), taken as certain unless their probabilities (n used, k) are given.

        A label of -1 makes a site count as unseen.
        """
        labels, used = np.asarray(labels), self.used.copy()
        used[self.used] = told = labels >= 0
        configuration, order = _configuration(self.registration, used, labels[told], self.labels.species)
        mine = self.observation
        return Observation.from_configuration(
            configuration, name=mine.name, environments=mine.environments, temperature=mine.temperature, source=mine.source,
            positions=self.columns.positions[: self.n][used][order],
            probabilities=None if probabilities is None else probabilities[told][order],
        )  # fmt: skip


def analyse(
    image: Image | ArrayLike,
    lattice: Lattice,
    species: Sequence[str],
    *,
    bright: str | Sequence[str],
    contrast: tuple[float, float] | Mapping[str, float] | None = None,
    sublattice: int = 0,
    vacancy: str | None = None,
    roi: Region | None = None,
    mask: Region | None = None,
    tails: bool = False,
    invert: bool = False,
    soft: bool = True,
    atoms: int = 1,
    environments: Environments | None = None,
    temperature: float | None = None,
    name: str | None = None,
    folder: str | Path | None = None,
) -> Micrograph:
    """Read an image: find its columns, index them, tell their species.

    Parameters
    ----------
    image : Image or array, shape (rows, columns)
    lattice : Lattice
        Of the sites that are meant (the metal of MoS2, say); the image may show further columns. Its
        nearest-neighbour distance in nm gives the pixel size.
    species : sequence of str
    bright : str or sequence of str
        The brightest species, or all of them from the brightest to the dimmest.
    contrast : (low, high) or mapping, optional
        Ratio of one species' intensity to the next brighter one's: a range, or atomic numbers.
    sublattice : int
        For a lattice with one site a cell: which kind of column is meant, counted by mean brightness from 0.
    vacancy : str, optional
        The species that is a missing atom; otherwise empty sites are left out.
    roi, mask : region, optional
        What to use, and what to leave out (see :func:`bayesatoms.imaging.regions.region`).
    tails : bool
        Correct intensities for light from the tails of the probe on neighbouring columns.
    invert : bool
        Atoms are dark.
    soft : bool
        Carry the probabilities of the labels into inference; else hard labels with an error matrix.
    atoms : int
        Atoms that a column holds along the beam, for the warning that labels are those of columns.
    environments : Environments, optional
        The shell of nearest neighbours by default.
    temperature : float, optional
        Formation temperature, K.
    name : str, optional
        The image's own by default.
    folder : path, optional
        Where relative paths of `roi` and `mask` start.

    Returns
    -------
    Micrograph

    Raises
    ------
    InputError
        If the image holds no such lattice, or anything given does not fit.

    Examples
    --------
    >>> from bayesatoms.imaging.render import render
    >>> metal, rng = Lattice.triangular(0.316), np.random.default_rng(1)
    >>> alloy = Configuration.random(metal, ("Mo", "Re"), (14, 14), (0.7, 0.3), rng, periodic=False)
    >>> picture = render(alloy, intensity={"Mo": 0.5, "Re": 1.0}, noise=0.03, rng=rng)
    >>> found = analyse(picture.image, metal, ("Mo", "Re"), bright="Re")
    >>> bool(found.used.sum() >= 190), bool(abs(found.observation.composition[1] - 0.3) < 0.05)
    (True, True)
    """
    if not isinstance(image, Image):
        image = Image(np.asarray(image), name or "image", ceiling=ceiling(image))
    if name is not None:
        image = replace(image, name=name)
    warnings = list(image.warnings)
    if lattice.dimension != 2:
        raise InputError(f"{image.name}: lattice {lattice.name} has {lattice.dimension} dimensions; expected 2: an image shows a plane")
    if atoms > 1:
        warnings.append(
            f"each column holds {atoms} atoms along the beam: labels are those of columns, and couplings those between columns, not atoms"
        )
    data = _chosen(image, roi, mask, folder)
    data[border := _border(data)] = np.nan
    if border.any():
        warnings.append(f"{border.mean():.0%} of the pixels are a constant border (padding): taken as not recorded")
    if invert:
        data = np.nanmax(data) - data
    found, scale = _registered(data, image, lattice, sublattice, warnings)
    n = len(found.sites)
    seeds = np.vstack([found.positions, found.beside])
    columns = fit_columns(_unclipped(data, ceiling(data) if invert else image.ceiling), seeds, found.kinds, found.spacing)
    notes = _notes(found, columns, np.isfinite(data), vacancy is not None, sublattice == 0)
    if vacancy is not None:
        notes[_beyond(found, columns)] = "beyond"
    tell = partial(_labels, found, columns, species, bright, contrast, vacancy, tails, image.name)
    used, near, labels = tell(notes)
    if vacancy is None:
        empty = _empty(columns.intensities[:n], columns.intensity_errors[:n], labels) & used
        if empty.any():
            notes[empty] = "vacant"
            used, near, labels = tell(notes)
    residual = np.full(n, np.nan)
    residual[used] = misplaced(lattice, found.sites[used], columns.positions[:n][used], found.spacing)
    found = replace(found, residual=residual)
    _tell(found, notes, n, warnings)
    dirt = contamination(labels, labels.intensity, columns.background[:n][used], columns.positions[:n][used])
    even = homogeneity(columns.positions[:n][used], labels.probabilities, near)
    warnings += [*labels.warnings, *([dirt.sentence] if dirt.suspect else []), *([even.sentence] if even.suspect else [])]
    settings = {
        "lattice": lattice.name, "spacing_px": found.spacing, "pixel_size_nm": scale, "goodness": found.goodness, "sublattice": sublattice,
        "bright": bright if isinstance(bright, str) else list(bright), "sites": n, "sites_used": int(used.sum()), "soft": soft,
        "contrast": dict(contrast) if isinstance(contrast, Mapping) else contrast, "vacancy": vacancy, "tails": tails, "invert": invert,
        "atoms": atoms, "pixels_used": int(np.isfinite(data).sum()),
    }  # fmt: skip
    shell = environments or Environments(lattice, tuple(species))
    told = tuple(dict.fromkeys(warnings))
    source = {**image.source, **settings, "warnings": list(told)}
    if np.ptp(labels.probabilities, axis=0).max() < _TOLD:
        raise InputError(
            f"{image.name}: the intensities show one level (about {np.median(labels.intensity):.3g}) and cannot tell which species it is; "
            "expected columns of both: give a table with the species, or narrow the range of `contrast`"
        )
    observation = _observe(found, columns, used, labels, soft, shell, image, temperature, source)
    return Micrograph(image, found, columns, notes, used, labels, scale, dirt, even, observation, told)


def observe(
    image: Image | ArrayLike, lattice: Lattice, species: Sequence[str], *, bright: str | Sequence[str], **keywords: Any
) -> Observation:
    """The observation of an image, ready for inference; keywords as for :func:`analyse`, which tells more.

    Examples
    --------
    >>> from bayesatoms.imaging.render import render
    >>> square, rng = Lattice.square(0.39), np.random.default_rng(1)
    >>> mixed = Configuration.random(square, ("A", "B"), (12, 12), (0.5, 0.5), rng, periodic=False)
    >>> observe(render(mixed, intensity={"A": 0.6, "B": 1.0}, noise=0.03, rng=rng).image, square, ("A", "B"), bright="B").n
    100
    """
    return analyse(image, lattice, species, bright=bright, **keywords).observation


def _chosen(image: Image, roi: Region | None, mask: Region | None, folder: str | Path | None) -> Floats:
    """The pixels that are used; nan elsewhere."""
    data = image.data.copy()
    if roi is not None:
        data[~region(image.shape, roi, f"{image.name}: roi", folder)] = np.nan
    if mask is not None:
        data[region(image.shape, mask, f"{image.name}: mask", folder)] = np.nan
    if not np.isfinite(data).any():
        raise InputError(f"{image.name}: roi and mask leave no pixel; expected a region to use")
    return data


def _unclipped(data: Floats, ceiling: float | None) -> Floats:
    """Without the pixels at the upper limit of a clipped image: the flanks of a column tell its height."""
    return data if ceiling is None else np.where(data >= ceiling, np.nan, data)


def _registered(data: Floats, image: Image, lattice: Lattice, sublattice: int, warnings: list[str]) -> tuple[Registration, float]:
    """The lattice in the image and the pixel size in nm that it gives."""
    nearest = float(lattice.shell_distances(1)[0])
    hint = None if image.pixel_size is None else nearest / image.pixel_size
    try:
        found = register(data, lattice, spacing=hint, sublattice=sublattice, name=image.name)
    except InputError:
        if hint is None:
            raise
        found = register(data, lattice, sublattice=sublattice, name=image.name)
    scale = nearest / column_spacing(found.vectors, lattice)  # by the mean cell: bonds may be split, as in 1T'
    if image.pixel_size is not None and abs(image.pixel_size / scale - 1) > _SCALE:
        warnings.append(
            f"pixel size {image.pixel_size:.4g} nm in the header, {scale:.4g} nm by the lattice ({nearest:g} nm between neighbours): "
            f"{image.pixel_size / scale - 1:+.0%}; that of the lattice is used"
        )
    clarity = found.motif.clarity(sublattice)
    if clarity < _CLEAR:
        warnings.append(
            f"two kinds of columns differ in mean brightness by a factor of {clarity:.2f} only: check in the overlay that "
            f"the right one is read, else set sublattice"
        )
    if found.motif.inverted:
        warnings.append(
            "the columns look dark on bright ground: if atoms are dark in this image, set invert; `bright` then means bright after it"
        )
    return found, scale


def _notes(found: Registration, columns: Columns, there: Truths, vacancies: bool, brightest: bool) -> NDArray[np.str_]:
    """Why a site is left out, or "patch" where it lies under contamination, or ""."""
    n = len(found.sites)
    intensity, error = columns.intensities[:n], columns.intensity_errors[:n]
    typical = float(np.median(intensity[found.seen])) if found.seen.any() else float(np.median(intensity))
    notes = np.full(n, "", dtype="<U6")
    notes[_excess(columns, n, found.spacing) > _PATCH * typical] = "patch"
    if not vacancies:
        notes[intensity < _FAINT * typical] = "vacant"
        if brightest:  # where there is no maximum either, so little need not be an atom; other sublattices often have none
            notes[~found.seen & (intensity < np.minimum(3 * error, _DOUBT * typical))] = "vacant"
    notes[error > 0.5 * typical] = "faint"
    notes[columns.misfit[:n] > _MISFIT] = "misfit"
    notes[_to_edge(there, columns.positions[:n]) < _EDGE * found.spacing] = "edge"
    return notes


def _border(data: Floats) -> Truths:
    """A region of one exact value along the edge of the picture, such as the zeros that an alignment puts there."""
    found = np.zeros(data.shape, dtype=bool)
    rim = np.concatenate([data[0], data[-1], data[:, 0], data[:, -1]])
    rim = rim[np.isfinite(rim)]
    if not len(rim):
        return found
    values, counts = np.unique(rim, return_counts=True)
    parts, n = label(data == values[counts.argmax()])
    size = np.bincount(parts.ravel(), minlength=n + 1)
    touching = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    wide = [p for p in touching if p > 0 and size[p] > _PADDING * sum(data.shape)]
    return np.isin(parts, wide) if wide else found


def _beyond(found: Registration, columns: Columns) -> Truths:
    """Empty sites all of whose neighbours are empty, and the empty ones next to them: vacuum, not vacancies.

    Among atoms a vacancy whose neighbours are all vacancies is rare, x^7 of the sites of a triangular lattice.
    """
    n = len(found.sites)
    intensity, error = columns.intensities[:n], columns.intensity_errors[:n]
    typical = float(np.median(intensity[found.seen]))
    empty = (intensity < np.maximum(3 * error, _FAINT * typical)) & (intensity < _DOUBT * typical)
    near = found.neighbours()
    around = np.where(near >= 0, empty[near], True)
    core = empty & around.all(axis=1) & ((near >= 0).sum(axis=1) >= near.shape[1] // 2)
    return core | (empty & np.where(near >= 0, core[near], False).any(axis=1))


def _to_edge(there: Truths, positions: Floats) -> Floats:
    """Pixels from each position to the edge of what was recorded and is used."""
    away = distance_transform_edt(np.pad(there, 1))[1:-1, 1:-1]
    column, row = np.clip(np.round(positions).astype(np.int64), 0, np.array(there.shape[::-1]) - 1).T
    return away[row, column]


def _labels(
    found: Registration,
    columns: Columns,
    species: Sequence[str],
    bright: str | Sequence[str],
    contrast: tuple[float, float] | Mapping[str, float] | None,
    vacancy: str | None,
    tails: bool,
    name: str,
    notes: NDArray[np.str_],
) -> tuple[Truths, NDArray[np.int64], Labels]:
    """The sites used, their neighbours among themselves and their species."""
    used = (notes == "") | (notes == "patch")
    n = len(used)
    if used.sum() < max(12, 0.3 * n):
        counts = ", ".join(f"{c} {note}" for note, c in zip(*np.unique(notes[~used], return_counts=True), strict=True))
        raise InputError(f"{name}: only {int(used.sum())} of {n} sites can be used ({counts}); crop, mask, or check the lattice's name")
    row = np.where(used, np.cumsum(used) - 1, -1)
    neighbours = found.neighbours()[used]
    near = np.where(neighbours >= 0, row[neighbours], -1)
    try:
        labels = classify(
            columns.intensities[:n][used], columns.intensity_errors[:n][used], species, bright, contrast=contrast, vacancy=vacancy,
            background=columns.background[:n][used], neighbours=near, tails=tails,
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return used, near, labels


def _empty(intensity: Floats, error: Floats, labels: Labels) -> Truths:
    """Sites that are far likelier to hold nothing than the dimmest species."""
    dim = int(np.argmin(labels.means))
    nothing = -0.5 * (intensity / error) ** 2 - np.log(error)
    spread = np.hypot(error, labels.spreads[dim])
    atom = -0.5 * ((intensity - labels.means[dim]) / spread) ** 2 - np.log(spread)
    return (nothing > atom + np.log(_NOTHING)) & (intensity < 0.5 * labels.means[dim])


def _excess(columns: Columns, n: int, spacing: float) -> Floats:
    """Background at each site over that of its wider surroundings."""
    positions, background = columns.positions[:n], columns.background[:n]
    x, y = ((positions - positions.mean(axis=0)) / np.ptp(positions, axis=0)).T
    design = np.column_stack([np.ones(n), x, y, x * x, x * y, y * y])
    weight = np.ones(n)
    for _ in range(5):  # a slope of the whole picture is no patch, and patches must not tilt it
        rest = background - design @ np.linalg.lstsq(design * weight[:, None], background * weight, rcond=None)[0]
        weight = 1 / np.sqrt(1 + (rest / max(1.5 * float(np.median(np.abs(rest))), 1e-12)) ** 2)
    near = cKDTree(positions).query(positions, min(n, int(np.pi * _SURROUNDINGS**2)))[1]
    return rest - np.median(rest[near], axis=1)


def _tell(found: Registration, notes: NDArray[np.str_], n: int, warnings: list[str]) -> None:
    """Warnings about the sites that are left out."""
    for note, meaning in (
        ("vacant", "hold no atom and are left out (name a vacancy species to count them)"),
        ("faint", "are too faint for the noise and are left out"),
        ("misfit", "look like no column and are left out"),
        ("beyond", "are empty among empty ones: vacuum, no vacancies; they are left out"),
        ("patch", "lie under bright contamination: check their labels, or mask them"),
    ):
        if (count := int((notes == note).sum())) > 0:
            warnings.append(f"{count} of {n} sites {meaning}")
    if len(found.strays) > 0.05 * n:
        warnings.append(f"{len(found.strays)} bright spots belong to no column: adatoms, amorphous patches or contamination")


def _observe(
    found: Registration, columns: Columns, used: Truths, labels: Labels, soft: bool, environments: Environments, image: Image,
    temperature: float | None, source: Mapping[str, Any],
) -> Observation:  # fmt: skip
    configuration, order = _configuration(found, used, labels.labels, labels.species)
    error = None if soft else labels.label_error
    return Observation.from_configuration(
        configuration, name=image.name, environments=environments, label_error=error,
        probabilities=labels.probabilities[order] if soft else None, temperature=temperature, source=dict(source),
        positions=columns.positions[: len(used)][used][order],
    )  # fmt: skip


def _configuration(
    found: Registration, used: Truths, labels: NDArray[np.int8], species: tuple[str, ...]
) -> tuple[Configuration, NDArray[np.int64]]:
    """The labelled lattice, and the order of its seen sites among those used."""
    sites = found.sites[used]
    configuration = Configuration.from_sites(found.lattice, species, sites, labels)
    cells = np.column_stack([sites[:, :-1] - sites[:, :-1].min(axis=0), sites[:, -1]])
    return configuration, np.argsort(configuration.supercell.index(cells))
