"""The smooth emulator of many couplings: a quadratic through the chains' own means and slopes.

In more than three dimensions no pool covers a posterior densely enough to be reweighted everywhere in it.
But every chain knows the mean of the statistic where it ran and, for nothing, its slope along every
coupling, dm/dw = -Cov(t, F): k + 1 numbers a chain, of which a quadratic in k couplings asks for
(k + 1)(k + 2) / 2 in all. The error of what it predicts follows from the regression and is stated in
records, as the pool's support is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckError
from .emulator import Emulator, ImageEmulator

_SPARE = 1.5  # numbers known for each coefficient, at least


class Fitted(NamedTuple):
    """Coefficients (powers, columns) of the mean, the factor's entries and the histogram; (powers,) of ln Z or None.

    `spread` (powers, powers) is the covariance of the coefficients of the mean in units of the statistic's own;
    `misfit` the mean square of the standardised residuals of chains left out, 1 where a quadratic will do.
    """

    mean: NDArray[np.float64]
    entries: NDArray[np.float64]
    histogram: NDArray[np.float64]
    log_z: NDArray[np.float64] | None
    spread: NDArray[np.float64]
    misfit: float


def regress(
    emulator: Emulator,
    name: str,
    own: NDArray[np.float64],
    root: NDArray[np.float64],
    radius: float,
    powers: NDArray[np.int64],
    embed: NDArray[np.float64],
    rng: np.random.Generator,
) -> Fitted:
    """Quadratics in one image's coordinates through the chains of one model, inside `radius` of `own` (c,) whitened by `root` (c, c).

    Raises
    ------
    CheckError
        If the chains inside know too little for the coefficients.
    """
    image, k, c = emulator.images[name], len(embed), len(own)
    couplings = image.reweighting.couplings
    # chains of this model, by their own records alone: then they are independent, whatever else the pool holds
    inside = np.abs(couplings @ (np.eye(len(emulator.names)) - embed.T @ embed)).max(axis=1, initial=0.0) < 1e-9
    chains = np.flatnonzero(inside & (image.reweighting.records >= 2 * len(image.offset) + 2))
    extra = np.zeros((len(chains), c - k))
    if c > k:  # composition and label errors are no couplings: every chain answers for one place among them
        extra = own[k:] + np.sqrt((root[k:] ** 2).sum(axis=1)) * radius * 0.6 * rng.uniform(-1, 1, size=extra.shape)
    unit = np.linalg.solve(root, (np.column_stack([couplings[chains] @ embed.T, extra]) - own).T).T / radius
    near = (unit**2).sum(axis=1) <= 1.0
    chains, unit, extra = chains[near], unit[near], extra[near]
    known = (k + 1) if c == k else 1
    if len(chains) * known < _SPARE * len(powers) or len(chains) < c + 2:
        raise CheckError(f"{len(chains)} chains lie in the region; expected {max(c + 2, int(np.ceil(_SPARE * len(powers) / known)))}")
    several = emulator.at(name)
    moments, records = image.of_chains(chains) if c == k else several.of_chains(chains, extra)
    places = couplings[chains] @ embed.T
    middle = np.argmin((unit**2).sum(axis=1))
    whiten = np.linalg.inv(moments.lower[middle])
    values = (moments.mean - moments.mean[middle]) @ whiten.T
    slopes, rates = _slopes(image, chains, embed, root[:k] * radius)  # (n, c, d), (n, c)
    basis, derivative = monomials(unit, powers), _derivatives(unit, powers)
    # rows: every value, then every slope, each weighted by its own error in units of the statistic's standard deviation
    weights = np.sqrt(records)
    slope_weights = weights[:, None] / np.maximum(rates, 1e-12)
    used = np.arange(c) < (k if c == k else 0)  # with coordinates that are no couplings only values enter
    design = np.concatenate([basis * weights[:, None], *(derivative[:, a] * slope_weights[:, a, None] for a in np.flatnonzero(used))])
    target = np.concatenate(
        [values * weights[:, None], *((slopes[:, a] @ whiten.T) * slope_weights[:, a, None] for a in np.flatnonzero(used))]
    )
    normal = design.T @ design
    spread = np.linalg.pinv(normal, rcond=1e-12)
    coefficients = spread @ (design.T @ target)
    mean = coefficients @ moments.lower[middle].T
    mean[powers.sum(axis=1) == 0] += moments.mean[middle]
    misfit = _left_out(design, target, spread, len(unit), int(used.sum()))
    i, j = np.tril_indices(moments.lower.shape[1])
    lower = moments.lower[:, i, j]
    entries = np.where(i == j, np.log(np.maximum(lower, 1e-300)), lower)
    straight = powers.sum(axis=1) <= 1  # the covariance changes slowly: its noise is not worth a quadratic
    parts = []
    for part, chosen in ((entries, straight), (moments.histogram, straight)):
        found = np.zeros((len(powers), part.shape[1]))
        found[chosen] = np.linalg.lstsq(basis[:, chosen] * weights[:, None], part * weights[:, None], rcond=None)[0]
        parts.append(found)
    return Fitted(mean, parts[0], parts[1], _log_z(image, places, embed, unit, powers, root[:k] * radius), spread, misfit)


def leverage(basis: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance (m,) of the predicted mean at monomials (m, powers), in units of the statistic's own."""
    return np.einsum("mp,pq,mq->m", basis, spread, basis)


def monomials(z: NDArray[np.float64], powers: NDArray[np.int64]) -> NDArray[np.float64]:
    """All products of powers, (m, powers).

    Examples
    --------
    >>> monomials(np.array([[2.0, 3.0]]), np.array([[0, 0], [1, 1], [0, 2]])).tolist()
    [[1.0, 6.0, 9.0]]
    """
    return np.prod(z[:, None, :] ** powers, axis=2)


def _derivatives(z: NDArray[np.float64], powers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Derivative of every monomial along every coordinate, (m, c, powers)."""
    found = []
    for a in range(z.shape[1]):
        lowered = powers.copy()
        lowered[:, a] = np.maximum(powers[:, a] - 1, 0)
        found.append(powers[:, a] * monomials(z, lowered))
    return np.stack(found, axis=1)


def _slopes(
    image: ImageEmulator, chains: NDArray[np.intp], embed: NDArray[np.float64], directions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope (n, c, d) of each chain's mean along coordinates, a step of which moves the couplings by `directions` (k, c); features' sd."""
    found, rates = [], []
    stops = np.cumsum(image.reweighting.records).astype(int)
    for c in chains:
        rows = slice(stops[c] - int(image.reweighting.records[c]), stops[c])
        features = image.reweighting.features[rows] @ embed.T @ directions
        apart, values = features - features.mean(axis=0), image.table[rows, : len(image.offset)]
        found.append(-apart.T @ (values - values.mean(axis=0)) / (len(values) - 1))
        rates.append(apart.std(axis=0))
    return np.array(found), np.array(rates)


def _left_out(design: NDArray, target: NDArray, spread: NDArray, n: int, slopes: int) -> float:
    """Mean square of the standardised residuals of every point's value when all that its chain says is left out."""
    squares = []
    for i in range(n):
        rows = [i, *(n + a * n + i for a in range(slopes))]
        block, y = design[rows], target[rows]
        # the regression without these rows, by the block form of the leave-one-out residual
        hat = block @ spread @ block.T
        inverse = np.linalg.pinv(np.eye(len(rows)) - hat)
        residual = (inverse @ (y - block @ (spread @ (design.T @ target))))[0]
        squares.append(residual**2 / max(inverse[0, 0], 1e-12))
    return float(np.mean(squares))


def _log_z(
    image: ImageEmulator, places: NDArray, embed: NDArray, unit: NDArray, powers: NDArray, directions: NDArray
) -> NDArray[np.float64] | None:
    """Coefficients of ln Z, a quadratic through minus the mean features; its value in the middle by reweighting."""
    if image.observed is None or image.traces is None:
        return None
    weights = image.traces.weights(places @ embed)
    slope = -(weights @ image.traces.features) @ embed.T @ directions  # (n, c)
    derivative = _derivatives(unit, powers)
    rest = powers.sum(axis=1) > 0
    design = derivative[:, :, rest].reshape(-1, rest.sum())
    found = np.zeros(len(powers))
    found[rest] = np.linalg.lstsq(design, slope.reshape(-1), rcond=None)[0]
    middle = np.argmin((unit**2).sum(axis=1))
    found[~rest] = image.log_z(places[middle] @ embed) - monomials(unit[middle : middle + 1], powers) @ found
    return found
