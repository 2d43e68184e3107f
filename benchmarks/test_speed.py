"""The kernels under pytest-benchmark: python -m pytest -n 0 benchmarks/test_speed.py --benchmark-columns=median,rounds

One leg of each kernel on the workloads of `montecarlo.py`. By hand: to see what a change did, on one machine
(`--benchmark-save`, `--benchmark-compare`).
"""

from __future__ import annotations

import pytest
from montecarlo import WORKLOADS, Ours, kernels

CASES = [(work, *kernel) for work in WORKLOADS for kernel in kernels(work)]


@pytest.mark.parametrize(("work", "kernel", "chains"), CASES, ids=[f"{w.name}-{k}-{c}" for w, k, c in CASES])
def test_kernel(benchmark, work, kernel, chains):
    compiled = work.hamiltonian.compile(work.lattice.supercell((work.side, work.side)))
    runner = Ours(work, compiled, work.start(compiled), kernel, chains)
    leg = benchmark(runner.go, 0.1)
    benchmark.extra_info["moves per second"] = leg.attempted / leg.cpu
    assert leg.attempted > 0
