"""One image's emulator where its composition or its label errors are parameters too.

A few neighbouring boxes (one atom of a species more or less, by about the window's own error) or
operators (rates of wrong labels higher or lower) are emulated each by itself; between them the moments
are quadratic in the coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..lattice import Supercell
from ..observation import Observation
from ..response import Response
from ..window import Operator
from .emulator import ImageEmulator
from .moments import Moments
from .parameters import Nuisances, noisy

_APART = 1.5  # binomial standard deviations of the window between neighbouring boxes


@dataclass(frozen=True, eq=False)
class Variant:
    """What is simulated for an image: the atoms in its box and the operator; `axis` and `place` say along which coordinate it lies."""

    atoms: tuple[int, ...]
    operator: Operator
    axis: int = -1
    place: float = 0.0


def variants(o: Observation, supercell: Supercell, atoms: Sequence[int], nuisances: Nuisances) -> list[Variant]:
    """The image as it is, then two neighbours along each of its own coordinates (compositions first, then label errors).

    Raises
    ------
    InputError
        If a species is too rare for a box with less of it.
    """
    atoms, n = tuple(int(a) for a in atoms), sum(atoms)
    plain = Operator(o.environments, o.window, supercell, o.response)
    found, axis = [Variant(atoms, plain)], 0
    for s in range(1, len(atoms)) if nuisances.composition and not o.window.whole else ():
        x = atoms[s] / n
        step = max(1, round(_APART * float(np.sqrt(x * (1 - x) / o.n)) * n))
        for change in (-step, step):
            other = [a + change * (i == s) - change * (i == 0) for i, a in enumerate(atoms)]
            if min(other[0], other[s]) < 1:
                # a rarest species keeps one atom: the quadratic takes unequal steps
                change = int(np.sign(change)) * (min(atoms[s], atoms[0]) - 1)
                other = [a + change * (i == s) - change * (i == 0) for i, a in enumerate(atoms)]
            if change == 0:
                raise InputError(f"{o.name}: {atoms[s]} atoms of {o.environments.species[s]} are too few for a composition with error")
            found.append(Variant(tuple(other), plain, axis, other[s] / n))
        axis += 1
    if nuisances.label_error > 0 and noisy(o):
        for sign in (-1, 1):
            factor = float(np.exp(sign * 1.2 * nuisances.label_error))
            error = o.label_error * factor
            np.fill_diagonal(error, 0.0)
            if error.sum(axis=1).max() >= 1:
                raise InputError(f"{o.name}: label errors of {error.sum(axis=1).max():.2f} after a factor {factor:.2f}; lower label_error")
            np.fill_diagonal(error, 1 - error.sum(axis=1))
            found.append(Variant(atoms, Operator(o.environments, o.window, supercell, Response.of_errors(error, len(error))), axis, factor))
    return found


def middle(o: Observation, atoms: Sequence[int], nuisances: Nuisances) -> NDArray[np.float64]:
    """Where the image as it is lies along its own coordinates."""
    compositions = [a / sum(atoms) for a in atoms[1:]] if nuisances.composition and not o.window.whole else []
    return np.array([*compositions, *([1.0] if nuisances.label_error > 0 and noisy(o) else [])])


@dataclass(frozen=True, eq=False)
class VariedEmulator:
    """Moments of an image at union couplings and its own coordinates.

    places (a, 3): where the emulators below, in the middle and above lie along each of the a coordinates.
    """

    middle: ImageEmulator
    sides: Sequence[tuple[ImageEmulator, ImageEmulator]]
    places: NDArray[np.float64]

    @property
    def random(self) -> NDArray[np.float64]:
        """The random alloy, as the image is (q + a,)."""
        return np.r_[self.middle.random, self.places[:, 1]]

    def batch(self, points: NDArray[np.float64], *, histogram: bool = True) -> tuple[Moments, NDArray[np.float64]]:
        """Moments at points (m, q + a), and the least support (m,) of the emulators used."""
        a = len(self.places)
        each = (self.middle, *(e for pair in self.sides for e in pair))
        return self._between([e.batch(points[:, :-a], histogram=histogram) for e in each], points[:, -a:])

    def of_chains(self, chains: NDArray[np.intp], own: NDArray[np.float64]) -> tuple[Moments, NDArray[np.float64]]:
        """Moments of whole chains by their own records alone, at own coordinates (chains, a), and how many those are."""
        return self._between([e.of_chains(chains) for e in (self.middle, *(e for pair in self.sides for e in pair))], own)

    def _between(self, found: Sequence[tuple[Moments, NDArray]], own: NDArray[np.float64]) -> tuple[Moments, NDArray[np.float64]]:
        """From moments of the middle and both ends along each coordinate to those at own coordinates (m, a)."""
        centre, support = found[0][0], np.min([number for _, number in found], axis=0)
        d = centre.mean.shape[1]
        i, j = np.tril_indices(d)
        parts = _flat(centre, i, j)
        total = parts.copy()
        for axis in range(len(self.places)):
            low, high = (_flat(found[1 + 2 * axis + side][0], i, j) for side in (0, 1))
            total += _quadratic(own[:, axis, None], self.places[axis], parts, low, high)
        lower = np.zeros_like(centre.lower)
        entries = total[:, d : d + len(i)]
        lower[:, i, j] = np.where(i == j, np.exp(entries), entries)
        histogram = np.maximum(total[:, d + len(i) :], 0.0)
        return Moments(total[:, :d], lower, histogram / histogram.sum(axis=1, keepdims=True)), support


def _quadratic(at: NDArray, places: NDArray, middle: NDArray, low: NDArray, high: NDArray) -> NDArray[np.float64]:
    """Change from the middle along one coordinate: the parabola through three places, straight on beyond its ends."""
    left, m, right = places
    inside = np.clip(at, left, right)
    below, above = (low - middle) / (left - m), (high - middle) / (right - m)
    bend = (above - below) / (right - left)
    straight = below - bend * (left - m)
    value = straight * (inside - m) + bend * (inside - m) ** 2
    return value + (straight + 2 * bend * (inside - m)) * (at - inside)


def _flat(moments: Moments, i: NDArray, j: NDArray) -> NDArray[np.float64]:
    """Numbers that may be interpolated: the mean, the Cholesky factor with logarithms on its diagonal, the histogram."""
    lower = moments.lower[:, i, j]
    entries = np.where(i == j, np.log(np.maximum(lower, 1e-300)), lower)
    return np.column_stack([moments.mean, entries, moments.histogram])
