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
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.spatial import Delaunay, cKDTree

from .errors import InputError
from .lattice import Lattice

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

# Lengths below are in spacings of the mean lattice.
_FEWEST = 12  # positions
_NEAR, _REACH = 20, 2.4  # a local fit uses at most so many neighbours, no farther than this
_RIDGE = 1.0  # pull of a local fit towards the mean lattice, so that neighbours on one side only still make a fit
_SURE, _CAPTURE = 0.3, 0.45  # a position joins within the first; within the second once nothing surer is left; half way begins the next site
_BOND = 1.3  # pairs nearer than this must agree with their indices ...
_SLIP = 0.6  # ... to this


@dataclass(frozen=True, eq=False)
class Indexing:
    """Lattice indices of measured positions.

    Attributes
    ----------
    sites : ndarray of int, shape (n, 3)
        Site references (cell n1, n2 and basis index), the smallest n1 and n2 being 0; all -1 where not `kept`.
    kept : ndarray of bool, shape (n,)
        False for a position without index: off the lattice, a duplicate, an island, a row that slipped.
    residual : ndarray, shape (n,)
        Distance to the nearest site that the indexed neighbours (never the position itself) predict, in spacings;
        nan where fewer than three neighbours are indexed.
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


def index_positions(positions: ArrayLike, lattice: Lattice, *, sublattice_hint: ArrayLike | None = None) -> Indexing:
    """Give 2-D positions their lattice indices, through drift, shear, holes and missing atoms.

    Parameters
    ----------
    positions : array_like, shape (n, 2)
        In any unit, in either sense of the y axis.
    lattice : Lattice
        Its shape guides the search; its scale does not matter.
    sublattice_hint : array_like of int, shape (n,), optional
        Basis index of a position where known, else -1.

    Returns
    -------
    Indexing
        Unique up to a lattice translation and a symmetry of the lattice.

    Raises
    ------
    InputError
        If the input is malformed or its positions hold no such lattice.

    Examples
    --------
    >>> metal = Lattice.triangular()
    >>> truth = metal.supercell((6, 6)).sites
    >>> found = index_positions(metal.positions(truth) @ [[20, 9], [-8, 18]] + 300, metal)
    >>> found.goodness, found.vectors.round(6).tolist()
    (1.0, [[20.0, 9.0], [-17.99..., 11.58...]])
    """
    points, hint = _checked(positions, lattice, sublattice_hint)
    ideal = _Ideal(lattice)
    scale = np.sqrt(_area_per_site(points) / ideal.area_per_site)
    x = (points - points.mean(axis=0)) / scale
    best = None
    for mean, power in _mean_lattices(x, ideal):
        g = _Growth(x, ideal, mean, hint)
        g.run()
        st = g.statistics()
        if best is None or st[0] * st[1] > best[0][0] * best[0][1]:
            best = (st, power, g)
        if st[0] * st[1] > 0.8:
            break
    return best


def _checked(positions, lattice, hint):
    points = np.asarray(positions, dtype=float)
    return points, (np.full(len(points), -1) if hint is None else np.asarray(hint))


class _Ideal:
    """The lattice in units of its nearest-neighbour distance."""

    def __init__(self, lattice: Lattice) -> None:
        self.lattice = lattice
        self.cell = lattice.cell / lattice.shell_distances(1)[0]
        self.basis = lattice.basis @ self.cell
        self.area_per_site = abs(np.linalg.det(self.cell)) / len(self.basis)

    def places(self, sites: Integers) -> Floats:
        return sites[..., :2] @ self.cell + self.basis[sites[..., 2]]

    def shell(self, b: int) -> tuple[Integers, Floats]:
        sites = self.lattice.shell(1, b)
        return sites, self.places(sites) - self.basis[b]

    @cached_property
    def turns(self) -> list[Floats]:
        """Symmetries of the cell as maps of the plane; the basis may have fewer."""
        inverse = np.linalg.inv(self.cell)
        return [inverse @ op.matrix @ self.cell for op in Lattice(self.cell).operations]

    @cached_property
    def reflections(self) -> tuple[Floats, Floats]:
        """Reciprocal vectors up to the first strong ones that span the plane, one of each +-k, and their strengths."""
        h = np.array([v for v in itertools.product(range(-3, 4), repeat=2) if v > (0, 0)])
        k = h @ (2 * np.pi * np.linalg.inv(self.cell).T)
        strength = np.abs(np.exp(1j * k @ self.basis.T).mean(axis=1)) ** 2
        length = np.linalg.norm(k, axis=1)
        reach = next(r for r in np.sort(length) * 1.001 if np.linalg.matrix_rank(k[(strength > 0.5) & (length < r)], tol=1e-6) == 2)
        used = (strength > 0.05) & (length < reach)
        return k[used], strength[used] / strength[used].sum()

    def nearest(self, q: Floats, maps: Floats, hint: Integers) -> tuple[Integers, Floats]:
        """The site nearest to each ideal place, and how far it is in the image."""
        corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
        cells = np.floor((q[:, None] - self.basis) @ np.linalg.inv(self.cell)).astype(np.int64)[:, :, None] + corners
        basis = np.broadcast_to(np.arange(len(self.basis))[:, None, None], (*cells.shape[:3], 1))
        options = np.concatenate([cells, basis], axis=-1).reshape(len(q), -1, 3)
        apart = np.linalg.norm((self.places(options) - q[:, None]) @ maps, axis=-1)
        apart[(hint[:, None] >= 0) & (options[..., 2] != hint[:, None])] = np.inf
        best = (np.arange(len(q)), apart.argmin(axis=1))
        return options[best], apart[best]


# ------------------------------------------------------------------ the mean lattice


def _area_per_site(x: Floats) -> float:
    corners = x[Delaunay(x).simplices]
    sides = corners - np.roll(corners, 1, axis=1)
    area = np.abs(sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0]) / 2
    radius = np.prod(np.linalg.norm(sides, axis=2), axis=1) / np.maximum(4 * area, 1e-12 * area.max())
    return 2 * float(area[radius < 1.6 * np.median(radius)].mean())


def _starts(ideal):
    proper = sum(np.linalg.det(t) > 0 for t in ideal.turns)
    angles = np.arange(0, 2 * np.pi / proper, np.radians(4))
    scales = np.linspace(0.84, 1.16, 7)
    shears = [(0, 0), *((0.08 * np.cos(t), 0.08 * np.sin(t)) for t in np.arange(6) * np.pi / 3)]
    hands = (1,) if proper < len(ideal.turns) else (1, -1)
    return np.array(
        [
            s * np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) @ np.array([[1 + p, q], [q, 1 - p]]) @ np.diag([1, h])
            for t, s, (p, q), h in itertools.product(angles, scales, shears, hands)
        ]
    )


def _strain(m):
    # m^T m of a similarity is s^2 I
    g = np.swapaxes(m, -1, -2) @ m
    t = (g[..., 0, 0] + g[..., 1, 1]) / 2
    aniso = (((g[..., 0, 0] - g[..., 1, 1]) / 2) ** 2 + g[..., 0, 1] ** 2) / t**2
    return aniso / 4 + (np.log(t) / 2) ** 2


def _loss(m, ideal, d, w):
    k, strength = ideal.reflections
    return 10 * _strain(m) - (np.cos((k @ m) @ d.T) @ w) @ strength


def _mean_lattices(x, ideal, how_many=3):
    pairs = cKDTree(x).query_pairs(3.0, output_type="ndarray")
    pairs = pairs[:: max(1, len(pairs) // 4000)]
    d = x[pairs[:, 1]] - x[pairs[:, 0]]
    ws = []
    for width in (1.0, 1.8):
        w = np.exp(-0.5 * (d**2).sum(1) / width**2)
        ws.append(w / w.sum())
    starts = _starts(ideal)
    loss = _loss(starts, ideal, d, ws[0])
    out = []
    used = []
    for i in np.argsort(loss, kind="stable"):
        m = starts[i]
        if any(np.abs(m - o).max() < 0.2 for o in used):
            continue
        used.append(m)
        for w in ws:
            m = minimize(lambda v: _loss(v.reshape(2, 2), ideal, d, w), m.ravel(), method="BFGS", options={"gtol": 1e-3}).x.reshape(2, 2)
        power = 10 * _strain(m) - _loss(m, ideal, d, ws[1])
        if not any(abs(power - p) < 1e-3 for _, p in out):
            out.append((np.linalg.inv(m).T, power))
        if len(used) == 2 * how_many or len(out) == how_many:
            break
    return sorted(out, key=lambda t: -t[1])


class _Growth:
    def __init__(self, x, ideal, mean, hint):
        self.ideal, self.hint = ideal, hint
        unit = np.sqrt(abs(np.linalg.det(mean)))
        self.x, self.mean = x / unit, mean / unit
        self.tree = cKDTree(self.x)
        dist, near = self.tree.query(self.x, min(_NEAR + 1, len(x)))
        self.near, self.dist = near[:, 1:], dist[:, 1:]
        self.close = self.dist < _REACH
        self.sites = np.full((len(x), 3), -1)
        self.kept = np.zeros(len(x), dtype=bool)

    def fit(self, points):
        near = self.near[points]
        known = self.close[points] & self.kept[near]
        q = self.ideal.places(self.sites)
        anchor = q[near[np.arange(len(points)), known.argmax(axis=1)]]
        design = np.concatenate([np.ones((*near.shape, 1)), q[near] - anchor[:, None]], axis=-1)
        w = design * (known * WEIGHT(self.dist[points]))[..., None]
        normal = np.swapaxes(w, 1, 2) @ design + np.diag([1e-9, _RIDGE, _RIDGE])
        moment = np.swapaxes(w, 1, 2) @ (self.x[near] - self.x[points][:, None])
        prior = self.mean if not LOCAL else ((self.maps[near] * known[..., None, None]).sum(1) / np.maximum(1, known.sum(1))[:, None, None])
        moment[:, 1:] += _RIDGE * prior
        c = np.linalg.solve(normal, moment)
        maps = c[:, 1:]
        ok = (known.sum(1) >= 3) & (np.linalg.det(maps) / np.linalg.det(self.mean) > 0.3)
        maps = np.where(ok[:, None, None], maps, self.mean)
        q = anchor - (c[:, :1] @ np.linalg.inv(maps))[:, 0]
        return np.where(ok[:, None], q, 0), maps, ok

    def locate(self, points):
        q, maps, ok = self.fit(points)
        self.maps[points] = maps
        sites, misfit = self.ideal.nearest(q, maps, self.hint[points])
        return sites, np.where(ok, misfit, np.inf)

    def accept(self, points, sites, misfit, limit):
        taken = self.sites[self.kept]
        first = np.argsort(misfit, kind="stable")
        first = first[misfit[first] <= limit]
        _, where = np.unique(np.concatenate([taken, sites[first]]), axis=0, return_index=True)
        new = first[where[where >= len(taken)] - len(taken)]
        self.sites[points[new]] = sites[new]
        self.kept[points[new]] = True
        return len(new)

    def seed(self):
        best = (np.inf,)
        turns = self.ideal.turns if len(self.ideal.basis) > 1 else [np.eye(2)]
        for turn, b in itertools.product(turns, range(len(self.ideal.basis))):
            sites, steps = self.ideal.shell(b)
            d, j = self.tree.query(self.x[:, None] + steps @ turn @ self.mean)
            m = np.where(d < _CAPTURE, d**2, 1).mean(1)
            m[(self.hint >= 0) & (self.hint != b)] = np.inf
            i = m.argmin()
            if m[i] < best[0] - 1e-9:
                good = d[i] < _CAPTURE
                best = (m[i], turn, np.concatenate([[i], j[i][good]]), np.concatenate([[(0, 0, b)], sites[good]]))
        return best

    def run(self):
        _, turn, points, sites = self.seed()
        self.mean = turn @ self.mean
        self.sites[points] = sites
        self.kept[points] = True
        self.maps = np.broadcast_to(self.mean, (len(self.x), 2, 2)).copy()
        li = 0
        while li < len(LIMITS):
            front = np.flatnonzero(~self.kept & ((self.kept[self.near] & self.close).sum(1) >= 3))
            if len(front) and self.accept(front, *self.locate(front), LIMITS[li]):
                li = 0
            else:
                li += 1
        everyone = np.arange(len(self.x))
        for _ in range(10):
            before = self.sites
            sites, misfit = self.locate(everyone)
            self.kept[:] = False
            self.sites = np.full_like(self.sites, -1)
            self.accept(everyone, sites, misfit, _CAPTURE)
            if np.array_equal(before, self.sites):
                break
        self.misfit = misfit

    def statistics(self):
        everyone = np.arange(len(self.x))
        _, maps, ok = self.fit(everyone)
        q = self.ideal.places(self.sites)
        gap = np.linalg.norm((self.x[self.near] - self.x[:, None]) - (q[self.near] - q[:, None]) @ maps, axis=-1)
        bond = self.dist < _BOND
        both = bond & self.kept[self.near] & self.kept[:, None]
        agree = both & (gap < _SLIP)
        slipped = self.kept & (agree.sum(1) < 0.67 * both.sum(1))
        self.slipped = slipped
        return self.kept.mean(), agree.sum() / max(1, both.sum()), agree.sum() / max(1, bond.sum()), np.median(self.misfit[self.kept]) if self.kept.any() else 9, slipped.mean()

LIMITS=(.1,.15,.2,.25,.3,.35,.4,.45)
WEIGHT=lambda d: 1.0
LOCAL=True
