"""The part of the report that says how far the posteriors can be trusted."""

from __future__ import annotations

import base64
from typing import Any

from .. import plots
from ..inference.ranked import BASELINE, Calibration


def calibration(found: Calibration | None) -> dict[str, Any] | None:
    """What the template shows of a calibration; None where there is nothing to show."""
    if found is None or not any(r.datasets for r in found.rows):
        return None
    rows = [
        {
            "model": r.model, "kind": r.kind, "name": q, "baseline": r.kind == BASELINE, "half": r.coverage(q, 0.5).share,
            "most": r.coverage(q).share, "low": r.coverage(q).low, "high": r.coverage(q).high,
            "sharpness": r.sharpness(q) if q in r.names else None, "p": r.p_values[q], "verdict": found.verdicts[r.model, r.kind, q],
        }
        for r in found.rows
        if r.datasets
        for q in r.quantities
    ]  # fmt: skip
    figure = plots.rank_bands(found)
    svg = base64.b64encode(plots.to_svg(figure).encode()).decode()
    caption = (
        "Posterior mass below the truth over the synthetic data sets: its distribution minus the uniform one. A line that leaves the grey "
        "band anywhere is one in twenty that a calibrated posterior would give."
    )
    return {
        "rows": rows,
        "verdict": found.verdict,
        "source": found.source,
        "scope": found.scope,
        "datasets": max(len(r.truth) for r in found.rows),
        "figure": {
            "source": f"data:image/svg+xml;base64,{svg}", "name": "Ranks of known truths", "caption": caption,
            "width": round(96 * figure.get_figwidth()),
        },
    }  # fmt: skip
