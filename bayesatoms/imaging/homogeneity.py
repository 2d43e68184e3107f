"""Is an image of one material? Composition and short-range order tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FALSE_ALARM = 0.01
_FEWEST = 60  # sites in a tile on average
_TILES = 3  # along an axis at most


@dataclass(frozen=True, eq=False)
class Homogeneity:
    """Composition and unlike neighbours of an image in tiles.

    Attributes
    ----------
    tile : ndarray of int, shape (n,)
        Tile of each site.
    composition : ndarray, shape (tiles, k)
        Fraction of each species, by probabilities.
    unlike : ndarray, shape (tiles,)
        Fraction of unlike nearest-neighbour bonds over that of a random arrangement of the tile's composition.
    p_composition, p_order : float
        Chance of so much scatter between the tiles in a homogeneous image; nan where there is one tile only.
    sentence : str
    """

    tile: Integers
    composition: Floats
    unlike: Floats
    p_composition: float
    p_order: float
    sentence: str

    @property
    def suspect(self) -> bool:
        return bool(min(self.p_composition, self.p_order) < FALSE_ALARM / 2)


def homogeneity(positions: Floats, probabilities: Floats, neighbours: Integers) -> Homogeneity:
    """Test whether composition and short-range order are the same all over an image.

    Composition scatters between tiles as that of independent sites does, more where like atoms
    cluster: the bonds of a site within the image tell by how much, and the test allows for it. Order is
    compared by the scatter of the bonds themselves.

    Parameters
    ----------
    positions : ndarray, shape (n, 2)
    probabilities : ndarray, shape (n, k)
    neighbours : ndarray of int, shape (n, z)
        Rows of the nearest neighbours, -1 where there is none.

    Examples
    --------
    >>> rng = np.random.default_rng(3)
    >>> xy = np.stack(np.meshgrid(np.arange(30.0), np.arange(30.0)), -1).reshape(-1, 2)
    >>> p = np.eye(2)[rng.integers(0, 2, 900)]
    >>> there = np.full((900, 4), -1)
    >>> homogeneity(xy, p, there).suspect
    False
    """
    n, k = probabilities.shape
    side = int(np.clip(np.sqrt(n / _FEWEST), 1, _TILES))
    low, high = positions.min(axis=0), positions.max(axis=0) + 1e-9
    place = np.minimum(((positions - low) / (high - low) * side).astype(np.int64), side - 1)
    tile = place[:, 1] * side + place[:, 0]
    size = np.bincount(tile, minlength=side**2)
    used = size > 0
    composition = np.stack([np.bincount(tile, probabilities[:, s], side**2) for s in range(k)], axis=1) / np.maximum(size, 1)[:, None]
    there = neighbours >= 0
    other = probabilities[np.where(there, neighbours, 0)]
    unlike = 1 - (probabilities[:, None] * other).sum(axis=-1)  # of each bond, by probabilities
    bonds = np.bincount(tile, there.sum(axis=1), side**2)
    random = np.maximum(1 - (composition**2).sum(axis=1), 1e-12)
    ratio = np.where(bonds > 0, np.bincount(tile, (unlike * there).sum(axis=1), side**2) / np.maximum(bonds, 1) / random, np.nan)
    if side == 1:
        return Homogeneity(tile, composition, ratio, np.nan, np.nan, f"{n} sites are too few to compare parts of the image")
    mean = probabilities.mean(axis=0)
    common = int(np.argmax(mean * (1 - mean)))
    a = probabilities[:, common] - mean[common]
    # correlated neighbours make the composition of a tile scatter more than that of independent sites
    pull = (a[:, None] * np.where(there, a[np.where(there, neighbours, 0)], 0)).sum() / max(float((a**2).sum()), 1e-300)
    spread = float(a.var()) * max(1 + pull, 0.2)
    q = float((size[used] * (composition[used, common] - mean[common]) ** 2).sum() / max(spread, 1e-300))
    p_composition = float(chi2.sf(q, used.sum() - 1))
    p_order = _order(tile, probabilities, composition, unlike, there, used)
    sentence = _sentence(side, p_composition, p_order, composition[used, common], ratio[used])
    return Homogeneity(tile, composition, ratio, p_composition, p_order, sentence)


def _order(
    tile: Integers, probabilities: Floats, composition: Floats, unlike: Floats, there: NDArray[np.bool_], used: NDArray[np.bool_]
) -> float:
    """Chance of the scatter of unlike bonds between tiles, the composition of each tile given."""
    k = probabilities.shape[1]
    # how far the bonds of a site are from those of a random arrangement, given its own species and its tile
    expected = sum(probabilities[:, s] * (1 - composition[tile, s]) for s in range(k))
    excess = np.where(there, unlike - expected[:, None], 0).sum(axis=1) / 2
    scale = excess - excess.mean()
    m = len(used)
    size = np.maximum(np.bincount(tile, minlength=m), 1)
    mean = np.bincount(tile, scale, m) / size
    # both ends of a bond share it: its excess appears in two sites, which doubles the scatter of a tile's sum
    variance = 2 * float(scale.var()) / size
    q = float((mean[used] ** 2 / np.maximum(variance[used], 1e-300)).sum())
    return float(chi2.sf(q, used.sum() - 1))


def _sentence(side: int, p_composition: float, p_order: float, share: Floats, ratio: Floats) -> str:
    of = f"{side} x {side} tiles"
    if min(p_composition, p_order) >= FALSE_ALARM / 2:
        return f"homogeneous: {of} differ in composition (p = {p_composition:.2f}) and order (p = {p_order:.2f}) by no more than chance"
    parts = []
    if p_composition < FALSE_ALARM / 2:
        parts.append(f"composition runs from {share.min():.3f} to {share.max():.3f} (p = {p_composition:.1g})")
    if p_order < FALSE_ALARM / 2:
        parts.append(f"unlike bonds run from {np.nanmin(ratio):.2f} to {np.nanmax(ratio):.2f} of random (p = {p_order:.1g})")
    return f"not homogeneous over {of}: {'; '.join(parts)}; one set of couplings may not describe it: choose a region"
