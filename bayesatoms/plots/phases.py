"""The phase map as pictures: order over composition and temperature, its boundary as draws, and what the models make of it."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from ..phases.diagram import PhaseDiagram
from .style import GREY, HATCH, INK, new_figure, styled, thin

SUPPORTED = 0.9  # share of the draws whose atoms must still move
_NOTABLE = 0.05  # largest probability of a phase that gets no panel
_UNSETTLED = 0.5  # share of the draws that are not in equilibrium, above which a point is dotted
_MOST_DRAWS = 60  # boundaries superimposed
BOUNDARY, BEYOND = "#D55E00", "#CC79A7"
FROZEN = "atoms frozen for > 10 % of the draws"
PHASE_COLOURS = {
    "p_ordered": ("P(ordered)", "Blues"),
    "p_separated": ("P(separated)", "Oranges"),
    "p_disordered": ("P(disordered)", "Greys"),
}


@styled
def phase_map(diagram: PhaseDiagram) -> Figure:
    """Order parameter, Warren-Cowley parameter and probability of order (of separation, where it occurs) over the map.

    On the order parameter lies the temperature below which the alloy is no longer disordered: its median (solid), its 5 to 95 %
    band, and single posterior draws (thin). Hatched: atoms no longer move for more than 10 % of the draws. Dots: more than
    half of the draws are not in equilibrium. Bar below: compositions beyond those of all images.

    Parameters
    ----------
    diagram : PhaseDiagram

    Returns
    -------
    Figure
    """
    d = diagram.dataset
    separates, orders = (bool(d[f"p_{p}"].max() >= _NOTABLE) for p in ("separated", "ordered"))
    shown = [*(["p_ordered"] if orders or not separates else []), *(["p_separated"] if separates else [])]
    kelvin = "kelvin" in d.coords
    figure = new_figure(4.8 + 2.3 * len(shown) + 0.5 * kelvin, 3.75)
    left, centre, *further = figure.subplots(1, 2 + len(shown), sharey=True)
    _shade(figure, left, d, d["order_parameter"].sel(quantile=0.5), "order parameter, median", cmap="Blues", vmin=0, vmax=most_order(d))
    _draws(left, diagram)
    limit = max(0.1, float(np.nanmax(np.abs(d["warren_cowley"].to_numpy()))))
    norm = TwoSlopeNorm(0.0, -limit, limit)
    _shade(figure, centre, d, d["warren_cowley"].sel(quantile=0.5), "Warren–Cowley α₁, median", cmap="PuOr_r", norm=norm)
    for ax, name in zip(further, shown, strict=True):
        title, colours = PHASE_COLOURS[name]
        _shade(figure, ax, d, d[name], title, cmap=colours, vmin=0, vmax=1)
    for ax in (centre, *further):
        _band(ax, diagram, filled=False)
    left.set_ylabel("temperature / formation temperature")
    for ax in (left, centre, *further):
        ax.set_xlabel(across_label(d))
    if kelvin:
        kelvin_axis(further[-1], d)
    say(figure, diagram.notes)
    _legend(figure, diagram)
    return figure


@styled
def model_disagreement(diagram: PhaseDiagram) -> Figure:
    """Probability of each phase that occurs under every model, and how much knowing the model tells about the phase, in bits.

    Parameters
    ----------
    diagram : PhaseDiagram

    Returns
    -------
    Figure
    """
    d, m = diagram.dataset, diagram.models
    shown = [n for n in ("p_ordered", "p_separated") if float(m[n].max()) >= _NOTABLE] or ["p_disordered"]
    names = np.atleast_1d(m["model"].to_numpy()).tolist()
    figure = new_figure(1.75 * (len(names) + 1) + 1.9, 2.15 * len(shown) + 0.45)
    grid = figure.add_gridspec(len(shown), len(names) + 1)
    first: Axes | None = None
    for row, name in enumerate(shown):
        title, colours = PHASE_COLOURS[name]
        axes = []
        for column, model in enumerate(names):
            ax = figure.add_subplot(grid[row, column], sharex=first, sharey=first)
            first = first or ax
            mesh = _mesh(ax, d, m[name].sel(model=model), cmap=colours, vmin=0, vmax=1)
            if row == 0:
                ax.set_title(f"{model}, weight {float(m['weight'].sel(model=model)):.2f}")
            ax.tick_params(labelleft=column == 0, labelbottom=row == len(shown) - 1)
            axes.append(ax)
        figure.colorbar(mesh, ax=axes, aspect=18, label=title).outline.set_visible(False)
    assert first is not None
    last = figure.add_subplot(grid[:, -1], sharex=first, sharey=first)
    mesh = _mesh(last, d, d["disagreement"], cmap="Purples", vmin=0, vmax=max(0.1, float(d["disagreement"].max())))
    figure.colorbar(mesh, ax=last, aspect=18 * len(shown), label="bits").outline.set_visible(False)
    last.set_title("disagreement")
    last.tick_params(labelleft=False)
    figure.supxlabel(across_label(d).replace("\n", " "), fontsize=8.5)
    figure.supylabel("temperature / formation temperature", fontsize=8.5)
    return figure


# ---------------------------------------------------------------------- axes of a map


def across(d: xr.Dataset) -> str:
    """Name of the second axis: composition or chemical_potential."""
    return str(d["p_disordered"].dims[1])


def across_label(d: xr.Dataset) -> str:
    """Words and units of the second axis."""
    values = d[across(d)]
    units = str(values.attrs.get("units", "1"))
    return str(values.attrs.get("long_name", values.name)) + ("" if units == "1" else f"\n({units})")


def temperature_axis(axis: Any) -> None:
    """Ticks of a logarithmic axis of temperatures, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def kelvin_axis(ax: Axes, d: xr.Dataset, *, vertical: bool = True) -> None:
    """A second axis in K on the far side."""
    per = float(d["kelvin"][0] / d["temperature"][0])
    both = (lambda t: t * per, lambda k: k / per)
    second = ax.secondary_yaxis("right", functions=both) if vertical else ax.secondary_xaxis("top", functions=both)
    second.spines[:].set_visible(True)
    # a second axis of a logarithmic one puts decades only
    low, high = (e * per for e in (ax.get_ylim() if vertical else ax.get_xlim()))
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = [n * decade for decade in decades for n in (1, 2, 5) if low <= n * decade <= high]
    axis = second.yaxis if vertical else second.xaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(FixedLocator([]))
    axis.set_label_text("temperature, K")


def say(figure: Figure, notes: tuple[str, ...]) -> None:
    """Notes above a figure, wrapped to its width."""
    if notes:
        text = "\n".join(fill(note, int(14.5 * figure.get_figwidth())) for note in notes)
        figure.suptitle(text, x=0.01, ha="left", fontsize=8, color=BOUNDARY)


def edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of cells about their centres.

    Examples
    --------
    >>> edges(np.array([1.0, 2.0, 4.0])).tolist()
    [0.5, 1.5, 3.0, 5.0]
    """
    if len(centres) == 1:
        return np.array([centres[0] - 0.05, centres[0] + 0.05])
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def cell_edges(d: xr.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of the cells of a map across and in temperature, whose middles are those of the logarithm."""
    return edges(d[across(d)].to_numpy()), np.exp(edges(np.log(d["temperature"].to_numpy())))


def _mesh(ax: Axes, d: xr.Dataset, values: xr.DataArray, **colours: Any) -> Any:
    """The cells of a map in colour, and what is not to be relied on."""
    x_edges, t_edges = cell_edges(d)
    mesh = ax.pcolormesh(x_edges, t_edges, values.to_numpy(), rasterized=True, **colours)
    _mark(ax, x_edges, t_edges, d["supported"].to_numpy() < SUPPORTED)
    rows, columns = np.nonzero(d["hysteresis"].to_numpy() > _UNSETTLED)
    ax.plot(d[across(d)].to_numpy()[columns], d["temperature"].to_numpy()[rows], ls="", marker=".", ms=3, color=INK, zorder=4)
    for column in np.flatnonzero(d["extrapolated"].to_numpy()):
        ax.axvspan(*x_edges[column : column + 2], ymin=0, ymax=0.025, color=BEYOND, lw=0, zorder=5)
    ax.set_yscale("log")
    ax.set(xlim=x_edges[[0, -1]], ylim=t_edges[[0, -1]])
    temperature_axis(ax.yaxis)
    if t_edges[0] < 1 < t_edges[-1]:
        ax.axhline(1.0, color=GREY, lw=0.6, ls=":")
    return mesh


def _shade(figure: Figure, ax: Axes, d: xr.Dataset, values: xr.DataArray, title: str, **colours: Any) -> None:
    mesh = _mesh(ax, d, values, **colours)
    figure.colorbar(mesh, ax=ax, location="top", shrink=0.9, aspect=28, label=title).outline.set_visible(False)


def _mark(ax: Axes, x_edges: NDArray[np.float64], t_edges: NDArray[np.float64], where: NDArray[np.bool_]) -> None:
    """Hatch the cells named."""
    for row, column in np.argwhere(where):
        width, height = x_edges[column + 1] - x_edges[column], t_edges[row + 1] - t_edges[row]
        ax.add_patch(Rectangle((x_edges[column], t_edges[row]), width, height, facecolor="none", edgecolor="#555555", hatch=HATCH, lw=0))


def most_order(d: xr.Dataset) -> float:
    """End of the colour scale: what is below the threshold must look pale, even where nothing orders."""
    return float(min(1.0, max(np.nanmax(d["order_parameter"].to_numpy()), 2 * d["threshold"].max())))


# ---------------------------------------------------------------------- its boundary


def boundary_area(d: xr.Dataset, temperatures: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points across and temperatures (last axis across): on the lower edge where there is no transition, on the upper if it lies above."""
    x, (x_edges, t_edges) = d[across(d)].to_numpy(), cell_edges(d)
    t = np.clip(temperatures, *t_edges[[0, -1]])
    return (x, t) if len(x) > 1 else (x_edges, np.repeat(t, 2, axis=-1))  # of one column alone, as wide as its cell


def boundary_lines(d: xr.Dataset, temperatures: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same, but not a number along the edges: a line may run to an edge of the map, not along it."""
    x, t = boundary_area(d, temperatures)
    low, high = cell_edges(d)[1][[0, -1]]
    edge = np.where(t <= low, -1, np.where(t >= high, 1, 0))
    turns = edge == 0
    apart = np.diff(edge, axis=-1) != 0
    turns[..., 1:] |= apart
    turns[..., :-1] |= apart
    return x, np.where(turns, t, np.nan)


def _band(ax: Axes, diagram: PhaseDiagram, *, filled: bool) -> None:
    """The boundary's median, and its band as an area or as dashed lines."""
    d, found = diagram.dataset, diagram.boundaries["transition_band"].to_numpy()
    x, (low, middle, high) = boundary_lines(d, found)
    if filled:
        _, ends = boundary_area(d, found)
        ax.fill_between(x, ends[0], ends[2], color=BOUNDARY, alpha=0.2, lw=0, zorder=2)
    else:
        for row in (low, high):
            ax.plot(x, row, color=INK, lw=0.7, ls="--", zorder=3)
    ax.plot(x, middle, color=INK, lw=1.1, zorder=3)


def _draws(ax: Axes, diagram: PhaseDiagram) -> None:
    """The boundary with its band and the single draws."""
    x, rows = boundary_lines(diagram.dataset, thin(diagram.boundaries["transition"].to_numpy(), _MOST_DRAWS))
    for row in rows:
        ax.plot(x, row, color=BOUNDARY, lw=0.5, alpha=0.3, zorder=2)
    _band(ax, diagram, filled=True)


def _legend(figure: Figure, diagram: PhaseDiagram) -> None:
    d = diagram.dataset
    handles: list[Any] = []
    if float(diagram.boundaries["transition"].max()) > 0:
        handles = [
            Line2D([], [], color=INK, lw=1.1, label="transition, median"),
            Patch(facecolor=to_rgba(BOUNDARY, 0.2), edgecolor=INK, ls="--", lw=0.7, label="5–95 %"),
            Line2D([], [], color=BOUNDARY, lw=0.6, alpha=0.6, label="single draws"),
        ]
    if (d["supported"].to_numpy() < SUPPORTED).any():
        handles.append(Patch(facecolor="white", edgecolor="#555555", hatch=HATCH, lw=0, label=FROZEN))
    if (d["hysteresis"].to_numpy() > _UNSETTLED).any():
        handles.append(Line2D([], [], ls="", marker=".", ms=4, color=INK, label="not in equilibrium"))
    if d["extrapolated"].to_numpy().any():
        handles.append(Patch(facecolor=BEYOND, lw=0, label="beyond the images' compositions"))
    if handles:
        columns = min(len(handles), max(1, int(figure.get_figwidth() / 1.75)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.2)
