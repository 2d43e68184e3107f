"""Densities of one posterior: log likelihoods and log prior at many parameters, and draws from their product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckError
from ..hamiltonian import Hamiltonian
from ..observation import Observation
from .emulator import Emulator
from .likelihood import exact_log_density, independent_log_density
from .parameters import Parameters
from .quasi import from_origin
from .smooth import SmoothEmulator, log_level

Coordinates = NDArray[np.float64] | Mapping[str, NDArray[np.float64]]
SMOOTH_BAR = 0.25  # rms error of a smooth emulator's log likelihood over the posterior


def scoring(
    emulator: Emulator, model: Hamiltonian | Parameters, observation: Observation, values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fisher information (p, p) and score (p,) of one image at a model's couplings or parameters, by linear response.

    dm/dw = -Cov(t, F); the image's own coordinates (composition, label errors) are taken where they are.
    """
    image = emulator.images[observation.name]
    if isinstance(model, Parameters):
        embed = emulator.embed(model.model)
        union = model.of_image(observation.name, values)[: len(embed)] @ embed
        slopes = model.slope(observation.name, values, widths(model))[: len(embed)]
    else:
        embed = emulator.embed(model)
        union, slopes = values @ embed, np.eye(len(values))
    moments, weights = image.moments(union), image.reweighting.weights(union)
    apart = image.table[:, : len(image.offset)] + image.offset - moments.mean
    slope = -(apart * weights[:, None]).T @ image.reweighting.features @ embed.T @ slopes
    given = image.n_composition
    # whitening by the Cholesky factor and dropping its leading rows is conditioning on the composition
    jacobian = np.linalg.solve(moments.lower, slope)[given:]
    apart = np.linalg.solve(moments.lower, emulator.statistic(observation) - moments.mean)[given:]
    return jacobian.T @ jacobian, jacobian.T @ apart


def emulator_error(
    emulator: Emulator, smooth: SmoothEmulator, observations: Sequence[Observation], centre: NDArray[np.float64], cov: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far the pool's Monte Carlo error may have moved the posterior mean (p,), in posterior standard deviations.

    The predicted mean of an image's statistic is off by its own covariance over the n effective records there,
    which shifts the estimate by cov H cov / n, H its Fisher information; images of one box are off together.
    """
    embed, total = emulator.embed(smooth.model), np.zeros_like(cov)
    known = smooth.support(centre[None])
    for o in observations:
        image = emulator.images[o.name]
        union = smooth.parameters.of_image(o.name, centre)[: len(embed)] @ embed
        records = image.reweighting.effective_records(union) if known is None else known[0] * image.reweighting.records.mean()
        total += scoring(emulator, smooth.parameters, o, centre)[0] * image.shared / max(float(records), 1e-9)
    return np.sqrt(np.diag(cov @ total @ cov) / np.diag(cov))


def widths(parameters: Parameters) -> NDArray[np.float64]:
    """Standard deviation of each parameter's prior, at most 1 for those that are couplings; (p,)."""
    found = np.array([float(np.sqrt(np.asarray(parameters.prior(n).variance))) for n in parameters.names])
    ours = np.arange(len(found)) < len(parameters.model.names)
    return np.where(ours | ~np.isfinite(found), 1.0, found)


def log_likelihoods(
    smooth: SmoothEmulator, observations: Sequence[Observation], kind: str, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log likelihood of each image at many parameters (m, p) of the smooth emulator's model; shape (m, images)."""
    columns = []
    for o in observations:
        if kind == "exact":
            columns.append(exact_log_density(smooth.features(o), *smooth.energies(o.name, values)))
            continue
        if kind == "calibrated":
            columns.append(smooth.log_calibrated(o, values))
        else:
            columns.append(independent_log_density(o.histogram, smooth.factors([o.name], values).histogram[0], o.n))
    return np.stack(columns, axis=1)


def pool_log_likelihoods(emulator: Emulator, observations: Sequence[Observation], kind: str, union: Coordinates) -> NDArray[np.float64]:
    """The same straight from the pool, at its coordinates (m, q), or those of each image by name; shape (m, images)."""
    columns = []
    for o in observations:
        at = union[o.name] if isinstance(union, Mapping) else union
        if kind == "exact":
            columns.append(exact_log_density(emulator.features(o), at, emulator.images[o.name].log_z(at)))
            continue
        if kind == "calibrated":
            middle = at.mean(axis=0)
            ratio = from_origin(emulator.at(o.name).batch, middle, at, emulator.n_composition(o), near=True)
            columns.append(log_level(emulator, o, middle) + ratio(emulator.statistic(o)))
        else:
            columns.append(independent_log_density(o.histogram, emulator.at(o.name).batch(at)[0].histogram, o.n))
    return np.stack(columns, axis=1)


def smooth_error(
    emulator: Emulator, smooth: SmoothEmulator, observations: Sequence[Observation], kind: str, values: NDArray[np.float64]
) -> float:
    """Rms difference of the log likelihoods of smooth emulator and pool at parameters (m, p), up to a constant."""
    embed = emulator.embed(smooth.model)
    union = {o.name: smooth.parameters.union(o.name, values, embed) for o in observations}
    exact = pool_log_likelihoods(emulator, observations, kind, union).sum(axis=1)
    return float(np.std(exact - log_likelihoods(smooth, observations, kind, values).sum(axis=1)))


def log_prior(model: Hamiltonian | Parameters, values: NDArray[np.float64], scale: float = 1.0) -> NDArray[np.float64]:
    """Log prior density at couplings (m, k) of a model or at its parameters (m, p); shape (m,).

    `scale` widens the prior of every coupling about its mean, or about 0 where it is bounded; nuisances keep theirs.
    """
    total, couplings = np.zeros(len(values)), model.model.names if isinstance(model, Parameters) else model.names
    for a, name in enumerate(model.names):
        prior, widen = model.prior(name), scale if name in couplings else 1.0
        middle = float(prior.mean)
        about = middle if widen != 1 and unbounded(prior) and np.isfinite(middle) else 0.0
        value = about + (values[:, a] - about) / widen
        inside = np.asarray(prior.support(value))
        total += np.where(inside, np.asarray(prior.log_prob(np.where(inside, value, middle))), -np.inf) - np.log(widen)
    return total


def unbounded(prior: Any) -> bool:
    """Whether a prior allows any real number."""
    return bool(np.all(np.asarray(prior.support(np.array([-1e6, -1.0, 0.0, 1.0, 1e6])))))


def explore(
    smooth: SmoothEmulator, observations: Sequence[Observation], kind: str, rng: np.random.Generator, n: int = 3000
) -> NDArray[np.float64]:
    """Equally weighted draws (n, p) of the posterior on a smooth emulator, by adaptive importance sampling with Student-t proposals."""
    centre, root = smooth.centre, 1.3 * smooth.scale
    for _ in range(8):
        k, freedom = len(centre), 6.0
        z = rng.normal(size=(n, k)) / np.sqrt(rng.chisquare(freedom, size=(n, 1)) / freedom)
        w = centre + z @ root.T
        proposal = -(freedom + k) / 2 * np.log1p((z**2).sum(axis=1) / freedom)
        target = log_likelihoods(smooth, observations, kind, w).sum(axis=1) + log_prior(smooth.parameters, w) + smooth.leash(w)
        weight = target - proposal
        if not np.isfinite(weight.max()):
            near = centre.round(3).tolist()
            raise CheckError(f"{smooth.model.name}: no point near {near} is possible under the prior; give a start inside it")
        weight = np.exp(weight - weight.max())
        weight /= weight.sum()
        centre = weight @ w
        apart = w - centre
        cov = (apart * weight[:, None]).T @ apart + 1e-12 * np.eye(k)
        root = np.linalg.cholesky(cov) * 1.2
        if 1 / (weight**2).sum() > 0.5 * n:
            break
    return w[rng.choice(n, size=n, p=weight)]
