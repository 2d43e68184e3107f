"""The parameters of a model over several images: its couplings, and what differs from image to image.

Without nuisances every image froze in with the same couplings, in kT at its formation. Images of
different temperatures share energies instead; a window shows the composition of the sample and the
rates of wrong labels only with an error. Each of these is a parameter with a prior, and
:meth:`Parameters.of_image` says which couplings, composition and error rates one image then has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..observation import Observation

_STEP = 1e-4  # of a standard deviation, for the slope of an image's coordinates


@dataclass(frozen=True)
class Nuisances:
    """What else is uncertain, or differs between the images.

    Parameters
    ----------
    energies : bool
        The images share energies, and couplings in kT follow from each image's formation temperature:
        w = E T_ref / T. Couplings and their priors are then in kT at the reference temperature.
    temperatures : mapping of image name to K or numpyro distribution
        Known, or unknown with a prior; those of the observations by default.
    reference : float, optional
        T_ref in K; by default the geometric mean of the temperatures (of a prior, its mean).
    constant : mapping of coupling name to numpyro distribution
        Couplings that also have a part independent of temperature (an entropy of interaction, in k), with
        its prior: w = E T_ref / T + c. The parameter is called "<coupling> constant".
    composition : bool
        The composition of each sample is a parameter ("x_<species> of <image>"): what the window shows is
        one draw from it. Three compositions are simulated for every image instead of one.
    label_error : float
        Relative standard deviation of the rates of wrong labels, one factor for each image that has a matrix of
        label errors ("label errors of <image>", log-normal about 1).

    Examples
    --------
    >>> Nuisances(energies=True, temperatures={"cold": 700.0, "hot": 1100.0}).reference is None
    True
    """

    energies: bool = False
    temperatures: Mapping[str, Any] = field(default_factory=dict)
    reference: float | None = None
    constant: Mapping[str, Any] = field(default_factory=dict)
    composition: bool = False
    label_error: float = 0.0


@dataclass(frozen=True, eq=False)
class Parameters:
    """One model's parameters: the couplings first, then constants, temperatures, compositions and label errors.

    Attributes
    ----------
    names : tuple of str
    priors : mapping of name to numpyro distribution
    own : mapping of image to its extra coordinates' places in the parameters
    temperature : mapping of image to K, or the place of its parameter; empty where couplings are shared
    reference : float
        K; 0 where couplings are shared.
    """

    model: Hamiltonian
    names: tuple[str, ...]
    priors: Mapping[str, Any]
    own: Mapping[str, tuple[int, ...]]
    temperature: Mapping[str, float | int]
    reference: float = 0.0

    @classmethod
    def of(cls, model: Hamiltonian, observations: Sequence[Observation], nuisances: Nuisances | None = None) -> Parameters:
        """The parameters of a model over these images.

        Raises
        ------
        InputError
            If a temperature is missing, is no positive number, or one temperature is to tell an energy from a
            temperature-independent part.

        Examples
        --------
        >>> from bayesatoms.hamiltonian import Pair
        >>> from bayesatoms.lattice import Lattice
        >>> from numpyro import distributions as dist
        >>> h = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), lattice=Lattice.square(), species=("A", "B"))
        >>> images = [Observation.from_labels(np.eye(9, dtype=int), h.lattice, h.species, name=n) for n in ("cold", "hot")]
        >>> p = Parameters.of(h, images, Nuisances(energies=True, temperatures={"cold": 700.0, "hot": 1400.0}, reference=700.0))
        >>> p.of_image("hot", np.array([0.3])).tolist()
        [0.15]
        """
        import numpyro.distributions as dist

        n = nuisances or Nuisances()
        names, own = list(model.names), {o.name: () for o in observations}
        priors = {name: model.prior(name) for name in model.names}
        temperature, reference = _temperatures(model, observations, n) if n.energies and model.terms else ({}, 0.0)
        for name in model.names:
            if name in n.constant:
                names.append(f"{name} constant")
                priors[names[-1]] = n.constant[name]
        for image, value in temperature.items():
            if not isinstance(value, float):
                temperature[image] = len(names)
                names.append(f"T of {image}")
                priors[names[-1]] = value
        for o in observations:
            for species in o.environments.species[1:] if n.composition and not o.window.whole else ():
                own[o.name] += (len(names),)
                names.append(f"x_{species} of {o.name}")
                priors[names[-1]] = dist.Uniform(0.0, 1.0)
            if n.label_error > 0 and noisy(o):
                own[o.name] += (len(names),)
                names.append(f"label errors of {o.name}")
                priors[names[-1]] = dist.LogNormal(0.0, n.label_error)
        return cls(model, tuple(names), priors, own, temperature, reference)

    def prior(self, name: str) -> Any:
        """The prior of one parameter, a numpyro distribution."""
        return self.priors[name]

    @property
    def shared(self) -> bool:
        """Whether the parameters are the couplings, the same for every image."""
        return self.names == self.model.names and not self.temperature

    @property
    def unit(self) -> str:
        """Unit of the couplings."""
        return f"kT at {self.reference:g} K" if self.temperature else "kT at formation"

    def unit_of(self, name: str) -> str:
        """Unit of one parameter."""
        if name in self.model.names:
            return self.unit
        return "K" if name.startswith("T of ") else "k" if name.endswith(" constant") else "1"

    def sample(self) -> dict[str, Any]:
        """Sample all parameters from their priors, inside a numpyro model."""
        import numpyro

        return {name: numpyro.sample(name, self.priors[name]) for name in self.names}

    def of_image(self, image: str, theta: Any, xp: ModuleType = np) -> Any:
        """Coordinates of one image at parameters (..., p): its couplings in kT (k), then composition and label errors."""
        k = len(self.model.names)
        couplings = theta[..., :k]
        if self.temperature:
            t = self.temperature[image]
            couplings = couplings * ((self.reference / t) if isinstance(t, float) else self.reference / theta[..., t : t + 1])
        for a, name in enumerate(self.model.names):
            if f"{name} constant" in self.names:
                place = self.names.index(f"{name} constant")
                couplings = couplings + theta[..., place : place + 1] * np.eye(k)[a]
        if not self.own[image]:
            return couplings
        return xp.concatenate([couplings, theta[..., list(self.own[image])]], axis=-1)

    def slope(self, image: str, theta: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
        """Derivatives (c, p) of the image's coordinates at parameters (p,), whose size of change is `scale` (p,)."""
        if self.shared:
            return np.eye(len(theta))
        step = _STEP * np.diag(scale)
        return ((self.of_image(image, theta + step) - self.of_image(image, theta - step)) / (2 * _STEP * scale[:, None])).T

    def union(self, image: str, theta: Any, embed: NDArray[np.float64], xp: ModuleType = np) -> Any:
        """The pool's coordinates of one image at parameters (..., p): union couplings (q) and the image's own coordinates."""
        own, k = self.of_image(image, theta, xp), len(self.model.names)
        couplings = own[..., :k] @ embed
        return couplings if not self.own[image] else xp.concatenate([couplings, own[..., k:]], axis=-1)


def noisy(observation: Observation) -> bool:
    """Whether an image has a matrix of label errors."""
    return observation.probabilities is None and not np.array_equal(observation.label_error, np.eye(len(observation.label_error)))


def _temperatures(model: Hamiltonian, observations: Sequence[Observation], n: Nuisances) -> tuple[dict[str, Any], float]:
    """Temperature (K) or its prior for every image, and the reference."""
    found: dict[str, Any] = {}
    for o in observations:
        value = n.temperatures.get(o.name, o.temperature)
        if value is None:
            raise InputError(f"{o.name}: energies need its formation temperature; give it in K, or a prior for it in temperatures=")
        if not hasattr(value, "log_prob"):
            value = float(value)
            if not value > 0:
                raise InputError(f"{o.name}: formation temperature {value:g} K; expected a number above 0")
        found[o.name] = value
    unknown = sorted(set(n.temperatures) - set(found))
    if unknown:
        raise InputError(f"temperatures name image {unknown[0]!r}; the images are {', '.join(found)}")
    middle = {name: v if isinstance(v, float) else float(np.asarray(v.mean)) for name, v in found.items()}
    for name, value in middle.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name}: the prior of its temperature has mean {value:g} K; expected a finite number above 0")
    if n.constant and len(set(middle.values())) < 2:
        raise InputError(
            f"all images froze in at {next(iter(middle.values())):g} K: one temperature cannot tell the energy of "
            f"{', '.join(n.constant)} from its temperature-independent part; add an image of another temperature, or leave out constant="
        )
    return found, _reference(n, middle)


def _reference(n: Nuisances, middle: Mapping[str, float]) -> float:
    if n.reference is None:
        return float(np.exp(np.mean(np.log(list(middle.values())))))
    if not n.reference > 0:
        raise InputError(f"reference temperature {n.reference:g} K; expected a number above 0")
    return float(n.reference)
