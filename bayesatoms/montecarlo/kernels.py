"""The Monte Carlo kernels: compiled loops over plain arrays, for any Hamiltonian.

A configuration is kept twice: the species of every site and the decoration number of every cluster
instance. Changing a site changes the numbers of the few instances it belongs to, so the energy
change of a move is a handful of table look-ups, whatever the terms are. Random numbers come from
xoshiro256++ (Blackman and Vigna, ACM Trans. Math. Softw. 47, 36, 2021), whose four words of state
belong to the chain; numba's own generators cost ten times more.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

KERNEL_VERSION = 1  # part of every stored chain's identity: raise it when a kernel's output changes
EXCHANGE_VERSION = 1  # the same for chains of a ladder

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]
State = NDArray[np.uint64]

_jit = njit(nogil=True, cache=True)


@_jit
def next_word(state: State) -> int:
    """The next 64 random bits of xoshiro256++."""
    s0, s1, s2, s3 = state[0], state[1], state[2], state[3]
    total = s0 + s3
    word = ((total << uint64(23)) | (total >> uint64(41))) + s0
    shifted = s1 << uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= shifted
    s3 = (s3 << uint64(45)) | (s3 >> uint64(19))
    state[0], state[1], state[2], state[3] = s0, s1, s2, s3
    return word


@_jit
def below(state: State, n: int) -> int:
    """A random integer in [0, n) by multiply-shift; the bias is under n / 2^32."""
    return np.int64(((next_word(state) >> uint64(32)) * uint64(n)) >> uint64(32))


@_jit
def uniform(state: State) -> float:
    """A random number in [0, 1) of 53 bits."""
    return np.float64(next_word(state) >> uint64(11)) * 2.0**-53


@_jit
def change_site(site: int, step: int, codes: Ints, base: Ints, start: Ints, touch: Ints, stride: Ints, energies: Floats) -> float:
    """Add `step` to the species of a site in every decoration number; returns the energy change."""
    change = 0.0
    for entry in range(start[site], start[site + 1]):
        instance = touch[entry]
        old = codes[instance]
        new = old + step * stride[entry]
        codes[instance] = new
        change += energies[base[instance] + new] - energies[base[instance] + old]
    return change


@_jit
def _record(row: int, labels: Labels, codes: Ints, base: Ints, tables: Floats, snapshots: Labels, features: Floats) -> None:
    for site in range(len(labels)):
        snapshots[row, site] = labels[site]
    for instance in range(len(codes)):
        for f in range(tables.shape[1]):
            features[row, f] += tables[base[instance] + codes[instance], f]


@_jit
def swap_chain(
    labels: Labels,
    codes: Ints,
    base: Ints,
    start: Ints,
    touch: Ints,
    stride: Ints,
    tables: Floats,
    energies: Floats,
    slots: Ints,
    group: Ints,
    burn: int,
    interval: int,
    state: State,
    snapshots: Labels,
    features: Floats,
) -> int:
    """Canonical chain: swap two unlike atoms, anywhere, with probability min(1, exp(-dE)).

    `slots` lists the sites species by species and ``group[s]:group[s + 1]`` are the slots of species
    s. A move picks a slot at random and then one of the slots of all other species: the reverse move
    picks the same two slots with the same probability, so detailed balance is exact. Returns the
    number of accepted moves after the burn-in.
    """
    accepted, n = 0, len(labels)
    for row in range(-1, len(snapshots)):
        for _ in range(burn if row < 0 else interval):
            p = below(state, n)
            i = slots[p]
            a = np.int64(labels[i])
            q = below(state, n - (group[a + 1] - group[a]))
            if q >= group[a]:
                q += group[a + 1] - group[a]
            j = slots[q]
            step = np.int64(labels[j]) - a
            change = change_site(i, step, codes, base, start, touch, stride, energies)
            change += change_site(j, -step, codes, base, start, touch, stride, energies)
            if change <= 0.0 or uniform(state) < np.exp(-change):
                labels[i], labels[j] = labels[j], labels[i]
                slots[p], slots[q] = j, i
                accepted += row >= 0
            else:
                change_site(j, step, codes, base, start, touch, stride, energies)
                change_site(i, -step, codes, base, start, touch, stride, energies)
        if row >= 0:
            _record(row, labels, codes, base, tables, snapshots, features)
    return accepted


@_jit
def flip_chain(
    labels: Labels,
    codes: Ints,
    base: Ints,
    start: Ints,
    touch: Ints,
    stride: Ints,
    tables: Floats,
    energies: Floats,
    potential: Floats,
    burn: int,
    interval: int,
    state: State,
    snapshots: Labels,
    features: Floats,
) -> int:
    """Semi-grand canonical chain: turn an atom into another species with probability min(1, exp(-dE + dmu)).

    `potential[s]` is the chemical potential of species s in kT; the sampled probability is
    exp(-E + sum_i potential[labels_i]) / Xi. Returns the number of accepted moves after the burn-in.
    """
    accepted, n, k = 0, len(labels), len(potential)
    for row in range(-1, len(snapshots)):
        for _ in range(burn if row < 0 else interval):
            i = below(state, n)
            a = np.int64(labels[i])
            b = (a + 1 + below(state, k - 1)) % k
            change = potential[a] - potential[b] + change_site(i, b - a, codes, base, start, touch, stride, energies)
            if change <= 0.0 or uniform(state) < np.exp(-change):
                labels[i] = b
                accepted += row >= 0
            else:
                change_site(i, a - b, codes, base, start, touch, stride, energies)
        if row >= 0:
            _record(row, labels, codes, base, tables, snapshots, features)
    return accepted


@_jit
def _swaps(
    count: int,
    labels: Labels,
    codes: Ints,
    slots: Ints,
    group: Ints,
    base: Ints,
    start: Ints,
    touch: Ints,
    stride: Ints,
    energies: Floats,
    state: State,
) -> int:
    """So many attempts of the move of :func:`swap_chain` on one replica; returns how many were accepted."""
    accepted, n = 0, len(labels)
    for _ in range(count):
        p = below(state, n)
        i = slots[p]
        a = np.int64(labels[i])
        q = below(state, n - (group[a + 1] - group[a]))
        if q >= group[a]:
            q += group[a + 1] - group[a]
        j = slots[q]
        step = np.int64(labels[j]) - a
        change = change_site(i, step, codes, base, start, touch, stride, energies)
        change += change_site(j, -step, codes, base, start, touch, stride, energies)
        if change <= 0.0 or uniform(state) < np.exp(-change):
            labels[i], labels[j] = labels[j], labels[i]
            slots[p], slots[q] = j, i
            accepted += 1
        else:
            change_site(j, step, codes, base, start, touch, stride, energies)
            change_site(i, -step, codes, base, start, touch, stride, energies)
    return accepted


@_jit
def exchange_chains(
    labels: Labels,
    codes: Ints,
    slots: Ints,
    group: Ints,
    base: Ints,
    start: Ints,
    touch: Ints,
    stride: Ints,
    tables: Floats,
    energies: Floats,
    couplings: Floats,
    parent: Ints,
    parity: Ints,
    far: int,
    warm: int,
    legs: int,
    leg: int,
    state: State,
    snapshots: Labels,
    features: Floats,
    accepted: Ints,
    exchanged: Ints,
) -> int:
    """Canonical chains at several couplings, one a rung, that exchange their configurations.

    Replicas (labels, codes, slots, one a row) sit on rungs (energies, couplings, one a row). After
    every `leg` swap moves of each replica a rung of even parity, next time one of odd parity, exchanges
    with its parent in the tree of rungs (rung 0 is the root) with probability
    min(1, exp((w_i - w_j).(F_i - F_j))): the product of the rungs' distributions stays as it is.
    `warm` legs come before the first record, `legs` before each. Records go to the rung,
    ``snapshots[rung, row]`` and ``features[rung, row]``; `accepted` counts the moves of each rung and
    ``exchanged[rung]`` the (attempts, successes) with its parent, after the warm legs. Returns the round
    trips of all replicas, from the root to rung `far` and back.
    """
    rungs, n_features = couplings.shape
    at, heading, counted = np.arange(rungs), np.zeros(rungs, np.int64), np.zeros((rungs, n_features))
    trips, turn = 0, 0
    for row in range(-1, snapshots.shape[1]):
        for _ in range(warm if row < 0 else legs):
            for r in range(rungs):
                a = at[r]
                done = _swaps(leg, labels[a], codes[a], slots[a], group, base, start, touch, stride, energies[r], state)
                if row >= 0:
                    accepted[r] += done
            for a in range(rungs):
                for f in range(n_features):
                    counted[a, f] = 0.0
                for instance in range(codes.shape[1]):
                    for f in range(n_features):
                        counted[a, f] += tables[base[instance] + codes[a, instance], f]
            for r in range(1, rungs):
                if parity[r] != turn:
                    continue
                other = parent[r]
                a, b = at[r], at[other]
                gain = 0.0
                for f in range(n_features):
                    gain += (couplings[r, f] - couplings[other, f]) * (counted[a, f] - counted[b, f])
                success = gain >= 0.0 or uniform(state) < np.exp(gain)
                if success:
                    at[r], at[other] = b, a
                if row >= 0:
                    exchanged[r, 0] += 1
                    exchanged[r, 1] += success
            turn = 1 - turn
            first, last = at[0], at[far]
            if heading[last] == 1:
                heading[last] = 2
            if heading[first] == 2 and row >= 0:
                trips += 1
            heading[first] = 1
        if row >= 0:
            for r in range(rungs):
                a = at[r]
                for site in range(labels.shape[1]):
                    snapshots[r, row, site] = labels[a, site]
                for f in range(n_features):
                    features[r, row, f] = counted[a, f]
    return trips
