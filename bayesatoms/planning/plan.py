"""How much data is required: predicted precision and power of model choice against images still to be taken.

Before an hour at the microscope: which composition tells most, how many images of which size bring a coupling below a wanted
standard deviation, and how many tell the candidate models apart, if there is a number at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from ..errors import CheckError, InputError
from ..inference.comparison import evidence_weights
from ..inference.criteria import judged
from ..inference.posterior import Result
from ..inference.threads import side_by_side
from ..inference.trees import versions
from ..montecarlo.executors import Executor
from ..montecarlo.pool import Pool
from ..phases.arguments import axis_of
from ..progress import Progress, reporter
from .power import Bench, Truth
from .precision import Precision, learned
from .prediction import AVERAGE, Plan, at_x, listed
from .prospects import Belief, Prospect, field_window, prospective, simulated

Floats = NDArray[np.float64]
Assumed = str | tuple[str, Mapping[str, float] | ArrayLike]

GRID = (0.1, 0.3, 0.5, 0.7, 0.9)
_INSIDE = 0.9  # share of experiments whose posteriors must lie where likelihoods are known
_ROUGH = 0.3  # error of a log likelihood that would move a verdict
_LEAST = 50  # experiments


@threadpool_limits.wrap(limits=1, user_api="blas")
def plan(
    result: Result,
    *,
    seed: int,
    models: Sequence[str] | None = None,
    composition: ArrayLike | Mapping[str, ArrayLike] | None = None,
    field: int | Sequence[int] | None = None,
    label_error: ArrayLike | None = None,
    target_sd: float | Mapping[str, float] | None = None,
    truth: Assumed | None = None,
    most: int = 128,
    experiments: int = 400,
    pool: Pool | None = None,
    workers: int | Executor = 1,
    progress: bool | Progress | None = None,
) -> Plan:
    """Predict what more images would tell: standard deviations, and the probability of telling the models apart.

    Parameters
    ----------
    result : Result
        What is known so far.
    seed : int
        The plan follows from it, whatever `workers` is.
    models : sequence of str, optional
        Those of the result's to be told apart; all by default.
    composition : array_like or {species: array_like}, optional
        Fractions in (0, 1) of the second species, or of the one named; of more than two species rows of fractions. By
        default 0.1, 0.3, 0.5, 0.7 and 0.9 of the second species.
    field : int or sequence of int, optional
        Of one more image: complete environments (of a nearly square block), or cells along each side. By default the window
        of the image with the median number of environments so far.
    label_error : array_like, shape (species, species), optional
        Row = true species, column = probability of being labelled so; that of the median image by default (where labels
        are soft, the matrix they amount to).
    target_sd : float or {coupling: float}, optional
        Wanted standard deviations (kT), of all couplings or by "MODEL.NAME" or "NAME"; half the present ones by default.
    truth : str or (str, couplings), optional
        A model, at its posterior mean or at the couplings given, that is assumed to be true. By default each model in turn, at draws
        of its posterior, and the average over all by their present weights.
    most : int
        Largest number of images for which the power is predicted.
    experiments : int
        Imagined for each truth and composition; the error of a power p is (p (1 - p) / experiments)^0.5.
    pool : Pool, optional
        Where the chains go; with the result's own by default, so that asking again costs nothing.
    workers : int or Executor
    progress : bool or callable(stage, done, total), optional

    Returns
    -------
    Plan
        Printing it says in words how many images are needed.

    Raises
    ------
    InputError
        If an argument cannot be used, no model has couplings, or the result has nuisance parameters: an image not yet taken
        would bring its own.

    Notes
    -----
    Standard deviations are (S^-1 + n J)^-1 with S the posterior's covariance and J the Fisher information of one image by linear response,
    rim, unseen sites, composition and label errors included, averaged over the posterior. The power is the share of
    imagined experiments, the images so far kept as observed, after which the rule of `compare` leaves one model, the true one. New
    images have exactly the composition asked for in their crystal; what the simulation of a later analysis adds to the errors is not
    in it. Where a couple of images say next to nothing about a coupling, its likelihood is far from normal and the standard
    deviation a rough guide.

    Cost: some 16 chains a coupling at each composition, and the analysis of the experiments: half a minute of one core in all for
    three models of three couplings, each assumed true at five compositions.

    Examples
    --------
    ``print(plan(result, composition=[0.3, 0.5], target_sd={"P1.w1": 0.025}, seed=1))`` after ``result = infer(...)``.
    """
    import numpyro

    numpyro.enable_x64()
    chosen = _chosen(result, models)
    rungs, report = ladder(most), reporter(progress)
    if experiments < _LEAST:
        raise InputError(f"experiments {experiments} given; expected at least {_LEAST}")
    couplings = [f"{name}.{c}" for name in chosen for c in result[name].model.names]
    present = np.concatenate([judged(result[name]).sd for name in chosen])
    targets = _targets(target_sd, couplings, present)
    labels, fractions, species = _grid(composition, result.statistic.environments.species)
    window = field_window(result, field)
    observations = [prospective(result, window, x, label_error) for x in fractions]
    truths = _truths(result, chosen, truth, experiments, seed)
    beliefs = [Belief(f.model, judged(f).mean, judged(f).cov, judged(f).flat) for f in (result[n] for n in chosen) if f.model.terms]
    fixed = [t.couplings[:1] @ result.emulator.embed(result[t.model].model) for t in truths if truth is not None]
    places = np.concatenate([*fixed, np.zeros((0, len(result.emulator.names)))])
    if pool is None:
        pool = result.simulated.pool if result.simulated is not None else Pool()
    found = simulated(result, observations, beliefs, places, seed=seed, pool=pool, workers=workers, report=report)
    told = truths if len(chosen) > 1 else []

    def analyse(i: int) -> _Analysed:
        return _analyse(result, found[i], f"x = {at_x(labels[i])}", (chosen, beliefs), told, rungs, seed)

    each, threads = [], workers if isinstance(workers, int) else 1
    for i, part in enumerate(side_by_side(analyse, range(len(found)), threads)):
        each.append(part)
        report("plan", i + 1, len(found))
    precisions = {(name, i): p for i, part in enumerate(each) for name, p in part.precisions.items()}
    power, notes = np.stack([part.power for part in each], axis=2), [note for part in each for note in part.notes]
    dataset = _dataset(result, chosen, couplings, present, (labels, fractions, species), rungs, observations[0].n, precisions, found)
    dataset = dataset.merge(_powers(power, told, labels, rungs))
    dataset.attrs |= {
        "seed": seed, "models": chosen, "environments": observations[0].n, "experiments": experiments, "versions": str(versions()),
        "label_error": observations[0].label_error.tolist(), "statistic": result.statistic.hash, "notes": notes,
    }  # fmt: skip
    return Plan(dataset, precisions, targets, tuple(notes), _words(truths, truth is not None, result))


class _Analysed(NamedTuple):
    """One composition: precisions by model, power (4, truths, rungs) as `Power` and its error have it, and notes."""

    precisions: dict[str, Precision]
    power: Floats
    notes: list[str]


def _analyse(
    result: Result,
    prospect: Prospect,
    where: str,
    candidates: tuple[Sequence[str], Sequence[Belief]],
    truths: Sequence[Truth],
    rungs: Sequence[int],
    seed: int,
) -> _Analysed:
    (chosen, beliefs), precisions = candidates, {}
    notes, power = [], np.full((4, len(truths), len(rungs)), np.nan)
    if not prospect.settled:
        notes.append(f"{where}: chains do not equilibrate there; it is not recommended.")
    try:
        for b in beliefs:
            precisions[b.model.name] = Precision.of(result[b.model.name], prospect)
        bench = Bench.build(result, prospect, beliefs, chosen)
    except CheckError as thin:
        return _Analysed(precisions, power, [*notes, f"{where}: no prediction for all models ({thin})."])
    rough = [n for n in rungs if bench.error(n) > _ROUGH]
    if truths and rough:
        notes.append(f"{where}: from {rough[0]} images on the power is rough, for log likelihoods are known to {_ROUGH:g} only.")
    for j, t in enumerate(truths):
        p = bench.power(t, rungs, _generator(seed, 1, f"{where} {t.name}"))
        n = len(t.couplings)
        power[:, j] = p.right, np.sqrt((p.right * (1 - p.right) + 1 / n) / n), p.wrong, p.inside  # no error of 0 where all decide
        if p.inside.min() < _INSIDE:
            share = f"in {1 - p.inside.min():.0%} of the experiments a posterior leaves the region that the images so far allow"
            notes.append(f"{where}, {t.name} true: {share}; the power there is a guess.")
    return _Analysed(precisions, power, notes)


def ladder(most: int) -> list[int]:
    """Numbers of images for which the power is predicted: none, then rising by about two fifths.

    Examples
    --------
    >>> ladder(16)
    [0, 1, 2, 3, 4, 6, 8, 11, 16]
    """
    if int(most) != most or most < 1:
        raise InputError(f"most {most} given; expected a whole number of images, at least 1")
    rungs = {round(2 ** (i / 2)) for i in range(64)}
    return [0, *sorted({n for n in rungs if n < most} | {int(most)})]


# ---------------------------------------------------------------------- what was asked for


def _chosen(result: Result, models: Sequence[str] | None) -> list[str]:
    names = list(result.fits) if models is None else list(dict.fromkeys([models] if isinstance(models, str) else models))
    with_terms = [n for n in names if result[n].model.terms]
    if not with_terms:
        raise InputError(f"models {listed(names)} have no couplings: there is nothing to predict; expected at least one with a term")
    for n in with_terms:
        if not result[n].parameters.shared:
            extra = [p for p in result[n].parameters.names if p not in result[n].model.names] or ["temperatures"]
            raise InputError(
                f"model {n} has nuisance parameters ({listed(extra)}), which an image not yet taken would have too, unknown; plan with a "
                "result of the same images without Nuisances"
            )
    return names


def _targets(target: float | Mapping[str, float] | None, couplings: Sequence[str], present: Floats) -> dict[str, float]:
    found = dict(zip(couplings, (present / 2).tolist(), strict=True))
    asked = target if isinstance(target, Mapping) else dict.fromkeys(couplings, target) if target is not None else {}
    for key, value in asked.items():
        meant = [c for c in couplings if key in (c, c.split(".", 1)[1])]
        if not meant:
            raise InputError(f"target_sd names coupling {key!r}; expected some of {listed(couplings)}")
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"target_sd of {key} is {value}; expected a number above 0, in kT")
        found |= dict.fromkeys(meant, float(value))
    return found


def _grid(given: ArrayLike | Mapping[str, ArrayLike] | None, species: tuple[str, ...]) -> tuple[list[Any], Floats, str]:
    """Labels of the compositions, their fractions (g, species), and whose fraction the labels are."""
    if len(species) == 2:
        given = GRID if given is None else given
        given = {s: np.atleast_1d(np.asarray(v)) for s, v in given.items()} if isinstance(given, Mapping) else np.atleast_1d(given)
        varied, x = axis_of("composition", given, species)
        fractions = np.column_stack([1 - x, x]) if varied == 1 else np.column_stack([x, 1 - x])
        return x.tolist(), fractions, species[varied]
    rows = np.full((1, len(species)), 1 / len(species)) if given is None else np.atleast_2d(np.asarray(given, dtype=float))
    if rows.shape[1] != len(species) or not ((rows > 0).all() and np.allclose(rows.sum(axis=1), 1)):
        raise InputError(f"composition {rows.tolist()} given; expected rows of {len(species)} fractions above 0 that sum to 1")
    return [" ".join(f"{s} {x:.4g}" for s, x in zip(species, row, strict=True)) for row in rows], rows, ", ".join(species)


def _truths(result: Result, chosen: Sequence[str], truth: Assumed | None, experiments: int, seed: int) -> list[Truth]:
    if truth is not None:
        name, given = (truth, None) if isinstance(truth, str) else truth
        if name not in chosen:
            raise InputError(f"truth is of model {name!r}; expected one of {listed(chosen)}")
        model = result[name].model
        w = judged(result[name]).mean if given is None else model.vector(given)
        if model.terms:
            _near(result, name, np.asarray(w, dtype=float))
        return [Truth(name, name, np.tile(w, (experiments, 1)))]
    weights = evidence_weights(result)
    total, found = sum(weights[n] for n in chosen), []
    for name in chosen:
        flat = judged(result[name]).flat
        picks = _generator(seed, 2, name).integers(len(flat), size=experiments)
        found.append(Truth(name, name, flat[picks], weights[name] / total))
    return found


def _near(result: Result, name: str, w: Floats) -> None:
    """Refuse couplings that the images so far exclude: nothing is known of their likelihood there."""
    p = judged(result[name])
    away = float(np.sqrt((w - p.mean) @ np.linalg.solve(p.cov, w - p.mean)))
    if away > 4.0:
        raise InputError(
            f"truth of model {name} lies {away:.1f} standard deviations from its posterior mean {p.mean.round(3).tolist()}; expected "
            "couplings that the images so far allow, within 4"
        )


def _generator(seed: int, purpose: int, words: str) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, 43, purpose, *np.frombuffer(words.encode(), np.uint8)]))


# ---------------------------------------------------------------------- what comes out


def _dataset(
    result: Result,
    chosen: Sequence[str],
    couplings: Sequence[str],
    present: Floats,
    grid: tuple[list[Any], Floats, str],
    rungs: Sequence[int],
    environments: int,
    precisions: Mapping[tuple[str, int], Precision],
    prospects: Sequence[Any],
) -> xr.Dataset:
    labels, fractions, species = grid
    shape = (len(couplings), len(labels), len(rungs))
    columns = {name: np.full(shape, np.nan) for name in ("sd", "sd_low", "sd_high", "sd_error", "sd_alone")}
    single, past = np.full((2, *shape[:2]), np.nan), [learned(result, result[n]) for n in chosen if result[n].model.terms]
    for (model, i), p in precisions.items():
        rows = [a for a, c in enumerate(couplings) if c.split(".", 1)[0] == model]
        single[:, rows, i] = p.single()
        for j, n in enumerate(rungs):
            for name, value in zip(columns, (*p.predicted(n), p.predicted(n, alone=True).sd), strict=True):
                columns[name][rows, i, j] = value
    kt = {"units": "kT at formation"}
    words = {
        "sd": "predicted standard deviation", "sd_low": "its 5 % quantile over the posterior", "sd_high": "its 95 % quantile",
        "sd_error": "its error from the simulation", "sd_alone": "standard deviation predicted from such images alone",
    }  # fmt: skip
    axes, law = ("coupling", "composition", "images"), np.prod(fractions, axis=1) ** 2 * len(result.statistic.environments.species) ** 4
    variables: dict[str, Any] = {name: (axes, columns[name], {**kt, "long_name": words[name]}) for name in columns}
    variables |= {
        "information": (axes[:2], single[0], {"units": "1 / kT^2", "long_name": "information of one image on a coupling, others unknown"}),
        "information_error": (axes[:2], single[1], {"units": "1 / kT^2", "long_name": "its error from the simulation"}),
        "settled": ("composition", [p.settled for p in prospects], {"long_name": "chains equilibrate"}),
        "environments": ("images", [n * environments for n in rungs], {"units": "1", "long_name": "environments of the images added"}),
        "present_sd": ("coupling", present, {**kt, "long_name": "standard deviation of the posterior so far"}),
        "past_environments": ("image", np.cumsum([o.n for o in result.observations]), {"units": "1", "long_name": "environments so far"}),
        "past_sd": (
            ("coupling", "image"), np.concatenate([sd.T for sd, _ in past]), {**kt, "long_name": "by information, after each image"},
        ),
        "past_information": (("coupling", "image"), np.concatenate([i.T for _, i in past]), {"units": "1 / kT^2"}),
    }  # fmt: skip
    if fractions.shape[1] == 2:  # near randomness, with two species
        variables["law"] = ("composition", law, {"units": "1", "long_name": "16 x^2 (1 - x)^2"})
    coordinates = {
        "coupling": list(couplings), "image": [o.name for o in result.observations],
        "composition": ("composition", labels, {"units": "1", "long_name": f"fraction of {species}"}),
        "images": ("images", list(rungs), {"units": "1", "long_name": "more images"}),
        "model": ("coupling", [c.split(".", 1)[0] for c in couplings]),
    }  # fmt: skip
    return xr.Dataset(variables, coordinates)


def _powers(power: Floats, truths: Sequence[Truth], labels: Sequence[Any], rungs: Sequence[int]) -> xr.Dataset:
    names, columns = [t.name for t in truths], list(power)
    if len(truths) > 1:  # the average over the truths, whose experiments are independent
        share = np.array([t.share for t in truths])[:, None, None]
        mean = [(share * part).sum(axis=0) for part in power]
        mean[1] = np.sqrt((share**2 * power[1] ** 2).sum(axis=0))
        names, columns = [*names, AVERAGE], [np.concatenate([part, m[None]]) for part, m in zip(power, mean, strict=True)]
    words = (
        ("power", "probability that the true model alone remains"), ("power_error", "its error, of the experiments imagined"),
        ("wrong", "probability that another model alone remains"), ("inside", "share of experiments inside what is known"),
    )  # fmt: skip
    axes = ("truth", "composition", "images")
    empty = np.zeros((0, len(labels), len(rungs)))
    parts = {n: (axes, c if names else empty, {"units": "1", "long_name": t}) for (n, t), c in zip(words, columns, strict=True)}
    return xr.Dataset(parts, {"truth": np.array(names, dtype=object), "composition": list(labels), "images": list(rungs)})


def _words(truths: Sequence[Truth], fixed: bool, result: Result) -> dict[str, str]:
    found = {AVERAGE: "whichever is true, by their present weights"}
    for t in truths:
        names = result[t.model].model.names
        at = ", ".join(f"{n} = {w:.2f}" for n, w in zip(names, t.couplings[0], strict=True))
        found[t.name] = f"if {t.model}{f' ({at})' if fixed and at else ''} is true"
    return found
