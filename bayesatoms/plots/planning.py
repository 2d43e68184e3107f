"""How much data is required, as pictures: precision against environments, and the power to tell models apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from ..errors import InputError
from ..planning.prediction import AVERAGE, POWER, Plan
from .style import GREY, INK, SERIES, new_figure, panels, styled

Colours = Mapping[Any, Any]  # by composition

_REACH = 100.0  # times the environments so far, at most, that a learning curve goes on to
_TOGETHER = 4  # panels in a row


@styled
def learning_curve(plan: Plan, couplings: Sequence[str] | None = None) -> Figure:
    """Standard deviation of each coupling against environments: the images so far, and what more of each composition would bring.

    Open circles: what the images so far can tell by Fisher information, after each in their order, and which told most.
    Filled: the posterior as it is. Lines: predicted for more images, one a composition, with their central 90 % over the
    posterior. Dashed: one over the square root of the environments, in the mix so far. Dotted: the target. The last panel (of
    two species): information of one image by composition, beside the law near the random alloy.

    Parameters
    ----------
    plan : Plan
    couplings : sequence of str, optional
        Of the plan's, "P1.w1" for one; all by default.

    Returns
    -------
    Figure

    Examples
    --------
    ``save(learning_curve(plan), "learning.png")`` after ``plan = bayesatoms.plan(result, seed=1)``.

    Raises
    ------
    InputError
        If the plan has no such coupling.
    """
    known = plan.dataset.coupling.values.tolist()
    chosen = known if couplings is None else list(couplings)
    if not chosen or not set(chosen) <= set(known):
        raise InputError(f"couplings {chosen} given; expected some of {', '.join(known)}")
    colours = _shades(plan)
    law = "law" in plan.dataset and len(colours) > 1  # of two species
    columns = min(len(chosen) + law, _TOGETHER)
    figure = new_figure(2.4 + 2.7 * columns, 0.9 + 2.5 * -(-(len(chosen) + law) // columns))
    axes = panels(figure, len(chosen) + law, columns)
    for i, (ax, coupling) in enumerate(zip(axes, chosen, strict=False)):
        _learn(ax, plan, coupling, colours)
        ax.set_title(coupling)
        ax.set_xlabel("complete environments")
        if i % columns == 0:
            ax.set_ylabel("standard deviation (kT at formation)")
    if law:
        _against_composition(axes[-1], plan, chosen)
    handles = [Line2D([], [], color=c, label=_named(plan, x)) for x, c in colours.items()]
    handles += [
        Line2D([], [], color=INK, marker="o", mfc="white", ls="", ms=4, label="images so far, by information"),
        Line2D([], [], color=INK, marker="o", ls="", ms=5, label="posterior so far"),
        Line2D([], [], color=GREY, ls="--", lw=0.9, label="1/√N from there"),
        Line2D([], [], color=INK, ls=":", lw=0.9, label="target"),
    ]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _learn(ax: Axes, plan: Plan, coupling: str, colours: Colours) -> None:
    d = plan.dataset.sel(coupling=coupling)
    past, now = d.past_environments.to_numpy(), float(d.present_sd)
    so_far, more = float(past[-1]), np.geomspace(1, _REACH, 60)
    ax.plot(so_far * more, now / np.sqrt(more), color=GREY, ls="--", lw=0.9, zorder=1)
    for i, (x, colour) in enumerate(colours.items()):
        found = plan.precisions.get((str(d.model.item()), i))
        if found is None:
            continue
        # numbers of images, not only those of the ladder: the curve is a formula
        images = np.unique(np.round(np.geomspace(1, _REACH * so_far / plan.environments, 30)))
        a = [c for c in plan.dataset.coupling.values if str(c).startswith(f"{d.model.item()}.")].index(coupling)
        sd, low, high = (np.array([getattr(found.predicted(n), part)[a] for n in images]) for part in ("sd", "low", "high"))
        at = so_far + images * plan.environments
        fine = bool(plan.dataset.settled.sel(composition=x))
        ax.plot(np.r_[so_far, at], np.r_[now, sd], color=colour, ls="-" if fine else (0, (1, 1)), zorder=3)
        ax.fill_between(at, low, high, color=colour, alpha=0.15, lw=0, zorder=2)
    _past(ax, d, past, now)
    ax.axhline(plan.targets[coupling], color=INK, ls=":", lw=0.9)
    ax.set(xscale="log", yscale="log")
    _plain(ax)


def _past(ax: Axes, d: xr.Dataset, past: NDArray[np.float64], now: float) -> None:
    """The images so far: open circles after each, a filled one for the posterior."""
    sd = d.past_sd.to_numpy()
    ax.plot(past, sd, color=INK, lw=0.8, marker="o", mfc="white", ms=4, zorder=4)
    ax.plot(past[-1:], [now], color=INK, marker="o", ms=5, ls="", zorder=5)
    share = d.past_information.to_numpy()
    share = share / max(share.sum(), 1e-300)
    j = int(share.argmax())
    if len(share) > 1:
        text = f"{d.image.values[j]}: {share[j]:.0%}\nof the information"
        ax.annotate(text, (past[j], sd[j]), xytext=(6, 6), textcoords="offset points", fontsize=6.5, color=GREY)


def _against_composition(ax: Axes, plan: Plan, couplings: Sequence[str]) -> None:
    """What one image tells about each coupling, relative to the composition at which it tells most, and the law near randomness."""
    d = plan.dataset
    x = np.linspace(0, 1, 101)
    ax.plot(x, 16 * x**2 * (1 - x) ** 2, color=GREY, ls="--", lw=0.9, label="16 x²(1 − x)²")
    for i, coupling in enumerate(couplings):
        here = d.sel(coupling=coupling)
        value, error = here.information.to_numpy(), here.information_error.to_numpy()
        top = np.nanmax(np.where(np.isfinite(value), value, np.nan), initial=1e-300)
        colour = SERIES[i % len(SERIES)]
        ax.errorbar(d.composition.to_numpy(), value / top, error / top, color=colour, marker="o", ms=3, lw=0.9, capsize=2, label=coupling)
    ax.set(xlim=(0, 1), ylim=(0, 1.35), xlabel=str(d.composition.attrs["long_name"]), ylabel="information of one image, relative")
    ax.set_title("by composition")
    ax.legend(loc="upper left", ncols=2, fontsize=6.5)


@styled
def power_curve(plan: Plan, truths: Sequence[str] | None = None) -> Figure:
    """Probability that more images decide for the true model, a panel for each truth and a line for each composition.

    Bands are one standard error of the experiments imagined; the dashed line is at 80 %. Marks at the foot: images needed, two
    standard errors on the safe side. Faint: decided for another model. Broken lines: what is there is a guess, for chains do
    not equilibrate or posteriors leave the region that is known.

    Parameters
    ----------
    plan : Plan
    truths : sequence of str, optional
        Of the plan's; all by default.

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If the plan has no such truth, or one model only, of which there is nothing to choose.

    Examples
    --------
    ``save(power_curve(plan), "power.png")`` after ``plan = bayesatoms.plan(result, seed=1)``.
    """
    known = plan.dataset.truth.values.tolist()
    chosen = known if truths is None else list(truths)
    if not chosen or not set(chosen) <= set(known):
        raise InputError(f"truths {chosen} given; expected some of {', '.join(known) or 'none: there is one model only'}")
    columns = min(len(chosen), _TOGETHER)
    figure = new_figure(1.2 + 2.9 * columns, 0.9 + 2.5 * -(-len(chosen) // columns))
    axes = panels(figure, len(chosen), columns, sharex=True, sharey=True)
    colours = _shades(plan)
    for i, (ax, truth) in enumerate(zip(axes, chosen, strict=True)):
        _decide(ax, plan, truth, colours)
        ax.set_title("average over the truths" if truth == AVERAGE else plan.words[truth].replace("if ", "", 1))
        if i % columns == 0:
            ax.set_ylabel("probability to decide rightly")
        if i + columns >= len(chosen):
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(f"more images of {plan.environments:,} environments")
    handles = [Line2D([], [], color=c, label=_named(plan, x)) for x, c in colours.items()]
    handles += [
        Line2D([], [], color=GREY, ls="--", lw=0.9, label=f"{POWER:.0%}"),
        Line2D([], [], color=GREY, lw=0.8, alpha=0.6, label="decides wrongly"),
    ]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _decide(ax: Axes, plan: Plan, truth: str, colours: Colours) -> None:
    d = plan.dataset.sel(truth=truth)
    # none and one image are a step apart, as the numbers on the axis are
    at = np.log2(d.images.to_numpy() + 1)
    ax.axhline(POWER, color=GREY, ls="--", lw=0.9)
    needed = {c.composition: c for c in plan.best(truth, len(d.composition))}
    for x, colour in colours.items():
        here = d.sel(composition=x)
        power, error = here.power.to_numpy(), here.power_error.to_numpy()
        fine = bool(here.settled) and bool((here.inside > 0.9).all())
        ax.plot(at, power, color=colour, marker="o", ms=2.5, lw=1.2, ls="-" if fine else (0, (1, 1)))
        ax.fill_between(at, np.maximum(power - error, 0), np.minimum(power + error, 1), color=colour, alpha=0.18, lw=0)
        ax.plot(at, here.wrong.to_numpy(), color=colour, lw=0.8, alpha=0.6)
        choice = needed.get(x)
        if choice is not None and np.isfinite(choice.images):
            place = np.log2(choice.images + 1)
            ax.plot([place, place], [0, 0.025], color=colour, lw=1.5, transform=ax.get_xaxis_transform(), clip_on=False)
    shown = [n for n in (0, 1, 3, 10, 30, 100, 300, 1000) if n <= d.images.to_numpy()[-1]]
    ax.set_xticks(np.log2(np.array(shown) + 1), [str(n) for n in shown])
    ax.set(ylim=(-0.02, 1.02), xlim=(at[0], at[-1] + 0.15))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))


def _shades(plan: Plan) -> Colours:
    """A colour for each composition: along a scale for numbers, by the palette for words."""
    values = plan.dataset.composition.values.tolist()
    if len(values) <= 1 or isinstance(values[0], str):
        return {x: SERIES[i % len(SERIES)] for i, x in enumerate(values)}
    scale = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, len(values)))
    return dict(zip(values, scale, strict=True))


def _named(plan: Plan, x: float | str) -> str:
    settled = bool(plan.dataset.settled.sel(composition=x))
    return f"{x if isinstance(x, str) else f'x = {x:.3g}'}{'' if settled else ', not in equilibrium'}"


def _plain(ax: Axes) -> None:
    """Logarithmic axes with few plain numbers."""
    for axis, subs in ((ax.xaxis, (1.0,)), (ax.yaxis, (1.0, 2.0, 5.0))):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())
