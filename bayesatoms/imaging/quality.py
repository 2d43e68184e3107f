"""What is wrong with a picture: colour, margins and axes, clipping, smoothing - each found, and said in a sentence.

Everything here works on plain arrays. Nothing is repaired in silence: a function that finds something hands back a warning.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

_LUMINANCE = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709
_PAPER = 6  # grey levels: what JPEG does to a uniform margin
_LEAST = 16  # pixels of a picture along an axis
_CLIPPED = 5e-4  # fraction of the pixels: the brightest columns of re05 are clipped at twice this
_SMOOTHED = 0.5  # power; see `smoothed`


def opaque(pixels: NDArray) -> NDArray:
    """Colours with transparency laid over white; anything else as it is."""
    if pixels.shape[-1] != 4:
        return pixels
    full = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1.0
    alpha = pixels[..., 3:] / full
    return (pixels[..., :3] * alpha + full * (1 - alpha)).round(0 if pixels.dtype.kind == "u" else 9).astype(pixels.dtype)


def grey(pixels: NDArray) -> tuple[NDArray, str | None]:
    """Colours (..., 3) as grey levels, and a warning unless the three channels were equal.

    Examples
    --------
    >>> grey(np.full((2, 2, 3), 7, np.uint8))[0].tolist()
    [[7, 7], [7, 7]]
    >>> grey(np.array([[[255, 0, 0]]], np.uint8))[0].round(1).tolist()
    [[54.2]]
    """
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0], None
    few = pixels.reshape(-1, 3)[:: max(1, pixels.size // 600_000)]  # enough to tell a colour map from a photograph
    count = len(np.unique(few, axis=0))
    # a colour map has 256 entries; blending between neighbouring pixels adds some
    kind = f"a colour-mapped rendering ({count} colours)" if count <= 512 else "a colour picture"
    loss = "intensities are no longer proportional to the signal; use the data behind it if you can"
    return pixels @ np.array(_LUMINANCE), f"{kind} turned to grey by its luminance: {loss}"


# ---------------------------------------------------------------------- a figure around the picture


def find_picture(pixels: NDArray[np.uint8]) -> tuple[slice, slice] | None:
    """Where the picture lies in a figure with margins, axes and a colour bar; None if `pixels` is no figure.

    A figure has a margin of one colour, and in it a large straight-edged rectangle of something else.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (rows, columns) or (rows, columns, 3)

    Returns
    -------
    tuple of two slices (rows, columns), or None

    Examples
    --------
    >>> page = np.full((100, 120), 255, np.uint8)
    >>> page[20:80, 30:100] = np.arange(70) * 3
    >>> find_picture(page)
    (slice(20, 80, None), slice(30, 100, None))
    >>> find_picture(page[20:80, 30:100]) is None
    True
    """
    pixels = pixels.reshape(*pixels.shape[:2], -1).astype(np.int16)
    ring = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colours, counts = np.unique(ring, axis=0, return_counts=True)
    ink = np.abs(pixels - colours[counts.argmax()]).max(axis=-1) > _PAPER
    if np.mean(np.abs(ring - colours[counts.argmax()]).max(axis=-1) <= _PAPER) < 0.6:
        return None  # too little margin: a micrograph
    labels, _ = ndimage.label(ink, structure=np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    if not boxes:
        return None
    k, box = max(enumerate(boxes, 1), key=lambda b: np.prod([s.stop - s.start for s in b[1]]))
    inside = ndimage.binary_fill_holes(labels[box] == k)  # pixels of the colour of the paper belong to the picture, too
    # tick marks hang on to the frame but fill few of the pixels of their row
    spans = [np.flatnonzero(inside.mean(axis=a) > 0.5) for a in (1, 0)]
    if min(map(len, spans)) < _LEAST:
        return None
    (top, bottom), (left, right) = ((int(span[0]), int(span[-1]) + 1) for span in spans)
    inside = inside[top:bottom, left:right]
    straight = min(inside[0].mean(), inside[-1].mean(), inside[:, 0].mean(), inside[:, -1].mean()) > 0.9
    share = inside.size / ink.size
    if not straight or inside.mean() < 0.95 or not 0.1 <= share <= 0.98:
        return None
    rows, columns = slice(box[0].start + top, box[0].start + bottom), slice(box[1].start + left, box[1].start + right)
    return _inside_frame(pixels, rows, columns)


def _inside_frame(pixels: NDArray, rows: slice, columns: slice) -> tuple[slice, slice]:
    """The rectangle without the line drawn around it."""
    block = pixels[rows, columns]
    up, down = _line(block), _line(block[::-1])
    left, right = _line(block.swapaxes(0, 1)), _line(block[:, ::-1].swapaxes(0, 1))
    return slice(rows.start + up, rows.stop - down), slice(columns.start + left, columns.stop - right)


def _line(block: NDArray) -> int:
    """Rows at the top of the block that are a drawn line: uniform beside those of the picture."""
    spread = np.ptp(np.percentile(block, (10, 90), axis=1), axis=0).max(axis=-1)
    usual, width = np.median(spread), 0
    while width < 5 and spread[width] <= 0.2 * usual and usual > 0:
        width += 1
    return width + 1 if width else 0  # the pixel behind a line is a blend of both


# ---------------------------------------------------------------------- clipping and smoothing


def clipped(values: ArrayLike) -> list[str]:
    """Warnings of pixels that pile up at the lowest or the highest value.

    Examples
    --------
    >>> clipped(np.minimum(np.arange(1000), 600) % 601)
    ['clipped: 40.0 % of the pixels have the highest value, 600; the brightest columns may be brighter than they look']
    """
    found = []
    for end, so in (
        ("highest", "the brightest columns may be brighter than they look"),
        ("lowest", "the darkest columns may be darker than they look"),
    ):
        pile = _pile(values, end)
        if pile is not None:
            found.append(f"clipped: {_percent(pile[1])} of the pixels have the {end} value, {pile[0]:g}; {so}")
    return found


def ceiling(values: ArrayLike) -> float | None:
    """The highest value, if pixels pile up there.

    Examples
    --------
    >>> ceiling(np.minimum(np.arange(1000), 600)), ceiling(np.arange(1000))
    (600.0, None)
    """
    pile = _pile(values, "highest")
    return None if pile is None else pile[0]


def _pile(values: ArrayLike, end: str) -> tuple[float, float] | None:
    """The highest or lowest value and the share of pixels that have it, if they are too many to be chance."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    if not values.size or values.min() == values.max():
        return None
    value = values.max() if end == "highest" else values.min()
    share = float(np.mean(values == value))
    piled = share > _CLIPPED and (_at_limit(values, value) or _is_spike(values, value, share))
    return (float(value), share) if piled else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.01 else f"{100 * share:.2f} %"


def _at_limit(values: NDArray, value: float) -> bool:
    """Whether this is the end of the range of an integer type."""
    return values.dtype.kind in "iu" and value in (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max)


def _is_spike(values: NDArray, value: float, share: float) -> bool:
    """Whether more pixels have this value than the one next to it could explain: a tail thins out, a clipped one does not."""
    rest = values[values != value]
    neighbour = rest[np.argmin(np.abs(rest.astype(float) - value))]
    return share > 3 * np.mean(values == neighbour)


def smoothed(data: NDArray) -> str | None:
    """A warning if the noise is not white: the picture was filtered, resampled or compressed before.

    The criterion: P(f > 0.5) / P(0.35 < f < 0.42) < 0.5, with P the median power in a ring of spatial frequency
    (cycles a pixel; beyond 0.5 lie the corners), less the step^2/12 that rounding adds. Columns of a width
    of 1.2 pixels or more put next to nothing there, so both rings hold noise alone, and the median passes over Bragg peaks.
    Measured on synthetic lattices (spacing 6-30 pixels, noise 0.02-0.5 of a column): white noise gives 0.79-1.05, a Gaussian
    blur of 0.5 pixels 0.47, of 0.7 pixels 0.08; on real ones: raw scans 0.84-0.99, re05 and re78 (known to be smoothed)
    below 0.33. Strong smoothing leaves nothing but rounding: noise below half a step where there are many.

    Parameters
    ----------
    data : ndarray, shape (rows, columns)

    Examples
    --------
    >>> noise = np.random.default_rng(1).normal(0, 20, (128, 128))
    >>> smoothed(noise) is None
    True
    >>> smoothed(ndimage.gaussian_filter(noise, 1))[:16]
    'already smoothed'
    """
    data = np.asarray(data[:1024, :1024], dtype=float)
    finite = np.isfinite(data)
    if not finite.any():
        return None
    data = np.where(finite, data - data[finite].mean(), 0.0)
    window = np.hanning(data.shape[0])[:, None] * np.hanning(data.shape[1])
    power = np.abs(np.fft.rfft2(data * window)) ** 2 / max(np.sum(window**2), 1.0)
    f = np.hypot(np.fft.fftfreq(data.shape[0])[:, None], np.fft.rfftfreq(data.shape[1]))
    # the median of an exponential law is ln 2 times its mean
    middle, high = (np.median(power[(f > low) & (f <= end)]) / np.log(2) for low, end in ((0.35, 0.42), (0.5, 0.71)))
    step = _step(data[finite])
    floor = step**2 / 12
    no_noise = np.ptp(data) >= 32 * step and high < 3 * floor
    if not no_noise and max(high - floor, 0.0) >= _SMOOTHED * (middle - floor):
        return None
    return (
        f"already smoothed: the noise at the finest scale has {100 * high / middle:.0f} % of the power it has at middle ones "
        "(filtered, resampled or compressed); position errors and label errors are estimated from what is left"
    )


def _step(values: NDArray) -> float:
    """What the values were rounded to; 0 if they are continuous."""
    levels = np.unique(values)
    return float(np.diff(levels).min()) if 1 < len(levels) < values.size / 4 else 0.0
