"""Every kernel against exactly summed crystals, Kaufman's torus and each other.

Chains are many and short: their means are independent, so errors need no autocorrelation time. Comparisons allow
SIGMA = 4 standard errors (6.3e-5 false alarms each) and chi-square tests ALARM = 1e-4; about 150 are made here, so a
correct program fails for 1 % of seeds. The seed is fixed. Every kind of check has a negative control that must fail it.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import pytest
from conftest import seed_of
from exact import kaufman_log_z
from scipy import stats

from bayesatoms.environments import Environments
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Field, Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.averages import Averages
from bayesatoms.montecarlo.engine import KERNELS, choose, run_chains
from bayesatoms.montecarlo.ensembles import Canonical, Constrained, SemiGrand
from bayesatoms.montecarlo.monomials import expand
from bayesatoms.montecarlo.timeseries import mean
from bayesatoms.montecarlo.work import Work
from bayesatoms.window import Operator, Window

SIGMA, ALARM = 4.0, 1e-4
AB = ("A", "B")
TRIANGLE = [(0, 0, 0), (1, 0, 0), (1, 1, 0)]


@lru_cache
def model(name: str):
    """A compiled crystal of at most 16 sites and couplings for it."""
    triangular, square, honeycomb = Lattice.triangular(), Lattice.square(), Lattice.honeycomb(sublattices=("a", "b"))
    terms, lattice, shape, couplings = {
        "pairs": ([Pair("A", "B"), Pair("A", "B", shell=2)], triangular, (4, 4), (0.3, -0.2)),
        "triangles": ([Pair("A", "B"), Cluster("AAB", lattice_triangle(), orbit="all")], triangular, (4, 4), (-0.2, 0.15)),
        "one orientation": ([Cluster("ABB", lattice_triangle()), Field("B")], triangular, (4, 4), (0.25, -0.3)),
        "square": ([Pair("A", "B")], square, (4, 4), (0.4,)),
        "honeycomb": ([Pair("A", "B"), Field("B", sublattice="a")], honeycomb, (3, 2), (0.5, 0.7)),
        "long chains": ([Cluster("ABAB", [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)])], square, (4, 4), (0.6,)),
    }[name]
    h = Hamiltonian(name, *terms, lattice=lattice, species=AB)
    return h.compile(lattice.supercell(shape)), np.array(couplings)


def lattice_triangle():
    return Lattice.triangular().triangle("up")


def density(compiled, couplings, ensemble, start):
    """Probability of every state (2^n, by its bits), summed exactly."""
    n = compiled.n_sites
    states = (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.uint8)
    features = np.zeros((len(states), compiled.n_features))
    for rows, (_, base) in zip(compiled.members, compiled.groups, strict=True):
        for row in rows:
            features += compiled.tables[base + (states[:, row].astype(int) @ (2 ** np.arange(len(row))))]
    log, atoms = -features @ couplings, states.sum(axis=1, dtype=int)
    if isinstance(ensemble, SemiGrand):
        log += atoms * ensemble.potential[1] + (n - atoms) * ensemble.potential[0]
    elif isinstance(ensemble, Constrained):
        log -= (atoms - start.sum()) ** 2 / (2 * ensemble.spread**2)
    elif ensemble.groups is None:
        log[atoms != start.sum()] = -np.inf
    else:
        for g in np.unique(ensemble.groups):
            log[states[:, ensemble.groups == g].sum(axis=1) != start[ensemble.groups == g].sum()] = -np.inf
    weight = np.exp(log - log.max())
    return weight / weight.sum(), features


def visits(chains):
    """How often every state was seen, over the last records of all chains."""
    n = chains[0].n_sites
    seen = np.concatenate([c.snapshots for c in chains]).astype(np.int64) @ (1 << np.arange(n))
    return np.bincount(seen, minlength=2**n)


def misfit(seen, probability, features):
    """Chi-square p-value of independent visits to states of equal features, each such set dealt into five at random.

    Sets expected less than ten times count as one.
    """
    parts = np.random.default_rng(0).integers(0, 5, len(seen))
    kind = np.unique(np.column_stack([features.round(6), parts]), axis=0, return_inverse=True)[1].reshape(-1)
    seen, expected = np.bincount(kind, seen), np.bincount(kind, probability) * seen.sum()
    often = expected >= 10
    pairs = np.array([*zip(seen[often], expected[often], strict=True), (seen[~often].sum(), expected[~often].sum())])
    pairs = pairs[pairs[:, 1] > 0]
    return float(stats.chi2.sf(((pairs[:, 0] - pairs[:, 1]) ** 2 / pairs[:, 1]).sum(), len(pairs) - 1))


def start_of(n, atoms):
    return np.arange(n) < atoms


ENSEMBLES = {
    "canonical": lambda n: Canonical(),
    "groups": lambda n: Canonical(np.arange(n) % 2),
    "semigrand": lambda n: SemiGrand((0.1, 0.4)),
    "constrained": lambda n: Constrained(1.5),
}


def cases():
    for kernel, name, ensemble in itertools.product(
        KERNELS, ("pairs", "triangles", "one orientation", "square", "honeycomb", "long chains"), ENSEMBLES
    ):
        compiled, couplings = model(name)
        work = Work(compiled, ENSEMBLES[ensemble](compiled.n_sites), 1, 1.0, 0.0, np.random.SeedSequence(0))
        if KERNELS[kernel].refuses(work, couplings[None]) is not None or (kernel == "jax" and name not in ("triangles", "honeycomb")):
            continue  # jax compiles for seconds: two crystals do
        yield kernel, name, ensemble


@pytest.mark.parametrize(("kernel", "name", "ensemble"), [*cases()])
def test_states_are_visited_as_often_as_they_should(kernel, name, ensemble):
    compiled, couplings = model(name)
    start = start_of(compiled.n_sites, compiled.n_sites // 4).astype(np.uint8)
    rule = ENSEMBLES[ensemble](compiled.n_sites)
    probability, features = density(compiled, couplings, rule, start)
    seeds = np.random.SeedSequence([1, *map(ord, kernel + name + ensemble)]).spawn(64)
    chains = run_chains(
        compiled, np.tile(couplings, (64, 1)), start, samples=1500, burn=60, sweeps=8, seeds=seeds, ensemble=rule, kernel=kernel
    )
    assert {c.kernel for c in chains} == {kernel}
    assert all(np.allclose(c.features[i], compiled.features(c.snapshots[i])) for c in chains[:3] for i in (0, 700, 1499))
    seen = visits(chains)
    assert seen[probability == 0].sum() == 0
    assert misfit(seen, probability, features) > ALARM
    means = np.array([c.features.mean(axis=0) for c in chains])
    error = means.std(axis=0, ddof=1) / np.sqrt(len(means))
    assert (np.abs(means.mean(axis=0) - probability @ features) < SIGMA * error + 1e-9).all()
    other, _ = density(compiled, couplings + 0.3, rule, start)
    assert misfit(seen, other, features) < ALARM  # negative control: couplings 0.3 kT off


@pytest.mark.parametrize("ensemble", ["canonical", "semigrand", "constrained"])
def test_a_lane_is_the_same_in_any_company(ensemble):
    compiled, couplings = model("triangles")
    start, rule = start_of(16, 4).astype(np.uint8), ENSEMBLES[ensemble](16)
    seeds = seed_of("company").spawn(70)
    many = np.outer(np.linspace(-1, 1, 70), couplings)
    options = {"samples": 20, "burn": 5, "sweeps": 1, "ensemble": rule, "kernel": "lanes"}
    together = run_chains(compiled, many, start, seeds=seeds, **options)
    for some in ([3], [69, 0], list(range(10, 40))):
        alone = run_chains(compiled, many[some], start, seeds=[seeds[i] for i in some], **options)
        for chain, i in zip(alone, some, strict=True):
            assert np.array_equal(chain.packed, together[i].packed) and np.array_equal(chain.features, together[i].features)
            assert chain.acceptance == together[i].acceptance


def test_lanes_that_share_their_sites_are_uncorrelated():
    """Random alloy: the records of 64 lanes, all from equilibrium, have products of deviations that average to zero."""
    compiled, _ = model("square")
    rng, seeds = np.random.default_rng(2), seed_of("uncorrelated").spawn(64)
    starts = np.array([rng.permutation(start_of(16, 8)) for _ in seeds], dtype=np.uint8)
    chains = run_chains(compiled, np.full((64, 1), 0.2), starts, samples=4000, burn=50, sweeps=2, seeds=seeds, kernel="lanes")
    x = np.array([c.features[:, 0] - c.features[:, 0].mean() for c in chains])
    pairs = [(x[i] * x[i + 1]).mean() / x.var() for i in range(0, 64, 2)]
    assert abs(np.mean(pairs)) < SIGMA * np.std(pairs, ddof=1) / np.sqrt(32)
    shared = [(x[i] * x[i]).mean() / x.var() for i in range(32)]  # negative control: a lane with itself
    assert abs(np.mean(shared)) > SIGMA * np.std(pairs, ddof=1) / np.sqrt(32)


@pytest.mark.parametrize("kernel", ["code", "lanes", "multispin"])
def test_energy_of_the_square_torus_is_kaufmans(kernel):
    """16 x 16 sites, zero field, eight temperatures about the critical one; chains start hot and cold."""
    temperatures = np.array([1.8, 2.1, 2.2, 2.2692, 2.3, 2.4, 2.6, 3.5])
    h = Hamiltonian("Ising", Pair("A", "B"), lattice=Lattice.square(), species=AB)
    compiled = h.compile(h.lattice.supercell((16, 16)))
    each = 2 if kernel == "code" else 64
    t = np.repeat(temperatures, each)
    rng = np.random.default_rng(4)
    starts = np.array([rng.integers(0, 2, 256) if i % 2 else np.full(256, i // 2 % 2) for i in range(len(t))], dtype=np.uint8)
    length = {"samples": 2500 if kernel == "code" else 60, "burn": 1500, "sweeps": 20}
    seeds = seed_of("kaufman").spawn(len(t))
    chains = run_chains(compiled, 2 / t[:, None], starts, seeds=seeds, ensemble=SemiGrand((0, 0)), kernel=kernel, **length)
    # E = -sum s s = 2 unlike - 512, and d ln Z / d K at K = 1 / T is -E
    means = np.array([(2 * c.features[:, 0] - 512).mean() for c in chains]).reshape(len(temperatures), each)
    if kernel == "code":
        found = [mean(2 * np.concatenate([c.features[:, 0] for c in chains[i : i + 2]]) - 512, cut=0) for i in range(0, len(t), 2)]
        means, errors = np.array([f.value for f in found]), np.array([f.error for f in found])
    else:
        means, errors = means.mean(axis=1), means.std(axis=1, ddof=1) / np.sqrt(each)
    exact = np.array([-(kaufman_log_z(1 / x + 1e-5, 16, 16) - kaufman_log_z(1 / x - 1e-5, 16, 16)) / 2e-5 for x in temperatures])
    assert (np.abs(means - exact) < SIGMA * errors).all(), (means - exact) / errors
    infinite = -512 * 1.7454 / 2  # negative control: Onsager's energy of the infinite lattice at 2.2
    assert abs(means[2] - infinite) > SIGMA * errors[2]


@pytest.mark.parametrize(
    ("lattice", "critical"), [(Lattice.square(), 2.269185), (Lattice.triangular(), 3.640957)], ids=["square", "triangular"]
)
def test_critical_temperature_from_binders_cumulant(lattice, critical):
    """U = 1 - <m^4> / 3 <m^2>^2 of two sizes crosses within 1 % of the exact temperature (Onsager; Wannier), T in units of J."""
    temperatures = critical * np.linspace(0.96, 1.04, 8)
    t = np.repeat(temperatures, 64)
    cumulants = []
    for side in (10, 20):
        compiled = Hamiltonian("Ising", Pair("A", "B"), lattice=lattice, species=AB).compile(lattice.supercell((side, side)))
        rng = np.random.default_rng(side)
        starts = rng.integers(0, 2, (512, side * side)).astype(np.uint8)
        length = {"samples": 150, "burn": 5 * side**2, "sweeps": side**2 / 10, "ensemble": SemiGrand((0, 0)), "kernel": "multispin"}
        chains = run_chains(compiled, 2 / t[:, None], starts, seeds=seed_of(f"binder {side}").spawn(512), **length)
        m = np.array([2 * c.snapshots.mean(axis=1) - 1 for c in chains]).reshape(8, -1)
        cumulants.append(1 - (m**4).mean(axis=1) / (3 * (m**2).mean(axis=1) ** 2))
    # the difference of the two is a smooth function of T through zero: a parabola finds where
    apart = np.polynomial.Polynomial.fit(temperatures, cumulants[1] - cumulants[0], 2)
    roots = [r.real for r in apart.roots() if abs(r.imag) < 1e-9 and 0.95 < r.real / critical < 1.05]
    assert len(roots) == 1 and abs(roots[0] / critical - 1) < 0.01, roots


def alloy(name: str):
    """The triangular alloys W2 and W3 of the benchmark: compiled, couplings in kT, energy of features per site, starts."""
    lattice, n = Lattice.triangular(), 48 * 48
    temperature, j3 = (2.6, 0.0) if name == "W2" else (3.0, 0.15)
    terms = [
        Pair("A", "B"),
        Pair("A", "B", shell=2),
        *(Cluster(d, lattice_triangle(), orbit="all", name=d) for d in ("AAA", "AAB", "ABB", "BBB")),
    ]
    energies = np.array([-2.0, 0.5, -j3, j3, -j3, j3])
    h = Hamiltonian(name, *terms, lattice=lattice, species=AB)
    return (
        h.compile(lattice.supercell((48, 48))),
        energies / temperature,
        lambda f: f @ energies / n + 2.25,
        start_of(n, n - 691).astype(np.uint8),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "known", "error"), [("W2", -0.6147, 0.0020), ("W3", -0.7768, 0.0033)])
def test_kernels_agree_on_the_workloads(name, known, error):
    """Mean energies per site by three kernels within SIGMA errors of each other and of independent runs of other programs."""
    compiled, couplings, energy, start = alloy(name)
    found = {}
    for kernel, chains, records in (("generic", 4, 1000), ("code", 8, 1500), ("lanes", 64, 150)):
        rng = np.random.default_rng(6)
        starts = np.array([rng.permutation(start) for _ in range(chains)])
        length = {"samples": records, "burn": 1500, "sweeps": 30, "kernel": kernel}
        run = run_chains(compiled, np.tile(couplings, (chains, 1)), starts, seeds=seed_of(f"{name} {kernel}").spawn(chains), **length)
        means = [mean(energy(c.features), cut=0) for c in run] if chains < 64 else None
        if means:
            found[kernel] = np.mean([m.value for m in means]), np.sqrt(np.sum([m.error**2 for m in means])) / chains
        else:
            values = np.array([energy(c.features).mean() for c in run])
            found[kernel] = values.mean(), values.std(ddof=1) / 8
    found["others"] = known, error
    for (_, (one, a)), (_, (two, b)) in itertools.combinations(found.items(), 2):
        assert abs(one - two) < SIGMA * np.hypot(a, b), found


@pytest.mark.parametrize("moves", [3e7, pytest.param(1e9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", ["generic", "code"])
def test_nothing_drifts(kernel, moves):
    """Kernels keep numbers of clusters, not sums of energy changes: after any number of moves features are those of the snapshot."""
    if kernel == "generic":
        moves /= 30  # of the time, not of the claim: one in thirty of the moves that the fast kernel makes
    compiled, couplings, _, start = alloy("W3")
    chain = run_chains(compiled, couplings, start, samples=1, burn=0, sweeps=moves / 691, seeds=seed_of("drift").spawn(1), kernel=kernel)[0]
    assert chain.moves >= 0.99 * moves
    exact = compiled.features(chain.snapshots[0])
    assert np.array_equal(chain.features[0], exact)
    assert abs(chain.features[0] @ couplings - exact @ couplings) <= 1e-9 * abs(exact @ couplings)


def test_fluctuations_give_the_gradient():
    """d<A>/dw = -cov(A, F), of features and of classes of environments: against the difference of exact means either side."""
    compiled, couplings = model("pairs")
    start = start_of(16, 4).astype(np.uint8)
    length = {"samples": 3000, "burn": 50, "sweeps": 2, "seeds": seed_of("gradient").spawn(64)}
    chains = run_chains(compiled, np.tile(couplings, (64, 1)), start, **length)
    states = (np.arange(2**16)[:, None] >> np.arange(16) & 1).astype(np.uint8)
    states = states[some := states.sum(axis=1) == 4]
    cell = Lattice.triangular().supercell((4, 4))
    environments = Environments(cell.lattice, AB)
    operator = Operator(environments, Window(cell.sites, whole=cell.shape), cell)

    def seen(snapshots: np.ndarray) -> np.ndarray:
        return operator.counts(snapshots, np.random.default_rng(0)) / operator.n

    parts = [Averages.of(np.column_stack([c.features, seen(c.snapshots)]), c.features) for c in chains]
    found, exact, mean = Averages.joined(parts), [], []
    for k in range(2):
        step = 1e-4 * np.eye(2)[k]
        ends = [density(compiled, couplings + side * step, Canonical(), start) for side in (1, -1)]
        table = np.column_stack([ends[0][1][some], seen(states)])
        exact.append((ends[0][0] - ends[1][0])[some] @ table / 2e-4)
        mean.append((ends[0][0] + ends[1][0])[some] @ table / 2)
    vary = found.error > 0
    assert vary.sum() >= 10
    assert (np.abs(found.mean - np.mean(mean, axis=0))[vary] < SIGMA * found.error[vary]).all()
    off = np.abs(found.gradient - np.transpose(exact))[vary]
    assert (off < SIGMA * found.gradient_error[vary]).all()
    assert (np.abs(found.gradient)[vary] > SIGMA * found.gradient_error[vary]).mean() > 0.8, "the errors are small beside what is tested"
    alone = np.array([p.gradient for p in parts])  # 64 chains tell the error without blocks
    assert np.allclose(alone.std(axis=0, ddof=1)[vary] / 8, found.gradient_error[vary], rtol=0.35)
    with pytest.raises(InputError, match="2 records a block"):
        Averages.of(np.zeros((20, 1)), np.zeros((20, 1)))


def test_expansion_is_the_hamiltonian():
    """Features and fields of random states from the products, on a film whose faces lack neighbours."""
    lattice = Lattice.cubic(film=True)
    terms = [
        Pair("A", "B"),
        Pair("A", "B", shell=2),
        Cluster("ABB", [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0)], orbit="all"),
        Field("B", layer=0),
    ]
    h = Hamiltonian("film", *terms, lattice=lattice, species=AB)
    compiled = h.compile(lattice.supercell((4, 4, 3)))
    expansion, rng = expand(compiled), np.random.default_rng(5)
    assert len(expansion.constants) == 3  # bottom, middle, top
    for _ in range(20):
        labels = rng.integers(0, 2, compiled.n_sites)
        padded = np.append(labels, 0)
        n = np.stack([padded[f.sites].prod(axis=2).sum(axis=1) for f in expansion.families], axis=1)
        alone = np.bincount(expansion.kind, labels, len(expansion.constants))
        assert np.allclose(expansion.features(labels @ n, alone), compiled.features(labels))


@pytest.mark.parametrize("kernel", ["generic", "lanes", "jax"])
def test_the_random_alloy_needs_no_terms(kernel):
    """Without interaction, and without features: every state of the ensemble is as likely as its atoms are.

    All chains start alike, and lanes try the same sites: they would stay alike if each did not let moves pass.
    """
    compiled = Hamiltonian("R", lattice=Lattice.square(), species=AB).compile(Lattice.square().supercell((3, 3)))
    ensemble = SemiGrand((0.0, 0.7)) if kernel == "jax" else Canonical()
    start = start_of(9, 4).astype(np.uint8)
    options = {"samples": 800, "burn": 80, "sweeps": 4, "ensemble": ensemble, "kernel": kernel}
    chains = run_chains(compiled, np.zeros((32, 0)), start, seeds=seed_of("random").spawn(32), **options)
    assert chains[0].features.shape == (800, 0)
    probability, _ = density(compiled, np.zeros(0), ensemble, start)
    # without features, states differ by their number of atoms and by the random deal
    assert misfit(visits(chains), probability, np.bitwise_count(np.arange(512))[:, None]) > ALARM
    wrong, _ = density(compiled, np.zeros(0), SemiGrand((0.0, 0.2)), start)
    assert misfit(visits(chains), wrong, np.bitwise_count(np.arange(512))[:, None]) < ALARM


def test_kernels_say_what_they_cannot():
    compiled, _ = model("pairs")
    start, seeds = start_of(16, 4), [np.random.SeedSequence(1)]
    with pytest.raises(InputError, match=r"kernel 'fast' is unknown; expected auto, generic, code, lanes, multispin, jax"):
        run_chains(compiled, [[0.1, 0.1]], start, samples=1, seeds=seeds, kernel="fast")
    with pytest.raises(InputError, match="multispin kernel cannot run this: it turns atoms at given chemical potentials only"):
        run_chains(compiled, [[0.1, 0.1]], start, samples=1, seeds=seeds, kernel="multispin")
    three = Hamiltonian("three", Pair("A", "C"), lattice=Lattice.square(), species=("A", "B", "C"))
    ternary = three.compile(three.lattice.supercell((4, 4)))
    for kernel in ("code", "lanes", "multispin"):
        with pytest.raises(InputError, match="there are 3 species; it takes two"):
            run_chains(ternary, [[0.1]], np.arange(16) % 3, samples=1, seeds=seeds, kernel=kernel)
    with pytest.raises(InputError, match="different compositions"):
        run_chains(compiled, np.zeros((2, 2)), [start_of(16, 4), start_of(16, 5)], samples=1, seeds=seeds * 2)
    assert choose(ternary, [[0.1]]) == "generic"
    assert choose(compiled, [[0.1, 0.1]]) == "code"
    assert choose(compiled, [[30.0, 0.1]]) == "generic"  # fields too far apart for single precision
    assert choose(model("honeycomb")[0], [[0.1, 0.1]]) == "generic"
