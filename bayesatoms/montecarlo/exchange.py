"""Replica exchange: chains of one box at several couplings that pass their configurations to their neighbours.

Near a phase transition a chain moves slowly and may stay where it began. Its neighbours at weaker
couplings do not: a configuration that travels down the ladder, loses its memory there and comes back
is a new one. Each rung keeps its exact distribution (Hukushima and Nemoto, J. Phys. Soc. Jpn 65, 1604,
1996), so the chains of a ladder are chains like others, except that neighbours are weakly correlated:
they hold the same replicas at different times. Multistate reweighting takes records for independent;
what that misses shows in the calibration, not in any single chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..hamiltonian import Compiled
from . import generic, lanes
from .chains import Chain
from .design import DesignPoint
from .ensembles import Canonical
from .work import Work

_DEALS = 64  # random crystals that give the spread of the features, by which neighbours are found


@dataclass(frozen=True)
class Rung:
    """One chain of a ladder as a pool stores it: where it runs and a key of its own."""

    key: str
    couplings: NDArray[np.float64]
    counts: tuple[int, ...]
    samples: int
    sweeps: float
    burn: float


@dataclass(frozen=True, eq=False)
class Exchanged:
    """What a ladder left behind.

    Attributes
    ----------
    chains : list of Chain
        One a design point, in the order in which the points were given.
    acceptance : ndarray, shape (K,)
        Share of exchanges accepted between each point and its neighbour towards the weakest one; NaN for
        that one itself. Under 0.1 the ladder is cut there.
    round_trips : int
        Journeys of a replica from the weakest point to the farthest and back: without any, little was gained.
    """

    chains: list[Chain]
    acceptance: NDArray[np.float64]
    round_trips: int


@dataclass(frozen=True, eq=False)
class Ladder:
    """Design points of one box whose chains run together and exchange configurations.

    Who exchanges with whom the ladder finds itself: the shortest tree that joins all points to the
    weakest couplings, distance being the standard deviation of the energy difference in a random alloy.

    Parameters
    ----------
    points : sequence of DesignPoint
        Canonical, with the same box, atoms, samples, sweeps and burn.
    every : float
        Sweeps between attempts; rounded so that a whole number of attempts lies between two records.

    Raises
    ------
    InputError
        If there are fewer than two points, two are the same, one is semi-grand, or they are not of one box and length.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> compiled = h.compile(h.lattice.supercell((8, 8)))
    >>> recipe = dict(counts=(32, 32), samples=50, sweeps=1, burn=10, seed=1)
    >>> ladder = Ladder([DesignPoint(compiled, [w], **recipe) for w in (0.6, 0.2, 0.4)])
    >>> found = ladder.run()
    >>> ladder.parent.tolist(), [len(c) for c in found.chains], bool(np.nanmin(found.acceptance) > 0.1)
    ([2, -1, 1], [50, 50, 50], True)
    """

    points: Sequence[DesignPoint]
    every: float = 1.0
    order: NDArray[np.int64] = field(init=False)
    parent: NDArray[np.int64] = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        points = tuple(self.points)
        object.__setattr__(self, "points", points)
        _check(points, self.every)
        order, parent = tree(points)
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "parent", parent)
        digest = hashlib.blake2b(digest_size=16)
        keys = [points[i].key for i in self.order]
        digest.update(repr(("ladder", keys, float(self.every), generic.EXCHANGE_VERSION)).encode())
        object.__setattr__(self, "key", digest.hexdigest())

    @property
    def recipes(self) -> list[Rung]:
        """What a pool stores, in the order of the points."""
        found = []
        for p in self.points:
            key = hashlib.blake2b((self.key + p.key).encode(), digest_size=16).hexdigest()
            found.append(Rung(key, p.couplings, p.counts, p.samples, p.sweeps, p.burn))
        return found

    def run(self) -> Exchanged:
        """Run the chains. The random numbers follow from the key: neither the order of the points nor who runs them matters."""
        first, compiled = self.points[0], self.points[0].compiled
        couplings = np.array([self.points[i].couplings for i in self.order])
        start, moves = np.random.SeedSequence(int(self.key, 16)).spawn(2)
        rng, atoms = np.random.default_rng(start), np.repeat(np.arange(len(first.counts), dtype=np.uint8), first.counts)
        labels = np.array([rng.permutation(atoms) for _ in couplings])
        per_sweep = len(atoms) - max(first.counts)
        legs = max(1, round(first.sweeps / self.every))
        leg = max(1, round(first.sweeps * per_sweep / legs))
        warm = round(first.burn * per_sweep / leg)
        rung = np.argsort(self.order)  # of each point
        parent, depth = rung[self.parent[self.order]], np.zeros(len(couplings), dtype=np.int64)
        for r in range(1, len(couplings)):
            depth[r] = depth[parent[r]] + 1
        tree, lengths = (parent, depth % 2, int(depth.argmax())), (warm, legs, leg)
        work = Work(compiled, Canonical(), first.samples, first.sweeps, first.burn, moves)
        if len(couplings) <= lanes.MOST and lanes.Lanes().refuses(work, couplings) is None:
            chains, exchanged, trips = lanes.exchange(work, couplings, labels, moves.spawn(len(couplings)), tree, lengths)
        else:
            chains, exchanged, trips = generic.exchange(work, couplings, labels, moves, tree, lengths)
        share = np.where(exchanged[:, 0] > 0, exchanged[:, 1] / np.maximum(exchanged[:, 0], 1), np.nan)
        return Exchanged([chains[r] for r in rung], share[rung], trips)


def bridge(point: DesignPoint, rungs: int, weakest: float = 0.5) -> list[DesignPoint]:
    """The point and weaker copies of it, evenly spaced down to `weakest` times its couplings: a way out of a slow phase.

    Parameters
    ----------
    point : DesignPoint
    rungs : int
        Points in all. Neighbours should exchange in at least a fifth of the attempts; the number needed
        grows with the square root of the box.
    weakest : float
        0 is the random alloy, where nothing is slow.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> p = DesignPoint(h.compile(h.lattice.supercell((4, 4))), [0.8], (8, 8), samples=5, sweeps=1, burn=10, seed=1)
    >>> [q.couplings.round(6).tolist() for q in bridge(p, 3)]
    [[0.4], [0.6], [0.8]]
    """
    return [replace(point, couplings=point.couplings * t) for t in np.linspace(weakest, 1, rungs)]


def linked(points: Sequence[DesignPoint], *, gap: float = 0.7, weakest: float = 0.5) -> list[DesignPoint]:
    """The points, and as many between them and down to weaker couplings as make every neighbour exchange.

    Parameters
    ----------
    points : sequence of DesignPoint
        Of one box, atoms and length, as for :class:`Ladder`.
    gap : float
        Longest branch of the tree, in standard deviations of the energy difference in a random alloy. Measured on
        triangular alloys up to the transitions and beyond: 0.7 gives acceptances of 0.2 or more, 1.3 of 0.1.
    weakest : float
        The tree is led down to this share of the points' mean couplings.

    Returns
    -------
    list of DesignPoint
        The points given come first, in their order.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> p = DesignPoint(h.compile(h.lattice.supercell((8, 8))), [0.8], (32, 32), samples=5, sweeps=1, burn=10, seed=1)
    >>> found = linked([p])
    >>> found[0] is p, bool(min(q.couplings[0] for q in found) == 0.4), len(found)
    (True, True, 5)
    """
    points = list(points)
    base = replace(points[0], couplings=weakest * np.mean([p.couplings for p in points], axis=0), kernel="auto")
    nodes = [*points, *([base] if base.key not in {p.key for p in points} else [])]
    root = _spread(points[0].compiled, points[0].counts)
    found = list(nodes)
    for child, joint in enumerate(tree(nodes)[1]):
        if joint >= 0:
            step = nodes[child].couplings - nodes[joint].couplings
            pieces = max(1, int(np.ceil(np.linalg.norm(step @ root) / gap)))
            # which kernel would run a point alone depends on its couplings; in a ladder all run together
            between = [nodes[joint].couplings + step * k / pieces for k in range(1, pieces)]
            found += [replace(base, couplings=w, kernel="auto") for w in between]
    return found


def tree(points: Sequence[DesignPoint]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The shortest tree that joins all points to the weakest one (Prim's).

    The length of a branch is the standard deviation of (w_i - w_j).F over random alloys of the box: the larger,
    the rarer the two exchange.

    Returns
    -------
    order : ndarray of int, shape (K,)
        Points as the tree grew, the weakest couplings first.
    parent : ndarray of int, shape (K,)
        The point that each one exchanges with on the way back, -1 for the weakest.
    """
    couplings = np.array([p.couplings for p in points])
    steps = couplings @ _spread(points[0].compiled, points[0].counts)
    by_key = sorted(range(len(points)), key=lambda i: points[i].key)  # ties do not depend on the order given
    length = np.linalg.norm(steps[:, None] - steps, axis=2).round(12)
    here = min(by_key, key=lambda i: round(float(np.linalg.norm(steps[i])), 12))
    order, parent = [here], np.full(len(points), -1)
    while len(order) < len(points):
        left = [i for i in by_key if i not in order]
        here, joint = min(((i, j) for i in left for j in order), key=lambda pair: length[pair])
        parent[here] = joint
        order.append(here)
    return np.array(order), parent


def _spread(compiled: Compiled, counts: Sequence[int]) -> NDArray[np.float64]:
    """A root R of the features' covariance in the random alloy: |w R| is the standard deviation of w.F."""
    rng = np.random.default_rng(np.random.SeedSequence([*counts]))
    atoms = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    features = np.array([compiled.features(rng.permutation(atoms)) for _ in range(_DEALS)])
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(features.T)))
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _check(points: Sequence[DesignPoint], every: float) -> None:
    if len(points) < 2:
        raise InputError(f"a ladder of {len(points)} design points given; expected at least two")
    if not every > 0:
        raise InputError(f"exchange every {every} sweeps is impossible; expected a positive number")
    if any(not isinstance(p.ensemble, Canonical) or p.ensemble.groups is not None for p in points):
        raise InputError("a semi-grand design point, or one of grouped sites, given; expected plain canonical ones only")
    if len({p.key for p in points}) < len(points):
        raise InputError("two design points of the ladder are the same; give each couplings or a seed of its own")
    first, boxes = points[0], {replace(p, couplings=points[0].couplings, seed=0, kernel="auto").key for p in points}
    if len(boxes) > 1:
        raise InputError("design points of one ladder differ in their box, atoms, samples, sweeps or burn; expected those the same")
    if max(first.counts) == sum(first.counts):
        raise InputError("a canonical chain needs at least two species present; found one")
