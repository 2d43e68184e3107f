"""Rows of the report's comparison: what its tables beside the main one show."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..inference.comparison import Comparison, Row
from ..inference.criteria import judged
from ..inference.posterior import Result
from ..inference.priors import PRIOR_SCALES

_WORST = 1  # of the groups of environments that are shown for each image and model where none is named
_DECISIONS = {"within": "practically zero", "outside": "not zero", "undecided": "undecided"}


def comparison_tables(result: Result, comparison: Comparison) -> dict[str, Any]:
    """Everything about the comparison that the template shows beyond its main table.

    Examples
    --------
    ``comparison_tables(result, compare(result))["couplings"]`` has a row for every coupling of every model.
    """
    return {
        "points": [_points(row, comparison) for row in comparison.rows.values()],
        "couplings": [line for row in comparison.rows.values() for line in _couplings(result, row)],
        "modes": [line for row in comparison.rows.values() for line in _modes(result, row)],
        "misfit": [line for row in comparison.rows.values() for line in _misfit(row, comparison.images)],
    }


def _points(row: Row, comparison: Comparison) -> dict[str, Any]:
    """One model's predictive scores, by the comparison's units and by images."""
    atoms = comparison.units == "atoms"
    return {
        "model": row.name,
        "atoms": {"waic": row.waic, "loo": row.loo} if atoms else None,
        "images": {"waic": row.waic_images, "loo": row.loo_images},
        "difference": row.loo_difference,
        "k": row.loo.pareto_k_max,
        "exact": row.loo_images.exact,
        "stacking": row.stacking,
        "consistency": row.consistency,
    }


def _couplings(result: Result, row: Row) -> list[dict[str, Any]]:
    """Each coupling of a model: whether it matters in practice, and what it is under wider and narrower priors."""
    names = judged(result[row.name]).names
    return [
        {
            "model": row.name,
            "name": name,
            "practical": p,
            "decision": _DECISIONS[p.decision],
            "by_scale": [(float(row.posterior[s].mean[i]), float(row.posterior[s].sd[i])) for s in PRIOR_SCALES],
        }
        for i, (name, p) in enumerate(zip(names, row.practical, strict=True))
    ]


def _modes(result: Result, row: Row) -> list[dict[str, Any]]:
    """What each image alone says of each coupling."""
    found = row.heterogeneity
    if found is None:
        return []
    names = judged(result[row.name]).names
    return [
        {
            "model": row.name,
            "name": name,
            "p": found.p,
            "images": list(zip(found.modes[:, i].tolist(), found.sd[:, i].tolist(), strict=True)),
        }
        for i, name in enumerate(names)
    ]


def _misfit(row: Row, images: tuple[str, ...]) -> list[dict[str, Any]]:
    """For every image the groups of environments that a model cannot produce, or else the one farthest off."""
    found = []
    for image in images:
        own = [s for s in row.shifts if s.image == image]
        named = [s for s in own if s.named] or sorted(own, key=lambda s: -abs(s.z))[:_WORST]
        found += [{"shift": s, "named": s.named} for s in named if np.isfinite(s.z)]
    return found
