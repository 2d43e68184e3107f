"""Studies: study.toml, its models and its images, read and checked whole before anything is computed.

Unknown keys are errors.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from . import catalogue
from .environments import Environments
from .errors import InputError
from .lattice import Lattice
from .observation import Observation

if TYPE_CHECKING:
    from .imaging.micrograph import Micrograph

TABLES = (".csv", ".tsv")  # files of a watched folder that are tables; all others are pixels
_FILE_NAME = r"^[^./\\:*?\"<>|][^/\\:*?\"<>|]*$"


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


class _Template(_Section):
    """How images are read, from pixels or from tables: what [[image]] and [watch] have in common."""

    bright: str | list[str] | None = None
    contrast: list[float] | dict[str, float] | None = None
    sublattice: int = Field(default=0, ge=0)
    vacancy: str | None = None
    roi: str | list[list[float]] | list[list[list[float]]] | None = None
    mask: str | list[list[float]] | list[list[list[float]]] | None = None
    pixel_size_nm: float | None = Field(default=None, gt=0)
    frame: int | Literal["mean"] | None = None
    channel: str | int | None = None
    invert: bool = False
    tails: bool = False
    soft: bool = True
    species: list[str] | None = None
    columns: dict[str, str] | None = None
    keep: dict[str, list[str]] | None = None
    probabilities: str | None = None
    label_error: list[list[float]] | None = None
    temperature_K: float | None = Field(default=None, gt=0)


class ImageSection(_Template):
    """[[image]]: `path` (pixels), `table` (labelled positions) or `counts` (a list, or a CSV file with `column`)."""

    name: str | None = Field(default=None, pattern=_FILE_NAME)
    path: str | list[str] | None = None
    atoms: int = Field(default=1, ge=1)
    counts: list[float] | str | None = None
    column: str | None = None
    sites: int | None = None
    table: str | None = None
    relabel: dict[str, dict[str, str]] = Field(default_factory=dict)


class WatchSection(_Template):
    """[watch]: the folder in which images arrive, which files of it, and how each is read.

    Tables (.csv and .tsv) by the keys of an image with `table`, all others by those of one with `path`.
    """

    folder: str | None = None
    pattern: str = "*"


# what an image's section may hold beside `path`, `counts` or `table`, and beside the keys of all
_BESIDE = {
    "path": (
        *("bright", "contrast", "sublattice", "vacancy", "roi", "mask", "pixel_size_nm", "frame", "channel", "invert", "tails", "soft"),
        *("atoms", "relabel"),
    ),
    "counts": ("column", "sites", "label_error"),
    "table": ("columns", "keep", "probabilities", "label_error", "relabel"),
}
_ALWAYS = ("name", "species", "temperature_K")


class InferSection(_Section):
    """[infer]: likelihood, environments, chains to take from another results folder, and how much to simulate (see Settings)."""

    likelihood: Literal["calibrated", "independent"] = "calibrated"
    shells: int = Field(default=1, ge=1)
    symmetry: Literal["full", "rotations", "none"] = "full"
    start: dict[str, dict[str, float]] | None = None
    reuse: str | None = None
    points: int | None = Field(default=None, ge=2)
    samples: int | None = Field(default=None, ge=50)
    sweeps: float | None = Field(default=None, gt=0)
    burn: float | None = Field(default=None, ge=0)
    rounds: int | None = Field(default=None, ge=2)
    moved: float | None = Field(default=None, gt=0)
    support: float | None = Field(default=None, gt=0)
    noise: float | None = Field(default=None, gt=0)
    warmup: int | None = Field(default=None, ge=50)
    draws: int | None = Field(default=None, ge=50)
    parallel: int | None = Field(default=None, ge=2)


class NuisancesSection(_Section):
    """[nuisances]: what else is uncertain, or differs between the images (see Nuisances).

    `temperature_K` gives [mean, standard deviation] of unknown formation temperatures by image, `constant` the standard
    deviation of the temperature-independent part of a coupling by its name.
    """

    energies: bool = False
    reference_K: float | None = Field(default=None, gt=0)
    temperature_K: dict[str, tuple[float, float]] = Field(default_factory=dict)
    constant: dict[str, float] = Field(default_factory=dict)
    composition: bool = False
    label_error: float = Field(default=0.0, ge=0, lt=1.5)

    @field_validator("temperature_K", "constant")
    @classmethod
    def _positive(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name, value in given.items():
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(v > 0 for v in numbers):
                raise ValueError(f"{name} = {list(numbers) if len(numbers) > 1 else value}: expected numbers above 0")
        return given


class PhasesSection(_Section):
    """[phases]: the phase map (see phase_diagram); temperatures relative to formation, `model` "average" or one model's name."""

    run: bool = True
    composition: list[float] | None = None
    chemical_potential: list[float] | None = None
    temperature: list[float] | None = None
    formation_K: float | None = Field(default=None, gt=0)
    model: str = "average"
    size: int | list[int] | None = None
    draws: int = Field(default=100, ge=1)

    @field_validator("composition", "chemical_potential", "temperature")
    @classmethod
    def _rising(cls, grid: list[float] | None, info: ValidationInfo) -> list[float] | None:
        low, high, text = {
            "composition": (0.0, 1.0, " between 0 and 1"),
            "chemical_potential": (-float("inf"), float("inf"), ""),
            "temperature": (0.0, float("inf"), " above 0"),
        }[info.field_name or ""]
        if grid is not None and (not grid or sorted(set(grid)) != grid or not all(low < v < high for v in grid)):
            raise ValueError(f"expected rising numbers{text}")
        return grid

    @field_validator("chemical_potential")
    @classmethod
    def _alone(cls, grid: list[float] | None, info: ValidationInfo) -> list[float] | None:
        if grid is not None and info.data.get("composition") is not None:
            raise ValueError("expected composition or chemical_potential, not both")
        return grid

    @field_validator("size")
    @classmethod
    def _even(cls, size: int | list[int] | None) -> int | list[int] | None:
        if size is not None and (not np.size(size) or any(n < 6 or n % 2 for n in np.atleast_1d(size))):
            raise ValueError("expected even numbers of cells, at least 6, one or as many as the lattice has dimensions")
        return size


class StudyFile(_Section):
    """The whole file."""

    study: StudySection
    lattice: LatticeSection | None = None
    image: list[ImageSection] = Field(default_factory=list)
    infer: InferSection = Field(default_factory=InferSection)
    nuisances: NuisancesSection = Field(default_factory=NuisancesSection)
    phases: PhasesSection = Field(default_factory=PhasesSection)
    watch: WatchSection | None = None


@dataclass(frozen=True, eq=False)
class Study:
    """A study that has been read: models, observations (and the same under other labellings), settings.

    `text` is the file as it was, `readings` what the images of pixels showed, by the names of their observations, `path` where it lay.
    """

    file: StudyFile
    text: str
    catalogue: catalogue.Catalogue
    observations: tuple[Observation, ...]
    relabelled: Mapping[str, tuple[Observation, ...]]
    readings: Mapping[str, Micrograph] = field(default_factory=dict)
    path: Path = Path("study.toml")

    @property
    def models(self) -> tuple:
        """The candidate models, all of the file or those of `include`."""
        wanted = self.file.study.include
        return tuple(m for m in self.catalogue.models if wanted is None or m.name in wanted)

    def arrived(self, file: Path) -> list[Observation]:
        """What a new file shows, read as [watch] says: one image, or several frames.

        Raises
        ------
        InputError
            If it cannot be read.
        """
        section = self.file.watch or WatchSection()
        image = ImageSection(**section.model_dump(exclude={"folder", "pattern"}, exclude_unset=True))
        species, where = self.catalogue.models[0].species, file.name
        environments = _environments(self.file, self.catalogue)
        if section.species is not None and tuple(section.species) != species:
            raise InputError(f"[watch]: species {', '.join(section.species)}; the models have {', '.join(species)}, in this order")
        if file.suffix.lower() in TABLES:
            # keys of pixels say how the other files are read
            image = image.model_copy(update={"table": str(file.absolute()), "name": file.stem})
            return [_image(image, 0, self.path, environments, None, where)]
        image = image.model_copy(update={"path": str(file.absolute())})
        if image.bright is None:
            raise InputError(f"{where}: key watch.bright is missing; expected the brightest species, one of {', '.join(species)}")
        return [m.observation for m in _micrographs(image, self.path, environments, where)]


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
    if file.infer.reuse is not None:
        file.infer.reuse = str(path.parent / file.infer.reuse)
    catalogued = catalogue.load(_models_path(file.study.models, path))
    _check_models(file, catalogued, path)
    if not file.image and not catalogued.data and file.watch is None:
        raise InputError(
            f"{path}: no [[image]] and no DATA in {catalogued.path.name}: nothing to infer from; add an image with path, table or counts"
        )
    if not file.image:
        return Study(file, text, catalogued, catalogued.data, {}, path=path)
    species, environments = catalogued.models[0].species, _environments(file, catalogued)
    places = [f"{path}, image {section.name or number + 1}" for number, section in enumerate(file.image)]
    kinds = [_kind(section, where, species) for section, where in zip(file.image, places, strict=True)]
    readings: dict[str, Micrograph] = {}
    images: list[Observation] = []
    labellings = dict.fromkeys(name for section in file.image for name in section.relabel)
    relabelled: dict[str, list[Observation]] = {name: [] for name in labellings}
    for number, (section, where, kind) in enumerate(zip(file.image, places, kinds, strict=True)):
        if kind == "path":
            found = _micrographs(section, path, environments, where)
            given = [m.observation for m in found]
            readings |= {o.name: m for o, m in zip(given, found, strict=True)}
            other = {name: [_matched(found, path, columns, where)] for name, columns in section.relabel.items()}
        else:
            given = [_image(section, number, path, environments, None, where)]
            other = {name: [_image(section, number, path, environments, r, where)] for name, r in section.relabel.items()}
        images += given
        for name in labellings:
            relabelled[name] += other.get(name, given)
    return Study(file, text, catalogued, tuple(images), {name: tuple(o) for name, o in relabelled.items()}, readings, path)


def _environments(file: StudyFile, catalogued: catalogue.Catalogue) -> Environments:
    first = catalogued.models[0]
    return Environments(first.lattice, first.species, file.infer.shells, file.infer.symmetry)


def _models_path(models: str, path: Path) -> str:
    """A path beside the study if there is such a file, else as given (a shipped name)."""
    beside = path.parent / models
    return str(beside) if beside.is_file() else models


def _check_models(file: StudyFile, found: catalogue.Catalogue, path: Path) -> None:
    names = [m.name for m in found.models]
    for wanted in [*(file.study.include or []), *(file.infer.start or {})]:
        if wanted not in names:
            raise InputError(f"{path}: model {wanted!r} is not in {found.path.name}; it has {', '.join(names)}")
    mapped, size, used = file.phases.model, file.phases.size, file.study.include or names
    if mapped not in ("average", *used):
        raise InputError(f"{path}: key phases.model is {mapped!r}; expected average or one of {', '.join(used)}")
    dimension = found.models[0].lattice.dimension
    if isinstance(size, list) and len(size) != dimension:
        raise InputError(f"{path}: key phases.size has {len(size)} numbers; expected one, or {dimension} for the lattice of the models")
    declared = file.lattice
    if declared is not None and Lattice.named(declared.name, declared.a_nm) != found.models[0].lattice:
        raise InputError(
            f"{path}: [lattice] is {declared.name}, a = {declared.a_nm} nm; the models are on {found.models[0].lattice!r}; make them agree"
        )


def _kind(section: ImageSection, where: str, species: tuple[str, ...]) -> str:
    """Which of path, table and counts an image has; InputError if not one, or if there are keys that do not belong to it."""
    kinds = [kind for kind in _BESIDE if getattr(section, kind) is not None]
    if len(kinds) != 1:
        raise InputError(f"{where}: give one of path (an image), table and counts; found {' and '.join(kinds) or 'none of them'}")
    kind = kinds[0]
    for key in sorted(section.model_fields_set - {kind, *_BESIDE[kind], *_ALWAYS}):
        fits = " or ".join(k for k, keys in _BESIDE.items() if key in keys)
        raise InputError(f"{where}: key {key} needs {fits}, but the image is given by {kind}; leave it out")
    if section.species is not None and tuple(section.species) != species:
        raise InputError(f"{where}: species {', '.join(section.species)}; the models have {', '.join(species)}, in this order")
    if kind == "path" and section.bright is None:
        raise InputError(f"{where}: key bright is missing; expected the species of the brightest columns, one of {', '.join(species)}")
    return kind


def _micrographs(section: ImageSection, path: Path, environments: Environments, where: str) -> list[Micrograph]:
    """The images of a section, read from pixels to species: one, or several frames or files of one sample."""
    from .imaging.micrograph import analyse
    from .imaging.read import read_images

    contrast = section.contrast
    if isinstance(contrast, list) and len(contrast) != 2:
        raise InputError(f"{where}: contrast = {contrast}; expected [low, high], or the atomic number of each species")
    frames = section.frame if section.frame in (None, "mean") else [section.frame]
    files = [path.parent / p for p in ([section.path] if isinstance(section.path, str) else section.path or ())]
    try:
        pictures = read_images(files, pixel_size=section.pixel_size_nm, frames=frames, channel=section.channel)
        names = [p.name for p in pictures]
        if section.name is not None:
            names = [section.name] if len(names) == 1 else [f"{section.name}_{n + 1}" for n in range(len(names))]
        return [
            analyse(
                picture, environments.lattice, environments.species, bright=section.bright, name=name, environments=environments,
                contrast=tuple(contrast) if isinstance(contrast, list) else contrast, sublattice=section.sublattice,
                vacancy=section.vacancy, roi=section.roi, mask=section.mask, tails=section.tails, invert=section.invert,
                soft=section.soft, atoms=section.atoms, temperature=section.temperature_K, folder=path.parent,
            )
            for picture, name in zip(pictures, names, strict=True)
        ]  # fmt: skip
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _matched(micrographs: list[Micrograph], path: Path, columns: Mapping[str, str], where: str) -> Observation:
    """An image of pixels under the labels of a table."""
    from .imaging.matching import match_table

    if len(micrographs) != 1:
        raise InputError(f"{where}: relabel for {len(micrographs)} images at once; expected one: give each an [[image]] of its own")
    if "table" not in columns:
        raise InputError(f"{where}: relabel without table; expected the table with the other labels, its positions in pixels of the image")
    try:
        return match_table(micrographs[0], path.parent / columns["table"], {k: v for k, v in columns.items() if k != "table"})
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _image(
    section: ImageSection, number: int, path: Path, environments: Environments, relabel: Mapping[str, str] | None, where: str
) -> Observation:
    """The observation of a table or of counts."""
    species = environments.species
    keywords: dict[str, Any] = {"label_error": section.label_error, "temperature": section.temperature_K}
    if section.name is not None:
        keywords["name"] = section.name
    if section.table is not None:
        # another labelling is hard unless it names probabilities of its own
        other = {"probabilities": section.probabilities} if relabel is None else dict(relabel)
        soft = other.pop("probabilities", None)
        columns = {**(section.columns or {}), **other}
        return Observation.from_table(
            path.parent / section.table,
            environments.lattice,
            species,
            columns=columns,
            keep=section.keep,
            probabilities=soft,
            environments=environments,
            **keywords,
        )
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
                    "nuisances": NuisancesSection,
                    "phases": PhasesSection,
                    "watch": WatchSection,
                }[part]
        return f"key {key} is unknown; expected one of {', '.join(section.model_fields)}"
    return f"key {key}: {first['msg'].lower()}; found {first.get('input')!r}"
