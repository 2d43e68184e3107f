"""The pool keeps what was simulated through kills and damage, and gives the same numbers however often and by whomever it is run."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bayesatoms.errors import InputError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.chains import Chain
from bayesatoms.montecarlo.pool import DesignPoint, Pool

N_POINTS = 6


def model(*terms, shape=(6, 6)):
    h = Hamiltonian("P", *(terms or (Pair("A", "B"),)), lattice=Lattice.triangular(), species="AB")
    return h.compile(h.lattice.supercell(shape))


def design(n: int = N_POINTS) -> list[DesignPoint]:
    """Canonical and semi-grand points in turn."""
    compiled, length = model(), {"samples": 40, "sweeps": 1.0, "burn": 20.0, "seed": 1}
    return [DesignPoint(compiled, [0.1 * i], (20, 16), **length, potential=(0.0, 0.1 * i) if i % 2 else None) for i in range(n)]


def same(one: list[Chain], two: list[Chain]) -> bool:
    """Bit for bit, in every field."""
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for a, b in zip(one, two, strict=True) for f in dataclasses.fields(Chain))
    return all((a is None) == (b is None) and np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype for a, b in pairs)


@pytest.fixture(scope="module")
def reference() -> list[Chain]:
    """What an undisturbed run in memory gives."""
    return Pool().run(design())


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_do_not_depend_on_the_workers(reference, workers, tmp_path):
    pool = Pool(tmp_path)
    assert same(pool.run(design(), workers=workers), reference)
    assert pool.simulated == N_POINTS == len(pool)
    assert same(Pool(tmp_path).run(design(), workers=workers), reference)


def test_results_do_not_depend_on_order_or_company(reference):
    backwards = Pool().run(design()[::-1])
    assert same(backwards[::-1], reference)
    assert same(Pool().run(design()[3:4]), reference[3:4])
    assert not same(reference[1:2], reference[3:4])


def test_a_point_is_simulated_once(reference, tmp_path):
    pool, points = Pool(tmp_path), design()
    chains = pool.run([points[0], points[2], points[0]])
    assert pool.simulated == 2 and chains[0] is chains[2]
    assert same(pool.run(points), reference)
    assert pool.simulated == N_POINTS
    assert pool.moves == sum(c.moves for c in reference)
    assert pool.sweeps == N_POINTS * (20 + 40)
    other = Pool(tmp_path)
    assert same(other.run(points), reference) and other.simulated == 0 == other.moves


def test_force_simulates_anew(reference, tmp_path):
    Pool(tmp_path).run(design())
    pool = Pool(tmp_path)
    assert same(pool.run(design(), force=True), reference)
    assert pool.simulated == N_POINTS


def test_progress_counts_what_is_missing():
    pool, seen = Pool(), []
    pool.run(design()[:2])
    pool.run(design(), progress=lambda *state: seen.append(state))
    assert seen == [("simulate", i, N_POINTS - 2) for i in range(1, N_POINTS - 1)]


def test_composition_of_the_design_is_that_of_the_snapshots(reference):
    assert (reference[0].snapshots.sum(axis=1) == 16).all()
    assert len(np.unique(reference[1].snapshots.sum(axis=1))) > 1  # semi-grand


# ------------------------------------------------------------------ keys


def test_the_key_follows_from_every_input():
    base = {"compiled": model(), "couplings": [0.2], "counts": (20, 16), "samples": 5, "sweeps": 1.0, "burn": 10.0, "seed": 1}
    changes = [
        {},
        {"compiled": model(Pair("A", "A"))},  # what is counted
        {"compiled": model(Pair("A", "B", shell=2))},  # where
        {"compiled": model(shape=(4, 9))},  # in which box
        {"compiled": model(Pair("A", "B"), Pair("A", "B", shell=2)), "couplings": [0.2, 0.0]},
        {"couplings": [0.2 + 1e-15]},
        {"counts": (19, 17)},
        {"samples": 6},
        {"sweeps": 1.5},
        {"burn": 11.0},
        {"seed": 2},
        {"potential": (0.0, 0.0)},
        {"potential": (0.0, 1e-12)},
    ]
    keys = [DesignPoint(**(base | change)).key for change in changes]
    assert len(set(keys)) == len(keys)
    # the same recipe, built again or in other number types, is the same point
    again = base | {"compiled": model(), "couplings": np.array([0.2]), "counts": np.array([20, 16]), "samples": np.int64(5), "sweeps": 1}
    assert DesignPoint(**again).key == keys[0]
    assert DesignPoint(**base, potential=np.zeros(2)).key == keys[changes.index({"potential": (0.0, 0.0)})]


def test_the_key_follows_from_the_kernel_version(monkeypatch):
    before = design()[0].key
    monkeypatch.setattr("bayesatoms.montecarlo.pool.KERNEL_VERSION", "another")
    assert design()[0].key != before


# ------------------------------------------------------------------ interruptions


class Interruption(Exception):
    pass


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_resumes(reference, workers, tmp_path):
    def stop(stage, done, total):
        if done == 3:
            raise Interruption

    pool = Pool(tmp_path)
    with pytest.raises(Interruption):
        pool.run(design(), workers=workers, progress=stop)
    assert pool.simulated == 3
    pool = Pool(tmp_path)
    assert same(pool.run(design(), workers=workers), reference)
    assert pool.simulated == N_POINTS - 3


# Kills its own process without warning at a given place; argv = folder, place.
VICTIM = """
import os, signal, sys
import numpy as np
from test_pool import design
from bayesatoms.montecarlo import pool

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

place, keep, save = sys.argv[2], pool.Pool._execute, np.savez
done = []
if place == "writing a chain":
    def savez(file, **arrays):
        if len(done) == 2:
            save(file, **arrays)
            file.truncate(1000)
            file.flush()
            die()
        save(file, **arrays)
    np.savez = savez
if place == "before the catalogue":
    def execute(self, statement, *values):
        if statement.startswith("INSERT") and len(done) == 2:
            die()
        return keep(self, statement, *values)
    pool.Pool._execute = execute

def progress(stage, n, total):
    done.append(n)
    if place == "between chains" and n == 2:
        die()

pool.Pool(sys.argv[1]).run(design(), progress=progress)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("place", ["between chains", "writing a chain", "before the catalogue"])
def test_a_killed_process_resumes(reference, place, tmp_path):
    """A real SIGKILL after two of six chains: two are kept, four are simulated, and all are as if nothing had happened."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    victim = subprocess.run([sys.executable, "-c", VICTIM, str(tmp_path), place], env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert victim.returncode == -signal.SIGKILL
    pool = Pool(tmp_path)
    assert same(pool.run(design()), reference)
    assert pool.simulated == N_POINTS - 2
    pool = Pool(tmp_path)
    pool.run(design())
    assert pool.simulated == 0


# ------------------------------------------------------------------ damage


def ruin(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "flipped":
        data[len(data) // 2] ^= 0x10
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"not a chain at all", "flipped": data}[how])


@pytest.mark.parametrize("how", ["empty", "cut", "text", "flipped", "missing"])
def test_a_damaged_chain_is_simulated_again(reference, how, tmp_path):
    Pool(tmp_path).run(design())
    ruin(tmp_path / "chains" / f"{design()[2].key}.npz", how)
    pool = Pool(tmp_path)
    assert same(pool.run(design()), reference)
    assert pool.simulated == 1
    pool = Pool(tmp_path)
    assert same(pool.run(design()), reference) and pool.simulated == 0


def test_no_flipped_bit_changes_a_chain(reference, tmp_path):
    """Wherever a byte of the file is spoilt, the chain read is the right one or none."""
    Pool(tmp_path).run(design()[:1])
    path = tmp_path / "chains" / f"{design()[0].key}.npz"
    whole, lost = path.read_bytes(), 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        chain = Pool(tmp_path)._read(design()[0].key)
        lost += chain is None
        assert chain is None or same([chain], reference[:1])
    assert lost > 100


def test_a_damaged_catalogue_is_an_input_error(tmp_path):
    Pool(tmp_path).run(design()[:1])
    catalogue = tmp_path / "catalogue.sqlite"
    catalogue.write_bytes(b"this is no database" * 100)
    with pytest.raises(InputError, match="catalogue"):
        Pool(tmp_path)
    catalogue.unlink()
    catalogue.mkdir()
    with pytest.raises(InputError, match="catalogue"):
        Pool(tmp_path)
    catalogue.rmdir()
    connection = sqlite3.connect(catalogue)
    connection.execute("CREATE TABLE chains (something TEXT)")  # a database, but another one
    connection.commit()
    connection.close()
    with pytest.raises(InputError, match="catalogue"):
        Pool(tmp_path).run(design()[:1])


def test_a_folder_that_is_a_file_is_an_input_error(tmp_path):
    place = tmp_path / "pool"
    place.write_text("occupied")
    with pytest.raises(InputError, match="pool"):
        Pool(place)
