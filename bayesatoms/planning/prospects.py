"""Prospects: images that might be taken, seen as they would be analysed.

A prospect is a window of some composition and label error that nobody has looked through yet. Chains in its box, over
the region where the posteriors so far are, give what any image there would say: its Fisher information at every coupling
(by linear response, so what the rim of the window, the composition and wrong labels cost is in it), its log likelihood,
which is linear in the statistic and so adds up over images alike, and images themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import qmc

from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..inference.campaign import Campaign, Settings
from ..inference.densities import scoring
from ..inference.emulator import SLOW_BAR, SUPPORT_BAR, Emulator, ImageEmulator, slow_weight
from ..inference.moments import Moments
from ..inference.posterior import Result
from ..inference.quasi import NODES, Natural, from_origin, natural, path, stones
from ..inference.reuse import Point
from ..inference.smooth import SmoothEmulator
from ..montecarlo.executors import Executor
from ..montecarlo.pool import Pool
from ..observation import Observation
from ..progress import Progress
from ..response import check_label_error
from ..window import Window

Floats = NDArray[np.float64]

GROUPS = 8  # stretches of every chain, for the error of the simulation
SETTINGS = Settings(samples=400, sweeps=3.0, burn=150.0)
DENSE = 3  # couplings in which a pool can be reweighted everywhere
_DENSELY, _THINLY = 16, 4  # chains for each coupling, where a pool is reweighted and where chains are regressed upon
_SPREAD = 1.6  # of the chains' couplings, in standard deviations of the posterior so far
_ROUNDS = 4  # in which chains are added where support is thin
_HELD = 1.0  # chains' worth of records wanted at nearly all draws
_FOOTHOLD = 0.3  # and on the way from the random alloy
_LOOK = 128  # draws at which support is looked up


@dataclass(frozen=True, eq=False)
class Belief:
    """Where a model's couplings are believed to be: mean (k,), covariance (k, k) and draws (n, k)."""

    model: Hamiltonian
    centre: Floats
    cov: Floats
    draws: Floats


@dataclass(frozen=True, eq=False)
class Prospect:
    """One image that might be taken.

    Attributes
    ----------
    observation : Observation
        Its window, label errors and expected counts if the alloy were random; no labels.
    emulator : Emulator
        What it would show, at all couplings near the posteriors so far.
    settled : bool
        Whether its chains equilibrate there.
    """

    observation: Observation
    emulator: Emulator
    settled: bool

    @property
    def fractions(self) -> Floats:
        """Composition (species,), without label errors."""
        return self.observation.true_composition

    def held(self, model: Hamiltonian, values: Floats) -> NDArray[np.bool_]:
        """Whether chains answer at a model's couplings (m, k)."""
        image, union = self.emulator.images[self.observation.name], values @ self.emulator.embed(model)
        records = image.reweighting.effective_records(union)
        return (records >= SUPPORT_BAR * image.reweighting.records.mean()) & (records >= 10 * len(image.offset))

    def information(self, model: Hamiltonian, values: Floats) -> Floats:
        """Fisher information (m, k, k) of one such image at couplings (m, k); nan where chains do not answer."""
        k, held = len(model.names), self.held(model, values)
        nothing = np.full((k, k), np.nan)
        return np.array(
            [scoring(self.emulator, model, self.observation, w)[0] if h else nothing for w, h in zip(values, held, strict=True)]
        )

    def replicates(self, model: Hamiltonian, value: Floats) -> Floats:
        """The same at one place (k,) without each stretch of the chains in turn, (groups, k, k): for the error of the simulation."""
        image = self.emulator.images[self.observation.name]
        rests = [replace(self.emulator, images={self.observation.name: _without(image, g)}) for g in range(GROUPS)]
        return np.array([scoring(rest, model, self.observation, value)[0] for rest in rests])

    def natural(self, belief: Belief) -> Callable[[Floats], tuple[Natural, NDArray[np.bool_]]]:
        """Log likelihood of one such image at couplings (m, k), over that of the random alloy, and whether chains answer there.

        Along a straight line from the random alloy to each place: a model inside another then has the very same
        likelihood as in it, however many images multiply the errors of the chains.
        """
        o, embed = self.observation, self.emulator.embed(belief.model)
        image, n_given = self.emulator.images[o.name], self.emulator.n_composition(o)
        corners = path(image.batch, image.random, belief.centre @ embed)
        if len(belief.centre) > DENSE:  # no pool is dense there: by regression on the chains about the posterior
            smooth = SmoothEmulator.fit(self.emulator, belief.model, belief.centre, belief.cov, np.random.default_rng(20214))
            parts = [from_origin(image.batch, a, b[None], n_given) for a, b in pairwise(corners)]
            slope, constant = sum(p.slope[0] for p in parts), sum(p.constant[0] for p in parts)

            def regressed(values: Floats) -> tuple[Natural, NDArray[np.bool_]]:
                near = smooth.natural(o, values)
                return Natural(near.slope + slope, near.constant + constant), np.ones(len(values), dtype=bool)

            return regressed

        def radial(values: Floats) -> tuple[Natural, NDArray[np.bool_]]:
            lines, slope, constant, held = len(corners) - 1, 0.0, 0.0, np.ones(len(values), dtype=bool)
            for line in range(lines):
                nodes = (line + NODES[:, None, None]) / lines * (values @ embed)
                moments, support = image.batch(nodes.reshape(-1, embed.shape[1]), histogram=False)
                mean, lower = (part.reshape(*nodes.shape[:2], *part.shape[1:]) for part in (moments.mean, moments.lower))
                found = natural(Moments(mean, lower, None), n_given)
                slope, constant = slope + found.slope, constant + found.constant
                held &= (support.reshape(nodes.shape[:2]) >= SUPPORT_BAR).all(axis=0)
            return Natural(slope, constant), held

        return radial

    def mean(self, union: Floats) -> Floats:
        """Mean (d,) of the statistic at union couplings (q,)."""
        return self.emulator.images[self.observation.name].moments(union).mean

    def sums(self, union: Floats, images: Sequence[int], rng: np.random.Generator) -> Floats:
        """Sums of the statistic over so many images (rising), for experiments at union couplings (m, q); shape (len(images), m, d).

        Records of the chains stand for images, about the mean that the likelihood knows.
        """
        image = self.emulator.images[self.observation.name]
        more = np.diff(np.concatenate([[0], images]))
        found = np.zeros((len(images), len(union), len(image.offset)))
        for some in np.array_split(np.arange(len(union)), max(1, len(union) // 32)):
            weights = image.reweighting.weights(union[some])
            mean = weights @ image.table[:, : len(image.offset)] + image.offset
            # records show one look through the window each, means are over several: experiments and likelihoods share theirs
            shift = mean - weights @ image.values
            cumulative = np.cumsum(weights, axis=1)
            for row, experiment in enumerate(some):
                for rung, n in enumerate(more):
                    picks = np.searchsorted(cumulative[row], rng.random(n) * cumulative[row, -1])
                    found[rung, experiment] = image.values[picks].sum(axis=0) + n * shift[row]
        return found.cumsum(axis=0)


def _without(image: ImageEmulator, group: int) -> ImageEmulator:
    """An image's share of the pool without one stretch of every chain; the free energies stay as they are."""
    r = image.reweighting
    lengths = r.records.astype(int)
    keep = np.concatenate([np.arange(n) * GROUPS // n != group for n in lengths])
    left = np.add.reduceat(keep, np.concatenate([[0], np.cumsum(lengths)[:-1]])).astype(float)
    # every chain loses about the same share, so the mixture changes by a constant, and constants cancel
    rest = replace(r, features=r.features[keep], records=left, log_mixture=r.log_mixture[keep])
    return replace(image, reweighting=rest, counts=image.counts[keep], values=image.values[keep], table=image.table[keep])


def field_window(result: Result, field: int | Sequence[int] | None) -> Window:
    """The window of a prospect: so many complete environments in a nearly square block, cells along each side, or as the median image.

    Raises
    ------
    InputError
        If it holds no complete environment or has not as many sides as the lattice.
    """
    environments = result.statistic.environments
    if field is None:
        return median_image(result).window
    sides = np.atleast_1d(np.asarray(field))
    if sides.dtype.kind not in "iu" or sides.ndim != 1 or sides.min(initial=1) < 1:
        raise InputError(f"field {field} given; expected a number of environments, or cells along each side")
    if np.ndim(field) == 0:
        return Window.block(environments, int(sides[0]))
    if len(sides) != environments.lattice.dimension:
        raise InputError(f"field of {len(sides)} sides given; expected {environments.lattice.dimension} numbers of cells, one a side")
    window = Window(environments.lattice.supercell(tuple(sides.tolist())).sites)
    if not sum(len(rows) for rows in window.complete(environments)):
        raise InputError(f"field of {'x'.join(map(str, sides.tolist()))} cells has no site with all its neighbours; expected a larger one")
    return window


def median_image(result: Result) -> Observation:
    """The image with the median number of environments: what "one more" is unless told otherwise."""
    ranked = sorted(result.observations, key=lambda o: o.n)
    return ranked[(len(ranked) - 1) // 2]


def prospective(result: Result, window: Window, fractions: Floats, label_error: ArrayLike | None) -> Observation:
    """An image nobody has taken: a window onto an alloy of a composition (species,), with the counts of a random one.

    Raises
    ------
    InputError
        If a species would have less than one atom in the window.
    """
    environments = result.statistic.environments
    error = median_image(result).label_error if label_error is None else check_label_error(label_error, len(environments.species))
    if (fractions * len(window.sites) < 1).any():
        given = ", ".join(f"{s} {x:g}" for s, x in zip(environments.species, fractions, strict=True))
        raise InputError(f"composition {given} leaves a species without atoms among {len(window.sites)} sites; use a larger field")
    n = sum(len(rows) for rows in window.complete(environments))
    name = "prospect " + " ".join(f"{x:.6g}" for x in fractions[1:])
    return Observation(name, environments, n * environments.random_distribution(fractions @ error), window, error)


def simulated(
    result: Result,
    observations: Sequence[Observation],
    beliefs: Sequence[Belief],
    places: Floats,
    *,
    seed: int,
    pool: Pool,
    workers: int | Executor,
    report: Progress,
) -> list[Prospect]:
    """Prospects with their chains: over every model's region, at further union couplings `places` (m, q), and on the way there.

    Chains go into the pool, so the same prospect asked for again costs nothing.
    """
    campaign = Campaign.prepare(
        [f.model for f in result.fits.values()], observations, seed=seed, pool=pool, settings=SETTINGS, workers=workers, report=report,
        statistic=result.statistic,
    )  # fmt: skip
    embeds = {b.model.name: np.array([[float(n == u) for u in campaign.names] for n in b.model.names]) for b in beliefs}
    design = np.concatenate([np.zeros((1, len(campaign.names))), places, *(_spread(b, seed) @ embeds[b.model.name] for b in beliefs)])
    wanted = _points(campaign, dict.fromkeys((o.name for o in observations), design))
    for number in range(_ROUNDS + 1):
        emulator = campaign.gather(wanted)
        wanted = _points(campaign, {o.name: _bare(emulator, o, beliefs, embeds) for o in observations})
        wanted = [p for p in wanted if p not in campaign.design]
        if not wanted or number == _ROUNDS:
            break
    found = []
    for o in observations:
        alone = replace(emulator, images={o.name: emulator.images[o.name]})
        slow = [slow_weight(alone.images[o.name], b.centre @ embeds[b.model.name]) for b in beliefs]
        found.append(Prospect(o, alone, max(slow, default=0.0) <= SLOW_BAR))
    return found


def _points(campaign: Campaign, places: Mapping[str, Floats]) -> list[Point]:
    s = campaign.settings
    # whole multiples of a small step: chains that differ by rounding are one
    return [
        Point(tuple(w), s.samples, s.sweeps, s.burn, campaign.seed, name)
        for name, union in places.items()
        for w in np.unique(np.round(union, 9) + 0.0, axis=0).tolist()
    ]


def _spread(belief: Belief, seed: int) -> Floats:
    """Couplings over a belief, wider than it."""
    k = len(belief.centre)
    n = (_DENSELY if k <= DENSE else _THINLY) * k
    key = np.random.SeedSequence([seed, 41, *np.frombuffer(belief.model.name.encode(), np.uint8)])
    sobol = qmc.MultivariateNormalQMC(np.zeros(k), seed=np.random.default_rng(key))
    z = _SPREAD * sobol.random(1 << (n - 1).bit_length())[:n]
    return belief.centre + z @ np.linalg.cholesky(belief.cov).T


def _bare(emulator: Emulator, o: Observation, beliefs: Sequence[Belief], embeds: Mapping[str, Floats]) -> Floats:
    """Union couplings at which a prospect needs chains still: where draws lack support, and on the way from the random alloy."""
    image, found = emulator.images[o.name], [np.zeros((0, len(emulator.names)))]
    for b in beliefs:
        if len(b.centre) <= DENSE:  # beyond, no pool is dense and chains are regressed upon
            draws = b.draws[:: max(1, len(b.draws) // _LOOK)] @ embeds[b.model.name]
            support = image.reweighting.support(draws)
            if np.quantile(support, 0.05) < _HELD:
                found.append(draws[np.argsort(support, kind="stable")[: 4 * 4 : 4]])
        between = stones(path(image.batch, image.random, b.centre @ embeds[b.model.name]))
        found.append(between[image.reweighting.support(between) < _FOOTHOLD])
    return np.concatenate(found)
