"""What a calibration found: ranks, coverage and sharpness of every coupling, with a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .ranks import binomial_interval, covered, spread, uniformity

BASELINE = "independent"  # a likelihood that is known to be too sure: shown, never a failure
LOG_LIKELIHOOD = "log likelihood"
ALARM = 0.01  # chance that some rank test of a calibrated run fails, all its tests together
_CLEAR = 3.0  # standard errors beyond which the direction of a failure is named
_FEW = 20  # data sets without which nothing is said


class Coverage(NamedTuple):
    """Share of central intervals that hold the truth, with its 95 % binomial interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Ranked:
    """One model under one likelihood, over n synthetic data sets.

    Attributes
    ----------
    model, kind : str
    names : tuple of str
        The k couplings (and other parameters, if there are any).
    truth, mean, sd : ndarray, shape (n, k)
        What the data came from, and the posterior, in kT at formation.
    pit : ndarray, shape (n, k + 1)
        Posterior mass below the truth; the last column is that of the log likelihood.
    bound : ndarray, shape (n, k)
        Least standard deviation there can be: root of the diagonal of (prior precision + Fisher information of the
        synthetic images at the truth)^-1 (van Trees' inequality, locally).
    effective : ndarray, shape (n,)
        Effective number of points under each posterior.
    flags : mapping of str to ndarray of bool, shape (n,)
        What is wrong with a data set, judged by its truth alone and never by its data; such sets are left out.
    """

    model: str
    kind: str
    names: tuple[str, ...]
    truth: NDArray[np.float64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    pit: NDArray[np.float64]
    bound: NDArray[np.float64]
    effective: NDArray[np.float64]
    flags: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def quantities(self) -> tuple[str, ...]:
        """The couplings, then the log likelihood."""
        return (*self.names, LOG_LIKELIHOOD)

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Data sets without a flag, (n,)."""
        return ~np.any([np.zeros(len(self.truth), dtype=bool), *self.flags.values()], axis=0)

    @property
    def datasets(self) -> int:
        return int(self.kept.sum())

    @property
    def flagged(self) -> float:
        """Share of the data sets that are left out."""
        return 1 - self.datasets / max(1, len(self.truth))

    def ranks(self, quantity: str) -> NDArray[np.float64]:
        """PIT values of the data sets kept; of a coupling or of the log likelihood.

        Raises
        ------
        InputError
            If there is no such quantity.
        """
        if quantity not in self.quantities:
            raise InputError(f"{self.model} has no {quantity!r}; expected one of {', '.join(self.quantities)}")
        return self.pit[self.kept, self.quantities.index(quantity)]

    def coverage(self, quantity: str, level: float = 0.9) -> Coverage:
        """Share of central intervals of that probability which hold the truth."""
        inside = covered(self.ranks(quantity), level)
        if not len(inside):
            return Coverage(np.nan, 0.0, 1.0)
        return Coverage(float(inside.mean()), *binomial_interval(int(inside.sum()), len(inside)))

    def sharpness(self, name: str) -> float:
        """Root mean square of the posterior's standard deviation over that of the bound: 1 is the best there can be."""
        a = self.names.index(name)
        return float(np.sqrt(np.mean(self.sd[self.kept, a] ** 2) / np.mean(self.bound[self.kept, a] ** 2))) if self.datasets else np.nan

    @cached_property
    def p_values(self) -> dict[str, float]:
        """Of the hypothesis that the ranks of a quantity are uniform, by quantity (:func:`bayesatoms.inference.ranks.uniformity`)."""
        return {q: uniformity(self.ranks(q)) if self.datasets else np.nan for q in self.quantities}

    def judged(self, quantity: str, alarm: float) -> str:
        """One word on a quantity, failing with that probability where all is well."""
        if self.datasets < _FEW:
            return "too few"
        if self.p_values[quantity] >= alarm:
            return "calibrated"
        side, out = spread(self.ranks(quantity))
        if abs(out) >= max(abs(side), _CLEAR):
            return "too sure" if out > 0 else "too cautious"
        if abs(side) < _CLEAR:
            return "not uniform"
        return "too low" if side > 0 else "too high"


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far the posteriors of a run can be trusted, from synthetic data sets of known truth.

    Attributes
    ----------
    rows : tuple of Ranked
        One a model and likelihood; ``calibration["P1", "calibrated"]``.
    source : {"held-out", "simulated"}
        Images from chains of the pool that the analysis did not see, or from new simulations.
    scope : {"local", "prior", "truth"}
        Truths from the posterior, which then is the prior of each synthetic data set, or from the prior, or one truth.
    seed : int
    settings : mapping
        What else it was made with.

    Notes
    -----
    "local" is posterior simulation-based calibration (Säilynoja et al., arXiv 2502.03279): the truth is drawn from
    the posterior given the user's own images, and the synthetic images are analysed together with them. It says
    that the analysis can be trusted where the user's couplings are, and nothing about the rest of the prior.
    """

    rows: tuple[Ranked, ...]
    source: str
    scope: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: tuple[str, str]) -> Ranked:
        for row in self.rows:
            if (row.model, row.kind) == key:
                return row
        raise InputError(f"no calibration of {key}; there are {', '.join(f'{r.model} {r.kind}' for r in self.rows)}")

    @cached_property
    def alarm(self) -> float:
        """p-value below which a rank test fails: :data:`ALARM` shared among the tests of all likelihoods but the baseline."""
        return ALARM / max(1, sum(len(r.quantities) for r in self.rows if r.kind != BASELINE))

    @cached_property
    def verdicts(self) -> dict[tuple[str, str, str], str]:
        """One word for each (model, likelihood, quantity)."""
        return {(r.model, r.kind, q): r.judged(q, self.alarm) for r in self.rows for q in r.quantities}

    @property
    def ok(self) -> bool:
        """Whether every quantity of every model is calibrated under all likelihoods but the baseline."""
        return all(v in ("calibrated", "too few") for (_, kind, _), v in self.verdicts.items() if kind != BASELINE)

    @property
    def verdict(self) -> str:
        """A sentence or two."""
        where = {"local": "where the posterior is", "prior": "over the prior"}.get(self.scope, "at one truth")
        if not self.rows:
            return "Nothing was checked: the composition or the label errors of the images are parameters of every model."
        told = [f"{_likelihood(kind)}: {self._of(kind)}" for kind in dict.fromkeys(r.kind for r in self.rows)]
        few = [r for r in self.rows if r.datasets < _FEW]
        warning = f" Fewer than {_FEW} data sets were left for {', '.join(f'{r.model} ({r.kind})' for r in few)}." if few else ""
        return f"Checked {where}. " + " ".join(told) + warning

    def _of(self, kind: str) -> str:
        bad: dict[str, list[str]] = {}
        for (model, k, quantity), word in self.verdicts.items():
            if k == kind and word not in ("calibrated", "too few"):
                bad.setdefault(word, []).append(f"{model} {quantity}")
        if not bad:
            return "ranks are uniform for every coupling and for the likelihood itself."
        return "; ".join(f"{word} for {', '.join(names)}" for word, names in bad.items()) + "."

    def summary(self) -> dict[str, Any]:
        """Plain numbers: {model: {coupling: {coverage_50, coverage_90, datasets, ...}}} of the first likelihood, others by name within."""
        found: dict[str, Any] = {}
        for r in self.rows:
            for q in r.quantities:
                numbers = {
                    "coverage_50": r.coverage(q, 0.5).share, "coverage_90": r.coverage(q).share,
                    "coverage_90_interval": [r.coverage(q).low, r.coverage(q).high], "datasets": r.datasets, "flagged": r.flagged,
                    "p_value": r.p_values[q], "sharpness": r.sharpness(q) if q in r.names else None,
                    "verdict": self.verdicts[r.model, r.kind, q], "source": self.source, "scope": self.scope,
                }  # fmt: skip
                known = found.setdefault(r.model, {})
                if q in known:
                    known[q][r.kind] = numbers
                else:
                    known[q] = {**numbers, "likelihood": r.kind}
        return found

    def __str__(self) -> str:
        head = ("model", "likelihood", "quantity", "50 %", "90 %", "", "sd/bound", "p", "verdict")
        table = [head, *(self._cells(r, q) for r in self.rows for q in r.quantities)]
        widths = [max(len(row[c]) for row in table) for c in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*lines, *_counted(self.rows), self.verdict])

    def _cells(self, r: Ranked, quantity: str) -> tuple[str, ...]:
        half, most = r.coverage(quantity, 0.5), r.coverage(quantity)
        sharp = f"{r.sharpness(quantity):.2f}" if quantity in r.names else ""
        interval = f"[{most.low:.3f}, {most.high:.3f}]"
        numbers = (f"{half.share:.3f}", f"{most.share:.3f}", interval, sharp, _p(r.p_values[quantity]))
        return (r.model, r.kind, quantity, *numbers, self.verdicts[r.model, r.kind, quantity])


def _likelihood(kind: str) -> str:
    return f"{kind.capitalize()} likelihood"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _counted(rows: Sequence[Ranked]) -> list[str]:
    """How many data sets, and what was left out, for each model once."""
    found = {}
    for r in rows:
        why = ", ".join(f"{name} {100 * f.mean():.1f} %" for name, f in r.flags.items() if f.any())
        text = f"{r.model}: {r.datasets} data sets of {len(r.truth)}" + (f"; left out: {why}" if why else "")
        found.setdefault(r.model, text)
    return list(found.values())
