"""The code kernel: one chain whose every site carries the occupations of its neighbourhood as one number.

The energy of turning an atom is then one look-up, whatever the terms and however many: a rejected move costs
two table entries, an accepted one brings the neighbours' numbers up to date. For two species, a lattice whose
sites are all translations of each other, and neighbourhoods of at most 16 sites.
"""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint16, uint32, uint64
from numpy.typing import NDArray

from ..errors import InputError
from ..generators import State, generator_state, step
from .chains import Chain
from .ensembles import Canonical
from .neighbourhood import Codes, Ints
from .work import Couplings, Kernel, Labels, Seeds, Work

_RANGE = 60.0  # kT between the highest and the lowest field that single-precision factors can hold

_jit = njit(nogil=True, cache=True)

Floats = NDArray[np.float64]


@_jit
def _write(labels, codes, counts, row, packed, products, alone):
    for site in range(len(labels)):
        if labels[site]:
            packed[row, site >> 3] |= 128 >> (site & 7)
            alone[row, 0] += 1
            for f in range(counts.shape[1]):
                products[row, f] += counts[codes[site], f]


@_jit
def _turn(site, codes, neighbours, back):
    """A site's atom has changed: tell its neighbours."""
    for k in range(len(back)):  # a tuple: the compiler knows its length and unrolls
        codes[neighbours[site * uint32(len(back)) + uint32(k)]] ^= back[k]


@_jit
def swap_code(
    labels: NDArray[np.uint8],
    codes: Codes,
    neighbours: NDArray[np.uint32],
    back: NDArray[np.uint16],
    near: NDArray[np.bool_],
    counts: Ints,
    empty: NDArray[np.uint32],
    full: NDArray[np.uint32],
    gain: Floats,
    loss: Floats,
    burn: int,
    interval: int,
    state: State,
    packed: NDArray[np.uint8],
    products: Ints,
    alone: Ints,
) -> int:
    """Canonical chain: swap an atom of species 0 and one of species 1 with probability min(1, exp(-dE)).

    `empty` and `full` list the sites of either species; ``gain[code]`` = exp(-f) and ``loss[code]`` = exp(f) are the
    factors of an atom of species 1 that arrives and leaves. Returns the accepted swaps after the burn-in.
    """
    accepted, n = 0, uint32(len(labels))
    s0, s1, s2, s3 = state[0], state[1], state[2], state[3]
    n_empty, n_full = uint64(len(empty)), uint64(len(full))
    for row in range(-1, packed.shape[0]):
        for _ in range(burn if row < 0 else interval):
            word, s0, s1, s2, s3 = step(s0, s1, s2, s3)
            p = ((word >> uint64(32)) * n_empty) >> uint64(32)
            q = ((word & uint64(0xFFFFFFFF)) * n_full) >> uint64(32)
            i, j = empty[p], full[q]
            code = codes[j]
            if near[j - i if j >= i else uint32(j + n) - i]:
                for k in range(len(back)):
                    if neighbours[j * uint32(len(back)) + uint32(k)] == i:
                        code ^= uint16(1) << uint16(k)
            word, s0, s1, s2, s3 = step(s0, s1, s2, s3)
            if np.float32(int64(word >> uint64(32))) < gain[codes[i]] * loss[code]:
                labels[i], labels[j] = 1, 0
                empty[p], full[q] = j, i
                _turn(i, codes, neighbours, back)
                _turn(j, codes, neighbours, back)
                accepted += row >= 0
        if row >= 0:
            _write(labels, codes, counts, row, packed, products, alone)
    state[0], state[1], state[2], state[3] = s0, s1, s2, s3
    return accepted


@_jit
def flip_code(
    labels: NDArray[np.uint8],
    codes: Codes,
    neighbours: NDArray[np.uint32],
    back: NDArray[np.uint16],
    counts: Ints,
    gain: Floats,
    loss: Floats,
    surplus: int,
    stiff: float,
    burn: int,
    interval: int,
    state: State,
    packed: NDArray[np.uint8],
    products: Ints,
    alone: Ints,
) -> int:
    """Semi-grand chain: turn an atom with probability min(1, exp(-dE + dmu - d(stiff surplus^2))).

    `surplus` are the atoms of species 1 beyond the target. Returns the accepted flips after the burn-in.
    """
    accepted, n = 0, uint64(len(labels))
    s0, s1, s2, s3 = state[0], state[1], state[2], state[3]
    for row in range(-1, packed.shape[0]):
        for _ in range(burn if row < 0 else interval):
            word, s0, s1, s2, s3 = step(s0, s1, s2, s3)
            i = uint32(((word >> uint64(32)) * n) >> uint64(32))
            way = 1 - 2 * int64(labels[i])
            chance = gain[codes[i]] if way > 0 else loss[codes[i]]
            if stiff:
                chance *= np.exp(-stiff * (2 * way * surplus + 1))
            if np.float32(int64(word & uint64(0xFFFFFFFF))) < chance:
                labels[i] ^= 1
                surplus += way
                _turn(i, codes, neighbours, back)
                accepted += row >= 0
        if row >= 0:
            _write(labels, codes, counts, row, packed, products, alone)
    state[0], state[1], state[2], state[3] = s0, s1, s2, s3
    return accepted


class Code(Kernel):
    """Neighbourhoods as numbers, one chain after another."""

    name = "code"

    def refuses(self, work: Work, couplings: Couplings) -> str | None:
        if work.compiled.n_species != 2:
            return f"there are {work.compiled.n_species} species; it takes two"
        if not work.expansion.families:
            return "nothing interacts"
        if isinstance(work.ensemble, Canonical) and work.ensemble.groups is not None:
            return "atoms swap within groups of sites"
        try:
            work.neighbourhood  # noqa: B018
        except InputError as error:
            return str(error)
        apart = max(np.ptp(_field(work, w)) for w in couplings)
        return f"couplings make fields {apart:.0f} kT apart; it takes {_RANGE:.0f}" if apart > _RANGE else None

    def run(self, work: Work, couplings: Couplings, labels: Labels, seeds: Seeds) -> list[Chain]:
        return [self._one(work, w, row, seed) for w, row, seed in zip(couplings, labels, seeds, strict=True)]

    def _one(self, work: Work, couplings, labels, seed) -> Chain:
        e, around = work.expansion, work.neighbourhood
        canonical, n, burn_interval = isinstance(work.ensemble, Canonical), len(labels), work.moves(labels)
        field = _field(work, couplings)
        # in a swap only the difference of two fields counts, so their middle may be taken off
        field = field - (field.max() + field.min()) / 2 if canonical else field + work.potential[0] - work.potential[1]
        gain, loss = ((2.0**32 * np.exp(sign * field)).astype(np.float32) for sign in (-1, 1))
        labels, state = labels.copy(), generator_state(seed)
        packed = np.zeros((work.samples, (n + 7) // 8), dtype=np.uint8)
        products, alone = np.zeros((work.samples, len(e.families)), dtype=np.int64), np.zeros((work.samples, 1), dtype=np.int64)
        place = (around.neighbours.reshape(-1), tuple(np.uint16(1 << k) for k in around.back))
        records = (state, packed, products, alone)
        if canonical:
            empty, full = (np.flatnonzero(labels == s).astype(np.uint32) for s in (0, 1))
            loss = np.exp(field).astype(np.float32)
            accepted = swap_code(
                labels, around.codes(labels), *place, around.near, around.counts, empty, full, gain, loss, *burn_interval, *records
            )
        else:
            accepted = flip_code(
                labels, around.codes(labels), *place, around.counts, gain, loss, 0, work.stiffness, *burn_interval, *records
            )
        attempted = burn_interval[1] * work.samples
        return Chain(
            couplings,
            work.chemical,
            packed[None],
            e.features(products, alone),
            n,
            accepted / max(attempted, 1),
            attempted + burn_interval[0],
            self.name,
        )


def _field(work: Work, couplings: NDArray[np.float64]) -> Floats:
    """Energy of an atom of species 1 for every code of its neighbourhood, in kT."""
    return work.expansion.constants[0] @ couplings + work.neighbourhood.counts @ work.expansion.weights(couplings)
