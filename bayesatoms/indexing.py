"""Indexing: give measured atom positions of a distorted image their place in the lattice.

The lattice is known; its rotation, scale, shear and slow distortion in the image are not. Two steps:

1. *One mean lattice.* The power spectrum of short difference vectors is maximised over all linear
   maps of the ideal lattice. It is the mean lattice that is found: a 2 x 1 dimerisation such as 1T'
   splits bonds in real space, but leaves the fundamental reflections where they are.
2. *Growth.* From a well-fitting seed the indexed region grows, each position being located by the
   affine map fitted to the indexed positions around it, best fits first. Only local order is asked
   for, so drift may add up to many spacings across the image. No distance decides who is a neighbour.

What holds no lattice (random or amorphous positions, one line, too few) is refused.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.spatial import Delaunay, cKDTree

from .errors import InputError
from .lattice import Lattice

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FEWEST = 12  # positions; an affine map alone can place three anywhere
_NEAR = 20  # neighbours kept for the local fits ...
_REACH = 2.4  # ... and how far they may be, in spacings
_CAPTURE = 0.45  # spacings; half a spacing is where the next site begins
_SURE = 0.3  # spacings; fits worse than this wait until nothing better is left
_RIDGE = 1.0  # pull of a local fit to the mean lattice, in (positions x spacing^2): keeps one-sided neighbourhoods solvable


@dataclass(frozen=True, eq=False)
class Indexing:
    sites: Integers
    kept: NDArray[np.bool_]
    residual: Floats
    spacing: float
    vectors: Floats
    goodness: float


@dataclass(frozen=True)
class _Ideal:
    """The lattice in units of its nearest-neighbour distance."""

    cell: Floats
    basis: Floats
    shell: tuple[Floats, ...]

    @classmethod
    def of(cls, lattice):
        cell = lattice.cell / lattice.shell_distances(1)[0]
        basis = lattice.basis @ cell
        shells = []
        for b in range(len(basis)):
            s = lattice.shell(1, b)
            shells.append(s[:, :2] @ cell + basis[s[:, 2]] - basis[b])
        return cls(cell, basis, tuple(shells))

    def q(self, sites):
        return sites[..., :2] @ self.cell + self.basis[sites[..., 2]]

    def nearest(self, q, maps, hint):
        inverse = np.linalg.inv(self.cell)
        corners = np.array(list(itertools.product((0, 1), repeat=2)))
        options = []
        for b, shift in enumerate(self.basis):
            cells = np.floor((q - shift) @ inverse)[:, None] + corners
            options.append(np.concatenate([cells, np.full((len(q), 4, 1), b)], axis=-1))
        options = np.concatenate(options, axis=1).astype(np.int64)
        d = np.linalg.norm((self.q(options) - q[:, None]) @ maps, axis=-1)
        d[(hint[:, None] >= 0) & (options[..., 2] != hint[:, None])] = np.inf
        best = d.argmin(axis=1)
        row = np.arange(len(q))
        return options[row, best], d[row, best]


def _area(x):
    t = x[Delaunay(x, qhull_options="QJ").simplices]
    u, v = t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]
    area = 0.5 * np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
    r = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1) * np.linalg.norm(u - v, axis=1) / (4 * np.maximum(area, 1e-12 * area.max()))
    return area[r <= 1.6 * np.median(r)].mean()


def _reflections(ideal):
    h = np.array([v for v in itertools.product(range(-3, 4), repeat=2) if v > (0, 0)])
    k = h @ (2 * np.pi * np.linalg.inv(ideal.cell).T)
    strength = np.abs(np.exp(1j * k @ ideal.basis.T).mean(axis=1)) ** 2
    order = np.argsort(np.linalg.norm(k, axis=1).round(6), kind="stable")
    k, strength = k[order], strength[order]
    length = np.linalg.norm(k, axis=1)
    strong = strength > 0.5
    for r in length:
        inside = strong & (length < r * 1.001)
        if np.linalg.matrix_rank(k[inside], tol=1e-6) == 2:
            break
    use = (length < r * 1.2) & (strength > 0.05)
    return k[use], strength[use]


def _differences(x, reach, most):
    pairs = cKDTree(x).query_pairs(reach, output_type="ndarray")
    pairs = pairs[:: max(1, len(pairs) // most)]
    return x[pairs[:, 1]] - x[pairs[:, 0]]


def _power(maps, k, strength, d, width):
    w = np.exp(-0.5 * (d**2).sum(1) / width**2)
    w /= w.sum()
    phase = (k @ maps) @ d.T  # (..., h, P)
    return (np.cos(phase) @ w) @ (strength / strength.sum())


def _penalty(n):
    a, b = n[..., 0, 0] + n[..., 1, 1], n[..., 1, 0] - n[..., 0, 1]
    p, q = n[..., 0, 0] - n[..., 1, 1], n[..., 1, 0] + n[..., 0, 1]
    return 10 * (p**2 + q**2) / (a**2 + b**2)


def _mean_lattices(x, ideal, order=6, how_many=3):
    k, strength = _reflections(ideal)
    d = _differences(x, 3.0, 5000)
    angles = np.arange(0, np.pi, np.radians(4))
    scales = np.linspace(0.84, 1.16, 7)
    shears = [(0, 0)] + [(0.08 * np.cos(t), 0.08 * np.sin(t)) for t in np.arange(0, 2 * np.pi, np.pi / 3)]
    starts = np.array([
        np.array([[c, s], [-s, c]]) @ np.array([[1 + p, q], [q, 1 - p]]) * z
        for c, s in zip(np.cos(angles), np.sin(angles)) for z in scales for p, q in shears
    ])
    score = _power(starts, k, strength, d, 1.0) - _penalty(starts)
    out = []
    for i in np.argsort(-score, kind="stable")[:60]:
        if any(np.abs(starts[i] - o).max() < 0.15 for o, *_ in out):
            continue
        n = starts[i]
        for width in (1.0, 1.8):
            def f(v):
                m = v.reshape(2, 2)
                return -(_power(m, k, strength, d, width) - _penalty(m))
            n = minimize(f, n.ravel(), method="BFGS").x.reshape(2, 2)
        if any(np.abs(n - o).max() < 0.05 for _, o, _ in out):
            continue
        out.append((starts[i], n, -f(n.ravel())))
    out.sort(key=lambda t: -t[2])
    return [(np.linalg.inv(n).T, s) for _, n, s in out[:how_many]]


class _Grower:
    def __init__(self, x, ideal, mean, hint):
        self.x, self.ideal, self.mean, self.hint = x, ideal, mean, hint
        n = len(x)
        dist, near = cKDTree(x).query(x, min(_NEAR + 1, n))
        self.near, self.close = near[:, 1:], dist[:, 1:] < _REACH
        self.sites = np.zeros((n, 3), dtype=np.int64)
        self.kept = np.zeros(n, dtype=bool)

    def locate(self, points):
        near = self.near[points]
        known = self.close[points] & self.kept[near]
        w = known.astype(float)
        q = self.ideal.q(self.sites)
        anchor = q[near[np.arange(len(points)), known.argmax(axis=1)]]
        dq = q[near] - anchor[:, None]
        dx = self.x[near] - self.x[points][:, None]
        A = np.concatenate([np.ones((*dq.shape[:2], 1)), dq], axis=-1)
        AtA = np.einsum("mk,mki,mkj->mij", w, A, A, optimize=True)
        Atb = np.einsum("mk,mki,mkj->mij", w, A, dx, optimize=True)
        AtA += np.diag([1e-9, _RIDGE, _RIDGE])
        Atb[:, 1:] += _RIDGE * self.mean
        c = np.linalg.solve(AtA, Atb)
        det = np.linalg.det(c[:, 1:])
        ok = (known.sum(1) >= 3) & (det / np.linalg.det(self.mean) > 0.3)
        m = np.where(ok[:, None, None], c[:, 1:], self.mean)
        here = anchor - (c[:, :1] @ np.linalg.inv(m))[:, 0]
        here = np.where(ok[:, None], here, 0)
        sites, misfit = self.ideal.nearest(here, m, self.hint[points])
        return sites, np.where(ok, misfit, np.inf)

    def seed(self, allowed):
        tree = cKDTree(self.x)
        best = (np.inf,)
        for b, shell in enumerate(self.ideal.shell):
            d, j = tree.query(self.x[:, None] + shell @ self.mean)
            m = np.where(d < _CAPTURE, d**2, 1).mean(1)
            m[~allowed | ((self.hint >= 0) & (self.hint != b))] = np.inf
            i = m.argmin()
            if m[i] < best[0]:
                best = (m[i], i, b, j[i], d[i])
        return best

    def grow(self, lattice, seed):
        _, i, b, j, d = seed
        self.kept[:] = False
        self.kept[i] = True
        self.sites[i] = (0, 0, b)
        good = d < _CAPTURE
        s = lattice.shell(1, b)[good]
        self.sites[j[good]] = s
        self.kept[j[good]] = True
        limit = _SURE
        rounds = 0
        while True:
            rounds += 1
            front = np.flatnonzero(~self.kept & ((self.kept[self.near] & self.close).sum(1) >= 3))
            if len(front) == 0:
                break
            sites, misfit = self.locate(front)
            added = self.accept(front, sites, misfit, limit)
            if not added:
                if limit == _CAPTURE:
                    break
                limit = _CAPTURE
            else:
                limit = _SURE
        return rounds

    def accept(self, points, sites, misfit, limit):
        taken = self.sites[self.kept]
        first = np.argsort(misfit, kind="stable")
        first = first[misfit[first] <= limit]
        every = np.concatenate([taken, sites[first]])
        _, where = np.unique(every, axis=0, return_index=True)
        new = first[where[where >= len(taken)] - len(taken)]
        self.sites[points[new]] = sites[new]
        self.kept[points[new]] = True
        return len(new)

    def relax(self):
        everyone = np.arange(len(self.x))
        for it in range(10):
            sites, misfit = self.locate(everyone)
            before = np.where(self.kept[:, None], self.sites, -(10**6))
            self.kept[:] = False
            self.sites = np.zeros_like(self.sites)
            self.accept(everyone, sites, misfit, _CAPTURE)
            if np.array_equal(before, np.where(self.kept[:, None], self.sites, -(10**6))):
                break
        return misfit


def attempt(positions, lattice):
    ideal = _Ideal.of(lattice)
    rng = np.random.default_rng(0)
    patch = lattice.supercell((12, 12)).sites
    pq = ideal.q(patch); pq = pq + rng.normal(0, 0.02, pq.shape)
    s = np.sqrt(_area(positions) / _area(pq))
    x = (positions - positions.mean(0)) / s
    res = []
    for mean, power in _mean_lattices(x, ideal):
        g = _Grower(x, ideal, mean, np.full(len(x), -1))
        sd = g.seed(np.ones(len(x), bool))
        if not np.isfinite(sd[0]): continue
        r = g.grow(lattice, sd)
        grown = g.kept.mean()
        misfit = g.relax()
        res.append((g.kept.mean(), np.median(misfit[g.kept]) if g.kept.any() else 9, power, grown, r, g))
    res.sort(key=lambda t: -t[0])
    return res
