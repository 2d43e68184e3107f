"""Columns: position and intensity of every atomic column of an image, with standard errors.

The image is a smooth background plus one Gaussian a column, all fitted at once: neighbours overlap, so
a column fitted alone takes part of its neighbours' light, and one with a background of its own trades
light with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import cg

from .ground import KNOTS, Ground
from .noise import standard_errors
from .normal import WIDTH, State, normal_equations
from .profiles import PATCH, subtract

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

_LEASH = 0.08  # spacings: how far a column is expected from its seed; holds those too faint to hold themselves
_STEPS, _DONE = 12, 1e-5  # steps at most; done when one lowers the sum of squares by less than that


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of an image.

    Attributes
    ----------
    positions, position_errors : ndarray, shape (n, 2)
        x, y in pixels and their standard errors.
    intensities, intensity_errors : ndarray, shape (n,)
        Height above the local background, in the image's unit.
    background : ndarray, shape (n,)
        Fitted background under each column.
    kinds : ndarray of int, shape (n,)
    width : float
        Standard deviation of the profile, pixels: that of the probe, the same for all columns.
    residual : ndarray, shape (rows, columns)
        Image minus fit; nan where nothing was recorded.
    ground : ndarray, shape (rows, columns)
        Fitted background.
    misfit : ndarray, shape (n,)
        Root mean square of the residual under each column over that expected from the noise.
    """

    positions: Floats
    position_errors: Floats
    intensities: Floats
    intensity_errors: Floats
    background: Floats
    kinds: Integers
    width: float
    residual: Floats
    ground: Floats
    misfit: Floats


def fit_columns(data: Floats, seeds: Floats, kinds: Integers, spacing: float) -> Columns:
    """Fit all columns of an image at once.

    Parameters
    ----------
    data : ndarray, shape (rows, columns)
        nan where nothing was recorded.
    seeds : ndarray, shape (n, 2)
        First guesses of the positions, x, y in pixels; columns just outside the image may be among them.
    kinds : ndarray of int, shape (n,)
        Columns of one kind are of about the same intensity.
    spacing : float
        Nearest-neighbour distance in pixels.

    Returns
    -------
    Columns

    Examples
    --------
    >>> y, x = np.mgrid[:60, :60]
    >>> bump = 5 * np.exp(-((x - 30.3) ** 2 + (y - 29.6) ** 2) / (2 * 3.5**2)) + 2
    >>> image = bump + np.random.default_rng(1).normal(0, 0.1, bump.shape)
    >>> fit = fit_columns(image, np.array([[30.0, 30.0]]), np.array([0]), 20.0)
    >>> bool(np.all(np.abs(fit.positions - [30.3, 29.6]) < 4 * fit.position_errors)), fit.positions.round(1).tolist()
    (True, [[30.3, 29.6]])
    """
    there = np.isfinite(data)
    image = np.where(there, data, 0.0)
    ground = Ground(data.shape, KNOTS * spacing, there)
    level = np.full(ground.n, np.quantile(data[there], 0.1))
    at = np.round(np.clip(seeds, 0, np.array(data.shape[::-1]) - 1)).astype(np.int64)
    top = np.where(there[at[:, 1], at[:, 0]], image[at[:, 1], at[:, 0]], np.quantile(data[there], 0.99))  # clipped columns are bright
    amplitude = np.maximum(top - level[0], 0.0)
    state = State(seeds.astype(float), amplitude, np.full(1, WIDTH[0] * spacing), level)
    size = max(float(np.median(amplitude)), 1e-12)
    usual = np.array([np.median(amplitude[kinds == k]) if (kinds == k).any() else 0.0 for k in range(int(kinds.max()) + 1)])[kinds]
    profile = np.zeros(len(seeds), dtype=np.int64)
    residual = _residual(image, there, state, profile, ground)
    noise = 1.48 * float(np.median(np.abs(residual[there])))
    damping = 1e-4
    for _ in range(_STEPS):
        # a faint column keeps to its seed, one mostly outside the image to the usual amplitude: weak priors in units of the noise
        leash, hold = (noise / (_LEASH * spacing)) ** 2, (noise / size) ** 2
        matrix, gradient = normal_equations(residual, there, state, profile, ground, 0.05 * size)
        pull = np.concatenate(
            [hold * (usual - state.amplitude), *(leash * (seeds - state.position)).T, np.zeros(len(gradient) - 3 * len(seeds))]
        )
        prior = np.concatenate([np.full(len(seeds), hold), np.full(2 * len(seeds), leash), np.zeros(len(gradient) - 3 * len(seeds))])
        cost = _cost(residual, state, seeds, usual, leash, hold)
        diagonal = matrix.diagonal() + prior
        while True:
            scale = 1 / np.sqrt(diagonal * (1 + damping) + 1e-300)
            scaled = sparse.diags_array(scale) @ matrix @ sparse.diags_array(scale) + sparse.diags_array(
                scale**2 * (prior + damping * diagonal)
            )
            trial = state.moved(scale * cg(scaled, scale * (gradient + pull), rtol=1e-2, maxiter=300)[0], seeds, spacing)
            tried = _residual(image, there, trial, profile, ground)
            if _cost(tried, trial, seeds, usual, leash, hold) <= cost or damping > 1e3:
                break
            damping = max(10 * damping, 1e-2)
        state, residual, damping = trial, tried, damping / 10
        noise = 1.48 * float(np.median(np.abs(residual[there])))
        if cost - _cost(residual, state, seeds, usual, leash, hold) < _DONE * cost:
            break
    here = ground.at(state.level, state.position)
    errors, misfit = standard_errors(residual, image - residual, there, here, state, profile, spacing, 0.05 * size)
    residual[~there] = np.nan
    field = ground.field(state.level)
    width = float(state.widths[0])
    return Columns(state.position, errors[:, 1:], state.amplitude, errors[:, 0], here, kinds, width, residual, field, misfit)


def _residual(image: Floats, there: Truths, state: State, kinds: Integers, ground: Ground) -> Floats:
    residual = image - ground.field(state.level)
    subtract(residual, state.position, state.amplitude, state.widths, kinds, PATCH)
    residual[~there] = 0.0
    return residual


def _cost(residual: Floats, state: State, seeds: Floats, usual: Floats, leash: float, hold: float) -> float:
    return float((residual**2).sum() + leash * ((state.position - seeds) ** 2).sum() + hold * ((state.amplitude - usual) ** 2).sum())
