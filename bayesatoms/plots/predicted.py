"""Predicted configurations, as atoms and as a microscope would show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..configuration import Configuration
from ..errors import InputError
from ..imaging.render import render
from ..phases.snapshots import Snapshot
from .style import new_figure, species_colours, styled

_MOST = 8  # side by side
_SPACING = 12.0  # px between neighbours in the rendered image
_NOISE = 0.04  # of the rendered image, against the brightest column


@styled
def snapshots(found: Sequence[Snapshot], *, intensity: Mapping[str, float] | None = None) -> Figure:
    """Predicted configurations side by side: their sites by species above, a rendered micrograph of the same sites below.

    The periodic crystal is cut into an upright window; nothing is repeated.

    Parameters
    ----------
    found : sequence of Snapshot
        Up to eight, of planes.
    intensity : mapping of str to float, optional
        Peak of each species' column; 0.4 for the first and 1 for the second by default.

    Returns
    -------
    Figure

    Raises
    ------
    InputError
        If there are none, too many, or they are no planes.
    """
    if not 1 <= len(found) <= _MOST:
        raise InputError(f"{len(found)} snapshots given; expected 1 to {_MOST}")
    dimension = found[0].configuration.lattice.dimension
    if dimension != 2:
        raise InputError(f"snapshots of a lattice of {dimension} dimensions given; expected planes")
    species = found[0].configuration.species
    levels = {species[0]: 0.4, species[1]: 1.0} if intensity is None else dict(intensity)
    figure = new_figure(max(2.15 * len(found), 2.6), 4.3)
    rows = figure.subplots(2, len(found), squeeze=False)
    for top, below, snapshot in zip(*rows, found, strict=True):
        window = upright(snapshot.configuration)
        _atoms(top, window)
        top.set_title(f"x({species[1]}) = {snapshot.composition:.3g}, T = {snapshot.temperature:.3g}\nmodel {snapshot.model}", fontsize=8)
        # the noise is always the same: the picture follows from the snapshot alone
        rng = np.random.default_rng(0)
        picture = render(window, intensity=levels, spacing=_SPACING, background=0.1, tail=0.2, noise=_NOISE, rng=rng)
        low, high = np.quantile(picture.image.data, [0.001, 0.999])
        below.imshow(picture.image.data, cmap="gray", vmin=low, vmax=high, interpolation="nearest", origin="upper")
        below.set_axis_off()
    handles = [
        Line2D([], [], ls="", marker="o", ms=6.5, mfc=c, mec="none", label=s) for s, c in zip(species, species_colours(2), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handletextpad=0.1)
    return figure


def upright(configuration: Configuration) -> Configuration:
    """A periodic plane cut into a window whose sides stand on its first lattice vector; every site once.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> crystal = Configuration.from_labels(Lattice.triangular(1.0), ("A", "B"), np.eye(4, dtype=int), periodic=True)
    >>> window = upright(crystal)
    >>> window.n_seen, float(np.ptp(window.lattice.positions(window.supercell.sites[window.flat >= 0])[:, 0]))
    (16, 3.5)
    """
    lattice, sites = configuration.lattice, configuration.supercell.sites.copy()
    first, length = lattice.positions([[1, 0, 0]])[0] - lattice.positions([[0, 0, 0]])[0], configuration.labels.shape[0]
    along = (lattice.positions(sites) - lattice.positions([[0, 0, 0]])[0]) @ first / (first @ first)
    sites[:, 0] -= length * np.floor(along / length + 1e-9).astype(np.int64)
    return Configuration.from_sites(lattice, configuration.species, sites, configuration.flat)


def _atoms(ax: Axes, window: Configuration) -> None:
    """Discs in the colours of the species; y downwards, as in an image."""
    seen = window.flat >= 0
    places, unit = window.lattice.positions(window.supercell.sites[seen]), float(window.lattice.shell_distances(1)[0])
    d = np.full(len(places), 0.86 * unit)
    discs = EllipseCollection(d, d, np.zeros(len(d)), units="xy", offsets=places, offset_transform=ax.transData)
    discs.set(facecolor=np.array(species_colours(len(window.species)))[window.flat[seen]], edgecolor="none", rasterized=True)
    ax.add_collection(discs)
    low, high = places.min(axis=0) - unit, places.max(axis=0) + unit
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
    ax.set_aspect("equal")
    ax.set_axis_off()
