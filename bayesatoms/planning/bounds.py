"""The cheap bound: how well images can tell each model's couplings, before an hour is spent.

The pseudo-likelihood says where the couplings are, at the price of a regression. Its curvature is no error: neighbouring atoms
share their bonds, so it counts what an image says about twice. The information taken is that of the calibrated likelihood,
dm/dw^T C^-1 dm/dw with mean m and covariance C of the statistic, at the estimate and from a handful of chains: the first round
of the inference, made small. They are seen through the image's window, unseen sites and label errors as in the inference, so what
label errors cost is the same calculation without them. A Fisher-scoring step from a consistent estimate is as good as the maximum
(Le Cam, Univ. Calif. Publ. Stat. 1, 277, 1953), and undoes what label errors did to the pseudo-likelihood.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..hamiltonian import Hamiltonian
from ..inference.campaign import Campaign
from ..inference.densities import scoring
from ..inference.emulator import Emulator, ImageEmulator, Records
from ..inference.parameters import Nuisances, Parameters
from ..inference.posterior import cramer_rao
from ..inference.pseudolikelihood import PseudoLikelihood, pseudo_likelihood
from ..inference.settings import Settings
from ..inference.smooth import log_level
from ..montecarlo.design import DesignPoint
from ..montecarlo.pool import Pool
from ..observation import Observation
from ..window import Operator, Window

Floats = NDArray[np.float64]

_BLOCK = 1000  # environments: of a larger image a block is simulated, and its information scaled
_LOOKS = 6  # at most, each with chains at what the last one found
_STEPS = 6  # of scoring in one look
_SUPPORT = 0.3  # of a chain, without which the probe does not answer
_TIMED = 64  # couplings at which look-ups are timed
_STILL = 0.1  # standard deviations, below which a step counts as none


@dataclass(frozen=True, eq=False)
class Bound:
    """What the images can say of one model, as a normal law about its estimate.

    Attributes
    ----------
    parameters : Parameters
        The couplings (k of them) first, then what else is uncertain.
    estimate : ndarray, shape (p,)
        Where the posterior has its mode.
    information, clean : ndarray, shape (images, p, p)
        Fisher information of each image there, and what it would be if every label were right.
    score : ndarray, shape (p,)
        Slope of the log likelihood there.
    log_likelihood : float
        There, over that of the random alloy.
    pseudo : PseudoLikelihood or None
        Where it began, if the images show enough of every atom's surroundings.
    supported : bool
        Whether the probe's chains reached the place and stood in equilibrium.
    """

    parameters: Parameters
    estimate: Floats
    information: Floats
    clean: Floats
    score: Floats
    log_likelihood: float
    pseudo: PseudoLikelihood | None
    supported: bool

    @property
    def model(self) -> Hamiltonian:
        return self.parameters.model

    @property
    def names(self) -> tuple[str, ...]:
        return self.model.names

    @property
    def couplings(self) -> Floats:
        """Estimate of the couplings (k,), kT at formation."""
        return self.estimate[: len(self.names)]

    @cached_property
    def prior(self) -> tuple[Floats, Floats]:
        """Mean and variance (p,) of each parameter's prior; 0 and infinite where it has none."""
        means, variances = (
            np.array([float(np.asarray(getattr(self.parameters.prior(n), what))) for n in self.parameters.names])
            for what in ("mean", "variance")
        )
        return np.where(np.isfinite(means), means, 0.0), np.where(np.isfinite(variances), variances, np.inf)

    @property
    def sd(self) -> Floats:
        """Expected posterior standard deviation of each coupling (k,)."""
        return self._sd(self.information.sum(axis=0))

    @property
    def clean_sd(self) -> Floats:
        """The same if every label were right."""
        return self._sd(self.clean.sum(axis=0))

    @property
    def prior_sd(self) -> Floats:
        return np.sqrt(self.prior[1][: len(self.names)])

    @property
    def crb_sd(self) -> Floats:
        """Least standard deviation by these images alone (k,), infinite where they say nothing (nuisances keep their priors)."""
        if not self.names:
            return np.zeros(0)
        rest = np.diag(np.r_[np.zeros(len(self.names)), 1 / self.prior[1][len(self.names) :]])
        return cramer_rao(self.information.sum(axis=0) + rest)[: len(self.names)]

    def _sd(self, information: Floats) -> Floats:
        return np.sqrt(np.diag(np.linalg.pinv(information + np.diag(1 / self.prior[1]), hermitian=True)))[: len(self.names)]

    def log_evidence(self, prior_scale: float = 1.0, more: float = 1.0) -> float:
        """Log evidence over that of the random alloy, all laws taken as normal; nan without a proper prior.

        Parameters
        ----------
        prior_scale : float
            Priors of the couplings become so many times as wide.
        more : float
            So many times the images, if they say the same.
        """
        if not len(self.estimate):
            return 0.0
        mean, variance = self.prior
        if not np.isfinite(variance).all():
            return float("nan")
        k = len(self.names)
        width = np.r_[variance[:k] * prior_scale**2, variance[k:]]
        # the integral of exp(g . d - d . I d / 2) over the prior about the estimate
        away, whole = mean - self.estimate, more * self.information.sum(axis=0) + np.diag(1 / width)
        slope = more * self.score + away / width
        value = 0.5 * slope @ np.linalg.solve(whole, slope) - 0.5 * (away**2 / width).sum()
        return float(more * self.log_likelihood + value - 0.5 * np.log(width).sum() - 0.5 * np.linalg.slogdet(whole)[1])


@dataclass(frozen=True, eq=False)
class Probe:
    """The bounds of all models by name, and what was met on the way.

    `slow` names images with chains out of equilibrium; `kept` is the share of a chain's records left by thinning; `lookup` the
    seconds to weigh one record at one coupling, with the whole table of what is averaged.
    """

    bounds: Mapping[str, Bound]
    chains: int
    slow: tuple[str, ...]
    kept: float
    lookup: float


def probe(
    models: Sequence[Hamiltonian], observations: Sequence[Observation], *, settings: Settings, nuisances: Nuisances, seed: int
) -> Probe:
    """Bounds of all models from short chains at the random alloy and at each estimate.

    Parameters
    ----------
    models, observations
        As for :func:`~bayesatoms.inference.posterior.infer`.
    settings : Settings
        Its samples, sweeps and burn are those of each chain.
    nuisances : Nuisances
        Temperatures are taken into account; compositions and rates of label errors are taken as they are.
    seed : int

    Returns
    -------
    Probe

    Raises
    ------
    InputError
        As `infer` does.

    Examples
    --------
    One pair coupling at the random alloy, in an image of 400 sites: Var(F) = 8 n x^2 (1 - x)^2 = 200.

    >>> from numpyro import distributions as dist
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), lattice=Lattice.square(), species=("A", "B"))
    >>> labels = np.random.default_rng(0).permutation(np.arange(400) % 2).reshape(20, 20)
    >>> image = Observation.from_labels(labels, h.lattice, h.species, periodic=True)
    >>> bound = probe([h], [image], settings=Settings(), nuisances=Nuisances(), seed=1).bounds["P1"]
    >>> bool(abs(bound.sd[0] / 200**-0.5 - 1) < 0.2)
    True
    """
    plain = replace(nuisances, composition=False, label_error=0.0)
    blocks = [_block(o) for o in observations]
    shares = np.array([o.n / sum(len(r) for r in b.window.complete(b.environments)) for o, b in zip(observations, blocks, strict=True)])
    campaign = Campaign.prepare(
        models, blocks, seed=seed, pool=Pool(), settings=settings, workers=1, report=lambda *_: None, nuisances=plain
    )
    emulator = campaign.simulate(np.zeros((1, len(campaign.names))))
    found = {m.name: _start(campaign, m, observations, plain) for m in models}
    for _ in range(_LOOKS):
        for start in (s for s in found.values() if s.parameters.names and not s.done):
            emulator = campaign.simulate(start.place[None], start.parameters)
        found = {name: _scored(emulator, start, blocks, shares) for name, start in found.items()}
        if all(start.done for start in found.values()):
            break
    right = _rightly_labelled(campaign, emulator, blocks)
    bounds = {name: _bound(emulator, right, start, blocks, shares) for name, start in found.items()}
    slow = tuple(name for name, image in emulator.images.items() if image.slow.any())
    kept = float(np.mean([image.reweighting.records.mean() for image in emulator.images.values()])) / settings.samples
    return Probe(bounds, len(campaign.counted), slow, kept, _lookup(emulator))


def _lookup(emulator: Emulator) -> float:
    """Seconds to weigh one record at one coupling."""
    image = max(emulator.images.values(), key=lambda i: len(i.values))
    places = np.zeros((_TIMED, len(emulator.names)))
    image.reweighting.averages(places, image.table)  # whatever is compiled is compiled now
    least = np.inf
    for _ in range(3):  # other programs only make it slower
        clock = time.perf_counter()
        image.reweighting.averages(places, image.table)
        least = min(least, time.perf_counter() - clock)
    return least / (_TIMED * len(image.table))


@dataclass(frozen=True, eq=False)
class _Start:
    """Where one model's search is: `place` (p,), whether the chains held it and it stood still there, the prior's precision and mean."""

    parameters: Parameters
    place: Floats
    precision: Floats
    mean: Floats
    pseudo: PseudoLikelihood | None
    held: bool = True
    done: bool = False


def _block(o: Observation) -> Observation:
    """The image, or with its counts a block that stands for it where it is large: its information goes as its size."""
    if o.n <= _BLOCK:
        return o
    return replace(o, window=Window.block(o.environments, _BLOCK), configuration=None, positions=None)


def _start(campaign: Campaign, model: Hamiltonian, observations: Sequence[Observation], nuisances: Nuisances) -> _Start:
    """Pseudo-likelihood pulled towards the prior as far as it is unsure, or linear response about the random alloy."""
    if not model.terms:
        parameters = Parameters.of(model, observations)
        return _Start(parameters, np.zeros(0), np.zeros(0), np.zeros(0), None)
    parameters = Parameters.of(model, observations, nuisances)
    prior = [parameters.prior(n) for n in parameters.names]
    mean, variance = (np.array([float(np.asarray(getattr(p, what))) for p in prior]) for what in ("mean", "variance"))
    mean, precision = np.where(np.isfinite(mean), mean, 0.0), np.where(np.isfinite(variance), 1 / variance, 0.0)
    k = len(model.names)
    guess = pseudo_likelihood(model, observations) if parameters.shared or not parameters.temperature else None
    given = None
    if guess is not None and guess.exact:
        sure = np.linalg.inv(2 * guess.covariance)  # bonds are counted from both ends: half of the curvature is real
        pulled = np.linalg.solve(sure + np.diag(precision[:k]), sure @ guess.couplings + precision[:k] * mean[:k])
        if all(np.asarray(p.support(v)) for p, v in zip(prior, pulled, strict=False)):
            given = dict(zip(model.names, pulled.tolist(), strict=True))
    return _Start(parameters, campaign.start(parameters, given)[0], precision, mean, guess)


def _scored(emulator: Emulator, start: _Start, blocks: Sequence[Observation], shares: Floats) -> _Start:
    """Fisher scoring to the posterior's mode on the chains there are, as far as they reach."""
    place, held, sd = start.place, True, np.ones(len(start.place))
    for _ in range(_STEPS if len(place) else 0):
        if not _reached(emulator, start.parameters, place, blocks):
            held = False
            break
        each = [scoring(emulator, start.parameters, o, place) for o in blocks]
        whole = sum(s * i for s, (i, _) in zip(shares, each, strict=True)) + np.diag(start.precision)
        slope = sum(s * g for s, (_, g) in zip(shares, each, strict=True)) + start.precision * (start.mean - place)
        covariance = np.linalg.pinv(whole, hermitian=True)
        step, sd = covariance @ slope, np.sqrt(np.diag(covariance))
        while not _possible(start.parameters, place + step):  # a bounded prior: the mode lies at its edge
            step = step / 2
        while not _reached(emulator, start.parameters, place + step, blocks) and np.abs(step / sd).max() > _STILL:
            step, held = step / 2, False
        place = place + step
        if np.abs(step / sd).max() < _STILL / 2:
            break
    still = bool(np.abs((place - start.place) / sd).max(initial=0.0) < _STILL)
    return replace(start, place=place, held=held, done=held and still)


def _reached(emulator: Emulator, parameters: Parameters, place: Floats, blocks: Sequence[Observation]) -> bool:
    embed, q = emulator.embed(parameters.model), len(emulator.names)
    return all(emulator.images[o.name].reweighting.support(parameters.union(o.name, place, embed)[:q]) > _SUPPORT for o in blocks)


def _possible(parameters: Parameters, place: Floats) -> bool:
    return all(np.asarray(parameters.prior(n).support(v)) for n, v in zip(parameters.names, place, strict=True))


def _bound(emulator: Emulator, right: Emulator, start: _Start, blocks: Sequence[Observation], shares: Floats) -> Bound:
    parameters, place, q = start.parameters, start.place, len(emulator.names)
    p = len(place)
    embed, held = emulator.embed(parameters.model), start.held and _reached(emulator, parameters, place, blocks)
    level, score, each, clean = 0.0, np.zeros(p), [], []
    for o, share in zip(blocks, shares, strict=True):
        if not p:
            each.append(np.zeros((0, 0)))
            clean.append(np.zeros((0, 0)))
            continue
        information, slope = scoring(emulator, parameters, o, place)
        each.append(share * information)
        score += share * slope
        clean.append(share * scoring(right, parameters, o, place)[0] if o.name in right.images else each[-1])
        at = parameters.union(o.name, place, embed)[:q]
        level += share * (log_level(emulator, o, at) - log_level(emulator, o, np.zeros(q)))
    return Bound(parameters, place, np.array(each), np.array(clean), score, float(level), start.pseudo, held)


def _rightly_labelled(campaign: Campaign, emulator: Emulator, blocks: Sequence[Observation]) -> Emulator:
    """The same chains of the images that have label errors, seen without them."""
    images = {}
    for o in blocks:
        if o.response.exact:
            continue
        box = o.environments.lattice.supercell(campaign.shapes[o.name])
        operator, atoms = Operator(o.environments, o.window, box), campaign.variants[o.name][0].atoms
        points = [p for p in campaign.design if p.image in (None, o.name)]
        recipes = [
            DesignPoint(campaign.compiled[o.name], np.array(p.couplings), atoms, p.samples, p.sweeps, p.burn, p.seed) for p in points
        ]
        rng = np.random.default_rng(np.random.SeedSequence([campaign.seed, 41, *np.frombuffer(o.name.encode(), np.uint8)]))
        records = [Records.of(chain, operator, rng) for chain in campaign.pool.run(recipes)]
        clean = replace(o, label_error=np.eye(len(o.environments.species)), probabilities=None)
        images[o.name] = ImageEmulator.build(clean, campaign.statistic, records, shares=campaign.shares[o.name])
    return replace(emulator, images=images, varied={})
