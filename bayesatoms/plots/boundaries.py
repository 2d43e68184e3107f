"""Where phases change, as distributions: order against temperature, transition temperatures by model, coexisting compositions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from ..errors import InputError
from ..phases.diagram import PhaseDiagram
from ..phases.hysteresis import Loop
from .phases import BOUNDARY, FROZEN, SUPPORTED, across, across_label, cell_edges, edges, kelvin_axis, say, temperature_axis
from .style import GREY, HATCH, INK, PALE, SERIES, new_figure, panels, styled, thin

_BAND = (0.05, 0.5, 0.95)
_MOST_DRAWS = 60  # lines superimposed
_TOLD = 0.5  # share of the draws with a gap, below which its band is not drawn
_ROW = {"order_parameter": "order parameter", "warren_cowley": "Warren–Cowley α₁", "heat_capacity": "heat capacity, k a site"}


@styled
def order_against_temperature(diagram: PhaseDiagram, composition: float) -> Figure:
    """Order parameter, Warren-Cowley parameter and heat capacity against temperature, with the transitions of the draws.

    Lines are medians, bands hold 5 to 95 % of the posterior draws. Above, each draw's transition is a tick; the vertical line
    and band are their median and 5 to 95 %. The dashed line is the order parameter above which a crystal counts as ordered.
    Hatched: atoms no longer move for more than 10 % of the draws.

    Parameters
    ----------
    diagram : PhaseDiagram
    composition : float
        The column of the map nearest to it is shown; of a map over chemical potentials, the chemical potential.

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If it is no number, or no composition.
    """
    d, axis = diagram.dataset, across(diagram.dataset)
    if not np.isfinite(composition) or (axis == "composition" and not 0 <= composition <= 1):
        raise InputError(f"{axis} {composition} given; expected a number" + (" between 0 and 1" if axis == "composition" else ""))
    column = d.sel({axis: composition}, method="nearest")
    crossings = diagram.boundaries["transition"].sel({axis: composition}, method="nearest").to_numpy()
    t, t_edges, frozen = d["temperature"].to_numpy(), cell_edges(d)[1], column["supported"].to_numpy() < SUPPORTED
    ends = t_edges[[0, -1]]
    figure = new_figure(8.8, 3.3)
    axes = figure.subplots(1, len(_ROW))
    for ax, (name, label) in zip(axes, _ROW.items(), strict=True):
        low, middle, high = (column[name].sel(quantile=q).to_numpy() for q in _BAND)
        ax.fill_between(t, low, high, color=SERIES[0], alpha=0.2, lw=0)
        ax.plot(t, middle, color=SERIES[0], marker=".", ms=4)
        ax.set_xscale("log")
        ax.set(xlim=ends, ylabel=label, xlabel="temperature / formation temperature")
        temperature_axis(ax.xaxis)
        _crossings(ax, crossings, ticks=ax is axes[0])
        for row in np.flatnonzero(frozen):
            ax.axvspan(*t_edges[row : row + 2], facecolor="none", edgecolor="#555555", hatch=HATCH, lw=0, alpha=0.5, zorder=0)
        if "kelvin" in d.coords:
            kelvin_axis(ax, d, vertical=False)
        if ends[0] < 1 < ends[1]:
            ax.axvline(1.0, color=GREY, lw=0.6, ls=":")
    axes[0].plot(t, column["threshold"].to_numpy(), color=GREY, lw=0.8, ls="--")
    axes[0].set_ylim(bottom=0)
    axes[1].axhline(0, color=PALE, lw=0.8, zorder=0)
    axes[2].set_ylim(bottom=0)
    said = ("transition at " if len(_real(crossings)) else "") + _met(crossings)
    figure.suptitle(f"{across_label(d).splitlines()[0]} {float(column[axis]):.3g}: {said}", x=0.01, ha="left", fontsize=9)
    handles = [
        Line2D([], [], color=SERIES[0], marker=".", ms=4, label="median"),
        Patch(facecolor=SERIES[0], alpha=0.2, lw=0, label="5–95 %"),
        Line2D([], [], color=GREY, lw=0.8, ls="--", label="threshold of order"),
    ]
    if len(_real(crossings)):
        handles.append(Line2D([], [], color=BOUNDARY, label="transition: median, 5–95 %, draws"))
    if frozen.any():
        handles.append(Patch(facecolor="white", edgecolor="#555555", hatch=HATCH, lw=0, label=FROZEN))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.2)
    return figure


@styled
def transition_temperatures(diagram: PhaseDiagram, colours: Mapping[str, str] | None = None) -> Figure:
    """The highest temperature at which anything orders or separates: the draws of every model, and of all by weight.

    A dot is a draw, the thick bar their median and 5 to 95 %, among those with a transition on the map. How many have none is
    told beside them.

    Parameters
    ----------
    diagram : PhaseDiagram
    colours : mapping of str to str, optional
        By model, as :func:`~bayesatoms.plots.style.model_colours` gives them.

    Returns
    -------
    Figure
    """
    highest, owner = diagram.boundaries["highest"].to_numpy(), diagram.boundaries["model"].to_numpy().astype(str)
    names = list(dict.fromkeys(owner.tolist()))
    colours = dict(zip(names, (SERIES[i % len(SERIES)] for i in range(len(names))), strict=True)) | dict(colours or {})
    rows = [(name, highest[owner == name], colours[name]) for name in names]
    if len(names) > 1:
        rows.append(("all, by weight", highest, INK))
    figure = new_figure(7.2, 0.95 + 0.55 * len(rows))
    ax = panels(figure, 1, 1)[0]
    for y, (_, found, colour) in enumerate(rows):
        real = _real(found)
        ax.plot(real, y + _spread(real), ls="", marker="o", ms=3, mew=0, alpha=0.5, color=colour)
        if len(real):
            low, middle, high = np.quantile(real, _BAND)
            ax.plot([low, high], [y, y], color=colour, lw=3, alpha=0.5, solid_capstyle="butt")
            ax.plot([middle], [y], marker="|", ms=13, mew=2, color=colour)
        ax.text(1.02, y, _met(found), transform=ax.get_yaxis_transform(), va="center", fontsize=7.5)
    ax.set_xscale("log")
    ax.set_xlim(*cell_edges(diagram.dataset)[1][[0, -1]])
    temperature_axis(ax.xaxis)
    ax.set_xlabel("highest transition temperature / formation temperature")
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    if "kelvin" in diagram.dataset.coords:
        kelvin_axis(ax, diagram.dataset, vertical=False)
    return figure


@styled
def coexistence(diagram: PhaseDiagram) -> Figure:
    """Compositions between which the alloy splits, by the common tangent, and the share of draws that have such a gap.

    Thin lines are single posterior draws; lines and bands, the medians and 5 to 95 % of either side, where at least half of the draws
    have a gap.

    Parameters
    ----------
    diagram : PhaseDiagram

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If the map was made without five compositions or more, from which alone coexistence follows.
    """
    d = diagram.dataset
    if "coexistence" not in diagram.boundaries:
        raise InputError(f"a map over {d.sizes[across(d)]} values of {across(d)} given; coexistence needs five compositions or more")
    gaps, t = diagram.boundaries["coexistence"].to_numpy(), d["temperature"].to_numpy()
    share = np.isfinite(gaps[..., 0]).mean(axis=0)
    told = share >= _TOLD
    figure = new_figure(5.8, 3.4)
    figure.get_layout_engine().set(wspace=0.07)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.6, 1))
    for one in thin(gaps, _MOST_DRAWS):
        for piece in _pieces(one):
            left.plot(one[piece], t[piece], color=BOUNDARY, lw=0.5, alpha=0.3, marker=".", ms=2, mew=0)
    for side in (0, 1):
        low, middle, high = (np.full(len(t), np.nan) for _ in _BAND)
        if told.any():
            low[told], middle[told], high[told] = np.nanquantile(gaps[:, told, side], _BAND, axis=0)
        left.fill_betweenx(t, low, high, color=BOUNDARY, alpha=0.25, lw=0)
        left.plot(middle, t, color=INK)
    left.set_yscale("log")
    t_edges = cell_edges(d)[1]
    left.set(xlim=(0, 1), ylim=t_edges[[0, -1]], xlabel=across_label(d), ylabel="temperature / formation temperature")
    temperature_axis(left.yaxis)
    widths = np.diff(np.exp(edges(np.log(t))))
    right.barh(t_edges[:-1], share, height=widths, align="edge", color=BOUNDARY, alpha=0.35, lw=0)
    right.set(xlim=(0, 1), xlabel="draws with a gap")
    right.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    right.set_xticks([0, 0.5, 1])
    for ax in (left, right):
        if t_edges[0] < 1 < t_edges[-1]:
            ax.axhline(1.0, color=GREY, lw=0.6, ls=":")
    if "kelvin" in d.coords:
        kelvin_axis(right, d)
    if not np.isfinite(gaps).any():
        say(figure, ("no draw has a gap at any temperature of the map",))
    handles = [
        Line2D([], [], color=INK, label="median"),
        Patch(facecolor=BOUNDARY, alpha=0.25, lw=0, label="5–95 %"),
        Line2D([], [], color=BOUNDARY, lw=0.6, alpha=0.6, label="single draws"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1.2)
    return figure


@styled
def loops(loop: Loop) -> Figure:
    """Composition against chemical potential on the way up and down, and where the two phases coexist.

    Lines are medians, bands hold 5 to 95 % of the draws. The vertical line and band are the potentials at which the grand potentials
    of the two branches cross; the dots are the compositions there.

    Parameters
    ----------
    loop : Loop
        From :func:`~bayesatoms.phases.hysteresis.potential_loop`.

    Returns
    -------
    Figure
    """
    figure = new_figure(4.6, 3.4)
    ax = figure.subplots()
    for values, colour, text in ((loop.up, SERIES[0], "rising"), (loop.down, SERIES[2], "falling")):
        low, middle, high = np.quantile(values, _BAND, axis=0)
        ax.fill_between(loop.potential, low, high, color=colour, alpha=0.25, lw=0)
        ax.plot(loop.potential, middle, color=colour, label=text)
    told = loop.coexistence[np.isfinite(loop.coexistence).all(axis=1)]
    if len(told):
        low, middle, high = np.quantile(told[:, 0], _BAND)
        ax.axvspan(low, high, color=BOUNDARY, alpha=0.13, lw=0, zorder=0)
        ax.axvline(middle, color=BOUNDARY, lw=1, label="coexistence", zorder=1)
        ax.plot(np.repeat(told[:, 0], 2), told[:, 1:].reshape(-1), ls="", marker="o", ms=3, color=BOUNDARY)
    else:
        say(figure, ("no loop: one phase at every potential",))
    ax.set(xlabel="chemical potential, kT at formation", ylabel="composition", ylim=(-0.03, 1.03))
    ax.legend(loc="upper left")
    return figure


# ---------------------------------------------------------------------- transitions


def _real(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those that lie on the map."""
    return found[(found > 0) & np.isfinite(found)]


def _met(found: NDArray[np.float64]) -> str:
    """Median and interval of transition temperatures in words, and how many draws have none on the map.

    Examples
    --------
    >>> _met(np.array([0.5, 0.5, 0.0, np.inf]))
    '0.5 [0.5, 0.5]; none in 25 %, above the map in 25 % of draws'
    """
    real, none, above = _real(found), (found == 0).mean(), np.isinf(found).mean()
    if none == 1:
        return "no transition in range"
    parts = [f"{text} {share:.0%}".replace("%", " %") for text, share in (("none in", none), ("above the map in", above)) if share]
    said = "; " + ", ".join(parts) + " of draws" if parts else ""
    return (("{1:.3g} [{0:.3g}, {2:.3g}]".format(*np.quantile(real, _BAND)) if len(real) else "") + said).removeprefix("; ")


def _crossings(ax: Axes, crossings: NDArray[np.float64], *, ticks: bool) -> None:
    """Median and band of the transitions, and each as a tick along the top."""
    real = _real(crossings)
    if not len(real):
        return
    low, middle, high = np.quantile(real, _BAND)
    ax.axvspan(low, high, color=BOUNDARY, alpha=0.13, lw=0, zorder=0)
    ax.axvline(middle, color=BOUNDARY, lw=1, zorder=1)
    if ticks:
        ax.plot(real, np.full(len(real), 0.965), transform=ax.get_xaxis_transform(), ls="", marker="|", ms=7, mew=0.6, color=BOUNDARY)


def _pieces(gap: NDArray[np.float64]) -> list[slice]:
    """Runs of rows of a draw's gap (temperature, 2) that are one gap: neighbours share half of what they span together.

    Only the widest gap is kept, and another one may take its place at the next temperature.
    """
    low, high = gap.T
    shared = np.minimum(high[1:], high[:-1]) - np.maximum(low[1:], low[:-1])
    joined = shared >= 0.5 * (np.maximum(high[1:], high[:-1]) - np.minimum(low[1:], low[:-1]))  # not a number compares as False
    cuts = [0, *(np.flatnonzero(~joined) + 1).tolist(), len(gap)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts) if np.isfinite(low[a])]


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Small offsets, so that equal values do not hide one another; the same every time."""
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return 0.34 * (((order * 0.618034) % 1.0) - 0.5) * 2 * 0.9
