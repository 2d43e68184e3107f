"""Pictures with known atoms, drawn at random: what the tests of the imaging front end take as truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesatoms.configuration import Configuration, whole_counts
from bayesatoms.imaging.render import Rendered, render
from bayesatoms.lattice import Lattice

LATTICES = ("triangular", "square", "honeycomb")
SPECIES = ("A", "B")
BOND = 0.25  # nm, the nearest-neighbour distance
# every range is drawn from uniformly
SITES = (330, 570)  # in the picture, about
ASPECT = (0.8, 1.25)  # rows over columns
COMPOSITION = (0.02, 0.98)  # of species B
CONTRAST = (0.3, 0.7)  # peak of the dim species over that of the bright one, which is 1
SPACING = (12.0, 30.0)  # px
ROTATION = (0.0, 360.0)  # degrees
WIDTH = (0.13, 0.19)  # sigma of a column in spacings
BLUR = (0.0, 0.1)  # sigma of the probe in spacings
DRIFT = (-0.02, 0.02)  # px a row, x and y
BACKGROUND = (0.25, 0.5)
RAMP = (-0.2, 0.2)  # across the picture, x and y
SIGNAL_TO_NOISE = (5.0, 30.0)  # peak of a dim column over the noise of its pixel
POISSON = (0.0, 1.0)  # share of counting noise in the variance of that pixel; the rest is Gaussian


@dataclass(frozen=True)
class Truth:
    """What a random picture was drawn from; its sites and their labels are in `Rendered`."""

    configuration: Configuration
    bright: str
    composition: float
    contrast: float
    signal_to_noise: float
    options: Mapping[str, Any]  # what render() was given, apart from rng

    @property
    def lattice(self) -> Lattice:
        return self.configuration.lattice

    @property
    def dim_peak(self) -> float:
        """Height of a dim column above the background in the blurred picture."""
        width, blur = self.options["width"], self.options["blur"]
        return self.contrast * width**2 / (width**2 + blur**2)


def disc(lattice: Lattice, radius: float) -> np.ndarray:
    """Site references within `radius` (nm) of the origin."""
    reach = int(np.ceil(radius / np.abs(np.linalg.det(lattice.cell)) * np.linalg.norm(lattice.cell, axis=1).max())) + 1
    sites = lattice.supercell((2 * reach + 1,) * 2).sites - [reach, reach, 0]
    return sites[np.linalg.norm(lattice.positions(sites), axis=1) <= radius]


def random_picture(rng: np.random.Generator, lattice_name: str, **faults: Any) -> tuple[Rendered, Truth]:
    """A picture full of a random binary alloy on that lattice, all else drawn from the ranges above.

    Either species may be the bright one. `faults` are further arguments of render() and win over what was drawn.
    """
    lattice = Lattice.named(lattice_name, BOND)
    spacing, aspect = rng.uniform(*SPACING), rng.uniform(*ASPECT)
    area = rng.uniform(*SITES) * abs(np.linalg.det(lattice.cell)) / len(lattice.basis)  # nm2
    sides = np.sqrt(area * np.array([aspect, 1 / aspect]))  # height, width
    sites = disc(lattice, np.hypot(*sides) / 2 + 3 * BOND)  # beyond every corner of the picture
    composition = rng.uniform(*COMPOSITION)
    labels = rng.permutation(np.repeat([0, 1], whole_counts([1 - composition, composition], len(sites))))
    configuration = Configuration.from_sites(lattice, SPECIES, sites, labels)

    contrast, signal_to_noise, share = rng.uniform(*CONTRAST), rng.uniform(*SIGNAL_TO_NOISE), rng.uniform(*POISSON)
    bright = SPECIES[rng.integers(2)]
    width, blur, background = rng.uniform(*WIDTH) * spacing, rng.uniform(*BLUR) * spacing, rng.uniform(*BACKGROUND)
    peak = contrast * width**2 / (width**2 + blur**2)
    variance = (peak / signal_to_noise) ** 2
    options = {
        "intensity": {s: 1.0 if s == bright else contrast for s in SPECIES},
        "spacing": spacing,
        "rotation": rng.uniform(*ROTATION),
        "width": width,
        "blur": blur,
        "drift": tuple(rng.uniform(*DRIFT, 2)),
        "background": background,
        "ramp": tuple(rng.uniform(*RAMP, 2)),
        "dose": (background + peak) / (share * variance),
        "noise": np.sqrt((1 - share) * variance),
        "shape": tuple(int(n) for n in np.round(sides * spacing / BOND)),
        "name": f"random {lattice_name}",
    } | faults
    return render(configuration, rng=rng, **options), Truth(configuration, bright, composition, contrast, signal_to_noise, options)
