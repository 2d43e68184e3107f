"""The jax kernel: semi-grand chains on whatever jax computes on, a graphics processor above all.

Sites are put into colours so that no two of one colour meet in a cluster; those of a colour, in all chains, are then
drawn at once from their distribution given the rest (a heat bath: exact for any coupling, where simultaneous
Metropolis moves of a whole colour could turn a crystal of free atoms back and forth for ever). On a CPU the compiled
kernels are many times faster.
"""

from __future__ import annotations

from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chains import Chain
from .ensembles import SemiGrand
from .monomials import Expansion
from .work import Couplings, Kernel, Labels, Seeds, Work


class Accelerated(Kernel):
    """Two species at given chemical potentials; the chains side by side, each with its own couplings."""

    name = "jax"

    def refuses(self, work: Work, couplings: Couplings) -> str | None:
        if work.compiled.n_species != 2:
            return f"there are {work.compiled.n_species} species; it takes two"
        if not isinstance(work.ensemble, SemiGrand):
            return "it draws atoms at given chemical potentials only"
        if find_spec("jax") is None:
            return "jax is not installed"
        return None

    def run(self, work: Work, couplings: Couplings, labels: Labels, seeds: Seeds) -> list[Chain]:
        import jax

        e, (burn, interval) = work.expansion, work.moves(labels[0])
        n, sweeps = labels.shape[1], (round(burn / labels.shape[1]), max(1, round(interval / labels.shape[1])))
        keys = jax.vmap(jax.random.key)(np.array([seed.generate_state(1, np.uint32)[0] for seed in seeds]))
        constants = couplings @ e.constants.T + work.potential[0] - work.potential[1]
        weights = e.weights(couplings)
        seen = np.asarray(_chains(_Colours(e), work.samples, *sweeps)(keys, labels, weights, constants))  # (chains, samples, n)
        padded = np.concatenate([seen, np.zeros((*seen.shape[:2], 1), dtype=np.uint8)], axis=2)
        counts = np.zeros((*seen.shape[:2], len(e.families)), dtype=np.int64)
        for f, family in enumerate(e.families):
            counts[..., f] = (padded[..., family.sites].prod(axis=-1).sum(axis=-1) * seen).sum(axis=-1)
        alone = np.stack([seen[..., e.kind == k].sum(axis=-1) for k in range(len(e.constants))], axis=-1)
        features, moves = e.features(counts, alone), n * (sweeps[0] + sweeps[1] * work.samples)
        # a heat bath draws every atom anew: there is nothing to accept
        return [
            Chain(w, work.chemical, np.packbits(row, axis=1)[None], f, n, float("nan"), moves, self.name)
            for w, row, f in zip(couplings, seen, features, strict=True)
        ]


class _Colours:
    """Sites by colour, with their neighbours; hashed by what it is, so that a compiled program is found again."""

    def __init__(self, expansion: Expansion) -> None:
        self.kind = expansion.kind
        self.parts = [(sites, tuple(f.sites[sites] for f in expansion.families)) for sites in colours(expansion)]
        self._key = hash((self.kind.tobytes(), *(f.sites.tobytes() for f in expansion.families)))

    def __hash__(self) -> int:
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Colours) and self._key == other._key


def colours(expansion: Expansion) -> list[NDArray[np.int64]]:
    """Sites in groups of which no two share a product: each takes the first colour that none of its neighbours has.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> from bayesatoms.montecarlo.monomials import expand
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> [len(sites) for sites in colours(expand(h.compile(h.lattice.supercell((4, 4)))))]
    [8, 8]
    """
    n = len(expansion.kind)
    around = [np.concatenate([f.sites[i].reshape(-1) for f in expansion.families] or [np.zeros(0, dtype=np.int64)]) for i in range(n)]
    colour = np.full(n + 1, -1)  # the site that is always empty has none
    for i in range(n):
        taken = set(colour[around[i]].tolist())
        colour[i] = next(c for c in range(n) if c not in taken)
    return [np.flatnonzero(colour[:n] == c) for c in range(colour.max() + 1)]


@lru_cache(maxsize=32)
def _chains(colours: _Colours, samples: int, burn: int, interval: int) -> Any:
    """The compiled program: keys (R,), labels (R, n), weights (R, families), constants (R, kinds) -> (R, samples, n)."""
    import jax
    import jax.numpy as jnp

    def sweep(weights, constants, state):
        occupied, key = state
        for sites, families in colours.parts:
            key, here = jax.random.split(key)
            field = constants[colours.kind[sites]]
            for f, neighbours in enumerate(families):
                field = field + weights[f] * occupied[neighbours].prod(axis=2).sum(axis=1)
            drawn = jax.random.uniform(here, (len(sites),)) < jax.nn.sigmoid(-field)
            occupied = occupied.at[sites].set(drawn.astype(jnp.int32))
        return occupied, key

    def chain(key, labels, weights, constants):
        step = partial(sweep, weights, constants)
        state = jnp.append(labels.astype(jnp.int32), 0), key
        state = jax.lax.fori_loop(0, burn, lambda _, s: step(s), state)

        def record(state, _):
            state = jax.lax.fori_loop(0, interval, lambda _, s: step(s), state)
            return state, state[0][:-1].astype(jnp.uint8)

        return jax.lax.scan(record, state, None, length=samples)[1]

    return jax.jit(jax.vmap(chain))
