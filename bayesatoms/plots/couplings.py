"""Pictures of the couplings: densities, pairs of them, and how labellings move them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..inference.posterior import Fit, Posterior, Result
from .style import ENERGY, GREY, INK, PALE, SERIES, model_colours, new_figure, panels, signed, styled, thin

_LINES = {"calibrated": "-", "independent": "--"}
_SPOKEN = {"calibrated": "calibrated", "independent": "independent (published)"}
_LEVELS = (0.9, 0.5)  # mass inside the contours


# ---------------------------------------------------------------------- one coupling


@styled
def posteriors(result: Result, columns: int = 3) -> Figure:
    """Density of every coupling of every model under both likelihoods, with its prior, zero and the Cramer-Rao bound.

    Parameters
    ----------
    result : Result
    columns : int

    Returns
    -------
    Figure
    """
    fits = [(fit, i) for fit in result.fits.values() for i in range(len(fit.model.names))]
    columns = min(columns, len(fits))
    rows = -(-len(fits) // columns)
    narrow = columns == 1  # one panel is narrower than its legend
    figure = new_figure(2.7 * columns + 0.3 + 0.4 * narrow, 1.75 * rows + 0.65 + 0.2 * narrow)
    colours = model_colours(f.model for f in result.fits.values())
    for place, ((fit, i), ax) in enumerate(zip(fits, panels(figure, len(fits), columns), strict=True)):
        _density_panel(ax, fit, i, colours[fit.model.name])
        if place + columns >= len(fits):
            ax.set_xlabel(f"coupling  ({ENERGY})")
    handles = [Line2D([], [], color=INK, ls=_LINES[k], label=_SPOKEN[k]) for k in _LINES]
    handles += [Line2D([], [], color=GREY, ls=":", lw=1, label="prior"), Line2D([], [], color=INK, lw=2.4, label="± Cramér–Rao bound")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if narrow else 4, columnspacing=1.2)
    return figure


def _density_panel(ax: Axes, fit: Fit, index: int, colour: str) -> None:
    drawn = {kind: p.flat[:, index] for kind, p in fit.posteriors.items()}
    ends = [0.0, *(v for d in drawn.values() for v in (d.mean() - 3.6 * d.std(), d.mean() + 3.6 * d.std()))]
    x = np.linspace(min(ends) - 0.04 * np.ptp(ends), max(ends) + 0.04 * np.ptp(ends), 300)
    curves = {kind: density(values, x) for kind, values in drawn.items()}
    ax.axvline(0, color=GREY, lw=0.7, zorder=0)
    for kind, y in curves.items():
        ax.plot(x, y, color=colour, ls=_LINES[kind], lw=1.5 if kind == fit.likelihood else 1.1)
    ax.fill_between(x, curves[fit.likelihood], color=colour, alpha=0.14, lw=0)
    ax.plot(x, _prior_density(fit.model, index, x), color=GREY, ls=":", lw=1)
    top = max(float(y.max()) for y in curves.values())
    mean = float(fit.posterior.mean[index])
    ax.plot([mean - fit.crb_sd[index], mean + fit.crb_sd[index]], [1.09 * top] * 2, color=INK, lw=2.4, solid_capstyle="butt")
    ax.plot(mean, 1.09 * top, "o", color=INK, ms=3)
    ax.set(ylim=(0, 1.22 * top), xlim=(x[0], x[-1]), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.set_title(f"{fit.model.name} · {fit.model.names[index]}   {signed(mean)} ± {fit.posterior.sd[index]:.3f}")


def density(values: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian kernel estimate of the density of draws at x; Scott's width.

    Examples
    --------
    >>> x = np.linspace(-6, 6, 400)
    >>> y = density(np.random.default_rng(0).normal(size=2000), x)
    >>> bool(abs(np.trapezoid(y, x) - 1) < 0.01), bool(abs(y.max() - 0.399) < 0.04)
    (True, True)
    """
    from scipy.stats import gaussian_kde

    return gaussian_kde(thin(values, 2000))(x)


def _prior_density(model: Hamiltonian, index: int, x: NDArray[np.float64]) -> NDArray[np.float64]:
    prior = model.prior(model.names[index])
    inside = np.asarray(prior.support(x))
    return np.where(inside, np.exp(np.asarray(prior.log_prob(np.where(inside, x, np.asarray(prior.mean))))), 0.0)


# ---------------------------------------------------------------------- pairs of couplings


@styled
def corner(result: Result, model: Hamiltonian) -> Figure:
    """Every pair of a model's couplings: contours of 50 and 90 % of both likelihoods' draws, with the densities of each above.

    Parameters
    ----------
    result : Result
    model : Hamiltonian
        With two couplings or more.

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If the model has fewer than two couplings.
    """
    fit, k = result[model.name], len(model.names)
    if k < 2:
        raise InputError(f"model {model.name} has {k} coupling(s); a corner plot needs two or more: use posteriors()")
    colour = model_colours(f.model for f in result.fits.values())[model.name]
    figure = new_figure(1.75 * k + 1.0, 1.75 * k + 0.9)
    axes = figure.subplots(k, k, squeeze=False)
    ranges = [_range(fit, i) for i in range(k)]
    for row in range(k):
        for column in range(k):
            ax = axes[row, column]
            if column > row:
                ax.set_axis_off()
                continue
            if row == column:
                _marginal(ax, fit, row, ranges[row], colour)
            else:
                _pair(ax, fit, column, row, ranges, colour)
            _corner_labels(ax, model, row, column, k)
    axes[0, -1].text(0.05, 0.95, _correlations(fit), transform=axes[0, -1].transAxes, va="top", fontsize=7.5)
    figure.suptitle(f"{model.name}: couplings  ({ENERGY})", fontsize=9, x=0.01, ha="left")
    handles = [Line2D([], [], color=colour, ls=_LINES[kind], label=_SPOKEN[kind]) for kind in _LINES]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _correlations(fit: Fit) -> str:
    """Correlation coefficients of the posterior, a line a pair."""
    rho, names = np.corrcoef(fit.draws.T), fit.model.names
    lines = [f"ρ({names[i]}, {names[j]}) = {signed(rho[i, j], 2)}" for i in range(len(names)) for j in range(i + 1, len(names))]
    return "\n".join(lines[:10])


def _range(fit: Fit, index: int) -> tuple[float, float]:
    ends = [0.0]
    for p in fit.posteriors.values():
        ends += [float(p.quantile(q)[index]) for q in (0.002, 0.998)]
    margin = 0.08 * (max(ends) - min(ends))
    return min(ends) - margin, max(ends) + margin


def _marginal(ax: Axes, fit: Fit, index: int, limits: tuple[float, float], colour: str) -> None:
    x = np.linspace(*limits, 200)
    for kind, posterior in fit.posteriors.items():
        ax.plot(x, density(posterior.flat[:, index], x), color=colour, ls=_LINES[kind])
    ax.axvline(0, color=GREY, lw=0.6, ls=":")
    ax.set(xlim=limits, ylim=(0, None), yticks=[])
    ax.spines["left"].set_visible(False)


def _pair(ax: Axes, fit: Fit, i: int, j: int, ranges: list[tuple[float, float]], colour: str) -> None:
    some = thin(fit.draws, 600)
    ax.plot(some[:, i], some[:, j], ".", color=colour, ms=2.5, mew=0, alpha=0.45, rasterized=True)
    for kind, posterior in fit.posteriors.items():
        _mass_contours(ax, posterior, i, j, ranges[i], ranges[j], colour, _LINES[kind])
    ax.axhline(0, color=GREY, lw=0.6, ls=":")
    ax.axvline(0, color=GREY, lw=0.6, ls=":")
    ax.set(xlim=ranges[i], ylim=ranges[j])


def _mass_contours(ax: Axes, posterior: Posterior, i: int, j: int, xlim, ylim, colour: str, line: str) -> None:
    """Contours of the draws' density that hold the masses of `_LEVELS`."""
    from scipy.stats import gaussian_kde

    some = thin(posterior.flat, 1200)[:, [i, j]]
    kernel = gaussian_kde(some.T)
    heights = np.quantile(kernel(some.T), [1 - m for m in _LEVELS])
    x, y = np.linspace(*xlim, 90), np.linspace(*ylim, 90)
    z = kernel(np.stack(np.meshgrid(x, y)).reshape(2, -1)).reshape(90, 90)
    ax.contour(x, y, z, levels=np.unique(heights), colors=colour, linestyles=line, linewidths=1.1)


def _corner_labels(ax: Axes, model: Hamiltonian, row: int, column: int, k: int) -> None:
    if row == k - 1:
        ax.set_xlabel(model.names[column])
    else:
        ax.tick_params(labelbottom=False)
    if column == 0 and row > 0:
        ax.set_ylabel(model.names[row])
    elif row != column:
        ax.tick_params(labelleft=False)


# ---------------------------------------------------------------------- labellings


@styled
def label_shift(results: Mapping[str, Result]) -> Figure:
    """How every coupling moves between labellings of the same images: mean, sd (thick) and 5-95 % (thin).

    Parameters
    ----------
    results : mapping of labelling to Result
        Only couplings that all of them have are drawn.

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If the results share no coupling.
    """
    rows = [
        (n, c) for n in _shared([list(r.fits) for r in results.values()]) for c in _shared([r[n].model.names for r in results.values()])
    ]
    if not rows:
        raise InputError(
            f"results {', '.join(results) or 'none'} share no model with couplings; expected the same models for each labelling"
        )
    figure = new_figure(5.6, 0.24 * len(rows) * len(results) + 0.3 * len(rows) + 0.9)
    ax = figure.add_subplot()
    step, colours = 0.72 / len(results), dict(zip(results, itertools.cycle(SERIES), strict=False))
    for place, (name, coupling) in enumerate(rows):
        for number, (labelling, result) in enumerate(results.items()):
            _interval(ax, result[name], coupling, place + (number - (len(results) - 1) / 2) * step, colours[labelling])
    ax.axvline(0, color=GREY, lw=0.7, zorder=0)
    for edge in range(1, len(rows)):
        ax.axhline(edge - 0.5, color=PALE, lw=0.6, zorder=0)
    ax.set_yticks(range(len(rows)), [f"{n} · {c}" for n, c in rows])
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"coupling  ({ENERGY})")
    handles = [Line2D([], [], color=c, lw=3, marker="o", mfc="white", ms=4, label=n) for n, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


def _shared(lists: Sequence[Sequence[str]]) -> list[str]:
    """What is in all of the lists, in the order of the first."""
    return [name for name in (lists[0] if lists else ()) if all(name in other for other in lists)]


def _interval(ax: Axes, fit: Fit, coupling: str, y: float, colour: str) -> None:
    i = fit.model.names.index(coupling)
    p = fit.posterior
    ax.plot([p.quantile(0.05)[i], p.quantile(0.95)[i]], [y, y], color=colour, lw=1)
    ax.plot([p.mean[i] - p.sd[i], p.mean[i] + p.sd[i]], [y, y], color=colour, lw=3.2, solid_capstyle="butt")
    ax.plot(p.mean[i], y, "o", mfc="white", mec=colour, ms=4.5)
