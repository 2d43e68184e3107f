"""What an image would tell, as a picture."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from ..phases.gain import Gain
from .style import GREY, HATCH, INK, new_figure, styled

_SUPPORTED = 0.9  # share of the draws that must be in equilibrium
_LINES = 5  # temperatures drawn as lines, at most
_RANKED = 5  # points with their rank


@styled
def gain_map_figure(gain: Gain) -> Figure:
    """Expected reduction over composition and temperature with the best points by rank, and cuts through it with errors.

    Hatched, and left out of the cuts: more than 10 % of the draws are not in equilibrium. Dashed: by Fisher information and
    linear response, which is there for a quantity; far from the points it says that the target or the images are not linear in
    the couplings, or that there are too few draws.

    Parameters
    ----------
    gain : Gain

    Returns
    -------
    Figure

    Examples
    --------
    ``save(gain_map_figure(gain), "gain.png")`` after ``gain = gain_map(...)``.
    """
    what = "entropy" if gain.label else "variance"
    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    _map(figure, left, gain, what)
    _cuts(right, gain, what)
    for ax in (left, right):
        ax.set_xlabel(str(gain.dataset["composition"].attrs.get("long_name", "composition")))
    return figure


def _map(figure: Figure, ax: Axes, gain: Gain, what: str) -> None:
    d = gain.dataset
    x, t = _edges(d["composition"].to_numpy()), np.exp(_edges(np.log(d["temperature"].to_numpy())))
    slow = d["supported"].to_numpy() < _SUPPORTED
    mesh = ax.pcolormesh(x, t, np.where(slow, np.nan, d["reduction"].to_numpy()), cmap="Blues", vmin=0, vmax=1, rasterized=True)
    label = f"expected reduction of the target's {what}"
    bar = figure.colorbar(mesh, ax=ax, location="top", shrink=0.9, aspect=28, label=label, format=PercentFormatter(1.0))
    bar.outline.set_visible(False)
    for i, j in np.argwhere(slow):
        ax.add_patch(Rectangle((x[j], t[i]), x[j + 1] - x[j], t[i + 1] - t[i], facecolor="none", edgecolor="#555555", hatch=HATCH, lw=0))
    if slow.any():
        key = Patch(facecolor="white", edgecolor="#555555", hatch=HATCH, lw=0, label="not in equilibrium")
        figure.legend(handles=[key], loc="outside lower left")
    for rank, choice in enumerate(gain.best(_RANKED), 1):
        dark = choice.reduction > 0.6
        ax.annotate(
            str(rank), (choice.composition, choice.temperature), ha="center", va="center",
            color="white" if dark else INK, fontweight="bold" if rank == 1 else "normal",
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set(xlim=x[[0, -1]], ylim=t[[0, -1]], ylabel="temperature / formation temperature")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.axhline(1.0, color=GREY, lw=0.6, ls=":")


def _cuts(ax: Axes, gain: Gain, what: str) -> None:
    d = gain.dataset
    x, t, fine = d["composition"].to_numpy(), d["temperature"].to_numpy(), d["supported"].to_numpy() >= _SUPPORTED
    known = np.flatnonzero(fine.any(axis=1))
    rows = known[np.unique(np.linspace(0, max(len(known) - 1, 0), min(_LINES, len(known))).round().astype(int))]
    colours = mpl.colormaps["plasma"](np.linspace(0.0, 0.85, len(rows)))  # dark is cold; its end is too pale for lines
    for row, colour in zip(rows, colours, strict=True):
        reduction, error = (np.where(fine[row], d[name].to_numpy()[row], np.nan) for name in ("reduction", "reduction_error"))
        ax.errorbar(x, reduction, error, color=colour, marker="o", ms=3, capsize=2, lw=1, label=f"T = {t[row]:.3g}")
        if "linear" in d:
            ax.plot(x, np.where(fine[row], d["linear"].to_numpy()[row], np.nan), color=colour, ls="--", lw=0.9)
    handles, _ = ax.get_legend_handles_labels()
    handles = handles[::-1]
    if "linear" in d:
        handles.append(Line2D([], [], color=GREY, ls="--", lw=0.9, label="Fisher information"))
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set(ylabel=f"expected reduction of {what}", ylim=(min(0.0, float(d["reduction"].min()) - 0.02), 1.0))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))


def _edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of cells about their centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.05, centres[0] + 0.05])
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])
