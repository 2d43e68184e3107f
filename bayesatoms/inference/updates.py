"""Updates: what is known after each image of a session, and how well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from .campaign import Campaign
from .checks import MISFIT_BAR, NOISE_BAR, ONE_HEAP, Check
from .comparison import remaining
from .densities import SMOOTH_BAR, emulator_error, log_likelihoods
from .emulator import SLOW_BAR, SUPPORT_BAR, slow_weight
from .integrals import integrals
from .jackknife import Noise, jackknife_covariance
from .parameters import Parameters
from .pieces import Origin
from .posterior import Fit, Result
from .priors import PRIOR_SCALES
from .sampling import Posterior
from .stopping import Estimate, Evidences, StopRule, Verdict
from .threads import side_by_side
from .tracking import Tracked

_DRAWS = 500  # over which changes without some of the records are averaged
_SEEN = 200  # at which support is looked at


@dataclass(frozen=True, eq=False)
class Update:
    """What is known after one more image, or several at once.

    Attributes
    ----------
    images : tuple of str
        Those that were added.
    number, environments : int
        Images, and complete environments, so far.
    estimates : dict of Estimate by model name
        Posterior means and sd in kT at formation, with their Monte Carlo errors; models without couplings are not in it.
    evidences : Evidences
    remain : tuple of str
        Models that the images do not exclude, by the rule of a comparison.
    checks : dict of Check by "model: what"
    chains : int
        Run for this update; the others were in the pool.
    seconds : float
    stop : Verdict
    """

    images: tuple[str, ...]
    number: int
    environments: int
    estimates: Mapping[str, Estimate]
    evidences: Evidences
    remain: tuple[str, ...]
    checks: Mapping[str, Check]
    chains: int
    seconds: float
    stop: Verdict

    @property
    def ok(self) -> bool:
        """Whether all checks held."""
        return all(c.ok for c in self.checks.values())

    @property
    def log_evidence(self) -> dict[float, dict[str, float]]:
        """Log evidence by prior scale and model."""
        e = self.evidences
        return {s: dict(zip(e.names, map(float, z), strict=True)) for s, z in e.log_z.items()}

    @property
    def weights(self) -> dict[float, dict[str, float]]:
        """Posterior weight by prior scale and model."""
        return {s: self.evidences.weights(s) for s in self.evidences.log_z}

    def __str__(self) -> str:
        weights = self.evidences.weights()
        so_far = f"{self.number} image{'s' if self.number != 1 else ''}, {self.environments} environments"
        said = [f"{so_far} (+ {', '.join(self.images)}; {self.chains} chains run)"]
        for model, weight in weights.items():
            known = self.estimates.get(model)
            rows = [] if known is None else zip(known.names, known.mean, known.sd, strict=True)
            couplings = ", ".join(f"{n} = {m:+.4f} ± {s:.4f}" for n, m, s in rows)
            said.append(f"  {model:<8} weight {weight:.3f}  {couplings}".rstrip())
        said += [f"  failed check {name}: {check.why}" for name, check in self.checks.items() if not check.ok]
        return "\n".join([*said, f"  {self.stop}"])

    def summary(self) -> dict[str, object]:
        """All of it in plain numbers and words, for JSON.

        Examples
        --------
        ``json.dumps(session.updates[-1].summary())``
        """
        estimates = {
            model: {
                n: {"mean": float(m), "sd": float(s), "mean_error": float(a), "sd_error": float(b), "unit": "kT at formation"}
                for n, m, s, a, b in zip(e.names, e.mean, e.sd, e.mean_error, e.sd_error, strict=True)
            }
            for model, e in self.estimates.items()
        }
        errors = np.sqrt(np.diag(self.evidences.covariance)).tolist()
        return {
            "images": list(self.images), "number": self.number, "environments": self.environments, "couplings": estimates,
            "log_evidence": {str(s): z for s, z in self.log_evidence.items()},
            "log_evidence_error": dict(zip(self.evidences.names, errors, strict=True)),
            "weights": {str(s): w for s, w in self.weights.items()}, "remain": list(self.remain),
            "checks": {name: {"ok": c.ok, "why": c.why} for name, c in self.checks.items()},
            "chains": self.chains, "seconds": round(self.seconds, 3),
            "stop": {"stop": self.stop.stop, "why": self.stop.sentence, "decided": self.stop.decided, "missing": self.stop.missing},
        }  # fmt: skip


def standing(campaign: Campaign, regions: Sequence[Tracked]) -> Result:
    """The posteriors of a campaign's regions as they stand, importance draws in place of those of NUTS.

    It serves what asks for a result's posteriors: evidences, the pool's noise, reuse of its chains.
    """
    emulator, fits = campaign.emulator, {}
    assert emulator is not None
    for model in campaign.models:
        region = next((r for r in regions if r.model is model), None)
        if region is None:
            values = np.array([float(emulator.log_origin(o)) for o in campaign.observations])
            posterior = Posterior("calibrated", (), np.zeros((1, 1, 0)), values[None, None], np.zeros(0), np.zeros(0), {})
            parameters, smooth = Parameters.of(model, campaign.observations), {}
        else:
            assert region.smooth is not None
            parameters, smooth, (n, k) = region.parameters, {"calibrated": region.smooth}, region.draws.shape
            values = log_likelihoods(region.smooth, campaign.observations, "calibrated", region.draws[:1])
            posterior = Posterior("calibrated", model.names, region.draws[None], values[None], np.ones(k), np.full(k, float(n)), {})
        fits[model.name] = Fit(model, "calibrated", {"calibrated": posterior}, smooth, np.full(len(model.names), np.nan), {}, parameters)
    return Result(
        fits, campaign.observations, emulator, campaign.statistic, campaign.settings, campaign.seed, "calibrated", campaign.history, {},
        simulated=campaign.simulated(regions), threads=campaign.threads,
    )  # fmt: skip


def update(
    campaign: Campaign,
    regions: Sequence[Tracked],
    origins: Mapping[str, Origin],
    rule: StopRule,
    images: Sequence[str],
    chains: int,
    seconds: float,
) -> Update:
    """What the regions say: estimates and evidences with their Monte Carlo errors, checks, and whether to stop.

    `origins` are those of all images, by name.
    """
    by_name = {r.model.name: r for r in regions}
    names = tuple(m.name for m in campaign.models)
    found = side_by_side(lambda r: integrals(r, campaign.observations, PRIOR_SCALES, campaign.seed), regions, campaign.threads)
    known = dict(zip(by_name, found, strict=True))
    level = sum(origins[o.name].level for o in campaign.observations)
    log_z = {s: np.array([known[n][i].log_z if n in known else level for n in names]) for i, s in enumerate(PRIOR_SCALES)}
    weights = {s: Evidences(names, {1.0: z}, np.zeros((0, 0))).weights() for s, z in log_z.items()}
    moved = {n: _moved(r) for n, r in by_name.items()}
    bare = np.sum([origins[o.name].apart for o in campaign.observations], axis=0)
    shifts = np.column_stack([moved[n][0] if n in moved else bare for n in names])
    covariance = Noise(names, shifts, np.array([weights[1.0][n] for n in names])).covariance
    declared = PRIOR_SCALES.index(1.0)
    numerical = [known[n][declared].error if n in known else 0.0 for n in names]
    evidences = Evidences(names, log_z, covariance + np.diag(np.square(numerical)))
    estimates = {n: Estimate(by_name[n].model.names, own[declared].mean, own[declared].sd, *moved[n][1]) for n, own in known.items()}
    checked = side_by_side(lambda r: _checks(campaign, r), regions, campaign.threads)
    checks = {f"{r.model.name}: {what}": c for r, own in zip(regions, checked, strict=True) for what, c in own.items()}
    number = len(campaign.observations)
    return Update(
        tuple(images), number, sum(o.n for o in campaign.observations), estimates, evidences, remaining(weights), checks, chains,
        seconds, rule.judge(number, estimates, evidences, [name for name, c in checks.items() if not c.ok]),
    )  # fmt: skip


def _moved(region: Tracked) -> tuple[NDArray[np.float64], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Shifts of the log evidence (groups,) without each group of records; jackknife errors of the posterior's mean and sd (k,)."""
    some = region.draws[:: max(1, len(region.draws) // _DRAWS)]
    ratios = np.sum([piece.apart(some) for piece in region.pieces.values()], axis=0).T
    totals = logsumexp(ratios, axis=1)
    weights = np.exp(ratios - totals[:, None])
    mean = weights @ some
    sd = np.sqrt(np.maximum(weights @ some**2 - mean**2, 0.0))
    error, wide = (np.sqrt(np.diag(np.atleast_2d(jackknife_covariance(part)))) for part in (mean, sd))
    return totals - np.log(len(some)), (error, wide)


def _checks(campaign: Campaign, region: Tracked) -> dict[str, Check]:
    """Those of a result's posterior that concern its chains, by the same bars."""
    emulator, smooth = campaign.emulator, region.smooth
    assert emulator is not None and smooth is not None
    some, embed = region.draws[:: max(1, len(region.draws) // _SEEN)], emulator.embed(region.model)
    support = smooth.support(some)
    if support is None:
        support = np.min([image.reweighting.support(some @ embed) for image in emulator.images.values()], axis=0)
    off = float(emulator_error(emulator, smooth, campaign.observations, region.centre, region.cov).max())
    slow = max(slow_weight(image, region.centre @ embed) for image in emulator.images.values())
    heaps, place = min(p.heaps for p in region.pieces.values()), "was found where it was looked for"
    error = region.error
    return {
        "settled": Check(region.settled, f"posterior {place if region.settled else 'still moved when the rounds were over'}"),
        "support": Check(
            bool((support >= SUPPORT_BAR).all()), f"least support of a draw {support.min():.2f} of a chain, at least {SUPPORT_BAR}"
        ),
        "emulator": Check(smooth.misfit < MISFIT_BAR, f"mean square residual of chains left out {smooth.misfit:.2f}, at most {MISFIT_BAR}")
        if error is None
        else Check(error < SMOOTH_BAR, f"rms error of the log likelihood over the posterior {error:.3f}, at most {SMOOTH_BAR}"),
        "simulation error": Check(
            off < NOISE_BAR, f"the pool's own error may have moved a mean by {off:.2f} of its standard deviation, at most {NOISE_BAR}"
        ),
        "equilibrium": Check(slow <= SLOW_BAR, f"chains out of equilibrium carry {slow:.1%} of the weight, at most {SLOW_BAR:.0%}"),
        "normality": Check(
            heaps > ONE_HEAP, f"least kurtosis minus squared skewness of the statistic {heaps:.2f}, above {ONE_HEAP} (3 if normal)"
        ),
    }
