"""The command line: a few lines over the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import BayesAtomsError, CheckError, InputError
from .files import write
from .montecarlo.executors import Executor, cores, executor

if TYPE_CHECKING:
    from .inference.posterior import Result
    from .progress import Progress
    from .study import Study

app = typer.Typer(
    help="Bayesian inference of the interactions that made a disordered material, from its atomically resolved images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Option(help="Results folder; made if need be, continued if it holds a run.")]
Workers = Annotated[int, typer.Option(min=1, help="Chains simulated at once; the answer does not depend on it.")]
By = Annotated[
    str, typer.Option("--executor", help="threads, processes, dask (workers on this machine), or a dask scheduler: tcp://host:8786.")
]
Force = Annotated[bool, typer.Option("--force", help="Simulate anew the chains that the folder holds.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
_CORES = cores()
_COMPOSITIONS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"


@app.command()
def demo(
    out: Out = Path("bayesatoms-demo"),
    workers: Workers = _CORES,
    by: By = "threads",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """The published MoS2-ReS2 counts, embedded: posteriors, comparison, phase map, report."""
    from . import study

    text = f'[study]\nname = "MoS2-ReS2, published counts"\nseed = {seed}\nmodels = "mos2_res2"\n'
    with _working(by, workers, quiet) as (crew, bars):
        _run(study.parse(text), out, crew, bars, force)


@app.command()
def validate(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.toml")],
    workers: Workers = _CORES,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write it as JSON too; - for JSON alone, on stdout.")] = None,
) -> None:
    """Before an hour is spent: reads everything, says what the images can and cannot decide, and what a run will cost."""
    from . import readings, study
    from .planning.validate import validate as forecast
    from .results import arguments

    plan = study.read(study_file)
    given, section = arguments(plan, workers, None), plan.file.phases
    names = ("composition", "chemical_potential", "temperature", "size", "draws", "model")
    phases = {name: getattr(section, name) for name in names} if section.run else None
    if phases is not None and phases["composition"] is None and phases["chemical_potential"] is None:
        phases["composition"] = _numbers(_COMPOSITIONS, "composition")
    found = forecast(
        plan.models, plan.observations, settings=given["settings"], nuisances=given["nuisances"], seed=given["seed"], phases=phases,
        relabelled=len(plan.relabelled), workers=workers,
    )  # fmt: skip
    read = [line for m in plan.readings.values() for line in readings.reading_lines(m)]
    if json_file is not None:
        text = json.dumps(readings.finite({**found.summary(), "readings": read}), indent=1, sort_keys=True, allow_nan=False)
        if str(json_file) == "-":
            typer.echo(text)
            return
        _written(json_file, lambda path: write(path, text))
    typer.echo("\n".join([*read, str(found)]))


@app.command()
def run(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.toml")],
    out: Out = Path("results"),
    workers: Workers = _CORES,
    by: By = "threads",
    reuse: Annotated[
        Path | None, typer.Option(help="Results folder of the same images under other labels: its chains are taken first.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Images and models of a study.toml: a results folder with report.html and summary.json."""
    from . import study

    plan = study.read(study_file)
    with _working(by, workers, quiet) as (crew, bars):
        _run(plan, out, crew, bars, force, reuse)


@app.command()
def watch(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.toml")],
    out: Out = Path("results"),
    folder: Annotated[Path | None, typer.Option(help="Where images arrive; instead of the study's [watch] folder.")] = None,
    sd: Annotated[list[str] | None, typer.Option(help="Stop at this width of a coupling: P1.w1=0.03 (kT); may be repeated.")] = None,
    decide: Annotated[bool, typer.Option("--decide", help="Stop when one model is decided for.")] = False,
    error: Annotated[float, typer.Option(help="Chance that stopping was wrong.")] = 0.05,
    most: Annotated[int | None, typer.Option(min=1, help="Images after which to stop in any case.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Take what is there, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks.")] = 2.0,
    idle: Annotated[float | None, typer.Option(min=0, help="End after so many seconds without a new file.")] = None,
    workers: Workers = _CORES,
    quiet: Quiet = False,
) -> None:
    """Images one by one as they arrive in a folder: posteriors, a live picture, and an end when enough is known."""
    from . import study
    from .inference.stopping import StopRule, targets
    from .watching import watch as watch_folder

    plan, rule = study.read(study_file), StopRule(sd=targets(sd or ()), decide=decide, error=error, most=most)
    with _working("threads", workers, quiet) as (_, bars):  # its chains are few: threads run them, and the rest
        session = watch_folder(
            plan, out, folder=folder, stop=rule, once=once, every=every, idle=idle, workers=workers, progress=bars, say=typer.echo
        )
    typer.echo(session.updates[-1].stop.sentence if session.updates else "No image came.")
    typer.echo(f"Picture: {out / 'live.png'}" if session.updates else f"Results folder: {out}")


@app.command()
def observe(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Micrographs: tiff, png, dm4, emd, hdf5, npy, sxm, ...")],
    species: Annotated[str, typer.Option(help="All species, such as Mo,Re.")],
    bright: Annotated[str, typer.Option(help="The brightest species, or all from the brightest to the dimmest.")],
    a: Annotated[float, typer.Option(help="Nearest-neighbour distance of the lattice, nm.")],
    lattice: Annotated[str, typer.Option(help="triangular, square or honeycomb.")] = "triangular",
    out: Annotated[Path, typer.Option(help="Folder; made if need be.")] = Path(),
    sublattice: Annotated[int, typer.Option(min=0, help="Which kind of column, by brightness from 0.")] = 0,
    pixel_size: Annotated[float | None, typer.Option(help="nm; instead of the header's.")] = None,
    contrast: Annotated[str | None, typer.Option(help="Ratio of a level to the next brighter one, 0.3,0.7; or Mo=42,Re=75.")] = None,
    roi: Annotated[str | None, typer.Option(help="x0,y0,x1,y1 in pixels, or the corners of a polygon, or a mask picture.")] = None,
    mask: Annotated[str | None, typer.Option(help="What to leave out: a mask picture, or corners as for --roi.")] = None,
    vacancy: Annotated[str | None, typer.Option(help="The species that is a missing atom.")] = None,
    frame: Annotated[str | None, typer.Option(help="Which frame of a series, from 0, or mean; all by default.")] = None,
    channel: Annotated[str | None, typer.Option(help="Which data set of the file.")] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Atoms are dark.")] = False,
    tails: Annotated[bool, typer.Option("--tails", help="Correct for the probe's tails on neighbouring columns.")] = False,
    hard: Annotated[bool, typer.Option("--hard", help="Hard labels for the figures of N and composition.")] = False,
) -> None:
    """Read micrographs: labelled sites as tables, pictures to check them by, and what to know about them."""
    from . import readings

    given = readings.Options(
        lattice, a, species, bright, sublattice=sublattice, pixel_size=pixel_size, contrast=contrast, roi=roi, mask=mask,
        vacancy=vacancy, frame=frame, channel=channel, invert=invert, tails=tails, soft=not hard,
    )  # fmt: skip
    found = readings.read(images, given)
    for micrograph in found:
        typer.echo("\n".join(readings.reading_lines(micrograph)))
    typer.echo(f"Written to {out}: {', '.join(path.name for m in found for path in readings.write_reading(m, out))}")


@app.command()
def calibrate(
    place: Annotated[Path, typer.Argument(metavar="STUDY.toml | RESULTS", help="A study, or the results folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(help="Results folder with the study's chains; PLACE itself if that is one.")] = None,
    source: Annotated[str, typer.Option(help="held-out: the pool's own chains, seconds; prior: new simulations, minutes.")] = "held-out",
    datasets: Annotated[int | None, typer.Option(min=1, help="Synthetic data sets of each model.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The study's by default.")] = None,
    workers: Workers = _CORES,
    by: By = "threads",
    quiet: Quiet = False,
) -> None:
    """Can the posteriors be trusted? Ranks and coverage over synthetic data sets; exit code 1 if they fail."""
    from . import plots, study
    from .results import calibrate_study, calibration_stem

    folder = place.is_dir()
    out = out or (place if folder else Path("results"))
    plan = study.read(place / "study.toml" if folder else place)
    with _working(by, workers, quiet) as (crew, bars):
        found = calibrate_study(plan, out, source=source, datasets=datasets, seed=seed, workers=crew, progress=bars)
    typer.echo(str(found))
    if any(r.datasets for r in found.rows):
        typer.echo(f"Picture: {plots.save(plots.rank_bands(found), out / f'{calibration_stem(source)}.png')}")
    if not found.ok:
        raise CheckError(f"the posteriors are not calibrated. {found.verdict}")


@app.command("next")
def next_image(
    place: Annotated[Path, typer.Argument(metavar="RESULTS", help="The results folder of a finished run.")],
    target: Annotated[
        str, typer.Option(help="models; a coupling, w1 or P1.w1; T(0.5), where that composition orders; phase(0.5,0.3), whether it has.")
    ],
    composition: Annotated[str, typer.Option(help="Fractions of the second species that could be imaged.")] = _COMPOSITIONS,
    temperature: Annotated[str, typer.Option(help="Temperatures that could be, relative to formation.")] = "1",
    sites: Annotated[int | None, typer.Option(min=2, help="Atoms in the image; by default as in those there are.")] = None,
    draws: Annotated[int, typer.Option(min=8, help="Posterior draws.")] = 100,
    seed: Annotated[int | None, typer.Option(min=0, help="The study's by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Picture; the map is written beside it as .nc. RESULTS/next.png by default.")] = None,
    workers: Workers = _CORES,
    by: By = "threads",
    quiet: Quiet = False,
) -> None:
    """Which composition or temperature to image next: a ranked list and a map of expected gain for a target."""
    from . import plots, study
    from .phases.diagram import phase_diagram
    from .planning.targets import named, what_next

    x, t = _numbers(composition, "--composition"), _numbers(temperature, "--temperature")
    plan, out = study.read(place / "study.toml"), out or place / "next.png"
    seed, section = plan.file.study.seed if seed is None else seed, plan.file.phases
    with _working(by, workers, quiet) as (crew, bars):
        result = _stored(plan, place, crew, bars)
        chosen = named(
            target, result,
            lambda at: phase_diagram(
                result, composition=[at], temperature=section.temperature, draws=draws, seed=seed, size=section.size,
                folder=place / "phases", workers=crew, progress=bars,
            ),
        )  # fmt: skip
        gain = what_next(
            result, chosen, composition=x, temperature=t, sites=sites, draws=draws, seed=seed, size=section.size, workers=crew,
            progress=bars,
        )  # fmt: skip
    typer.echo(str(gain))
    picture = _written(out, lambda path: plots.save(plots.gain_map_figure(gain), path))
    typer.echo(f"Picture: {picture}; map: {_written(out.with_suffix('.nc'), gain.save)}")


@app.command("plan")
def plan_images(
    place: Annotated[Path, typer.Argument(metavar="RESULTS", help="The results folder of a finished run.")],
    composition: Annotated[str, typer.Option(help="Fractions of the second species that could be imaged.")] = "0.1,0.3,0.5,0.7,0.9",
    field: Annotated[
        int | None, typer.Option(min=1, help="Complete environments of one more image; by default as those there are.")
    ] = None,
    sd: Annotated[list[str] | None, typer.Option(help="Wanted width of a coupling: P1.w1=0.03 (kT); may be repeated.")] = None,
    models: Annotated[str | None, typer.Option(help="Models to tell apart, with commas; all by default.")] = None,
    truth: Annotated[str | None, typer.Option(help="The model taken to be true, at its estimate; by default each in turn.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Images that could be taken at most.")] = 128,
    seed: Annotated[int | None, typer.Option(min=0, help="The study's by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of learning_curve.png, power_curve.png and plan.nc; RESULTS by default.")] = None,
    workers: Workers = _CORES,
    by: By = "threads",
    quiet: Quiet = False,
) -> None:
    """How much data is required: images until a coupling is known or the models are told apart, by composition."""
    from . import plots, study
    from .inference.stopping import targets
    from .planning.plan import plan as planned

    given, x, out = study.read(place / "study.toml"), _numbers(composition, "--composition"), out or place
    chosen = None if models is None else [name.strip() for name in models.split(",")]
    with _working(by, workers, quiet) as (crew, bars):
        result = _stored(given, place, crew, bars)
        found = planned(
            result, composition=x, field=field, target_sd=targets(sd) if sd else None, models=chosen, truth=truth, most=most,
            seed=given.file.study.seed if seed is None else seed, workers=crew, progress=bars,
        )  # fmt: skip
    typer.echo(str(found))
    drawn = [_written(out / "learning_curve.png", lambda path: plots.save(plots.learning_curve(found), path))]
    if found.dataset.sizes["truth"]:
        drawn.append(_written(out / "power_curve.png", lambda path: plots.save(plots.power_curve(found), path)))
    typer.echo(f"Pictures: {', '.join(map(str, drawn))}; numbers: {_written(out / 'plan.nc', found.save)}")


def _stored(plan: Study, place: Path, crew: Executor, bars: Progress) -> Result:
    """The result of a results folder: its chains are read back, what is not there is run."""
    from .inference.posterior import infer
    from .montecarlo.pool import Pool
    from .results import arguments

    return infer(plan.models, plan.observations, pool=Pool(place / "pool"), reuse=plan.file.infer.reuse, **arguments(plan, crew, bars))


def _numbers(text: str, what: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise InputError(f"{what} is {text!r}; expected numbers with commas between them") from None


def _written(path: Path, write_to: Callable[[Path], object]) -> Path:
    """A file by one of our writers, in a folder that is made if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another place") from None
    return path


@contextmanager
def _working(by: str, workers: int, quiet: bool) -> Iterator[tuple[Executor, Progress]]:
    """An executor and bars, put away however the work ends; ctrl-C says how to go on, with exit code 130."""
    from .progress import Bars

    bars, scheduler = Bars(quiet=quiet), by if "://" in by else None
    try:
        with executor("dask" if scheduler else by, None if scheduler else workers, scheduler=scheduler) as crew:
            yield crew, bars
    except KeyboardInterrupt:
        bars.close()
        typer.echo("bayesatoms: stopped; finished chains are kept, run the same command to continue", err=True)
        raise typer.Exit(130) from None
    finally:
        bars.close()


def _run(plan: Study, out: Path, crew: Executor, bars: Progress, force: bool, reuse: Path | None = None) -> None:
    from .reporting.report import write_report
    from .results import run as run_study

    results = run_study(plan, out, workers=crew, progress=bars, reuse=reuse, force=force)
    title = plan.file.study.name
    path = write_report(
        results.result, results.diagram, out / "report.html", comparison=results.comparison, relabelled=results.relabelled,
        readings=plan.readings, sensitivity=results.sensitivity, calibration=results.calibration, title=title,
    )  # fmt: skip
    typer.echo(str(results.comparison))
    typer.echo(f"Report: {path}")
    failed = {name: check.why for name, check in results.checks.items() if not check.ok}
    if failed:
        raise CheckError("; ".join(f"failed check {name}: {why}" for name, why in failed.items()))


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a deliberate error becomes one sentence and its exit code (1 failed check, 2 input, 3 the machine), nothing else."""
    try:
        app(args=arguments, standalone_mode=True)
    except BayesAtomsError as error:
        print(f"bayesatoms: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
