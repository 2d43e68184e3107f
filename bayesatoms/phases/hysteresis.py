"""Loops of composition against chemical potential: the jump between two phases, and where it belongs.

At a low temperature the composition follows a rising chemical potential beyond the point where the other phase is the
better one, jumps, and comes back late on the way down. The grand potential of each branch follows from its composition,
d omega / d mu = -x, from an end where the crystal is nearly pure and its omega is known; where the two cross, the phases coexist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import cumulative_trapezoid

from ..errors import InputError
from ..hamiltonian import Compiled, Field, Hamiltonian
from ..montecarlo.engine import run_chains
from ..montecarlo.ensembles import SemiGrand

_JUMP = 0.1  # composition by which the two ways must differ somewhere to count as two phases
_DILUTE = 0.2  # share of the rarer species at the ends, above which they are not dilute
_RECORDS = 32


@dataclass(frozen=True, eq=False)
class Loop:
    """Composition on the way up and down, of many couplings.

    Attributes
    ----------
    potential : ndarray, shape (p,)
        Chemical potentials of the second species against the first, in kT at formation.
    up, down : ndarray, shape (m, p)
        Compositions.
    coexistence : ndarray, shape (m, 3)
        Potential, poor and rich composition where the phases coexist; nan where there is no loop.
    """

    potential: NDArray[np.float64]
    up: NDArray[np.float64]
    down: NDArray[np.float64]
    coexistence: NDArray[np.float64]

    @property
    def width(self) -> NDArray[np.float64]:
        """Largest difference (m,) of the compositions on the two ways: 0, but for noise, without coexistence."""
        return (self.down - self.up).max(axis=1)


def potential_loop(
    hamiltonian: Hamiltonian,
    couplings: ArrayLike,
    *,
    temperature: float,
    potential: ArrayLike,
    size: int = 24,
    sweeps: float = 400.0,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Loop:
    """Raise the chemical potential step by step and lower it again, for many couplings side by side.

    Parameters
    ----------
    hamiltonian : Hamiltonian
        Of two species.
    couplings : array_like, shape (k,) or (m, k)
        In kT at formation, such as posterior draws.
    temperature : float
        Relative to formation.
    potential : array_like, shape (p,)
        Rising, in kT at formation; from where the crystal is nearly of the first species to where it is of the second.
    size : int
        Cells along a side of the box.
    sweeps : float
        At each potential, half of them before the first record.
    seed : int
    progress : callable, optional
        Called with ("loop", done, of how many steps).

    Returns
    -------
    Loop

    Raises
    ------
    InputError
        If an argument is out of range, or the ends are not nearly pure: their grand potentials would not be known.

    Examples
    --------
    The square Ising model at 0.62 of its critical temperature: coexistence at 0, where m = 0.99 (Yang 1952).

    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B", name="w"), lattice=Lattice.square(), species=("A", "B"))
    >>> loop = potential_loop(h, [[1.0]], temperature=0.7, potential=np.linspace(-3, 3, 41), size=16, seed=1)
    >>> bool(loop.width[0] > 0.9), np.abs(loop.coexistence[0] - [0.0, 0.004, 0.996]).round(1).tolist()
    (True, [0.0, 0.0, 0.0])
    """
    w, mu = np.atleast_2d(np.asarray(couplings, dtype=float)), np.asarray(potential, dtype=float)
    if len(hamiltonian.species) != 2 or w.shape[1] != len(hamiltonian.names) or not np.isfinite(w).all():
        raise InputError(f"couplings of shape {w.shape} given; expected finite ones (m, {len(hamiltonian.names)}), and two species")
    if not temperature > 0 or mu.ndim != 1 or len(mu) < 3 or (np.diff(mu) <= 0).any():
        raise InputError(f"temperature {temperature}, potentials {mu.tolist()} given; expected it above 0, and at least three rising ones")
    box = hamiltonian.lattice.supercell((size,) * hamiltonian.lattice.dimension)
    # the potential is a field with a strength of its own in every lane, so nothing else need know of it
    compiled = Compiled.build([*hamiltonian.orbits, Field(hamiltonian.species[1]).orbit(box.lattice, hamiltonian.species)], box, 2)
    labels = np.zeros((len(w), box.n_sites), dtype=np.uint8)
    ways = np.zeros((2, len(w), len(mu)))
    for way in (0, 1):
        for step in range(len(mu)) if way == 0 else range(len(mu) - 1, -1, -1):
            root = np.random.SeedSequence([seed, way, step])
            sites, *seeds = root.spawn(1 + len(w))
            lanes = np.column_stack([w / temperature, np.full(len(w), -mu[step] / temperature)])
            chains = run_chains(
                compiled, lanes, labels, samples=_RECORDS, sweeps=sweeps / 2 / _RECORDS, burn=sweeps / 2, seeds=seeds, sites=sites,
                ensemble=SemiGrand((0.0, 0.0)), kernel="lanes",
            )  # fmt: skip
            labels = np.stack([c.snapshots[-1] for c in chains])
            ways[way, :, step] = [c.features[:, -1].mean() / box.n_sites for c in chains]
            if progress is not None:
                progress("loop", way * len(mu) + (step if way == 0 else len(mu) - 1 - step) + 1, 2 * len(mu))
    pure = [hamiltonian.compile(box).features(np.full(box.n_sites, s)) / box.n_sites for s in (0, 1)]
    rows = [_coexistence(mu, up, down, w[i] @ pure[0], w[i] @ pure[1], temperature) for i, (up, down) in enumerate(zip(*ways, strict=True))]
    return Loop(mu, ways[0], ways[1], np.array(rows))


def _coexistence(
    mu: NDArray[np.float64], up: NDArray[np.float64], down: NDArray[np.float64], poor: float, rich: float, t: float
) -> tuple[float, float, float]:
    """Where the grand potentials of the two branches cross; `poor` and `rich` are the energies a site of the pure crystals."""
    if up[0] > _DILUTE or 1 - down[-1] > _DILUTE:
        raise InputError(
            f"compositions {up[0]:.2f} and {down[-1]:.2f} at potentials {mu[0]:g} and {mu[-1]:g}; expected nearly 0 and 1: "
            "widen the range of potentials"
        )
    if (down - up).max() <= _JUMP:
        return np.nan, np.nan, np.nan
    # a dilute crystal is an ideal gas of its few other atoms: their pressure is -t ln(1 - x)
    first = poor + t * np.log1p(-up[0]) - cumulative_trapezoid(up, mu, initial=0.0)
    last = rich - mu[-1] + t * np.log(down[-1]) + cumulative_trapezoid(down[::-1], -mu[::-1], initial=0.0)[::-1]
    # only where both branches are still their own: between the jumps
    own = np.flatnonzero((down - up) > _JUMP)
    gap = (first - last)[own]
    place = mu[own][np.argmin(np.abs(gap))] if gap.min() > 0 or gap.max() < 0 else float(np.interp(0.0, gap, mu[own]))
    return place, float(np.interp(place, mu, up)), float(np.interp(place, mu, down))
