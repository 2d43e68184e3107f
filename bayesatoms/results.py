"""Results: a study run into a folder, and summary.json.

The folder can be run into again: finished chains are read back, every file is written whole or not at all.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .configuration import UNSEEN
from .errors import InputError
from .files import Ledger, write
from .observation import Observation
from .readings import finite, reading_summary, write_pictures, write_tables
from .study import Study

if TYPE_CHECKING:
    from .imaging.micrograph import Micrograph
    from .inference.comparison import Comparison
    from .inference.parameters import Nuisances
    from .inference.posterior import Check, Result
    from .inference.ranked import Calibration
    from .inference.sensitivity import Sensitivity
    from .montecarlo.executors import Executor
    from .phases.diagram import PhaseDiagram
    from .progress import Progress

_SHIFT = 3.0  # of the log odds of the brighter species: labels of a probability between 0.05 and 0.95 change


@dataclass(frozen=True, eq=False)
class Results:
    """What a run found, as written to its folder; `sensitivity` is to thresholds moved in images of pixels.

    `calibration` is from the pool's held-out chains, None where there are too few of them.
    """

    study: Study
    result: Result
    comparison: Comparison
    diagram: PhaseDiagram | None
    relabelled: Mapping[str, Result]
    timing: Mapping[str, float]
    sensitivity: Sensitivity | None = None
    calibration: Calibration | None = None

    @property
    def checks(self) -> dict[str, Check]:
        """Every check of the run by name."""
        others = {f"{label}, {name}": c for label, r in self.relabelled.items() for name, c in r.checks.items()}
        return {**self.result.checks, **self.comparison.checks, **others}

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.checks.values())


def run(
    study: Study,
    out: str | Path,
    *,
    workers: int | Executor = 1,
    progress: Progress | None = None,
    reuse: str | Path | None = None,
    force: bool = False,
) -> Results:
    """Run a study into a results folder: posteriors, comparison, phase map, tables and summary.json.

    Parameters
    ----------
    study : Study
    out : path
        Made if need be. Chains already in its pool are used.
    workers : int or Executor
    progress : callable(stage, done, total), optional
    reuse : path, optional
        Results folder whose chains are taken first, instead of the one that the study names.
    force : bool
        Simulate anew the chains that the folder holds.

    Returns
    -------
    Results
    """
    from .inference.comparison import compare
    from .inference.inputs import check_inputs
    from .inference.posterior import infer
    from .inference.sensitivity import label_sensitivity
    from .montecarlo.pool import Pool

    options, out = study.file.infer, Path(out)
    check_inputs(study.models, study.observations)
    _make(out)
    common = arguments(study, workers, progress)
    clock, pool = time.perf_counter(), Pool(out / "pool", force=force)
    result = infer(study.models, study.observations, pool=pool, reuse=reuse if reuse is not None else options.reuse, **common)
    result.sources["models"] = study.catalogue.sha256
    timing = dict(result.timing)
    clock = time.perf_counter()
    comparison = compare(result)
    timing["compare"] = time.perf_counter() - clock
    clock = time.perf_counter()
    calibration = result.calibration
    timing["calibrate"] = time.perf_counter() - clock
    clock = time.perf_counter()
    relabelled = {name: infer(study.models, images, pool=pool, reuse=result, **common) for name, images in study.relabelled.items()}
    if relabelled:
        timing["labellings"] = time.perf_counter() - clock
    clock, moved = time.perf_counter(), _thresholds(study)
    shared = all(fit.parameters.shared for fit in result.fits.values())
    sensitivity = label_sensitivity(result, moved) if moved and shared else None
    if sensitivity is not None:
        timing["sensitivity"] = time.perf_counter() - clock
    diagram, clock = None, time.perf_counter()
    if study.file.phases.run and len(study.models[0].species) == 2:
        diagram = _diagram(study, result, comparison, out / "phases", workers=workers, progress=progress, force=force)
        timing["phases"] = time.perf_counter() - clock
    results = Results(study, result, comparison, diagram, relabelled, timing, sensitivity, calibration)
    _save(results, out)
    return results


def arguments(study: Study, workers: int | Executor, progress: Progress | None) -> dict[str, Any]:
    """What every inference of a study is called with.

    Examples
    --------
    ``infer(study.models, study.observations, **arguments(study, 2, None))``
    """
    from .inference.campaign import Settings

    options = study.file.infer
    given = {f.name: getattr(options, f.name) for f in fields(Settings) if getattr(options, f.name, None) is not None}
    return {
        "seed": study.file.study.seed, "likelihood": options.likelihood, "settings": Settings(**given), "start": options.start,
        "workers": workers, "progress": progress, "nuisances": _nuisances(study),
    }  # fmt: skip


def _diagram(
    study: Study,
    result: Result,
    comparison: Comparison,
    folder: Path,
    *,
    workers: int | Executor,
    progress: Progress | None,
    force: bool,
) -> PhaseDiagram:
    """The phase map of the section; what is finished is kept in the folder, and taken from there if the run was stopped."""
    from .phases.candidates import Candidate
    from .phases.diagram import phase_diagram

    section = study.file.phases
    weights = {name: row.weight[1.0] for name, row in comparison.rows.items()}
    if section.model != "average":
        weights = {section.model: 1.0}
    if force:
        for kept in folder.glob("*.npz"):
            kept.unlink()
    composition = section.composition
    if section.chemical_potential is None and composition is None:
        composition = np.linspace(0.1, 0.9, 9).tolist()
    return phase_diagram(
        [Candidate(result[n].model, result[n].draws, w) for n, w in weights.items()], composition=composition,
        chemical_potential=section.chemical_potential, temperature=section.temperature, formation=section.formation_K,
        images=result.observations, draws=section.draws, seed=study.file.study.seed, size=section.size, folder=folder,
        workers=workers, progress=progress,
    )  # fmt: skip


def calibration_stem(source: str) -> str:
    """What the files of a calibration are called, by its source."""
    return "calibration" if source == "held-out" else "calibration_prior"


def calibrate_study(
    study: Study,
    out: str | Path,
    *,
    source: str = "held-out",
    datasets: int | None = None,
    seed: int | None = None,
    workers: int | Executor = 1,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrate the posteriors of a study whose chains are in a results folder; chains that are not there are run.

    Writes calibration.nc and .json (calibration_prior.* for new simulations) into the folder.

    Parameters
    ----------
    study : Study
    out : path
        Results folder, made if need be.
    source, datasets, seed
        As for :func:`bayesatoms.inference.calibration.calibrate`.
    workers : int or Executor
    progress : callable(stage, done, total), optional

    Returns
    -------
    Calibration
    """
    from .inference.calibration import calibrate, save
    from .inference.posterior import infer
    from .montecarlo.pool import Pool

    out = Path(out)
    _make(out)
    pool = Pool(out / "pool")
    result = infer(study.models, study.observations, pool=pool, reuse=study.file.infer.reuse, **arguments(study, workers, progress))
    found = calibrate(result, source=source, datasets=datasets, seed=seed, pool=pool, workers=workers, progress=progress)
    stem = out / calibration_stem(source)
    save(found, stem.with_suffix(".nc"))
    content = {"study": study.file.study.name, "seed": found.seed, "verdict": found.verdict, "ok": found.ok, "models": found.summary()}
    write(stem.with_suffix(".json"), json.dumps(finite(content), indent=1, sort_keys=True, allow_nan=False))
    return found


def _nuisances(study: Study) -> Nuisances:
    """The section's numbers as priors."""
    from numpyro import distributions as dist

    from .inference.parameters import Nuisances

    n = study.file.nuisances
    return Nuisances(
        energies=n.energies,
        temperatures={name: dist.TruncatedNormal(mean, sd, low=0.0) for name, (mean, sd) in n.temperature_K.items()},
        reference=n.reference_K,
        constant={name: dist.Normal(0.0, sd) for name, sd in n.constant.items()},
        composition=n.composition,
        label_error=n.label_error,
    )


def _thresholds(study: Study) -> dict[str, list[Observation]]:
    """The images of pixels with every threshold moved down or up as far as their intensities may allow; none that loses a species."""
    if not study.readings:
        return {}
    from .imaging.species import relabelled, tilted

    shifts = {"thresholds lowered": _SHIFT, "thresholds raised": -_SHIFT}
    found: dict[str, list[Observation]] = {name: [] for name in shifts}
    for m in study.readings.values():
        for name, shift in shifts.items():
            labels = relabelled(m.labels, shift)
            if set(labels.tolist()) == set(m.labels.labels.tolist()):
                soft = tilted(m.labels, shift) if m.observation.probabilities is not None else None
                found[name].append(m.relabelled(labels, soft))
    return {name: images for name, images in found.items() if images}


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"results folder {out} cannot be made ({error.strerror}); choose another --out") from None


def _save(results: Results, out: Path) -> None:
    from .inference import calibration, trees
    from .inference.reuse import FILE

    ledger = Ledger(out)
    kept = {out / "models" / f"{name}.nc" for name in results.result.fits}
    (out / "models").mkdir(exist_ok=True)
    for name in results.result.fits:
        trees.save(results.result, name, out / "models" / f"{name}.nc")
    for label, relabelled in results.relabelled.items():
        for name in relabelled.fits:
            kept.add(trees.save(relabelled, name, out / "models" / f"{name}.{label}.nc"))
    for o in results.study.observations:
        if o.configuration is not None:
            (out / "sites").mkdir(exist_ok=True)
            m = results.study.readings.get(o.name)
            place = out / "sites" / f"{o.name}.csv"
            ledger.guard(place)
            kept |= {write(place, sites_table(o))} if m is None else {*write_tables(m, place.with_suffix(""))}
    for name, m in results.study.readings.items():
        (out / "overlays").mkdir(exist_ok=True)
        kept |= {*write_pictures(m, out / "overlays" / f"{name}.png", out / "overlays" / f"{name}_report.png")}
    if results.calibration is not None:
        kept.add(calibration.save(results.calibration, out / "calibration.nc"))
    if results.diagram is not None:
        kept.add(results.diagram.save(out / "phases.nc"))
    for stale in ledger.stale(kept):
        stale.unlink()  # of an earlier study in this folder: it would pass for a result of this one
    ledger.close(kept)
    if results.result.simulated is not None:
        write(out / FILE, results.result.simulated.save())
    write(out / "study.toml", results.study.text)
    write(out / "summary.json", json.dumps(finite(summary(results)), indent=1, sort_keys=True, allow_nan=False))


def sites_table(observation: Observation) -> str:
    """The labelled sites as CSV: lattice indices, position, species, soft labels as p_<species>; a valid input of `from_table`.

    Beside soft labels the species stands once more as `species_read`, so that labels corrected by hand are known.
    """
    c = observation.configuration
    assert c is not None
    seen = c.flat != UNSEEN
    sites = c.supercell.sites[seen]
    places = c.lattice.positions(sites)[:, :2] if observation.positions is None else observation.positions
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    soft = np.zeros((len(sites), 0)) if observation.probabilities is None else observation.probabilities
    names = [*(f"p_{s}" for s in c.species), "species_read"] if soft.shape[1] else []
    table.writerow([*(f"n{a + 1}" for a in range(c.lattice.dimension)), "basis", "x", "y", "species", *names])
    for site, place, label, p in zip(sites, places, c.flat[seen], soft.tolist(), strict=True):
        table.writerow([*site.tolist(), *(f"{v:.4f}" for v in place), c.species[label], *p, *([c.species[label]] if p else [])])
    return text.getvalue()


def summary(results: Results) -> dict[str, Any]:
    """summary.json as a dictionary; what there is no value for is None."""
    result, comparison = results.result, results.comparison
    from .inference.trees import versions

    return {
        "version": versions()["bayesatoms"],
        "versions": versions(),
        "seed": result.seed,
        "study": results.study.file.study.name,
        "timing": {k: round(v, 2) for k, v in results.timing.items()},
        "simulation": dict(result.simulation),
        "statistic": {"names": list(result.statistic.names), "dropped": list(result.statistic.dropped), "hash": result.statistic.hash},
        "images": {o.name: _image_summary(o, results.study.readings.get(o.name)) for o in result.observations},
        "models": {name: _model_summary(result, comparison, name) for name in result.fits},
        "comparison": {
            "order": list(comparison.order),
            "remain": list(comparison.remain),
            "decides": comparison.decides,
            "verdict": comparison.verdict,
            "units": comparison.units,
            "n_units": comparison.n_units,
            "units_why": comparison.units_why,
            "likelihood": comparison.likelihood,
            "unsure": list(comparison.unsure),
            "stability": None if comparison.stability is None else dict(comparison.stability),
            "warnings": list(comparison.warnings),
            "weights": {str(s): {n: r.weight[s] for n, r in comparison.rows.items()} for s in next(iter(comparison.rows.values())).weight},
        },
        "labellings": {label: {n: _couplings(r, n, r.likelihood) for n in r.fits} for label, r in results.relabelled.items()},
        "sensitivity": _sensitivity(results.sensitivity),
        "notes": [*results.result.notes, *(f"{label}: {note}" for label, r in results.relabelled.items() for note in r.notes)],
        "calibration": None if results.calibration is None else results.calibration.summary(),
        "phases": None if results.diagram is None else results.diagram.summary(),
        "checks": {name: {"ok": c.ok, "why": c.why} for name, c in results.checks.items()},
        "inputs": {"models": results.study.catalogue.sha256, **{o.name: dict(o.source) for o in result.observations}},
    }


def _image_summary(o: Observation, reading: Micrograph | None = None) -> dict[str, Any]:
    e = o.environments
    read = {} if reading is None else reading_summary(reading)
    return {
        **{k: v for k, v in read.items() if k != "source"},
        "sites": read["sites"] if read else o.n if o.configuration is None else o.configuration.n_seen,
        "environments": o.n,
        "composition": {
            s: {"mean": float(m), "sd": float(d)} for s, m, d in zip(e.species, o.true_composition, o.composition_sd, strict=True)
        },
        "histogram": {name: c.item() for name, c in zip(e.names, o.counts, strict=True)},
        "label_error": read.get("label_error", o.label_error.tolist()),
        "labels": "hard" if o.probabilities is None else "soft",
        "uncertain_sites": o.uncertain,
        "window": "assumed block" if o.configuration is None else "seen sites",
        "temperature_K": o.temperature,
    }


def _sensitivity(found: Sensitivity | None) -> dict[str, Any] | None:
    if found is None:
        return None
    rows = [
        {
            "labelling": r.labelling, "model": r.model, "coupling": r.coupling, "shift": r.shift, "method": r.method,
            **({"mean": None, "sd": None, "q025": None, "q975": None} if (e := r.estimate) is None else
               {"mean": e.mean, "sd": e.sd, "q025": e.low, "q975": e.high}),
        }
        for r in found.rows
    ]  # fmt: skip
    return {"rows": rows, "sensitive": [" ".join(key) for key in found.sensitive], "sentences": found.sentences()}


def _couplings(result: Result, name: str, kind: str) -> dict[str, Any]:
    fit, p = result[name], result[name].posteriors[kind]
    low, high = (p.quantile(q) if fit.model.terms else np.zeros(0) for q in (0.05, 0.95))
    rows = zip(p.names, p.mean if p.names else (), p.sd if p.names else (), low, high, fit.crb_sd, strict=True)
    unit = fit.parameters.unit
    return {
        n: {"mean": float(m), "sd": float(s), "q05": float(a), "q95": float(b), "unit": unit, "crb_sd": float(c)}
        for n, m, s, a, b, c in rows
    }


def _model_summary(result: Result, comparison: Comparison, name: str) -> dict[str, Any]:
    fit, row = result[name], comparison.rows[name]
    p, has = fit.posterior, bool(fit.model.terms)
    return {
        "couplings": _couplings(result, name, fit.likelihood),
        "independent": _couplings(result, name, "independent"),
        "calibrated": _couplings(result, name, "calibrated"),
        "nuisances": {
            n: {
                "mean": float(v.mean()),
                "sd": float(v.std(ddof=1)),
                "q05": float(np.quantile(v, 0.05)),
                "q95": float(np.quantile(v, 0.95)),
                "unit": fit.parameters.unit_of(n),
            }
            for n, v in p.nuisances.items()
        },
        "s2": {o.name: float(s) for o, s in zip(result.observations, row.least.s2, strict=True)},
        "s2_total": row.least.total,
        "s2_error": row.least.error,
        "s2_couplings": {
            n: {"value": float(v), "error": float(e)}
            for n, v, e in zip(fit.model.names, row.least.couplings, row.least.coupling_error, strict=True)
        },
        "bic": row.bic,
        "bic_published": row.bic_published,
        "bic_corrected": row.bic_corrected,
        "effective_couplings": row.effective,
        "waic": row.waic.elpd,
        "waic_se": row.waic.se,
        "waic_difference": list(row.waic_difference),
        "loo": row.loo.elpd,
        "loo_se": row.loo.se,
        "loo_difference": list(row.loo_difference),
        "waic_images": row.waic_images.elpd,
        "loo_images": row.loo_images.elpd,
        "pareto_k_max": row.loo.pareto_k_max,
        "stacking": row.stacking,
        "consistency": None if row.consistency is None else asdict(row.consistency),
        "p_value": float(row.p_values[-1]),
        "p_values": {n: float(v) for n, v in zip([*(o.name for o in result.observations), "total"], row.p_values, strict=True)},
        "p_values_chi_square": {
            n: float(v) for n, v in zip([*(o.name for o in result.observations), "total"], row.chi_square_p, strict=True)
        },
        "log_evidence": row.log_evidence[1.0],
        "log_evidence_error": row.evidence_error,
        "log_evidence_pool_error": row.pool_error,
        "weight": row.weight[1.0],
        "weight_error": row.weight_error,
        "by_prior_width": {
            str(s): {
                n: {"mean": float(m), "sd": float(d)} for n, m, d in zip(p.names, row.posterior[s].mean, row.posterior[s].sd, strict=True)
            }
            for s in row.posterior
        },
        "practical": {
            x.name: {"rope": x.rope, "inside": x.inside, "low": x.low, "high": x.high, "decision": x.decision} for x in row.practical
        },
        "heterogeneity_p": row.heterogeneity_p,
        "image_modes": None
        if (h := row.heterogeneity) is None
        else {
            o.name: {n: {"mode": float(m), "sd": float(d)} for n, m, d in zip(p.names, modes, sd, strict=True)}
            for o, modes, sd in zip(result.observations, h.modes, h.sd, strict=True)
        },
        "misfit": [asdict(s) for s in row.shifts if s.named],
        "rhat_max": float(p.rhat.max()) if has else None,
        "ess_min": float(p.ess.min()) if has else None,
        "divergences": p.divergences,
    }
