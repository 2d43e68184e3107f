"""What a run will cost: time by stage and memory, from rates measured on the actual boxes and the known structure of a run.

A run is rounds of chains for every posterior and image, each seen through the image's window and put into the pool, and after each
round searches that look the pool up at hundreds of couplings; then NUTS, the comparison, the calibration and the phase map.
Chains, looks and look-ups are timed here, on the boxes and tables of the run itself; how many of them there are follows from the
settings and from how many rounds it takes, which is not known before: hence a range.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..configuration import whole_counts
from ..hamiltonian import Compiled, Hamiltonian
from ..inference.boltzmann import exponentials
from ..inference.emulator import Records
from ..inference.inputs import KINDS
from ..inference.parameters import Nuisances
from ..inference.settings import Settings
from ..inference.statistic import union
from ..inference.variation import variants
from ..montecarlo.chains import Chain
from ..montecarlo.design import DesignPoint
from ..montecarlo.lanes import MOST
from ..observation import Observation
from ..phases.arguments import axis_of, box_shape
from ..phases.candidates import Candidate
from ..phases.sheet import RECORDS, Sheet, cool

Floats = NDArray[np.float64]

_SECONDS = 0.12  # of chains timed for one box
_SWEEPS = 480.0  # of a block of a phase map, as there by default
# counted, and timed on one machine, in runs of one to six images of 400 to 10,000 sites and one to four models
_ROUNDS = (2.0, 2.3, 4.0)  # until posteriors stand still: at least, mostly, where they are hard to find
_STONES = (0.85, 5.0)  # chains on the way from the random alloy for each standard deviation, less those that are there anyway
_SEARCH = 1000.0  # couplings looked up in one search for one posterior
_SOLVE = 20.0  # evaluations of the free energies' equations each time that they are solved
_EXPONENTIAL = 3e-9  # seconds each, there
_NUTS = (0.35, 0.17)  # seconds a posterior, program at hand; and for each image and coupling
_COMPILE = 14.0  # seconds a posterior of a new form
_COMPARE = (0.3, 0.26)  # seconds, and for each image and coupling of all models
_CALIBRATE = (0.1, 0.1)  # likewise
_START = (15.0, 0.7)  # imports, compiled kernels, tables, pictures and the report; likewise
_REFERENCE = 1.4e-9  # seconds for one exponential on the machine on which all that was timed
_BLOCKS = (0.8, 1.3, 3.0)  # blocks of a stage of a phase map: cold ones freeze, those near a boundary take up to five
_FEW = 0.25  # of the time of as many draws as run side by side, for one
_LOOKED, _LARGE = (64, 8), 100_000  # records of the chain that is looked at to time it; fewer in boxes beyond so many sites
_BASE = 0.6  # GB of an interpreter with everything imported


@dataclass(frozen=True)
class Stage:
    """One stage of a run: seconds at least, expected and at most."""

    name: str
    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class Cost:
    """Time and memory of a run.

    Attributes
    ----------
    stages : tuple of Stage
    compilation : float
        Seconds that come on top where programs for NUTS of these forms were never compiled on this machine.
    memory : tuple of float
        GB, at least and at most.
    moves : float
        Attempted moves, expected.
    rate : float
        Moves per second of one core, measured.
    workers : int
    """

    stages: tuple[Stage, ...]
    compilation: float
    memory: tuple[float, float]
    moves: float
    rate: float
    workers: int

    @property
    def seconds(self) -> tuple[float, float, float]:
        """In all: at least, expected, at most (without compilation)."""
        low, expected, high = (sum(getattr(s, what) for s in self.stages) for what in ("low", "expected", "high"))
        return low, expected, high

    @property
    def dominant(self) -> Stage:
        """The stage that takes longest."""
        return max(self.stages, key=lambda s: s.expected)

    def sentences(self) -> list[str]:
        """In words."""
        low, expected, high = self.seconds
        s = "s" if self.workers != 1 else ""
        parts = ", ".join(f"{x.name} {in_words(x.expected)}" for x in self.stages if x.expected >= 0.5)
        return [
            f"About {in_words(expected)} with {self.workers} worker{s} ({in_words(low)} to {in_words(high)}), most of it "
            f"{self.dominant.name}: {parts}.",
            f"Up to {in_words(self.compilation)} more the first time that models of this form are sampled on this machine.",
            f"{self.memory[0]:.1f} to {self.memory[1]:.1f} GB of memory; {self.moves / 1e6:,.0f} million attempted moves, "
            f"{self.rate / 1e6:.0f} million a second on one core (measured).",
        ]


def in_words(seconds: float) -> str:
    """A duration to one or two figures.

    Examples
    --------
    >>> in_words(0.4), in_words(48), in_words(200), in_words(9000)
    ('1 s', '48 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, eq=False)
class Rates:
    """What was timed of an inference's chains, by image.

    `chain` seconds of one chain, 0 where another image has the same box and shares its chains; `look` seconds to see one chain's
    records through the window; `moves` those of a chain; `bytes` what a chain's records take; `variants` boxes or operators each;
    `rate` moves a second; `slower` how many times slower plain arithmetic is than where the other stages were timed.
    """

    chain: Mapping[str, float]
    look: Mapping[str, float]
    moves: Mapping[str, float]
    bytes: Mapping[str, float]
    variants: Mapping[str, int]
    rate: float
    slower: float


def measure(
    models: Sequence[Hamiltonian], observations: Sequence[Observation], settings: Settings, nuisances: Nuisances, kept: float
) -> Rates:
    """Time the kernel and the looks at its records on the box of every image.

    Parameters
    ----------
    models, observations
    settings : Settings
    nuisances : Nuisances
        A composition with error needs larger boxes, and several.
    kept : float
        Share of the records left by thinning.

    Returns
    -------
    Rates

    Examples
    --------
    ``measure(models, images, Settings(), Nuisances(), 0.8).rate``
    """
    orbits = list(union({m.name: dict(zip(m.names, m.orbits, strict=True)) for m in models}).values())
    found: dict[str, dict[str, Any]] = {name: {} for name in ("chain", "look", "moves", "bytes", "variants")}
    known: dict[tuple[Any, ...], tuple[float, float, Chain]] = {}
    budget = _SECONDS if len(observations) < 4 else 4 * _SECONDS / len(observations)
    for o in observations:
        box, atoms = o.window.box(o.environments, o.true_composition, 2 if nuisances.composition else 1)
        place, seen = (box.shape, tuple(int(a) for a in atoms)), variants(o, box, atoms, nuisances)
        shared = place in known
        if not shared:
            known[place] = _timed(Compiled.build(orbits, box, len(atoms)), place[1], settings, budget)
        second, moves, chain = known[place]
        clock = time.perf_counter()
        records = Records.of(chain, seen[0].operator, np.random.default_rng(0))
        each = (time.perf_counter() - clock) / len(records.features)
        found["chain"][o.name], found["moves"][o.name] = (0.0, 0.0) if shared else (second, moves)
        found["look"][o.name] = each * kept * settings.samples
        found["bytes"][o.name] = records.counts.nbytes / len(records.features) * kept * settings.samples + 16.0 * settings.samples
        found["variants"][o.name] = len(seen)
    most = max(known.values(), key=lambda k: k[1])
    return Rates(**found, rate=most[1] / most[0], slower=_slower())


def _timed(compiled: Compiled, atoms: tuple[int, ...], settings: Settings, budget: float) -> tuple[float, float, Chain]:
    """Seconds and moves of a whole chain, and a short one: a sweep to compile, another to find how many fit into the budget."""
    sweeps = settings.burn + settings.samples * settings.sweeps
    looked = _LOOKED[0] if compiled.n_sites < _LARGE else _LOOKED[1]
    recipe = DesignPoint(compiled, np.zeros(compiled.n_features), atoms, 2, 1.0, 0.0, 0)
    recipe.run()
    clock = time.perf_counter()
    replace(recipe, seed=1).run()
    each = (time.perf_counter() - clock) / 2
    burn = float(np.clip(budget / each - looked, 0.0, sweeps))
    clock = time.perf_counter()
    chain = replace(recipe, seed=2, burn=burn, samples=looked).run()
    second = (time.perf_counter() - clock) / (burn + looked)
    return second * sweeps, chain.moves / (burn + looked) * sweeps, chain


def stepping_stones(away: float) -> float:
    """Chains between the random alloy and an estimate so many standard deviations of one image away, along which evidence is integrated.

    Examples
    --------
    >>> stepping_stones(4.0), stepping_stones(20.0)
    (0.0, 12.0)
    """
    return max(0.0, _STONES[0] * away - _STONES[1])


def map_seconds(candidates: Sequence[Candidate], phases: Mapping[str, Any], workers: int = 1) -> tuple[float, float, float]:
    """Seconds of a phase map: at least, expected, at most. The hottest stage of one column of it is really run.

    Parameters
    ----------
    candidates : sequence of Candidate
        The models with likely couplings and expected weights.
    phases : mapping
        `composition` or `chemical_potential`, `temperature`, `draws`, `size`, as for
        :func:`~bayesatoms.phases.diagram.phase_diagram`; and `model`, one's name or "average".
    workers : int

    Examples
    --------
    ``map_seconds(candidates, {"composition": [0.3, 0.5], "temperature": [0.5, 1.0], "draws": 100})``
    """
    wanted = phases.get("model", "average")
    used = [c for c in candidates if wanted in ("average", c.hamiltonian.name)]
    weights = np.array([c.weight for c in used])
    shares = whole_counts(weights / weights.sum(), int(phases.get("draws", 100)))
    busy = [(c, int(n)) for c, n in zip(used, shares, strict=True) if c.hamiltonian.terms and n]
    if not busy:
        return 0.0, 0.0, 0.0  # the random alloy needs no chains
    largest = max(busy, key=lambda b: len(b[0].hamiltonian.terms))[0]
    model = largest.hamiltonian
    box = model.lattice.supercell(box_shape(model.lattice.dimension, len(model.lattice.basis), phases.get("size")))
    potential = phases.get("chemical_potential")
    columns = len(axis_of("composition", phases["composition"], model.species)[1] if potential is None else potential)
    t = np.geomspace(0.02, 2, 13) if phases.get("temperature") is None else np.asarray(phases["temperature"], dtype=float)
    whole = Sheet(model.compile(box), box, largest.couplings[:MOST], t, whole_counts([0.5, 0.5], box.n_sites), 1, _SWEEPS, (0,))
    hot = replace(whole, temperatures=whole.stages[:1])
    cool(replace(hot, sweeps=float(RECORDS)))  # to compile
    clock = time.perf_counter()
    cool(hot)
    sheet = (time.perf_counter() - clock) * len(whole.stages)
    # a few draws take a good part of the time of as many as run side by side
    sheets = columns * sum(n // MOST + (_FEW + (1 - _FEW) * (n % MOST) / MOST if n % MOST else 0.0) for _, n in busy)
    low, expected, high = (sheet * sheets * f / workers for f in _BLOCKS)
    return low, expected, high


def estimate(
    models: Sequence[Hamiltonian],
    observations: Sequence[Observation],
    settings: Settings,
    rates: Rates,
    *,
    kept: float,
    lookup: float,
    workers: int,
    way: Mapping[str, float] | None = None,
    mapping: tuple[float, float, float] | None = None,
    relabelled: int = 0,
) -> Cost:
    """A run's cost from what was timed.

    Parameters
    ----------
    models, observations, settings
    rates : Rates
    kept, lookup : float
        Of a :class:`~bayesatoms.planning.bounds.Probe`.
    workers : int
    way : mapping of str to float, optional
        Chains on the way from the random alloy, by image: see :func:`stepping_stones`.
    mapping : tuple of float, optional
        Seconds of the phase map.
    relabelled : int
        Other labellings, each inferred again on the same chains.

    Returns
    -------
    Cost

    Examples
    --------
    ``estimate(models, images, settings, rates, kept=0.8, lookup=2e-8, workers=2).sentences()``
    """
    terms = [len(m.terms) for m in models if m.terms]
    posteriors, cores, slower = len(KINDS) * len(terms), float(min(workers, 4)), rates.slower
    each = sum(len(KINDS) * max(settings.points, 2 * k) for k in terms)  # chains of a round
    couplings = sum(terms) * len(observations)  # of all models in all images
    length = (settings.warmup + settings.draws) * settings.parallel / 1e4
    stages: list[Stage] = []

    def add(name: str, seconds: Sequence[float]) -> None:
        stages.append(Stage(name, *(float(s) for s in seconds)))

    simulate, chains = [], []
    for rounds in (min(r, settings.rounds) for r in _ROUNDS):
        every = {o.name: (1 + each * rounds + (way or {}).get(o.name, 0.0)) * rates.variants[o.name] for o in observations}
        chain = sum(n * rates.chain[name] for name, n in every.items())
        look = sum(n * rates.look[name] for name, n in every.items())
        records, n = settings.samples * kept * sum(every.values()), float(np.mean(list(every.values())))  # of all images, in the end
        # sums over the rounds, in each of which there are as many more
        search = posteriors * _SEARCH * records * (rounds + 1) / 2 * lookup
        solve = _SOLVE * records * n * (rounds + 1) * (2 * rounds + 1) / (6 * rounds) * _EXPONENTIAL * slower
        simulate.append(chain / workers + look + (search + solve) / cores)
        chains.append(every)
    add("simulate", simulate)
    sampled = (posteriors * _NUTS[0] + len(KINDS) * couplings * _NUTS[1]) * length * slower / cores
    add("sample", [sampled * f for f in (0.6, 1.0, 2.0)])
    spread = (0.6, 1.0, 1.8)
    compared = (_COMPARE[0] + _COMPARE[1] * couplings) * slower / cores if len(models) > 1 else 0.0
    add("compare", [compared * f for f in spread])
    add("calibrate", [(_CALIBRATE[0] + _CALIBRATE[1] * couplings) * slower * f for f in spread])
    if relabelled:
        add("labellings", [relabelled * (0.5 * s + sampled) for s in simulate])
    if mapping is not None:
        add("phase map", mapping)
    add("start and report", [(_START[0] + _START[1] * couplings) * slower * f for f in spread])
    kept_bytes = [sum(n * rates.bytes[name] for name, n in every.items()) / 1e9 for every in chains]
    largest = settings.samples * max(o.window.box(o.environments, o.true_composition)[0].n_sites for o in observations) / 1e9
    least, most = _BASE + 2 * kept_bytes[0] + largest, 1.5 * _BASE + 3 * kept_bytes[-1] + 3 * largest * workers
    moves = sum(n * rates.moves[name] for name, n in chains[1].items())
    return Cost(tuple(stages), posteriors * _COMPILE * slower / cores, (least, most), moves, rates.rate, workers)


def _slower() -> float:
    """How many times slower than there plain arithmetic is here."""
    values, least = np.linspace(-700.0, 0.0, 200_000), np.inf
    for _ in range(6):  # the first compiles; other programs only make it slower
        own = values.copy()
        clock = time.perf_counter()
        exponentials(own, 0.0)
        least = min(least, time.perf_counter() - clock)
    return least / len(values) / _REFERENCE
