"""Run control: chains that go on until what is asked for is known well enough, and a verdict in words.

Half of the chains start hot (atoms at random), half cold (the best of some ordered arrangements). A state in which
both are stuck looks like equilibrium to neither: they disagree. Where they agree, the error is that of all of
them together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..hamiltonian import Compiled, Hamiltonian
from ..progress import Progress
from .chains import Chain, joined
from .engine import run_chains
from .ensembles import Ensemble
from .timeseries import Mean, autocorrelation_time, equilibration

Observable = Callable[[Chain], NDArray[np.float64]]

RHAT = 1.02  # split R-hat above which chains have not mixed
APART = 4.0  # standard errors between hot and cold starts that chance does not explain (6e-5 each)
SPAN = 50.0  # autocorrelation times of all chains together below which an error is not believed
_PERIODS = 4  # cells of the largest period among the ordered starts


@dataclass(frozen=True, eq=False)
class Settled:
    """What a controlled run found.

    Attributes
    ----------
    means : dict of str to Mean
        Of every observable: over all chains, each cut before its equilibrium; `time` in records, the mean of the chains'.
    rhat : dict of str to float
        Split R-hat over the chains (Gelman et al., Bayesian Data Analysis, 3rd edition, section 11.4).
    apart : dict of str to float
        Difference between hot and cold starts, in standard errors.
    chains : list of Chain
        Hot starts first.
    sweeps : float
        Simulated by each chain.
    reasons : tuple of str
        Why the result is not to be believed; empty if it is.
    """

    means: dict[str, Mean]
    rhat: dict[str, float]
    apart: dict[str, float]
    chains: list[Chain]
    sweeps: float
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        rows = [f"{name}: {m}; R-hat {self.rhat[name]:.3f}, starts {self.apart[name]:.1f} sd apart" for name, m in self.means.items()]
        verdict = "settled" if self.ok else "not settled: " + "; ".join(self.reasons)
        return "\n".join([*rows, f"{len(self.chains)} chains of {self.sweeps:g} sweeps: {verdict}"])


def feature(k: int) -> Observable:
    """Feature k per site: an observable for :func:`run_until`."""
    return lambda chain: chain.features[:, k] / chain.n_sites


def energy(chain: Chain) -> NDArray[np.float64]:
    """Energy per site in kT: an observable for :func:`run_until`."""
    return chain.features @ chain.couplings / chain.n_sites


def composition(chain: Chain) -> NDArray[np.float64]:
    """Share of species 1: an observable for :func:`run_until`."""
    return (chain.snapshots == 1).mean(axis=1)


def run_until(
    compiled: Compiled,
    couplings: ArrayLike,
    counts: Sequence[int],
    errors: Mapping[str, float],
    *,
    observables: Mapping[str, Observable] | None = None,
    seed: int,
    ensemble: Ensemble | None = None,
    kernel: str = "auto",
    chains: int = 8,
    sweeps: float = 2.0,
    records: int = 200,
    most: float = 200_000.0,
    progress: Progress | None = None,
) -> Settled:
    """Run chains at one point until every observable asked for is known to its error.

    Parameters
    ----------
    compiled : Compiled
    couplings : array_like, shape (n_features,)
        kT.
    counts : sequence of int
        Atoms of each species at the start.
    errors : mapping of str to float
        Standard error asked for, by the name of an observable.
    observables : mapping of str to callable(Chain) -> ndarray, optional
        Series by name; :func:`energy` as "energy" and :func:`composition` as "composition" are known.
    seed : int
    ensemble, kernel
        As for :func:`~bayesatoms.montecarlo.engine.run_chains`.
    chains : int
        Even, half of them from a cold start.
    sweeps : float
        Between records.
    records : int
        Of the first round; each further round doubles what there is.
    most : float
        Sweeps of each chain after which it stops anyway, and says so.
    progress : callable(stage, done, total), optional
        Counts records; the total is that of the round.

    Returns
    -------
    Settled

    Raises
    ------
    InputError
        If an observable is unknown, an error is not positive, or the number of chains is odd.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> from bayesatoms.hamiltonian import Pair
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.triangular(), species=("A", "B"))
    >>> found = run_until(h.compile(h.lattice.supercell((12, 12))), [0.2], (72, 72), {"energy": 0.005}, seed=1)
    >>> found.ok, found.means["energy"].error <= 0.005
    (True, True)
    """
    known = {"energy": energy, "composition": composition, **(observables or {})}
    _check(errors, known, chains)
    couplings = np.asarray(couplings, dtype=float).reshape(-1)
    root = np.random.SeedSequence(seed)
    start, *_ = root.spawn(1)
    labels = starts(compiled, couplings, counts, chains, np.random.default_rng(start))
    tiled, found, wanted = np.tile(couplings, (chains, 1)), [], records
    while True:
        fresh = run_chains(
            compiled, tiled, labels, samples=wanted, sweeps=sweeps, burn=0.0, seeds=root.spawn(chains), sites=root.spawn(1)[0],
            ensemble=ensemble, kernel=kernel,
        )  # fmt: skip
        found = [joined([a, b]) for a, b in zip(found, fresh, strict=True)] if found else fresh
        labels = np.array([c.snapshots[-1] for c in fresh])
        wanted, spent = len(found[0]), len(found[0]) * sweeps
        if progress is not None:
            progress("control", wanted, 2 * wanted)
        result = judged(found, {name: known[name] for name in errors}, errors, spent)
        if result.ok or 2 * spent > most:
            break
    return result


def judged(chains: Sequence[Chain], observables: Mapping[str, Observable], errors: Mapping[str, float], sweeps: float) -> Settled:
    """Means, errors and verdict of chains of one point, the first half of them from hot starts.

    Parameters
    ----------
    chains : sequence of Chain
    observables : mapping of str to callable(Chain) -> ndarray
    errors : mapping of str to float
        Standard errors asked for.
    sweeps : float
        That each chain simulated.
    """
    means, rhat, apart, reasons = {}, {}, {}, []
    for name, observable in observables.items():
        series = [np.asarray(observable(c), dtype=float) for c in chains]
        cut = max(equilibration(s) for s in series)
        kept = [s[cut:] for s in series]
        time = float(np.mean([autocorrelation_time(s) for s in kept]))
        n = sum(len(s) for s in kept)
        variance = np.array([s.var(ddof=1) * time / len(s) for s in kept])
        value, error = float(np.mean([s.mean() for s in kept])), float(np.sqrt(variance.sum()) / len(kept))
        half = len(kept) // 2
        gap = abs(np.mean([s.mean() for s in kept[:half]]) - np.mean([s.mean() for s in kept[half:]]))
        means[name], rhat[name] = Mean(value, error, time, n, cut), split_rhat(kept)
        apart[name] = float(gap / max(2 * error, 1e-300)) if gap > 0 else 0.0
        if error > errors[name]:
            reasons.append(f"{name} is known to {error:.2g}, asked for {errors[name]:.2g}: run longer")
        if n < SPAN * time:
            reasons.append(f"{name}: all chains span {n / time:.0f} autocorrelation times, expected at least {SPAN:.0f}: run longer")
        if rhat[name] > RHAT:
            reasons.append(f"{name}: R-hat {rhat[name]:.3f}, expected below {RHAT}: the chains have not mixed")
        if apart[name] > APART:
            reasons.append(
                f"{name}: hot and cold starts differ by {apart[name]:.0f} standard errors, expected at most {APART:.0f}: "
                "they are stuck, as beside a transition; let chains exchange (exchange.Ladder)"
            )
    return Settled(means, rhat, apart, list(chains), sweeps, tuple(reasons))


def split_rhat(series: Sequence[ArrayLike]) -> float:
    """Potential scale reduction of chains, each split in two: 1 where they agree.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> same = rng.normal(size=(4, 500))
    >>> split_rhat(same) < 1.01, split_rhat(same + np.arange(4)[:, None]) > 1.5
    (True, True)
    """
    halves = [h for s in series for h in np.array_split(np.asarray(s, dtype=float), 2)]
    length = min(len(h) for h in halves)
    table = np.array([h[:length] for h in halves])
    within, between = table.var(axis=1, ddof=1).mean(), table.mean(axis=1).var(ddof=1)
    if within == 0:
        return 1.0 if between == 0 else np.inf
    return float(np.sqrt((length - 1) / length + between / within))


def starts(
    compiled: Compiled, couplings: NDArray[np.float64], counts: Sequence[int], chains: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Start configurations (chains, n_sites): the first half at random, the others :func:`ordered`."""
    atoms = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    hot = [rng.permutation(atoms) for _ in range(chains // 2)]
    return np.array(hot + [ordered(compiled, couplings, counts)] * (chains - len(hot)))


def ordered(compiled: Compiled, couplings: NDArray[np.float64], counts: Sequence[int]) -> NDArray[np.uint8]:
    """The lowest in energy of some ordered arrangements: blocks, and waves of all short periods filled from their crests.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> from bayesatoms.hamiltonian import Pair
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> compiled = h.compile(h.lattice.supercell((4, 4)))
    >>> [float(h.compile(h.lattice.supercell((4, 4))).features(ordered(compiled, np.array([w]), (8, 8)))[0]) for w in (1.0, -1.0)]
    [8.0, 32.0]
    """
    atoms, n = np.repeat(np.arange(len(counts), dtype=np.uint8), counts), compiled.n_sites
    orders = [np.arange(n)]
    if compiled.torus is not None:
        cells = np.array(np.unravel_index(np.arange(n), compiled.torus)).T
        for m in range(2, _PERIODS + 1):
            for wave in itertools.product(range(m), repeat=cells.shape[1]):
                if any(wave):
                    orders.append(np.argsort(-np.cos(2 * np.pi * (cells @ np.array(wave)) / m).round(9), kind="stable"))
    best, lowest = None, np.inf
    for order in orders:
        labels = np.empty(n, dtype=np.uint8)
        labels[order] = atoms[::-1]  # the last species on the crests
        level = float(compiled.features(labels) @ couplings)
        if level < lowest:
            best, lowest = labels, level
    assert best is not None
    return best


@dataclass(frozen=True)
class SizeCheck:
    """Two sizes of a crystal: `small` and `large` means, and by how many standard errors they differ, by observable."""

    small: Settled
    large: Settled
    apart: dict[str, float]
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.reasons


def check_size(
    hamiltonian: Hamiltonian,
    shape: Sequence[int],
    couplings: ArrayLike,
    counts: Sequence[int],
    errors: Mapping[str, float],
    *,
    seed: int,
    **options: Any,
) -> SizeCheck:
    """Run a periodic crystal and one of twice its length along every axis; what is a density should be the same.

    Parameters
    ----------
    hamiltonian : Hamiltonian
    shape : sequence of int
        Cells of the smaller crystal.
    couplings, counts, errors, seed, options
        As for :func:`run_until`; the larger crystal has 2^d times the atoms.

    Returns
    -------
    SizeCheck

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> from bayesatoms.hamiltonian import Pair
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.triangular(), species=("A", "B"))
    >>> check_size(h, (12, 12), [0.2], (72, 72), {"energy": 0.01}, seed=1).ok
    True
    """
    found = []
    for scale in (1, 2):
        cell = hamiltonian.lattice.supercell(tuple(scale * int(n) for n in shape))
        atoms = [int(c) * scale ** len(cell.shape) for c in counts]
        found.append(run_until(hamiltonian.compile(cell), couplings, atoms, errors, seed=seed + scale, **options))
    small, large = found
    apart, reasons = {}, [f"{size}: {r}" for size, s in zip(("small", "large"), found, strict=True) for r in s.reasons]
    for name in errors:
        one, two = small.means[name], large.means[name]
        gap, noise = abs(one.value - two.value), float(np.hypot(one.error, two.error))
        apart[name] = gap / max(noise, 1e-300) if gap > 0 else 0.0
        if apart[name] > APART and gap > errors[name]:
            reasons.append(f"{name} changes by {gap:.2g} in a crystal twice as long, {apart[name]:.0f} standard errors: take a larger one")
    return SizeCheck(small, large, apart, tuple(reasons))


def _check(errors: Mapping[str, float], known: Mapping[str, Observable], chains: int) -> None:
    if unknown := sorted(set(errors) - set(known)):
        raise InputError(f"observable {unknown[0]!r} is unknown; expected {', '.join(sorted(known))}, or one given in observables")
    if wrong := [n for n, e in errors.items() if not e > 0]:
        raise InputError(f"error {errors[wrong[0]]} asked for of {wrong[0]}; expected a positive number")
    if chains < 2 or chains % 2:
        raise InputError(f"{chains} chains asked for; expected an even number, half of them from a cold start")
