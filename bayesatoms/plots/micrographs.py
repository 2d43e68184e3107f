"""Pictures of an image that has been read: what was found, what was taken for what, and what to doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy import ndimage

from ..imaging.micrograph import Micrograph
from ..imaging.strain import strain as local_strain
from .style import GREY, INK, PALE, new_figure, species_colours, styled

Floats = NDArray[np.float64]

_BARS = (1, 2, 5)  # a scale bar is one of these times a power of ten
_DOUBT = 0.05  # probability of a wrong label from which a site is ringed
_RING, _DOUBTED = 0.62, 0.92  # diameters of the rings, in spacings
_SURE = 1e-3  # lower end of the colours of doubt
_ALARM, _DARK = "#FF2D2D", "#3a3a3a"
# marker, colour and meaning of the sites that are left out, and of those to look at
_MARKS = {
    "edge": (".", "white", "at the edge, left out"),
    "vacant": ("s", "white", "no atom, left out"),
    "misfit": ("X", _ALARM, "no column, left out"),
    "faint": ("v", _ALARM, "too faint, left out"),
    "patch": ("d", _ALARM, "under contamination"),
}


# ---------------------------------------------------------------------- one panel


def _frame(ax: Axes, micrograph: Micrograph) -> None:
    """Axes in the image's pixels, y down, without ticks, and a scale bar below."""
    rows, columns = micrograph.image.shape
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    ax.set_aspect("equal")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, linewidth=0.5, color=GREY)
    width = columns * micrograph.pixel_size
    decade = 10.0 ** np.floor(np.log10(width / 3))
    length = max(b * decade for b in _BARS if b * decade <= width / 3)
    across = ax.get_xaxis_transform()
    bar = [0, length / micrograph.pixel_size]
    ax.plot(bar, [-0.035] * 2, transform=across, color=INK, lw=2.2, solid_capstyle="butt", clip_on=False)
    ax.annotate(f"{length:g} nm", (bar[1], -0.035), (4, 0), across, textcoords="offset points", va="center", fontsize=7.5)


def _points(ax: Axes, micrograph: Micrograph) -> float:
    """Spacing on paper, in points."""
    rows, columns = micrograph.image.shape
    box = ax.get_position().bounds
    width, height = ax.figure.get_size_inches() * box[2:]
    return 72 * micrograph.registration.spacing * min(width / columns, height / rows)


def _rings(ax: Axes, micrograph: Micrograph, places: Floats, diameter: float, edge: Any, width: float) -> None:
    d = np.full(len(places), diameter * micrograph.registration.spacing)
    rings = EllipseCollection(d, d, np.zeros(len(d)), units="xy", offsets=places, offset_transform=ax.transData)
    rings.set(facecolor="none", edgecolor=edge, linewidth=width, zorder=3)
    ax.add_collection(rings)


def _sites(ax: Axes, micrograph: Micrograph, values: Floats, map_: str, norm: Normalize) -> EllipseCollection:
    """A disc for every site with a value, coloured by it; hollow ones where there is none."""
    places = micrograph.columns.positions[: micrograph.n]
    known = np.isfinite(values)
    _rings(ax, micrograph, places[~known], 0.5, PALE, 0.5)
    d = np.full(int(known.sum()), 0.9 * micrograph.registration.spacing)
    discs = EllipseCollection(d, d, np.zeros(len(d)), units="xy", offsets=places[known], offset_transform=ax.transData)
    discs.set(array=values[known], cmap=map_, norm=norm, edgecolor=GREY, linewidth=0.15)
    ax.add_collection(discs)
    return discs


def _bar(ax: Axes, shown: Any, label: str, **keywords: Any) -> None:
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.85, aspect=24, pad=0.02, label=label, **keywords)
    bar.outline.set_linewidth(0.4)


def _picture(ax: Axes, micrograph: Micrograph) -> None:
    data = micrograph.image.data
    low, high = np.nanquantile(data, (0.005, 0.995))
    ax.imshow(data, cmap="gray", vmin=low, vmax=max(high, low + 1e-12), interpolation="nearest", origin="upper")


def _overlay(ax: Axes, micrograph: Micrograph) -> list[Line2D]:
    m = micrograph
    _picture(ax, m)
    _frame(ax, m)
    unit = _points(ax, m)
    width = float(np.clip(0.09 * unit, 0.4, 1.3))
    places, labels = m.columns.positions[: m.n], m.labels
    colours = np.array(species_colours(len(labels.species)))
    _rings(ax, m, places[m.used], _RING, colours[labels.labels], width)
    doubt = labels.uncertain > _DOUBT
    _rings(ax, m, places[m.used][doubt], _DOUBTED, "white", 0.75 * width)
    count = np.bincount(labels.labels, minlength=len(colours))
    legend = [_key("o", c, f"{s} ({n})", hollow=True) for s, c, n in zip(labels.species, colours, count, strict=True)]
    if doubt.any():
        legend.append(_key("o", "white", f"wrong with > {100 * _DOUBT:g} % ({doubt.sum()})", hollow=True, size=8))
    for note, (marker, colour, text) in _MARKS.items():
        here = places[m.notes == note]
        if len(here):
            size = float(np.clip(0.45 * unit, 1.5, 7))
            ax.plot(*here.T, ls="", marker=marker, ms=size, mfc=colour, mec=INK, mew=0.4, zorder=4)
            legend.append(_key(marker, colour, f"{text} ({len(here)})"))
    strays = m.registration.strays
    if len(strays):
        ax.plot(*strays.T, ls="", marker="+", ms=float(np.clip(0.5 * unit, 2, 8)), mec=_ALARM, mew=0.9, zorder=4)
        legend.append(_key("+", _ALARM, f"spots that are no column ({len(strays)})", hollow=True))
    return legend


def _key(marker: str, colour: Any, text: str, *, hollow: bool = False, size: float = 6) -> Line2D:
    face, edge = ("none", colour) if hollow else (colour, INK)
    return Line2D([], [], ls="", marker=marker, ms=size, mfc=face, mec=edge, mew=1.2 if hollow else 0.4, label=text)


def _legend(figure: Figure, handles: list[Line2D], columns: int) -> None:
    """Marks as on the image: on dark ground."""
    figure.legend(
        handles=handles, loc="outside lower left", ncols=columns, handletextpad=0.3, columnspacing=1.4, frameon=True, facecolor=_DARK,
        edgecolor="none", framealpha=1, labelcolor="white",
    )  # fmt: skip


def _title(micrograph: Micrograph) -> str:
    """Name, composition with error, sites and environments."""
    o = micrograph.observation
    parts = zip(o.environments.species[1:], o.true_composition[1:], o.composition_sd[1:], strict=True)
    fractions = ", ".join(f"x({s}) = {x:.3f} ± {sd:.3f}" for s, x, sd in parts)
    return f"{micrograph.image.name}: {fractions}\n{int(micrograph.used.sum())} of {micrograph.n} sites used, N = {o.n} environments"


def _intensities(ax: Axes, micrograph: Micrograph) -> None:
    labels = micrograph.labels
    y, colours = labels.intensity, species_colours(len(labels.species))
    low, high = min(y.min(), 0.0), y.max()
    edges = np.linspace(low, high + 0.03 * (high - low), 61)
    fine = np.linspace(edges[0], edges[-1], 600)
    scale = len(y) * (edges[1] - edges[0])
    ax.hist(y, edges, color=PALE)
    density = scale * labels.density(fine)
    for s, colour, curve in zip(labels.species, colours, density, strict=True):
        ax.fill_between(fine, curve, color=colour, alpha=0.35, lw=0)
        ax.plot(fine, curve, color=colour, label=s)
    ax.plot(fine, density.sum(axis=0), color=INK, lw=0.8, label="mixture")
    for i, t in enumerate(labels.threshold):
        ax.axvline(t, color=INK, lw=0.8, ls=":", label=None if i else "threshold")
    # the root keeps a species of few sites in sight, and makes counting errors alike all over
    ax.set_yscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
    top = max(np.histogram(y, edges)[0].max(), density.sum(axis=0).max())
    ax.set(xlabel="intensity over the local background", ylabel="sites", xlim=(edges[0], edges[-1]), ylim=(0, 1.1 * top))
    ticks = [t for t in (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000) if t <= 1.1 * top]
    ax.set_yticks(ticks[:1] + ticks[1:][-5:])
    ax.minorticks_off()
    ax.legend(loc="upper left", bbox_to_anchor=(0, 1.0), ncols=1)


def _certainty(ax: Axes, micrograph: Micrograph) -> None:
    doubt = np.full(micrograph.n, np.nan)
    doubt[micrograph.used] = np.maximum(micrograph.labels.uncertain, _SURE)
    _frame(ax, micrograph)
    shown = _sites(ax, micrograph, doubt, "magma_r", LogNorm(_SURE, 0.5))
    _bar(ax, shown, "probability of a wrong label", ticks=[1e-3, 1e-2, 1e-1, 0.5], format="%g", extend="min")


def _background(ax: Axes, micrograph: Micrograph) -> None:
    unused = ~np.isfinite(micrograph.columns.residual)  # also single clipped pixels, which are no holes
    holes = ndimage.binary_opening(unused, iterations=max(1, round(0.3 * micrograph.registration.spacing)))
    ground = np.where(holes, np.nan, micrograph.columns.ground)
    low, high = np.nanquantile(ground, (0.01, 0.99))
    shown = ax.imshow(ground, cmap="cividis", vmin=low, vmax=max(high, low + 1e-12), origin="upper")
    _frame(ax, micrograph)
    _bar(ax, shown, "background, image units", extend="both")


def _residual(ax: Axes, micrograph: Micrograph) -> None:
    values = micrograph.registration.residual
    _frame(ax, micrograph)
    top = float(np.nanquantile(values, 0.99)) if np.isfinite(values).any() else 1.0
    shown = _sites(ax, micrograph, values, "cividis_r", Normalize(0, max(top, 1e-6)))
    _bar(ax, shown, "distance from the predicted place, spacings", extend="max")


def _diverging(ax: Axes, micrograph: Micrograph, values: Floats, label: str, map_: str = "RdBu_r") -> None:
    _frame(ax, micrograph)
    known = values[np.isfinite(values)]
    top = max(float(np.quantile(np.abs(known), 0.98)), 1e-9) if len(known) else 1.0
    _bar(ax, _sites(ax, micrograph, values, map_, Normalize(-top, top)), label, extend="both")


def _principal(ax: Axes, micrograph: Micrograph) -> None:
    size, angle = local_strain(micrograph).principal
    _diverging(ax, micrograph, 100 * size, "%")
    known = np.isfinite(size)
    at = micrograph.columns.positions[: micrograph.n][known]
    step = 0.33 * micrograph.registration.spacing * np.column_stack([np.cos(angle[known]), -np.sin(angle[known])])
    ax.add_collection(LineCollection(np.stack([at - step, at + step], axis=1), colors=INK, linewidths=0.4, zorder=4))


# ---------------------------------------------------------------------- figures


def _alone(micrograph: Micrograph, draw: Callable[[Axes, Micrograph], Any], title: str) -> Figure:
    rows, columns = micrograph.image.shape
    figure = new_figure(5.4, float(np.clip(4.4 * rows / columns + 0.6, 2.6, 8.0)))
    ax = figure.add_subplot()
    draw(ax, micrograph)
    ax.set_title(f"{micrograph.image.name}: {title}")
    return figure


@styled
def overlay(micrograph: Micrograph) -> Figure:
    """The image with what was found in it.

    Every site that is used is circled in the colour of its species, with a second, white ring if its label is wrong
    with more than 5 %; sites that are left out are marked by the reason, and so are spots that are no column.

    Parameters
    ----------
    micrograph : Micrograph

    Returns
    -------
    Figure

    Examples
    --------
    ``plots.save(plots.overlay(analyse(image, lattice, species, bright="Re")), "overlay.png")``
    """
    rows, columns = micrograph.image.shape
    figure = new_figure(6.4, float(np.clip(6.2 * rows / columns + 1.35, 3.4, 10.5)))
    ax = figure.add_subplot()
    legend = _overlay(ax, micrograph)
    ax.set_title(_title(micrograph))
    _legend(figure, legend, 3)
    return figure


@styled
def intensities(micrograph: Micrograph) -> Figure:
    """Histogram of the intensities with the fitted levels, their sum and the thresholds; counts on a root scale.

    Parameters
    ----------
    micrograph : Micrograph

    Returns
    -------
    Figure
    """
    figure = new_figure(5.4, 3.2)
    ax = figure.add_subplot()
    _intensities(ax, micrograph)
    ax.set_title(f"{micrograph.image.name}: intensities and levels")
    return figure


@styled
def certainty(micrograph: Micrograph) -> Figure:
    """Map of the probability that a label is wrong, 1 - p; hollow where a site is left out.

    Parameters
    ----------
    micrograph : Micrograph

    Returns
    -------
    Figure
    """
    return _alone(micrograph, _certainty, "uncertain labels")


@styled
def background(micrograph: Micrograph) -> Figure:
    """Map of the fitted background.

    Parameters
    ----------
    micrograph : Micrograph

    Returns
    -------
    Figure
    """
    return _alone(micrograph, _background, "background")


@styled
def strain(micrograph: Micrograph) -> Figure:
    """Lattice residual, and the local strain against the mean lattice of the image: e_xx, e_yy, e_xy and rotation.

    x runs to the right and y up; rotation is counter-clockwise.

    Parameters
    ----------
    micrograph : Micrograph

    Returns
    -------
    Figure
    """
    rows, columns = micrograph.image.shape
    found = local_strain(micrograph)
    figure = new_figure(10.5, float(np.clip(6.4 * rows / columns + 0.8, 4.0, 12.0)))
    axes = list(figure.subplots(2, 3).flat)
    _residual(axes[0], micrograph)
    axes[0].set_title(f"{micrograph.image.name}: lattice residual")
    parts = ((100 * found.e_xx, "e_xx", "%"), (100 * found.e_yy, "e_yy", "%"), (100 * found.e_xy, "e_xy", "%"))
    for ax, (values, title, unit) in zip(axes[1:], (*parts, (found.rotation, "rotation", "degrees")), strict=False):
        _diverging(ax, micrograph, values, unit, "RdBu_r" if unit == "%" else "PuOr_r")
        ax.set_title(title)
    _principal(axes[5], micrograph)
    axes[5].set_title("larger principal strain and its axis")
    return figure


@styled
def reading(micrograph: Micrograph) -> Figure:
    """Everything to judge a reading by: overlay, intensities, uncertain labels, background, lattice residual and strain.

    Parameters
    ----------
    micrograph : Micrograph

    Returns
    -------
    Figure

    Examples
    --------
    ``plots.save(plots.reading(analyse(image, lattice, species, bright="Re")), "report.png")``
    """
    rows, columns = micrograph.image.shape
    figure = new_figure(14.0, float(np.clip(8.0 * rows / columns + 1.6, 5.5, 16.0)))
    axes = list(figure.subplots(2, 3).flat)
    legend = _overlay(axes[0], micrograph)
    axes[0].set_title(_title(micrograph))
    _legend(figure, legend, len(legend))
    parts = (
        (_intensities, "intensities and levels"), (_certainty, "uncertain labels"), (_background, "background"),
        (_residual, "lattice residual"), (_principal, "larger principal strain and its axis"),
    )  # fmt: skip
    axes[1].set_box_aspect(rows / columns)
    for ax, (draw, title) in zip(axes[1:], parts, strict=True):
        draw(ax, micrograph)
        ax.set_title(title)
    return figure
