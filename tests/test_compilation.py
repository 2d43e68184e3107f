"""Compiled samplers that are kept: found again by another process without being traced, never taken for another's, made again if spoilt."""

import os
import subprocess
import sys

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import generator

from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.inference import compilation
from bayesatoms.inference.campaign import Campaign, Settings
from bayesatoms.inference.compilation import program
from bayesatoms.inference.posterior import infer
from bayesatoms.inference.sampling import sample
from bayesatoms.inference.threads import side_by_side
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.observation import Observation

# a program that calls LAPACK, in a process that never did
CHILD = """
import sys
import jax.numpy as jnp, numpy as np, numpyro
from bayesatoms.inference.compilation import program
numpyro.enable_x64()
def whiten(a, x):
    if sys.argv[1] == "known":
        raise SystemExit("traced, though its program is kept")
    return jnp.linalg.solve(jnp.linalg.cholesky(a), x)
given = np.array([[4.0, 2.0], [2.0, 3.0]]), np.array([2.0, 5.0])
print(program(whiten, *given, made_from=["whiten"])(*given).tolist())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, in memory and on disk."""
    monkeypatch.setenv("BAYESATOMS_CACHE", str(tmp_path))
    monkeypatch.setattr(compilation, "_PROGRAMS", {})
    return tmp_path


def kept(folder) -> list:
    return sorted(folder.rglob("*.program"))


def child(folder, what: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, what], capture_output=True, text=True, env={**os.environ, "BAYESATOMS_CACHE": str(folder)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_process_runs_it_untraced(folder):
    first = child(folder, "new")
    assert len(kept(folder)) == 1
    assert child(folder, "known") == first and np.allclose(eval(first), [1.0, 4 / np.sqrt(2)])


def test_nothing_else_is_taken_for_it(folder):
    traced = []

    def shifted(by: float):
        def f(x):
            traced.append(by)
            return x + by

        return f

    x = np.arange(3.0)
    assert program(shifted(1), x, made_from=["1"])(x).tolist() == [1, 2, 3]
    assert program(shifted(9), x, made_from=["1"])(x).tolist() == [1, 2, 3] and traced == [1]
    assert program(shifted(2), x, made_from=["2"])(x).tolist() == [2, 3, 4]
    assert program(shifted(3), x[:2], made_from=["1"])(x[:2]).tolist() == [3, 4]
    assert program(shifted(4), x.astype(int), made_from=["1"])(x.astype(int)).tolist() == [4, 5, 6]
    assert traced == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"no program", b"\x80\x04N."])
def test_a_spoilt_file_is_made_again(folder, content):
    x = np.ones(2)
    program(lambda x: x + 1, x, made_from=["spoilt"])
    kept(folder)[0].write_bytes(content)
    compilation._PROGRAMS.clear()
    with pytest.warns(UserWarning, match="made again"):
        assert program(lambda x: x + 1, x, made_from=["spoilt"])(x).tolist() == [2, 2]
    compilation._PROGRAMS.clear()
    assert program(None, x, made_from=["spoilt"])(x).tolist() == [2, 2], "and is good for the next"


def test_it_works_without_a_cache(folder, monkeypatch):
    monkeypatch.setenv("BAYESATOMS_CACHE", "")
    assert program(lambda x: 2 * x, np.ones(1), made_from=["none"])(np.ones(1)).tolist() == [2]
    assert not kept(folder)


def test_a_full_disk_costs_only_the_cache(folder, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(compilation, "write", full)
    with pytest.warns(UserWarning, match="not kept"):
        assert program(lambda x: 3 * x, np.ones(1), made_from=["full"])(np.ones(1)).tolist() == [3]


def test_only_so_many_are_kept(folder, monkeypatch):
    monkeypatch.setattr(compilation, "_IN_MEMORY", 2)
    monkeypatch.setattr(compilation, "_ON_DISK", 3)
    for i in range(5):
        program(lambda x: 2 * x, np.ones(1), made_from=[str(i)])
    assert len(compilation._PROGRAMS) == 2 and len(kept(folder)) == 3


def region(prior: dist.Distribution, size: int = 16):
    """One coupling's smooth emulator, from chains that do not depend on its prior."""
    numpyro.enable_x64()
    h = Hamiltonian("P1", Pair("A", "B", prior=prior), lattice=Lattice.triangular(), species=("A", "B"))
    image = Observation.from_labels(generator("image").integers(0, 2, (size, size)), h.lattice, h.species, name="image")
    settings = Settings(points=4, samples=80, rounds=1, warmup=200, draws=500)
    campaign = Campaign.prepare([h], [image], seed=1, pool=Pool(), settings=settings, workers=1, report=lambda *_: None)
    found = next(r for r in campaign.run(starts={"P1": {"w1": 0.0}}) if r.kind == "calibrated")
    return [image], found.smooth, settings


def test_a_sampler_serves_other_data_and_no_other_prior(folder):
    """An open prior, a narrow one, and one that excludes half of the couplings: same shapes, other constants in the density."""
    found = {}
    for name, prior in {"open": dist.Normal(0, 1), "narrow": dist.Normal(0.1, 0.01), "half": dist.HalfNormal(1.0)}.items():
        images, smooth, settings = region(prior)
        found[name] = sample(images, smooth, "calibrated", 3, settings).draws
    assert len(kept(folder)) == 3
    assert abs(found["narrow"].mean() - 0.1) < 0.02 and found["half"].min() > 0 > found["open"].min()
    others, another, settings = region(dist.Normal(0, 1), size=18)
    assert not np.allclose(sample(others, another, "calibrated", 4, settings).draws, found["open"])
    images, smooth, settings = region(dist.Normal(0, 1))
    compilation._PROGRAMS.clear()
    np.testing.assert_array_equal(sample(images, smooth, "calibrated", 3, settings).draws, found["open"])
    assert len(kept(folder)) == 3


def test_threads_change_nothing(folder):
    assert side_by_side(lambda i: i * i, range(20), 3) == [i * i for i in range(20)]
    lattice, draws = Lattice.square(), []
    pair = Pair("A", "B", prior=dist.Normal(0, 1))
    models = [Hamiltonian("P1", pair, lattice=lattice, species="AB"), Hamiltonian("R", lattice=lattice, species="AB")]
    labels = [generator(name).integers(0, 2, (14, 14)) for name in "ab"]
    images = [Observation.from_labels(grid, lattice, "AB", name=name) for grid, name in zip(labels, "ab", strict=True)]
    for workers in (1, 3):
        settings = Settings(points=4, samples=80, rounds=2, warmup=200, draws=300)
        draws.append(infer(models, images, seed=5, settings=settings, workers=workers)["P1"].draws)
    np.testing.assert_array_equal(*draws)
