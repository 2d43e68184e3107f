"""The pool keeps what was simulated through kills and damage, and gives the same numbers however often and by whomever it is run."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bayesatoms.errors import InputError, RunError
from bayesatoms.hamiltonian import Hamiltonian, Pair
from bayesatoms.lattice import Lattice
from bayesatoms.montecarlo.chains import Chain
from bayesatoms.montecarlo.design import DesignPoint, tasks
from bayesatoms.montecarlo.ensembles import Canonical, Constrained, SemiGrand
from bayesatoms.montecarlo.executors import executor
from bayesatoms.montecarlo.pool import Pool
from bayesatoms.montecarlo.storage import Folder

N_POINTS = 6
HERE = Path(__file__).parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX systems")


def model(*terms, shape=(6, 6)):
    h = Hamiltonian("P", *(terms or (Pair("A", "B"),)), lattice=Lattice.triangular(), species="AB")
    return h.compile(h.lattice.supercell(shape))


def design(n: int = N_POINTS) -> list[DesignPoint]:
    """Canonical and semi-grand points in turn."""
    compiled, length = model(), {"samples": 40, "sweeps": 1.0, "burn": 20.0, "seed": 1}
    return [
        DesignPoint(compiled, [0.1 * i], (20, 16), **length, ensemble=SemiGrand((0.0, 0.1 * i)) if i % 2 else Canonical()) for i in range(n)
    ]


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
    pool = Pool(tmp_path, force=True)
    assert same(pool.run(design()), reference) and pool.simulated == N_POINTS
    assert same(pool.run(design()), reference) and pool.simulated == N_POINTS  # once
    assert len(pool) == N_POINTS


def test_progress_counts_what_is_missing():
    pool, seen = Pool(), []
    pool.run(design()[:2])
    pool.run(design(), progress=lambda *state: seen.append(state))
    assert seen == [("simulate", i, N_POINTS - 2) for i in range(N_POINTS - 1)]
    seen.clear()
    assert pool.run(design(), progress=lambda *state: seen.append(state)) and not seen
    list(Pool().stream(iter(design()), progress=lambda *state: seen.append(state)))
    assert seen == [("simulate", i, 0) for i in range(1, N_POINTS + 1)]  # how many there will be is not known


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
        {"ensemble": SemiGrand((0.0, 0.0))},
        {"ensemble": SemiGrand((0.0, 1e-12))},
        {"ensemble": Constrained(3.0)},
        {"ensemble": Canonical(np.arange(36) % 2), "kernel": "generic"},
        {"kernel": "lanes"},
    ]
    keys = [DesignPoint(**(base | change)).key for change in changes]
    assert len(set(keys)) == len(keys)
    # the same recipe, built again or in other number types, is the same point
    again = base | {"compiled": model(), "couplings": np.array([0.2]), "counts": np.array([20, 16]), "samples": np.int64(5), "sweeps": 1}
    assert DesignPoint(**again).key == keys[0]
    assert DesignPoint(**base, ensemble=SemiGrand(np.zeros(2))).key == keys[changes.index({"ensemble": SemiGrand((0.0, 0.0))})]


def test_the_key_follows_from_the_kernel_version(monkeypatch):
    before = design()[0].key
    monkeypatch.setattr("bayesatoms.montecarlo.design.KERNEL_VERSION", "another")
    assert design()[0].key != before


# ------------------------------------------------------------------ streams


def test_a_stream_gives_every_point_its_chain(reference, tmp_path):
    points = [*design(), *design()[:2], *design()]
    for pool, simulated in ((Pool(), N_POINTS), (Pool(tmp_path), N_POINTS), (Pool(tmp_path), 0)):
        found = list(pool.stream(iter(points), workers=2))
        assert sorted(p.key for p, _ in found) == sorted(p.key for p in points)
        by_key = {p.key: c for p, c in zip(design(), reference, strict=True)}
        assert same([c for _, c in found], [by_key[p.key] for p, _ in found])
        assert pool.simulated == simulated and len(pool) == N_POINTS


def small_points(n: int) -> Iterator[DesignPoint]:
    """The cheapest points there are."""
    compiled = model(shape=(3, 3))
    return (DesignPoint(compiled, [0.1], (5, 4), samples=2, sweeps=1.0, burn=1.0, seed=seed) for seed in range(n))


@pytest.mark.parametrize("n", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_campaign_of_any_size_runs_in_bounded_memory(n, tmp_path):
    """Points are made as they are needed, chains forgotten when stored: the memory of the first 500 suffices for all."""
    made, early = [0], 0

    def points():
        for point in small_points(n):
            made[0] += 1
            yield point

    next(small_points(1)).run()  # what is compiled stays
    pool = Pool(tmp_path)
    tracemalloc.start()
    try:
        for done, (_, chain) in enumerate(pool.stream(points()), 1):
            assert len(chain) == 2
            assert made[0] - done <= 300  # a window of points, and those in flight
            if done == 500:
                early = tracemalloc.get_traced_memory()[1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done == n == pool.simulated == len(pool)
    assert peak < early + 1_000_000  # chains that were kept would take over a kilobyte each
    again = Pool(tmp_path)
    assert sum(1 for _ in again.stream(small_points(n))) == n and again.simulated == 0


# ------------------------------------------------------------------ longer chains


def test_an_extended_chain_goes_on_where_it_was(reference, tmp_path):
    pool, points = Pool(tmp_path), design()
    pool.run(points[:3])
    longer = pool.extend(points, 100, workers=2)
    assert pool.simulated == 3 + 3 + 2 * N_POINTS  # three stretches of 40 each, where three are there
    assert all(len(c) == 100 == len(c.snapshots) for c in longer)
    for short, long, p in zip(reference, longer, points, strict=True):
        np.testing.assert_array_equal(long.features[:40], short.features)
        np.testing.assert_array_equal(long.snapshots[:40], short.snapshots)
        np.testing.assert_array_equal(long.features, [p.compiled.features(s) for s in long.snapshots])
        assert long.moves == 3 * short.moves - 2 * 20 * (16 if isinstance(p.ensemble, Canonical) else 36)  # one burn-in only
        assert not np.array_equal(long.features[40:80], long.features[:40])
    # neither the steps in which it grew nor who ran it matter, and nothing is simulated twice
    for steps in ([100], [41, 81, 100], [300, 100], [40, 1, 100]):
        other = Pool()
        assert same([other.extend(points, n) for n in steps][-1], longer)
    assert same(Pool(tmp_path).extend(points, 100), longer)
    assert same(pool.run(points), reference)
    assert pool.simulated == 3 * N_POINTS
    with pytest.raises(InputError, match="at least one"):
        pool.extend(points, 0)


def test_stretches_are_joined_without_a_seam():
    """The first snapshot of a stretch lies as near to the last one before it as any two neighbours of one chain do."""
    point = DesignPoint(model(shape=(20, 20)), [0.3], (200, 200), samples=2, sweeps=0.05, burn=50.0, seed=4)
    labels = Pool().extend([point], 200)[0].snapshots
    changed = (labels[1:] != labels[:-1]).sum(axis=1)  # a move changes two sites; 10 are tried
    assert changed.max() <= 20 and (changed > 0).mean() > 0.9
    assert abs(changed[::2].mean() - changed[1::2].mean()) < 5 * changed.std() * np.sqrt(2 / 100)


def test_extension_progress_and_damage(tmp_path):
    pool, seen = Pool(tmp_path), []
    pool.extend(design()[:2], 120, progress=lambda *state: seen.append(state))
    assert seen == [("extend", 0, 6), ("extend", 3, 6), ("extend", 6, 6)]
    before = pool.extend(design()[:2], 120)
    [file] = (tmp_path / "chains").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2 - 100] ^= 1
    file.write_bytes(data)
    again = Pool(tmp_path)
    assert same(again.extend(design()[:2], 120), before) and again.simulated >= 1


def test_the_page_on_campaigns_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = HERE.parent / "docs" / "campaigns.md"
    if not page.is_file():
        pytest.skip("not a source tree: no docs beside the package")
    [source] = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf8"), flags=re.MULTILINE | re.DOTALL)
    namespace: dict[str, object] = {}
    exec(source, namespace)
    assert len(capsys.readouterr().out.splitlines()) == 20 and [len(c) for c in namespace["longer"]] == [1000] * 3


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


def python(program: str, *arguments: object, **options) -> subprocess.Popen:
    """A process that has the tests and the package on its path."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, "-c", program, *map(str, arguments)], {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


# Kills its own process without warning at a given place; argv = folder, place.
VICTIM = """
import os, signal, sys
from test_pool import design
from bayesatoms.montecarlo import pool, storage

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

folder, place = sys.argv[1:]
put, done = storage.Folder.put, []

def kill_while_writing(self, recipe, chain):
    if len(done) == 2:
        with (self.chains / self._file).open("ab") as file:
            file.write(storage._record(recipe, chain)[1][:-100])
        die()
    put(self, recipe, chain)

def kill_while_cataloguing(self, recipe, chain):
    put(self, recipe, chain)
    if len(done) == 2:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO chains VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", list(self._rows.values()))
        die()

storage.Folder.put = {"writing": kill_while_writing, "cataloguing": kill_while_cataloguing}.get(place, put)

def progress(stage, n, total):
    done.extend([n] * (n > 0))
    if place == "between" and n == 2:
        die()

pool.Pool(folder).run(design(), progress=progress)
"""


@POSIX
@pytest.mark.parametrize(("place", "kept"), [("between", 2), ("writing", 2), ("cataloguing", 3)])
def test_a_killed_process_resumes(reference, place, kept, tmp_path):
    """A real SIGKILL among six chains: what was written is kept, the others are simulated, and all are as if nothing had happened."""
    victim = python(VICTIM, tmp_path, place)
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    pool = Pool(tmp_path)
    assert len(pool) == kept
    assert same(pool.run(design()), reference)
    assert pool.simulated == N_POINTS - kept and len(pool) == N_POINTS
    pool = Pool(tmp_path)
    pool.run(design())
    assert pool.simulated == 0


LONG = 40


def long_design() -> list[DesignPoint]:
    """Points of some ten milliseconds each."""
    compiled = model(shape=(12, 12))
    return [DesignPoint(compiled, [0.01 * i], (72, 72), samples=400, sweeps=4.0, burn=20.0, seed=1) for i in range(LONG)]


def digest(chains: list[Chain]) -> str:
    """Of every snapshot and feature."""
    return hashlib.sha256(b"".join(c.packed.tobytes() + c.features.tobytes() for c in chains)).hexdigest()


@pytest.fixture(scope="module")
def long_digest() -> str:
    return digest(Pool().run(long_design()))


# Says the key of each chain that it has; argv = folder, kind of executor.
CAMPAIGN = """
import multiprocessing, sys
from test_pool import long_design
from bayesatoms.montecarlo.executors import executor
from bayesatoms.montecarlo.pool import Pool

with executor(sys.argv[2], 2) as crew:
    for point, chain in Pool(sys.argv[1]).stream(long_design(), workers=crew):
        print(point.key, *(p.pid for p in multiprocessing.active_children()), flush=True)
"""


def begun(folder: Path, kind: str, lines: int) -> tuple[subprocess.Popen, list[list[str]]]:
    """A campaign that has said so many lines, and these."""
    campaign = python(CAMPAIGN, folder, kind)
    assert campaign.stdout is not None
    said = [campaign.stdout.readline().split() for _ in range(lines)]
    return campaign, said


def alive(pid: str) -> bool:
    """Whether a process runs (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@POSIX
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_campaign_killed_at_any_moment_resumes(kind, long_digest, tmp_path):
    """SIGKILL from outside: what was reported is there, the rest is simulated, and no worker is left behind."""
    campaign, said = begun(tmp_path, kind, 8)
    campaign.kill()
    said += [line.split() for line in campaign.communicate(timeout=60)[0].splitlines()]
    assert campaign.returncode == -signal.SIGKILL and 8 <= len(said) < LONG
    pool = Pool(tmp_path)
    assert all(pool.storage.get(key) is not None for key, *_ in said)
    assert digest(pool.run(long_design())) == long_digest
    assert pool.simulated <= LONG - len(said) and len(pool) == LONG
    workers, patience = {pid for _, *pids in said for pid in pids}, time.monotonic() + 30
    assert len(workers) == (2 if kind == "processes" else 0)
    while any(map(alive, workers)) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not any(map(alive, workers))


# Is in the middle of a run when it is interrupted; argv = folder.
INTERRUPTED = """
import signal, sys, time
from test_pool import long_design
from bayesatoms.montecarlo.executors import executor
from bayesatoms.montecarlo.pool import Pool

with executor("processes", 2) as crew:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it

    def told(*state):
        print(*state, flush=True)
        time.sleep(0.1)  # so that the signal finds it at work, however fast the kernels are

    Pool(sys.argv[1]).run(long_design(), workers=crew, progress=told)
"""


@POSIX
def test_ctrl_c_leaves_a_pool_that_resumes(long_digest, tmp_path):
    """A real SIGINT to the whole group, as a terminal sends it: finished chains are kept, and the message says so."""
    campaign = python(INTERRUPTED, tmp_path, start_new_session=True)
    assert campaign.stdout is not None
    said = [campaign.stdout.readline() for _ in range(6)]
    os.killpg(campaign.pid, signal.SIGINT)
    out, err = campaign.communicate(timeout=60)
    assert campaign.returncode != 0 and "KeyboardInterrupt" in err
    assert f"finished chains are kept in {tmp_path}; run again to continue" in err
    assert err.count("Traceback") == 1  # of the parent; workers say nothing
    pool = Pool(tmp_path)
    assert 5 <= len(said) + len(out.splitlines()) - 1 <= len(pool) < LONG  # the first line says that none is done
    assert digest(pool.run(long_design())) == long_digest


@POSIX
def test_a_killed_worker_costs_nothing_but_time(long_digest, tmp_path):
    pool, found, killed = Pool(tmp_path), {}, set()
    with executor("processes", 2) as crew:
        for point, chain in pool.stream(long_design(), workers=crew):
            found[point.key] = chain
            if len(found) in (2, 15):
                victim = crew._crew[0].process.pid
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
    assert len(killed) == 2 and pool.simulated == LONG
    assert digest([found[p.key] for p in long_design()]) == long_digest


def test_two_runs_may_share_a_folder(long_digest, tmp_path):
    program = """
import sys
from test_pool import digest, long_design
from bayesatoms.montecarlo.pool import Pool
pool, points = Pool(sys.argv[1]), long_design()
found = {p.key: c for p, c in pool.stream(points[::-1] if sys.argv[2] == "back" else points)}
print(digest([found[p.key] for p in points]), pool.simulated)
"""
    both = [python(program, tmp_path, way) for way in ("forth", "back")]
    said = [run.communicate(timeout=60)[0].split() for run in both]
    assert [run.returncode for run in both] == [0, 0]
    assert [s for s, _ in said] == [long_digest] * 2
    assert LONG <= sum(int(n) for _, n in said) <= 2 * LONG
    pool = Pool(tmp_path)
    assert len(pool) == LONG and digest(pool.run(long_design())) == long_digest and pool.simulated == 0


FULL = """
import resource, sys
from pathlib import Path
from test_pool import design
from bayesatoms.errors import RunError
from bayesatoms.montecarlo.pool import Pool

def fill(stage, done, total):  # 100 bytes are left in the third chain's file, and none in any other
    if done == 2:
        [file] = Path(sys.argv[1], "chains").iterdir()
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, resource.RLIM_INFINITY))

try:
    Pool(sys.argv[1]).run(design(), progress=fill)
except RunError as error:
    print(error)
"""


@POSIX
def test_a_full_disk_is_a_clear_error_and_nothing_is_half_written(reference, tmp_path):
    """The system itself refuses to write: by a limit on the size of files, in the middle of a chain."""
    run = python(FULL, tmp_path)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 0
    assert f"pool folder {tmp_path}: chain {design()[2].key} cannot be written" in said
    assert "finished chains are kept: make room on the disk" in said and "run again to continue" in said
    [file] = (tmp_path / "chains").iterdir()
    pool = Pool(tmp_path)
    connection = sqlite3.connect(tmp_path / "catalogue.sqlite")
    assert connection.execute("SELECT MAX(place + length), COUNT(*) FROM chains").fetchone() == (file.stat().st_size, 2)
    connection.close()
    assert same(pool.run(design()), reference) and pool.simulated == N_POINTS - 2


# ------------------------------------------------------------------ damage


def record(folder: Path, key: str) -> tuple[Path, int, int]:
    """File, place and length of a chain."""
    connection = sqlite3.connect(folder / "catalogue.sqlite")
    name, place, length = connection.execute("SELECT file, place, length FROM chains WHERE key = ?", (key,)).fetchone()
    connection.close()
    return folder / "chains" / name, place, length


def ruin(folder: Path, key: str, how: str) -> int:
    """Spoil a chain; how many it takes with it."""
    path, place, length = record(folder, key)
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
        return N_POINTS
    flipped = bytearray(data)
    flipped[place + length // 2] ^= 0x10
    text = data[:place] + (b"not a chain at all" * length)[:length] + data[place + length :]
    path.write_bytes({"empty": b"", "cut": data[: place + length // 2], "text": text, "flipped": flipped}[how])
    return {"empty": N_POINTS, "cut": N_POINTS - 2}.get(how, 1)


@pytest.mark.parametrize("how", ["empty", "cut", "text", "flipped", "missing"])
def test_a_damaged_chain_is_simulated_again(reference, how, tmp_path):
    Pool(tmp_path).run(design())
    lost = ruin(tmp_path, design()[2].key, how)
    pool = Pool(tmp_path)
    assert same(pool.run(design()), reference)
    assert pool.simulated == lost and len(pool) == N_POINTS
    pool = Pool(tmp_path)
    assert same(pool.run(design()), reference) and pool.simulated == 0


def test_no_flipped_bit_changes_a_chain(reference, tmp_path):
    """Wherever a byte of the file is spoilt, the chain read is the right one or none, and so is the row made from it."""
    Pool(tmp_path).run(design()[:1])
    key, lost = design()[0].key, 0
    path, _, length = record(tmp_path, key)
    whole, storage = path.read_bytes(), Folder(tmp_path)
    assert len(whole) == length
    for place in range(0, length, 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        lost += storage.get(key) is None
    assert lost == len(range(0, length, 3))
    path.write_bytes(whole)
    assert same([storage.get(key)], reference[:1])


def test_a_chain_is_not_taken_for_another(tmp_path):
    pool = Pool(tmp_path)
    pool.run(design())
    connection = sqlite3.connect(tmp_path / "catalogue.sqlite")
    connection.execute("UPDATE chains SET place = (SELECT MIN(place) FROM chains)")
    connection.commit()
    connection.close()
    assert [pool.storage.get(p.key) is None for p in design()].count(True) >= N_POINTS - 1


@pytest.mark.parametrize("how", ["text", "another program's", "cut", "missing"])
def test_a_damaged_catalogue_is_made_again_from_the_chains(reference, how, tmp_path):
    Pool(tmp_path).run(design())
    catalogue = tmp_path / "catalogue.sqlite"
    rows = "SELECT * FROM chains ORDER BY key"
    before = Folder(tmp_path)._execute(rows)
    whole = catalogue.read_bytes()
    catalogue.unlink()
    if how == "another program's":
        connection = sqlite3.connect(catalogue)
        connection.execute("CREATE TABLE chains (something TEXT)")
        connection.commit()
        connection.close()
    elif how != "missing":
        catalogue.write_bytes(b"this is no database" * 100 if how == "text" else whole[:5000])
    if how == "missing":
        pool = Pool(tmp_path)
    else:
        with pytest.warns(UserWarning, match=r"catalogue.sqlite is damaged .* made again from the chains.*catalogue.damaged.sqlite"):
            pool = Pool(tmp_path)
        assert (tmp_path / "catalogue.damaged.sqlite").exists()
    assert len(before) == len(pool) == N_POINTS and Folder(tmp_path)._execute(rows) == before
    assert same(pool.run(design()), reference) and pool.simulated == 0


def test_a_catalogue_damaged_while_it_is_used(reference, tmp_path):
    pool = Pool(tmp_path)
    pool.run(design()[:3])
    (tmp_path / "catalogue.sqlite").write_bytes(b"this is no database" * 1000)
    with pytest.warns(UserWarning, match="made again"):
        chains = pool.run(design())
    assert same(chains, reference) and pool.simulated == N_POINTS == len(pool) == len(Pool(tmp_path))


def test_what_is_left_of_a_spoilt_file_is_found(reference, tmp_path):
    """Without a catalogue, and with a chain's length spoilt, the chains behind it are still there."""
    Pool(tmp_path).run(design())
    path, place, _ = record(tmp_path, design()[2].key)
    data = bytearray(path.read_bytes())
    data[place + 20 : place + 32] = b"\xff" * 12
    path.write_bytes(data)
    (tmp_path / "catalogue.sqlite").unlink()
    pool = Pool(tmp_path)
    assert len(pool) == N_POINTS - 1
    assert same(pool.run(design()), reference) and pool.simulated == 1


def test_places_that_cannot_be_a_pool_are_input_errors(tmp_path):
    place = tmp_path / "pool"
    place.write_text("occupied")
    with pytest.raises(InputError, match=r"pool folder .* cannot be used"):
        Pool(place)
    (tmp_path / "other" / "catalogue.sqlite").mkdir(parents=True)
    with pytest.raises(InputError, match=r"catalogue .* cannot be used .*permissions"):
        Pool(tmp_path / "other")


def test_a_catalogue_held_by_another_process(tmp_path, monkeypatch):
    """Whoever holds it for long is named as the cause, not the disk."""
    pool, connect = Pool(tmp_path), sqlite3.connect
    holder = connect(tmp_path / "catalogue.sqlite")
    holder.execute("BEGIN EXCLUSIVE")
    pool.storage._connection.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(RunError, match="end the other run that holds it"):
        pool.run(design()[:1])
    holder.rollback()
    holder.close()
    assert len(Pool(tmp_path)) <= 1 and len(pool.run(design())) == N_POINTS


# ------------------------------------------------------------------ side by side


def beside(n: int = 70) -> list[DesignPoint]:
    """Points of two compositions for the lanes kernel, and one for another."""
    recipe = {"compiled": model(), "samples": 6, "sweeps": 1.0, "burn": 10.0, "seed": 1, "kernel": "lanes"}
    points = [DesignPoint(couplings=[0.01 * i], counts=(20 - i % 2, 16 + i % 2), **recipe) for i in range(n)]
    return [*points, DesignPoint(**(recipe | {"couplings": [0.3], "counts": (20, 16), "kernel": "generic"}))]


def test_points_of_one_crystal_run_side_by_side():
    found = tasks(beside())
    assert sorted(len(t.recipes) for t in found) == [1, 3, 3, 32, 32]
    assert all(len({p.family for p in t.recipes}) == 1 for t in found)
    assert [len(t.recipes) for t in tasks(beside(256)[:-1])] == [64] * 4


def test_a_chain_is_the_same_in_whatever_batch(tmp_path):
    points = beside()
    whole = Pool().run(points)
    assert [c.kernel for c in whole] == ["lanes"] * 70 + ["generic"]
    pool = Pool(tmp_path / "pool")
    pool.run(points[10:30])  # so that the batches of the rest are others
    for one, two in zip(whole, pool.run(points[::-1], workers=2)[::-1], strict=True):
        assert np.array_equal(one.packed, two.packed) and np.array_equal(one.features, two.features)
        assert (one.acceptance, one.moves, one.kernel) == (two.acceptance, two.moves, two.kernel)
    assert np.array_equal(whole[5].features, points[5].run().features)
    assert np.array_equal(Pool(tmp_path / "pool").run(points)[5].features, whole[5].features)
    assert Pool(tmp_path / "pool").run(points)[5].kernel == "lanes"


def test_a_point_says_which_kernel_cannot_run_it():
    with pytest.raises(InputError, match="kernel 'multispin' given for a design point; expected auto, code, lanes, generic"):
        DesignPoint(model(), [0.1], (20, 16), samples=1, sweeps=1, burn=1, seed=1, kernel="multispin")
    with pytest.raises(InputError, match="the code kernel cannot run this: atoms swap within groups"):
        DesignPoint(model(), [0.1], (20, 16), samples=1, sweeps=1, burn=1, seed=1, kernel="code", ensemble=Canonical(np.arange(36) % 2))
