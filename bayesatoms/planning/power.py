"""Power: how probably more images tell the candidate models apart, by the rule of the comparison itself.

Each experiment has a truth (a model, its couplings) and adds images of that truth to those there are, which stay as they
were observed. Every model's evidence follows under priors of half, once and twice their width; the experiment decides if one model
alone has 95 % of the weight under all three, and decides rightly if it is the true one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from ..inference.criteria import judged
from ..inference.densities import log_likelihoods
from ..inference.posterior import Result
from ..inference.priors import PRIOR_SCALES
from .prospects import Belief, Prospect
from .surfaces import Evidence, Surface, places_over

Floats = NDArray[np.float64]

_LOST = 1e-3  # weight without which a model is out of the question
REMAINS = 0.95  # weight at which a model remains alone, as `comparison.remaining` has it


@dataclass(frozen=True, eq=False)
class Truth:
    """What may be so: a model and its couplings (E, k), one row an experiment; `share` is its probability now."""

    name: str
    model: str
    couplings: Floats
    share: float = 1.0


class Power(NamedTuple):
    """Shares of experiments by number of images (rungs,): decided for the truth, for another model; with all posteriors in the region."""

    right: Floats
    wrong: Floats
    inside: Floats


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything that experiments at one prospect are analysed with; `surfaces` has None for models without couplings."""

    result: Result
    prospect: Prospect
    surfaces: Mapping[str, Surface | None]

    @classmethod
    def build(cls, result: Result, prospect: Prospect, beliefs: Sequence[Belief], models: Sequence[str]) -> Bench:
        """Fit every model's log likelihoods over the posterior so far.

        Raises
        ------
        CheckError
            If the chains do not cover a posterior.
        """
        surfaces: dict[str, Surface | None] = dict.fromkeys(models)
        for b in beliefs:
            surfaces[b.model.name] = _surface(result, prospect, b)
        return cls(result, prospect, surfaces)

    def error(self, images: int) -> float:
        """Root mean square error of the polynomials for a log likelihood of the images so far and so many more."""
        return max((s.error[0] + images * s.error[1] for s in self.surfaces.values() if s is not None), default=0.0)

    def power(self, truth: Truth, images: Sequence[int], rng: np.random.Generator) -> Power:
        """Probability that so many more images (rising) decide.

        Parameters
        ----------
        truth : Truth
        images : sequence of int
        rng : numpy.random.Generator
        """
        embed = self.prospect.emulator.embed(self.result[truth.model].model)
        sums = self.prospect.sums(truth.couplings @ embed, images, rng)
        found, true = [], list(self.surfaces).index(truth.model)
        for total, n in zip(sums, images, strict=True):
            each = [self._evidence(name, surface, total, n) for name, surface in self.surfaces.items()]
            log_z = np.array([e.log_z for e in each])
            winner, weights = decided(log_z), np.exp(log_z - logsumexp(log_z, axis=0)).max(axis=1)
            # at the edge of what the images so far allow a model has lost already, unless it is the truth or keeps weight
            lost = weights < _LOST
            lost[true] = False
            inside = np.all(np.array([e.inside for e in each]) | lost, axis=0)
            found.append([np.mean(winner == true), np.mean((winner >= 0) & (winner != true)), inside.mean()])
        return Power(*np.array(found).T)

    def _evidence(self, name: str, surface: Surface | None, total: Floats, n: int) -> Evidence:
        if surface is not None:
            return surface.evidence(total, n, PRIOR_SCALES)
        # the random alloy has nothing to integrate, and other likelihoods are over its own
        level = float(judged(self.result[name]).log_likelihood[0, 0].sum())
        return Evidence(np.full((len(PRIOR_SCALES), len(total)), level), np.ones(len(total), dtype=bool))


def decided(log_z: Floats) -> NDArray[np.int64]:
    """Which model alone remains in each experiment, -1 for several; from log evidences (models, scales, E).

    Examples
    --------
    >>> decided(np.log([[[0.96, 0.9]], [[0.04, 0.1]]])).tolist()
    [0, -1]
    """
    weights = np.exp(log_z - logsumexp(log_z, axis=0)).min(axis=1)
    best = weights.argmax(axis=0)
    return np.where(weights.max(axis=0) >= REMAINS, best, -1)


def _surface(result: Result, prospect: Prospect, b: Belief) -> Surface:
    fit, places = result[b.model.name], places_over(b.centre, b.cov)
    kind = judged(fit).kind
    before = fit.smooth[kind]
    now = log_likelihoods(before, result.observations, kind, places).sum(axis=1) + before.leash(places)
    more, held = prospect.natural(b)(places)
    return Surface.fit(b.model, b.centre, b.cov, places, now, more, prospect.mean(b.centre @ prospect.emulator.embed(b.model)), held)
