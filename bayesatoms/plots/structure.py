"""Pictures of the data: where the atoms are, and what the classes of environment look like."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..configuration import UNSEEN
from ..environments import Environments
from ..errors import InputError
from ..observation import Observation
from .style import GREY, INK, PALE, new_figure, panels, species_colours, styled

_MOST = 12  # classes shown where only counts are known
_RASTER = 3000  # discs beyond which a vector picture gets unwieldy
_BARS = (1, 2, 5)  # a scale bar is one of these times a power of ten


# ---------------------------------------------------------------------- one environment


def framed_environment(ax: Axes, environments: Environments, number: int) -> None:
    """Draw class `number` into axes of its own, as a cluster of discs with the centre ringed."""
    places, labels = _cluster(environments, number)
    colours = np.array(species_colours(len(environments.species)))[labels]
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    bonds = np.argwhere(np.triu(np.abs(apart - 1) < 1e-3))
    ax.add_collection(LineCollection(places[bonds], colors=PALE, linewidths=0.5, zorder=1))
    _discs(ax, places[1:], 0.68, colours[1:], edge="white", width=0.3)
    _discs(ax, places[:1], 0.68, colours[:1], edge=INK, width=0.9)
    x, y = np.abs(places).max(axis=0) + 0.4
    ax.set(xlim=(-x, x), ylim=(-y, y))
    _bare(ax)


def _cluster(environments: Environments, number: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Positions (about the centre, in nearest-neighbour distances) and species of a class's representative."""
    raw = environments.representatives[number]
    basis = int(np.searchsorted(environments.offsets, raw, side="right") - 1)
    places = environments.lattice.positions(environments.templates[basis])
    labels = environments.digits(basis)[raw - environments.offsets[basis]]
    return (places - places[0]) / environments.lattice.shell_distances(1)[0], labels


def _discs(ax: Axes, places: NDArray, diameter: float, colours: Any, *, edge: Any = "none", width: float = 0.4, **keywords: Any) -> None:
    d = np.full(len(places), diameter)
    # an offset_transform of the data makes the discs grow with the axes, as atoms should
    discs = EllipseCollection(d, d, np.zeros(len(places)), units="xy", offsets=places, offset_transform=ax.transData, **keywords)
    discs.set(facecolor=colours, edgecolor=edge, linewidth=width, zorder=2, rasterized=len(places) > _RASTER)
    ax.add_collection(discs)


def _bare(ax: Axes) -> None:
    ax.set_aspect("equal")
    ax.set_axis_off()


@styled
def environment_key(environments: Environments, columns: int = 13) -> Figure:
    """A small picture of every class of environment of a two-dimensional lattice, with its name and multiplicity.

    Parameters
    ----------
    environments : Environments
    columns : int

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If the lattice is not two-dimensional, or there are too many classes to look at (more than 200).
    """
    if environments.lattice.dimension != 2 or environments.n_classes > 200:
        raise InputError(f"{environments!r} cannot be drawn class by class; expected a two-dimensional lattice and at most 200 classes")
    columns = min(columns, environments.n_classes)
    rows = -(-environments.n_classes // columns)
    figure = new_figure(0.82 * columns + 0.2, 1.0 * rows + 0.35)
    for number, ax in enumerate(panels(figure, environments.n_classes, columns)):
        framed_environment(ax, environments, number)
        text = f"{environments.names[number]}\n×{environments.multiplicity[number]}"
        ax.set_title(text, fontsize=6.2, loc="center", y=-0.06, va="top", pad=0)
    _species_legend(figure, environments)
    return figure


def _species_legend(figure: Figure, environments: Environments, extra: list[Line2D] | None = None) -> None:
    handles = [_dot(c, s) for s, c in zip(environments.species, species_colours(len(environments.species)), strict=True)]
    handles += extra or []
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.1, columnspacing=1.2)


def _dot(colour: str, label: str, *, edge: str = "none", alpha: float | None = None) -> Line2D:
    return Line2D([], [], ls="", marker="o", ms=6.5, mfc=colour, mec=edge, mew=0.7, alpha=alpha, label=label)


# ---------------------------------------------------------------------- one image


@styled
def site_map(observation: Observation) -> Figure:
    """The sites of an image in real space, coloured by species; where only counts are known, what is known.

    Sites whose environment is incomplete, and which are therefore not counted as centres, are paler;
    sites inside the image that nobody saw are hollow. Measured positions are used where there are any.

    Parameters
    ----------
    observation : Observation

    Returns
    -------
    Figure
    """
    if observation.configuration is None or observation.environments.lattice.dimension != 2:
        return _known(observation)
    configuration, environments = observation.configuration, observation.environments
    places, hidden = _places(observation)
    labels = configuration.flat[configuration.flat != UNSEEN]
    counted = np.zeros(len(labels), dtype=bool)
    for rows in observation.window.complete(environments):
        counted[rows[:, 0]] = True
    low, high = places.min(axis=0), places.max(axis=0)
    width, height = high - low
    figure = new_figure(4.6, max(2.2, min(6.4, 4.3 * height / width + 0.85)))
    ax = figure.add_subplot()
    unit = float(environments.lattice.shell_distances(1)[0])
    colours = np.array(species_colours(len(configuration.species)))[labels]
    _discs(ax, places[~counted], 0.78 * unit, colours[~counted], alpha=0.35)
    _discs(ax, places[counted], 0.78 * unit, colours[counted])
    _discs(ax, hidden, 0.7 * unit, "none", edge=GREY, width=0.6)
    ax.set(xlim=(low[0] - unit, high[0] + unit), ylim=(low[1] - 2.4 * unit, high[1] + unit))
    _scale_bar(ax, low - (0.0, 1.7 * unit), width)
    _bare(ax)
    ax.set_title(_heading(observation))
    extra = [_dot(GREY, "pale: ring incomplete, not counted", alpha=0.35)] if (~counted).any() else []
    extra += [_dot("none", "not seen", edge=GREY)] if len(hidden) else []
    _species_legend(figure, environments, extra)
    return figure


def _heading(observation: Observation) -> str:
    species = observation.environments.species[1:]
    parts = [f"x({s}) = {x:.3f}" for s, x in zip(species, observation.composition[1:], strict=True)]
    return f"{observation.name}\n{observation.n} environments, {', '.join(parts)}"


def _places(observation: Observation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (nm) of the sites seen, and of those unseen between them."""
    configuration = observation.configuration
    assert configuration is not None
    seen = configuration.flat != UNSEEN
    ideal = configuration.lattice.positions(configuration.supercell.sites)
    places, hidden = ideal[seen], ideal[~seen]
    if observation.positions is not None:
        # the measured positions, scaled so that the mean cell has its nominal area; images count y downwards
        basis = np.column_stack([places, np.ones(len(places))])
        affine = np.linalg.lstsq(basis, observation.positions, rcond=None)[0]
        flip = np.array([1.0, -1.0]) / np.sqrt(abs(np.linalg.det(affine[:2])))
        places, hidden = observation.positions * flip, np.column_stack([hidden, np.ones(len(hidden))]) @ affine * flip
    return places, hidden[_inside(hidden, places)]


def _inside(points: NDArray[np.float64], cloud: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points lie within the convex hull of a cloud."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        sides = ConvexHull(cloud).equations
    except QhullError:  # all in one row: nothing lies inside
        return np.zeros(len(points), dtype=bool)
    return (points @ sides[:, :-1].T + sides[:, -1] <= 1e-9 * np.ptp(cloud)).all(axis=1)


def _scale_bar(ax: Axes, place: NDArray[np.float64], width: float) -> None:
    """A bar of a round length (nm), at most a third of the width."""
    decade = 10.0 ** np.floor(np.log10(width / 3))
    length = max(b * decade for b in _BARS if b * decade <= width / 3)
    ax.plot([place[0], place[0] + length], [place[1]] * 2, color=INK, lw=2.2, solid_capstyle="butt", zorder=3)
    ax.annotate(f"{length:g} nm", (place[0] + length, place[1]), (4, 0), textcoords="offset points", va="center", fontsize=7.5)


def _known(observation: Observation) -> Figure:
    """The most frequent classes with their counts and those of the random alloy: all that counts alone tell."""
    environments, n = observation.environments, observation.n
    order = np.argsort(-observation.counts, kind="stable")[:_MOST]
    order = order[observation.counts[order] > 0]
    random = n * environments.random_distribution(observation.composition)
    if environments.lattice.dimension != 2:
        return _bars(observation, order, random)
    columns = 6
    rows = -(-len(order) // columns)
    figure = new_figure(5.2, 1.12 * rows + 0.9)
    for number, ax in zip(order, panels(figure, len(order), columns), strict=True):
        framed_environment(ax, environments, int(number))
        ax.set_title(f"{observation.counts[number]:.0f}  ({random[number]:.0f})", loc="center", y=-0.04, va="top", pad=0, fontsize=8)
    figure.suptitle(f"{_heading(observation)}\nmost frequent classes: observed (random alloy)", fontsize=9, ha="left", x=0.01)
    _species_legend(figure, environments)
    return figure


def _bars(observation: Observation, order: NDArray[np.int64], random: NDArray[np.float64]) -> Figure:
    figure = new_figure(5.2, 0.22 * len(order) + 1.0)
    ax = figure.add_subplot()
    y = np.arange(len(order))[::-1]
    ax.hlines(y, 0, observation.counts[order], color=PALE, lw=5)
    ax.plot(observation.counts[order], y, "o", color=INK, ms=4, label="observed")
    ax.plot(random[order], y, "|", color=GREY, ms=9, mew=1.5, label="random alloy")
    ax.set_yticks(y, [observation.environments.names[i] for i in order])
    ax.set(xlabel="environments", xlim=(0, None), title=_heading(observation))
    ax.legend(loc="lower right")
    return figure
