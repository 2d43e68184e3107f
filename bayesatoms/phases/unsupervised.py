"""Phases told apart without being told what they are: where on a grid the local environments change fastest.

The grid may be one of couplings, of temperature, of composition. What is looked at is how fast the histogram of local
environments changes from a point to its neighbours, as a statistical angle. Within a phase it changes little, through a
transition much: where a derivative of the free energy diverges, so does that of the histogram, which holds the features.
So the boundaries are the ridges of this map and the phases its basins (for quantum states: fidelity susceptibility; You,
Li & Gu, Phys. Rev. E 76, 022101, 2007).

Basins are found by single linkage along the steps of the grid, which is the watershed of the steps' heights (Cousty et
al., IEEE Trans. Pattern Anal. Mach. Intell. 31, 1362, 2009). Each begins at its lowest step and ends where it meets an
older one, a lower one that is, over the lowest pass between them. It is a phase if that pass, less its statistical error,
is more than twice as high as the basin's lowest step: if the ridge around it falls to half its height within the basin.
Otherwise it belongs to what lies across the pass. Nothing else decides on the number of phases, which may be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

from ..environments import Environments
from ..errors import InputError
from ..inference.distance import distance
from ..lattice import Supercell
from ..montecarlo.chains import Chain
from ..window import Operator, Window

_HALF = 2.0  # how many times as high as a phase's lowest step its pass is at least: the ridge's half maximum lies within the phase
_CHANCE = 0.05  # that noise alone makes any step of the grid look higher than it is by what is taken off
_FAR = 10.0  # above every angle: steps that the grid does not have


@dataclass(frozen=True, eq=False)
class Phases:
    """Phases of a grid, numbered in the order in which the grid meets them.

    Attributes
    ----------
    labels : ndarray of int, shape (m,)
        Phase of each grid point.
    medoids : ndarray of int, shape (phases,)
        The point of each phase with the smallest sum of angles to all of its points: a representative.
    certainty : ndarray, shape (m,)
        1 - a / b, with a the highest step on the lowest way to the phase's own lowest step and b that on the way to the nearest
        other phase's: the silhouette in the distance that a watershed uses. 0 on a ridge, 1 where nothing changes; 1 in one phase.
    contrast : ndarray, shape (phases,)
        Height of the lowest pass out of a phase over its own lowest step; inf where nothing changes within it, or where it is alone.
    refused : float
        The largest contrast, errors taken off the pass, of a basin that was not kept as a phase; at most 2, 0 if there was none.
        Near 2 the number of phases is not certain.
    change : tuple of ndarray
        Per axis how fast histograms change in the middle of each step, in rad a step; of the grid's shape but one shorter along
        that axis: the map of ridges.
    """

    labels: NDArray[np.int64]
    medoids: NDArray[np.int64]
    certainty: NDArray[np.float64]
    contrast: NDArray[np.float64]
    refused: float
    change: tuple[NDArray[np.float64], ...]

    @property
    def number(self) -> int:
        """How many phases there are."""
        return len(self.medoids)

    def __str__(self) -> str:
        rows = [
            f"phase {k}: {np.count_nonzero(self.labels == k)} points, like point {medoid}; "
            f"certainty {self.certainty[self.labels == k].mean():.2f}, contrast {self.contrast[k]:.1f}"
            for k, medoid in enumerate(self.medoids)
        ]
        head = "one phase" if self.number == 1 else f"{self.number} phases"
        return "\n".join([f"{head}; the best division not made has contrast {self.refused:.2f} of {_HALF:g}", *rows])


def find_phases(histograms: ArrayLike, grid_shape: Sequence[int] | None = None, *, fold: ArrayLike | None = None) -> Phases:
    """Find the phases of a grid of points from their histograms.

    Parameters
    ----------
    histograms : array_like, shape (m, classes) or (blocks, m, classes)
        Counts or frequencies of each grid point, the last axis of the grid running fastest. Blocks are independent chains, or
        stretches of one as :func:`block_histograms` gives them, sixteen or so: from their scatter comes the statistical error.
        Without blocks the histograms count as exact; do not give simulated ones so, whose noise divides phases.
    grid_shape : sequence of int, optional
        Points along each axis; one axis if not given. A phase has to be at least two points wide, and steps along
        different axes should be of like importance.
    fold : array_like of int, shape (classes,), optional
        Class onto which a symmetry of the Hamiltonian maps each class, for example :func:`exchange`. Histograms are averaged
        with their image, so that phases which the symmetry maps onto each other count as one.

    Returns
    -------
    Phases

    Raises
    ------
    InputError
        If the histograms are no histograms, do not fit the grid, or the fold is no permutation that undoes itself.

    Notes
    -----
    Chosen by measurement, on the square lattice with 16 x 16 sites, 400 records a point and the nearest-neighbour shell. J1-J2 model
    with J1/T and J2/T from -1 to 1, on 13 x 13, 17 x 17 and 21 x 21 points, four to six seeds each: its four phases, and every point
    within one step of where the long-range order has half its weight, but one or two of the 17 x 17 at |J1| = -2 J2 = T, where
    disorder is one point wide. Nearest neighbours: one phase hot or cold, two or three through one or two transitions; one phase
    in the triangular antiferromagnet, and in the random alloy from x = 0.02 to 0.98, whose histograms change a lot. Average, complete
    or Ward's linkage of the angles cuts the J1-J2 map as well if it is told that there are four. What fails is the number: the
    silhouette cannot say one (it says two to six there); the gap statistic says one to eight, and the largest change of the
    linkage two to six, for these four. The structure factor beside the histograms changes neither.

    Each step is held against its noise at a chance of 5 % for the whole grid, so short chains hide a ridge: `refused` near 2 asks for
    longer ones. With 400 records this took two lines of ten across one transition at steps of 0.017 for one phase, and half of
    the 13 x 13 maps with the second shell for three, at 1.75 to 1.98. Chains stuck with domain walls, likelier in larger boxes (here
    of 24 x 24), look like a phase of their own or cut one in two: anneal slowly, and give independent chains as blocks. The range
    has to leave room for half the ridge's height on both sides of it.

    Examples
    --------
    >>> blend = np.clip(np.linspace(-3, 4, 12), 0, 1)[:, None]   # one structure, the other one, and a narrow transition
    >>> histograms = (1 - blend) * [0.7, 0.2, 0.1] + blend * [0.1, 0.1, 0.8] + np.linspace(0, 0.1, 12)[:, None]
    >>> phases = find_phases(histograms)
    >>> phases.labels.tolist(), phases.number
    ([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], 2)
    """
    blocks, shape = _checked(histograms, grid_shape, fold)
    total, pairs = _normalised(blocks.sum(axis=0)), _steps(shape)
    height = _heights(total, pairs, shape)
    sure = _sure(height, blocks, pairs, shape)
    far = np.full((len(total), len(total)), _FAR)
    far[pairs[:, 0], pairs[:, 1]] = far[pairs[:, 1], pairs[:, 0]] = height
    np.fill_diagonal(far, 0.0)
    tree = linkage(squareform(far, checks=False), "single")
    labels, refused = _basins(tree, pairs, height, sure)
    order = np.unique(labels, return_index=True)[1].argsort()
    labels = np.argsort(order)[labels]
    medoids = [_medoid(total, np.flatnonzero(labels == k)) for k in range(len(order))]
    certainty, contrast = _judged(labels, pairs, height, squareform(cophenet(tree)))
    return Phases(labels, np.array(medoids), certainty, contrast, refused, _by_axis(height, shape))


def block_histograms(chains: Sequence[Chain], environments: Environments, supercell: Supercell, *, blocks: int = 16) -> NDArray[np.int64]:
    """Class counts of chains, one a grid point, each cut into stretches of equal length.

    Parameters
    ----------
    chains : sequence of Chain
        In equilibrium. A stretch should be longer than the autocorrelation time, or errors come out too small.
    environments : Environments
    supercell : Supercell
        Of the chains, periodic as the lattice is.
    blocks : int
        Snapshots left over at the beginning are not used.

    Returns
    -------
    ndarray, shape (blocks, len(chains), n_classes)

    Raises
    ------
    InputError
        If a chain has fewer snapshots than there are blocks, or there are fewer than two.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> from bayesatoms.montecarlo.engine import run_chain
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> box = h.lattice.supercell((6, 6))
    >>> chain = run_chain(h.compile(box), [0.1], [0, 1] * 18, samples=80, seed=np.random.SeedSequence(1))
    >>> counts = block_histograms([chain], Environments(h.lattice, h.species), box)
    >>> counts.shape, counts.sum(axis=2).ravel().tolist() == [180] * 16
    ((16, 1, 12), True)
    """
    shortest = min((len(c) for c in chains), default=0)
    if blocks < 2 or shortest < blocks:
        raise InputError(f"{blocks} blocks of chains of {shortest} snapshots asked for; expected at least 2 and a snapshot in each")
    operator, rng = Operator(environments, Window(supercell.sites, supercell.shape), supercell), np.random.default_rng(0)
    found = []
    for chain in chains:  # the window is the whole crystal: where it lies, the rng's choice, does not matter
        counts = operator.counts(chain.snapshots[len(chain) % blocks :], rng)
        found.append(counts.reshape(blocks, -1, environments.n_classes).sum(axis=1))
    return np.stack(found, axis=1)


def exchange(environments: Environments, order: Sequence[int] = (1, 0)) -> NDArray[np.int64]:
    """Class onto which an exchange of species maps each class: the fold of a Hamiltonian that it leaves as it is.

    Parameters
    ----------
    environments : Environments
    order : sequence of int
        Species number that takes the place of each species.

    Returns
    -------
    ndarray, shape (n_classes,)

    Raises
    ------
    InputError
        If the order is no permutation of the species.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> e = Environments(Lattice.square(), ("A", "B"))
    >>> e.names[0], e.names[exchange(e)[0]]
    ('A|0B(0,0)', 'B|4B(4,2)')
    """
    species = np.asarray(order)
    if sorted(species.tolist()) != list(range(len(environments.species))):
        raise InputError(f"order {species.tolist()} of species given; expected a permutation of 0 to {len(environments.species) - 1}")
    image = np.empty(environments.n_classes, dtype=np.int64)
    for b, offset in enumerate(environments.offsets[:-1]):
        codes = species[environments.digits(b)] @ environments.strides(b)
        image[environments.class_of[offset : environments.offsets[b + 1]]] = environments.class_of[offset + codes]
    return image


def _checked(
    histograms: ArrayLike, grid_shape: Sequence[int] | None, fold: ArrayLike | None
) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Folded histograms (blocks, m, classes) and the shape of their grid, or InputError."""
    blocks = np.asarray(histograms, dtype=float)
    blocks = blocks[None] if blocks.ndim == 2 else blocks
    if (
        blocks.ndim != 3
        or blocks.shape[1] < 2
        or not np.isfinite(blocks).all()
        or blocks.min(initial=0) < 0
        or not (blocks.sum(2) > 0).all()
    ):
        raise InputError(
            f"histograms of shape {np.shape(histograms)} given; expected counts >= 0, some in every row, of shape (points, classes) or "
            "(blocks, points, classes), of two points or more"
        )
    shape = (blocks.shape[1],) if grid_shape is None else tuple(int(n) for n in grid_shape)
    if min(shape, default=0) < 1 or int(np.prod(shape)) != blocks.shape[1]:
        raise InputError(f"a grid of shape {shape} and {blocks.shape[1]} histograms given; expected one histogram a point")
    if fold is None:
        return blocks, shape
    image = np.asarray(fold)
    classes = np.arange(blocks.shape[2])
    if image.shape != classes.shape or image.dtype.kind not in "iu" or not np.array_equal(np.sort(image), classes):
        raise InputError(f"fold {image.tolist()} given; expected the image of each of the {len(classes)} classes, a permutation")
    if not np.array_equal(image[image], classes):
        raise InputError(f"fold {image.tolist()} given; expected a permutation that undoes itself: average over larger groups beforehand")
    return (blocks + blocks[..., image]) / 2, shape


def _normalised(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return counts / counts.sum(axis=-1, keepdims=True)


def _steps(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Neighbours on the grid, axis by axis, shape (steps, 2)."""
    number = np.arange(np.prod(shape)).reshape(shape)
    ahead = [np.delete(number, 0, axis).ravel() for axis in range(len(shape))]
    behind = [np.delete(number, -1, axis).ravel() for axis in range(len(shape))]
    return np.column_stack([np.concatenate(behind), np.concatenate(ahead)])


def _heights(total: NDArray[np.float64], pairs: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    return _speed(distance(total[pairs[:, 0]], total[pairs[:, 1]]), shape)


def _sure(
    height: NDArray[np.float64], blocks: NDArray[np.float64], pairs: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Height of each step less what noise may have made of it.

    Noise moves a height by its standard error, and lifts its square by the variance of all classes together. Both are
    the delete-one-block jackknife's.
    """
    n = len(blocks)
    if n == 1:
        return height
    fewer = _normalised(blocks.sum(axis=0) - blocks)
    scatter = (n - 1) * np.sqrt(fewer).var(axis=0).sum(axis=1)  # of each point; points are simulated apart
    lift = _speed(np.sqrt(scatter[pairs].sum(axis=1)), shape)
    error = np.sqrt((n - 1) * np.array([_heights(each, pairs, shape) for each in fewer]).var(axis=0))
    # a line of points has its ridge where noise is worst of all: the bound is to hold for all steps together
    return np.sqrt(np.maximum(height**2 - lift**2, 0.0)) - stats.t.isf(_CHANCE / len(height), n - 1) * error


def _by_axis(values: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[NDArray[np.float64], ...]:
    """Values of the steps, of each axis apart: of the grid's shape but one shorter there."""
    each = [(*shape[:axis], n - 1, *shape[axis + 1 :]) for axis, n in enumerate(shape)]
    parts = np.split(values, np.cumsum([int(np.prod(e)) for e in each])[:-1])
    return tuple(part.reshape(e) for part, e in zip(parts, each, strict=True))


def _speed(step: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """How fast histograms change in the middle of each step, whichever way one goes.

    The root of the trace of the metric: the square of the step itself, and along the other axes the mean square of the steps
    that touch its ends. The step alone would not do: there are ways along which nothing changes (the weaker coupling in an
    ordered phase), and every line along them would be a basin; and a ridge aslant the axes could be crossed by a staircase.
    """
    squares = [each**2 for each in _by_axis(step, shape)]
    at_points = []
    for axis, square in enumerate(squares):
        ends = [np.insert(part, where, 0.0, axis=axis) for part, where in ((square, 0), (square, square.shape[axis]))]
        touching = np.insert(np.insert(np.full(max(shape[axis] - 2, 0), 2.0), 0, 1.0), 0, 1.0)[: shape[axis]]
        at_points.append((ends[0] + ends[1]) / touching.reshape(-1, *[1] * (len(shape) - axis - 1)))
    found = []
    for axis, square in enumerate(squares):
        across = sum((p for a, p in enumerate(at_points) if a != axis), np.zeros(shape))
        found.append(np.sqrt(square + (np.delete(across, 0, axis) + np.delete(across, -1, axis)) / 2).ravel())
    return np.concatenate(found)


def _basins(
    tree: NDArray[np.float64], pairs: NDArray[np.int64], height: NDArray[np.float64], sure: NDArray[np.float64]
) -> tuple[NDArray[np.int64], float]:
    """Basin of each point that is a phase, and the best contrast that was not enough.

    `tree` is the single linkage of the steps. A component on the way up is known by its oldest basin, the one
    of the lowest step; at a pass the younger one of two ends, as a phase of its own or as a part of what lies across.
    """
    m = len(tree) + 1
    oldest, component = list(range(m)), np.arange(m)  # at first every point is a component and a basin, without a step
    basin, lowest, refused = np.arange(m), np.full(m, np.inf), 0.0
    for number, (a, b, top, _) in enumerate(tree, start=m):
        one, two = sorted((int(a), int(b)), key=lambda c: lowest[oldest[c]])
        ends = component[pairs]
        joins = np.flatnonzero((ends == [one, two]).all(axis=1) | (ends == [two, one]).all(axis=1))
        step = joins[np.argmin(height[joins])]
        old, young = oldest[one], oldest[two]
        if sure[step] <= _HALF * lowest[young]:
            refused = max(refused, float(sure[step] / lowest[young]) if lowest[young] > 0 else 0.0)
            basin[basin == young] = basin[pairs[step][ends[step] == one][0]]
        lowest[old] = min(lowest[old], top)
        component[ends[step][0] == component] = number
        component[ends[step][1] == component] = number
        oldest.append(old)
    return np.unique(basin, return_inverse=True)[1], refused


def _medoid(total: NDArray[np.float64], points: NDArray[np.int64]) -> int:
    among = total[points]
    return int(points[np.argmin([distance(row, among).sum() for row in among])])


def _judged(
    labels: NDArray[np.int64], pairs: NDArray[np.int64], height: NDArray[np.float64], reach: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Certainty of each point and contrast of each phase; `reach` is the highest step on the lowest way between two points."""
    number = labels.max() + 1
    if number == 1:
        return np.ones(len(labels)), np.full(1, np.inf)
    inner = [np.flatnonzero((labels[pairs] == k).all(axis=1)) for k in range(number)]
    cores = np.array([steps[np.argmin(height[steps])] for steps in inner])
    floor, points = height[cores], pairs[cores, 0]
    to = np.maximum(reach[:, points], floor)  # to the step, which is not over before its end
    own = to[np.arange(len(labels)), labels]
    others = np.where(np.arange(number) == labels[:, None], np.inf, to).min(axis=1)
    contrast = np.divide(others[points], floor, out=np.full(number, np.inf), where=floor > 0)
    return np.clip(1 - own / others, 0.0, 1.0), contrast
