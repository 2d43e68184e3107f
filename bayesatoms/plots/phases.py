"""The phase map as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from ..phases.diagram import PhaseDiagram
from .style import GREY, HATCH, INK, new_figure, styled

_SUPPORTED = 0.9  # share of the draws that must lie within the simulated couplings
_NOTABLE = 0.05  # largest probability of separation that gets no panel
_UNSETTLED = 0.5  # share of the draws whose chains disagree, above which a point is dotted


@styled
def phase_map(diagram: PhaseDiagram) -> Figure:
    """Order parameter, Warren-Cowley parameter and probability of order (of separation, where it occurs) over composition and temperature.

    Lines are where the order parameter crosses its threshold at the median (solid) and at the 5 and
    95 % quantiles (dashed) of the posterior. Hatched: fewer than 90 % of the draws lie within what was
    simulated. Dotted: chains from above and from below disagree for more than half of the draws.

    Parameters
    ----------
    diagram : PhaseDiagram

    Returns
    -------
    Figure
    """
    d = diagram.dataset
    middle = {"quantile": len(d["quantile"]) // 2}
    separates = bool(d["p_separated"].max() >= _NOTABLE)
    figure = new_figure(10.8 if separates else 9.0, 3.5)
    left, centre, right, *further = figure.subplots(1, 3 + separates, sharey=True)
    _shade(figure, left, d, d["order_parameter"].isel(middle), "order parameter, median", cmap="Blues", vmin=0, vmax=_most_order(d))
    _boundaries(left, d)
    limit = max(0.1, float(np.nanmax(np.abs(d["warren_cowley"].to_numpy()))))
    norm = TwoSlopeNorm(0.0, -limit, limit)
    _shade(figure, centre, d, d["warren_cowley"].isel(middle), "Warren–Cowley α₁, median", cmap="PuOr_r", norm=norm)
    _shade(figure, right, d, d["p_ordered"], "P(ordered)", cmap="Blues", vmin=0, vmax=1)
    for ax in further:
        _shade(figure, ax, d, d["p_separated"], "P(separated)", cmap="Oranges", vmin=0, vmax=1)
    left.set_ylabel("temperature / formation temperature")
    for ax in (left, centre, right, *further):
        ax.set_xlabel(str(d["composition"].attrs.get("long_name", "composition")))
    _legend(figure, d)
    return figure


def _shade(figure: Figure, ax: Axes, d: Any, values: Any, title: str, **colours: Any) -> None:
    x, t = d["composition"].to_numpy(), d["temperature"].to_numpy()
    x_edges, t_edges = _edges(x), np.exp(_edges(np.log(t)))
    mesh = ax.pcolormesh(x_edges, t_edges, values.to_numpy(), rasterized=True, **colours)
    figure.colorbar(mesh, ax=ax, location="top", shrink=0.9, aspect=28, label=title).outline.set_visible(False)
    _mark(ax, x_edges, t_edges, d["supported"].to_numpy() < _SUPPORTED, HATCH)
    if "hysteresis" in d:
        _mark(ax, x_edges, t_edges, d["hysteresis"].to_numpy() > _UNSETTLED, "....")
    ax.set_yscale("log")
    ax.set(xlim=x_edges[[0, -1]], ylim=t_edges[[0, -1]])
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.axhline(1.0, color=GREY, lw=0.6, ls=":")


def _edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of cells about their centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.05, centres[0] + 0.05])
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def _mark(ax: Axes, x_edges: NDArray, t_edges: NDArray, where: NDArray[np.bool_], hatch: str) -> None:
    """Hatch the cells named."""
    for row, column in np.argwhere(where):
        width, height = x_edges[column + 1] - x_edges[column], t_edges[row + 1] - t_edges[row]
        ax.add_patch(Rectangle((x_edges[column], t_edges[row]), width, height, facecolor="none", edgecolor="#555555", hatch=hatch, lw=0))


def _threshold(d: Any) -> Any:
    """The order parameter above which a box is ordered, by composition."""
    return d["threshold"].to_numpy() if "threshold" in d else np.inf


def _most_order(d: Any) -> float:
    """End of the colour scale: what is below the threshold must look pale, even where nothing orders."""
    known = np.max(_threshold(d))
    return float(max(np.nanmax(d["order_parameter"].to_numpy()), 2 * known if np.isfinite(known) else 0.0))


def _boundaries(ax: Axes, d: Any) -> None:
    """Where the order parameter crosses its threshold, at each quantile."""
    threshold = _threshold(d)
    if min(len(d["composition"]), len(d["temperature"])) < 2:
        return
    for q, line in zip(range(len(d["quantile"])), ("--", "-", "--"), strict=False):
        above = d["order_parameter"].isel(quantile=q).to_numpy() - threshold
        if above.min() < 0 < above.max():
            ax.contour(d["composition"], d["temperature"], above, levels=[0.0], colors=INK, linestyles=line, linewidths=1.0)


def _legend(figure: Figure, d: Any) -> None:
    handles: list = [Line2D([], [], color=INK, lw=1, ls=ls, label=text) for ls, text in (("-", "boundary, median"), ("--", "5 and 95 %"))]
    if (d["supported"].to_numpy() < _SUPPORTED).any():
        handles.append(Patch(facecolor="white", edgecolor="#555555", hatch=HATCH, lw=0, label="not simulated for > 10 % of the draws"))
    if "hysteresis" in d and (d["hysteresis"].to_numpy() > _UNSETTLED).any():
        handles.append(Patch(facecolor="white", edgecolor="#555555", hatch="....", lw=0, label="not in equilibrium"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.2)
