"""Compiled loops of the observation operator: what is seen of many crystals, and how often each environment occurs.

Crystals lie side by side, several to a machine word, so that one multiplication adds the label of the same site to the
raw environments of all of them; only the last step, one more in a histogram, is done for each by itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32, uint64
from numpy.typing import NDArray

from .generators import State, uniform

BLOCK = 32  # crystals side by side
LARGEST = 4096  # raw environments whose histograms of a block stay in the cache
_SPARSE = 8  # times as long does a possible environment take when counted one by one

_jit = njit(nogil=True, cache=True)


@_jit
def see(
    snapshots: NDArray[np.uint8],
    lead: NDArray[np.int64],
    shift: NDArray[np.int64],
    row: int,
    at: NDArray[np.uint32],
    given: NDArray[np.float64],
    state: State,
    seen: NDArray[np.unsignedinteger],
) -> None:
    """Labels of the sites of a window, with their errors.

    Snapshot s is rolled first, so that the window lies at its origin: row r of the rolled crystal, `row` sites long, is the
    one at ``lead[s, r]``, begun ``shift[s]`` sites later. `at` (v,) are the sites of the window, `given` (k, k) the
    probabilities of a label given the species, empty where there are no errors. `seen` (blocks, v, w) gets the labels of
    four crystals a word.
    """
    v, k, size = len(at), len(given), np.int64(lead.shape[1] * row)
    most = 0.0  # the probability that a label is wrong, of the species for which it is largest
    for a in range(k):
        most = max(most, 1 - given[a, a])
    scale, field = 1 / np.log1p(-most) if k else 0.0, uint64(2 * seen.itemsize)
    rolled = np.zeros((BLOCK, size), dtype=np.uint8)
    for block in range(-(-len(snapshots) // BLOCK)):
        for b in range(min(BLOCK, len(snapshots) - block * BLOCK)):
            s = block * BLOCK + b
            crystal, mine = snapshots[s], rolled[b]
            for r in range(lead.shape[1]):  # by hand: these copies are too short for a call each
                begin, to, o = uint64(lead[s, r]), uint64(r * row), uint64(shift[s])
                for i in range(row - shift[s]):
                    mine[to + uint64(i)] = crystal[begin + o + uint64(i)]
                to += uint64(row) - o
                for i in range(shift[s]):
                    mine[to + uint64(i)] = crystal[begin + uint64(i)]
            # from one site that may be wrong to the next, and a chance there that depends on its species
            gap = np.floor(np.log(1 - uniform(state)) * scale) if k else 1.0 * v
            while gap < v:
                site = at[np.int64(gap)]
                true, draw = mine[site], uniform(state) * most
                for label in range(k):
                    if label != true:
                        if 0 <= draw < given[true, label]:
                            mine[site] = label
                        draw -= given[true, label]
                gap += 1 + np.floor(np.log(1 - uniform(state)) * scale)
        for w in range(seen.shape[2]):
            one, two, three, four = rolled[4 * w], rolled[4 * w + 1], rolled[4 * w + 2], rolled[4 * w + 3]
            for i in range(v):
                site = at[i]
                low = uint64(one[site]) | (uint64(two[site]) << field)
                seen[block, i, w] = low | (uint64(three[site]) << uint64(2) * field) | (uint64(four[site]) << uint64(3) * field)


@_jit
def tally_blocks(
    words: NDArray[np.uint64],
    packed: NDArray[np.uint64],
    codes: NDArray[np.unsignedinteger],
    rows: NDArray[np.int64],
    strides: NDArray[np.uint64],
    classes: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Add the class counts (n, n_classes) of the environments `rows` (r, sites).

    `words` (blocks, v, w) are labels of several crystals a word, in fields wide enough that a raw number does not overflow;
    `packed` (w,) and `codes` (BLOCK,) are one memory, of words and of fields.
    """
    size, width, flat = len(classes), words.shape[2], words.reshape(-1)
    raw = np.empty(BLOCK * size, dtype=np.uint32)
    for block in range(-(-len(counts) // BLOCK)):
        raw[:] = 0
        begin = uint64(block * words.shape[1] * width)
        for r in range(len(rows)):
            for w in range(width):
                total = uint64(0)
                for j in range(rows.shape[1]):
                    total += flat[begin + uint64(rows[r, j]) * uint64(width) + uint64(w)] * strides[j]
                packed[w] = total
            for b in range(BLOCK):
                raw[uint64(b) * uint64(size) + uint64(codes[b])] += uint32(1)
        for b in range(min(BLOCK, len(counts) - block * BLOCK)):
            for code in range(size):
                counts[block * BLOCK + b, classes[code]] += raw[b * size + code]


@_jit
def look(
    snapshots: NDArray[np.uint8],
    sites: NDArray[np.int64],
    shape: NDArray[np.int64],
    n_basis: int,
    origins: NDArray[np.int64],
    noise: NDArray[np.float64],
    cumulative: NDArray[np.float64],
    near: NDArray[np.int64],
    bins: int,
    seen: NDArray[np.int32],
) -> None:
    """Outcomes of the sites of a window where labels are soft: a random number per site finds its row."""
    n, v, d = len(snapshots), len(sites), len(shape)
    for s in range(n):
        for i in range(v):
            flat = 0
            for axis in range(d):
                flat = flat * shape[axis] + (sites[i, axis] + origins[s, axis]) % shape[axis]
            label = snapshots[s, flat * n_basis + sites[i, d]]
            if noise.shape[1] > 0:
                true, label = label, near[label, int(noise[s, i] * bins)]
                while label < cumulative.shape[1] - 1 and noise[s, i] >= cumulative[true, label]:
                    label += 1
            seen[s, i] = label


@_jit
def tally_one(
    seen: NDArray[np.integer],
    rows: NDArray[np.int64],
    strides: NDArray[np.int64],
    classes: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Class counts of a few crystals (n, v), or of environments too many for blocks."""
    for s in range(len(seen)):
        for r in range(len(rows)):
            code = 0
            for j in range(len(strides)):
                code += strides[j] * np.int64(seen[s, rows[r, j]])
            counts[s, classes[code]] += 1


@_jit
def _product(seen, sites, vectors, weights):
    """Probabilities of all species on some sites, in the order of the raw numbers; returns how many."""
    n, k, weights[0] = 1, vectors.shape[1], 1.0
    for site in sites:
        for c in range(k - 1, -1, -1):  # species 0 last: it takes the place of what is multiplied
            p = vectors[seen[site], c]
            for i in range(n):
                weights[c * n + i] = weights[i] * p
        n *= k
    return n


@_jit
def tally_soft(
    seen: NDArray[np.integer],
    rows: NDArray[np.int64],
    strides: NDArray[np.int64],
    classes: NDArray[np.int64],
    vectors: NDArray[np.float64],
    species: NDArray[np.int64],
    lengths: NDArray[np.int64],
    counts: NDArray[np.float64],
) -> None:
    """Class probabilities, summed, of crystals whose labels are rows of `vectors`."""
    size, half = len(classes), len(strides) // 2 + 1
    codes, weights, others, raw = np.empty(size, dtype=np.int64), np.empty(size), np.empty(size), np.empty(size)
    for s in range(len(seen)):
        raw[:] = 0.0
        for r in range(len(rows)):
            possible = 1
            for j in range(len(strides)):
                possible *= lengths[seen[s, rows[r, j]]]
            n, weights[0] = 1, 1.0
            if possible * _SPARSE > size:  # nearly everything is possible: all raw environments in their order, which vectorises
                n = _product(seen[s], rows[r, :half], vectors, weights)
                m = _product(seen[s], rows[r, half:], vectors, others)
                for a in range(m):
                    for i in range(n):
                        raw[a * n + i] += others[a] * weights[i]
                continue
            base, codes[0] = 0, 0
            for j in range(len(strides)):
                o = seen[s, rows[r, j]]
                first = species[o, 0]
                base += strides[j] * first
                if lengths[o] == 1:  # only uncertain sites multiply the possibilities
                    continue
                for c in range(lengths[o] - 1, -1, -1):
                    shift, p = strides[j] * (species[o, c] - first), vectors[o, species[o, c]]
                    for i in range(n):
                        codes[c * n + i], weights[c * n + i] = codes[i] + shift, weights[i] * p
                n *= lengths[o]
            for i in range(n):
                raw[base + codes[i]] += weights[i]
        for i in range(size):
            counts[s, classes[i]] += raw[i]
