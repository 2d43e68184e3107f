"""The command line: a few lines over the library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import BayesAtomsError, CheckError
from .montecarlo.executors import Executor, cores, executor

if TYPE_CHECKING:
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
