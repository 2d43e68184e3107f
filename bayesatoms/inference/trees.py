"""Results in ArviZ's shape: one xarray DataTree a model, every variable with units and a long name."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..files import write_dataset
from .posterior import Fit, Posterior, Result

_PACKAGES = ("bayesatoms", "numpy", "scipy", "numba", "jax", "numpyro", "arviz-stats", "xarray")
_PREDICTIVE = 100  # posterior-predictive images a chain


def versions() -> dict[str, str]:
    """Versions of what made a result."""
    import platform

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a source tree
            found[package] = "source"
    return found


def provenance(result: Result) -> dict[str, str]:
    """Seed, versions, settings and input hashes, as netCDF attributes."""
    sources = {o.name: dict(o.source) for o in result.observations}
    return {
        "seed": str(result.seed),
        "likelihood": result.likelihood,
        "statistic": json.dumps({"names": result.statistic.names, "dropped": result.statistic.dropped, "hash": result.statistic.hash}),
        "versions": json.dumps(versions(), sort_keys=True),
        "settings": json.dumps(asdict(result.settings), sort_keys=True),
        "inputs": json.dumps({**sources, **result.sources}, sort_keys=True, default=str),
    }


def tree(result: Result, name: str) -> xr.DataTree:
    """The tree of one model.

    Groups: posterior, one for each other likelihood (posterior_independent), sample_stats, log_likelihood,
    posterior_predictive, prior, observed_data, constant_data.

    Parameters
    ----------
    result : Result
    name : str
        Of the model. The random alloy has no posterior variables; its likelihood and predictive are there.

    Returns
    -------
    xarray.DataTree
    """
    fit = result[name]
    groups = {
        "posterior": _draws(fit, fit.posterior),
        **{f"posterior_{p.kind}": _draws(fit, p) for p in fit.posteriors.values() if p.kind != fit.likelihood},
        "sample_stats": _stats(fit.posterior),
        "log_likelihood": _log_likelihood(result, fit.posterior),
        "posterior_predictive": _predictive(result, name),
        "prior": _prior(result, name),
        "observed_data": _observed(result),
        "constant_data": _constant(result, name),
    }
    found = xr.DataTree.from_dict(groups)
    found.attrs = {"model": name, "couplings": fit.parameters.unit, "creation_library": "bayesatoms", **provenance(result)}
    return found


def save(result: Result, name: str, path: str | Path) -> Path:
    """Write a model's tree as netCDF, whole or not at all."""
    return write_dataset(tree(result, name), path)


def _variable(dims: tuple[str, ...], values: Any, long_name: str, units: str = "1") -> xr.Variable:
    return xr.Variable(dims, values, {"long_name": long_name, "units": units})


def _coordinates(posterior: Posterior) -> dict[str, NDArray]:
    chains, draws = posterior.draws.shape[:2]
    return {"chain": np.arange(chains), "draw": np.arange(draws)}


def _draws(fit: Fit, posterior: Posterior) -> xr.Dataset:
    values = {
        n: _variable(("chain", "draw"), posterior.draws[..., a], f"coupling {n}, {posterior.kind} likelihood", fit.parameters.unit)
        for a, n in enumerate(posterior.names)
    }
    for n, drawn in posterior.nuisances.items():
        values[n] = _variable(("chain", "draw"), drawn, f"nuisance {n}, {posterior.kind} likelihood", fit.parameters.unit_of(n))
    return xr.Dataset(values, coords=_coordinates(posterior))


def _stats(posterior: Posterior) -> xr.Dataset:
    named = {"accept_prob": "acceptance_rate", "num_steps": "n_steps"}
    values = {named.get(k, k): _variable(("chain", "draw"), v, f"NUTS {named.get(k, k)}") for k, v in posterior.stats.items()}
    return xr.Dataset(values, coords=_coordinates(posterior))


def _log_likelihood(result: Result, posterior: Posterior) -> xr.Dataset:
    images = [o.name for o in result.observations]
    value = _variable(("chain", "draw", "image"), posterior.log_likelihood, f"log likelihood of an image, {posterior.kind}")
    return xr.Dataset({"images": value}, coords={**_coordinates(posterior), "image": images})


def _predictive(result: Result, name: str) -> xr.Dataset:
    """Class counts of images simulated at posterior draws, straight from the pool's snapshots."""
    fit = result[name]
    stride = max(1, fit.posterior.draws.shape[1] // _PREDICTIVE)
    posterior, embed = fit.posterior, result.emulator.embed(fit.model)
    draws = np.concatenate([posterior.draws, *(v[..., None] for v in posterior.nuisances.values())], axis=-1)[:, ::stride]
    flat = draws.reshape(draws.shape[0] * draws.shape[1], -1)
    rng = np.random.default_rng(np.random.SeedSequence([result.seed, 3, *np.frombuffer(name.encode(), np.uint8)]))
    columns = []
    for o in result.observations:
        image, union, picks = result.emulator.images[o.name], fit.couplings_of(o, flat) @ embed, []
        for block in np.array_split(union, max(1, len(union) // 32)):
            cumulative = np.cumsum(image.reweighting.weights(block), axis=1)
            picks.extend(np.searchsorted(row, rng.random() * row[-1]) for row in cumulative)
        columns.append(image.counts[picks])
    values = np.stack(columns, axis=1).reshape(*draws.shape[:2], len(columns), -1)
    coords = {"chain": np.arange(draws.shape[0]), "draw": np.arange(draws.shape[1]) * stride, **_labels(result)}
    return xr.Dataset(
        {"counts": _variable(("chain", "draw", "image", "environment"), values, "environment counts of a simulated image")}, coords
    )


def _prior(result: Result, name: str, n: int = 1000) -> xr.Dataset:
    import jax

    parameters, values = result[name].parameters, {}
    for a, coupling in enumerate(parameters.names):
        key = jax.random.fold_in(jax.random.key(result.seed), a)
        draws = np.asarray(parameters.prior(coupling).sample(key, (1, n)))
        values[coupling] = _variable(("chain", "draw"), draws, f"prior of {coupling}", parameters.unit_of(coupling))
    return xr.Dataset(values, coords={"chain": [0], "draw": np.arange(n)})


def _labels(result: Result) -> dict[str, list[str]]:
    return {"image": [o.name for o in result.observations], "environment": list(result.statistic.environments.names)}


def _observed(result: Result) -> xr.Dataset:
    counts = np.array([o.counts for o in result.observations])
    statistic = np.array([result.statistic(o.counts) for o in result.observations])
    values = {
        "counts": _variable(("image", "environment"), counts, "environment counts"),
        "statistic": _variable(("image", "statistic_row"), statistic, "declared statistic", "per environment"),
    }
    return xr.Dataset(values, coords={**_labels(result), "statistic_row": list(result.statistic.names)})


def _constant(result: Result, name: str) -> xr.Dataset:
    fit, environments = result[name], result.statistic.environments
    species = list(environments.species)
    values = {
        "sites": _variable(("image",), [o.n for o in result.observations], "complete environments"),
        "composition": _variable(
            ("image", "species"), [o.true_composition for o in result.observations], "composition, label errors undone"
        ),
        "composition_sd": _variable(
            ("image", "species"), [o.composition_sd for o in result.observations], "standard deviation of the composition"
        ),
        "label_error": _variable(
            ("image", "species", "seen_species"), [o.label_error for o in result.observations], "probability of a label given the species"
        ),
        "contrasts": _variable(("statistic_row", "environment"), result.statistic.contrasts, "statistic per environment class"),
        "multiplicity": _variable(("environment",), environments.multiplicity, "raw environments of a class"),
        "crb_sd": _variable(("coupling",), fit.crb_sd, "Cramer-Rao bound of the standard deviation", fit.parameters.unit),
    }
    coords = {
        **_labels(result),
        "species": species,
        "seen_species": species,
        "statistic_row": list(result.statistic.names),
        "coupling": list(fit.model.names),
    }
    return xr.Dataset(values, coords=coords)
