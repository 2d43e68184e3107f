"""Comparison: all criteria side by side, posterior weights, and a verdict that may be "undecided"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from threadpoolctl import threadpool_limits

from ..hamiltonian import Hamiltonian
from .campaign import scoring
from .conditionals import conditionals
from .criteria import Elpd, LeastDistance, greatest_log_likelihood, least_distance, log_evidence, loo, simulated_p_values, waic
from .distance import chi_square_p_value, published_bic
from .posterior import Check, Result

PRIOR_SCALES = (0.5, 1.0, 2.0)
_REMAIN = 0.95
_FEW = 10  # units below which WAIC and LOO standard errors mean little


@dataclass(frozen=True, eq=False)
class Row:
    """Everything said of one model.

    p_values, chi_square_p: one an image, then the total; log_evidence, evidence_error and weight by
    prior scale; bic = k ln N - 2 ln L, bic_published = 2 N S2 + (k / 2) ln N.
    """

    name: str
    couplings: int
    least: LeastDistance
    bic: float
    bic_published: float
    waic: Elpd
    loo: Elpd
    p_values: NDArray[np.float64]
    chi_square_p: NDArray[np.float64]
    log_evidence: Mapping[float, float]
    evidence_error: float
    weight: Mapping[float, float]
    heterogeneity_p: float | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """The candidates, best first, and what follows.

    `units` says what WAIC and LOO leave out one of ("atoms" or "images"), `n_units` how many there are.
    """

    rows: Mapping[str, Row]
    remain: tuple[str, ...]
    units: str
    n_units: int
    checks: Mapping[str, Check]
    warnings: tuple[str, ...]

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(self.rows)

    @property
    def decides(self) -> bool:
        return len(self.remain) == 1 and len(self.rows) > 1

    @property
    def verdict(self) -> str:
        """One sentence."""
        if len(self.rows) == 1:
            return f"There is one candidate, {self.remain[0]}: nothing to compare it with."
        gone = [n for n in self.rows if n not in self.remain]
        if self.decides:
            return f"The data decide for {self.remain[0]} among {_and(sorted(self.rows))}."
        behind = f"; {_and(gone)} fall{'s' if len(gone) == 1 else ''} behind" if gone else ""
        return f"The data do not decide: {_and(self.remain)} remain{behind}."

    def __str__(self) -> str:
        wide = {"S2": 9, "BIC": 9, "BIC publ.": 10, "WAIC": 9, "LOO": 9, "p sim.": 8, "p chi2": 8, "ln Z": 9, "weight": 8}
        head = f"{'model':<8}{'k':>2}" + "".join(f"{title:>{width}}" for title, width in wide.items()) + "  remains"
        lines = [head]
        for r in self.rows.values():
            numbers = f"{r.couplings:>2}{r.least.total:>9.4f}{r.bic:>9.1f}{r.bic_published:>10.1f}{r.waic.elpd:>9.1f}{r.loo.elpd:>9.1f}"
            tail = f"{r.p_values[-1]:>8.3f}{r.chi_square_p[-1]:>8.4f}{r.log_evidence[1.0]:>9.2f}{r.weight[1.0]:>8.3f}"
            lines.append(f"{r.name:<8}{numbers}{tail}  {'yes' if r.name in self.remain else 'no'}")
        lines.append(f"WAIC and LOO (elpd, higher is better) leave out {self.units}, {self.n_units} of them.")
        return "\n".join([*lines, *(f"Warning: {w}" for w in self.warnings), self.verdict])


@threadpool_limits.wrap(limits=1, user_api="blas")
def compare(result: Result) -> Comparison:
    """Judge the candidate models of a result.

    A model remains if it is in the smallest set with 95 % of the posterior weight under the declared
    priors or under priors of half or double their width; the data decide if one model remains.

    Returns
    -------
    Comparison
        Printing it gives the table and the verdict.

    Examples
    --------
    See ``infer``; then ``print(compare(result))``.
    """
    models = [fit.model for fit in result.fits.values()]
    least, nested = _least_distances(result, models)
    points, units, n_units = _points(result, models)
    evidence = {s: {m.name: log_evidence(result, result[m.name], s) for m in models} for s in PRIOR_SCALES}
    weights = {s: _weights({name: value for name, (value, _) in by_model.items()}) for s, by_model in evidence.items()}
    rows = {}
    for model in sorted(models, key=lambda m: -weights[1.0][m.name]):
        name, fit, n, k = model.name, result[model.name], result.n, len(model.terms)
        classes = result.statistic.environments.n_classes
        chi = [chi_square_p_value(o.n, s, classes) for o, s in zip(result.observations, least[name].s2, strict=True)]
        chi.append(chi_square_p_value(n, least[name].total, classes, len(result.observations)))
        rng = np.random.default_rng(np.random.SeedSequence([result.seed, *np.frombuffer(name.encode(), np.uint8)]))
        some = fit.posteriors["calibrated"].flat[:: max(1, len(fit.posteriors["calibrated"].flat) // 400)]
        log_likelihood, multiplicity = points[name]
        rows[name] = Row(
            name=name,
            couplings=k,
            least=least[name],
            bic=k * np.log(n) - 2 * greatest_log_likelihood(result, fit),
            bic_published=published_bic(n, least[name].total, k),
            waic=waic(log_likelihood.reshape(-1, log_likelihood.shape[2]), multiplicity),
            loo=loo(log_likelihood, multiplicity),
            p_values=simulated_p_values(result, model, some, rng),
            chi_square_p=np.array(chi),
            log_evidence={s: evidence[s][name][0] for s in PRIOR_SCALES},
            evidence_error=evidence[1.0][name][1],
            weight={s: weights[s][name] for s in PRIOR_SCALES},
            heterogeneity_p=_heterogeneity(result, model),
        )
    checks = {f"nested: {a} in {b}": nested_check(a, least[a], b, least[b]) for a, b in nested}
    return Comparison(rows, remaining(weights), units, n_units, checks, (*_warnings(rows, units, n_units), *_unseen(result)))


def evidence_weights(result: Result, prior_scale: float = 1.0) -> dict[str, float]:
    """Posterior weight of each model from its evidence, equal prior weights; priors of `prior_scale` times their width."""
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


def _least_distances(result: Result, models: Sequence[Hamiltonian]) -> tuple[dict[str, LeastDistance], list[tuple[str, str]]]:
    """Least distances, inner models first, whose minima start the search of the models around them."""
    found: dict[str, LeastDistance] = {}
    nested = []
    for model in sorted(models, key=lambda m: len(m.terms)):
        starts = []
        for other in models:
            inside = nesting(result, other, model) if other.name in found else None
            if inside is not None:
                nested.append((other.name, model.name))
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


def _points(result: Result, models: Sequence[Hamiltonian]) -> tuple[dict[str, tuple[NDArray, NDArray | None]], str, int]:
    """Point-wise log likelihoods (chain, draw, points) and multiplicities of each model, for the same points.

    Single atoms given all others, where every image shows enough for every model and has no label errors, else
    whole images.
    """
    terms = {t.name: t for m in models for t in m.terms}
    everything = Hamiltonian("all", *terms.values(), lattice=models[0].lattice, species=models[0].species)
    tables = [conditionals(everything, o) for o in result.observations]
    # a conditional of wrong labels is not that of the crystal: with label errors only whole images are right
    noisy = any(not np.array_equal(o.label_error, np.eye(len(o.label_error))) for o in result.observations)
    if noisy or any(t is None or not t.exact for t in tables):
        whole = {m.name: (result[m.name].posteriors["calibrated"].log_likelihood, None) for m in models}
        return whole, "images", len(result.observations)
    atoms = {}
    multiplicity = np.concatenate([t.weight for t in tables])
    for m in models:
        draws = result[m.name].posteriors["calibrated"].draws[:, ::4] @ result.emulator.embed(m)
        flat = draws.reshape(-1, len(terms))
        values = np.concatenate([t.profile(flat) for t in tables], axis=1)
        atoms[m.name] = (values.reshape(*draws.shape[:2], -1), multiplicity)
    return atoms, "atoms", int(multiplicity.sum())


def _weights(log_evidence: Mapping[str, float]) -> dict[str, float]:
    top = max(log_evidence.values())
    raw = {name: float(np.exp(value - top)) for name, value in log_evidence.items()}
    return {name: value / sum(raw.values()) for name, value in raw.items()}


def _heterogeneity(result: Result, model: Hamiltonian) -> float | None:
    """p-value of the images disagreeing about the couplings: chi-square of their scores at the common estimate."""
    if not model.terms or len(result.observations) < 2:
        return None
    mean = result[model.name].posteriors["calibrated"].mean
    steps = [scoring(result.emulator, model, o, mean) for o in result.observations]
    information, score = sum(i for i, _ in steps), sum(s for _, s in steps)
    # the common estimate by the same linear response, so that the scores sum to zero there
    shift = np.linalg.pinv(information) @ score
    residual = [(i, s - i @ shift) for i, s in steps]
    q = sum(float(s @ np.linalg.pinv(i, rcond=1e-8) @ s) for i, s in residual)
    freedom = sum(np.linalg.matrix_rank(i, tol=1e-8 * np.trace(i)) for i, _ in steps) - np.linalg.matrix_rank(information)
    return float(stats.chi2.sf(q, freedom)) if freedom > 0 else None


def _warnings(rows: Mapping[str, Row], units: str, n_units: int) -> tuple[str, ...]:
    found = []
    if n_units < _FEW:
        found.append(f"WAIC and LOO rest on {n_units} {units}: their standard errors mean little.")
    for r in rows.values():
        if r.loo.pareto_k_max is not None and r.loo.pareto_k_max > 0.7:
            found.append(f"{r.name}: Pareto k up to {r.loo.pareto_k_max:.2f} (above 0.7), its LOO is unreliable.")
        if r.heterogeneity_p is not None and r.heterogeneity_p < 0.05:
            found.append(f"{r.name}: the images disagree about its couplings (p = {r.heterogeneity_p:.3f}).")
    return tuple(found)


def _unseen(result: Result) -> list[str]:
    """Couplings on which the images carry no information: what is said of them is their prior."""
    blind = [(f.model.name, n) for f in result.fits.values() for n, sd in zip(f.model.names, f.crb_sd, strict=True) if np.isinf(sd)]
    return [
        f"{model}: the images say nothing about {name} by itself; its posterior is its prior along that direction." for model, name in blind
    ]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
