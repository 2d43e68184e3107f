"""Comparison: all criteria side by side, posterior weights, and a verdict that may be "undecided"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..hamiltonian import Hamiltonian
from .checks import Check
from .criteria import (
    Elpd,
    Greatest,
    LeastDistance,
    Practical,
    greatest_log_likelihood,
    judged,
    least_distance,
    loo,
    practical,
    waic,
)
from .distance import chi_square_p_value, published_bic
from .evidence import Integral, evidences, log_evidence
from .heterogeneity import Heterogeneity, heterogeneity
from .jackknife import Noise, evidence_noise, jackknife_covariance, stability
from .misfit import Shift, misfit
from .penalty import corrected_bic, penalty
from .pointwise import K_BAR, Atoms, Consistency, atoms, consistency, difference, image_loo, image_waic, stacking_weights
from .posterior import Result
from .predictive import simulated_p_values
from .priors import PRIOR_SCALES, mismatched
from .threads import side_by_side

ROPE = 0.05  # kT: couplings nearer to zero than this count as none unless told otherwise
_REMAIN = 0.95
_FEW = 10  # units below which WAIC and LOO standard errors mean little
_SURE = 0.95  # share of Monte Carlo repetitions in which a model must stay in, or out, for the verdict to be sure of it
_PREDICTIVE, _REPLICATES = 200, 20  # posterior draws and images at each, for the simulated p-values


class Moments(NamedTuple):
    """Posterior mean and standard deviation of each coupling (k,), kT at formation."""

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Row:
    """Everything said of one model.

    Attributes
    ----------
    least, greatest : smallest total S2; greatest log likelihood.
    bic : k ln N - 2 ln L. bic_published : 2 N S2 + (k / 2) ln N. bic_corrected : the same with k replaced by
        `effective` = tr(inv(H) J), what the couplings cost when environments overlap.
    waic, loo : with the comparison's units left out; waic_images, loo_images : with whole images left out.
    waic_difference, loo_difference : to the best model by that criterion, with the standard error of the difference.
    stacking : weight in the mixture that predicts what is left out best.
    consistency : of the atoms with the whole images; None where atoms are not used or there are no couplings.
    p_values, chi_square_p : one an image, then the total.
    log_evidence, weight, posterior : by prior scale; posterior holds mean and sd.
    evidence_error : numerical and of the pool together; pool_error : the pool's share. weight_error : of the weight
        under the declared prior.
    heterogeneity : whether the images agree. practical : of each coupling. shifts : of the environments' counts.
    """

    name: str
    couplings: int
    least: LeastDistance
    greatest: Greatest
    bic: float
    bic_published: float
    bic_corrected: float
    effective: float
    waic: Elpd
    loo: Elpd
    waic_images: Elpd
    loo_images: Elpd
    waic_difference: tuple[float, float]
    loo_difference: tuple[float, float]
    stacking: float
    consistency: Consistency | None
    p_values: NDArray[np.float64]
    chi_square_p: NDArray[np.float64]
    log_evidence: Mapping[float, float]
    evidence_error: float
    pool_error: float
    weight: Mapping[float, float]
    weight_error: float
    posterior: Mapping[float, Moments]
    heterogeneity: Heterogeneity | None
    practical: tuple[Practical, ...]
    shifts: tuple[Shift, ...]

    @property
    def heterogeneity_p(self) -> float | None:
        return self.heterogeneity.p if self.heterogeneity is not None else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """The candidates, best first, and what follows.

    `units` says what WAIC and LOO leave out one of ("atoms" or "images"), `n_units` how many there are, and
    `units_why` why it is not the atoms; `images` names the images in order; `likelihood` is the one judged by.
    `stability` gives the share of repetitions of the simulation in which each model would remain.
    """

    rows: Mapping[str, Row]
    remain: tuple[str, ...]
    units: str
    n_units: int
    checks: Mapping[str, Check]
    warnings: tuple[str, ...]
    images: tuple[str, ...] = ()
    units_why: str = ""
    likelihood: str = "calibrated"
    stability: Mapping[str, float] | None = None

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(self.rows)

    @property
    def decides(self) -> bool:
        return len(self.remain) == 1 and len(self.rows) > 1 and not self.unsure

    @property
    def unsure(self) -> tuple[str, ...]:
        """Models whose place inside or outside the set that remains could be changed by the noise of the simulation."""
        return tuple(n for n in self.rows if 1 - _SURE < (self.stability or {}).get(n, float(n in self.remain)) < _SURE)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if len(self.rows) == 1:
            return f"There is one candidate, {self.remain[0]}: nothing to compare it with."
        gone = [n for n in self.rows if n not in self.remain]
        noise = f"; whether {_and(self.unsure, 'or')} remains is within the noise of the simulation" if self.unsure else ""
        if self.decides:
            return f"The data decide for {self.remain[0]} among {_and(sorted(self.rows))}."
        behind = f"; {_and(gone)} fall{'s' if len(gone) == 1 else ''} behind" if gone else ""
        return f"The data do not decide: {_and(self.remain)} remain{'s' if len(self.remain) == 1 else ''}{behind}{noise}."

    def __str__(self) -> str:
        wide = {"S2": 9, "BIC": 9, "BIC publ.": 10, "corr.": 7, "WAIC": 9, "LOO": 9, "± diff.": 8, "stack": 7}
        wide |= {"p sim.": 8, "p chi2": 8, "ln Z": 9, "±": 6, "weight": 8}
        lines = [f"{'model':<8}{'k':>2}" + "".join(f"{title:>{width}}" for title, width in wide.items()) + "  remains"]
        for r in self.rows.values():
            numbers = f"{r.couplings:>2}{r.least.total:>9.4f}{r.bic:>9.1f}{r.bic_published:>10.1f}{r.bic_corrected:>7.1f}"
            numbers += f"{r.waic.elpd:>9.1f}{r.loo.elpd:>9.1f}{r.loo_difference[1]:>8.1f}{r.stacking:>7.2f}"
            tail = (
                f"{r.p_values[-1]:>8.3f}{r.chi_square_p[-1]:>8.4f}{r.log_evidence[1.0]:>9.2f}{r.evidence_error:>6.2f}{r.weight[1.0]:>8.3f}"
            )
            lines.append(f"{r.name:<8}{numbers}{tail}  {self._remains(r.name)}")
        lines.append(f"WAIC and LOO (elpd, higher is better) leave out {self.units}, {self.n_units} of them{self._why()}.")
        lines += [_practical_line(r.name, p) for r in self.rows.values() for p in r.practical]
        return "\n".join([*lines, *(f"Warning: {w}" for w in self.warnings), self.verdict])

    def _why(self) -> str:
        return f", since {self.units_why}" if self.units_why else ""

    def _remains(self, name: str) -> str:
        return "unsure" if name in self.unsure else "yes" if name in self.remain else "no"


def _practical_line(model: str, p: Practical) -> str:
    where = {"within": "practically zero", "outside": "not zero", "undecided": "undecided"}[p.decision]
    return f"{model}: |{p.name}| < {p.rope:g} kT with probability {p.inside:.2f}, 95 % in {p.low:.3f} to {p.high:.3f}: {where}."


@threadpool_limits.wrap(limits=1, user_api="blas")
def compare(result: Result, *, rope: float = ROPE) -> Comparison:
    """Judge the candidate models of a result.

    A model remains if it is in the smallest set with 95 % of the posterior weight under the declared
    priors or under priors of half or double their width; the data decide if one model remains.

    Parameters
    ----------
    result : Result
    rope : float
        Region of practical equivalence, kT: couplings nearer to zero than this count as none.

    Returns
    -------
    Comparison
        Printing it gives the table and the verdict.

    Examples
    --------
    See ``infer``; then ``print(compare(result))``.
    """
    models = [fit.model for fit in result.fits.values()]
    pieces: tuple[Callable[[], Any], ...] = (  # none needs another
        lambda: [evidences(result, result[m.name], PRIOR_SCALES) for m in models],
        lambda: _scores(result, models),
        lambda: _least_distances(result, models),
        lambda: {m.name: greatest_log_likelihood(result, result[m.name]) for m in models},
        lambda: evidence_noise(result),
        lambda: misfit(result),
    )
    integrated, scores, (least, nested), greatest, noise, shifts = side_by_side(lambda piece: piece(), pieces, result.threads)
    integrals = {s: {m.name: row[i] for m, row in zip(models, integrated, strict=True)} for i, s in enumerate(PRIOR_SCALES)}
    weights = {s: _weights({n: i.log_z for n, i in by_model.items()}) for s, by_model in integrals.items()}
    noise = replace(noise, weights=np.array([weights[1.0][n] for n in noise.names]))

    def row(model: Hamiltonian) -> Row:
        name, k = model.name, len(model.terms)
        effective = penalty(result, model, least[name].couplings, _generator(result, name, 1))
        return Row(
            name=name,
            couplings=k,
            least=least[name],
            greatest=greatest[name],
            bic=k * np.log(result.n) - 2 * greatest[name].log_likelihood,
            bic_published=published_bic(result.n, least[name].total, k),
            bic_corrected=corrected_bic(result.n, least[name].total, effective),
            effective=effective,
            **scores.of(name),
            p_values=simulated_p_values(result, model, _some(result, model), _generator(result, name, 0), _REPLICATES),
            chi_square_p=_chi_square(result, least[name]),
            log_evidence={s: integrals[s][name].log_z for s in PRIOR_SCALES},
            evidence_error=float(np.hypot(integrals[1.0][name].error, noise.error(name))),
            pool_error=noise.error(name),
            weight={s: weights[s][name] for s in PRIOR_SCALES},
            weight_error=_weight_errors(integrals[1.0], noise)[name],
            posterior={s: Moments(integrals[s][name].mean, integrals[s][name].sd) for s in PRIOR_SCALES},
            heterogeneity=heterogeneity(result, model),
            practical=practical(model.names, judged(result[name]).flat, rope),
            shifts=tuple(s for s in shifts if s.model == name),
        )

    heaviest = sorted(models, key=lambda m: -weights[1.0][m.name])
    rows = dict(zip((m.name for m in heaviest), side_by_side(row, heaviest, result.threads), strict=True))
    checks = {
        f"nested: {a} in {b}": _both(nested_check(a, least[a], b, least[b]), likelihood_check(a, rows[a], b, rows[b])) for a, b in nested
    }
    found = Comparison(
        rows, remaining(weights), scores.units, scores.n_units, checks, (), tuple(o.name for o in result.observations), scores.why,
        judged(next(iter(result.fits.values()))).kind, _stability(result, integrals, noise),
    )  # fmt: skip
    by_name = {m.name: m for m in models}
    return replace(found, warnings=(*_warnings(found, scores.uncovered), *mismatched(by_name, nested), *_unseen(result)))


def evidence_weights(result: Result, prior_scale: float = 1.0) -> dict[str, float]:
    """Posterior weight of each model from its evidence, equal prior weights; priors of `prior_scale` times their width.

    Examples
    --------
    ``evidence_weights(result)`` after ``result = infer(...)``.
    """
    return _weights({name: log_evidence(result, fit, prior_scale)[0] for name, fit in result.fits.items()})


def remaining(weights: Mapping[float, Mapping[str, float]]) -> tuple[str, ...]:
    """Models in the smallest 95 % set under any of the prior scales, heaviest first under the declared one.

    Examples
    --------
    >>> remaining({1.0: {"A": 0.96, "B": 0.04}, 0.5: {"A": 0.9, "B": 0.1}})
    ('A', 'B')
    """
    kept: set[str] = set()
    for by_model in weights.values():
        total = 0.0
        for name in sorted(by_model, key=lambda m: -by_model[m]):
            kept.add(name)
            total += by_model[name]
            if total >= _REMAIN:
                break
    return tuple(sorted(kept, key=lambda m: -weights[1.0][m]))


def nested_check(inner: str, least_inner: LeastDistance, outer: str, least_outer: LeastDistance) -> Check:
    """A model can never fit worse than a model nested in it, beyond three Monte Carlo errors."""
    tolerance = 3 * np.hypot(least_inner.error, least_outer.error) + 1e-6
    ok = bool(least_outer.total <= least_inner.total + tolerance)
    why = f"S2({outer}) = {least_outer.total:.5f}, S2({inner}) = {least_inner.total:.5f}, Monte Carlo tolerance {tolerance:.5f}"
    return Check(ok, why if ok else f"{why}: {outer} contains {inner} and must not fit worse; it is not at its minimum")


def likelihood_check(inner: str, row_inner: Row, outer: str, row_outer: Row) -> Check:
    """Nor can its greatest likelihood be smaller, beyond three errors of the emulator and the pool."""
    errors = (row_inner.greatest.error, row_outer.greatest.error, row_inner.pool_error, row_outer.pool_error)
    tolerance = 3 * float(np.sqrt(np.nansum(np.square(errors)))) + 1e-6
    a, b = row_inner.greatest.log_likelihood, row_outer.greatest.log_likelihood
    why = f"greatest ln L({outer}) = {b:.2f}, ln L({inner}) = {a:.2f}, tolerance {tolerance:.2f}"
    ok = bool(b >= a - tolerance)
    return Check(ok, why if ok else f"{why}: {outer} contains {inner} and cannot be less likely")


def _both(one: Check, other: Check) -> Check:
    return Check(one.ok and other.ok, f"{one.why}; {other.why}")


def _least_distances(result: Result, models: Sequence[Hamiltonian]) -> tuple[dict[str, LeastDistance], dict[tuple[str, str], NDArray]]:
    """Least distances, inner models first, whose minima start the search of the models around them."""
    found: dict[str, LeastDistance] = {}
    nested: dict[tuple[str, str], NDArray] = {}
    for model in sorted(models, key=lambda m: len(m.terms)):
        starts = []
        for other in models:
            inside = nesting(result, other, model) if other.name in found else None
            if inside is not None:
                nested[other.name, model.name] = inside
                starts.append(found[other.name].couplings @ inside)
        found[model.name] = least_distance(result, model, [s for s in starts if len(s) == len(model.terms) and s.any()])
    return found, nested


def nesting(result: Result, inner: Hamiltonian, outer: Hamiltonian) -> NDArray[np.float64] | None:
    """Matrix (k_inner, k_outer) that writes the inner model's couplings as the outer's, or None if it is not nested.

    Read off the pool's features, on which the relations hold exactly.
    """
    if len(inner.terms) >= len(outer.terms):
        return None
    if not inner.terms:
        return np.zeros((0, len(outer.terms)))
    # one relation for all images; only its constant may differ from box to box, and features are centred in each
    features = np.concatenate(
        [i.reweighting.features[:2000] - i.reweighting.features[:2000].mean(axis=0) for i in result.emulator.images.values()]
    )
    a, b = features @ result.emulator.embed(inner).T, features @ result.emulator.embed(outer).T
    solution = np.linalg.lstsq(b, a, rcond=None)[0]
    return solution.T if np.abs(a - b @ solution).max() < 1e-6 * max(np.abs(a).max(), 1.0) else None


# ---------------------------------------------------------------------- what is left out


@dataclass(frozen=True, eq=False)
class _Scores:
    """WAIC, LOO, differences, stacking and consistency by model, and what they rest on."""

    units: str
    n_units: int
    why: str
    rows: Mapping[str, Mapping[str, object]]
    uncovered: Mapping[str, tuple[str, ...]]

    def of(self, name: str) -> Mapping[str, object]:
        return self.rows[name]


def _scores(result: Result, models: Sequence[Hamiltonian]) -> _Scores:
    """WAIC and LOO by atoms where every image shows them, and by images always."""
    known, why = atoms(result, models)
    images = {m.name: (image_waic(result[m.name]), *image_loo(result, result[m.name])) for m in models}
    main = {name: (w, left) for name, (w, left, _) in images.items()}
    multiplicity = None
    if known is not None:
        main = {m.name: _by_atoms(known, m.name) for m in models}
        multiplicity = known.multiplicity
    names = [m.name for m in models]
    best = [max(names, key=lambda n: main[n][i].elpd) for i in range(2)]
    stack = stacking_weights(np.column_stack([main[n][1].pointwise for n in names]), multiplicity)
    rows = {}
    for place, name in enumerate(names):
        agree = None if known is None else consistency(known, name, judged(result[name]).draws[:, ::4])
        rows[name] = {
            "waic": main[name][0], "loo": main[name][1], "waic_images": images[name][0], "loo_images": images[name][1],
            "waic_difference": difference(main[name][0], main[best[0]][0], multiplicity),
            "loo_difference": difference(main[name][1], main[best[1]][1], multiplicity),
            "stacking": float(stack[place]), "consistency": agree,
        }  # fmt: skip
    # the terms of images that importance sampling cannot reach matter only where images are the units
    uncovered = {} if known is not None else {n: images[n][2] for n in names if images[n][2]}
    units, count = ("images", len(result.observations)) if known is None else ("atoms", known.n)
    return _Scores(units, count, why, rows, uncovered)


def _by_atoms(known: Atoms, name: str) -> tuple[Elpd, Elpd]:
    values = known.log_likelihood[name]
    return waic(values.reshape(-1, values.shape[-1]), known.multiplicity), loo(values, known.multiplicity)


# ---------------------------------------------------------------------- weights


def _weights(log_z: Mapping[str, float]) -> dict[str, float]:
    top = max(log_z.values())
    raw = {name: float(np.exp(value - top)) for name, value in log_z.items()}
    return {name: value / sum(raw.values()) for name, value in raw.items()}


def _weight_errors(integrals: Mapping[str, Integral], noise: Noise) -> dict[str, float]:
    """Jackknife error of each model's weight: the shifts of all models together, since they share the pool."""
    log_z = np.array([integrals[n].log_z for n in noise.names])
    moved = np.array([list(_weights(dict(zip(noise.names, log_z + shift, strict=True))).values()) for shift in noise.shifts])
    return dict(zip(noise.names, np.sqrt(np.diag(jackknife_covariance(moved))).tolist(), strict=True))


def _stability(result: Result, integrals: Mapping[float, Mapping[str, Integral]], noise: Noise) -> dict[str, float]:
    """Share of repetitions of the simulation in which each model would remain: the evidences moved by their errors."""
    names, declared = noise.names, integrals[1.0]
    log_z = np.array([declared[n].log_z for n in names])
    covariance = noise.covariance + np.diag([declared[n].error ** 2 for n in names])

    def decide(moved: NDArray[np.float64]) -> tuple[str, ...]:
        apart = dict(zip(names, moved - log_z, strict=True))
        return remaining({s: _weights({n: i.log_z + apart[n] for n, i in by_model.items()}) for s, by_model in integrals.items()})

    share = stability(decide, log_z, covariance, _generator(result, "", 2))
    return {n: share.get(n, 0.0) for n in names}


# ---------------------------------------------------------------------- p-values


def _some(result: Result, model: Hamiltonian) -> NDArray[np.float64]:
    full = judged(result[model.name]).full
    return full[:: max(1, len(full) // _PREDICTIVE)]


def _chi_square(result: Result, least: LeastDistance) -> NDArray[np.float64]:
    classes, images = result.statistic.environments.n_classes, result.observations
    each = [chi_square_p_value(o.n, s, classes) for o, s in zip(images, least.s2, strict=True)]
    return np.array([*each, chi_square_p_value(result.n, least.total, classes, len(images))])


def _generator(result: Result, name: str, purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([result.seed, 29, purpose, *np.frombuffer(name.encode(), np.uint8)]))


# ---------------------------------------------------------------------- warnings


def _warnings(c: Comparison, uncovered: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    found = []
    if c.n_units < _FEW:
        found.append(f"WAIC and LOO rest on {c.n_units} {c.units}: their standard errors mean little.")
    for r in c.rows.values():
        if r.name in uncovered:
            found.append(
                f"{r.name}: the simulated chains do not cover the posterior without {_and(uncovered[r.name])} (Pareto k up to "
                f"{r.loo.pareto_k_max or np.nan:.2f}), its LOO is unreliable."
            )
        elif r.loo.pareto_k_max is not None and r.loo.pareto_k_max > K_BAR:
            found.append(f"{r.name}: Pareto k up to {r.loo.pareto_k_max:.2f} (above {K_BAR}), its LOO is unreliable.")
        if r.consistency is not None and not r.consistency.ok:
            found.append(
                f"{r.name}: the atoms' conditionals and the whole images disagree (correlation {r.consistency.correlation:.2f}, means "
                f"{r.consistency.shift:.1f} sd apart): WAIC and LOO by atoms speak for another posterior."
            )
        if r.heterogeneity_p is not None and r.heterogeneity_p < 0.05:
            found.append(f"{r.name}: the images disagree about its couplings (p = {r.heterogeneity_p:.3f}).")
        found += [f"Misfit: {s}" for s in r.shifts if s.named and r.name in c.remain]
    if c.unsure:
        share = ", ".join(f"{n} in {(c.stability or {})[n]:.0%} of repetitions" for n in c.unsure)
        found.append(f"Monte Carlo noise of the evidences could change the verdict ({share} it would remain): more chains would tell.")
    return tuple(found)


def _unseen(result: Result) -> list[str]:
    """Couplings on which the images carry no information: what is said of them is their prior."""
    blind = [(f.model.name, n) for f in result.fits.values() for n, sd in zip(f.model.names, f.crb_sd, strict=True) if np.isinf(sd)]
    return [
        f"{model}: the images say nothing about {name} by itself; its posterior is its prior along that direction." for model, name in blind
    ]


def _and(names: Sequence[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
