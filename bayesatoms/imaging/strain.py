"""Local strain of an image's lattice: how the bonds of a site differ from those of the mean lattice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .micrograph import Micrograph

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Strain:
    """Strain at every lattice site of an image, x to the right and y up, against its mean lattice; nan where a neighbour is not seen.

    Attributes
    ----------
    e_xx, e_yy, e_xy : ndarray, shape (n,)
    rotation : ndarray, shape (n,)
        Degrees, counter-clockwise as one looks at the image.
    """

    e_xx: Floats
    e_yy: Floats
    e_xy: Floats
    rotation: Floats

    @property
    def principal(self) -> tuple[Floats, Floats]:
        """The principal strain of larger size (n,), with its sign, and the angle (radians) of its axis from x."""
        mean, half = (self.e_xx + self.e_yy) / 2, (self.e_xx - self.e_yy) / 2
        radius = np.hypot(half, self.e_xy)
        along = np.arctan2(self.e_xy, half) / 2
        first = np.abs(mean + radius) >= np.abs(mean - radius)
        return np.where(first, mean + radius, mean - radius), np.where(first, along, along + np.pi / 2)


def strain(micrograph: Micrograph) -> Strain:
    """Local strain from the bonds to the nearest neighbours, by an affine fit at every site that is used.

    The reference is the lattice that fits the whole image, so a uniform distortion of the scan shows nowhere.

    Parameters
    ----------
    micrograph : Micrograph

    Returns
    -------
    Strain

    Examples
    --------
    >>> from ..configuration import Configuration
    >>> from ..lattice import Lattice
    >>> from .micrograph import analyse
    >>> from .render import render
    >>> square, rng = Lattice.square(0.39), np.random.default_rng(1)
    >>> mixed = Configuration.random(square, ("A", "B"), (12, 12), (0.5, 0.5), rng, periodic=False)
    >>> read = analyse(render(mixed, intensity={"A": 0.6, "B": 1.0}, noise=0.03, rng=rng).image, square, ("A", "B"), bright="B")
    >>> bool(np.nanmax(np.abs(strain(read).e_xx)) < 0.03)
    True
    """
    registration, n = micrograph.registration, micrograph.n
    used = micrograph.used
    position = micrograph.columns.positions[:n] * (1.0, -1.0)
    design = np.column_stack([registration.ideal, np.ones(n)])
    affine = np.linalg.lstsq(design[used], position[used], rcond=None)[0]
    mean = design @ affine
    near = registration.neighbours()
    bond = (near >= 0) & used[:, None] & used[np.where(near >= 0, near, 0)]
    reference = np.where(bond[..., None], mean[near] - mean[:, None], 0.0)
    seen = np.where(bond[..., None], position[near] - position[:, None], 0.0)
    # with a bond missing, the shift of a sublattice (as in 1T' chains) would pass for strain
    told = bond.all(axis=1)
    gradient = np.full((n, 2, 2), np.nan)
    moments = np.einsum("nzi,nzj->nij", reference[told], reference[told])
    cross = np.einsum("nzi,nzj->nij", reference[told], seen[told])
    gradient[told] = np.swapaxes(np.linalg.solve(moments, cross), 1, 2) - np.eye(2)
    turn = np.degrees(gradient[:, 1, 0] - gradient[:, 0, 1]) / 2
    return Strain(gradient[:, 0, 0], gradient[:, 1, 1], (gradient[:, 0, 1] + gradient[:, 1, 0]) / 2, turn)
