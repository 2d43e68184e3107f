"""Pieces: what one image contributes to a posterior, and how well its chains know that.

Likelihoods of images multiply, so each is worked out by itself and kept: as polynomials over the region where
the posterior was, with their error, and with how they would change had other records been drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..observation import Observation
from .checks import heaps
from .densities import log_likelihoods, pool_log_likelihoods
from .emulator import Emulator, ImageEmulator
from .jackknife import GROUPS, left_out
from .regions import Region
from .smooth import Patch

_LEAST = 60  # draws at which a piece is held against its chains
_NEAR, _FINE = 1.5, 1 / 3  # widths of its region by which the noise of a piece may be off, and how narrow a posterior may have become


@dataclass(frozen=True, eq=False)
class Apart:
    """How much the log likelihood of an image changes without each group of its records: quadratic in the parameters.

    `table` (powers, groups) are the coefficients in coordinates about `centre` (p,), whitened by `inverse` (p, p).
    """

    centre: NDArray[np.float64]
    inverse: NDArray[np.float64]
    table: NDArray[np.float64]

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Changes (m, groups) at parameters (m, p)."""
        return _quadratic((values - self.centre) @ self.inverse.T) @ self.table

    def serves(self, centre: NDArray[np.float64], cov: NDArray[np.float64]) -> bool:
        """Whether it was made about where a posterior is."""
        widths = np.sqrt(np.linalg.eigvalsh(self.inverse @ cov @ self.inverse.T))
        away = float(np.linalg.norm(self.inverse @ (centre - self.centre)))
        return bool(away < _NEAR and widths.max() < _NEAR and widths.min() > _FINE)


@dataclass(frozen=True, eq=False)
class Piece:
    """One image's share of a posterior.

    Attributes
    ----------
    image : ImageEmulator
        The chains it rests on.
    patch : Patch
        Its polynomials.
    error : float
        Their rms error of the log likelihood over the posterior; nan where they are a regression on chains.
    heaps : float
        Least kurtosis minus squared skewness of the statistic there: 3 if normal, 1 if two heaps.
    apart : Apart or None
        None until the piece was held against its chains (:meth:`judged`).
    """

    image: ImageEmulator
    patch: Patch
    error: float = np.nan
    heaps: float = np.nan
    apart: Apart | None = None

    def judged(self, emulator: Emulator, o: Observation, region: Region, old: Piece | None = None) -> Piece:
        """The same, held against its chains at draws of the posterior; nothing is done twice.

        What an `old` piece knows of the noise of these very chains is kept where it serves.
        """
        if self.apart is not None:
            return self
        assert region.smooth is not None
        p, embed, alone = len(region.centre), emulator.embed(region.model), replace(emulator, images={o.name: self.image})
        some = region.draws[:: max(1, len(region.draws) // max(_LEAST, 2 * (p + 1) * (p + 2)))]
        whole = pool_log_likelihoods(alone, [o], "calibrated", some @ embed)[:, 0]
        error = np.nan
        if self.patch.spread is None:
            error = float(np.std(whole - log_likelihoods(region.smooth, [o], "calibrated", some)[:, 0]))
        apart = None if old is None or old.image is not self.image or old.apart is None else old.apart
        if apart is None or not apart.serves(region.centre, region.cov):
            inverse = np.linalg.inv(np.linalg.cholesky(region.cov))
            z = (some - region.centre) @ inverse.T
            apart = Apart(region.centre, inverse, np.linalg.lstsq(_quadratic(z), changes(alone, o, some @ embed, whole), rcond=None)[0])
        return replace(self, error=error, heaps=heaps(self.image, region.centre @ embed), apart=apart)


def changes(emulator: Emulator, o: Observation, union: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log likelihood (m, groups) of an image without each group of its records, less that with all (m,), at union couplings (m, q)."""
    rests = left_out(emulator, GROUPS)
    return np.column_stack([pool_log_likelihoods(rest, [o], "calibrated", union)[:, 0] - whole for rest in rests])


@dataclass(frozen=True, eq=False)
class Origin:
    """One image under the random alloy: its log likelihood, and how that changes without each group of records (groups,)."""

    image: ImageEmulator
    level: float
    apart: NDArray[np.float64]

    @classmethod
    def of(cls, emulator: Emulator, o: Observation, old: Origin | None = None) -> Origin:
        """That of an image; an `old` one if it rests on the same chains."""
        image = emulator.images[o.name]
        if old is not None and old.image is image:
            return old
        alone, zero = replace(emulator, images={o.name: image}), image.random[None]
        whole = pool_log_likelihoods(alone, [o], "calibrated", zero)[:, 0]
        return cls(image, float(whole[0]), changes(alone, o, zero, whole)[0])


def _quadratic(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """1, z and all products of two (m, powers)."""
    i, j = np.triu_indices(z.shape[1])
    return np.column_stack([np.ones(len(z)), z, z[:, i] * z[:, j]])


def together(errors: Sequence[Sequence[float]]) -> float:
    """Rms error of a sum, from those of its parts: parts of one group, images of one box, err together.

    Examples
    --------
    >>> together([[0.3], [0.2, 0.2]])
    0.5
    """
    return float(np.sqrt(sum(sum(group) ** 2 for group in errors)))
