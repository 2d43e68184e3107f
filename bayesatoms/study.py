"""Studies: study.toml in, a results folder out.

The file is checked whole before anything is computed; unknown keys are errors. The folder can be run
into again: finished chains are read back, every file is written whole or not at all.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import catalogue
from .configuration import UNSEEN
from .environments import Environments
from .errors import InputError
from .lattice import Lattice
from .observation import Observation

if TYPE_CHECKING:
    from .inference.comparison import Comparison
    from .inference.posterior import Check, Result
    from .phases.diagram import PhaseDiagram
    from .progress import Progress


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class StudySection(_Section):
    """[study]: `models` is a path or the name of a shipped models file."""

    name: str
    seed: int = Field(ge=0)
    models: str
    include: list[str] | None = None


class LatticeSection(_Section):
    """[lattice]: must agree with the models' lattice; a check, since the models declare it."""

    name: str
    a_nm: float = Field(gt=0)


class ImageSection(_Section):
    """[[image]]: `counts` (a list, or a CSV file with `column`) or `table` (a CSV of labelled positions)."""

    name: str | None = None
    counts: list[float] | str | None = None
    column: str | None = None
    sites: int | None = None
    table: str | None = None
    species: list[str] | None = None
    columns: dict[str, str] | None = None
    keep: dict[str, list[str]] | None = None
    relabel: dict[str, dict[str, str]] = Field(default_factory=dict)
    label_error: list[list[float]] | None = None
    temperature_K: float | None = Field(default=None, gt=0)


class InferSection(_Section):
    """[infer]: likelihood, environments and how much to simulate (see Settings)."""

    likelihood: Literal["calibrated", "independent"] = "calibrated"
    shells: int = Field(default=1, ge=1)
    symmetry: Literal["full", "rotations", "none"] = "full"
    start: dict[str, dict[str, float]] | None = None
    points: int | None = Field(default=None, ge=2)
    samples: int | None = Field(default=None, ge=50)
    sweeps: float | None = Field(default=None, gt=0)
    burn: float | None = Field(default=None, ge=0)
    rounds: int | None = Field(default=None, ge=2)
    moved: float | None = Field(default=None, gt=0)
    support: float | None = Field(default=None, gt=0)
    warmup: int | None = Field(default=None, ge=50)
    draws: int | None = Field(default=None, ge=50)
    parallel: int | None = Field(default=None, ge=2)


class PhasesSection(_Section):
    """[phases]: the grid of the phase map; temperatures relative to formation."""

    run: bool = True
    composition: list[float] | None = None
    temperature: list[float] | None = None
    draws: int = Field(default=100, ge=1)


class StudyFile(_Section):
    """The whole file."""

    study: StudySection
    lattice: LatticeSection | None = None
    image: list[ImageSection] = Field(default_factory=list)
    infer: InferSection = Field(default_factory=InferSection)
    phases: PhasesSection = Field(default_factory=PhasesSection)


@dataclass(frozen=True, eq=False)
class Study:
    """A study that has been read: models, observations (and the same under other labellings), settings.

    `text` is the file as it was.
    """

    file: StudyFile
    text: str
    catalogue: catalogue.Catalogue
    observations: tuple[Observation, ...]
    relabelled: Mapping[str, tuple[Observation, ...]]

    @property
    def models(self) -> tuple:
        """The candidate models, all of the file or those of `include`."""
        wanted = self.file.study.include
        return tuple(m for m in self.catalogue.models if wanted is None or m.name in wanted)


@dataclass(frozen=True, eq=False)
class Results:
    """What a run found, as written to its folder."""

    study: Study
    result: Result
    comparison: Comparison
    diagram: PhaseDiagram | None
    relabelled: Mapping[str, Result]
    timing: Mapping[str, float]

    @property
    def checks(self) -> dict[str, Check]:
        """Every check of the run by name."""
        return {**self.result.checks, **self.comparison.checks}

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.checks.values())


def read(path: str | Path) -> Study:
    """Read and check study.toml, its models and its images.

    Raises
    ------
    InputError
        Naming the file, the key, what was found and what was expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf8")
    except OSError as error:
        raise InputError(f"study {path} cannot be read ({error.strerror}); expected a study.toml") from None
    except UnicodeDecodeError:
        raise InputError(f"study {path} is no text; expected a study.toml") from None
    return parse(text, path)


def parse(text: str, path: str | Path = "study.toml") -> Study:
    """A study from the text of a study.toml; paths in it are relative to the file's folder."""
    path = Path(path)
    try:
        file = StudyFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML: {error}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}") from None
    found = catalogue.load(_models_path(file.study.models, path))
    _check_models(file, found, path)
    if not file.image and not found.data:
        raise InputError(f"{path}: no [[image]] and no DATA in {found.path.name}: nothing to infer from; add an image with counts or table")
    if not file.image:
        return Study(file, text, found, found.data, {})
    lattice, species = found.models[0].lattice, found.models[0].species
    environments = Environments(lattice, species, file.infer.shells, file.infer.symmetry)
    images = [_image(i, number, path, environments, None) for number, i in enumerate(file.image)]
    labellings = dict.fromkeys(name for i in file.image for name in i.relabel)
    relabelled = {
        name: tuple(_image(i, n, path, environments, i.relabel[name]) if name in i.relabel else images[n] for n, i in enumerate(file.image))
        for name in labellings
    }
    return Study(file, text, found, tuple(images), relabelled)


def _models_path(models: str, path: Path) -> str:
    """A path beside the study if there is such a file, else as given (a shipped name)."""
    beside = path.parent / models
    return str(beside) if beside.is_file() else models


def _check_models(file: StudyFile, found: catalogue.Catalogue, path: Path) -> None:
    names = [m.name for m in found.models]
    for wanted in [*(file.study.include or []), *(file.infer.start or {})]:
        if wanted not in names:
            raise InputError(f"{path}: model {wanted!r} is not in {found.path.name}; it has {', '.join(names)}")
    declared = file.lattice
    if declared is not None and Lattice.named(declared.name, declared.a_nm) != found.models[0].lattice:
        raise InputError(
            f"{path}: [lattice] is {declared.name}, a = {declared.a_nm} nm; the models are on {found.models[0].lattice!r}; make them agree"
        )


def _image(section: ImageSection, number: int, path: Path, environments: Environments, relabel: Mapping[str, str] | None) -> Observation:
    where = f"{path}, image {section.name or number + 1}"
    if (section.counts is None) == (section.table is None):
        raise InputError(f"{where}: give either counts or table; found {'both' if section.counts is not None else 'neither'}")
    species = environments.species
    if section.species is not None and tuple(section.species) != species:
        raise InputError(f"{where}: species {', '.join(section.species)}; the models have {', '.join(species)}, in this order")
    keywords: dict[str, Any] = {"label_error": section.label_error, "temperature": section.temperature_K}
    if section.name is not None:
        keywords["name"] = section.name
    if section.table is not None:
        columns = {**(section.columns or {}), **(relabel or {})}
        return Observation.from_table(
            path.parent / section.table,
            environments.lattice,
            species,
            columns=columns,
            keep=section.keep,
            environments=environments,
            **keywords,
        )
    if relabel is not None:
        raise InputError(f"{where}: relabel needs a table; counts carry no labels to exchange")
    counts, source = section.counts, {}
    if isinstance(counts, str):
        counts, source = _counts_file(path.parent / counts, section.column, where)
    keywords.setdefault("name", section.column or f"image{number + 1}")
    return Observation.from_counts(counts, environments, sites=section.sites, source=source, **keywords)


def _counts_file(path: Path, column: str | None, where: str) -> tuple[list[float], dict[str, str]]:
    """One column of a CSV of class counts."""
    try:
        data = path.read_bytes()
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    except OSError as error:
        raise InputError(f"{where}: counts file {path} cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{where}: counts file {path} is no CSV text ({error})") from None
    names = list(rows[0]) if rows else []
    if column not in names:
        raise InputError(f"{where}: column {column!r} not found in {path}; it has {', '.join(map(str, names)) or 'no rows'}; set column")
    try:
        return [float(r[column]) for r in rows], {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: column {column!r} of {path} holds something that is no number ({error})") from None


def _explain(error: ValidationError) -> str:
    """The first complaint in words, with the path to the key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section: Any = StudyFile
        for part in first["loc"][:-1]:
            if isinstance(part, str):
                section = {
                    "study": StudySection,
                    "lattice": LatticeSection,
                    "image": ImageSection,
                    "infer": InferSection,
                    "phases": PhasesSection,
                }[part]
        return f"key {key} is unknown; expected one of {', '.join(section.model_fields)}"
    return f"key {key}: {first['msg'].lower()}; found {first.get('input')!r}"


# ---------------------------------------------------------------------- running


def run(study: Study, out: str | Path, *, workers: int = 1, progress: Progress | None = None) -> Results:
    """Run a study into a results folder: posteriors, comparison, phase map, tables and summary.json.

    Parameters
    ----------
    study : Study
    out : path
        Made if need be. Chains already in its pool are used.
    workers : int
    progress : callable(stage, done, total), optional

    Returns
    -------
    Results
    """
    from .inference.campaign import Settings, check_inputs
    from .inference.comparison import compare
    from .inference.posterior import infer
    from .montecarlo.pool import Pool
    from .phases.diagram import Candidate, phase_diagram

    options, out = study.file.infer, Path(out)
    check_inputs(study.models, study.observations)
    _make(out)
    write(out / "study.toml", study.text)
    given = {f.name: getattr(options, f.name) for f in fields(Settings) if getattr(options, f.name, None) is not None}
    common = {
        "seed": study.file.study.seed, "likelihood": options.likelihood, "settings": Settings(**given), "start": options.start,
        "workers": workers, "progress": progress,
    }  # fmt: skip
    clock, pool = time.perf_counter(), Pool(out / "pool")
    result = infer(study.models, study.observations, pool=pool, **common)
    result.sources["models"] = study.catalogue.sha256
    timing = dict(result.timing)
    clock = time.perf_counter()
    comparison = compare(result)
    timing["compare"] = time.perf_counter() - clock
    relabelled = {name: infer(study.models, images, pool=pool, **common) for name, images in study.relabelled.items()}
    diagram, clock = None, time.perf_counter()
    if study.file.phases.run and len(study.models[0].species) == 2:
        section = study.file.phases
        composition = np.linspace(0.1, 0.9, 9) if section.composition is None else np.array(section.composition)
        weights = {name: row.weight[1.0] for name, row in comparison.rows.items()}
        candidates = [Candidate(result[n].model, result[n].draws, w) for n, w in weights.items()]
        temperature = None if section.temperature is None else np.array(section.temperature)
        diagram = phase_diagram(
            candidates, composition=composition, temperature=temperature, draws=section.draws,
            seed=study.file.study.seed, workers=workers, progress=progress,
        )  # fmt: skip
        timing["phases"] = time.perf_counter() - clock
    results = Results(study, result, comparison, diagram, relabelled, timing)
    _save(results, out)
    return results


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"results folder {out} cannot be made ({error.strerror}); choose another --out") from None


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _save(results: Results, out: Path) -> None:
    from .inference import trees

    (out / "models").mkdir(exist_ok=True)
    for name in results.result.fits:
        trees.save(results.result, name, out / "models" / f"{name}.nc")
    for label, relabelled in results.relabelled.items():
        for name in relabelled.fits:
            trees.save(relabelled, name, out / "models" / f"{name}.{label}.nc")
    for o in results.study.observations:
        if o.configuration is not None:
            (out / "sites").mkdir(exist_ok=True)
            write(out / "sites" / f"{o.name}.csv", sites_table(o))
    if results.diagram is not None:
        results.diagram.save(out / "phases.nc")
    write(out / "summary.json", json.dumps(summary(results), indent=1, sort_keys=True, allow_nan=False))


def sites_table(observation: Observation) -> str:
    """The labelled sites as CSV: lattice indices, position, species; a valid input of `from_table`."""
    c = observation.configuration
    assert c is not None
    seen = c.flat != UNSEEN
    sites = c.supercell.sites[seen]
    places = c.lattice.positions(sites)[:, :2] if observation.positions is None else observation.positions
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*(f"n{a + 1}" for a in range(c.lattice.dimension)), "basis", "x", "y", "species"])
    for site, place, label in zip(sites, places, c.flat[seen], strict=True):
        table.writerow([*site.tolist(), *(f"{v:.4f}" for v in place), c.species[label]])
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
        "images": {o.name: _image_summary(o) for o in result.observations},
        "models": {name: _model_summary(result, comparison, name) for name in result.fits},
        "comparison": {
            "order": list(comparison.order),
            "remain": list(comparison.remain),
            "decides": comparison.decides,
            "verdict": comparison.verdict,
            "units": comparison.units,
            "n_units": comparison.n_units,
            "warnings": list(comparison.warnings),
            "weights": {str(s): {n: r.weight[s] for n, r in comparison.rows.items()} for s in next(iter(comparison.rows.values())).weight},
        },
        "labellings": {label: {n: _couplings(r, n, r.likelihood) for n in r.fits} for label, r in results.relabelled.items()},
        "calibration": None,
        "phases": None if results.diagram is None else results.diagram.summary(),
        "checks": {name: {"ok": c.ok, "why": c.why} for name, c in results.checks.items()},
        "inputs": {"models": results.study.catalogue.sha256, **{o.name: dict(o.source) for o in result.observations}},
    }


def _image_summary(o: Observation) -> dict[str, Any]:
    e = o.environments
    return {
        "sites": o.n if o.configuration is None else o.configuration.n_seen,
        "environments": o.n,
        "composition": {
            s: {"mean": float(m), "sd": float(d)} for s, m, d in zip(e.species, o.true_composition, o.composition_sd, strict=True)
        },
        "histogram": {name: int(c) for name, c in zip(e.names, o.counts, strict=True)},
        "label_error": o.label_error.tolist(),
        "window": "assumed block" if o.configuration is None else "seen sites",
        "temperature_K": o.temperature,
    }


def _couplings(result: Result, name: str, kind: str) -> dict[str, Any]:
    fit, p = result[name], result[name].posteriors[kind]
    low, high = (p.quantile(q) if fit.model.terms else np.zeros(0) for q in (0.05, 0.95))
    rows = zip(p.names, p.mean if p.names else (), p.sd if p.names else (), low, high, fit.crb_sd, strict=True)
    unit = "kT at formation"
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
        "s2": {o.name: float(s) for o, s in zip(result.observations, row.least.s2, strict=True)},
        "s2_total": row.least.total,
        "s2_error": row.least.error,
        "s2_couplings": {
            n: {"value": float(v), "error": float(e)}
            for n, v, e in zip(fit.model.names, row.least.couplings, row.least.coupling_error, strict=True)
        },
        "bic": row.bic,
        "bic_published": row.bic_published,
        "waic": row.waic.elpd,
        "waic_se": row.waic.se,
        "loo": row.loo.elpd,
        "loo_se": row.loo.se,
        "pareto_k_max": row.loo.pareto_k_max,
        "p_value": float(row.p_values[-1]),
        "p_values": {n: float(v) for n, v in zip([*(o.name for o in result.observations), "total"], row.p_values, strict=True)},
        "p_values_chi_square": {
            n: float(v) for n, v in zip([*(o.name for o in result.observations), "total"], row.chi_square_p, strict=True)
        },
        "log_evidence": row.log_evidence[1.0],
        "log_evidence_error": row.evidence_error,
        "weight": row.weight[1.0],
        "heterogeneity_p": row.heterogeneity_p,
        "rhat_max": float(p.rhat.max()) if has else None,
        "ess_min": float(p.ess.min()) if has else None,
        "divergences": p.divergences,
    }
