"""Executors: the same results whoever runs the tasks, few in flight, and lost workers made good or named."""

from __future__ import annotations

import functools
import operator
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
from test_pool import design, digest, long_design, python

from bayesatoms.errors import InputError, RunError
from bayesatoms.montecarlo import executors, pool
from bayesatoms.montecarlo.design import tasks
from bayesatoms.montecarlo.ensembles import Canonical
from bayesatoms.montecarlo.exchange import Ladder
from bayesatoms.montecarlo.executors import Executor, Known, Processes, Serial, Threads, executor
from bayesatoms.montecarlo.generic import KERNEL_VERSION
from bayesatoms.montecarlo.pool import Pool

KINDS = ["serial", "threads", "processes", "dask"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")


@pytest.fixture(scope="module")
def crews() -> Iterator[dict[str, Executor]]:
    """One executor of each kind that is installed; they are used again and again."""
    found = {kind: executor(kind, 2) for kind in KINDS[:3]}
    with suppress(InputError):
        found["dask"] = executor("dask", 2)
    yield found
    for crew in found.values():
        crew.close()


@pytest.fixture(params=KINDS)
def crew(request: pytest.FixtureRequest, crews: dict[str, Executor]) -> Executor:
    """Each of them."""
    if request.param not in crews:
        pytest.skip("dask is not installed: pip install 'bayesatoms[cluster]'")
    return crews[request.param]


# ------------------------------------------------------------------ the same results


@pytest.fixture(scope="module")
def reference() -> str:
    return digest(Pool().run(long_design()))


def test_chains_are_the_same_whoever_runs_them(crew, reference, tmp_path):
    folder = Pool(tmp_path)
    assert digest(folder.run(long_design(), workers=crew)) == reference
    assert digest(Pool(tmp_path).run(long_design())) == reference
    ladder = Ladder([p for p in design() if isinstance(p.ensemble, Canonical)])
    [rows] = folder.run_ladders([ladder], workers=crew)
    assert digest(rows) == digest(ladder.run().chains)
    assert folder.exchanged[ladder.key].round_trips == ladder.run().round_trips and not folder.exchanged[ladder.key].chains
    longer = folder.extend(long_design()[:3], 1000, workers=crew)
    assert digest(longer) == digest(Pool().extend(long_design()[:3], 1000))


def test_tasks_are_taken_as_they_are_needed(crew):
    taken = [0]

    def tasks():
        for n in range(200):
            taken[0] += 1
            yield -n if n % 5 else Known(-n, "known")

    found, ahead = {}, 0
    for done, (task, result) in enumerate(crew.run(abs, tasks())):
        found[task] = result
        ahead = max(ahead, taken[0] - done)
    assert found == {-n: n if n % 5 else "known" for n in range(200)}
    assert ahead <= 10  # two a worker, and the known ones among them


def test_a_failing_task_is_heard_of_and_the_executor_lives_on(crew):
    with pytest.raises(ZeroDivisionError):
        list(crew.run(functools.partial(operator.floordiv, 10), [1, 2, 0, 5]))
    with pytest.raises(InputError, match="no thing") as caught:
        list(crew.run(executor, ["no thing"]))  # a deliberate error arrives as itself
    assert caught.value.exit_code == 2
    assert sorted(crew.run(abs, [-1, -2])) == [(-2, 2), (-1, 1)]


def test_a_run_that_is_given_up_leaves_the_executor_free(crew):
    run = crew.run(abs, range(-1000, 0))
    first = next(run)
    assert first[1] == -first[0]
    run.close()
    assert list(crew.run(abs, [-7])) == [(-7, 7)]


def test_one_run_at_a_time():
    with executor("threads", 2) as crew:
        run = crew.run(abs, [-1, -2, -3])
        next(run)
        with pytest.raises(InputError, match="in the middle of another run"):
            next(crew.run(abs, [-4]))
        assert len(list(run)) == 2


# ------------------------------------------------------------------ lost workers


@POSIX
def test_a_task_that_ends_every_process_is_named(crews):
    """It takes three workers with it, not more; the others' results are given out, and the executor lives on."""
    found = []
    with pytest.raises(RunError, match=rf"task {int(signal.SIGKILL)} ended 3 worker processes, the last by signal 9: .* too little memory"):
        for pair in crews["processes"].run(signal.raise_signal, [0, 0, 0, 0, signal.SIGKILL]):
            found.append(pair)
    assert found == [(0, None)] * 4
    with pytest.raises(RunError, match="task 5 ended 3 worker processes, the last with exit code 5"):
        list(crews["processes"].run(os._exit, [5]))
    assert list(crews["processes"].run(abs, [-7])) == [(-7, 7)]


@POSIX
def test_idle_workers_may_be_killed():
    with executor("processes", 2) as crew:
        assert len(list(crew.run(abs, range(20)))) == 20
        for worker in crew._crew:
            os.kill(worker.process.pid, signal.SIGKILL)
        assert sorted(crew.run(abs, range(-20, 0))) == [(n, -n) for n in range(-20, 0)]


def test_closing_ends_the_processes():
    crew = executor("processes", 2)
    assert len(list(crew.run(abs, range(10)))) == 10
    processes = [w.process for w in crew._crew]
    assert 1 <= len(processes) <= 2 and all(p.is_alive() for p in processes)
    crew.close()
    assert not crew._crew
    with pytest.raises(ValueError, match="closed"):
        processes[0].is_alive()


def test_an_answer_that_cannot_be_sent_is_an_error(crews):
    with pytest.raises(RuntimeError, match="cannot be sent back"):
        list(crews["processes"].run(memoryview, [b"no pickle of this"]))


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from bayesatoms.montecarlo.executors import executor\nprint(list(executor('processes', 1).run(abs, [-1])))\n")
    run = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True
    )
    assert run.returncode == 1 and "RunError" in run.stderr
    assert "must do its work under `if __name__ == '__main__':`" in run.stderr


# ------------------------------------------------------------------ dask


def test_dask_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"dask.distributed, which is not installed; pip install 'bayesatoms\[cluster\]'"):
        executor("dask")


def test_dask_is_imported_only_when_it_is_asked_for():
    run = python("import sys, bayesatoms.montecarlo.executors as e\nwith e.executor('threads', 2): print('distributed' in sys.modules)")
    assert run.communicate(timeout=60)[0].strip() == "False"


def test_dask_by_address_and_a_killed_worker(crews, reference, tmp_path):
    if "dask" not in crews:
        pytest.skip("dask is not installed: pip install 'bayesatoms[cluster]'")
    address, found = crews["dask"]._client.scheduler.address, {}
    with executor("dask", scheduler=address) as crew:
        assert crew.room == 4
        for point, chain in Pool(tmp_path).stream(long_design(), workers=crew):
            found[point.key] = chain
            if len(found) == 3:
                os.kill(next(iter(crew._client.run(os.getpid).values())), signal.SIGKILL)
    assert digest([found[p.key] for p in long_design()]) == reference
    assert list(crews["dask"].run(abs, [-1])) == [(-1, 1)]  # the cluster is not ours to close


def test_no_scheduler_is_an_input_error(crews, monkeypatch):
    if "dask" not in crews:
        pytest.skip("dask is not installed: pip install 'bayesatoms[cluster]'")
    monkeypatch.setattr(executors, "_PATIENCE", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://here"):
        with pytest.raises(InputError, match=f"no dask scheduler answers at {address}"):
            executor("dask", scheduler=address)


def test_a_worker_keeps_what_it_has_worked_out():
    """Points of one Hamiltonian in one box share it again after the journey to a process, from task to task."""
    one, two, other = design()[0], design()[2], long_design()[0]
    keys = [p.key for p in (one, two, other)]
    arrived = [pickle.loads(pickle.dumps(p)) for p in (one, two, other)]
    assert [p.key for p in arrived] == keys
    assert arrived[0].compiled is arrived[1].compiled is not arrived[2].compiled
    assert digest([p.run() for p in arrived]) == digest([p.run() for p in (one, two, other)])


# ------------------------------------------------------------------ the factory


def test_the_factory():
    assert isinstance(executor(1), Serial) and isinstance(executor(0), Serial) and isinstance(executor("serial"), Serial)
    assert isinstance(executor(3), Threads) and executor(3).room == 6 and isinstance(executor(), Threads)
    assert isinstance(executor("processes"), Processes)
    crew = executor("threads", 2)
    assert executor(crew) is crew
    with pytest.raises(InputError, match="executor 'magic' is unknown; expected one of serial, threads, processes, dask"):
        executor("magic")
    with pytest.raises(InputError, match="0 workers given; expected at least one"):
        executor("threads", 0)
    with pytest.raises(InputError, match=r"scheduler .* for 'dask' only"):
        executor("threads", scheduler="tcp://here:1")


def test_a_worker_with_other_kernels_is_refused():
    """A chain of other kernels would be stored as something that it is not."""
    with pytest.raises(InputError, match=f"kernels of version {KERNEL_VERSION}, expected other: install the same bayesatoms everywhere"):
        pool._run("other", tasks(design())[0])
    assert digest(pool._run(KERNEL_VERSION, tasks(design())[0]).chains) == digest([design()[0].run()])
