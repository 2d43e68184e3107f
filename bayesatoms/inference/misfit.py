"""Misfit: which environments a model cannot produce, whatever its couplings.

A p-value says that something is wrong; this says what. Each class of environment gets a shift of its mean
count, in standard deviations, with a Laplace prior that keeps it at zero unless the image insists (Frazier and
Drovandi, J. Comput. Graph. Stat. 30, 958, 2021: robust synthetic likelihood with adjusted means). Directions that
the model's couplings and the composition can move are taken out first, so what is left is what no coupling mends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..environments import Environments
from ..hamiltonian import Hamiltonian
from ..observation import Observation
from .criteria import everywhere, judged
from .emulator import Emulator
from .posterior import Result

LEAST = 15.0  # expected counts of a class that stands alone; rarer ones join their parent
_PRIOR = 0.5  # mean size of a shift under its prior, in standard deviations: one alone is named from 3.5 of them on
_LEVEL = 0.95
_CHAINS, _WARMUP, _DRAWS = 4, 150, 500
_NULL = 1e-6  # share of a class's variance below which composition and couplings explain it


@dataclass(frozen=True)
class Shift:
    """One group of environment classes in one image under one model.

    `seen` and `expected` counts; `z` the residual in its own standard deviations with couplings and composition taken
    out; mean, low and high of the shift's posterior (95 % interval), in standard deviations of the count.
    """

    model: str
    image: str
    group: str
    seen: float
    expected: float
    z: float
    mean: float
    low: float
    high: float

    @property
    def named(self) -> bool:
        """Whether the interval excludes zero: the model cannot produce what the image shows."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        word = "more" if self.mean > 0 else "fewer"
        return f"{self.image} shows {word} {self.group} than {self.model} can: {self.seen:.4g} seen, {self.expected:.1f} expected."


def groups(environments: Environments, expected: NDArray[np.float64], least: float = LEAST) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Pool classes of fewer than `least` expected counts into their parents.

    Parents in turn: equal centre and equal numbers of neighbours, then equal centre, then all.

    Parameters
    ----------
    environments : Environments
    expected : ndarray, shape (n_classes,)
    least : float

    Returns
    -------
    ndarray, shape (groups, n_classes)
        1 where a class belongs to a group; a partition.
    tuple of str
        A name for each group.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> e = Environments(Lattice.square(), ("A", "B"))
    >>> table, names = groups(e, 200 * e.random_distribution([0.8, 0.2]))
    >>> names
    ('A|0B(0,0)', 'A|1B(0,0)', 'A|2B(1,0)', 'B|0B(0,0)', 'B|1B(0,0)', 'rare')
    """
    k = len(environments.species)
    owner: list[tuple] = [("class", c) for c in range(environments.n_classes)]
    parents = [tuple(row[:k].tolist()) for row in environments.descriptors]
    for level in range(3):
        size: dict[tuple, float] = {}
        for c, name in enumerate(owner):
            size[name] = size.get(name, 0.0) + float(expected[c])
        for c, name in enumerate(owner):
            if size[name] < least:
                owner[c] = (("ring", parents[c]), ("centre", parents[c][0]), ("rest",))[level]
    order = list(dict.fromkeys(sorted(owner, key=lambda o: (("class", "ring", "centre", "rest").index(o[0]), o[1:]))))
    table = np.array([[float(o == name) for o in owner] for name in order])
    return table, tuple(_name(environments, o, row) for o, row in zip(order, table, strict=True))


def _name(environments: Environments, owner: tuple, row: NDArray[np.float64]) -> str:
    if owner[0] == "class":
        return environments.names[owner[1]]
    if np.count_nonzero(row) == 1:
        return environments.names[int(np.argmax(row))]
    if owner[0] == "ring":
        ring = ",".join(f"{n}{s}" for s, n in zip(environments.species[1:], owner[1][1:], strict=True))
        return f"rare {environments.species[owner[1][0]]}|{ring}"
    return f"rare {environments.species[owner[1]]}|" if owner[0] == "centre" else "rare"


def misfit(result: Result, models: Sequence[Hamiltonian] | None = None) -> tuple[Shift, ...]:
    """Shifts of all groups of classes, in every image, for the models given (all by default).

    Parameters
    ----------
    result : Result
    models : sequence of Hamiltonian, optional

    Returns
    -------
    tuple of Shift
        Those with ``named`` True are what the model cannot produce. If the model is right and counts are normal, each
        is named with a probability of about 5e-4 and so a result of 60 groups names any with one of 3 %.

    Examples
    --------
    ``[str(s) for s in misfit(result) if s.named]`` after ``result = infer(...)``.
    """
    models = [fit.model for fit in result.fits.values()] if models is None else list(models)
    problems, heads = [], []
    for model in models:
        at = everywhere(result, result[model.name], judged(result[model.name]).full.mean(axis=0)[None])
        for o in result.observations:
            found = residual(result.emulator, model, at[o.name][0, : len(result.emulator.names)], o)
            problems.append(found)
            heads.append((model.name, o.name))
    rng = np.random.default_rng(np.random.SeedSequence([result.seed, 41]))
    shifts = laplace_shifts([p.precision for p in problems], [p.pull for p in problems], rng)
    rows = []
    for (name, image), p, draws in zip(heads, problems, shifts, strict=True):
        low, high = np.quantile(draws, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2), axis=0)
        for g in range(len(p.names)):
            numbers = (p.seen[g], p.expected[g], p.z[g], draws[:, g].mean(), low[g], high[g])
            rows.append(Shift(name, image, p.names[g], *map(float, numbers)))
    return tuple(rows)


@dataclass(frozen=True, eq=False)
class Residual:
    """Counts of one image against a model, by group of classes.

    With r = (seen - expected) / sd, `precision` (g, g) is that of r after composition and couplings are integrated out with
    flat priors, `pull` = precision @ r, and z = r standardised once they are taken out (0 where nothing is left).
    """

    names: tuple[str, ...]
    seen: NDArray[np.float64]
    expected: NDArray[np.float64]
    precision: NDArray[np.float64]
    pull: NDArray[np.float64]
    z: NDArray[np.float64]


def residual(emulator: Emulator, model: Hamiltonian, union: NDArray[np.float64], o: Observation) -> Residual:
    """What is left of an image's counts when a model has done what it can, near union couplings (q,).

    Examples
    --------
    ``residual(result.emulator, model, result.emulator.vector({"w1": 0.1}), result.observations[0]).z`` after ``result = infer(...)``.
    """
    image, embed = emulator.images[o.name], emulator.embed(model)
    weights = image.reweighting.weights(union)
    mean = weights @ image.counts
    table, names = groups(o.environments, mean)
    counts = image.counts @ table.T
    expected = table @ mean
    apart = counts - expected
    sd = np.sqrt(weights @ apart**2)
    sd = np.where(sd > 0, sd, 1.0)
    apart = apart / sd
    r = (table @ o.counts - expected) / sd
    # directions to take out: what the composition rows move (their covariance with the counts), and what the couplings move
    x = (emulator.declared.contrasts[: emulator.declared.n_composition] @ image.counts.T / o.n).T
    x = x - weights @ x
    x_seen = emulator.declared(o.counts)[: emulator.declared.n_composition] - emulator.declared.contrasts[
        : emulator.declared.n_composition
    ] @ (mean / o.n)
    joint = np.column_stack([x / np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0), apart])
    cov = (joint * weights[:, None]).T @ joint
    c = x.shape[1]
    explain = cov[c:, :c] @ np.linalg.pinv(cov[:c, :c], rcond=1e-8, hermitian=True)
    r = r - explain @ (x_seen / np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0))
    inner = cov[c:, c:] - explain @ cov[:c, c:]
    apart = apart - joint[:, :c] @ explain.T
    slope = -(apart * weights[:, None]).T @ (image.reweighting.features @ embed.T)
    # two sets of counts are compared, the image's and the pool's mean, which has an error of its own
    inner = inner * (1 + (weights**2).sum())
    precision = _orthogonal(inner, slope)
    spread = inner @ precision @ inner
    left = np.diag(spread) > _NULL
    z = np.where(left, (inner @ precision @ r) / np.sqrt(np.where(left, np.diag(spread), 1.0)), 0.0)
    return Residual(names, table @ o.counts, expected, precision, precision @ r, z)


def _orthogonal(cov: NDArray[np.float64], slope: NDArray[np.float64]) -> NDArray[np.float64]:
    """Precision of a residual with covariance `cov` (g, g), possibly singular, once directions `slope` (g, k) may be anything."""
    precision = np.linalg.pinv(cov, rcond=_NULL, hermitian=True)
    if not slope.shape[1]:
        return precision
    moved = precision @ slope
    return precision - moved @ np.linalg.pinv(slope.T @ moved, rcond=1e-8, hermitian=True) @ moved.T


def laplace_shifts(
    precisions: Sequence[NDArray[np.float64]], pulls: Sequence[NDArray[np.float64]], rng: np.random.Generator, scale: float = _PRIOR
) -> list[NDArray[np.float64]]:
    """Draws of shifts s with density exp(-s.P.s / 2 + pull.s) times independent Laplace laws of mean size `scale`.

    Gibbs sampling by the Laplace law's mixture of normals (Park and Casella, J. Am. Stat. Assoc. 103, 681, 2008), all
    problems side by side.

    Parameters
    ----------
    precisions : sequence of ndarray, shape (g, g)
    pulls : sequence of ndarray, shape (g,)
    rng : numpy.random.Generator
    scale : float

    Returns
    -------
    list of ndarray, shape (draws, g)

    Examples
    --------
    A residual of 5 standard deviations moves by 5 less the prior's pull of 1 / 0.5:

    >>> draws = laplace_shifts([np.eye(1)], [np.array([5.0])], np.random.default_rng(0))[0]
    >>> bool(abs(draws.mean() - 3.0) < 0.15), draws.shape
    (True, (2000, 1))
    """
    most = max(len(p) for p in pulls)
    # shorter problems are filled up with shifts that nothing pulls; chains are further copies
    p = np.zeros((len(pulls), most, most))
    h = np.zeros((len(pulls), most))
    for i, (precision, pull) in enumerate(zip(precisions, pulls, strict=True)):
        p[i, : len(pull), : len(pull)], h[i, : len(pull)] = precision, pull
    p, h = np.tile(p, (_CHAINS, 1, 1)), np.tile(h, (_CHAINS, 1))
    inverse = np.full(h.shape, 1 / scale**2)  # 1 / variance of each shift's normal law
    diagonal = np.arange(most)
    kept = np.empty((_DRAWS, *h.shape))
    for sweep in range(-_WARMUP, _DRAWS):
        a = p.copy()
        a[:, diagonal, diagonal] += inverse
        lower = np.linalg.cholesky(a)
        half = np.linalg.solve(lower, h[..., None]) + rng.normal(size=(*h.shape, 1))
        s = np.linalg.solve(lower.swapaxes(1, 2), half)[..., 0]
        inverse = rng.wald(1 / (scale * np.maximum(np.abs(s), 1e-9)), 1 / scale**2)
        inverse = np.clip(inverse, 1e-9, 1e12)
        if sweep >= 0:
            kept[sweep] = s
    chains = kept.reshape(_DRAWS, _CHAINS, len(pulls), most)
    return [chains[:, :, i, : len(pull)].reshape(-1, len(pull)) for i, pull in enumerate(pulls)]
