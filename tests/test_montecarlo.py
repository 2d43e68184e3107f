"""The sampler against exactly summed crystals, Kaufman's torus and its own reference formulas.

Statistical checks compare with exact values in units of the chain's own standard error and allow
SIGMA = 4 of them: 6.3e-5 false alarms a comparison. About 500 are made here, so a correct program
fails for 3 % of seeds; the seed is fixed, so it fails always or never. Chi-square tests allow
ALARM = 1e-4 each. Every kind of check has a negative control that must fail it.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import pytest
from conftest import DATA, generator, seed_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from bayesatoms import generators
from bayesatoms.environments import Environments
from bayesatoms.errors import CheckError, InputError
from bayesatoms.hamiltonian import Cluster, Field, Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo import chains, timeseries
from bayesatoms.montecarlo.engine import run_chain
from bayesatoms.montecarlo.ensembles import SemiGrand
from bayesatoms.window import Operator, Window

SIGMA = 4.0
ALARM = 1e-4


def free(potential):
    """The semi-grand ensemble at some chemical potentials, the canonical one without."""
    return None if potential is None else SemiGrand(potential)


def deviation(series: np.ndarray, exact: float) -> float:
    """Distance of a chain's mean from the exact value, in its standard errors."""
    mean = timeseries.mean(series, cut=0)
    return (mean.value - exact) / max(mean.error, 1e-12)


def misfit(visits: np.ndarray, probability: np.ndarray) -> float:
    """Chi-square p-value of independent visits to states; states expected less than ten times count as one."""
    expected = probability * visits.sum()
    often = expected >= 10
    pairs = np.array([*zip(visits[often], expected[often], strict=True), (visits[~often].sum(), expected[~often].sum())])
    pairs = pairs[pairs[:, 1] > 0]
    return float(stats.chi2.sf(((pairs[:, 0] - pairs[:, 1]) ** 2 / pairs[:, 1]).sum(), len(pairs) - 1))


# ------------------------------------------------------------------ random numbers


def xoshiro256pp(state: list[int]):
    """Blackman and Vigna's reference algorithm in unbounded integers."""
    mask, s = 2**64 - 1, list(state)
    while True:
        total = (s[0] + s[3]) & mask
        yield ((((total << 23) | (total >> 41)) & mask) + s[0]) & mask
        t = (s[1] << 17) & mask
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = ((s[3] << 45) | (s[3] >> 19)) & mask


@pytest.mark.parametrize("start", [[1, 2, 3, 4], [2**64 - 1, 0, 2**63, 12345], None])
def test_generator_is_xoshiro256pp(start):
    state = np.array(start, dtype=np.uint64) if start else generators.generator_state(seed_of("xoshiro"))
    reference = xoshiro256pp([int(s) for s in state])
    for _ in range(200):
        assert int(generators.next_word(state)) == next(reference)
    for n in (1, 2, 7, 1000):  # drawn from the upper 32 bits
        assert [int(generators.below(state, n)) for _ in range(20)] == [(next(reference) >> 32) * n >> 32 for _ in range(20)]
    assert [generators.uniform(state) for _ in range(20)] == [(next(reference) >> 11) * 2.0**-53 for _ in range(20)]


def test_first_words_are_those_published():
    """State 1, 2, 3, 4: the test vector of the reference implementation (Rust's rand_xoshiro carries it)."""
    state = np.array([1, 2, 3, 4], dtype=np.uint64)
    assert [int(generators.next_word(state)) for _ in range(4)] == [41943041, 58720359, 3588806011781223, 3591011842654386]


# ------------------------------------------------------------------ the exact triangular torus


@lru_cache
def torus(side: int) -> dict[str, np.ndarray]:
    with np.load(DATA / "exact_triangular" / f"torus_{side}x{side}.npz") as file:
        return dict(file)


@lru_cache
def alloy(side: int):
    """B-B pairs of the first and second shell on the torus, compiled, and an operator that counts all of its environments."""
    lattice = Lattice.triangular()
    h = Hamiltonian("exact", Pair("B", "B", 1, name="p1"), Pair("B", "B", 2, name="p2"), lattice=lattice, species="AB")
    cell, e = lattice.supercell((side, side)), Environments(lattice, "AB")
    return h.compile(cell), Operator(e, Window(cell.sites, whole=cell.shape), cell)


def boltzmann(side: int, w: tuple[float, float], n: int | None, mu: float = 0.0):
    """Weight of every (n, P1, P2) and ln Z, at fixed n or with chemical potential mu."""
    t = torus(side)
    log = -(w[0] * t["p1"] + w[1] * t["p2"]) + (mu * t["n"] if n is None else np.where(t["n"] == n, 0.0, -np.inf))
    log += np.log(t["g"])
    top = log.max()
    z = np.exp(log - top).sum()
    return np.exp(log - top) / z, top + np.log(z)


@pytest.mark.parametrize(
    ("w", "p1", "ln_z"),
    [((0, 0), 16.5, 15.464227), ((0.5, 0), 14.922194, 7.634392), ((-0.5, 0), 18.723293, 24.247358), ((0.3, -0.2), 15.069921, 14.165225)],
)
def test_the_exact_data_say_what_is_known(data, w, p1, ln_z):
    weight, found = boltzmann(5, w, 12)
    assert abs(weight @ torus(5)["p1"] - p1) < 1e-6
    assert abs(found - ln_z) < 1e-6


@pytest.mark.parametrize("side", [4, 5])
def test_the_exact_data_are_sums_over_states(data, side):
    t, sites = torus(side), side * side
    assert t["g"].sum() == 2**sites
    np.testing.assert_array_equal(t["h26"].sum(axis=1), sites * t["g"])  # so h26 sums the counts of all g states
    np.testing.assert_array_equal(t["h26"] @ t["classes"][:, 0], t["n"] * t["g"])
    np.testing.assert_array_equal(t["h26"] @ (t["classes"][:, 0] * t["classes"][:, 1]), 2 * t["p1"] * t["g"])
    np.testing.assert_array_equal(t["classes"], alloy(side)[1].environments.descriptors)


def group_sums(side: int, snapshots: np.ndarray) -> dict[tuple[int, int, int], tuple[int, ...]]:
    """States and class counts by (n, P1, P2), from the compiled instances and the operator."""
    compiled, operator = alloy(side)
    pairs = [snapshots[:, rows].all(axis=2).sum(axis=1) for rows in compiled.members]
    counts = operator.counts(snapshots, np.random.default_rng(0))  # a whole torus looks alike from every origin
    keys, inverse = np.unique(np.column_stack([snapshots.sum(axis=1), *pairs]), axis=0, return_inverse=True)
    sums = np.zeros((len(keys), 27), dtype=np.int64)
    np.add.at(sums, inverse.reshape(-1), np.column_stack([np.ones(len(counts), dtype=np.int64), counts]))
    return {tuple(k): tuple(s) for k, s in zip(keys.tolist(), sums.tolist(), strict=True)}


def test_every_state_of_the_small_tori_is_counted_as_in_the_data(data):
    """All 65,536 states of 4x4, where a second neighbour is met through two images, and all 5x5 states with up to four B atoms."""
    every = ((np.arange(2**16)[:, None] >> np.arange(16)) & 1).astype(np.uint8)
    sparse = np.zeros((sum(1 for m in range(5) for _ in itertools.combinations(range(25), m)), 25), dtype=np.uint8)
    for row, chosen in zip(sparse, (c for m in range(5) for c in itertools.combinations(range(25), m)), strict=True):
        row[list(chosen)] = 1
    for side, snapshots, most in ((4, every, 16), (5, sparse, 4)):
        t = torus(side)
        rows = zip(t["n"], t["p1"], t["p2"], t["g"], t["h26"], strict=True)
        expected = {(int(n), int(p1), int(p2)): (int(g), *h.tolist()) for n, p1, p2, g, h in rows if n <= most}
        assert group_sums(side, snapshots) == expected


# (side, couplings, atoms or None, chemical potential): canonical and semi-grand, attractive, repulsive and frustrated
CASES = [
    (5, (0.0, 0.0), 12, 0.0),
    (5, (0.5, 0.0), 12, 0.0),
    (5, (-0.5, 0.0), 12, 0.0),
    (5, (0.3, -0.2), 12, 0.0),
    (4, (0.5, 0.0), 8, 0.0),
    (4, (-0.4, 0.0), 8, 0.0),
    (4, (0.3, -0.2), 8, 0.0),
    (4, (0.8, 0.3), 5, 0.0),
    (4, (-0.5, 0.2), 5, 0.0),
    (4, (0.2, 0.4), 5, 0.0),
    (5, (0.5, 0.0), None, 1.4),
    (5, (-0.3, 0.0), None, -0.8),
    (5, (0.3, -0.2), None, 0.5),
    (4, (0.5, 0.0), None, 1.0),
    (4, (-0.3, 0.1), None, -0.5),
    (4, (0.3, -0.2), None, -0.3),
]


def sampled(side: int, w: tuple[float, float], n: int | None, mu: float, samples: int = 2**16) -> dict[str, np.ndarray]:
    """Series of a chain: atoms, pairs, squared energy and the frequencies of the 26 classes."""
    compiled, operator = alloy(side)
    labels = (np.arange(side * side) < (side * side // 2 if n is None else n)).astype(np.uint8)
    potential = [0.0, mu] if n is None else None
    seed = seed_of(f"torus {side} {w} {n} {mu}")
    chain = run_chain(compiled, w, labels, samples=samples, sweeps=2.0, burn=200, seed=seed, ensemble=free(potential))
    snapshots = chain.snapshots
    series = {"n": snapshots.sum(axis=1), "p1": chain.features[:, 0], "p2": chain.features[:, 1], "p1^2": chain.features[:, 0] ** 2}
    frequencies = operator.counts(snapshots, np.random.default_rng(0)) / operator.n
    return series | {f"class {c}": frequencies[:, c] for c in range(26)}


@lru_cache
def deviations(case: tuple, ran: tuple | None = None) -> dict[str, float]:
    """Deviation of every mean of a chain from the exact one in standard errors; `ran` is a chain at other parameters.

    Classes met less than 400 times have no normal error and are compared together; what is
    impossible must not occur at all.
    """
    side, w, n, mu = case
    t, series = torus(side), sampled(*(ran or case))
    weight, _ = boltzmann(side, w, n, mu)
    exact = {"n": t["n"], "p1": t["p1"], "p2": t["p2"], "p1^2": t["p1"].astype(float) ** 2}
    exact = {name: weight @ values for name, values in exact.items()}
    probability = weight @ (t["h26"] / t["g"][:, None]) / side**2
    met = probability * side**2 * len(series["n"])
    rare = [c for c in range(26) if 0 < met[c] < 400]
    exact |= {f"class {c}": probability[c] for c in range(26) if met[c] >= 400}
    if met[rare].sum() >= 400:
        series["rare"], exact["rare"] = sum(series[f"class {c}"] for c in rare), probability[rare].sum()
    for c in np.flatnonzero(met == 0):
        assert not series[f"class {c}"].any(), f"class {c} cannot occur"
    if n is not None:  # kept, not sampled
        assert (series["n"] == n).all()
        del exact["n"]
    return {name: deviation(series[name], value) for name, value in exact.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chains_sample_the_exact_distribution(data, case):
    found = deviations(case)
    worst = max(found, key=lambda name: abs(found[name]))
    assert abs(found[worst]) < SIGMA, f"{worst} is {found[worst]:.1f} standard errors off"
    assert sum(name.startswith("class") for name in found) >= (26 if case[0] == 5 else 20), "too few classes were compared"


def test_errors_are_neither_too_small_nor_too_large(data):
    """Over all cases the deviations have mean square one: an error that flatters or hides would show here."""
    squares = [z**2 for case in CASES for z in deviations(case).values()]
    assert len(squares) > 400
    # deviations within a case are correlated, so the band is wider than that of independent ones (0.93 to 1.07)
    assert 0.7 < np.mean(squares) < 1.4


@pytest.mark.parametrize(
    ("case", "ran"),
    [
        ((5, (0.5, 0.0), 12, 0.0), (5, (0.45, 0.0), 12, 0.0)),
        ((5, (0.5, 0.0), None, 1.4), (5, (0.5, 0.03), None, 1.4)),
        ((5, (0.5, 0.0), None, 1.4), (5, (0.5, 0.0), None, 1.5)),
    ],
)
def test_a_chain_at_other_parameters_is_found_out(data, case, ran):
    assert max(map(abs, deviations(case, ran).values())) > 2 * SIGMA


# ------------------------------------------------------------------ enumerable cells: every state by its probability


@lru_cache
def small_alloy():
    """Triangular 3 x 3, pairs and one kind of triangle, with the energies of all 512 states counted by hand."""
    lattice = Lattice.triangular()
    terms = (Field("B"), Pair("A", "B"), Cluster("ABB", lattice.triangle("up"), name="t"))
    h = Hamiltonian("small", *terms, lattice=lattice, species="AB")
    states = ((np.arange(512)[:, None] >> np.arange(9)) & 1).astype(np.uint8)
    grid = states.reshape(-1, 3, 3)
    near = {v: np.roll(grid, (-v[0], -v[1]), (1, 2)) for v in ((1, 0), (0, 1), (1, 1))}  # the cell's rows meet at 120 degrees
    unlike = sum((grid != other).sum(axis=(1, 2)) for other in near.values())
    up = ((grid.astype(int) + near[1, 0] + near[1, 1]) == 2).sum(axis=(1, 2))
    return h.compile(lattice.supercell((3, 3))), states, np.column_stack([states.sum(axis=1), unlike, up]).astype(float)


def visits(w, n: int | None, potential=None, samples: int = 100_000):
    """How often a chain, thinned until its records are independent, was in each of the 512 states."""
    compiled, _, features = small_alloy()
    start = (np.arange(9) < (4 if n is None else n)).astype(np.uint8)
    seed = seed_of(f"states {w} {n}")
    chain = run_chain(compiled, w, start, samples=samples, sweeps=1.0, burn=100, seed=seed, ensemble=free(potential))
    state = chain.snapshots.astype(int) @ (1 << np.arange(9))
    np.testing.assert_array_equal(chain.features, features[state])
    series = [*chain.features.T, chain.features @ w, *chain.snapshots.T]
    thin = int(np.ceil(5 * max(timeseries.autocorrelation_time(s) for s in series)))
    assert thin < 100
    return np.bincount(state[::thin], minlength=512)


def state_probability(w, n: int | None, potential=(0.0, 0.0)):
    _, states, features = small_alloy()
    log = -features @ w + states.sum(axis=1) * (potential[1] - potential[0]) + (9 - 0) * potential[0]
    weight = np.exp(log) * (1.0 if n is None else states.sum(axis=1) == n)
    return weight / weight.sum()


@pytest.mark.parametrize(
    ("n", "potential"), [(4, None), (6, None), (None, (0.0, 0.0)), (None, (0.4, -0.1))], ids=["n=4", "n=6", "mu=0", "mu=-0.5"]
)
def test_states_are_visited_by_their_probability(n, potential):
    w = np.array([0.3, -0.25, 0.4])
    seen = visits(tuple(w), n, potential)
    right, wrong = (state_probability(v, n, potential or (0.0, 0.0)) for v in (w, w + np.array([0, 0.2, 0])))
    assert not seen[right == 0].any()
    assert misfit(seen, right) > ALARM
    assert misfit(seen, wrong) < ALARM, "negative control: 0.2 kT in one coupling must be seen"


def three_species():
    """Square 3 x 3 with three species: features of given states, counted by hand, and the compiled model."""
    corner = [(1, 0, 0), (0, 0, 0), (0, 1, 0)]
    terms = (Field("C"), Pair("A", "B"), Pair("B", "C", name="BC"), Cluster("ABC", corner, name="corner"))
    h = Hamiltonian("three", *terms, lattice=Lattice.square(), species="ABC")

    def features(states):
        grid = states.reshape(-1, 3, 3)
        down, right = np.roll(grid, -1, 1), np.roll(grid, -1, 2)

        def bonds(a, b):
            return sum((((grid == a) & (o == b)) | ((grid == b) & (o == a))).sum(axis=(1, 2)) for o in (down, right))

        ends = ((down == 0) & (right == 2)) | ((down == 2) & (right == 0))  # the mirror exchanges the ends of the corner
        corners = ((grid == 1) & ends).sum(axis=(1, 2))
        return np.column_stack([(states == 2).sum(axis=1), bonds(0, 1), bonds(1, 2), corners]).astype(float)

    return h.compile(h.lattice.supercell((3, 3))), features


@pytest.mark.parametrize("potential", [None, (0.0, 0.5, -0.3)], ids=["canonical", "semi-grand"])
def test_three_species_against_enumeration(potential):
    """Means and second moments of all terms and of the composition, over 1260 or 19,683 states."""
    compiled, features = three_species()
    states = np.array(list(itertools.product(range(3), repeat=9)), dtype=np.uint8)
    numbers = np.stack([(states == s).sum(axis=1) for s in range(3)], axis=1)
    if potential is None:
        states = states[(numbers == (3, 4, 2)).all(axis=1)]
        numbers = np.tile([3, 4, 2], (len(states), 1))
        assert len(states) == 1260
    w, f = np.array([0.2, 0.5, -0.4, 0.7]), features(states)
    log = -f @ w + (0 if potential is None else numbers @ potential)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    start = np.repeat([0, 1, 2], [3, 4, 2])
    keywords = {"samples": 2**16, "sweeps": 2.0, "burn": 100, "seed": seed_of(f"three {potential}"), "ensemble": free(potential)}
    chain = run_chain(compiled, w, start, **keywords)
    np.testing.assert_array_equal(features(chain.snapshots), chain.features)
    wrong = run_chain(compiled, w + np.array([0, 0.05, 0, 0]), start, **keywords)

    def moments(fs, ns):
        columns = np.column_stack([fs, ns])
        return np.column_stack([columns, fs**2, fs[:, 1] * fs[:, 3], fs[:, 2] * fs[:, 3]])

    exact = weight @ moments(f, numbers)

    def worst(c):
        found = moments(c.features, np.stack([(c.snapshots == s).sum(axis=1) for s in range(3)], axis=1))
        varies = found.std(axis=0) > 0
        np.testing.assert_allclose(found[:, ~varies].mean(axis=0), exact[~varies], atol=1e-12)
        return max(abs(deviation(s, x)) for s, x in zip(found[:, varies].T, exact[varies], strict=True))

    assert worst(chain) < SIGMA
    assert worst(wrong) > SIGMA, "negative control"


# ------------------------------------------------------------------ the square Ising model on a torus


def kaufman_ln_z(k: float, n: int, m: int) -> float:
    """ln Z of the n x m Ising torus at coupling K (Kaufman, Phys. Rev. 76, 1232, 1949), for n, m >= 3.

    Z = (2 sinh 2K)^(nm/2) / 2 times the sum of four products over r = 0 .. n - 1:
    2 cosh(m g_(2r+1) / 2), 2 sinh(m g_(2r+1) / 2), 2 cosh(m g_(2r) / 2), 2 sinh(m g_(2r) / 2), where
    cosh g_l = cosh 2K coth 2K - cos(pi l / n) and g_0 = 2K + ln tanh K, which is negative above Tc.
    """
    gamma = np.arccosh(np.cosh(2 * k) / np.tanh(2 * k) - np.cos(np.pi * np.arange(2 * n) / n))
    gamma[0] = 2 * k + np.log(np.tanh(k))
    odd, even = m * gamma[1::2] / 2, m * gamma[::2] / 2
    products = [np.log(2 * np.cosh(odd)).sum(), np.log(2 * np.sinh(odd)).sum(), np.log(2 * np.cosh(even)).sum()]
    signs, last = [1, 1, 1, np.sign(even[0])], np.log(2 * np.sinh(np.abs(even))).sum()
    top = max(products)
    total = sum(s * np.exp(p - top) for s, p in zip(signs, [*products, last], strict=True))
    return n * m / 2 * np.log(2 * np.sinh(2 * k)) - np.log(2) + top + np.log(total)


def kaufman_energy(temperature: float, n: int) -> float:
    """Energy per site, -d ln Z / dK / n^2 (J = 1, E = -sum ss), by a fourth-order difference."""
    k, h = 1 / temperature, 1e-3
    ln_z = [kaufman_ln_z(k + i * h, n, n) for i in (-2, -1, 1, 2)]
    return -(ln_z[0] - 8 * ln_z[1] + 8 * ln_z[2] - ln_z[3]) / (12 * h) / n**2


def ising():
    """Square Ising model as unlike pairs: E = -bonds + 2 unlike."""
    return Hamiltonian("Ising", Pair("A", "B", name="unlike"), lattice=Lattice.square(), species="AB")


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (3, 4)])
def test_kaufman_is_the_sum_over_all_states(shape):
    sites = shape[0] * shape[1]
    s = 2.0 * ((np.arange(2**sites)[:, None] >> np.arange(sites)) & 1).reshape(-1, *shape) - 1
    bonds = (s * np.roll(s, 1, 1)).sum(axis=(1, 2)) + (s * np.roll(s, 1, 2)).sum(axis=(1, 2))
    for k in (0.1, 1 / 2.5, 0.5 * np.log(1 + np.sqrt(2)) + 1e-6, 0.7):
        weight = np.exp(k * bonds)
        assert abs(kaufman_ln_z(k, *shape) - np.log(weight.sum())) < 1e-9
        if shape[0] == shape[1]:
            assert abs(kaufman_energy(1 / k, shape[0]) + weight @ bonds / weight.sum() / sites) < 1e-8


@lru_cache
def ising_energy(temperature: float, name: str) -> np.ndarray:
    compiled = ising().compile(Lattice.square().supercell((16, 16)))
    start = generator(name).integers(0, 2, 256)
    settings = {"samples": 2**15, "sweeps": 2, "burn": 1000, "seed": seed_of(name), "ensemble": SemiGrand((0.0, 0.0))}
    chain = run_chain(compiled, [2 / temperature], start, **settings)
    return -2 + 2 * chain.features[:, 0] / 256


@pytest.mark.parametrize("temperature", [2.1, 2.269185, 2.6, 4.0])
def test_ising_energy_is_kaufmans(temperature):
    energy = ising_energy(temperature, f"Ising {temperature}")
    assert abs(deviation(energy, kaufman_energy(temperature, 16))) < SIGMA


def test_the_torus_is_small_enough_to_matter():
    """Negative controls: the energy of the infinite lattice at Tc, and that of a temperature 1 % off, are both refused."""
    energy = ising_energy(2.269185, "Ising 2.269185")
    assert abs(deviation(energy, -np.sqrt(2))) > SIGMA
    assert abs(deviation(energy, kaufman_energy(1.01 * 2.269185, 16))) > SIGMA
    assert abs(kaufman_energy(2.3, 64) + 1.355590) < 1e-5  # the 64 x 64 torus: known to six digits


# ------------------------------------------------------------------ chains: what they keep, repeat and report


def short(seed: str = "short", **keywords):
    compiled, _ = three_species()
    settings = {"samples": 50, "sweeps": 1.0, "burn": 10.0, "seed": seed_of(seed), **keywords}
    return run_chain(compiled, [0.1, 0.5, -0.4, 0.3], np.repeat([2, 0, 1], 3), **settings)


def test_swaps_keep_the_composition():
    for row in short(samples=200).snapshots:
        assert np.bincount(row, minlength=3).tolist() == [3, 3, 3]
    assert len({tuple(np.bincount(row, minlength=3)) for row in short(samples=200, ensemble=SemiGrand((0, 0, 0))).snapshots}) > 5


@pytest.mark.parametrize("potential", [None, (0.0, 0.2, -0.1)])
def test_same_seed_same_chain(potential):
    one, two, other = short(ensemble=free(potential)), short(ensemble=free(potential)), short("other", ensemble=free(potential))
    for name in ("packed", "features", "acceptance", "moves"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(one.packed, other.packed)
    assert not np.array_equal(one.features, other.features)


def test_moves_and_acceptance():
    """Without interaction every move is accepted; moves are those attempted, burn-in included."""
    h = ising()
    compiled = h.compile(h.lattice.supercell((4, 4)))
    start = np.repeat([0, 1], [11, 5])
    settings = {"samples": 20, "sweeps": 3, "burn": 7, "seed": seed_of("moves")}
    swaps = run_chain(compiled, [0.0], start, **settings)
    flips = run_chain(compiled, [0.0], start, ensemble=SemiGrand((0.3, 0.3)), **settings)
    assert (swaps.acceptance, swaps.moves) == (1.0, 5 * (7 + 60))  # a sweep of swaps moves the five rarer atoms
    assert (flips.acceptance, flips.moves) == (1.0, 16 * (7 + 60))
    assert len(swaps) == 20
    cold = run_chain(compiled, [1000.0], np.indices((4, 4))[0].ravel() // 2, **settings)  # two stripes: no swap lowers them
    assert cold.acceptance == 0.0


@pytest.mark.parametrize("k", [2, 3, 5])
@given(draw=st.data())
def test_packing_round_trip(k, draw):
    shape = draw.draw(st.tuples(st.integers(1, 5), st.integers(1, 40)))
    labels = draw.draw(arrays(np.uint8, shape, elements=st.integers(0, k - 1)))
    packed = chains.pack(labels, k)
    assert packed.shape == ({2: 1, 3: 2, 5: 3}[k], shape[0], -(-shape[1] // 8))
    np.testing.assert_array_equal(chains.unpack(packed, shape[1]), labels)


def test_refusals():
    h = ising()
    compiled = h.compile(h.lattice.supercell((4, 4)))
    half, settings = [0, 1] * 8, {"samples": 2, "seed": seed_of("refusals")}
    for couplings, labels, potential, words in [
        ([0.1, 0.2], half, None, "2 couplings"),
        ([0.1], half[:-1], None, "15 labels"),
        ([0.1], [0, 2] * 8, None, "labels below 2"),
        ([0.1], np.array([0, -1] * 8), None, "labels below 2"),
        ([0.1], [0] * 16, None, "at least two species"),
        ([0.1], half, [0.0, 0.0, 0.0], "chemical potentials"),  # the kernel would read past its tables
        ([0.1], half, [0.0], "chemical potentials"),
    ]:
        with pytest.raises(InputError, match=words):
            run_chain(compiled, couplings, labels, ensemble=free(potential), **settings)


# ------------------------------------------------------------------ errors of means


def autoregressive(rho: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """x_t = rho x_(t-1) + noise, in equilibrium from the start; its autocorrelation time is (1 + rho) / (1 - rho)."""
    x = rng.normal(size=n)
    x[0] /= np.sqrt(1 - rho**2)
    for t in range(1, n):
        x[t] += rho * x[t - 1]
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.97])
def test_autocorrelation_time(rho):
    """Within four standard errors of the exact time (Madras and Sokal: relative variance 2 (2 M + 1) / n for a window of M)."""
    n, exact = 200_000, (1 + rho) / (1 - rho)
    found = timeseries.autocorrelation_time(autoregressive(rho, n, generator(f"AR {rho}")))
    assert abs(found / exact - 1) < SIGMA * np.sqrt(2 * (2 * 5 * exact + 1) / n)


def test_autocorrelation_time_of_oddities():
    rng = generator("oddities")
    assert timeseries.autocorrelation_time(autoregressive(-0.5, 10_000, rng)) == 1.0  # never claims more than independent records
    assert timeseries.autocorrelation_time(np.full(100, 3.7)) == 1.0
    x = autoregressive(0.8, 1000, rng)
    assert abs(timeseries.autocorrelation_time(1e6 * x + 1e9) - timeseries.autocorrelation_time(x)) < 1e-6


def test_error_of_a_mean_is_honest():
    """Of 400 correlated series the deviations have variance 1: four standard errors of that variance are 0.28."""
    rng = generator("honest")
    z = np.array([deviation(autoregressive(0.8, 2000, rng), 0.0) for _ in range(400)])
    naive = np.sqrt((1 + 0.8) / (1 - 0.8))
    assert abs(z.var() - 1) < SIGMA * np.sqrt(2 / 400)
    assert abs((naive * z).var() - 1) > SIGMA * np.sqrt(2 / 400), "negative control: the error of independent records"


def test_transients_are_cut():
    """A decaying start is cut where it has faded; a chain in equilibrium keeps nearly all."""
    rng = generator("transient")
    x = autoregressive(0.5, 2000, rng)
    drifting = x + 30 * np.exp(-np.arange(2000) / 60)
    assert 200 <= timeseries.equilibration(drifting) <= 1000
    mean = timeseries.mean(drifting)
    assert mean.cut == timeseries.equilibration(drifting) and mean.n == 2000 - mean.cut
    assert abs(mean.value) < SIGMA * mean.error
    assert abs(drifting.mean()) > SIGMA * mean.error, "negative control: with its start the mean is off"
    assert timeseries.equilibration(np.ones(50)) == 0


def test_a_chain_too_short_to_judge_says_so():
    """Series of three autocorrelation times are refused (19 of 20 at least), of two hundred never."""
    rng = generator("too short")
    refused = 0
    for _ in range(40):
        timeseries.mean(autoregressive(0.9, 200 * 19, rng))
        try:
            timeseries.mean(autoregressive(0.9, 3 * 19, rng))
        except CheckError as error:
            assert "autocorrelation times; run it 50 long" in str(error)
            refused += 1
    assert refused >= 38
    with pytest.raises(CheckError):
        timeseries.mean(np.arange(1000.0))  # a drift never comes to rest
