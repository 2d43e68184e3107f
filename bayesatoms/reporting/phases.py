"""The part of the report that says what follows elsewhere: the phase map, its transitions in words, and its figures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .. import plots
from ..inference.posterior import Result
from ..phases.diagram import PhaseDiagram
from ..plots.phases import across, across_label
from .interactive import phase_fragment

_NOTABLE = 0.05  # share of the draws with a gap, below which coexistence is not drawn


def phases(diagram: PhaseDiagram | None, result: Result) -> dict[str, Any] | None:
    """What the template shows of a phase map: sentences, notes, figures and, where plotly is installed, the map to explore.

    Parameters
    ----------
    diagram : PhaseDiagram or None
    result : Result
        For the compositions of the images and the colours of the models.

    Returns
    -------
    dict or None
    """
    if diagram is None:
        return None
    fragment = phase_fragment(diagram)
    return {
        "figures": _figures(diagram, at(diagram, result), plots.model_colours(fit.model for fit in result.fits.values())),
        "sentences": transition_sentences(diagram, at(diagram, result)),
        "notes": diagram.notes,
        "live": None if fragment is None else Markup(fragment),  # of our own making, names in it are escaped there
        "summary": {
            **{k: v for k, v in diagram.summary().items() if k != "notes"},
            **{k: diagram.dataset.attrs.get(k) for k in ("models", "weights", "box", "sweeps")},
        },
    }


def at(diagram: PhaseDiagram, result: Result) -> float:
    """Where the map is cut: the images' mean composition of the species that varies; of chemical potentials, the middle one."""
    values = diagram.dataset[across(diagram.dataset)]
    if across(diagram.dataset) != "composition":
        return float(values[len(values) // 2])
    species = result.observations[0].environments.species
    # the axis says of which species it is: the second, if it were not to
    varied = next((i for i, s in enumerate(species) if str(values.attrs.get("long_name", "")) == f"fraction of {s}"), 1)
    return float(np.mean([o.true_composition[varied] for o in result.observations]))


def transition_sentences(diagram: PhaseDiagram, place: float) -> list[str]:
    """Where order or separation sets in, with 5 to 95 %: anywhere on the map, by model, and at one place across it.

    Parameters
    ----------
    diagram : PhaseDiagram
    place : float
        Composition or chemical potential; the nearest column of the map counts.

    Returns
    -------
    list of str
    """
    d, b = diagram.dataset, diagram.boundaries
    per = float(d["kelvin"][0] / d["temperature"][0]) if "kelvin" in d.coords else None
    lowest, top = (float(d["temperature"][i]) for i in (0, -1))
    highest, owner = b["highest"].to_numpy(), b["model"].to_numpy().astype(str)
    found = [f"Highest transition anywhere on the map: {_said(highest, per, lowest, top)}"]
    names = list(dict.fromkeys(owner.tolist()))
    if len(names) > 1:
        found += [f"By {name} alone: {_said(highest[owner == name], per, lowest, top)}" for name in names]
    column = b["transition"].sel({across(d): place}, method="nearest")
    label = across_label(d).splitlines()[0]
    found.append(f"At {label} {float(column[across(d)]):.3g}: {_said(column.to_numpy(), per, lowest, top)}")
    ordered, separated = (_percent(float(d[name].max())) for name in ("p_ordered", "p_separated"))
    found.append(f"Anywhere on the map, long-range order is at most {ordered} probable, phase separation at most {separated}.")
    if d["extrapolated"].any():
        share = float(d["extrapolated"].mean())
        found.append(f"{_percent(share)} of the compositions lie beyond those of all images: couplings were never seen at work there.")
    return found


def _said(t: NDArray[np.float64], per: float | None, lowest: float, top: float) -> str:
    """Transition temperatures in words.

    Examples
    --------
    >>> _said(np.array([0.5, 0.5, 0.0, 0.0]), 1000.0, 0.02, 2.0)
    '0.5 [0.5, 0.5] of the formation temperature, 500 K [500, 500], in 50 % of the draws; 50 % have none down to 0.02.'
    """
    real = t[(t > 0) & np.isfinite(t)]
    none, above = (t == 0).mean(), np.isinf(t).mean()
    if none == 1:
        return f"none, for all draws, from {lowest:g} to {top:g} of the formation temperature."
    parts = []
    if len(real):
        low, middle, high = np.quantile(real, [0.05, 0.5, 0.95])
        kelvin = "" if per is None else f", {middle * per:.3g} K [{low * per:.3g}, {high * per:.3g}],"
        parts.append(
            f"{middle:.3g} [{low:.3g}, {high:.3g}] of the formation temperature{kelvin} in {_percent(len(real) / len(t))} of the draws"
        )
    if none:
        parts.append(f"{_percent(none)} have none down to {lowest:g}")
    if above:
        parts.append(f"{_percent(above)} have it above {top:g}, beyond the map")
    return "; ".join(parts) + "."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _figures(diagram: PhaseDiagram, place: float, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """The map, and what is worth a figure beside it."""
    found = [
        _picture(
            plots.phase_map(diagram),
            "Phase map",
            "On the order parameter: the temperature below which the alloy is no longer disordered; median (line), 5 to 95 % of the "
            "posterior (band, dashed) and single draws (thin). Temperatures are relative to the formation temperature. Hatched: atoms "
            "stand still for more than 10 % of the draws, whose last values are held. Dots: more than half of the draws are not in "
            "equilibrium.",
        ),
        _picture(
            plots.order_against_temperature(diagram, place),
            "Order against temperature",
            "Medians and 5 to 95 % of the posterior draws, at the composition of the map nearest to the mean of the images."
            if across(diagram.dataset) == "composition"
            else "Medians and 5 to 95 % of the posterior draws, at the middle chemical potential of the map.",
        ),
    ]
    if (diagram.boundaries["highest"] > 0).any():
        text = "The highest transition of every draw (dots), by model, with the median and 5 to 95 % of those that have one on the map."
        found.append(_picture(plots.transition_temperatures(diagram, colours), "Transition temperatures", text))
    if diagram.models.sizes["model"] > 1:
        text = (
            "Probability of each phase under every model, and what knowing the model tells about the phase: 0 bits where the models agree, "
            "1 where two of equal weight are sure of different phases."
        )
        found.append(_picture(plots.model_disagreement(diagram), "Disagreement of the models", text))
    if "coexistence" in diagram.boundaries and float(np.isfinite(diagram.boundaries["coexistence"][..., 0]).mean(axis=0).max()) > _NOTABLE:
        text = "Compositions between which the alloy splits, by the common tangent: single draws, their medians and 5 to 95 %."
        found.append(_picture(plots.coexistence(diagram), "Coexistence", text))
    return found


def _picture(figure: Figure, name: str, caption: str) -> dict[str, Any]:
    svg = base64.b64encode(plots.to_svg(figure).encode()).decode()
    return {"source": f"data:image/svg+xml;base64,{svg}", "name": name, "caption": caption, "width": round(96 * figure.get_figwidth())}
