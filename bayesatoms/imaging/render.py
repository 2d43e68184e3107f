"""Render: what a microscope would show of a configuration; the way from micrograph to lattice, backwards.

Every fault of a real micrograph is one argument and is off by default, so a test or a user turns on what
is asked about: drift, distortion, probe tails, contamination, counting noise, scan jitter, 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from ..configuration import UNSEEN, Configuration
from ..errors import InputError
from .image import Image
from .quality import ceiling

_REACH = 6.0  # a column is drawn out to so many sigma: exp(-18) of its peak
_WIDTH, _TAIL_WIDTH = 0.17, 0.6  # sigma of a column and of its tail in spacings


@dataclass(frozen=True, eq=False)
class Rendered:
    """A picture and the truth about it.

    Parameters
    ----------
    image : Image
    positions : ndarray of float, shape (n, 2)
        x, y in px of the sites whose centre lies inside the picture, vacancies included: drift, distortion,
        shear and displacements are in them, the jitter of the rows is not.
    labels : ndarray of int, shape (n,)
        Their species numbers in the configuration.
    sites : ndarray of int, shape (n, 3)
        Their site references in the configuration.
    beside : ndarray of float, shape (m, 2)
        x, y in px of the columns inside the picture that are no sites.
    shifts : ndarray of float, shape (rows,)
        Row y shows at x what lies at x + shifts[y], in px: the jitter.
    """

    image: Image
    positions: NDArray[np.float64]
    labels: NDArray[np.int64]
    sites: NDArray[np.int64]
    beside: NDArray[np.float64]
    shifts: NDArray[np.float64]


def render(
    configuration: Configuration,
    *,
    intensity: Mapping[str, float],
    beside: Sequence[tuple[float, float, float]] = (),
    spacing: float = 20.0,
    rotation: float = 0.0,
    shear: float = 0.0,
    mirror: bool = False,
    displacements: ArrayLike | None = None,
    distortion: tuple[float, float] | None = None,
    drift: tuple[float, float] = (0.0, 0.0),
    width: float | None = None,
    tail: float = 0.0,
    tail_width: float | None = None,
    blur: float = 0.0,
    background: float = 0.0,
    ramp: tuple[float, float] = (0.0, 0.0),
    patches: int | Sequence[tuple[float, float, float, float]] = (),
    dose: float | None = None,
    noise: float = 0.0,
    jitter: float = 0.0,
    smooth: float = 0.0,
    clip: float | None = None,
    bits: int | None = None,
    margin: float | None = None,
    shape: tuple[int, int] | None = None,
    rng: np.random.Generator | None = None,
    name: str = "rendered",
) -> Rendered:
    """The picture of a configuration, with as many faults of a micrograph as are asked for.

    The lattice's x runs along x and its y along y of the picture, that is downwards, before it is mirrored,
    sheared and rotated, in this order; then follow distortion and drift, both about its middle.

    Parameters
    ----------
    configuration : Configuration
        Two-dimensional; every site is drawn once, unseen sites are not drawn.
    intensity : mapping of str to float
        Peak of each species' column, before blur and tail, over the background; 0 for a vacancy.
    beside : sequence of (float, float, float)
        Further columns that are no sites, a chalcogen say: fractional x, y in the cell and peak; drawn in
        each cell where a site was seen.
    spacing : float
        Nearest-neighbour distance, px.
    rotation : float
        Degrees from x towards y.
    shear : float
        x grows by so many px per px of y.
    mirror : bool
        Whether x is reversed.
    displacements : array_like, shape (n_sites, 2), optional
        Of every site off its lattice position, in nm along the lattice's x and y.
    distortion : (float, float), optional
        Amplitude and wavelength in px of a slow wave: x moves by ``a sin(2 pi (x + y) / l)``, y by ``a sin(2 pi (x - y) / l)``.
    drift : (float, float)
        How far the sample moves in x and y while one row is scanned, px.
    width : float, optional
        Standard deviation of a column's Gaussian profile, px; 0.17 spacings by default.
    tail : float
        Fraction, 0 to 1, of a column's counts that falls into a wider Gaussian, of standard deviation `tail_width`
        (px; 0.6 spacings by default): the tail of the probe.
    blur : float
        Standard deviation in px of a Gaussian probe; widens columns and keeps their counts.
    background : float
        Level between the columns.
    ramp : (float, float)
        Difference of the background from the first to the last pixel in x and y; none at the middle.
    patches : int or sequence of (float, float, float, float)
        Contamination: x, y, standard deviation (px) and height of Gaussian blobs, or how many to draw at random.
    dose : float, optional
        Counts per unit of intensity: Poisson noise of variance intensity / dose. No such noise by default.
    noise : float
        Standard deviation of Gaussian noise.
    jitter : float
        Standard deviation of each row's own shift in x, px.
    smooth : float
        Standard deviation in px of a Gaussian filter over the noisy picture, as an operator applies it.
    clip : float, optional
        Intensity at which the detector saturates.
    bits : {8, 16}, optional
        Scale the picture to whole numbers from 0 to 255 or 65535.
    margin : float, optional
        Room around the outermost sites, px; one spacing by default, without meaning where `shape` is given.
    shape : (int, int), optional
        Rows and columns of the picture, cut out of the middle.
    rng : Generator, optional
        Needed for dose, noise, jitter and a number of patches.
    name : str
        Of the image.

    Returns
    -------
    Rendered

    Raises
    ------
    InputError
        If the configuration is not a plane, shows nothing, or an argument makes no sense.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> metal = Configuration.from_labels(Lattice.triangular(0.316), ("Mo", "Re"), [[0, 1], [1, 1], [0, 0]])
    >>> picture = render(metal, intensity={"Mo": 0.4, "Re": 1.0}, spacing=20, rotation=15)
    >>> picture.image.shape, round(picture.image.pixel_size, 4), len(picture.positions)
    ((66, 94), 0.0158, 6)
    >>> round(float(picture.image.data.max()), 2)
    1.0
    """
    lattice = configuration.lattice
    if lattice.dimension != 2:
        raise InputError(f"the {lattice.name} lattice has {lattice.dimension} dimensions; render() draws planes: give it one layer")
    _check_numbers(
        positive={"spacing": spacing, "width": width, "tail_width": tail_width, "dose": dose},
        not_negative={"blur": blur, "noise": noise, "jitter": jitter, "smooth": smooth, "tail": tail, "margin": margin},
        finite={
            "rotation": rotation, "shear": shear, "background": background, "ramp": ramp, "drift": drift, "clip": clip,
            "beside": beside, "patches": patches, "distortion": distortion,
        },
    )  # fmt: skip
    if tail > 1:
        raise InputError(f"tail is {tail:g}; expected a fraction from 0 to 1 of a column's counts")
    if not abs(drift[1]) < 0.5:
        raise InputError(f"drift in y is {drift[1]:g} px a row; expected less than half a row")
    if bits not in (None, 8, 16):
        raise InputError(f"bits is {bits}; expected 8, 16 or None")
    if rng is None and (dose is not None or noise or jitter or isinstance(patches, (int, np.integer))):
        raise InputError("dose, noise, jitter and a number of patches need random numbers; give rng=np.random.default_rng(seed)")

    # ---- where the columns lie
    scale = spacing / float(lattice.shell_distances(1)[0])
    ideal, sites, labels, peaks = _columns(configuration, intensity, beside, displacements)
    moved = _imaged(ideal * scale, rotation, shear, mirror, distortion, drift)
    n = len(sites)
    low, high = moved[:n].min(axis=0), moved[:n].max(axis=0)
    if shape is None:
        room = spacing if margin is None else margin
        moved += room - low
        rows, columns = (int(k) for k in np.ceil(high - low + 2 * room)[::-1] + 1)
    else:
        rows, columns = (int(k) for k in shape)
        moved += np.array([columns - 1, rows - 1]) / 2 - (low + high) / 2
    if min(rows, columns) < 1:
        raise InputError(f"shape {shape} has no pixel; expected rows and columns")
    inside = ((moved >= 0) & (moved <= [columns - 1, rows - 1])).all(axis=1)

    # ---- what they look like: a blur keeps the counts of a column, a tail moves some of them
    shifts = rng.normal(0.0, jitter, rows) if jitter else np.zeros(rows)
    sigma = _WIDTH * spacing if width is None else width
    picture = _background((rows, columns), background, ramp, _blobs(patches, (rows, columns), spacing, max(abs(peaks)), rng))
    for part, own in ((1 - tail, sigma), (tail, _TAIL_WIDTH * spacing if tail_width is None else tail_width)):
        if part:
            seen = np.hypot(own, blur)
            _draw(picture, moved, part * peaks * (sigma / seen) ** 2, seen, shifts)

    # ---- what the detector makes of it
    if dose is not None:
        if picture.min() < 0:
            raise InputError(f"the intensity falls to {picture.min():g}, and counts cannot; raise the background or leave out the dose")
        picture = rng.poisson(picture * dose) / dose
    if noise:
        picture = picture + rng.normal(0.0, noise, picture.shape)
    if smooth:
        picture = gaussian_filter(picture, smooth, mode="nearest")
    if clip is not None:
        picture = np.minimum(picture, clip)
    if bits is not None and np.ptp(picture) > 0:
        picture = np.round((picture - picture.min()) * ((2**bits - 1) / np.ptp(picture)))
    image = Image(picture, name, pixel_size=1 / scale, source={"format": "rendered", "bits": bits}, ceiling=ceiling(picture))
    return Rendered(image, moved[:n][inside[:n]], labels[inside[:n]], sites[inside[:n]], moved[n:][inside[n:]], shifts)


def _columns(
    configuration: Configuration,
    intensity: Mapping[str, float],
    beside: Sequence[tuple[float, float, float]],
    displacements: ArrayLike | None,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Positions (nm) of the seen sites and then of the columns beside them, the sites, their labels, the peaks of all columns."""
    species, lattice = configuration.species, configuration.lattice
    if unknown := set(intensity) - set(species):
        raise InputError(f"intensity names {', '.join(sorted(unknown))}; the configuration has {', '.join(species)}")
    labels = configuration.flat.astype(np.int64)
    seen = labels != UNSEEN
    if not seen.any():
        raise InputError("no site of the configuration was seen; expected something to draw")
    if missing := [species[k] for k in np.unique(labels[seen]) if species[k] not in intensity]:
        raise InputError(f"no intensity for {', '.join(missing)}; expected one for every species (0 for a vacancy)")
    _check_numbers(finite={f"intensity of {s}": v for s, v in intensity.items()})
    sites = configuration.supercell.sites
    places = lattice.positions(sites)
    if displacements is not None:
        off = np.asarray(displacements, dtype=float)
        if off.shape != places.shape or not np.isfinite(off[seen]).all():
            raise InputError(f"displacements of shape {off.shape}; expected finite numbers of shape {places.shape}: x, y of every site")
        places = places + off
    peaks = np.array([intensity.get(s, 0.0) for s in species], dtype=float)[labels[seen]]
    others = np.asarray(beside, dtype=float) if len(beside) else np.empty((0, 3))
    if others.ndim != 2 or others.shape[1] != 3:
        raise InputError(f"beside is {beside}; expected rows of fractional x, fractional y and peak")
    cells = np.unique(sites[seen, :-1], axis=0)
    between = ((cells[:, None] + others[None, :, :2]) @ lattice.cell).reshape(-1, 2)
    return np.vstack([places[seen], between]), sites[seen], labels[seen], np.concatenate([peaks, np.tile(others[:, 2], len(cells))])


def _imaged(
    places: NDArray[np.float64],
    rotation: float,
    shear: float,
    mirror: bool,
    distortion: tuple[float, float] | None,
    drift: tuple[float, float],
) -> NDArray[np.float64]:
    """Where places of the lattice (px) appear; distortion and drift vanish at their middle."""
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    linear = np.diag([-1.0 if mirror else 1.0, 1.0]) @ np.array([[1.0, 0.0], [shear, 1.0]]) @ turn
    places = places @ linear
    x, y = (places - (places.min(axis=0) + places.max(axis=0)) / 2).T
    if distortion is not None:
        amplitude, wavelength = distortion
        if not abs(amplitude) * 2 * np.pi < 0.3 * wavelength:
            raise InputError(f"distortion of {amplitude:g} px over {wavelength:g} px; expected a wavelength above 21 times the amplitude")
        k = 2 * np.pi / wavelength
        x, y = x + amplitude * np.sin(k * (x + y)), y + amplitude * np.sin(k * (x - y))
    y = y / (1 - drift[1])  # what lies at y is met by row y' = y + drift y'
    return np.column_stack([x + drift[0] * y, y])


def _background(shape: tuple[int, int], level: float, ramp: tuple[float, float], blobs: ArrayLike) -> NDArray[np.float64]:
    y, x = (np.arange(n, dtype=float) for n in shape)
    across, down = (np.linspace(-r / 2, r / 2, n) for r, n in zip(ramp, shape[::-1], strict=True))
    picture = level + across[None, :] + down[:, None]
    for blob in blobs:
        if np.shape(blob) != (4,) or not blob[2] > 0:
            raise InputError(f"patch {blob}; expected x, y, a standard deviation above 0 (px) and a height")
        bx, by, radius, height = blob
        picture += height * np.exp(-((x - bx) ** 2) / (2 * radius**2))[None, :] * np.exp(-((y - by) ** 2) / (2 * radius**2))[:, None]
    return picture


def _blobs(
    patches: int | Sequence[tuple[float, float, float, float]],
    shape: tuple[int, int],
    spacing: float,
    brightest: float,
    rng: np.random.Generator | None,
) -> ArrayLike:
    """The patches; drawn at random, 2 to 6 spacings wide and 0.1 to 0.5 of the brightest column high, where only their number is given."""
    if not isinstance(patches, (int, np.integer)):
        return patches
    low, high = (0, 0, 2 * spacing, 0.1 * brightest), (shape[1] - 1, shape[0] - 1, 6 * spacing, 0.5 * brightest)
    return rng.uniform(low, high, (patches, 4))


@njit(cache=True)
def _draw(picture, places, peaks, sigma, shifts):  # pragma: no cover
    """Add Gaussians, each on its own patch of pixels; a row's Gaussian is stepped along, two products a pixel."""
    rows, columns = picture.shape
    reach = _REACH * sigma
    over = 0.5 / sigma**2
    step = np.exp(-2 * over)
    for k in range(len(peaks)):
        if peaks[k] == 0.0:
            continue
        x, y = places[k]
        for i in range(max(0, int(np.ceil(y - reach))), min(rows - 1, int(np.floor(y + reach))) + 1):
            centre = x - shifts[i]
            first, last = max(0, int(np.ceil(centre - reach))), min(columns - 1, int(np.floor(centre + reach)))
            u = first - centre
            value = peaks[k] * np.exp(-over * ((i - y) ** 2 + u**2))
            ratio = np.exp(-over * (2 * u + 1))
            for j in range(first, last + 1):
                picture[i, j] += value
                value *= ratio
                ratio *= step


def _check_numbers(
    positive: Mapping[str, float | None] | None = None,
    not_negative: Mapping[str, float | None] | None = None,
    finite: Mapping[str, object] | None = None,
) -> None:
    """Refuse what is not a number, and a wrong sign (InputError); None passes."""
    for names, fits, expected in (
        (positive, lambda v: v > 0, "a number above 0"),
        (not_negative, lambda v: v >= 0, "0 or more"),
        (finite, lambda v: True, "finite numbers"),
    ):
        for name, value in (names or {}).items():
            try:
                fine = value is None or (np.isfinite(value).all() and fits(value))
            except (TypeError, ValueError):  # text, or rows of unlike length
                fine = False
            if not fine:
                raise InputError(f"{name} is {value}; expected {expected}")
