"""Calibration: can these posteriors be trusted? Ask `calibrate`; keep the answer with `save`.

Held-out chains of the pool tell at no cost whether the analysis is right near the user's own couplings; fresh
simulations tell whether it is over the whole prior (see docs/calibration.md for which to use when).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import InputError
from ..files import write_dataset
from ..montecarlo.executors import Executor
from ..montecarlo.pool import Pool
from ..progress import Progress
from .fresh import Effort, calibrate_prior
from .heldout import DATASETS, FOLDS, held_out
from .posterior import Result
from .ranked import Calibration, Ranked
from .trees import versions

SOURCES = ("held-out", "prior")
_KT = "kT at formation"
_LONG = {
    "truth": ("coupling that the synthetic images were simulated with", _KT),
    "mean": ("posterior mean", _KT),
    "sd": ("posterior standard deviation", _KT),
    "bound": ("least standard deviation there can be: prior and Fisher information together", _KT),
    "pit": ("posterior mass below the truth", "1"),
    "effective": ("effective number of points under the posterior", "1"),
}


def calibrate(
    result: Result,
    *,
    source: str = "held-out",
    datasets: int | None = None,
    seed: int | None = None,
    folds: int = FOLDS,
    effort: Effort | None = None,
    pool: Pool | None = None,
    out: str | Path | None = None,
    workers: int | Executor = 1,
    progress: bool | Progress | None = None,
) -> Calibration:
    """Check the posteriors of a result against synthetic data sets whose couplings are known.

    For every coupling of every model, for the log likelihood and for each likelihood: ranks of the truth with their
    p-value, coverage of 50 and 90 % intervals, and how sharp the posteriors are beside the least there can be.

    Parameters
    ----------
    result : Result
        As `infer` returns it.
    source : {"held-out", "prior"}
        Chains of the result's own pool, whole ones left out in turn (seconds, nothing is simulated); or new simulations
        with couplings drawn from the prior (minutes).
    datasets : int, optional
        Synthetic data sets of each model; 1000 by default from the prior, 300 held out.
    seed : int, optional
        The result's by default.
    folds : int
        Parts that the chains are divided into (held-out).
    effort : Effort, optional
        How much to simulate (prior).
    pool, out, workers, progress
        As for `infer` (prior).

    Returns
    -------
    Calibration
        ``print`` it, plot it with :func:`bayesatoms.plots.rank_bands`, keep it with :func:`save`.

    Raises
    ------
    InputError
        If the source is unknown or there are no data sets to make.
    CheckError
        If the pool has too few chains for any to be left out.

    Examples
    --------
    ``print(calibrate(result))`` after ``result = infer(models, images, seed=1)``.
    """
    if source not in SOURCES:
        raise InputError(f"source {source!r} is unknown; expected one of {', '.join(SOURCES)}")
    if datasets is not None and datasets < 1:
        raise InputError(f"{datasets} data sets asked for; expected at least one, and some hundred to say anything")
    seed = result.seed if seed is None else seed
    if source == "held-out":
        return held_out(result, datasets=datasets or DATASETS, seed=seed, folds=folds, prior=True)
    kinds = tuple(dict.fromkeys(kind for fit in result.fits.values() for kind in fit.posteriors))
    return calibrate_prior(
        [fit.model for fit in result.fits.values()], list(result.observations), seed=seed, datasets=datasets or 1000, likelihoods=kinds,
        statistic=result.statistic, pool=pool, out=out, effort=effort, workers=workers, progress=progress,
    )  # fmt: skip


def tree(calibration: Calibration) -> xr.DataTree:
    """One group a model and likelihood ("P1/calibrated"), every variable with units and a long name; seed and versions as attributes."""
    groups = {f"{r.model}/{r.kind}": _dataset(r) for r in calibration.rows}
    found = xr.DataTree.from_dict(groups)
    found.attrs = {
        "source": calibration.source, "scope": calibration.scope, "seed": str(calibration.seed),
        "settings": json.dumps(dict(calibration.settings), sort_keys=True), "versions": json.dumps(versions(), sort_keys=True),
        "rows": json.dumps([[r.model, r.kind] for r in calibration.rows]), "verdict": calibration.verdict,
        "creation_library": "bayesatoms",
    }  # fmt: skip
    return found


def _dataset(r: Ranked) -> xr.Dataset:
    dims: dict[str, tuple[str, ...]] = dict.fromkeys(("truth", "mean", "sd", "bound"), ("dataset", "coupling"))
    dims |= {"pit": ("dataset", "quantity"), "effective": ("dataset",)}
    values = {n: xr.Variable(d, getattr(r, n), {"long_name": _LONG[n][0], "units": _LONG[n][1]}) for n, d in dims.items()}
    flags = np.array(list(r.flags.values()), dtype=np.int8).reshape(len(r.flags), len(r.truth))
    values["flags"] = xr.Variable(("flag", "dataset"), flags, {"long_name": "left out, judged by the truth alone", "units": "1"})
    coords = {"coupling": list(r.names), "quantity": list(r.quantities), "flag": np.array(list(r.flags), dtype="U")}
    return xr.Dataset(values, coords=coords)


def save(calibration: Calibration, path: str | Path) -> Path:
    """Write a calibration as netCDF, whole or not at all.

    Examples
    --------
    >>> import tempfile
    >>> row = Ranked("P1", "calibrated", ("w1",), *np.zeros((3, 4, 1)), np.full((4, 2), 0.5), np.ones((4, 1)), np.ones(4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load(save(Calibration((row,), "held-out", "local", 3), Path(folder, "calibration.nc")))
    >>> again.seed, again["P1", "calibrated"].pit.shape
    (3, (4, 2))
    """
    return write_dataset(tree(calibration), path)


def load(path: str | Path) -> Calibration:
    """Read what :func:`save` wrote.

    Raises
    ------
    InputError
        If there is no such file or it is none of ours.
    """
    try:
        with xr.open_datatree(path, engine="h5netcdf") as found:
            rows = tuple(_row(found[f"{model}/{kind}"].to_dataset().load(), model, kind) for model, kind in json.loads(found.attrs["rows"]))
            a: dict[str, Any] = dict(found.attrs)
            return Calibration(rows, a["source"], a["scope"], int(a["seed"]), json.loads(a["settings"]))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no calibration that can be read ({error}); expected a file that `calibrate` wrote") from None


def _row(d: xr.Dataset, model: str, kind: str) -> Ranked:
    values = {name: d[name].to_numpy() for name in ("truth", "mean", "sd", "pit", "bound", "effective")}
    flags = {str(name): d["flags"].to_numpy()[i].astype(bool) for i, name in enumerate(d["flag"].to_numpy())}
    return Ranked(model, kind, tuple(map(str, d["coupling"].to_numpy())), **values, flags=flags)
