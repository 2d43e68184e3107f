"""The part of the report about images that were read from pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import plots
from ..imaging.micrograph import Micrograph
from ..inference.sensitivity import Sensitivity


def readings(found: Mapping[str, Micrograph]) -> list[dict[str, Any]]:
    """What the template shows of every image of pixels."""
    return [_reading(name, m) for name, m in found.items()]


def _reading(name: str, m: Micrograph) -> dict[str, Any]:
    figure = plots.reading(m)
    header = m.image.pixel_size
    given = "no pixel size given" if header is None else f"{header:.4g} nm given"
    text = (
        "What was found and taken for what; intensities over the local background with the fitted levels (counts on a root scale); the "
        "probability that a label is wrong; the fitted background; how far each column lies from where its neighbours predict it; and the "
        "local strain against the mean lattice, with the axis of the larger one."
    )
    return {
        "name": name,
        "sites": f"{int(m.used.sum())} of {m.n} sites used, {len(m.registration.strays)} bright spots that are no column",
        "pixel": f"{m.pixel_size:.4g} nm by the lattice; {given}",
        "goodness": m.registration.goodness,
        "wrong": 100 * float(m.labels.uncertain.mean()),
        "figure": {
            "source": f"data:image/png;base64,{plots.to_png(figure, dpi=110)}",
            "name": f"Reading of {name}",
            "caption": f"{name}. {text}",
            "width": round(80 * figure.get_figwidth()),
        },
        "warnings": m.warnings,
        "sentences": [m.contamination.sentence, m.homogeneity.sentence],
        "species": m.labels.species,
        "label_error": [{"species": s, "row": row} for s, row in zip(m.labels.species, (100 * m.labels.label_error).tolist(), strict=True)],
        "levels": m.labels.means.tolist(),
    }


def sensitivity(found: Sensitivity | None) -> dict[str, Any] | None:
    """How the couplings move with the thresholds: sentences, those of moved couplings first, and a table."""
    if found is None or not found.rows:
        return None
    rows = [
        {
            "labelling": r.labelling, "model": r.model, "coupling": r.coupling, "given": found.given[r.model, r.coupling],
            "estimate": r.estimate, "shift": r.shift, "method": r.method if not r.why else f"{r.method}: {r.why}",
        }
        for r in found.rows
    ]  # fmt: skip
    sentences = sorted((s.replace("-0", "−0") for s in found.sentences()), key=lambda s: " is label-sensitive" not in s)
    return {"sentences": sentences, "rows": rows, "any": bool(found.sensitive), "all": all(r.estimate is not None for r in found.rows)}
