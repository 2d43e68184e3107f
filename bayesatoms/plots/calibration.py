"""Pictures of a calibration: ranks against their band, and coverage."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..errors import InputError
from ..inference.ranked import Calibration, Ranked
from ..inference.ranks import band
from .style import GREY, INK, PALE, SERIES, new_figure, styled

_COLOURS = {"calibrated": SERIES[0], "independent": SERIES[1], "exact": SERIES[2]}
_LEVEL = 0.95


@styled
def rank_bands(calibration: Calibration, model: str | None = None) -> Figure:
    """Empirical distribution of the ranks minus the diagonal, with the simultaneous 95 % band; a row a model.

    A line inside the band is what a calibrated posterior gives (Säilynoja et al., Stat. Comput. 32, 32, 2022). An S
    that rises first is a posterior too sure of itself, one that falls first is too cautious, a bow is a bias.

    Parameters
    ----------
    calibration : Calibration
    model : str, optional
        Only this one.

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If there is no such model, or nothing to draw.

    Examples
    --------
    ``plots.save(plots.rank_bands(calibrate(result)), "calibration.png")``.
    """
    models = {r.model: [s for s in calibration.rows if s.model == r.model] for r in calibration.rows if model in (None, r.model)}
    models = {name: [r for r in rows if r.datasets] for name, rows in models.items() if any(r.datasets for r in rows)}
    if not models:
        known = ", ".join(dict.fromkeys(r.model for r in calibration.rows))
        raise InputError(f"no calibration of {model or 'any model'} to draw; there are {known}")
    columns = max(len(rows[0].quantities) for rows in models.values())
    figure = new_figure(2.5 * columns + 0.4, 1.9 * len(models) + 0.6)
    grid = figure.subplots(len(models), columns, squeeze=False)
    for line, rows in zip(grid, models.values(), strict=True):
        for place, ax in enumerate(line):
            if place < len(rows[0].quantities):
                _panel(ax, calibration, rows, rows[0].quantities[place])
            else:
                ax.remove()
        line[0].set_ylabel("ECDF − uniform")
    kinds = list(dict.fromkeys(r.kind for rows in models.values() for r in rows))
    handles = [Line2D([], [], color=_COLOURS.get(kind, INK), label=kind) for kind in kinds]
    handles.append(Patch(facecolor=PALE, label="95 % of calibrated runs, whole line"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _panel(ax: Axes, calibration: Calibration, rows: list[Ranked], quantity: str) -> None:
    n = rows[0].datasets
    b = band(n, _LEVEL)
    z = np.r_[0, b.z, 1]
    ax.fill_between(z, np.r_[0, b.lower / n - b.z, 0], np.r_[0, b.upper / n - b.z, 0], color=PALE, lw=0)
    ax.axhline(0, color=GREY, lw=0.6)
    for r in rows:
        u = np.sort(r.ranks(quantity))
        ax.step(np.r_[0, u, 1], np.r_[0, np.arange(1, len(u) + 1) / len(u) - u, 0], where="post", color=_COLOURS.get(r.kind, INK), lw=1.1)
    said = [f"{r.coverage(quantity).share:.2f}" for r in rows]
    ax.set_title(f"{rows[0].model} · {quantity}")
    ax.text(0.03, 0.03, f"90 % intervals hold {' / '.join(said)}", transform=ax.transAxes, fontsize=6.5, color=INK)
    low, high = ax.get_ylim()
    ax.set(xlim=(0, 1), ylim=(low - 0.18 * (high - low), high), xlabel="posterior mass below the truth", xticks=[0, 0.5, 1])
