"""Before an hour is spent: what was given, what it can and cannot decide, what a run will cost.

Nothing is simulated but a probe of about a second. What it says of couplings and models rests on normal laws about estimates
(:mod:`.bounds`, :mod:`.decisions`); the run itself replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ..environments import Environments
from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..inference.identifiability import Identifiability, identifiability
from ..inference.inputs import KINDS, check_inputs
from ..inference.parameters import Nuisances
from ..inference.settings import Settings
from ..observation import Observation
from ..phases.candidates import Candidate
from .bounds import Bound, Probe, probe
from .cost import Cost, estimate, map_seconds, measure, stepping_stones
from .decisions import Decision, Verdict, decisions, normal_priors, verdict

_SIGN = 1.96  # standard deviations from zero at which a sign is told
_BLIND = 0.8  # of the prior's width, above which images say next to nothing
_PRICE = 1.05  # ratio of widths from which on the price of label errors is worth a word
_SHORT = 240  # records of the probe's chains at most: enough for a width to some 5 %


@dataclass(frozen=True, eq=False)
class Forecast:
    """What can be said before a run.

    Attributes
    ----------
    models : tuple of Hamiltonian
    observations : tuple of Observation
    identified : Identifiability
        Which couplings these images can tell at all.
    bounds : dict of Bound, by model
        Estimate and expected standard deviation of every coupling.
    decisions : tuple of Decision
        Models that differ by one coupling.
    verdict : Verdict or None
        All models together; None for one model, or where it is left to the run (a note says why).
    cost : Cost
    notes : tuple of str
        What these figures leave out.
    """

    models: tuple[Hamiltonian, ...]
    observations: tuple[Observation, ...]
    identified: Identifiability
    bounds: Mapping[str, Bound]
    decisions: tuple[Decision, ...]
    verdict: Verdict | None
    cost: Cost
    notes: tuple[str, ...] = ()

    def given(self) -> list[str]:
        """What was read: a line for every image and model."""
        images = [_image(o) for o in self.observations]
        return [*images, *(_model(m) for m in self.models)]

    def sentences(self) -> list[str]:
        """What the images can and cannot decide."""
        found = [*self.identified.sentences]
        for bound in self.bounds.values():
            found += _couplings(bound)
        found += [*self._shares(), *self._label_errors(), *map(str, self.decisions)]
        return [*found, *self._verdict(), *self.notes]

    def _shares(self) -> list[str]:
        """Which image tells most."""
        if len(self.observations) < 2:
            return []
        found = []
        for name, b in self.bounds.items():
            if b.names and name == next(n for n, other in self.bounds.items() if other.names):
                share = b.information[:, 0, 0] / max(b.information[:, 0, 0].sum(), 1e-300)
                best = int(np.argmax(share))
                found.append(f"{self.observations[best].name} carries {share[best]:.0%} of what is told about {b.names[0]} of {name}.")
        return found

    def _label_errors(self) -> list[str]:
        wrong = [o.name for o in self.observations if not o.response.exact]
        found = []
        for name, b in self.bounds.items():
            worse = b.sd / b.clean_sd if b.names else np.ones(0)
            parts = [
                f"{n} ± {s:.2g} instead of ± {c:.2g}" for n, s, c, r in zip(b.names, b.sd, b.clean_sd, worse, strict=True) if r > _PRICE
            ]
            if parts:
                found.append(f"{name}: label errors of {', '.join(wrong)} cost width: {', '.join(parts)} kT.")
        return found or ([f"Label errors of {', '.join(wrong)} cost less than {_PRICE - 1:.0%} of any width."] if wrong else [])

    def _verdict(self) -> list[str]:
        v = self.verdict
        if v is None:
            return []
        weights = ", ".join(f"{n} {w:.2f}" for n, w in sorted(v.weights.items(), key=lambda item: -item[1]))
        if v.decides:
            return [f"These images should decide for {v.remain[0]} (expected weights {weights})."]
        more = "" if v.more is None else f" If the estimates stay, {v.more:.2g} times as much of the same data would decide."
        return [f"These images cannot decide between {_listed(v.remain)} (expected weights {weights}).{more}"]

    def summary(self) -> dict[str, Any]:
        """Everything by key, ready for JSON but for numbers that are not finite."""
        models = {
            name: {
                "estimate": dict(zip(b.names, b.couplings.tolist(), strict=True)),
                "sd": dict(zip(b.names, b.sd.tolist(), strict=True)),
                "sd_without_label_errors": dict(zip(b.names, b.clean_sd.tolist(), strict=True)),
                "crb_sd": dict(zip(b.names, b.crb_sd.tolist(), strict=True)),
                "prior_sd": dict(zip(b.names, b.prior_sd.tolist(), strict=True)),
                "pseudo_likelihood": None
                if b.pseudo is None
                else {
                    n: {"value": float(v), "curvature_sd": float(s)}
                    for n, v, s in zip(b.names, b.pseudo.couplings, b.pseudo.sd, strict=True)
                },
                "supported": b.supported,
                "log_evidence": b.log_evidence(),
            }
            for name, b in self.bounds.items()
        }
        low, expected, high = self.cost.seconds
        return {
            "given": self.given(),
            "images": {o.name: {"environments": o.n, "composition": o.true_composition.tolist()} for o in self.observations},
            "models": models,
            "decisions": [asdict(d) for d in self.decisions],
            "verdict": None if self.verdict is None else {**asdict(self.verdict), "decides": self.verdict.decides},
            "sentences": self.sentences(),
            "cost": {
                "seconds": {"low": low, "expected": expected, "high": high},
                "stages": {s.name: {"low": s.low, "expected": s.expected, "high": s.high} for s in self.cost.stages},
                "compilation": self.cost.compilation,
                "memory_GB": list(self.cost.memory),
                "moves": self.cost.moves,
                "moves_per_second": self.cost.rate,
                "workers": self.cost.workers,
                "dominant": self.cost.dominant.name,
            },
        }  # fmt: skip

    def __str__(self) -> str:
        parts = (
            ("Given", self.given()),
            ("What these images can and cannot decide", self.sentences()),
            ("Time and memory", self.cost.sentences()),
        )
        return "\n".join(line for title, lines in parts for line in (title, *(f"  {text}" for text in lines)))


@threadpool_limits.wrap(limits=1, user_api="blas")
def validate(
    models: Sequence[Hamiltonian] | Hamiltonian,
    observations: Sequence[Observation] | Observation,
    *,
    environments: Environments | None = None,
    settings: Settings | None = None,
    nuisances: Nuisances | None = None,
    phases: Mapping[str, Any] | None = None,
    relabelled: int = 0,
    seed: int = 0,
    workers: int = 1,
) -> Forecast:
    """Say beforehand what an inference can decide and what it will cost. Takes a few seconds.

    Parameters
    ----------
    models, observations, environments, settings, nuisances
        As for :func:`~bayesatoms.inference.posterior.infer`.
    phases : mapping, optional
        A phase map that is to follow: `composition`, `chemical_potential`, `temperature`, `draws`, `size` and `model` as
        :func:`~bayesatoms.phases.diagram.phase_diagram` takes them; none by default.
    relabelled : int
        Other labellings of the same images that are to be inferred too.
    seed : int
        Of the probe. What is said of the images follows from it, what is said of time is measured.
    workers : int
        Of the run to come.

    Returns
    -------
    Forecast
        Printing it says everything.

    Raises
    ------
    InputError
        Where `infer` would raise one.

    Notes
    -----
    *Estimates* are the posterior's mode, from the pseudo-likelihood by Fisher scoring; *widths* those of the normal law there,
    from the information of the calibrated likelihood and the prior. The pseudo-likelihood's own curvature is quoted, and is too
    sure, near the random alloy by a factor of 1.4: every bond is counted from both of its ends.

    *Measured*, posterior sd over the one expected: 0.90 to 1.03 in ten couplings of five studies (one to four images of 400 to 10,000
    sites, one coupling or two), against 1.11 to 1.47 for the pseudo-likelihood's curvature; weights of models within 0.01.

    Examples
    --------
    >>> from numpyro import distributions as dist
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> alloy = dict(lattice=Lattice.square(), species=("A", "B"))
    >>> models = [Hamiltonian("R", **alloy), Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), **alloy)]
    >>> labels = np.random.default_rng(0).permutation(np.arange(400) % 2).reshape(20, 20)
    >>> found = validate(models, Observation.from_labels(labels, **alloy, name="random"), seed=1)
    >>> found.verdict.remain, found.decisions[0].decides
    (('R', 'P1'), '')
    """
    import numpyro

    numpyro.enable_x64()
    models = [models] if isinstance(models, Hamiltonian) else list(models)
    observations = [observations] if isinstance(observations, Observation) else list(observations)
    if environments is not None:
        observations = [o.with_environments(environments) for o in observations]
    check_inputs(models, observations, KINDS)
    for model in models:
        for name in model.names:
            model.prior(name)
    if workers < 1:
        raise InputError(f"{workers} workers given; expected at least 1")
    settings, nuisances = settings or Settings(), nuisances or Nuisances()
    identified = identifiability(models, observations, seed=seed)
    short = replace(settings, samples=min(settings.samples, _SHORT))
    found = probe(models, observations, settings=short, nuisances=nuisances, seed=seed)
    rates = measure(models, observations, settings, nuisances, found.kept)
    judged = verdict(found.bounds)
    mapping = None
    if phases is not None and len(models[0].species) == 2:
        mapping = map_seconds(_candidates(found, judged, seed), phases, workers)
    way = _way(found.bounds, observations) if len(models) > 1 else None
    cost = estimate(
        models,
        observations,
        settings,
        rates,
        kept=found.kept,
        lookup=found.lookup,
        workers=workers,
        way=way,
        mapping=mapping,
        relabelled=relabelled,
    )
    return Forecast(
        tuple(models), tuple(observations), identified, found.bounds, tuple(decisions(models, found.bounds, observations, seed)),
        judged, cost, tuple(_notes(found, nuisances)),
    )  # fmt: skip


def _way(bounds: Mapping[str, Bound], observations: Sequence[Observation]) -> dict[str, float]:
    """Chains wanted between the random alloy and the estimates, by image."""
    found = {}
    for i, o in enumerate(observations):
        away = [np.sqrt(max(b.couplings @ b.information[i][: len(b.names), : len(b.names)] @ b.couplings, 0.0)) for b in bounds.values()]
        found[o.name] = sum(stepping_stones(float(a)) for a in away)
    return found


def _candidates(found: Probe, judged: Verdict | None, seed: int) -> list[Candidate]:
    """The models with likely couplings, by expected weight."""
    rng, candidates = np.random.default_rng([seed, 47]), []
    for name, b in found.bounds.items():
        draws = b.couplings + rng.normal(size=(100, len(b.names))) * np.minimum(b.sd, 1.0)
        candidates.append(Candidate(b.model, draws, 1.0 if judged is None else judged.weights[name]))
    return candidates


def _notes(found: Probe, nuisances: Nuisances) -> list[str]:
    lost = [name for name, b in found.bounds.items() if not b.supported]
    notes = []
    if lost:
        notes.append(
            f"{_listed(lost)}: the probe did not reach where the couplings are, which seem strong. What the images decide is left to the "
            "run, and that may be long."
        )
    other = [name for name, b in found.bounds.items() if not normal_priors(b)]
    if other:
        notes.append(f"{_listed(other)}: priors that are bounded or have no width; what the images decide is left to the run.")
    if found.slow:
        notes.append(f"Chains of {_listed(found.slow)} did not equilibrate in the probe: the run may have to exchange configurations.")
    if nuisances.composition or nuisances.label_error > 0:
        notes.append("That compositions or rates of label errors are uncertain is not in these widths; they will be somewhat larger.")
    return notes


# ---------------------------------------------------------------------- in words


def _image(o: Observation) -> str:
    parts = ", ".join(
        f"{s} {x:.3f} ± {d:.3f}" for s, x, d in zip(o.environments.species[1:], o.true_composition[1:], o.composition_sd[1:], strict=True)
    )
    sites = "counts alone, a nearly square block stands in for the window"
    if o.configuration is not None:
        sites = f"{o.configuration.n_seen} sites" + (", a whole periodic crystal" if o.window.whole else "")
    wrong = 1 - float(o.true_composition @ np.diag(o.label_error))
    labels = "labels taken as right" if o.response.exact else f"{wrong:.2g} of the labels expected to be wrong"
    if o.probabilities is not None:
        labels = f"soft labels, {o.uncertain} uncertain, {wrong:.2g} expected to be wrong"
    at = "" if o.temperature is None else f", formed at {o.temperature:g} K"
    return f"{o.name}: {o.n} environments ({sites}), {parts}, {labels}{at}"


def _model(m: Hamiltonian) -> str:
    return f"{m.name}: {', '.join(f'{n} ~ {_law(m.prior(n))}' for n in m.names)} kT" if m.terms else f"{m.name}: the random alloy"


def _law(prior: Any) -> str:
    """A prior as it was declared, as far as it can be told."""
    try:
        numbers = ", ".join(f"{float(getattr(prior, name)):g}" for name in prior.arg_constraints)
    except (AttributeError, TypeError, ValueError):
        return type(prior).__name__
    return f"{type(prior).__name__}({numbers})"


def _couplings(bound: Bound) -> list[str]:
    found = []
    for a, name in enumerate(bound.names):
        value, sd, prior = bound.couplings[a], bound.sd[a], bound.prior_sd[a]
        if sd > _BLIND * prior:
            found.append(
                f"{bound.model.name}: these images say next to nothing about {name}; its posterior will be its prior, ± {prior:.2g} kT."
            )
            continue
        sign = "its sign is told" if abs(value) > _SIGN * sd else f"its sign is not told (that takes |{name}| > {_SIGN * sd:.2g})"
        if not bound.supported:
            found.append(f"{bound.model.name}: {name} = {value:.2g} kT as far as the probe reached; it may be stronger.")
            continue
        known = bound.pseudo is not None and bound.pseudo.sd[a] < prior
        began = f"; pseudo-likelihood {bound.pseudo.couplings[a]:.3f}, curvature alone ± {bound.pseudo.sd[a]:.3f}" if known else ""
        found.append(f"{bound.model.name}: {name} = {value:.3f} ± {sd:.3f} kT expected, {sign}{began}.")
    return found


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
