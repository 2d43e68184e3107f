"""Pictures of fit and choice: predicted and observed histograms, the statistical distance, the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..inference.comparison import Comparison
from ..inference.criteria import LeastDistance, everywhere, least_distance, with_couplings
from ..inference.distance import squared_distance
from ..inference.emulator import SUPPORT_BAR
from ..inference.posterior import Result
from ..inference.priors import PRIOR_SCALES
from ..observation import Observation
from .structure import framed_environment
from .style import ENERGY, GREY, HATCH, INK, PALE, RANDOM, model_colours, new_figure, signed, styled, thin

_MOST = 40  # classes in a histogram
_DRAWS, _REPLICATES = 64, 25
_MARKERS = tuple({"ls": "", "marker": "o", "ms": ms, "mfc": mfc, "mew": 1.1} for ms, mfc in ((3.5, "white"), (6.0, INK), (9.0, "white")))
_POINTS = {1: 61, 2: 19}  # of a landscape, along each coupling


# ---------------------------------------------------------------------- histograms


class Band(NamedTuple):
    """Counts of each class that a model predicts for an image: their mean, and 5 and 95 % of simulated images; each (n_classes,)."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def predicted_counts(
    result: Result, model: Hamiltonian, observation: Observation, *, draws: int = _DRAWS, replicates: int = _REPLICATES
) -> Band:
    """Posterior predictive counts of an image's classes, from the pool's own simulated images.

    Parameters
    ----------
    result : Result
    model : Hamiltonian
        One of the result's.
    observation : Observation
        One of the result's.
    draws, replicates : int
        Posterior draws, and simulated images at each (taken from the pool by their weight there).

    Returns
    -------
    Band
        Couplings' and images' scatter together.
    """
    image = result.emulator.images[observation.name]
    fit = result[model.name]
    union = everywhere(result, fit, thin(fit.posterior.full, draws)[:draws] if model.terms else np.zeros((1, 0)))[observation.name]
    union = union[:, : len(result.emulator.names)]
    rng = np.random.default_rng(np.random.SeedSequence([result.seed, *np.frombuffer(observation.name.encode(), np.uint8)]))
    cumulative = np.cumsum(image.reweighting.weights(union), axis=1)
    each = replicates * (1 if model.terms else draws)
    picks = [np.searchsorted(row, rng.random(each) * row[-1]) for row in cumulative]
    seen = image.counts[np.concatenate(picks)]
    return Band(image.histogram(union)[0].mean(axis=0) * observation.n, *np.quantile(seen, (0.05, 0.95), axis=0))


@styled
def histogram(result: Result, observation: Observation, comparison: Comparison | None = None) -> Figure:
    """An image's class counts beside those that each model predicts, mean and 5-95 % of simulated images, on a square-root axis.

    Parameters
    ----------
    result : Result
    observation : Observation
        One of the result's.
    comparison : Comparison, optional
        Adds S2 and the simulated p-value to each model's name.

    Returns
    -------
    Figure
    """
    environments = observation.environments
    models = [fit.model for fit in result.fits.values()]
    bands = {m.name: predicted_counts(result, m, observation) for m in models}
    likely = np.maximum.reduce([observation.counts.astype(float), *(b.mean for b in bands.values())])
    shown = np.sort(np.argsort(-likely, kind="stable")[: min(_MOST, max(1, np.count_nonzero(likely >= 0.05)))])
    drawn = environments.lattice.dimension == 2
    figure = new_figure(min(10.8, max(4.5, 0.33 * len(shown) + 1.2)), 3.5)
    ax = figure.add_subplot()
    x, colours = np.arange(len(shown)), model_colours(models)
    step = 0.62 / max(len(models), 1)
    for number, model in enumerate(models):
        band, place = bands[model.name], x + (number - (len(models) - 1) / 2) * step
        ax.vlines(place, band.low[shown], band.high[shown], color=colours[model.name], lw=2.6, alpha=0.45)
        ax.plot(place, band.mean[shown], "_", color=colours[model.name], ms=4.5, mew=1.6)
    ax.plot(x, observation.counts[shown], "o", mfc="none", mec=INK, ms=5.5, mew=1.0, zorder=5, clip_on=False)
    top = max(float(observation.counts.max()), *(float(b.high.max()) for b in bands.values()))
    _square_root(ax, top)
    ax.set(xlim=(-0.6, len(shown) - 0.4), ylabel="environments (square-root axis)")
    for left in x[1::2]:
        ax.axvspan(left - 0.5, left + 0.5, color="#f4f4f4", zorder=0, lw=0)
    _class_axis(figure, ax, observation, shown, drawn)
    left_out = environments.n_classes - len(shown)
    note = f" ({left_out} rarest classes left out)" if left_out else ""
    ax.set_title(f"{observation.name}, {observation.n} environments{note}", pad=14)
    handles = [Line2D([], [], ls="", marker="o", mfc="none", mec=INK, ms=5.5, label="observed")]
    names = {m.name: _judged(m.name, observation, result, comparison) for m in models}
    handles += [Line2D([], [], color=colours[n], lw=2.6, alpha=0.6, label=text) for n, text in names.items()]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), int(figure.get_figwidth() / 1.75)),
        columnspacing=1.2,
        handlelength=1.2,
    )
    return figure


def _square_root(ax: Axes, top: float) -> None:
    """A square-root axis: the Poisson error of a count looks the same everywhere on it."""
    ax.set_yscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
    ticks = [0]
    for tick in sorted(d * 10**e for e in range(7) for d in (1, 2, 3, 5, 7)):
        if tick <= 1.05 * top and np.sqrt(tick) - np.sqrt(ticks[-1]) > 0.1 * np.sqrt(top):
            ticks.append(tick)
    ax.set_ylim(0, 1.08 * top)
    ax.set_yticks(ticks, [f"{t:,}" for t in ticks])
    ax.yaxis.set_minor_locator(MaxNLocator(1))
    ax.minorticks_off()


def _class_axis(figure: Figure, ax: Axes, observation: Observation, shown: NDArray[np.int64], drawn: bool) -> None:
    """Under the axis, a picture of each class, or its name where it cannot be drawn."""
    environments = observation.environments
    if not drawn:
        ax.set_xticks(np.arange(len(shown)), [environments.names[i] for i in shown], rotation=90, fontsize=6)
        return
    ax.set_xticks([])
    for place, number in enumerate(shown):
        key = ax.inset_axes((place - 0.46, -0.16, 0.92, 0.14), transform=ax.get_xaxis_transform(), anchor="N")
        framed_environment(key, environments, int(number))
    species = environments.species
    split = np.flatnonzero(np.diff(environments.centre[shown]))
    for edge in split:
        ax.axvline(edge + 0.5, color=GREY, lw=0.6)
    for block in np.split(np.arange(len(shown)), split + 1):
        text = f"{species[environments.centre[shown[block[0]]]]} centre"
        ax.annotate(text, (block.mean(), 1.01), xycoords=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=7.5, color=GREY)


def _judged(name: str, observation: Observation, result: Result, comparison: Comparison | None) -> str:
    if comparison is None:
        return name
    row, place = comparison.rows[name], [o.name for o in result.observations].index(observation.name)
    return f"{name}: S² {row.least.s2[place]:.4f}, p {row.p_values[place]:.3f}"


# ---------------------------------------------------------------------- the statistical distance


@styled
def s2_landscape(
    result: Result, model: Hamiltonian, least: LeastDistance | None = None, *, couplings: Sequence[str] | None = None
) -> Figure:
    """Total S2 over one or two couplings, straight from the pool; hatched where it has no support.

    Parameters
    ----------
    result : Result
    model : Hamiltonian
    least : LeastDistance, optional
        The minimum, if it is known already (``comparison.rows[model.name].least``).
    couplings : sequence of str, optional
        Which one or two to vary, the others held at the minimum; by default the first two.

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If the model has no coupling of that name.
    """
    chosen = tuple(couplings or model.names[:2])
    if not chosen or len(chosen) > 2 or not set(chosen) <= set(model.names):
        raise InputError(f"model {model.name}: couplings {chosen} cannot be drawn; expected one or two of {model.names}")
    least = least or least_distance(result, model)
    index = [model.names.index(n) for n in chosen]
    axes = [_span(result, model, least, i) for i in index]
    grid = np.tile(least.couplings, (int(np.prod([len(a) for a in axes])), 1))
    grid[:, index] = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(len(grid), -1)
    total = _total_s2(result, model, grid).reshape([len(a) for a in axes])
    held = "" if len(chosen) == len(model.names) else "\nother couplings held at the minimum"
    draw = _line if len(chosen) == 1 else _contours
    return draw(result, model, least, index, axes, total, held)


def _total_s2(result: Result, model: Hamiltonian, couplings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Total S2 at many couplings (m, k), NaN without support: `criteria.image_s2` of many points at a time."""
    total, fit = np.zeros(len(couplings)), result[model.name]
    at = everywhere(result, fit, with_couplings(fit, couplings) if model.terms else couplings)
    for o in result.observations:
        blocks = np.array_split(at[o.name][:, : len(result.emulator.names)], max(1, len(couplings) // 32))
        found = [result.emulator.images[o.name].histogram(block) for block in blocks]
        s2 = squared_distance(o.histogram, np.concatenate([h for h, _ in found]))
        total += np.where(np.concatenate([s for _, s in found]) >= SUPPORT_BAR, s2, np.nan) * o.n / result.n
    return total


def _span(result: Result, model: Hamiltonian, least: LeastDistance, index: int) -> NDArray[np.float64]:
    """Where to look along one coupling: both posteriors, the minimum and zero."""
    ends = [0.0, least.couplings[index]]
    for posterior in result[model.name].posteriors.values():
        ends += [posterior.mean[index] + s * posterior.sd[index] for s in (-3.5, 3.5)]
    points = _POINTS[min(2, len(model.names))]
    return np.linspace(min(ends), max(ends), points)


def _line(result, model, least, index, axes, total, held) -> Figure:
    figure = new_figure(4.4, 3.0)
    ax = figure.add_subplot()
    colour, (i,), (x,) = model_colours(f.model for f in result.fits.values())[model.name], index, axes
    ax.plot(x, total, color=colour)
    empty = ~np.isfinite(total)
    # masks start and stop on the last supported points, where the curve ends
    wider = empty | np.roll(empty, 1) & (np.arange(len(x)) > 0) | np.roll(empty, -1) & (np.arange(len(x)) < len(x) - 1)
    ax.fill_between(x, 0, 1, where=wider, transform=ax.get_xaxis_transform(), facecolor="none", hatch=HATCH, edgecolor="#8a8a8a", lw=0)
    ax.set_ylim(0, 1.12 * np.nanmax(total))
    _minimum(ax, (least.couplings[i], least.total), (least.coupling_error[i], least.error))
    draws = thin(result[model.name].draws, 300)[:, i]
    ax.plot(draws, np.full(len(draws), 0.025), "|", color=INK, ms=6, mew=0.5, alpha=0.35, transform=ax.get_xaxis_transform())
    ax.axvline(0, color=GREY, lw=0.6, ls=":")
    text = f"minimum {least.total:.4f} ± {least.error:.4f}\nat {signed(least.couplings[i])} ± {least.coupling_error[i]:.3f} kT"
    ax.annotate(text, (least.couplings[i], least.total), (0, -14), textcoords="offset points", fontsize=7.5, ha="center", va="top")
    ax.set(xlabel=f"{model.names[i]}  ({ENERGY})", ylabel="total S²", title=f"{model.name}: statistical distance{held}")
    _landscape_legend(figure, empty.any(), result.likelihood, "|")
    return figure


def _contours(result, model, least, index, axes, total, held) -> Figure:
    figure = new_figure(4.8, 4.0)
    ax = figure.add_subplot()
    (i, j), (x, y) = index, axes
    values = np.ma.masked_invalid(total.T)
    ax.fill_between(x[[0, -1]], y[0], y[-1], facecolor="none", hatch=HATCH, edgecolor="#8a8a8a", lw=0, zorder=0)
    lowest = min(least.total, float(values.min()))
    levels = lowest + (float(np.ma.max(values)) - lowest) * np.linspace(0, 1, 13) ** 2  # finer near the minimum
    filled = ax.contourf(x, y, values, levels=levels, cmap=_pale("Blues"), zorder=1)
    ax.contour(x, y, values, levels=levels[1:-1], colors="white", linewidths=0.5, zorder=2)
    draws = thin(result[model.name].draws, 400)
    ax.plot(draws[:, i], draws[:, j], ".", color=INK, ms=2, alpha=0.5, mew=0, zorder=3, rasterized=True)
    _minimum(ax, least.couplings[index], least.coupling_error[index])
    ax.axhline(0, color=GREY, lw=0.6, ls=":")
    ax.axvline(0, color=GREY, lw=0.6, ls=":")
    ax.set(xlim=x[[0, -1]], ylim=y[[0, -1]], xlabel=f"{model.names[i]}  ({ENERGY})", ylabel=f"{model.names[j]}  ({ENERGY})")
    place = ", ".join(signed(least.couplings[a], 2) for a in index)
    ax.set_title(f"{model.name}: statistical distance\nminimum {least.total:.4f} ± {least.error:.4f} at ({place}) kT{held}")
    bar = figure.colorbar(filled, ax=ax, label="total S²", shrink=0.9, format="%.3f", ticks=levels[::3])
    bar.outline.set_visible(False)
    _landscape_legend(figure, bool(values.mask.any()), result.likelihood, ".")
    return figure


def _minimum(ax: Axes, place: Sequence[float], error: Sequence[float]) -> None:
    """The minimum with its Monte Carlo error."""
    style = {"mfc": "white", "mec": INK, "ecolor": INK, "ms": 5.5, "lw": 1.2, "capsize": 2.5}
    ax.errorbar(*place, xerr=error[0], yerr=error[1], fmt="o", zorder=5, **style)


def _pale(name: str) -> LinearSegmentedColormap:
    """The lighter part of a colour map, on which black points can be seen."""
    return LinearSegmentedColormap.from_list(f"pale {name}", colormaps[name](np.linspace(0.05, 0.75, 64)))


def _landscape_legend(figure: Figure, unsupported: bool, likelihood: str, marker: str) -> None:
    handles: list = [
        Line2D([], [], ls="", marker="o", mfc="white", mec=INK, ms=5, label="minimum"),
        Line2D([], [], ls="", marker=marker, color=INK, ms=6, label=f"draws, {likelihood}"),
    ]
    if unsupported:
        handles.append(Patch(facecolor="white", edgecolor="#8a8a8a", hatch=HATCH, lw=0, label="pool has no support"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.0, handletextpad=0.3)


# ---------------------------------------------------------------------- which model


@styled
def weights(comparison: Comparison) -> Figure:
    """Posterior weight of each model under the declared priors and under priors of half and double their width.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    Figure
    """
    names = list(comparison.order)
    figure = new_figure(5.2, 0.34 * len(names) + 1.05)
    ax = figure.add_subplot()
    y = np.arange(len(names))[::-1]
    beside = {"xycoords": ("axes fraction", "data"), "family": "DejaVu Sans Mono", "annotation_clip": False}
    for name, place in zip(names, y, strict=True):
        colour = INK if name in comparison.remain else RANDOM
        values = [comparison.rows[name].weight[s] for s in PRIOR_SCALES]
        ax.plot([min(values), max(values)], [place] * 2, color=PALE, lw=3, zorder=1)
        for value, marker in zip(values, _MARKERS, strict=True):
            ax.plot(value, place, mec=colour, zorder=2, clip_on=False, **{**marker, "mfc": colour if marker["mfc"] == INK else "white"})
        ax.annotate("  ".join(f"{v:.3f}" for v in values), (1.04, place), va="center", fontsize=7.5, color=colour, **beside)
    ax.set_yticks(y, [n if n in comparison.remain else f"{n} (falls behind)" for n in names])
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.6, len(names) - 0.4), xlabel="posterior weight (equal prior weights)")
    ax.annotate("half   decl.  double", (1.04, len(names) - 0.5), fontsize=7, color=GREY, **beside)
    labels = ("half", "declared", "double")
    handles = [Line2D([], [], mec=INK, label=f"{label} prior width", **m) for label, m in zip(labels, _MARKERS, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
