"""The statistical distance: its axioms, its gradient, and the published table's formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bayesatoms.errors import InputError
from bayesatoms.inference.distance import chi_square_p_value, distance, published_bic, smoothed, squared_distance

# Vlcek et al., npj Comput. Mater. 7, 42 (2021), table 1: (N, then S2 and p for R, P1, P2, M)
PUBLISHED = {
    "x=0.05": (464, (0.0062, 0.9899), (0.0067, 0.9829), (0.0070, 0.9771), (0.0073, 0.9680)),
    "x=0.55": (466, (0.0325, 0.0001), (0.0283, 0.0009), (0.0288, 0.0007), (0.0284, 0.0009)),
    "x=0.78": (434, (0.0298, 0.0013), (0.0263, 0.0069), (0.0247, 0.0143), (0.0275, 0.0040)),
    "x=0.95": (471, (0.0124, 0.5602), (0.0129, 0.4976), (0.0121, 0.5852), (0.0121, 0.5864)),
    "total": (1835, (0.0200, 0.0015), (0.0184, 0.0107), (0.0180, 0.0168), (0.0187, 0.0079)),
}
PUBLISHED_BIC = (73.4, 71.4, 73.6, 76.1)
COUPLINGS = (0, 1, 2, 2)

histograms = arrays(float, 7, elements=st.floats(0, 1)).filter(lambda a: a.sum() > 1e-3).map(lambda a: a / a.sum())


@settings(max_examples=200, deadline=None)
@given(histograms, histograms, histograms)
def test_axioms(p, q, r):
    # where s is not small the arccos of the definition is accurate enough to serve as the oracle
    s = distance(p, q)
    assert 0 <= s <= np.pi / 2 + 1e-12
    assert distance(p, p) == 0
    assert s == pytest.approx(float(distance(q, p)), abs=1e-12)
    assert s <= distance(p, r) + distance(r, q) + 1e-9
    assert np.cos(s) == pytest.approx(min(1.0, np.sqrt(p * q).sum()), abs=1e-9)


def test_known_values():
    assert distance([1.0, 0.0], [0.0, 1.0]) == pytest.approx(np.pi / 2, abs=1e-12)
    assert distance([1.0, 0.0], [0.5, 0.5]) == pytest.approx(np.pi / 4, abs=1e-12)
    # near p = q, where arccos has lost all digits: s^2 = sum (dp)^2 / (4 p) to leading order
    p, d = np.full(4, 0.25), 1e-7 * np.array([1, -1, 1, -1])
    assert squared_distance(p + d, p) == pytest.approx((d**2 / (4 * p)).sum(), rel=1e-5)


PAIRS = [
    ([0.5, 0.5, 0.0], [0.5, 0.5, 0.0]),
    ([1.0, 0.0, 0.0], [0.0, 0.5, 0.5]),
    ([0.2, 0.3, 0.5], [0.25, 0.25, 0.5]),
    ([0.5, 0.5, 0], [0.5, 0.499, 0.001]),
]


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_gradient_is_finite_and_right(p, q):
    jax.config.update("jax_enable_x64", True)
    gradient = jax.grad(lambda x: squared_distance(jnp.array(p), x, jnp))(jnp.array(q))
    assert np.isfinite(gradient).all()
    for i, value in enumerate(q):
        if value > 0.01:  # at an empty bin the one-sided derivative is infinite; ours is set to zero there
            step = 1e-6 * np.eye(3)[i]
            slope = (squared_distance(p, np.array(q) + step) - squared_distance(p, np.array(q) - step)) / 2e-6
            assert gradient[i] == pytest.approx(float(slope), abs=1e-5)


def test_published_p_values_follow_from_n_and_s2():
    """All twenty: S2 is printed to 5e-5, and the printed p must lie in the range which that rounding allows."""
    for name, (n, *rows) in PUBLISHED.items():
        images = 4 if name == "total" else 1
        for s2, p in rows:
            low, high = (chi_square_p_value(n, s, 26, images) for s in (s2 + 5.1e-5, s2 - 5.1e-5))
            assert low - 5e-5 <= p <= high + 5e-5, (name, s2, p, low, high)


def test_published_bic_follows_from_n_and_s2():
    for (s2, _), bic, k in zip(PUBLISHED["total"][1:], PUBLISHED_BIC, COUPLINGS, strict=True):
        assert published_bic(1835, s2, k) == pytest.approx(bic, abs=0.05 + 2 * 1835 * 5e-5)


def test_independent_counts_give_chi_square():
    """4 N s^2 ~ chi2(25) for independent counts only: mean 25.0 at N = 5000 (false-alarm rate 1e-4: 4 standard errors)."""
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.full(26, 5.0))
    values = 4 * 5000 * squared_distance(rng.multinomial(5000, p, size=4000) / 5000, p)
    assert values.mean() == pytest.approx(25.0, abs=4 * np.sqrt(50 / 4000) + 0.3)
    # two samples against each other: 4 n m / (n + m) s^2
    a, b = rng.multinomial(4000, p, size=4000) / 4000, rng.multinomial(6000, p, size=4000) / 6000
    assert (4 * 2400 * squared_distance(a, b)).mean() == pytest.approx(25.0, abs=4 * np.sqrt(50 / 4000) + 0.3)


def test_zero_count_conventions():
    counts, random = np.array([0, 4, 6]), np.array([0.2, 0.3, 0.5])
    assert smoothed(counts, "raw").tolist() == [0, 0.4, 0.6]
    assert smoothed(counts, "jeffreys") == pytest.approx(np.array([0.5, 4.5, 6.5]) / 11.5)
    assert smoothed(counts, "random-64", random) == pytest.approx((counts + 64 * random) / 74)
    with pytest.raises(InputError, match="zero-count convention 'other'"):
        smoothed(counts, "other")
