"""The report: one self-contained HTML page about a run, the verdict first.

Each section of the template has one small collector here that turns results into plain rows; figures
are drawn by `plots` and embedded, so the page needs no other file and no network.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata, resources
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from .. import plots
from ..errors import InputError
from ..files import write
from ..imaging.micrograph import Micrograph
from ..inference.comparison import Comparison, compare, remaining
from ..inference.evidence import log_evidence
from ..inference.posterior import Check, Fit, Result
from ..inference.priors import PRIOR_SCALES
from ..inference.ranked import Calibration
from ..inference.sensitivity import Sensitivity, estimates, sentence
from ..inference.trees import versions
from ..observation import Observation
from ..phases.diagram import PhaseDiagram
from ..units import to_energy
from . import calibration as trust
from . import images
from .comparison import comparison_tables
from .notes import identifiability, meaning, prior_text
from .phases import phases
from .references import cited

_AS_GIVEN = "as given"  # the labelling of the result itself
_MOST_CORNER = 6  # couplings of a corner plot


def write_report(
    result: Result,
    diagram: PhaseDiagram | None = None,
    path: str | PathLike[str] = "report.html",
    *,
    comparison: Comparison | None = None,
    relabelled: Mapping[str, Result] | None = None,
    readings: Mapping[str, Micrograph] | None = None,
    sensitivity: Sensitivity | None = None,
    calibration: Calibration | None = None,
    title: str | None = None,
) -> Path:
    """Write one self-contained HTML page about a run.

    Parameters
    ----------
    result : Result
    diagram : PhaseDiagram, optional
        Adds the phase map; where plotly is installed, also as a figure to explore (2 MB, without network).
    path : path
        Written whole or not at all.
    comparison : Comparison, optional
        As ``compare(result)`` gives it; computed if left out.
    relabelled : mapping of labelling to Result, optional
        The same images under other labels: adds how the couplings move.
    readings : mapping of image to Micrograph, optional
        What ``analyse`` returned: adds the pictures and warnings of images that were read from pixels.
    sensitivity : Sensitivity, optional
        As ``label_sensitivity`` gives it for moved thresholds: adds how the couplings move.
    calibration : Calibration, optional
        As ``calibrate(result)`` gives it: adds how far the posteriors can be trusted.
    title : str, optional

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the file cannot be written.

    Examples
    --------
    ``write_report(result, diagram, "report.html")`` after ``result = infer(...)``.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"report {path} cannot be written: there is no folder {path.parent}; make it first")
    comparison = comparison or compare(result)
    page = _template().render({
        **_page(result, diagram, comparison, dict(relabelled or {}), title),
        "readings": images.readings(readings or {}),
        "sensitivity": images.sensitivity(sensitivity),
        "calibration": trust.calibration(calibration),
    })  # fmt: skip
    try:
        write(path, page)
    except OSError as error:
        raise InputError(f"report {path} cannot be written ({error.strerror}); choose another place") from None
    return path


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(fixed=_fixed, signed=_signed, p=_p, plain=_text)
    return environment.from_string(resources.files(__package__).joinpath("template.html").read_text(encoding="utf8"))


def _page(
    result: Result, diagram: PhaseDiagram | None, comparison: Comparison, relabelled: Mapping[str, Result], title: str | None
) -> dict:
    """Everything the template shows."""
    checks = {**result.checks, **comparison.checks}
    failed = _failed(checks) + [(f"{label}: {name}", why) for label, r in relabelled.items() for name, why in _failed(r.checks)]
    return {
        "title": title or f"Interactions inferred from {_plural(len(result.observations), 'image')}",
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "result": result,
        "comparison": comparison,
        "tables": comparison_tables(result, comparison),
        "units": _plural(comparison.n_units, comparison.units.removesuffix("s")),
        "scales": PRIOR_SCALES,
        "failed": failed,
        "checks": checks,
        "terms": _terms(result),
        "couplings": _couplings(result),
        "temperature": _temperature(result.observations),
        "images": [_image(result, comparison, i) for i in range(len(result.observations))],
        "care": [*comparison.warnings, *identifiability(result, comparison), *result.notes],
        "coupling_figures": _coupling_figures(result, comparison),
        "image_figures": _image_figures(result, comparison),
        "relabelled": _labellings(result, relabelled),
        "phases": phases(diagram, result),
        "settings": asdict(result.settings),
        "versions": {**versions(), **{name: metadata.version(name) for name in ("matplotlib", "jinja2")}},
        "inputs": _inputs(result),
        "references": cited(["comparison", *_parts(diagram)]),
    }


def _parts(diagram: PhaseDiagram | None) -> list[str]:
    """The parts of a phase map that stand on papers of their own."""
    return [] if diagram is None else ["phases", *(["coexistence"] if "coexistence" in diagram.boundaries else [])]


def _failed(checks: Mapping[str, Check]) -> list[tuple[str, str]]:
    return [(name, check.why) for name, check in checks.items() if not check.ok]


# ---------------------------------------------------------------------- tables


def _terms(result: Result) -> list[dict[str, str]]:
    """What the couplings of every model mean."""
    found = []
    for model in (fit.model for fit in result.fits.values()):
        if not model.terms:
            found.append({"model": model.name, "name": "–", "text": "no interaction: the random alloy", "prior": "–"})
        found += [
            {"model": model.name, "name": t.name, "text": meaning(t, model.lattice), "prior": prior_text(t.prior)} for t in model.terms
        ]
    return found


def _couplings(result: Result) -> list[dict[str, Any]]:
    """A row for every coupling of every model."""
    temperature = _temperature(result.observations)
    return [_coupling(fit, i, temperature) for fit in result.fits.values() for i in range(len(fit.model.names))]


def _coupling(fit: Fit, i: int, temperature: float | None) -> dict[str, Any]:
    p, other = fit.posterior, fit.posteriors["independent" if fit.likelihood == "calibrated" else "calibrated"]
    row = {"model": fit.model.name, "name": p.names[i], "mean": p.mean[i], "sd": p.sd[i], "crb": fit.crb_sd[i]}
    row |= {"low": p.quantile(0.05)[i], "high": p.quantile(0.95)[i], "other_mean": other.mean[i], "other_sd": other.sd[i]}
    if temperature is not None:
        row |= {"mev": to_energy(p.mean[i], temperature, "meV"), "mev_sd": to_energy(p.sd[i], temperature, "meV")}
    return row


def _temperature(observations: Iterable[Observation]) -> float | None:
    """The formation temperature, if all images share a known one."""
    known = {o.temperature for o in observations}
    return known.pop() if len(known) == 1 else None


def _image(result: Result, comparison: Comparison, place: int) -> dict[str, Any]:
    """One image: what it is, and what each model makes of it."""
    o, rows = result.observations[place], comparison.rows.values()
    return {
        "name": o.name,
        "n": o.n,
        "composition": _compositions(o),
        "label_error": _label_error(o),
        "window": _window(o),
        "s2": [r.least.s2[place] for r in rows],
        "p": [r.p_values[place] for r in rows],
    }


def _compositions(o: Observation) -> list[str]:
    """Fraction of every species but the first, with the labels' errors undone."""
    seen, true, sd = o.composition, o.true_composition, o.composition_sd
    parts = []
    for i, species in enumerate(o.environments.species[1:], 1):
        labelled = "" if np.allclose(seen, true) else f" ({_fixed(seen[i])} as labelled)"
        parts.append(f"{species} {_fixed(true[i])} ± {_fixed(sd[i])}{labelled}")
    return parts


def _label_error(o: Observation) -> str:
    if o.probabilities is not None:
        return f"soft labels, {o.uncertain} of {len(o.probabilities)} sites uncertain"
    species, error = o.environments.species, o.label_error
    wrong = [(i, j) for i, j in np.ndindex(error.shape) if i != j and error[i, j] > 0]
    return ", ".join(f"{species[i]} read as {species[j]} {100 * error[i, j]:.3g} %" for i, j in wrong) or "none assumed"


def _window(o: Observation) -> str:
    extent = " × ".join(map(str, o.window.extent))
    if o.configuration is None:
        return f"counts only: a block of {extent} cells stands in"
    if o.window.whole:
        return f"whole periodic crystal, {extent} cells"
    return f"{o.configuration.n_seen} sites seen within {extent} cells"


def _inputs(result: Result) -> list[tuple[str, str]]:
    """Where each input came from, with its hashes."""
    found = [(name, f"sha256 {digest}") for name, digest in result.sources.items()]
    for o in result.observations:
        counts = hashlib.blake2b(o.counts.astype(o.counts.dtype.newbyteorder("<")).tobytes(), digest_size=8).hexdigest()
        found.append((o.name, "; ".join([*(f"{k} {_text(v)}" for k, v in o.source.items()), f"counts {counts}"])))
    return found


def _labellings(result: Result, relabelled: Mapping[str, Result]) -> dict[str, Any] | None:
    """How the couplings and the remaining models change with the labels."""
    if not relabelled:
        return None
    every = {_AS_GIVEN: result, **relabelled}
    rows = []
    for label, r in every.items():
        images = ", ".join(f"{o.name}: N {o.n}, {', '.join(_compositions(o))}" for o in r.observations)
        failed = [name for name, _ in _failed(r.checks)]
        rows.append({"label": label, "images": images, "couplings": _couplings(r), "remain": ", ".join(_remain(r)), "failed": failed})
    text = "Posterior mean, standard deviation (thick) and 5–95 % interval (thin) of each coupling, for each labelling of the same images."
    said = []
    for name, fit in result.fits.items():
        others = {label: estimates(r[name].posterior) for label, r in relabelled.items() if fit.model.terms}
        for i, (coupling, given) in enumerate(zip(fit.model.names, estimates(fit.posterior) if fit.model.terms else (), strict=True)):
            said.append(sentence(f"{name}: {coupling}", given, {label: e[i] for label, e in others.items()}).replace("-0", "−0"))
    return {"sentences": said, "rows": rows, "figure": _picture(plots.label_shift(every), "Couplings by labelling", text)}


def _remain(result: Result) -> tuple[str, ...]:
    """Which models remain, by the evidence alone."""
    weights: dict[float, dict[str, float]] = {}
    for scale in PRIOR_SCALES:
        values = np.array([log_evidence(result, fit, scale)[0] for fit in result.fits.values()])
        weights[scale] = dict(zip(result.fits, np.exp(values - np.logaddexp.reduce(values)).tolist(), strict=True))
    return remaining(weights)


# ---------------------------------------------------------------------- figures


def _coupling_figures(result: Result, comparison: Comparison) -> list[dict[str, Any]]:
    fits = [fit for fit in result.fits.values() if fit.model.terms]
    found = [
        _picture(
            plots.posteriors(result),
            "Posterior densities of the couplings",
            "Posterior of every coupling under the calibrated (solid) and the independent, published likelihood (dashed). The bar is one "
            "Cramér–Rao standard deviation either way of the mean: no analysis of these images could be surer.",
        ),
        _picture(
            plots.weights(comparison), "Posterior weights of the models", "Posterior weight of each model under three widths of the priors."
        ),
    ]
    for fit in fits:
        name = fit.model.name
        if 2 <= len(fit.model.names) <= _MOST_CORNER:
            text = f"{name}: contours that hold 50 and 90 % of the draws, solid calibrated, dashed independent."
            found.append(_picture(plots.corner(result, fit.model), f"Pairs of couplings of {name}", text))
        text = f"{name}: total S² straight from the pool, as the published analysis minimises it; the bars are Monte Carlo errors."
        figure = plots.s2_landscape(result, fit.model, comparison.rows[name].least)
        found.append(_picture(figure, f"Statistical distance of {name}", text))
    return found


def _image_figures(result: Result, comparison: Comparison) -> list[dict[str, Any]]:
    found = []
    for o in result.observations:
        text = (
            "Sites of the image." if o.configuration is not None else "Only counts are known; in brackets what a random alloy would show."
        )
        found.append(_picture(plots.site_map(o), f"Image {o.name}", f"{o.name}. {text}"))
        text = f"{o.name}. Observed counts of environment classes (circles), and the mean and 5–95 % of simulated images for each model."
        found.append(_picture(plots.histogram(result, o, comparison), f"Histogram of {o.name}", text))
    environments = result.statistic.environments
    if environments.lattice.dimension == 2 and environments.n_classes <= 60:
        text = "The classes of environment, with their names and how many raw environments each holds."
        found.append(_picture(plots.environment_key(environments), "Classes of environment", text))
    return found


def _picture(figure: Figure, name: str, caption: str) -> dict[str, Any]:
    """A figure as a data URI, its text for those who cannot see it, and its caption."""
    svg = base64.b64encode(plots.to_svg(figure).encode()).decode()
    return {"source": f"data:image/svg+xml;base64,{svg}", "name": name, "caption": caption, "width": round(96 * figure.get_figwidth())}


# ---------------------------------------------------------------------- numbers


def _fixed(value: float | None, digits: int = 3) -> str:
    """A number; an en dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not np.isfinite(value) else plots.signed(value, digits)


def _p(value: float | None) -> str:
    """A p-value or a weight: three digits, or that it is smaller."""
    return "–" if value is None or not np.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _text(value: Any) -> str:
    """A value of a summary as a reader wants it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(_text(v) for v in value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.3g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n:,} {noun}s"
