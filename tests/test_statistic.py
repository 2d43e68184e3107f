"""The declared statistic and the pseudo-likelihood: exact on whole crystals, published numbers on counts."""

from __future__ import annotations

import numpy as np
import pytest

from bayesatoms import catalogue
from bayesatoms.configuration import Configuration
from bayesatoms.environments import Environments
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Cluster, Field, Hamiltonian, Pair
from bayesatoms.inference.conditionals import conditionals
from bayesatoms.inference.pseudolikelihood import pseudo_likelihood
from bayesatoms.inference.statistic import Statistic, contrast, union
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation

TRIANGULAR = Lattice.triangular()
ALLOY = {"lattice": TRIANGULAR, "species": ("Mo", "Re")}
UP = TRIANGULAR.triangle("up")


def triangles(orbit):
    terms = (Cluster(("Mo", "Mo", "Re"), UP, orbit=orbit, name="t1"), Cluster(("Mo", "Re", "Re"), UP, orbit=orbit, name="t2"))
    return Hamiltonian("M", *terms, **ALLOY)


@pytest.mark.parametrize(
    ("lattice", "terms", "shape"),
    [
        (TRIANGULAR, [Pair("A", "B"), Pair("A", "B", shell=2), Pair("B", "B", shell=3), Field("B")], (6, 7)),
        (TRIANGULAR, [Cluster("AAB", UP, orbit="all"), Cluster("BBB", UP, orbit="all")], (6, 7)),
        (Lattice.square(), [Pair("A", "B"), Pair("A", "B", shell=2), Pair("A", "B", shell=3)], (6, 5)),
        (Lattice.honeycomb(), [Pair("A", "B"), Pair("A", "B", shell=2), Field("B")], (5, 6)),
        (Lattice.cubic(), [Pair("A", "B"), Pair("B", "B", shell=2)], (4, 5, 4)),
    ],
)
def test_contrast_counts_terms_per_site_of_a_periodic_crystal(lattice, terms, shape):
    """Exact: environments share every cluster among the sites that see it, so the mean over a torus is F / sites."""
    h = Hamiltonian("H", *terms, lattice=lattice, species=("A", "B"))
    e = Environments(lattice, h.species)
    for seed in range(3):
        c = Configuration.random(lattice, h.species, shape, (0.6, 0.4), np.random.default_rng(seed))
        o = Observation.from_configuration(c, environments=e)
        for orbit, name, expected in zip(h.orbits, h.names, h.features(c) / c.supercell.n_sites, strict=True):
            assert contrast(e, orbit, name) @ o.histogram == pytest.approx(expected, abs=1e-12)


def test_terms_that_add_nothing_are_dropped():
    """On every torus N_unlike = 2 (N_t1 + N_t2), and like pairs follow from unlike pairs and the composition."""
    m = triangles("one")
    orbits = {**dict(zip(m.names, m.orbits, strict=True)), "w1": Pair("Mo", "Re").orbit(TRIANGULAR, m.species)}
    e = Environments(TRIANGULAR, m.species)
    assert Statistic.of_terms(e, orbits).dropped == ("w1",)
    reordered = {n: orbits[n] for n in ("w1", "t1", "t2")}
    assert Statistic.of_terms(e, reordered).dropped == ("t2",)
    orbits = {"w1": orbits["w1"], "rr": Pair("Re", "Re").orbit(TRIANGULAR, m.species)}
    assert Statistic.of_terms(e, orbits).names == ("x_Re", "x_Re shell 1", "w1")


def test_a_term_beyond_the_environments_is_refused():
    e = Environments(Lattice.square(), ("A", "B"))
    with pytest.raises(InputError, match="term w5: environments of 1 shell"):
        Statistic.of_terms(e, {"w5": Pair("A", "B", shell=5).orbit(e.lattice, e.species)})


def test_one_name_for_two_terms_is_refused():
    one, two = (Hamiltonian(n, Pair("Mo", "Re", shell=s, name="w"), **ALLOY) for n, s in (("A", 1), ("B", 2)))
    with pytest.raises(InputError, match="coupling 'w' means different terms in models A and B"):
        union({m.name: dict(zip(m.names, m.orbits, strict=True)) for m in (one, two)})


# ---------------------------------------------------------------------- pseudo-likelihood


def test_pseudo_likelihood_of_the_published_counts():
    """Numbers found for these counts by an independent logistic regression."""
    images = catalogue.load("mos2_res2").data
    p1 = Hamiltonian("P1", Pair("Mo", "Re"), lattice=images[0].environments.lattice, species=("Mo", "Re"))
    found = pseudo_likelihood(p1, images)
    assert found.exact and (found.couplings[0], found.sd[0]) == pytest.approx((-0.062, 0.035), abs=5e-4)
    single = [pseudo_likelihood(p1, [o]).couplings[0] for o in images]
    assert single == pytest.approx([0.495, -0.075, -0.068, 0.161], abs=1e-3)
    lattice = images[0].environments.lattice
    both = [Cluster(s, lattice.triangle("up"), orbit="all", name=n) for s, n in ((("Mo", "Mo", "Re"), "t1"), (("Mo", "Re", "Re"), "t2"))]
    found = pseudo_likelihood(Hamiltonian("M", *both, lattice=lattice, species=("Mo", "Re")), images)
    assert found.couplings == pytest.approx([-0.280, -0.073], abs=1e-3)
    assert found.sd == pytest.approx([0.066, 0.037], abs=1e-3)


def test_counts_and_configuration_give_the_same_conditionals():
    """For nearest-neighbour terms seven-site counts hold all that the configuration does."""
    c = Configuration.random(TRIANGULAR, ("Mo", "Re"), (15, 16), (0.4, 0.6), np.random.default_rng(1), periodic=False)
    seen = Observation.from_configuration(c)
    counted = Observation.from_counts(seen.counts, seen.environments)
    for model in (Hamiltonian("P1", Pair("Mo", "Re"), **ALLOY), triangles("all")):
        a, b = (pseudo_likelihood(model, [o]) for o in (seen, counted))
        assert a.couplings == pytest.approx(b.couplings, abs=1e-9)
    assert conditionals(Hamiltonian("P2", Pair("Mo", "Re", shell=2), **ALLOY), counted) is None
    assert not conditionals(triangles("one"), counted).exact
    assert conditionals(triangles("one"), seen).exact


def test_conditionals_against_brute_force():
    """log p(s_i | rest) from total energies of the configuration with atom i replaced, potentials put in by hand."""
    model = triangles("one")
    c = Configuration.random(TRIANGULAR, ("Mo", "Re"), (4, 5), (0.5, 0.5), np.random.default_rng(2))
    w, potential = np.array([0.4, -0.7]), np.array([0.0, 0.3])
    expected = 0.0
    for site in range(c.supercell.n_sites):
        logits = []
        for s in (0, 1):
            labels = c.flat.copy()
            labels[site] = s
            logits.append(potential[s] - model.energy(Configuration(TRIANGULAR, c.species, labels.reshape(c.labels.shape), c.periodic), w))
        expected += logits[c.flat[site]] - np.logaddexp(*logits)
    table = conditionals(model, Observation.from_configuration(c))
    assert table.weight @ table.log_probability(w, potential) == pytest.approx(expected, abs=1e-9)
    # the profiled potential is the best one
    profiled = table.weight @ table.profile(w[None])[0]
    others = [table.weight @ table.log_probability(w, np.array([0.0, m])) for m in np.linspace(-3, 3, 601)]
    assert profiled == pytest.approx(max(others), abs=1e-3) and profiled >= max(others) - 1e-9
