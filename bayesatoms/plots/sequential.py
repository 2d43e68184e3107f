"""A session of images that arrive one by one, as a picture that follows it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..inference.stopping import StopRule
from ..inference.updates import Update
from .style import ENERGY, GREY, INK, PALE, model_colours, new_figure, panels, signed, styled

_MOST_AHEAD = 2.0  # times as many images as there are, to which widths are continued
_WRAP = 47  # letters to the width of a panel


@styled
def live(updates: Sequence[Update], models: Sequence[Hamiltonian], rule: StopRule | None = None) -> Figure:
    """Every coupling and the weights of the models against the number of images, and what the stop rule says.

    A band is the posterior's mean ± sd; beyond the last image it goes on as 1/√n, dashed lines are the width wanted about
    the mean of now. The weights' bands hold those under priors of half, once and twice the declared width.

    Parameters
    ----------
    updates : sequence of Update
        At least one.
    models : sequence of Hamiltonian
    rule : StopRule, optional

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If there is nothing to draw yet.

    Examples
    --------
    ``save(live(session.updates, session.models, session.stop), "live.png")``
    """
    if not updates:
        raise InputError("no update to draw: add an image first")
    rule = rule or StopRule()
    couplings = [(m.name, n) for m in models for n in m.names]
    count = len(couplings) + (len(models) > 1)
    columns = 2 if count in (2, 4) else min(3, count)
    figure = new_figure(3.0 * columns + 0.3, 2.0 * -(-count // columns) + 0.75 + 0.2 * (columns < 3))
    axes, colours, last = panels(figure, count, columns), model_colours(models), updates[-1]
    end = _end(last)
    for ax, (model, coupling) in zip(axes, couplings, strict=False):
        _coupling(ax, updates, model, coupling, colours[model], rule.sd.get(f"{model}.{coupling}"), end)
    if len(models) > 1:
        _weights(axes[-1], updates, colours, end, 1 / (1 + rule.error) if rule.decide else None)
    for place, ax in enumerate(axes):
        # a stopped session may have seen one image only
        ax.set_xlim(0.5, max(end, 1.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if place + columns >= count:
            ax.set_xlabel("images")
    figure.suptitle("\n".join(textwrap.wrap(last.stop.sentence, _WRAP * columns)), x=0.01, ha="left", fontsize=8.5, color=INK)
    handles = [Line2D([], [], color=INK, label="mean"), Patch(facecolor=GREY, alpha=0.3, lw=0, label="± sd")]
    handles.append(Line2D([], [], color=GREY, ls=":", label="± sd, if the next are like these"))
    if rule.sd:
        handles.append(Line2D([], [], color=INK, ls="--", lw=0.9, label="± sd wanted"))
    figure.legend(handles=handles, loc="outside lower left", ncols=min(len(handles), 2 * columns - (columns > 2)))
    return figure


def _end(last: Update) -> float:
    """How far the axis of images goes: to where the widths are expected to be reached, within reason."""
    ahead = last.stop.missing or 0
    return last.number + min(max(ahead, 2), max(3.0, (_MOST_AHEAD - 1) * last.number)) + 0.3


def _coupling(ax: Axes, updates: Sequence[Update], model: str, coupling: str, colour: str, target: float | None, end: float) -> None:
    n = np.array([u.number for u in updates])
    place = updates[-1].estimates[model].names.index(coupling)
    mean, sd = (np.array([getattr(u.estimates[model], what)[place] for u in updates]) for what in ("mean", "sd"))
    ax.axhline(0, color=GREY, lw=0.7, zorder=0)
    ax.fill_between(n, mean - sd, mean + sd, color=colour, alpha=0.25, lw=0)
    ax.plot(n, mean, "o-", color=colour, ms=3, lw=1.3)
    ax.errorbar(n[-1:], mean[-1:], sd[-1:], color=colour, capsize=2, lw=1.3)
    if end > n[-1]:
        ahead = np.linspace(n[-1], end, 50)
        width = sd[-1] * np.sqrt(n[-1] / ahead)
        for side in (-1, 1):
            ax.plot(ahead, mean[-1] + side * width, color=colour, ls=":", lw=1)
    if target is not None:
        for side in (-1, 1):  # about the mean of now: it says nothing of those before
            ax.plot([n[-1], end], [mean[-1] + side * target] * 2, color=INK, ls="--", lw=0.9)
    ax.set_title(f"{model} · {coupling}   {signed(float(mean[-1]))} ± {sd[-1]:.3f}")
    ax.set_ylabel(ENERGY)


def _weights(ax: Axes, updates: Sequence[Update], colours: dict[str, str], end: float, wanted: float | None) -> None:
    n, placed = np.array([u.number for u in updates]), []
    for name, colour in colours.items():
        by_scale = np.array([[w[name] for w in u.weights.values()] for u in updates])
        declared = np.array([u.evidences.weights()[name] for u in updates])
        ax.fill_between(n, by_scale.min(axis=1), by_scale.max(axis=1), color=colour, alpha=0.18, lw=0)
        ax.plot(n, declared, "o-", color=colour, ms=3, clip_on=False)
        placed.append((float(declared[-1]), name, colour))
    height = -1.0
    for value, name, colour in sorted(placed):  # names beside the last points, apart from one another
        height = max(value, height + 0.09)
        ax.annotate(name, (n[-1], height), xytext=(6, 0), textcoords="offset points", va="center", color=colour, annotation_clip=False)
    if wanted is not None:
        ax.axhline(wanted, color=INK, ls="--", lw=0.9)
    ax.axhline(1, color=PALE, lw=0.6, zorder=0)
    ax.set(ylim=(-0.02, 1.03), ylabel="posterior weight", title="models   (bands: other prior widths)")
