"""Phases found unsupervised: maps whose transitions are known, systems without one, and what noise must not do."""

from __future__ import annotations

import numpy as np
import pytest

from bayesatoms.environments import Environments
from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.engine import run_chains
from bayesatoms.montecarlo.ensembles import SemiGrand
from bayesatoms.phases.unsupervised import block_histograms, exchange, find_phases

SQUARE, TRIANGULAR = Lattice.square(), Lattice.triangular()
SPECIES = ("A", "B")
CRITICAL = np.log(1 + np.sqrt(2)) / 2  # J/T of the square lattice (Onsager)
SIDE = 16
FERRO, CHESSBOARD, STRIPES, DISORDER = 1, 2, 3, 0


def _annealed(lattice: Lattice, j: np.ndarray, *, seed: int, stages: int = 10, records: int = 400):
    """Chains at couplings j (points, shells) in J/T, E = -J s s', annealed from J = 0."""
    pairs = [Pair("A", "B", shell=k + 1, name=f"w{k + 1}") for k in range(j.shape[1])]
    h = Hamiltonian("J", *pairs, lattice=lattice, species=SPECIES)
    box, root = lattice.supercell((SIDE, SIDE)), np.random.SeedSequence(seed)
    compiled, labels = h.compile(box), np.random.default_rng(seed).integers(0, 2, (len(j), box.n_sites))
    for k in range(1, stages + 1):
        length = {"samples": records, "sweeps": 10, "burn": 300} if k == stages else {"samples": 1, "burn": 100}
        chains = run_chains(compiled, 2 * j * k / stages, labels, **length, seeds=root.spawn(len(j)), ensemble=SemiGrand((0.0, 0.0)))
        labels = np.array([c.snapshots[-1] for c in chains])
    return box, chains


def _line(lattice: Lattice, first: float, last: float, seed: int = 1):
    """Histograms along 25 points of the nearest-neighbour model, the fold, and the points."""
    j = np.linspace(first, last, 25)
    environments = Environments(lattice, SPECIES)
    box, chains = _annealed(lattice, j[:, None], seed=seed, records=1600)
    return block_histograms(chains, environments, box), exchange(environments), j


@pytest.fixture(scope="module")
def frustrated():
    """The J1-J2 model on 21 x 21 points: histograms, fold, axis, and the phases by their long-range order."""
    n = 21
    axis = np.linspace(-1, 1, n)
    environments = Environments(SQUARE, SPECIES)
    box, chains = _annealed(SQUARE, np.array([(a, b) for a in axis for b in axis]), seed=1)
    spins = np.array([1.0 - 2.0 * c.snapshots.reshape(-1, SIDE, SIDE) for c in chains])
    weight = (np.abs(np.fft.fft2(spins)) ** 2).mean(axis=1) / box.n_sites**2
    half = SIDE // 2
    order = np.stack([weight[:, 0, 0], weight[:, half, half], weight[:, half, 0] + weight[:, 0, half]], axis=1)
    known = np.where(order.sum(axis=1) > 0.5, 1 + order.argmax(axis=1), DISORDER)
    return block_histograms(chains, environments, box), exchange(environments), axis, known.reshape(n, n)


def _near(known: np.ndarray) -> list[set[int]]:
    """Phases of each point and of those one step away."""
    wide = np.pad(known, 1, mode="edge")
    steps = [wide[1:-1, 1:-1], wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]]
    return [set(column) for column in np.stack([s.ravel() for s in steps], axis=1).tolist()]


# ------------------------------------------------------------------ the J1-J2 model


def test_frustrated_map_has_its_four_phases_within_one_step(frustrated):
    histograms, fold, axis, known = frustrated
    n = len(axis)
    phases = find_phases(histograms, (n, n), fold=fold)
    assert phases.number == 4
    named = [np.bincount(known.ravel()[phases.labels == k]).argmax() for k in range(4)]
    assert sorted(named) == [DISORDER, FERRO, CHESSBOARD, STRIPES]
    found = np.array(named)[phases.labels]
    assert all(one in near for one, near in zip(found.tolist(), _near(known), strict=True))
    # and against what is exact: one coupling alone is one Ising lattice, or two
    grid, middle, step = found.reshape(n, n), n // 2, axis[1] - axis[0]
    for line, order in ((grid[middle:, middle], FERRO), (grid[middle::-1, middle], CHESSBOARD), (grid[middle, middle::-1], STRIPES)):
        first = int(np.argmax(line == order))
        assert set(line[:first]) == {DISORDER}
        assert set(line[first:]) == {order}
        assert abs((first - 0.5) * step - CRITICAL) < step
    assert [named[phases.labels[m]] for m in phases.medoids] == named  # a medoid is of its phase
    assert known.ravel()[phases.medoids].tolist() == named


def test_certainty_is_low_at_boundaries_only(frustrated):
    histograms, fold, axis, _ = frustrated
    n = len(axis)
    phases = find_phases(histograms, (n, n), fold=fold)
    alone = np.array([len(near) == 1 for near in _near(phases.labels.reshape(n, n))])
    assert 0 <= phases.certainty.min() <= phases.certainty.max() <= 1
    assert np.median(phases.certainty[~alone]) < np.median(phases.certainty[alone]) / 2
    assert [c.shape for c in phases.change] == [(n - 1, n), (n, n - 1)]
    assert str(phases).startswith("4 phases")


def test_partition_does_not_depend_on_how_the_grid_lies(frustrated):
    histograms, fold, axis, _ = frustrated
    n = len(axis)
    labels = find_phases(histograms, (n, n), fold=fold).labels.reshape(n, n)
    turned = histograms.reshape(16, n, n, -1).transpose(0, 2, 1, 3)[:, ::-1].reshape(16, n * n, -1)
    back = find_phases(turned, (n, n), fold=fold).labels.reshape(n, n)[::-1].T
    pairs = np.unique(np.column_stack([labels.ravel(), back.ravel()]), axis=0)
    assert len(pairs) == 4  # one to one


def test_grid_in_disorder_has_no_such_phases(frustrated):
    """Negative control: the same histograms, not in their places."""
    histograms, fold, axis, known = frustrated
    n = len(axis)
    mixed = np.random.default_rng(1).permutation(n * n)
    phases = find_phases(histograms[:, mixed], (n, n), fold=fold)
    share = sum(np.bincount(known.ravel()[mixed][phases.labels == k]).max() for k in range(phases.number)) / n**2
    assert share < 0.6


# ------------------------------------------------------------------ one coupling


@pytest.mark.parametrize(
    ("lattice", "first", "last", "boundaries"),
    [
        (SQUARE, 0.0, 1.0, [CRITICAL]),
        (SQUARE, 0.2, 0.6, [CRITICAL]),
        (SQUARE, -1.0, 1.0, [-CRITICAL, CRITICAL]),
        (SQUARE, 0.0, 0.35, []),
        (SQUARE, 0.55, 1.0, []),
        (TRIANGULAR, -1.0, 0.15, []),  # the antiferromagnet stays disordered; the ferromagnet begins at 0.2747
    ],
    ids=["through", "near", "both signs", "hot", "cold", "frustrated"],
)
def test_nearest_neighbours(lattice, first, last, boundaries):
    histograms, fold, j = _line(lattice, first, last)
    phases = find_phases(histograms, fold=fold)
    assert phases.number == 1 + len(boundaries)
    cuts = np.flatnonzero(np.diff(phases.labels))
    assert len(cuts) == len(boundaries)
    assert all(abs((j[c] + j[c + 1]) / 2 - b) < j[1] - j[0] for c, b in zip(cuts, boundaries, strict=True))
    if not boundaries:
        assert str(phases).startswith("one phase")
        assert (phases.certainty.min(), phases.contrast.tolist()) == (1.0, [np.inf])


def test_random_alloy_is_one_phase_at_all_compositions():
    """Its histograms go from one pure crystal to the other: much change, and no ridge."""
    environments = Environments(TRIANGULAR, SPECIES)
    exact = np.array([environments.random_distribution([1 - x, x]) for x in np.linspace(0.02, 0.98, 40)])
    phases = find_phases(exact)
    assert phases.number == 1
    assert phases.change[0].sum() > 1.5  # rad


def test_without_the_fold_the_two_signs_of_a_ferromagnet_are_told_apart():
    histograms, fold, _ = _line(SQUARE, 0.55, 1.0)
    environments = Environments(SQUARE, SPECIES)
    up = np.where(np.arange(25) < 12, 1, -1)  # one sign in the first half of the line, the other in the second
    share = histograms.sum(axis=0) @ np.where(environments.centre == 1, -1, 1)
    histograms = np.where((np.sign(share) == up)[:, None], histograms, histograms[..., fold])
    assert find_phases(histograms, fold=fold).number == 1
    apart = find_phases(histograms)
    assert apart.number == 2
    assert apart.labels.tolist() == [0] * 12 + [1] * 13


# ------------------------------------------------------------------ noise and geometry


def _blend(depth: np.ndarray) -> np.ndarray:
    """Exact histograms that go from one structure to another around depth 0, and slowly everywhere."""
    share = 1 / (1 + np.exp(-depth))[..., None]
    drift = np.array([0.01, -0.01, 0.0, 0.0]) * depth[..., None]
    return share * [0.6, 0.2, 0.1, 0.1] + (1 - share) * [0.1, 0.2, 0.1, 0.6] + drift


def test_oblique_boundary_is_followed():
    x, y = np.indices((15, 12))
    depth = 2.0 * (x - 0.6 * y - 3.3)
    phases = find_phases(_blend(np.clip(depth, -9, 9)).reshape(-1, 4), (15, 12))
    assert phases.number == 2
    assert np.array_equal(phases.labels == 1, depth.ravel() > 0)


def test_direction_without_change_makes_no_phases():
    depth = np.repeat(np.linspace(-6, 6, 14), 9)
    phases = find_phases(_blend(depth), (14, 9))
    assert phases.number == 2
    assert phases.labels.tolist() == [0] * 63 + [1] * 63


@pytest.mark.parametrize("shape", [(100,), (12, 12)])
def test_noise_alone_is_one_phase(shape):
    """In all but the few grids that a chance of 5 % allows; without errors in hardly any, which is the control."""
    several, exact = 0, 0
    for seed in range(40):
        counts = np.random.default_rng(seed).multinomial(1000, [0.9, 0.09, 0.01], size=(16, int(np.prod(shape))))
        several += find_phases(counts, shape).number > 1
        exact += find_phases(counts.sum(axis=0), shape).number > 1
    assert several <= 6  # more than 6 of 40 at 5 %: a chance of 0.3 %
    assert exact > 20


def test_exchange_relabels():
    environments = Environments(TRIANGULAR, ("A", "B", "C"))
    order = (1, 2, 0)
    x = np.array([0.5, 0.3, 0.2])
    image, before = exchange(environments, order), environments.random_distribution(x)
    after = environments.random_distribution(x[np.argsort(order)])
    assert after[image] == pytest.approx(before)
    assert before[image] != pytest.approx(before)
    binary = exchange(Environments(Lattice.honeycomb(), SPECIES))
    assert np.array_equal(binary[binary], np.arange(len(binary)))


def test_blocks_add_up():
    environments = Environments(SQUARE, SPECIES)
    box, chains = _annealed(SQUARE, np.array([[0.3], [0.0]]), seed=4, stages=1)
    whole, parts = (block_histograms(chains, environments, box, blocks=b) for b in (2, 8))
    assert np.array_equal(whole.sum(axis=0), parts.sum(axis=0))
    assert parts.sum(axis=2).tolist() == [[50 * box.n_sites] * 2] * 8
    unlike = np.array([c.features.mean() for c in chains]) / (2 * box.n_sites)
    around = np.array([(d[1] if d[0] == 0 else 4 - d[1]) / 4 for d in environments.descriptors])
    assert whole.sum(axis=0) @ around / (400 * box.n_sites) == pytest.approx(unlike)
    with pytest.raises(InputError, match="blocks of chains of 400 snapshots asked for; expected at least 2"):
        block_histograms(chains, environments, box, blocks=401)


GOOD = np.full((6, 3), 1.0)


@pytest.mark.parametrize(
    ("histograms", "options", "message"),
    [
        (np.ones(6), {}, r"histograms of shape \(6,\) given"),
        (np.ones((1, 3)), {}, "of two points or more"),
        (-GOOD, {}, "expected counts >= 0"),
        (GOOD * np.nan, {}, "expected counts >= 0"),
        (np.zeros((6, 3)), {}, "some in every row"),
        (GOOD, {"grid_shape": (2, 4)}, r"a grid of shape \(2, 4\) and 6 histograms given"),
        (GOOD, {"fold": [0, 1]}, r"fold \[0, 1\] given; expected the image of each of the 3 classes"),
        (GOOD, {"fold": [0, 0, 1]}, "a permutation"),
        (GOOD, {"fold": [1, 2, 0]}, "a permutation that undoes itself"),
    ],
)
def test_bad_input_is_named(histograms, options, message):
    with pytest.raises(InputError, match=message):
        find_phases(histograms, **options)


def test_bad_order_is_named():
    with pytest.raises(InputError, match=r"order \[0, 0\] of species given; expected a permutation of 0 to 1"):
        exchange(Environments(SQUARE, SPECIES), (0, 0))
