"""Identifiability: what symmetry, composition and dependent terms hide is found, and what they do not is not."""

from __future__ import annotations

import itertools

import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import generator

from bayesatoms import catalogue
from bayesatoms.environments import Environments
from bayesatoms.hamiltonian import Cluster, Field, Hamiltonian, Pair
from bayesatoms.inference.identifiability import combination, identifiability, identified, orientations, redundant_pairs
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation

METAL = Lattice.triangular(0.316)
PRIOR = dist.Normal(0, 1)


def image(species=("A", "B"), environments=None, name="image", side=18):
    labels = generator(f"identifiability {name}").integers(0, len(species), (side, side))
    return Observation.from_labels(labels, METAL, species, name=name, **({} if environments is None else {"environments": environments}))


def model(*terms, species=("A", "B")):
    return Hamiltonian("X", *terms, lattice=METAL, species=species)


@pytest.mark.parametrize("k", [2, 3])
def test_fixed_composition_leaves_k_choose_2_pairs_a_shell(k):
    """Of the k (k + 1) / 2 pair couplings of a shell k are hidden by the composition: exactly, by linear algebra."""
    species = tuple("ABC"[:k])
    pairs = [Pair(a, b, name=a + b, prior=PRIOR) for a, b in itertools.combinations_with_replacement(species, 2)]
    found = identifiability([model(*pairs, species=species)], [image(species)])
    assert len(found.models["X"].null) == k and not found.ok
    assert len(pairs) - k == k * (k - 1) // 2
    assert any(f"only {k * (k - 1) // 2} of them" in s for s in found.sentences)
    # every null direction is a change of the chemical potentials: pairs of one species with all others alike
    potentials = np.array([[sum(s == c for c in a + b) for a, b in itertools.combinations_with_replacement(species, 2)] for s in species])
    both = np.vstack([potentials, found.models["X"].null])
    assert np.linalg.matrix_rank(both, tol=1e-6) == k


def test_a_field_is_hidden_by_the_composition():
    found = identifiability([model(Field("B", name="h", prior=PRIOR), Pair("A", "B", prior=PRIOR))], [image()])
    assert found.models["X"].null.tolist() == [[1.0, 0.0]]
    assert np.isinf(found.models["X"].sd[0]) and np.isfinite(found.models["X"].sd[1])
    assert "X: no image says anything about h by itself; only the prior will." in found.sentences


def test_orientation_of_triangles_is_hidden_by_classes_that_count_both_alike():
    two = [Cluster("ABB", METAL.triangle(d), name=d, prior=PRIOR) for d in ("up", "down")]
    blind = identifiability([model(*two)], [image()])
    assert blind.models["X"].null == pytest.approx(np.array([[1.0, -1.0]]), abs=1e-9)
    assert any("up - down" in s for s in blind.sentences)
    raw = Environments(METAL, ("A", "B"), symmetry="none")
    assert identifiability([model(*two)], [image(environments=raw)]).ok
    assert orientations(model(two[0]), Environments(METAL, ("A", "B"))) and not orientations(model(two[0]), raw)


def test_terms_of_two_models_that_are_one_are_named_and_one_model_is_not_blamed():
    study = catalogue.load("mos2_res2")
    found = identifiability(study.models, study.data)
    assert found.ok and set(found.models) == {"P1", "P2", "M"}
    shared = [s for s in found.sentences if "no interaction at all" in s]
    assert len(shared) == 1 and all(n in shared[0] for n in ("w1", "t1", "t2"))
    assert any(s.startswith("M: re05, re95 say less about t1, t2 than the prior does") for s in found.sentences)
    # the learning curve's sd for these counts is 0.052 kT by an independent program; the random alloy's bound is a little below it
    assert 0.040 < found.models["P1"].sd[0] < 0.052
    assert "orientations" in str(found)


def test_information_is_the_enumerated_covariance():
    """A whole 4 x 4 crystal with 6 B atoms: variance of the unlike pairs over all 8,008 configurations. Of 240 random ones the
    variance is known to 1 / sqrt(120): four errors."""
    labels = np.array([1] * 6 + [0] * 10)
    o = Observation.from_labels(labels.reshape(4, 4), METAL, ("A", "B"), periodic=True, name="tiny")
    pair = model(Pair("A", "B", prior=PRIOR))
    compiled = pair.compile(METAL.supercell((4, 4)))
    counts = []
    for places in itertools.combinations(range(16), 6):
        every = np.zeros(16, dtype=np.uint8)
        every[list(places)] = 1
        counts.append(compiled.features(every)[0])
    found = identifiability([pair], [o]).models["X"]
    assert found.information[0, 0, 0] == pytest.approx(np.var(counts), rel=4 / np.sqrt(120))
    assert found.sd[0] == pytest.approx(found.information[0, 0, 0] ** -0.5, rel=1e-12)


def test_images_add_up():
    """Two images of one size and composition: the bound falls by the square root of two, up to the error of 240 crystals each."""
    pair, one, two = model(Pair("A", "B", prior=PRIOR)), image(name="one"), image(name="two")
    single, both = identifiability([pair], [one]).models["X"], identifiability([pair], [one, two]).models["X"]
    assert both.sd[0] == pytest.approx(single.sd[0] / np.sqrt(2), rel=0.2)
    assert both.image_sd.shape == (2, 1) and both.sd[0] == pytest.approx((both.image_sd[:, 0] ** -2).sum() ** -0.5, rel=1e-9)
    assert single.condition == 1.0


def test_null_directions_are_found_whatever_the_scale_of_the_couplings():
    scale = np.diag([1e3, 1.0, 1e-3])
    root = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ scale
    found = identified(("a", "b", "c"), (root.T @ root)[None])
    assert len(found.null) == 1
    assert np.abs(root @ found.null[0]).max() < 1e-6
    assert identified(("a", "b"), np.array([[[1.0, 0.999], [0.999, 1.0]]])).condition == pytest.approx(1.999 / 0.001, rel=1e-6)
    assert combination(("a", "b", "c"), np.array([1.0, -0.25, 0.0])) == "a - 0.25 b"


def test_the_same_seed_gives_the_same_answer():
    one, two = (identifiability([model(Pair("A", "B", prior=PRIOR))], [image()], seed=3) for _ in range(2))
    other = identifiability([model(Pair("A", "B", prior=PRIOR))], [image()], seed=4)
    assert np.array_equal(one.models["X"].information, two.models["X"].information)
    assert not np.array_equal(one.models["X"].information, other.models["X"].information)
    assert redundant_pairs(model(Pair("A", "B", prior=PRIOR))) == []
