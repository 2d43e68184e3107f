"""Indexing: give the measured positions of a distorted image their places in the lattice.

The lattice is known; how it lies in the image (rotation, scale, shear, slow drift) is not. Two steps:

1. *One mean lattice.* The power of short difference vectors at the reflections of the ideal lattice
   is maximised over its linear maps. This finds the fundamental lattice: a superlattice such as the
   chains of 1T' splits the bonds in real space, but leaves the fundamental reflections in place.
2. *Growth.* From a seed the indexed region grows, each position being located by the affine map
   fitted to the indexed positions around it, good fits first. Only local order is needed, so drift
   may add up to many spacings across the image. No cut-off in distance decides who is a neighbour.

Positions that hold no lattice (random, amorphous, on a line, too few) are refused.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.spatial import Delaunay, cKDTree

from .errors import InputError
from .lattice import Lattice

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

# Lengths are in spacings of the mean lattice.
_FEWEST = 12  # positions
_NEAR, _REACH = 20, 2.4  # a local fit uses at most so many neighbours, no farther than this
_RIDGE = 1.0  # weight of the fits beside it in a local fit, so that neighbours on one side only still make a fit
_TIE = 0.05  # positions join the indexed region together if they fit as well as the best one to within this
_SURE, _CAPTURE = 0.1, 0.45  # any fit within the first is good; none beyond the second, as half way begins the next site
_TRIES, _COST = 3, 10.0  # starts that are followed to a mean lattice; what its squared strain costs in power
_BOND, _SLIP = 1.3, 0.6  # pairs nearer than the first must agree with their indices to the second
# What random and amorphous positions do not reach together, measured on thousands of sets of 12 to 1000 positions.
_STRAIN = 0.17  # of the mean lattice; shear by 13 % is 0.065, the triangular lattice seen as a strained square one 0.27
_POWER, _POWER_FEW = 0.12, 1.0  # power at the reflections: floor, and what chance adds to it, times sqrt(n)
_KEPT, _AGREEING = 0.5, 0.7  # fractions of positions with an index, and of near pairs that agree with theirs
_BLUR, _BLUR_FEW = 0.17, 0.1  # median residual: ceiling, and what chance adds to it, times sqrt(n)

_ADVICE = "check that the columns were found, crop to one crystal, or name the lattice that it has"


@dataclass(frozen=True, eq=False)
class Indexing:
    """Lattice indices of measured positions.

    Attributes
    ----------
    sites : ndarray of int, shape (n, 3)
        Site references (cell n1, n2 and basis index), the smallest n1 and n2 being 0; all -1 where not `kept`.
    kept : ndarray of bool, shape (n,)
        False for a position without index: off the lattice, a duplicate, on an island, or in a row that slipped.
    residual : ndarray, shape (n,)
        Distance to the site that the indexed neighbours (never the position itself) predict, in spacings; to the
        nearest site for a position not kept; nan where fewer than three neighbours are indexed.
    spacing : float
        Median distance between positions on nearest-neighbour sites, in the unit of the input.
    vectors : ndarray, shape (2, 2)
        Mean lattice vectors as rows, in the unit of the input.
    goodness : float
        Fraction of kept positions.
    """

    sites: Integers
    kept: Truths
    residual: Floats
    spacing: float
    vectors: Floats
    goodness: float


def index_positions(
    positions: ArrayLike, lattice: Lattice, *, sublattice_hint: ArrayLike | None = None, vectors: ArrayLike | None = None
) -> Indexing:
    """Give 2-D positions their lattice indices, through drift, shear, holes and missing atoms.

    Parameters
    ----------
    positions : array_like, shape (n, 2)
        In any unit, in either sense of the y axis.
    lattice : Lattice
        Its shape guides the search; its scale does not matter.
    sublattice_hint : array_like of int, shape (n,), optional
        Basis index of a position where known, else -1.
    vectors : array_like, shape (2, 2), optional
        Mean lattice vectors as rows, in the unit of the positions, where they are known: however many sites
        are empty then, the lattice is not looked for in the positions.

    Returns
    -------
    Indexing
        Of the descriptions that differ by a rotation of the lattice, that whose first vector is nearest to +x.

    Raises
    ------
    InputError
        If the input is malformed or its positions hold no such lattice.

    Examples
    --------
    >>> metal = Lattice.triangular()
    >>> truth = metal.supercell((6, 6)).sites
    >>> found = index_positions(metal.positions(truth) @ [[20, 9], [-8, 18]] + 300, metal)
    >>> found.goodness, found.vectors.round(2).tolist()
    (1.0, [[20.0, 9.0], [-16.93, 11.09]])
    """
    ideal = _ideal(lattice)
    points, hint = _checked(positions, ideal, sublattice_hint)
    known = None if vectors is None else np.linalg.solve(ideal.cell, np.asarray(vectors, dtype=float))
    area = _area_per_site(points) / ideal.area_per_site if known is None else abs(np.linalg.det(known))
    scale, best = float(np.sqrt(area)), None
    for mean in _mean_lattices(points / scale, ideal) if known is None else [known / scale]:
        growth = _Growth(points / scale, ideal, mean, hint).run()
        best = growth if best is None or growth.agreeing > best.agreeing else best
        if best.agreeing > 0.8:  # the other candidates are for crystals behind many defects
            break
    _refuse_disorder(best)
    return _described(best, points)


def _checked(positions: ArrayLike, ideal: _Ideal, hint: ArrayLike | None) -> tuple[Floats, Integers]:
    """Centred positions and a hint for each, or InputError."""
    points = np.asarray(positions, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"positions have shape {points.shape}; expected (n, 2)")
    if not np.isfinite(points).all():
        bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
        raise InputError(f"{len(bad)} of {len(points)} positions are not finite (first in row {bad[0]}); expected numbers: drop these")
    if len(points) < _FEWEST:
        raise InputError(f"{len(points)} positions found; expected at least {_FEWEST}, as fewer cannot be told from chance")
    points = points - points.mean(axis=0)
    width = np.linalg.svd(points, compute_uv=False)[1] / np.sqrt(len(points))
    if width <= 0.25 * np.median(cKDTree(points).query(points, 2)[0][:, 1]):
        raise InputError(f"all {len(points)} positions lie on one line or point; expected a lattice that fills part of the plane")
    given = np.full(len(points), -1) if hint is None else np.asarray(hint)
    n, last = len(points), len(ideal.basis) - 1
    if given.shape != (n,) or given.dtype.kind not in "iu" or given.min() < -1 or given.max() > last:
        raise InputError(f"sublattice_hint of shape {given.shape} does not fit; expected {n} integers from -1 (unknown) to {last}")
    return points, given.astype(np.int64)


def _refuse_disorder(growth: _Growth) -> None:
    n, kept, agreeing = len(growth.x), growth.kept.mean(), growth.agreeing
    strain = _size(_strain(growth.maps[growth.kept].mean(axis=0))) if kept else np.inf
    blur, most = np.median(growth.residual[growth.kept]) if kept else np.inf, _BLUR + _BLUR_FEW / np.sqrt(n)
    if kept < _KEPT or agreeing < _AGREEING or blur > most or strain > _STRAIN:
        raise InputError(
            f"{n} positions hold no {growth.ideal.lattice.name} lattice: {kept:.0%} of them indexed (expected at least {_KEPT:.0%}), "
            f"{agreeing:.0%} of near pairs in agreement with their indices (at least {_AGREEING:.0%}), median distance to a lattice site "
            f"{blur:.2f} spacings (at most {most:.2f}), lattice strained by {strain:.0%} (at most {_STRAIN:.0%}); {_ADVICE}"
        )


def _described(growth: _Growth, points: Floats) -> Indexing:
    """The result in the unit of the input, its first vector turned nearest to +x by the lattice's own rotations."""
    kept, ideal = growth.kept, growth.ideal
    spacing = float(np.median(np.linalg.norm(points[growth.bonds[:, 1]] - points[growth.bonds[:, 0]], axis=1)))
    design = np.column_stack([ideal.places(growth.sites[kept]) @ np.linalg.inv(ideal.cell), np.ones(kept.sum())])
    vectors = np.linalg.lstsq(design, points[kept], rcond=None)[0][:2]
    operations = ideal.lattice.operations
    rotations = [op for op in operations if np.linalg.det(op.matrix) > 0 and np.array_equal(op.image, range(len(op.image)))]
    turned = [np.linalg.inv(op.matrix) @ vectors for op in rotations]  # n' = n W, so that V' = W^-1 V
    first = int(np.argmax([v[0, 0] / np.linalg.norm(v[0]) for v in turned]))
    sites = rotations[first](growth.sites)
    sites[:, :2] -= sites[kept, :2].min(axis=0)
    sites[~kept] = -1
    unit = np.sqrt(abs(np.linalg.det(vectors) / np.linalg.det(ideal.cell)))
    return Indexing(sites, kept, growth.residual * unit / spacing, spacing, turned[first], float(kept.mean()))


class _Ideal:
    """The lattice in units of its nearest-neighbour distance."""

    def __init__(self, lattice: Lattice) -> None:
        if lattice.dimension != 2:
            raise InputError(f"lattice {lattice.name} has {lattice.dimension} dimensions; expected 2, as images have")
        self.lattice = lattice
        self.cell = lattice.cell / lattice.shell_distances(1)[0]
        self.basis = lattice.basis @ self.cell
        self.area_per_site = abs(np.linalg.det(self.cell)) / len(self.basis)

    def places(self, sites: Integers) -> Floats:
        return sites[..., :2] @ self.cell + self.basis[sites[..., 2]]

    def around(self, b: int) -> tuple[Integers, Floats]:
        """The sites near basis site `b` of the home cell, and the way to them."""
        sites = np.array(list(itertools.product(range(-2, 3), range(-2, 3), range(len(self.basis)))))
        steps = self.places(sites) - self.basis[b]
        near = (np.linalg.norm(steps, axis=1) < 1.5) & steps.any(axis=1)
        return sites[near], steps[near]

    @cached_property
    def turns(self) -> list[Floats]:
        """Symmetries of the cell as maps of the plane, rotations first; the basis may have fewer."""
        matrices = [op.matrix for op in Lattice(self.cell).operations]
        return [np.linalg.inv(self.cell) @ m @ self.cell for m in sorted(matrices, key=np.linalg.det, reverse=True)]

    @cached_property
    def reflections(self) -> tuple[Floats, Floats]:
        """Reciprocal vectors up to the first strong ones that span the plane, one of each +-k, and their relative strengths."""
        h = np.array([v for v in itertools.product(range(-3, 4), repeat=2) if v > (0, 0)])
        k = h @ (2 * np.pi * np.linalg.inv(self.cell).T)
        strength = np.abs(np.exp(1j * k @ self.basis.T).mean(axis=1)) ** 2
        length = np.linalg.norm(k, axis=1)
        reach = next(r for r in np.sort(length) * 1.001 if np.linalg.matrix_rank(k[(strength > 0.5) & (length < r)], tol=1e-6) == 2)
        used = (strength > 0.05) & (length < reach)
        return k[used], strength[used] / strength[used].sum()

    @cached_property
    def starts(self) -> Floats:
        """Maps of reciprocal space to search from, closer to each other than a reflection is wide; shape (m, 2, 2)."""
        rotations = sum(np.linalg.det(t) > 0 for t in self.turns)
        hands = (1,) if rotations < len(self.turns) else (1, -1)  # an oblique cell differs from its mirror image
        shears = [(0, 0), *((0.08 * np.cos(t), 0.08 * np.sin(t)) for t in np.arange(6) * np.pi / 3)]
        return np.array(
            [
                s * np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) @ np.array([[1 + p, q], [q, 1 - p]]) @ np.diag([1, hand])
                for t in np.arange(0, 2 * np.pi / rotations, np.radians(4))
                for s, (p, q), hand in itertools.product(np.linspace(0.84, 1.16, 7), shears, hands)
            ]
        )

    def nearest(self, q: Floats, maps: Floats, hint: Integers) -> tuple[Integers, Floats]:
        """The site nearest to each ideal place, and how far it is in the image."""
        corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])  # of the cell: rounding alone errs in an oblique one
        cells = np.floor((q[:, None] - self.basis) @ np.linalg.inv(self.cell)).astype(np.int64)[:, :, None] + corners
        basis = np.broadcast_to(np.arange(len(self.basis))[:, None, None], (*cells.shape[:3], 1))
        options = np.concatenate([cells, basis], axis=-1).reshape(len(q), 4 * len(self.basis), 3)
        apart = np.linalg.norm((self.places(options) - q[:, None]) @ maps, axis=-1)
        apart[(hint[:, None] >= 0) & (options[..., 2] != hint[:, None])] = np.inf
        best = (np.arange(len(q)), apart.argmin(axis=1))
        return options[best], apart[best]


@lru_cache(maxsize=8)
def _ideal(lattice: Lattice) -> _Ideal:
    return _Ideal(lattice)


def _area_per_site(x: Floats) -> float:
    """Twice the mean area of the Delaunay triangles, without those that span holes or skirt the hull."""
    corners = x[Delaunay(x).simplices]
    sides = corners - np.roll(corners, 1, axis=1)
    area = np.abs(sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0]) / 2
    radius = np.prod(np.linalg.norm(sides, axis=2), axis=1) / np.maximum(4 * area, 1e-12 * area.max())
    return 2 * float(area[radius < 1.6 * np.median(radius)].mean())


def _strain(m: Floats) -> Floats:
    """Green's strain tensor of a map, (m^T m - 1) / 2; shear by 13 % has the eigenvalues +-0.065."""
    return (np.swapaxes(m, -1, -2) @ m - np.eye(2)) / 2


def _size(strain: Floats) -> Floats:
    return np.sqrt((strain**2).sum(axis=(-2, -1)) / 2)


def _power(m: Floats, ideal: _Ideal, d: Floats, weight: Floats) -> Floats:
    """Mean over the differences `d` of cos(k d) at the mapped reflections: 1 for a perfect lattice, 0 for random positions."""
    k, strength = ideal.reflections
    return (np.cos((k @ m) @ d.T) @ weight) @ strength


def _refined(m: Floats, ideal: _Ideal, d: Floats, weight: Floats) -> Floats:
    """The map nearby with the most power, strain having its cost (13 % of shear 0.04): strained superlattices cannot win."""
    k, strength = ideal.reflections

    def loss(v: Floats) -> tuple[float, Floats]:
        m = v.reshape(2, 2)
        strain, phase = _strain(m), (k @ m) @ d.T
        slope = (strength[:, None] * k).T @ (np.sin(phase) * weight) @ d
        return _COST * _size(strain) ** 2 - (np.cos(phase) @ weight) @ strength, (_COST * m @ strain + slope).ravel()

    return minimize(loss, m.ravel(), jac=True, method="BFGS", options={"gtol": 1e-3}).x.reshape(2, 2)


def _mean_lattices(x: Floats, ideal: _Ideal) -> list[Floats]:
    """Candidate maps from the ideal to the mean lattice, the greatest power first; InputError where chance would have as much."""
    pairs = cKDTree(x).query_pairs(3.0, output_type="ndarray")
    pairs = pairs[:: max(1, len(pairs) // 2500)]
    d = x[pairs[:, 1]] - x[pairs[:, 0]]
    windows = [np.exp(-0.5 * (d**2).sum(axis=1) / width**2) for width in (1.0, 1.8)]  # to find, then to refine
    near, far = (w / w.sum() for w in windows)
    some = slice(None, None, max(1, len(d) // 1000))  # enough to rank the starts
    rank = _COST * _size(_strain(ideal.starts)) ** 2 - _power(ideal.starts, ideal, d[some], near[some] / near[some].sum())
    tried, found = [], []
    for m in ideal.starts[np.argsort(rank, kind="stable")]:
        if len(tried) == _TRIES:
            break
        if any(np.abs(m - other).max() < 0.2 for other in tried):
            continue
        tried.append(m)
        m = _refined(_refined(m, ideal, d, near), ideal, d, far)
        power = float(_power(m, ideal, d, far))
        if _size(_strain(m)) < _STRAIN and all(abs(power - other) > 1e-3 for other, _ in found):  # turned by a symmetry it keeps its power
            found.append((power, np.linalg.inv(m).T))
    found.sort(key=lambda pair: -pair[0])
    least = _POWER + _POWER_FEW / np.sqrt(len(x))
    if not found or found[0][0] < least:
        raise InputError(
            f"{len(x)} positions hold no {ideal.lattice.name} lattice strained by less than {_STRAIN:.0%}: the power of its reflections is "
            f"{found[0][0] if found else 0:.2f}, expected at least {least:.2f} (a perfect lattice has 1); {_ADVICE}"
        )
    return [m for power, m in found if power >= least]


class _Growth:
    """The indexed region of one set of positions; lengths in spacings of the mean lattice."""

    def __init__(self, x: Floats, ideal: _Ideal, mean: Floats, hint: Integers) -> None:
        unit = np.sqrt(abs(np.linalg.det(mean)))
        self.x, self.mean, self.ideal, self.hint = x / unit, mean / unit, ideal, hint
        self.tree = cKDTree(self.x)
        distance, near = self.tree.query(self.x, min(_NEAR + 1, len(x)))
        self.everyone = np.arange(len(x))
        self.near, self.distance = near[:, 1:], np.where(near == self.everyone[:, None], np.inf, distance)[:, 1:]
        self._clear()

    def _clear(self) -> None:
        self.sites = np.full((len(self.x), 3), -1)
        self.kept = np.zeros(len(self.x), dtype=bool)
        self.taken: set[tuple[int, ...]] = set()

    def run(self) -> _Growth:
        """Index the largest region grown from up to three seeds, each outside the regions before it."""
        outside, best = np.ones(len(self.x), dtype=bool), None
        for _ in range(3):
            self._clear()
            self._plant(outside)
            self._grow()
            self._relax()
            if best is None or self.kept.sum() > best[0].sum():
                best = self.kept, self.sites, self.maps
            outside &= ~self.kept
            if outside.mean() < 0.5:
                break
        self.kept, self.sites, self.maps = best
        self._judge()
        return self

    def _plant(self, allowed: Truths) -> None:
        """Index the position whose surroundings fit the mean lattice best, and these."""
        best, seed = np.inf, None
        turns = self.ideal.turns if len(self.ideal.basis) > 1 else [np.eye(2)]
        for turn, b in itertools.product(turns, range(len(self.ideal.basis))):
            shell, steps = self.ideal.around(b)
            apart, who = self.tree.query(self.x[:, None] + steps @ turn @ self.mean)
            misfit = np.where(apart < _CAPTURE, apart**2, 1).mean(axis=1)
            misfit[~allowed | ((self.hint >= 0) & (self.hint != b))] = np.inf
            i = int(misfit.argmin())
            if misfit[i] < best - 1e-9:
                best, there = misfit[i], apart[i] < _CAPTURE
                seed = turn, np.array([i, *who[i][there]]), np.array([(0, 0, b), *shell[there]])
        turn, points, sites = seed
        self.maps = np.repeat((turn @ self.mean)[None], len(self.x), axis=0)
        self._accept(points, sites, np.zeros(len(points)))

    def _grow(self) -> None:
        """Add the best fits, fit their neighbours anew, until none is left within reach."""
        proposal, misfit = self.sites.copy(), np.full(len(self.x), np.inf)
        seen, added = np.zeros(len(self.x), dtype=int), 1
        while added:
            known = self._known(self.everyone).sum(axis=1)
            stale = np.flatnonzero(~self.kept & (known != seen))  # a fit changes only where a neighbour was added
            proposal[stale], misfit[stale] = self._locate(stale)
            front = np.flatnonzero(~self.kept & (misfit <= _CAPTURE))
            seen, added = known, self._accept(front, proposal[front], misfit[front], tie=_TIE)

    def _relax(self) -> None:
        """Place every position anew from its indexed neighbours, now on all sides, until nothing changes."""
        for _ in range(10):
            before, placed = self.sites, self._locate(self.everyone)
            self._clear()
            self._accept(self.everyone, *placed)
            if np.array_equal(before, self.sites):
                break

    def _accept(self, points: Integers, sites: Integers, misfit: Floats, tie: float = np.inf) -> int:
        """Index `points`, the best fit to each free site; of these the best and those within `tie` of it. How many?"""
        limit, before = _CAPTURE, len(self.taken)
        for i in np.argsort(misfit, kind="stable"):
            if misfit[i] > limit:
                break
            site = tuple(sites[i].tolist())
            if site not in self.taken:
                if len(self.taken) == before:
                    limit = min(_CAPTURE, max(_SURE, misfit[i] + tie))
                self.taken.add(site)
                self.sites[points[i]], self.kept[points[i]] = sites[i], True
        return len(self.taken) - before

    def _known(self, points: Integers) -> Truths:
        return (self.distance[points] < _REACH) & self.kept[self.near[points]]

    def _locate(self, points: Integers) -> tuple[Integers, Floats]:
        """The site of each point and its misfit, inf where nothing can be said."""
        q, solved = self._fit(points)
        sites, misfit = self.ideal.nearest(q, self.maps[points], self.hint[points])
        return sites, np.where(solved, misfit, np.inf)

    def _fit(self, points: Integers) -> tuple[Floats, Truths]:
        """Ideal places of `points` from affine fits to their indexed neighbours, whose maps are kept; and where they exist.

        With ideal places q and positions x of the neighbours, both from an origin, the fit is
        x = a + q M, with a ridge that draws M to the mean of the neighbours' own maps. A point at x0
        then has its place where a + q M = x0; the point itself takes no part.
        """
        near, known = self.near[points], self._known(points)
        count = known.sum(axis=1)
        q = self.ideal.places(self.sites)
        origin = q[near[np.arange(len(points)), known.argmax(axis=1)]]
        prior = (self.maps[near] * known[..., None, None]).sum(axis=1) / np.maximum(count, 1)[:, None, None]
        design = np.concatenate([np.ones((*near.shape, 1)), q[near] - origin[:, None]], axis=-1)
        weighted = np.swapaxes(design * known[..., None], 1, 2)
        moment = weighted @ (self.x[near] - self.x[points][:, None])
        moment[:, 1:] += _RIDGE * prior
        fit = np.linalg.solve(weighted @ design + np.diag([1e-9, _RIDGE, _RIDGE]), moment)
        volume = np.linalg.det(prior)
        solved = (count >= 3) & (np.linalg.det(fit[:, 1:]) * volume > 0.3 * volume**2)  # neither flat nor mirrored
        self.maps[points] = np.where(solved[:, None, None], fit[:, 1:], self.maps[points])
        place = origin - (fit[:, :1] @ np.linalg.inv(self.maps[points]))[:, 0]
        return np.where(solved[:, None], place, 0), solved

    def _judge(self) -> None:
        """Set `bonds`, `agreeing` and `residual`; positions whose indices contradict their near neighbours' lose theirs."""
        q = self.ideal.places(self.sites)
        steps = q[self.near] - q[:, None]
        gap = np.linalg.norm(self.x[self.near] - self.x[:, None] - steps @ self.maps, axis=-1)
        short = self.distance < _BOND
        both = self.kept[self.near] & self.kept[:, None]
        agree = short & both & (gap < _SLIP)
        self.agreeing = agree.sum() / max(1, short.sum())
        slipped = self.kept & (3 * agree.sum(axis=1) < 2 * (short & both).sum(axis=1))
        self.kept &= ~slipped
        self.sites[slipped] = -1
        bond = (np.abs(np.linalg.norm(steps, axis=-1) - 1) < 1e-6) & self.kept[self.near] & self.kept[:, None]
        self.bonds = np.column_stack([np.repeat(self.everyone, bond.sum(axis=1)), self.near[bond]])
        place, solved = self._fit(self.everyone)
        misfit = self.ideal.nearest(place, self.maps, self.hint)[1]
        own = np.linalg.norm((self.ideal.places(self.sites) - place)[:, None] @ self.maps, axis=-1)[:, 0]
        self.residual = np.where(solved, np.where(self.kept, own, misfit), np.nan)
