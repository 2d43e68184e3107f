"""Sequential inference: images arrive one by one, and the posterior is up to date after each.

Every image is a factor of the likelihood with chains of its own, so a new one costs its own chains and a new look at
the posterior. What is found after n images is the posterior of `infer` on all of them, whatever their order, up to Monte
Carlo error.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..errors import CheckError, InputError
from ..hamiltonian import Hamiltonian
from ..montecarlo.executors import Executor
from ..montecarlo.pool import Pool
from ..observation import Observation
from ..progress import Progress, reporter
from .campaign import Campaign
from .inputs import check_inputs
from .kept import Kept
from .parameters import Parameters
from .pieces import Origin
from .posterior import Result, infer
from .regions import Region
from .settings import Settings
from .stopping import StopRule
from .tracking import Tracked, settle, welcome
from .updates import Update, standing, update

_KINDS = ("calibrated",)


class Sequential:
    """A session of images that arrive one by one, under the calibrated likelihood.

    Parameters
    ----------
    models : sequence of Hamiltonian
        Couplings in kT at formation, the same for all images.
    seed : int
        Same seed and same images in the same order, same answer, for any number of workers.
    settings : Settings, optional
    stop : StopRule, optional
        When enough images were taken; by default never.
    pool : Pool, optional
        Chains to build on; by default a new one, in ``out/pool`` if `out` is given.
    out : path, optional
        Folder in which images and chains are kept. A session that is already there goes on: its images are added again,
        which takes their chains from the pool and gives the same updates.
    workers : int or Executor
    progress : bool or callable(stage, done, total), optional

    Attributes
    ----------
    updates : list of Update
        One for each time that images were added.

    Raises
    ------
    InputError
        If the models cannot be used, the stop rule names a coupling that they do not have, or the folder holds
        another session.

    Notes
    -----
    Random numbers of a chain follow from the box of its image (cells and atoms) and its place among the couplings, those of
    what the image's window shows of it from the image's name: neither depends on the order. Design points do: they lie over
    the posterior at the time. So two orders agree within Monte Carlo error, not in their digits.

    Examples
    --------
    >>> from numpyro import distributions as dist
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> alloy = dict(lattice=Lattice.square(), species=("A", "B"))
    >>> models = [Hamiltonian("R", **alloy), Hamiltonian("P1", Pair("A", "B", prior=dist.Normal(0, 1)), **alloy)]
    >>> session = Sequential(models, seed=1, settings=Settings(points=4, samples=120), stop=StopRule(sd={"P1.w1": 0.1}))
    >>> rng = np.random.default_rng(0)
    >>> photographs = (Observation.from_labels(rng.integers(0, 2, (16, 16)), **alloy, name=f"random {i}") for i in range(9))
    >>> for update in session.follow(photographs):
    ...     pass
    >>> update.number < 9, update.stop.stop, bool(update.estimates["P1"].sd[0] < 0.1), update.ok
    (True, True, True, True)
    """

    def __init__(
        self,
        models: Sequence[Hamiltonian] | Hamiltonian,
        *,
        seed: int,
        settings: Settings | None = None,
        stop: StopRule | None = None,
        pool: Pool | None = None,
        out: str | Path | None = None,
        workers: int | Executor = 1,
        progress: bool | Progress | None = None,
    ) -> None:
        self._begin(models, seed, settings, stop, pool, out, workers, progress)
        if self._kept is not None:
            for images in self._kept.begin(None):
                self._add(images)

    def _begin(self, models, seed, settings, stop, pool, out, workers, progress) -> None:
        self.models: tuple[Hamiltonian, ...] = (models,) if isinstance(models, Hamiltonian) else tuple(models)
        self.seed, self.settings, self.stop = seed, settings or Settings(), stop or StopRule()
        if not self.models:
            raise InputError("no models given; expected at least one with couplings")
        self.stop.check(self.models)
        for model in self.models:
            for name in model.names:
                model.prior(name)
        self._kept = None if out is None else Kept(Path(out), self.models, seed, self.settings)
        self.pool = pool if pool is not None else Pool(None if out is None else Path(out) / "pool")
        self._workers, self._report = workers, reporter(progress)
        self._campaign: Campaign | None = None
        self._regions: list[Tracked] = []
        self._origins: dict[str, Origin] = {}
        self.updates: list[Update] = []

    @classmethod
    def of(
        cls,
        result: Result,
        *,
        stop: StopRule | None = None,
        pool: Pool | None = None,
        out: str | Path | None = None,
        workers: int | Executor = 1,
        progress: bool | Progress | None = None,
    ) -> Sequential:
        """Go on from a finished inference: its images, chains and regions are taken, nothing is simulated again.

        Raises
        ------
        InputError
            If its images have parameters of their own (nuisances), or the folder holds another session.

        Examples
        --------
        ``Sequential.of(infer(models, images, seed=1)).add(another)``
        """
        for fit in result.fits.values():
            if not fit.parameters.shared:
                other = [n for n in fit.parameters.names if n not in fit.model.names]
                what = ", ".join(other) or "energies instead of couplings"
                raise InputError(f"the result has {what} as parameters; a session shares couplings in kT among all images: infer without")
        if result.simulated is None:
            raise InputError("the result does not say which chains it rests on; expected one of infer")
        session = cls.__new__(cls)
        models = [f.model for f in result.fits.values()]
        own = pool if pool is not None or out is not None else result.simulated.pool
        session._begin(models, result.seed, result.settings, stop, own, out, workers, progress)
        batches = [] if session._kept is None else session._kept.begin(result)
        session._take(result)
        for images in batches:
            session._add(images)
        return session

    # ------------------------------------------------------------------ images

    def add(self, observations: Observation | Sequence[Observation]) -> Update:
        """Add one image, or several at once, and say what is known now.

        A failure leaves the session as it was.

        Raises
        ------
        InputError
            If an image does not belong with the models or the other images, or there is one of its name.
        CheckError
            If the chains never had enough support for a posterior.
        """
        images = [observations] if isinstance(observations, Observation) else list(observations)
        if not images:
            raise InputError("no image given; expected an observation or several")
        if self._kept is not None:
            self._kept.check(images)
        found = self._add(images)
        if self._kept is not None:
            self._kept.add(images)
        return found

    def follow(self, observations: Iterable[Observation]) -> Iterator[Update]:
        """Add images as they come, and give out each update; ends when the stop rule says so, or with the images.

        Examples
        --------
        ``for update in session.follow(images): print(update)``
        """
        for o in observations:
            yield (found := self.add(o))
            if found.stop.stop:
                return

    @threadpool_limits.wrap(limits=1, user_api="blas")
    def _add(self, images: Sequence[Observation]) -> Update:
        import numpyro

        numpyro.enable_x64()
        clock, before = time.perf_counter(), self.pool.simulated
        # on a copy: whatever goes wrong, the session stays as it was
        campaign = self._campaign.copy() if self._campaign is not None else self._empty(images)
        welcome(campaign, images, self._regions)
        regions = self._regions or _starts(campaign)
        regions = settle(campaign, regions, [len(campaign.observations)])
        return self._found(campaign, regions, images, clock, before)

    def _empty(self, images: Sequence[Observation]) -> Campaign:
        """A campaign that knows the models, and no image yet."""
        check_inputs(self.models, images, _KINDS)
        return Campaign.empty(
            self.models, images[0].environments, seed=self.seed, pool=self.pool, settings=self.settings, workers=self._workers,
            report=self._report, kinds=_KINDS,
        )  # fmt: skip

    @threadpool_limits.wrap(limits=1, user_api="blas")
    def _take(self, result: Result) -> None:
        """The images, chains and regions of a result."""
        import numpyro

        numpyro.enable_x64()
        clock, before, past = time.perf_counter(), self.pool.simulated, result.simulated
        assert past is not None
        images = list(result.observations)
        campaign = Campaign.prepare(
            self.models, images, seed=self.seed, pool=self.pool, settings=self.settings, workers=self._workers, report=self._report,
            statistic=result.statistic, past=past, kinds=_KINDS,
        )  # fmt: skip
        # a chain of every image then is one of these images, not of those to come
        campaign.gather([replace(p, image=o.name) for o in images for p in past.points if p.image in (None, o.name)])
        known = {m.name: past.centre(Parameters.of(m, images), "calibrated") for m in self.models if m.terms}
        regions = [replace(r, centre=at[0], cov=at[1]) if (at := known[r.model.name]) else r for r in _starts(campaign)]
        self._found(campaign, settle(campaign, regions, [len(images)]), images, clock, before)

    def _found(self, campaign: Campaign, regions: list[Tracked], images: Sequence[Observation], clock: float, before: int) -> Update:
        for r in regions:
            if r.smooth is None or r.thin:
                raise CheckError(
                    f"model {r.model.name}: after {', '.join(o.name for o in images)} the pool never had enough support; "
                    "give more rounds or a narrower prior"
                )
        assert campaign.emulator is not None
        origins = {o.name: Origin.of(campaign.emulator, o, self._origins.get(o.name)) for o in campaign.observations}
        chains = self.pool.simulated - before
        found = update(campaign, regions, origins, self.stop, [o.name for o in images], chains, 0.0)
        found = replace(found, seconds=time.perf_counter() - clock)
        self._campaign, self._regions, self._origins = campaign, regions, origins
        self.updates.append(found)
        return found

    # ------------------------------------------------------------------ what is known

    @property
    def observations(self) -> tuple[Observation, ...]:
        """The images so far, in the order in which they came."""
        return () if self._campaign is None else tuple(self._campaign.observations)

    @property
    def weights(self) -> dict[str, float]:
        """Posterior weight of each model under the declared priors; equal ones before the first image."""
        return self.updates[-1].evidences.weights() if self.updates else dict.fromkeys((m.name for m in self.models), 1 / len(self.models))

    def draws(self, model: str) -> NDArray[np.float64]:
        """Equally weighted draws (n, k) of a model's couplings, kT at formation.

        Raises
        ------
        InputError
            If there is no such model, or no image yet.
        """
        if model not in (names := [m.name for m in self.models]):
            raise InputError(f"model {model!r} is not in this session; it has {', '.join(names)}")
        if not self.updates:
            raise InputError("no image was added yet; expected one before there are draws")
        return next((r.draws for r in self._regions if r.model.name == model), np.zeros((1, 0)))

    def result(self) -> Result:
        """The result of `infer` on all images: NUTS, both likelihoods and all checks, on the chains there are.

        Chains are run only where the published likelihood lies elsewhere and they are too few for it.

        Raises
        ------
        InputError
            If there is no image yet.
        """
        if self._campaign is None:
            raise InputError("no image was added yet; expected one before there is a result")
        return infer(
            self.models, self.observations, seed=self.seed, statistic=self._campaign.statistic, pool=self.pool, settings=self.settings,
            reuse=standing(self._campaign, self._regions), workers=self._workers, progress=self._report,
        )  # fmt: skip


def _starts(campaign: Campaign) -> list[Tracked]:
    """Where to look first: linear response about the random alloy, or the pseudo-likelihood."""
    found = []
    for model in campaign.models:
        if model.terms:
            parameters = Parameters.of(model, campaign.observations)
            found.append(Tracked.of(Region.at(parameters, "calibrated", *campaign.start(parameters, None))))
    return found
