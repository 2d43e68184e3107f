"""Regions: where each posterior is believed to be, and the search for it on the chains there are.

A smooth emulator is fitted over the region, importance sampling finds the posterior on it, and the posterior is
the next region. The search runs no chain: it says where chains are wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from ..errors import CheckError
from ..hamiltonian import Hamiltonian
from ..observation import Observation
from .densities import SMOOTH_BAR, emulator_error, explore, scoring, smooth_error, widths
from .emulator import SLOW_BAR, SUPPORT_BAR, Emulator, slow_weight
from .parameters import Parameters
from .pseudolikelihood import pseudo_likelihood
from .quasi import path, stones
from .settings import Settings
from .smooth import SmoothEmulator

WIDER = 2.25  # first covariance over that of the posterior
_GROWTH = 4.0  # of the covariance of a region, where its posterior lies beyond it
_REFITS = 3  # fits of one round at most, each where the last found the posterior
_SCATTER = 50  # different draws without which a width was not found
_FOOTHOLD = 0.3  # chains' worth of records wanted at each place on the way from the random alloy
_AWAY = 2.5  # standard deviations from a region's centre beyond which a posterior is not inside it


@dataclass(frozen=True, eq=False)
class Region:
    """Where one posterior is believed to be, and its history.

    `centre`, `cov` are the current mean and covariance (p,), (p, p); `draws` (n, p) equally weighted;
    `settled`: the last round left it in place with support; `beyond`: it lies outside the region fitted; `widest`: first variances.
    """

    parameters: Parameters
    kind: str
    centre: NDArray[np.float64]
    cov: NDArray[np.float64]
    draws: NDArray[np.float64]
    smooth: SmoothEmulator | None = None
    settled: bool = False
    support: float = 0.0
    beyond: bool = False
    widest: NDArray[np.float64] | float = 0.0

    @classmethod
    def at(cls, parameters: Parameters, kind: str, centre: NDArray[np.float64], cov: NDArray[np.float64]) -> Region:
        """One of which nothing is known yet but where to look."""
        return cls(parameters, kind, centre, cov, np.zeros((0, len(centre))), widest=np.diag(cov))

    @property
    def model(self) -> Hamiltonian:
        return self.parameters.model


@dataclass(frozen=True, eq=False)
class Search:
    """The chains there are, and how a posterior is found on them.

    Attributes
    ----------
    emulator : Emulator
    observations : sequence of Observation
    settings : Settings
    seed : int
    several : bool
        Whether there are models to compare: then likelihoods must be known on the way from the random alloy.
    mark : tuple of int
        Part of the random numbers' keys.
    exchanging : collection of str
        Images whose chains exchange configurations: there is no more to be done where they are slow.
    own : dict of ndarray by image name
        Where each image lies along coordinates of its own: composition, label errors.
    """

    emulator: Emulator
    observations: Sequence[Observation]
    settings: Settings
    seed: int
    several: bool = True
    mark: tuple[int, ...] = ()
    exchanging: Collection[str] = ()
    own: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    # ------------------------------------------------------------------ where to start

    def start(self, parameters: Parameters, given: Mapping[str, float] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """First centre and covariance: given, or pseudo-likelihood, or linear response about the random alloy; Cramer-Rao width."""
        model, k = parameters.model, len(parameters.model.names)
        origin = np.array([float(np.asarray(parameters.prior(n).mean)) for n in parameters.names])
        origin[:k] = 0.0
        for o in self.observations:
            places = list(parameters.own[o.name])
            if places:
                origin[places] = self.own[o.name]
        # a weak prior keeps directions finite in which the images say nothing; what is no coupling keeps its own
        weak = np.diag(1 / widths(parameters) ** 2)
        for o in self.observations:
            for place in parameters.own[o.name]:
                if parameters.names[place].startswith("x_"):  # what the window shows says more than a flat prior
                    weak[place, place] = o.n / max(origin[place] * (1 - origin[place]), 1e-6)
        # the energy is felt at a temperature only where there is one: slopes at the origin leave temperatures to their priors
        steps = [scoring(self.emulator, parameters, o, origin) for o in self.observations]
        information, score = sum(i for i, _ in steps), sum(s for _, s in steps)
        response = origin + np.linalg.solve(information + weak, score)
        cov = WIDER * np.linalg.inv(information + weak)
        if given is not None:
            origin[:k] = model.vector(given)
            return origin, cov
        centre, guess = response, pseudo_likelihood(model, self.observations) if parameters.shared or not parameters.temperature else None
        if guess is not None and guess.exact:
            centre[:k] = guess.couplings
        for a, name in enumerate(model.names):  # a bounded prior may exclude the estimate: begin inside it, one width away
            prior = model.prior(name)
            for side in (1, -1):
                if not np.asarray(prior.support(centre[a])) and np.asarray(prior.support(side * np.sqrt(cov[a, a]))):
                    centre[a] = side * np.sqrt(cov[a, a])
            if not np.asarray(prior.support(centre[a])):
                centre[a] = float(prior.mean)
        return centre, cov

    # ------------------------------------------------------------------ where chains are wanted

    def points(self, region: Region, number: int) -> NDArray[np.float64]:
        """Design points of one region (points, p): spread over it, wider than the posterior itself."""
        key = [self.seed, number, *self.mark, *np.frombuffer((region.model.name + region.kind).encode(), np.uint8)]
        sobol = qmc.MultivariateNormalQMC(np.zeros(len(region.centre)), seed=np.random.default_rng(np.random.SeedSequence(key)))
        n = max(self.settings.points, 2 * len(region.centre))
        z = 1.6 * sobol.random(1 << (n - 1).bit_length())[:n]
        points = region.centre + z @ np.linalg.cholesky(region.cov).T
        if len(region.draws):  # half of them at the draws that the pool supports least
            some = region.draws[:: max(1, len(region.draws) // 256)]
            thin = some[np.argsort(self.supports(region, some))[: 4 * (n // 2) : 4]]
            points[: len(thin)] = thin
        return points

    def stones(self, region: Region) -> dict[str, NDArray[np.float64]]:
        """Union couplings (m, q) by image where chains are wanted on the way from the random alloy: likelihoods are integrated along it."""
        if not self.several or region.kind == "independent" or region.smooth is None or region.beyond:
            return {}  # one model alone is compared with nothing
        q, found = len(self.emulator.names), {}
        for name, image in self.emulator.images.items():
            end, several = region.parameters.union(name, region.centre, self.emulator.embed(region.model)), self.emulator.at(name)
            places = stones(path(several.batch, several.random, end))[:, :q]
            bare = places[image.reweighting.support(places) < _FOOTHOLD]
            if len(bare):
                found[name] = bare
        return found

    def supports(self, region: Region, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Least support (m,) among the images at parameters (m, p)."""
        if region.smooth is not None and (found := region.smooth.support(values)) is not None:
            return found
        embed, q = self.emulator.embed(region.model), len(self.emulator.names)
        at = {name: region.parameters.union(name, values, embed)[:, :q] for name in self.emulator.images}
        return np.min([image.reweighting.support(at[name]) for name, image in self.emulator.images.items()], axis=0)

    def slow(self, image: str, regions: Sequence[Region]) -> bool:
        """Whether chains out of equilibrium carry weight where one of the posteriors is."""
        q = len(self.emulator.names)
        at = [r.parameters.union(image, r.centre, self.emulator.embed(r.model))[:q] for r in regions]
        return any(slow_weight(self.emulator.images[image], union) > SLOW_BAR for union in at)

    # ------------------------------------------------------------------ where the posterior is

    def advance(self, region: Region, number: int) -> Region:
        """Where the posterior is on the chains there are now, and whether it stands still, supported and known well enough."""
        key = [self.seed, 7, number, *self.mark, *np.frombuffer(region.model.name.encode(), np.uint8)]
        rng = np.random.default_rng(np.random.SeedSequence(key))
        found = region
        for _ in range(_REFITS):  # chains tell most about the place for which the polynomials are fitted: follow the posterior there
            before, found = found, self.refit(found, rng)
            if found.smooth is before.smooth or moved(before, found) < self.settings.moved:
                break
        if found.smooth is None or found.smooth is region.smooth:
            return replace(found, settled=False)  # too thin a pool: more chains over the same region
        supports = self.supports(found, found.draws[:: max(1, len(found.draws) // 256)])
        support = float(np.quantile(supports, 0.05))
        # the bulk well supported, and the outermost draws twice as well as they will be checked for
        held = support > self.settings.support and supports.min() > 2 * SUPPORT_BAR
        quiet = emulator_error(self.emulator, found.smooth, self.observations, found.centre, found.cov).max() < self.settings.noise
        still = region.smooth is not None and not found.beyond and moved(region, found) < self.settings.moved
        some = found.draws[:: max(1, len(found.draws) // 128)]
        # the check is of other draws: leave it some room
        close = found.smooth.support(some) is not None or (
            smooth_error(self.emulator, found.smooth, self.observations, found.kind, some) < 0.8 * SMOOTH_BAR
        )
        free = all(o.name in self.exchanging or not self.slow(o.name, [found]) for o in self.observations)
        found = replace(found, settled=bool(still and held and quiet and close and free), support=support)
        return replace(found, settled=found.settled and not self.stones(found))

    def refit(self, region: Region, rng: np.random.Generator) -> Region:
        """The posterior on polynomials fitted where it is believed to be; the region unchanged if the pool is too thin there."""
        try:
            smooth = SmoothEmulator.fit(self.emulator, region.parameters, region.centre, region.cov, rng)
        except CheckError:
            return region
        return found_on(smooth, region, explore(smooth, self.observations, region.kind, rng))


def found_on(smooth: SmoothEmulator, region: Region, draws: NDArray[np.float64]) -> Region:
    """The region of a posterior whose draws (n, p) were found on a smooth emulator."""
    centre, cov, beyond = draws.mean(axis=0), np.atleast_2d(np.cov(draws.T)), _astray(smooth, draws)
    if beyond:  # there a width means nothing: look farther, but not wider than at first
        cov = np.clip((region.widest / np.diag(region.cov)).min(), 1.0, _GROWTH) * region.cov
    return replace(region, centre=centre, cov=cov, draws=draws, smooth=smooth, beyond=beyond)


def _astray(smooth: SmoothEmulator, draws: NDArray[np.float64]) -> bool:
    """Whether a posterior lies beyond its region: found at the edge, its width says nothing; nor does that of a few points."""
    away = float(np.linalg.norm(smooth.whitened(draws.mean(axis=0)[None])))
    return away > _AWAY or len(np.unique(draws, axis=0)) < _SCATTER


def moved(before: Region, after: Region) -> float:
    """Largest shift of a mean, in standard deviations, or change of a width, in its logarithm."""
    sd, old = np.sqrt(np.diag(after.cov)), np.sqrt(np.diag(before.cov))
    return float(max((np.abs(after.centre - before.centre) / sd).max(), np.abs(np.log(sd / old)).max()))
